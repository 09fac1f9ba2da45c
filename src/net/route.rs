//! What a tunnel takes of this host's traffic: a table of its own, and the rules that lead there, over one netlink
//! socket (rtnetlink(7), ip-rule(8)).
//!
//! For each family, in this order:
//!
//! ```text
//! P    not from all fwmark MARK lookup main suppress_prefixlength SHORTEST    what the host's own routes say better
//! P+1  not from all fwmark MARK lookup TABLE                                  the tunnel
//! ```
//!
//! `SHORTEST` is the length of the shortest prefix that the tunnel takes: with a default route 0, as wg-quick(8) has
//! it. Whoever bears the mark passes by both: the tunnel's own datagrams and protected sockets, by their mark alone
//! and by no address, so that nobody gains anything by choosing an address (TunnelCrack). The table holds
//!
//! - each prefix that the tunnel takes, by the device; and once more as `unreachable` with the worst metric, so that
//!   nothing leaves by another way when the device is gone
//! - each excluded prefix as `throw`: the tables behind this one decide
//! - of a family that is blocked nothing but `unreachable`, beside link-local addresses; and it has no rule P
//!
//! Routes and rules bear [`ROUTE_PROTOCOL`]. Nothing is asked of the host's own rules, and nothing of them is changed.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder, RuleAddRequest};
use tokio::task::JoinHandle;

use crate::net::link::{Link, ROUTE_PROTOCOL, to_io};
use crate::net::sysctl::Family;
use crate::types::{Mark, Prefix};

/// Rules of the first tunnel stand here and at the next number; those of later ones before them.
const PRIORITY: u32 = 20_992;
/// The metric of what holds packets back when the device is gone: worse than anybody's.
const LAST: u32 = u32::MAX - 1;
/// The main table (rtnetlink(7)).
const MAIN: u32 = 254;
/// Neighbour discovery and DHCPv6 need it (RFC 4291 section 2.5.6), and it leads to this link only.
const LINK_LOCAL: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10);
/// Both.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A prefix that goes into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where to.
    pub prefix: Prefix,
    /// The next hop behind the device, of the same family.
    pub via: Option<IpAddr>,
}

/// What a tunnel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The device's index. It must be up.
    pub device: u32,
    /// A table that nobody else uses: see [`table_of`].
    pub table: u32,
    /// Who passes by.
    pub mark: Mark,
    /// What goes into the tunnel.
    pub routes: Vec<Route>,
    /// What of it does not.
    pub excluded: Vec<Prefix>,
    /// Of these families nothing leaves this host.
    pub blocked: Vec<Family>,
}

/// The table of a tunnel of this name: above those that people number by hand, and the same each time, so that whoever
/// comes after a killed process finds it.
#[must_use]
pub fn table_of(name: &str) -> u32 {
    // FNV-1a, folded to 24 bits.
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u32::from(ROUTE_PROTOCOL) << 24 | (hash >> 24 ^ hash) & 0x00ff_ffff
}

/// A netlink socket for links, routes and rules of the namespace in which it was opened.
#[derive(Debug)]
pub struct Router {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Router {
    /// Opens the socket; needs a tokio runtime.
    ///
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The link of this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Link {
        Link::over(self.handle.clone(), index)
    }

    /// Makes the table, then the rules that lead there.
    ///
    /// # Errors
    /// What the kernel says, and to what; what was made is taken back.
    pub async fn take(&self, taken: &Taken) -> Result<(), RouteError> {
        let made = self.make(taken).await;
        if made.is_err()
            && let Err(error) = self.give_back(taken.table).await
        {
            tracing::warn!(%error, table = taken.table, "routes and rules stay behind");
        }
        made
    }

    /// Makes routes by the device in a table that somebody else's rules lead to; they go with the device.
    ///
    /// # Errors
    /// What the kernel says, and to what.
    pub async fn fill(&self, device: u32, table: u32, routes: &[Route]) -> Result<(), RouteError> {
        for Route { prefix, via } in routes {
            let made = route((device, table), (prefix.addr(), prefix.len()), RouteType::Unicast, *via);
            let added = self.handle.route().add(made).execute().await.map_err(to_io);
            added.map_err(|source| RouteError { what: format!("the route {prefix}"), source })?;
        }
        Ok(())
    }

