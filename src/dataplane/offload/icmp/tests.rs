use proptest::prelude::*;

use super::*;
use crate::dataplane::offload::packets::{Spec, noise};
use crate::wire::checksum::tests::naive;

const START: Time = Time::from_nanos(5_000_000_000_000);

fn at(after: Duration) -> Time {
    Time::from_nanos(START.as_nanos() + after.as_nanos() as u64)
}

fn large(v6: bool) -> Vec<u8> {
    Spec { v6, payload: noise(1, 1500), ..Spec::default() }.packet()
}

fn answerable(packet: &[u8]) -> bool {
    may_answer(packet, &ip::Header::parse(packet).unwrap())
}

#[test]
fn the_answer_names_the_mtu_and_quotes_the_packet() {
    for (v6, most, kind, mtu_at) in [(false, 576, [3, 4], 6), (true, 1280, [2, 0], 4)] {
        let packet = large(v6);
        let header = ip::Header::parse(&packet).unwrap();
        let mut out = [0xaa; MOST];
        let len = too_big(&packet, &header, 1400, &mut out).unwrap();
        assert_eq!(len, most);
        let answer = ip::Header::parse(&out[..len]).unwrap();
        assert_eq!((answer.src, answer.dst, answer.total_len), (header.dst, header.src, len));
        assert_eq!(answer.upper_layer(&out).unwrap().0, if v6 { ip::ICMPV6 } else { ip::ICMP });
        let message = &out[answer.header_len..len];
        assert_eq!(message[..2], kind);
        let mtu = message[mtu_at..8].iter().fold(0, |mtu, byte| mtu << 8 | u32::from(*byte));
        assert_eq!(mtu, 1400);
        assert_eq!(message[8..], packet[..len - answer.header_len - 8]);
        if v6 {
            let mut text = out[8..40].to_vec();
            text.extend((message.len() as u32).to_be_bytes());
            text.extend([0, 0, 0, 58]);
            text.extend(message);
            assert_eq!(naive(&text), 0xffff);
        } else {
            assert_eq!((naive(&out[..20]), naive(message)), (0xffff, 0xffff));
        }
    }
    // A short packet is quoted whole.
    let packet = Spec { payload: vec![1], ..Spec::default() }.packet();
    let len = too_big(&packet, &ip::Header::parse(&packet).unwrap(), 68, &mut [0; MOST]);
    assert_eq!(len, Some(20 + 8 + packet.len()));
    // No MTU is told that the family does not have.
    for (v6, mtu, told) in [(true, 1000, [0, 0, 5, 0]), (false, 70_000, [0, 0, 0xff, 0xff])] {
        let (packet, mut out) = (large(v6), [0; MOST]);
        too_big(&packet, &ip::Header::parse(&packet).unwrap(), mtu, &mut out).unwrap();
        let at = if v6 { 40 } else { 20 };
        assert_eq!(out[at + 4..at + 8], told);
    }
}

#[test]
fn what_is_too_large() {
    let (v4, v6) = (large(false), large(true));
    let (v4, v6) = (ip::Header::parse(&v4).unwrap(), ip::Header::parse(&v6).unwrap());
    for header in [&v4, &v6] {
        assert!(is_too_large(header, 1421, 1420) && !is_too_large(header, 1420, 1420));
        assert!(!is_too_large(header, 65_535, 0), "not known");
    }
    assert!(is_too_large(&v4, 1001, 1000));
    assert!(!is_too_large(&v6, 1280, 1000), "IPv6 takes no less");
}

