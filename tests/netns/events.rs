//! `ringway events` of a running gateway: what a client's session does, what is switched, and a reader that comes back.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::appliance::{Appliance, client, file, head, meet, peer, program};
use crate::dropin::text;
use crate::lab::{Host, Lab, wait_until};
use crate::topology::{CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, client_prefixes};
use crate::traffic::must_reach;

/// The protocol's times shortened: a session that is not renewed is over after 9 s.
const KNOB: &str = "RINGWAY_TEST_REKEY=6";
const LIFE: Duration = Duration::from_secs(9);
const SOON: Duration = Duration::from_secs(10);

fn content(more: &str) -> String {
    head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT) + more
}

/// All events from a number on: `next`, and each as a line.
fn since(host: &Host, number: u64) -> (u64, Vec<String>) {
    let said = host.run(&format!("{} events --json --after {number}", program()));
    let (mut next, mut lines) = (number, Vec::new());
    for page in said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert_eq!((&page["missed"], &page["restarted"]), (&json!(0), &json!(false)), "{page}");
        lines.extend(page["items"].as_array().unwrap().iter().map(line));
        next = page["next"].as_u64().unwrap();
    }
    (next, lines)
}

fn line(event: &Value) -> String {
    let keys = ["event", "name", "endpoint", "switch", "reason"];
    keys.iter().filter_map(|key| event[*key].as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_session_is_told_from_its_beginning_to_its_end() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let own = peer("alice", &client.public, &client_prefixes(0));
    let launcher = format!("env {KNOB}");
    let gateway = Appliance::start_through(&host, "wg0", &content(&own), &launcher);
    assert_eq!(since(&host, 0), (0, vec![]), "a peer that was never there");
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let expect = |from: u64, lines: &[String]| {
        wait_until(&format!("{lines:?}"), SOON, || since(&host, from).1.len() >= lines.len());
        let (next, said) = since(&host, from);
        assert_eq!(said, lines);
        next
    };
    let home = format!("198.18.0.2:{CLIENT_PORT}");
    let next = expect(0, &[format!("peer_connected alice {home}")]);
    let shown = |what: &str| host.run(&format!("{} peer show alice{what}", program()));
    assert!(shown("").contains("\nconnected: "), "{}", shown(""));

    // It roams. Renewals meanwhile are no news.
    client.set("listen-port 51999");
    must_reach(&client.host, GATEWAY_V4);
    let next = expect(next, &["endpoint_changed alice 198.18.0.2:51999".to_owned()]);
    client.host.run("ip address del 198.18.0.2/24 dev e0");
    client.host.address("e0", "198.18.0.3/24");
    // wireguard-go keeps to the address that is gone, but with another port.
    client.set("listen-port 51998");
    must_reach(&client.host, GATEWAY_V4);
    let there = "alice 198.18.0.3:51998";
    let next = expect(next, &[format!("endpoint_changed {there}")]);
    // It goes silent: for as long as its session lives it is there, and then not.
    client.host.run("ip link set e0 down");
    let begin = Instant::now();
    wait_until("its session is over", 3 * LIFE, || !since(&host, next).1.is_empty());
    assert!(begin.elapsed() <= LIFE + Duration::from_secs(2), "{:?}", begin.elapsed());
    let next = expect(next, &[format!("peer_disconnected {there}")]);
    assert!(shown(" --json").contains("\"connected\":null"), "{}", shown(" --json"));
    client.host.run("ip link set e0 up");
    must_reach(&client.host, GATEWAY_V4);
    let next = expect(next, &[format!("peer_connected {there}")]);
    // Its keys are taken away with it.
    file(&host, "wg0.toml", &content(""));
    host.run(&format!("{} reload --config /var/run/wg0.toml", program()));
    expect(next, &[format!("peer_disconnected {there}")]);
    gateway.signal("TERM");
    let ended = gateway.wait();
    let log = text(&ended.stdout) + &text(&ended.stderr);
    assert!(!log.is_empty() && !log.contains("198.18.0."), "an address above debug: {log}");
}

/// Switches are turned while somebody follows, who is killed and comes back with his number.
#[test]
fn a_reader_that_comes_back_misses_none_of_ten_thousand() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let pool = "[[pool]]\nname = \"all\"\nipv4 = [\"100.65.0.0/16\"]\n";
    let gateway = Appliance::start(&host, "wg0", &content(pool));
    let mut follow = host.line(&format!("{} events --json --follow", program()));
    let mut follower = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(follower.stdout.take().unwrap()).lines();
    host.run(&format!("{} switch wg0 tun-write=off", program()));
    let page: Value = serde_json::from_str(&said.next().unwrap().unwrap()).unwrap();
    assert_eq!(line(&page["items"][0]), "switched_off tun_write switched off");
    host.run(&format!("{} switch wg0 tun-write=on", program()));
    let page: Value = serde_json::from_str(&said.next().unwrap().unwrap()).unwrap();
    assert_eq!(line(&page["items"][0]), "switched_on tun_write");
    let seen = page["next"].as_u64().unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    // One that follows and whose output nobody reads: it stands still, and nobody with it.
    let mut slow = host.line(&format!("{} events --json --follow --after {seen}", program()));
    let mut slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    // One more than are kept, and nobody looks.
    let many = 10_001;
    let body = json!({ "public_key": crate::peer::stranger() }).to_string();
    let url = "http://x/v1/peers/alice".to_owned();
    let mut config = format!("-X PUT\n--data {}\nurl = {url}\noutput = /dev/null\n", json!(body));
    for n in 1..many {
        let change = json!({ "disabled": n % 2 == 1 }).to_string();
        config += "next\n-X PATCH\nunix-socket = /var/run/ringway/wg0/admin.sock\n";
        config += &format!("silent\n--data {}\nurl = {url}\noutput = /dev/null\n", json!(change));
    }
    let socket = "--unix-socket /var/run/ringway/wg0/admin.sock";
    host.run_with_input(&format!("curl -s {socket} --config -"), &config);
    let page: Value =
        serde_json::from_str(&host.run(&format!("curl -s {socket} http://x/v1/events?after={seen}")))
            .unwrap();
    assert_eq!((&page["missed"], &page["items"][0]["number"]), (&json!(1), &json!(seen + 1)), "{page}");
    let (next, lines) = since(&host, seen + 1);
    assert_eq!((next - seen, lines.len()), (many, 10_000));
    assert!(lines.iter().all(|line| line == "peer_changed alice"));
    // It goes on when it is read, and says what it has missed.
    let (mut told, mut at) = (0, seen);
    let mut pages = BufReader::new(slow.stdout.take().unwrap()).lines();
    while at < next {
        let page: Value = serde_json::from_str(&pages.next().unwrap().unwrap()).unwrap();
        told += page["missed"].as_u64().unwrap() + page["items"].as_array().unwrap().len() as u64;
        at = page["next"].as_u64().unwrap();
    }
    assert_eq!(told, many);
    slow.kill().unwrap();
    slow.wait().unwrap();
    gateway.end();
}
