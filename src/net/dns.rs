//! The host's resolver while a tunnel is up: which servers programs ask, and what was there before.
//!
//! Where resolv.conf(5) is systemd-resolved's, that is told by D-Bus, for the link alone; else resolvconf where there
//! is one; else the file is replaced. What is replaced is recorded first, in `/run/ringway/IF/dns`, so that whoever
//! comes after a killed process can put it back; nothing is put back over what somebody else has written since.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::net::name::InterfaceName;

mod file;
mod program;
mod resolved;

/// Most servers; resolvers ask the first three.
pub const MAX_SERVERS: usize = 8;
/// Most search domains.
pub const MAX_DOMAINS: usize = 32;

/// In the directory of an interface: what was replaced.
const RECORD: &str = "dns";
/// A directory that systemd-resolved's files are in.
const SYSTEMD: &str = "systemd";
/// Where it answers (systemd-resolved.service(8)).
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// What a tunnel wants of the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The tunnel.
    pub link: InterfaceName,
    /// Servers, the first one first; 1 to [`MAX_SERVERS`].
    pub servers: Vec<IpAddr>,
    /// Domains in which short names are looked up; at most [`MAX_DOMAINS`].
    pub search: Vec<String>,
    /// If there are any, the servers are asked for names below these and below [`Self::search`] only, and whoever was
    /// asked before for all others. Takes systemd-resolved. At most [`MAX_DOMAINS`].
    pub match_domains: Vec<String>,
}

/// Where a host keeps its resolver's settings.
#[derive(Clone, Debug)]
pub struct Host {
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// `/run/ringway`, with a directory per interface.
    pub run: PathBuf,
    /// resolvconf(8), if there is one.
    pub resolvconf: Option<PathBuf>,
    /// The socket of the system's D-Bus.
    pub bus: PathBuf,
}

/// Why the resolver is not as the tunnel wants it.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// None, or too many.
    #[error("a tunnel has 1 to {MAX_SERVERS} DNS servers, not {0}")]
    Servers(usize),
    /// Too many.
    #[error("a tunnel has at most {MAX_DOMAINS} domains of a kind, not {0}")]
    Domains(usize),
    /// No name of the DNS.
    #[error("{0:?} is no domain name: letters, digits, '-' and '_' between dots, 253 bytes at most")]
    Domain(String),
    /// systemd-resolved, which keeps the file, is not reached or refused.
    #[error("systemd-resolved, which answers for this host's programs, takes no servers: {0}")]
    Resolved(String),
    /// Only systemd-resolved asks different servers for different names.
    #[error(
        "to ask the tunnel's servers for ~{domain} only takes systemd-resolved, and it does not keep {file}: start it, \
         or name the domain without '~' and have all names asked in the tunnel"
    )]
    Split {
        /// One of them.
        domain: String,
        /// `/etc/resolv.conf`.
        file: String,
    },
    /// resolvconf refused.
    #[error("resolvconf: {0}")]
    Program(String),
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(String, io::Error),
}

/// Settings in force. They stay when this is dropped: [`Dns::undo`] ends them.
#[derive(Debug)]
#[must_use = "the settings stay until `undo`"]
pub struct Dns {
    host: Host,
    link: InterfaceName,
    ends_with_link: bool,
}

impl Host {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let places = ["/sbin/resolvconf", "/usr/sbin/resolvconf", "/usr/bin/resolvconf"].map(PathBuf::from);
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            run: "/run/ringway".into(),
            // systemd has a program of that name, a link to resolvectl.
            resolvconf: places.into_iter().find(|place| place.exists() && !leads_to(place, "resolvectl")),
            // Whoever is root must not be sent to another bus by an environment.
            bus: "/run/dbus/system_bus_socket".into(),
        }
    }

    /// Whether systemd-resolved is whom programs ask: by its file, also one that it has not written yet, or by its
    /// addresses.
    fn is_resolveds(&self) -> bool {
        let says =
            || fs::read_link(&self.resolv_conf).is_ok_and(|path| path.iter().any(|part| part == SYSTEMD));
        let asked = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            words.next() == Some("nameserver") && words.next().is_some_and(|server| STUBS.contains(&server))
        };
        let text = || file::read(&self.resolv_conf).ok().flatten().unwrap_or_default();
        leads_to(&self.resolv_conf, SYSTEMD) || says() || String::from_utf8_lossy(&text()).lines().any(asked)
    }

    fn record(&self, link: &InterfaceName) -> PathBuf {
        self.run.join(link.as_str()).join(RECORD)
    }
}

