//! A client against the gateway's own machine, which answers, is silent, or is somebody else.

use super::*;
use crate::crypto::random::ScriptedRng;
use crate::crypto::x25519::PrivateKey;
use crate::noise::handshaker::NotInvited;
use crate::types::Secret;
use crate::wire::frame::lease::{AddrReply, Settings};
use crate::wire::frame::{Code, problem_saying};

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1)), 7);
const USES: u16 = 3;

fn invite() -> Invite {
    Invite {
        id: "a".to_owned(),
        gateway: *PrivateKey::new(&Secret([9; 32])).public(),
        secret: Secret([5; 32]),
        uses: USES,
        places: vec!["a:1".to_owned(), "b:2".to_owned()],
    }
}

fn peer(k: u8) -> PeerId {
    PeerId { slot: k.into(), generation: 1 }
}

/// The gateway: the handshakes of all uses, and the session of the last.
struct Gateway {
    handshaker: Handshaker,
    session: Option<(PeerId, PeerSession)>,
    rng: ScriptedRng,
}

impl Gateway {
    fn new() -> Self {
        let mut handshaker = Handshaker::new(1, IndexKey::new([1, 2, 3]));
        handshaker.set_private_key(Some(Secret([9; 32])));
        for k in 0..USES as u8 {
            let key = *use_key(&invite().secret, k).public();
            handshaker.add_peer(peer(k), WorkerId(0), key, None).unwrap();
            handshaker.invite(peer(k));
        }
        Self { handshaker, session: None, rng: ScriptedRng::seeded(1) }
    }

    /// Its response, and whom it takes the client for.
    fn answer(&mut self, initiation: &[u8], now: Time) -> (PeerId, Vec<u8>) {
        let initiation = initiation.try_into().expect("an initiation");
        let (_, message) =
            self.handshaker.consume_initiation(initiation, Endpoint::new(HERE), now, &mut self.rng).unwrap();
        let ToOwner::Install { peer, keypair, endpoint, response } = message else { panic!("{message:?}") };
        let mut session = PeerSession::temporary(peer, &Limits::PAPER, 0);
        session.install(&keypair, endpoint, now);
        let _ = session.take_actions();
        self.session = Some((peer, session));
        (peer, response.unwrap().to_vec())
    }

    /// What a message says, and the verdict on its proof.
    fn hear(&mut self, message: &[u8], now: Time) -> (u32, Enroll, Result<(), NotInvited>) {
        let header = TransportHeader::parse(message).unwrap();
        let (peer, session) = self.session.as_mut().unwrap();
        let name = session.keypair(header.receiver).unwrap();
        let mut text = message[TRANSPORT_HEADER_LEN..].to_vec();
        let key = session.opening_key(name, header.suite).unwrap();
        let length = aead::open(key, header.counter, &mut text).expect("authentic");
        session.received(name, Endpoint::new(HERE), true, 1, now);
        let _ = session.take_actions();
        let frame = Frame::parse(&text[..length]).unwrap();
        assert_eq!(frame.operation, Operation::Enroll);
        let enroll = Enroll::read(frame.body).unwrap();
        let verdict = self.handshaker.invited(*peer, header.receiver, &enroll.own, &enroll.proof);
        (frame.stream_id, enroll, verdict)
    }

    fn say(&mut self, frame: &[u8], now: Time) -> Vec<u8> {
        self.session.as_mut().unwrap().1.message(frame, now).unwrap()
    }
}

struct Client {
    machine: Enrolment,
    rng: ScriptedRng,
    now: Time,
}

impl Client {
    fn new(seed: u64) -> Self {
        let mut rng = ScriptedRng::seeded(seed);
        let now = Time::from_nanos(1_000_000_000);
        let machine = Enrolment::new(invite(), PublicKey([7; 32]), now, &mut rng).unwrap();
        Self { machine, rng, now }
    }

    /// What is next to be sent, whenever that is.
    fn next(&mut self) -> Vec<u8> {
        self.now = self.now.max(self.machine.deadline());
        let stamp = Tai64n::from_unix(self.now.since(Time::default()) + Duration::from_secs(1_790_000_000));
        self.machine.next_datagram(self.now, stamp, &mut self.rng).expect("it is due")
    }

    fn take(&mut self, mut datagram: Vec<u8>) -> Option<Outcome> {
        self.machine.handle(&mut datagram, HERE, self.now)
    }
}

