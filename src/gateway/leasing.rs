//! The gateway's pools: their store is opened at the start, what clients ask for is answered, and what ends by
//! itself is attended to while it runs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc::Receiver;

use super::Gateway;
use crate::config;
use crate::control::Control;
use crate::control::admin;
use crate::control::clients::{self, Membership};
use crate::control::device::Device;
use crate::control::leases::{Keeping, Leases, LeasesError, Others, Trouble};
use crate::control::sessions;
use crate::control::uapi::SetRequest;
use crate::dataplane::handoff::{ToControl, Wish};
use crate::lease::PoolSpec;
use crate::store::StoreError;
use crate::sys::privileges::Account;
use crate::types::Prefix;

/// Requests whose answers wait for the store at a time; the others wait in the workers' queue.
const WAITING: usize = 4096;
/// Between two looks at what has ended.
const SECOND: Duration = Duration::from_secs(1);
/// Seconds between two looks at what has been kept for long enough, and between two lines about a store that fails.
const MINUTE: u32 = 60;

/// Opens the store and takes up the leases in it; peers and invites that it has are returned beside them.
pub(super) fn open(
    config: &config::Gateway,
    account: Option<Account>,
) -> Result<(Leases, Others), LeasesError> {
    let keeping = Keeping { path: &config.store.path, history: config.store.history, account };
    let specs = specs(config);
    let (leases, others) = Leases::open(&specs, keeping)?;
    let path = config.store.path.display();
    let (peers, invites) = (others.peers.len(), others.invites.len());
    tracing::info!(%path, pools = specs.len(), peers, invites, "the store is open");
    Ok((leases, others))
}

/// The pools in force, as leases are given from them.
pub(super) fn specs(config: &config::Gateway) -> Vec<PoolSpec> {
    config.pools().iter().map(config::Pool::spec).collect()
}

/// What the file says of clients is in force from now on, and who has a lease has its addresses.
pub(super) fn configure(control: &mut Control<Gateway>, config: &config::Gateway) {
    let each = config.peer.iter().map(|peer| (peer.public_key, membership(peer)));
    let members = each.filter(|(_, member)| *member != Membership::default()).collect();
    let settings = config.clients.settings(config.mtu);
    control.clients.configure(config.addresses.clone(), settings, members);
    clients::adopt(control);
}

fn membership(peer: &config::Peer) -> Membership {
    Membership { group: peer.group.clone(), pool: peer.pool.clone() }
}

/// Finds for new peers without an address of their own the one that they will most likely lease.
pub(super) fn find_homes(
    request: &mut SetRequest,
    config: &config::Gateway,
    device: &Device,
    leases: Option<&mut Leases>,
) {
    let Some(leases) = leases else { return };
    let leasing = config.peer.iter().filter(|peer| !peer.allowed_ips.iter().any(Prefix::is_host));
    let leasing: HashMap<_, _> = leasing.map(|peer| (peer.public_key, peer)).collect();
    for change in request.peers.iter_mut().filter(|change| !change.remove) {
        if let Some(peer) = leasing.get(&change.public_key) {
            change.home = clients::home(device, leases, &membership(peer), change.public_key);
        }
    }
}

/// Answers what clients ask for, and notes what becomes of their sessions. Never returns.
pub(super) async fn answer(
    asked: Option<Receiver<ToControl>>,
    control: &RefCell<Control<Gateway>>,
) -> Infallible {
    let Some(mut asked) = asked else { return std::future::pending().await };
    let (mut waiting, mut joining) = (FuturesUnordered::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            Some((request, stored)) = waiting.next() => {
                clients::finish(&mut control.borrow_mut(), request, stored);
            }
            Some(()) = joining.next() => {}
            Some(told) = asked.recv(), if waiting.len() + joining.len() < WAITING => match told {
                ToControl::Asked(asked) => {
                    if let Wish::Enrol(own, verdict) = asked.what {
                        joining.push(admin::enrol(control, asked.peer, asked.stream_id, own, verdict));
                        continue;
                    }
                    let begun = clients::begin(&mut control.borrow_mut(), asked);
                    waiting.extend(begun.map(|(request, decided)| async { (request, decided.stored().await) }));
                }
                ToControl::Session(peer, change) => {
                    sessions::note(&mut control.borrow_mut(), peer, change);
                }
                // Nobody says it to a gateway.
                ToControl::Said(..) => {}
            },
            else => return std::future::pending().await,
        }
    }
}

/// Ends leases and forgets history when it is time. Never returns.
pub(super) async fn serve(control: &RefCell<Control<Gateway>>) -> Infallible {
    let (mut seconds, mut before) = (0_u32, Trouble::default());
    loop {
        // The others have a turn between two lots.
        while clients::expire(&mut control.borrow_mut()) {
            tokio::task::yield_now().await;
        }
        while control.borrow_mut().leases.as_mut().is_some_and(Leases::expire) {
            tokio::task::yield_now().await;
        }
        if seconds.is_multiple_of(MINUTE) {
            if let Err(error) = forget(control).await {
                tracing::warn!("the store: {error}");
            }
            let now = control.borrow().leases.as_ref().map(Leases::trouble).unwrap_or_default();
            tell(before, now);
            before = now;
        }
        seconds = seconds.wrapping_add(1);
        tokio::time::sleep(SECOND).await;
    }
}

/// A line at most for what went wrong since the last time.
fn tell(before: Trouble, now: Trouble) {
    let refused = now.exhausted - before.exhausted;
    if refused > 0 {
        tracing::warn!(refused, "no address is free: add ranges to a pool, or shorten lease_time");
    }
    let failures = now.failures - before.failures;
    if failures > 0 {
        tracing::warn!(
            failures,
            full = now.full,
            "the store could not commit: no new lease is told to anybody"
        );
    }
}

async fn forget(control: &RefCell<Control<Gateway>>) -> Result<(), StoreError> {
    // Not borrowed while it is waited for.
    let decided = control.borrow_mut().leases.as_mut().map(Leases::forget).transpose()?;
    match decided {
        Some(decided) => decided.stored().await,
        None => Ok(()),
    }
}
