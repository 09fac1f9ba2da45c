//! What the admin API says and is told, as JSON. The descriptions of the same stand in `openapi.json`.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::types::{PublicKey, Secret};

/// Reads a value from its text, of which no copy is made: it may be a secret.
struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// A secret key in base64. It never is in an answer.
#[derive(Clone, Debug)]
pub struct Psk(pub Secret);

impl<'de> Deserialize<'de> for Psk {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(PhantomData)).map(Self)
    }
}

impl Serialize for Psk {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(STANDARD.encode(self.0.0));
        to.serialize_str(&text)
    }
}

/// An identity in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub PublicKey);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(PhantomData)).map(Self)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0.to_base64())
    }
}

/// A peer to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPeer {
    /// Its identity.
    pub public_key: Key,
    /// The key that both sides share beside the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<Psk>,
    /// Its addresses, one per family; none for one of a pool.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The pool that it gets an address of; empty: one of those of its group. For now: it is not kept.
    #[serde(default)]
    pub pool: String,
    /// Its group; empty for none.
    #[serde(default)]
    pub group: String,
    /// When it ends, seconds since 1970; none for never.
    #[serde(default)]
    pub expires: Option<u32>,
}

/// What shall be otherwise of a peer; what is left out stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// Another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Key>,
    /// Another preshared key; null for none.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<Option<Psk>>,
    /// Other addresses, one per family, in the place of all; none for one of a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<IpAddr>>,
    /// An address of this pool in the place of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Another group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Another end; null for none.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Option<u32>>,
    /// Whether it may come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// A value that is there, be it null.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// Where a peer is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// In the gateway's file.
    File,
    /// In the store.
    Store,
}

/// Whether a peer may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It may.
    Active,
    /// Not before somebody enables it.
    Disabled,
    /// Not before somebody gives it a later end.
    Expired,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// What people call it; empty for nothing, which only a peer of the file may be.
    pub name: String,
    /// Where it is written down.
    pub source: Origin,
    /// Its identity.
    pub public_key: Key,
    /// True if there is a preshared key; it is not shown.
    pub preshared_key: bool,
    /// What it may send from.
    pub allowed_ips: Vec<String>,
    /// Its group; empty for none.
    pub group: String,
    /// Whether it may come in.
    pub state: State,
    /// When it ends or ended, seconds since 1970.
    pub expires: Option<u32>,
    /// When it was made; of a peer of the file nobody knows.
    pub created: Option<u32>,
    /// `FILE:LINE` of a peer of the file.
    pub place: Option<String>,
    /// Since when its session lives, seconds since 1970; none without one, or if this is one of many.
    pub connected: Option<u32>,
    /// What it called itself when it last asked for an address; none in lists.
    pub hostname: Option<String>,
    /// What the data plane knows of it, if that was asked for and it may come in.
    pub traffic: Option<Traffic>,
}

/// An invite to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// The public key of each use.
    pub keys: Vec<Key>,
    /// What the names of peers that come of it begin with.
    pub prefix: String,
    /// Their group; empty for none.
    #[serde(default)]
    pub group: String,
    /// When it ends, seconds since 1970.
    pub expires: u32,
}

/// Whether an invite lets anybody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InviteState {
    /// It does.
    Open,
    /// Every use is spent.
    Spent,
    /// Its end has come.
    Expired,
    /// Somebody took it back.
    Revoked,
}

/// An invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteView {
    /// Its id.
    pub id: String,
    /// What the names of peers that come of it begin with.
    pub prefix: String,
    /// Their group; empty for none.
    pub group: String,
    /// How many it lets in.
    pub uses: usize,
    /// Whether it lets anybody in.
    pub state: InviteState,
    /// When it was made, seconds since 1970.
    pub created: u32,
    /// When it ends or ended by itself.
    pub expires: u32,
    /// When somebody took it back.
    pub revoked: Option<u32>,
    /// Who has come by it, the first first.
    pub enrolled: Vec<EnrolledView>,
}

/// Who has come by an invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledView {
    /// With which key.
    pub public_key: Key,
    /// The peer's name; none if it is gone, or has another key.
    pub name: Option<String>,
    /// When, seconds since 1970.
    pub at: u32,
}

