//! The file read again while the gateway runs: SIGHUP, or `ringway reload` over the UAPI socket.
//!
//! 1. the file, whole and checked, as at the start; a mistake ends it here
//! 2. the difference: what a running gateway can follow, by peer and by key, and what it cannot
//! 3. link, rules and routes, which may be refused; then sockets and peers through the same model as the UAPI's: all of
//!    it, or it is taken back
//! 4. what cannot be refused: routes and addresses that go, switches, the log's level
//!
//! A peer that is not named in the difference is not touched: it keeps its session and loses no packet.

use std::cell::RefCell;
use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc::Receiver;

use self::difference::{Difference, keep};
use self::link::Made;
use super::appliance::{SetupError, peer_change};
use super::exporter::Opened;
use super::serving::status;
use super::{Gateway, hosting, leasing, supervisor};
use crate::config::{self, ConfigError};
use crate::control::clients;
use crate::control::dataplane::DataPlane as _;
use crate::control::peers::{Peers, Site};
use crate::control::reload::{Answer, Ask, Asked, Change, PeerDifference};
use crate::control::uapi::{PeerChange, SetRequest};
use crate::control::{Control, errno::Errno};
use crate::dataplane::offload::switches::Switch;
use crate::net::link::Link;
use crate::types::PublicKey;

mod difference;
mod link;
mod page;

pub(super) use self::page::PagePlace;

/// How a gateway comes by its file once more, and what else of it whoever started it follows.
pub struct Source {
    /// The file, absolute.
    pub path: PathBuf,
    /// Reads it, with what the command line put in the place of its keys.
    pub read: Box<dyn Fn() -> Result<config::Gateway, ConfigError>>,
    /// What shall be logged changed.
    pub set_level: Box<dyn Fn(config::Level)>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.path).finish()
    }
}

/// Reads the file again and again, and knows what of it is in force.
pub(super) struct Reloader {
    pub(super) source: Source,
    pub(super) in_force: config::Gateway,
    pub(super) link: Link,
    pub(super) page: PagePlace,
    /// SIGHUP.
    pub(super) hangup: Signal,
    /// `ringway reload`.
    pub(super) asked: Receiver<Asked>,
}

/// A file that was understood, and what follows from it.
struct Plan {
    difference: Difference,
    /// What will be in force.
    wanted: config::Gateway,
    /// What the model is asked for.
    request: SetRequest,
}

/// Reloads when it is asked to; without a reloader never. Never returns.
pub(super) async fn serve(reloader: Option<Reloader>, control: &RefCell<Control<Gateway>>) -> Infallible {
    let Some(mut reloader) = reloader else { return std::future::pending().await };
    loop {
        tokio::select! {
            Some(()) = reloader.hangup.recv() => {
                reloader.reload(&Ask::default(), control).await;
            }
            Some(Asked { ask, answer }) = reloader.asked.recv() => {
                let told = reloader.reload(&ask, control).await;
                // Who asked may not wait any more.
                let _ = answer.send(told);
            }
            else => return std::future::pending().await,
        }
    }
}

impl Reloader {
    /// One time, with what the log and the service manager hear of it.
    async fn reload(&mut self, ask: &Ask, control: &RefCell<Control<Gateway>>) -> Answer {
        let file = self.source.path.display().to_string();
        let mut answer = Answer { file, ..Answer::default() };
        if let Some(other) = ask.file.as_ref().filter(|named| **named != answer.file) {
            answer.errors.push(format!("this gateway's file is {}, not {other}", answer.file));
            return answer;
        }
        if !ask.dry_run {
            supervisor::reloading();
        }
        // Nobody changes a peer of the store meanwhile.
        let changing = control.borrow().peers.as_ref().map(Peers::changing);
        let _alone = match &changing {
            Some(changing) => Some(changing.lock().await),
            None => None,
        };
        match self.plan(control) {
            Ok(plan) => self.carry_out(plan, ask.dry_run, &mut answer, control).await,
            Err(error) => {
                answer.bad_file = true;
                answer.errors.extend(format!("{error:#}").lines().map(str::to_owned));
            }
        }
        if !ask.dry_run {
            supervisor::ready(&status(&control.borrow().dataplane));
            for error in &answer.errors {
                tracing::error!("reload: {error}");
            }
            if !answer.applied {
                tracing::error!(file = answer.file, "not reloaded: everything stays as it was");
            }
        }
        answer
    }

