//! A worker that is spoken to in control frames, and its data path in either suite.

use std::time::Duration;

use super::*;
use crate::dataplane::handoff::{ToControl, ToWorker};
use crate::dataplane::offload::packets::{Spec, noise};
use crate::dataplane::worker::testing::*;
use crate::noise::agreement::Policy;
use crate::noise::timers::Limits;

const CHACHA: Suite = Suite::ChaCha20Poly1305;
const AES: Suite = Suite::Aes256Gcm;

fn bench(policy: Policy) -> (Bench, Remote) {
    let mut bench = Bench::with(&Options { policy, ..Options::default() });
    let remote = bench.stranger(2);
    bench.install(&remote, crate::noise::Role::Initiator);
    (bench, remote)
}

fn gateway() -> (Bench, Remote) {
    let (mut bench, remote) = bench(Policy { hello: false, aes: true });
    assert_eq!(drain(&bench.wire).len(), 1, "the keepalive that confirms");
    bench.worker.sending_half().0.counters = crate::metrics::WorkerCounters::default();
    (bench, remote)
}

/// The worker receives a payload; what it sends then, each with its suite.
fn say(bench: &mut Bench, remote: &mut Remote, suite: Suite, payload: &[u8]) -> Vec<(Suite, Vec<u8>)> {
    let message = remote.keys.seal_next_in(suite, payload);
    bench.deliver(message, remote.endpoint());
    heard(bench, remote)
}

fn heard(bench: &Bench, remote: &Remote) -> Vec<(Suite, Vec<u8>)> {
    let messages = drain(&bench.wire).into_iter().map(|message| remote.keys.open_any(&message));
    messages.map(|(header, text)| (header.suite, text)).collect()
}

fn operations(said: &[(Suite, Vec<u8>)]) -> Vec<(Suite, Operation)> {
    said.iter().map(|(suite, text)| (*suite, Frame::parse(text).expect("a frame").operation)).collect()
}

/// As if the clock had gone on.
fn later(bench: &mut Bench, millis: u64) {
    let (core, _) = bench.worker.sending_half();
    core.now = core.now + Duration::from_millis(millis);
}

/// Takes the worker to where it seals data with AES-256-GCM.
fn agree(bench: &mut Bench, remote: &mut Remote) {
    let said = say(bench, remote, CHACHA, &Hello { aes: true }.write(true));
    assert_eq!(operations(&said), [(CHACHA, Operation::Hello), (AES, Operation::Ping)]);
    let ping = Frame::parse(&said[1].1).unwrap();
    let pong = frame::pong(ping.stream_id, frame::ping_data(&ping).unwrap(), 0);
    assert_eq!(say(bench, remote, AES, &pong), []);
    assert_eq!(bench.counters().aes_agreed, 1);
}

#[test]
fn hello_is_answered_and_the_suite_is_agreed_in_mid_stream() {
    let (mut bench, mut remote) = gateway();
    let reads = |bench: &mut Bench, remote: &Remote, n: u32| -> Vec<(Suite, u64)> {
        let size = MTU - 40;
        bench.read(
            &Spec { hosts: (1, 2), seq: n, payload: noise(1, 5 * size), ..Spec::default() }.read(size as u16),
        );
        bench.turn();
        let sent = bench.sent(remote, 1);
        let each = sent[0].chunks(MTU + 32).map(|message| remote.keys.open_any(message).0);
        each.map(|header| (header.suite, header.counter)).collect()
    };
    assert_eq!(reads(&mut bench, &remote, 0), (1..6).map(|n| (CHACHA, n)).collect::<Vec<_>>());
    agree(&mut bench, &mut remote);
    // 6: HELLO, 7: PING. Not a counter is left out or used twice.
    assert_eq!(reads(&mut bench, &remote, 1), (8..13).map(|n| (AES, n)).collect::<Vec<_>>());
    assert_eq!((bench.counters().aes_out, bench.counters().frames_out), (6, 2));
    assert_eq!(bench.session(&remote).suite(), Some(AES));

    // What comes in either suite, mixed in one receive, is opened.
    let packet = |n: u32| Spec { hosts: (2, 1), seq: n * 100, id: n as u16, ..Spec::default() }.packet();
    let run: Vec<_> =
        (0..12).map(|n| remote.keys.seal_next_in(if n % 5 < 2 { AES } else { CHACHA }, &packet(n))).collect();
    bench.receive(&run, remote.endpoint());
    bench.turn();
    assert_eq!(bench.counters().tun_written_segments, 12);
    assert_eq!(bench.counters().aes_in, 1 + 6);
    bench.assert_drops(&[]);
}

