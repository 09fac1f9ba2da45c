//! Why a gateway does not answer, by what can be seen from here.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use socket2::Domain;

use crate::control::dataplane::PeerStats;
use crate::sys::socket::{set_all_errors, set_mark};
use crate::types::Mark;

/// How long a refusal may take to come back. Linux gives up on a neighbour that does not answer after 3 s.
const PATIENCE: Duration = Duration::from_millis(3500);

/// The gateway does not answer, with what that looks like.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(String);

impl NoAnswer {
    /// With a sentence.
    #[must_use]
    pub fn new(sentence: String) -> Self {
        Self(sentence)
    }
}

/// One sentence. `own` is this client's public key, `written` when its profile was.
pub(super) fn explain(peer: &PeerStats, mark: Mark, own: &str, written: SystemTime) -> String {
    let Some(place) = peer.endpoint else { return "no gateway has an address".to_owned() };
    let port = place.port();
    match knock(place, mark) {
        Err(error) => match error.raw_os_error() {
            Some(libc::ENETUNREACH) => {
                format!("no route leads to the gateway {place}: is this host connected to its network?")
            }
            Some(libc::EPERM | libc::EACCES) => {
                format!("this host's own firewall forbids to send to the gateway {place} (UDP port {port})")
            }
            Some(libc::ECONNREFUSED) => format!(
                "the host {} is there, and nobody listens on its UDP port {port}: is the gateway running, and is that \
                 its port?",
                place.ip()
            ),
            Some(libc::EHOSTUNREACH) => {
                format!(
                    "the gateway {place} cannot be reached: it is off, or a firewall before it rejects UDP port {port}"
                )
            }
            _ => format!("no answer from the gateway {place}: {error}"),
        },
        Ok(()) if SystemTime::now() < written => format!(
            "no answer from the gateway {place}, and this host's clock is behind the time at which its profile was \
             written: set the clock"
        ),
        Ok(()) => format!(
            "nothing comes back from the gateway {place}: a firewall on the way drops UDP port {port}, or the gateway \
             does not know this client's key {own} (it may be disabled there), or not under this preshared key"
        ),
    }
}

/// A datagram that no gateway answers, and what the network says to it.
fn knock(place: SocketAddr, mark: Mark) -> io::Result<()> {
    let socket = socket_to(place, mark)?;
    set_all_errors(&socket, Domain::for_address(place))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&[0])?;
    match socket.recv(&mut [0; 64]) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        received => received.map(drop),
    }
}

/// A socket for whoever is at this place; a mark of 0 is none.
pub(super) fn socket_to(place: SocketAddr, mark: Mark) -> io::Result<UdpSocket> {
    let any: SocketAddr = match place {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    if mark != Mark(0) {
        set_mark(&socket, mark)?;
    }
    socket.connect(place)?;
    Ok(socket)
}
