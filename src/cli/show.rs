//! `show`: what a running device says of itself, as text like `wg show`'s or as JSON.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use crate::control::socket::{DIRECTORY, socket_path};
use crate::control::uapi::format::{Show, ShowPeer};
use crate::net::name::InterfaceName;

/// How long a device may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// `show [--json] [IFNAME]`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// One JSON object per device and line
    #[arg(long)]
    json: bool,
    /// This device only
    #[arg(value_name = "IFNAME")]
    name: Option<InterfaceName>,
}

/// Prints one device, or every device of this host that is Ringway's.
///
/// # Errors
/// The named device is not served, or not by Ringway.
pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let directory = Path::new(DIRECTORY);
    let devices = match &args.name {
        Some(name) => vec![(name.clone(), ask(directory, name)?)],
        // Sockets of other programs, and sockets that somebody left behind, are not ours to show.
        None => names(directory)?
            .into_iter()
            .filter_map(|name| ask(directory, &name).ok().map(|json| (name, json)))
            .collect(),
    };
    let mut out = io::stdout().lock();
    for (place, (name, json)) in devices.iter().enumerate() {
        if args.json {
            let Value::Object(mut object) = serde_json::from_str(json)? else { bail!("{name}: no object") };
            object.insert("interface".to_owned(), Value::String(name.to_string()));
            writeln!(out, "{}", Value::Object(object)).context("standard output")?;
        } else {
            let show: Show = serde_json::from_str(json).with_context(|| format!("{name}: unknown answer"))?;
            let gap = if place > 0 { "\n" } else { "" };
            write!(out, "{gap}{}", text(name, &show, SystemTime::now())).context("standard output")?;
        }
    }
    Ok(())
}

/// Every `IFNAME.sock` in order.
fn names(directory: &Path) -> anyhow::Result<Vec<InterfaceName>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| directory.display().to_string())?,
    };
    let mut names: Vec<InterfaceName> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".sock")?.parse().ok())
        .collect();
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(names)
}

/// The JSON of one device.
fn ask(directory: &Path, name: &InterfaceName) -> anyhow::Result<String> {
    let path = socket_path(directory, name);
    let mut stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"show=json\n\n")?;
    let mut lines = BufReader::new(stream).lines();
    let json = lines.next().transpose()?;
    let Some(json) = json.as_deref().and_then(|line| line.strip_prefix("json=")) else {
        bail!("{name} is not served by Ringway (`wg show {name}` may know it)");
    };
    match lines.next().transpose()?.as_deref() {
        Some("errno=0") => Ok(json.to_owned()),
        _ => bail!("{name}: the answer was cut short"),
    }
}

/// One device as text.
fn text(name: &InterfaceName, show: &Show, now: SystemTime) -> String {
    let mut out = format!("interface: {name}\n");
    if let Some(key) = &show.public_key {
        out += &format!("  public key: {key}\n  private key: (hidden)\n");
    }
    if show.listen_port != 0 {
        let _ = writeln!(out, "  listening port: {}", show.listen_port);
    }
    if show.fwmark != 0 {
        let _ = writeln!(out, "  fwmark: {:#x}", show.fwmark);
    }
    if let Value::Object(report) = &show.dataplane {
        for (key, value) in report {
            report_lines(&mut out, key, value);
        }
    }
    // The latest handshake first, as wg has it.
    let mut peers: Vec<_> = show.peers.iter().collect();
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.last_handshake));
    for peer in peers {
        peer_text(&mut out, peer, now);
    }
    out
}

/// One entry of the data plane's report: workers a line each, anything else on one line.
fn report_lines(out: &mut String, key: &str, value: &Value) {
    match value {
        Value::Array(workers) if key == "workers" => {
            for (place, worker) in workers.iter().enumerate() {
                let _ = writeln!(out, "  worker {place}: {}", worker_text(worker));
            }
        }
        value => {
            let _ = writeln!(out, "  {key}: {}", inline(value));
        }
    }
}

