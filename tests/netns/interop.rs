//! The protocol and bulk traffic against `wireguard-go` and `boringtun-cli`, Ringway as gateway (responder) and as
//! client (initiator).

use std::sync::Arc;
use std::time::Duration;

use crate::lab::{Lab, wait_until};
use crate::peer::{Implementation, Peer, Remote, preshared_key};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, OVERLAY, Outer, Plan, Site, client_prefixes,
    client_v4, client_v6, connect, gateway_endpoint,
};
use crate::traffic::{Capture, Flow, TcpOrder, Way, must_reach, ping};

/// Declares each test once per foreign implementation and for each thing that Ringway may wait with.
macro_rules! against_each {
    ($($test:ident)*) => {
        mod with_wireguard_go {
            $(#[test] fn $test() { super::$test(crate::peer::Implementation::WireguardGo); })*
        }
        mod with_boringtun {
            $(#[test] fn $test() { super::$test(crate::peer::Implementation::Boringtun); })*
        }
        mod by_poll {
            mod with_wireguard_go {
                $(#[test] fn $test() {
                    crate::peer::by_poll(|| super::super::$test(crate::peer::Implementation::WireguardGo));
                })*
            }
            mod with_boringtun {
                $(#[test] fn $test() {
                    crate::peer::by_poll(|| super::super::$test(crate::peer::Implementation::Boringtun));
                })*
            }
        }
    };
}

against_each! {
    handshake_and_ping
    preshared_key_must_match
    tcp_both_ways
    udp_both_ways
    renews_under_load
    is_renewed_under_load
    roams_to_a_new_address_and_port
    keepalive_holds_a_nat_open
    mtu_from_1280_to_34000
    more_specific_peer_wins
    many_workers
    fifty_streams
    source_address_sticks_and_falls_back
    order_behind_a_shaper
}

/// Ringway at the gateway, then at the client.
fn both_roles(other: Implementation) -> [Plan; 2] {
    let ringway = Implementation::ringway();
    [Plan::new(ringway, other), Plan::new(other, ringway)]
}

fn ends(site: &Site) -> (&Arc<crate::lab::Host>, &Arc<crate::lab::Host>) {
    (&site.clients[0].host, &site.gateway.host)
}

fn handshake_and_ping(other: Implementation) {
    let Some(lab) = Lab::new() else { return };
    for mut plan in both_roles(other) {
        for outer in [Outer::V4, Outer::V6] {
            plan.outer = outer;
            let site = plan.build(&lab);
            let (client, gateway) = ends(&site);
            must_reach(client, GATEWAY_V4);
            must_reach(client, GATEWAY_V6);
            must_reach(gateway, &client_v4(0));
            must_reach(gateway, &client_v6(0));
            let [gateway, client] = [&site.gateway, &site.clients[0]];
            for (peer, remote) in [(gateway, client), (client, gateway)] {
                // boringtun 0.7.1 answers with the age of the handshake, which begins at 0.
                if peer.implementation != Implementation::Boringtun {
                    assert!(peer.latest_handshake(&remote.public) > 1_600_000_000);
                }
            }
        }
    }
}

fn preshared_key_must_match(other: Implementation) {
    let Some(lab) = Lab::new() else { return };
    for mut plan in both_roles(other) {
        plan.preshared = Some(preshared_key());
        let site = plan.build(&lab);
        must_reach(&site.clients[0].host, GATEWAY_V4);
        must_reach(&site.gateway.host, &client_v6(0));

        // One side alone forgets it: no handshake from then on.
        plan.preshared = None;
        let site = plan.build(&lab);
        let public = &site.clients[0].public;
        // boringtun changes no peer that it has: off and on again.
        site.gateway.set(&format!("peer {public} remove"));
        let (preshared, allowed) = (preshared_key(), client_prefixes(0));
        let preshared = Some(preshared.as_str());
        site.gateway.know(&Remote { public, preshared, allowed: &allowed, ..Remote::default() });
        assert_eq!(ping(&site.clients[0].host, GATEWAY_V4, 3, 56), 0);
        assert!(ping(&site.gateway.host, &client_v4(0), 1, 56) == 0);
    }
}

fn tcp_both_ways(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    for plan in both_roles(other) {
        let site = plan.build(&lab);
        let (client, gateway) = ends(&site);
        must_reach(client, GATEWAY_V4);
        for (to, way) in
            [(GATEWAY_V4, Way::Up), (GATEWAY_V4, Way::Down), (GATEWAY_V6, Way::Up), (GATEWAY_V6, Way::Down)]
        {
            let report = Flow { way, ..Flow::tcp(client, gateway, to) }.run();
            assert!(report.rate > 20e6, "{to} {way:?}: {report:?}");
        }
        assert_eq!(ping(client, GATEWAY_V4, 3, 56), 3, "the tunnel works after the traffic");
    }
}

