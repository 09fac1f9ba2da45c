//! The stages, in the order in which a packet meets them.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ringway::crypto::aead::{self, Key, Span, TAG_LEN};
use ringway::dataplane::allowed_ips::AllowedIps;
use ringway::dataplane::offload::coalesce::{Coalescer, Config, Place};
use ringway::dataplane::offload::{mss, split};
use ringway::noise::peer_session::PeerSession;
use ringway::noise::replay::Window;
use ringway::noise::timers::{Limits, Wheel};
use ringway::types::{Prefix, Secret, Suite, Time, WorkerId};
use ringway::wire::frame::{Frame, Hello};
use ringway::wire::wireguard::TransportHeader;
use ringway::wire::{ip, virtio};

use crate::packets::{MSS, super_packet, tcp_segment, udp_read};
use crate::pair::{PEER, Pair};

/// Segments of a super-packet: as many as fit one send.
const SEGMENTS: usize = 44;

/// One stage, ready to run again and again.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    /// Packets, look-ups, deadlines in one run.
    pub(crate) units: u64,
    pub(crate) run: Box<dyn FnMut()>,
}

fn stage(name: &'static str, units: usize, run: impl FnMut() + 'static) -> Stage {
    Stage { name, units: units as u64, run: Box::new(run) }
}

pub(crate) fn all() -> Vec<Stage> {
    vec![
        split_many(),
        split_one(),
        clamp(),
        lookup("lookup_1", 1),
        lookup("lookup_1000", 1000),
        lookup("lookup_100000", 100_000),
        session_out(),
        seal_one(),
        transport_header(),
        session_in(),
        replay(),
        coalesce(),
        frame(),
        wheel(),
        mac1(),
        forged(),
    ]
}

/// A super-packet of TCP into its segments.
fn split_many() -> Stage {
    let read = super_packet(SEGMENTS);
    let mut out = vec![0; SEGMENTS * 1500];
    stage("split_super_packet", SEGMENTS, move || {
        let packet = split::parse(black_box(&read)).expect("a super-packet");
        assert_eq!(packet.segments(), SEGMENTS);
        for (i, out) in out.chunks_mut(1500).enumerate().take(SEGMENTS) {
            assert!(packet.write_segment(i, out).is_some());
        }
    })
}

/// One small datagram.
fn split_one() -> Stage {
    let read = udp_read(64);
    let mut out = [0; 128];
    stage("split_one", 1, move || {
        let packet = split::parse(black_box(&read)).expect("a packet");
        assert!(packet.write_segment(0, black_box(&mut out)).is_some());
    })
}

/// What each packet that is no SYN pays for the clamp.
fn clamp() -> Stage {
    let packet = tcp_segment(1, MSS);
    let header = ip::Header::parse(&packet).expect("a packet");
    stage("clamp_no_syn", 1, move || assert!(!mss::may_be_syn(black_box(&packet), black_box(&header))))
}

/// A host among `size`.
fn lookup(name: &'static str, size: u32) -> Stage {
    const ASKED: u32 = 1000;
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x6440_0000 + n));
    // One key in a hundred costs a tenth more.
    let mut table = AllowedIps::with_key(0x243f_6a88_85a3_08d3, 0x9e37_79b9_7f4a_7c15);
    for prefix in (0..size).filter_map(|n| Prefix::new(address(n), 32)) {
        table.insert(prefix, PEER, WorkerId(0));
    }
    let asked: Vec<IpAddr> = (0..ASKED).map(|n| address(n.wrapping_mul(0x9e37_79b1) % size)).collect();
    stage(name, ASKED as usize, move || {
        assert!(asked.iter().all(|&addr| table.lookup(black_box(addr)).is_some()));
    })
}

/// A session with a keypair, and its receiver index.
fn session() -> (PeerSession, u32, Pair) {
    let mut pair = Pair::new();
    let initiation = pair.begin();
    let response = pair.answer(&initiation);
    let keypair = pair.finish(&response);
    let mut session = PeerSession::new(PEER, Limits::PAPER, 1);
    session.install(&keypair, pair.endpoint, pair.now());
    (session, keypair.local_index, pair)
}

