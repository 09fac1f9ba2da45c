//! The client's lease: asked for in the tunnel, put in force on the host, and told to whoever asks for the status.
//!
//! 1. [`Lessee::turn`] when the gateway has said HELLO, and when something is due: sends what
//!    [`crate::client::leasing`] has to say, and gives the gateway the networks that are taken from it
//! 2. [`Lessee::apply`]: kill switch, addresses, MTU, routes, resolver
//! 3. the state in `/run/ringway/NAME/lease`, for `ringway status`
//! 4. [`Lessee::leave`]: the gateway is told that we go

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;

use super::{Changed, Options};
use crate::client::config::VpnConfig;
use crate::client::leasing::{Leasing, Outcome, words};
use crate::client::pushed::{Taken, Terms};
use crate::config::RUN;
use crate::config::profile::{Peer, Profile};
use crate::control::Control;
use crate::control::dataplane::DataPlane as _;
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::dataplane::handoff::{SessionChange, ToControl};
use crate::gateway::Gateway;
use crate::net::dns::{self, Dns};
use crate::net::guard;
use crate::net::name::InterfaceName;
use crate::sys::clock;
use crate::types::{PeerId, Prefix, PublicKey, Suite};
use crate::wire::frame::lease::{AddrReply, AddrRequest, Families};
use crate::wire::frame::{self, Frame, Operation};

/// In the run directory: what became of the lease.
const FILE: &str = "lease";
/// Between two looks at the clock: after the host has slept, timers are late by that time.
const LOOK: Duration = Duration::from_secs(1);
/// How long `up` waits for what a profile with addresses of its own accepts beside them.
const BRIEF: Duration = Duration::from_secs(2);

/// What there is to know of a client's lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseState {
    /// Addresses that the gateway has given, or confirmed.
    pub addresses: Vec<IpAddr>,
    /// Until when, seconds since 1970; `None` without addresses.
    pub until: Option<u64>,
    /// What is wrong, a clause for people.
    pub problem: Option<String>,
}

