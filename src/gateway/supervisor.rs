//! What the service manager hears (sd_notify(3)): ready, stopping, one line of status, and that everything still turns.
//!
//! Without `NOTIFY_SOCKET` nothing is said; without `WATCHDOG_USEC` nobody asks whether everything turns.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use crossbeam_channel::Receiver;
use sd_notify::NotifyState;

use super::{Gateway, changes};
use crate::control::Control;
use crate::control::events::{What, WorkerEvent};

/// So often the threads are asked in the time that the service manager waits.
const QUESTIONS_PER_LIMIT: u32 = 4;
/// Between two rounds of [`repeat`].
const SECOND: Duration = Duration::from_secs(1);

/// One question to every thread of the data plane whether it still turns, and the answers so far.
#[derive(Debug)]
pub struct Pulse {
    answers: Receiver<()>,
    missing: usize,
}

impl Pulse {
    /// A question that `asked` threads answer on the other end of `answers`.
    #[must_use]
    pub fn new(answers: Receiver<()>, asked: usize) -> Self {
        Self { answers, missing: asked }
    }

    /// True once every thread has answered. Never waits.
    pub fn is_complete(&mut self) -> bool {
        self.missing = self.missing.saturating_sub(self.answers.try_iter().count());
        self.missing == 0
    }
}

/// Everything is up.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] follows whatever comes of it.
pub(super) fn reloading() {
    // The service manager tells by the time whose request is answered.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no time to tell"),
    }
}

/// The end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Feeds the watchdog, but only when every worker and the handshake thread have turned since the last time: one that
/// hangs has the service manager start us anew. Never returns.
pub(super) async fn watch(control: &RefCell<Control<Gateway>>) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit > Duration::ZERO) else {
        return std::future::pending().await;
    };
    let mut pulse = control.borrow().dataplane.pulse();
    let mut hangs = false;
    loop {
        tokio::time::sleep(limit / QUESTIONS_PER_LIMIT).await;
        // No second question before the first is answered: a thread that hangs does not collect them.
        let complete = pulse.is_complete();
        if hangs == complete {
            hangs = !complete;
            let change = if hangs { WorkerEvent::Hangs } else { WorkerEvent::Turns };
            let what = What::Worker { worker: None, reason: None, change };
            changes::tell(&mut control.borrow_mut(), what);
        }
        if complete {
            tell(&[NotifyState::Watchdog]);
            pulse = control.borrow().dataplane.pulse();
        } else {
            tracing::warn!("a thread of the data plane does not turn: the watchdog is not fed");
        }
    }
}

/// Does `work` once a second. Never returns.
pub(super) async fn repeat(work: fn()) -> Infallible {
    loop {
        tokio::time::sleep(SECOND).await;
        work();
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not hear us");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_needs_every_answer() {
        let (answer, answers) = crossbeam_channel::bounded(2);
        let mut pulse = Pulse::new(answers, 2);
        assert!(!pulse.is_complete());
        answer.send(()).unwrap();
        assert!(!pulse.is_complete());
        answer.send(()).unwrap();
        assert!(pulse.is_complete());
        assert!(pulse.is_complete());
    }
}
