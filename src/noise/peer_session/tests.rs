//! Every timer and transition of one side, by a fake clock.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::types::{Secret, Source};

const LIMITS: Limits = Limits::PAPER;
/// More than any jitter.
const JITTER_MS: u64 = 333;

fn ms(millis: u64) -> Time {
    Time::default() + Duration::from_millis(millis)
}

fn at(seconds: u64) -> Time {
    ms(seconds * 1000)
}

fn remote(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), port)
}

/// An endpoint as a datagram brings it: with a source.
fn from(port: u16) -> Endpoint {
    let source = Source { addr: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2)), ifindex: 7 };
    Endpoint { remote: remote(port), source: Some(source) }
}

const CHACHA: Suite = Suite::ChaCha20Poly1305;

fn keys(local_index: u32, role: Role) -> NewKeypair {
    NewKeypair {
        send: Secret([1; 32]),
        recv: Secret([2; 32]),
        third: Secret([3; 32]),
        transcript: Secret([0; 32]),
        local_index,
        remote_index: local_index + 1000,
        role,
    }
}

fn session() -> PeerSession {
    let mut session = PeerSession::new(PeerId { slot: 0, generation: 0 }, LIMITS, 42);
    session.set_endpoint(Some(remote(1)), at(0));
    assert_eq!(session.take_actions(), Actions::default());
    session
}

/// A session as initiator, made at `now`, whose confirming keepalive was sent.
fn connected(now: Time) -> PeerSession {
    let mut session = session();
    session.install(&keys(1, Role::Initiator), from(1), now);
    let actions = session.take_actions();
    assert!(actions.keepalive && actions.connected && !actions.flush_staged);
    send(&mut session, false, now);
    session
}

fn send(session: &mut PeerSession, data: bool, now: Time) {
    session.reserve(1, now).expect("a keypair that sends");
    session.sent(data, if data { 128 } else { 32 }, now);
}

fn receive(
    session: &mut PeerSession,
    index: u32,
    counter: u64,
    data: bool,
    now: Time,
) -> Result<(), Refused> {
    let name = session.keypair(index).expect("a keypair");
    session.check(name, counter, now)?;
    session.accept(name, counter)?;
    session.received(name, from(1), data, if data { 128 } else { 32 }, now);
    Ok(())
}

fn packet(byte: u8) -> Box<[u8]> {
    Box::new([byte])
}

/// Runs the timers up to `until`, answering nothing; returns when each initiation was asked for. Sends initiations
/// at once.
fn begins(session: &mut PeerSession, until: Time) -> Vec<Time> {
    let mut times = Vec::new();
    while let Some(now) = session.deadline().filter(|&deadline| deadline <= until) {
        session.handle_timeout(now);
        let actions = session.take_actions();
        if actions.begin {
            times.push(now);
            session.initiation_sent(now);
        }
    }
    times
}

#[test]
fn a_packet_without_a_session_is_staged_and_begins_once() {
    let mut session = session();
    assert_eq!(session.reserve(1, at(1)), None);
    assert!(session.take_actions().begin);
    assert!(session.stage(packet(1), at(1)).is_none());
    assert!(!session.take_actions().begin, "one in flight");
    session.initiation_sent(at(2));
    assert!(session.stage(packet(2), at(3)).is_none());
    assert!(!session.take_actions().begin, "one per Rekey-Timeout");

    session.install(&keys(1, Role::Initiator), from(9), at(3));
    let actions = session.take_actions();
    assert!(actions.flush_staged && actions.connected && !actions.keepalive);
    assert_eq!(session.staged_bytes(), session.staged_len());
    assert_eq!(session.pop_staged(), Some(packet(1)));
    assert_eq!(session.pop_staged(), Some(packet(2)));
    assert_eq!(session.pop_staged(), None);
    assert_eq!(
        session.reserve(2, at(3)),
        Some(Reserved { first_counter: 0, remote_index: 1001, suite: CHACHA })
    );
    assert_eq!(session.reserve(1, at(3)).map(|reserved| reserved.first_counter), Some(2));
    assert_eq!(session.sealing_key(1001, CHACHA, 0).map(Key::bytes), Some([1; 32]));
    assert!(session.sealing_key(1002, CHACHA, 0).is_none(), "no other keypair's key");
    assert_eq!(session.endpoint(), Some(from(9)), "the response authenticates where it came from");
    assert_eq!(session.stats().last_handshake, Some(at(3)));
    assert_eq!((session.stats().tx_bytes, session.stats().rx_bytes), (148, 92));
}