/// What a running client last wrote down; `None` if it never spoke with a gateway of ours.
#[must_use]
pub fn state(name: &InterfaceName) -> Option<LeaseState> {
    let text = fs::read(Path::new(RUN).join(name.as_str()).join(FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The client's side of its lease at one peer, the first of the profile that has an endpoint.
pub(super) struct Lessee {
    key: PublicKey,
    /// What the data plane knows it by.
    peer: Option<PeerId>,
    name: InterfaceName,
    told: Receiver<ToControl>,
    leasing: Leasing,
    terms: Terms,
    /// What the kill switch is raised with.
    guard: Option<guard::Options>,
    /// The DNS servers behind the tunnel, for whoever must not ask them.
    servers: Rc<RefCell<Vec<IpAddr>>>,
    /// What the resolver was told.
    resolver: Option<dns::Settings>,
    /// Networks that the gateway has beside those of the profile.
    networks: Vec<Prefix>,
    /// Refusals that were said already.
    said: Vec<String>,
    /// The session is another one: what the gateway knows of us may be gone.
    fresh: bool,
    /// The gateway has answered, one way or the other.
    answered: bool,
    /// The host is not as it should be: what is to be in force.
    due: bool,
    /// It could not be made so.
    failed: bool,
    problem: Option<String>,
    written: LeaseState,
    file: PathBuf,
}

impl Lessee {
    /// For a profile in force; `config` is what it says by itself. `None` if it names no gateway.
    pub(super) fn new(
        options: &Options,
        config: &VpnConfig,
        request: &SetRequest,
        guard: Option<&guard::Options>,
        told: Receiver<ToControl>,
    ) -> Option<Self> {
        let Profile { peers, accept, addresses, .. } = &options.profile;
        let gateway = peers.iter().find(|peer| !peer.endpoints.is_empty())?;
        let of = |peer: &Peer| peer.allowed_ips.clone();
        let others = peers.iter().filter(|peer| peer.public_key != gateway.public_key).flat_map(of);
        let v4 =
            addresses.iter().find_map(|own| if let IpAddr::V4(v4) = own.addr() { Some(v4) } else { None });
        let v6 =
            addresses.iter().find_map(|own| if let IpAddr::V6(v6) = own.addr() { Some(v6) } else { None });
        let families = Families { ipv4: config.is_ipv4_accepted, ipv6: config.is_ipv6_accepted };
        let wish = AddrRequest { ipv4: v4, ipv6: v6, families, ..AddrRequest::default() };
        let seed = u64::from_le_bytes(*gateway.public_key.0.first_chunk()?) ^ clock::boottime().as_nanos();
        let leasing = Leasing::new(wish, seed).at_most(options.longest_lease);
        Some(Self {
            key: gateway.public_key,
            peer: None,
            name: options.name.clone(),
            told,
            leasing,
            terms: Terms {
                own: config.clone(),
                accept: *accept,
                guarded: guard.is_some(),
                gateways: request.peers.iter().filter_map(|peer| Some(peer.endpoint?.ip())).collect(),
                asked: of(gateway),
                others: others.collect(),
            },
            guard: guard.cloned(),
            servers: Rc::default(),
            resolver: super::resolver(&options.name, config),
            networks: Vec::new(),
            said: Vec::new(),
            fresh: false,
            answered: false,
            due: false,
            failed: false,
            problem: None,
            written: LeaseState::default(),
            file: Path::new(RUN).join(options.name.as_str()).join(FILE),
        })
    }

    /// Whether there are no addresses but those that the gateway gives.
    pub(super) fn is_needed(&self) -> bool {
        self.terms.own.addresses.is_empty()
    }

    /// Does what is due until `up` may say that the client is connected: until it has its addresses, if it needs them,
    /// or for a moment, if it takes something else.
    ///
    /// # Errors
    /// Why there are no addresses.
    pub(super) async fn settle(
        &mut self,
        control: &mut Control<Gateway>,
        changed: &mut Changed,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let patience = match (self.is_needed(), self.terms.accept.anything()) {
            (true, _) => patience,
            (false, true) => BRIEF,
            (false, false) => return Ok(()),
        };
        let begin = clock::boottime();
        loop {
            if let Some(taken) = self.turn(control) {
                self.apply(changed, &taken).await;
            }
            let has = self.leasing.offer().is_some();
            if let Some(problem) = self.problem.as_ref().filter(|_| self.is_needed()) {
                anyhow::bail!("{problem}");
            }
            if has || self.answered && !self.is_needed() {
                return Ok(());
            }
            let left = patience.saturating_sub(clock::boottime().since(begin));
            if left.is_zero() && !self.is_needed() {
                return Ok(());
            }
            anyhow::ensure!(
                !left.is_zero(),
                "the gateway gives no address: it is no Ringway, or one without a pool for this client; write the \
                 Address that it expects into the profile"
            );
            let _ = tokio::time::timeout(left, self.wait()).await;
        }
    }

    /// Keeps the lease. Never returns.
    pub(super) async fn serve(
        &mut self,
        control: &RefCell<Control<Gateway>>,
        changed: &mut Changed,
    ) -> Infallible {
        loop {
            let taken = self.turn(&mut control.borrow_mut());
            if let Some(taken) = taken {
                self.apply(changed, &taken).await;
            }
            self.wait().await;
        }
    }

    /// Tells the gateway that we go: the lease ends at once.
    pub(super) fn leave(&mut self, control: &mut Control<Gateway>) {
        let frame = self.leasing.leave();
        if let Some(peer) = control.device.peer(&self.key) {
            control.dataplane.dismiss(peer.worker(), peer.id(), &frame);
        }
    }

    /// Until something is due, or was said.
    async fn wait(&mut self) {
        let now = clock::boottime();
        let due = self.leasing.deadline().map_or(LOOK, |due| due.since(now).min(LOOK));
        tokio::select! {
            Some(told) = self.told.recv() => self.hear(&told),
            () = tokio::time::sleep(due) => {}
        }
    }

    /// Does what is due. What is returned is to be in force on the host.
    fn turn(&mut self, control: &mut Control<Gateway>) -> Option<Taken> {
        let now = clock::boottime();
        if let Some(outcome) = self.leasing.handle_timeout(now) {
            self.note(outcome, "");
        }
        let peer = control.device.peer(&self.key)?;
        let (id, worker) = (peer.id(), peer.worker());
        self.peer = Some(id);
        // Before there was a HELLO nothing is due.
        if let Some(frame) = self.leasing.next_frame(now) {
            control.dataplane.send_frame(worker, id, Suite::ChaCha20Poly1305, &frame);
        }
        if !std::mem::take(&mut self.due) {
            return None;
        }
        let taken = self.terms.take(self.leasing.offer());
        self.say(&taken);
        let known = &self.networks;
        let new = taken.networks.iter().filter(|prefix| !known.contains(prefix)).copied().map(AllowedIp::Add);
        let gone = known.iter().filter(|prefix| !taken.networks.contains(prefix)).copied();
        let allowed_ips = new.chain(gone.map(AllowedIp::Remove)).collect();
        let peers = vec![PeerChange { allowed_ips, ..PeerChange::new(self.key) }];
        let request = SetRequest { peers, ..SetRequest::default() };
        match control.device.apply(request, &mut control.dataplane) {
            Ok(()) => self.networks.clone_from(&taken.networks),
            Err(error) => tracing::warn!(%error, "networks of the gateway are not taken"),
        }
        Some(taken)
    }

    fn hear(&mut self, told: &ToControl) {
        let now = clock::boottime();
        match told {
            ToControl::Session(peer, SessionChange::Connected(_)) if Some(*peer) == self.peer => {
                self.fresh = true;
            }
            ToControl::Said(peer, text) if Some(*peer) == self.peer => {
                let Ok(frame) = Frame::parse(text) else { return };
                if frame.operation == Operation::Hello {
                    if self.fresh || self.problem.is_some() || self.leasing.offer().is_none() {
                        self.fresh = false;
                        self.leasing.start(now);
                    }
                } else if let Some(outcome) = self.leasing.handle(&frame, now) {
                    self.note(outcome, &frame::told(frame.body));
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, outcome: Outcome, told: &str) {
        let problem = match outcome {
            Outcome::Given(offer) => {
                (self.answered, self.due) = (true, true);
                tracing::info!(seconds = offer.0.seconds, "the gateway has told us our addresses");
                tracing::debug!(reply = ?offer.0, "which they are");
                self.doubt(&offer.0)
            }
            // As good as before.
            Outcome::Renewed => {
                self.answered = true;
                self.due |= self.failed;
                self.leasing.offer().and_then(|offer| self.doubt(&offer.0))
            }
            Outcome::Refused(problem) => {
                self.answered = true;
                // Who has addresses of its own, and wants nothing else, misses nothing.
                let matters = self.is_needed() || self.terms.accept.anything();
                matters.then(|| words(&problem, told)).or_else(|| self.problem.take())
            }
            Outcome::Expired => {
                self.due = true;
                Some(
                    "the time of this client's addresses is over, and the gateway has given no more"
                        .to_owned(),
                )
            }
            Outcome::GatewayStops => Some("the gateway stops, and says so".to_owned()),
            Outcome::Dismissed => Some(format!("the gateway says: {told}")),
            Outcome::PacketsLost(packets) => {
                tracing::debug!(packets, "the gateway has dropped packets on their way to us");
                return;
            }
        };
        if let Some(problem) = problem.as_ref().filter(|problem| self.problem.as_ref() != Some(problem)) {
            tracing::warn!("{problem}");
        }
        self.problem = problem;
        self.write();
    }

    /// The DNS servers behind the tunnel, also when a lease changes them.
    pub(super) fn servers(&self) -> Rc<RefCell<Vec<IpAddr>>> {
        Rc::clone(&self.servers)
    }

    /// What is doubtful about addresses that the gateway gives to one who has others.
    fn doubt(&self, reply: &AddrReply) -> Option<String> {
        if self.is_needed() {
            let taken = self.terms.take(self.leasing.offer());
            let none = "the gateway offers no address that this client may have";
            return taken.config.addresses.is_empty().then(|| none.to_owned());
        }
        let own = |addr: IpAddr| self.terms.own.addresses.iter().any(|own| own.address == addr);
        let given = [reply.ipv4.map(|(addr, _)| addr.into()), reply.ipv6.map(|(addr, _)| addr.into())];
        let strange = !given.into_iter().flatten().any(own);
        strange.then(|| {
            "the gateway gives this client other addresses than its profile says: it lets nothing else pass; \
             take Address out of the profile"
                .to_owned()
        })
    }

    /// Says what is not taken, once.
    fn say(&mut self, taken: &Taken) {
        for refused in taken.refused.iter().filter(|refused| !self.said.contains(refused)) {
            tracing::warn!("what the gateway offers is not taken: {refused}");
        }
        self.said.clone_from(&taken.refused);
    }

    /// Has it in force on the host. What fails is said, and tried again at the next renewal.
    async fn apply(&mut self, changed: &mut Changed, taken: &Taken) {
        let done = self.put_in_force(changed, taken).await;
        self.failed = done.is_err();
        if let Err(error) = done {
            tracing::warn!("what the gateway offers is not in force: {error:#}");
            self.problem = Some(format!("what the gateway offers is not in force: {error:#}"));
        }
        self.write();
    }

    async fn put_in_force(&mut self, changed: &mut Changed, taken: &Taken) -> anyhow::Result<()> {
        let config = &taken.config;
        let plan = config.check_unaddressed()?;
        if let (Some(guard), Some(options)) = (&changed.guard, &mut self.guard) {
            options.addresses = config.addresses.iter().map(|own| own.address).collect();
            options.excluded.clone_from(&taken.excluded);
            guard.change(options)?;
        }
        changed.tunnel.change(&plan, Path::new(RUN)).await?;
        self.servers.borrow_mut().clone_from(&config.dns_addresses);
        let wanted = super::resolver(&self.name, config);
        if self.resolver != wanted {
            match &wanted {
                Some(settings) => changed.dns = Some(Dns::apply(&dns::Host::here(), settings)?),
                None => changed.dns.take().map_or(Ok(()), Dns::undo)?,
            }
            self.resolver = wanted;
        }
        Ok(())
    }

    /// Writes down what there is to know, if it is another thing than before.
    fn write(&mut self) {
        let offer = self.leasing.offer().map(|(reply, _)| reply);
        let v4 = offer.and_then(|reply| reply.ipv4).map(|(addr, _)| IpAddr::V4(addr));
        let v6 = offer.and_then(|reply| reply.ipv6).map(|(addr, _)| IpAddr::V6(addr));
        let wall = clock::realtime();
        let until = self.leasing.until().map(|until| (wall + until.since(clock::boottime())).as_secs());
        let addresses = v4.into_iter().chain(v6).collect();
        let state = LeaseState { addresses, until, problem: self.problem.clone() };
        if state == self.written {
            return;
        }
        if let Err(error) = write(&self.file, &state) {
            tracing::warn!("{error:#}");
        }
        self.written = state;
    }
}

/// As a whole or not at all, for whoever reads it meanwhile.
fn write(file: &Path, state: &LeaseState) -> anyhow::Result<()> {
    let text = serde_json::to_vec(state)?;
    let draft = file.with_extension("new");
    let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, file));
    written.with_context(|| file.display().to_string())
}
