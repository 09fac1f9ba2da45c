//! Segment size, switches and what does not fit, as hosts behind a tunnel and an operator see them.

use std::time::Duration;

use crate::lab::{Host, Lab, wait_until};
use crate::peer::{Implementation, Peer};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, OVERLAY, Outer, Plan, Site, client_v4, client_v6,
    introduce,
};
use crate::traffic::{Capture, Flow, Way, ip_packets, must_reach, ping};

const CLAMPED: &str = "ringway_mss_clamped_total";

/// A filter for SYNs and SYN-ACKs of both families.
const SYNS: &str = "tcp[13]&2!=0 or (ip6[6]=6 and ip6[53]&2!=0)";
/// A server behind the gateway, on a link of 1500 bytes.
const SERVER_V4: &str = "198.19.0.2";
const SERVER_V6: &str = "fd00:198:19::2";

/// Gives the gateway a network behind it, with one server, and the client the way there. Nothing tells anybody that a
/// packet is too large: the gateway sends no ICMP of that kind, and no fragments pass between it and the client.
fn with_a_black_hole(lab: &Lab, site: &Site) -> std::sync::Arc<Host> {
    let (client, gateway) = (&site.clients[0], &site.gateway);
    let server = lab.host("server");
    lab.link((&gateway.host, "behind"), (&server, "e0"), 1500);
    gateway.host.address("behind", "198.19.0.1/24");
    gateway.host.address("behind", "fd00:198:19::1/64");
    server.address("e0", "198.19.0.2/24");
    server.address("e0", "fd00:198:19::2/64");
    gateway.host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    server.run("ip route add 100.64.0.0/10 via 198.19.0.1");
    server.run("ip route add fd64::/64 via fd00:198:19::1");
    let allowed = format!("{OVERLAY},198.19.0.0/24,fd00:198:19::/64");
    client.set(&format!("peer {} allowed-ips {allowed}", gateway.public));
    client.host.run("ip route add 198.19.0.0/24 dev wg0");
    client.host.run("ip route add fd00:198:19::/64 dev wg0");
    let rules = "table inet hole {
        chain out { type filter hook output priority 0; policy accept;
            icmp type destination-unreachable icmp code frag-needed drop
            icmpv6 type packet-too-big drop
        }
        chain in { type filter hook prerouting priority -450; policy accept;
            iifname \"e0\" ip frag-off & 0x3fff != 0 drop
        }
    }";
    gateway.host.run_with_input("nft -f -", rules);
    server
}

/// The maximum segment sizes of all SYNs and SYN-ACKs of a capture, as (with ACK, size).
fn segment_sizes(packets: &[Vec<u8>]) -> Vec<(bool, u16)> {
    let of = |packet: &Vec<u8>| {
        let at = if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 };
        let tcp = packet.get(at..)?;
        // Linux puts the option first.
        let syn = tcp.get(13)? & 2 != 0 && tcp.get(20..22)? == [2, 4];
        syn.then(|| (tcp[13] & 16 != 0, u16::from_be_bytes([tcp[22], tcp[23]])))
    };
    packets.iter().filter_map(of).collect()
}

