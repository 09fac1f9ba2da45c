//! Things of the whole process: going to the background, limits, what a core dump may hold.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use super::check;

/// What the child writes when it is up; anything else is an exit code, and an error text after it.
const READY: u8 = 0;
/// More of an error text than this is cut: one line for a terminal.
const ERROR_MAX: u64 = 4096;

/// The background half of [`daemonize`]: whoever started the program waits until it speaks.
#[derive(Debug)]
#[must_use = "the parent waits until `ready` or `fail` is called, or this is dropped"]
pub struct Daemon {
    verdict: File,
}

/// Forks; only the child returns. The parent waits for the child's verdict and exits: with 0 after
/// [`Daemon::ready`], else with the code of [`Daemon::fail`] after printing its text, or with 1 after printing that the
/// child ended. The child
/// leads a session of its own, without a terminal; its streams stay until it is ready, so that early messages are
/// seen.
///
/// # Errors
/// EBUSY if the process has other threads (they would not exist in the child, but their locks would); those of
/// fork(2), pipe(2), setsid(2).
pub fn daemonize() -> io::Result<Daemon> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: this is the only thread (checked above), so the child's memory, locks included, is consistent.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        drop(writer);
        let code = report(reader, &mut io::stderr());
        std::process::exit(code);
    }
    drop(reader);
    let daemon = Daemon { verdict: File::from(OwnedFd::from(writer)) };
    // SAFETY: no pointer is passed.
    match check(unsafe { libc::setsid() }) {
        Ok(_) => Ok(daemon),
        Err(error) => {
            daemon.fail(1, &error.to_string());
            Err(error)
        }
    }
}

/// The parent's half: waits for the verdict, prints what went wrong, and returns the exit code.
fn report(reader: impl Read, stderr: &mut dyn Write) -> i32 {
    let mut said = Vec::new();
    let mut reader = reader.take(ERROR_MAX);
    let (mut byte, mut code) = ([0], None);
    loop {
        match reader.read(&mut byte) {
            Ok(1) if byte[0] == READY => return 0,
            Ok(1) if code.is_none() => code = Some(byte[0]),
            Ok(1) => said.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    if said.is_empty() {
        said.extend_from_slice(b"ringway: the background process ended before it was ready");
    }
    said.push(b'\n');
    let _ = stderr.write_all(&said);
    code.unwrap_or(1).into()
}

impl Daemon {
    /// Tells the waiting parent that all is up, after leaving the start directory and the standard streams (they
    /// become /dev/null). Standard error stays if it is a regular file: somebody asked for a log; a kept pipe
    /// would make `$(ringway wg0)` wait for ever.
    ///
    /// # Errors
    /// Those of chdir(2), open(2), dup2(2); the parent then learns that start failed.
    pub fn ready(mut self) -> io::Result<()> {
        std::env::set_current_dir("/")?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        replace(&null, libc::STDIN_FILENO)?;
        replace(&null, libc::STDOUT_FILENO)?;
        if !is_regular(&io::stderr()) {
            replace(&null, libc::STDERR_FILENO)?;
        }
        // The parent may have been killed meanwhile: we are up all the same (std ignores SIGPIPE).
        let _ = self.verdict.write_all(&[READY]);
        Ok(())
    }

    /// Tells the waiting parent why start failed: its exit code (0 counts as 1), and one line, in which NUL and line
    /// ends become spaces.
    pub fn fail(mut self, code: u8, reason: &str) {
        let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = self.verdict.write_all(&[&[code.max(1)], line.as_bytes()].concat());
    }
}

fn is_regular(stream: &impl AsFd) -> bool {
    let copy = stream.as_fd().try_clone_to_owned();
    copy.and_then(|fd| File::from(fd).metadata()).is_ok_and(|meta| meta.is_file())
}

/// Makes the standard stream `stream` a copy of `file`.
fn replace(file: &File, stream: RawFd) -> io::Result<()> {
    debug_assert!((0..=2).contains(&stream));
    // SAFETY: `file` is open. The standard streams are nobody's `OwnedFd`; std reaches them by number only.
    check(unsafe { libc::dup2(file.as_raw_fd(), stream) }).map(drop)
}

/// A descriptor that the parent process left open for us and named in the environment (`WG_TUN_FD`, `WG_UAPI_FD`).
/// Returns a copy of our own; the original stays open until exit, is closed on exec, and is not to be used.
///
/// # Errors
/// EBADF if nothing is open there; EINVAL for a standard stream or a negative number.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: no pointer is passed; a number that is not open gives EBADF.
    let copy = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) })?;
    // SAFETY: as above; changes only whether the original survives an exec.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the kernel just made `copy` and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Raises the limit of locked memory (RLIMIT_MEMLOCK, getrlimit(2)) to at least `bytes`, or to the hard limit
