//! What the kernel writes beside a received datagram: the sender's address and the control messages.
//!
//! Pure functions from bytes to values, shared by every way of receiving. Fields are read byte by byte, since a
//! multishot receive lays the messages out at no particular alignment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::types::Source;

/// Bytes for the sender's address: `struct sockaddr_in6` has 28; four more keep what follows aligned.
pub const NAME_LEN: usize = 32;

/// Bytes for control messages. IPv6 needs 88 (`IPV6_PKTINFO` 40, `IPV6_TCLASS` 24, `UDP_GRO` 24), IPv4 80; the
/// rest is room for two more integers.
pub const CONTROL_LEN: usize = 144;

/// `SOL_UDP` and `UDP_GRO` of linux/udp.h.
const SOL_UDP: i32 = 17;
const UDP_GRO: i32 = 104;

/// `struct cmsghdr` on a 64-bit kernel: a length of 8 bytes, level, type; entries begin at multiples of 8.
const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();
const CMSG_ALIGN: usize = size_of::<usize>();

/// What the control messages say; what they leave out stays at its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// `IP_PKTINFO` or `IPV6_PKTINFO`.
    pub source: Option<Source>,
    /// `IP_TOS` or `IPV6_TCLASS`.
    pub tos: u8,
    /// `UDP_GRO`: length of each coalesced datagram but the last; 0 if nothing was coalesced.
    pub segment: usize,
}

/// The address in a `struct sockaddr_in` or `sockaddr_in6`; `None` for any other family or if it is cut short.
#[must_use]
pub fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(array(name, 0)?));
    let port = u16::from_be_bytes(array(name, 2)?);
    match family {
        libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(array::<4>(name, 4)?), port).into()),
        libc::AF_INET6 => {
            let flowinfo = u32::from_be_bytes(array(name, 4)?);
            let scope = u32::from_ne_bytes(array(name, 24)?);
            Some(SocketAddrV6::new(Ipv6Addr::from(array::<16>(name, 8)?), port, flowinfo, scope).into())
        }
        _ => None,
    }
}

/// Reads every control message of cmsg(3); stops at the first that is cut short.
#[must_use]
pub fn parse_control(mut rest: &[u8]) -> Control {
    let mut control = Control::default();
    while let Some((level, kind, data, next)) = split_cmsg(rest) {
        apply(&mut control, level, kind, data);
        rest = next;
    }
    control
}

/// The first control message: level, type, data, and what follows it.
fn split_cmsg(rest: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(array(rest, 0)?);
    let level = i32::from_ne_bytes(array(rest, CMSG_ALIGN)?);
    let kind = i32::from_ne_bytes(array(rest, CMSG_ALIGN + 4)?);
    let data = rest.get(CMSG_HEADER..len)?;
    let next = rest.get(len.checked_next_multiple_of(CMSG_ALIGN)?..).unwrap_or_default();
    Some((level, kind, data, next))
}

fn apply(control: &mut Control, level: i32, kind: i32, data: &[u8]) {
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => control.source = ipv4_source(data).or(control.source),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => control.source = ipv6_source(data).or(control.source),
        // One byte for IPv4, a native integer for IPv6.
        (libc::IPPROTO_IP, libc::IP_TOS) => control.tos = data.first().copied().unwrap_or(control.tos),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
            control.tos = integer(data).and_then(|n| u8::try_from(n).ok()).unwrap_or(control.tos);
        }
        (SOL_UDP, UDP_GRO) => {
            control.segment = integer(data).and_then(|n| usize::try_from(n).ok()).unwrap_or(control.segment);
        }
        _ => {}
    }
}

/// `struct in_pktinfo`: interface, local address of the route back (`ipi_spec_dst`), destination in the header.
/// The second is the one to send from: it differs from the third for a broadcast.
fn ipv4_source(data: &[u8]) -> Option<Source> {
    let ifindex = u32::from_ne_bytes(array(data, 0)?);
    Some(Source { addr: IpAddr::from(array::<4>(data, 4)?), ifindex })
}

/// `struct in6_pktinfo`: destination address, interface.
fn ipv6_source(data: &[u8]) -> Option<Source> {
    let ifindex = u32::from_ne_bytes(array(data, 16)?);
    Some(Source { addr: IpAddr::from(array::<16>(data, 0)?), ifindex })
}

fn integer(data: &[u8]) -> Option<i32> {
    array(data, 0).map(i32::from_ne_bytes)
}

/// The `N` bytes at `offset`, if there are so many.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cmsg(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut out = (CMSG_HEADER + data.len()).to_ne_bytes().to_vec();
        out.extend(level.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(data);
        out.resize(out.len().next_multiple_of(CMSG_ALIGN), 0);
        out
    }

    #[test]
    fn reads_both_kinds_of_name() {
        let mut v4 = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        v4.extend([0xff, 0xff, 198, 18, 0, 1]);
        assert_eq!(parse_name(&v4), Some("198.18.0.1:65535".parse().unwrap()));
        assert_eq!(parse_name(&v4[..7]), None);
        let mut v6 = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        v6.extend([0x12, 0x34, 0, 0, 0, 0]);
        v6.extend("fe80::1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend(3_u32.to_ne_bytes());
        assert_eq!(parse_name(&v6), Some("[fe80::1%3]:4660".parse().unwrap()));
        assert_eq!(parse_name(&v6[..27]), None);
        assert_eq!(parse_name(&[0; 32]), None);
        assert_eq!(parse_name(&[]), None);
    }

    #[test]
    fn reads_every_message_and_skips_strangers() {
        let mut v4 = cmsg(libc::SOL_SOCKET, 40, &[1, 0, 0, 0]);
        let mut info = 5_u32.to_ne_bytes().to_vec();
        info.extend([198, 18, 0, 2, 198, 18, 0, 255]);
        v4.extend(cmsg(libc::IPPROTO_IP, libc::IP_PKTINFO, &info));
        v4.extend(cmsg(libc::IPPROTO_IP, libc::IP_TOS, &[0x88]));
        v4.extend(cmsg(SOL_UDP, UDP_GRO, &1432_i32.to_ne_bytes()));
        let source = Some(Source { addr: "198.18.0.2".parse().unwrap(), ifindex: 5 });
        assert_eq!(parse_control(&v4), Control { source, tos: 0x88, segment: 1432 });

        let addr: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let mut info = addr.octets().to_vec();
        info.extend(9_u32.to_ne_bytes());
        let mut v6 = cmsg(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        v6.extend(cmsg(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &3_i32.to_ne_bytes()));
        let source = Some(Source { addr: addr.into(), ifindex: 9 });
        assert_eq!(parse_control(&v6), Control { source, tos: 3, segment: 0 });
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut bad = cmsg(SOL_UDP, UDP_GRO, &(-1_i32).to_ne_bytes());
        bad.extend(cmsg(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &256_i32.to_ne_bytes()));
        bad.extend(cmsg(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1, 2, 3]));
        assert_eq!(parse_control(&bad), Control::default());
        // a length below the header, and one beyond the end
        assert_eq!(parse_control(&[0; 64]), Control::default());
        assert_eq!(parse_control(&[0xff; 64]), Control::default());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..CONTROL_LEN)) {
            let _ = parse_name(&bytes);
            let _ = parse_control(&bytes);
        }
    }
}
