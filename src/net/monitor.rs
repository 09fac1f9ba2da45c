//! The ways by which this host reaches others, and word of when they may have changed, over one netlink socket
//! (rtnetlink(7)): nothing is polled.
//!
//! 1. [`Monitor::changed`] waits for a notice of links, addresses, routes or rules that are not our own tunnel's
//! 2. [`PAUSE`] later, when what belongs together has come, it says which links came up meanwhile
//! 3. [`Monitor::way_to`] asks the kernel which way a marked datagram goes now
//!
//! A way that is the same as before over a link that stayed up is no change, whatever the notices were about:
//! containers that come and go, renewed leases, router advertisements.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::RuleAttribute;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::net::link::{GROUPS, ROUTE_PROTOCOL, to_io};
use crate::types::Mark;

/// Changes are reported so long after the first notice: a link that comes up brings its addresses and routes along.
pub const PAUSE: Duration = Duration::from_millis(50);
/// Links whose state is kept at most; of others any notice says that they came up.
const MAX_LINKS: usize = 4096;

/// What the kernel sends unasked, and from whom.
type Notice = (NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr);

/// Which way a datagram leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The link, by index.
    pub link: u32,
    /// The router, if it is not reached directly.
    pub router: Option<IpAddr>,
    /// The address that it leaves from.
    pub source: Option<IpAddr>,
}

/// Links that came up since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Risen {
    links: Vec<u32>,
    /// Notices were lost.
    any: bool,
}

impl Risen {
    /// Whether this link may be one of them.
    #[must_use]
    pub fn has(&self, link: u32) -> bool {
        self.any || self.links.contains(&link)
    }
}

/// Listens to one namespace.
pub struct Monitor {
    handle: Handle,
    notices: BoxStream<'static, Notice>,
    /// Moves bytes between the socket and the two above.
    connection: JoinHandle<()>,
    /// The tunnel's own link, by index: what becomes of it changes no way.
    tunnel: u32,
    /// Which links can send, by index.
    running: HashMap<u32, bool>,
    risen: Risen,
    /// When what has come is reported.
    due: Option<Instant>,
}

impl Monitor {
    /// Listens from now on, in the present namespace; needs a tokio runtime. `tunnel` is the index of the link that is
    /// no way out.
    ///
    /// # Errors
    /// What socket(2), bind(2) and the kernel say.
    pub async fn open(tunnel: u32) -> io::Result<Self> {
        let (connection, handle, notices) = rtnetlink::new_multicast_connection(GROUPS)?;
        let mut monitor = Self {
            handle,
            notices: notices.boxed(),
            connection: tokio::spawn(connection),
            tunnel,
            running: HashMap::new(),
            risen: Risen::default(),
            due: None,
        };
        let mut links = monitor.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(to_io)? {
            monitor.note(&link);
        }
        monitor.risen = Risen::default();
        Ok(monitor)
    }

    /// Waits until ways may have changed. May be cancelled at any time: nothing is lost.
    ///
    /// # Errors
    /// The netlink socket failed for good.
    pub async fn changed(&mut self) -> io::Result<Risen> {
        loop {
            let notice = match self.due {
                Some(due) => tokio::select! {
                    biased;
                    () = sleep_until(due) => {
                        self.due = None;
                        return Ok(mem::take(&mut self.risen));
                    }
                    notice = self.notices.next() => notice,
                },
                None => self.notices.next().await,
            };
            let (notice, _) = notice.ok_or(io::ErrorKind::UnexpectedEof)?;
            if self.digest(notice.payload) {
                self.due.get_or_insert_with(|| Instant::now() + PAUSE);
            }
        }
    }

    /// The way of a datagram with this mark; `None` if there is none.
    ///
    /// # Errors
    /// What the kernel says that is not "no way".
    pub async fn way_to(&self, address: IpAddr, mark: Mark) -> io::Result<Option<Way>> {
        let mut question = match address {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
        };
        // Whoever asks by an address alone says nothing of tables and kinds.
        question.header.table = 0;
        question.header.kind = RouteType::Unspec;
        question.header.protocol = RouteProtocol::Unspec;
        question.attributes.push(RouteAttribute::Mark(mark.0));
        let mut answers = self.handle.route().get(question).execute().boxed();
        match answers.try_next().await.map_err(to_io) {
            Ok(answer) => Ok(answer.as_ref().and_then(way)),
            // What a route of kind unreachable, prohibit or blackhole answers, and no route at all.
            Err(error) => match error.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => Ok(None),
                Some(libc::EAFNOSUPPORT | libc::ENETDOWN) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Whether a notice may be of a way out.
    fn digest(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> bool {
        use RouteNetlinkMessage as Rt;
        match payload {
            NetlinkPayload::InnerMessage(Rt::NewLink(link)) => self.note(&link),
            NetlinkPayload::InnerMessage(Rt::DelLink(link)) => {
                self.running.remove(&link.header.index);
                link.header.index != self.tunnel
            }
            NetlinkPayload::InnerMessage(Rt::NewAddress(address) | Rt::DelAddress(address)) => {
                address.header.index != self.tunnel
            }
            NetlinkPayload::InnerMessage(Rt::NewRoute(route) | Rt::DelRoute(route)) => {
                route.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL)
                    && !route.attributes.contains(&RouteAttribute::Oif(self.tunnel))
            }
            NetlinkPayload::InnerMessage(Rt::NewRule(rule) | Rt::DelRule(rule)) => {
                let ours = RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
                !rule.attributes.contains(&ours)
            }
            NetlinkPayload::Overrun(_) => {
                self.running.clear();
                self.risen.any = true;
                true
            }
            _ => false,
        }
    }

    /// Whether a link can send now, and whether that is news.
    fn note(&mut self, link: &LinkMessage) -> bool {
        let index = link.header.index;
        let runs = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        if index == self.tunnel {
            return false;
        }
        let known = if self.running.len() < MAX_LINKS || self.running.contains_key(&index) {
            self.running.insert(index, runs)
        } else {
            None
        };
        if runs && known != Some(true) && self.risen.links.len() < MAX_LINKS {
            self.risen.links.push(index);
        }
        known != Some(runs)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What the kernel has answered; `None` for a route that leads nowhere.
fn way(route: &RouteMessage) -> Option<Way> {
    if matches!(route.header.kind, RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole) {
        return None;
    }
    let mut way = Way { link: 0, router: None, source: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.link = *index,
            RouteAttribute::Gateway(address) => way.router = ip(address),
            RouteAttribute::PrefSource(address) => way.source = ip(address),
            _ => {}
        }
    }
    (way.link != 0).then_some(way)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
