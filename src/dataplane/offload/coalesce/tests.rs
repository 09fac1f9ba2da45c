use super::*;
use crate::dataplane::offload::packets::{Spec, assert_intact, noise, supers};
use crate::dataplane::offload::split;
use proptest::prelude::*;

const BOTH: Config = Config { tcp: true, udp: true };

/// Pushes packets (each in a buffer of its own, at an offset) and returns the writes as bytes.
fn coalesce(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    const FRONT: u32 = 16;
    let buffers: Vec<Vec<u8>> =
        packets.iter().map(|p| [vec![0xee; FRONT as usize], p.clone()].concat()).collect();
    for (index, packet) in packets.iter().enumerate() {
        let place = Place { buffer: index as u16, start: FRONT, len: packet.len() as u32 };
        coalescer.push(packet, place).unwrap();
    }
    let mut writes = Vec::new();
    coalescer.drain(|header, places| {
        let mut write = header.to_vec();
        for place in places {
            let start = place.start as usize;
            write.extend(&buffers[usize::from(place.buffer)][start..start + place.len as usize]);
        }
        writes.push(write);
    });
    assert!(coalescer.is_empty());
    writes
}

fn coalesced(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    coalesce(&mut Coalescer::new(BOTH), packets)
}

/// Cuts a write again.
fn cut(write: &[u8]) -> Vec<Vec<u8>> {
    let packet = split::parse(write).unwrap();
    (0..packet.segments())
        .map(|index| {
            let mut out = vec![0; packet.segment_len(index)];
            packet.write_segment(index, &mut out).unwrap();
            out
        })
        .collect()
}

/// How many packets each write holds.
fn shape(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesced(packets).iter().map(|write| cut(write).len()).collect()
}

/// Three packets that merge: 100, 100 and 60 bytes.
fn three(change: impl Fn(usize, &mut Spec)) -> Vec<Vec<u8>> {
    [100, 100, 60]
        .iter()
        .enumerate()
        .map(|(index, len)| {
            let spec = Spec::default();
            let mut spec = Spec {
                seq: spec.seq.wrapping_add(100 * index as u32),
                id: spec.id.wrapping_add(index as u16),
                payload: noise(index as u64, *len),
                ..spec
            };
            change(index, &mut spec);
            spec.packet()
        })
        .collect()
}

#[test]
fn a_run_becomes_one_super_packet() {
    let packets = three(|_, _| {});
    let writes = coalesced(&packets);
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0][..10], [1, 1, 40, 0, 100, 0, 20, 0, 16, 0]);
    let whole = Spec { payload: packets.iter().flat_map(|p| p[40..].to_vec()).collect(), ..Spec::default() };
    assert_eq!(writes[0], whole.read(100));
    assert_eq!(cut(&writes[0]), packets);
}

#[test]
fn a_single_packet_is_left_alone() {
    let packet = Spec::default().packet();
    assert_eq!(coalesced(std::slice::from_ref(&packet)), [[vec![0; 10], packet].concat()]);
}

#[test]
fn what_differs_is_not_merged() {
    let second = |change: fn(&mut Spec)| {
        shape(&three(|index, spec| {
            if index == 1 {
                change(spec);
            }
        }))
    };
    assert_eq!(second(|_| {}), [3]);
    for (what, change) in [
        ("tos", (|s| s.tos = 4) as fn(&mut Spec)),
        ("CE", |s| s.tos = 3),
        ("ttl", |s| s.ttl = 63),
        ("df", |s| s.df = false),
        ("id", |s| s.id = 9),
        ("ack", |s| s.ack += 1),
        ("window", |s| s.window += 1),
        ("sequence gap", |s| s.seq += 1),
        ("sequence overlap", |s| s.seq -= 1),
        ("options", |s| s.options = vec![1; 4]),
        ("longer", |s| s.payload.push(0)),
        ("empty", |s| s.payload.clear()),
        ("FIN", |s| s.flags |= 0x01),
        ("SYN", |s| s.flags |= 0x02),
        ("RST", |s| s.flags |= 0x04),
        ("URG", |s| s.flags |= 0x20),
        ("ECE", |s| s.flags |= 0x40),
        ("CWR", |s| s.flags |= 0x80),
        ("no ACK", |s| s.flags = 0),
    ] {
        assert_eq!(second(change), [1, 1, 1], "{what}");
    }
    assert_eq!(second(|s| s.flags |= 0x08), [2, 1], "PSH ends");
    assert_eq!(second(|s| s.payload.truncate(99)), [2, 1], "a shorter packet ends");
    assert_eq!(second(|s| s.ports.0 += 1), [1, 1, 1], "another flow; the first one then has a gap");
    assert_eq!(second(|s| s.hosts.0 += 1), [1, 1, 1]);
}

