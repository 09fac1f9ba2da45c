//! The replay window of one keypair (RFC 6479): which counters were accepted already.
//!
//! A ring of 64-bit words is indexed by the counter itself, so that moving the window forward clears words and
//! shifts nothing. One word is always partly ahead of the greatest counter and therefore of no use behind it:
//! of 8192 bits 8128 remain, as in the Linux module (`COUNTER_BITS_TOTAL`, `COUNTER_REDUNDANT_BITS`).
//!
//! [`Window::check`] changes nothing and comes before the AEAD, so that a flood of replays costs no cryptography;
//! [`Window::commit`] comes after it, since only an authenticated counter may move the window.

use crate::mutation::holds;

/// Counters at or beyond this are neither sent nor accepted: 2^64 − 2^13 − 1 (white paper, section 6.1).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// How far behind the greatest accepted counter another may lie and still be accepted.
pub const WINDOW_LEN: u64 = BITS - WORD_BITS;

const BITS: u64 = 8192;
const WORD_BITS: u64 = 64;
const WORDS: usize = (BITS / WORD_BITS) as usize;

/// Why a counter is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Accepted before.
    Replayed,
    /// More than [`WINDOW_LEN`] behind the greatest accepted counter.
    TooOld,
    /// At or beyond [`REJECT_AFTER_MESSAGES`].
    Limit,
}

/// The counters accepted so far, as far back as [`WINDOW_LEN`].
#[derive(Debug)]
#[repr(C)]
pub struct Window {
    /// The greatest accepted counter + 1; 0 before the first. Never overflows: see [`REJECT_AFTER_MESSAGES`].
    next: u64,
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, seen: [0; WORDS] }
    }
}

impl Window {
    /// Whether `counter` may be accepted. Read-only.
    ///
    /// # Errors
    /// Why it may not.
    #[inline]
    pub fn check(&self, counter: u64) -> Result<(), Rejected> {
        if holds("receive-limit", counter >= REJECT_AFTER_MESSAGES) {
            return Err(Rejected::Limit);
        }
        if counter >= self.next {
            return Ok(());
        }
        if holds("replay-too-old", self.next - 1 - counter > WINDOW_LEN) {
            return Err(Rejected::TooOld);
        }
        if holds("replay-seen", self.seen[word(counter)] & bit(counter) != 0) {
            return Err(Rejected::Replayed);
        }
        Ok(())
    }

    /// Accepts an authenticated `counter` and moves the window. Checks again: two packets of one batch may carry the
    /// same counter and both have passed [`Self::check`].
    ///
    /// # Errors
    /// Why it was not accepted; nothing has changed then.
    #[inline]
    pub fn commit(&mut self, counter: u64) -> Result<(), Rejected> {
        let checked = self.check(counter);
        if holds("replay-commit", checked.is_err()) {
            return checked;
        }
        if counter >= self.next {
            self.advance(counter);
        }
        self.seen[word(counter)] |= bit(counter);
        Ok(())
    }

    /// Makes `counter` the greatest: empties the words that come into the window.
    #[inline]
    fn advance(&mut self, counter: u64) {
        let newest = self.next.saturating_sub(1) / WORD_BITS;
        let fresh = (counter / WORD_BITS - newest).min(WORDS as u64);
        for step in 1..=fresh {
            self.seen[word((newest + step) * WORD_BITS)] = 0;
        }
        self.next = counter + 1;
    }
}

