//! The model of truth of one WireGuard device: keys, port, mark, peers, and who owns which prefix.
//!
//! [`Device::apply`] first settles what may fail (limits, mark, port), then changes the model and notes what it
//! touched, and at last tells the data plane the difference between before and after: a request that names one
//! peer touches no other, and a prefix that moves is taken away everywhere before it is given to its new peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hashbrown::HashTable;
use subtle::ConstantTimeEq as _;

use crate::control::dataplane::{Assignment, DataPlane, NewPeer};
use crate::control::errno::Errno;
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::crypto::x25519::PrivateKey;
use crate::types::{Mark, PeerId, Prefix, PublicKey, Secret, WorkerId};

use self::prefixes::Prefixes;

mod prefixes;

/// Most peers of a device (as the kernel's module).
pub const MAX_PEERS: usize = 1 << 20;

/// Most prefixes of a device, all peers together. Each costs a worker one trie node or two.
pub const MAX_PREFIXES: usize = 1 << 22;

/// Most prefixes of a lease: one per family.
const LEASED: usize = 2;

/// Why a peer does not get what it has leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    /// The peer is gone.
    #[error("the peer is gone")]
    Gone,
    /// Another peer has the address by configuration.
    #[error("another peer has the address in its allowed-ips")]
    Taken,
    /// [`MAX_PREFIXES`].
    #[error("more than {MAX_PREFIXES} prefixes")]
    NoRoom,
}

/// One peer as configured. Bytes count here, at a million peers: what few of them have stands by itself.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    public_key: PublicKey,
    preshared_key: Option<Box<Secret>>,
    endpoint: Option<Box<SocketAddr>>,
    keepalive: Option<u16>,
    /// Set at the end of the request that makes the peer, never changed.
    worker: Option<WorkerId>,
    prefixes: Prefixes,
    /// Those of `prefixes` that it has for as long as it leases them.
    leased: Box<[Prefix]>,
    /// The address that it will most likely have, known when it is made.
    home: Option<Ipv4Addr>,
    /// It is the key of an invite's use.
    temporary: bool,
    /// See [`Device::set_lost`].
    lost: bool,
    /// Order of making.
    serial: u64,
}

impl Peer {
    /// Slot and generation.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Its identity.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Its preshared key.
    #[must_use]
    pub fn preshared_key(&self) -> Option<&Secret> {
        self.preshared_key.as_deref()
    }

    /// Whether its preshared key is this one, in time that does not depend on the bytes.
    #[must_use]
    pub fn has_preshared_key(&self, key: Option<&Secret>) -> bool {
        same_secret(self.preshared_key(), key)
    }

    /// Its endpoint as last configured; the data plane knows where it has roamed to.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.as_deref().copied()
    }

    /// Persistent keepalive, seconds.
    #[must_use]
    pub fn keepalive(&self) -> Option<u16> {
        self.keepalive
    }

    /// Its owner.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker.unwrap_or(WorkerId(0))
    }

    /// Its allowed-ips in order.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.prefixes.iter()
    }

    /// Those of its allowed-ips that it has only as long as it leases them.
    #[must_use]
    pub fn leased(&self) -> &[Prefix] {
        &self.leased
    }

    /// True for the key of an invite's use, which is nobody's device: it may ask to become a peer and nothing else.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// True for a gateway of ours that is asked and does not answer.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    fn lose(&mut self, prefix: Prefix) {
        self.prefixes.remove(prefix);
        if self.leased.contains(&prefix) {
            self.leased = self.leased.iter().copied().filter(|leased| *leased != prefix).collect();
        }
    }

    /// Its IPv4 address, if it has just one: what steering hashes.
    fn host_v4(&self) -> Option<Ipv4Addr> {
        let mut hosts =
            self.prefixes.iter().filter(Prefix::is_host).filter_map(|prefix| match prefix.addr() {
                IpAddr::V4(addr) => Some(addr),
                IpAddr::V6(_) => None,
            });
        hosts.next().filter(|_| hosts.next().is_none())
    }
}

/// A place for a peer, used again after it.
#[derive(Debug)]
struct Slot {
    generation: u32,
    peer: Option<Peer>,
}

/// Slots of a chunk.
const CHUNK: usize = 1024;

/// Every slot, in chunks: nothing is copied to make room, and none of the room is left half empty.
#[derive(Debug, Default)]
struct Slots(Vec<Vec<Slot>>);

