//! The cross-platform WireGuard UAPI (<https://www.wireguard.com/xplatform/>): requests of `key=value` lines that
//! end with an empty line, answers that end with `errno=N` and an empty line.
//!
//! Beside `get=1` and `set=1` there are two operations of our own, which no other program sends: `show=json` for
//! `ringway show`, and `switch=1` with lines like `udp_send=off` for `ringway switch`.

pub mod format;
pub mod parse;

use std::net::{Ipv4Addr, SocketAddr};

use crate::dataplane::offload::switches::Switch;
use crate::types::{Mark, Prefix, PublicKey, Secret};

/// One whole request.
#[derive(Debug)]
pub enum Request {
    /// `get=1`
    Get,
    /// `show=json`
    Show,
    /// `switch=1`: what to turn on or off; each switch at most once.
    Switch(Vec<(Switch, bool)>),
    /// `set=1`
    Set(SetRequest),
}

/// What a `set=1` asks for; `None` and `false` leave things as they are.
#[derive(Debug, Default)]
pub struct SetRequest {
    /// The static private key, clamped; `Some(None)` takes it away.
    pub private_key: Option<Option<Secret>>,
    /// UDP port of the outer sockets, 0 for any.
    pub listen_port: Option<u16>,
    /// Mark of the outer sockets.
    pub fwmark: Option<Mark>,
    /// Every present peer goes before `peers` are applied.
    pub replace_peers: bool,
    /// In the order of the request; a key may come twice.
    pub peers: Vec<PeerChange>,
}

/// The part of a [`SetRequest`] that one `public_key` line begins.
#[derive(Debug)]
pub struct PeerChange {
    /// Who.
    pub public_key: PublicKey,
    /// The peer goes; everything else here is moot.
    pub remove: bool,
    /// Nothing happens if there is no such peer.
    pub update_only: bool,
    /// `Some(None)` takes it away.
    pub preshared_key: Option<Option<Secret>>,
    /// Where the peer is. Never an IPv4-mapped IPv6 address.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; `Some(None)` turns it off.
    pub keepalive: Option<Option<u16>>,
    /// The peer's present prefixes go before `allowed_ips` are applied.
    pub replace_allowed_ips: bool,
    /// In the order of the request.
    pub allowed_ips: Vec<AllowedIp>,
    /// The address that the peer will most likely lease: the owner of a new peer is chosen by it. Not of the UAPI.
    pub home: Option<Ipv4Addr>,
    /// A new peer is the key of an invite's use. Not of the UAPI.
    pub temporary: bool,
}

impl PeerChange {
    /// A change that makes the peer and sets nothing.
    #[must_use]
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
            home: None,
            temporary: false,
        }
    }
}

/// One `allowed_ip` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIp {
    /// The prefix is the peer's from now on, whosever it was.
    Add(Prefix),
    /// The prefix is nobody's, if it was the peer's (`allowed_ip=-…`).
    Remove(Prefix),
}
