//! A gateway and its clients, each on a link of its own: client `i` is 198.18.i.2, the gateway 198.18.i.1 there;
//! inside the tunnel the gateway is 100.64.0.1 and fd64::1, client `i` is 100.64.(i+1).2 and fd64::(i+1):2.

use std::sync::Arc;

use crate::lab::{Host, Lab};
use crate::peer::{Implementation, Peer, Remote};

/// The gateway's listen port.
pub(crate) const GATEWAY_PORT: u16 = 51820;
/// Every client's listen port.
pub(crate) const CLIENT_PORT: u16 = 51821;
/// The gateway inside the tunnel.
pub(crate) const GATEWAY_V4: &str = "100.64.0.1";
/// The gateway inside the tunnel.
pub(crate) const GATEWAY_V6: &str = "fd64::1";
/// What a client sends into the tunnel.
pub(crate) const OVERLAY: &str = "100.64.0.0/10,fd64::/64";

/// The outer address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outer {
    /// 198.18.0.0/15.
    V4,
    /// fd00:198:18::/48.
    V6,
}

/// What to build. The clients know the gateway's endpoint, never the other way round: clients initiate.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What the gateway runs.
    pub(crate) gateway: Implementation,
    /// What each client runs.
    pub(crate) clients: Vec<Implementation>,
    /// Outer address family.
    pub(crate) outer: Outer,
    /// MTU of the tunnel; the links take 100 more.
    pub(crate) mtu: u32,
    /// One key for every pair.
    pub(crate) preshared: Option<String>,
    /// For the program of every peer.
    pub(crate) variables: Vec<(&'static str, &'static str)>,
}

/// What was built.
pub(crate) struct Site {
    /// The gateway.
    pub(crate) gateway: Peer,
    /// The clients, by number.
    pub(crate) clients: Vec<Peer>,
}

impl Plan {
    /// One client, IPv4 outside, MTU 1420.
    pub(crate) fn new(gateway: Implementation, client: Implementation) -> Self {
        Self {
            gateway,
            clients: vec![client],
            outer: Outer::V4,
            mtu: 1420,
            preshared: None,
            variables: Vec::new(),
        }
    }

    /// Makes the hosts and links, starts and configures every program.
    pub(crate) fn build(&self, lab: &Lab) -> Site {
        let host = lab.host("gateway");
        let gateway = Peer::start_with(&host, self.gateway, "wg0", GATEWAY_PORT, &self.variables);
        gateway.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], self.mtu);
        let clients = (0..self.clients.len()).map(|i| self.client(lab, &gateway, i)).collect();
        Site { gateway, clients }
    }

    /// Client `i` on a host and a link of its own, known to the gateway.
    pub(crate) fn client(&self, lab: &Lab, gateway: &Peer, i: usize) -> Peer {
        let host = lab.host(&format!("client{i}"));
        connect(lab, &gateway.host, &host, i, self.mtu + 100);
        let client = Peer::start_with(&host, self.clients[i], "wg0", CLIENT_PORT, &self.variables);
        client.up(&[&format!("{}/10", client_v4(i)), &format!("{}/64", client_v6(i))], self.mtu);
        introduce(gateway, &client, i, self.outer, self.preshared.as_deref());
        client
    }
}

/// Each learns the other's key: the gateway what client `i` may send, the client where the gateway is.
pub(crate) fn introduce(gateway: &Peer, client: &Peer, i: usize, outer: Outer, preshared: Option<&str>) {
    gateway.know(&Remote {
        public: &client.public,
        allowed: &client_prefixes(i),
        preshared,
        ..Remote::default()
    });
    client.know(&Remote {
        public: &gateway.public,
        allowed: OVERLAY,
        endpoint: Some(&gateway_endpoint(i, outer)),
        preshared,
        ..Remote::default()
    });
}

/// Links a client's host to the gateway's: `e<i>` there, `e0` here, both families.
pub(crate) fn connect(lab: &Lab, gateway: &Arc<Host>, client: &Arc<Host>, i: usize, mtu: u32) {
    let uplink = format!("e{i}");
    lab.link((gateway, &uplink), (client, "e0"), mtu);
    gateway.address(&uplink, &format!("198.18.{i}.1/24"));
    gateway.address(&uplink, &format!("fd00:198:18:{i}::1/64"));
    client.address("e0", &format!("198.18.{i}.2/24"));
    client.address("e0", &format!("fd00:198:18:{i}::2/64"));
}

/// Where client `i` finds the gateway.
pub(crate) fn gateway_endpoint(i: usize, outer: Outer) -> String {
    match outer {
        Outer::V4 => format!("198.18.{i}.1:{GATEWAY_PORT}"),
        Outer::V6 => format!("[fd00:198:18:{i}::1]:{GATEWAY_PORT}"),
    }
}

/// Client `i` inside the tunnel.
pub(crate) fn client_v4(i: usize) -> String {
    format!("100.64.{}.2", i + 1)
}

/// Client `i` inside the tunnel.
pub(crate) fn client_v6(i: usize) -> String {
    format!("fd64::{:x}:2", i + 1)
}

/// The allowed-ips of client `i`.
pub(crate) fn client_prefixes(i: usize) -> String {
    format!("{}/32,{}/128", client_v4(i), client_v6(i))
}
