//! UDP → worker: one reuseport group per address family, on one port.
//!
//! A group holds one socket per worker, in worker order, and the handshake thread's socket last. A classic BPF
//! program on it (no privilege needed) sends transport messages to the worker that the receiver index names and
//! handshake messages to the last socket; anything else is spread by the kernel's own hash over all of them.
//!
//! Any program of the same user may join a reuseport group, so the port is claimed first: the first socket is bound
//! *without* SO_REUSEPORT, which fails if anybody has the port; then the option is set on it, and the others join it.
//! The port is ours from the first bind on, without a gap.
//!
//! Close the sockets of a group together: when one is closed, the kernel moves the last one into its place, and the
//! program would name the wrong one.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::noise::index::{IndexKey, M0, M1, M2, SHIFTS};
use crate::sys::socket;
use crate::types::{Mark, Suite};
use crate::wire::wireguard::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN, TRANSPORT_OVERHEAD};

/// Send and receive buffer of each socket, bytes.
pub const SOCKET_BUFFER: i32 = 4 << 20;
/// Most workers of a group; bounds the number of sockets.
pub const MAX_WORKERS: u16 = 256;
/// How often a free port is asked for that both families have.
const PORT_ATTEMPTS: u32 = 16;

/// The sockets of one port. A family that the host does not have is empty.
#[derive(Debug)]
pub struct UdpGroup {
    /// The UDP port of both families.
    pub port: u16,
    /// IPv4: one socket per worker, in worker order, then the handshake socket. Non-blocking.
    pub v4: Vec<OwnedFd>,
    /// IPv6, likewise.
    pub v6: Vec<OwnedFd>,
}

/// Why there is no group, with a hint for the operator.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// EADDRINUSE.
    #[error("UDP port {port} is in use by another program: choose another listen port, or stop it")]
    InUse {
        /// The port asked for.
        port: u16,
    },
    /// No free port common to both families.
    #[error("found no UDP port that is free for both IPv4 and IPv6")]
    NoFreePort,
    /// Neither family can be bound.
    #[error("this host has neither IPv4 nor IPv6: {0}")]
    NoFamily(io::Error),
    /// EPERM of SO_MARK.
    #[error("not permitted to mark packets (fwmark): CAP_NET_ADMIN is needed")]
    MarkNotPermitted,
    /// EACCES of bind(2).
    #[error("not permitted to bind UDP port {port}: CAP_NET_BIND_SERVICE is needed below 1024")]
    PortNotPermitted {
        /// The port asked for.
        port: u16,
    },
    /// 0 or too many workers.
    #[error("{0} workers are not possible: 1 to 256")]
    Workers(u16),
    /// Anything else.
    #[error("cannot {action} a UDP socket: {source}")]
    Other {
        /// What was tried.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl UdpError {
    /// The errno for an answer over the wg UAPI, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::InUse { .. } | Self::NoFreePort => libc::EADDRINUSE,
            Self::MarkNotPermitted => libc::EPERM,
            Self::PortNotPermitted { .. } => libc::EACCES,
            Self::Workers(_) => libc::EINVAL,
            Self::NoFamily(source) | Self::Other { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// Opens the groups of both families on `port` (0: one that the kernel finds free), with `mark` on every socket if
/// it is not 0. `key` names the worker of a receiver index.
///
/// # Errors
/// See [`UdpError`]; nothing stays open.
pub fn open_group(port: u16, workers: u16, mark: Mark, key: IndexKey) -> Result<UdpGroup, UdpError> {
    if !(1..=MAX_WORKERS).contains(&workers) {
        return Err(UdpError::Workers(workers));
    }
    let claim = claim(port, mark)?;
    let program = program(workers, key);
    let fill = |first: Option<Socket>, domain| match first {
        Some(first) => join(first, domain, claim.port, workers, mark, &program),
        None => Ok(Vec::new()),
    };
    let v4 = fill(claim.v4, Domain::IPV4)?;
    let v6 = fill(claim.v6, Domain::IPV6)?;
    Ok(UdpGroup { port: claim.port, v4, v6 })
}

/// Changes the mark of sockets in use.
///
/// # Errors
/// [`UdpError::MarkNotPermitted`]; some sockets may then have the new mark already.
pub fn set_mark(sockets: &[impl AsFd], mark: Mark) -> Result<(), UdpError> {
    sockets.iter().try_for_each(|s| socket::set_mark(s, mark)).map_err(mark_error)
}

fn mark_error(source: io::Error) -> UdpError {
    match source.raw_os_error() {
        Some(libc::EPERM) => UdpError::MarkNotPermitted,
        _ => UdpError::Other { action: "mark", source },
    }
}

/// A port that is ours in every family of this host.
struct Claim {
    port: u16,
    v4: Option<Socket>,
    v6: Option<Socket>,
}

fn claim(port: u16, mark: Mark) -> Result<Claim, UdpError> {
    let attempts = if port == 0 { PORT_ATTEMPTS } else { 1 };
    for _ in 0..attempts {
        match claim_once(port, mark) {
            Err(UdpError::InUse { .. }) if port == 0 => {}
            outcome => return outcome,
        }
    }
    Err(UdpError::NoFreePort)
}

fn claim_once(wanted: u16, mark: Mark) -> Result<Claim, UdpError> {
    let v4 = claim_family(Domain::IPV4, wanted, mark)?;
    let port = match &v4 {
        Ok(socket) => local_port(socket)?,
        Err(_) => wanted,
    };
    let v6 = claim_family(Domain::IPV6, port, mark)?;
    let port = match (&v4, &v6) {
        (_, Ok(socket)) => local_port(socket)?,
        (Ok(_), Err(_)) => port,
        (Err(_), Err(_)) => wanted,
    };
    match (v4, v6) {
        (Err(error), Err(_)) => Err(UdpError::NoFamily(error)),
        (v4, v6) => Ok(Claim { port, v4: v4.ok(), v6: v6.ok() }),
    }
}

/// Binds without SO_REUSEPORT. The inner error means that the host does not have this family.
fn claim_family(domain: Domain, port: u16, mark: Mark) -> Result<io::Result<Socket>, UdpError> {
    let missing = |e: &io::Error| {
        matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EPFNOSUPPORT | libc::EADDRNOTAVAIL))
    };
    let socket = match make(domain) {
        Err(error) if missing(&error) => return Ok(Err(error)),
        Err(source) => return Err(UdpError::Other { action: "open", source }),
        Ok(socket) => socket,
    };
    configure(&socket, domain, mark)?;
    match socket.bind(&any(domain, port).into()) {
        Ok(()) => Ok(Ok(socket)),
        Err(error) if missing(&error) => Ok(Err(error)),
        Err(source) => Err(match source.raw_os_error() {
            Some(libc::EADDRINUSE) => UdpError::InUse { port },
            Some(libc::EACCES) => UdpError::PortNotPermitted { port },
            _ => UdpError::Other { action: "bind", source },
        }),
    }
}

