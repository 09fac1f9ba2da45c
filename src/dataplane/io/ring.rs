//! Waiting and receiving with io_uring.
//!
//! One turn of [`Ring::wait`]:
//! 1. slots that came back since the last turn go to the kernel (one ring of provided buffers per descriptor, so
//!    that a flood on one starves no other);
//! 2. requests that ended are armed again, unwanted ones cancelled;
//! 3. one `io_uring_enter` submits all that and waits, with the timeout as its argument;
//! 4. every completion becomes an event, or ends a request.
//!
//! Each UDP socket has one multishot receive in flight; the TUN queue has one multishot read (Linux 6.7), or else
//! one single read. Never several plain reads: each packet would wake them all, and they reorder. A request is in
//! flight at most once and its successor starts only after its last completion, so a late completion of a
//! cancelled one cannot be mistaken.
//!
//! While there is hardly any traffic nothing is in flight: see `ring/calm.rs`.
//!
//! A buffer in the kernel's hands is a [`Slot`](crate::sys::arena::Slot) in a table of this module; the completion
//! that names it takes it out. On drop everything is cancelled and awaited, since the kernel would otherwise keep
//! the UDP port and the TUN queue for a moment after the process is gone; if that fails, the buffers are leaked
//! rather than reused under the kernel's pen.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, SubmissionQueue, cqueue, opcode, squeue};

use super::busy_poll::{BUSY_POLL, BusyPoll};
use super::linger::{Brought, LINGER, Linger};
use super::{Event, Family, Fds, Io, IoCounters, SLOT_SIZE, TARGETS, Target, direct, lane_of, patience};
use crate::sys::eventfd::EventFd;

mod buffers;
mod calm;
mod error;
mod lane;
mod restrict;
#[cfg(test)]
mod tests;

use calm::Mode;
pub use error::RingError;
use lane::{Flight, Lane, LaneKind};

/// Submission entries: in one turn at most receive, poll and their two cancels per lane, and the wake and its: 14.
const ENTRIES: u32 = 32;

/// Teardown: how often and how long to wait for the last completions.
const DRAIN_TURNS: u32 = 50;
const DRAIN_PAUSE: Duration = Duration::from_millis(10);

/// Completions that [`LINGER`] does not bring: the time ends that wait. (What is known of by task work, as a packet for
/// a multishot receive is, becomes completions only when somebody waits no longer.)
const MORE_THAN_COME: usize = 1024;

/// Sizes and choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Receive slots of each UDP socket; a power of two. How many of them the kernel has at a time follows the
    /// traffic, so more cost address space only; 16 cost no more per datagram than 256.
    pub receive_slots: u16,
    /// Read slots of the TUN queue; a power of two.
    pub tun_slots: u16,
    /// Use READ_MULTISHOT where the kernel has it.
    pub tun_multishot: bool,
    /// How long to poll awake before sleeping, see [`BusyPoll`]; zero never does.
    pub busy_poll: Duration,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { receive_slots: 16, tun_slots: 16, tun_multishot: true, busy_poll: BUSY_POLL }
    }
}

/// What a completion belongs to; travels through the kernel as `user_data`: kind in the high byte, lane in the low
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Wake,
    Receive(Target),
    Poll(Target),
    CancelReceive(Target),
    CancelPoll(Target),
    CancelWake,
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, lane) = match self {
            Self::Wake => (1_u64, 0),
            Self::Receive(target) => (2, lane_of(target)),
            Self::Poll(target) => (3, lane_of(target)),
            Self::CancelReceive(target) => (4, lane_of(target)),
            Self::CancelPoll(target) => (5, lane_of(target)),
            Self::CancelWake => (6, 0),
        };
        kind << 56 | lane as u64
    }

    fn decode(data: u64) -> Option<Self> {
        let target = TARGETS.get(usize::from(data as u8)).copied()?;
        match data >> 56 {
            1 => Some(Self::Wake),
            2 => Some(Self::Receive(target)),
            3 => Some(Self::Poll(target)),
            4 => Some(Self::CancelReceive(target)),
            5 => Some(Self::CancelPoll(target)),
            6 => Some(Self::CancelWake),
            _ => None,
        }
    }
}

