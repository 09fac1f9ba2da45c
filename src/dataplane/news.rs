//! What control knows of a session, and what it is to be told: the state is told, not each change. What changes back
//! before there was room to tell it is not told, and nothing that lasts is lost.

use std::net::SocketAddr;

use super::frames::Allowance;
use super::handoff::SessionChange;
use crate::types::Time;

/// What control knows of a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Where the peer is, if its session lives.
    remote: Option<SocketAddr>,
    /// It waits to be told something else.
    waits: bool,
    /// How often it may: a peer that comes and goes without end drowns nobody else's changes.
    allowance: Allowance,
}

impl Told {
    /// True if control is to be told something else, for the first time since it was told.
    #[inline]
    pub fn differs(&mut self, live: bool, remote: Option<SocketAddr>, now: Time) -> bool {
        let differs = self.remote != remote.filter(|_| live);
        let first = differs && !self.waits && self.allowance.take(now);
        self.waits |= first;
        first
    }

    /// True of a session that control takes for living, if nobody waits to say otherwise.
    #[must_use]
    pub fn has_to_end(&self) -> bool {
        self.remote.is_some() && !self.waits
    }

    /// What control is to be told now; `None` if all is as it knows it.
    #[must_use]
    pub fn change(&self, live: bool, remote: Option<SocketAddr>) -> Option<SessionChange> {
        match (self.remote, remote.filter(|_| live)) {
            (None, Some(now)) => Some(SessionChange::Connected(now)),
            (Some(_), None) => Some(SessionChange::Disconnected),
            (Some(before), Some(now)) if before != now => Some(SessionChange::Moved(now)),
            _ => None,
        }
    }

    /// It was told.
    pub fn note(&mut self, change: Option<SessionChange>) {
        self.waits = false;
        self.remote = match change {
            Some(SessionChange::Connected(now) | SessionChange::Moved(now)) => Some(now),
            Some(SessionChange::Disconnected) => None,
            None => self.remote,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([198, 18, 0, last], 7)))
    }

    #[test]
    fn the_state_is_told_and_once() {
        let (mut told, now) = (Told::default(), Time::default());
        assert!(!told.differs(false, at(1), now), "a configured endpoint is no session");
        assert!(told.differs(true, at(1), now));
        assert!(!told.differs(true, at(2), now), "it waits already");
        let change = told.change(true, at(2));
        assert_eq!(change, at(2).map(SessionChange::Connected));
        told.note(change);
        assert!(!told.differs(true, at(2), now));
        assert!(told.differs(true, at(1), now));
        assert_eq!(told.change(true, at(1)), at(1).map(SessionChange::Moved));
        assert!(!told.has_to_end(), "who waits will say so");
        assert_eq!(told.change(true, at(2)), None, "it has come back");
        told.note(None);
        assert!(told.has_to_end());
        assert!(told.differs(false, at(2), now));
        assert_eq!(told.change(false, at(2)), Some(SessionChange::Disconnected));
        told.note(Some(SessionChange::Disconnected));
        assert!(!told.has_to_end() && !told.differs(false, at(2), now));
    }

    #[test]
    fn who_changes_without_end_is_told_of_now_and_then() {
        let (mut told, now) = (Told::default(), Time::default());
        let mut count = 0;
        for n in 0..200 {
            if told.differs(n % 2 == 0, at(1), now) {
                told.note(told.change(n % 2 == 0, at(1)));
                count += 1;
            }
        }
        assert_eq!(count, 20);
        let later = now + std::time::Duration::from_secs(1);
        assert!(told.differs(true, at(1), later), "what lasts is told");
    }
}
