//! The greatest packet that the way to a gateway carries: found by packets of several sizes, of which some come back
//! (as RFC 8899 does, but by what is sent anyway: echo requests through the tunnel).
//!
//! 1. Once up: one of full size. If it comes back, that is it.
//! 2. If it does not, again and again, while one of the least size does, the way swallows large ones: sizes between
//!    are tried, several at a time, until what is left between what passes and what does not is 8 bytes or less.
//! 3. What was found is tried again while there is traffic, every [`CONFIRM`]; if it is lost, all begins anew.
//! 4. [`RAISE`] after a find below the full size, and when the network has changed, the full size is tried again.
//!
//! If nothing at all comes back, nothing is known and nothing changes.

use std::time::Duration;

use crate::types::Time;

/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(1);
/// How often what does not come back is sent, while less does.
const TRIES: u32 = 3;
/// Between two looks at whether the present size still passes.
pub const CONFIRM: Duration = Duration::from_secs(15);
/// After this long a way that was narrow may be wider again: as long as Linux believes ICMP (mtu_expires).
pub const RAISE: Duration = Duration::from_secs(600);
/// What is found is less than so many bytes below what passes: data is padded to 16.
const GRAIN: u16 = 8;
/// Sizes that are tried at a time, between the two that are known.
const BETWEEN: u16 = 4;

/// A packet to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// By which its answer is known.
    pub sequence: u16,
    /// Bytes of the IP packet.
    pub size: u16,
}

/// Sizes that are being tried, the largest first.
#[derive(Debug, Default)]
struct Round {
    /// With the sequence numbers that each was sent under, and whether it came back.
    sizes: Vec<(u16, [Option<u16>; TRIES as usize], bool)>,
    tries: u32,
}

/// What is going on.
#[derive(Debug)]
enum Stage {
    /// The present size is tried.
    Confirming,
    /// Between the greatest size that is known to pass and the least that is known not to.
    Searching { passes: u16, lost: u16 },
    /// Until this time nothing is tried.
    Settled,
}

/// The machine of one connection.
#[derive(Debug)]
pub struct PathMtu {
    least: u16,
    full: u16,
    mtu: u16,
    stage: Stage,
    round: Round,
    due: Time,
    /// When the full size was found not to pass.
    lowered: Option<Time>,
    next_sequence: u16,
    /// Place in the round of the next probe.
    to_send: usize,
}

impl PathMtu {
    /// Between the least and the full size, bytes. The first probes are due at once.
    #[must_use]
    pub fn new(least: u16, full: u16, now: Time) -> Self {
        let mut machine = Self {
            least: least.min(full),
            full,
            mtu: full,
            stage: Stage::Settled,
            round: Round::default(),
            due: now,
            lowered: None,
            next_sequence: 0,
            to_send: 0,
        };
        machine.confirm(now);
        machine
    }

