//! The cryptography of an invite (docs/protocol.md, "Enrolment"): the key pair of each of its uses, and the proof that
//! whoever speaks in a session holds such a pair and has chosen a key of its own.
//!
//! The proof is made of what both sides of the handshake have in common, and of the hash of all that was said in it: it
//! is worth nothing in another session, for another key, or to another gateway.

use aws_lc_rs::hmac;

use super::hash::hkdf_sha256;
use super::x25519::PrivateKey;
use crate::mutation::holds;
use crate::types::{PublicKey, Secret};

/// Length of a proof, bytes.
pub const PROOF_LEN: usize = 32;
/// What keys of uses are derived for.
const USE: &[u8] = b"ringway v1 invite";
/// What proofs are made for.
const PROOF: &[u8] = b"ringway v1 enroll";

/// The key pair of use `k` of the invite with this secret.
#[must_use]
pub fn use_key(secret: &Secret, k: u8) -> PrivateKey {
    PrivateKey::new(&hkdf_sha256(secret, &[USE, &[k]]))
}

/// The proof for the key `own` in the session of this transcript hash; `shared` is what the use's key and the gateway's
/// share (X25519).
#[must_use]
pub fn proof(shared: &Secret, transcript: &Secret, own: &PublicKey) -> [u8; PROOF_LEN] {
    let tag = hmac::sign(&key(shared), &Said::new(transcript, own).0);
    let mut proof = [0; PROOF_LEN];
    // SHA-256 has as many bytes.
    proof.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    proof
}

/// Whether this is the [`proof`], in time that does not depend on the bytes.
#[must_use]
pub fn is_proven(shared: &Secret, transcript: &Secret, own: &PublicKey, proof: &[u8; PROOF_LEN]) -> bool {
    let verified = hmac::verify(&key(shared), &Said::new(transcript, own).0, proof);
    holds("enrolment-proof", verified.is_ok())
}

fn key(shared: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &hkdf_sha256(shared, &[]).0)
}

/// What a proof is about, in one piece; wiped.
#[derive(zeroize::ZeroizeOnDrop)]
struct Said([u8; PROOF.len() + 64]);

impl Said {
    fn new(transcript: &Secret, own: &PublicKey) -> Self {
        let mut said = Self([0; PROOF.len() + 64]);
        let parts = PROOF.iter().chain(&transcript.0).chain(&own.0);
        said.0.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As docs/protocol.md has it, made there by another implementation.
    #[test]
    fn keys_and_proof_of_an_invite_are_the_documented_ones() {
        let text = include_str!("../../docs/protocol.md");
        let value = |name: &str| -> [u8; 32] {
            let line =
                text.lines().find_map(|line| line.strip_prefix(&format!("- `{name}`: `"))).expect(name);
            let digits = line.bytes().filter_map(|byte| char::from(byte).to_digit(16));
            let digits: Vec<u8> = digits.map(|digit| digit as u8).collect();
            let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
            bytes.try_into().unwrap()
        };
        let secret = Secret(value("invite's secret"));
        for (k, name) in [(0, "public key of use 0"), (255, "public key of use 255")] {
            assert_eq!(use_key(&secret, k).public().0, value(name), "{name}");
        }
        let gateway = PrivateKey::new(&Secret(value("gateway's private key")));
        let shared = use_key(&secret, 0).shared(gateway.public()).unwrap();
        assert_eq!(shared.0, value("X25519(p, G)"));
        let (transcript, own) = (Secret(value("h")), PublicKey(value("P")));
        assert_eq!(proof(&shared, &transcript, &own), value("proof"));
    }

    #[test]
    fn a_proof_is_for_one_use_one_session_and_one_key() {
        let (shared, transcript, own) = (Secret([1; 32]), Secret([2; 32]), PublicKey([3; 32]));
        let made = proof(&shared, &transcript, &own);
        assert!(is_proven(&shared, &transcript, &own, &made));
        assert!(!is_proven(&Secret([4; 32]), &transcript, &own, &made));
        assert!(!is_proven(&shared, &Secret([4; 32]), &own, &made));
        assert!(!is_proven(&shared, &transcript, &PublicKey([4; 32]), &made));
        for bit in 0..256 {
            let mut other = made;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_proven(&shared, &transcript, &own, &other), "{bit}");
        }
    }
}
