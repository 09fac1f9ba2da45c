//! A worker on a bench: events come from a queue, keys are installed by hand, the TUN queue is one end of a packet
//! socket pair, and the outer socket is either real UDP over loopback or such a pair as well.
//!
//! A SEQPACKET pair ignores address and control messages of a `sendmsg`, takes each send whole, and is full when its
//! buffer is: what a UDP socket is behind a slow device, without root.

use std::cell::RefCell;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;

use super::*;
use crate::crypto::aead::{self, Key, Span};
use crate::crypto::hash::hkdf_sha256;
use crate::dataplane::allowed_ips::AllowedIps;
use crate::dataplane::handoff::{AskedLink, Bell, SessionChange, ToControl, worker_channels};
use crate::dataplane::io::{Datagrams, IoCounters};
use crate::dataplane::offload::coalesce::Config;
use crate::noise::{NewKeypair, Role};
use crate::sys::arena::Arena;
use crate::sys::eventfd::EventFd;
use crate::types::{Endpoint, Prefix, Secret, Suite};
use crate::wire::wireguard::{TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, TransportHeader};

/// The device's MTU on the bench.
pub(crate) const MTU: usize = 1420;
/// Send buffers of a worker on the bench.
pub(crate) const BUFFERS: u16 = 8;
/// Names the owner of an index.
const INDEX_KEY: IndexKey = IndexKey::new([1, 2, 3]);

/// What was asked of the fake, and what it will yield.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) events: VecDeque<Event>,
    pub(crate) armed: Vec<Target>,
    pub(crate) reads_tun: Vec<bool>,
    pub(crate) replaced: Vec<(Family, bool)>,
    /// Of the last wait.
    pub(crate) timeout: Option<Duration>,
}

/// Yields what the script holds and never sleeps.
pub(crate) struct FakeIo(Rc<RefCell<Script>>);

impl Io for FakeIo {
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let mut script = self.0.borrow_mut();
        script.timeout = timeout;
        events.extend(script.events.drain(..));
        Ok(())
    }

    fn arm_writable(&mut self, target: Target) {
        let mut script = self.0.borrow_mut();
        if !script.armed.contains(&target) {
            script.armed.push(target);
        }
    }

    fn read_tun(&mut self, on: bool) {
        self.0.borrow_mut().reads_tun.push(on);
    }

    fn replace_udp(&mut self, family: Family, socket: Option<std::os::fd::BorrowedFd<'_>>) -> io::Result<()> {
        self.0.borrow_mut().replaced.push((family, socket.is_some()));
        Ok(())
    }

    fn counters(&self) -> IoCounters {
        IoCounters::default()
    }
}

/// A packet socket pair that never waits. The near end holds about `buffer` bytes before it is full.
pub(crate) fn pair(buffer: usize) -> (OwnedFd, Socket) {
    let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    near.set_send_buffer_size(buffer).unwrap();
    (near.into(), far)
}

/// All packets that came out of the far end.
pub(crate) fn drain(far: &Socket) -> Vec<Vec<u8>> {
    use std::io::Read as _;
    let mut packet = vec![0; 70_000];
    let mut packets = Vec::new();
    // Nothing is a packet of no bytes: that is the near end closed.
    while let Ok(len @ 1..) = (&mut &*far).read(&mut packet) {
        packets.push(packet[..len].to_vec());
    }
    packets
}

/// What may differ between benches.
pub(crate) struct Options {
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    pub(crate) segment_limit: usize,
    /// The outer socket is real UDP.
    pub(crate) udp: bool,
    /// Bytes that the outer socket holds if it is a pair.
    pub(crate) buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::PAPER,
            policy: Policy::default(),
            segment_limit: 64,
            udp: false,
            buffer: 200_000,
        }
    }
}

/// One worker and all that it touches.
pub(crate) struct Bench {
    pub(crate) worker: Worker<FakeIo>,
    pub(crate) script: Rc<RefCell<Script>>,
    /// The network stack's end of the TUN queue.
    pub(crate) tun: Socket,
    /// Where outer datagrams come out, if the outer socket is a pair.
    pub(crate) wire: Socket,
    pub(crate) link: WorkerLink,
    pub(crate) requests: Receiver<Request>,
    /// Of the first worker, for all.
    pub(crate) asked: Option<mpsc::Receiver<ToControl>>,
    pub(crate) slots: Arena,
    udp: bool,
}

impl Bench {
    /// The only worker.
    pub(crate) fn with(options: &Options) -> Self {
        Self::build(1, options).pop().unwrap()
    }

    /// The only worker, with a real UDP socket.
    pub(crate) fn udp() -> Self {
        Self::with(&Options { udp: true, ..Options::default() })
    }

