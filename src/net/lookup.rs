//! Names of gateways, asked of the underlay's DNS servers past every tunnel: a stub resolver (RFC 1035, RFC 7766) over
//! marked sockets, which neither a tunnel's routes nor the kill switch hold up.
//!
//! Programs' own names are none of its business. What it answers is a place to send handshakes to and nothing else:
//! whoever forges an answer gains what whoever drops packets has, since only the holder of the gateway's key answers a
//! handshake. So there is no DNSSEC, no cache, and every address in an answer counts, whatever aliases lead there.
//!
//! A query has a random number and a random port (a socket of its own, connected: the kernel takes answers from the
//! server only). IPv4 and IPv6 addresses are asked for side by side; servers one after the other, twice.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use crate::sys::socket::set_mark;
use crate::types::{Mark, is_domain};

/// Most servers that are known of.
pub const MAX_SERVERS: usize = 8;
/// Most addresses of a name.
pub const MAX_ADDRESSES: usize = 16;
/// How long a server may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long a look-up may take, whatever servers there are.
pub const LONGEST: Duration = Duration::from_secs(8);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// Where DNS servers listen.
const PORT: u16 = 53;
/// What a datagram without EDNS may carry is 512 bytes (RFC 1035 section 4.2.1); some send more.
const LARGEST_DATAGRAM: usize = 4096;
/// A longer file names no servers.
const LARGEST_FILE: u64 = 1 << 20;
/// Where systemd-resolved names the servers that it asks, whatever programs are told to ask.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No name of the DNS.
    #[error("{0:?} is no name")]
    Name(String),
    /// Nobody to ask.
    #[error("this host knows of no DNS server")]
    NoServer,
    /// A server knows that there is no such name, or no address of it.
    #[error("the name has no address")]
    NoAddress,
    /// A server did not do it.
    #[error("the DNS server {0} answers {1}")]
    Refused(IpAddr, String),
    /// A server was not reached.
    #[error("the DNS server {0}: {1}")]
    Unreachable(IpAddr, io::Error),
    /// A server said nothing in time.
    #[error("the DNS servers do not answer")]
    Silence,
}

/// The servers of this host's networks, [`MAX_SERVERS`] at most: what its files name now without `ours`, the tunnel's,
/// and then those that were there `before` it. Servers on this host come last: what they ask for us is not marked.
#[must_use]
pub fn underlay(resolv_conf: &Path, ours: &[IpAddr], before: &[IpAddr]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for path in [Path::new(RESOLVED), resolv_conf] {
        let is_small = fs::metadata(path).is_ok_and(|meta| meta.len() <= LARGEST_FILE);
        if let Some(text) = fs::read_to_string(path).ok().filter(|_| is_small) {
            found.extend(servers(&text).into_iter().filter(|server| !ours.contains(server)));
        }
    }
    found.extend(before);
    let mut known = Vec::new();
    for server in found {
        if !known.contains(&server) {
            known.push(server);
        }
    }
    known.sort_by_key(IpAddr::is_loopback);
    known.truncate(MAX_SERVERS);
    known
}

/// What a text says that resolv.conf(5) describes. Servers by link-local addresses are left out.
#[must_use]
pub fn servers(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    named.take(MAX_SERVERS).collect()
}

/// The addresses of a name, IPv6 and IPv4 in turn, [`MAX_ADDRESSES`] at most; within [`LONGEST`]. The name is taken as
/// it is: there are no search domains.
///
/// # Errors
/// Why there is none.
pub async fn lookup(name: &str, servers: &[IpAddr], mark: Mark) -> Result<Vec<IpAddr>, LookupError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if !is_domain(name) {
        return Err(LookupError::Name(name.to_owned()));
    }
    let both =
        async { tokio::join!(ask(name, TYPE::AAAA, servers, mark), ask(name, TYPE::A, servers, mark)) };
    let (six, four) = timeout(LONGEST, both).await.map_err(|_| LookupError::Silence)?;
    let found = match (six, four) {
        (Err(_), Err(error)) => return Err(error),
        (six, four) => in_turn(six.unwrap_or_default(), four.unwrap_or_default()),
    };
    if found.is_empty() { Err(LookupError::NoAddress) } else { Ok(found) }
}

