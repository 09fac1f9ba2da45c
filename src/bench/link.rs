//! `bench link`: a UDP forwarder that stands for a long, lossy or slow path, where the kernel has no netem.
//!
//! Clients send to [`Settings::listen`] instead of the gateway. Each gets an upstream socket of its own, so that the
//! gateway tells them apart; what comes back there returns to the client. Both directions have a [`Schedule`].
//!
//! A run that the kernel coalesced (UDP_GRO) is received, kept and sent (UDP_SEGMENT) whole, but for what is lost of
//! it, and with a rate, which spaces its datagrams. So the forwarder costs little beside what stands before and behind
//! it; `ceiling` measures how much.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use arrayvec::ArrayVec;
use serde::Serialize;
use socket2::Domain;

use self::schedule::{Fate, MAX_DELAY, Manners, Schedule};
use super::stop::Stop;
use super::udp;
use crate::sys::poll::{self, PollFd};
use crate::sys::socket::{self, MANY, Outgoing, Received};
use crate::sys::{clock, process};
use crate::types::{Endpoint, Time};

pub mod ceiling;
pub mod schedule;
#[cfg(test)]
mod tests;

/// Most clients of a link: each has a socket.
pub const MAX_CLIENTS: usize = 4096;
/// A client's place may go to another after so much silence, if there is no free one.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes that may wait in one direction, at most.
const MAX_WAITING: usize = 256 << 20;
/// What a run costs beside its bytes.
const WAITING_OVERHEAD: usize = 256;
/// Longest run that is sent whole: beyond it some kernels cut off its end.
const MAX_RUN: usize = 65_000;
/// Datagrams that every kernel with UDP_SEGMENT sends as one run.
const MAX_SEGMENTS: usize = 64;
/// How often one socket is read before what is due is sent.
const READS_PER_TURN: usize = 4;
/// Longest sleep: a run that has a length in time ends this late at most.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Buffers kept for reuse.
const SPARE: usize = 64;

/// A link.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where clients send to.
    pub listen: SocketAddr,
    /// Where it is forwarded to: the gateway.
    pub to: SocketAddr,
    /// What happens to the datagrams of both directions.
    pub manners: Manners,
    /// Clients that are served at a time, at most [`MAX_CLIENTS`].
    pub clients: usize,
    /// How long; `None`: until it is stopped.
    pub length: Option<Duration>,
}

/// What became of the datagrams of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Datagrams that came.
    pub received: u64,
    /// Bytes of UDP payload that came.
    pub received_bytes: u64,
    /// Datagrams lost as asked for.
    pub lost: u64,
    /// Datagrams dropped since too many waited.
    pub overflowed: u64,
    /// Datagrams sent on.
    pub sent: u64,
    /// Bytes of UDP payload sent on.
    pub sent_bytes: u64,
    /// Datagrams that the kernel refused to send.
    pub refused: u64,
    /// Datagrams that still waited at the end.
    pub waiting: u64,
    /// How much later than due a run left, microseconds: the mean, and the most.
    pub late_us_mean: u64,
    /// The most.
    pub late_us_max: u64,
}

/// What a link has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// From clients to the gateway.
    pub up: Counts,
    /// From the gateway to clients.
    pub down: Counts,
    /// Clients seen.
    pub clients: u64,
    /// Datagrams of clients for whom there was no place, of strangers, or too long for a buffer.
    pub turned_away: u64,
    /// How long it ran, seconds.
    pub seconds: f64,
    /// Processor time of it, seconds.
    pub cpu_seconds: f64,
}

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// A client and its socket towards the gateway.
#[derive(Debug)]
struct Flow {
    client: Endpoint,
    upstream: UdpSocket,
    seen: Time,
}

/// A run of datagrams that waits for its time.
#[derive(Debug)]
struct Waiting {
    due: Time,
    flow: usize,
    tos: u8,
    /// Length of each but the last.
    segment: Option<u16>,
    count: usize,
    bytes: Vec<u8>,
}

impl Waiting {
    /// How it is sent if it is one run.
    fn run(&self) -> Option<u16> {
        self.segment.filter(|_| self.count > 1)
    }

    fn cost(&self) -> usize {
        self.bytes.len() + WAITING_OVERHEAD
    }
}

