//! Two sides in one keypair, and what is lost between them.

use super::*;

const LIMITS: Limits = Limits::PAPER;
const SAYS: Policy = Policy { hello: true, aes: true };
const ANSWERS: Policy = Policy { hello: false, aes: true };
const WITHOUT: Policy = Policy { hello: false, aes: false };
const AES: Suite = Suite::Aes256Gcm;
const CHACHA: Suite = Suite::ChaCha20Poly1305;
const JITTER: Duration = Duration::ZERO;

fn ms(millis: u64) -> Time {
    Time::from_nanos(1_000_000_000_000) + Duration::from_millis(millis)
}

struct Side {
    agreement: Agreement,
    policy: Policy,
    refused: u32,
}

impl Side {
    fn new(policy: Policy) -> Self {
        let mut side = Self { agreement: Agreement::default(), policy, refused: 0 };
        assert_eq!(side.agreement.begin(policy), policy.hello);
        side
    }

    fn suite(&self) -> Suite {
        self.agreement.suite(&LIMITS)
    }

    /// Everything that it has to say now. What it seals, it may seal.
    fn said(&mut self, now: Time) -> Vec<(Suite, Bytes)> {
        let mut said = Vec::new();
        while let Some((suite, frame)) = self.agreement.next(self.policy, now, JITTER) {
            assert!(self.agreement.may_seal(suite, &LIMITS), "{suite} was not declared");
            said.push((suite, frame));
        }
        assert!(!self.agreement.has_something_to_say());
        said
    }

    fn pass_time(&mut self, now: Time) {
        let (_, changes) = self.agreement.handle_timeout(now);
        self.refused += u32::from(changes.refused);
        assert!(!changes.agreed);
    }

