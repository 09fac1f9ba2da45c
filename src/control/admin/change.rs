//! What changes peers: looked at as a whole against memory, stored, and only then in force and told. A change that
//! cannot be stored is taken back and has changed nothing, but for a lease that ended with it.
//!
//! One after the other ([`Peers::changing`]): what is decided by memory is still so when it is stored.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::look::{no_peer, of_pool, of_store, parts};
use super::wire::{Changes, Key, NewPeer, PoolChanges, Psk};
use super::{Problem, Reply};
use crate::control::Control;
use crate::control::clients;
use crate::control::dataplane::DataPlane;
use crate::control::device::{MAX_PEERS, MAX_PREFIXES};
use crate::control::events::{PeerEvent, What};
use crate::control::leases::Leases;
use crate::control::peers::{self, Peers};
use crate::control::uapi::{PeerChange, SetRequest};
use crate::lease::Ask;
use crate::store::thread::Writes;
use crate::store::{Enrolment, Peer, Write};
use crate::types::{Moment, Prefix, PublicKey, Secret};

/// Longest name of a group, bytes.
const MAX_GROUP: usize = 64;

/// The code of a problem that only a use of an invite can have: the store knows of none to spend.
pub(super) const SPENT: &str = "spent";

/// A change that is decided, and not stored yet.
pub(super) struct Prepared {
    pub(super) before: Option<Peer>,
    pub(super) after: Option<Peer>,
    pub(super) writes: Writes,
    /// The use of an invite that is spent with it.
    pub(super) enrolment: Option<Enrolment>,
    /// Takes back what memory holds for it.
    undo: Box<dyn FnOnce(&mut Leases)>,
}

impl Prepared {
    pub(super) fn new(before: Option<Peer>, after: Option<Peer>) -> Self {
        Self { before, after, writes: Writes::new(), enrolment: None, undo: Box::new(|_| {}) }
    }
}

/// Makes a peer. One of this name that is just so already is as good.
pub(super) async fn put<D: DataPlane>(
    control: &RefCell<Control<D>>,
    name: &str,
    wanted: NewPeer,
) -> Result<Reply, Problem> {
    let changing = parts(&control.borrow())?.0.changing();
    let _alone = changing.lock().await;
    let prepared = {
        let control = &mut *control.borrow_mut();
        let (peers, leases) = parts(control)?;
        if let Some(there) = peers.named(name) {
            return same(there, &wanted).map(|()| Reply::json(200, &of_store(there, leases.now())));
        }
        prepare_new(control, name, wanted)?
    };
    let view = prepared.after.clone();
    commit(control, prepared).await?;
    let control = control.borrow();
    let (_, leases) = parts(&control)?;
    let view = view.map(|peer| of_store(&peer, leases.now()));
    Ok(Reply::json(201, &view))
}

/// Whether a peer is what somebody wants to make.
fn same(there: &Peer, wanted: &NewPeer) -> Result<(), Problem> {
    let own: Vec<_> = peers::addresses(there).collect();
    let differs = [
        ("public_key", there.public_key != wanted.public_key.0),
        ("preshared_key", !is_same(there.preshared_key.as_ref(), wanted.preshared_key.as_ref())),
        ("addresses", !wanted.addresses.iter().all(|address| own.contains(address))),
        ("group", there.group != wanted.group),
        ("expires", there.expires.map(|end| end.0) != wanted.expires),
    ];
    let differs: Vec<_> = differs.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect();
    if differs.is_empty() {
        return Ok(());
    }
    Err(Problem::conflict(format!(
        "there is a peer {:?} already, with another {}: take another name, or `ringway peer set` it",
        there.name,
        differs.join(", ")
    )))
}

/// In time that does not depend on the bytes.
fn is_same(there: Option<&Secret>, wanted: Option<&Psk>) -> bool {
    use subtle::ConstantTimeEq as _;
    match (there, wanted) {
        (Some(there), Some(Psk(wanted))) => there.0.ct_eq(&wanted.0).into(),
        (None, None) => true,
        _ => false,
    }
}