/// What waits in one direction.
#[derive(Debug)]
struct Line {
    schedule: Schedule,
    /// In the order of `due`.
    queue: VecDeque<Waiting>,
    /// Sum of the costs.
    cost: usize,
    counts: Counts,
    runs: u64,
    late: Duration,
}

/// A run as it was received.
struct Arrival<'a> {
    payload: &'a [u8],
    segment: Option<u16>,
    tos: u8,
    headers: usize,
}

impl Line {
    fn new(manners: Manners, direction: u64) -> Self {
        let schedule = Schedule::new(manners, direction);
        let (counts, late) = (Counts::default(), Duration::ZERO);
        Self { schedule, queue: VecDeque::new(), cost: 0, counts, runs: 0, late }
    }

    /// Queues what is not lost of a run.
    fn admit(&mut self, flow: usize, arrival: &Arrival<'_>, now: Time, spare: &mut Vec<Vec<u8>>) {
        let Arrival { payload, segment, tos, headers } = *arrival;
        let mut open: Option<Waiting> = None;
        for part in udp::datagrams(payload, segment) {
            self.counts.received += 1;
            self.counts.received_bytes += part.len() as u64;
            let mut fate = self.schedule.admit(part.len() + headers, now);
            if matches!(fate, Fate::At(_)) && self.cost >= MAX_WAITING {
                fate = Fate::Overflow;
            }
            let due = match fate {
                Fate::At(due) => due,
                Fate::Lost => {
                    self.counts.lost += 1;
                    continue;
                }
                Fate::Overflow => {
                    self.counts.overflowed += 1;
                    continue;
                }
            };
            let fits = |run: &Waiting| {
                run.due == due && run.count < MAX_SEGMENTS && run.bytes.len() + part.len() <= MAX_RUN
            };
            let mut run = match open.take() {
                Some(run) if fits(&run) => run,
                full => {
                    full.into_iter().for_each(|run| self.push(run));
                    let bytes = spare.pop().unwrap_or_default();
                    Waiting { due, flow, tos, segment, count: 0, bytes }
                }
            };
            run.bytes.extend_from_slice(part);
            run.count += 1;
            open = Some(run);
        }
        open.into_iter().for_each(|run| self.push(run));
    }

    fn push(&mut self, run: Waiting) {
        self.cost += run.cost();
        self.queue.push_back(run);
    }

    /// The next runs that are due and leave by the same socket: that of the first's flow, or any if `shared`.
    fn take_due(&mut self, now: Time, shared: bool) -> ArrayVec<Waiting, MANY> {
        let mut due = ArrayVec::<Waiting, MANY>::new();
        while !due.is_full()
            && let Some(next) = self.queue.front()
            && next.due <= now
            && (shared || due.first().is_none_or(|first| first.flow == next.flow))
            && let Some(run) = self.queue.pop_front()
        {
            self.cost -= run.cost();
            let late = now.since(run.due);
            self.runs += 1;
            self.late += late;
            self.counts.late_us_max = self.counts.late_us_max.max(late.as_micros() as u64);
            due.push(run);
        }
        due
    }

    fn finish(&mut self) -> Counts {
        self.counts.waiting = self.queue.iter().map(|run| run.count as u64).sum();
        let mean = self.late.as_micros().checked_div(u128::from(self.runs));
        self.counts.late_us_mean = mean.unwrap_or(0) as u64;
        self.counts
    }
}

/// A forwarder, its sockets open.
#[derive(Debug)]
pub struct Link {
    settings: Settings,
    listen: UdpSocket,
    flows: Vec<Flow>,
    by_client: HashMap<SocketAddr, usize>,
    up: Line,
    down: Line,
    /// The bell, the listening socket, then those of the flows in their order.
    polled: Vec<PollFd>,
    buffers: Vec<Box<[u8]>>,
    spare: Vec<Vec<u8>>,
    report: Report,
    now: Time,
}

