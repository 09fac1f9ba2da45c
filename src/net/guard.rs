//! The kill switch: rules of nftables by which nothing leaves a network namespace but by one tunnel.
//!
//! 1. [`Guard::raise`] before the routes change: two tables, one for packets and one for frames of links, loaded in
//!    one transaction; tables of that tunnel that a killed process left are replaced in it, so there is no gap
//! 2. [`Guard::change`] when the tunnel has other addresses
//! 3. a thread listens for changes of nftables: whatever touches our tables, such as `nft flush ruleset`, is undone
//! 4. [`Guard::lower`] at the end, or [`lower_leftovers`] for what a killed process left, and for what is to stay until
//!    then ([`Options::stays`])
//!
//! What may leave all the same, and what is not covered: `docs/decisions/0063-kill-switch.md`. The rules are the
//! kernel's: they hold when this process is gone. A guard that is dropped without [`Guard::lower`] stays raised.
//!
//! Raising and restoring runs the program nft; both need CAP_NET_ADMIN, to lower needs no program.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::net::name::InterfaceName;
use crate::net::nft::{self, NftError, Transactions};
use crate::sys::eventfd::EventFd;
use crate::types::{Mark, Prefix};

mod rules;
mod ruleset;
mod watch;

use rules::Rules;
use watch::Watch;

/// What the kill switch lets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The tunnel, which need not be there yet. One that [`crate::net::manners::can_name`] takes.
    pub tunnel: InterfaceName,
    /// The mark of the sockets that carry the tunnel, and of those that are protected; not 0.
    pub mark: Mark,
    /// The tunnel's own addresses: what comes to them by another link is dropped (CVE-2019-14899).
    pub addresses: Vec<IpAddr>,
    /// Whether hosts in 10/8, 169.254/16, 172.16/12, 192.168/16, fc00::/7 and fe80::/10 stay within reach, but for
    /// asking them for names.
    pub local_network: bool,
    /// Networks that stay within reach beside the tunnel, but for asking them for names.
    pub excluded: Vec<Prefix>,
    /// Whether the rules outlive [`Guard::lower`]: only [`lower_leftovers`] takes them away. What stays already stays,
    /// whatever this says.
    pub stays: bool,
}

/// Why there is no kill switch.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// nft would read the name as a pattern or not at all.
    #[error("the kill switch cannot name the interface {0}: choose a name without '\"', '*' and '\\'")]
    Name(InterfaceName),
    /// Without a mark the tunnel's own packets could not be told apart.
    #[error("the kill switch needs a mark other than 0")]
    NoMark,
    /// nftables cannot be used or refused.
    #[error("the kill switch: {0}")]
    Nft(#[from] NftError),
    /// The watch over the rules cannot be started.
    #[error("the kill switch: watching the rules: {0}")]
    Watch(io::Error),
}

/// The kill switch, raised.
pub struct Guard {
    rules: Arc<Mutex<Rules>>,
    stop: EventFd,
    watch: Option<JoinHandle<()>>,
}

impl Guard {
    /// Raises the kill switch in the calling thread's network namespace. On an error nothing is changed.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn raise(options: &Options) -> Result<Self, GuardError> {
        Self::raise_unless(options, || false)
    }

    /// The same, and leaves the rules alone while `others` says that somebody else keeps them: what these make of them
    /// is not foreign. Once they are gone the rules are put back as they are to be here.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn raise_unless(
        options: &Options,
        others: impl Fn() -> bool + Send + 'static,
    ) -> Result<Self, GuardError> {
        check(options)?;
        let stop = EventFd::new().map_err(GuardError::Watch)?;
        let stays = options.stays || raised(&options.tunnel) == Some(Raised::Stays);
        let options = &Options { stays, ..options.clone() };
        // Opened first: it is to see our own rules come, and whatever comes after them.
        let watch = Watch::open(stop.clone()).map_err(GuardError::Watch)?;
        let rules = Arc::new(Mutex::new(Rules::load(options)?));
        let mut guard = Self { rules: Arc::clone(&rules), stop, watch: None };
        match std::thread::Builder::new()
            .name("ringway-guard".to_owned())
            .spawn(move || watch.run(&rules, &others))
        {
            Ok(thread) => guard.watch = Some(thread),
            Err(error) => {
                lock(&guard.rules).delete()?;
                return Err(GuardError::Watch(error));
            }
        }
        Ok(guard)
    }

    /// Has other options in force, without a gap. On an error the rules stay as they are.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn change(&self, options: &Options) -> Result<(), GuardError> {
        check(options)?;
        let mut rules = lock(&self.rules);
        let stays = options.stays || rules.stay();
        Ok(rules.change(&Options { stays, ..options.clone() })?)
    }

    /// How often the rules were put back because somebody else had touched them.
    #[must_use]
    pub fn restored(&self) -> u64 {
        lock(&self.rules).restored()
    }

    /// Whether frames are held back as well that raw sockets, macvlan links and bridges hand to a link past the rules
    /// for packets: it takes a kernel with `CONFIG_NETFILTER_EGRESS`.
    #[must_use]
    pub fn covers_links(&self) -> bool {
        lock(&self.rules).covers_links()
    }

    /// Takes the rules away, unless they are to stay.
    ///
    /// # Errors
    /// [`GuardError::Nft`]: then nothing leaves until [`lower_leftovers`] has been more successful.
    pub fn lower(mut self) -> Result<(), GuardError> {
        self.end_watch();
        let rules = lock(&self.rules);
        if rules.stay() { Ok(()) } else { Ok(rules.delete()?) }
    }

    fn end_watch(&mut self) {
        self.stop.notify();
        if let Some(thread) = self.watch.take()
            && thread.join().is_err()
        {
            tracing::error!("the watch over the kill switch ended by a panic");
        }
    }
}

impl Drop for Guard {
    /// Nobody watches the rules from here on; they stay.
    fn drop(&mut self) {
        self.end_watch();
    }
}

/// Takes away the kill switch of a tunnel, whoever raised it. None is as good.
///
/// # Errors
/// [`GuardError::Nft`].
pub fn lower_leftovers(tunnel: &InterfaceName) -> Result<(), GuardError> {
    Ok(rules::delete(&Transactions::open()?, tunnel)?)
}

/// A kill switch that is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// Until its client ends.
    WhileUp,
    /// Until [`lower_leftovers`].
    Stays,
}

/// Whether the kill switch of a tunnel is raised, whoever did it, and for how long.
#[must_use]
pub fn raised(tunnel: &InterfaceName) -> Option<Raised> {
    let rules = nft::run(&["list", "table", "inet", &ruleset::table_name(tunnel.as_str())], "").ok()?;
    let stays = String::from_utf8_lossy(&rules).contains(&format!("chain {} {{", ruleset::STAYS));
    Some(if stays { Raised::Stays } else { Raised::WhileUp })
}

fn check(options: &Options) -> Result<(), GuardError> {
    if !crate::net::manners::can_name(&options.tunnel) {
        return Err(GuardError::Name(options.tunnel.clone()));
    }
    if options.mark == Mark(0) { Err(GuardError::NoMark) } else { Ok(()) }
}

fn lock(rules: &Mutex<Rules>) -> MutexGuard<'_, Rules> {
    rules.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
