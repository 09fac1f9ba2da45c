//! The ring against a real kernel: UDP on loopback, TUN in a network namespace of the test's own thread.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;

use super::*;
use crate::dataplane::io::{Datagrams, TunRead};
use crate::sys::testing::{in_netns, ip};

const SECOND: Duration = Duration::from_secs(1);

/// `TUNSETIFF`, and the flags of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const VNET_HDR_LEN: usize = 10;

fn eventfd() -> File {
    // SAFETY: a new descriptor that nobody else owns.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
}

fn set(socket: &UdpSocket, level: i32, option: i32, value: i32) {
    // SAFETY: pointer and length are those of a local integer.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A receiver as a worker has it: GRO, PKTINFO and TOS on, non-blocking.
fn receiver(addr: &str) -> UdpSocket {
    let socket = UdpSocket::bind(addr).unwrap();
    socket.set_nonblocking(true).unwrap();
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    if socket.local_addr().unwrap().is_ipv4() {
        set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
        set(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
    } else {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
    }
    socket
}

fn ring(socket: &UdpSocket, wake: &File, receive_slots: u16) -> Ring {
    let v4 = socket.local_addr().unwrap().is_ipv4();
    let fds = RingFds {
        tun: None,
        v4: v4.then(|| socket.as_fd()),
        v6: (!v4).then(|| socket.as_fd()),
        wake: wake.as_fd(),
    };
    Ring::new(fds, RingOptions { receive_slots, ..RingOptions::default() }).unwrap()
}

/// Waits until `done` says so or `limit` of turns without any event has passed.
fn wait_for(ring: &mut Ring, mut done: impl FnMut(Event) -> bool) {
    let mut events = Vec::new();
    for _ in 0..1000 {
        ring.wait(Some(SECOND), &mut events).unwrap();
        for event in events.drain(..) {
            if done(event) {
                return;
            }
        }
    }
    panic!("the event did not come");
}

fn next_datagrams(ring: &mut Ring) -> Datagrams {
    let mut found = None;
    wait_for(ring, |event| {
        if let Event::Datagrams(datagrams) = event {
            found = Some(datagrams);
        }
        found.is_some()
    });
    found.unwrap()
}

fn payload(datagrams: &Datagrams) -> &[u8] {
    &datagrams.slot[datagrams.start..datagrams.start + datagrams.len]
}

fn quiet(ring: &mut Ring) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..5 {
        ring.wait(Some(Duration::from_millis(10)), &mut events).unwrap();
    }
    events
}

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
    assert_eq!(Token::decode(6 << 56), None);
    assert_eq!(Token::decode(2 << 56 | 3), None);
}

#[test]
fn slots_must_be_a_power_of_two() {
    let wake = eventfd();
    let fds = RingFds { tun: None, v4: None, v6: None, wake: wake.as_fd() };
    for slots in [0, 3, 65_535] {
        let options = RingOptions { receive_slots: slots, ..RingOptions::default() };
        assert!(matches!(Ring::new(fds, options), Err(RingError::Slots(n)) if n == slots));
    }
}

