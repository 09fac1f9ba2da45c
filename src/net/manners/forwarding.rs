//! Forwarding, by interface where the kernel can.
//!
//! What counts is the interface by which a packet comes in: the tunnel for requests, the others for replies. IPv4 asks
//! `net.ipv4.conf.IF.forwarding` and nothing else, so `ip_forward` is left alone. IPv6 asks
//! `net.ipv6.conf.all.forwarding`, and since Linux 6.17 also `force_forwarding` of the interface, which changes nothing
//! else; before, the global switch makes every interface a router, which no longer listens to router advertisements
//! unless its `accept_ra` is 2.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::record::{Change, Record, Records, parameters};
use super::{Forward, HostRules, MannersError};
use crate::net::sysctl::{Family, Parameter};

/// `RTF_UP` and others of linux/route.h and linux/ipv6_route.h.
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;
const DEFAULT: u32 = 0x0001_0000;
const ADDRCONF: u32 = 0x0004_0000;
const ANYCAST: u32 = 0x0010_0000;
const LOCAL: u32 = 0x8000_0000;

/// What was switched on for one gateway.
#[derive(Debug)]
pub(super) struct Forwarding {
    record: Record,
    run: PathBuf,
    /// What was switched on for the tunnel itself. It ends with the tunnel, so no record is needed.
    tunnel: Vec<Change>,
}

/// A parameter that must have a value.
struct Wanted {
    parameter: Parameter,
    value: String,
    undo: Undo,
}

/// What is to be done about a parameter at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    /// It ends with the tunnel.
    Nothing,
    /// It gets its value back if it was changed.
    IfChanged,
    /// It gets its value back, since restoring another one changes it.
    Always,
}

impl Wanted {
    fn new(parameter: Parameter, value: &str, undo: Undo) -> Self {
        Self { parameter, value: value.to_owned(), undo }
    }
}

impl Forwarding {
    pub(super) fn new(record: Record, run: PathBuf) -> Self {
        Self { record, run, tunnel: Vec::new() }
    }

    /// Switches on what is not on yet; everything off if nothing is to be forwarded.
    pub(super) fn follow(&mut self, rules: &HostRules) -> Result<(), MannersError> {
        if rules.forward == Forward::Off {
            return self.stop(rules.interface.as_str());
        }
        let all = Records::open(&self.run)?;
        let others = all.needed_by_others(Some(rules.interface.as_str()))?;
        let mut wanted = Vec::new();
        if rules.clients.iter().any(|range| range.addr().is_ipv4()) {
            wanted_v4(rules, &mut wanted)?;
        }
        if rules.clients.iter().any(|range| range.addr().is_ipv6()) {
            let by_interface = read(&parameter(Family::V6, "all", "force_forwarding")?)?.is_some();
            wanted_v6(rules, by_interface, &others, &mut wanted)?;
        }
        self.switch(wanted, &others)
    }

    /// Restores what was found, and goes on.
    fn stop(&mut self, interface: &str) -> Result<(), MannersError> {
        if self.record.changes().is_empty() && self.tunnel.is_empty() {
            return Ok(());
        }
        let all = Records::open(&self.run)?;
        let needed = all.needed_by_others(Some(interface))?;
        // By the tunnel clients come in: first, so that none of their packets is half-way.
        restore(&self.tunnel, &[]);
        restore(self.record.changes(), &needed);
        self.tunnel.clear();
        all.empty(&mut self.record)
    }

