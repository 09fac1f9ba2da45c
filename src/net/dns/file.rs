//! resolv.conf(5) and its record: a line with the file's path, one with the length of what was set and of what was
//! found, then both.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{DnsError, Host, RECORD, Settings, lines};
use crate::net::name::InterfaceName;

/// A longer resolv.conf is not one.
const LARGEST: u64 = 1 << 20;
/// Where there was no file.
const NONE: &str = "-";
/// Readable by everybody: it is the resolver of everybody's programs.
const MODE: u32 = 0o644;

/// What was changed.
struct Record {
    /// The file itself, links followed.
    file: PathBuf,
    /// What we wrote.
    set: Vec<u8>,
    /// What was there before, if there was a file.
    found: Option<Vec<u8>>,
}

/// Puts the tunnel's servers into the file, and what was there into the record.
pub(super) fn replace(host: &Host, settings: &Settings) -> Result<(), DnsError> {
    let link = &settings.link;
    let head = format!("# Ringway's for the tunnel {link}; what was here before comes back with its end.\n");
    let set = (head + &lines(settings)).into_bytes();
    // A link stays one, also where what it leads to is not there yet.
    let file = target(&host.resolv_conf).map_err(|error| failed(&host.resolv_conf, error))?;
    let now = read(&file).map_err(|error| failed(&file, error))?;
    let found = match load(&host.record(link))? {
        Some(record) if record.file == file && now.as_ref() == Some(&record.set) => record.found,
        _ => now,
    };
    let record = Record { file, set, found };
    save(&host.record(link), &record)?;
    write(&record.file, &record.set, MODE).map_err(|error| failed(&record.file, error))
}

/// What is in the file; of what the record says that we set, what was there before.
pub(super) fn before(host: &Host, link: &InterfaceName) -> Option<Vec<u8>> {
    let now = read(&target(&host.resolv_conf).ok()?).ok()?;
    match load(&host.record(link)).ok().flatten() {
        Some(record) if now.as_ref() == Some(&record.set) => record.found,
        _ => now,
    }
}

/// Puts back what the record holds, unless somebody else has written since. If that was a later tunnel, it is handed
/// what was there before this one.
pub(super) fn restore(host: &Host, link: &InterfaceName) -> Result<(), DnsError> {
    let path = host.record(link);
    let Some(Record { file, set, found }) = load(&path)? else { return Ok(()) };
    let later = later(host, &file, &set);
    if read(&file).map_err(|error| failed(&file, error))?.as_ref() == Some(&set) {
        let restored = match found {
            Some(found) => write(&file, &found, MODE),
            None => fs::remove_file(&file),
        };
        restored.map_err(|error| failed(&file, error))?;
    } else if let Some((path, later)) = later {
        save(&path, &Record { found, ..later })?;
    } else {
        tracing::info!(file = %file.display(), "somebody else has written the resolver's file since: it stays");
    }
    fs::remove_file(&path).map_err(|error| failed(&path, error))?;
    // Other records may be there.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

/// The record of the tunnel that came after one that had set this. Records that cannot be read are others' business.
fn later(host: &Host, file: &Path, set: &Vec<u8>) -> Option<(PathBuf, Record)> {
    let paths = fs::read_dir(&host.run).ok()?.filter_map(|entry| Some(entry.ok()?.path().join(RECORD)));
    let mut records = paths.filter_map(|path| load(&path).ok().flatten().map(|record| (path, record)));
    records.find(|(_, record)| record.file == file && record.found.as_ref() == Some(set))
}

fn failed(path: &Path, error: io::Error) -> DnsError {
    DnsError::File(path.display().to_string(), error)
}

/// The file that a path leads to; of a link to nothing, what it says.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::read_link(path) {
            Ok(said) => Ok(path.parent().unwrap_or(Path::new("/")).join(said)),
            Err(_) => Ok(path.to_owned()),
        },
        found => found,
    }
}

/// A file's content, if there is a file.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than 1 MiB"));
    }
    Ok(Some(bytes))
}

/// Replaces a file in one step; in place where it is a mount of its own, as a container's is.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".ringway");
    let draft = path.with_file_name(name);
    let mode = fs::metadata(path).map_or(mode, |known| known.permissions().mode() & 0o7777);
    let _ = fs::remove_file(&draft);
    let drafted =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft).and_then(|mut file| {
            // The mask of the process is not asked.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        });
    let renamed = drafted.and_then(|()| fs::rename(&draft, path));
    if renamed.is_ok() {
        return Ok(());
    }
    let _ = fs::remove_file(&draft);
    match renamed {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => fs::write(path, bytes),
        renamed => renamed,
    }
}

fn save(path: &Path, record: &Record) -> Result<(), DnsError> {
    let found = record.found.as_ref().map_or_else(|| NONE.to_owned(), |found| found.len().to_string());
    let mut bytes = format!("{}\n{} {found}\n", record.file.display(), record.set.len()).into_bytes();
    bytes.extend(&record.set);
    bytes.extend(record.found.as_deref().unwrap_or_default());
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| write(path, &bytes, MODE)).map_err(|error| failed(path, error))
}

/// The record, if there is one. One that cannot be read is an error: it may hold the only copy.
fn load(path: &Path) -> Result<Option<Record>, DnsError> {
    let Some(bytes) = read(path).map_err(|error| failed(path, error))? else { return Ok(None) };
    let unreadable = || failed(path, io::Error::new(io::ErrorKind::InvalidData, "this is no record of ours"));
    parse(&bytes).map(Some).ok_or_else(unreadable)
}

fn parse(bytes: &[u8]) -> Option<Record> {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let (file, lengths, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (set, found) = std::str::from_utf8(lengths).ok()?.split_once(' ')?;
    let (set, rest) = rest.split_at_checked(set.parse().ok()?)?;
    let found = match found {
        NONE => rest.is_empty().then_some(None)?,
        length => (length.parse() == Ok(rest.len())).then(|| Some(rest.to_vec()))?,
    };
    Some(Record { file: PathBuf::from(std::str::from_utf8(file).ok()?), set: set.to_vec(), found })
}
