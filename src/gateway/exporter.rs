//! The metrics page. What lasts (threads, queues, offloads) stands in a recorder whose handles are registered once;
//! making a page copies the threads' boards ([`crate::metrics::board`]) into them, so that the packet path knows
//! nothing of it. What comes and goes (peers, reasons) is written beside it, so that a peer that is gone is gone from
//! the page as well.
//!
//! Nothing here names a client unless `per_peer` was chosen, and never its outer address.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::{Boards, Gateway};
use crate::config::{self, Listen};
use crate::control::Control;
use crate::control::clients::Counts;
use crate::control::device::Peer;
use crate::control::invites::Invites;
use crate::control::leases::{Leases, Trouble};
use crate::control::scrape::{self, ListenError};
use crate::dataplane::handoff::{ToWorker, WorkerReport};
use crate::dataplane::handshake::ToHandshake;
use crate::dataplane::offload::switches::Switch;
use crate::metrics::board::Board;
use crate::metrics::drops::{Drop as Reason, Outcome};
use crate::metrics::{HandshakeCounters, HandshakeGauges, Series, WorkerCounters, WorkerGauges, histogram};
use crate::sys::clock;
use crate::types::Time;

/// The page's address, bound before anything else is made: the likeliest thing to be in use.
pub(super) struct Opened {
    pub(super) listener: Rc<TcpListener>,
    pub(super) per_peer: bool,
}

/// A page and where it is served.
pub(super) struct Page {
    listener: Rc<TcpListener>,
    exporter: Exporter,
}

/// Where another page, or none, takes the place of the one that is served.
#[derive(Debug)]
pub(super) struct Stand(mpsc::Sender<(Option<Page>, oneshot::Sender<()>)>);

/// A page and those that come after it: for [`serve`].
pub(super) struct Pages {
    page: Option<Page>,
    next: mpsc::Receiver<(Option<Page>, oneshot::Sender<()>)>,
}

impl Pages {
    /// Begins with this page, or without one.
    pub(super) fn new(page: Option<Page>) -> (Stand, Self) {
        let (sender, next) = mpsc::channel(1);
        (Stand(sender), Self { page, next })
    }
}

impl Stand {
    /// Has this page served and no other. When it returns, nobody listens for the page before.
    pub(super) async fn put(&self, page: Option<Page>) {
        let (done, taken) = oneshot::channel();
        // Both fail only when nothing is served any more: at the end.
        if self.0.send((page, done)).await.is_ok() {
            let _ = taken.await;
        }
    }
}

/// Binds the page's address, if there is to be one.
///
/// # Errors
/// The address cannot be had.
pub(super) fn open(metrics: config::Metrics) -> Result<Option<Opened>, ListenError> {
    match metrics.listen {
        Listen::Off => Ok(None),
        Listen::At(address) => {
            let listener = Rc::new(scrape::listen(address)?);
            Ok(Some(Opened { listener, per_peer: metrics.per_peer }))
        }
    }
}

impl Opened {
    /// The page of a gateway that has started.
    pub(super) fn of(self, gateway: &Gateway, interface: &str) -> Page {
        Page { listener: self.listener, exporter: Exporter::new(gateway, interface, self.per_peer) }
    }
}

/// Serves one page after the other, as long as there is one; never ends.
pub(super) async fn serve(pages: Pages, control: &RefCell<Control<Gateway>>) -> Infallible {
    let Pages { mut page, mut next } = pages;
    loop {
        let (other, done) = tokio::select! {
            never = serve_one(page, control) => match never {},
            Some(other) = next.recv() => other,
        };
        page = other;
        let _ = done.send(());
    }
}

async fn serve_one(page: Option<Page>, control: &RefCell<Control<Gateway>>) -> Infallible {
    let Some(Page { listener, mut exporter }) = page else { return std::future::pending().await };
    scrape::serve(&listener, || exporter.page(&control.borrow())).await
}

impl Gateway {
    /// Has the threads show their numbers, or not any more, which costs them nothing then.
    pub(super) fn show_boards(&mut self, on: bool) {
        if self.boards.is_some() == on {
            return;
        }
        self.boards = on.then(|| Boards::new(self.workers.len()));
        let boards = self.boards.as_ref();
        for (i, link) in self.workers.iter().enumerate() {
            link.control(ToWorker::Show(boards.and_then(|boards| boards.workers.get(i).cloned())));
        }
        self.handshake.send(ToHandshake::Show(boards.map(|boards| Arc::clone(&boards.handshake))));
    }
}

