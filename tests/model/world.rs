//! Simulated hosts and the network between them.
//!
//! A host is what a process is: a handshake thread (admission, [`Handshaker`]) and an owner ([`PeerSession`]s), with
//! queues between the two that take time and keep their order. Nothing is lost in them but handshake messages that
//! came by the owner's socket. Time is [`World::now`]; events happen in its order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use rand_core::{TryCryptoRng, TryRng};
use ringway::crypto::aead::{self, Span, TAG_LEN};
use ringway::crypto::x25519::PrivateKey;
use ringway::dataplane::admission::{Admission, Arrival, Verdict};
use ringway::noise::agreement::Policy;
use ringway::noise::handshaker::{HandshakeError, Handshaker};
use ringway::noise::index::IndexKey;
use ringway::noise::peer_session::{Actions, PeerSession, Stats};
use ringway::noise::timers::Limits;
use ringway::noise::timestamp::Tai64n;
use ringway::noise::{ToHandshaker, ToOwner};
use ringway::types::{Endpoint, PeerId, PublicKey, Secret, Suite, Time, WorkerId};
use ringway::wire::frame::{self, Frame, Hello, Operation};
use ringway::wire::wireguard::{Kind, TRANSPORT_HEADER_LEN, TransportHeader};

/// Whoever sends from here has recorded what others sent.
pub(crate) const ATTACKER: &str = "203.0.113.66:666";
/// An inner packet: who sent it to whom, and its number, padded to 32 bytes.
const INNER_LEN: usize = 32;
/// 2026-09-22, as good a day as any.
const EPOCH: Duration = Duration::from_secs(1_790_000_000);

/// SplitMix64 (Steele, Lea, Flood 2014): no secret in a test needs more.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let Ok(drawn) = self.try_next_u64();
        drawn % bound.max(1)
    }
}

impl TryRng for Rng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.try_next_u64()? as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(z ^ (z >> 31))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.try_next_u64()?.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Rng {}

/// A datagram that waits for the handshake thread, or a request of the owner.
pub(crate) enum Work {
    Begin(PeerId),
    Message(Vec<u8>, SocketAddr),
}

pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) session: PeerSession,
    /// Which host it is.
    pub(crate) host: usize,
}

pub(crate) struct Host {
    pub(crate) addr: SocketAddr,
    pub(crate) key: Secret,
    /// What it says about suites.
    pub(crate) policy: Policy,
    pub(crate) handshaker: Handshaker,
    pub(crate) gate: Admission<Work>,
    /// What the handshake thread needs for one piece of work.
    pub(crate) work_time: Duration,
    /// How far its wall clock is ahead, seconds; it may jump.
    pub(crate) wall: i64,
    /// By slot.
    pub(crate) peers: BTreeMap<u32, Peer>,
    /// Slots by receiver index, as the owner knows them.
    indices: BTreeMap<u32, u32>,
    serving: bool,
    /// Numbers of inner packets, in the order of their arrival.
    pub(crate) delivered: Vec<u64>,
    /// When sessions were confirmed.
    pub(crate) connected: Vec<Time>,
    /// Datagrams that were consumed: who replays them must get nowhere.
    pub(crate) recorded: Vec<Vec<u8>>,
    pub(crate) refused: Vec<HandshakeError>,
    pub(crate) cookies_sent: u64,
    pub(crate) initiations_sent: u64,
}

#[derive(Clone, Copy)]
pub(crate) struct Network {
    /// Per cent of the datagrams that are lost, and of the handshake messages handed over inside a host.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    /// Longest delay, ms; a random one is what reorders.
    pub(crate) delay: u64,
    /// Per cent of the datagrams that arrive with a bit changed.
    pub(crate) changed: u64,
    /// A middlebox drops datagrams whose reserved bytes are not zero.
    pub(crate) drops_marked: bool,
    /// Every HELLO is lost.
    pub(crate) loses_hello: bool,
}

pub(crate) const PERFECT: Network =
    Network { loss: 0, duplicates: 0, delay: 5, changed: 0, drops_marked: false, loses_hello: false };