/// What the session does to a run that is sent, but for sealing.
fn session_out() -> Stage {
    let (mut session, _, pair) = session();
    let now = pair.now();
    stage("session_out", 1, move || {
        let reserved = session.reserve(SEGMENTS as u64, now).expect("a keypair");
        assert!(session.sealing_key(reserved.remote_index, reserved.suite, SEGMENTS * 1452).is_some());
        session.sent(true, SEGMENTS as u64 * 1452, now);
    })
}

/// What the session does to a run of one packet that is received, but for opening.
fn session_in() -> Stage {
    let (mut session, index, pair) = session();
    let (now, endpoint) = (pair.now(), pair.endpoint);
    let mut counter = 0;
    stage("session_in", 1, move || {
        let name = session.keypair(index).expect("a keypair");
        assert!(session.check(name, counter, now).is_ok());
        assert!(session.opening_key(name, Suite::ChaCha20Poly1305).is_some());
        assert!(session.accept(name, counter).is_ok());
        session.received(name, endpoint, true, 1452, now);
        counter += 1;
    })
}

/// One packet by itself: AWS-LC, and our way there.
fn seal_one() -> Stage {
    const LEN: usize = 1424;
    let key = Key::of(Suite::ChaCha20Poly1305, &Secret([7; 32]));
    let mut buffer = vec![1; LEN + TAG_LEN];
    let spans = [Span { start: 0, len: LEN }];
    stage("seal_one", 1, move || assert!(aead::seal_run(&key, 1, &mut buffer, &spans)))
}

/// Reading the header of a transport message.
fn transport_header() -> Stage {
    let header = TransportHeader { receiver: 7, counter: 9, suite: Suite::ChaCha20Poly1305 };
    let mut message = vec![0; 1452];
    message[..16].copy_from_slice(&header.to_bytes());
    stage("transport_header", 1, move || {
        assert_eq!(TransportHeader::parse(black_box(&message)), Some(header));
    })
}

/// Counters in order, and each again.
fn replay() -> Stage {
    const COUNTERS: u64 = 1000;
    let mut window = Window::default();
    let mut next = 0;
    stage("replay", COUNTERS as usize, move || {
        for counter in next..next + COUNTERS {
            assert!(window.commit(black_box(counter)).is_ok() && window.check(counter).is_err());
        }
        next += COUNTERS;
    })
}

/// A super-packet's segments into one again.
fn coalesce() -> Stage {
    let segments: Vec<Vec<u8>> = (0..SEGMENTS).map(|i| tcp_segment(1 + (i * MSS) as u32, MSS)).collect();
    let mut coalescer = Coalescer::new(Config { tcp: true, udp: true });
    stage("coalesce", SEGMENTS, move || {
        for (i, segment) in (0..).zip(&segments) {
            let place = Place { buffer: 0, start: i * 1500, len: segment.len() as u32 };
            assert!(coalescer.push(black_box(segment), place).is_ok());
        }
        let mut writes = 0;
        coalescer.drain(|head, _| {
            writes += 1;
            assert!(head.len() > virtio::LEN);
        });
        assert_eq!(writes, 1);
    })
}

/// Reading a HELLO.
fn frame() -> Stage {
    let hello = Hello { aes: true }.write(false);
    stage("frame_hello", 1, move || {
        let frame = Frame::parse(black_box(&hello)).expect("a frame");
        assert!(Hello::read(frame.body).is_some());
    })
}

/// Deadlines of a thousand peers, moved on with their packets; few of them come.
fn wheel() -> Stage {
    const PEERS: u32 = 1000;
    let mut now = Time::from_nanos(0);
    let mut wheel = Wheel::new(PEERS as usize, now);
    stage("timer_wheel", PEERS as usize, move || {
        for slot in 0..PEERS {
            wheel.schedule(slot, now + Duration::from_secs(10 + u64::from(slot % 100)));
        }
        now = now + Duration::from_millis(100);
        wheel.expire(now, &mut |_| {});
    })
}

/// What a stranger's initiation costs before its mac1 is known to be wrong.
fn mac1() -> Stage {
    let mut pair = Pair::new();
    let mut initiation = pair.begin();
    initiation[120] ^= 1;
    stage("mac1_wrong", 1, move || assert!(!pair.checks(black_box(&initiation))))
}

/// What one costs whose mac1 is right, and nothing else.
fn forged() -> Stage {
    let mut pair = Pair::new();
    let mut initiation = pair.begin();
    initiation[50] ^= 1;
    stage("initiation_forged", 1, move || pair.refuse(black_box(&initiation)))
}