#[test]
fn staging_is_bounded_and_drops_the_oldest() {
    let mut session = session();
    for byte in 0..128 {
        assert_eq!(session.stage(packet(byte), at(0)), None);
    }
    assert_eq!(session.stage(packet(200), at(0)), Some(packet(0)));
    assert_eq!(session.staged_len(), MAX_STAGED);
    assert_eq!(session.pop_staged(), Some(packet(1)));
}

#[test]
fn an_initiation_is_retransmitted_with_jitter_and_given_up_as_the_kernel_does() {
    let mut session = session();
    session.endpoint = Some(from(1));
    session.stage(packet(1), at(10));
    assert!(session.take_actions().begin);
    session.initiation_sent(at(10));
    let mut last = at(10);
    for attempt in 1..=19 {
        session.endpoint = Some(from(1));
        let due = session.deadline().unwrap();
        assert!(due.since(last) >= Duration::from_secs(5), "{attempt}");
        assert!(due.since(last) <= Duration::from_millis(5000 + JITTER_MS), "{attempt}");
        session.handle_timeout(due);
        let actions = session.take_actions();
        assert!(actions.begin && !actions.gave_up, "{attempt}");
        assert_eq!(session.endpoint(), Some(Endpoint::new(remote(1))), "the source may be the trouble");
        session.initiation_sent(due);
        last = due;
    }
    let due = session.deadline().unwrap();
    session.handle_timeout(due);
    let actions = session.take_actions();
    assert!(actions.gave_up && !actions.begin);
    assert_eq!((actions.staged_dropped, session.staged_len()), (1, 0));
    assert_eq!(session.deadline(), Some(due + Duration::from_secs(540)), "what is left is wiped");

    session.stage(packet(2), due + Duration::from_secs(1));
    assert!(session.take_actions().begin, "data begins again");
    session.initiation_sent(due);
    assert_eq!(begins(&mut session, due + Duration::from_secs(1000)).len(), 19, "with all its attempts");
}

#[test]
fn jitter_differs_between_seeds_and_stays_in_bounds() {
    let bound = LIMITS.rekey_timeout_jitter;
    let drawn = |seed| {
        let mut jitter = Jitter(seed);
        (0..100).map(|_| jitter.below(bound)).collect::<Vec<_>>()
    };
    assert_ne!(drawn(1), drawn(2));
    assert!(drawn(3).iter().all(|&time| time < bound));
    assert!(drawn(3).iter().any(|&time| time > bound / 2));
    assert_eq!(Jitter(1).below(Duration::ZERO), Duration::ZERO);
}

#[test]
fn a_failed_begin_lets_the_next_packet_try() {
    let mut session = session();
    session.stage(packet(1), at(0));
    assert!(session.take_actions().begin);
    session.begin_failed();
    session.stage(packet(2), at(6));
    assert!(session.take_actions().begin);
}

#[test]
fn one_begin_in_flight_however_slow_the_handshake_thread() {
    let mut session = session();
    session.stage(packet(1), at(0));
    assert!(session.take_actions().begin);
    session.stage(packet(2), at(60));
    assert_eq!(session.reserve(1, at(61)), None);
    assert!(!session.take_actions().begin);
    session.initiation_sent(at(62));
    session.stage(packet(3), at(68));
    assert!(session.take_actions().begin);
}

#[test]
fn without_an_endpoint_nothing_begins_until_there_is_one() {
    let mut session = PeerSession::new(PeerId { slot: 0, generation: 0 }, LIMITS, 42);
    session.stage(packet(1), at(0));
    session.set_keepalive(Some(25), at(0));
    assert_eq!(session.take_actions(), Actions::default());
    session.set_endpoint(Some(remote(5)), at(1));
    assert!(session.take_actions().begin);
    assert_eq!(session.endpoint(), Some(Endpoint::new(remote(5))));
}

#[test]
fn a_wish_within_rekey_timeout_is_served_later() {
    let mut session = session();
    session.install(&keys(1, Role::Responder), from(2), at(0));
    let _ = session.take_actions();
    session.stage(packet(1), at(1));
    assert!(!session.take_actions().begin, "we have just responded");
    let due = begins(&mut session, at(6));
    assert_eq!(due.len(), 1, "the confirmation did not come");
    assert!(due[0] >= at(5) && due[0] <= ms(5000 + JITTER_MS));
}

