//! Many WireGuard clients in one process: handshakes and sessions are those of [`crate::noise`], so that what is sent
//! is what a real client sends. The clients share a few sockets and, if they are given a prefix of local addresses,
//! each sends from its own: the gateway limits handshakes by source.
//!
//! 1. [`Fleet::begin`] sends initiations, [`Fleet::receive`] takes what comes, [`Fleet::tick`] serves timers
//! 2. [`Fleet::send_bursts`] seals bursts of probes, each burst of one client side by side, and sends each as one run

use std::collections::HashMap;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use arrayvec::ArrayVec;
use serde::Serialize;
use socket2::Domain;

use super::identity::{self, MAX_CLIENTS};
use super::latency::Latency;
use super::probe::{self, Probe};
use super::stop::Stop;
use super::udp;
use crate::crypto::aead::{self, Pieces, RUN, Sealed, Span, TAG_LEN};
use crate::crypto::random::SystemRng;
use crate::noise::ToOwner;
use crate::noise::handshaker::Handshaker;
use crate::noise::index::IndexKey;
use crate::noise::peer_session::PeerSession;
use crate::noise::timers::Limits;
use crate::noise::timestamp::Tai64n;
use crate::sys::clock;
use crate::sys::poll::{self, PollFd};
use crate::sys::socket::{self, MANY, Outgoing};
use crate::types::{Endpoint, PeerId, Prefix, PublicKey, Source, Suite, Time, WorkerId};
use crate::wire::frame::lease::AddrRequest;
use crate::wire::frame::{self, Frame, Operation};
use crate::wire::wireguard::{Kind, TRANSPORT_HEADER_LEN, TransportHeader, padded_len};

#[cfg(test)]
mod tests;

/// Most sockets that clients are spread over.
pub const MAX_SOCKETS: usize = 64;
/// Most datagrams of a burst.
pub const MAX_BURST: usize = RUN;
/// Longest inner payload: the packet and what is around it fit 1500 bytes.
pub const MAX_SIZE: usize = 1392;
/// How often one socket is read before anything else is done.
const READS_PER_TURN: usize = 4;
/// How often the timers of all clients are looked at.
pub const TICK: Duration = Duration::from_millis(50);
/// How long a full socket is waited for.
const PATIENCE: Duration = Duration::from_millis(2);
/// The gateway, to each client.
const GATEWAY: PeerId = PeerId { slot: 0, generation: 1 };

/// Who the clients are and where they find the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The gateway's address.
    pub endpoint: SocketAddr,
    /// Its public key.
    pub gateway_key: PublicKey,
    /// What keys are made from.
    pub seed: u64,
    /// How many, 1 to [`MAX_CLIENTS`].
    pub clients: usize,
    /// Sockets that they share, 1 to [`MAX_SOCKETS`].
    pub sockets: usize,
    /// Local addresses that they send from in turn; `None`: the kernel's choice for all.
    pub sources: Option<Prefix>,
}

/// What was counted over all clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Initiations sent, retransmissions included.
    pub initiations: u64,
    /// Handshakes done, renewals included.
    pub handshakes: u64,
    /// Cookie replies taken.
    pub cookies: u64,
    /// Handshakes given up after 90 s.
    pub gave_up: u64,
    /// Probes sent.
    pub sent: u64,
    /// Bytes of their UDP payload inside the tunnel.
    pub sent_bytes: u64,
    /// Probes that came back.
    pub returned: u64,
    /// Leases that were given or renewed.
    pub leases: u64,
    /// Requests for one that were refused.
    pub refusals: u64,
    /// Of the probes that came back, those that came after a later one of the same session.
    pub reordered: u64,
    /// Datagrams that the kernel refused to send.
    pub refused: u64,
    /// Datagrams that were no answer to anything, or did not authenticate.
    pub strange: u64,
}

/// A client.
struct Client {
    handshaker: Handshaker,
    session: PeerSession,
    source: Option<Source>,
    inner: Ipv4Addr,
    /// The index of its initiation that waits for an answer, and since when.
    pending: Option<(u32, Time)>,
    /// When it asked for a lease, until it is answered.
    asked: Option<Time>,
    /// Number of its next probe.
    next: u64,
    /// Greatest number that came back.
    newest: Option<u64>,
}

