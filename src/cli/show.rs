//! `show`: what a running device says of itself, as text like `wg show`'s or as JSON.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::report::{self, Rates, Report};
use crate::control::socket::DIRECTORY;
use crate::net::name::InterfaceName;

mod text;

pub use text::{ago, bytes, duration};

/// Time between the two reports of `--rates`.
const INTERVAL: Duration = Duration::from_secs(1);

/// `show [--json] [--rates] [-i IFNAME]…`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// One JSON object per device and line
    #[arg(long)]
    json: bool,
    /// Ask twice, a second apart, and show rates as well
    #[arg(long)]
    rates: bool,
    /// This device only; may be repeated
    #[arg(short, long = "interface", value_name = "IFNAME")]
    interface: Vec<InterfaceName>,
    /// These devices only
    #[arg(value_name = "IFNAME")]
    names: Vec<InterfaceName>,
}

/// Prints the named devices, or every device of this host that is Ringway's.
///
/// # Errors
/// A named device is not served, or not by Ringway; a socket that this user may not open.
pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let directory = Path::new(DIRECTORY);
    let wanted: Vec<_> = args.interface.iter().chain(&args.names).cloned().collect();
    let mut reports = report::devices(directory, &wanted)?;
    let mut rates = Vec::new();
    if args.rates && !reports.is_empty() {
        std::thread::sleep(INTERVAL);
        let names: Vec<_> = reports.iter().map(|report| report.name.clone()).collect();
        let later = report::devices(directory, &names)?;
        rates = reports.iter().zip(&later).map(|(before, after)| Rates::between(before, after)).collect();
        reports = later;
    }
    let mut out = io::stdout().lock();
    let printed = reports.iter().enumerate().try_for_each(|(place, report)| {
        let rates = rates.get(place);
        if args.json {
            return writeln!(out, "{}", json(report, rates));
        }
        let gap = if place > 0 { "\n" } else { "" };
        write!(out, "{gap}{}", text::paint(text::device(report, rates, SystemTime::now()), colour()))
    });
    match printed {
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("standard output"),
    }
}

/// The answer as it came, with the device's name and what was measured.
fn json(report: &Report, rates: Option<&Rates>) -> Value {
    let mut json = report.json.clone();
    json["interface"] = report.name.as_str().into();
    if let Some(rates) = rates.and_then(|rates| serde_json::to_value(rates).ok()) {
        json["rates"] = rates;
    }
    json
}

/// Colours go to a terminal only, and not where `NO_COLOR` is set (<https://no-color.org>).
pub fn colour() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
}

#[cfg(test)]
mod tests;
