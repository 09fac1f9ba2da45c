//! The answer to a packet from the TUN device that is larger than the device's MTU and may not be fragmented: ICMP
//! "fragmentation needed" (RFC 792, RFC 1191) or ICMPv6 "packet too big" (RFC 4443).
//!
//! The network stack answers for itself, before a packet gets here. What does get here is what it let pass: a route
//! with an MTU of its own, larger than the device's, and packets on their way while the MTU is lowered. What must
//! not be answered, or may be fragmented, is not dropped either: it goes out, in outer fragments if need be.
//!
//! The worker hears of a raised MTU a moment after the kernel: an answer in between would make hosts believe in the old
//! one for ten minutes. So the first packets pass, and only when they have been too large for [`DOUBT`] are they
//! answered, at most [`RATE`] times a second.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::types::Time;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{ip, put16};

/// How long packets pass before they are answered: longer than a change of the MTU takes to be noticed, which is 2 s
/// for a device in another namespace.
pub const DOUBT: Duration = Duration::from_secs(3);
/// Without such packets for so long, the next one is the first again.
const FORGET: Duration = Duration::from_secs(10);
/// Answers per second and worker; Linux sends 1000 in all.
pub const RATE: u64 = 100;
/// Answers at once.
pub const BURST: u64 = 20;
/// Nanoseconds that earn one answer.
const EARN: u64 = 1_000_000_000 / RATE;

/// Longest answer, bytes: IPv6's minimum MTU (RFC 4443 section 2.4 (c)).
pub const MOST: usize = 1280;
/// Longest answer over IPv4, bytes (RFC 1812 section 4.3.2.3).
const V4_MOST: usize = 576;
/// Bytes of the ICMP header before the quoted packet.
const ICMP_LEN: usize = 8;
/// Hop limit of an answer.
const HOPS: u8 = 64;
/// The smallest MTU of IPv6: what is no larger always passes.
const V6_MIN_MTU: usize = 1280;

/// When to answer: one for each worker.
#[derive(Debug, Default)]
pub struct Answers {
    /// When packets began to be too large, and when the last one was.
    doubt: Option<(Time, Time)>,
    /// Nanoseconds of boot time up to which answers are spent.
    spent: u64,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It is answered and dropped.
    Answer,
    /// It is dropped: enough were answered.
    Drop,
}

impl Answers {
    /// The MTU is another now: what was too large may fit.
    pub fn forget(&mut self) {
        self.doubt = None;
    }

    /// What becomes of a packet that is larger than the MTU. `packet` is all of it or its beginning.
    pub fn judge(&mut self, packet: &[u8], header: &ip::Header, now: Time) -> Verdict {
        if !may_answer(packet, header) {
            return Verdict::Pass;
        }
        let recent = self.doubt.filter(|(_, last)| now.since(*last) < FORGET);
        let first = recent.map_or(now, |(first, _)| first);
        self.doubt = Some((first, now));
        if now.since(first) < DOUBT {
            return Verdict::Pass;
        }
        let earliest = now.as_nanos().saturating_sub(BURST * EARN);
        let spent = self.spent.max(earliest) + EARN;
        if spent > now.as_nanos() {
            return Verdict::Drop;
        }
        self.spent = spent;
        Verdict::Answer
    }
}

/// True if a packet of `len` bytes with this header is too large for `mtu`, 0 for "not known".
#[must_use]
#[inline]
pub fn is_too_large(header: &ip::Header, len: usize, mtu: u32) -> bool {
    len > mtu as usize && mtu != 0 && (header.version() == ip::Version::V4 || len > V6_MIN_MTU)
}

/// What RFC 1122 section 3.2.2 and RFC 4443 section 2.4 (e) leave: no fragment but the first, nothing to or from many,
/// no ICMP but questions and answers. A packet that may be fragmented needs no answer.
fn may_answer(packet: &[u8], header: &ip::Header) -> bool {
    let Some((protocol, at)) = header.upper_layer(packet) else { return false };
    let kind = packet.get(at).copied();
    let is_error = match (header.version(), protocol) {
        // Echo, timestamp, address mask and their answers; router messages are for the link.
        (ip::Version::V4, ip::ICMP) => !matches!(kind, Some(0 | 8 | 13..=18)),
        // Redirects are as good as errors.
        (ip::Version::V6, ip::ICMPV6) => kind.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    };
    header.dont_fragment && !is_error && is_one_host(header.src) && is_one_host(header.dst)
}

