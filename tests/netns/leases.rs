//! The store of a gateway: with what is left to it when it is confined, on a disk that is full, and damaged.

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use ringway::control::leases::{Keeping, Leases};
use ringway::lease::ranges::Ranges;
use ringway::lease::{Ask, PoolSpec};
use ringway::store::sqlite::Sqlite;
use ringway::store::thread::NAME;
use ringway::store::{Store as _, StoreError, Tenure, Write};
use ringway::sys::privileges::Account;
use ringway::sys::seccomp;
use ringway::types::{Moment, PublicKey};

use crate::appliance::{Appliance, file, head, program};
use crate::dropin::text;
use crate::errands;
use crate::lab::{Host, Lab, machine, wait_until};
use crate::supervised::capabilities_of_the_unit;
use crate::topology::GATEWAY_V4;

const SOON: Duration = Duration::from_secs(10);
const POOL: &str = "[[pool]]\nname = \"all\"\nipv4 = [\"100.65.0.0/16\"]\n";

/// Where a gateway's page is, in its namespace.
const PAGE_AT: &str = "127.0.0.1:9586";

/// The file of a gateway with a pool.
fn content(user: &str, more: &str) -> String {
    let head = head("wg0", &[&format!("{GATEWAY_V4}/10")], 0).replace("\"off\"", &format!("{PAGE_AT:?}"));
    format!("user = \"{user}\"\n{head}{POOL}{more}")
}

/// `ringway store` of the gateway's file: exit code and what it said.
fn store(host: &Host, what: &str) -> (i32, String) {
    let done = host.attempt(&format!("{} store --config /var/run/wg0.toml {what}", program()));
    (done.status.code().unwrap(), text(&done.stdout) + &text(&done.stderr))
}

fn client(n: u32) -> PublicKey {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    PublicKey(key)
}

/// The errand: a store whose history ended in 1970.
pub(crate) fn old_history(path: &Path) {
    let mut store = Sqlite::open(path).unwrap();
    let tenure = |n, since, until| Tenure {
        address: Ipv4Addr::new(100, 65, 0, 1),
        client: client(n),
        since: Moment(since),
        until: Moment(until),
    };
    let lease = |tenure| Write::Lease { tenure, history: true };
    // And one that lasts.
    let lasts = Tenure { address: Ipv4Addr::new(100, 65, 0, 2), ..tenure(3, 5, u32::MAX) };
    let all = [tenure(1, 1, 2), tenure(2, 3, 4), lasts];
    store.commit(&mut all.into_iter().map(lease)).unwrap();
}

#[test]
fn a_confined_gateway_of_another_user_keeps_its_store() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    errands::run_on(&host, "old-history /var/lib/ringway/wg0/store.db");
    file(&host, "wg0.toml", &content("nobody", ""));
    assert!(store(&host, "check").1.contains("2 addresses, 0 reservations, 1 entries of history"));

    let unit = format!("setpriv --no-new-privs --bounding-set {} --", capabilities_of_the_unit());
    let gateway = Appliance::start_through(&host, "wg0", &content("nobody", ""), &unit);
    // It forgets as soon as it serves, which is after it was confined.
    wait_until("the history is forgotten", SOON, || store(&host, "check").1.contains("0 entries of history"));
    let nobody = machine("id -u nobody");
    let mut found = false;
    for task in fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        if line("Name:") == NAME {
            found = true;
            assert!(line("Uid:").split_whitespace().all(|uid| uid == nobody.trim()), "{status}");
            assert_eq!((line("CapPrm:"), line("Seccomp:")), ("0000000000000000", "2"), "{status}");
        }
    }
    assert!(found, "no thread {NAME}");
    let page = host.run(&format!("curl -s --max-time 10 http://{PAGE_AT}/metrics"));
    for line in [
        "ringway_pool_addresses{interface=\"wg0\",pool=\"all\"} 65536",
        "ringway_pool_leased{interface=\"wg0\",pool=\"all\"} 1",
        "ringway_store_full{interface=\"wg0\"} 0",
    ] {
        assert!(page.lines().any(|one| one == line), "{line}: {page}");
    }

    // While it runs: a copy, but nothing in its place; no second gateway of the store; pools that change.
    let (code, said) = store(&host, "backup /var/lib/copy.db");
    assert_eq!((code, said.contains("schema 3, 0 peers, 0 invites, 2 addresses")), (0, true), "{said}");
    let (code, said) = store(&host, "restore /var/lib/copy.db");
    assert_eq!((code, said.contains("stop that gateway")), (8, true), "{said}");
    let second = content("", "").replace("wg0", "wg1").replace(PAGE_AT, "127.0.0.1:9587");
    let second = second + "[store]\npath = \"/var/lib/ringway/wg0/store.db\"\n";
    let path = file(&host, "wg1.toml", &second);
    let refused = host.attempt(&format!("{} gateway --config {path}", program()));
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    assert!(!host.has_interface("wg1"));
    let more = "exclude = [\"100.65.0.0/28\"]\n[[pool]]\nname = \"more\"\nipv4 = [\"100.66.0.0/16\"]\n";
    file(&host, "wg0.toml", &content("nobody", more));
    let reloaded = host.run(&format!("{} reload --config /var/run/wg0.toml", program()));
    assert!(reloaded.starts_with("~ pool: [all [100.65.0.0-100.65.255.255] for"), "{reloaded}");
    assert!(
        reloaded.contains("without [100.65.0.0-100.65.0.15]") && reloaded.contains("more ["),
        "{reloaded}"
    );
    gateway.end();

    let (code, said) = store(&host, "restore /var/lib/copy.db");
    assert_eq!((code, said.contains("what was there is")), (0, true), "{said}");
    Appliance::start(&host, "wg0", &content("nobody", "")).end();
}

