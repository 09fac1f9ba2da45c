//! The handshake thread: handshake messages come in through a socket of their own, pass admission, wait in three
//! bounded queues and are answered here. All public-key cryptography happens on this thread.
//!
//! It sleeps in poll(2): handshakes are rare beside packets, and a ring of its own would buy nothing.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::Sockets;
use super::admission::{Admission, Class, Kind, Queues, Verdict};
use super::handoff::{Bell, Handover, Request, WorkerLink};
use super::outbound::HANDSHAKE_TOS;
use crate::metrics::HandshakeCounters;
use crate::metrics::drops::Drop;
use crate::noise::handshaker::{HandshakeError, Handshaker, Tai64n};
use crate::noise::{INITIATION_LEN, ToHandshaker, ToOwner};
use crate::sys::{clock, socket};
use crate::types::{Endpoint, PeerId, PublicKey, Secret, Time, WorkerId};
use crate::wire::wireguard::{self, Message};

/// Messages read from a socket per turn.
const RECEIVES_PER_TURN: usize = 64;
/// Messages worked on per turn: about 2 ms of cryptography, so that requests do not wait longer.
const WORK_PER_TURN: usize = 16;
/// Longest sleep: pending ephemerals are erased this late at most.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// From the control thread.
#[derive(Debug)]
pub enum ToHandshake {
    /// Sets or clears the private key; answers which peers have the same key and are ignored now.
    SetPrivateKey(Option<Secret>, Sender<Vec<PeerId>>),
    /// Adds a peer; false if its key is our own.
    AddPeer(PeerId, WorkerId, PublicKey, Option<Secret>, Sender<bool>),
    /// Sets or clears a preshared key.
    SetPsk(PeerId, Option<Secret>),
    /// Forgets a peer; acknowledged.
    RemovePeer(PeerId, Sender<()>),
    /// Sockets of another listen port.
    ReplaceSockets(Sockets),
    /// Asks for the counters.
    Report(Sender<HandshakeCounters>),
    /// Leave the loop.
    Stop,
}

/// Control messages that may wait for the thread; the control thread waits while it is full.
const CONTROL_QUEUE: usize = 256;

/// The control thread's way to the handshake thread.
#[derive(Clone, Debug)]
pub struct HandshakeLink {
    control: Sender<ToHandshake>,
    bell: Bell,
}

impl HandshakeLink {
    /// A link and its receiving end.
    #[must_use]
    pub fn new(bell: Bell) -> (Self, Receiver<ToHandshake>) {
        let (control, receiver) = bounded(CONTROL_QUEUE);
        (Self { control, bell }, receiver)
    }

    /// Queues a message. False if the thread is gone.
    pub fn send(&self, message: ToHandshake) -> bool {
        let sent = self.control.send(message).is_ok();
        self.bell.ring();
        sent
    }
}

type MessageBytes = ArrayVec<u8, INITIATION_LEN>;

/// What waits in the queues.
#[derive(Debug)]
enum Work {
    Begin(PeerId),
    Message(MessageBytes, Endpoint),
}

/// What the thread is made of.
pub struct Parts {
    /// Its sockets: the last of each reuseport group.
    pub sockets: Sockets,
    /// The protocol's machine.
    pub handshaker: Handshaker,
    /// Links to the workers.
    pub workers: Vec<WorkerLink>,
    /// From the workers.
    pub requests: Receiver<Request>,
    /// From the control thread.
    pub control: Receiver<ToHandshake>,
    /// Rung by all of them.
    pub bell: Bell,
    /// Decides what is worked on.
    pub admission: Admission,
}

/// The handshake thread's state.
pub struct HandshakeThread {
    parts: Parts,
    queues: Queues<Work>,
    live: HashMap<SocketAddr, PeerId>,
    counters: HandshakeCounters,
    buffer: Box<[u8]>,
    now: Time,
    was_loaded: bool,
    stop: bool,
}

/// Endpoints remembered as live; beyond it the table starts anew (it only sorts queues).
const LIVE_LIMIT: usize = 1 << 16;

