//! How a client gets its addresses, keeps them, and gives them back (docs/protocol.md, "Leases").
//!
//! 1. [`Leasing::start`], when there is a session: a request is due at once, and again after 1, 2, 4 … 30 s until it is
//!    answered
//! 2. a reply: the addresses are the client's; at half of their time it asks again, for the same
//! 3. a PROBLEM: it asks again when that says so, or as if there were no answer; or never, where asking is no use
//! 4. their time is over: they are not the client's any more, and it goes on asking
//! 5. [`Leasing::leave`]: it goes

use std::time::Duration;

use crate::noise::peer_session::Jitter;
use crate::types::Time;
use crate::wire::frame::lease::{self, AddrReply, AddrRequest, Settings};
use crate::wire::frame::{Bytes, Code, Frame, Operation, Problem};

/// The first wait for an answer.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A wait is longer by up to one part in so many.
const SPREAD: u32 = 8;
/// Nobody renews more often, whatever a reply says.
const LEAST_LEASE: Duration = Duration::from_secs(10);

/// What has come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client has these addresses, with what belongs to them; boxed, since it is large.
    Given(Box<(AddrReply, Settings)>),
    /// The same, for longer.
    Renewed,
    /// A request was refused.
    Refused(Problem),
    /// The addresses are not the client's any more.
    Expired,
    /// The gateway stops: it is time for another one.
    GatewayStops,
    /// The client is none of the gateway's any more, or not at present. What it has is its own until its time is over.
    Dismissed,
    /// Packets for the client were dropped, so many.
    PacketsLost(u64),
}

/// How often a request was sent without an answer, and when it is due again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asking {
    tries: u32,
    due: Time,
}

/// Addresses that the client has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    offer: (AddrReply, Settings),
    until: Time,
}

/// One client at one gateway.
#[derive(Debug)]
pub struct Leasing {
    wish: AddrRequest,
    /// The gateway's name for us; 0 until it has given one.
    usage_id: u32,
    /// Of the last request: its repetitions have the same.
    stream_id: u32,
    /// A request waits for an answer, or for its time.
    asking: Option<Asking>,
    held: Option<Held>,
    /// No lease is believed to last longer.
    longest: Duration,
    jitter: Jitter,
}

impl Leasing {
    /// A client that asks for this. `seed` spreads what many clients repeat; it needs no secrecy.
    #[must_use]
    pub fn new(wish: AddrRequest, seed: u64) -> Self {
        Self {
            wish,
            usage_id: 0,
            stream_id: 0,
            asking: None,
            held: None,
            longest: Duration::MAX,
            jitter: Jitter(seed),
        }
    }

    /// No lease is believed to last longer than that, or than 10 s if that is longer.
    #[must_use]
    pub fn at_most(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }

    /// The addresses that the client has, and what belongs to them.
    #[must_use]
    pub fn offer(&self) -> Option<&(AddrReply, Settings)> {
        self.held.as_ref().map(|held| &held.offer)
    }

    /// Until when they are.
    #[must_use]
    pub fn until(&self) -> Option<Time> {
        self.held.as_ref().map(|held| held.until)
    }

    /// There is a session: a request is due. Nothing changes while one is under way.
    pub fn start(&mut self, now: Time) {
        if self.asking.is_none_or(|asking| asking.due > now) {
            self.ask_at(now);
        }
    }

