//! The same line over and over is one line, and how often it came.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

/// How long a line is remembered.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// How often the same line is written in that time.
pub(super) const ALLOWED: u32 = 5;
/// Different lines that are remembered at a time; further ones are only counted until a place is free.
pub(super) const MOST: usize = 4096;

/// Lines of the last minute.
#[derive(Debug)]
pub(super) struct Repeats<L> {
    window: Duration,
    seen: HashMap<u64, Seen<L>>,
    /// Lines that found no place since it was last said.
    left_out: u64,
    /// Before this moment no line is old enough to be forgotten.
    next_look: Option<Instant>,
}

#[derive(Debug)]
struct Seen<L> {
    since: Instant,
    times: u32,
    line: L,
}

/// What is to be said of lines that were held back.
#[derive(Debug)]
pub(super) struct Held<L> {
    /// The lines, each with how often it was not written.
    pub(super) repeated: Vec<(L, u32)>,
    /// Lines that were not even remembered.
    pub(super) left_out: u64,
}

impl<L> Repeats<L> {
    /// Nothing is remembered. Lines will be for `window`, see [`WINDOW`].
    pub(super) fn new(window: Duration) -> Self {
        Self { window, seen: HashMap::new(), left_out: 0, next_look: None }
    }

    /// True if the line with this key is to be written now.
    pub(super) fn admit(&mut self, key: u64, now: Instant, line: impl FnOnce() -> L) -> bool {
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.times = seen.times.saturating_add(1);
            return seen.times <= ALLOWED;
        }
        if self.seen.len() >= MOST {
            self.left_out += 1;
            return false;
        }
        self.next_look.get_or_insert(now + self.window);
        self.seen.insert(key, Seen { since: now, times: 1, line: line() });
        true
    }

    /// Forgets what is older than a minute, and says what of it was held back. One comparison in most cases.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Held<L>> {
        if self.next_look.is_none_or(|at| now < at) {
            return None;
        }
        let held = self.forget(|seen, window| now.duration_since(seen.since) >= window);
        self.next_look = self.seen.values().map(|seen| seen.since + self.window).min();
        Some(held)
    }

    /// Forgets everything, and says what of it was held back.
    pub(super) fn drain(&mut self) -> Held<L> {
        self.next_look = None;
        self.forget(|_, _| true)
    }

    fn forget(&mut self, old: impl Fn(&Seen<L>, Duration) -> bool) -> Held<L> {
        let old = self.seen.extract_if(|_, seen| old(seen, self.window));
        let repeated = old
            .filter(|(_, seen)| seen.times > ALLOWED)
            .map(|(_, seen)| (seen.line, seen.times - ALLOWED))
            .collect();
        Held { repeated, left_out: mem::take(&mut self.left_out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, seconds: u64) -> Instant {
        begin + Duration::from_secs(seconds)
    }

    #[test]
    fn the_same_line_is_written_five_times_a_minute_and_then_counted() {
        let (mut repeats, begin) = (Repeats::new(WINDOW), Instant::now());
        let written = (0..40).filter(|n| repeats.admit(1, at(begin, *n), || "one")).count();
        assert_eq!(written, 5);
        assert!(repeats.admit(2, at(begin, 40), || "two"), "another line is another matter");
        assert!(repeats.expire(at(begin, 59)).is_none());
        let held = repeats.expire(at(begin, 60)).unwrap();
        assert_eq!((held.repeated, held.left_out), (vec![("one", 35)], 0));
        assert!(repeats.admit(1, at(begin, 60), || "one"), "a new minute");
        assert!(repeats.expire(at(begin, 99)).is_none());
        assert!(repeats.expire(at(begin, 100)).unwrap().repeated.is_empty(), "once is no repetition");
        assert!(repeats.expire(at(begin, 120)).unwrap().repeated.is_empty());
        assert!(repeats.expire(at(begin, 1000)).is_none(), "nothing is remembered any more");
    }

    #[test]
    fn at_the_end_everything_is_said() {
        let (mut repeats, begin) = (Repeats::new(WINDOW), Instant::now());
        for key in [1, 1, 1, 1, 1, 1, 1, 2] {
            repeats.admit(key, begin, || key);
        }
        assert_eq!(repeats.drain().repeated, [(1, 2)]);
        let nothing = repeats.drain();
        assert_eq!((nothing.repeated, nothing.left_out), (Vec::new(), 0), "once");
        assert!(repeats.expire(at(begin, 1000)).is_none());
    }

    #[test]
    fn very_many_different_lines_are_counted_only() {
        let (mut repeats, begin) = (Repeats::new(WINDOW), Instant::now());
        let written = (0..MOST as u64 + 100).filter(|key| repeats.admit(*key, begin, || ())).count();
        assert_eq!(written, MOST);
        assert_eq!(repeats.expire(at(begin, 60)).unwrap().left_out, 100);
        assert!(repeats.admit(0, at(begin, 60), || ()));
    }
}
