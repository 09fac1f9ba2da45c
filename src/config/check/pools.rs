//! Pools: among themselves, and beside the addresses that somebody has by name.

use std::net::{IpAddr, Ipv4Addr};

use super::{Findings, element, place};
use crate::config::locate::Step;
use crate::config::{Gateway, Pool};
use crate::lease::MAX_PREFIX_V6;
use crate::lease::ranges::{Range, Ranges};
use crate::types::Prefix;

/// What no host can have: this network, the host itself, multicast and beyond (RFC 6890).
pub(in crate::config) const UNUSABLE: [(Ipv4Addr, Ipv4Addr); 3] = [
    (Ipv4Addr::new(0, 0, 0, 0), Ipv4Addr::new(0, 255, 255, 255)),
    (Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(127, 255, 255, 255)),
    (Ipv4Addr::new(224, 0, 0, 0), Ipv4Addr::new(255, 255, 255, 255)),
];

pub(super) fn check(gateway: &Gateway, findings: &mut Findings<'_>) {
    let pools = || gateway.pool.iter().enumerate();
    let names = pools().map(|(at, pool)| (pool.name.as_str(), place("pool", at, "name")));
    findings.unique(names, |name, line| format!("the name {name:?} is another pool's as well, in {line}"));
    let mut before: Vec<(&Pool, Ranges)> = Vec::new();
    let unusable: Ranges = UNUSABLE.iter().filter_map(|(first, last)| Range::new(*first, *last)).collect();
    for (at, pool) in pools() {
        let ranges = pool.ranges();
        alone(pool, &ranges, at, findings);
        for (number, range) in pool.ipv4.iter().enumerate() {
            if let Some(found) = first_of(&Ranges::from_iter([*range]).and(&unusable)) {
                let text = format!("{found} is no address that a client can have");
                findings.add(&element("pool", at, "ipv4", number), text);
            }
        }
        for (other, theirs) in &before {
            if let Some(found) = first_of(&ranges.and(theirs)) {
                let text = format!("{found} is in the pool {:?} as well", other.name);
                findings.add(&place("pool", at, "ipv4"), text);
            }
        }
        before.push((pool, ranges));
    }
    for (pool, ranges) in &before {
        addresses_by_name(gateway, pool, ranges, findings);
    }
}

/// What a pool says of itself.
fn alone(pool: &Pool, ranges: &Ranges, at: usize, findings: &mut Findings<'_>) {
    if pool.name.is_empty() {
        findings.add(&place("pool", at, "name"), "a pool needs a name".to_owned());
    }
    if ranges.is_empty() {
        findings.add(&place("pool", at, "ipv4"), "no address is left in this pool".to_owned());
    }
    if pool.ipv6.is_some_and(|prefix| prefix.addr().is_ipv4() || prefix.len() > MAX_PREFIX_V6) {
        let text = format!(
            "an IPv6 prefix of at most {MAX_PREFIX_V6} bits is needed: the last 32 are the IPv4 address"
        );
        findings.add(&place("pool", at, "ipv6"), text);
    }
}

/// The gateway's own addresses and those of peers.
fn addresses_by_name(gateway: &Gateway, pool: &Pool, ranges: &Ranges, findings: &mut Findings<'_>) {
    let name = &pool.name;
    for (at, own) in gateway.addresses.iter().enumerate() {
        if let Some(found) = shared(Prefix::host(own.addr()), pool, ranges) {
            let text = format!("the pool {name:?} would give {} to a client: exclude {found}", own.addr());
            findings.add(&[Step::Key("addresses"), Step::At(at)], text);
        }
    }
    for (at, peer) in gateway.peer.iter().enumerate() {
        // What is everybody's yields to any address.
        for (number, prefix) in peer.allowed_ips.iter().enumerate().filter(|(_, prefix)| prefix.len() > 0) {
            if let Some(found) = shared(*prefix, pool, ranges) {
                let text =
                    format!("the pool {name:?} would give addresses of {prefix} to others: exclude {found}");
                findings.add(&element("peer", at, "allowed_ips", number), text);
            }
        }
    }
}

/// The first range that the prefix and a pool have in common, as its IPv4 addresses.
fn shared(prefix: Prefix, pool: &Pool, ranges: &Ranges) -> Option<Range> {
    first_of(&ranges.and(&Ranges::from_iter([addresses_of(prefix, pool.ipv6)?])))
}

/// The addresses of a prefix in a pool with this IPv6 prefix, as IPv4 addresses.
pub(in crate::config) fn addresses_of(prefix: Prefix, ipv6: Option<Prefix>) -> Option<Range> {
    match prefix.addr() {
        IpAddr::V4(_) => Range::try_from(prefix).ok(),
        IpAddr::V6(address) => {
            let IpAddr::V6(base) = ipv6?.addr() else { return None };
            if prefix.len() <= MAX_PREFIX_V6 {
                prefix
                    .contains(base.into())
                    .then_some(Range::new(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)?)
            } else if address.to_bits() >> 32 == base.to_bits() >> 32 {
                let low = Ipv4Addr::from_bits(address.to_bits() as u32);
                Range::try_from(Prefix::new(low.into(), prefix.len() - MAX_PREFIX_V6)?).ok()
            } else {
                None
            }
        }
    }
}

fn first_of(ranges: &Ranges) -> Option<Range> {
    ranges.iter().next()
}
