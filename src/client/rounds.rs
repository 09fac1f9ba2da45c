//! What round trips come to: how many were begun, how many ended, and how long they took.

use std::time::Duration;

use crate::types::Time;

/// Round trips that may be under way at a time; older ones are lost.
const UNDER_WAY: usize = 64;

/// Round trips to one place.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    under_way: Vec<(u16, Time)>,
    sent: u32,
    received: u32,
    shortest: Duration,
    longest: Duration,
    all: Duration,
}

/// What they come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many were begun.
    pub sent: u32,
    /// How many ended.
    pub received: u32,
    /// The shortest, the mean and the longest; `None` if none ended.
    pub times: Option<[Duration; 3]>,
}

impl Summary {
    /// Part of them that did not end, 0 to 1; 0 without any.
    #[must_use]
    pub fn loss(&self) -> f64 {
        f64::from(self.sent.saturating_sub(self.received)) / f64::from(self.sent.max(1))
    }
}

impl Rounds {
    /// One begins.
    pub fn sent(&mut self, sequence: u16, now: Time) {
        if self.under_way.len() == UNDER_WAY {
            self.under_way.remove(0);
        }
        self.under_way.push((sequence, now));
        self.sent = self.sent.saturating_add(1);
    }

    /// One ends; how long it took. `None` for one that is not under way, as an answer that comes twice.
    pub fn ended(&mut self, sequence: u16, now: Time) -> Option<Duration> {
        let place = self.under_way.iter().position(|(begun, _)| *begun == sequence)?;
        let (_, begun) = self.under_way.remove(place);
        let took = now.since(begun);
        self.shortest = if self.received == 0 { took } else { self.shortest.min(took) };
        self.longest = self.longest.max(took);
        self.all = self.all.saturating_add(took);
        self.received = self.received.saturating_add(1);
        Some(took)
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// What they come to so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let times = (self.received > 0).then(|| [self.shortest, self.all / self.received, self.longest]);
        Summary { sent: self.sent, received: self.received, times }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn rounds_are_counted_once_and_what_does_not_end_is_lost() {
        let mut rounds = Rounds::default();
        assert_eq!((rounds.summary(), rounds.summary().loss()), (Summary::default(), 0.0));
        for sequence in 0..4 {
            rounds.sent(sequence, at(u64::from(sequence) * 100));
        }
        let millis = Duration::from_millis;
        assert_eq!(rounds.ended(1, at(130)), Some(millis(30)));
        assert_eq!(rounds.ended(1, at(140)), None, "twice");
        assert_eq!(rounds.ended(0, at(150)), Some(millis(150)));
        assert_eq!(rounds.ended(9, at(150)), None, "never begun");
        assert_eq!(rounds.ended(3, at(310)), Some(millis(10)));
        let summary = rounds.summary();
        assert_eq!(summary.times, Some([millis(10), Duration::from_nanos(63_333_333), millis(150)]));
        assert!((summary.sent, summary.received, summary.loss()) == (4, 3, 0.25) && !rounds.is_idle());
    }

    #[test]
    fn so_many_are_under_way_and_no_more() {
        let mut rounds = Rounds::default();
        (0..100).for_each(|sequence| rounds.sent(sequence, at(0)));
        assert_eq!((rounds.ended(0, at(1)), rounds.under_way.len()), (None, UNDER_WAY));
        assert!(rounds.ended(99, at(1)).is_some());
    }
}