/// Both ends of a connection have links of 1500 bytes; the tunnel has 1300 at the gateway, and at the client more than
/// that, so that each SYN promises too much until the gateway has seen it.
#[test]
fn a_path_that_swallows_large_packets_carries_tcp() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let server = with_a_black_hole(&lab, &site);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    gateway.host.run("ip link set wg0 mtu 1300");
    for (to, back, sizes) in [(SERVER_V4, client_v4(0), 1260), (SERVER_V6, client_v6(0), 1240)] {
        must_reach(&client.host, to);
        let at_server = Capture::start(&server, "e0", 128, SYNS);
        let at_client = Capture::start(&client.host, "wg0", 128, SYNS);
        for way in [Way::Up, Way::Down] {
            let report = Flow { way, seconds: 1, ..Flow::tcp(&client.host, &server, to) }.run();
            assert!(report.rate > 5e6, "{to} {way:?}: {report:?}");
        }
        let report = Flow { seconds: 1, ..Flow::tcp(&server, &client.host, &back) }.run();
        assert!(report.rate > 5e6, "{back}: {report:?}");
        // What the other side promised: SYNs of the client and its SYN-ACKs at the server, and the other way round.
        for (host, capture, own) in [("server", at_server, 1500), ("client", at_client, 1420)] {
            let sizes_seen = segment_sizes(&ip_packets(&capture.stop()));
            let own = own - (1300 - sizes);
            for ack in [false, true] {
                let seen: Vec<_> =
                    sizes_seen.iter().filter(|(a, _)| *a == ack).map(|(_, size)| *size).collect();
                assert!(seen.contains(&sizes) && seen.contains(&own), "{host} ack {ack}: {seen:?}");
                assert!(seen.iter().all(|size| [sizes, own].contains(size)), "{host} ack {ack}: {seen:?}");
            }
        }
    }
    let Some(clamped) = gateway.counter(CLAMPED) else { return lab.skip("only Ringway clamps") };
    assert!(clamped > 0);

    // The hole is real: without the clamp the same connection hangs with its first full segment.
    switch(gateway, "mss-clamp=off");
    let report = Flow { way: Way::Down, seconds: 2, ..Flow::tcp(&client.host, &server, SERVER_V4) }.run();
    assert!(report.rate < 1e6, "nothing is swallowed: {report:?}");
    assert_eq!(gateway.counter(CLAMPED), Some(clamped));
    switch(gateway, "mss-clamp=on");
    let report = Flow { way: Way::Down, seconds: 1, ..Flow::tcp(&client.host, &server, SERVER_V4) }.run();
    assert!(report.rate > 5e6, "{report:?}");
}

/// `ringway switch wg0 …` on the peer's host.
fn switch(peer: &Peer, words: &str) {
    let program = peer.implementation.program();
    peer.host.run(&format!("{} switch {} {words}", program.display(), peer.interface));
}

/// Packets and calls of one step of the way since the last look.
struct Watch<'a> {
    peer: &'a Peer,
    packets: &'static str,
    calls: &'static str,
}

impl Watch<'_> {
    fn look(&self) -> (u64, u64) {
        (self.peer.counter(self.packets).unwrap(), self.peer.counter(self.calls).unwrap())
    }

    /// Packets per call over a second.
    fn ratio(&self) -> f64 {
        let before = self.look();
        std::thread::sleep(Duration::from_secs(1));
        let after = self.look();
        assert!(after.0 > before.0 + 100, "no traffic: {} packets", after.0 - before.0);
        (after.0 - before.0) as f64 / (after.1 - before.1) as f64
    }
}