    /// Has other routes in force in the place of these: what is new comes before what is old goes. Device, table, mark
    /// and blocked families must be the same.
    ///
    /// # Errors
    /// What the kernel says, and to what; then it is half done, and [`Self::give_back`] takes back all of it.
    pub async fn change(&self, old: &Taken, new: &Taken) -> Result<(), RouteError> {
        for family in FAMILIES.into_iter().filter(|family| !new.blocked.contains(family)) {
            self.replace(table(&less(new, old), family)).await?;
            match (shortest(old, family), shortest(new, family)) {
                (None, Some(_)) => self.make_rules(new, family).await?,
                (before, after) if before != after => self.change_rules(new, family, before, after).await?,
                _ => {}
            }
            self.remove(table(&less(old, new), family)).await?;
        }
        Ok(())
    }

    /// Makes routes again that went with the last address of IPv4.
    ///
    /// # Errors
    /// What the kernel says, and to what.
    pub async fn renew(&self, taken: &Taken) -> Result<(), RouteError> {
        self.replace(table(taken, Family::V4)).await
    }

    /// As [`Self::fill`], in the place of what that made.
    ///
    /// # Errors
    /// What the kernel says, and to what.
    pub async fn refill(
        &self,
        device: u32,
        table: u32,
        (old, new): (&[Route], &[Route]),
    ) -> Result<(), RouteError> {
        let made = |routes: &[Route], other: &[Route]| {
            let theirs: HashSet<_> = other.iter().collect();
            let each = routes.iter().filter(|route| !theirs.contains(route)).map(|Route { prefix, via }| {
                let made = route((device, table), (prefix.addr(), prefix.len()), RouteType::Unicast, *via);
                (format!("the route {prefix}"), made)
            });
            each.collect::<Vec<_>>()
        };
        self.replace(made(new, old)).await?;
        self.remove(made(old, new)).await
    }

    /// Makes routes, or puts them in the place of those for the same prefix.
    async fn replace(&self, routes: Vec<(String, RouteMessage)>) -> Result<(), RouteError> {
        for (what, route) in routes {
            let added = self.handle.route().add(route).replace().execute().await.map_err(to_io);
            added.map_err(|source| RouteError { what, source })?;
        }
        Ok(())
    }

    async fn remove(&self, routes: Vec<(String, RouteMessage)>) -> Result<(), RouteError> {
        for (what, route) in routes {
            match self.handle.route().del(route).execute().await.map_err(to_io) {
                // Another one is in its place, or it went with an address.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                gone => gone.map_err(|source| RouteError { what, source })?,
            }
        }
        Ok(())
    }

