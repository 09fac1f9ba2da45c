//! A gateway that is changed while it runs: who is not named does not notice, and nobody waits for somebody slow.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::appliance::{Appliance, client, file, head, meet, peer, program};
use crate::lab::{Host, Lab, wait_until};
use crate::native::{POOL, Site};
use crate::peer::{Implementation, Peer, Remote, preshared_key, stranger};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, OVERLAY, client_prefixes, client_v4, connect,
};
use crate::traffic::{Flow, must_reach};

const SOCKET: &str = "/var/run/ringway/wg0/admin.sock";

fn content(more: &str) -> String {
    head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT) + more
}

fn run(host: &Host, line: &str) -> String {
    host.run(&format!("{} {line}", program()))
}

/// Requests one after the other by one program; how many were answered with this status.
fn answered(host: &Host, requests: &[(&str, String, String)], status: u16) -> usize {
    let each = requests.iter().map(|(method, path, body)| {
        format!(
            "unix-socket = {SOCKET}\nurl = http://x/v1/{path}\nrequest = {method}\ndata = {body:?}\n\
             output = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\nmax-time = 20"
        )
    });
    let config = each.collect::<Vec<_>>().join("\nnext\n");
    let codes = host.run_with_input("curl -s -K -", &config);
    codes.lines().filter(|code| **code == *status.to_string()).count()
}

/// A key by number, of nobody.
fn key(n: u32) -> String {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    ringway::types::PublicKey(bytes).to_base64()
}

/// Times that a sender on this host waited in vain for an acknowledgement and sent again.
fn time_outs(host: &Host) -> u64 {
    let said = host.run("nstat -a -s -z TcpExtTCPTimeouts");
    let line = said.lines().find_map(|line| line.strip_prefix("TcpExtTCPTimeouts"));
    line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_thousand_peers_come_while_four_streams_run_and_no_retransmission_times_out() {
    let Some(lab) = Lab::with_traffic() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let own = peer("client", &client.public, &client_prefixes(0));
    let gateway = Appliance::start(&host, "wg0", &content(&format!("[services]\ntcp = [5201]\n{own}")));
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let flow = Flow { streams: 4, ..Flow::tcp(&client.host, &host, GATEWAY_V4) };
    let alone = flow.run();
    let flow = Flow { seconds: 8, ..flow };
    let puts = |from: u32| -> Vec<_> {
        let body = |n| json!({ "public_key": key(n) }).to_string();
        (from..from + 100).map(|n| ("PUT", format!("peers/n{n}"), body(n))).collect()
    };
    // Others may keep the cores from everybody for longer than TCP waits (0.2 s): not three times in a row.
    let mut tried = Vec::new();
    for thousand in 0..3 {
        let before = time_outs(&client.host);
        let (begin, running) = (Instant::now(), flow.start());
        let made: usize =
            (0..10).map(|hundred| answered(&host, &puts(1000 * thousand + 100 * hundred), 201)).sum();
        let took = begin.elapsed();
        let beside = running.finish();
        assert_eq!(made, 1000);
        // The programs that ask take their part of the cores.
        let unharmed = time_outs(&client.host) == before && beside.rate > alone.rate / 4.0;
        if unharmed && took < Duration::from_secs(8) {
            return gateway.end();
        }
        tried.push((time_outs(&client.host) - before, took, beside));
    }
    panic!("{alone:?}, then with time-outs {tried:?}");
}

/// Leases that are asked for, renewed and given back by frames, and a gateway that is killed.
#[test]
fn what_clients_were_told_of_their_leases_outlives_a_kill() {
    let Some(lab) = Lab::new() else { return };
    let clients = 4;
    let mut site = Site::new(&lab, clients, POOL);
    let mut told = 0;
    for round in 0..4_u64 {
        let notes: Vec<PathBuf> = (0..clients)
            .map(|i| std::env::temp_dir().join(format!("ringway-notes-{}-{i}", std::process::id())))
            .collect();
        let mut running: Vec<_> = (0..clients)
            .map(|i| {
                let word = if i % 2 == 0 { "keep-renewing" } else { "keep-leaving" };
                site.begin(i, &format!("{word}={}", notes[i].display()))
            })
            .collect();
        wait_until("every client has a lease", Duration::from_secs(10), || {
            notes.iter().all(|path| path.exists())
        });
        std::thread::sleep(Duration::from_millis(200 + 130 * round));
        site = site.kill();
        for child in &mut running {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut there = BTreeSet::new();
        for (i, path) in notes.iter().enumerate() {
            let said = fs::read_to_string(path).unwrap();
            fs::remove_file(path).unwrap();
            told += said.lines().count();
            let allowed = site.allowed(i);
            let address = allowed.split('/').next().unwrap().to_owned();
            match said.lines().last().unwrap() {
                // What it said last may have been heard, or not.
                "leaves" => {}
                lease => assert_eq!(address, lease, "round {round}: client {i} was told otherwise"),
            }
            assert!(address == "(none)" || there.insert(address), "round {round}: an address twice");
        }
    }
    assert!(told > 40, "only {told} times was anybody told anything");
    site.appliance.end();
}

#[test]
fn a_server_that_is_imported_goes_on_for_its_client() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("server");
    let server = Peer::start(&host, Implementation::WireguardGo, "wg0", GATEWAY_PORT);
    server.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], 1420);
    let far = lab.host("client");
    connect(&lab, &host, &far, 0, 1520);
    let client = Peer::start(&far, Implementation::WireguardGo, "wg0", CLIENT_PORT);
    client.up(&[&format!("{}/10", client_v4(0))], 1420);
    let preshared = preshared_key();
    let (allowed, endpoint) = (client_prefixes(0), format!("198.18.0.1:{GATEWAY_PORT}"));
    server.know(&Remote {
        public: &client.public,
        allowed: &allowed,
        preshared: Some(&preshared),
        ..Remote::default()
    });
    client.know(&Remote {
        public: &server.public,
        allowed: OVERLAY,
        endpoint: Some(&endpoint),
        preshared: Some(&preshared),
        keepalive: Some(1),
    });
    must_reach(&far, GATEWAY_V4);
    // What wg-quick saves.
    let shown = host.run("wg showconf wg0");
    let more = format!("[Interface]\nAddress = {GATEWAY_V4}/10, {GATEWAY_V6}/64\nMTU = 1420");
    let conf = shown.replacen("[Interface]", &more, 1);
    fs::write(host.run_file("wg0.conf"), &conf).unwrap();
    let said = run(&host, "import /var/run/wg0.conf --to /var/run/imported");
    assert!(said.contains("1 peers, 2 keys beside it"), "{said}");
    let key_mode = fs::metadata(host.run_file("imported")).unwrap();
    assert!(key_mode.is_dir());
    for entry in fs::read_dir(host.run_file("imported")).unwrap().map(Result::unwrap) {
        let secret = entry.path().extension().is_none_or(|kind| kind != "toml");
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert!(!secret || entry.path().is_dir() || mode == 0o600, "{:?}: {mode:o}", entry.path());
    }
    let public = server.public.clone();
    drop(server);
    let imported = fs::read_to_string(host.run_file("imported/gateway.toml")).unwrap();
    let quiet = format!("{imported}\n[metrics]\nlisten = \"off\"\n");
    wait_until("the server is gone", Duration::from_secs(10), || !host.has_interface("wg0"));
    let gateway = Appliance::start(&host, "wg0", &quiet);
    assert_eq!(gateway.public_key(), public);
    // Nothing is changed on the client: neither its configuration nor its process.
    must_reach(&far, GATEWAY_V4);
    assert_eq!(client.show("endpoints", &public), endpoint);
    gateway.end();
}

