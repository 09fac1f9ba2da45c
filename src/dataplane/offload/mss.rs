//! The segment size of TCP connections through the tunnel: a SYN that promises to take more than fits the TUN device
//! is made to promise what fits (what `TCPMSS --clamp-mss-to-pmtu` does in a firewall).
//!
//! Without it a connection depends on ICMP messages that many paths swallow: it opens, and hangs with its first full
//! segment. Both ways are clamped, so that neither side sends too much: the SYN of a client tells the server, the
//! SYN-ACK tells the client.
//!
//! The packets are single and complete here: inbound as they were opened, outbound after their checksum was
//! completed. Super-packets carry data, not SYNs, and are left alone.

use crate::wire::checksum::update;
use crate::wire::{be16, ip, put16, tcp};

/// Option kind: end of the list (RFC 9293 section 3.2).
const END: u8 = 0;
/// Option kind: one byte of nothing.
const NOTHING: u8 = 1;
/// Option kind: maximum segment size, four bytes in all.
const MSS: u8 = 2;
/// Bytes of that option.
const MSS_LEN: usize = 4;

/// True if the packet may be a SYN, so that [`clamp`] is worth its call. For all but TCP one comparison.
#[must_use]
#[inline]
pub fn may_be_syn(packet: &[u8], header: &ip::Header) -> bool {
    match header.protocol {
        ip::TCP => packet.get(header.header_len + tcp::FLAGS_AT).is_some_and(|flags| flags & tcp::SYN != 0),
        ip::UDP | ip::ICMP | ip::ICMPV6 => false,
        // IPv6 extension headers, and rare protocols.
        _ => header.version() == ip::Version::V6,
    }
}

/// Lowers the maximum segment size of a TCP SYN to what fits an IP packet of `mtu` bytes; its checksum is updated, a
/// wrong one stays wrong. Returns true if the packet was changed. Everything else is left as it is: other packets,
/// later fragments, options that are malformed from there on, a SYN without the option (which means 536 or 1220).
pub fn clamp(packet: &mut [u8], header: &ip::Header, mtu: u32) -> bool {
    let Some((ip::TCP, at)) = header.upper_layer(packet) else { return false };
    let headers = tcp::MIN_LEN + if header.version() == ip::Version::V4 { ip::V4_LEN } else { ip::V6_LEN };
    let room = usize::try_from(mtu).unwrap_or(usize::MAX).saturating_sub(headers);
    let most = u16::try_from(room).unwrap_or(u16::MAX);
    let Some(segment) = packet.get_mut(at..header.total_len) else { return false };
    let Some(parsed) = tcp::Header::parse(segment) else { return false };
    if parsed.flags & tcp::SYN == 0 || most == 0 {
        return false;
    }
    // A first fragment may end within the header; `Header::parse` has checked that this one does not.
    let Some(transport) = segment.get_mut(..parsed.header_len) else { return false };
    lower(transport, most).is_some()
}

/// Lowers the option in a TCP header with all its options. `None` if nothing was changed.
fn lower(header: &mut [u8], most: u16) -> Option<()> {
    let at = find(header)?;
    let old = be16(header, at)?;
    if old <= most {
        return None;
    }
    put16(header, at, most.to_be_bytes())?;
    let sum = header.get(tcp::CHECKSUM_AT..)?.first_chunk().copied()?;
    // At an odd offset the two bytes belong to two words of the sum: swapped, they add the same.
    let (old, new) = if at.is_multiple_of(2) { (old, most) } else { (old.swap_bytes(), most.swap_bytes()) };
    put16(header, tcp::CHECKSUM_AT, update(sum, old, new))
}

