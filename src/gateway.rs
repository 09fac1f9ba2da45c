//! The composition root: what is opened in which order, which thread gets what, and how it all ends.
//!
//! Order at start: device (all queues), sockets (all of each group), steering, then the threads, each of which
//! makes its own ring (or waits with poll); only when every thread has said that it runs does [`Gateway::start`]
//! return. Order at the end: workers, handshake thread; the descriptors close with the last of them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::{mpsc, watch};

use self::supervisor::Pulse;
use crate::config;
use crate::control::dataplane::{Assignment, DataPlane, NewPeer, PeerStats};
use crate::control::errno::Errno;
use crate::crypto::aead::{self, Implementation};
use crate::crypto::random::SystemRng;
use crate::dataplane::Sockets;
use crate::dataplane::allowed_ips::AllowedIps;
use crate::dataplane::handoff::{
    AskedLink, Bell, PeerReport, RequestLink, ToControl, ToWorker, WorkerInbox, WorkerLink, WorkerReport,
    worker_channels,
};
use crate::dataplane::handshake::{self, HandshakeLink, HandshakeThread, ToHandshake};
use crate::dataplane::inbound::Inbound;
use crate::dataplane::io::busy_poll::BUSY_POLL;
use crate::dataplane::io::{Fds, Io};
use crate::dataplane::offload::coalesce::Config;
use crate::dataplane::offload::switches::{States, Switch};
use crate::dataplane::outbound::Outbound;
use crate::dataplane::peers::Peers;
use crate::dataplane::probe;
use crate::dataplane::steering::{self, Steering};
use crate::dataplane::tun::TunDevice;
use crate::dataplane::udp;
use crate::dataplane::worker::{self, Core, Worker};
use crate::metrics::board::Board;
use crate::metrics::{HandshakeCounters, WorkerCounters};
use crate::net::manners::Applied;
use crate::noise::agreement::Policy;
use crate::noise::handshaker::Handshaker;
use crate::noise::index::IndexKey;
use crate::noise::timers::Limits;
use crate::sys::eventfd::EventFd;
use crate::sys::privileges::{self, Account};
use crate::sys::{clock, thread, tun};
use crate::types::{Mark, Offload, PeerId, Prefix, Secret, Suite, Time, WorkerId};
use crate::wire::frame::{self, Code};

pub mod admin;
pub mod appliance;
pub mod backend;
mod changes;
pub mod client;
pub mod dropin;
mod exporter;
pub mod failure;
mod home;
mod hosting;
mod leasing;
mod numbers;
mod offloads;
pub mod reload;
mod serving;
pub mod supervisor;

use numbers::{histograms, named, nonzero};
use offloads::Offloads;

use backend::{Backend, Chosen};

/// Receive slots per family and TUN slots of a worker; a power of two. Sixteen cost the same per datagram as 256 and
/// stay in the cache (measured).
const SLOTS: u16 = 16;
/// Send buffers of a worker.
const SEND_BUFFERS: u16 = 16;
/// Prefixes of one message to a worker: about a millisecond of its time.
const PREFIXES_PER_MESSAGE: usize = 1024;
/// Packets that a queue of the TUN device holds, if nobody says otherwise (docs/decisions/0023-queue-length.md).
pub const QUEUE_LENGTH: u32 = 500;
/// Longest queue that may be asked for: the kernel makes a ring of pointers of it, per queue.
pub const MAX_QUEUE_LENGTH: u32 = 100_000;
/// How long the control thread waits for another thread's answer before it says that the thread hangs.
const ANSWER: Duration = Duration::from_secs(10);

/// A running data plane, held by the control thread.
pub struct Gateway {
    workers: Vec<WorkerLink>,
    handshake: HandshakeLink,
    /// What workers tell, until somebody takes it over.
    asked: Option<mpsc::Receiver<ToControl>>,
    threads: Vec<JoinHandle<()>>,
    steering: Result<Steering, String>,
    /// What each worker waits with.
    io: Vec<(WorkerId, Chosen)>,
    index_key: IndexKey,
    port: u16,
    /// By thread, the handshake thread's last: for the fwmark.
    sockets: Vec<Sockets>,
    queues: Vec<Arc<OwnedFd>>,
    mark: Mark,
    /// What the threads show while they run, if metrics are on.
    boards: Option<Boards>,
    offloads: Offloads,
    gone: watch::Receiver<bool>,
    /// What the host does for it; the drop-in leaves that to others. The last field: it is taken back after the device
    /// is gone, so that there is no moment in which clients' packets pass without the rules.
    host: Option<Applied>,
}