impl HandshakeThread {
    /// A thread's state; run it on a thread of its own.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            queues: Queues::new(),
            live: HashMap::new(),
            counters: HandshakeCounters::default(),
            buffer: vec![0; 64 << 10].into_boxed_slice(),
            now: clock::boottime(),
            was_loaded: false,
            stop: false,
        }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// If poll(2) fails for good.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.stop {
            self.sleep()?;
            self.now = clock::boottime();
            self.control();
            self.requests();
            self.receive();
            self.work();
            self.parts.handshaker.expire(self.now);
        }
        Ok(())
    }

    fn sleep(&mut self) -> io::Result<()> {
        let bell = &self.parts.bell;
        bell.about_to_sleep();
        let busy = !self.queues.is_empty() || !self.parts.requests.is_empty() || !self.parts.control.is_empty();
        // With work queued and a worker's queue full there is nothing to do at once, but soon.
        let timeout = match (busy, self.has_key_room()) {
            (false, _) => HEARTBEAT,
            (true, true) => Duration::ZERO,
            (true, false) => Duration::from_millis(1),
        };
        let mut fds = ArrayVec::<_, 3>::new();
        fds.push(bell.eventfd().as_fd());
        fds.extend([&self.parts.sockets.v4, &self.parts.sockets.v6].into_iter().flatten().map(|fd| fd.as_fd()));
        let waited = socket::poll_readable(&fds, timeout);
        bell.awake();
        bell.eventfd().drain();
        waited
    }

    fn has_key_room(&self) -> bool {
        self.parts.workers.iter().all(WorkerLink::has_key_room)
    }

    fn receive(&mut self) {
        let sockets = [self.parts.sockets.v4.clone(), self.parts.sockets.v6.clone()];
        for fd in sockets.iter().flatten() {
            for _ in 0..RECEIVES_PER_TURN {
                let mut buffer = std::mem::take(&mut self.buffer);
                let received = socket::recv(fd.as_fd(), &mut buffer);
                if let Ok(received) = &received {
                    let endpoint = Endpoint { remote: received.remote, source: received.source };
                    if received.truncated {
                        self.counters.drops.count(Drop::Oversized);
                    } else {
                        self.datagram(&buffer[..received.len], endpoint, received.tos);
                    }
                }
                self.buffer = buffer;
                if received.is_err() {
                    break;
                }
            }
        }
    }

    fn datagram(&mut self, bytes: &[u8], endpoint: Endpoint, tos: u8) {
        match wireguard::classify(bytes) {
            // A coalesced run that began with a handshake message, or no steering at all.
            Some(Message::Transport { receiver, .. }) => {
                let owner = self.parts.handshaker.index_owner(receiver);
                let packet = Handover::Datagram { bytes: bytes.into(), endpoint, tos };
                if !self.parts.workers.get(owner.index()).is_some_and(|link| link.handover(packet)) {
                    self.counters.drops.count(Drop::HandoverFull);
                }
            }
            Some(_) => self.admit(bytes.iter().copied().take(INITIATION_LEN).collect(), endpoint),
            None => self.counters.drops.count(Drop::Malformed),
        }
    }

    /// Admission: mac1; under load a cookie; then the source's limit; then a queue.
    fn admit(&mut self, bytes: MessageBytes, endpoint: Endpoint) {
        self.counters.received += 1;
        let kind = match wireguard::classify(&bytes) {
            Some(Message::Initiation) => Kind::Initiation,
            Some(Message::Response { .. }) => Kind::Response,
            Some(Message::CookieReply { .. }) => Kind::CookieReply,
            _ => return self.counters.drops.count(Drop::Malformed),
        };
        let handshaker = &mut self.parts.handshaker;
        let now = self.now;
        let mac1 = kind == Kind::CookieReply || handshaker.check_mac1(&bytes);
        let live = self.live.contains_key(&endpoint.remote);
        let verdict = self.parts.admission.judge(
            kind,
            mac1,
            || handshaker.check_mac2(&bytes, endpoint.remote, now),
            endpoint.remote.ip(),
            live,
            self.queues.fill(),
            now,
        );
        match verdict {
            Verdict::Drop(reason) => self.counters.drops.count(reason),
            Verdict::Cookie => {
                self.counters.drops.count(Drop::CookieRequired);
                let reply = self.parts.handshaker.cookie_reply(&bytes, endpoint.remote, now, &mut random);
                self.counters.cookies_sent += 1;
                self.answer(endpoint, &reply);
            }
            Verdict::Queue(class) => {
                if self.queues.push(class, Work::Message(bytes, endpoint)).is_err() {
                    self.counters.drops.count(Drop::HandshakeQueueFull);
                }
            }
        }
    }

    fn answer(&mut self, endpoint: Endpoint, message: &[u8]) {
        let Some(fd) = self.parts.sockets.towards(endpoint.remote) else { return };
        if socket::send(fd.as_fd(), message, endpoint.remote, endpoint.source, HANDSHAKE_TOS, None).is_err() {
            self.counters.drops.count(Drop::SendFailed);
        }
    }

    fn requests(&mut self) {
        // As many as the first queue has room for: a Begin is never dropped.
        while self.queues.has_room(Class::Own) {
            let Ok(request) = self.parts.requests.try_recv() else { break };
            match request {
                Request::Protocol(ToHandshaker::Begin { peer }) => {
                    // Cannot fail: there is room.
                    let _ = self.queues.push(Class::Own, Work::Begin(peer));
                }
                Request::Protocol(ToHandshaker::Release { index }) => self.parts.handshaker.release(index),
                Request::Live(peer, remote) => {
                    if self.live.len() >= LIVE_LIMIT {
                        self.live.clear();
                    }
                    self.live.insert(remote, peer);
                }
                Request::Message { bytes, endpoint } => self.admit(bytes, endpoint),
            }
        }
    }

    fn work(&mut self) {
        for _ in 0..WORK_PER_TURN {
            if !self.has_key_room() {
                return;
            }
            match self.queues.pop() {
                None => return,
                Some(Work::Begin(peer)) => self.begin(peer),
                Some(Work::Message(bytes, endpoint)) => self.message(&bytes, endpoint),
            }
        }
    }

    fn begin(&mut self, peer: PeerId) {
        let Some(owner) = self.parts.handshaker.owner(peer) else { return };
        let stamp = Tai64n::from_unix(clock::realtime());
        let message = match self.parts.handshaker.begin(peer, stamp, self.now, &mut random) {
            Ok(message) => {
                self.counters.initiations_sent += 1;
                ToOwner::SendInitiation { peer, message }
            }
            Err(_) => ToOwner::BeginFailed { peer },
        };
        self.tell(owner, message);
    }

    fn message(&mut self, bytes: &[u8], endpoint: Endpoint) {
        let (now, handshaker) = (self.now, &mut self.parts.handshaker);
        let result = match wireguard::classify(bytes) {
            Some(Message::Initiation) => match bytes.try_into() {
                Ok(bytes) => handshaker.consume_initiation(bytes, endpoint, now, &mut random).inspect(|_| {
                    self.counters.responses_sent += 1;
                }),
                Err(_) => return,
            },
            Some(Message::Response { .. }) => match bytes.try_into() {
                Ok(bytes) => handshaker.consume_response(bytes, endpoint, now).inspect(|_| {
                    self.counters.responses_taken += 1;
                }),
                Err(_) => return,
            },
            Some(Message::CookieReply { .. }) => match bytes.try_into().map(|b| handshaker.consume_cookie_reply(b, now)) {
                Ok(Ok(())) => {
                    self.counters.cookies_taken += 1;
                    return;
                }
                Ok(Err(error)) => Err(error),
                Err(_) => return,
            },
            _ => return,
        };
        match result {
            Ok((owner, message)) => self.tell(owner, message),
            Err(error) => self.counters.drops.count(reason(error)),
        }
    }

    fn tell(&self, owner: WorkerId, message: ToOwner) {
        if let Some(link) = self.parts.workers.get(owner.index()) {
            link.keys(message);
        }
    }

    fn control(&mut self) {
        while let Ok(message) = self.parts.control.try_recv() {
            let handshaker = &mut self.parts.handshaker;
            match message {
                ToHandshake::SetPrivateKey(key, reply) => {
                    let _ = reply.send(handshaker.set_private_key(key));
                }
                ToHandshake::AddPeer(peer, owner, key, psk, reply) => {
                    let _ = reply.send(handshaker.add_peer(peer, owner, key, psk).is_ok());
                }
                ToHandshake::SetPsk(peer, psk) => handshaker.set_psk(peer, psk),
                ToHandshake::RemovePeer(peer, done) => {
                    handshaker.remove_peer(peer);
                    self.live.retain(|_, live| *live != peer);
                    let _ = done.send(());
                }
                ToHandshake::ReplaceSockets(sockets) => self.parts.sockets = sockets,
                ToHandshake::Report(reply) => {
                    let _ = reply.send(self.counters.clone());
                }
                ToHandshake::Stop => self.stop = true,
            }
        }
    }
}

fn reason(error: HandshakeError) -> Drop {
    match error {
        HandshakeError::OldTimestamp => Drop::OldTimestamp,
        HandshakeError::PeerLimit => Drop::PeerLimit,
        HandshakeError::BadResponse => Drop::BadResponse,
        HandshakeError::BadCookie => Drop::BadCookie,
        _ => Drop::BadInitiation,
    }
}

/// Fills from the kernel's generator. Should it fail, which it does only before the kernel is seeded, the bytes stay
/// zero and the message is of no use to anybody; the caller's retry mends it.
fn random(bytes: &mut [u8]) {
    let _ = getrandom::fill(bytes);
}