#[test]
fn passive_keepalive_after_data_only_and_not_after_sending() {
    let mut session = connected(at(0));
    let idle = session.deadline();
    receive(&mut session, 1, 0, false, at(1)).unwrap();
    assert_eq!(session.deadline(), idle, "a keepalive is not answered");
    receive(&mut session, 1, 1, true, at(2)).unwrap();
    assert_eq!(session.deadline(), Some(at(12)));
    receive(&mut session, 1, 2, true, at(5)).unwrap();
    assert_eq!(session.deadline(), Some(at(12)), "from the first");
    session.handle_timeout(at(12));
    assert!(session.take_actions().keepalive);
    assert_eq!(session.deadline(), Some(at(22)), "another, since more came while it was pending");
    send(&mut session, false, at(12));
    assert_eq!(session.deadline(), idle, "whatever is sent answers all");

    receive(&mut session, 1, 3, true, at(13)).unwrap();
    send(&mut session, true, at(14));
    session.handle_timeout(at(23));
    assert!(!session.take_actions().keepalive);

    let mut session = connected(at(0));
    receive(&mut session, 1, 0, true, at(2)).unwrap();
    receive(&mut session, 1, 1, false, at(3)).unwrap();
    session.handle_timeout(at(12));
    assert!(session.take_actions().keepalive);
    assert_eq!(session.deadline(), idle, "a keepalive needs no other");
}

#[test]
fn no_answer_to_data_begins_anew_after_15_seconds() {
    let mut session = connected(at(0));
    send(&mut session, true, at(20));
    send(&mut session, true, at(30));
    let due = session.deadline().unwrap();
    assert!(due >= at(35) && due <= ms(35_000 + JITTER_MS), "from the first unanswered");
    session.handle_timeout(ms(34_999));
    assert!(!session.take_actions().begin);
    session.handle_timeout(due);
    assert!(session.take_actions().begin);
    assert_eq!(session.endpoint(), Some(Endpoint::new(remote(1))), "source cleared");

    let mut session = connected(at(0));
    send(&mut session, true, at(20));
    receive(&mut session, 1, 0, false, at(21)).unwrap();
    session.handle_timeout(at(36));
    assert!(!session.take_actions().begin, "a keepalive is an answer");
    send(&mut session, false, at(50));
    session.handle_timeout(at(66));
    assert!(!session.take_actions().begin, "keepalives need none");
}

#[test]
fn renewing_tells_where_we_are_and_begins_at_once() {
    let mut session = connected(at(0));
    receive(&mut session, 1, 0, true, at(1)).unwrap();
    assert!(session.endpoint().unwrap().source.is_some());
    session.initiation_sent(at(2));
    let _ = session.take_actions();
    session.renew(at(3));
    let actions = session.take_actions();
    assert!(actions.keepalive && actions.begin, "also within Rekey-Timeout");
    assert_eq!(session.endpoint(), Some(Endpoint::new(remote(1))), "by which address the route says");
    session.renew(at(3));
    assert!(!session.take_actions().begin, "one in flight");
    session.initiation_sent(at(3));
    // The peer has answered; nothing is under way.
    session.install(&keys(2, Role::Initiator), from(1), at(4));
    let _ = session.take_actions();
    assert!(!session.awaits_answer());
    // Who slept has no key to send with, and packets go when there is one.
    assert!(session.stage(packet(1), at(1000)).is_none());
    let _ = session.take_actions();
    session.renew(at(1000));
    let actions = session.take_actions();
    assert!(!actions.keepalive && !actions.flush_staged && !session.is_established());
    assert_eq!(session.staged_len(), 1);
    // A peer without an address has nobody to ask.
    let mut nowhere = PeerSession::new(PeerId { slot: 0, generation: 0 }, LIMITS, 42);
    nowhere.renew(at(1));
    assert_eq!(nowhere.take_actions(), Actions::default());
}

#[test]
fn an_answer_is_awaited_to_data_and_to_initiations() {
    let mut session = connected(at(0));
    assert!(!session.awaits_answer(), "a keepalive is not answered");
    send(&mut session, true, at(1));
    assert!(session.awaits_answer());
    receive(&mut session, 1, 0, false, at(2)).unwrap();
    assert!(!session.awaits_answer());
    session.renew(at(10));
    assert!(session.take_actions().begin && session.awaits_answer());
    session.initiation_sent(at(10));
    assert!(session.awaits_answer());
    session.install(&keys(2, Role::Initiator), from(1), at(11));
    assert!(session.take_actions().connected && !session.awaits_answer());
}

