//! A client of one profile, on the gateway's own data plane.
//!
//! 1. the gateways' names, while the host's own routes are in force
//! 2. fork, unless in the foreground: the parent waits for the verdict
//! 3. lock: `/run/ringway/NAME/`; PreUp
//! 4. device, sockets and threads ([`super::Gateway::start`]); keys and peers; UAPI socket
//! 5. kill switch; addresses, routes, rules ([`crate::client::tunnel`]); resolver
//! 6. PostUp; privileges are given up, unless programs are to be run later: commands, nft or resolvconf. Where a PostUp
//!    would find no address yet, both come after the lease
//! 7. the first handshake, or why there is none; the lease; now the parent exits
//! 8. serve until a signal, or until [`down`] takes the socket away
//! 9. PreDown; resolver; routes and rules; kill switch; device; PostDown; lock

pub mod alone;
mod lease;
pub mod path;
mod reconnect;
mod silence;

pub use silence::NoAnswer;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use caps::Capability;

use self::lease::Lessee;
pub use self::lease::{LeaseState, state};
use super::exporter::Pages;
use super::failure::Failure;
use super::home::{self, HomeError, RunDir};
use super::serving::{Serving, block_on, protect};
use super::{Gateway, Settings, appliance};
use crate::client::config::{RouteInfo, VpnConfig};
use crate::client::error::VpnError;
use crate::client::tunnel::{self, MARK, Routing, Tunnel};
use crate::config::RUN;
use crate::config::profile::{self, Hooks, Profile, Table};
use crate::control::Control;
use crate::control::dataplane::DataPlane as _;
use crate::control::device::Device;
use crate::control::server::End;
use crate::control::socket::{DIRECTORY, LocalSocket, remove_stale, socket_path};
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::net::dns::{self, Dns};
use crate::net::guard::{self, Guard};
use crate::net::link::LinkWatch;
use crate::net::name::InterfaceName;
use crate::noise::timers::Limits;
use crate::sys::process::{self, Daemon};
use crate::types::{Mark, Prefix};
use reconnect::{Place, Reconnect};

/// In the run directory: the profile's path. Only a client has it.
const PROFILE: &str = "profile";
/// How long the first handshake may take: four attempts.
const PATIENCE: Duration = Duration::from_secs(18);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a client may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// What the control thread keeps: for netlink and kernel parameters.
const KEPT: &[Capability] = &[Capability::CAP_NET_ADMIN];

/// A client to run.
#[derive(Debug)]
pub struct Options {
    /// The device's name.
    pub name: InterfaceName,
    /// What the profile says.
    pub profile: Profile,
    /// Where it is.
    pub path: PathBuf,
    /// Whether nothing leaves this host but by the tunnel.
    pub kill_switch: KillSwitch,
    /// Workers, each with a queue of the device.
    pub workers: NonZeroU16,
    /// Go to the background once the gateway has answered.
    pub background: bool,
    /// Protocol constants.
    pub limits: Limits,
    /// No lease is believed to last longer.
    pub longest_lease: Duration,
    /// Tells the user how it goes: a line.
    pub say: fn(&str),
    /// What the caller wants done about once a second while the client runs; must not wait.
    pub each_second: fn(),
}

/// When the kill switch is raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KillSwitch {
    /// If a default route goes into the tunnel.
    #[default]
    Auto,
    /// Always; hosts in private networks stay within reach if `local` says so.
    On {
        /// Whether they do.
        local: bool,
    },
    /// Always, and also when the client has ended: until [`down`] is told to use force.
    Stays {
        /// As above.
        local: bool,
    },
    /// Never.
    Off,
}

/// Connects, and stays until it is ended.
///
/// # Errors
/// What keeps it from beginning; that the gateway does not answer, and what that looks like. Then nothing is left.
pub fn run(mut options: Options) -> anyhow::Result<()> {
    let config = vpn_config(&options.profile);
    // Without addresses of its own it is given some later.
    config.check_unaddressed().map_err(VpnError::from).with_context(|| options.path.display().to_string())?;
    let places = reconnect::resolve(&options.profile, &options.name)?;
    let request = request(&mut options.profile, &places)?;
    let daemon = match options.background {
        true => Some(process::daemonize().context("going to the background")?),
        false => None,
    };
    protect();
    block_on(serve(options, config, (request, places), daemon))
}

