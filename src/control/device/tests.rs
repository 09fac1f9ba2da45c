//! The rules one by one, then random requests against a naive model.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::control::fake::{Call, Fake};

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn change(n: u8, ips: &[&str]) -> PeerChange {
    let allowed_ips = ips
        .iter()
        .map(|text| match text.strip_prefix('-') {
            Some(text) => AllowedIp::Remove(prefix(text)),
            None => AllowedIp::Add(prefix(text)),
        })
        .collect();
    PeerChange { allowed_ips, ..PeerChange::new(key(n)) }
}

fn set(peers: Vec<PeerChange>) -> SetRequest {
    SetRequest { peers, ..SetRequest::default() }
}

/// A device, a fake with two workers, and these peers.
fn start(peers: Vec<PeerChange>) -> (Device, Fake) {
    let (mut device, mut fake) = (Device::new(0), Fake::new(2));
    device.apply(set(peers), &mut fake).unwrap();
    fake.take();
    (device, fake)
}

fn id(device: &Device, n: u8) -> PeerId {
    device.peer(&key(n)).unwrap().id()
}

#[test]
fn an_empty_request_says_nothing() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.1/32"])]);
    device.apply(SetRequest::default(), &mut fake).unwrap();
    assert_eq!(fake.take(), []);
}

#[test]
fn a_change_touches_its_peer_only() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.1/32"]), change(2, &["10.0.0.2/32"])]);
    let two = id(&device, 2);
    let keepalive = PeerChange { keepalive: Some(Some(25)), ..change(2, &["10.0.0.2/32", "10.2.0.0/16"]) };
    device.apply(set(vec![keepalive]), &mut fake).unwrap();
    let worker = WorkerId(0);
    assert_eq!(
        fake.take(),
        [
            Call::AddPrefixes(vec![Assignment { prefix: prefix("10.2.0.0/16"), peer: two, worker }]),
            Call::Keepalive(two, Some(25)),
        ]
    );
}

/// Of 1 KiB that a configured peer costs in all tables (docs/decisions/0057-idle-peers.md).
#[test]
fn a_peer_of_one_address_stands_in_its_slot() {
    assert!(size_of::<Slot>() <= 152, "{}", size_of::<Slot>());
    let (device, _) = start(vec![change(1, &["10.0.0.1/32", "fd00::1/128"])]);
    let peer = device.peer(&key(1)).unwrap();
    assert!(matches!(peer.prefixes, Prefixes::Few(_)), "{peer:?}");
}

#[test]
fn replacing_by_the_same_says_nothing() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.1/32", "fd00::/64"])]);
    let again = PeerChange { replace_allowed_ips: true, ..change(1, &["fd00::/64", "10.0.0.1/32"]) };
    device.apply(set(vec![again]), &mut fake).unwrap();
    assert_eq!(fake.take(), []);
    let other = PeerChange { replace_allowed_ips: true, ..change(1, &["fd00::/64"]) };
    device.apply(set(vec![other]), &mut fake).unwrap();
    assert_eq!(fake.take(), [Call::RemovePrefixes(vec![prefix("10.0.0.1/32")])]);
}

#[test]
fn a_prefix_moves_by_removal_first() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.0/8"]), change(2, &[])]);
    device.apply(set(vec![change(2, &["10.0.0.0/8"])]), &mut fake).unwrap();
    let two = device.peer(&key(2)).unwrap();
    let (peer, worker) = (two.id(), two.worker());
    assert_eq!(
        fake.take(),
        [
            Call::RemovePrefixes(vec![prefix("10.0.0.0/8")]),
            Call::AddPrefixes(vec![Assignment { prefix: prefix("10.0.0.0/8"), peer, worker }]),
        ]
    );
    assert_eq!(device.peer(&key(1)).unwrap().prefixes().count(), 0);
}

