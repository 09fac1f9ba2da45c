//! Peers of a running gateway, by `ringway peer`: what is printed is all that a client needs, nobody else notices, and
//! what was acknowledged is so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::appliance::{Appliance, client, file, head, meet, peer, program};
use crate::dropin::text;
use crate::lab::{Host, Lab, command, wait_until};
use crate::manners::{SERVER, site};
use crate::peer::stranger;
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, client_prefixes, connect};
use crate::traffic::{Flow, must_reach, receive_overflows};

const POOL: &str = "[[pool]]\nname = \"all\"\nipv4 = [\"100.65.0.0/16\"]\nipv6 = \"fd64::/64\"\n\
                    [[pool]]\nname = \"apart\"\nipv4 = [\"10.7.0.1-10.7.0.6\"]\ngroups = [\"apart\"]\n";
/// Not everything, so that the client's host is left as it is.
const CLIENTS: &str = "[clients]\nendpoint = \"198.18.0.1\"\n\
                       allowed_ips = [\"100.64.0.0/10\", \"198.19.0.0/16\", \"fd64::/64\"]\n";

pub(crate) fn content(more: &str) -> String {
    let addresses = [format!("{GATEWAY_V4}/10"), format!("{GATEWAY_V6}/64")];
    head("wg0", &[&addresses[0], &addresses[1]], GATEWAY_PORT) + CLIENTS + POOL + more
}

/// A verb of the program on a host.
pub(crate) fn attempt(host: &Host, line: &str) -> Output {
    host.attempt(&format!("{} {line}", program()))
}

pub(crate) fn run(host: &Host, line: &str) -> String {
    host.run(&format!("{} {line}", program()))
}

pub(crate) fn json_of(host: &Host, line: &str) -> Value {
    serde_json::from_str(&run(host, &format!("{line} --json"))).unwrap()
}

/// A verb that is refused: what it says.
fn refused(host: &Host, line: &str, says: &str) {
    let out = attempt(host, line);
    let said = text(&out.stderr);
    assert!(
        out.status.code() == Some(1) && said.starts_with("ringway: ") && said.contains(says),
        "{line}: {out:?}"
    );
}

/// A client of no other program than wg-quick and wireguard-go, with what the gateway's host printed.
#[test]
fn a_printed_configuration_is_all_that_a_client_needs() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let far = lab.host("client");
    connect(&lab, &host, &far, 0, 1520);
    let gateway = Appliance::start(&host, "wg0", &content(""));
    let add = run(&host, "peer add alice --psk --conf /var/run/alice.conf --qr /var/run/alice.png");
    assert_eq!(add, "alice: 100.65.0.0/32, fd64::6441:0/128\n");
    let conf = host.run_file("alice.conf");
    let given = fs::read_to_string(&conf).unwrap();
    for path in [&conf, &host.run_file("alice.png")] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // What a phone sees is what wg-quick is given.
    let seen =
        Command::new("zbarimg").args(["--raw", "-q"]).arg(host.run_file("alice.png")).output().unwrap();
    assert_eq!(text(&seen.stdout).trim_end(), given.trim_end());
    wg_quick_up(&far, &text(&seen.stdout));
    must_reach(&far, GATEWAY_V4);
    must_reach(&far, GATEWAY_V6);
    must_reach(&far, SERVER);
    let shown = json_of(&host, "peer show alice");
    assert!(shown["traffic"]["last_handshake"].as_u64().unwrap() > 0, "{shown}");
    assert!(shown["traffic"]["endpoint"].as_str().unwrap().starts_with("198.18.0.2:"), "{shown}");
    // It may come in no more, and then again.
    run(&host, "peer disable alice");
    assert!(!far.attempt(&format!("ping -n -c 2 -i 0.2 -W 1 {GATEWAY_V4}")).status.success());
    run(&host, "peer enable alice");
    wait_until("its next handshake has come", Duration::from_secs(40), || {
        far.attempt(&format!("ping -n -c 1 -W 1 {SERVER}")).status.success()
    });
    far.run("wg-quick down /var/run/wg7.conf");

    // One whose address is of a pool outside of the gateway's own networks: it is routed as well.
    let other = lab.host("other");
    connect(&lab, &host, &other, 1, 1520);
    other.run("ip route add 198.18.0.0/24 via 198.18.1.1");
    let printed = run(&host, "peer add apart --group apart");
    assert!(printed.contains("\nAddress = 10.7.0.1/32\n"), "{printed}");
    wg_quick_up(&other, &printed);
    must_reach(&other, SERVER);
    must_reach(&host, "10.7.0.1");
    gateway.end();
}