enum Event {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Admit { me: usize, from: SocketAddr, bytes: Vec<u8> },
    ToHandshaker(usize, ToHandshaker),
    ToOwner(usize, ToOwner),
    Serve(usize),
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) rng: Rng,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    /// Inner queues keep their order: when the last message of each arrives.
    to_owner: Vec<Time>,
    to_handshaker: Vec<Time>,
    payloads: u64,
    sealed: HashSet<([u8; TAG_LEN], u64)>,
    /// Counters used, in whichever suite: who sealed, for which receiver index.
    counters: HashSet<(usize, u32, u64)>,
    /// By who has it and the other's index: the own index of a keypair.
    own_index: HashMap<(usize, u32), u32>,
    /// Who has said in which keypair, by its own index, that it opens AES-256-GCM.
    declared: HashSet<(usize, u32)>,
    /// Control frames sealed.
    pub(crate) frames: u64,
    /// Datagrams put on the wire by hosts: sender, receiver, bytes.
    pub(crate) wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn public(secret: &Secret) -> PublicKey {
    *PrivateKey::new(secret).public()
}

impl World {
    /// Hosts 1, 2, … are clients of host 0, which knows no client's address.
    pub(crate) fn new(seed: u64, clients: usize, network: Network) -> Self {
        Self::speaking(seed, &vec![Policy::default(); clients + 1], network)
    }

    /// The same with a policy for each host.
    pub(crate) fn speaking(seed: u64, policies: &[Policy], network: Network) -> Self {
        let clients = policies.len() - 1;
        let now = Time::from_nanos(1_000_000_000_000);
        let hosts: Vec<Host> = policies
            .iter()
            .enumerate()
            .map(|(n, policy)| Host { policy: *policy, ..host(n, seed) })
            .collect();
        let times = vec![now; hosts.len()];
        let mut world = Self {
            now,
            hosts,
            network,
            rng: Rng(seed ^ 0xabcd),
            events: BTreeMap::new(),
            sequence: 0,
            to_owner: times.clone(),
            to_handshaker: times,
            payloads: 0,
            sealed: HashSet::new(),
            counters: HashSet::new(),
            own_index: HashMap::new(),
            declared: HashSet::new(),
            frames: 0,
            wire: Vec::new(),
        };
        for client in 1..=clients {
            world.add_peer(0, client, 0, None);
            world.add_peer(client, 0, 0, None);
            let gateway = world.hosts[0].addr;
            world.touch(client, 0, |session, now| session.set_endpoint(Some(gateway), now));
        }
        world
    }

    /// Makes `other` a peer of `me`, in the slot of its number.
    pub(crate) fn add_peer(&mut self, me: usize, other: usize, generation: u32, psk: Option<Secret>) {
        let id = PeerId { slot: other as u32, generation };
        let public = public(&self.hosts[other].key);
        let seed = self.rng.below(u64::MAX);
        let host = &mut self.hosts[me];
        host.handshaker.add_peer(id, WorkerId(0), public, psk).unwrap();
        let session = PeerSession::new(id, Limits::PAPER, seed).with_policy(host.policy);
        assert!(host.peers.insert(id.slot, Peer { id, session, host: other }).is_none());
    }

    /// As the control thread does it: first where sessions are made, then where they live.
    pub(crate) fn remove_peer(&mut self, me: usize, other: usize) -> PeerId {
        let slot = other as u32;
        let id = self.hosts[me].peers[&slot].id;
        self.hosts[me].handshaker.remove_peer(id);
        self.touch(me, other, |session, _| session.close());
        self.hosts[me].peers.remove(&slot);
        id
    }

    /// A PSK applies at once: what was made with the old one arrives before the session is cleared.
    pub(crate) fn set_psk(&mut self, me: usize, other: usize, psk: Option<Secret>) {
        let id = self.hosts[me].peers[&(other as u32)].id;
        self.hosts[me].handshaker.set_psk(id, psk);
        self.hurry_to_owner(me);
        self.touch(me, other, |session, _| session.clear());
    }

