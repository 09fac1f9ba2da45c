//! How a client finds its gateway again: when it asks for a handshake, at which address, and when it asks for the
//! gateway's name. A machine without clock, socket and names: what is seen is handed in, what is to be done comes back.
//!
//! 1. [`Contact::way_changed`]: another network, the same one after a pause, a host that slept: a handshake at once
//! 2. [`Contact::look`]: what was sent is not answered for [`SILENCE`]: the same, since a gateway that has restarted
//!    says nothing to packets of a session that it does not know
//! 3. no answer: the next address of the gateway, [`FIRST_WAIT`] later; round after round, more slowly, for ever. The
//!    first initiation goes to an address of the other family as well: the first way that works has it
//! 4. [`LOST`] without an answer: [`State::Lost`]; after the first round the name is asked for as well, and what it
//!    yields is tried at once, before what was good earlier
//! 5. an answer, to anything: [`State::Connected`], and the address that it came from is the first to be tried later

use std::net::SocketAddr;
use std::time::Duration;

use crate::types::Time;

/// Data that is not answered for so long calls for a handshake. One that was answered at once, as when the gateway has
/// nothing to say to what only goes up, makes the next wait twice as long, to [`LONGEST_SILENCE`].
pub const SILENCE: Duration = Duration::from_millis(1500);
/// What WireGuard has.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(15);
/// After so long without such a handshake it is [`SILENCE`] again.
const FORGIVEN: Duration = Duration::from_secs(60);
/// How long an address is waited for in the first round.
pub const FIRST_WAIT: Duration = Duration::from_millis(500);
/// From the third round on. An answer that takes longer counts once the waits are longer, after half a minute.
pub const LATER_WAIT: Duration = Duration::from_secs(2);
/// After so long it is asked as WireGuard does.
const TENACITY: Duration = Duration::from_secs(30);
/// WireGuard's Rekey-Timeout.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// Without an answer for so long the connection is lost.
pub const LOST: Duration = Duration::from_secs(5);
/// The name is asked for again after so long, then after twice as long, to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Addresses of a name that are tried; more are forgotten, the oldest first.
pub const MAX_ADDRESSES: usize = 16;
/// A calm client is looked at so often.
pub const CALM: Duration = Duration::from_secs(1);
/// One that waits for an answer.
const KEEN: Duration = Duration::from_millis(250);

/// Whether the gateway is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No answer yet.
    #[default]
    Connecting,
    /// It has answered, and nothing says that it would not.
    Connected,
    /// It does not answer. Whether it ever does again, it is asked for ever.
    Lost,
}

/// What is known of the session with a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Where the data plane sends.
    pub endpoint: Option<SocketAddr>,
    /// Authenticated bytes that have come.
    pub rx_bytes: u64,
    /// An answer is due: data was sent since anything came, or a handshake is under way.
    pub awaits_answer: bool,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Send to this address from now on.
    pub endpoint: Option<SocketAddr>,
    /// And the initiation to this one as well, of the other family.
    pub rival: Option<SocketAddr>,
    /// A keepalive and a handshake, now.
    pub renew: bool,
    /// Ask for the gateway's name.
    pub look_up: bool,
}

/// A handshake is asked for.
#[derive(Clone, Copy, Debug)]
struct Asking {
    since: Time,
    /// When the next one is due.
    due: Time,
    tries: u32,
    /// Nothing said that the way had changed.
    probe: bool,
}

/// One gateway.
#[derive(Debug)]
pub struct Contact {
    state: State,
    /// Where it last answered from, which need not be an address of its name: a gateway may roam as well.
    heard: Option<SocketAddr>,
    /// What its name has, or had.
    named: Vec<SocketAddr>,
    /// Which of [`Self::addresses`] was tried last.
    at: usize,
    asking: Option<Asking>,
    rx_bytes: u64,
    /// Since when an answer is due and nothing has come.
    silent: Option<Time>,
    patience: Duration,
    last_probe: Option<Time>,
    /// When the name may be asked for, and the pause after that.
    look_up: (Option<Time>, Duration),
}

