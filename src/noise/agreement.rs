//! In which suite the data of a session is sealed (docs/protocol.md, "Cipher suites"), one keypair at a time. No clock,
//! no socket: it is told what came and what time it is, and says what is to be sent.
//!
//! 1. A side says HELLO with the suites that it opens. From then on it opens them in this keypair.
//! 2. Who has heard that the other opens AES-256-GCM, and has said the same, sends a PING sealed with it.
//! 3. The PONG to that, sealed with it as well, proves that such messages pass both ways: now data follows.
//! 4. Three PINGs without such a PONG: this keypair stays with ChaCha20-Poly1305. Some middleboxes drop what has
//!    non-zero reserved bytes, some of them one way only.
//!
//! Everything that is lost leaves both sides with what they have: ChaCha20-Poly1305 is always opened.

use std::time::Duration;

use crate::mutation::holds;
use crate::types::{Suite, Time};
use crate::wire::frame::{self, Bytes, Frame, Hello};

use super::timers::Limits;

/// HELLOs that ask for an answer, and PINGs, per keypair: one, and again after these times without an answer.
pub const PATIENCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Between two HELLOs that are answered, at least.
const ANSWER_EVERY: Duration = Duration::from_secs(1);

/// What this side wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Say HELLO in every new session; else only answer it.
    pub hello: bool,
    /// Use AES-256-GCM with who opens it.
    pub aes: bool,
}

/// What has become of sending in AES-256-GCM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sending {
    /// Not tried.
    #[default]
    Plain,
    /// So many PINGs were sent in it.
    Probing(u8),
    /// Data is sealed with it.
    Agreed,
    /// No PING came back, or the key is used up.
    Over,
}

/// What has changed, for whoever counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Data is sealed with AES-256-GCM from now on.
    pub agreed: bool,
    /// Three PINGs had no answer.
    pub refused: bool,
}

/// The state of one keypair.
#[derive(Debug, Default)]
pub struct Agreement {
    /// A HELLO said that we open AES-256-GCM.
    declared: bool,
    /// The peer has said HELLO.
    heard: bool,
    /// One of its HELLOs said that it opens AES-256-GCM.
    opened_there: bool,
    sending: Sending,
    /// HELLOs sent that ask for an answer.
    asked: u8,
    /// When a HELLO was last answered.
    answered: Option<Time>,
    wants_to_ask: bool,
    wants_to_answer: bool,
    wants_to_ping: bool,
    /// When what was asked last is asked again.
    due: Option<Time>,
    /// Blocks of 16 bytes sealed with AES-256-GCM, tags included.
    blocks: u64,
}

impl Agreement {
    /// The keypair sends from now on. True if there is something to say.
    pub fn begin(&mut self, policy: Policy) -> bool {
        self.wants_to_ask = policy.hello && !self.heard;
        self.has_something_to_say()
    }

    /// True if [`Self::next`] has a frame.
    #[must_use]
    pub fn has_something_to_say(&self) -> bool {
        self.wants_to_ask || self.wants_to_answer || self.wants_to_ping
    }

