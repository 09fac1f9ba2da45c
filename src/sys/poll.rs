//! poll(2), for threads that wait for descriptors without a ring.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;
use std::time::Duration;

use arrayvec::ArrayVec;

/// Most descriptors that [`readable`] waits for.
pub const MAX_FDS: usize = 8;

/// One descriptor for [`wait`]: what is asked for, and then what the kernel says of it. A negative `fd` is passed over.
pub type PollFd = libc::pollfd;

/// Waits until one of `fds` is as it was asked for or has failed, until `timeout` has passed (`None`: no limit; zero:
/// does not sleep), or until a signal comes. Writes `revents` and returns how many of them are not 0.
///
/// # Errors
/// Those of ppoll(2), but not EINTR. A descriptor that is not open is no error: POLLNVAL stands in its `revents`.
pub fn wait(fds: &mut [PollFd], timeout: Option<Duration>) -> io::Result<usize> {
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        // Below 1,000,000,000.
        tv_nsec: timeout.subsec_nanos() as libc::c_long,
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `fds` is an array of that many pollfds, ours alone for the call; `time` is null or points to a local; no
    // signal mask is given. Numbers of descriptors are not dereferenced by us.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, time, ptr::null()) };
    match super::check(ready) {
        Ok(ready) => Ok(usize::try_from(ready).unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            fds.iter_mut().for_each(|fd| fd.revents = 0);
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

/// Waits until one of `fds` (at most [`MAX_FDS`]; more are not looked at) is readable or has failed, or until
/// `timeout` has passed. A signal ends the wait early.
///
/// # Errors
/// Those of poll(2), but not EINTR.
pub fn readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
    let mut polled: ArrayVec<PollFd, MAX_FDS> = fds
        .iter()
        .take(MAX_FDS)
        .map(|fd| PollFd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    wait(&mut polled, Some(timeout)).map(drop)
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

    #[test]
    fn says_what_each_descriptor_is() {
        let (rung, silent) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        rung.notify();
        let asked = |fd, events| PollFd { fd, events, revents: -1 };
        let mut fds = [
            asked(rung.as_fd().as_raw_fd(), libc::POLLIN | libc::POLLOUT),
            asked(silent.as_fd().as_raw_fd(), libc::POLLIN),
            asked(-1, libc::POLLIN),
            asked(i32::MAX, libc::POLLIN),
        ];
        assert_eq!(wait(&mut fds, None).unwrap(), 2);
        let said = fds.map(|fd| fd.revents);
        assert_eq!(said, [libc::POLLIN | libc::POLLOUT, 0, 0, libc::POLLNVAL]);
        let begun = Instant::now();
        assert_eq!(wait(&mut fds[1..3], Some(Duration::from_micros(1500))).unwrap(), 0);
        assert!(begun.elapsed() >= Duration::from_micros(1500));
        assert_eq!(wait(&mut fds[1..3], Some(Duration::ZERO)).unwrap(), 0);
    }
}