    fn switch(&mut self, wanted: Vec<Wanted>, others: &[Change]) -> Result<(), MannersError> {
        let known = parameters(self.record.changes());
        let mut changes = Vec::new();
        let mut writes = Vec::new();
        for Wanted { parameter, value, undo } in wanted {
            let Some(now) = read(&parameter)? else { continue };
            let theirs = others.iter().find(|change| change.parameter == parameter);
            // On already: by another gateway, then the last of us switches it off; or by the host, which keeps it.
            let before = match theirs {
                Some(change) => Some(&change.before),
                None => (now != value || undo == Undo::Always).then_some(&now),
            };
            if !known.contains(&parameter)
                && let Some(before) = before
            {
                let (parameter, before, set) = (parameter.clone(), before.clone(), value.clone());
                // A gateway that had switched the tunnel on before us is told by our record that we need it.
                let own = undo == Undo::Nothing && theirs.is_none();
                let list = if own { &mut self.tunnel } else { &mut changes };
                list.push(Change { parameter, before, set });
            }
            if now != value {
                writes.push((parameter, now, value));
            }
        }
        self.record.add(changes)?;
        for (parameter, value, wanted) in writes {
            let general = match parameter.family() {
                Family::V4 => "net.ipv4.ip_forward",
                Family::V6 => "net.ipv6.conf.all.forwarding",
            };
            parameter.write(&wanted).map_err(|refusal| MannersError::Sysctl {
                parameter: parameter.to_string(),
                general,
                value,
                wanted,
                refusal,
            })?;
        }
        Ok(())
    }

    /// Restores what was found, but for what another gateway still needs.
    pub(super) fn undo(&self, interface: &str) {
        let needed = Records::open(&self.run).and_then(|all| {
            let needed = all.needed_by_others(Some(interface))?;
            Ok((all, needed))
        });
        match needed {
            Ok((_all, needed)) => {
                restore(self.record.changes(), &needed);
                self.record.close();
            }
            Err(error) => tracing::warn!(%error, "forwarding stays as it is; the next start restores it"),
        }
    }
}

/// Puts back what was found where nobody has changed it since and nobody in `needed` wants it so. The last change goes
/// first: a global switch changes the interfaces', which follow.
pub(super) fn restore(changes: &[Change], needed: &[Change]) {
    let needed = parameters(needed);
    let ours = |change: &&Change| {
        let now = change.parameter.read().ok().flatten();
        !needed.contains(&change.parameter) && now.as_ref() == Some(&change.set)
    };
    let ours: Vec<&Change> = changes.iter().filter(ours).collect();
    for change in ours.into_iter().rev() {
        if let Err(error) = change.parameter.write(&change.before) {
            tracing::warn!(%error, parameter = %change.parameter, value = change.before, "cannot be restored");
        }
    }
}

fn wanted_v4(rules: &HostRules, wanted: &mut Vec<Wanted>) -> Result<(), MannersError> {
    let tunnel = rules.interface.as_str();
    let routed = match &rules.forward {
        Forward::To(names) => names.iter().map(|name| name.as_str().to_owned()).collect(),
        Forward::Routed | Forward::Off => routed_v4(&proc_net("route")?),
    };
    for (interface, undo) in with_tunnel(tunnel, routed) {
        wanted.push(Wanted::new(parameter(Family::V4, &interface, "forwarding")?, "1", undo));
    }
    Ok(())
}

fn wanted_v6(
    rules: &HostRules,
    by_interface: bool,
    others: &[Change],
    wanted: &mut Vec<Wanted>,
) -> Result<(), MannersError> {
    let global = parameter(Family::V6, "all", "forwarding")?;
    let on = read(&global)?.as_deref() == Some("1");
    let routes = proc_net("ipv6_route")?;
    if !by_interface {
        return wanted_v6_globally(global, on, &routes, others, wanted);
    }
    if on {
        return Ok(());
    }
    let routed = match &rules.forward {
        Forward::To(names) => names.iter().map(|name| name.as_str().to_owned()).collect(),
        Forward::Routed | Forward::Off => routed_v6(&routes),
    };
    for (interface, undo) in with_tunnel(rules.interface.as_str(), routed) {
        wanted.push(Wanted::new(parameter(Family::V6, &interface, "force_forwarding")?, "1", undo));
    }
    Ok(())
}