/// What somebody who has taken the process over would try: a file, a socket, other powers.
#[test]
fn a_ring_does_nothing_else_than_what_it_is_for() {
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&socket, &wake, 16);
    let path = c"/etc/hostname";
    let attempts = [
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build(),
        opcode::Nop::new().build(),
        // Its own opcode with a flag that it never sets.
        opcode::PollAdd::new(Fd(wake.as_raw_fd()), 4).build().flags(squeue::Flags::ASYNC),
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

fn receives_with_source_and_tos(addr: &str, tos: impl Fn(&UdpSocket)) {
    let (socket, wake) = (receiver(addr), eventfd());
    let mut ring = ring(&socket, &wake, 16);
    let to = socket.local_addr().unwrap();
    let sender = UdpSocket::bind(addr).unwrap();
    tos(&sender);
    sender.send_to(b"hello", to).unwrap();
    let got = next_datagrams(&mut ring);
    assert_eq!(payload(&got), b"hello");
    assert_eq!((got.remote, got.segment, got.truncated), (sender.local_addr().unwrap(), 5, false));
    assert_eq!(got.tos, 0x8a);
    let source = got.source.unwrap();
    assert_eq!((source.addr, source.ifindex), (to.ip(), 1));

    // an empty datagram is one, and does not tempt anybody into `chunks(0)`
    sender.send_to(b"", to).unwrap();
    let got = next_datagrams(&mut ring);
    assert_eq!((got.len, got.segment), (0, 1));

    // a run: 40 of 1000 bytes and a short one, split by the receiver as they were
    set(&sender, libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
    let run: Vec<u8> = (0..40_123).map(|n| (n / 1000) as u8).collect();
    sender.send_to(&run, to).unwrap();
    let mut all = Vec::new();
    let mut largest = 0;
    while all.len() < run.len() {
        let got = next_datagrams(&mut ring);
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

#[test]
fn receives_over_ipv4() {
    receives_with_source_and_tos("127.0.0.1:0", |socket| set(socket, libc::IPPROTO_IP, libc::IP_TOS, 0x8a));
}

#[test]
fn receives_over_ipv6() {
    receives_with_source_and_tos("[::1]:0", |socket| {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x8a);
    });
}

#[test]
fn the_largest_datagram_fits() {
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&socket, &wake, 2);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let big = vec![9; 65_507];
    sender.send_to(&big, socket.local_addr().unwrap()).unwrap();
    let got = next_datagrams(&mut ring);
    assert_eq!((got.len, got.segment, got.truncated), (65_507, 65_507, false));
    assert!(payload(&got) == big);
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
fn goes_on_after_every_slot_was_held() {
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&socket, &wake, 4);
    let to = socket.local_addr().unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut expected = 0_u32;
    for round in 0..50_u32 {
        for n in 0..10_u32 {
            sender.send_to(&(round * 10 + n).to_ne_bytes(), to).unwrap();
        }
        let mut held = Vec::new();
        while held.len() < 4 {
            ring.wait(Some(SECOND), &mut held).unwrap();
        }
        // all slots are out: nothing can come, and waiting sleeps instead of spinning
        let enters = ring.counters().enters;
        assert!(quiet(&mut ring).is_empty());
        assert!(ring.counters().enters - enters <= 6);
        let mut check = |event: Event| {
            let Event::Datagrams(datagrams) = event else { panic!("{event:?}") };
            assert_eq!(payload(&datagrams), expected.to_ne_bytes());
            expected += 1;
            expected == round * 10 + 10
        };
        held.drain(..).for_each(|event| assert!(!check(event)));
        wait_for(&mut ring, check);
    }
    assert!(ring.counters().buffers_exhausted >= 50);
    assert_eq!(ring.state.lanes[1].as_ref().unwrap().free_or_lent(), 4, "no slot leaked");
}

#[test]
fn the_depth_follows_the_traffic() {
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&socket, &wake, 16);
    let to = socket.local_addr().unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let burst = |ring: &mut Ring, datagram: &[u8], count: usize| {
        let mut sizes = Vec::new();
        (0..count).for_each(|_| assert_eq!(sender.send_to(datagram, to).unwrap(), datagram.len()));
        let (mut got, mut events) = (0, Vec::new());
        while got < count {
            ring.wait(Some(SECOND), &mut events).unwrap();
            got += events.len();
            sizes.push(events.len());
            events.clear();
        }
        (sizes, ring.state.lanes[1].as_ref().unwrap().depth())
    };
    // a burst of small ones: the lane lends more and more, up to all
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20);
    assert_eq!(burst(&mut ring, &[1; 64], 60), (vec![4, 8, 16, 16, 16], 16));
    // large ones: back to few, and they all come
    let (sizes, depth) = burst(&mut ring, &[1; 50_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 16));
    let (sizes, depth) = burst(&mut ring, &[1; 60_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 8));
    let (sizes, depth) = burst(&mut ring, &[1; 60_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 4));
    let (sizes, depth) = burst(&mut ring, &[1; 60_000], 4);
    assert_eq!((sizes.iter().sum::<usize>(), depth), (4, 4));
}

#[test]
fn a_flood_on_one_family_does_not_starve_the_other() {
    let (four, six, wake) = (receiver("127.0.0.1:0"), receiver("[::1]:0"), eventfd());
    let fds = RingFds { tun: None, v4: Some(four.as_fd()), v6: Some(six.as_fd()), wake: wake.as_fd() };
    let mut ring = Ring::new(fds, RingOptions { receive_slots: 2, ..RingOptions::default() }).unwrap();
    let senders = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    for _ in 0..100 {
        senders.0.send_to(b"flood", four.local_addr().unwrap()).unwrap();
    }
    senders.1.send_to(b"guest", six.local_addr().unwrap()).unwrap();
    let mut events = Vec::new();
    ring.wait(Some(SECOND), &mut events).unwrap();
    let guest =
        |event: &Event| matches!(event, Event::Datagrams(datagrams) if payload(datagrams) == b"guest");
    assert_eq!((events.len(), events.iter().filter(|event| guest(event)).count()), (3, 1));
}

