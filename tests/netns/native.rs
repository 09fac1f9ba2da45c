//! Clients that lease their addresses through the tunnel: over the machines of `ringway::noise` and `ringway::client`,
//! with a socket and no device. What a client does is a list of words, one errand of `errands`.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway::client::leasing::{Leasing, Outcome};
use ringway::crypto::aead::{self, Span, TAG_LEN};
use ringway::crypto::random::SystemRng;
use ringway::noise::ToOwner;
use ringway::noise::handshaker::Handshaker;
use ringway::noise::index::IndexKey;
use ringway::noise::peer_session::PeerSession;
use ringway::noise::timers::Limits;
use ringway::noise::timestamp::Tai64n;
use ringway::sys::clock;
use ringway::types::{Endpoint, PeerId, Secret, Suite, Time, WorkerId};
use ringway::wire::checksum::{Sum, pseudo_header};
use ringway::wire::frame::lease::AddrRequest;
use ringway::wire::frame::{self, Frame};
use ringway::wire::ip;
use ringway::wire::wireguard::{INITIATION_LEN, TRANSPORT_HEADER_LEN, TransportHeader, padded_len};

use crate::appliance::{Appliance, file, head, program};
use crate::errands;
use crate::lab::{Host, Lab, machine, wait_until};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, Outer, connect, gateway_endpoint};

/// How long anything may take that should take a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long something is waited for that must not come.
const SILENCE: Duration = Duration::from_millis(700);
/// The gateway, to the client.
const GATEWAY: PeerId = PeerId { slot: 0, generation: 1 };
/// The server behind the gateway.
const SERVER_V4: &str = "10.99.0.2";
const SERVER_V6: &str = "fd99::2";

/// A client.
struct Native {
    socket: UdpSocket,
    to: SocketAddr,
    handshaker: Handshaker,
    session: PeerSession,
    leasing: Leasing,
    rng: SystemRng,
    outcomes: VecDeque<Outcome>,
    /// Packets that came through the tunnel.
    packets: VecDeque<Vec<u8>>,
    echoes: u16,
}

impl Native {
    fn new(private: &str, public: &str, to: SocketAddr, wish: AddrRequest) -> Self {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let mut handshaker = Handshaker::new(1, IndexKey::new([0; 3]));
        handshaker.set_private_key(Some(private.parse::<Secret>().unwrap()));
        handshaker.add_peer(GATEWAY, WorkerId(0), public.parse().unwrap(), None).unwrap();
        let mut session = PeerSession::new(GATEWAY, Limits::PAPER, 1);
        session.set_endpoint(Some(to), clock::boottime());
        Self {
            socket,
            to,
            handshaker,
            session,
            leasing: Leasing::new(wish, 1),
            rng: SystemRng::new().unwrap(),
            outcomes: VecDeque::new(),
            packets: VecDeque::new(),
            echoes: 0,
        }
    }

    /// A session, or another one.
    fn connect(&mut self) {
        self.session.clear();
        let _ = self.session.reserve(1, clock::boottime());
        self.until("a session", |client| client.session.is_established().then_some(()));
    }

    /// Serves timers and socket until `done` yields something.
    fn until<T>(&mut self, what: &str, done: impl FnMut(&mut Self) -> Option<T>) -> T {
        self.within(PATIENCE, done)
            .unwrap_or_else(|| panic!("waited in vain for {what}: {:?}", self.outcomes))
    }

