//! The pool of a file that names none: the interface's own networks, so that the shortest file serves clients too.

use super::check::pools::{UNUSABLE, addresses_of};
use super::{Gateway, Pool, value};
use crate::lease::MAX_PREFIX_V6;
use crate::lease::ranges::Range;
use crate::types::Prefix;

/// What the pool is called.
const NAME: &str = "default";

/// Longest IPv4 network that has a network and a broadcast address beside its hosts.
const MAX_WITH_BROADCAST: u8 = 30;

/// The networks without what somebody has by name; `None` if no address is left.
pub(super) fn pool(gateway: &Gateway) -> Option<Pool> {
    let networks = || gateway.addresses.iter().map(|own| own.network());
    let prefixes =
        || gateway.peer.iter().flat_map(|peer| &peer.allowed_ips).filter(|prefix| prefix.len() > 0);
    let whole = |prefix: &Prefix| Range::try_from(*prefix).ok();
    let ipv4: Vec<_> = networks().filter_map(|network| whole(&network)).collect();
    let ends = |network: Prefix| {
        let range = whole(&network).filter(|_| network.len() <= MAX_WITH_BROADCAST)?;
        Some([Range::new(range.first(), range.first())?, Range::new(range.last(), range.last())?])
    };
    let is_short = |prefix: &Prefix| prefix.addr().is_ipv6() && prefix.len() <= MAX_PREFIX_V6;
    // All that would go with IPv4 addresses may be a peer's.
    let is_free =
        |network: &Prefix| !prefixes().any(|theirs| is_short(theirs) && theirs.contains(network.addr()));
    let ipv6 = networks().filter(is_short).find(is_free);
    let mut pool = Pool {
        name: NAME.to_owned(),
        exclude: networks().filter_map(ends).flatten().collect(),
        ipv4,
        ipv6,
        lease_time: value::one_day(),
        quarantine: value::five_minutes(),
        groups: Vec::new(),
        drain: false,
    };
    pool.exclude.extend(UNUSABLE.iter().filter_map(|(first, last)| Range::new(*first, *last)));
    let own = gateway.addresses.iter().map(|own| Prefix::host(own.addr()));
    pool.exclude.extend(own.chain(prefixes().copied()).filter_map(|theirs| addresses_of(theirs, ipv6)));
    (!pool.ranges().is_empty()).then_some(pool)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(text: &str) -> Option<Pool> {
        Gateway::parse(Path::new("x"), text).unwrap().pools().into_iter().next()
    }

    #[test]
    fn a_file_without_pools_gives_addresses_of_its_own_networks_that_nobody_has() {
        let peer = "[[peer]]\npublic_key = \"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\"\nallowed_ips = ";
        let ranges = |pool: Pool| format!("{:?}", pool.ranges());
        let plain = of("addresses = [\"10.9.0.1/28\", \"fd64::1/64\"]").unwrap();
        assert_eq!((plain.name.as_str(), plain.ipv6), (NAME, "fd64::/64".parse().ok()));
        assert_eq!(ranges(plain), "[10.9.0.2-10.9.0.14]");
        let shared = of(&format!(
            "addresses = [\"10.9.0.1/28\", \"fd64::1/64\"]\n{peer}[\"10.9.0.4/30\", \"fd64::a09:9/128\", \"0.0.0.0/0\"]"
        ));
        assert_eq!(ranges(shared.unwrap()), "[10.9.0.2-10.9.0.3, 10.9.0.8, 10.9.0.10-10.9.0.14]");
        let taken =
            of(&format!("addresses = [\"10.9.0.1/28\", \"fd64::1/64\"]\n{peer}[\"fd64::/64\"]")).unwrap();
        assert_eq!(taken.ipv6, None);
        assert_eq!(of("addresses = [\"10.9.0.1/32\", \"fd64::1/64\"]"), None);
        assert_eq!(of("addresses = [\"fd64::1/64\"]"), None);
        assert_eq!(of(""), None);
        // Every peer's prefix is taken out, be there however many.
        let many: Vec<_> = (0..2000).map(|n| format!("10.9.{}.{}/32", n / 250, n % 250 + 2)).collect();
        let crowded = of(&format!("addresses = [\"10.9.0.1/16\"]\n{peer}{many:?}")).unwrap();
        assert_eq!(crowded.ranges().count(), 65_536 - 3 - 2000);
        let named =
            of("addresses = [\"10.9.0.1/28\"]\n[[pool]]\nname = \"p\"\nipv4 = [\"10.8.0.0/24\"]").unwrap();
        assert_eq!(named.name, "p");
    }
}
