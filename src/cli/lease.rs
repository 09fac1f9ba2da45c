//! `lease`, `pool`: who has which address, and who had it; over the admin API.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use anyhow::bail;
use clap::{Args, Subcommand};
use hyper::Method;

use super::admin::{Client, Which, escaped, print, print_json};
use super::peer::{columns, short};
use super::show::ago;
use crate::control::admin::wire::{LeaseView, Page, PoolChanges, PoolView};

/// `lease [-i IFNAME] [--json] VERB`
#[derive(Debug, Args)]
pub struct LeaseArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    verb: LeaseVerb,
}

#[derive(Debug, Subcommand)]
enum LeaseVerb {
    /// All leases
    List,
    /// Who has an address
    Show {
        /// The address
        address: Ipv4Addr,
    },
    /// Who had an address at a moment
    History {
        /// The address
        address: Ipv4Addr,
        /// Seconds since 1970 (`date -d '2026-11-21 18:00' +%s`)
        #[arg(long, value_name = "MOMENT")]
        at: u32,
    },
}

/// `pool [-i IFNAME] [--json] VERB`
#[derive(Debug, Args)]
pub struct PoolArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    verb: PoolVerb,
}

#[derive(Debug, Subcommand)]
enum PoolVerb {
    /// All pools, and how much of them is leased
    List,
    /// Give nobody new an address of a pool, until the file is read again (`drain = true` there lasts)
    Drain {
        /// Its name
        name: String,
    },
    /// Give addresses of a pool to anybody again, until the file is read again
    Undrain {
        /// Its name
        name: String,
    },
}

/// Prints leases.
///
/// # Errors
/// Nobody to ask; nobody who has or had the address.
pub fn run_lease(args: &LeaseArgs) -> anyhow::Result<()> {
    let client = args.which.client()?;
    let leases = match &args.verb {
        LeaseVerb::List => client.all("/v1/leases")?,
        LeaseVerb::Show { address } => tenures(&client, *address, None)?,
        LeaseVerb::History { address, at } => tenures(&client, *address, Some(*at))?,
    };
    if args.which.json { print_json(&leases) } else { print(&table(&leases)) }
}

fn tenures(client: &Client, address: Ipv4Addr, at: Option<u32>) -> anyhow::Result<Vec<LeaseView>> {
    let at_moment = at.map(|at| format!("?at={at}")).unwrap_or_default();
    let found: Page<LeaseView> = client.get(&format!("/v1/leases/{address}/history{at_moment}"))?;
    match (found.items.is_empty(), at) {
        (false, _) => Ok(found.items),
        (true, None) => bail!("nobody has a lease of {address}"),
        (true, Some(_)) => {
            bail!("nobody had a lease of {address} then, or it is forgotten ([store] history)")
        }
    }
}

fn table(leases: &[LeaseView]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut rows = vec![["ADDRESS", "IPV6", "PEER", "HOSTNAME", "SINCE", "ENDS"].map(str::to_owned)];
    rows.extend(leases.iter().map(|lease| {
        let until = u64::from(lease.until);
        let ends = match u32::try_from(until.saturating_sub(now)) {
            Ok(left) if left > 0 => format!("in {}", short(left)),
            _ => ago(now.saturating_sub(until)),
        };
        [
            lease.address.to_string(),
            lease.ipv6.map(|address| address.to_string()).unwrap_or_default(),
            lease.name.clone().unwrap_or_else(|| lease.public_key.0.to_base64()),
            lease.hostname.clone().unwrap_or_default(),
            ago(now.saturating_sub(lease.since.into())),
            ends,
        ]
    }));
    columns(&rows)
}

/// Prints pools.
///
/// # Errors
/// Nobody to ask.
pub fn run_pool(args: &PoolArgs) -> anyhow::Result<()> {
    let client = args.which.client()?;
    let (name, drained) = match &args.verb {
        PoolVerb::List => {
            let pools: Page<PoolView> = client.get("/v1/pools")?;
            return if args.which.json {
                print_json(&pools.items)
            } else {
                print(&pools_table(&pools.items))
            };
        }
        PoolVerb::Drain { name } => (name, true),
        PoolVerb::Undrain { name } => (name, false),
    };
    let path = format!("/v1/pools/{}", escaped(name));
    let pool: PoolView = client.send(Method::PATCH, &path, &PoolChanges { drained })?;
    if args.which.json { print_json(&pool) } else { print(&pools_table(&[pool])) }
}

fn pools_table(pools: &[PoolView]) -> String {
    let mut rows = vec![["NAME", "ADDRESSES", "LEASED", "STATE"].map(str::to_owned)];
    rows.extend(pools.iter().map(|pool| {
        let state = if pool.drained { "drained" } else { "open" };
        [pool.name.clone(), pool.addresses.to_string(), pool.leased.to_string(), state.to_owned()]
    }));
    columns(&rows)
}
