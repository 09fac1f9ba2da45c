//! The handshaker against itself: what is refused, what a refusal leaves alone, and who may do what when.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::crypto::enrolment::proof;
use crate::crypto::random::ScriptedRng;
use crate::crypto::x25519::LOW_ORDER;

pub(super) const PEER: PeerId = PeerId { slot: 4, generation: 2 };
pub(super) const ENDPOINT: Endpoint =
    Endpoint::new(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1)), 5000));
const KEY: IndexKey = IndexKey::new([1, 2, 3]);
const A: u8 = 0x0a;
const B: u8 = 0x0b;

pub(super) fn key(byte: u8) -> Secret {
    Secret([byte; 32])
}

fn public(byte: u8) -> PublicKey {
    *PrivateKey::new(&key(byte)).public()
}

pub(super) fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

/// The stamp of the n-th second of an arbitrary day.
pub(super) fn stamp(n: u64) -> Tai64n {
    Tai64n::from_unix(Duration::from_secs(1_790_000_000 + n))
}

/// A machine with the key `ours` and the one peer `theirs`, on one worker.
pub(super) fn machine_with(ours: u8, theirs: u8, psk: Option<Secret>) -> (Handshaker, ScriptedRng) {
    let mut machine = Handshaker::new(1, KEY);
    assert!(machine.set_private_key(Some(key(ours))).is_empty());
    machine.add_peer(PEER, WorkerId(0), public(theirs), psk).unwrap();
    (machine, ScriptedRng::seeded(u64::from(ours)))
}

/// Two machines that know each other.
struct Pair {
    a: Handshaker,
    b: Handshaker,
    rng: ScriptedRng,
}

impl Pair {
    fn new() -> Self {
        let (a, rng) = machine_with(A, B, None);
        let (b, _) = machine_with(B, A, None);
        Self { a, b, rng }
    }

    /// A's initiation with the n-th stamp, at the n-th second.
    fn initiation(&mut self, n: u64) -> [u8; INITIATION_LEN] {
        self.a.begin(PEER, stamp(n), at(n), &mut self.rng).unwrap()
    }

    /// B's verdict on a message, with the mac1 check that comes first.
    fn answer(&mut self, message: &[u8; INITIATION_LEN], now: Time) -> Result<Installed, HandshakeError> {
        if !self.b.check_mac1(message) {
            return Err(HandshakeError::BadInitiation);
        }
        self.b.consume_initiation(message, ENDPOINT, now, &mut self.rng).map(installed)
    }

    /// A's verdict on a response.
    fn finish(&mut self, response: &[u8; RESPONSE_LEN], now: Time) -> Result<Installed, HandshakeError> {
        if !self.a.check_mac1(response) {
            return Err(HandshakeError::BadResponse);
        }
        self.a.consume_response(response, ENDPOINT, now).map(installed)
    }

    fn handshake(&mut self, n: u64) {
        let sent = self.initiation(n);
        let answered = self.answer(&sent, at(n)).unwrap();
        let finished = self.finish(&answered.response.unwrap(), at(n)).unwrap();
        assert_matching(&finished.keypair, &answered.keypair);
    }
}

#[derive(Debug)]
pub(super) struct Installed {
    pub(super) peer: PeerId,
    pub(super) keypair: NewKeypair,
    pub(super) endpoint: Endpoint,
    pub(super) response: Option<[u8; RESPONSE_LEN]>,
}

pub(super) fn installed((owner, message): (WorkerId, ToOwner)) -> Installed {
    assert_eq!(owner, WorkerId(0));
    match message {
        ToOwner::Install { peer, keypair, endpoint, response } => {
            Installed { peer, keypair: *keypair, endpoint, response }
        }
        other => panic!("{other:?}"),
    }
}

