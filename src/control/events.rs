//! What has happened, for whoever wants to follow it: the last [`KEPT`] events by number, so that a reader who comes
//! back with the number of the next one misses none of them, or learns that it did.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::watch;

use crate::dataplane::offload::switches::{Reason, Switch};
use crate::types::{Moment, PublicKey, WorkerId};

/// Events that are kept; older ones are forgotten.
pub const KEPT: usize = 10_000;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counted from 0 since the process began, without a gap.
    pub number: u64,
    /// When it was.
    pub at: Moment,
    /// What it was.
    pub what: What,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// To a lease.
    Lease {
        /// Whose.
        client: PublicKey,
        /// Its address.
        address: Ipv4Addr,
        /// The one of the other family.
        ipv6: Option<Ipv6Addr>,
        /// Until when the client has it; when it was over, of one that has ended.
        until: Moment,
        /// What.
        change: LeaseChange,
    },
    /// To a peer's session.
    Session {
        /// Whose.
        client: PublicKey,
        /// What people call it; empty for nothing.
        name: Arc<str>,
        /// Where it is now; of one that has ended where it was.
        endpoint: SocketAddr,
        /// What.
        change: SessionEvent,
    },
    /// A switch was turned, by an operator or by what the kernel said.
    Switch {
        /// Which.
        switch: Switch,
        /// Why it is off now; `None` if it is on.
        off: Option<Reason>,
    },
    /// To a worker, or to all.
    Worker {
        /// Which; `None`: nobody knows which.
        worker: Option<WorkerId>,
        /// Why it is so, if that can be said.
        reason: Option<Arc<str>>,
        /// What.
        change: WorkerEvent,
    },
    /// To a peer of the store.
    Peer {
        /// Which; of one that got another key the new one.
        client: PublicKey,
        /// What people called it then.
        name: Arc<str>,
        /// What.
        change: PeerEvent,
    },
}

/// What may happen to a peer of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Somebody made it.
    Made,
    /// Somebody changed something of it.
    Changed,
    /// Somebody removed it.
    Removed,
    /// Its end has come.
    Ended,
}

/// What may happen to a session: its own worker says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// There is one: a handshake is complete, and the peer has proven that it holds its keys.
    Connected,
    /// There is none any more: it was not renewed for 180 s, the peer said that it goes, or its keys were taken away.
    Disconnected,
    /// The peer has proven to be at another address.
    Moved,
}

/// What may happen to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// It waits with poll(2), since there is no io_uring.
    Poll,
    /// A thread of the data plane has not turned for as long as the service manager's watchdog gives it.
    Hangs,
    /// All threads turn again.
    Turns,
}

/// What may happen to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The client has an address that it had not.
    Given,
    /// It has it for longer.
    Renewed,
    /// Its time was over.
    Expired,
    /// The client gave it back, or took another one.
    Released,
}

/// The last events.
#[derive(Debug)]
pub struct Events {
    kept: VecDeque<Event>,
    /// The number of the next event.
    next: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: VecDeque::new(), next: watch::Sender::new(0) }
    }
}

impl Events {
    /// Notes an event, and wakes whoever waits for one.
    pub fn add(&mut self, at: Moment, what: What) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        let number = self.next();
        self.kept.push_back(Event { number, at, what });
        self.next.send_replace(number + 1);
    }

    /// The number that the next event will have.
    #[must_use]
    pub fn next(&self) -> u64 {
        *self.next.borrow()
    }

    /// The events from this number on that are kept, in order. Those that are not kept any more are missed: the first
    /// one's number says how many.
    pub fn since(&self, number: u64) -> impl Iterator<Item = &Event> {
        let first = self.kept.front().map_or(0, |event| event.number);
        let skipped = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        self.kept.iter().skip(skipped)
    }

    /// Tells of each new event: the value is [`Self::next`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(n: u32) -> What {
        What::Lease {
            client: PublicKey([7; 32]),
            address: Ipv4Addr::from_bits(n),
            ipv6: None,
            until: Moment(n),
            change: LeaseChange::Given,
        }
    }

    #[test]
    fn a_reader_that_comes_back_misses_none_of_the_last_ten_thousand() {
        let mut events = Events::default();
        let mut woken = events.watch();
        assert_eq!((events.next(), events.since(0).count()), (0, 0));
        for n in 0..KEPT as u32 + 5 {
            events.add(Moment(n), lease(n));
        }
        assert!(woken.has_changed().unwrap());
        assert_eq!((*woken.borrow_and_update(), events.next()), (10_005, 10_005));
        let numbers = |from| events.since(from).map(|event| event.number).collect::<Vec<_>>();
        assert_eq!(numbers(10_003), [10_003, 10_004]);
        assert_eq!((numbers(10_005), numbers(u64::MAX)), (vec![], vec![]));
        let all = numbers(0);
        assert_eq!((all.len(), all[0]), (KEPT, 5), "five are missed, and it shows");
        assert!(events.since(7).all(|event| event.what == lease(event.number as u32)));
        assert_eq!(numbers(7).len(), KEPT - 2);
    }
}