/// Without the kernel's own WireGuard, whatever the kernel has.
pub(crate) fn wg_quick_up(host: &Host, conf: &str) {
    fs::write(host.run_file("wg7.conf"), conf).unwrap();
    fs::set_permissions(host.run_file("wg7.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut up = host.command("wg-quick");
    up.args(["up", "/var/run/wg7.conf"]).env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
    let up = up.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(up.status.success(), "{up:?}");
}

/// What a printed configuration says of a key.
fn line(text: &str, key: &str) -> String {
    let found = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    found.unwrap_or_else(|| panic!("no {key}: {text}")).to_owned()
}

/// Each verb, in text and in JSON.
#[test]
fn every_verb_says_what_it_did_in_text_and_in_json() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    refused(&host, "peer list", "no gateway runs here");
    refused(&host, "peer -i wg0 list", "no gateway serves this interface");
    let key = stranger();
    let gateway = Appliance::start(&host, "wg0", &content(&peer("office", &key, "100.64.7.0/24")));

    let printed = run(&host, "peer add alice");
    assert!(printed.starts_with("# alice\n[Interface]\nPrivateKey = "), "{printed}");
    assert!(
        printed.contains("\nEndpoint = 198.18.0.1:51820\n") && printed.contains("\nMTU = 1420\n"),
        "{printed}"
    );
    let private = line(&printed, "PrivateKey");
    let public = host.run_with_input("wg pubkey", &private).trim().to_owned();
    assert_eq!(line(&printed, "PublicKey"), gateway.public_key());
    let own = stranger();
    let made = json_of(
        &host,
        &format!("peer add bob --address 100.64.9.9 --group g --expires 30d --public-key {own}"),
    );
    assert_eq!((&made["peer"]["public_key"], &made["peer"]["group"]), (&json!(own), &json!("g")));
    assert!(made["conf"].as_str().unwrap().contains("# PrivateKey = the one"), "{made}");

    let list = run(&host, "peer list");
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "ADDRESSES", "GROUP", "STATE", "SOURCE"]);
    assert_eq!(rows[1], ["office", "100.64.7.0/24", "active", "file"]);
    // The first address is set aside for the file's peer, which has none.
    assert_eq!(rows[2], ["alice", "100.65.0.1/32,fd64::6441:1/128", "active", "store"]);
    assert_eq!(rows[3][..6], ["bob", "100.64.9.9/32", "g", "active,", "ends", "in"]);
    assert!(["29", "30"].contains(&rows[3][6]) && rows[3][7..] == ["days", "store"], "{list}");
    let names =
        |list: &Value| list.as_array().unwrap().iter().map(|peer| peer["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&json_of(&host, "peer list")), ["office", "alice", "bob"]);
    let shown = run(&host, "peer show office");
    assert!(shown.contains("source: file (/var/run/wg0.toml:") && shown.contains(&key), "{shown}");
    assert_eq!(json_of(&host, &format!("peer show {public}"))["name"], "alice");
    let device = run(&host, "show wg0");
    for part in ["\n  name: alice\n  source: store\n", "\n  name: office\n  source: file\n"] {
        assert!(device.contains(part), "{device}");
    }

    assert_eq!(json_of(&host, "peer set alice --group phones --expires 12h")["group"], "phones");
    let set = run(&host, "peer set alice --address 100.64.0.9 --address fd64::9 --expires never");
    assert!(
        set.contains("allowed ips: 100.64.0.9/32, fd64::9/128\n") && set.contains("state: active\n"),
        "{set}"
    );
    // The one that it had rests.
    assert!(run(&host, "peer set alice --any-address").contains("allowed ips: 100.65.0.2/32, "));
    assert!(run(&host, "peer disable alice").contains("state: disabled\n"));
    assert_eq!(json_of(&host, "peer disable alice")["state"], "disabled");
    assert!(!host.run("wg show wg0 peers").contains(&public));
    assert_eq!(json_of(&host, "peer enable alice")["state"], "active");
    assert!(run(&host, "peer enable alice").contains("state: active\n"));
    assert_eq!(json_of(&host, "peer rename alice carol")["name"], "carol");
    assert!(run(&host, "peer rename carol alice").contains("name: alice\n"));
    let rotated = run(&host, "peer rotate-key alice --psk");
    let new = host.run_with_input("wg pubkey", &line(&rotated, "PrivateKey")).trim().to_owned();
    assert_eq!(line(&rotated, "Address"), "100.65.0.2/32, fd64::6441:2/128");
    let known = host.run("wg show wg0 preshared-keys");
    assert!(
        known.contains(&format!("{new}\t{}", line(&rotated, "PresharedKey"))) && !known.contains(&public),
        "{known}"
    );
    // Who has a preshared key gets another, since nobody can read the present one.
    let rotated = json_of(&host, "peer rotate-key alice");
    assert!(rotated["conf"].as_str().unwrap().contains("PresharedKey = "), "{rotated}");

    assert_eq!(
        run(&host, "pool list"),
        "NAME   ADDRESSES  LEASED  STATE\nall    65536      0       open\napart  6          0       open\n"
    );
    assert_eq!(
        json_of(&host, "pool list")[0],
        json!({ "name": "all", "addresses": 65536, "leased": 0, "drained": false })
    );
    assert_eq!(run(&host, "lease list"), "ADDRESS  IPV6  PEER  HOSTNAME  SINCE  ENDS\n");
    assert_eq!(json_of(&host, "lease list"), json!([]));
    refused(&host, "lease show 100.65.0.0", "nobody has a lease of 100.65.0.0");
    refused(&host, "lease history 100.65.0.0 --at 7", "nobody had a lease of 100.65.0.0 then");

    let events = run(&host, "events");
    assert!(events.lines().next().unwrap().ends_with("  peer_made  alice"), "{events}");
    assert!(events.contains("  peer_changed  alice\n"), "{events}");
    let events = json_of(&host, "events --after 1");
    assert_eq!((&events["items"][0]["number"], &events["items"][0]["name"]), (&json!(1), &json!("bob")));

    let denied = host.attempt(&format!("wg set wg0 peer {new} remove"));
    assert!(text(&denied.stderr).contains("Operation not permitted"), "{denied:?}");
    assert!(host.run("wg show wg0 peers").contains(&own), "it may look");
    assert_eq!(json_of(&host, "peer remove bob"), json!({ "removed": "bob" }));
    assert_eq!(run(&host, "peer remove alice"), "alice: removed\n");
    assert_eq!(names(&json_of(&host, "peer list")), ["office"]);
    gateway.end();
    refused(&host, "peer list", "no gateway runs here");
}

#[test]
fn pools_are_drained_and_preshared_keys_changed_while_it_runs() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let gateway = Appliance::start(&host, "wg0", &content(""));
    let own = stranger();
    run(&host, "peer add alice");
    run(&host, &format!("peer add bob --public-key {own}"));
    run(&host, "pool drain apart");
    refused(&host, "peer add guest --pool apart", "no address is free");
    assert_eq!(json_of(&host, "pool undrain apart")["drained"], false);
    assert!(run(&host, "pool drain apart").ends_with("apart  6          0       drained\n"));
    run(&host, "reload --config /var/run/wg0.toml");
    assert_eq!(json_of(&host, "pool list")[1]["drained"], false, "the file does not say so");
    refused(&host, "pool drain nowhere", "there is no pool \"nowhere\"");
    assert!(run(&host, "peer set alice --pool apart").contains("allowed ips: 10.7.0.1/32\n"));
    let psk = |key: &str| {
        let known = host.run("wg show wg0 preshared-keys");
        known.lines().find_map(|line| line.strip_prefix(&format!("{key}\t")).map(str::to_owned)).unwrap()
    };
    assert_eq!(psk(&own), "(none)");
    let set = run(&host, "peer set bob --psk");
    assert_eq!(psk(&own), line(&set, "PresharedKey"));
    let set = json_of(&host, "peer set bob --psk");
    assert_eq!(
        (json!(psk(&own)), &json!(true)),
        (set["preshared_key"].clone(), &set["peer"]["preshared_key"])
    );
    assert!(!run(&host, "peer set bob --no-psk").contains("PresharedKey"));
    assert_eq!(psk(&own), "(none)");
    gateway.end();
}

