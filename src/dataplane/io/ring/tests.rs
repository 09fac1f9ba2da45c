//! The ring against a real kernel: the contract of [`Io`], and what only a ring has.

use std::net::UdpSocket;
use std::os::fd::AsFd;

use super::*;
use crate::dataplane::io::poll::Poll;
use crate::dataplane::io::tests::{
    Subject, contract, next_datagrams, of, payload, reads_pauses_and_ends, receiver, wake,
};
use crate::sys::socket::{send, set_buffers};
use crate::sys::testing::in_netns;

impl Subject for Ring {
    fn make(fds: Fds<'_>, receive_slots: u16, tun_slots: u16) -> Self {
        Self::new(fds, RingOptions { receive_slots, tun_slots, ..RingOptions::default() }).unwrap()
    }

    fn slots_at_home(&self, target: Target) -> usize {
        self.state.lanes[lane_of(target)].as_ref().unwrap().free_or_lent()
    }

    fn depth(&self, target: Target) -> usize {
        self.state.lanes[lane_of(target)].as_ref().unwrap().depth()
    }
}

contract!(Ring);

#[test]
fn tokens_survive_the_kernel() {
    for target in TARGETS {
        for token in [
            Token::Receive(target),
            Token::Poll(target),
            Token::CancelReceive(target),
            Token::CancelPoll(target),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
    }
    assert_eq!(Token::decode(Token::Wake.encode()), Some(Token::Wake));
    assert_eq!(Token::decode(0), None);
    assert_eq!(Token::decode(Token::CancelWake.encode()), Some(Token::CancelWake));
    assert_eq!(Token::decode(7 << 56), None);
    assert_eq!(Token::decode(2 << 56 | 3), None);
}

#[test]
fn slots_must_be_a_power_of_two() {
    let wake = wake();
    let fds = Fds { tun: None, v4: None, v6: None, wake: wake.as_fd() };
    for slots in [0, 3, 65_535] {
        let options = RingOptions { receive_slots: slots, ..RingOptions::default() };
        assert!(matches!(Ring::new(fds, options), Err(RingError::Slots(n)) if n == slots));
    }
}

/// What somebody who has taken the process over would try: a file, a socket, other powers.
#[test]
fn a_ring_does_nothing_else_than_what_it_is_for() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut ring: Ring = of(&socket, &wake, 16);
    let path = c"/etc/hostname";
    let attempts = [
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build(),
        opcode::Nop::new().build(),
        // Its own opcode with a flag that it never sets.
        opcode::PollAdd::new(Fd(wake.as_fd().as_raw_fd()), 4).build().flags(squeue::Flags::ASYNC),
    ];
    for attempt in attempts {
        let attempt = attempt.user_data(7);
        // SAFETY: the entries point to nothing but a constant.
        unsafe { ring.uring.submission().push(&attempt) }.unwrap();
        ring.uring.submit_and_wait(1).unwrap();
        let completion = ring.uring.completion().next().unwrap();
        assert_eq!((completion.user_data(), completion.result()), (7, -libc::EACCES), "{attempt:?}");
    }
    let refused = ring.uring.submitter().register_probe(&mut Probe::new());
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert_eq!(ring.uring.submitter().register_files(&[0]).unwrap_err().raw_os_error(), Some(libc::EACCES));
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"on", socket.local_addr().unwrap()).unwrap();
    assert_eq!(payload(&next_datagrams(&mut ring)), b"on");
}