    fn within<T>(&mut self, patience: Duration, mut done: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            self.turn();
            if let Some(found) = done(self) {
                return Some(found);
            }
        }
        None
    }

    fn turn(&mut self) {
        let now = clock::boottime();
        if self.session.deadline().is_some_and(|deadline| deadline <= now) {
            self.session.handle_timeout(now);
        }
        let outcome = self.leasing.handle_timeout(now);
        self.outcomes.extend(outcome);
        if self.session.is_established() {
            while let Some(frame) = self.leasing.next_frame(now) {
                self.send(&frame);
            }
        }
        self.act(now);
        let mut buffer = [0; 4096];
        if let Ok((len, from)) = self.socket.recv_from(&mut buffer)
            && from == self.to
        {
            self.receive(&mut buffer[..len]);
        }
    }

    fn act(&mut self, now: Time) {
        let actions = self.session.take_actions();
        for index in actions.released {
            self.handshaker.release(index);
        }
        if actions.begin {
            let stamp = Tai64n::from_unix(clock::realtime());
            let message: [u8; INITIATION_LEN] =
                self.handshaker.begin(GATEWAY, stamp, now, &mut self.rng).unwrap();
            let _ = self.socket.send_to(&message, self.to);
            self.session.initiation_sent(now);
        }
        if actions.keepalive {
            self.send(&[]);
        }
    }

    /// Seals a payload and sends it.
    fn send(&mut self, payload: &[u8]) {
        let now = clock::boottime();
        let reserved = self.session.reserve(1, now).expect("a session");
        let suite = Suite::ChaCha20Poly1305;
        let (counter, receiver) = (reserved.first_counter, reserved.remote_index);
        let mut message = TransportHeader { receiver, counter, suite }.to_bytes().to_vec();
        message.extend(payload);
        let len = padded_len(payload.len(), 1420);
        message.resize(TRANSPORT_HEADER_LEN + len + TAG_LEN, 0);
        let bytes = message.len();
        let key = self.session.sealing_key(receiver, suite, bytes).unwrap();
        assert!(aead::seal_run(key, counter, &mut message, &[Span { start: TRANSPORT_HEADER_LEN, len }]));
        let _ = self.socket.send_to(&message, self.to);
        self.session.sent(!payload.is_empty(), bytes as u64, now);
    }

    fn receive(&mut self, message: &mut [u8]) {
        let now = clock::boottime();
        let endpoint = Endpoint::new(self.to);
        if let Ok(response) = (&*message).try_into() {
            let installed = self.handshaker.consume_response(response, endpoint, now);
            let Ok((_, ToOwner::Install { keypair, .. })) = installed else { return };
            self.session.install(&keypair, endpoint, now);
            return self.act(now);
        }
        let Some(TransportHeader { receiver, counter, suite }) = TransportHeader::parse(message) else {
            return;
        };
        let Some(name) = self.session.keypair(receiver) else { return };
        if self.session.check(name, counter, now).is_err() {
            return;
        }
        let Some(key) = self.session.opening_key(name, suite) else { return };
        let Some(len) = aead::open(key, counter, &mut message[TRANSPORT_HEADER_LEN..]) else { return };
        if self.session.accept(name, counter).is_err() {
            return;
        }
        self.session.received(name, endpoint, len > 0, message.len() as u64, now);
        let text = &message[TRANSPORT_HEADER_LEN..TRANSPORT_HEADER_LEN + len];
        if frame::is_frame(text) {
            let outcome = self.leasing.handle(&Frame::parse(text).unwrap(), now);
            self.outcomes.extend(outcome);
        } else if !text.is_empty() {
            self.packets.push_back(text.to_vec());
        }
        self.act(now);
    }

    /// The client's own address of that family.
    fn own(&self, v4: bool) -> IpAddr {
        let (reply, _) = self.leasing.offer().expect("a lease");
        let (own_v4, own_v6) =
            (reply.ipv4.map(|(a, _)| IpAddr::V4(a)), reply.ipv6.map(|(a, _)| IpAddr::V6(a)));
        (if v4 { own_v4 } else { own_v6 }).expect("an address of that family")
    }

    /// True if a ping from `from` is answered; with `framed` it goes in a VPN_SEND.
    fn ping(&mut self, from: IpAddr, to: IpAddr, framed: bool, patience: Duration) -> bool {
        self.packets.clear();
        let begin = Instant::now();
        while begin.elapsed() < patience {
            self.echoes += 1;
            let packet = echo(from, to, self.echoes);
            let packet = if framed { vpn_send(&packet) } else { packet };
            self.send(&packet);
            let answered = |client: &mut Self| {
                let header = ip::Header::parse(&client.packets.pop_front()?)?;
                (header.src == to && header.dst == from).then_some(())
            };
            if self.within(Duration::from_millis(200), answered).is_some() {
                return true;
            }
        }
        false
    }

    /// Does what a word says; a failure ends the errand.
    fn obey(&mut self, word: &str) {
        let (word, value) = word.split_once('=').unwrap_or((word, ""));
        match word {
            "connect" => self.connect(),
            "lease" => {
                self.leasing.start(clock::boottime());
                let given = |client: &mut Self| match client.outcomes.pop_front()? {
                    Outcome::Given(offer) => Some(offer),
                    other => panic!("{other:?}"),
                };
                let (reply, settings) = *self.until("a lease", given);
                if !value.is_empty() {
                    assert_eq!(reply.ipv4.map(|(addr, _)| addr), Some(value.parse().unwrap()));
                }
                assert_eq!((settings.mtu, settings.dns.len(), reply.gateway_ipv4.is_some()), (1420, 1, true));
                assert_eq!(
                    (settings.search.len(), settings.included.len(), settings.excluded.len()),
                    (1, 2, 1)
                );
            }
            "renew" => {
                self.leasing.start(clock::boottime());
                self.until("a renewal", |client| {
                    client.outcomes.pop_front().map(|outcome| assert_eq!(outcome, Outcome::Renewed))
                });
            }
            "refused" => {
                self.leasing.start(clock::boottime());
                let problem = self.until("a refusal", |client| client.outcomes.pop_front());
                let Outcome::Refused(problem) = problem else { panic!("{problem:?}") };
                let found = format!("{},{:?}", problem.code, problem.retry_after);
                assert_eq!(found, value);
            }
            "reach" | "reach-framed" => {
                let to: IpAddr = value.parse().unwrap();
                let own = self.own(to.is_ipv4());
                assert!(self.ping(own, to, word == "reach-framed", PATIENCE), "{own} does not reach {to}");
            }
            // Under an address that may be another's.
            "spoof" | "spoof-framed" => {
                let (from, to) = value.split_once(',').unwrap();
                let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
                assert!(!self.ping(from, to, word == "spoof-framed", SILENCE), "{from} was answered");
            }
            // What is asked for is done some time later.
            "unanswered" => {
                let (from, to) = value.split_once(',').unwrap();
                let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
                let begin = Instant::now();
                while self.ping(from, to, false, Duration::from_millis(1)) {
                    assert!(begin.elapsed() < PATIENCE, "{from} is answered still");
                }
            }
            "leave" => {
                let frame = self.leasing.leave();
                self.send(&frame);
                self.send(&frame);
            }
            // Until killed: what it was told of its lease, a line each before anything else is done. With `leave-` it
            // gives it back each time, which nobody acknowledges.
            "keep-renewing" | "keep-leaving" => {
                let mut notes = std::fs::File::options().create(true).append(true).open(value).unwrap();
                loop {
                    self.leasing.start(clock::boottime());
                    self.until("a lease", |client| client.outcomes.pop_front());
                    writeln!(notes, "{}", self.own(true)).unwrap();
                    if word == "keep-leaving" {
                        writeln!(notes, "leaves").unwrap();
                        let frame = self.leasing.leave();
                        self.send(&frame);
                        self.connect();
                    }
                }
            }
            "stops" => self.until("the gateway's farewell", |client| {
                client.outcomes.pop_front().map(|outcome| assert_eq!(outcome, Outcome::GatewayStops))
            }),
            _ => panic!("no such word: {word}"),
        }
    }
}

