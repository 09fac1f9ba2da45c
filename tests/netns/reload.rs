//! `ringway gateway` reads its file again: what differs is followed, nobody else notices, a mistake changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::appliance::{Appliance, client, file, head, meet, peer, program, state};
use crate::dropin::text;
use crate::lab::{Host, Lab, PortHolder, machine};
use crate::peer::{preshared_key, stranger};
use crate::supervised::{Manager, capabilities_of_the_unit};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, client_prefixes};
use crate::traffic::{Flow, must_reach};

const SOON: Duration = Duration::from_secs(10);
pub(crate) const PATH: &str = "/var/run/wg0.toml";

/// Why a packet of a client is dropped whose session or prefixes are not there, be it for a moment.
const REFUSED: [&str; 5] =
    ["unknown_index", "source_not_allowed", "unauthentic", "keypair_expired", "too_old"];

/// The top of every file here.
fn top() -> String {
    head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT)
}

pub(crate) fn reload(host: &Host, options: &str) -> Output {
    host.attempt(&format!("{} reload --config {PATH} {options}", program()))
}

/// Writes the file and has it read again, which must work; the answer.
pub(crate) fn reloaded(host: &Host, content: &str) -> Value {
    file(host, "wg0.toml", content);
    let out = reload(host, "--json");
    assert!(out.status.success(), "{content}: {out:?}");
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(answer["applied"], true, "{answer}");
    answer
}

/// Puts a key where a file may name it.
fn key_file(host: &Host, name: &str, key: &str) -> String {
    let path = host.run_file(name);
    fs::write(&path, key).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    format!("preshared_key_file = \"/var/run/{name}\"\n")
}

