//! The end of a run before its time: a flag, and a bell for whoever sleeps in poll(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use crate::sys::eventfd::EventFd;

/// Says that a run shall end; clones are the same. As a descriptor it is readable once that was said.
#[derive(Clone, Debug)]
pub struct Stop {
    set: Arc<AtomicBool>,
    bell: EventFd,
}

impl Stop {
    /// Not said yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { set: Arc::default(), bell: EventFd::new()? })
    }

    /// Said by SIGTERM or SIGINT, so that a run that is broken off still tells what it has measured.
    ///
    /// # Errors
    /// No descriptor or no thread is left.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::new()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(entered);
        let told = stop.clone();
        let wait = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            told.set();
        };
        thread::Builder::new().name("ringway-signal".to_owned()).spawn(wait)?;
        Ok(stop)
    }

    /// Says it.
    pub fn set(&self) {
        self.set.store(true, Ordering::Relaxed);
        self.bell.notify();
    }

    /// Whether it was said.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::poll;

    #[test]
    fn whoever_sleeps_is_woken() {
        let stop = Stop::new().unwrap();
        assert!(!stop.is_set());
        let other = stop.clone();
        let sleeper = thread::spawn(move || {
            poll::readable(&[other.as_fd()], Duration::from_secs(60)).unwrap();
            other.is_set()
        });
        stop.set();
        assert!(sleeper.join().unwrap());
    }
}
