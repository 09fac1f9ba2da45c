//! Letting small packets gather before the next turn.
//!
//! Who sends small packets as fast as it can, on the core of the worker that carries them, is interrupted by that
//! worker for each: the packet wakes it, it finds one, and sleeps again. A turn for one packet costs three times its
//! share of a turn for ten (measured, see docs/decisions/0042-linger.md), and what its batches are for, sealing side by
//! side and one send for many, is lost. Network cards have interrupt moderation for this.
//!
//! So when small packets come so close together that several waits in a row hardly slept, the next one sleeps
//! [`LINGER`] whatever comes, and so on for as long as that brings packets in numbers. Who waits for answers cannot
//! send many meanwhile: a try in vain costs such a one 30 µs, and each makes the next one rarer. Bulk transfer comes in
//! large pieces and is never delayed.

use std::time::Duration;

use super::Event;

/// How long packets may gather: the longest delay that this can be for one of them.
pub(super) const LINGER: Duration = Duration::from_micros(30);

/// A wait that slept for less found its packet nearly at hand.
const CLOSE: Duration = Duration::from_micros(20);

/// So many such waits in a row, and the next one lingers; after tries in vain twice as many each time, up to [`MOST`].
const ROW: u16 = 4;
const MOST: u16 = 1024;

/// A wait that lingered is worth it if it brought so many, half of what is sealed side by side, or all it could: then
/// the next may bring more.
const WORTH: usize = 8;

/// Mean size up to which packets are small. What is larger fills a turn by itself.
const SMALL: usize = 2048;

/// What a wait brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Brought {
    /// How long it slept.
    pub(super) slept: Duration,
    /// Pieces: TUN reads, receives.
    pub(super) pieces: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// Slots ran out: there is more at hand.
    pub(super) more: bool,
}

impl Brought {
    /// Counts the packets among `events`.
    pub(super) fn of(slept: Duration, events: &[Event], more: bool) -> Self {
        let mut brought = Self { slept, more, ..Self::default() };
        for event in events {
            let len = match event {
                Event::Tun(read) => read.len,
                Event::Datagrams(datagrams) => datagrams.len,
                Event::Wake | Event::Writable(_) | Event::Failed(..) => continue,
            };
            brought.pieces += 1;
            brought.bytes += len;
        }
        brought
    }
}

/// When to let packets gather.
#[derive(Debug)]
pub(super) struct Linger {
    /// Waits in a row that found small packets close.
    row: u16,
    /// So many make the next one linger.
    needed: u16,
    /// The last wait left something.
    more: bool,
}

impl Default for Linger {
    fn default() -> Self {
        Self { row: 0, needed: ROW, more: false }
    }
}

impl Linger {
    /// True if the next wait is to sleep [`LINGER`], whatever comes.
    pub(super) fn is_due(&self) -> bool {
        self.row >= self.needed && !self.more
    }

    /// Looks at what a wait brought, and whether it had `lingered`.
    pub(super) fn look(&mut self, brought: Brought, lingered: bool) {
        let Brought { slept, pieces, bytes, more } = brought;
        let small = pieces > 0 && bytes <= SMALL * pieces;
        let goes_on = if lingered { pieces >= WORTH || more } else { slept < CLOSE };
        if lingered {
            self.needed = if small && goes_on { ROW } else { (self.needed * 2).min(MOST) };
        }
        self.row = if small && goes_on { self.row.saturating_add(1) } else { 0 };
        self.more = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_HAND: Brought = Brought { slept: Duration::ZERO, pieces: 1, bytes: 100, more: false };

    fn after(row: u16) -> Linger {
        let mut linger = Linger::default();
        for _ in 0..row {
            assert!(!linger.is_due());
            linger.look(AT_HAND, false);
        }
        linger
    }

    #[test]
    fn a_row_of_small_packets_at_hand_makes_it_linger() {
        assert!(after(ROW).is_due());
        for ends in [
            Brought { slept: CLOSE, ..AT_HAND },
            Brought { bytes: SMALL + 1, ..AT_HAND },
            Brought { pieces: 0, bytes: 0, ..AT_HAND },
        ] {
            let mut linger = after(ROW - 1);
            linger.look(ends, false);
            linger.look(AT_HAND, false);
            assert!(!linger.is_due(), "{ends:?} ends the row");
        }
    }

    #[test]
    fn it_goes_on_while_that_brings_packets_in_numbers() {
        let gathered = Brought { slept: LINGER, pieces: WORTH, bytes: 300, more: false };
        for (brought, goes_on) in [
            (gathered, true),
            (Brought { pieces: WORTH - 1, ..gathered }, false),
            (Brought { pieces: 0, bytes: 0, more: true, ..gathered }, false),
            (Brought { pieces: 0, bytes: 0, ..gathered }, false),
            (Brought { bytes: WORTH * SMALL + 1, ..gathered }, false),
        ] {
            let mut linger = after(ROW);
            linger.look(brought, true);
            assert_eq!(linger.is_due(), goes_on, "{brought:?}");
        }
    }

    #[test]
    fn tries_in_vain_become_rare_until_one_is_worth_it() {
        let mut linger = Linger::default();
        let mut tries = |waits: u32, gathered: usize| {
            let mut tries = 0;
            for _ in 0..waits {
                let lingers = linger.is_due();
                let pieces = if lingers { gathered } else { 1 };
                linger.look(Brought { pieces, ..AT_HAND }, lingers);
                tries += u32::from(lingers);
            }
            tries
        };
        // After rows of 4, 8, ... 1024, which are 2044 waits, one in 1025.
        assert_eq!(tries(2044 + 9, 1), 9);
        assert_eq!(tries(10 * 1025, 1), 10);
        assert_eq!(tries(1025 + 100, WORTH), 101);
        assert_eq!(tries(1, 1), 1);
        assert_eq!(tries(9, 1), 1, "eight, after one in vain");
    }

    #[test]
    fn not_while_there_is_more_at_hand() {
        let mut linger = after(ROW);
        linger.look(Brought { more: true, ..AT_HAND }, false);
        assert!(!linger.is_due());
        linger.look(AT_HAND, false);
        assert!(linger.is_due());
        // A try that brought all it could was worth it.
        linger.look(Brought { more: true, ..AT_HAND }, true);
        linger.look(AT_HAND, false);
        assert!(linger.is_due());
    }
}
