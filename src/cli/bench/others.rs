//! `bench flood`, `bench echo`.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;

use super::{print, progress};
use crate::bench::echo::Echo;
use crate::bench::stop::Stop;
use crate::bench::{flood, units};
use crate::types::{Prefix, PublicKey};

/// `bench flood --endpoint … --gateway-key … --rate N …`
#[derive(Debug, Args)]
pub(super) struct FloodArgs {
    /// The gateway
    #[arg(long, value_name = "IP:PORT")]
    endpoint: SocketAddr,
    /// Its public key
    #[arg(long, value_name = "KEY")]
    gateway_key: PublicKey,
    /// Initiations per second
    #[arg(long, value_name = "NUMBER")]
    rate: NonZeroU64,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::time)]
    length: Duration,
    /// IPv4 addresses of this host that they come from in turn (`ip route add local PREFIX dev lo`)
    #[arg(long, value_name = "PREFIX")]
    sources: Option<Prefix>,
    /// What they are made from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `bench echo --listen IP:PORT [--count]`
#[derive(Debug, Args)]
pub(super) struct EchoArgs {
    /// Where
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Send nothing back
    #[arg(long)]
    count: bool,
    /// End after so long; else at SIGTERM or SIGINT
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    length: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Floods.
///
/// # Errors
/// Nothing can be sent.
pub(super) fn flood(args: &FloodArgs) -> anyhow::Result<()> {
    let FloodArgs { endpoint, gateway_key, rate, length, sources, seed, json } = *args;
    let settings = flood::Settings { endpoint, gateway_key, rate, length, sources, seed };
    progress(&format!("{rate} forged initiations a second for {} s", length.as_secs_f64()));
    print(json, &flood::run(&settings, &Stop::on_signals()?)?, |report| {
        format!(
            "{} sent in {:.1} s: {:.0} a second; {} refused by the kernel, {} answers, {:.2} s of processor time",
            report.sent,
            report.seconds,
            report.per_second,
            report.refused,
            report.answers,
            report.cpu_seconds
        )
    })
}

/// Answers or counts.
///
/// # Errors
/// An address that cannot be bound.
pub(super) fn echo(args: &EchoArgs) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let echo = Echo::open(args.listen, !args.count)?;
    progress(&format!("listening at {}", echo.address()?));
    print(args.json, &echo.run(args.length, &stop)?, |report| {
        format!(
            "{} came in {:.1} s: {:.0} a second, {} bytes of payload; {} went back; {} clients, {} reordered",
            report.received,
            report.seconds,
            report.per_second,
            report.received_bytes,
            report.returned,
            report.clients,
            report.reordered
        )
    })
}
