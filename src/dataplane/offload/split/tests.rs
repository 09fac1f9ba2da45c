use super::*;
use crate::dataplane::offload::packets::{Spec, assert_intact, noise, supers};
use proptest::prelude::*;

fn segments(read: &[u8]) -> Vec<Vec<u8>> {
    let packet = parse(read).unwrap();
    (0..packet.segments())
        .map(|index| {
            let mut out = vec![0xee; packet.segment_len(index)];
            assert_eq!(packet.write_segment(index, &mut out), Some(out.len()));
            out
        })
        .collect()
}

#[test]
fn a_plain_packet_is_copied_and_trimmed() {
    let packet = Spec::default().packet();
    let mut read = vec![0; 10];
    read.extend(&packet);
    read.extend([1, 2, 3]);
    assert_eq!(segments(&read), [packet]);
    let parsed = parse(&read).unwrap();
    assert_eq!(parsed.src(), "100.64.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(parsed.dst(), "100.64.0.2".parse::<IpAddr>().unwrap());
}

#[test]
fn a_partial_checksum_is_completed() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        for len in [0, 1, 2, 33, 1371] {
            let spec = Spec { v6, udp, payload: noise(9, len), ..Spec::default() };
            assert_eq!(segments(&spec.read(0)), [spec.packet()]);
        }
    }
}

#[test]
fn a_completed_udp_checksum_is_never_zero() {
    // Search two payload bytes that make the sum 0xffff.
    let hit = (0..=u16::MAX).map(|word| Spec {
        udp: true,
        payload: word.to_be_bytes().to_vec(),
        ..Spec::default()
    });
    let zero = hit.into_iter().find(|spec| spec.packet()[26..28] == [0xff, 0xff]).unwrap();
    assert_eq!(segments(&zero.read(0)), [zero.packet()]);
    assert_eq!(segments(&zero.read(2)), [zero.packet()]);
}

#[test]
fn flags_ids_and_sequence_numbers() {
    let spec = Spec { flags: 0x80 | 0x40 | 0x10 | 0x08 | 0x01, payload: noise(1, 250), ..Spec::default() };
    let cut = segments(&spec.read(100));
    let field = |at: usize| cut.iter().map(|p| u16::from_be_bytes([p[at], p[at + 1]])).collect::<Vec<_>>();
    assert_eq!(cut.iter().map(|p| p[33]).collect::<Vec<_>>(), [0xd0, 0x50, 0x59]);
    assert_eq!(field(4), [0xfffe, 0xffff, 0], "identification wraps");
    assert_eq!(field(2), [140, 140, 90]);
    let sequence: Vec<_> = cut.iter().map(|p| u32::from_be_bytes(p[24..28].try_into().unwrap())).collect();
    assert_eq!(sequence, [0xffff_ff00, 0xffff_ff64, 0xffff_ffc8]);
}

#[test]
fn ipv6_extension_headers_are_carried_along() {
    let spec = Spec { v6: true, payload: noise(3, 300), ..Spec::default() };
    let mut read = spec.read(128);
    // A destination options header of 8 bytes (PadN) between IPv6 and TCP.
    read.splice(50..50, [6, 0, 1, 4, 0, 0, 0, 0]);
    let len = u16::from_be_bytes([read[14], read[15]]) + 8;
    read[14..16].copy_from_slice(&len.to_be_bytes());
    read[16] = 60;
    read[6] = 48;
    for (index, mut packet) in segments(&read).into_iter().enumerate() {
        assert_eq!(packet.drain(40..48).collect::<Vec<_>>(), [6, 0, 1, 4, 0, 0, 0, 0]);
        packet[6] = 6;
        let len = u16::from_be_bytes([packet[4], packet[5]]) - 8;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        assert_intact(&packet);
        assert_eq!(packet.len(), if index == 2 { 60 + 44 } else { 60 + 128 });
    }
    read[6] = 40;
    assert_eq!(parse(&read).unwrap_err(), SplitError::Checksum);
}

