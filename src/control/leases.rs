//! Addresses for clients, joined with the store: a lease is decided in memory, stored, and told to the client only when
//! it is stored.
//!
//! What memory holds is never less than what the store holds: a lease that could not be stored stays the client's until
//! it ends, is nobody else's meanwhile, and is stored when the client asks again. So nothing has to be taken back, and
//! several requests may be on their way to the store at a time.
//!
//! Moments are those of the wall clock as it was when the process began, and of the time that has passed since: a clock
//! that is set while it runs ends no lease.

use std::hash::RandomState;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use crate::lease::{Ask, Granted, Lease, PoolError, PoolSpec, Pools, Refusal, Usage};
use crate::store::sqlite::Sqlite;
use crate::store::thread::{Handle, Receipt, Writes};
use crate::store::{Enrolment, Invite, Peer, Store, StoreError, Stored, Tenure, Write};
use crate::sys::clock;
use crate::sys::privileges::{self, Account, PrivilegeError};
use crate::types::{Moment, PublicKey, Time};

/// Addresses whose lease has ended that are attended to at a time.
const SOME: usize = 1024;
/// Entries of the history that are forgotten in one transaction.
const FORGOTTEN: u32 = 10_000;
/// Seconds of a day.
const DAY: u32 = 86_400;

/// Where leases are stored, and for how long who had them is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keeping<'a> {
    /// The store's file.
    pub path: &'a Path,
    /// Days for which it is kept who had an address; 0 for not at all.
    pub history: u32,
    /// Whom the store's thread becomes when the file is open.
    pub account: Option<Account>,
}

/// Why there are no leases.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// The store.
    #[error("the store")]
    Store(#[from] StoreError),
    /// The pools.
    #[error("the pools")]
    Pools(#[from] PoolError),
    /// The store's thread could not give up its privileges.
    #[error("the store's thread")]
    Privileges(#[from] PrivilegeError),
}

/// Why a client gets no address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// There is none for it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It would not outlive the process.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Something that is decided, and not to be told before it is stored.
#[derive(Debug)]
#[must_use = "what is not stored may not be told"]
pub struct Decided<T> {
    what: T,
    receipt: Option<Receipt>,
}

impl<T> Decided<T> {
    /// Waits until it is stored.
    ///
    /// # Errors
    /// [`StoreError`]: nobody may be told; who asks again finds it decided still.
    pub async fn stored(self) -> Result<T, StoreError> {
        match self.receipt {
            Some(receipt) => receipt.stored().await.map(|()| self.what),
            None => Ok(self.what),
        }
    }

    /// For what nobody is told: it may be lost.
    pub fn without_waiting(self) -> T {
        self.what
    }

    /// As [`Self::stored`], outside of a runtime.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn wait(self) -> Result<T, StoreError> {
        match self.receipt {
            Some(receipt) => receipt.wait().map(|()| self.what),
            None => Ok(self.what),
        }
    }
}

/// The wall clock at the start, and what has passed since.
#[derive(Clone, Copy, Debug)]
struct Clock {
    begin: Time,
    wall: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { begin: clock::boottime(), wall: clock::realtime() }
    }

    fn now(self) -> Moment {
        self.at(clock::boottime())
    }

    /// Whole seconds of the sum: cut off before, it would be up to a second behind, and what ends would end late.
    fn at(self, time: Time) -> Moment {
        let seconds = self.wall.saturating_add(time.since(self.begin)).as_secs();
        Moment(u32::try_from(seconds).unwrap_or(u32::MAX))
    }
}

/// What else a store had when it was opened.
#[derive(Debug)]
pub struct Others {
    /// Peers that stand in no file.
    pub peers: Vec<Peer>,
    /// Who may become one.
    pub invites: Vec<Invite>,
}

/// All pools and leases, and their store.
#[derive(Debug)]
pub struct Leases {
    pools: Pools<RandomState>,
    store: Handle,
    clock: Clock,
    /// Days; 0 for none.
    history: u32,
    /// Requests for which there was no address.
    exhausted: u64,
}

/// What went wrong so far, and whether it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Requests for which no address was free.
    pub exhausted: u64,
    /// Transactions that the store could not commit.
    pub failures: u64,
    /// The store's file system has no room.
    pub full: bool,
}

