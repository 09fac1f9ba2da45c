//! What lies inside the tunnel, and what the kernel writes beside a packet.

use crate::dataplane::io::recvmsg;
use crate::dataplane::offload::coalesce::{Coalescer, Config, Place};
use crate::dataplane::offload::split::{self, SuperPacket};
use crate::sys::socket;
use crate::wire::checksum::Sum;
use crate::wire::{ip, virtio};

/// Segments of one super-packet that are looked at from each end.
const LOOKED_AT: usize = 16;

/// Reads an IP packet and combines its ECN codepoint with an outer one: nothing but the TOS byte and the header's
/// checksum changes, and a right checksum stays right. Input: the outer TOS byte, the packet.
pub fn inner_packet(data: &[u8]) {
    let Some((&tos, packet)) = data.split_first() else { return };
    let mut changed = packet.to_vec();
    ip::decapsulate_ecn(tos, &mut changed);
    assert_eq!(changed.len(), packet.len());
    let Some(before) = ip::Header::parse(packet) else { return };
    assert!(before.header_len <= before.total_len && before.total_len <= packet.len());
    assert_eq!(ip::outer_tos(before.tos) >> 2, 0, "DSCP stays inside");
    let right = |packet: &[u8]| Sum::default().add_bytes(&packet[..before.header_len]).is_valid();
    let after = ip::Header::parse(&changed);
    assert_eq!(after.map(|after| ip::Header { tos: before.tos, ..after }), Some(before));
    if before.version() == ip::Version::V4 {
        assert_eq!(right(&changed), right(packet));
    }
    assert_eq!(changed[before.header_len..], packet[before.header_len..]);
}

/// Cuts a read from the TUN queue, with a virtio-net header and taken as one without. Every piece is an IP packet of
/// the length that was promised. Input: the read.
pub fn split(data: &[u8]) {
    for parsed in [split::parse(data), split::parse_bare(data)] {
        let Ok(packet) = parsed else { continue };
        let count = packet.segments();
        assert!(count >= 1);
        let ends = (0..count.min(LOOKED_AT)).chain(count.saturating_sub(LOOKED_AT)..count);
        for index in ends {
            let segment = piece(&packet, index);
            assert!(segment.len() <= packet.segment_len(0));
            let header = ip::Header::parse(&segment);
            assert_eq!(header.map(|header| header.total_len), Some(segment.len()), "segment {index}");
            assert_eq!(header.map(|header| header.dst), Some(packet.dst()));
        }
        assert_eq!(packet.segment_len(count), 0);
        assert_eq!(packet.write_segment(count, &mut [0; 2048]), None);
    }
}

fn piece(packet: &SuperPacket<'_>, index: usize) -> Vec<u8> {
    let len = packet.segment_len(index);
    let mut out = vec![0; len];
    assert_eq!(packet.write_segment(index, &mut out), Some(len));
    if len > 0 {
        assert_eq!(packet.write_segment(index, &mut out[..len - 1]), None, "a byte too short");
    }
    out
}

/// Coalesces packets and cuts what came out: the same packets, each once. Input: a byte (1: TCP, 2: UDP is merged),
/// then packets, each behind its length as two bytes, big-endian.
pub fn coalesce(data: &[u8]) {
    let Some((&what, mut rest)) = data.split_first() else { return };
    let mut packets = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let (packet, next) = behind.split_at(usize::from(u16::from_be_bytes(*len)).min(behind.len()));
        packets.push(packet);
        rest = next;
    }
    let mut coalescer = Coalescer::new(Config { tcp: what & 1 != 0, udp: what & 2 != 0 });
    for (buffer, packet) in packets.iter().enumerate() {
        let place = Place { buffer: buffer as u16, start: 0, len: packet.len() as u32 };
        if coalescer.push(packet, place).is_err() {
            return;
        }
    }
    let mut seen = vec![0; packets.len()];
    coalescer.drain(|header, places| {
        places.iter().for_each(|place| seen[usize::from(place.buffer)] += 1);
        let original = |place: &Place| {
            let packet = packets[usize::from(place.buffer)];
            ip::Header::parse(packet).map_or(packet, |header| &packet[..header.total_len])
        };
        let bytes = |place: &Place| {
            let packet = packets[usize::from(place.buffer)];
            &packet[place.start as usize..(place.start + place.len) as usize]
        };
        let mut write = header.to_vec();
        places.iter().for_each(|place| write.extend(bytes(place)));
        if places.len() == 1 && header.len() == virtio::LEN {
            assert_eq!(&write[virtio::LEN..], original(&places[0]));
            return;
        }
        let Ok(merged) = split::parse(&write) else { return seen.fill(usize::MAX) };
        assert_eq!(merged.segments(), places.len());
        for (index, place) in places.iter().enumerate() {
            assert_eq!(comparable(&piece(&merged, index)), comparable(original(place)));
        }
    });
    assert!(
        seen.iter().all(|&times| times == 1),
        "each packet once, and each super-packet well-formed: {seen:?}"
    );
    assert!(coalescer.is_empty());
}

/// A packet without what merging may change: the identification of an IPv4 packet with "don't fragment" (RFC 6864),
/// and so its header's checksum.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if ip::Header::parse(&packet).is_some_and(|h| h.version() == ip::Version::V4 && h.dont_fragment) {
        packet[ip::V4_ID_AT..ip::V4_ID_AT + 2].fill(0);
        packet[ip::V4_CHECKSUM_AT..ip::V4_CHECKSUM_AT + 2].fill(0);
    }
    packet
}

/// Reads a sender's address and control messages as the kernel would write them. Input: a name in its fixed room,
/// then control messages.
pub fn received(data: &[u8]) {
    let (name, control) = data.split_at(data.len().min(recvmsg::NAME_LEN));
    if let Some(remote) = recvmsg::parse_name(name) {
        assert!(name.len() >= if remote.is_ipv4() { 8 } else { 28 });
    }
    let read = socket::parse_control(control);
    assert_ne!(read.segment, Some(0), "a run is cut by this length");
    // What is said early holds, whatever is cut off behind it.
    if control.is_empty() {
        assert_eq!(read, socket::Control::default());
    }
}
