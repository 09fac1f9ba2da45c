//! One interface and the routes around it, watched and changed over one netlink socket (rtnetlink(7)).
//!
//! The watch lives in the network namespace in which it was opened, as the outer sockets do. A device that is
//! moved to another namespace is reported as [`LinkEvent::Left`]; whether it is gone or only elsewhere is for the
//! data plane to find out (a deleted TUN device answers EBADFD).

use std::collections::HashSet;
use std::io;
use std::mem;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, MulticastGroup};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Reported changes of routes are at least so far apart: a routing daemon that loads a table is one event, or a few.
pub const ROUTES_PAUSE: Duration = Duration::from_millis(100);

/// What decides by which address and interface an outer datagram leaves.
pub(in crate::net) const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// The properties of a link that the packet path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// MTU, bytes of inner IP packet.
    pub mtu: u32,
}

/// What [`LinkWatch::next`] yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The link's state is another now.
    Changed(LinkState),
    /// The link is no longer in this namespace: deleted or moved.
    Left,
    /// Addresses, routes or rules changed: a sticky source may be wrong.
    RoutesChanged {
        /// Also by which links the main table leads anywhere; as far as notices tell, which say nothing of the time
        /// before the watch. A routing daemon's thousandth route over one link is no new way.
        new_way: bool,
    },
}

/// What the kernel sends unasked, and from whom.
type Notice = (NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr);

/// One link, to be changed, as long as its watch lives.
#[derive(Clone, Debug)]
pub struct Link {
    index: u32,
    handle: Handle,
}

/// Watches one link and all routes of a namespace.
pub struct LinkWatch {
    link: Link,
    notices: BoxStream<'static, Notice>,
    /// Moves bytes between the socket and the two above.
    connection: JoinHandle<()>,
    /// As last reported.
    state: Option<LinkState>,
    /// Notices were lost: ask again.
    resync: bool,
    routes_changed: bool,
    new_way: bool,
    /// Links, by index, over which a route of the main table was reported, for IPv4 and for others. A link that changes
    /// is forgotten, so there are two for each link at most.
    ways: HashSet<(u32, bool)>,
    /// When a change of routes may be reported again.
    routes_free: Instant,
}

