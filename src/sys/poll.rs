//! poll(2), for threads that wait for descriptors without a ring.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use arrayvec::ArrayVec;

/// Most descriptors that [`readable`] waits for.
pub const MAX_FDS: usize = 8;

/// Waits until one of `fds` (at most [`MAX_FDS`]; more are not looked at) is readable or has failed, or until
/// `timeout` has passed. A signal ends the wait early.
///
/// # Errors
/// Those of poll(2), but not EINTR.
pub fn readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
    let mut polled: ArrayVec<libc::pollfd, MAX_FDS> = fds
        .iter()
        .take(MAX_FDS)
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let millis = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as libc::c_int;
    // SAFETY: `polled` is an array of that many pollfds, ours alone for the call; the descriptors are borrowed, so
    // open.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
    match ready {
        -1 => Err(io::Error::last_os_error())
            .or_else(|error| if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::eventfd::EventFd;
    use std::os::fd::AsFd as _;
    use std::time::Instant;

    #[test]
    fn returns_when_readable_and_when_time_is_up() {
        let event = EventFd::new().unwrap();
        let begun = Instant::now();
        readable(&[event.as_fd()], Duration::from_millis(20)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(20));
        event.notify();
        readable(&[event.as_fd()], Duration::from_secs(60)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
