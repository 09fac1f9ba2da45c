//! Waiting without requests while there is hardly any traffic.
//!
//! A multishot receive is worth its keep when packets come in numbers. One that comes alone finds the kernel's way
//! through it cold: task work, a second try that finds nothing, a completion. A plain ppoll and one receive are shorter
//! by some microseconds at each hop (measured, see docs/decisions/0033-calm.md). So after a sleep of [`QUIET`] the
//! requests are cancelled, and started again once [`BUSY_WAITS`] waits in a row brought something without such a sleep.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use super::{Event, Ring, direct};
use crate::sys::poll::PollFd;

/// A sleep after which there is hardly any traffic: a round trip's worth many times over, and no pause of a stream.
const QUIET: Duration = Duration::from_millis(5);

/// A packet that comes alone makes a handful of waits: itself, its answer, and what rings the worker's bell.
const BUSY_WAITS: u8 = 8;

/// Turns in which cancelled requests must have ended; they do in the first or second.
const CANCEL_TURNS: u8 = 8;

/// Whether requests are in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are.
    #[default]
    Armed,
    /// They should end: it has become calm.
    Ending,
    /// None is; so many waits brought something since the last long sleep.
    Calm(u8),
}

impl Mode {
    /// What an armed ring is after a sleep.
    pub(super) fn after(slept: Duration) -> Self {
        if slept >= QUIET { Self::Ending } else { Self::Armed }
    }
}

impl Ring {
    /// Waits if it is calm, or ends what is in flight as it becomes calm. False: it is not, requests are to be used.
    pub(super) fn wait_calmly(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<bool> {
        if self.mode == Mode::Armed {
            return Ok(false);
        }
        let Some(fds) = self.state.interests() else {
            self.mode = Mode::Armed;
            return Ok(false);
        };
        if self.mode == Mode::Ending {
            let before = events.len();
            self.mode = if self.end_requests(events)? { Mode::Calm(0) } else { Mode::Armed };
            if events.len() > before || self.mode == Mode::Armed {
                return Ok(events.len() > before);
            }
        }
        self.wait_by_poll(fds, timeout, events)?;
        Ok(true)
    }

    /// True if nothing is in flight any more. What came meanwhile is among the events.
    fn end_requests(&mut self, events: &mut Vec<Event>) -> io::Result<bool> {
        for _ in 0..CANCEL_TURNS {
            self.state.prepare(&mut self.uring.submission(), true);
            self.enter(Some(Duration::ZERO), 1)?;
            self.collect(events);
            if !self.state.in_flight() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn wait_by_poll(
        &mut self,
        mut fds: [PollFd; 4],
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let before = events.len();
        let waited = direct::ask(&mut fds, timeout, &mut self.busy_poll, &mut self.state.counters)?;
        let [targets @ .., wake] = fds;
        for (lane, ready) in self.state.lanes.iter_mut().zip(targets) {
            if let Some(lane) = lane.as_mut().filter(|_| ready.revents != 0) {
                lane.receive_one(ready, events);
            }
        }
        if wake.revents != 0 && direct::woken(&self.state.wake.fd)? {
            events.push(Event::Wake);
        }
        let received = events.len() - before;
        self.state.counters.completions += received as u64;
        if waited >= QUIET {
            self.mode = Mode::Calm(0);
        } else if let Mode::Calm(busy) = self.mode
            && received > 0
        {
            self.mode = if busy + 1 < BUSY_WAITS { Mode::Calm(busy + 1) } else { Mode::Armed };
        }
        Ok(())
    }
}

impl super::State {
    /// What to ask poll(2) for, by lane, the eventfd last; `None` if something is wanted that takes a request.
    fn interests(&self) -> Option<[PollFd; 4]> {
        let mut fds = [PollFd { fd: -1, events: 0, revents: 0 }; 4];
        for (fd, lane) in fds.iter_mut().zip(&self.lanes) {
            if let Some(lane) = lane {
                *fd = lane.interest()?;
            }
        }
        let [.., wake] = &mut fds;
        *wake = PollFd { fd: self.wake.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        Some(fds)
    }
}
