//! What a worker waits and receives with: io_uring, or poll(2) where there is no ring. Chosen by each worker when it
//! starts; the worker's type is made for the one or the other, so that a packet meets no switch.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;

use crate::dataplane::io::Fds;
use crate::dataplane::io::poll::{Poll, PollOptions};
use crate::dataplane::io::ring::{Ring, RingOptions};

/// What to wait with, as chosen by the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring, and poll(2) where a ring cannot be had.
    #[default]
    Auto,
    /// io_uring, or no start.
    Uring,
    /// poll(2).
    Poll,
}

impl FromStr for IoChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "poll" => Ok(Self::Poll),
            _ => anyhow::bail!("'{text}' is none of 'auto', 'uring', 'poll'"),
        }
    }
}

impl IoChoice {
    /// Makes what the calling thread's worker waits with, `slots` for each descriptor.
    ///
    /// # Errors
    /// What forbids a ring and what to do, if nothing else may be had; no descriptors or memory.
    pub fn make(self, fds: Fds<'_>, slots: u16, busy_poll: Duration) -> anyhow::Result<Backend> {
        let poll = || {
            let options = PollOptions { receive_slots: slots, tun_slots: slots, busy_poll };
            Poll::new(fds, options).context("preparing to wait with poll")
        };
        if self == Self::Poll {
            return Ok(Backend::Poll(poll()?, None));
        }
        let options =
            RingOptions { receive_slots: slots, tun_slots: slots, busy_poll, ..RingOptions::default() };
        match Ring::new(fds, options) {
            Ok(ring) => Ok(Backend::Uring(ring)),
            Err(error) if self == Self::Auto => Ok(Backend::Poll(poll()?, Some(error.to_string()))),
            Err(error) => Err(error.into()),
        }
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

    #[test]
    fn choices_have_names() {
        for (name, choice) in [("auto", IoChoice::Auto), ("uring", IoChoice::Uring), ("poll", IoChoice::Poll)]
        {
            assert_eq!(name.parse::<IoChoice>().unwrap(), choice);
        }
        for bad in ["", "epoll", "Uring"] {
            assert!(bad.parse::<IoChoice>().unwrap_err().to_string().contains("'uring'"), "{bad}");
        }
    }

    /// A ring takes no such number of slots: that stands for everything that forbids one.
    #[test]
    fn poll_takes_the_place_of_a_ring_only_where_it_may() {
        let wake = EventFd::new().unwrap();
        let make = |choice: IoChoice, slots| {
            let fds = Fds { tun: None, v4: None, v6: None, wake: wake.as_fd() };
            choice.make(fds, slots, Duration::ZERO).map(|made| made.chosen())
        };
        assert_eq!(make(IoChoice::Auto, 16).unwrap(), Chosen { io: "uring", reason: None });
        assert_eq!(make(IoChoice::Poll, 16).unwrap(), Chosen { io: "poll", reason: None });
        assert!(make(IoChoice::Uring, 3).unwrap_err().to_string().contains("power of two"));
        let chosen = make(IoChoice::Auto, 3).unwrap();
        assert_eq!(chosen.io, "poll");
        assert!(chosen.reason.as_ref().unwrap().contains("power of two"));
        let uring = Chosen { io: "uring", reason: None };
        assert_eq!(kind([&uring, &uring].into_iter()), "uring");
        assert_eq!(kind([&uring, &chosen].into_iter()), "mixed");
    }
}
