//! A gateway that answers, or not, by a fake clock.

use super::*;

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn place(last: u8) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, last], 51820))
}

fn seen(rx_bytes: u64, awaits_answer: bool, last: u8) -> Seen {
    Seen { endpoint: Some(place(last)), rx_bytes, awaits_answer }
}

/// Looks as often as it is due; what was done, with the times in ms, until `end`.
fn done(contact: &mut Contact, seen: Seen, from: u64, end: u64) -> Vec<(u64, Steps)> {
    let (mut now, mut done) = (from, Vec::new());
    while now < end {
        let steps = contact.look(seen, at(now), |_| true);
        if steps != Steps::default() {
            done.push((now, steps));
        }
        let wait = contact.next_look(at(now));
        assert!(wait <= CALM);
        now += (wait.as_millis() as u64).max(1);
    }
    done
}

fn tried(done: &[(u64, Steps)]) -> Vec<(u64, SocketAddr)> {
    done.iter().filter(|(_, steps)| steps.renew).map(|(at, steps)| (*at, steps.endpoint.unwrap())).collect()
}

/// One that has answered from the first address.
fn connected(addresses: &[u8]) -> Contact {
    let mut contact = Contact::new(addresses.iter().map(|last| place(*last)).collect(), at(0));
    assert!(contact.look(seen(0, false, 1), at(0), |_| true).renew);
    assert_eq!(contact.look(seen(92, false, addresses[0]), at(10), |_| true), Steps::default());
    assert_eq!(contact.state(), State::Connected);
    contact
}

#[test]
fn addresses_are_tried_in_turn_each_longer_than_before_and_for_ever() {
    let mut contact = Contact::new(vec![place(1), place(2)], at(0));
    let tried = tried(&done(&mut contact, seen(0, true, 1), 0, 8000));
    let wanted = [(0, 1), (500, 2), (1000, 1), (2000, 2), (3000, 1), (5000, 2), (7000, 1)];
    assert_eq!(tried, wanted.map(|(at, last)| (at, place(last))));
    assert_eq!(contact.state(), State::Lost);
    let later = self::tried(&done(&mut contact, seen(0, true, 1), 8000, 200_000));
    assert!(later.windows(2).all(|pair| pair[0].1 != pair[1].1));
    let last = later.windows(2).last().unwrap();
    assert_eq!(last[1].0 - last[0].0, 5000);
    assert!(later.last().unwrap().0 > 190_000);
    // The answer comes from the other one: that is the first from now on.
    contact.look(seen(92, false, 2), at(200_000), |_| true);
    assert_eq!((contact.state(), contact.addresses()), (State::Connected, vec![place(2), place(1)]));
    assert_eq!(contact.next_look(at(200_000)), CALM);
}

#[test]
fn an_address_of_each_family_is_asked_at_once() {
    let sixth =
        |last: u16| SocketAddr::from((std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last), 51820));
    let mut contact = Contact::new(vec![sixth(1), place(1), sixth(2)], at(0));
    let rivals = |done: &[(u64, Steps)]| {
        done.iter().map(|(_, steps)| (steps.endpoint, steps.rival)).collect::<Vec<_>>()
    };
    let done = done(&mut contact, Seen::default(), 0, 1400);
    let wanted = [(sixth(1), Some(place(1))), (place(1), None), (sixth(2), None)];
    assert_eq!(rivals(&done), wanted.map(|(to, rival)| (Some(to), rival)));
    // Of a family that this host has no way to, none.
    contact.way_changed(Seen::default(), at(2000));
    let steps = contact.look(Seen::default(), at(2000), |address| address.is_ipv6());
    assert_eq!((steps.endpoint, steps.rival), (Some(sixth(1)), None));
}

#[test]
fn an_address_that_no_way_leads_to_is_passed_over() {
    let mut contact = Contact::new(vec![place(1), place(2)], at(0));
    let steps = contact.look(seen(0, true, 1), at(500), |address| address == place(1));
    assert_eq!((steps.endpoint, steps.renew), (Some(place(1)), true));
    // None at all: nothing is sent, and it is looked for again.
    let steps = contact.look(seen(0, true, 1), at(1000), |_| false);
    assert_eq!((steps.endpoint, steps.renew, steps.look_up), (None, false, true));
    assert!(contact.look(seen(0, true, 1), at(2000), |_| true).renew);
}

#[test]
fn another_way_asks_at_once_and_what_came_before_is_no_answer() {
    let mut contact = connected(&[1]);
    assert_eq!(done(&mut contact, seen(92, false, 1), 1000, 100_000), []);
    // More had come by the old way.
    contact.way_changed(seen(500, false, 1), at(100_000));
    assert_eq!(contact.next_look(at(100_000)), Duration::ZERO);
    let done = done(&mut contact, seen(500, true, 1), 100_000, 100_400);
    assert_eq!(tried(&done), [(100_000, place(1))]);
    assert_eq!(contact.state(), State::Connected, "not lost yet");
    contact.look(seen(592, false, 1), at(100_450), |_| true);
    assert_eq!(contact.next_look(at(100_450)), CALM);
}

