//! One record per address that somebody has, had or shall have: found by address and by client, and each on at most
//! one list.
//!
//! Bytes count here, at ten million leases: a record has 56, and either index four and a control byte per bucket.
//! Indices name records instead of repeating keys, and lists go through the records.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::Ipv4Addr;

use hashbrown::HashTable;

use crate::types::{Moment, PublicKey};

/// The place of a record.
pub(super) type Slot = u32;
/// No record. There are at most 2^32 - 1, one per address but one.
pub(super) const NONE: Slot = Slot::MAX;

/// What an address is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The client's, until [`Record::until`]; in the queue of what falls due then.
    Leased,
    /// Nobody's yet, until [`Record::until`]; in the same queue.
    Resting,
    /// Anybody's, its last client's before all; on its pool's list, the one that was freed first in front.
    Free,
    /// Reserved, and not leased at the moment; on no list.
    Held,
}

/// An address and its client.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) client: PublicKey,
    pub(super) address: Ipv4Addr,
    /// When the client got it.
    pub(super) since: Moment,
    /// When the state ends, or for one that is free: began.
    pub(super) until: Moment,
    prev: Slot,
    next: Slot,
    /// Whose usage counts it, or whose list it is on.
    pub(super) pool: u16,
    pub(super) state: State,
    /// Nobody else ever gets it.
    pub(super) reserved: bool,
}

impl Record {
    pub(super) fn new(address: Ipv4Addr, client: PublicKey, pool: u16) -> Self {
        Self {
            client,
            address,
            since: Moment::default(),
            until: Moment::default(),
            prev: NONE,
            next: NONE,
            pool,
            state: State::Held,
            reserved: false,
        }
    }

    /// Set aside for a client that never had it.
    pub(super) fn is_earmark(&self) -> bool {
        self.state == State::Free && self.since == Moment::default()
    }
}

/// A list through the records.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: Slot,
    tail: Slot,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

impl List {
    /// The record that has been on it longest.
    pub(super) fn first(self) -> Option<Slot> {
        (self.head != NONE).then_some(self.head)
    }
}

/// All records. A slot that [`Self::insert`] returned is valid until [`Self::remove`]; nobody outside keeps one longer.
#[derive(Debug)]
pub(super) struct Records<S> {
    all: Vec<Record>,
    /// Slots without a record, through `next`.
    vacant: Slot,
    by_address: HashTable<Slot>,
    /// The record that a client is sent to: the address that it has, or had last.
    by_client: HashTable<Slot>,
    /// What falls due, by second.
    due: BTreeMap<Moment, List>,
    hasher: S,
}

impl<S: BuildHasher> Records<S> {
    pub(super) fn new(hasher: S) -> Self {
        Self {
            all: Vec::new(),
            vacant: NONE,
            by_address: HashTable::new(),
            by_client: HashTable::new(),
            due: BTreeMap::new(),
            hasher,
        }
    }