/// where the kernel permits no more. Never lowers it. Returns the limit now in force, in bytes (`u64::MAX`: none).
///
/// # Errors
/// Those of getrlimit(2); a refusal to raise is no error but a small answer.
pub fn raise_memlock(bytes: u64) -> io::Result<u64> {
    raise(Limit::Memlock, bytes)
}

/// Raises the limit of open files (RLIMIT_NOFILE) to at least `files`, as [`raise_memlock`] does its own.
///
/// # Errors
/// Those of getrlimit(2); a refusal to raise is no error but a small answer.
pub fn raise_open_files(files: u64) -> io::Result<u64> {
    raise(Limit::OpenFiles, files)
}

/// The limits that are raised. (The type of their numbers depends on the C library.)
#[derive(Clone, Copy)]
enum Limit {
    Memlock,
    OpenFiles,
}

fn raise(which: Limit, wanted: u64) -> io::Result<u64> {
    let which = match which {
        Limit::Memlock => libc::RLIMIT_MEMLOCK,
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
    };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid to write to.
    check(unsafe { libc::getrlimit(which, &raw mut limit) })?;
    if limit.rlim_cur >= wanted {
        return Ok(limit.rlim_cur);
    }
    let wishes = [(wanted, wanted.max(limit.rlim_max)), (wanted.min(limit.rlim_max), limit.rlim_max)];
    for (rlim_cur, rlim_max) in wishes {
        let wish = libc::rlimit { rlim_cur, rlim_max };
        // SAFETY: `wish` is valid to read from.
        if check(unsafe { libc::setrlimit(which, &raw const wish) }).is_ok() {
            return Ok(rlim_cur);
        }
    }
    Ok(limit.rlim_cur)
}

/// Forbids core dumps and other processes' ptrace (PR_SET_DUMPABLE, prctl(2)): keys are in our memory.
///
/// # Errors
/// None is known for this value.
pub fn not_dumpable() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Sets the size of a core dump to 0 (RLIMIT_CORE, getrlimit(2)), for good.
///
/// # Errors
/// Those of setrlimit(2).
pub fn no_core_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is valid to read from.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }).map(drop)
}

/// Asks a process to end (SIGTERM, kill(2)).
///
/// # Errors
/// ESRCH: it is gone. EPERM.
pub fn terminate(pid: NonZeroU32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid.get()).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: kill takes no pointers; the number is one process's, neither 0 nor negative.
    check(unsafe { libc::kill(pid, libc::SIGTERM) }).map(drop)
}

