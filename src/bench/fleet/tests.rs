//! A fleet against a gateway made of the same machines, over loopback.

use std::num::NonZeroU64;
use std::thread;

use super::*;
use crate::bench::clients::{self, Course, Traffic};
use crate::bench::handshakes;
use crate::crypto::x25519::PrivateKey;
use crate::types::Secret;

const SECRET: Secret = Secret([5; 32]);

/// What the gateway does beside answering.
#[derive(Clone, Copy, Default)]
struct Moods {
    /// Every so many echoes two of a session change places; 0: never.
    swap: usize,
    /// Every so many echoes one is lost; 0: never.
    lose: usize,
    /// Asks for a cookie.
    cookies: bool,
}

/// Echoes what comes out of tunnels, until told to stop.
struct Gateway {
    socket: UdpSocket,
    handshaker: Handshaker,
    /// By our index; each with its own.
    sessions: HashMap<u32, PeerSession>,
    rng: SystemRng,
    moods: Moods,
    echoes: usize,
    held: Option<(SocketAddr, Vec<u8>)>,
}

impl Gateway {
    fn new(clients: usize, moods: Moods) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket::set_buffers(&socket, 8 << 20).unwrap();
        let mut handshaker = Handshaker::new(1, IndexKey::new([1; 3]));
        handshaker.set_private_key(Some(SECRET));
        for n in 0..clients {
            let id = PeerId { slot: n as u32, generation: 1 };
            let key = *PrivateKey::new(&identity::private_key(1, n)).public();
            handshaker.add_peer(id, WorkerId(0), key, None).unwrap();
        }
        let (sessions, rng) = (HashMap::new(), SystemRng::new().unwrap());
        Self { socket, handshaker, sessions, rng, moods, echoes: 0, held: None }
    }

    fn serve(mut self, stop: &Stop) {
        let mut buffer = [0; 2048];
        self.socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        while !stop.is_set() {
            let Ok((len, from)) = self.socket.recv_from(&mut buffer) else { continue };
            let message = &mut buffer[..len];
            match TransportHeader::parse(message) {
                Some(header) => self.transport(header, message, from),
                None => self.initiation((&*message).try_into().unwrap(), from),
            }
        }
    }

    fn initiation(&mut self, message: &[u8; 148], from: SocketAddr) {
        let now = clock::boottime();
        assert!(self.handshaker.check_mac1(message));
        if self.moods.cookies && !self.handshaker.check_mac2(message, from, now) {
            let reply = self.handshaker.cookie_reply(message, from, now, &mut self.rng).unwrap();
            self.socket.send_to(&reply, from).unwrap();
            return;
        }
        let taken = self.handshaker.consume_initiation(message, Endpoint::new(from), now, &mut self.rng);
        let Ok((_, ToOwner::Install { peer, keypair, endpoint, response })) = taken else { return };
        let mut session = PeerSession::new(peer, Limits::PAPER, 1);
        session.install(&keypair, endpoint, now);
        self.sessions.insert(keypair.local_index, session);
        self.socket.send_to(&response.unwrap(), from).unwrap();
    }

    fn transport(&mut self, header: TransportHeader, message: &mut [u8], from: SocketAddr) {
        let now = clock::boottime();
        let session = self.sessions.get_mut(&header.receiver).expect("a session");
        let name = session.keypair(header.receiver).unwrap();
        let key = session.opening_key(name, Suite::ChaCha20Poly1305).unwrap();
        let len = aead::open(key, header.counter, &mut message[16..]).expect("it is authentic");
        session.accept(name, header.counter).unwrap();
        session.received(name, Endpoint::new(from), len > 0, 100, now);
        if len == 0 {
            return;
        }
        let reserved = session.reserve(1, now).unwrap();
        let header =
            TransportHeader { receiver: reserved.remote_index, counter: reserved.first_counter, ..header };
        message[..16].copy_from_slice(&header.to_bytes());
        let key = session.sealing_key(reserved.remote_index, Suite::ChaCha20Poly1305, 100).unwrap();
        assert!(aead::seal_run(key, reserved.first_counter, message, &[Span { start: 16, len }]));
        self.echoes += 1;
        let is_turn = |every: usize| every > 0 && self.echoes.is_multiple_of(every);
        if is_turn(self.moods.lose) {
            return;
        }
        if is_turn(self.moods.swap) {
            self.held = Some((from, message.to_vec()));
            return;
        }
        self.socket.send_to(message, from).unwrap();
        if let Some((to, held)) = self.held.take() {
            self.socket.send_to(&held, to).unwrap();
        }
    }
}

