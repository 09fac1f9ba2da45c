//! One device as lines for people, in the manner of `wg show`.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::Value;

use crate::cli::report::{self, PeerRates, Rates, Report, WorkerRates};
use crate::control::uapi::format::ShowPeer;

/// A device: itself, its data plane, its workers, its peers with the latest handshake first, as wg has it.
pub(super) fn device(report: &Report, rates: Option<&Rates>, now: SystemTime) -> String {
    let show = &report.show;
    let mut out = format!("interface: {}\n", report.name);
    if let Some(key) = &show.public_key {
        out += &format!("  public key: {key}\n  private key: (hidden)\n");
    }
    if show.listen_port != 0 {
        let _ = writeln!(out, "  listening port: {}", show.listen_port);
    }
    if show.fwmark != 0 {
        let _ = writeln!(out, "  fwmark: {:#x}", show.fwmark);
    }
    let _ = writeln!(out, "  sessions: {} of {} peers", report::sessions(show, now), show.peers.len());
    // What this program does not know is shown all the same: an older `show` on a newer device.
    for (key, value) in show.dataplane.as_object().into_iter().flatten().filter(|(key, _)| *key != "workers")
    {
        let _ = writeln!(out, "  {}: {}", key.replace('_', " "), inline(value));
    }
    if let Some(rates) = rates.filter(|rates| !rates.drops.is_empty()) {
        let each: Vec<_> = rates.drops.iter().map(|(reason, rate)| format!("{reason} {rate:.0}/s")).collect();
        let _ = writeln!(out, "  drops now: {}", each.join(", "));
    }
    for (place, worker) in report::workers(&show.dataplane).iter().enumerate() {
        let _ = writeln!(out, "  worker {place}: {}", worker_text(worker));
        if let Some(rates) = rates.and_then(|rates| rates.workers.get(place)) {
            let _ = writeln!(out, "  worker {place} now: {}", worker_rates(rates));
        }
    }
    let mut peers: Vec<_> = show.peers.iter().collect();
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.last_handshake));
    for peer in peers {
        peer_text(&mut out, peer, rates.and_then(|rates| rates.peers.get(&peer.public_key)), now);
    }
    out
}

/// The same text with a terminal's colours: names green and yellow, keys bold, as wg has them.
pub(super) fn paint(text: String, colour: bool) -> String {
    if !colour {
        return text;
    }
    let line = |line: &str| match line.split_once(": ") {
        Some(("interface", name)) => format!("\x1b[1;32minterface\x1b[0m: \x1b[32m{name}\x1b[0m\n"),
        Some(("peer", key)) => format!("\x1b[1;33mpeer\x1b[0m: \x1b[33m{key}\x1b[0m\n"),
        Some((key, value)) => format!("\x1b[1m{key}\x1b[0m: {value}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// What a worker carried, and in how large bites: all its counters are in the JSON.
fn worker_text(worker: &Value) -> String {
    let count = |name: &str| report::count(worker, name);
    let way = |verb: &str, bytes_name: &str, packets: u64, calls: u64| {
        // A rate for people: 53 bits are enough.
        let each = packets as f64 / calls.max(1) as f64;
        format!(", {} {verb} ({each:.1} packets a call)", bytes(count(bytes_name)))
    };
    let peers = worker["peers"].as_u64().unwrap_or(0);
    let mut text = format!("{peers} peer{}", if peers == 1 { "" } else { "s" });
    let receives = count("receives");
    text += &way("received", "rx_bytes", count("rx_packets"), receives);
    let sends = count("sends");
    text += &way("sent", "tx_bytes", count("tx_packets"), sends);
    let _ = write!(text, ", {} handed over", count("handed_over"));
    text
}

fn worker_rates(rates: &WorkerRates) -> String {
    format!(
        "{}/s received ({:.0} packets/s, {:.1} a call), {}/s sent ({:.0} packets/s, {:.1} a call), \
         {:.0}/s handed over, {:.0}/s dropped",
        bytes(rates.rx_bytes as u64),
        rates.rx_packets,
        rates.rx_batch,
        bytes(rates.tx_bytes as u64),
        rates.tx_packets,
        rates.tx_batch,
        rates.handed_over,
        rates.drops,
    )
}

/// A metric's name without what all have in common.
fn short(name: &str) -> String {
    let name = name.strip_prefix(report::PREFIX).unwrap_or(name);
    name.strip_suffix("_total").unwrap_or(name).replace('_', " ")
}

/// A value without line breaks; counters that are zero say nothing. A switch is on or off: a boolean, an object
/// `{"on": false, "reason": …}`, or `NAME_off`, which holds the reason or nothing.
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
                    (Some(name), reason) => {
                        format!("{} {}", short(name), switch(reason.is_null(), reason.as_str()))
                    }
                    (None, Value::Object(inner)) if !inner.contains_key("on") => {
                        format!("{} ({})", short(key), inline(value))
                    }
                    (None, value) => format!("{} {}", short(key), inline(value)),
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

fn peer_text(out: &mut String, peer: &ShowPeer, rates: Option<&PeerRates>, now: SystemTime) {
    let _ = writeln!(out, "\npeer: {}", peer.public_key);
    if let Some(name) = &peer.name {
        let _ = writeln!(out, "  name: {name}");
    }
    if let Some(source) = &peer.source {
        let _ = writeln!(out, "  source: {source}");
    }
    if peer.preshared_key {
        out.push_str("  preshared key: (hidden)\n");
    }
    if let Some(endpoint) = &peer.endpoint {
        let _ = writeln!(out, "  endpoint: {endpoint}");
    }
    let allowed = if peer.allowed_ips.is_empty() { "(none)".to_owned() } else { peer.allowed_ips.join(", ") };
    let _ = writeln!(out, "  allowed ips: {allowed}");
    if let Some(age) = peer.handshake_age(now) {
        let _ = writeln!(out, "  latest handshake: {}", ago(age.as_secs()));
    }
    if peer.rx_bytes != 0 || peer.tx_bytes != 0 {
        let _ = writeln!(out, "  transfer: {} received, {} sent", bytes(peer.rx_bytes), bytes(peer.tx_bytes));
    }
    if let Some(rates) = rates {
        let (rx, tx) = (bytes(rates.rx_bytes as u64), bytes(rates.tx_bytes as u64));
        let _ = writeln!(out, "  rate: {rx}/s received, {tx}/s sent");
    }
    if let Some(seconds) = peer.persistent_keepalive {
        let _ = writeln!(out, "  persistent keepalive: every {}", duration(u64::from(seconds)));
    }
    if let Some(suite) = &peer.suite {
        let _ = writeln!(out, "  cipher: {suite}");
    }
    let _ = writeln!(out, "  worker: {}", peer.worker);
}

/// `1 minute ago`, from seconds.
pub fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", duration(seconds)) }
}

/// `1 hour, 2 minutes, 3 seconds`.
pub fn duration(seconds: u64) -> String {
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
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let power = (count.ilog2() / 10).min(4);
    let unit = units.get(power as usize - 1).copied().unwrap_or_default();
    // Two decimals do not need more than the 53 bits of a double.
    format!("{:.2} {unit}", count as f64 / (1u64 << (10 * power)) as f64)
}