#[test]
fn what_is_refused_is_named_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let gateway = Appliance::start(&host, "wg0", &content(&peer("office", &stranger(), "100.64.7.0/24")));
    let before = json_of(&host, "peer list");
    let place = "\"office\" stands in /var/run/wg0.toml:";
    for verb in ["disable", "enable", "remove", "rotate-key", "set --group x", "rename"] {
        let (verb, more) = verb.split_once(' ').unwrap_or((verb, if verb == "rename" { "new" } else { "" }));
        refused(&host, &format!("peer {verb} office {more}"), place);
    }
    refused(&host, "peer add office", "a peer \"office\" stands in /var/run/wg0.toml:");
    refused(&host, "peer add a --conf /var/run/wg0.toml", "is there already");
    refused(&host, "peer add a --qr /var/run/a.gif", ".png or .svg");
    refused(&host, "peer show nobody", "there is no peer \"nobody\"");
    assert_eq!(json_of(&host, "peer list"), before);
    assert!(host.run("find /var/run -name *.gif").is_empty());
    gateway.end();
}

/// As another user and confined, with a group that may.
#[test]
fn a_group_may_and_nobody_else() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let more = "[admin]\ngroup = \"nogroup\"\n";
    let gateway = Appliance::start(&host, "wg0", &format!("user = \"nobody\"\n{}", content(more)));
    assert_eq!(host.run("stat -c %a-%U-%G /var/run/ringway/wg0/admin.sock"), "660-root-nogroup\n");
    let with = |user: &str, group: &str| {
        let by = format!("setpriv --reuid {user} --regid {group} --clear-groups {} peer", program());
        host.attempt(&format!("{by} add {user}-{group}"))
    };
    assert!(with("daemon", "nogroup").status.success());
    let denied = with("daemon", "daemon");
    assert!(text(&denied.stderr).contains("open to root and the group of [admin] only"), "{denied:?}");
    assert_eq!(json_of(&host, "peer list").as_array().unwrap().len(), 1);
    // What is in the file is not also in the store.
    let key = json_of(&host, "peer list")[0]["public_key"].as_str().unwrap().to_owned();
    let both = content(&format!("{more}{}", peer("x", &key, "100.64.7.0/24")));
    file(&host, "wg0.toml", &format!("user = \"nobody\"\n{both}"));
    let place = format!(
        "/var/run/wg0.toml:{}: this public key is that of the peer \"daemon-nogroup\" of the store",
        both.lines().position(|line| line == "[[peer]]").unwrap() + 2
    );
    let out = attempt(&host, "reload --config /var/run/wg0.toml");
    assert!(out.status.code() == Some(3) && text(&out.stderr).contains(&place), "{place}: {out:?}");
    gateway.end();
    let out = attempt(&host, "gateway --config /var/run/wg0.toml");
    assert!(out.status.code() == Some(3) && text(&out.stderr).contains(&place), "{out:?}");
    assert!(!host.has_interface("wg0") && !host.run_file("ringway").exists());
    let out = attempt(
        &host,
        &format!("gateway --config {}", file(&host, "g.toml", &content("[admin]\ngroup = \"no-such\"\n"))),
    );
    assert!(
        out.status.code() == Some(3) && text(&out.stderr).contains("there is no group no-such"),
        "{out:?}"
    );
}

