//! Transport messages as a worker meets them: what reaches the TUN device, and what moves a peer's endpoint.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;

use super::super::allowed_ips::AllowedIps;
use super::super::handoff::{AskedLink, Bell, RequestLink, worker_channels};
use super::super::offload::switches::Switches;
use super::super::peers::Peers;
use super::super::worker::Parts;
use super::*;
use crate::crypto::aead::{Key, Span, TAG_LEN, seal_run};
use crate::noise::agreement::Policy;
use crate::noise::index::IndexKey;
use crate::noise::peer_session::PeerSession;
use crate::noise::timers::Limits;
use crate::noise::{NewKeypair, Role};
use crate::sys::eventfd::EventFd;
use crate::types::{PeerId, Prefix, Secret, Suite, Time, WorkerId};

const PEER: PeerId = PeerId { slot: 0, generation: 3 };
const OTHER: PeerId = PeerId { slot: 1, generation: 0 };
const HOME: Endpoint = host(1);
const AWAY: Endpoint = host(2);
const START: Time = Time::from_nanos(1_000_000_000_000);
const KEY: Secret = Secret([7; 32]);

const fn host(last: u8) -> Endpoint {
    Endpoint::new(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, last)), 5000))
}

/// One worker with two peers; a datagram socket stands for the TUN queue.
struct Bench {
    core: Core,
    inbound: Inbound,
    device: UnixDatagram,
}

impl Bench {
    fn new() -> Self {
        let (queue, device) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        let (link, _inbox) = worker_channels(Bell::new(EventFd::new().unwrap()));
        let (requests, _) = RequestLink::new(Bell::new(EventFd::new().unwrap()));
        let index_key = IndexKey::new([1, 2, 3]);
        let parts = Parts {
            id: WorkerId(0),
            workers: vec![link],
            requests,
            asked: AskedLink::new().0,
            index_key,
            limits: Limits::PAPER,
            policy: Policy::default(),
            mtu: 1420,
            vnet_header: true,
            board: None,
            switches: Switches::default(),
        };
        let mut allowed_ips = AllowedIps::new();
        for (peer, addr, len) in [(PEER, [100, 64, 0, 0], 10), (OTHER, [100, 64, 0, 9], 32)] {
            let prefix = Prefix::new(Ipv4Addr::from(addr).into(), len).unwrap();
            allowed_ips.insert(prefix, peer, WorkerId(0));
        }
        let mut core = Core::new(parts, Peers::new(allowed_ips, START));
        core.now = START;
        for (id, index) in [(PEER, 100), (OTHER, 200)] {
            core.peers.add(id, PeerSession::new(id, Limits::PAPER, 0)).unwrap();
            let new = NewKeypair {
                send: Secret([9; 32]),
                recv: KEY,
                third: Secret([8; 32]),
                transcript: Secret([0; 32]),
                local_index: index,
                remote_index: 1,
                role: Role::Initiator,
            };
            core.peers.by_id(id).unwrap().session.install(&new, HOME, core.now);
            core.peers.add_index(index, id.slot);
            core.settle(id.slot);
        }
        Self {
            core,
            inbound: Inbound::new(Arc::new(queue.into()), Config { tcp: true, udp: true }, true),
            device,
        }
    }

    /// What the TUN device got of one datagram from `origin`: the inner source address.
    fn receive(&mut self, mut datagram: Vec<u8>, origin: Endpoint) -> Option<Ipv4Addr> {
        self.inbound.handed_over(&mut self.core, &mut datagram, origin, 0);
        let mut written = [0; 2048];
        let len = self.device.recv(&mut written).ok()?;
        assert_eq!(len, virtio::LEN + 20);
        let source = &written[virtio::LEN + 12..virtio::LEN + 16];
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(source).unwrap()))
    }

    fn endpoint(&mut self) -> Option<Endpoint> {
        self.core.peers.by_id(PEER).unwrap().session.endpoint()
    }

    fn drops(&self, reason: Drop) -> u64 {
        self.core.counters.drops.of(reason)
    }
}

/// A transport message with an empty IPv4 packet from `source`, padded.
fn sealed(index: u32, counter: u64, source: [u8; 4]) -> Vec<u8> {
    let mut inner = [0; 32];
    inner[0] = 0x45;
    inner[3] = 20;
    inner[12..16].copy_from_slice(&source);
    inner[16..20].copy_from_slice(&[100, 64, 0, 1]);
    let mut message =
        TransportHeader { receiver: index, counter, suite: Suite::ChaCha20Poly1305 }.to_bytes().to_vec();
    message.extend(inner);
    message.resize(message.len() + TAG_LEN, 0);
    let span = Span { start: TRANSPORT_HEADER_LEN, len: inner.len() };
    assert!(seal_run(&Key::new(&KEY), counter, &mut message, &[span]));
    message
}

