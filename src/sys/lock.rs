//! A file that one process holds (flock(2)): the kernel lets go of it however that process ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::check;

/// Takes the lock of an open file without waiting; false if somebody else holds it. It is held until every copy of
/// the descriptor is closed.
///
/// # Errors
/// Those of flock(2) but EWOULDBLOCK.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: no pointer is passed; `file` is open.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
