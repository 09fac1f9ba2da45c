//! Offloads between TUN and tunnel: one super-packet from the network stack becomes many MTU-sized packets
//! ([`split`]), and runs of packets from the tunnel become one super-packet ([`coalesce`]). The network stack is then
//! crossed once per 64 KB instead of once per packet, which is worth a factor of four to five. Each may be switched
//! off ([`switches`]). The segment size of TCP connections is kept within the device's MTU ([`mss`]); what
//! is larger all the same is answered ([`icmp`]).

pub mod coalesce;
pub mod icmp;
pub mod mss;
pub mod split;
pub mod switches;

#[cfg(test)]
pub(crate) mod packets;
