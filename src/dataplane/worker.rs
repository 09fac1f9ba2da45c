//! The worker: one thread, one TUN queue, one socket per family, one ring, and the peers it owns.
//!
//! A turn of the loop: wait, drain, inbound, outbound, messages, timers, submit with the next wait. Nothing in it
//! locks, allocates per packet, logs per packet or touches a public key.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use super::Sockets;
use super::frames::{self, Answer};
use super::handoff::{
    AskedLink, Handover, KEY_QUEUE, PeerReport, Request, RequestLink, ToWorker, WorkerInbox, WorkerLink,
    WorkerReport,
};
use super::inbound::Inbound;
use super::io::{Event, Family, Io, Target, TunRead};
use super::offload::icmp::{self, Answers, Verdict};
use super::offload::split::{self, SplitError, SuperPacket};
use super::offload::switches::{Reason, States, Switch, Switches};
use super::outbound::{Outbound, Progress};
use super::peers::Peers;
use crate::metrics::board::Board;
use crate::metrics::drops::Drop;
use crate::metrics::{WorkerCounters, WorkerGauges};
use crate::noise::agreement::Policy;
use crate::noise::index::IndexKey;
use crate::noise::peer_session::PeerSession;
use crate::noise::timers::Limits;
use crate::noise::{ToHandshaker, ToOwner};
use crate::sys::clock;
use crate::types::{Endpoint, PeerId, Suite, Time, WorkerId};
use crate::wire::frame::Bytes;

mod due;

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod pressure;
#[cfg(test)]
mod sizes;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Bytes of packets that may wait for handshakes on one worker, over all its peers.
pub const STAGED_BYTES: usize = 16 << 20;
/// Key and control messages handled per turn, so that a flood of them does not starve packets.
const MESSAGES_PER_TURN: usize = 64;
/// Sessions that may wait to be settled; one more settles them.
const TOUCHED: usize = 256;

/// What both ways and the messages share.
pub struct Core {
    /// Who we are.
    pub id: WorkerId,
    /// Read once per turn.
    pub now: Time,
    /// Plain numbers.
    pub counters: WorkerCounters,
    /// Sessions and prefixes.
    pub peers: Peers,
    /// The device's MTU, bytes; 0 if not known.
    pub mtu: u32,
    /// What is switched on, read once per turn.
    pub on: States,
    switches: Switches,
    vnet_header: bool,
    workers: Vec<WorkerLink>,
    requests: RequestLink,
    /// To the control thread.
    pub asked: AskedLink,
    /// Requests that found the queue full; bounded, since a peer has at most one Begin and a few Releases under way.
    backlog: VecDeque<Request>,
    index_key: IndexKey,
    limits: Arc<Limits>,
    policy: Policy,
    /// Control frames that answer those of this turn.
    answers: frames::Answers,
    /// Peers whose sessions control knows something outdated of; each at most once while it is there.
    untold: VecDeque<PeerId>,
    staged_bytes: usize,
    /// Peers with a keypair.
    sessions: u64,
    /// Slots whose session has staged packets or a keepalive to send; each at most once.
    due: VecDeque<u32>,
    /// Slots whose session was touched in this turn and is settled once its packets are out; may repeat.
    touched: Vec<u32>,
    /// The TUN device is gone (EBADFD).
    pub device_gone: bool,
    board: Option<Arc<Board>>,
}

/// What a worker is made of.
pub struct Parts {
    /// Who it is.
    pub id: WorkerId,
    /// Links to all workers, itself included.
    pub workers: Vec<WorkerLink>,
    /// To the handshake thread.
    pub requests: RequestLink,
    /// To the control thread.
    pub asked: AskedLink,
    /// Names the owner of a receiver index.
    pub index_key: IndexKey,
    /// Protocol constants; a release build has the paper's.
    pub limits: Limits,
    /// Who says HELLO, and whether AES-256-GCM is used.
    pub policy: Policy,
    /// The device's MTU, bytes.
    pub mtu: u32,
    /// Each packet of the TUN queue has a virtio-net header before it.
    pub vnet_header: bool,
    /// Where its numbers are shown; `None` if nobody looks.
    pub board: Option<Arc<Board>>,
    /// Shared by all workers of the device.
    pub switches: Switches,
}