    /// The only worker, with a pair as its outer socket.
    pub(crate) fn wire() -> Self {
        Self::with(&Options::default())
    }

    /// Workers of one process, each with an outer socket of its own.
    pub(crate) fn build(count: u16, options: &Options) -> Vec<Self> {
        let bell = || Bell::new(EventFd::new().unwrap());
        let (links, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| worker_channels(bell())).unzip();
        let (request_link, requests) = RequestLink::new(bell());
        let (asked_link, asked) = AskedLink::new();
        let mut asked = Some(asked);
        let switches = Switches::default();
        let build = |(id, inbox): (u16, WorkerInbox)| {
            let (tun, tun_far) = pair(400_000);
            let (wire, wire_far) = pair(options.buffer);
            let real = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().into();
            let socket = if options.udp { real() } else { wire };
            let sockets = Sockets { v4: Some(Arc::new(socket)), v6: None };
            let parts = Parts {
                id: WorkerId(id),
                workers: links.clone(),
                requests: request_link.clone(),
                asked: asked_link.clone(),
                index_key: INDEX_KEY,
                limits: options.limits,
                policy: options.policy,
                mtu: MTU as u32,
                vnet_header: true,
                board: Some(Arc::default()),
                switches: switches.clone(),
            };
            if options.segment_limit <= 1 {
                parts.switches.set(Switch::UdpSend, Some(Reason::Unsupported));
            }
            let core = Core::new(parts, Peers::new(AllowedIps::new(), clock::boottime()));
            let inbound = Inbound::new(Arc::new(tun), Config { tcp: true, udp: true }, true);
            let outbound = Outbound::new(sockets, BUFFERS, options.segment_limit).unwrap();
            let script = Rc::new(RefCell::new(Script::default()));
            Self {
                worker: Worker::new(FakeIo(Rc::clone(&script)), inbox, core, inbound, outbound),
                script,
                tun: tun_far,
                wire: wire_far,
                link: links[usize::from(id)].clone(),
                requests: requests.clone(),
                asked: asked.take(),
                slots: Arena::new(64, 66_000).unwrap(),
                udp: options.udp,
            }
        };
        (0..count).zip(inboxes).map(build).collect()
    }

    pub(crate) fn turn(&mut self) {
        self.worker.turn().unwrap();
    }

    pub(crate) fn control(&mut self, message: ToWorker) {
        assert!(self.link.control(message));
        self.turn();
    }

    /// Tells of a peer without keys whose addresses are 100.64.0.`host` and fd00::`host`; `owner` gets its session.
    pub(crate) fn add(&mut self, remote: &Remote, owner: WorkerId) {
        if owner == self.worker.core.id {
            self.control(ToWorker::AddPeer(remote.id));
        }
        let v6 = format!("fd00::{:x}", remote.host).parse().unwrap();
        let prefixes = [
            (Prefix::new(Ipv4Addr::new(100, 64, 0, remote.host).into(), 32).unwrap(), remote.id, owner),
            (Prefix::new(v6, 128).unwrap(), remote.id, owner),
        ];
        self.control(ToWorker::AddPrefixes(prefixes.into()));
    }

    /// A peer whose address is known, without keys.
    pub(crate) fn stranger(&mut self, host: u8) -> Remote {
        let id = self.worker.core.id;
        let remote = Remote::new(host, id, self.worker.core.workers.len() as u16);
        self.add(&remote, id);
        self.control(ToWorker::SetEndpoint(remote.id, remote.endpoint().remote));
        remote
    }

    /// A peer with keys, its keypair current and confirmed, and all that led there cleared away.
    pub(crate) fn peer(&mut self, host: u8) -> Remote {
        let remote = self.stranger(host);
        self.install(&remote, Role::Initiator);
        let keepalive = self.sent(&remote, 1);
        assert_eq!(remote.keys.open(&keepalive[0]), (0, vec![]));
        self.requests();
        self.worker.core.counters = WorkerCounters::default();
        remote
    }

    /// Installs the remote's keys.
    pub(crate) fn install(&mut self, remote: &Remote, role: Role) {
        let response = (role == Role::Responder).then_some([2; crate::wire::wireguard::RESPONSE_LEN]);
        self.link.keys(ToOwner::Install {
            peer: remote.id,
            keypair: Box::new(remote.keys.keypair(role)),
            endpoint: remote.endpoint(),
            response,
        });
        self.turn();
    }

    /// Exactly `count` sends to this peer: from the pair, each whole, or datagrams from the peer's socket.
    pub(crate) fn sent(&self, remote: &Remote, count: usize) -> Vec<Vec<u8>> {
        if self.udp {
            return remote.datagrams(count);
        }
        let sent = drain(&self.wire);
        assert_eq!(sent.len(), count, "sends");
        sent
    }