/// A page is made again no sooner than this: asking faster costs nobody anything.
const FRESH: Duration = Duration::from_millis(200);
/// Nor sooner than so many times what making it took: pages of very many peers get a tenth of the control thread.
const REST: u32 = 9;
/// The recorder wants to know where a metric comes from; it makes no use of it.
const METADATA: Metadata<'static> = Metadata::new("ringway", Level::INFO, None);
/// The label of the handshake thread beside the workers' numbers.
const HANDSHAKE: &str = "handshake";

/// The page's maker; lives on the control thread.
struct Exporter {
    page: Rc<str>,
    /// When the page was ready, and how long making it took.
    made: Option<(Time, Duration)>,
    handle: PrometheusHandle,
    interface: String,
    per_peer: bool,
    workers: Vec<Thread>,
    handshake: Option<Thread>,
    outcomes: Vec<(Outcome, Counter)>,
    switches: Vec<(Switch, Gauge)>,
    started: Duration,
    status: Option<File>,
}

/// One thread's handles and where their values come from.
struct Thread {
    board: Arc<Board>,
    counters: Vec<Counter>,
    gauges: Vec<Gauge>,
    drops: Vec<Counter>,
    /// Of its channels, in the order of [`crate::dataplane::handoff::WorkerLink::queues`].
    queues: Vec<Gauge>,
}

impl Thread {
    /// Copies the board into the handles.
    fn update(&self) {
        // A counter never falls: `absolute` keeps the greater.
        let counters = self.counters.iter().zip(self.board.counters());
        counters.chain(self.drops.iter().zip(self.board.drops())).for_each(|(handle, n)| handle.absolute(n));
        self.gauges.iter().zip(self.board.gauges()).for_each(|(handle, n)| handle.set(n as f64));
    }
}

/// Registers series.
struct Registry(PrometheusRecorder);

impl Registry {
    fn counter(&self, name: &'static str, help: &'static str, labels: Vec<Label>) -> Counter {
        self.0.describe_counter(name.into(), None, help.into());
        self.0.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, help: &'static str, labels: Vec<Label>) -> Gauge {
        self.0.describe_gauge(name.into(), None, help.into());
        self.0.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    /// A thread's numbers. `worker` is the label of all, or of the drops only.
    fn thread(
        &self,
        board: &Arc<Board>,
        (counters, gauges): (&[Series], &[Series]),
        (worker, on_all): (&str, bool),
    ) -> Thread {
        let worker = || Label::new("worker", worker.to_owned());
        let labels = |series: &Series| {
            let own = series.label.map(|(label, value)| Label::new(label, value));
            on_all.then(worker).into_iter().chain(own).collect()
        };
        let drop = |reason: &Reason| {
            self.counter(
                "ringway_drops_total",
                "packets, datagrams and handshake messages dropped, by reason",
                vec![worker(), Label::new("reason", reason.label())],
            )
        };
        Thread {
            board: Arc::clone(board),
            counters: counters.iter().map(|s| self.counter(s.name, s.help, labels(s))).collect(),
            gauges: gauges.iter().map(|s| self.gauge(s.name, s.help, labels(s))).collect(),
            drops: Reason::ALL.iter().map(drop).collect(),
            queues: Vec::new(),
        }
    }

    fn worker(&self, number: usize, board: &Arc<Board>, queues: &[&'static str]) -> Thread {
        let worker = number.to_string();
        let series = (WorkerCounters::SERIES, WorkerGauges::SERIES);
        let mut thread = self.thread(board, series, (&worker, true));
        let queue = |name: &&'static str| {
            let labels = vec![Label::new("worker", worker.clone()), Label::new("queue", *name)];
            self.gauge("ringway_queue_length", "messages or packets that wait, by queue", labels)
        };
        thread.queues = queues.iter().map(queue).collect();
        thread
    }

    /// What never changes after the start.
    fn constants(&self, gateway: &Gateway) {
        let version = vec![Label::new("version", env!("CARGO_PKG_VERSION"))];
        self.gauge("ringway_build_info", "always 1; the version is a label", version).set(1.0);
        let steering = self.gauge(
            "ringway_steering_on",
            "1 while packets are steered to their worker by eBPF, 0 if they are handed over",
            Vec::new(),
        );
        steering.set(f64::from(u8::from(gateway.steering.is_ok())));
    }
}

impl Exporter {
    /// Registers all that a started gateway will ever show, with its interface as a label of everything.
    fn new(gateway: &Gateway, interface: &str, per_peer: bool) -> Self {
        let builder = PrometheusBuilder::new().add_global_label("interface", interface);
        let registry = Registry(builder.build_recorder());
        registry.constants(gateway);
        let boards = gateway.boards.as_ref();
        let workers = boards.map(|boards| boards.workers.as_slice()).unwrap_or_default();
        let queues = |link: &crate::dataplane::handoff::WorkerLink| link.queues().map(|(name, _)| name);
        let workers = workers.iter().zip(&gateway.workers).enumerate();
        let series = (HandshakeCounters::SERIES, HandshakeGauges::SERIES);
        let outcome = |outcome: &Outcome| {
            let labels = vec![Label::new("outcome", outcome.label())];
            (*outcome, registry.counter("ringway_handshakes_total", "handshakes, by outcome", labels))
        };
        let switch = |switch: Switch| {
            let labels = vec![Label::new("offload", switch.name())];
            let help = "1 while the offload, or the clamp of the TCP segment size, is in use";
            (switch, registry.gauge("ringway_offload_on", help, labels))
        };
        Self {
            page: Rc::from(""),
            made: None,
            handle: registry.0.handle(),
            interface: interface.to_owned(),
            per_peer,
            workers: workers.map(|(i, (board, link))| registry.worker(i, board, &queues(link))).collect(),
            handshake: boards.map(|b| registry.thread(&b.handshake, series, (HANDSHAKE, false))),
            outcomes: Outcome::ALL.iter().map(outcome).collect(),
            switches: Switch::ALL.into_iter().map(switch).collect(),
            started: clock::realtime(),
            // Held open: later the process may be allowed to open no file.
            status: File::open("/proc/self/status").ok(),
        }
    }

