//! `ringway up` at a gateway of our own: what it gives is in force on the host, and again when it changes; what is
//! wrong is said in words; and who goes says so.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::admin::{json_of, run};
use crate::appliance::{Appliance, file, head, program, state};
use crate::dropin::text;
use crate::enrolment::{call, invite};
use crate::lab::{Host, Lab, machine, wait_until};
use crate::manners::{SERVER, site};
use crate::peer::{Implementation, Peer, Remote};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, connect};
use crate::traffic::{Flow, Way, must_reach, ping};
use crate::up::{ringway, status, write};

/// Ten times and more what is expected.
const SOON: Duration = Duration::from_secs(40);
/// Leases are as long as the gateway says.
const LASTING: &str = "RINGWAY_NOTHING=1";
const POOL: &str = "[[pool]]\nname = \"all\"\nipv4 = [\"100.65.0.0/24\"]\nipv6 = \"fd64::/64\"\n";

/// The gateway's file.
fn content(clients: &str, pool: &str, peers: &str) -> String {
    let head = head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT);
    format!("{head}[clients]\nendpoint = \"198.18.0.1\"\n{clients}{pool}{peers}")
}

fn networks(all: &str) -> String {
    format!("allowed_ips = [{all}]\n")
}

/// A client's host with a resolver of its own, the `i`-th of the gateway's.
fn client(lab: &Lab, gateway: &Arc<Host>, i: usize) -> Arc<Host> {
    let host = lab.host("client");
    connect(lab, gateway, &host, i, 1520);
    host.run("cp -a /etc /var/run/etc");
    host.run("mount --bind /var/run/etc /etc");
    host
}

/// Everything of the host but the profile that an invite has become.
fn state_but_profiles(host: &Host) -> String {
    let all = state(host).join("\n");
    all.lines().filter(|line| !line.contains("/etc/ringway")).collect::<Vec<_>>().join("\n")
}

/// A new key, and its public half.
fn keys(host: &Host) -> (String, String) {
    let private = machine("wg genkey").trim().to_owned();
    let public = host.run_with_input("wg pubkey", &private).trim().to_owned();
    (private, public)
}

/// A profile without an address.
fn profile(private: &str, gateway: &str, i: usize, accept: &str, allowed: &str) -> String {
    format!(
        "# ringway: accept = {accept}\n[Interface]\nPrivateKey = {private}\n[Peer]\nPublicKey = {gateway}\n\
         Endpoint = 198.18.{i}.1:{GATEWAY_PORT}\nAllowedIPs = {allowed}\nPersistentKeepalive = 1\n"
    )
}

/// `ringway up` in the background, with leases of 10 s at most, and sessions that end soon.
fn up(host: &Host, words: &str) -> (bool, String) {
    up_with(host, "RINGWAY_TEST_LEASE=10", words, "")
}

