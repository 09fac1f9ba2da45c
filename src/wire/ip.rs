//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, parsed once into one typed view; and ECN across a tunnel, exactly as
//! the Linux WireGuard module combines it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{be16, checksum, put16};

/// Length of an IPv4 header without options, bytes.
pub const V4_LEN: usize = 20;
/// Length of the fixed IPv6 header, bytes.
pub const V6_LEN: usize = 40;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IPv6 extension headers that are walked: hop-by-hop, routing, fragment, destination options.
const V6_EXTENSIONS: [u8; 4] = [0, 43, V6_FRAGMENT, 60];
/// Next header number of the IPv6 fragment header (RFC 8200 section 4.5), eight bytes long.
const V6_FRAGMENT: u8 = 44;
/// Extension headers that are walked before a packet is given up: RFC 8200 names each once, one of them twice.
const V6_MOST_EXTENSIONS: usize = 8;

/// Offset of the total length in an IPv4 header.
pub const V4_TOTAL_LEN_AT: usize = 2;
/// Offset of the identification in an IPv4 header.
pub const V4_ID_AT: usize = 4;
/// Offset of flags and fragment offset in an IPv4 header.
pub const V4_FRAGMENT_AT: usize = 6;
/// Offset of the header checksum in an IPv4 header.
pub const V4_CHECKSUM_AT: usize = 10;
/// Offset of the payload length in an IPv6 header.
pub const V6_PAYLOAD_LEN_AT: usize = 4;

/// "Don't fragment", in the 16-bit field at [`V4_FRAGMENT_AT`].
pub const V4_DONT_FRAGMENT: u16 = 0x4000;
/// "More fragments" and the fragment offset, in the 16-bit field at [`V4_FRAGMENT_AT`]: not zero in a fragment.
const V4_FRAGMENT_MASK: u16 = 0x3fff;
/// The fragment offset alone: zero in a whole packet and in a first fragment.
const V4_OFFSET_MASK: u16 = 0x1fff;

/// Low two bits of TOS or traffic class (RFC 3168).
pub const ECN_MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What an IP header says, checked against the bytes it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Bytes of the IPv4 header with its options (20 to 60), or 40 for IPv6: extension headers are payload here.
    pub header_len: usize,
    /// Bytes of the whole packet, header included; at most the bytes that were given.
    pub total_len: usize,
    /// IPv4 protocol, or the first next header of IPv6.
    pub protocol: u8,
    /// TOS byte or traffic class: DSCP and ECN.
    pub tos: u8,
    /// IPv4 with "don't fragment"; always true for IPv6, which no router fragments.
    pub dont_fragment: bool,
    /// An IPv4 fragment (of any offset). IPv6 fragments show as `protocol` 44.
    pub fragment: bool,
}

impl Header {
    /// Parses and checks version nibble, header length and total length; bytes beyond the total length (WireGuard's
    /// padding) are allowed. `None` if this is no IP packet or shorter than it says. Checksums are not looked at.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    #[inline]
    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        let h: &[u8; V4_LEN] = bytes.first_chunk()?;
        let header_len = usize::from(h[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([h[2], h[3]]));
        if header_len < V4_LEN || total_len < header_len || total_len > bytes.len() {
            return None;
        }
        let fragment = u16::from_be_bytes([h[6], h[7]]);
        Some(Self {
            src: IpAddr::V4(Ipv4Addr::new(h[12], h[13], h[14], h[15])),
            dst: IpAddr::V4(Ipv4Addr::new(h[16], h[17], h[18], h[19])),
            header_len,
            total_len,
            protocol: h[9],
            tos: h[1],
            dont_fragment: fragment & V4_DONT_FRAGMENT != 0,
            fragment: fragment & V4_FRAGMENT_MASK != 0,
        })
    }

    #[inline]
    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        let h: &[u8; V6_LEN] = bytes.first_chunk()?;
        let total_len = V6_LEN + usize::from(u16::from_be_bytes([h[4], h[5]]));
        if total_len > bytes.len() {
            return None;
        }
        let (_, addresses) = h.split_last_chunk::<32>()?;
        let (src, dst) = addresses.split_first_chunk::<16>()?;
        Some(Self {
            src: IpAddr::V6(Ipv6Addr::from(*src)),
            dst: IpAddr::V6(Ipv6Addr::from(*dst.first_chunk::<16>()?)),
            header_len: V6_LEN,
            total_len,
            protocol: h[6],
            tos: h[0] << 4 | h[1] >> 4,
            dont_fragment: true,
            fragment: false,
        })
    }

    /// The IP version.
    #[must_use]
    pub fn version(&self) -> Version {
        if self.src.is_ipv4() { Version::V4 } else { Version::V6 }
    }

    /// The protocol above IP and the offset of its header in `packet`, whose header this is; IPv6 extension headers are
    /// walked. `None` for a fragment that is not the first, for more extension headers than are sensible, and for
    /// one that is cut short.
    #[must_use]
    pub fn upper_layer(&self, packet: &[u8]) -> Option<(u8, usize)> {
        let mut at = self.header_len;
        if self.version() == Version::V4 {
            let first = be16(packet, V4_FRAGMENT_AT)? & V4_OFFSET_MASK == 0;
            return first.then_some((self.protocol, at));
        }
        let mut protocol = self.protocol;
        for _ in 0..V6_MOST_EXTENSIONS {
            if !V6_EXTENSIONS.contains(&protocol) {
                return Some((protocol, at));
            }
            let [next, units] = be16(packet, at)?.to_be_bytes();
            let length = if protocol == V6_FRAGMENT {
                // The offset is the upper 13 bits.
                if be16(packet, at + 2)? >> 3 != 0 {
                    return None;
                }
                8
            } else {
                (usize::from(units) + 1) * 8
            };
            (protocol, at) = (next, at + length);
        }
        None
    }
}

