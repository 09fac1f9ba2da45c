//! A peer as its owner sees it: keypairs, every timer, endpoint, staged packets.
//!
//! A machine without a socket and without a clock. The worker calls it with the present time, drains
//! [`PeerSession::take_actions`] after each call, and calls [`PeerSession::handle_timeout`] once
//! [`PeerSession::deadline`] has passed. Timers and rotation are the Linux module's (`timers.c`, `send.c`,
//! `receive.c`, `noise.c`), with these differences:
//!
//! * An initiation proves nothing about now. Installing a responder's keypair touches neither the endpoint nor the
//!   timers of a live session, nor what is accounted; all of that waits for the first authenticated transport
//!   message in the new keypair. (It does count as a handshake sent, as in the kernel, so that both sides do not
//!   begin in turn.)
//! * A handshake that is wanted but not allowed yet, since the last was sent less than Rekey-Timeout ago, is tried
//!   again when it is allowed; the kernel forgets it, and staged packets may wait for ever.
//! * Without an endpoint no handshake begins.
//!
//! Outbound: [`PeerSession::reserve`], seal with [`PeerSession::sealing_key`], send, [`PeerSession::sent`]; or
//! [`PeerSession::stage`] if there is nothing to reserve from. Inbound: [`PeerSession::keypair`], for each packet
//! [`PeerSession::check`], open with [`PeerSession::opening_key`], [`PeerSession::accept`], and once for the run
//! [`PeerSession::received`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::crypto::aead::{self, Key, Span, TAG_LEN};
use crate::mutation::holds;
use crate::types::{Endpoint, PeerId, Suite, Time};
use crate::wire::frame::{Bytes, Frame, Hello};
use crate::wire::wireguard::{
    INITIATION_LEN, RESPONSE_LEN, TRANSPORT_HEADER_LEN, TransportHeader, padded_len,
};

use super::agreement::{Changes, Policy};
use super::keypair::{Keypairs, PLACES};
use super::replay::Rejected;
use super::timers::Limits;
use super::{NewKeypair, Role};

pub use super::keypair::KeypairRef;

mod renewal;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

/// Packets that wait for a handshake, per peer; the kernel's `MAX_STAGED_PACKETS`.
pub const MAX_STAGED: usize = 128;

/// How long a session of a temporary peer lasts at most: confirmed or not, so that it ends no later than so long after
/// its confirmation.
pub const TEMPORARY: Duration = Duration::from_secs(30);

/// Room for released indices between two drains: what two calls can release at most, and one confirmation.
const MAX_RELEASED: usize = 2 * PLACES + 1;

/// What the worker has to do; drained after each call, so that none is done twice.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Ask the handshake thread for an initiation.
    pub begin: bool,
    /// Send an empty transport message (a keepalive).
    pub keepalive: bool,
    /// Send the staged packets: a keypair is ready for them.
    pub flush_staged: bool,
    /// A handshake is complete: the peer has proven that it is there now. Raised for renewals as well.
    pub connected: bool,
    /// The peer did not answer for Rekey-Attempt-Time; nothing is tried until there is something to send.
    pub gave_up: bool,
    /// Staged packets that were dropped since no handshake came.
    pub staged_dropped: u32,
    /// There is a control frame to send: [`PeerSession::next_frame`].
    pub frames: bool,
    /// What the agreement about the suite has come to.
    pub suite: Changes,
    /// Local indices of keypairs that are gone, for the handshake thread to release.
    pub released: ArrayVec<u32, MAX_RELEASED>,
}

/// Counters to seal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The first; the others follow it without a gap.
    pub first_counter: u64,
    /// The peer's receiver index.
    pub remote_index: u32,
    /// What to seal with.
    pub suite: Suite,
}

/// Why a transport message is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The counter was accepted before.
    Replayed,
    /// The counter lies behind the replay window.
    TooOld,
    /// The counter is beyond Reject-After-Messages.
    CounterLimit,
    /// The keypair is older than Reject-After-Time, or gone.
    Expired,
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Replayed => Self::Replayed,
            Rejected::TooOld => Self::TooOld,
            Rejected::Limit => Self::CounterLimit,
        }
    }
}

