//! UDP datagrams with what travels beside them: the local address (sticky source), the outer TOS byte, and the
//! segment size of a run (UDP_SEGMENT, UDP_GRO); and the socket options for these.
//!
//! Control messages are laid out and read by plain code over bytes, in the kernel's layout (`struct cmsghdr`,
//! cmsg(3)): a length, a level and a type, then data, each message aligned to a word.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::DerefMut;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use arrayvec::ArrayVec;
use socket2::Domain;

use super::{check, check_len};
use crate::types::{Mark, Source};

/// Bytes of `struct cmsghdr`.
const HEADER: usize = size_of::<libc::cmsghdr>();
/// Alignment of control messages.
const WORD: usize = size_of::<usize>();
/// Room for one pktinfo, one TOS and one segment size, of either family.
pub const CONTROL_LEN: usize = space(size_of::<libc::in6_pktinfo>()) + 2 * space(size_of::<libc::c_int>());

/// Most messages of one [`recv_many`] or [`send_many`].
pub const MANY: usize = 16;

/// Bytes that a control message with `len` bytes of data takes.
const fn space(len: usize) -> usize {
    (HEADER + len).next_multiple_of(WORD)
}

/// What the control bytes of a received message say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Local address and interface of arrival.
    pub source: Option<Source>,
    /// Outer TOS byte or traffic class.
    pub tos: u8,
    /// Length of each coalesced datagram but the last; `None` if there is one datagram.
    pub segment: Option<u16>,
}

/// One received message, its payload in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of payload in the buffer.
    pub len: usize,
    /// The sender.
    pub remote: SocketAddr,
    /// Local address and interface of arrival.
    pub source: Option<Source>,
    /// Outer TOS byte or traffic class.
    pub tos: u8,
    /// Length of each coalesced datagram but the last; `None` if there is one datagram.
    pub segment: Option<u16>,
    /// The payload was longer than the buffer, and its end is lost.
    pub truncated: bool,
}

/// Control bytes under construction, aligned as the kernel wants them.
#[repr(C, align(8))]
struct ControlWriter {
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

impl ControlWriter {
    const fn new() -> Self {
        Self { bytes: [0; CONTROL_LEN], len: 0 }
    }

    /// What is said beside a datagram, or a run of them, that is sent.
    fn of(remote: SocketAddr, source: Option<Source>, tos: u8, segment: Option<u16>) -> io::Result<Self> {
        let mut control = Self::new();
        if let Some(source) = source {
            if source.addr.is_ipv6() != remote.is_ipv6() {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            control.push_source(source);
        }
        if tos != 0 {
            control.push_tos(remote.is_ipv6(), tos);
        }
        if let Some(segment) = segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment.to_ne_bytes());
        }
        Ok(control)
    }

