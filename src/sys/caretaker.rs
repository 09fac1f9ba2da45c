//! Somebody who stays who we were, for one job at our end: a process that becomes another user cannot remove what it
//! made in directories that are root's.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{check, privileges, seccomp};

/// How long [`Caretaker::finish`] waits: a hundred times what removing a file takes.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process that waits. It has its own user, no capability, and the system calls of a running gateway; it holds no
/// secret that is made after it. If this is dropped, or this process is killed, it ends without doing anything.
#[derive(Debug)]
pub struct Caretaker(UnixStream);

impl Caretaker {
    /// Forks the process that will do `job`. It outlives signals that ask to end.
    ///
    /// # Errors
    /// EBUSY if this process has other threads (they would not exist in the child, but their locks would); those of
    /// fork(2) and socketpair(2).
    pub fn leave(job: impl FnOnce()) -> io::Result<Self> {
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: this is the only thread (checked above), so the child's memory, locks included, is consistent.
        if check(unsafe { libc::fork() })? > 0 {
            return Ok(Self(ours));
        }
        drop(ours);
        wait_for_the_end(theirs, job);
        // SAFETY: ends the process at once; nothing of the parent's is to be undone here.
        unsafe { libc::_exit(0) }
    }

    /// Has the job done, and waits for it. Says in the log if it was not.
    pub fn finish(mut self) {
        let mut byte = [0];
        let done = self.0.set_read_timeout(Some(PATIENCE)).and_then(|()| {
            self.0.write_all(&[1])?;
            self.0.read(&mut byte)
        });
        if !matches!(done, Ok(1)) {
            tracing::warn!(?done, "the process that was to clean up has not: the next start does");
        }
    }
}

/// What the child does, whatever happens to its parent.
fn wait_for_the_end(mut parent: UnixStream, job: impl FnOnce()) {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let confined = privileges::lower_thread(None, &[]).is_ok();
    // A kernel without filters has a warning of the gateway's own.
    let _ = seccomp::confine_all_threads();
    let mut byte = [0];
    if confined && matches!(parent.read(&mut byte), Ok(1)) {
        job();
        let _ = parent.write_all(&[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rest is seen in `tests/netns`, where there are processes of one thread.
    #[test]
    fn a_process_with_threads_is_not_forked() {
        let left = std::thread::spawn(|| Caretaker::leave(|| {}).map(drop)).join().unwrap();
        assert_eq!(left.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    }
}