/// With another variable, and an input.
fn up_with(host: &Host, variable: &str, words: &str, input: &str) -> (bool, String) {
    let line =
        format!("env {variable} RINGWAY_TEST_REKEY=12 {} up --background --log info {words}", program());
    let mut up = host.line(&line);
    let mut up = up.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    up.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = up.wait_with_output().unwrap();
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

fn problem(host: &Host, name: &str) -> String {
    status(host, name)["problem"].as_str().unwrap_or_default().to_owned()
}

/// What is in force: addresses, routes of the tunnel's table, MTU, resolver.
fn in_force(host: &Host) -> (String, String, String, String) {
    let addresses = host.run("ip -o address show dev vpn0");
    let global =
        addresses.lines().filter(|line| !line.contains("fe80")).map(|line| line.split_whitespace().nth(3));
    let global: Vec<_> = global.flatten().collect();
    let routes = host.run("ip -4 route show table all proto 82");
    let mut routes: Vec<_> = routes.lines().filter(|line| !line.starts_with("unreachable")).collect();
    routes.sort_unstable();
    let routes = routes.iter().map(|line| line.split(" table").next().unwrap()).collect::<Vec<_>>();
    let mtu = host.run("cat /sys/class/net/vpn0/mtu").trim().to_owned();
    let asked = host.run("cat /etc/resolv.conf");
    let asked: Vec<_> = asked.lines().filter(|line| !line.starts_with('#')).collect();
    (global.join(" "), routes.join(" "), mtu, asked.join(" "))
}

#[test]
fn what_the_gateway_gives_is_in_force_and_again_when_it_changes() {
    let Some(lab) = Lab::new() else { return };
    let (gateway, _server) = site(&lab);
    let host = client(&lab, &gateway, 0);
    let (private, public) = keys(&host);
    let told = |dns: &str, mtu: u32, all: &str| {
        let clients = format!(
            "dns = [\"{dns}\"]\nsearch = [\"example.org\"]\nmtu = {mtu}\nexcluded = [\"198.19.0.128/25\"]\n{}",
            networks(all)
        );
        content(&clients, POOL, &format!("[[peer]]\npublic_key = \"{public}\"\n"))
    };
    // A default route is none that a gateway gives.
    let appliance =
        Appliance::start(&gateway, "wg0", &told("100.64.0.1", 1380, "\"198.19.0.0/24\", \"0.0.0.0/0\""));
    let conf = profile(&private, &appliance.public_key(), 0, "routes, dns, mtu", "100.64.0.0/10, fd64::/64");
    let found = "[Interface]\nPostUp = ip -o address show dev %i scope global > /var/run/found";
    let path = write(&host, "vpn0", &conf.replace("[Interface]", found));
    assert!(ringway(&host, &format!("guard {path}")).0, "without an address yet");
    assert!(ringway(&host, "down vpn0 --force").0);
    let (before, resolver) = (state(&host), host.run("cat /etc/resolv.conf"));

    let (done, said) = up(&host, &path);
    assert!(done && said.contains("vpn0: connected to 198.18.0.1:51820"), "{said}");
    assert!(said.contains("the network 0.0.0.0/0: as good as a default route"), "{said}");
    assert!(!said.contains("100.65.0.0"), "no address in the log: {said}");
    let routes = "100.64.0.0/10 dev vpn0 198.19.0.0/24 dev vpn0 throw 198.19.0.128/25";
    let first = (
        "100.65.0.0/32 fd64::6441:0/128".to_owned(),
        routes.to_owned(),
        "1380".to_owned(),
        "nameserver 100.64.0.1 search example.org".to_owned(),
    );
    assert_eq!(in_force(&host), first);
    assert!(host.run("cat /var/run/found").contains("inet 100.65.0.0/32 "), "PostUp comes after the lease");
    host.run("rm /var/run/found");
    for there in [GATEWAY_V4, GATEWAY_V6, SERVER] {
        must_reach(&host, there);
    }
    let shown = status(&host, "vpn0");
    assert_eq!((&shown["problem"], &shown["status"]), (&Value::Null, &json!("started")));
    assert_eq!(shown["lease"]["addresses"], json!(["100.65.0.0", "fd64::6441:0"]));
    let (_, shown) = ringway(&host, "status vpn0");
    assert!(shown.contains("  lease 100.65.0.0, fd64::6441:0: ") && shown.contains(" s left\n"), "{shown}");

    file(&gateway, "wg0.toml", &told("100.64.0.9", 1300, "\"10.7.0.0/16\""));
    run(&gateway, "reload --config /var/run/wg0.toml");
    let second = (
        first.0,
        "10.7.0.0/16 dev vpn0 100.64.0.0/10 dev vpn0".to_owned(),
        "1300".to_owned(),
        "nameserver 100.64.0.9 search example.org".to_owned(),
    );
    wait_until("the renewal has changed it", SOON, || in_force(&host) == second);
    must_reach(&host, GATEWAY_V4);
    let allowed = host.run("wg show vpn0 allowed-ips");
    assert!(allowed.contains("10.7.0.0/16") && !allowed.contains("198.19"), "{allowed}");

    // Who goes says so: nobody waits for the lease's end.
    assert!(gateway.run("wg show wg0 allowed-ips").contains("100.65.0.0/32"));
    assert_eq!(ringway(&host, "down vpn0"), (true, "vpn0: down\n".to_owned()));
    wait_until("the lease has ended", Duration::from_secs(5), || {
        gateway.run("wg show wg0 allowed-ips").contains("(none)")
    });
    assert_eq!((state(&host), host.run("cat /etc/resolv.conf")), (before, resolver));
    appliance.end();
}

#[test]
fn who_has_an_invite_is_up_and_hears_what_is_wrong_at_the_gateway() {
    let Some(lab) = Lab::new() else { return };
    let (gateway, _server) = site(&lab);
    let host = client(&lab, &gateway, 0);
    let clients = networks("\"100.64.0.0/10\", \"198.19.0.0/16\", \"fd64::/64\"") + "keepalive = 1\n";
    let appliance = Appliance::start(&gateway, "wg0", &content(&clients, POOL, ""));
    let (uri, id) = invite(&gateway, "--name laptop");
    let before = state_but_profiles(&host);
    let (done, said) = up_with(&host, LASTING, "--name office -", &uri);
    assert!(done && said.contains("joined: the profile is /etc/ringway/profiles/office.conf"), "{said}");
    let kept = host.run("stat -c %a,%n /etc/ringway/profiles /etc/ringway/profiles/office.conf");
    assert_eq!(kept, "700,/etc/ringway/profiles\n600,/etc/ringway/profiles/office.conf\n");
    for there in [GATEWAY_V4, GATEWAY_V6, SERVER] {
        must_reach(&host, there);
    }
    assert_eq!(status(&host, "office")["lease"]["addresses"], json!(["100.65.0.0", "fd64::6441:0"]));

    run(&gateway, "peer disable laptop");
    wait_until("it is told why", SOON, || {
        problem(&host, "office") == "the gateway says: this client is disabled"
    });
    assert!(ringway(&host, "status").1.contains("\n  problem: the gateway says: this client is disabled\n"));
    run(&gateway, "peer enable laptop");
    wait_until("all is well again", SOON, || problem(&host, "office").is_empty());
    must_reach(&host, SERVER);
    let soon = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 2;
    call(&gateway, "PATCH", "/v1/peers/laptop", &json!({ "expires": soon }));
    wait_until("its time is over", SOON, || {
        problem(&host, "office") == "the gateway says: this client's time is over"
    });
    run(&gateway, "peer set laptop --expires never");
    wait_until("all is well again", SOON, || problem(&host, "office").is_empty());
    must_reach(&host, SERVER);
    appliance.end();
    wait_until("it hears of the end", SOON, || problem(&host, "office") == "the gateway stops, and says so");
    let appliance = Appliance::start(&gateway, "wg0", &content(&clients, POOL, ""));
    wait_until("all is well again", SOON, || problem(&host, "office").is_empty());
    must_reach(&host, SERVER);
    assert_eq!(ringway(&host, "down office").1, "office: down\n");
    assert_eq!(state_but_profiles(&host), before);

    // By the same invite: it has joined already. And it may not have the name of another file.
    let (done, said) = up_with(&host, LASTING, &format!("{uri} --name office"), "");
    assert!(done && !said.contains("joined:"), "{said}");
    assert_eq!(json_of(&gateway, &format!("invite show {id}"))["enrolled"].as_array().unwrap().len(), 1);
    must_reach(&host, SERVER);
    assert!(ringway(&host, "down office").0);
    let (done, said) = up(&host, "office --name home");
    assert!(!done && said.contains("--name is for invites"), "{said}");
    appliance.end();
}

#[test]
fn a_lease_that_ended_while_the_host_slept_is_gone_and_comes_back() {
    let Some(lab) = Lab::new() else { return };
    let (gateway, _server) = site(&lab);
    let host = client(&lab, &gateway, 0);
    let (private, public) = keys(&host);
    let peers = format!("[[peer]]\npublic_key = \"{public}\"\n");
    let clients = networks("\"198.19.0.0/24\"") + "dns = [\"100.64.0.1\"]\n";
    let appliance = Appliance::start(&gateway, "wg0", &content(&clients, POOL, &peers));
    let conf = profile(&private, &appliance.public_key(), 0, "routes, dns", "100.64.0.0/10, fd64::/64");
    let resolver = host.run("cat /etc/resolv.conf");
    let (done, said) = up(&host, &write(&host, "vpn0", &conf));
    assert!(done, "{said}");
    must_reach(&host, SERVER);
    let given = in_force(&host);
    let pid = status(&host, "vpn0")["process"].as_u64().unwrap();
    machine(&format!("kill -STOP {pid}"));
    appliance.signal("STOP");
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(in_force(&host), given);
    machine(&format!("kill -CONT {pid}"));
    let over = "the time of this client's addresses is over, and the gateway has given no more";
    wait_until("its time is over", SOON, || problem(&host, "vpn0") == over);
    let (addresses, routes, ..) = in_force(&host);
    assert_eq!((&*addresses, &*routes), ("", "100.64.0.0/10 dev vpn0"));
    assert_eq!(host.run("cat /etc/resolv.conf"), resolver);
    assert_eq!(status(&host, "vpn0")["lease"], Value::Null);
    appliance.signal("CONT");
    wait_until("it has its address again", SOON, || in_force(&host) == given);
    must_reach(&host, SERVER);
    assert_eq!(problem(&host, "vpn0"), "");
    // Another file, without it.
    file(&gateway, "wg0.toml", &content(&clients, POOL, ""));
    run(&gateway, "reload --config /var/run/wg0.toml");
    wait_until("it is told", SOON, || problem(&host, "vpn0") == "the gateway says: this client was removed");
    assert!(ringway(&host, "down vpn0").0);
    appliance.end();
}

#[test]
fn who_gets_no_address_is_told_why_and_nothing_stays() {
    let Some(lab) = Lab::new() else { return };
    let (gateway, _server) = site(&lab);
    let hosts = [client(&lab, &gateway, 0), client(&lab, &gateway, 1)];
    let all = hosts.each_ref().map(|host| keys(host));
    let peers: String =
        all.iter().map(|(_, public)| format!("[[peer]]\npublic_key = \"{public}\"\n")).collect();
    let small = "[[pool]]\nname = \"small\"\nipv4 = [\"100.65.0.1\"]\n";
    let appliance = Appliance::start(&gateway, "wg0", &content("", small, &peers));
    let public = appliance.public_key();
    let paths: Vec<_> = (0..2)
        .map(|i| write(&hosts[i], "vpn0", &profile(&all[i].0, &public, i, "routes", "100.64.0.0/10")))
        .collect();
    let before = state(&hosts[1]);
    let (done, said) = up(&hosts[0], &paths[0]);
    assert!(done, "{said}");
    let (done, said) = up(&hosts[1], &paths[1]);
    assert!(
        !done && said.contains("the gateway has no free address for this client; it is asked again"),
        "{said}"
    );
    assert_eq!(state(&hosts[1]), before);
    // A pool that is drained renews leases and gives none.
    run(&gateway, "pool drain small");
    let until = || status(&hosts[0], "vpn0")["lease"]["until"].as_u64().unwrap();
    let then = until();
    wait_until("it is renewed", SOON, || until() > then);
    must_reach(&hosts[0], GATEWAY_V4);
    assert!(ringway(&hosts[0], "down vpn0").0);
    let (done, said) = up(&hosts[0], &paths[0]);
    assert!(!done && said.contains("the gateway has no free address"), "{said}");
    run(&gateway, "pool undrain small");
    let (done, said) = up(&hosts[0], &paths[0]);
    assert!(done, "{said}");
    assert!(ringway(&hosts[0], "down vpn0").0);
    // Nobody's pool is for it.
    let closed = small.replace("ipv4", "groups = [\"others\"]\nipv4");
    file(&gateway, "wg0.toml", &content("", &closed, &peers));
    run(&gateway, "reload --config /var/run/wg0.toml");
    let (done, said) = up(&hosts[1], &paths[1]);
    assert!(!done && said.contains("the gateway says: no addresses are given to you here"), "{said}");
    appliance.end();

    // A gateway that gives none.
    let plain = Peer::start(&gateway, Implementation::WireguardGo, "wg0", GATEWAY_PORT);
    plain.up(&[&format!("{GATEWAY_V4}/10")], 1420);
    plain.know(&Remote { public: &all[1].1, allowed: "100.65.0.1/32", ..Remote::default() });
    let conf = profile(&all[1].0, &plain.public, 1, "routes", "100.64.0.0/10");
    let (done, said) = up(&hosts[1], &write(&hosts[1], "vpn0", &conf));
    assert!(!done && said.contains("the gateway gives no address: it is no Ringway"), "{said}");
    let with = conf.replace("[Interface]", "[Interface]\nAddress = 100.65.0.1/32");
    let (done, said) = up(&hosts[1], &write(&hosts[1], "vpn0", &with));
    assert!(done, "{said}");
    must_reach(&hosts[1], GATEWAY_V4);
    assert!(ringway(&hosts[1], "down vpn0").0);
    assert_eq!(state(&hosts[1]), before);
}

#[test]
fn with_the_kill_switch_an_exclusion_needs_the_profiles_consent() {
    let Some(lab) = Lab::new() else { return };
    let (gateway, far) = (lab.host("gateway"), lab.host("far"));
    let host = client(&lab, &gateway, 0);
    lab.link((&far, "f0"), (&host, "e1"), 1500);
    far.address("f0", "10.8.0.1/24");
    host.address("e1", "10.8.0.2/24");
    let (private, public) = keys(&host);
    let peers = format!("[[peer]]\npublic_key = \"{public}\"\n");
    let clients = "excluded = [\"10.8.0.0/24\"]\n";
    let appliance = Appliance::start(&gateway, "wg0", &content(clients, POOL, &peers));
    let refused = "the exclusion 10.8.0.0/24: the kill switch is on";
    for (accept, reached) in [("routes", 0), ("routes, exclusions", 1)] {
        let conf = profile(&private, &appliance.public_key(), 0, accept, "0.0.0.0/0");
        let (done, said) = up(&host, &write(&host, "vpn0", &conf));
        assert!(done && said.contains(refused) == (reached == 0), "{accept}: {said}");
        must_reach(&host, GATEWAY_V4);
        assert_eq!(ping(&host, "10.8.0.1", 1, 56), reached, "{accept}");
        assert!(host.run("nft list ruleset").contains("ringway-guard_vpn0"), "{accept}");
        assert!(ringway(&host, "down vpn0").0);
    }
    assert_eq!(ping(&host, "10.8.0.1", 1, 56), 1);
    appliance.end();
}

/// Everything that a profile can change: addresses, routes, rules, resolver, kill switch; a hundred times, and traffic
/// both ways in the first and the last of them.
#[test]
fn a_hundred_times_up_and_down_leave_nothing() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (gateway, server) = site(&lab);
    let host = client(&lab, &gateway, 0);
    // Four in turn: how many frames a gateway takes of one peer in a second is limited.
    let keys = [(); 4].map(|()| keys(&host));
    let peers: String =
        keys.iter().map(|(_, public)| format!("[[peer]]\npublic_key = \"{public}\"\n")).collect();
    let appliance = Appliance::start(&gateway, "wg0", &content("dns = [\"100.64.0.1\"]\n", POOL, &peers));
    let key = appliance.public_key();
    let written = |cycle: usize| {
        let (private, _) = &keys[cycle % keys.len()];
        write(&host, "vpn0", &profile(private, &key, 0, "routes, dns, mtu", "0.0.0.0/0, ::/0"))
    };
    written(99);
    let everything = || (state(&host), host.run("cat /etc/resolv.conf"), host.run("ls -R /run /var/run"));
    let before = everything();
    for cycle in 0..100 {
        let (done, said) = up_with(&host, LASTING, &written(cycle), "");
        assert!(done, "{cycle}: {said}");
        if cycle % 99 == 0 {
            assert!(host.run("nft list tables").contains("ringway-guard_vpn0"));
            assert!(host.run("cat /etc/resolv.conf").contains("nameserver 100.64.0.1"));
            for way in [Way::Up, Way::Down] {
                let report = Flow { way, ..Flow::tcp(&host, &server, SERVER) }.run();
                assert!(report.rate > 1e6, "{cycle}, {way:?}: {report:?}");
            }
        }
        assert_eq!(ringway(&host, "down vpn0"), (true, "vpn0: down\n".to_owned()), "{cycle}");
    }
    assert_eq!(everything(), before);
    appliance.end();
}