/// What the data plane knows of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Where it is.
    pub endpoint: Option<String>,
    /// When its last handshake was complete, seconds since 1970.
    pub last_handshake: Option<u64>,
    /// Received from it, bytes.
    pub rx_bytes: u64,
    /// Sent to it, bytes.
    pub tx_bytes: u64,
}

/// Some of many.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// In order.
    pub items: Vec<T>,
    /// What to ask for next; none at the end.
    pub next: Option<String>,
}

/// Which of many.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// [`Page::next`] of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// How many at most, 1 to 1000.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// The gateway, as its clients must know it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayView {
    /// Its version.
    pub version: String,
    /// The interface.
    pub interface: String,
    /// Its identity.
    pub public_key: Option<Key>,
    /// UDP port of its outer sockets.
    pub listen_port: u16,
    /// Its addresses inside the tunnel, with their networks.
    pub addresses: Vec<String>,
    /// What clients are told.
    pub clients: ClientsView,
}

/// What the configuration of a client says beside its keys and addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientsView {
    /// Where the gateway is.
    pub endpoint: Option<String>,
    /// Nobody said so: it is the address that this host sends from by default.
    pub endpoint_is_a_guess: bool,
    /// What goes through the tunnel.
    pub allowed_ips: Vec<String>,
    /// DNS servers, then search domains.
    pub dns: Vec<String>,
    /// Seconds; 0 for none.
    pub keepalive: u16,
    /// Bytes.
    pub mtu: u32,
}

/// Which events.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    /// [`EventsView::next`] of the time before.
    #[serde(default)]
    pub after: u64,
    /// How many at most, 1 to 1000.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Seconds to wait for one if there is none, 0 to 20.
    #[serde(default)]
    pub wait: u64,
}

/// What has happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventsView {
    /// In order.
    pub items: Vec<EventView>,
    /// What to ask for next.
    pub next: u64,
    /// How many there were in between that are not kept any more.
    pub missed: u64,
    /// The gateway has begun anew since the time before, and so have the numbers.
    pub restarted: bool,
}

/// An event.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EventView {
    /// Counted since the gateway began, without a gap.
    pub number: u64,
    /// Seconds since 1970.
    pub at: u32,
    /// What: `peer_connected`, `peer_disconnected`, `endpoint_changed`, `lease_given`, `lease_renewed`,
    /// `lease_expired`, `lease_released`, `peer_made`, `peer_changed`, `peer_removed`, `peer_ended`, `switched_on`,
    /// `switched_off`, `worker_poll`, `worker_hangs`, `worker_turns`.
    pub event: String,
    /// To whom.
    pub public_key: Option<Key>,
    /// A peer's name, as it was then; of a lease the client's, if he has one now.
    pub name: Option<String>,
    /// Of a lease.
    pub address: Option<Ipv4Addr>,
    /// Of a lease.
    pub ipv6: Option<Ipv6Addr>,
    /// When the lease ends or ended, seconds since 1970.
    pub until: Option<u32>,
    /// Where a peer is, or was when it was disconnected: address and port.
    pub endpoint: Option<String>,
    /// Which switch.
    pub switch: Option<String>,
    /// Which worker.
    pub worker: Option<u16>,
    /// Why a switch is off or a worker is as it is.
    pub reason: Option<String>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// What people call it.
    pub name: String,
    /// Addresses in its ranges.
    pub addresses: u64,
    /// Those that are leased.
    pub leased: u64,
    /// Nobody new gets an address of it.
    pub drained: bool,
}

/// What shall be otherwise of a pool, until the file is read again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolChanges {
    /// Whether nobody new gets an address of it.
    pub drained: bool,
}

/// The file is to be read again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Only tell the difference.
    #[serde(default)]
    pub dry_run: bool,
    /// The file that is meant; a gateway of another one refuses.
    #[serde(default)]
    pub file: Option<String>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The address.
    pub address: Ipv4Addr,
    /// The one of the other family.
    pub ipv6: Option<Ipv6Addr>,
    /// Whose.
    pub public_key: Key,
    /// The peer's name, if there is such a peer and it has one.
    pub name: Option<String>,
    /// What the client called itself when it last asked; none of a lease that has ended.
    pub hostname: Option<String>,
    /// Seconds since 1970.
    pub since: u32,
    /// Seconds since 1970.
    pub until: u32,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// A word for programs.
    pub code: String,
    /// A sentence for people: what is wrong and what to do.
    pub message: String,
}

/// An answer that is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub error: ErrorView,
}
