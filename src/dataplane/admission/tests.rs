use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 66));
const EIGHTH: usize = Queues::<u32>::CAPACITY / LOAD_PART;

fn at(millis: u64) -> Time {
    Time::from_nanos(1_000_000_000_000) + Duration::from_millis(millis)
}

fn from(kind: Kind, source: IpAddr) -> Arrival {
    Arrival { kind, source, expected: kind != Kind::Initiation }
}

/// An initiation with a right mac1.
fn initiation(gate: &mut Admission<u32>, source: IpAddr, mac2: bool, now: Time) -> Verdict {
    gate.offer(from(Kind::Initiation, source), || true, || mac2, || 0, now)
}

fn stranger(n: usize) -> IpAddr {
    IpAddr::from((0xc612_0100 + n as u32).to_be_bytes())
}

/// A gate that strangers have just brought under load.
fn loaded(now: Time) -> Admission<u32> {
    let mut gate = Admission::new();
    for n in 0..EIGHTH {
        assert_eq!(initiation(&mut gate, stranger(n), false, now), Verdict::Queued(Class::Unknown));
    }
    assert!(gate.under_load(now));
    gate
}

fn drain(gate: &mut Admission<u32>) -> usize {
    std::iter::from_fn(|| gate.pop()).count()
}

#[test]
fn a_wrong_mac1_costs_nothing_more() {
    let mut gate = loaded(at(0));
    for source in [VICTIM, ATTACKER] {
        for kind in [Kind::Initiation, Kind::Response] {
            let verdict =
                gate.offer(from(kind, source), || false, || panic!("mac2"), || panic!("item"), at(0));
            assert_eq!(verdict, Verdict::Drop(Drop::BadMac1));
        }
    }
    assert_eq!(drain(&mut gate), EIGHTH);
}

#[test]
fn the_macs_are_checked_in_order_and_mac2_only_if_needed() {
    let mut gate = Admission::<u32>::new();
    let calls = Cell::new(0);
    let mac1 = || calls.replace(1) == 0;
    let verdict = gate.offer(from(Kind::Initiation, VICTIM), mac1, || panic!("mac2"), || 0, at(0));
    assert_eq!(verdict, Verdict::Queued(Class::Unknown));

    let mut gate = loaded(at(0));
    calls.set(0);
    let mac2 = || calls.replace(2) == 1;
    let verdict = gate.offer(from(Kind::Initiation, VICTIM), mac1, mac2, || 0, at(0));
    assert_eq!((verdict, calls.get()), (Verdict::Queued(Class::Known), 2));
}

#[test]
fn a_forger_under_load_spends_none_of_the_victims_tokens() {
    let mut gate = loaded(at(0));
    for _ in 0..10_000 {
        assert_eq!(initiation(&mut gate, VICTIM, false, at(1)), Verdict::Cookie);
    }
    for _ in 0..SOURCE_BURST {
        assert_eq!(initiation(&mut gate, VICTIM, true, at(1)), Verdict::Queued(Class::Known));
    }
    assert_eq!(initiation(&mut gate, VICTIM, true, at(1)), Verdict::Drop(Drop::SourceLimit));
}

#[test]
fn a_forger_without_load_costs_the_victim_a_cookie_at_most() {
    let mut gate = Admission::<u32>::new();
    for _ in 0..SOURCE_BURST {
        assert_eq!(initiation(&mut gate, VICTIM, false, at(0)), Verdict::Queued(Class::Unknown));
    }
    for _ in 0..1000 {
        assert_eq!(initiation(&mut gate, VICTIM, false, at(0)), Verdict::Cookie);
    }
    assert!(!gate.under_load(at(0)), "one source brings nobody under load");
    assert_eq!(initiation(&mut gate, VICTIM, true, at(0)), Verdict::Queued(Class::Known));
    assert_eq!(initiation(&mut gate, ATTACKER, false, at(0)), Verdict::Queued(Class::Unknown));
}

#[test]
fn a_limiter_full_of_attackers_admits_a_victim() {
    let now = at(0);
    let mut gate = loaded(now);
    let mut refused = 0;
    for n in 0..4 * SOURCES {
        for _ in 0..SOURCE_BURST + 1 {
            let verdict = initiation(&mut gate, stranger(1_000_000 + n), true, now);
            refused += usize::from(verdict == Verdict::Drop(Drop::SourceLimit));
        }
        drain(&mut gate);
    }
    assert!(refused > 3 * SOURCES, "each attacker is limited while it is remembered: {refused}");
    assert_eq!(initiation(&mut gate, VICTIM, true, now), Verdict::Queued(Class::Known));
}

/// Regression of other implementations: a limiter over all sources let one attacker lock everybody out.
#[test]
fn no_limit_is_global() {
    let mut gate = Admission::<u32>::new();
    for millis in 0..5000 {
        for _ in 0..3 {
            initiation(&mut gate, ATTACKER, true, at(millis));
        }
        drain(&mut gate);
        let victim = stranger(millis as usize);
        assert_eq!(initiation(&mut gate, victim, false, at(millis)), Verdict::Queued(Class::Unknown));
    }
}

