//! Bodies of the frames by which a client gets its addresses, and gives them back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::{ArrayString, ArrayVec};
use minicbor::decode::Decoder;
use minicbor::encode::Encoder;

use super::{Bytes, EncodeError, Frame, HEADER_LEN, Map, Operation, VERSION, write};
use crate::types::{MAX_LABEL, Prefix, is_domain, is_label};

/// Longest client id, bytes.
pub const CLIENT_ID: usize = 64;
/// Most DNS servers, and most search domains, that a reply is believed to name.
pub const MOST_NAMES: usize = 8;
/// Most networks of each kind that a reply is believed to name.
pub const MOST_ROUTES: usize = 1024;

/// ADDR_REQUEST: what a client would like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddrRequest {
    /// The IPv4 address that it would like best.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address that it would like best.
    pub ipv6: Option<Ipv6Addr>,
    /// Something of the client's own that stays the same; empty for nothing. It selects and authorises nothing.
    pub client_id: ArrayVec<u8, CLIENT_ID>,
    /// What the host calls itself; empty for nothing.
    pub hostname: ArrayString<MAX_LABEL>,
    /// What it wants addresses of.
    pub families: Families,
}

/// Which families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

impl Default for Families {
    fn default() -> Self {
        Self { ipv4: true, ipv6: true }
    }
}

impl AddrRequest {
    /// Of an ADDR_REQUEST's body. `None` if a field is of another type or too large, or if nothing is wanted.
    #[must_use]
    pub fn read(body: Map<'_>) -> Option<Self> {
        let wanted = optional(body, 4, Map::number)?.unwrap_or(3);
        let families = Families { ipv4: wanted & 1 != 0, ipv6: wanted & 2 != 0 };
        let hostname = optional(body, 1, Map::text)?.unwrap_or_default();
        if !(families.ipv4 || families.ipv6) || !(hostname.is_empty() || is_label(hostname)) {
            return None;
        }
        Some(Self {
            ipv4: optional(body, 2, octets::<4>)?.map(Ipv4Addr::from),
            ipv6: optional(body, 3, octets::<16>)?.map(Ipv6Addr::from),
            client_id: optional(body, 0, Map::bytes)?.unwrap_or_default().try_into().ok()?,
            hostname: ArrayString::from(hostname).ok()?,
            families,
        })
    }

    /// The frame.
    #[must_use]
    pub fn write(&self, usage_id: u32, stream_id: u32) -> Bytes {
        let Self { ipv4, ipv6, client_id, hostname, families } = self;
        let fields = [!client_id.is_empty(), !hostname.is_empty(), ipv4.is_some(), ipv6.is_some(), true];
        let count = fields.iter().filter(|field| **field).count() as u64;
        let frame = write(Operation::AddrRequest, 0, stream_id, |encoder| {
            encoder.map(count)?;
            if !client_id.is_empty() {
                encoder.u8(0)?.bytes(client_id)?;
            }
            if !hostname.is_empty() {
                encoder.u8(1)?.str(hostname)?;
            }
            if let Some(address) = ipv4 {
                encoder.u8(2)?.bytes(&address.octets())?;
            }
            if let Some(address) = ipv6 {
                encoder.u8(3)?.bytes(&address.octets())?;
            }
            encoder.u8(4)?.u8(u8::from(families.ipv4) | u8::from(families.ipv6) << 1)?;
            Ok(())
        });
        of_usage(frame, usage_id)
    }
}

/// What every client is told beside its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of an inner packet.
    pub mtu: u32,
    /// Servers to ask for names.
    pub dns: Vec<IpAddr>,
    /// Domains to look for names in.
    pub search: Vec<String>,
    /// Networks behind the gateway.
    pub included: Vec<Prefix>,
    /// What of them does not go through the tunnel.
    pub excluded: Vec<Prefix>,
}

/// ADDR_REPLY: addresses, and what belongs to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddrReply {
    /// The client's IPv4 address and the length of its network's prefix.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Its IPv6 address likewise.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// The gateway inside the tunnel.
    pub gateway_ipv4: Option<Ipv4Addr>,
    /// The gateway inside the tunnel.
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// How long the addresses are the client's, from now on.
    pub seconds: u32,
    /// The client's id on this gateway, for its further frames.
    pub usage_id: u32,
}