/// A is the key of an invite's use, B the gateway.
#[test]
fn who_was_invited_is_known_by_a_proof_for_each_session() {
    let mut pair = Pair::new();
    let shared = PrivateKey::new(&key(A)).shared(&public(B)).unwrap();
    let own = public(0x0c);
    let session = |pair: &mut Pair, n| {
        let sent = pair.initiation(n);
        let answered = pair.answer(&sent, at(n)).unwrap();
        let finished = pair.finish(&answered.response.unwrap(), at(n)).unwrap();
        assert_eq!(finished.keypair.transcript.0, answered.keypair.transcript.0);
        (answered.keypair.local_index, finished.keypair.transcript)
    };
    let (index, transcript) = session(&mut pair, 1);
    let made = proof(&shared, &transcript, &own);
    assert_eq!(pair.b.invited(PEER, index, &own, &made), Err(NotInvited::NotProven), "an ordinary peer");
    pair.b.invite(PEER);
    let (index, transcript) = session(&mut pair, 2);
    assert_eq!(pair.b.invited(PEER, index, &own, &made), Err(NotInvited::NotProven), "of another session");
    let made = proof(&shared, &transcript, &own);
    assert_eq!(pair.b.invited(PEER, index, &own, &made), Ok(()));
    assert_eq!(pair.b.invited(PEER, index, &public(0x0d), &made), Err(NotInvited::NotProven), "another key");
    assert_eq!(pair.b.invited(PEER, index + 1, &own, &made), Err(NotInvited::NotProven), "no session");
    let later = PeerId { generation: 3, ..PEER };
    assert_eq!(pair.b.invited(later, index, &own, &made), Err(NotInvited::NotProven), "another peer");
    for (bad, why) in LOW_ORDER
        .iter()
        .map(|point| (PublicKey(*point), NotInvited::LowOrder))
        .chain([(public(B), NotInvited::OwnKey)])
    {
        let made = proof(&shared, &transcript, &bad);
        assert_eq!(pair.b.invited(PEER, index, &bad, &made), Err(why), "{bad:?}");
    }
    // What is over proves nothing, be it given back or the oldest of too many.
    let (second, said) = session(&mut pair, 3);
    pair.b.release(index);
    assert_eq!(
        pair.b.invited(PEER, index, &own, &proof(&shared, &transcript, &own)),
        Err(NotInvited::NotProven)
    );
    let made = proof(&shared, &said, &own);
    assert_eq!(pair.b.invited(PEER, second, &own, &made), Ok(()));
    (4..8).for_each(|n| drop(session(&mut pair, n)));
    assert_eq!(pair.b.invited(PEER, second, &own, &made), Err(NotInvited::NotProven));
}

fn assert_matching(one: &NewKeypair, other: &NewKeypair) {
    assert_eq!((one.send.0, one.recv.0), (other.recv.0, other.send.0));
    assert_ne!(one.send.0, one.recv.0);
    assert_eq!((one.local_index, one.remote_index), (other.remote_index, other.local_index));
}

#[test]
fn a_handshake_leaves_one_live_index_on_each_side() {
    let mut pair = Pair::new();
    pair.handshake(1);
    assert_eq!((pair.a.indices_in_use(), pair.b.indices_in_use()), (1, 1));
    pair.handshake(2);
    assert_eq!((pair.a.indices_in_use(), pair.b.indices_in_use()), (2, 2));
    assert!(pair.a.pending.is_empty());
}

#[test]
fn every_changed_byte_of_an_initiation_is_refused_and_harms_nothing() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    for byte in 0..132 {
        let mut forged = sent;
        forged[byte] ^= 0x40;
        assert!(pair.answer(&forged, at(1)).is_err(), "byte {byte}");
        // Past mac1 too, which anyone can make who knows the public key. The index is covered by mac1 alone.
        let past = pair.b.consume_initiation(&forged, ENDPOINT, at(1), &mut ScriptedRng::seeded(1));
        if byte < 4 || (8..116).contains(&byte) {
            assert_eq!(past.err(), Some(HandshakeError::BadInitiation), "byte {byte}");
        } else {
            pair = Pair::new();
        }
    }
    let sent = pair.initiation(1);
    pair.answer(&sent, at(1)).unwrap();
}

#[test]
fn a_forged_initiation_stores_no_timestamp_and_spends_no_turn() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    for byte in [8, 40, 88, 115] {
        let mut forged = sent;
        forged[byte] ^= 1;
        let refused = pair.b.consume_initiation(&forged, ENDPOINT, at(1), &mut pair.rng);
        assert_eq!(refused.err(), Some(HandshakeError::BadInitiation));
    }
    assert_eq!(pair.b.timestamps().count(), 0);
    assert_eq!(pair.b.indices_in_use(), 0);
    pair.answer(&sent, at(1)).unwrap();
    assert_eq!(pair.b.timestamps().collect::<Vec<_>>(), [(PEER, stamp(1))]);
}

