//! What of a gateway's offer a client takes: its profile decides, and nothing is believed that would lead packets
//! where nobody asked for.
//!
//! - addresses, if the profile has none: each alone, never its network, which would be a route that nobody accepted
//! - `routes`: networks behind the gateway, [`MAX_NETWORKS`] at most, and never so many addresses that they come to a
//!   default route in pieces: that is for the profile's own AllowedIPs to ask for. What is not behind it is excluded
//! - `dns`: servers and domains, in the place of the profile's
//! - `mtu`: in the place of the profile's
//!
//! What is refused is returned in words; the rest is taken all the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::config::{LinkAddress, MAX_NAMES, RouteInfo, VpnConfig};
use crate::config::profile::Accept;
use crate::types::Prefix;
use crate::wire::frame::lease::{AddrReply, Settings};

/// Most networks, and most exclusions, that are taken from a gateway.
pub const MAX_NETWORKS: usize = 256;
/// The shortest prefix of IPv4 that a gateway may name: what the largest private network has (RFC 1918).
const SHORTEST_V4: u8 = 8;
/// That of IPv6: unique local addresses (RFC 4193) have 7 bits; of others 16 are more than anybody has.
const SHORTEST_V6: u8 = 16;
const UNIQUE_LOCAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);
/// What all networks of a family together may take: a quarter of IPv4, a quarter of what IPv6 has in use (2000::/3),
/// each as a shift of the whole.
const SHARE_V4: u8 = 2;
const SHARE_V6: u8 = 5;
/// Least MTU that is taken, bytes, without and with IPv6 (RFC 791, RFC 8200); the greatest is the packet path's.
const MTU: [u32; 2] = [576, 1280];
const MAX_MTU: u32 = 65_440;

/// What a profile says of offers.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The profile by itself.
    pub own: VpnConfig,
    /// What is taken.
    pub accept: Accept,
    /// Nothing leaves but by the tunnel: an exclusion needs consent.
    pub guarded: bool,
    /// Where gateways are, outside of the tunnel.
    pub gateways: Vec<IpAddr>,
    /// AllowedIPs of the peer that offers.
    pub asked: Vec<Prefix>,
    /// Those of the profile's other peers.
    pub others: Vec<Prefix>,
}

/// What comes of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The connection as it is to be.
    pub config: VpnConfig,
    /// Networks that the gateway may send from, and is sent to, beside what the profile asks for.
    pub networks: Vec<Prefix>,
    /// What of it leaves beside the tunnel.
    pub excluded: Vec<Prefix>,
    /// What was refused, a sentence each.
    pub refused: Vec<String>,
}

impl Terms {
    /// What is taken of an offer; without one, what the profile says by itself.
    #[must_use]
    pub fn take(&self, offer: Option<&(AddrReply, Settings)>) -> Taken {
        let mut taken = Taken {
            config: self.own.clone(),
            networks: Vec::new(),
            excluded: Vec::new(),
            refused: Vec::new(),
        };
        let Some((reply, settings)) = offer else { return taken };
        if self.own.addresses.is_empty() {
            self.addresses(reply, &mut taken);
        }
        if self.accept.routes {
            self.networks(settings, &mut taken);
            self.exclusions(settings, &mut taken);
        }
        if self.accept.dns {
            self.names(settings, &mut taken);
        }
        if self.accept.mtu {
            self.mtu(settings.mtu, &mut taken);
        }
        taken
    }

    fn accepts(&self, addr: IpAddr) -> bool {
        if addr.is_ipv4() { self.own.is_ipv4_accepted } else { self.own.is_ipv6_accepted }
    }

    fn addresses(&self, reply: &AddrReply, taken: &mut Taken) {
        let v4 = reply.ipv4.map(|(addr, _)| IpAddr::V4(addr));
        let v6 = reply.ipv6.map(|(addr, _)| IpAddr::V6(addr));
        for addr in v4.into_iter().chain(v6).filter(|addr| self.accepts(*addr)) {
            if is_special(Prefix::host(addr)) || self.gateways.contains(&addr) {
                taken.refused.push(format!("the address {addr}: no address that a client may have"));
                continue;
            }
            let prefix_length = Prefix::host(addr).len();
            taken.config.addresses.push(LinkAddress { address: addr, prefix_length });
        }
    }

    fn networks(&self, settings: &Settings, taken: &mut Taken) {
        let mut new = Vec::new();
        for prefix in &settings.included {
            // What the profile asks for is there already; what goes nowhere need not be named.
            let known = self.asked.iter().any(|asked| covers(asked, prefix)) || new.contains(prefix);
            if known || !self.accepts(prefix.addr()) {
                continue;
            }
            match self.no_network(prefix) {
                Some(why) => taken.refused.push(format!("the network {prefix}: {why}")),
                None if new.len() >= MAX_NETWORKS => {
                    taken.refused.push(format!("networks: more than {MAX_NETWORKS}"));
                    break;
                }
                None => new.push(*prefix),
            }
        }
        for v4 in [true, false] {
            if is_too_much(new.iter().filter(|prefix| prefix.addr().is_ipv4() == v4), v4) {
                new.retain(|prefix| prefix.addr().is_ipv4() != v4);
                let family = if v4 { "IPv4" } else { "IPv6" };
                let why = format!("the networks of {family}: together they are a default route, {ASK}");
                taken.refused.push(why);
            }
        }
        taken.config.routes.extend(new.iter().map(|prefix| RouteInfo::to(*prefix)));
        taken.networks = new;
    }