    /// A read of the TUN queue, for the next turn.
    pub(crate) fn read(&mut self, read: &[u8]) {
        let mut slot = self.slots.take().unwrap();
        slot[..read.len()].copy_from_slice(read);
        self.script.borrow_mut().events.push_back(Event::Tun(TunRead { slot, len: read.len() }));
    }

    /// A receive of these datagrams, for the next turn: all but the last have the length of the first.
    pub(crate) fn receive(&mut self, datagrams: &[Vec<u8>], from: Endpoint) {
        const START: usize = 300;
        let segment = datagrams.first().map_or(1, Vec::len).max(1);
        assert!(datagrams.iter().rev().skip(1).all(|datagram| datagram.len() == segment));
        let mut slot = self.slots.take().unwrap();
        let mut len = 0;
        for datagram in datagrams {
            slot[START + len..START + len + datagram.len()].copy_from_slice(datagram);
            len += datagram.len();
        }
        let Endpoint { remote, source } = from;
        let received =
            Datagrams { slot, start: START, len, segment, remote, source, tos: 0, truncated: false };
        self.script.borrow_mut().events.push_back(Event::Datagrams(received));
    }

    /// One receive of one datagram, and a turn.
    pub(crate) fn deliver(&mut self, datagram: Vec<u8>, from: Endpoint) {
        self.receive(&[datagram], from);
        self.turn();
    }

    /// The outer socket takes data again, and a turn.
    pub(crate) fn writable(&mut self) {
        self.script.borrow_mut().armed.clear();
        self.script.borrow_mut().events.push_back(Event::Writable(Target::Udp(Family::V4)));
        self.turn();
    }

    /// True if the worker wants to hear when the IPv4 socket is writable.
    pub(crate) fn is_armed(&self) -> bool {
        self.script.borrow().armed == [Target::Udp(Family::V4)]
    }

    /// True if the worker would have slept in its last wait.
    pub(crate) fn slept(&self) -> bool {
        self.script.borrow().timeout != Some(Duration::ZERO)
    }

    pub(crate) fn counters(&self) -> &WorkerCounters {
        &self.worker.core.counters
    }

    /// Asserts which drops were counted since the last call, all others none.
    pub(crate) fn assert_drops(&mut self, expected: &[(Drop, u64)]) {
        for reason in Drop::ALL {
            let count = expected.iter().find(|(name, _)| name == reason).map_or(0, |(_, count)| *count);
            assert_eq!(self.counters().drops.of(*reason), count, "{reason:?}");
        }
        self.worker.core.counters.drops = crate::metrics::drops::Drops::default();
    }

    /// What the first worker told control since the last call, for all.
    pub(crate) fn told(&mut self) -> Vec<ToControl> {
        let asked = self.asked.as_mut().unwrap();
        std::iter::from_fn(|| asked.try_recv().ok()).collect()
    }

    /// What it told of sessions; what clients asked for is gone as well.
    pub(crate) fn news(&mut self) -> Vec<(PeerId, SessionChange)> {
        let news = |told| if let ToControl::Session(id, change) = told { Some((id, change)) } else { None };
        self.told().into_iter().filter_map(news).collect()
    }

    /// Requests to the handshake thread so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.try_iter().collect()
    }

    /// Indices released so far, in order of their numbers; other requests are passed over.
    pub(crate) fn released(&self) -> Vec<u32> {
        let index = |request| match request {
            Request::Protocol(ToHandshaker::Release { index }) => Some(index),
            _ => None,
        };
        let mut indices: Vec<u32> = self.requests().into_iter().filter_map(index).collect();
        indices.sort_unstable();
        indices
    }

    pub(crate) fn session(&mut self, remote: &Remote) -> &mut PeerSession {
        &mut self.worker.core.peers.by_id(remote.id).unwrap().session
    }
}

/// One keypair, seen from the other side.
pub(crate) struct Keys {
    /// The worker's receiver index.
    pub(crate) index: u32,
    /// The remote's receiver index.
    pub(crate) remote_index: u32,
    pub(crate) counter: u64,
}

impl Keys {
    /// Keys that no other number has; the index belongs to `owner`.
    pub(crate) fn new(number: u32, owner: WorkerId, workers: u16) -> Self {
        let index = (number << 8..).find(|index| INDEX_KEY.owner(*index, workers) == owner).unwrap();
        Self { index, remote_index: index ^ 0x8000_0000, counter: 0 }
    }

    fn secret(&self, to_worker: bool) -> Secret {
        let mut bytes = [u8::from(to_worker); 32];
        bytes[..4].copy_from_slice(&self.index.to_le_bytes());
        Secret(bytes)
    }

    fn third(&self) -> Secret {
        let mut bytes = [3; 32];
        bytes[..4].copy_from_slice(&self.index.to_le_bytes());
        Secret(bytes)
    }