#[test]
fn every_changed_byte_of_a_response_is_refused_and_harms_nothing() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    for byte in 0..76 {
        let mut forged = response;
        forged[byte] ^= 0x40;
        assert_eq!(pair.finish(&forged, at(1)).err(), Some(HandshakeError::BadResponse), "byte {byte}");
        // Past mac1 too; the sender's index is covered by mac1 alone.
        if byte < 4 || (8..60).contains(&byte) {
            let past = pair.a.consume_response(&forged, ENDPOINT, at(1));
            assert_eq!(past.err(), Some(HandshakeError::BadResponse), "byte {byte}");
        }
    }
    assert_eq!(pair.a.pending.len(), 1);
    pair.finish(&response, at(1)).unwrap();
    assert_eq!(pair.finish(&response, at(1)).err(), Some(HandshakeError::BadResponse), "only once");
}

#[test]
fn only_a_greater_timestamp_is_accepted() {
    let mut pair = Pair::new();
    let (first, second, third) = (pair.initiation(1), pair.initiation(2), pair.initiation(3));
    pair.answer(&second, at(10)).unwrap();
    for (message, now) in [(&second, 11), (&first, 12), (&second, 100_000)] {
        assert_eq!(pair.answer(message, at(now)).err(), Some(HandshakeError::OldTimestamp));
    }
    assert_eq!(pair.b.timestamps().collect::<Vec<_>>(), [(PEER, stamp(2))], "a refused one is not stored");
    pair.answer(&third, at(13)).unwrap();
    let again = pair.a.begin(PEER, stamp(3), at(14), &mut pair.rng).unwrap();
    assert_eq!(pair.answer(&again, at(14)).err(), Some(HandshakeError::OldTimestamp), "equal is not greater");
}

#[test]
fn a_timestamp_survives_a_restart() {
    let mut pair = Pair::new();
    let recorded = pair.initiation(5);
    let (mut restarted, mut rng) = machine_with(B, A, None);
    restarted.restore_timestamp(PEER, stamp(5), stamp(6));
    let refused = restarted.consume_initiation(&recorded, ENDPOINT, at(0), &mut rng);
    assert_eq!(refused.err(), Some(HandshakeError::OldTimestamp));
    assert_eq!(restarted.indices_in_use(), 0);
    restarted.restore_timestamp(PEER, stamp(1), stamp(6));
    assert_eq!(restarted.timestamps().collect::<Vec<_>>(), [(PEER, stamp(5))], "never lowered");
}

#[test]
fn a_restored_timestamp_is_at_most_an_hour_ahead() {
    let (mut machine, _) = machine_with(B, A, None);
    machine.restore_timestamp(PEER, stamp(1_000_000), stamp(10));
    assert_eq!(machine.timestamps().collect::<Vec<_>>(), [(PEER, stamp(3610))]);
    machine.restore_timestamp(PeerId { generation: 1, ..PEER }, stamp(9_000_000), stamp(9_000_000));
    assert_eq!(machine.timestamps().collect::<Vec<_>>(), [(PEER, stamp(3610))], "another generation");
}

#[test]
fn a_peer_may_initiate_fifty_times_a_second() {
    let mut pair = Pair::new();
    let messages: Vec<_> = (1..=3).map(|n| pair.initiation(n)).collect();
    let start = at(100);
    pair.answer(&messages[0], start).unwrap();
    let early = start + Duration::from_nanos(19_999_999);
    assert_eq!(pair.answer(&messages[1], early).err(), Some(HandshakeError::PeerLimit));
    assert_eq!(pair.b.timestamps().collect::<Vec<_>>(), [(PEER, stamp(1))], "refused, so not stored");
    pair.answer(&messages[1], start + Duration::from_millis(20)).unwrap();
    assert_eq!(pair.answer(&messages[2], at(0)).err(), Some(HandshakeError::PeerLimit), "a clock gone back");
    pair.answer(&messages[2], start + Duration::from_millis(40)).unwrap();
}

#[test]
fn strangers_are_refused() {
    let mut pair = Pair::new();
    let (mut stranger, mut rng) = machine_with(0x0c, B, None);
    let sent = stranger.begin(PEER, stamp(1), at(0), &mut rng).unwrap();
    assert_eq!(pair.answer(&sent, at(0)).err(), Some(HandshakeError::UnknownPeer));
    pair.b.remove_peer(PEER);
    let sent = pair.initiation(1);
    assert_eq!(pair.answer(&sent, at(0)).err(), Some(HandshakeError::UnknownPeer));
}