    /// The file and its difference. Nothing is changed.
    fn plan(&self, control: &RefCell<Control<Gateway>>) -> anyhow::Result<Plan> {
        let read = (self.source.read)();
        let new = match self.in_force.user.as_str() {
            "" => read?,
            user => read.with_context(|| format!("reading as the user {user}"))?,
        };
        let control = control.borrow();
        if let Some(peers) = &control.peers {
            peers.check(&self.source.path, &new)?;
        }
        let mut changes = Vec::with_capacity(new.peer.len());
        for peer in &new.peer {
            if control.device.public_key() == Some(peer.public_key) {
                return Err(SetupError::OwnKey(peer.public_key.to_base64()).into());
            }
            changes.push(peer_change(peer)?);
        }
        let other_secret = |change: &PeerChange| {
            let known = control.device.peer(&change.public_key);
            known.is_none_or(|known| {
                !known.has_preshared_key(change.preshared_key.as_ref().and_then(Option::as_ref))
            })
        };
        let others: HashSet<_> =
            changes.iter().filter(|change| other_secret(change)).map(|change| change.public_key).collect();
        let difference = Difference::between(&self.in_force, &new, |peer| others.contains(&peer.public_key));
        let wanted = keep(&self.in_force, new);
        let mut request = SetRequest { peers: requests(&difference, changes), ..SetRequest::default() };
        if difference.has("listen_port") {
            request.listen_port = Some(wanted.listen_port);
        }
        if difference.has("fwmark") {
            request.fwmark = Some(wanted.fwmark);
        }
        Ok(Plan { difference, wanted, request })
    }

    async fn carry_out(
        &mut self,
        plan: Plan,
        dry_run: bool,
        answer: &mut Answer,
        control: &RefCell<Control<Gateway>>,
    ) {
        let Plan { difference, wanted, request } = plan;
        let nothing = difference.is_empty();
        let site = Site::new(&self.source.path, &wanted);
        if !dry_run && !nothing {
            match self.apply(&difference, wanted, request, control).await {
                Ok(left) => (answer.applied, answer.errors) = (true, left),
                Err(error) => answer.errors.push(format!("{error:#}")),
            }
        }
        if nothing && !dry_run {
            // What `ringway pool drain` has done ends here; these were in force before, and are not refused.
            let _ = put_pools(&self.in_force, control);
        }
        answer.applied |= nothing;
        if answer.applied && !dry_run {
            if let Some(peers) = &mut control.borrow_mut().peers {
                peers.site = site;
            }
            tell(&difference);
        }
        answer.peers = difference.peers.into_values().collect();
        (answer.settings, answer.restart) = (difference.settings, difference.restart);
    }

    /// Puts the difference in force. Returns what was refused of that which changes nothing else.
    ///
    /// # Errors
    /// What was refused; then all is as before.
    async fn apply(
        &mut self,
        difference: &Difference,
        wanted: config::Gateway,
        request: SetRequest,
        control: &RefCell<Control<Gateway>>,
    ) -> anyhow::Result<Vec<String>> {
        let mut made = Made::default();
        let page = match self.put(&wanted, request, &mut made, control).await {
            Ok(page) => page,
            Err(error) => {
                self.take_back(&wanted, made, control).await;
                return Err(error);
            }
        };
        leasing::configure(&mut control.borrow_mut(), &wanted);
        if self.in_force.metrics != wanted.metrics {
            self.page.put(page, control).await;
        }
        let mut left = link::remove(&self.link, &self.in_force, &wanted).await;
        left.extend(turn_switches(difference, &wanted, control));
        if difference.has("log.level") {
            (self.source.set_level)(wanted.log.level);
        }
        self.in_force = wanted;
        Ok(left)
    }

    /// What may be refused. Returns the listener of the metrics page.
    async fn put(
        &mut self,
        wanted: &config::Gateway,
        mut request: SetRequest,
        made: &mut Made,
        control: &RefCell<Control<Gateway>>,
    ) -> anyhow::Result<Option<Opened>> {
        let page = self.page.open(self.in_force.metrics, wanted.metrics).await?;
        self.put_around(&self.in_force, wanted, control).await?;
        link::make(&self.link, &self.in_force, wanted, made).await?;
        put_pools(wanted, control)?;
        let Control { device, dataplane, leases, .. } = &mut *control.borrow_mut();
        leasing::find_homes(&mut request, wanted, device, leases.as_mut());
        // While they have sessions; who is told and stays after all, since the rest is refused, hears of it soon.
        for peer in request.peers.iter().filter(|peer| peer.remove) {
            clients::dismiss(device, dataplane, &peer.public_key, "this client was removed");
        }
        device.apply(request, dataplane).map_err(refused)?;
        Ok(page)
    }