impl Slots {
    fn get(&self, slot: u32) -> Option<&Slot> {
        self.0.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.0.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)
    }

    /// The number of the new slot.
    fn add(&mut self, slot: Slot) -> u32 {
        let full = self.0.len().saturating_sub(1) * CHUNK;
        match self.0.last_mut().filter(|last| last.len() < CHUNK) {
            // `MAX_PEERS` keeps the number of slots far below 2^32.
            Some(last) => {
                last.push(slot);
                (full + last.len() - 1) as u32
            }
            None => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(slot);
                self.0.push(chunk);
                ((self.0.len() - 1) * CHUNK) as u32
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter().flatten()
    }
}

/// What one request touched, as it was before.
#[derive(Debug, Default)]
struct Touched {
    private_key: bool,
    removed: Vec<PeerId>,
    added: BTreeSet<PeerId>,
    /// The owner before the request.
    prefixes: HashMap<Prefix, Option<PeerId>>,
    settings: BTreeMap<PeerId, Settings>,
}

/// Which settings of a peer were touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settings {
    preshared_key: bool,
    endpoint: bool,
    keepalive: bool,
}

impl Settings {
    fn add(&mut self, others: Self) {
        self.preshared_key |= others.preshared_key;
        self.endpoint |= others.endpoint;
        self.keepalive |= others.keepalive;
    }
}

/// The model.
#[derive(Debug, Default)]
pub struct Device {
    private_key: Option<Secret>,
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: Mark,
    slots: Slots,
    free: Vec<u32>,
    /// Slots: the keys stand there.
    by_key: HashTable<u32>,
    hasher: RandomState,
    owners: HashMap<Prefix, PeerId>,
    /// Peers per worker.
    load: Vec<u32>,
    serial: u64,
}

impl Device {
    /// A device without keys and peers, whose outer sockets are bound to `listen_port` (0 if they are not bound yet).
    #[must_use]
    pub fn new(listen_port: u16) -> Self {
        Self { listen_port, ..Self::default() }
    }

    /// The static private key, clamped.
    #[must_use]
    pub fn private_key(&self) -> Option<&Secret> {
        self.private_key.as_ref()
    }

