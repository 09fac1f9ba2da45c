//! WireGuard messages on the wire (white paper, section 5.4): their types, their lengths, the transport header and
//! the padding of its payload.

use std::ops::RangeInclusive;

use crate::types::Suite;

/// Length of a handshake initiation, bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a handshake response, bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply, bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of a transport message's header, bytes: type, receiver index, counter.
pub const TRANSPORT_HEADER_LEN: usize = 16;
/// What a transport message adds to its padded payload, bytes: header and authentication tag. A message of this
/// length alone is a keepalive.
pub const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER_LEN + 16;
/// Payloads are padded to a multiple of this, bytes.
pub const PADDING_MULTIPLE: usize = 16;

/// The type word of a transport message: type 4 and three reserved zero bytes; between two Ringways the first of them
/// may be the mark of a suite.
const TRANSPORT_TYPE: u32 = 4;
const MARKED_TYPE: u32 = TRANSPORT_TYPE | (Suite::Aes256Gcm.mark() as u32) << 8;

/// The four kinds of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Type 1.
    Initiation,
    /// Type 2.
    Response,
    /// Type 3.
    CookieReply,
    /// Type 4.
    Transport,
}

impl Kind {
    /// Says what a datagram is by its type word (the reserved bytes, too, must be right: zero, but for a mark of
    /// [`Suite`] on type 4) and its length, which is exact for types 1 to 3 and at least [`TRANSPORT_OVERHEAD`] for
    /// type 4. `None` for anything else.
    #[must_use]
    #[inline]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let word = u32::from_le_bytes(*datagram.first_chunk()?);
        let (kind, lengths): (_, RangeInclusive<usize>) = match word {
            1 => (Self::Initiation, INITIATION_LEN..=INITIATION_LEN),
            2 => (Self::Response, RESPONSE_LEN..=RESPONSE_LEN),
            3 => (Self::CookieReply, COOKIE_REPLY_LEN..=COOKIE_REPLY_LEN),
            TRANSPORT_TYPE | MARKED_TYPE => (Self::Transport, TRANSPORT_OVERHEAD..=usize::MAX),
            _ => return None,
        };
        lengths.contains(&datagram.len()).then_some(kind)
    }
}

/// The header of a transport message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The receiver's index for the session.
    pub receiver: u32,
    /// The message's counter, also its nonce.
    pub counter: u64,
    /// What its mark says that it is sealed with.
    pub suite: Suite,
}

impl TransportHeader {
    /// Parses a whole transport message. `None` if its type word is no transport message's or it is shorter than
    /// [`TRANSPORT_OVERHEAD`].
    #[must_use]
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if Kind::of(datagram) != Some(Kind::Transport) {
            return None;
        }
        let (word, rest) = datagram.split_first_chunk()?;
        let suite = match u32::from_le_bytes(*word) {
            MARKED_TYPE => Suite::Aes256Gcm,
            _ => Suite::ChaCha20Poly1305,
        };
        let (receiver, rest) = rest.split_first_chunk()?;
        Some(Self {
            receiver: u32::from_le_bytes(*receiver),
            counter: u64::from_le_bytes(*rest.first_chunk()?),
            suite,
        })
    }

    /// Encodes, type word included.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; TRANSPORT_HEADER_LEN] {
        let word = match self.suite {
            Suite::ChaCha20Poly1305 => TRANSPORT_TYPE,
            Suite::Aes256Gcm => MARKED_TYPE,
        };
        let bytes = u128::from(word) | u128::from(self.receiver) << 32 | u128::from(self.counter) << 64;
        bytes.to_le_bytes()
    }
}

/// The padded length of a payload of `len` bytes: the next multiple of 16, but not beyond the device's `mtu` (0: not
/// known, no limit). A payload larger than the MTU is padded by its last MTU-sized unit, as in the
/// kernel's `calculate_skb_padding`.
#[must_use]
#[inline]
pub fn padded_len(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(PADDING_MULTIPLE);
    }
    let unit = if len > mtu { len % mtu } else { len };
    len - unit + unit.next_multiple_of(PADDING_MULTIPLE).min(mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_need_the_whole_word_and_the_length() {
        for (word, len, kind) in [
            (1u8, 148, Kind::Initiation),
            (2, 92, Kind::Response),
            (3, 64, Kind::CookieReply),
            (4, 32, Kind::Transport),
        ] {
            let mut message = vec![0; len];
            message[0] = word;
            assert_eq!(Kind::of(&message), Some(kind));
            assert_eq!(Kind::of(&message[..len - 1]), None);
            for reserved in 1..4 {
                for value in 1..=255 {
                    message[reserved] = value;
                    let marked = word == 4 && (reserved, value) == (1, Suite::Aes256Gcm.mark());
                    assert_eq!(Kind::of(&message), marked.then_some(kind), "{word} {reserved} {value}");
                }
                message[reserved] = 0;
            }
            message.push(0);
            assert_eq!(Kind::of(&message), (word == 4).then_some(kind));
        }
        for short in [&[][..], &[1], &[4, 0, 0], &[0; 148], &[5; 64]] {
            assert_eq!(Kind::of(short), None);
        }
    }

    #[test]
    fn transport_header() {
        for (suite, mark) in [(Suite::ChaCha20Poly1305, 0), (Suite::Aes256Gcm, 1)] {
            let header = TransportHeader { receiver: 0x0403_0201, counter: 0x0807_0605_0403_0201, suite };
            let bytes = header.to_bytes();
            assert_eq!(bytes, [4, mark, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
            let mut message = bytes.to_vec();
            assert_eq!(TransportHeader::parse(&message), None);
            message.extend([0; TRANSPORT_OVERHEAD - TRANSPORT_HEADER_LEN]);
            assert_eq!(TransportHeader::parse(&message), Some(header));
            message[0] = 1;
            assert_eq!(TransportHeader::parse(&message), None);
        }
    }

    #[test]
    fn padding_table() {
        for (len, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (1408, 1420, 1408),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (1421, 1420, 1436),
            (2840, 1420, 2840),
            (1420, 0, 1424),
            (5, 10, 10),
        ] {
            assert_eq!(padded_len(len, mtu), padded, "{len} {mtu}");
        }
    }

    proptest! {
        /// The kernel's function, transcribed as it stands, is the model.
        #[test]
        fn padding_is_the_kernels(len in 0usize..70_000, mtu in prop_oneof![Just(0usize), 1usize..70_000]) {
            let mut last_unit = len;
            let padding = if mtu == 0 {
                last_unit.div_ceil(16) * 16 - last_unit
            } else {
                if last_unit > mtu { last_unit %= mtu; }
                mtu.min(last_unit.div_ceil(16) * 16) - last_unit
            };
            prop_assert_eq!(padded_len(len, mtu), len + padding);
        }
    }
}
