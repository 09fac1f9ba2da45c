//! What is one interface's on the host's file systems: `/run/ringway/IF/` while a process serves it, which holds the
//! lock that keeps a second one away; and the private key below `/var/lib/ringway/IF/`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::config::key::{self, KeyFileError};
use crate::control::socket::remove_stale;
use crate::crypto::x25519::PrivateKey;
use crate::sys::caretaker::Caretaker;
use crate::sys::lock::try_lock;
use crate::sys::privileges::Account;
use crate::types::Secret;

/// The lock's file, which names its holder's process.
const PID: &str = "pid";
/// How often somebody may take the file away between our opening and our locking it.
const ATTEMPTS: usize = 16;
/// Name of the systemd credential (systemd.exec(5)) that a private key may be in.
const CREDENTIAL: &str = "private-key";

/// What is wrong with them.
#[derive(Debug, thiserror::Error)]
pub(super) enum HomeError {
    /// Somebody holds the lock.
    #[error(
        "{} is held by process {pid}, which serves this interface: stop it, or give this gateway another interface",
        .path.display()
    )]
    Running {
        /// The directory.
        path: PathBuf,
        /// The holder, as it wrote itself down.
        pid: String,
    },
    /// A directory or its lock cannot be made.
    #[error("cannot use {}: {source}", .path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The private key is not to be had.
    #[error("the private key {} {source}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyFileError,
    },
}

/// The directory of what lives as long as the process. Its removal is the last thing that a gateway does.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    /// Held until the end.
    _lock: File,
    /// The process that left the directory behind.
    predecessor: Option<String>,
    caretaker: Option<Caretaker>,
}

impl RunDir {
    /// Makes the directory, mode 0755, or takes over what a killed process left.
    pub(super) fn take(path: &Path) -> Result<Self, HomeError> {
        for _ in 0..ATTEMPTS {
            if let Some(lock) = open_lock(path).map_err(at(path))?
                && let Some(taken) = Self::claim(path, lock)?
            {
                return Ok(taken);
            }
        }
        Err(at(path)(io::ErrorKind::ResourceBusy.into()))
    }

    /// Takes the lock of a file that is open; `None` if its former holder took the file away meanwhile, so that nobody
    /// else would see the lock.
    fn claim(path: &Path, mut lock: File) -> Result<Option<Self>, HomeError> {
        let file = path.join(PID);
        let pid = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
        if !try_lock(&lock).map_err(at(path))? {
            return Err(HomeError::Running { path: path.to_owned(), pid });
        }
        if !is_at(&lock, &file) {
            return Ok(None);
        }
        lock.set_len(0).map_err(at(path))?;
        writeln!(lock, "{}", std::process::id()).map_err(at(path))?;
        let predecessor = Some(pid).filter(|pid| !pid.is_empty());
        Ok(Some(Self { path: path.to_owned(), _lock: lock, predecessor, caretaker: None }))
    }

    /// Lets another user, whom the process is about to become, take away at the end what is in it.
    pub(super) fn give_to(&self, account: Option<Account>) -> Result<(), HomeError> {
        let Some(Account { uid, gid }) = account else { return Ok(()) };
        chown(&self.path, Some(uid), Some(gid)).map_err(at(&self.path))
    }

    /// Has somebody else take away what that user cannot.
    pub(super) fn leave_to(&mut self, caretaker: Option<Caretaker>) {
        self.caretaker = caretaker;
    }

    /// The process that left the directory behind, if it did not end in order.
    pub(super) fn predecessor(&self) -> Option<&str> {
        self.predecessor.as_deref()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.path);
        // What is in the directory is gone, and so is whoever listened on the socket.
        match self.caretaker.take() {
            Some(caretaker) => caretaker.finish(),
            None => remove_above(&self.path),
        }
        if let Err(error) = removed
            && self.path.exists()
        {
            tracing::info!(path = %self.path.display(), %error, "the directory stays until the next start");
        }
    }
}

/// The process that holds a directory's lock, as it wrote itself down; `None` if nobody does.
pub(super) fn holder(path: &Path) -> io::Result<Option<String>> {
    let file = path.join(PID);
    let lock = match File::open(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let pid = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
    Ok((!try_lock(&lock)?).then_some(pid))
}

/// The directory above goes with its last gateway.
pub(super) fn remove_above(path: &Path) {
    if let Some(above) = path.parent() {
        let _ = fs::remove_dir(above);
    }
}

/// Leaves somebody behind who is still root when the process has become another user, to remove two things from root's
/// directories: the socket's file, once nobody listens on it, and the empty run directory. Call it while the process
/// has one thread and no key.
pub(super) fn leave_caretaker(run_dir: &Path, socket: &Path) -> Option<Caretaker> {
    let job = || {
        let _ = remove_stale(socket);
        let _ = fs::remove_dir(run_dir);
        remove_above(run_dir);
    };
    let left = Caretaker::leave(job);
    left.inspect_err(|error| tracing::warn!(%error, "two empty files will stay behind")).ok()
}

/// Makes the directory and opens the lock's file; `None` if somebody took the directory away in this moment.
fn open_lock(path: &Path) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    match options.open(path.join(PID)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> HomeError {
    move |source| HomeError::Directory { path: path.to_owned(), source }
}

/// False if the file was replaced or removed after it was opened.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => open.dev() == named.dev() && open.ino() == named.ino(),
        _ => false,
    }
}

/// The private key: systemd's credential if there is one, else the file's, which is made if it is missing.
pub(super) fn private_key(file: &Path, credentials: Option<&Path>) -> Result<Secret, HomeError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| HomeError::Key { path, source }
    };
    if let Some(path) = credentials.map(|directory| directory.join(CREDENTIAL)) {
        match key::credential(&path) {
            Err(KeyFileError::Missing) => {}
            key => return key.map_err(at(&path)),
        }
    }
    match key::read(file) {
        Err(KeyFileError::Missing) => make_key(file).map_err(|error| at(file)(error.into())),
        key => key.map_err(at(file)),
    }
}

/// Makes a key and its file: whole and on the disk, or not there.
fn make_key(path: &Path) -> io::Result<Secret> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut key = Secret([0; 32]);
    getrandom::fill(&mut key.0).map_err(io::Error::other)?;
    let key = PrivateKey::new(&key).to_secret();
    let text = Zeroizing::new(format!("{}\n", *Zeroizing::new(STANDARD.encode(key.0))));

    let draft = Draft(directory.join(format!(".private-key.{}", std::process::id())));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.0)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    // Unlike a rename it replaces nobody's file.
    fs::hard_link(&draft.0, path)?;
    drop(draft);
    File::open(directory)?.sync_all()?;
    tracing::info!(path = %path.display(), "a private key was made");
    Ok(key)
}

/// A file's name while it is being written.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests;
