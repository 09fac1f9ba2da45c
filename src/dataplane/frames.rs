//! Control frames on the worker: what an opened message holds where a packet would be.
//!
//! 1. [`super::inbound`] finds a frame by its first nibble; [`handle`] looks at the peer's allowance, then reads it;
//! 2. HELLO and PONG go to the session ([`crate::noise::agreement`]), which says later what it wants to send;
//! 3. PING and what cannot be understood are answered: the answer waits in [`Answers`] for the end of the turn, when
//!    the keypair that the request came in is confirmed;
//! 4. ADDR_REQUEST and DISCONNECT go to the control thread ([`super::handoff::Asked`]) if the keypair may change
//!    something; what it answers comes back as [`super::handoff::ToWorker::Frame`];
//! 5. ENROLL of a temporary peer, of which nothing else is taken but HELLO, goes to the handshake thread
//!    ([`super::handoff::Claim`]), and from there to the control thread;
//! 6. what a gateway says to us goes to the control thread if this device is a client's;
//! 7. [`super::outbound`] seals answers and the session's own frames as it does packets.

use std::time::Duration;

use arrayvec::ArrayVec;

use super::handoff::{Asked, Claim, Request, Wish};
use super::worker::Core;
use crate::metrics::drops::Drop;
use crate::mutation::holds;
use crate::noise::peer_session::KeypairRef;
use crate::types::{PeerId, Suite, Time};
use crate::wire::frame::enrolment::Enroll;
use crate::wire::frame::lease::{self, AddrReply, AddrRequest};
use crate::wire::frame::{self, Bytes, Code, Frame, Hello, Operation, Problem, Wrong};

/// Frames of one peer that are looked at in a row.
const BURST: u32 = 20;
/// How long it takes until one more is: 10 a second.
const REFILL: Duration = Duration::from_millis(100);
/// Between two words to a peer about packets that were lost.
const LOST_EVERY: Duration = Duration::from_secs(10);
/// Answers that may wait for the end of a turn; what does not fit is dropped, and the peer asks again.
const ANSWERS: usize = 32;

/// How many frames of a peer are looked at, or changes of its session told. Full at first.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    left: u32,
    /// Up to when it was filled.
    filled: Time,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: BURST, filled: Time::default() }
    }
}

impl Allowance {
    /// True if one more may pass.
    pub fn take(&mut self, now: Time) -> bool {
        // A clock that went back fills nothing.
        let steps = now.since(self.filled).as_nanos() / REFILL.as_nanos();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(steps).min(BURST);
        // What is filled up gains nothing by waiting longer.
        self.filled = if self.left == BURST { self.filled.max(now) } else { self.filled + REFILL * steps };
        let passes = holds("frame-rate", self.left > 0);
        self.left = self.left.saturating_sub(1);
        passes
    }
}

/// Packets for a peer that were dropped before they were sealed, and when it was last told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    packets: u32,
    told: Option<Time>,
}

impl Lost {
    /// So many more.
    pub fn add(&mut self, packets: u32) {
        self.packets = self.packets.saturating_add(packets);
    }

    /// How many the peer is to be told of now.
    pub fn take(&mut self, now: Time) -> Option<u32> {
        if self.packets == 0 || self.told.is_some_and(|told| now.since(told) < LOST_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.packets))
    }
}

/// A frame that answers another.
pub struct Answer {
    /// Whom it is for.
    pub slot: u32,
    /// What to seal it with, if the keypair that sends may.
    pub suite: Suite,
    /// The frame.
    pub frame: Bytes,
}

/// Answers of this turn.
pub type Answers = ArrayVec<Answer, ANSWERS>;

