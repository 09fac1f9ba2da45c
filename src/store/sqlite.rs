//! The store as a SQLite file: WAL, synchronous FULL, so that a commit is on the disk when it returns; the schema's
//! version in `user_version`, and our own mark in `application_id`.
//!
//! Whoever writes holds the lock of the file `….lock` beside it (flock(2)); SQLite's own locks come and go, and say
//! nothing about a process that is about to start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::{Enrolment, Invite, Peer, Store, StoreError, Stored, Tenure, Write};
use crate::sys::lock::try_lock;
use crate::types::{Moment, PublicKey, Secret};

/// `application_id` of our files: "RgWy".
const APPLICATION: u32 = u32::from_be_bytes(*b"RgWy");
/// What each schema adds to the one before; their number is the latest version.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    -- The last tenure of each address; it is leased if `until` is still to come.
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
    -- Tenures that others followed.
    CREATE TABLE history (
        address INTEGER NOT NULL,
        client BLOB NOT NULL,
        since INTEGER NOT NULL,
        until INTEGER NOT NULL
    );
    CREATE INDEX history_of_address ON history (address, since);
    CREATE INDEX history_by_end ON history (until);
",
    "
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
",
    "
    CREATE TABLE invite (
        id TEXT PRIMARY KEY,
        prefix TEXT NOT NULL,
        client_group TEXT NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        revoked INTEGER
    ) WITHOUT ROWID;
    -- The public key of each use.
    CREATE TABLE invite_key (
        public_key BLOB PRIMARY KEY CHECK (length(public_key) = 32),
        invite TEXT NOT NULL,
        k INTEGER NOT NULL,
        UNIQUE (invite, k)
    ) WITHOUT ROWID;
    -- Uses that are spent, in the order of spending.
    CREATE TABLE enrolment (
        number INTEGER PRIMARY KEY,
        invite TEXT NOT NULL,
        client BLOB NOT NULL CHECK (length(client) = 32),
        at INTEGER NOT NULL,
        UNIQUE (invite, client)
    );
",
];
/// The schema from which on there are peers.
pub(super) const WITH_PEERS: u32 = 2;
/// The schema from which on there are invites.
pub(super) const WITH_INVITES: u32 = 3;
/// How long a commit waits for another process that has the file (a checkpoint and a backup that begins).
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the lock is tried for, and how long apart: a program that its holder was just starting when it ended has a
/// copy of the descriptor until it runs.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// An open store.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
    /// Held as long as the store is open.
    _lock: File,
}

impl Sqlite {
    /// Opens the store, which is made if it is missing: its directory with mode 0700, the file with 0600. Its structure
    /// is looked at first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let mut connection = connect(path)?;
        let fail = |error| store_error(path, error);
        let version = version(path, &connection)?;
        if version > 0 {
            check(path, &connection, "quick_check")?;
        }
        connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        migrate(&mut connection, version).map_err(fail)?;
        Ok(Self { path: path.to_owned(), connection, _lock: lock })
    }

    fn error(&self, error: rusqlite::Error) -> StoreError {
        store_error(&self.path, error)
    }
}

impl Store for Sqlite {
    fn load(&mut self, each: &mut dyn FnMut(Stored)) -> Result<(), StoreError> {
        let mut load = || {
            let mut leases = self.connection.prepare("SELECT address, client, since, until FROM lease")?;
            let mut rows = leases.query(())?;
            while let Some(row) = rows.next()? {
                each(Stored::Lease(tenure(row)?));
            }
            let mut reservations = self.connection.prepare("SELECT address, client FROM reservation")?;
            let mut rows = reservations.query(())?;
            while let Some(row) = rows.next()? {
                let (address, client) = (Ipv4Addr::from_bits(row.get(0)?), PublicKey(row.get(1)?));
                each(Stored::Reservation { address, client });
            }
            Ok(())
        };
        load().map_err(|error| store_error(&self.path, error))
    }