    /// The way back from what [`Self::put`] did of it.
    async fn take_back(&mut self, wanted: &config::Gateway, made: Made, control: &RefCell<Control<Gateway>>) {
        if let Err(error) = put_pools(&self.in_force, control) {
            tracing::warn!("reload: the pools of before cannot be had again: {error:#}");
        }
        if let Err(error) = self.put_around(wanted, &self.in_force, control).await {
            tracing::warn!("reload: what was begun cannot be taken back: {error:#}");
        }
        // Behind the MTU: without one of 1280 there is no IPv6.
        link::take_back(&self.link, &self.in_force, made).await;
        self.page.restore(self.in_force.metrics, control).await;
    }

    /// The device's sizes and the host's rules, from one file's to another's.
    async fn put_around(
        &self,
        from: &config::Gateway,
        to: &config::Gateway,
        control: &RefCell<Control<Gateway>>,
    ) -> anyhow::Result<()> {
        if from.mtu != to.mtu {
            self.link.set_mtu(to.mtu).await.with_context(|| format!("setting the MTU {}", to.mtu))?;
        }
        let length = to.queue_length;
        if from.queue_length != length {
            let set = self.link.set_queue_length(length).await;
            set.with_context(|| format!("setting the queue length {length}"))?;
        }
        hosting::change(to, &mut control.borrow_mut().dataplane)?;
        Ok(())
    }
}

/// Pools, and how long it is kept who had an address.
fn put_pools(to: &config::Gateway, control: &RefCell<Control<Gateway>>) -> anyhow::Result<()> {
    match &mut control.borrow_mut().leases {
        Some(leases) => Ok(leases.configure(&leasing::specs(to), to.store.history)?),
        None => Ok(()),
    }
}

/// What the model is asked for: each peer that differs as a whole, the others not at all.
fn requests(difference: &Difference, changes: Vec<PeerChange>) -> Vec<PeerChange> {
    let gone = |(key, peer): (&PublicKey, &PeerDifference)| {
        (peer.change == Change::Removed).then(|| PeerChange { remove: true, ..PeerChange::new(*key) })
    };
    let mut requests: Vec<_> = difference.peers.iter().filter_map(gone).collect();
    for mut change in changes {
        let Some(peer) = difference.peers.get(&change.public_key) else { continue };
        // An endpoint that the file does not change stays where the peer has roamed to.
        if peer.change == Change::Changed && !peer.keys.iter().any(|key| key == "endpoint") {
            change.endpoint = None;
        }
        change.replace_allowed_ips = true;
        requests.push(change);
    }
    requests
}

fn refused(errno: Errno) -> anyhow::Error {
    anyhow::anyhow!("the listen port, the mark or the peers cannot be set: {errno}")
}

/// Offloads and the MSS clamp. What the kernel lacks stays off, as at the start.
fn turn_switches(
    difference: &Difference,
    wanted: &config::Gateway,
    control: &RefCell<Control<Gateway>>,
) -> Vec<String> {
    let offload = &wanted.offload;
    let wishes = [
        ("offload.tun_read", Switch::TunRead, offload.tun_read),
        ("offload.tun_write", Switch::TunWrite, offload.tun_write),
        ("offload.udp_send", Switch::UdpSend, offload.udp_send),
        ("offload.udp_receive", Switch::UdpReceive, offload.udp_receive),
        ("forwarding.mss_clamp", Switch::MssClamp, wanted.forwarding.mss_clamp),
    ];
    let mut left = Vec::new();
    for (key, switch, on) in wishes.into_iter().filter(|(key, ..)| difference.has(key)) {
        match control.borrow_mut().dataplane.switch(switch, on) {
            Err(errno) if errno != Errno::UNSUPPORTED => left.push(format!("{key} = {on}: {errno}")),
            _ => {}
        }
    }
    left
}

/// The log hears what differs; who the peers are only at debug.
fn tell(difference: &Difference) {
    for setting in &difference.settings {
        let (from, to) = (&setting.from, &setting.to);
        tracing::info!(key = setting.key, from, to, "reload: changed");
    }
    for setting in &difference.restart {
        let (from, to) = (&setting.from, &setting.to);
        tracing::warn!(key = setting.key, from, to, "reload: needs a restart, and stays");
    }
    for peer in difference.peers.values() {
        let keys = peer.keys.join(" ");
        tracing::debug!(peer = peer.public_key, name = peer.name, change = ?peer.change, keys, "reload: peer");
    }
    let [added, changed, removed] =
        [Change::Added, Change::Changed, Change::Removed].map(|change| difference.count(change));
    tracing::info!(added, changed, removed, settings = difference.settings.len(), "reloaded");
}
