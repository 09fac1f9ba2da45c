//! The peers of the store, and what the gateway's file says that they must fit to. A peer belongs to one of the two: a
//! name, a key or an address that stands in both is refused.
//!
//! Whoever changes something holds [`Peers::changing`] from before he looks until it is stored and in force, so that
//! two changes never decide by the same state; who only looks waits for nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::config::{self, ConfigError};
use crate::control::invites::Invites;
use crate::control::uapi::format::ShowPeer;
use crate::control::uapi::{AllowedIp, PeerChange};
use crate::store::{Invite, Peer};
use crate::types::{Address, Moment, Prefix, PublicKey};

/// Longest name of a peer, bytes.
pub const MAX_NAME: usize = 64;

/// A peer of the file.
#[derive(Clone, Debug)]
pub struct FilePeer {
    /// What people call it; empty for nothing.
    pub name: String,
    /// Its identity.
    pub public_key: PublicKey,
    /// Its group; empty for none.
    pub group: String,
    /// Where the file says so, counted from 1.
    pub line: usize,
}

/// What the file says, as far as peers of the store must fit to it.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// The file.
    pub path: PathBuf,
    /// The interface.
    pub interface: String,
    /// The gateway's own addresses, with their networks.
    pub addresses: Vec<Address>,
    /// Bytes of an inner packet.
    pub mtu: u32,
    /// What clients are told.
    pub clients: config::Clients,
    peers: Vec<FilePeer>,
    by_key: HashMap<PublicKey, usize>,
    by_name: HashMap<String, usize>,
}

impl Site {
    /// Of a file that was read.
    #[must_use]
    pub fn new(path: &Path, file: &config::Gateway) -> Self {
        let peers: Vec<_> = file
            .peer
            .iter()
            .map(|peer| FilePeer {
                name: peer.name.clone(),
                public_key: peer.public_key,
                group: peer.group.clone(),
                line: peer.line,
            })
            .collect();
        let named = peers.iter().enumerate().filter(|(_, peer)| !peer.name.is_empty());
        Self {
            path: path.to_owned(),
            interface: file.interface.to_string(),
            addresses: file.addresses.clone(),
            mtu: file.mtu,
            clients: file.clients.clone(),
            by_key: peers.iter().enumerate().map(|(at, peer)| (peer.public_key, at)).collect(),
            by_name: named.map(|(at, peer)| (peer.name.clone(), at)).collect(),
            peers,
        }
    }

    /// The file's peers, in its order.
    #[must_use]
    pub fn peers(&self) -> &[FilePeer] {
        &self.peers
    }

    /// The file's peer of this identity.
    #[must_use]
    pub fn of_key(&self, key: &PublicKey) -> Option<&FilePeer> {
        self.by_key.get(key).and_then(|at| self.peers.get(*at))
    }

    /// The file's peer of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&FilePeer> {
        self.by_name.get(name).and_then(|at| self.peers.get(*at))
    }

    /// `FILE:LINE`.
    #[must_use]
    pub fn place(&self, peer: &FilePeer) -> String {
        format!("{}:{}", self.path.display(), peer.line)
    }
}

/// All peers of the store.
#[derive(Debug, Default)]
pub struct Peers {
    /// The file's side.
    pub site: Site,
    /// Who may become a peer: changed by whoever holds [`Self::changing`], as peers are.
    pub invites: Invites,
    by_id: BTreeMap<u64, Peer>,
    by_name: BTreeMap<String, u64>,
    by_key: HashMap<PublicKey, u64>,
    by_address: BTreeMap<IpAddr, u64>,
    by_end: BTreeSet<(Moment, u64)>,
    changing: Arc<Mutex<()>>,
}

impl Peers {
    /// Those that the store had when it was opened.
    #[must_use]
    pub fn new(site: Site, stored: Vec<Peer>, invites: Vec<Invite>) -> Self {
        let mut peers = Self { site, invites: Invites::new(invites), ..Self::default() };
        for peer in stored {
            peers.put(peer);
        }
        peers
    }

    /// Held by whoever changes peers, of the store or of the file.
    #[must_use]
    pub fn changing(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.changing)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    /// A number that no peer has.
    #[must_use]
    pub fn fresh_id(&self) -> u64 {
        self.by_id.last_key_value().map_or(1, |(last, _)| last + 1)
    }