/// [`Io`] by io_uring. Made, used and dropped by one thread.
pub struct Ring {
    // First, so that it is closed before the memory that requests point to.
    uring: IoUring,
    state: State,
    busy_poll: BusyPoll,
    linger: Linger,
    mode: Mode,
}

/// All but the ring itself, so that completions can be handled while the ring is borrowed.
struct State {
    lanes: [Option<Lane>; 3],
    wake: Wake,
    counters: IoCounters,
    /// An error no retry can mend; the wait that met it returns it.
    fatal: Option<io::Error>,
    receive_slots: u16,
}

/// The eventfd and where its count is read to.
struct Wake {
    fd: File,
    /// Written by the kernel while the read is in flight; its value is of no interest.
    count: Box<std::cell::UnsafeCell<u64>>,
    flight: Flight,
}

impl Ring {
    /// Sets the ring up, restricted to what it is for; the first [`Io::wait`] arms it.
    ///
    /// # Errors
    /// [`RingError`] names what forbids it and what to do.
    pub fn new(fds: Fds<'_>, options: RingOptions) -> Result<Self, RingError> {
        for slots in [options.receive_slots, options.tun_slots] {
            if !slots.is_power_of_two() || slots > 1 << 15 {
                return Err(RingError::Slots(slots));
            }
        }
        let completions = 4 * (u32::from(options.tun_slots) + 2 * u32::from(options.receive_slots));
        let uring = build(completions)?;
        let has_multishot = supports_read_multishot(&uring)?;
        let multishot = options.tun_multishot && has_multishot;
        restrict::restrict_and_enable(&uring, has_multishot)?;
        let own =
            |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(RingError::at("duplicating a descriptor"));
        let wake = Wake { fd: own(fds.wake)?.into(), count: Box::default(), flight: Flight::Idle };
        let mut lanes = [None, None, None];
        let kinds = [
            (fds.tun, LaneKind::Tun { multishot }, options.tun_slots),
            (fds.v4, LaneKind::Udp, options.receive_slots),
            (fds.v6, LaneKind::Udp, options.receive_slots),
        ];
        for ((lane, target), (fd, kind, slots)) in lanes.iter_mut().zip(TARGETS).zip(kinds) {
            if let Some(fd) = fd {
                *lane = Some(Lane::new(&uring, target, kind, own(fd)?, slots)?);
            }
        }
        let state = State {
            lanes,
            wake,
            counters: IoCounters::default(),
            fatal: None,
            receive_slots: options.receive_slots,
        };
        Ok(Self {
            uring,
            state,
            busy_poll: BusyPoll::new(options.busy_poll),
            linger: Linger::default(),
            mode: Mode::default(),
        })
    }

    /// Makes a ring with a lane, as a worker does, and takes it down: whether this process may have one.
    ///
    /// # Errors
    /// [`RingError`] names what forbids it and what to do.
    pub fn trial() -> Result<(), RingError> {
        let wake = EventFd::new().map_err(RingError::at("making an eventfd"))?;
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(RingError::at("opening a socket"))?;
        let fds = Fds { tun: None, v4: Some(socket.as_fd()), v6: None, wake: wake.as_fd() };
        Self::new(fds, RingOptions::default()).map(drop)
    }

    /// True if the TUN queue is read by READ_MULTISHOT.
    #[must_use]
    pub fn tun_multishot(&self) -> bool {
        self.state.lanes[0].as_ref().is_some_and(|lane| lane.kind == LaneKind::Tun { multishot: true })
    }

    /// Polls awake if that is due and nothing waits to be submitted. True if there is something to collect.
    fn poll_awake(&mut self, timeout: Option<Duration>) -> bool {
        if !self.busy_poll.is_due() || !self.uring.submission().is_empty() {
            return false;
        }
        self.state.counters.busy_polls += 1;
        let uring = &mut self.uring;
        let hit = self.busy_poll.poll(timeout, || {
            // Work that waits for the next enter is the kernel's word that a request has ended.
            !uring.completion().is_empty() || uring.submission().taskrun()
        });
        self.state.counters.busy_poll_hits += u64::from(hit);
        hit
    }

