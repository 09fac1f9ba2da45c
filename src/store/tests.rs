//! The file as a whole: what stays, what is refused, and what is looked after by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::maintenance::{self, Content};
use super::sqlite::{Sqlite, beside};
use super::thread::Handle;
use super::*;
use crate::sys::testing::Scratch;

impl Scratch {
    /// In a directory that is not there yet.
    fn store(&self) -> PathBuf {
        self.0.join("made/store.db")
    }
}

fn tenure(address: u32, client: u8, since: u32, until: u32) -> Tenure {
    Tenure {
        address: Ipv4Addr::from_bits(address),
        client: PublicKey([client; 32]),
        since: Moment(since),
        until: Moment(until),
    }
}

fn lease(tenure: Tenure) -> Write {
    Write::Lease { tenure, history: true }
}

fn content(store: &mut impl Store) -> Vec<Stored> {
    let mut all = Vec::new();
    store.load(&mut |stored| all.push(stored)).unwrap();
    all
}

fn commit(store: &mut impl Store, writes: &[Write]) -> Result<(), StoreError> {
    store.commit(&mut writes.iter().cloned())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_was_committed_is_there_again() {
    let scratch = Scratch::new("again");
    let path = scratch.store();
    let mut store = Sqlite::open(&path).unwrap();
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
    assert_eq!((mode(&beside(&path, "wal")), mode(&beside(&path, "lock"))), (0o600, 0o600));
    let greatest = tenure(u32::MAX, 7, u32::MAX - 1, u32::MAX);
    let (address, client) = (Ipv4Addr::from_bits(5), PublicKey([9; 32]));
    commit(&mut store, &[lease(tenure(1, 1, 10, 20)), lease(greatest), Write::Reserve { address, client }])
        .unwrap();
    commit(&mut store, &[lease(tenure(1, 1, 10, 30))]).unwrap();
    let expected = [
        Stored::Lease(tenure(1, 1, 10, 30)),
        Stored::Lease(greatest),
        Stored::Reservation { address, client },
    ];
    assert_eq!(content(&mut store), expected);
    drop(store);
    let mut store = Sqlite::open(&path).unwrap();
    assert_eq!(content(&mut store), expected);
    commit(&mut store, &[Write::Unreserve { address }]).unwrap();
    assert_eq!(content(&mut store).len(), 2);
}

#[test]
fn a_commit_is_all_or_nothing() {
    let scratch = Scratch::new("whole");
    let mut store = Sqlite::open(&scratch.store()).unwrap();
    let broken = |n: u32| {
        // The second write never comes: as if the disk were full in between.
        assert!(n < 1, "stop here");
        lease(tenure(n, 1, 1, 2))
    };
    let torn =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.commit(&mut (0..2).map(broken))));
    assert!(torn.is_err());
    assert_eq!(content(&mut store), []);
    commit(&mut store, &[lease(tenure(3, 1, 1, 2))]).unwrap();
    assert_eq!(content(&mut store).len(), 1);
}

#[test]
fn history_tells_who_had_an_address() {
    let scratch = Scratch::new("history");
    let mut store = Sqlite::open(&scratch.store()).unwrap();
    let address = Ipv4Addr::from_bits(1);
    for one in [tenure(1, 1, 10, 20), tenure(1, 1, 10, 30), tenure(1, 2, 40, 50), tenure(1, 2, 60, 70)] {
        commit(&mut store, &[lease(one)]).unwrap();
    }
    let mut had = |at| -> Vec<_> {
        let found = store.tenures(address, Moment(at)).unwrap();
        found.iter().map(|tenure| (tenure.client.0[0], tenure.since.0, tenure.until.0)).collect()
    };
    assert_eq!((had(9), had(10), had(29), had(30)), (vec![], vec![(1, 10, 30)], vec![(1, 10, 30)], vec![]));
    assert_eq!((had(45), had(55), had(65)), (vec![(2, 40, 50)], vec![], vec![(2, 60, 70)]));
    // Forgotten in small steps; what is there now stays.
    let forget = Write::Forget { before: Moment(1000), most: 1 };
    commit(&mut store, std::slice::from_ref(&forget)).unwrap();
    commit(&mut store, &[forget.clone(), forget]).unwrap();
    let mut had = |at| store.tenures(address, Moment(at)).unwrap().len();
    assert_eq!((had(10), had(45), had(65)), (0, 0, 1));
    // Without history nothing is kept.
    commit(&mut store, &[Write::Lease { tenure: tenure(1, 3, 80, 90), history: false }]).unwrap();
    assert!(store.tenures(address, Moment(65)).unwrap().is_empty());
}

