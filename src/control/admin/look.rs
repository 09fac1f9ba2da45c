//! What is only looked at.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::timeout;

use super::wire::{
    ClientsView, EventView, EventsView, GatewayView, Key, LeaseView, Origin, Page, PeerView, PoolView, Since,
    State, Traffic, Which,
};
use super::{Problem, Reply};
use crate::control::Control;
use crate::control::dataplane::DataPlane;
use crate::control::device::Peer as Known;
use crate::control::events::{Event, LeaseChange, PeerEvent, SessionEvent, What, WorkerEvent};
use crate::control::leases::Leases;
use crate::control::peers::{self, FilePeer, Peers};
use crate::lease::Usage;
use crate::store::Peer;
use crate::types::{Moment, PeerId, PublicKey};

/// Items of a page, if nobody says otherwise, and at most.
const USUAL: usize = 100;
const MOST: usize = 1000;

/// A gateway of one file has both.
pub(super) fn parts<D>(control: &Control<D>) -> Result<(&Peers, &Leases), Problem> {
    let parts = control.peers.as_ref().zip(control.leases.as_ref());
    parts.ok_or_else(|| Problem::internal("this device has no store"))
}

pub(super) fn limit(which: &Which) -> Result<usize, Problem> {
    match which.limit {
        None => Ok(USUAL),
        Some(limit) if (1..=MOST).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::invalid(format!("limit: 1 to {MOST}"))),
    }
}

pub(super) fn gateway<D>(control: &Control<D>) -> Result<Reply, Problem> {
    let (peers, _) = parts(control)?;
    let (site, port) = (&peers.site, control.device.listen_port());
    let told = &site.clients;
    let guess = || own_address().map(|address| SocketAddr::new(address, port).to_string());
    let view = GatewayView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interface: site.interface.clone(),
        public_key: control.device.public_key().map(Key),
        listen_port: port,
        addresses: site.addresses.iter().map(ToString::to_string).collect(),
        clients: ClientsView {
            endpoint: told.endpoint.as_ref().map(|host| host.with_port(port)).or_else(guess),
            endpoint_is_a_guess: told.endpoint.is_none(),
            allowed_ips: told.into_the_tunnel().iter().map(ToString::to_string).collect(),
            dns: told
                .dns
                .iter()
                .map(ToString::to_string)
                .chain(told.search.iter().map(ToString::to_string))
                .collect(),
            keepalive: told.keepalive,
            mtu: told.mtu_below(site.mtu),
        },
    };
    Ok(Reply::json(200, &view))
}

/// The address that this host sends from where nothing else is said. Nothing is sent to find out.
fn own_address() -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849): the default route leads there.
    let far: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    far.into_iter().find_map(|far| {
        let any: IpAddr =
            if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|own| !own.is_unspecified())
    })
}

/// Peers of the file in its order, then those of the store by their names. What comes next is told as `file-N` or
/// `store-NAME`.
pub(super) fn peers<D>(control: &Control<D>, which: &Which) -> Result<Reply, Problem> {
    let (peers, leases) = parts(control)?;
    let (limit, now) = (limit(which)?, leases.now());
    let after = which.after.as_deref().unwrap_or("file-0");
    let (from, name) = match (after.strip_prefix("file-"), after.strip_prefix("store-")) {
        (Some(number), _) => match number.parse::<usize>() {
            Ok(from) => (from, ""),
            Err(_) => return Err(Problem::invalid("after: no `next` of a page")),
        },
        (None, Some(name)) => (usize::MAX, name),
        (None, None) => return Err(Problem::invalid("after: no `next` of a page")),
    };
    let file = peers.site.peers().iter().enumerate().skip(from);
    let file = file.map(|(at, peer)| (format!("file-{}", at + 1), of_file(control, peers, peer)));
    let store = peers.after(name).map(|peer| (format!("store-{}", peer.name), of_store(peer, now)));
    let mut each = file.chain(store).peekable();
    let (mut items, mut next) = (Vec::new(), None);
    while items.len() < limit
        && let Some((cursor, view)) = each.next()
    {
        items.push(view);
        next = Some(cursor);
    }
    let next = next.filter(|_| each.peek().is_some());
    Ok(Reply::json(200, &Page { items, next }))
}

/// One peer with its traffic, by its name or its key.
pub(super) fn peer<D: DataPlane>(control: &mut Control<D>, name: &str) -> Result<Reply, Problem> {
    let (peers, leases) = parts(control)?;
    let mut view = view(control, peers, name, leases.now())?;
    if let Some(id) = control.device.peer(&view.public_key.0).map(Known::id) {
        view.traffic = traffic(control, id);
        view.connected = control.sessions.since(id).map(|since| since.0);
    }
    view.hostname = control.clients.hostname(&view.public_key.0).map(str::to_owned);
    Ok(Reply::json(200, &view))
}

