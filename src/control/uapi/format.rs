//! The model and what the data plane knows, as answers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::control::dataplane::PeerStats;
use crate::control::device::{Device, Peer};
use crate::control::errno::Errno;
use crate::types::PeerId;

/// Most bytes of the lines about the device itself.
const DEVICE_BYTES: usize = 256;
/// Most bytes of the lines about one peer, its prefixes apart.
const PEER_BYTES: usize = 512;
/// Most bytes of one `allowed_ip` line.
const PREFIX_BYTES: usize = 56;

/// Appends `errno=N` and the empty line that ends an answer. Errors are negative, as wireguard-go writes and
/// `wg` reads them.
pub fn finish(out: &mut String, result: Result<(), Errno>) {
    let number = result.map_or_else(|errno| -errno.number(), |()| 0);
    put(out, format_args!("errno={number}\n\n"));
}

/// The answer to `get=1` without its end. It holds keys: its room is reserved at once, so that growing leaves no
/// copy behind.
#[must_use]
pub fn get(device: &Device, stats: &[PeerStats]) -> Zeroizing<String> {
    let peers = device.somebodys();
    let prefixes: usize = peers.iter().map(|peer| peer.prefixes().count()).sum();
    let room = DEVICE_BYTES + PEER_BYTES * peers.len() + PREFIX_BYTES * prefixes;
    let mut out = Zeroizing::new(String::with_capacity(room));
    if let Some(key) = device.private_key() {
        hex_line(&mut out, "private_key", &key.0);
    }
    if device.listen_port() != 0 {
        put(&mut out, format_args!("listen_port={}\n", device.listen_port()));
    }
    if device.fwmark().0 != 0 {
        put(&mut out, format_args!("fwmark={}\n", device.fwmark().0));
    }
    let stats = by_peer(stats);
    for peer in peers {
        peer_lines(&mut out, peer, stats.get(&peer.id()).copied());
    }
    out
}

fn peer_lines(out: &mut String, peer: &Peer, stats: Option<&PeerStats>) {
    hex_line(out, "public_key", &peer.public_key().0);
    hex_line(out, "preshared_key", peer.preshared_key().map_or(&[0; 32], |key| &key.0));
    out.push_str("protocol_version=1\n");
    if let Some(endpoint) = stats.and_then(|stats| stats.endpoint).or(peer.endpoint()) {
        put(out, format_args!("endpoint={endpoint}\n"));
    }
    let handshake = stats.and_then(|stats| stats.last_handshake).unwrap_or(Duration::ZERO);
    put(out, format_args!("last_handshake_time_sec={}\n", handshake.as_secs()));
    put(out, format_args!("last_handshake_time_nsec={}\n", handshake.subsec_nanos()));
    put(out, format_args!("tx_bytes={}\n", stats.map_or(0, |stats| stats.tx_bytes)));
    put(out, format_args!("rx_bytes={}\n", stats.map_or(0, |stats| stats.rx_bytes)));
    put(out, format_args!("persistent_keepalive_interval={}\n", peer.keepalive().unwrap_or(0)));
    for prefix in peer.prefixes() {
        put(out, format_args!("allowed_ip={prefix}\n"));
    }
}

fn by_peer(stats: &[PeerStats]) -> HashMap<PeerId, &PeerStats> {
    stats.iter().map(|stats| (stats.peer, stats)).collect()
}

fn hex_line(out: &mut String, key: &str, value: &[u8; 32]) {
    out.push_str(key);
    out.push('=');
    for byte in value {
        put(out, format_args!("{byte:02x}"));
    }
    out.push('\n');
}

/// Writing to a string does not fail.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

/// The answer to `show=json`: what `get=1` says except the secrets, and the data plane's report. What an older or newer
/// program leaves out is read as its default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Show {
    /// Base64; `None` without a private key.
    pub public_key: Option<String>,
    /// UDP port, 0 if not bound.
    pub listen_port: u16,
    /// Mark, 0 for none.
    pub fwmark: u32,
    /// In the order of making.
    pub peers: Vec<ShowPeer>,
    /// Workers, steering, offloads, drops, as [`crate::control::dataplane::DataPlane::report`] gives them.
    pub dataplane: serde_json::Value,
}

/// One peer of [`Show`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ShowPeer {
    /// Base64.
    pub public_key: String,
    /// What people call it; `None` for nothing.
    pub name: Option<String>,
    /// `file` or `store`: where a gateway has it from; `None` of a drop-in's.
    pub source: Option<String>,
    /// True if there is one; the key itself is not shown.
    pub preshared_key: bool,
    /// `a.b.c.d:port` or `[v6]:port`.
    pub endpoint: Option<String>,
    /// `prefix/length`.
    pub allowed_ips: Vec<String>,
    /// Seconds since the Unix epoch; `None` before the first.
    pub last_handshake: Option<u64>,
    /// Received from it, bytes.
    pub rx_bytes: u64,
    /// Sent to it, bytes.
    pub tx_bytes: u64,
    /// Seconds; `None` for off.
    pub persistent_keepalive: Option<u16>,
    /// What data to it is sealed with; `None` without a session.
    pub suite: Option<String>,
    /// The worker that owns it.
    pub worker: u16,
    /// It is a client's gateway, asked and without an answer for seconds.
    pub lost: bool,
}

impl ShowPeer {
    /// Time since the last handshake; `None` before the first, zero if the clock was set back.
    #[must_use]
    pub fn handshake_age(&self, now: SystemTime) -> Option<Duration> {
        let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.last_handshake?))?;
        Some(now.duration_since(then).unwrap_or_default())
    }
}

/// What `show=json` tells.
#[must_use]
pub fn show(device: &Device, stats: &[PeerStats], report: serde_json::Value) -> Show {
    let stats = by_peer(stats);
    Show {
        public_key: device.public_key().map(|key| key.to_base64()),
        listen_port: device.listen_port(),
        fwmark: device.fwmark().0,
        peers: device
            .somebodys()
            .into_iter()
            .map(|peer| show_peer(peer, stats.get(&peer.id()).copied()))
            .collect(),
        dataplane: report,
    }
}

fn show_peer(peer: &Peer, stats: Option<&PeerStats>) -> ShowPeer {
    let endpoint = stats.and_then(|stats| stats.endpoint).or(peer.endpoint());
    ShowPeer {
        public_key: peer.public_key().to_base64(),
        name: None,
        source: None,
        preshared_key: peer.preshared_key().is_some(),
        endpoint: endpoint.map(|endpoint| endpoint.to_string()),
        allowed_ips: peer.prefixes().map(|prefix| prefix.to_string()).collect(),
        last_handshake: stats.and_then(|stats| stats.last_handshake).map(|time| time.as_secs()),
        rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
        tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
        persistent_keepalive: peer.keepalive(),
        suite: stats.and_then(|stats| stats.suite).map(|suite| suite.to_string()),
        worker: peer.worker().0,
        lost: peer.is_lost(),
    }
}

#[cfg(test)]
mod tests;
