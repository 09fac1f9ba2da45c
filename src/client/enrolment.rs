//! How whoever holds an invite becomes a peer (docs/protocol.md, "Enrolment").
//!
//! 1. [`Enrolment::next_datagram`]: an initiation with the key of a use picked at random; on silence another use, at
//!    the next place
//! 2. [`Enrolment::handle`]: its response makes a session; in it ENROLL says our own key, and proves that we are
//!    invited
//! 3. ENROLL is repeated after 1 s, and 2 s later everything begins anew with the same key of our own: whatever became
//!    of the first time, nothing is spent twice
//! 4. ENROLLED or PROBLEM: the [`Outcome`]

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::crypto::aead;
use crate::crypto::enrolment::{proof, use_key};
use crate::crypto::x25519::LowOrder;
use crate::noise::handshaker::Handshaker;
use crate::noise::index::IndexKey;
use crate::noise::peer_session::{Jitter, PeerSession};
use crate::noise::timers::Limits;
use crate::noise::timestamp::Tai64n;
use crate::noise::{NewKeypair, ToOwner};
use crate::types::{Endpoint, PeerId, PublicKey, Time, WorkerId};
use crate::wire::frame::enrolment::{Enroll, Enrolled};
use crate::wire::frame::{self, Bytes, Frame, Operation, Problem};
use crate::wire::invite::Invite;
use crate::wire::wireguard::{COOKIE_REPLY_LEN, RESPONSE_LEN, TRANSPORT_HEADER_LEN, TransportHeader};

/// The gateway, to us.
const GATEWAY: PeerId = PeerId { slot: 0, generation: 1 };
/// The wait for an answer to the first initiation, and to the first ENROLL.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait for the answer to an initiation.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// A wait is longer by up to one part in so many.
const SPREAD: u32 = 2;
/// How often ENROLL is said in a session.
const TIMES: u32 = 2;

/// What has come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// We are a peer; boxed, since it is large.
    Enrolled(Box<Enrolled>),
    /// We are not let in.
    Refused {
        /// Why, for people; without control characters.
        why: String,
        /// Seconds after which to come again, if that makes sense.
        again: Option<u64>,
    },
}

/// A session with a temporary key.
#[derive(Debug)]
struct Session {
    session: PeerSession,
    enroll: Bytes,
    said: u32,
}

/// One client with one invite.
pub struct Enrolment {
    invite: Invite,
    own: PublicKey,
    handshaker: Handshaker,
    session: Option<Session>,
    /// The use that is tried.
    k: u8,
    /// Where it is tried.
    place: usize,
    attempts: u32,
    /// The gateway wants a cookie with the next initiation: the same use, at the same place.
    has_cookie: bool,
    /// Of every ENROLL: drawn at random, so that nobody who has picked the same use takes our answer for its own.
    stream_id: u32,
    due: Time,
    jitter: Jitter,
}