#[test]
fn persistent_keepalive_on_off_and_put_off() {
    let mut session = connected(at(0));
    let idle = session.deadline();
    session.set_keepalive(Some(25), at(1));
    assert!(session.take_actions().keepalive, "turning it on sends one");
    send(&mut session, false, at(1));
    assert_eq!(session.deadline(), Some(at(26)));
    receive(&mut session, 1, 0, false, at(10)).unwrap();
    assert_eq!(session.deadline(), Some(at(35)), "anything authenticated puts it off");
    session.handle_timeout(at(35));
    assert!(session.take_actions().keepalive);
    send(&mut session, false, at(35));
    assert_eq!(session.deadline(), Some(at(60)));
    session.set_keepalive(Some(3), at(36));
    assert_eq!(session.take_actions(), Actions::default(), "it was on");
    assert_eq!(session.deadline(), Some(at(39)));
    for off in [None, Some(0)] {
        session.set_keepalive(off, at(37));
        assert_eq!((session.deadline(), session.persistent_keepalive()), (idle, None));
    }
}

#[test]
fn persistent_keepalive_makes_a_session_and_outlives_giving_up() {
    let mut session = session();
    session.set_keepalive(Some(25), at(0));
    assert!(session.take_actions().begin);
    session.initiation_sent(at(0));
    // Each initiation puts it off; 25 s after the last of 20 it begins anew, as in the kernel.
    let times = begins(&mut session, at(3600));
    assert!(times.len() > 500, "{}", times.len());
    let pauses = times
        .windows(2)
        .map(|pair| pair[1].since(pair[0]))
        .filter(|gap| gap.as_secs() > 5)
        .collect::<Vec<_>>();
    assert!(pauses.len() > 25);
    assert!(pauses.iter().all(|&pause| pause == Duration::from_secs(25)), "{pauses:?}");
}

#[test]
fn the_initiator_renews_when_it_sends_and_the_responder_does_not() {
    let mut session = connected(at(0));
    send(&mut session, true, at(119));
    assert!(!session.take_actions().begin);
    send(&mut session, true, at(120));
    assert!(session.take_actions().begin);

    let mut session = self::session();
    session.install(&keys(1, Role::Responder), from(1), at(0));
    receive(&mut session, 1, 0, true, at(0)).unwrap();
    let _ = session.take_actions();
    send(&mut session, true, at(179));
    receive(&mut session, 1, 1, true, at(179)).unwrap();
    assert!(!session.take_actions().begin);
    assert_eq!(session.reserve(1, at(180)), None);
    assert!(session.take_actions().begin, "unless it has to send and cannot");
}

#[test]
fn the_initiator_renews_on_receipt_once() {
    let mut session = connected(at(0));
    receive(&mut session, 1, 0, true, at(164)).unwrap();
    assert!(!session.take_actions().begin);
    receive(&mut session, 1, 1, true, at(165)).unwrap();
    assert!(session.take_actions().begin);
    session.initiation_sent(at(165));
    receive(&mut session, 1, 2, true, at(172)).unwrap();
    assert!(!session.take_actions().begin, "once for a keypair");
    session.install(&keys(2, Role::Initiator), from(1), at(173));
    let _ = session.take_actions();
    receive(&mut session, 2, 0, true, at(173 + 165)).unwrap();
    assert!(session.take_actions().begin, "and again for the next");
}

#[test]
fn message_limits_renew_and_reject() {
    let limits = Limits { rekey_after_messages: 4, reject_after_messages: 7, ..LIMITS };
    let mut session = PeerSession::new(PeerId { slot: 0, generation: 0 }, limits, 0);
    session.set_endpoint(Some(remote(1)), at(0));
    session.install(&keys(1, Role::Responder), from(1), at(0));
    receive(&mut session, 1, 0, false, at(0)).unwrap();
    let _ = session.take_actions();
    assert!(session.reserve(4, at(10)).is_some());
    session.sent(true, 1, at(10));
    assert!(!session.take_actions().begin);
    assert!(session.reserve(1, at(10)).is_some());
    session.sent(true, 1, at(10));
    assert!(session.take_actions().begin);
    session.initiation_sent(at(10));
    assert!(session.reserve(3, at(11)).is_none());
    assert_eq!(session.reserve(2, at(11)).map(|reserved| reserved.first_counter), Some(5));
    assert!(session.reserve(1, at(11)).is_none());
    session.stage(packet(1), at(11));
    assert!(!session.take_actions().flush_staged, "an exhausted keypair flushes nothing");
}

