//! What no honest peer sends: the gateway counts it and everybody else's traffic goes on.

use std::time::Duration;

use crate::errands::{GARBAGE, MANGLED, run_on, send};
use crate::lab::{Lab, wait_until};
use crate::peer::Implementation;
use crate::topology::{CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, Outer, Plan, Site, connect, gateway_endpoint};
use crate::traffic::{Capture, Flow, Way, must_reach, ping, receive_overflows, udp_payloads};

/// A gateway, one honest client, and the address on which an attacker's host (`e1` there) finds the gateway.
fn besieged(lab: &Lab) -> (Site, std::sync::Arc<crate::lab::Host>, String) {
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(lab);
    let attacker = lab.host("attacker");
    connect(lab, &site.gateway.host, &attacker, 1, 1500);
    must_reach(&site.clients[0].host, GATEWAY_V4);
    (site, attacker, gateway_endpoint(1, Outer::V4))
}

/// Why a datagram from a stranger is dropped.
const STRANGE: &[&str] =
    &["malformed", "oversized", "unknown_index", "bad_mac1", "bad_response", "bad_cookie", "cookie_required"];

#[test]
fn garbage_of_every_length_costs_a_counter() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (mut site, attacker, to) = besieged(&lab);
    let before = site.gateway.drops(STRANGE);
    let flow = Flow {
        seconds: 3,
        udp: Some("5M"),
        ..Flow::udp(&site.clients[0].host, &site.gateway.host, GATEWAY_V4)
    };
    let flow = flow.start();
    run_on(&attacker, &format!("garbage {to}"));
    run_on(&attacker, &format!("garbage {}", gateway_endpoint(1, Outer::V6)));
    let report = flow.finish();
    assert!(report.packets > 500 && report.lost * 50 < report.packets, "{report:?}");
    assert!(site.gateway.exit_status().is_none());
    if let Some(before) = before {
        let counted = || site.gateway.drops(STRANGE).unwrap() - before;
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(counted(), 2 * GARBAGE, "each once: {}", site.gateway.report().unwrap()["drops"]);
    }
}

/// Recorded transport messages, cut short, lengthened or changed in one bit: none authenticates.
#[test]
fn truncated_and_changed_datagrams_do_not_authenticate() {
    let Some(lab) = Lab::new() else { return };
    let (site, attacker, to) = besieged(&lab);
    let client = &site.clients[0];
    let filter = format!("udp dst port {GATEWAY_PORT}");
    // Not delivered: else the replay window would refuse what is to be judged by its tag.
    site.gateway.host.run("nft add table inet closed");
    site.gateway.host.run("nft add chain inet closed in { type filter hook input priority 0 ; }");
    site.gateway.host.run("nft add rule inet closed in iifname e0 udp dport 51820 drop");
    let capture = Capture::start(&site.gateway.host, "e0", 0, &filter);
    assert_eq!(ping(&client.host, GATEWAY_V4, 10, 200), 0);
    let file = capture.stop();
    site.gateway.host.run("nft delete table inet closed");
    let reasons = &["unauthentic", "malformed"];
    let before = (site.gateway.drops(reasons), site.gateway.drops(&["unauthentic"]));
    run_on(&attacker, &format!("mangle {to} {}", file.display()));
    must_reach(&client.host, GATEWAY_V4);
    assert_eq!(site.gateway.show("endpoints", &client.public), format!("198.18.0.2:{CLIENT_PORT}"));
    let after = (site.gateway.drops(reasons), site.gateway.drops(&["unauthentic"]));
    let sent = (MANGLED * udp_payloads(&file).len()) as u64;
    assert!(sent >= 5 * MANGLED as u64, "so few were recorded: {sent}");
    assert!(before.0.is_none() || after.0 == before.0.map(|n| n + sent), "{before:?} {after:?} {sent}");
    assert!(after.1 > before.1 || before.1.is_none(), "{before:?} {after:?}");
    std::fs::remove_file(file).unwrap();
}