/// Runs `job` with this file creation mask and restores the old one, also when the job unwinds: a socket is private
/// from its first moment. The mask is the process's: a file that another thread makes meanwhile gets it too, so keep
/// it strict and the job short.
pub fn with_umask<T>(mask: libc::mode_t, job: impl FnOnce() -> T) -> T {
    struct Restore(libc::mode_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: no pointer is passed; never fails.
            unsafe { libc::umask(self.0) };
        }
    }
    /// One change at a time: two at once would put back each other's mask.
    static CHANGING: Mutex<()> = Mutex::new(());
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: no pointer is passed; never fails.
    let _restore = Restore(unsafe { libc::umask(mask & 0o777) });
    job()
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::testing::Scratch;

    fn verdict(written: impl FnOnce(Daemon) + Send + 'static) -> (i32, String) {
        let (reader, writer) = io::pipe().unwrap();
        let child =
            std::thread::spawn(move || written(Daemon { verdict: File::from(OwnedFd::from(writer)) }));
        let mut said = Vec::new();
        let code = report(reader, &mut said);
        child.join().unwrap();
        (code, String::from_utf8(said).unwrap())
    }

    #[test]
    fn the_parent_reports_a_failure_in_one_line() {
        let (code, said) = verdict(|daemon| daemon.fail(9, "no\nluck\0today"));
        assert_eq!((code, said.as_str()), (9, "no luck today\n"));
        let (code, said) = verdict(|daemon| daemon.fail(0, "none"));
        assert_eq!((code, said.as_str()), (1, "none\n"));
    }

    #[test]
    fn the_parent_reports_a_child_that_died() {
        let (code, said) = verdict(drop);
        assert_eq!(code, 1);
        assert!(said.contains("ended before it was ready"), "{said}");
    }

    #[test]
    fn an_endless_error_is_cut() {
        let (code, said) = verdict(|daemon| daemon.fail(1, &"x".repeat(100_000)));
        assert_eq!((code, said.len() as u64), (1, ERROR_MAX));
    }

    #[test]
    fn ready_is_exit_code_0() {
        let (code, said) = verdict(|mut daemon| daemon.verdict.write_all(&[READY]).unwrap());
        assert_eq!((code, said.as_str()), (0, ""));
    }

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness itself has threads.
        let error = std::thread::spawn(|| daemonize().map(drop).unwrap_err()).join().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn inherited_descriptors_are_checked_and_closed_on_exec() {
        assert_eq!(inherited_fd(-1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(inherited_fd(2).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(inherited_fd(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let original = File::open("/dev/zero").unwrap().into_raw_fd();
        let mut copy = File::from(inherited_fd(original).unwrap());
        let mut byte = [1];
        copy.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [0]);
        // SAFETY: no pointer is passed.
        let flags = unsafe { libc::fcntl(original, libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        // SAFETY: `into_raw_fd` above left it to us.
        drop(unsafe { OwnedFd::from_raw_fd(original) });
    }

    #[test]
    fn the_memlock_limit_never_falls() {
        let before = raise_memlock(0).unwrap();
        assert_eq!(raise_memlock(1).unwrap(), before);
        let wish = before.saturating_add(4096);
        let after = raise_memlock(wish).unwrap();
        // Root may lack CAP_SYS_RESOURCE in a container.
        assert!(after == wish || after == before, "{before} {after}");
        assert_eq!(raise_memlock(0).unwrap(), after);
    }

    /// On a thread with a mask of its own: other tests make files meanwhile.
    #[test]
    fn the_umask_holds_for_the_job_only() {
        let scratch = Scratch::new("umask");
        let made = |name: &str| scratch.0.join(name);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: no pointer is passed; only this thread's mask and directories become its own.
                check(unsafe { libc::unshare(libc::CLONE_FS) }).unwrap();
                // SAFETY: no pointer is passed; never fails.
                unsafe { libc::umask(0o022) };
                with_umask(0o177, || drop(File::create(made("private")).unwrap()));
                File::create(made("public")).unwrap();
                let _ = std::panic::catch_unwind(|| with_umask(0o177, || panic!("the job unwinds")));
                File::create(made("later")).unwrap();
            });
        });
        let mode = |name| fs::metadata(made(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(["private", "public", "later"].map(mode), [0o600, 0o644, 0o644]);
    }
}