#[test]
fn receiving_refuses_by_its_reason() {
    let mut session = connected(at(0));
    let name = session.keypair(1).unwrap();
    assert_eq!(session.keypair(2), None);
    assert_eq!(session.opening_key(name, CHACHA).map(Key::bytes), Some([2; 32]));
    assert_eq!(session.check(name, u64::MAX, at(1)), Err(Refused::CounterLimit));
    assert_eq!(receive(&mut session, 1, 9000, true, at(1)), Ok(()));
    assert_eq!(receive(&mut session, 1, 9000, true, at(1)), Err(Refused::Replayed));
    assert_eq!(receive(&mut session, 1, 1, true, at(1)), Err(Refused::TooOld));
    // Two of one run with the same counter: both pass the check, one is accepted.
    assert_eq!(session.check(name, 9001, at(1)), Ok(()));
    assert_eq!(session.accept(name, 9001), Ok(()));
    assert_eq!(session.accept(name, 9001), Err(Refused::Replayed));
    assert_eq!(session.check(name, 9002, at(179)), Ok(()));
    assert_eq!(session.check(name, 9002, at(180)), Err(Refused::Expired));
    session.clear();
    assert_eq!(session.check(name, 9002, at(1)), Err(Refused::Expired));
    assert_eq!(session.accept(name, 9002), Err(Refused::Expired));
    assert!(session.opening_key(name, CHACHA).is_none());
}

#[test]
fn a_responder_sends_nothing_before_the_confirmation() {
    let mut session = session();
    session.stage(packet(1), at(0));
    session.initiation_sent(at(0));
    let _ = session.take_actions();
    session.install(&keys(1, Role::Responder), from(7), at(1));
    assert_eq!(session.take_actions(), Actions::default());
    assert_eq!(session.reserve(1, at(1)), None);
    assert!(!session.can_send(at(1)) && session.sealing_key(1001, CHACHA, 0).is_none());
    assert_eq!(session.endpoint(), Some(Endpoint::new(remote(1))));
    assert_eq!((session.stats().handshakes, session.stats().rx_bytes), (0, 0));

    receive(&mut session, 1, 0, false, at(2)).unwrap();
    let actions = session.take_actions();
    assert!(actions.connected && actions.flush_staged);
    assert!(session.reserve(1, at(2)).is_some());
    assert_eq!(session.stats().last_handshake, Some(at(2)));
    assert_eq!((session.stats().rx_bytes, session.stats().tx_bytes), (148 + 32, 148 + 92));
    assert_eq!(session.timers.retransmit, None);
}

#[test]
fn a_replayed_initiation_changes_nothing_of_a_live_session() {
    let mut session = connected(at(0));
    session.set_keepalive(Some(25), at(0));
    let _ = session.take_actions();
    receive(&mut session, 1, 0, true, at(50)).unwrap();
    send(&mut session, true, at(50));
    let before = (session.endpoint(), session.stats());
    let timers = |session: &PeerSession| {
        let Timers { retransmit, keepalive, new_handshake, persistent, .. } = session.timers;
        [retransmit, keepalive, new_handshake, persistent]
    };
    let running = timers(&session);
    for replay in 0..5 {
        session.install(&keys(10 + replay, Role::Responder), from(666), at(51));
        let actions = session.take_actions();
        assert!(!actions.connected && !actions.flush_staged && !actions.keepalive);
        assert_eq!((session.endpoint(), session.stats()), before);
        assert_eq!(timers(&session), running);
    }
    assert_eq!(session.reserve(1, at(52)).map(|reserved| reserved.remote_index), Some(1001));
    receive(&mut session, 1, 1, true, at(52)).unwrap();
    assert_eq!(session.endpoint(), Some(from(1)));
}

#[test]
fn roaming_follows_what_was_accepted() {
    let mut session = connected(at(0));
    let name = session.keypair(1).unwrap();
    session.accept(name, 0).unwrap();
    session.received(name, from(40), true, 128, at(1));
    assert_eq!(session.endpoint(), Some(from(40)));
    session.clear_source();
    assert_eq!(session.endpoint(), Some(Endpoint::new(remote(40))));
    session.set_endpoint(None, at(2));
    assert_eq!(session.endpoint(), None);
}

