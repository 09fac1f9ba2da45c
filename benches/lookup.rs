//! allowed-ips look-ups by table size: hosts (a gateway of leases), IPv4 networks, IPv6 networks. Every look-up asks
//! for another address, in random order, so that caches help as little as they ever will.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringway::dataplane::allowed_ips::AllowedIps;
use ringway::types::{PeerId, Prefix, WorkerId};

const SIZES: [u32; 4] = [1, 1000, 130_000, 1_000_000];

/// Spreads 0..2^24 over the 24 bits without meeting twice.
fn scatter(n: u32) -> u32 {
    n.wrapping_mul(0x009e_3779) & 0x00ff_ffff
}

fn v4(n: u32, len: u8) -> Option<Prefix> {
    let bits = if len == 32 { 0x6440_0000 + n } else { scatter(n) << 8 };
    Prefix::new(IpAddr::from(bits.to_be_bytes()), len)
}

fn v6(n: u32) -> Option<Prefix> {
    let bits = (0x2001_0db8_u128 << 96) | (u128::from(scatter(n)) << 72);
    Prefix::new(IpAddr::from(bits.to_be_bytes()), 56)
}

/// The prefix of a number.
type Nth = fn(u32) -> Option<Prefix>;

fn lookup(criterion: &mut Criterion) {
    let kinds: [(&str, Nth); 3] = [("hosts_v4", |n| v4(n, 32)), ("nets_v4", |n| v4(n, 24)), ("nets_v6", v6)];
    for (kind, nth) in kinds {
        let mut group = criterion.benchmark_group(kind);
        for size in SIZES {
            let mut table = AllowedIps::new();
            let peer = PeerId { slot: 1, generation: 1 };
            for prefix in (0..size).filter_map(nth) {
                table.insert(prefix, peer, WorkerId(0));
            }
            let asked: Vec<IpAddr> = (0..1 << 20)
                .filter_map(|n: u32| nth((n.wrapping_mul(0x9e37_79b1) >> 8) % size))
                .map(|prefix| prefix.addr())
                .collect();
            let mut addresses = asked.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                bencher.iter(|| addresses.next().map(|&addr| black_box(table.lookup(black_box(addr)))));
            });
        }
        group.finish();
    }
}

/// Loading a table of 130,000 prefixes, and removing the peer that has them all.
fn load(criterion: &mut Criterion) {
    criterion.bench_function("load_and_remove_130000", |bencher| {
        bencher.iter(|| {
            let mut table = AllowedIps::new();
            let peer = PeerId { slot: 1, generation: 1 };
            for prefix in (0..130_000).filter_map(|n| v4(n, 24)) {
                table.insert(prefix, peer, WorkerId(0));
            }
            table.remove_peer(peer)
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(500));
    targets = lookup, load
}
criterion_main!(benches);
