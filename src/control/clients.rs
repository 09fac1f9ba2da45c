//! What clients ask for in control frames: addresses, and to give them back.
//!
//! 1. [`begin`] decides a request: in memory, on its way to the store ([`super::leases`])
//! 2. when it is stored, [`finish`] gives the peer its addresses, for as long as it has the lease, and then tells it so
//! 3. [`expire`] takes them away when their time is over
//!
//! A peer stays on its worker whatever it leases: a prefix that the steering hash sends elsewhere gets an entry in the
//! steering map. Who has addresses by configuration is told those, and leases none.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Control;
use super::dataplane::DataPlane;
use super::device::{Device, LeaseRefused, Peer};
use super::events::{LeaseChange, What};
use super::leases::{Decided, Leases, RequestError};
use crate::dataplane::handoff::{Asked, Wish};
use crate::lease::{Ask, Granted, Lease, Refusal};
use crate::store::StoreError;
use crate::types::{Address, Moment, PeerId, Prefix, PublicKey, Suite, WorkerId};
use crate::wire::frame::enrolment::Enrolled;
use crate::wire::frame::lease::{AddrReply, AddrRequest, Families, Settings};
use crate::wire::frame::{self, Code};

/// Leases that end in one go; each costs the workers a prefix or two.
const SOME: usize = 1024;
/// What a client with addresses of its own is told that it has them for, seconds: when to look again whether all is as
/// it was.
const BY_CONFIGURATION: u32 = 86_400;
/// When to ask again if no address was free, seconds: the shortest lease.
const WHEN_FREE: u32 = 60;
/// When to ask again if the store could not store, seconds.
const WHEN_STORED: u32 = 10;

/// Where a client's addresses come asker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Its group; empty for none.
    pub group: String,
    /// The only pool for it; empty: those of its group.
    pub pool: String,
}

impl Membership {
    /// What a client of this membership asks for.
    #[must_use]
    pub fn ask(&self, client: PublicKey, wanted: Option<Ipv4Addr>) -> Ask<'_> {
        Ask { client, group: &self.group, pool: &self.pool, wanted }
    }
}

/// What has been answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New addresses.
    pub given: u64,
    /// Leases that were made longer.
    pub renewed: u64,
    /// Clients that went.
    pub released: u64,
    /// Leases whose time was over.
    pub expired: u64,
    /// Refusals, in the order of [`Code::ALL`].
    problems: [u64; Code::ALL.len()],
}

impl Counts {
    /// How often each problem was the answer.
    pub fn problems(&self) -> impl Iterator<Item = (Code, u64)> + '_ {
        Code::ALL.iter().copied().zip(self.problems)
    }
}

/// Who asks, and who has what.
#[derive(Debug, Default)]
pub struct Clients {
    /// The gateway's own addresses inside the tunnel.
    addresses: Vec<Address>,
    settings: Settings,
    members: HashMap<PublicKey, Membership>,
    known: HashMap<PublicKey, Known>,
    /// When what falls due, by client.
    ends: BTreeSet<(Moment, PublicKey)>,
    usage_ids: u32,
    counts: Counts,
}

/// A client that has asked, or that has a lease.
#[derive(Debug)]
struct Known {
    usage_id: u32,
    lease: Option<Lease>,
    /// What it called itself the last time; empty for nothing.
    hostname: Box<str>,
}

/// A request whose answer waits for the store.
#[derive(Debug)]
pub struct Waiting {
    asker: Asker,
    families: Families,
}

/// Who asked.
#[derive(Clone, Copy, Debug)]
struct Asker {
    peer: PeerId,
    worker: WorkerId,
    client: PublicKey,
    suite: Suite,
    stream_id: u32,
}

impl Clients {
    /// What all are told, and which pools are whose: in the place of what was so before.
    pub fn configure(
        &mut self,
        addresses: Vec<Address>,
        settings: Settings,
        members: HashMap<PublicKey, Membership>,
    ) {
        (self.addresses, self.settings, self.members) = (addresses, settings, members);
    }

    /// What has been answered.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What the client called itself when it last asked, if anything. Letters, digits and hyphens.
    #[must_use]
    pub fn hostname(&self, client: &PublicKey) -> Option<&str> {
        self.known.get(client).map(|known| &*known.hostname).filter(|name| !name.is_empty())
    }