#[test]
fn a_slot_outlives_the_ring() {
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&socket, &wake, 2);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.send_to(b"late", socket.local_addr().unwrap()).unwrap();
    let got = next_datagrams(&mut ring);
    drop(ring);
    assert_eq!(payload(&got), b"late");
}

/// One datagram after a quiet spell, one at once after it, then silence.
#[test]
fn polls_awake_after_a_quiet_spell_only() {
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let to = socket.local_addr().unwrap();
    let mut ring = ring(&socket, &wake, 2);
    let mut events = Vec::new();
    let polls = |ring: &Ring| (ring.counters().busy_polls, ring.counters().busy_poll_hits);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let late = sender.try_clone().unwrap();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(60));
        late.send_to(b"first", to).unwrap();
    });
    assert_eq!(payload(&next_datagrams(&mut ring)), b"first");
    thread.join().unwrap();
    assert_eq!(polls(&ring), (0, 0), "nothing earned a poll before");
    sender.send_to(b"second", to).unwrap();
    assert_eq!(payload(&next_datagrams(&mut ring)), b"second");
    assert_eq!(polls(&ring), (1, 1));
    let sleeps = ring.counters().sleeps;
    for _ in 0..3 {
        ring.wait(Some(Duration::from_millis(1)), &mut events).unwrap();
    }
    assert_eq!(polls(&ring), (2, 1), "one in vain ends the chain");
    assert_eq!((events.len(), ring.counters().sleeps), (0, sleeps + 3));
}

#[test]
fn wakes_once_per_burst_and_times_out() {
    let (socket, mut wake) = (receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&socket, &wake, 2);
    let mut events = Vec::new();
    // nothing there: zero does not sleep, and after arming costs no system call
    ring.wait(Some(Duration::ZERO), &mut events).unwrap();
    let enters = ring.counters().enters;
    ring.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert_eq!((events.len(), ring.counters().enters, ring.counters().sleeps), (0, enters, 0));
    let start = Instant::now();
    ring.wait(Some(Duration::from_millis(30)), &mut events).unwrap();
    assert!(events.is_empty() && start.elapsed() >= Duration::from_millis(29));

    for _ in 0..3 {
        for _ in 0..5 {
            wake.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
        wait_for(&mut ring, |event| matches!(event, Event::Wake));
        assert!(quiet(&mut ring).is_empty());
    }
    // from another thread, with no limit
    let mut other = wake.try_clone().unwrap();
    let ringer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        other.write_all(&1_u64.to_ne_bytes()).unwrap();
    });
    while events.is_empty() {
        ring.wait(None, &mut events).unwrap();
    }
    ringer.join().unwrap();
    assert!(matches!(events[..], [Event::Wake]));
}

#[test]
fn writable_comes_once_for_each_arming() {
    let (socket, wake) = (receiver("[::1]:0"), eventfd());
    let mut ring = ring(&socket, &wake, 2);
    let target = Target::Udp(Family::V6);
    for _ in 0..3 {
        ring.arm_writable(target);
        ring.arm_writable(target);
        wait_for(&mut ring, |event| matches!(event, Event::Writable(which) if which == target));
        assert!(quiet(&mut ring).is_empty());
    }
    // a lane that is not there is no reason to fail
    ring.arm_writable(Target::Udp(Family::V4));
    assert!(quiet(&mut ring).is_empty());
}