impl Core {
    /// A core without peers.
    #[must_use]
    pub fn new(parts: Parts, peers: Peers) -> Self {
        Self {
            id: parts.id,
            now: clock::boottime(),
            counters: WorkerCounters::default(),
            peers,
            mtu: parts.mtu,
            on: parts.switches.now(),
            switches: parts.switches,
            vnet_header: parts.vnet_header,
            workers: parts.workers,
            requests: parts.requests,
            asked: parts.asked,
            backlog: VecDeque::new(),
            index_key: parts.index_key,
            limits: Arc::new(parts.limits),
            policy: parts.policy,
            answers: frames::Answers::new(),
            untold: VecDeque::new(),
            staged_bytes: 0,
            sessions: 0,
            board: parts.board,
            touched: Vec::with_capacity(TOUCHED),
            due: VecDeque::new(),
            device_gone: false,
        }
    }

    /// A read from the TUN queue, checked.
    fn parse<'a>(&self, read: &'a [u8]) -> Result<SuperPacket<'a>, SplitError> {
        if self.vnet_header { split::parse(read) } else { split::parse_bare(read) }
    }

    /// The device refuses an offload: no worker uses it any more.
    pub fn switch_off(&mut self, switch: Switch, reason: Reason) {
        self.switches.fail(switch, reason);
        self.on = self.switches.now();
    }

    /// Who owns a receiver index.
    #[must_use]
    pub fn owner_of_index(&self, index: u32) -> WorkerId {
        // At most 65,535 workers by the type of WorkerId.
        self.index_key.owner(index, self.workers.len() as u16)
    }

    /// Keeps the answer to a control frame until the end of the turn.
    pub fn answer(&mut self, slot: u32, suite: Suite, frame: Bytes) {
        if self.answers.try_push(Answer { slot, suite, frame }).is_err() {
            self.counters.drops.count(Drop::FrameLimit);
        }
    }

    /// Gives a packet to the worker that owns it.
    pub fn hand_over(&mut self, owner: WorkerId, packet: Handover) {
        match self.workers.get(owner.index()) {
            Some(link) if link.handover(packet) => self.counters.handed_over += 1,
            _ => self.counters.drops.count(Drop::HandoverFull),
        }
    }

    /// Sends a request to the handshake thread, now or when its queue has room again.
    pub fn request(&mut self, request: Request) {
        let droppable = matches!(request, Request::Message { .. } | Request::Live(..) | Request::Enroll(_));
        if !self.backlog.is_empty() && droppable {
            self.counters.drops.count(Drop::HandshakeQueueFull);
            return;
        }
        self.backlog.push_back(request);
        self.send_backlog();
    }

    fn send_backlog(&mut self) {
        while let Some(request) = self.backlog.pop_front() {
            if let Err(request) = self.requests.send(request) {
                self.backlog.push_front(request);
                return;
            }
        }
    }

    /// Lets the rest of the worker know what a session wants after it was touched, and arms its deadline.
    pub fn settle(&mut self, slot: u32) {
        let Some(peer) = self.peers.by_slot(slot) else { return };
        let id = peer.id;
        let actions = peer.session.take_actions();
        let remote = peer.session.endpoint().map(|endpoint| endpoint.remote);
        let staged = peer.session.staged_bytes();
        self.staged_bytes = self.staged_bytes + staged - std::mem::replace(&mut peer.staged_bytes, staged);
        peer.lost.add(actions.staged_dropped);
        if peer.told.differs(peer.session.is_live(self.now), remote, self.now) {
            self.untold.push_back(id);
        }
        let established = peer.session.is_established();
        self.sessions += u64::from(established);
        self.sessions -= u64::from(std::mem::replace(&mut peer.established, established));
        for index in &actions.released {
            self.peers.remove_index(*index);
            self.request(Request::Protocol(ToHandshaker::Release { index: *index }));
        }
        if actions.begin {
            self.request(Request::Protocol(ToHandshaker::Begin { peer: id }));
        }
        if actions.connected {
            self.counters.connected += 1;
            if let Some(remote) = remote {
                self.request(Request::Live(id, remote));
            }
        }
        self.counters.drops.add(Drop::StagedExpired, u64::from(actions.staged_dropped));
        self.counters.aes_agreed += u64::from(actions.suite.agreed);
        self.counters.aes_refused += u64::from(actions.suite.refused);
        if actions.flush_staged || actions.keepalive || actions.frames {
            self.ask(slot, actions.keepalive);
        }
        self.peers.arm(slot);
    }

    /// As [`Self::settle`], in this turn, but after the packets under way: an idle round trip should not wait for it.
    pub fn touch(&mut self, slot: u32) {
        if self.touched.last() == Some(&slot) {
            return;
        }
        if self.touched.len() == TOUCHED {
            self.settle_touched();
        }
        self.touched.push(slot);
    }

    fn add_peer(&mut self, id: PeerId, session: PeerSession) {
        if let Err(error) = self.peers.add(id, session) {
            tracing::error!(%error, "no memory for a peer's session");
        }
    }

    fn settle_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            self.settle(slot);
        }
        self.touched = touched;
    }

    /// Has a session served: its staged packets, or a keepalive if it wants one and there are none.
    fn ask(&mut self, slot: u32, keepalive: bool) {
        let Some(peer) = self.peers.by_slot(slot) else { return };
        peer.keepalive |= keepalive;
        if !std::mem::replace(&mut peer.due, true) {
            self.due.push_back(slot);
        }
    }

    /// Keeps a packet until there is a keypair.
    fn stage(&mut self, slot: u32, packet: &[u8]) {
        let full = self.staged_bytes + packet.len() > STAGED_BYTES;
        if let Some(peer) = self.peers.by_slot(slot)
            && (full || peer.session.stage(packet.into(), self.now).is_some())
        {
            peer.lost.add(1);
            self.counters.drops.count(Drop::StagedOverflow);
        }
        self.settle(slot);
    }
}

