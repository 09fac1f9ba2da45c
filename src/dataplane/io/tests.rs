//! What every [`Io`] owes, against a real kernel: UDP on loopback, TUN in a network namespace of the test's own thread.
//! [`contract`] makes a test of each for one implementation.

use std::io::{Write as _, pipe};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Instant;

use socket2::{Domain, SockRef};

use super::*;
use crate::sys::eventfd::EventFd;
use crate::sys::socket::{send, set_gro, set_receive_info};
use crate::sys::testing::{eventually, ip};
use crate::sys::tun::{self, OpenFlags, VNET_HEADER_LEN};

const SECOND: Duration = Duration::from_secs(1);

/// An implementation under test.
pub(crate) trait Subject: Io + Sized {
    /// One with so many slots per socket and per TUN queue.
    fn make(fds: Fds<'_>, receive_slots: u16, tun_slots: u16) -> Self;

    /// Slots of a target that are not with events.
    fn slots_at_home(&self, target: Target) -> usize;

    /// How many slots of a target are filled in one turn at most.
    fn depth(&self, target: Target) -> usize;
}

/// The tests of this module for one implementation.
macro_rules! contract {
    ($subject:ty) => {
        crate::dataplane::io::tests::contract! { $subject:
            receives_over_ipv4
            receives_over_ipv6
            the_largest_datagram_fits
            goes_on_after_every_slot_was_held
            the_depth_follows_the_traffic
            a_flood_on_one_family_does_not_starve_the_other
            a_slot_outlives_the_io
            polls_awake_after_a_quiet_spell_only
            wakes_once_per_burst_and_times_out
            writable_comes_once_for_each_arming
            a_socket_is_replaced_underneath
            the_port_is_free_as_soon_as_the_io_is_gone
            a_failing_receive_pauses_instead_of_spinning
        }
    };
    ($subject:ty: $($test:ident)*) => {
        $(#[test] fn $test() { crate::dataplane::io::tests::$test::<$subject>(); })*

        #[test]
        fn reads_a_tun_queue() {
            crate::sys::testing::in_netns(|| {
                crate::dataplane::io::tests::reads_pauses_and_ends(|fds| <$subject>::make(fds, 2, 4));
            });
        }

        #[test]
        fn the_device_is_gone_as_soon_as_the_io_is() {
            crate::sys::testing::in_netns(crate::dataplane::io::tests::the_device_goes_with_the_io::<$subject>);
        }
    };
}
pub(crate) use contract;

/// An eventfd.
pub(crate) fn wake() -> EventFd {
    EventFd::new().unwrap()
}

/// A receiver as a worker has it: GRO, PKTINFO and TOS on, non-blocking.
pub(crate) fn receiver(addr: &str) -> UdpSocket {
    let socket = UdpSocket::bind(addr).unwrap();
    socket.set_nonblocking(true).unwrap();
    set_gro(&socket, true).unwrap();
    let v4 = socket.local_addr().unwrap().is_ipv4();
    set_receive_info(&socket, if v4 { Domain::IPV4 } else { Domain::IPV6 }).unwrap();
    socket
}

/// An [`Io`] for one socket.
pub(crate) fn of<S: Subject>(socket: &UdpSocket, wake: &EventFd, receive_slots: u16) -> S {
    let v4 = socket.local_addr().unwrap().is_ipv4();
    let fds = Fds {
        tun: None,
        v4: v4.then(|| socket.as_fd()),
        v6: (!v4).then(|| socket.as_fd()),
        wake: wake.as_fd(),
    };
    S::make(fds, receive_slots, 2)
}

/// Waits until `done` says so or `limit` of turns without any event has passed.
fn wait_for(io: &mut impl Io, mut done: impl FnMut(Event) -> bool) {
    let mut events = Vec::new();
    for _ in 0..1000 {
        io.wait(Some(SECOND), &mut events).unwrap();
        for event in events.drain(..) {
            if done(event) {
                return;
            }
        }
    }
    panic!("the event did not come");
}

pub(crate) fn next_datagrams(io: &mut impl Io) -> Datagrams {
    let mut found = None;
    wait_for(io, |event| {
        if let Event::Datagrams(datagrams) = event {
            found = Some(datagrams);
        }
        found.is_some()
    });
    found.unwrap()
}

pub(crate) fn payload(datagrams: &Datagrams) -> &[u8] {
    &datagrams.slot[datagrams.start..datagrams.start + datagrams.len]
}

pub(crate) fn quiet(io: &mut impl Io) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..5 {
        io.wait(Some(Duration::from_millis(10)), &mut events).unwrap();
    }
    events
}

fn receives_with_source_and_tos<S: Subject>(addr: &str, tos: impl Fn(&UdpSocket)) {
    let (socket, wake) = (receiver(addr), wake());
    let mut io: S = of(&socket, &wake, 16);
    let to = socket.local_addr().unwrap();
    let sender = UdpSocket::bind(addr).unwrap();
    tos(&sender);
    sender.send_to(b"hello", to).unwrap();
    let got = next_datagrams(&mut io);
    assert_eq!(payload(&got), b"hello");
    assert_eq!((got.remote, got.segment, got.truncated), (sender.local_addr().unwrap(), 5, false));
    assert_eq!(got.tos, 0x8a);
    let source = got.source.unwrap();
    assert_eq!((source.addr, source.ifindex), (to.ip(), 1));

    // an empty datagram is one, and does not tempt anybody into `chunks(0)`
    sender.send_to(b"", to).unwrap();
    let got = next_datagrams(&mut io);
    assert_eq!((got.len, got.segment), (0, 1));

    // a run: 40 of 1000 bytes and a short one, split by the receiver as they were
    let run: Vec<u8> = (0..40_123).map(|n| (n / 1000) as u8).collect();
    send(&sender, &run, to, None, 0, Some(1000)).unwrap();
    let mut all = Vec::new();
    let mut largest = 0;
    while all.len() < run.len() {
        let got = next_datagrams(&mut io);
        largest = largest.max(got.len);
        for datagram in payload(&got).chunks(got.segment) {
            assert!(datagram.len() == 1000 || datagram.len() == 123);
            assert!(datagram.iter().all(|byte| *byte == datagram[0]));
            all.extend_from_slice(datagram);
        }
    }
    assert!(all == run);
    assert_eq!(largest, run.len(), "loopback keeps a run whole");
}

pub(crate) fn receives_over_ipv4<S: Subject>() {
    receives_with_source_and_tos::<S>("127.0.0.1:0", |socket| {
        SockRef::from(socket).set_tos_v4(0x8a).unwrap()
    });
}

pub(crate) fn receives_over_ipv6<S: Subject>() {
    receives_with_source_and_tos::<S>("[::1]:0", |socket| SockRef::from(socket).set_tclass_v6(0x8a).unwrap());
}

pub(crate) fn the_largest_datagram_fits<S: Subject>() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut io: S = of(&socket, &wake, 2);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let big = vec![9; 65_507];
    sender.send_to(&big, socket.local_addr().unwrap()).unwrap();
    let got = next_datagrams(&mut io);
    assert_eq!((got.len, got.segment, got.truncated), (65_507, 65_507, false));
    assert!(payload(&got) == big);
}