#[test]
fn one_process_writes_at_a_time() {
    let scratch = Scratch::new("lock");
    let path = scratch.store();
    let store = Sqlite::open(&path).unwrap();
    let error = Sqlite::open(&path).unwrap_err();
    assert!(
        matches!(error, StoreError::InUse(_)) && error.to_string().contains("stop that gateway"),
        "{error}"
    );
    assert!(matches!(maintenance::restore(&path, &path), Err(StoreError::InUse(_))));
    drop(store);
    assert!(Sqlite::open(&path).is_ok());
}

#[test]
fn a_newer_schema_and_somebody_elses_file_are_refused_by_name() {
    let scratch = Scratch::new("newer");
    let path = scratch.store();
    drop(Sqlite::open(&path).unwrap());
    let change = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    change("PRAGMA user_version = 7; UPDATE meta SET value = 'ringway 9.9'");
    let error = Sqlite::open(&path).unwrap_err().to_string();
    assert!(error.contains("has schema 7 of ringway 9.9; ringway 0.1.0 knows schemas up to 3"), "{error}");
    assert_eq!(maintenance::check(&path).unwrap_err().to_string(), error);
    change("PRAGMA application_id = 1");
    assert!(matches!(Sqlite::open(&path), Err(StoreError::Foreign(_))));
    fs::write(&path, "a letter to my aunt, and no store".repeat(100)).unwrap();
    assert!(matches!(Sqlite::open(&path), Err(StoreError::Foreign(_))));
    assert!(matches!(maintenance::check(&scratch.0.join("none")), Err(StoreError::File { .. })));
    assert!(!scratch.0.join("none").exists(), "looking makes nothing");
}

/// A store of so many leases.
fn filled(path: &Path, leases: u32) -> Sqlite {
    let mut store = Sqlite::open(path).unwrap();
    let mut writes = (0..leases).map(|n| lease(tenure(n, 1, n, n + 1)));
    store.commit(&mut writes).unwrap();
    store
}

#[test]
fn a_damaged_file_is_refused_and_a_backup_mends_it() {
    let scratch = Scratch::new("damaged");
    let (path, copy) = (scratch.store(), scratch.0.join("copy.db"));
    let mut store = filled(&path, 20_000);
    // While it is in use.
    let there = Content { schema: 3, leases: 20_000, reservations: 0, history: 0, peers: 0, invites: 0 };
    assert_eq!(maintenance::backup(&path, &copy).unwrap(), there);
    assert_eq!(mode(&copy), 0o600);
    assert!(maintenance::backup(&path, &copy).unwrap_err().to_string().contains("exists"));
    commit(&mut store, &[lease(tenure(20_000, 1, 1, 2))]).unwrap();
    assert_eq!(maintenance::check(&path).unwrap().leases, 20_001);
    let log = fs::read(beside(&path, "wal")).unwrap();
    drop(store);

    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 8192].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    for error in [Sqlite::open(&path).unwrap_err(), maintenance::check(&path).unwrap_err()] {
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("`ringway store restore BACKUP`"), "{error}");
    }
    // A backup that is damaged itself is not put in its place.
    assert!(matches!(maintenance::restore(&path, &path), Err(StoreError::Damaged { .. })));
    // Nor is the log of the old file taken for the new one's.
    fs::write(beside(&path, "wal"), log).unwrap();
    let (restored, aside) = maintenance::restore(&path, &copy).unwrap();
    assert_eq!((restored, aside.as_deref()), (there, Some(beside(&path, "old-1").as_path())));
    assert_eq!(fs::read(aside.unwrap()).unwrap(), bytes);
    assert_eq!(content(&mut Sqlite::open(&path).unwrap()).len(), 20_000);
    assert_eq!(mode(&path), 0o600);
    // Where none is, and once more.
    let other = scratch.0.join("other/store.db");
    assert_eq!(maintenance::restore(&other, &copy).unwrap(), (there, None));
    assert_eq!(maintenance::restore(&path, &copy).unwrap().1, Some(beside(&path, "old-2")));
}