#[test]
fn indices_are_released_as_keypairs_go() {
    let mut session = session();
    let released = |session: &mut PeerSession, index, role| {
        session.install(&keys(index, role), from(1), at(0));
        session.take_actions().released.to_vec()
    };
    assert_eq!(released(&mut session, 1, Role::Initiator), [] as [u32; 0]);
    assert_eq!(released(&mut session, 2, Role::Initiator), [] as [u32; 0]);
    assert_eq!(released(&mut session, 3, Role::Responder), [1]);
    receive(&mut session, 3, 0, true, at(0)).unwrap();
    assert_eq!(session.take_actions().released.to_vec(), [] as [u32; 0]);
    assert_eq!(released(&mut session, 4, Role::Responder), [2]);
    assert_eq!(released(&mut session, 5, Role::Initiator), [3]);
    session.clear();
    assert_eq!(session.take_actions().released.to_vec(), [4, 5]);
}

#[test]
fn keys_are_wiped_540_seconds_after_the_last_was_made() {
    let mut session = connected(at(0));
    session.install(&keys(2, Role::Responder), from(1), at(100));
    let _ = session.take_actions();
    assert_eq!(session.deadline(), Some(at(180)), "the session that is current is over");
    assert!(session.is_live(at(179)) && !session.is_live(at(180)));
    session.handle_timeout(at(180));
    session.handle_timeout(at(639));
    assert!(session.keypair(2).is_some());
    session.handle_timeout(at(640));
    assert_eq!(session.take_actions().released.len(), 2);
    assert!(session.keypair(1).is_none() && session.keypair(2).is_none());
    assert!(session.sealing_key(1001, CHACHA, 0).is_none() && session.sealing_key(1002, CHACHA, 0).is_none());
    assert_eq!(session.deadline(), None, "nothing runs for an idle peer");
}

#[test]
fn a_jump_past_reject_after_time_wipes_what_is_expired() {
    let mut session = connected(at(0));
    receive(&mut session, 1, 0, true, at(1)).unwrap();
    session.handle_timeout(at(11 + 180));
    assert_eq!(session.take_actions().released.to_vec(), [1], "long before 540 s");

    let mut session = connected(at(0));
    session.erase_expired(at(179));
    assert!(session.sealing_key(1001, CHACHA, 0).is_some());
    session.erase_expired(at(180));
    assert!(session.sealing_key(1001, CHACHA, 0).is_none());
}

#[test]
fn a_clock_that_jumps_either_way_does_no_harm() {
    let mut session = connected(at(10_000));
    send(&mut session, true, at(10_000));
    receive(&mut session, 1, 0, true, at(10_000)).unwrap();
    for now in [at(0), at(20_000), Time::from_nanos(u64::MAX), at(5), Time::from_nanos(u64::MAX), at(0)] {
        session.handle_timeout(now);
        let _ = session.reserve(1, now);
        session.sent(true, 1, now);
        let _ = session.stage(packet(1), now);
        session.initiation_sent(now);
        session.install(&keys(5, Role::Initiator), from(1), now);
        let _ = session.take_actions();
        receive(&mut session, 5, 0, true, now).unwrap();
        let _ = session.deadline();
        let _ = session.take_actions();
    }
    session.clear();
    session.timers = Timers { last_sent_handshake: Some(at(9000)), ..Timers::default() };
    session.begin_in_flight = false;
    session.stage(packet(1), at(1));
    assert!(session.take_actions().begin, "a handshake in the future does not hold up one now");
}

#[test]
fn a_changed_key_drops_sessions_and_allows_a_handshake_at_once() {
    let mut session = connected(at(0));
    session.initiation_sent(at(1));
    session.clear();
    assert_eq!(session.take_actions().released.to_vec(), [1]);
    assert_eq!(session.reserve(1, at(2)), None);
    assert!(session.take_actions().begin);
}

#[test]
fn a_session_is_small_enough_for_an_arena_of_thousands() {
    // Three windows of 1 KiB, and the keys of two suites.
    assert!(size_of::<PeerSession>() <= 4352, "{}", size_of::<PeerSession>());
}

#[test]
fn closing_leaves_nothing() {
    let mut session = connected(at(0));
    session.set_keepalive(Some(1), at(0));
    session.clear();
    session.stage(packet(1), at(0));
    session.stage(packet(2), at(0));
    session.close();
    let actions = session.take_actions();
    assert_eq!((actions.staged_dropped, actions.released.to_vec()), (2, vec![1]));
    assert_eq!((session.deadline(), session.staged_len()), (None, 0));
    assert_eq!(session.peer(), PeerId { slot: 0, generation: 0 });
}