fn prepare_new<D>(control: &mut Control<D>, name: &str, wanted: NewPeer) -> Result<Prepared, Problem> {
    let NewPeer { public_key: Key(public_key), preshared_key, addresses, pool, group, expires } = wanted;
    let (peers, leases) = parts(control)?;
    free_name(peers, name)?;
    free_key(control, peers, &public_key)?;
    check_group(&group)?;
    check_room(peers, 0)?;
    let now = leases.now();
    let peer = Peer {
        id: peers.fresh_id(),
        name: name.to_owned(),
        public_key,
        preshared_key: preshared_key.map(|Psk(key)| key),
        ipv4: None,
        ipv6: None,
        group,
        expires: end(expires, now)?,
        disabled: false,
        created: now,
    };
    let own = free_addresses(control, &addresses, None)?;
    seat(control, peer, own, &pool)
}

/// A new peer with these addresses, or one of a pool.
pub(super) fn seat<D>(
    control: &mut Control<D>,
    mut peer: Peer,
    own: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    pool: &str,
) -> Result<Prepared, Problem> {
    let mut prepared = Prepared::new(None, None);
    settle_addresses(control, &mut peer, own, pool, &mut prepared)?;
    prepared.writes.push(Write::Peer(Box::new(peer.clone())));
    prepared.after = Some(peer);
    Ok(prepared)
}

/// Refuses more peers than a device holds, with `more` keys of invites, each of which is a peer there.
pub(super) fn check_room(peers: &Peers, more: usize) -> Result<(), Problem> {
    let all = peers.count() + peers.site.peers().len() + peers.invites.count() + more;
    if all >= MAX_PEERS.min(MAX_PREFIXES / 2) {
        return Err(Problem::conflict("more peers than a device holds: remove some"));
    }
    Ok(())
}

/// Changes a peer of the store.
pub(super) async fn change<D: DataPlane>(
    control: &RefCell<Control<D>>,
    name: &str,
    changes: Changes,
) -> Result<Reply, Problem> {
    let changing = parts(&control.borrow())?.0.changing();
    let _alone = changing.lock().await;
    let prepared = prepare_change(&mut control.borrow_mut(), name, changes)?;
    let view = prepared.after.clone();
    commit(control, prepared).await?;
    let control = control.borrow();
    let (_, leases) = parts(&control)?;
    let view = view.map(|peer| of_store(&peer, leases.now()));
    Ok(Reply::json(200, &view))
}

fn prepare_change<D>(control: &mut Control<D>, name: &str, changes: Changes) -> Result<Prepared, Problem> {
    let (peers, leases) = parts(control)?;
    let before = own_peer(peers, name)?.clone();
    let Changes { name: new_name, public_key, preshared_key, addresses, pool, group, expires, disabled } =
        changes;
    let now = leases.now();
    let mut peer = before.clone();
    if let Some(name) = new_name.filter(|name| *name != before.name) {
        free_name(peers, &name)?;
        peer.name = name;
    }
    if let Some(group) = group {
        check_group(&group)?;
        peer.group = group;
    }
    if let Some(expires) = expires {
        peer.expires = end(expires, now)?;
    }
    if let Some(key) = preshared_key {
        peer.preshared_key = key.map(|Psk(key)| key);
    }
    peer.disabled = disabled.unwrap_or(peer.disabled);
    let new_key = public_key.map(|Key(key)| key).filter(|key| *key != before.public_key);
    if let Some(key) = new_key {
        free_key(control, peers, &key)?;
    }
    let own: Vec<_> = peers::addresses(&before).collect();
    let pool_named = pool.is_some();
    let other = addresses.or(pool_named.then(Vec::new)).filter(|wanted| wanted.is_empty() || *wanted != own);
    if new_key.is_some() && other.is_some() {
        return Err(Problem::invalid("another key and other addresses: change one after the other"));
    }
    let mut prepared = Prepared::new(Some(before.clone()), None);
    if let Some(wanted) = other {
        let named = free_addresses(control, &wanted, Some(before.id))?;
        (peer.ipv4, peer.ipv6) = (None, None);
        settle_addresses(control, &mut peer, named, &pool.unwrap_or_default(), &mut prepared)?;
    } else if let (Some(key), Some(address)) = (new_key, before.ipv4)
        && let Some(leases) = control.leases.as_mut()
    {
        prepared.writes = leases.hand_over(&before.public_key, key, address);
        prepared.undo = Box::new(move |leases| {
            leases.hand_over(&key, before.public_key, address);
        });
    }
    peer.public_key = new_key.unwrap_or(peer.public_key);
    prepared.writes.push(Write::Peer(Box::new(peer.clone())));
    prepared.after = Some(peer);
    Ok(prepared)
}