fn is_one_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => {
            // 240.0.0.0/4 holds the broadcast address.
            !(v4.is_multicast() || v4.is_unspecified() || v4.is_loopback() || v4.octets()[0] >= 240)
        }
        IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unspecified() || v6.is_loopback()),
    }
}

/// Writes the answer to `packet` to the start of `out` and returns its length. It comes from the address that the
/// packet was for (docs/decisions/0022-too-big.md). `None` for a header that is not the packet's.
#[must_use]
pub fn too_big(packet: &[u8], header: &ip::Header, mtu: u32, out: &mut [u8; MOST]) -> Option<usize> {
    match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => fragmentation_needed(packet, (dst, src), mtu, out),
        (IpAddr::V6(src), IpAddr::V6(dst)) => packet_too_big(packet, (dst, src), mtu, out),
        _ => None,
    }
}

fn fragmentation_needed(
    packet: &[u8],
    (src, dst): (Ipv4Addr, Ipv4Addr),
    mtu: u32,
    out: &mut [u8; MOST],
) -> Option<usize> {
    let total = (ip::V4_LEN + ICMP_LEN + packet.len()).min(V4_MOST);
    let (header, message) = out.get_mut(..total)?.split_at_mut_checked(ip::V4_LEN)?;
    header.fill(0);
    // Version and header length; TOS 0xc0: internetwork control, as Linux has it.
    put16(header, 0, [0x45, 0xc0])?;
    // At most 576.
    put16(header, ip::V4_TOTAL_LEN_AT, (total as u16).to_be_bytes())?;
    put16(header, ip::V4_FRAGMENT_AT, ip::V4_DONT_FRAGMENT.to_be_bytes())?;
    put16(header, 8, [HOPS, ip::ICMP])?;
    header.get_mut(12..16)?.copy_from_slice(&src.octets());
    header.get_mut(16..20)?.copy_from_slice(&dst.octets());
    let sum = Sum::default().add_bytes(header).checksum();
    put16(header, ip::V4_CHECKSUM_AT, sum)?;
    let next_hop = u16::try_from(mtu).unwrap_or(u16::MAX);
    quote([3, 4, 0, 0, 0, 0], next_hop, packet, message)?;
    let sum = Sum::default().add_bytes(message).checksum();
    put16(message, 2, sum)?;
    Some(total)
}

fn packet_too_big(
    packet: &[u8],
    (src, dst): (Ipv6Addr, Ipv6Addr),
    mtu: u32,
    out: &mut [u8; MOST],
) -> Option<usize> {
    let total = (ip::V6_LEN + ICMP_LEN + packet.len()).min(MOST);
    let (header, message) = out.get_mut(..total)?.split_at_mut_checked(ip::V6_LEN)?;
    // At most 1240.
    let length = message.len() as u16;
    header.fill(0);
    *header.first_mut()? = 0x60;
    put16(header, ip::V6_PAYLOAD_LEN_AT, length.to_be_bytes())?;
    put16(header, 6, [ip::ICMPV6, HOPS])?;
    header.get_mut(8..24)?.copy_from_slice(&src.octets());
    header.get_mut(24..40)?.copy_from_slice(&dst.octets());
    let [a, b, c, d] = mtu.max(V6_MIN_MTU as u32).to_be_bytes();
    quote([2, 0, 0, 0, a, b], u16::from_be_bytes([c, d]), packet, message)?;
    let pseudo = pseudo_header(src.into(), dst.into(), ip::ICMPV6, length.into());
    put16(message, 2, pseudo.add_bytes(message).checksum())?;
    Some(total)
}

/// The ICMP header, and as much of the packet as there is room for.
fn quote(head: [u8; 6], low: u16, packet: &[u8], message: &mut [u8]) -> Option<()> {
    let (header, rest) = message.split_at_mut_checked(ICMP_LEN)?;
    header.get_mut(..6)?.copy_from_slice(&head);
    put16(header, 6, low.to_be_bytes())?;
    rest.copy_from_slice(packet.get(..rest.len())?);
    Some(())
}

#[cfg(test)]
mod tests;