pub(crate) fn goes_on_after_every_slot_was_held<S: Subject>() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut io: S = of(&socket, &wake, 4);
    let to = socket.local_addr().unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut expected = 0_u32;
    for round in 0..50_u32 {
        for n in 0..10_u32 {
            sender.send_to(&(round * 10 + n).to_ne_bytes(), to).unwrap();
        }
        let mut held = Vec::new();
        while held.len() < 4 {
            io.wait(Some(SECOND), &mut held).unwrap();
        }
        // all slots are out: nothing can come, and waiting sleeps instead of spinning
        let calls = |io: &S| io.counters().enters + io.counters().polls;
        let (before, begin, sleeps) = (calls(&io), Instant::now(), io.counters().sleeps);
        assert!(quiet(&mut io).is_empty());
        assert_eq!(io.counters().sleeps - sleeps, 5);
        assert!(calls(&io) - before <= 6 && begin.elapsed() >= Duration::from_millis(30));
        let mut check = |event: Event| {
            let Event::Datagrams(datagrams) = event else { panic!("{event:?}") };
            assert_eq!(payload(&datagrams), expected.to_ne_bytes());
            expected += 1;
            expected == round * 10 + 10
        };
        held.drain(..).for_each(|event| assert!(!check(event)));
        wait_for(&mut io, check);
    }
    assert!(io.counters().buffers_exhausted >= 50);
    assert_eq!(io.slots_at_home(Target::Udp(Family::V4)), 4, "no slot leaked");
}