/// Drains a pool, or opens it again.
pub(super) fn pool<D>(control: &mut Control<D>, name: &str, changes: PoolChanges) -> Result<Reply, Problem> {
    let usage = control.leases.as_mut().and_then(|leases| leases.drain(name, changes.drained));
    let missing = || Problem::missing(format!("there is no pool {name:?}: `ringway pool list` shows them"));
    usage.map(|usage| Reply::json(200, &of_pool(name, usage))).ok_or_else(missing)
}

/// Removes a peer of the store.
pub(super) async fn remove<D: DataPlane>(
    control: &RefCell<Control<D>>,
    name: &str,
) -> Result<Reply, Problem> {
    let changing = parts(&control.borrow())?.0.changing();
    let _alone = changing.lock().await;
    let prepared = {
        let control = &mut *control.borrow_mut();
        let before = own_peer(parts(control)?.0, name)?.clone();
        let mut prepared = Prepared::new(Some(before.clone()), None);
        if let (Some(address), Some(leases)) = (before.ipv4, control.leases.as_mut()) {
            prepared.writes = leases.let_go(&before.public_key, address);
            prepared.undo = Box::new(move |leases| hold_again(leases, before.public_key, address));
        }
        prepared.writes.push(Write::RemovePeer { id: before.id });
        prepared
    };
    commit(control, prepared).await?;
    Ok(Reply { status: 204, body: String::new(), retry_after: None })
}

/// What was let go, and could not be stored: nobody has it yet.
fn hold_again(leases: &mut Leases, client: PublicKey, address: Ipv4Addr) {
    let ask = Ask { client, group: "", pool: "", wanted: Some(address) };
    if let Err(refusal) = leases.hold(&ask) {
        tracing::error!("the address of a peer is not held any more: restart the gateway");
        tracing::debug!(%refusal, %address, "which that is");
    }
}

/// The store's peer of this name; one of the file is refused by its place.
fn own_peer<'a>(peers: &'a Peers, name: &str) -> Result<&'a Peer, Problem> {
    if let Some(peer) = peers.named(name) {
        return Ok(peer);
    }
    Err(match peers.site.named(name) {
        Some(peer) => Problem::new(
            409,
            "file_peer",
            format!("{name:?} stands in {}: change it there, then `ringway reload`", peers.site.place(peer)),
        ),
        None => no_peer(name),
    })
}

fn free_name(peers: &Peers, name: &str) -> Result<(), Problem> {
    if !peers::is_name(name) {
        return Err(Problem::invalid(format!(
            "{name:?} is no name: letters, digits, spaces and ._@+-, the first a letter or a digit, at most {} bytes",
            peers::MAX_NAME
        )));
    }
    if peers.named(name).is_some() {
        return Err(Problem::conflict(format!("there is a peer {name:?} already: take another name")));
    }
    if let Some(peer) = peers.site.named(name) {
        let place = peers.site.place(peer);
        return Err(Problem::conflict(format!("a peer {name:?} stands in {place}: take another name")));
    }
    Ok(())
}

/// Refuses a key that is somebody's, or that nobody can have.
pub(super) fn free_key<D>(control: &Control<D>, peers: &Peers, key: &PublicKey) -> Result<(), Problem> {
    if key.0 == [0; 32] {
        return Err(Problem::invalid("this public key is nobody's"));
    }
    if control.device.public_key().as_ref() == Some(key) {
        return Err(Problem::conflict("this public key is the gateway's own: make another pair"));
    }
    if let Some(peer) = peers.of_key(key) {
        return Err(Problem::conflict(format!(
            "this public key is the peer {:?}'s: make another pair",
            peer.name
        )));
    }
    if let Some(invite) = peers.invites.of_key(key) {
        return Err(Problem::conflict(format!(
            "this public key belongs to the invite {:?}: make another pair",
            invite.id
        )));
    }
    if let Some(peer) = peers.site.of_key(key) {
        let place = peers.site.place(peer);
        return Err(Problem::conflict(format!("a peer with this public key stands in {place}")));
    }
    Ok(())
}

pub(super) fn check_group(group: &str) -> Result<(), Problem> {
    if group.len() > MAX_GROUP || group.chars().any(char::is_control) {
        return Err(Problem::invalid(format!("group: at most {MAX_GROUP} bytes without control characters")));
    }
    Ok(())
}

