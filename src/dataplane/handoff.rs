//! How threads of the data plane reach each other: bounded channels and a bell that is rung only for a sleeper.
//!
//! Three channels lead to a worker. `control` and `keys` are never dropped: their one producer waits for room
//! before it begins what would need it. `handover` carries packets that landed on the wrong worker; it has a
//! budget, and what does not fit is dropped and counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::mpsc;

use crate::metrics::WorkerCounters;
use crate::metrics::board::Board;
use crate::noise::handshaker::NotInvited;
use crate::noise::peer_session::PeerSession;
use crate::noise::{ToHandshaker, ToOwner};
use crate::sys::eventfd::EventFd;
use crate::types::{Endpoint, PeerId, Prefix, PublicKey, Suite, WorkerId};
use crate::wire::frame::enrolment::Enroll;
use crate::wire::frame::lease::AddrRequest;
use crate::wire::wireguard::INITIATION_LEN;

/// Key messages that may wait for a worker; the handshake thread begins no work while a queue is full.
pub const KEY_QUEUE: usize = 256;
/// Control messages that may wait for a worker; the control thread waits while it is full.
pub const CONTROL_QUEUE: usize = 256;
/// Packets handed over that may wait for a worker: its budget.
pub const HANDOVER_QUEUE: usize = 256;
/// Requests of all workers that may wait for the handshake thread; what does not fit stays with the worker.
pub const REQUEST_QUEUE: usize = 4096;

/// What may wait for the control thread, from all workers: a client's request that does not fit is dropped and counted,
/// and asked again; news of sessions stays with the worker.
pub const ASKED_QUEUE: usize = 1024;

/// Wakes a thread that sleeps in its ring or in poll(2), and costs a load if it does not sleep.
#[derive(Clone, Debug)]
pub struct Bell {
    eventfd: EventFd,
    flags: Arc<Flags>,
}

#[derive(Debug, Default)]
struct Flags {
    /// The owner sleeps or is about to.
    sleeping: AtomicBool,
    /// Something was queued since the owner last looked: it need not look at every channel in every turn.
    rung: AtomicBool,
}

impl Bell {
    /// A bell that rings `eventfd`.
    #[must_use]
    pub fn new(eventfd: EventFd) -> Self {
        Self { eventfd, flags: Arc::default() }
    }

    /// The eventfd that the sleeper watches.
    #[must_use]
    pub fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// Called after a message was queued.
    #[inline]
    pub fn ring(&self) {
        self.flags.rung.store(true, Ordering::Release);
        // Pairs with the fence in `about_to_sleep`: either we see that it sleeps, or the sleeper sees `rung`.
        fence(Ordering::SeqCst);
        let sleeping = &self.flags.sleeping;
        if sleeping.load(Ordering::Relaxed) && sleeping.swap(false, Ordering::Relaxed) {
            self.eventfd.notify();
        }
    }

    /// True if somebody rang since the last [`Self::answer`].
    #[inline]
    #[must_use]
    pub fn is_rung(&self) -> bool {
        self.flags.rung.load(Ordering::Relaxed)
    }

    /// Called by the owner before it looks at the channels: true if somebody rang. Whoever looks and leaves something
    /// behind calls [`Self::remind`].
    #[inline]
    #[must_use]
    pub fn answer(&self) -> bool {
        // Acquire: what was queued before the ringing is seen.
        self.is_rung() && self.flags.rung.swap(false, Ordering::Acquire)
    }

    /// The owner has left something in a channel: as if somebody rang, without waking anybody.
    #[inline]
    pub fn remind(&self) {
        self.flags.rung.store(true, Ordering::Relaxed);
    }