/// What is counted per peer, as `wg show` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Outer UDP payload bytes of authenticated messages, handshakes included.
    pub rx_bytes: u64,
    /// Outer UDP payload bytes sent, handshakes included.
    pub tx_bytes: u64,
    /// When the last handshake was complete: as initiator with the response, as responder with the confirmation.
    pub last_handshake: Option<Time>,
    /// Complete handshakes.
    pub handshakes: u64,
}

/// The deadlines of a peer and what belongs to them; names follow the kernel's `timer_*`.
#[derive(Debug, Default)]
struct Timers {
    retransmit: Option<Time>,
    keepalive: Option<Time>,
    new_handshake: Option<Time>,
    erase: Option<Time>,
    persistent: Option<Time>,
    /// When the session is over, unless there is a newer one: see [`PeerSession::is_live`].
    over: Option<Time>,
    /// Data arrived while `keepalive` was pending.
    need_another_keepalive: bool,
    /// Retransmissions since the handshake began.
    attempts: u32,
    /// When an initiation or a response was last sent or asked for.
    last_sent_handshake: Option<Time>,
    /// The initiator's renewal on receipt was tried for this keypair.
    sent_lastminute_handshake: bool,
}

impl Timers {
    fn deadline(&self) -> Option<Time> {
        [self.retransmit, self.keepalive, self.new_handshake, self.erase, self.persistent, self.over]
            .into_iter()
            .flatten()
            .min()
    }
}

/// Packets that wait for a keypair.
#[derive(Debug, Default)]
struct Staged(VecDeque<Box<[u8]>>);

/// Disarms a timer that is due.
fn take_due(timer: &mut Option<Time>, now: Time) -> bool {
    timer.take_if(|at| *at <= now).is_some()
}

/// One peer's sessions and timers; owned by one worker. Neither `Clone` nor `Copy`: it moves by value.
#[derive(Debug)]
pub struct PeerSession {
    peer: PeerId,
    /// Everybody's.
    limits: Arc<Limits>,
    policy: Policy,
    endpoint: Option<Endpoint>,
    /// Seconds.
    persistent_keepalive: Option<NonZeroU16>,
    keypairs: Keypairs,
    timers: Timers,
    /// An initiation was asked for and has not been sent yet.
    begin_in_flight: bool,
    /// There only while packets wait.
    staged: Option<Box<Staged>>,
    stats: Stats,
    actions: Actions,
    jitter: Jitter,
    /// See [`Self::temporary`].
    temporary: bool,
}

impl PeerSession {
    /// A peer without endpoint and sessions. `seed` spreads its retransmissions; it needs no secrecy.
    #[must_use]
    pub fn new(peer: PeerId, limits: impl Into<Arc<Limits>>, seed: u64) -> Self {
        Self {
            peer,
            limits: limits.into(),
            policy: Policy::default(),
            endpoint: None,
            persistent_keepalive: None,
            keypairs: Keypairs::default(),
            timers: Timers::default(),
            begin_in_flight: false,
            staged: None,
            stats: Stats::default(),
            actions: Actions::default(),
            jitter: Jitter(seed),
            temporary: false,
        }
    }

    /// A peer of an invite's use: it begins no handshake, its sessions end after [`TEMPORARY`], and of suites nothing
    /// is agreed.
    #[must_use]
    pub fn temporary(peer: PeerId, limits: &Limits, seed: u64) -> Self {
        let limits = Limits { reject_after_time: limits.reject_after_time.min(TEMPORARY), ..*limits };
        Self { temporary: true, ..Self::new(peer, limits, seed) }
    }