pub(crate) fn the_depth_follows_the_traffic<S: Subject>() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut io: S = of(&socket, &wake, 16);
    let to = socket.local_addr().unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let burst = |io: &mut S, datagram: &[u8], count: usize| {
        let mut sizes = Vec::new();
        (0..count).for_each(|_| assert_eq!(sender.send_to(datagram, to).unwrap(), datagram.len()));
        let (mut got, mut events) = (0, Vec::new());
        while got < count {
            io.wait(Some(SECOND), &mut events).unwrap();
            got += events.len();
            sizes.push(events.len());
            events.clear();
        }
        (sizes, io.depth(Target::Udp(Family::V4)))
    };
    // a burst of small ones: the lane lends more and more, up to all
    SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    assert_eq!(burst(&mut io, &[1; 64], 60), (vec![4, 8, 16, 16, 16], 16));
    // large ones: back to few, and they all come
    let (sizes, depth) = burst(&mut io, &[1; 50_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 16));
    let (sizes, depth) = burst(&mut io, &[1; 60_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 8));
    let (sizes, depth) = burst(&mut io, &[1; 60_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 4));
    let (sizes, depth) = burst(&mut io, &[1; 60_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 4));
}

pub(crate) fn a_flood_on_one_family_does_not_starve_the_other<S: Subject>() {
    let (four, six, wake) = (receiver("127.0.0.1:0"), receiver("[::1]:0"), wake());
    let fds = Fds { tun: None, v4: Some(four.as_fd()), v6: Some(six.as_fd()), wake: wake.as_fd() };
    let mut io = S::make(fds, 2, 2);
    let senders = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    for _ in 0..100 {
        senders.0.send_to(b"flood", four.local_addr().unwrap()).unwrap();
    }
    senders.1.send_to(b"guest", six.local_addr().unwrap()).unwrap();
    let mut events = Vec::new();
    io.wait(Some(SECOND), &mut events).unwrap();
    let guest =
        |event: &Event| matches!(event, Event::Datagrams(datagrams) if payload(datagrams) == b"guest");
    assert_eq!((events.len(), events.iter().filter(|event| guest(event)).count()), (3, 1));
}

pub(crate) fn a_slot_outlives_the_io<S: Subject>() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut io: S = of(&socket, &wake, 2);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.send_to(b"late", socket.local_addr().unwrap()).unwrap();
    let got = next_datagrams(&mut io);
    drop(io);
    assert_eq!(payload(&got), b"late");
}

/// One datagram after a quiet spell, one at once after it, then silence.
pub(crate) fn polls_awake_after_a_quiet_spell_only<S: Subject>() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let to = socket.local_addr().unwrap();
    let mut io: S = of(&socket, &wake, 2);
    let mut events = Vec::new();
    let polls = |io: &S| (io.counters().busy_polls, io.counters().busy_poll_hits);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let late = sender.try_clone().unwrap();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(60));
        late.send_to(b"first", to).unwrap();
    });
    assert_eq!(payload(&next_datagrams(&mut io)), b"first");
    thread.join().unwrap();
    assert_eq!(polls(&io), (0, 0), "nothing earned a poll before");
    sender.send_to(b"second", to).unwrap();
    assert_eq!(payload(&next_datagrams(&mut io)), b"second");
    assert_eq!(polls(&io), (1, 1));
    let sleeps = io.counters().sleeps;
    for _ in 0..3 {
        io.wait(Some(Duration::from_millis(1)), &mut events).unwrap();
    }
    assert_eq!(polls(&io), (2, 1), "one in vain ends the chain");
    assert_eq!((events.len(), io.counters().sleeps), (0, sleeps + 3));
}

pub(crate) fn wakes_once_per_burst_and_times_out<S: Subject>() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut io: S = of(&socket, &wake, 2);
    let mut events = Vec::new();
    // nothing there: zero does not sleep
    io.wait(Some(Duration::ZERO), &mut events).unwrap();
    io.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert_eq!((events.len(), io.counters().sleeps), (0, 0));
    let start = Instant::now();
    io.wait(Some(Duration::from_millis(30)), &mut events).unwrap();
    assert!(events.is_empty() && start.elapsed() >= Duration::from_millis(29));

    for _ in 0..3 {
        for _ in 0..5 {
            wake.notify();
        }
        wait_for(&mut io, |event| matches!(event, Event::Wake));
        assert!(quiet(&mut io).is_empty());
    }
    // from another thread, with no limit
    let other = wake.clone();
    let ringer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        other.notify();
    });
    while events.is_empty() {
        io.wait(None, &mut events).unwrap();
    }
    ringer.join().unwrap();
    assert!(matches!(events[..], [Event::Wake]));
}

