//! `store`: looks at a gateway's store, copies it, puts a copy in its place.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::config;
use crate::store::maintenance::{self, Content};

/// `store [--config FILE | --path FILE] check | backup FILE | restore FILE`
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The gateway's file, which names the store
    #[arg(short, long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The store itself, whatever the gateway's file says
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "config")]
    path: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Look at all of it; a gateway may run
    Check,
    /// Copy it into a new file; a gateway may run
    Backup {
        /// The new file
        file: PathBuf,
    },
    /// Put a backup in its place, and the present one beside it; no gateway may run
    Restore {
        /// The backup
        file: PathBuf,
    },
}

/// Does it, and says what is in the store.
///
/// # Errors
/// A store that is missing, damaged, in use, or none.
pub fn run(args: &StoreArgs) -> anyhow::Result<()> {
    let path = match &args.path {
        Some(path) => std::path::absolute(path).context("the present directory")?,
        None => config::load_again(&args.config)?.store.path,
    };
    let text = match &args.what {
        What::Check => format!("{}: no mistakes, {}", path.display(), text(&maintenance::check(&path)?)),
        What::Backup { file } => {
            let content = maintenance::backup(&path, file)?;
            format!("{}: {}", file.display(), text(&content))
        }
        What::Restore { file } => {
            let (content, aside) = maintenance::restore(&path, file)?;
            let kept = aside.map(|aside| format!("; what was there is {}", aside.display()));
            format!("{}: {}{}", path.display(), text(&content), kept.unwrap_or_default())
        }
    };
    writeln!(io::stdout(), "{text}").context("standard output")
}

fn text(content: &Content) -> String {
    let Content { schema, leases, reservations, history, peers, invites } = content;
    format!(
        "schema {schema}, {peers} peers, {invites} invites, {leases} addresses, {reservations} reservations, {history} \
         entries of history"
    )
}
