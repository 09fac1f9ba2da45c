//! Lines to requests. A `set` is read whole before anything of it is applied: an error in its middle changes nothing.
//!
//! Strict as wireguard-go is: decimal numbers without a sign, a prefix with its length, `true` where only
//! `true` makes sense.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::{AllowedIp, PeerChange, Request, SetRequest};
use crate::control::errno::Errno;
use crate::crypto::x25519::PrivateKey;
use crate::dataplane::offload::switches::Switch;
use crate::sys::interface;
use crate::types::{Mark, Prefix, PublicKey, Secret};

/// Longest line, bytes without the line end. The longest that means anything is a key: 13 + 1 + 64.
pub const MAX_LINE: usize = 4096;

/// Largest request, bytes. A million allowed-ips take half of it.
pub const MAX_REQUEST: usize = 64 << 20;

/// What a line led to.
#[derive(Debug)]
pub enum Progress {
    /// The request goes on.
    More,
    /// The request is whole; if it is to be refused, the next one on this connection may still be good.
    Complete(Result<Request, Errno>),
    /// Nobody can say where the next request begins: answer and hang up.
    Broken(Errno),
}

/// The requests of one connection.
#[derive(Debug, Default)]
pub struct RequestParser {
    /// The request being read; `None` between two.
    current: Option<Request>,
    /// The first error in it. Its other lines are still read, so that the answer comes where the client waits for it.
    error: Option<Errno>,
    /// Lines so far.
    line: u32,
    /// Bytes so far.
    bytes: usize,
}

impl RequestParser {
    /// Between two requests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next line, without its line end.
    pub fn line(&mut self, line: &[u8]) -> Progress {
        self.line = self.line.saturating_add(1);
        self.bytes = self.bytes.saturating_add(line.len() + 1);
        if line.len() > MAX_LINE || self.bytes > MAX_REQUEST {
            return Progress::Broken(Errno::TOO_LONG);
        }
        let Some(request) = &mut self.current else {
            return self.begin(line);
        };
        if line.is_empty() {
            return self.complete();
        }
        if self.error.is_none()
            && let Err(errno) = body_line(request, line)
        {
            // The line itself may hold a key: name its number only.
            tracing::debug!(line = self.line, %errno, "UAPI request refused");
            self.error = Some(errno);
        }
        Progress::More
    }

    /// True inside a request: the end of the stream now cuts it short.
    #[must_use]
    pub fn in_request(&self) -> bool {
        self.current.is_some()
    }

    fn begin(&mut self, line: &[u8]) -> Progress {
        self.current = Some(match line {
            b"get=1" => Request::Get,
            b"set=1" => Request::Set(SetRequest::default()),
            b"show=json" => Request::Show,
            b"switch=1" => Request::Switch(Vec::new()),
            // An empty line too many between two requests harms nobody.
            b"" => {
                *self = Self::new();
                return Progress::More;
            }
            _ => return Progress::Broken(Errno::PROTOCOL),
        });
        Progress::More
    }

    fn complete(&mut self) -> Progress {
        let done = std::mem::take(self);
        match (done.error, done.current) {
            (Some(errno), _) => Progress::Complete(Err(errno)),
            (None, Some(request)) => Progress::Complete(Ok(request)),
            (None, None) => Progress::More,
        }
    }
}

/// A line that is neither the first nor the last.
fn body_line(request: &mut Request, line: &[u8]) -> Result<(), Errno> {
    let line = std::str::from_utf8(line).map_err(|_| Errno::INVALID)?;
    let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
    let set = match request {
        Request::Set(set) => set,
        Request::Switch(switches) => return switch_line(switches, key, value),
        Request::Get | Request::Show => return Err(Errno::INVALID),
    };
    if key == "public_key" {
        set.peers.push(PeerChange::new(PublicKey(hex_key(value)?)));
        return Ok(());
    }
    match set.peers.last_mut() {
        Some(peer) => peer_line(peer, key, value),
        None => device_line(set, key, value),
    }
}

/// A line before the first `public_key`.
fn device_line(set: &mut SetRequest, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "private_key" => set.private_key = Some(secret(value)?.map(|key| PrivateKey::new(&key).to_secret())),
        "listen_port" => set.listen_port = Some(number(value)?),
        "fwmark" => set.fwmark = Some(Mark(number(value)?)),
        "replace_peers" => set.replace_peers = only_true(value)?,
        _ => return Err(Errno::INVALID),
    }
    Ok(())
}