/// Runs something against a gateway.
fn against<T>(clients: usize, moods: Moods, run: impl FnOnce(&Settings, &Stop) -> anyhow::Result<T>) -> T {
    let gateway = Gateway::new(clients, moods);
    let settings = Settings {
        endpoint: gateway.socket.local_addr().unwrap(),
        gateway_key: *PrivateKey::new(&SECRET).public(),
        seed: 1,
        clients,
        sockets: 3,
        sources: None,
    };
    let (end, stop) = (Stop::new().unwrap(), Stop::new().unwrap());
    let ended = end.clone();
    let serving = thread::spawn(move || gateway.serve(&ended));
    let result = run(&settings, &stop);
    end.set();
    serving.join().unwrap();
    result.unwrap()
}

fn course(burst: usize, size: usize) -> Course {
    let traffic = Traffic { to: "100.64.0.1:7".parse().unwrap(), size, burst, rate: NonZeroU64::new(4_000) };
    Course {
        window: 16,
        patience: Duration::from_secs(20),
        traffic: Some(traffic),
        length: Duration::from_millis(500),
    }
}

#[test]
fn all_come_in_and_everything_returns_in_order() {
    for (burst, size) in [(16, 1372), (1, 20), (3, 101)] {
        let report = against(40, Moods::default(), |settings, stop| {
            clients::run(settings, &course(burst, size), false, stop, |_| {})
        });
        let tally = report.tally;
        assert_eq!((report.clients, tally.handshakes, tally.initiations), (40, 40, 40), "{report:?}");
        assert!(tally.sent > 100 && tally.sent.is_multiple_of(burst as u64), "{report:?}");
        assert_eq!((tally.returned, tally.reordered, tally.strange, tally.refused), (tally.sent, 0, 0, 0));
        assert_eq!((tally.sent_bytes, report.echo.count), (tally.sent * size as u64, tally.sent));
        assert!(report.lost == 0.0 && report.echo.p50_us > 1.0 && report.handshake.count == 40, "{report:?}");
    }
}

#[test]
fn what_is_lost_or_overtaken_is_counted() {
    let moods = Moods { swap: 20, lose: 50, ..Moods::default() };
    let report =
        against(1, moods, |settings, stop| clients::run(settings, &course(2, 64), false, stop, |_| {}));
    let (sent, tally) = (report.tally.sent, report.tally);
    // A hundredth is both, and lost; the last that is held may have no successor.
    let lost = sent / 50;
    assert!(sent - tally.returned - lost <= 1, "{report:?}");
    let swapped = sent / 20 - sent / 100;
    assert!(tally.reordered.abs_diff(swapped) <= 1 && swapped > 10, "{report:?}");
    assert!((report.lost - 0.02).abs() < 0.005, "{report:?}");
}

#[test]
fn handshakes_go_on_and_on_also_with_cookies() {
    for cookies in [false, true] {
        let report = against(8, Moods { cookies, ..Moods::default() }, |settings, stop| {
            handshakes::run(settings, 4, Duration::from_millis(600), stop, |_| {})
        });
        assert!(report.handshakes > 24 && report.unanswered == 0, "{report:?}");
        assert_eq!(report.tally.cookies, if cookies { 8 } else { 0 }, "{report:?}");
        let waiting = report.tally.initiations - report.handshakes - report.tally.cookies;
        assert!(waiting <= 4 && report.tally.strange == 0, "{report:?}");
    }
}

#[test]
fn a_gateway_that_does_not_know_them_is_no_success() {
    let gateway = Gateway::new(0, Moods::default());
    let settings = Settings {
        endpoint: gateway.socket.local_addr().unwrap(),
        gateway_key: *PrivateKey::new(&SECRET).public(),
        seed: 1,
        clients: 2,
        sockets: 1,
        sources: None,
    };
    let course = Course { patience: Duration::from_millis(200), ..course(1, 20) };
    let stop = Stop::new().unwrap();
    let run =
        |settings: &Settings| clients::run(settings, &course, false, &stop, |_| {}).unwrap_err().to_string();
    assert!(run(&settings).contains("only 0 of 2"));
    assert!(run(&Settings { clients: 0, ..settings }).contains("1 to 1000000"));
    assert!(run(&Settings { sockets: 65, ..settings }).contains("1 to 64"));
    assert!(
        run(&Settings { sources: Some("198.18.0.0/32".parse().unwrap()), ..settings }).contains("--sources")
    );
}