    /// The page as it stands: not older than [`FRESH`] or [`REST`] permit.
    fn page(&mut self, control: &Control<Gateway>) -> Rc<str> {
        let begin = clock::boottime();
        if self.made.is_none_or(|(ready, took)| is_stale(begin.since(ready), took)) {
            self.page = self.make(control).into();
            let ready = clock::boottime();
            self.made = Some((ready, ready.since(begin)));
        }
        Rc::clone(&self.page)
    }

    fn make(&self, control: &Control<Gateway>) -> String {
        let gateway = &control.dataplane;
        for thread in self.workers.iter().chain(&self.handshake) {
            thread.update();
        }
        for (thread, link) in self.workers.iter().zip(&gateway.workers) {
            for (gauge, (_, length)) in thread.queues.iter().zip(link.queues()) {
                gauge.set(length as f64);
            }
        }
        for (outcome, counter) in &self.outcomes {
            counter.absolute(ended(*outcome, &self.workers, self.handshake.as_ref()));
        }
        let states = gateway.offloads.switches().now();
        for (switch, gauge) in &self.switches {
            gauge.set(f64::from(u8::from(states.is_on(*switch))));
        }
        let mut text = Text { out: self.handle.render(), interface: &self.interface };
        histograms(&mut text, &self.workers);
        self.process(&mut text);
        reasons(&mut text, gateway);
        if let Some(leases) = &control.leases {
            pools(&mut text, leases);
            answers(&mut text, control.clients.counts());
        }
        if let Some(peers) = &control.peers {
            enrolments(&mut text, &peers.invites);
        }
        if self.per_peer {
            // Only this needs the workers' answers.
            peers(&mut text, control, &gateway.reports());
        }
        text.out
    }

