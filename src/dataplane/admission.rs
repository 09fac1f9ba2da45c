//! Admission of handshake messages: what the handshake thread takes up, answers with a cookie, or drops, before any
//! public-key cryptography. No socket, no clock.
//!
//! The order is the point of this module, so [`Admission::offer`] is the only way in for a datagram:
//!
//! 1. exact length ([`Kind::of`]) and mac1: whoever does not know our public key costs one BLAKE2s
//! 2. a response or cookie reply must answer something of ours
//! 3. under load a valid mac2, or else one cookie reply (WireGuard white paper section 5.3); while more comes than can
//!    be read, whoever had none lately is answered and others are not, since an answer costs more than all before it
//! 4. only now the limit per source: mac2 proves that the sender receives at its address, so a forger cannot spend a
//!    victim's tokens
//! 5. a bounded queue by what is known of the sender; one class never fills another's queue
//!
//! Not under load a source has a second, unproven allowance, and whoever exceeds it gets a cookie instead of being
//! dropped: a forger who spends it for a victim costs the victim a round trip, not its tunnel. There is no limit
//! over all sources together: with one, a single attacker locks everybody out. The limit per peer comes later, in
//! `noise::handshaker`, once decryption has told the peer.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::metrics::drops::Drop;
use crate::mutation::holds;
use crate::types::Time;
use crate::wire::wireguard::Kind;

#[cfg(test)]
mod tests;

/// A source may begin this many handshakes per second …
pub const SOURCE_RATE: u32 = 20;
/// … and this many at once.
pub const SOURCE_BURST: u32 = 5;
/// Sources that a limiter remembers; 16 bytes each.
pub const SOURCES: usize = SETS * WAYS;
/// While more comes than can be read, a source gets this many cookie replies per second.
pub const REPLY_RATE: u32 = 1;
/// Sources that are known to have got one; 16 bytes each.
pub const REPLIED: usize = REPLIED_SETS * WAYS;
/// Under load lasts at least this long after the last sign of it.
pub const LOAD_HELD: Duration = Duration::from_secs(1);
/// Under load begins when a queue is full to one part in this many.
pub const LOAD_PART: usize = 8;

/// What the handshake thread knows of a datagram by table look-ups alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its kind; never a transport message.
    pub kind: Kind,
    /// The outer source address.
    pub source: IpAddr,
    /// Initiation: it comes from the endpoint of a live session. Response and cookie reply: its receiver index is
    /// that of a handshake of ours that waits for an answer.
    pub expected: bool,
}

/// Which queue; in the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Responses and cookie replies to what we began: finishing comes before beginning.
    Answer,
    /// Our own initiations, asked for by workers. A queue of their own, so that no flood keeps them out and so that a
    /// gateway which calls all its peers is not "under load" by its own doing.
    Own,
    /// Initiations with a valid cookie or from a live session's endpoint.
    Known,
    /// All other initiations.
    Unknown,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits in this queue.
    Queued(Class),
    /// Answer with one cookie reply; counts as [`Drop::CookieRequired`].
    Cookie,
    /// Drop and count.
    Drop(Drop),
}

/// The handshake thread's gate; `T` is what waits in the queues.
pub struct Admission<T> {
    load: LoadState,
    /// Arrivals whose source address nobody vouches for, while not under load.
    unproven: SourceLimiter,
    /// Arrivals with a valid mac2.
    proven: SourceLimiter,
    /// More has come than could be read.
    behind: bool,
    /// Cookie replies while behind; made when that is first so.
    replied: Option<SourceLimiter>,
    queues: Queues<T>,
}

impl<T> Default for Admission<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Admission<T> {
    /// An open gate; all it needs is allocated here (about 0.5 MiB and the queues), but for 1 MiB when it is first
    /// behind.
    #[must_use]
    pub fn new() -> Self {
        Self {
            load: LoadState::default(),
            unproven: SourceLimiter::new(),
            proven: SourceLimiter::new(),
            behind: false,
            replied: None,
            queues: Queues::new(),
        }
    }

