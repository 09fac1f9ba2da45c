//! `down`: ends a connection that `up` made.

use clap::Args;

use super::admin::print;
use crate::client::connection::check_privilege;
use crate::gateway::client;
use crate::net::name::InterfaceName;

/// `down NAME [--force]`
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The connection
    name: InterfaceName,
    /// Also take back what one left that was killed
    #[arg(long)]
    force: bool,
}

/// Does it.
///
/// # Errors
/// There is no such connection, or it does not end.
pub fn run(args: &DownArgs) -> anyhow::Result<()> {
    check_privilege()?;
    let done = client::down(&args.name, args.force)?;
    print(&format!("{}: {}\n", args.name, if done { "down" } else { "nothing was left" }))
}
