//! A worker's peers: their sessions by slot, by receiver index and by deadline, and every peer's prefixes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::SocketAddr;

use super::allowed_ips::AllowedIps;
use super::frames::{Allowance, Lost};
use super::news::Told;
use crate::mutation::holds;
use crate::noise::peer_session::PeerSession;
use crate::noise::timers::Wheel;
use crate::sys::slab::Slab;
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

/// No peer of ours in this slot.
const NOBODY: u32 = u32::MAX;

/// One peer on its owner.
pub struct Peer {
    /// Slot and generation.
    pub id: PeerId,
    /// The protocol's machine.
    pub session: PeerSession,
    /// Its part of the worker's sum of staged bytes.
    pub staged_bytes: usize,
    /// It counts among the worker's sessions.
    pub established: bool,
    /// It waits for the worker to serve it.
    pub due: bool,
    /// It wants a keepalive sent if nothing else is.
    pub keepalive: bool,
    /// How many of its control frames are looked at.
    pub frames: Allowance,
    /// Packets for it that were dropped and that it does not know of.
    pub lost: Lost,
    /// What control knows of its session.
    pub told: Told,
}

/// The table.
pub struct Peers {
    /// Where the peer of each slot stands in `sessions`; [`NOBODY`] if it is another worker's.
    slots: Vec<u32>,
    sessions: Slab<Peer>,
    count: usize,
    indices: HashMap<u32, u32, BuildHasherDefault<IndexHasher>>,
    wheel: Wheel,
    /// Where the next initiation of a peer goes as well; of a client's gateways only.
    rivals: Vec<(PeerId, SocketAddr)>,
    /// Prefix → (peer, owner), for the peers of every worker.
    pub allowed_ips: AllowedIps,
}

impl Peers {
    /// An empty table.
    #[must_use]
    pub fn new(allowed_ips: AllowedIps, now: Time) -> Self {
        Self {
            slots: Vec::new(),
            sessions: Slab::default(),
            count: 0,
            indices: HashMap::default(),
            wheel: Wheel::new(0, now),
            rivals: Vec::new(),
            allowed_ips,
        }
    }

    /// Adds a peer; an older one in the same slot must have been removed.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn add(&mut self, id: PeerId, session: PeerSession) -> io::Result<()> {
        let slot = id.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, NOBODY);
        }
        self.slots[slot] = self.sessions.insert(Peer {
            id,
            session,
            staged_bytes: 0,
            established: false,
            due: false,
            keepalive: false,
            frames: Allowance::default(),
            lost: Lost::default(),
            told: Told::default(),
        })?;
        self.count += 1;
        Ok(())
    }

    /// Forgets a peer and its deadline; the indices of its keypairs are the caller's to release before.
    pub fn remove(&mut self, id: PeerId) {
        if self.by_id(id).is_some() {
            self.wheel.cancel(id.slot);
            self.take_rival(id);
            let index = std::mem::replace(&mut self.slots[id.slot as usize], NOBODY);
            self.sessions.remove(index);
            self.count -= 1;
        }
    }

    /// The peer's next initiation goes to this address as well, or to none but its endpoint. The gateway takes the copy
    /// that comes first, for the other one has the same timestamp; whence it answers is the endpoint from then on.
    pub fn set_rival(&mut self, id: PeerId, rival: Option<SocketAddr>) {
        self.take_rival(id);
        if self.by_id(id).is_some() {
            self.rivals.extend(rival.map(|rival| (id, rival)));
        }
    }

    /// What was set, once.
    pub fn take_rival(&mut self, id: PeerId) -> Option<SocketAddr> {
        let at = self.rivals.iter().position(|(peer, _)| *peer == id)?;
        Some(self.rivals.swap_remove(at).1)
    }

    /// The peer, if it is the one of this generation.
    #[inline]
    pub fn by_id(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.by_slot(id.slot).filter(|peer| holds("owner-generation", peer.id == id))
    }

    /// The peer in a slot.
    #[inline]
    pub fn by_slot(&mut self, slot: u32) -> Option<&mut Peer> {
        self.sessions.value_mut(*self.slots.get(slot as usize)?)
    }

    /// The slots of all peers.
    #[must_use]
    pub fn all(&self) -> Vec<u32> {
        self.iter().map(|peer| peer.id.slot).collect()
    }

    /// How many peers there are.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Every peer.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.sessions.indices().filter_map(|index| self.sessions.value(index))
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
        let Some(peer) = self.by_slot(slot) else { return };
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

    /// Of 1 KiB that a configured peer costs in all tables (docs/decisions/0057-idle-peers.md).
    #[test]
    fn a_peer_without_a_session_takes_six_cache_lines() {
        assert!(size_of::<Peer>() <= 6 * 64, "{}", size_of::<Peer>());
    }

    #[test]
    fn a_peer_of_another_generation_is_not_found() {
        let mut peers = Peers::new(AllowedIps::new(), Time::default());
        let id = PeerId { slot: 2, generation: 5 };
        peers.add(id, PeerSession::new(id, Limits::PAPER, 0)).unwrap();
        assert_eq!(peers.count(), 1);
        for generation in [4, 6] {
            let other = PeerId { generation, ..id };
            assert!(peers.by_id(other).is_none());
            peers.remove(other);
            assert_eq!(peers.count(), 1);
        }
        assert!(peers.by_id(PeerId { slot: 1, ..id }).is_none());
        assert_eq!(peers.by_id(id).map(|peer| peer.id), Some(id));
        peers.remove(id);
        assert!(peers.by_id(id).is_none() && peers.iter().next().is_none());
        assert_eq!(peers.count(), 0);
    }
}