impl LinkWatch {
    /// Opens the netlink socket in the present namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn open(index: u32) -> io::Result<Self> {
        let (connection, handle, notices) = rtnetlink::new_multicast_connection(GROUPS)?;
        Ok(Self {
            link: Link { index, handle },
            notices: notices.boxed(),
            connection: tokio::spawn(connection),
            state: None,
            resync: false,
            routes_changed: false,
            new_way: false,
            ways: HashSet::new(),
            routes_free: Instant::now(),
        })
    }

    /// The link, to be changed.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Asks for the link's state now; [`Self::next`] then reports what differs from it.
    ///
    /// # Errors
    /// ENODEV if there is no such link in this namespace.
    pub async fn state(&mut self) -> io::Result<LinkState> {
        let mut links = self.link.handle.link().get().match_index(self.link.index).execute();
        let link = links.next().await.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(to_io)?;
        let state = state_of(&link, None).ok_or(io::ErrorKind::InvalidData)?;
        self.state = Some(state);
        Ok(state)
    }

    /// The next event. May be cancelled at any time: nothing is lost.
    ///
    /// # Errors
    /// The netlink socket failed for good.
    pub async fn next(&mut self) -> io::Result<LinkEvent> {
        loop {
            if let Some(event) = self.resynchronise().await {
                return Ok(event);
            }
            let notice = if self.routes_changed {
                tokio::select! {
                    biased;
                    () = sleep_until(self.routes_free) => {
                        self.routes_changed = false;
                        self.routes_free = Instant::now() + ROUTES_PAUSE;
                        return Ok(LinkEvent::RoutesChanged { new_way: mem::take(&mut self.new_way) });
                    }
                    notice = self.notices.next() => notice,
                }
            } else {
                self.notices.next().await
            };
            let (notice, _) = notice.ok_or(io::ErrorKind::UnexpectedEof)?;
            if let Some(event) = self.digest(notice.payload) {
                return Ok(event);
            }
        }
    }

    /// After lost notices: anything may have happened.
    async fn resynchronise(&mut self) -> Option<LinkEvent> {
        if !self.resync {
            return None;
        }
        let before = self.state;
        let now = self.state().await;
        self.resync = false;
        match now {
            Ok(state) => (before != Some(state)).then_some(LinkEvent::Changed(state)),
            Err(_) => self.state.take().map(|_| LinkEvent::Left),
        }
    }

    fn digest(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkEvent> {
        use RouteNetlinkMessage as Rt;
        match payload {
            NetlinkPayload::InnerMessage(Rt::NewLink(link)) if link.header.index == self.link.index => {
                let state = state_of(&link, self.state)?;
                (self.state.replace(state) != Some(state)).then_some(LinkEvent::Changed(state))
            }
            NetlinkPayload::InnerMessage(Rt::DelLink(link)) if link.header.index == self.link.index => {
                self.state.take().map(|_| LinkEvent::Left)
            }
            // Another link that goes down takes its IPv4 routes along without a word about them.
            NetlinkPayload::InnerMessage(Rt::NewLink(link) | Rt::DelLink(link)) => {
                self.routes_changed = true;
                self.new_way = true;
                self.ways.retain(|(index, _)| *index != link.header.index);
                None
            }
            NetlinkPayload::InnerMessage(Rt::NewRoute(route)) => {
                self.routes_changed = true;
                self.new_way |= self.leads_anew(&route);
                None
            }
            NetlinkPayload::InnerMessage(
                Rt::NewAddress(_) | Rt::DelAddress(_) | Rt::DelRoute(_) | Rt::NewRule(_) | Rt::DelRule(_),
            ) => {
                self.routes_changed = true;
                None
            }
            NetlinkPayload::Overrun(_) => {
                self.resync = true;
                self.routes_changed = true;
                self.new_way = true;
                None
            }
            _ => None,
        }
    }

    /// Whether a route leads over a link, other than the watched one, that none was known to lead over.
    fn leads_anew(&mut self, route: &RouteMessage) -> bool {
        if route.header.kind != RouteType::Unicast || route.header.table != RouteHeader::RT_TABLE_MAIN {
            return false;
        }
        let v4 = route.header.address_family == AddressFamily::Inet;
        let mut links = Vec::new();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => links.push(*index),
                RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
                _ => {}
            }
        }
        // None is named where the next hop is an object of its own.
        let mut anew = links.is_empty();
        for index in links {
            anew |= index != self.link.index && self.ways.insert((index, v4));
        }
        anew
    }
}

impl Link {
    /// The link of this index, over a socket that is open.
    pub(in crate::net) fn over(handle: Handle, index: u32) -> Self {
        Self { index, handle }
    }

    /// Deletes the link. Descriptors of a TUN device answer EBADFD from then on.
    ///
    /// # Errors
    /// EPERM, ENODEV; EOPNOTSUPP for a link that cannot be deleted.
    pub async fn delete(&self) -> io::Result<()> {
        self.handle.link().del(self.index).execute().await.map_err(to_io)
    }

    /// Sets the link's MTU, bytes.
    ///
    /// # Errors
    /// EPERM, ENODEV, or EINVAL for an MTU that the device does not take.
    pub async fn set_mtu(&self, bytes: u32) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(self.index).mtu(bytes)).await
    }

    /// Sets how many packets the link queues on their way out (txqueuelen).
    ///
    /// # Errors
    /// EPERM, ENODEV, or ENOMEM for a length that there is no memory for.
    pub async fn set_queue_length(&self, packets: u32) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(self.index);
        self.change(link.append_extra_attribute(LinkAttribute::TxQueueLen(packets))).await
    }

    async fn change(&self, link: LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
        self.handle.link().change(link.build()).execute().await.map_err(to_io)
    }
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A notice of another family (a bridge's) may leave the MTU out: then it is as before.
fn state_of(link: &LinkMessage, before: Option<LinkState>) -> Option<LinkState> {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let mtu = mtu.or(before.map(|state| state.mtu))?;
    Some(LinkState { up: link.header.flags.contains(LinkFlags::Up), mtu })
}

pub(in crate::net) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

mod elsewhere;
mod setup;
pub use setup::ROUTE_PROTOCOL;

#[cfg(test)]
mod tests;