impl Leases {
    /// Opens the store, which is made if it is missing, and takes up what is in it. Peers and invites there are for the
    /// caller.
    ///
    /// # Errors
    /// [`LeasesError`]
    pub fn open(specs: &[PoolSpec], keeping: Keeping<'_>) -> Result<(Self, Others), LeasesError> {
        let mut pools = Pools::new(RandomState::new());
        pools.configure(specs)?;
        let (path, account) = (keeping.path.to_owned(), keeping.account);
        let open = move || {
            let mut store = Sqlite::open(&path)?;
            load(&mut store, &mut pools)?;
            let others = Others { peers: store.peers()?, invites: store.invites()? };
            privileges::lower_thread(account, &[])?;
            Ok::<_, LeasesError>((store, (pools, others)))
        };
        let (store, (pools, others)) = Handle::start(open)?;
        let mut leases = Self { pools, store, clock: Clock::start(), history: keeping.history, exhausted: 0 };
        while leases.expire() {}
        Ok((leases, others))
    }

    /// Puts these pools and this length of history in the place of those before.
    ///
    /// # Errors
    /// [`PoolError`]; then nothing has changed.
    pub fn configure(&mut self, specs: &[PoolSpec], history: u32) -> Result<(), PoolError> {
        self.pools.configure(specs)?;
        self.history = history;
        Ok(())
    }

    /// Gives nobody new an address of a pool, or does so again, until the pools are configured anew. How much of it is
    /// in use; `None` if there is none of this name.
    pub fn drain(&mut self, pool: &str, drained: bool) -> Option<Usage> {
        self.pools.drain(pool, drained).then(|| self.pools.usage(pool)).flatten()
    }

    /// Gives the client an address, or the one that it has for longer.
    ///
    /// # Errors
    /// [`RequestError`]; of a store that heals the client should be told to ask again.
    pub fn request(&mut self, ask: &Ask<'_>) -> Result<Decided<Granted>, RequestError> {
        let granted = self.pools.request(ask, self.clock.now());
        self.exhausted += u64::from(matches!(granted, Err(Refusal::NoFreeAddress)));
        let granted = granted?;
        let writes = granted.left.into_iter().chain([granted.lease]).map(|lease| self.write(&lease));
        let receipt = self.store.submit(writes.collect())?;
        Ok(Decided { what: granted, receipt: Some(receipt) })
    }