async fn serve(
    options: Options,
    config: VpnConfig,
    gateways: (SetRequest, Vec<Place>),
    daemon: Option<Daemon>,
) -> anyhow::Result<()> {
    let mut signalled = pin!(appliance::signalled().context("taking signals")?);
    let (hooks, name) = (&options.profile.hooks, &options.name);
    let ran = tokio::select! {
        biased;
        () = &mut signalled => return Ok(()),
        running = Running::start(&options, &config, gateways) => running,
    };
    let mut running = match ran {
        Ok(running) => running,
        Err(error) => return fail(daemon, error),
    };
    let answered = tokio::select! {
        biased;
        () = &mut signalled => Ok(()),
        answered = running.first_contact(&options) => answered,
    };
    if let Err(error) = answered {
        running.undo(hooks, name).await;
        return fail(daemon, error);
    }
    if let Some(daemon) = daemon {
        daemon.ready().context("telling the parent process")?;
    }
    running.until_end(signalled, hooks, name).await
}

/// Says it, once: nobody sees how a background process ends.
fn fail(daemon: Option<Daemon>, error: anyhow::Error) -> anyhow::Result<()> {
    let Some(daemon) = daemon else { return Err(error) };
    daemon.fail(Failure::of(&error).exit_code(), &format!("ringway: {error:#}"));
    Ok(())
}

/// What was changed on the host, in the order in which it is taken back.
struct Changed {
    dns: Option<Dns>,
    tunnel: Tunnel,
    guard: Option<Guard>,
}

/// A client that is set up. In the order in which it ends.
struct Running {
    serving: Serving,
    lease: Option<Lessee>,
    reconnect: Reconnect,
    /// Where the way to the gateway is to be found out.
    path: Option<path::Path>,
    changed: Changed,
    /// Keeps the device until its routes are gone.
    _device: std::os::fd::OwnedFd,
    _run_dir: RunDir,
}

impl Running {
    async fn start(
        options: &Options,
        config: &VpnConfig,
        (request, places): (SetRequest, Vec<Place>),
    ) -> anyhow::Result<Self> {
        let Options { name, profile, .. } = options;
        let run = Path::new(RUN);
        let run_dir = RunDir::take(&run.join(name.as_str())).map_err(|error| match error {
            HomeError::Running { .. } => anyhow::Error::from(VpnError::VpnExists(name.clone())),
            error => error.into(),
        })?;
        let after_kill = run_dir.predecessor().is_some();
        fs::write(run.join(name.as_str()).join(PROFILE), options.path.display().to_string())
            .context("writing down the profile")?;
        hook("PreUp", &profile.hooks.pre_up, name)?;
        let plan = config.check_unaddressed()?;
        let device = appliance::open_device(name.as_str(), options.workers.get(), after_kill).await?;
        let kept = device.queues.first().context("no queue")?.try_clone().context("the device")?;
        let index = device.ifindex;
        let mut watch = LinkWatch::open(index).context("opening a netlink socket")?;
        let mark = profile.mark.unwrap_or(MARK);
        let settings = Settings {
            listen_port: profile.listen_port,
            mark,
            limits: options.limits,
            hello: true,
            client: true,
            ..Settings::default()
        };
        let mut gateway = Gateway::start(device, settings)?;
        let guard_options = guard_options(options, config, mark);
        let told = gateway.take_asked();
        let lease =
            told.and_then(|told| Lessee::new(options, config, &request, guard_options.as_ref(), told));
        let finish = async {
            let mut model = Device::new(gateway.port());
            // Of keys and peers nothing is said before the way out is known; no routes lead here yet.
            model.apply(request, &mut gateway).context("the peers cannot be set")?;
            let socket = LocalSocket::bind(Path::new(DIRECTORY), name)
                .with_context(|| format!("binding {DIRECTORY}/{name}.sock"))?;
            let guard = guard_options.as_ref().map(Guard::raise).transpose()?;
            let way = (mark, routing(profile.table));
            match Tunnel::set_up(name, index, &plan, way, run).await {
                Ok(tunnel) => Ok((model, socket, Changed { dns: None, tunnel, guard })),
                Err(error) => {
                    lower(guard);
                    Err(error.into())
                }
            }
        };
        let (device, socket, changed) = match finish.await {
            Ok(done) => done,
            Err(error) => {
                gateway.stop();
                return Err(error);
            }
        };
        let control = Control::new(device, gateway);
        if let Ok(state) = watch.state().await {
            control.dataplane.set_mtu(state.mtu);
        }
        let (_, metrics) = Pages::new(None);
        let each_second = options.each_second;
        let ours = lease.as_ref().map(Lessee::servers).unwrap_or_default();
        *ours.borrow_mut() = config.dns_addresses.clone();
        let reconnect = Reconnect::new(places, index, mark, ours).await;
        let serving = Serving { control, socket, admin: None, watch, metrics, reload: None, each_second };
        let path = path::Path::open(name, index, profile, plan.mtu).await;
        let mut running = Self { serving, lease, reconnect, path, changed, _device: kept, _run_dir: run_dir };
        match running.settle(config, profile, name) {
            Ok(()) => Ok(running),
            Err(error) => {
                running.undo(&profile.hooks, name).await;
                Err(error)
            }
        }
    }

