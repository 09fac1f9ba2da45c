//! The protocol's constants, and the timer wheel that holds one deadline per session.
//!
//! The wheel has seven levels of 64 buckets; a bucket of level *n* spans 64^*n* ticks of about 17 ms. A deadline lies
//! at the level where it first differs from the present, and comes down a level each time its bucket opens: at most
//! six moves in its life, however far away it was. A word of bits per level says which buckets hold something, so an
//! idle hour costs nothing to cross.
//!
//! Sessions' deadlines nearly always move later (every packet puts off a keepalive). Such a move only stores the new
//! time: the entry stays in its bucket, and is put where it belongs when the bucket opens.

use std::time::Duration;

use crate::types::Time;

use super::replay::REJECT_AFTER_MESSAGES;

/// The constants of the protocol (white paper, section 6.1, and the Linux module's `messages.h`); a value, so that
/// tests can shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The initiator renews a keypair of this age when it sends: 120 s.
    pub rekey_after_time: Duration,
    /// A keypair of this age neither seals nor opens: 180 s. Three times as much after the last one was made, all
    /// keys are wiped.
    pub reject_after_time: Duration,
    /// A handshake without an answer is given up after this long: 90 s.
    pub rekey_attempt_time: Duration,
    /// Between two initiations to one peer, at least: 5 s.
    pub rekey_timeout: Duration,
    /// A retransmission waits up to this much longer, at random: 333 ms.
    pub rekey_timeout_jitter: Duration,
    /// Who has received but not sent for this long sends a keepalive: 10 s.
    pub keepalive_timeout: Duration,
    /// A keypair is renewed after this many sent messages: 2^60.
    pub rekey_after_messages: u64,
    /// Counters at or beyond this are not sent: 2^64 − 2^13 − 1. The receiver's limit is always
    /// [`REJECT_AFTER_MESSAGES`], so it never exceeds that.
    pub reject_after_messages: u64,
    /// A keypair is renewed after so many blocks of 16 bytes, tags included, sealed with AES-256-GCM: 2^34.
    pub aes_rekey_after_blocks: u64,
    /// From so many blocks on nothing more is reserved for AES-256-GCM: the limit below, less what one super-packet may
    /// still need, 2^17.
    pub aes_stop_after_blocks: u64,
    /// So many blocks one key of AES-256-GCM seals at most: 2^34.5, rounded down. Up to there an attacker's advantage
    /// stays below 2^-57 (RFC 8446 section 5.5; the formula in RFC 9001 appendix B.1).
    pub aes_reject_after_blocks: u64,
}

impl Limits {
    /// The paper's.
    pub const PAPER: Self = Self {
        rekey_after_time: Duration::from_secs(120),
        reject_after_time: Duration::from_secs(180),
        rekey_attempt_time: Duration::from_secs(90),
        rekey_timeout: Duration::from_secs(5),
        rekey_timeout_jitter: Duration::from_millis(333),
        keepalive_timeout: Duration::from_secs(10),
        rekey_after_messages: 1 << 60,
        reject_after_messages: REJECT_AFTER_MESSAGES,
        aes_rekey_after_blocks: 1 << 34,
        aes_stop_after_blocks: 24_296_003_999 - (1 << 17),
        aes_reject_after_blocks: 24_296_003_999,
    };

    /// The paper's times, all shortened in the same proportion, so that keys are renewed after `rekey_after_time`.
    /// For tests of what takes minutes; both sides may differ.
    #[must_use]
    pub fn shortened(rekey_after_time: Duration) -> Self {
        let paper = Self::PAPER;
        let scale = |time: Duration| time.mul_f64(rekey_after_time.div_duration_f64(paper.rekey_after_time));
        Self {
            rekey_after_time,
            reject_after_time: scale(paper.reject_after_time),
            rekey_attempt_time: scale(paper.rekey_attempt_time),
            rekey_timeout: scale(paper.rekey_timeout),
            rekey_timeout_jitter: scale(paper.rekey_timeout_jitter),
            keepalive_timeout: scale(paper.keepalive_timeout),
            ..paper
        }
    }

    /// The age at which an initiator renews on receipt: Reject-After-Time − Keepalive-Timeout − Rekey-Timeout, 165 s.
    #[must_use]
    pub const fn rekey_on_receipt_after(&self) -> Duration {
        self.reject_after_time.saturating_sub(self.no_answer_after())
    }

    /// Who has sent data and received nothing for this long begins a new handshake: Keepalive-Timeout +
    /// Rekey-Timeout, 15 s.
    #[must_use]
    pub const fn no_answer_after(&self) -> Duration {
        self.keepalive_timeout.saturating_add(self.rekey_timeout)
    }

