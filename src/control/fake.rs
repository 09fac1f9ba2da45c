//! A data plane that records its calls and insists on the contract of [`DataPlane`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::dataplane::{Assignment, DataPlane, NewPeer, PeerStats};
use super::errno::Errno;
use crate::dataplane::offload::switches::Switch;
use crate::types::{Mark, PeerId, Prefix, PublicKey, Secret, Suite, WorkerId};

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    PrivateKey(Option<[u8; 32]>),
    ListenPort(u16),
    Fwmark(u32),
    AddPeer(PeerId, WorkerId, PublicKey, Option<[u8; 32]>),
    AddTemporary(PeerId, PublicKey),
    RemovePeer(PeerId),
    PresharedKey(PeerId, Option<[u8; 32]>),
    Endpoint(PeerId, SocketAddr),
    Keepalive(PeerId, Option<u16>),
    Switch(Switch, bool),
    RemovePrefixes(Vec<Prefix>),
    AddPrefixes(Vec<Assignment>),
    Frame(PeerId, Suite, Vec<u8>),
    Dismissed(PeerId, Vec<u8>),
}

/// What a peer was told to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FakePeer {
    pub(crate) key: PublicKey,
    pub(crate) worker: WorkerId,
    pub(crate) psk: Option<[u8; 32]>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive: Option<u16>,
}

#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) workers: u16,
    pub(crate) calls: Vec<Call>,
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) peers: BTreeMap<PeerId, FakePeer>,
    pub(crate) owners: BTreeMap<Prefix, PeerId>,
    pub(crate) refused_port: Option<u16>,
    pub(crate) refused_mark: Option<u32>,
    ever: BTreeSet<PeerId>,
}

impl Fake {
    pub(crate) fn new(workers: u16) -> Self {
        Self {
            workers,
            calls: Vec::new(),
            key: None,
            peers: BTreeMap::new(),
            owners: BTreeMap::new(),
            refused_port: None,
            refused_mark: None,
            ever: BTreeSet::new(),
        }
    }

    /// The calls since the last time.
    pub(crate) fn take(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    fn peer(&mut self, id: PeerId) -> &mut FakePeer {
        self.peers.get_mut(&id).expect("a call for a peer that is not there")
    }
}

fn bytes(key: Option<&Secret>) -> Option<[u8; 32]> {
    key.map(|key| key.0)
}

impl DataPlane for Fake {
    fn workers(&self) -> u16 {
        self.workers
    }

    fn queue_of(&self, addr: Ipv4Addr) -> WorkerId {
        WorkerId(u16::from(addr.octets()[3]) % self.workers)
    }

    fn set_private_key(&mut self, key: Option<&Secret>) {
        self.key = bytes(key);
        self.calls.push(Call::PrivateKey(bytes(key)));
    }

    fn set_listen_port(&mut self, port: u16) -> Result<u16, Errno> {
        if self.refused_port == Some(port) {
            return Err(Errno::new(libc::EADDRINUSE));
        }
        self.calls.push(Call::ListenPort(port));
        Ok(if port == 0 { 40_000 } else { port })
    }

    fn set_fwmark(&mut self, mark: Mark) -> Result<(), Errno> {
        if self.refused_mark == Some(mark.0) {
            return Err(Errno::new(libc::EPERM));
        }
        self.calls.push(Call::Fwmark(mark.0));
        Ok(())
    }

    fn add_peer(&mut self, peer: NewPeer<'_>) {
        assert!(peer.worker.0 < self.workers, "owner out of range");
        assert!(self.ever.insert(peer.id), "a peer id was used twice");
        assert!(!self.peers.keys().any(|other| other.slot == peer.id.slot), "slot in use");
        let psk = bytes(peer.preshared_key);
        self.calls.push(if peer.temporary {
            Call::AddTemporary(peer.id, peer.public_key)
        } else {
            Call::AddPeer(peer.id, peer.worker, peer.public_key, psk)
        });
        let fresh =
            FakePeer { key: peer.public_key, worker: peer.worker, psk, endpoint: None, keepalive: None };
        self.peers.insert(peer.id, fresh);
    }

    fn remove_peer(&mut self, peer: PeerId) {
        assert!(self.peers.remove(&peer).is_some(), "removed a peer that is not there");
        assert!(!self.owners.values().any(|owner| *owner == peer), "removed a peer with prefixes");
        self.calls.push(Call::RemovePeer(peer));
    }

    fn set_preshared_key(&mut self, peer: PeerId, key: Option<&Secret>) {
        self.peer(peer).psk = bytes(key);
        self.calls.push(Call::PresharedKey(peer, bytes(key)));
    }

    fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr) {
        self.peer(peer).endpoint = Some(endpoint);
        self.calls.push(Call::Endpoint(peer, endpoint));
    }

    fn set_keepalive(&mut self, peer: PeerId, seconds: Option<u16>) {
        self.peer(peer).keepalive = seconds;
        self.calls.push(Call::Keepalive(peer, seconds));
    }

    /// As if the kernel had no UDP_GRO.
    fn switch(&mut self, switch: Switch, on: bool) -> Result<(), Errno> {
        if on && switch == Switch::UdpReceive {
            return Err(Errno::new(libc::EOPNOTSUPP));
        }
        self.calls.push(Call::Switch(switch, on));
        Ok(())
    }

    fn remove_prefixes(&mut self, prefixes: &[Prefix]) {
        for prefix in prefixes {
            assert!(self.owners.remove(prefix).is_some(), "{prefix} was nobody's");
        }
        self.calls.push(Call::RemovePrefixes(prefixes.to_vec()));
    }

    fn add_prefixes(&mut self, assignments: &[Assignment]) {
        for assignment in assignments {
            assert_eq!(self.peer(assignment.peer).worker, assignment.worker);
            let before = self.owners.insert(assignment.prefix, assignment.peer);
            assert_eq!(before, None, "{} has two owners", assignment.prefix);
        }
        self.calls.push(Call::AddPrefixes(assignments.to_vec()));
    }

    fn send_frame(&mut self, worker: WorkerId, peer: PeerId, suite: Suite, frame: &[u8]) -> bool {
        assert_eq!(self.peer(peer).worker, worker);
        self.calls.push(Call::Frame(peer, suite, frame.to_vec()));
        true
    }

    fn dismiss(&mut self, worker: WorkerId, peer: PeerId, frame: &[u8]) {
        assert_eq!(self.peer(peer).worker, worker);
        self.calls.push(Call::Dismissed(peer, frame.to_vec()));
    }

    fn peer_stats(&mut self, worker: WorkerId, peer: PeerId) -> Option<PeerStats> {
        assert_eq!(self.peer(peer).worker, worker);
        self.snapshot().into_iter().find(|stats| stats.peer == peer)
    }

    fn snapshot(&mut self) -> Vec<PeerStats> {
        self.peers
            .iter()
            .map(|(id, peer)| PeerStats {
                peer: *id,
                endpoint: peer.endpoint,
                last_handshake: peer.keepalive.map(|_| Duration::new(1_700_000_000, 5)),
                rx_bytes: 1000 + u64::from(id.slot),
                tx_bytes: 2000 + u64::from(id.slot),
                suite: peer.keepalive.map(|_| Suite::Aes256Gcm),
                awaits_answer: false,
            })
            .collect()
    }

    fn report(&mut self) -> serde_json::Value {
        let drops = serde_json::json!({ "malformed": 0, "replayed": 3 });
        serde_json::json!({ "workers": [{ "packets": 7 }], "steering": "fake", "drops": drops })
    }
}