    /// Notes what the client calls itself.
    fn note_hostname(&mut self, client: PublicKey, hostname: &str) {
        self.usage_id(client);
        if let Some(known) = self.known.get_mut(&client).filter(|known| &*known.hostname != hostname) {
            known.hostname = hostname.into();
        }
    }

    /// The client's number on this gateway, from its first request on, while the process lives.
    fn usage_id(&mut self, client: PublicKey) -> u32 {
        let Self { known, usage_ids, .. } = self;
        let known = known.entry(client).or_insert_with(|| {
            *usage_ids = usage_ids.wrapping_add(1).max(1);
            Known { usage_id: *usage_ids, lease: None, hostname: Box::default() }
        });
        known.usage_id
    }

    /// Notes what the client has from now on, and when that ends. Returns what it had.
    fn note(&mut self, client: PublicKey, lease: Option<Lease>) -> Option<Lease> {
        self.usage_id(client);
        let before = self.known.get_mut(&client).and_then(|known| std::mem::replace(&mut known.lease, lease));
        if let Some(before) = before {
            self.ends.remove(&(before.until, client));
        }
        if let Some(lease) = lease {
            self.ends.insert((lease.until, client));
        }
        before
    }

    /// The answer for a client with these addresses.
    fn reply(&mut self, asker: Asker, own: (Option<Ipv4Addr>, Option<Ipv6Addr>), seconds: u32) -> Vec<u8> {
        self.offer(asker.client, own, seconds).write(&self.settings, asker.stream_id)
    }

    /// What a peer with these addresses by name is told when it is let in.
    pub fn registration(
        &mut self,
        client: PublicKey,
        name: &str,
        own: (Option<Ipv4Addr>, Option<Ipv6Addr>),
        keepalive: u16,
    ) -> Enrolled {
        let reply = self.offer(client, own, BY_CONFIGURATION);
        Enrolled { reply, settings: self.settings.clone(), name: name.to_owned(), keepalive }
    }

    fn offer(
        &mut self,
        client: PublicKey,
        own: (Option<Ipv4Addr>, Option<Ipv6Addr>),
        seconds: u32,
    ) -> AddrReply {
        let usage_id = self.usage_id(client);
        let gateway = |v4: bool| self.addresses.iter().map(Address::addr).find(|addr| addr.is_ipv4() == v4);
        let v4 = |addr| if let IpAddr::V4(addr) = addr { Some(addr) } else { None };
        let v6 = |addr| if let IpAddr::V6(addr) = addr { Some(addr) } else { None };
        AddrReply {
            ipv4: own.0.map(|addr| (addr, self.length_of(addr.into()))),
            ipv6: own.1.map(|addr| (addr, self.length_of(addr.into()))),
            gateway_ipv4: own.0.and(gateway(true)).and_then(v4),
            gateway_ipv6: own.1.and(gateway(false)).and_then(v6),
            seconds,
            usage_id,
        }
    }

    /// The length of the gateway's network that has the address; that of a host if none has.
    fn length_of(&self, addr: IpAddr) -> u8 {
        let network = self.addresses.iter().find(|own| own.network().contains(addr));
        network.map_or(Prefix::host(addr).len(), Address::prefix_len)
    }
}

/// Decides a request. What is returned waits for the store; everything else is answered already.
pub fn begin<D: DataPlane>(control: &mut Control<D>, asked: Asked) -> Option<(Waiting, Decided<Granted>)> {
    let Asked { peer: id, suite, stream_id, what } = asked;
    // It may have gone meanwhile.
    let peer = control.device.peer_by_id(id)?;
    let (client, worker) = (peer.public_key(), peer.worker());
    let asker = Asker { peer: id, worker, client, suite, stream_id };
    let request = match what {
        Wish::Addresses(request) => request,
        Wish::Disconnect => {
            release(control, client);
            return None;
        }
        // Of a temporary peer, which `admin::enrol` answers.
        Wish::Enrol(..) => return None,
    };
    control.clients.note_hostname(client, &request.hostname);
    if let own @ ((Some(_), _) | (_, Some(_))) = by_configuration(peer) {
        let own = chosen(own, request.families);
        if own == (None, None) {
            refuse(control, asker, Code::NoFreeAddr, None);
            return None;
        }
        let reply = control.clients.reply(asker, own, BY_CONFIGURATION);
        control.dataplane.send_frame(worker, id, suite, &reply);
        return None;
    }
    let Control { leases, clients, .. } = &mut *control;
    let Some(leases) = leases else {
        refuse(control, asker, Code::NotAllowed, None);
        return None;
    };
    let everybody = Membership::default();
    let member = clients.members.get(&client).unwrap_or(&everybody);
    match leases.request(&member.ask(client, wanted(&request))) {
        Ok(decided) => Some((Waiting { asker, families: request.families }, decided)),
        Err(error) => {
            let (code, retry_after) = problem(&error);
            refuse(control, asker, code, retry_after);
            None
        }
    }
}

