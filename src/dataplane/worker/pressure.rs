//! A full socket: order is kept, nothing is lost, reading pauses and goes on; and refusals of whole runs.

use super::testing::*;
use super::*;
use crate::dataplane::offload::packets::{Spec, noise};
use crate::noise::Role;

/// Payload of a full-sized segment.
const SIZE: usize = MTU - 40;
/// Outer bytes of one.
const OUTER: usize = MTU + 32;

fn to(host: u8, n: u32) -> Spec {
    Spec { hosts: (1, host), seq: n, ..Spec::default() }
}

/// A super-packet of 40 full segments whose first has the sequence number `n` × 40 × `SIZE`.
fn super_packet(host: u8, n: u32) -> Vec<u8> {
    let payload = noise(7, 40 * SIZE);
    Spec { payload, ..to(host, n * 40 * SIZE as u32) }.read(SIZE as u16)
}

/// The TCP sequence number of a decrypted packet.
fn sequence(text: &[u8]) -> u32 {
    u32::from_be_bytes(text[24..28].try_into().unwrap())
}

#[test]
fn a_full_socket_keeps_order_loses_nothing_and_pauses_reading() {
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    const READS: u32 = 30;
    for n in 0..READS {
        bench.read(&super_packet(2, n));
    }
    bench.turn();
    assert_eq!(bench.script.borrow().reads_tun, [false], "paused once");
    assert_eq!(bench.counters().stalls, 1);
    assert!(bench.is_armed());
    let stalled = bench.worker.stalled.len();
    assert!(stalled > READS as usize / 3, "{stalled}");
    bench.turn();
    assert!(bench.slept(), "it does not spin until the socket is writable");
    assert_eq!(bench.worker.stalled.len(), stalled);

    let mut sent = Vec::new();
    let mut turns = 0;
    while bench.script.borrow().reads_tun.len() == 1 {
        sent.extend(drain(&bench.wire));
        bench.writable();
        turns += 1;
        assert!(turns < 100, "it never goes on");
    }
    // What is read now stands behind what waited.
    bench.read(&super_packet(2, READS));
    bench.turn();
    while bench.is_armed() {
        sent.extend(drain(&bench.wire));
        bench.writable();
    }
    sent.extend(drain(&bench.wire));
    assert_eq!(bench.script.borrow().reads_tun, [false, true]);
    let opened = remote.keys.open_runs(&sent, OUTER);
    assert_eq!(opened.len(), 40 * (READS as usize + 1));
    for (n, (counter, text)) in (0..).zip(&opened) {
        assert_eq!(*counter, u64::from(n) + 1);
        assert_eq!(sequence(text), n * SIZE as u32);
    }
    assert!(bench.counters().send_retries > 0);
    bench.assert_drops(&[]);
    assert_eq!(bench.slots.free(), 64, "every slot came back");
}

#[test]
fn a_packet_of_more_segments_than_fit_the_buffers_goes_on_where_it_stopped() {
    // An application that sets TCP_MAXSEG to the least makes such super-packets: 1,500 segments, more runs than there
    // are send buffers.
    const SMALL: usize = 40;
    const SEGMENTS: usize = 1500;
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    // These fill the socket and some of the buffers.
    const BEFORE: u32 = 10;
    for n in 0..BEFORE {
        bench.read(&super_packet(2, n));
    }
    bench.read(&Spec { payload: noise(3, SMALL * SEGMENTS), ..to(2, 0) }.read(SMALL as u16));
    bench.read(&super_packet(2, BEFORE));
    bench.turn();
    assert_eq!(bench.script.borrow().reads_tun, [false]);
    let begun = bench.worker.stalled.iter().any(|(_, from)| (1..SEGMENTS).contains(from));
    assert!(begun, "it stopped half-way");
    let mut sent = Vec::new();
    for _ in 0..100 {
        sent.extend(drain(&bench.wire));
        bench.writable();
    }
    sent.extend(drain(&bench.wire));
    assert_eq!(bench.script.borrow().reads_tun, [false, true]);
    // 40 bytes of headers and 40 of payload fill five times 16.
    let small = 80 + 32;
    let (first, second): (Vec<_>, Vec<_>) = sent.into_iter().partition(|run| run.len() % small == 0);
    // Its first segment is the shorter last one of the run before.
    let mut opened = remote.keys.open_runs(&second, OUTER);
    opened.extend(remote.keys.open_runs(&first, small));
    opened.sort_by_key(|(counter, _)| *counter);
    assert!(opened.windows(2).all(|pair| pair[0].0 < pair[1].0), "no counter is used twice");
    let sequences =
        |len: usize| opened.iter().filter(move |(_, text)| text.len() == len).map(|(_, text)| sequence(text));
    assert!(sequences(80).eq((0..SEGMENTS as u32).map(|n| n * SMALL as u32)));
    assert!(sequences(MTU).eq((0..40 * (BEFORE + 1)).map(|n| n * SIZE as u32)), "nor is the rest lost");
    let counters = bench.counters();
    assert_eq!(counters.tun_read_sizes.sum(), counters.tun_read_segments, "each read counts once");
    bench.assert_drops(&[]);
}