#[test]
fn an_inner_source_is_the_peers_own_or_dropped() {
    let mut bench = Bench::new();
    let own = [100, 64, 0, 5];
    assert_eq!(bench.receive(sealed(100, 0, own), HOME), Some(own.into()));
    for (counter, foreign) in [(1, [100, 64, 0, 9]), (2, [192, 0, 2, 1]), (3, [127, 0, 0, 1])] {
        assert_eq!(bench.receive(sealed(100, counter, foreign), HOME), None, "{foreign:?}");
        assert_eq!(bench.drops(Drop::SourceNotAllowed), counter);
    }
    assert_eq!(bench.receive(sealed(200, 0, [100, 64, 0, 9]), HOME), Some([100, 64, 0, 9].into()));
    assert_eq!(bench.receive(sealed(200, 1, own), HOME), None, "a wider prefix of another peer");
}

#[test]
fn only_what_is_authentic_and_new_moves_the_endpoint() {
    let mut bench = Bench::new();
    let source = [100, 64, 0, 5];
    assert!(bench.receive(sealed(100, 4, source), HOME).is_some());
    let before = bench.core.peers.by_id(PEER).unwrap().session.stats();

    let mut forged = sealed(100, 5, source);
    forged[20] ^= 1;
    let mut elsewhere = sealed(100, 5, source);
    elsewhere[4..8].copy_from_slice(&300u32.to_le_bytes());
    let mut too_high = sealed(100, 5, source);
    too_high[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    for (datagram, reason) in [
        (sealed(100, 4, source), Drop::Replayed),
        (forged, Drop::Unauthentic),
        (elsewhere, Drop::UnknownIndex),
        (too_high, Drop::CounterLimit),
        (vec![4; 200], Drop::Malformed),
        (vec![0; 64], Drop::Malformed),
    ] {
        assert_eq!(bench.receive(datagram, AWAY), None);
        assert!(bench.drops(reason) > 0, "{reason:?}");
        assert_eq!(bench.endpoint(), Some(HOME), "{reason:?}");
    }
    for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
        let mut message = vec![0; len];
        message[0] = kind;
        assert_eq!(bench.receive(message, AWAY), None);
        assert_eq!(bench.endpoint(), Some(HOME), "a handshake message goes elsewhere");
    }
    assert_eq!(bench.core.peers.by_id(PEER).unwrap().session.stats(), before, "nothing is accounted");

    assert!(bench.receive(sealed(100, 5, source), AWAY).is_some(), "the forgeries spent no counter");
    assert_eq!(bench.endpoint(), Some(AWAY));
}

/// Long runs are opened side by side. What is among them that is forged, repeated or somebody else's costs itself only,
/// and nothing is overtaken.
#[test]
fn in_a_run_each_datagram_stands_for_itself() {
    let mut bench = Bench::new();
    let (own, other) = ([100, 64, 0, 5], [100, 64, 0, 9]);
    let mut forged = sealed(100, 17, own);
    forged[30] ^= 4;
    let mut handshake = vec![0; sealed(100, 0, own).len()];
    handshake[0] = 2;
    let mut run: Vec<Vec<u8>> = (0..17).map(|counter| sealed(100, counter, own)).collect();
    run.extend([forged, sealed(100, 3, own), sealed(100, 18, own), sealed(100, 18, own), handshake]);
    run.extend((0..9).map(|counter| sealed(200, counter, other)));
    run.push(sealed(200, 9, own));
    run.extend((19..40).map(|counter| sealed(100, counter, own)));
    let segment = run[0].len();

    let arena = crate::sys::arena::Arena::new(1, 1 << 16).unwrap();
    let mut slot = arena.take().unwrap();
    let bytes = run.concat();
    slot[64..64 + bytes.len()].copy_from_slice(&bytes);
    let received = Datagrams {
        slot,
        start: 64,
        len: bytes.len(),
        segment,
        remote: HOME.remote,
        source: None,
        tos: 0,
        truncated: false,
    };
    bench.inbound.datagrams(&mut bench.core, received);
    bench.inbound.flush(&mut bench.core);

    let mut written = [0; 2048];
    let sources: Vec<_> =
        std::iter::from_fn(|| bench.device.recv(&mut written).ok().map(|_| written[virtio::LEN + 15]))
            .collect();
    let expected: Vec<_> = [(18, 5), (9, 9), (21, 5)].into_iter().flat_map(|(n, of)| vec![of; n]).collect();
    assert_eq!(sources, expected, "in their order, each once");
    assert_eq!(bench.drops(Drop::Unauthentic), 1);
    assert_eq!(bench.drops(Drop::Replayed), 2, "an old one, and one twice in the same run");
    assert_eq!(bench.drops(Drop::SourceNotAllowed), 1);
    assert_eq!(bench.core.counters.rx_packets, 18 + 10 + 21);
    let next = sealed(100, 17, own);
    assert_eq!(bench.receive(next, HOME), Some(own.into()), "the forgery spent no counter");
}