    /// Called by the owner before its last look at [`Self::is_rung`] or the channels.
    #[inline]
    pub fn about_to_sleep(&self) {
        self.flags.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by the owner when it runs again.
    #[inline]
    pub fn awake(&self) {
        self.flags.sleeping.store(false, Ordering::Relaxed);
    }
}

/// A packet that landed on a worker which does not own it.
#[derive(Debug)]
pub enum Handover {
    /// A transport message, whole.
    Datagram {
        /// The outer payload.
        bytes: Box<[u8]>,
        /// Sender and sticky source.
        endpoint: Endpoint,
        /// Outer TOS byte.
        tos: u8,
    },
    /// What was read from a TUN queue: virtio-net header and packet.
    Tun(Box<[u8]>),
}

/// From the control thread to a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// This worker owns a new peer.
    AddPeer(PeerId),
    /// The same, of an invite's use: it may ask to become a peer, and nothing else.
    AddTemporary(PeerId),
    /// Forget the peer and its prefixes; acknowledged.
    RemovePeer(PeerId, Sender<()>),
    /// Our own key changed: every keypair ends now.
    ClearAllKeys,
    /// A key of the peer changed: its keypairs end now.
    ClearKeys(PeerId),
    /// Set by the operator; `wg set … endpoint`.
    SetEndpoint(PeerId, SocketAddr),
    /// The way to the peer may be another one: a keepalive and a handshake now. The initiation goes to another address
    /// as well, if there is one.
    Renew(PeerId, Option<SocketAddr>),
    /// Persistent keepalive interval in seconds.
    SetKeepalive(PeerId, Option<u16>),
    /// Prefixes and their owners, for every worker's table.
    AddPrefixes(Arc<[(Prefix, PeerId, WorkerId)]>),
    /// Prefixes that nobody owns any more; acknowledged.
    RemovePrefixes(Arc<[Prefix]>, Sender<()>),
    /// Routes, addresses, rules or the fwmark changed: sticky sources are stale.
    ClearSources,
    /// The device's MTU changed, bytes.
    SetMtu(u32),
    /// Where to show numbers from now on, if anywhere.
    Show(Option<Arc<Board>>),
    /// Sockets of a new reuseport group (another listen port).
    ReplaceSockets(super::Sockets),
    /// A control frame for the peer, sealed with this suite if its session may.
    Frame(PeerId, Suite, Box<[u8]>),
    /// The last control frame, for every peer that has sent one.
    Farewell(Arc<[u8]>),
    /// The last control frame for this peer, if it has sent one.
    Dismiss(PeerId, Box<[u8]>),
    /// Send back counters and per-peer statistics.
    Report(Sender<WorkerReport>),
    /// Send back statistics of one peer of this worker's; nothing comes back if it is none.
    ReportPeer(PeerId, Sender<PeerReport>),
    /// Answer, if the loop still turns.
    Turns(Sender<()>),
    /// Leave the loop.
    Stop,
}

/// A worker's answer to [`ToWorker::Report`].
#[derive(Debug)]
pub struct WorkerReport {
    /// Which worker.
    pub worker: WorkerId,
    /// Its counters.
    pub counters: WorkerCounters,
    /// Its peers.
    pub peers: Vec<PeerReport>,
}

/// Statistics of one peer.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// The peer.
    pub peer: PeerId,
    /// Its outer address, if known.
    pub endpoint: Option<SocketAddr>,
    /// When its last handshake completed.
    pub last_handshake: Option<crate::types::Time>,
    /// Received bytes, outer, authenticated.
    pub rx_bytes: u64,
    /// Sent bytes, outer.
    pub tx_bytes: u64,
    /// What data to it is sealed with; `None` without a session.
    pub suite: Option<Suite>,
    /// It owes an answer: data was sent since anything came from it, or a handshake is under way.
    pub awaits_answer: bool,
}

impl PeerReport {
    /// What a session knows of its peer.
    #[must_use]
    pub fn new(peer: PeerId, session: &PeerSession) -> Self {
        let stats = session.stats();
        Self {
            peer,
            endpoint: session.endpoint().map(|endpoint| endpoint.remote),
            last_handshake: stats.last_handshake,
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            suite: session.suite(),
            awaits_answer: session.awaits_answer(),
        }
    }
}

/// From a worker to the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// What a client has asked for in a control frame.
    Asked(Asked),
    /// What has become of a peer's session.
    Session(PeerId, SessionChange),
    /// What a gateway has said to us, its client: a HELLO, an ADDR_REPLY or a PROBLEM that was understood, as it came.
    Said(PeerId, Box<[u8]>),
}

/// What becomes of a session, by its own state ([`PeerSession::is_live`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// There was none, and there is one now. Where the peer is.
    Connected(SocketAddr),
    /// There is none any more.
    Disconnected,
    /// The peer has proven to be at another address.
    Moved(SocketAddr),
}

/// What a client has asked for in a control frame.
#[derive(Debug)]
pub struct Asked {
    /// Who: the session's peer, not what the frame says.
    pub peer: PeerId,
    /// What the frame was sealed with.
    pub suite: Suite,
    /// For the answer.
    pub stream_id: u32,
    /// What.
    pub what: Wish,
}