/// A packet in a frame.
fn vpn_send(packet: &[u8]) -> Vec<u8> {
    let body = [&[0xa1, 0x00, 0x58, packet.len() as u8][..], packet].concat();
    let mut frame = vec![0xbc, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    frame
}

/// An ICMP echo request.
fn echo(from: IpAddr, to: IpAddr, sequence: u16) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0x52, 0x57, 0, 0];
    icmp[6..].copy_from_slice(&sequence.to_be_bytes());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let sum = Sum::default().add_bytes(&icmp).checksum();
            icmp[2..4].copy_from_slice(&sum);
            let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0];
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = Sum::default().add_bytes(&packet).checksum();
            packet[10..12].copy_from_slice(&sum);
            [packet, icmp].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            icmp[0] = 128;
            let sum = pseudo_header(from.into(), to.into(), 58, 8).add_bytes(&icmp).checksum();
            icmp[2..4].copy_from_slice(&sum);
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, 64];
            packet.extend(from.octets());
            packet.extend(to.octets());
            [packet, icmp].concat()
        }
        _ => panic!("{from} and {to}"),
    }
}

/// The errand: a client that does one thing after the other. `wants=ADDRESS` comes first.
pub(crate) fn run(private: &str, public: &str, to: SocketAddr, words: &[&str]) {
    let wanted = words.first().and_then(|word| word.strip_prefix("wants="));
    let wish = AddrRequest { ipv4: wanted.map(|addr| addr.parse().unwrap()), ..AddrRequest::default() };
    let mut client = Native::new(private, public, to, wish);
    client.connect();
    for word in &words[usize::from(wanted.is_some())..] {
        client.obey(word);
    }
}