    /// True for a peer of an invite's use.
    #[inline]
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// The same, speaking of suites as `policy` says; without it HELLO is answered, and AES-256-GCM is not used.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The peer that this belongs to.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where the peer is, if that is known.
    #[inline]
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// Bytes and handshakes so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// True while there is a keypair to send with, expired or not.
    #[inline]
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.keypairs.current().is_some()
    }

    /// True while there is a session: a confirmed keypair younger than Reject-After-Time, in which the peer has not
    /// said that it goes. Falls of its own accord at a [`Self::deadline`].
    #[inline]
    #[must_use]
    pub fn is_live(&self, now: Time) -> bool {
        self.keypairs
            .current()
            .is_some_and(|keypair| !keypair.ended && !keypair.is_expired(now, &self.limits))
    }

    /// What data is sealed with; `None` without a keypair to send with.
    #[must_use]
    pub fn suite(&self) -> Option<Suite> {
        self.keypairs.current().map(|keypair| keypair.agreement.suite(&self.limits))
    }

    /// The interval of persistent keepalives in force.
    #[must_use]
    pub fn persistent_keepalive(&self) -> Option<Duration> {
        self.persistent_keepalive.map(|seconds| Duration::from_secs(seconds.get().into()))
    }

    /// When [`Self::handle_timeout`] is due; `None` if no timer runs.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let agreement = self.keypairs.current().and_then(|keypair| keypair.agreement.deadline());
        self.timers.deadline().into_iter().chain(agreement).min()
    }

    /// What is to be done since the last call. Drain it after each call of another method: there is room for the
    /// released indices of two.
    #[inline]
    #[must_use]
    pub fn take_actions(&mut self) -> Actions {
        std::mem::take(&mut self.actions)
    }
}

/// Configuration.
impl PeerSession {
    /// Sets the peer's address by hand, without a sticky source. What waited for an address goes on.
    pub fn set_endpoint(&mut self, remote: Option<SocketAddr>, now: Time) {
        self.endpoint = remote.map(Endpoint::new);
        let persistent_lapsed = self.persistent_keepalive.is_some() && self.timers.persistent.is_none();
        if self.endpoint.is_some() && (persistent_lapsed || self.staged.is_some()) {
            self.send_staged_or_keepalive(now);
        }
    }

    /// Forgets the sticky source: the route or the fwmark changed, or the kernel refused to send from it.
    pub fn clear_source(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.source = None;
        }
    }

    /// Sets the interval of persistent keepalives in seconds; `None` and 0 turn them off. Turning them on sends one
    /// at once.
    pub fn set_keepalive(&mut self, seconds: Option<u16>, now: Time) {
        let was_off = self.persistent_keepalive.is_none();
        self.persistent_keepalive = seconds.and_then(NonZeroU16::new);
        match self.persistent_keepalive {
            None => self.timers.persistent = None,
            Some(_) if was_off => self.send_staged_or_keepalive(now),
            // The new interval counts from now, unless nothing is under way.
            Some(_) if self.timers.persistent.is_some() => self.any_authenticated_packet_traversal(now),
            Some(_) => {}
        }
    }

    /// Drops all keypairs at once and allows a new handshake at once: a PSK or the private key has changed. What is
    /// staged stays and waits for that handshake.
    pub fn clear(&mut self) {
        self.drop_keypairs();
        self.timers.last_sent_handshake = None;
    }

    /// Drops all keypairs and staged packets and stops every timer: the peer is removed.
    pub fn close(&mut self) {
        self.clear();
        self.drop_staged();
        self.persistent_keepalive = None;
        self.timers = Timers::default();
    }

    /// Drops every keypair that is past Reject-After-Time: the host was suspended, or the clock jumped.
    pub fn erase_expired(&mut self, now: Time) {
        let Self { keypairs, limits, .. } = self;
        let released = keypairs.drop_if(|keypair| keypair.is_expired(now, limits));
        self.release(released);
    }
}

/// Outbound.
impl PeerSession {
    /// Takes `n` consecutive counters of the current keypair. `None` if there is none that may send: a handshake is
    /// then on its way (see [`Actions::begin`]), and the packet is to be staged. A counter is never given twice,
    /// whatever becomes of it.
    #[inline]
    pub fn reserve(&mut self, n: u64, now: Time) -> Option<Reserved> {
        let limits = &self.limits;
        let reserved =
            self.keypairs.current_mut().filter(|keypair| !keypair.is_expired(now, limits)).and_then(
                |keypair| {
                    let first_counter = keypair.reserve(n, limits)?;
                    let suite = keypair.agreement.suite(limits);
                    Some(Reserved { first_counter, remote_index: keypair.remote_index, suite })
                },
            );
        if reserved.is_none() {
            self.begin(now, Attempt::First);
        }
        reserved
    }

