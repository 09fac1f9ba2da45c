//! Ownership, order, back-pressure and offloads of Ringway's data path, seen from outside.

use std::process::Command;
use std::time::Duration;

use crate::lab::{Lab, target, wait_until};
use crate::peer::{Implementation, Peer, Remote};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, Outer, Plan, Site, client_prefixes, client_v4,
    client_v6, connect, gateway_endpoint,
};
use crate::traffic::{Capture, Flow, Way, must_reach, ping};

const HANDED_OVER: &str = "ringway_handed_over_total";
const RETRIES: &str = "ringway_send_retries_total";
const FALLBACKS: &str = "ringway_segment_fallbacks_total";

/// Ringway on both sides with four workers each, whose client sends everything into the tunnel; the client's device
/// goes up last, so that nothing is on its way before the peers are known.
fn everything_through_four_workers(lab: &Lab) -> Site {
    let four = Implementation::ringway_with(4);
    let (gateway_host, client_host) = (lab.host("gateway"), lab.host("client0"));
    connect(lab, &gateway_host, &client_host, 0, 1520);
    let gateway = Peer::start(&gateway_host, four, "wg0", GATEWAY_PORT);
    let client = Peer::start(&client_host, four, "wg0", CLIENT_PORT);
    gateway.know(&Remote { public: &client.public, allowed: &client_prefixes(0), ..Remote::default() });
    client.know(&Remote {
        public: &gateway.public,
        allowed: "0.0.0.0/0,::/0",
        endpoint: Some(&gateway_endpoint(0, Outer::V4)),
        ..Remote::default()
    });
    gateway.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], 1420);
    client.up(&[&format!("{}/10", client_v4(0)), &format!("{}/64", client_v6(0))], 1420);
    Site { gateway, clients: vec![client] }
}

