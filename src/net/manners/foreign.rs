//! Chains of others that would drop what clients send or get: Docker's, firewalld's, ufw's, or a host's own.
//!
//! In nftables a packet must pass every chain of its hook, so an accept of ours saves nobody from another's drop. Each
//! foreign chain at the forward and the input hook is followed for every packet that a gateway depends on (`follow`).

use std::fmt;
use std::fs;
use std::io;
use std::process::Command;

use super::{MannersError, Service, Transport};
use crate::net::nft::{self, NftError};

mod follow;

/// What a gateway depends on.
#[derive(Clone, Debug)]
pub struct Needs<'a> {
    /// The TUN device.
    pub interface: &'a str,
    /// Clients are forwarded.
    pub forward: bool,
    /// The UDP port of the outer sockets, if it is known.
    pub listen_port: Option<u16>,
    /// What clients may use on the host itself.
    pub services: &'a [Service],
}

/// What others do to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The chains that drop what is needed.
    pub drops: Vec<ForeignDrop>,
    /// Rules that could not be read, and why, in a sentence.
    pub unread: Option<String>,
}

/// A chain of somebody else that drops what a gateway depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDrop {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// The chain at the hook.
    pub chain: String,
    /// Who wrote it, as far as its names tell.
    pub manager: Manager,
    /// What it drops, of one hook: something at least.
    pub dropped: Vec<Dropped>,
    interface: String,
}

/// Packets that somebody drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// What clients send to be forwarded.
    FromClients,
    /// What is forwarded to clients.
    ToClients,
    /// Datagrams to the listen port.
    Tunnel(u16),
    /// What clients send to a service of the host.
    Service(Service),
}

/// Whose rules they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Docker: it has a chain for rules of others.
    Docker,
    /// firewalld.
    Firewalld,
    /// ufw.
    Ufw,
    /// iptables, through nftables.
    Iptables,
    /// iptables of old, which nft does not see.
    IptablesLegacy,
    /// nftables.
    Nftables,
}

impl Needs<'_> {
    /// All that could be dropped.
    fn all(&self) -> Vec<Dropped> {
        let forwarded: &[_] = if self.forward { &[Dropped::FromClients, Dropped::ToClients] } else { &[] };
        let services = self.services.iter().copied().map(Dropped::Service);
        forwarded.iter().copied().chain(self.listen_port.map(Dropped::Tunnel)).chain(services).collect()
    }
}

impl Dropped {
    /// Whether it is dropped on its way through the host, and not into it.
    fn is_forwarded(self) -> bool {
        matches!(self, Self::FromClients | Self::ToClients)
    }
}

impl ForeignDrop {
    /// The commands that let the packets pass.
    #[must_use]
    pub fn remedy(&self) -> Vec<String> {
        let mut commands: Vec<String> = self.dropped.iter().map(|dropped| self.command(*dropped)).collect();
        // firewalld's is the same for much of it.
        commands.dedup();
        commands
    }

    fn command(&self, dropped: Dropped) -> String {
        let Self { family, table, chain, interface, manager, .. } = self;
        let iptables = if family == "ip6" { "ip6tables" } else { "iptables" };
        let legacy = if *manager == Manager::IptablesLegacy { "-legacy" } else { "" };
        match (manager, dropped) {
            (Manager::Firewalld, Dropped::Tunnel(port)) => {
                format!("firewall-cmd --permanent --add-port={port}/udp")
            }
            (Manager::Firewalld, _) => {
                format!("firewall-cmd --permanent --zone=trusted --add-interface={interface}")
            }
            (Manager::Ufw, Dropped::FromClients) => format!("ufw route allow in on {interface}"),
            (Manager::Ufw, Dropped::ToClients) => format!("ufw route allow out on {interface}"),
            (Manager::Ufw, Dropped::Tunnel(port)) => format!("ufw allow {port}/udp"),
            (Manager::Ufw, Dropped::Service(Service { transport, first, last })) => {
                let ports = range(first, last, ':');
                format!("ufw allow in on {interface} to any port {ports} proto {transport}")
            }
            (Manager::Nftables, _) => {
                let which = match dropped {
                    Dropped::FromClients => format!("iifname '\"{interface}\"'"),
                    Dropped::ToClients => format!("oifname '\"{interface}\"'"),
                    Dropped::Tunnel(port) => format!("udp dport {port}"),
                    Dropped::Service(Service { transport, first, last }) => {
                        format!("iifname '\"{interface}\"' {transport} dport {}", range(first, last, '-'))
                    }
                };
                format!("nft insert rule {family} {table} {chain} {which} accept")
            }
            (Manager::Docker | Manager::Iptables | Manager::IptablesLegacy, _) => {
                let docker = *manager == Manager::Docker && dropped.is_forwarded();
                let chain = if docker { "DOCKER-USER" } else { chain };
                format!("{iptables}{legacy} -I {chain} {} -j ACCEPT", iptables_match(dropped, interface))
            }
        }
    }
}

