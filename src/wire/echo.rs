//! ICMP echo (RFC 792, RFC 4443): requests, and what comes back that tells of one: a reply, or the word of a host on
//! the way that it went no further.

use super::be16;
use super::checksum::Sum;

/// Bytes of an echo message before its data.
pub const HEADER: usize = 8;
/// Bytes of an IPv4 header without options, and of an IPv6 header.
const IP_HEADERS: (usize, usize) = (20, 40);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was answered.
    Replied,
    /// Its hop limit ended at whoever says so.
    Expired,
    /// Whoever says so has no way on, or is told to let nothing pass.
    Unreachable,
}

/// Something that was received about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Whose request it was.
    pub id: u16,
    /// Which of them.
    pub sequence: u16,
    /// What became of it.
    pub fate: Fate,
}

/// Bytes of an IP header without options.
#[must_use]
pub fn ip_header(is_v4: bool) -> usize {
    if is_v4 { IP_HEADERS.0 } else { IP_HEADERS.1 }
}

/// A request whose IP packet has `size` bytes; data is zeros. Over IPv6 the checksum is the kernel's to fill in.
#[must_use]
pub fn request(is_v4: bool, id: u16, sequence: u16, size: usize) -> Vec<u8> {
    let mut message = vec![0; size.saturating_sub(ip_header(is_v4)).max(HEADER)];
    let mut header = [if is_v4 { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&sequence.to_be_bytes());
    if is_v4 {
        let checksum = Sum::default().add_bytes(&header).checksum();
        header[2..4].copy_from_slice(&checksum);
    }
    if let Some(place) = message.first_chunk_mut() {
        *place = header;
    }
    message
}

/// Understands what a raw socket received: over IPv4 with its IP header, over IPv6 without. `None` if it is about no
/// echo request.
#[must_use]
pub fn heard(is_v4: bool, packet: &[u8]) -> Option<Heard> {
    let message = if is_v4 { packet.get(v4_header(packet)?..)? } else { packet };
    let fate = match (is_v4, message.first()?) {
        (true, 0) | (false, 129) => Fate::Replied,
        (true, 11) | (false, 3) => Fate::Expired,
        // Too large for somebody's next hop: it has not arrived.
        (true, 3) if message.get(1) == Some(&4) => return None,
        (true, 3) | (false, 1) => Fate::Unreachable,
        _ => return None,
    };
    let about = if fate == Fate::Replied { message } else { quoted(is_v4, message.get(HEADER..)?)? };
    Some(Heard { id: be16(about, 4)?, sequence: be16(about, 6)?, fate })
}

/// The echo request in a quoted packet.
fn quoted(is_v4: bool, packet: &[u8]) -> Option<&[u8]> {
    let (protocol, kind, length) =
        if is_v4 { (packet.get(9)?, 8, v4_header(packet)?) } else { (packet.get(6)?, 128, IP_HEADERS.1) };
    let is_icmp = *protocol == if is_v4 { 1 } else { 58 };
    packet.get(length..).filter(|message| is_icmp && message.first() == Some(&kind))
}

fn v4_header(packet: &[u8]) -> Option<usize> {
    let first = packet.first().filter(|first| *first >> 4 == 4)?;
    Some(usize::from(first & 0xf) * 4).filter(|length| *length >= IP_HEADERS.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet around a message, with four bytes of options.
    fn v4(message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 24];
        (packet[0], packet[9]) = (0x46, 1);
        packet.extend(message);
        packet
    }

    fn v6(message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6]) = (0x60, 58);
        packet.extend(message);
        packet
    }

    fn of(first: u8, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        message[0] = first;
        message
    }

    fn error(kind: u8, quoted: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(quoted);
        message
    }

    #[test]
    fn a_request_has_the_size_that_was_asked_for_and_a_checksum() {
        let asked = request(true, 0x1234, 7, 1420);
        assert_eq!((asked.len(), asked[0]), (1400, 8));
        assert!(Sum::default().add_bytes(&asked).is_valid());
        assert_eq!((request(false, 1, 2, 1420).len(), request(false, 1, 2, 0).len()), (1380, HEADER));
    }

    #[test]
    fn what_comes_back_names_the_request() {
        let expect = |fate| Some(Heard { id: 0x1234, sequence: 7, fate });
        let asked = request(true, 0x1234, 7, 60);
        assert_eq!(heard(true, &v4(&of(0, &asked))), expect(Fate::Replied));
        assert_eq!(heard(true, &v4(&error(11, &v4(&asked)))), expect(Fate::Expired));
        assert_eq!(heard(true, &v4(&error(3, &v4(&asked[..8])))), expect(Fate::Unreachable));
        let asked = request(false, 0x1234, 7, 60);
        assert_eq!(heard(false, &of(129, &asked)), expect(Fate::Replied));
        assert_eq!(heard(false, &error(3, &v6(&asked))), expect(Fate::Expired));
        assert_eq!(heard(false, &error(1, &v6(&asked))), expect(Fate::Unreachable));
    }

    #[test]
    fn what_is_about_no_request_or_cut_short_is_nothing() {
        let asked = request(true, 1, 2, 60);
        assert_eq!(heard(true, &v4(&asked)), None, "a request of somebody else's");
        assert_eq!(heard(true, &v4(&error(11, &v4(&of(0, &asked))))), None, "no request was expired");
        let mut too_large = error(3, &v4(&asked));
        too_large[1] = 4;
        assert_eq!(heard(true, &v4(&too_large)), None);
        let mut tcp = v4(&asked);
        tcp[9] = 6;
        assert_eq!(heard(true, &v4(&error(11, &tcp))), None);
        for whole in [v4(&error(11, &v4(&asked[..8]))), v4(&of(0, &asked[..8]))] {
            assert!(heard(true, &whole).is_some());
            for length in 0..whole.len() {
                assert_eq!(heard(true, &whole[..length]), None, "{length}");
            }
        }
    }
}
