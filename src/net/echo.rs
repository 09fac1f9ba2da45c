//! Round trips by ICMP echo: a raw socket for requests to one address, by the host's routes or by one link.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::name::InterfaceName;
use crate::sys::socket::set_probing;
use crate::wire::echo::{self, Fate};

/// Room for the longest packet that an answer may be.
const LONGEST: usize = 1 << 16;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which request it is about.
    pub sequence: u16,
    /// What became of it.
    pub fate: Fate,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Options {
    /// To whom.
    pub to: IpAddr,
    /// By this link, whatever the host's routes are; answers count that come by it.
    pub link: Option<InterfaceName>,
    /// So many hops at most; `None`: as many as the host's packets have.
    pub hops: Option<u8>,
}

/// A socket for requests to one address. Requests are never fragmented, and no path MTU that the kernel has learnt
/// counts for them, only their link's.
#[derive(Debug)]
pub struct Echo {
    /// A raw socket; the calls that are made are the same for both.
    socket: UdpSocket,
    to: IpAddr,
    id: u16,
    buffer: Vec<u8>,
}

impl Echo {
    /// Opens it; needs a tokio runtime.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW; ENODEV; EAFNOSUPPORT.
    pub fn open(options: &Options) -> io::Result<Self> {
        let to = options.to;
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if let Some(link) = &options.link {
            socket.bind_device(Some(link.as_str().as_bytes()))?;
        }
        match (to, options.hops) {
            (IpAddr::V4(_), Some(hops)) => socket.set_ttl_v4(hops.into())?,
            (IpAddr::V6(_), Some(hops)) => socket.set_unicast_hops_v6(hops.into())?,
            (_, None) => {}
        }
        set_probing(&socket, domain)?;
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let id = u16::from_ne_bytes(id);
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, to, id, buffer: vec![0; LONGEST] })
    }

    /// Sends a request whose IP packet has `size` bytes.
    ///
    /// # Errors
    /// EMSGSIZE beyond the link's MTU; ENETUNREACH and the other errors of ip(7).
    pub async fn send(&self, sequence: u16, size: usize) -> io::Result<()> {
        let message = echo::request(self.to.is_ipv4(), self.id, sequence, size);
        self.socket.send_to(&message, SocketAddr::new(self.to, 0)).await.map(drop)
    }

    /// Waits for what comes back. May be given up at any time.
    ///
    /// # Errors
    /// Those of recv(2); the link is gone (ENETDOWN).
    pub async fn answer(&mut self) -> io::Result<Answer> {
        let Self { socket, to, id, buffer } = self;
        loop {
            let read = socket.recv(buffer).await?;
            let heard = echo::heard(to.is_ipv4(), buffer.get(..read).unwrap_or_default());
            if let Some(heard) = heard.filter(|heard| heard.id == *id) {
                return Ok(Answer { sequence: heard.sequence, fate: heard.fate });
            }
        }
    }
}