/// A gateway that leases, a server behind it, and places for clients.
pub(crate) struct Site {
    pub(crate) gateway: Arc<Host>,
    pub(crate) appliance: Appliance,
    public: String,
    _server: Arc<Host>,
    pub(crate) clients: Vec<(Arc<Host>, Identity)>,
}

#[derive(Clone)]
pub(crate) struct Identity {
    private: String,
    public: String,
}

impl Identity {
    fn new(host: &Host) -> Self {
        let private = machine("wg genkey").trim().to_owned();
        let public = host.run_with_input("wg pubkey", &private).trim().to_owned();
        Self { private, public }
    }
}

pub(crate) const POOL: &str = "[[pool]]\nname = \"all\"\nipv4 = [\"100.65.0.0/24\"]\nipv6 = \"fd64::/64\"\n";
const TOLD: &str =
    "[clients]\ndns = [\"100.64.0.1\"]\nsearch = [\"example.org\"]\nexcluded = [\"10.1.0.0/16\"]\n";

/// The file; `peers` are (public key, more keys).
fn content(peers: &[(&str, &str)], more: &str) -> String {
    let head = head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT);
    let peers: String =
        peers.iter().map(|(key, rest)| format!("[[peer]]\npublic_key = \"{key}\"\n{rest}\n")).collect();
    format!("{head}{TOLD}{more}{peers}")
}

impl Site {
    /// So many clients; `more` of the file beside them.
    pub(crate) fn new(lab: &Lab, clients: usize, more: &str) -> Self {
        let gateway = lab.host("gateway");
        let server = lab.host("server");
        lab.link((&gateway, "s0"), (&server, "e0"), 1500);
        for (host, interface, number) in [(&gateway, "s0", 1), (&server, "e0", 2)] {
            host.address(interface, &format!("10.99.0.{number}/24"));
            host.address(interface, &format!("fd99::{number}/64"));
        }
        let clients: Vec<_> = (0..clients)
            .map(|i| {
                let host = lab.host(&format!("client{i}"));
                connect(lab, &gateway, &host, i, 1520);
                let identity = Identity::new(&host);
                (host, identity)
            })
            .collect();
        let peers: Vec<_> = clients.iter().map(|(_, identity)| (identity.public.as_str(), "")).collect();
        let appliance = Appliance::start(&gateway, "wg0", &content(&peers, more));
        let public = appliance.public_key();
        Self { gateway, appliance, public, _server: server, clients }
    }

    fn line(&self, i: usize, words: &str) -> String {
        let (_, identity) = &self.clients[i];
        let to = gateway_endpoint(i, Outer::V4);
        format!("native {} {} {to} {words}", identity.private, self.public)
    }

