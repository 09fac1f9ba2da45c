//! Keeps a client's gateways within reach: [`Contact`] says what is to be done, this does it.
//!
//! 1. [`resolve`], before there is a tunnel: the gateways' names, by the host's own resolver
//! 2. [`Reconnect::new`], with the device: listens for changes of ways
//! 3. [`Reconnect::serve`]: a turn whenever a way changes, and otherwise as seldom as [`Contact::next_look`] permits
//!
//! What is asked later is asked past the tunnel, of the servers of the networks ([`crate::net::lookup`]).

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::silence::socket_to;
use crate::client::reconnect::{CALM, Contact, Seen, Sleep, State};
use crate::client::tunnel::MARK;
use crate::config::profile::Profile;
use crate::control::Control;
use crate::control::dataplane::DataPlane as _;
use crate::control::uapi::{PeerChange, SetRequest};
use crate::dataplane::handoff::ToWorker;
use crate::gateway::Gateway;
use crate::gateway::serving::block_on;
use crate::net::dns;
use crate::net::lookup::{in_turn, lookup, servers, underlay};
use crate::net::monitor::{Monitor, Way};
use crate::net::name::InterfaceName;
use crate::sys::clock;
use crate::types::{Mark, PublicKey};

/// Where a gateway is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Whose place it is.
    pub(super) key: PublicKey,
    /// What the profile says.
    endpoints: Vec<Endpoint>,
    /// What that comes to, in its order, but those first that this host has a way to.
    addresses: Vec<SocketAddr>,
    /// The servers to ask for names, as they were before the tunnel.
    servers: Vec<IpAddr>,
}

/// `HOST:PORT`
#[derive(Clone, Debug)]
enum Endpoint {
    Address(SocketAddr),
    /// A name of the DNS.
    Name(String, u16),
}

impl Place {
    /// The address to begin with.
    pub(super) fn first(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }
}

impl Endpoint {
    fn parse(text: &str) -> anyhow::Result<Self> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (name, port) = text.rsplit_once(':').with_context(|| format!("{text}: HOST:PORT"))?;
        Ok(Self::Name(name.to_owned(), port.parse().with_context(|| format!("{text}: the port"))?))
    }

    /// By the host's resolver, or past the tunnel.
    fn resolve(&self, servers: &[IpAddr], mark: Mark) -> anyhow::Result<Vec<SocketAddr>> {
        let (name, port) = match self {
            Self::Address(address) => return Ok(vec![*address]),
            Self::Name(name, port) => (name, *port),
        };
        let found = match (name.as_str(), port).to_socket_addrs() {
            Ok(found) => found.collect(),
            Err(error) => by_ourselves(name, port, servers, mark).ok_or(error).with_context(|| {
                format!(
                    "{name}:{port}: the gateway's name is not resolved: is the network up, and does its DNS server \
                     answer?"
                )
            })?,
        };
        if found.is_empty() {
            anyhow::bail!("{name}:{port}: the gateway's name has no address");
        }
        Ok(in_turns(found))
    }

    /// Past the tunnel.
    async fn look_up(&self, servers: &[IpAddr], mark: Mark) -> Vec<SocketAddr> {
        match self {
            Self::Address(address) => vec![*address],
            Self::Name(name, port) => match lookup(name, servers, mark).await {
                Ok(found) => in_turns(found.into_iter().map(|address| (address, *port).into()).collect()),
                Err(error) => {
                    tracing::info!(%error, "a gateway's name");
                    Vec::new()
                }
            },
        }
    }
}

