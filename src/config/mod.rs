//! The gateway's file: every key with its default, checked as a whole before anything is done.
//!
//! 1. [`load`] reads the text; serde and `value` make a [`Gateway`] of it, or refuse it by line
//! 2. `check` looks at what no single key can tell: what is said twice, and what does not fit together
//! 3. [`key`] looks at the files that keys are in
//!
//! `config/gateway.toml` explains every key; a test holds it against [`Gateway::default`].

mod check;
mod clients;
mod implicit;
pub mod key;
mod locate;
pub mod profile;
mod value;
pub mod wg_quick;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::dataplane::io::busy_poll::BUSY_POLL;
use crate::lease::PoolSpec;
use crate::lease::ranges::{Range, Ranges};
use crate::net::name::InterfaceName;
use crate::types::{Address, Mark, Offload, Prefix, PublicKey};

pub use clients::{Clients, Domain, Host, Inclusion, MAX_NAMES};
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
    /// `[admin]`
    pub admin: Admin,
    /// `[store]`; without a path of the file's own it is the interface's.
    #[serde(default)]
    pub store: Store,
    /// `[clients]`
    pub clients: Clients,
    /// `[[pool]]`, in the order of the file.
    pub pool: Vec<Pool>,
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

/// Who may change peers while the gateway runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The group whose members may, beside root; empty for none.
    pub group: String,
}

/// What outlives the process and is no file of the operator's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The store's file, made at the first start that needs one; unless the file says otherwise it is below
    /// [`Gateway::state_dir`].
    pub path: PathBuf,
    /// Days for which it is kept who had an address, 0 to 3650; 0 for not at all.
    #[serde(deserialize_with = "value::days")]
    pub history: u32,
}

/// Addresses that clients are given for a time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// What people call it.
    pub name: String,
    /// Its addresses.
    #[serde(deserialize_with = "value::texts")]
    pub ipv4: Vec<Range>,
    /// Those that are not given to anybody.
    #[serde(default, deserialize_with = "value::texts")]
    pub exclude: Vec<Range>,
    /// The prefix of the IPv6 addresses, whose low 32 bits are the IPv4 address.
    #[serde(default, deserialize_with = "value::prefix")]
    pub ipv6: Option<Prefix>,
    /// Seconds that a lease lasts, 60 to 31,536,000.
    #[serde(default = "value::one_day", deserialize_with = "value::lease_time")]
    pub lease_time: u32,
    /// Seconds that an address rests after its lease, 0 to 604,800.
    #[serde(default = "value::five_minutes", deserialize_with = "value::quarantine")]
    pub quarantine: u32,
    /// Whom it is for; empty for everybody whose group no pool names.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Nobody new gets an address of it.
    #[serde(default)]
    pub drain: bool,
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
    /// Its group, by which pools are chosen; empty for none.
    #[serde(default)]
    pub group: String,
    /// The only pool that it gets addresses of; empty: those of its group.
    #[serde(default)]
    pub pool: String,
    /// Where the file says so, counted from 1.
    #[serde(skip)]
    pub line: usize,
}

impl Default for Gateway {
    fn default() -> Self {
        let interface = InterfaceName::default();
        Self {
            private_key_file: default_key_file(&interface),
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
            admin: Admin::default(),
            store: Store { path: default_store(&interface), ..Store::default() },
            interface,
            clients: Clients::default(),
            pool: Vec::new(),
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

impl Default for Store {
    /// Without a path, which depends on the interface.
    fn default() -> Self {
        Self { path: PathBuf::new(), history: 30 }
    }
}

impl Pool {
    /// The addresses that it gives.
    #[must_use]
    pub fn ranges(&self) -> Ranges {
        self.ipv4.iter().copied().collect::<Ranges>().minus(&self.exclude.iter().copied().collect())
    }

    /// The networks of its addresses.
    pub fn networks(&self) -> impl Iterator<Item = Prefix> {
        let ranges: Vec<_> = self.ranges().iter().collect();
        ranges.into_iter().flat_map(Range::prefixes).chain(self.ipv6)
    }

    /// As leases are given from it.
    #[must_use]
    pub fn spec(&self) -> PoolSpec {
        PoolSpec {
            name: self.name.clone(),
            ranges: self.ranges(),
            ipv6: self.ipv6,
            lease_time: self.lease_time,
            quarantine: self.quarantine,
            groups: self.groups.clone(),
            drain: self.drain,
        }
    }
}

impl fmt::Display for Pool {
    /// Everything of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ipv4, exclude, ipv6, lease_time, quarantine, groups, drain } = self;
        write!(f, "{name} {ipv4:?}")?;
        if !exclude.is_empty() {
            write!(f, " without {exclude:?}")?;
        }
        if let Some(ipv6) = ipv6 {
            write!(f, " {ipv6}")?;
        }
        write!(f, " for {lease_time} s, quarantine {quarantine} s")?;
        if !groups.is_empty() {
            write!(f, ", groups {groups:?}")?;
        }
        f.write_str(if *drain { ", drained" } else { "" })
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: LogFormat::Text }
    }
}

impl Gateway {
    /// What must outlive the process: the private key, the store.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE).join(self.interface.as_str())
    }

    /// The pools in force: the file's, or one of the gateway's own networks if the file names none.
    #[must_use]
    pub fn pools(&self) -> Vec<Pool> {
        if self.pool.is_empty() { implicit::pool(self).into_iter().collect() } else { self.pool.clone() }
    }

    /// What lives as long as the process: its lock, what it changed on the host, the admin socket.
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
        if gateway.store.path.as_os_str().is_empty() {
            gateway.store.path = default_store(&gateway.interface);
        }
        let map = locate::Map::new(text);
        for (peer, line) in gateway.peer.iter_mut().zip(map.lines("peer")) {
            peer.line = line;
        }
        error.findings = check::findings(&gateway, map);
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

fn default_store(interface: &InterfaceName) -> PathBuf {
    Path::new(STATE).join(interface.as_str()).join("store.db")
}

/// What is wrong with a configuration: a line each, `FILE:LINE: message`.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    path: PathBuf,
    findings: Vec<Finding>,
}

impl ConfigError {
    /// What else is wrong with a file that was read: a line, counted from 1, if it is known, and what is wrong there.
    #[must_use]
    pub fn new(path: &Path, wrong: Vec<(Option<usize>, String)>) -> Self {
        let findings = wrong.into_iter().map(|(line, message)| Finding { line, message });
        Self { path: path.to_owned(), findings: findings.collect() }
    }
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