/// What may be chosen when a gateway starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// UDP port of the outer sockets, 0 for any.
    pub listen_port: u16,
    /// Mark of the outer sockets.
    pub mark: Mark,
    /// The cores that workers are pinned to, in turn. Empty: those that the process may use, if there are several
    /// workers.
    pub cores: Vec<usize>,
    /// Protocol constants.
    pub limits: Limits,
    /// How long a worker polls awake after a quiet spell before it sleeps; at most
    /// [`MAX_BUSY_POLL`](crate::dataplane::io::busy_poll::MAX_BUSY_POLL).
    pub busy_poll: Duration,
    /// What workers wait with.
    pub io: config::Io,
    /// What seals and opens packets; the first gateway of a process decides for all.
    pub aead: config::Aead,
    /// Say HELLO to every peer, not only answer it.
    pub hello: bool,
    /// Somebody takes what gateways say to us ([`Gateway::take_asked`]).
    pub client: bool,
    /// Whether AES-256-GCM is used with peers that open it.
    pub aes: config::Aes,
    /// Which offloads to use; [`Gateway::switch`](DataPlane::switch) changes them later.
    pub offload: Offload,
    /// Lower the segment size of TCP connections to what fits the TUN device.
    pub mss_clamp: bool,
    /// Packets and super-packets that each queue of the TUN device holds for its worker (txqueuelen), if we made it.
    pub queue_length: u32,
    /// The user that workers and handshake thread become, beside losing all capabilities; `None`: they stay who they
    /// are.
    pub account: Option<Account>,
    /// The threads show their numbers ([`crate::metrics::board`]).
    pub metrics: bool,
}

/// What the threads show while they run.
struct Boards {
    workers: Vec<Arc<Board>>,
    handshake: Arc<Board>,
}

impl Boards {
    fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Arc::default()).collect(), handshake: Arc::default() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen_port: 0,
            mark: Mark::default(),
            cores: Vec::new(),
            limits: Limits::default(),
            busy_poll: BUSY_POLL,
            offload: Offload::default(),
            mss_clamp: true,
            queue_length: QUEUE_LENGTH,
            io: config::Io::Auto,
            aead: config::Aead::Auto,
            hello: false,
            client: false,
            aes: config::Aes::Auto,
            account: None,
            metrics: false,
        }
    }
}

/// The outer sockets by thread: workers in order, the handshake thread last.
fn open_sockets(
    port: u16,
    workers: u16,
    mark: Mark,
    key: IndexKey,
) -> Result<(u16, Vec<Sockets>), udp::UdpError> {
    let group = udp::open_group(port, workers, mark, key)?;
    let mut v4 = group.v4.into_iter().map(Arc::new);
    let mut v6 = group.v6.into_iter().map(Arc::new);
    let sockets = (0..=workers).map(|_| Sockets { v4: v4.next(), v6: v6.next() }).collect();
    Ok((group.port, sockets))
}

/// Before any packet, and said: how fast the gateway can be depends on it.
fn choose_aead(choice: config::Aead) {
    match aead::choose(choice == config::Aead::Scalar) {
        Implementation::ScalarAfterFailure => tracing::error!(
            "the AVX-512 kernel and ring do not agree about ChaCha20-Poly1305: packets are sealed one by one. Suspect \
             the processor (another host?), and report this"
        ),
        Implementation::Nothing => tracing::error!(
            "THIS BUILD ENCRYPTS NOTHING: what goes through the tunnel can be read and forged by anybody on its way. \
             It is for measurements only"
        ),
        implementation => tracing::info!(%implementation, "ChaCha20-Poly1305"),
    }
}

/// What is said to peers about suites, and said here.
fn policy(settings: &Settings) -> Policy {
    let aes = settings.aes == config::Aes::Auto && aead::has_vector_aes();
    let reason = match (aes, settings.aes) {
        (true, _) => "with peers that open it",
        (false, config::Aes::Off) => "off (by choice)",
        (false, config::Aes::Auto) => "off (this processor has no AES in vectors)",
    };
    tracing::info!(aes = reason, hello = settings.hello, "AES-256-GCM");
    Policy { hello: settings.hello, aes }
}

