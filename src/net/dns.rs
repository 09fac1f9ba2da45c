//! The host's resolver while a tunnel is up: which servers programs ask, and what was there before.
//!
//! Where there is resolvconf it is told; else resolv.conf(5) is replaced. What is replaced is recorded first, in
//! `/run/ringway/IF/dns`, so that whoever comes after a killed process can put it back; nothing is put back over what
//! somebody else has written since. Where systemd-resolved rules, neither is done: see [`DnsError::Resolved`].

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::net::name::InterfaceName;

mod file;
mod program;

/// Most servers; resolvers ask the first three.
pub const MAX_SERVERS: usize = 8;
/// Most search domains.
pub const MAX_DOMAINS: usize = 32;

/// What a tunnel wants of the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The tunnel.
    pub link: InterfaceName,
    /// Servers, the first one first; 1 to [`MAX_SERVERS`].
    pub servers: Vec<IpAddr>,
    /// Domains in which short names are looked up; at most [`MAX_DOMAINS`].
    pub search: Vec<String>,
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
}

/// Why the resolver is not as the tunnel wants it.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// None, or too many.
    #[error("a tunnel has 1 to {MAX_SERVERS} DNS servers, not {0}")]
    Servers(usize),
    /// Too many.
    #[error("a tunnel has at most {MAX_DOMAINS} search domains, not {0}")]
    Domains(usize),
    /// No name of the DNS.
    #[error("{0:?} is no domain name: letters, digits, '-' and '_' between dots, 253 bytes at most")]
    Domain(String),
    /// The file is systemd-resolved's.
    #[error(
        "{0} is kept by systemd-resolved: give the tunnel its servers by `resolvectl dns`, or leave DNS out of the \
         profile"
    )]
    Resolved(String),
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
        }
    }

    fn record(&self, link: &InterfaceName) -> PathBuf {
        self.run.join(link.as_str()).join("dns")
    }
}

impl Dns {
    /// Has programs ask the tunnel's servers, and no others. What a killed process left for that tunnel is replaced,
    /// without a moment of the old servers in between.
    ///
    /// # Errors
    /// See [`DnsError`]; then nothing is changed.
    pub fn apply(host: &Host, settings: &Settings) -> Result<Self, DnsError> {
        check(settings)?;
        match &host.resolvconf {
            Some(program) => program::add(program, settings)?,
            None => {
                if leads_to(&host.resolv_conf, "systemd") {
                    return Err(DnsError::Resolved(host.resolv_conf.display().to_string()));
                }
                file::replace(host, settings)?;
            }
        }
        Ok(Self { host: host.clone(), link: settings.link.clone() })
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
    if let Some(program) = &host.resolvconf {
        program::delete(program, link)?;
    }
    file::restore(host, link)
}

/// Whether the path leads by links through a file or directory of that name.
fn leads_to(path: &Path, name: &str) -> bool {
    fs::canonicalize(path).is_ok_and(|path| path.iter().any(|part| part == name))
}

fn check(settings: &Settings) -> Result<(), DnsError> {
    let Settings { servers, search, .. } = settings;
    if servers.is_empty() || servers.len() > MAX_SERVERS {
        return Err(DnsError::Servers(servers.len()));
    }
    if search.len() > MAX_DOMAINS {
        return Err(DnsError::Domains(search.len()));
    }
    // They come from the gateway, and end in a file of lines.
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let domain = |domain: &&String| {
        domain.len() <= 253 && domain.strip_suffix('.').unwrap_or(domain).split('.').all(label)
    };
    search.iter().find(|name| !domain(name)).map_or(Ok(()), |name| Err(DnsError::Domain(name.clone())))
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