/// All of them.
pub struct Fleet {
    gateway: SocketAddr,
    clients: Vec<Client>,
    /// By receiver index.
    by_index: HashMap<u32, usize>,
    sockets: Vec<UdpSocket>,
    /// The sockets, then the bell.
    polled: Vec<PollFd>,
    /// Received messages; then sealed bursts.
    buffers: Vec<Box<[u8]>>,
    rng: SystemRng,
    /// Whether keypairs are used; else a handshake is all there is.
    keep: bool,
    /// Whoever got a cookie initiates again at once, not after the 5 s of the protocol.
    eager: bool,
    /// What was counted.
    pub tally: Tally,
    /// From initiation to response.
    pub handshake_times: Latency,
    /// From a probe to its return.
    pub echo_times: Latency,
    /// From a request for a lease to its answer.
    pub lease_times: Latency,
    /// When something was last received, sent or served.
    pub now: Time,
    /// When timers were last served.
    ticked: Time,
}

/// A sealed burst.
#[derive(Clone, Copy)]
struct Burst {
    client: usize,
    count: usize,
    /// Bytes of each of its datagrams.
    datagram: usize,
}

impl Fleet {
    /// Makes keys and sockets. With `keep` the clients have sessions; without, they only shake hands. The `eager`
    /// answer a cookie at once.
    ///
    /// # Errors
    /// Settings beyond their limits, no sockets, a gateway whose key no client can use.
    pub fn new(settings: &Settings, keep: bool, eager: bool, stop: &Stop) -> anyhow::Result<Self> {
        use std::os::fd::AsFd as _;
        let Settings { endpoint, gateway_key, seed, clients, sockets, sources } = *settings;
        if !(1..=MAX_CLIENTS).contains(&clients) {
            bail!("1 to {MAX_CLIENTS} clients are possible");
        }
        if !(1..=MAX_SOCKETS).contains(&sockets) {
            bail!("1 to {MAX_SOCKETS} sockets are possible");
        }
        identity::check_sources(sources, endpoint)?;
        let sockets: Vec<_> = (0..sockets).map(|_| open(endpoint)).collect::<Result<_, _>>()?;
        let asked = |fd| PollFd { fd, events: libc::POLLIN, revents: 0 };
        let bell = stop.as_fd().as_raw_fd();
        let polled = sockets.iter().map(|socket| asked(socket.as_raw_fd())).chain([asked(bell)]).collect();
        let now = clock::boottime();
        let clients = (0..clients).map(|n| {
            let mut handshaker = Handshaker::new(1, IndexKey::new([0; 3]));
            handshaker.set_private_key(Some(identity::private_key(seed, n)));
            let added = handshaker.add_peer(GATEWAY, WorkerId(0), gateway_key, None);
            added.map_err(|error| anyhow!("client {n} and the gateway: {error}"))?;
            let mut session = PeerSession::new(GATEWAY, Limits::PAPER, n as u64);
            session.set_endpoint(Some(endpoint), now);
            let source = sources.and_then(|sources| identity::outer_source(sources, n));
            let inner = identity::inner_address(n);
            Ok(Client {
                handshaker,
                session,
                source,
                inner,
                pending: None,
                asked: None,
                next: 0,
                newest: None,
            })
        });
        Ok(Self {
            gateway: endpoint,
            clients: clients.collect::<anyhow::Result<_>>()?,
            by_index: HashMap::new(),
            sockets,
            polled,
            buffers: udp::buffers(),
            rng: SystemRng::new()?,
            keep,
            eager,
            tally: Tally::default(),
            handshake_times: Latency::default(),
            echo_times: Latency::default(),
            lease_times: Latency::default(),
            now,
            ticked: now,
        })
    }

    /// How many clients there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Never: there is one at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether a client has a session.
    #[must_use]
    pub fn is_in(&self, client: usize) -> bool {
        self.clients.get(client).is_some_and(|client| client.session.is_established())
    }

