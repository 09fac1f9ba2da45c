//! Both ways through a worker, its messages, its back-pressure and its limits, on the bench of `testing`.

use std::net::Ipv4Addr;

use crossbeam_channel::bounded;

use super::testing::*;
use super::*;
use crate::dataplane::handoff::HANDOVER_QUEUE;
use crate::dataplane::offload::packets::{Spec, assert_intact, noise};
use crate::metrics::histogram::Histogram;
use crate::noise::Role;
use crate::noise::peer_session::MAX_STAGED;
use crate::noise::replay::REJECT_AFTER_MESSAGES;
use crate::wire::wireguard::{INITIATION_LEN, RESPONSE_LEN};

/// A packet from the network to `host`; `n` tells it from others.
fn to(host: u8, n: u32) -> Spec {
    Spec { hosts: (1, host), seq: n, ..Spec::default() }
}

/// A packet of peer `host` for the network; consecutive `n` continue one TCP flow.
fn from(host: u8, n: u32) -> Spec {
    let payload = noise(u64::from(n), 100);
    Spec { hosts: (host, 1), seq: 1000 + n * 100, id: n as u16, payload, ..Spec::default() }
}

/// Asserts that `text` is `packet` and zeros up to the next multiple of 16, but not beyond the MTU.
fn assert_padded(text: &[u8], packet: &[u8]) {
    let padded = packet.len().next_multiple_of(16).min(MTU.max(packet.len()));
    assert_eq!(text.len(), padded);
    assert!(text[..packet.len()] == *packet, "another packet");
    assert!(text[packet.len()..].iter().all(|byte| *byte == 0), "padding that is not zero");
}

/// What a super-packet of `size` bytes of payload each is to become.
fn cut(spec: &Spec, size: usize) -> Vec<Vec<u8>> {
    let cut = |(k, payload): (usize, &[u8])| {
        let seq = spec.seq.wrapping_add((k * size) as u32);
        let id = spec.id.wrapping_add(k as u16);
        Spec { seq, id, payload: payload.to_vec(), ..spec.clone() }.packet()
    };
    spec.payload.chunks(size).enumerate().map(cut).collect()
}

/// Splits what was written to the TUN queue into packets.
fn written(bench: &Bench) -> Vec<Vec<Vec<u8>>> {
    let split = |write: &Vec<u8>| {
        let packet = split::parse(write).unwrap();
        (0..packet.segments())
            .map(|k| {
                let mut out = vec![0; packet.segment_len(k)];
                packet.write_segment(k, &mut out).unwrap();
                assert_intact(&out);
                out
            })
            .collect()
    };
    drain(&bench.tun).iter().map(split).collect()
}

/// What is counted of receives or sends of so many datagrams.
fn sizes(sizes: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    sizes.iter().for_each(|size| histogram.record(*size));
    histogram
}

#[test]
fn a_super_packet_becomes_one_send() {
    let mut bench = Bench::udp();
    let remote = bench.peer(2);
    let mut counter = 1;
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        bench.worker.core.counters = WorkerCounters::default();
        let mut spec = Spec { v6, udp, payload: noise(1, 60_000), ..to(2, 5) };
        let size = MTU - spec.headers();
        spec.payload.truncate(44 * size - 7);
        bench.read(&spec.read(size as u16));
        bench.turn();
        let expected = cut(&spec, size);
        assert_eq!(expected.len(), 44);
        for (datagram, packet) in remote.datagrams(44).iter().zip(expected) {
            let (found, text) = remote.keys.open(datagram);
            assert_eq!(found, counter, "in order");
            counter += 1;
            assert_padded(&text, &packet);
        }
        let counters = bench.counters();
        assert_eq!((counters.tun_reads, counters.tun_read_segments, counters.sends), (1, 44, 1));
        assert_eq!(counters.tx_packets, 44);
        assert_eq!((&counters.send_sizes, &counters.tun_read_sizes), (&sizes(&[44]), &sizes(&[44])));
        bench.assert_drops(&[]);
    }
    assert_eq!(bench.slots.free(), 64, "every slot came back");
}