impl Contact {
    /// A gateway that may be at any of these addresses, in this order, and that is to be asked now.
    #[must_use]
    pub fn new(mut addresses: Vec<SocketAddr>, now: Time) -> Self {
        addresses.truncate(MAX_ADDRESSES);
        let asking = Asking { since: now, due: now, tries: 0, probe: false };
        Self {
            state: State::Connecting,
            heard: None,
            named: addresses,
            at: 0,
            asking: Some(asking),
            rx_bytes: 0,
            silent: None,
            patience: SILENCE,
            last_probe: None,
            look_up: (None, FIRST_PAUSE),
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Where it may be, the most likely first.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let others = self.named.iter().copied().filter(|address| Some(*address) != self.heard);
        self.heard.into_iter().chain(others).collect()
    }

    /// The way may be another one, or the host was asleep: what has come before (`seen`) says nothing any more.
    pub fn way_changed(&mut self, seen: Seen, now: Time) {
        self.rx_bytes = seen.rx_bytes;
        self.patience = SILENCE;
        self.at = 0;
        self.ask(now, false);
    }

    /// The name has these addresses now. Those that are known stay, behind them; also the one that it last answered
    /// from, if it does not answer there any more.
    pub fn looked_up(&mut self, found: &[SocketAddr], now: Time) {
        let known = self.addresses();
        let Some(asking) = &mut self.asking else {
            self.named.retain(|address| !found.contains(address));
            self.named.splice(0..0, found.iter().copied());
            self.named.truncate(MAX_ADDRESSES);
            return;
        };
        if found.iter().any(|address| !known.contains(address)) {
            // From the first one on, at once.
            (asking.due, asking.tries, self.at) = (now, 0, 0);
        }
        let behind = known.into_iter().filter(|address| !found.contains(address));
        self.named = found.iter().copied().chain(behind).take(MAX_ADDRESSES).collect();
        self.heard = None;
    }

    /// What is to be done now. `reaches` says whether there is any way to an address.
    pub fn look(&mut self, seen: Seen, now: Time, reaches: impl Fn(SocketAddr) -> bool) -> Steps {
        if seen.rx_bytes != self.rx_bytes {
            self.rx_bytes = seen.rx_bytes;
            self.answered(seen.endpoint);
            return Steps::default();
        }
        if self.asking.is_none() {
            if !seen.awaits_answer {
                self.silent = None;
                return Steps::default();
            }
            let since = *self.silent.get_or_insert(now);
            if self.last_probe.is_some_and(|last| now.since(last) > FORGIVEN) {
                self.patience = SILENCE;
            }
            if now.since(since) < self.patience {
                return Steps::default();
            }
            self.last_probe = Some(now);
            self.ask(now, true);
        }
        self.go_on(now, reaches)
    }

    /// When to look again, at the latest.
    #[must_use]
    pub fn next_look(&self, now: Time) -> Duration {
        match self.asking {
            Some(asking) => asking.due.since(now).min(KEEN),
            None if self.silent.is_some() => KEEN,
            None => CALM,
        }
    }

    fn ask(&mut self, now: Time, probe: bool) {
        self.silent = None;
        let since = self.asking.map_or(now, |asking| asking.since);
        self.asking = Some(Asking { since, due: now, tries: 0, probe });
        self.look_up = (None, FIRST_PAUSE);
    }

    fn answered(&mut self, from: Option<SocketAddr>) {
        if let Some(asking) = self.asking.take() {
            let in_vain = asking.probe && asking.tries <= 1;
            self.patience = if in_vain { (self.patience * 2).min(LONGEST_SILENCE) } else { SILENCE };
        }
        (self.state, self.silent) = (State::Connected, None);
        (self.heard, self.at) = (from.or(self.heard), 0);
    }

    fn go_on(&mut self, now: Time, reaches: impl Fn(SocketAddr) -> bool) -> Steps {
        let mut steps = Steps::default();
        let addresses = self.addresses();
        let Some(asking) = &mut self.asking else { return steps };
        let asked_for = now.since(asking.since);
        if asked_for >= LOST {
            self.state = State::Lost;
        }
        if asking.due > now {
            return steps;
        }
        let count = addresses.len().max(1);
        // Those that this host has no way to are passed over; the first try is where it was.
        let first = asking.tries == 0;
        let from = if first { self.at } else { self.at + 1 };
        let in_turn = || {
            let places = (from..from + count).map(|at| at % count);
            places.filter_map(|at| Some((at, *addresses.get(at)?)))
        };
        let next = in_turn().find(|(_, address)| reaches(*address));
        let round = u32::try_from(count).map_or(0, |count| asking.tries / count);
        let wait = match round {
            _ if asked_for >= TENACITY => LAST_WAIT,
            0 => FIRST_WAIT,
            1 => 2 * FIRST_WAIT,
            _ => LATER_WAIT,
        };
        asking.due = now + wait;
        asking.tries = asking.tries.saturating_add(1);
        if let Some((at, to)) = next {
            self.at = at;
            steps.endpoint = Some(to);
            steps.renew = true;
            // At first only: a way that works in one direction alone would be the faster one each time.
            if first {
                let mut others = in_turn().map(|(_, other)| other);
                steps.rival = others.find(|other| other.is_ipv4() != to.is_ipv4() && reaches(*other));
            }
        }
        let (due, pause) = self.look_up;
        if (round >= 1 || next.is_none()) && due.is_none_or(|due| due <= now) {
            steps.look_up = true;
            self.look_up = (Some(now + pause), (pause * 2).min(LONGEST_PAUSE));
        }
        steps
    }
}

/// Notices that the host slept: CLOCK_BOOTTIME has gone on while CLOCK_MONOTONIC stood still, or nobody looked for
/// long, as when the process was stopped.
#[derive(Debug)]
pub struct Sleep {
    boot: Time,
    monotonic: Time,
}

impl Sleep {
    /// Both clocks differ by as much when nothing was slept; they are read one after the other.
    const TOLERANCE: Duration = Duration::from_millis(500);
    /// Nobody looks so seldom.
    const ABSENCE: Duration = Duration::from_secs(10);

    /// From now on.
    #[must_use]
    pub fn new(boot: Time, monotonic: Time) -> Self {
        Self { boot, monotonic }
    }

    /// Whether the host slept since the last look.
    pub fn look(&mut self, boot: Time, monotonic: Time) -> bool {
        let (passed, awake) = (boot.since(self.boot), monotonic.since(self.monotonic));
        (self.boot, self.monotonic) = (boot, monotonic);
        passed > awake + Self::TOLERANCE || passed > Self::ABSENCE
    }
}

#[cfg(test)]
mod tests;
