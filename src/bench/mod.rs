//! `ringway bench`: what measures a gateway from outside. No gateway is served from here, and nothing is sent anywhere
//! but to the endpoint that was given.
//!
//! * [`link`](mod@link): a forwarder that delays, loses and slows datagrams
//! * [`clients`]: many clients in one process with traffic over their sessions; [`handshakes`]: the same clients, only
//!   shaking hands; [`leases`]: the same, asking for addresses. All are a [`fleet`], whose keys come from [`identity`]
//!   and whose packets are [`probe`]s
//! * [`echo`]: who answers behind the gateway
//! * [`flood`]: forged initiations
//! * [`udp`]: the sockets and buffers of all of them

pub mod clients;
pub mod echo;
pub mod fleet;
pub mod flood;
pub mod handshakes;
pub mod identity;
pub mod latency;
pub mod leases;
pub mod link;
pub mod probe;
pub mod random;
pub mod stop;
pub mod udp;
pub mod units;
