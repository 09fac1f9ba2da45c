//! Network namespaces (network_namespaces(7)): every thread lives in one, and a TUN device may be moved to another
//! while its descriptors stay with us.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use super::check;

/// An open reference to a network namespace, which keeps it alive.
#[derive(Debug)]
pub struct Namespace(File);

/// What tells namespaces apart: device and inode of their file in nsfs. Unique among those alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    dev: u64,
    inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.inode)
    }
}

impl Namespace {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// Those of open(2); /proc must be mounted.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// Device and inode, to compare.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn identity(&self) -> io::Result<Identity> {
        let meta = self.0.metadata()?;
        Ok(Identity { dev: meta.dev(), inode: meta.ino() })
    }

    /// Moves the calling thread, and no other, into this namespace (setns(2)).
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; EINVAL if the descriptor is no network namespace.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: no pointer is passed.
        check(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
    }

    /// Runs `job` on a short-lived thread inside this namespace, so that the caller's own never changes, not even
    /// when something fails half-way.
    ///
    /// # Errors
    /// Those of [`Namespace::enter`], of making a thread, and of `job`.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || {
                self.enter()?;
                job()
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the job in a namespace panicked")))
        })
    }
}

impl From<OwnedFd> for Namespace {
    fn from(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread, and no other, into a new, empty network namespace (unshare(2)). It lives until its last
/// thread, descriptor, socket and mount is gone.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOSPC beyond the limit of namespaces.
pub fn unshare() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_netns;

    #[test]
    fn a_thread_keeps_its_identity() {
        let a = Namespace::current().unwrap().identity().unwrap();
        let b = Namespace::current().unwrap().identity().unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn unshare_moves_one_thread_only_and_run_leaves_the_caller() {
        let home = Namespace::current().unwrap();
        let home_id = home.identity().unwrap();
        in_netns(move || {
            let here = Namespace::current().unwrap().identity().unwrap();
            assert_ne!(here, home_id);
            let there = home.run(|| Namespace::current()?.identity()).unwrap();
            assert_eq!(there, home_id);
            assert_eq!(Namespace::current().unwrap().identity().unwrap(), here);
        });
        assert_eq!(Namespace::current().unwrap().identity().unwrap(), home_id);
    }

    #[test]
    fn a_file_is_no_namespace() {
        let fake = Namespace::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        assert!(fake.run(|| Ok(())).is_err());
    }
}
