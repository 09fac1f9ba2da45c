//! `status`: the connections that `up` made.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
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
use crate::sys::clock::realtime;

/// `status [NAME] [--json] [--watch]`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// This connection only
    name: Option<InterfaceName>,
    /// A list of JSON objects; with a name one object
    #[arg(long)]
    json: bool,
    /// Go on, and print each connection whose status, gateway or problem changes: with --json one object a line
    #[arg(long)]
    watch: bool,
}

/// Between two looks of a watch.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// One connection.
struct Connection {
    name: InterfaceName,
    /// What a watch tells of: the rest changes all the time.
    status: String,
    gateways: Vec<Option<String>>,
    problem: Option<String>,
    text: String,
    object: Value,
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
    if args.watch {
        return watch(args);
    }
    let mut all = look(args.name.as_ref())?;
    if let Some(name) = args.name.as_ref().filter(|_| all.is_empty()) {
        return Err(VpnError::NoSuchVpn(name.clone()).into());
    }
    match (args.json, &args.name) {
        (true, Some(_)) => print_json(&all.pop().map(|connection| connection.object)),
        (true, None) => print_json(&all.into_iter().map(|connection| connection.object).collect::<Vec<_>>()),
        (false, _) => print(&all.into_iter().map(|connection| connection.text).collect::<String>()),
    }
}

/// Prints them as they are, and then what changes, until nobody reads it or the program is ended.
fn watch(args: &StatusArgs) -> anyhow::Result<()> {
    let mut before = Vec::<Connection>::new();
    loop {
        let mut now = look(args.name.as_ref())?;
        let changed = changed(&before, &mut now);
        for (text, mut object) in changed {
            object["time"] = realtime().as_secs().into();
            let line = if args.json { format!("{object}\n") } else { text };
            let mut out = std::io::stdout().lock();
            match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("standard output")?,
            }
        }
        before = now;
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What to say of connections since the last look. One that was up and ends, or is gone, is stopped.
fn changed(before: &[Connection], now: &mut [Connection]) -> Vec<(String, Value)> {
    let stopped = Status::Stopped.to_string();
    let is_up = |was: &Connection| was.status != stopped && was.status != Status::NotStarted.to_string();
    let told = |name: &InterfaceName| {
        let object = json!({ "name": name.as_str(), "status": stopped, "peers": [] });
        (format!("{name}: {stopped}\n"), object)
    };
    let mut changes = Vec::new();
    for was in before.iter().filter(|was| is_up(was) && now.iter().all(|it| it.name != was.name)) {
        changes.push(told(&was.name));
    }
    for it in now {
        let was = before.iter().find(|was| was.name == it.name);
        if it.status == Status::NotStarted.to_string()
            && was.is_some_and(|was| is_up(was) || was.status == stopped)
        {
            (it.text, it.object) = told(&it.name);
            it.status.clone_from(&stopped);
        }
        let watched = |one: &Connection| (one.status.clone(), one.gateways.clone(), one.problem.clone());
        if was.is_none_or(|was| watched(was) != watched(it)) {
            changes.push((it.text.clone(), it.object.clone()));
        }
    }
    changes
}

/// All connections, or the one of this name.
fn look(wanted: Option<&InterfaceName>) -> anyhow::Result<Vec<Connection>> {
    let mut all = client::list()?;
    all.retain(|(name, ..)| wanted.is_none_or(|wanted| wanted == name));
    let each = all.into_iter().map(|(name, profile, process)| {
        let Some(process) = process else {
            let text = format!("{name}: killed; `ringway down --force {name}` takes back what it left\n");
            let object =
                json!({ "name": name.as_str(), "profile": profile, "status": "killed", "peers": [] });
            let status = "killed".to_owned();
            return Ok(Connection { name, status, gateways: Vec::new(), problem: None, text, object });
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
        let mut text = format!("{name}: {status} ({profile})\n");
        if let Some(problem) = &lease.problem {
            let _ = writeln!(text, "  problem: {problem}");
        }
        lines.iter().for_each(|line| text.push_str(&described(line)));
        text.push_str(&leased(&lease));
        let object = json!({
            "name": name.as_str(),
            "profile": profile,
            "process": process.parse::<u32>().ok(),
            "status": status.to_string(),
            "problem": lease.problem,
            "lease": lease.until.map(|until| json!({ "addresses": lease.addresses, "until": until })),
            "peers": lines.iter().map(object).collect::<Vec<_>>(),
        });
        let gateways = lines.into_iter().map(|line| line.peer.endpoint).collect();
        let (status, problem) = (status.to_string(), lease.problem);
        Ok(Connection { name, status, gateways, problem, text, object })
    });
    each.collect()
}

fn lines(peers: Vec<ShowPeer>) -> Vec<Line> {
    let now = SystemTime::now();
    let each = peers.into_iter().map(|peer| Line {
        status: Status::of_session(&peer, now),
        age: peer.handshake_age(now),
        peer,
    });
    each.collect()
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

    fn connection(name: &str, status: &str, gateway: &str) -> Connection {
        Connection {
            name: name.parse().unwrap(),
            status: status.to_owned(),
            gateways: vec![Some(gateway.to_owned())],
            problem: None,
            text: format!("{name}: {status}\n"),
            object: json!({ "status": status }),
        }
    }

    #[test]
    fn a_watch_tells_of_changes_once() {
        let mut before = Vec::new();
        let mut told = |now: &[(&str, &str, &str)]| {
            let mut now: Vec<_> = now.iter().map(|(name, status, at)| connection(name, status, at)).collect();
            let told: String = changed(&before, &mut now).into_iter().map(|(text, _)| text).collect();
            before = now;
            told
        };
        assert_eq!(told(&[("a", "not started", "x")]), "a: not started\n");
        assert_eq!(told(&[("a", "started", "x"), ("b", "started", "x")]), "a: started\nb: started\n");
        assert_eq!(told(&[("a", "started", "x"), ("b", "started", "y")]), "b: started\n");
        assert_eq!(told(&[("a", "started", "x"), ("b", "started", "y")]), "");
        assert_eq!(told(&[("a", "not started", "x")]), "b: stopped\na: stopped\n");
        assert_eq!(told(&[("a", "not started", "x")]), "");
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[("a", "killed", "x")]), "a: killed\n");
        assert_eq!(told(&[]), "a: stopped\n");
    }
}
