//! Cryptography behind safe interfaces.
//!
//! * [`aead`]: ChaCha20-Poly1305 for transport data, one packet or a run of a peer's packets.
//! * [`x25519`]: the handshake's Diffie-Hellman.
//! * [`hash`]: BLAKE2s, its MAC and WireGuard's KDF.
//! * [`random`]: the system's random numbers.

pub mod aead;
pub mod hash;
pub mod random;
pub mod x25519;