    fn peers(&mut self) -> Result<Vec<Peer>, StoreError> {
        let find = || {
            let mut query = self.connection.prepare(
                "SELECT id, name, public_key, preshared_key, ipv4, ipv6, client_group, expires, disabled, created
                     FROM peer ORDER BY id",
            )?;
            query.query_map((), peer)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        find().map_err(|error| store_error(&self.path, error))
    }

    fn invites(&mut self) -> Result<Vec<Invite>, StoreError> {
        let find = || {
            let mut query = self.connection.prepare(
                "SELECT id, prefix, client_group, created, expires, revoked FROM invite ORDER BY id",
            )?;
            let mut keys =
                self.connection.prepare("SELECT public_key FROM invite_key WHERE invite = ?1 ORDER BY k")?;
            let mut enrolled = self
                .connection
                .prepare("SELECT client, at FROM enrolment WHERE invite = ?1 ORDER BY number")?;
            let mut all = query.query_map((), invite)?.collect::<rusqlite::Result<Vec<_>>>()?;
            for invite in &mut all {
                invite.keys = keys
                    .query_map([&invite.id], |row| row.get(0).map(PublicKey))?
                    .collect::<rusqlite::Result<_>>()?;
                invite.enrolled = enrolled
                    .query_map([&invite.id], |row| Ok((PublicKey(row.get(0)?), Moment(row.get(1)?))))?
                    .collect::<rusqlite::Result<_>>()?;
            }
            Ok(all)
        };
        find().map_err(|error| store_error(&self.path, error))
    }

    fn enrol(
        &mut self,
        enrolment: &Enrolment,
        writes: &mut dyn Iterator<Item = Write>,
    ) -> Result<bool, StoreError> {
        let enrol = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            if !spend(&transaction, enrolment)? {
                return Ok(false);
            }
            for write in writes {
                apply(&transaction, write)?;
            }
            transaction.commit().map(|()| true)
        };
        enrol(&mut self.connection).map_err(|error| self.error(error))
    }

    fn commit(&mut self, writes: &mut dyn Iterator<Item = Write>) -> Result<(), StoreError> {
        let commit = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            for write in writes {
                apply(&transaction, write)?;
            }
            transaction.commit()
        };
        commit(&mut self.connection).map_err(|error| self.error(error))
    }

    fn tenures(&mut self, address: Ipv4Addr, at: Moment) -> Result<Vec<Tenure>, StoreError> {
        let find = || {
            let mut query = self.connection.prepare_cached(
                "SELECT address, client, since, until FROM lease
                     WHERE address = ?1 AND since <= ?2 AND until > ?2
                 UNION SELECT address, client, since, until FROM history
                     WHERE address = ?1 AND since <= ?2 AND until > ?2
                 ORDER BY since DESC",
            )?;
            query.query_map(params![address.to_bits(), at.0], tenure)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        find().map_err(|error| store_error(&self.path, error))
    }
}

fn tenure(row: &rusqlite::Row<'_>) -> rusqlite::Result<Tenure> {
    Ok(Tenure {
        address: Ipv4Addr::from_bits(row.get(0)?),
        client: PublicKey(row.get(1)?),
        since: Moment(row.get(2)?),
        until: Moment(row.get(3)?),
    })
}

fn peer(row: &rusqlite::Row<'_>) -> rusqlite::Result<Peer> {
    Ok(Peer {
        id: row.get::<_, i64>(0)?.unsigned_abs(),
        name: row.get(1)?,
        public_key: PublicKey(row.get(2)?),
        preshared_key: row.get::<_, Option<[u8; 32]>>(3)?.map(Secret),
        ipv4: row.get::<_, Option<u32>>(4)?.map(Ipv4Addr::from_bits),
        ipv6: row.get::<_, Option<[u8; 16]>>(5)?.map(Ipv6Addr::from),
        group: row.get(6)?,
        expires: row.get::<_, Option<u32>>(7)?.map(Moment),
        disabled: row.get(8)?,
        created: Moment(row.get(9)?),
    })
}

fn invite(row: &rusqlite::Row<'_>) -> rusqlite::Result<Invite> {
    Ok(Invite {
        id: row.get(0)?,
        prefix: row.get(1)?,
        group: row.get(2)?,
        created: Moment(row.get(3)?),
        expires: Moment(row.get(4)?),
        revoked: row.get::<_, Option<u32>>(5)?.map(Moment),
        keys: Vec::new(),
        enrolled: Vec::new(),
    })
}

