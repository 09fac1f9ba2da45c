//! The client. Where to begin: [`connection`], the platform API's calls for programs that carry packets themselves;
//! `ringway up` is composed in [`crate::gateway::client`], on the gateway's data plane.
//!
//! - [`config`] says what a connection is to be, [`error`] what may go wrong, under the platform's numbers
//! - [`reconnect`] finds a gateway again that does not answer any more, or by another way
//! - [`tunnel`] changes the host: addresses, routes, rules, reverse path filtering; and takes it back
//! - [`calls`] are for programs that leave it all to `ringway up`: start, stop, status, check
//! - [`path_mtu`] finds what the way to a gateway carries, [`rounds`] what round trips come to
//! - [`enrolment`] makes a peer of whoever holds an invite; [`leasing`] gets addresses and keeps them: machines without
//!   socket, clock and randomness; what came and what time it is are handed in, what is to be sent is asked for
//! - [`pushed`] says what of a gateway's offer a profile takes

pub mod calls;
pub mod config;
pub mod connection;
pub mod enrolment;
pub mod error;
pub mod leasing;
pub mod path_mtu;
pub mod pushed;
pub mod reconnect;
pub mod rounds;
pub mod tunnel;