    /// When [`Self::handle_timeout`] and [`Self::next_frame`] have something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let ends = self.held.as_ref().map(|held| held.until);
        self.asking.map(|asking| asking.due).into_iter().chain(ends).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) -> Option<Outcome> {
        self.held.take_if(|held| held.until <= now).map(|_| Outcome::Expired)
    }

    /// The request that is due, to be sent in the tunnel now.
    pub fn next_frame(&mut self, now: Time) -> Option<Bytes> {
        let Asking { tries, .. } = self.asking.filter(|asking| asking.due <= now)?;
        let wait = FIRST_WAIT.saturating_mul(1 << tries.min(16)).min(LONGEST_WAIT);
        let due = now + wait + self.jitter.below(wait / SPREAD);
        self.asking = Some(Asking { tries: tries.saturating_add(1), due });
        // What it has it wants again.
        let held = self.held.as_ref().map(|held| &held.offer.0);
        let wish = AddrRequest {
            ipv4: held.and_then(|reply| reply.ipv4).map(|(addr, _)| addr).or(self.wish.ipv4),
            ipv6: held.and_then(|reply| reply.ipv6).map(|(addr, _)| addr).or(self.wish.ipv6),
            ..self.wish.clone()
        };
        Some(wish.write(self.usage_id, self.stream_id))
    }

    /// Takes a frame that has come from the gateway.
    pub fn handle(&mut self, frame: &Frame<'_>, now: Time) -> Option<Outcome> {
        match frame.operation {
            Operation::AddrReply if self.is_ours(frame) => {
                let (reply, settings) = AddrReply::read(frame.body)?;
                Some(self.given(reply, settings, now))
            }
            Operation::Problem => {
                let problem = Problem::read(frame.body)?;
                if frame.stream_id == 0 {
                    return Self::told(problem);
                }
                self.is_ours(frame).then(|| self.refused(problem, now))
            }
            _ => None,
        }
    }

    /// The client goes: the addresses are not its own any more. What is returned tells the gateway, once more if it is
    /// sent again; if it is lost, the lease ends by itself.
    pub fn leave(&mut self) -> Bytes {
        (self.asking, self.held) = (None, None);
        self.stream_id = self.stream_id.wrapping_add(1).max(1);
        lease::disconnect(self.usage_id, self.stream_id, 0)
    }

    /// It answers the request that waits for an answer.
    fn is_ours(&self, frame: &Frame<'_>) -> bool {
        self.asking.is_some_and(|asking| asking.tries > 0) && frame.stream_id == self.stream_id
    }

    fn ask_at(&mut self, due: Time) {
        self.stream_id = self.stream_id.wrapping_add(1).max(1);
        self.asking = Some(Asking { tries: 0, due });
    }

    fn given(&mut self, reply: AddrReply, settings: Settings, now: Time) -> Outcome {
        self.usage_id = reply.usage_id;
        let lasts = Duration::from_secs(reply.seconds.into()).min(self.longest).max(LEAST_LEASE);
        let half = lasts / 2;
        let early = self.jitter.below(half / SPREAD);
        self.ask_at(now + (half - early));
        let of = |(reply, settings): &(AddrReply, Settings)| {
            (AddrReply { seconds: 0, ..*reply }, settings.clone())
        };
        let offer = (reply, settings);
        let same = self.held.as_ref().is_some_and(|held| of(&held.offer) == of(&offer));
        self.held = Some(Held { offer: offer.clone(), until: now + lasts });
        if same { Outcome::Renewed } else { Outcome::Given(Box::new(offer)) }
    }

    fn refused(&mut self, problem: Problem, now: Time) -> Outcome {
        let no_use = [Code::UnsupportedVersion, Code::BadRequest].map(|code| code as u64);
        if no_use.contains(&problem.code) {
            self.asking = None;
        } else if let (Some(seconds), Some(asking)) = (problem.retry_after, &mut self.asking) {
            let wait = Duration::from_secs(seconds).max(FIRST_WAIT);
            asking.due = now + wait + self.jitter.below(wait / SPREAD);
        }
        Outcome::Refused(problem)
    }

    /// What the gateway says by itself.
    fn told(problem: Problem) -> Option<Outcome> {
        if problem.code == Code::TunnelDown as u64 {
            return Some(Outcome::GatewayStops);
        }
        if problem.code == Code::NotAllowed as u64 {
            return Some(Outcome::Dismissed);
        }
        problem.lost.filter(|_| problem.code == Code::PacketLost as u64).map(Outcome::PacketsLost)
    }
}

/// A problem as a clause for whoever sits there; `told` is the gateway's own text ([`crate::wire::frame::told`]).
#[must_use]
pub fn words(problem: &Problem, told: &str) -> String {
    let is = |code: Code| problem.code == code as u64;
    let again = problem.retry_after.map_or_else(String::new, |s| format!("; it is asked again after {s} s"));
    if is(Code::NoFreeAddr) {
        format!("the gateway has no free address for this client{again}")
    } else if is(Code::AlreadyAssignedAddr) {
        format!("the gateway has given this client's address to another one{again}")
    } else if is(Code::TunnelDown) {
        "the gateway stops".to_owned()
    } else if is(Code::UnsupportedVersion) {
        "the gateway speaks another version of control frames: one of the two needs an update".to_owned()
    } else if is(Code::BadRequest) {
        "the gateway does not understand what this client asks for: one of the two needs an update".to_owned()
    } else if told.is_empty() {
        format!("the gateway refuses, with the number {}", problem.code)
    } else {
        format!("the gateway says: {told}")
    }
}

#[cfg(test)]
mod tests;