pub(crate) fn writable_comes_once_for_each_arming<S: Subject>() {
    let (socket, wake) = (receiver("[::1]:0"), wake());
    let mut io: S = of(&socket, &wake, 2);
    let target = Target::Udp(Family::V6);
    for _ in 0..3 {
        io.arm_writable(target);
        io.arm_writable(target);
        wait_for(&mut io, |event| matches!(event, Event::Writable(which) if which == target));
        assert!(quiet(&mut io).is_empty());
    }
    // a lane that is not there is no reason to fail
    io.arm_writable(Target::Udp(Family::V4));
    assert!(quiet(&mut io).is_empty());
}

pub(crate) fn a_socket_is_replaced_underneath<S: Subject>() {
    let (old, new, wake) = (receiver("127.0.0.1:0"), receiver("127.0.0.1:0"), wake());
    let mut io: S = of(&old, &wake, 4);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let old_addr = old.local_addr().unwrap();
    sender.send_to(b"before", old_addr).unwrap();
    assert_eq!(payload(&next_datagrams(&mut io)), b"before");

    io.replace_udp(Family::V4, Some(new.as_fd())).unwrap();
    assert!(quiet(&mut io).is_empty());
    drop(old);
    // no duplicate is held any more: the port is free
    drop(UdpSocket::bind(old_addr).unwrap());
    sender.send_to(b"after", new.local_addr().unwrap()).unwrap();
    assert_eq!(payload(&next_datagrams(&mut io)), b"after");
    io.arm_writable(Target::Udp(Family::V4));
    wait_for(&mut io, |event| matches!(event, Event::Writable(_)));

    // a family may go, and one may come
    io.replace_udp(Family::V4, None).unwrap();
    assert!(quiet(&mut io).is_empty());
    sender.send_to(b"lost", new.local_addr().unwrap()).unwrap();
    assert!(quiet(&mut io).is_empty());
    let six = receiver("[::1]:0");
    io.replace_udp(Family::V6, Some(six.as_fd())).unwrap();
    let sender = UdpSocket::bind("[::1]:0").unwrap();
    sender.send_to(b"six", six.local_addr().unwrap()).unwrap();
    assert_eq!(payload(&next_datagrams(&mut io)), b"six");
}

pub(crate) fn the_port_is_free_as_soon_as_the_io_is_gone<S: Subject>() {
    for _ in 0..20 {
        let (socket, wake) = (receiver("127.0.0.1:0"), wake());
        let addr = socket.local_addr().unwrap();
        let mut io: S = of(&socket, &wake, 2);
        io.arm_writable(Target::Udp(Family::V4));
        assert!(io.wait(Some(Duration::ZERO), &mut Vec::new()).is_ok());
        drop((io, socket));
        UdpSocket::bind(addr).unwrap();
    }
}

pub(crate) fn a_failing_receive_pauses_instead_of_spinning<S: Subject>() {
    // a pipe is no socket: every receive fails
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(b"something to read").unwrap();
    let wake = wake();
    let fds = Fds { tun: None, v4: Some(reader.as_fd()), v6: None, wake: wake.as_fd() };
    let mut io = S::make(fds, 2, 2);
    let mut events = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(350) {
        io.wait(Some(Duration::from_millis(50)), &mut events).unwrap();
    }
    assert!(
        events.iter().all(|event| matches!(event, Event::Failed(Target::Udp(Family::V4), libc::ENOTSOCK)))
    );
    assert!((5..=9).contains(&events.len()), "{}", events.len());
    // A long wait ends with the pause, a short one within it.
    let (start, mut seen) = (Instant::now(), events.len());
    while events.len() == seen {
        io.wait(Some(10 * SECOND), &mut events).unwrap();
    }
    assert!(start.elapsed() < 2 * SECOND);
    seen = events.len();
    io.wait(Some(Duration::from_millis(5)), &mut events).unwrap();
    io.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert_eq!(events.len(), seen);
}

/// A TUN device with virtio headers, up, 100.64.0.1/24.
fn tun() -> OwnedFd {
    let (queue, _) = tun::open("rwt0", OpenFlags::default()).unwrap();
    // no router solicitations among the packets
    std::fs::write("/proc/sys/net/ipv6/conf/rwt0/disable_ipv6", "1").unwrap();
    // room for a whole test run: a full queue would drop, and a gap look like a fault
    ip("link set rwt0 txqueuelen 32768 up");
    ip("addr add 100.64.0.1/24 dev rwt0");
    queue
}