fn udp_both_ways(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    for plan in both_roles(other) {
        let site = plan.build(&lab);
        let (client, gateway) = ends(&site);
        must_reach(client, GATEWAY_V4);
        for (to, way) in
            [(GATEWAY_V4, Way::Up), (GATEWAY_V4, Way::Down), (GATEWAY_V6, Way::Up), (GATEWAY_V6, Way::Down)]
        {
            let report = Flow { way, udp: Some("20M"), ..Flow::udp(client, gateway, to) }.run();
            let what = format!("{other:?} {to} {way:?}: {report:?}");
            assert!(report.packets > 3000, "{what}");
            assert!(report.lost * 50 < report.packets, "{what}");
            assert_eq!(report.out_of_order, 0, "{what}");
        }
    }
}

const CONFIRMED: &str = "ringway_sessions_confirmed_total";

/// Ringway renews every second (its times are shortened) while packets flow; none is lost or overtaken.
fn renews_under_load(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    if !Implementation::ringway().is_ringway() {
        return lab.skip("only Ringway can shorten its rekey interval");
    }
    let mut plan = Plan::new(other, Implementation::ringway());
    plan.variables = vec![("RINGWAY_TEST_REKEY", "1")];
    let site = plan.build(&lab);
    let (client, gateway) = ends(&site);
    must_reach(client, GATEWAY_V4);
    for way in [Way::Up, Way::Down] {
        let before = site.clients[0].counter(CONFIRMED);
        let flow = Flow { way, seconds: 6, udp: Some("10M"), ..Flow::udp(client, gateway, GATEWAY_V4) };
        let report = flow.run();
        let renewed = site.clients[0].counter(CONFIRMED).unwrap() - before.unwrap();
        assert!(renewed >= 3, "{way:?}: {renewed} handshakes");
        assert_eq!((report.lost, report.out_of_order), (0, 0), "{way:?}: {report:?}");
        let dropped = site.clients[0].drops(&["keypair_expired", "unknown_index", "staged_overflow"]);
        assert_eq!(dropped, Some(0), "{way:?}");
    }
}

/// The other side renews while packets flow to Ringway, which answers.
fn is_renewed_under_load(other: Implementation) {
    // A packet that comes between the two keys has wireguard-go begin a handshake, and once more right after it, both
    // within one step of its timestamps (17 ms): the second is refused as a replay, and it waits for 5 s. And who does
    // not come to reading for so long that its buffer overflows tells of the machine.
    for _ in 0..10 {
        let Some(lab) = Lab::with_traffic() else { return };
        let site = Plan::new(Implementation::ringway(), other).build(&lab);
        let (client, gateway) = ends(&site);
        must_reach(client, GATEWAY_V4);
        let before = site.gateway.counter(CONFIRMED);
        let flow = Flow { seconds: 3, udp: Some("10M"), ..Flow::udp(client, gateway, GATEWAY_V4) }.start();
        for _ in 0..2 {
            std::thread::sleep(Duration::from_secs(1));
            site.clients[0].renew();
        }
        let report = flow.finish();
        if report.unread > 0 || site.gateway.drops(&["old_timestamp"]).is_some_and(|twice| twice > 0) {
            continue;
        }
        let refused = site.gateway.report().map(|mut report| report["drops"].take().to_string());
        assert_eq!((report.lost, report.out_of_order), (0, 0), "{report:?}, {refused:?}");
        if let Some(before) = before {
            let renewed = site.gateway.counter(CONFIRMED).unwrap() - before;
            assert!(renewed >= 2, "{renewed} handshakes, {report:?}, {refused:?}");
            let lost = site.gateway.drops(&["keypair_expired", "unknown_index", "staged_overflow"]);
            assert_eq!(lost, Some(0));
        }
        return;
    }
    panic!("ten times the other side began twice at once, or the machine stood still");
}

fn roams_to_a_new_address_and_port(other: Implementation) {
    let Some(lab) = Lab::new() else { return };
    for plan in both_roles(other) {
        let site = plan.build(&lab);
        let (client, gateway) = ends(&site);
        must_reach(client, GATEWAY_V4);
        let endpoint = || site.gateway.show("endpoints", &site.clients[0].public);
        assert_eq!(endpoint(), format!("198.18.0.2:{CLIENT_PORT}"));

        client.address("e0", "198.18.0.9/24");
        client.run("ip address del 198.18.0.2/24 dev e0");
        client.address("e0", "198.18.0.9/24");
        must_reach(client, GATEWAY_V4);
        assert_eq!(endpoint(), format!("198.18.0.9:{CLIENT_PORT}"));
        must_reach(gateway, &client_v4(0));

        site.clients[0].set("listen-port 51999");
        must_reach(client, GATEWAY_V4);
        assert_eq!(endpoint(), "198.18.0.9:51999");
        must_reach(gateway, &client_v4(0));
    }
}