    pub(super) fn get(&self, slot: Slot) -> &Record {
        &self.all[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut Record {
        &mut self.all[slot as usize]
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.by_address.len()
    }

    /// How many slots there are, those without a record included.
    pub(super) fn slots(&self) -> usize {
        self.all.len()
    }

    pub(super) fn of_address(&self, address: Ipv4Addr) -> Option<Slot> {
        let same = |slot: &Slot| self.all[*slot as usize].address == address;
        self.by_address.find(self.hasher.hash_one(address), same).copied()
    }

    pub(super) fn of_client(&self, client: &PublicKey) -> Option<Slot> {
        let same = |slot: &Slot| self.all[*slot as usize].client == *client;
        self.by_client.find(self.hasher.hash_one(client), same).copied()
    }

    /// The records of these slots, the first included, the last not.
    pub(super) fn between(&self, from: Slot, to: Slot) -> impl Iterator<Item = (Slot, &Record)> {
        let end = self.all.len().min(to as usize);
        let some = self.all.get((from as usize).min(end)..end).unwrap_or_default();
        let each = (from..).zip(some);
        // What was removed is still there.
        each.filter(|(slot, record)| self.of_address(record.address) == Some(*slot))
    }

    /// Adds a record for an address that has none; its client is not sent to it yet.
    pub(super) fn insert(&mut self, record: Record) -> Slot {
        let hash = self.hasher.hash_one(record.address);
        let slot = match self.vacant {
            NONE => {
                if self.all.len() == self.all.capacity() {
                    // An eighth more, not twice as much.
                    self.all.reserve_exact(self.all.len() / 8 + 64);
                }
                self.all.push(record);
                (self.all.len() - 1) as Slot
            }
            slot => {
                self.vacant = self.all[slot as usize].next;
                self.all[slot as usize] = record;
                slot
            }
        };
        let (all, hasher) = (&self.all, &self.hasher);
        self.by_address.insert_unique(hash, slot, |slot| hasher.hash_one(all[*slot as usize].address));
        slot
    }

    /// Removes a record that is on no list.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.disown(slot);
        let hash = self.hasher.hash_one(self.get(slot).address);
        if let Ok(entry) = self.by_address.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
        self.get_mut(slot).next = self.vacant;
        self.vacant = slot;
    }

    /// Makes this the record that `client` is sent to, and the client's.
    pub(super) fn own(&mut self, slot: Slot, client: PublicKey) {
        if self.of_client(&client) == Some(slot) {
            return;
        }
        self.disown(slot);
        self.get_mut(slot).client = client;
        if let Some(before) = self.of_client(&client) {
            self.disown(before);
        }
        let hash = self.hasher.hash_one(client);
        let (all, hasher) = (&self.all, &self.hasher);
        self.by_client.insert_unique(hash, slot, |slot| hasher.hash_one(all[*slot as usize].client));
    }

    /// Its client, if it is sent here, is sent nowhere.
    pub(super) fn disown(&mut self, slot: Slot) {
        let hash = self.hasher.hash_one(self.get(slot).client);
        if let Ok(entry) = self.by_client.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
    }

    /// Puts a record at a list's end.
    pub(super) fn push(&mut self, list: &mut List, slot: Slot) {
        let record = &mut self.all[slot as usize];
        (record.prev, record.next) = (list.tail, NONE);
        match list.tail {
            NONE => list.head = slot,
            tail => self.all[tail as usize].next = slot,
        }
        list.tail = slot;
    }

    /// Takes a record off the list that it is on.
    pub(super) fn unlink(&mut self, list: &mut List, slot: Slot) {
        let Record { prev, next, .. } = self.all[slot as usize];
        match prev {
            NONE => list.head = next,
            prev => self.all[prev as usize].next = next,
        }
        match next {
            NONE => list.tail = prev,
            next => self.all[next as usize].prev = prev,
        }
    }

    /// Puts a record into the queue, at its `until`.
    pub(super) fn enqueue(&mut self, slot: Slot) {
        let at = self.get(slot).until;
        let mut list = self.due.get(&at).copied().unwrap_or_default();
        self.push(&mut list, slot);
        self.due.insert(at, list);
    }

    /// Takes a record out of the queue.
    pub(super) fn dequeue(&mut self, slot: Slot) {
        let at = self.get(slot).until;
        let Some(mut list) = self.due.get(&at).copied() else { return };
        self.unlink(&mut list, slot);
        if list.first().is_some() {
            self.due.insert(at, list);
        } else {
            self.due.remove(&at);
        }
    }

    /// Takes the first record out of the queue that has fallen due.
    pub(super) fn take_due(&mut self, now: Moment) -> Option<Slot> {
        let (_, list) = self.due.first_key_value().filter(|(at, _)| **at <= now)?;
        let slot = list.first()?;
        self.dequeue(slot);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use super::*;

    /// What `make figures` does with ten million (benches/lease.rs), with fewer: one index just after it has grown.
    #[test]
    fn a_lease_takes_few_bytes() {
        assert_eq!(size_of::<Record>(), 56);
        let mut records = Records::new(RandomState::new());
        let count = 115_000_u32;
        for n in 0..count {
            let mut client = PublicKey([0; 32]);
            client.0[..4].copy_from_slice(&n.to_le_bytes());
            let slot = records.insert(Record::new(Ipv4Addr::from_bits(n), client, 0));
            records.own(slot, client);
            records.get_mut(slot).until = Moment(n / 100);
            records.enqueue(slot);
        }
        let indices = records.by_address.allocation_size() + records.by_client.allocation_size();
        let bytes = (records.all.capacity() * size_of::<Record>() + indices) / count as usize;
        assert!(bytes <= 86, "{bytes} bytes per lease");
        assert_eq!(records.of_address(Ipv4Addr::from_bits(7)), Some(7));
        let due: Vec<_> = std::iter::from_fn(|| records.take_due(Moment(9))).collect();
        assert_eq!(due, (0..1000).collect::<Vec<_>>(), "in the order of their ends");
    }
}
