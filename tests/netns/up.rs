//! `ringway up`, `down` and `status`: this host as a client of gateways of other hands and of our own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::admin::{content, json_of};
use crate::appliance::{Appliance, program, state};
use crate::dropin::text;
use crate::enrolment::{invite, join, said};
use crate::lab::{Host, Lab, machine, wait_until};
use crate::peer::{Implementation, Peer, Remote, stranger};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, connect};
use crate::traffic::{Flow, Way, must_reach, ping};
use crate::vpn::{FAR_V4, FAR_V6, site};

const SOON: Duration = Duration::from_secs(10);

/// A plain WireGuard server on the far host.
pub(crate) fn server(far: &Arc<Host>) -> Peer {
    let server = Peer::start(far, Implementation::WireguardGo, "wg0", GATEWAY_PORT);
    server.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], 1420);
    server
}

/// Writes a profile of a new key; returns its path on the host, and the public key.
pub(crate) fn profile(host: &Host, name: &str, gateway: &str, more: (&str, &str)) -> (String, String) {
    let private = machine("wg genkey");
    let public = host.run_with_input("wg pubkey", &private).trim().to_owned();
    let conf = format!(
        "[Interface]\nPrivateKey = {private}Address = 100.64.0.2/32, fd64::2/128\n{}\n[Peer]\nPublicKey = {gateway}\n\
         Endpoint = 198.18.0.1:{GATEWAY_PORT}\n{}\n",
        more.0, more.1
    );
    (write(host, name, &conf), public)
}

pub(crate) fn write(host: &Host, name: &str, conf: &str) -> String {
    let path = host.run_file(&format!("{name}.conf"));
    fs::write(&path, conf).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    format!("/var/run/{name}.conf")
}

pub(crate) const ALL: &str = "AllowedIPs = 0.0.0.0/0, ::/0";

pub(crate) fn know(server: &Peer, public: &str) {
    server.know(&Remote { public, allowed: "100.64.0.2/32,fd64::2/128", ..Remote::default() });
}

pub(crate) fn start(host: &Host, words: &str) -> Child {
    let mut up = host.line(&format!("{} up {words}", program()));
    up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) fn ringway(host: &Host, words: &str) -> (bool, String) {
    let out = host.attempt(&format!("{} {words}", program()));
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

pub(crate) fn status(host: &Host, name: &str) -> Value {
    json_of(host, &format!("status {name}"))
}

/// All of a client's packets are one session's: each queue's go to the worker that owns it, and none by another.
#[test]
fn several_workers_hand_nothing_over() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (path, public) = profile(&host, "vpn0", &server.public, ("Table = auto", ALL));
    know(&server, &public);
    let (done, told) = ringway(&host, &format!("up --background --workers 4 {path}"));
    assert!(done, "{told}");
    for way in [Way::Up, Way::Down] {
        let report = Flow { way, streams: 4, ..Flow::tcp(&host, &far, FAR_V4) }.run();
        assert!(report.rate > 1e6, "{way:?}: {report:?}");
    }
    let shown = json_of(&host, "show vpn0");
    let workers = shown["dataplane"]["workers"].as_array().unwrap();
    let handed = |worker: &Value| worker["counters"]["ringway_handed_over_total"].as_u64().unwrap();
    assert_eq!(workers.iter().map(handed).collect::<Vec<_>>(), [0; 4], "{shown}");
    assert_eq!(ringway(&host, "down vpn0"), (true, "vpn0: down\n".to_owned()));
}

#[test]
fn everything_goes_through_a_gateway_of_another_hand_and_down_leaves_nothing() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (path, public) = profile(&host, "vpn0", &server.public, ("Table = auto", ALL));
    know(&server, &public);
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    let before = state(&host);
    let (done, told) = ringway(&host, &format!("up --background {path}"));
    assert!(done && told.contains("vpn0: asking 198.18.0.1:51820\n"), "{told}");
    assert!(told.contains("vpn0: connected to 198.18.0.1:51820 in "), "{told}");
    must_reach(&host, FAR_V4);
    must_reach(&host, FAR_V6);
    let counted = |key: &str| status(&host, "vpn0")["peers"][0][key].as_u64().unwrap();
    for (way, key) in [(Way::Up, "tx_bytes"), (Way::Down, "rx_bytes")] {
        let first = counted(key);
        let report = Flow { way, ..Flow::tcp(&host, &far, FAR_V4) }.run();
        let carried = (counted(key) - first) as f64;
        // Two seconds of it.
        let told = report.rate / 8.0 * 1.8;
        assert!(told > 1e6 && carried > told, "{way:?}: {carried} of {told} bytes");
    }
    let shown = status(&host, "vpn0");
    assert_eq!(
        (&shown["status"], &shown["peers"][0]["endpoint"]),
        (&"started".into(), &"198.18.0.1:51820".into())
    );
    assert!(shown["peers"][0]["handshake_age"].as_u64().unwrap() < 60, "{shown}");
    let (done, told) = ringway(&host, &format!("up --background {path}"));
    assert!(!done && told.contains("there is a VPN, or another device, by the name vpn0 already"), "{told}");
    let (_, told) = ringway(&host, "status");
    assert!(
        told.starts_with("vpn0: started (/var/run/vpn0.conf)\n  gateway 198.18.0.1:51820: handshake "),
        "{told}"
    );
    assert_eq!(ringway(&host, "down vpn0"), (true, "vpn0: down\n".to_owned()));
    assert_eq!(state(&host), before);
    let (done, told) = ringway(&host, "down vpn0");
    assert!(!done && told.contains("there is no VPN by the name vpn0"), "{told}");
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: nothing was left\n".to_owned()));
}