/// One client's packets flow at a steady rate while others are made, changed and removed.
#[test]
fn peers_come_and_go_and_a_stream_loses_no_packet() {
    let Some(lab) = Lab::with_traffic() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let own = peer("client", &client.public, &client_prefixes(0));
    let services = "[services]\ntcp = [5201]\nudp = [5201]\n";
    let gateway = Appliance::start(&host, "wg0", &content(&format!("{services}{own}")));
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let before = client.latest_handshake(&gateway.public_key());
    let flow = Flow { seconds: 6, udp: Some("10M"), ..Flow::udp(&client.host, &host, GATEWAY_V4) };
    let running = flow.start();
    // Many more than the program alone could start meanwhile: in three processes of curl.
    let body = |n: u32| {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        json!({ "public_key": ringway::types::PublicKey(bytes).to_base64() }).to_string()
    };
    let puts = |from: u32| (from..from + 100).map(|n| ("PUT", format!("n{n}"), body(n))).collect::<Vec<_>>();
    let each = |what: &'static str, body: &str| {
        (0..300).map(|n| (what, format!("n{n}"), body.to_owned())).collect::<Vec<_>>()
    };
    for n in 0..3 {
        assert_eq!(curl(&host, &puts(100 * n)), ["201"; 100]);
    }
    run(&host, "peer add somebody --psk");
    assert_eq!(curl(&host, &each("PATCH", "{\"disabled\": true}")), ["200"; 300]);
    run(&host, "peer rotate-key somebody");
    assert_eq!(curl(&host, &each("DELETE", "")), ["204"; 300]);
    let report = running.finish();
    let allowed = receive_overflows(&host) + report.unread;
    assert!(
        report.packets > 4000 && report.lost <= allowed && report.out_of_order == 0,
        "{allowed}: {report:?}"
    );
    assert_eq!(client.latest_handshake(&gateway.public_key()), before, "no handshake was needed");
    gateway.end();
}