fn view<D>(control: &Control<D>, peers: &Peers, name: &str, now: Moment) -> Result<PeerView, Problem> {
    let key = name.parse::<PublicKey>().ok();
    let store = peers.named(name).or_else(|| peers.of_key(&key?));
    if let Some(peer) = store {
        return Ok(of_store(peer, now));
    }
    let file = peers.site.named(name).or_else(|| peers.site.of_key(&key?));
    file.map(|peer| of_file(control, peers, peer)).ok_or_else(|| no_peer(name))
}

pub(super) fn no_peer(name: &str) -> Problem {
    Problem::missing(format!("there is no peer {name:?}: `ringway peer list` shows them"))
}

/// From the peer's owner alone: the others have nothing to say of it.
fn traffic<D: DataPlane>(control: &mut Control<D>, id: PeerId) -> Option<Traffic> {
    let worker = control.device.peer_by_id(id)?.worker();
    let stats = control.dataplane.peer_stats(worker, id)?;
    Some(Traffic {
        endpoint: stats.endpoint.map(|endpoint| endpoint.to_string()),
        last_handshake: stats.last_handshake.map(|at| at.as_secs()),
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
    })
}

pub(super) fn of_store(peer: &Peer, now: Moment) -> PeerView {
    PeerView {
        name: peer.name.clone(),
        source: Origin::Store,
        public_key: Key(peer.public_key),
        preshared_key: peer.preshared_key.is_some(),
        allowed_ips: peers::prefixes(peer).map(|prefix| prefix.to_string()).collect(),
        group: peer.group.clone(),
        state: match (peer.disabled, peers::has_ended(peer, now)) {
            (true, _) => State::Disabled,
            (false, true) => State::Expired,
            (false, false) => State::Active,
        },
        expires: peer.expires.map(|end| end.0),
        created: Some(peer.created.0),
        place: None,
        connected: None,
        hostname: None,
        traffic: None,
    }
}

fn of_file<D>(control: &Control<D>, peers: &Peers, peer: &FilePeer) -> PeerView {
    let known = control.device.peer(&peer.public_key);
    PeerView {
        name: peer.name.clone(),
        source: Origin::File,
        public_key: Key(peer.public_key),
        preshared_key: known.is_some_and(|known| known.preshared_key().is_some()),
        allowed_ips: known
            .map_or_else(Vec::new, |known| known.prefixes().map(|one| one.to_string()).collect()),
        group: peer.group.clone(),
        state: State::Active,
        expires: None,
        created: None,
        place: Some(peers.site.place(peer)),
        connected: None,
        hostname: None,
        traffic: None,
    }
}

pub(super) fn pools<D>(control: &Control<D>) -> Result<Reply, Problem> {
    let (_, leases) = parts(control)?;
    let items = leases.usages().map(|(name, usage)| of_pool(name, usage)).collect();
    Ok(Reply::json(200, &Page { items, next: None }))
}

pub(super) fn of_pool(name: &str, usage: Usage) -> PoolView {
    let Usage { addresses, leased, drained } = usage;
    PoolView { name: name.to_owned(), addresses, leased, drained }
}

/// Leases in no order; what comes next is told as a number.
pub(super) fn leases<D>(control: &Control<D>, which: &Which) -> Result<Reply, Problem> {
    let (peers, leases) = parts(control)?;
    let from = which.after.as_deref().map_or(Ok(0), str::parse);
    let from = from.map_err(|_| Problem::invalid("after: no `next` of a page"))?;
    let (found, next) = leases.some(from, limit(which)?);
    let items: Vec<_> = found
        .iter()
        .map(|lease| LeaseView {
            address: lease.address,
            ipv6: lease.ipv6,
            public_key: Key(lease.client),
            name: peers.name_of(&lease.client).map(str::to_owned),
            hostname: control.clients.hostname(&lease.client).map(str::to_owned),
            since: lease.since.0,
            until: lease.until.0,
        })
        .collect();
    Ok(Reply::json(200, &Page { items, next: next.map(|next| next.to_string()) }))
}