#[test]
fn the_thread_acknowledges_in_order_and_ends_with_everything_stored() {
    let scratch = Scratch::new("thread");
    let path = scratch.store();
    let at = path.clone();
    let (handle, ()) = Handle::start(move || Sqlite::open(&at).map(|store| (store, ()))).unwrap();
    let submit = |n: u32| {
        let one = lease(tenure(n % 50, n as u8, n, n + 1));
        handle.submit([one].into_iter().collect()).unwrap()
    };
    let receipts: Vec<_> = (0..5000).map(submit).collect();
    let looked = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = looked.block_on(handle.tenures(Ipv4Addr::from_bits(7), Moment(4957))).unwrap();
    assert_eq!(found, [tenure(7, 4957_u32 as u8, 4957, 4958)]);
    for receipt in receipts {
        receipt.wait().unwrap();
    }
    let last = submit(5000);
    drop(handle);
    last.wait().unwrap();
    let mut store = Sqlite::open(&path).unwrap();
    assert!(content(&mut store).contains(&Stored::Lease(tenure(0, 5000_u32 as u8, 5000, 5001))));
    let error = Handle::start(move || Sqlite::open(&path).map(|store| (store, ()))).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
}

/// A store that waits for permission.
struct Slow(crossbeam_channel::Receiver<()>, usize);

impl Store for Slow {
    fn load(&mut self, _each: &mut dyn FnMut(Stored)) -> Result<(), StoreError> {
        Ok(())
    }

    fn peers(&mut self) -> Result<Vec<Peer>, StoreError> {
        Ok(Vec::new())
    }

    fn invites(&mut self) -> Result<Vec<Invite>, StoreError> {
        Ok(Vec::new())
    }

    fn enrol(&mut self, _: &Enrolment, _: &mut dyn Iterator<Item = Write>) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn commit(&mut self, writes: &mut dyn Iterator<Item = Write>) -> Result<(), StoreError> {
        self.0.recv().map_err(|_| StoreError::Full("x".into()))?;
        self.1 += writes.count();
        Ok(())
    }

    fn tenures(&mut self, _address: Ipv4Addr, _at: Moment) -> Result<Vec<Tenure>, StoreError> {
        Ok(vec![tenure(0, 0, 0, self.1 as u32)])
    }
}

#[test]
fn what_comes_meanwhile_is_one_transaction_and_a_full_queue_is_told() {
    let (go, waits) = crossbeam_channel::bounded(8);
    let (handle, ()) = Handle::start(move || Ok::<_, StoreError>((Slow(waits, 0), ()))).unwrap();
    let submit = || handle.submit([lease(tenure(1, 1, 1, 2))].into_iter().collect());
    let mut receipts = vec![submit().unwrap()];
    // Taken out of the queue, or not yet: then one fits less.
    let mut full = None;
    while full.is_none() {
        match submit() {
            Ok(receipt) => receipts.push(receipt),
            Err(error) => full = Some(error),
        }
    }
    assert!(matches!(full, Some(StoreError::Busy)) && full.unwrap().heals());
    assert!((16_384..16_384 + 2 * 4096).contains(&receipts.len()), "{}", receipts.len());
    // Whatever the first one took: three transactions are enough for this many.
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    drop(go);
    let results: Vec<_> = receipts.into_iter().map(|receipt| receipt.wait()).collect();
    assert!(handle.failures() > 0 && handle.is_full());
    drop(handle);
    assert!(results[..=2 * 4096].iter().all(Result::is_ok));
    assert!(matches!(results.last(), Some(Err(StoreError::Full(_)))));
}

