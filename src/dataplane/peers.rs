//! A worker's peers: their sessions by slot, by receiver index and by deadline, and every peer's prefixes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::allowed_ips::AllowedIps;
use crate::mutation::holds;
use crate::noise::peer_session::PeerSession;
use crate::noise::timers::Wheel;
use crate::types::{PeerId, Time};

/// Receiver indices are drawn at random by ourselves, so they are their own hash.
#[derive(Default)]
pub struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }
    fn write_u32(&mut self, index: u32) {
        // hashbrown takes its tag from the top bits and its bucket from the low ones: fill both.
        self.0 = (u64::from(index) << 32) | u64::from(index);
    }
}

/// One peer on its owner.
pub struct Peer {
    /// Slot and generation.
    pub id: PeerId,
    /// The protocol's machine.
    pub session: PeerSession,
    /// Its part of the worker's sum of staged bytes.
    pub staged_bytes: usize,
}

/// The table.
pub struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    indices: HashMap<u32, u32, BuildHasherDefault<IndexHasher>>,
    wheel: Wheel,
    /// Prefix → (peer, owner), for the peers of every worker.
    pub allowed_ips: AllowedIps,
}

impl Peers {
    /// An empty table.
    #[must_use]
    pub fn new(allowed_ips: AllowedIps, now: Time) -> Self {
        Self { slots: Vec::new(), indices: HashMap::default(), wheel: Wheel::new(0, now), allowed_ips }
    }

    /// Adds a peer; an older one in the same slot must have been removed.
    pub fn add(&mut self, id: PeerId, session: PeerSession) {
        let slot = id.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Box::new(Peer { id, session, staged_bytes: 0 }));
    }

    /// Takes a peer out; its deadline is cancelled, its indices are the caller's to release.
    pub fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let entry = self.slots.get_mut(id.slot as usize)?;
        if entry.as_ref()?.id != id {
            return None;
        }
        self.wheel.cancel(id.slot);
        entry.take()
    }

    /// The peer, if it is the one of this generation.
    #[inline]
    pub fn by_id(&mut self, id: PeerId) -> Option<&mut Peer> {
        let peer = self.slots.get_mut(id.slot as usize)?.as_deref_mut();
        peer.filter(|peer| holds("owner-generation", peer.id == id))
    }

    /// The peer in a slot.
    #[inline]
    pub fn by_slot(&mut self, slot: u32) -> Option<&mut Peer> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Every peer.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().filter_map(|peer| peer.as_deref_mut())
    }

    /// The slot whose session has this local receiver index.
    #[inline]
    #[must_use]
    pub fn slot_of_index(&self, index: u32) -> Option<u32> {
        self.indices.get(&index).copied()
    }

    /// A keypair was installed.
    pub fn add_index(&mut self, index: u32, slot: u32) {
        self.indices.insert(index, slot);
    }

    /// A keypair is gone.
    pub fn remove_index(&mut self, index: u32) {
        self.indices.remove(&index);
    }

    /// Sets the wheel to the session's deadline; nearly free while it only moves later.
    #[inline]
    pub fn arm(&mut self, slot: u32) {
        let Some(peer) = self.slots.get(slot as usize).and_then(|peer| peer.as_deref()) else { return };
        match peer.session.deadline() {
            Some(deadline) => self.wheel.schedule(slot, deadline),
            None => self.wheel.cancel(slot),
        }
    }

    /// Collects the slots whose deadline has passed; the caller lets their sessions act and arms them again.
    pub fn expire(&mut self, now: Time, due: &mut Vec<u32>) {
        self.wheel.expire(now, &mut |slot| due.push(slot));
    }

    /// A lower bound of the next deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.wheel.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::timers::Limits;

    #[test]
    fn a_peer_of_another_generation_is_not_found() {
        let mut peers = Peers::new(AllowedIps::new(), Time::default());
        let id = PeerId { slot: 2, generation: 5 };
        peers.add(id, PeerSession::new(id, Limits::PAPER, 0));
        for generation in [4, 6] {
            let other = PeerId { generation, ..id };
            assert!(peers.by_id(other).is_none());
            assert!(peers.remove(other).is_none(), "and not removed");
        }
        assert!(peers.by_id(PeerId { slot: 1, ..id }).is_none());
        assert_eq!(peers.by_id(id).map(|peer| peer.id), Some(id));
        assert!(peers.remove(id).is_some() && peers.by_id(id).is_none());
    }
}
