//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it: nonce = four zero bytes and the 64-bit little-endian counter,
//! no associated data on transport messages.
//!
//! The interface is a *run*: packets of one keypair with consecutive counters (sealing) or any counters (opening),
//! so that a kernel working on several packets side by side needs no other interface.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

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
    match key.0.open_in_place(nonce(counter), Aad::empty(), packet) {
        Ok(text) => Some(text.len()),
        Err(_) => {
            packet.fill(0);
            None
        }
    }
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