/// A packet on the outbound way, with its virtio-net header.
enum Packet {
    /// In the slot that it was read into.
    Read(TunRead),
    /// Handed over by another worker, or staged before.
    Copy(Box<[u8]>),
}

impl Packet {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(read) => &read.slot[..read.len],
            Self::Copy(bytes) => bytes,
        }
    }
}

/// The worker; lives on its thread.
pub struct Worker<I> {
    io: I,
    inbox: WorkerInbox,
    core: Core,
    inbound: Inbound,
    outbound: Outbound,
    answers: Answers,
    /// Packets that found no send buffer, in order, each from the segment on that is still to be sent; never more than
    /// the ring has TUN slots, and one begun before.
    stalled: VecDeque<(Packet, usize)>,
    events: Vec<Event>,
    expired: Vec<u32>,
    stop: bool,
}

impl<I: Io> Worker<I> {
    /// Joins the parts.
    pub fn new(io: I, inbox: WorkerInbox, core: Core, inbound: Inbound, outbound: Outbound) -> Self {
        Self {
            io,
            inbox,
            core,
            inbound,
            outbound,
            answers: Answers::default(),
            stalled: VecDeque::new(),
            events: Vec::with_capacity(256),
            expired: Vec::new(),
            stop: false,
        }
    }

    /// Runs until told to stop or until the device is gone; says which by [`Core::device_gone`].
    ///
    /// # Errors
    /// What the ring cannot recover from.
    pub fn run(&mut self) -> io::Result<bool> {
        while !self.stop && !self.core.device_gone {
            self.turn()?;
        }
        Ok(self.core.device_gone)
    }

