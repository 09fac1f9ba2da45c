//! Giving up what only the set-up needs: another user if one is named, all capabilities but those that are kept, and
//! every way to gain any back.
//!
//! User and capabilities are a thread's on Linux. A worker needs none once its ring stands, the control thread a few
//! for as long as it lives; so each thread lowers itself when it is ready, and [`confine`], the last step of the start,
//! looks at all of them, then puts the system call filter over the whole process.

use std::ffi::CString;
use std::fs;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use super::{check, process, seccomp};

/// A user and its group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub uid: libc::uid_t,
    /// The user's own group; supplementary groups are left.
    pub gid: libc::gid_t,
}

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The user database has no such name.
    #[error("there is no user {0}: make it (useradd --system {0}), or leave the user out")]
    NoUser(String),
    /// The group database has no such name.
    #[error("there is no group {0}: make it (groupadd --system {0}), or leave the group out")]
    NoGroup(String),
    /// setresuid(2) and its like.
    #[error("cannot become user {uid} ({source}): start as root, or leave the user out")]
    Account {
        /// The wanted user.
        uid: libc::uid_t,
        /// What the kernel answered.
        source: io::Error,
    },
    /// capset(2) and prctl(2).
    #[error("cannot give up capabilities: {0}")]
    Capabilities(String),
    /// A thread that nobody has lowered.
    #[error("the thread {thread} still has privileges ({what})")]
    Left {
        /// Its name.
        thread: String,
        /// The line of /proc/PID/status.
        what: String,
    },
    /// /proc is not readable.
    #[error("cannot look at the threads' privileges in /proc: {0}")]
    Proc(io::Error),
}

impl From<caps::errors::CapsError> for PrivilegeError {
    fn from(error: caps::errors::CapsError) -> Self {
        Self::Capabilities(error.to_string())
    }
}

impl Account {
    /// The account of this name (getpwnam_r(3)).
    ///
    /// # Errors
    /// [`PrivilegeError::NoUser`].
    pub fn named(name: &str) -> Result<Self, PrivilegeError> {
        let missing = || PrivilegeError::NoUser(name.to_owned());
        let c_name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: passwd is integers and pointers; all zero is valid.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        // More than any line of a user database.
        let mut text: Vec<libc::c_char> = vec![0; 16 << 10];
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call, `text` for its length.
        let code = unsafe {
            libc::getpwnam_r(c_name.as_ptr(), &raw mut entry, text.as_mut_ptr(), text.len(), &raw mut found)
        };
        if code != 0 || found.is_null() {
            return Err(missing());
        }
        Ok(Self { uid: entry.pw_uid, gid: entry.pw_gid })
    }

    /// Makes the calling thread, and no other, this user's. Capabilities stay permitted, none is in force.
    fn assume(self) -> io::Result<()> {
        // SAFETY: no pointer is passed; neither call fails.
        if unsafe { (libc::geteuid(), libc::getegid()) } == (self.uid, self.gid) {
            return Ok(());
        }
        let call = |number, a: u32, b: usize| {
            // The C library would change all threads at once, each with what it happens to have.
            // SAFETY: setgroups gets a count of 0 and no list; the others take numbers only.
            let returned = unsafe { libc::syscall(number, a, b, a) };
            check(returned as libc::c_int).map(drop)
        };
        call(libc::SYS_setgroups, 0, 0)?;
        call(libc::SYS_setresgid, self.gid, self.gid as usize)?;
        call(libc::SYS_setresuid, self.uid, self.uid as usize)
    }
}

/// The group of this name, by its number (getgrnam_r(3)).
///
/// # Errors
/// [`PrivilegeError::NoGroup`].
pub fn group_named(name: &str) -> Result<libc::gid_t, PrivilegeError> {
    let missing = || PrivilegeError::NoGroup(name.to_owned());
    let c_name = CString::new(name).map_err(|_| missing())?;
    // SAFETY: group is integers and pointers; all zero is valid.
    let mut entry: libc::group = unsafe { std::mem::zeroed() };
    // Its members stand in the line as well: thousands of them.
    let mut text: Vec<libc::c_char> = vec![0; 256 << 10];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, `text` for its length.
    let code = unsafe {
        libc::getgrnam_r(c_name.as_ptr(), &raw mut entry, text.as_mut_ptr(), text.len(), &raw mut found)
    };
    if code != 0 || found.is_null() { Err(missing()) } else { Ok(entry.gr_gid) }
}

/// Lowers the calling thread: `account` if there is one, of its capabilities only `keep`, an empty bounding set, no new
/// privileges. Threads that it starts inherit that.
///
/// # Errors
/// [`PrivilegeError`]; the thread may then be anywhere in between and should end.
pub fn lower_thread(account: Option<Account>, keep: &[Capability]) -> Result<(), PrivilegeError> {
    empty_bounding_set()?;
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = keep.iter().copied().filter(|cap| permitted.contains(cap)).collect();
    if let Some(account) = account {
        caps::securebits::set_keepcaps(true)?;
        account.assume().map_err(|source| PrivilegeError::Account { uid: account.uid, source })?;
    }
    // Ambient ones go with the inheritable ones. Effective first: it must stay within the permitted.
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
        .map(drop)
        .map_err(|error| PrivilegeError::Capabilities(format!("no_new_privs: {error}")))
}

