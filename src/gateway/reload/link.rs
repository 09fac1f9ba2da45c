//! Addresses and routes of a device that serves, from one file's to another's: what is new is made first, and can be
//! taken back; what is gone goes when nothing can be refused any more.

use std::collections::BTreeSet;
use std::io;

use anyhow::Context as _;

use crate::config::Gateway;
use crate::gateway::appliance::{SetupError, routes};
use crate::net::link::Link;
use crate::types::{Address, Prefix};

/// What was made on the way to another file.
#[derive(Debug, Default)]
pub(super) struct Made {
    addresses: Vec<Address>,
    routes: Vec<Prefix>,
}

/// Makes addresses and routes that are new, and notes each.
///
/// # Errors
/// What was refused.
pub(super) async fn make(link: &Link, from: &Gateway, to: &Gateway, made: &mut Made) -> anyhow::Result<()> {
    for address in without(&to.addresses, &from.addresses) {
        match link.add_address(address).await {
            // Somebody has set it by hand; or it is there with the prefix length of before, since IPv6 has an address
            // once, and comes when that one has gone.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            result => result.with_context(|| format!("setting the address {address}"))?,
        }
        made.addresses.push(address);
    }
    let (before, after) = (BTreeSet::from_iter(routes(from)), BTreeSet::from_iter(routes(to)));
    for prefix in after.difference(&before) {
        match link.add_route(*prefix).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The kernel's own, for an address that goes: ours comes after it.
                if from.addresses.iter().any(|address| address.network() == *prefix) {
                    continue;
                }
                return Err(SetupError::RouteExists { prefix: *prefix }.into());
            }
            result => result.with_context(|| format!("routing {prefix}"))?,
        }
        made.routes.push(*prefix);
    }
    Ok(())
}

/// Removes addresses and routes that are gone. Returns what does not come back of that which the kernel took along.
pub(super) async fn remove(link: &Link, from: &Gateway, to: &Gateway) -> Vec<String> {
    let (before, after) = (BTreeSet::from_iter(routes(from)), BTreeSet::from_iter(routes(to)));
    for prefix in before.difference(&after) {
        remove_route(link, *prefix).await;
    }
    let gone = without(&from.addresses, &to.addresses);
    for address in &gone {
        remove_address(link, *address).await;
    }
    if gone.is_empty() { Vec::new() } else { complete(link, to).await }
}

/// Takes back what [`make`] made on the way from this file.
pub(super) async fn take_back(link: &Link, from: &Gateway, made: Made) {
    for prefix in made.routes {
        remove_route(link, prefix).await;
    }
    for address in made.addresses {
        remove_address(link, address).await;
    }
    for refused in complete(link, from).await {
        tracing::warn!("reload: what was begun cannot be taken back: {refused}");
    }
}

/// Makes what is missing of this file's addresses and routes. Returns what was refused.
async fn complete(link: &Link, file: &Gateway) -> Vec<String> {
    let mut refused = Vec::new();
    let mut note = |result: io::Result<()>, what: String| match result {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            refused.push(format!("{what}: {error}"))
        }
        _ => {}
    };
    for address in &file.addresses {
        note(link.add_address(*address).await, format!("setting the address {address}"));
    }
    for prefix in routes(file) {
        note(link.add_route(prefix).await, format!("routing {prefix}"));
    }
    refused
}

/// Those of `all` that are not in `others`.
fn without(all: &[Address], others: &[Address]) -> Vec<Address> {
    all.iter().filter(|address| !others.contains(address)).copied().collect()
}

async fn remove_route(link: &Link, prefix: Prefix) {
    match link.remove_route(prefix).await {
        // Somebody has taken it away already, or it went with an address.
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            tracing::warn!(%error, "a route that nobody needs any more stays");
        }
        _ => {}
    }
}

async fn remove_address(link: &Link, address: Address) {
    match link.remove_address(address).await {
        // Somebody has taken it away already, or it went with another one.
        Err(error) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
            tracing::warn!(%error, %address, "an address that is not in the file any more stays");
        }
        _ => {}
    }
}