/// Requests one after the other; their status codes.
fn curl(host: &Host, requests: &[(&str, String, String)]) -> Vec<String> {
    let each = requests.iter().map(|(method, name, body)| {
        format!(
            "unix-socket = /var/run/ringway/wg0/admin.sock\nurl = http://x/v1/peers/{name}\nrequest = {method}\n\
             data = {body:?}\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\nmax-time = 20"
        )
    });
    let config = each.collect::<Vec<_>>().join("\nnext\n");
    let codes = host.run_with_input("curl -s -K -", &config);
    codes.lines().map(str::to_owned).collect()
}

/// Killed at any moment: whoever was told that he is made is there, with an address of his own.
#[test]
fn what_was_acknowledged_outlives_a_kill() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let (mut made, mut gone) = (BTreeMap::<String, String>::new(), BTreeSet::new());
    for round in 0..5_u64 {
        let gateway = Appliance::start(&host, "wg0", &content(""));
        let there = json_of(&host, "peer list");
        let there: BTreeMap<_, _> = there
            .as_array()
            .unwrap()
            .iter()
            .map(|peer| (peer["name"].to_string(), peer["allowed_ips"][0].to_string()))
            .collect();
        for (name, address) in &made {
            assert_eq!(there.get(name), Some(address), "round {round}: acknowledged and gone");
        }
        for name in &gone {
            assert!(!there.contains_key(name), "round {round}: {name} was removed");
        }
        let addresses: BTreeSet<_> = there.values().collect();
        assert_eq!(addresses.len(), there.len(), "round {round}: an address twice");
        // One adds, one removes what was added before; each says what was acknowledged.
        let adding = shell(
            &host,
            &format!(
                "for n in $(seq 100); do {} peer add r{round}n$n --json 2>/dev/null || exit 0; done",
                program()
            ),
        );
        let names: Vec<_> = made.keys().map(|name| name.trim_matches('"').to_owned()).collect();
        let removing = shell(
            &host,
            &format!(
                "for n in {}; do {} peer remove $n --json 2>/dev/null || exit 0; done",
                names.join(" "),
                program()
            ),
        );
        std::thread::sleep(Duration::from_millis(300 + 170 * round));
        gateway.signal("KILL");
        gateway.wait();
        let lines = |child: std::process::Child| text(&child.wait_with_output().unwrap().stdout);
        for line in lines(removing).lines() {
            let name = serde_json::from_str::<Value>(line).unwrap()["removed"].to_string();
            made.remove(&name);
            gone.insert(name);
        }
        // The last may have been removed without a word, or not.
        if let Some(unsure) =
            names.iter().map(|name| format!("{name:?}")).find(|name| made.contains_key(name))
        {
            made.remove(&unsure);
        }
        for line in lines(adding).lines() {
            let peer = &serde_json::from_str::<Value>(line).unwrap()["peer"];
            made.insert(peer["name"].to_string(), peer["allowed_ips"][0].to_string());
        }
        assert!(!made.is_empty(), "round {round}");
    }
    assert!(!gone.is_empty());
    assert!(run(&host, "store check --config /var/run/wg0.toml").contains("no mistakes"));
}

