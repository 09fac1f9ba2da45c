//! The WireGuard protocol as two machines without sockets and without a clock.
//!
//! * [`handshaker::Handshaker`] (handshake thread): static keys, PSKs, timestamps, pending ephemerals, cookies,
//!   receiver-index allocation. All public-key cryptography happens here.
//! * [`peer_session::PeerSession`] (the worker that owns the peer): keypairs, replay windows, every timer,
//!   endpoint, staged packets; and the [`agreement`] about another cipher suite.
//!
//! They speak through the messages below, each of which carries the peer's generation. Time and randomness are
//! handed in. Source: the WireGuard white paper (Donenfeld, NDSS 2017) and, where it is silent, the behaviour of
//! the Linux kernel's module.

use crate::types::{Endpoint, PeerId, Secret};
use crate::wire::wireguard::{INITIATION_LEN, RESPONSE_LEN};

pub mod agreement;
pub mod cookie;
pub mod handshaker;
pub mod index;
pub mod keypair;
pub mod peer_session;
pub mod replay;
pub mod timers;
pub mod timestamp;

/// Which side of the handshake made a keypair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation: the keypair is confirmed, and we renew it.
    Initiator,
    /// We sent the response: unconfirmed until the first authenticated transport message arrives in it.
    Responder,
}

/// What a handshake yields; moved to the peer's owner and kept nowhere else.
#[derive(Debug)]
pub struct NewKeypair {
    /// Seals what we send.
    pub send: Secret,
    /// Opens what we receive.
    pub recv: Secret,
    /// What the keys of other suites are derived from: the third output of the KDF whose first two are the keys above.
    pub third: Secret,
    /// The hash of all that was said in the handshake, equal on both sides; the keypair does not keep it.
    pub transcript: Secret,
    /// Our receiver index: the peer writes it into every transport message.
    pub local_index: u32,
    /// The peer's receiver index: we write it into every transport message.
    pub remote_index: u32,
    /// Who initiated.
    pub role: Role,
}

/// From the handshake thread to the worker that owns the peer. Never dropped: each peer has at most one
/// initiation and one installation in flight.
#[derive(Debug)]
pub enum ToOwner {
    /// Send this initiation (mac1, and mac2 if a cookie is fresh, are in it) to the peer's endpoint.
    SendInitiation {
        /// The peer.
        peer: PeerId,
        /// The finished message.
        message: [u8; INITIATION_LEN],
    },
    /// Install the keypair, then, if there is a response, send it to `endpoint`, the datagram's source. An
    /// initiator's `endpoint` is authenticated by the response and becomes the peer's.
    Install {
        /// The peer.
        peer: PeerId,
        /// The keys. Boxed, so that no copy stays behind in a channel's slot: the box is wiped where it is dropped.
        keypair: Box<NewKeypair>,
        /// Where the handshake message that led to this came from.
        endpoint: Endpoint,
        /// The finished response (responder only).
        response: Option<[u8; RESPONSE_LEN]>,
    },
    /// A begin for this peer could not be served (peer gone there, or no private key): nothing is in flight.
    BeginFailed {
        /// The peer.
        peer: PeerId,
    },
}

/// From a worker to the handshake thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToHandshaker {
    /// Make an initiation for this peer (its owner's timers ask for one).
    Begin {
        /// The peer.
        peer: PeerId,
    },
    /// The keypair with this local index is gone: the index may be used again.
    Release {
        /// A local receiver index.
        index: u32,
    },
}