    /// When keys are wiped after the last keypair was made: 3 × Reject-After-Time, 540 s.
    #[must_use]
    pub const fn erase_after(&self) -> Duration {
        self.reject_after_time.saturating_mul(3)
    }

    /// How many retransmissions follow an initiation before giving up. The kernel compares its count after the
    /// fact (`timer_handshake_attempts > MAX_TIMER_HANDSHAKES`), so there is one more than fits the attempt time: 19.
    #[must_use]
    pub fn retransmissions(&self) -> u32 {
        let fitting = self.rekey_attempt_time.as_nanos() / self.rekey_timeout.as_nanos().max(1);
        u32::try_from(fitting).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::PAPER
    }
}

/// log2 of a tick in nanoseconds: 16.8 ms, far below the shortest timer and its jitter.
const TICK_SHIFT: u32 = 24;
/// log2 of the buckets of a level: one word of bits.
const LEVEL_SHIFT: u32 = 6;
const BUCKETS: usize = 1 << LEVEL_SHIFT;
/// 7 × 6 bits hold every tick of a 64-bit nanosecond (2^40), so no deadline is out of reach.
const LEVELS: usize = 7;
/// No entry; also the level of an entry that is in no bucket.
const NONE: u32 = u32::MAX;

/// A deadline, linked into its bucket.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The tick at which it is due.
    due: u64,
    /// The tick at which its bucket opens: never after `due`.
    opens: u64,
    previous: u32,
    next: u32,
    level: u32,
    bucket: u32,
}

const UNLINKED: Entry = Entry { due: 0, opens: 0, previous: NONE, next: NONE, level: NONE, bucket: 0 };

/// A hierarchical timer wheel: at most one deadline for each slot number. Costs by what expires; allocates only to
/// make room for a slot greater than any before.
#[derive(Debug)]
pub struct Wheel {
    /// The present, in ticks. Every bucket that opened up to here has been emptied; only level 0 may hold
    /// something in the bucket of the present itself.
    now: u64,
    /// For each level, bit *n*: its bucket *n* holds something. Apart from the buckets, so that a look at an idle wheel
    /// touches one cache line.
    occupied: [u64; LEVELS],
    /// The first slot of each level's buckets.
    heads: [[u32; BUCKETS]; LEVELS],
    /// By slot number.
    entries: Vec<Entry>,
}

impl Wheel {
    /// A wheel with room for the slots `0..slots`; more are made room for as they come. `now` is the present.
    #[must_use]
    pub fn new(slots: usize, now: Time) -> Self {
        Self {
            now: now.as_nanos() >> TICK_SHIFT,
            occupied: [0; LEVELS],
            heads: [[NONE; BUCKETS]; LEVELS],
            entries: vec![UNLINKED; slots],
        }
    }

    /// Sets the slot's deadline, in place of an earlier one. One that lies in the past is due at once. Slots are
    /// indices into the caller's table: memory grows with the greatest.
    #[inline]
    pub fn schedule(&mut self, slot: u32, at: Time) {
        let due = ticks_up(at).max(self.now);
        if let Some(entry) = self.entries.get_mut(slot as usize)
            && entry.level != NONE
            && entry.opens <= due
        {
            entry.due = due;
            return;
        }
        self.place(slot, due);
    }