#[test]
fn a_socket_is_replaced_under_the_ring() {
    let (old, new, wake) = (receiver("127.0.0.1:0"), receiver("127.0.0.1:0"), eventfd());
    let mut ring = ring(&old, &wake, 4);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let old_addr = old.local_addr().unwrap();
    sender.send_to(b"before", old_addr).unwrap();
    assert_eq!(payload(&next_datagrams(&mut ring)), b"before");

    ring.replace_udp(Family::V4, Some(new.as_fd())).unwrap();
    assert!(quiet(&mut ring).is_empty());
    drop(old);
    // the ring holds no duplicate any more: the port is free
    drop(UdpSocket::bind(old_addr).unwrap());
    sender.send_to(b"after", new.local_addr().unwrap()).unwrap();
    assert_eq!(payload(&next_datagrams(&mut ring)), b"after");
    ring.arm_writable(Target::Udp(Family::V4));
    wait_for(&mut ring, |event| matches!(event, Event::Writable(_)));

    // a family may go, and one may come
    ring.replace_udp(Family::V4, None).unwrap();
    assert!(quiet(&mut ring).is_empty());
    sender.send_to(b"lost", new.local_addr().unwrap()).unwrap();
    assert!(quiet(&mut ring).is_empty());
    let six = receiver("[::1]:0");
    ring.replace_udp(Family::V6, Some(six.as_fd())).unwrap();
    let sender = UdpSocket::bind("[::1]:0").unwrap();
    sender.send_to(b"six", six.local_addr().unwrap()).unwrap();
    assert_eq!(payload(&next_datagrams(&mut ring)), b"six");
}

#[test]
fn the_port_is_free_as_soon_as_the_ring_is_gone() {
    for _ in 0..20 {
        let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
        let addr = socket.local_addr().unwrap();
        let mut ring = ring(&socket, &wake, 2);
        ring.arm_writable(Target::Udp(Family::V4));
        assert!(ring.wait(Some(Duration::ZERO), &mut Vec::new()).is_ok());
        drop((ring, socket));
        UdpSocket::bind(addr).unwrap();
    }
}

#[test]
fn a_failing_receive_pauses_instead_of_spinning() {
    // a pipe is no socket: every receive fails
    let (reader, _writer) = io::pipe().unwrap();
    let wake = eventfd();
    let fds = RingFds { tun: None, v4: Some(reader.as_fd()), v6: None, wake: wake.as_fd() };
    let mut ring = Ring::new(fds, RingOptions::default()).unwrap();
    let mut events = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(350) {
        ring.wait(Some(Duration::from_millis(50)), &mut events).unwrap();
    }
    assert!(
        events.iter().all(|event| matches!(event, Event::Failed(Target::Udp(Family::V4), libc::ENOTSOCK)))
    );
    assert!((5..=9).contains(&events.len()), "{}", events.len());
}

/// A TUN device with virtio headers, up, 100.64.0.1/24.
fn tun() -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0_u8; 40];
    request[..5].copy_from_slice(b"rwt0\0");
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
    // SAFETY: `struct ifreq` has 40 bytes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // no router solicitations among the packets
    std::fs::write("/proc/sys/net/ipv6/conf/rwt0/disable_ipv6", "1").unwrap();
    // room for a whole test run: a full queue would drop, and a gap look like a fault
    ip("link set rwt0 txqueuelen 32768 up");
    ip("addr add 100.64.0.1/24 dev rwt0");
    file
}

/// The number in a packet that `numbered` sent.
fn number(read: &TunRead) -> u32 {
    let packet = &read.slot[VNET_HDR_LEN..read.len];
    assert_eq!((packet[0], packet[9]), (0x45, 17));
    u32::from_ne_bytes(packet[28..32].try_into().unwrap())
}

fn numbered(socket: &UdpSocket, numbers: std::ops::Range<u32>) {
    let to: SocketAddr = "100.64.0.2:9".parse().unwrap();
    for n in numbers {
        socket.send_to(&n.to_ne_bytes(), to).unwrap();
    }
}

fn tun_ring(tun: &File, wake: &File, tun_multishot: bool) -> Ring {
    let fds = RingFds { tun: Some(tun.as_fd()), v4: None, v6: None, wake: wake.as_fd() };
    Ring::new(fds, RingOptions { tun_slots: 4, tun_multishot, ..RingOptions::default() }).unwrap()
}

fn next_number(ring: &mut Ring, expected: &mut u32, until: u32) {
    wait_for(ring, |event| {
        if let Event::Tun(read) = event {
            assert_eq!(number(&read), *expected);
            *expected += 1;
        }
        *expected == until
    });
}