fn enrolled() -> Enrolled {
    Enrolled {
        reply: AddrReply { ipv4: Some(([100, 64, 0, 7].into(), 10)), ..AddrReply::default() },
        settings: Settings { mtu: 1420, ..Settings::default() },
        name: "phones-1".to_owned(),
        keepalive: 25,
    }
}

#[test]
fn a_client_proves_in_its_session_that_it_is_invited_and_learns_who_it_is() {
    for seed in 0..8 {
        let (mut client, mut gateway) = (Client::new(seed), Gateway::new());
        let initiation = client.next();
        let (_, response) = gateway.answer(&initiation, client.now);
        assert_eq!(client.take(response), None);
        let (stream_id, enroll, verdict) = gateway.hear(&client.next(), client.now);
        assert_eq!((enroll.own, verdict), (PublicKey([7; 32]), Ok(())));
        // The answer to somebody else's, then ours, which cannot be replayed.
        let other = gateway.say(&enrolled().write(stream_id ^ 1), client.now);
        assert_eq!(client.take(other), None);
        let answer = gateway.say(&enrolled().write(stream_id), client.now);
        assert_eq!(client.take(answer.clone()), Some(Outcome::Enrolled(Box::new(enrolled()))));
        assert_eq!(client.take(answer), None);
    }
}

#[test]
fn on_silence_it_tries_other_uses_at_other_places_and_says_the_same_there() {
    let (mut client, mut gateway) = (Client::new(3), Gateway::new());
    let (mut uses, mut places, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..6 {
        let (before, initiation) = (client.now, client.next());
        waits.push(client.now.since(before));
        places.push(client.machine.place());
        uses.push(gateway.answer(&initiation, client.now).0);
    }
    assert_eq!(places, [0, 1, 0, 1, 0, 1]);
    assert!(uses.windows(2).all(|pair| pair[0] != pair[1]), "{uses:?}");
    assert_eq!(waits[0], Duration::ZERO);
    for (wait, least) in waits[1..].iter().zip([1, 2, 3, 4, 4]) {
        let least = Duration::from_secs(least);
        assert!((least..=least * 3 / 2).contains(wait), "{waits:?}");
    }
    // An answer comes, and then none to what is said twice.
    let initiation = client.next();
    let (used, response) = gateway.answer(&initiation, client.now);
    client.take(response);
    let said: Vec<_> = (0..2).map(|_| gateway.hear(&client.next(), client.now)).collect();
    assert!(said.windows(2).all(|pair| pair[0] == pair[1]) && said[0].2 == Ok(()));
    let initiation = client.next();
    let (other, response) = gateway.answer(&initiation, client.now);
    assert_ne!(used, other);
    client.take(response);
    let (stream_id, enroll, verdict) = gateway.hear(&client.next(), client.now);
    assert_eq!((stream_id, enroll.own, verdict), (said[0].0, said[0].1.own, Ok(())));
    assert_ne!(enroll.proof, said[0].1.proof, "of another session");
}

#[test]
fn a_refusal_is_told_in_plain_letters() {
    let (mut client, mut gateway) = (Client::new(4), Gateway::new());
    let initiation = client.next();
    let (_, response) = gateway.answer(&initiation, client.now);
    client.take(response);
    let (stream_id, ..) = gateway.hear(&client.next(), client.now);
    let problem = problem_saying(stream_id, Code::NotAllowed, "this invite\x1b[2J is spent\n", None, None);
    let answer = gateway.say(&problem, client.now);
    let why = "this invite[2J is spent".to_owned();
    assert_eq!(client.take(answer), Some(Outcome::Refused { why, again: None }));
    let problem = problem_saying(stream_id, Code::NoFreeAddr, "no address is free", Some(60), None);
    let answer = gateway.say(&problem, client.now);
    let why = "no address is free".to_owned();
    assert_eq!(client.take(answer), Some(Outcome::Refused { why, again: Some(60) }));
}

#[test]
fn nothing_of_strangers_is_believed() {
    let (mut client, mut gateway) = (Client::new(5), Gateway::new());
    let initiation = client.next();
    let (_, response) = gateway.answer(&initiation, client.now);
    for at in 0..response.len() {
        let mut forged = response.clone();
        forged[at] ^= 1;
        assert_eq!(client.take(forged), None, "{at}");
        // The second mac is not asked for.
        assert!(client.machine.session.is_none() || at >= response.len() - 16, "{at}");
    }
    for length in 0..300 {
        assert_eq!(client.take(vec![4; length]), None);
    }
    let low = Invite { gateway: PublicKey([0; 32]), ..invite() };
    assert!(Enrolment::new(low, PublicKey([7; 32]), client.now, &mut client.rng).is_err());
}