    /// What the device's MTU is to be now, bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Time {
        self.due
    }

    /// The next packet to be sent now.
    pub fn next_probe(&mut self) -> Option<Probe> {
        while let Some((size, sequences, came)) = self.round.sizes.get_mut(self.to_send) {
            self.to_send += 1;
            if !*came && let Some(place) = sequences.iter_mut().find(|place| place.is_none()) {
                let sequence = self.next_sequence;
                self.next_sequence = sequence.wrapping_add(1);
                *place = Some(sequence);
                return Some(Probe { sequence, size: *size });
            }
        }
        None
    }

    /// An answer to a probe.
    pub fn handle_answer(&mut self, sequence: u16, now: Time) {
        for (_, sequences, came) in &mut self.round.sizes {
            *came |= sequences.contains(&Some(sequence));
        }
        // A smaller one passes where a larger one does.
        if self.round.sizes.first().is_some_and(|(.., came)| *came) {
            self.decide(now);
        }
    }

    /// Does what is due. `is_used`: packets have gone into the tunnel since the last time, other than probes.
    pub fn handle_timeout(&mut self, now: Time, is_used: bool) {
        if now < self.due {
            return;
        }
        if let Stage::Settled = self.stage {
            match self.lowered.is_some_and(|lowered| now.since(lowered) >= RAISE) {
                true if is_used => self.network_changed(now),
                _ if is_used => self.confirm(now),
                _ => self.due = now + CONFIRM,
            }
        } else if self.round.tries < TRIES {
            // Is it the size, or does nothing come back?
            if self.round.sizes.len() == 1 && self.least < self.mtu {
                self.round.sizes.push((self.least, [None; TRIES as usize], false));
            }
            self.round.tries += 1;
            (self.to_send, self.due) = (0, now + WAIT);
        } else {
            self.decide(now);
        }
    }

    /// The way may be another one: the full size is tried again.
    pub fn network_changed(&mut self, now: Time) {
        self.mtu = self.full;
        self.lowered = None;
        self.confirm(now);
    }

    fn confirm(&mut self, now: Time) {
        self.stage = Stage::Confirming;
        self.try_sizes(std::iter::once(self.mtu), now);
    }

    /// `sizes`: the largest first.
    fn try_sizes(&mut self, sizes: impl Iterator<Item = u16>, now: Time) {
        let sizes = sizes.map(|size| (size, [None; TRIES as usize], false)).collect();
        self.round = Round { sizes, tries: 1 };
        (self.to_send, self.due) = (0, now + WAIT);
    }

    /// The round is over.
    fn decide(&mut self, now: Time) {
        let sizes = std::mem::take(&mut self.round).sizes;
        let passed = sizes.iter().find(|(.., came)| *came).map(|(size, ..)| *size);
        let above = sizes.iter().rev().find(|(size, ..)| passed.is_none_or(|passed| *size > passed));
        let above = above.map(|(size, ..)| *size);
        match (&self.stage, passed) {
            (Stage::Confirming, Some(size)) if size == self.mtu => self.settle(size, now),
            (Stage::Confirming, Some(size)) if self.mtu < self.full => {
                // Narrower than it was: what lies above is known already.
                self.search(size, self.mtu, now);
            }
            (Stage::Confirming, Some(size)) => self.search(size, self.full, now),
            (Stage::Searching { passes, lost }, _) => {
                let (passes, lost) = (passed.unwrap_or(*passes), above.unwrap_or(*lost));
                self.search(passes, lost, now);
            }
            // Nothing comes back at all.
            (Stage::Confirming | Stage::Settled, _) => {
                self.stage = Stage::Settled;
                self.due = now + CONFIRM;
            }
        }
    }

    fn search(&mut self, passes: u16, lost: u16, now: Time) {
        let gap = lost.saturating_sub(passes);
        if gap <= GRAIN {
            return self.settle(passes, now);
        }
        self.stage = Stage::Searching { passes, lost };
        let step = (gap / (BETWEEN + 1)).max(1);
        self.try_sizes((1..=BETWEEN).rev().map(|part| passes + part * step), now);
    }

    fn settle(&mut self, mtu: u16, now: Time) {
        if mtu < self.full && (self.lowered.is_none() || mtu != self.mtu) {
            self.lowered = Some(now);
        }
        self.mtu = mtu;
        self.stage = Stage::Settled;
        self.due = now + CONFIRM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A way that carries packets of so many bytes, and loses every `lossy`th packet if that is not 0.
    struct Way {
        carries: u16,
        lossy: usize,
        sent: Vec<u16>,
        now: Time,
    }

    impl Way {
        fn new(carries: u16) -> Self {
            Self { carries, lossy: 0, sent: Vec::new(), now: Time::from_nanos(1 << 40) }
        }

        /// Until the machine has settled; how long it took.
        fn run(&mut self, machine: &mut PathMtu) -> Duration {
            let begin = self.now;
            loop {
                while let Some(probe) = machine.next_probe() {
                    assert!(probe.size <= machine.mtu(), "beyond the device's MTU");
                    self.sent.push(probe.size);
                    let is_lost = self.lossy > 0 && self.sent.len().is_multiple_of(self.lossy);
                    if probe.size <= self.carries && !is_lost {
                        machine.handle_answer(probe.sequence, self.now);
                    }
                }
                if let Stage::Settled = machine.stage {
                    return self.now.since(begin);
                }
                self.now = machine.deadline();
                machine.handle_timeout(self.now, true);
            }
        }

        fn later(&mut self, machine: &mut PathMtu, is_used: bool) {
            self.now = machine.deadline();
            machine.handle_timeout(self.now, is_used);
        }
    }

    #[test]
    fn a_way_that_carries_the_full_size_costs_one_probe_at_a_time() {
        let mut way = Way::new(1420);
        let mut machine = PathMtu::new(1280, 1420, way.now);
        assert_eq!(machine.next_probe(), Some(Probe { sequence: 0, size: 1420 }));
        assert_eq!(machine.next_probe(), None, "whether less passes is of no interest yet");
        let mut machine = PathMtu::new(1280, 1420, way.now);
        assert_eq!((way.run(&mut machine), machine.mtu()), (Duration::ZERO, 1420));
        assert_eq!(way.sent, [1420]);
        way.later(&mut machine, false);
        assert_eq!(machine.next_probe(), None, "nobody uses the tunnel");
        way.later(&mut machine, true);
        way.run(&mut machine);
        assert_eq!(way.sent, [1420, 1420]);
    }

    #[test]
    fn what_a_narrow_way_carries_is_found_from_below_in_bounded_time() {
        for (least, carries) in
            (1280..1420).map(|carries| (1280, carries)).chain((576..1420).map(|c| (576, c)))
        {
            let mut way = Way::new(carries);
            let mut machine = PathMtu::new(least, 1420, way.now);
            let took = way.run(&mut machine);
            assert!(
                machine.mtu() <= carries && machine.mtu() + GRAIN > carries,
                "{carries}: {}",
                machine.mtu()
            );
            assert!(took <= WAIT * TRIES * 6 && way.sent.len() <= 72, "{carries}: {took:?}, {:?}", way.sent);
        }
    }

    #[test]
    fn a_loss_here_and_there_lowers_nothing() {
        for lossy in [2, 3, 7] {
            let mut way = Way { lossy, ..Way::new(1420) };
            let mut machine = PathMtu::new(1280, 1420, way.now);
            for _ in 0..50 {
                way.run(&mut machine);
                assert_eq!(machine.mtu(), 1420);
                way.later(&mut machine, true);
            }
        }
    }

    #[test]
    fn silence_says_nothing_about_sizes() {
        let mut way = Way::new(0);
        let mut machine = PathMtu::new(1280, 1420, way.now);
        assert_eq!(way.run(&mut machine), WAIT * TRIES);
        assert_eq!(machine.mtu(), 1420);
        way.carries = 1300;
        way.later(&mut machine, true);
        way.run(&mut machine);
        assert_eq!(machine.mtu() / GRAIN, 1300 / GRAIN);
    }

    #[test]
    fn a_way_that_narrows_is_noticed_and_one_that_widens_later_or_with_the_network() {
        let mut way = Way::new(1420);
        let mut machine = PathMtu::new(1280, 1420, way.now);
        way.run(&mut machine);
        for carries in [1380, 1300] {
            way.carries = carries;
            way.later(&mut machine, true);
            way.run(&mut machine);
            assert!(machine.mtu() <= carries && machine.mtu() + GRAIN > carries, "{}", machine.mtu());
        }
        let narrow = machine.mtu();
        way.carries = 1420;
        let begin = way.now;
        while machine.mtu() == narrow {
            assert!(way.now.since(begin) <= RAISE + CONFIRM);
            way.later(&mut machine, true);
            way.run(&mut machine);
        }
        assert!(machine.mtu() == 1420 && way.now.since(begin) >= RAISE - CONFIRM);
        way.carries = 1300;
        way.later(&mut machine, true);
        way.run(&mut machine);
        assert!(machine.mtu() <= 1300);
        way.carries = 1420;
        machine.network_changed(way.now);
        way.run(&mut machine);
        assert_eq!(machine.mtu(), 1420);
    }

    #[test]
    fn answers_to_nothing_and_an_equal_least_do_no_harm() {
        let mut way = Way::new(1280);
        let mut machine = PathMtu::new(1280, 1420, way.now);
        machine.handle_answer(77, way.now);
        assert_eq!(machine.next_probe(), Some(Probe { sequence: 0, size: 1420 }));
        let mut machine = PathMtu::new(1280, 1280, way.now);
        assert_eq!((way.run(&mut machine), machine.mtu()), (Duration::ZERO, 1280));
        machine.handle_answer(0, way.now);
        assert_eq!(machine.next_probe(), None);
    }
}