#[test]
fn packets_of_one_peer_share_a_send_until_another_peer_or_another_size_comes() {
    let mut bench = Bench::wire();
    let (two, three) = (bench.peer(2), bench.peer(3));
    for (host, len) in [(2, 500), (2, 500), (2, 300), (2, 300), (3, 500), (2, 500), (2, 501 + 16)] {
        bench.read(&Spec { payload: noise(9, len), ..to(host, 1) }.read(0));
    }
    bench.turn();
    let sends = drain(&bench.wire);
    let outer = |payload: usize| (payload + 40).next_multiple_of(16) + 32;
    let lens: Vec<usize> = sends.iter().map(Vec::len).collect();
    let expected = [2 * outer(500) + outer(300), outer(300), outer(500), outer(500), outer(517)];
    assert_eq!(lens, expected);
    assert_eq!(
        two.keys.open_runs(&sends[..2], outer(500)).iter().map(|(n, _)| *n).sum::<u64>(),
        1 + 2 + 3 + 4
    );
    assert_eq!(three.keys.open(&sends[2]).0, 1);
    assert_eq!(two.keys.open(&sends[4]).0, 6);
    assert_eq!((bench.counters().sends, &bench.counters().send_sizes), (5, &sizes(&[3, 1, 1, 1, 1])));
}

#[test]
fn a_run_is_written_as_one_super_packet() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let packets: Vec<Vec<u8>> = (0..20).map(|n| from(2, n).packet()).collect();
    let run: Vec<Vec<u8>> = packets.iter().map(|packet| remote.keys.seal(packet)).collect();
    bench.receive(&run, remote.endpoint());
    bench.turn();
    assert_eq!(written(&bench), [packets]);
    let counters = bench.counters();
    assert_eq!((counters.receives, counters.tun_writes, counters.tun_written_segments), (1, 1, 20));
    assert_eq!((counters.rx_packets, counters.rx_bytes), (20, run.concat().len() as u64));
    assert_eq!((&counters.receive_sizes, &counters.tun_write_sizes), (&sizes(&[20]), &sizes(&[20])));
    bench.assert_drops(&[]);
    assert_eq!(bench.slots.free(), 64, "every slot came back");
}

#[test]
fn a_bad_message_in_a_run_costs_itself_only() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let packets: Vec<Vec<u8>> = (0..5).map(|n| from(2, n).packet()).collect();
    let mut run: Vec<Vec<u8>> = packets.iter().map(|packet| remote.keys.seal(packet)).collect();
    run[1][40] ^= 1;
    run[3] = run[2].clone();
    bench.receive(&run, remote.endpoint());
    bench.turn();
    let expected: Vec<_> = [0, 2, 4].map(|n: usize| packets[n].clone()).to_vec();
    assert_eq!(written(&bench).concat(), expected);
    bench.assert_drops(&[(Drop::Unauthentic, 1), (Drop::Replayed, 1)]);
}

#[test]
fn each_refusal_counts_once_and_writes_nothing() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let peer = remote.endpoint();
    let stranger = Endpoint::new((Ipv4Addr::LOCALHOST, 9).into());
    let good = from(2, 0).packet();

    remote.keys.counter = 9000;
    let first = remote.keys.seal(&good);
    bench.deliver(first.clone(), peer);
    assert_eq!(written(&bench).len(), 1);
    let padded =
        |packet: &[u8]| [packet, &[0; 16][..packet.len().next_multiple_of(16) - packet.len()]].concat();
    let good = padded(&good);
    let mut forged = remote.keys.seal_at(9001, &good);
    *forged.last_mut().unwrap() ^= 0x80;
    let mut unknown = first.clone();
    unknown[4..8].copy_from_slice(&0x7777_7777_u32.to_le_bytes());
    let mut version = good.clone();
    version[0] = 0x75;
    let mut longer = good.clone();
    longer[2..4].copy_from_slice(&2000_u16.to_be_bytes());
    let stolen = padded(&from(3, 0).packet());
    for (datagram, reason) in [
        (first, Drop::Replayed),
        (remote.keys.seal_at(100, &good), Drop::TooOld),
        (remote.keys.seal_at(REJECT_AFTER_MESSAGES, &good), Drop::CounterLimit),
        (remote.keys.seal_at(u64::MAX, &good), Drop::CounterLimit),
        (forged, Drop::Unauthentic),
        (unknown, Drop::UnknownIndex),
        (vec![4, 0, 0, 0, 1], Drop::Malformed),
        (vec![9; 148], Drop::Malformed),
        (vec![1; 147], Drop::Malformed),
        (Vec::new(), Drop::Malformed),
    ] {
        bench.deliver(datagram, stranger);
        bench.assert_drops(&[(reason, 1)]);
    }
    for (text, reason) in
        [(version, Drop::InnerMalformed), (longer, Drop::InnerMalformed), (stolen, Drop::SourceNotAllowed)]
    {
        let message = remote.keys.seal(&text);
        bench.deliver(message, peer);
        bench.assert_drops(&[(reason, 1)]);
    }
    assert_eq!(bench.session(&remote).endpoint(), Some(peer), "nothing of it was believed");
    assert!(drain(&bench.tun).is_empty());
    assert_eq!(bench.slots.free(), 64, "every slot came back");
}

