//! Clients of a gateway with a real store and a recording data plane.

use super::*;
use crate::control::fake::{Call, Fake};
use crate::control::leases::Keeping;
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::lease::PoolSpec;
use crate::lease::ranges::Ranges;
use crate::sys::testing::Scratch;
use crate::wire::frame::{Frame, Operation, Problem};

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn pool(range: &str) -> PoolSpec {
    PoolSpec {
        name: "p".to_owned(),
        ranges: Ranges::from_iter([range.parse().unwrap()]),
        ipv6: "fd64::/64".parse().ok(),
        lease_time: 3600,
        quarantine: 0,
        groups: Vec::new(),
        drain: false,
    }
}

/// A gateway with two workers and the peers 1 to 3, of which the third has an address by name.
fn gateway(name: &str, range: &str) -> (Control<Fake>, Scratch) {
    let scratch = Scratch::new(name);
    let keeping = Keeping { path: &scratch.0.join("store.db"), history: 30, account: None };
    let (mut leases, _) = Leases::open(&[pool(range)], keeping).unwrap();
    let (mut device, mut dataplane) = (Device::new(0), Fake::new(2));
    let member = Membership::default();
    let mut change = |n: u8| {
        let home = home(&device, &mut leases, &member, key(n));
        PeerChange { home, ..PeerChange::new(key(n)) }
    };
    let by_name = AllowedIp::Add("100.64.9.9/32".parse().unwrap());
    let peers =
        vec![change(1), change(2), PeerChange { allowed_ips: vec![by_name], ..PeerChange::new(key(3)) }];
    device.apply(SetRequest { peers, ..SetRequest::default() }, &mut dataplane).unwrap();
    dataplane.take();
    let mut clients = Clients::default();
    let settings = Settings { mtu: 1420, ..Settings::default() };
    clients.configure(vec!["100.64.0.1/10".parse().unwrap()], settings, HashMap::new());
    let (leases, events) = (Some(leases), super::super::events::Events::default());
    let sessions = super::super::sessions::Sessions::default();
    (Control { device, dataplane, reload: None, leases, clients, events, sessions, peers: None }, scratch)
}

fn asked(control: &Control<Fake>, n: u8, what: Wish) -> Asked {
    let peer = control.device.peer(&key(n)).unwrap().id();
    Asked { peer, suite: Suite::ChaCha20Poly1305, stream_id: 7, what }
}

fn addresses() -> Wish {
    Wish::Addresses(AddrRequest::default())
}

/// Asks, waits for the store, and says what was told; the other calls come first.
fn lease(control: &mut Control<Fake>, n: u8) -> (Vec<Call>, Said) {
    let wish = asked(control, n, addresses());
    if let Some((waiting, decided)) = begin(control, wish) {
        assert_eq!(control.dataplane.take(), [], "nothing is told before it is stored");
        let stored = decided.wait();
        finish(control, waiting, stored);
    }
    let mut calls = control.dataplane.take();
    let Some(Call::Frame(peer, _, frame)) = calls.pop() else { panic!("{calls:?}") };
    assert_eq!(Some(peer), control.device.peer(&key(n)).map(Peer::id));
    (calls, said(&frame))
}

/// What a client was told.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Address(Ipv4Addr, u8, Option<Ipv6Addr>, u32),
    Problem(u64, Option<u64>),
}

fn said(frame: &[u8]) -> Said {
    let frame = Frame::parse(frame).unwrap();
    assert_eq!(frame.stream_id, 7);
    if frame.operation == Operation::Problem {
        let problem = Problem::read(frame.body).unwrap();
        return Said::Problem(problem.code, problem.retry_after);
    }
    let (reply, _) = AddrReply::read(frame.body).unwrap();
    assert_eq!((reply.usage_id, reply.usage_id > 0), (frame.usage_id, true));
    let (v4, len) = reply.ipv4.unwrap();
    Said::Address(v4, len, reply.ipv6.map(|(v6, _)| v6), reply.seconds)
}

fn own(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, 0, n)
}

fn v6(n: u8) -> Ipv6Addr {
    format!("fd64::6440:{n:x}").parse().unwrap()
}

fn changes(control: &Control<Fake>) -> Vec<(u8, Ipv4Addr, LeaseChange)> {
    let each = control.events.since(0).map(|event| {
        let What::Lease { client, address, change, .. } = event.what else { panic!("{event:?}") };
        (client.0[0], address, change)
    });
    each.collect()
}

fn leased(control: &Control<Fake>, n: u8) -> Vec<String> {
    control.device.peer(&key(n)).unwrap().leased().iter().map(ToString::to_string).collect()
}