#[test]
fn a_standard_peer_is_sent_no_frame_and_no_mark() {
    let (mut bench, mut remote) = gateway();
    for n in 0..50 {
        bench.read(&Spec { hosts: (1, 2), seq: n, ..Spec::default() }.read(0));
        let message = remote.keys.seal(&Spec { hosts: (2, 1), seq: n, ..Spec::default() }.packet());
        bench.deliver(message, remote.endpoint());
        later(&mut bench, 300);
    }
    for message in drain(&bench.wire) {
        assert_eq!(message[..4], [4, 0, 0, 0]);
        let text = remote.keys.open(&message).1;
        assert!(!frame::is_frame(&text));
    }
    assert_eq!(bench.counters().frames_out, 0);
}

#[test]
fn who_says_hello_says_it_in_each_keypair_and_marks_nothing_by_that() {
    let (mut bench, mut remote) = bench(Policy { hello: true, aes: true });
    let hellos = |bench: &Bench, remote: &Remote| -> Vec<(Suite, Operation)> {
        let said = heard(bench, remote);
        operations(&said.into_iter().filter(|(_, text)| !text.is_empty()).collect::<Vec<_>>())
    };
    assert_eq!(hellos(&bench, &remote), [(CHACHA, Operation::Hello)]);
    remote.keys = Keys::new(90, crate::types::WorkerId(0), 1);
    bench.install(&remote, crate::noise::Role::Initiator);
    assert_eq!(hellos(&bench, &remote), [(CHACHA, Operation::Hello)]);
    // Nobody answers.
    for _ in 0..40 {
        later(&mut bench, 500);
        bench.turn();
    }
    assert_eq!(hellos(&bench, &remote), [(CHACHA, Operation::Hello); 2], "three in all");
}

#[test]
fn a_mark_that_was_not_declared_is_not_opened() {
    let (mut bench, mut remote) = gateway();
    let packet = Spec { hosts: (2, 1), ..Spec::default() }.packet();
    let message = remote.keys.seal_next_in(AES, &packet);
    bench.deliver(message.clone(), remote.endpoint());
    bench.assert_drops(&[(Drop::SuiteNotDeclared, 1)]);
    // Our HELLO in this keypair declares it, and the counter was not used up.
    agree(&mut bench, &mut remote);
    bench.deliver(message, remote.endpoint());
    assert_eq!(drain(&bench.tun).len(), 1);
    // A new keypair begins anew.
    remote.keys = Keys::new(91, crate::types::WorkerId(0), 1);
    bench.install(&remote, crate::noise::Role::Initiator);
    assert_eq!(bench.session(&remote).suite(), Some(CHACHA));
    let message = remote.keys.seal_next_in(AES, &packet);
    bench.deliver(message, remote.endpoint());
    bench.assert_drops(&[(Drop::SuiteNotDeclared, 1)]);
}

