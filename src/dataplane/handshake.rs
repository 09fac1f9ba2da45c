//! The handshake thread: handshake messages come in through a socket of their own, pass admission, wait in four
//! bounded queues and are answered here. All public-key cryptography happens on this thread.
//!
//! It sleeps in poll(2): handshakes are rare beside packets, and a ring of its own would buy nothing.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::Sockets;
use super::admission::{Admission, Arrival, Verdict};
use super::handoff::{Asked, AskedLink, Bell, Claim, Handover, Request, Wish, WorkerLink};
use super::outbound::HANDSHAKE_TOS;
use crate::crypto::random::SystemRng;
use crate::metrics::board::Board;
use crate::metrics::drops::Drop;
use crate::metrics::{HandshakeCounters, HandshakeGauges};
use crate::noise::handshaker::{HandshakeError, Handshaker, TOGETHER};
use crate::noise::timestamp::Tai64n;
use crate::noise::{ToHandshaker, ToOwner};
use crate::sys::socket::{self, MANY, Outgoing};
use crate::sys::{clock, poll};
use crate::types::{Endpoint, PeerId, PublicKey, Secret, Suite, Time, WorkerId};
use crate::wire::wireguard::{COOKIE_REPLY_LEN, INITIATION_LEN, Kind, TransportHeader};

/// So many messages of a socket end its part of a turn; the last receive may bring more.
const MESSAGES_PER_TURN: usize = 8 * MANY;
/// Messages worked on per turn: about 2 ms of cryptography, so that requests do not wait longer.
const WORK_PER_TURN: usize = 16;
/// How often pending handshakes are looked through for those that are too old.
const EXPIRY: Duration = Duration::from_secs(1);
/// Longest sleep: pending ephemerals are erased this late at most.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// From the control thread.
#[derive(Debug)]
pub enum ToHandshake {
    /// Sets or clears the private key; answers which peers have the same key and are ignored now.
    SetPrivateKey(Option<Secret>, Sender<Vec<PeerId>>),
    /// Adds a peer; false if its key is our own.
    AddPeer(PeerId, WorkerId, PublicKey, Option<Secret>, Sender<bool>),
    /// Adds a peer of an invite's use; false if its key is our own.
    AddTemporary(PeerId, WorkerId, PublicKey, Sender<bool>),
    /// Sets or clears a preshared key; acknowledged: every keypair made with the old one is on its way by then.
    SetPsk(PeerId, Option<Secret>, Sender<()>),
    /// Forgets a peer; acknowledged.
    RemovePeer(PeerId, Sender<()>),
    /// Sockets of another listen port.
    ReplaceSockets(Sockets),
    /// Where to show numbers from now on, if anywhere.
    Show(Option<Arc<Board>>),
    /// Asks for the counters.
    Report(Sender<HandshakeCounters>),
    /// Answer, if the loop still turns.
    Turns(Sender<()>),
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
    /// To the control thread.
    pub asked: AskedLink,
    /// Rung by all of them.
    pub bell: Bell,
    /// For ephemerals, indices and cookies.
    pub rng: SystemRng,
    /// Where its numbers are shown; `None` if nobody looks.
    pub board: Option<Arc<Board>>,
}