/// What the first version made of an empty file, word for word.
const FIRST_SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE lease (
        address INTEGER PRIMARY KEY,
        client BLOB NOT NULL CHECK (length(client) = 32),
        since INTEGER NOT NULL,
        until INTEGER NOT NULL
    );
    CREATE TABLE reservation (
        address INTEGER PRIMARY KEY,
        client BLOB NOT NULL UNIQUE CHECK (length(client) = 32)
    );
    CREATE TABLE history (
        address INTEGER NOT NULL,
        client BLOB NOT NULL,
        since INTEGER NOT NULL,
        until INTEGER NOT NULL
    );
    CREATE INDEX history_of_address ON history (address, since);
    CREATE INDEX history_by_end ON history (until);
    PRAGMA application_id = 0x52675779;
    PRAGMA user_version = 1;
    INSERT INTO meta VALUES ('program', 'ringway 0.1.0');
    INSERT INTO lease VALUES (1684275201, zeroblob(32), 10, 20);
    INSERT INTO reservation VALUES (1684275202, zeroblob(32));
    INSERT INTO history VALUES (1684275201, zeroblob(32), 1, 5);
";

#[test]
fn a_file_of_the_first_version_keeps_everything_and_takes_peers() {
    let scratch = Scratch::new("migrated");
    let path = scratch.0.join("store.db");
    Connection::open(&path).unwrap().execute_batch(FIRST_SCHEMA).unwrap();
    let first = Content { schema: 1, leases: 1, reservations: 1, history: 1, peers: 0, invites: 0 };
    assert_eq!(maintenance::check(&path).unwrap(), first);
    // A backup of before the upgrade is put back, and migrated when it is next opened.
    let copy = scratch.0.join("copy.db");
    assert_eq!(maintenance::backup(&path, &copy).unwrap(), first);

    let mut store = Sqlite::open(&path).unwrap();
    let lease = Tenure { address: Ipv4Addr::new(100, 100, 0, 1), ..tenure(0, 0, 10, 20) };
    let reservation =
        Stored::Reservation { address: Ipv4Addr::new(100, 100, 0, 2), client: PublicKey([0; 32]) };
    assert_eq!(content(&mut store), [Stored::Lease(lease), reservation]);
    assert_eq!(store.tenures(lease.address, Moment(3)).unwrap().len(), 1);
    assert!(store.peers().unwrap().is_empty());
    commit(&mut store, &[Write::Peer(Box::new(peer(1, "alice")))]).unwrap();
    drop(store);
    assert_eq!(maintenance::check(&path).unwrap(), Content { schema: 3, peers: 1, ..first });
    assert_eq!(maintenance::restore(&path, &copy).unwrap().0, first);
    assert!(Sqlite::open(&path).unwrap().peers().unwrap().is_empty());
}

/// What the second version added to that, word for word, and a peer.
const SECOND_SCHEMA: &str = "
    CREATE TABLE peer (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        public_key BLOB NOT NULL UNIQUE CHECK (length(public_key) = 32),
        preshared_key BLOB CHECK (length(preshared_key) = 32),
        ipv4 INTEGER UNIQUE,
        ipv6 BLOB UNIQUE CHECK (length(ipv6) = 16),
        client_group TEXT NOT NULL,
        expires INTEGER,
        disabled INTEGER NOT NULL,
        created INTEGER NOT NULL
    );
    PRAGMA user_version = 2;
    INSERT INTO peer VALUES (3, 'carol', zeroblob(32), NULL, 1684275202, NULL, 'phones', NULL, 0, 7);
