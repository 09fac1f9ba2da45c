//! `ringway bench`: measures a gateway from outside. What is measured goes to the standard output, as text or JSON;
//! progress goes to the standard error.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

mod clients;
mod link;
mod others;

/// `bench WHAT`
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Forward UDP between clients and a gateway with delay, loss and a rate, as a long path does
    Link(link::LinkArgs),
    /// Print the peers that the clients of a seed are, for `wg addconf` or the gateway's file
    Keys(clients::KeysArgs),
    /// Be many WireGuard clients with real handshakes and traffic over all their sessions
    Clients(clients::ClientsArgs),
    /// Shake hands as fast as the gateway answers, without using a session
    Handshakes(clients::HandshakesArgs),
    /// Be many clients that ask for leases through their tunnels
    Leases(clients::LeasesArgs),
    /// Send forged initiations from many addresses
    Flood(others::FloodArgs),
    /// Answer UDP behind the gateway, or only count it
    Echo(others::EchoArgs),
}

/// Runs one of them.
///
/// # Errors
/// What cannot be opened or sent, and why.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Link(args) => link::run(args),
        What::Keys(args) => clients::keys(args),
        What::Clients(args) => clients::clients(args),
        What::Handshakes(args) => clients::handshakes(args),
        What::Leases(args) => clients::leases(args),
        What::Flood(args) => others::flood(args),
        What::Echo(args) => others::echo(args),
    }
}

/// Writes a result to the standard output: as JSON on one line, or as the text that `text` makes of it.
fn print<T: Serialize>(json: bool, result: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    let mut text = if json { serde_json::to_string(result)? } else { text(result) };
    text.truncate(text.trim_end().len());
    writeln!(io::stdout(), "{text}").context("standard output")
}

/// A line about what is going on, to the standard error.
fn progress(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
