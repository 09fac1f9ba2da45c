//! The random model lives in `crate::fuzzing`, where the fuzzer uses it as well.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn peer(slot: u32) -> PeerId {
    PeerId { slot, generation: 1 }
}

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn owner(table: &AllowedIps, addr: &str) -> Option<u32> {
    table.lookup(addr.parse().unwrap()).map(|(peer, _)| peer.slot)
}

const W: WorkerId = WorkerId(3);

#[test]
fn the_longest_prefix_wins_in_any_order_of_insertion() {
    let prefixes = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"];
    for backwards in [false, true] {
        let mut table = AllowedIps::new();
        for n in 0..prefixes.len() {
            let n = if backwards { prefixes.len() - 1 - n } else { n };
            assert_eq!(table.insert(prefix(prefixes[n]), peer(n as u32), W), None);
        }
        for (addr, expected) in
            [("192.0.2.1", 0), ("10.2.0.0", 1), ("10.1.3.0", 2), ("10.1.2.4", 3), ("10.1.2.3", 4)]
        {
            assert_eq!(owner(&table, addr), Some(expected), "{addr}");
        }
        assert_eq!(owner(&table, "::1"), None, "a default route is of one family");
        assert_eq!(owner(&table, "::ffff:10.1.2.3"), None, "a mapped address is an IPv6 address");
    }
}

#[test]
fn both_families_to_their_ends() {
    let mut table = AllowedIps::new();
    for (n, text) in ["::/0", "ffff::/16", "ffff::/127", "ffff::/128", "255.255.255.255/32", "0.0.0.0/1"]
        .into_iter()
        .enumerate()
    {
        table.insert(prefix(text), peer(n as u32), W);
    }
    assert_eq!(owner(&table, "::"), Some(0));
    assert_eq!(owner(&table, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(1));
    assert_eq!(owner(&table, "ffff::1"), Some(2));
    assert_eq!(owner(&table, "ffff::"), Some(3));
    assert_eq!(owner(&table, "255.255.255.255"), Some(4));
    assert_eq!(owner(&table, "127.255.255.255"), Some(5));
    assert_eq!(owner(&table, "128.0.0.0"), None);
}

#[test]
fn a_prefix_moves_from_its_old_owner() {
    let mut table = AllowedIps::new();
    for text in ["10.0.0.0/24", "10.0.0.1/32", "fd00::/64"] {
        assert_eq!(table.insert(prefix(text), peer(1), WorkerId(0)), None);
        assert_eq!(table.insert(prefix(text), peer(2), WorkerId(1)), Some((peer(1), WorkerId(0))));
        assert_eq!(table.insert(prefix(text), peer(2), WorkerId(1)), Some((peer(2), WorkerId(1))));
    }
    assert_eq!(table.len(), 3);
    assert_eq!(table.prefixes_of(peer(1)).count(), 0);
    assert_eq!(table.prefixes_of(peer(2)).count(), 3);
    assert_eq!(table.lookup("10.0.0.1".parse().unwrap()), Some((peer(2), WorkerId(1))));
}

#[test]
fn a_source_is_allowed_by_the_longest_prefix_only() {
    let mut table = AllowedIps::new();
    table.insert(prefix("10.0.0.0/8"), peer(1), W);
    table.insert(prefix("10.9.0.0/16"), peer(2), W);
    table.insert(prefix("10.9.9.9/32"), peer(1), W);
    let allowed = |addr: &str, slot| table.allowed_source(addr.parse().unwrap(), peer(slot));
    assert!(allowed("10.1.1.1", 1) && !allowed("10.1.1.1", 2));
    assert!(!allowed("10.9.0.1", 1) && allowed("10.9.0.1", 2), "the overlapping wider prefix does not help");
    assert!(allowed("10.9.9.9", 1) && !allowed("10.9.9.9", 2));
    assert!(!allowed("192.0.2.1", 1));
    let successor = PeerId { slot: 1, generation: 2 };
    assert!(
        !table.allowed_source("10.1.1.1".parse().unwrap(), successor),
        "another generation is another peer"
    );
}

#[test]
fn removing_a_peer_touches_nobody_else() {
    let mut table = AllowedIps::new();
    for n in 0..100_u32 {
        let addr = IpAddr::from((0x0a00_0000 + n * 256).to_be_bytes());
        table.insert(Prefix::new(addr, 24).unwrap(), peer(n % 4), W);
        table.insert(Prefix::new(addr, 32).unwrap(), peer(n % 4), W);
    }
    assert_eq!(table.remove_peer(peer(1)), 50);
    assert_eq!(table.remove_peer(peer(1)), 0);
    assert_eq!(table.len(), 150);
    for n in 0..100_u32 {
        let addr = IpAddr::from((0x0a00_0000 + n * 256).to_be_bytes());
        assert_eq!(table.lookup(addr).map(|(p, _)| p), (n % 4 != 1).then_some(peer(n % 4)));
    }
    for slot in [0, 2, 3] {
        table.remove_peer(peer(slot));
    }
    assert!(table.is_empty());
    assert_eq!(table.v4.nets.nodes_in_use(), 0);
}

#[test]
fn only_the_exact_prefix_is_removed() {
    let mut table = AllowedIps::new();
    table.insert(prefix("10.0.0.0/24"), peer(1), W);
    assert!(!table.remove(prefix("10.0.0.0/25")));
    assert!(!table.remove(prefix("10.0.0.0/23")));
    assert!(!table.remove(prefix("10.0.0.0/32")));
    assert!(table.remove(prefix("10.0.0.0/24")));
    assert!(!table.remove(prefix("10.0.0.0/24")));
}

/// A peer with 130,000 prefixes works and costs by its prefixes, also when they go one by one.
#[test]
fn many_prefixes_on_one_peer() {
    let begun = Instant::now();
    let mut table = AllowedIps::new();
    let nth = |n: u32| {
        let len = 20 + (n % 13) as u8;
        Prefix::new(IpAddr::from(n.wrapping_mul(0x9e37_79b1).to_be_bytes()), len).unwrap()
    };
    let mut distinct = 0;
    for n in 0..130_000 {
        distinct += usize::from(table.insert(nth(n), peer(7), W).is_none());
    }
    assert!(distinct > 100_000);
    assert_eq!(table.len(), distinct);
    for n in 0..130_000 {
        assert!(table.allowed_source(nth(n).addr(), peer(7)));
    }
    let removed = (0..65_000).filter(|&n| table.remove(nth(n))).count();
    assert_eq!(table.remove_peer(peer(7)), distinct - removed);
    assert!(table.is_empty());
    // A quadratic step would take minutes; the bound is wide because tests share their machine.
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_hash_spreads_neighbouring_addresses() {
    let hash = KeyedState::random();
    for mask in [0xff, 0xff << 57_u32] {
        let mut buckets = std::collections::HashSet::new();
        for n in 0..256_u128 {
            buckets.insert(hash.hash_one(n) & mask);
            buckets.insert(hash.hash_one(n << 64) & mask);
        }
        assert!(buckets.len() > 64, "{} of {} buckets", buckets.len(), 256);
    }
}

proptest! {
    #[test]
    fn equals_the_naive_list(records in prop::collection::vec(any::<[u8; 6]>(), 0..400)) {
        crate::fuzzing::allowed_ips(records.as_flattened());
    }
}