#[test]
fn only_the_owner_loses_a_prefix() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.0/8"]), change(2, &[])]);
    device.apply(set(vec![change(2, &["-10.0.0.0/8"])]), &mut fake).unwrap();
    assert_eq!(fake.take(), []);
    device.apply(set(vec![change(1, &["-10.0.0.0/8", "-10.0.0.0/9"])]), &mut fake).unwrap();
    assert_eq!(fake.take(), [Call::RemovePrefixes(vec![prefix("10.0.0.0/8")])]);
}

#[test]
fn update_only_and_remove_need_a_peer() {
    let (mut device, mut fake) = start(vec![]);
    let update = PeerChange { update_only: true, ..change(1, &["10.0.0.1/32"]) };
    let remove = PeerChange { remove: true, ..change(2, &["10.0.0.2/32"]) };
    device.apply(set(vec![update, remove]), &mut fake).unwrap();
    assert_eq!(fake.take(), []);
    assert!(device.peers().is_empty());
}

#[test]
fn a_removed_peer_loses_its_prefixes_first_and_its_slot_gets_a_new_generation() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.1/32"])]);
    let old = id(&device, 1);
    device
        .apply(
            set(vec![PeerChange { remove: true, ..change(1, &[]) }, change(1, &["10.0.0.1/32"])]),
            &mut fake,
        )
        .unwrap();
    let new = id(&device, 1);
    assert_eq!((new.slot, new.generation), (old.slot, old.generation + 1));
    let moved = prefix("10.0.0.1/32");
    assert_eq!(
        fake.take(),
        [
            Call::RemovePrefixes(vec![moved]),
            Call::RemovePeer(old),
            Call::AddPeer(new, WorkerId(1), key(1), None),
            Call::AddPrefixes(vec![Assignment { prefix: moved, peer: new, worker: WorkerId(1) }]),
        ]
    );
}

#[test]
fn a_peer_made_and_removed_in_one_request_never_was() {
    let (mut device, mut fake) = start(vec![]);
    let gone = PeerChange { remove: true, ..change(1, &[]) };
    device.apply(set(vec![change(1, &["10.0.0.1/32"]), gone]), &mut fake).unwrap();
    assert_eq!(fake.take(), []);
}

#[test]
fn replace_peers_replaces_all() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.1/32"]), change(2, &["10.0.0.2/32"])]);
    let request = SetRequest { replace_peers: true, ..set(vec![change(2, &["10.0.0.1/32"])]) };
    device.apply(request, &mut fake).unwrap();
    assert_eq!(device.peers().len(), 1);
    assert_eq!(fake.peers.len(), 1);
    assert_eq!(fake.owners.len(), 1);
    assert_eq!(device.owner(&prefix("10.0.0.2/32")), None);
}

#[test]
fn our_own_key_is_no_peer() {
    let own = PrivateKey::new(&Secret([7; 32])).to_secret();
    let own_public = *PrivateKey::new(&own).public();
    let (mut device, mut fake) = start(vec![]);
    let mut itself = change(0, &["10.0.0.1/32"]);
    itself.public_key = own_public;
    device.apply(set(vec![itself]), &mut fake).unwrap();
    let peer = device.peer(&own_public).unwrap().id();
    fake.take();

    let keyed = || SetRequest { private_key: Some(Some(own.clone())), ..SetRequest::default() };
    device.apply(keyed(), &mut fake).unwrap();
    assert_eq!(
        fake.take(),
        [
            Call::RemovePrefixes(vec![prefix("10.0.0.1/32")]),
            Call::RemovePeer(peer),
            Call::PrivateKey(Some(own.0)),
        ]
    );
    device.apply(keyed(), &mut fake).unwrap();
    let mut itself = change(0, &["10.0.0.1/32"]);
    itself.public_key = own_public;
    device.apply(set(vec![itself]), &mut fake).unwrap();
    assert_eq!(fake.take(), [], "same key again, and the own key as a peer");

    device.apply(SetRequest { private_key: Some(None), ..SetRequest::default() }, &mut fake).unwrap();
    assert_eq!(fake.take(), [Call::PrivateKey(None)]);
    assert_eq!(device.public_key(), None);
}

