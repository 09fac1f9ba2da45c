//! Addresses for clients: which there are, who has which, and until when. Knows no clock, no randomness and no store:
//! moments and the hashes' key are handed in, and what changes is returned, for somebody else to make durable.
//!
//! An address's way: fresh, leased, resting (after the end of a lease, so that nothing that is still on its way to the
//! one client reaches the next), free, and leased again. Who asks gets, in this order:
//! 1. what it has: its lease is renewed
//! 2. what is reserved for it, or what it had last, while nobody else needed that
//! 3. what it wishes for, if that is free
//! 4. an address that nobody ever had; then the one that has been free for the longest time
//!
//! All of it costs O(log n) at most, however large the pools are: lists and indices in `records`. A pool of another
//! shape ([`Pools::configure`]) touches no lease; an address that is in no pool any more is not renewed.

pub mod ranges;
mod records;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use self::ranges::{Range, Ranges};
use self::records::{List, Record, Records, Slot, State};
use crate::types::{Moment, Prefix, PublicKey};

/// Most pools in the life of a process, those that are gone included.
pub const MAX_POOLS: usize = 1024;
/// Least length of a pool's IPv6 prefix from which its low 32 bits are no longer free.
pub const MAX_PREFIX_V6: u8 = 96;
/// How much of what has fallen due a request attends to: more than one lease, so that it never waits for the turn.
const FEW: usize = 4;
/// Addresses that [`Pools::some`] looks at, at most: a millisecond or two.
const SEARCHED: u32 = 1 << 17;
/// The pool of an address that is in none.
const NOWHERE: u16 = u16::MAX;

/// What a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// What people call it; it tells one pool from another.
    pub name: String,
    /// Its addresses.
    pub ranges: Ranges,
    /// Where the IPv6 address of a lease is: the first 96 bits; the others are those of its IPv4 address. At most
    /// [`MAX_PREFIX_V6`] bits long.
    pub ipv6: Option<Prefix>,
    /// Seconds that a lease lasts from the last request on.
    pub lease_time: u32,
    /// Seconds that an address rests after its lease.
    pub quarantine: u32,
    /// Whom it is for; empty: everybody whose group no pool names.
    pub groups: Vec<String>,
    /// Nobody new gets an address of it; who has one keeps and renews it.
    pub drain: bool,
}

/// An address that is a client's for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub client: PublicKey,
    /// The address.
    pub address: Ipv4Addr,
    /// The one of the other family.
    pub ipv6: Option<Ipv6Addr>,
    /// Since when without a gap.
    pub since: Moment,
    /// Until when.
    pub until: Moment,
}

/// Who wants an address.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Its key.
    pub client: PublicKey,
    /// Its group; empty for none.
    pub group: &'a str,
    /// The only pool that it gets an address of; empty: those of its group.
    pub pool: &'a str,
    /// The address that it would like best.
    pub wanted: Option<Ipv4Addr>,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The client's lease.
    pub lease: Lease,
    /// It had this address already, and has it for longer.
    pub renewed: bool,
    /// Another lease of the same client, which has ended with this.
    pub left: Option<Lease>,
}

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pools of the client's group are exhausted.
    #[error("no address is free: add ranges to a pool, or shorten lease_time")]
    NoFreeAddress,
    /// Nobody gives addresses to the client's group.
    #[error(
        "no pool is for the group {0:?}, and none is for everybody: add a [[pool]] to the gateway's file and `ringway \
         reload`, or give the peer an address by name"
    )]
    NoPool(String),
    /// The pool that the client is to get an address of is not there.
    #[error("there is no pool {0:?}")]
    NoSuchPool(String),
    /// The address that is reserved for the client, or is to be, is in no pool.
    #[error("{0} is in no pool: add it to one, or end the reservation")]
    NotInAPool(Ipv4Addr),
    /// An address to be reserved is another client's.
    #[error("{address} is another client's: {}", .by.to_base64())]
    Taken {
        /// The address.
        address: Ipv4Addr,
        /// Whose it is.
        by: PublicKey,
    },
    /// The client has another reservation.
    #[error("{0} is reserved for this client already: release that first")]
    Reserved(Ipv4Addr),
}