    /// One turn of the loop.
    fn turn(&mut self) -> io::Result<()> {
        let timeout = self.time_to_wait();
        let mut events = std::mem::take(&mut self.events);
        let waited = self.io.wait(timeout, &mut events);
        self.inbox.bell.awake();
        self.advance(clock::boottime());
        self.inbound.merge(self.core.on.is_on(Switch::TunWrite));
        for event in events.drain(..) {
            self.event(event);
        }
        self.events = events;
        self.outbound.flush(&mut self.core);
        self.inbound.flush(&mut self.core);
        self.core.settle_touched();
        self.messages();
        self.core.settle_touched();
        self.timers();
        self.serve_answers();
        self.serve_due();
        self.unstall();
        self.outbound.flush(&mut self.core);
        self.core.settle_touched();
        self.arm_waiting();
        self.core.send_backlog();
        self.core.tell_news();
        self.publish();
        waited
    }

    /// Shows the exporter what was counted, if there is one: stores to memory that nobody else writes.
    fn publish(&mut self) {
        if self.core.board.is_none() {
            return;
        }
        self.count_io();
        let core = &self.core;
        let Some(board) = &core.board else { return };
        let gauges = WorkerGauges {
            peers: core.peers.count() as u64,
            sessions: core.sessions,
            staged_bytes: core.staged_bytes as u64,
            send_buffers: self.outbound.buffers_in_use() as u64,
            stalled: self.stalled.len() as u64,
            backlog: core.backlog.len() as u64,
        };
        core.counters.publish(&gauges, board);
    }

    /// What the ring counted becomes part of the worker's counters.
    fn count_io(&mut self) {
        let io = self.io.counters();
        let counters = &mut self.core.counters;
        counters.enters = io.enters;
        counters.submissions = io.submissions;
        counters.polls = io.polls;
        counters.sleeps = io.sleeps;
        counters.busy_polls = io.busy_polls;
        counters.busy_poll_hits = io.busy_poll_hits;
        counters.lingers = io.lingers;
        counters.completions = io.completions;
        counters.buffers_exhausted = io.buffers_exhausted;
    }

    /// The clock was read. After a jump past Reject-After-Time (the host was suspended) expired keys are wiped at once,
    /// not when their timers are next looked at.
    fn advance(&mut self, now: Time) {
        let jumped = now.since(self.core.now) >= self.core.limits.reject_after_time;
        self.core.now = self.core.now.max(now);
        self.core.counters.turns += 1;
        self.core.on = self.core.switches.now();
        if jumped {
            self.each_session(PeerSession::erase_expired);
        }
    }