    /// Appends one message. There is room by construction: at most one of each kind is pushed.
    fn push<const N: usize>(&mut self, level: libc::c_int, kind: libc::c_int, data: [u8; N]) {
        let Some(room) = self.bytes.get_mut(self.len..self.len + space(N)) else { return };
        room[..WORD].copy_from_slice(&(HEADER + N).to_ne_bytes());
        room[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        room[WORD + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..HEADER + N].copy_from_slice(&data);
        self.len += space(N);
    }

    fn push_source(&mut self, source: Source) {
        match source.addr {
            // struct in_pktinfo (ip(7)): interface, local address, destination (unused in sending).
            IpAddr::V4(addr) => {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&source.ifindex.to_ne_bytes());
                info[4..8].copy_from_slice(&addr.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            // struct in6_pktinfo (RFC 3542): local address, interface.
            IpAddr::V6(addr) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&addr.octets());
                info[16..].copy_from_slice(&source.ifindex.to_ne_bytes());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    fn push_tos(&mut self, v6: bool, tos: u8) {
        let data = libc::c_int::from(tos).to_ne_bytes();
        if v6 {
            self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, data);
        } else {
            self.push(libc::IPPROTO_IP, libc::IP_TOS, data);
        }
    }
}

/// A socket address as the kernel reads it; 28 bytes instead of the 128 of `sockaddr_storage`.
#[repr(C)]
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    /// No address, every byte of it initialised.
    const fn unspecified() -> Self {
        let v6 = libc::sockaddr_in6 {
            sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        Self { v6 }
    }

    /// The address and its length in bytes.
    fn new(addr: SocketAddr) -> (Self, libc::socklen_t) {
        let mut address = Self::unspecified();
        match addr {
            SocketAddr::V4(a) => {
                address.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (address, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(a) => {
                address.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: a.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: a.scope_id(),
                };
                (address, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// The address that the kernel wrote; `None` for another family than IPv4 and IPv6.
    fn read(&self) -> Option<SocketAddr> {
        // SAFETY: every byte of the union is initialised (each begins as `unspecified`), both variants are plain
        // integers, and the family is the first field of both.
        let (v4, v6) = unsafe { (&self.v4, &self.v6) };
        match libc::c_int::from(v4.sin_family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// Sends `payload` with one sendmsg(2), without waiting and without allocating. With `segment` it is a run of
/// datagrams of that length, the last possibly shorter (UDP_SEGMENT). `tos` 0 is the socket's default.
///
/// # Errors
/// WouldBlock when the send buffer is full; EINVAL if the source is of another family than the remote, or (IPv6)
/// gone; EIO if the device cannot do UDP_SEGMENT; EMSGSIZE; ENETUNREACH and the other errors of udp(7).
pub fn send(
    fd: &impl AsFd,
    payload: &[u8],
    remote: SocketAddr,
    source: Option<Source>,
    tos: u8,
    segment: Option<u16>,
) -> io::Result<()> {
    let mut control = ControlWriter::of(remote, source, tos, segment)?;
    let (mut address, address_len) = Address::new(remote);
    let mut part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let message = message(&mut address, address_len, &mut part, control.bytes.as_mut_ptr(), control.len);
    // SAFETY: `message` points to `address`, `part`, `payload` and `control`, which live until after the call and
    // have the lengths given; sendmsg only reads them.
    let sent = unsafe {
        libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    check_len(sent).map(drop)
}

/// A datagram, or a run of them, to be sent; see [`send`] for what the fields mean.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The payload, of one datagram or of all of a run.
    pub payload: &'a [u8],
    /// Where to.
    pub remote: SocketAddr,
    /// The local address to send from, if not the kernel's choice.
    pub source: Option<Source>,
    /// Outer TOS byte; 0 is the socket's default.
    pub tos: u8,
    /// Length of each datagram of a run but the last; `None` for one datagram.
    pub segment: Option<u16>,
}

/// As [`send`], several by one call (sendmmsg(2)): the first [`MANY`] of `datagrams`, in order. Returns how many of
/// them the kernel took; the next one is what it stopped at.
///
/// # Errors
/// Those of [`send`], of the first. What it says of a later one, another call says that begins with it.
pub fn send_many(fd: &impl AsFd, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
    let datagrams = datagrams.get(..MANY).unwrap_or(datagrams);
    let mut controls = ArrayVec::<_, MANY>::new();
    let mut addresses = ArrayVec::<_, MANY>::new();
    let mut parts = ArrayVec::<_, MANY>::new();
    for Outgoing { payload, remote, source, tos, segment } in datagrams {
        match ControlWriter::of(*remote, *source, *tos, *segment) {
            Ok(control) => controls.push(control),
            Err(error) if controls.is_empty() => return Err(error),
            Err(_) => break,
        }
        addresses.push(Address::new(*remote));
        parts.push(libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() });
    }
    let each = addresses.iter_mut().zip(&mut parts).zip(&mut controls);
    let mut messages: ArrayVec<_, MANY> = each
        .map(|(((address, address_len), part), control)| {
            let msg_hdr = message(address, *address_len, part, control.bytes.as_mut_ptr(), control.len);
            libc::mmsghdr { msg_hdr, msg_len: 0 }
        })
        .collect();
    // SAFETY: `messages` holds so many, and each points to parts of `addresses`, `parts`, `controls` and to a payload,
    // all alive until after the call and of the lengths given; of these sendmmsg writes only each `msg_len`.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    Ok(usize::try_from(check(sent)?).unwrap_or_default())
}

/// Receives one message, or one run that the kernel coalesced (UDP_GRO), without waiting.
///
/// # Errors
/// WouldBlock when nothing is there; a pending error of the socket (it is then cleared); InvalidData for a sender of
/// another family than IPv4 and IPv6.
pub fn recv(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = ControlWriter::new();
    let mut address = Address::unspecified();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let address_len = size_of::<Address>() as libc::socklen_t;
    let mut message = message(&mut address, address_len, &mut part, control.bytes.as_mut_ptr(), CONTROL_LEN);
    // SAFETY: `message` points to `address`, `part`, `buffer` and `control`, all exclusively ours, alive until
    // after the call and of the lengths given.
    let received = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = check_len(received)?;
    understand(&message, len, &address, &control)
}

/// As [`recv`], as many messages as are there and as there are buffers, up to [`MANY`], by one call; one per buffer,
/// from the first on.
///
/// # Errors
/// Those of [`recv`]: of the call where nothing was received, else of one message.
pub fn recv_many(
    fd: &impl AsFd,
    buffers: &mut [impl DerefMut<Target = [u8]>],
) -> io::Result<ArrayVec<io::Result<Received>, MANY>> {
    let mut controls = [const { ControlWriter::new() }; MANY];
    let mut addresses = [const { Address::unspecified() }; MANY];
    let part =
        |buffer: &mut [u8]| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut parts: ArrayVec<_, MANY> =
        buffers.iter_mut().take(MANY).map(|buffer| part(&mut *buffer)).collect();
    let address_len = size_of::<Address>() as libc::socklen_t;
    let each = parts.iter_mut().zip(&mut addresses).zip(&mut controls);
    let mut messages: ArrayVec<_, MANY> = each
        .map(|((part, address), control)| {
            let msg_hdr = message(address, address_len, part, control.bytes.as_mut_ptr(), CONTROL_LEN);
            libc::mmsghdr { msg_hdr, msg_len: 0 }
        })
        .collect();
    // SAFETY: `messages` holds so many, and each points to parts of `addresses`, `parts`, `buffers` and `controls` of
    // its own, all exclusively ours, alive until after the call and of the lengths given. No time is passed.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let count = usize::try_from(check(received)?).unwrap_or_default();
    let each = messages.iter().zip(&addresses).zip(&controls).take(count);
    Ok(each
        .map(|((message, address), control)| {
            understand(&message.msg_hdr, message.msg_len as usize, address, control)
        })
        .collect())
}

/// What the kernel wrote beside `len` bytes of payload.
fn understand(
    message: &libc::msghdr,
    len: usize,
    address: &Address,
    control: &ControlWriter,
) -> io::Result<Received> {
    // Its type depends on the C library.
    let control_len: usize = message.msg_controllen as _;
    let Control { source, tos, segment } =
        parse_control(control.bytes.get(..control_len).unwrap_or_default());
    let remote = address.read().ok_or(io::ErrorKind::InvalidData)?;
    let truncated = message.msg_flags & libc::MSG_TRUNC != 0;
    Ok(Received { len, remote, source, tos, segment, truncated })
}

fn message(
    address: &mut Address,
    address_len: libc::socklen_t,
    part: &mut libc::iovec,
    control: *mut u8,
    control_len: usize,
) -> libc::msghdr {
    // SAFETY: msghdr is plain integers and pointers; all zero is valid (musl has padding fields besides).
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = ptr::from_mut(address).cast();
    message.msg_namelen = address_len;
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = control.cast();
    message.msg_controllen = control_len as _;
    message
}

/// Reads the control bytes of a received message, from the first on. What is unknown is skipped; what is cut short
/// ends the walk.
#[must_use]
pub fn parse_control(mut bytes: &[u8]) -> Control {
    let mut control = Control::default();
    while let Some((header, _)) = bytes.split_at_checked(HEADER) {
        let Some(len) = array(header, 0).map(usize::from_ne_bytes) else { break };
        let Some(data) = bytes.get(HEADER..len) else { break };
        let (Some(level), Some(kind)) = (int(header, WORD), int(header, WORD + 4)) else { break };
        read_one(&mut control, level, kind, data);
        bytes = bytes.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    }
    control
}

fn read_one(control: &mut Control, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // The second field, not the third: it is an address of ours even if the datagram was a broadcast.
            if let (Some(ifindex), Some(addr)) = (array(data, 0), array::<4>(data, 4)) {
                let ifindex = u32::from_ne_bytes(ifindex);
                control.source = Some(Source { addr: addr.into(), ifindex });
            }
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            if let (Some(addr), Some(ifindex)) = (array::<16>(data, 0), array(data, 16)) {
                let ifindex = u32::from_ne_bytes(ifindex);
                control.source = Some(Source { addr: addr.into(), ifindex });
            }
        }
        // The kernel gives one byte for IPv4 and an int for IPv6.
        (libc::IPPROTO_IP, libc::IP_TOS) => control.tos = data.first().copied().unwrap_or(0),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
            control.tos = int(data, 0).and_then(|tos| u8::try_from(tos).ok()).unwrap_or(0);
        }
        (libc::SOL_UDP, libc::UDP_GRO) => {
            control.segment = int(data, 0).and_then(|n| u16::try_from(n).ok()).filter(|&n| n != 0);
        }
        _ => {}
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn int(bytes: &[u8], at: usize) -> Option<libc::c_int> {
    array(bytes, at).map(libc::c_int::from_ne_bytes)
}

fn set<T: Copy>(fd: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for its size, and the kernel copies it.
    check(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Marks what the socket sends (`SO_MARK`); 0 takes the mark away.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN or CAP_NET_RAW.
pub fn set_mark(fd: &impl AsFd, mark: Mark) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_MARK, &mark.0)
}

/// Lets sockets of the same user share the port (`SO_REUSEPORT`); effective after bind as well.
///
/// # Errors
/// None is known for a UDP socket.
pub fn set_reuse_port(fd: &impl AsFd) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1)
}

/// Sets both buffers to `bytes`: beyond the system's limit where CAP_NET_ADMIN permits, else up to it. (The kernel
/// doubles the number for its own bookkeeping.)
///
/// # Errors
/// Those of setsockopt(2); the limit is none.
pub fn set_buffers(fd: &impl AsFd, bytes: i32) -> io::Result<()> {
    let pairs = [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)];
    for (forced, plain) in pairs {
        set(fd, libc::SOL_SOCKET, forced, &bytes).or_else(|_| set(fd, libc::SOL_SOCKET, plain, &bytes))?;
    }
    Ok(())
}

/// Whether the kernel may hand over runs of datagrams of one flow as one (`UDP_GRO`, Linux 5.0).
///
/// # Errors
/// ENOPROTOOPT on an older kernel.
pub fn set_gro(fd: &impl AsFd, on: bool) -> io::Result<()> {
    set(fd, libc::SOL_UDP, libc::UDP_GRO, &libc::c_int::from(on))
}

/// How what does not fit its path is sent. Over IPv4 whoever finds it too large fragments it, so that only the device's
/// MTU counts here (`IP_PMTUDISC_INTERFACE`): else one forged ICMP message would turn UDP_SEGMENT off for a path. Over
/// IPv6 only the sender fragments, and has to believe ICMP (`IPV6_PMTUDISC_DONT`); see docs/decisions/0055.
///
/// # Errors
/// EINVAL if `domain` is not the socket's.
pub fn set_path_mtu(fd: &impl AsFd, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_DONT)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_INTERFACE)
    }
}

/// What the socket sends is never fragmented, and no path MTU that was learnt counts, only the link's
/// (`IP_PMTUDISC_PROBE`): for whoever finds out the path's MTU.
///
/// # Errors
/// EINVAL if `domain` is not the socket's.
pub fn set_probing(fd: &impl AsFd, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_PROBE)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)
    }
}