#[test]
fn a_damaged_store_is_refused_until_a_backup_is_there() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    errands::run_on(&host, "old-history /var/lib/ringway/wg0/store.db");
    file(&host, "wg0.toml", &content("", ""));
    assert_eq!(store(&host, "backup /var/lib/copy.db").0, 0);
    // Everything behind the header and the schema.
    host.run(
        "dd if=/dev/urandom of=/var/lib/ringway/wg0/store.db bs=4096 seek=1 count=8 conv=notrunc status=none",
    );
    let refused = host.attempt(&format!("{} gateway --config /var/run/wg0.toml", program()));
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(
        said.contains("store.db: damaged (") && said.contains("`ringway store restore BACKUP`"),
        "{said}"
    );
    assert_eq!(store(&host, "check").0, 3);
    assert!(!host.has_interface("wg0") && !host.run_file("ringway").exists());
    assert_eq!(store(&host, "restore /var/lib/copy.db").0, 0);
    Appliance::start(&host, "wg0", &content("", "")).end();
}

#[test]
fn a_full_disk_costs_no_lease_and_heals() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    host.run("mount -t tmpfs -o size=4m tmpfs /var/lib");
    errands::run_on(&host, "full-disk /var/lib");
}

fn open(path: &Path) -> Leases {
    let pool = PoolSpec {
        name: "all".to_owned(),
        ranges: Ranges::from_iter(["100.65.0.0/16".parse().unwrap()]),
        ipv6: None,
        lease_time: 86_400,
        quarantine: 0,
        groups: Vec::new(),
        drain: false,
    };
    let account = Some(Account::named("nobody").unwrap());
    Leases::open(&[pool], Keeping { path, history: 30, account }).unwrap().0
}

/// The errand: leases for others on a disk that fills up, by a store's thread that has no rights left.
pub(crate) fn full_disk(directory: &Path) {
    let (path, ballast) = (directory.join("store/store.db"), directory.join("ballast"));
    let mut leases = open(&path);
    // Opened before: the filter is for good, and for this thread as well.
    let mut weight = fs::File::create(&ballast).unwrap();
    seccomp::confine_all_threads().unwrap();
    let ask = |n| Ask { client: client(n), group: "", pool: "", wanted: None };
    let mut told = Vec::new();
    // Enough for several checkpoints.
    for group in 0..20 {
        let decided: Vec<_> =
            (group * 200..(group + 1) * 200).map(|n| leases.request(&ask(n)).unwrap()).collect();
        told.extend(decided.into_iter().map(|decided| decided.wait().unwrap().lease));
    }
    let full = loop {
        if let Err(error) = weight.write_all(&[0x5a; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    // What room the log has left is used up.
    let mut n = 10_000;
    let error = loop {
        n += 1;
        assert!(n < 40_000, "the disk never was full");
        match leases.request(&ask(n)).unwrap().wait() {
            Ok(granted) => told.push(granted.lease),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full(_)) && error.heals(), "{error}");
    let waits = leases.lease_of(&client(n)).unwrap().address;
    assert!(leases.request(&ask(n)).unwrap().wait().is_err(), "nobody is told what is not stored");
    // Who has a lease keeps it.
    assert_eq!(leases.lease_of(&client(0)).unwrap().address, told[0].address);
    weight.set_len(0).unwrap();
    let granted = leases.request(&ask(n)).unwrap().wait().unwrap();
    assert_eq!(granted.lease.address, waits, "nobody else got it meanwhile");
    told.push(granted.lease);
    drop(leases);

    let mut found = std::collections::HashMap::new();
    let mut store = Sqlite::open(&path).unwrap();
    let mut note = |stored| {
        if let ringway::store::Stored::Lease(tenure) = stored {
            found.insert(tenure.address, tenure.client);
        }
    };
    store.load(&mut note).unwrap();
    for lease in told {
        assert_eq!(found.get(&lease.address), Some(&lease.client), "{}", lease.address);
    }
}