/// What a file decides of a host and a device: two gateways with the same file have the same.
pub(crate) fn effect(host: &Host) -> Vec<String> {
    let mut nft = host.run("nft list ruleset").replace(",\n", ", ");
    nft.retain(|byte| byte != '\t');
    let nft = nft.lines().map(|line| {
        // Elements in order, packets not counted; the ranges of masquerading are the first listen port's.
        let mut words: Vec<_> =
            line.split([' ', ',']).filter(|word| !word.is_empty() && !word.starts_with(':')).collect();
        if line.contains("elements = ") {
            words.sort_unstable();
        } else if let Some(at) = words.iter().position(|word| *word == "counter") {
            words.drain(at + 1..at + 5);
        }
        words.join(" ")
    });
    let mut effect: Vec<_> = nft.collect();
    let link = host.run("ip -o link show wg0");
    let words: Vec<_> = link.split_whitespace().collect();
    effect.extend(
        ["mtu", "qlen"].map(|name| words[words.iter().position(|w| *w == name).unwrap() + 1].to_owned()),
    );
    // Each address without the number of the device.
    for family in ["-4", "-6"] {
        let said = host.run(&format!("ip -o {family} address show dev wg0 scope global"));
        let mut lines: Vec<_> = said
            .lines()
            .map(|line| line.split_whitespace().skip(1).take(4).collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort_unstable();
        effect.extend(lines);
    }
    for line in ["ip route show dev wg0", "ip -6 route show dev wg0", "wg showconf wg0"] {
        let said = host.run(line);
        let mut lines: Vec<_> = said
            .lines()
            .map(|line| {
                let (key, list) = line.split_once(" = ").unwrap_or(("", line));
                let mut list: Vec<_> = list.split(", ").collect();
                list.sort_unstable();
                format!("{line}: {key} {}", list.join(" "))
            })
            .collect();
        lines.sort_unstable();
        effect.extend(lines);
    }
    effect
}

/// What forwards on a host.
pub(crate) fn forwarding(host: &Host) -> BTreeSet<String> {
    let said = host.run("sysctl -a -r [46].conf.(wg0|e0|e1).*forwarding");
    said.lines().filter(|line| line.ends_with(" = 1")).map(str::to_owned).collect()
}

/// One client's packets flow at a steady rate while everybody else is added, changed and removed.
#[test]
pub(crate) fn others_come_and_go_and_a_client_loses_no_packet() {
    let Some(lab) = Lab::with_traffic() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    // The client is not where the file says: it has roamed there, and is not sent back.
    let own = peer("client", &client.public, &client_prefixes(0)) + "endpoint = \"198.18.0.77:7\"\n";
    let others: Vec<_> = (0..60).map(|_| stranger()).collect();
    let psk = key_file(&host, "psk", &preshared_key());
    let crowd = |from: usize, net: u8, more: &str| {
        let each = others.iter().enumerate().skip(from).map(|(n, key)| {
            peer(&format!("other {n}"), key, &format!("10.{net}.{n}.0/24,100.65.0.{n}/32")) + more
        });
        each.collect::<String>()
    };
    let files = [
        top() + &own,
        top() + &crowd(0, 1, "") + &own,
        "mtu = 1412\nfwmark = 7\nqueue_length = 700\n".to_owned()
            + &top()
            + &own
            + &crowd(20, 2, "keepalive = 1\n"),
        top()
            + "[services]\ntcp = [80]\n[forwarding]\nclient_to_client = true\ninterfaces = [\"e0\"]\n"
            + &crowd(30, 3, &format!("{psk}endpoint = \"198.18.0.9:9\"\n"))
            + &own,
        // Prefixes change hands.
        top() + &own + &crowd(40, 1, "").replace(&others[41], &others[1]),
    ];
    let gateway = Appliance::start(&host, "wg0", &files[0]);
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let session = || {
        let sessions = host.run("wg show wg0 latest-handshakes");
        let line = sessions.lines().find(|line| line.starts_with(&client.public));
        (line.unwrap().to_owned(), client.latest_handshake(&gateway.public_key()))
    };
    let before = session();
    let flow = Flow { seconds: 6, udp: Some("10M"), ..Flow::udp(&client.host, &host, GATEWAY_V4) };
    // What clients may reach of the host is in the file as well.
    let open = |content: &str| content.replace("[services]\ntcp = [80]", "[services]\ntcp = [80, 5201]");
    let allowed = "[services]\ntcp = [5201]\nudp = [5201]\n";
    let served = |content: &str| match open(content) {
        content if content.contains("[services]") => content.replace("5201]\n", "5201]\nudp = [5201]\n"),
        content => content.replacen("[[peer]]", &format!("{allowed}[[peer]]"), 1),
    };
    reloaded(&host, &served(&files[0]));
    let refused = || {
        let shown = host.run(&format!("{} show --json wg0", program()));
        let mut shown: Value = serde_json::from_str(&shown).unwrap();
        REFUSED.map(|reason| shown["dataplane"]["drops"][reason].take())
    };
    let none = refused();
    let running = flow.start();
    for round in 0..12 {
        reloaded(&host, &served(&files[(round + 1) % files.len()]));
    }
    let report = running.finish();
    assert_eq!(refused(), none, "the gateway lost none");
    assert!(report.packets > 4000 && report.lost * 200 <= report.packets, "{report:?}");
    assert_eq!(report.out_of_order, 0, "{report:?}");
    assert_eq!(session(), before, "no handshake was needed");
    let roamed = || host.run("wg show wg0 endpoints").contains(&format!("{}\t198.18.0.2:", client.public));
    assert!(roamed());
    let answer = reloaded(&host, &(top() + &own.replace("\"client\"", "\"laptop\"") + "keepalive = 600\n"));
    let laptop = answer["peers"].as_array().unwrap().iter().find(|peer| peer["name"] == "laptop").unwrap();
    assert_eq!(laptop["keys"], serde_json::json!(["name", "keepalive"]));
    assert!(roamed());
    gateway.end();
}

#[test]
fn what_is_in_force_after_it_is_what_a_start_would_have_made() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let far = [lab.host("left"), lab.host("right")];
    for (n, far) in far.iter().enumerate() {
        lab.link((&host, &format!("e{n}")), (far, "e0"), 1500);
        host.address(&format!("e{n}"), &format!("198.18.{n}.1/24"));
    }
    let (a, b, c) = (stranger(), stranger(), stranger());
    let [first, second] = ["one", "two"].map(|name| key_file(&host, name, &preshared_key()));
    let files = [
        top() + &peer("a", &a, "100.64.0.2/32"),
        "mtu = 1300\nfwmark = 0x51\nqueue_length = 77\n".to_owned()
            + &top().replace("51820", "51830")
            + "[forwarding]\ninterfaces = [\"e1\"]\nclient_to_client = true\nmss_clamp = false\n\
               [services]\ntcp = [22, 80]\nudp = [53]\n[offload]\nudp_send = false\n"
            + &peer("a", &a, "100.64.0.3/32,10.1.0.0/16,fd77::/64")
            + &first
            + "keepalive = 25\n"
            + &peer("b", &b, "10.2.0.0/16")
            + "endpoint = \"198.18.0.2:51821\"\n",
        top()
            + "[forwarding]\nmasquerade = false\n"
            + &peer("c", &c, "10.1.0.0/16")
            + &second
            + &peer("a", &a, "10.1.9.0/24,fd78::/64")
            + &second,
        // Other networks, one of which a route was for, and for one of which there was an address; no forwarding.
        head("wg0", &["100.64.0.1/16", "10.2.0.1/16", "fd64::1/96"], GATEWAY_PORT)
            + "[forwarding]\nenabled = false\n"
            + &peer("b", &b, "100.64.0.0/10,10.2.3.0/24,fd64::/64"),
        // No address at all: all routes go with the last one, and come back.
        head("wg0", &[], GATEWAY_PORT) + &peer("a", &a, "100.64.0.2/32,10.1.0.0/16,fd77::/64"),
    ];
    let fresh = files.each_ref().map(|content| {
        let gateway = Appliance::start(&host, "wg0", content);
        let made = (effect(&host), forwarding(&host));
        gateway.end();
        made
    });
    let before = state(&host);
    let gateway = Appliance::start(&host, "wg0", &files[0]);
    for number in [1, 2, 0, 2, 1, 0, 3, 4, 3, 1, 4, 0, 3, 2] {
        let answer = reloaded(&host, &files[number]);
        assert_eq!(answer["restart"], serde_json::json!([]), "{answer}");
        assert_eq!(effect(&host), fresh[number].0, "file {number}");
        // What forwards once does so until the end, or until nothing shall.
        let forwards = forwarding(&host);
        assert!(forwards.is_superset(&fresh[number].1), "file {number}: {forwards:?}");
        assert!(number != 3 || forwards == fresh[3].1, "{forwards:?}");
        let again = reloaded(&host, &files[number]);
        assert_eq!((&again["peers"], &again["settings"]), (&serde_json::json!([]), &serde_json::json!([])));
        assert_eq!(effect(&host), fresh[number].0, "file {number}, unchanged");
    }
    // A key file with another key in it counts, the file being the same.
    reloaded(&host, &files[2]);
    key_file(&host, "two", &preshared_key());
    let answer = reloaded(&host, &files[2]);
    let keys = answer["peers"].as_array().unwrap().iter().map(|peer| peer["keys"][0].as_str().unwrap());
    assert_eq!(keys.collect::<Vec<_>>(), ["preshared_key_file"; 2]);
    gateway.end();
    assert_eq!(state(&host), before);
}