impl Gateway {
    /// Starts workers and the handshake thread on an opened device, one worker per queue.
    ///
    /// # Errors
    /// Sockets, ring or thread that cannot be had, with a hint where there is one.
    pub fn start(mut device: TunDevice, settings: Settings) -> anyhow::Result<Self> {
        let count = device.queues.len();
        let workers = u16::try_from(count).context("more workers than 65,535")?;
        let mut rng = SystemRng::new().context("the kernel's random generator failed")?;
        let index_key = IndexKey::random(&mut rng);
        let (port, sockets) = open_sockets(settings.listen_port, workers, settings.mark, index_key)
            .context("opening UDP sockets")?;
        choose_aead(settings.aead);
        let policy = policy(&settings);
        let steering = start_steering(&device, workers);
        let (gone_tx, gone) = watch::channel(false);
        let mtu = device.queues.first().and_then(|queue| tun::link(queue).ok()).map_or(0, |link| link.mtu);
        let segment_limit = probe::segment_limit();
        let offloads = Offloads::new(&device, &sockets, segment_limit, &settings)?;

        let handshake_bell = Bell::new(EventFd::new().context("making an eventfd")?);
        let (requests, request_queue) = RequestLink::new(handshake_bell.clone());
        let (asked_link, asked) = AskedLink::new();
        let asked_link = asked_link.hearing(settings.client);
        let (links, inboxes) = worker_links(count).context("making an eventfd")?;
        let (handshake, handshake_control) = HandshakeLink::new(handshake_bell.clone());
        let handshake_sockets = sockets.last().cloned().unwrap_or_default();
        let queues: Vec<_> = device.queues.drain(..).map(Arc::new).collect();
        let boards = settings.metrics.then(|| Boards::new(count));
        let (started_tx, started) = bounded(count + 1);
        let mut threads = Vec::with_capacity(count + 1);
        let cores = worker_cores(settings.cores, count);
        for (i, (inbox, sockets)) in inboxes.into_iter().zip(&sockets).enumerate() {
            let seed = WorkerSeed {
                // `count` fits 16 bits, see above.
                parts: worker::Parts {
                    id: WorkerId(i as u16),
                    workers: links.clone(),
                    requests: requests.clone(),
                    asked: asked_link.clone(),
                    index_key,
                    limits: settings.limits,
                    policy,
                    mtu,
                    vnet_header: device.vnet_header,
                    board: boards.as_ref().and_then(|boards| boards.workers.get(i).cloned()),
                    switches: offloads.switches().clone(),
                },
                inbox,
                sockets: sockets.clone(),
                tun: Arc::clone(&queues[i]),
                coalesce: Config { tcp: device.offloads.tso, udp: device.offloads.uso },
                segment_limit,
                busy_poll: settings.busy_poll,
                io: settings.io,
                account: settings.account,
                core: cores.get(i).copied(),
            };
            let (started, alarm) = (started_tx.clone(), Alarm(gone_tx.clone()));
            threads.push(
                std::thread::Builder::new()
                    .name(format!("ringway-w{i}"))
                    .spawn(move || seed.run(&started, &alarm))
                    .context("starting a worker")?,
            );
        }
        let parts = handshake::Parts {
            sockets: handshake_sockets,
            handshaker: Handshaker::new(workers, index_key),
            workers: links.clone(),
            requests: request_queue,
            control: handshake_control,
            asked: asked_link,
            bell: handshake_bell,
            rng,
            board: boards.as_ref().map(|boards| Arc::clone(&boards.handshake)),
        };
        threads.push(start_handshake(parts, settings.account, started_tx, Alarm(gone_tx))?);
        let mut gateway = Self {
            workers: links,
            handshake,
            asked: Some(asked),
            threads,
            steering,
            io: Vec::new(),
            index_key,
            port,
            sockets,
            queues,
            mark: settings.mark,
            boards,
            offloads,
            gone,
            host: None,
        };
        if let Err(error) = gateway.await_threads(&started) {
            gateway.stop();
            return Err(error);
        }
        Ok(gateway)
    }

