//! Whose session lives: as the workers say, never guessed from anything's age.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Control;
use super::events::{SessionEvent, What};
use crate::dataplane::handoff::SessionChange;
use crate::types::{Moment, PeerId, PublicKey};

/// The peers that are there now.
#[derive(Debug, Default)]
pub struct Sessions(HashMap<PeerId, Live>);

/// A peer whose session lives.
#[derive(Debug)]
struct Live {
    client: PublicKey,
    /// For when it is gone: a peer that was removed has no name any more.
    name: Arc<str>,
    since: Moment,
    endpoint: SocketAddr,
}

impl Sessions {
    /// Since when the peer's session lives, if it does. Handshakes that renew it do not count.
    #[must_use]
    pub fn since(&self, peer: PeerId) -> Option<Moment> {
        self.0.get(&peer).map(|live| live.since)
    }
}

/// Notes what a worker has said, and has it told. A drop-in has nobody to tell.
pub fn note<D>(control: &mut Control<D>, peer: PeerId, change: SessionChange) {
    let Control { device, leases, peers, events, sessions: Sessions(sessions), .. } = control;
    let Some((leases, peers)) = leases.as_ref().zip(peers.as_ref()) else { return };
    let now = leases.now();
    let name_of = |client: &PublicKey| peers.name_of(client).unwrap_or_default().into();
    let (live, change) = match change {
        SessionChange::Connected(endpoint) => {
            // It may have gone meanwhile; and a key of an invite is nobody yet.
            let Some(client) = device.peer_by_id(peer).filter(|peer| !peer.is_temporary()) else { return };
            let client = client.public_key();
            let live = Live { client, name: name_of(&client), since: now, endpoint };
            sessions.insert(peer, live);
            (sessions.get(&peer), SessionEvent::Connected)
        }
        SessionChange::Moved(endpoint) => {
            let Some(live) = sessions.get_mut(&peer) else { return };
            (live.endpoint, live.name) = (endpoint, name_of(&live.client));
            (Some(&*live), SessionEvent::Moved)
        }
        SessionChange::Disconnected => {
            // One that went before its coming could be told.
            let Some(live) = sessions.remove(&peer) else { return };
            events.add(now, event(&live, SessionEvent::Disconnected));
            return;
        }
    };
    if let Some(live) = live {
        events.add(now, event(live, change));
    }
}

fn event(live: &Live, change: SessionEvent) -> What {
    What::Session { client: live.client, name: Arc::clone(&live.name), endpoint: live.endpoint, change }
}
