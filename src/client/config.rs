//! What a VPN connection is asked to be, in the words of the platform API, and the check that makes a [`Plan`] of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::error::InvalidValue;
use crate::net::route::Route;
use crate::net::sysctl::Family;
use crate::types::{Address, Prefix, is_domain};

/// MTU of a connection that names none, bytes: what fits 1500 behind IPv6, UDP and WireGuard's 32 bytes.
pub const DEFAULT_MTU: u32 = 1420;
/// Least and greatest MTU, bytes (RFC 791 section 3.1; what the packet path takes).
const MTU: std::ops::RangeInclusive<u32> = 576..=65_440;
/// Least MTU of a link that carries IPv6, bytes (RFC 8200 section 5).
const MTU_V6: u32 = 1280;
/// Most addresses of a connection.
pub const MAX_ADDRESSES: usize = 64;
/// Most routes of a connection: more than any list of a country's networks.
pub const MAX_ROUTES: usize = 65_536;
/// Most DNS servers, and most search domains: more than any resolver asks (resolv.conf(5)).
pub const MAX_NAMES: usize = 8;

/// An address of the device, with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits.
    pub prefix_length: u8,
}

impl From<Address> for LinkAddress {
    fn from(address: Address) -> Self {
        Self { address: address.addr(), prefix_length: address.prefix_len() }
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

/// A network that the connection takes, or leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// Which network. Length 0 is the default route.
    pub destination: LinkAddress,
    /// The next hop behind the device; it is reached without another route.
    pub gateway: Option<IpAddr>,
    /// True: what is for this network goes where it would without the connection.
    pub is_excluded_route: bool,
}

impl RouteInfo {
    /// What is for this network goes into the tunnel.
    #[must_use]
    pub fn to(network: Prefix) -> Self {
        let destination = LinkAddress { address: network.addr(), prefix_length: network.len() };
        Self { destination, gateway: None, is_excluded_route: false }
    }

    /// What is for this network does not.
    #[must_use]
    pub fn excluding(network: Prefix) -> Self {
        Self { is_excluded_route: true, ..Self::to(network) }
    }

    /// Everything of a family.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_length == 0
    }
}

/// A connection to set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpnConfig {
    /// The device's addresses; at least one.
    pub addresses: Vec<LinkAddress>,
    /// What goes into the tunnel and what does not. The longest prefix decides; what is said twice counts once.
    pub routes: Vec<RouteInfo>,
    /// Servers to be asked for names.
    pub dns_addresses: Vec<IpAddr>,
    /// Domains to look for names in.
    pub search_domains: Vec<String>,
    /// If there are any, `dns_addresses` are asked for names below these and below `search_domains` only.
    pub match_domains: Vec<String>,
    /// Bytes of an IP packet, 576 (with IPv6 1280) to 65,440; `None`: [`DEFAULT_MTU`].
    pub mtu: Option<u32>,
    /// False: no IPv4 packet leaves this host, in the tunnel or beside it, but protected ones.
    pub is_ipv4_accepted: bool,
    /// False: no IPv6 packet leaves this host, in the tunnel or beside it, but protected and link-local ones.
    pub is_ipv6_accepted: bool,
    /// Whether to read from the descriptor waits for a packet.
    pub is_blocking: bool,
    /// Whether the platform's built-in VPN may be used. Linux has none: accepted, and without effect.
    pub is_legacy: bool,
}

impl Default for VpnConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            routes: Vec::new(),
            dns_addresses: Vec::new(),
            search_domains: Vec::new(),
            match_domains: Vec::new(),
            mtu: None,
            is_ipv4_accepted: true,
            is_ipv6_accepted: false,
            is_blocking: false,
            is_legacy: false,
        }
    }
}

/// A configuration that was found good: nothing twice, every prefix a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The device's addresses.
    pub addresses: Vec<Address>,
    /// What goes into the tunnel, by prefix.
    pub routes: Vec<Route>,
    /// What does not, by prefix.
    pub excluded: Vec<Prefix>,
    /// The families of which nothing leaves.
    pub blocked: Vec<Family>,
    /// Bytes.
    pub mtu: u32,
}

