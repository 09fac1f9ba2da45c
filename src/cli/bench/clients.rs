//! `bench keys`, `bench clients`, `bench handshakes`.

use std::io::{self, BufWriter, Write as _};
use std::net::{SocketAddr, SocketAddrV4};
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{print, progress};
use crate::bench::clients::{self, Course, Traffic};
use crate::bench::fleet::Settings;
use crate::bench::identity::{self, Format, MAX_CLIENTS};
use crate::bench::latency::Quantiles;
use crate::bench::stop::Stop;
use crate::bench::{handshakes, leases, units};
use crate::types::{Prefix, PublicKey};

/// `bench keys --clients N [--seed S] [--format wg|toml]`
#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    /// How many
    #[arg(long, value_name = "NUMBER", value_parser = number_of_clients)]
    clients: usize,
    /// What the keys are made from; they are no secret
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// For `wg addconf`, or as sections of the gateway's file
    #[arg(long, value_enum, default_value = "wg")]
    format: Format,
}

/// Who the clients are.
#[derive(Debug, Args)]
struct FleetArgs {
    /// The gateway
    #[arg(long, value_name = "IP:PORT")]
    endpoint: SocketAddr,
    /// Its public key
    #[arg(long, value_name = "KEY")]
    gateway_key: PublicKey,
    /// How many; the gateway must have them as peers (`bench keys`)
    #[arg(long, value_name = "NUMBER", value_parser = number_of_clients)]
    clients: usize,
    /// What their keys are made from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// UDP sockets that they share, at most 64
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    sockets: usize,
    /// IPv4 addresses of this host that they send from in turn: a gateway limits handshakes by source (`ip route add
    /// local PREFIX dev lo` makes a prefix this host's)
    #[arg(long, value_name = "PREFIX")]
    sources: Option<Prefix>,
    /// Handshakes under way at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 128)]
    window: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `bench clients --endpoint … --gateway-key … --clients N --to IP:PORT …`
#[derive(Debug, Args)]
pub(super) struct ClientsArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Where traffic goes, inside the tunnel; without it sessions are only held
    #[arg(long, value_name = "IP:PORT")]
    to: Option<SocketAddrV4>,
    /// Bytes of payload of each datagram, 20 to 1392
    #[arg(long, value_name = "BYTES", default_value_t = 1372)]
    size: usize,
    /// Datagrams of a session in a row, 1 to 16, sealed side by side and sent as one run
    #[arg(long, value_name = "NUMBER", default_value_t = 16)]
    burst: usize,
    /// Datagrams per second over all sessions; without it as fast as one thread can
    #[arg(long, value_name = "NUMBER")]
    rate: Option<NonZeroU64>,
    /// How long, once all are in
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::time)]
    length: Duration,
    /// How long all may take to come in
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::time)]
    patience: Duration,
    /// Answer a cookie at once, not with the next retransmission, as WireGuard does
    #[arg(long)]
    eager: bool,
}

/// `bench handshakes --endpoint … --gateway-key … --clients N …`
#[derive(Debug, Args)]
pub(super) struct HandshakesArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::time)]
    length: Duration,
}

/// `bench leases --endpoint … --gateway-key … --clients N …`
#[derive(Debug, Args)]
pub(super) struct LeasesArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// How long, once all are in
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::time)]
    length: Duration,
    /// How long all may take to come in
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::time)]
    patience: Duration,
}

fn number_of_clients(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_CLIENTS).contains(number));
    number.ok_or_else(|| format!("'{text}' is no number from 1 to {MAX_CLIENTS}"))
}

impl FleetArgs {
    fn settings(&self) -> Settings {
        let Self { endpoint, gateway_key, clients, seed, sockets, sources, .. } = *self;
        Settings { endpoint, gateway_key, seed, clients, sockets, sources }
    }
}

/// Prints the peers.
///
/// # Errors
/// The standard output is closed.
pub(super) fn keys(args: &KeysArgs) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for peer in identity::peers(args.seed, args.clients, args.format) {
        out.write_all(peer.as_bytes()).context("standard output")?;
    }
    out.flush().context("standard output")
}

/// Has clients come in and send.
///
/// # Errors
/// They do not come in, or nothing can be sent.
pub(super) fn clients(args: &ClientsArgs) -> anyhow::Result<()> {
    let ClientsArgs { fleet, size, burst, rate, length, patience, eager, .. } = args;
    let traffic = args.to.map(|to| Traffic { to, size: *size, burst: *burst, rate: *rate });
    let course = Course { window: fleet.window, patience: *patience, traffic, length: *length };
    let report = clients::run(&fleet.settings(), &course, *eager, &Stop::on_signals()?, progress)?;
    print(fleet.json, &report, |report| {
        let tally = &report.tally;
        format!(
            "{} clients in after {:.3} s; {} handshakes, {} initiations, {} cookies\n{}\n\
             {:.1} s of traffic: {} sent ({:.0} a second), {} returned ({:.0} a second), {} reordered, {} refused\n\
             echo {}\n{:.2} s of processor time",
            report.clients,
            report.all_in_seconds,
            tally.handshakes,
            tally.initiations,
            tally.cookies,
            times("handshake", &report.handshake),
            report.seconds,
            tally.sent,
            report.sent_per_second,
            tally.returned,
            report.returned_per_second,
            tally.reordered,
            tally.refused,
            times("takes", &report.echo),
            report.cpu_seconds
        )
    })
}

/// Asks for leases.
///
/// # Errors
/// The clients do not come in, or nothing can be sent.
pub(super) fn leases(args: &LeasesArgs) -> anyhow::Result<()> {
    let LeasesArgs { fleet, length, patience } = args;
    let course = Course { window: fleet.window, patience: *patience, traffic: None, length: *length };
    let report = leases::run(&fleet.settings(), &course, &Stop::on_signals()?, progress)?;
    print(fleet.json, &report, |report| {
        format!(
            "{} leases in {:.1} s: {:.0} a second; {} refused, {} unanswered\n{}",
            report.tally.leases,
            report.seconds,
            report.per_second,
            report.tally.refusals,
            report.unanswered,
            times("answer", &report.answer)
        )
    })
}

/// Shakes hands.
///
/// # Errors
/// Nothing can be sent.
pub(super) fn handshakes(args: &HandshakesArgs) -> anyhow::Result<()> {
    let HandshakesArgs { fleet, length } = args;
    let stop = Stop::on_signals()?;
    let report = handshakes::run(&fleet.settings(), fleet.window, *length, &stop, progress)?;
    print(fleet.json, &report, |report| {
        format!(
            "{} handshakes in {:.1} s: {:.0} a second; {} initiations, {} cookies, {} unanswered\n{}\n\
             {:.2} s of processor time",
            report.handshakes,
            report.seconds,
            report.per_second,
            report.tally.initiations,
            report.tally.cookies,
            report.unanswered,
            times("handshake", &report.handshake),
            report.cpu_seconds
        )
    })
}

fn times(what: &str, quantiles: &Quantiles) -> String {
    let Quantiles { p50_us, p99_us, max_us, .. } = quantiles;
    format!("{what} {p50_us:.0} us (median), {p99_us:.0} us (99 of 100), {max_us:.0} us (all)")
}