";

#[test]
fn a_file_of_the_second_version_keeps_its_peers_and_takes_invites() {
    let scratch = Scratch::new("migrated-2");
    let path = scratch.0.join("store.db");
    let made = Connection::open(&path).unwrap();
    made.execute_batch(FIRST_SCHEMA).and_then(|()| made.execute_batch(SECOND_SCHEMA)).unwrap();
    drop(made);
    let second = Content { schema: 2, leases: 1, reservations: 1, history: 1, peers: 1, invites: 0 };
    assert_eq!(maintenance::check(&path).unwrap(), second);
    let mut store = Sqlite::open(&path).unwrap();
    let peers = store.peers().unwrap();
    assert_eq!((peers[0].name.as_str(), peers[0].group.as_str(), peers.len()), ("carol", "phones", 1));
    assert_eq!(content(&mut store).len(), 2);
    assert!(store.invites().unwrap().is_empty());
    commit(&mut store, &[Write::Invite(Box::new(invite("a", 2)))]).unwrap();
    drop(store);
    assert_eq!(maintenance::check(&path).unwrap(), Content { schema: 3, invites: 1, ..second });
}

/// With so many uses, from 10 until 20.
fn invite(id: &str, uses: u8) -> Invite {
    let letter = id.as_bytes()[0];
    Invite {
        id: id.to_owned(),
        keys: (0..uses).map(|k| PublicKey([letter.wrapping_add(k << 4); 32])).collect(),
        prefix: "phones".to_owned(),
        group: "g".to_owned(),
        created: Moment(10),
        expires: Moment(20),
        revoked: None,
        enrolled: Vec::new(),
    }
}

#[test]
fn a_use_is_spent_with_its_peer_or_not_at_all() {
    let scratch = Scratch::new("invites");
    let path = scratch.store();
    let mut store = Sqlite::open(&path).unwrap();
    let (a, b) = (invite("a", 2), invite("b", 1));
    let put = |invite: &Invite| Write::Invite(Box::new(invite.clone()));
    commit(&mut store, &[put(&b), put(&a)]).unwrap();
    for other in [invite("a", 1), Invite { id: "c".to_owned(), ..a.clone() }] {
        assert!(commit(&mut store, &[put(&other)]).is_err(), "its id, or its keys, are another's");
    }
    let spend = |store: &mut Sqlite, id: &str, n: u8, at| {
        let enrolment = Enrolment { invite: id.to_owned(), client: PublicKey([n; 32]), at: Moment(at) };
        let made = Write::Peer(Box::new(peer(n.into(), &format!("p{n}"))));
        store.enrol(&enrolment, &mut [made].into_iter())
    };
    let peers = |store: &mut Sqlite| store.peers().unwrap().iter().map(|peer| peer.id).collect::<Vec<_>>();
    assert!(!spend(&mut store, "a", 9, 20).unwrap(), "it has ended");
    assert!(!spend(&mut store, "none", 9, 11).unwrap(), "there is none");
    assert_eq!(peers(&mut store), [0; 0]);
    assert!(spend(&mut store, "a", 7, 11).unwrap());
    assert!(!spend(&mut store, "a", 7, 12).unwrap(), "once each");
    // What cannot be written with it spends nothing.
    let enrolment = Enrolment { invite: "a".to_owned(), client: PublicKey([5; 32]), at: Moment(13) };
    let same_name = Write::Peer(Box::new(peer(5, "p7")));
    assert!(store.enrol(&enrolment, &mut [same_name].into_iter()).is_err());
    drop(store);
    let mut store = Sqlite::open(&path).unwrap();
    let told = Invite { enrolled: vec![(PublicKey([7; 32]), Moment(11))], ..a.clone() };
    assert_eq!(store.invites().unwrap(), [told, b.clone()]);
    assert!(spend(&mut store, "a", 3, 19).unwrap());
    assert!(!spend(&mut store, "a", 4, 19).unwrap(), "it is spent");
    assert_eq!(peers(&mut store), [3, 7]);
    let revoke = |at| Write::Revoke { id: "b".to_owned(), at: Moment(at) };
    commit(&mut store, &[revoke(12), revoke(13)]).unwrap();
    assert_eq!(store.invites().unwrap()[1].revoked, Some(Moment(12)));
    assert!(!spend(&mut store, "b", 4, 13).unwrap(), "it is revoked");
    commit(&mut store, &[Write::RemoveInvite { id: "a".to_owned() }]).unwrap();
    assert_eq!(store.invites().unwrap(), [Invite { revoked: Some(Moment(12)), ..b }]);
    // With its keys and whom it let in; those are peers still.
    commit(&mut store, &[put(&a)]).unwrap();
    assert!(store.invites().unwrap()[0].enrolled.is_empty());
    assert_eq!(peers(&mut store), [3, 7]);
}