    /// Every peer, in the order of making.
    pub fn all(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    /// Those whose names come after this one, in the order of names.
    pub fn after<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Peer> {
        use std::ops::Bound::{Excluded, Unbounded};
        let names = self.by_name.range::<str, _>((Excluded(name), Unbounded));
        names.filter_map(|(_, id)| self.by_id.get(id))
    }

    /// The peer of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Peer> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    /// The peer of this identity.
    #[must_use]
    pub fn of_key(&self, key: &PublicKey) -> Option<&Peer> {
        self.by_key.get(key).and_then(|id| self.by_id.get(id))
    }

    /// The peer that has an address within the prefix, if there is one.
    #[must_use]
    pub fn within(&self, prefix: &Prefix) -> Option<&Peer> {
        let (address, id) = self.by_address.range(prefix.addr()..).next()?;
        if prefix.contains(*address) { self.by_id.get(id) } else { None }
    }

    /// What people call whoever has this identity, if anything.
    #[must_use]
    pub fn name_of(&self, key: &PublicKey) -> Option<&str> {
        let store = self.of_key(key).map(|peer| peer.name.as_str());
        let name = store.or_else(|| self.site.of_key(key).map(|peer| peer.name.as_str()));
        name.filter(|name| !name.is_empty())
    }

    /// Puts a peer in the place of the one with the same number, if there is one.
    pub fn put(&mut self, peer: Peer) {
        self.remove(peer.id);
        self.by_name.insert(peer.name.clone(), peer.id);
        self.by_key.insert(peer.public_key, peer.id);
        self.by_address.extend(addresses(&peer).map(|address| (address, peer.id)));
        self.by_end.extend(peer.expires.map(|end| (end, peer.id)));
        self.by_id.insert(peer.id, peer);
    }

    /// Takes a peer out.
    pub fn remove(&mut self, id: u64) {
        let Some(peer) = self.by_id.remove(&id) else { return };
        self.by_name.remove(&peer.name);
        self.by_key.remove(&peer.public_key);
        for address in addresses(&peer) {
            self.by_address.remove(&address);
        }
        if let Some(end) = peer.expires {
            self.by_end.remove(&(end, id));
        }
    }

    /// Those whose end came after `since`, up to and including `now`.
    pub fn ended(&self, since: Moment, now: Moment) -> impl Iterator<Item = &Peer> {
        // A range that ends before it begins is a panic.
        let due = (since < now).then(|| self.by_end.range((since + 1, 0)..=(now, u64::MAX)));
        due.into_iter().flatten().filter_map(|(_, id)| self.by_id.get(id))
    }

    /// All that the model has to know of them: those that may come in, and those who may become one.
    pub fn in_force(&self, now: Moment) -> impl Iterator<Item = PeerChange> {
        self.all()
            .filter(move |peer| may_come_in(peer, now))
            .map(whole)
            .chain(self.invites.keys().map(temporary))
    }

    /// Adds to a report who a peer is.
    pub fn describe(&self, shown: &mut ShowPeer) {
        let Ok(key) = shown.public_key.parse() else { return };
        let (source, name) = match (self.of_key(&key), self.site.of_key(&key)) {
            (Some(peer), _) => ("store", &peer.name),
            (None, Some(peer)) => ("file", &peer.name),
            (None, None) => return,
        };
        shown.source = Some(source.to_owned());
        shown.name = Some(name.clone()).filter(|name| !name.is_empty());
    }

    /// What of a file belongs to peers of the store already, each with its line.
    ///
    /// # Errors
    /// All of it.
    pub fn check(&self, path: &Path, file: &config::Gateway) -> Result<(), ConfigError> {
        let mut wrong = Vec::new();
        for own in &file.addresses {
            if let Some(theirs) = self.within(&Prefix::host(own.addr())) {
                let text =
                    format!("addresses: {} is that of the peer {:?} of the store", own.addr(), theirs.name);
                wrong.push((None, text));
            }
        }
        for peer in &file.peer {
            let mut say = |what: &str, theirs: &Peer| {
                let text = format!(
                    "{what} is that of the peer {:?} of the store: `ringway peer remove` it, or take this out here",
                    theirs.name
                );
                wrong.push((Some(peer.line), text));
            };
            if let Some(theirs) = self.of_key(&peer.public_key) {
                say("this public key", theirs);
            }
            if let Some(theirs) = self.named(&peer.name) {
                say("this name", theirs);
            }
            // What is everybody's yields to any address.
            for prefix in peer.allowed_ips.iter().filter(|prefix| prefix.len() > 0) {
                if let Some(theirs) = self.within(prefix) {
                    say(&format!("an address of {prefix}"), theirs);
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(ConfigError::new(path, wrong)) }
    }
}

/// A peer's addresses.
pub fn addresses(peer: &Peer) -> impl Iterator<Item = IpAddr> + use<> {
    peer.ipv4.map(IpAddr::V4).into_iter().chain(peer.ipv6.map(IpAddr::V6))
}

/// A peer's addresses, as what it may send from.
pub fn prefixes(peer: &Peer) -> impl Iterator<Item = Prefix> + use<> {
    addresses(peer).map(Prefix::host)
}

/// True if the peer has come to its end.
#[must_use]
pub fn has_ended(peer: &Peer, now: Moment) -> bool {
    peer.expires.is_some_and(|end| end <= now)
}

/// True if the peer may come in.
#[must_use]
pub fn may_come_in(peer: &Peer, now: Moment) -> bool {
    !peer.disabled && !has_ended(peer, now)
}

/// The model's whole knowledge of a peer.
#[must_use]
pub fn whole(peer: &Peer) -> PeerChange {
    PeerChange {
        preshared_key: Some(peer.preshared_key.clone()),
        replace_allowed_ips: true,
        allowed_ips: prefixes(peer).map(AllowedIp::Add).collect(),
        ..PeerChange::new(peer.public_key)
    }
}

/// The model's whole knowledge of the key of an invite's use.
#[must_use]
pub fn temporary(key: PublicKey) -> PeerChange {
    PeerChange { temporary: true, ..PeerChange::new(key) }
}

/// True of a name that people, shells and addresses of the API can bear: letters, digits, spaces and `._@+-`, the first
/// a letter or a digit, at most [`MAX_NAME`] bytes, and no key.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let of_a_name = |letter: char| letter.is_alphanumeric() || " ._@+-".contains(letter);
    text.len() <= MAX_NAME
        && text.starts_with(char::is_alphanumeric)
        && text.chars().all(of_a_name)
        && !text.ends_with(' ')
        && text.parse::<PublicKey>().is_err()
}

/// The host of an IPv4 or IPv6 address that a peer can have: no part of a network, nothing special.
#[must_use]
pub fn is_host(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0 || v4 >= Ipv4Addr::new(224, 0, 0, 0),
        IpAddr::V6(v6) => v6 == Ipv6Addr::UNSPECIFIED || v6.to_ipv4_mapped().is_some() || v6.is_multicast(),
    };
    !special && !address.is_loopback()
}

#[cfg(test)]
mod tests;
