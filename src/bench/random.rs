//! Numbers that look random and depend on a seed alone: a run can be repeated, and a test can count along.

/// One part in a million.
pub const MILLION: u32 = 1_000_000;

/// SplitMix64 (Steele, Lea, Flood 2014). For loads, never for keys that protect anything.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each seed and each `stream` of it.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(Self(Self(seed).word() ^ stream).word())
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in `parts` of a million draws, on average.
    pub fn chance(&mut self, parts: u32) -> bool {
        (u128::from(self.word()) * u128::from(MILLION)) >> 64 < u128::from(parts)
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            for (byte, fresh) in chunk.iter_mut().zip(self.word().to_le_bytes()) {
                *byte = fresh;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_its_seeds_and_nobody_elses() {
        let draw = |seed, stream| -> [u64; 4] {
            let mut random = Random::new(seed, stream);
            std::array::from_fn(|_| random.word())
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        for other in [draw(1, 3), draw(2, 2), draw(2, 1), draw(0, 0)] {
            assert_ne!(draw(1, 2), other);
        }
        let (mut whole, mut cut) = ([0; 16], [0; 11]);
        Random::new(5, 5).fill(&mut whole);
        Random::new(5, 5).fill(&mut cut);
        assert_eq!(whole[..11], cut);
    }

    #[test]
    fn a_chance_is_kept() {
        for (parts, most) in [(0, 0), (MILLION, 100_000), (10_000, 1_100), (500_000, 51_000)] {
            let mut random = Random::new(7, u64::from(parts));
            let hits = (0..100_000).filter(|_| random.chance(parts)).count();
            assert!(hits <= most && hits * 10 >= most * 9, "{parts} of a million: {hits} of 100,000");
        }
    }
}