/// Handles a frame that the peer in `slot` has sent in this keypair, sealed with `suite`.
pub fn handle(core: &mut Core, slot: u32, keypair: KeypairRef, suite: Suite, payload: &[u8]) {
    let now = core.now;
    let Some(peer) = core.peers.by_slot(slot) else { return };
    if !peer.frames.take(now) {
        return core.counters.drops.count(Drop::FrameLimit);
    }
    let frame = match Frame::parse(payload) {
        Ok(frame) => frame,
        Err(Wrong::Malformed) => return core.counters.drops.count(Drop::FrameMalformed),
        Err(Wrong::Unknown) => return core.counters.drops.count(Drop::FrameUnhandled),
        Err(Wrong::Version { stream_id, answer }) => {
            core.counters.drops.count(Drop::FrameRefused);
            if !answer {
                core.answer(slot, suite, frame::problem(stream_id, Code::UnsupportedVersion));
            }
            return;
        }
    };
    let temporary = peer.session.is_temporary();
    if temporary && !is_for_joining(frame.operation) {
        return core.counters.drops.count(Drop::TemporaryPeer);
    }
    core.counters.frames_in += 1;
    let stream_id = frame.stream_id;
    let id = peer.id;
    let session = &mut peer.session;
    session.heard(keypair);
    let understood = match frame.operation {
        Operation::Hello => {
            Hello::read(frame.body).map(|hello| session.hello(keypair, hello, !frame.is_answer(), now))
        }
        Operation::Ping => match frame::ping_data(&frame) {
            Some(data) => {
                core.answer(slot, suite, frame::pong(stream_id, data, 0));
                Some(true)
            }
            None => None,
        },
        Operation::Pong => frame::ping_data(&frame).map(|_| session.pong(keypair, suite, &frame)),
        Operation::Problem => Problem::read(frame.body).map(|_| true),
        Operation::AddrReply if core.asked.hears() => AddrReply::read(frame.body).map(|_| true),
        Operation::AddrRequest | Operation::Disconnect => wish(&frame).map(|what| {
            let may = session.may_change(keypair);
            let goes = matches!(what, Wish::Disconnect);
            if may && !core.asked.ask(Asked { peer: id, suite, stream_id, what }) {
                core.counters.drops.count(Drop::ControlFull);
            } else if may && goes {
                session.disconnected(keypair);
            }
            may
        }),
        Operation::Enroll if temporary => match Enroll::read(frame.body) {
            Some(enroll) if session.may_change(keypair) => {
                let index = keypair.local_index();
                core.request(Request::Enroll(Box::new(Claim { peer: id, index, stream_id, enroll })));
                Some(true)
            }
            read => read.map(|_| false),
        },
        _ => return core.counters.drops.count(Drop::FrameUnhandled),
    };
    match understood {
        Some(true) => hear(core, id, &frame, payload),
        Some(false) => core.counters.drops.count(Drop::FrameStale),
        None => {
            core.counters.drops.count(Drop::FrameRefused);
            if !frame.is_answer() {
                core.answer(slot, suite, frame::problem(stream_id, Code::BadRequest));
            }
        }
    }
}

/// What was understood goes to the control thread if it is a gateway's to us.
fn hear(core: &mut Core, peer: PeerId, frame: &Frame<'_>, payload: &[u8]) {
    let of_gateways = [Operation::Hello, Operation::AddrReply, Operation::Problem];
    if core.asked.hears() && of_gateways.contains(&frame.operation) && !core.asked.said(peer, payload) {
        core.counters.drops.count(Drop::ControlFull);
    }
}

/// What whoever has been invited, and is no peer yet, may say.
fn is_for_joining(operation: Operation) -> bool {
    let joining = [Operation::Hello, Operation::Enroll, Operation::Enrolled, Operation::Problem];
    holds("temporary-frame", joining.contains(&operation))
}

/// What the control thread is asked for.
fn wish(frame: &Frame<'_>) -> Option<Wish> {
    match frame.operation {
        Operation::AddrRequest => AddrRequest::read(frame.body).map(Wish::Addresses),
        _ => lease::disconnect_reason(frame.body).map(|_| Wish::Disconnect),
    }
}

#[cfg(test)]
mod tests;
