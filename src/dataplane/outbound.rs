//! The outbound way: TUN → split → seal → UDP.
//!
//! Packets of one peer that follow one another are gathered into a *run*, written into one send buffer, sealed at
//! once and sent by one `sendmsg`. A run holds what one UDP_SEGMENT send may hold: equal sizes (the last may be
//! shorter), one endpoint, one receiver index, one TOS. It never outlives the turn of the loop, so it adds no delay.
//!
//! A sealed run is never dropped for want of room in the socket and never overtaken: it waits at the head of its
//! socket's queue. Every waiting run holds a send buffer; when none is left, the worker stops reading its TUN queue.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::Sockets;
use super::io::Family;
use super::offload::mss;
use super::offload::split::SuperPacket;
use super::offload::switches::{Reason, Switch};
use super::worker::Core;
use crate::crypto::aead::{self, Span};
use crate::metrics::drops::Drop;
use crate::noise::peer_session::Reserved;
use crate::sys::arena::{Arena, Slot};
use crate::sys::socket;
use crate::types::{Endpoint, PeerId, Suite, Time};
use crate::wire::ip;
use crate::wire::wireguard::{TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, TransportHeader, padded_len};

#[cfg(test)]
mod tests;

/// Most segments of one UDP_SEGMENT send that any kernel takes (UDP_MAX_SEGMENTS, include/linux/udp.h).
pub const MAX_SEGMENTS: usize = 128;
/// Longest payload of one send. Beyond it the kernel cuts segments in software without a word (measured).
pub const MAX_SEND: usize = 65_493;
/// TOS of handshake messages: DSCP AF41, as the kernel module sends them.
pub const HANDSHAKE_TOS: u8 = 0x88;
/// Endpoints that go without UDP_SEGMENT for a while; the oldest leaves when the table is full.
const PLAIN_ENDPOINTS: usize = 64;
/// How long such an endpoint goes without.
const PLAIN_FOR: Duration = Duration::from_secs(600);

/// What the packets of a run have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Common {
    /// The peer's slot.
    peer: u32,
    remote_index: u32,
    suite: Suite,
    tos: u8,
    /// False for a keepalive.
    data: bool,
}

/// Packets of one peer, gathered for one send.
struct Run {
    slot: Slot,
    /// Bytes used in the buffer.
    used: usize,
    /// Outer size of each packet but the last.
    segment: usize,
    /// A shorter packet was the last one that fits.
    closed: bool,
    first_counter: u64,
    common: Common,
}

/// A sealed run on its way.
struct Sealed {
    slot: Slot,
    /// What is left to send: `start..len`.
    start: usize,
    len: usize,
    segment: usize,
    /// One datagram per send.
    plain: bool,
    endpoint: Endpoint,
    tos: u8,
    peer: PeerId,
}

/// How far a packet of the TUN queue came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of it is in runs, or dropped and counted.
    Done,
    /// The peer has no keypair to seal with: the packet is to be staged.
    NoKeypair,
    /// There is no send buffer for this segment and those behind it: to be taken up there. (The counters that were
    /// reserved for them are not used; there are enough.)
    Stopped(usize),
}

/// What the socket said to a sealed run.
enum Outcome {
    Done,
    /// No room; the rest of the run comes back.
    Full(Sealed),
}

/// The sending half of a worker.
pub struct Outbound {
    arena: Arena,
    sockets: Sockets,
    run: Option<Run>,
    /// The packets of that run. Not in it: it is moved, and this is two kilobytes.
    spans: ArrayVec<Span, MAX_SEGMENTS>,
    waiting: [VecDeque<Sealed>; 2],
    segment_limit: usize,
    plain: ArrayVec<(SocketAddr, Time), PLAIN_ENDPOINTS>,
}

impl Outbound {
    /// `segment_limit`: the probed number of segments per send, 1 if the kernel has no UDP_SEGMENT.
    ///
    /// # Errors
    /// When the send buffers cannot be had.
    pub fn new(sockets: Sockets, buffers: u16, segment_limit: usize) -> io::Result<Self> {
        let buffers = buffers.max(4);
        Ok(Self {
            arena: Arena::new(buffers, 64 << 10)?,
            sockets,
            run: None,
            spans: ArrayVec::new(),
            waiting: [VecDeque::with_capacity(buffers.into()), VecDeque::with_capacity(buffers.into())],
            // Without UDP_SEGMENT a run goes out datagram by datagram, but still fills one buffer: else a super-packet
            // for a full socket would need one for each of its packets.
            segment_limit: if segment_limit <= 1 { MAX_SEGMENTS } else { segment_limit.min(MAX_SEGMENTS) },
            plain: ArrayVec::new(),
        })
    }