fn make(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))
}

/// Every option but the shared port, before bind: no datagram is ever received without them.
fn configure(socket: &Socket, domain: Domain, mark: Mark) -> Result<(), UdpError> {
    let configure = || {
        if domain == Domain::IPV6 {
            socket::set_v6_only(socket)?;
        }
        socket::set_receive_info(socket, domain)?;
        socket::set_path_mtu(socket, domain)?;
        socket::set_buffers(socket, SOCKET_BUFFER)
    };
    configure().map_err(|source| UdpError::Other { action: "configure", source })?;
    if mark == Mark(0) { Ok(()) } else { socket::set_mark(socket, mark).map_err(mark_error) }
}

/// Makes the claiming socket the first of a group, adds the others in order, and sets the program.
fn join(
    first: Socket,
    domain: Domain,
    port: u16,
    workers: u16,
    mark: Mark,
    program: &[libc::sock_filter],
) -> Result<Vec<OwnedFd>, UdpError> {
    let failed = |action| move |source| UdpError::Other { action, source };
    socket::set_reuse_port(&first).map_err(failed("share the port of"))?;
    // All of them: to learn whether it may put datagrams together, the kernel asks any socket of the group, by the
    // addresses' hash and without the program (`udp_gro_receive`, net/ipv4/udp_offload.c). One without the option would
    // have it hand over every datagram of some peers by itself. An older kernel without UDP_GRO does so always: slower,
    // and right.
    let _ = socket::set_gro(&first, true);
    let mut group = vec![first];
    for _ in 1..=workers {
        let next = make(domain).map_err(failed("open"))?;
        configure(&next, domain, mark)?;
        socket::set_reuse_port(&next).map_err(failed("share the port of"))?;
        let _ = socket::set_gro(&next, true);
        next.bind(&any(domain, port).into()).map_err(failed("bind"))?;
        group.push(next);
    }
    if let Some(first) = group.first() {
        socket::attach_reuseport_cbpf(first, program).map_err(failed("set the program of"))?;
    }
    Ok(group.into_iter().map(OwnedFd::from).collect())
}