#[test]
pub(crate) fn offloads_are_switched_under_traffic() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    if !gateway.implementation.is_ringway() {
        return lab.skip("only Ringway has switches");
    }
    must_reach(&client.host, GATEWAY_V4);
    let watch = |name, packets, calls| (name, Watch { peer: gateway, packets, calls });
    let ways = [
        (
            Way::Down,
            [
                watch("tun_read", "ringway_tun_read_segments_total", "ringway_tun_reads_total"),
                watch("udp_send", r#"ringway_packets_total{direction="out"}"#, "ringway_sends_total"),
            ],
        ),
        (
            Way::Up,
            [
                watch("tun_write", "ringway_tun_written_segments_total", "ringway_tun_writes_total"),
                watch("udp_receive", r#"ringway_packets_total{direction="in"}"#, "ringway_receives_total"),
            ],
        ),
    ];
    for (way, watches) in ways {
        let flow = Flow { way, seconds: 9, ..Flow::tcp(&client.host, &gateway.host, GATEWAY_V4) }.start();
        std::thread::sleep(Duration::from_millis(500));
        for (name, watch) in watches {
            let state = || gateway.report().unwrap()["offloads"][name].clone();
            let with = watch.ratio();
            assert!(with > 2.0, "{name}: {with} packets a call before");
            switch(gateway, &format!("{name}=off"));
            assert_eq!((&state()["on"], &state()["reason"]), (&false.into(), &"switched off".into()));
            let without = watch.ratio();
            assert!(without < 1.1, "{name}: {without} packets a call while it is off");
            switch(gateway, &format!("{name}=on"));
            assert_eq!(state()["on"], true);
            let again = watch.ratio();
            assert!(again > 2.0, "{name}: {again} packets a call after");
        }
        let report = flow.finish();
        assert!(report.rate > 20e6, "{way:?}: {report:?}");
    }
    let unexpected = gateway.drops(&["tun_invalid", "tun_malformed", "send_failed", "tun_full"]);
    assert_eq!(unexpected, Some(0), "{:#}", gateway.report().unwrap()["drops"]);
    // What the sockets held as runs while UDP_GRO was turned off comes as one datagram that is none.
    assert!(gateway.drops(&["unauthentic"]) < Some(200), "{:#}", gateway.report().unwrap()["drops"]);
}

/// A route says that more fits than the device takes: the network stack believes it, and the gateway has to answer.
#[test]
fn a_packet_that_does_not_fit_is_answered() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    must_reach(&client.host, GATEWAY_V4);
    for (to, own, header) in [(client_v4(0), "/32", 28), (client_v6(0), "/128", 48)] {
        gateway.host.run(&format!("ip route add {to}{own} dev wg0 mtu 1500"));
        // The first one arrives: the MTU may just have been raised. (The worker is certain when IPv6 comes.)
        let passes = u32::from(header == 28);
        assert_eq!(ping(&gateway.host, &to, 1, 1500 - header), passes, "{to}");
        let too_long = format!("ping -M do -c 1 -W 1 -s {} {to}", 1500 - header);
        wait_until("the network stack knows the MTU", Duration::from_secs(30), || {
            // Its own word by now, or our answer: "mtu: 1420", "mtu=1420", "mtu = 1420".
            let output = gateway.host.attempt(&too_long);
            let said = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&said).lines().any(|line| line.contains("mtu") && line.contains("1420"))
        });
        assert_eq!(ping(&gateway.host, &to, 1, 1420 - header), 1, "{to}: what fits");
    }
    let Some(answers) = gateway.counter("ringway_icmp_too_big_total") else { return };
    assert!((2..40).contains(&answers), "{answers}");
    assert_eq!(gateway.drops(&["too_large"]), Some(answers));
}

#[test]
fn the_device_has_the_queue_length_that_was_asked_for() {
    let Some(lab) = Lab::new() else { return };
    for (value, length) in [("", "500"), ("77", "77")] {
        let host = lab.host("gateway");
        let variables = [("RINGWAY_TXQUEUELEN", value)];
        let peer = Peer::start_with(&host, Implementation::ringway(), "wg0", 51820, &variables);
        let shown = host.run("ip link show dev wg0");
        assert!(shown.contains(&format!("qlen {length}")), "{shown}");
        drop(peer);
    }
}

