//! The packet's way.

pub mod admission;
pub mod allowed_ips;
pub mod io;