/// Pools that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Two pools share addresses.
    #[error("the pools {0:?} and {1:?} share {2}")]
    Overlap(String, String, Range),
    /// Two pools have the same name.
    #[error("two pools are named {0:?}")]
    Name(String),
    /// [`MAX_POOLS`].
    #[error("more than {MAX_POOLS} pools, those that are gone included: restart the gateway")]
    TooMany,
}

/// How much of a pool is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses in its ranges.
    pub addresses: u64,
    /// Those that are leased, of ranges that it has no more as well.
    pub leased: u64,
    /// Nobody new gets an address of it.
    pub drained: bool,
}

#[derive(Debug)]
struct Pool {
    spec: PoolSpec,
    /// What nobody has asked about since it came into the pool.
    fresh: Ranges,
    free: List,
    leased: u64,
}

impl Pool {
    fn usage(&self) -> Usage {
        Usage { addresses: self.spec.ranges.count(), leased: self.leased, drained: self.spec.drain }
    }

    fn ipv6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        match self.spec.ipv6?.addr() {
            IpAddr::V6(prefix) => Some(Ipv6Addr::from_bits(prefix.to_bits() | u128::from(address.to_bits()))),
            IpAddr::V4(_) => None,
        }
    }
}

/// All pools and leases.
#[derive(Debug)]
pub struct Pools<S> {
    /// Those that are gone have no ranges.
    pools: Vec<Pool>,
    /// Every range and its pool, in order.
    places: Vec<(Range, u16)>,
    /// Each pool by its name.
    by_name: HashMap<String, Arc<[u16]>>,
    /// The pools of each group, in the order of the configuration.
    by_group: HashMap<String, Arc<[u16]>>,
    /// The pools of everybody else.
    for_all: Arc<[u16]>,
    records: Records<S>,
}

impl<S: BuildHasher> Pools<S> {
    /// No pool yet. `hasher` hashes clients' keys, which are theirs to choose: its own key should be random.
    pub fn new(hasher: S) -> Self {
        Self {
            pools: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
            by_group: HashMap::new(),
            for_all: Arc::default(),
            records: Records::new(hasher),
        }
    }

    /// Puts these pools in the place of those before. A pool of the same name is the same pool: its leases go on, what
    /// it grows by is fresh. No lease is ended by it, but one whose address is in no pool any more is not renewed.
    ///
    /// # Errors
    /// [`PoolError`]; then nothing has changed.
    pub fn configure(&mut self, specs: &[PoolSpec]) -> Result<(), PoolError> {
        let mut numbers = Vec::with_capacity(specs.len());
        let mut known = self.pools.len();
        for (at, spec) in specs.iter().enumerate() {
            if specs.iter().take(at).any(|other| other.name == spec.name) {
                return Err(PoolError::Name(spec.name.clone()));
            }
            let number =
                self.pools.iter().position(|pool| pool.spec.name == spec.name).unwrap_or_else(|| {
                    known += 1;
                    known - 1
                });
            numbers.push(u16::try_from(number).map_err(|_| PoolError::TooMany)?);
        }
        if known > MAX_POOLS {
            return Err(PoolError::TooMany);
        }
        let places = places(specs, &numbers)?;

        for (number, spec) in numbers.iter().zip(specs) {
            match self.pools.get_mut(usize::from(*number)) {
                Some(pool) => {
                    let added = spec.ranges.minus(&pool.spec.ranges);
                    pool.fresh = pool.fresh.and(&spec.ranges).or(&added);
                    pool.spec = spec.clone();
                }
                None => self.pools.push(Pool {
                    spec: spec.clone(),
                    fresh: spec.ranges.clone(),
                    free: List::default(),
                    leased: 0,
                }),
            }
        }
        self.places = places;
        for number in
            (0..self.pools.len()).filter(|number| !numbers.iter().any(|n| usize::from(*n) == *number))
        {
            self.close(number);
        }
        self.sort_by_group(&numbers);
        Ok(())
    }