/// The word that holds `counter`; the remainder keeps it below [`WORDS`].
const fn word(counter: u64) -> usize {
    (counter / WORD_BITS) as usize % WORDS
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIM: u64 = WINDOW_LEN + 1;
    const TOP: u64 = REJECT_AFTER_MESSAGES;

    #[test]
    fn constants_are_those_of_the_paper_and_the_kernel() {
        assert_eq!(TOP, 18_446_744_073_709_543_423); // 2^64 − 2^13 − 1
        assert_eq!(WINDOW_LEN, 8128);
    }

    /// Commits in order; each line says what must come of it, and `check` must have said the same.
    fn table(lines: &[(u64, Result<(), Rejected>)]) {
        let mut window = Window::default();
        for (number, &(counter, expected)) in lines.iter().enumerate() {
            assert_eq!(window.check(counter), expected, "check, line {number}: {counter}");
            assert_eq!(window.commit(counter), expected, "commit, line {number}: {counter}");
        }
    }

    #[test]
    fn order_gaps_and_the_far_edge() {
        use Rejected::{Replayed, TooOld};
        table(&[
            (0, Ok(())),
            (0, Err(Replayed)),
            (1, Ok(())),
            (1, Err(Replayed)),
            (9, Ok(())),
            (8, Ok(())),
            (7, Ok(())),
            (7, Err(Replayed)),
            (LIM, Ok(())),
            (LIM - 1, Ok(())),
            (LIM - 1, Err(Replayed)),
            (2, Ok(())),
            (2, Err(Replayed)),
            (1, Err(Replayed)),
            (0, Err(TooOld)),
            (LIM + 16, Ok(())),
            (3, Err(TooOld)),
            (17, Ok(())),
            (16, Err(TooOld)),
            (LIM * 4, Ok(())),
            (LIM * 4 - WINDOW_LEN, Ok(())),
            (LIM * 4 - WINDOW_LEN, Err(Replayed)),
            (LIM * 4 - WINDOW_LEN - 1, Err(TooOld)),
            (LIM * 4 - WINDOW_LEN + 1, Ok(())),
            (0, Err(TooOld)),
        ]);
    }

    #[test]
    fn the_top_of_the_counter() {
        use Rejected::{Limit, Replayed, TooOld};
        table(&[
            (u64::MAX, Err(Limit)),
            (TOP, Err(Limit)),
            (TOP - 1, Ok(())),
            (TOP - 1, Err(Replayed)),
            (TOP, Err(Limit)),
            (TOP + 1, Err(Limit)),
            (u64::MAX, Err(Limit)),
            (TOP - 2, Ok(())),
            (TOP - 2, Err(Replayed)),
            (TOP - 1 - WINDOW_LEN, Ok(())),
            (TOP - 2 - WINDOW_LEN, Err(TooOld)),
            (0, Err(TooOld)),
        ]);
    }

    #[test]
    fn counters_beyond_32_bits_are_told_apart() {
        let mut window = Window::default();
        assert_eq!(window.commit(5), Ok(()));
        assert_eq!(window.commit((1 << 32) + 5), Ok(()));
        assert_eq!(window.commit((1 << 32) + 5), Err(Rejected::Replayed));
        assert_eq!(window.commit(5), Err(Rejected::TooOld));
    }

    #[test]
    fn every_counter_backwards_through_a_whole_window() {
        let mut window = Window::default();
        for counter in (100..=100 + WINDOW_LEN).rev() {
            assert_eq!(window.commit(counter), Ok(()), "{counter}");
        }
        assert_eq!(window.commit(99), Err(Rejected::TooOld));
        for counter in 100..=100 + WINDOW_LEN {
            assert_eq!(window.commit(counter), Err(Rejected::Replayed), "{counter}");
        }
    }

    /// The rule in words: below the limit, not far behind the greatest, never seen.
    fn model(seen: &BTreeSet<u64>, counter: u64) -> Result<(), Rejected> {
        if counter >= TOP {
            Err(Rejected::Limit)
        } else if seen.last().is_some_and(|greatest| greatest.saturating_sub(counter) > WINDOW_LEN) {
            Err(Rejected::TooOld)
        } else if seen.contains(&counter) {
            Err(Rejected::Replayed)
        } else {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(
            base in prop_oneof![Just(0u64), Just(u64::from(u32::MAX)), Just(TOP - 20_000), any::<u64>()],
            steps in prop::collection::vec(
                prop_oneof![
                    4 => -200i64..200,
                    2 => -9000i64..9000,
                    1 => prop::sample::select(vec![64, -64, 8127, 8128, 8129, -8127, -8128, -8129, 8192, 8193, 70_000]),
                ],
                1..400,
            ),
        ) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            let mut counter = base;
            for step in steps {
                counter = counter.saturating_add_signed(step);
                let expected = model(&seen, counter);
                prop_assert_eq!(window.check(counter), expected);
                prop_assert_eq!(window.commit(counter), expected);
                if expected.is_ok() {
                    seen.insert(counter);
                }
            }
        }
    }
}