impl AddrReply {
    /// Of an ADDR_REPLY's body, with the settings in it. `None` if something is missing, of another type or beyond its
    /// limit, or if there is no address.
    #[must_use]
    pub fn read(body: Map<'_>) -> Option<(Self, Settings)> {
        let reply = Self {
            ipv4: optional(body, 0, network)?,
            ipv6: optional(body, 1, network)?,
            gateway_ipv4: optional(body, 2, octets::<4>)?.map(Ipv4Addr::from),
            gateway_ipv6: optional(body, 3, octets::<16>)?.map(Ipv6Addr::from),
            seconds: u32::try_from(body.number(4)?).ok()?,
            usage_id: u32::try_from(body.number(10)?).ok()?,
        };
        let settings = Settings {
            mtu: u32::try_from(body.number(5)?).ok()?,
            dns: list(body, 6, MOST_NAMES, |decoder| address(decoder.bytes().ok()?))?,
            search: list(body, 7, MOST_NAMES, |decoder| {
                decoder.str().ok().filter(|name| is_domain(name)).map(str::to_owned)
            })?,
            included: list(body, 8, MOST_ROUTES, |decoder| prefix(decoder.bytes().ok()?))?,
            excluded: list(body, 9, MOST_ROUTES, |decoder| prefix(decoder.bytes().ok()?))?,
        };
        (reply.ipv4.is_some() || reply.ipv6.is_some()).then_some((reply, settings))
    }

    /// The frame. It is as long as its lists make it: whoever allows them keeps it below the tunnel's MTU.
    #[must_use]
    pub fn write(&self, settings: &Settings, stream_id: u32) -> Vec<u8> {
        self.write_with(settings, stream_id, Operation::AddrReply, 0, |_| Ok(()))
    }

    /// As the body of another operation, with `more` fields that `rest` writes.
    pub(super) fn write_with(
        &self,
        settings: &Settings,
        stream_id: u32,
        operation: Operation,
        more: u64,
        rest: impl FnOnce(&mut Growing<'_>) -> Written,
    ) -> Vec<u8> {
        let mut frame = vec![operation as u8, VERSION, 0, 0];
        frame.extend(self.usage_id.to_le_bytes());
        frame.extend(stream_id.to_le_bytes());
        frame.extend([0; 4]);
        let mut encoder = Encoder::new(&mut frame);
        // Nothing refuses what is written to a vector.
        let _ = self.body(settings, &mut encoder, more).and_then(|()| rest(&mut encoder));
        let length = u32::try_from(frame.len() - HEADER_LEN).unwrap_or(u32::MAX);
        if let Some(place) = frame.get_mut(12..HEADER_LEN) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        frame
    }

    fn body(&self, settings: &Settings, encoder: &mut Growing<'_>, more: u64) -> Written {
        let Settings { mtu, dns, search, included, excluded } = settings;
        let given = [
            self.ipv4.map(|(address, len)| (0, with_length(address.into(), len))),
            self.ipv6.map(|(address, len)| (1, with_length(address.into(), len))),
            self.gateway_ipv4.map(|address| (2, bytes_of(address.into()))),
            self.gateway_ipv6.map(|address| (3, bytes_of(address.into()))),
        ];
        encoder.map(given.iter().flatten().count() as u64 + 7 + more)?;
        for (key, bytes) in given.iter().flatten() {
            encoder.u8(*key)?.bytes(bytes)?;
        }
        encoder.u8(4)?.u32(self.seconds)?.u8(5)?.u32(*mtu)?;
        encoder.u8(6)?.array(dns.len() as u64)?;
        for server in dns {
            encoder.bytes(&bytes_of(*server))?;
        }
        encoder.u8(7)?.array(search.len() as u64)?;
        for domain in search {
            encoder.str(domain)?;
        }
        for (key, prefixes) in [(8, included), (9, excluded)] {
            encoder.u8(key)?.array(prefixes.len() as u64)?;
            for prefix in prefixes {
                encoder.bytes(&with_length(prefix.addr(), prefix.len()))?;
            }
        }
        encoder.u8(10)?.u32(self.usage_id)?;
        Ok(())
    }
}

/// A body that is as long as it gets.
pub(super) type Growing<'a> = Encoder<&'a mut Vec<u8>>;
/// Nothing keeps it from growing.
pub(super) type Written = Result<(), EncodeError<std::convert::Infallible>>;

/// The reason in a DISCONNECT: a number of its sender's choice, for people to look at. `None` if there is none.
#[must_use]
pub fn disconnect_reason(body: Map<'_>) -> Option<u64> {
    body.number(0)
}

/// A DISCONNECT.
#[must_use]
pub fn disconnect(usage_id: u32, stream_id: u32, reason: u8) -> Bytes {
    let frame = write(Operation::Disconnect, 0, stream_id, |encoder| {
        encoder.map(1)?.u8(0)?.u8(reason)?;
        Ok(())
    });
    of_usage(frame, usage_id)
}

/// Where the IP packet lies in a payload that is a VPN_SEND or a VPN_RECV; `None` for everything else.
#[must_use]
pub fn packet_in(payload: &[u8]) -> Option<std::ops::Range<usize>> {
    let code = payload.first().copied()?;
    if code != Operation::VpnSend as u8 && code != Operation::VpnReceive as u8 {
        return None;
    }
    let frame = Frame::parse(payload).ok()?;
    let mut decoder = frame.body.find(0)?;
    let length = decoder.bytes().ok()?.len();
    let end = HEADER_LEN + decoder.position();
    Some(end.checked_sub(length)?..end)
}

/// `Some(None)` if there is nothing at `key`; `None` if there is something else than `read` takes.
fn optional<'a, T>(body: Map<'a>, key: u64, read: impl Fn(Map<'a>, u64) -> Option<T>) -> Option<Option<T>> {
    if body.has(key) { read(body, key).map(Some) } else { Some(None) }
}

/// Exactly so many bytes.
fn octets<const N: usize>(body: Map<'_>, key: u64) -> Option<[u8; N]> {
    body.bytes(key)?.try_into().ok()
}

/// An address with the length of its network's prefix.
fn network<A: Octets>(body: Map<'_>, key: u64) -> Option<(A, u8)> {
    let (len, address) = body.bytes(key)?.split_last()?;
    let address = A::from_bytes(address)?;
    (u32::from(*len) <= A::BITS).then_some((address, *len))
}

/// The address of one family.
trait Octets: Sized {
    const BITS: u32;
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Octets for Ipv4Addr {
    const BITS: u32 = 32;
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; Self::BITS as usize / 8]>::try_from(bytes).ok().map(Self::from)
    }
}