    /// How long the loop may sleep: not at all while something is queued, else until the next deadline.
    fn time_to_wait(&mut self) -> Option<Duration> {
        self.inbox.bell.about_to_sleep();
        let rung = self.inbox.bell.is_rung();
        // Without a send buffer there is nothing to do for packets until a socket is writable, which wakes us.
        let packets = (rung && !self.inbox.handover.is_empty()) || !self.core.due.is_empty();
        let can_send = self.stalled.is_empty() && self.outbound.has_room();
        if (rung && self.inbox.has_messages()) || (packets && can_send) {
            return Some(Duration::ZERO);
        }
        if !self.core.backlog.is_empty() || !self.core.untold.is_empty() {
            return Some(Duration::from_millis(1));
        }
        self.core.peers.next_deadline().map(|deadline| deadline.since(self.core.now))
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Tun(read) => self.tun(read),
            Event::Datagrams(received) => {
                // What follows may renew the keypair that the open run was reserved in.
                self.outbound.flush(&mut self.core);
                self.inbound.datagrams(&mut self.core, received);
            }
            Event::Wake => {}
            Event::Writable(Target::Udp(family)) => self.outbound.writable(&mut self.core, family),
            Event::Writable(Target::Tun) => {}
            Event::Failed(Target::Tun, libc::EBADFD) => self.core.device_gone = true,
            Event::Failed(..) => {}
        }
    }

    fn tun(&mut self, read: TunRead) {
        self.core.counters.tun_reads += 1;
        if self.stalled.is_empty() && self.outbound.has_room() {
            self.packet(Packet::Read(read), 0);
        } else {
            self.pause_tun();
            self.stalled.push_back((Packet::Read(read), 0));
        }
    }

    /// No send buffer: nothing more is read from the TUN queue until what is stalled has gone.
    fn pause_tun(&mut self) {
        if self.stalled.is_empty() {
            self.core.counters.stalls += 1;
            self.io.read_tun(false);
        }
    }

    /// Steps 2 to 4 of the outbound way, from segment `from` on.
    fn packet(&mut self, packet: Packet, from: usize) {
        if let Some(next) = self.split_and_seal(packet.bytes(), from) {
            self.pause_tun();
            self.stalled.push_front((packet, next));
        }
    }

    /// Yields the segment that found no send buffer, if there is one.
    fn split_and_seal(&mut self, read: &[u8], from: usize) -> Option<usize> {
        let core = &mut self.core;
        let packet = match core.parse(read) {
            Ok(packet) => packet,
            Err(_) => {
                core.counters.drops.count(Drop::TunMalformed);
                return None;
            }
        };
        let Some((id, owner)) = core.peers.allowed_ips.lookup(packet.dst()) else {
            core.counters.drops.count(Drop::NoRoute);
            return None;
        };
        if owner != core.id {
            core.hand_over(owner, Handover::Tun(read.into()));
            return None;
        }
        let Some(peer) = core.peers.by_id(id) else {
            core.counters.drops.count(Drop::NoRoute);
            return None;
        };
        if peer.session.endpoint().is_none() {
            core.counters.drops.count(Drop::NoEndpoint);
            return None;
        }
        let waits = peer.session.staged_len() > 0;
        if from == 0
            && icmp::is_too_large(packet.ip(), packet.segment_len(0), core.mtu)
            && !too_large(core, &mut self.inbound, &mut self.answers, &packet)
        {
            return None;
        }
        // Not before those that wait for a keypair; but what has begun goes on.
        if from == 0 && waits {
            core.stage(id.slot, read);
            return None;
        }
        match self.outbound.packet(core, id.slot, &packet, from) {
            Progress::Done => None,
            Progress::Stopped(next) => Some(next),
            Progress::NoKeypair if from == 0 => {
                core.stage(id.slot, read);
                None
            }
            Progress::NoKeypair => {
                core.lose(id, Drop::SendFailed, (packet.segments() - from) as u64);
                core.settle(id.slot);
                None
            }
        }
    }

    /// Every run that waits for a socket needs somebody to wake it.
    fn arm_waiting(&mut self) {
        for family in [Family::V4, Family::V6] {
            if self.outbound.is_waiting(family) {
                self.io.arm_writable(Target::Udp(family));
            }
        }
    }

    /// Takes up the reads that found no send buffer, then the TUN queue itself.
    fn unstall(&mut self) {
        if self.stalled.is_empty() {
            return;
        }
        while self.outbound.has_room() {
            let Some((packet, from)) = self.stalled.pop_front() else { break };
            self.packet(packet, from);
            if self.stalled.is_empty() {
                self.io.read_tun(true);
            }
        }
    }

    /// What the other threads have said; one load if they have said nothing.
    fn messages(&mut self) {
        if !self.inbox.bell.answer() {
            return;
        }
        self.key_messages();
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(message) = self.inbox.control.try_recv() else { break };
            // A message that ends keys is sent only after the handshake thread has acknowledged it: what it installed
            // before is in the queue by now, and must not come to life after the message that ends it.
            self.key_messages();
            // Prefixes come by the thousand: packets get their turn between two such messages.
            let long = matches!(message, ToWorker::AddPrefixes(_) | ToWorker::RemovePrefixes(..));
            self.control_message(message);
            if long {
                break;
            }
        }
        for _ in 0..MESSAGES_PER_TURN {
            if !self.stalled.is_empty() || !self.outbound.has_room() {
                break;
            }
            let Ok(packet) = self.inbox.handover.try_recv() else { break };
            self.core.counters.taken_over += 1;
            match packet {
                Handover::Tun(read) => self.packet(Packet::Copy(read), 0),
                Handover::Datagram { mut bytes, endpoint, tos } => {
                    self.outbound.flush(&mut self.core);
                    self.inbound.handed_over(&mut self.core, &mut bytes, endpoint, tos);
                }
            }
        }
        self.outbound.flush(&mut self.core);
        if !self.inbox.is_empty() {
            self.inbox.bell.remind();
        }
    }

    /// All that is there; bounded by the queue.
    fn key_messages(&mut self) {
        for _ in 0..KEY_QUEUE {
            let Ok(message) = self.inbox.keys.try_recv() else { break };
            self.key_message(message);
        }
    }

    fn key_message(&mut self, message: ToOwner) {
        let core = &mut self.core;
        let now = core.now;
        match message {
            ToOwner::SendInitiation { peer: id, message } => {
                let Some(peer) = core.peers.by_id(id) else { return };
                peer.session.initiation_sent(now);
                let endpoint = peer.session.endpoint();
                let rival = core.peers.take_rival(id).map(Endpoint::new);
                core.counters.drops.add(Drop::NoEndpoint, u64::from(endpoint.is_none()));
                for endpoint in endpoint.into_iter().chain(rival) {
                    self.outbound.handshake(core, Some(id), endpoint, &message);
                }
                core.settle(id.slot);
            }
            ToOwner::BeginFailed { peer: id } => {
                if let Some(peer) = core.peers.by_id(id) {
                    peer.session.begin_failed();
                    core.settle(id.slot);
                }
            }
            ToOwner::Install { peer: id, keypair, endpoint, response } => {
                let index = keypair.local_index;
                let Some(peer) = core.peers.by_id(id) else {
                    return core.request(Request::Protocol(ToHandshaker::Release { index }));
                };
                peer.session.install(&keypair, endpoint, now);
                core.peers.add_index(index, id.slot);
                if let Some(response) = response {
                    self.outbound.handshake(core, Some(id), endpoint, &response);
                }
                core.settle(id.slot);
            }
        }
    }

    fn control_message(&mut self, message: ToWorker) {
        let core = &mut self.core;
        let now = core.now;
        match message {
            ToWorker::AddPeer(id) => {
                let seed = u64::from(id.slot) ^ now.as_nanos();
                core.add_peer(
                    id,
                    PeerSession::new(id, Arc::clone(&core.limits), seed).with_policy(core.policy),
                );
            }
            ToWorker::AddTemporary(id) => {
                let seed = u64::from(id.slot) ^ now.as_nanos();
                core.add_peer(id, PeerSession::temporary(id, &core.limits, seed));
            }
            ToWorker::RemovePeer(id, done) => {
                self.remove_peer(id);
                let _ = done.send(());
            }
            ToWorker::ClearAllKeys => self.each_session(|session, _| session.clear()),
            ToWorker::ClearKeys(id) => self.with_session(id, |session, _| session.clear()),
            ToWorker::SetEndpoint(id, remote) => {
                self.with_session(id, |session, now| session.set_endpoint(Some(remote), now));
            }
            ToWorker::Renew(id, rival) => {
                core.peers.set_rival(id, rival);
                self.with_session(id, PeerSession::renew);
            }
            ToWorker::SetKeepalive(id, interval) => {
                self.with_session(id, |session, now| session.set_keepalive(interval, now));
            }
            ToWorker::AddPrefixes(prefixes) => {
                for (prefix, peer, owner) in prefixes.iter() {
                    core.peers.allowed_ips.insert(*prefix, *peer, *owner);
                }
            }
            ToWorker::RemovePrefixes(prefixes, done) => {
                for prefix in prefixes.iter() {
                    core.peers.allowed_ips.remove(*prefix);
                }
                let _ = done.send(());
            }
            ToWorker::ClearSources => self.each_session(|session, _| session.clear_source()),
            ToWorker::Show(board) => self.core.board = board,
            ToWorker::SetMtu(mtu) => {
                if std::mem::replace(&mut core.mtu, mtu) != mtu {
                    self.answers.forget();
                }
            }
            ToWorker::ReplaceSockets(sockets) => self.replace_sockets(sockets),
            ToWorker::Frame(id, suite, frame) => self.say(id, suite, &frame),
            ToWorker::Farewell(frame) => self.say_to_all(&frame),
            ToWorker::Dismiss(id, frame) => self.say_if_it_speaks(id, &frame),
            ToWorker::Turns(answer) => {
                let _ = answer.send(());
            }
            ToWorker::Report(reply) => {
                let _ = reply.send(self.report());
            }
            ToWorker::ReportPeer(id, reply) => {
                if let Some(peer) = core.peers.by_id(id) {
                    let _ = reply.send(PeerReport::new(id, &peer.session));
                }
            }
            ToWorker::Stop => self.stop = true,
        }
    }

    /// Sockets of another listen port: what the old ones received still arrives.
    fn replace_sockets(&mut self, sockets: Sockets) {
        for (family, socket) in [(Family::V4, &sockets.v4), (Family::V6, &sockets.v6)] {
            if let Err(error) = self.io.replace_udp(family, socket.as_ref().map(|fd| fd.as_fd())) {
                tracing::error!(?family, %error, "the new listen port is not read");
            }
        }
        self.each_session(|session, _| session.clear_source());
        self.outbound.replace_sockets(&mut self.core, sockets);
    }

    fn with_session(&mut self, id: PeerId, act: impl FnOnce(&mut PeerSession, Time)) {
        let now = self.core.now;
        if let Some(peer) = self.core.peers.by_id(id) {
            act(&mut peer.session, now);
            self.core.settle(id.slot);
        }
    }

    fn each_session(&mut self, act: impl Fn(&mut PeerSession, Time)) {
        let now = self.core.now;
        for slot in self.core.peers.all() {
            if let Some(peer) = self.core.peers.by_slot(slot) {
                act(&mut peer.session, now);
            }
            self.core.settle(slot);
        }
    }

    fn remove_peer(&mut self, id: PeerId) {
        self.with_session(id, |session, _| session.close());
        if self.core.peers.by_id(id).is_some_and(|peer| peer.told.has_to_end()) {
            self.core.untold.push_back(id);
        }
        self.core.peers.remove(id);
    }

    fn timers(&mut self) {
        let mut expired = std::mem::take(&mut self.expired);
        self.core.peers.expire(self.core.now, &mut expired);
        for slot in expired.drain(..) {
            let now = self.core.now;
            if let Some(peer) = self.core.peers.by_slot(slot) {
                peer.session.handle_timeout(now);
            }
            self.core.settle(slot);
        }
        self.expired = expired;
    }

    fn report(&mut self) -> WorkerReport {
        self.count_io();
        let core = &self.core;
        WorkerReport {
            worker: core.id,
            counters: core.counters.clone(),
            peers: core.peers.iter().map(|peer| PeerReport::new(peer.id, &peer.session)).collect(),
        }
    }
}

/// A packet is larger than the TUN device's MTU: false if it goes no further.
#[cold]
fn too_large(
    core: &mut Core,
    inbound: &mut Inbound,
    answers: &mut Answers,
    packet: &SuperPacket<'_>,
) -> bool {
    let verdict = answers.judge(packet.bytes(), packet.ip(), core.now);
    if verdict == Verdict::Pass {
        return true;
    }
    core.counters.drops.add(Drop::TooLarge, packet.segments() as u64);
    let mut answer = [0; icmp::MOST];
    if verdict == Verdict::Answer
        && let Some(len) = icmp::too_big(packet.bytes(), packet.ip(), core.mtu, &mut answer)
    {
        core.counters.too_big_sent += 1;
        inbound.answer(core, answer.get(..len).unwrap_or_default());
    }
    false
}
