//! The packet's way.

pub mod io;
pub mod steering;
pub mod tun;
pub mod udp;