    /// A pool that is gone: nobody remembers what was free in it.
    fn close(&mut self, number: usize) {
        let pool = &mut self.pools[number];
        (pool.spec.ranges, pool.fresh) = (Ranges::default(), Ranges::default());
        while let Some(slot) = self.pools[number].free.first() {
            self.records.unlink(&mut self.pools[number].free, slot);
            self.records.remove(slot);
        }
    }

    fn sort_by_group(&mut self, numbers: &[u16]) {
        let mut by_group: HashMap<&str, Vec<u16>> = HashMap::new();
        let mut for_all = Vec::new();
        for &number in numbers {
            let groups = &self.pools[usize::from(number)].spec.groups;
            for group in groups {
                by_group.entry(group).or_default().push(number);
            }
            if groups.is_empty() {
                for_all.push(number);
            }
        }
        self.by_group = by_group.into_iter().map(|(group, pools)| (group.to_owned(), pools.into())).collect();
        self.for_all = for_all.into();
        let named = |number: &u16| (self.pools[usize::from(*number)].spec.name.clone(), [*number].into());
        self.by_name = numbers.iter().map(named).collect();
    }

    /// A lease of a former life, as it was stored. Leases are loaded before anything else is done, then reservations,
    /// then [`Self::expire`] sorts out what has ended meanwhile. Of two leases of one client the later counts.
    pub fn load(&mut self, client: PublicKey, address: Ipv4Addr, since: Moment, until: Moment) {
        if self.records.of_address(address).is_some() {
            return;
        }
        let pool = self.pool_of(address).unwrap_or(NOWHERE);
        let mut record = Record::new(address, client, pool);
        (record.since, record.until, record.state) = (since, until, State::Leased);
        let slot = self.records.insert(record);
        self.count(slot, 1);
        self.records.enqueue(slot);
        let other = self.records.of_client(&client).map(|other| self.records.get(other).until);
        if other.is_none_or(|other| other <= until) {
            self.records.own(slot, client);
        }
    }

    /// A reservation of a former life.
    pub fn load_reservation(&mut self, client: PublicKey, address: Ipv4Addr) {
        let pool = self.pool_of(address).unwrap_or(NOWHERE);
        let slot = match self.records.of_address(address) {
            Some(slot) if self.records.get(slot).client == client => slot,
            // It was free when it was reserved: that lease is over.
            Some(slot) => {
                self.detach(slot);
                self.records.get_mut(slot).state = State::Held;
                slot
            }
            None => self.records.insert(Record::new(address, client, pool)),
        };
        self.records.own(slot, client);
        self.records.get_mut(slot).reserved = true;
    }

    /// Gives the client an address, or the one that it has for longer.
    ///
    /// # Errors
    /// [`Refusal::NoFreeAddress`], [`Refusal::NoPool`], [`Refusal::NoSuchPool`]; [`Refusal::NotInAPool`] of a
    /// reservation whose pool is gone.
    pub fn request(&mut self, ask: &Ask<'_>, now: Moment) -> Result<Granted, Refusal> {
        self.expire(now, FEW);
        let chosen = self.pools_for(ask)?;
        if let Some(slot) = self.records.of_client(&ask.client) {
            // What it never had it does not need to keep.
            let wish = ask.wanted.filter(|_| self.records.get(slot).is_earmark());
            if let Some(wish) = wish.and_then(|address| self.wanted(address, &chosen)) {
                return Ok(self.grant(wish, ask.client, now));
            }
            if self.may_keep(slot, &chosen) {
                return Ok(self.grant(slot, ask.client, now));
            }
            // It has that one and no other.
            let Record { reserved, address, .. } = *self.records.get(slot);
            if reserved {
                return Err(Refusal::NotInAPool(address));
            }
        }
        let slot = self.find(ask.wanted, &chosen, now)?;
        Ok(self.grant(slot, ask.client, now))
    }

    /// Ends the client's lease. Its address stays the client's as long as nobody else needs it.
    pub fn release(&mut self, client: &PublicKey, now: Moment) -> Option<Lease> {
        let slot = self.records.of_client(client)?;
        self.end(slot, now)
    }

