//! `status`: the connections that `up` made.

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
use crate::gateway::client;
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
    /// Go on, and print each connection whose status or gateway changes: with --json one object a line
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

/// Prints them as they are, and then what changes, until nobody reads it or the program is ended. A connection that ends
/// is one that stopped.
fn watch(args: &StatusArgs) -> anyhow::Result<()> {
    let mut before = Vec::<Connection>::new();
    loop {
        let now = look(args.name.as_ref())?;
        let is_new = |connection: &&Connection| {
            let was = before.iter().find(|was| was.name == connection.name);
            was.is_none_or(|was| (&was.status, &was.gateways) != (&connection.status, &connection.gateways))
        };
        let gone = before.iter().filter(|was| now.iter().all(|connection| connection.name != was.name));
        let stopped = gone.map(|was| {
            let name = was.name.as_str();
            let text = format!("{name}: {}\n", Status::Stopped);
            (text, json!({ "name": name, "status": Status::Stopped.to_string(), "peers": [] }))
        });
        let changed = now.iter().filter(is_new).map(|it| (it.text.clone(), it.object.clone()));
        for (text, mut object) in stopped.chain(changed) {
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

/// All connections, or the one of this name.
fn look(wanted: Option<&InterfaceName>) -> anyhow::Result<Vec<Connection>> {
    let mut all = client::list()?;
    all.retain(|(name, ..)| wanted.is_none_or(|wanted| wanted == name));
    let each = all.into_iter().map(|(name, profile, process)| {
        let Some(process) = process else {
            let text = format!("{name}: killed; `ringway down --force {name}` takes back what it left\n");
            let object =
                json!({ "name": name.as_str(), "profile": profile, "status": "killed", "peers": [] });
            return Ok(Connection { name, status: "killed".to_owned(), gateways: Vec::new(), text, object });
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
        let mut text = format!("{name}: {status} ({profile})\n");
        lines.iter().for_each(|line| text.push_str(&described(line)));
        let object = json!({
            "name": name.as_str(),
            "profile": profile,
            "process": process.parse::<u32>().ok(),
            "status": status.to_string(),
            "peers": lines.iter().map(object).collect::<Vec<_>>(),
        });
        let gateways = lines.into_iter().map(|line| line.peer.endpoint).collect();
        Ok(Connection { name, status: status.to_string(), gateways, text, object })
    });
    each.collect()
}

fn lines(peers: Vec<ShowPeer>) -> Vec<Line> {
    let now = SystemTime::now();
    let each = peers.into_iter().map(|peer| {
        let age = report::handshake_age(&peer, now);
        let status = Status::of_session(age, peer.persistent_keepalive.is_some());
        Line { status, peer, age }
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