#[test]
fn one_window_serves_both_suites_and_a_changed_byte_only_drops() {
    let (mut bench, mut remote) = gateway();
    agree(&mut bench, &mut remote);
    let packet = Spec { hosts: (2, 1), ..Spec::default() }.packet();
    let mut padded = packet.clone();
    padded.resize(packet.len().next_multiple_of(16), 0);
    for (at, first, second) in [(100, AES, CHACHA), (101, CHACHA, AES), (102, AES, AES)] {
        let message = remote.keys.seal_in(first, at, &padded);
        for byte in [0, 1, 2, 3, 16, message.len() - 1] {
            let mut changed = message.clone();
            changed[byte] ^= 1;
            bench.deliver(changed, remote.endpoint());
        }
        // The first, second and third reserved byte and the type; the text and the tag.
        let malformed = 3;
        bench.assert_drops(&[(Drop::Malformed, malformed), (Drop::Unauthentic, 3)]);
        assert_eq!(drain(&bench.tun).len(), 0);
        bench.deliver(message, remote.endpoint());
        assert_eq!(drain(&bench.tun).len(), 1, "no changed message has used its counter up");
        let again = remote.keys.seal_in(second, at, &padded);
        bench.deliver(again, remote.endpoint());
        bench.assert_drops(&[(Drop::Replayed, 1)]);
        assert_eq!(drain(&bench.tun).len(), 0);
    }
}

#[test]
fn ten_frames_a_second_are_looked_at_and_twenty_at_once() {
    let (mut bench, mut remote) = gateway();
    let pongs = |bench: &mut Bench, remote: &mut Remote, count: u32| -> usize {
        for n in 0..count {
            let message = remote.keys.seal(&frame::ping(n, b"x", 0));
            bench.receive(&[message], remote.endpoint());
        }
        bench.turn();
        heard(bench, remote).len()
    };
    assert_eq!(pongs(&mut bench, &mut remote, 30), 20);
    bench.assert_drops(&[(Drop::FrameLimit, 10)]);
    later(&mut bench, 99);
    assert_eq!(pongs(&mut bench, &mut remote, 3), 0);
    later(&mut bench, 1);
    assert_eq!(pongs(&mut bench, &mut remote, 3), 1);
    later(&mut bench, 1000);
    assert_eq!(pongs(&mut bench, &mut remote, 15), 10);
    later(&mut bench, 100_000);
    assert_eq!(pongs(&mut bench, &mut remote, 30), 20, "no more is saved up");
}

#[test]
fn requests_are_answered_in_their_suite_and_answers_never() {
    let (mut bench, mut remote) = gateway();
    let said = say(&mut bench, &mut remote, CHACHA, &frame::ping(77, b"data", 5));
    assert_eq!(said[0].1[..frame::pong(77, b"data", 0).len()], frame::pong(77, b"data", 0)[..]);
    assert_eq!(said[0].0, CHACHA);
    agree(&mut bench, &mut remote);
    assert_eq!(
        operations(&say(&mut bench, &mut remote, AES, &frame::ping(1, b"", 0))),
        [(AES, Operation::Pong)]
    );
    later(&mut bench, 10_000);

    let with = |at: usize, byte: u8, mut frame: Vec<u8>| {
        frame[at] = byte;
        frame
    };
    let (ping, pong) = (frame::ping(9, b"x", 0).to_vec(), frame::pong(9, b"x", 0).to_vec());
    let problem = frame::problem(9, Code::BadRequest).to_vec();
    let hello = Hello { aes: true }.write(false).to_vec();
    // A map without what is needed in it.
    let empty = |frame: &[u8]| [&frame[..12], &[1, 0, 0, 0, 0xa0]].concat();
    for (frame, reason, code) in [
        (with(1, 2, ping.clone()), Drop::FrameRefused, Some(7)),
        (with(1, 0, pong.clone()), Drop::FrameRefused, None),
        (empty(&ping), Drop::FrameRefused, Some(8)),
        (empty(&pong), Drop::FrameRefused, None),
        (empty(&problem), Drop::FrameRefused, None),
        (empty(&hello), Drop::FrameRefused, None),
        (with(2, 1, empty(&hello)), Drop::FrameRefused, Some(8)),
        (ping[..15].to_vec(), Drop::FrameMalformed, None),
        (with(13, 1, ping.clone()), Drop::FrameMalformed, None),
        (with(16, 0xbf, ping.clone()), Drop::FrameMalformed, None),
        (with(0, 0xaa, ping.clone()), Drop::FrameUnhandled, None),
        (with(0, 0xb2, ping.clone()), Drop::FrameRefused, Some(8)),
        (with(0, 0xb1, ping), Drop::FrameUnhandled, None),
    ] {
        let said = say(&mut bench, &mut remote, CHACHA, &frame);
        let codes: Vec<_> = said
            .iter()
            .map(|(_, text)| {
                let frame = Frame::parse(text).unwrap();
                assert_eq!((frame.operation, frame.stream_id), (Operation::Problem, u32::from(text[8])));
                Problem::read(frame.body).unwrap().code
            })
            .collect();
        assert_eq!(codes, Vec::from_iter(code), "{frame:02x?}");
        bench.assert_drops(&[(reason, 1)]);
        later(&mut bench, 1000);
    }
    for frame in [pong, problem, hello] {
        assert_eq!(say(&mut bench, &mut remote, CHACHA, &frame), []);
    }
    bench.assert_drops(&[]);
    assert_eq!(drain(&bench.tun).len(), 0, "none is a packet");
}