/// What a worker carried, and in how large bites: all its counters are in the JSON.
fn worker_text(worker: &Value) -> String {
    let count = |name: &str| worker["counters"][name].as_u64().unwrap_or(0);
    let way = |verb: &str, bytes_name: &str, packets: u64, calls: u64| {
        // A rate for people: 53 bits are enough.
        let each = packets as f64 / calls.max(1) as f64;
        format!(", {} {verb} ({each:.1} packets a call)", bytes(count(bytes_name)))
    };
    let peers = worker["peers"].as_u64().unwrap_or(0);
    let mut text = format!("{peers} peer{}", if peers == 1 { "" } else { "s" });
    let receives = count("ringway_receives_total");
    text += &way("received", "ringway_rx_bytes_total", count("ringway_rx_packets_total"), receives);
    let sends = count("ringway_sends_total");
    text += &way("sent", "ringway_tx_bytes_total", count("ringway_tx_packets_total"), sends);
    let _ = write!(text, ", {} handed over", count("ringway_handed_over_total"));
    text
}

/// A value without line breaks; counters that are zero say nothing. A switch is on or off: a boolean, an object
/// `{"on": false, "reason": …}`, or `NAME_off`, which holds the reason or nothing. What is one of several kinds is
/// `{"kind": …, "reason": …}`.
fn inline(value: &Value) -> String {
    match value {
        Value::Null => "(none)".to_owned(),
        Value::Bool(on) => switch(*on, None),
        Value::String(text) => text.clone(),
        Value::Object(entries) => {
            if let Some(kind) = entries.get("kind").and_then(Value::as_str) {
                let reason = entries.get("reason").and_then(Value::as_str);
                return reason.map_or_else(|| kind.to_owned(), |reason| format!("{kind} ({reason})"));
            }
            if let Some(on) = entries.get("on").and_then(Value::as_bool) {
                return switch(on, entries.get("reason").and_then(Value::as_str));
            }
            let shown: Vec<_> = entries
                .iter()
                .filter(|(_, value)| value.as_u64() != Some(0))
                .map(|(key, value)| match (key.strip_suffix("_off"), value) {
                    (Some(name), reason) => format!("{name} {}", switch(reason.is_null(), reason.as_str())),
                    (None, Value::Object(inner)) if !inner.contains_key("on") => {
                        format!("{key} ({})", inline(value))
                    }
                    (None, value) => format!("{key} {}", inline(value)),
                })
                .collect();
            if shown.is_empty() { "(none)".to_owned() } else { shown.join(", ") }
        }
        Value::Array(elements) => elements.iter().map(inline).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn switch(on: bool, reason: Option<&str>) -> String {
    match (on, reason) {
        (true, _) => "on".to_owned(),
        (false, None) => "off".to_owned(),
        (false, Some(reason)) => format!("off ({reason})"),
    }
}

fn peer_text(out: &mut String, peer: &ShowPeer, now: SystemTime) {
    let _ = writeln!(out, "\npeer: {}", peer.public_key);
    if peer.preshared_key {
        out.push_str("  preshared key: (hidden)\n");
    }
    if let Some(endpoint) = &peer.endpoint {
        let _ = writeln!(out, "  endpoint: {endpoint}");
    }
    let allowed = if peer.allowed_ips.is_empty() { "(none)".to_owned() } else { peer.allowed_ips.join(", ") };
    let _ = writeln!(out, "  allowed ips: {allowed}");
    if let Some(seconds) = peer.last_handshake {
        let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let age = then.and_then(|then| now.duration_since(then).ok()).unwrap_or_default();
        let _ = writeln!(out, "  latest handshake: {}", ago(age.as_secs()));
    }
    if peer.rx_bytes != 0 || peer.tx_bytes != 0 {
        let _ = writeln!(out, "  transfer: {} received, {} sent", bytes(peer.rx_bytes), bytes(peer.tx_bytes));
    }
    if let Some(seconds) = peer.persistent_keepalive {
        let _ = writeln!(out, "  persistent keepalive: every {}", duration(u64::from(seconds)));
    }
    let _ = writeln!(out, "  worker: {}", peer.worker);
}

fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", duration(seconds)) }
}

/// `1 hour, 2 minutes, 3 seconds`.
fn duration(seconds: u64) -> String {
    let units = [
        (seconds / 86_400, "day"),
        (seconds / 3_600 % 24, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ];
    let parts: Vec<_> = units
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count} {unit}{}", if count == 1 { "" } else { "s" }))
        .collect();
    parts.join(", ")
}

/// Powers of 1024 with two decimals, as `wg` prints them.
fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let power = (count.ilog2() / 10).min(4);
    let unit = units.get(power as usize - 1).copied().unwrap_or_default();
    // Two decimals do not need more than the 53 bits of a double.
    format!("{:.2} {unit}", count as f64 / (1u64 << (10 * power)) as f64)
}

#[cfg(test)]
mod tests;
