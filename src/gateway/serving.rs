//! What the drop-in and the appliance have in common once their device is configured: the control thread's work until
//! the end.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use caps::Capability;

use super::client::reconnect::{self, Reconnect};
use super::exporter::{self, Pages};
use super::reload::{self, Reloader};
use super::{Gateway, admin, changes, leasing, supervisor};
use crate::control::dataplane::DataPlane as _;
use crate::control::socket::LocalSocket;
use crate::control::{Control, server};
use crate::net::link::{LinkEvent, LinkWatch};
use crate::sys::privileges::{self, Account};
use crate::sys::process;
use crate::sys::tun::Place;

/// How often a device that has been moved to another namespace is looked at.
const MOVED_CHECK: Duration = Duration::from_secs(2);

/// A data plane with its model, what configures it, and what tells of changes of its link.
pub(super) struct Serving {
    pub(super) control: Control<Gateway>,
    pub(super) socket: LocalSocket,
    /// The admin socket, if there is one.
    pub(super) admin: Option<LocalSocket>,
    pub(super) watch: LinkWatch,
    pub(super) metrics: Pages,
    /// Who reads the configuration again, if there is a file.
    pub(super) reload: Option<Reloader>,
    /// What keeps a client's gateways within reach.
    pub(super) reconnect: Option<Reconnect>,
    /// What whoever started it wants done about once a second.
    pub(super) each_second: fn(),
}

/// What the whole process needs before it holds a key or a ring. A refusal costs speed or a defence in depth, not
/// the start.
pub(super) fn protect() {
    // Keys are in our memory: no core dump, no debugger of the same user.
    if let Err(error) = process::not_dumpable() {
        tracing::warn!(%error, "core dumps stay possible");
    }
    // Rings and sessions count as locked memory, of which an unprivileged process has 8 MiB. Without its capabilities
    // the process cannot ask for more later.
    if let Err(error) = process::raise_memlock(u64::MAX) {
        tracing::debug!(%error, "the limit of locked memory stays");
    }
}

/// Runs the control thread's work.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control thread's runtime")?;
    runtime.block_on(work)
}

impl Serving {
    /// Ends the set-up: from here on the process has what `kept` names and no more, see [`privileges::confine`].
    ///
    /// # Errors
    /// A thread that would keep more; then everything is stopped.
    pub(super) fn confined(self, account: Option<Account>, kept: &[Capability]) -> anyhow::Result<Self> {
        match privileges::confine(account, kept) {
            Ok(()) => Ok(self),
            Err(error) => {
                drop((self.socket, self.admin));
                self.control.dataplane.stop();
                Err(error).context("giving up privileges")
            }
        }
    }

    /// Serves the UAPI and follows the link until a signal, the removal of the socket's file, or the device's, or
    /// `ended`, which is a signal that came before; then the socket goes, and every thread ends.
    ///
    /// # Errors
    /// No signal handlers.
    pub(super) async fn until_end(self, ended: impl Future<Output = ()>) -> anyhow::Result<server::End> {
        let Self { mut control, socket, admin, watch, metrics, reload, reconnect, each_second } = self;
        let asked = control.dataplane.take_asked();
        let control = RefCell::new(control);
        let mut gone = control.borrow().dataplane.gone();
        let device_gone = async move {
            // An error means that no worker is left to say so.
            let _ = gone.wait_for(|gone| *gone).await;
        };
        supervisor::ready(&status(&control.borrow().dataplane));
        let end = tokio::select! {
            end = server::serve(&socket, &control, device_gone) => end.context("serving the UAPI socket"),
            () = watch_link(watch, &control) => Ok(server::End::DeviceGone),
            never = supervisor::watch(&control) => match never {},
            never = supervisor::repeat(each_second) => match never {},
            never = reload::serve(reload, &control) => match never {},
            never = exporter::serve(metrics, &control) => match never {},
            never = leasing::serve(&control) => match never {},
            never = admin::serve(admin, &control) => match never {},
            never = changes::serve(&control) => match never {},
            never = reconnect::serve(reconnect, &control) => match never {},
            never = leasing::answer(asked, &control) => match never {},
            () = ended => Ok(server::End::Signal),
        };
        tracing::info!(?end, "ending");
        supervisor::stopping();
        drop(socket);
        let dataplane = control.into_inner().dataplane;
        dataplane.farewell();
        dataplane.stop();
        end
    }
}

/// A line for the service manager.
pub(super) fn status(gateway: &Gateway) -> String {
    format!("serving on port {} with {} workers", gateway.port(), gateway.workers())
}

/// Follows the link's MTU and the host's routes. Returns when the device is gone.
async fn watch_link(mut watch: LinkWatch, control: &RefCell<Control<Gateway>>) {
    loop {
        match watch.next().await {
            Ok(LinkEvent::Changed(state)) => control.borrow().dataplane.set_mtu(state.mtu),
            Ok(LinkEvent::RoutesChanged { new_way }) => {
                let dataplane = &mut control.borrow_mut().dataplane;
                dataplane.clear_sources();
                // It reads whole tables: not for every route of a routing daemon.
                if new_way {
                    dataplane.follow_routes();
                }
            }
            // Deleted, or only moved: the descriptor knows.
            Ok(LinkEvent::Left) => break,
            Err(error) => {
                tracing::warn!(%error, "netlink failed: changes of MTU and routes are noticed later");
                break;
            }
        }
    }
    loop {
        let place = control.borrow().dataplane.place();
        let mtu = match place {
            Ok(Place::Here(link)) => Ok(link.mtu),
            Ok(Place::Elsewhere(name, there)) => watch.link().mtu_in(&there, name).await,
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return,
            Err(error) => Err(error),
        };
        match mtu {
            Ok(mtu) => control.borrow().dataplane.set_mtu(mtu),
            Err(error) => tracing::debug!(%error, "the device is out of sight"),
        }
        tokio::time::sleep(MOVED_CHECK).await;
    }
}