    /// Has a client do something.
    pub(crate) fn client(&self, i: usize, words: &str) {
        errands::run_on(&self.clients[i].0, &self.line(i, words));
    }

    /// The same, beside others.
    pub(crate) fn begin(&self, i: usize, words: &str) -> Child {
        errands::send(&self.clients[i].0, &self.line(i, words))
    }

    /// Kills the gateway, and starts it again.
    pub(crate) fn kill(self) -> Self {
        let Self { gateway, appliance, public, _server, clients } = self;
        let content = std::fs::read_to_string(gateway.run_file("wg0.toml")).unwrap();
        appliance.signal("KILL");
        appliance.wait();
        let appliance = Appliance::start(&gateway, "wg0", &content);
        Self { gateway, appliance, public, _server, clients }
    }

    pub(crate) fn allowed(&self, i: usize) -> String {
        let said = self.gateway.run("wg show wg0 allowed-ips");
        let line = said.lines().find_map(|line| line.strip_prefix(&self.clients[i].1.public));
        line.unwrap().trim().to_owned()
    }

    /// The sum of a counter of all workers.
    fn counter(&self, name: &str) -> u64 {
        let shown = self.gateway.run(&format!("{} show --json wg0", program()));
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let found = shown.to_string();
        let workers = find(&shown, "workers").unwrap_or_else(|| panic!("{found}"));
        workers.as_array().unwrap().iter().filter_map(|worker| worker["counters"][name].as_u64()).sum()
    }
}

/// The value of a key, however deep.
fn find<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|v| find(v, key))),
        serde_json::Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

#[test]
fn a_client_gets_its_lease_through_the_tunnel_and_reaches_the_server_behind() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab, 2, POOL);
    assert_eq!(site.allowed(0), "(none)");
    let reach = format!("reach={SERVER_V4} reach={SERVER_V6} reach={GATEWAY_V4} reach-framed={SERVER_V4}");
    site.client(0, &format!("lease=100.65.0.0 {reach} renew {reach}"));
    assert_eq!(site.allowed(0), "100.65.0.0/32 fd64::6441:0/128");
    // Two clients cannot use each other's address, in a frame or without.
    site.client(
        1,
        &format!(
            "lease=100.65.0.1 {reach} spoof=100.65.0.0,{SERVER_V4} spoof-framed=100.65.0.0,{SERVER_V4} \
             spoof=fd64::6441:0,{SERVER_V6} spoof=100.65.0.9,{SERVER_V4} {reach}"
        ),
    );
    // The lease goes on after a restart, without a request; who gives it back has it no more.
    let Site { gateway, appliance, public, _server, clients } = site;
    appliance.end();
    let peers: Vec<_> = clients.iter().map(|(_, identity)| (identity.public.as_str(), "")).collect();
    let appliance = Appliance::start(&gateway, "wg0", &content(&peers, POOL));
    let site = Site { gateway, appliance, public, _server, clients };
    assert_eq!(site.allowed(0), "100.65.0.0/32 fd64::6441:0/128");
    site.client(
        0,
        &format!(
            "lease=100.65.0.0 {reach} leave unanswered=100.65.0.0,{SERVER_V4} spoof=100.65.0.0,{SERVER_V4} \
             connect lease=100.65.0.0 {reach}"
        ),
    );
    site.client(0, "lease=100.65.0.0 leave connect");
    wait_until("the address is nobody's", PATIENCE, || site.allowed(0) == "(none)");
    assert_eq!(site.allowed(1), "100.65.0.1/32 fd64::6441:1/128");
    site.appliance.end();
}

