//! `ringway gateway`: the appliance of one file.

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::logging;
use crate::config::{self, Io, LogFormat};
use crate::crypto::aead::ENCRYPTS;
use crate::gateway::appliance::{self, Options};
use crate::gateway::reload::Source;

/// `gateway [--config FILE] [--check] [--log LEVEL] [--log-format FORMAT] [--io IO]`
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The least level that is logged: silent, error, warn, info, debug
    #[arg(long, value_name = "LEVEL", value_parser = logging::level_argument)]
    log: Option<LevelFilter>,
    /// How a line of the log looks: text, json
    #[arg(long, value_name = "FORMAT", value_parser = logging::format_argument)]
    log_format: Option<LogFormat>,
    /// What workers wait with, whatever the file says: auto, uring, poll
    #[arg(long, value_name = "IO")]
    io: Option<Io>,
    /// Only say what is wrong with the configuration
    #[arg(long)]
    check: bool,
}

/// Runs a gateway in the foreground until it is ended, or checks its file.
///
/// # Errors
/// What is wrong with the file, or what serving says.
pub fn run(args: &GatewayArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        ENCRYPTS,
        "this build encrypts nothing and is for measurements only: it does not run as a gateway"
    );
    let mut config = config::load(&args.config)?;
    let io = args.io;
    config.io = io.unwrap_or(config.io);
    if args.check {
        return writeln!(io::stdout(), "{}: no mistakes", args.config.display()).context("standard output");
    }
    let level = args.log.unwrap_or_else(|| logging::level_of(config.log.level));
    logging::start(level, args.log_format.unwrap_or(config.log.format));
    let path = std::path::absolute(&args.config).context("the present directory")?;
    let file = path.clone();
    let read = move || {
        let mut config = config::load_again(&file)?;
        config.io = io.unwrap_or(config.io);
        Ok(config)
    };
    // What the command line says of the log goes on before the file.
    let fixed = args.log.is_some();
    let set_level = move |level| {
        if !fixed {
            logging::set_level(logging::level_of(level));
        }
    };
    appliance::run(Options {
        config,
        source: Source { path, read: Box::new(read), set_level: Box::new(set_level) },
        credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        limits: super::device::limits()?,
        each_second: logging::tick,
    })
}