#[test]
fn silence_to_data_asks_and_less_often_where_it_was_nothing() {
    let mut contact = connected(&[1]);
    let (mut rx_bytes, mut now, mut probes) = (92, 1000, Vec::new());
    // Data goes up, and the gateway has nothing to say but to handshakes.
    while now < 61_000 {
        let steps = contact.look(seen(rx_bytes, true, 1), at(now), |_| true);
        if steps.renew {
            assert!(!steps.look_up);
            probes.push(now);
            rx_bytes += 92;
        }
        now += 250;
    }
    let waits: Vec<_> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(probes[0], 2500);
    assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
    assert!(*waits.last().unwrap() >= 15_000 && probes.len() <= 7, "{probes:?}");
    // After a minute it is as impatient as before; a gateway that was away indeed makes it so at once.
    let late = now + 61_000;
    contact.look(seen(rx_bytes, false, 1), at(late), |_| true);
    let asked = tried(&done(&mut contact, seen(rx_bytes, true, 1), late, late + 10_000));
    assert_eq!(asked[0].0, late + 1500);
    assert!(asked.len() > 3);
    assert_eq!(contact.state(), State::Lost);
    contact.look(seen(rx_bytes + 1, false, 1), at(late + 10_000), |_| true);
    assert_eq!((contact.state(), contact.patience), (State::Connected, SILENCE));
}

#[test]
fn the_name_is_asked_for_after_a_round_and_what_it_yields_comes_first() {
    let mut contact = connected(&[1, 2]);
    contact.way_changed(seen(92, false, 1), at(10_000));
    let done = done(&mut contact, seen(92, true, 1), 10_000, 200_000);
    let asked: Vec<_> = done.iter().filter(|(_, steps)| steps.look_up).map(|(at, _)| *at).collect();
    assert_eq!(asked[0], 11_000, "after half a second for each of two");
    let pauses: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] < 8000 && pauses.windows(2).all(|pair| pair[0] <= pair[1] + 5000), "{pauses:?}");
    assert!(*pauses.last().unwrap() >= 60_000, "{pauses:?}");
    // Nothing new changes nothing.
    contact.looked_up(&[place(2)], at(200_000));
    assert_eq!(contact.addresses(), [place(2), place(1)]);
    contact.looked_up(&[place(3)], at(200_100));
    let steps = contact.look(seen(92, true, 1), at(200_100), |_| true);
    assert_eq!((steps.endpoint, steps.renew), (Some(place(3)), true), "at once");
    assert_eq!(contact.addresses(), [place(3), place(2), place(1)], "the good ones stay");
    let many: Vec<_> = (10..40).map(place).collect();
    contact.looked_up(&many, at(200_200));
    assert_eq!(contact.addresses().len(), MAX_ADDRESSES);
}

/// However often a gateway roams, the place that the profile names is not forgotten.
#[test]
fn a_gateway_that_roams_is_asked_where_it_was_heard_and_then_where_it_is_named() {
    let mut contact = connected(&[1]);
    for last in 2..60 {
        contact.look(seen(92 + u64::from(last), false, last), at(1000), |_| true);
        assert_eq!(contact.addresses(), [place(last), place(1)]);
    }
    // A name that was asked for meanwhile does not come before a place that answers.
    contact.looked_up(&[place(7)], at(2000));
    assert_eq!(contact.addresses(), [59, 7, 1].map(place));
    contact.way_changed(seen(200, false, 59), at(3000));
    let asked = tried(&done(&mut contact, seen(200, true, 59), 3000, 4500));
    assert_eq!(asked, [(3000, place(59)), (3500, place(7)), (4000, place(1))]);
}

#[test]
fn a_gateway_without_an_address_asks_for_its_name_only() {
    let mut contact = Contact::new(Vec::new(), at(0));
    let steps = contact.look(Seen::default(), at(0), |_| true);
    assert_eq!(steps, Steps { look_up: true, ..Steps::default() });
    contact.looked_up(&[place(1)], at(100));
    assert_eq!(contact.look(Seen::default(), at(100), |_| true).endpoint, Some(place(1)));
}

#[test]
fn sleep_is_boot_time_without_monotonic_time() {
    let mut sleep = Sleep::new(at(5000), at(1000));
    assert!(!sleep.look(at(6000), at(2000)), "a second awake");
    assert!(sleep.look(at(9000), at(2100)), "asleep");
    assert!(!sleep.look(at(10_000), at(3100)), "once");
    assert!(!sleep.look(at(10_500), at(3200)), "too short to tell");
    assert!(sleep.look(at(30_500), at(23_200)), "stopped");
    assert!(!sleep.look(at(30_000), at(23_000)), "a clock that runs backwards");
}
