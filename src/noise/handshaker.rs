//! The machine on the handshake thread: it alone holds the static private key, and does all public-key cryptography.
//!
//! A handshake as initiator: [`Handshaker::begin`] makes an initiation and keeps its ephemeral key as *pending*;
//! [`Handshaker::consume_response`] finds it by the receiver index and yields the keypair. As responder:
//! [`Handshaker::consume_initiation`] makes response and keypair in one step and keeps nothing. The two do not
//! touch each other: when both sides initiate at once, each also answers, and neither has to wait for a retry.
//!
//! Whatever is refused changes nothing: the greatest timestamp moves only with an initiation that authenticated, and
//! a pending handshake ends only with a response that did. An accepted initiation may still be a delayed
//! recording, so it yields no more than an unconfirmed keypair and a response.
//!
//! Before [`Handshaker::consume_initiation`] and [`Handshaker::consume_response`] the caller has checked the
//! message with [`Handshaker::check_mac1`], and under load with [`Handshaker::check_mac2`].

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::time::Duration;

use arrayvec::ArrayVec;
use hashbrown::HashTable;
use rand_core::CryptoRng;
use thiserror::Error;

use self::exchange::{Agreed, Authentic, Claimed, Symmetric};
use self::invited::Invited;
use super::cookie::{CookieChecker, PeerCookie, receiver_of};
use super::index::{IndexKey, IndexState, IndexTable};
use super::timestamp::Tai64n;
use super::{NewKeypair, Role, ToOwner};
use crate::crypto::x25519::{self, LowOrder, PrivateKey};
use crate::mutation::holds;
use crate::types::{Endpoint, PeerId, PublicKey, Secret, Time, WorkerId};
use crate::wire::wireguard::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};

mod exchange;
mod invited;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transcripts;

pub use self::invited::NotInvited;

/// Initiations of one peer are accepted no closer together than this: 50 a second (`INITIATIONS_PER_SECOND` in the
/// kernel's messages.h).
pub const INITIATION_GAP: Duration = Duration::from_millis(20);
/// Initiations that [`Handshaker::consume_initiations`] takes at most.
pub const TOGETHER: usize = x25519::SIDE_BY_SIDE;
/// A pending handshake is forgotten at this age (Reject-After-Time of the white paper, section 6.1).
pub const PENDING_MAX_AGE: Duration = Duration::from_secs(180);
/// A restored timestamp is at most this far ahead of our own clock, seconds: a peer whose clock was once wrong is not
/// locked out for longer.
pub const RESTORED_AHEAD_SECS: u64 = 3600;

/// Why a handshake message was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The initiation has a wrong type or did not authenticate.
    #[error("the initiation is not authentic")]
    BadInitiation,
    /// The initiation names no peer of ours.
    #[error("the initiation names no peer")]
    UnknownPeer,
    /// The initiation's timestamp is not greater than the greatest seen: a replay, or a clock that went back.
    #[error("the initiation's timestamp is not new")]
    OldTimestamp,
    /// The peer's last initiation was accepted less than 20 ms ago.
    #[error("the peer initiates too often")]
    PeerLimit,
    /// The response has a wrong type, answers nothing, or did not authenticate.
    #[error("the response is not authentic")]
    BadResponse,
    /// The cookie reply has a wrong type, answers nothing, or did not authenticate.
    #[error("the cookie reply is not authentic")]
    BadCookie,
    /// We have no private key.
    #[error("no private key is set")]
    NoPrivateKey,
    /// A key in the message, or the peer's own, has low order.
    #[error("a key of low order")]
    LowOrder,
    /// No receiver index was found that names the peer's owner.
    #[error("no free receiver index")]
    NoIndex,
}

impl From<LowOrder> for HandshakeError {
    fn from(_: LowOrder) -> Self {
        Self::LowOrder
    }
}

/// Why no initiation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BeginError {
    /// There is no such peer (any more).
    #[error("no such peer")]
    NoPeer,
    /// We have no private key.
    #[error("no private key is set")]
    NoPrivateKey,
    /// The peer's public key has low order: nothing is ever sent to it.
    #[error("the peer's key has low order")]
    LowOrder,
    /// No receiver index was found that names the peer's owner.
    #[error("no free receiver index")]
    NoIndex,
}

