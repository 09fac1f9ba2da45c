//! What an operator does with the store's file: look at it, copy it while a gateway uses it, put a copy in its place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::Backup;

use super::StoreError;
use super::sqlite::{self, beside, existing, file_error, store_error};

/// Pages that are copied at a time: others write in between.
const PAGES: i32 = 1024;

/// What is in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its schema.
    pub schema: u32,
    /// Addresses that somebody has or had.
    pub leases: u64,
    /// Addresses that are kept for somebody.
    pub reservations: u64,
    /// Tenures that others followed.
    pub history: u64,
    /// Peers that stand in no file.
    pub peers: u64,
    /// Invites that are not forgotten yet.
    pub invites: u64,
}

/// Looks at all of the file's structure and counts what is in it. A gateway may run.
///
/// # Errors
/// [`StoreError`]: the file is missing, damaged, of a later version, or no store.
pub fn check(path: &Path) -> Result<Content, StoreError> {
    let connection = open(path)?;
    let schema = sqlite::version(path, &connection)?;
    if schema == 0 {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    sqlite::check(path, &connection, "integrity_check")?;
    let count = |table: &str| {
        let query = format!("SELECT count(*) FROM {table}");
        let count = connection.query_row(&query, (), |row| row.get(0)).map(i64::unsigned_abs);
        count.map_err(|error| store_error(path, error))
    };
    Ok(Content {
        schema,
        leases: count("lease")?,
        reservations: count("reservation")?,
        history: count("history")?,
        // A file of an older version has none yet.
        peers: if schema < sqlite::WITH_PEERS { 0 } else { count("peer")? },
        invites: if schema < sqlite::WITH_INVITES { 0 } else { count("invite")? },
    })
}

/// Copies the store into a new file, as it is at one moment. A gateway may run, and goes on storing.
///
/// # Errors
/// [`StoreError`]; there is no new file then. One that is there is not replaced.
pub fn backup(path: &Path, to: &Path) -> Result<Content, StoreError> {
    if to.exists() {
        return Err(file_error(to, io::ErrorKind::AlreadyExists.into()));
    }
    let draft = Draft(beside(to, "part"));
    copy(&open(path)?, path, &draft.0)?;
    let content = check(&draft.0)?;
    // Unlike a rename it replaces nobody's file.
    fs::hard_link(&draft.0, to).map_err(|error| file_error(to, error))?;
    drop(draft);
    sync_directory(to)?;
    Ok(content)
}

/// Puts a backup in the store's place, after it was checked; what was there stays beside it, and where is returned.
///
/// # Errors
/// [`StoreError::InUse`] while a gateway runs; anything else that is wrong with either.
pub fn restore(path: &Path, from: &Path) -> Result<(Content, Option<PathBuf>), StoreError> {
    let _lock = sqlite::lock(path)?;
    check(from)?;
    let draft = Draft(beside(path, "part"));
    copy(&open(from)?, from, &draft.0)?;
    let content = check(&draft.0)?;
    let aside = put_aside(path)?;
    fs::rename(&draft.0, path).map_err(|error| file_error(path, error))?;
    sync_directory(path)?;
    Ok((content, aside))
}

/// Keeps the file under another name, with what belongs to it: a log of the old one must not be taken for the new
/// one's. Until the new one is in place the old one is there, as it was at its last checkpoint.
fn put_aside(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let names = (1..).map(|n| beside(path, &format!("old-{n}")));
    let Some(aside) = names.take(1000).find(|name| !name.exists()) else {
        return Err(file_error(&beside(path, "old-1"), io::ErrorKind::AlreadyExists.into()));
    };
    fs::hard_link(path, &aside).map_err(|error| file_error(&aside, error))?;
    for what in ["wal", "shm"] {
        let name = beside(path, what);
        match fs::rename(&name, beside(&aside, what)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(&name, error)),
            _ => {}
        }
    }
    Ok(Some(aside))
}

/// Opens a store that must be there.
fn open(path: &Path) -> Result<Connection, StoreError> {
    File::open(path).map_err(|error| file_error(path, error))?;
    existing(path)
}

/// Copies all pages of a store into a new file, mode 0600.
fn copy(from: &Connection, source: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(to, error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    drop(options.open(to).map_err(|error| file_error(to, error))?);
    let mut target = existing(to)?;
    let run = |target: &mut Connection| {
        let backup = Backup::new(from, target)?;
        backup.run_to_completion(PAGES, Duration::from_millis(1), None)
    };
    run(&mut target).map_err(|error| store_error(source, error))?;
    // One file, without a log beside it.
    let mode = target.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get::<_, String>(0));
    mode.map_err(|error| store_error(to, error))?;
    drop(target);
    let file = File::open(to).map_err(|error| file_error(to, error))?;
    file.sync_all().map_err(|error| file_error(to, error))
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| file_error(directory, error))
}

/// A file's name while it is being written.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