    /// Waits until every thread is ready, and notes what each worker waits with.
    fn await_threads(&mut self, started: &Receiver<Started>) -> anyhow::Result<()> {
        for _ in 0..=self.workers.len() {
            // A thread that dies closes its sender; the others' answers end the loop with an error as well.
            let chosen = started.recv_timeout(ANSWER).context("a thread does not start")??;
            self.io.extend(chosen);
        }
        self.io.sort_by_key(|(worker, _)| *worker);
        if let Some(reason) = self.no_ring() {
            tracing::info!(reason, "poll takes the place of io_uring");
        }
        if let Err(reason) = self.steering.as_ref()
            && self.workers.len() > 1
        {
            tracing::info!(reason, "no steering of packets from the TUN device: workers hand them over");
        }
        Ok(())
    }

    /// Becomes true when the TUN device is gone, or when a thread has ended.
    #[must_use]
    pub fn gone(&self) -> watch::Receiver<bool> {
        self.gone.clone()
    }

    /// The listen port in use.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the device is.
    ///
    /// # Errors
    /// EBADFD if the device is gone.
    pub fn place(&self) -> io::Result<tun::Place> {
        let queue = self.queues.first().ok_or(io::ErrorKind::NotFound)?;
        tun::place(queue)
    }

    /// The device's MTU changed, bytes.
    pub fn set_mtu(&self, mtu: u32) {
        self.tell_all(|| ToWorker::SetMtu(mtu));
    }

    /// Routes, addresses or rules of the host changed: sticky source addresses may be wrong.
    pub fn clear_sources(&self) {
        self.tell_all(|| ToWorker::ClearSources);
    }

    /// Routes of the host changed: clients may leave by other interfaces now.
    pub fn follow_routes(&mut self) {
        if let Some(Err(error)) = self.host.as_mut().map(Applied::follow_routes) {
            tracing::warn!(%error, "an interface that clients may leave by does not forward");
        }
    }

    /// What clients ask for in control frames, and what becomes of sessions: for one who answers.
    pub fn take_asked(&mut self) -> Option<mpsc::Receiver<ToControl>> {
        self.asked.take()
    }

    /// Which switches are on, and why the others are not.
    #[must_use]
    pub fn switches(&self) -> States {
        self.offloads.switches().now()
    }

    /// What each worker waits with, and why not with io_uring if it should.
    pub fn waiting(&self) -> impl Iterator<Item = (WorkerId, &Chosen)> {
        self.io.iter().map(|(worker, chosen)| (*worker, chosen))
    }

    /// Tells every client that speaks in control frames that the gateway stops.
    pub fn farewell(&self) {
        let frame: Arc<[u8]> = frame::problem(0, Code::TunnelDown).as_slice().into();
        self.tell_all(|| ToWorker::Farewell(Arc::clone(&frame)));
    }

    /// Ends all threads and waits for them: ring, device and port are free when this returns.
    pub fn stop(self) {
        self.tell_all(|| ToWorker::Stop);
        self.handshake.send(ToHandshake::Stop);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane ended by a panic");
            }
        }
    }

    fn tell_all(&self, message: impl Fn() -> ToWorker) {
        for link in &self.workers {
            link.control(message());
        }
    }

    fn tell(&self, worker: WorkerId, message: ToWorker) {
        if let Some(link) = self.workers.get(worker.index()) {
            link.control(message);
        }
    }

    /// Sends a message that is acknowledged to all workers and waits for all.
    fn ask_all(&self, message: impl Fn(Sender<()>) -> ToWorker) {
        let (done, answers) = bounded(self.workers.len());
        self.tell_all(|| message(done.clone()));
        drop(done);
        for _ in &self.workers {
            if answers.recv_timeout(ANSWER).is_err() {
                tracing::error!("a worker does not answer");
                return;
            }
        }
    }

    fn reports(&self) -> Vec<WorkerReport> {
        let (reply, answers) = bounded(self.workers.len());
        self.tell_all(|| ToWorker::Report(reply.clone()));
        drop(reply);
        let mut reports: Vec<_> =
            (0..self.workers.len()).map_while(|_| answers.recv_timeout(ANSWER).ok()).collect();
        reports.sort_by_key(|report| report.worker);
        reports
    }

    /// Asks every thread whether it still turns.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let asked = self.workers.len() + 1;
        let (answer, answers) = bounded(asked);
        self.tell_all(|| ToWorker::Turns(answer.clone()));
        self.handshake.send(ToHandshake::Turns(answer));
        Pulse::new(answers, asked)
    }

    /// Why there is no ring, if a worker should have one.
    fn no_ring(&self) -> Option<&str> {
        self.io.iter().find_map(|(_, chosen)| chosen.reason.as_deref())
    }

    fn handshake_counters(&self) -> HandshakeCounters {
        let (reply, answer) = bounded(1);
        self.handshake.send(ToHandshake::Report(reply));
        answer.recv_timeout(ANSWER).unwrap_or_default()
    }
}