#[test]
fn a_frame_in_an_older_keypair_decides_nothing() {
    let (mut bench, mut remote) = gateway();
    let mut old = std::mem::replace(&mut remote.keys, Keys::new(92, crate::types::WorkerId(0), 1));
    bench.install(&remote, crate::noise::Role::Initiator);
    drain(&bench.wire);
    for frame in [Hello { aes: true }.write(true), frame::pong(1, &[1], 0)] {
        let message = old.seal(&frame);
        bench.deliver(message, remote.endpoint());
        bench.assert_drops(&[(Drop::FrameStale, 1)]);
    }
    assert_eq!(heard(&bench, &remote), []);
    // A PING decides nothing, and is answered in the keypair that sends.
    let message = old.seal(&frame::ping(1, b"", 0));
    bench.deliver(message, remote.endpoint());
    assert_eq!(operations(&heard(&bench, &remote)), [(CHACHA, Operation::Pong)]);
}

#[test]
fn a_key_that_is_used_up_goes_on_in_the_other_suite_without_loss() {
    let limits = Limits {
        // A run of ten packets is 10 * 91 blocks.
        aes_rekey_after_blocks: 1500,
        aes_stop_after_blocks: 3000,
        aes_reject_after_blocks: 4000,
        ..Limits::PAPER
    };
    let options = Options { policy: Policy { hello: false, aes: true }, limits, ..Options::default() };
    let mut bench = Bench::with(&options);
    let mut remote = bench.stranger(2);
    bench.install(&remote, crate::noise::Role::Initiator);
    drain(&bench.wire);
    agree(&mut bench, &mut remote);
    bench.requests();
    later(&mut bench, 6000);
    let size = MTU - 40;
    let mut suites = Vec::new();
    let mut begins = Vec::new();
    for n in 0..6 {
        bench.read(
            &Spec { hosts: (1, 2), seq: n, payload: noise(1, 10 * size), ..Spec::default() }
                .read(size as u16),
        );
        bench.turn();
        let headers: Vec<_> =
            bench.sent(&remote, 1)[0].chunks(MTU + 32).map(|m| remote.keys.open_any(m).0.suite).collect();
        assert!(headers.len() == 10 && headers.iter().all(|suite| *suite == headers[0]));
        suites.push(headers[0]);
        begins.push(bench.requests().len());
    }
    assert_eq!(suites, [AES, AES, AES, AES, CHACHA, CHACHA]);
    assert_eq!(begins, [0, 1, 0, 0, 0, 0], "a new handshake is asked for, once");
    bench.assert_drops(&[]);
}

