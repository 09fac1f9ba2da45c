//! The system calls that no safe crate offers. Together with `dataplane::io::ring` and the kernels of `crypto` the only
//! place with `unsafe`; everything public here is safe to call.
#![allow(unsafe_code)]

pub mod arena;
pub mod inherit;
pub mod interface;
pub mod umask;
