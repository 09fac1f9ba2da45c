//! The gateway of one file: it makes its device, keys, addresses and routes, and undoes them at the end.
//!
//! 1. lock: `/run/ringway/IF/`; what a killed predecessor left goes
//! 2. private key: credential, file, or a new one
//! 3. the store with its thread ([`crate::control::leases`]), and the peers in it ([`crate::control::peers`])
//! 4. device with all queues, MTU, addresses, up; routes (they go with the device)
//! 5. sockets and threads ([`super::Gateway::start`])
//! 6. firewall rules and forwarding ([`crate::net::manners`])
//! 7. peers, through the same model as the UAPI's
//! 8. UAPI socket, admin socket; privileges are given up
//! 9. serve until a signal or the loss of the device; SIGHUP and `ringway reload`: the file again ([`super::reload`])
//! 10. the other way round: socket, threads, device, forwarding and rules, lock
//!
//! Whoever returns early or is dropped undoes what it did: each step's value does so in its `Drop`.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use caps::Capability;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::exporter::Pages;
use super::failure::Failure;
use super::home::{self, RunDir};
use super::hosting;
use super::leasing;
use super::reload::{PagePlace, Reloader, Source};
use super::serving::{Serving, block_on, protect};
use super::{Gateway, Settings, admin, exporter};
use crate::config;
use crate::config::key;
use crate::control::device::Device;
use crate::control::peers::{Peers, Site};
use crate::control::server::End;
use crate::control::socket::{DIRECTORY, LocalSocket, socket_path};
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::control::{self, Control, errno::Errno};
use crate::crypto::x25519::PrivateKey;
use crate::dataplane::tun::{self, TunDevice, TunError, TunOffloads};
use crate::net::link::LinkWatch;
use crate::noise::timers::Limits;
use crate::sys::caretaker::Caretaker;
use crate::sys::privileges::Account;
use crate::types::{Prefix, Secret};

/// How long a killed predecessor's device and port may outlive it: rings are torn down in the background.
const AFTERLIFE: Duration = Duration::from_secs(5);
/// What the control thread keeps: for netlink, the firewall, the interface's sysctls, and fwmarks.
const KEPT: &[Capability] = &[Capability::CAP_NET_ADMIN];
/// Between two looks at them.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A gateway to run.
#[derive(Debug)]
pub struct Options {
    /// Its file's content.
    pub config: config::Gateway,
    /// `$CREDENTIALS_DIRECTORY` of systemd.exec(5).
    pub credentials: Option<PathBuf>,
    /// Protocol constants.
    pub limits: Limits,
    /// The same file again.
    pub source: Source,
    /// What the caller wants done about once a second while the gateway runs; must not wait.
    pub each_second: fn(),
}

/// What may go wrong between the device and the peers.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A change of the link was refused.
    #[error("cannot {action} on {interface}: {source}")]
    Link {
        /// What was to be done.
        action: String,
        /// The device.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A route that somebody else made.
    #[error("there is a route to {prefix} already: delete it, or take the prefix out of allowed_ips")]
    RouteExists {
        /// Where to.
        prefix: Prefix,
    },
    /// A peer has the gateway's own key.
    #[error("a peer's public_key is the gateway's own: {0}")]
    OwnKey(String),
    /// More peers or prefixes than there is room for.
    #[error("the peers cannot be set: {0}")]
    Peers(Errno),
    /// The device is gone, or a thread has ended.
    #[error("the device was deleted, or a thread of the data plane ended")]
    Gone,
}

impl SetupError {
    /// What kind of failure it is.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Link { .. } | Self::RouteExists { .. } | Self::Gone => Failure::Device,
            Self::OwnKey(_) | Self::Peers(_) => Failure::Configuration,
        }
    }
}

/// Runs the gateway until a signal.
///
/// # Errors
/// What keeps it from beginning or from going on; [`Failure::of`] tells the kind.
pub fn run(options: Options) -> anyhow::Result<()> {
    let workers = options.config.workers.count(&options.config.cores);
    protect();
    // Before there are threads.
    let caretaker = if options.config.user.is_empty() {
        None
    } else {
        let socket = socket_path(Path::new(DIRECTORY), &options.config.interface);
        home::leave_caretaker(&options.config.run_dir(), &socket)
    };
    block_on(serve(options, workers, caretaker))
}