/// What a client may ask the control thread for.
#[derive(Debug)]
pub enum Wish {
    /// ADDR_REQUEST.
    Addresses(AddrRequest),
    /// DISCONNECT: it goes.
    Disconnect,
    /// ENROLL: this key is to be a peer's; what the handshake thread says of proof and key.
    Enrol(PublicKey, Result<(), NotInvited>),
}

/// The way from workers and handshake thread to the control thread, whose runtime it wakes.
#[derive(Clone, Debug)]
pub struct AskedLink {
    to: mpsc::Sender<ToControl>,
    /// This device is a client's: what gateways say goes to control as well.
    hears: bool,
}

impl AskedLink {
    /// A link and its receiving end.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ToControl>) {
        let (asked, receiver) = mpsc::channel(ASKED_QUEUE);
        (Self { to: asked, hears: false }, receiver)
    }

    /// For a client's device: what gateways say is handed over as well.
    #[must_use]
    pub fn hearing(self, hears: bool) -> Self {
        Self { hears, ..self }
    }

    /// Whether anybody here listens to what gateways say.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.hears
    }

    /// Hands over what a gateway has said; never waits. False if there is no room.
    #[must_use]
    pub fn said(&self, peer: PeerId, frame: &[u8]) -> bool {
        self.to.try_send(ToControl::Said(peer, frame.into())).is_ok()
    }

    /// Hands a request over; never waits. False if there is no room.
    #[must_use]
    pub fn ask(&self, asked: Asked) -> bool {
        self.to.try_send(ToControl::Asked(asked)).is_ok()
    }

    /// Tells what became of a session; never waits. False if the queue is half full: the rest is for requests, which
    /// are dropped when it is full, while this can be told later.
    #[must_use]
    pub fn tell(&self, peer: PeerId, change: SessionChange) -> bool {
        self.to.capacity() > ASKED_QUEUE / 2 && self.to.try_send(ToControl::Session(peer, change)).is_ok()
    }
}

/// An ENROLL, on its way to where its proof is verified.
#[derive(Debug)]
pub struct Claim {
    /// The temporary peer.
    pub peer: PeerId,
    /// Our receiver index of the session that it came in.
    pub index: u32,
    /// For the answer.
    pub stream_id: u32,
    /// Key and proof.
    pub enroll: Enroll,
}

/// From workers to the handshake thread.
#[derive(Debug)]
pub enum Request {
    /// Somebody wants to become a peer.
    Enroll(Box<Claim>),
    /// From a peer's session.
    Protocol(ToHandshaker),
    /// A session was confirmed: initiations from this address are worth more than a stranger's.
    Live(PeerId, SocketAddr),
    /// A handshake message that arrived on a worker's socket (a GRO run of mixed types).
    Message {
        /// The outer payload; never longer than an initiation.
        bytes: arrayvec::ArrayVec<u8, INITIATION_LEN>,
        /// Sender and sticky source.
        endpoint: Endpoint,
    },
}

/// The sending halves that lead to one worker.
#[derive(Clone, Debug)]
pub struct WorkerLink {
    control: Sender<ToWorker>,
    keys: Sender<ToOwner>,
    handover: Sender<Handover>,
    bell: Bell,
}

impl WorkerLink {
    /// Queues a control message; waits while the queue is full. False if the worker is gone.
    pub fn control(&self, message: ToWorker) -> bool {
        let sent = self.control.send(message).is_ok();
        self.bell.ring();
        sent
    }

    /// Queues a control message if there is room: for what may be lost.
    #[must_use]
    pub fn try_control(&self, message: ToWorker) -> bool {
        let sent = self.control.try_send(message).is_ok();
        self.bell.ring();
        sent
    }

    /// True if so many key messages would find room. Reliable for the handshake thread, the only producer.
    #[must_use]
    pub fn has_key_room(&self, count: usize) -> bool {
        self.keys.capacity().is_none_or(|capacity| capacity.saturating_sub(self.keys.len()) >= count)
    }

    /// Queues a key message. The caller has asked [`Self::has_key_room`] before it began the work.
    pub fn keys(&self, message: ToOwner) {
        // A full queue cannot be (see above); a closed one means that the process ends.
        let _ = self.keys.try_send(message);
        self.bell.ring();
    }

