//! `peer`: people and devices of a running gateway, over its admin API. A client's private key is made here, shown once
//! and kept by nobody: the gateway hears the public one only.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;
use zeroize::Zeroizing;

use self::conf::{Draft, Secrets};
use super::admin::{Client, Which, escaped, print, print_json};
use super::keys;
use super::say;
use super::show::{ago, bytes, duration};
use crate::control::admin::wire::{Changes, GatewayView, Key, NewPeer, Origin, PeerView, Psk, State};
use crate::crypto::x25519::PrivateKey;
use crate::types::PublicKey;

pub(super) mod conf;

/// `peer [-i IFNAME] [--json] VERB`
#[derive(Debug, Args)]
pub struct PeerArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a peer, and print its configuration and a QR code
    Add(AddArgs),
    /// All peers, of the file and of the store
    List,
    /// One peer
    Show {
        /// Its name or its public key
        name: String,
    },
    /// Change a peer
    Set(SetArgs),
    /// Keep a peer, and let it in no more
    Disable {
        /// Its name
        name: String,
    },
    /// Let a peer in again
    Enable {
        /// Its name
        name: String,
    },
    /// Give a peer another name
    Rename {
        /// Its name
        name: String,
        /// Its new name
        new: String,
    },
    /// Remove a peer, and give its address to others
    Remove {
        /// Its name
        name: String,
    },
    /// Give a peer another key, and print its configuration anew: the old one ends
    RotateKey(RotateArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// What people call it
    name: String,
    /// Its address; may be given for each family. Without it, one of a pool
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// The pool that its address is of
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "address")]
    pool: String,
    /// Its group, by which pools are chosen
    #[arg(long, default_value = "", hide_default_value = true)]
    group: String,
    /// When it ends by itself: 12h, 30d, 8w
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires: Option<Expires>,
    /// A preshared key beside the others
    #[arg(long)]
    psk: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Its name
    name: String,
    /// Its address; may be given for each family, and is in the place of all
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// Another address of a pool
    #[arg(long, conflicts_with = "address")]
    any_address: bool,
    /// An address of this pool
    #[arg(long, conflicts_with_all = ["address", "any_address"])]
    pool: Option<String>,
    /// Its group
    #[arg(long)]
    group: Option<String>,
    /// When it ends by itself, from now: 12h, 30d, 8w; or never
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires: Option<Expires>,
    /// Another preshared key: it is printed, this time only
    #[arg(long)]
    psk: bool,
    /// No preshared key any more
    #[arg(long, conflicts_with = "psk")]
    no_psk: bool,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// Its name
    name: String,
    /// A preshared key beside the others; who has one gets a new one in any case
    #[arg(long)]
    psk: bool,
    #[command(flatten)]
    output: Output,
}

/// Where the configuration goes.
#[derive(Debug, Args)]
struct Output {
    /// The public key of whoever makes a pair himself; otherwise one is made here
    #[arg(long, value_name = "KEY", conflicts_with = "qr")]
    public_key: Option<PublicKey>,
    /// A new file for the configuration, mode 0600, in place of the standard output
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// A new file for the QR code, FILE.png or FILE.svg, mode 0600
    #[arg(long, value_name = "FILE")]
    qr: Option<PathBuf>,
}

/// When a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expires {
    Never,
    /// Seconds from now.
    In(u32),
}

