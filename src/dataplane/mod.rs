//! The packet's way.

pub mod io;
