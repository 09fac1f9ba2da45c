//! `join`: becomes a peer by an invite, and writes the configuration that wg-quick(8) and Ringway read. It needs no
//! rights and no device: a UDP socket of either family.

use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::admin::{print, print_json};
use super::keys;
use super::peer::conf::{self, Draft, Secrets};
use super::say;
use crate::client::enrolment::{Enrolment, Outcome};
use crate::config::{Clients, Inclusion, key};
use crate::control::admin::wire::{ClientsView, GatewayView, Key, Origin, PeerView, State};
use crate::control::peers;
use crate::crypto::random::SystemRng;
use crate::crypto::x25519::PrivateKey;
use crate::noise::timestamp::Tai64n;
use crate::sys::{clock, poll};
use crate::types::PublicKey;
use crate::wire::frame::enrolment::Enrolled;
use crate::wire::invite::{Invite, MAX_URI};

/// The longest datagram that a gateway's answer may be.
const LONGEST: usize = 64 << 10;
/// How often the sockets are read before the time is looked at.
const READS: usize = 64;

/// `join INVITE|-`
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The invite, ringway://invite/…; or - to read it from the standard input, where no other user sees it
    #[arg(value_name = "INVITE")]
    invite: String,
    /// A new file for the configuration, mode 0600
    #[arg(long, value_name = "FILE", default_value = "ringway.conf")]
    conf: PathBuf,
    /// Seconds after which to give up
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// No invite; nobody who answers; why the gateway lets nobody in.
pub fn run(args: &JoinArgs) -> anyhow::Result<()> {
    let invite = read(&args.invite)?;
    let peer = enter(&invite, &args.conf, Duration::from_secs(args.timeout))?;
    if args.json {
        return print_json(&json!({ "name": peer.name, "addresses": peer.allowed_ips, "conf": args.conf }));
    }
    let addresses = peer.allowed_ips.join(", ");
    print(&format!("{}: {addresses}\n{} is for wg-quick and `ringway up`\n", peer.name, args.conf.display()))
}

/// Becomes a peer, and writes the configuration into a new file.
///
/// # Errors
/// Nobody who answers; why the gateway lets nobody in.
pub(super) fn enter(invite: &Invite, conf: &Path, patience: Duration) -> anyhow::Result<PeerView> {
    // First of all: a key that cannot be kept is not to be spent a use on.
    let own = Own::keep(conf)?;
    let public = *own.key.public();
    let (outcome, place) = enrol(invite, public, patience)?;
    let enrolled = match outcome {
        Outcome::Enrolled(enrolled) => enrolled,
        Outcome::Refused { why, again: Some(seconds) } => {
            bail!("the gateway says not now: {why}; come again in {seconds} s")
        }
        Outcome::Refused { why, again: None } => {
            own.forget();
            bail!("the gateway says no: {why}")
        }
    };
    let peer = peer(&enrolled, public);
    let secrets = Secrets { private_key: Some(own.key.to_secret()), preshared_key: None };
    let lines = conf::conf(&gateway(&enrolled, invite, place), &peer, &secrets);
    let mut text = Zeroizing::new(String::with_capacity(lines.len() + 256 + MAX_URI));
    text.push_str("# Ringway profile 1: made by `ringway join`, invite ");
    text.push_str(&invite.id);
    // Whoever joins a gateway takes from it later what it takes now.
    text.push_str("\n# ringway: accept = routes, dns, mtu\n");
    text.push_str(&lines);
    let others: Vec<_> =
        (0..).zip(&invite.places).filter(|(at, _)| *at != place).map(|(_, other)| other.as_str()).collect();
    if !others.is_empty() {
        text.push_str("# ringway: endpoints = ");
        text.push_str(&others.join(", "));
        text.push('\n');
    }
    Draft::new(conf)?.write(text.as_bytes())?;
    own.forget();
    Ok(peer)
}

/// Our own key, in a file beside the configuration until that is there: whoever tries again, after no answer came or
/// the program was killed, comes with the same key and spends no second use.
struct Own {
    key: PrivateKey,
    path: PathBuf,
}

impl Own {
    fn keep(conf: &Path) -> anyhow::Result<Self> {
        if conf.exists() {
            bail!("{} is there already: name another file", conf.display());
        }
        let mut path = conf.as_os_str().to_owned();
        path.push(".key");
        let path = PathBuf::from(path);
        if path.exists() {
            let kept = key::read(&path).with_context(|| path.display().to_string())?;
            return Ok(Self { key: PrivateKey::new(&kept), path });
        }
        let key = PrivateKey::new(&keys::random()?);
        Draft::new(&path)?.write(keys::text(&key.to_secret()).as_bytes())?;
        Ok(Self { key, path })
    }

    /// It is in the configuration now, or good for nothing.
    fn forget(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            say(format_args!("{}: {error}: remove it", self.path.display()));
        }
    }
}

/// From the argument, or from the standard input.
pub(super) fn read(argument: &str) -> anyhow::Result<Invite> {
    if argument != "-" {
        say(
            "every user of this host sees an invite among the arguments: give - in its place to have it read from the \
             standard input",
        );
        return Ok(Invite::parse(argument)?);
    }
    let mut text = Zeroizing::new(String::with_capacity(2 * MAX_URI));
    let most = MAX_URI as u64 + 1;
    io::stdin().lock().take(most).read_to_string(&mut text).context("standard input")?;
    Ok(Invite::parse(&text)?)
}

