//! The packet's way.

pub mod io;
pub mod offload;