fn keepalive_holds_a_nat_open(other: Implementation) {
    let Some(lab) = Lab::new() else { return };
    for plan in both_roles(other) {
        let (gateway_host, router, client_host) =
            (lab.host("gateway"), lab.host("router"), lab.host("client"));
        connect(&lab, &gateway_host, &router, 0, 1500);
        lab.link((&router, "e1"), (&client_host, "e0"), 1500);
        router.address("e1", "198.19.0.1/24");
        client_host.address("e0", "198.19.0.2/24");
        client_host.run("ip route add default via 198.19.0.1");
        router.run("nft add table ip nat");
        router.run("nft add chain ip nat out { type nat hook postrouting priority 100 ; }");
        router.run("nft add rule ip nat out oifname e0 masquerade");
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_udp_timeout=2");
        router.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout_stream=2");

        let gateway = Peer::start(&gateway_host, plan.gateway, "wg0", GATEWAY_PORT);
        let client = Peer::start(&client_host, plan.clients[0], "wg0", CLIENT_PORT);
        gateway.up(&[&format!("{GATEWAY_V4}/10")], 1420);
        client.up(&[&format!("{}/10", client_v4(0))], 1420);
        gateway.know(&Remote { public: &client.public, allowed: &client_prefixes(0), ..Remote::default() });
        client.know(&Remote {
            public: &gateway.public,
            allowed: OVERLAY,
            endpoint: Some(&gateway_endpoint(0, Outer::V4)),
            keepalive: Some(1),
            ..Remote::default()
        });
        must_reach(&client_host, GATEWAY_V4);
        // Two lives of the router's entry without a packet of the tunnel's users.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(ping(&gateway_host, &client_v4(0), 3, 56), 3, "the gateway still reaches the client");
        assert!(gateway.show("endpoints", &client.public).starts_with("198.18.0.2:"), "it was masqueraded");
    }
}

fn mtu_from_1280_to_34000(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    for mtu in [1280, 1420, 9000, 34_000] {
        for mut plan in both_roles(other) {
            plan.mtu = mtu;
            let site = plan.build(&lab);
            let (client, gateway) = ends(&site);
            must_reach(client, GATEWAY_V4);
            // boringtun looks at the MTU of its device once a second.
            wait_until(&format!("packets of {mtu} bytes pass"), Duration::from_secs(10), || {
                ping(client, GATEWAY_V4, 1, mtu - 28) == 1
            });
            for (payload, to) in [(mtu - 28, GATEWAY_V4), (mtu - 48, GATEWAY_V6), (1, GATEWAY_V4)] {
                assert_eq!(ping(client, to, 3, payload), 3, "{payload} bytes to {to}, MTU {mtu}");
            }
            for way in [Way::Up, Way::Down] {
                let report = Flow { way, seconds: 1, ..Flow::tcp(client, gateway, GATEWAY_V4) }.run();
                assert!(report.rate > 10e6, "MTU {mtu} {way:?}: {report:?}");
            }
        }
    }
}

fn more_specific_peer_wins(other: Implementation) {
    let Some(lab) = Lab::new() else { return };
    let mut plan = Plan::new(Implementation::ringway(), other);
    plan.clients = vec![other, other];
    let site = plan.build(&lab);
    let [all, one] = &site.clients[..] else { panic!("two clients") };
    site.gateway.know(&Remote {
        public: &all.public,
        allowed: &format!("100.64.0.0/10,{}/128", client_v6(0)),
        ..Remote::default()
    });
    must_reach(&all.host, GATEWAY_V4);
    must_reach(&one.host, GATEWAY_V4);
    let received = |peer: &Peer| -> u64 {
        let transfer = site.gateway.show("transfer", &peer.public);
        transfer.split_whitespace().nth(1).and_then(|sent| sent.parse().ok()).unwrap_or(0)
    };
    let before = (received(all), received(one));
    assert_eq!(ping(&site.gateway.host, &client_v4(1), 3, 1000), 3);
    assert!(received(one) > before.1 + 3000, "the longer prefix took it");
    assert!(received(all) < before.0 + 1000, "the shorter prefix did not");

    // The prefix moves to the other peer: its old owner has lost it, and may no longer send from it.
    site.gateway.know(&Remote {
        public: &all.public,
        allowed: &format!("100.64.0.0/10,{}/32", client_v4(1)),
        ..Remote::default()
    });
    assert_eq!(site.gateway.show("allowed-ips", &one.public), format!("{}/128", client_v6(1)));
    assert_eq!(ping(&one.host, GATEWAY_V4, 2, 56), 0, "a source that is another peer's");
    assert_eq!(ping(&one.host, GATEWAY_V6, 2, 56), 2, "its other prefix still works");
}