#[test]
fn staged_packets_and_handed_over_ones_wait_as_well() {
    let mut bench = Bench::wire();
    let (remote, late) = (bench.peer(2), bench.stranger(3));
    for n in 0..100 {
        bench.read(&to(3, n).read(0));
        if n % 50 == 49 {
            bench.turn();
        }
    }
    (0..20).for_each(|n| bench.read(&super_packet(2, n)));
    bench.turn();
    assert!(!bench.worker.outbound.has_room());
    bench.install(&late, Role::Initiator);
    for n in 0..10 {
        assert!(bench.link.handover(Handover::Tun(super_packet(2, 20 + n).into())));
    }
    for _ in 0..10 {
        bench.turn();
        assert!(bench.slept(), "neither is a reason to spin");
    }
    let mut sent = Vec::new();
    for _ in 0..50 {
        sent.extend(drain(&bench.wire));
        bench.writable();
    }
    let is_late = |run: &Vec<u8>| run[4..8] == late.keys.remote_index.to_le_bytes();
    let (theirs, ours): (Vec<_>, Vec<_>) = sent.into_iter().partition(is_late);
    let theirs = late.keys.open_runs(&theirs, 144 + 32);
    assert!(theirs.iter().map(|(_, text)| sequence(text)).eq(0..100));
    let mut ours: Vec<u32> =
        remote.keys.open_runs(&ours, OUTER).iter().map(|(_, text)| sequence(text)).collect();
    assert_eq!(ours.len(), 30 * 40);
    // Hand-over and the TUN queue are two ways; each keeps its own order.
    let handed_from = 20 * 40 * SIZE as u32;
    let (read, handed): (Vec<u32>, Vec<u32>) = ours.iter().partition(|seq| **seq < handed_from);
    assert!(read.is_sorted() && handed.is_sorted());
    ours.sort_unstable();
    ours.dedup();
    assert_eq!(ours.len(), 30 * 40);
    bench.assert_drops(&[]);
}

#[test]
fn a_run_that_no_read_began_is_waited_for_too() {
    let mut bench = Bench::wire();
    let (filler, late) = (bench.peer(2), bench.stranger(3));
    let mut n = 0;
    while !bench.is_armed() {
        bench.read(&super_packet(2, n));
        bench.turn();
        n += 1;
    }
    drain(&bench.wire);
    while bench.is_armed() {
        bench.writable();
        if bench.is_armed() {
            drain(&bench.wire);
        }
    }
    drain(&bench.wire);
    // Full again, but with nothing that waits: small sends until one more keepalive does not fit.
    let mut keepalives = 0;
    while !bench.is_armed() {
        assert!(keepalives < 10_000);
        keepalives += 1;
        bench.control(ToWorker::SetKeepalive(filler.id, None));
        bench.control(ToWorker::SetKeepalive(filler.id, Some(100)));
    }
    bench.install(&late, Role::Initiator);
    assert!(drain(&bench.wire).len() >= keepalives - 1);
    bench.writable();
    let sent = drain(&bench.wire);
    assert_eq!(late.keys.open(sent.last().unwrap()).0, 0, "the keepalive that confirms the keypair");
    assert!(!bench.is_armed());
    bench.assert_drops(&[]);
}

