//! allowed-ips: which peer, on which worker, owns an address.
//!
//! Each worker holds its own table of all prefixes, its peers' and the others': outbound it names the peer of a
//! destination, inbound it tells whether a decrypted packet's source is its sender's ("cryptokey routing", WireGuard
//! white paper section 2), and for a packet that landed on the wrong worker it names the right one.
//!
//! 1. Hosts (/32 and /128, nearly every prefix of a gateway) stand in a hash table. No prefix is longer, so a hit is
//!    the answer.
//! 2. Shorter prefixes stand in one trie per family (`trie`).
//! 3. Every prefix is linked into a list of its peer, so that a peer is removed at the cost of its own prefixes.
//!
//! Nothing is allocated by a lookup. Changes are made by control's deltas, on the worker's thread; they allocate
//! when a table grows. A prefix costs about 80 bytes (host) to 130 bytes (IPv6, trie).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::types::{PeerId, Prefix, WorkerId};
use trie::{Address, Trie};

#[cfg(test)]
mod tests;
mod trie;

/// A worker's table prefix → (peer, owning worker).
pub struct AllowedIps {
    v4: Table<u32>,
    v6: Table<u128>,
    lists: Lists,
}

impl Default for AllowedIps {
    fn default() -> Self {
        Self::new()
    }
}

impl AllowedIps {
    /// An empty table; its hash is keyed by the system's randomness.
    #[must_use]
    pub fn new() -> Self {
        Self::keyed(KeyedState::random())
    }

    /// An empty table whose hash is the same in every run, so that its instructions can be counted: a table that
    /// others put prefixes into is made by [`AllowedIps::new`].
    #[must_use]
    pub fn with_key(seed: u64, multiplier: u64) -> Self {
        Self::keyed(KeyedState { seed, multiplier: multiplier | 1 })
    }

    fn keyed(hash: KeyedState) -> Self {
        Self { v4: Table::new(hash), v6: Table::new(hash), lists: Lists::new(hash) }
    }

    /// Gives `prefix` to `peer`, whose owner is `worker`, and returns whom it was taken from (the same peer, if it
    /// had it already). A prefix has one owner at any time.
    pub fn insert(&mut self, prefix: Prefix, peer: PeerId, worker: WorkerId) -> Option<(PeerId, WorkerId)> {
        let bound = Bound { peer, worker, entry: self.lists.add(peer, prefix) };
        let previous = match prefix.addr() {
            IpAddr::V4(addr) => self.v4.insert(addr.to_bits(), prefix.len(), bound),
            IpAddr::V6(addr) => self.v6.insert(addr.to_bits(), prefix.len(), bound),
        }?;
        self.lists.remove(previous.peer, previous.entry);
        Some((previous.peer, previous.worker))
    }

    /// Takes `prefix` from its owner. False if nobody has exactly this prefix.
    pub fn remove(&mut self, prefix: Prefix) -> bool {
        let removed = match prefix.addr() {
            IpAddr::V4(addr) => self.v4.remove(addr.to_bits(), prefix.len()),
            IpAddr::V6(addr) => self.v6.remove(addr.to_bits(), prefix.len()),
        };
        let Some(bound) = removed else { return false };
        self.lists.remove(bound.peer, bound.entry);
        true
    }

    /// Takes every prefix of `peer` and returns how many it had; costs by their number alone.
    pub fn remove_peer(&mut self, peer: PeerId) -> usize {
        let mut count = 0;
        // What is in the list is in the table; a worker must not spin even if that were ever broken.
        while let Some(prefix) = self.lists.first(peer)
            && self.remove(prefix)
        {
            count += 1;
        }
        count
    }

    /// The owner of the longest prefix that holds `addr`. An IPv4-mapped IPv6 address is an IPv6 address.
    #[inline]
    #[must_use]
    pub fn lookup(&self, addr: IpAddr) -> Option<(PeerId, WorkerId)> {
        let bound = match addr {
            IpAddr::V4(addr) => self.v4.lookup(addr.to_bits()),
            IpAddr::V6(addr) => self.v6.lookup(addr.to_bits()),
        }?;
        Some((bound.peer, bound.worker))
    }

    /// True if a packet that `peer` sealed may bear the source address `addr`: the longest prefix decides, so a wider
    /// prefix of this peer does not help where another peer has a narrower one.
    #[inline]
    #[must_use]
    pub fn allowed_source(&self, addr: IpAddr, peer: PeerId) -> bool {
        self.lookup(addr).is_some_and(|(owner, _)| owner == peer)
    }