impl Dns {
    /// Has programs ask the tunnel's servers, and no others but for what [`Settings::match_domains`] leaves to them.
    /// What a killed process left for that tunnel is replaced, without a moment of the old servers in between. With
    /// systemd-resolved the link must be there.
    ///
    /// # Errors
    /// See [`DnsError`]; then nothing is changed.
    pub fn apply(host: &Host, settings: &Settings) -> Result<Self, DnsError> {
        check(settings)?;
        let ends_with_link = host.is_resolveds();
        if ends_with_link {
            resolved::set(&host.bus, settings)?;
        } else if let Some(domain) = settings.match_domains.first() {
            let (domain, file) = (domain.clone(), host.resolv_conf.display().to_string());
            return Err(DnsError::Split { domain, file });
        } else if let Some(program) = &host.resolvconf {
            program::add(program, settings)?;
        } else {
            file::replace(host, settings)?;
        }
        Ok(Self { host: host.clone(), link: settings.link.clone(), ends_with_link })
    }

    /// Whether the end of the link is the end of the settings, so that nobody need be kept who could undo them.
    #[must_use]
    pub fn ends_with_link(&self) -> bool {
        self.ends_with_link
    }

    /// Ends the settings.
    ///
    /// # Errors
    /// See [`DnsError`]; then [`undo_leftovers`] may do better later.
    pub fn undo(self) -> Result<(), DnsError> {
        undo_leftovers(&self.host, &self.link)
    }
}

/// What resolv.conf(5) says without a tunnel: of what a killed process left for that one, what was there before.
#[must_use]
pub fn before(host: &Host, link: &InterfaceName) -> String {
    file::before(host, link).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Ends the settings of a tunnel, whoever made them. None is as good.
///
/// # Errors
/// See [`DnsError`].
pub fn undo_leftovers(host: &Host, link: &InterfaceName) -> Result<(), DnsError> {
    let resolved = if host.is_resolveds() { resolved::revert(&host.bus, link) } else { Ok(()) };
    let program = host.resolvconf.as_ref().map_or(Ok(()), |program| program::delete(program, link));
    resolved.and(program).and(file::restore(host, link))
}

/// Whether the path leads by links through a file or directory of that name.
fn leads_to(path: &Path, name: &str) -> bool {
    fs::canonicalize(path).is_ok_and(|path| path.iter().any(|part| part == name))
}

fn check(settings: &Settings) -> Result<(), DnsError> {
    let Settings { servers, search, match_domains, .. } = settings;
    if servers.is_empty() || servers.len() > MAX_SERVERS {
        return Err(DnsError::Servers(servers.len()));
    }
    for domains in [search, match_domains] {
        if domains.len() > MAX_DOMAINS {
            return Err(DnsError::Domains(domains.len()));
        }
    }
    // They come from the gateway, and end in a file of lines.
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let domain = |domain: &&String| {
        domain.len() <= 253 && domain.strip_suffix('.').unwrap_or(domain).split('.').all(label)
    };
    let mut domains = search.iter().chain(match_domains);
    domains.find(|name| !domain(name)).map_or(Ok(()), |name| Err(DnsError::Domain(name.clone())))
}

/// What resolv.conf(5) and resolvconf(8) read.
fn lines(settings: &Settings) -> String {
    let mut text = String::new();
    for server in &settings.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !settings.search.is_empty() {
        text.push_str(&format!("search {}\n", settings.search.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests;