#[test]
fn nobody_else_can_claim_a_peers_key() {
    // An attacker can seal A's public key to B, but not the timestamp, which needs the product of A's and B's keys.
    let mut pair = Pair::new();
    let mut rng = ScriptedRng::seeded(0x0c);
    let impostor = PrivateKey::new(&key(0x0c));
    let ephemeral = PrivateKey::random(&mut rng);
    let mut symmetric = Symmetric::new(&public(B));
    symmetric.mix_ephemeral(ephemeral.public());
    let es = symmetric.mix_key(&ephemeral.shared(&public(B)).unwrap());
    let mut identity = public(A).0;
    let identity_tag = symmetric.seal(&es, &mut identity);
    let ss = symmetric.mix_key(&impostor.shared(&public(B)).unwrap());
    let mut time = stamp(1).0;
    let stamp_tag = symmetric.seal(&ss, &mut time);
    let mut message = [0; INITIATION_LEN];
    message[0] = 1;
    message[8..40].copy_from_slice(&ephemeral.public().0);
    message[40..72].copy_from_slice(&identity);
    message[72..88].copy_from_slice(&identity_tag);
    message[88..100].copy_from_slice(&time);
    message[100..116].copy_from_slice(&stamp_tag);
    let refused = pair.b.consume_initiation(&message, ENDPOINT, at(0), &mut rng);
    assert_eq!(refused.err(), Some(HandshakeError::BadInitiation));
    assert_eq!(pair.b.timestamps().count(), 0);
}

#[test]
fn low_order_ephemerals_send_nothing() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    for point in LOW_ORDER {
        // Every key of the message follows from the zero product: without the check it would be accepted up to the
        // static-static product, which the attacker lacks.
        let mut symmetric = Symmetric::new(&public(B));
        symmetric.mix_ephemeral(&PublicKey(point));
        let es = symmetric.mix_key(&Secret([0; 32]));
        let mut identity = public(A).0;
        let tag = symmetric.seal(&es, &mut identity);
        let mut initiation = [0; INITIATION_LEN];
        initiation[0] = 1;
        initiation[8..40].copy_from_slice(&point);
        initiation[40..72].copy_from_slice(&identity);
        initiation[72..88].copy_from_slice(&tag);
        let refused = pair.b.consume_initiation(&initiation, ENDPOINT, at(2), &mut pair.rng);
        assert_eq!(refused.err(), Some(HandshakeError::LowOrder));

        let mut forged = response;
        forged[12..44].copy_from_slice(&point);
        let refused = pair.a.consume_response(&forged, ENDPOINT, at(2));
        assert_eq!(refused.err(), Some(HandshakeError::LowOrder));
    }
    pair.finish(&response, at(2)).unwrap();
}

#[test]
fn a_peer_of_low_order_is_kept_and_never_handshakes() {
    for (slot, point) in (0..).zip(LOW_ORDER) {
        let id = PeerId { slot: slot + 100, generation: 0 };
        let (mut machine, mut rng) = machine_with(A, B, None);
        machine.add_peer(id, WorkerId(0), PublicKey(point), None).unwrap();
        assert_eq!(machine.peer(&PublicKey(point)), Some(id));
        assert_eq!(machine.begin(id, stamp(1), at(0), &mut rng).err(), Some(BeginError::LowOrder));

        // Who claims that key could seal the timestamp under the zero product.
        let ephemeral = PrivateKey::random(&mut rng);
        let (message, _) = exchange::write_initiation(
            &PrivateKey::new(&key(B)),
            &public(A),
            &Secret([0; 32]),
            &ephemeral,
            1,
            stamp(1),
        )
        .unwrap();
        let mut symmetric = Symmetric::new(&public(A));
        symmetric.mix_ephemeral(ephemeral.public());
        let es = symmetric.mix_key(&ephemeral.shared(&public(A)).unwrap());
        let mut identity = point;
        let tag = symmetric.seal(&es, &mut identity);
        let mut forged = message;
        forged[40..72].copy_from_slice(&identity);
        forged[72..88].copy_from_slice(&tag);
        let ss = symmetric.mix_key(&Secret([0; 32]));
        let mut time = stamp(1).0;
        let tag = symmetric.seal(&ss, &mut time);
        forged[88..100].copy_from_slice(&time);
        forged[100..116].copy_from_slice(&tag);
        let refused = machine.consume_initiation(&forged, ENDPOINT, at(0), &mut rng);
        assert_eq!(refused.err(), Some(HandshakeError::LowOrder));
        assert_eq!(machine.indices_in_use(), 0);
    }
}