    /// The prefixes of `peer`, the newest first.
    pub fn prefixes_of(&self, peer: PeerId) -> impl Iterator<Item = Prefix> + '_ {
        std::iter::successors(self.lists.heads.get(&peer).copied(), |&at| self.lists.entry(at)?.next)
            .filter_map(|at| self.lists.entry(at))
            .map(|entry| entry.prefix)
    }

    /// How many prefixes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lists.entries.len() - self.lists.free.len()
    }

    /// True without any prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a prefix leads to: its owner, and its place in the owner's list.
#[derive(Clone, Copy)]
struct Bound {
    peer: PeerId,
    worker: WorkerId,
    entry: EntryId,
}

/// The prefixes of one family.
struct Table<K> {
    hosts: HashMap<K, Bound, KeyedState>,
    nets: Trie<K, Bound>,
}

impl<K: Address> Table<K> {
    fn new(hash: KeyedState) -> Self {
        Self { hosts: HashMap::with_hasher(hash), nets: Trie::new() }
    }

    #[inline]
    fn lookup(&self, key: K) -> Option<Bound> {
        self.hosts.get(&key).copied().or_else(|| self.nets.lookup(key))
    }

    fn insert(&mut self, key: K, len: u8, bound: Bound) -> Option<Bound> {
        if len == K::BITS { self.hosts.insert(key, bound) } else { self.nets.insert(key, len, bound) }
    }

    fn remove(&mut self, key: K, len: u8) -> Option<Bound> {
        if len == K::BITS { self.hosts.remove(&key) } else { self.nets.remove(key, len) }
    }
}

/// The number of a list entry plus one, so that `Option` costs nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct EntryId(NonZeroU32);

impl EntryId {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

struct Entry {
    prefix: Prefix,
    previous: Option<EntryId>,
    next: Option<EntryId>,
}

/// One doubly linked list of prefixes per peer, in one arena whose entries are used again.
struct Lists {
    entries: Vec<Entry>,
    free: Vec<EntryId>,
    heads: HashMap<PeerId, EntryId, KeyedState>,
}

impl Lists {
    fn new(hash: KeyedState) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), heads: HashMap::with_hasher(hash) }
    }

    fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(id.index())
    }

    fn first(&self, peer: PeerId) -> Option<Prefix> {
        self.heads.get(&peer).and_then(|&head| self.entry(head)).map(|entry| entry.prefix)
    }

    fn add(&mut self, peer: PeerId, prefix: Prefix) -> EntryId {
        let next = self.heads.get(&peer).copied();
        let entry = Entry { prefix, previous: None, next };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id.index()] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                // 2^32 entries would need 128 GiB: the number never saturates.
                EntryId(NonZeroU32::MIN.saturating_add(self.entries.len() as u32 - 1))
            }
        };
        if let Some(next) = next {
            self.entries[next.index()].previous = Some(id);
        }
        self.heads.insert(peer, id);
        id
    }

    /// Unlinks `id` from the list of `peer`, in which it stands.
    fn remove(&mut self, peer: PeerId, id: EntryId) {
        let Entry { previous, next, .. } = self.entries[id.index()];
        match (previous, next) {
            (Some(previous), _) => self.entries[previous.index()].next = next,
            (None, Some(next)) => drop(self.heads.insert(peer, next)),
            (None, None) => drop(self.heads.remove(&peer)),
        }
        if let Some(next) = next {
            self.entries[next.index()].previous = previous;
        }
        self.free.push(id);
    }
}

/// A keyed multiply-and-fold hash: two or three instructions per word, where SipHash costs a third of a lookup. The
/// stored addresses come from the configuration, and a stranger's packet can only ask for one that is not there,
/// so it has to spread well but not to withstand an adversary who watches it; the key keeps collisions from being
/// computed beforehand.
#[derive(Clone, Copy)]
struct KeyedState {
    seed: u64,
    multiplier: u64,
}

impl KeyedState {
    fn random() -> Self {
        let random = RandomState::new();
        // Odd, so that no bit of the input is lost in the product.
        Self { seed: random.hash_one(0_u8), multiplier: random.hash_one(1_u8) | 1 }
    }
}

impl BuildHasher for KeyedState {
    type Hasher = KeyedHasher;

    #[inline]
    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { state: self.seed, multiplier: self.multiplier }
    }
}

struct KeyedHasher {
    state: u64,
    multiplier: u64,
}

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    #[inline]
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.state ^ n) * u128::from(self.multiplier);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    #[inline]
    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
        self.write_u64((n >> 64) as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.state
    }
}