    /// Submits, and if there is time and nothing to collect sleeps until `want` completions are there. Yields how long
    /// it slept.
    fn enter(&mut self, timeout: Option<Duration>, want: usize) -> io::Result<Duration> {
        let mut sleep = timeout != Some(Duration::ZERO) && self.uring.completion().is_empty();
        if sleep && self.poll_awake(timeout) {
            sleep = false;
        }
        if !sleep {
            let queue = self.uring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(Duration::ZERO);
            }
        }
        self.state.counters.enters += 1;
        self.state.counters.sleeps += u64::from(sleep);
        let begin = sleep.then(Instant::now);
        let submitter = self.uring.submitter();
        let result = match timeout {
            Some(timeout) if sleep => {
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&Timespec::from(timeout)))
            }
            None if sleep => submitter.submit_and_wait(want),
            _ => submitter.submit(),
        };
        let slept = begin.map_or(Duration::ZERO, |begin| begin.elapsed());
        match result {
            Ok(submitted) => {
                self.state.counters.submissions += submitted as u64;
                if sleep {
                    self.busy_poll.woken_after(slept);
                }
                Ok(slept)
            }
            // Timeout; signal; no memory for a request just now; completions to be collected first.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(slept)
            }
            Err(error) => Err(error),
        }
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        for completion in self.uring.completion() {
            self.state.complete(&completion, events);
        }
    }

    /// Cancels all requests and awaits their last completions. False if the kernel still holds one.
    fn drain(&mut self) -> bool {
        let mut late = Vec::new();
        for _ in 0..DRAIN_TURNS {
            let timeout = Timespec::from(DRAIN_PAUSE);
            // Requests that an interrupted submit left behind must be in flight before they can be cancelled.
            let _ = self.uring.submit();
            let _ = self.uring.submitter().register_sync_cancel(Some(timeout), CancelBuilder::any());
            self.collect(&mut late);
            if !self.state.in_flight() {
                return true;
            }
            let _ = self.enter(Some(DRAIN_PAUSE), 1);
            self.collect(&mut late);
            late.clear();
        }
        !self.state.in_flight()
    }
}

impl Io for Ring {
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        if self.wait_calmly(timeout, events)? {
            return self.state.fatal.take().map_or(Ok(()), Err);
        }
        self.state.prepare(&mut self.uring.submission(), false);
        let lanes = self.state.lanes.iter().flatten();
        let timeout = patience::bound(timeout, lanes.map(|lane| &lane.patience));
        let exhausted = self.state.counters.buffers_exhausted;
        let lingers = self.linger.is_due() && timeout != Some(Duration::ZERO);
        let slept = if lingers {
            self.state.counters.lingers += 1;
            self.enter(Some(timeout.map_or(LINGER, |timeout| timeout.min(LINGER))), MORE_THAN_COME)?
        } else {
            self.enter(timeout, 1)?
        };
        self.mode = Mode::after(slept);
        let before = events.len();
        self.collect(events);
        let more = self.state.counters.buffers_exhausted > exhausted;
        let came = events.get(before..).unwrap_or_default();
        self.linger.look(Brought::of(slept, came, more), lingers);
        self.state.fatal.take().map_or(Ok(()), Err)
    }

    fn arm_writable(&mut self, target: Target) {
        if let Some(lane) = &mut self.state.lanes[lane_of(target)] {
            lane.want_writable = true;
        }
    }

    fn read_tun(&mut self, on: bool) {
        if let Some(lane) = &mut self.state.lanes[lane_of(Target::Tun)] {
            lane.want_reads = on;
        }
    }

    fn replace_udp(&mut self, family: Family, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let target = Target::Udp(family);
        let socket = socket.map(|fd| fd.try_clone_to_owned()).transpose()?;
        match (&mut self.state.lanes[lane_of(target)], socket) {
            (Some(lane), socket) => lane.replace(socket),
            (None, None) => {}
            (lane @ None, Some(fd)) => {
                let slots = self.state.receive_slots;
                *lane =
                    Some(Lane::new(&self.uring, target, LaneKind::Udp, fd, slots).map_err(io::Error::other)?);
            }
        }
        Ok(())
    }

    fn counters(&self) -> IoCounters {
        self.state.counters
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let drained = self.drain();
        for lane in self.state.lanes.iter_mut().flatten() {
            // Without a reader nothing is written any more, whether or not this succeeds.
            let _ = self.uring.submitter().unregister_buf_ring(lane.group());
            if !drained {
                lane.leak();
            }
        }
        if !drained {
            // The read of the eventfd may still write its count.
            std::mem::forget(std::mem::take(&mut self.state.wake.count));
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("counters", &self.state.counters).finish_non_exhaustive()
    }
}