#[test]
fn a_lease_is_in_force_before_it_is_told_and_a_repeat_renews_it() {
    let (mut control, _scratch) = gateway("given", "100.64.0.4-100.64.0.9");
    let (calls, told) = lease(&mut control, 1);
    assert_eq!(told, Said::Address(own(4), 10, Some(v6(4)), 3600));
    assert!(matches!(&calls[..], [Call::AddPrefixes(both)] if both.len() == 2), "{calls:?}");
    let (calls, told) = lease(&mut control, 1);
    assert_eq!(
        (calls, told),
        (vec![], Said::Address(own(4), 10, Some(v6(4)), 3600)),
        "workers learn nothing new"
    );
    assert_eq!(lease(&mut control, 2).1, Said::Address(own(5), 10, Some(v6(5)), 3600));
    let given = |n, address| (n, own(address), LeaseChange::Given);
    assert_eq!(changes(&control), [given(1, 4), (1, own(4), LeaseChange::Renewed), given(2, 5)]);
    let counts = control.clients.counts();
    assert_eq!((counts.given, counts.renewed), (2, 1));
    // Each is owned by whom its address hashes to, known when it was made.
    for (n, worker) in [(1, 0), (2, 1)] {
        assert_eq!(control.device.peer(&key(n)).unwrap().worker(), WorkerId(worker));
    }
    // A reload that says nothing of it takes nothing away.
    let replace = PeerChange { replace_allowed_ips: true, ..PeerChange::new(key(1)) };
    let request = SetRequest { peers: vec![replace], ..SetRequest::default() };
    control.device.apply(request, &mut control.dataplane).unwrap();
    assert_eq!((control.dataplane.take(), leased(&control, 1).len()), (vec![], 2));
}

#[test]
fn what_is_over_is_taken_away_and_may_be_anothers() {
    let (mut control, _scratch) = gateway("over", "100.64.0.4");
    assert!(matches!(lease(&mut control, 1).1, Said::Address(..)));
    assert_eq!(lease(&mut control, 2).1, Said::Problem(1, Some(60)));
    control.leases.as_mut().unwrap().advance(3540);
    assert!(!expire(&mut control));
    assert_eq!(control.dataplane.take(), []);
    // Made longer without the client's having been told: it keeps its address.
    let wish = asked(&control, 1, addresses());
    drop(begin(&mut control, wish));
    control.leases.as_mut().unwrap().advance(60);
    expire(&mut control);
    assert_eq!((control.dataplane.take(), leased(&control, 1).len()), (vec![], 2));
    control.leases.as_mut().unwrap().advance(3600);
    expire(&mut control);
    assert!(matches!(&control.dataplane.take()[..], [Call::RemovePrefixes(both)] if both.len() == 2));
    assert_eq!(changes(&control).last(), Some(&(1, own(4), LeaseChange::Expired)));
    assert!(matches!(lease(&mut control, 2).1, Said::Address(..)));
    assert_eq!((leased(&control, 1).len(), leased(&control, 2).len()), (0, 2));
    // Over and another's before anybody has looked: never two have it.
    control.leases.as_mut().unwrap().advance(3600);
    let (calls, _) = lease(&mut control, 1);
    assert!(matches!(&calls[..], [Call::RemovePrefixes(_), Call::AddPrefixes(_)]), "{calls:?}");
    assert_eq!((leased(&control, 1).len(), leased(&control, 2).len()), (2, 0));
    expire(&mut control);
    assert_eq!(control.dataplane.take(), []);
}

#[test]
fn who_goes_has_nothing_and_what_was_being_stored_is_not_told() {
    let (mut control, _scratch) = gateway("goes", "100.64.0.4-100.64.0.9");
    lease(&mut control, 1);
    let wish = asked(&control, 1, addresses());
    let (waiting, decided) = begin(&mut control, wish).unwrap();
    for round in 0..2 {
        let wish = asked(&control, 1, Wish::Disconnect);
        assert!(begin(&mut control, wish).is_none());
        let calls = control.dataplane.take();
        assert_eq!(matches!(&calls[..], [Call::RemovePrefixes(_)]), round == 0, "{calls:?}");
    }
    let stored = decided.wait();
    finish(&mut control, waiting, stored);
    assert_eq!((control.dataplane.take(), leased(&control, 1)), (vec![], Vec::<String>::new()));
    assert_eq!(changes(&control).last(), Some(&(1, own(4), LeaseChange::Released)));
    assert_eq!((control.clients.counts().released, changes(&control).len()), (1, 2));
    assert!(matches!(lease(&mut control, 1).1, Said::Address(address, ..) if address == own(4)));
    // A peer that is gone is told nothing.
    let wish = asked(&control, 1, addresses());
    let (waiting, decided) = begin(&mut control, wish).unwrap();
    let gone = PeerChange { remove: true, ..PeerChange::new(key(1)) };
    control
        .device
        .apply(SetRequest { peers: vec![gone], ..SetRequest::default() }, &mut control.dataplane)
        .unwrap();
    control.dataplane.take();
    let stored = decided.wait();
    finish(&mut control, waiting, stored);
    assert_eq!(control.dataplane.take(), []);
    control.leases.as_mut().unwrap().advance(3600);
    assert!(!expire(&mut control));
}