/// A worker's words with the wall clock's times.
fn stats(now: Time, wall: Duration) -> impl Fn(PeerReport) -> PeerStats {
    move |peer| PeerStats {
        peer: peer.peer,
        endpoint: peer.endpoint,
        last_handshake: peer.last_handshake.map(|at| wall.saturating_sub(now.since(at))),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        suite: peer.suite,
        awaits_answer: peer.awaits_answer,
    }
}

impl DataPlane for Gateway {
    fn workers(&self) -> u16 {
        // Checked at start.
        self.workers.len() as u16
    }

    fn queue_of(&self, addr: Ipv4Addr) -> WorkerId {
        WorkerId(steering::queue_of(addr.into(), self.workers()))
    }

    fn set_private_key(&mut self, key: Option<&Secret>) {
        let (reply, answer) = bounded(1);
        self.handshake.send(ToHandshake::SetPrivateKey(key.cloned(), reply));
        let _ = answer.recv_timeout(ANSWER);
        self.tell_all(|| ToWorker::ClearAllKeys);
    }

    fn set_listen_port(&mut self, port: u16) -> Result<u16, Errno> {
        if port != 0 && port == self.port {
            return Ok(port);
        }
        let (port, sockets) =
            open_sockets(port, self.workers(), self.mark, self.index_key).map_err(|error| {
                tracing::error!(port, %error, "the listen port stays as it was");
                Errno::new(error.errno())
            })?;
        if let Some(Err(error)) = self.host.as_ref().map(|host| host.listen_on(port)) {
            tracing::error!(port, %error, "the listen port stays as it was");
            return Err(Errno::IO);
        }
        self.offloads.receive_on(&sockets);
        if let Some(sockets) = sockets.last() {
            self.handshake.send(ToHandshake::ReplaceSockets(sockets.clone()));
        }
        for (link, sockets) in self.workers.iter().zip(&sockets) {
            link.control(ToWorker::ReplaceSockets(sockets.clone()));
        }
        (self.port, self.sockets) = (port, sockets);
        Ok(port)
    }

    fn set_fwmark(&mut self, mark: Mark) -> Result<(), Errno> {
        let all: Vec<_> = self.sockets.iter().flat_map(|s| [&s.v4, &s.v6]).flatten().cloned().collect();
        udp::set_mark(&all, mark).map_err(|error| Errno::new(error.errno()))?;
        self.mark = mark;
        self.clear_sources();
        Ok(())
    }

    fn add_peer(&mut self, peer: NewPeer<'_>) {
        let (reply, answer) = bounded(1);
        let NewPeer { id, worker, public_key, preshared_key, temporary } = peer;
        if temporary {
            self.tell(worker, ToWorker::AddTemporary(id));
            self.handshake.send(ToHandshake::AddTemporary(id, worker, public_key, reply));
        } else {
            self.tell(worker, ToWorker::AddPeer(id));
            self.handshake.send(ToHandshake::AddPeer(id, worker, public_key, preshared_key.cloned(), reply));
        }
        let _ = answer.recv_timeout(ANSWER);
    }

    fn remove_peer(&mut self, peer: PeerId) {
        // First where sessions are made, then where they live: a session made in between finds no peer and is
        // released.
        let (done, answer) = bounded(1);
        self.handshake.send(ToHandshake::RemovePeer(peer, done));
        let _ = answer.recv_timeout(ANSWER);
        self.ask_all(|done| ToWorker::RemovePeer(peer, done));
    }

    fn set_preshared_key(&mut self, peer: PeerId, key: Option<&Secret>) {
        let (done, answer) = bounded(1);
        self.handshake.send(ToHandshake::SetPsk(peer, key.cloned(), done));
        let _ = answer.recv_timeout(ANSWER);
        self.tell_all(|| ToWorker::ClearKeys(peer));
    }

    fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr) {
        self.tell_all(|| ToWorker::SetEndpoint(peer, endpoint));
    }

    fn set_keepalive(&mut self, peer: PeerId, seconds: Option<u16>) {
        self.tell_all(|| ToWorker::SetKeepalive(peer, seconds));
    }

    fn remove_prefixes(&mut self, prefixes: &[Prefix]) {
        for chunk in prefixes.chunks(PREFIXES_PER_MESSAGE) {
            let shared: Arc<[Prefix]> = chunk.into();
            self.ask_all(|done| ToWorker::RemovePrefixes(Arc::clone(&shared), done));
        }
        if let Ok(steering) = &mut self.steering {
            for prefix in prefixes {
                if let Err(error) = steering.unset(*prefix) {
                    tracing::warn!(%error, "a prefix stays in the steering map");
                }
            }
        }
    }

    fn add_prefixes(&mut self, assignments: &[Assignment]) {
        for chunk in assignments.chunks(PREFIXES_PER_MESSAGE) {
            let shared: Arc<[(Prefix, PeerId, WorkerId)]> =
                chunk.iter().map(|a| (a.prefix, a.peer, a.worker)).collect();
            self.tell_all(|| ToWorker::AddPrefixes(Arc::clone(&shared)));
        }
        let Ok(steering) = &mut self.steering else { return };
        for Assignment { prefix, worker, .. } in assignments {
            if let Err(error) = steering.set(*prefix, *worker) {
                tracing::warn!(%error, "packets of a prefix will be handed over");
            }
        }
    }

    fn send_frame(&mut self, worker: WorkerId, peer: PeerId, suite: Suite, frame: &[u8]) -> bool {
        let link = self.workers.get(worker.index());
        link.is_some_and(|link| link.try_control(ToWorker::Frame(peer, suite, frame.into())))
    }

    fn dismiss(&mut self, worker: WorkerId, peer: PeerId, frame: &[u8]) {
        self.tell(worker, ToWorker::Dismiss(peer, frame.into()));
    }

    fn peer_stats(&mut self, worker: WorkerId, peer: PeerId) -> Option<PeerStats> {
        let (reply, answer) = bounded(1);
        self.tell(worker, ToWorker::ReportPeer(peer, reply));
        Some(stats(clock::boottime(), clock::realtime())(answer.recv_timeout(ANSWER).ok()?))
    }

    fn snapshot(&mut self) -> Vec<PeerStats> {
        let stats = stats(clock::boottime(), clock::realtime());
        self.reports().into_iter().flat_map(|report| report.peers).map(stats).collect()
    }

    fn report(&mut self) -> serde_json::Value {
        let reports = self.reports();
        let handshake = self.handshake_counters();
        let mut drops = handshake.drops.clone();
        for report in &reports {
            drops.merge(&report.counters.drops);
        }
        serde_json::json!({
            "workers": reports.iter().map(|report| serde_json::json!({
                "worker": report.worker.0,
                "io": self.io.get(report.worker.index()).map(|(_, chosen)| chosen.io),
                "peers": report.peers.len(),
                "counters": named(WorkerCounters::SERIES, &report.counters.values()),
                "histograms": histograms(&report.counters),
                "drops": nonzero(&report.counters.drops),
            })).collect::<Vec<_>>(),
            "handshake": named(HandshakeCounters::SERIES, &handshake.values()),
            "drops": nonzero(&drops),
            "steering": match &self.steering {
                Ok(_) => serde_json::json!({ "on": true }),
                Err(reason) => serde_json::json!({ "on": false, "reason": reason }),
            },
            "io": { "kind": backend::kind(self.io.iter().map(|(_, chosen)| chosen)), "reason": self.no_ring() },
            "offloads": self.offloads.report(),
            "services": self.host.as_ref().map(hosting::services),
            "mss_clamp": self.offloads.state(Switch::MssClamp),
        })
    }

    fn switch(&mut self, switch: Switch, on: bool) -> Result<(), Errno> {
        self.offloads.set(switch, on, self.queues.first(), &self.sockets).map_err(|error| Errno::from(&error))
    }
}

/// Steering is an optimisation: without it packets are handed over, so its failure is a reason, not an error.
fn start_steering(device: &TunDevice, workers: u16) -> Result<Steering, String> {
    if workers == 1 {
        return Err("one worker needs none".to_owned());
    }
    let mut steering = Steering::new(workers).map_err(|error| error.to_string())?;
    steering.self_test().map_err(|error| error.to_string())?;
    let queue = device.queues.first().ok_or("no queue")?;
    steering.attach(queue).map_err(|error| error.to_string())?;
    Ok(steering)
}

