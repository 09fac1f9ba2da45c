//! Leases in memory and on the disk: how many a second, and how many bytes each takes. Not criterion's: ten million are
//! given, renewed and ended once, in order and at random.
//!
//! `cargo bench --bench lease [-- LEASES]`; the store's file is in the system's directory for temporary files, or in
//! `TMPDIR`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a figure that cannot be taken shall fail")]

use std::hash::RandomState;
use std::time::Instant;

use ringway::control::leases::{Keeping, Leases};
use ringway::lease::ranges::Ranges;
use ringway::lease::{Ask, PoolSpec, Pools};
use ringway::types::{Moment, PublicKey};

/// Durable requests that are on their way at a time, as from so many clients.
const IN_FLIGHT: usize = 4096;

fn client(n: u32) -> PublicKey {
    let mut key = [0; 32];
    for (place, word) in key.chunks_exact_mut(4).enumerate() {
        word.copy_from_slice(&n.wrapping_mul(0x9e37_79b1).rotate_left(place as u32 * 4).to_le_bytes());
    }
    PublicKey(key)
}

fn ask(n: u32) -> Ask<'static> {
    Ask { client: client(n), group: "", pool: "", wanted: None }
}

fn pool() -> PoolSpec {
    PoolSpec {
        name: "ten".to_owned(),
        ranges: Ranges::from_iter(["10.0.0.0/8".parse().unwrap()]),
        ipv6: None,
        lease_time: 3600,
        quarantine: 60,
        groups: Vec::new(),
        drain: false,
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn rate(what: &str, count: u32, work: impl FnOnce()) {
    let begin = Instant::now();
    work();
    let took = begin.elapsed().as_secs_f64();
    println!("{what}: {:.0} a second ({count} in {took:.2} s)", f64::from(count) / took);
}

/// An order in which neighbours are far apart. Each of `0..count` comes once.
fn shuffled(count: u32) -> impl Iterator<Item = u32> {
    let bits = count.next_power_of_two().max(2);
    (0..bits).map(move |n| n.wrapping_mul(0x9e37_79b1) & (bits - 1)).filter(move |n| *n < count)
}

fn in_memory(count: u32) {
    let mut pools = Pools::new(RandomState::new());
    pools.configure(&[pool()]).unwrap();
    let before = resident();
    rate("memory, leased", count, || {
        for n in 0..count {
            pools.request(&ask(n), Moment(n / 10_000)).unwrap();
        }
    });
    println!("bytes per lease: {:.1} of resident memory", (resident() - before) as f64 / f64::from(count));
    let now = Moment(count / 10_000);
    rate("memory, renewed", count, || {
        for n in shuffled(count) {
            assert!(pools.request(&ask(n), now).unwrap().renewed);
        }
    });
    rate("memory, released", count / 2, || {
        for n in shuffled(count).filter(|n| n % 2 == 0) {
            pools.release(&client(n), now).unwrap();
        }
    });
    let later = now + 10_000;
    rate("memory, ended or freed", count, || while pools.expire(later, 1024) == 1024 {});
    rate("memory, leased again", count, || {
        for n in shuffled(count) {
            assert!(!pools.request(&ask(n), later).unwrap().renewed);
        }
    });
    assert_eq!(pools.usage("ten").unwrap().leased, u64::from(count));
}

fn durable(count: u32) {
    let directory = std::env::temp_dir().join(format!("ringway-bench-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("store.db");
    let keeping = Keeping { path: &path, history: 30, account: None };
    let (mut leases, _) = Leases::open(&[pool()], keeping).unwrap();
    let mut all = |what: &str, order: &mut dyn Iterator<Item = u32>| {
        rate(what, count, || {
            let mut waiting = std::collections::VecDeque::with_capacity(IN_FLIGHT);
            for n in order {
                if waiting.len() == IN_FLIGHT {
                    let first: Option<ringway::control::leases::Decided<_>> = waiting.pop_front();
                    first.unwrap().wait().unwrap();
                }
                waiting.push_back(leases.request(&ask(n)).unwrap());
            }
            for decided in waiting {
                decided.wait().unwrap();
            }
        });
    };
    all("durable, leased", &mut (0..count));
    all("durable, renewed", &mut shuffled(count));
    let alone = count.min(200);
    rate("durable, one at a time", alone, || {
        for n in 0..alone {
            leases.request(&ask(n)).unwrap().wait().unwrap();
        }
    });
    drop(leases);
    let size = std::fs::metadata(&path).unwrap().len();
    println!("bytes per lease: {:.1} of the store's file", size as f64 / f64::from(count));
    rate("read at the start", count, || drop(Leases::open(&[pool()], keeping).unwrap()));
    std::fs::remove_dir_all(&directory).unwrap();
}

fn main() {
    // cargo says --bench.
    let count = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(10_000_000);
    in_memory(count);
    durable((count / 20).max(1));
}
