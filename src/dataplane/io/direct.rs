//! Waiting with poll(2) and receiving by plain calls: all that [`poll`](super::poll) does, and
//! [`ring`](super::ring) while there is hardly any traffic.

use std::fs::File;
use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use super::busy_poll::BusyPoll;
use super::{Datagrams, Event, IoCounters, Target, TunRead};
use crate::sys::arena::Slot;
use crate::sys::poll::{self, PollFd};
use crate::sys::socket;

/// Asks poll(2) for `fds`, first awake if that is due, then asleep; zero does neither. Yields how long it waited.
///
/// # Errors
/// Those of [`poll::wait`].
pub fn ask(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    busy_poll: &mut BusyPoll,
    counters: &mut IoCounters,
) -> io::Result<Duration> {
    let begin = Instant::now();
    if timeout == Some(Duration::ZERO) {
        counters.polls += 1;
        poll::wait(fds, timeout)?;
        return Ok(begin.elapsed());
    }
    if busy_poll.is_due() && ask_awake(fds, timeout, busy_poll, counters)? {
        return Ok(begin.elapsed());
    }
    counters.polls += 1;
    counters.sleeps += 1;
    let ready = poll::wait(fds, timeout)?;
    let waited = begin.elapsed();
    if ready > 0 {
        busy_poll.woken_after(waited);
    }
    Ok(waited)
}

/// Asks again and again for a moment. True if something was found.
fn ask_awake(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    busy_poll: &mut BusyPoll,
    counters: &mut IoCounters,
) -> io::Result<bool> {
    counters.busy_polls += 1;
    let mut failed = None;
    let hit = busy_poll.poll(timeout, || {
        counters.polls += 1;
        poll::wait(fds, Some(Duration::ZERO)).unwrap_or_else(|error| {
            failed = Some(error);
            1
        }) > 0
    });
    counters.busy_poll_hits += u64::from(hit);
    failed.map_or(Ok(hit), Err)
}

/// Reads the worker's eventfd, which is non-blocking. True if somebody had rung it.
///
/// # Errors
/// Those of read(2), but not EAGAIN and EINTR.
pub fn woken(mut wake: &File) -> io::Result<bool> {
    match wake.read(&mut [0; 8]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Receives from a non-blocking TUN queue or socket into `slot`. Yields the event and how many bytes came.
///
/// # Errors
/// Those of read(2) and recvmsg(2), EAGAIN among them.
pub fn receive(mut fd: &File, target: Target, mut slot: Slot) -> io::Result<(Event, usize)> {
    if target == Target::Tun {
        let len = fd.read(&mut slot)?;
        return Ok((Event::Tun(TunRead { slot, len }), len));
    }
    let received = socket::recv(fd, &mut slot)?;
    let len = received.len;
    Ok((Event::Datagrams(datagrams(slot, received)), len))
}

/// As [`receive`], from a socket into as many slots as there is something for; the others are given back.
///
/// # Errors
/// Those of recvmmsg(2), EAGAIN among them: then nothing came. What is wrong with one message only is in its place.
pub fn receive_many(
    fd: &File,
    mut slots: Slots,
) -> io::Result<ArrayVec<io::Result<Datagrams>, { socket::MANY }>> {
    let received = socket::recv_many(fd, &mut slots)?;
    // The first are the warmest: they go back last.
    while slots.len() > received.len() {
        drop(slots.pop());
    }
    Ok(slots.into_iter().zip(received).map(|(slot, one)| one.map(|one| datagrams(slot, one))).collect())
}

/// Where the messages of one call go.
pub type Slots = ArrayVec<Slot, { socket::MANY }>;

fn datagrams(slot: Slot, received: socket::Received) -> Datagrams {
    let len = received.len;
    Datagrams {
        slot,
        start: 0,
        len,
        segment: received.segment.map_or(len, usize::from).clamp(1, len.max(1)),
        remote: received.remote,
        source: received.source,
        tos: received.tos,
        truncated: received.truncated,
    }
}
