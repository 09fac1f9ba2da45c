//! A receive that fails again and again pauses, so that a broken descriptor costs a look now and then, and no core.

use std::time::{Duration, Instant};

/// A receive that failed so often in a row pauses before it is tried again.
const FAILURES: u8 = 4;

/// How long.
const PAUSE: Duration = Duration::from_millis(100);

/// Failures of one descriptor since something was received.
#[derive(Debug, Default)]
pub struct Patience {
    failures: u8,
    retry_at: Option<Instant>,
}

impl Patience {
    /// Notes a failure.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.retry_at = Some(Instant::now() + PAUSE);
        }
    }

    /// Notes that something was received.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// True unless the descriptor pauses now.
    pub fn is_rested(&mut self) -> bool {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        self.retry_at = None;
        true
    }

    /// The end of the pause, if there is one.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

/// `timeout`, but no longer than until the first of `descriptors` pauses no more: it must then be looked at even if
/// nothing else happens.
pub fn bound<'a>(
    timeout: Option<Duration>,
    descriptors: impl Iterator<Item = &'a Patience>,
) -> Option<Duration> {
    let pause = descriptors.filter_map(Patience::retry_at).min();
    let Some(pause) = pause.map(|at| at.saturating_duration_since(Instant::now())) else { return timeout };
    Some(timeout.map_or(pause, |timeout| timeout.min(pause)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_pause_and_a_pause_ends() {
        let mut patience = Patience::default();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                patience.failed();
                assert!(patience.is_rested() && patience.retry_at().is_none());
            }
            patience.succeeded();
        }
        for _ in 0..FAILURES {
            patience.failed();
        }
        assert!(!patience.is_rested());
        let end = patience.retry_at().unwrap();
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        assert!(patience.is_rested() && patience.retry_at().is_none());
        // It has not been mended: one more is enough.
        patience.failed();
        assert!(!patience.is_rested());
    }
}