impl Enrolment {
    /// A client whose own key is to be a peer's.
    ///
    /// # Errors
    /// [`LowOrder`]: the gateway's key in the invite is none.
    pub fn new(
        invite: Invite,
        own: PublicKey,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Self, LowOrder> {
        let mut handshaker = Handshaker::new(1, IndexKey::random(rng));
        // It has no other peer, and no key yet.
        let _ = handshaker.add_peer(GATEWAY, WorkerId(0), invite.gateway, None);
        // Less than 256.
        let k = (rng.next_u32() % u32::from(invite.uses.max(1))) as u8;
        use_key(&invite.secret, k).shared(&invite.gateway)?;
        Ok(Self {
            invite,
            own,
            handshaker,
            session: None,
            k,
            place: 0,
            attempts: 0,
            has_cookie: false,
            stream_id: rng.next_u32().max(1),
            due: now,
            jitter: Jitter(rng.next_u64()),
        })
    }

    /// The number of the place that the next datagram is for, below the number of the invite's places.
    #[must_use]
    pub fn place(&self) -> usize {
        self.place
    }

    /// How many handshakes were begun.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// When [`Self::next_datagram`] has something to send.
    #[must_use]
    pub fn deadline(&self) -> Time {
        self.due
    }

    /// What is due, for [`Self::place`]. `stamp` is the wall clock's.
    pub fn next_datagram(
        &mut self,
        now: Time,
        stamp: Tai64n,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Option<Vec<u8>> {
        if self.due > now {
            return None;
        }
        if let Some(Session { session, enroll, said }) = &mut self.session
            && *said < TIMES
        {
            let wait = FIRST_WAIT * (1 << *said);
            *said += 1;
            self.due = now + wait + self.jitter.below(wait / SPREAD);
            return session.message(enroll, now);
        }
        self.begin(now, stamp, rng)
    }

    fn begin(&mut self, now: Time, stamp: Tai64n, rng: &mut (impl CryptoRng + ?Sized)) -> Option<Vec<u8>> {
        self.session = None;
        let uses = u32::from(self.invite.uses);
        if self.attempts > 0 && !std::mem::take(&mut self.has_cookie) {
            if uses > 1 {
                // Another one: less than 256.
                self.k = ((u32::from(self.k) + 1 + rng.next_u32() % (uses - 1)) % uses) as u8;
            }
            self.place = (self.place + 1) % self.invite.places.len().max(1);
        }
        self.attempts = self.attempts.saturating_add(1);
        let wait = (FIRST_WAIT * self.attempts.min(16)).min(LONGEST_WAIT);
        self.due = now + wait + self.jitter.below(wait / SPREAD);
        let key = use_key(&self.invite.secret, self.k);
        self.handshaker.set_private_key(Some(key.to_secret()));
        self.handshaker.begin(GATEWAY, stamp, now, rng).ok().map(|initiation| initiation.to_vec())
    }

    /// Takes a datagram that has come from the gateway, or from somebody who says so.
    pub fn handle(&mut self, datagram: &mut [u8], from: SocketAddr, now: Time) -> Option<Outcome> {
        if TransportHeader::parse(datagram).is_some() {
            return self.message(datagram, from, now);
        }
        let datagram: &[u8] = datagram;
        if let Ok(cookie) = <&[u8; COOKIE_REPLY_LEN]>::try_from(datagram) {
            if self.session.is_none() && self.handshaker.consume_cookie_reply(cookie, now).is_ok() {
                (self.has_cookie, self.due) = (true, now);
            }
        } else if let Ok(response) = <&[u8; RESPONSE_LEN]>::try_from(datagram)
            && self.handshaker.check_mac1(response)
            && let Ok((_, ToOwner::Install { keypair, .. })) =
                self.handshaker.consume_response(response, Endpoint::new(from), now)
        {
            self.session = self.joined(&keypair, from, now);
            self.due = now;
        }
        None
    }

    /// The session that a handshake has made, with what is to be said in it.
    fn joined(&mut self, keypair: &NewKeypair, from: SocketAddr, now: Time) -> Option<Session> {
        let shared = use_key(&self.invite.secret, self.k).shared(&self.invite.gateway).ok()?;
        let proof = proof(&shared, &keypair.transcript, &self.own);
        let enroll = Enroll { own: self.own, proof }.write(self.stream_id);
        let mut session = PeerSession::new(GATEWAY, Limits::PAPER, 0);
        session.install(keypair, Endpoint::new(from), now);
        let _ = session.take_actions();
        Some(Session { session, enroll, said: 0 })
    }

    /// A transport message.
    fn message(&mut self, datagram: &mut [u8], from: SocketAddr, now: Time) -> Option<Outcome> {
        let TransportHeader { receiver, counter, suite } = TransportHeader::parse(datagram)?;
        let session = &mut self.session.as_mut()?.session;
        let name = session.keypair(receiver)?;
        session.check(name, counter, now).ok()?;
        let outer = datagram.len() as u64;
        let text = datagram.get_mut(TRANSPORT_HEADER_LEN..)?;
        let length = aead::open(session.opening_key(name, suite)?, counter, text)?;
        session.accept(name, counter).ok()?;
        session.received(name, Endpoint::new(from), length > 0, outer, now);
        let _ = session.take_actions();
        let frame = Frame::parse(text.get(..length)?).ok()?;
        if frame.stream_id != self.stream_id {
            return None;
        }
        match frame.operation {
            Operation::Enrolled => Enrolled::read(frame.body).map(Box::new).map(Outcome::Enrolled),
            Operation::Problem => {
                let Problem { retry_after, .. } = Problem::read(frame.body)?;
                Some(Outcome::Refused { why: frame::told(frame.body), again: retry_after })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
