//! Packets for tests, built and checked byte by byte with nothing of the code under test but the naive checksum of
//! its tests.

use proptest::prelude::*;

use crate::wire::checksum::tests::naive;

/// A TCP or UDP packet, or a super-packet.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) hosts: (u8, u8),
    pub(crate) ports: (u16, u16),
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) df: bool,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// TCP options; a multiple of 4 bytes, 40 at most.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            hosts: (1, 2),
            ports: (40_000, 443),
            tos: 0,
            ttl: 64,
            id: 0xfffe,
            df: true,
            seq: 0xffff_ff00,
            ack: 77,
            flags: 0x10,
            window: 501,
            options: Vec::new(),
            payload: vec![7; 100],
        }
    }
}

impl Spec {
    pub(crate) fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    pub(crate) fn headers(&self) -> usize {
        self.ip_len() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    /// The packet with all its checksums complete.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let (protocol, checksum_at) = if self.udp { (17, 6) } else { (6, 16) };
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        let transport_len = self.headers() - self.ip_len() + self.payload.len();
        if self.udp {
            transport.extend((transport_len as u16).to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend(self.seq.to_be_bytes());
            transport.extend(self.ack.to_be_bytes());
            transport.extend([((5 + self.options.len() / 4) << 4) as u8, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&self.options);
        }
        transport.extend(&self.payload);

        let mut packet = Vec::new();
        if self.v6 {
            packet.extend([0x60 | self.tos >> 4, self.tos << 4 | 0x3, 0x45, 0x67]);
            packet.extend((transport_len as u16).to_be_bytes());
            packet.extend([protocol, self.ttl]);
            for host in [self.hosts.0, self.hosts.1] {
                packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        } else {
            packet.extend([0x45, self.tos]);
            packet.extend(((20 + transport_len) as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            packet.extend([100, 64, 0, self.hosts.0, 100, 64, 0, self.hosts.1]);
            let sum = !naive(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let sum = !naive(&checked_text(&packet, protocol, &transport));
        let sum = if self.udp && sum == 0 { 0xffff } else { sum };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        packet.extend(transport);
        packet
    }

    /// What the kernel hands out: a virtio-net header and a packet whose checksum is the pseudo-header's sum.
    pub(crate) fn read(&self, gso_size: u16) -> Vec<u8> {
        let mut packet = self.packet();
        let checksum_at = if self.udp { 6 } else { 16 };
        let protocol = packet[if self.v6 { 6 } else { 9 }];
        let (ip, transport) = packet.split_at_mut(self.ip_len());
        let mut pseudo = checked_text(ip, protocol, transport);
        pseudo.truncate(pseudo.len() - transport.len());
        transport[checksum_at..checksum_at + 2].copy_from_slice(&naive(&pseudo).to_be_bytes());
        let gso_type = match (gso_size, self.udp, self.v6) {
            (0, ..) => 0,
            (_, true, _) => 5,
            (_, false, false) => 1,
            (_, false, true) => 4,
        };
        let mut read = vec![1, gso_type];
        for field in [self.headers() as u16, gso_size, self.ip_len() as u16, checksum_at as u16] {
            read.extend(field.to_le_bytes());
        }
        read.extend(packet);
        read
    }
}

/// Pseudo-header and transport, as RFC 9293 and RFC 8200 draw them.
fn checked_text(ip: &[u8], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut text = if ip[0] >> 4 == 4 { ip[12..20].to_vec() } else { ip[8..40].to_vec() };
    text.extend((transport.len() as u32).to_be_bytes());
    text.extend([0, 0, 0, protocol]);
    text.extend(transport);
    text
}

/// Asserts lengths and every checksum of a packet without extension headers.
pub(crate) fn assert_intact(packet: &[u8]) {
    let (ip_len, protocol, total) = if packet[0] >> 4 == 4 {
        let len = usize::from(packet[0] & 15) * 4;
        assert_eq!(naive(&packet[..len]), 0xffff, "IPv4 header checksum");
        (len, packet[9], usize::from(u16::from_be_bytes([packet[2], packet[3]])))
    } else {
        (40, packet[6], 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])))
    };
    assert_eq!(total, packet.len(), "IP length");
    let transport = &packet[ip_len..];
    assert_eq!(naive(&checked_text(&packet[..ip_len], protocol, transport)), 0xffff, "transport checksum");
    if protocol == 17 {
        assert_eq!(usize::from(u16::from_be_bytes([transport[4], transport[5]])), transport.len());
        assert_ne!(transport[6..8], [0, 0], "UDP checksum");
    }
}

/// Super-packets of every kind, and a segment size for each.
pub(crate) fn supers() -> impl Strategy<Value = (Spec, u16)> {
    let flags = prop::sample::select(vec![0x10u8, 0x18]);
    let options = (0usize..=10).prop_flat_map(|words| proptest::collection::vec(any::<u8>(), words * 4));
    let identity = (any::<bool>(), any::<bool>(), any::<u8>(), any::<u16>(), any::<bool>(), any::<u32>());
    let payload = prop_oneof![1usize..4000, 4000usize..65_000];
    (identity, flags, options, payload, 1u16..3000, any::<u64>()).prop_map(
        |(identity, flags, options, len, size, seed)| {
            let (v6, udp, tos, id, df, seq) = identity;
            let len = if udp { len.min(usize::from(size) * 64) } else { len.min(usize::from(size) * 128) };
            let mut spec = Spec { v6, udp, tos, id, df, seq, flags, options, ..Spec::default() };
            spec.payload = noise(seed, len);
            (spec, size)
        },
    )
}

/// Bytes that look random and are cheap to make (xorshift).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
