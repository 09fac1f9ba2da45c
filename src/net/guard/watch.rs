//! The thread that keeps the rules as they are to be.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::time::Duration;

use rtnetlink::sys::{Socket, SocketAddr};

use super::lock;
use super::rules::Rules;
use crate::net::nft::{NftError, Notices};
use crate::sys::eventfd::EventFd;
use crate::sys::poll;

/// `NETLINK_ROUTE` of linux/netlink.h.
const ROUTE: isize = 0;
/// `RTNLGRP_LINK` of linux/rtnetlink.h.
const LINKS: u32 = 1;
/// Without a reason to look again.
const LONG: Duration = Duration::from_secs(3600);
/// After rules that could not be put back, or that others keep.
const AGAIN: Duration = Duration::from_secs(1);

/// What is listened to. The sockets belong to the network namespace in which they were opened, as the thread does.
pub(super) struct Watch {
    changes: Notices,
    links: Socket,
    stop: EventFd,
}

impl Watch {
    pub(super) fn open(stop: EventFd) -> io::Result<Self> {
        let mut links = Socket::new(ROUTE)?;
        links.bind(&SocketAddr::new(0, 0))?;
        links.add_membership(LINKS)?;
        links.set_non_blocking(true)?;
        Ok(Self { changes: Notices::open()?, links, stop })
    }

    /// Until it is told to stop. Nothing is done while `others` keep the rules.
    pub(super) fn run(self, rules: &Mutex<Rules>, others: &dyn Fn() -> bool) {
        let mut due = false;
        loop {
            let wait = if due { AGAIN } else { LONG };
            let waited = poll::readable(&[self.stop.as_fd(), self.changes.as_fd(), self.links.as_fd()], wait);
            if self.stop.drain() {
                return;
            }
            let kept = waited.map_err(|error| NftError::Refused(error.to_string()));
            due = match kept.and_then(|()| self.keep(rules, due, others)) {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "the kill switch cannot be put back; trying again");
                    true
                }
            };
        }
    }

    /// Whether something is still to be done, as it was before if it was `due`.
    fn keep(&self, rules: &Mutex<Rules>, due: bool, others: &dyn Fn() -> bool) -> Result<bool, NftError> {
        let linked = self.drain_links();
        let mut rules = lock(rules);
        let told = self.changes.read().map_err(|error| NftError::Refused(format!("notices: {error}")))?;
        let changed = rules.digest(&told) || due;
        if others() {
            return Ok(changed || linked);
        }
        if changed {
            rules.restore()?;
            tracing::warn!("somebody else changed the rules of the kill switch; they are back");
        } else if linked {
            rules.follow_links()?;
        }
        Ok(false)
    }

    /// Whether links came, changed or went. What was lost came all the same.
    fn drain_links(&self) -> bool {
        let mut any = false;
        loop {
            match self.links.recv_from_full() {
                Ok(_) => any = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(_) => return any,
            }
        }
    }
}
