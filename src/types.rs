//! The words that every module shares: keys, peers, workers, prefixes, marks, time.
//!
//! Imports nothing of the crate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A key in base64, bytes: 32 bytes with padding.
pub const KEY_TEXT: usize = 44;

/// An X25519 public key: the identity of a peer. `Debug` shortens it, so that no log line holds a whole identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Base64 with padding, as `wg` prints it (44 characters).
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// From base64, as [`Self::to_base64`] writes it.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse::<Secret>().map(|key| Self(key.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_base64();
        write!(f, "{}…", &text[..8])
    }
}

/// 32 secret bytes (a private key, a preshared key, a transport key): zeroised on drop, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// True if every byte is zero: WireGuard's way to say "no key".
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.iter().fold(0, |acc, byte| acc | byte) == 0
    }
}

impl FromStr for Secret {
    type Err = KeyError;

    /// From base64 with padding, without white space.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        // Room for the decoder's estimate, which is one byte above what 44 characters hold.
        let mut bytes = Zeroizing::new([0; 33]);
        if text.len() != KEY_TEXT || STANDARD.decode_slice(text, bytes.as_mut_slice()).ok() != Some(32) {
            return Err(KeyError);
        }
        let mut key = Self([0; 32]);
        key.0.copy_from_slice(bytes.first_chunk::<32>().ok_or(KeyError)?);
        Ok(key)
    }
}

/// A text that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key has {KEY_TEXT} characters of base64")]
pub struct KeyError;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Longest name of a domain, bytes (RFC 1035 section 2.3.4).
pub const MAX_DOMAIN: usize = 253;
/// Longest part of it, and of a host's name, bytes.
pub const MAX_LABEL: usize = 63;

/// True for a host's name: letters, digits and hyphens, the latter not at an end (RFC 1123 section 2.1).
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=MAX_LABEL).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// True for a domain's name: such names between dots.
#[must_use]
pub fn is_domain(text: &str) -> bool {
    text.len() <= MAX_DOMAIN && text.split('.').all(is_label)
}

/// A peer of this process: a slot, and the generation that tells it from an earlier peer in the same slot.
/// Every message between threads carries it whole, so a late message never reaches a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    /// Index into per-thread tables; reused after a peer is gone.
    pub slot: u32,
    /// Grows each time the slot is reused.
    pub generation: u32,
}

/// A worker, counted from 0; also the number of its TUN queue and of its place in each reuseport group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// As an index into per-worker tables.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What seals the data of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Suite {
    /// WireGuard's; every peer opens it.
    #[default]
    ChaCha20Poly1305,
    /// Between two Ringways that have agreed (docs/protocol.md).
    Aes256Gcm,
}

impl Suite {
    /// Its number in HELLO, and the byte that marks its messages.
    #[must_use]
    #[inline]
    pub const fn mark(self) -> u8 {
        match self {
            Self::ChaCha20Poly1305 => 0,
            Self::Aes256Gcm => 1,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::Aes256Gcm => "AES-256-GCM",
        })
    }
}

/// A firewall mark for outer sockets (`SO_MARK`); 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u32);

/// Which offloads are wanted, by direction. What the kernel or the device has not stays off all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Offload {
    /// Super-packets from the TUN device (TSO, USO).
    pub tun_read: bool,
    /// Super-packets to the TUN device.
    pub tun_write: bool,
    /// Runs of datagrams to the network (UDP_SEGMENT).
    pub udp_send: bool,
    /// Runs of datagrams from the network (UDP_GRO).
    pub udp_receive: bool,
}

impl Default for Offload {
    /// All of them.
    fn default() -> Self {
        Self { tun_read: true, tun_write: true, udp_send: true, udp_receive: true }
    }
}

/// An IP prefix whose host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// Clears the host bits. `None` if `len` exceeds 32 (IPv4) or 128 (IPv6).
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(v4) if len <= 32 => IpAddr::from(
                (v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).to_be_bytes(),
            ),
            IpAddr::V6(v6) if len <= 128 => IpAddr::from(
                (v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).to_be_bytes(),
            ),
            _ => return None,
        };
        Some(Self { addr, len })
    }

    /// This address alone: a /32 or a /128.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// The address with its host bits cleared.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length in bits.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a prefix length, not a count of elements")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// True for a /32 or a /128.
    #[must_use]
    pub fn is_host(&self) -> bool {
        *self == Self::host(self.addr)
    }

    /// True if `addr` is of the same family and lies inside.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Self::new(addr, self.len).is_some_and(|p| p.addr == self.addr)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prefix {
    type Err = AddressError;

    /// `10.1.0.0/16`; without a length a single host. Host bits are refused: whoever wrote them meant something else.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Address { addr, len } = text.parse()?;
        let prefix = Self::new(addr, len).ok_or(AddressError::Length)?;
        if prefix.addr == addr { Ok(prefix) } else { Err(AddressError::HostBits(prefix)) }
    }
}

