//! Packets to work on: 100.64.0.2 to 100.64.0.1.

use ringway::wire::checksum::pseudo_header;
use ringway::wire::{ip, tcp, virtio};

/// What a tunnel of MTU 1420 carries of a TCP stream with time stamps.
pub(crate) const MSS: usize = 1368;
/// TCP's header with time stamps.
const TCP_LEN: usize = 32;

/// An IPv4 packet of `protocol` around `rest`, its header's checksum right.
fn v4(protocol: u8, rest: &[u8]) -> Vec<u8> {
    let total = (ip::V4_LEN + rest.len()) as u16;
    let mut packet = vec![0; ip::V4_LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    (packet[6], packet[8], packet[9]) = (0x40, 64, protocol);
    packet[12..16].copy_from_slice(&[100, 64, 0, 2]);
    packet[16..20].copy_from_slice(&[100, 64, 0, 1]);
    let sum = ringway::wire::checksum::Sum::default().add_bytes(&packet).checksum();
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(rest);
    packet
}

/// A TCP segment with `len` bytes of payload from `sequence` on, its checksum right.
pub(crate) fn tcp_segment(sequence: u32, len: usize) -> Vec<u8> {
    let mut segment = vec![0x5a; TCP_LEN + len];
    segment[..TCP_LEN].fill(0);
    segment[..4].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    (segment[12], segment[13]) = (0x80, tcp::ACK);
    segment[14..16].copy_from_slice(&[0x10, 0]);
    // No operation twice, then time stamps.
    segment[20..24].copy_from_slice(&[1, 1, 8, 10]);
    let mut packet = v4(ip::TCP, &segment);
    let header = ip::Header::parse(&packet).unwrap();
    let sum =
        pseudo_header(header.src, header.dst, ip::TCP, segment.len() as u32).add_bytes(&segment).checksum();
    packet[ip::V4_LEN + 16..ip::V4_LEN + 18].copy_from_slice(&sum);
    packet
}

/// `segments` segments' worth of a stream as the TUN queue yields them: one read.
pub(crate) fn super_packet(segments: usize) -> Vec<u8> {
    let header_len = ip::V4_LEN + TCP_LEN;
    let mut read = vec![0; virtio::LEN];
    (read[0], read[1]) = (virtio::NEEDS_CSUM, virtio::GSO_TCPV4);
    read[2..4].copy_from_slice(&(header_len as u16).to_le_bytes());
    read[4..6].copy_from_slice(&(MSS as u16).to_le_bytes());
    read[6..8].copy_from_slice(&(ip::V4_LEN as u16).to_le_bytes());
    read[8..10].copy_from_slice(&16_u16.to_le_bytes());
    read.extend_from_slice(&tcp_segment(1, segments * MSS));
    read
}

/// One UDP datagram with `len` bytes of payload and no checksum, as the TUN queue yields it.
pub(crate) fn udp_read(len: usize) -> Vec<u8> {
    let mut datagram = vec![0x5a; 8 + len];
    datagram[..8].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 0]);
    datagram[4..6].copy_from_slice(&((8 + len) as u16).to_be_bytes());
    let mut read = vec![0; virtio::LEN];
    read.extend_from_slice(&v4(ip::UDP, &datagram));
    read
}
