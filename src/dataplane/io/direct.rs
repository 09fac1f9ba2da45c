//! One receive by a plain call, for whoever knows from poll(2) that there is something.

use std::fs::File;
use std::io::{self, Read as _};

use super::{Datagrams, Event, Target, TunRead};
use crate::sys::arena::Slot;
use crate::sys::socket;

/// Receives from a non-blocking TUN queue or socket into `slot`. Yields the event and how many bytes came.
///
/// # Errors
/// Those of read(2) and recvmsg(2), EAGAIN among them.
pub fn receive(mut fd: &File, target: Target, mut slot: Slot) -> io::Result<(Event, usize)> {
    if target == Target::Tun {
        let len = fd.read(&mut slot)?;
        return Ok((Event::Tun(TunRead { slot, len }), len));
    }
    let received = socket::recv(fd, &mut slot)?;
    let len = received.len;
    let datagrams = Datagrams {
        slot,
        start: 0,
        len,
        segment: received.segment.map_or(len, usize::from).clamp(1, len.max(1)),
        remote: received.remote,
        source: received.source,
        tos: received.tos,
        truncated: received.truncated,
    };
    Ok((Event::Datagrams(datagrams), len))
}