/// The channels of so many workers, each with its bell.
fn worker_links(count: usize) -> io::Result<(Vec<WorkerLink>, Vec<WorkerInbox>)> {
    (0..count).map(|_| Ok(worker_channels(Bell::new(EventFd::new()?)))).collect()
}

/// The core of each worker; empty if none is pinned.
fn worker_cores(chosen: Vec<usize>, workers: usize) -> Vec<usize> {
    let cores = match chosen {
        chosen if !chosen.is_empty() => chosen,
        // One worker is better off where the scheduler puts it.
        _ if workers == 1 => Vec::new(),
        _ => thread::cores(),
    };
    cores.into_iter().cycle().take(workers).collect()
}

fn start_handshake(
    parts: handshake::Parts,
    account: Option<Account>,
    started: Sender<Started>,
    alarm: Alarm,
) -> anyhow::Result<JoinHandle<()>> {
    let run = move || {
        let _alarm = alarm;
        // Handshakes yield to packets: a flood of forged ones must not take a worker's core.
        let _ = thread::set_nice(thread::LOW_PRIORITY);
        let lowered = privileges::lower_thread(account, &[]);
        let is_lowered = lowered.is_ok();
        let _ = started.send(lowered.map(|()| None).context("the handshake thread"));
        if !is_lowered {
            return;
        }
        if let Err(error) = HandshakeThread::new(parts).run() {
            tracing::error!(%error, "the handshake thread ended");
        }
    };
    std::thread::Builder::new()
        .name("ringway-hs".to_owned())
        .spawn(run)
        .context("starting the handshake thread")
}

/// What a thread says when it runs, or why it does not: a worker says what it waits with.
type Started = anyhow::Result<Option<(WorkerId, Chosen)>>;

/// Held by each thread: when one ends, by order, for want of a device, by an error or a panic, the device is not
/// served whole any more, and the control thread ends the rest.
struct Alarm(watch::Sender<bool>);

impl Drop for Alarm {
    fn drop(&mut self) {
        let _ = self.0.send(true);
    }
}

/// What a worker's thread is started with; everything that is bound to a thread is made on it.
struct WorkerSeed {
    parts: worker::Parts,
    inbox: WorkerInbox,
    sockets: Sockets,
    tun: Arc<OwnedFd>,
    coalesce: Config,
    segment_limit: usize,
    busy_poll: Duration,
    io: config::Io,
    account: Option<Account>,
    core: Option<usize>,
}

impl WorkerSeed {
    fn run(self, started: &Sender<Started>, _alarm: &Alarm) {
        if let Some(core) = self.core
            && !thread::pin(core)
        {
            tracing::warn!(core, "the worker could not be pinned");
        }
        let id = self.parts.id;
        let fds = Fds {
            tun: Some(self.tun.as_fd()),
            v4: self.sockets.v4.as_ref().map(|fd| fd.as_fd()),
            v6: self.sockets.v6.as_ref().map(|fd| fd.as_fd()),
            wake: self.inbox.bell.eventfd().as_fd(),
        };
        let served = backend::make(self.io, fds, SLOTS, self.busy_poll).and_then(|backend| {
            let chosen = backend.chosen();
            match backend {
                Backend::Uring(ring) => self.serve(ring, chosen, started),
                Backend::Poll(poll, _) => self.serve(poll, chosen, started),
            }
        });
        if let Err(error) = served {
            let _ = started.send(Err(error.context(format!("worker {}", id.0))));
        }
    }

    /// Runs a worker that waits with `io` to its end.
    fn serve<I: Io>(self, io: I, chosen: Chosen, started: &Sender<Started>) -> anyhow::Result<()> {
        // Whoever reads what strangers send holds no capability. The ring may have needed one.
        privileges::lower_thread(self.account, &[])?;
        let id = self.parts.id;
        let inbound = Inbound::new(self.tun, self.coalesce, self.parts.vnet_header);
        let core = Core::new(self.parts, Peers::new(AllowedIps::new(), clock::boottime()));
        let outbound =
            Outbound::new(self.sockets, SEND_BUFFERS, self.segment_limit).context("send buffers")?;
        let mut worker = Worker::new(io, self.inbox, core, inbound, outbound);
        let _ = started.send(Ok(Some((id, chosen))));
        if let Err(error) = worker.run() {
            tracing::error!(worker = id.0, %error, "waiting for packets failed");
        }
        Ok(())
    }
}
