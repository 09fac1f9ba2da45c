use std::net::Ipv4Addr;

use super::*;
use crate::wire::frame;

const OWN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 7);

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

/// The request that is due at that time.
fn asked(client: &mut Leasing, now: Time) -> (u32, u32, AddrRequest) {
    let bytes = client.next_frame(now).expect("a request is due");
    assert_eq!(client.next_frame(now), None, "once");
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!(frame.operation, Operation::AddrRequest);
    (frame.stream_id, frame.usage_id, AddrRequest::read(frame.body).unwrap())
}

fn reply(stream_id: u32, address: Ipv4Addr, seconds: u32) -> Vec<u8> {
    let reply = AddrReply { ipv4: Some((address, 10)), seconds, usage_id: 9, ..AddrReply::default() };
    reply.write(&Settings { mtu: 1420, ..Settings::default() }, stream_id)
}

fn take(client: &mut Leasing, bytes: &[u8], now: Time) -> Option<Outcome> {
    client.handle(&Frame::parse(bytes).unwrap(), now)
}

fn started() -> (Leasing, u32) {
    let mut client = Leasing::new(AddrRequest::default(), 1);
    assert_eq!((client.deadline(), client.next_frame(at(0))), (None, None));
    client.start(at(0));
    let (stream_id, ..) = asked(&mut client, at(0));
    (client, stream_id)
}

fn leased(seconds: u32) -> Leasing {
    let (mut client, stream_id) = started();
    let outcome = take(&mut client, &reply(stream_id, OWN, seconds), at(0));
    assert!(matches!(outcome, Some(Outcome::Given(offer)) if offer.0.ipv4 == Some((OWN, 10))));
    client
}

#[test]
fn a_request_is_repeated_with_back_off_until_it_is_answered() {
    let (mut client, stream_id) = started();
    let mut now = at(0);
    for wait in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000] {
        let due = client.deadline().unwrap();
        let waited = due.since(now).as_millis() as u64;
        assert!((wait..wait + wait / 8).contains(&waited), "{waited} for {wait}");
        assert_eq!(client.next_frame(now + Duration::from_millis(wait - 1)), None);
        assert_eq!(asked(&mut client, due).0, stream_id, "the same request");
        now = due;
    }
    // A session that begins anew asks at once, and never twice.
    client.start(now);
    let (next, ..) = asked(&mut client, now);
    assert_ne!(next, stream_id);
    assert_eq!(take(&mut client, &reply(stream_id, OWN, 60), now), None, "an answer to a former request");
    assert!(take(&mut client, &reply(next, OWN, 60), now).is_some());
    let delays = |seed| {
        let mut client = Leasing::new(AddrRequest::default(), seed);
        client.start(at(0));
        asked(&mut client, at(0));
        client.deadline()
    };
    assert_ne!(delays(1), delays(2), "many clients do not repeat at the same time");
}

#[test]
fn a_lease_is_renewed_at_half_of_its_time_for_the_same_address() {
    let mut client = leased(1000);
    assert_eq!(client.offer().map(|offer| offer.0.ipv4), Some(Some((OWN, 10))));
    let due = client.deadline().unwrap();
    assert!((437_500..=500_000).contains(&(due.as_nanos() / 1_000_000)), "{due:?}");
    let (stream_id, usage_id, request) = asked(&mut client, due);
    assert_eq!((usage_id, request.ipv4), (9, Some(OWN)));
    assert_eq!(take(&mut client, &reply(stream_id, OWN, 900), due), Some(Outcome::Renewed));
    assert!(client.deadline().unwrap() > due + Duration::from_secs(390));
    // Another address is another offer.
    let due = client.deadline().unwrap();
    let (stream_id, ..) = asked(&mut client, due);
    let other = Ipv4Addr::new(100, 64, 0, 8);
    assert!(matches!(take(&mut client, &reply(stream_id, other, 900), due), Some(Outcome::Given(_))));
    // A gateway that names hardly any time is not asked all the time.
    let client = leased(0);
    assert!(client.deadline().unwrap() > at(4000));
}