#[test]
fn what_cannot_be_followed_is_named_and_what_cannot_be_done_is_taken_back() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let good = top() + &peer("a", &stranger(), "100.64.0.2/32");
    let gateway = Appliance::start(&host, "wg0", &good);
    let all = || (state(&host), effect(&host));
    let before = all();
    let other = "mtu = 1300\nqueue_length = 77\n".to_owned()
        + &top()
        + "[services]\ntcp = [22]\n"
        + &peer("b", &stranger(), "10.1.0.0/16,10.2.0.0/16");

    // A dry run tells and does nothing.
    file(&host, "wg0.toml", &other);
    let out = reload(&host, "--dry-run");
    let said = text(&out.stdout);
    assert!(out.status.success() && said.starts_with("+ peer ") || said.starts_with("- peer "), "{out:?}");
    for part in ["~ mtu: 1420 -> 1300\n", "~ services.tcp: [] -> [22]\n", "nothing was changed"] {
        assert!(said.contains(part), "{said}");
    }
    let json: Value = serde_json::from_slice(&reload(&host, "--dry-run --json").stdout).unwrap();
    assert_eq!((&json["applied"], json["peers"].as_array().unwrap().len()), (&false.into(), 2), "{json}");
    assert_eq!(all(), before);

    // A bad file: its lines, by either way.
    file(&host, "wg0.toml", &format!("{other}bogus = 1\n"));
    let by_name = host.attempt(&format!("{} reload -i wg0", program()));
    for out in [reload(&host, ""), reload(&host, "--dry-run"), by_name] {
        assert_eq!(out.status.code(), Some(3), "{out:?}");
        assert!(text(&out.stderr).contains("/var/run/wg0.toml:15: unknown key `bogus`"), "{out:?}");
    }
    gateway.signal("HUP");
    // A host's route stands in the way of the second of two; a program has the port.
    host.run("ip route add 10.2.0.0/16 dev lo");
    let before_route = all();
    file(&host, "wg0.toml", &other);
    let out = reload(&host, "");
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(text(&out.stderr).contains("there is a route to 10.2.0.0/16 already"), "{out:?}");
    assert!(text(&out.stdout).contains("not reloaded, everything stays as it was"), "{out:?}");
    assert_eq!(all(), before_route);
    host.run("ip route delete 10.2.0.0/16 dev lo");
    let holder = PortHolder::on(&host, "DGRAM", "0.0.0.0", 7777);
    file(&host, "wg0.toml", &other.replace("51820", "7777"));
    let out = reload(&host, "");
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("the listen port"), "{out:?}");
    drop(holder);
    assert_eq!(all(), before);

    // Another file than the gateway's, a gateway that is not there, what needs a restart.
    file(&host, "other.toml", &good);
    let out = host.attempt(&format!("{} reload --config /var/run/other.toml", program()));
    assert!(text(&out.stderr).contains("file is /var/run/wg0.toml, not /var/run/other.toml"), "{out:?}");
    assert_eq!(out.status.code(), Some(1));
    let out = host.attempt(&format!("{} reload -i wg7", program()));
    assert!(
        out.status.code() == Some(1) && text(&out.stderr).contains("no gateway serves this interface"),
        "{out:?}"
    );
    file(&host, "wg0.toml", &good.replace("workers = 2", "workers = 3"));
    let out = reload(&host, "");
    assert!(out.status.success(), "{out:?}");
    assert!(text(&out.stdout).contains("! workers: number(2) -> number(3), needs a restart"), "{out:?}");
    assert_eq!(all(), before);

    gateway.signal("TERM");
    let said = text(&gateway.wait().stderr);
    assert!(said.contains("reload: /var/run/wg0.toml:15: unknown key `bogus`"), "{said}");
    assert!(said.contains("not reloaded: everything stays as it was"), "{said}");
}