#[test]
fn truncation_is_told() {
    // No UDP datagram is larger than a slot, so the mark is written by hand: name, control and 3 of 5 bytes.
    let arena = crate::sys::arena::Arena::new(1, SLOT_SIZE).unwrap();
    let write = |len: u32, flags: i32| {
        let mut slot = arena.take().unwrap();
        slot.fill(0);
        for (at, word) in [(0, 16), (4, 0), (8, len), (12, flags as u32)] {
            slot[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
        }
        slot[16..18].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        slot
    };
    let got = lane::datagrams(write(5, libc::MSG_TRUNC), lane::PAYLOAD + 3).unwrap();
    assert_eq!((got.len, got.segment, got.truncated), (3, 3, true));
    drop(got);
    let got = lane::datagrams(write(5, 0), lane::PAYLOAD + 5).unwrap();
    assert_eq!((got.len, got.truncated), (5, false));
    drop(got);
    assert!(lane::datagrams(write(5, 0), lane::PAYLOAD - 1).is_none());
    let mut nameless = write(5, 0);
    nameless[16] = 0;
    assert!(lane::datagrams(nameless, lane::PAYLOAD + 5).is_none());
    assert_eq!(arena.free(), 1);
}

#[test]
fn reads_a_tun_queue_one_by_one() {
    in_netns(|| {
        reads_pauses_and_ends(|fds| {
            let options = RingOptions { tun_slots: 4, tun_multishot: false, ..RingOptions::default() };
            let ring = Ring::new(fds, options).unwrap();
            assert!(!ring.tun_multishot());
            ring
        });
    });
}

#[test]
fn looking_at_an_idle_ring_costs_no_system_call() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let mut ring: Ring = of(&socket, &wake, 2);
    let mut events = Vec::new();
    ring.wait(Some(Duration::ZERO), &mut events).unwrap();
    let armed = ring.counters();
    assert_eq!((armed.enters, armed.submissions), (1, 2), "the receive and the wake, in one call");
    ring.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert_eq!((events.len(), ring.counters()), (0, armed));
    ring.arm_writable(Target::Udp(Family::V4));
    ring.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert_eq!(ring.counters().submissions, 3);
}

/// Small datagrams that are at hand at each wait make it linger, and it goes on only if that brings several.
#[test]
fn small_packets_gather() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut ring: Ring = of(&socket, &wake, 16);
    let mut wait = |datagrams: usize| {
        for _ in 0..datagrams {
            sender.send_to(b"small", socket.local_addr().unwrap()).unwrap();
        }
        let (mut events, mut came) = (Vec::new(), 0);
        while came < datagrams {
            ring.wait(Some(Duration::from_secs(1)), &mut events).unwrap();
            came = events.len();
        }
        ring.counters().lingers
    };
    // By ones: a try, in vain, after rows of 4, 8, ... 128 waits. Some waits sleep, where others have the processor.
    let ones = (0..300).map(|_| wait(1)).max().unwrap();
    assert!((1..=6).contains(&ones), "{ones}");
    // By eights: nearly each, once a try has shown that it is worth it. Where others have the processor that takes a
    // while, and ends now and then.
    let mut most = 0;
    for _ in 0..500 {
        let before = wait(8);
        most = most.max((0..99).map(|_| wait(8)).max().unwrap() - before);
        if most > 60 {
            break;
        }
    }
    assert!(most > 60, "of 99 waits {most} at most");
    let before = wait(8);
    let after = (0..300).map(|_| wait(1)).max().unwrap() - before;
    assert!((1..=7).contains(&after), "{after}");
}

/// Nanoseconds of processor time of this thread.
fn thread_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of this thread per datagram, for `runs` sends of `datagrams` datagrams of `size` bytes before each
/// reception.
fn cost_of_receiving<S: Subject>(size: usize, datagrams: usize, runs: usize) -> u64 {
    const ROUNDS: u64 = 300;
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let run = vec![1; size * datagrams];
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    set_buffers(&socket, 8 << 20).unwrap();
    let mut io: S = of(&socket, &wake, 16);
    let (mut time, mut events) = (0, Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..runs {
            let segment = (datagrams > 1).then_some(size as u16);
            send(&sender, &run, socket.local_addr().unwrap(), None, 0, segment).unwrap();
        }
        let (start, mut got) = (thread_time(), 0);
        while got < runs * datagrams {
            io.wait(Some(Duration::from_secs(1)), &mut events).unwrap();
            for event in events.drain(..) {
                let Event::Datagrams(datagrams) = event else { continue };
                got += payload(&datagrams).chunks(datagrams.segment).count();
            }
        }
        time += thread_time() - start;
    }
    time / ((runs * datagrams) as u64 * ROUNDS)
}

#[test]
#[ignore = "measurement: cargo test --release --lib -- --ignored --nocapture costs_of_receiving"]
fn costs_of_receiving() {
    for (size, datagrams, runs) in [(1432, 44, 20), (64, 1, 256), (64, 1, 1)] {
        for _ in 0..5 {
            let ring = cost_of_receiving::<Ring>(size, datagrams, runs);
            let poll = cost_of_receiving::<Poll>(size, datagrams, runs);
            println!("{runs} times {datagrams} of {size} bytes: ring {ring} ns, poll {poll} ns per datagram");
        }
    }
}

/// Longer than the sleep after which it is calm.
const LONG: Option<Duration> = Some(Duration::from_millis(30));