/// An interface's address with the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    addr: IpAddr,
    len: u8,
}

impl Address {
    /// The host's address in the network.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length of the network's prefix, bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// The network that is reached through the interface without a route of its own.
    #[must_use]
    pub fn network(&self) -> Prefix {
        // The length was checked when the address was made.
        Prefix::new(self.addr, self.len).unwrap_or(Prefix { addr: self.addr, len: self.len })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// `100.64.0.1/10`; without a length /32 or /128.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
        let addr: IpAddr = addr.parse().map_err(|_| AddressError::Address)?;
        let most = Prefix::host(addr).len;
        let len = match len {
            None => most,
            // `FromStr` of a number alone would take a plus sign.
            Some(len) if len.bytes().all(|byte| byte.is_ascii_digit()) => {
                len.parse().ok().filter(|len| *len <= most).ok_or(AddressError::Length)?
            }
            Some(_) => return Err(AddressError::Length),
        };
        Ok(Self { addr, len })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no address or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Before the slash.
    #[error("no IP address")]
    Address,
    /// After the slash.
    #[error("the prefix length is a number up to 32 (IPv4) or 128 (IPv6)")]
    Length,
    /// An address where a network is wanted.
    #[error("bits are set behind the prefix: write {0}")]
    HostBits(Prefix),
}

/// A reading of `CLOCK_BOOTTIME`, in nanoseconds. Taken once per turn of a loop and handed in: nothing below
/// the loops reads a clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
// One more than the nanoseconds: a peer has a dozen of `Option<Time>`, which then cost no more than a `Time`.
pub struct Time(NonZeroU64);

impl Default for Time {
    fn default() -> Self {
        Self::from_nanos(0)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Time").field(&self.as_nanos()).finish()
    }
}

impl Time {
    /// From nanoseconds since boot; the last of 2^64 counts as the one before it.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }

    /// Time since `earlier`; zero if `earlier` is later (a clock never makes us panic).
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A moment of the wall clock, in seconds since 1970-01-01 UTC, to 2106: what leases end at and what is stored, which
/// must mean the same after a restart of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u32);

impl std::ops::Add<u32> for Moment {
    type Output = Self;
    /// So many seconds later, or the last moment there is.
    fn add(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

impl std::ops::Sub<u32> for Moment {
    type Output = Self;
    /// So many seconds earlier, or the first moment there is.
    fn sub(self, seconds: u32) -> Self {
        Self(self.0.saturating_sub(seconds))
    }
}

/// The local address and interface an outer datagram arrived on or shall leave by (`IP_PKTINFO`, ip(7);
/// `IPV6_PKTINFO`, RFC 3542 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Local address.
    pub addr: IpAddr,
    /// Interface index; 0 lets the routing table choose.
    pub ifindex: u32,
}

/// Where a peer is: its outer address, and the local address it last spoke to ("sticky source").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The peer's outer address and UDP port.
    pub remote: SocketAddr,
    /// The sticky source; `None` lets the kernel choose.
    pub source: Option<Source>,
}

impl Endpoint {
    /// An endpoint without a sticky source.
    #[must_use]
    pub const fn new(remote: SocketAddr) -> Self {
        Self { remote, source: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_may_be_none_is_no_larger() {
        assert_eq!(size_of::<Option<Time>>(), 8);
        for nanos in [0, 1, 1 << 40, u64::MAX - 1] {
            assert_eq!(Time::from_nanos(nanos).as_nanos(), nanos);
        }
        assert_eq!(Time::default(), Time::from_nanos(0));
        let last = Time::from_nanos(u64::MAX);
        assert_eq!((last.as_nanos(), last + Duration::from_secs(1)), (u64::MAX - 1, last), "nothing wraps");
        let second = Duration::from_secs(1);
        assert_eq!((Time::default() + second).since(Time::default()), second);
        assert_eq!(Time::default().since(last), Duration::ZERO);
    }
}