    /// One counter, as [`Self::reserve`], for a message in `suite`; in WireGuard's if the current keypair may not seal
    /// in that.
    pub fn reserve_in(&mut self, suite: Suite, now: Time) -> Option<Reserved> {
        let reserved = self.reserve(1, now)?;
        let current = self.keypairs.current()?;
        let may = current.agreement.may_seal(suite, &self.limits);
        Some(Reserved { suite: if may { suite } else { Suite::ChaCha20Poly1305 }, ..reserved })
    }

    /// The next control frame that the session has to say, and the suite to seal it with; ask again until there is
    /// none. For the present keypair: to be reserved for ([`Self::reserve_in`]) and sent before anything else happens.
    pub fn next_frame(&mut self, now: Time) -> Option<(Suite, Bytes)> {
        let jitter = self.jitter();
        let keypair = self.keypairs.current_mut()?;
        let said = keypair.agreement.next(self.policy, now, jitter);
        if self.policy.aes && said.is_some() {
            keypair.derive_aes();
        }
        said
    }

    /// True if [`Self::reserve`] would give a counter.
    #[inline]
    #[must_use]
    pub fn can_send(&self, now: Time) -> bool {
        let limits = &self.limits;
        self.keypairs.current().is_some_and(|keypair| {
            !keypair.is_expired(now, limits) && keypair.send_counter < limits.reject_after_messages
        })
    }

    /// The key for `bytes` of outer payload that were reserved, named by their remote index: counters of one keypair
    /// must never meet the key of another. `None` if that keypair is not the current one any more, or may not seal in
    /// this suite.
    #[inline]
    #[must_use]
    pub fn sealing_key(&mut self, remote_index: u32, suite: Suite, bytes: usize) -> Option<&Key> {
        let Self { keypairs, limits, .. } = self;
        let keypair = keypairs.current_mut().filter(|keypair| keypair.remote_index == remote_index)?;
        // Of a message's 32 bytes of header and tag the tag costs one block; the header makes up for a last block that
        // is not full.
        keypair.sealing_key(suite, bytes as u64 / 16, limits)
    }

    /// A message of one text by itself in WireGuard's suite, sealed; of none it is a keepalive. For whoever sends few:
    /// it is a buffer of its own. `None` as of [`Self::reserve`].
    pub fn message(&mut self, text: &[u8], now: Time) -> Option<Vec<u8>> {
        let Reserved { remote_index: receiver, first_counter: counter, .. } = self.reserve(1, now)?;
        let suite = Suite::ChaCha20Poly1305;
        let mut message = TransportHeader { receiver, counter, suite }.to_bytes().to_vec();
        message.extend(text);
        let span = Span { start: TRANSPORT_HEADER_LEN, len: padded_len(text.len(), 0) };
        message.resize(span.start + span.len + TAG_LEN, 0);
        let key = self.sealing_key(receiver, suite, message.len())?;
        aead::seal_run(key, counter, &mut message, &[span]).then_some(message)
    }

    /// After a run of transport messages was handed to the socket, once for the run: `bytes` is the sum of the outer
    /// UDP payloads. `data` is false for keepalives, and for a run that the kernel refused.
    #[inline]
    pub fn sent(&mut self, data: bool, bytes: u64, now: Time) {
        self.stats.tx_bytes += bytes;
        self.any_authenticated_packet_traversal(now);
        self.timers.keepalive = None;
        if data && self.timers.new_handshake.is_none() {
            self.timers.new_handshake = Some(now + self.limits.no_answer_after() + self.jitter());
        }
        if self.keypairs.current().is_some_and(|current| {
            !current.is_expired(now, &self.limits) && current.is_stale_for_sending(now, &self.limits)
        }) {
            self.begin(now, Attempt::First);
        }
    }

    /// Keeps a packet until a keypair is ready and asks for one. Returns the oldest of a full queue, which is
    /// dropped.
    pub fn stage(&mut self, packet: Box<[u8]>, now: Time) -> Option<Box<[u8]>> {
        let Staged(staged) = &mut **self.staged.get_or_insert_default();
        let dropped = if staged.len() >= MAX_STAGED { staged.pop_front() } else { None };
        staged.push_back(packet);
        self.send_staged_or_keepalive(now);
        dropped
    }

