//! The metrics page of a gateway that runs: turned on and off, and served somewhere else.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use tokio::net::TcpListener;

use crate::config::{Listen, Metrics};
use crate::control::Control;
use crate::control::scrape::ListenError;
use crate::gateway::Gateway;
use crate::gateway::exporter::{self, Opened, Stand};

/// Where the page is served, and who serves it.
pub(in crate::gateway) struct PagePlace {
    stand: Stand,
    listener: Option<Rc<TcpListener>>,
    interface: String,
}

impl PagePlace {
    /// The place of a page that is being served, if there is one.
    pub(in crate::gateway) fn new(
        stand: Stand,
        listener: Option<Rc<TcpListener>>,
        interface: String,
    ) -> Self {
        Self { stand, listener, interface }
    }

    /// Listens where the page is to be; what is served stays, until [`Self::put`].
    ///
    /// # Errors
    /// The address cannot be had.
    pub(super) async fn open(&mut self, from: Metrics, to: Metrics) -> Result<Option<Opened>, ListenError> {
        if from.listen == to.listen {
            return Ok(self.listener.clone().map(|listener| Opened { listener, per_peer: to.per_peer }));
        }
        match exporter::open(to) {
            // A port with and without an address, 127.0.0.1 and 0.0.0.0: only one after the other.
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse && same_port(from, to) => {
                self.listener = None;
                self.stand.put(None).await;
                exporter::open(to)
            }
            opened => opened,
        }
    }

    /// Serves the page there from now on, and nowhere else.
    pub(super) async fn put(&mut self, opened: Option<Opened>, control: &RefCell<Control<Gateway>>) {
        self.listener = opened.as_ref().map(|opened| Rc::clone(&opened.listener));
        let page = {
            let gateway = &mut control.borrow_mut().dataplane;
            gateway.show_boards(opened.is_some());
            opened.map(|opened| opened.of(gateway, &self.interface))
        };
        self.stand.put(page).await;
    }

    /// Serves the page as before [`Self::open`], which another step's failure has made vain.
    pub(super) async fn restore(&mut self, from: Metrics, control: &RefCell<Control<Gateway>>) {
        if self.listener.is_some() {
            return;
        }
        match exporter::open(from) {
            Ok(None) => {}
            Ok(opened) => self.put(opened, control).await,
            Err(error) => tracing::warn!(%error, "reload: the metrics page of before cannot be had again"),
        }
    }
}

fn same_port(from: Metrics, to: Metrics) -> bool {
    match (from.listen, to.listen) {
        (Listen::At(from), Listen::At(to)) => from.port() == to.port(),
        _ => false,
    }
}
