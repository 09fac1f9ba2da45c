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

/// As [`try_lock`], but waits until whoever holds the lock lets go of it.
///
/// # Errors
/// Those of flock(2); EINTR is waited out.
pub fn lock(file: &File) -> io::Result<()> {
    loop {
        // SAFETY: no pointer is passed; `file` is open.
        match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            locked => return locked.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::eventually;

    #[test]
    fn one_holder_at_a_time_and_none_after_it_closed() {
        let path = std::env::temp_dir().join(format!("ringway-lock-{}", std::process::id()));
        let (first, second) = (File::create(&path).unwrap(), File::open(&path).unwrap());
        lock(&first).unwrap();
        assert!(!try_lock(&second).unwrap());
        drop(first);
        eventually(|| try_lock(&second).unwrap().then_some(()));
        std::fs::remove_file(path).unwrap();
    }
}