#[test]
fn our_own_key_is_no_peer() {
    let mut machine = Handshaker::new(1, KEY);
    let other = PeerId { slot: 0, generation: 0 };
    machine.add_peer(other, WorkerId(0), public(B), None).unwrap();
    machine.add_peer(PEER, WorkerId(0), public(A), None).unwrap();
    assert_eq!(machine.set_private_key(Some(key(A))), [PEER], "removed when the key becomes ours");
    assert_eq!((machine.peer(&public(A)), machine.peer(&public(B))), (None, Some(other)));
    assert_eq!(machine.add_peer(PEER, WorkerId(0), public(A), None), Err(AddPeerError::OwnKey));
    assert_eq!(machine.set_private_key(Some(key(A))), []);
}

#[test]
fn a_key_and_a_slot_belong_to_one_peer() {
    let (mut machine, _) = machine_with(A, B, None);
    let elsewhere = PeerId { slot: 5, generation: 0 };
    assert_eq!(machine.add_peer(elsewhere, WorkerId(0), public(B), None), Err(AddPeerError::KeyInUse));
    let successor = PeerId { generation: 3, ..PEER };
    assert_eq!(machine.add_peer(successor, WorkerId(0), public(0x0c), None), Err(AddPeerError::SlotInUse));
    machine.remove_peer(PEER);
    machine.add_peer(successor, WorkerId(0), public(B), None).unwrap();
    assert_eq!(machine.peer(&public(B)), Some(successor));
}

#[test]
fn messages_for_another_generation_are_ignored() {
    let (mut machine, mut rng) = machine_with(A, B, None);
    for stale in
        [PeerId { generation: 1, ..PEER }, PeerId { generation: 3, ..PEER }, PeerId { slot: 9, ..PEER }]
    {
        assert_eq!(machine.begin(stale, stamp(1), at(0), &mut rng).err(), Some(BeginError::NoPeer));
        assert_eq!(machine.owner(stale), None);
        machine.set_psk(stale, Some(key(7)));
        machine.remove_peer(stale);
    }
    assert_eq!(machine.owner(PEER), Some(WorkerId(0)));
    assert!(machine.peers[&PEER.slot].psk().is_zero());
}

/// Of 1 KiB that a configured peer costs in all tables (docs/decisions/0057-idle-peers.md).
#[test]
fn who_was_never_spoken_to_has_no_room_for_macs_and_cookies() {
    assert!(size_of::<Peer>() <= 128, "{}", size_of::<Peer>());
    let (mut machine, mut rng) = machine_with(A, B, None);
    assert!(machine.peers[&PEER.slot].cookie.is_none() && machine.peers[&PEER.slot].psk.is_none());
    machine.begin(PEER, stamp(1), at(0), &mut rng).unwrap();
    assert!(machine.peers[&PEER.slot].cookie.is_some());
}

/// Enough of them that lanes are used where there are any.
#[test]
fn initiations_together_are_answered_as_each_alone() {
    let (mut gateway, mut rng) = machine_with(B, A, None);
    let clients: Vec<u8> = (0x20..0x26).collect();
    let mut machines: Vec<_> = clients
        .iter()
        .map(|&client| {
            let id = PeerId { slot: u32::from(client), generation: 1 };
            gateway.add_peer(id, WorkerId(0), public(client), Some(key(client))).unwrap();
            machine_with(client, B, Some(key(client))).0
        })
        .collect();
    let (mut stranger, _) = machine_with(0x77, B, None);
    for n in 1..4 {
        let mut sent: ArrayVec<_, TOGETHER> = machines
            .iter_mut()
            .zip(&clients)
            .map(|(machine, client)| {
                let source = SocketAddr::new([198, 18, 1, *client].into(), 5000);
                (machine.begin(PEER, stamp(n), at(n), &mut rng).unwrap(), Endpoint::new(source))
            })
            .collect();
        // Somebody unknown, and one that comes twice, in places that change.
        sent.insert(n as usize, (stranger.begin(PEER, stamp(n), at(n), &mut rng).unwrap(), ENDPOINT));
        let repeated = sent[5];
        sent.push(repeated);
        if n == 3 {
            sent[0].0[3] = 1;
            sent[1].0[8..40].copy_from_slice(&LOW_ORDER[3]);
            sent[2].0[60] ^= 1;
        }
        let results = gateway.consume_initiations(&sent, at(n), &mut rng);
        assert_eq!(results.len(), TOGETHER);
        let mut answered = 0;
        for (place, result) in results.into_iter().enumerate() {
            let expected = match (n, place) {
                (3, 0 | 2) => Some(HandshakeError::BadInitiation),
                (3, 1) => Some(HandshakeError::LowOrder),
                (_, 7) => Some(HandshakeError::OldTimestamp),
                _ if place as u64 == n => Some(HandshakeError::UnknownPeer),
                _ => None,
            };
            assert_eq!(result.as_ref().err(), expected.as_ref(), "{n} {place}");
            let Ok(result) = result else { continue };
            let result = installed(result);
            let client = place - usize::from(place as u64 > n);
            assert_eq!((result.peer.slot, result.endpoint), (u32::from(clients[client]), sent[place].1));
            let finished =
                machines[client].consume_response(&result.response.unwrap(), ENDPOINT, at(n)).unwrap();
            assert_matching(&installed(finished).keypair, &result.keypair);
            answered += 1;
        }
        assert_eq!(answered, if n == 3 { 3 } else { 6 });
    }
    assert_eq!(gateway.indices_in_use(), 15, "nothing is left of those that were refused");
}