/// The addresses of a profile's gateways, while the host's own routes are in force. Where a killed client's kill switch
/// keeps the host's resolver from asking, the servers of before are asked past it.
///
/// # Errors
/// A gateway of whose names none has an address, or is known to anybody.
pub(super) fn resolve(profile: &Profile, link: &InterfaceName) -> anyhow::Result<Vec<Place>> {
    let host = dns::Host::here();
    let servers = servers(&dns::before(&host, link));
    let known = underlay(&host.resolv_conf, &profile.dns, &servers);
    let mark = profile.mark.unwrap_or(MARK);
    let mut places = Vec::new();
    for peer in &profile.peers {
        let endpoints = peer.endpoints.iter().map(|text| Endpoint::parse(text));
        let endpoints = endpoints.collect::<anyhow::Result<Vec<_>>>()?;
        let (mut addresses, mut unknown) = (Vec::new(), None);
        for endpoint in &endpoints {
            match endpoint.resolve(&known, mark) {
                Ok(found) => addresses.extend(found),
                Err(error) => {
                    tracing::info!("{error:#}");
                    unknown = unknown.or(Some(error));
                }
            }
        }
        if let Some(error) = unknown.filter(|_| addresses.is_empty()) {
            return Err(error);
        }
        if !endpoints.is_empty() {
            let addresses = within_reach_first(addresses, mark);
            places.push(Place { key: peer.public_key, endpoints, addresses, servers: servers.clone() });
        }
    }
    Ok(places)
}

