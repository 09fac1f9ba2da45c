//! What a worker waits and receives with: io_uring, or poll(2) where there is no ring. Chosen by each worker when it
//! starts; the worker's type is made for the one or the other, so that a packet meets no switch.

use std::time::Duration;

use anyhow::Context as _;

use crate::config::Io as Choice;
use crate::dataplane::io::Fds;
use crate::dataplane::io::poll::{Poll, PollOptions};
use crate::dataplane::io::ring::{Ring, RingOptions};

/// Makes what the calling thread's worker waits with, `slots` for each descriptor. A wish for io_uring is met or fails;
/// only [`Choice::Auto`] takes poll where a ring cannot be had.
///
/// # Errors
/// What forbids a ring and what to do, if nothing else may be had; no descriptors or memory.
pub fn make(choice: Choice, fds: Fds<'_>, slots: u16, busy_poll: Duration) -> anyhow::Result<Backend> {
    let poll = || {
        let options = PollOptions { receive_slots: slots, tun_slots: slots, busy_poll };
        Poll::new(fds, options).context("preparing to wait with poll")
    };
    if choice == Choice::Poll {
        return Ok(Backend::Poll(poll()?, None));
    }
    let options = RingOptions { receive_slots: slots, tun_slots: slots, busy_poll, ..RingOptions::default() };
    match Ring::new(fds, options) {
        Ok(ring) => Ok(Backend::Uring(ring)),
        Err(error) if choice == Choice::Auto => Ok(Backend::Poll(poll()?, Some(error.to_string()))),
        Err(error) => Err(error.into()),
    }
}

/// What a worker waits with.
#[expect(clippy::large_enum_variant, reason = "one for each worker, moved once")]
pub enum Backend {
    /// A ring.
    Uring(Ring),
    /// poll(2), and why there is no ring, if one was wanted.
    Poll(Poll, Option<String>),
}

/// What a worker told of its choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// `uring` or `poll`.
    pub io: &'static str,
    /// Why there is no ring, if one was wanted.
    pub reason: Option<String>,
}

impl Backend {
    /// For logs and reports.
    #[must_use]
    pub fn chosen(&self) -> Chosen {
        match self {
            Self::Uring(_) => Chosen { io: "uring", reason: None },
            Self::Poll(_, reason) => Chosen { io: "poll", reason: reason.clone() },
        }
    }
}

/// What all of them wait with, or `mixed`.
pub fn kind<'a>(mut chosen: impl Iterator<Item = &'a Chosen>) -> &'static str {
    let first = chosen.next().map_or("none", |chosen| chosen.io);
    if chosen.all(|other| other.io == first) { first } else { "mixed" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::eventfd::EventFd;
    use std::os::fd::AsFd as _;

    /// A ring takes no such number of slots: that stands for everything that forbids one.
    #[test]
    fn poll_takes_the_place_of_a_ring_only_where_it_may() {
        let wake = EventFd::new().unwrap();
        let chosen = |choice, slots| {
            let fds = Fds { tun: None, v4: None, v6: None, wake: wake.as_fd() };
            make(choice, fds, slots, Duration::ZERO).map(|made| made.chosen())
        };
        assert_eq!(chosen(Choice::Auto, 16).unwrap(), Chosen { io: "uring", reason: None });
        assert_eq!(chosen(Choice::Poll, 16).unwrap(), Chosen { io: "poll", reason: None });
        assert!(chosen(Choice::Uring, 3).unwrap_err().to_string().contains("power of two"));
        let poll = chosen(Choice::Auto, 3).unwrap();
        assert_eq!(poll.io, "poll");
        assert!(poll.reason.as_ref().unwrap().contains("power of two"));
        let uring = Chosen { io: "uring", reason: None };
        assert_eq!(kind([&uring, &uring].into_iter()), "uring");
        assert_eq!(kind([&uring, &poll].into_iter()), "mixed");
    }
}