impl From<LowOrder> for BeginError {
    fn from(_: LowOrder) -> Self {
        Self::LowOrder
    }
}

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddPeerError {
    /// The key is our own.
    #[error("the key is our own")]
    OwnKey,
    /// Another peer has the key.
    #[error("another peer has the key")]
    KeyInUse,
    /// Another peer has the slot and has not been removed.
    #[error("the slot is taken")]
    SlotInUse,
}

/// Boxed in its table, so that secrets stay in one place while the table grows.
struct Peer {
    id: PeerId,
    owner: WorkerId,
    public: PublicKey,
    /// By itself: most peers have none.
    psk: Option<Box<Secret>>,
    /// Our static key times the peer's: kept, since each handshake needs it and it never changes. `None` without a
    /// private key, or if the peer's key has low order; such a peer can never handshake.
    static_static: Option<Secret>,
    greatest: Tai64n,
    last_accepted: Option<Time>,
    /// The index of the pending handshake.
    pending: Option<u32>,
    /// Made with the first message to the peer.
    cookie: Option<Box<PeerCookie>>,
    /// Of a temporary peer: what it can prove.
    invited: Option<Box<Invited>>,
}

/// What a handshake without a PSK mixes in, as the white paper has it.
static NO_PSK: Secret = Secret([0; 32]);

impl Peer {
    fn psk(&self) -> &Secret {
        self.psk.as_deref().unwrap_or(&NO_PSK)
    }

    /// Writes the macs of a message to the peer.
    fn finish(&mut self, message: &mut [u8], now: Time) {
        let Self { cookie, public, .. } = self;
        cookie.get_or_insert_with(|| Box::new(PeerCookie::new(public))).finish(message, now);
    }

    /// Compares an authenticated timestamp with the greatest and stores it, as one step.
    fn accept_stamp(&mut self, stamp: Tai64n, now: Time) -> Result<(), HandshakeError> {
        if !is_newer(stamp, self.greatest) {
            return Err(HandshakeError::OldTimestamp);
        }
        if self.last_accepted.is_some_and(|last| is_too_soon(last, now)) {
            return Err(HandshakeError::PeerLimit);
        }
        self.greatest = stamp;
        self.last_accepted = Some(now);
        Ok(())
    }
}

/// Whether an initiation is newer than every one before.
fn is_newer(stamp: Tai64n, greatest: Tai64n) -> bool {
    holds("timestamp", stamp > greatest)
}

/// Whether an initiation follows the last one too closely.
fn is_too_soon(last: Time, now: Time) -> bool {
    holds("peer-rate", now.since(last) < INITIATION_GAP)
}

/// Whether a pending handshake may no longer be answered.
fn is_stale(born: Time, now: Time) -> bool {
    holds("pending-age", now.since(born) >= PENDING_MAX_AGE)
}

/// An initiation of ours that waits for its response. Boxed for the same reason as [`Peer`].
struct Pending {
    peer: PeerId,
    symmetric: Symmetric,
    ephemeral: PrivateKey,
    born: Time,
}

/// An authentic initiation that is to be answered.
struct Accepted {
    /// Of its peer.
    slot: u32,
    authentic: Authentic,
    /// Ours, for the response, and its index.
    ephemeral: PrivateKey,
    index: u32,
}

impl Accepted {
    /// Whose shared secrets the response needs.
    fn pairs(&self) -> [(&PrivateKey, &PublicKey); 2] {
        let Claimed { ephemeral, identity, .. } = &self.authentic.claimed;
        [(&self.ephemeral, ephemeral), (&self.ephemeral, identity)]
    }
}

/// The handshakes of all peers. See the module's documentation.
pub struct Handshaker {
    private: Option<PrivateKey>,
    /// By slot; a `PeerId` of another generation finds nothing.
    peers: HashMap<u32, Box<Peer>>,
    /// Slots: the keys stand there. Hashed as `peers` hashes.
    by_key: HashTable<u32>,
    /// By our receiver index. At most one per peer.
    pending: HashMap<u32, Box<Pending>>,
    indices: IndexTable,
    checker: CookieChecker,
}

impl Handshaker {
    /// Without a private key and without peers. `index_key` is the key of the hash by which the sockets are steered.
    #[must_use]
    pub fn new(workers: u16, index_key: IndexKey) -> Self {
        Self {
            private: None,
            peers: HashMap::new(),
            by_key: HashTable::new(),
            pending: HashMap::new(),
            indices: IndexTable::new(workers, index_key),
            checker: CookieChecker::default(),
        }
    }

