//! A doorbell between threads (eventfd(2)): the sender puts its message into a channel, then rings; the sleeper
//! watches the descriptor through its ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::{check, check_len};

/// A non-blocking eventfd; clones share one counter. Closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct EventFd(Arc<OwnedFd>);

impl EventFd {
    /// Makes one, closed on exec, with its counter at 0.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM of eventfd(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel just made this descriptor and nobody else knows it.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Rings: a watcher of the descriptor sees it readable until [`EventFd::drain`]. Rings add up to one. The only
    /// failure of the write is a counter already at its top, which is rung enough.
    pub fn notify(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: `one` is readable for its length.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences the bell. True if it had been rung since the last call.
    #[must_use]
    pub fn drain(&self) -> bool {
        let mut count = [0_u8; 8];
        // SAFETY: `count` is writable for its length.
        let read = unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        check_len(read).is_ok_and(|n| n == count.len())
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_add_up_to_one_and_clones_share() {
        let bell = EventFd::new().unwrap();
        let other = bell.clone();
        assert!(!bell.drain());
        other.notify();
        other.notify();
        assert!(bell.drain());
        assert!(!other.drain());
    }

    #[test]
    fn rings_across_threads() {
        let bell = EventFd::new().unwrap();
        let other = bell.clone();
        std::thread::spawn(move || other.notify()).join().unwrap();
        assert!(bell.drain());
    }
}
