//! The data plane: what happens to a packet, in the order in which it happens.
//!
//! **Inbound** (client → network), all on the worker that owns the peer:
//! 1. [`io`]: a receive completes: one buffer, up to 64 KiB of coalesced datagrams;
//! 2. [`inbound`]: each datagram's session is found by its receiver index;
//! 3. counter limit and replay window are checked read-only, the message is opened in place, the window committed,
//!    keypair and endpoint confirmed, the inner source checked against the peer's allowed-ips;
//! 4. [`offload::coalesce`]: runs of TCP and UDP become super-packets;
//! 5. the batch is written to the TUN queue.
//!
//! **Outbound** (network → client), all on the owner:
//! 1. [`io`]: a read from the TUN queue completes: one packet or super-packet of up to 64 KiB;
//! 2. [`outbound`]: the peer is found by destination ([`allowed_ips`]);
//! 3. [`offload::split`]: MTU-sized packets are written straight into the send buffer and sealed there as a run;
//! 4. one `sendmsg` per run (UDP_SEGMENT);
//! 5. buffers return last-in-first-out.
//!
//! A decrypted message that is a control frame leaves at step 3 to [`frames`].
//!
//! [`worker`] is the loop around both, [`peers`] the table of sessions, [`handoff`] the way to other threads,
//! [`handshake`] the thread where public-key cryptography happens, [`steering`] what makes packets land on their
//! owner. A bad packet never ends a batch: it is dropped, with a reason from [`crate::metrics::drops::Drop`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub mod admission;
pub mod allowed_ips;
pub mod frames;
pub mod handoff;
pub mod handshake;
pub mod inbound;
pub mod io;
pub mod news;
pub mod offload;
pub mod outbound;
pub mod peers;
pub mod probe;
pub mod steering;
pub mod tun;
pub mod udp;
pub mod worker;

/// The outer sockets of one thread; a family that the host lacks is `None`.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// IPv4.
    pub v4: Option<Arc<OwnedFd>>,
    /// IPv6.
    pub v6: Option<Arc<OwnedFd>>,
}

impl Sockets {
    /// The socket that reaches `remote`.
    #[must_use]
    pub fn towards(&self, remote: std::net::SocketAddr) -> Option<&Arc<OwnedFd>> {
        if remote.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}