    /// Judges a datagram whose length [`Kind::of`] found right, and queues what `item` makes of it. `mac1` and `mac2`
    /// check the message's MACs; they are called in this order, and only if the verdict depends on them.
    pub fn offer(
        &mut self,
        arrival: Arrival,
        mac1: impl FnOnce() -> bool,
        mac2: impl FnOnce() -> bool,
        item: impl FnOnce() -> T,
        now: Time,
    ) -> Verdict {
        self.load.observe(self.queues.busy(), now);
        let verdict = self.judge(arrival, mac1, mac2, now);
        let Verdict::Queued(class) = verdict else { return verdict };
        if self.queues.room(class) == 0 {
            return Verdict::Drop(Drop::HandshakeQueueFull);
        }
        // There is room: nothing comes back.
        let _ = self.queues.push(class, item());
        self.load.observe(self.queues.busy(), now);
        verdict
    }

    /// Notes whether datagrams are left that could not be read at once.
    pub fn set_behind(&mut self, behind: bool) {
        self.behind = behind;
    }

    /// Queues an initiation of our own.
    ///
    /// # Errors
    /// Gives the item back if [`Class::Own`] is full: it then stays in the worker's channel, not lost.
    pub fn push_own(&mut self, item: T) -> Result<(), T> {
        self.queues.push(Class::Own, item)
    }

    /// True if nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// How many items wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// The next item to work on.
    pub fn pop(&mut self) -> Option<(Class, T)> {
        self.queues.pop()
    }

    /// True while a valid mac2 is required.
    #[must_use]
    pub fn under_load(&self, now: Time) -> bool {
        self.load.under_load(now)
    }

    fn judge(
        &mut self,
        arrival: Arrival,
        mac1: impl FnOnce() -> bool,
        mac2: impl FnOnce() -> bool,
        now: Time,
    ) -> Verdict {
        let Arrival { kind, source, expected } = arrival;
        // A cookie reply has no MACs: it is authenticated as a whole, at the price of one, against a handshake of
        // ours.
        if kind == Kind::CookieReply {
            return if expected { Verdict::Queued(Class::Answer) } else { Verdict::Drop(Drop::BadCookie) };
        }
        if !mac1() {
            return Verdict::Drop(Drop::BadMac1);
        }
        if kind == Kind::Response && !expected {
            return Verdict::Drop(Drop::BadResponse);
        }
        let trusted = !holds("under-load", self.under_load(now))
            // Whoever answers has received what we sent it, and there is one such handshake per peer.
            && (kind == Kind::Response || self.unproven.take(source, now));
        if !trusted {
            if !mac2() {
                return if self.may_reply(source, now) {
                    Verdict::Cookie
                } else {
                    Verdict::Drop(Drop::CookieRequired)
                };
            }
            if !self.proven.take(source, now) {
                return Verdict::Drop(Drop::SourceLimit);
            }
        }
        Verdict::Queued(match kind {
            Kind::Initiation if expected || !trusted => Class::Known,
            Kind::Initiation => Class::Unknown,
            _ => Class::Answer,
        })
    }

    /// Whether there is time for a cookie reply, or it is this source's turn.
    fn may_reply(&mut self, source: IpAddr, now: Time) -> bool {
        let fresh = || SourceLimiter::sized(REPLIED_SETS, REPLY_RATE, 1);
        !self.behind || self.replied.get_or_insert_with(fresh).take(source, now)
    }
}

/// Whether the thread is under load: since the last sign of it less than [`LOAD_HELD`] passed. It recovers by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadState {
    last: Option<Time>,
}

impl LoadState {
    /// Notes that the queues are busy, or does nothing.
    pub fn observe(&mut self, busy: bool, now: Time) {
        if busy {
            self.last = Some(now);
        }
    }

    /// True while held.
    #[must_use]
    pub fn under_load(&self, now: Time) -> bool {
        self.last.is_some_and(|last| now.since(last) < LOAD_HELD)
    }
}

const SETS: usize = 2048;
const REPLIED_SETS: usize = 8192;
const WAYS: usize = 8;

/// A token bucket per source (IPv4 address, IPv6 /64): [`SOURCE_RATE`] per second, [`SOURCE_BURST`] at once, or as it
/// is made.
///
/// A bucket is one instant, the time at which it will be full again (the generic cell rate algorithm, ITU-T I.371).
/// Buckets stand in a table of sets of 8, as in a processor's cache; the set comes from a hash (SipHash)
/// keyed at start, so nobody can aim at a set. A source that is new takes the place in its set whose bucket is the
/// fullest. A bucket that is full already is the same as none, so an entry expires by itself, 250 ms after its
/// last token was taken at the latest, without any sweeping. Each look-up costs the same eight comparisons
/// whatever the table holds.
///
/// When more than about 16,384 sources are active within those 250 ms, some are forgotten and begin with a full
/// bucket: the limiter then errs on the side of letting in. A newcomer is never refused for want of a place.
pub struct SourceLimiter {
    sets: Box<[[Bucket; WAYS]]>,
    /// One token's worth of time.
    interval: Duration,
    /// A token is left while the bucket will be full again within this time.
    tolerance: Duration,
    hash: RandomState,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    source: u64,
    full_at: Time,
}

