//! `ringway gateway`: the appliance of one file.

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::config;
use crate::gateway::appliance::{self, Options};

/// `gateway [--config FILE] [--check]`
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Only say what is wrong with the configuration
    #[arg(long)]
    check: bool,
}

/// Runs a gateway in the foreground until it is ended, or checks its file.
///
/// # Errors
/// What is wrong with the file, or what serving says.
pub fn run(args: &GatewayArgs) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    if args.check {
        return writeln!(io::stdout(), "{}: no mistakes", args.config.display()).context("standard output");
    }
    super::logging::init_at(config.log.level);
    appliance::run(Options {
        config,
        credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        limits: super::device::limits()?,
    })
}
