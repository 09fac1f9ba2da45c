//! Cryptography behind safe interfaces.
//!
//! * [`aead`]: ChaCha20-Poly1305 for transport data, one packet or a run of a peer's packets.
//! * `lanes`: the same over up to 16 packets side by side, by AVX-512.
//! * [`x25519`]: the handshake's Diffie-Hellman.
//! * [`hash`]: BLAKE2s, its MAC and WireGuard's KDF.
//! * [`random`]: the system's random numbers.

pub mod aead;
pub mod hash;
mod lanes;
pub mod random;
pub mod x25519;
