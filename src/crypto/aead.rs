//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it: nonce = four zero bytes and the 64-bit little-endian counter,
//! no associated data on transport messages.
//!
//! The interface is a *run*: packets of one keypair with consecutive counters (sealing) or any counters (opening),
//! so that a kernel working on several packets side by side needs no other interface.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::mutation::holds;
use crate::types::Secret;

/// Bytes that authentication adds behind a ciphertext.
pub const TAG_LEN: usize = 16;

/// Where one packet lies in a buffer: `start..start + len` is the text, the tag follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte of the text.
    pub start: usize,
    /// Length of the text without its tag.
    pub len: usize,
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn cipher(key: &Secret) -> Option<LessSafeKey> {
    // Fails only for a wrong key length; `Secret` has 32 bytes, ChaCha20's length.
    UnboundKey::new(&CHACHA20_POLY1305, &key.0).ok().map(LessSafeKey::new)
}

/// Seals `spans` of `buffer` in place with the counters `first_counter`, `first_counter + 1`, … and writes each tag
/// behind its text. False if a span does not fit the buffer (nothing of that span is then usable).
#[must_use]
pub fn seal_run(key: &Secret, first_counter: u64, buffer: &mut [u8], spans: &[Span]) -> bool {
    let Some(cipher) = cipher(key) else { return false };
    let mut counter = first_counter;
    for span in spans {
        let Some(packet) = buffer.get_mut(span.start..span.start + span.len + TAG_LEN) else { return false };
        let (text, tag) = packet.split_at_mut(span.len);
        let Ok(sealed) = cipher.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text) else {
            return false;
        };
        tag.copy_from_slice(sealed.as_ref());
        counter = counter.wrapping_add(1);
    }
    true
}

/// Opens one packet of a run: `packet` is ciphertext and tag.
/// Returns the plaintext's length, or `None` (the bytes are then wiped) if it is not authentic.
#[must_use]
pub fn open(key: &OpeningKey, counter: u64, packet: &mut [u8]) -> Option<usize> {
    let opened = key.0.open_in_place(nonce(counter), Aad::empty(), packet);
    if !holds("transport-aead", opened.is_ok()) {
        packet.fill(0);
        return None;
    }
    packet.len().checked_sub(TAG_LEN)
}

/// A key prepared for opening a run; made once per run, not per packet.
pub struct OpeningKey(LessSafeKey);

impl OpeningKey {
    /// Prepares `key`. `None` never happens for a 32-byte key.
    #[must_use]
    pub fn new(key: &Secret) -> Option<Self> {
        cipher(key).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Secret = Secret([0x80; 32]);

    fn sealed(counter: u64, text: &[u8]) -> Vec<u8> {
        let mut packet = text.to_vec();
        packet.resize(text.len() + TAG_LEN, 0);
        assert!(seal_run(&KEY, counter, &mut packet, &[Span { start: 0, len: text.len() }]));
        packet
    }

    /// Another implementation (RustCrypto's) reads what we seal: cipher, nonce layout, no associated data.
    #[test]
    fn agrees_with_another_implementation() {
        use chacha20poly1305::aead::{Aead as _, KeyInit as _};
        use chacha20poly1305::{ChaCha20Poly1305, Nonce};
        let other = ChaCha20Poly1305::new(&KEY.0.into());
        for counter in [0, 1, u64::from(u32::MAX) + 1, u64::MAX - (1 << 13) - 2] {
            let mut bytes = [0; 12];
            bytes[4..].copy_from_slice(&counter.to_le_bytes());
            let packet = sealed(counter, b"a packet");
            assert_eq!(packet, other.encrypt(&Nonce::from(bytes), b"a packet".as_slice()).unwrap());
        }
    }

    #[test]
    fn a_run_takes_one_counter_after_another() {
        let mut buffer = [7; 100];
        let spans = [Span { start: 3, len: 20 }, Span { start: 50, len: 0 }, Span { start: 70, len: 14 }];
        assert!(seal_run(&KEY, 9, &mut buffer, &spans));
        let key = OpeningKey::new(&KEY).unwrap();
        for (counter, span) in (9..).zip(spans) {
            let end = span.start + span.len;
            assert_eq!(open(&key, counter, &mut buffer[span.start..end + TAG_LEN]), Some(span.len));
            assert!(buffer[span.start..end].iter().all(|&byte| byte == 7));
        }
        assert!(!seal_run(&KEY, 0, &mut buffer, &[Span { start: 90, len: 0 }]), "no room for its tag");
    }

    #[test]
    fn only_what_is_authentic_is_opened_and_the_rest_is_wiped() {
        let key = OpeningKey::new(&KEY).unwrap();
        let packet = sealed(5, b"a packet");
        assert_eq!(open(&key, 5, &mut packet.clone()), Some(8));
        for bit in 0..packet.len() * 8 {
            let mut forged = packet.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&key, 5, &mut forged), None, "bit {bit}");
            assert!(forged.iter().all(|&byte| byte == 0), "bit {bit}");
        }
        for len in 0..packet.len() {
            assert_eq!(open(&key, 5, &mut packet.clone()[..len]), None, "cut to {len}");
        }
        assert_eq!(open(&key, 6, &mut packet.clone()), None, "another counter");
        let other = OpeningKey::new(&Secret([0x81; 32])).unwrap();
        assert_eq!(open(&other, 5, &mut packet.clone()), None, "another key");
    }
}
