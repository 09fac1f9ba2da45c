//! How many slots a descriptor may fill in one turn.
//!
//! Receiving full runs into 16 slots in turn costs half as much again per datagram as into 4 that stay in the cache
//! (measured). Small datagrams touch little of a slot, and there each further slot saves system calls. So the depth
//! follows the traffic: it doubles when a turn ran out of slots, and halves when a turn brought more bytes than the
//! cache should hold. The arena's last-in-first-out order does the rest.

/// The depth begins here and, but for quiet times, never falls below.
const LEAST: usize = 4;

/// Bytes in one turn beyond which more slots cost more than they save: part of a core's own cache, and fewer than
/// [`LEAST`] full slots hold.
const WARM_BYTES: usize = 192 * 1024;

/// The depth while single small packets come one by one: each goes into memory that the last but one has warmed.
/// An idle ping is a tenth faster than with [`LEAST`] (measured).
const QUIET: usize = 2;

/// A turn that brought so few bytes is quiet: one packet.
const QUIET_BYTES: usize = 2048;

/// After so many quiet turns in a row the depth is [`QUIET`].
const QUIET_TURNS: u8 = 16;

/// Follows the traffic of one descriptor.
#[derive(Debug)]
pub struct Depth {
    slots: usize,
    /// Bytes that came since the last turn began, and whether slots ran out.
    bytes: usize,
    exhausted: bool,
    /// Quiet turns in a row.
    quiet: u8,
}

impl Default for Depth {
    fn default() -> Self {
        Self { slots: LEAST, bytes: 0, exhausted: false, quiet: 0 }
    }
}

impl Depth {
    /// Notes so many received bytes.
    pub fn brought(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Notes that more could have been received with more slots.
    pub fn ran_out(&mut self) {
        self.exhausted = true;
    }

    /// Begins a turn; yields the depth that the last one suggests, of `capacity` slots in all (more than those there
    /// are if `capacity` is below the least depth).
    pub fn next_turn(&mut self, capacity: usize) -> usize {
        if self.bytes > WARM_BYTES {
            self.slots = (self.slots / 2).max(LEAST);
        } else if self.exhausted {
            self.slots = (self.slots * 2).clamp(LEAST, capacity.max(LEAST));
        }
        if self.exhausted || self.bytes > QUIET_BYTES {
            self.quiet = 0;
        } else if self.bytes > 0 {
            self.quiet = self.quiet.saturating_add(1);
            if self.quiet >= QUIET_TURNS {
                self.slots = QUIET;
            }
        }
        self.bytes = 0;
        self.exhausted = false;
        self.slots
    }

    /// The depth of this turn.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// True while single small packets come one by one.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.quiet >= QUIET_TURNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn that brings so many bytes; yields the next one's depth.
    fn turn(depth: &mut Depth, bytes: usize, ran_out: bool) -> usize {
        depth.brought(bytes);
        if ran_out {
            depth.ran_out();
        }
        depth.next_turn(16)
    }

    #[test]
    fn it_doubles_for_want_of_slots_and_halves_for_want_of_cache() {
        let mut depth = Depth::default();
        assert_eq!(depth.slots(), LEAST);
        for (bytes, ran_out, next) in [
            (5000, true, 8),
            // What one turn brought is no other's.
            (5000, false, 8),
            (WARM_BYTES, false, 8),
            (WARM_BYTES, true, 16),
            (5000, true, 16),
            (WARM_BYTES + 1, true, 8),
            (WARM_BYTES + 1, false, LEAST),
            (WARM_BYTES + 1, false, LEAST),
        ] {
            assert_eq!((turn(&mut depth, bytes, ran_out), depth.slots()), (next, next), "{bytes} {ran_out}");
        }
        let mut few = Depth::default();
        few.ran_out();
        assert_eq!(few.next_turn(2), LEAST);
    }

    #[test]
    fn single_packets_make_it_quiet_and_company_ends_that() {
        for (bytes, ran_out, next) in [(QUIET_BYTES + 1, false, QUIET), (1, true, LEAST)] {
            let mut depth = Depth::default();
            for _ in 1..QUIET_TURNS {
                assert_eq!(turn(&mut depth, QUIET_BYTES, false), LEAST);
                // A turn of other targets says nothing.
                assert_eq!(turn(&mut depth, 0, false), LEAST);
                assert!(!depth.is_quiet());
            }
            assert_eq!(turn(&mut depth, QUIET_BYTES, false), QUIET);
            assert!(depth.is_quiet());
            assert_eq!(turn(&mut depth, bytes, ran_out), next);
            assert!(!depth.is_quiet());
        }
    }
}
