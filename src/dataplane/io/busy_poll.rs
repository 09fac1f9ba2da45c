//! Waiting awake for a moment before sleeping.
//!
//! On an idle tunnel a round trip pays for waking a sleeping core at each hop, which costs more than the work itself,
//! most of all in a virtual machine. The answer to a packet that ended a quiet spell often comes within
//! microseconds; whoever still looks at the ring's memory then takes it without being woken.
//!
//! The price is bounded: only a sleep of at least `QUIET` earns polls, at most `CHAIN` in a row and only while
//! each finds something. Steady traffic therefore never polls. A trickle of packets costs at most `limit / QUIET` of
//! a core, 2 % by default, if the polls are in vain, and `CHAIN` times that if all find something at their last
//! moment.

use std::time::{Duration, Instant};

/// A sleep that earns polls.
const QUIET: Duration = Duration::from_millis(5);

/// Polls that one such sleep earns.
const CHAIN: u8 = 4;

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 16;

/// Default of `limit`: a round trip over a local link with two wake-ups in it.
pub const BUSY_POLL: Duration = Duration::from_micros(100);

/// Largest `limit`: a sixth of a core, if polls are in vain.
pub const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

/// When to poll and for how long.
#[derive(Debug)]
pub struct BusyPoll {
    limit: Duration,
    left: u8,
}

impl BusyPoll {
    /// Polls up to `limit` at a time; zero never polls.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit: limit.min(MAX_BUSY_POLL), left: 0 }
    }

    /// A sleep of this length ended because something happened.
    pub fn woken_after(&mut self, sleep: Duration) {
        self.left = if sleep >= QUIET { CHAIN } else { 0 };
    }

    /// True if the next wait may poll.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.left > 0 && !self.limit.is_zero()
    }

    /// Polls `ready` until it is true, but no longer than the limit or `timeout`.
    pub fn poll(&mut self, timeout: Option<Duration>, mut ready: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        let limit = timeout.map_or(self.limit, |timeout| timeout.min(self.limit));
        while start.elapsed() < limit {
            for _ in 0..LOOKS {
                if ready() {
                    self.left = self.left.saturating_sub(1);
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        self.left = 0;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sleep: Duration) -> BusyPoll {
        let mut poll = BusyPoll::new(BUSY_POLL);
        poll.woken_after(sleep);
        poll
    }

    #[test]
    fn only_quiet_earns_polls() {
        assert!(!BusyPoll::new(BUSY_POLL).is_due());
        assert!(after(QUIET).is_due());
        assert!(!after(QUIET - Duration::from_nanos(1)).is_due());
        let mut off = BusyPoll::new(Duration::ZERO);
        off.woken_after(QUIET);
        assert!(!off.is_due());
    }

    #[test]
    fn a_chain_ends() {
        let mut poll = after(QUIET);
        for _ in 0..CHAIN {
            assert!(poll.is_due() && poll.poll(None, || true));
        }
        assert!(!poll.is_due());
    }

    #[test]
    fn one_in_vain_ends_the_chain() {
        let mut poll = after(QUIET);
        let mut looks = 0_u64;
        let start = Instant::now();
        assert!(!poll.poll(None, || {
            looks += 1;
            false
        }));
        assert!(looks >= u64::from(LOOKS) && start.elapsed() >= BUSY_POLL);
        assert!(!poll.is_due());
    }

    #[test]
    fn never_beyond_the_deadline() {
        let mut poll = BusyPoll::new(Duration::from_secs(1));
        poll.woken_after(QUIET);
        assert_eq!(poll.limit, MAX_BUSY_POLL);
        assert!(!poll.poll(Some(Duration::ZERO), || unreachable!()));
    }
}