/// Does what the machine says, with sockets and a clock. Returns what it was told, and from which place.
fn enrol(invite: &Invite, own: PublicKey, patience: Duration) -> anyhow::Result<(Outcome, usize)> {
    let mut rng = SystemRng::new().context("no randomness")?;
    let sockets = Sockets::open()?;
    let end = clock::boottime() + patience;
    let machine = Enrolment::new(invite.clone(), own, clock::boottime(), &mut rng);
    let mut machine = machine.context("the gateway's key in the invite is none: ask for another invite")?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let now = clock::boottime();
        if now >= end {
            bail!(
                "no answer from {} in {} s: is its UDP port open, and is this host's clock right? An invite that ended \
                 more than 7 days ago gets no answer either",
                invite.places.join(" or "),
                patience.as_secs()
            );
        }
        let begun = machine.attempts();
        if let Some(datagram) = machine.next_datagram(now, Tai64n::from_unix(clock::realtime()), &mut rng) {
            let place = invite.places.get(machine.place()).map_or("", String::as_str);
            if machine.attempts() > begun {
                say(format_args!("asking {place}, attempt {}", machine.attempts()));
            }
            sockets.send(&datagram, place);
        }
        sockets.wait(machine.deadline().min(end).since(clock::boottime()))?;
        for _ in 0..READS {
            let Some((length, from)) = sockets.receive(&mut buffer) else { break };
            let Some(datagram) = buffer.get_mut(..length) else { break };
            if let Some(outcome) = machine.handle(datagram, from, clock::boottime()) {
                return Ok((outcome, machine.place()));
            }
        }
    }
}

/// A socket of each family that the host has.
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    fn open() -> anyhow::Result<Self> {
        let open = |address: SocketAddr| {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let v4 = open((Ipv4Addr::UNSPECIFIED, 0).into());
        let v6 = open((Ipv6Addr::UNSPECIFIED, 0).into()).ok();
        if v6.is_none() {
            return Ok(Self { v4: Some(v4.context("no UDP socket")?), v6 });
        }
        Ok(Self { v4: v4.ok(), v6 })
    }

    /// To the first address of the place that it can be sent to; what is not sent is as good as lost.
    fn send(&self, datagram: &[u8], place: &str) {
        let addresses = match place.to_socket_addrs() {
            Ok(addresses) => addresses,
            Err(error) => return say(format_args!("{place}: {error}")),
        };
        let mut failed = None;
        for address in addresses {
            let socket = if address.is_ipv4() { &self.v4 } else { &self.v6 };
            let Some(socket) = socket else { continue };
            match socket.send_to(datagram, address) {
                Ok(_) => return,
                Err(error) => failed = Some(error),
            }
        }
        let why =
            failed.map_or_else(|| "no address of a family that this host has".to_owned(), |e| e.to_string());
        say(format_args!("{place}: {why}"));
    }

    /// Until something has come, or so long.
    fn wait(&self, time: Duration) -> anyhow::Result<()> {
        let all: Vec<_> = [&self.v4, &self.v6].into_iter().flatten().map(|socket| socket.as_fd()).collect();
        poll::readable(&all, time).context("waiting for an answer")
    }

    fn receive(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        [&self.v4, &self.v6].into_iter().flatten().find_map(|socket| socket.recv_from(buffer).ok())
    }
}

/// The gateway, as it told us of itself.
fn gateway(enrolled: &Enrolled, invite: &Invite, place: usize) -> GatewayView {
    let settings = &enrolled.settings;
    let included = Inclusion::Split(settings.included.clone());
    let told = Clients { allowed_ips: included, excluded: settings.excluded.clone(), ..Clients::default() };
    GatewayView {
        version: String::new(),
        interface: String::new(),
        public_key: Some(Key(invite.gateway)),
        listen_port: 0,
        addresses: Vec::new(),
        clients: ClientsView {
            endpoint: invite.places.get(place).cloned(),
            endpoint_is_a_guess: false,
            allowed_ips: told.into_the_tunnel().iter().map(ToString::to_string).collect(),
            dns: settings
                .dns
                .iter()
                .map(ToString::to_string)
                .chain(settings.search.iter().cloned())
                .collect(),
            keepalive: enrolled.keepalive,
            mtu: settings.mtu,
        },
    }
}

/// Ourselves, as the gateway calls us.
fn peer(enrolled: &Enrolled, own: PublicKey) -> PeerView {
    let v4 = enrolled.reply.ipv4.map(|(address, _)| format!("{address}/32"));
    let v6 = enrolled.reply.ipv6.map(|(address, _)| format!("{address}/128"));
    // It becomes a comment of a profile, and some comments are for us: nothing but a name stands there.
    let name = Some(&enrolled.name).filter(|name| peers::is_name(name));
    PeerView {
        name: name.cloned().unwrap_or_default(),
        source: Origin::Store,
        public_key: Key(own),
        preshared_key: false,
        allowed_ips: v4.into_iter().chain(v6).collect(),
        group: String::new(),
        state: State::Active,
        expires: None,
        created: None,
        place: None,
        connected: None,
        hostname: None,
        traffic: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::lease::{AddrReply, Settings};

    #[test]
    fn a_gateway_cannot_name_us_so_that_the_profile_says_more() {
        let named = |name: &str| {
            let enrolled = Enrolled {
                reply: AddrReply { ipv4: Some((Ipv4Addr::new(100, 64, 0, 7), 10)), ..AddrReply::default() },
                settings: Settings::default(),
                name: name.to_owned(),
                keepalive: 0,
            };
            peer(&enrolled, PublicKey([2; 32])).name
        };
        assert_eq!(named("phones-3"), "phones-3");
        for name in ["ringway: accept = exclusions", "a\nPostUp = true", "", "[Peer]"] {
            assert_eq!(named(name), "", "{name:?}");
        }
    }
}
