//! What all of them need of UDP: sockets with long queues, buffers for whole runs, and the datagrams of a run.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::sys::socket::{self, MANY, Received};

/// Send and receive buffer of each socket, bytes.
const SOCKET_BUFFER: i32 = 16 << 20;
/// A coalesced run is at most this long, bytes.
const BUFFER: usize = 64 << 10;

/// Binds a socket whose queues are long and to which runs of datagrams come as one.
///
/// # Errors
/// Those of bind(2).
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket::set_buffers(&socket, SOCKET_BUFFER)?;
    // Without it runs come as single datagrams, which costs time and nothing else.
    let _ = socket::set_gro(&socket, true);
    Ok(socket)
}

/// As [`bind`], at an address of the kernel's choice from which `remote` can be sent to.
///
/// # Errors
/// Those of [`bind`].
pub fn bind_towards(remote: SocketAddr) -> io::Result<UdpSocket> {
    bind(if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() })
}

/// A buffer for each message of one [`socket::recv_many`] or [`socket::send_many`].
#[must_use]
pub fn buffers() -> Vec<Box<[u8]>> {
    (0..MANY).map(|_| vec![0; BUFFER].into_boxed_slice()).collect()
}

/// The datagrams of a payload that is a run of them, or one of any length, 0 included.
pub fn datagrams(payload: &[u8], segment: Option<u16>) -> impl Iterator<Item = &[u8]> {
    let len = segment.map_or(payload.len(), usize::from).max(1);
    payload.chunks(len).chain(payload.is_empty().then_some(payload))
}

/// How many datagrams came in these messages.
#[must_use]
pub fn count(received: &[io::Result<Received>]) -> u64 {
    let each = received.iter().flatten();
    each.map(|Received { len, segment, .. }| segment.map_or(1, |segment| len.div_ceil(segment.into())) as u64)
        .sum()
}