    /// The metrics that every Prometheus client has of its process.
    fn process(&self, text: &mut Text<'_>) {
        text.head("process_cpu_seconds_total", "counter", "processor time of all threads, user and system");
        text.line("process_cpu_seconds_total", &[], clock::process_time().as_secs_f64());
        text.head("process_start_time_seconds", "gauge", "when the process began, since the Unix epoch");
        text.line("process_start_time_seconds", &[], self.started.as_secs_f64());
        if let Some(bytes) = self.status.as_ref().and_then(resident) {
            text.head("process_resident_memory_bytes", "gauge", "resident memory");
            text.line("process_resident_memory_bytes", &[], bytes);
        }
    }
}

/// Handshakes that ended so, over all threads: a completed one is counted by the peer's worker, others are drops.
fn ended(outcome: Outcome, workers: &[Thread], handshake: Option<&Thread>) -> u64 {
    let boards = workers.iter().map(|thread| &thread.board);
    if outcome == Outcome::Completed {
        let confirmed =
            WorkerCounters::SERIES.iter().position(|s| s.name == "ringway_sessions_confirmed_total");
        return boards.filter_map(|board| board.counters().nth(confirmed?)).sum();
    }
    let of = |board: &Arc<Board>| {
        let drops = Reason::ALL.iter().zip(board.drops());
        drops.filter(|(reason, _)| reason.outcome() == Some(outcome)).map(|(_, n)| n).sum::<u64>()
    };
    boards.chain(handshake.map(|thread| &thread.board)).map(of).sum()
}

/// Sizes of the workers' batches. The recorder takes single sizes only, not what was counted already.
fn histograms(text: &mut Text<'_>, workers: &[Thread]) {
    for (place, series) in WorkerCounters::HISTOGRAMS.iter().enumerate() {
        text.head(series.name, "histogram", series.help);
        for (number, thread) in workers.iter().enumerate() {
            let Some(cells) = thread.board.histograms().nth(place) else { continue };
            let worker = number.to_string();
            // The format wants them cumulative, and the count that of the last bucket.
            let mut count = 0;
            for (bound, here) in histogram::names().zip(cells) {
                count += here;
                let labels = [("worker", worker.as_str()), ("le", &bound)];
                text.line(&format!("{}_bucket", series.name), &labels, count);
            }
            let labels = [("worker", worker.as_str())];
            text.line(&format!("{}_sum", series.name), &labels, cells[histogram::BUCKETS]);
            text.line(&format!("{}_count", series.name), &labels, count);
        }
    }
}

/// True if a page of this age, which it took so long to make, may be made anew.
fn is_stale(age: Duration, took: Duration) -> bool {
    age >= FRESH.max(took * REST)
}

/// VmRSS of /proc/PID/status (proc(5)), bytes.
fn resident(status: &File) -> Option<u64> {
    let mut buffer = [0; 4096];
    let read = status.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..read)?).ok()?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    kib.checked_mul(1024)
}

/// Why something is off: one series per reason, only while it holds.
fn reasons(text: &mut Text<'_>, gateway: &Gateway) {
    let name = "ringway_off_info";
    text.head(name, "gauge", "1 for what is off, with the reason");
    if let Err(reason) = &gateway.steering {
        text.line(name, &[("what", "steering"), ("reason", reason)], 1);
    }
    let states = gateway.offloads.switches().now();
    for switch in Switch::ALL {
        if let Some(reason) = states.reason(switch) {
            text.line(name, &[("what", switch.name()), ("reason", reason.text())], 1);
        }
    }
}

/// Pools and their store.
fn pools(text: &mut Text<'_>, leases: &Leases) {
    let usages: Vec<_> = leases.usages().collect();
    let (addresses, leased) = ("ringway_pool_addresses", "ringway_pool_leased");
    text.head(addresses, "gauge", "Addresses in the pool");
    for (pool, usage) in &usages {
        text.line(addresses, &[("pool", pool)], usage.addresses);
    }
    text.head(leased, "gauge", "Addresses of the pool that are leased");
    for (pool, usage) in &usages {
        text.line(leased, &[("pool", pool)], usage.leased);
    }
    let Trouble { exhausted, failures, full } = leases.trouble();
    for (name, kind, help, value) in [
        ("ringway_pool_exhausted_total", "counter", "Requests for which no address was free", exhausted),
        ("ringway_store_failures_total", "counter", "Transactions that the store could not commit", failures),
        ("ringway_store_full", "gauge", "1 while the store's file system has no room", u64::from(full)),
    ] {
        text.head(name, kind, help);
        text.line(name, &[], value);
    }
}

/// What clients that lease were answered.
fn answers(text: &mut Text<'_>, counts: &Counts) {
    let name = "ringway_leases_total";
    text.head(name, "counter", "Leases given, renewed, given back (released) or over (expired)");
    let Counts { given, renewed, released, expired, .. } = *counts;
    for (change, count) in
        [("given", given), ("renewed", renewed), ("released", released), ("expired", expired)]
    {
        text.line(name, &[("change", change)], count);
    }
    let name = "ringway_lease_refusals_total";
    text.head(name, "counter", "Requests for addresses that were answered with a PROBLEM");
    for (code, count) in counts.problems().filter(|(_, count)| *count > 0) {
        text.line(name, &[("code", code.name())], count);
    }
}