/// A line of `switch=1`.
fn switch_line(switches: &mut Vec<(Switch, bool)>, key: &str, value: &str) -> Result<(), Errno> {
    let switch = Switch::ALL.into_iter().find(|switch| switch.name() == key).ok_or(Errno::INVALID)?;
    let on = match value {
        "on" => true,
        "off" => false,
        _ => return Err(Errno::INVALID),
    };
    // Once each: that also bounds the list.
    if switches.iter().any(|(known, _)| *known == switch) {
        return Err(Errno::INVALID);
    }
    switches.push((switch, on));
    Ok(())
}

/// A line after a `public_key`.
fn peer_line(peer: &mut PeerChange, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "remove" => peer.remove = only_true(value)?,
        "update_only" => peer.update_only = only_true(value)?,
        "preshared_key" => peer.preshared_key = Some(secret(value)?),
        "endpoint" => peer.endpoint = Some(endpoint(value)?),
        "persistent_keepalive_interval" => {
            let seconds: u16 = number(value)?;
            peer.keepalive = Some((seconds != 0).then_some(seconds));
        }
        "replace_allowed_ips" => peer.replace_allowed_ips = only_true(value)?,
        "allowed_ip" => {
            // Nearly every peer has one: no room for four.
            if peer.allowed_ips.is_empty() {
                peer.allowed_ips.reserve_exact(1);
            }
            peer.allowed_ips.push(allowed_ip(value)?);
        }
        "protocol_version" if value == "1" => {}
        _ => return Err(Errno::INVALID),
    }
    Ok(())
}

fn only_true(value: &str) -> Result<bool, Errno> {
    if value == "true" { Ok(true) } else { Err(Errno::INVALID) }
}

/// Decimal digits and nothing else (`FromStr` alone would take a plus sign).
fn number<N: std::str::FromStr>(value: &str) -> Result<N, Errno> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Errno::INVALID);
    }
    value.parse().map_err(|_| Errno::INVALID)
}

/// 64 hexadecimal digits. `wg` writes lower case; upper case is read as well, as wireguard-go does.
fn hex_key(value: &str) -> Result<[u8; 32], Errno> {
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    let mut key = [0; 32];
    if pairs.len() != key.len() || !rest.is_empty() {
        return Err(Errno::INVALID);
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Ok(key)
}

fn nibble(digit: u8) -> Result<u8, Errno> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Errno::INVALID),
    }
}

/// A secret; all zeros means "none".
fn secret(value: &str) -> Result<Option<Secret>, Errno> {
    let secret = Secret(hex_key(value)?);
    Ok((!secret.is_zero()).then_some(secret))
}

/// `a.b.c.d:port` or `[v6]:port`, with a zone by index or name (`[fe80::1%eth0]:port`).
fn endpoint(value: &str) -> Result<SocketAddr, Errno> {
    let (host, port) = value.rsplit_once(':').ok_or(Errno::INVALID)?;
    let port = number(port)?;
    let Some(inner) = host.strip_prefix('[') else {
        let addr = host.parse().map_err(|_| Errno::INVALID)?;
        return Ok(SocketAddr::new(IpAddr::V4(addr), port));
    };
    let inner = inner.strip_suffix(']').ok_or(Errno::INVALID)?;
    let (addr, scope) = match inner.split_once('%') {
        Some((addr, zone)) => (addr, zone_index(zone)?),
        None => (inner, 0),
    };
    let addr: Ipv6Addr = addr.parse().map_err(|_| Errno::INVALID)?;
    Ok(match addr.to_ipv4_mapped() {
        // The outer IPv6 sockets are IPv6 only.
        Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
        None => SocketAddr::V6(SocketAddrV6::new(addr, port, 0, scope)),
    })
}

fn zone_index(zone: &str) -> Result<u32, Errno> {
    number(zone).or_else(|_| interface::index_of(zone).ok_or(Errno::INVALID))
}

/// `prefix/length`, host bits ignored; a leading `-` takes the prefix away.
fn allowed_ip(value: &str) -> Result<AllowedIp, Errno> {
    let (text, kind): (_, fn(Prefix) -> AllowedIp) = match value.strip_prefix('-') {
        Some(text) => (text, AllowedIp::Remove),
        None => (value, AllowedIp::Add),
    };
    let (addr, len) = text.split_once('/').ok_or(Errno::INVALID)?;
    let addr: IpAddr = addr.parse().map_err(|_| Errno::INVALID)?;
    Prefix::new(addr, number(len)?).map(kind).ok_or(Errno::INVALID)
}

#[cfg(test)]
mod tests;