    /// Takes a frame, and yields what is answered at once.
    fn take(&mut self, (suite, bytes): &(Suite, Bytes), now: Time) -> Option<(Suite, Bytes)> {
        if !self.agreement.opens(*suite) {
            return None;
        }
        let frame = Frame::parse(bytes).unwrap();
        match frame.operation {
            frame::Operation::Hello => {
                let hello = Hello::read(frame.body).unwrap();
                self.agreement.hello(self.policy, hello, !frame.is_answer(), now);
                None
            }
            frame::Operation::Ping => {
                let pong = frame::pong(frame.stream_id, frame::ping_data(&frame).unwrap(), 0);
                Some((if self.agreement.may_seal(*suite, &LIMITS) { *suite } else { CHACHA }, pong))
            }
            frame::Operation::Pong => {
                self.agreement.pong(*suite, &frame);
                None
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Lets both talk for some time; `lost` says which frames do not arrive (who sent, suite, first byte).
fn talk(sides: &mut [Side; 2], seconds: u64, mut lost: impl FnMut(usize, Suite, u8) -> bool) -> usize {
    let mut frames = 0;
    for millis in (0..seconds * 1000).step_by(50) {
        let now = ms(millis);
        for me in 0..2 {
            sides[me].pass_time(now);
            for said in sides[me].said(now) {
                frames += 1;
                if lost(me, said.0, said.1[0]) {
                    continue;
                }
                let Some(answer) = sides[1 - me].take(&said, now) else { continue };
                frames += 1;
                if !lost(1 - me, answer.0, answer.1[0]) {
                    assert!(sides[me].take(&answer, now).is_none());
                }
            }
        }
    }
    frames
}

#[test]
fn two_that_open_it_agree_whoever_says_hello() {
    for policies in [[SAYS, ANSWERS], [ANSWERS, SAYS], [SAYS, SAYS]] {
        let mut sides = policies.map(Side::new);
        let frames = talk(&mut sides, 20, |_, _, _| false);
        assert_eq!([sides[0].suite(), sides[1].suite()], [AES, AES]);
        assert!((6..=8).contains(&frames), "HELLO and its answer, a PING and a PONG each way: {frames}");
        assert!(sides.iter().all(|side| side.agreement.deadline().is_none()), "nothing is repeated");
    }
}

#[test]
fn who_does_not_open_it_or_says_nothing_gets_none() {
    for policies in [[SAYS, WITHOUT], [Policy { hello: true, ..WITHOUT }, ANSWERS], [ANSWERS, ANSWERS]] {
        let mut sides = policies.map(Side::new);
        let mut aes = 0;
        let frames = talk(&mut sides, 20, |_, suite, _| {
            aes += usize::from(suite == AES);
            false
        });
        assert_eq!([sides[0].suite(), sides[1].suite()], [CHACHA, CHACHA]);
        assert_eq!((aes, frames), (0, if policies[0].hello { 2 } else { 0 }), "{policies:?}");
    }
}

#[test]
fn a_hello_that_is_lost_is_said_three_times_and_leaves_what_there_is() {
    for (lost, agree) in [(1, true), (2, true), (3, false)] {
        let mut sides = [Side::new(SAYS), Side::new(ANSWERS)];
        let mut hellos = 0;
        talk(&mut sides, 30, |me, _, operation| {
            hellos += usize::from(me == 0 && operation == 0xb0);
            me == 0 && operation == 0xb0 && hellos <= lost
        });
        assert_eq!(hellos, (lost + 1).min(3));
        let suite = if agree { AES } else { CHACHA };
        assert_eq!([sides[0].suite(), sides[1].suite()], [suite, suite], "{lost} lost");
        assert!(sides.iter().all(|side| side.agreement.deadline().is_none()));
    }
    // The answer is lost instead: it is asked for again.
    let mut sides = [Side::new(SAYS), Side::new(ANSWERS)];
    let mut answers = 0;
    talk(&mut sides, 30, |me, _, operation| {
        answers += usize::from(me == 1 && operation == 0xb0);
        me == 1 && operation == 0xb0 && answers <= 2
    });
    assert_eq!((answers, sides[0].suite()), (3, AES));
}

/// A middlebox drops what has non-zero reserved bytes: both ways, or one way only.
#[test]
fn a_link_that_drops_marked_messages_keeps_both_sides_where_they_are() {
    for ways in [&[0, 1][..], &[0], &[1]] {
        let mut sides = [Side::new(SAYS), Side::new(ANSWERS)];
        let mut pings = [0, 0];
        talk(&mut sides, 30, |me, suite, operation| {
            pings[me] += u32::from(operation == 0xc0);
            suite == AES && ways.contains(&me)
        });
        assert_eq!([sides[0].suite(), sides[1].suite()], [CHACHA, CHACHA], "{ways:?}");
        assert_eq!((pings, [sides[0].refused, sides[1].refused]), ([3, 3], [1, 1]), "{ways:?}");
        assert!(sides.iter().all(|side| side.agreement.deadline().is_none()), "given up");
    }
}

#[test]
fn only_a_pong_to_our_own_ping_in_the_suite_itself_is_proof() {
    let mut side = Side::new(SAYS);
    side.said(ms(0));
    side.agreement.hello(SAYS, Hello { aes: true }, false, ms(1));
    assert_eq!(side.said(ms(1)).len(), 1);
    for (suite, number) in [(CHACHA, 1), (AES, 0), (AES, 2)] {
        let pong = frame::pong(number, &[1], 0);
        assert!(!side.agreement.pong(suite, &Frame::parse(&pong).unwrap()), "{suite} {number}");
        assert_eq!(side.suite(), CHACHA);
    }
    let pong = frame::pong(1, &[1], 0);
    assert!(side.agreement.pong(AES, &Frame::parse(&pong).unwrap()));
    assert_eq!(side.suite(), AES);
    assert!(!side.agreement.pong(AES, &Frame::parse(&pong).unwrap()), "once");
}

#[test]
fn nothing_is_opened_that_was_not_declared_nor_sealed_that_the_other_does_not_open() {
    let mut side = Side::new(ANSWERS);
    assert!(side.agreement.opens(CHACHA) && !side.agreement.opens(AES));
    assert!(side.agreement.may_seal(CHACHA, &LIMITS) && !side.agreement.may_seal(AES, &LIMITS));
    assert!(!side.agreement.take(1, &LIMITS));
    let pong = frame::pong(1, &[1], 0);
    assert!(!side.agreement.pong(AES, &Frame::parse(&pong).unwrap()), "no PING was sent");

    side.agreement.hello(ANSWERS, Hello { aes: false }, true, ms(0));
    side.said(ms(0));
    assert!(side.agreement.opens(AES), "our answer says so");
    assert!(
        !side.agreement.may_seal(AES, &LIMITS) && !side.agreement.take(1, &LIMITS),
        "it does not open it"
    );
    side.agreement.hello(ANSWERS, Hello { aes: true }, false, ms(1));
    assert!(side.agreement.may_seal(AES, &LIMITS) && side.agreement.take(1, &LIMITS));

    let mut without = Side::new(WITHOUT);
    without.agreement.hello(WITHOUT, Hello { aes: true }, true, ms(0));
    assert_eq!(without.said(ms(0)).len(), 1, "the answer");
    assert!(!without.agreement.opens(AES) && !without.agreement.may_seal(AES, &LIMITS));
}

#[test]
fn a_hello_is_answered_once_a_second_and_only_if_it_asks() {
    let mut side = Side::new(WITHOUT);
    let mut answers = |asks, millis| {
        side.agreement.hello(WITHOUT, Hello { aes: true }, asks, ms(millis));
        side.said(ms(millis)).len()
    };
    assert_eq!(answers(false, 0), 0);
    assert_eq!(answers(true, 1), 1);
    assert_eq!(answers(true, 1000), 0, "999 ms later");
    assert_eq!(answers(true, 1001), 1);
    assert_eq!(answers(false, 5000), 0);
}

#[test]
fn a_key_ends_where_the_limit_says() {
    let limits = Limits {
        aes_rekey_after_blocks: 100,
        aes_stop_after_blocks: 200,
        aes_reject_after_blocks: 300,
        ..Limits::PAPER
    };
    let mut sides = [Side::new(SAYS), Side::new(ANSWERS)];
    talk(&mut sides, 5, |_, _, _| false);
    let agreement = &mut sides[0].agreement;
    assert!(agreement.take(99, &limits) && !agreement.is_stale(&limits));
    assert!(agreement.take(1, &limits) && agreement.is_stale(&limits), "a new handshake");
    assert!(agreement.take(99, &limits));
    assert_eq!(agreement.suite(&limits), AES);
    assert!(agreement.take(1, &limits));
    assert_eq!(agreement.suite(&limits), CHACHA, "nothing more is reserved");
    assert!(!agreement.may_seal(AES, &limits));
    assert!(agreement.take(100, &limits), "what was reserved is sealed");
    assert!(!agreement.take(1, &limits) && agreement.take(0, &limits));
    assert!(!agreement.take(u64::MAX, &limits));
    // The figures themselves.
    let Limits { aes_rekey_after_blocks, aes_stop_after_blocks, aes_reject_after_blocks, .. } = Limits::PAPER;
    assert_eq!(aes_rekey_after_blocks, 1 << 34);
    let reject = u128::from(aes_reject_after_blocks);
    assert!(reject * reject <= 1 << 69 && (reject + 1) * (reject + 1) > 1 << 69, "2^34.5");
    assert_eq!(aes_reject_after_blocks - aes_stop_after_blocks, 1 << 17);
}