/// As the unit starts it and as another user: SIGHUP, and what the service manager hears of it.
#[test]
fn a_service_reloads_as_another_user() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let manager = Manager(UnixDatagram::bind(host.run_file("notify")).unwrap());
    fs::set_permissions(host.run_file("notify"), fs::Permissions::from_mode(0o777)).unwrap();
    let own = |content: &str| {
        file(&host, "wg0.toml", &format!("user = \"nobody\"\n{}{content}", top()));
        host.run(&format!("chown nobody {PATH}"));
        host.run(&format!("chmod 600 {PATH}"));
    };
    own("");
    let mut cmd = host.command("setpriv");
    cmd.args(["--no-new-privs", "--bounding-set", &capabilities_of_the_unit(), "--"]);
    cmd.args([&program(), "gateway", "--config", PATH]);
    cmd.env("NOTIFY_SOCKET", "/var/run/notify").stderr(Stdio::piped());
    let child = cmd.spawn().unwrap();
    manager.hears("READY=1");

    let psk = key_file(&host, "psk", &preshared_key());
    host.run("chown nobody /var/run/psk");
    let key = stranger();
    own(&format!(
        "[log]\nlevel = \"debug\"\n[services]\ntcp = [22]\n{}{psk}",
        peer("a", &key, "10.1.0.0/16")
    ));
    let hangup = || {
        machine(&format!("kill -HUP {}", child.id()));
        let reloading = manager.next(SOON).unwrap();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(time.trim().parse::<u64>().is_ok_and(|time| time > 0), "{reloading}");
        let ready = manager.next(SOON).unwrap();
        assert!(ready.starts_with("READY=1\n"), "{ready}");
    };
    hangup();
    assert!(host.run("wg showconf wg0").contains("PresharedKey"));
    assert!(host.run("ip route show proto 82").contains("10.1.0.0/16"));
    assert!(host.run("nft list ruleset").contains("elements = { 22 }"));
    // A file that this user may not read: that is said, and nothing happens.
    let before = effect(&host);
    own("");
    host.run(&format!("chown root {PATH}"));
    hangup();
    assert_eq!(effect(&host), before);
    machine(&format!("kill -TERM {}", child.id()));
    manager.hears("STOPPING=1");
    let said = text(&child.wait_with_output().unwrap().stderr);
    assert!(said.contains("reading as the user nobody: /var/run/wg0.toml: cannot be opened"), "{said}");
    let line = said.lines().find(|line| line.contains(&key)).expect("the level was lowered");
    assert!(line.contains("DEBUG"), "who a peer is goes to debug: {line}");
    assert!(said.contains("reloaded added=1 changed=0 removed=0 settings=2"), "{said}");
}