    pub(crate) fn set_private_key(&mut self, me: usize, key: Secret) {
        self.hosts[me].key = key.clone();
        assert!(self.hosts[me].handshaker.set_private_key(Some(key)).is_empty());
        self.hurry_to_owner(me);
        let others: Vec<usize> = self.hosts[me].peers.values().map(|peer| peer.host).collect();
        for other in others {
            self.touch(me, other, |session, _| session.clear());
        }
    }

    fn hurry_to_owner(&mut self, me: usize) {
        let mine = |event: &Event| matches!(event, Event::ToOwner(host, _) if *host == me);
        let keys: Vec<_> = self.events.iter().filter(|(_, event)| mine(event)).map(|(key, _)| *key).collect();
        for key in keys {
            let event = self.events.remove(&key).unwrap();
            self.handle(event);
        }
    }

    /// The process ends and begins again: nothing survives but configuration, and the greatest timestamps if
    /// `restore`.
    pub(crate) fn restart(&mut self, me: usize, restore: bool) {
        let seed = self.rng.below(u64::MAX);
        let stamp = self.stamp(me);
        let fresh = host(me, seed);
        let old = std::mem::replace(&mut self.hosts[me], fresh);
        self.events.retain(|_, event| {
            !matches!(event, Event::Admit { me: host, .. } | Event::ToHandshaker(host, _)
                | Event::ToOwner(host, _) | Event::Serve(host) if *host == me)
        });
        let host = &mut self.hosts[me];
        (host.addr, host.wall, host.recorded, host.delivered) =
            (old.addr, old.wall, old.recorded, old.delivered);
        host.key = old.key;
        host.policy = old.policy;
        host.handshaker.set_private_key(Some(host.key.clone()));
        for (&slot, peer) in &old.peers {
            self.add_peer(me, peer.host, peer.id.generation, None);
            let configured = me != 0;
            let endpoint = peer.session.endpoint().filter(|_| configured);
            let host = &mut self.hosts[me];
            if let Some(session) = host.peers.get_mut(&slot) {
                session.session.set_endpoint(endpoint.map(|endpoint| endpoint.remote), self.now);
            }
        }
        if restore {
            for (id, greatest) in old.handshaker.timestamps() {
                self.hosts[me].handshaker.restore_timestamp(id, greatest, stamp);
            }
        }
    }

    fn stamp(&self, me: usize) -> Tai64n {
        let clock = EPOCH + Duration::from_nanos(self.now.as_nanos());
        let ahead = Duration::from_secs(self.hosts[me].wall.unsigned_abs());
        Tai64n::from_unix(if self.hosts[me].wall < 0 { clock - ahead } else { clock + ahead })
    }

    pub(crate) fn session(&self, me: usize, other: usize) -> &PeerSession {
        &self.hosts[me].peers[&(other as u32)].session
    }

    pub(crate) fn endpoint(&self, me: usize, other: usize) -> Option<SocketAddr> {
        self.session(me, other).endpoint().map(|endpoint| endpoint.remote)
    }

    /// What a session tells of its peer and what a replay must leave as it is.
    pub(crate) fn standing(&self, me: usize, other: usize) -> (Option<SocketAddr>, Stats, usize) {
        (self.endpoint(me, other), self.session(me, other).stats(), self.hosts[me].connected.len())
    }

    /// Calls a method of a session and does what that asks for.
    pub(crate) fn touch(&mut self, me: usize, other: usize, act: impl FnOnce(&mut PeerSession, Time)) {
        let now = self.now;
        if let Some(peer) = self.hosts[me].peers.get_mut(&(other as u32)) {
            act(&mut peer.session, now);
        }
        self.settle(me, other as u32);
    }

    /// An application on `me` sends to `other`; returns the packet's number.
    pub(crate) fn send(&mut self, me: usize, other: usize) -> u64 {
        self.payloads += 1;
        let number = self.payloads;
        let mut inner = [0; INNER_LEN];
        inner[0] = me as u8;
        inner[1] = other as u8;
        inner[8..16].copy_from_slice(&number.to_le_bytes());
        self.touch(me, other, |session, now| drop(session.stage(Box::new(inner), now)));
        number
    }

    fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    fn after(&mut self, most_ms: u64) -> Time {
        self.now + Duration::from_micros(10 + self.rng.below(most_ms * 1000))
    }

    /// Puts a datagram of a host on the wire.
    fn transmit(&mut self, me: usize, to: SocketAddr, bytes: &[u8]) {
        let from = self.hosts[me].addr;
        self.wire.push((from, to, bytes.to_vec()));
        let copies = 1 + u64::from(self.rng.below(100) < self.network.duplicates);
        let marked = bytes[0] == 4 && bytes[1..4] != [0; 3];
        for _ in 0..copies {
            if self.rng.below(100) >= self.network.loss && !(marked && self.network.drops_marked) {
                let at = self.after(self.network.delay);
                let mut bytes = bytes.to_vec();
                if self.network.changed > 0 && self.rng.below(100) < self.network.changed {
                    let bit = self.rng.below(bytes.len() as u64 * 8) as usize;
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                self.schedule(at, Event::Datagram { from, to, bytes });
            }
        }
    }

    /// Anybody sends anything, and it arrives.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let at = self.after(1);
        self.schedule(at, Event::Datagram { from, to, bytes });
    }

    /// Does what a session asks for, as a worker does.
    fn settle(&mut self, me: usize, slot: u32) {
        loop {
            let Some(peer) = self.hosts[me].peers.get_mut(&slot) else { return };
            let id = peer.id;
            let actions = peer.session.take_actions();
            if actions == Actions::default() {
                return;
            }
            for index in actions.released {
                assert!(self.hosts[me].indices.remove(&index).is_some(), "released what was not installed");
                self.ask_handshaker(me, ToHandshaker::Release { index });
            }
            if actions.begin {
                self.ask_handshaker(me, ToHandshaker::Begin { peer: id });
            }
            if actions.connected {
                self.hosts[me].connected.push(self.now);
            }
            let mut sent = false;
            while actions.flush_staged && self.can_send(me, slot) {
                let packet = self.hosts[me].peers.get_mut(&slot).and_then(|peer| peer.session.pop_staged());
                let Some(packet) = packet else { break };
                self.seal(me, slot, None, &packet);
                sent = true;
            }
            if actions.keepalive && !sent {
                self.seal(me, slot, None, &[]);
            }
            while self.can_send(me, slot) {
                let now = self.now;
                let said = self.hosts[me].peers.get_mut(&slot).and_then(|peer| peer.session.next_frame(now));
                let Some((suite, frame)) = said else { break };
                self.seal(me, slot, Some(suite), &frame);
            }
        }
    }

    fn can_send(&self, me: usize, slot: u32) -> bool {
        self.hosts[me].peers.get(&slot).is_some_and(|peer| peer.session.can_send(self.now))
    }

