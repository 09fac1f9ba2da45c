//! What a gateway changes in the host around it, and how it takes it back: nftables rules, forwarding, and a look at
//! the firewalls of others.
//!
//! 1. [`HostRules::apply`]: what a gateway left that was killed is undone ([`clean_leftovers`]); then the rules in one
//!    transaction, then forwarding; each change is recorded before it is made
//! 2. [`Applied::follow_routes`]: other interfaces may have to forward now; [`Applied::listen_on`]: another port;
//!    [`Applied::change`]: other clients, services and so on
//! 3. [`foreign::look`]: who else would drop the clients' packets, and what to tell him
//! 4. [`Applied::undo`]: forwarding as it was, unless another gateway needs it; the rules go
//!
//! Steps 1 and 3 run programs and need root. 2 and 4 need CAP_NET_ADMIN, a writable `/proc/sys`, and no program.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::net::name::InterfaceName;
use crate::net::nft::{self, NftError};
use crate::sys::interface;
use crate::types::Prefix;

pub mod foreign;
mod forwarding;
mod record;
pub mod reverse;
mod table;

use forwarding::Forwarding;
pub use forwarding::advertised;
use record::Records;
use table::Tables;

/// What the host is to do for one gateway. Its TUN device must be there.
#[derive(Clone, Debug)]
pub struct HostRules {
    /// The TUN device.
    pub interface: InterfaceName,
    /// UDP port of the outer sockets at the start; not 0.
    pub listen_port: u16,
    /// Inner addresses of clients: what is masqueraded, and which families are forwarded.
    pub clients: Vec<Prefix>,
    /// Addresses under which clients know this gateway beside the host's own, such as that of a NAT before it.
    pub outer: Vec<IpAddr>,
    /// Hide clients behind the address of the interface by which they leave.
    pub masquerade: bool,
    /// Let clients reach each other.
    pub client_to_client: bool,
    /// What clients may use on the host itself, beside ICMP.
    pub services: Vec<Service>,
    /// Between which interfaces the kernel is to forward.
    pub forward: Forward,
}

/// A port, or a range of ports, of the host that clients may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// TCP or UDP.
    pub transport: Transport,
    /// First port; 1 to `last`.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Transport {
    /// As IP headers have it.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// As nft and iptables call it.
impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Between which interfaces packets are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Nothing is changed.
    Off,
    /// The tunnel, and each interface over which the main table has a route.
    Routed,
    /// The tunnel, and these; nothing passes between the tunnel and any other. Each is one that [`can_name`] takes.
    To(Vec<InterfaceName>),
}

/// Whether a rule can name this interface, and no other by it: nft reads a `*` as a pattern, and knows no quote within
/// quotes.
#[must_use]
pub fn can_name(interface: &InterfaceName) -> bool {
    !interface.as_str().contains(['"', '*', '\\'])
}

/// Why the host cannot be made to do what a gateway needs.
#[derive(Debug, thiserror::Error)]
pub enum MannersError {
    /// No such device in this network namespace.
    #[error("there is no interface {0} to make rules for")]
    NoInterface(InterfaceName),
    /// Another process holds the record.
    #[error(
        "another gateway with the interface {0} runs on this host, or in another of its network namespaces"
    )]
    Running(InterfaceName),
    /// nftables cannot be used or refused.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A parameter must be changed and cannot be.
    #[error(
        "{parameter} is {value} and must be {wanted}, and cannot be set here ({refusal}): set it from outside before \
         the start, by `sysctl -w {general}=1` or for a container by `--sysctl {general}=1`"
    )]
    Sysctl {
        /// As sysctl(8) has it.
        parameter: String,
        /// The present value.
        value: String,
        /// What is needed.
        wanted: String,
        /// What has the same effect if it is set before there is the interface.
        general: &'static str,
        /// What the kernel said.
        refusal: io::Error,
    },
    /// The record cannot be kept.
    #[error("{0}: {1}")]
    Record(String, io::Error),
    /// A file of /proc cannot be read.
    #[error("reading {0}: {1}")]
    Proc(String, io::Error),
}

/// The rules in force. Taken back when this is dropped.
#[derive(Debug)]
pub struct Applied {
    rules: HostRules,
    /// The tunnel's index.
    tunnel: u32,
    forwarding: Forwarding,
    tables: Tables,
}

