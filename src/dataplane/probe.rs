//! What the kernel's UDP offload can do, found out by doing it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use super::outbound::MAX_SEGMENTS;
use crate::sys::socket;

/// Segments that every kernel with UDP_SEGMENT takes (UDP_MAX_SEGMENTS before 6.9).
const OLD_LIMIT: usize = 64;

/// How many segments one UDP_SEGMENT send may have: 128, 64, or 1 if the kernel does not know UDP_SEGMENT. Where
/// loopback is down it cannot be tried, and the answer is the one that is right for every kernel since 4.18.
#[must_use]
pub fn segment_limit() -> usize {
    for limit in [MAX_SEGMENTS, OLD_LIMIT] {
        match send_segments(limit) {
            Ok(()) => return limit,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL) => {}
                Some(libc::EIO | libc::ENOPROTOOPT) => return 1,
                _ => return OLD_LIMIT,
            },
        }
    }
    1
}

/// Sends a run of one-byte datagrams to ourselves over loopback.
fn send_segments(count: usize) -> std::io::Result<()> {
    let receiver = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let sender = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket::send(&sender, &vec![0; count], receiver.local_addr()?, None, 0, Some(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_takes_segments() {
        // Loopback is up wherever tests run; every kernel that Ringway supports (6.1) has UDP_SEGMENT.
        assert!(matches!(segment_limit(), 64 | 128));
        assert!(send_segments(129).is_err());
    }
}