fn shell(host: &Arc<Host>, script: &str) -> std::process::Child {
    let mut cmd = host.command("sh");
    cmd.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap()
}

/// Every answer is what the description says, by a validator that nobody here wrote.
#[test]
fn every_answer_is_as_described() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let gateway = Appliance::start(&host, "wg0", &content(&peer("office", &stranger(), "100.64.7.0/24")));
    let document = host.run("curl -s --unix-socket /var/run/ringway/wg0/admin.sock http://x/openapi.json");
    let document: Value = serde_json::from_str(&document).unwrap();
    let [a, b] = [stranger(), stranger()];
    let full = json!({ "public_key": b, "preshared_key": a, "addresses": ["100.64.9.9", "fd64::9"], "group": "g",
        "expires": u32::MAX });
    let small = json!({ "public_key": a, "expires": null });
    let invite = |keys: Value| json!({ "keys": keys, "prefix": "phones", "expires": u32::MAX });
    let none = Value::Null;
    let exchanges: Vec<_> = [
        ("PUT", "/v1/peers/alice", small.clone(), 201),
        ("PUT", "/v1/peers/alice", small, 200),
        ("PUT", "/v1/peers/bob", full, 201),
        ("PUT", "/v1/peers/bob", json!({ "public_key": a }), 409),
        ("PUT", "/v1/peers/bob", json!({}), 400),
        ("PUT", "/v1/peers/bob", json!("x".repeat(70_000)), 413),
        ("GET", "/v1/gateway", none.clone(), 200),
        ("GET", "/v1/peers?limit=1", none.clone(), 200),
        ("GET", "/v1/peers", none.clone(), 200),
        ("GET", "/v1/peers?limit=0", none.clone(), 400),
        ("GET", "/v1/peers/office", none.clone(), 200),
        ("GET", "/v1/peers/bob", none.clone(), 200),
        ("GET", "/v1/peers/nobody", none.clone(), 404),
        ("PATCH", "/v1/peers/bob", json!({ "disabled": true, "preshared_key": null, "expires": null }), 200),
        ("PATCH", "/v1/peers/bob", json!({ "name": "rob", "addresses": [], "group": "" }), 200),
        ("PATCH", "/v1/peers/rob", json!({ "colour": 1 }), 400),
        ("PATCH", "/v1/peers/bob", json!({}), 404),
        ("PATCH", "/v1/peers/office", json!({}), 409),
        ("DELETE", "/v1/peers/rob", none.clone(), 204),
        ("DELETE", "/v1/peers/rob", none.clone(), 404),
        ("DELETE", "/v1/peers/office", none.clone(), 409),
        ("PUT", "/v1/invites/abc", invite(json!([stranger()])), 201),
        ("PUT", "/v1/invites/abd", json!({}), 400),
        ("PUT", "/v1/invites/abd", invite(json!([])), 400),
        ("PUT", "/v1/invites/abd", invite(json!([a])), 409),
        ("PUT", "/v1/invites/abd", json!("x".repeat(70_000)), 413),
        ("GET", "/v1/invites", none.clone(), 200),
        ("GET", "/v1/invites?limit=0", none.clone(), 400),
        ("GET", "/v1/invites/abc", none.clone(), 200),
        ("GET", "/v1/invites/abd", none.clone(), 404),
        ("DELETE", "/v1/invites/abc", none.clone(), 200),
        ("DELETE", "/v1/invites/abd", none.clone(), 404),
        ("GET", "/v1/pools", none.clone(), 200),
        ("PATCH", "/v1/pools/apart", json!({ "drained": true }), 200),
        ("PATCH", "/v1/pools/nowhere", json!({ "drained": true }), 404),
        ("PATCH", "/v1/pools/apart", json!({}), 400),
        ("PUT", "/v1/peers/eve", json!({ "public_key": stranger(), "pool": "nowhere" }), 409),
        ("POST", "/v1/reload", json!({ "dry_run": true, "file": "/another" }), 200),
        ("POST", "/v1/reload", json!({}), 200),
        ("POST", "/v1/reload", json!({ "file": 7 }), 400),
        ("GET", "/v1/leases", none.clone(), 200),
        ("GET", "/v1/leases?after=x", none.clone(), 400),
        ("GET", "/v1/leases/100.65.0.0/history?at=7", none.clone(), 200),
        ("GET", "/v1/leases/x/history", none.clone(), 400),
        ("GET", "/v1/events", none.clone(), 200),
        ("GET", "/v1/events?wait=x", none.clone(), 400),
        ("GET", "/openapi.json", none, 200),
    ]
    .into_iter()
    .map(|(method, path, request, status)| exchange(&host, method, path, request, status))
    .collect();
    let wrong = validated(&document, &exchanges);
    assert_eq!(wrong, "", "{wrong}");
    // Each operation of the description was tried.
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let tried = |one: &Value| one["path"] == *path && one["method"] == method.to_uppercase();
            assert!(exchanges.iter().any(tried), "{method} {path}");
        }
    }
    // And it sees what is wrong.
    let mut other = exchanges[0].clone();
    other["response"]["state"] = "asleep".into();
    assert!(validated(&document, &[other]).contains("/state"));
    gateway.end();
}

