//! What a connection changes on its host around its device, and how that is undone: addresses, MTU, routes and rules,
//! reverse path filtering. The device itself is whoever's who opened it.

use std::path::Path;

use super::config::Plan;
use super::error::VpnError;
use crate::net::manners::reverse::{self, Loosened};
use crate::net::name::InterfaceName;
use crate::net::route::{Route, Router, Taken, table_of};
use crate::types::Mark;

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
    name: InterfaceName,
    plan: Plan,
    taken: Taken,
    routing: Routing,
    /// Undone when it is dropped.
    loosened: Option<Loosened>,
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
        let taken = of_plan(
            plan,
            Taken {
                device,
                table,
                mark,
                routes: Vec::new(),
                excluded: Vec::new(),
                blocked: plan.blocked.clone(),
            },
            routing,
        );
        let loosened = loosen(&taken, name, run)?;
        router.take(&taken).await.map_err(refused)?;
        if let Routing::Table(number) = routing {
            router.fill(device, number, &plan.routes).await.map_err(refused)?;
        }
        Ok(Self { name: name.clone(), plan: plan.clone(), taken, routing, loosened })
    }

    /// What is in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Has another plan in force: other addresses, MTU, routes and exclusions; the same families stay blocked. `run` is
    /// `/run/ringway`.
    ///
    /// # Errors
    /// What was refused. Then it is half done: another change, or [`Self::undo`], brings it in order.
    pub async fn change(&mut self, plan: &Plan, run: &Path) -> Result<(), VpnError> {
        let router = open()?;
        let link = router.link(self.device());
        let failed = |action: String| move |error| VpnError::kernel(action, error);
        let name = self.name.clone();
        if plan.mtu != self.plan.mtu {
            let action = format!("set the MTU {} on {name}", plan.mtu);
            link.set_mtu(plan.mtu).await.map_err(failed(action))?;
            self.plan.mtu = plan.mtu;
        }
        for address in plan.addresses.iter().filter(|address| !self.plan.addresses.contains(address)) {
            match link.add_address(*address).await {
                // Half done before.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                added => added.map_err(failed(format!("set the address {address} on {name}")))?,
            }
        }
        for address in self.plan.addresses.iter().filter(|address| !plan.addresses.contains(address)) {
            match link.remove_address(*address).await {
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                gone => gone.map_err(failed(format!("take the address {address} from {name}")))?,
            }
        }
        let bare = !plan.addresses.iter().any(|address| address.addr().is_ipv4());
        self.plan.addresses.clone_from(&plan.addresses);
        let taken = of_plan(plan, self.taken.clone(), self.routing);
        if self.loosened.is_none() {
            self.loosened = loosen(&taken, &name, run)?;
        }
        router.change(&self.taken, &taken).await.map_err(refused)?;
        if let Routing::Table(number) = self.routing {
            let routes = (&self.plan.routes[..], &plan.routes[..]);
            router.refill(taken.device, number, routes).await.map_err(refused)?;
        }
        if bare {
            router.renew(&taken).await.map_err(refused)?;
        }
        (self.taken, self.plan) = (taken, plan.clone());
        Ok(())
    }

    /// The device's index.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.taken.device
    }

    /// Takes back everything but what goes with the device.
    ///
    /// # Errors
    /// What the kernel says; as much as possible is gone, and [`clean`] takes the rest.
    pub async fn undo(self) -> Result<(), VpnError> {
        let gone = open()?.give_back(self.taken.table).await;
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

/// The routes of a plan, where there are rules that lead to them. What is to be blocked is blocked anyway.
fn of_plan(plan: &Plan, before: Taken, routing: Routing) -> Taken {
    let (routes, excluded) = match routing {
        Routing::Rules => (plan.routes.clone(), plan.excluded.clone()),
        Routing::Table(_) | Routing::Off => (Vec::new(), Vec::new()),
    };
    Taken { routes, excluded, ..before }
}

fn loosen(taken: &Taken, name: &InterfaceName, run: &Path) -> Result<Option<Loosened>, VpnError> {
    if !taken.routes.iter().any(|Route { prefix, .. }| prefix.addr().is_ipv4()) {
        return Ok(None);
    }
    reverse::loosen(name, run)
        .map_err(|error| VpnError::Internal { action: "set rp_filter".to_owned(), source: error.into() })
}

fn open() -> Result<Router, VpnError> {
    Router::open().map_err(|error| VpnError::CannotConnect { service: "netlink", source: error.into() })
}

fn refused(error: crate::net::route::RouteError) -> VpnError {
    VpnError::kernel(format!("make {}", error.what), error.source)
}
