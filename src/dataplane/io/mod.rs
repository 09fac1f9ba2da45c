//! Waiting and receiving: what a worker needs from the kernel, as one trait.
//!
//! Knows buffers and file descriptors, and no WireGuard. [`ring`] is the io_uring implementation, [`poll`] the one on
//! poll(2) and plain calls for hosts without. Sends and TUN writes are direct non-blocking calls (`sys::socket`,
//! `sys::tun`) and are not here: many io_uring sends in flight reorder under back-pressure.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::sys::arena::Slot;
use crate::types::Source;

pub mod busy_poll;
pub mod depth;
pub mod direct;
mod linger;
pub mod patience;
pub mod poll;
pub mod recvmsg;
pub mod ring;
#[cfg(test)]
mod tests;

/// Bytes of a slot: the largest packet or coalesced run (64 KiB), and what is written before it.
pub const SLOT_SIZE: usize = 64 * 1024 + 512;

/// Descriptors of one worker. An [`Io`] duplicates them: closing the originals does not close the socket or the queue
/// while it lives.
#[derive(Clone, Copy, Debug)]
pub struct Fds<'fd> {
    /// One TUN queue.
    pub tun: Option<BorrowedFd<'fd>>,
    /// The IPv4 UDP socket.
    pub v4: Option<BorrowedFd<'fd>>,
    /// The IPv6 UDP socket (with `IPV6_V6ONLY`).
    pub v6: Option<BorrowedFd<'fd>>,
    /// An eventfd that others write to.
    pub wake: BorrowedFd<'fd>,
}

/// Outer address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Something that becomes writable or fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The worker's TUN queue.
    Tun,
    /// The worker's UDP socket of a family.
    Udp(Family),
}

/// An [`Io`] has one lane for each target, at its place here.
const TARGETS: [Target; 3] = [Target::Tun, Target::Udp(Family::V4), Target::Udp(Family::V6)];

/// The place of a target's lane.
fn lane_of(target: Target) -> usize {
    match target {
        Target::Tun => 0,
        Target::Udp(Family::V4) => 1,
        Target::Udp(Family::V6) => 2,
    }
}

/// One receive: a datagram, or a run of datagrams of one flow that the kernel coalesced (UDP_GRO).
#[derive(Debug)]
pub struct Datagrams {
    /// Holds the payload; returns itself when dropped.
    pub slot: Slot,
    /// First byte of the payload in the slot.
    pub start: usize,
    /// Length of the whole payload.
    pub len: usize,
    /// Length of each datagram but the last, which may be shorter; equals `len` if there is one. At least 1, also
    /// for an empty datagram, so that `chunks(segment)` is always allowed.
    pub segment: usize,
    /// The sender.
    pub remote: SocketAddr,
    /// Where it arrived; becomes the sticky source.
    pub source: Option<Source>,
    /// Outer TOS byte or traffic class; its low two bits are ECN.
    pub tos: u8,
    /// The kernel cut it (MSG_TRUNC): larger than the slot.
    pub truncated: bool,
}

/// One read from a TUN queue: a virtio-net header and one packet or super-packet.
#[derive(Debug)]
pub struct TunRead {
    /// Holds header and packet from its first byte on; returns itself when dropped.
    pub slot: Slot,
    /// Length of header and packet.
    pub len: usize,
}

/// What [`Io::wait`] yields.
#[derive(Debug)]
pub enum Event {
    /// Datagrams arrived.
    Datagrams(Datagrams),
    /// A packet came from the network stack.
    Tun(TunRead),
    /// Somebody rang the worker's eventfd: look at the channels.
    Wake,
    /// A target for which [`Io::arm_writable`] was called is writable.
    Writable(Target),
    /// A read or receive failed with this errno. The target is re-armed by itself, except a TUN queue with EBADFD
    /// (the device is gone).
    Failed(Target, i32),
}

/// What an [`Io`] counts; plain numbers, read by the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Requests that these took.
    pub submissions: u64,
    /// `ppoll` calls, in the place of these: by poll, and while a ring is calm.
    pub polls: u64,
    /// Of either, how many were allowed to sleep.
    pub sleeps: u64,
    /// Waits that began by polling awake.
    pub busy_polls: u64,
    /// Of these, how many found something before they would have slept.
    pub busy_poll_hits: u64,
    /// Waits that let small packets gather.
    pub lingers: u64,
    /// Completions handled, or what poll(2) found done: receives, wakes, targets that became writable.
    pub completions: u64,
    /// Turns of a target that ended for want of a slot (ENOBUFS) and go on with the next wait.
    pub buffers_exhausted: u64,
}

/// Waiting and receiving for one worker; owned by its thread.
pub trait Io {
    /// Waits for events and appends them, all that are there, but no longer than `timeout` (`None`: no limit;
    /// zero: do not sleep). May return early without an event: after a signal, or when what completed concerns
    /// only the `Io` itself. Slots dropped since the last call are given back to the kernel here, so drop events
    /// before waiting again.
    ///
    /// # Errors
    /// Only what no retry can mend.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;

    /// Asks for one [`Event::Writable`] when `target` takes data again. Idempotent while armed.
    fn arm_writable(&mut self, target: Target);

    /// Stops or resumes reading the TUN queue. A packet that was read already still arrives.
    fn read_tun(&mut self, on: bool);

    /// Replaces the UDP socket of a family; `None` leaves the family without one. What the old socket received
    /// before still arrives. The new one is read, and the old one's duplicate closed, in one of the next calls of
    /// [`Io::wait`].
    ///
    /// # Errors
    /// What duplicating the descriptor or preparing buffers gives; the old socket then stays in use.
    fn replace_udp(&mut self, family: Family, socket: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// What was counted so far.
    fn counters(&self) -> IoCounters;
}
