//! Who the clients are: keys and addresses that depend on a seed and a number alone, so that one command can print the
//! gateway's configuration and another be its clients. These keys protect nothing: whoever knows the seed has them.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::bail;

use crate::crypto::hash::hash;
use crate::crypto::x25519::PrivateKey;
use crate::types::{Prefix, Secret, Source};

/// Most clients of a run.
pub const MAX_CLIENTS: usize = 1_000_000;
/// The address of the first client inside the tunnel; the others follow.
const FIRST_INNER: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 0);

/// How a list of peers is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For `wg addconf` and `wg setconf`.
    Wg,
    /// For the gateway's file.
    Toml,
}

/// The private key of a client.
#[must_use]
pub fn private_key(seed: u64, client: usize) -> Secret {
    Secret(hash(&[b"ringway bench client", &seed.to_le_bytes(), &(client as u64).to_le_bytes()]))
}

/// The address of a client inside the tunnel, below 100.64.0.0/10.
#[must_use]
pub fn inner_address(client: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_INNER.to_bits().wrapping_add(client.min(MAX_CLIENTS) as u32))
}

/// The outer address that the n-th of those who send from `sources` sends from: its hosts in turn. `None` for a prefix
/// without hosts, or of IPv6.
#[must_use]
pub fn outer_source(sources: Prefix, n: usize) -> Option<Source> {
    let IpAddr::V4(base) = sources.addr() else { return None };
    let hosts = (1_u64 << (32_u8.checked_sub(sources.len())?)).checked_sub(2).filter(|hosts| *hosts > 0)?;
    let addr = base.to_bits() + 1 + (n as u64 % hosts) as u32;
    Some(Source { addr: Ipv4Addr::from_bits(addr).into(), ifindex: 0 })
}

/// Checks that clients can send to `endpoint` from the hosts of `sources`, if they are given any.
///
/// # Errors
/// A prefix without hosts or of IPv6, or an endpoint of IPv6.
pub fn check_sources(sources: Option<Prefix>, endpoint: SocketAddr) -> anyhow::Result<()> {
    if sources.is_some_and(|sources| outer_source(sources, 0).is_none() || endpoint.is_ipv6()) {
        bail!("--sources is a prefix of IPv4 with hosts in it, for an endpoint of IPv4");
    }
    Ok(())
}

/// The configuration of the peers `0..clients` of a seed, one by one.
pub fn peers(seed: u64, clients: usize, format: Format) -> impl Iterator<Item = String> {
    (0..clients).map(move |client| {
        let key = PrivateKey::new(&private_key(seed, client)).public().to_base64();
        let inner = inner_address(client);
        let mut text = String::new();
        let _ = match format {
            Format::Wg => write!(text, "[Peer]\nPublicKey = {key}\nAllowedIPs = {inner}/32\n"),
            Format::Toml => {
                write!(text, "[[peer]]\npublic_key = \"{key}\"\nallowed_ips = [\"{inner}/32\"]\n")
            }
        };
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn clients_are_different_and_the_same_again() {
        let keys = |seed| (0..100).map(|n| private_key(seed, n).0).collect::<HashSet<_>>();
        assert_eq!((keys(1).len(), keys(1) == keys(1)), (100, true));
        assert!(keys(1).is_disjoint(&keys(2)));
        let inside: Prefix = "100.64.0.0/10".parse().unwrap();
        let inner: HashSet<_> = (0..MAX_CLIENTS).step_by(997).map(inner_address).collect();
        assert_eq!(inner.len(), MAX_CLIENTS.div_ceil(997));
        assert!(inner.iter().all(|addr| inside.contains((*addr).into())));
        assert!(inside.contains(inner_address(usize::MAX).into()));
    }

    #[test]
    fn sources_are_the_hosts_of_a_prefix_in_turn() {
        let of =
            |prefix: &str, n| outer_source(prefix.parse().unwrap(), n).map(|source| source.addr.to_string());
        let found: Vec<_> = (0..4).map(|n| of("198.18.128.0/30", n).unwrap()).collect();
        assert_eq!(found, ["198.18.128.1", "198.18.128.2", "198.18.128.1", "198.18.128.2"]);
        assert_eq!(of("198.18.128.0/17", 32_765).unwrap(), "198.18.255.254");
        assert_eq!(
            (of("198.18.128.0/31", 0), of("198.18.128.1/32", 0), of("fd00::/64", 0)),
            (None, None, None)
        );
        assert_eq!(of("0.0.0.0/0", 0).unwrap(), "0.0.0.1");
        let may = |prefix: Option<&str>, endpoint: &str| {
            check_sources(prefix.map(|prefix| prefix.parse().unwrap()), endpoint.parse().unwrap()).is_ok()
        };
        let (v4, v6) = ("198.18.0.1:51820", "[fd00:198:18::1]:51820");
        assert!(may(None, v4) && may(None, v6) && may(Some("198.18.128.0/30"), v4));
        assert!(
            !may(Some("198.18.128.0/30"), v6)
                && !may(Some("198.18.128.0/31"), v4)
                && !may(Some("fd00::/64"), v6)
        );
    }

    #[test]
    fn peers_are_written_as_both_read_them() {
        let wg: Vec<_> = peers(3, 2, Format::Wg).collect();
        let key = PrivateKey::new(&private_key(3, 1)).public().to_base64();
        assert_eq!(wg[1], format!("[Peer]\nPublicKey = {key}\nAllowedIPs = 100.65.0.1/32\n"));
        let toml: toml::Table = peers(3, 2, Format::Toml).collect::<String>().parse().unwrap();
        assert_eq!(toml["peer"][1]["public_key"].as_str(), Some(&key[..]));
        assert_eq!(toml["peer"][1]["allowed_ips"][0].as_str(), Some("100.65.0.1/32"));
    }
}