fn by_ourselves(name: &str, port: u16, servers: &[IpAddr], mark: Mark) -> Option<Vec<SocketAddr>> {
    let found = block_on(async { Ok(lookup(name, servers, mark).await?) });
    let found = found.inspect_err(|error| tracing::debug!(%error, "a gateway's name")).ok()?;
    Some(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// The family that the resolver prefers first, then each in turn.
fn in_turns(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = found.first().map(SocketAddr::is_ipv4) else { return found };
    let (these, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|place| place.is_ipv4() == first);
    in_turn(these, others)
}

fn within_reach_first(mut all: Vec<SocketAddr>, mark: Mark) -> Vec<SocketAddr> {
    all.sort_by_key(|place| !reaches(*place, mark));
    all
}

/// Whether this host has a way to a place; says nothing of who is there.
fn reaches(place: SocketAddr, mark: Mark) -> bool {
    socket_to(place, mark).is_ok()
}

/// One gateway.
struct Remote {
    place: Place,
    contact: Contact,
    /// Where it was last seen, and the way there.
    endpoint: Option<SocketAddr>,
    way: Option<Way>,
    /// The way may be another one.
    moved: bool,
    asked: Option<JoinHandle<Vec<SocketAddr>>>,
}

/// All gateways of a client that have a place.
pub(super) struct Reconnect {
    remotes: Vec<Remote>,
    monitor: Option<Monitor>,
    mark: Mark,
    sleep: Sleep,
    /// The tunnel's DNS servers.
    ours: Rc<RefCell<Vec<IpAddr>>>,
}

impl Reconnect {
    /// `tunnel` is the device's index, `ours` the DNS servers behind it.
    pub(super) async fn new(
        places: Vec<Place>,
        tunnel: u32,
        mark: Mark,
        ours: Rc<RefCell<Vec<IpAddr>>>,
    ) -> Self {
        let monitor = Monitor::open(tunnel).await;
        let monitor = monitor
            .inspect_err(|error| tracing::warn!(%error, "changes of the network are noticed late"))
            .ok();
        let now = clock::boottime();
        let remote = |place: Place| {
            let (contact, endpoint) = (Contact::new(place.addresses.clone(), now), place.first());
            Remote { place, contact, endpoint, way: None, moved: false, asked: None }
        };
        let mut reconnect = Self {
            remotes: places.into_iter().map(remote).collect(),
            monitor,
            mark,
            sleep: Sleep::new(now, clock::monotonic()),
            ours,
        };
        for remote in &mut reconnect.remotes {
            remote.way = way(reconnect.monitor.as_ref(), remote.endpoint, mark).await;
        }
        reconnect
    }

    /// Does what is due; returns when to look again, at the latest.
    pub(super) fn step(&mut self, control: &mut Control<Gateway>) -> Duration {
        let now = clock::boottime();
        let slept = self.sleep.look(now, clock::monotonic());
        let mut wait = CALM;
        for remote in &mut self.remotes {
            let Some(peer) = control.device.peer(&remote.place.key) else { continue };
            let (id, worker) = (peer.id(), peer.worker());
            let Some(stats) = control.dataplane.peer_stats(worker, id) else { continue };
            let seen = Seen {
                endpoint: stats.endpoint,
                rx_bytes: stats.rx_bytes,
                awaits_answer: stats.awaits_answer,
            };
            remote.endpoint = stats.endpoint.or(remote.endpoint);
            if std::mem::take(&mut remote.moved) || slept {
                remote.contact.way_changed(seen, now);
            }
            if let Some(found) = remote.found() {
                remote.contact.looked_up(&within_reach_first(found, self.mark), now);
            }
            let before = remote.contact.state();
            let steps = remote.contact.look(seen, now, |place| reaches(place, self.mark));
            if steps.endpoint.is_some() && steps.endpoint != seen.endpoint {
                let peers =
                    vec![PeerChange { endpoint: steps.endpoint, ..PeerChange::new(remote.place.key) }];
                let request = SetRequest { peers, ..SetRequest::default() };
                if let Err(error) = control.device.apply(request, &mut control.dataplane) {
                    tracing::warn!(%error, "another address of a gateway");
                }
            }
            if steps.renew {
                control.dataplane.tell(worker, ToWorker::Renew(id, steps.rival));
            }
            if steps.look_up {
                remote.ask(&self.ours.borrow(), self.mark);
            }
            let state = remote.contact.state();
            if state != before {
                tracing::info!(?state, "a gateway");
                control.device.set_lost(id, state == State::Lost);
            }
            wait = wait.min(remote.contact.next_look(now));
        }
        wait
    }

    /// Keeps them within reach as long as the client runs.
    pub(super) async fn serve(&mut self, control: &RefCell<Control<Gateway>>) -> Infallible {
        loop {
            let wait = self.step(&mut control.borrow_mut());
            self.rest(wait).await;
        }
    }

    /// Waits so long, or until a way changes.
    async fn rest(&mut self, wait: Duration) {
        let Some(monitor) = &mut self.monitor else { return sleep(wait).await };
        let risen = match timeout(wait, monitor.changed()).await {
            Err(_) => return,
            Ok(Ok(risen)) => risen,
            Ok(Err(error)) => {
                tracing::warn!(%error, "netlink failed: changes of the network are noticed late");
                self.monitor = None;
                return;
            }
        };
        for remote in &mut self.remotes {
            let now = way(self.monitor.as_ref(), remote.endpoint, self.mark).await;
            let link_rose = now.as_ref().is_some_and(|way| risen.has(way.link));
            remote.moved |= link_rose || now != remote.way;
            remote.way = now;
        }
    }
}

impl Remote {
    /// Asks for the names, if there are any and nobody asks already.
    fn ask(&mut self, ours: &[IpAddr], mark: Mark) {
        let endpoints = self.place.endpoints.clone();
        let has_name = endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Name(..)));
        if !has_name || self.asked.is_some() {
            return;
        }
        let servers = underlay(&dns::Host::here().resolv_conf, ours, &self.place.servers);
        self.asked = Some(tokio::spawn(async move {
            join_all(endpoints.iter().map(|endpoint| endpoint.look_up(&servers, mark))).await.concat()
        }));
    }

    /// What has come of it.
    fn found(&mut self) -> Option<Vec<SocketAddr>> {
        self.asked
            .take_if(|asked| asked.is_finished())?
            .now_or_never()?
            .ok()
            .filter(|found| !found.is_empty())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(asked) = &self.asked {
            asked.abort();
        }
    }
}

async fn way(monitor: Option<&Monitor>, endpoint: Option<SocketAddr>, mark: Mark) -> Option<Way> {
    let way = monitor?.way_to(endpoint?.ip(), mark).await;
    way.inspect_err(|error| tracing::debug!(%error, "a way")).ok().flatten()
}
