//! Waiting and receiving with poll(2) and plain non-blocking calls: for hosts that permit no io_uring.
//!
//! One turn of [`Poll::wait`]:
//! 1. a lane whose socket is being replaced reads what the old one still holds, then takes the new one;
//! 2. one `ppoll` asks for what is wanted: no reads of a lane that pauses, or whose slots are all with somebody;
//! 3. each lane that is ready is read until it is empty or its depth is reached, so that a flood on one starves no
//!    other; what is left is for the next turn, which then does not sleep.
//!
//! Reads of one descriptor are never in flight beside each other: what comes out is in order.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use super::busy_poll::BusyPoll;
use super::depth::Depth;
use super::direct::Slots;
use super::patience::{self, Patience};
use super::{Event, Family, Fds, Io, IoCounters, SLOT_SIZE, TARGETS, Target, direct, lane_of};
use crate::sys::arena::{Arena, Slot};
use crate::sys::poll::PollFd;
use crate::sys::socket::MANY;

/// Turns in which a socket that is being replaced is still read, if it does not become empty before.
const LAST_TURNS: u8 = 64;

/// A ppoll that returns so soon found something that was there before; one that had to wait takes longer.
const AT_ONCE: Duration = Duration::from_micros(20);

/// Sizes and choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollOptions {
    /// Receive slots of each UDP socket.
    pub receive_slots: u16,
    /// Read slots of the TUN queue.
    pub tun_slots: u16,
    /// How long to poll awake before sleeping, see [`BusyPoll`]; zero never does.
    pub busy_poll: Duration,
}

/// [`Io`] by poll(2). Made, used and dropped by one thread.
#[derive(Debug)]
pub struct Poll {
    lanes: [Option<Lane>; 3],
    wake: File,
    busy_poll: BusyPoll,
    receive_slots: u16,
    counters: IoCounters,
}

impl Poll {
    /// Duplicates the descriptors, which must be non-blocking, and makes the buffers.
    ///
    /// # Errors
    /// EMFILE, ENOMEM, or EINVAL for 0 slots.
    pub fn new(fds: Fds<'_>, options: PollOptions) -> io::Result<Self> {
        let mut lanes = [None, None, None];
        let kinds =
            [(fds.tun, options.tun_slots), (fds.v4, options.receive_slots), (fds.v6, options.receive_slots)];
        for ((lane, target), (fd, slots)) in lanes.iter_mut().zip(TARGETS).zip(kinds) {
            if let Some(fd) = fd {
                *lane = Some(Lane::new(target, own(fd)?, slots)?);
            }
        }
        Ok(Self {
            lanes,
            wake: own(fds.wake)?,
            busy_poll: BusyPoll::new(options.busy_poll),
            receive_slots: options.receive_slots,
            counters: IoCounters::default(),
        })
    }

    /// What is asked for, by lane; the eventfd last.
    fn interests(&mut self) -> [PollFd; 4] {
        let [tun, v4, v6] = self.lanes.each_mut().map(|lane| lane.as_mut().map_or(NOTHING, Lane::interest));
        [tun, v4, v6, PollFd { fd: self.wake.as_raw_fd(), events: libc::POLLIN, revents: 0 }]
    }

    /// Asks, and sleeps if there is time and nothing was left behind. Yields whether what was found had to be waited
    /// for: then there is hardly more of it.
    fn ask(&mut self, fds: &mut [PollFd; 4], timeout: Option<Duration>) -> io::Result<bool> {
        let left_behind = self.lanes.iter().flatten().any(|lane| lane.more);
        let timeout = if left_behind { Some(Duration::ZERO) } else { timeout };
        let waited = direct::ask(fds, timeout, &mut self.busy_poll, &mut self.counters)?;
        Ok(timeout != Some(Duration::ZERO) && waited >= AT_ONCE)
    }
}

impl Io for Poll {
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        for lane in self.lanes.iter_mut().flatten() {
            lane.begin_turn(events, &mut self.counters);
        }
        let mut fds = self.interests();
        let timeout = patience::bound(timeout, self.lanes.iter().flatten().map(|lane| &lane.patience));
        let waited = self.ask(&mut fds, timeout)?;
        let [targets @ .., wake] = fds;
        for (lane, ready) in self.lanes.iter_mut().zip(targets) {
            if let Some(lane) = lane {
                lane.serve(ready, waited, events, &mut self.counters);
            }
        }
        if wake.revents != 0 && direct::woken(&self.wake)? {
            self.counters.completions += 1;
            events.push(Event::Wake);
        }
        Ok(())
    }

    fn arm_writable(&mut self, target: Target) {
        if let Some(lane) = &mut self.lanes[lane_of(target)] {
            lane.want_writable = true;
        }
    }

    fn read_tun(&mut self, on: bool) {
        if let Some(lane) = &mut self.lanes[lane_of(Target::Tun)] {
            lane.want_reads = on;
        }
    }

    fn replace_udp(&mut self, family: Family, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let target = Target::Udp(family);
        let socket = socket.map(own).transpose()?;
        match (&mut self.lanes[lane_of(target)], socket) {
            (Some(lane), socket) => lane.successor = Some((socket, LAST_TURNS)),
            (None, None) => {}
            (lane @ None, Some(fd)) => *lane = Some(Lane::new(target, fd, self.receive_slots)?),
        }
        Ok(())
    }

    fn counters(&self) -> IoCounters {
        self.counters
    }
}

