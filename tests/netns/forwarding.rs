//! What a gateway is for: traffic of clients with hosts behind it, not with itself.

use crate::lab::Lab;
use crate::peer::Implementation;
use crate::topology::{OVERLAY, Plan, client_v4};
use crate::traffic::{Flow, must_reach};

/// The server behind the gateway.
const SERVER: &str = "198.19.0.2";

/// TCP from a server behind the gateway reaches the TUN queue in super-packets as large as the network made them:
/// nothing on the way may cut them into single packets.
#[test]
pub(crate) fn forwarded_super_packets_stay_whole() {
    let Some(lab) = Lab::with_traffic() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let (client, gateway) = (&site.clients[0], &site.gateway);
    let server = lab.host("server");
    lab.link((&gateway.host, "behind"), (&server, "e0"), 1500);
    gateway.host.address("behind", "198.19.0.1/24");
    server.address("e0", "198.19.0.2/24");
    gateway.host.run("sysctl -qw net.ipv4.ip_forward=1");
    server.run("ip route add 100.64.0.0/10 via 198.19.0.1");
    client.set(&format!("peer {} allowed-ips {OVERLAY},198.19.0.0/24", gateway.public));
    client.host.run("ip route add 198.19.0.0/24 dev wg0");
    must_reach(&client.host, SERVER);

    // From the server to the client: what the gateway reads is data, not acknowledgements.
    Flow::tcp(&server, &client.host, &client_v4(0)).run();
    let count = |name| gateway.counter(name);
    let (Some(reads), Some(packets)) =
        (count("ringway_tun_reads_total"), count("ringway_tun_read_segments_total"))
    else {
        return;
    };
    assert!(packets > 1000, "{packets} packets: too little traffic to judge");
    assert!(packets > 5 * reads, "{packets} packets in {reads} reads");
}