    /// The names and lengths of its queues.
    #[must_use]
    pub fn queues(&self) -> [(&'static str, usize); 3] {
        [("control", self.control.len()), ("keys", self.keys.len()), ("handover", self.handover.len())]
    }

    /// Hands a packet over. False if the budget is used up.
    #[must_use]
    pub fn handover(&self, packet: Handover) -> bool {
        let sent = self.handover.try_send(packet).is_ok();
        self.bell.ring();
        sent
    }
}

/// The receiving halves; owned by the worker.
#[derive(Debug)]
pub struct WorkerInbox {
    /// Control messages.
    pub control: Receiver<ToWorker>,
    /// Key messages.
    pub keys: Receiver<ToOwner>,
    /// Packets handed over.
    pub handover: Receiver<Handover>,
    /// Rung by the senders.
    pub bell: Bell,
}

impl WorkerInbox {
    /// True if nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.has_messages() && self.handover.is_empty()
    }

    /// True if control or the handshake thread has said something.
    #[must_use]
    pub fn has_messages(&self) -> bool {
        !self.control.is_empty() || !self.keys.is_empty()
    }
}

/// The channels of one worker.
#[must_use]
pub fn worker_channels(bell: Bell) -> (WorkerLink, WorkerInbox) {
    let (control_tx, control) = bounded(CONTROL_QUEUE);
    let (keys_tx, keys) = bounded(KEY_QUEUE);
    let (handover_tx, handover) = bounded(HANDOVER_QUEUE);
    (
        WorkerLink { control: control_tx, keys: keys_tx, handover: handover_tx, bell: bell.clone() },
        WorkerInbox { control, keys, handover, bell },
    )
}

/// The way from workers to the handshake thread.
#[derive(Clone, Debug)]
pub struct RequestLink {
    requests: Sender<Request>,
    bell: Bell,
}

impl RequestLink {
    /// A link and its receiving end.
    #[must_use]
    pub fn new(bell: Bell) -> (Self, Receiver<Request>) {
        let (requests, receiver) = bounded(REQUEST_QUEUE);
        (Self { requests, bell }, receiver)
    }

    /// Queues a request, or gives it back if the queue is full. Dropped in silence while the process ends.
    ///
    /// # Errors
    /// The request, when the queue is full.
    #[allow(clippy::result_large_err, reason = "the request itself comes back, to be tried again next turn")]
    pub fn send(&self, request: Request) -> Result<(), Request> {
        match self.requests.try_send(request) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(request)) => Err(request),
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::poll;

    /// How often the bell was rung since the last call: an eventfd adds up what is written.
    fn rings(bell: &Bell) -> u64 {
        let mut eventfd = std::fs::File::from(bell.eventfd().as_fd().try_clone_to_owned().unwrap());
        let mut count = [0; 8];
        eventfd.read_exact(&mut count).map_or(0, |()| u64::from_ne_bytes(count))
    }

    #[test]
    fn only_a_sleeper_is_rung_and_only_once() {
        let bell = Bell::new(EventFd::new().unwrap());
        bell.ring();
        assert_eq!(rings(&bell), 0, "it is awake");
        bell.about_to_sleep();
        bell.ring();
        bell.clone().ring();
        assert_eq!(rings(&bell), 1);
        bell.about_to_sleep();
        bell.awake();
        bell.ring();
        assert_eq!(rings(&bell), 0, "it ran again by itself");
    }

    #[test]
    fn no_ring_is_lost() {
        const ROUNDS: u32 = 100_000;
        // Fewer rounds on a busy machine: each may cost two changes of context.
        const AT_MOST: Duration = Duration::from_secs(10);
        let bell = Bell::new(EventFd::new().unwrap());
        let (sender, receiver) = bounded(1);
        let ringer = bell.clone();
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            for round in 0..=ROUNDS {
                let last = round == ROUNDS || begin.elapsed() > AT_MOST;
                // There is room once the message before was taken: each may meet a sleeper.
                sender.send((round, last)).unwrap();
                ringer.ring();
                if last {
                    return;
                }
                (0..round % 64).for_each(|_| std::hint::spin_loop());
            }
        });
        let mut expected = 0;
        let mut slept = 0;
        let mut done = false;
        while !done {
            bell.about_to_sleep();
            if receiver.is_empty() {
                slept += 1;
                poll::readable(&[bell.eventfd().as_fd()], Duration::from_secs(20)).unwrap();
                assert!(bell.eventfd().drain(), "nobody rang for message {expected}");
            }
            bell.awake();
            while let Ok((round, last)) = receiver.try_recv() {
                assert_eq!(round, expected);
                expected += 1;
                done = last;
            }
        }
        thread.join().unwrap();
        assert!(slept > 100, "of {expected} messages only {slept} met a sleeper");
    }
}