#[test]
fn secrets_apply_when_they_differ() {
    let (mut device, mut fake) = start(vec![change(1, &[])]);
    let with = |key: Option<u8>| {
        let preshared_key = Some(key.map(|n| Secret([n; 32])));
        set(vec![PeerChange { preshared_key, ..change(1, &[]) }])
    };
    let one = id(&device, 1);
    for (key, calls) in [(Some(5), 1), (Some(5), 0), (Some(6), 1), (None, 1), (None, 0)] {
        device.apply(with(key), &mut fake).unwrap();
        let expected: Vec<_> = (0..calls).map(|_| Call::PresharedKey(one, key.map(|n| [n; 32]))).collect();
        assert_eq!(fake.take(), expected);
    }
}

#[test]
fn an_endpoint_is_always_told() {
    let (mut device, mut fake) = start(vec![change(1, &[])]);
    let endpoint = "192.0.2.1:5".parse().unwrap();
    for _ in 0..2 {
        let request = PeerChange { endpoint: Some(endpoint), ..change(1, &[]) };
        device.apply(set(vec![request]), &mut fake).unwrap();
        assert_eq!(fake.take(), [Call::Endpoint(id(&device, 1), endpoint)], "it may have roamed since");
    }
}

#[test]
fn owners_are_hashed_or_the_least_loaded_and_stay() {
    let (mut device, mut fake) = (Device::new(0), Fake::new(3));
    let request = set(vec![
        change(1, &["10.0.0.2/32", "fd00::1/128", "192.168.0.0/16"]),
        change(2, &["10.0.0.1/32", "10.0.0.2/31"]),
        change(3, &[]),
        change(4, &["10.0.0.5/32", "10.0.0.8/32"]),
        change(5, &["0.0.0.0/0"]),
    ]);
    device.apply(request, &mut fake).unwrap();
    let worker = |device: &Device, n| device.peer(&key(n)).unwrap().worker().0;
    assert_eq!([1, 2, 3, 4, 5].map(|n| worker(&device, n)), [2, 1, 0, 0, 1]);
    let edit = PeerChange { replace_allowed_ips: true, ..change(1, &["10.0.0.0/32"]) };
    device.apply(set(vec![edit]), &mut fake).unwrap();
    assert_eq!(worker(&device, 1), 2, "an edit changes no owner");
    let gone = PeerChange { remove: true, ..change(1, &[]) };
    device.apply(set(vec![gone, change(6, &[])]), &mut fake).unwrap();
    assert_eq!(worker(&device, 6), 2, "the removed peer counts no more");
}

#[test]
fn what_the_kernel_refuses_leaves_everything_as_it_was() {
    let (mut device, mut fake) = start(vec![change(1, &["10.0.0.1/32"])]);
    fake.refused_port = Some(53);
    fake.refused_mark = Some(9);
    let request = |port, mark| SetRequest {
        listen_port: Some(port),
        fwmark: Some(Mark(mark)),
        replace_peers: true,
        private_key: Some(Some(Secret([1; 32]))),
        ..SetRequest::default()
    };
    assert_eq!(device.apply(request(53, 7), &mut fake), Err(Errno::new(libc::EADDRINUSE)));
    assert_eq!(fake.take(), [Call::Fwmark(7), Call::Fwmark(0)], "the mark is put back");
    assert_eq!(device.apply(request(54, 9), &mut fake), Err(Errno::new(libc::EPERM)));
    assert_eq!(fake.take(), []);
    assert_eq!((device.listen_port(), device.fwmark()), (0, Mark(0)));
    assert!(device.private_key().is_none());
    assert_eq!(device.peers().len(), 1);
}

#[test]
fn ports_and_marks_are_set_when_they_differ() {
    let (mut device, mut fake) = start(vec![]);
    let request =
        |port| SetRequest { listen_port: Some(port), fwmark: Some(Mark(3)), ..SetRequest::default() };
    device.apply(request(5), &mut fake).unwrap();
    device.apply(request(5), &mut fake).unwrap();
    assert_eq!(fake.take(), [Call::Fwmark(3), Call::ListenPort(5)]);
    device.apply(request(0), &mut fake).unwrap();
    assert_eq!(device.listen_port(), 40_000, "the port that the kernel chose");
}

