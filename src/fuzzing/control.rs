//! What comes from the operator's side: requests over the UAPI socket, names of interfaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::control::dataplane::{Assignment, DataPlane, NewPeer, PeerStats};
use crate::control::device::Device;
use crate::control::errno::Errno;
use crate::control::socket::socket_path;
use crate::control::uapi::parse::{Progress, RequestParser};
use crate::control::uapi::{Request, format};
use crate::dataplane::offload::switches::Switch;
use crate::net::name::{InterfaceName, MAX_NAME};
use crate::types::{Mark, PeerId, Prefix, Secret, Suite, WorkerId};

/// Moves no packet; holds what it was told about prefixes, and that it was told in order.
#[derive(Default)]
struct Nowhere {
    peers: Vec<PeerId>,
    prefixes: Vec<(Prefix, PeerId)>,
}

impl DataPlane for Nowhere {
    fn workers(&self) -> u16 {
        3
    }

    fn queue_of(&self, addr: Ipv4Addr) -> WorkerId {
        WorkerId((addr.to_bits() % 3) as u16)
    }

    fn set_private_key(&mut self, _: Option<&Secret>) {}

    fn set_listen_port(&mut self, port: u16) -> Result<u16, Errno> {
        if port == 1 { Err(Errno::new(libc::EACCES)) } else { Ok(port) }
    }

    fn set_fwmark(&mut self, _: Mark) -> Result<(), Errno> {
        Ok(())
    }

    fn add_peer(&mut self, peer: NewPeer<'_>) {
        assert!(!self.peers.contains(&peer.id), "made twice");
        self.peers.push(peer.id);
    }

    fn remove_peer(&mut self, peer: PeerId) {
        assert!(self.prefixes.iter().all(|(_, owner)| *owner != peer), "prefixes go first");
        assert!(self.peers.contains(&peer), "removed and not there");
        self.peers.retain(|id| *id != peer);
    }

    fn set_preshared_key(&mut self, peer: PeerId, _: Option<&Secret>) {
        assert!(self.peers.contains(&peer));
    }

    fn set_endpoint(&mut self, peer: PeerId, _: SocketAddr) {
        assert!(self.peers.contains(&peer));
    }

    fn dismiss(&mut self, _: WorkerId, _: PeerId, _: &[u8]) {}

    fn send_frame(&mut self, _: WorkerId, peer: PeerId, _: Suite, _: &[u8]) -> bool {
        assert!(self.peers.contains(&peer));
        true
    }

    fn switch(&mut self, _switch: Switch, _on: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn set_keepalive(&mut self, peer: PeerId, _: Option<u16>) {
        assert!(self.peers.contains(&peer));
    }

    fn remove_prefixes(&mut self, prefixes: &[Prefix]) {
        self.prefixes.retain(|(prefix, _)| !prefixes.contains(prefix));
    }

    fn add_prefixes(&mut self, assignments: &[Assignment]) {
        for Assignment { prefix, peer, .. } in assignments {
            assert!(self.prefixes.iter().all(|(there, _)| there != prefix), "two owners");
            assert!(self.peers.contains(peer));
            self.prefixes.push((*prefix, *peer));
        }
    }

    fn peer_stats(&mut self, _: WorkerId, _: PeerId) -> Option<PeerStats> {
        None
    }

    fn snapshot(&mut self) -> Vec<PeerStats> {
        Vec::new()
    }

    fn report(&mut self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Reads requests and carries them out: model and data plane then say the same of peers and prefixes, and the model
/// can be shown. Input: a stream of a UAPI connection.
pub fn uapi_set(data: &[u8]) {
    let (mut parser, mut device, mut plane) = (RequestParser::new(), Device::new(0), Nowhere::default());
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match parser.line(line) {
            Progress::More => {}
            Progress::Complete(Ok(Request::Set(set))) => {
                let _ = device.apply(set, &mut plane);
            }
            Progress::Complete(Ok(Request::Get | Request::Show | Request::Switch(_))) => {
                assert!(format::get(&device, &[]).ends_with('\n') || device.peers().is_empty());
            }
            Progress::Complete(Err(_)) => assert!(!parser.in_request()),
            Progress::Broken(_) => return,
        }
        let peers = device.peers();
        assert_eq!(peers.len(), plane.peers.len());
        let mut prefixes: Vec<_> =
            peers.iter().flat_map(|peer| peer.prefixes().map(|prefix| (prefix, peer.id()))).collect();
        prefixes.sort_unstable();
        plane.prefixes.sort_unstable();
        assert_eq!(prefixes, plane.prefixes);
        assert!(prefixes.iter().all(|(prefix, id)| device.owner(prefix) == Some(*id)));
        assert!(peers.iter().all(|peer| Some(peer.public_key()) != device.public_key()), "our own key");
    }
}

/// Reads an interface's name: what is taken is safe as a part of a file's name. Input: the name.
pub fn interface_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(name) = text.parse::<InterfaceName>() else { return };
    assert_eq!(name.as_str(), text);
    assert!((1..=MAX_NAME).contains(&data.len()));
    assert!(!data.contains(&0));
    let path = socket_path(Path::new("/run/wireguard"), &name);
    assert_eq!(path.parent(), Some(Path::new("/run/wireguard")));
    assert_eq!(path.file_name().and_then(|file| file.to_str()), Some(format!("{text}.sock").as_str()));
}