/// Answers a request whose lease is stored, or is not.
pub fn finish<D: DataPlane>(control: &mut Control<D>, waiting: Waiting, stored: Result<Granted, StoreError>) {
    let Waiting { asker, families } = waiting;
    let Granted { lease, renewed, left } = match stored {
        Ok(granted) => granted,
        Err(error) => {
            let (code, retry_after) = problem(&RequestError::Store(error));
            return refuse(control, asker, code, retry_after);
        }
    };
    let Control { device, dataplane, leases, clients, events, .. } = &mut *control;
    let Some(leases) = leases else { return };
    // It may have been given back, or made longer, while it was being stored.
    let Some(lease) = leases.lease_of(&asker.client).filter(|now| now.address == lease.address) else {
        return;
    };
    match device.set_lease(asker.peer, &prefixes(&lease), dataplane) {
        Ok(()) => {}
        Err(LeaseRefused::Gone) => return,
        Err(LeaseRefused::Taken | LeaseRefused::NoRoom) => {
            return refuse(control, asker, Code::AlreadyAssignedAddr, Some(WHEN_FREE));
        }
    }
    let before = clients.note(asker.client, Some(lease));
    let own = chosen((Some(lease.address), lease.ipv6), families);
    if own == (None, None) {
        return refuse(control, asker, Code::NoFreeAddr, None);
    }
    let now = leases.now();
    let reply = clients.reply(asker, own, lease.until.0.saturating_sub(now.0));
    // Behind the prefixes, in the same queue: what the client sends at once may pass.
    dataplane.send_frame(asker.worker, asker.peer, asker.suite, &reply);
    if let Some(left) = left.filter(|left| before.is_some_and(|before| before.address == left.address)) {
        events.add(now, event(&left, LeaseChange::Released));
    }
    let known = renewed && before.is_some();
    *if known { &mut clients.counts.renewed } else { &mut clients.counts.given } += 1;
    events.add(now, event(&lease, if known { LeaseChange::Renewed } else { LeaseChange::Given }));
}

/// Gives peers the addresses that they have leased in a former life, or before the peers were made.
pub fn adopt<D: DataPlane>(control: &mut Control<D>) {
    let Control { device, dataplane, leases, clients, .. } = &mut *control;
    let Some(leases) = leases else { return };
    let leased = |peer: &Peer| Some((peer.id(), leases.lease_of(&peer.public_key())?));
    let found: Vec<_> = device
        .peers()
        .into_iter()
        .filter(|peer| peer.leased().is_empty() && by_configuration(peer) == (None, None))
        .filter_map(leased)
        .collect();
    for (id, lease) in found {
        match device.set_lease(id, &prefixes(&lease), dataplane) {
            Ok(()) => drop(clients.note(lease.client, Some(lease))),
            Err(error) => {
                tracing::warn!("a lease is not in force: {error}");
                tracing::debug!(client = ?lease.client, "whose lease that is");
            }
        }
    }
}

/// Takes away some addresses whose lease is over. True if there may be more.
pub fn expire<D: DataPlane>(control: &mut Control<D>) -> bool {
    let Control { device, dataplane, leases, clients, events, .. } = &mut *control;
    let Some(leases) = leases else { return false };
    let now = leases.now();
    let mut over = Vec::new();
    for _ in 0..SOME {
        let due = clients.ends.first().copied().filter(|(until, _)| *until <= now);
        let Some((_, client)) = due else { break };
        // It may have been made longer, without the client's having been told.
        let Some(before) = clients.note(client, leases.lease_of(&client)) else { break };
        if leases.lease_of(&client).is_none() {
            clients.counts.expired += 1;
            events.add(now, event(&before, LeaseChange::Expired));
            over.extend(device.peer(&client).map(Peer::id));
        }
    }
    device.end_leases(&over, dataplane);
    over.len() == SOME
}