/// Whose an address was, the last first.
pub(super) async fn history<D>(
    control: &RefCell<Control<D>>,
    address: Ipv4Addr,
    at: Option<u32>,
) -> Result<Reply, Problem> {
    // Not borrowed while it is waited for.
    let asked = {
        let control = control.borrow();
        let (_, leases) = parts(&control)?;
        leases.tenures(address, at.map_or_else(|| leases.now(), Moment))
    };
    let tenures = asked.await?;
    let control = control.borrow();
    let (peers, _) = parts(&control)?;
    let items: Vec<_> = tenures
        .iter()
        .map(|tenure| LeaseView {
            address,
            ipv6: None,
            public_key: Key(tenure.client),
            name: peers.name_of(&tenure.client).map(str::to_owned),
            hostname: None,
            since: tenure.since.0,
            until: tenure.until.0,
        })
        .collect();
    Ok(Reply::json(200, &Page { items, next: None }))
}

/// Seconds that somebody may wait for an event: less than a connection may take.
const LONGEST: u64 = 20;

/// What has happened since the reader's last time; waits for something if he wants that.
pub(super) async fn events<D>(control: &RefCell<Control<D>>, since: &Since) -> Result<Reply, Problem> {
    let limit = limit(&Which { limit: since.limit, after: None })?;
    if since.wait > LONGEST {
        return Err(Problem::invalid(format!("wait: 0 to {LONGEST}")));
    }
    let mut woken = control.borrow().events.watch();
    let restarted = since.after > *woken.borrow();
    let after = if restarted { 0 } else { since.after };
    if since.wait > 0 {
        // Not borrowed while it is waited for. Nothing in time is an answer too.
        let _ = timeout(Duration::from_secs(since.wait), woken.wait_for(|next| *next > after)).await;
    }
    let control = control.borrow();
    let (peers, _) = parts(&control)?;
    let mut found = control.events.since(after).take(limit).peekable();
    let missed = found.peek().map_or(0, |first| first.number.saturating_sub(after));
    let items: Vec<_> = found.map(|event| of_event(peers, event)).collect();
    let next = items.last().map_or(after, |last| last.number + 1);
    Ok(Reply::json(200, &EventsView { items, next, missed, restarted }))
}

fn of_event(peers: &Peers, event: &Event) -> EventView {
    let nothing = EventView { number: event.number, at: event.at.0, ..EventView::default() };
    match &event.what {
        What::Lease { client, address, ipv6, until, change } => EventView {
            event: lease_word(*change).to_owned(),
            public_key: Some(Key(*client)),
            name: peers.name_of(client).map(str::to_owned),
            address: Some(*address),
            ipv6: *ipv6,
            until: Some(until.0),
            ..nothing
        },
        What::Peer { client, name, change } => EventView {
            event: peer_word(*change).to_owned(),
            public_key: Some(Key(*client)),
            name: Some(name.to_string()),
            ..nothing
        },
        What::Session { client, name, endpoint, change } => EventView {
            event: session_word(*change).to_owned(),
            public_key: Some(Key(*client)),
            name: Some(name.to_string()).filter(|name| !name.is_empty()),
            endpoint: Some(endpoint.to_string()),
            ..nothing
        },
        What::Switch { switch, off } => EventView {
            event: if off.is_some() { "switched_off" } else { "switched_on" }.to_owned(),
            switch: Some(switch.name().to_owned()),
            reason: off.map(|reason| reason.text().to_owned()),
            ..nothing
        },
        What::Worker { worker, reason, change } => EventView {
            event: worker_word(*change).to_owned(),
            worker: worker.map(|worker| worker.0),
            reason: reason.as_deref().map(str::to_owned),
            ..nothing
        },
    }
}

fn lease_word(change: LeaseChange) -> &'static str {
    match change {
        LeaseChange::Given => "lease_given",
        LeaseChange::Renewed => "lease_renewed",
        LeaseChange::Expired => "lease_expired",
        LeaseChange::Released => "lease_released",
    }
}

fn peer_word(change: PeerEvent) -> &'static str {
    match change {
        PeerEvent::Made => "peer_made",
        PeerEvent::Changed => "peer_changed",
        PeerEvent::Removed => "peer_removed",
        PeerEvent::Ended => "peer_ended",
    }
}

fn session_word(change: SessionEvent) -> &'static str {
    match change {
        SessionEvent::Connected => "peer_connected",
        SessionEvent::Disconnected => "peer_disconnected",
        SessionEvent::Moved => "endpoint_changed",
    }
}

fn worker_word(change: WorkerEvent) -> &'static str {
    match change {
        WorkerEvent::Poll => "worker_poll",
        WorkerEvent::Hangs => "worker_hangs",
        WorkerEvent::Turns => "worker_turns",
    }
}
