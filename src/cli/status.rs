//! `status`: the connections that `up` made.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Value, json};

use super::admin::{print, print_json};
use super::report;
use super::show::{ago, bytes};
use crate::client::error::{Status, VpnError};
use crate::control::socket::DIRECTORY;
use crate::control::uapi::format::ShowPeer;
use crate::gateway::client::{self, LeaseState};
use crate::net::name::InterfaceName;
use crate::noise::timers::Limits;

/// `status [NAME] [--json]`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// This connection only
    name: Option<InterfaceName>,
    /// A list of JSON objects; with a name one object
    #[arg(long)]
    json: bool,
}

/// One gateway of a connection.
struct Line {
    status: Status,
    peer: ShowPeer,
    /// Since the last handshake.
    age: Option<Duration>,
}

/// Prints them.
///
/// # Errors
/// There is no such connection; a socket that this user may not open.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let mut all = client::list()?;
    if let Some(name) = &args.name {
        all.retain(|(found, ..)| found == name);
        if all.is_empty() {
            return Err(VpnError::NoSuchVpn(name.clone()).into());
        }
    }
    let (mut text, mut objects) = (String::new(), Vec::new());
    for (name, profile, process) in all {
        let Some(process) = process else {
            let _ = writeln!(text, "{name}: killed; `ringway down --force {name}` takes back what it left");
            objects
                .push(json!({ "name": name.as_str(), "profile": profile, "status": "killed", "peers": [] }));
            continue;
        };
        let (status, lines) = match report::ask(Path::new(DIRECTORY), &name) {
            Ok(report) => {
                let lines = lines(report.show.peers);
                let started = lines.iter().any(|line| line.status == Status::Started);
                (if started { Status::Started } else { Status::ConnLost }, lines)
            }
            Err(error) if report::is_denied(&error) => return Err(error),
            // It starts, or it ends.
            Err(_) => (Status::NotStarted, Vec::new()),
        };
        let lease = client::state(&name).unwrap_or_default();
        let _ = writeln!(text, "{name}: {status} ({profile})");
        if let Some(problem) = &lease.problem {
            let _ = writeln!(text, "  problem: {problem}");
        }
        for line in &lines {
            text.push_str(&described(line));
        }
        text.push_str(&leased(&lease));
        objects.push(json!({
            "name": name.as_str(),
            "profile": profile,
            "process": process.parse::<u32>().ok(),
            "status": status.to_string(),
            "problem": lease.problem,
            "lease": lease.until.map(|until| json!({ "addresses": lease.addresses, "until": until })),
            "peers": lines.iter().map(object).collect::<Vec<_>>(),
        }));
    }
    match (args.json, &args.name) {
        (true, Some(_)) => print_json(&objects.pop().unwrap_or_default()),
        (true, None) => print_json(&Value::from(objects)),
        (false, _) => print(&text),
    }
}

fn lines(peers: Vec<ShowPeer>) -> Vec<Line> {
    let now = SystemTime::now();
    let each = peers.into_iter().map(|peer| {
        let age = report::handshake_age(&peer, now);
        Line { status: status(&peer, age), peer, age }
    });
    each.collect()
}

/// Without a keepalive a session may be old because nobody had anything to say.
fn status(peer: &ShowPeer, age: Option<Duration>) -> Status {
    let fresh = Limits::PAPER.reject_after_time;
    match age {
        _ if peer.lost => Status::ConnLost,
        Some(age) if age <= fresh || peer.persistent_keepalive.is_none() => Status::Started,
        _ => Status::ConnLost,
    }
}

fn described(Line { peer, age, .. }: &Line) -> String {
    let endpoint = peer.endpoint.as_deref().unwrap_or("an unknown place");
    let handshake =
        age.map_or_else(|| "no handshake".to_owned(), |age| format!("handshake {}", ago(age.as_secs())));
    format!(
        "  gateway {endpoint}: {handshake}, {} received, {} sent\n",
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes)
    )
}

/// What the gateway has given, and for how long.
fn leased(LeaseState { addresses, until, .. }: &LeaseState) -> String {
    let Some(until) = until else { return String::new() };
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = until.saturating_sub(now.as_secs());
    format!("  lease {}: {left} s left\n", addresses.join(", "))
}

fn object(Line { status, peer, age }: &Line) -> Value {
    json!({
        "public_key": peer.public_key,
        "endpoint": peer.endpoint,
        "status": status.to_string(),
        "handshake_age": age.map(|age| age.as_secs()),
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_session_is_lost_only_if_it_should_be_young() {
        let peer = |persistent_keepalive| ShowPeer { persistent_keepalive, ..ShowPeer::default() };
        let seconds = |age| Some(Duration::from_secs(age));
        assert_eq!(status(&peer(None), None), Status::ConnLost);
        assert_eq!(status(&peer(Some(25)), seconds(180)), Status::Started);
        assert_eq!(status(&peer(Some(25)), seconds(181)), Status::ConnLost);
        assert_eq!(status(&peer(None), seconds(3600)), Status::Started);
        assert_eq!(status(&ShowPeer { lost: true, ..peer(None) }, seconds(9)), Status::ConnLost);
    }
}