/// A way whose middle takes less than the outer datagrams of full packets, 1500 bytes: nothing of the tunnel's vanishes
/// there, in either direction. The first full datagrams over IPv6 teach the gateway, and are lost.
#[test]
fn a_narrow_link_on_the_way_loses_no_full_packet() {
    let Some(lab) = Lab::with_traffic() else { return };
    for outer in [Outer::V4, Outer::V6] {
        let [host, near, far, end] = ["gateway", "near", "far", "client"].map(|role| lab.host(role));
        for (place, (a, a_if), (b, b_if), mtu) in [
            (0, (&host, "e0"), (&near, "e0"), 1500),
            (1, (&near, "e1"), (&far, "e1"), 1300),
            (2, (&far, "e0"), (&end, "e0"), 1500),
        ] {
            lab.link((a, a_if), (b, b_if), mtu);
            for (side, number, interface) in [(a, 1, a_if), (b, 2, b_if)] {
                side.address(interface, &format!("198.18.{place}.{number}/24"));
                side.address(interface, &format!("fd00:198:18:{place}::{number}/64"));
            }
        }
        for router in [&near, &far] {
            router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        }
        for (side, place, number) in [(&host, 0, 2), (&near, 1, 2), (&far, 1, 1), (&end, 2, 1)] {
            side.run(&format!("ip route add default via 198.18.{place}.{number}"));
            side.run(&format!("ip -6 route add default via fd00:198:18:{place}::{number}"));
        }
        let gateway = Peer::start(&host, Implementation::ringway(), "wg0", GATEWAY_PORT);
        gateway.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], 1420);
        let client = Peer::start(&end, Implementation::WireguardGo, "wg0", CLIENT_PORT);
        client.up(&[&format!("{}/10", client_v4(0)), &format!("{}/64", client_v6(0))], 1420);
        introduce(&gateway, &client, 0, outer, None);
        must_reach(&end, GATEWAY_V4);
        let full = || ping(&host, &client_v4(0), 1, 1420 - 28) == 1;
        wait_until("full packets pass", Duration::from_secs(10), full);
        for to in [client_v4(0), client_v6(0)] {
            let header = if to.contains(':') { 48 } else { 28 };
            assert_eq!(ping(&host, &to, 10, 1420 - header), 10, "{outer:?}");
            assert_eq!(ping(&host, &to, 1, 1421 - header), 0, "{outer:?}: what the tunnel does not take");
        }
        for way in [Way::Up, Way::Down] {
            let report = Flow { way, seconds: 3, ..Flow::tcp(&end, &host, GATEWAY_V4) }.run();
            println!("{outer:?} {way:?}: {report:?}");
            assert!(report.rate > 20e6, "{outer:?} {way:?}: {report:?}");
        }
        assert_eq!(gateway.drops(&["send_failed"]).unwrap_or(0), 0);
    }
}

/// Packets are cut before they go over the link, as into a network card, and put together by the receiver's kernel,
/// whatever port they come from.
#[test]
fn what_a_card_cuts_is_put_together_whatever_the_port() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    for host in [&client.host, &gateway.host] {
        let links = host.run("ip -o link show type veth");
        let link = links.split(": ").nth(1).unwrap().split('@').next().unwrap();
        host.run(&format!("ethtool -K {link} tso off tx-udp-segmentation off gro on"));
    }
    let counts = || {
        let count = |metric| gateway.counter(metric).unwrap();
        (count("ringway_receives_total"), count("ringway_tun_written_segments_total"))
    };
    for port in 40_000..40_008 {
        client.set(&format!("listen-port {port}"));
        client.renew();
        must_reach(&client.host, GATEWAY_V4);
        let before = counts();
        Flow { seconds: 1, ..Flow::tcp(&client.host, &gateway.host, GATEWAY_V4) }.run();
        let after = counts();
        let (receives, packets) = (after.0 - before.0, after.1 - before.1);
        assert!(packets > 5 * receives, "{port}: {packets} packets by {receives} receives");
    }
}

/// A run of datagrams may reach the socket for handshakes as one, and each of them counts.
#[test]
fn a_run_of_initiations_is_looked_at_one_by_one() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    // UDP_SEGMENT of linux/udp.h.
    let runs = format!(
        "use IO::Socket::INET; for (1..20) {{ my $s = IO::Socket::INET->new(Proto => 'udp', PeerAddr => \
         '198.18.0.1', PeerPort => {GATEWAY_PORT}) or die; setsockopt($s, 17, 103, pack('i', 148)) or die; \
         send($s, (pack('C', 1) . \"\\0\" x 147) x 5, 0) or die; }}"
    );
    let received = || gateway.counter("ringway_handshake_messages_total").unwrap();
    let before = received();
    assert!(client.host.command("perl").args(["-e", &runs]).status().unwrap().success());
    wait_until("all have been looked at", Duration::from_secs(10), || received() >= before + 100);
}
