//! `ping`: round trips to the gateway of a connection, through the tunnel, or to any host.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::time::timeout;

use super::admin::{print, print_json};
use crate::client::rounds::{Rounds, Summary};
use crate::config::profile;
use crate::gateway::client::{self, path};
use crate::gateway::failure::Failure;
use crate::net::echo::{Echo, Options};
use crate::net::name::InterfaceName;
use crate::sys::clock::boottime;
use crate::wire::echo::Fate;

/// Between two requests.
const APART: Duration = Duration::from_secs(1);
/// How long the last answer may take.
const LAST: Duration = Duration::from_secs(2);
/// Bytes of an IP packet: what ping(8) sends.
const SIZE: usize = 84;

/// `ping [NAME|HOST] [-c N] [--json]`
#[derive(Debug, Args)]
pub struct PingArgs {
    /// A connection of this host: its gateway, through the tunnel; or any host. May be left out where there is only
    /// one connection
    #[arg(value_name = "NAME|HOST")]
    whom: Option<String>,
    /// So many round trips, one a second
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// One JSON object at the end
    #[arg(long)]
    json: bool,
}

/// Does it. Exit codes: 0 something came back, 9 nothing did.
///
/// # Errors
/// There is no such connection or host; a socket that this user may not have.
pub fn run(args: &PingArgs) -> anyhow::Result<ExitCode> {
    let (what, options) = target(args.whom.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let summary = runtime.block_on(ping(args, &what, &options))?;
    if args.json {
        print_json(&json!({
            "of": what,
            "address": options.to.to_string(),
            "sent": summary.sent,
            "received": summary.received,
            "loss": summary.loss(),
            "rtt_ms": times(&summary),
        }))?;
    } else {
        print(&format!("{what}: {}\n", described(&summary)))?;
    }
    let code = if summary.received > 0 { 0 } else { Failure::NoAnswer.exit_code() };
    Ok(ExitCode::from(code))
}

/// Least, mean and greatest, for programs.
pub(super) fn times(summary: &Summary) -> Option<serde_json::Value> {
    let [least, mean, greatest] = summary.times?.map(millis);
    Some(json!({ "min": least, "avg": mean, "max": greatest }))
}

/// For people.
pub(super) fn described(summary: &Summary) -> String {
    let Summary { sent, received, .. } = summary;
    let lost = summary.loss() * 100.0;
    let counted = format!("{sent} sent, {received} came back, {lost:.0} % lost");
    match summary.times.map(|times| times.map(millis)) {
        Some([least, mean, greatest]) => {
            format!("{counted}, round trip {least:.2} to {greatest:.2} ms, mean {mean:.2}")
        }
        None => counted,
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What it is called, and where requests go.
fn target(whom: Option<&str>) -> anyhow::Result<(String, Options)> {
    let all = client::list().context("the connections of this host")?;
    let found = match whom {
        Some(whom) => all.iter().find(|(name, ..)| name.as_str() == whom),
        None => match all.as_slice() {
            [only] => Some(only),
            [] => bail!("this host has no connection (`ringway up`): say which host"),
            several => {
                let names: Vec<_> = several.iter().map(|(name, ..)| name.as_str()).collect();
                bail!("this host has several connections: say which, {}", names.join(", "))
            }
        },
    };
    match (found, whom) {
        (Some((name, profile, Some(_))), _) => gateway_of(name, profile),
        (Some((name, ..)), _) => {
            bail!(
                "{name} was killed: `ringway up` starts it again, `ringway down --force {name}` takes it back"
            )
        }
        (None, whom) => {
            let host = whom.unwrap_or_default();
            let to = address(host)?;
            Ok((host.to_owned(), Options { to, link: None, hops: None }))
        }
    }
}

/// The other end of a connection.
fn gateway_of(name: &InterfaceName, place: &str) -> anyhow::Result<(String, Options)> {
    let profile = profile::read(Path::new(place))?;
    let to = path::across(&profile).with_context(|| format!("{place}: nothing leads into the tunnel"))?;
    Ok((name.to_string(), Options { to, link: Some(name.clone()), hops: Some(path::ONE_HOP) }))
}

fn address(host: &str) -> anyhow::Result<IpAddr> {
    let mut found = (host, 0)
        .to_socket_addrs()
        .with_context(|| format!("{host} is no connection of this host, and no host that is known"))?;
    found.next().map(|place| place.ip()).with_context(|| format!("{host} has no address"))
}

async fn ping(args: &PingArgs, what: &str, options: &Options) -> anyhow::Result<Summary> {
    let mut echo = Echo::open(options).with_context(|| format!("{what}: ICMP needs CAP_NET_RAW (sudo)"))?;
    let mut rounds = Rounds::default();
    for sequence in 0..args.count {
        echo.send(sequence, SIZE).await.with_context(|| format!("{what} ({})", options.to))?;
        rounds.sent(sequence, boottime());
        let is_last = sequence + 1 == args.count;
        let end = Instant::now() + if is_last { LAST } else { APART };
        while !(is_last && rounds.is_idle()) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(answer) = timeout(left, echo.answer()).await else { break };
            let answer = answer.context("receiving")?;
            // One hop away is the gateway, whatever it says.
            if options.hops.is_none() && answer.fate != Fate::Replied {
                continue;
            }
            if let Some(took) = rounds.ended(answer.sequence, boottime()).filter(|_| !args.json) {
                print(&format!("{what}: {} after {:.2} ms\n", answer.sequence + 1, millis(took)))?;
            }
        }
    }
    Ok(rounds.summary())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_for_people_and_for_programs() {
        let times_of = Some([1, 2, 4].map(Duration::from_millis));
        let summary = Summary { sent: 4, received: 3, times: times_of };
        assert_eq!(
            described(&summary),
            "4 sent, 3 came back, 25 % lost, round trip 1.00 to 4.00 ms, mean 2.00"
        );
        assert_eq!(times(&summary).unwrap()["max"], 4.0);
        let silent = Summary { sent: 4, ..Summary::default() };
        assert_eq!((described(&silent).as_str(), times(&silent)), ("4 sent, 0 came back, 100 % lost", None));
    }

    #[test]
    fn what_is_no_connection_is_a_host() {
        let (what, options) = target(Some("127.0.0.1")).unwrap();
        assert_eq!((what.as_str(), options.to.to_string().as_str()), ("127.0.0.1", "127.0.0.1"));
        assert!(options.link.is_none() && options.hops.is_none());
        assert!(
            target(Some("no-such-host.invalid")).unwrap_err().to_string().contains("no host that is known")
        );
    }
}