    /// The resolver, PostUp, and the end of privileges.
    fn settle(&mut self, config: &VpnConfig, profile: &Profile, name: &InterfaceName) -> anyhow::Result<()> {
        if let Some(settings) = resolver(name, config) {
            self.changed.dns = Some(Dns::apply(&dns::Host::here(), &settings)?);
        }
        if self.post_up_waits(profile) { Ok(()) } else { self.post_up(profile, name) }
    }

    /// Whether PostUp would find no address yet.
    fn post_up_waits(&self, profile: &Profile) -> bool {
        self.lease.is_some() && profile.addresses.is_empty() && !profile.hooks.post_up.is_empty()
    }

    /// PostUp, and the end of privileges.
    fn post_up(&mut self, profile: &Profile, name: &InterfaceName) -> anyhow::Result<()> {
        let hooks = &profile.hooks;
        hook("PostUp", &hooks.post_up, name)?;
        let Changed { dns, guard, .. } = &mut self.changed;
        let ends = dns.as_ref().is_none_or(Dns::ends_with_link) && !profile.accept.dns;
        if hooks.pre_down.is_empty() && hooks.post_down.is_empty() && guard.is_none() && ends {
            // Nothing can speak to the bus any more, and the device's end does it.
            *dns = None;
            return crate::sys::privileges::confine(None, KEPT).context("giving up privileges");
        }
        tracing::info!("commands, nft or resolvconf are to be run later: the control thread stays root");
        Ok(())
    }

    /// The first handshake, the lease, and what waited for them.
    async fn first_contact(&mut self, options: &Options) -> anyhow::Result<()> {
        self.first_handshake(options).await?;
        let profile = &options.profile;
        if self.post_up_waits(profile) { self.post_up(profile, &options.name) } else { Ok(()) }
    }

