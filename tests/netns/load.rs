//! `ringway bench` against real programs: its clients, its link and its flood.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringway::bench::identity::{Format, peers};
use ringway::bench::link::schedule::{Fate, Manners, Schedule};
use ringway::types::Time;
use serde_json::Value;

use crate::lab::{Host, Lab, machine};
use crate::peer::{Implementation, Peer};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, Outer, Plan, connect, gateway_endpoint};
use crate::traffic::{Flow, must_reach, ping};

/// `ringway bench …` on a host; killed when dropped.
struct Bench(Child);

impl Bench {
    fn start(host: &Host, line: &str) -> Self {
        let mut bench: Command = host.command(env!("CARGO_BIN_EXE_ringway"));
        bench.arg("bench").args(line.split_whitespace()).arg("--json");
        Self(bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ringway bench"))
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(self) -> Value {
        machine(&format!("kill -INT {}", self.0.id()));
        self.finish()
    }

    fn finish(mut self) -> Value {
        let (mut out, mut err) = (String::new(), String::new());
        use std::io::Read as _;
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}: {err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A gateway that has the clients of seed 1 as peers, and the host on which they run, with 198.18.64.0/24 to send from.
fn site(lab: &Lab, implementation: Implementation, clients: usize) -> (Peer, std::sync::Arc<Host>) {
    let gateway_host = lab.host("gateway");
    let gateway = Peer::start(&gateway_host, implementation, "wg0", GATEWAY_PORT);
    gateway.up(&[&format!("{GATEWAY_V4}/10")], 1420);
    let host = lab.host("clients");
    connect(lab, &gateway_host, &host, 0, 1500);
    // Twenty handshakes a second is what one address may do.
    host.run("ip route add local 198.18.64.0/24 dev lo");
    gateway_host.run("ip route add 198.18.64.0/24 via 198.18.0.2");
    let list: String = peers(1, clients, Format::Wg).collect();
    gateway_host.run_with_input("wg addconf wg0 /dev/stdin", &list);
    (gateway, host)
}

fn clients_come_in_and_get_their_echo(implementation: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    let (gateway, host) = site(&lab, implementation, 30);
    let echo = Bench::start(&gateway.host, &format!("echo --listen {GATEWAY_V4}:7"));
    let (to, key) = (gateway_endpoint(0, Outer::V4), &gateway.public);
    let report = Bench::start(
        &host,
        &format!(
            "clients --endpoint {to} --gateway-key {key} --clients 30 --sockets 2 --sources 198.18.64.0/24 \
             --to {GATEWAY_V4}:7 --burst 4 --size 500 --rate 2000 --length 2s"
        ),
    )
    .finish();
    let echo = echo.interrupt();
    let tally = |name: &str| report["tally"][name].as_u64().unwrap();
    assert_eq!((tally("handshakes"), tally("strange"), tally("refused")), (30, 0, 0), "{report}");
    assert!(tally("sent") > 1_000, "{report}");
    assert!(tally("sent") - tally("returned") <= tally("sent") / 100, "{report} {echo}");
    assert_eq!(
        (tally("reordered"), &echo["reordered"], &echo["clients"]),
        (0, &0.into(), &30.into()),
        "{echo}"
    );
    assert!(report["echo"]["p50_us"].as_f64().unwrap() > 1.0, "{report}");
    // The gateway saw them as clients of their own.
    let shaken = gateway.host.run("wg show wg0 latest-handshakes");
    assert_eq!(shaken.lines().filter(|line| !line.ends_with("\t0")).count(), 30);
    let endpoints = gateway.host.run("wg show wg0 endpoints");
    assert!(endpoints.contains("198.18.64.1:") && endpoints.contains("198.18.64.30:"), "{endpoints}");
}

#[test]
fn clients_come_in_and_get_their_echo_from_ringway() {
    clients_come_in_and_get_their_echo(Implementation::ringway());
}

#[test]
fn clients_come_in_and_get_their_echo_from_wireguard_go() {
    clients_come_in_and_get_their_echo(Implementation::WireguardGo);
}

#[test]
fn handshakes_are_as_many_as_the_gateway_says() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (gateway, host) = site(&lab, Implementation::ringway(), 50);
    let (to, key) = (gateway_endpoint(0, Outer::V4), &gateway.public);
    let line = format!(
        "handshakes --endpoint {to} --gateway-key {key} --clients 50 --sources 198.18.64.0/24 --window 8 --length 2s"
    );
    let report = Bench::start(&host, &line).finish();
    let (done, unanswered) = (report["handshakes"].as_u64().unwrap(), report["unanswered"].as_u64().unwrap());
    assert!(done > 100, "{report}");
    if let Some(sent) = gateway.counter("ringway_responses_sent_total") {
        assert!((done..=done + unanswered + 8).contains(&sent), "{sent} {report}");
    }
}

#[test]
fn a_link_loses_what_its_seed_says_and_delays_the_rest() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan { clients: vec![], ..Plan::new(Implementation::ringway(), Implementation::WireguardGo) };
    let gateway = site.build(&lab).gateway;
    let (wan, host) = (lab.host("wan"), lab.host("client"));
    connect(&lab, &gateway.host, &wan, 0, 1520);
    lab.link((&wan, "e1"), (&host, "e0"), 1520);
    wan.address("e1", "198.18.9.1/24");
    host.address("e0", "198.18.9.2/24");
    let link = Bench::start(
        &wan,
        "link --listen 198.18.9.1:51820 --to 198.18.0.1:51820 --delay 20ms --loss 5% --seed 3",
    );
    let client = Peer::start(&host, Implementation::WireguardGo, "wg0", 51821);
    client.up(&["100.64.1.2/10"], 1420);
    gateway.set(&format!("peer {} allowed-ips 100.64.1.2/32", client.public));
    client.set(&format!("peer {} allowed-ips 100.64.0.0/10 endpoint 198.18.9.1:51820", gateway.public));
    // A handshake that is lost is repeated after 5 s.
    crate::lab::wait_until("it is in", Duration::from_secs(20), || ping(&host, GATEWAY_V4, 1, 56) == 1);
    let out = host.attempt(&format!("ping -n -q -c 60 -i 0.05 -W 1 {GATEWAY_V4}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let least: f64 =
        text.split("min/avg/max/mdev = ").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    assert!((40.0..80.0).contains(&least), "{text}");
    let report = link.interrupt();
    let mut lost = 0;
    for (way, direction) in [("up", 0), ("down", 1)] {
        let count = |name: &str| report[way][name].as_u64().unwrap();
        let manners = Manners { loss: 50_000, seed: 3, ..Manners::default() };
        let mut schedule = Schedule::new(manners, direction);
        let now = Time::default();
        let expected = (0..count("received")).filter(|_| schedule.admit(1, now) == Fate::Lost).count() as u64;
        assert_eq!(
            (count("lost"), count("overflowed"), count("refused")),
            (expected, 0, 0),
            "{way} {report}"
        );
        assert_eq!(count("sent") + count("waiting"), count("received") - expected, "{way} {report}");
        lost += expected;
    }
    assert!(lost > 0, "{report}");
    assert_eq!(report["clients"], 1);
}

#[test]
fn a_flood_from_many_addresses_keeps_a_session() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let attacker = lab.host("attacker");
    connect(&lab, &gateway.host, &attacker, 1, 1520);
    attacker.run("ip route add local 198.18.64.0/18 dev lo");
    gateway.host.run("ip route add 198.18.64.0/18 via 198.18.1.2");
    must_reach(&client.host, GATEWAY_V4);
    let before = gateway.drops(&["bad_initiation", "cookie_required", "bad_mac1"]);
    let flood = Bench::start(
        &attacker,
        &format!(
            "flood --endpoint {} --gateway-key {} --rate 2000 --length 4s --sources 198.18.64.0/18",
            gateway_endpoint(1, Outer::V4),
            gateway.public
        ),
    );
    let flow =
        Flow { seconds: 3, udp: Some("5M"), ..Flow::udp(&client.host, &gateway.host, GATEWAY_V4) }.run();
    assert!(flow.packets > 500 && flow.lost * 100 < flow.packets, "{flow:?}");
    let report = flood.finish();
    assert!(report["sent"].as_u64().unwrap() > 2_000 && report["refused"] == 0, "{report}");
    if let Some(before) = before {
        let after = gateway.drops(&["bad_initiation", "cookie_required", "handshake_queue_full"]).unwrap();
        assert_eq!(gateway.drops(&["bad_mac1"]), Some(0), "forgeries have a right mac1");
        let sent = report["sent"].as_u64().unwrap();
        assert!(after - before > sent * 9 / 10 && after - before <= sent, "{report} {before} {after}");
    }
    must_reach(&client.host, GATEWAY_V4);
}