/// The offset of the first maximum segment size in a TCP header.
fn find(header: &[u8]) -> Option<usize> {
    let mut at = tcp::MIN_LEN;
    // Each turn goes on by a byte at least, and a header has 60 at most.
    loop {
        match *header.get(at)? {
            END => return None,
            NOTHING => at += 1,
            kind => {
                let length = usize::from(*header.get(at + 1)?);
                if length < 2 || at + length > header.len() {
                    return None;
                }
                if kind == MSS && length == MSS_LEN {
                    return Some(at + 2);
                }
                at += length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::offload::packets::{Spec, assert_intact};

    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

    fn clamped(packet: &mut [u8], mtu: u32) -> bool {
        let Some(header) = ip::Header::parse(packet) else { return false };
        may_be_syn(packet, &header) && clamp(packet, &header, mtu)
    }

    /// A SYN with these options; 100 bytes of data, as TCP Fast Open has them.
    fn syn(v6: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        Spec { v6, flags, options: options.to_vec(), ..Spec::default() }.packet()
    }

    fn mss(value: u16) -> Vec<u8> {
        let [high, low] = value.to_be_bytes();
        vec![MSS, 4, high, low]
    }

    #[test]
    fn a_syn_promises_what_fits_and_its_checksum_is_right() {
        for flags in [tcp::SYN, SYN_ACK] {
            for (v6, at, most) in [(false, 40, 1380), (true, 60, 1360)] {
                let before = syn(v6, flags, &mss(1460));
                let mut packet = before.clone();
                assert!(clamped(&mut packet, 1420));
                assert_eq!(packet[at + 2..at + 4], u16::to_be_bytes(most));
                assert_intact(&packet);
                let differs = (0..packet.len()).filter(|i| packet[*i] != before[*i]);
                let checksum = at - 4..at - 2;
                assert!(differs.into_iter().all(|i| (at + 2..at + 4).contains(&i) || checksum.contains(&i)));
                assert!(!clamped(&mut packet, 1420), "it fits now");
            }
        }
    }

    #[test]
    fn options_before_it_may_move_it_to_an_odd_offset() {
        for before in [vec![1], vec![1, 1], vec![3, 3, 7], vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1]] {
            let mut options = before.clone();
            options.extend(mss(0xfffe));
            options.resize(options.len().next_multiple_of(4), 0);
            let mut packet = syn(false, tcp::SYN, &options);
            assert!(clamped(&mut packet, 1420), "{before:?}");
            assert_eq!(packet[42 + before.len()..44 + before.len()], 1380u16.to_be_bytes());
            assert_intact(&packet);
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        let options: [&[u8]; 8] = [
            &[],
            &[2, 4, 5, 0x64],                 // 1380 fits
            &[2, 3, 0xff, 0xff],              // not its length
            &[0, 0, 0, 0, 2, 4, 0xff, 0xff],  // behind the end of the list
            &[5, 0, 0, 0, 2, 4, 0xff, 0xff],  // behind an option without a length
            &[5, 1, 2, 4, 0xff, 0xff, 0, 0],  // behind one that is shorter than its own two bytes
            &[5, 40, 0, 0, 2, 4, 0xff, 0xff], // behind an option that is longer than the header
            &[1, 1, 1, 2],                    // cut off by the end of the header
        ];
        for options in options {
            let mut packet = syn(false, tcp::SYN, options);
            let before = packet.clone();
            assert!(!clamped(&mut packet, 1420), "{options:?}");
            assert_eq!(packet, before);
        }
        let large = mss(9000);
        for flags in [tcp::ACK, tcp::ACK | tcp::PSH, tcp::FIN] {
            assert!(!clamped(&mut syn(false, flags, &large), 1420), "{flags}");
        }
        let udp = Spec { udp: true, ..Spec::default() };
        assert!(!clamped(&mut udp.packet(), 1420));
        let mut fragment = syn(false, tcp::SYN, &large);
        fragment[7] = 1;
        assert!(!clamped(&mut fragment, 1420), "a later fragment");
        // An MTU that leaves no room at all.
        assert!(!clamped(&mut syn(false, tcp::SYN, &large), 40));
        assert!(clamped(&mut syn(false, tcp::SYN, &large), 41));
        // One that leaves more than a segment size can say.
        assert!(!clamped(&mut syn(false, tcp::SYN, &large), 65_536 + 140));
    }

    #[test]
    fn a_syn_behind_extension_headers_is_found() {
        let behind = |flags| {
            let inner = syn(true, flags, &mss(9000));
            let mut packet = inner[..40].to_vec();
            packet.extend([ip::TCP, 0, 1, 4, 0, 0, 0, 0]);
            packet.extend(&inner[40..]);
            packet[6] = 60;
            let length = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            (packet, length)
        };
        assert!(!clamped(&mut behind(tcp::ACK).0, 1420), "no SYN");
        let (mut packet, length) = behind(tcp::SYN);
        assert!(clamped(&mut packet, 1420));
        packet.drain(40..48);
        packet[6] = ip::TCP;
        packet[4..6].copy_from_slice(&(length - 8).to_be_bytes());
        assert_intact(&packet);
    }

    proptest! {
        /// Whatever the options are: no panic, a right checksum stays right, and only two fields may change.
        #[test]
        fn any_options(
            v6 in any::<bool>(),
            mut options in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..=40),
            mtu in 0u32..70_000,
        ) {
            options.truncate(options.len() / 4 * 4);
            let before = syn(v6, tcp::SYN, &options);
            let mut packet = before.clone();
            let changed = clamped(&mut packet, mtu);
            assert_intact(&packet);
            prop_assert_eq!(changed, packet != before);
            let tcp_at = if v6 { 40 } else { 20 };
            let differing = (tcp_at + 20..packet.len()).filter(|i| packet[*i] != before[*i]).count();
            prop_assert!(differing <= 2);
            prop_assert_eq!(&packet[..tcp_at + 16], &before[..tcp_at + 16]);
        }

        #[test]
        fn any_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            first in 0u8..3,
            mtu in any::<u32>(),
        ) {
            if let (Some(byte), 1..) = (bytes.first_mut(), first) {
                *byte = if first == 1 { 0x45 } else { 0x60 };
            }
            let len = bytes.len();
            clamped(&mut bytes, mtu);
            prop_assert_eq!(bytes.len(), len);
        }
    }
}