    /// Waits until some gateway has answered.
    async fn first_handshake(&mut self, options: &Options) -> anyhow::Result<()> {
        let begin = Instant::now();
        let Self { serving: Serving { control, .. }, reconnect, lease, changed, .. } = self;
        let asked: Vec<_> = options.profile.peers.iter().filter(|peer| !peer.endpoints.is_empty()).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let places: Vec<_> = asked.iter().flat_map(|peer| &peer.endpoints).map(String::as_str).collect();
        (options.say)(&format!("{}: asking {}", options.name, places.join(", ")));
        let snapshot = loop {
            reconnect.step(control);
            let Control { device, dataplane, .. } = &mut *control;
            let snapshot = dataplane.snapshot();
            if snapshot.iter().any(|peer| peer.last_handshake.is_some()) {
                break snapshot;
            }
            if begin.elapsed() >= PATIENCE {
                let peer = snapshot.into_iter().find(|peer| peer.endpoint.is_some());
                let peer = peer.context("no peer has an endpoint")?;
                let own = device.public_key().map(|key| key.to_base64()).unwrap_or_default();
                let written = fs::metadata(&options.path).and_then(|meta| meta.modified());
                let written = written.unwrap_or(SystemTime::UNIX_EPOCH);
                return Err(NoAnswer::new(silence::explain(&peer, dataplane.mark, &own, written)).into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        if let Some(lease) = lease {
            lease.settle(control, changed, PATIENCE).await?;
        }
        let from = snapshot.iter().find(|peer| peer.last_handshake.is_some()).and_then(|peer| peer.endpoint);
        let from = from.map_or_else(String::new, |from| format!(" to {from}"));
        (options.say)(&format!(
            "{}: connected{from} in {:.2} s",
            options.name,
            begin.elapsed().as_secs_f64()
        ));
        // Not before: each would begin a handshake of its own.
        let lively = asked.into_iter().filter(|peer| peer.keepalive != 0);
        let peers = lively.map(|peer| PeerChange {
            keepalive: Some(Some(peer.keepalive)),
            ..PeerChange::new(peer.public_key)
        });
        let request = SetRequest { peers: peers.collect(), ..SetRequest::default() };
        let Control { device, dataplane, .. } = control;
        device.apply(request, dataplane).context("the keepalive")
    }

    async fn until_end(
        self,
        signalled: impl Future<Output = ()>,
        hooks: &Hooks,
        name: &InterfaceName,
    ) -> anyhow::Result<()> {
        let Self { serving, mut lease, mut reconnect, path, mut changed, _device, _run_dir } = self;
        let beside = async |control: &RefCell<Control<Gateway>>| {
            let leasing = async {
                match &mut lease {
                    Some(lease) => lease.serve(control, &mut changed).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                never = leasing => never,
                never = reconnect.serve(control) => never,
                never = path::Path::follow(path) => never,
            }
        };
        let (end, mut control) = serving.serve(signalled, beside).await;
        if let Some(lease) = &mut lease {
            lease.leave(&mut control);
        }
        control.dataplane.stop();
        take_back(changed, hooks, name).await;
        match end? {
            End::DeviceGone => Err(appliance::SetupError::Gone.into()),
            End::Signal | End::SocketRemoved => Ok(()),
        }
    }

    async fn undo(self, hooks: &Hooks, name: &InterfaceName) {
        let Self { mut serving, lease, changed, _device, _run_dir, .. } = self;
        drop(serving.socket);
        if let Some(mut lease) = lease {
            lease.leave(&mut serving.control);
        }
        serving.control.dataplane.stop();
        take_back(changed, hooks, name).await;
    }
}

/// Commands and routes, while the device is still there. What fails is said, and the rest is done all the same.
async fn take_back(Changed { dns, tunnel, guard }: Changed, hooks: &Hooks, name: &InterfaceName) {
    let pre_down = hook("PreDown", &hooks.pre_down, name);
    let resolver = dns.map_or(Ok(()), Dns::undo).map_err(anyhow::Error::from);
    let undone = tunnel.undo().await.map_err(anyhow::Error::from);
    lower(guard);
    let post_down = hook("PostDown", &hooks.post_down, name);
    for error in [pre_down, resolver, undone, post_down].into_iter().filter_map(Result::err) {
        tracing::warn!("{error:#}");
    }
}

/// What the kill switch is raised with, before any route changes; `None` if there is to be none.
fn guard_options(options: &Options, config: &VpnConfig, mark: Mark) -> Option<guard::Options> {
    let everything = options.profile.table == Table::Auto && config.routes.iter().any(RouteInfo::is_default);
    let (local_network, stays) = match options.kill_switch {
        KillSwitch::Auto if everything => (false, false),
        KillSwitch::On { local } => (local, false),
        KillSwitch::Stays { local } => (local, true),
        KillSwitch::Auto | KillSwitch::Off => return None,
    };
    let addresses = config.addresses.iter().map(|address| address.address).collect();
    let tunnel = options.name.clone();
    Some(guard::Options { tunnel, mark, addresses, local_network, excluded: Vec::new(), stays })
}

fn lower(guard: Option<Guard>) {
    if let Some(Err(error)) = guard.map(Guard::lower) {
        tracing::error!(%error, "nothing leaves this host: `ringway down --force` takes the rules away");
    }
}

/// Runs the lines of a hook, one after the other, until one fails.
fn hook(what: &str, lines: &[String], name: &InterfaceName) -> anyhow::Result<()> {
    for line in lines {
        let line = line.replace("%i", name.as_str());
        tracing::info!(command = line, "{what}");
        let status =
            Command::new("sh").args(["-c", &line]).status().with_context(|| format!("{what}: sh"))?;
        if !status.success() {
            bail!("{what} failed ({status}): {line}");
        }
    }
    Ok(())
}

/// What the host's resolver is to be told, if anything.
fn resolver(name: &InterfaceName, config: &VpnConfig) -> Option<dns::Settings> {
    let VpnConfig { dns_addresses, search_domains, match_domains, .. } = config;
    (!dns_addresses.is_empty()).then(|| dns::Settings {
        link: name.clone(),
        servers: dns_addresses.clone(),
        search: search_domains.clone(),
        match_domains: match_domains.clone(),
    })
}

fn routing(table: Table) -> Routing {
    match table {
        Table::Auto => Routing::Rules,
        Table::Off => Routing::Off,
        Table::Number(number) => Routing::Table(number),
    }
}

/// The profile in the words of the library. If a family's default route goes into the tunnel and of the other family
/// nothing, that one is blocked, and its addresses and servers are left out: whoever wants everything in the tunnel
/// wants nothing beside it.
fn vpn_config(profile: &Profile) -> VpnConfig {
    let taken = || profile.peers.iter().flat_map(|peer| &peer.allowed_ips);
    let of = |v4| move |prefix: &&Prefix| prefix.addr().is_ipv4() == v4;
    let everything =
        |v4| profile.table == Table::Auto && taken().filter(of(v4)).any(|prefix| prefix.len() == 0);
    let is_accepted = |v4: bool| !everything(!v4) || taken().any(|prefix| of(v4)(&prefix));
    let (is_ipv4_accepted, is_ipv6_accepted) = (is_accepted(true), is_accepted(false));
    let accepted = |addr: &IpAddr| if addr.is_ipv4() { is_ipv4_accepted } else { is_ipv6_accepted };
    let addresses = profile.addresses.iter().filter(|address| accepted(&address.addr()));
    // Whoever wants everything in the tunnel wants every name asked there.
    let all_names =
        everything(true) || everything(false) || profile.match_domains.iter().any(|all| all == ".");
    VpnConfig {
        addresses: addresses.map(|address| (*address).into()).collect(),
        routes: taken().map(|prefix| RouteInfo::to(*prefix)).collect(),
        dns_addresses: profile.dns.iter().copied().filter(accepted).collect(),
        search_domains: profile.search.clone(),
        match_domains: if all_names { Vec::new() } else { profile.match_domains.clone() },
        mtu: profile.mtu,
        is_ipv4_accepted,
        is_ipv6_accepted,
        ..VpnConfig::default()
    }
}

/// All that the profile says of keys and peers; its secrets are taken out of it.
fn request(profile: &mut Profile, places: &[Place]) -> anyhow::Result<SetRequest> {
    let mut peers = Vec::new();
    for peer in &mut profile.peers {
        let place = places.iter().find(|place| place.key == peer.public_key);
        peers.push(PeerChange {
            preshared_key: Some(peer.preshared_key.take()),
            endpoint: place.and_then(Place::first),
            allowed_ips: peer.allowed_ips.iter().copied().map(AllowedIp::Add).collect(),
            ..PeerChange::new(peer.public_key)
        });
    }
    let key = profile.private_key.take().context("the profile has no key")?;
    let key = crate::crypto::x25519::PrivateKey::new(&key).to_secret();
    let fwmark = Some(profile.mark.unwrap_or(MARK));
    Ok(SetRequest { private_key: Some(Some(key)), fwmark, peers, ..SetRequest::default() })
}

/// Waits until nobody holds a directory any more; false if that takes too long.
fn ends(directory: &Path) -> io::Result<bool> {
    let begin = Instant::now();
    while home::holder(directory)?.is_some() {
        if begin.elapsed() > ENDING {
            return Ok(false);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(true)
}

/// The device's name and the file of a profile that is named so: one of [`profile::DIRECTORY`] by its name, or a file
/// `NAME.conf`.
///
/// # Errors
/// [`VpnError::Parameter`]: what would be the device's name is none.
pub fn place(word: &str) -> Result<(InterfaceName, PathBuf), VpnError> {
    let path = if word.contains('/') || word.ends_with(".conf") {
        std::path::absolute(word).unwrap_or_else(|_| word.into())
    } else {
        Path::new(profile::DIRECTORY).join(format!("{word}.conf"))
    };
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let parsed = stem.parse();
    let name = parsed.map_err(|source| VpnError::Parameter { name: stem.to_owned(), source })?;
    Ok((name, path))
}

/// The clients of this host, with their profiles, and the process that runs each; without one it was killed.
///
/// # Errors
/// A directory that cannot be read.
pub fn list() -> io::Result<Vec<(InterfaceName, String, Option<String>)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(RUN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let (Some(name), Ok(profile)) = (name, fs::read_to_string(path.join(PROFILE))) {
            found.push((name, profile, home::holder(&path)?));
        }
    }
    found.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    Ok(found)
}

/// What [`down`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A client, or what one left: it is gone.
    Down,
    /// The same, but for its kill switch, which was to stay.
    Guarded,
    /// Nothing.
    Nothing,
}

/// Ends a client and waits until it is gone. With `force` also takes back what a killed one left, and a kill switch
/// that was to stay.
///
/// # Errors
/// [`VpnError::NoSuchVpn`]; one that was killed, without `force`; one that does not end.
pub fn down(name: &InterfaceName, force: bool) -> anyhow::Result<Ended> {
    let directory = Path::new(RUN).join(name.as_str());
    let socket = socket_path(Path::new(DIRECTORY), name);
    let is_client = directory.join(PROFILE).exists();
    let holder = home::holder(&directory)?;
    if let Some(pid) = holder {
        if !is_client {
            bail!("{name} is a gateway's, run by process {pid}: stop that");
        }
        // Who hangs up has the server look for its file at once.
        let call = UnixStream::connect(&socket);
        fs::remove_file(&socket).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        drop(call);
        if !ends(&directory)? {
            bail!("process {pid} does not end: kill -9 {pid}, then `ringway down --force {name}`");
        }
        if !force {
            let stays = guard::raised(name) == Some(guard::Raised::Stays);
            return Ok(if stays { Ended::Guarded } else { Ended::Down });
        }
    } else if !force {
        if is_client {
            bail!("{name} was killed: `ringway down --force {name}` takes back what it left");
        }
        return Err(VpnError::NoSuchVpn(name.clone()).into());
    }
    alone::end(name)?;
    let left = directory.join(PROFILE).exists();
    let raised = guard::raised(name).is_some();
    let cleaned = block_on(async { Ok(tunnel::clean(name, Path::new(RUN)).await?) })?;
    dns::undo_leftovers(&dns::Host::here(), name)?;
    guard::lower_leftovers(name)?;
    remove_stale(&socket).with_context(|| socket.display().to_string())?;
    if left {
        fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
        home::remove_above(&directory);
    }
    Ok(if is_client || cleaned || raised { Ended::Down } else { Ended::Nothing })
}