    /// Seals a packet, a keepalive or, in a suite of its own, a frame.
    fn seal(&mut self, me: usize, slot: u32, suite: Option<Suite>, text: &[u8]) {
        let now = self.now;
        let session = &mut self.hosts[me].peers.get_mut(&slot).unwrap().session;
        let reserved = match suite {
            None => session.reserve(1, now),
            Some(suite) => session.reserve_in(suite, now),
        };
        let Some(reserved) = reserved else { return };
        let key = session.sealing_key(reserved.remote_index, reserved.suite, text.len() + 32).unwrap();
        let counter = reserved.first_counter;
        // What a key makes of nothing tells it from every other.
        let mut mark = [0; TAG_LEN];
        assert!(aead::seal_run(key, counter, &mut mark, &[Span { start: 0, len: 0 }]));
        assert!(self.sealed.insert((mark, counter)), "a counter is used twice");
        let mut message = TransportHeader { receiver: reserved.remote_index, counter, suite: reserved.suite }
            .to_bytes()
            .to_vec();
        message.extend(text);
        message.resize(message.len() + TAG_LEN, 0);
        let span = Span { start: TRANSPORT_HEADER_LEN, len: text.len() };
        assert!(aead::seal_run(key, counter, &mut message, &[span]));
        session.sent(!text.is_empty(), message.len() as u64, now);
        let endpoint = session.endpoint().expect("a session has an endpoint").remote;
        let other = self.hosts[me].peers[&slot].host;
        let receiver = reserved.remote_index;
        assert!(self.counters.insert((me, receiver, counter)), "a counter is used by both suites");
        if reserved.suite != Suite::ChaCha20Poly1305 {
            assert!(
                self.declared.contains(&(other, receiver)),
                "sealed in a suite not declared in this keypair"
            );
        }
        self.frames += u64::from(suite.is_some());
        let hello = Frame::parse(text).ok().filter(|frame| frame.operation == Operation::Hello);
        if hello.and_then(|frame| Hello::read(frame.body)).is_some_and(|hello| hello.aes) {
            self.declared.insert((me, self.own_index[&(me, receiver)]));
        }
        if hello.is_none() || !self.network.loses_hello {
            self.transmit(me, endpoint, &message);
        }
    }

    fn ask_handshaker(&mut self, me: usize, message: ToHandshaker) {
        let at = self.after(3).max(self.to_handshaker[me]);
        self.to_handshaker[me] = at;
        self.schedule(at, Event::ToHandshaker(me, message));
    }