    /// The rules of a family that has some; they end without `after`.
    async fn change_rules(
        &self,
        new: &Taken,
        family: Family,
        before: Option<u8>,
        after: Option<u8>,
    ) -> Result<(), RouteError> {
        let failed = |source| RouteError { what: "the rules of the tunnel".to_owned(), source };
        let theirs = self.rules(family).await.map_err(failed)?;
        let of_table = |rule: &&RuleMessage| is_ours(rule) && table_of_rule(rule) == new.table;
        let Some(last) = theirs.iter().find(of_table).and_then(priority) else { return Ok(()) };
        let first = last.saturating_sub(1);
        let suppressed = before.map(|length| RuleAttribute::SuppressPrefixLen(length.into()));
        if let Some(length) = after {
            match self.main_rule(family, new.mark, first, length).execute().await.map_err(to_io) {
                // Half done before.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                added => added.map_err(failed)?,
            }
        }
        for rule in &theirs {
            let main = priority(rule) == Some(first)
                && suppressed.as_ref().is_some_and(|length| rule.attributes.contains(length));
            if is_ours(rule) && (main || after.is_none() && of_table(&rule)) {
                let gone = self.handle.rule().del(rule.clone()).execute().await;
                gone.map_err(to_io).map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn make(&self, taken: &Taken) -> Result<(), RouteError> {
        for family in FAMILIES {
            let routes = table(taken, family);
            if routes.is_empty() {
                continue;
            }
            for (what, route) in routes {
                let added = self.handle.route().add(route).execute().await.map_err(to_io);
                match added {
                    // A host without the family has nothing to be held back.
                    Err(error) if taken.blocked.contains(&family) && is_absent(&error) => return Ok(()),
                    added => added.map_err(|source| RouteError { what, source })?,
                }
            }
            self.make_rules(taken, family).await?;
        }
        Ok(())
    }

    async fn make_rules(&self, taken: &Taken, family: Family) -> Result<(), RouteError> {
        let failed = |source| RouteError { what: "the rules of the tunnel".to_owned(), source };
        let theirs = self.rules(family).await.map_err(failed)?;
        let first = theirs.iter().filter(|rule| is_ours(rule)).filter_map(priority).min();
        let first = first.unwrap_or(PRIORITY + 2).saturating_sub(2);
        // This one first: whoever cleans up finds the other by it.
        let tunnel = self.rule(family, taken.mark, taken.table, first + 1);
        tunnel.execute().await.map_err(to_io).map_err(failed)?;
        if taken.blocked.contains(&family) {
            return Ok(());
        }
        let main = self.main_rule(family, taken.mark, first, shortest(taken, family).unwrap_or(0));
        main.execute().await.map_err(to_io).map_err(failed)
    }

    /// The rule before the tunnel's.
    fn main_rule(&self, family: Family, mark: Mark, priority: u32, shortest: u8) -> RuleAddRequest {
        let mut main = self.rule(family, mark, MAIN, priority);
        main.message_mut().attributes.push(RuleAttribute::SuppressPrefixLen(shortest.into()));
        main
    }

    fn rule(&self, family: Family, mark: Mark, table: u32, priority: u32) -> RuleAddRequest {
        let mut request = self.handle.rule().add().table_id(table).priority(priority).fw_mark(mark.0);
        let message = request.message_mut();
        message.header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
        request
    }

    /// Takes back everything of ours that belongs to this table, the rules first. Returns how much there was.
    ///
    /// # Errors
    /// What the kernel says; as much as possible is gone.
    pub async fn give_back(&self, table: u32) -> io::Result<usize> {
        let (mut gone, mut failed) = (0, None);
        let mut note = |done: Result<(), rtnetlink::Error>| match done.map_err(to_io) {
            Ok(()) => gone += 1,
            // The device took it along meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {}
            Err(error) => failed = Some(error),
        };
        for family in FAMILIES {
            let rules = self.rules(family).await?;
            let last =
                rules.iter().find(|rule| is_ours(rule) && table_of_rule(rule) == table).and_then(priority);
            let belongs = |rule: &&RuleMessage| {
                is_ours(rule)
                    && last.is_some_and(|last| {
                        priority(rule).is_some_and(|priority| priority == last || priority + 1 == last)
                    })
            };
            for rule in rules.iter().filter(belongs) {
                note(self.handle.rule().del(rule.clone()).execute().await);
            }
            for route in self.routes(family, table).await? {
                note(self.handle.route().del(route).execute().await);
            }
        }
        failed.map_or(Ok(gone), Err)
    }

    /// In the order of their priorities; none where the kernel lacks the family.
    async fn rules(&self, family: Family) -> io::Result<Vec<RuleMessage>> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        present(self.handle.rule().get(version).execute().try_collect().await.map_err(to_io))
    }

    async fn routes(&self, family: Family, table: u32) -> io::Result<Vec<RouteMessage>> {
        let all = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let ours = |route: &RouteMessage| {
            route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                && route.attributes.contains(&RouteAttribute::Table(table))
        };
        let found = self.handle.route().get(all).execute();
        present(found.try_filter(|route| std::future::ready(ours(route))).try_collect().await.map_err(to_io))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RouteError {
    /// A route, or the rules.
    pub what: String,
    /// Why.
    pub source: io::Error,
}

/// A family's part of the table, with what each route is called.
fn table(taken: &Taken, family: Family) -> Vec<(String, RouteMessage)> {
    let mut made = Vec::new();
    let mut add = |what: String, prefix: (IpAddr, u8), kind, via: Option<IpAddr>| {
        made.push((what, route((taken.device, taken.table), prefix, kind, via)));
    };
    if taken.blocked.contains(&family) {
        let (what, all) = match family {
            Family::V4 => ("IPv4", (Ipv4Addr::UNSPECIFIED.into(), 0)),
            Family::V6 => ("IPv6", (Ipv6Addr::UNSPECIFIED.into(), 0)),
        };
        add(format!("to block {what}"), all, RouteType::Unreachable, None);
        if family == Family::V6 {
            add("to except link-local addresses".to_owned(), LINK_LOCAL, RouteType::Throw, None);
        }
        return made;
    }
    for Route { prefix, via } in taken.routes.iter().filter(|route| is_of(&route.prefix, family)) {
        let ends = (prefix.addr(), prefix.len());
        add(format!("to hold back {prefix}"), ends, RouteType::Unreachable, None);
        add(format!("the route {prefix}"), ends, RouteType::Unicast, *via);
    }
    for prefix in taken.excluded.iter().filter(|prefix| is_of(prefix, family)) {
        add(format!("to exclude {prefix}"), (prefix.addr(), prefix.len()), RouteType::Throw, None);
    }
    made
}

/// The length of the shortest prefix of a family that goes into the tunnel; `None` if nothing of it is routed.
fn shortest(taken: &Taken, family: Family) -> Option<u8> {
    let of_family = |prefix: &Prefix| is_of(prefix, family);
    let lengths = taken.routes.iter().map(|route| route.prefix).filter(of_family).map(|prefix| prefix.len());
    lengths.min().or_else(|| taken.excluded.iter().any(of_family).then_some(0))
}

/// What of the first is not in the second.
fn less(one: &Taken, other: &Taken) -> Taken {
    let (routes, excluded): (HashSet<_>, HashSet<_>) =
        (other.routes.iter().collect(), other.excluded.iter().collect());
    Taken {
        routes: one.routes.iter().filter(|route| !routes.contains(route)).copied().collect(),
        excluded: one.excluded.iter().filter(|prefix| !excluded.contains(prefix)).copied().collect(),
        ..one.clone()
    }
}

fn route(at: (u32, u32), (addr, len): (IpAddr, u8), kind: RouteType, via: Option<IpAddr>) -> RouteMessage {
    match addr {
        IpAddr::V4(addr) => {
            let mut route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(addr, len);
            if let Some(IpAddr::V4(via)) = via {
                route = route.gateway(via).onlink();
            } else if kind == RouteType::Unicast {
                route = route.scope(RouteScope::Link);
            }
            completed(route, at, kind).build()
        }
        IpAddr::V6(addr) => {
            let mut route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(addr, len);
            if let Some(IpAddr::V6(via)) = via {
                route = route.gateway(via).onlink();
            }
            completed(route, at, kind).build()
        }
    }
}

/// `at` is a device and a table.
fn completed<T>(
    route: RouteMessageBuilder<T>,
    (device, table): (u32, u32),
    kind: RouteType,
) -> RouteMessageBuilder<T> {
    let route = route.table_id(table).protocol(RouteProtocol::Other(ROUTE_PROTOCOL)).kind(kind);
    match kind {
        RouteType::Unicast => route.output_interface(device),
        RouteType::Unreachable => route.priority(LAST),
        _ => route,
    }
}

fn is_of(prefix: &Prefix, family: Family) -> bool {
    prefix.addr().is_ipv4() == (family == Family::V4)
}

fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)))
}

fn priority(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

fn table_of_rule(rule: &RuleMessage) -> u32 {
    let named = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(rule.header.table.into())
}

/// The kernel knows no such family, or it is switched off.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn present<T>(found: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match found {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        found => found,
    }
}

#[cfg(test)]
mod tests;