#[test]
fn a_cut_receive_is_dropped_whole() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let message = remote.keys.seal(&from(2, 0).packet());
    bench.receive(&[message], remote.endpoint());
    if let Some(Event::Datagrams(received)) = bench.script.borrow_mut().events.front_mut() {
        received.truncated = true;
    }
    bench.turn();
    bench.assert_drops(&[(Drop::Oversized, 1)]);
    assert_eq!(bench.counters().receive_sizes, sizes(&[1]), "as many as receives");
    assert!(drain(&bench.tun).is_empty());
}

#[test]
fn an_expired_keypair_neither_opens_nor_seals() {
    let limits = Limits::shortened(Duration::from_secs(20));
    let mut bench = Bench::with(&Options { limits, ..Options::default() });
    let mut remote = bench.stranger(2);
    // Installed 31 seconds ago: past Reject-After-Time of 30 seconds, but the clock has not jumped.
    let now = clock::boottime();
    bench.worker.core.now = Time::from_nanos(now.as_nanos() - 31_000_000_000);
    let (peer, keypair) = (remote.id, remote.keys.keypair(Role::Initiator));
    let endpoint = remote.endpoint();
    bench.worker.key_message(ToOwner::Install { peer, keypair: Box::new(keypair), endpoint, response: None });
    bench.worker.core.now = now;
    let message = remote.keys.seal(&from(2, 0).packet());
    bench.deliver(message, endpoint);
    bench.assert_drops(&[(Drop::KeypairExpired, 1)]);
    bench.read(&to(2, 0).read(0));
    bench.turn();
    assert!(drain(&bench.tun).is_empty() && drain(&bench.wire).is_empty());
    assert_eq!(bench.session(&remote).staged_len(), 1);
    let begins = |request: &Request| matches!(request, Request::Protocol(ToHandshaker::Begin { .. }));
    assert_eq!(bench.requests().iter().filter(|request| begins(request)).count(), 1);
}

#[test]
fn packets_that_lead_nowhere_are_counted() {
    let mut bench = Bench::wire();
    let nobody = Remote::new(7, WorkerId(0), 1);
    bench.add(&nobody, WorkerId(0));
    bench.read(&to(9, 0).read(0));
    bench.read(&to(7, 0).read(0));
    bench.read(&[0; 40]);
    let six = bench.stranger(6);
    bench.control(ToWorker::SetEndpoint(six.id, "[::1]:9".parse().unwrap()));
    bench.turn();
    bench.assert_drops(&[(Drop::NoRoute, 1), (Drop::NoEndpoint, 1), (Drop::TunMalformed, 1)]);
    bench.link.keys(ToOwner::SendInitiation { peer: six.id, message: [1; INITIATION_LEN] });
    bench.turn();
    bench.assert_drops(&[(Drop::NoSocket, 1)]);
}

#[test]
fn keepalives_are_counted_and_written_nowhere() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let message = remote.keys.seal(&[]);
    assert_eq!(message.len(), 32);
    bench.deliver(message, remote.endpoint());
    assert_eq!((bench.counters().keepalives, bench.counters().rx_packets), (1, 1));
    bench.assert_drops(&[]);
    assert!(drain(&bench.tun).is_empty());
    bench.control(ToWorker::SetKeepalive(remote.id, Some(25)));
    assert_eq!(remote.keys.open(&bench.sent(&remote, 1)[0]), (1, vec![]));
    // Another way: the peer is told where we are, and asked for a new session.
    bench.control(ToWorker::Renew(remote.id, None));
    assert_eq!(remote.keys.open(&bench.sent(&remote, 1)[0]), (2, vec![]));
    let requests = bench.requests();
    assert!(matches!(requests[..], [Request::Protocol(ToHandshaker::Begin { .. })]), "{requests:?}");
}

