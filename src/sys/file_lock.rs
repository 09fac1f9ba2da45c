//! Advisory locks on open files (flock(2)): they end with the process, however it ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::check;

/// Waits until the exclusive lock is ours; it is held until the last copy of the descriptor closes.
///
/// # Errors
/// Those of flock(2); EINTR is waited out.
pub fn exclusive(file: &File) -> io::Result<()> {
    loop {
        match flock(file, libc::LOCK_EX) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Takes the exclusive lock if nobody has it; false if somebody does.
///
/// # Errors
/// Those of flock(2), but not EWOULDBLOCK.
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    match flock(file, libc::LOCK_EX | libc::LOCK_NB) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointer is passed; the descriptor is borrowed, so open.
    check(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::eventually;

    #[test]
    fn one_holder_at_a_time_and_none_after_it_closed() {
        let path = std::env::temp_dir().join(format!("ringway-lock-{}", std::process::id()));
        let (first, second) = (File::create(&path).unwrap(), File::open(&path).unwrap());
        exclusive(&first).unwrap();
        assert!(!try_exclusive(&second).unwrap());
        drop(first);
        eventually(|| try_exclusive(&second).unwrap().then_some(()));
        std::fs::remove_file(path).unwrap();
    }
}
