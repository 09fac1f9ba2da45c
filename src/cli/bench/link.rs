//! `bench link`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;

use super::{print, progress};
use crate::bench::link::ceiling::{self, Ceiling};
use crate::bench::link::schedule::Manners;
use crate::bench::link::{Counts, Link, Report, Settings};
use crate::bench::stop::Stop;
use crate::bench::units;

/// `bench link --listen A --to B [--delay T] [--loss P] [--rate R] …`, or `bench link --ceiling …`
#[derive(Debug, Args)]
pub(super) struct LinkArgs {
    /// Where clients send to
    #[arg(long, value_name = "IP:PORT", required_unless_present = "ceiling")]
    listen: Option<SocketAddr>,
    /// The gateway that it is forwarded to
    #[arg(long, value_name = "IP:PORT", required_unless_present = "ceiling")]
    to: Option<SocketAddr>,
    /// What every datagram is delayed by, each way: 20ms; at most 10s
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = units::time)]
    delay: Duration,
    /// How many datagrams are lost, each way: 1%
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = units::share)]
    loss: u32,
    /// What goes through at most, each way, IP and UDP headers counted: 200mbit
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    rate: Option<NonZeroU64>,
    /// With a rate: a datagram that would wait longer for those before it is dropped
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = units::time)]
    backlog: Duration,
    /// Decides which datagrams are lost: the same seed, the same losses
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Clients that are served at a time, at most 4096
    #[arg(long, value_name = "NUMBER", default_value_t = 1024)]
    clients: usize,
    /// End after so long; else at SIGTERM or SIGINT
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    length: Option<Duration>,
    /// Measure what such a link carries at most, over loopback, 2 s (--length) for each kind of load
    #[arg(long, conflicts_with_all = ["listen", "to"])]
    ceiling: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Forwards until it is ended, then says what went through; or measures the ceiling.
///
/// # Errors
/// An address that cannot be bound, or settings beyond their limits.
pub(super) fn run(args: &LinkArgs) -> anyhow::Result<()> {
    let LinkArgs { delay, loss, rate, backlog, seed, clients, length, json, .. } = *args;
    let manners = Manners { delay, loss, rate, backlog, seed };
    let (Some(listen), Some(to)) = (args.listen, args.to) else {
        let length = length.unwrap_or(Duration::from_secs(2));
        let said =
            |shape: &ceiling::Shape| progress(&format!("{} for {} s", shape.name, length.as_secs_f64()));
        return print(json, &ceiling::measure(manners, length, said)?, |all| ceilings(all));
    };
    let stop = Stop::on_signals()?;
    let link = Link::open(Settings { listen, to, manners, clients, length })?;
    progress(&format!("forwarding between {} and {to}", link.address()?));
    print(json, &link.run(&stop)?, text)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{} clients, {:.1} s, {:.2} s of processor time, {} datagrams turned away\n",
        report.clients, report.seconds, report.cpu_seconds, report.turned_away
    );
    for (name, counts) in [("to the gateway", &report.up), ("to clients", &report.down)] {
        let Counts { received, lost, overflowed, sent, sent_bytes, refused, waiting, .. } = counts;
        let _ = writeln!(
            text,
            "{name}: {received} came, {lost} lost, {overflowed} overflowed, {sent} sent ({sent_bytes} bytes), \
             {refused} refused, {waiting} still waiting; late by {} us, {} us at most",
            counts.late_us_mean, counts.late_us_max
        );
    }
    text
}

fn ceilings(all: &[Ceiling]) -> String {
    let mut text =
        "Over loopback, sender and receiver on the same cores; a core of its own could carry:\n".to_owned();
    for Ceiling { shape, per_second, gbit_s, per_core_second, per_core_gbit_s, .. } in all {
        let _ = writeln!(
            text,
            "{:<26} {:>8.0} kpps, {gbit_s:>6.2} Gbit/s; per core {:>8.0} kpps, {per_core_gbit_s:>6.2} Gbit/s",
            shape.name,
            per_second / 1e3,
            per_core_second / 1e3
        );
    }
    text
}