/// Spends a use if there is one to spend.
fn spend(transaction: &Connection, enrolment: &Enrolment) -> rusqlite::Result<bool> {
    let Enrolment { invite, client, at } = enrolment;
    let spent = transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO enrolment (invite, client, at)
                 SELECT id, ?2, ?3 FROM invite WHERE id = ?1 AND revoked IS NULL AND expires > ?3
                     AND (SELECT count(*) FROM enrolment WHERE invite = ?1)
                         < (SELECT count(*) FROM invite_key WHERE invite = ?1)",
        )?
        .execute(params![invite, client.0, at.0])?;
    Ok(spent == 1)
}

fn apply(transaction: &Connection, write: Write) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<()> {
        transaction.prepare_cached(sql)?.execute(values).map(drop)
    };
    match write {
        Write::Lease { tenure: Tenure { address, client, since, until }, history } => {
            let address = address.to_bits();
            if history {
                run(
                    "INSERT INTO history SELECT address, client, since, until FROM lease
                         WHERE address = ?1 AND (client <> ?2 OR since <> ?3)",
                    params![address, client.0, since.0],
                )?;
            }
            run(
                "INSERT OR REPLACE INTO lease (address, client, since, until) VALUES (?1, ?2, ?3, ?4)",
                params![address, client.0, since.0, until.0],
            )
        }
        Write::Reserve { address, client } => run(
            "INSERT OR REPLACE INTO reservation (address, client) VALUES (?1, ?2)",
            params![address.to_bits(), client.0],
        ),
        Write::Unreserve { address } => {
            run("DELETE FROM reservation WHERE address = ?1", params![address.to_bits()])
        }
        Write::Forget { before, most } => run(
            "DELETE FROM history WHERE rowid IN (SELECT rowid FROM history WHERE until < ?1 LIMIT ?2)",
            params![before.0, most],
        ),
        Write::Peer(peer) => put_peer(&run, &peer),
        Write::RemovePeer { id } => run("DELETE FROM peer WHERE id = ?1", params![id.cast_signed()]),
        Write::Invite(invite) => put_invite(&run, &invite),
        Write::Revoke { id, at } => {
            run("UPDATE invite SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL", params![id, at.0])
        }
        Write::RemoveInvite { id } => {
            run("DELETE FROM enrolment WHERE invite = ?1", params![id])?;
            run("DELETE FROM invite_key WHERE invite = ?1", params![id])?;
            run("DELETE FROM invite WHERE id = ?1", params![id])
        }
    }
}

/// A new invite with its keys; one that has an id or a key of another's is refused by the tables.
fn put_invite(
    run: &impl Fn(&str, &[&dyn rusqlite::ToSql]) -> rusqlite::Result<()>,
    invite: &Invite,
) -> rusqlite::Result<()> {
    let Invite { id, prefix, group, created, expires, .. } = invite;
    run(
        "INSERT INTO invite (id, prefix, client_group, created, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, prefix, group, created.0, expires.0],
    )?;
    for (k, key) in (0_u32..).zip(&invite.keys) {
        run("INSERT INTO invite_key (public_key, invite, k) VALUES (?1, ?2, ?3)", params![key.0, id, k])?;
    }
    Ok(())
}

/// The row of this number, new or changed. What would be another's as well is refused by the table.
fn put_peer(
    run: &impl Fn(&str, &[&dyn rusqlite::ToSql]) -> rusqlite::Result<()>,
    peer: &Peer,
) -> rusqlite::Result<()> {
    run(
        "INSERT INTO peer
             (id, name, public_key, preshared_key, ipv4, ipv6, client_group, expires, disabled, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (id) DO UPDATE SET name = ?2, public_key = ?3, preshared_key = ?4, ipv4 = ?5, ipv6 = ?6,
             client_group = ?7, expires = ?8, disabled = ?9",
        params![
            peer.id.cast_signed(),
            peer.name,
            peer.public_key.0,
            peer.preshared_key.as_ref().map(|key| key.0),
            peer.ipv4.map(Ipv4Addr::to_bits),
            peer.ipv6.map(|address| address.octets()),
            peer.group,
            peer.expires.map(|at| at.0),
            peer.disabled,
            peer.created.0,
        ],
    )
}

/// Keeps every other writer away until it is dropped.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.ok_or_else(|| file_error(path, io::ErrorKind::InvalidInput.into()))?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| file_error(directory, error))?;
    let name = beside(path, "lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(&name).map_err(|error| file_error(&name, error))?;
    for _ in 0..TRIES {
        if try_lock(&lock).map_err(|error| file_error(&name, error))? {
            return Ok(lock);
        }
        std::thread::sleep(PAUSE);
    }
    Err(StoreError::InUse(path.to_owned()))
}

/// A file that belongs to the store's.
pub(super) fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(if what == "wal" || what == "shm" { "-" } else { "." });
    name.push(what);
    name.into()
}

