//! BLAKE2s (RFC 7693), its keyed form as a 16-byte MAC, HMAC-BLAKE2s (RFC 2104) and the key derivation of the
//! WireGuard white paper, section 5.4: `KDFn(key, input)` is HKDF (RFC 5869) with `key` as salt and no info. Beside
//! them HKDF-SHA-256, for the keys of AES-256-GCM.
//!
//! Inputs are slices of parts, so that a caller never concatenates a secret into a buffer it must wipe.

use aws_lc_rs::hkdf;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use zeroize::Zeroizing;

use crate::types::Secret;

/// Length of a hash, bytes.
pub const HASH_LEN: usize = 32;
/// Length of a MAC, bytes.
pub const MAC_LEN: usize = 16;
/// BLAKE2s works on blocks of this many bytes; HMAC pads its key to one.
const BLOCK_LEN: usize = 64;

/// BLAKE2s-256 of the parts, one after another.
#[must_use]
pub fn hash(parts: &[&[u8]]) -> [u8; HASH_LEN] {
    let mut hasher = Blake2s256::new();
    for part in parts {
        blake2::Digest::update(&mut hasher, part);
    }
    hasher.finalize().into()
}

/// Keyed BLAKE2s-128 of the parts (the paper's `Mac`). The key has 1 to 32 bytes, checked at compile time.
#[must_use]
pub fn mac<const KEY_LEN: usize>(key: &[u8; KEY_LEN], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    const { assert!(KEY_LEN > 0 && KEY_LEN <= 32, "a BLAKE2s key has 1 to 32 bytes") };
    let Ok(mut mac) = Blake2sMac::<U16>::new_from_slice(key) else {
        // Ruled out by the assertion above. A guessable MAC would be worse than no process.
        std::process::abort()
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

/// HMAC-BLAKE2s of the parts.
#[must_use]
pub fn hmac(key: &[u8; HASH_LEN], parts: &[&[u8]]) -> Secret {
    let padded = |pad: u8| {
        let mut block = Zeroizing::new([pad; BLOCK_LEN]);
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let mut inner = Blake2s256::new_with_prefix(*padded(0x36));
    for part in parts {
        blake2::Digest::update(&mut inner, part);
    }
    let inner: Zeroizing<[u8; HASH_LEN]> = Zeroizing::new(inner.finalize().into());
    Secret(hash(&[&*padded(0x5c), &*inner]))
}

/// The paper's `Kdf1`.
#[must_use]
pub fn kdf1(key: &Secret, input: &[u8]) -> Secret {
    let extracted = hmac(&key.0, &[input]);
    hmac(&extracted.0, &[&[1]])
}

/// The paper's `Kdf2`.
#[must_use]
pub fn kdf2(key: &Secret, input: &[u8]) -> (Secret, Secret) {
    let extracted = hmac(&key.0, &[input]);
    let first = hmac(&extracted.0, &[&[1]]);
    let second = hmac(&extracted.0, &[&first.0, &[2]]);
    (first, second)
}

/// The paper's `Kdf3`.
#[must_use]
pub fn kdf3(key: &Secret, input: &[u8]) -> (Secret, Secret, Secret) {
    let extracted = hmac(&key.0, &[input]);
    let first = hmac(&extracted.0, &[&[1]]);
    let second = hmac(&extracted.0, &[&first.0, &[2]]);
    let third = hmac(&extracted.0, &[&second.0, &[3]]);
    (first, second, third)
}

/// HKDF-SHA-256 (RFC 5869) without a salt: 32 bytes from a secret, for what `info` names.
#[must_use]
pub fn hkdf_sha256(secret: &Secret, info: &[&[u8]]) -> Secret {
    let pseudo_random = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&secret.0);
    let mut key = Secret([0; HASH_LEN]);
    let filled = pseudo_random.expand(info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key.0));
    if filled.is_err() {
        // Only for another length than the one that was asked for. A key that anybody knows would be worse than no
        // process.
        std::process::abort()
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex<const N: usize>(text: &str) -> [u8; N] {
        let digits: Vec<u8> =
            text.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        bytes.try_into().unwrap()
    }

    /// Test case 3 of RFC 5869 (no salt, no info), its first 32 bytes; and that info is what parts say together.
    #[test]
    fn hkdf_sha256_matches_rfc_5869() {
        // The RFC's secret has 22 bytes; ours always have 32, so that the crate's own call stands beside it.
        let short = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&[0x0b; 22]);
        let mut okm = [0; 32];
        short.expand(&[], hkdf::HKDF_SHA256).unwrap().fill(&mut okm).unwrap();
        assert_eq!(okm, unhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"));
        // By HMAC alone (`hmac -sha256` of the concatenation, twice), for the same secret of 32 bytes.
        let key = hkdf_sha256(&Secret([0x0b; 32]), &[b"ab", b"c"]);
        assert_eq!(key.0, unhex("4f14bb6eae0e20ae64594bf3cd1ddb73af0c97ba9c247e3af9752fa3fbb17e60"));
        assert_eq!(key.0, hkdf_sha256(&Secret([0x0b; 32]), &[b"abc"]).0);
    }

    #[test]
    fn blake2s_matches_rfc_7693_appendix_b() {
        let expected = unhex("508C5E8C327C14E2E1A72BA34EEB452F37458B209ED63A294D999B4C86675982");
        assert_eq!(hash(&[b"abc"]), expected);
        assert_eq!(hash(&[b"a", b"", b"bc"]), expected, "parts are simply concatenated");
    }

    /// The self-test of RFC 7693 appendix E, which hashes keyed and unkeyed inputs of many lengths with all four
    /// digest lengths. Ours offers 32 bytes unkeyed and 16 bytes keyed, so the test's other half comes from the
    /// crate.
    #[test]
    fn blake2s_passes_the_self_test_of_rfc_7693_appendix_e() {
        use blake2::digest::consts::{U20, U28, U32};
        fn sequence(len: usize, seed: u32) -> Vec<u8> {
            let mut a = 0xDEAD_4BADu32.wrapping_mul(seed);
            let mut b = 1u32;
            (0..len)
                .map(|_| {
                    let t = a.wrapping_add(b);
                    a = b;
                    b = t;
                    (t >> 24) as u8
                })
                .collect()
        }
        fn keyed<const N: usize>(input: &[u8]) -> Vec<u8> {
            let key = sequence(N, N as u32);
            macro_rules! with {
                ($len:ty) => {{
                    let mut mac = Blake2sMac::<$len>::new_from_slice(&key).unwrap();
                    mac.update(input);
                    mac.finalize_fixed().to_vec()
                }};
            }
            match N {
                16 => mac::<16>(key.as_slice().try_into().unwrap(), &[input]).to_vec(),
                20 => with!(U20),
                28 => with!(U28),
                _ => with!(U32),
            }
        }
        fn plain(len: usize, input: &[u8]) -> Vec<u8> {
            match len {
                16 => blake2::Blake2s::<U16>::digest(input).to_vec(),
                20 => blake2::Blake2s::<U20>::digest(input).to_vec(),
                28 => blake2::Blake2s::<U28>::digest(input).to_vec(),
                _ => hash(&[input]).to_vec(),
            }
        }
        let mut all = Blake2s256::new();
        for len in [16, 20, 28, 32] {
            for input_len in [0, 3, 64, 65, 255, 1024] {
                let input = sequence(input_len, input_len as u32);
                blake2::Digest::update(&mut all, plain(len, &input));
                blake2::Digest::update(
                    &mut all,
                    match len {
                        16 => keyed::<16>(&input),
                        20 => keyed::<20>(&input),
                        28 => keyed::<28>(&input),
                        _ => keyed::<32>(&input),
                    },
                );
            }
        }
        let expected: [u8; 32] = unhex("6A411F08CE25ADCDFB02ABA641451CEC53C598B24F4FC787FBDC88797F4C1DFE");
        assert_eq!(<[u8; 32]>::from(all.finalize()), expected);
    }

    #[test]
    fn hmac_and_kdf_follow_their_definitions() {
        // HMAC by its definition in RFC 2104, written out.
        let key = Secret([0x0b; 32]);
        let inner = hash(&[&[0x0b ^ 0x36; 32], &[0x36; 32], b"Hi There"]);
        let outer = hash(&[&[0x0b ^ 0x5c; 32], &[0x5c; 32], &inner]);
        assert_eq!(hmac(&key.0, &[b"Hi ", b"There"]).0, outer);

        // The paper: t0 = Hmac(key, input), t1 = Hmac(t0, 1), tn = Hmac(t0, t(n-1) || n).
        let t0 = hmac(&key.0, &[b"input"]);
        let t1 = hmac(&t0.0, &[&[1]]);
        let t2 = hmac(&t0.0, &[&t1.0, &[2]]);
        let t3 = hmac(&t0.0, &[&t2.0, &[3]]);
        assert_eq!(kdf1(&key, b"input").0, t1.0);
        let (a, b) = kdf2(&key, b"input");
        assert_eq!((a.0, b.0), (t1.0, t2.0));
        let (a, b, c) = kdf3(&key, b"input");
        assert_eq!((a.0, b.0, c.0), (t1.0, t2.0, t3.0));
    }

    #[test]
    fn mac_depends_on_key_and_its_length() {
        let sixteen = mac(&[7; 16], &[b"text"]);
        assert_ne!(sixteen, mac(&[7; 32], &[b"text"]));
        assert_ne!(sixteen, mac(&[8; 16], &[b"text"]));
        assert_eq!(sixteen, mac(&[7; 16], &[b"te", b"xt"]));
    }
}