    /// How many packets are staged, [`MAX_STAGED`] at most.
    #[inline]
    #[must_use]
    pub fn staged_len(&self) -> usize {
        self.staged.as_ref().map_or(0, |staged| staged.0.len())
    }

    /// Bytes of the staged packets; the worker bounds the sum over its peers.
    #[must_use]
    pub fn staged_bytes(&self) -> usize {
        self.staged.iter().flat_map(|staged| &staged.0).map(|packet| packet.len()).sum()
    }

    /// Removes the oldest staged packet, counters for it being reserved.
    pub fn pop_staged(&mut self) -> Option<Box<[u8]>> {
        let packet = self.staged.as_mut()?.0.pop_front();
        self.staged.take_if(|staged| staged.0.is_empty());
        packet
    }

    /// After the initiation that [`Actions::begin`] asked for was handed to the socket, whether that took it or not.
    pub fn initiation_sent(&mut self, now: Time) {
        self.begin_in_flight = false;
        self.stats.tx_bytes += INITIATION_LEN as u64;
        self.timers.last_sent_handshake = Some(now);
        self.any_authenticated_packet_traversal(now);
        self.timers.keepalive = None;
        self.timers.retransmit = Some(now + self.limits.rekey_timeout + self.jitter());
    }

    /// The handshake thread could not make an initiation: nothing is under way until there is something to send.
    pub fn begin_failed(&mut self) {
        self.begin_in_flight = false;
    }
}

/// Inbound.
impl PeerSession {
    /// The keypair that a receiver index names.
    #[inline]
    #[must_use]
    pub fn keypair(&self, local_index: u32) -> Option<KeypairRef> {
        self.keypairs.find(local_index)
    }

    /// Whether a message with this counter is worth opening. Read-only.
    ///
    /// # Errors
    /// Why it is not.
    #[inline]
    pub fn check(&self, name: KeypairRef, counter: u64, now: Time) -> Result<(), Refused> {
        let keypair = self.keypairs.named(name).ok_or(Refused::Expired)?;
        if keypair.is_expired(now, &self.limits) {
            return Err(Refused::Expired);
        }
        Ok(keypair.window.check(counter)?)
    }

    /// The key to open with; `None` if the keypair is gone, or we have not said in it that we open `suite`.
    #[inline]
    #[must_use]
    pub fn opening_key(&self, name: KeypairRef, suite: Suite) -> Option<&Key> {
        self.keypairs.named(name)?.opening_key(suite)
    }

    /// Accepts the counter of an authenticated message, once. Only what is accepted may be delivered.
    ///
    /// # Errors
    /// Another message of the same run had the counter, or moved the window past it.
    #[inline]
    pub fn accept(&mut self, name: KeypairRef, counter: u64) -> Result<(), Refused> {
        let keypair = self.keypairs.named_mut(name).ok_or(Refused::Expired)?;
        Ok(keypair.window.commit(counter)?)
    }

    /// After at least one message of a run from `endpoint` was accepted, once for the run: `bytes` is the sum of the
    /// accepted outer UDP payloads; `data` is false if all were keepalives. Roams, confirms the keypair, moves
    /// timers.
    #[inline]
    pub fn received(&mut self, name: KeypairRef, endpoint: Endpoint, data: bool, bytes: u64, now: Time) {
        self.stats.rx_bytes += bytes;
        self.endpoint = Some(endpoint);
        if let Some(released) = self.keypairs.confirm(name) {
            self.release(released);
            self.stats.rx_bytes += INITIATION_LEN as u64;
            self.stats.tx_bytes += RESPONSE_LEN as u64;
            self.handshake_complete(now);
            self.actions.flush_staged |= self.staged.is_some();
        }
        self.renew_on_receipt(now);
        self.any_authenticated_packet_received(now);
        if data && self.timers.keepalive.is_some() {
            self.timers.need_another_keepalive = true;
        } else if data {
            self.timers.keepalive = Some(now + self.limits.keepalive_timeout);
        }
    }