impl VpnConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first one that is wrong, by name.
    pub fn check(&self) -> Result<Plan, InvalidValue> {
        if self.addresses.is_empty() {
            return Err(invalid("addresses", format!("1 to {MAX_ADDRESSES} are wanted")));
        }
        self.check_unaddressed()
    }

    /// The same of a connection whose addresses may come later.
    ///
    /// # Errors
    /// As there, but for missing addresses.
    pub fn check_unaddressed(&self) -> Result<Plan, InvalidValue> {
        let addresses = self.checked_addresses()?;
        let (routes, excluded) = self.checked_routes()?;
        self.check_names()?;
        let mtu = self.mtu.unwrap_or(DEFAULT_MTU);
        if !MTU.contains(&mtu) {
            return Err(invalid("mtu", format!("{mtu} is not from {} to {}", MTU.start(), MTU.end())));
        }
        if mtu < MTU_V6 && self.is_ipv6_accepted {
            return Err(invalid("mtu", format!("{mtu} is too small for IPv6, which needs {MTU_V6}")));
        }
        let accepted = [(Family::V4, self.is_ipv4_accepted), (Family::V6, self.is_ipv6_accepted)];
        let blocked = accepted.into_iter().filter(|(_, accepted)| !accepted).map(|(family, _)| family);
        Ok(Plan { addresses, routes, excluded, blocked: blocked.collect(), mtu })
    }

    fn checked_addresses(&self) -> Result<Vec<Address>, InvalidValue> {
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(invalid("addresses", format!("1 to {MAX_ADDRESSES} are wanted")));
        }
        let mut checked = Vec::new();
        for (i, one) in self.addresses.iter().enumerate() {
            let refused = |reason: &str| invalid(format!("addresses[{i}]"), format!("{one}: {reason}"));
            // The text is what is parsed everywhere else: one place knows the lengths.
            let address: Address = one.to_string().parse().map_err(|error| refused(&format!("{error}")))?;
            if one.address.is_unspecified() || one.address.is_multicast() || one.address.is_loopback() {
                return Err(refused("no address that a device may have"));
            }
            self.check_family(one.address).map_err(|reason| refused(&reason))?;
            if !checked.contains(&address) {
                checked.push(address);
            }
        }
        Ok(checked)
    }

    fn checked_routes(&self) -> Result<(Vec<Route>, Vec<Prefix>), InvalidValue> {
        if self.routes.len() > MAX_ROUTES {
            return Err(invalid("routes", format!("more than {MAX_ROUTES}")));
        }
        // By network's address and length: in the order in which people read them.
        let mut by_prefix: BTreeMap<(IpAddr, u8), (Prefix, RouteInfo)> = BTreeMap::new();
        for (i, route) in self.routes.iter().enumerate() {
            let RouteInfo { destination, gateway, is_excluded_route } = *route;
            let refused = |reason: &str| invalid(format!("routes[{i}]"), format!("{destination}: {reason}"));
            let prefix: Prefix =
                destination.to_string().parse().map_err(|error| refused(&format!("{error}")))?;
            self.check_family(prefix.addr()).map_err(|reason| refused(&reason))?;
            if let Some(gateway) = gateway {
                if gateway.is_ipv4() != prefix.addr().is_ipv4() {
                    return Err(refused(&format!("the gateway {gateway} is of another family")));
                }
                if is_excluded_route {
                    return Err(refused("an excluded route has no gateway: it is as without the connection"));
                }
            }
            let key = (prefix.addr(), prefix.len());
            let (_, before) = *by_prefix.entry(key).or_insert((prefix, *route));
            if before != *route {
                let what = if before.is_excluded_route == is_excluded_route {
                    "is routed by two gateways"
                } else {
                    "is both routed and excluded"
                };
                return Err(refused(what));
            }
        }
        let (excluded, routed): (Vec<_>, Vec<_>) =
            by_prefix.into_values().partition(|(_, route)| route.is_excluded_route);
        let routed = routed.into_iter().map(|(prefix, route)| Route { prefix, via: route.gateway });
        Ok((routed.collect(), excluded.into_iter().map(|(prefix, _)| prefix).collect()))
    }

    fn check_names(&self) -> Result<(), InvalidValue> {
        let domains = [("search_domains", &self.search_domains), ("match_domains", &self.match_domains)];
        let counts = domains.map(|(field, domains)| (field, domains.len()));
        for (field, count) in [("dns_addresses", self.dns_addresses.len())].into_iter().chain(counts) {
            if count > MAX_NAMES {
                return Err(invalid(field, format!("more than {MAX_NAMES}")));
            }
        }
        for (i, server) in self.dns_addresses.iter().enumerate() {
            let refused =
                |reason: &str| invalid(format!("dns_addresses[{i}]"), format!("{server}: {reason}"));
            if server.is_unspecified() || server.is_multicast() {
                return Err(refused("no address of a server"));
            }
            self.check_family(*server).map_err(|reason| refused(&reason))?;
        }
        for (field, domains) in domains {
            if let Some((i, domain)) = domains.iter().enumerate().find(|(_, domain)| !is_domain(domain)) {
                return Err(invalid(format!("{field}[{i}]"), format!("{domain:?} is no domain")));
            }
        }
        if self.dns_addresses.is_empty() && !self.match_domains.is_empty() {
            return Err(invalid("match_domains", "there is no server to be asked for them".to_owned()));
        }
        Ok(())
    }

    fn check_family(&self, address: IpAddr) -> Result<(), String> {
        match address {
            IpAddr::V4(_) if !self.is_ipv4_accepted => {
                Err("IPv4 is not accepted (is_ipv4_accepted)".to_owned())
            }
            IpAddr::V6(_) if !self.is_ipv6_accepted => {
                Err("IPv6 is not accepted (is_ipv6_accepted)".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn invalid(field: impl Into<String>, reason: String) -> InvalidValue {
    InvalidValue { field: field.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> LinkAddress {
        text.parse::<Address>().unwrap().into()
    }

    fn to(text: &str) -> RouteInfo {
        RouteInfo::to(text.parse().unwrap())
    }

    fn both() -> VpnConfig {
        VpnConfig {
            addresses: vec![link("100.64.0.2/10"), link("fd64::2/64")],
            is_ipv6_accepted: true,
            ..VpnConfig::default()
        }
    }

    #[test]
    fn what_nobody_says_is_as_the_platform_has_it() {
        let VpnConfig { is_ipv4_accepted, is_ipv6_accepted, is_blocking, is_legacy, mtu, .. } =
            VpnConfig::default();
        assert_eq!(
            (is_ipv4_accepted, is_ipv6_accepted, is_blocking, is_legacy, mtu),
            (true, false, false, false, None)
        );
        assert_eq!(both().check().unwrap().mtu, DEFAULT_MTU);
    }

    #[test]
    fn what_is_said_twice_counts_once() {
        let default = to("0.0.0.0/0");
        assert!(default.is_default() && !to("10.0.0.0/8").is_default());
        let config = VpnConfig {
            addresses: [both().addresses, both().addresses].concat(),
            routes: vec![
                default,
                to("10.0.0.0/8"),
                default,
                RouteInfo::excluding("10.1.0.0/16".parse().unwrap()),
                RouteInfo::excluding("10.1.0.0/16".parse().unwrap()),
            ],
            ..both()
        };
        let plan = config.check().unwrap();
        let routed: Vec<_> = plan.routes.iter().map(|route| route.prefix.to_string()).collect();
        assert_eq!(routed, ["0.0.0.0/0", "10.0.0.0/8"]);
        assert_eq!(plan.excluded, ["10.1.0.0/16".parse().unwrap()]);
        assert_eq!((plan.addresses.len(), plan.blocked), (2, Vec::new()));
    }

    #[test]
    fn a_wrong_value_is_named() {
        let routed = |routes: &[RouteInfo]| VpnConfig { routes: routes.to_vec(), ..both() };
        let ten = to("10.0.0.0/8");
        let via = |hop: &str| RouteInfo { gateway: Some(hop.parse().unwrap()), ..ten };
        let bits = RouteInfo { destination: link("10.0.0.1/8"), ..ten };
        let long = LinkAddress { address: "10.0.0.1".parse().unwrap(), prefix_length: 33 };
        let excluded = RouteInfo { is_excluded_route: true, ..ten };
        let v4 = || VpnConfig { is_ipv6_accepted: false, addresses: vec![link("100.64.0.2/10")], ..both() };
        let dns = |server: &str| VpnConfig { dns_addresses: vec![server.parse().unwrap()], ..v4() };
        let cases = [
            (VpnConfig::default(), "addresses", "1 to 64"),
            (VpnConfig { addresses: vec![long], ..both() }, "addresses[0]", "32"),
            (VpnConfig { addresses: vec![link("224.0.0.1/8")], ..both() }, "addresses[0]", "may have"),
            (VpnConfig { addresses: both().addresses, ..v4() }, "addresses[1]", "is_ipv6_accepted"),
            (VpnConfig { is_ipv4_accepted: false, ..both() }, "addresses[0]", "is_ipv4_accepted"),
            (routed(&[ten, bits]), "routes[1]", "bits are set"),
            (routed(&[via("fd64::1")]), "routes[0]", "another family"),
            (routed(&[via("100.64.0.1"), via("100.64.0.2")]), "routes[1]", "two gateways"),
            (routed(&[ten, excluded]), "routes[1]", "both routed and excluded"),
            (
                routed(&[RouteInfo { is_excluded_route: true, ..via("100.64.0.1") }]),
                "routes[0]",
                "no gateway",
            ),
            (VpnConfig { routes: vec![to("::/0")], ..v4() }, "routes[0]", "is_ipv6_accepted"),
            (VpnConfig { mtu: Some(575), ..v4() }, "mtu", "576"),
            (VpnConfig { mtu: Some(65_441), ..both() }, "mtu", "65440"),
            (VpnConfig { mtu: Some(1279), ..both() }, "mtu", "1280"),
            (dns("fd64::1"), "dns_addresses[0]", "is_ipv6_accepted"),
            (dns("0.0.0.0"), "dns_addresses[0]", "server"),
            (
                VpnConfig { search_domains: vec!["a..b".to_owned()], ..both() },
                "search_domains[0]",
                "no domain",
            ),
            (VpnConfig { match_domains: vec!["a".to_owned()], ..v4() }, "match_domains", "no server"),
            (
                VpnConfig { match_domains: vec![".".to_owned()], ..dns("198.18.0.1") },
                "match_domains[0]",
                "no domain",
            ),
            (
                VpnConfig { search_domains: vec!["a".to_owned(); 9], ..both() },
                "search_domains",
                "more than 8",
            ),
        ];
        for (config, field, reason) in cases {
            let wrong = config.check().unwrap_err();
            assert!(wrong.field == field && wrong.reason.contains(reason), "{wrong}");
        }
        assert_eq!(VpnConfig { mtu: Some(576), ..v4() }.check().unwrap().mtu, 576);
    }
}
