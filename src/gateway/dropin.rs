//! Drop-in userspace WireGuard: one device, configured by `wg` through the UAPI socket, until somebody ends it.
//!
//! 1. fork, unless in the foreground: the parent waits for the verdict
//! 2. device, sockets, threads ([`super::Gateway::start`])
//! 3. UAPI socket; now the parent exits with 0
//! 4. serve; watch the link for MTU and routes
//! 5. end on a signal, the removal of the socket, or the device's

use std::cell::RefCell;
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;

use super::exporter::{Exporter, Metrics};
use super::{Gateway, Settings};
use crate::control::device::Device;
use crate::control::scrape;
use crate::control::socket::{DIRECTORY, UapiSocket};
use crate::control::{Control, server};
use crate::dataplane::tun::{self, TunDevice, TunOffloads};
use crate::net::link::{LinkEvent, LinkWatch};
use crate::net::name::InterfaceName;
use crate::sys::process::{self, Daemon};

/// MTU of a device that we make, bytes: what fits 1500 behind IPv6, UDP and WireGuard's 32 bytes, in multiples of
/// 20 as every implementation has it.
const DEFAULT_MTU: u32 = 1420;
/// Locked memory of a worker, bytes: three lanes of 16 slots of 66,000 bytes, its rings, and as much again.
const LOCKED_PER_WORKER: u64 = 8 << 20;
/// How often a device that has been moved to another namespace is looked at.
const MOVED_CHECK: Duration = Duration::from_secs(2);

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
    pub metrics: Option<Metrics>,
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
    protect(options.workers.get());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control thread's runtime")?;
    runtime.block_on(serve(options, daemon))
}

/// What the whole process needs before it holds a key or a ring. A refusal costs speed or a defence in depth, not
/// the start.
fn protect(workers: u16) {
    // Keys are in our memory: no core dump, no debugger of the same user.
    if let Err(error) = process::not_dumpable() {
        tracing::warn!(%error, "core dumps stay possible");
    }
    // Registered buffers count as locked memory, of which an unprivileged process has 8 MiB.
    if let Err(error) = process::raise_memlock(u64::from(workers) * LOCKED_PER_WORKER) {
        tracing::debug!(%error, "the limit of locked memory stays");
    }
}

async fn serve(options: Options, daemon: Option<Daemon>) -> anyhow::Result<()> {
    let Started { control, socket, watch, metrics } = match start(options).await {
        Ok(started) => started,
        Err(error) => {
            let Some(daemon) = daemon else { return Err(error) };
            // The parent says it, once; nobody sees how this process ends.
            daemon.fail(&format!("ringway: {error:#}"));
            return Ok(());
        }
    };
    if let Some(daemon) = daemon {
        daemon.ready().context("telling the parent process")?;
    }
    let control = RefCell::new(control);
    let mut gone = control.borrow().dataplane.gone();
    let device_gone = async move {
        // An error means that no worker is left to say so.
        let _ = gone.wait_for(|gone| *gone).await;
    };
    let end = tokio::select! {
        end = server::serve(&socket, &control, device_gone) => end.context("serving the UAPI socket")?,
        () = watch_link(watch, &control) => server::End::DeviceGone,
        never = serve_metrics(metrics, &control) => match never {},
    };
    tracing::info!(?end, "ending");
    drop(socket);
    control.into_inner().dataplane.stop();
    Ok(())
}

/// What runs once all is up.
struct Started {
    control: Control<Gateway>,
    socket: UapiSocket,
    watch: LinkWatch,
    metrics: Option<(TcpListener, Exporter)>,
}

async fn start(options: Options) -> anyhow::Result<Started> {
    let listener = options.metrics.map(|metrics| scrape::listen(metrics.listen)).transpose()?;
    let made = options.tun.is_none();
    let device = open_device(options.name.as_str(), options.workers.get(), options.tun)?;
    let mut watch = LinkWatch::open(device.ifindex).context("opening a netlink socket")?;
    if made {
        watch.set_mtu(DEFAULT_MTU).await.context("setting the device's MTU")?;
    }
    let gateway = Gateway::start(device, options.settings)?;
    if let Ok(state) = watch.state().await {
        gateway.set_mtu(state.mtu);
    }
    let socket = match options.uapi {
        Some(fd) => UapiSocket::inherit(fd).context("WG_UAPI_FD")?,
        None => UapiSocket::bind(Path::new(DIRECTORY), &options.name)
            .with_context(|| format!("binding {DIRECTORY}/{}.sock", options.name))?,
    };
    let metrics = listener.zip(options.metrics).map(|(listener, metrics)| {
        (listener, Exporter::new(&gateway, options.name.as_str(), metrics.per_peer))
    });
    let control = Control { device: Device::new(gateway.port()), dataplane: gateway };
    Ok(Started { control, socket, watch, metrics })
}

/// Serves the page, if there is one to serve.
async fn serve_metrics(
    metrics: Option<(TcpListener, Exporter)>,
    control: &RefCell<Control<Gateway>>,
) -> Infallible {
    let Some((listener, mut exporter)) = metrics else { return std::future::pending().await };
    scrape::serve(&listener, || exporter.page(&control.borrow())).await
}

fn open_device(name: &str, workers: u16, inherited: Option<OwnedFd>) -> Result<TunDevice, tun::TunError> {
    match inherited {
        Some(queue) => tun::inherit(queue, TunOffloads::ALL),
        None => tun::open_device(name, workers, TunOffloads::ALL),
    }
}

/// Follows the link's MTU and the host's routes. Returns when the device is gone.
async fn watch_link(mut watch: LinkWatch, control: &RefCell<Control<Gateway>>) {
    loop {
        match watch.next().await {
            Ok(LinkEvent::Changed(state)) => control.borrow().dataplane.set_mtu(state.mtu),
            Ok(LinkEvent::RoutesChanged) => control.borrow().dataplane.clear_sources(),
            // Deleted, or only moved: the descriptor knows.
            Ok(LinkEvent::Left) => break,
            Err(error) => {
                tracing::warn!(%error, "netlink failed: changes of MTU and routes are noticed later");
                break;
            }
        }
    }
    loop {
        match control.borrow().dataplane.link() {
            Ok(link) => control.borrow().dataplane.set_mtu(link.mtu),
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return,
            Err(error) => tracing::debug!(%error, "the device is out of sight"),
        }
        tokio::time::sleep(MOVED_CHECK).await;
    }
}