#[test]
fn there_is_room_for_so_many_and_no_more() {
    let (mut device, mut fake) = start(vec![]);
    let many = |count: u32| {
        let peer = |n: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            PeerChange::new(PublicKey(bytes))
        };
        set((0..count).map(peer).collect())
    };
    let limit = u32::try_from(MAX_PEERS).unwrap();
    assert_eq!(device.apply(many(limit + 1), &mut fake), Err(Errno::NO_ROOM));
    assert!(device.peers().is_empty());
    device.apply(many(100), &mut fake).unwrap();
    device.apply(many(100), &mut fake).unwrap();
    assert_eq!(device.peers().len(), 100);

    let ips = (0..=u32::try_from(MAX_PREFIXES).unwrap())
        .map(|n| AllowedIp::Add(Prefix::new(Ipv4Addr::from_bits(n).into(), 32).unwrap()))
        .collect();
    let greedy = PeerChange { allowed_ips: ips, ..PeerChange::new(key(1)) };
    assert_eq!(device.apply(set(vec![greedy]), &mut fake), Err(Errno::NO_ROOM));
}

#[test]
fn a_hundred_thousand_prefixes_are_one_call() {
    let (mut device, mut fake) = start(vec![]);
    let ips = || {
        (0..130_000)
            .map(|n| AllowedIp::Add(Prefix::new(Ipv4Addr::from_bits(n << 2).into(), 30).unwrap()))
            .collect()
    };
    let started = std::time::Instant::now();
    device.apply(set(vec![PeerChange { allowed_ips: ips(), ..PeerChange::new(key(1)) }]), &mut fake).unwrap();
    assert_eq!(fake.calls.len(), 2);
    device.apply(set(vec![PeerChange { allowed_ips: ips(), ..PeerChange::new(key(2)) }]), &mut fake).unwrap();
    assert_eq!(fake.calls.len(), 5, "add peer, remove prefixes, add prefixes");
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}

/// What a peer should be, kept in the most naive way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Naive {
    psk: Option<[u8; 32]>,
    keepalive: Option<u16>,
    prefixes: BTreeSet<Prefix>,
}

#[derive(Debug, Default)]
struct NaiveDevice {
    own: Option<PublicKey>,
    peers: BTreeMap<PublicKey, Naive>,
}

impl NaiveDevice {
    fn apply(&mut self, request: &SetRequest) {
        if request.replace_peers {
            self.peers.clear();
        }
        if let Some(key) = &request.private_key {
            self.own = key.as_ref().map(|key| *PrivateKey::new(key).public());
            self.peers.retain(|key, _| Some(*key) != self.own);
        }
        for change in &request.peers {
            let known = self.peers.contains_key(&change.public_key);
            if change.remove {
                self.peers.remove(&change.public_key);
                continue;
            }
            if self.own == Some(change.public_key) || (change.update_only && !known) {
                continue;
            }
            let peer = self.peers.entry(change.public_key).or_default();
            if let Some(psk) = &change.preshared_key {
                peer.psk = psk.as_ref().map(|key| key.0);
            }
            if let Some(keepalive) = change.keepalive {
                peer.keepalive = keepalive;
            }
            if change.replace_allowed_ips {
                peer.prefixes.clear();
            }
            for ip in &change.allowed_ips {
                match ip {
                    AllowedIp::Add(prefix) => {
                        for peer in self.peers.values_mut() {
                            peer.prefixes.remove(prefix);
                        }
                        self.peers.get_mut(&change.public_key).unwrap().prefixes.insert(*prefix);
                    }
                    AllowedIp::Remove(prefix) => {
                        self.peers.get_mut(&change.public_key).unwrap().prefixes.remove(prefix);
                    }
                }
            }
        }
    }
}