/// Opens the file, which is made if it is missing, for nobody but its owner.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(|error| file_error(path, error))?;
    let private = file.metadata().is_ok_and(|found| found.permissions().mode() & 0o077 == 0);
    if !private {
        let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
        closed.map_err(|error| file_error(path, error))?;
    }
    // Before SQLite opens it: closing any descriptor of a file lets go of all locks that a process has on it.
    drop(file);
    existing(path)
}

/// Opens a file that is there.
pub(super) fn existing(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        // Sorting and the like: never in a file elsewhere.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    };
    open().map_err(|error| store_error(path, error))
}

/// The schema's version: 0 for a file in which nothing is yet.
///
/// # Errors
/// A file of somebody else's, or of a later version of this program.
pub(super) fn version(path: &Path, connection: &Connection) -> Result<u32, StoreError> {
    let number = |pragma: &str| {
        let found = connection.pragma_query_value(None, pragma, |row| row.get::<_, u32>(0));
        found.map_err(|error| store_error(path, error))
    };
    let (application, found, tables) =
        (number("application_id")?, number("user_version")?, number("schema_version")?);
    let known = MIGRATIONS.len() as u32;
    if application != APPLICATION {
        let empty = application == 0 && found == 0 && tables == 0;
        return if empty { Ok(0) } else { Err(StoreError::Foreign(path.to_owned())) };
    }
    if found > known {
        let query = "SELECT value FROM meta WHERE key = 'program'";
        let by = connection.query_row(query, (), |row| row.get(0)).optional().unwrap_or_default();
        let by = by.unwrap_or_else(|| "a later version of Ringway".to_owned());
        return Err(StoreError::Newer { path: path.to_owned(), found, known, by });
    }
    Ok(found)
}

/// `quick_check` or `integrity_check` of SQLite.
///
/// # Errors
/// [`StoreError::Damaged`], with the first thing that was found.
pub(super) fn check(path: &Path, connection: &Connection, pragma: &str) -> Result<(), StoreError> {
    let first = connection.query_row(&format!("PRAGMA {pragma}(1)"), (), |row| row.get::<_, String>(0));
    match first.map_err(|error| store_error(path, error))?.as_str() {
        "ok" => Ok(()),
        what => {
            let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(StoreError::Damaged { path: path.to_owned(), what })
        }
    }
}

/// Brings the schema up to date, in one transaction.
fn migrate(connection: &mut Connection, version: u32) -> rusqlite::Result<()> {
    let program = concat!("ringway ", env!("CARGO_PKG_VERSION"));
    let transaction = connection.transaction()?;
    for migration in MIGRATIONS.iter().skip(version as usize) {
        transaction.execute_batch(migration)?;
    }
    if (version as usize) < MIGRATIONS.len() {
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
        transaction.execute("INSERT OR REPLACE INTO meta VALUES ('program', ?1)", [program])?;
    }
    transaction.commit()
}

pub(super) fn file_error(path: &Path, source: io::Error) -> StoreError {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::Full(path.to_owned()),
        _ => StoreError::File { path: path.to_owned(), source: Arc::new(source) },
    }
}

pub(super) fn store_error(path: &Path, error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(path.to_owned()),
        Some(ErrorCode::NotADatabase) => StoreError::Foreign(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt) => {
            StoreError::Damaged { path: path.to_owned(), what: error.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse(path.to_owned()),
        _ => StoreError::Sqlite { path: path.to_owned(), source: Arc::new(error) },
    }
}