    /// Since when a client's initiation waits for an answer.
    #[must_use]
    pub fn waits_since(&self, client: usize) -> Option<Time> {
        self.clients.get(client)?.pending.map(|(_, since)| since)
    }

    /// Asks for a lease for a client, in the place of what it asked before.
    pub fn ask(&mut self, client: usize) {
        self.now = clock::boottime();
        // As long as a stream id is the client's own, any will do.
        let request = AddrRequest::default().write(0, 1);
        if self.say(client, &request)
            && let Some(found) = self.clients.get_mut(client)
        {
            found.asked = Some(self.now);
        }
    }

    /// Since when a client waits for a lease.
    #[must_use]
    pub fn asks_since(&self, client: usize) -> Option<Time> {
        self.clients.get(client)?.asked
    }

    /// Sleeps until something comes, a stop is said, or so long.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<()> {
        poll::wait(&mut self.polled, Some(patience)).context("waiting").map(drop)
    }

    /// Has a client that has no session begin a handshake, if it may by its timers.
    pub fn connect(&mut self, client: usize) {
        let now = self.now;
        if let Some(found) = self.clients.get_mut(client) {
            // There is no keypair to take a counter of: a handshake begins instead.
            let _ = found.session.reserve(1, now);
            self.act(client);
        }
    }

    /// Sends an initiation of a client, in the place of the one that waits, if any.
    pub fn begin(&mut self, client: usize) {
        let now = self.now;
        let stamp = Tai64n::from_unix(clock::realtime());
        let Some(found) = self.clients.get_mut(client) else { return };
        let message = loop {
            let Ok(message) = found.handshaker.begin(GATEWAY, stamp, now, &mut self.rng) else {
                found.session.begin_failed();
                return;
            };
            let [_, _, _, _, a, b, c, d, ..] = message;
            let index = u32::from_le_bytes([a, b, c, d]);
            if let Some((former, _)) = found.pending.replace((index, now)) {
                self.by_index.remove(&former);
            }
            // Each client draws its own: two may draw the same, hardly ever.
            if self.by_index.get(&index).is_none_or(|holder| *holder == client) {
                self.by_index.insert(index, client);
                break message;
            }
            found.pending = None;
        };
        self.tally.initiations += 1;
        let source = found.source;
        self.send(client, &message, source);
        if self.keep
            && let Some(found) = self.clients.get_mut(client)
        {
            found.session.initiation_sent(now);
        }
    }

    /// Serves the timers of all clients, if that is [`TICK`] ago.
    pub fn tick(&mut self) {
        if self.now.since(self.ticked) < TICK {
            return;
        }
        self.now = clock::boottime();
        self.ticked = self.now;
        for client in 0..self.clients.len() {
            let now = self.now;
            let Some(found) = self.clients.get_mut(client) else { return };
            if found.session.deadline().is_some_and(|deadline| deadline <= now) {
                found.session.handle_timeout(now);
                self.act(client);
            }
        }
    }

    /// Takes what has come since the last [`Self::wait`].
    pub fn receive(&mut self) {
        self.now = clock::boottime();
        let mut buffers = mem::take(&mut self.buffers);
        for place in 0..self.sockets.len() {
            if self.polled.get(place).is_none_or(|fd| fd.revents == 0) {
                continue;
            }
            for _ in 0..READS_PER_TURN {
                let Some(Ok(received)) =
                    self.sockets.get(place).map(|socket| socket::recv_many(socket, &mut buffers))
                else {
                    break;
                };
                let full = received.is_full();
                for (received, buffer) in received.into_iter().zip(&mut buffers) {
                    let Ok(received) = received else { continue };
                    if let Some(bytes) = buffer.get_mut(..received.len)
                        && received.remote == self.gateway
                    {
                        self.take(bytes, received.segment.map_or(received.len, usize::from));
                    }
                }
                if !full {
                    break;
                }
            }
        }
        self.buffers = buffers;
    }

    /// Takes a run of datagrams; those of one session in a row are opened side by side.
    fn take(&mut self, bytes: &mut [u8], segment: usize) {
        let mut waiting = ArrayVec::<(Range<usize>, u64), RUN>::new();
        let mut of = None;
        let mut at = 0;
        while at < bytes.len() {
            let range = at..(at + segment.max(1)).min(bytes.len());
            at = range.end;
            let Some(message) = bytes.get(range.clone()) else { break };
            let Some(TransportHeader { receiver, counter, .. }) = TransportHeader::parse(message) else {
                self.message(message);
                continue;
            };
            if waiting.is_full() || of.is_some_and(|of| of != receiver) {
                self.open(bytes, of, &mut waiting);
            }
            of = Some(receiver);
            waiting.push((range, counter));
        }
        self.open(bytes, of, &mut waiting);
    }

    /// Opens transport messages of one session and takes what they carry.
    fn open(
        &mut self,
        bytes: &mut [u8],
        index: Option<u32>,
        waiting: &mut ArrayVec<(Range<usize>, u64), RUN>,
    ) {
        let all = waiting.len() as u64;
        let now = self.now;
        let found = index.and_then(|index| Some((index, *self.by_index.get(&index)?)));
        let Some((index, number)) = found.filter(|_| self.keep) else {
            self.tally.strange += all;
            return waiting.clear();
        };
        let Some(client) = self.clients.get_mut(number) else { return waiting.clear() };
        let session = &mut client.session;
        let Some(name) = session.keypair(index) else {
            self.tally.strange += all;
            return waiting.clear();
        };
        let (mut messages, mut opened, mut counters) =
            (ArrayVec::new(), ArrayVec::new(), ArrayVec::<u64, RUN>::new());
        let mut pieces = Pieces::of(bytes);
        for (range, counter) in waiting.drain(..) {
            let text = pieces.take(range.start + TRANSPORT_HEADER_LEN..range.end);
            let sealed = text.and_then(|text| Sealed::new(counter, text));
            if let (Some(sealed), Ok(())) = (sealed, session.check(name, counter, now)) {
                messages.push(sealed);
                counters.push(counter);
            }
        }
        if let Some(key) = session.opening_key(name, Suite::ChaCha20Poly1305) {
            aead::open_run(key, &mut messages, &mut opened);
        }
        let (mut accepted, mut outer, mut data) = (0, 0, false);
        for (text, counter) in opened.iter().flatten().zip(&counters) {
            if session.accept(name, *counter).is_err() {
                continue;
            }
            accepted += 1;
            outer += (TRANSPORT_HEADER_LEN + text.len() + TAG_LEN) as u64;
            data |= !text.is_empty();
            if frame::is_frame(text) {
                let answer = Frame::parse(text).map(|frame| frame.operation);
                let Some(since) = client.asked.take() else { continue };
                match answer {
                    Ok(Operation::AddrReply) => self.tally.leases += 1,
                    Ok(Operation::Problem) => self.tally.refusals += 1,
                    _ => client.asked = Some(since),
                }
                if client.asked.is_none() {
                    self.lease_times.record(now.since(since));
                }
                continue;
            }
            let Some(probe) = Probe::parse_packet(text).filter(|probe| probe.client as usize == number)
            else {
                continue;
            };
            self.tally.returned += 1;
            self.echo_times.record(now.since(probe.sent));
            if client.newest.is_some_and(|newest| probe.sequence < newest) {
                self.tally.reordered += 1;
            }
            client.newest = client.newest.max(Some(probe.sequence));
        }
        self.tally.strange += all - accepted;
        if accepted > 0 {
            session.received(name, Endpoint::new(self.gateway), data, outer, now);
            self.act(number);
        }
    }

    /// Takes a handshake message.
    fn message(&mut self, bytes: &[u8]) {
        let index_at = match Kind::of(bytes) {
            Some(Kind::Response) => 8,
            Some(Kind::CookieReply) => 4,
            _ => bytes.len(),
        };
        let index =
            bytes.get(index_at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_le_bytes);
        let number = index.and_then(|index| self.by_index.get(&index).copied());
        let taken = number.is_some_and(|number| match (bytes.try_into(), bytes.try_into()) {
            (Ok(response), _) => self.response(number, response),
            (_, Ok(cookie)) => self.cookie(number, cookie),
            _ => false,
        });
        self.tally.strange += u64::from(!taken);
    }

    fn response(&mut self, number: usize, response: &[u8; crate::wire::wireguard::RESPONSE_LEN]) -> bool {
        let (now, endpoint) = (self.now, Endpoint::new(self.gateway));
        let Some(client) = self.clients.get_mut(number) else { return false };
        if !client.handshaker.check_mac1(response) {
            return false;
        }
        let Ok((_, ToOwner::Install { keypair, .. })) =
            client.handshaker.consume_response(response, endpoint, now)
        else {
            return false;
        };
        self.tally.handshakes += 1;
        if let Some((_, since)) = client.pending.take() {
            self.handshake_times.record(now.since(since));
        }
        if self.keep {
            client.session.install(&keypair, endpoint, now);
            self.act(number);
        } else {
            client.handshaker.release(keypair.local_index);
            self.by_index.remove(&keypair.local_index);
        }
        true
    }

    fn cookie(&mut self, number: usize, reply: &[u8; crate::wire::wireguard::COOKIE_REPLY_LEN]) -> bool {
        let now = self.now;
        let Some(client) = self.clients.get_mut(number) else { return false };
        if client.handshaker.consume_cookie_reply(reply, now).is_err() {
            return false;
        }
        self.tally.cookies += 1;
        if self.eager {
            self.begin(number);
        }
        true
    }

    /// Does what a session wants done.
    fn act(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(number) else { return };
        let actions = client.session.take_actions();
        for index in actions.released {
            client.handshaker.release(index);
            self.by_index.remove(&index);
        }
        self.tally.gave_up += u64::from(actions.gave_up);
        if actions.keepalive {
            self.say(number, &[]);
        }
        if actions.begin {
            self.begin(number);
        }
    }

    /// Sends a message by itself: nothing, as a keepalive, or a frame. False if the client has no session.
    fn say(&mut self, number: usize, payload: &[u8]) -> bool {
        let now = self.now;
        let Some(client) = self.clients.get_mut(number) else { return false };
        let Some(message) = client.session.message(payload, now) else { return false };
        let source = client.source;
        self.send(number, &message, source);
        if let Some(client) = self.clients.get_mut(number) {
            client.session.sent(!payload.is_empty(), message.len() as u64, now);
            self.act(number);
        }
        true
    }

    fn send(&mut self, number: usize, message: &[u8], source: Option<Source>) {
        let socket = self.sockets.get(socket_of(number, self.sockets.len()));
        let sent = socket.map(|socket| socket::send(socket, message, self.gateway, source, 0, None));
        self.tally.refused += u64::from(sent.is_none_or(|sent| sent.is_err()));
    }

    /// Sends a burst of `count` probes with `size` bytes of payload for each of these clients, at most [`MANY`] of them
    /// that share a socket ([`Self::group`]); who has no session is passed over. Returns how many bursts were sent.
    pub fn send_bursts(
        &mut self,
        clients: Range<usize>,
        count: usize,
        size: usize,
        to: SocketAddrV4,
    ) -> usize {
        self.now = clock::boottime();
        let mut buffers = mem::take(&mut self.buffers);
        let mut bursts = ArrayVec::<Burst, MANY>::new();
        let first = clients.start;
        for client in clients.take(MANY) {
            let Some(buffer) = buffers.get_mut(bursts.len()) else { break };
            match self.seal(client, buffer, count, size, to) {
                Some(burst) => bursts.push(burst),
                // A handshake that the session asks for.
                None => self.act(client),
            }
        }
        let outgoing: ArrayVec<Outgoing<'_>, MANY> = bursts
            .iter()
            .zip(&buffers)
            .filter_map(|(burst, buffer)| {
                Some(Outgoing {
                    payload: buffer.get(..burst.count * burst.datagram)?,
                    remote: self.gateway,
                    source: self.clients.get(burst.client)?.source,
                    tos: 0,
                    segment: (burst.count > 1).then(|| u16::try_from(burst.datagram).ok()).flatten(),
                })
            })
            .collect();
        let refused = self.transmit(socket_of(first, self.sockets.len()), &outgoing);
        drop(outgoing);
        for (n, burst) in bursts.iter().enumerate() {
            let taken = refused & (1 << n) == 0;
            let now = self.now;
            if let Some(client) = self.clients.get_mut(burst.client) {
                client.session.sent(taken, (burst.count * burst.datagram) as u64, now);
                self.act(burst.client);
            }
            if taken {
                self.tally.sent += burst.count as u64;
                self.tally.sent_bytes += (burst.count * size) as u64;
            } else {
                self.tally.refused += burst.count as u64;
            }
        }
        self.buffers = buffers;
        bursts.len()
    }

    /// The clients from `client` on that share its socket and may be sent for at once.
    #[must_use]
    pub fn group(&self, client: usize) -> Range<usize> {
        client..(client / MANY * MANY + MANY).min(self.clients.len())
    }

    /// Seals a burst into a buffer; `None` if the client has no session.
    fn seal(
        &mut self,
        number: usize,
        buffer: &mut [u8],
        count: usize,
        size: usize,
        to: SocketAddrV4,
    ) -> Option<Burst> {
        let now = self.now;
        let client = self.clients.get_mut(number)?;
        let reserved = client.session.reserve(count as u64, now)?;
        let packet = probe::HEADERS + size;
        let text = padded_len(packet, 0);
        let datagram = TRANSPORT_HEADER_LEN + text + TAG_LEN;
        let mut spans = ArrayVec::<Span, MAX_BURST>::new();
        for (n, message) in (0..count as u64).zip(buffer.chunks_exact_mut(datagram)) {
            let counter = reserved.first_counter + n;
            let header =
                TransportHeader { receiver: reserved.remote_index, counter, suite: Suite::ChaCha20Poly1305 };
            let (head, rest) = message.split_first_chunk_mut::<TRANSPORT_HEADER_LEN>()?;
            *head = header.to_bytes();
            let (inner, padding) = rest.split_at_mut_checked(packet)?;
            let probe = Probe { client: number as u32, sequence: client.next, sent: now };
            client.next += 1;
            padding.fill(0);
            probe.write(inner, client.inner, to).then_some(())?;
            spans.try_push(Span { start: n as usize * datagram + TRANSPORT_HEADER_LEN, len: text }).ok()?;
        }
        let key =
            client.session.sealing_key(reserved.remote_index, Suite::ChaCha20Poly1305, count * datagram)?;
        aead::seal_run(key, reserved.first_counter, buffer, &spans).then_some(())?;
        Some(Burst { client: number, count, datagram })
    }

    /// Sends all by one socket, waiting a little where it is full. Returns a bit for each that the kernel refused.
    fn transmit(&self, socket: usize, outgoing: &[Outgoing<'_>]) -> u64 {
        let Some(socket) = self.sockets.get(socket) else { return u64::MAX };
        let (mut done, mut refused) = (0, 0_u64);
        let mut waited = false;
        while let Some(rest) = outgoing.get(done..).filter(|rest| !rest.is_empty()) {
            match socket::send_many(socket, rest) {
                Ok(taken) => done += taken.max(1),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    let mut asked = [PollFd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 }];
                    let _ = poll::wait(&mut asked, Some(PATIENCE));
                }
                Err(_) => {
                    refused |= 1 << done;
                    done += 1;
                }
            }
        }
        refused
    }
}

/// The socket of a client: those whom [`Fleet::group`] keeps together have the same.
fn socket_of(client: usize, sockets: usize) -> usize {
    (client / MANY) % sockets.max(1)
}

/// A socket with all that clients need of it.
fn open(endpoint: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = udp::bind_towards(endpoint).context("a UDP socket")?;
    socket::set_path_mtu(&socket, if endpoint.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 })?;
    Ok(socket)
}
