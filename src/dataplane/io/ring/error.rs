//! Why there is no ring, in words an operator can act on.

use std::fs;
use std::io;

/// Why a ring could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The sysctl forbids io_uring: 1 to all but a group and CAP_SYS_ADMIN, 2 to everybody.
    #[error(
        "io_uring is forbidden by kernel.io_uring_disabled = {0}: set it to 0 \
         (sysctl -w kernel.io_uring_disabled=0), or for the value 1 run with CAP_SYS_ADMIN or in the group \
         kernel.io_uring_group"
    )]
    Sysctl(u8),
    /// A system call filter forbids it, as container runtimes install one.
    #[error(
        "io_uring is forbidden by a seccomp filter ({0}): allow io_uring_setup, io_uring_enter and io_uring_register \
         in the container's or the service's system call filter"
    )]
    Seccomp(io::Error),
    /// The kernel is older than 6.1 or built without CONFIG_IO_URING.
    #[error("this kernel ({release}) is too old or has no io_uring ({source}): Linux 6.1 or newer is needed")]
    Kernel {
        /// `uname -r`.
        release: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Not enough memory, or RLIMIT_MEMLOCK is too low and cannot be raised.
    #[error(
        "not enough lockable memory for {what} ({source}): raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity for a service, \
         --ulimit memlock=-1 for a container), or use fewer workers"
    )]
    Memory {
        /// What it was for.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A number of slots that is no power of two up to 32768.
    #[error("{0} slots: the number must be a power of two, at most 32768")]
    Slots(u16),
    /// Anything else.
    #[error("{step}: {source}")]
    Other {
        /// What was being done.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl RingError {
    /// For `map_err`: names the step, and recognises a lack of memory.
    pub(super) fn at(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::ENOMEM) => Self::Memory { what: step, source },
            _ => Self::Other { step, source },
        }
    }

    /// Says why io_uring_setup(2) failed.
    pub(super) fn of_setup(error: &io::Error) -> Self {
        let line = |path| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
        let disabled = line("/proc/sys/kernel/io_uring_disabled").and_then(|text| text.parse().ok());
        let release = line("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::classify(error.raw_os_error().unwrap_or(0), disabled, release)
    }

    /// `disabled` is the sysctl (Linux 6.6), if there is one: it also proves that the kernel was built with io_uring.
    fn classify(errno: i32, disabled: Option<u8>, release: String) -> Self {
        let source = io::Error::from_raw_os_error(errno);
        match (errno, disabled) {
            (libc::EPERM | libc::EACCES, Some(value @ 1..)) => Self::Sysctl(value),
            (libc::EPERM | libc::EACCES, _) | (libc::ENOSYS, Some(_)) => Self::Seccomp(source),
            (libc::ENOSYS | libc::EINVAL, _) => Self::Kernel { release, source },
            _ => Self::at("setting up io_uring")(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32, disabled: Option<u8>) -> String {
        RingError::classify(errno, disabled, "5.10.0".to_owned()).to_string()
    }

    #[test]
    fn each_cause_is_named_with_its_remedy() {
        assert!(text(libc::EPERM, Some(2)).contains("kernel.io_uring_disabled = 2"));
        assert!(text(libc::EPERM, Some(1)).contains("io_uring_group"));
        assert!(text(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(text(libc::EPERM, None).contains("seccomp"));
        assert!(text(libc::ENOSYS, Some(0)).contains("seccomp"));
        assert!(text(libc::ENOSYS, None).contains("5.10.0"));
        assert!(text(libc::EINVAL, Some(0)).contains("6.1 or newer"));
        assert!(text(libc::ENOMEM, Some(0)).contains("RLIMIT_MEMLOCK"));
        assert!(text(libc::EMFILE, Some(0)).contains("setting up io_uring"));
    }
}
