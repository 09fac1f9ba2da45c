//! What the kernel says of this host when asked: limits, clock, route. Nothing here changes anything.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use super::{check, socket};
use crate::types::Mark;

/// The limit of locked memory, soft and hard, bytes (RLIMIT_MEMLOCK, getrlimit(2)); `u64::MAX` is none.
///
/// # Errors
/// Those of getrlimit(2).
pub fn memlock() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid to write to.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// True if somebody keeps the kernel's clock synchronised (STA_UNSYNC is clear, adjtimex(2)).
///
/// # Errors
/// Those of adjtimex(2): a system call filter.
pub fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: timex is plain integers, for which zeros are valid; modes 0 asks and sets nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid to read and write.
    check(unsafe { libc::adjtimex(&raw mut timex) })?;
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

/// The MTU of the way to `remote` as the kernel knows it, bytes: the route's, the device's, or what an ICMP error said
/// (IP_MTU, ip(7)). Sends nothing.
///
/// # Errors
/// ENETUNREACH without a route.
pub fn path_mtu(remote: SocketAddr, mark: Mark) -> io::Result<u32> {
    let (any, level, name) = match remote {
        SocketAddr::V4(_) => (SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => {
            (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), libc::IPPROTO_IPV6, libc::IPV6_MTU)
        }
    };
    let asker = UdpSocket::bind(any)?;
    // Without CAP_NET_ADMIN there is no mark; then the unmarked route is the best answer.
    let _ = socket::set_mark(&asker, mark);
    asker.connect(remote)?;
    let mut mtu: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `mtu` has room for the `len` bytes that the kernel writes, and `len` is valid to read and write.
    check(unsafe { libc::getsockopt(asker.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut len) })?;
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// True if the effective user is root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: no pointer is passed; never fails.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_netns, ip};

    #[test]
    fn limits_and_clock_are_told() {
        let (soft, hard) = memlock().unwrap();
        assert!(soft <= hard);
        clock_is_synchronised().unwrap();
    }

    #[test]
    fn a_route_has_its_mtu() {
        in_netns(|| {
            let mark = Mark::default();
            let far: SocketAddr = "198.18.0.9:1".parse().unwrap();
            assert!(path_mtu(far, mark).is_err(), "no route");
            ip("link add e0 type veth peer name e1");
            ip("link set e0 mtu 1400 up");
            ip("link set e1 up");
            ip("address add 198.18.0.1/24 dev e0");
            assert_eq!(path_mtu(far, mark).unwrap(), 1400);
            ip("route add 198.18.0.9 dev e0 mtu 1300");
            assert_eq!(path_mtu(far, mark).unwrap(), 1300);
            assert_eq!(path_mtu("[::1]:1".parse().unwrap(), mark).unwrap(), 65536);
        });
    }
}