/// A private key of a few; their public keys are peers' keys as well.
fn own_key(n: u8) -> Secret {
    PrivateKey::new(&Secret([n; 32])).to_secret()
}

fn any_change() -> impl Strategy<Value = PeerChange> {
    let ip = (0u32..6, prop::sample::select(vec![8u8, 31, 32]), any::<bool>()).prop_map(|(n, len, add)| {
        let prefix = Prefix::new(Ipv4Addr::from_bits(0x0a00_0000 + n).into(), len).unwrap();
        if add { AllowedIp::Add(prefix) } else { AllowedIp::Remove(prefix) }
    });
    let psk = prop::option::of(prop::option::of(1u8..3));
    let keepalive = prop::option::of(prop::option::of(1u16..3));
    let flags = (prop::bool::weighted(0.15), prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    (0u8..6, flags, psk, keepalive, prop::collection::vec(ip, 0..5)).prop_map(
        |(who, flags, psk, keepalive, allowed_ips)| {
            let public_key = if who < 2 { *PrivateKey::new(&own_key(who)).public() } else { key(who) };
            PeerChange {
                remove: flags.0,
                update_only: flags.1,
                replace_allowed_ips: flags.2,
                preshared_key: psk.map(|key| key.map(|n| Secret([n; 32]))),
                keepalive,
                allowed_ips,
                ..PeerChange::new(public_key)
            }
        },
    )
}

fn any_request() -> impl Strategy<Value = SetRequest> {
    let private_key = prop::option::weighted(0.2, prop::option::of((0u8..3).prop_map(own_key)));
    (private_key, prop::bool::weighted(0.1), prop::collection::vec(any_change(), 0..5)).prop_map(
        |(private_key, replace_peers, peers)| SetRequest {
            private_key,
            replace_peers,
            peers,
            ..SetRequest::default()
        },
    )
}

/// Model, naive model and data plane agree.
fn check(device: &Device, naive: &NaiveDevice, fake: &Fake) {
    let told: BTreeMap<_, _> = fake
        .peers
        .iter()
        .map(|(id, peer)| {
            let prefixes =
                fake.owners.iter().filter(|(_, owner)| *owner == id).map(|(prefix, _)| *prefix).collect();
            (peer.key, Naive { psk: peer.psk, keepalive: peer.keepalive, prefixes })
        })
        .collect();
    assert_eq!(told, naive.peers);
    let own: BTreeMap<_, _> = device
        .peers()
        .into_iter()
        .map(|peer| {
            assert_eq!(fake.peers[&peer.id()].worker, peer.worker());
            assert!(peer.prefixes().all(|prefix| device.owner(&prefix) == Some(peer.id())));
            let psk = peer.preshared_key().map(|key| key.0);
            (
                peer.public_key(),
                Naive { psk, keepalive: peer.keepalive(), prefixes: peer.prefixes().collect() },
            )
        })
        .collect();
    assert_eq!(own, naive.peers);
    assert_eq!(device.public_key(), naive.own);
    assert_eq!(fake.key, device.private_key().map(|key| key.0));
    assert_eq!(device.owners.len(), fake.owners.len());
    let load: u32 = device.load.iter().sum();
    assert_eq!(load as usize, fake.peers.len());
}

proptest! {
    #[test]
    fn random_requests(workers in 1u16..6, requests in prop::collection::vec(any_request(), 1..20)) {
        let (mut device, mut naive, mut fake) = (Device::new(1), NaiveDevice::default(), Fake::new(workers));
        for request in requests {
            naive.apply(&request);
            let named: BTreeSet<_> = request.peers.iter().map(|peer| peer.public_key).collect();
            let sweeping = request.replace_peers || request.private_key.is_some();
            let before = fake.peers.clone();
            device.apply(request, &mut fake).unwrap();
            check(&device, &naive, &fake);
            for (id, peer) in before.iter().filter(|(_, peer)| !sweeping && !named.contains(&peer.key)) {
                prop_assert_eq!(Some(peer), fake.peers.get(id), "a peer that was not named");
            }
        }
    }
}
