//! `down`: ends a connection that `up` made.

use clap::Args;

use super::admin::print;
use crate::client::connection::check_privilege;
use crate::gateway::client::{self, Ended};
use crate::net::name::InterfaceName;

/// `down NAME [--force]`
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The connection
    name: InterfaceName,
    /// Also take back what one left that was killed, and a kill switch that was to stay
    #[arg(long)]
    force: bool,
}

/// Does it.
///
/// # Errors
/// There is no such connection, or it does not end.
pub fn run(args: &DownArgs) -> anyhow::Result<()> {
    check_privilege()?;
    let name = &args.name;
    print(&match client::down(name, args.force)? {
        Ended::Down => format!("{name}: down\n"),
        Ended::Guarded => {
            format!("{name}: down; nothing leaves this host until `ringway down --force {name}`\n")
        }
        Ended::Nothing => format!("{name}: nothing was left\n"),
    })
}
