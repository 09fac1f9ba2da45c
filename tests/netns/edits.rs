//! Changes while traffic runs: they touch the peer they name and nobody else.

use std::time::Duration;

use crate::lab::{Host, Lab, wait_until};
use crate::peer::{Implementation, Remote, preshared_key, stranger};
use crate::topology::{GATEWAY_V4, Plan, client_prefixes};
use crate::traffic::{Flow, Way, must_reach, ping};

#[test]
fn wg_set_touches_nobody_else() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let client = &site.clients[0];
    must_reach(&client.host, GATEWAY_V4);
    let before = site.gateway.latest_handshake(&client.public);
    let flow =
        Flow { seconds: 4, udp: Some("20M"), ..Flow::udp(&client.host, &site.gateway.host, GATEWAY_V4) };
    let running = flow.start();
    for i in 0..40 {
        let public = stranger();
        let allowed = format!("100.127.{i}.0/24,fd64::7:{i}:0/112");
        site.gateway.know(&Remote { public: &public, allowed: &allowed, ..Remote::default() });
        let preshared = preshared_key();
        site.gateway.know(&Remote { public: &public, preshared: Some(&preshared), ..Remote::default() });
        site.gateway.set(&format!("peer {public} endpoint 198.18.0.200:9 allowed-ips 100.126.{i}.0/24"));
        if i % 2 == 0 {
            site.gateway.set(&format!("peer {public} remove"));
        }
    }
    let report = running.finish();
    assert!(report.packets > 3000, "{report:?}");
    assert!(report.lost * 200 < report.packets, "{report:?}");
    assert_eq!(report.out_of_order, 0, "{report:?}");
    assert_eq!(site.gateway.latest_handshake(&client.public), before, "no new handshake was needed");
    let peers = site.gateway.host.run("wg show wg0 peers");
    assert_eq!(peers.lines().count(), 21, "{peers}");
}

#[test]
fn a_peer_removed_under_load_takes_nobody_along() {
    let Some(lab) = Lab::with_traffic() else { return };
    let mut plan = Plan::new(Implementation::ringway(), Implementation::WireguardGo);
    plan.clients = vec![Implementation::WireguardGo; 2];
    let mut site = plan.build(&lab);
    for client in &site.clients {
        must_reach(&client.host, GATEWAY_V4);
    }
    let [gone, stays] = &site.clients[..] else { panic!("two clients") };
    let flow =
        Flow { seconds: 5, udp: Some("20M"), ..Flow::udp(&stays.host, &site.gateway.host, GATEWAY_V4) };
    let running = flow.start();
    let mut flood = gone.host.line(&format!("ping -n -q -f -w 20 -s 1000 {GATEWAY_V4}"));
    let mut flood = flood.stdout(std::process::Stdio::null()).spawn().unwrap();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        site.gateway.set(&format!("peer {} remove", gone.public));
        let allowed = client_prefixes(0);
        std::thread::sleep(Duration::from_millis(100));
        site.gateway.know(&Remote { public: &gone.public, allowed: &allowed, ..Remote::default() });
    }
    site.gateway.set(&format!("peer {} remove", gone.public));
    assert_eq!(ping(&gone.host, GATEWAY_V4, 2, 56), 0, "a removed peer is out");
    let report = running.finish();
    assert!(report.lost * 200 < report.packets, "{report:?}");
    assert_eq!(report.out_of_order, 0, "{report:?}");
    flood.kill().unwrap();
    flood.wait().unwrap();
    // Not even a handshake is answered, and nothing is kept for it.
    let answers = || {
        (gone.latest_handshake(&site.gateway.public), site.gateway.counter("ringway_responses_sent_total"))
    };
    let before = answers();
    gone.renew();
    assert_eq!(ping(&gone.host, GATEWAY_V4, 2, 56), 0, "a removed peer stays out");
    assert_eq!(answers(), before);
    if let Some(report) = site.gateway.report() {
        let peers =
            report["workers"].as_array().unwrap().iter().map(|worker| worker["peers"].as_u64().unwrap());
        assert_eq!(peers.sum::<u64>(), 1);
    }
    assert!(site.gateway.exit_status().is_none());
}

#[test]
fn a_changed_preshared_key_applies_at_once() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let client = &site.clients[0];
    must_reach(&client.host, GATEWAY_V4);
    let preshared = preshared_key();
    site.gateway.know(&Remote { public: &client.public, preshared: Some(&preshared), ..Remote::default() });
    if site.gateway.implementation.is_ringway() {
        assert_eq!(ping(&client.host, GATEWAY_V4, 2, 56), 0, "the session ended with the key");
    }
    // A restart of the client's interface makes it shake hands again: with the old key it must fail.
    client.set(&format!("peer {} remove", site.gateway.public));
    let again = |preshared| Remote {
        public: &site.gateway.public,
        allowed: crate::topology::OVERLAY,
        endpoint: Some("198.18.0.1:51820"),
        preshared,
        ..Remote::default()
    };
    client.know(&again(None));
    assert_eq!(ping(&client.host, GATEWAY_V4, 2, 56), 0, "the old key is out");
    client.know(&again(Some(&preshared)));
    must_reach(&client.host, GATEWAY_V4);
}

