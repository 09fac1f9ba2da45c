//! `[clients]`: what clients are told beside their addresses, in a lease's reply or in a configuration that is printed
//! for them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::value;
use crate::types::{Prefix, is_domain};
use crate::wire::frame::lease::Settings;

/// Most servers, and most domains, that a client is told: more than any resolver asks (resolv.conf(5)).
pub const MAX_NAMES: usize = 8;

/// What clients are told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clients {
    /// Where clients find the gateway; `None`: whoever needs it has to guess.
    #[serde(deserialize_with = "value::host")]
    pub endpoint: Option<Host>,
    /// Servers that clients ask for names, [`MAX_NAMES`] at most.
    #[serde(deserialize_with = "value::texts")]
    pub dns: Vec<IpAddr>,
    /// Domains that clients look for names in, [`MAX_NAMES`] at most.
    #[serde(deserialize_with = "value::texts")]
    pub search: Vec<Domain>,
    /// What clients send into the tunnel.
    pub allowed_ips: Inclusion,
    /// What of it they do not.
    #[serde(deserialize_with = "value::texts")]
    pub excluded: Vec<Prefix>,
    /// Persistent keepalive of clients, seconds; 0 for none.
    pub keepalive: u16,
    /// Bytes of an inner packet, 576 to 65,440; 0: as many as the gateway takes.
    #[serde(deserialize_with = "value::client_mtu")]
    pub mtu: u32,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            endpoint: None,
            dns: Vec::new(),
            search: Vec::new(),
            allowed_ips: Inclusion::Full,
            excluded: Vec::new(),
            keepalive: 25,
            mtu: 0,
        }
    }
}

impl Clients {
    /// What a client is told with its addresses by a gateway of this MTU.
    #[must_use]
    pub fn settings(&self, gateway_mtu: u32) -> Settings {
        Settings {
            mtu: self.mtu_below(gateway_mtu),
            dns: self.dns.clone(),
            search: self.search.iter().map(ToString::to_string).collect(),
            included: self.allowed_ips.prefixes(),
            excluded: self.excluded.clone(),
        }
    }

    /// The clients' MTU, bytes, with a gateway of this MTU.
    #[must_use]
    pub fn mtu_below(&self, gateway: u32) -> u32 {
        if self.mtu == 0 { gateway } else { self.mtu.min(gateway) }
    }

    /// What goes into the tunnel and is not excluded, for clients that know no exclusion.
    #[must_use]
    pub fn into_the_tunnel(&self) -> Vec<Prefix> {
        let mut left = self.allowed_ips.prefixes();
        for hole in &self.excluded {
            left = left.into_iter().flat_map(|prefix| without(prefix, *hole)).collect();
        }
        left
    }
}

/// A prefix less another: at most as many prefixes as there are bits between them.
fn without(mut prefix: Prefix, hole: Prefix) -> Vec<Prefix> {
    if hole.len() <= prefix.len() && hole.contains(prefix.addr()) {
        return Vec::new();
    }
    let mut left = Vec::new();
    while prefix.len() < hole.len()
        && prefix.contains(hole.addr())
        && let Some([low, high]) = halves(prefix)
    {
        let (with, other) = if low.contains(hole.addr()) { (low, high) } else { (high, low) };
        left.push(other);
        prefix = with;
    }
    // What is left of it is the hole; one that never met the hole stays whole.
    if left.is_empty() {
        left.push(prefix);
    }
    left
}

fn halves(prefix: Prefix) -> Option<[Prefix; 2]> {
    let length = prefix.len() + 1;
    let high = match prefix.addr() {
        IpAddr::V4(low) => {
            Ipv4Addr::from_bits(low.to_bits() | 1_u32.checked_shl(32 - u32::from(length))?).into()
        }
        IpAddr::V6(low) => {
            Ipv6Addr::from_bits(low.to_bits() | 1_u128.checked_shl(128 - u32::from(length))?).into()
        }
    };
    Some([Prefix::new(prefix.addr(), length)?, Prefix::new(high, length)?])
}