/// Undoes what gateways of this network namespace left that ended without doing so. Returns their interfaces. `run` is
/// `/run/ringway`, with a directory per interface; it is made if it is not there.
///
/// # Errors
/// A record, a parameter or the table that cannot be accessed.
pub fn clean_leftovers(run: &Path) -> Result<Vec<String>, MannersError> {
    let records = Records::open(run)?;
    // In this order: an abandoned record that we have locked would look like that of a gateway that runs.
    let needed = records.needed_by_others(None)?;
    let abandoned = records.abandoned()?;
    let tables = Tables::open()?;
    for (interface, record) in &abandoned {
        forwarding::restore(record.changes(), &needed);
        tables.delete(&table::table_name(interface))?;
    }
    let names = abandoned.iter().map(|(interface, _)| interface.clone()).collect();
    abandoned.iter().for_each(|(_, record)| record.close());
    Ok(names)
}

impl HostRules {
    /// Puts the rules in force and switches forwarding on. `run` is `/run/ringway`, in which a directory for the
    /// interface is made if there is none. On an error nothing is left changed.
    ///
    /// # Errors
    /// See [`MannersError`].
    pub fn apply(self, run: &Path) -> Result<Applied, MannersError> {
        let name = self.interface.as_str();
        let tunnel =
            interface::index_of(name).ok_or_else(|| MannersError::NoInterface(self.interface.clone()))?;
        for interface in clean_leftovers(run)? {
            tracing::info!(interface, "undone what a gateway left that was killed");
        }
        let tables = Tables::open()?;
        let record = Records::open(run)?.begin(&self.interface)?;
        // Dropping it undoes what is done from here on.
        let mut applied =
            Applied { forwarding: Forwarding::new(record, run.to_owned()), tables, tunnel, rules: self };
        nft::load(&table::ruleset(&applied.rules, tunnel))?;
        applied.listen_on(applied.rules.listen_port)?;
        applied.follow_routes()?;
        Ok(applied)
    }
}

impl Applied {
    /// Routes of the host changed: clients may leave by other interfaces now, which are to forward as well. Reads
    /// the tables of routes.
    ///
    /// # Errors
    /// See [`MannersError`].
    pub fn follow_routes(&mut self) -> Result<(), MannersError> {
        self.forwarding.follow(&self.rules)
    }

    /// The gateway listens on another port from now on: the rules name that one. On an error they stay as they are.
    ///
    /// # Errors
    /// [`MannersError::Nft`], as when somebody has taken the table away.
    pub fn listen_on(&self, port: u16) -> Result<(), MannersError> {
        let table = table::table_name(self.rules.interface.as_str());
        self.tables.listen_on(&table, self.rules.listen_port, port)
    }

    /// What clients may use on the host itself, beside ICMP.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.rules.services
    }

    /// Has `rules` in force in the place of those that are, without an interruption for what both allow. Interface,
    /// listen port ([`Self::listen_on`] follows it) and outer addresses stay; what forwards already does so until the
    /// end, or until nothing is to be forwarded.
    ///
    /// # Errors
    /// See [`MannersError`]; then the rules are as they were.
    pub fn change(&mut self, rules: HostRules) -> Result<(), MannersError> {
        let table = table::table_name(self.rules.interface.as_str());
        let HostRules { interface, listen_port, outer, .. } = self.rules.clone();
        let rules = HostRules { interface, listen_port, outer, ..rules };
        let (before, after) =
            (table::contents(&self.rules, self.tunnel), table::contents(&rules, self.tunnel));
        // Nobody's packets leave when what hides them is gone: forwarding ends before it, and begins after it.
        let changed = if rules.forward == Forward::Off { self.forwarding.follow(&rules) } else { Ok(()) };
        let changed = changed.and_then(|()| self.tables.exchange(&table, &before, &after)).and_then(|()| {
            let forwarded = self.forwarding.follow(&rules);
            forwarded.or_else(|error| self.tables.exchange(&table, &after, &before).and(Err(error)))
        });
        match changed {
            Ok(()) => self.rules = rules,
            Err(_) => self.forwarding.follow(&self.rules)?,
        }
        changed
    }

    /// Takes everything back: forwarding first, then the rules. Says what did not work in the log.
    pub fn undo(self) {
        drop(self);
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        self.forwarding.undo(self.rules.interface.as_str());
        if let Err(error) = self.tables.delete(&table::table_name(self.rules.interface.as_str())) {
            tracing::warn!(%error, "the nftables table stays; the next start removes it");
        }
    }
}

#[cfg(test)]
mod tests;