    /// A HELLO was opened in this keypair; `asks` for an answer. False if the keypair is not the newest: it counts for
    /// nothing.
    pub fn hello(&mut self, name: KeypairRef, hello: Hello, asks: bool, now: Time) -> bool {
        let policy = self.policy;
        let Some(keypair) = self.keypairs.newest_mut(name) else { return false };
        self.actions.frames |= keypair.agreement.hello(policy, hello, asks, now);
        true
    }

    /// A PONG was opened in this keypair, sealed with `suite`. False if the keypair is not the newest: it counts for
    /// nothing.
    pub fn pong(&mut self, name: KeypairRef, suite: Suite, frame: &Frame<'_>) -> bool {
        let Some(keypair) = self.keypairs.newest_mut(name) else { return false };
        self.actions.suite.agreed |= keypair.agreement.pong(suite, frame);
        true
    }

    /// A control frame was opened in this keypair.
    pub fn heard(&mut self, name: KeypairRef) {
        if let Some(keypair) = self.keypairs.named_mut(name) {
            keypair.speaks = true;
        }
    }

    /// True if the peer has sent a control frame in the keypair that sends: it understands ours.
    #[must_use]
    pub fn speaks(&self) -> bool {
        self.keypairs.current().is_some_and(|keypair| keypair.speaks)
    }

    /// True if a frame of this keypair may change something: it is the newest, and the peer has not said in it that it
    /// goes.
    #[must_use]
    pub fn may_change(&mut self, name: KeypairRef) -> bool {
        self.keypairs.newest_mut(name).is_some_and(|keypair| !holds("disconnected", keypair.ended))
    }

    /// The peer has said in this keypair that it goes: nothing that is said in it counts any more.
    pub fn disconnected(&mut self, name: KeypairRef) {
        if let Some(keypair) = self.keypairs.named_mut(name) {
            keypair.ended = true;
        }
    }

    /// Installs what a handshake has yielded. As initiator the keypair sends at once and `endpoint`, which the
    /// response authenticates, becomes the peer's. As responder the keypair only opens until it is confirmed, and
    /// `endpoint` is nothing but where the worker sends the response.
    pub fn install(&mut self, new: &NewKeypair, endpoint: Endpoint, now: Time) {
        let role = new.role;
        let released = self.keypairs.install(new, now);
        self.release(released);
        self.timers.erase = Some(now + self.limits.erase_after());
        if holds("unconfirmed", role == Role::Responder) {
            self.timers.last_sent_handshake = Some(now);
            return;
        }
        self.endpoint = Some(endpoint);
        self.stats.rx_bytes += RESPONSE_LEN as u64;
        self.handshake_complete(now);
        // Either confirms the keypair to the responder.
        self.send_staged_or_keepalive(now);
        self.any_authenticated_packet_received(now);
    }
}