/// The number in a packet that `numbered` sent.
fn number(read: &TunRead) -> u32 {
    let packet = &read.slot[VNET_HEADER_LEN..read.len];
    assert_eq!((packet[0], packet[9]), (0x45, 17));
    u32::from_ne_bytes(packet[28..32].try_into().unwrap())
}

fn numbered(socket: &UdpSocket, numbers: std::ops::Range<u32>) {
    let to: SocketAddr = "100.64.0.2:9".parse().unwrap();
    for n in numbers {
        socket.send_to(&n.to_ne_bytes(), to).unwrap();
    }
}

fn next_number(io: &mut impl Io, expected: &mut u32, until: u32) {
    wait_for(io, |event| {
        if let Event::Tun(read) = event {
            assert_eq!(number(&read), *expected);
            *expected += 1;
        }
        *expected == until
    });
}

/// With a TUN queue and 4 slots for it.
pub(crate) fn reads_pauses_and_ends<S: Subject>(make: impl Fn(Fds<'_>) -> S) {
    let (tun, wake) = (tun(), wake());
    let mut io = make(Fds { tun: Some(tun.as_fd()), v4: None, v6: None, wake: wake.as_fd() });
    let socket = UdpSocket::bind("100.64.0.1:0").unwrap();
    let mut expected = 0;
    numbered(&socket, 0..1);
    next_number(&mut io, &mut expected, 1);

    // off: what comes stays in the device
    io.read_tun(false);
    assert!(quiet(&mut io).is_empty());
    numbered(&socket, 1..50);
    assert!(quiet(&mut io).is_empty());
    io.read_tun(true);
    next_number(&mut io, &mut expected, 50);

    // on and off under load: all of it, in order
    let load = {
        let socket = socket.try_clone().unwrap();
        thread::spawn(move || {
            for start in (50..20_050).step_by(50) {
                numbered(&socket, start..start + 50);
                thread::sleep(Duration::from_micros(200));
            }
        })
    };
    let mut turns = 0_u32;
    let mut events = Vec::new();
    while expected < 20_050 && turns < 1_000_000 {
        turns += 1;
        let on = turns % 7 < 5;
        io.read_tun(on);
        io.wait(Some(Duration::from_millis(u64::from(on))), &mut events).unwrap();
        for event in events.drain(..) {
            let Event::Tun(read) = event else { panic!("{event:?}") };
            assert_eq!(number(&read), expected);
            expected += 1;
        }
    }
    load.join().unwrap();
    assert_eq!(expected, 20_050);
    io.read_tun(true);
    assert!(quiet(&mut io).is_empty());
    assert_eq!(io.slots_at_home(Target::Tun), 4, "no slot leaked");

    // down is quiet; up again reads on
    ip("link set rwt0 down");
    let down = quiet(&mut io);
    assert!(down.iter().all(|event| matches!(event, Event::Failed(Target::Tun, libc::EIO))), "{down:?}");
    ip("link set rwt0 up");
    numbered(&socket, expected..expected + 1);
    let until = expected + 1;
    next_number(&mut io, &mut expected, until);

    // gone while reads are off: nobody who does not read is told
    io.read_tun(false);
    assert!(quiet(&mut io).is_empty());
    ip("link del rwt0");
    io.arm_writable(Target::Tun);
    wait_for(&mut io, |event| matches!(event, Event::Writable(Target::Tun)));
    assert!(quiet(&mut io).is_empty());
    io.read_tun(true);
    wait_for(&mut io, |event| matches!(event, Event::Failed(Target::Tun, libc::EBADFD)));
    assert!(quiet(&mut io).is_empty(), "not armed again");
}

pub(crate) fn the_device_goes_with_the_io<S: Subject>() {
    let is_there = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("rwt0");
    let mut late = 0;
    for _ in 0..10 {
        let (tun, wake) = (tun(), wake());
        let mut io = S::make(Fds { tun: Some(tun.as_fd()), v4: None, v6: None, wake: wake.as_fd() }, 2, 4);
        assert!(io.wait(Some(Duration::ZERO), &mut Vec::new()).is_ok());
        drop((io, tun));
        if is_there() {
            // A program that another test starts has all our descriptors until it is another program.
            late += 1;
            eventually(|| (!is_there()).then_some(()));
        }
    }
    assert!(late <= 3, "{late} of 10 were late");
}