#[test]
fn without_a_private_key_nothing_goes() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    for none in [None, Some(Secret([0; 32]))] {
        let mut machine = Handshaker::new(1, KEY);
        machine.add_peer(PEER, WorkerId(0), public(B), None).unwrap();
        machine.set_private_key(none);
        assert_eq!(machine.public_key(), None);
        let refused = machine.begin(PEER, stamp(1), at(0), &mut pair.rng);
        assert_eq!(refused.err(), Some(BeginError::NoPrivateKey));
        let refused = machine.consume_initiation(&sent, ENDPOINT, at(0), &mut pair.rng);
        assert_eq!(refused.err(), Some(HandshakeError::NoPrivateKey));
        let refused = machine.consume_response(&response, ENDPOINT, at(0));
        assert_eq!(refused.err(), Some(HandshakeError::NoPrivateKey));
        assert!(!machine.check_mac1(&sent));
        assert!(machine.cookie_reply(&sent, ENDPOINT.remote, at(0), &mut pair.rng).is_none());
    }
}

#[test]
fn a_new_private_key_ends_pending_handshakes_and_begins_afresh() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    pair.a.set_private_key(Some(key(A)));
    assert_eq!(pair.a.pending.len(), 1, "the same key again");
    pair.a.set_private_key(Some(key(0x0c)));
    assert_eq!((pair.a.pending.len(), pair.a.indices_in_use()), (0, 0));
    assert_eq!(pair.a.consume_response(&response, ENDPOINT, at(1)).err(), Some(HandshakeError::BadResponse));
    let successor = PeerId { slot: 7, generation: 0 };
    pair.b.add_peer(successor, WorkerId(0), public(0x0c), None).unwrap();
    pair.handshake(2);
}

#[test]
fn a_psk_applies_at_once() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    pair.b.set_psk(PEER, Some(key(7)));
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    assert_eq!(pair.finish(&response, at(1)).err(), Some(HandshakeError::BadResponse));
    pair.a.set_psk(PEER, Some(key(8)));
    assert_eq!(pair.finish(&response, at(1)).err(), Some(HandshakeError::BadResponse));
    pair.a.set_psk(PEER, Some(key(7)));
    pair.finish(&response, at(1)).unwrap();
    pair.a.set_psk(PEER, Some(Secret([0; 32])));
    pair.b.set_psk(PEER, None);
    pair.handshake(2);
}

#[test]
fn a_response_to_a_superseded_initiation_is_refused() {
    let mut pair = Pair::new();
    let first = pair.initiation(1);
    let late = pair.answer(&first, at(1)).unwrap().response.unwrap();
    let second = pair.initiation(2);
    assert_ne!(first[4..8], second[4..8], "a new index");
    assert_ne!(first[8..40], second[8..40], "a new ephemeral");
    assert_eq!((pair.a.pending.len(), pair.a.indices_in_use()), (1, 1));
    assert_eq!(pair.finish(&late, at(2)).err(), Some(HandshakeError::BadResponse));
    let response = pair.answer(&second, at(2)).unwrap().response.unwrap();
    pair.finish(&response, at(2)).unwrap();
}