#[test]
fn psh_is_kept_at_the_end() {
    let writes = coalesced(&three(|index, spec| spec.flags |= if index == 2 { 8 } else { 0 }));
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0][10 + 33], 0x18);
    assert_eq!(shape(&three(|index, spec| spec.flags |= if index == 0 { 8 } else { 0 })), [1, 2]);
}

#[test]
fn a_late_packet_does_not_overtake_what_came_before_it() {
    for flags in [0x10, 0x18, 0x11] {
        let packets = three(|index, spec| {
            if index == 1 {
                spec.seq = spec.seq.wrapping_add(400);
                spec.flags = flags;
            } else if index == 2 {
                // Continues the first one, but the second is in between.
                spec.seq = spec.seq.wrapping_sub(100);
                spec.id = spec.id.wrapping_sub(1);
            }
        });
        let writes = coalesced(&packets);
        assert_eq!(writes.iter().map(|w| w[10..].to_vec()).collect::<Vec<_>>(), packets, "flags {flags:#x}");
    }
}

#[test]
fn identifications() {
    assert_eq!(shape(&three(|_, s| s.id = 0)), [3], "fixed, with DF");
    let fixed_without = |_: usize, s: &mut Spec| (s.id, s.df) = (0, false);
    assert_eq!(shape(&three(fixed_without)), [1, 1, 1]);
    assert_eq!(shape(&three(|_, s| s.df = false)), [3], "incrementing, without DF");
    assert_eq!(shape(&three(|i, s| s.id = [5, 5, 6][i])), [2, 1]);
    assert_eq!(shape(&three(|i, s| s.id = [5, 6, 5][i])), [2, 1]);
    assert_eq!(shape(&three(|i, s| s.id = [5, 6, 6][i])), [2, 1]);
}

#[test]
fn flow_labels_and_hop_limits_of_ipv6() {
    let packets = three(|_, s| s.v6 = true);
    assert_eq!(shape(&packets), [3]);
    for (at, what) in [(1, "traffic class"), (3, "flow label"), (7, "hop limit")] {
        let mut packets = packets.clone();
        packets[1][at] ^= 0x10; // none of them is in the checksum
        assert_eq!(shape(&packets), [1, 1, 1], "{what}");
    }
}

#[test]
fn wrong_checksums_go_alone_and_unchanged() {
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let good = three(|_, s| (s.v6, s.udp, s.id) = (v6, udp, 0));
        for wrong in 0..3 {
            let mut packets = good.clone();
            *packets[wrong].last_mut().unwrap() ^= 1;
            let writes = coalesced(&packets);
            assert!(writes.contains(&[vec![0; 10], packets[wrong].clone()].concat()));
            // Behind the wrong one a new super-packet begins: it closed its flow.
            assert_eq!(shape(&packets), [vec![1, 2], vec![1, 1, 1], vec![2, 1]][wrong]);
        }
    }
    let mut packets = three(|_, _| {});
    packets[1][11] ^= 1;
    assert_eq!(shape(&packets), [1, 1, 1], "IPv4 header checksum");
}

#[test]
fn udp_rules() {
    let udp = |change: fn(usize, &mut Spec)| {
        three(move |i, s| {
            s.udp = true;
            change(i, s);
        })
    };
    let writes = coalesced(&udp(|_, _| {}));
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0][..10], [1, 5, 28, 0, 100, 0, 20, 0, 6, 0]);
    assert_eq!(cut(&writes[0]), udp(|_, _| {}));
    let mut no_checksum = udp(|_, _| {});
    no_checksum[1][26..28].fill(0);
    assert_eq!(shape(&no_checksum), [1, 1, 1]);
    let mut lying_length = udp(|_, _| {});
    lying_length[1][25] -= 1;
    assert_eq!(shape(&lying_length), [1, 1, 1]);
    let many: Vec<_> = (0..130)
        .map(|i| Spec { udp: true, id: i, payload: vec![1; 9], ..Spec::default() }.packet())
        .collect();
    assert_eq!(shape(&many), [64, 64, 2]);
}

#[test]
fn switches() {
    let (tcp, udp) = (three(|_, _| {}), three(|_, s| s.udp = true));
    for (config, of_tcp, of_udp) in [
        (Config { tcp: true, udp: false }, 1, 3),
        (Config { tcp: false, udp: true }, 3, 1),
        (Config { tcp: false, udp: false }, 3, 3),
    ] {
        let mut coalescer = Coalescer::new(config);
        assert_eq!(coalesce(&mut coalescer, &tcp).len(), of_tcp);
        assert_eq!(coalesce(&mut coalescer, &udp).len(), of_udp);
    }
}