/// Nothing can be gained back by executing a file. Without CAP_SETPCAP it stays; no_new_privs says the same.
fn empty_bounding_set() -> Result<(), PrivilegeError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding)? {
        caps::drop(None, CapSet::Bounding, capability)?;
    }
    Ok(())
}

/// The last step of the start: lowers the calling thread, which keeps `keep`, makes sure that no thread has more than
/// that, forbids core dumps, and puts the system call filter over all threads. A kernel without filters costs a defence
/// in depth, and a line in the log.
///
/// # Errors
/// [`PrivilegeError`]; the process should end.
pub fn confine(account: Option<Account>, keep: &[Capability]) -> Result<(), PrivilegeError> {
    lower_thread(account, keep)?;
    // A change of user may have made the process dumpable again (prctl(2)).
    if let Err(error) = process::not_dumpable().and_then(|()| process::no_core_dumps()) {
        tracing::warn!(%error, "core dumps stay possible");
    }
    check_threads(account, keep)?;
    if let Err(error) = seccomp::confine_all_threads() {
        tracing::warn!(%error, "the process is confined by its capabilities only");
    }
    Ok(())
}

/// Looks at every thread: who it is, and what it could still put in force.
fn check_threads(account: Option<Account>, keep: &[Capability]) -> Result<(), PrivilegeError> {
    let kept = keep.iter().fold(0, |bits, capability| bits | capability.bitmask());
    for task in fs::read_dir("/proc/self/task").map_err(PrivilegeError::Proc)? {
        let path = task.map_err(PrivilegeError::Proc)?.path();
        // A thread that has ended meanwhile is no danger.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        if let Some(what) = too_much(&status, account, kept) {
            let name = status.lines().next().unwrap_or_default();
            let thread = name.trim_start_matches("Name:").trim().to_owned();
            return Err(PrivilegeError::Left { thread, what: what.to_owned() });
        }
    }
    Ok(())
}

/// The line of a thread's status that says more than it should.
fn too_much(status: &str, account: Option<Account>, kept: u64) -> Option<&str> {
    status.lines().find(|line| {
        let (key, value) = line.split_once(':').unwrap_or_default();
        match key {
            // Of what cannot be read nothing good is assumed.
            "CapPrm" | "CapInh" | "CapEff" | "CapAmb" => {
                u64::from_str_radix(value.trim(), 16).map_or(true, |bits| bits & !kept != 0)
            }
            "NoNewPrivs" => value.trim() != "1",
            "Uid" => account.is_some_and(|account| differs(value, account.uid)),
            "Gid" => account.is_some_and(|account| differs(value, account.gid)),
            _ => false,
        }
    })
}

/// True unless the real, effective, saved and file system numbers are all this one.
fn differs(numbers: &str, wanted: u32) -> bool {
    numbers.split_whitespace().any(|number| number.parse() != Ok(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWERED: &str = "Name:\tringway-w0\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nCapInh:\t0000000000000000\n\
         CapPrm:\t0000000000001000\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\n";
    const NET_ADMIN: u64 = 1 << 12;

    #[test]
    fn a_thread_that_has_more_is_found() {
        let account = Some(Account { uid: 7, gid: 8 });
        assert_eq!(too_much(LOWERED, account, NET_ADMIN), None);
        assert_eq!(too_much(LOWERED, account, 0), Some("CapPrm:\t0000000000001000"));
        let with = |from: &str, to: &str| LOWERED.replacen(from, to, 1);
        for (from, to) in [
            ("7\t7\t7\t7", "7\t7\t0\t7"),
            ("8\t8\t8\t8", "0\t8\t8\t8"),
            ("CapInh:\t00", "CapInh:\t01"),
            ("CapEff:\t00", "CapEff:\tzz"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ] {
            assert!(too_much(&with(from, to), account, NET_ADMIN).is_some(), "{to}");
        }
        assert_eq!(too_much(&with("7\t7\t7\t7", "0\t0\t0\t0"), None, NET_ADMIN), None, "any user will do");
    }

    #[test]
    fn accounts_are_found_by_name() {
        assert_eq!(Account::named("root").unwrap(), Account { uid: 0, gid: 0 });
        for name in ["no-such-user-here", "", "a\0b"] {
            let error = Account::named(name).unwrap_err();
            assert!(error.to_string().contains("there is no user"), "{error}");
        }
    }

    /// On a thread of its own: no other test is lowered.
    #[test]
    fn a_lowered_thread_has_what_it_keeps_and_no_other_thread_changes() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        let lowered = std::thread::spawn(|| {
            lower_thread(None, &[Capability::CAP_NET_ADMIN]).unwrap();
            fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        assert_eq!(too_much(&lowered.join().unwrap(), None, NET_ADMIN), None);
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before);
    }
}