/// The handshake thread's state.
pub struct HandshakeThread {
    parts: Parts,
    admission: Admission<Work>,
    /// A Begin that found its queue full.
    waiting: Option<Work>,
    live: HashMap<SocketAddr, PeerId>,
    counters: HandshakeCounters,
    /// One for each message of a receive. Only what messages touch is ever in memory.
    buffers: Vec<Box<[u8]>>,
    /// Cookie replies that are to be sent together.
    replies: ArrayVec<(Endpoint, [u8; COOKIE_REPLY_LEN]), MANY>,
    now: Time,
    /// When pending handshakes were last looked through.
    expired: Time,
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
            admission: Admission::new(),
            waiting: None,
            live: HashMap::new(),
            counters: HandshakeCounters::default(),
            buffers: (0..MANY).map(|_| vec![0; 64 << 10].into_boxed_slice()).collect(),
            replies: ArrayVec::new(),
            now: clock::boottime(),
            expired: Time::default(),
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
            self.expire();
            self.publish();
        }
        Ok(())
    }

    fn publish(&self) {
        let Some(board) = &self.parts.board else { return };
        let gauges = HandshakeGauges {
            queued: self.admission.len() as u64,
            under_load: u64::from(self.admission.under_load(self.now)),
        };
        self.counters.publish(&gauges, board);
    }

    /// Not in every turn: it costs by the number of pending handshakes, and strangers' messages make turns.
    fn expire(&mut self) {
        if self.now.since(self.expired) >= EXPIRY {
            self.expired = self.now;
            self.parts.handshaker.expire(self.now);
        }
    }

    fn sleep(&mut self) -> io::Result<()> {
        let bell = &self.parts.bell;
        bell.about_to_sleep();
        let busy =
            !self.admission.is_empty() || !self.parts.requests.is_empty() || !self.parts.control.is_empty();
        // With work queued and a worker's queue full there is nothing to do at once, but soon.
        let timeout = match (busy, self.has_key_room()) {
            (false, _) => HEARTBEAT,
            (true, true) => Duration::ZERO,
            (true, false) => Duration::from_millis(1),
        };
        let mut fds = ArrayVec::<_, 3>::new();
        fds.push(bell.eventfd().as_fd());
        fds.extend(
            [&self.parts.sockets.v4, &self.parts.sockets.v6].into_iter().flatten().map(|fd| fd.as_fd()),
        );
        let waited = poll::readable(&fds, timeout);
        bell.awake();
        let _ = bell.eventfd().drain();
        waited
    }

    /// Whether every worker takes as many key messages as are made at a time.
    fn has_key_room(&self) -> bool {
        self.parts.workers.iter().all(|worker| worker.has_key_room(TOGETHER))
    }

    fn receive(&mut self) {
        let sockets = [self.parts.sockets.v4.clone(), self.parts.sockets.v6.clone()];
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut behind = false;
        for fd in sockets.iter().flatten() {
            let mut messages = 0;
            behind |= loop {
                let (count, full) = self.receive_from(fd, &mut buffers);
                messages += count;
                if !full || messages >= MESSAGES_PER_TURN {
                    break full;
                }
            };
        }
        self.buffers = buffers;
        self.admission.set_behind(behind);
        self.reply();
    }

    /// Takes what one receive gives: how many messages, and whether there may be more of them.
    fn receive_from(&mut self, fd: &impl AsFd, buffers: &mut [Box<[u8]>]) -> (usize, bool) {
        let Ok(received) = socket::recv_many(fd, buffers) else { return (0, false) };
        let (mut count, full) = (0, received.is_full());
        for (received, buffer) in received.into_iter().zip(buffers) {
            let Ok(received) = received else { continue };
            let endpoint = Endpoint { remote: received.remote, source: received.source };
            match buffer.get(..received.len) {
                Some(run) if !received.truncated => {
                    let segment = received.segment.map_or(run.len(), usize::from).max(1);
                    for bytes in run.chunks(segment) {
                        self.datagram(bytes, endpoint, received.tos);
                        count += 1;
                    }
                }
                _ => self.counters.drops.count(Drop::Oversized),
            }
        }
        (count, full)
    }

    fn datagram(&mut self, bytes: &[u8], endpoint: Endpoint, tos: u8) {
        // A coalesced run that began with a handshake message, or no steering at all.
        if let Some(header) = TransportHeader::parse(bytes) {
            let owner = self.parts.handshaker.index_owner(header.receiver);
            let packet = Handover::Datagram { bytes: bytes.into(), endpoint, tos };
            if !self.parts.workers.get(owner.index()).is_some_and(|link| link.handover(packet)) {
                self.counters.drops.count(Drop::HandoverFull);
            }
        } else {
            self.admit(bytes, endpoint);
        }
    }

    /// Admission: length, mac1, under load a cookie, then the source's limit, then a queue.
    fn admit(&mut self, bytes: &[u8], endpoint: Endpoint) {
        let kind = match Kind::of(bytes) {
            Some(kind) if kind != Kind::Transport => kind,
            _ => return self.counters.drops.count(Drop::Malformed),
        };
        self.counters.received += 1;
        let handshaker = &mut self.parts.handshaker;
        let (now, remote) = (self.now, endpoint.remote);
        let expected = match kind {
            Kind::Initiation => self.live.contains_key(&remote),
            _ => handshaker.expects_answer(bytes),
        };
        let was_under_load = self.admission.under_load(now);
        let verdict = self.admission.offer(
            Arrival { kind, source: remote.ip(), expected },
            || handshaker.check_mac1(bytes),
            || handshaker.check_mac2(bytes, remote, now),
            || Work::Message(bytes.iter().copied().take(INITIATION_LEN).collect(), endpoint),
            now,
        );
        if !was_under_load && self.admission.under_load(now) {
            self.counters.under_load += 1;
        }
        match verdict {
            Verdict::Queued(_) => {}
            Verdict::Drop(reason) => self.counters.drops.count(reason),
            Verdict::Cookie => {
                self.counters.drops.count(Drop::CookieRequired);
                let Parts { handshaker, rng, .. } = &mut self.parts;
                if let Some(reply) = handshaker.cookie_reply(bytes, remote, now, rng) {
                    if self.replies.is_full() {
                        self.reply();
                    }
                    self.replies.push((endpoint, reply));
                }
            }
        }
    }

    /// Sends the cookie replies that wait, those of a family in a row by one call.
    fn reply(&mut self) {
        let outgoing = self.replies.iter().map(|(Endpoint { remote, source }, payload)| Outgoing {
            payload,
            remote: *remote,
            source: *source,
            tos: HANDSHAKE_TOS,
            segment: None,
        });
        let outgoing: ArrayVec<_, MANY> = outgoing.collect();
        for run in outgoing.chunk_by(|one, next| one.remote.is_ipv4() == next.remote.is_ipv4()) {
            let fd = run.first().and_then(|first| self.parts.sockets.towards(first.remote));
            let (Some(fd), mut rest) = (fd, run) else { continue };
            while !rest.is_empty() {
                let sent = socket::send_many(fd, rest).unwrap_or(0);
                self.counters.cookies_sent += sent as u64;
                rest = rest.get(sent..).unwrap_or_default();
                // What it stopped at is not tried again.
                if let Some((_, later)) = rest.split_first() {
                    self.counters.drops.count(Drop::SendFailed);
                    rest = later;
                }
            }
        }
        drop(outgoing);
        self.replies.clear();
    }

    fn requests(&mut self) {
        // Until the queue for our own initiations is full: a Begin is never dropped.
        while self.push_waiting() {
            let Ok(request) = self.parts.requests.try_recv() else { return };
            match request {
                Request::Protocol(ToHandshaker::Begin { peer }) => self.waiting = Some(Work::Begin(peer)),
                Request::Protocol(ToHandshaker::Release { index }) => self.parts.handshaker.release(index),
                Request::Live(peer, remote) => {
                    if self.live.len() >= LIVE_LIMIT {
                        self.live.clear();
                    }
                    self.live.insert(remote, peer);
                }
                Request::Message { bytes, endpoint } => self.admit(&bytes, endpoint),
                Request::Enroll(claim) => self.claimed(*claim),
            }
        }
    }

    /// Verifies the proof of whoever wants to become a peer, here where the handshakes' hashes are; what is to be
    /// looked up is the control thread's.
    fn claimed(&mut self, claim: Claim) {
        let Claim { peer, index, stream_id, enroll } = claim;
        let verdict = self.parts.handshaker.invited(peer, index, &enroll.own, &enroll.proof);
        let what = Wish::Enrol(enroll.own, verdict);
        if !self.parts.asked.ask(Asked { peer, suite: Suite::ChaCha20Poly1305, stream_id, what }) {
            self.counters.drops.count(Drop::ControlFull);
        }
    }

    /// True if nothing waits any more.
    fn push_waiting(&mut self) -> bool {
        self.waiting = self.waiting.take().and_then(|work| self.admission.push_own(work).err());
        self.waiting.is_none()
    }

    fn work(&mut self) {
        for _ in 0..WORK_PER_TURN / TOGETHER {
            if self.admission.is_empty() || !self.has_key_room() {
                return;
            }
            let mut initiations = ArrayVec::new();
            for (_, work) in
                (0..TOGETHER).map_while(|_| self.admission.pop()).collect::<ArrayVec<_, TOGETHER>>()
            {
                match work {
                    Work::Begin(peer) => self.begin(peer),
                    Work::Message(bytes, endpoint) => match bytes[..].try_into() {
                        Ok(initiation) => initiations.push((initiation, endpoint)),
                        Err(_) => self.message(&bytes, endpoint),
                    },
                }
            }
            self.initiations(&initiations);
        }
    }

    fn initiations(&mut self, initiations: &ArrayVec<([u8; INITIATION_LEN], Endpoint), TOGETHER>) {
        let Parts { handshaker, rng, .. } = &mut self.parts;
        for result in handshaker.consume_initiations(initiations, self.now, rng) {
            self.counters.responses_sent += u64::from(result.is_ok());
            self.done(result.map(Some));
        }
    }

    fn begin(&mut self, peer: PeerId) {
        let Some(owner) = self.parts.handshaker.owner(peer) else { return };
        let stamp = Tai64n::from_unix(clock::realtime());
        let Parts { handshaker, rng, .. } = &mut self.parts;
        let message = match handshaker.begin(peer, stamp, self.now, rng) {
            Ok(message) => {
                self.counters.initiations_sent += 1;
                ToOwner::SendInitiation { peer, message }
            }
            Err(_) => ToOwner::BeginFailed { peer },
        };
        self.tell(owner, message);
    }

    fn message(&mut self, bytes: &[u8], endpoint: Endpoint) {
        let handshaker = &mut self.parts.handshaker;
        let now = self.now;
        let counters = &mut self.counters;
        let result = if let Ok(response) = bytes.try_into() {
            let result = handshaker.consume_response(response, endpoint, now);
            result.map(Some).inspect(|_| counters.responses_taken += 1)
        } else if let Ok(cookie) = bytes.try_into() {
            let result = handshaker.consume_cookie_reply(cookie, now);
            result.map(|()| None).inspect(|_| counters.cookies_taken += 1)
        } else {
            return;
        };
        self.done(result);
    }

    /// Tells the owner what a message has yielded, or counts why it was refused.
    fn done(&mut self, result: Result<Option<(WorkerId, ToOwner)>, HandshakeError>) {
        match result {
            Ok(Some((owner, message))) => self.tell(owner, message),
            Ok(None) => {}
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
                ToHandshake::AddTemporary(peer, owner, key, reply) => {
                    let added = handshaker.add_peer(peer, owner, key, None).is_ok();
                    if added {
                        handshaker.invite(peer);
                    }
                    let _ = reply.send(added);
                }
                ToHandshake::SetPsk(peer, psk, done) => {
                    handshaker.set_psk(peer, psk);
                    let _ = done.send(());
                }
                ToHandshake::RemovePeer(peer, done) => {
                    handshaker.remove_peer(peer);
                    self.live.retain(|_, live| *live != peer);
                    let _ = done.send(());
                }
                ToHandshake::ReplaceSockets(sockets) => self.parts.sockets = sockets,
                ToHandshake::Show(board) => self.parts.board = board,
                ToHandshake::Report(reply) => {
                    let _ = reply.send(self.counters.clone());
                }
                ToHandshake::Turns(answer) => {
                    let _ = answer.send(());
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