    /// Removes the slot's deadline, if it has one.
    pub fn cancel(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot as usize).filter(|entry| entry.level != NONE) else {
            return;
        };
        let Entry { previous, next, level, bucket, .. } = *entry;
        *entry = UNLINKED;
        if let Some(after) = self.entries.get_mut(next as usize) {
            after.previous = previous;
        }
        match self.entries.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => {
                self.heads[level as usize][bucket as usize] = next;
                if next == NONE {
                    self.occupied[level as usize] &= !(1 << bucket);
                }
            }
        }
    }

    /// Moves the present to `now` and calls `due` for each slot whose deadline has passed, which then has none; by
    /// ticks in order. A `now` before the present changes nothing.
    pub fn expire(&mut self, now: Time, due: &mut impl FnMut(u32)) {
        let target = now.as_nanos() >> TICK_SHIFT;
        while let Some((level, bucket, opens)) = self.first_bucket()
            && opens <= target
        {
            self.now = opens;
            self.open(level, bucket, due);
        }
        self.now = self.now.max(target);
    }

    /// When [`Self::expire`] has something to do, at the earliest: never later than a tick after the first deadline,
    /// perhaps earlier. `None` if there is no deadline.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        let (_, _, opens) = self.first_bucket()?;
        Some(Time::from_nanos(opens.saturating_mul(1 << TICK_SHIFT)))
    }

    /// The bucket that opens first and the tick when it does. Entries of a level share the present's place in all
    /// levels above, so the lowest level that holds anything holds the first.
    fn first_bucket(&self) -> Option<(usize, usize, u64)> {
        let (level, occupied) = self.occupied.iter().enumerate().find(|(_, occupied)| **occupied != 0)?;
        let bucket = occupied.trailing_zeros();
        let shift = LEVEL_SHIFT * level as u32;
        let around = self.now >> (shift + LEVEL_SHIFT) << (shift + LEVEL_SHIFT);
        Some((level, bucket as usize, around | u64::from(bucket) << shift))
    }

    /// Empties a bucket whose time has come: what is due is reported, the rest comes down or moves on.
    fn open(&mut self, level: usize, bucket: usize, due: &mut impl FnMut(u32)) {
        let mut slot = std::mem::replace(&mut self.heads[level][bucket], NONE);
        self.occupied[level] &= !(1 << bucket);
        while let Some(entry) = self.entries.get_mut(slot as usize) {
            let Entry { due: tick, next, .. } = *entry;
            *entry = UNLINKED;
            if tick <= self.now {
                due(slot);
            } else {
                self.place(slot, tick);
            }
            slot = next;
        }
    }

    /// Links a slot into the bucket of `due`, which is not before the present.
    fn place(&mut self, slot: u32, due: u64) {
        self.cancel(slot);
        let index = slot as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, UNLINKED);
        }
        // The highest bit in which `due` differs from the present names the level; of two equal ticks, level 0.
        let level = ((self.now ^ due) | 1).ilog2() / LEVEL_SHIFT;
        let shift = LEVEL_SHIFT * level;
        let bucket = (due >> shift) as usize % BUCKETS;
        // 2^40 ticks need 41 of 42 bits: `level` is below LEVELS.
        let head = std::mem::replace(&mut self.heads[level as usize][bucket], slot);
        self.occupied[level as usize] |= 1 << bucket;
        if let Some(second) = self.entries.get_mut(head as usize) {
            second.previous = slot;
        }
        self.entries[index] = Entry {
            due,
            opens: due >> shift << shift,
            previous: NONE,
            next: head,
            level,
            bucket: bucket as u32,
        };
    }
}