fn exchange(host: &Host, method: &str, path: &str, request: Value, status: u16) -> Value {
    let mut cmd = host.command("curl");
    cmd.args(["-s", "--max-time", "20", "--unix-socket", "/var/run/ringway/wg0/admin.sock", "-X", method]);
    cmd.args(["-w", "\n%{http_code}", "-H", "Expect:"]);
    if !request.is_null() {
        cmd.args(["--data-binary", &request.to_string()]);
    }
    let said = text(&cmd.arg(format!("http://x{path}")).output().unwrap().stdout);
    let (body, code) = said.rsplit_once('\n').unwrap();
    assert_eq!(code, status.to_string(), "{method} {path}: {body}");
    let bare = path.split('?').next().unwrap();
    let template = match bare.split('/').collect::<Vec<_>>()[..] {
        ["", "v1", "peers", _] => "/v1/peers/{name}",
        ["", "v1", "pools", _] => "/v1/pools/{name}",
        ["", "v1", "invites", _] => "/v1/invites/{id}",
        ["", "v1", "leases", _, "history"] => "/v1/leases/{address}/history",
        _ => bare,
    };
    let response: Value = serde_json::from_str(body).unwrap_or_default();
    json!({ "method": method, "path": template, "status": status, "request": request, "response": response })
}

fn validated(document: &Value, exchanges: &[Value]) -> String {
    let lines = [document].into_iter().chain(exchanges).map(|one| format!("{one}\n")).collect::<String>();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/openapi.pl");
    let mut perl = command("perl");
    perl.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = perl.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    text(&done.stdout)
}