/// For a lane that is not there, or of which nothing is wanted.
const NOTHING: PollFd = PollFd { fd: -1, events: 0, revents: 0 };

/// `File` stands for any descriptor: it is what reads without `unsafe`.
fn own(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

/// One descriptor: its buffers, and what is wanted of it.
#[derive(Debug)]
struct Lane {
    target: Target,
    fd: Option<File>,
    /// What takes the place of `fd`, and in how many more turns at the latest.
    successor: Option<(Option<File>, u8)>,
    arena: Arena,
    depth: Depth,
    patience: Patience,
    want_reads: bool,
    want_writable: bool,
    /// The last turn left something unread, as far as one can know.
    more: bool,
    /// The device is deleted: nothing can be read ever again.
    gone: bool,
}

impl Lane {
    fn new(target: Target, fd: File, slots: u16) -> io::Result<Self> {
        Ok(Self {
            target,
            fd: Some(fd),
            successor: None,
            arena: Arena::new(slots, SLOT_SIZE)?,
            depth: Depth::default(),
            patience: Patience::default(),
            want_reads: true,
            want_writable: false,
            more: false,
            gone: false,
        })
    }

    /// Looks at the last turn; reads a socket that is being replaced, and takes the new one when the old one is empty.
    fn begin_turn(&mut self, events: &mut Vec<Event>, counters: &mut IoCounters) {
        let depth = self.depth.next_turn(self.arena.capacity());
        let Some((socket, turns)) = self.successor.take() else { return };
        if turns > 0 && self.patience.is_rested() && self.read(depth, events, counters) {
            self.more = true;
            self.successor = Some((socket, turns - 1));
            return;
        }
        (self.fd, self.patience, self.more) = (socket, Patience::default(), false);
    }

    fn interest(&mut self) -> PollFd {
        let reads = self.want_reads && !self.gone && self.arena.free() > 0 && self.patience.is_rested();
        let mut events = 0;
        if reads {
            events |= libc::POLLIN;
        } else if self.successor.is_none() {
            self.more = false;
        }
        if self.want_writable {
            events |= libc::POLLOUT;
        }
        match &self.fd {
            // An error condition is reported though it was not asked for: who wants nothing must not be asked.
            Some(fd) if events != 0 && self.successor.is_none() => {
                PollFd { fd: fd.as_raw_fd(), events, revents: 0 }
            }
            _ => NOTHING,
        }
    }

    /// Does what poll(2) said. An error condition counts as readable and writable: the call will say what is wrong.
    fn serve(&mut self, ready: PollFd, waited: bool, events: &mut Vec<Event>, counters: &mut IoCounters) {
        if self.successor.is_some() {
            return;
        }
        self.more = false;
        if ready.events & libc::POLLOUT != 0 && ready.revents & !libc::POLLIN != 0 {
            self.want_writable = false;
            counters.completions += 1;
            events.push(Event::Writable(self.target));
        }
        if ready.events & libc::POLLIN == 0 || ready.revents & !libc::POLLOUT == 0 {
            return;
        }
        let before = events.len();
        // One that is alone costs no second call to learn that it is.
        let alone = waited && self.depth.is_quiet();
        let depth = if alone { 1 } else { self.depth.slots() };
        if self.read(depth, events, counters) && !alone {
            self.more = true;
            self.depth.ran_out();
            counters.buffers_exhausted += 1;
        }
        if events.len() == before && ready.revents & !(libc::POLLIN | libc::POLLOUT) != 0 {
            // An error that no call takes away would be reported for ever.
            self.patience.failed();
        }
    }

    /// Reads at most `depth` times, until nothing is left or something fails. True if the depth, or a lack of slots,
    /// ended it.
    fn read(&mut self, depth: usize, events: &mut Vec<Event>, counters: &mut IoCounters) -> bool {
        if depth > 1 && self.target != Target::Tun {
            return self.read_many(depth, events, counters);
        }
        for _ in 0..depth {
            let Some(slot) = self.arena.take() else { break };
            match self.receive(slot) {
                Ok((event, len)) => {
                    counters.completions += 1;
                    self.patience.succeeded();
                    self.depth.brought(len);
                    events.push(event);
                }
                Err(error) => {
                    self.failed(error.raw_os_error().unwrap_or(libc::EBADMSG), events);
                    return false;
                }
            }
        }
        true
    }

    /// As [`Self::read`], of a socket: as many datagrams by a call as it takes.
    fn read_many(&mut self, depth: usize, events: &mut Vec<Event>, counters: &mut IoCounters) -> bool {
        let mut left = depth;
        while left > 0 {
            let slots: Slots = (0..left.min(MANY)).map_while(|_| self.arena.take()).collect();
            let wanted = slots.len();
            if wanted == 0 {
                break;
            }
            let Some(fd) = &self.fd else { return false };
            let received = match direct::receive_many(fd, slots) {
                Ok(received) => received,
                Err(error) => {
                    self.failed(error.raw_os_error().unwrap_or(libc::EBADMSG), events);
                    return false;
                }
            };
            let came = received.len();
            counters.completions += came as u64;
            self.patience.succeeded();
            for one in received {
                match one {
                    Ok(datagrams) => {
                        self.depth.brought(datagrams.len);
                        events.push(Event::Datagrams(datagrams));
                    }
                    Err(error) => self.failed(error.raw_os_error().unwrap_or(libc::EBADMSG), events),
                }
            }
            if came < wanted {
                return false;
            }
            left -= came;
        }
        true
    }

    fn receive(&self, slot: Slot) -> io::Result<(Event, usize)> {
        let fd = self.fd.as_ref().ok_or(io::Error::from_raw_os_error(libc::EAGAIN))?;
        direct::receive(fd, self.target, slot)
    }

    fn failed(&mut self, errno: i32, events: &mut Vec<Event>) {
        if matches!(errno, libc::EAGAIN | libc::EINTR) {
            return;
        }
        events.push(Event::Failed(self.target, errno));
        self.gone |= self.target == Target::Tun && errno == libc::EBADFD;
        if !self.gone {
            self.patience.failed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, UdpSocket};
    use std::os::fd::AsFd as _;
    use std::thread;
    use std::time::Instant;

    use socket2::SockRef;

    use super::super::busy_poll::BUSY_POLL;
    use super::super::tests::{Subject, contract, of, payload, receiver, wake};
    use super::*;

    impl Subject for Poll {
        fn make(fds: Fds<'_>, receive_slots: u16, tun_slots: u16) -> Self {
            Self::new(fds, PollOptions { receive_slots, tun_slots, busy_poll: BUSY_POLL }).unwrap()
        }

        fn slots_at_home(&self, target: Target) -> usize {
            self.lanes[lane_of(target)].as_ref().unwrap().arena.free()
        }

        fn depth(&self, target: Target) -> usize {
            self.lanes[lane_of(target)].as_ref().unwrap().depth.slots()
        }
    }

    contract!(Poll);

    #[test]
    fn one_that_is_alone_costs_one_look_and_one_receive() {
        let (socket, wake) = (receiver("127.0.0.1:0"), wake());
        let fds = Fds { tun: None, v4: Some(socket.as_fd()), v6: None, wake: wake.as_fd() };
        let options = PollOptions { receive_slots: 16, tun_slots: 16, busy_poll: Duration::ZERO };
        let mut poll = Poll::new(fds, options).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut events = Vec::new();
        let to = socket.local_addr().unwrap();
        let mut receive = |sent: usize| {
            let sender = sender.try_clone().unwrap();
            let sending = thread::spawn(move || {
                thread::sleep(Duration::from_millis(3));
                (0..sent).for_each(|_| assert_eq!(sender.send_to(b"alone", to).unwrap(), 5));
            });
            let before = poll.counters;
            let mut turns = Vec::new();
            while turns.iter().sum::<usize>() < sent {
                poll.wait(Some(Duration::from_secs(1)), &mut events).unwrap();
                turns.push(events.drain(..).count());
                // whatever comes with the first is there by then
                thread::sleep(Duration::from_millis(1));
            }
            sending.join().unwrap();
            (turns, poll.counters.polls - before.polls, poll.counters.sleeps - before.sleeps)
        };
        for _ in 0..40 {
            assert_eq!(receive(1), (vec![1], 1, 1));
        }
        // company is noticed in the next turn
        assert_eq!(receive(3).0[0], 1);
        let turns = receive(60).0;
        assert!(turns.contains(&16) && turns.len() < 20, "{turns:?}");
    }

    #[test]
    fn what_a_replaced_socket_holds_still_arrives() {
        let (old, new, wake) = (receiver("127.0.0.1:0"), receiver("127.0.0.1:0"), wake());
        let fds = Fds { tun: None, v4: Some(old.as_fd()), v6: None, wake: wake.as_fd() };
        let mut poll = Poll::make(fds, 16, 16);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..100_u8 {
            sender.send_to(&[n], old.local_addr().unwrap()).unwrap();
        }
        sender.send_to(&[100], new.local_addr().unwrap()).unwrap();
        poll.replace_udp(Family::V4, Some(new.as_fd())).unwrap();
        let (mut events, mut next) = (Vec::new(), 0);
        while next <= 100 {
            poll.wait(Some(Duration::from_secs(1)), &mut events).unwrap();
            assert!(!events.is_empty(), "{next}");
            for event in events.drain(..) {
                let Event::Datagrams(datagrams) = event else { panic!("{event:?}") };
                assert_eq!(datagrams.slot[datagrams.start..datagrams.start + datagrams.len], [next]);
                next += 1;
            }
        }
    }

    /// What a turn that does not sleep brings.
    fn at_once(poll: &mut Poll) -> Vec<Event> {
        let mut events = Vec::new();
        poll.wait(Some(Duration::ZERO), &mut events).unwrap();
        events
    }

    fn is_only(events: &[Event], text: &[u8]) -> bool {
        matches!(events, [Event::Datagrams(datagrams)] if payload(datagrams) == text)
    }

    /// A socket that was shut down is readable for ever, and has nothing to read.
    #[test]
    fn a_condition_that_no_receive_takes_away_costs_no_core() {
        let (socket, wake) = (receiver("127.0.0.1:0"), wake());
        socket.connect("127.0.0.1:9").unwrap();
        SockRef::from(&socket).shutdown(Shutdown::Both).unwrap();
        let mut poll: Poll = of(&socket, &wake, 2);
        let (start, mut events) = (Instant::now(), Vec::new());
        while start.elapsed() < Duration::from_millis(350) {
            poll.wait(Some(Duration::from_millis(50)), &mut events).unwrap();
        }
        assert!(events.is_empty() && poll.counters.polls < 25, "{events:?} {:?}", poll.counters);
    }

    #[test]
    fn failures_with_receptions_between_them_are_no_reason_to_pause() {
        let (socket, wake) = (receiver("127.0.0.1:0"), wake());
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (near_addr, far_addr) = (socket.local_addr().unwrap(), far.local_addr().unwrap());
        drop(far);
        socket.connect(far_addr).unwrap();
        let mut poll: Poll = of(&socket, &wake, 2);
        for _ in 0..8 {
            // Nobody is there: the answer is ICMP.
            socket.send(b"anybody?").unwrap();
            let events = at_once(&mut poll);
            assert!(matches!(events[..], [Event::Failed(_, libc::ECONNREFUSED)]), "{events:?}");
            let far = UdpSocket::bind(far_addr).unwrap();
            far.send_to(b"here", near_addr).unwrap();
            assert!(is_only(&at_once(&mut poll), b"here"));
        }
    }

    #[test]
    fn a_new_socket_does_not_pause_for_the_old_ones_failures() {
        let ((reader, mut writer), wake) = (io::pipe().unwrap(), wake());
        io::Write::write_all(&mut writer, b"no socket").unwrap();
        let fds = Fds { tun: None, v4: Some(reader.as_fd()), v6: None, wake: wake.as_fd() };
        let mut poll = Poll::make(fds, 2, 2);
        while !at_once(&mut poll).is_empty() {}
        let new = receiver("127.0.0.1:0");
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"new", new.local_addr().unwrap()).unwrap();
        poll.replace_udp(Family::V4, Some(new.as_fd())).unwrap();
        assert!(is_only(&at_once(&mut poll), b"new"));
    }

    #[test]
    fn a_flood_on_a_replaced_socket_ends() {
        let (old, new, wake) = (receiver("127.0.0.1:0"), receiver("127.0.0.1:0"), wake());
        let fds = Fds { tun: None, v4: Some(old.as_fd()), v6: None, wake: wake.as_fd() };
        let mut poll = Poll::make(fds, 2, 2);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        poll.replace_udp(Family::V4, Some(new.as_fd())).unwrap();
        sender.send_to(b"new", new.local_addr().unwrap()).unwrap();
        let (mut events, mut from_old) = (Vec::new(), 0);
        for _ in 0..=LAST_TURNS + 1 {
            for _ in 0..3 {
                sender.send_to(b"old", old.local_addr().unwrap()).unwrap();
            }
            poll.wait(Some(Duration::from_secs(1)), &mut events).unwrap();
            for event in events.drain(..) {
                let Event::Datagrams(datagrams) = event else { panic!("{event:?}") };
                if datagrams.slot.starts_with(b"new") {
                    assert_eq!(from_old, 2 * usize::from(LAST_TURNS));
                    return;
                }
                from_old += 1;
            }
        }
        panic!("the new socket was never read");
    }
}
