//! What a client does with a session when its network or its gateway may be another one.

use super::{Attempt, PeerSession};
use crate::types::Time;

impl PeerSession {
    /// The way to the peer may be another one: tells it at once where we are, and asks for a handshake, whenever the
    /// last one was. The keepalive makes a peer that still has the session follow us; one that has lost it answers the
    /// handshake only.
    pub fn renew(&mut self, now: Time) {
        self.clear_source();
        self.erase_expired(now);
        if self.can_send(now) {
            self.send_staged_or_keepalive(now);
        }
        self.timers.last_sent_handshake = None;
        self.begin(now, Attempt::First);
    }

    /// True while the peer owes an answer: data was sent since anything came from it, or a handshake is under way.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.timers.new_handshake.is_some() || self.timers.retransmit.is_some() || self.begin_in_flight
    }
}