fn any(domain: Domain, port: u16) -> SocketAddr {
    if domain == Domain::IPV6 {
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }
}

fn local_port(socket: &Socket) -> Result<u16, UdpError> {
    let failed = |source| UdpError::Other { action: "ask the port of", source };
    let addr = socket.local_addr().map_err(failed)?;
    addr.as_socket().map(|a| a.port()).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

/// The first four bytes of a message of this type, loaded big-endian: the type and three reserved zeros.
const fn type_word(message: u8) -> u32 {
    (message as u32) << 24
}

/// The same of a transport message that bears the mark of a suite.
const MARKED_WORD: u32 = type_word(4) | (Suite::Aes256Gcm.mark() as u32) << 16;

/// The program on the group, in classic BPF (Linux `Documentation/networking/filter.rst`): A is the accumulator, X
/// the index register, offset 0 the first byte of the UDP payload; a load beyond the end would end the program
/// with 0, so the length is checked first.
fn program(workers: u16, key: IndexKey) -> Vec<libc::sock_filter> {
    use libc::{
        BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_MISC,
        BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_TXA, BPF_W, BPF_X, BPF_XOR,
    };
    /// Where the parts begin; jumps are counted from the instruction after.
    const LENGTHS: u8 = 9;
    const HANDSHAKE: u8 = LENGTHS + 6;
    const SPREAD: u8 = HANDSHAKE + 1;
    const HASH: u8 = SPREAD + 1;
    let insn = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |at: u8, test: u32, k: u32, yes: u8, no: u8| libc::sock_filter {
        code: (BPF_JMP | test | BPF_K) as u16,
        jt: yes - at - 1,
        jf: no - at - 1,
        k,
    };
    let alu = |op: u32, k: u32| insn(BPF_ALU | op | BPF_K, k);
    let (tax, txa) = (insn(BPF_MISC | BPF_TAX, 0), insn(BPF_MISC | BPF_TXA, 0));
    let xor_x = insn(BPF_ALU | BPF_XOR | BPF_X, 0);
    let mut program = vec![
        insn(BPF_LD | BPF_W | BPF_LEN, 0),
        jump(1, BPF_JGE, TRANSPORT_OVERHEAD as u32, 2, SPREAD),
        tax,
        insn(BPF_LD | BPF_W | BPF_ABS, 0),
        jump(4, BPF_JEQ, type_word(4), HASH, 5),
        jump(5, BPF_JEQ, MARKED_WORD, HASH, 6),
        jump(6, BPF_JEQ, type_word(1), LENGTHS, 7),
        jump(7, BPF_JEQ, type_word(2), LENGTHS + 2, 8),
        jump(8, BPF_JEQ, type_word(3), LENGTHS + 4, SPREAD),
    ];
    for (at, len) in
        [LENGTHS, LENGTHS + 2, LENGTHS + 4].into_iter().zip([INITIATION_LEN, RESPONSE_LEN, COOKIE_REPLY_LEN])
    {
        program.extend([txa, jump(at + 1, BPF_JEQ, len as u32, HANDSHAKE, SPREAD)]);
    }
    let workers = u32::from(workers);
    let [k0, k1, k2] = key.words();
    program.extend([
        insn(BPF_RET | BPF_K, workers),
        // No socket has this place: the kernel then spreads by its own hash.
        insn(BPF_RET | BPF_K, u32::MAX),
        // `IndexKey::owner`, line by line.
        insn(BPF_LD | BPF_W | BPF_ABS, 4),
        alu(BPF_XOR, k0),
        alu(BPF_MUL, M0),
        tax,
        alu(BPF_RSH, SHIFTS[0]),
        xor_x,
        alu(BPF_ADD, k1),
        alu(BPF_MUL, M1),
        tax,
        alu(BPF_RSH, SHIFTS[1]),
        xor_x,
        alu(BPF_XOR, k2),
        alu(BPF_MUL, M2),
        tax,
        alu(BPF_RSH, SHIFTS[2]),
        xor_x,
        alu(BPF_MOD, workers),
        insn(BPF_RET | BPF_A, 0),
    ]);
    program
}

#[cfg(test)]
mod tests;