#[test]
pub(crate) fn replayed_datagrams_are_refused() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (mut site, attacker, to) = besieged(&lab);
    let client = &site.clients[0];
    let filter = format!("udp dst port {GATEWAY_PORT}");
    let capture = Capture::start(&site.gateway.host, "e0", 0, &filter);
    assert_eq!(ping(&client.host, GATEWAY_V4, 40, 200), 40);
    let file = capture.stop();
    let endpoint = site.gateway.show("endpoints", &client.public);
    let received = site.gateway.host.run("cat /sys/class/net/wg0/statistics/rx_packets");
    let before = site.gateway.drops(&["replayed"]);
    run_on(&attacker, &format!("replay {to} {} 25", file.display()));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(site.gateway.show("endpoints", &client.public), endpoint, "nobody roams on a replay");
    let after = site.gateway.host.run("cat /sys/class/net/wg0/statistics/rx_packets");
    assert_eq!(after, received, "no replayed packet comes out of the tunnel");
    must_reach(&client.host, GATEWAY_V4);
    let counted = site.gateway.drops(&["replayed"]);
    // The last moments before its end are not in a capture.
    let recorded = udp_payloads(&file).len() as u64;
    assert!(recorded >= 20, "so few were recorded: {recorded}");
    assert!(before.is_none() || counted == before.map(|n| n + recorded * 25), "{before:?} {counted:?}");

    // At full rate, beside the owner's own traffic.
    let mut replayer = send(&attacker, &format!("replay {to} {} 1000000", file.display()));
    let flow =
        Flow { seconds: 3, udp: Some("5M"), ..Flow::udp(&client.host, &site.gateway.host, GATEWAY_V4) };
    let report = flow.run();
    assert!(replayer.try_wait().unwrap().is_none(), "the flood ended too early");
    replayer.kill().unwrap();
    replayer.wait().unwrap();
    // While others have the worker's core the socket's buffer runs full, and the owner's datagrams are lost with the
    // flood's, in about the same share; beside that hardly one.
    let overflows = receive_overflows(&site.gateway.host) as f64;
    let refused = site.gateway.drops(&["replayed"]).unwrap_or(0) as f64;
    let full = overflows / (overflows + refused).max(1.0);
    let lost = report.lost as f64 / report.packets as f64;
    assert!(report.packets > 500 && lost < 0.05 + 2.0 * full, "{report:?}, the buffer was full for {full}");
    assert_eq!(report.out_of_order, 0, "{report:?}");
    assert_eq!(site.gateway.show("endpoints", &client.public), endpoint, "nobody roams on a replay");
    assert!(site.gateway.exit_status().is_none());
    std::fs::remove_file(file).unwrap();
}

#[test]
fn forged_handshakes_at_full_rate_stop_nobody() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (mut site, attacker, to) = besieged(&lab);
    let client = &site.clients[0];
    let mut forger = send(&attacker, &format!("forge {to} {} 5", site.gateway.public));
    let flow =
        Flow { seconds: 3, udp: Some("5M"), ..Flow::udp(&client.host, &site.gateway.host, GATEWAY_V4) };
    let report = flow.run();
    assert!(report.packets > 500, "{report:?}");
    let limit = if site.gateway.implementation.is_ringway() { 100 } else { 2 };
    assert!(report.lost * limit < report.packets, "a live session goes on: {report:?}");
    assert_eq!(site.gateway.show("endpoints", &client.public), format!("198.18.0.2:{CLIENT_PORT}"));
    assert!(forger.wait().unwrap().success());
    // Afterwards a new handshake succeeds: the load state and the limits recover.
    let gateway = &site.gateway.public;
    client.set(&format!("peer {gateway} remove"));
    client.set(&format!("peer {gateway} allowed-ips 100.64.0.0/10 endpoint 198.18.0.1:{GATEWAY_PORT}"));
    must_reach(&client.host, GATEWAY_V4);
    assert!(site.gateway.exit_status().is_none());
    if let Some(refused) = site.gateway.drops(&["cookie_required"]) {
        assert!(refused > 0, "the gateway never asked for a cookie");
    }
}

#[test]
fn a_new_client_gets_in_during_a_flood_of_forgeries() {
    let Some(lab) = Lab::with_traffic() else { return };
    if !Implementation::ringway().is_ringway() {
        return lab.skip("the other implementations do not promise it");
    }
    let (site, attacker, to) = besieged(&lab);
    let client = &site.clients[0];
    let mut forger = send(&attacker, &format!("forge {to} {} 20", site.gateway.public));
    wait_until("the gateway is under load", Duration::from_secs(10), || {
        site.gateway.drops(&["cookie_required"]) > Some(0)
    });
    let gateway = &site.gateway.public;
    client.set(&format!("peer {gateway} remove"));
    client.set(&format!("peer {gateway} allowed-ips 100.64.0.0/10 endpoint 198.18.0.1:{GATEWAY_PORT}"));
    wait_until("a handshake comes through the flood", Duration::from_secs(18), || {
        ping(&client.host, GATEWAY_V4, 1, 56) == 1
    });
    forger.kill().unwrap();
    forger.wait().unwrap();
}

#[test]
fn a_forged_fragmentation_needed_stops_nothing() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (mut site, attacker, _) = besieged(&lab);
    let client = &site.clients[0];
    // Off the path, but it names a live flow of the gateway.
    attacker.run("ip route add 198.18.0.0/24 via 198.18.1.1");
    let received = || site.gateway.host.run("nstat -a -s -z IcmpInDestUnreachs");
    let before = received();
    run_on(&attacker, &format!("too-big 198.18.0.1:{GATEWAY_PORT} 198.18.0.2:{CLIENT_PORT} 600"));
    assert_ne!(received(), before, "it did not arrive");
    let route = site.gateway.host.run("ip route get 198.18.0.2");
    let down = Flow { way: Way::Down, ..Flow::tcp(&client.host, &site.gateway.host, GATEWAY_V4) };
    let report = down.run();
    assert!(report.rate > 20e6, "{report:?} with {route}");
    assert_eq!(ping(&client.host, GATEWAY_V4, 3, 1392), 3, "whole packets still go, with {route}");
    if let Some(report) = site.gateway.report() {
        assert_eq!(report["offloads"]["udp_send"]["on"], true, "{report:#}");
        assert_eq!(
            site.gateway.counter("ringway_segment_fallbacks_total"),
            Some(0),
            "nor does it cost the offload"
        );
    }
    assert!(site.gateway.exit_status().is_none());
}