/// What became of whoever had an invite.
fn enrolments(text: &mut Text<'_>, invites: &Invites) {
    let name = "ringway_enrolments_total";
    text.head(name, "counter", "Clients that came with an invite, by what became of it");
    for (outcome, count) in invites.outcomes() {
        text.line(name, &[("outcome", outcome.label())], count);
    }
}

/// Series per peer, under our names and under those of prometheus_wireguard_exporter, whose dashboards then work.
fn peers(text: &mut Text<'_>, control: &Control<Gateway>, reports: &[WorkerReport]) {
    let at = clock::boottime();
    let wall = clock::realtime();
    let stats: std::collections::HashMap<_, _> =
        reports.iter().flat_map(|report| &report.peers).map(|stats| (stats.peer, stats)).collect();
    let handshake = |time: Option<Time>| time.map_or(0, |time| wall.saturating_sub(at.since(time)).as_secs());
    let peers: Vec<_> = control
        .device
        .somebodys()
        .into_iter()
        .filter_map(|peer| {
            let stats = stats.get(&peer.id())?;
            let key = STANDARD.encode(peer.public_key().0);
            let values = [stats.rx_bytes, stats.tx_bytes, handshake(stats.last_handshake)];
            Some((key, allowed_ips(peer), values))
        })
        .collect();
    let name = "ringway_peer_bytes_total";
    text.head(name, "counter", "outer UDP payload exchanged with the peer since it was made");
    for (key, _, [received, sent, _]) in &peers {
        text.line(name, &[("public_key", key), ("direction", "in")], received);
        text.line(name, &[("public_key", key), ("direction", "out")], sent);
    }
    let name = "ringway_peer_last_handshake_timestamp_seconds";
    text.head(
        name,
        "gauge",
        "when the last handshake was complete, since the Unix epoch; 0 if there was none",
    );
    for (key, _, [_, _, handshake]) in &peers {
        text.line(name, &[("public_key", key)], handshake);
    }
    let theirs = [
        ("wireguard_received_bytes_total", "counter", "bytes received from the peer"),
        ("wireguard_sent_bytes_total", "counter", "bytes sent to the peer"),
        (
            "wireguard_latest_handshake_seconds",
            "gauge",
            "Unix time of the last handshake; 0 if there was none",
        ),
    ];
    for (i, (name, kind, help)) in theirs.into_iter().enumerate() {
        text.head(name, kind, help);
        for (key, allowed, values) in &peers {
            let labels = [("public_key", key.as_str()), ("allowed_ips", allowed)];
            text.line(name, &labels, values.get(i).copied().unwrap_or(0));
        }
    }
}

/// As `wg` lists them, with commas.
fn allowed_ips(peer: &Peer) -> String {
    peer.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>().join(",")
}

/// Lines of the exposition format.
struct Text<'a> {
    out: String,
    interface: &'a str,
}

