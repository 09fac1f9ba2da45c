//! What a connection changes on its host around its device, and how that is undone: addresses, MTU, routes and rules,
//! reverse path filtering. The device itself is whoever's who opened it.

use std::path::Path;

use super::config::Plan;
use super::error::VpnError;
use crate::net::manners::reverse::{self, Loosened};
use crate::net::name::InterfaceName;
use crate::net::route::{Route, Router, Taken, table_of};
use crate::types::{Mark, Prefix};

/// The mark of packets that stay out of every tunnel: the tunnels' own datagrams, and what protected sockets send. The
/// same number as the protocol of our routes; no bit of it is one of those that container networks put to use.
pub const MARK: Mark = Mark(0x52);

/// Where routes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Into a table of our own, with rules that lead there ([`crate::net::route`]).
    #[default]
    Rules,
    /// Into this table, and no rule: somebody else's rules lead there.
    Table(u32),
    /// Nowhere.
    Off,
}

/// What was changed for one device. It must be undone in so many words; a process that is killed leaves it to
/// [`clean`].
#[derive(Debug)]
#[must_use = "routes and rules stay until `undo`"]
pub struct Tunnel {
    device: u32,
    table: u32,
    /// Undone when it is dropped.
    _loosened: Option<Loosened>,
}

impl Tunnel {
    /// Makes a device that is down the connection's: leftovers of this name go; MTU, addresses, up; routes. Packets
    /// with `mark` stay out of it. `run` is `/run/ringway`.
    ///
    /// # Errors
    /// What was refused. Then nothing is left but what goes with the device.
    pub async fn set_up(
        name: &InterfaceName,
        device: u32,
        plan: &Plan,
        (mark, routing): (Mark, Routing),
        run: &Path,
    ) -> Result<Self, VpnError> {
        let router = open()?;
        let table = table_of(name.as_str());
        clean_with(&router, name, run).await?;
        let link = router.link(device);
        let failed = |action: &str| {
            let action = format!("{action} on {name}");
            move |error| VpnError::kernel(action, error)
        };
        link.set_mtu(plan.mtu).await.map_err(failed(&format!("set the MTU {}", plan.mtu)))?;
        for address in &plan.addresses {
            link.add_address(*address).await.map_err(failed(&format!("set the address {address}")))?;
        }
        link.set_up().await.map_err(failed("bring the link up"))?;
        let blocked = plan.blocked.clone();
        let (routes, excluded) = match routing {
            Routing::Rules => (plan.routes.clone(), plan.excluded.clone()),
            // What is to be blocked is blocked wherever the routes are.
            Routing::Table(_) | Routing::Off => (Vec::new(), Vec::new()),
        };
        let taken = Taken { device, table, mark, routes, excluded, blocked };
        let takes_v4 = taken.routes.iter().any(|Route { prefix, .. }| is_v4(prefix));
        let loosened = if takes_v4 {
            reverse::loosen(name, run).map_err(|error| VpnError::Internal {
                action: "set rp_filter".to_owned(),
                source: error.into(),
            })?
        } else {
            None
        };
        router.take(&taken).await.map_err(refused)?;
        if let Routing::Table(number) = routing {
            router.fill(device, number, &plan.routes).await.map_err(refused)?;
        }
        Ok(Self { device, table, _loosened: loosened })
    }

    /// The device's index.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Takes back everything but what goes with the device.
    ///
    /// # Errors
    /// What the kernel says; as much as possible is gone, and [`clean`] takes the rest.
    pub async fn undo(self) -> Result<(), VpnError> {
        let gone = open()?.give_back(self.table).await;
        gone.map(drop).map_err(|error| VpnError::kernel("take back routes and rules", error))
    }
}

/// Takes back what a connection of this name left that was killed; true if there was anything. `run` is `/run/ringway`.
///
/// # Errors
/// What the kernel says, or a record that cannot be read.
pub async fn clean(name: &InterfaceName, run: &Path) -> Result<bool, VpnError> {
    clean_with(&open()?, name, run).await
}

async fn clean_with(router: &Router, name: &InterfaceName, run: &Path) -> Result<bool, VpnError> {
    let gone = router.give_back(table_of(name.as_str())).await;
    let gone = gone.map_err(|error| VpnError::kernel("take back routes and rules", error))?;
    let restored = reverse::restore(name, run).map_err(|error| VpnError::Internal {
        action: "restore rp_filter".to_owned(),
        source: error.into(),
    })?;
    Ok(gone > 0 || restored)
}

fn open() -> Result<Router, VpnError> {
    Router::open().map_err(|error| VpnError::CannotConnect { service: "netlink", source: error.into() })
}

fn refused(error: crate::net::route::RouteError) -> VpnError {
    VpnError::kernel(format!("make {}", error.what), error.source)
}

fn is_v4(prefix: &Prefix) -> bool {
    prefix.addr().is_ipv4()
}