#[test]
fn lying_virtio_headers() {
    let tcp = Spec { payload: noise(5, 500), ..Spec::default() }.read(100);
    let lie = |at: usize, value: u8| {
        let mut read = tcp.clone();
        read[at] = value;
        parse(&read).map(|p| p.segments())
    };
    assert_eq!(lie(2, 0xff), Ok(5), "hdr_len is not trusted");
    assert_eq!(lie(0, 0), Ok(5), "without NEEDS_CSUM the headers say it all");
    for kind in [2, 3, 4, 6, 0x20, 0x40, 0x84, 0x85] {
        assert_eq!(lie(1, kind), Err(SplitError::Segmentation), "type {kind:#x}");
    }
    assert_eq!(lie(1, 0x81), Ok(5));
    assert_eq!(lie(1, 5), Err(SplitError::Checksum), "UDP type on a TCP packet");
    assert_eq!(lie(4, 0), Err(SplitError::Segmentation), "size 0");
    assert_eq!(lie(6, 21), Err(SplitError::Checksum));
    assert_eq!(lie(7, 0xff), Err(SplitError::Checksum));
    assert_eq!(lie(8, 6), Err(SplitError::Checksum));
    assert_eq!(lie(9, 0xff), Err(SplitError::Checksum));
    assert_eq!(lie(10, 0x46), Err(SplitError::Checksum), "an option moves the transport header");
    assert_eq!(lie(10, 0x4f), Err(SplitError::Checksum));
    assert_eq!(lie(10, 0x55), Err(SplitError::Ip));
    assert_eq!(lie(16, 0x20), Err(SplitError::Segmentation), "a fragment");
    assert_eq!(lie(19, 17), Err(SplitError::Transport), "TCP type on a UDP packet");
    assert_eq!(lie(42, 0x40), Err(SplitError::Transport), "data offset");
    assert_eq!(parse(&tcp[..9]).unwrap_err(), SplitError::TooShort);
    assert_eq!(parse(&tcp[..tcp.len() - 1]).unwrap_err(), SplitError::Ip);
    let mut plain = Spec::default().read(0);
    for (start, offset) in [(19u16, 16u16), (20, 119), (138, 1), (0xffff, 0xffff)] {
        plain[6..8].copy_from_slice(&start.to_le_bytes());
        plain[8..10].copy_from_slice(&offset.to_le_bytes());
        assert_eq!(parse(&plain).unwrap_err(), SplitError::Checksum, "{start} {offset}");
    }
}

/// Headers as Linux 6.18 handed them out for a UDP_SEGMENT send of 260 bytes, 100 each, over IPv4 and IPv6.
#[test]
fn reads_of_a_real_kernel() {
    let v4: &[u8] = &[
        1, 5, 0x1c, 0, 0x64, 0, 0x14, 0, 6, 0, // virtio-net
        0x45, 0, 1, 0x20, 0xf0, 0x76, 0x40, 0, 0x40, 0x11, 0x80, 0xd3, 100, 64, 0, 2, 100, 64, 0,
        1, // IPv4
        0x01, 0xbb, 0, 9, 1, 0x0c, 0xc9, 0xa0, // UDP
    ];
    let mut v6 = vec![1, 5, 0x30, 0, 0x64, 0, 0x28, 0, 6, 0, 0x60, 0x0b, 0xe4, 0x2f, 1, 0x0c, 0x11, 0x40];
    for host in [2, 1] {
        v6.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    v6.extend([0x01, 0xbb, 0, 9, 1, 0x0c, 0xfb, 0x21]);
    for (headers, overhead) in [(v4, 28), (&v6[..], 48)] {
        let cut = segments(&[headers, &[b'x'; 260]].concat());
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 60].map(|len| len + overhead));
        cut.iter().for_each(|packet| assert_intact(packet));
    }
}

#[test]
fn short_buffers_take_nothing() {
    let read = Spec { payload: noise(5, 500), ..Spec::default() }.read(200);
    let packet = parse(&read).unwrap();
    assert_eq!(packet.write_segment(0, &mut [0; 239]), None);
    assert_eq!(packet.write_segment(0, &mut [0; 240]), Some(240));
    assert_eq!(packet.write_segment(3, &mut [0; 2000]), None);
    assert_eq!(packet.segment_len(3), 0);
}