impl Link {
    /// Opens the listening socket.
    ///
    /// # Errors
    /// Settings beyond their limits; an address that cannot be bound.
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        if settings.manners.delay > MAX_DELAY {
            bail!("a link delays by {} s at most", MAX_DELAY.as_secs());
        }
        if !(1..=MAX_CLIENTS).contains(&settings.clients) {
            bail!("a link serves 1 to {MAX_CLIENTS} clients");
        }
        // Each client has a socket; those that are missing are refused one by one.
        let _ = process::raise_open_files(settings.clients as u64 + 64);
        let listen =
            udp::bind(settings.listen).with_context(|| format!("listening at {}", settings.listen))?;
        tell_arrivals(&listen)?;
        Ok(Self {
            settings,
            listen,
            flows: Vec::new(),
            by_client: HashMap::new(),
            up: Line::new(settings.manners, 0),
            down: Line::new(settings.manners, 1),
            polled: Vec::new(),
            buffers: udp::buffers(),
            spare: Vec::new(),
            report: Report::default(),
            now: Time::default(),
        })
    }

    /// Where clients send to, with the port that the kernel chose for 0.
    ///
    /// # Errors
    /// None is known.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listen.local_addr()
    }

    /// Forwards until it is stopped or its time is over.
    ///
    /// # Errors
    /// poll(2) fails for good.
    pub fn run(mut self, stop: &Stop) -> anyhow::Result<Report> {
        let asked = |fd| PollFd { fd, events: libc::POLLIN, revents: 0 };
        self.polled = vec![asked(stop.as_fd().as_raw_fd()), asked(self.listen.as_raw_fd())];
        let (begin, cpu) = (clock::boottime(), clock::thread_time());
        self.now = begin;
        let end = self.settings.length.map(|length| begin + length);
        while !stop.is_set() && end.is_none_or(|end| self.now < end) {
            let patience = self.patience();
            poll::wait(&mut self.polled, Some(patience)).context("waiting")?;
            self.now = clock::boottime();
            if self.is_readable(1) {
                self.receive_up();
            }
            for flow in 0..self.flows.len() {
                if self.is_readable(flow + 2) {
                    self.receive_down(flow);
                }
            }
            self.now = clock::boottime();
            self.flush(Way::Up);
            self.flush(Way::Down);
        }
        self.report.up = self.up.finish();
        self.report.down = self.down.finish();
        self.report.seconds = clock::boottime().since(begin).as_secs_f64();
        self.report.cpu_seconds = (clock::thread_time() - cpu).as_secs_f64();
        Ok(self.report)
    }

    /// Until the next run is due.
    fn patience(&self) -> Duration {
        let next =
            [&self.up, &self.down].into_iter().filter_map(|line| line.queue.front()).map(|run| run.due);
        next.min().map_or(HEARTBEAT, |due| due.since(clock::boottime()).min(HEARTBEAT))
    }

    fn is_readable(&self, place: usize) -> bool {
        self.polled.get(place).is_some_and(|fd| fd.revents != 0)
    }

    fn receive_up(&mut self) {
        for _ in 0..READS_PER_TURN {
            // An error of the socket is that of a datagram that was sent: ICMP.
            let Ok(received) = socket::recv_many(&self.listen, &mut self.buffers) else { return };
            let full = received.is_full();
            for (n, received) in received.into_iter().enumerate() {
                let Ok(received) = received else { continue };
                match self.flow_of(&received) {
                    Some(flow) => self.admit(Way::Up, flow, n, &received),
                    None => self.report.turned_away += 1,
                }
            }
            if !full {
                return;
            }
        }
    }

    fn receive_down(&mut self, flow: usize) {
        for _ in 0..READS_PER_TURN {
            let Some(upstream) = self.flows.get(flow).map(|flow| &flow.upstream) else { return };
            let Ok(received) = socket::recv_many(upstream, &mut self.buffers) else { return };
            let full = received.is_full();
            for (n, received) in received.into_iter().enumerate() {
                let Ok(received) = received else { continue };
                if received.remote == self.settings.to {
                    self.admit(Way::Down, flow, n, &received);
                } else {
                    self.report.turned_away += 1;
                }
            }
            if !full {
                return;
            }
        }
    }

    /// Takes the run in the n-th buffer.
    fn admit(&mut self, way: Way, flow: usize, n: usize, received: &Received) {
        let payload = self.buffers.get(n).and_then(|buffer| buffer.get(..received.len));
        let (Some(payload), false) = (payload, received.truncated) else {
            self.report.turned_away += 1;
            return;
        };
        let headers = if received.remote.is_ipv4() { 28 } else { 48 };
        let line = if way == Way::Up { &mut self.up } else { &mut self.down };
        let arrival = Arrival { payload, segment: received.segment, tos: received.tos, headers };
        line.admit(flow, &arrival, self.now, &mut self.spare);
    }

    /// The flow of a client, a new one if it is new. `None`: there is no place or no socket for it.
    fn flow_of(&mut self, received: &Received) -> Option<usize> {
        let client = Endpoint { remote: received.remote, source: received.source };
        if let Some(&place) = self.by_client.get(&client.remote) {
            let flow = self.flows.get_mut(place)?;
            flow.client = client;
            flow.seen = self.now;
            return Some(place);
        }
        let place = self.place()?;
        let upstream = udp::bind_towards(self.settings.to).ok()?;
        tell_arrivals(&upstream).ok()?;
        let asked = PollFd { fd: upstream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let flow = Flow { client, upstream, seen: self.now };
        if let (Some(old), Some(fd)) = (self.flows.get_mut(place), self.polled.get_mut(place + 2)) {
            self.by_client.remove(&old.client.remote);
            (*old, *fd) = (flow, asked);
        } else {
            self.flows.push(flow);
            self.polled.push(asked);
        }
        self.by_client.insert(client.remote, place);
        self.report.clients += 1;
        Some(place)
    }

    /// A place for a new flow: one that is free, or that of who was silent for longest.
    fn place(&self) -> Option<usize> {
        if self.flows.len() < self.settings.clients {
            return Some(self.flows.len());
        }
        let (place, idlest) = self.flows.iter().enumerate().min_by_key(|(_, flow)| flow.seen)?;
        // Longer than anything of it may wait.
        (self.now.since(idlest.seen) >= IDLE).then_some(place)
    }

    /// Sends what is due.
    fn flush(&mut self, way: Way) {
        loop {
            let line = if way == Way::Up { &mut self.up } else { &mut self.down };
            let due = line.take_due(self.now, way == Way::Down);
            let Some(first) = due.first() else { return };
            let Some(flow) = self.flows.get(first.flow) else { continue };
            let by = if way == Way::Up { &flow.upstream } else { &self.listen };
            let outgoing: ArrayVec<Outgoing<'_>, MANY> = due
                .iter()
                .filter_map(|run| {
                    let (remote, source) = match way {
                        Way::Up => (self.settings.to, None),
                        Way::Down => {
                            let client = self.flows.get(run.flow)?.client;
                            (client.remote, client.source)
                        }
                    };
                    let (tos, segment) = (run.tos, run.run());
                    Some(Outgoing { payload: &run.bytes, remote, source, tos, segment })
                })
                .collect();
            send(by, &outgoing, &mut line.counts);
            drop(outgoing);
            for mut run in due {
                if self.spare.len() < SPARE {
                    run.bytes.clear();
                    self.spare.push(run.bytes);
                }
            }
        }
    }
}