/// How many packets each worker has sealed.
fn sealed_by_worker(peer: &Peer) -> Vec<u64> {
    let report = peer.report().expect("Ringway");
    let workers = report["workers"].as_array().expect("workers");
    workers
        .iter()
        .map(|w| w["counters"][r#"ringway_packets_total{direction="out"}"#].as_u64().unwrap())
        .collect()
}

#[test]
pub(crate) fn a_peer_that_has_everything_is_never_handed_over() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = everything_through_four_workers(&lab);
    let (client, gateway) = (&site.clients[0].host, &site.gateway.host);
    must_reach(client, GATEWAY_V4);
    must_reach(client, GATEWAY_V6);
    for to in [GATEWAY_V4, GATEWAY_V6] {
        for way in [Way::Up, Way::Down] {
            let report = Flow { way, streams: 50, seconds: 3, ..Flow::tcp(client, gateway, to) }.run();
            assert!(report.rate > 20e6, "{to} {way:?}: {report:?}");
        }
    }
    for peer in [&site.gateway, &site.clients[0]] {
        let Some(report) = peer.report() else { return lab.skip("only Ringway counts hand-overs") };
        assert_eq!(report["steering"]["on"], true, "{report:#}");
        assert_eq!(peer.counter(HANDED_OVER), Some(0), "{report:#}");
        let busy = sealed_by_worker(peer).iter().filter(|packets| **packets > 0).count();
        assert_eq!(busy, 1, "one peer, one worker: {report:#}");
    }
}

/// A site's addresses hash to every worker, but belong to one.
#[test]
pub(crate) fn a_sites_subnets_land_on_its_owner() {
    let Some(lab) = Lab::with_traffic() else { return };
    let four = Implementation::ringway_with(4);
    let site = Plan::new(four, Implementation::WireguardGo).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    let allowed = format!("{},100.66.0.0/16,fd64:0:0:66::/64", client_prefixes(0));
    gateway.know(&Remote { public: &client.public, allowed: &allowed, ..Remote::default() });
    gateway.host.run("ip route add 100.66.0.0/16 dev wg0");
    gateway.host.run("ip route add fd64:0:0:66::/64 dev wg0");
    must_reach(&client.host, GATEWAY_V4);
    for i in 1..=12 {
        client.host.address("lo", &format!("100.66.{i}.{i}/32"));
        client.host.address("lo", &format!("fd64:0:0:66::{i}:{i}/128"));
        must_reach(&gateway.host, &format!("100.66.{i}.{i}"));
        must_reach(&gateway.host, &format!("fd64:0:0:66::{i}:{i}"));
    }
    for to in ["100.66.3.3", "fd64:0:0:66::5:5"] {
        let report = Flow { streams: 10, ..Flow::tcp(&gateway.host, &client.host, to) }.run();
        assert!(report.rate > 20e6, "{to}: {report:?}");
    }
    let handed = gateway.counter(HANDED_OVER);
    assert!(matches!(handed, None | Some(0)), "{handed:?} packets landed on the wrong worker");
}

/// A long queue behind the socket: the socket fills, the worker stops reading its TUN queue, and what is sealed is
/// neither dropped nor overtaken.
#[test]
pub(crate) fn a_full_socket_drops_and_reorders_nothing() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let (client, gateway) = (&site.clients[0].host, &site.gateway.host);
    must_reach(client, GATEWAY_V4);
    // The shaper holds more than the socket's buffer allows (8 MiB), so that it is the socket that is full.
    gateway.run("tc qdisc add dev e0 root tbf rate 200mbit burst 256kb limit 64mb");
    let capture = Capture::start(client, "wg0", 60, "ip proto 6");
    let bulk = Flow { way: Way::Down, seconds: 8, streams: 4, ..Flow::tcp(client, gateway, GATEWAY_V4) };
    let bulk = bulk.start();
    std::thread::sleep(Duration::from_secs(1));
    // The gateway dials the client, since the other iperf3 server is at the gateway.
    let to = client_v4(0);
    let flood = Flow { seconds: 4, udp: Some("400M"), ..Flow::udp(gateway, client, &to) }.run();
    let report = bulk.finish();
    let arrivals = capture.arrivals();
    let what = format!("{flood:?} {report:?} {arrivals:?}");
    assert!(arrivals.packets > 1000, "{what}");
    assert_eq!((flood.out_of_order, arrivals.overtaken), (0, 0), "{what}");
    let Some(retries) = site.gateway.counter(RETRIES) else { return lab.skip("only Ringway counts") };
    assert!(retries > 0, "the socket was never full: {what}");
    assert!(site.gateway.counter("ringway_stalls_total") > Some(0), "{what}");
    assert_eq!(site.gateway.drops(&["send_failed"]), Some(0), "{what}");
    wait_until("every sealed packet has arrived", Duration::from_secs(10), || {
        site.gateway.counter(r#"ringway_packets_total{direction="out"}"#)
            <= site.clients[0].counter(r#"ringway_packets_total{direction="in"}"#)
    });
}

/// A library that stands between a program and its libc: `sendmsg` with UDP_SEGMENT fails with EIO, as on a device
/// that cannot checksum (before Linux 6.11; newer kernels do it in software, so no device here refuses).
fn refuses_segments() -> String {
    preloaded("refuses_segments")
}

/// A library of ours for LD_PRELOAD, from its name.
pub(crate) fn preloaded(name: &str) -> String {
    let library = target().join(format!("tmp/{name}.so"));
    let source = format!("{}/tests/netns/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(status.expect("a C compiler, which the build needs anyway").success());
    library.to_str().unwrap().to_owned()
}

/// Clients of all four workers: the first run that is refused tells every one of them.
#[test]
pub(crate) fn a_device_that_refuses_segments_gets_plain_datagrams() {
    let Some(lab) = Lab::with_traffic() else { return };
    let library = refuses_segments();
    let host = lab.host("gateway");
    let preload = [("LD_PRELOAD", library.as_str())];
    let gateway = Peer::start_with(&host, Implementation::ringway_with(4), "wg0", GATEWAY_PORT, &preload);
    gateway.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], 1420);
    let mut plan = Plan::new(Implementation::ringway(), Implementation::WireguardGo);
    plan.clients = vec![Implementation::WireguardGo; 3];
    let clients: Vec<_> = (0..3).map(|i| plan.client(&lab, &gateway, i)).collect();
    for client in &clients {
        must_reach(&client.host, GATEWAY_V4);
        let report = Flow { way: Way::Down, seconds: 1, ..Flow::tcp(&client.host, &host, GATEWAY_V4) }.run();
        assert!(report.rate > 10e6, "{report:?}");
    }
    let Some(shown) = gateway.report() else { return lab.skip("only Ringway tells its offloads") };
    let reason = shown["offloads"]["udp_send"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("EIO"), "{shown:#}");
    let busy = sealed_by_worker(&gateway).into_iter().filter(|packets| *packets > 100).count();
    assert!(busy > 1, "clients of one worker only: {shown:#}");
    assert_eq!(gateway.counter(FALLBACKS), Some(1), "once for the device: {shown:#}");
    assert_eq!(gateway.drops(&["send_failed"]), Some(0), "{shown:#}");
}

/// One link takes less than the tunnel's packets: its endpoint goes without runs, the others keep theirs.
#[test]
pub(crate) fn a_smaller_link_costs_its_own_endpoint_the_offload() {
    let Some(lab) = Lab::with_traffic() else { return };
    let mut plan = Plan::new(Implementation::ringway_with(1), Implementation::WireguardGo);
    plan.clients = vec![Implementation::WireguardGo; 2];
    let site = plan.build(&lab);
    for client in &site.clients {
        must_reach(&client.host, GATEWAY_V4);
    }
    site.gateway.host.run("ip link set e0 mtu 1400");
    let down = |i: usize| Flow {
        way: Way::Down,
        ..Flow::tcp(&site.clients[i].host, &site.gateway.host, GATEWAY_V4)
    };
    if site.gateway.counter(FALLBACKS).is_none() {
        return lab.skip("only Ringway counts");
    }
    let narrow = Flow { seconds: 60, ..down(0) }.start();
    wait_until("the link refuses a run", Duration::from_secs(20), || {
        site.gateway.counter(FALLBACKS) > Some(0)
    });
    assert_eq!(ping(&site.clients[0].host, GATEWAY_V4, 3, 1000), 3, "what fits goes");
    drop(narrow);
    let fallbacks = site.gateway.counter(FALLBACKS);
    let sends = |peer: &Peer| {
        (peer.counter(r#"ringway_packets_total{direction="out"}"#), peer.counter("ringway_sends_total"))
    };
    let during = |flow: Flow<'_>| {
        let before = sends(&site.gateway);
        let report = flow.run();
        assert!(report.rate > 20e6, "{report:?}");
        let after = sends(&site.gateway);
        (after.0.unwrap() - before.0.unwrap(), after.1.unwrap() - before.1.unwrap())
    };
    let (packets, calls) = during(down(1));
    assert!(packets > 3 * calls, "runs are sent to the other client: {packets} packets in {calls} sends");
    assert_eq!(site.gateway.counter(FALLBACKS), fallbacks, "none of them was refused");
    let shown = site.gateway.report().unwrap();
    assert_eq!(shown["offloads"]["udp_send"]["on"], true, "{shown:#}");

    site.gateway.host.run("ip link set e0 mtu 1520");
    let (packets, calls) = during(down(0));
    assert!(
        2 * packets < 3 * calls,
        "for a while plain datagrams go where runs did not: {packets} in {calls}"
    );
}