impl Default for SourceLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl SourceLimiter {
    /// All buckets full; 256 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self::sized(SETS, SOURCE_RATE, SOURCE_BURST)
    }

    fn sized(sets: usize, rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self {
            sets: vec![[Bucket::default(); WAYS]; sets].into_boxed_slice(),
            interval,
            tolerance: interval * burst.saturating_sub(1),
            hash: RandomState::new(),
        }
    }

    /// Takes a token of `addr`'s source; false if it has none.
    #[must_use]
    pub fn take(&mut self, addr: IpAddr, now: Time) -> bool {
        let source = source(addr);
        let set = self.hash.hash_one(source) as usize % self.sets.len();
        let bucket = match self.sets[set].iter_mut().find(|bucket| bucket.source == source) {
            Some(bucket) => bucket,
            None => {
                let Some(idlest) = self.sets[set].iter_mut().min_by_key(|bucket| bucket.full_at) else {
                    return false;
                };
                *idlest = Bucket { source, full_at: now };
                idlest
            }
        };
        let full_at = bucket.full_at.max(now);
        let allowed = full_at.since(now) <= self.tolerance;
        if allowed {
            bucket.full_at = full_at + self.interval;
        }
        allowed
    }
}

/// IPv4 by address, IPv6 by /64 (what one customer gets). IPv4 addresses stand at the place of `0:0:x:x::/64`,
/// which is reserved (RFC 4291 section 4) and no source of anything.
fn source(addr: IpAddr) -> u64 {
    match addr.to_canonical() {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => (addr.to_bits() >> 64) as u64,
    }
}

const CLASSES: [Class; 4] = [Class::Answer, Class::Own, Class::Known, Class::Unknown];
/// Of so many services one begins with the last class, so that nothing waits for ever and the rest of a queue from
/// before an attack does not keep the thread "under load".
const LAST_FIRST: u32 = 16;

/// Four bounded queues served by strict priority, but for one service in 16, which goes the other way.
pub struct Queues<T> {
    queues: [VecDeque<T>; CLASSES.len()],
    served: u32,
}

impl<T> Default for Queues<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Queues<T> {
    /// Items per class. An initiation costs about 0.1 ms of cryptography: the longest wait in a class is a fifth of a
    /// second, and under load begins with 25 ms of work.
    pub const CAPACITY: usize = 2048;

    /// Empty queues, allocated whole.
    #[must_use]
    pub fn new() -> Self {
        Self { queues: std::array::from_fn(|_| VecDeque::with_capacity(Self::CAPACITY)), served: 0 }
    }

    /// Appends to a class.
    ///
    /// # Errors
    /// Gives the item back if the class is full.
    pub fn push(&mut self, class: Class, item: T) -> Result<(), T> {
        if self.room(class) == 0 {
            return Err(item);
        }
        self.queues[class as usize].push_back(item);
        Ok(())
    }

    /// Takes the oldest item of the first class that has one (in one of 16 services: of the last).
    pub fn pop(&mut self) -> Option<(Class, T)> {
        self.served = self.served.wrapping_add(1);
        let mut take = |class| self.queues[class as usize].pop_front().map(|item| (class, item));
        if self.served.is_multiple_of(LAST_FIRST) {
            CLASSES.into_iter().rev().find_map(&mut take)
        } else {
            CLASSES.into_iter().find_map(&mut take)
        }
    }

    /// True if nothing waits in any class.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// How many items wait, in all classes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// How many more items a class takes.
    #[must_use]
    pub fn room(&self, class: Class) -> usize {
        Self::CAPACITY.saturating_sub(self.queues[class as usize].len())
    }

    /// True if a class that strangers can fill is full to one part in [`LOAD_PART`].
    #[must_use]
    pub fn busy(&self) -> bool {
        let strangers = [Class::Answer, Class::Known, Class::Unknown];
        strangers.into_iter().any(|class| self.queues[class as usize].len() >= Self::CAPACITY / LOAD_PART)
    }
}
