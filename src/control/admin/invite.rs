//! Invites: made, looked at and taken back by the operator, and spent by whoever has one ([`enrol`]).

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::change::{self, Prepared, check_group, commit, free_key};
use super::look::{limit, parts};
use super::wire::{EnrolledView, InviteState, InviteView, Key, NewInvite, Page, Which};
use super::{Problem, Reply};
use crate::control::Control;
use crate::control::dataplane::DataPlane;
use crate::control::invites::{Invites, MAX_KEYS, Outcome, standing};
use crate::control::peers::{self, Peers};
use crate::control::uapi::{PeerChange, SetRequest};
use crate::noise::handshaker::NotInvited;
use crate::store::thread::Writes;
use crate::store::{Enrolment, Invite, Peer, Write};
use crate::types::{Moment, PeerId, PublicKey, Suite};
use crate::wire::frame::{self, Code};
use crate::wire::invite::{MAX_ID, MAX_USES, is_id};

/// Longest prefix of a name, bytes: a hyphen and a number of seven digits follow it.
const MAX_PREFIX: usize = peers::MAX_NAME - 8;
/// When to come again if no address was free, and if nothing could be stored, seconds.
const WHEN_FREE: u32 = 60;
const WHEN_STORED: u32 = 10;

/// Makes an invite. One of this id that is just so already is as good.
pub(super) async fn put<D: DataPlane>(
    control: &RefCell<Control<D>>,
    id: &str,
    wanted: NewInvite,
) -> Result<Reply, Problem> {
    let changing = parts(&control.borrow())?.0.changing();
    let _alone = changing.lock().await;
    let invite = {
        let control = control.borrow();
        let (peers, leases) = parts(&control)?;
        let invite = prepare(id, wanted, leases.now())?;
        if let Some(there) = peers.invites.get(id) {
            let Invite { keys, prefix, group, expires, .. } = there;
            let same = (keys, prefix, group, expires)
                == (&invite.keys, &invite.prefix, &invite.group, &invite.expires);
            return if same {
                Ok(Reply::json(200, &view(peers, there, leases.now())))
            } else {
                Err(Problem::conflict(format!("there is another invite {id:?} already: take another id")))
            };
        }
        check_room(peers, invite.keys.len())?;
        // Of one key that is somebody's, all are to be made anew.
        for key in &invite.keys {
            free_key(&control, peers, key)?;
        }
        invite
    };
    store(control, Write::Invite(Box::new(invite.clone()))).await?;
    let control = &mut *control.borrow_mut();
    let Control { device, dataplane, peers: Some(peers), leases: Some(leases), .. } = control else {
        return Err(Problem::internal("this device has no store"));
    };
    let temporary = invite.keys.iter().copied().map(peers::temporary).collect();
    let request = SetRequest { peers: temporary, ..SetRequest::default() };
    let reply = view(peers, &invite, leases.now());
    peers.invites.put(invite);
    // There is room: see above.
    let applied = device.apply(request, dataplane);
    applied.map_err(|errno| Problem::internal(&format!("the invite is stored, not in force: {errno}")))?;
    Ok(Reply::json(201, &reply))
}

fn prepare(id: &str, wanted: NewInvite, now: Moment) -> Result<Invite, Problem> {
    let NewInvite { keys, prefix, group, expires } = wanted;
    if !is_id(id) {
        return Err(Problem::invalid(format!("an id has 1 to {MAX_ID} letters and digits")));
    }
    let different = keys.iter().map(|Key(key)| key).collect::<BTreeSet<_>>().len();
    if !(1..=usize::from(MAX_USES)).contains(&keys.len()) || different < keys.len() {
        return Err(Problem::invalid(format!("keys: 1 to {MAX_USES}, each another")));
    }
    if !peers::is_name(&prefix) || prefix.len() > MAX_PREFIX {
        return Err(Problem::invalid(format!(
            "prefix: the beginning of a name, {MAX_PREFIX} bytes at most: letters, digits, spaces and ._@+-"
        )));
    }
    check_group(&group)?;
    let expires = change::end(Some(expires), now)?.unwrap_or(now);
    let keys = keys.into_iter().map(|Key(key)| key).collect();
    let id = id.to_owned();
    Ok(Invite { id, keys, prefix, group, created: now, expires, revoked: None, enrolled: Vec::new() })
}

fn check_room(peers: &Peers, more: usize) -> Result<(), Problem> {
    let keys = peers.invites.count() + more;
    if keys > MAX_KEYS {
        return Err(Problem::conflict(format!(
            "all invites together have {MAX_KEYS} uses at most, and an invite is kept for 7 days after its end: ask \
             for fewer, or wait"
        )));
    }
    change::check_room(peers, more)
}

