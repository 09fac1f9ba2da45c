//! `guard`: raises a profile's kill switch without connecting, as before the network is up.

use anyhow::Context as _;
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::admin::print;
use super::logging;
use crate::client::connection::check_privilege;
use crate::config::LogFormat;
use crate::config::profile;
use crate::gateway::client;

/// `guard [--local] PROFILE|FILE`
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// A profile below /etc/ringway/profiles by its name, or a file NAME.conf as wg-quick reads it
    #[arg(value_name = "PROFILE|FILE")]
    profile: String,
    /// Hosts in private networks stay within reach, but for asking them for names
    #[arg(long)]
    local: bool,
}

/// Does it.
///
/// # Errors
/// What is wrong with the profile, or what nftables says.
pub fn run(args: &GuardArgs) -> anyhow::Result<()> {
    logging::start(LevelFilter::WARN, LogFormat::Text);
    check_privilege()?;
    let (name, path) = client::place(&args.profile).context("a profile is named after its device")?;
    client::raise_alone(name.clone(), &profile::read(&path)?, args.local)?;
    print(&format!(
        "{name}: nothing leaves this host but by this tunnel, until `ringway down --force {name}`\n"
    ))
}
