//! Floods of initiations: who is let in, and when it is over.

use std::net::SocketAddr;
use std::time::Duration;

use ringway::crypto::random::SystemRng;
use ringway::dataplane::Sockets;
use ringway::dataplane::handoff::{AskedLink, Bell, Request, RequestLink, worker_channels};
use ringway::dataplane::handshake::{HandshakeLink, HandshakeThread, Parts, ToHandshake};
use ringway::metrics::drops::Drop;
use ringway::noise::ToOwner;
use ringway::noise::cookie::PeerCookie;
use ringway::noise::handshaker::Handshaker;
use ringway::noise::index::IndexKey;
use ringway::noise::timestamp::Tai64n;
use ringway::sys::eventfd::EventFd;
use ringway::types::{Endpoint, PeerId, Secret, Time, WorkerId};
use ringway::wire::wireguard::{INITIATION_LEN, Kind};

use super::world::{PERFECT, World, addr, public};

/// An initiation that nobody with a private key has made, with a right mac1: all it needs is our public key.
fn forged(n: u32, cookie: &mut PeerCookie, now: Time) -> [u8; INITIATION_LEN] {
    let mut message = [0x5a; INITIATION_LEN];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    message[4..8].copy_from_slice(&n.to_le_bytes());
    cookie.finish(&mut message, now);
    message
}

/// Any address; each sender of a flood has its own.
fn stranger(n: u32) -> SocketAddr {
    SocketAddr::new((0x0b00_0000 + n).to_be_bytes().into(), 1024 + (n % 60_000) as u16)
}

/// Twice what the handshake thread can work on, from ever new addresses.
const PER_MILLISECOND: u32 = 20;

/// Lets time pass under a flood.
fn flood(world: &mut World, millis: u32, sent: &mut u32) {
    let gateway = world.hosts[0].addr;
    let mut cookie = PeerCookie::new(&public(&world.hosts[0].key));
    for _ in 0..millis {
        for _ in 0..PER_MILLISECOND {
            *sent += 1;
            let message = forged(*sent, &mut cookie, world.now);
            world.inject(stranger(*sent), gateway, message.to_vec());
        }
        world.run(Duration::from_millis(1));
    }
}

#[test]
fn a_flood_locks_nobody_out_and_its_end_is_noticed() {
    let mut world = World::new(1, 2, PERFECT);
    let mut sent = 0;
    flood(&mut world, 300, &mut sent);
    assert!(world.hosts[0].gate.under_load(world.now));
    let begun = world.now;
    let up = world.send(1, 0);
    flood(&mut world, 400, &mut sent);
    assert!(world.hosts[0].gate.under_load(world.now));
    assert!(world.hosts[0].connected.is_empty(), "the first try is answered with a cookie");
    let client = world.hosts[1].addr;
    let cookies = world
        .wire
        .iter()
        .filter(|(_, to, bytes)| *to == client && Kind::of(bytes) == Some(Kind::CookieReply));
    assert_eq!(cookies.count(), 1);
    flood(&mut world, 5400, &mut sent);
    assert_eq!(world.hosts[1].initiations_sent, 2, "the second try has the cookie");
    assert!(world.hosts[0].delivered.contains(&up), "and gets in while the flood goes on");
    let took = world.hosts[0].connected[0].since(begun);
    assert!(took < Duration::from_millis(5500), "{took:?}");
    assert!(world.hosts[0].cookies_sent > 1000, "{}", world.hosts[0].cookies_sent);

    // After a rest nobody needs a cookie.
    world.run(Duration::from_millis(1500));
    assert!(!world.hosts[0].gate.under_load(world.now));
    let before = world.hosts[0].cookies_sent;
    let up = world.send(2, 0);
    world.run(Duration::from_millis(200));
    assert!(world.hosts[0].delivered.contains(&up));
    assert_eq!(world.hosts[0].cookies_sent, before);
}

#[test]
fn a_cookie_is_no_use_from_another_address_or_port() {
    for moved in ["198.18.0.2:51821", "198.18.0.77:51820"] {
        let mut world = World::new(2, 1, PERFECT);
        let mut sent = 0;
        flood(&mut world, 300, &mut sent);
        let up = world.send(1, 0);
        flood(&mut world, 400, &mut sent);
        world.hosts[1].addr = addr(moved);
        flood(&mut world, 5400, &mut sent);
        assert_eq!(world.hosts[1].initiations_sent, 2);
        assert!(world.hosts[0].connected.is_empty(), "the cookie was for another source");
        flood(&mut world, 5400, &mut sent);
        assert_eq!(world.hosts[1].initiations_sent, 3);
        assert!(world.hosts[0].delivered.contains(&up), "but a new one came");
        assert_eq!(world.endpoint(0, 1), Some(addr(moved)));
    }
}

const PEER: PeerId = PeerId { slot: 0, generation: 0 };