#[test]
fn both_sides_may_initiate_at_once() {
    let mut pair = Pair::new();
    let from_a = pair.initiation(1);
    let from_b = pair.b.begin(PEER, stamp(1), at(1), &mut pair.rng).unwrap();
    let by_b = pair.answer(&from_a, at(1)).unwrap();
    let by_a = installed(pair.a.consume_initiation(&from_b, ENDPOINT, at(1), &mut pair.rng).unwrap());
    let at_a = pair.finish(&by_b.response.unwrap(), at(1)).unwrap();
    let at_b = installed(pair.b.consume_response(&by_a.response.unwrap(), ENDPOINT, at(1)).unwrap());
    assert_matching(&at_a.keypair, &by_b.keypair);
    assert_matching(&at_b.keypair, &by_a.keypair);
}

#[test]
fn a_pending_handshake_ends_with_its_peer_or_after_180_seconds() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    pair.a.expire(Time::from_nanos(at(181).as_nanos() - 1));
    assert_eq!(pair.a.pending.len(), 1);
    assert_eq!(
        pair.finish(&response, at(181)).err(),
        Some(HandshakeError::BadResponse),
        "before it is swept"
    );
    pair.a.expire(at(181));
    assert_eq!((pair.a.pending.len(), pair.a.indices_in_use()), (0, 0));
    assert_eq!(pair.finish(&response, at(2)).err(), Some(HandshakeError::BadResponse));

    pair.initiation(200);
    pair.a.remove_peer(PEER);
    assert_eq!((pair.a.pending.len(), pair.a.indices_in_use()), (0, 0));
    assert_eq!(pair.a.begin(PEER, stamp(9), at(300), &mut pair.rng).err(), Some(BeginError::NoPeer));
}

#[test]
fn live_indices_are_given_back_by_their_owner_alone() {
    let mut pair = Pair::new();
    let sent = pair.initiation(1);
    let pending = u32::from_le_bytes(sent[4..8].try_into().unwrap());
    pair.a.release(pending);
    assert_eq!(pair.a.indices_in_use(), 1, "a pending index is not a keypair's");
    let response = pair.answer(&sent, at(1)).unwrap().response.unwrap();
    pair.finish(&response, at(1)).unwrap();
    pair.a.expire(at(100_000));
    pair.a.remove_peer(PEER);
    assert_eq!(pair.a.indices_in_use(), 1);
    pair.a.release(pending);
    pair.a.release(pending);
    assert_eq!(pair.a.indices_in_use(), 0);
}

#[test]
fn indices_name_their_owner_and_are_unique() {
    for workers in [1u16, 2, 3, 5] {
        let mut machine = Handshaker::new(workers, KEY);
        machine.set_private_key(Some(key(A)));
        let mut rng = ScriptedRng::seeded(9);
        let mut seen = HashSet::new();
        for slot in 0..20u8 {
            let id = PeerId { slot: u32::from(slot), generation: 0 };
            let owner = WorkerId(u16::from(slot) % workers);
            machine.add_peer(id, owner, public(0x40 + slot * 8), None).unwrap();
            let sent = machine.begin(id, stamp(1), at(0), &mut rng).unwrap();
            let pending = u32::from_le_bytes(sent[4..8].try_into().unwrap());
            assert_eq!(machine.index_owner(pending), owner);
            assert!(seen.insert(pending));

            let (mut client, mut client_rng) = machine_with(0x40 + slot * 8, A, None);
            let sent = client.begin(PEER, stamp(1), at(0), &mut client_rng).unwrap();
            let (to, message) = machine.consume_initiation(&sent, ENDPOINT, at(0), &mut rng).unwrap();
            let ToOwner::Install { keypair, .. } = message else { panic!("{message:?}") };
            assert_eq!((to, machine.index_owner(keypair.local_index)), (owner, owner));
            assert!(seen.insert(keypair.local_index));
        }
    }
}

#[test]
fn an_owner_that_does_not_exist_gets_no_index() {
    let mut pair = Pair::new();
    let mut machine = Handshaker::new(2, KEY);
    machine.set_private_key(Some(key(B)));
    machine.add_peer(PEER, WorkerId(2), public(A), None).unwrap();
    assert_eq!(machine.begin(PEER, stamp(1), at(0), &mut pair.rng).err(), Some(BeginError::NoIndex));
    let sent = pair.initiation(1);
    let refused = machine.consume_initiation(&sent, ENDPOINT, at(0), &mut pair.rng);
    assert_eq!(refused.err(), Some(HandshakeError::NoIndex));
    assert_eq!(machine.indices_in_use(), 0);
}