#[test]
fn what_waits_goes_out_through_other_sockets_or_is_counted_where_there_are_none() {
    for keep in [true, false] {
        let mut bench = Bench::wire();
        let remote = bench.peer(2);
        (0..20).for_each(|n| bench.read(&super_packet(2, n)));
        bench.turn();
        let waiting = bench.worker.stalled.len();
        let before = remote.keys.open_runs(&drain(&bench.wire), OUTER).len();
        let (near, far) = pair(4 << 20);
        let v4 = keep.then(|| Arc::new(near));
        bench.control(ToWorker::ReplaceSockets(Sockets { v4, v6: None }));
        let mut sent = drain(&far);
        assert!(waiting > 0 && bench.worker.stalled.len() < waiting, "nothing waits for the old sockets");
        for _ in 0..20 {
            bench.writable();
            sent.extend(drain(&far));
        }
        assert!(bench.worker.stalled.is_empty());
        assert_eq!(bench.script.borrow().reads_tun, [false, true]);
        if keep {
            assert_eq!(remote.keys.open_runs(&sent, OUTER).len(), 20 * 40 - before);
            bench.assert_drops(&[]);
        } else {
            bench.assert_drops(&[(Drop::NoSocket, 20 * 40 - before as u64)]);
        }
    }
}

#[test]
fn a_run_that_is_too_long_goes_again_as_datagrams_and_its_endpoint_stays_plain() {
    // The pair refuses what is longer than its buffer with EMSGSIZE.
    let mut bench = Bench::with(&Options { buffer: 20_000, ..Options::default() });
    let (remote, other) = (bench.peer(2), bench.peer(3));
    let flush = |bench: &mut Bench| {
        let mut sent = Vec::new();
        bench.turn();
        while bench.is_armed() {
            sent.extend(drain(&bench.wire));
            bench.writable();
        }
        sent.extend(drain(&bench.wire));
        sent
    };
    (0..2).for_each(|n| bench.read(&super_packet(2, n)));
    let sent = flush(&mut bench);
    assert_eq!(sent.len(), 80, "each alone");
    let opened = remote.keys.open_runs(&sent, OUTER);
    assert!(opened.iter().map(|(counter, _)| *counter).eq(1..=80), "in order");
    assert_eq!(bench.counters().segment_fallbacks, 1, "the second run knew it already");
    assert!(bench.counters().send_retries > 0);
    assert!(bench.worker.core.on.is_on(Switch::UdpSend), "never for everybody");
    bench.read(&super_packet(3, 0));
    assert_eq!(other.keys.open_runs(&flush(&mut bench), OUTER).len(), 40);
    assert_eq!(bench.counters().segment_fallbacks, 2, "another endpoint was tried in its own right");
    bench.assert_drops(&[]);
}

#[test]
fn a_datagram_that_the_kernel_refuses_is_counted_and_ends_nothing() {
    let mut bench = Bench::with(&Options { buffer: 2500, ..Options::default() });
    let remote = bench.peer(2);
    bench.worker.core.mtu = 9000;
    bench.read(&Spec { payload: noise(3, 8000), ..to(2, 0) }.read(0));
    bench.read(&to(2, 1).read(0));
    bench.turn();
    let sent = bench.sent(&remote, 1);
    assert_eq!(remote.keys.open(&sent[0]).0, 2);
    bench.assert_drops(&[(Drop::SendFailed, 1)]);
}

#[test]
fn without_segmentation_a_super_packet_takes_no_more_buffers() {
    let mut bench = Bench::with(&Options { segment_limit: 1, ..Options::default() });
    let remote = bench.peer(2);
    (0..20).for_each(|n| bench.read(&super_packet(2, n)));
    bench.turn();
    let mut sent = Vec::new();
    for _ in 0..200 {
        sent.extend(drain(&bench.wire));
        bench.writable();
    }
    assert_eq!(sent.len(), 20 * 40, "each datagram alone");
    assert!(remote.keys.open_runs(&sent, OUTER).iter().map(|(counter, _)| *counter).eq(1..=20 * 40));
    bench.assert_drops(&[]);
    assert_eq!(bench.counters().segment_fallbacks, 0);
}

#[test]
fn nothing_overtakes_what_waits_once_there_is_room_again() {
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    let mut n = 0;
    while !bench.is_armed() {
        bench.read(&super_packet(2, n));
        bench.turn();
        n += 1;
    }
    // The socket has room, and nobody has told the worker yet.
    let mut sent = drain(&bench.wire);
    assert!(bench.worker.outbound.has_room());
    bench.read(&super_packet(2, n));
    bench.turn();
    sent.extend(drain(&bench.wire));
    bench.writable();
    sent.extend(drain(&bench.wire));
    let opened = remote.keys.open_runs(&sent, OUTER);
    assert!(opened.iter().map(|(counter, _)| *counter).eq(1..=40 * u64::from(n + 1)));
    bench.assert_drops(&[]);
}