/// The client goes: its addresses are nobody's, and rest.
fn release<D: DataPlane>(control: &mut Control<D>, client: PublicKey) {
    let Control { device, dataplane, leases, clients, events, .. } = &mut *control;
    let Some(leases) = leases else { return };
    // What cannot be stored ends by itself, after a restart as well: nobody is told of it.
    let Ok(decided) = leases.release(&client) else { return };
    if let Some(lease) = decided.without_waiting() {
        clients.note(client, None);
        clients.counts.released += 1;
        events.add(leases.now(), event(&lease, LeaseChange::Released));
    }
    let id = device.peer(&client).map(Peer::id);
    device.end_leases(id.as_slice(), dataplane);
}

/// Tells a client that is about to go as a peer why, if there is a session to do it in and it speaks in frames: what
/// it sends from then on is answered by nobody.
pub fn dismiss<D: DataPlane>(device: &Device, dataplane: &mut D, client: &PublicKey, why: &str) {
    let Some(peer) = device.peer(client) else { return };
    let frame = frame::problem_saying(0, Code::NotAllowed, why, None, None);
    dataplane.dismiss(peer.worker(), peer.id(), &frame);
}

fn refuse<D: DataPlane>(control: &mut Control<D>, asker: Asker, code: Code, retry_after: Option<u32>) {
    let place = Code::ALL.iter().position(|known| *known == code);
    if let Some(count) = place.and_then(|place| control.clients.counts.problems.get_mut(place)) {
        *count += 1;
    }
    let frame = frame::problem_with(asker.stream_id, code, retry_after, None);
    control.dataplane.send_frame(asker.worker, asker.peer, asker.suite, &frame);
}

/// What the client is told, and when asking again makes sense.
fn problem(error: &RequestError) -> (Code, Option<u32>) {
    match error {
        RequestError::Refused(Refusal::NoFreeAddress) => (Code::NoFreeAddr, Some(WHEN_FREE)),
        RequestError::Refused(Refusal::Taken { .. }) => (Code::AlreadyAssignedAddr, Some(WHEN_FREE)),
        RequestError::Refused(_) => (Code::NotAllowed, None),
        RequestError::Store(error) if error.heals() => (Code::NoFreeAddr, Some(WHEN_STORED)),
        RequestError::Store(_) => (Code::NoFreeAddr, Some(WHEN_FREE)),
    }
}

/// The addresses that the peer has by name.
fn by_configuration(peer: &Peer) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let mut own = (None, None);
    for prefix in peer.prefixes().filter(|prefix| prefix.is_host() && !peer.leased().contains(prefix)) {
        match prefix.addr() {
            IpAddr::V4(addr) => own.0 = own.0.or(Some(addr)),
            IpAddr::V6(addr) => own.1 = own.1.or(Some(addr)),
        }
    }
    own
}

/// Of these addresses those that are wanted.
fn chosen<A, B>((v4, v6): (Option<A>, Option<B>), wanted: Families) -> (Option<A>, Option<B>) {
    (v4.filter(|_| wanted.ipv4), v6.filter(|_| wanted.ipv6))
}

/// The IPv4 address that is wished for: an IPv6 address of a pool has it in its low 32 bits.
fn wanted(request: &AddrRequest) -> Option<Ipv4Addr> {
    request.ipv4.or_else(|| request.ipv6.map(|addr| Ipv4Addr::from_bits(addr.to_bits() as u32)))
}

fn prefixes(lease: &Lease) -> Vec<Prefix> {
    let addresses = [Some(IpAddr::V4(lease.address)), lease.ipv6.map(IpAddr::V6)];
    addresses.into_iter().flatten().map(Prefix::host).collect()
}

fn event(lease: &Lease, change: LeaseChange) -> What {
    let Lease { client, address, ipv6, until, .. } = *lease;
    What::Lease { client, address, ipv6, until, change }
}

/// The address by which a peer that is to be made gets its owner: the one that it has, or would be given.
#[must_use]
pub fn home(
    device: &Device,
    leases: &mut Leases,
    member: &Membership,
    client: PublicKey,
) -> Option<Ipv4Addr> {
    if device.peer(&client).is_some() {
        return None;
    }
    leases.earmark(&member.ask(client, None)).ok()
}

#[cfg(test)]
mod tests;
