//! Ringway: a WireGuard-compatible VPN gateway for Linux.

pub mod crypto;
pub mod dataplane;
pub mod fuzzing;
pub mod metrics;
pub mod noise;
pub mod sys;
pub mod types;
pub mod wire;