/// Before Linux 6.17. The order is that of the changes; they are undone in the opposite one.
fn wanted_v6_globally(
    global: Parameter,
    on: bool,
    routes: &str,
    others: &[Change],
    wanted: &mut Vec<Wanted>,
) -> Result<(), MannersError> {
    if on {
        // By another gateway: whoever ends last needs to know what the first one found.
        let theirs = others.iter().filter(|change| change.parameter.family() == Family::V6);
        wanted.extend(theirs.map(|c| Wanted::new(c.parameter.clone(), &c.set, Undo::IfChanged)));
        return Ok(());
    }
    for interface in advertised(routes) {
        let accept = parameter(Family::V6, &interface, "accept_ra")?;
        // 0 is somebody who minds the advertisements himself.
        if read(&accept)?.is_some_and(|value| value != "0") {
            wanted.push(Wanted::new(accept, "2", Undo::IfChanged));
        }
    }
    // The global switch sets all of them, both ways.
    for interface in Parameter::interfaces(Family::V6) {
        let own = parameter(Family::V6, &interface, "forwarding")?;
        if interface != "all" && read(&own)?.as_deref() == Some("1") {
            wanted.push(Wanted::new(own, "1", Undo::Always));
        }
    }
    wanted.push(Wanted::new(global, "1", Undo::IfChanged));
    Ok(())
}

/// The tunnel, whose parameters need no record since they end with it, and the others.
fn with_tunnel(tunnel: &str, mut others: BTreeSet<String>) -> Vec<(String, Undo)> {
    others.remove(tunnel);
    let others = others.into_iter().map(|name| (name, Undo::IfChanged));
    [(tunnel.to_owned(), Undo::Nothing)].into_iter().chain(others).collect()
}

/// The interfaces of `/proc/net/route`: the name is the first column, flags are the fourth.
fn routed_v4(table: &str) -> BTreeSet<String> {
    let interface = |line: &str| {
        let mut columns = line.split_whitespace();
        let name = columns.next()?;
        let flags = u32::from_str_radix(columns.nth(2)?, 16).ok()?;
        (flags & UP != 0 && flags & REJECT == 0 && name != "lo").then(|| name.to_owned())
    };
    table.lines().skip(1).filter_map(interface).collect()
}

/// The routes of `/proc/net/ipv6_route` that lead anywhere: destination, flags, name.
fn routes_v6(table: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, .., flags, name] = columns[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let leads = flags & UP != 0 && flags & (REJECT | LOCAL | ANYCAST) == 0 && name != "lo";
        leads.then_some((destination, flags, name))
    })
}

/// The interfaces with a route beyond their own link.
fn routed_v6(table: &str) -> BTreeSet<String> {
    let local = |destination: &str| ["fe8", "ff"].iter().any(|begin| destination.starts_with(begin));
    let beyond = routes_v6(table).filter(|(destination, ..)| !local(destination));
    beyond.map(|(_, _, name)| name.to_owned()).collect()
}

/// The interfaces whose default route a router advertised; `table` is `/proc/net/ipv6_route`.
#[must_use]
pub fn advertised(table: &str) -> BTreeSet<String> {
    let by_router = |flags: u32| flags & (DEFAULT | ADDRCONF) == DEFAULT | ADDRCONF;
    routes_v6(table).filter(|(_, flags, _)| by_router(*flags)).map(|(_, _, name)| name.to_owned()).collect()
}

/// A table of this thread's namespace; empty where the kernel has none, as without IPv6.
fn proc_net(name: &str) -> Result<String, MannersError> {
    let path = format!("/proc/thread-self/net/{name}");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|error| MannersError::Proc(path, error)),
    }
}

pub(super) fn parameter(family: Family, interface: &str, key: &str) -> Result<Parameter, MannersError> {
    let refused = || MannersError::Proc(interface.to_owned(), std::io::ErrorKind::InvalidInput.into());
    Parameter::of(family, interface, key).ok_or_else(refused)
}

pub(super) fn read(parameter: &Parameter) -> Result<Option<String>, MannersError> {
    parameter.read().map_err(|error| MannersError::Proc(parameter.to_string(), error))
}

#[cfg(test)]
mod tests;
