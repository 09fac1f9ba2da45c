//! Where a thread runs and how important it is.

use std::io;

use core_affinity::CoreId;

use super::check;

/// Nice value of threads that yield to the workers (0 is normal, 19 the lowest).
pub const LOW_PRIORITY: i32 = 5;

/// The cores that this process may use, by number, ascending. Empty if the kernel does not say.
#[must_use]
pub fn cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// Pins the calling thread to a core. False if the core does not exist or is not ours (a cgroup's cpuset).
#[must_use]
pub fn pin(core: usize) -> bool {
    // The crate builds a fixed-size mask from the number; a number beyond it would index out of bounds there.
    cores().contains(&core) && core_affinity::set_for_current(CoreId { id: core })
}

/// Sets the calling thread's nice value (setpriority(2)); on Linux that is a property of a thread.
///
/// # Errors
/// EACCES when it would be raised without CAP_SYS_NICE.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed; 0 names the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_to_each_core_and_to_no_other() {
        std::thread::spawn(|| {
            let cores = cores();
            assert!(!cores.is_empty());
            let last = cores[cores.len() - 1];
            assert!(pin(last));
            assert_eq!(super::cores(), [last]);
            assert!(!pin(100_000));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn lowers_one_thread_only() {
        let nice = || {
            // SAFETY: no pointer is passed.
            unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
        };
        let before = nice();
        std::thread::spawn(move || {
            set_nice(before.max(LOW_PRIORITY)).unwrap();
            assert_eq!(nice(), before.max(LOW_PRIORITY));
        })
        .join()
        .unwrap();
        assert_eq!(nice(), before);
    }
}
