//! Help for tests: a network namespace of their own where they need root, or a printed reason for not running; a
//! directory of their own; and a count of allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::netns;

/// Says that this test does nothing here, and why, in the words that `tests/run` counts; past the capture of the test
/// runner, which would swallow them. A failure where `RINGWAY_REQUIRE_ROOT=1` says that nothing may be skipped.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("RINGWAY_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "this test {why}, and RINGWAY_REQUIRE_ROOT=1 forbids skipping it"
    );
    let thread = std::thread::current();
    let line = format!("RINGWAY-SKIPPED {}: {why}\n", thread.name().unwrap_or("main"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Runs `test` on a thread in a fresh network namespace whose loopback is up; skips it without root.
pub(crate) fn in_netns(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        skip("needs root for a network namespace and a TUN device");
        return;
    }
    let thread = std::thread::spawn(|| {
        netns::unshare().expect("a network namespace");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with these arguments in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("ip(8)");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Waits until an address that the calling thread's namespace was given can be used: a worker of the kernel's takes an
/// IPv6 address into use, and makes its local route, a moment after `ip` has returned. What is sent to it before that
/// is lost.
pub(crate) fn usable(address: &str) {
    eventually(|| {
        let socket = UdpSocket::bind((address, 0)).ok()?;
        let to = socket.local_addr().ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(10))).ok()?;
        socket.send_to(b"?", to).ok()?;
        socket.recv(&mut [0]).ok()
    });
}

/// Tries until `attempt` yields something. What a test closes may live on for a moment: a child that another test
/// just forked holds copies of every descriptor until its exec.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(found) = attempt() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("did not happen within two seconds");
}

/// A directory of one test's own, removed with the value. Its name is one that the scripts sweep where a test was
/// killed.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringway-{}-{name}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        // Another test's umask may be in force just now.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_root() -> bool {
    // SAFETY: no pointer is passed; never fails.
    unsafe { libc::geteuid() == 0 }
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Allocations of the calling thread so far; growing one counts as well.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// The system's allocator, counting.
struct Counting;

impl Counting {
    fn count() {
        // A thread that ends has no counter any more, and no test that reads it.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local integer that needs
// neither allocation nor destructor.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the contract is the trait's, passed on to the system's allocator.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the contract is the trait's, passed on to the system's allocator.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: the contract is the trait's, passed on to the system's allocator.
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(old, layout, size) }
    }

    // SAFETY: the contract is the trait's, passed on to the system's allocator.
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The `VmFlags` line of the mapping that an address of ours is in (proc_pid_smaps(5)).
pub(crate) fn vm_flags(address: usize) -> String {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let flags = maps.lines().find(|line| {
        if let Some((start, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')) {
            let parse = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            inside = (parse(start)..parse(end)).contains(&address);
        }
        inside && line.starts_with("VmFlags:")
    });
    flags.expect("the mapping is listed").to_owned()
}