async fn serve(options: Options, workers: u16, caretaker: Option<Caretaker>) -> anyhow::Result<()> {
    let mut signalled = pin!(signalled().context("taking signals")?);
    // One that comes during the start is obeyed after it.
    let hangup = signal(SignalKind::hangup()).context("taking signals")?;
    let Options { config, .. } = &options;
    let (interface, peers) = (config.interface.clone(), config.peer.len());
    // Declared first: it goes last, when nothing of ours is left on the host.
    let _run_dir;
    let starting = async {
        let mut run_dir = RunDir::take(&options.config.run_dir())?;
        run_dir.leave_to(caretaker);
        let serving = start(options, workers, &run_dir, hangup).await?;
        anyhow::Ok((run_dir, serving))
    };
    let serving = tokio::select! {
        biased;
        () = &mut signalled => return Ok(()),
        started = starting => {
            let serving;
            (_run_dir, serving) = started?;
            serving
        }
    };
    tracing::info!(%interface, peers, workers, "ready");
    match serving.until_end(signalled).await? {
        End::DeviceGone => Err(SetupError::Gone.into()),
        End::Signal | End::SocketRemoved => Ok(()),
    }
}

/// Ends when somebody asks this process to end, from now on.
pub(super) fn signalled() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn start(options: Options, workers: u16, run_dir: &RunDir, hangup: Signal) -> anyhow::Result<Serving> {
    let config = &options.config;
    let account = match config.user.as_str() {
        "" => None,
        user => Some(Account::named(user).context("user")?),
    };
    if let Some(pid) = run_dir.predecessor() {
        tracing::warn!(pid, "the process before this one was killed: cleaning up after it");
        wait_for_port(config.listen_port).await;
    }
    let page = exporter::open(config.metrics)?;
    let key = home::private_key(&config.private_key_file, options.credentials.as_deref())?;
    let mut request = request(config, key)?;
    let (mut leases, stored) = leasing::open(config, account)?;
    let site = Site::new(&options.source.path, config);
    let peers = Peers::new(site, stored.peers, stored.invites);
    peers.check(&options.source.path, config)?;
    let now = leases.now();
    request.peers.extend(peers.in_force(now));
    let device = open_device(config.interface.as_str(), workers, run_dir.predecessor().is_some()).await?;
    let watch = set_up_link(config, &device).await?;
    let settings = Settings {
        listen_port: config.listen_port,
        mark: config.fwmark,
        cores: config.cores.clone(),
        limits: options.limits,
        busy_poll: config.busy_poll,
        io: config.io,
        aead: config.aead,
        hello: false,
        aes: config.aes,
        offload: config.offload,
        mss_clamp: config.forwarding.mss_clamp,
        queue_length: config.queue_length,
        account,
        metrics: page.is_some(),
    };
    let mut gateway = Gateway::start(device, settings)?;
    let mut model = Device::new(gateway.port());
    leasing::find_homes(&mut request, config, &model, Some(&mut leases));
    let finish = || {
        gateway.host = Some(hosting::apply(config, gateway.port())?);
        model.apply(request, &mut gateway).map_err(SetupError::Peers)?;
        let socket = LocalSocket::bind(Path::new(DIRECTORY), &config.interface)
            .with_context(|| format!("binding {DIRECTORY}/{}.sock", config.interface))?;
        let admin = admin::bind(config)?;
        run_dir.give_to(account)?;
        anyhow::Ok((socket, admin))
    };
    match finish() {
        Ok((socket, admin)) => {
            let interface = config.interface.as_str();
            let listener = page.as_ref().map(|page| Rc::clone(&page.listener));
            let (stand, metrics) = Pages::new(page.map(|page| page.of(&gateway, interface)));
            let page = PagePlace::new(stand, listener, interface.to_owned());
            let (door, asked) = control::reload::door();
            let mut control = Control {
                reload: Some(door),
                leases: Some(leases),
                peers: Some(peers),
                ..Control::new(model, gateway)
            };
            leasing::configure(&mut control, config);
            let Options { config, source, each_second, .. } = options;
            let link = watch.link().clone();
            let reload = Some(Reloader { source, in_force: config, link, page, hangup, asked });
            let admin = Some(admin);
            Serving { control, socket, admin, watch, metrics, reload, reconnect: None, each_second }
                .confined(account, KEPT)
        }
        Err(error) => {
            gateway.stop();
            Err(error)
        }
    }
}

/// Everything that is said of keys and peers, as the UAPI would say it.
fn request(config: &config::Gateway, key: Secret) -> anyhow::Result<SetRequest> {
    let own = *PrivateKey::new(&key).public();
    let mut peers = Vec::with_capacity(config.peer.len());
    for peer in &config.peer {
        if peer.public_key == own {
            return Err(SetupError::OwnKey(own.to_base64()).into());
        }
        peers.push(peer_change(peer)?);
    }
    Ok(SetRequest {
        private_key: Some(Some(PrivateKey::new(&key).to_secret())),
        fwmark: Some(config.fwmark),
        peers,
        ..SetRequest::default()
    })
}