/// Takes an invite back: it lets nobody in any more. Who has come by it stays.
pub(super) async fn revoke<D: DataPlane>(control: &RefCell<Control<D>>, id: &str) -> Result<Reply, Problem> {
    let changing = parts(&control.borrow())?.0.changing();
    let _alone = changing.lock().await;
    let (open, now) = {
        let control = control.borrow();
        let (peers, leases) = parts(&control)?;
        (found(peers, id)?.revoked.is_none(), leases.now())
    };
    if open {
        store(control, Write::Revoke { id: id.to_owned(), at: now }).await?;
        if let Some(peers) = &mut control.borrow_mut().peers {
            peers.invites.revoke(id, now);
        }
    }
    one(&control.borrow(), id)
}

async fn store<D>(control: &RefCell<Control<D>>, write: Write) -> Result<(), Problem> {
    let asked = parts(&control.borrow())?.1.store(Writes::from_iter([write]))?;
    Ok(asked.stored().await?)
}

fn found<'a>(peers: &'a Peers, id: &str) -> Result<&'a Invite, Problem> {
    let missing = || Problem::missing(format!("there is no invite {id:?}: `ringway invite list` shows them"));
    peers.invites.get(id).ok_or_else(missing)
}

/// One invite.
pub(super) fn one<D>(control: &Control<D>, id: &str) -> Result<Reply, Problem> {
    let (peers, leases) = parts(control)?;
    Ok(Reply::json(200, &view(peers, found(peers, id)?, leases.now())))
}

/// Invites by their ids.
pub(super) fn all<D>(control: &Control<D>, which: &Which) -> Result<Reply, Problem> {
    let (peers, leases) = parts(control)?;
    let (limit, now) = (limit(which)?, leases.now());
    let mut each = peers.invites.after(which.after.as_deref().unwrap_or_default()).peekable();
    let items: Vec<_> = each.by_ref().take(limit).map(|invite| view(peers, invite, now)).collect();
    let next = items.last().map(|last| last.id.clone()).filter(|_| each.peek().is_some());
    Ok(Reply::json(200, &Page { items, next }))
}

fn view(peers: &Peers, invite: &Invite, now: Moment) -> InviteView {
    let Invite { id, keys, prefix, group, created, expires, revoked, enrolled } = invite;
    InviteView {
        id: id.clone(),
        prefix: prefix.clone(),
        group: group.clone(),
        uses: keys.len(),
        state: match standing(invite, now) {
            Outcome::Revoked => InviteState::Revoked,
            Outcome::Expired => InviteState::Expired,
            Outcome::Spent => InviteState::Spent,
            _ => InviteState::Open,
        },
        created: created.0,
        expires: expires.0,
        revoked: revoked.map(|at| at.0),
        enrolled: enrolled
            .iter()
            .map(|(key, at)| EnrolledView {
                public_key: Key(*key),
                name: peers.name_of(key).map(str::to_owned),
                at: at.0,
            })
            .collect(),
    }
}

/// Forgets invites that ended long ago.
pub(super) async fn forget<D: DataPlane>(control: &RefCell<Control<D>>) {
    let Some(changing) = control.borrow().peers.as_ref().map(Peers::changing) else { return };
    let _alone = changing.lock().await;
    loop {
        let id = {
            let control = control.borrow();
            let Ok((peers, leases)) = parts(&control) else { return };
            let Some(invite) = peers.invites.forgettable(leases.now()) else { return };
            invite.id.clone()
        };
        if let Err(problem) = store(control, Write::RemoveInvite { id: id.clone() }).await {
            // It is tried again.
            return tracing::debug!(?problem, "an invite is not forgotten");
        }
        let Control { device, dataplane, peers: Some(peers), .. } = &mut *control.borrow_mut() else {
            return;
        };
        let keys = peers.invites.remove(&id).map(|invite| invite.keys).unwrap_or_default();
        let gone = keys.into_iter().map(|key| PeerChange { remove: true, ..PeerChange::new(key) });
        let request = SetRequest { peers: gone.collect(), ..SetRequest::default() };
        // Taking away is never refused.
        let _ = device.apply(request, dataplane);
    }
}

/// What a client is told that is not let in.
struct Refused(Outcome, Option<u32>);

impl From<Outcome> for Refused {
    fn from(outcome: Outcome) -> Self {
        Self(outcome, None)
    }
}