#[test]
fn a_cookie_gives_the_next_message_a_mac2() {
    let mut pair = Pair::new();
    let from = ENDPOINT.remote;
    let sent = pair.initiation(1);
    assert!(!pair.b.check_mac2(&sent, from, at(1)));
    let reply = pair.b.cookie_reply(&sent, from, at(1), &mut pair.rng).unwrap();
    for byte in 0..64 {
        let mut forged = reply;
        forged[byte] ^= 1;
        assert_eq!(
            pair.a.consume_cookie_reply(&forged, at(1)),
            Err(HandshakeError::BadCookie),
            "byte {byte}"
        );
    }
    pair.a.consume_cookie_reply(&reply, at(1)).unwrap();
    assert_eq!(pair.a.consume_cookie_reply(&reply, at(1)), Err(HandshakeError::BadCookie), "only once");
    let sent = pair.initiation(2);
    assert!(pair.b.check_mac2(&sent, from, at(2)));
    // The responder asked for nothing in its response; the initiator, under load itself, does.
    let response = pair.answer(&sent, at(2)).unwrap().response.unwrap();
    assert_eq!(response[76..], [0; 16]);
    let reply = pair.a.cookie_reply(&response, from, at(2), &mut pair.rng).unwrap();
    pair.b.consume_cookie_reply(&reply, at(2)).unwrap();
    let sent = pair.initiation(3);
    let response = pair.answer(&sent, at(3)).unwrap().response.unwrap();
    assert!(pair.a.check_mac2(&response, from, at(3)));
    pair.finish(&response, at(3)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Noise of every length that the three messages have: refused, and nothing changes.
    #[test]
    fn random_messages_change_nothing(
        body in proptest::collection::vec(any::<u8>(), INITIATION_LEN),
        typed: bool,
        nanos: u64,
    ) {
        let (mut machine, mut rng) = machine_with(A, B, None);
        machine.begin(PEER, stamp(1), at(1), &mut rng).unwrap();
        let waiting = *machine.pending.keys().next().unwrap();
        let now = Time::from_nanos(nanos);
        let mut initiation: [u8; INITIATION_LEN] = body.as_slice().try_into().unwrap();
        let mut response: [u8; RESPONSE_LEN] = body[..RESPONSE_LEN].try_into().unwrap();
        let mut cookie: [u8; COOKIE_REPLY_LEN] = body[..COOKIE_REPLY_LEN].try_into().unwrap();
        if typed {
            initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
            response[..4].copy_from_slice(&[2, 0, 0, 0]);
            response[8..12].copy_from_slice(&waiting.to_le_bytes());
            cookie[..4].copy_from_slice(&[3, 0, 0, 0]);
            cookie[4..8].copy_from_slice(&waiting.to_le_bytes());
        }
        prop_assert!(machine.consume_initiation(&initiation, ENDPOINT, now, &mut rng).is_err());
        prop_assert!(machine.consume_response(&response, ENDPOINT, now).is_err());
        prop_assert!(machine.consume_cookie_reply(&cookie, now).is_err());
        prop_assert!(!machine.check_mac1(&initiation));
        prop_assert_eq!((machine.pending.len(), machine.indices_in_use()), (1, 1));
        prop_assert_eq!(machine.timestamps().count(), 0);
    }

    /// A clock that jumps anywhere makes messages late, never wrong: indices and pending handshakes stay in step.
    #[test]
    fn any_clock_keeps_the_tables_in_step(steps in proptest::collection::vec((0u8..5, any::<u64>()), 1..12)) {
        let mut pair = Pair::new();
        let mut live = Vec::new();
        let mut responses = Vec::new();
        for (n, (action, nanos)) in (1..).zip(steps) {
            let now = Time::from_nanos(nanos);
            match action {
                0 | 1 => {
                    let sent = pair.a.begin(PEER, stamp(n), now, &mut pair.rng).unwrap();
                    responses.extend(pair.answer(&sent, now).ok().and_then(|done| done.response));
                }
                2 => {
                    if let Some(response) = responses.pop() {
                        live.extend(pair.finish(&response, now).ok().map(|done| done.keypair.local_index));
                    }
                }
                3 => pair.a.expire(now),
                _ => live.pop().into_iter().for_each(|index| pair.a.release(index)),
            }
            prop_assert_eq!(pair.a.indices_in_use(), live.len() + pair.a.pending.len());
            prop_assert!(pair.a.pending.len() <= 1);
            let waiting = pair.a.peers[&PEER.slot].pending;
            prop_assert_eq!(waiting.is_some(), pair.a.pending.len() == 1);
        }
    }
}