#[test]
fn a_killed_client_lets_nothing_out_until_it_is_taken_back() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (path, public) =
        profile(&host, "vpn0", &server.public, ("DNS = 100.64.0.1, example.org", "AllowedIPs = 0.0.0.0/0"));
    know(&server, &public);
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    // A resolver of its own.
    host.run("cp -a /etc /var/run/etc");
    host.run("mount --bind /var/run/etc /etc");
    let resolver = host.run("cat /etc/resolv.conf");
    let before = state(&host);
    // First by the routes alone; then, while they are still there, with the kill switch.
    for switch in ["off", "auto"] {
        assert!(ringway(&host, &format!("up --background --kill-switch {switch} {path}")).0);
        must_reach(&host, FAR_V4);
        let asked = host.run("cat /etc/resolv.conf");
        assert!(
            asked.contains("nameserver 100.64.0.1\n") && asked.contains("search example.org\n"),
            "{asked}"
        );
        // What a hostile DHCP server says (CVE-2024-3661).
        host.run("ip route add 198.19.0.0/24 via 198.18.0.1");
        let leaks = if switch == "off" { 1 } else { 0 };
        assert_eq!(ping(&host, FAR_V4, 1, 56), leaks, "{switch}");
        host.run("ip route del 198.19.0.0/24 via 198.18.0.1");
        assert_eq!(ping(&host, FAR_V6, 1, 56), 0, "IPv6 is in no tunnel, and beside none");
        let pid = status(&host, "vpn0")["process"].as_u64().unwrap();
        machine(&format!("kill -KILL {pid}"));
        wait_until("the device is gone", SOON, || !host.has_interface("vpn0"));
        assert_eq!((ping(&host, FAR_V4, 1, 56), ping(&host, FAR_V6, 1, 56)), (0, 0), "nothing leaves");
        wait_until("it is noticed", SOON, || status(&host, "vpn0")["status"] == "killed");
        let (done, told) = ringway(&host, "down vpn0");
        assert!(!done && told.contains("`ringway down --force vpn0`"), "{told}");
    }
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert_eq!(host.run("cat /etc/resolv.conf"), resolver);
    assert_eq!(state(&host), before);
    assert_eq!(ping(&host, FAR_V4, 1, 56), 1);
}

#[test]
fn a_profile_that_join_wrote_connects_and_its_commands_run_in_order() {
    let Some(lab) = Lab::new() else { return };
    let (host, far) = (lab.host("gateway"), lab.host("client"));
    connect(&lab, &host, &far, 0, 1520);
    let gateway = Appliance::start(&host, "wg0", &content(""));
    let (uri, _) = invite(
        &host,
        "--name laptop --endpoint 198.18.0.99:7 --endpoint 198.18.0.1:51820 --endpoint vpn.invalid:7",
    );
    let (code, told) = said(join(&far, &uri, "own.conf"));
    assert_eq!(code, Some(0), "{told}");
    let conf = fs::read_to_string(far.run_file("own.conf")).unwrap();
    assert!(conf.contains("Endpoint = 198.18.0.1:51820\n"), "the one that answered");
    assert!(conf.ends_with("# ringway: endpoints = 198.18.0.99:7, vpn.invalid:7\n"), "and the others");
    let hooks = ["PreUp", "PostUp", "PreDown", "PostDown"].map(|hook| {
        let look = "ip link show dev %i >/dev/null 2>&1 && echo there || echo gone";
        format!("{hook} = echo {hook} %i $({look}) >> /var/run/hooks\n")
    });
    let conf = conf.replace("\nMTU", &format!("\n{}MTU", hooks.concat()));
    fs::remove_file(far.run_file("own.conf")).unwrap();
    let path = write(&far, "laptop", &conf);
    let before = state(&far);

    let up = start(&far, &path);
    wait_until("it is up", SOON, || far.attempt(&format!("{} status laptop", program())).status.success());
    must_reach(&far, GATEWAY_V4);
    must_reach(&far, GATEWAY_V6);
    machine(&format!("kill -TERM {}", up.id()));
    let (code, told) = said(up);
    assert!(code == Some(0) && told.contains("laptop: connected to 198.18.0.1:51820"), "{code:?} {told}");
    let hooks = fs::read_to_string(far.run_file("hooks")).unwrap();
    assert_eq!(
        hooks,
        "PreUp laptop gone\nPostUp laptop there\nPreDown laptop there\nPostDown laptop there\n"
    );
    fs::remove_file(far.run_file("hooks")).unwrap();
    wait_until("all is gone", SOON, || state(&far) == before);

    // Whose commands they are is not for others to say.
    fs::set_permissions(far.run_file("laptop.conf"), fs::Permissions::from_mode(0o620)).unwrap();
    let (done, told) = ringway(&far, &format!("up {path}"));
    assert!(!done && told.contains("chmod 600"), "{told}");
    far.run(&format!("chown nobody {path}"));
    far.run(&format!("chmod 600 {path}"));
    let (done, told) = ringway(&far, &format!("up {path}"));
    assert!(!done && told.contains("commands (PreUp to PostDown) that run as root"), "{told}");
    gateway.end();
}

