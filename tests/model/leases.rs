//! Leases under kill -9: what was acknowledged is there again, once. And whose worker they meet.
//!
//! The inner test leases as fast as it goes, in a process of its own, and prints what was acknowledged; the outer one
//! kills it at a random moment, opens the store, and compares. `RINGWAY_KILLS` says how often.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ringway::control::leases::{Keeping, Leases};
use ringway::dataplane::steering::queue_of;
use ringway::lease::ranges::Ranges;
use ringway::lease::{Ask, PoolSpec, Pools};
use ringway::types::{Moment, PublicKey};

/// The store of the inner test, and the number of its life.
const STORE: &str = "RINGWAY_CHURN_STORE";
const LIFE: &str = "RINGWAY_CHURN_LIFE";
/// How often it is killed.
const KILLS: &str = "RINGWAY_KILLS";
/// Clients that come and go; three of four find an address.
const CLIENTS: u32 = 16_384;
/// Requests that wait to be stored at a time.
const IN_FLIGHT: usize = 512;

fn client(n: u32) -> PublicKey {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    PublicKey(key)
}

fn ask(n: u32) -> Ask<'static> {
    Ask { client: client(n), group: "", pool: "", wanted: None }
}

fn pool() -> PoolSpec {
    PoolSpec {
        name: "churn".to_owned(),
        ranges: Ranges::from_iter(["100.64.0.0-100.64.47.255".parse().unwrap()]),
        ipv6: "fd64:1:2::/48".parse().ok(),
        lease_time: 86_400,
        quarantine: 0,
        groups: Vec::new(),
        drain: false,
    }
}

fn open(path: &Path) -> Leases {
    Leases::open(&[pool()], Keeping { path, history: 30, account: None }).unwrap().0
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Prints `+ CLIENT ADDRESS` for each lease that was acknowledged; `? CLIENT` before the end of one is asked for, and
/// `- CLIENT` when that was acknowledged.
#[test]
#[ignore = "inner: what acknowledged_leases_survive_kill runs and kills"]
fn churn() {
    let path = PathBuf::from(std::env::var_os(STORE).unwrap());
    let mut state = std::env::var(LIFE).unwrap().parse().unwrap();
    let mut leases = open(&path);
    let mut out = std::io::stdout().lock();
    loop {
        let mut granted = Vec::with_capacity(IN_FLIGHT);
        let mut released = Vec::new();
        for _ in 0..IN_FLIGHT {
            let n = (random(&mut state) % u64::from(CLIENTS)) as u32;
            if random(&mut state).is_multiple_of(8) {
                writeln!(out, "? {n}").unwrap();
                out.flush().unwrap();
                released.push((n, leases.release(&client(n)).unwrap()));
            } else if let Ok(decided) = leases.request(&ask(n)) {
                granted.push((n, decided));
            }
        }
        let mut lines = String::new();
        for (n, decided) in granted {
            let address = decided.wait().unwrap().lease.address;
            lines.push_str(&format!("+ {n} {address}\n"));
        }
        for (n, decided) in released {
            decided.wait().unwrap();
            lines.push_str(&format!("- {n}\n"));
        }
        out.write_all(lines.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

/// What the process said, when it was killed `after` it began to speak.
fn killed(store: &Path, life: u64, after: Duration) -> Vec<String> {
    let mut inner = Command::new(std::env::current_exe().unwrap());
    inner.args(["leases::churn", "--exact", "--ignored", "--nocapture"]);
    inner.env(STORE, store).env(LIFE, life.to_string()).stdin(Stdio::null());
    let mut inner = inner.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(inner.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    let is_ours = |line: &str| line.starts_with(['+', '-', '?']);
    for line in lines.by_ref().map_while(Result::ok) {
        if is_ours(&line) {
            said.push(line);
            break;
        }
    }
    let pid = inner.id();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(after);
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    });
    // A line that was cut short says nothing.
    said.extend(lines.map_while(Result::ok).filter(|line| is_ours(line)));
    killer.join().unwrap();
    let _ = inner.wait();
    if said.last().is_some_and(|line| line.starts_with('+') && line.split('.').count() < 4) {
        said.pop();
    }
    said
}

#[test]
fn acknowledged_leases_survive_kill() {
    let scratch = std::env::temp_dir().join(format!("ringway-churn-{}", std::process::id()));
    std::fs::create_dir(&scratch).unwrap();
    let path = scratch.join("store.db");
    let kills = std::env::var(KILLS).map_or(10, |kills| kills.parse().unwrap());
    let mut state = u64::from(std::process::id());
    let mut acknowledged = 0;
    for life in 0..kills {
        let after = Duration::from_millis(random(&mut state) % 300);
        let said = killed(&path, life, after);
        let mut has: HashMap<u32, Option<&str>> = HashMap::new();
        for line in &said {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["+", n, address] => {
                    has.insert(n.parse().unwrap(), Some(address));
                    acknowledged += 1;
                }
                // Ended, or about to: either may be so.
                ["-" | "?", n] => {
                    has.insert(n.parse().unwrap(), None);
                }
                _ => {}
            }
        }
        let leases = open(&path);
        let mut whose: HashMap<_, u32> = HashMap::new();
        for n in 0..CLIENTS {
            if let Some(lease) = leases.lease_of(&client(n)) {
                assert_eq!(whose.insert(lease.address, n), None, "{} twice after life {life}", lease.address);
            }
        }
        for (n, address) in has.into_iter().filter_map(|(n, address)| Some((n, address?))) {
            let found = leases.lease_of(&client(n)).map(|lease| lease.address.to_string());
            assert_eq!(found.as_deref(), Some(address), "client {n} after life {life}");
        }
    }
    std::fs::remove_dir_all(&scratch).unwrap();
    eprintln!("{acknowledged} acknowledged leases in {kills} lives, none missing, none double");
    assert!(acknowledged > 1000, "{acknowledged}: nothing was tested");
}

/// Nothing of a lease needs an entry in the steering map: whoever has the one address has the other.
#[test]
fn both_families_of_a_lease_meet_one_worker() {
    let mut pools = Pools::new(std::hash::RandomState::new());
    pools.configure(&[pool()]).unwrap();
    for n in 0..1000 {
        let lease = pools.request(&ask(n), Moment(0)).unwrap().lease;
        for workers in 1..=16 {
            let of_v6 = queue_of(lease.ipv6.unwrap().into(), workers);
            assert_eq!(queue_of(lease.address.into(), workers), of_v6);
        }
    }
}