impl Octets for Ipv6Addr {
    const BITS: u32 = 128;
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; Self::BITS as usize / 8]>::try_from(bytes).ok().map(Self::from)
    }
}

/// Of either family, by its length.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    Ipv4Addr::from_bytes(bytes).map(IpAddr::V4).or_else(|| Ipv6Addr::from_bytes(bytes).map(IpAddr::V6))
}

/// Without bits behind its length.
fn prefix(bytes: &[u8]) -> Option<Prefix> {
    let (len, bytes) = bytes.split_last()?;
    let address = address(bytes)?;
    Prefix::new(address, *len).filter(|prefix| prefix.addr() == address)
}

/// An array of at most so many, empty if there is none.
fn list<'a, T>(
    body: Map<'a>,
    key: u64,
    most: usize,
    read: impl Fn(&mut Decoder<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let Some(mut decoder) = body.find(key) else { return Some(Vec::new()) };
    let count = usize::try_from(decoder.array().ok()??).ok().filter(|count| *count <= most)?;
    (0..count).map(|_| read(&mut decoder)).collect()
}

fn bytes_of(address: IpAddr) -> ArrayVec<u8, 17> {
    match address {
        IpAddr::V4(address) => address.octets().into_iter().collect(),
        IpAddr::V6(address) => address.octets().into_iter().collect(),
    }
}

fn with_length(address: IpAddr, len: u8) -> ArrayVec<u8, 17> {
    let mut bytes = bytes_of(address);
    bytes.push(len);
    bytes
}

/// The same frame with its sender's id.
fn of_usage(mut frame: Bytes, usage_id: u32) -> Bytes {
    if let Some(place) = frame.get_mut(4..8) {
        place.copy_from_slice(&usage_id.to_le_bytes());
    }
    frame
}

// The widest fields of a request fit.
const _: () = assert!(HEADER_LEN + 1 + (3 + CLIENT_ID) + (3 + MAX_LABEL) + 6 + 18 + 2 <= super::LONGEST);

#[cfg(test)]
mod tests;