/// `90m`, `12h`, `30d`, `8w`, `never`.
pub(super) fn time(text: &str) -> Result<Expires, String> {
    if text == "never" {
        return Ok(Expires::Never);
    }
    let wrong = || format!("'{text}' is no time: a number and m, h, d or w is, such as 30d; or never");
    let units = [("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];
    let found = units.iter().find_map(|(unit, worth)| Some((text.strip_suffix(unit)?, *worth)));
    let (number, worth) =
        found.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(wrong)?;
    let seconds = number.parse::<u32>().ok().and_then(|number| number.checked_mul(worth));
    seconds.filter(|seconds| *seconds > 0).map(Expires::In).ok_or_else(wrong)
}

impl Expires {
    /// Seconds since 1970.
    pub(super) fn moment(self) -> Option<u32> {
        match self {
            Self::Never => None,
            Self::In(seconds) => Some(now().saturating_add(seconds)),
        }
    }
}

pub(super) fn now() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

/// Does it.
///
/// # Errors
/// What the gateway says is wrong, or nobody to ask.
pub fn run(args: &PeerArgs) -> anyhow::Result<()> {
    let (client, json) = (args.which.client()?, args.which.json);
    match &args.verb {
        Verb::Add(add) => run_add(&client, add, json),
        Verb::List => {
            let peers: Vec<PeerView> = client.all("/v1/peers")?;
            if json { print_json(&peers) } else { print(&table(&peers)) }
        }
        Verb::Show { name } => shown(&client.get(&path(name))?, json),
        Verb::Set(set) => run_set(&client, set, json),
        Verb::Disable { name } => {
            change(&client, name, &Changes { disabled: Some(true), ..Changes::default() }, json)
        }
        Verb::Enable { name } => {
            change(&client, name, &Changes { disabled: Some(false), ..Changes::default() }, json)
        }
        Verb::Rename { name, new } => {
            change(&client, name, &Changes { name: Some(new.clone()), ..Changes::default() }, json)
        }
        Verb::Remove { name } => {
            client.delete(&path(name))?;
            if json { print_json(&json!({ "removed": name })) } else { print(&format!("{name}: removed\n")) }
        }
        Verb::RotateKey(rotate) => run_rotate(&client, rotate, json),
    }
}

fn path(name: &str) -> String {
    format!("/v1/peers/{}", escaped(name))
}

fn change(client: &Client, name: &str, changes: &Changes, json: bool) -> anyhow::Result<()> {
    shown(&client.send(Method::PATCH, &path(name), changes)?, json)
}

fn run_add(client: &Client, add: &AddArgs, json: bool) -> anyhow::Result<()> {
    let gateway: GatewayView = client.get("/v1/gateway")?;
    let papers = Papers::begin(&add.output, add.psk)?;
    let wanted = NewPeer {
        public_key: Key(papers.public_key),
        preshared_key: papers.secrets.preshared_key.clone().map(Psk),
        addresses: add.address.clone(),
        pool: add.pool.clone(),
        group: add.group.clone(),
        expires: add.expires.and_then(Expires::moment),
    };
    let made = client.send(Method::PUT, &path(&add.name), &wanted);
    let peer: PeerView = made.with_context(|| format!("{:?} is not made", add.name))?;
    papers.hand_out(&gateway, &peer, json)
}

fn run_set(client: &Client, set: &SetArgs, json: bool) -> anyhow::Result<()> {
    let key = set.psk.then(keys::random).transpose()?;
    let changes = Changes {
        addresses: (set.any_address || !set.address.is_empty()).then(|| set.address.clone()),
        pool: set.pool.clone(),
        group: set.group.clone(),
        expires: set.expires.map(Expires::moment),
        preshared_key: (set.psk || set.no_psk).then(|| key.clone().map(Psk)),
        ..Changes::default()
    };
    let Some(key) = key else { return change(client, &set.name, &changes, json) };
    let peer: PeerView = client.send(Method::PATCH, &path(&set.name), &changes)?;
    let key = keys::text(&key);
    if json {
        return print_json(&json!({ "peer": peer, "preshared_key": &*key }));
    }
    print(&text(&peer, now()))?;
    print(&Zeroizing::new(format!("PresharedKey = {}\n", &*key)))
}

fn run_rotate(client: &Client, rotate: &RotateArgs, json: bool) -> anyhow::Result<()> {
    let gateway: GatewayView = client.get("/v1/gateway")?;
    let before: PeerView = client.get(&path(&rotate.name))?;
    let papers = Papers::begin(&rotate.output, rotate.psk || before.preshared_key)?;
    let changes = Changes {
        public_key: Some(Key(papers.public_key)),
        preshared_key: papers.secrets.preshared_key.clone().map(Psk).map(Some),
        ..Changes::default()
    };
    let peer: PeerView = client.send(Method::PATCH, &path(&rotate.name), &changes)?;
    papers.hand_out(&gateway, &peer, json)
}

/// A client's keys, and where its configuration will go.
struct Papers {
    public_key: PublicKey,
    secrets: Secrets,
    conf: Option<Draft>,
    qr: Option<Draft>,
}

impl Papers {
    /// Makes keys and files, so that nothing of that can fail when the gateway has said yes.
    fn begin(output: &Output, psk: bool) -> anyhow::Result<Self> {
        let conf = output.conf.as_deref().map(Draft::new).transpose()?;
        let qr = output.qr.as_deref().map(Draft::image).transpose()?;
        let preshared_key = psk.then(keys::random).transpose()?;
        let private_key = match output.public_key {
            Some(_) => None,
            None => Some(PrivateKey::new(&keys::random()?)),
        };
        let own = private_key.as_ref().map(|key| *key.public());
        let public_key = output.public_key.or(own).context("no key")?;
        let secrets = Secrets { private_key: private_key.map(|key| key.to_secret()), preshared_key };
        Ok(Self { public_key, secrets, conf, qr })
    }

    /// Shows the configuration, the only time.
    fn hand_out(self, gateway: &GatewayView, peer: &PeerView, json: bool) -> anyhow::Result<()> {
        let text = conf::conf(gateway, peer, &self.secrets);
        if let Some(doubt) = conf::doubt(gateway) {
            say(doubt);
        }
        let in_a_file = self.conf.is_some();
        if let Some(draft) = self.conf {
            draft.write(text.as_bytes())?;
        }
        if let Some(draft) = self.qr {
            draft.draw(&conf::qr(&text)?)?;
        }
        if json {
            return print_json(&json!({ "peer": peer, "conf": if in_a_file { None } else { Some(&*text) } }));
        }
        if in_a_file {
            print(&format!("{}: {}\n", peer.name, peer.allowed_ips.join(", ")))?;
        } else {
            print(&text)?;
        }
        if self.secrets.private_key.is_some() && io::stdout().is_terminal() {
            print(&format!("\n{}", conf::for_terminal(&conf::qr(&text)?)))?;
        }
        Ok(())
    }
}

fn shown(peer: &PeerView, json: bool) -> anyhow::Result<()> {
    if json { print_json(peer) } else { print(&text(peer, now())) }
}

fn source(origin: Origin) -> &'static str {
    match origin {
        Origin::File => "file",
        Origin::Store => "store",
    }
}

/// A line per peer.
fn table(peers: &[PeerView]) -> String {
    let now = now();
    let mut rows = vec![["NAME", "ADDRESSES", "GROUP", "STATE", "SOURCE"].map(str::to_owned)];
    rows.extend(peers.iter().map(|peer| {
        let name = if peer.name.is_empty() { peer.public_key.0.to_base64() } else { peer.name.clone() };
        let addresses = peer.allowed_ips.join(",");
        [name, addresses, peer.group.clone(), state(peer, now), source(peer.source).to_owned()]
    }));
    columns(&rows)
}

/// Rows whose columns stand below each other.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

/// `active`, with its end if it has one.
fn state(peer: &PeerView, now: u32) -> String {
    let word = match peer.state {
        State::Active => "active",
        State::Disabled => "disabled",
        State::Expired => "expired",
    };
    match peer.expires {
        Some(end) if end > now => format!("{word}, ends in {}", short(end - now)),
        Some(end) if peer.state == State::Expired => format!("{word} {}", ago((now - end).into())),
        _ => word.to_owned(),
    }
}

/// The largest unit that is there.
pub(super) fn short(seconds: u32) -> String {
    let text = duration(seconds.into());
    text.split(", ").next().unwrap_or_default().to_owned()
}

/// All of a peer.
fn text(peer: &PeerView, now: u32) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{key}: {value}");
        }
    };
    line("name", &peer.name);
    line("public key", &peer.public_key.0.to_base64());
    line("preshared key", if peer.preshared_key { "(hidden)" } else { "" });
    line(
        "source",
        &match &peer.place {
            Some(place) => format!("{} ({place})", source(peer.source)),
            None => source(peer.source).to_owned(),
        },
    );
    line("state", &state(peer, now));
    line("group", &peer.group);
    line("hostname", peer.hostname.as_deref().unwrap_or_default());
    line("allowed ips", &peer.allowed_ips.join(", "));
    if let Some(created) = peer.created {
        line("made", &ago(now.saturating_sub(created).into()));
    }
    if let Some(since) = peer.connected {
        line("connected", &ago(now.saturating_sub(since).into()));
    }
    if let Some(traffic) = &peer.traffic {
        line("endpoint", traffic.endpoint.as_deref().unwrap_or_default());
        if let Some(at) = traffic.last_handshake {
            line("latest handshake", &ago(u64::from(now).saturating_sub(at)));
        }
        let (received, sent) = (bytes(traffic.rx_bytes), bytes(traffic.tx_bytes));
        line("transfer", &format!("{received} received, {sent} sent"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), ("8w", 4_838_400)] {
            assert_eq!(time(text), Ok(Expires::In(seconds)));
        }
        assert_eq!(time("never"), Ok(Expires::Never));
        for text in ["", "0d", "d", "30", "-1d", "1.5d", "99999w", "+1d", "1 d"] {
            assert!(time(text).unwrap_err().contains("such as 30d"), "{text}");
        }
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["NAME", "X"], ["Zoë", ""], ["a", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "NAME  X\nZoë\na     b\n");
    }
}