/// Timers.
impl PeerSession {
    /// Does what is due. Harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Time) {
        // Nobody was there to act for that long: the host was suspended, or the clock jumped.
        if self.deadline().is_some_and(|deadline| now.since(deadline) >= self.limits.reject_after_time) {
            self.erase_expired(now);
        }
        // Nothing to do but to be looked at: the session is not live any more.
        take_due(&mut self.timers.over, now);
        if take_due(&mut self.timers.erase, now) {
            self.drop_keypairs();
        }
        if take_due(&mut self.timers.retransmit, now) {
            self.retransmit(now);
        }
        if take_due(&mut self.timers.new_handshake, now) {
            // Our address may be what keeps the answers away.
            self.clear_source();
            self.begin(now, Attempt::First);
        }
        if take_due(&mut self.timers.keepalive, now) {
            self.send_staged_or_keepalive(now);
            if std::mem::take(&mut self.timers.need_another_keepalive) {
                self.timers.keepalive = Some(now + self.limits.keepalive_timeout);
            }
        }
        if take_due(&mut self.timers.persistent, now) {
            self.send_staged_or_keepalive(now);
        }
        if let Some(keypair) = self.keypairs.current_mut() {
            let (frames, Changes { agreed, refused }) = keypair.agreement.handle_timeout(now);
            self.actions.frames |= frames;
            self.actions.suite.agreed |= agreed;
            self.actions.suite.refused |= refused;
        }
    }

    fn retransmit(&mut self, now: Time) {
        if self.timers.attempts < self.limits.retransmissions() {
            self.timers.attempts += 1;
            self.clear_source();
            self.begin(now, Attempt::Again);
            return;
        }
        self.timers.keepalive = None;
        self.drop_staged();
        self.timers.erase.get_or_insert(now + self.limits.erase_after());
        self.actions.gave_up = true;
    }

    /// Asks for an initiation, unless one is on its way or was sent less than Rekey-Timeout ago.
    /// Each [`Actions::begin`] is answered once, by [`Self::initiation_sent`] or [`Self::begin_failed`].
    fn begin(&mut self, now: Time, attempt: Attempt) {
        if attempt == Attempt::First {
            self.timers.attempts = 0;
        }
        if self.begin_in_flight || self.temporary || self.endpoint.is_none() {
            return;
        }
        // A reading in the future means that the clock jumped back: it does not hold a handshake up.
        if let Some(last) = self.timers.last_sent_handshake.filter(|&last| last <= now)
            && now.since(last) < self.limits.rekey_timeout
        {
            let allowed = last + self.limits.rekey_timeout + self.jitter();
            self.timers.retransmit.get_or_insert(allowed);
            return;
        }
        self.timers.last_sent_handshake = Some(now);
        self.begin_in_flight = true;
        self.actions.begin = true;
    }

    /// Sends what is staged or, if that is nothing, a keepalive; begins a handshake if no keypair can send it.
    fn send_staged_or_keepalive(&mut self, now: Time) {
        if !self.can_send(now) {
            self.begin(now, Attempt::First);
        } else if self.staged.is_none() {
            self.actions.keepalive = true;
        } else {
            self.actions.flush_staged = true;
        }
    }

    fn handshake_complete(&mut self, now: Time) {
        self.timers.retransmit = None;
        self.timers.attempts = 0;
        self.timers.sent_lastminute_handshake = false;
        self.stats.last_handshake = Some(now);
        self.stats.handshakes += 1;
        let born = self.keypairs.current().map(|keypair| keypair.born);
        self.timers.over = born.map(|born| born + self.limits.reject_after_time);
        self.actions.connected = true;
        let policy = self.policy;
        self.actions.frames |=
            self.keypairs.current_mut().is_some_and(|keypair| keypair.agreement.begin(policy));
    }

    #[inline]
    fn renew_on_receipt(&mut self, now: Time) {
        if self.timers.sent_lastminute_handshake {
            return;
        }
        if self.keypairs.current().is_some_and(|current| current.is_stale_for_receiving(now, &self.limits)) {
            self.timers.sent_lastminute_handshake = true;
            self.begin(now, Attempt::First);
        }
    }

    #[inline]
    fn any_authenticated_packet_received(&mut self, now: Time) {
        self.timers.new_handshake = None;
        self.any_authenticated_packet_traversal(now);
    }

    #[inline]
    fn any_authenticated_packet_traversal(&mut self, now: Time) {
        if let Some(interval) = self.persistent_keepalive() {
            self.timers.persistent = Some(now + interval);
        }
    }

    fn drop_keypairs(&mut self) {
        let released = self.keypairs.drop_if(|_| true);
        self.release(released);
        self.timers.erase = None;
        self.timers.over = None;
    }

    fn drop_staged(&mut self) {
        self.actions.staged_dropped += u32::try_from(self.staged_len()).unwrap_or(u32::MAX);
        self.staged = None;
    }

    fn release(&mut self, indices: impl IntoIterator<Item = u32>) {
        for index in indices {
            let kept = self.actions.released.try_push(index);
            debug_assert!(kept.is_ok(), "actions were not drained");
        }
    }

    fn jitter(&mut self) -> Duration {
        self.jitter.below(self.limits.rekey_timeout_jitter)
    }
}

/// Whether a handshake begins anew or is retried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Again,
}

/// Spreads retransmissions of many peers, and of both sides of one (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(crate) struct Jitter(pub(crate) u64);

impl Jitter {
    /// A time in `0..bound`; zero if `bound` is.
    pub(crate) fn below(&mut self, bound: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(z) * u128::from(bound)) >> 64) as u64)
    }
}
