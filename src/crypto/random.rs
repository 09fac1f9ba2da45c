//! The system's random numbers. The protocol machines take any [`rand_core::CryptoRng`]; this is the one that a
//! running gateway hands them.

use std::convert::Infallible;
use std::io;

use rand_core::utils::next_word_via_fill;
use rand_core::{TryCryptoRng, TryRng};

/// Random bytes from getrandom(2).
#[derive(Debug)]
pub struct SystemRng(());

impl SystemRng {
    /// Draws once, so that a system without getrandom(2) (a seccomp filter) is found at start.
    ///
    /// # Errors
    /// The error of getrandom(2).
    pub fn new() -> io::Result<Self> {
        let mut probe = [0; 1];
        getrandom::fill(&mut probe).map_err(io::Error::other)?;
        Ok(Self(()))
    }
}

impl TryRng for SystemRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        if getrandom::fill(bytes).is_err() {
            // Worked at start and cannot fail later (getrandom(2): only before the pool is ready). A guessable
            // key would be worse than no process.
            std::process::abort();
        }
        Ok(())
    }
}

impl TryCryptoRng for SystemRng {}

/// A source of "random" bytes for tests: those given, then a reproducible stream.
#[cfg(test)]
pub(crate) struct ScriptedRng {
    script: std::collections::VecDeque<u8>,
    seed: u64,
    drawn: u64,
}

#[cfg(test)]
impl ScriptedRng {
    /// A stream that depends on `seed` alone.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { script: std::collections::VecDeque::new(), seed, drawn: 0 }
    }

    /// `bytes` come first.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.script.extend(bytes);
    }
}

#[cfg(test)]
impl TryRng for ScriptedRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(32) {
            self.drawn += 1;
            let stream = super::hash::hash(&[&self.seed.to_le_bytes(), &self.drawn.to_le_bytes()]);
            for (byte, fresh) in chunk.iter_mut().zip(stream) {
                *byte = self.script.pop_front().unwrap_or(fresh);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl TryCryptoRng for ScriptedRng {}

#[cfg(test)]
mod tests {
    use rand_core::Rng as _;

    use super::*;

    #[test]
    fn the_system_gives_different_bytes_each_time() {
        let mut rng = SystemRng::new().unwrap();
        let (mut a, mut b) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut a);
        rng.fill_bytes(&mut b);
        assert_ne!(a, b);
        assert_ne!(rng.next_u64(), rng.next_u64());
    }
}
