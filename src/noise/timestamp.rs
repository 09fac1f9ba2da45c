//! TAI64N timestamps (<https://cr.yp.to/libtai/tai64.html>): an initiation carries one, and a responder accepts only
//! one that is greater than every one before, so that a recorded initiation is worth nothing.

use std::time::Duration;

/// Length, bytes: 8 of seconds, 4 of nanoseconds, both big endian.
pub const TIMESTAMP_LEN: usize = 12;

/// The TAI64 label of 1970-01-01 00:00:00 UTC, counting the ten seconds that TAI was ahead.
const UNIX_EPOCH: u64 = 0x4000_0000_0000_000a;

/// Nanoseconds are rounded down to a multiple of this: the greatest power of two within 1/50 s, about 16.8 ms, so
/// that a stamp tells no more of our clock than the initiation rate allows (`tai64n_now` in the kernel's noise.c).
const GRANULARITY: u32 = 1 << 24;

/// A timestamp. Ordered as its bytes are (big endian, so by time). The default is before every other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tai64n(pub [u8; TIMESTAMP_LEN]);

impl Tai64n {
    /// From the wall clock, as time since 1970-01-01 00:00:00 UTC, whitened to about 16.8 ms.
    #[must_use]
    pub fn from_unix(clock: Duration) -> Self {
        let seconds = UNIX_EPOCH.saturating_add(clock.as_secs());
        let nanos = clock.subsec_nanos() & !(GRANULARITY - 1);
        let mut bytes = [0; TIMESTAMP_LEN];
        let (high, low) = bytes.split_at_mut(8);
        high.copy_from_slice(&seconds.to_be_bytes());
        low.copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    /// The stamp `seconds` later; the greatest there is instead of an overflow.
    #[must_use]
    pub fn later_by(self, seconds: u64) -> Self {
        let [a, b, c, d, e, f, g, h, nanos @ ..] = self.0;
        let Some(sum) = u64::from_be_bytes([a, b, c, d, e, f, g, h]).checked_add(seconds) else {
            return Self([0xff; TIMESTAMP_LEN]);
        };
        let mut bytes = [0; TIMESTAMP_LEN];
        let (high, low) = bytes.split_at_mut(8);
        high.copy_from_slice(&sum.to_be_bytes());
        low.copy_from_slice(&nanos);
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_and_whitening() {
        assert_eq!(Tai64n::from_unix(Duration::ZERO).0, [0x40, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0]);
        let stamp = Tai64n::from_unix(Duration::new(1, 2 * GRANULARITY - 1));
        assert_eq!(stamp.0, [0x40, 0, 0, 0, 0, 0, 0, 11, 1, 0, 0, 0]);
        assert!(Duration::from_nanos(u64::from(GRANULARITY)) <= Duration::from_millis(20));
    }

    #[test]
    fn never_overflows() {
        assert!(Tai64n::from_unix(Duration::MAX) > Tai64n::from_unix(Duration::ZERO));
        assert_eq!(Tai64n([0xff; 12]).later_by(1), Tai64n([0xff; 12]));
        assert_eq!(Tai64n::default().later_by(0), Tai64n::default());
        let hour = Tai64n::from_unix(Duration::new(5, 999_999_999)).later_by(3600);
        assert_eq!(hour, Tai64n::from_unix(Duration::new(3605, 999_999_999)));
    }

    proptest! {
        #[test]
        fn order_is_that_of_time(
            a in 0u64..1 << 40,
            b in 0u64..1 << 40,
            x in 0u32..1_000_000_000,
            y in 0u32..1_000_000_000,
        ) {
            let (one, two) = (Duration::new(a, x), Duration::new(b, y));
            let (early, late) = if one < two { (one, two) } else { (two, one) };
            prop_assert!(Tai64n::from_unix(early) <= Tai64n::from_unix(late));
            if late - early >= Duration::from_nanos(u64::from(GRANULARITY)) {
                prop_assert!(Tai64n::from_unix(early) < Tai64n::from_unix(late));
            }
        }
    }
}
