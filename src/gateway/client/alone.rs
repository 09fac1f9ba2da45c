//! A kill switch without a client, which stays: from before the network is up, until [`super::down`] is told to use
//! force.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{ends, vpn_config};
use crate::client::error::VpnError;
use crate::client::tunnel::MARK;
use crate::config::RUN;
use crate::config::profile::Profile;
use crate::gateway::home::{self, HomeError, RunDir};
use crate::gateway::serving::block_on;
use crate::gateway::{appliance, supervisor};
use crate::net::guard::{Guard, Options};
use crate::net::name::InterfaceName;
use crate::sys::process;

/// Where those who [`keep`] one hold their locks, below [`RUN`]; longer than a device's name, as the others there are.
const KEEPERS: &str = "kill-switch-keepers";

fn keepers(name: &InterfaceName) -> PathBuf {
    Path::new(RUN).join(KEEPERS).join(name.as_str())
}

/// Raises a profile's kill switch. With `local_network` hosts in private networks stay within reach.
///
/// # Errors
/// What is wrong with the profile; a client of this name runs, and has or has not its own; what nftables says.
pub fn raise(name: &InterfaceName, profile: &Profile, local_network: bool) -> anyhow::Result<()> {
    Ok(Guard::raise(&options(name, profile, local_network)?)?.lower()?)
}

/// The same, and puts it back whenever somebody takes it away, until it is told to end; while a client of this name
/// runs, that does it. `raised` is called once it is raised.
///
/// # Errors
/// As [`raise`]; somebody keeps it already.
pub fn keep(
    name: &InterfaceName,
    profile: &Profile,
    local_network: bool,
    raised: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let path = keepers(name);
    let held = RunDir::take(&path).map_err(|error| match error {
        HomeError::Running { pid, .. } => {
            anyhow::anyhow!("process {pid} keeps the kill switch of {name} already")
        }
        error => error.into(),
    })?;
    let options = options(name, profile, local_network)?;
    let client = Path::new(RUN).join(name.as_str());
    // Who cannot tell takes it for its own business.
    let others = move || home::holder(&client).is_ok_and(|holder| holder.is_some());
    block_on(async {
        let ended = appliance::signalled().context("taking signals")?;
        let guard = Guard::raise_unless(&options, others)?;
        raised()?;
        supervisor::ready("the kill switch is raised");
        ended.await;
        supervisor::stopping();
        Ok(guard.lower()?)
    })?;
    drop(held);
    path.parent().into_iter().for_each(home::remove_above);
    Ok(())
}

/// Has whoever keeps it end, and waits for that. The kill switch stays.
pub(super) fn end(name: &InterfaceName) -> anyhow::Result<()> {
    let path = keepers(name);
    let Some(pid) = home::holder(&path)? else { return Ok(()) };
    let number: NonZeroU32 = pid.parse().with_context(|| format!("{}: {pid:?}", path.display()))?;
    process::terminate(number)
        .with_context(|| format!("ending process {pid}, which keeps the kill switch"))?;
    if !ends(&path)? {
        bail!("process {pid}, which keeps the kill switch, does not end: kill -9 {pid}, and try again");
    }
    Ok(())
}

fn options(name: &InterfaceName, profile: &Profile, local_network: bool) -> anyhow::Result<Options> {
    if let Some(pid) = home::holder(&Path::new(RUN).join(name.as_str()))? {
        bail!("{name} is run by process {pid}: `ringway down {name}`, or `ringway up --kill-switch always`");
    }
    let config = vpn_config(profile);
    config.check_unaddressed().map_err(VpnError::from)?;
    Ok(Options {
        tunnel: name.clone(),
        mark: profile.mark.unwrap_or(MARK),
        addresses: config.addresses.iter().map(|address| address.address).collect(),
        local_network,
        excluded: Vec::new(),
        stays: true,
    })
}
