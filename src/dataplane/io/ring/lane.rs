//! One descriptor of a worker: its receive, its poll for writability, its buffers.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, SubmissionQueue, cqueue, opcode, squeue};

use super::buffers::Buffers;
use super::{RingError, SLOT_SIZE, Token, lane_of, push};
use crate::dataplane::io::patience::Patience;
use crate::dataplane::io::recvmsg::{CONTROL_LEN, NAME_LEN, parse_name};
use crate::dataplane::io::{Datagrams, Event, Target, TunRead, direct};
use crate::sys::arena::Slot;
use crate::sys::poll::PollFd;
use crate::sys::socket::parse_control;

/// `struct io_uring_recvmsg_out`: lengths of name, control and payload, flags; each 32 bits.
const HEADER_LEN: usize = 16;

/// Where the payload begins: on a cache line of its own.
pub(super) const PAYLOAD: usize = HEADER_LEN + NAME_LEN + CONTROL_LEN;
const _: () = assert!(PAYLOAD.is_multiple_of(64) && SLOT_SIZE - PAYLOAD > 65_535);

/// Where a request is on its way. It is in flight at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flight {
    /// The kernel does not have it.
    Idle,
    /// The kernel has it; more completions come.
    Up,
    /// As `Up`, and its cancellation was asked for.
    Cancelling,
}

impl Flight {
    /// Starts what is wanted and cancels what is not; a full queue means the next turn does.
    pub(super) fn steer(
        &mut self,
        wanted: bool,
        token: Token,
        cancel: Token,
        queue: &mut SubmissionQueue<'_>,
        start: impl FnOnce() -> squeue::Entry,
    ) {
        match (*self, wanted) {
            (Self::Idle, true) if push(queue, start(), token) => *self = Self::Up,
            (Self::Up, false) if push(queue, opcode::AsyncCancel::new(token.encode()).build(), cancel) => {
                *self = Self::Cancelling;
            }
            _ => {}
        }
    }

    /// A cancellation was answered. ENOENT and EALREADY: the request was just between two steps; unless its last
    /// completion comes by itself, the next turn asks again.
    pub(super) fn cancel_answered(&mut self, result: i32) {
        if result < 0 && *self == Self::Cancelling {
            *self = Self::Up;
        }
    }
}

/// How a lane receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneKind {
    Tun { multishot: bool },
    Udp,
}

pub(super) struct Lane {
    target: Target,
    pub(super) kind: LaneKind,
    /// `File` stands for any descriptor: it is what reads without `unsafe`.
    fd: Option<File>,
    /// What takes the place of `fd` once nothing is in flight for it.
    successor: Option<Option<File>>,
    buffers: Buffers,
    /// Lengths of name and control for a multishot receive.
    header: Box<libc::msghdr>,
    pub(super) receive: Flight,
    pub(super) poll: Flight,
    pub(super) want_reads: bool,
    pub(super) want_writable: bool,
    /// The device is deleted: nothing can be read ever again.
    gone: bool,
    pub(super) patience: Patience,
}

impl Lane {
    pub(super) fn new(
        uring: &IoUring,
        target: Target,
        kind: LaneKind,
        fd: OwnedFd,
        slots: u16,
    ) -> Result<Self, RingError> {
        // SAFETY: all zero is a valid msghdr: no name, no vectors, no control.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_namelen = NAME_LEN as u32;
        header.msg_controllen = CONTROL_LEN as _;
        Ok(Self {
            target,
            kind,
            fd: Some(fd.into()),
            successor: None,
            buffers: Buffers::new(uring, lane_of(target) as u16, slots)?,
            header,
            receive: Flight::Idle,
            poll: Flight::Idle,
            want_reads: true,
            want_writable: false,
            gone: false,
            patience: Patience::default(),
        })
    }

    /// The number of its buffer group.
    pub(super) fn group(&self) -> u16 {
        lane_of(self.target) as u16
    }

    pub(super) fn in_flight(&self) -> bool {
        self.receive != Flight::Idle || self.poll != Flight::Idle
    }

    pub(super) fn replace(&mut self, fd: Option<OwnedFd>) {
        self.successor = Some(fd.map(File::from));
    }

    /// Slots that are accounted for.
    #[cfg(test)]
    pub(super) fn free_or_lent(&self) -> usize {
        self.buffers.free_or_lent()
    }

    /// How many slots it lends at most.
    #[cfg(test)]
    pub(super) fn depth(&self) -> usize {
        self.buffers.depth()
    }

    /// Gives up what the kernel may still write to.
    pub(super) fn leak(&mut self) {
        self.buffers.leak();
    }

    /// What to ask poll(2) for; `None`: something is wanted that takes a request.
    pub(super) fn interest(&self) -> Option<PollFd> {
        let simple = !self.want_writable && self.successor.is_none() && self.patience.retry_at().is_none();
        if !simple || self.buffers.free() == 0 {
            return None;
        }
        let fd = self.fd.as_ref().filter(|_| self.want_reads && !self.gone).map_or(-1, File::as_raw_fd);
        Some(PollFd { fd, events: libc::POLLIN, revents: 0 })
    }

