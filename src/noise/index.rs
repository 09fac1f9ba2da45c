//! Receiver indices: the 32-bit number that the peer writes into every message to us, by which a transport message
//! finds its session.
//!
//! An index is random (a structured one would tell an observer how many sessions there are) and unique while it is
//! alive. It also names the worker that owns the peer: it is drawn again until the keyed hash [`IndexKey::owner`]
//! gives that worker. The same hash runs as a classic BPF program on the reuseport group, so it uses only what
//! classic BPF has: 32-bit add, multiply, exclusive or, shift, modulo. Its key is random at start, so that a peer
//! cannot choose, from the indices it sees, which worker a stranger's datagrams load.

use std::collections::HashMap;

use rand_core::CryptoRng;

use crate::types::{PeerId, WorkerId};

/// First multiplier (the first prime of xxHash32; odd, so that no bit of the index is lost).
pub const M0: u32 = 0x9E37_79B1;
/// Second multiplier (the second prime of xxHash32).
pub const M1: u32 = 0x85EB_CA77;
/// Third multiplier (the third prime of xxHash32).
pub const M2: u32 = 0xC2B2_AE3D;
/// How far the hash shifts right after each multiplication.
pub const SHIFTS: [u32; 3] = [15, 13, 16];

/// An index is drawn at most this many times per worker: the chance to miss one worker of many so often is e^-64.
const DRAWS_PER_WORKER: u32 = 64;

/// The key of the hash from index to worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexKey {
    k0: u32,
    k1: u32,
    k2: u32,
}

impl IndexKey {
    /// From three words.
    #[must_use]
    pub const fn new(words: [u32; 3]) -> Self {
        let [k0, k1, k2] = words;
        Self { k0, k1, k2 }
    }

    /// A random key; one is drawn per process.
    #[must_use]
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self::new([rng.next_u32(), rng.next_u32(), rng.next_u32()])
    }

    /// The three words, in the order in which the hash uses them.
    #[must_use]
    pub const fn words(&self) -> [u32; 3] {
        [self.k0, self.k1, self.k2]
    }

    /// The worker, of `workers` (0 counts as 1), that an index names. The index travels in little-endian order and
    /// classic BPF loads words in big-endian order, so the hash is defined on the byte-swapped value: what BPF loads.
    #[must_use]
    pub const fn owner(&self, index: u32, workers: u16) -> WorkerId {
        let mut x = index.swap_bytes();
        x ^= self.k0;
        x = x.wrapping_mul(M0);
        x ^= x >> SHIFTS[0];
        x = x.wrapping_add(self.k1);
        x = x.wrapping_mul(M1);
        x ^= x >> SHIFTS[1];
        x ^= self.k2;
        x = x.wrapping_mul(M2);
        x ^= x >> SHIFTS[2];
        let workers = if workers == 0 { 1 } else { workers };
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a division by a u16")]
        WorkerId((x % workers as u32) as u16)
    }
}

/// What an index stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// Our initiation is on its way; its response will carry the index.
    Pending,
    /// A keypair at the peer's owner. Only the owner gives it back.
    Live,
}

/// Every index in use, and whose it is.
pub struct IndexTable {
    key: IndexKey,
    workers: u16,
    table: HashMap<u32, (PeerId, IndexState)>,
}

impl IndexTable {
    /// An empty table for a process with `workers` workers.
    #[must_use]
    pub fn new(workers: u16, key: IndexKey) -> Self {
        Self { key, workers, table: HashMap::new() }
    }

    /// The worker that an index names.
    #[must_use]
    pub fn owner(&self, index: u32) -> WorkerId {
        self.key.owner(index, self.workers)
    }