/// The first tick that does not begin before `at`: a timer is never early.
const fn ticks_up(at: Time) -> u64 {
    at.as_nanos().div_ceil(1 << TICK_SHIFT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: u64 = 1 << TICK_SHIFT;

    fn tick(n: u64) -> Time {
        Time::from_nanos(n * TICK)
    }

    fn expired(wheel: &mut Wheel, now: Time) -> Vec<u32> {
        let mut slots = Vec::new();
        wheel.expire(now, &mut |slot| slots.push(slot));
        slots
    }

    #[test]
    fn the_papers_constants() {
        let limits = Limits::default();
        assert_eq!(limits.rekey_on_receipt_after(), Duration::from_secs(165));
        assert_eq!(limits.no_answer_after(), Duration::from_secs(15));
        assert_eq!(limits.erase_after(), Duration::from_secs(540));
        assert_eq!(limits.retransmissions(), 19);
        let nothing = Limits { rekey_timeout: Duration::ZERO, ..limits };
        assert_eq!(nothing.retransmissions(), u32::MAX, "no division by zero");
    }

    #[test]
    fn never_early_and_at_most_a_tick_late() {
        let mut wheel = Wheel::new(1, tick(0));
        wheel.schedule(0, Time::from_nanos(5 * TICK + 1));
        assert_eq!(wheel.next(), Some(tick(6)));
        assert!(expired(&mut wheel, Time::from_nanos(6 * TICK - 1)).is_empty());
        assert_eq!(expired(&mut wheel, tick(6)), [0]);
        assert_eq!(wheel.next(), None);
        assert!(expired(&mut wheel, tick(1000)).is_empty(), "once only");
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_once() {
        let mut wheel = Wheel::new(0, tick(1_000_000));
        wheel.schedule(3, tick(5));
        assert_eq!(wheel.next(), Some(tick(1_000_000)));
        assert_eq!(expired(&mut wheel, tick(1_000_000)), [3]);
    }

    #[test]
    fn moving_later_leaves_the_bucket_and_is_not_reported_early() {
        let mut wheel = Wheel::new(1, tick(0));
        wheel.schedule(0, tick(10));
        let opens = wheel.entries[0].opens;
        for later in 11..5000 {
            wheel.schedule(0, tick(later));
        }
        assert_eq!(wheel.entries[0].opens, opens, "the wheel was not touched");
        assert!(expired(&mut wheel, tick(10)).is_empty());
        assert!(expired(&mut wheel, tick(4998)).is_empty());
        assert_eq!(expired(&mut wheel, tick(4999)), [0]);
    }

    #[test]
    fn moving_earlier_moves() {
        let mut wheel = Wheel::new(1, tick(0));
        wheel.schedule(0, tick(100_000));
        wheel.schedule(0, tick(70));
        assert!(expired(&mut wheel, tick(69)).is_empty());
        assert_eq!(expired(&mut wheel, tick(70)), [0]);
        assert!(expired(&mut wheel, tick(200_000)).is_empty());
    }

    #[test]
    fn cancelling_from_head_middle_and_tail_of_a_bucket() {
        for gone in 0..3 {
            let mut wheel = Wheel::new(3, tick(0));
            (0..3).for_each(|slot| wheel.schedule(slot, tick(9)));
            wheel.cancel(gone);
            wheel.cancel(gone);
            wheel.cancel(77);
            let mut left = expired(&mut wheel, tick(9));
            left.sort_unstable();
            assert_eq!(left, (0..3).filter(|&slot| slot != gone).collect::<Vec<_>>());
        }
        let mut wheel = Wheel::new(1, tick(0));
        wheel.schedule(0, tick(9));
        wheel.cancel(0);
        assert_eq!(wheel.next(), None, "an emptied bucket is not waited for");
    }

    #[test]
    fn the_end_of_time_is_within_reach_and_costs_few_steps() {
        let mut wheel = Wheel::new(2, tick(0));
        wheel.schedule(0, Time::from_nanos(u64::MAX));
        wheel.schedule(1, Time::from_nanos(u64::MAX - TICK));
        // 2^40 ticks: this would not return if each were visited.
        assert_eq!(expired(&mut wheel, Time::from_nanos(u64::MAX)), [1]);
        assert!(wheel.next().is_some());
    }

    #[test]
    fn a_clock_that_jumps_back_only_waits() {
        let mut wheel = Wheel::new(2, tick(1000));
        wheel.schedule(0, tick(1010));
        assert!(expired(&mut wheel, tick(3)).is_empty());
        wheel.schedule(1, tick(4));
        assert_eq!(expired(&mut wheel, tick(1010)), [1, 0]);
    }

    #[test]
    fn a_slot_may_be_scheduled_again_once_reported() {
        let mut wheel = Wheel::new(1, tick(0));
        for round in 1..200u64 {
            wheel.schedule(0, tick(round * 37));
            assert_eq!(expired(&mut wheel, tick(round * 37)), [0]);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Schedule(u32, u64),
        Cancel(u32),
        Advance(u64),
        Sleep,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let delay = prop_oneof![0..3 * TICK, 0..500 * TICK, 0..(TICK << 13), 0..(TICK << 26)];
        let step = prop_oneof![
            6 => (0u32..12, delay.clone()).prop_map(|(slot, delay)| Step::Schedule(slot, delay)),
            1 => (0u32..14).prop_map(Step::Cancel),
            3 => delay.prop_map(Step::Advance),
            2 => Just(Step::Sleep),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(start in prop_oneof![Just(0), 0u64..1 << 60], steps in steps()) {
            let mut now = Time::from_nanos(start);
            let mut wheel = Wheel::new(4, now);
            let mut model = BTreeMap::<u32, u64>::new();
            for step in steps {
                match step {
                    Step::Schedule(slot, delay) => {
                        let at = Time::from_nanos(now.as_nanos() + delay);
                        wheel.schedule(slot, at);
                        model.insert(slot, ticks_up(at));
                        continue;
                    }
                    Step::Cancel(slot) => {
                        wheel.cancel(slot);
                        model.remove(&slot);
                        continue;
                    }
                    Step::Advance(delay) => now = Time::from_nanos(now.as_nanos() + delay),
                    // As a worker does: until the wheel says.
                    Step::Sleep => now = wheel.next().map_or(now, |next| next.max(now)),
                }
                let reached = now.as_nanos() >> TICK_SHIFT;
                let mut due: Vec<_> =
                    model.iter().filter(|(_, tick)| **tick <= reached).map(|(slot, tick)| (*tick, *slot)).collect();
                let fired = expired(&mut wheel, now);
                prop_assert!(fired.windows(2).all(|pair| model[&pair[0]] <= model[&pair[1]]), "in order");
                for slot in &fired {
                    model.remove(slot);
                }
                let mut slots = fired;
                slots.sort_unstable();
                due.sort_unstable_by_key(|(_, slot)| *slot);
                prop_assert_eq!(slots, due.into_iter().map(|(_, slot)| slot).collect::<Vec<_>>());
                match (wheel.next(), model.values().min()) {
                    (Some(next), Some(&first)) => prop_assert!(next <= tick(first)),
                    (None, None) => {}
                    (next, first) => prop_assert!(false, "{next:?} but the first is at {first:?}"),
                }
            }
        }
    }
}