    /// Why the network is not taken, if it is not.
    fn no_network(&self, prefix: &Prefix) -> Option<String> {
        if is_short(prefix) {
            return Some(format!("as good as a default route, {ASK}"));
        }
        if is_special(*prefix) {
            return Some("nothing of it is behind a gateway".to_owned());
        }
        if let Some(place) = self.gateways.iter().find(|place| prefix.contains(**place)) {
            return Some(format!("the gateway itself is there ({place})"));
        }
        let theirs = self.others.iter().find(|other| overlap(other, prefix))?;
        Some(format!("another peer of the profile has {theirs}"))
    }

    fn exclusions(&self, settings: &Settings, taken: &mut Taken) {
        let routed: Vec<_> = self.asked.iter().chain(&self.others).chain(&taken.networks).copied().collect();
        let mut kept = Vec::new();
        for prefix in settings.excluded.iter().filter(|prefix| self.accepts(prefix.addr())) {
            // Of what is not routed nothing need be excluded.
            let matters = routed.iter().any(|route| overlap(route, prefix));
            if !matters || kept.contains(prefix) {
                continue;
            }
            let why = if self.guarded && !self.accept.exclusions {
                Some("the kill switch is on, and the profile does not accept exclusions")
            } else if is_short(prefix) || routed.contains(prefix) {
                Some("it would undo what the profile asks for")
            } else if is_special(*prefix) {
                Some("nothing of it is beside the tunnel")
            } else {
                None
            };
            match why {
                Some(why) => taken.refused.push(format!("the exclusion {prefix}: {why}")),
                None if kept.len() >= MAX_NETWORKS => {
                    taken.refused.push(format!("exclusions: more than {MAX_NETWORKS}"));
                    break;
                }
                None => kept.push(*prefix),
            }
        }
        taken.config.routes.extend(kept.iter().map(|prefix| RouteInfo::excluding(*prefix)));
        taken.excluded = kept;
    }

    fn names(&self, settings: &Settings, taken: &mut Taken) {
        let mut servers = Vec::new();
        for server in settings.dns.iter().filter(|server| self.accepts(**server)).take(MAX_NAMES) {
            if is_special(Prefix::host(*server)) {
                taken.refused.push(format!("the DNS server {server}: no address of a server"));
            } else if !servers.contains(server) {
                servers.push(*server);
            }
        }
        if !servers.is_empty() {
            taken.config.dns_addresses = servers;
            taken.config.search_domains = settings.search.iter().take(MAX_NAMES).cloned().collect();
        }
    }

    fn mtu(&self, mtu: u32, taken: &mut Taken) {
        let [v4, v6] = MTU;
        let least = if self.own.is_ipv6_accepted { v6 } else { v4 };
        if (least..=MAX_MTU).contains(&mtu) {
            taken.config.mtu = Some(mtu);
        } else {
            taken.refused.push(format!("the MTU {mtu}: not from {least} to {MAX_MTU}"));
        }
    }
}

/// What to do about it.
const ASK: &str = "which only the profile's AllowedIPs ask for";

/// All of `inner` is in `outer`.
fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.len() <= inner.len() && outer.contains(inner.addr())
}

fn overlap(one: &Prefix, other: &Prefix) -> bool {
    covers(one, other) || covers(other, one)
}

fn is_short(prefix: &Prefix) -> bool {
    match prefix.addr() {
        IpAddr::V4(_) => prefix.len() < SHORTEST_V4,
        IpAddr::V6(_) => prefix.len() < SHORTEST_V6 && !is_unique_local(prefix),
    }
}

fn is_unique_local(prefix: &Prefix) -> bool {
    let (addr, length) = UNIQUE_LOCAL;
    Prefix::new(addr.into(), length).is_some_and(|all| covers(&all, prefix))
}

/// Together they are as good as a default route.
fn is_too_much<'a>(prefixes: impl Iterator<Item = &'a Prefix>, v4: bool) -> bool {
    // Each as a share of the whole, in parts of 2^64; longer ones count as that.
    let part = |length: u8| 1_u128 << (64 - u32::from(length.min(64)));
    let sum: u128 = prefixes.filter(|prefix| !is_unique_local(prefix)).map(|prefix| part(prefix.len())).sum();
    sum > part(if v4 { SHARE_V4 } else { SHARE_V6 })
}

/// Some of it is this host itself, this link alone, or many hosts at once (RFC 6890).
fn is_special(prefix: Prefix) -> bool {
    let v4 = [(0, 8), (127, 8), (224, 4), (240, 4)].map(|(first, len)| (Ipv4Addr::new(first, 0, 0, 0), len));
    let link = [(Ipv4Addr::new(169, 254, 0, 0), 16)];
    let v6 = [
        (Ipv6Addr::UNSPECIFIED, 128),
        (Ipv6Addr::LOCALHOST, 128),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
        // IPv4 in other words.
        (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    ];
    let all = v4.into_iter().chain(link).map(|(addr, len)| (IpAddr::V4(addr), len));
    let mut all = all.chain(v6.into_iter().map(|(addr, len)| (IpAddr::V6(addr), len)));
    all.any(|(addr, len)| Prefix::new(addr, len).is_some_and(|special| overlap(&special, &prefix)))
}

#[cfg(test)]
mod tests;