#[test]
fn load_begins_at_an_eighth_is_held_and_recovers() {
    let mut gate = Admission::<u32>::new();
    for n in 0..EIGHTH - 1 {
        initiation(&mut gate, stranger(n), false, at(0));
    }
    assert!(!gate.under_load(at(0)));
    initiation(&mut gate, stranger(EIGHTH), false, at(0));
    assert!(gate.under_load(at(0)));
    assert_eq!(initiation(&mut gate, VICTIM, false, at(5000)), Verdict::Cookie, "while the queue stands");
    assert_eq!(drain(&mut gate), EIGHTH);
    assert!(gate.under_load(at(5999)));
    assert_eq!(initiation(&mut gate, VICTIM, false, at(5999)), Verdict::Cookie);
    assert!(!gate.under_load(at(6000)));
    assert_eq!(initiation(&mut gate, VICTIM, false, at(6000)), Verdict::Queued(Class::Unknown));
}

#[test]
fn cookies_alone_do_not_hold_the_load() {
    let mut gate = loaded(at(0));
    drain(&mut gate);
    for millis in 1..1000 {
        assert_eq!(initiation(&mut gate, ATTACKER, false, at(millis)), Verdict::Cookie);
    }
    assert!(!gate.under_load(at(1000)), "what is refused is no load");
}

#[test]
fn a_source_gets_its_rate_and_no_more() {
    let mut limiter = SourceLimiter::new();
    let allowed = (0..10_000).filter(|&millis| limiter.take(VICTIM, at(millis))).count();
    assert_eq!(allowed, 10 * SOURCE_RATE as usize + SOURCE_BURST as usize - 1);
    // Idle, it fills up to the burst and no further.
    let allowed = (0..100).filter(|_| limiter.take(VICTIM, at(60_000))).count();
    assert_eq!(allowed, SOURCE_BURST as usize);
    // A clock that stands still or goes back is no source of tokens, and no panic.
    assert!(!limiter.take(VICTIM, at(0)));
}

#[test]
fn ipv6_sources_are_their_64() {
    let mut limiter = SourceLimiter::new();
    let addr = |net: u16, host: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, host));
    let allowed = (0..100).filter(|&host| limiter.take(addr(1, host), at(0))).count();
    assert_eq!(allowed, SOURCE_BURST as usize);
    assert!(!limiter.take("2001:db8:0:1:ffff:ffff:ffff:ffff".parse().unwrap(), at(0)), "all 64 host bits");
    assert!(limiter.take(addr(2, 1), at(0)));
    assert!(limiter.take(addr(0, 1), at(0)), "and no bit of the network");
    // An IPv4 source is the same through a dual-stack socket.
    let mapped = IpAddr::V6(Ipv4Addr::new(198, 18, 0, 1).to_ipv6_mapped());
    let allowed = (0..10).filter(|n| limiter.take(if n % 2 == 0 { mapped } else { VICTIM }, at(0))).count();
    assert_eq!(allowed, SOURCE_BURST as usize);
}

#[test]
fn a_full_set_forgets_the_fullest_bucket_first() {
    let mut limiter = SourceLimiter::new();
    // One busy source among so many idle ones that every set overflows many times.
    for round in 0..50_u64 {
        let allowed = (0..10).filter(|_| limiter.take(ATTACKER, at(round))).count();
        assert!(allowed <= if round == 0 { SOURCE_BURST as usize } else { 1 }, "round {round}: {allowed}");
        for n in 0..SOURCES {
            // Never the same twice: who comes often enough has as empty a bucket.
            let _ = limiter.take(stranger(n + SOURCES * round as usize), at(round));
        }
    }
}

#[test]
fn answers_must_be_expected() {
    let mut gate = Admission::<u32>::new();
    let arrival = |kind, expected| Arrival { kind, source: VICTIM, expected };
    let mut offer = |kind, expected, now| {
        gate.offer(arrival(kind, expected), || kind != Kind::CookieReply, || false, || 0, now)
    };
    assert_eq!(offer(Kind::CookieReply, false, at(0)), Verdict::Drop(Drop::BadCookie));
    assert_eq!(offer(Kind::Response, false, at(0)), Verdict::Drop(Drop::BadResponse));
    assert_eq!(offer(Kind::CookieReply, true, at(0)), Verdict::Queued(Class::Answer));
    for _ in 0..EIGHTH - 1 {
        assert_eq!(
            offer(Kind::Response, true, at(0)),
            Verdict::Queued(Class::Answer),
            "no allowance is spent"
        );
    }
    assert_eq!(offer(Kind::Response, true, at(0)), Verdict::Cookie, "a flood of answers is load too");
}