    fn tell_owner(&mut self, me: usize, message: ToOwner) {
        let at = self.after(20).max(self.to_owner[me]);
        self.to_owner[me] = at;
        self.schedule(at, Event::ToOwner(me, message));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Datagram { from, to, bytes } => {
                let Some(me) = self.hosts.iter().position(|host| host.addr == to) else { return };
                if TransportHeader::parse(&bytes).is_some() {
                    self.transport(me, from, bytes);
                } else if self.rng.below(4) == 0 {
                    // By the owner's socket: handed over, and lost if the queue is full.
                    if self.rng.below(100) >= self.network.loss {
                        let at = self.after(3);
                        self.schedule(at, Event::Admit { me, from, bytes });
                    }
                } else {
                    self.admit(me, from, bytes);
                }
            }
            Event::Admit { me, from, bytes } => self.admit(me, from, bytes),
            Event::ToHandshaker(me, ToHandshaker::Begin { peer }) => {
                assert!(self.hosts[me].gate.push_own(Work::Begin(peer)).is_ok());
                self.serve_soon(me);
            }
            Event::ToHandshaker(me, ToHandshaker::Release { index }) => {
                self.hosts[me].handshaker.release(index);
            }
            Event::Serve(me) => self.serve(me),
            Event::ToOwner(me, message) => self.key_message(me, message),
        }
    }

    fn transport(&mut self, me: usize, from: SocketAddr, mut bytes: Vec<u8>) {
        let now = self.now;
        let original = bytes.clone();
        let Some(TransportHeader { receiver, counter, suite }) = TransportHeader::parse(&bytes) else {
            return;
        };
        let host = &mut self.hosts[me];
        let Some(&slot) = host.indices.get(&receiver) else { return };
        let peer = host.peers.get_mut(&slot).unwrap();
        let name = peer.session.keypair(receiver).expect("an index of a keypair that is there");
        if peer.session.check(name, counter, now).is_err() {
            return;
        }
        let Some(key) = peer.session.opening_key(name, suite) else { return };
        let outer = bytes.len() as u64;
        let text = &mut bytes[TRANSPORT_HEADER_LEN..];
        let Some(len) = aead::open(key, counter, text) else { return };
        peer.session.accept(name, counter).unwrap();
        let text = &text[..len];
        let mut answer = None;
        if let Ok(frame) = Frame::parse(text) {
            match frame.operation {
                Operation::Hello => {
                    let hello = Hello::read(frame.body).expect("a HELLO of ours");
                    peer.session.hello(name, hello, !frame.is_answer(), now);
                }
                Operation::Ping => {
                    answer = Some(frame::pong(frame.stream_id, frame::ping_data(&frame).unwrap(), 0));
                }
                Operation::Pong => drop(peer.session.pong(name, suite, &frame)),
                other => panic!("{other:?}"),
            }
        }
        peer.session.received(name, Endpoint::new(from), len > 0, outer, now);
        if len > 0 && !frame::is_frame(text) {
            assert_eq!((usize::from(text[0]), usize::from(text[1])), (peer.host, me), "another's packet");
            let number = u64::from_le_bytes(text[8..16].try_into().unwrap());
            assert!(!host.delivered.contains(&number), "delivered twice");
            host.delivered.push(number);
        }
        host.recorded.push(original);
        self.settle(me, slot);
        if let Some(pong) = answer.filter(|_| self.can_send(me, slot)) {
            self.seal(me, slot, Some(suite), &pong);
            self.settle(me, slot);
        }
    }

    fn admit(&mut self, me: usize, from: SocketAddr, bytes: Vec<u8>) {
        let now = self.now;
        let Some(kind) = Kind::of(&bytes) else { return };
        let Host { handshaker, gate, .. } = &mut self.hosts[me];
        let expected = kind != Kind::Initiation && handshaker.expects_answer(&bytes);
        let verdict = gate.offer(
            Arrival { kind, source: from.ip(), expected },
            || handshaker.check_mac1(&bytes),
            || handshaker.check_mac2(&bytes, from, now),
            || Work::Message(bytes.clone(), from),
            now,
        );
        match verdict {
            Verdict::Queued(_) => self.serve_soon(me),
            Verdict::Cookie => {
                let Self { hosts, rng, .. } = self;
                hosts[me].cookies_sent += 1;
                let reply = hosts[me].handshaker.cookie_reply(&bytes, from, now, rng).unwrap();
                self.transmit(me, from, &reply);
            }
            Verdict::Drop(_) => {}
        }
    }

    fn serve_soon(&mut self, me: usize) {
        let host = &mut self.hosts[me];
        if !std::mem::replace(&mut host.serving, true) {
            let at = self.now + host.work_time;
            self.schedule(at, Event::Serve(me));
        }
    }

    fn serve(&mut self, me: usize) {
        self.hosts[me].serving = false;
        let Some((_, work)) = self.hosts[me].gate.pop() else { return };
        self.serve_soon(me);
        let (now, stamp) = (self.now, self.stamp(me));
        let Self { hosts, rng, .. } = self;
        let host = &mut hosts[me];
        host.handshaker.expire(now);
        let result = match &work {
            Work::Begin(peer) => {
                let made = host.handshaker.begin(*peer, stamp, now, rng);
                host.initiations_sent += u64::from(made.is_ok());
                let message = match made {
                    Ok(message) => ToOwner::SendInitiation { peer: *peer, message },
                    Err(_) => ToOwner::BeginFailed { peer: *peer },
                };
                Ok(Some(message))
            }
            Work::Message(bytes, from) => {
                let from = Endpoint::new(*from);
                if let Ok(initiation) = bytes.as_slice().try_into() {
                    let made = host.handshaker.consume_initiation(initiation, from, now, rng);
                    made.map(|(_, message)| Some(message))
                } else if let Ok(response) = bytes.as_slice().try_into() {
                    host.handshaker.consume_response(response, from, now).map(|(_, message)| Some(message))
                } else {
                    let reply = bytes.as_slice().try_into().unwrap();
                    host.handshaker.consume_cookie_reply(reply, now).map(|()| None)
                }
            }
        };
        match result {
            Ok(message) => {
                if let Work::Message(bytes, _) = work {
                    host.recorded.push(bytes);
                }
                if let Some(message) = message {
                    self.tell_owner(me, message);
                }
            }
            Err(error) => host.refused.push(error),
        }
    }

    fn key_message(&mut self, me: usize, message: ToOwner) {
        let now = self.now;
        let (ToOwner::SendInitiation { peer: id, .. }
        | ToOwner::BeginFailed { peer: id }
        | ToOwner::Install { peer: id, .. }) = message;
        let peer = self.hosts[me].peers.get_mut(&id.slot).filter(|peer| peer.id == id);
        match (message, peer) {
            (ToOwner::Install { keypair, .. }, None) => {
                self.ask_handshaker(me, ToHandshaker::Release { index: keypair.local_index });
            }
            (_, None) => {}
            (ToOwner::SendInitiation { message, .. }, Some(peer)) => {
                peer.session.initiation_sent(now);
                let endpoint = peer.session.endpoint();
                if let Some(endpoint) = endpoint {
                    self.transmit(me, endpoint.remote, &message);
                }
            }
            (ToOwner::BeginFailed { .. }, Some(peer)) => peer.session.begin_failed(),
            (ToOwner::Install { keypair, endpoint, response, .. }, Some(peer)) => {
                let before = (peer.session.endpoint(), peer.session.stats());
                let index = keypair.local_index;
                self.own_index.insert((me, keypair.remote_index), index);
                peer.session.install(&keypair, endpoint, now);
                if response.is_some() {
                    let after = (peer.session.endpoint(), peer.session.stats());
                    assert_eq!(after, before, "an initiation proves nothing about now");
                }
                assert!(self.hosts[me].indices.insert(index, id.slot).is_none(), "an index in use");
                if let Some(response) = response {
                    self.transmit(me, endpoint.remote, &response);
                }
            }
        }
        self.settle(me, id.slot);
    }

    /// Lets time pass, everything in its order.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let deadline = |host: &Host| host.peers.values().filter_map(|peer| peer.session.deadline()).min();
            let timer = (self.hosts.iter().enumerate())
                .filter_map(|(me, host)| Some((deadline(host)?, me)))
                .min()
                .filter(|(at, _)| *at <= until);
            let event = self.events.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= until);
            match (timer, event) {
                (None, None) => break,
                (Some((at, me)), event) if event.is_none_or(|(first, _)| at < first) => {
                    self.now = self.now.max(at);
                    self.expire(me);
                }
                (_, Some(key)) => {
                    self.now = self.now.max(key.0);
                    let event = self.events.remove(&key).unwrap();
                    self.handle(event);
                }
                (Some(_), None) => {}
            }
            self.check();
        }
        self.now = until;
    }

    pub(crate) fn run_secs(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    fn expire(&mut self, me: usize) {
        let now = self.now;
        let due: Vec<u32> = (self.hosts[me].peers.iter())
            .filter(|(_, peer)| peer.session.deadline().is_some_and(|at| at <= now))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in due {
            self.touch(me, slot as usize, PeerSession::handle_timeout);
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let attacker = addr(ATTACKER);
        for host in &self.hosts {
            for peer in host.peers.values() {
                let endpoint = peer.session.endpoint().map(|endpoint| endpoint.remote);
                assert_ne!(endpoint, Some(attacker), "who only replays has become a peer's endpoint");
            }
        }
    }

    /// The handshake thread's heartbeat, and how many indices are in use.
    pub(crate) fn indices_in_use(&mut self, me: usize) -> usize {
        let now = self.now;
        self.hosts[me].handshaker.expire(now);
        self.hosts[me].handshaker.indices_in_use()
    }
}

fn host(n: usize, seed: u64) -> Host {
    let key = Secret([n as u8 + 1; 32]);
    let mut rng = Rng(seed ^ n as u64);
    let mut handshaker = Handshaker::new(1, IndexKey::random(&mut rng));
    handshaker.set_private_key(Some(key.clone()));
    Host {
        addr: SocketAddr::new([198, 18, 0, n as u8 + 1].into(), 51820),
        key,
        policy: Policy::default(),
        handshaker,
        gate: Admission::new(),
        work_time: Duration::from_micros(100),
        wall: 0,
        peers: BTreeMap::new(),
        indices: BTreeMap::new(),
        serving: false,
        delivered: Vec::new(),
        connected: Vec::new(),
        recorded: Vec::new(),
        refused: Vec::new(),
        cookies_sent: 0,
        initiations_sent: 0,
    }
}
