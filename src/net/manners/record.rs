//! What each gateway changed, in `/run/ringway/IF/undo`: written before the change, read by whoever comes after a
//! gateway that was killed. The file is locked for as long as its gateway lives.
//!
//! Its first line names the network namespace, each further one a parameter, the value found and the value set.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::MannersError;
use crate::net::name::InterfaceName;
use crate::net::sysctl::Parameter;
use crate::sys::lock::{lock, try_lock};
use crate::sys::netns::Namespace;

/// The record of a gateway, in its directory.
const RECORD: &str = "undo";
/// A longer record is not one.
const RECORD_MAX: u64 = 1 << 20;
/// The keys that a record may name, and the values that it may hold: whoever can write it must not choose freely what
/// the next start does as root.
const KEYS: [&str; 4] = ["forwarding", "force_forwarding", "accept_ra", "rp_filter"];
const VALUES: [&str; 3] = ["0", "1", "2"];

/// One parameter that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) parameter: Parameter,
    /// Its value before any gateway touched it.
    pub(super) before: String,
    /// Its value since.
    pub(super) set: String,
}

impl Change {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (path, before, set, None) = (words.next()?, words.next()?, words.next()?, words.next()) else {
            return None;
        };
        let parameter = Parameter::parse(path)?;
        let filter = parameter.key() == "rp_filter" && parameter.path() != "ipv4/conf/all/rp_filter";
        let known =
            KEYS.contains(&parameter.key()) && !filter && VALUES.contains(&before) && VALUES.contains(&set);
        known.then(|| Self { parameter, before: before.to_owned(), set: set.to_owned() })
    }
}

/// A record whose lock is ours.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: File,
    changes: Vec<Change>,
}

impl Record {
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Writes down what is about to be changed, in one write: a kill leaves whole lines or none.
    pub(super) fn add(&mut self, changes: Vec<Change>) -> Result<(), MannersError> {
        let mut lines = String::new();
        for Change { parameter, before, set } in &changes {
            lines.push_str(&format!("{} {before} {set}\n", parameter.path()));
        }
        let failed = |error| MannersError::Record(self.path.display().to_string(), error);
        self.file.write_all(lines.as_bytes()).map_err(failed)?;
        self.changes.extend(changes);
        Ok(())
    }

    /// Everything is undone. A process that gave up root may be unable to remove the file: an empty one says the same.
    pub(super) fn close(&self) {
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!(%error, path = %self.path.display(), "the record of changes stays");
        }
        // Its directory may hold files of others; it goes if it is empty.
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// All records of a host. Whoever holds this changes and restores alone.
pub(super) struct Records {
    run: PathBuf,
    namespace: String,
    _lock: File,
}

impl Records {
    /// Waits until nobody else changes or restores: the lock is the directory's own. It stays as long as there is a
    /// gateway's in it.
    pub(super) fn open(run: &Path) -> Result<Self, MannersError> {
        let failed = |error| MannersError::Record(run.display().to_string(), error);
        let directory = match File::open(run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(run).and_then(|()| File::open(run))
            }
            opened => opened,
        };
        let directory = directory.map_err(failed)?;
        lock(&directory).map_err(failed)?;
        Ok(Self { run: run.to_owned(), namespace: own_namespace().map_err(failed)?, _lock: directory })
    }

    /// Begins the record of a gateway that starts.
    pub(super) fn begin(&self, interface: &InterfaceName) -> Result<Record, MannersError> {
        let directory = self.run.join(interface.as_str());
        let path = directory.join(RECORD);
        let failed = |error| MannersError::Record(path.display().to_string(), error);
        fs::create_dir_all(&directory).map_err(failed)?;
        let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(&path);
        let mut file = opened.map_err(failed)?;
        if !try_lock(&file).map_err(failed)? {
            return Err(MannersError::Running(interface.clone()));
        }
        self.head(&mut file).map_err(failed)?;
        Ok(Record { path, file, changes: Vec::new() })
    }

    /// What is in the record was undone, and its gateway goes on.
    pub(super) fn empty(&self, record: &mut Record) -> Result<(), MannersError> {
        record.changes.clear();
        let failed = |error| MannersError::Record(record.path.display().to_string(), error);
        self.head(&mut record.file).map_err(failed)
    }

    /// Leaves the first line. A kill in between leaves an empty file, which says the same as one without changes.
    fn head(&self, file: &mut File) -> io::Result<()> {
        file.set_len(0)?;
        file.write_all(format!("{}\n", self.namespace).as_bytes())
    }

    /// The records of this namespace whose gateways are gone, with their interfaces; they are ours from now on.
    pub(super) fn abandoned(&self) -> Result<Vec<(String, Record)>, MannersError> {
        let mut found = Vec::new();
        for (interface, path) in self.files()? {
            let failed = |error| MannersError::Record(path.display().to_string(), error);
            let opened = OpenOptions::new().read(true).append(true).open(&path);
            let mut file = opened.map_err(failed)?;
            if try_lock(&file).map_err(failed)? {
                let Some(changes) = self.read(&mut file).map_err(failed)? else { continue };
                found.push((interface, Record { path, file, changes }));
            }
        }
        Ok(found)
    }

    /// What the gateways that run in this namespace have changed, but for that of `own`.
    pub(super) fn needed_by_others(&self, own: Option<&str>) -> Result<Vec<Change>, MannersError> {
        let mut needed = Vec::new();
        for (interface, path) in self.files()? {
            if Some(interface.as_str()) == own {
                continue;
            }
            let failed = |error| MannersError::Record(path.display().to_string(), error);
            let mut file = File::open(&path).map_err(failed)?;
            if !try_lock(&file).map_err(failed)? {
                needed.extend(self.read(&mut file).map_err(failed)?.unwrap_or_default());
            }
        }
        Ok(needed)
    }

    fn files(&self) -> Result<Vec<(String, PathBuf)>, MannersError> {
        let failed = |error| MannersError::Record(self.run.display().to_string(), error);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.run).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (name, path) = (entry.file_name().into_string(), entry.path().join(RECORD));
            if let Ok(name) = name
                && path.is_file()
            {
                files.push((name, path));
            }
        }
        Ok(files)
    }

    /// The changes of a record, without lines that are none; `None` if it is another namespace's.
    fn read(&self, file: &mut File) -> io::Result<Option<Vec<Change>>> {
        let mut text = String::new();
        file.take(RECORD_MAX).read_to_string(&mut text)?;
        let mut lines = text.lines();
        // An empty record is that of a gateway that ended well.
        if lines.next().is_some_and(|namespace| namespace != self.namespace) {
            return Ok(None);
        }
        Ok(Some(lines.filter_map(Change::parse).collect()))
    }
}

/// The parameters of a list of changes.
pub(super) fn parameters(changes: &[Change]) -> HashSet<&Parameter> {
    changes.iter().map(|change| &change.parameter).collect()
}

fn own_namespace() -> io::Result<String> {
    Ok(Namespace::current()?.identity()?.to_string())
}