/// The handshake thread as it runs, without a socket: messages come as those that workers hand over.
struct Thread {
    requests: RequestLink,
    control: HandshakeLink,
    keys: crossbeam_channel::Receiver<ToOwner>,
    handle: std::thread::JoinHandle<()>,
}

impl Thread {
    fn start(client: &Secret) -> Self {
        let bell = || Bell::new(EventFd::new().unwrap());
        let ours = bell();
        let (link, inbox) = worker_channels(bell());
        let (requests, receiver) = RequestLink::new(ours.clone());
        let (control, messages) = HandshakeLink::new(ours.clone());
        let mut handshaker = Handshaker::new(1, IndexKey::new([1, 2, 3]));
        handshaker.set_private_key(Some(gateway()));
        handshaker.add_peer(PEER, WorkerId(0), public(client), None).unwrap();
        let parts = Parts {
            sockets: Sockets::default(),
            handshaker,
            workers: vec![link],
            requests: receiver,
            control: messages,
            asked: AskedLink::new().0,
            bell: ours,
            rng: SystemRng::new().unwrap(),
            board: None,
        };
        let handle = std::thread::spawn(move || HandshakeThread::new(parts).run().unwrap());
        Self { requests, control, keys: inbox.keys, handle }
    }

    fn offer(&self, message: &[u8], from: SocketAddr) {
        let bytes = message.iter().copied().collect();
        self.requests.send(Request::Message { bytes, endpoint: Endpoint::new(from) }).unwrap();
    }

    /// Waits until `count` messages have been judged and worked on, and ends.
    fn finish(self, count: u64) -> (ringway::metrics::HandshakeCounters, Vec<ToOwner>) {
        loop {
            let (reply, answer) = crossbeam_channel::bounded(1);
            assert!(self.control.send(ToHandshake::Report(reply)));
            let counters = answer.recv_timeout(Duration::from_secs(10)).unwrap();
            let done = counters.responses_sent
                + Drop::ALL.iter().map(|reason| counters.drops.of(*reason)).sum::<u64>();
            if done >= count {
                self.control.send(ToHandshake::Stop);
                self.handle.join().unwrap();
                return (counters, self.keys.try_iter().collect());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn gateway() -> Secret {
    Secret([1; 32])
}

/// Genuine initiations of one client, each with a greater stamp.
fn genuine(client: &Secret, count: u64) -> Vec<[u8; INITIATION_LEN]> {
    let mut machine = Handshaker::new(1, IndexKey::new([4, 5, 6]));
    machine.set_private_key(Some(client.clone()));
    machine.add_peer(PEER, WorkerId(0), public(&gateway()), None).unwrap();
    let mut rng = SystemRng::new().unwrap();
    (0..count)
        .map(|n| {
            let stamp = Tai64n::from_unix(Duration::from_secs(1_790_000_000 + n));
            machine.begin(PEER, stamp, Time::from_nanos(1), &mut rng).unwrap()
        })
        .collect()
}

/// The order of admission, seen by what each message is counted as: length, mac1, and only then limits.
#[test]
fn the_thread_judges_in_order_and_limits_sources_and_peers() {
    let client = Secret([2; 32]);
    let thread = Thread::start(&client);
    let messages = genuine(&client, 40);
    // Each from a source of its own, at once: the limit per peer is what is left.
    for (n, message) in (0..).zip(&messages) {
        thread.offer(message, stranger(n));
    }
    // A replay; a wrong mac1; a wrong length; an answer to nothing.
    thread.offer(&messages[0], stranger(1000));
    let mut wrong = messages[1];
    wrong[120] ^= 1;
    for _ in 0..20 {
        thread.offer(&wrong, stranger(2000));
    }
    thread.offer(&messages[2][..147], stranger(2000));
    thread.offer(&[3; 64], stranger(2000));
    let mut cookie = PeerCookie::new(&public(&gateway()));
    for n in 0..30 {
        thread.offer(&forged(n, &mut cookie, Time::from_nanos(1)), stranger(3000));
    }
    let (counters, keys) = thread.finish(40 + 1 + 20 + 2 + 30);
    let drops = &counters.drops;
    assert_eq!(drops.of(Drop::BadMac1), 20, "none of them spends a token of its source");
    assert_eq!(drops.of(Drop::Malformed), 2);
    assert_eq!(drops.of(Drop::OldTimestamp), 1);
    let accepted = counters.responses_sent;
    assert_eq!(accepted + drops.of(Drop::PeerLimit), 40);
    assert!((1..=5).contains(&accepted), "40 within some milliseconds, 20 ms apart at least: {accepted}");
    let installed = keys.iter().filter(|message| matches!(message, ToOwner::Install { .. })).count() as u64;
    assert_eq!((installed, keys.len() as u64), (accepted, accepted));
    // Burst 5, and 20 a second while the test lasts; beyond it a cookie is asked for.
    let let_in = drops.of(Drop::BadInitiation);
    assert_eq!(let_in + drops.of(Drop::CookieRequired), 30);
    assert!((5..15).contains(&let_in), "{let_in}");
}
