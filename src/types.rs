//! The words that every module shares: keys, peers, workers, prefixes, marks, time.
//!
//! Imports nothing of the crate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// An X25519 public key: the identity of a peer. `Debug` shortens it, so that no log line holds a whole identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Base64 with padding, as `wg` prints it (44 characters).
    #[must_use]
    pub fn to_base64(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.0)
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

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
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

/// A firewall mark for outer sockets (`SO_MARK`); 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u32);

/// Which offloads are wanted, by direction. What the kernel or the device has not stays off all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        self.len == if self.addr.is_ipv4() { 32 } else { 128 }
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

/// A reading of `CLOCK_BOOTTIME`, in nanoseconds. Taken once per turn of a loop and handed in: nothing below
/// the loops reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// From nanoseconds since boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero if `earlier` is later (a clock never makes us panic).
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
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
