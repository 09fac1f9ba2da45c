//! The gateway's file: every key with its default, checked as a whole before anything is done.
//!
//! 1. [`load`] reads the text; serde and `value` make a [`Gateway`] of it, or refuse it by line
//! 2. `check` looks at what no single key can tell: what is said twice, and what does not fit together
//! 3. [`key`] looks at the files that keys are in
//!
//! `config/gateway.toml` explains every key; a test holds it against [`Gateway::default`].

mod check;
pub mod key;
mod locate;
mod value;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::dataplane::io::busy_poll::BUSY_POLL;
use crate::net::name::InterfaceName;
use crate::types::{Address, Mark, Offload, Prefix, PublicKey};

pub use value::{Aead, Aes, Io, Level, Listen, LogFormat, Workers};

/// Where the file is if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/ringway/gateway.toml";
/// Below it each interface has a directory for what must outlive the process, [`Gateway::state_dir`].
pub const STATE: &str = "/var/lib/ringway";
/// Below it each interface has a directory for what lives as long as the process, [`Gateway::run_dir`].
pub const RUN: &str = "/run/ringway";
/// Longest file, bytes: a million peers.
const MAX_FILE: u64 = 256 << 20;

/// One gateway: everything that its file says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// The TUN device's name.
    #[serde(deserialize_with = "value::text")]
    pub interface: InterfaceName,
    /// The gateway's own addresses inside the tunnel, with the length of their networks.
    #[serde(deserialize_with = "value::texts")]
    pub addresses: Vec<Address>,
    /// Bytes of inner IP packet, 576 to 65,440.
    #[serde(deserialize_with = "value::mtu")]
    pub mtu: u32,
    /// UDP port of the outer sockets; 0 for any.
    pub listen_port: u16,
    /// The static private key's file, made at the first start if it is missing; unless the file says otherwise it is
    /// below [`Self::state_dir`]. A systemd credential goes before it.
    #[serde(default = "PathBuf::new")]
    pub private_key_file: PathBuf,
    /// Mark of the outer sockets; 0 for none.
    #[serde(deserialize_with = "value::mark")]
    pub fwmark: Mark,
    /// How many workers.
    pub workers: Workers,
    /// The cores that workers are pinned to, in turn; empty for all that the process may use.
    pub cores: Vec<usize>,
    /// How long a worker polls awake after a quiet spell.
    #[serde(deserialize_with = "value::busy_poll")]
    pub busy_poll: Duration,
    /// What a worker waits and receives with.
    pub io: Io,
    /// What seals and opens packets.
    pub aead: Aead,
    /// Whether AES-256-GCM is used with peers that open it.
    pub aes: Aes,
    /// Packets that the device queues towards a worker (txqueuelen).
    #[serde(deserialize_with = "value::queue_length")]
    pub queue_length: u32,
    /// Whom to run as after everything is set up; empty: whoever started it.
    pub user: String,
    /// `[forwarding]`
    pub forwarding: Forwarding,
    /// `[services]`
    pub services: Services,
    /// `[offload]`
    pub offload: Offload,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[log]`
    pub log: Log,
    /// `[[peer]]`, in the order of the file.
    pub peer: Vec<Peer>,
}

/// What passes between the tunnel and the rest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forwarding {
    /// Packets pass between the tunnel and other interfaces.
    pub enabled: bool,
    /// The only ones that they pass to and come from; empty for every one with a route. Each name is one that
    /// [`manners::can_name`](crate::net::manners::can_name) takes, and none is the tunnel's.
    #[serde(deserialize_with = "value::texts")]
    pub interfaces: Vec<InterfaceName>,
    /// Clients that leave by another interface do so under the host's address.
    pub masquerade: bool,
    /// Clients reach each other.
    pub client_to_client: bool,
    /// TCP's maximum segment size is lowered to what the tunnel carries.
    pub mss_clamp: bool,
}

/// What clients may reach on the gateway's host itself, beside ICMP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Services {
    /// TCP ports.
    #[serde(deserialize_with = "value::ports")]
    pub tcp: Vec<NonZeroU16>,
    /// UDP ports.
    #[serde(deserialize_with = "value::ports")]
    pub udp: Vec<NonZeroU16>,
}

/// Where metrics are to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Address of the HTTP listener.
    pub listen: Listen,
    /// Traffic and handshakes of each peer, by its public key.
    pub per_peer: bool,
}

/// What is logged, to the standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least level that is written.
    pub level: Level,
    /// How a line looks.
    pub format: LogFormat,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// What people call it; empty for nothing.
    #[serde(default)]
    pub name: String,
    /// Its identity.
    #[serde(deserialize_with = "value::text")]
    pub public_key: PublicKey,
    /// The file of the key that both sides share beside the others.
    #[serde(default)]
    pub preshared_key_file: Option<PathBuf>,
    /// The addresses that are the peer's.
    #[serde(default, deserialize_with = "value::texts")]
    pub allowed_ips: Vec<Prefix>,
    /// Where the peer is, if it does not begin itself. Never an IPv4-mapped IPv6 address.
    #[serde(default, deserialize_with = "value::endpoint")]
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive, seconds; 0 for none.
    #[serde(default)]
    pub keepalive: u16,
}

impl Default for Gateway {
    fn default() -> Self {
        let interface = InterfaceName::default();
        Self {
            private_key_file: default_key_file(&interface),
            interface,
            addresses: Vec::new(),
            mtu: 1420,
            listen_port: 51820,
            fwmark: Mark::default(),
            workers: Workers::Auto,
            cores: Vec::new(),
            busy_poll: BUSY_POLL,
            io: Io::Auto,
            aead: Aead::Auto,
            aes: Aes::Auto,
            queue_length: 500,
            user: String::new(),
            forwarding: Forwarding::default(),
            services: Services::default(),
            offload: Offload::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            peer: Vec::new(),
        }
    }
}

impl Default for Forwarding {
    fn default() -> Self {
        Self {
            enabled: true,
            interfaces: Vec::new(),
            masquerade: true,
            client_to_client: false,
            mss_clamp: true,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: Listen::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 9586))), per_peer: false }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: LogFormat::Text }
    }
}

impl Gateway {
    /// What must outlive the process: the private key, timestamps.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE).join(self.interface.as_str())
    }

    /// What lives as long as the process: its lock, what it changed on the host.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(self.interface.as_str())
    }

    /// The file's text, checked alone: no file that it names is looked at. `path` is for messages.
    ///
    /// # Errors
    /// Everything that is wrong, each with its line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut error = ConfigError { path: path.to_owned(), findings: Vec::new() };
        let mut gateway: Self = match toml::from_str(text) {
            Ok(gateway) => gateway,
            Err(wrong) => {
                error.findings.push(Finding {
                    line: wrong.span().map(|span| locate::line_of(text, span.start)),
                    message: locate::in_one_line(wrong.message()),
                });
                return Err(error);
            }
        };
        if gateway.private_key_file.as_os_str().is_empty() {
            gateway.private_key_file = default_key_file(&gateway.interface);
        }
        error.findings = check::findings(&gateway, text);
        if error.findings.is_empty() { Ok(gateway) } else { Err(error) }
    }
}

/// The file and the key files that it names, read and checked.
///
/// # Errors
/// Everything that is wrong, each with its line.
pub fn load(path: &Path) -> Result<Gateway, ConfigError> {
    load_with(path, true)
}

/// As [`load`], for a gateway that runs: it has its private key, and may not be permitted to read that file any more.
///
/// # Errors
/// Everything that is wrong, each with its line.
pub fn load_again(path: &Path) -> Result<Gateway, ConfigError> {
    load_with(path, false)
}

fn load_with(path: &Path, private_key: bool) -> Result<Gateway, ConfigError> {
    let text = read(path).map_err(|message| ConfigError {
        path: path.to_owned(),
        findings: vec![Finding { line: None, message }],
    })?;
    let gateway = Gateway::parse(path, &text)?;
    let findings = check::file_findings(&gateway, &text, private_key);
    if findings.is_empty() { Ok(gateway) } else { Err(ConfigError { path: path.to_owned(), findings }) }
}

fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    match read.map_err(|error| format!("cannot be read: {error}"))? {
        length if length as u64 > MAX_FILE => Err(format!("has more than {MAX_FILE} bytes")),
        _ => Ok(text),
    }
}

fn default_key_file(interface: &InterfaceName) -> PathBuf {
    Path::new(STATE).join(interface.as_str()).join("private.key")
}

/// What is wrong with a configuration: a line each, `FILE:LINE: message`.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    path: PathBuf,
    findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Counted from 1.
    line: Option<usize>,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, finding) in self.findings.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:", self.path.display())?;
            if let Some(line) = finding.line {
                write!(f, "{line}:")?;
            }
            write!(f, " {}", finding.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