pub(super) fn end(expires: Option<u32>, now: Moment) -> Result<Option<Moment>, Problem> {
    match expires.map(Moment) {
        Some(end) if end <= now => {
            Err(Problem::invalid("expires: a moment that has passed (`disabled` ends a peer now)"))
        }
        end => Ok(end),
    }
}

/// Addresses by name, one per family, that nobody else has.
fn free_addresses<D>(
    control: &Control<D>,
    wanted: &[IpAddr],
    own: Option<u64>,
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Problem> {
    let (mut v4, mut v6) = (None, None);
    for address in wanted {
        let twice = match address {
            IpAddr::V4(address) => v4.replace(*address).is_some(),
            IpAddr::V6(address) => v6.replace(*address).is_some(),
        };
        if twice {
            return Err(Problem::invalid("addresses: one per family"));
        }
        free_address(control, *address, own)?;
    }
    Ok((v4, v6))
}

fn free_address<D>(control: &Control<D>, address: IpAddr, own: Option<u64>) -> Result<(), Problem> {
    let (peers, leases) = parts(control)?;
    let networks = || peers.site.addresses.iter();
    if !peers::is_host(address) {
        return Err(Problem::invalid(format!("{address} is no address that a peer can have")));
    }
    if networks().any(|own| own.addr() == address) {
        return Err(Problem::conflict(format!("{address} is the gateway's own")));
    }
    let in_a_pool = matches!(address, IpAddr::V4(v4) if leases.has_pool(v4));
    if !in_a_pool && !networks().any(|own| own.network().contains(address)) {
        return Err(Problem::conflict(format!(
            "{address} is in no network of the gateway's and in no pool: nothing would be sent to it. Give an address \
             of one, or add its network to `addresses`"
        )));
    }
    let host = Prefix::host(address);
    if let Some(peer) = peers.within(&host).filter(|peer| Some(peer.id) != own) {
        return Err(Problem::conflict(format!("{address} is the peer {:?}'s", peer.name)));
    }
    // What is everybody's yields to any address.
    for prefix in (1..=host.len()).filter_map(|length| Prefix::new(address, length)) {
        let owner = control.device.owner(&prefix).and_then(|id| control.device.peer_by_id(id));
        if let Some(peer) = owner.and_then(|owner| peers.site.of_key(&owner.public_key())) {
            let place = peers.site.place(peer);
            return Err(Problem::conflict(format!("{prefix} belongs to the peer in {place}")));
        }
    }
    Ok(())
}

/// Holds the addresses of a peer, or one of a pool, in memory: `peer` has them then.
fn settle_addresses<D>(
    control: &mut Control<D>,
    peer: &mut Peer,
    (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
    pool: &str,
    prepared: &mut Prepared,
) -> Result<(), Problem> {
    if !pool.is_empty() && (v4.is_some() || v6.is_some()) {
        return Err(Problem::invalid("addresses by name, or one of a pool"));
    }
    let before = prepared.before.as_ref().and_then(|before| before.ipv4);
    let Control { leases: Some(leases), .. } = control else {
        return Err(Problem::internal("this device has no store"));
    };
    // An IPv6 address that goes with an address of a pool is whose that is.
    if let Some(address) = v6
        && let Some(with) = leases.ipv4_of(address).filter(|with| v4 != Some(*with))
    {
        return Err(Problem::conflict(format!("{address} goes with {with} of a pool: give that as well")));
    }
    if v4.is_none() && v6.is_some() {
        if let Some(address) = before {
            let key = peer.public_key;
            prepared.writes = leases.let_go(&key, address);
            prepared.undo = Box::new(move |leases| hold_again(leases, key, address));
        }
        peer.ipv6 = v6;
        return Ok(());
    }
    let key = peer.public_key;
    if let Some(address) = before {
        leases.let_go(&key, address);
    }
    let held = leases.hold(&Ask { client: key, group: &peer.group, pool, wanted: v4 });
    let (address, with, writes) = match held {
        Ok(held) => held,
        Err(refusal) => {
            if let Some(address) = before {
                hold_again(leases, key, address);
            }
            return Err(refusal.into());
        }
    };
    (peer.ipv4, peer.ipv6, prepared.writes) = (Some(address), v6.or(with), writes);
    prepared.undo = Box::new(move |leases| {
        leases.let_go(&key, address);
        if let Some(before) = before {
            hold_again(leases, key, before);
        }
    });
    Ok(())
}

/// Stores a change, then puts it in force.
pub(super) async fn commit<D: DataPlane>(
    control: &RefCell<Control<D>>,
    prepared: Prepared,
) -> Result<(), Problem> {
    let Prepared { before, after, writes, enrolment, undo } = prepared;
    let stored = store(control, writes, enrolment.clone()).await;
    let Control { device, dataplane, peers, leases, events, .. } = &mut *control.borrow_mut();
    let (Some(peers), Some(leases)) = (peers, leases) else { return Ok(()) };
    if let Err(problem) = stored {
        undo(leases);
        return Err(problem);
    }
    if let Some(Enrolment { invite, client, at }) = enrolment {
        peers.invites.enrolled(&invite, client, at);
    }
    let now = leases.now();
    let mut request = SetRequest::default();
    let stays = after.as_ref().filter(|peer| peers::may_come_in(peer, now));
    if let Some(gone) = before.as_ref().map(|peer| peer.public_key)
        && stays.is_none_or(|peer| peer.public_key != gone)
    {
        clients::dismiss(device, dataplane, &gone, why_gone(after.as_ref(), now));
        request.peers.push(PeerChange { remove: true, ..PeerChange::new(gone) });
    }
    request.peers.extend(stays.map(peers::whole));
    let (peer, change) = match (&before, &after) {
        (None, Some(after)) => (after, PeerEvent::Made),
        (Some(_), Some(after)) => (after, PeerEvent::Changed),
        (Some(before), None) => (before, PeerEvent::Removed),
        (None, None) => return Ok(()),
    };
    events.add(now, what(peer, change));
    match (before, after) {
        (_, Some(after)) => peers.put(after),
        (before, None) => before.iter().for_each(|before| peers.remove(before.id)),
    }
    // The port and the mark stay, and there is room: see `prepare_new`.
    device
        .apply(request, dataplane)
        .map_err(|errno| Problem::internal(&format!("the peer is stored, not in force: {errno}")))
}

/// All of it, or nothing.
async fn store<D>(
    control: &RefCell<Control<D>>,
    writes: Writes,
    enrolment: Option<Enrolment>,
) -> Result<(), Problem> {
    let Some(enrolment) = enrolment else {
        let decided = parts(&control.borrow())?.1.store(writes)?;
        return Ok(decided.stored().await?);
    };
    // Not borrowed while it is waited for.
    let spending = parts(&control.borrow())?.1.enrol(enrolment, writes);
    if spending.await? {
        Ok(())
    } else {
        Err(Problem::new(409, SPENT, "the store knows of no use that is left".to_owned()))
    }
}

/// What a client hears when its key is to be no peer's any more.
fn why_gone(after: Option<&Peer>, now: Moment) -> &'static str {
    match after {
        None => "this client was removed",
        Some(peer) if peer.disabled => "this client is disabled",
        Some(peer) if peers::has_ended(peer, now) => "this client's time is over",
        Some(_) => "this client has another key now",
    }
}

fn what(peer: &Peer, change: PeerEvent) -> What {
    What::Peer { client: peer.public_key, name: peer.name.as_str().into(), change }
}

/// Ends the sessions of peers whose end came after `since`. Returns the moment up to which that was done.
pub(super) async fn expire<D: DataPlane>(control: &RefCell<Control<D>>, since: Moment) -> Moment {
    let Some(changing) = control.borrow().peers.as_ref().map(Peers::changing) else { return since };
    let _alone = changing.lock().await;
    let Control { device, dataplane, peers: Some(peers), leases: Some(leases), events, .. } =
        &mut *control.borrow_mut()
    else {
        return since;
    };
    let now = leases.now();
    let mut request = SetRequest::default();
    for peer in peers.ended(since, now).filter(|peer| device.peer(&peer.public_key).is_some()) {
        clients::dismiss(device, dataplane, &peer.public_key, why_gone(Some(peer), now));
        events.add(now, what(peer, PeerEvent::Ended));
        request.peers.push(PeerChange { remove: true, ..PeerChange::new(peer.public_key) });
    }
    if !request.peers.is_empty() {
        tracing::info!(peers = request.peers.len(), "peers have come to their end");
        // Taking away is never refused.
        let _ = device.apply(request, dataplane);
    }
    now
}