    /// Receives once by a plain call, as poll(2) said that one may. Nothing is in flight.
    pub(super) fn receive_one(&mut self, ready: PollFd, events: &mut Vec<Event>) {
        let (Some(fd), Some(slot)) = (&self.fd, self.buffers.take_free()) else { return };
        match direct::receive(fd, self.target, slot) {
            Ok((event, len)) => {
                self.patience.succeeded();
                self.buffers.brought(len);
                events.push(event);
            }
            // An error condition that no call takes away would be reported for ever.
            Err(error) if error.kind() == ErrorKind::WouldBlock && ready.revents == libc::POLLIN => {}
            Err(error) => self.failed(error.raw_os_error().unwrap_or(libc::EBADMSG), events),
        }
    }

    /// One turn: lend slots, then start or cancel; with `calm` nothing is wanted.
    pub(super) fn prepare(&mut self, queue: &mut SubmissionQueue<'_>, calm: bool) {
        if !calm {
            self.buffers.refill();
        }
        if !self.in_flight()
            && let Some(fd) = self.successor.take()
        {
            self.fd = fd;
            self.patience = Patience::default();
        }
        let Some(fd) = self.fd.as_ref().map(|fd| Fd(fd.as_raw_fd())) else {
            return;
        };
        let stays = self.successor.is_none() && !self.gone;
        let rested = self.patience.is_rested();
        let ready = self.receive != Flight::Idle || (self.buffers.lent() > 0 && rested);
        let (group, kind, target) = (self.group(), self.kind, self.target);
        let header = &raw const *self.header;
        self.receive.steer(
            self.want_reads && stays && ready && !calm,
            Token::Receive(target),
            Token::CancelReceive(target),
            queue,
            || receive_entry(kind, fd, header, group),
        );
        self.poll.steer(
            self.want_writable && self.successor.is_none() && !calm,
            Token::Poll(target),
            Token::CancelPoll(target),
            queue,
            || opcode::PollAdd::new(fd, libc::POLLOUT as u32).build(),
        );
    }

    /// A completion of the receive.
    pub(super) fn received(&mut self, completion: &cqueue::Entry, events: &mut Vec<Event>) {
        if !cqueue::more(completion.flags()) {
            self.receive = Flight::Idle;
        }
        // Whatever the result: a slot that comes back is owned again, and returns itself if nobody wants it.
        let len = usize::try_from(completion.result());
        let slot = cqueue::buffer_select(completion.flags())
            .and_then(|index| self.buffers.take(index, len.unwrap_or(0)));
        let Ok(len) = len else {
            self.failed(-completion.result(), events);
            return;
        };
        self.patience.succeeded();
        let Some(slot) = slot else {
            return;
        };
        let len = len.min(slot.len());
        match self.kind {
            LaneKind::Tun { .. } => events.push(Event::Tun(TunRead { slot, len })),
            LaneKind::Udp => events.push(match datagrams(slot, len) {
                Some(datagrams) => Event::Datagrams(datagrams),
                None => Event::Failed(self.target, libc::EBADMSG),
            }),
        }
    }

    fn failed(&mut self, errno: i32, events: &mut Vec<Event>) {
        match errno {
            // Armed again as soon as a slot is there.
            libc::ENOBUFS => return self.buffers.ran_out(),
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            _ => events.push(Event::Failed(self.target, errno)),
        }
        self.gone |= self.target == Target::Tun && errno == libc::EBADFD;
        if errno != libc::ECANCELED && !self.gone {
            self.patience.failed();
        }
    }

    /// A completion of the poll. An error condition counts as writable: the write will say what is wrong.
    pub(super) fn polled(&mut self, result: i32, events: &mut Vec<Event>) {
        self.poll = Flight::Idle;
        match -result {
            // The socket is being replaced: the wish stays.
            libc::ECANCELED => {}
            errno if errno > 0 => {
                self.want_writable = false;
                events.push(Event::Failed(self.target, errno));
            }
            _ => {
                self.want_writable = false;
                events.push(Event::Writable(self.target));
            }
        }
    }
}

fn receive_entry(kind: LaneKind, fd: Fd, header: *const libc::msghdr, group: u16) -> squeue::Entry {
    match kind {
        LaneKind::Udp => opcode::RecvMsgMulti::new(fd, header, group).build(),
        // Length 0: that of the buffer.
        LaneKind::Tun { multishot: true } => opcode::ReadMulti::new(fd, 0, group).build(),
        LaneKind::Tun { multishot: false } => opcode::Read::new(fd, std::ptr::null_mut(), SLOT_SIZE as u32)
            .buf_group(group)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT),
    }
}

/// Reads what a multishot receive wrote: header, name, control, payload. `None` if that is not well-formed.
pub(super) fn datagrams(slot: Slot, len: usize) -> Option<Datagrams> {
    let word = |at: usize| slot.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize);
    let (name_len, control_len, payload_len, flags) = (word(0)?, word(4)?, word(8)?, word(12)?);
    let room = len.checked_sub(PAYLOAD)?;
    let name = slot.get(HEADER_LEN..)?.get(..name_len.min(NAME_LEN))?;
    let control = slot.get(HEADER_LEN + NAME_LEN..)?.get(..control_len.min(CONTROL_LEN))?;
    let remote = parse_name(name)?;
    let control = parse_control(control);
    let len = payload_len.min(room);
    let segment = control.segment.map_or(len, usize::from).min(len);
    Some(Datagrams {
        start: PAYLOAD,
        len,
        segment: segment.max(1),
        remote,
        source: control.source,
        tos: control.tos,
        truncated: flags & libc::MSG_TRUNC as usize != 0,
        slot,
    })
}