#[test]
fn nothing_is_in_flight_while_it_is_calm() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = socket.local_addr().unwrap();
    let mut ring: Ring = of(&socket, &wake, 16);
    let mut events = Vec::new();
    ring.wait(LONG, &mut events).unwrap();
    assert!(ring.state.in_flight(), "it was armed when it went to sleep");
    ring.wait(LONG, &mut events).unwrap();
    assert!(!ring.state.in_flight());

    let before = ring.counters();
    for single in [b"1", b"2"] {
        sender.send_to(single, to).unwrap();
        assert_eq!(payload(&next_datagrams(&mut ring)), single);
        wake.notify();
        ring.wait(LONG, &mut events).unwrap();
        assert!(matches!(events[..], [Event::Wake]), "{events:?}");
        events.clear();
        ring.wait(LONG, &mut events).unwrap();
        assert!(events.is_empty(), "neither comes twice");
    }
    let after = ring.counters();
    assert_eq!(after.enters, before.enters);
    assert!(after.polls > before.polls && after.sleeps > before.sleeps);
    assert_eq!(after.completions, before.completions + 4);

    for n in 0..100_u8 {
        sender.send_to(&[n], to).unwrap();
        assert_eq!(payload(&next_datagrams(&mut ring)), [n]);
    }
    assert!(ring.state.in_flight(), "a stream needs its requests");
    assert!(ring.counters().enters > after.enters);
}

/// Failures count in a row: each datagram between two of them begins anew, also where it is received by a plain call.
#[test]
fn failures_between_datagrams_are_no_reason_to_pause() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let there = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    socket.connect(there).unwrap();
    let mut ring: Ring = of(&socket, &wake, 16);
    let mut events = Vec::new();
    for _ in 0..2 {
        ring.wait(LONG, &mut events).unwrap();
    }
    let before = ring.counters();
    for _ in 0..6 {
        socket.send(b"to nobody").unwrap();
        ring.wait(LONG, &mut events).unwrap();
        assert!(matches!(events[..], [Event::Failed(..)]), "{events:?}");
        events.clear();
        let sender = UdpSocket::bind(there).unwrap();
        sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert_eq!(payload(&next_datagrams(&mut ring)), b"x");
        // Calm again, for it slept; nothing pauses.
        ring.wait(LONG, &mut events).unwrap();
        assert!(ring.state.lanes.iter().flatten().all(|lane| lane.patience.retry_at().is_none()));
    }
    assert_eq!(ring.counters().enters, before.enters, "it was calm all the time");
}

/// What comes as requests are cancelled comes all the same, in order and once.
#[test]
fn becoming_calm_loses_nothing() {
    let (socket, wake) = (receiver("127.0.0.1:0"), wake());
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = socket.local_addr().unwrap();
    let mut ring: Ring = of(&socket, &wake, 16);
    let (mut sent, mut came, mut calm) = (0_u8, Vec::new(), 0);
    for round in 0..20_usize {
        let mut events = Vec::new();
        // Until it has slept for long: the next wait cancels what is in flight.
        loop {
            ring.wait(Some(Duration::from_millis(8)), &mut events).unwrap();
            if events.is_empty() {
                break;
            }
            came.extend(events.drain(..).map(only_byte));
        }
        for _ in 0..round % 5 {
            sender.send_to(&[sent], to).unwrap();
            sent += 1;
        }
        if round % 2 == 0 {
            wake.notify();
        }
        for _ in 0..round {
            ring.wait(Some(Duration::from_millis(1)), &mut events).unwrap();
            came.extend(events.drain(..).map(only_byte));
            calm += usize::from(!ring.state.in_flight());
        }
    }
    assert!(calm > 0);
    let mut events = Vec::new();
    loop {
        ring.wait(LONG, &mut events).unwrap();
        if events.is_empty() {
            break;
        }
        came.extend(events.drain(..).map(only_byte));
    }
    let wakes = came.iter().filter(|byte| byte.is_none()).count();
    assert_eq!(wakes, 10);
    let bytes: Vec<u8> = came.into_iter().flatten().collect();
    assert_eq!(bytes, (0..sent).collect::<Vec<_>>());
}

/// The byte of a datagram; `None` of a wake.
fn only_byte(event: Event) -> Option<u8> {
    match event {
        Event::Datagrams(datagrams) => Some(payload(&datagrams)[0]),
        Event::Wake => None,
        other => panic!("{other:?}"),
    }
}