    /// When [`Self::handle_timeout`] is due.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.due
    }

    /// True if messages in `suite` are opened: WireGuard's own, and what a HELLO of ours in this keypair has named.
    #[inline]
    #[must_use]
    pub fn opens(&self, suite: Suite) -> bool {
        suite == Suite::ChaCha20Poly1305 || holds("suite-declared", self.declared)
    }

    /// True if messages may be reserved for `suite`: WireGuard's own, and what both sides have declared in this
    /// keypair, as long as its key is not nearly used up.
    #[inline]
    #[must_use]
    pub fn may_seal(&self, suite: Suite, limits: &Limits) -> bool {
        suite == Suite::ChaCha20Poly1305 || (self.both_open() && self.blocks < limits.aes_stop_after_blocks)
    }

    /// Counts blocks that are to be sealed with AES-256-GCM. False, and nothing is counted, if that may not be.
    #[inline]
    #[must_use]
    pub fn take(&mut self, blocks: u64, limits: &Limits) -> bool {
        let sum = self.blocks.saturating_add(blocks);
        let may = self.both_open() && holds("aes-limit", sum <= limits.aes_reject_after_blocks);
        self.blocks = if may { sum } else { self.blocks };
        may
    }

    #[inline]
    fn both_open(&self) -> bool {
        holds("suite-opened-there", self.opened_there) && self.declared
    }

    /// What data is sealed with.
    #[inline]
    #[must_use]
    pub fn suite(&self, limits: &Limits) -> Suite {
        let agreed = self.sending == Sending::Agreed && self.may_seal(Suite::Aes256Gcm, limits);
        if agreed { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
    }

    /// True if the key of AES-256-GCM has sealed so much that a new handshake is called for.
    #[inline]
    #[must_use]
    pub fn is_stale(&self, limits: &Limits) -> bool {
        holds("aes-rekey", self.blocks >= limits.aes_rekey_after_blocks)
    }

    /// The peer said HELLO in this keypair, and asks for an answer or not. True if there is something to say.
    pub fn hello(&mut self, policy: Policy, hello: Hello, asks: bool, now: Time) -> bool {
        self.heard = true;
        self.wants_to_ask = false;
        if self.sending == Sending::Plain {
            // No HELLO is repeated any more, and no PING was sent.
            self.due = None;
        }
        self.opened_there |= hello.aes && policy.aes;
        let soon = self.answered.is_some_and(|last| now.since(last) < ANSWER_EVERY);
        self.wants_to_answer |= asks && !holds("hello-rate", soon);
        self.try_to_ping();
        self.has_something_to_say()
    }

    /// A PONG came in this keypair, sealed with `suite`. True if data is sealed with AES-256-GCM from now on.
    pub fn pong(&mut self, suite: Suite, frame: &Frame<'_>) -> bool {
        let Sending::Probing(sent) = self.sending else { return false };
        let ours = (1..=u32::from(sent)).contains(&frame.stream_id);
        if !ours || !holds("pong-suite", suite == Suite::Aes256Gcm) {
            return false;
        }
        self.sending = Sending::Agreed;
        self.wants_to_ping = false;
        self.due = None;
        true
    }

    /// Does what is due. Yields whether there is something to say, and what has changed.
    pub fn handle_timeout(&mut self, now: Time) -> (bool, Changes) {
        let mut changes = Changes::default();
        if self.due.take_if(|at| *at <= now).is_some() {
            match self.sending {
                Sending::Plain => self.wants_to_ask = !self.heard && usize::from(self.asked) < PATIENCE.len(),
                Sending::Probing(sent) if usize::from(sent) < PATIENCE.len() => self.wants_to_ping = true,
                Sending::Probing(_) => {
                    self.sending = Sending::Over;
                    changes.refused = true;
                }
                Sending::Agreed | Sending::Over => {}
            }
        }
        (self.has_something_to_say(), changes)
    }

    /// The next frame to send, and the suite to seal it with. `jitter` spreads what is repeated.
    pub fn next(&mut self, policy: Policy, now: Time, jitter: Duration) -> Option<(Suite, Bytes)> {
        let hello = Hello { aes: policy.aes };
        if std::mem::take(&mut self.wants_to_answer) {
            self.answered = Some(now);
            self.declare(hello);
            return Some((Suite::ChaCha20Poly1305, hello.write(false)));
        }
        if std::mem::take(&mut self.wants_to_ask) {
            self.due = wait(self.asked).map(|wait| now + wait + jitter);
            self.asked = self.asked.saturating_add(1);
            self.declare(hello);
            return Some((Suite::ChaCha20Poly1305, hello.write(true)));
        }
        if std::mem::take(&mut self.wants_to_ping)
            && let Sending::Probing(sent) = self.sending
        {
            self.due = wait(sent).map(|wait| now + wait + jitter);
            let number = sent.saturating_add(1);
            self.sending = Sending::Probing(number);
            let ping = frame::ping(u32::from(number), &[number], now.as_nanos());
            return Some((Suite::Aes256Gcm, ping));
        }
        None
    }

    fn declare(&mut self, hello: Hello) {
        self.declared |= hello.aes;
        self.try_to_ping();
    }

    /// Begins with the PINGs once both sides have said that they open AES-256-GCM.
    fn try_to_ping(&mut self) {
        if self.sending == Sending::Plain && self.declared && self.opened_there {
            self.sending = Sending::Probing(0);
            self.wants_to_ping = true;
        }
    }
}

fn wait(tries: u8) -> Option<Duration> {
    PATIENCE.get(usize::from(tries)).copied()
}

#[cfg(test)]
mod tests;