/// The outer TOS byte or traffic class for a packet whose inner one is `inner`: DSCP 0 and the inner ECN codepoint,
/// except that CE goes out as ECT(0) (RFC 3168 section 9.1.1, full functionality; the kernel's
/// `ip_tunnel_ecn_encap(0, …)`).
#[must_use]
pub fn outer_tos(inner: u8) -> u8 {
    match inner & ECN_MASK {
        CE => ECT_0,
        codepoint => codepoint,
    }
}

/// The inner TOS after decapsulation, as the kernel's `INET_ECN_decapsulate` has it: CE outside marks an
/// ECN-capable inner packet CE, ECT(1) outside turns an inner ECT(0) into ECT(1). A packet that is not ECN-capable
/// never changes and, as in the kernel's module (and unlike RFC 6040), is not dropped under an outer CE.
#[must_use]
pub fn decapsulated_tos(outer: u8, inner: u8) -> u8 {
    match (outer & ECN_MASK, inner & ECN_MASK) {
        (CE, ECT_0 | ECT_1) => inner | CE,
        (ECT_1, ECT_0) => inner & !ECN_MASK | ECT_1,
        _ => inner,
    }
}

/// Applies [`decapsulated_tos`] to the packet itself; an IPv4 header checksum is updated with it. Does nothing to
/// bytes that are too short for a header or of another version.
#[inline]
pub fn decapsulate_ecn(outer_tos: u8, packet: &mut [u8]) {
    // Not ECT outside, by far the commonest, changes nothing.
    if matches!(outer_tos & ECN_MASK, NOT_ECT | ECT_0) {
        return;
    }
    let Some(old) = be16(packet, 0) else { return };
    match old >> 12 {
        4 if packet.len() >= V4_LEN => {
            let [high, inner] = old.to_be_bytes();
            let new = u16::from_be_bytes([high, decapsulated_tos(outer_tos, inner)]);
            if let Some(field) = packet.get(V4_CHECKSUM_AT..).and_then(|rest| rest.first_chunk().copied())
                && new != old
            {
                put16(packet, V4_CHECKSUM_AT, checksum::update(field, old, new));
                put16(packet, 0, new.to_be_bytes());
            }
        }
        6 if packet.len() >= V6_LEN => {
            let inner = (old >> 4) as u8;
            let new = old & 0xf00f | u16::from(decapsulated_tos(outer_tos, inner)) << 4;
            put16(packet, 0, new.to_be_bytes());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::Sum;
    use proptest::prelude::*;

    fn v4(tos: u8) -> Vec<u8> {
        let mut p = vec![0x45, tos, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = Sum::default().add_bytes(&p).checksum();
        p[10..12].copy_from_slice(&sum);
        p.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        p
    }

    fn v6(tos: u8) -> Vec<u8> {
        let mut p = vec![0x60 | tos >> 4, tos << 4 | 0xa, 0xbc, 0xde, 0, 8, 17, 64];
        p.extend([0xfd; 16]);
        p.extend([0xfe; 16]);
        p.extend([9; 8]);
        p
    }

    #[test]
    fn parses_v4() {
        let mut bytes = v4(0xb8);
        bytes.extend([0; 4]);
        let h = Header::parse(&bytes).unwrap();
        assert_eq!(
            (h.version(), h.header_len, h.total_len, h.protocol, h.tos),
            (Version::V4, 20, 28, 17, 0xb8)
        );
        assert_eq!((h.src, h.dst), ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()));
        assert!(h.dont_fragment && !h.fragment);
        for (offset, mf) in [(0u16, true), (1, false), (0x1fff, true)] {
            let field = offset | if mf { 0x2000 } else { 0 };
            bytes[6..8].copy_from_slice(&field.to_be_bytes());
            let h = Header::parse(&bytes).unwrap();
            assert!(h.fragment && !h.dont_fragment);
        }
    }

    #[test]
    fn the_upper_layer_is_found_behind_extension_headers() {
        let of = |bytes: &[u8]| Header::parse(bytes).unwrap().upper_layer(bytes);
        let mut bytes = v4(0);
        assert_eq!(of(&bytes), Some((UDP, 20)));
        bytes[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
        assert_eq!(of(&bytes), Some((UDP, 20)), "a first fragment");
        bytes[6..8].copy_from_slice(&1u16.to_be_bytes());
        assert_eq!(of(&bytes), None, "a later fragment");

        let with = |first: u8, extensions: &[u8]| {
            let mut bytes = v6(0);
            bytes.truncate(V6_LEN);
            bytes[6] = first;
            bytes[4..6].copy_from_slice(&(extensions.len() as u16).to_be_bytes());
            bytes.extend(extensions);
            bytes
        };
        assert_eq!(of(&v6(0)), Some((UDP, 40)));
        // Hop-by-hop of 16 bytes, destination options of 8, then TCP.
        let mut two = vec![60, 1];
        two.extend([0; 14]);
        two.extend([TCP, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(&with(0, &two)), Some((TCP, 64)));
        assert_eq!(of(&with(44, &[TCP, 0, 0, 1, 0, 0, 0, 9])), Some((TCP, 48)), "a first fragment");
        assert_eq!(of(&with(44, &[TCP, 0, 0, 9, 0, 0, 0, 9])), None, "a later fragment");
        assert_eq!(of(&with(0, &[0])), None, "cut short");
        assert_eq!(of(&with(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(20))), None, "without end");
    }

    #[test]
    fn parses_v6() {
        let bytes = v6(0x2e);
        let h = Header::parse(&bytes).unwrap();
        assert_eq!(
            (h.version(), h.header_len, h.total_len, h.protocol, h.tos),
            (Version::V6, 40, 48, 17, 0x2e)
        );
        assert_eq!((h.src, h.dst), (Ipv6Addr::from([0xfd; 16]).into(), Ipv6Addr::from([0xfe; 16]).into()));
    }

    #[test]
    fn refuses_lies() {
        let good = v4(0);
        for (at, value) in [(0, 0x44), (0, 0x55), (0, 0x4f), (3, 19), (3, 29), (2, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Header::parse(&bad), None, "byte {at} = {value}");
        }
        let mut bad = v6(0);
        bad[5] = 9;
        assert_eq!(Header::parse(&bad), None);
        for len in 0..28 {
            assert_eq!(Header::parse(&good[..len]), None);
        }
    }

    #[test]
    fn ecn_tables_of_the_kernel() {
        for dscp in [0, 0xb8, 0xfc] {
            assert_eq!(
                [NOT_ECT, ECT_1, ECT_0, CE].map(|ecn| outer_tos(dscp | ecn)),
                [NOT_ECT, ECT_1, ECT_0, ECT_0]
            );
            // rows: outer; columns: inner Not-ECT, ECT(1), ECT(0), CE
            let table = [
                (NOT_ECT, [NOT_ECT, ECT_1, ECT_0, CE]),
                (ECT_1, [NOT_ECT, ECT_1, ECT_1, CE]),
                (ECT_0, [NOT_ECT, ECT_1, ECT_0, CE]),
                (CE, [NOT_ECT, CE, CE, CE]),
            ];
            for (outer, row) in table {
                for (inner, expected) in [NOT_ECT, ECT_1, ECT_0, CE].into_iter().zip(row) {
                    assert_eq!(decapsulated_tos(0x88 | outer, dscp | inner), dscp | expected);
                }
            }
        }
    }

    #[test]
    fn ecn_in_place() {
        for outer in 0..4 {
            for inner in 0..=255 {
                let mut packet = v4(inner);
                decapsulate_ecn(outer, &mut packet);
                assert_eq!(packet, v4(decapsulated_tos(outer, inner)), "{outer} {inner}");
                let mut packet = v6(inner);
                decapsulate_ecn(outer, &mut packet);
                assert_eq!(packet, v6(decapsulated_tos(outer, inner)), "{outer} {inner}");
            }
        }
    }

    #[test]
    fn a_wrong_header_checksum_stays_wrong() {
        let mut packet = v4(ECT_0);
        packet[11] ^= 1;
        decapsulate_ecn(CE, &mut packet);
        assert!(!Sum::default().add_bytes(&packet[..20]).is_valid());
    }

    proptest! {
        #[test]
        fn any_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            first in prop::sample::select(vec![0x45u8, 0x46, 0x60, 0x6f, 0x12]),
            tos in any::<u8>(),
        ) {
            if let Some(b) = bytes.first_mut() { *b = first; }
            if let Some(h) = Header::parse(&bytes) {
                prop_assert!(V4_LEN <= h.header_len && h.header_len <= h.total_len && h.total_len <= bytes.len());
            }
            decapsulate_ecn(tos, &mut bytes);
        }
    }
}