    /// The address that the client has, or would be given if it asked: set aside for it as long as nobody else needs
    /// one, as if it had had that. Nothing of this is worth storing.
    ///
    /// # Errors
    /// As [`Self::request`]; [`Refusal::NoFreeAddress`] if every address is somebody's already or was.
    pub fn earmark(&mut self, ask: &Ask<'_>, now: Moment) -> Result<Ipv4Addr, Refusal> {
        let chosen = self.pools_for(ask)?;
        if let Some(slot) = self.records.of_client(&ask.client) {
            let Record { state, reserved, address, .. } = *self.records.get(slot);
            if state == State::Leased || self.may_keep(slot, &chosen) {
                return Ok(address);
            }
            if reserved {
                return Err(Refusal::NotInAPool(address));
            }
        }
        let slot = self.find_fresh(&chosen).ok_or(Refusal::NoFreeAddress)?;
        self.records.own(slot, ask.client);
        self.free(slot, now);
        Ok(self.records.get(slot).address)
    }

    /// Keeps an address for a client for good: this one, or one that [`Self::request`] would give it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn reserve(&mut self, ask: &Ask<'_>, now: Moment) -> Result<(Ipv4Addr, Option<Lease>), Refusal> {
        // A named address must not be refused because nobody has attended to its end.
        while self.expire(now, FEW) == FEW {}
        let known = self.records.of_client(&ask.client);
        if let Some(own) = known.map(|slot| self.records.get(slot)).filter(|record| record.reserved) {
            let same = ask.wanted.is_none_or(|wanted| wanted == own.address);
            return if same { Ok((own.address, None)) } else { Err(Refusal::Reserved(own.address)) };
        }
        let slot = match ask.wanted {
            Some(address) => {
                let pool = self.pool_of(address).ok_or(Refusal::NotInAPool(address))?;
                self.claim(address, &ask.client, pool)?
            }
            None => {
                let chosen = self.pools_for(ask)?;
                match known.filter(|slot| self.may_keep(*slot, &chosen)) {
                    Some(slot) => slot,
                    None => self.find(None, &chosen, now)?,
                }
            }
        };
        Ok((self.records.get(slot).address, self.keep(slot, ask.client, now)))
    }

    /// As [`Self::reserve`] of an address by name, which may be in no pool: no pool that comes to it later gives it to
    /// anybody else.
    ///
    /// # Errors
    /// [`Refusal::Taken`], [`Refusal::Reserved`].
    pub fn hold(
        &mut self,
        client: PublicKey,
        address: Ipv4Addr,
        now: Moment,
    ) -> Result<Option<Lease>, Refusal> {
        while self.expire(now, FEW) == FEW {}
        let known = self.records.of_client(&client).map(|slot| self.records.get(slot));
        if let Some(own) = known.filter(|record| record.reserved && record.address != address) {
            return Err(Refusal::Reserved(own.address));
        }
        let slot = self.claim(address, &client, self.pool_of(address).unwrap_or(NOWHERE))?;
        Ok(self.keep(slot, client, now))
    }

    /// Makes the record a reservation. Returns the client's lease of another address, which ends with this.
    fn keep(&mut self, slot: Slot, client: PublicKey, now: Moment) -> Option<Lease> {
        let known = self.records.of_client(&client).filter(|known| *known != slot);
        let left = known.and_then(|known| self.end(known, now));
        self.records.own(slot, client);
        if self.records.get(slot).state != State::Leased {
            self.detach(slot);
            self.records.get_mut(slot).state = State::Held;
        }
        self.records.get_mut(slot).reserved = true;
        left
    }

    /// Makes one client's reservation another's, who is the same under another key. Returns the lease of its address,
    /// which ends with this.
    pub fn hand_over(&mut self, from: &PublicKey, to: PublicKey, now: Moment) -> Option<Lease> {
        let slot = self.records.of_client(from).filter(|slot| self.records.get(*slot).reserved)?;
        let ended = self.end(slot, now);
        self.records.own(slot, to);
        ended
    }

    /// Ends the reservation of an address; a lease of it goes on. Returns whose it was, if there was one.
    pub fn unreserve(&mut self, address: Ipv4Addr, now: Moment) -> Option<PublicKey> {
        let slot = self.records.of_address(address).filter(|slot| self.records.get(*slot).reserved)?;
        let record = self.records.get_mut(slot);
        record.reserved = false;
        let client = record.client;
        if record.state == State::Held {
            self.rest(slot, now);
        }
        Some(client)
    }

    /// Attends to what has fallen due, `most` addresses at a time. Returns how many it were: fewer than `most` if
    /// nothing is left to do.
    pub fn expire(&mut self, now: Moment, most: usize) -> usize {
        for done in 0..most {
            let Some(slot) = self.records.take_due(now) else { return done };
            let Record { state, until, .. } = *self.records.get(slot);
            match state {
                State::Leased => {
                    self.count(slot, -1);
                    self.rest(slot, until);
                }
                State::Resting | State::Free | State::Held => self.free(slot, until),
            }
        }
        most
    }

    /// The client's lease.
    pub fn lease_of(&self, client: &PublicKey, now: Moment) -> Option<Lease> {
        let slot = self.records.of_client(client)?;
        let record = self.records.get(slot);
        (record.state == State::Leased && record.until > now).then(|| self.lease(slot))
    }

    /// The IPv6 address that goes with an address, if its pool has one.
    pub fn ipv6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.pools.get(usize::from(self.pool_of(address)?))?.ipv6(address)
    }

    /// The IPv4 address in a pool that this address goes with.
    pub fn ipv4_of(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let ipv4 = Ipv4Addr::from_bits(address.to_bits() as u32);
        (self.ipv6_of(ipv4) == Some(address)).then_some(ipv4)
    }

    /// True if the address is in a pool.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.pool_of(address).is_some()
    }

    /// At most so many leases from a place on, 0 for the first, and the place to go on from if there may be more. Looks
    /// at 131,072 addresses at most.
    pub fn some(&self, from: u32, most: usize, now: Moment) -> (Vec<Lease>, Option<u32>) {
        let mut found = Vec::new();
        let end = from.saturating_add(SEARCHED);
        for (slot, record) in self.records.between(from, end) {
            if found.len() == most {
                return (found, Some(slot));
            }
            if record.state == State::Leased && record.until > now {
                found.push(self.lease(slot));
            }
        }
        let more = (end as usize) < self.records.slots();
        (found, more.then_some(end))
    }

    /// How much of a pool is in use; `None` if there is no pool of this name.
    pub fn usage(&self, name: &str) -> Option<Usage> {
        self.usages().find(|(known, _)| *known == name).map(|(_, usage)| usage)
    }

    /// Every pool's name, and how much of it is in use. Those that are gone and have no lease left are left out.
    pub fn usages(&self) -> impl Iterator<Item = (&str, Usage)> {
        let each = self.pools.iter().map(|pool| (pool.spec.name.as_str(), pool.usage()));
        each.filter(|(_, usage)| usage.addresses > 0 || usage.leased > 0)
    }

    /// Gives nobody new an address of this pool, or does so again, until the pools are configured anew. False if there
    /// is no pool of this name.
    pub fn drain(&mut self, name: &str, drained: bool) -> bool {
        let there = |pool: &&mut Pool| pool.spec.name == name && pool.spec.ranges.count() > 0;
        let found = self.pools.iter_mut().find(there);
        found.map(|pool| pool.spec.drain = drained).is_some()
    }

    /// How many addresses somebody has, had or shall have.
    pub fn known(&self) -> usize {
        self.records.count()
    }

    fn pools_for(&self, ask: &Ask<'_>) -> Result<Arc<[u16]>, Refusal> {
        if !ask.pool.is_empty() {
            let named = self.by_name.get(ask.pool);
            return named.cloned().ok_or_else(|| Refusal::NoSuchPool(ask.pool.to_owned()));
        }
        let chosen = self.by_group.get(ask.group).unwrap_or(&self.for_all);
        if chosen.is_empty() { Err(Refusal::NoPool(ask.group.to_owned())) } else { Ok(Arc::clone(chosen)) }
    }

    /// The pool that has the address now.
    fn pool_of(&self, address: Ipv4Addr) -> Option<u16> {
        let after = self.places.partition_point(|(range, _)| range.first() <= address);
        let (range, pool) = self.places.get(after.checked_sub(1)?)?;
        (address <= range.last()).then_some(*pool)
    }

    /// Whether the client of the record may have that address (again). A reservation holds in whatever pool it is.
    fn may_keep(&self, slot: Slot, chosen: &[u16]) -> bool {
        let record = self.records.get(slot);
        let Some(pool) = self.pool_of(record.address) else { return false };
        let drained = self.pools[usize::from(pool)].spec.drain;
        record.reserved || (chosen.contains(&pool) && (record.state == State::Leased || !drained))
    }

    /// An address for somebody who has none.
    fn find(&mut self, wanted: Option<Ipv4Addr>, chosen: &[u16], now: Moment) -> Result<Slot, Refusal> {
        if let Some(slot) = wanted.and_then(|address| self.wanted(address, chosen)) {
            return Ok(slot);
        }
        loop {
            if let Some(slot) = self.find_fresh(chosen) {
                return Ok(slot);
            }
            for &pool in chosen {
                if !self.pools[usize::from(pool)].spec.drain
                    && let Some(slot) = self.take_free(pool)
                {
                    return Ok(slot);
                }
            }
            // Something may have ended that nobody has attended to.
            if self.expire(now, FEW) == 0 {
                return Err(Refusal::NoFreeAddress);
            }
        }
    }

    /// An address that nobody ever had.
    fn find_fresh(&mut self, chosen: &[u16]) -> Option<Slot> {
        chosen.iter().find_map(|&pool| {
            if self.pools[usize::from(pool)].spec.drain { None } else { self.take_fresh(pool) }
        })
    }

    /// The address that somebody wishes for, if anybody may have it.
    fn wanted(&mut self, address: Ipv4Addr, chosen: &[u16]) -> Option<Slot> {
        let pool = self.pool_of(address).filter(|pool| chosen.contains(pool))?;
        if self.pools[usize::from(pool)].spec.drain {
            return None;
        }
        match self.records.of_address(address) {
            None => Some(self.records.insert(Record::new(address, PublicKey([0; 32]), pool))),
            Some(slot) => (self.records.get(slot).state == State::Free).then_some(slot),
        }
    }

    /// The address that somebody is to have by name.
    fn claim(&mut self, address: Ipv4Addr, client: &PublicKey, pool: u16) -> Result<Slot, Refusal> {
        let Some(slot) = self.records.of_address(address) else {
            return Ok(self.records.insert(Record::new(address, *client, pool)));
        };
        let record = self.records.get(slot);
        if record.state == State::Free || record.client == *client {
            return Ok(slot);
        }
        Err(Refusal::Taken { address, by: record.client })
    }

    /// An address that nobody had since it came into the pool.
    fn take_fresh(&mut self, pool: u16) -> Option<Slot> {
        loop {
            let address = self.pools[usize::from(pool)].fresh.take_first()?;
            let Some(slot) = self.records.of_address(address) else {
                return Some(self.records.insert(Record::new(address, PublicKey([0; 32]), pool)));
            };
            // Somebody had it, by a wish or in a former life: its turn comes when it has been free for longest.
            let Record { state, until, pool: whose, .. } = *self.records.get(slot);
            if state == State::Free && whose != pool {
                self.detach(slot);
                self.free(slot, until);
            }
        }
    }

    /// The address that has been free for the longest time.
    fn take_free(&mut self, pool: u16) -> Option<Slot> {
        while let Some(slot) = self.pools[usize::from(pool)].free.first() {
            if self.pool_of(self.records.get(slot).address) == Some(pool) {
                return Some(slot);
            }
            // No longer this pool's. Where it is now, if anywhere, it is fresh.
            self.detach(slot);
            self.records.remove(slot);
        }
        None
    }

    /// Makes the record the client's lease from now on.
    fn grant(&mut self, slot: Slot, client: PublicKey, now: Moment) -> Granted {
        let other = self.records.of_client(&client).filter(|other| *other != slot);
        let left = other.and_then(|other| self.end(other, now));
        let Record { address, state, until, since, client: before, .. } = *self.records.get(slot);
        let renewed = state == State::Leased && until > now && before == client;
        self.detach(slot);
        self.records.own(slot, client);
        // It is in a pool: that was looked up to choose it.
        let pool = self.pool_of(address).unwrap_or(NOWHERE);
        let lease_time = self.pools.get(usize::from(pool)).map_or(0, |pool| pool.spec.lease_time);
        let record = self.records.get_mut(slot);
        (record.state, record.pool) = (State::Leased, pool);
        record.since = if renewed { since } else { now };
        record.until = now + lease_time;
        self.records.enqueue(slot);
        self.count(slot, 1);
        Granted { lease: self.lease(slot), renewed, left }
    }

    /// Takes a record out of its state: off the list that it is on, out of its pool's count.
    fn detach(&mut self, slot: Slot) {
        let Record { state, pool, .. } = *self.records.get(slot);
        match state {
            State::Leased => {
                self.count(slot, -1);
                self.records.dequeue(slot);
            }
            State::Resting => self.records.dequeue(slot),
            State::Free => {
                if let Some(pool) = self.pools.get_mut(usize::from(pool)) {
                    self.records.unlink(&mut pool.free, slot);
                }
            }
            State::Held => {}
        }
        // On no list, whatever comes next.
        self.records.get_mut(slot).state = State::Held;
    }

    /// Ends a lease before its time; `None` if it has ended, or if there is none.
    fn end(&mut self, slot: Slot, now: Moment) -> Option<Lease> {
        let Record { state, until, .. } = *self.records.get(slot);
        if state != State::Leased {
            return None;
        }
        let lease = Lease { until: now, ..self.lease(slot) };
        self.detach(slot);
        self.rest(slot, until.min(now));
        (now < until).then_some(lease)
    }

    /// What follows a lease that ended then. The record is on no list.
    fn rest(&mut self, slot: Slot, since: Moment) {
        let Record { address, reserved, .. } = *self.records.get(slot);
        if reserved {
            self.records.get_mut(slot).state = State::Held;
            return;
        }
        let quarantine =
            self.pool_of(address).map_or(0, |pool| self.pools[usize::from(pool)].spec.quarantine);
        if quarantine == 0 {
            return self.free(slot, since);
        }
        // Through the queue even if that is over already: what was free first comes first.
        let record = self.records.get_mut(slot);
        (record.state, record.until) = (State::Resting, since + quarantine);
        self.records.enqueue(slot);
    }

    /// Anybody may have the address. The record is on no list.
    fn free(&mut self, slot: Slot, since: Moment) {
        let Some(pool) = self.pool_of(self.records.get(slot).address) else {
            self.records.remove(slot);
            return;
        };
        let record = self.records.get_mut(slot);
        (record.state, record.until, record.pool) = (State::Free, since, pool);
        self.records.push(&mut self.pools[usize::from(pool)].free, slot);
    }

    /// One lease more or less in the count of its pool.
    fn count(&mut self, slot: Slot, by: i64) {
        let pool = self.records.get(slot).pool;
        if let Some(pool) = self.pools.get_mut(usize::from(pool)) {
            pool.leased = pool.leased.saturating_add_signed(by);
        }
    }

    fn lease(&self, slot: Slot) -> Lease {
        let Record { client, address, since, until, pool, .. } = *self.records.get(slot);
        let ipv6 = self.pools.get(usize::from(pool)).and_then(|pool| pool.ipv6(address));
        Lease { client, address, ipv6, since, until }
    }
}

/// Every range with its pool, in order.
fn places(specs: &[PoolSpec], numbers: &[u16]) -> Result<Vec<(Range, u16)>, PoolError> {
    let each =
        specs.iter().enumerate().flat_map(|(at, spec)| spec.ranges.iter().map(move |range| (range, at)));
    let mut all: Vec<(Range, usize)> = each.collect();
    all.sort_unstable();
    for pair in all.windows(2) {
        if let [(before, one), (after, other)] = *pair
            && after.first() <= before.last()
        {
            let shared = Range::new(after.first(), before.last().min(after.last())).unwrap_or(after);
            return Err(PoolError::Overlap(specs[one].name.clone(), specs[other].name.clone(), shared));
        }
    }
    Ok(all.into_iter().map(|(range, at)| (range, numbers[at])).collect())
}

#[cfg(test)]
mod tests;