/// Answers an ENROLL of the temporary peer `id`: `own` is to be a peer's key, `verdict` what the handshake thread says
/// of proof and key.
pub async fn enrol<D: DataPlane>(
    control: &RefCell<Control<D>>,
    id: PeerId,
    stream_id: u32,
    own: PublicKey,
    verdict: Result<(), NotInvited>,
) {
    let Some(changing) = control.borrow().peers.as_ref().map(Peers::changing) else { return };
    let _alone = changing.lock().await;
    let enrolled = match verdict {
        Ok(()) => let_in(control, id, own).await,
        Err(NotInvited::NotProven) => Err(Outcome::BadProof.into()),
        Err(NotInvited::LowOrder | NotInvited::OwnKey) => Err(Outcome::BadKey.into()),
    };
    let Control { device, dataplane, peers: Some(peers), clients, .. } = &mut *control.borrow_mut() else {
        return;
    };
    let (outcome, frame) = match enrolled {
        Ok((outcome, peer)) => {
            let keepalive = peers.site.clients.keepalive;
            let own = (peer.ipv4, peer.ipv6);
            let enrolled = clients.registration(peer.public_key, &peer.name, own, keepalive);
            (outcome, enrolled.write(stream_id))
        }
        Err(Refused(outcome, again)) => {
            let code = if again.is_some() { Code::NoFreeAddr } else { Code::NotAllowed };
            (outcome, frame::problem_saying(stream_id, code, outcome.text(), again, None).to_vec())
        }
    };
    peers.invites.count_outcome(outcome);
    // Behind whatever made the peer: who is told may come.
    if let Some(asker) = device.peer_by_id(id) {
        dataplane.send_frame(asker.worker(), id, Suite::ChaCha20Poly1305, &frame);
    }
}

/// Makes a peer of whoever has been invited, or finds the one that it is.
async fn let_in<D: DataPlane>(
    control: &RefCell<Control<D>>,
    id: PeerId,
    own: PublicKey,
) -> Result<(Outcome, Peer), Refused> {
    let prepared = {
        let control = &mut *control.borrow_mut();
        let (peers, leases) = parts(control).map_err(|_| Outcome::NotStored)?;
        let temporary = control.device.peer_by_id(id).ok_or(Outcome::BadProof)?.public_key();
        let invite = peers.invites.of_key(&temporary).ok_or(Outcome::BadProof)?;
        match Invites::look(invite, &own, leases.now()) {
            Outcome::Joined => {}
            Outcome::Again => {
                let peer = peers.of_key(&own).ok_or(Outcome::Removed)?;
                return Ok((Outcome::Again, peer.clone()));
            }
            refused => return Err(refused.into()),
        }
        if free_key(control, peers, &own).is_err() {
            return Err(Outcome::KnownKey.into());
        }
        let invite = invite.clone();
        prepare_peer(control, &invite, own)?
    };
    let peer = prepared.after.clone().ok_or(Outcome::NotStored)?;
    match commit(control, prepared).await {
        Ok(()) => Ok((Outcome::Joined, peer)),
        // The store knows better.
        Err(problem) if problem.code == change::SPENT => Err(Outcome::Spent.into()),
        Err(_) => Err(Refused(Outcome::NotStored, Some(WHEN_STORED))),
    }
}

fn prepare_peer<D>(control: &mut Control<D>, invite: &Invite, own: PublicKey) -> Result<Prepared, Refused> {
    let (peers, leases) = parts(control).map_err(|_| Outcome::NotStored)?;
    let now = leases.now();
    let peer = Peer {
        id: peers.fresh_id(),
        name: free_name(peers, invite),
        public_key: own,
        preshared_key: None,
        ipv4: None,
        ipv6: None,
        group: invite.group.clone(),
        expires: None,
        disabled: false,
        created: now,
    };
    let seated = change::seat(control, peer, (None, None), "");
    let mut prepared = seated.map_err(|_| Refused(Outcome::NoAddress, Some(WHEN_FREE)))?;
    prepared.enrolment = Some(Enrolment { invite: invite.id.clone(), client: own, at: now });
    Ok(prepared)
}

/// The prefix alone for the only use, else with a number.
fn free_name(peers: &Peers, invite: &Invite) -> String {
    let Invite { prefix, keys, enrolled, .. } = invite;
    let alone = (keys.len() == 1).then(|| prefix.clone());
    let numbered = (enrolled.len() + 1..).map(|n| format!("{prefix}-{n}"));
    let is_free = |name: &String| peers.named(name).is_none() && peers.site.named(name).is_none();
    // There are fewer peers than numbers.
    alone.into_iter().chain(numbered).find(is_free).unwrap_or_default()
}