/// Whether every error that ICMP reports fails the next call on the socket (`IP_RECVERR`); else those that may pass, as
/// a host that cannot be reached, are kept from a UDP socket.
///
/// # Errors
/// EINVAL or ENOPROTOOPT if `domain` is not the socket's.
pub fn set_all_errors(fd: &impl AsFd, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &1)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_RECVERR, &1)
    }
}

/// Bytes that a TCP socket has sent and its peer has not acknowledged, those that wait among them (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// EINVAL for a socket that listens.
pub fn unacknowledged(fd: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `bytes` is a valid int to write to, which is what TIOCOUTQ (the same number as SIOCOUTQ) writes.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}

/// Sends one datagram over IPv4 that is larger than the device's MTU: the kernel fragments it, as it does for its own
/// WireGuard. For the length of the call the socket is switched to `IP_PMTUDISC_OMIT`, which still ignores what ICMP
/// says; three system calls, so for the exception only. The caller's thread must be the only one that sends on the
/// socket.
///
/// # Errors
/// As [`send`].
pub fn send_in_fragments(
    fd: &impl AsFd,
    payload: &[u8],
    remote: SocketAddr,
    source: Option<Source>,
    tos: u8,
) -> io::Result<()> {
    set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_OMIT)?;
    let sent = send(fd, payload, remote, source, tos, None);
    set_path_mtu(fd, Domain::IPV4)?;
    sent
}

/// Asks for the local address and the TOS byte of every datagram (pktinfo and TOS, or IPv6's equivalents).
///
/// # Errors
/// ENOPROTOOPT or EINVAL if `domain` is not the socket's.
pub fn set_receive_info(fd: &impl AsFd, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, &1)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, &1)?;
        set(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, &1)
    }
}

/// Keeps an IPv6 socket from taking the IPv4 port as well (`IPV6_V6ONLY`); before bind.
///
/// # Errors
/// EINVAL after bind; ENOPROTOOPT on an IPv4 socket.
pub fn set_v6_only(fd: &impl AsFd) -> io::Result<()> {
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1)
}

/// Sets the program that chooses a socket of the reuseport group (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)). It sees
/// the UDP payload from offset 0; its result is the place in the order of binding; out of range means the kernel's
/// own hash. Needs no privilege and replaces an earlier program.
///
/// # Errors
/// EINVAL if the kernel refuses the program, or the socket is in no group.
pub fn attach_reuseport_cbpf(fd: &impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

#[cfg(test)]
mod tests;
