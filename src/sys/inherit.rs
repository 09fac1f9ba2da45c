//! File descriptors that the process was started with and that an environment variable names (`WG_TUN_FD`,
//! `WG_UAPI_FD`).

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// Takes ownership of an inherited descriptor and marks it close-on-exec. Call it once per descriptor, before the
/// program opens files of its own.
///
/// # Errors
/// EBADF if nothing is open there, EINVAL for the three standard streams.
pub fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if (0..=2).contains(&fd) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: fcntl with F_SETFD takes two numbers and touches no memory of ours.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above proved that `fd` is open. It came from the parent process, which named it for us
    // alone: no other value of this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    #[test]
    fn takes_an_open_descriptor_and_refuses_the_rest() {
        let open = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let owned = take_fd(open).unwrap();
        assert_eq!(owned.as_raw_fd(), open);
        assert_eq!(take_fd(2).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(take_fd(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(take_fd(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