#[test]
fn refusals_have_their_codes() {
    let (mut control, _scratch) = gateway("codes", "100.64.0.4-100.64.0.9");
    // By name: told, not leased.
    assert_eq!(lease(&mut control, 3).1, Said::Address(Ipv4Addr::new(100, 64, 9, 9), 10, None, 86_400));
    assert_eq!(control.leases.as_ref().unwrap().usage("p").unwrap().leased, 0);
    let only_v6 = AddrRequest { families: Families { ipv4: false, ipv6: true }, ..AddrRequest::default() };
    let wish = asked(&control, 3, Wish::Addresses(only_v6));
    assert!(begin(&mut control, wish).is_none());
    assert!(
        matches!(&control.dataplane.take()[..], [Call::Frame(_, _, frame)] if said(frame) == Said::Problem(1, None))
    );
    // The address that is set aside is given to another by name.
    let taken = PeerChange {
        allowed_ips: vec![AllowedIp::Add("100.64.0.4/32".parse().unwrap())],
        ..PeerChange::new(key(3))
    };
    control
        .device
        .apply(SetRequest { peers: vec![taken], ..SetRequest::default() }, &mut control.dataplane)
        .unwrap();
    control.dataplane.take();
    assert_eq!(lease(&mut control, 1), (vec![], Said::Problem(4, Some(60))));
    assert_eq!(leased(&control, 1), Vec::<String>::new());
    // The store does not keep up, or is full.
    let wish = asked(&control, 2, addresses());
    let (waiting, _) = begin(&mut control, wish).unwrap();
    finish(&mut control, waiting, Err(StoreError::Full("store.db".into())));
    assert!(
        matches!(&control.dataplane.take()[..], [Call::Frame(_, _, frame)] if said(frame) == Said::Problem(1, Some(10)))
    );
    assert_eq!(leased(&control, 2), Vec::<String>::new());
    assert!(matches!(lease(&mut control, 2).1, Said::Address(..)), "it heals");
    // No pool for it, and no pools at all.
    let member = Membership { pool: "none".to_owned(), ..Membership::default() };
    control.clients.configure(Vec::new(), Settings::default(), HashMap::from([(key(2), member)]));
    assert_eq!(lease(&mut control, 2).1, Said::Problem(5, None));
    assert_eq!(leased(&control, 2).len(), 2, "what it has it has until it ends");
    control.leases = None;
    assert_eq!(lease(&mut control, 1).1, Said::Problem(5, None));
    let counts: Vec<_> = control.clients.counts().problems().map(|(_, count)| count).collect();
    assert_eq!(counts, [2, 0, 0, 1, 2, 0, 0]);
}

#[test]
fn leases_of_a_former_life_are_in_force_again() {
    let (mut control, scratch) = gateway("adopt", "100.64.0.4-100.64.0.9");
    lease(&mut control, 1);
    control.leases = None;
    let keeping = Keeping { path: &scratch.0.join("store.db"), history: 30, account: None };
    let (leases, _) = Leases::open(&[pool("100.64.0.4-100.64.0.9")], keeping).unwrap();
    let (mut device, mut dataplane) = (Device::new(0), Fake::new(2));
    let peers = vec![PeerChange::new(key(1)), PeerChange::new(key(2))];
    device.apply(SetRequest { peers, ..SetRequest::default() }, &mut dataplane).unwrap();
    (control.device, control.dataplane, control.leases) = (device, dataplane, Some(leases));
    control.clients = Clients::default();
    adopt(&mut control);
    adopt(&mut control);
    assert_eq!(leased(&control, 1), ["100.64.0.4/32", &format!("{}/128", v6(4))]);
    assert_eq!(leased(&control, 2), Vec::<String>::new());
    control.leases.as_mut().unwrap().advance(3600);
    expire(&mut control);
    assert_eq!(leased(&control, 1), Vec::<String>::new());
}

#[test]
fn what_a_client_calls_itself_is_kept_as_it_last_said() {
    let (mut control, _scratch) = gateway("hostname", "100.64.0.10-100.64.0.20");
    let mut ask = |hostname: &str| {
        let hostname = arrayvec::ArrayString::from(hostname).unwrap();
        let wish = asked(&control, 1, Wish::Addresses(AddrRequest { hostname, ..AddrRequest::default() }));
        let _ = begin(&mut control, wish);
        control.clients.hostname(&key(1)).map(str::to_owned)
    };
    assert_eq!(ask("").as_deref(), None);
    assert_eq!(ask("laptop").as_deref(), Some("laptop"));
    assert_eq!(ask("phone").as_deref(), Some("phone"));
    assert_eq!(control.clients.hostname(&key(2)), None);
}