/// Sends all of them, each as it can be sent, and counts.
fn send(by: &UdpSocket, mut outgoing: &[Outgoing<'_>], counts: &mut Counts) {
    while let Some((first, rest)) = outgoing.split_first() {
        match socket::send_many(by, outgoing) {
            Ok(taken) => {
                let (sent, left) = outgoing.split_at_checked(taken.max(1)).unwrap_or((outgoing, &[]));
                for run in sent {
                    counts.sent += udp::datagrams(run.payload, run.segment).count() as u64;
                    counts.sent_bytes += run.payload.len() as u64;
                }
                outgoing = left;
            }
            Err(error) => {
                // What is too long to be sent as a run (the MTU), or cannot be at all, goes singly.
                let alone = error.kind() != io::ErrorKind::WouldBlock && first.segment.is_some();
                for part in udp::datagrams(first.payload, first.segment) {
                    let sent =
                        alone && socket::send(by, part, first.remote, first.source, first.tos, None).is_ok();
                    counts.sent += u64::from(sent);
                    counts.sent_bytes += if sent { part.len() as u64 } else { 0 };
                    counts.refused += u64::from(!sent);
                }
                outgoing = rest;
            }
        }
    }
}

/// Has a socket say at which address datagrams came, and with which TOS.
fn tell_arrivals(socket: &UdpSocket) -> io::Result<()> {
    let domain = if socket.local_addr()?.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    socket::set_receive_info(socket, domain)
}
