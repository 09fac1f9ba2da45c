//! Cryptography behind safe interfaces.
//!
//! * [`aead`]: ChaCha20-Poly1305 for transport data, one packet or a run of a peer's packets.
//! * [`x25519`]: the handshake's Diffie-Hellman.
//! * `lanes`: both over up to 16 packets or 8 points side by side, by AVX-512.
//! * [`hash`]: BLAKE2s, its MAC and WireGuard's KDF.
//! * [`enrolment`]: an invite's key pairs, and the proof that somebody has one.
//! * [`random`]: the system's random numbers.

pub mod aead;
pub mod enrolment;
pub mod hash;
mod lanes;
pub mod random;
pub mod x25519;