    pub(crate) fn keypair(&self, role: Role) -> NewKeypair {
        let (send, recv) = (self.secret(false), self.secret(true));
        let third = self.third();
        let transcript = Secret([0; 32]);
        let (local_index, remote_index) = (self.index, self.remote_index);
        NewKeypair { send, recv, third, transcript, local_index, remote_index, role }
    }

    /// A transport message to the worker, padded, with the next counter.
    pub(crate) fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut padded = text.to_vec();
        padded.resize(text.len().next_multiple_of(16), 0);
        self.seal_at(self.counter - 1, &padded)
    }

    /// A transport message to the worker, as it is.
    pub(crate) fn seal_at(&self, counter: u64, text: &[u8]) -> Vec<u8> {
        self.seal_in(Suite::ChaCha20Poly1305, counter, text)
    }

    /// A transport message to the worker, as it is, in either suite. (The worker is the handshake's initiator.)
    pub(crate) fn seal_in(&self, suite: Suite, counter: u64, text: &[u8]) -> Vec<u8> {
        let header = TransportHeader { receiver: self.index, counter, suite };
        let mut message = header.to_bytes().to_vec();
        message.extend(text);
        message.resize(text.len() + TRANSPORT_OVERHEAD, 0);
        let span = Span { start: TRANSPORT_HEADER_LEN, len: text.len() };
        assert!(aead::seal_run(&self.key(suite, true), counter, &mut message, &[span]));
        message
    }

    /// The same with the next counter, padded.
    pub(crate) fn seal_next_in(&mut self, suite: Suite, text: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut padded = text.to_vec();
        padded.resize(text.len().next_multiple_of(16), 0);
        self.seal_in(suite, self.counter - 1, &padded)
    }

    fn key(&self, suite: Suite, to_worker: bool) -> Key {
        match suite {
            Suite::ChaCha20Poly1305 => Key::new(&self.secret(to_worker)),
            Suite::Aes256Gcm => {
                let way: &[u8] = if to_worker { b"r2i" } else { b"i2r" };
                Key::of(suite, &hkdf_sha256(&self.third(), &[b"ringway v1 aes-256-gcm", way]))
            }
        }
    }

    /// Opens a transport message of the worker: counter and padded text.
    pub(crate) fn open(&self, message: &[u8]) -> (u64, Vec<u8>) {
        let (header, text) = self.open_any(message);
        (header.counter, text)
    }

    /// Opens a transport message of the worker: header and padded text.
    pub(crate) fn open_any(&self, message: &[u8]) -> (TransportHeader, Vec<u8>) {
        let header = TransportHeader::parse(message).expect("a transport message");
        assert_eq!(header.receiver, self.remote_index);
        let mut text = message[TRANSPORT_HEADER_LEN..].to_vec();
        let key = self.key(header.suite, false);
        let len = aead::open(&key, header.counter, &mut text).expect("an authentic message");
        text.truncate(len);
        (header, text)
    }

    /// Opens whole sends: each a run of datagrams of `segment` bytes, the last perhaps shorter.
    pub(crate) fn open_runs(&self, runs: &[Vec<u8>], segment: usize) -> Vec<(u64, Vec<u8>)> {
        runs.iter().flat_map(|run| run.chunks(segment)).map(|message| self.open(message)).collect()
    }
}

/// A peer: keys and a real UDP socket on loopback.
pub(crate) struct Remote {
    pub(crate) id: PeerId,
    pub(crate) host: u8,
    pub(crate) keys: Keys,
    pub(crate) socket: UdpSocket,
}

impl Remote {
    pub(crate) fn new(host: u8, owner: WorkerId, workers: u16) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        crate::sys::socket::set_buffers(&socket, 4 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let id = PeerId { slot: u32::from(host), generation: 1 };
        Self { id, host, keys: Keys::new(u32::from(host), owner, workers), socket }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.socket.local_addr().unwrap())
    }

    /// Exactly `count` datagrams that came out of the real socket.
    pub(crate) fn datagrams(&self, count: usize) -> Vec<Vec<u8>> {
        let mut datagram = vec![0; 70_000];
        let mut take = || self.socket.recv(&mut datagram).map(|len| datagram[..len].to_vec());
        let datagrams = (0..count).map(|n| take().unwrap_or_else(|_| panic!("datagram {n}"))).collect();
        self.socket.set_nonblocking(true).unwrap();
        assert!(take().is_err(), "one more than expected");
        self.socket.set_nonblocking(false).unwrap();
        datagrams
    }
}

impl<I: Io> Worker<I> {
    /// What sends.
    pub(crate) fn sending_half(&mut self) -> (&mut Core, &mut Outbound) {
        (&mut self.core, &mut self.outbound)
    }
}