    /// Ends the client's lease, if it has one. Its address stays the client's while nobody else needs it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn release(&mut self, client: &PublicKey) -> Result<Decided<Option<Lease>>, StoreError> {
        let ended = self.pools.release(client, self.clock.now());
        let receipt = ended.map(|lease| self.store.submit([self.write(&lease)].into_iter().collect()));
        Ok(Decided { what: ended, receipt: receipt.transpose()? })
    }

    /// The address that the client has, or would be given, set aside for it ([`Pools::earmark`]).
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn earmark(&mut self, ask: &Ask<'_>) -> Result<Ipv4Addr, Refusal> {
        self.pools.earmark(ask, self.clock.now())
    }

    /// As if so many seconds had passed.
    #[cfg(test)]
    pub(super) fn advance(&mut self, seconds: u64) {
        self.clock.wall += Duration::from_secs(seconds);
    }

    /// The moment by which leases begin and end.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Keeps an address for a client for good: the one that it asks for, or one that it would be given.
    ///
    /// # Errors
    /// [`RequestError`]
    pub fn reserve(&mut self, ask: &Ask<'_>) -> Result<Decided<Ipv4Addr>, RequestError> {
        let (address, left) = self.pools.reserve(ask, self.clock.now())?;
        let reserve = Write::Reserve { address, client: ask.client };
        let writes = left.map(|lease| self.write(&lease)).into_iter().chain([reserve]);
        let receipt = self.store.submit(writes.collect())?;
        Ok(Decided { what: address, receipt: Some(receipt) })
    }

    /// Ends the reservation of an address; a lease of it goes on. Says whose it was.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn unreserve(&mut self, address: Ipv4Addr) -> Result<Decided<Option<PublicKey>>, StoreError> {
        let client = self.pools.unreserve(address, self.clock.now());
        // Also if memory knows of none: what could not be stored before is stored now.
        let receipt = self.store.submit([Write::Unreserve { address }].into_iter().collect())?;
        Ok(Decided { what: client, receipt: Some(receipt) })
    }

    /// Keeps an address for a client, in memory: the one that it asks for, be it in a pool or not, or one of a pool.
    /// Returns it with the one of the other family, and what is to be stored.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn hold(&mut self, ask: &Ask<'_>) -> Result<(Ipv4Addr, Option<Ipv6Addr>, Writes), Refusal> {
        let now = self.clock.now();
        let (address, left) = match ask.wanted {
            Some(address) => (address, self.pools.hold(ask.client, address, now)?),
            None => self.pools.reserve(ask, now)?,
        };
        let left = left.map(|lease| self.write(&lease));
        let writes = left.into_iter().chain([Write::Reserve { address, client: ask.client }]).collect();
        Ok((address, self.pools.ipv6_of(address), writes))
    }

    /// Ends a client's lease and its reservation of this address, in memory. Returns what is to be stored.
    pub fn let_go(&mut self, client: &PublicKey, address: Ipv4Addr) -> Writes {
        let now = self.clock.now();
        let ended = self.pools.release(client, now).map(|lease| self.write(&lease));
        self.pools.unreserve(address, now);
        ended.into_iter().chain([Write::Unreserve { address }]).collect()
    }

    /// Makes the reservation of this address another client's, in memory. Returns what is to be stored.
    pub fn hand_over(&mut self, from: &PublicKey, to: PublicKey, address: Ipv4Addr) -> Writes {
        let ended = self.pools.hand_over(from, to, self.clock.now());
        let ended = ended.map(|lease| self.write(&lease));
        ended.into_iter().chain([Write::Reserve { address, client: to }]).collect()
    }

    /// The IPv4 address in a pool that this address goes with.
    #[must_use]
    pub fn ipv4_of(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        self.pools.ipv4_of(address)
    }

    /// Has this stored, all of it or nothing.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn store(&self, writes: Writes) -> Result<Decided<()>, StoreError> {
        Ok(Decided { what: (), receipt: Some(self.store.submit(writes)?) })
    }

    /// Has a use of an invite spent, and this stored with it. False if the store knows of none to spend.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn enrol(
        &self,
        enrolment: Enrolment,
        writes: Writes,
    ) -> impl Future<Output = Result<bool, StoreError>> + use<> {
        self.store.enrol(enrolment, writes)
    }

    /// The client's lease.
    #[must_use]
    pub fn lease_of(&self, client: &PublicKey) -> Option<Lease> {
        self.pools.lease_of(client, self.clock.now())
    }

    /// Whose an address was at that moment, the last first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn tenures(
        &self,
        address: Ipv4Addr,
        at: Moment,
    ) -> impl Future<Output = Result<Vec<Tenure>, StoreError>> + use<> {
        self.store.tenures(address, at)
    }

    /// Some leases, from a place on, and the place to go on from if there may be more.
    #[must_use]
    pub fn some(&self, from: u32, most: usize) -> (Vec<Lease>, Option<u32>) {
        self.pools.some(from, most, self.clock.now())
    }

    /// True if the address is in a pool.
    #[must_use]
    pub fn has_pool(&self, address: Ipv4Addr) -> bool {
        self.pools.has(address)
    }

    /// Attends to some leases that have ended. True if there may be more.
    pub fn expire(&mut self) -> bool {
        self.pools.expire(self.clock.now(), SOME) == SOME
    }

    /// Forgets what was kept for long enough; all of it, if nothing is to be kept.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn forget(&mut self) -> Result<Decided<()>, StoreError> {
        let before = self.clock.now() - self.history.saturating_mul(DAY);
        let forget = Write::Forget { before, most: FORGOTTEN };
        let receipt = self.store.submit([forget].into_iter().collect())?;
        Ok(Decided { what: (), receipt: Some(receipt) })
    }

    /// How much of a pool is in use; `None` if there is none of this name.
    #[must_use]
    pub fn usage(&self, pool: &str) -> Option<Usage> {
        self.pools.usage(pool)
    }

    /// Every pool's name, and how much of it is in use.
    pub fn usages(&self) -> impl Iterator<Item = (&str, Usage)> {
        self.pools.usages()
    }

    /// What went wrong.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let Self { exhausted, store, .. } = self;
        Trouble { exhausted: *exhausted, failures: store.failures(), full: store.is_full() }
    }

    fn write(&self, lease: &Lease) -> Write {
        let Lease { client, address, since, until, .. } = *lease;
        Write::Lease { tenure: Tenure { address, client, since, until }, history: self.history > 0 }
    }
}

/// Takes up what a store holds.
fn load(store: &mut impl Store, pools: &mut Pools<RandomState>) -> Result<(), StoreError> {
    store.load(&mut |stored| match stored {
        Stored::Lease(Tenure { address, client, since, until }) => pools.load(client, address, since, until),
        Stored::Reservation { address, client } => pools.load_reservation(client, address),
    })
}

#[cfg(test)]
mod tests;
