//! Making a link ready: addresses, routes, up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::{Link, to_io};
use crate::types::{Address, Prefix};

/// Marks our routes (rtm_protocol of rtnetlink(7), `proto 82` of ip-route(8)); 82 is 'R', which nobody else in
/// iproute2's rt_protos uses.
pub const ROUTE_PROTOCOL: u8 = 82;

impl Link {
    /// Brings the link up.
    ///
    /// # Errors
    /// EPERM, ENODEV.
    pub async fn set_up(&self) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(self.index).up()).await
    }

    /// Gives the link an address.
    ///
    /// # Errors
    /// EEXIST if it has it; EACCES where IPv6 is switched off; EPERM, ENODEV.
    pub async fn add_address(&self, address: Address) -> io::Result<()> {
        let request = self.handle.address().add(self.index, address.addr(), address.prefix_len());
        request.execute().await.map_err(to_io)
    }

    /// Takes an address from the link. Of IPv4 its network's route goes with it, the other addresses in that network
    /// (unless `promote_secondaries` is set), and with the last one all routes over the link.
    ///
    /// # Errors
    /// EADDRNOTAVAIL if it has not got it; EPERM, ENODEV.
    pub async fn remove_address(&self, address: Address) -> io::Result<()> {
        // The same message as for adding it.
        let mut request = self.handle.address().add(self.index, address.addr(), address.prefix_len());
        let message = request.message_mut().clone();
        self.handle.address().del(message).execute().await.map_err(to_io)
    }

    /// Routes a prefix to the link, in the main table, under [`ROUTE_PROTOCOL`]. The link must be up.
    ///
    /// # Errors
    /// EEXIST if there is such a route; EPERM, ENODEV; ENETDOWN while the link is down.
    pub async fn add_route(&self, prefix: Prefix) -> io::Result<()> {
        self.handle.route().add(route(self.index, prefix)).execute().await.map_err(to_io)
    }

    /// Takes a route away that [`Self::add_route`] made; nobody else's.
    ///
    /// # Errors
    /// ESRCH if there is none; EPERM, ENODEV.
    pub async fn remove_route(&self, prefix: Prefix) -> io::Result<()> {
        self.handle.route().del(route(self.index, prefix)).execute().await.map_err(to_io)
    }
}

fn route(index: u32, prefix: Prefix) -> RouteMessage {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    match prefix.addr() {
        IpAddr::V4(addr) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(addr, prefix.len())
            .output_interface(index)
            .protocol(protocol)
            .scope(RouteScope::Link)
            .build(),
        IpAddr::V6(addr) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(addr, prefix.len())
            .output_interface(index)
            .protocol(protocol)
            .build(),
    }
}
