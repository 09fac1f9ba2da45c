//! What the model needs from those who move packets: one trait, so that the model is tested against a recording fake.
//!
//! Calls come from the control thread, one at a time. Those that say "acknowledged" return only when every worker
//! has done it; the others may return as soon as the change is on its way, in the order of the calls.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::control::errno::Errno;
use crate::dataplane::offload::switches::Switch;
use crate::types::{Mark, PeerId, Prefix, PublicKey, Secret, Suite, WorkerId};

/// A peer at its making.
#[derive(Debug)]
pub struct NewPeer<'a> {
    /// Slot and generation; the slot's former peer was removed, acknowledged.
    pub id: PeerId,
    /// Its owner for life.
    pub worker: WorkerId,
    /// Its identity.
    pub public_key: PublicKey,
    /// Its preshared key.
    pub preshared_key: Option<&'a Secret>,
    /// It is the key of an invite's use, which may ask to become a peer and nothing else.
    pub temporary: bool,
}

/// A prefix and whose it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The prefix.
    pub prefix: Prefix,
    /// The peer.
    pub peer: PeerId,
    /// The peer's owner.
    pub worker: WorkerId,
}

/// What the packet path knows of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub peer: PeerId,
    /// Where it is: configured, or learned from its last authenticated packet.
    pub endpoint: Option<SocketAddr>,
    /// When its last handshake was complete, since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// Received from it, bytes of outer UDP payload, as WireGuard counts.
    pub rx_bytes: u64,
    /// Sent to it, bytes of outer UDP payload.
    pub tx_bytes: u64,
    /// What data to it is sealed with; `None` without a session.
    pub suite: Option<Suite>,
    /// It owes an answer: data was sent since anything came from it, or a handshake is under way.
    pub awaits_answer: bool,
}

/// The packet path, as the control thread sees it.
pub trait DataPlane {
    /// How many workers there are: 1 or more, fixed for the process's life.
    fn workers(&self) -> u16;

    /// Where the steering hash sends packets for `addr`; below [`Self::workers`].
    fn queue_of(&self, addr: Ipv4Addr) -> WorkerId;

    /// Sets or takes away the static private key (clamped). Sessions made with the old one end at once.
    fn set_private_key(&mut self, key: Option<&Secret>);

    /// Binds the outer sockets to `port`, 0 for any, and returns the port in use. The old sockets serve until the
    /// new ones do.
    ///
    /// # Errors
    /// EADDRINUSE or what else bind(2) says; then nothing changed.
    fn set_listen_port(&mut self, port: u16) -> Result<u16, Errno>;

    /// Sets SO_MARK on every outer socket; sticky sources are cleared.
    ///
    /// # Errors
    /// What setsockopt(2) says (EPERM); then nothing changed.
    fn set_fwmark(&mut self, mark: Mark) -> Result<(), Errno>;

    /// Makes a peer without endpoint, keepalive or prefixes.
    fn add_peer(&mut self, peer: NewPeer<'_>);

    /// Ends a peer, acknowledged. It has no prefixes any more: [`Self::remove_prefixes`] came first.
    fn remove_peer(&mut self, peer: PeerId);

    /// Sets or takes away a preshared key; in force from the next handshake message on.
    fn set_preshared_key(&mut self, peer: PeerId, key: Option<&Secret>);

    /// Sets where the peer is.
    fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr);

    /// Sets the persistent keepalive, seconds; `None` for off. Turning it on sends one keepalive.
    fn set_keepalive(&mut self, peer: PeerId, seconds: Option<u16>);

    /// Takes prefixes from whoever has them, acknowledged: after it no worker holds them.
    fn remove_prefixes(&mut self, prefixes: &[Prefix]);

    /// Gives prefixes that nobody has.
    fn add_prefixes(&mut self, assignments: &[Assignment]);

    /// Sends a control frame to a peer, sealed with `suite` if its session may. False if there is no room for it on the
    /// way: whoever asked will ask again.
    fn send_frame(&mut self, worker: WorkerId, peer: PeerId, suite: Suite, frame: &[u8]) -> bool;

    /// Sends a peer that is about to go its last control frame, if it has sent one in its session.
    fn dismiss(&mut self, worker: WorkerId, peer: PeerId, frame: &[u8]);

    /// Turns a switch of the device on or off.
    ///
    /// # Errors
    /// EOPNOTSUPP if the kernel or the device has no such offload to turn on; what the kernel says otherwise. Then
    /// nothing changed.
    fn switch(&mut self, switch: Switch, on: bool) -> Result<(), Errno>;

    /// What the peer's owner knows of it; `None` if it is gone.
    fn peer_stats(&mut self, worker: WorkerId, peer: PeerId) -> Option<PeerStats>;

    /// What is known of every peer, in any order.
    fn snapshot(&mut self) -> Vec<PeerStats>;

    /// Workers, steering, offloads, drops: an object for `ringway show --json`; its keys are its own.
    fn report(&mut self) -> serde_json::Value;
}
