//! The system calls that no safe crate offers. Together with `dataplane::io::ring` and the kernels of `crypto` the
//! only place with `unsafe`; everything public here is safe to call.
#![allow(unsafe_code)]

use std::io;

pub mod arena;
pub mod bpf;
pub mod caretaker;
pub mod clock;
pub mod eventfd;
pub mod guarded;
pub mod heap;
pub mod host;
pub mod interface;
pub mod lock;
pub mod netns;
pub mod poll;
pub mod privileges;
pub mod process;
pub mod seccomp;
pub mod slab;
pub mod socket;
#[cfg(test)]
pub(crate) mod testing;
pub mod thread;
pub mod tun;

/// Turns the C convention (-1 and errno) into a `Result`.
fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// As [`check`], for calls that return a count of bytes.
fn check_len(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
