//! Waiting without requests while there is hardly any traffic.
//!
//! A multishot receive is worth its keep when packets come in numbers. One that comes alone finds the kernel's way
//! through it cold: task work, a second try that finds nothing, a completion. A plain ppoll and one receive are shorter
//! by some microseconds at each hop (measured, see docs/decisions/0033-calm.md). So after a sleep of [`QUIET`] the
//! requests are cancelled, and started again once [`BUSY_WAITS`] waits in a row brought something without such a sleep.

use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use super::{Event, Ring};
use crate::sys::poll::{self, PollFd};

/// A sleep after which there is hardly any traffic: a round trip's worth many times over, and no pause of a stream.
const QUIET: Duration = Duration::from_millis(5);

/// A packet that comes alone makes a handful of waits: itself, its answer, and what rings the worker's bell.
const BUSY_WAITS: u8 = 8;

/// Turns in which cancelled requests must have ended; they do in the first or second.
const CANCEL_TURNS: u8 = 8;

/// Whether requests are in flight.
#[derive(Debug, Default)]
pub(super) struct Calm {
    mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// They are.
    #[default]
    Armed,
    /// They should end: it has become calm.
    Ending,
    /// None is; so many waits brought something since the last long sleep.
    Calm(u8),
}

impl Calm {
    /// The ring has slept.
    pub(super) fn slept(&mut self, time: Duration) {
        if time >= QUIET {
            self.mode = Mode::Ending;
        }
    }
}

impl Ring {
    /// Waits if it is calm, or ends what is in flight as it becomes calm. False: it is not, requests are to be used.
    pub(super) fn wait_calmly(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<bool> {
        if self.calm.mode == Mode::Armed {
            return Ok(false);
        }
        let Some(mut fds) = self.state.interests() else {
            self.calm.mode = Mode::Armed;
            return Ok(false);
        };
        if self.calm.mode == Mode::Ending {
            let before = events.len();
            self.calm.mode = if self.end_requests(events)? { Mode::Calm(0) } else { Mode::Armed };
            if self.calm.mode == Mode::Armed {
                return Ok(events.len() > before);
            }
            if events.len() > before {
                return Ok(true);
            }
        }
        self.poll(&mut fds, timeout, events)?;
        Ok(true)
    }

    /// True if nothing is in flight any more. What came meanwhile is among the events.
    fn end_requests(&mut self, events: &mut Vec<Event>) -> io::Result<bool> {
        for _ in 0..CANCEL_TURNS {
            self.state.prepare(&mut self.uring.submission(), true);
            self.enter(Some(Duration::ZERO))?;
            self.collect(events);
            if !self.state.in_flight() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn poll(
        &mut self,
        fds: &mut [PollFd; 4],
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let before = events.len();
        let slept = self.sleep_or_look(fds, timeout)?;
        let [targets @ .., wake] = *fds;
        for (lane, ready) in self.state.lanes.iter_mut().zip(targets) {
            if let Some(lane) = lane.as_mut().filter(|_| ready.revents != 0) {
                lane.receive_one(ready, events);
            }
        }
        if wake.revents != 0 {
            match (&self.state.wake.fd).read(&mut [0; 8]) {
                Ok(_) => events.push(Event::Wake),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let received = events.len() - before;
        self.state.counters.completions += received as u64;
        self.calm.mode = match self.calm.mode {
            _ if slept >= QUIET => Mode::Calm(0),
            Mode::Calm(busy) if received > 0 && busy + 1 >= BUSY_WAITS => Mode::Armed,
            Mode::Calm(busy) => Mode::Calm(busy + u8::from(received > 0)),
            other => other,
        };
        Ok(())
    }

    /// Asks poll(2); yields how long that slept.
    fn sleep_or_look(&mut self, fds: &mut [PollFd; 4], timeout: Option<Duration>) -> io::Result<Duration> {
        let counters = &mut self.state.counters;
        if timeout != Some(Duration::ZERO) && self.busy_poll.is_due() {
            counters.busy_polls += 1;
            let mut failed = None;
            let hit = self.busy_poll.poll(timeout, || {
                counters.polls += 1;
                poll::wait(fds, Some(Duration::ZERO)).unwrap_or_else(|error| {
                    failed = Some(error);
                    1
                }) > 0
            });
            counters.busy_poll_hits += u64::from(hit);
            if let Some(error) = failed {
                return Err(error);
            }
            if hit {
                return Ok(Duration::ZERO);
            }
        }
        counters.polls += 1;
        if timeout == Some(Duration::ZERO) {
            poll::wait(fds, timeout)?;
            return Ok(Duration::ZERO);
        }
        counters.sleeps += 1;
        let begin = Instant::now();
        let ready = poll::wait(fds, timeout)?;
        let slept = begin.elapsed();
        if ready > 0 {
            self.busy_poll.woken_after(slept);
        }
        Ok(slept)
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
