//! Ringway: a WireGuard-compatible VPN gateway for Linux.
//!
//! Where to begin: [`dataplane`] numbers the steps of a packet's way and names the module of each;
//! [`dataplane::worker`] is the loop that takes them, [`noise`] the protocol that it asks, [`gateway`] what is started
//! in which order.
//!
//! ```text
//! UDP socket ─▶ dataplane::io ─▶ inbound ─▶ offload::coalesce ─▶ TUN queue       inbound
//! UDP socket ◀──── outbound ◀── offload::split ◀── dataplane::io ◀── TUN queue   outbound
//!
//! handshake messages ─▶ dataplane::handshake ─▶ noise::handshaker ─▶ keys to the peer's worker
//! wg, ringway show   ─▶ control ─▶ gateway ─▶ messages to workers and handshake thread
//! ```
//!
//! Who may import whom (each row also imports itself; `tests/tidy` enforces the table of `docs/architecture.md`):
//!
//! | module | imports |
//! |---|---|
//! | [`types`] | nothing |
//! | [`sys`], [`wire`], [`metrics`], [`crypto`] | `types` |
//! | [`noise`] | `crypto wire types`: no socket, no clock |
//! | [`dataplane::io`] | `sys types`: no WireGuard |
//! | [`dataplane`] | `noise crypto wire metrics sys types` |
//! | [`net`] | `wire sys types` |
//! | [`store`] | `sys types` |
//! | [`lease`] | `types`: no I/O, no clock |
//! | [`config`] | `dataplane::io net lease wire sys types` |
//! | [`control`] | `dataplane noise net store lease metrics wire sys types` |
//! | [`client`] | `noise net config crypto wire sys types`: no clock |
//! | [`bench`](mod@bench) | `dataplane noise crypto wire sys types` |
//! | [`gateway`], [`client::calls`], [`cli`], [`fuzzing`] | what is above |

pub mod bench;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod crypto;
pub mod dataplane;
pub mod fuzzing;
pub mod gateway;
pub mod lease;
pub mod metrics;
mod mutation;
pub mod net;
pub mod noise;
pub mod store;
pub mod sys;
pub mod types;
pub mod wire;