/// One of each in turn, as whoever races them tries them (RFC 8305 section 4).
#[must_use]
pub fn in_turn<T: PartialEq>(
    first: impl IntoIterator<Item = T>,
    second: impl IntoIterator<Item = T>,
) -> Vec<T> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            all.truncate(MAX_ADDRESSES);
            return all;
        }
        for item in [one, other].into_iter().flatten() {
            if !all.contains(&item) {
                all.push(item);
            }
        }
    }
}

/// What the first server that knows anything says: addresses, or that there are none.
async fn ask(name: &str, kind: TYPE, servers: &[IpAddr], mark: Mark) -> Result<Vec<IpAddr>, LookupError> {
    let mut failed = LookupError::NoServer;
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        failed = match timeout(PATIENCE, ask_one(name, kind, *server, mark)).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => LookupError::Silence,
        };
        tracing::debug!(%server, %failed, "a gateway's name");
    }
    Err(failed)
}

async fn ask_one(name: &str, kind: TYPE, server: IpAddr, mark: Mark) -> Result<Vec<IpAddr>, LookupError> {
    let unreachable = |error| LookupError::Unreachable(server, error);
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_err(|_| unreachable(io::Error::other("no randomness")))?;
    let id = u16::from_be_bytes(random);
    let query = query(name, kind, id).ok_or_else(|| LookupError::Name(name.to_owned()))?;
    let place = SocketAddr::new(server, PORT);
    let answer = match by_datagram(&query, place, mark, |bytes| read(bytes, name, kind, id)).await {
        Ok(Answer::Truncated) => {
            by_stream(&query, place, mark).await.map(|bytes| read(&bytes, name, kind, id))
        }
        Ok(answer) => Ok(Some(answer)),
        Err(error) => Err(error),
    };
    match answer.map_err(unreachable)? {
        Some(Answer::Addresses(found)) => Ok(found),
        Some(Answer::Refused(code)) => Err(LookupError::Refused(server, code)),
        Some(Answer::Truncated) | None => {
            Err(LookupError::Refused(server, "what is no answer to the question".to_owned()))
        }
    }
}

async fn by_datagram(
    query: &[u8],
    server: SocketAddr,
    mark: Mark,
    read: impl Fn(&[u8]) -> Option<Answer>,
) -> io::Result<Answer> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    set_mark(&socket, mark)?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may be a forger's, or late.
        if let Some(answer) = buffer.get(..length).and_then(&read) {
            return Ok(answer);
        }
    }
}

/// As RFC 7766 has it: two bytes of length before each message.
async fn by_stream(query: &[u8], server: SocketAddr, mark: Mark) -> io::Result<Vec<u8>> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    set_mark(&socket, mark)?;
    let mut stream = socket.connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// What a message says to our question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// None, if there is no such name or no such address.
    Addresses(Vec<IpAddr>),
    /// It is to be asked for over TCP.
    Truncated,
    /// The server's word for why.
    Refused(String),
}

/// `None` for what is no name.
fn query(name: &str, kind: TYPE, id: u16) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).ok().filter(|name| !name.get_labels().is_empty())?;
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), CLASS::IN.into(), false));
    packet.build_bytes_vec().ok()
}

/// `None` for what is no answer to this question.
pub(crate) fn read(bytes: &[u8], name: &str, kind: TYPE, id: u16) -> Option<Answer> {
    let packet = Packet::parse(bytes).ok()?;
    let [question] = &packet.questions[..] else { return None };
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && question.qtype == QTYPE::TYPE(kind)
        && question.qname.to_string().eq_ignore_ascii_case(name);
    if !is_ours {
        return None;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Answer::Truncated);
    }
    if !matches!(packet.rcode(), RCODE::NoError | RCODE::NameError) {
        return Some(Answer::Refused(format!("{:?}", packet.rcode())));
    }
    let found = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) if kind == TYPE::A => Some(Ipv4Addr::from(a.address).into()),
        RData::AAAA(aaaa) if kind == TYPE::AAAA => Some(Ipv6Addr::from(aaaa.address).into()),
        _ => None,
    });
    Some(Answer::Addresses(found.take(MAX_ADDRESSES).collect()))
}

#[cfg(test)]
mod tests;