#[test]
fn the_longest_packets() {
    let v6 = Spec { v6: true, payload: noise(1, 65_535 - 20), ..Spec::default() };
    assert_eq!(segments(&v6.read(65_530)), [v6.packet()]);
    assert_eq!(segments(&v6.read(0)), [v6.packet()]);
    let v4 = Spec { payload: noise(1, 65_535 - 40), ..Spec::default() };
    let ones = segments(&v4.read(1));
    assert_eq!(ones.len(), 65_495);
    assert_intact(ones.last().unwrap());
}

proptest! {
    #[test]
    fn segments_are_intact_and_complete((spec, size) in supers()) {
        let read = spec.read(size);
        let cut = segments(&read);
        prop_assert_eq!(cut.len(), spec.payload.len().div_ceil(usize::from(size)));
        let mut stream = Vec::<u8>::new();
        for (index, packet) in cut.iter().enumerate() {
            assert_intact(packet);
            let data = &packet[spec.headers()..];
            prop_assert!(index + 1 == cut.len() || data.len() == usize::from(size));
            let model = Spec {
                payload: data.to_vec(),
                id: spec.id.wrapping_add(index as u16),
                seq: spec.seq.wrapping_add(stream.len() as u32),
                flags: if index + 1 == cut.len() { spec.flags } else { spec.flags & !0x09 },
                ..spec.clone()
            };
            prop_assert_eq!(packet, &model.packet());
            stream.extend(data);
        }
        prop_assert_eq!(stream, spec.payload);
    }

    #[test]
    fn hostile_reads_never_panic(
        mut read in proptest::collection::vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![0u8, 1, 4, 5, 0x81]),
        first in prop::sample::select(vec![0x45u8, 0x46, 0x60]),
    ) {
        if read.len() > 20 {
            read[1] = kind;
            read[10] = first;
            let len = read.len() - 10;
            read[12] = 0;
            read[13] = len as u8;
            read[14..16].copy_from_slice(&(len.saturating_sub(40) as u16).to_be_bytes());
        }
        if let Ok(packet) = parse(&read) {
            for index in 0..packet.segments() {
                let mut out = [0; 256];
                prop_assert_eq!(packet.write_segment(index, &mut out), Some(packet.segment_len(index)));
            }
        }
    }

    #[test]
    fn damaged_reads_never_panic(
        (spec, size) in supers(),
        at in 0usize..80,
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut read = spec.read(size);
        if let Some(byte) = read.get_mut(at) { *byte = value; }
        read.truncate(cut.index(read.len() * 4).saturating_add(1));
        if let Ok(packet) = parse(&read) {
            let mut out = vec![0; 70_000];
            let count = packet.segments();
            for index in [0, count / 2, count - 1] {
                prop_assert_eq!(packet.write_segment(index, &mut out), Some(packet.segment_len(index)));
            }
        }
    }
}

/// `cargo test --release --lib split -- --ignored --nocapture`: nanoseconds per 1420-byte segment.
#[test]
#[ignore = "measurement: what splitting costs"]
fn cost_per_segment() {
    for (name, v6, udp) in [("TCPv4", false, false), ("TCPv6", true, false), ("UDPv4", false, true)] {
        let mut spec = Spec { v6, udp, ..Spec::default() };
        let size = 1420 - spec.headers();
        spec.payload = noise(1, size * 44);
        let read = spec.read(size as u16);
        let mut out = vec![0; 70_000];
        let rounds = 20_000;
        let start = std::time::Instant::now();
        let mut segments = 0;
        for _ in 0..rounds {
            let packet = parse(std::hint::black_box(&read)).unwrap();
            for index in 0..packet.segments() {
                packet.write_segment(index, &mut out[index * 1452..]).unwrap();
            }
            segments += packet.segments();
        }
        println!("split {name}: {} ns per segment", start.elapsed().as_nanos() / segments as u128);
    }
}