#[test]
fn one_initiation_goes_two_ways_and_the_next_one_does_not() {
    let mut bench = Bench::wire();
    let remote = bench.stranger(2);
    for (rival, wanted) in [(Some((Ipv4Addr::LOCALHOST, 1).into()), 2), (None, 1)] {
        bench.control(ToWorker::Renew(remote.id, rival));
        for times in [wanted, 1] {
            bench.link.keys(ToOwner::SendInitiation { peer: remote.id, message: [1; INITIATION_LEN] });
            bench.turn();
            assert_eq!(bench.sent(&remote, times), vec![vec![1; INITIATION_LEN]; times]);
        }
    }
    bench.assert_drops(&[]);
}

#[test]
fn confirming_the_next_keypair_sends_what_waited_in_order() {
    let mut bench = Bench::wire();
    let mut remote = bench.stranger(2);
    let begun = |bench: &Bench| {
        let is_begin = |request: &Request| matches!(request, Request::Protocol(ToHandshaker::Begin { .. }));
        bench.requests().iter().filter(|request| is_begin(request)).count()
    };
    (0..5).for_each(|n| bench.read(&to(2, n).read(0)));
    bench.turn();
    assert_eq!(begun(&bench), 1, "one initiation for all");
    bench.install(&remote, Role::Responder);
    assert_eq!(
        bench.sent(&remote, 1),
        [[2; RESPONSE_LEN]],
        "the response, and nothing before the confirmation"
    );
    assert_eq!(bench.counters().connected, 0);
    bench.read(&to(2, 5).read(0));
    bench.turn();
    bench.sent(&remote, 0);

    let message = remote.keys.seal(&[]);
    bench.deliver(message, remote.endpoint());
    let outer = 144 + 32;
    let sent = remote.keys.open_runs(&drain(&bench.wire), outer);
    assert_eq!(sent.len(), 6);
    for (n, (counter, text)) in sent.iter().enumerate() {
        assert_eq!(*counter, n as u64);
        assert_padded(text, &to(2, n as u32).packet());
    }
    assert_eq!(bench.counters().connected, 1);
    assert!(matches!(bench.requests()[..], [Request::Live(id, _)] if id == remote.id));
    assert_eq!(bench.worker.core.staged_bytes, 0);
    bench.assert_drops(&[]);
}

#[test]
fn the_oldest_staged_packet_gives_way() {
    let mut bench = Bench::wire();
    let remote = bench.stranger(2);
    for n in 0..MAX_STAGED as u32 + 2 {
        bench.read(&to(2, n).read(0));
        bench.turn();
    }
    bench.assert_drops(&[(Drop::StagedOverflow, 2)]);
    bench.install(&remote, Role::Initiator);
    let sent = remote.keys.open_runs(&drain(&bench.wire), 144 + 32);
    assert_eq!(sent.len(), MAX_STAGED);
    for (n, (_, text)) in (2..).zip(&sent) {
        assert_padded(text, &to(2, n).packet());
    }
}

#[test]
fn staged_bytes_are_bounded_over_all_peers() {
    let mut bench = Bench::wire();
    let remotes: Vec<Remote> = (2..6).map(|host| bench.stranger(host)).collect();
    let read = Spec { payload: noise(1, 60_000), ..to(2, 0) }.read(1380).len();
    let mut sum = 0;
    let mut dropped = 0;
    for remote in &remotes {
        for n in 0..MAX_STAGED as u32 {
            bench.read(&Spec { payload: noise(1, 60_000), ..to(remote.host, n) }.read(1380));
            bench.turn();
            if sum + read > STAGED_BYTES { dropped += 1 } else { sum += read }
        }
    }
    assert!(dropped > 0);
    assert_eq!(bench.worker.core.staged_bytes, sum);
    bench.assert_drops(&[(Drop::StagedOverflow, dropped)]);
    let mut expired = 0;
    for remote in &remotes {
        expired += bench.session(remote).staged_len() as u64;
        let (done, acknowledged) = bounded(1);
        bench.control(ToWorker::RemovePeer(remote.id, done));
        acknowledged.try_recv().unwrap();
    }
    assert_eq!(bench.worker.core.staged_bytes, 0);
    bench.assert_drops(&[(Drop::StagedExpired, expired)]);
}

