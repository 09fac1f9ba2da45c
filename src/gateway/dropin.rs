//! Drop-in userspace WireGuard: one device, configured by `wg` through the UAPI socket, until somebody ends it.
//!
//! 1. fork, unless in the foreground: the parent waits for the verdict
//! 2. device, sockets, threads ([`super::Gateway::start`])
//! 3. UAPI socket; privileges are given up; now the parent exits with 0
//! 4. serve; watch the link for MTU and routes
//! 5. end on a signal, the removal of the socket, or the device's

use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use caps::Capability;

use super::exporter::{self, Pages};
use super::serving::{Serving, block_on, protect};
use super::{Gateway, Settings};
use crate::config::Metrics;
use crate::control::Control;
use crate::control::device::Device;
use crate::control::socket::{DIRECTORY, LocalSocket};
use crate::dataplane::tun::{self, TunDevice, TunOffloads};
use crate::net::link::LinkWatch;
use crate::net::name::InterfaceName;
use crate::sys::process::{self, Daemon};

/// MTU of a device that we make, bytes: what fits 1500 behind IPv6, UDP and WireGuard's 32 bytes, in multiples of
/// 20 as every implementation has it.
const DEFAULT_MTU: u32 = 1420;
/// What the control thread keeps: for fwmarks, netlink and the device; and for a listen port below 1024, which `wg` may
/// name at any time.
const KEPT: &[Capability] = &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];

/// A device to serve.
#[derive(Debug)]
pub struct Options {
    /// The TUN device's name.
    pub name: InterfaceName,
    /// Do not fork.
    pub foreground: bool,
    /// How many workers; 1 with `tun`.
    pub workers: NonZeroU16,
    /// An open TUN device (`WG_TUN_FD`): one queue.
    pub tun: Option<OwnedFd>,
    /// A listening UAPI socket (`WG_UAPI_FD`).
    pub uapi: Option<OwnedFd>,
    /// Times and limits.
    pub settings: Settings,
    /// Where and how metrics are served, if at all.
    pub metrics: Metrics,
    /// What the caller wants done about once a second while the device is served; must not wait.
    pub each_second: fn(),
}

/// Serves the device until it ends.
///
/// # Errors
/// What keeps it from beginning, with a hint where there is one. In the background the parent prints that, and only
/// what comes later is an error here.
pub fn run(options: Options) -> anyhow::Result<()> {
    let daemon = if options.foreground {
        None
    } else {
        Some(process::daemonize().context("going to the background")?)
    };
    protect();
    block_on(serve(options, daemon))
}

async fn serve(options: Options, daemon: Option<Daemon>) -> anyhow::Result<()> {
    let serving = match start(options).await {
        Ok(serving) => serving,
        Err(error) => {
            let Some(daemon) = daemon else { return Err(error) };
            // The parent says it, once; nobody sees how this process ends.
            daemon.fail(1, &format!("ringway: {error:#}"));
            return Ok(());
        }
    };
    if let Some(daemon) = daemon {
        daemon.ready().context("telling the parent process")?;
    }
    serving.until_end(std::future::pending()).await.map(drop)
}

async fn start(options: Options) -> anyhow::Result<Serving> {
    let page = exporter::open(options.metrics)?;
    let made = options.tun.is_none();
    let device = open_device(options.name.as_str(), options.workers.get(), options.tun)?;
    let mut watch = LinkWatch::open(device.ifindex).context("opening a netlink socket")?;
    if made {
        watch.link().set_mtu(DEFAULT_MTU).await.context("setting the device's MTU")?;
        let packets = options.settings.queue_length;
        watch.link().set_queue_length(packets).await.context("setting the device's queue length")?;
    }
    let gateway = Gateway::start(device, options.settings)?;
    if let Ok(state) = watch.state().await {
        gateway.set_mtu(state.mtu);
    }
    let socket = match options.uapi {
        Some(fd) => LocalSocket::inherit(fd).context("WG_UAPI_FD")?,
        None => LocalSocket::bind(Path::new(DIRECTORY), &options.name)
            .with_context(|| format!("binding {DIRECTORY}/{}.sock", options.name))?,
    };
    let control = Control::new(Device::new(gateway.port()), gateway);
    let (_, metrics) = Pages::new(page.map(|page| page.of(&control.dataplane, options.name.as_str())));
    // wg-quick's user expects no change of user.
    let each_second = options.each_second;
    Serving { control, socket, admin: None, watch, metrics, reload: None, each_second }.confined(None, KEPT)
}

fn open_device(name: &str, workers: u16, inherited: Option<OwnedFd>) -> Result<TunDevice, tun::TunError> {
    match inherited {
        Some(queue) => tun::inherit(queue, TunOffloads::ALL),
        None => tun::open_device(name, workers, TunOffloads::ALL),
    }
}