fn peer(id: u64, name: &str) -> Peer {
    Peer {
        id,
        name: name.to_owned(),
        public_key: PublicKey([id as u8; 32]),
        preshared_key: None,
        ipv4: None,
        ipv6: None,
        group: String::new(),
        expires: None,
        disabled: false,
        created: Moment(7),
    }
}

/// All of a peer, as text.
fn whole(peer: &Peer) -> String {
    format!("{peer:?} {:?}", peer.preshared_key.as_ref().map(|key| key.0))
}

#[test]
fn peers_are_kept_as_they_were_last_and_share_nothing() {
    let scratch = Scratch::new("peers");
    let path = scratch.store();
    let mut store = Sqlite::open(&path).unwrap();
    let full = Peer {
        preshared_key: Some(Secret([3; 32])),
        ipv4: Some(Ipv4Addr::BROADCAST),
        ipv6: Some(Ipv6Addr::LOCALHOST),
        group: "phones".to_owned(),
        expires: Some(Moment(u32::MAX)),
        disabled: true,
        ..peer(u64::MAX >> 1, "bob")
    };
    let put = |peer: &Peer| Write::Peer(Box::new(peer.clone()));
    commit(&mut store, &[put(&peer(1, "alice")), put(&full)]).unwrap();
    drop(store);
    let mut store = Sqlite::open(&path).unwrap();
    let told = |store: &mut Sqlite| store.peers().unwrap().iter().map(whole).collect::<Vec<_>>();
    assert_eq!(told(&mut store), [whole(&peer(1, "alice")), whole(&full)]);
    // Another name, then another key: each stays the same peer.
    let renamed = Peer { name: "carol".to_owned(), ..full.clone() };
    let keyed = Peer { public_key: PublicKey([9; 32]), preshared_key: None, ipv6: None, ..renamed.clone() };
    commit(&mut store, &[put(&renamed), put(&keyed)]).unwrap();
    assert_eq!(told(&mut store), [whole(&peer(1, "alice")), whole(&keyed)]);
    let same_name = Peer { name: "carol".to_owned(), ..peer(5, "") };
    let same_key = Peer { public_key: keyed.public_key, ..peer(5, "dave") };
    let same_address = Peer { ipv4: keyed.ipv4, ..peer(5, "dave") };
    for other in [same_name, same_key, same_address] {
        assert!(commit(&mut store, &[put(&other)]).is_err(), "{other:?}");
    }
    commit(&mut store, &[Write::RemovePeer { id: 1 }, Write::RemovePeer { id: 1 }]).unwrap();
    assert_eq!(told(&mut store), [whole(&keyed)]);
}