impl State {
    /// Gives slots back and pushes what is to be started or cancelled.
    /// With `calm` nothing is wanted.
    fn prepare(&mut self, queue: &mut SubmissionQueue<'_>, calm: bool) {
        let Wake { fd, count, flight } = &mut self.wake;
        flight.steer(!calm, Token::Wake, Token::CancelWake, queue, || {
            opcode::Read::new(Fd(fd.as_raw_fd()), count.get().cast(), 8).build()
        });
        for lane in self.lanes.iter_mut().flatten() {
            lane.prepare(queue, calm);
        }
    }

    fn in_flight(&self) -> bool {
        self.wake.flight != Flight::Idle || self.lanes.iter().flatten().any(Lane::in_flight)
    }

    fn complete(&mut self, completion: &cqueue::Entry, events: &mut Vec<Event>) {
        self.counters.completions += 1;
        let Some(token) = Token::decode(completion.user_data()) else {
            return;
        };
        let result = completion.result();
        match token {
            Token::Wake => self.woken(result, events),
            Token::Receive(target) => {
                if let Some(lane) = &mut self.lanes[lane_of(target)] {
                    self.counters.buffers_exhausted += u64::from(result == -libc::ENOBUFS);
                    lane.received(completion, events);
                }
            }
            Token::Poll(target) => {
                if let Some(lane) = &mut self.lanes[lane_of(target)] {
                    lane.polled(result, events);
                }
            }
            Token::CancelWake => self.wake.flight.cancel_answered(result),
            Token::CancelReceive(target) => {
                if let Some(lane) = &mut self.lanes[lane_of(target)] {
                    lane.receive.cancel_answered(result);
                }
            }
            Token::CancelPoll(target) => {
                if let Some(lane) = &mut self.lanes[lane_of(target)] {
                    lane.poll.cancel_answered(result);
                }
            }
        }
    }

    fn woken(&mut self, result: i32, events: &mut Vec<Event>) {
        self.wake.flight = Flight::Idle;
        match -result {
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            errno if errno > 0 => self.fatal = Some(io::Error::from_raw_os_error(errno)),
            _ => events.push(Event::Wake),
        }
    }
}

fn build(completions: u32) -> Result<IoUring, RingError> {
    let attempt = || {
        IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_r_disabled()
            .setup_cqsize(completions.next_power_of_two())
            .build(ENTRIES)
    };
    match attempt() {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && buffers::raise_memlock() => attempt(),
        result => result,
    }
    .map_err(|error| RingError::of_setup(&error))
}

fn supports_read_multishot(uring: &IoUring) -> Result<bool, RingError> {
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(RingError::at("probing io_uring"))?;
    Ok(probe.is_supported(opcode::ReadMulti::CODE))
}

/// Puts an entry into the submission queue; false if it is full (the caller tries again in the next turn).
fn push(queue: &mut SubmissionQueue<'_>, entry: squeue::Entry, token: Token) -> bool {
    // SAFETY: whatever an entry of this module points to (message header, buffer ring, slots, wake count) is owned
    // by the `State` and freed only after the request's last completion; `Drop` leaks it if that does not come.
    unsafe { queue.push(&entry.user_data(token.encode())) }.is_ok()
}
