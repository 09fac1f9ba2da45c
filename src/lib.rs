//! Ringway: a WireGuard-compatible VPN gateway for Linux.

pub mod cli;
pub mod control;
pub mod crypto;
pub mod dataplane;
pub mod fuzzing;
pub mod gateway;
pub mod metrics;
mod mutation;
pub mod net;
pub mod noise;
pub mod sys;
pub mod types;
pub mod wire;
