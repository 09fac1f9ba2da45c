//! A VPN connection as the platform's API has it: a device whose packets a program reads and writes itself.
//!
//! [`VpnConnection::create`], [`VpnConnection::set_up`] with a [`VpnConfig`], [`VpnConnection::protect`] for the
//! sockets that carry the packets elsewhere, [`VpnConnection::destroy`]. What waits for the kernel comes twice: as a
//! blocking call, and with `_async` for a tokio runtime.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use caps::{CapSet, Capability};
use socket2::{Domain, SockRef};

use super::config::VpnConfig;
use super::error::VpnError;
use super::tunnel::{MARK, Routing, Tunnel};
use crate::config::RUN;
use crate::net::name::InterfaceName;
use crate::net::route::Router;
use crate::sys::socket;
use crate::sys::tun::{self, OpenFlags};

/// The device's end of packets: each read is one IP packet that goes out by the tunnel, each write one that comes in.
/// When it is closed the device goes; when the connection is destroyed it answers EBADFD.
#[derive(Debug)]
pub struct TunFd(OwnedFd);

impl AsFd for TunFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for TunFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<TunFd> for OwnedFd {
    fn from(fd: TunFd) -> Self {
        fd.0
    }
}

/// One connection with one device. Dropping it destroys it.
#[derive(Debug)]
pub struct VpnConnection {
    name: InterfaceName,
    tunnel: Option<Tunnel>,
}

impl VpnConnection {
    /// A connection whose device will have this name. Nothing is made yet.
    ///
    /// # Errors
    /// [`VpnError::Parameter`] for what is no name, [`VpnError::NotPrivileged`] without CAP_NET_ADMIN.
    pub fn create(name: &str) -> Result<Self, VpnError> {
        let parsed = name.parse();
        let name = parsed.map_err(|source| VpnError::Parameter { name: name.to_owned(), source })?;
        check_privilege()?;
        Ok(Self { name, tunnel: None })
    }

    /// Makes the device, with addresses, MTU and routes. DNS servers and search domains are checked and are for the
    /// caller to apply.
    ///
    /// # Errors
    /// See [`VpnError`]; then nothing is changed.
    pub fn set_up(&mut self, config: &VpnConfig) -> Result<TunFd, VpnError> {
        block_on(|| self.set_up_async(config))
    }

    /// As [`Self::set_up`], on a tokio runtime.
    ///
    /// # Errors
    /// As there.
    pub async fn set_up_async(&mut self, config: &VpnConfig) -> Result<TunFd, VpnError> {
        let plan = config.check()?;
        if self.tunnel.is_some() {
            return Err(VpnError::VpnExists(self.name.clone()));
        }
        let queue = self.open(config.is_blocking)?;
        let device =
            tun::link(&queue).map_err(|error| VpnError::kernel("read the device's link", error))?.ifindex;
        // If it fails the device goes, and what belongs to it.
        let way = (MARK, Routing::Rules);
        self.tunnel = Some(Tunnel::set_up(&self.name, device, &plan, way, Path::new(RUN)).await?);
        Ok(TunFd(queue))
    }

    /// What the socket sends goes by the physical network from now on, whatever routes the connection has. IPv4, IPv6,
    /// TCP, UDP, connected or not; a socket that has an address of the tunnel already keeps it. May come before
    /// [`Self::set_up`], and again.
    ///
    /// # Errors
    /// [`VpnError::InvalidSocket`] for a descriptor that is none of an IP socket, [`VpnError::PermissionDenied`]
    /// without CAP_NET_ADMIN and CAP_NET_RAW.
    pub fn protect(&self, fd: &impl AsFd) -> Result<(), VpnError> {
        let domain = SockRef::from(fd).domain().map_err(|source| VpnError::InvalidSocket { source })?;
        if domain != Domain::IPV4 && domain != Domain::IPV6 {
            let source = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            return Err(VpnError::InvalidSocket { source });
        }
        socket::set_mark(fd, MARK).map_err(|error| VpnError::kernel("mark a socket", error))
    }

    /// Takes everything back and deletes the device. A connection that is not set up stays so.
    ///
    /// # Errors
    /// What the kernel refuses; as much as possible is gone.
    pub fn destroy(&mut self) -> Result<(), VpnError> {
        if self.tunnel.is_none() {
            return Ok(());
        }
        block_on(|| self.destroy_async())
    }

    /// As [`Self::destroy`], on a tokio runtime.
    ///
    /// # Errors
    /// As there.
    pub async fn destroy_async(&mut self) -> Result<(), VpnError> {
        let Some(tunnel) = self.tunnel.take() else { return Ok(()) };
        let device = tunnel.device();
        let undone = tunnel.undo().await;
        let router = Router::open()
            .map_err(|error| VpnError::CannotConnect { service: "netlink", source: error.into() })?;
        match router.link(device).delete().await {
            // Its descriptor was closed before.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => undone,
            Err(error) => undone.and(Err(VpnError::kernel("delete the device", error))),
            Ok(()) => undone,
        }
    }

    fn open(&self, is_blocking: bool) -> Result<OwnedFd, VpnError> {
        let flags = OpenFlags { exclusive: true, plain: true, ..OpenFlags::default() };
        let (queue, _) =
            tun::open(self.name.as_str(), flags).map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) => VpnError::VpnExists(self.name.clone()),
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    VpnError::CannotConnect { service: "TUN driver (/dev/net/tun)", source: error.into() }
                }
                Some(libc::EPERM | libc::EACCES) => VpnError::CreationDenied { source: error.into() },
                _ => VpnError::kernel("open the device", error),
            })?;
        let blocking = SockRef::from(&queue).set_nonblocking(!is_blocking);
        blocking.map_err(|error| VpnError::kernel("set up the descriptor", error))?;
        Ok(queue)
    }
}

impl Drop for VpnConnection {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            tracing::warn!(%error, name = %self.name, "a VPN connection is not gone as a whole");
        }
    }
}

/// Whether this process may make connections at all.
///
/// # Errors
/// [`VpnError::NotPrivileged`].
pub fn check_privilege() -> Result<(), VpnError> {
    // Who cannot tell has no capability.
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN) {
        Ok(true) => Ok(()),
        _ => Err(VpnError::NotPrivileged),
    }
}

/// Waits for `work` on a thread of its own, so that it may be called wherever there is a runtime already. The thread is
/// in the caller's network namespace.
fn block_on<T, W>(work: impl FnOnce() -> W + Send) -> Result<T, VpnError>
where
    T: Send,
    W: Future<Output = Result<T, VpnError>>,
{
    let failed = |error: io::Error| VpnError::kernel("start a thread", error);
    std::thread::scope(|scope| {
        let run = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(work())
        };
        let thread = std::thread::Builder::new().name("ringway-vpn".to_owned()).spawn_scoped(scope, run);
        let ended = thread.map_err(failed)?.join();
        ended.unwrap_or_else(|_| Err(failed(io::Error::other("the thread ended by a panic"))))
    })
}