#[test]
fn sizes_are_bounded() {
    let run = |len: usize, count: usize, v6: bool| -> Vec<_> {
        (0..count)
            .map(|i| {
                Spec { v6, seq: (i * len) as u32, id: i as u16, payload: vec![3; len], ..Spec::default() }
                    .packet()
            })
            .collect()
    };
    assert_eq!(shape(&run(1380, 50, false)), [47, 3], "65,535 bytes");
    assert_eq!(shape(&run(1380, 50, true)), [47, 3]);
    assert_eq!(shape(&run(10, 300, false)), [128, 128, 44], "parts");
    assert_eq!(shape(&run(40_000, 2, false)), [1, 1]);
    assert_eq!(shape(&run(65_535 - 20, 2, true)), [1, 1], "IPv6 beyond 65,535 bytes");
}

#[test]
fn fragments_options_and_extensions_close_their_hosts_flows() {
    let packets = three(|_, _| {});
    let mut fragment = packets[0].clone();
    fragment[6] = 0x20;
    let mut options = Spec::default().packet();
    options[0] = 0x46;
    let opaque_v6 = |next: u8| {
        let mut packet = Spec { v6: true, ..Spec::default() }.packet();
        packet[6] = next;
        packet
    };
    for opaque in [fragment, options] {
        assert_eq!(shape(&[packets[0].clone(), opaque.clone(), packets[1].clone()]), [1, 1, 1]);
        let other = three(|_, s| s.hosts.1 = 9);
        assert_eq!(shape(&[other[0].clone(), opaque, other[1].clone()]), [2, 1], "other hosts go on");
    }
    let v6 = three(|_, s| s.v6 = true);
    for (next, expected) in [(44, vec![1, 1, 1]), (0, vec![1, 1, 1]), (58, vec![2, 1]), (50, vec![2, 1])] {
        assert_eq!(shape(&[v6[0].clone(), opaque_v6(next), v6[1].clone()]), expected, "next header {next}");
    }
}

#[test]
fn the_batch_is_bounded_and_reusable() {
    let mut coalescer = Coalescer::new(BOTH);
    let capacities =
        |c: &Coalescer| (c.flows.capacity(), c.groups.capacity(), c.merged.capacity(), c.parts.capacity());
    let before = capacities(&coalescer);
    for _ in 0..3 {
        for i in 0..MAX_PACKETS {
            let flow = (i / 2) as u16;
            let spec =
                Spec { ports: (flow, 1), seq: (i % 2 * 100) as u32, id: (i % 2) as u16, ..Spec::default() };
            let packet = spec.packet();
            let place = Place { buffer: i as u16, start: 0, len: packet.len() as u32 };
            assert_eq!(coalescer.push(&packet, place), Ok(()));
        }
        assert_eq!(coalescer.push(&[], Place { buffer: 0, start: 0, len: 0 }), Err(Full));
        assert_eq!(coalescer.len(), MAX_PACKETS);
        let mut parts = Vec::new();
        coalescer.drain(|_, places| parts.push(places.len()));
        assert_eq!(parts[..MAX_FLOWS], [2; MAX_FLOWS]);
        assert!(parts[MAX_FLOWS..].iter().all(|n| *n == 1), "flows beyond the table go alone");
    }
    assert_eq!(capacities(&coalescer), before, "nothing was allocated");
}

#[test]
fn padding_is_cut_off() {
    let mut packets = three(|_, _| {});
    packets[1].extend([0; 12]);
    let writes = coalesced(&packets);
    packets[1].truncate(140);
    assert_eq!(cut(&writes[0]), packets);
    let mut single = vec![packets[0].clone()];
    single[0].extend([0; 7]);
    assert_eq!(coalesced(&single)[0][10..], packets[0]);
}

/// The ports of an unfragmented test packet, or nothing.
fn flow_of(packet: &[u8]) -> Option<(u8, [u8; 4])> {
    let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
    Some((packet[0] >> 4, packet.get(at..at + 4)?.try_into().unwrap()))
}