#[test]
fn a_changed_listen_port_is_taken_up() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let client = &site.clients[0];
    must_reach(&client.host, GATEWAY_V4);
    site.gateway.set("listen-port 52000");
    assert_eq!(site.gateway.host.run("wg show wg0 listen-port").trim(), "52000");
    // The client follows the first authenticated packet from there.
    must_reach(&site.gateway.host, &crate::topology::client_v4(0));
    wait_until("the client has followed", Duration::from_secs(10), || {
        client.show("endpoints", &site.gateway.public) == "198.18.0.1:52000"
    });
    must_reach(&client.host, GATEWAY_V4);
}

/// The listen port moves four times under a stream to the client, who follows: nothing of it is lost.
#[test]
pub(crate) fn a_listen_port_changes_under_load() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    must_reach(&client.host, GATEWAY_V4);
    let flow = Flow {
        way: Way::Down,
        seconds: 6,
        udp: Some("10M"),
        ..Flow::udp(&client.host, &gateway.host, GATEWAY_V4)
    };
    let flow = flow.start();
    for port in 52_001..=52_004 {
        std::thread::sleep(Duration::from_secs(1));
        gateway.set(&format!("listen-port {port}"));
    }
    let report = flow.finish();
    assert!(report.packets > 3000, "{report:?}");
    assert_eq!((report.lost, report.out_of_order), (0, 0), "{report:?}");
    assert_eq!(client.show("endpoints", &gateway.public), "198.18.0.1:52004");
    let sockets = gateway.host.run("ss -H -u -a -n sport >= :51820 and sport <= :52003");
    assert_eq!(sockets, "", "the old ports are free");
}

/// Packets from `port` that leave a host with and without the mark 0x77.
struct Marks<'a> {
    host: &'a Host,
}

impl Marks<'_> {
    fn watch(host: &Host, port: u16) -> Marks<'_> {
        host.run("nft add table inet watch");
        host.run("nft add chain inet watch out { type filter hook output priority 0 ; }");
        host.run(&format!("nft add rule inet watch out udp sport {port} meta mark 0x77 counter"));
        host.run(&format!("nft add rule inet watch out udp sport {port} meta mark != 0x77 counter"));
        Marks { host }
    }

    fn counts(&self) -> Vec<u64> {
        let text = self.host.run("nft list table inet watch");
        let counts = text.lines().filter_map(|line| line.split_once("counter packets "));
        counts.map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        let _ = self.host.attempt("nft delete table inet watch");
    }
}

#[test]
fn a_fwmark_is_on_every_outer_socket() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    must_reach(&client.host, GATEWAY_V4);
    let flow = Flow {
        way: Way::Down,
        seconds: 3,
        udp: Some("10M"),
        ..Flow::udp(&client.host, &gateway.host, GATEWAY_V4)
    };
    let flow = flow.start();
    std::thread::sleep(Duration::from_secs(1));
    gateway.set("fwmark 0x77");
    {
        let marks = Marks::watch(&gateway.host, 51_820);
        let report = flow.finish();
        assert_eq!((report.lost, report.out_of_order), (0, 0), "{report:?}");
        // A handshake from either side, so that both threads send.
        client.renew();
        must_reach(&client.host, GATEWAY_V4);
        gateway.set(&format!("peer {} remove", client.public));
        let (allowed, endpoint) = (client_prefixes(0), "198.18.0.2:51821");
        let remote = Remote {
            public: &client.public,
            allowed: &allowed,
            endpoint: Some(endpoint),
            ..Remote::default()
        };
        gateway.know(&remote);
        must_reach(&gateway.host, &crate::topology::client_v4(0));
        let counts = marks.counts();
        assert!(counts[0] > 1000 && counts[1] == 0, "marked, unmarked: {counts:?}");
    }
    let sockets = |port: u16| gateway.host.run(&format!("ss -H -u -a -n -e sport = :{port}"));
    let marked = |text: &str| text.lines().filter(|line| line.contains("fwmark:0x77")).count();
    let (before, expected) = (sockets(51_820), if gateway.implementation.is_ringway() { 6 } else { 2 });
    assert_eq!((before.lines().count(), marked(&before)), (expected, expected), "{before}");
    gateway.set("listen-port 52000");
    let after = sockets(52_000);
    assert_eq!((after.lines().count(), marked(&after)), (expected, expected), "{after}");
    gateway.set("fwmark 0");
    assert!(!sockets(52_000).contains("fwmark"), "{}", sockets(52_000));
}
