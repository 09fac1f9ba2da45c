//! `guard`: raises a profile's kill switch without connecting, as before the network is up.

use anyhow::Context as _;
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::admin::print;
use super::logging;
use crate::client::connection::check_privilege;
use crate::config::LogFormat;
use crate::config::profile;
use crate::gateway::client::{self, alone};

/// `guard [--local] [--watch] PROFILE|FILE`
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// A profile below /etc/ringway/profiles by its name, or a file NAME.conf as wg-quick reads it
    #[arg(value_name = "PROFILE|FILE")]
    profile: String,
    /// Hosts in private networks stay within reach, but for asking them for names
    #[arg(long)]
    local: bool,
    /// Stay, and put the kill switch back whenever somebody takes it away, as by `nft flush ruleset`; a running
    /// `ringway up` does so itself
    #[arg(long)]
    watch: bool,
}

/// Does it.
///
/// # Errors
/// What is wrong with the profile, or what nftables says.
pub fn run(args: &GuardArgs) -> anyhow::Result<()> {
    logging::start(LevelFilter::WARN, LogFormat::Text);
    check_privilege()?;
    let (name, path) = client::place(&args.profile).context("a profile is named after its device")?;
    let profile = profile::read(&path)?;
    let told = || {
        print(&format!(
            "{name}: nothing leaves this host but by this tunnel, until `ringway down --force {name}`\n"
        ))
    };
    if args.watch {
        return alone::keep(&name, &profile, args.local, told);
    }
    alone::raise(&name, &profile, args.local)?;
    told()
}