/// Readers that ask and do not read, and one that does not even ask.
#[test]
fn slow_readers_of_the_api_block_nobody() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let own = peer("client", &client.public, &client_prefixes(0));
    // Large answers: more than a socket's buffers hold.
    let others: String = (0..1000)
        .map(|n| peer(&format!("p{n}"), &key(n), &format!("100.70.{}.{}/32", n / 250, n % 250)))
        .collect();
    let gateway = Appliance::start(&host, "wg0", &content(&format!("{own}{others}")));
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let path = host.run_file("ringway/wg0/admin.sock");
    let ask = |text: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let slow: Vec<_> = (0..10)
        .flat_map(|_| {
            [get("/v1/peers?limit=1000"), get("/v1/events?wait=20"), "GET /v1/pe".to_owned(), String::new()]
        })
        .map(|text| ask(&text))
        .collect();
    let begin = Instant::now();
    run(&host, &format!("peer add alice --public-key {}", stranger()));
    let shown: Value = serde_json::from_str(&run(&host, "peer show alice --json")).unwrap();
    assert_eq!(shown["name"], "alice");
    assert!(run(&host, "events").contains("  peer_made  alice\n"));
    run(&host, "reload --config /var/run/wg0.toml");
    must_reach(&client.host, GATEWAY_V4);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // Those who waited for an event have it, whenever they read; the others are there still.
    let mut answers = slow.into_iter().skip(1).step_by(4);
    let mut said = vec![0; 4096];
    let mut one = answers.next().unwrap();
    one.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let length = one.read(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said[..length]).starts_with("HTTP/1.1 200 OK"));
    gateway.end();
}

#[test]
fn the_shortest_file_serves_whom_an_operator_adds() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let far = lab.host("client");
    connect(&lab, &host, &far, 0, 1520);
    let short = "addresses = [\"100.64.0.1/24\", \"fd64::1/64\"]\n[metrics]\nlisten = \"off\"\n";
    let gateway = Appliance::start(&host, "wg0", short);
    assert_eq!(
        run(&host, "pool list"),
        "NAME     ADDRESSES  LEASED  STATE\ndefault  253        0       open\n"
    );
    let client = Peer::start(&far, Implementation::WireguardGo, "wg0", CLIENT_PORT);
    let made = run(&host, &format!("peer add alice --public-key {}", client.public));
    assert!(made.contains("\nAddress = 100.64.0.2/32, fd64::6440:2/128\n"), "{made}");
    client.up(&["100.64.0.2/24", "fd64::6440:2/64"], 1420);
    client.know(&Remote {
        public: &gateway.public_key(),
        allowed: "100.64.0.0/24,fd64::/64",
        endpoint: Some("198.18.0.1:51820"),
        ..Remote::default()
    });
    must_reach(&far, GATEWAY_V4);
    must_reach(&far, GATEWAY_V6);
    // A peer of the file takes its address out of the pool.
    file(&host, "wg0.toml", &format!("{short}{}", peer("bob", &stranger(), "100.64.0.3/32")));
    run(&host, "reload --config /var/run/wg0.toml");
    assert!(run(&host, "pool list").contains("default  252  "));
    assert!(run(&host, "peer add carol").contains("\nAddress = 100.64.0.4/32, "));
    gateway.end();
}