#[test]
fn what_is_never_answered() {
    assert!(answerable(&large(false)) && answerable(&large(true)));
    let changed = |v6, at: usize, bytes: &[u8]| {
        let mut packet = large(v6);
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        answerable(&packet)
    };
    assert!(!changed(false, 6, &[0, 0]), "may be fragmented");
    assert!(changed(false, 6, &[0x60, 0]), "a first fragment");
    assert!(!changed(false, 6, &[0x40, 9]), "a later fragment");
    for address in [[224, 0, 0, 1], [255, 255, 255, 255], [0, 0, 0, 0], [127, 0, 0, 1], [240, 0, 0, 1]] {
        for at in [12, 16] {
            assert!(!changed(false, at, &address), "{address:?} at {at}");
        }
    }
    let multicast = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut loopback = [0; 16];
    loopback[15] = 1;
    for address in [multicast, [0; 16], loopback] {
        for at in [8, 24] {
            assert!(!changed(true, at, &address), "{address:?} at {at}");
        }
    }
    // Protocol, and the type where the transport header begins.
    let icmp = |v6: bool, kind: u8| {
        let mut packet = large(v6);
        let (protocol_at, number, header) = if v6 { (6, 58, 40) } else { (9, 1, 20) };
        packet[protocol_at] = number;
        packet[header] = kind;
        answerable(&packet)
    };
    assert!([0, 8].into_iter().chain(13..=18).all(|kind| icmp(false, kind)), "questions and answers");
    assert!([3, 4, 5, 11, 12, 200].into_iter().all(|kind| !icmp(false, kind)), "errors");
    assert!(icmp(true, 128) && icmp(true, 129), "echo");
    assert!([1, 2, 3, 4, 127, 137].into_iter().all(|kind| !icmp(true, kind)), "errors, redirect");
    let later = [ip::TCP, 0, 0, 9, 0, 0, 0, 1];
    let mut packet = large(true);
    packet[6] = 44;
    packet[40..48].copy_from_slice(&later);
    assert!(!answerable(&packet), "a later fragment");
    packet[42..44].copy_from_slice(&[0, 1]);
    assert!(answerable(&packet), "a first fragment");
}

#[test]
fn the_first_packets_pass_and_a_change_of_the_mtu_begins_anew() {
    let packet = large(false);
    let header = ip::Header::parse(&packet).unwrap();
    let mut answers = Answers::default();
    let judge = |answers: &mut Answers, tenths: u64| {
        answers.judge(&packet, &header, at(Duration::from_millis(tenths * 100)))
    };
    assert_eq!(judge(&mut answers, 0), Verdict::Pass);
    assert_eq!(judge(&mut answers, 29), Verdict::Pass);
    assert_eq!(judge(&mut answers, 30), Verdict::Answer);
    answers.forget();
    assert_eq!(judge(&mut answers, 31), Verdict::Pass);
    assert_eq!(judge(&mut answers, 61), Verdict::Answer);
    // Quiet for ten seconds: who knows what happened.
    assert_eq!(judge(&mut answers, 161), Verdict::Pass);
}

#[test]
fn answers_are_limited() {
    let packet = large(true);
    let header = ip::Header::parse(&packet).unwrap();
    let mut answers = Answers::default();
    answers.judge(&packet, &header, START);
    let mut count = |from: u64, to: u64| {
        (from..to)
            .filter(|ms| {
                let verdict = answers.judge(&packet, &header, at(DOUBT + Duration::from_millis(*ms)));
                assert_ne!(verdict, Verdict::Pass);
                verdict == Verdict::Answer
            })
            .count() as u64
    };
    let first = count(0, 1000);
    assert!((RATE..=RATE + BURST).contains(&first), "{first}");
    assert!(first > RATE + BURST / 2, "a burst: {first}");
    let second = count(1000, 2000);
    assert!((RATE - 1..=RATE + 1).contains(&second), "{second}");
}

proptest! {
    #[test]
    fn any_packet(bytes in proptest::collection::vec(any::<u8>(), 0..1600), v6 in any::<bool>(), mtu in any::<u32>()) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let length = bytes.len() as u16;
        if bytes.len() >= 40 {
            let (at, value) = if v6 { (4, length - 40) } else { (2, length) };
            bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        if let Some(header) = ip::Header::parse(&bytes) {
            may_answer(&bytes, &header);
            let len = too_big(&bytes, &header, mtu, &mut [0; MOST]).unwrap();
            let most = if v6 { 1280 } else { 576 };
            prop_assert!(len <= most);
        }
    }
}
