//! The sender's address as the kernel writes it beside a received datagram. A pure function from bytes to a value:
//! fields are read byte by byte, since a multishot receive lays them out at no particular alignment. (The control
//! messages that follow are read by `sys::socket::parse_control`.)

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes for the sender's address: `struct sockaddr_in6` has 28; four more keep what follows aligned.
pub const NAME_LEN: usize = 32;

/// Bytes for control messages. IPv6 needs 88 (`IPV6_PKTINFO` 40, `IPV6_TCLASS` 24, `UDP_GRO` 24), IPv4 80; the
/// rest is room for two more integers.
pub const CONTROL_LEN: usize = 144;

/// The address in a `struct sockaddr_in` or `sockaddr_in6`; `None` for any other family or if it is cut short.
#[must_use]
pub fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(array(name, 0)?));
    let port = u16::from_be_bytes(array(name, 2)?);
    match family {
        libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(array::<4>(name, 4)?), port).into()),
        libc::AF_INET6 => {
            // As std keeps it: not swapped.
            let flowinfo = u32::from_ne_bytes(array(name, 4)?);
            let scope = u32::from_ne_bytes(array(name, 24)?);
            Some(SocketAddrV6::new(Ipv6Addr::from(array::<16>(name, 8)?), port, flowinfo, scope).into())
        }
        _ => None,
    }
}

/// The `N` bytes at `offset`, if there are so many.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2 * NAME_LEN)) {
            let _ = parse_name(&bytes);
        }
    }
}