#[test]
fn live_endpoints_are_served_before_strangers_but_prove_nothing() {
    let mut gate = Admission::<u32>::new();
    let live = Arrival { kind: Kind::Initiation, source: VICTIM, expected: true };
    initiation(&mut gate, ATTACKER, false, at(0));
    assert_eq!(gate.offer(live, || true, || false, || 7, at(0)), Verdict::Queued(Class::Known));
    assert_eq!(gate.pop(), Some((Class::Known, 7)));
    let mut gate = loaded(at(0));
    assert_eq!(
        gate.offer(live, || true, || false, || 7, at(0)),
        Verdict::Cookie,
        "the address may be forged"
    );
}

#[test]
fn own_initiations_are_bounded_kept_and_no_load() {
    let mut gate = Admission::<u32>::new();
    for n in 0..Queues::<u32>::CAPACITY as u32 {
        assert_eq!(gate.push_own(n), Ok(()));
    }
    assert_eq!(gate.push_own(99), Err(99));
    assert!(!gate.under_load(at(0)));
    assert_eq!(
        gate.offer(from(Kind::Response, VICTIM), || true, || false, || 1, at(0)),
        Verdict::Queued(Class::Answer)
    );
    assert_eq!(gate.pop(), Some((Class::Answer, 1)));
    assert_eq!(gate.pop(), Some((Class::Own, 0)));
}

#[test]
fn a_full_queue_refuses_only_its_class() {
    let mut gate = loaded(at(0));
    let mut n = 0;
    while initiation(&mut gate, stranger(100_000 + n), true, at(1)) == Verdict::Queued(Class::Known) {
        n += 1;
    }
    assert_eq!(n, Queues::<u32>::CAPACITY);
    let late = Arrival { kind: Kind::Initiation, source: VICTIM, expected: false };
    let verdict = gate.offer(late, || true, || true, || panic!("made for nothing"), at(1));
    assert_eq!(verdict, Verdict::Drop(Drop::HandshakeQueueFull));
    assert_eq!(gate.push_own(1), Ok(()));
    let answer = gate.offer(from(Kind::Response, VICTIM), || true, || true, || 2, at(1));
    assert_eq!(answer, Verdict::Queued(Class::Answer));
}

#[test]
fn queues_keep_priority_order_and_a_share_for_the_last() {
    let mut queues = Queues::new();
    for n in 0..100 {
        for class in CLASSES {
            assert_eq!(queues.push(class, n), Ok(()));
        }
    }
    let served: Vec<_> = std::iter::from_fn(|| queues.pop()).collect();
    assert_eq!(served.len(), 400);
    for class in CLASSES {
        let order: Vec<_> = served.iter().filter(|s| s.0 == class).map(|s| s.1).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>(), "first in, first out within {class:?}");
    }
    let unknown_in_the_first_96 = served[..96].iter().filter(|s| s.0 == Class::Unknown).count();
    assert_eq!(unknown_in_the_first_96, 96 / LAST_FIRST as usize);
    assert!(served[..96].iter().all(|s| matches!(s.0, Class::Answer | Class::Unknown)));
    assert_eq!(queues.pop(), None);
}

#[test]
fn while_more_comes_than_is_read_each_source_gets_a_cookie_once_a_second() {
    let mut gate = loaded(at(0));
    let cookies = |gate: &mut Admission<u32>, source, millis: std::ops::Range<u64>| {
        millis.filter(|&n| initiation(gate, source, false, at(n)) == Verdict::Cookie).count()
    };
    assert_eq!(cookies(&mut gate, ATTACKER, 0..100), 100, "all that can be read are answered");
    gate.set_behind(true);
    assert_eq!(cookies(&mut gate, ATTACKER, 100..900), 1);
    assert_eq!(initiation(&mut gate, ATTACKER, false, at(900)), Verdict::Drop(Drop::CookieRequired));
    assert_eq!(
        initiation(&mut gate, ATTACKER, true, at(900)),
        Verdict::Queued(Class::Known),
        "with a cookie"
    );
    assert_eq!(cookies(&mut gate, VICTIM, 900..901), 1, "another's were none of its own");
    assert_eq!(cookies(&mut gate, ATTACKER, 1000..1900), 1, "and another in the next second");
    gate.set_behind(false);
    assert_eq!(cookies(&mut gate, ATTACKER, 1900..1940), 40);
}

#[test]
fn so_many_sources_are_known_to_have_got_a_cookie() {
    let mut gate = loaded(at(0));
    gate.set_behind(true);
    // Half as many as there is room for: sets of 8 rarely overflow.
    let mut round = |now| {
        (0..REPLIED / 2)
            .filter(|&n| initiation(&mut gate, stranger(n), false, at(now)) == Verdict::Cookie)
            .count()
    };
    assert_eq!(round(1), REPLIED / 2);
    let again = round(2);
    assert!(again < REPLIED / 20, "{again}");
}
