//! The clocks of the program: one that protocol timers run by, one that names moments to people and peers, and one that
//! stands still while the host sleeps.

use std::time::Duration;

use crate::types::Time;

/// Time since boot, suspend included (`CLOCK_BOOTTIME`, clock_gettime(2)): a key grows old while a laptop sleeps.
#[must_use]
pub fn boottime() -> Time {
    let now = read(libc::CLOCK_BOOTTIME);
    Time::from_nanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Time since boot without what the host slept (`CLOCK_MONOTONIC`): beside [`boottime`] it tells that it did.
#[must_use]
pub fn monotonic() -> Time {
    let now = read(libc::CLOCK_MONOTONIC);
    Time::from_nanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Time since 1970-01-01 UTC (`CLOCK_REALTIME`). May jump both ways; zero if set before 1970.
#[must_use]
pub fn realtime() -> Duration {
    read(libc::CLOCK_REALTIME)
}

/// Processor time of all threads of this process (`CLOCK_PROCESS_CPUTIME_ID`).
#[must_use]
pub fn process_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Processor time of the thread that asks (`CLOCK_THREAD_CPUTIME_ID`).
#[must_use]
pub fn thread_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to. The call fails only for an unknown clock (all exist since Linux
    // 2.6.39); `now` then keeps its zeros.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_does_not_run_backwards() {
        let first = boottime();
        std::thread::sleep(Duration::from_millis(2));
        let second = boottime();
        assert!(second.since(first) >= Duration::from_millis(2));
        assert!(second.since(first) < Duration::from_secs(60));
    }

    #[test]
    fn a_thread_has_its_own_time() {
        let (before, begin) = (thread_time(), boottime());
        std::thread::spawn(|| while thread_time() < Duration::from_millis(20) {}).join().unwrap();
        assert!(thread_time() - before < Duration::from_millis(15));
        assert!(boottime().since(begin) >= Duration::from_millis(20));
    }

    #[test]
    fn process_time_grows_with_work() {
        let (before, begin) = (process_time(), boottime());
        while process_time() < before + Duration::from_millis(5) {
            assert!(boottime().since(begin) < Duration::from_secs(30));
        }
    }

    #[test]
    fn realtime_agrees_with_std() {
        let theirs = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(realtime().abs_diff(theirs) < Duration::from_secs(5));
    }
}