fn reads_pauses_and_ends(multishot: bool) {
    let (tun, wake) = (tun(), eventfd());
    let mut ring = tun_ring(&tun, &wake, multishot);
    assert!(multishot || !ring.tun_multishot());
    let socket = UdpSocket::bind("100.64.0.1:0").unwrap();
    let mut expected = 0;
    numbered(&socket, 0..1);
    next_number(&mut ring, &mut expected, 1);

    // off: what comes stays in the device
    ring.read_tun(false);
    assert!(quiet(&mut ring).is_empty());
    numbered(&socket, 1..50);
    assert!(quiet(&mut ring).is_empty());
    ring.read_tun(true);
    next_number(&mut ring, &mut expected, 50);

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
        ring.read_tun(on);
        ring.wait(Some(Duration::from_millis(u64::from(on))), &mut events).unwrap();
        for event in events.drain(..) {
            let Event::Tun(read) = event else { panic!("{event:?}") };
            assert_eq!(number(&read), expected);
            expected += 1;
        }
    }
    load.join().unwrap();
    assert_eq!(expected, 20_050);
    ring.read_tun(true);
    assert!(quiet(&mut ring).is_empty());
    assert_eq!(ring.state.lanes[0].as_ref().unwrap().free_or_lent(), 4, "no slot leaked");

    // down is quiet; up again reads on
    ip("link set rwt0 down");
    let down = quiet(&mut ring);
    assert!(down.iter().all(|event| matches!(event, Event::Failed(Target::Tun, libc::EIO))), "{down:?}");
    ip("link set rwt0 up");
    numbered(&socket, expected..expected + 1);
    let until = expected + 1;
    next_number(&mut ring, &mut expected, until);

    ip("link del rwt0");
    wait_for(&mut ring, |event| matches!(event, Event::Failed(Target::Tun, libc::EBADFD)));
    assert!(quiet(&mut ring).is_empty(), "not armed again");
}

#[test]
fn reads_a_tun_queue_by_multishot() {
    in_netns(|| reads_pauses_and_ends(true));
}

#[test]
fn reads_a_tun_queue_one_by_one() {
    in_netns(|| reads_pauses_and_ends(false));
}

#[test]
fn the_device_is_gone_as_soon_as_the_ring_is() {
    in_netns(|| {
        for _ in 0..10 {
            let (tun, wake) = (tun(), eventfd());
            let mut ring = tun_ring(&tun, &wake, true);
            assert!(ring.wait(Some(Duration::ZERO), &mut Vec::new()).is_ok());
            drop((ring, tun));
            assert!(!std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("rwt0"));
        }
    });
}

/// Nanoseconds of processor time of this thread.
fn thread_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Prints nanoseconds of this thread per datagram, by the ring and by plain recvmsg(2) without GRO, for
/// `runs` sends of
/// `datagrams` datagrams of `size` bytes before each reception.
fn cost_of_receiving(size: usize, datagrams: usize, runs: usize) {
    const ROUNDS: u64 = 300;
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    if datagrams > 1 {
        set(&sender, libc::SOL_UDP, libc::UDP_SEGMENT, size as i32);
    }
    let run = vec![1; size * datagrams];
    let (socket, wake) = (receiver("127.0.0.1:0"), eventfd());
    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20);
    set(&plain, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20);
    let mut ring = ring(&socket, &wake, 16);
    let send_runs = |to: &UdpSocket| {
        for _ in 0..runs {
            sender.send_to(&run, to.local_addr().unwrap()).unwrap();
        }
    };
    let (mut by_ring, mut by_recv, mut events, mut buffer) = (0, 0, Vec::new(), vec![0; 2048]);
    for _ in 0..ROUNDS {
        send_runs(&socket);
        let (start, mut got) = (thread_time(), 0);
        while got < runs * datagrams {
            ring.wait(Some(SECOND), &mut events).unwrap();
            for event in events.drain(..) {
                let Event::Datagrams(datagrams) = event else { continue };
                got += payload(&datagrams).chunks(datagrams.segment).count();
            }
        }
        by_ring += thread_time() - start;
        send_runs(&plain);
        let start = thread_time();
        for _ in 0..runs * datagrams {
            assert_eq!(plain.recv_from(&mut buffer).unwrap().0, size);
        }
        by_recv += thread_time() - start;
    }
    let total = (runs * datagrams) as u64 * ROUNDS;
    println!(
        "{size} bytes, runs of {datagrams}: ring {} ns, plain {} ns per datagram",
        by_ring / total,
        by_recv / total
    );
    println!("{:?}", ring.counters());
}

#[test]
#[ignore = "measurement: cargo test --release --lib -- --ignored --nocapture costs_of_receiving"]
fn costs_of_receiving() {
    cost_of_receiving(1432, 44, 20);
    cost_of_receiving(64, 1, 256);
}