#[test]
fn a_lease_that_its_owner_is_not_hashed_to_is_steered_there() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab, 1, POOL);
    // Of the addresses some belong to the other worker: the client takes one after the other.
    let own: Ipv4Addr = "100.65.0.0".parse().unwrap();
    let queue = |addr: Ipv4Addr| ringway::dataplane::steering::queue_of(addr.into(), 2);
    let other =
        (1..250).map(|n| Ipv4Addr::from_bits(own.to_bits() + n)).find(|addr| queue(*addr) != queue(own));
    let other = other.unwrap();
    let v6 = Ipv6Addr::from_bits((0xfd64_u128 << 112) | u128::from(other.to_bits()));
    let reach = format!("reach={SERVER_V4} reach={SERVER_V6} ");
    site.client(0, &format!("wants={other} lease={other} {}", reach.repeat(10)));
    assert_eq!(site.allowed(0), format!("{other}/32 {v6}/128"));
    let (handed, taken) =
        (site.counter("ringway_handed_over_total"), site.counter("ringway_taken_over_total"));
    assert_eq!((handed, taken), (0, 0), "hand-overs");
    site.appliance.end();
}

#[test]
fn refusals_say_why_and_what_is_free_again_is_given() {
    let Some(lab) = Lab::new() else { return };
    let small = "[[pool]]\nname = \"small\"\nipv4 = [\"100.65.0.1\"]\nquarantine = 0\nlease_time = 60\n\
                 [[pool]]\nname = \"other\"\nipv4 = [\"100.66.0.1\"]\ngroups = [\"others\"]\n";
    let site = Site::new(&lab, 2, small);
    site.client(0, "lease=100.65.0.1");
    site.client(1, "refused=1,Some(60)");
    // The pool of its own by its group; by its name; none at all.
    let peers = |rest: &str| {
        let (a, b) = (&site.clients[0].1.public, &site.clients[1].1.public);
        content(&[(a, ""), (b, rest)], small)
    };
    let reload = |content: &str| {
        file(&site.gateway, "wg0.toml", content);
        site.gateway.run(&format!("{} reload --config /var/run/wg0.toml", program()))
    };
    reload(&peers("group = \"others\""));
    site.client(1, "lease=100.66.0.1");
    reload(&peers("pool = \"small\""));
    site.client(1, "refused=1,Some(60)");
    assert_eq!(site.allowed(0), "100.65.0.1/32", "a reload takes no lease away");
    reload(&peers("allowed_ips = [\"100.67.0.9/32\"]"));
    site.client(1, &format!("lease=100.67.0.9 reach={SERVER_V4}"));
    reload(
        &peers("group = \"others\"")
            .replace("groups = [\"others\"]", "groups = [\"x\"]\n")
            .replace("[[pool]]\nname = \"small\"", "[[pool]]\ngroups = [\"y\"]\nname = \"small\""),
    );
    site.client(1, "refused=5,None");
    reload(&peers(""));
    site.client(0, "lease=100.65.0.1 leave");
    site.client(1, &format!("lease=100.65.0.1 reach={SERVER_V4}"));
    let sent = || site.counter("ringway_control_frames_total{direction=\"out\"}");
    let before = sent();
    let mut waits = site.begin(1, "lease=100.65.0.1 stops");
    wait_until("it has its lease", PATIENCE, || sent() > before);
    site.appliance.end();
    assert!(waits.wait().unwrap().success(), "the client heard no farewell");
}

#[test]
fn on_a_full_disk_clients_go_on_and_new_ones_are_told_when_to_ask() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab, 2, POOL);
    site.gateway.run("mount -o remount,size=4m /var/lib");
    site.client(0, &format!("lease=100.65.0.0 reach={SERVER_V4}"));
    let filled = site.gateway.attempt("dd if=/dev/zero of=/var/lib/ballast bs=4096 status=none");
    assert!(!filled.status.success(), "the disk never was full");
    site.client(1, "refused=1,Some(10)");
    assert_eq!(site.allowed(1), "(none)", "nobody has what is not stored");
    // Who has a lease has it; it is told the same when it asks.
    site.client(0, "refused=1,Some(10)");
    assert_eq!(site.allowed(0), "100.65.0.0/32 fd64::6441:0/128");
    site.gateway.run("rm /var/lib/ballast");
    site.client(1, &format!("lease=100.65.0.1 reach={SERVER_V4}"));
    site.client(0, &format!("lease=100.65.0.0 reach={SERVER_V4}"));
    site.appliance.end();
}