/// All that the file says of a peer, as the UAPI would say it.
pub(super) fn peer_change(peer: &config::Peer) -> anyhow::Result<PeerChange> {
    let preshared_key = match &peer.preshared_key_file {
        Some(path) => Some(key::read(path).with_context(|| path.display().to_string())?),
        None => None,
    };
    Ok(PeerChange {
        preshared_key: Some(preshared_key),
        endpoint: peer.endpoint,
        keepalive: Some((peer.keepalive != 0).then_some(peer.keepalive)),
        allowed_ips: peer.allowed_ips.iter().copied().map(AllowedIp::Add).collect(),
        ..PeerChange::new(peer.public_key)
    })
}

/// Waits until a killed predecessor's sockets are gone. If they stay, they are somebody else's, and opening ours says
/// so.
async fn wait_for_port(port: u16) {
    let deadline = Instant::now() + AFTERLIFE;
    let in_use =
        |result: io::Result<UdpSocket>| result.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    while (in_use(UdpSocket::bind(("0.0.0.0", port))) || in_use(UdpSocket::bind(("::", port))))
        && Instant::now() < deadline
    {
        sleep(LOOK_AGAIN).await;
    }
}

/// Makes the device; after a kill waits until the old one is gone.
pub(super) async fn open_device(name: &str, workers: u16, after_kill: bool) -> Result<TunDevice, TunError> {
    let deadline = Instant::now() + AFTERLIFE;
    loop {
        match tun::open_device(name, workers, TunOffloads::ALL) {
            Err(TunError::InUse { .. }) if after_kill && Instant::now() < deadline => sleep(LOOK_AGAIN).await,
            opened => return opened,
        }
    }
}

/// MTU, addresses, up, routes.
async fn set_up_link(config: &config::Gateway, device: &TunDevice) -> anyhow::Result<LinkWatch> {
    let failed = |action: String| {
        let interface = config.interface.to_string();
        move |source| SetupError::Link { action, interface, source }
    };
    let mut watch = LinkWatch::open(device.ifindex).context("opening a netlink socket")?;
    let link = watch.link().clone();
    link.set_mtu(config.mtu).await.map_err(failed(format!("set the MTU {}", config.mtu)))?;
    let length = config.queue_length;
    link.set_queue_length(length).await.map_err(failed(format!("set the queue length {length}")))?;
    for address in &config.addresses {
        link.add_address(*address).await.map_err(failed(format!("set the address {address}")))?;
    }
    link.set_up().await.map_err(failed("bring the link up".to_owned()))?;
    // From here on changes are reported.
    watch.state().await.map_err(failed("read the link's state".to_owned()))?;
    for prefix in config.peer.iter().flat_map(|peer| &peer.allowed_ips).filter(|prefix| prefix.len() == 0) {
        tracing::warn!(%prefix, "no route is made: it would lead the tunnel's own datagrams into the tunnel");
    }
    for prefix in routes(config) {
        match link.add_route(prefix).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(SetupError::RouteExists { prefix }.into());
            }
            result => result.map_err(failed(format!("route {prefix}")))?,
        }
    }
    Ok(watch)
}

/// The prefixes of peers and pools that need a route of their own: not what the interface's addresses cover. Nor a
/// default route, which would lead the tunnel's own datagrams into it (docs/decisions/0016-routes.md).
pub(super) fn routes(config: &config::Gateway) -> Vec<Prefix> {
    let own: Vec<Prefix> = config.addresses.iter().map(|address| address.network()).collect();
    let covered =
        |prefix: &Prefix| own.iter().any(|own| own.len() <= prefix.len() && own.contains(prefix.addr()));
    let peers = config.peer.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
    let all = peers.chain(config.pool.iter().flat_map(config::Pool::networks));
    all.filter(|prefix| prefix.len() > 0 && !covered(prefix)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_for_what_no_address_covers() {
        let text = "addresses = [\"100.64.0.1/10\", \"fd64::1/64\"]\n[[peer]]\n\
                    public_key = \"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\"\n\
                    allowed_ips = [\"100.64.0.2/32\", \"100.0.0.0/8\", \"10.1.0.0/16\", \"0.0.0.0/0\", \"::/0\", \
                    \"fd64::2/128\", \"fd65::/64\", \"fd64::/16\", \"100.64.0.0/10\"]\n[[pool]]\nname = \"p\"\n\
                    ipv4 = [\"10.2.0.1-10.2.0.2\"]\nipv6 = \"fd66::/64\"";
        let config = config::Gateway::parse(Path::new("x"), text).unwrap();
        let routes: Vec<_> = routes(&config).iter().map(ToString::to_string).collect();
        assert_eq!(
            routes,
            [
                "100.0.0.0/8",
                "10.1.0.0/16",
                "fd65::/64",
                "fd64::/16",
                "10.2.0.1/32",
                "10.2.0.2/32",
                "fd66::/64"
            ]
        );
    }
}