    /// Belongs to [`Self::private_key`].
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.public_key
    }

    /// UDP port of the outer sockets; 0 if they are not bound.
    #[must_use]
    pub fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Mark of the outer sockets.
    #[must_use]
    pub fn fwmark(&self) -> Mark {
        self.fwmark
    }

    /// Every peer, in the order of making.
    #[must_use]
    pub fn peers(&self) -> Vec<&Peer> {
        let mut peers: Vec<_> = self.slots.iter().filter_map(|slot| slot.peer.as_ref()).collect();
        peers.sort_unstable_by_key(|peer| peer.serial);
        peers
    }

    /// The same without the keys of invites: those that somebody has.
    #[must_use]
    pub fn somebodys(&self) -> Vec<&Peer> {
        let mut peers = self.peers();
        peers.retain(|peer| !peer.temporary);
        peers
    }

    /// The peer with this identity.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        let same = |slot: &u32| self.in_slot(*slot).is_some_and(|peer| peer.public_key == *key);
        self.in_slot(*self.by_key.find(self.hasher.hash_one(key), same)?)
    }

    /// The peer, if it is there still.
    #[must_use]
    pub fn peer_by_id(&self, id: PeerId) -> Option<&Peer> {
        self.at(id)
    }

    /// Says of a gateway of ours whether it is asked and does not answer.
    pub fn set_lost(&mut self, id: PeerId, lost: bool) {
        if let Some(peer) = self.at_mut(id) {
            peer.lost = lost;
        }
    }

    /// Gives a peer what it has leased, in the place of what it had leased before, and tells the data plane the
    /// difference. The peer stays on its worker.
    ///
    /// # Errors
    /// [`LeaseRefused`]; then nothing has changed.
    pub fn set_lease<D: DataPlane>(
        &mut self,
        id: PeerId,
        prefixes: &[Prefix],
        dataplane: &mut D,
    ) -> Result<(), LeaseRefused> {
        let before = self.at(id).ok_or(LeaseRefused::Gone)?.leased.clone();
        let by_configuration = |prefix: &Prefix| {
            let other = self.owner(prefix).filter(|owner| *owner != id).and_then(|owner| self.at(owner));
            other.is_some_and(|other| !other.leased.contains(prefix))
        };
        if prefixes.iter().any(by_configuration) {
            return Err(LeaseRefused::Taken);
        }
        if self.owners.len() + prefixes.len() > MAX_PREFIXES {
            return Err(LeaseRefused::NoRoom);
        }
        let mut touched = Touched::default();
        for prefix in before.into_iter().filter(|prefix| !prefixes.contains(prefix)) {
            self.take(prefix, &mut touched);
        }
        for prefix in prefixes {
            self.give(*prefix, id, &mut touched);
        }
        if let Some(peer) = self.at_mut(id) {
            peer.leased = prefixes.iter().copied().take(LEASED).collect();
        }
        self.tell(&touched, dataplane);
        Ok(())
    }

    /// Takes from peers what they had leased, and tells the data plane.
    pub fn end_leases<D: DataPlane>(&mut self, peers: &[PeerId], dataplane: &mut D) {
        let mut touched = Touched::default();
        for id in peers {
            let leased = self.at_mut(*id).map(|peer| std::mem::take(&mut peer.leased));
            for prefix in leased.into_iter().flatten() {
                self.take(prefix, &mut touched);
            }
        }
        self.tell(&touched, dataplane);
    }

    /// Whose the prefix is (exactly this prefix, not the longest match).
    #[must_use]
    pub fn owner(&self, prefix: &Prefix) -> Option<PeerId> {
        self.owners.get(prefix).copied()
    }

    /// How many peers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_key.len()
    }

    /// Carries out a request: changes the model and tells the data plane the difference.
    ///
    /// # Errors
    /// [`Errno::NO_ROOM`] beyond [`MAX_PEERS`] or [`MAX_PREFIXES`], or what the data plane says to the mark or the
    /// port. Then nothing of the request is in force.
    pub fn apply<D: DataPlane>(&mut self, request: SetRequest, dataplane: &mut D) -> Result<(), Errno> {
        self.check_room(&request)?;
        self.set_sockets(&request, dataplane)?;
        let mut touched = Touched::default();
        if request.replace_peers {
            for id in self.peers().into_iter().map(Peer::id).collect::<Vec<_>>() {
                self.forget(id, &mut touched);
            }
        }
        if let Some(key) = request.private_key {
            self.adopt_key(key, &mut touched);
        }
        for change in request.peers {
            self.change_peer(change, &mut touched);
        }
        self.choose_owners(&touched, dataplane);
        self.tell(&touched, dataplane);
        Ok(())
    }

    /// Bounds from above what the request may add, before anything is done.
    fn check_room(&self, request: &SetRequest) -> Result<(), Errno> {
        let (peers, prefixes) =
            if request.replace_peers { (0, 0) } else { (self.by_key.len(), self.owners.len()) };
        let is_new = |change: &&PeerChange| {
            !change.remove && (request.replace_peers || self.peer(&change.public_key).is_none())
        };
        let is_new_prefix = |ip: &&AllowedIp| match ip {
            AllowedIp::Add(prefix) => request.replace_peers || !self.owners.contains_key(prefix),
            AllowedIp::Remove(_) => false,
        };
        let new_peers = request.peers.iter().filter(is_new).count();
        let new_prefixes =
            request.peers.iter().flat_map(|peer| &peer.allowed_ips).filter(is_new_prefix).count();
        if peers + new_peers > MAX_PEERS || prefixes + new_prefixes > MAX_PREFIXES {
            return Err(Errno::NO_ROOM);
        }
        Ok(())
    }

    /// The part that the kernel may refuse; all or nothing.
    fn set_sockets<D: DataPlane>(&mut self, request: &SetRequest, dataplane: &mut D) -> Result<(), Errno> {
        let old_mark = self.fwmark;
        if let Some(mark) = request.fwmark.filter(|mark| *mark != old_mark) {
            dataplane.set_fwmark(mark)?;
            self.fwmark = mark;
        }
        if let Some(port) = request.listen_port.filter(|port| *port != self.listen_port) {
            match dataplane.set_listen_port(port) {
                Ok(port) => self.listen_port = port,
                Err(errno) => {
                    if self.fwmark != old_mark && dataplane.set_fwmark(old_mark).is_ok() {
                        self.fwmark = old_mark;
                    }
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn adopt_key(&mut self, key: Option<Secret>, touched: &mut Touched) {
        if same_secret(self.private_key.as_ref(), key.as_ref()) {
            return;
        }
        self.public_key = key.as_ref().map(|key| *PrivateKey::new(key).public());
        if let Some(id) = self.public_key.and_then(|own| self.peer(&own)).map(Peer::id) {
            self.forget(id, touched);
        }
        self.private_key = key;
        touched.private_key = true;
    }

    fn change_peer(&mut self, change: PeerChange, touched: &mut Touched) {
        if self.public_key == Some(change.public_key) {
            return;
        }
        let known = self.peer(&change.public_key).map(Peer::id);
        if change.remove {
            if let Some(id) = known {
                self.forget(id, touched);
            }
            return;
        }
        let id = match known {
            Some(id) => id,
            None if change.update_only => return,
            None => self.make(change.public_key, touched),
        };
        self.change_settings(id, change.preshared_key, change.endpoint, change.keepalive, touched);
        if known.is_none()
            && let Some(peer) = self.at_mut(id)
        {
            peer.home = change.home;
            peer.temporary = change.temporary;
        }
        if change.replace_allowed_ips {
            // What is leased is not said by who says what is allowed.
            let own = |peer: &Peer| peer.prefixes().filter(|prefix| !peer.leased.contains(prefix)).collect();
            let configured: Vec<_> = self.at(id).map(own).unwrap_or_default();
            for prefix in configured {
                self.take(prefix, touched);
            }
        }
        for allowed_ip in change.allowed_ips {
            match allowed_ip {
                AllowedIp::Add(prefix) => self.give(prefix, id, touched),
                AllowedIp::Remove(prefix) if self.owner(&prefix) == Some(id) => self.take(prefix, touched),
                AllowedIp::Remove(_) => {}
            }
        }
    }

    fn change_settings(
        &mut self,
        id: PeerId,
        preshared_key: Option<Option<Secret>>,
        endpoint: Option<SocketAddr>,
        keepalive: Option<Option<u16>>,
        touched: &mut Touched,
    ) {
        let Some(peer) = self.at_mut(id) else { return };
        let mut settings = Settings::default();
        if let Some(key) = preshared_key
            && !same_secret(peer.preshared_key(), key.as_ref())
        {
            peer.preshared_key = key.map(Box::new);
            settings.preshared_key = true;
        }
        if let Some(endpoint) = endpoint {
            peer.endpoint = Some(Box::new(endpoint));
            settings.endpoint = true;
        }
        if let Some(keepalive) = keepalive
            && keepalive != peer.keepalive
        {
            peer.keepalive = keepalive;
            settings.keepalive = true;
        }
        if settings != Settings::default() {
            touched.settings.entry(id).or_default().add(settings);
        }
    }

    /// Gives each new peer its owner: the steering hash's choice if the peer has one IPv4 address, or will most likely
    /// lease one that is known, else whoever has fewest.
    fn choose_owners<D: DataPlane>(&mut self, touched: &Touched, dataplane: &D) {
        self.load.resize(usize::from(dataplane.workers().max(1)), 0);
        let mut new: Vec<_> =
            touched.added.iter().filter_map(|id| self.at(*id)).map(|peer| (peer.serial, peer.id)).collect();
        new.sort_unstable();
        for (_, id) in new {
            let address = self.at(id).and_then(|peer| peer.host_v4().or(peer.home));
            let hashed = address.map(|addr| dataplane.queue_of(addr));
            let worker = hashed.unwrap_or_else(|| self.least_loaded());
            if let Some(load) = self.load.get_mut(worker.index()) {
                *load += 1;
            }
            if let Some(peer) = self.at_mut(id) {
                peer.worker = Some(worker);
            }
        }
    }

    fn least_loaded(&self) -> WorkerId {
        (0..)
            .zip(&self.load)
            .min_by_key(|(_, load)| **load)
            .map_or(WorkerId(0), |(worker, _)| WorkerId(worker))
    }

    /// The difference, in an order in which no prefix ever has two owners and no handshake begins half configured.
    fn tell<D: DataPlane>(&self, touched: &Touched, dataplane: &mut D) {
        let (lost, won) = self.moved_prefixes(touched);
        if !lost.is_empty() {
            dataplane.remove_prefixes(&lost);
        }
        for id in &touched.removed {
            dataplane.remove_peer(*id);
        }
        if touched.private_key {
            dataplane.set_private_key(self.private_key.as_ref());
        }
        for peer in touched.added.iter().filter_map(|id| self.at(*id)) {
            dataplane.add_peer(NewPeer {
                id: peer.id,
                worker: peer.worker(),
                public_key: peer.public_key,
                preshared_key: peer.preshared_key(),
                temporary: peer.temporary,
            });
        }
        let changed =
            || touched.settings.iter().filter_map(|(id, set)| self.at(*id).map(|peer| (peer, *set)));
        for (peer, set) in changed() {
            if set.preshared_key && !touched.added.contains(&peer.id) {
                dataplane.set_preshared_key(peer.id, peer.preshared_key());
            }
            if let Some(endpoint) = peer.endpoint().filter(|_| set.endpoint) {
                dataplane.set_endpoint(peer.id, endpoint);
            }
        }
        if !won.is_empty() {
            dataplane.add_prefixes(&won);
        }
        for (peer, _) in changed().filter(|(_, set)| set.keepalive) {
            dataplane.set_keepalive(peer.id, peer.keepalive);
        }
    }

    /// Prefixes that somebody had and has no more, and prefixes that somebody has and had not.
    fn moved_prefixes(&self, touched: &Touched) -> (Vec<Prefix>, Vec<Assignment>) {
        let (mut lost, mut won) = (Vec::new(), Vec::with_capacity(touched.prefixes.len()));
        for (prefix, before) in &touched.prefixes {
            let after = self.owner(prefix);
            if *before == after {
                continue;
            }
            if before.is_some() {
                lost.push(*prefix);
            }
            if let Some(peer) = after.and_then(|id| self.at(id)) {
                won.push(Assignment { prefix: *prefix, peer: peer.id, worker: peer.worker() });
            }
        }
        lost.sort_unstable();
        won.sort_unstable_by_key(|assignment| assignment.prefix);
        (lost, won)
    }

    fn in_slot(&self, slot: u32) -> Option<&Peer> {
        self.slots.get(slot)?.peer.as_ref()
    }

    fn at(&self, id: PeerId) -> Option<&Peer> {
        self.in_slot(id.slot).filter(|peer| peer.id == id)
    }

    fn at_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.slot)?.peer.as_mut().filter(|peer| peer.id == id)
    }

    fn make(&mut self, public_key: PublicKey, touched: &mut Touched) -> PeerId {
        let free = self.free.pop();
        let slot = free.unwrap_or_else(|| self.slots.add(Slot { generation: 0, peer: None }));
        self.serial += 1;
        let serial = self.serial;
        let mut id = PeerId { slot, generation: 0 };
        if let Some(place) = self.slots.get_mut(slot) {
            place.generation = place.generation.wrapping_add(1);
            id.generation = place.generation;
            place.peer = Some(Peer {
                id,
                public_key,
                preshared_key: None,
                endpoint: None,
                keepalive: None,
                worker: None,
                prefixes: Prefixes::default(),
                leased: Box::default(),
                home: None,
                temporary: false,
                lost: false,
                serial,
            });
        }
        let Self { by_key, slots, hasher, .. } = self;
        by_key.insert_unique(hasher.hash_one(public_key), slot, |slot| {
            // Who is in the table is in a slot.
            let peer = slots.get(*slot).and_then(|slot| slot.peer.as_ref());
            peer.map_or(0, |peer| hasher.hash_one(peer.public_key))
        });
        touched.added.insert(id);
        id
    }

    fn forget(&mut self, id: PeerId, touched: &mut Touched) {
        let Some(peer) = self.at_mut(id) else { return };
        let prefixes = std::mem::take(&mut peer.prefixes);
        let (key, worker) = (peer.public_key, peer.worker);
        for prefix in prefixes.iter() {
            self.take(prefix, touched);
        }
        if let Ok(found) = self.by_key.find_entry(self.hasher.hash_one(key), |slot| *slot == id.slot) {
            found.remove();
        }
        if let Some(slot) = self.slots.get_mut(id.slot) {
            slot.peer = None;
        }
        self.free.push(id.slot);
        if let Some(load) = worker.and_then(|worker| self.load.get_mut(worker.index())) {
            *load = load.saturating_sub(1);
        }
        touched.settings.remove(&id);
        // A peer that the same request made never reached the data plane.
        if !touched.added.remove(&id) {
            touched.removed.push(id);
        }
    }

    fn give(&mut self, prefix: Prefix, id: PeerId, touched: &mut Touched) {
        let before = self.owners.insert(prefix, id);
        touched.prefixes.entry(prefix).or_insert(before);
        if let Some(loser) = before.filter(|loser| *loser != id).and_then(|loser| self.at_mut(loser)) {
            loser.lose(prefix);
        }
        if let Some(peer) = self.at_mut(id) {
            peer.prefixes.insert(prefix);
        }
    }

    fn take(&mut self, prefix: Prefix, touched: &mut Touched) {
        let before = self.owners.remove(&prefix);
        touched.prefixes.entry(prefix).or_insert(before);
        if let Some(peer) = before.and_then(|id| self.at_mut(id)) {
            peer.lose(prefix);
        }
    }
}

/// Equal or both absent, in time that does not depend on the bytes.
fn same_secret(a: Option<&Secret>, b: Option<&Secret>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => bool::from(a.0.ct_eq(&b.0)),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