    /// Sets or removes (`None` or zero) our private key, forgets every pending handshake and computes every peer's
    /// static-static product (one X25519 each). A peer whose key is now our own is removed here and returned, so that
    /// the caller removes it everywhere else. The caller also ends the keypairs made with the old key. The same key
    /// again changes nothing.
    pub fn set_private_key(&mut self, secret: Option<Secret>) -> Vec<PeerId> {
        let private = secret.filter(|secret| !secret.is_zero()).map(|secret| PrivateKey::new(&secret));
        if private.as_ref().map(PrivateKey::public) == self.public_key().as_ref() {
            return Vec::new();
        }
        self.checker.set_public_key(private.as_ref().map(PrivateKey::public));
        self.private = private;
        let ours: Vec<PeerId> = self.public_key().and_then(|own| self.peer(&own)).into_iter().collect();
        for &peer in &ours {
            self.remove_peer(peer);
        }
        for index in self.peers.values_mut().filter_map(|peer| peer.pending.take()) {
            forget(&mut self.pending, &mut self.indices, index);
        }
        for peer in self.peers.values_mut() {
            peer.static_static = self.private.as_ref().and_then(|key| key.shared(&peer.public).ok());
        }
        ours
    }

    /// Our public key, if we have a private one.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.private.as_ref().map(|key| *key.public())
    }

    /// Adds a peer, whose owner never changes. A key of low order is taken, but never handshakes.
    ///
    /// # Errors
    /// See [`AddPeerError`]; the peer is then not added.
    pub fn add_peer(
        &mut self,
        id: PeerId,
        owner: WorkerId,
        public: PublicKey,
        psk: Option<Secret>,
    ) -> Result<(), AddPeerError> {
        if holds("own-key", self.public_key() == Some(public)) {
            return Err(AddPeerError::OwnKey);
        }
        if self.slot_of(&public).is_some() {
            return Err(AddPeerError::KeyInUse);
        }
        if self.peers.contains_key(&id.slot) {
            return Err(AddPeerError::SlotInUse);
        }
        let peer = Peer {
            id,
            owner,
            public,
            psk: boxed(psk),
            static_static: self.private.as_ref().and_then(|key| key.shared(&public).ok()),
            greatest: Tai64n::default(),
            last_accepted: None,
            pending: None,
            cookie: None,
            invited: None,
        };
        self.peers.insert(id.slot, Box::new(peer));
        let Self { by_key, peers, .. } = self;
        let hash = |key: &PublicKey| peers.hasher().hash_one(key);
        by_key.insert_unique(hash(&public), id.slot, |slot| {
            peers.get(slot).map_or(0, |peer| hash(&peer.public))
        });
        Ok(())
    }

    /// Sets or removes (`None` or zero) a peer's PSK. It applies at once, also to a handshake under way. A peer that
    /// is gone is ignored.
    pub fn set_psk(&mut self, id: PeerId, psk: Option<Secret>) {
        if let Some(peer) = peer_mut(&mut self.peers, id) {
            peer.psk = boxed(psk);
        }
    }

    /// Removes a peer with its pending handshake. Its live indices stay taken until its owner gives them back
    /// ([`Self::release`]): only the owner knows when no message can find them any more. An owner that gets an
    /// installation for a peer it no longer has gives that keypair's index back as well.
    pub fn remove_peer(&mut self, id: PeerId) {
        if peer_mut(&mut self.peers, id).is_none() {
            return;
        }
        let Some(peer) = self.peers.remove(&id.slot) else { return };
        let hash = self.peers.hasher().hash_one(peer.public);
        if let Ok(found) = self.by_key.find_entry(hash, |slot| *slot == id.slot) {
            found.remove();
        }
        if let Some(index) = peer.pending {
            forget(&mut self.pending, &mut self.indices, index);
        }
    }

    /// The peer with a public key.
    #[must_use]
    pub fn peer(&self, public: &PublicKey) -> Option<PeerId> {
        self.peers.get(&self.slot_of(public)?).map(|peer| peer.id)
    }

    fn slot_of(&self, public: &PublicKey) -> Option<u32> {
        let same = |slot: &u32| self.peers.get(slot).is_some_and(|peer| peer.public == *public);
        self.by_key.find(self.peers.hasher().hash_one(public), same).copied()
    }

    /// The worker that owns a peer.
    #[must_use]
    pub fn owner(&self, id: PeerId) -> Option<WorkerId> {
        self.find(id).map(|peer| peer.owner)
    }

    /// Makes an initiation with a new ephemeral key and a new index, finished with its macs. It takes the place of
    /// the peer's pending one, whose response is then refused. `stamp` is the wall clock's, and greater than that
    /// of the last initiation to this peer, or the peer refuses it.
    ///
    /// # Errors
    /// See [`BeginError`]; an earlier pending handshake then goes on.
    pub fn begin(
        &mut self,
        id: PeerId,
        stamp: Tai64n,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<[u8; INITIATION_LEN], BeginError> {
        let peer = peer_mut(&mut self.peers, id).ok_or(BeginError::NoPeer)?;
        let ours = self.private.as_ref().ok_or(BeginError::NoPrivateKey)?;
        let static_static = peer.static_static.as_ref().ok_or(BeginError::LowOrder)?;
        let ephemeral = PrivateKey::random(rng);
        let index = self.indices.draw(id, peer.owner, IndexState::Pending, rng).ok_or(BeginError::NoIndex)?;
        let written = exchange::write_initiation(ours, &peer.public, static_static, &ephemeral, index, stamp);
        let (mut message, symmetric) =
            written.inspect_err(|_| self.indices.release(index, IndexState::Pending))?;
        peer.finish(&mut message, now);
        if let Some(superseded) = peer.pending.replace(index) {
            forget(&mut self.pending, &mut self.indices, superseded);
        }
        self.pending.insert(index, Box::new(Pending { peer: id, symmetric, ephemeral, born: now }));
        Ok(message)
    }

    /// Answers an initiation whose mac1 is right: yields the unconfirmed keypair and the finished response, for the
    /// peer's owner. Costs four X25519 for a genuine message, one for any other.
    ///
    /// # Errors
    /// See [`HandshakeError`]. Nothing is sent then. After `NoIndex` (see [`IndexTable::draw`]) the timestamp stays
    /// accepted.
    pub fn consume_initiation(
        &mut self,
        message: &[u8; INITIATION_LEN],
        source: Endpoint,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(WorkerId, ToOwner), HandshakeError> {
        let one = ArrayVec::from_iter([(*message, source)]);
        self.consume_initiations(&one, now, rng).pop().unwrap_or(Err(HandshakeError::BadInitiation))
    }

    /// As [`Self::consume_initiation`], several with their sources: one result each, in their order. What they cost is
    /// X25519, which is cheaper side by side.
    pub fn consume_initiations(
        &mut self,
        messages: &ArrayVec<([u8; INITIATION_LEN], Endpoint), TOGETHER>,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> ArrayVec<Result<(WorkerId, ToOwner), HandshakeError>, TOGETHER> {
        let Some(ours) = &self.private else {
            return messages.iter().map(|_| Err(HandshakeError::NoPrivateKey)).collect();
        };
        let ephemerals: ArrayVec<_, TOGETHER> =
            messages.iter().map(|(message, _)| exchange::ephemeral_of(message)).collect();
        let mut shared = {
            let pairs = ephemerals.iter().flatten().map(|ephemeral| (ours, ephemeral)).collect();
            x25519::shared_by_each(&pairs).into_iter()
        };
        let accepted: ArrayVec<_, TOGETHER> = messages
            .iter()
            .zip(&ephemerals)
            .map(|((message, _), ephemeral)| {
                let shared = ephemeral.as_ref().and_then(|_| shared.next());
                self.accept(message, &shared.ok_or(HandshakeError::BadInitiation)??, now, rng)
            })
            .collect();
        let mut shared: ArrayVec<_, { 2 * TOGETHER }> = {
            let answerable: ArrayVec<_, TOGETHER> = accepted.iter().flatten().collect();
            let some = answerable.chunks(TOGETHER / 2);
            let pairs = some.map(|some| some.iter().flat_map(|one| one.pairs()).collect());
            pairs.flat_map(|pairs| x25519::shared_by_each(&pairs)).rev().collect()
        };
        let each = accepted.into_iter().zip(messages);
        each.map(|(accepted, (_, source))| {
            let accepted = accepted?;
            let (first, second) = (shared.pop(), shared.pop());
            self.answer(accepted, [first, second], *source, now)
        })
        .collect()
    }

    /// Takes an initiation up to the point at which what it costs is worth it: its sender is a peer of ours, and it is
    /// new. `shared` is what our static key shares with its ephemeral.
    fn accept(
        &mut self,
        message: &[u8; INITIATION_LEN],
        shared: &Secret,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Accepted, HandshakeError> {
        let ours = self.private.as_ref().ok_or(HandshakeError::NoPrivateKey)?;
        let claimed = Claimed::read(ours.public(), shared, message)?;
        let slot = self.slot_of(&claimed.identity).ok_or(HandshakeError::UnknownPeer)?;
        let peer = self.peers.get_mut(&slot).ok_or(HandshakeError::UnknownPeer)?;
        let static_static = peer.static_static.as_ref().ok_or(HandshakeError::LowOrder)?;
        let authentic = claimed.authenticate(static_static)?;
        peer.accept_stamp(authentic.stamp, now)?;

        let ephemeral = PrivateKey::random(rng);
        let index =
            self.indices.draw(peer.id, peer.owner, IndexState::Live, rng).ok_or(HandshakeError::NoIndex)?;
        Ok(Accepted { slot, authentic, ephemeral, index })
    }

    /// Answers it, with what [`Accepted::pairs`] share.
    fn answer(
        &mut self,
        accepted: Accepted,
        shared: [Option<Result<Secret, LowOrder>>; 2],
        source: Endpoint,
        now: Time,
    ) -> Result<(WorkerId, ToOwner), HandshakeError> {
        let Accepted { slot, authentic, ephemeral, index } = accepted;
        let ([Some(Ok(first)), Some(Ok(second))], Some(peer)) = (shared, self.peers.get_mut(&slot)) else {
            self.indices.release(index, IndexState::Live);
            return Err(HandshakeError::LowOrder);
        };
        let (mut response, agreed) =
            authentic.respond(peer.psk(), ephemeral.public(), &[first, second], index);
        peer.finish(&mut response, now);
        Ok(install(peer, agreed, index, Role::Responder, source, Some(response)))
    }

    /// Takes a response whose mac1 is right, to an initiation that is pending: yields the keypair, for the peer's
    /// owner. Costs two X25519 if its receiver index is one of ours that waits, nothing else.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the pending handshake then goes on.
    pub fn consume_response(
        &mut self,
        message: &[u8; RESPONSE_LEN],
        source: Endpoint,
        now: Time,
    ) -> Result<(WorkerId, ToOwner), HandshakeError> {
        let ours = self.private.as_ref().ok_or(HandshakeError::NoPrivateKey)?;
        let index = exchange::receiver_of_response(message).ok_or(HandshakeError::BadResponse)?;
        let pending = self.pending.get(&index).ok_or(HandshakeError::BadResponse)?;
        let peer = peer_mut(&mut self.peers, pending.peer).ok_or(HandshakeError::BadResponse)?;
        if is_stale(pending.born, now) {
            return Err(HandshakeError::BadResponse);
        }
        let agreed =
            exchange::read_response(&pending.symmetric, ours, &pending.ephemeral, peer.psk(), message)?;
        peer.pending = None;
        self.pending.remove(&index);
        self.indices.promote(index);
        Ok(install(peer, agreed, index, Role::Initiator, source, None))
    }

    /// Takes a cookie reply to the last message we sent to a peer. The next message carries a mac2.
    ///
    /// # Errors
    /// [`HandshakeError::BadCookie`].
    pub fn consume_cookie_reply(
        &mut self,
        message: &[u8; COOKIE_REPLY_LEN],
        now: Time,
    ) -> Result<(), HandshakeError> {
        let index = receiver_of(message).ok_or(HandshakeError::BadCookie)?;
        let (id, _) = self.indices.find(index).ok_or(HandshakeError::BadCookie)?;
        let peer = peer_mut(&mut self.peers, id).ok_or(HandshakeError::BadCookie)?;
        let cookie = peer.cookie.as_mut().ok_or(HandshakeError::BadCookie)?;
        if cookie.accept(message, now) { Ok(()) } else { Err(HandshakeError::BadCookie) }
    }

    /// Whether a response or a cookie reply names a message of ours that waits for one: a look-up, no
    /// cryptography. (A cookie reply answers a response as well.)
    #[must_use]
    pub fn expects_answer(&self, message: &[u8]) -> bool {
        // A cookie reply begins with type and receiver; a response has its sender between them.
        let at = if message.len() == COOKIE_REPLY_LEN { 4 } else { 8 };
        let index = message.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_le_bytes);
        index.is_some_and(|index| self.indices.find(index).is_some())
    }

    /// Whether an initiation's or a response's mac1 is right: its sender knows our public key.
    #[must_use]
    pub fn check_mac1(&self, message: &[u8]) -> bool {
        self.checker.check_mac1(message)
    }

    /// Whether a message's mac2 is right: its sender has lately received at `source`.
    #[must_use]
    pub fn check_mac2(&self, message: &[u8], source: SocketAddr, now: Time) -> bool {
        self.checker.check_mac2(message, source, now)
    }

    /// The cookie reply to a message from `source` whose mac1 is right. `None` without a private key, or if the
    /// message is too short to be a handshake message.
    pub fn cookie_reply(
        &mut self,
        message: &[u8],
        source: SocketAddr,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Option<[u8; COOKIE_REPLY_LEN]> {
        self.checker.reply(message, source, now, rng)
    }

    /// An owner gives back the index of a keypair that is gone. An index that is not a keypair's is ignored.
    pub fn release(&mut self, index: u32) {
        let owner = self.indices.find(index).and_then(|(id, _)| peer_mut(&mut self.peers, id));
        if let Some(invited) = owner.and_then(|peer| peer.invited.as_mut()) {
            invited.remove(index);
        }
        self.indices.release(index, IndexState::Live);
    }

    /// The worker that an index names, in use or not.
    #[must_use]
    pub fn index_owner(&self, index: u32) -> WorkerId {
        self.indices.owner(index)
    }

    /// How many indices are in use, by pending handshakes and keypairs.
    #[must_use]
    pub fn indices_in_use(&self) -> usize {
        self.indices.len()
    }

    /// The greatest timestamp of each peer that has sent one, in no order.
    pub fn timestamps(&self) -> impl Iterator<Item = (PeerId, Tai64n)> + '_ {
        self.peers
            .values()
            .map(|peer| (peer.id, peer.greatest))
            .filter(|(_, stamp)| *stamp != Tai64n::default())
    }

    /// Restores a peer's greatest timestamp after a restart, capped at an hour ahead of `clock`, the wall clock's
    /// stamp. Never lowers one; a peer that is gone is ignored.
    pub fn restore_timestamp(&mut self, id: PeerId, stamp: Tai64n, clock: Tai64n) {
        if let Some(peer) = peer_mut(&mut self.peers, id) {
            peer.greatest = peer.greatest.max(stamp.min(clock.later_by(RESTORED_AHEAD_SECS)));
        }
    }

    /// Erases pending handshakes that are too old to be answered. To be called about once a second; costs by the
    /// number of pending handshakes.
    pub fn expire(&mut self, now: Time) {
        let Self { peers, pending, indices, .. } = self;
        pending.retain(|&index, waiting| {
            let keep = !is_stale(waiting.born, now);
            if !keep {
                indices.release(index, IndexState::Pending);
                if let Some(peer) = peer_mut(peers, waiting.peer) {
                    peer.pending = None;
                }
            }
            keep
        });
    }

    fn find(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(&id.slot).map(Box::as_ref).filter(|peer| peer.id == id)
    }
}

/// The peer with this slot *and* generation.
fn peer_mut(peers: &mut HashMap<u32, Box<Peer>>, id: PeerId) -> Option<&mut Peer> {
    peers.get_mut(&id.slot).map(Box::as_mut).filter(|peer| holds("peer-generation", peer.id == id))
}

/// Erases a pending handshake; its index may be used again.
fn forget(pending: &mut HashMap<u32, Box<Pending>>, indices: &mut IndexTable, index: u32) {
    pending.remove(&index);
    indices.release(index, IndexState::Pending);
}

/// Zero is none.
fn boxed(psk: Option<Secret>) -> Option<Box<Secret>> {
    psk.filter(|psk| !psk.is_zero()).map(Box::new)
}

fn install(
    peer: &mut Peer,
    agreed: Agreed,
    local_index: u32,
    role: Role,
    endpoint: Endpoint,
    response: Option<[u8; RESPONSE_LEN]>,
) -> (WorkerId, ToOwner) {
    let Agreed { send, recv, third, transcript, remote_index } = agreed;
    if let Some(invited) = &mut peer.invited {
        invited.add(local_index, &transcript);
    }
    let keypair = Box::new(NewKeypair { send, recv, third, transcript, local_index, remote_index, role });
    (peer.owner, ToOwner::Install { peer: peer.id, keypair, endpoint, response })
}