#[test]
fn what_is_not_renewed_ends_and_is_asked_for_again() {
    let mut client = leased(100);
    let mut requests = 0;
    let mut ended = None;
    for second in 0..300 {
        let now = at(second * 1000);
        match client.handle_timeout(now) {
            Some(Outcome::Expired) => ended = Some(second),
            other => assert_eq!(other, None),
        }
        requests += u32::from(client.next_frame(now).is_some());
    }
    assert_eq!((ended, client.offer()), (Some(100), None));
    assert!((10..=16).contains(&requests), "{requests}");
}

#[test]
fn a_problem_says_when_to_ask_again_or_never() {
    let problem = |id, code, retry| frame::problem_with(id, code, retry, None);
    let (mut client, stream_id) = started();
    let outcome = take(&mut client, &problem(stream_id, Code::NoFreeAddr, Some(60)), at(100));
    assert!(matches!(outcome, Some(Outcome::Refused(problem)) if problem.code == 1));
    let due = client.deadline().unwrap();
    assert!((60_100..67_600).contains(&(due.as_nanos() / 1_000_000)), "{due:?}");
    assert_eq!(asked(&mut client, due).0, stream_id);
    // Without a time as if there were no answer; of another request nothing.
    assert!(take(&mut client, &problem(stream_id, Code::NotAllowed, None), due).is_some());
    assert!(client.deadline().unwrap() <= due + Duration::from_millis(2250));
    assert_eq!(take(&mut client, &problem(stream_id + 1, Code::BadRequest, None), due), None);
    assert!(take(&mut client, &problem(stream_id, Code::BadRequest, None), due).is_some());
    assert_eq!(client.deadline(), None, "asking is no use");
    // What the gateway says by itself changes no request.
    let mut client = leased(100);
    let before = client.deadline();
    assert_eq!(take(&mut client, &problem(0, Code::TunnelDown, None), at(1)), Some(Outcome::GatewayStops));
    let lost = frame::problem_with(0, Code::PacketLost, None, Some(3));
    assert_eq!(take(&mut client, &lost, at(1)), Some(Outcome::PacketsLost(3)));
    assert_eq!(take(&mut client, &problem(0, Code::NotAllowed, None), at(1)), Some(Outcome::Dismissed));
    assert_eq!((client.deadline(), client.offer().is_some()), (before, true));
}

#[test]
fn a_problem_is_a_clause_for_people() {
    let said = |code: u64, retry_after, told| words(&Problem { code, retry_after, lost: None }, told);
    let free = "the gateway has no free address for this client";
    assert_eq!(said(1, None, "x"), free);
    assert_eq!(said(1, Some(60), "x"), format!("{free}; it is asked again after 60 s"));
    assert_eq!(said(5, None, "no pool"), "the gateway says: no pool");
    assert_eq!(said(99, None, ""), "the gateway refuses, with the number 99");
    for code in Code::ALL {
        assert!(said(*code as u64, None, "").starts_with("the gateway "), "{code:?}");
    }
}

#[test]
fn no_lease_is_believed_to_last_longer_than_that() {
    for (longest, seconds) in [(100, 100), (3, 10), (2000, 1000)] {
        let mut client = Leasing::new(AddrRequest::default(), 1).at_most(Duration::from_secs(longest));
        client.start(at(0));
        let (stream_id, ..) = asked(&mut client, at(0));
        take(&mut client, &reply(stream_id, OWN, 1000), at(0));
        assert_eq!(client.until(), Some(at(seconds * 1000)));
    }
}

#[test]
fn who_leaves_has_nothing_and_asks_no_more() {
    let mut client = leased(100);
    let bytes = client.leave();
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!((frame.operation, frame.usage_id), (Operation::Disconnect, 9));
    assert_eq!((client.offer(), client.deadline()), (None, None));
    client.start(at(5));
    assert_eq!(asked(&mut client, at(5)).1, 9);
    // An answer to nothing: it was never asked for.
    let mut client = Leasing::new(AddrRequest::default(), 1);
    assert_eq!(take(&mut client, &reply(0, OWN, 60), at(0)), None);
    client.start(at(0));
    assert_eq!(take(&mut client, &reply(1, OWN, 60), at(0)), None, "nothing was sent yet");
}
