use super::*;

const KEY: Secret = Secret([0x80; 32]);

impl Key {
    /// What it was made of, to tell one from another.
    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.secret.0
    }
}

fn sealed(counter: u64, text: &[u8]) -> Vec<u8> {
    let mut packet = text.to_vec();
    packet.resize(text.len() + TAG_LEN, 0);
    assert!(seal_run(&Key::new(&KEY), counter, &mut packet, &[Span { start: 0, len: text.len() }]));
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
    assert!(seal_run(&Key::new(&KEY), 9, &mut buffer, &spans));
    let key = Key::new(&KEY);
    for (counter, span) in (9..).zip(spans) {
        let end = span.start + span.len;
        assert_eq!(open(&key, counter, &mut buffer[span.start..end + TAG_LEN]), Some(span.len));
        assert!(buffer[span.start..end].iter().all(|&byte| byte == 7));
    }
    assert!(!seal_run(&key, 0, &mut buffer, &[Span { start: 90, len: 0 }]), "no room for its tag");
}

#[test]
fn only_what_is_authentic_is_opened_and_the_rest_is_wiped() {
    let key = Key::new(&KEY);
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
    let other = Key::new(&Secret([0x81; 32]));
    assert_eq!(open(&other, 5, &mut packet.clone()), None, "another key");
}