/// What clients send into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inclusion {
    /// Everything.
    Full,
    /// What is for these networks.
    Split(Vec<Prefix>),
}

impl Inclusion {
    /// As prefixes.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Prefix> {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        match self {
            Self::Full => all.into_iter().filter_map(|addr| Prefix::new(addr, 0)).collect(),
            Self::Split(prefixes) => prefixes.clone(),
        }
    }
}

impl fmt::Display for Inclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Split(prefixes) => write!(f, "{prefixes:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Inclusion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FullOrList;

        impl<'de> Visitor<'de> for FullOrList {
            type Value = Inclusion;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"full\" or a list of networks")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Inclusion, E> {
                if word == "full" {
                    return Ok(Inclusion::Full);
                }
                Err(E::invalid_value(de::Unexpected::Str(word), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Inclusion, A::Error> {
                value::texts(de::value::SeqAccessDeserializer::new(list)).map(Inclusion::Split)
            }
        }

        deserializer.deserialize_any(FullOrList)
    }
}

/// A host's name or address, with a port or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name, or an address without brackets.
    pub name: String,
    /// The port, if it is said.
    pub port: Option<NonZeroU16>,
}

impl FromStr for Host {
    type Err = &'static str;

    /// `vpn.example.org`, `vpn.example.org:51820`, `192.0.2.1`, `[2001:db8::1]:51820`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "no name or address, with or without a port (\"vpn.example.org:51820\")";
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self { name: addr.to_string(), port: None });
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            let port = NonZeroU16::new(addr.port()).ok_or(WRONG)?;
            return Ok(Self { name: addr.ip().to_string(), port: Some(port) });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| WRONG)?)),
            None => (text, None),
        };
        // What has the form of an address, and is none, is no name either.
        let last = name.rsplit('.').next().unwrap_or(name);
        if !is_domain(name) || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(WRONG);
        }
        Ok(Self { name: name.to_owned(), port })
    }
}

impl Host {
    /// As WireGuard's configuration has it; `port` is what is not said.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        let port = self.port.map_or(port, NonZeroU16::get);
        if self.name.contains(':') {
            format!("[{}]:{port}", self.name)
        } else {
            format!("{}:{port}", self.name)
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => f.write_str(&self.with_port(port.get())),
            None => f.write_str(&self.name),
        }
    }
}

/// A domain's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// Its text: letters, digits and hyphens between dots, 253 bytes at most.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_domain(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a domain is letters, digits and hyphens between dots (\"example.org\")")
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excluded_is_left_out_and_everything_else_stays() {
        let told = |allowed: Inclusion, excluded: &[&str]| {
            let excluded = excluded.iter().map(|text| text.parse().unwrap()).collect();
            Clients { allowed_ips: allowed, excluded, ..Clients::default() }.into_the_tunnel()
        };
        let split =
            |texts: &[&str]| Inclusion::Split(texts.iter().map(|text| text.parse().unwrap()).collect());
        let said =
            |prefixes: Vec<Prefix>| prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(said(told(Inclusion::Full, &[])), "0.0.0.0/0 ::/0");
        assert_eq!(said(told(split(&["10.0.0.0/8"]), &["10.128.0.0/10"])), "10.0.0.0/9 10.192.0.0/10");
        assert_eq!(
            said(told(split(&["10.0.0.0/8", "fd00::/8"]), &["10.0.0.0/7", "192.0.2.0/24"])),
            "fd00::/8"
        );
        let whole = said(told(split(&["10.0.0.0/8"]), &["10.0.0.0/8"]));
        assert_eq!(whole, "");
        let left = told(Inclusion::Full, &["192.168.0.0/16", "::1"]);
        assert_eq!(left.len(), 16 + 128);
        let inside = |text: &str| left.iter().filter(|prefix| prefix.contains(text.parse().unwrap())).count();
        let each =
            ["192.168.255.255", "::1", "192.167.255.255", "192.169.0.0", "::", "::2", "0.0.0.0", "ffff::"];
        assert_eq!(each.map(inside), [0, 0, 1, 1, 1, 1, 1, 1]);
    }
}
