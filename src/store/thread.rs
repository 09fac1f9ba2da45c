//! The store's thread: whatever has come since the last transaction is the next one.
//!
//! The queue is bounded and nobody waits for room in it: who finds it full is told [`StoreError::Busy`], and asks again
//! later. One thread writes, in the order of the queue, so that of two states of an address the later one stays.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use super::{Enrolment, Store, StoreError, Tenure, Write};
use crate::types::Moment;

/// Most that waits to be stored.
const QUEUE: usize = 16_384;
/// Most requests in one transaction: some ten milliseconds of work, and 64 KiB of acknowledgements.
const GROUP: usize = 4096;
/// The thread's name.
pub const NAME: &str = "ringway-store";

/// What belongs together: all of it is stored, or nothing. A lease takes two at most, one to end and one to begin;
/// a peer that is given an address takes three.
pub type Writes = arrayvec::ArrayVec<Write, 3>;

enum Order {
    Write(Writes, oneshot::Sender<Result<(), StoreError>>),
    Look { address: Ipv4Addr, at: Moment, answer: oneshot::Sender<Result<Vec<Tenure>, StoreError>> },
    Enrol(Box<(Enrolment, Writes)>, oneshot::Sender<Result<bool, StoreError>>),
}

/// The word that something is stored, or why not, some time from now.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<(), StoreError>>);

impl Receipt {
    /// Waits for it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is stored then.
    pub async fn stored(self) -> Result<(), StoreError> {
        self.0.await.unwrap_or(Err(StoreError::Ended))
    }

    /// Waits for it outside of a runtime.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is stored then.
    pub fn wait(self) -> Result<(), StoreError> {
        self.0.blocking_recv().unwrap_or(Err(StoreError::Ended))
    }
}

/// How the store does, for whoever looks: neither value orders anything.
#[derive(Debug, Default)]
struct Health {
    failures: AtomicU64,
    full: AtomicBool,
}

impl Health {
    /// What became of a transaction.
    fn note<T>(&self, done: &Result<T, StoreError>) {
        self.failures.fetch_add(u64::from(done.is_err()), Ordering::Relaxed);
        self.full.store(matches!(done, Err(StoreError::Full(_))), Ordering::Relaxed);
    }
}

/// The way to the store's thread, which ends when this is dropped, after everything that was handed in.
#[derive(Debug)]
pub struct Handle {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    health: Arc<Health>,
}

impl Handle {
    /// Starts the thread. It calls `open`, which should lower the thread's privileges once the store is open, and hands
    /// what that found besides to the caller.
    ///
    /// # Errors
    /// What `open` says, or that there is no thread to be had.
    pub fn start<S, T, E>(open: impl FnOnce() -> Result<(S, T), E> + Send + 'static) -> Result<(Self, T), E>
    where
        S: Store + 'static,
        T: Send + 'static,
        E: Send + From<StoreError> + 'static,
    {
        let (orders, queue) = bounded(QUEUE);
        let (opened, verdict) = bounded(1);
        let health = Arc::<Health>::default();
        let seen = Arc::clone(&health);
        let spawned = std::thread::Builder::new().name(NAME.to_owned()).spawn(move || match open() {
            Ok((store, found)) => {
                let _ = opened.send(Ok(found));
                serve(store, &queue, &seen);
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        });
        let thread = spawned.map_err(|_| StoreError::Ended)?;
        let found = verdict.recv().map_err(|_| StoreError::Ended)??;
        Ok((Self { orders: Some(orders), thread: Some(thread), health }, found))
    }

    /// Has these stored together. Never waits.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Ended`].
    pub fn submit(&self, writes: Writes) -> Result<Receipt, StoreError> {
        let (done, receipt) = oneshot::channel();
        self.send(Order::Write(writes, done)).map(|()| Receipt(receipt))
    }

    /// Has a use of an invite spent and these stored with it, in a transaction of its own ([`Store::enrol`]). Never
    /// waits by itself; what is returned does.
    pub fn enrol(
        &self,
        enrolment: Enrolment,
        writes: Writes,
    ) -> impl Future<Output = Result<bool, StoreError>> + use<> {
        let (done, answered) = oneshot::channel();
        let sent = self.send(Order::Enrol(Box::new((enrolment, writes)), done));
        async move {
            sent?;
            answered.await.unwrap_or(Err(StoreError::Ended))
        }
    }

    /// Whose an address was at that moment, by all that was handed in before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tenures(
        &self,
        address: Ipv4Addr,
        at: Moment,
    ) -> impl Future<Output = Result<Vec<Tenure>, StoreError>> + use<> {
        let (answer, answered) = oneshot::channel();
        let sent = self.send(Order::Look { address, at, answer });
        async move {
            sent?;
            answered.await.unwrap_or(Err(StoreError::Ended))
        }
    }

    /// Transactions that have failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.health.failures.load(Ordering::Relaxed)
    }

    /// True while there is no room: the last transaction found none.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.health.full.load(Ordering::Relaxed)
    }

    fn send(&self, order: Order) -> Result<(), StoreError> {
        let orders = self.orders.as_ref().ok_or(StoreError::Ended)?;
        orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Ended,
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until every sender is gone.
fn serve(mut store: impl Store, queue: &Receiver<Order>, health: &Health) {
    let mut group = Vec::new();
    let mut acknowledge = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut alone = None;
        for order in std::iter::once(first).chain(queue.try_iter()) {
            match order {
                Order::Write(writes, done) => {
                    group.extend(writes);
                    acknowledge.push(done);
                }
                other => alone = Some(other),
            }
            if acknowledge.len() >= GROUP || alone.is_some() {
                break;
            }
        }
        if !acknowledge.is_empty() {
            let stored = store.commit(&mut group.drain(..));
            health.note(&stored);
            for done in acknowledge.drain(..) {
                // Who asked may not wait any more.
                let _ = done.send(stored.clone());
            }
            group.clear();
        }
        match alone {
            Some(Order::Look { address, at, answer }) => {
                let _ = answer.send(store.tenures(address, at));
            }
            Some(Order::Enrol(what, done)) => {
                let (enrolment, writes) = *what;
                let spent = store.enrol(&enrolment, &mut writes.into_iter());
                health.note(&spent);
                let _ = done.send(spent);
            }
            Some(Order::Write(..)) | None => {}
        }
    }
}
