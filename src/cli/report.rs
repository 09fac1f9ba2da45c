//! What running devices say of themselves, asked over their configuration sockets, and how fast it changes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use crate::control::socket::socket_path;
use crate::control::uapi::format::Show;
use crate::net::name::InterfaceName;
use crate::noise::timers::Limits;

/// How long a device may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What every metric's name begins with.
pub const PREFIX: &str = "ringway_";

/// One device at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// The device, as its socket's file is named.
    pub name: InterfaceName,
    /// When it was asked.
    pub at: Instant,
    /// The answer as it came: keys that this program does not know are in it.
    pub json: Value,
    /// The answer, understood.
    pub show: Show,
}

/// Every device of this host that is Ringway's, or those that are named, in that order.
///
/// # Errors
/// A named device that cannot be asked; without names, a socket that this user may not open: an empty answer would
/// look like "nothing runs".
pub fn devices(directory: &Path, wanted: &[InterfaceName]) -> anyhow::Result<Vec<Report>> {
    if !wanted.is_empty() {
        return wanted.iter().map(|name| ask(directory, name)).collect();
    }
    let mut found = Vec::new();
    for name in names(directory)? {
        match ask(directory, &name) {
            Ok(report) => found.push(report),
            Err(error) if is_denied(&error) => return Err(error),
            // Sockets of other programs, and sockets that somebody left behind, are not ours to show.
            Err(_) => {}
        }
    }
    Ok(found)
}

/// This user may not ask.
pub(super) fn is_denied(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Every `IFNAME.sock` in order.
///
/// # Errors
/// A directory that cannot be read; a missing one is empty.
pub fn names(directory: &Path) -> anyhow::Result<Vec<InterfaceName>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let hint = hint(&error, &directory.display().to_string());
            return Err(anyhow!(error).context(hint));
        }
        Ok(entries) => entries,
    };
    let mut names: Vec<InterfaceName> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".sock")?.parse().ok())
        .collect();
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(names)
}

/// What an error about a socket means and what to do about it.
fn hint(error: &io::Error, place: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("nobody serves this device: {place} is missing (`ringway show` lists what is served)")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("whoever served this device has ended and left {place} behind (start it again)")
        }
        io::ErrorKind::PermissionDenied => format!("{place} is open to root only: run this with sudo"),
        _ => place.to_owned(),
    }
}

/// Asks one device.
///
/// # Errors
/// Nobody serves it, this user may not ask, or somebody else's program answers.
pub fn ask(directory: &Path, name: &InterfaceName) -> anyhow::Result<Report> {
    let path = socket_path(directory, name);
    let at = Instant::now();
    let mut stream = UnixStream::connect(&path).map_err(|error| {
        let hint = hint(&error, &path.display().to_string());
        anyhow!(error).context(format!("{name}: {hint}"))
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"show=json\n\n").with_context(|| format!("{name}: asking"))?;
    let mut lines = BufReader::new(stream).lines();
    let mut next = || lines.next().transpose().with_context(|| format!("{name}: no answer in time"));
    let line = next()?;
    let Some(json) = line.as_deref().and_then(|line| line.strip_prefix("json=")) else {
        bail!("{name} is not served by Ringway (`wg show {name}` may know it)");
    };
    if next()?.as_deref() != Some("errno=0") {
        bail!("{name}: the answer was cut short");
    }
    understand(name, at, json)
}

fn understand(name: &InterfaceName, at: Instant, json: &str) -> anyhow::Result<Report> {
    let json: Value = serde_json::from_str(json).with_context(|| format!("{name}: no JSON"))?;
    let show = Show::deserialize(&json).with_context(|| format!("{name}: unknown answer"))?;
    Ok(Report { name: name.clone(), at, json, show })
}

/// Changes per second between two reports of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Seconds between the reports.
    pub seconds: f64,
    /// By worker.
    pub workers: Vec<WorkerRates>,
    /// By base64 public key; only who was there both times.
    pub peers: HashMap<String, PeerRates>,
    /// By reason, over all threads; only what grew.
    pub drops: BTreeMap<String, f64>,
}

/// One worker's changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkerRates {
    /// Authenticated transport messages per second.
    pub rx_packets: f64,
    /// Outer bytes of these per second.
    pub rx_bytes: f64,
    /// Sealed transport messages per second.
    pub tx_packets: f64,
    /// Outer bytes of these per second.
    pub tx_bytes: f64,
    /// Packets per receive of this time; 0 without any.
    pub rx_batch: f64,
    /// Packets per send of this time; 0 without any.
    pub tx_batch: f64,
    /// Packets given to other workers per second.
    pub handed_over: f64,
    /// Drops per second, all reasons.
    pub drops: f64,
}

