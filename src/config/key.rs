//! Files with one key in base64, which nobody but their owner may read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::types::{KEY_TEXT, Secret};

/// Permissions that a key file must not have.
const OTHERS: u32 = 0o077;

/// What is wrong with a key file; the path is for the caller to say.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// ENOENT.
    #[error("does not exist")]
    Missing,
    /// Its mode lets others in.
    #[error("can be read by others (mode {0:04o}): chmod 600 it")]
    Exposed(u32),
    /// A directory, a device, a pipe.
    #[error("is no regular file")]
    NoFile,
    /// It holds something else.
    #[error("holds no key: 44 characters of base64 are wanted (`ringway genkey`, `ringway genpsk`)")]
    NoKey,
    /// Anything else.
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl From<io::Error> for KeyFileError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Missing } else { Self::Io(error) }
    }
}

/// Reads a key that only its owner may read.
///
/// # Errors
/// See [`KeyFileError`].
pub fn read(path: &Path) -> Result<Secret, KeyFileError> {
    // Not held up by a pipe that nobody writes to.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(KeyFileError::NoFile);
    }
    let mode = meta.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Exposed(mode));
    }
    parse(file)
}

/// Reads a key that systemd put into a credential directory, which is this service's alone.
///
/// # Errors
/// See [`KeyFileError`]; never [`KeyFileError::Exposed`].
pub fn credential(path: &Path) -> Result<Secret, KeyFileError> {
    parse(File::open(path)?)
}

/// A key with white space around it.
fn parse(file: File) -> Result<Secret, KeyFileError> {
    let limit = 2 * KEY_TEXT;
    // Never grows, so that no copy is left behind.
    let mut text = Zeroizing::new(Vec::with_capacity(limit + 1));
    file.take(limit as u64).read_to_end(&mut text)?;
    let text = std::str::from_utf8(&text).map_err(|_| KeyFileError::NoKey)?;
    let key: Secret = text.trim_ascii().parse().map_err(|_| KeyFileError::NoKey)?;
    if key.is_zero() { Err(KeyFileError::NoKey) } else { Ok(key) }
}