#[test]
fn who_gets_no_answer_is_told_what_it_looks_like_and_nothing_stays() {
    let Some(lab) = Lab::new() else { return };
    let sites = [site(&lab), site(&lab), site(&lab)];
    let server = server(&sites[0].0);
    // A key that the server does not know; nobody there; the name of nobody.
    let gateway = stranger();
    let [(_, unknown), (_, nobody), (_, nowhere)] = &sites;
    let before = [unknown, nobody].map(|host| state(host));
    let paths = [
        profile(unknown, "vpn0", &server.public, ("", ALL)).0,
        profile(nobody, "vpn0", &gateway, ("", ALL)).0,
    ];
    let named = write(
        nowhere,
        "vpn0",
        &format!(
            "[Interface]\nPrivateKey = {}Address = 100.64.0.2\n[Peer]\nPublicKey = {gateway}\n\
             Endpoint = no-such-host.invalid:7\n",
            machine("wg genkey")
        ),
    );
    let begun = [start(unknown, &format!("--background {}", paths[0])), start(nobody, &paths[1])];
    let (done, told) = ringway(nowhere, &format!("up {named}"));
    assert!(!done && told.contains("the gateway's name is not resolved"), "{told}");
    let [unknown_says, nobody_says] = begun.map(said);
    assert_eq!((unknown_says.0, nobody_says.0), (Some(9), Some(9)));
    assert!(unknown_says.1.contains("does not know this client's key"), "{}", unknown_says.1);
    assert!(nobody_says.1.contains("nobody listens on its UDP port 51820"), "{}", nobody_says.1);
    let profiles = |state: Vec<String>| state.join("\n").replace("/var/run/vpn0.conf\n", "");
    for (host, before) in [unknown, nobody].into_iter().zip(before) {
        assert_eq!(profiles(state(host)), profiles(before));
    }
}

#[test]
fn routes_go_where_the_profile_says_and_so_does_the_mark() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let before = state(&host);
    for (table, wanted) in [("77", "default dev vpn0 scope link"), ("off", "")] {
        let (path, public) =
            profile(&host, "vpn0", &server.public, (&format!("Table = {table}\nFwMark = 0x7"), ALL));
        know(&server, &public);
        let (done, told) = ringway(&host, &format!("up --background {path}"));
        assert!(done, "{told}");
        assert_eq!(host.run("wg show vpn0 fwmark").trim(), "0x7");
        let routes = host.run("ip -4 route show table all proto 82");
        assert_eq!(routes.trim().replace(" table 77", ""), wanted);
        assert!(!host.run("ip rule").contains("proto 82"));
        assert_eq!(ping(&host, FAR_V4, 1, 56), 1, "by the host's own routes");
        if table == "77" {
            let sent = || status(&host, "vpn0")["peers"][0]["tx_bytes"].as_u64().unwrap();
            let first = sent();
            host.run(&format!("ip rule add to {FAR_V4} lookup 77"));
            must_reach(&host, FAR_V4);
            assert!(sent() > first + 3 * 56);
            host.run(&format!("ip rule del to {FAR_V4} lookup 77"));
        }
        assert_eq!(ringway(&host, "down vpn0").1, "vpn0: down\n");
        server.set(&format!("peer {public} remove"));
        fs::remove_file(host.run_file("vpn0.conf")).unwrap();
    }
    assert_eq!(state(&host), before);
}