impl Text<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.out, "{name}{{interface=\"{}\"", escaped(self.interface));
        for (label, value) in labels {
            let _ = write!(self.out, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.out, "}} {value}");
    }
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text { out: String::new(), interface: "w\"g" };
        text.line("x", &[("reason", "a\\b\nc")], 1.5);
        assert_eq!(text.out, "x{interface=\"w\\\"g\",reason=\"a\\\\b\\nc\"} 1.5\n");
    }

    #[test]
    fn memory_is_read_again_from_the_same_descriptor() {
        let status = File::open("/proc/self/status").unwrap();
        for _ in 0..2 {
            let bytes = resident(&status).unwrap();
            assert!((1 << 20..1 << 40).contains(&bytes) && bytes.is_multiple_of(1024), "{bytes}");
        }
    }

    #[test]
    fn handshakes_end_in_three_ways() {
        let registry = Registry(PrometheusBuilder::new().build_recorder());
        let boards = [Arc::new(Board::default()), Arc::new(Board::default())];
        let [worker, handshake] = [registry.worker(0, &boards[0], &[]), registry.worker(1, &boards[1], &[])];
        let mut counters = WorkerCounters { connected: 7, ..WorkerCounters::default() };
        counters.drops.add(Reason::NoRoute, 100);
        counters.drops.add(Reason::HandshakeQueueFull, 1);
        counters.publish(&WorkerGauges::default(), &boards[0]);
        let mut counters = HandshakeCounters::default();
        for (reason, n) in [(Reason::BadMac1, 10), (Reason::OldTimestamp, 20), (Reason::SourceLimit, 2)] {
            counters.drops.add(reason, n);
        }
        counters.publish(&HandshakeGauges::default(), &boards[1]);
        let count = |outcome| ended(outcome, std::slice::from_ref(&worker), Some(&handshake));
        assert_eq!(Outcome::ALL.iter().map(|outcome| count(*outcome)).collect::<Vec<_>>(), [7, 30, 3]);
    }

    #[test]
    fn a_page_that_is_long_in_the_making_is_made_seldom() {
        let ms = Duration::from_millis;
        assert!(!is_stale(ms(199), ms(1)) && is_stale(ms(200), ms(1)));
        assert!(!is_stale(ms(899), ms(100)) && is_stale(ms(900), ms(100)));
    }

    #[test]
    fn buckets_are_cumulative_and_belong_to_their_worker() {
        let registry = Registry(PrometheusBuilder::new().build_recorder());
        let boards = [Arc::new(Board::default()), Arc::new(Board::default())];
        let workers: Vec<_> =
            boards.iter().enumerate().map(|(i, board)| registry.worker(i, board, &[])).collect();
        let mut counters = WorkerCounters::default();
        [1, 2, 3, 4, 44, 200].into_iter().for_each(|size| counters.receive_sizes.record(size));
        counters.send_sizes.record(9);
        counters.publish(&WorkerGauges::default(), &boards[1]);
        let mut text = Text { out: String::new(), interface: "wg0" };
        histograms(&mut text, &workers);
        let of = |metric: &str, worker: usize| {
            let lines = text.out.lines().filter(|line| line.contains(&format!("worker=\"{worker}\"")));
            let lines = lines.filter(|line| line.starts_with(metric));
            lines
                .map(|line| line.rsplit_once('}').unwrap().1.trim().parse::<u64>().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("ringway_receive_batch_datagrams", 1), [1, 2, 4, 4, 4, 4, 5, 5, 6, 254, 6]);
        assert_eq!(of("ringway_send_batch_datagrams", 1), [0, 0, 0, 0, 1, 1, 1, 1, 1, 9, 1]);
        assert_eq!(of("ringway_", 0), [0; 44]);
        let line = r#"ringway_receive_batch_datagrams_bucket{interface="wg0",worker="1",le="+Inf"} 6"#;
        assert!(text.out.contains(line), "{}", text.out);
        assert_eq!(text.out.matches("# TYPE ringway_send_batch_datagrams histogram\n").count(), 1);
    }

    #[test]
    fn a_registry_has_one_series_for_each_label() {
        let registry = Registry(PrometheusBuilder::new().build_recorder());
        let boards = [Arc::new(Board::default()), Arc::new(Board::default())];
        let workers: Vec<_> =
            boards.iter().enumerate().map(|(i, board)| registry.worker(i, board, &["keys"])).collect();
        let mut counters = WorkerCounters { rx_packets: 7, tx_packets: 9, ..WorkerCounters::default() };
        counters.drops.add(Reason::NoRoute, 3);
        let gauges = WorkerGauges { backlog: 4, ..WorkerGauges::default() };
        counters.publish(&gauges, &boards[1]);
        // A counter does not fall, whatever the board says; a gauge does.
        WorkerCounters::default().publish(&WorkerGauges { sessions: 2, ..gauges.clone() }, &boards[0]);
        workers.iter().for_each(Thread::update);
        WorkerCounters::default().publish(&WorkerGauges::default(), &boards[1]);
        workers.iter().for_each(Thread::update);
        let page = registry.0.handle().render();
        for line in [
            r#"ringway_packets_total{worker="0",direction="in"} 0"#,
            r#"ringway_packets_total{worker="1",direction="in"} 7"#,
            r#"ringway_packets_total{worker="1",direction="out"} 9"#,
            r#"ringway_drops_total{worker="1",reason="no_route"} 3"#,
            r#"ringway_queue_length{worker="1",queue="backlog"} 0"#,
            r#"ringway_queue_length{worker="0",queue="backlog"} 4"#,
            r#"ringway_queue_length{worker="0",queue="keys"} 0"#,
            r#"ringway_sessions{worker="0"} 2"#,
            "# TYPE ringway_packets_total counter",
            "# TYPE ringway_sessions gauge",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        assert_eq!(page.matches("# TYPE ringway_packets_total ").count(), 1);
    }
}