/// What iptables calls these packets.
fn iptables_match(dropped: Dropped, interface: &str) -> String {
    match dropped {
        Dropped::FromClients => format!("-i {interface}"),
        Dropped::ToClients => format!("-o {interface}"),
        Dropped::Tunnel(port) => format!("-p udp --dport {port}"),
        Dropped::Service(Service { transport, first, last }) => {
            format!("-i {interface} -p {transport} --dport {}", range(first, last, ':'))
        }
    }
}

fn range(first: u16, last: u16, between: char) -> String {
    if first == last { first.to_string() } else { format!("{first}{between}{last}") }
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, manager, dropped, .. } = self;
        let hook = if dropped.iter().any(|dropped| dropped.is_forwarded()) { "forward" } else { "input" };
        write!(f, "the {hook} chain {family} {table} {chain} ({manager}) drops ")?;
        if dropped[..] == [Dropped::FromClients, Dropped::ToClients] {
            f.write_str("packets from and to clients")?;
        } else {
            let what: Vec<String> = dropped.iter().map(ToString::to_string).collect();
            f.write_str(&what.join(", "))?;
        }
        write!(f, "; to let them pass: {}", self.remedy().join("; "))
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromClients => f.write_str("packets from clients"),
            Self::ToClients => f.write_str("packets to clients"),
            Self::Tunnel(port) => write!(f, "datagrams to the listen port {port}"),
            Self::Service(Service { transport, first, last }) => {
                write!(f, "clients' packets to the service {transport} {}", range(*first, *last, '-'))
            }
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "Docker",
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Iptables => "iptables",
            Self::IptablesLegacy => "legacy iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// Reads the host's rules and finds the chains that drop what is needed. Runs nft, and the legacy iptables where the
/// kernel holds tables of theirs; needs root, and for the latter CAP_NET_RAW.
///
/// # Errors
/// Those of nft. Legacy rules that cannot be read are no error, but said in [`Found::unread`].
pub fn look(needs: &Needs<'_>) -> Result<Found, MannersError> {
    let said = nft::run(&["-j", "list", "ruleset"], "")?;
    let ruleset = serde_json::from_slice(&said)
        .map_err(|error| NftError::Refused(format!("cannot read `nft -j list ruleset`: {error}")))?;
    let mut found = Found { drops: follow::in_ruleset(&ruleset, needs), unread: None };
    for (family, names, program) in [
        ("ip", "/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
        ("ip6", "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        let rules = match fs::read_to_string(names) {
            // Without such tables the program would load them.
            Ok(names) if !names.lines().any(|name| name == "filter") => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(_) => rules_of(program),
            Err(error) => Err(error.to_string()),
        };
        match rules {
            Ok(rules) => found.drops.extend(legacy(family, &rules, needs)),
            Err(why) => {
                let unread =
                    || format!("the rules of legacy iptables cannot be read ({why}): see `{program} -S`");
                found.unread.get_or_insert_with(unread);
            }
        }
    }
    Ok(found)
}

/// What a legacy program prints, or why it does not.
fn rules_of(program: &str) -> Result<String, String> {
    match Command::new(program).arg("-S").output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(said.lines().next().unwrap_or("it failed and did not say why").trim().to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The legacy chains whose policy is to drop, and in which no rule for just these packets accepts them.
fn legacy(family: &str, rules: &str, needs: &Needs<'_>) -> Vec<ForeignDrop> {
    let accepts = |chain: &str, dropped: Dropped| {
        // `-S` names the module of a port's match.
        let port =
            |text: String| text.replacen(" --dport", &format!(" -m {} --dport", transport(dropped)), 1);
        let all = format!("-A {chain} {} -j ACCEPT", port(iptables_match(dropped, needs.interface)));
        let interface = format!("-A {chain} -i {} -j ACCEPT", needs.interface);
        let whole = matches!(dropped, Dropped::Service(_));
        rules.lines().any(|line| line == all || whole && line == interface)
    };
    let chains = [("FORWARD", true), ("INPUT", false)].into_iter().filter_map(|(chain, forwarded)| {
        if !rules.lines().any(|line| line == format!("-P {chain} DROP")) {
            return None;
        }
        let mut dropped = needs.all();
        dropped.retain(|dropped| dropped.is_forwarded() == forwarded && !accepts(chain, *dropped));
        (!dropped.is_empty()).then(|| ForeignDrop {
            family: family.to_owned(),
            table: "filter".to_owned(),
            chain: chain.to_owned(),
            manager: Manager::IptablesLegacy,
            dropped,
            interface: needs.interface.to_owned(),
        })
    });
    chains.collect()
}

/// The protocol of what comes in at a port.
fn transport(dropped: Dropped) -> Transport {
    match dropped {
        Dropped::Service(service) => service.transport,
        _ => Transport::Udp,
    }
}

#[cfg(test)]
mod tests;