    /// Draws an unused index that names `owner`. `None` if none was found in 64 draws per worker, or if there is no
    /// such worker.
    pub fn draw(
        &mut self,
        peer: PeerId,
        owner: WorkerId,
        state: IndexState,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Option<u32> {
        let draws = DRAWS_PER_WORKER * u32::from(self.workers.max(1));
        let index = (0..draws)
            .map(|_| rng.next_u32())
            .find(|&index| self.owner(index) == owner && !self.table.contains_key(&index))?;
        self.table.insert(index, (peer, state));
        Some(index)
    }

    /// Whose index it is and what it stands for.
    #[must_use]
    pub fn find(&self, index: u32) -> Option<(PeerId, IndexState)> {
        self.table.get(&index).copied()
    }

    /// A pending handshake became a keypair.
    pub fn promote(&mut self, index: u32) {
        if let Some((_, state)) = self.table.get_mut(&index) {
            *state = IndexState::Live;
        }
    }

    /// Makes an index unused if it is in `state`: a stranger to that state keeps it.
    pub fn release(&mut self, index: u32, state: IndexState) {
        if self.find(index).is_some_and(|(_, found)| found == state) {
            self.table.remove(&index);
        }
    }

    /// How many are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True if none is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::random::ScriptedRng;

    const PEER: PeerId = PeerId { slot: 3, generation: 1 };
    const KEY: IndexKey = IndexKey::new([0x0123_4567, 0x89ab_cdef, 0xdead_beef]);

    #[test]
    fn the_hash_is_pinned() {
        // A program in another language computes the same: a change here is a change of both.
        let x = 0x0403_0201u32 ^ 0x0123_4567;
        let x = x.wrapping_mul(0x9E37_79B1);
        let x = (x ^ x >> 15).wrapping_add(0x89ab_cdef).wrapping_mul(0x85EB_CA77);
        let x = (x ^ x >> 13 ^ 0xdead_beef).wrapping_mul(0xC2B2_AE3D);
        let x = x ^ x >> 16;
        assert_eq!(KEY.owner(0x0102_0304, 7), WorkerId((x % 7) as u16));
        assert_eq!(KEY.words(), [0x0123_4567, 0x89ab_cdef, 0xdead_beef]);
    }

    #[test]
    fn no_workers_counts_as_one() {
        assert_eq!(KEY.owner(99, 0), WorkerId(0));
        assert_eq!(KEY.owner(99, 1), WorkerId(0));
    }

    #[test]
    fn the_hash_spreads_evenly_and_depends_on_the_key() {
        let other = IndexKey::random(&mut ScriptedRng::seeded(5));
        let mut counts = [0u32; 5];
        let mut same = 0;
        for index in 0..50_000 {
            let owner = KEY.owner(index, 5);
            counts[owner.index()] += 1;
            same += u32::from(owner == other.owner(index, 5));
        }
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
        assert!((9_000..11_000).contains(&same), "{same}");
    }

    #[test]
    fn indices_are_unique_and_name_their_owner() {
        for workers in [1, 2, 3, 5] {
            let mut rng = ScriptedRng::seeded(u64::from(workers));
            let mut table = IndexTable::new(workers, KEY);
            let mut seen = std::collections::HashSet::new();
            for n in 0..2_000u16 {
                let owner = WorkerId(n % workers);
                let index = table.draw(PEER, owner, IndexState::Live, &mut rng).unwrap();
                assert!(seen.insert(index));
                assert_eq!(table.owner(index), owner);
            }
            assert_eq!(table.len(), 2_000);
        }
    }

    #[test]
    fn an_index_in_use_is_drawn_again_and_a_released_one_is_free() {
        let mut rng = ScriptedRng::seeded(1);
        let mut table = IndexTable::new(1, KEY);
        rng.push(&7u32.to_le_bytes());
        assert_eq!(table.draw(PEER, WorkerId(0), IndexState::Pending, &mut rng), Some(7));
        rng.push(&7u32.to_le_bytes());
        let second = table.draw(PEER, WorkerId(0), IndexState::Pending, &mut rng).unwrap();
        assert_ne!(second, 7);
        table.release(7, IndexState::Live);
        assert_eq!(table.find(7), Some((PEER, IndexState::Pending)), "it is not live");
        table.promote(7);
        table.release(7, IndexState::Pending);
        assert_eq!(table.find(7), Some((PEER, IndexState::Live)), "no longer pending");
        table.release(7, IndexState::Live);
        rng.push(&7u32.to_le_bytes());
        assert_eq!(table.draw(PEER, WorkerId(0), IndexState::Live, &mut rng), Some(7));
    }

    #[test]
    fn a_worker_that_does_not_exist_gets_none() {
        let mut table = IndexTable::new(2, KEY);
        let drawn = table.draw(PEER, WorkerId(2), IndexState::Live, &mut ScriptedRng::seeded(1));
        assert_eq!(drawn, None);
        assert!(table.is_empty());
    }

    proptest! {
        #[test]
        fn owner_is_always_a_worker(words: [u32; 3], index: u32, workers: u16) {
            let owner = IndexKey::new(words).owner(index, workers);
            prop_assert!(owner.0 < workers.max(1));
        }
    }
}