/// One peer's changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PeerRates {
    /// Received from it, bytes per second.
    pub rx_bytes: f64,
    /// Sent to it, bytes per second.
    pub tx_bytes: f64,
}

impl PeerRates {
    /// Both directions.
    #[must_use]
    pub fn sum(self) -> f64 {
        self.rx_bytes + self.tx_bytes
    }
}

impl Rates {
    /// From two reports of the same device; a counter that went back (the program began anew) counts as still.
    #[must_use]
    pub fn between(before: &Report, after: &Report) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        let per_second = |then: u64, now: u64| now.saturating_sub(then) as f64 / seconds;
        let was = before.show.peers.iter().map(|peer| (peer.public_key.as_str(), peer));
        let was: HashMap<_, _> = was.collect();
        let peers = after.show.peers.iter().filter_map(|now| {
            let then = was.get(now.public_key.as_str())?;
            let rx_bytes = per_second(then.rx_bytes, now.rx_bytes);
            Some((
                now.public_key.clone(),
                PeerRates { rx_bytes, tx_bytes: per_second(then.tx_bytes, now.tx_bytes) },
            ))
        });
        let (old, new) = (&before.show.dataplane, &after.show.dataplane);
        let workers = workers(new).iter().enumerate().map(|(place, now)| {
            let then = workers(old).get(place).unwrap_or(&Value::Null);
            WorkerRates::between(then, now, seconds)
        });
        let drops = new["drops"].as_object().into_iter().flatten().filter_map(|(reason, now)| {
            let rate = per_second(old["drops"][reason].as_u64().unwrap_or(0), now.as_u64()?);
            (rate > 0.0).then(|| (reason.clone(), rate))
        });
        Self { seconds, workers: workers.collect(), peers: peers.collect(), drops: drops.collect() }
    }
}

impl WorkerRates {
    fn between(then: &Value, now: &Value, seconds: f64) -> Self {
        let grown = |name| count(now, name).saturating_sub(count(then, name)) as f64;
        let rate = |name| grown(name) / seconds;
        let batch = |packets, calls| if grown(calls) > 0.0 { grown(packets) / grown(calls) } else { 0.0 };
        Self {
            rx_packets: rate("rx_packets"),
            rx_bytes: rate("rx_bytes"),
            tx_packets: rate("tx_packets"),
            tx_bytes: rate("tx_bytes"),
            rx_batch: batch("rx_packets", "receives"),
            tx_batch: batch("tx_packets", "sends"),
            handed_over: rate("handed_over"),
            drops: drops(now).saturating_sub(drops(then)) as f64 / seconds,
        }
    }
}

/// The workers of a data plane's report.
#[must_use]
pub fn workers(dataplane: &Value) -> &[Value] {
    dataplane["workers"].as_array().map_or(&[], Vec::as_slice)
}

/// A counter of a worker's report by its metric's name without prefix and suffix; 0 if it is not there. A direction is
/// part of the name (`rx_bytes`) or a label (`bytes{direction="in"}`), as the running program has it.
#[must_use]
pub fn count(worker: &Value, name: &str) -> u64 {
    let counters = &worker["counters"];
    let labelled = match name.split_once('_') {
        Some(("rx", what)) => format!("{PREFIX}{what}_total{{direction=\"in\"}}"),
        Some(("tx", what)) => format!("{PREFIX}{what}_total{{direction=\"out\"}}"),
        _ => String::new(),
    };
    let found = counters.get(format!("{PREFIX}{name}_total")).or_else(|| counters.get(labelled));
    found.and_then(Value::as_u64).unwrap_or(0)
}

/// All drops of a worker's report.
#[must_use]
pub fn drops(worker: &Value) -> u64 {
    worker["drops"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

/// Peers whose last handshake is younger than Reject-After-Time: their sessions carry packets.
#[must_use]
pub fn sessions(show: &Show, now: SystemTime) -> usize {
    let reject = Limits::PAPER.reject_after_time;
    show.peers.iter().filter(|peer| peer.handshake_age(now).is_some_and(|age| age < reject)).count()
}

#[cfg(test)]
mod tests;