#[test]
fn what_lands_on_the_wrong_worker_goes_to_the_owner() {
    let mut workers = Bench::build(2, &Options::default());
    let (mut other, mut first) = (workers.pop().unwrap(), workers.pop().unwrap());
    let mut remote = other.peer(2);
    first.add(&remote, WorkerId(1));
    first.read(&to(2, 7).read(0));
    let packet = from(2, 0).packet();
    let message = remote.keys.seal(&packet);
    first.deliver(message, remote.endpoint());
    assert_eq!(first.counters().handed_over, 2);
    assert!(drain(&first.wire).is_empty() && drain(&first.tun).is_empty());
    other.turn();
    assert_eq!(other.counters().taken_over, 2);
    assert_padded(&remote.keys.open(&other.sent(&remote, 1)[0]).1, &to(2, 7).packet());
    assert_eq!(written(&other), [[packet]]);

    for n in 0..HANDOVER_QUEUE as u32 + 10 {
        first.read(&to(2, n).read(0));
        first.turn();
    }
    first.assert_drops(&[(Drop::HandoverFull, 10)]);
    for _ in 0..HANDOVER_QUEUE.div_ceil(MESSAGES_PER_TURN) {
        other.turn();
    }
    assert_eq!(other.counters().taken_over, 2 + HANDOVER_QUEUE as u64);
    other.turn();
    other.turn();
    assert!(other.slept());
    let sent = remote.keys.open_runs(&drain(&other.wire), 144 + 32);
    assert!(sent.iter().map(|(counter, _)| *counter).eq(2..2 + HANDOVER_QUEUE as u64), "in order");
    other.assert_drops(&[]);
}

#[test]
fn handshake_messages_among_transport_messages_reach_the_handshake_thread() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    // Unpadded text, so that messages have an initiation's length.
    let packet = |n| Spec { payload: noise(n, 76), ..from(2, n as u32) }.packet();
    let mut initiation = vec![0xab; INITIATION_LEN];
    initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
    let mut response = vec![0xcd; RESPONSE_LEN];
    response[..4].copy_from_slice(&[2, 0, 0, 0]);
    let one = remote.keys.seal_at(0, &packet(0));
    let two = remote.keys.seal_at(1, &packet(1));
    assert_eq!(one.len(), INITIATION_LEN);
    remote.keys.counter = 2;
    bench.receive(&[one, initiation.clone(), two, response.clone()], remote.endpoint());
    bench.turn();
    assert_eq!(written(&bench).concat(), [packet(0), packet(1)]);
    let messages: Vec<(Vec<u8>, Endpoint)> = bench
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::Message { bytes, endpoint } => Some((bytes.to_vec(), endpoint)),
            _ => None,
        })
        .collect();
    assert_eq!(messages, [(initiation, remote.endpoint()), (response, remote.endpoint())]);
    bench.assert_drops(&[]);
}

#[test]
fn a_full_request_queue_drops_messages_and_keeps_what_the_protocol_needs() {
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    let mut initiation = vec![0; INITIATION_LEN];
    initiation[0] = 1;
    for _ in 0..100 {
        let run: Vec<Vec<u8>> = (0..64).map(|_| initiation.clone()).collect();
        bench.receive(&run, remote.endpoint());
        bench.turn();
    }
    let dropped = 6400 - crate::dataplane::handoff::REQUEST_QUEUE as u64 - 1;
    bench.assert_drops(&[(Drop::HandshakeQueueFull, dropped)]);
    bench.control(ToWorker::ClearKeys(remote.id));
    assert_eq!(bench.worker.core.backlog.len(), 2);
    bench.turn();
    assert_eq!(bench.script.borrow().timeout, Some(Duration::from_millis(1)));
    bench.requests();
    bench.turn();
    assert_eq!(bench.released(), [remote.keys.index]);
    bench.turn();
    assert!(
        bench.worker.core.backlog.is_empty()
            && bench.script.borrow().timeout != Some(Duration::from_millis(1))
    );
}