fn many_workers(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    for workers in [1, 2, 3, 5] {
        let mut plan = Plan::new(Implementation::ringway_with(workers), other);
        plan.clients = vec![other; 4];
        let site = plan.build(&lab);
        for (i, client) in site.clients.iter().enumerate() {
            must_reach(&client.host, GATEWAY_V4);
            must_reach(&site.gateway.host, &client_v6(i));
            // Client to client, through the gateway's tunnel device twice.
            must_reach(&client.host, GATEWAY_V6);
        }
        site.gateway.host.run("sysctl -qw net.ipv4.ip_forward=1");
        must_reach(&site.clients[0].host, &client_v4(3));
        let mut flows = Vec::new();
        for (i, client) in site.clients.iter().enumerate() {
            // The gateway dials, so that each client has its own iperf3 server.
            let to = client_v4(i);
            let way = if i % 2 == 0 { Way::Up } else { Way::Down };
            let flow = Flow { way, udp: Some("10M"), ..Flow::udp(&site.gateway.host, &client.host, &to) };
            flows.push(flow.start());
        }
        for flow in flows {
            let report = flow.finish();
            assert!(report.packets > 1000, "{workers} workers: {report:?}");
            assert_eq!(report.out_of_order, 0, "{workers} workers: {report:?}");
            assert!(report.lost * 50 < report.packets, "{workers} workers: {report:?}");
        }
        if workers > 1
            && let Some(handed) = site.gateway.counter("ringway_handed_over_total")
        {
            assert_eq!(handed, 0, "{workers} workers: so many packets landed on the wrong one");
        }
    }
}

fn fifty_streams(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    for plan in both_roles(other) {
        let site = plan.build(&lab);
        let (client, gateway) = ends(&site);
        must_reach(client, GATEWAY_V4);
        for way in [Way::Up, Way::Down] {
            let report = Flow { way, streams: 50, ..Flow::tcp(client, gateway, GATEWAY_V4) }.run();
            assert!(report.rate > 20e6, "{way:?}: {report:?}");
        }
    }
}

#[test]
pub(crate) fn order_is_kept_with_ringway_at_both_ends() {
    order_behind_a_shaper(Implementation::ringway());
}

/// No packet of a TCP flow overtakes another on its way through Ringway, with or without a shaper behind it.
fn order_behind_a_shaper(other: Implementation) {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), other).build(&lab);
    let (client, gateway) = ends(&site);
    must_reach(client, GATEWAY_V4);
    for shaped in [false, true] {
        if shaped {
            gateway.run("tc qdisc add dev e0 root tbf rate 100mbit burst 32kb latency 20ms");
        }
        for (way, receiver) in [(Way::Up, gateway), (Way::Down, client)] {
            let before = TcpOrder::of(receiver);
            let capture = Capture::start(receiver, "wg0", 60, "ip proto 6");
            let report = Flow { way, ..Flow::tcp(client, gateway, GATEWAY_V4) }.run();
            let arrivals = capture.arrivals();
            let after = TcpOrder::of(receiver);
            let what = format!("shaped {shaped} {way:?}: {arrivals:?} {report:?} {before:?} {after:?}");
            assert!(arrivals.packets > 500, "{what}");
            assert_eq!(arrivals.overtaken, 0, "{what}");
            if report.retransmits == 0 {
                assert_eq!(before, after, "{what}");
            }
        }
    }
}

/// Answers leave from the address that was spoken to, and from another one when that is gone.
fn source_address_sticks_and_falls_back(other: Implementation) {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), other).build(&lab);
    let (client, gateway) = ends(&site);
    gateway.address("e0", "198.18.0.77/24");
    let endpoint = format!("198.18.0.77:{GATEWAY_PORT}");
    site.clients[0].set(&format!("peer {} remove", site.gateway.public));
    site.clients[0].know(&Remote {
        public: &site.gateway.public,
        allowed: OVERLAY,
        endpoint: Some(&endpoint),
        ..Remote::default()
    });
    must_reach(client, GATEWAY_V4);
    must_reach(gateway, &client_v4(0));
    assert_eq!(site.clients[0].show("endpoints", &site.gateway.public), endpoint);

    gateway.run("ip address del 198.18.0.77/24 dev e0");
    must_reach(gateway, &client_v4(0));
    let roamed = site.clients[0].show("endpoints", &site.gateway.public);
    assert_eq!(roamed, gateway_endpoint(0, Outer::V4), "the client followed an authenticated packet");
}