    /// Sockets of another listen port. What waits is sent through the new ones at once: nobody tells when the old
    /// ones, which may be the last of their family, are writable.
    pub fn replace_sockets(&mut self, core: &mut Core, sockets: Sockets) {
        self.sockets = sockets;
        self.writable(core, Family::V4);
        self.writable(core, Family::V6);
    }

    /// True if there is a send buffer: a packet of the TUN queue can be begun.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.arena.free() > 0
    }

    /// Send buffers that hold something.
    #[inline]
    #[must_use]
    pub fn buffers_in_use(&self) -> usize {
        self.arena.capacity() - self.arena.free()
    }

    /// True if this family's socket has runs waiting.
    #[must_use]
    pub fn is_waiting(&self, family: Family) -> bool {
        !self.waiting[family as usize].is_empty()
    }

    /// Splits a packet of `peer`, from its segment `from` on, into the current run and further ones.
    pub fn packet(&mut self, core: &mut Core, slot: u32, packet: &SuperPacket<'_>, from: usize) -> Progress {
        let mtu = core.mtu as usize;
        let now = core.now;
        let left = packet.segments().saturating_sub(from);
        if padded_len(packet.segment_len(0), mtu) + TRANSPORT_OVERHEAD > MAX_SEND {
            core.counters.drops.count(Drop::TooLarge);
            return Progress::Done;
        }
        let Some(peer) = core.peers.by_slot(slot) else { return Progress::Done };
        let Some(reserved) = peer.session.reserve(left as u64, now) else { return Progress::NoKeypair };
        let tos = ip::outer_tos(packet.ip().tos);
        let syn = packet.segments() == 1
            && core.on.is_on(Switch::MssClamp)
            && mss::may_be_syn(packet.bytes(), packet.ip());
        let common = Common {
            peer: slot,
            remote_index: reserved.remote_index,
            suite: reserved.suite,
            tos,
            data: true,
        };
        for (i, counter) in (from..packet.segments()).zip(reserved.first_counter..) {
            let padded = padded_len(packet.segment_len(i), mtu);
            if !self.make_room(core, common, counter, padded) {
                return Progress::Stopped(i);
            }
            if let Some(space) = self.append(padded, counter) {
                let written = packet.write_segment(i, space).unwrap_or(0);
                space[written..].fill(0);
                if syn && mss::clamp(space, packet.ip(), core.mtu) {
                    core.counters.mss_clamped += 1;
                }
                core.counters.tun_read_segments += 1;
            }
        }
        // Here, so that a read which had to stop in between counts once.
        core.counters.tun_read_sizes.record(packet.segments() as u64);
        Progress::Done
    }

    /// Puts an empty transport message of `peer` on its way.
    pub fn keepalive(&mut self, core: &mut Core, slot: u32) {
        let now = core.now;
        let Some(peer) = core.peers.by_slot(slot) else { return };
        let Some(reserved) = peer.session.reserve(1, now) else { return };
        self.alone(core, slot, reserved, &[]);
    }

    /// Puts a control frame for `peer` on its way, sealed with `suite` if the keypair that sends may; not one that is
    /// larger than the device's MTU.
    pub fn frame(&mut self, core: &mut Core, slot: u32, suite: Suite, frame: &[u8]) {
        let now = core.now;
        if core.mtu > 0 && frame.len() > core.mtu as usize {
            return core.counters.drops.count(Drop::TooLarge);
        }
        let Some(peer) = core.peers.by_slot(slot) else { return };
        // Nobody is asked to come for the sake of a frame.
        if !peer.session.can_send(now) {
            return;
        }
        let Some(reserved) = peer.session.reserve_in(suite, now) else { return };
        core.counters.frames_out += 1;
        self.alone(core, slot, reserved, frame);
    }

    /// Puts one message on its way, by itself.
    fn alone(&mut self, core: &mut Core, slot: u32, reserved: Reserved, text: &[u8]) {
        self.flush(core);
        let Reserved { first_counter, remote_index, suite } = reserved;
        let common = Common { peer: slot, remote_index, suite, tos: 0, data: !text.is_empty() };
        let padded = padded_len(text.len(), core.mtu as usize);
        if !self.make_room(core, common, first_counter, padded) {
            return;
        }
        if let Some(space) = self.append(padded, first_counter) {
            let (place, padding) = space.split_at_mut(text.len().min(padded));
            place.copy_from_slice(text.get(..place.len()).unwrap_or_default());
            padding.fill(0);
        }
        self.flush(core);
    }

    /// Makes the open run one that takes a packet of `padded` bytes. False if there is no send buffer.
    fn make_room(&mut self, core: &mut Core, common: Common, counter: u64, padded: usize) -> bool {
        let outer = padded + TRANSPORT_OVERHEAD;
        if let Some(run) = &self.run {
            let next = run.first_counter + self.spans.len() as u64;
            let fits = self.spans.len() < self.segment_limit
                && outer <= run.segment
                && run.used + outer <= MAX_SEND
                && !run.closed;
            if run.common == common && next == counter && fits {
                return true;
            }
            self.flush(core);
        }
        let Some(slot) = self.arena.take() else { return false };
        self.spans.clear();
        self.run = Some(Run { slot, used: 0, segment: outer, closed: false, first_counter: counter, common });
        true
    }

    /// Adds a packet of `padded` bytes to the open run: writes its header and yields the place for its text. A shorter
    /// packet than the first one closes the run.
    fn append(&mut self, padded: usize, counter: u64) -> Option<&mut [u8]> {
        let run = self.run.as_mut()?;
        let start = run.used + TRANSPORT_HEADER_LEN;
        let end = run.used + padded + TRANSPORT_OVERHEAD;
        if end > run.slot.len() || self.spans.try_push(Span { start, len: padded }).is_err() {
            return None;
        }
        let Common { remote_index: receiver, suite, .. } = run.common;
        let header = TransportHeader { receiver, counter, suite };
        run.slot[run.used..start].copy_from_slice(&header.to_bytes());
        run.closed = padded + TRANSPORT_OVERHEAD < run.segment;
        run.used = end;
        Some(&mut run.slot[start..start + padded])
    }

    /// Seals the open run and sends it.
    pub fn flush(&mut self, core: &mut Core) {
        let Some(mut run) = self.run.take() else { return };
        let Common { peer: slot, remote_index, suite, tos, data } = run.common;
        let Some(peer) = core.peers.by_slot(slot) else { return };
        let packets = self.spans.len() as u64;
        let sealed = peer
            .session
            .sealing_key(remote_index, suite, run.used)
            .is_some_and(|key| aead::seal_run(key, run.first_counter, &mut run.slot, &self.spans));
        let Some(endpoint) = peer.session.endpoint() else {
            core.counters.drops.add(Drop::NoEndpoint, packets);
            return;
        };
        let id = peer.id;
        if !sealed {
            return core.lose(id, Drop::SendFailed, packets);
        }
        peer.session.sent(data, run.used as u64, core.now);
        core.counters.tx_packets += packets;
        core.counters.tx_bytes += run.used as u64;
        core.counters.aes_out += if suite == Suite::Aes256Gcm { packets } else { 0 };
        core.touch(slot);
        let plain = self.is_plain(endpoint.remote, core.now);
        let sealed = Sealed {
            slot: run.slot,
            start: 0,
            len: run.used,
            segment: run.segment,
            plain,
            endpoint,
            tos,
            peer: id,
        };
        self.enqueue(core, sealed);
    }

    fn enqueue(&mut self, core: &mut Core, sealed: Sealed) {
        let queue = family_of(sealed.endpoint.remote) as usize;
        if !self.waiting[queue].is_empty() {
            self.waiting[queue].push_back(sealed);
            return;
        }
        if let Outcome::Full(rest) = self.transmit(core, sealed) {
            core.counters.send_retries += 1;
            self.waiting[queue].push_back(rest);
        }
    }

    /// The socket of `family` takes data again: sends what waits, in order.
    pub fn writable(&mut self, core: &mut Core, family: Family) {
        while let Some(sealed) = self.waiting[family as usize].pop_front() {
            if let Outcome::Full(rest) = self.transmit(core, sealed) {
                core.counters.send_retries += 1;
                self.waiting[family as usize].push_front(rest);
                return;
            }
        }
    }

    /// Sends a handshake message. Its loss is mended by the peer's timers, so it does not wait.
    pub fn handshake(&mut self, core: &mut Core, peer: Option<PeerId>, endpoint: Endpoint, message: &[u8]) {
        let Some(socket) = self.sockets.towards(endpoint.remote) else {
            core.counters.drops.count(Drop::NoSocket);
            return;
        };
        let send = |source| socket::send(socket, message, endpoint.remote, source, HANDSHAKE_TOS, None);
        let mut result = send(endpoint.source);
        if endpoint.source.is_some() && result.as_ref().is_err_and(is_stale_source) {
            core.counters.source_resets += 1;
            if let Some(peer) = peer.and_then(|id| core.peers.by_id(id)) {
                peer.session.clear_source();
            }
            result = send(None);
        }
        if result.is_err() {
            core.counters.drops.count(Drop::SendFailed);
        }
    }

    /// Sends all of a run or as much as the socket takes.
    fn transmit(&mut self, core: &mut Core, mut run: Sealed) -> Outcome {
        while run.start < run.len {
            run.plain |= !core.on.is_on(Switch::UdpSend);
            let end = if run.plain { (run.start + run.segment).min(run.len) } else { run.len };
            let segmented = end - run.start > run.segment;
            let result = match self.sockets.towards(run.endpoint.remote) {
                None => {
                    core.lose(run.peer, Drop::NoSocket, run.packets_left());
                    return Outcome::Done;
                }
                Some(socket) => {
                    // Segment sizes are at most MAX_SEND, which fits 16 bits.
                    let segment = if segmented { u16::try_from(run.segment).ok() } else { None };
                    let part = &run.slot[run.start..end];
                    socket::send(socket, part, run.endpoint.remote, run.endpoint.source, run.tos, segment)
                }
            };
            match result {
                Ok(()) => {
                    core.counters.sends += 1;
                    let datagrams = if segmented { (end - run.start).div_ceil(run.segment) } else { 1 };
                    core.counters.send_sizes.record(datagrams as u64);
                    run.start = end;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Full(run),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.recover(core, &mut run, end, segmented, &error),
            }
        }
        Outcome::Done
    }

    /// Decides what a failed send becomes: the same without its sticky source, the same as plain datagrams, the same
    /// in fragments, or a drop.
    fn recover(&mut self, core: &mut Core, run: &mut Sealed, end: usize, segmented: bool, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        if run.endpoint.source.is_some() && is_stale_source(error) {
            core.counters.source_resets += 1;
            run.endpoint.source = None;
            if let Some(peer) = core.peers.by_id(run.peer) {
                peer.session.clear_source();
            }
        } else if segmented && errno == libc::EIO {
            // The device cannot checksum what it would have to segment: no run will pass, whoever receives it.
            core.switch_off(Switch::UdpSend, Reason::SendRefused);
            core.counters.segment_fallbacks += 1;
            run.plain = true;
        } else if segmented && (errno == libc::EMSGSIZE || errno == libc::EINVAL) {
            // Possibly a forged "fragmentation needed": never a reason to switch the offload off for everybody.
            self.note_plain(run.endpoint.remote, core.now);
            core.counters.segment_fallbacks += 1;
            run.plain = true;
        } else if !segmented && errno == libc::EMSGSIZE && self.send_in_fragments(run, end) {
            core.counters.sends += 1;
            core.counters.send_sizes.record(1);
            core.counters.fragmented += 1;
            run.start = end;
        } else {
            core.lose(run.peer, Drop::SendFailed, (end - run.start).div_ceil(run.segment) as u64);
            run.start = end;
        }
    }

    /// Larger than the device's MTU: rather fragments than a black hole.
    fn send_in_fragments(&self, run: &Sealed, end: usize) -> bool {
        let Endpoint { remote, source } = run.endpoint;
        // Over IPv6 the kernel has fragmented it already, if it can.
        if remote.is_ipv6() {
            return false;
        }
        let part = &run.slot[run.start..end];
        self.sockets
            .towards(remote)
            .is_some_and(|socket| socket::send_in_fragments(socket, part, remote, source, run.tos).is_ok())
    }

    fn is_plain(&mut self, remote: SocketAddr, now: Time) -> bool {
        if self.plain.is_empty() {
            return false;
        }
        self.plain.retain(|(_, since)| now.since(*since) < PLAIN_FOR);
        self.plain.iter().any(|(addr, _)| *addr == remote)
    }

    fn note_plain(&mut self, remote: SocketAddr, now: Time) {
        self.plain.retain(|(addr, _)| *addr != remote);
        if self.plain.is_full() {
            self.plain.remove(0);
        }
        self.plain.push((remote, now));
    }
}

impl Sealed {
    fn packets_left(&self) -> u64 {
        (self.len - self.start).div_ceil(self.segment) as u64
    }
}

fn family_of(remote: SocketAddr) -> Family {
    if remote.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The errors of a source address that is gone: ENETUNREACH (IPv4), EINVAL (IPv6), EADDRNOTAVAIL.
fn is_stale_source(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EINVAL | libc::EADDRNOTAVAIL))
}
