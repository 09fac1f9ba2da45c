use super::*;

const KEY: Secret = Secret([0x80; 32]);

impl Key {
    /// What it was made of, to tell one from another.
    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.secret.0
    }
}

/// Where the processor can, the lanes pass their self-test and are used.
#[test]
fn what_is_fastest_is_chosen() {
    let right = if lanes::supported() { Implementation::Lanes } else { Implementation::Scalar };
    assert_eq!(implementation(), right);
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

/// AES-256-GCM: the vectors that pin key, nonce and layout are in docs/protocol.md (`noise::keypair`).
#[test]
fn either_suite_opens_only_its_own_and_wipes_the_rest() {
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        let key = Key::of(suite, &KEY);
        for len in [0, 1, 15, 16, 17, 1420] {
            let plain: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut packet = plain.clone();
            packet.resize(len + TAG_LEN, 0);
            assert!(seal_run(&key, 5, &mut packet, &[Span { start: 0, len }]));
            let mut opened = packet.clone();
            assert_eq!(open(&key, 5, &mut opened), Some(len));
            assert_eq!(opened[..len], plain);
            for bit in [0, len * 4, (len + TAG_LEN) * 8 - 1] {
                let mut forged = packet.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&key, 5, &mut forged), None, "{suite} {len} {bit}");
                assert!(forged.iter().all(|&byte| byte == 0));
            }
            for other in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
                let other_key = Key::of(other, &KEY);
                assert_eq!(
                    open(&other_key, 5, &mut packet.clone()).is_some(),
                    other == suite,
                    "{suite} {other}"
                );
                assert_eq!(open(&other_key, 6, &mut packet.clone()), None);
            }
        }
    }
}

#[test]
fn a_run_of_aes_is_its_packets() {
    let key = Key::of(Suite::Aes256Gcm, &KEY);
    let spans: Vec<Span> = (0..40).map(|n| Span { start: n * 1500, len: 1400 + n }).collect();
    let plain: Vec<u8> = (0..60_000).map(|n| (n % 251) as u8).collect();
    let (mut run, mut alone) = (plain.clone(), plain.clone());
    assert!(seal_run(&key, 77, &mut run, &spans));
    for (counter, span) in (77..).zip(&spans) {
        assert!(seal_run(&key, counter, &mut alone, std::slice::from_ref(span)));
    }
    assert_eq!(run, alone);
    for (counter, span) in (77..).zip(&spans) {
        let packet = &mut run[span.start..span.start + span.len + TAG_LEN];
        assert_eq!(open(&key, counter, packet), Some(span.len));
        assert_eq!(packet[..span.len], plain[span.start..span.start + span.len]);
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

/// What RustCrypto makes of a text.
fn by_another(counter: u64, text: &[u8]) -> Vec<u8> {
    use chacha20poly1305::aead::{Aead as _, KeyInit as _};
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    chacha20poly1305::ChaCha20Poly1305::new(&KEY.0.into()).encrypt(&nonce.into(), text).unwrap()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    /// However a buffer is split into packets, with gaps or without: each is what it is alone, and no other byte
    /// changes.
    #[test]
    fn a_run_is_its_packets_however_it_is_split(
        pieces in proptest::collection::vec((0..3_usize, 0..1500_usize), 0..40),
        alike in proptest::option::of(0..1500_usize),
        first in proptest::num::u64::ANY,
    ) {
        let key = Key::new(&KEY);
        let (mut buffer, mut spans, mut right) = (Vec::new(), Vec::new(), Vec::new());
        for (counter, (gap, len)) in (0..).map(|n| first.wrapping_add(n)).zip(pieces) {
            let len = alike.unwrap_or(len);
            buffer.resize(buffer.len() + gap, 0xee);
            right.resize(buffer.len(), 0xee);
            spans.push(Span { start: buffer.len(), len });
            buffer.extend((0..len).map(|at| (at ^ len) as u8));
            right.extend(by_another(counter, &buffer[right.len()..]));
            buffer.resize(right.len(), 0);
        }
        proptest::prop_assert!(seal_run(&key, first, &mut buffer, &spans));
        proptest::prop_assert!(buffer == right);
    }
}

/// In a run as long as there are lanes, each packet in turn is altered: it alone is refused and wiped.
#[test]
fn one_of_a_run_is_refused_and_wiped() {
    let key = Key::new(&KEY);
    const LEN: usize = 100;
    let spans: [Span; RUN] = std::array::from_fn(|n| Span { start: n * (LEN + TAG_LEN), len: LEN });
    let mut sealed = vec![0x5a; RUN * (LEN + TAG_LEN)];
    assert!(seal_run(&key, 0, &mut sealed, &spans));
    for altered in 0..RUN {
        let mut buffer = sealed.clone();
        buffer[spans[altered].start + altered] ^= 1;
        let mut pieces = Pieces::of(&mut buffer);
        let messages = (0..).zip(&spans).map(|(counter, span)| {
            Sealed::new(counter, pieces.take(span.start..span.start + LEN + TAG_LEN).unwrap()).unwrap()
        });
        let mut texts = OpenedRun::new();
        open_run(&key, &mut messages.collect(), &mut texts);
        let opened: Vec<_> = texts.drain(..).map(|text| text.is_some()).collect();
        drop(texts);
        assert!(opened.iter().enumerate().all(|(n, opened)| *opened == (n != altered)), "{opened:?}");
        for (n, span) in spans.iter().enumerate() {
            let right = if n == altered { 0 } else { 0x5a };
            assert!(buffer[span.start..span.start + LEN].iter().all(|&byte| byte == right), "packet {n}");
        }
    }
}