proptest! {
    #[test]
    fn undoes_splitting((spec, size) in supers()) {
        let fits = spec.headers() + spec.payload.len() <= MAX_BYTES;
        let packets = cut(&spec.read(size));
        let writes = coalesced(&packets);
        if fits && packets.len() > 1 {
            prop_assert_eq!(writes, vec![spec.read(size)]);
        } else if packets.len() == 1 {
            prop_assert_eq!(writes, vec![[vec![0; 10], spec.packet()].concat()]);
        }
    }

    /// Flows of all kinds, interleaved at random and spoiled here and there: cut again, each flow's packets are
    /// the same ones in the same order.
    #[test]
    fn order_and_bytes_of_every_flow_are_kept(
        steps in proptest::collection::vec((0u16..6, 0u8..24, any::<u8>()), 1..300),
        sizes in proptest::collection::vec(1usize..300, 6),
    ) {
        let mut specs: Vec<Spec> = (0u16..6)
            .map(|f| {
                let seq = u32::MAX - 500;
                Spec { v6: f & 1 == 1, udp: f >= 4, ports: (f, 9), df: f != 2, seq, ..Spec::default() }
            })
            .collect();
        let mut packets = Vec::new();
        for (flow, event, byte) in steps {
            let spec = &mut specs[usize::from(flow)];
            spec.payload = vec![byte; sizes[usize::from(flow)]];
            spec.flags = 0x10;
            match event {
                0 => spec.payload.truncate(usize::from(byte) % spec.payload.len()),
                1 => spec.flags |= 0x08,
                2 => spec.flags = byte,
                3 => spec.tos ^= 1,
                4 => spec.window += 1,
                5 => spec.seq = spec.seq.wrapping_add(u32::from(byte)),
                6 => spec.id = spec.id.wrapping_add(u16::from(byte)),
                _ => {}
            }
            let mut packet = spec.packet();
            if event == 7 {
                let at = usize::from(byte) % packet.len();
                // Ports and addresses stay, so that the model knows the flow.
                if at >= spec.ip_len() + 4 { packet[at] ^= 0x40; }
            }
            packets.push(packet);
            spec.seq = spec.seq.wrapping_add(spec.payload.len() as u32);
            spec.id = spec.id.wrapping_add(1);
        }
        let out: Vec<Vec<u8>> = coalesced(&packets)
            .iter()
            .flat_map(|write| if write[..10] == [0; 10] { vec![write[10..].to_vec()] } else { cut(write) })
            .collect();
        prop_assert_eq!(out.len(), packets.len());
        for flow in 0u16..6 {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                let [high, low] = flow.to_be_bytes();
                let version = if flow & 1 == 1 { 6 } else { 4 };
                all.iter().filter(|p| flow_of(p) == Some((version, [high, low, 0, 9]))).cloned().collect()
            };
            prop_assert_eq!(of(&out), of(&packets));
        }
    }

    /// Whatever comes goes out once, whole or merged; what is merged is intact.
    #[test]
    fn hostile_packets_never_panic(
        packets in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..120), 0u8..5), 0..40),
        damaged in proptest::collection::vec((0usize..60, any::<u8>(), 0usize..300), 0..20),
    ) {
        let mut all = Vec::new();
        for (mut bytes, kind) in packets {
            if bytes.len() >= 20 {
                bytes[0] = [0x45, 0x60, 0x46, 0x4f, 0x00][usize::from(kind)];
                let len = bytes.len() as u16;
                bytes[2..4].copy_from_slice(&len.to_be_bytes());
                bytes[4..6].copy_from_slice(&len.saturating_sub(40).to_be_bytes());
                bytes[6] = if kind == 1 { 6 } else { 0 };
                bytes[9] = if bytes[9] & 1 == 0 { 6 } else { 17 };
            }
            all.push(bytes);
        }
        for (index, (at, value, len)) in damaged.into_iter().enumerate() {
            let mut packet = three(|_, _| {})[index % 3].clone();
            packet[at] = value;
            packet.truncate(len);
            all.push(packet);
        }
        let mut packets_out = 0;
        for write in coalesced(&all) {
            if write[..10] == [0; 10] {
                packets_out += 1;
            } else {
                let again = cut(&write);
                again.iter().for_each(|packet| assert_intact(packet));
                packets_out += again.len();
            }
        }
        prop_assert_eq!(packets_out, all.len());
    }
}

/// `cargo test --release --lib coalesce -- --ignored --nocapture`: nanoseconds per 1420-byte packet.
#[test]
#[ignore = "measurement: what coalescing costs"]
fn cost_per_packet() {
    for (name, v6, udp) in [("TCPv4", false, false), ("TCPv6", true, false), ("UDPv4", false, true)] {
        let mut spec = Spec { v6, udp, ..Spec::default() };
        let size = 1420 - spec.headers();
        spec.payload = noise(1, size * 44);
        let packets = cut(&spec.read(size as u16));
        let mut coalescer = Coalescer::new(BOTH);
        let rounds = 20_000;
        let mut writes = 0;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            for (index, packet) in packets.iter().enumerate() {
                let place = Place { buffer: index as u16, start: 0, len: packet.len() as u32 };
                coalescer.push(std::hint::black_box(packet), place).unwrap();
            }
            coalescer.drain(|_, places| writes += places.len());
        }
        println!("coalesce {name}: {} ns per packet", start.elapsed().as_nanos() / writes as u128);
    }
}
