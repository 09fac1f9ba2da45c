//! When each datagram leaves a link, or that it does not: no socket, no clock.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::bench::random::Random;
use crate::types::Time;

/// Longest delay of a link.
pub const MAX_DELAY: Duration = Duration::from_secs(10);

/// What a link does to the datagrams of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Time between arrival, or the end of its transmission if there is a rate, and departure; at most [`MAX_DELAY`].
    pub delay: Duration,
    /// Share that is lost, parts of a million.
    pub loss: u32,
    /// Bits per second, IP and UDP headers counted; `None`: no limit.
    pub rate: Option<NonZeroU64>,
    /// How long a datagram may wait for those before it, with a rate; what would wait longer is dropped.
    pub backlog: Duration,
    /// What decides which datagrams are lost.
    pub seed: u64,
}

impl Default for Manners {
    /// A link that is not noticed.
    fn default() -> Self {
        Self { delay: Duration::ZERO, loss: 0, rate: None, backlog: Duration::from_millis(50), seed: 1 }
    }
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves at this time.
    At(Time),
    /// Lost on the way, as asked for.
    Lost,
    /// Too many wait before it.
    Overflow,
}

/// One direction of a link. Datagrams leave in the order in which they came.
#[derive(Clone, Debug)]
pub struct Schedule {
    manners: Manners,
    random: Random,
    /// When the last one that was taken is transmitted.
    free: Time,
}

impl Schedule {
    /// An idle link; `direction` gives each its own losses.
    #[must_use]
    pub fn new(manners: Manners, direction: u64) -> Self {
        Self { manners, random: Random::new(manners.seed, direction), free: Time::default() }
    }

    /// Decides about the next datagram, of `bytes` with its headers. `now` never goes back. Whether the n-th is lost
    /// depends on the seed, the direction and n alone.
    pub fn admit(&mut self, bytes: usize, now: Time) -> Fate {
        let Manners { delay, loss, rate, backlog, .. } = self.manners;
        if self.random.chance(loss) {
            return Fate::Lost;
        }
        let Some(rate) = rate else { return Fate::At(now + delay) };
        let begin = self.free.max(now);
        if begin.since(now) > backlog {
            return Fate::Overflow;
        }
        let nanos = (bytes as u64).saturating_mul(8_000_000_000) / rate;
        self.free = begin + Duration::from_nanos(nanos);
        Fate::At(self.free + delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Time {
        Time::from_nanos(micros * 1000)
    }

    #[test]
    fn a_link_that_is_not_noticed() {
        let mut schedule = Schedule::new(Manners::default(), 0);
        for now in [at(0), at(5), at(5), at(9)] {
            assert_eq!(schedule.admit(1500, now), Fate::At(now));
        }
    }

    #[test]
    fn delay_is_the_same_for_all() {
        let delay = Duration::from_millis(20);
        let mut schedule = Schedule::new(Manners { delay, ..Manners::default() }, 0);
        for now in [at(0), at(7), at(1_000_000)] {
            assert_eq!(schedule.admit(1500, now), Fate::At(now + delay));
        }
    }

    #[test]
    fn a_rate_spaces_what_comes_at_once_and_forgets_idle_time() {
        // 1500 bytes at 12 Mbit/s are a millisecond.
        let rate = NonZeroU64::new(12_000_000);
        let backlog = Duration::from_millis(3);
        let delay = Duration::from_millis(10);
        let mut schedule = Schedule::new(Manners { rate, backlog, delay, ..Manners::default() }, 0);
        let fates: Vec<_> = (0..6).map(|_| schedule.admit(1500, at(0))).collect();
        let millis = |ms: u64| Fate::At(at(ms * 1000));
        assert_eq!(
            fates,
            [millis(11), millis(12), millis(13), millis(14), Fate::Overflow, Fate::Overflow],
            "the last that is taken waits as long as may be"
        );
        assert_eq!(schedule.admit(750, at(1_500)), Fate::At(at(14_500)), "behind those that wait");
        assert_eq!(
            schedule.admit(750, at(100_000)),
            Fate::At(at(110_500)),
            "what was not sent is not made up for"
        );
    }

    #[test]
    fn a_thousandfold_rate_is_kept_exactly() {
        let rate = NonZeroU64::new(1_000_000_000);
        let mut schedule = Schedule::new(Manners { rate, ..Manners::default() }, 0);
        let mut last = Fate::Lost;
        for n in 0..10_000 {
            last = schedule.admit(125, at(n));
        }
        assert_eq!(last, Fate::At(at(10_000)), "125 bytes are a microsecond");
    }

    #[test]
    fn losses_depend_on_seed_and_direction_alone() {
        let lost = |seed, direction, delay, rate| -> Vec<usize> {
            let manners = Manners { loss: 10_000, seed, delay, rate, ..Manners::default() };
            let mut schedule = Schedule::new(manners, direction);
            (0..20_000).filter(|n| schedule.admit(100 + n % 7, at(*n as u64)) == Fate::Lost).collect()
        };
        let here = lost(3, 0, Duration::ZERO, None);
        assert!((150..250).contains(&here.len()), "about one in a hundred: {}", here.len());
        assert_eq!(here, lost(3, 0, Duration::from_secs(1), NonZeroU64::new(1_000)));
        assert_ne!(here, lost(3, 1, Duration::ZERO, None));
        assert_ne!(here, lost(4, 0, Duration::ZERO, None));
        // Hardly any two in a row: they are independent.
        assert!(here.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < 12);
    }
}
