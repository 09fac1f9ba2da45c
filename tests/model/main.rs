//! The protocol as a whole: hosts with both machines and real cryptography, over a network that loses, delays,
//! reorders and duplicates, with a clock that only the test moves. Needs no root and no sockets.
//!
//! * [`world`]: hosts, network and what must hold at every moment;
//! * [`schedules`]: random schedules of everything that may happen to a tunnel;
//! * [`scenarios`]: one thing at a time, with exact expectations;
//! * [`suites`]: two machines that agree on another cipher suite;
//! * [`leases`]: addresses that were promised, under kill -9;
//! * [`load`]: floods of forged initiations; the handshake thread itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod leases;
mod load;
mod scenarios;
mod schedules;
mod suites;
mod world;