/// A packet, plain and in a frame, both families, and every other frame; then what joining takes.
#[test]
fn the_key_of_an_invite_carries_nothing_but_what_is_for_joining() {
    let mut bench =
        Bench::with(&Options { policy: Policy { hello: false, aes: true }, ..Options::default() });
    let mut remote = bench.stranger(2);
    let (done, acknowledged) = crossbeam_channel::bounded(1);
    bench.control(ToWorker::RemovePeer(remote.id, done));
    acknowledged.try_recv().unwrap();
    bench.control(ToWorker::AddTemporary(remote.id));
    bench.install(&remote, crate::noise::Role::Responder);
    drain(&bench.wire);
    let v4 = Spec { hosts: (2, 1), ..Spec::default() }.packet();
    let v6 = Spec { hosts: (2, 1), v6: true, ..Spec::default() }.packet();
    let framed = |packet: &[u8]| {
        let mut body = vec![0xa1, 0x00, 0x59];
        body.extend((packet.len() as u16).to_be_bytes());
        body.extend(packet);
        let mut frame = vec![Operation::VpnSend as u8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(body);
        frame
    };
    let refused = [
        v4.clone(),
        v6.clone(),
        framed(&v4),
        framed(&v6),
        frame::ping(7, b"x", 1).to_vec(),
        request(8, "phone").to_vec(),
        lease::disconnect(0, 9, 0).to_vec(),
    ];
    for payload in &refused {
        assert_eq!(say(&mut bench, &mut remote, CHACHA, payload), [], "{payload:02x?}");
        bench.assert_drops(&[(Drop::TemporaryPeer, 1)]);
    }
    assert_eq!(drain(&bench.tun), [[0_u8; 0]; 0]);
    assert_eq!(wishes(&mut bench), [""; 0]);
    // HELLO is answered, and what it opens stays what every peer opens.
    let said = say(&mut bench, &mut remote, CHACHA, &Hello { aes: true }.write(true));
    assert_eq!(operations(&said), [(CHACHA, Operation::Hello)]);
    assert_eq!(Hello::read(Frame::parse(&said[0].1).unwrap().body), Some(Hello { aes: false }));
    let enroll = Enroll { own: crate::types::PublicKey([3; 32]), proof: [4; 32] };
    assert_eq!(say(&mut bench, &mut remote, CHACHA, &enroll.write(77)), []);
    let claims: Vec<_> = bench
        .requests
        .try_iter()
        .filter_map(|request| match request {
            Request::Enroll(claim) => Some((claim.peer, claim.index, claim.stream_id, claim.enroll)),
            _ => None,
        })
        .collect();
    assert_eq!(claims, [(remote.id, remote.keys.index, 77, enroll)]);
    bench.assert_drops(&[]);
    // Thirty seconds after its handshake the session opens nothing, and nobody begins another.
    later(&mut bench, 30_001);
    let message = remote.keys.seal_next_in(CHACHA, &enroll.write(78));
    bench.deliver(message, remote.endpoint());
    bench.assert_drops(&[(Drop::KeypairExpired, 1)]);
    assert_eq!(drain(&bench.wire), [[0_u8; 0]; 0]);
    assert!(bench.requests.try_iter().all(|request| !matches!(request, Request::Enroll(_))));
}

/// An ordinary peer's ENROLL goes nowhere.
#[test]
fn a_peer_has_nothing_to_join() {
    let (mut bench, mut remote) = gateway();
    let enroll = Enroll { own: crate::types::PublicKey([3; 32]), proof: [4; 32] };
    assert_eq!(say(&mut bench, &mut remote, CHACHA, &enroll.write(77)), []);
    bench.assert_drops(&[(Drop::FrameUnhandled, 1)]);
}

/// What the control thread was asked for.
fn wishes(bench: &mut Bench) -> Vec<String> {
    let mut found = Vec::new();
    for told in bench.told() {
        let ToControl::Asked(Asked { stream_id, what, .. }) = told else { continue };
        found.push(match what {
            Wish::Addresses(request) => format!("{stream_id} addresses {}", request.hostname),
            Wish::Disconnect => format!("{stream_id} disconnect"),
            Wish::Enrol(own, verdict) => format!("{stream_id} {own:?} {verdict:?}"),
        });
    }
    found
}

fn request(stream_id: u32, name: &str) -> Bytes {
    let hostname = arrayvec::ArrayString::from(name).unwrap();
    AddrRequest { hostname, ..AddrRequest::default() }.write(0, stream_id)
}

#[test]
fn requests_go_to_control_and_answers_come_back_in_the_session() {
    let (mut bench, mut remote) = gateway();
    assert_eq!(say(&mut bench, &mut remote, CHACHA, &request(5, "phone")), []);
    assert_eq!(wishes(&mut bench), ["5 addresses phone"]);
    let answer = vec![0x77; 1000];
    bench.control(ToWorker::Frame(remote.id, CHACHA, answer.clone().into()));
    let heard = heard(&bench, &remote);
    assert_eq!((heard.len(), &heard[0].1[..1000]), (1, &answer[..]));
    // For a peer that is not there any more.
    let gone = PeerId { generation: 7, ..remote.id };
    bench.control(ToWorker::Frame(gone, CHACHA, answer.into()));
    assert_eq!(self::heard(&bench, &remote), []);
    // A body that is none is answered here.
    let mut bad = lease::disconnect(0, 6, 0).to_vec();
    bad[16] = 0xa0;
    bad[12] = 1;
    let said = say(&mut bench, &mut remote, CHACHA, &bad);
    assert_eq!(operations(&said), [(CHACHA, Operation::Problem)]);
    assert_eq!(wishes(&mut bench), Vec::<String>::new());
    bench.assert_drops(&[(Drop::FrameRefused, 1)]);
}

#[test]
fn what_control_has_no_room_for_is_dropped_and_may_be_said_again() {
    let (mut bench, mut remote) = gateway();
    // That it is there.
    assert_eq!(bench.told().len(), 1);
    let room = crate::dataplane::handoff::ASKED_QUEUE as u64;
    for _ in 0..room {
        say(&mut bench, &mut remote, CHACHA, &request(5, ""));
        later(&mut bench, 100);
    }
    bench.assert_drops(&[]);
    say(&mut bench, &mut remote, CHACHA, &lease::disconnect(0, 6, 0));
    bench.assert_drops(&[(Drop::ControlFull, 1)]);
    assert_eq!(wishes(&mut bench).len() as u64, room);
    // It was not heard, so the session goes on.
    say(&mut bench, &mut remote, CHACHA, &lease::disconnect(0, 7, 0));
    assert_eq!(wishes(&mut bench), ["7 disconnect"]);
}

#[test]
fn after_a_disconnect_nothing_of_that_keypair_counts() {
    let (mut bench, mut remote) = gateway();
    say(&mut bench, &mut remote, CHACHA, &lease::disconnect(0, 1, 0));
    for frame in [request(2, ""), lease::disconnect(0, 3, 0)] {
        say(&mut bench, &mut remote, CHACHA, &frame);
        bench.assert_drops(&[(Drop::FrameStale, 1)]);
    }
    assert_eq!(wishes(&mut bench), ["1 disconnect"]);
    let mut old = std::mem::replace(&mut remote.keys, Keys::new(93, crate::types::WorkerId(0), 1));
    bench.install(&remote, crate::noise::Role::Initiator);
    drain(&bench.wire);
    say(&mut bench, &mut remote, CHACHA, &request(4, ""));
    assert_eq!(wishes(&mut bench), ["4 addresses "]);
    // Nor does anything of a keypair that a newer one has replaced.
    for frame in [request(5, ""), lease::disconnect(0, 6, 0)] {
        let message = old.seal(&frame);
        bench.deliver(message, remote.endpoint());
        bench.assert_drops(&[(Drop::FrameStale, 1)]);
    }
    assert_eq!(wishes(&mut bench), Vec::<String>::new());
}

/// A packet in a frame of this operation.
fn framed(operation: Operation, packet: &[u8]) -> Vec<u8> {
    let length = (packet.len() as u16).to_be_bytes();
    let body = [&[0xa1, 0x00, 0x59][..], &length, packet].concat();
    let mut frame = vec![operation as u8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    frame
}

#[test]
fn a_packet_in_a_frame_passes_the_same_checks_once() {
    let (mut bench, mut remote) = gateway();
    let packet = Spec { hosts: (2, 1), ..Spec::default() }.packet();
    let stranger = Spec { hosts: (3, 1), ..Spec::default() }.packet();
    for operation in [Operation::VpnSend, Operation::VpnReceive] {
        // No limit of frames: it is a packet.
        for _ in 0..30 {
            assert_eq!(say(&mut bench, &mut remote, CHACHA, &framed(operation, &packet)), []);
            let written = drain(&bench.tun);
            assert_eq!(written.len(), 1);
            assert_eq!(written[0][crate::wire::virtio::LEN..], packet);
        }
        for (frame, reason) in [
            (framed(operation, &stranger), Drop::SourceNotAllowed),
            (framed(operation, &framed(operation, &packet)), Drop::InnerMalformed),
            (framed(operation, &request(1, "")), Drop::InnerMalformed),
            (framed(operation, &packet[..packet.len() - 1]), Drop::InnerMalformed),
            (framed(operation, &[]), Drop::InnerMalformed),
            (framed(operation, &packet)[..40].to_vec(), Drop::FrameMalformed),
        ] {
            say(&mut bench, &mut remote, CHACHA, &frame);
            bench.assert_drops(&[(reason, 1)]);
        }
        assert_eq!((drain(&bench.tun).len(), wishes(&mut bench).len()), (0, 0));
    }
}

#[test]
fn only_who_speaks_in_frames_hears_of_the_end_and_of_lost_packets() {
    let (mut bench, mut remote) = gateway();
    let farewell = || ToWorker::Farewell(frame::problem(0, Code::TunnelDown).as_slice().into());
    bench.control(farewell());
    assert_eq!(heard(&bench, &remote), [], "a standard peer");
    say(&mut bench, &mut remote, CHACHA, &frame::ping(1, b"", 0));
    bench.control(farewell());
    let codes = |bench: &Bench, remote: &Remote| -> Vec<_> {
        let problems = heard(bench, remote).into_iter().filter_map(|(_, text)| {
            let problem = Problem::read(Frame::parse(&text).ok()?.body)?;
            Some((problem.code, problem.lost))
        });
        problems.collect()
    };
    assert_eq!(codes(&bench, &remote), [(2, None)]);
    // Without keys packets wait, and more than wait are lost.
    bench.control(ToWorker::ClearKeys(remote.id));
    let staged = crate::noise::peer_session::MAX_STAGED as u32;
    for n in 0..staged + 3 {
        bench.read(&Spec { hosts: (1, 2), seq: n, ..Spec::default() }.read(0));
        bench.turn();
    }
    bench.assert_drops(&[(Drop::StagedOverflow, 3)]);
    remote.keys = Keys::new(94, crate::types::WorkerId(0), 1);
    bench.install(&remote, crate::noise::Role::Initiator);
    // What waited, in runs. It has not spoken in this session: it is told of nothing.
    assert!(drain(&bench.wire).iter().all(|sent| sent.len() % 32 == 0));
    let said = say(&mut bench, &mut remote, CHACHA, &Hello { aes: false }.write(true));
    assert_eq!(operations(&said), [(CHACHA, Operation::Problem), (CHACHA, Operation::Hello)]);
    let problem = Problem::read(Frame::parse(&said[0].1).unwrap().body).unwrap();
    assert_eq!((problem.code, problem.lost), (3, Some(3)));
    later(&mut bench, 2000);
    let answers = say(&mut bench, &mut remote, CHACHA, &Hello { aes: false }.write(true));
    assert_eq!(operations(&answers), [(CHACHA, Operation::Hello)], "told once");
}

#[test]
fn a_client_hears_of_packets_that_could_not_be_sent_once_it_can_be_told() {
    let (mut bench, mut remote) = gateway();
    say(&mut bench, &mut remote, CHACHA, &frame::ping(1, b"", 0));
    // A family that this host has no socket for.
    bench.control(ToWorker::SetEndpoint(remote.id, "[::1]:7".parse().unwrap()));
    bench.read(&Spec { hosts: (1, 2), ..Spec::default() }.read(0));
    bench.turn();
    bench.assert_drops(&[(Drop::NoSocket, 2)]);
    bench.control(ToWorker::SetEndpoint(remote.id, remote.endpoint().remote));
    assert_eq!(operations(&heard(&bench, &remote)), [], "not so soon after it was tried");
    later(&mut bench, 10_000);
    let said = say(&mut bench, &mut remote, CHACHA, &Hello { aes: false }.write(true));
    assert_eq!(operations(&said), [(CHACHA, Operation::Problem), (CHACHA, Operation::Hello)]);
    let problem = Problem::read(Frame::parse(&said[0].1).unwrap().body).unwrap();
    assert_eq!((problem.code, problem.lost), (3, Some(2)), "the packet, and the word that it was lost");
}

#[test]
fn a_client_hears_what_its_gateway_says_and_a_gateway_hears_nothing() {
    let reply = AddrReply {
        ipv4: Some((std::net::Ipv4Addr::new(100, 64, 0, 7), 32)),
        seconds: 60,
        ..AddrReply::default()
    };
    let reply = reply.write(&lease::Settings::default(), 5);
    let problem = frame::problem(5, Code::NoFreeAddr).to_vec();
    let mut bad = reply.clone();
    bad[16] = 0xa0;
    bad[12..16].copy_from_slice(&[1, 0, 0, 0]);
    for hears in [false, true] {
        let (mut bench, mut remote) = gateway();
        let core = bench.worker.sending_half().0;
        core.asked = core.asked.clone().hearing(hears);
        bench.told();
        for payload in [&reply, &problem, &bad, &frame::ping(1, b"", 0).to_vec()] {
            say(&mut bench, &mut remote, CHACHA, payload);
        }
        let heard: Vec<_> = bench
            .told()
            .into_iter()
            .filter_map(|told| if let ToControl::Said(id, frame) = told { Some((id, frame)) } else { None })
            .map(|(id, frame)| (id == remote.id, Frame::parse(&frame).unwrap().operation))
            .collect();
        let wanted = [(true, Operation::AddrReply), (true, Operation::Problem)];
        assert_eq!(heard, if hears { &wanted[..] } else { &[] });
        let (refused, unhandled) = if hears { (1, 0) } else { (0, 2) };
        let drops = [(Drop::FrameRefused, refused), (Drop::FrameUnhandled, unhandled)];
        bench.assert_drops(&drops.into_iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>());
    }
}

#[test]
fn who_is_dismissed_hears_of_it_if_it_speaks() {
    let (mut bench, mut remote) = gateway();
    let dismiss =
        |remote: &Remote| ToWorker::Dismiss(remote.id, frame::problem(0, Code::NotAllowed).as_slice().into());
    bench.control(dismiss(&remote));
    assert_eq!(heard(&bench, &remote), [], "a standard peer");
    say(&mut bench, &mut remote, CHACHA, &frame::ping(1, b"", 0));
    bench.control(dismiss(&remote));
    assert_eq!(operations(&heard(&bench, &remote)), [(CHACHA, Operation::Problem)]);
}
