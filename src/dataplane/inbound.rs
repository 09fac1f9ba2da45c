//! The inbound way: UDP → open → coalesce → TUN.
//!
//! A receive slot holds up to 64 KiB of coalesced datagrams. They are opened in place; the coalescer keeps ranges of
//! the slot, not copies, so the slots of a turn are held until the batch is written.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::frames;
use super::handoff::{Handover, Request};
use super::io::Datagrams;
use super::offload::coalesce::{Coalescer, Config, MAX_PARTS, Place};
use super::offload::mss;
use super::offload::switches::{Reason, Switch};
use super::worker::Core;
use crate::crypto::aead::{self, Authentic, Pieces, Sealed};
use crate::metrics::drops::Drop;
use crate::mutation::holds;
use crate::noise::peer_session::{KeypairRef, Refused};
use crate::sys::arena::Slot;
use crate::sys::tun;
use crate::types::{Endpoint, Suite};
use crate::wire::frame::lease;
use crate::wire::wireguard::{INITIATION_LEN, Kind, TRANSPORT_HEADER_LEN, TransportHeader};
use crate::wire::{frame, ip, virtio};

#[cfg(test)]
mod tests;

/// Receive slots that one batch may hold; more than a worker has.
const HELD: usize = 256;
/// Parts of one TUN write: virtio-net header with packet headers, and payloads.
const PARTS: usize = 1 + MAX_PARTS;
/// The virtio-net header of a packet that stands for itself.
const NO_OFFLOAD: [u8; virtio::LEN] = [0; virtio::LEN];
/// Writes in a row that the TUN device refuses as invalid before super-packets are no longer written.
const INVALID_LIMIT: u32 = 8;

/// Where a batch of datagrams came from.
#[derive(Clone, Copy)]
struct Origin {
    endpoint: Endpoint,
    tos: u8,
}

/// The session that a run of datagrams belongs to, looked up once.
struct Opened {
    index: u32,
    suite: Suite,
    slot: u32,
    keypair: KeypairRef,
    endpoint: Endpoint,
    /// Outer bytes accepted so far; 0: none was.
    bytes: u64,
    /// One of them was no keepalive.
    data: bool,
}

/// Datagrams of one session that wait to be opened: where each lies, and its counter.
type Waiting = ArrayVec<(Range<usize>, u64), { aead::RUN }>;

/// The receiving half of a worker.
pub struct Inbound {
    tun: Arc<OwnedFd>,
    coalescer: Coalescer,
    held: ArrayVec<Slot, HELD>,
    invalid: u32,
    /// Bytes of virtio-net header before each packet: [`virtio::LEN`], or 0 on a queue without.
    framing: usize,
    /// What the TUN device takes.
    config: Config,
    /// Super-packets are written at present.
    merging: bool,
}

impl Inbound {
    /// `config` says what the TUN device takes as super-packets, `vnet_header` whether it takes a virtio-net header
    /// before each packet; without one there are no super-packets.
    #[must_use]
    pub fn new(tun: Arc<OwnedFd>, config: Config, vnet_header: bool) -> Self {
        let config = Config { tcp: config.tcp && vnet_header, udp: config.udp && vnet_header };
        Self {
            tun,
            coalescer: Coalescer::new(config),
            held: ArrayVec::new(),
            invalid: 0,
            framing: if vnet_header { virtio::LEN } else { 0 },
            config,
            merging: true,
        }
    }

    /// Whether to write super-packets at all, from now on. Nothing is held (see [`Self::flush`]).
    #[inline]
    pub fn merge(&mut self, on: bool) {
        if on != self.merging {
            self.merging = on;
            self.invalid = 0;
            let none = Config { tcp: false, udp: false };
            self.coalescer = Coalescer::new(if on { self.config } else { none });
        }
    }

    /// One receive: every datagram in it, in order. The slot is held until [`Self::flush`].
    pub fn datagrams(&mut self, core: &mut Core, received: Datagrams) {
        let Datagrams { mut slot, start, len, segment, remote, source, tos, truncated } = received;
        core.counters.receives += 1;
        if truncated || segment == 0 || len == 0 {
            core.counters.receive_sizes.record(1);
            core.counters.drops.count(if truncated { Drop::Oversized } else { Drop::Malformed });
            return;
        }
        if self.held.is_full() {
            self.flush(core);
        }
        let origin = Origin { endpoint: Endpoint { remote, source }, tos };
        let end = (start + len).min(slot.len());
        let (mut run, mut waiting) = (None, ArrayVec::new());
        let (mut at, mut datagrams) = (start, 0);
        while at < end {
            datagrams += 1;
            let next = (at + segment).min(end);
            self.datagram(core, &mut slot, at..next, origin, &mut run, &mut waiting);
            at = next;
        }
        self.open(core, &mut slot, &mut run, &mut waiting, tos);
        core.counters.receive_sizes.record(datagrams);
        settle(core, run);
        self.held.push(slot);
    }

    /// A datagram that another worker received for one of our sessions.
    pub fn handed_over(&mut self, core: &mut Core, bytes: &mut [u8], origin: Endpoint, tos: u8) {
        let (mut run, mut waiting) = (None, ArrayVec::new());
        let len = bytes.len();
        let origin = Origin { endpoint: origin, tos };
        self.datagram(core, bytes, 0..len, origin, &mut run, &mut waiting);
        self.open(core, bytes, &mut run, &mut waiting, tos);
        settle(core, run);
        // These bytes live only as long as this call.
        if !self.coalescer.is_empty() {
            self.drain(core, Some((self.held.len() as u16, bytes)));
        }
    }

    /// Gives the network stack a packet of our own.
    pub fn answer(&mut self, core: &mut Core, packet: &[u8]) {
        let parts = [IoSlice::new(&NO_OFFLOAD[..self.framing]), IoSlice::new(packet)];
        count_written(core, tun::write(&self.tun, &parts), 1);
    }

    /// Step 2 of the way: the session of a datagram; whether its counter may still come. What passes waits to be opened
    /// with others of its session.
    fn datagram(
        &mut self,
        core: &mut Core,
        buffer: &mut [u8],
        range: Range<usize>,
        origin: Origin,
        run: &mut Option<Opened>,
        waiting: &mut Waiting,
    ) {
        let bytes = &mut buffer[range.clone()];
        let Some(TransportHeader { receiver: index, counter, suite }) = TransportHeader::parse(bytes) else {
            match Kind::of(bytes) {
                // No longer than an initiation: the kind says the length.
                Some(_) => core.request(Request::Message {
                    bytes: bytes.iter().copied().take(INITIATION_LEN).collect(),
                    endpoint: origin.endpoint,
                }),
                None => core.counters.drops.count(Drop::Malformed),
            }
            return;
        };
        if run.as_ref().is_none_or(|run| run.index != index || run.suite != suite) {
            self.open(core, buffer, run, waiting, origin.tos);
            settle(core, run.take());
            *run = self.session_of(core, index, suite, &buffer[range.clone()], origin);
        }
        let Some(of) = run else { return };
        let now = core.now;
        let Some(peer) = core.peers.by_slot(of.slot) else { return };
        if let Err(refused) = peer.session.check(of.keypair, counter, now) {
            core.counters.drops.count(reason(refused));
            return;
        }
        waiting.push((range, counter));
        if waiting.is_full() {
            self.open(core, buffer, run, waiting, origin.tos);
        }
    }

    /// Step 3: opens what waits, all of one session and in one buffer; inner packets go to the coalescer.
    fn open(
        &mut self,
        core: &mut Core,
        buffer: &mut [u8],
        run: &mut Option<Opened>,
        waiting: &mut Waiting,
        tos: u8,
    ) {
        let Some(run) = run else { return };
        let session = core.peers.by_slot(run.slot).map(|peer| &peer.session);
        let Some(key) = session.and_then(|session| session.opening_key(run.keypair, run.suite)) else {
            core.counters.drops.add(reason(Refused::Expired), waiting.len() as u64);
            return waiting.clear();
        };
        let held = self.held.len() as u16;
        // A slot is far smaller than 4 GiB.
        let place = |range: &Range<usize>, packet: Range<usize>| Place {
            buffer: held,
            start: (range.start + TRANSPORT_HEADER_LEN + packet.start) as u32,
            len: packet.len() as u32,
        };
        if let [(range, counter)] = &mut waiting[..] {
            // Alone, as after each pause: no arrays, which are much code to find in no cache.
            let (range, counter) = (std::mem::take(range), *counter);
            waiting.clear();
            let bytes = buffer.get_mut(range.start + TRANSPORT_HEADER_LEN..range.end);
            let Some(message) = bytes.and_then(|bytes| Sealed::new(counter, bytes)) else { return };
            let text = aead::open_alone(key, message);
            if let Some(packet) = accept(core, run, counter, range.len() as u64, text, tos) {
                self.push(core, buffer, place(&range, packet));
            }
            return;
        }
        // Emptied where they are, here and below: to move them is to copy hundreds of bytes for each packet.
        let mut places = ArrayVec::<Place, { aead::RUN }>::new();
        {
            let mut pieces = Pieces::of(buffer);
            let (mut messages, mut opened) = (ArrayVec::new(), ArrayVec::new());
            waiting.retain(|(range, counter)| {
                let bytes = pieces.take(range.start + TRANSPORT_HEADER_LEN..range.end);
                let message = bytes.and_then(|bytes| Sealed::new(*counter, bytes));
                let is_one = message.is_some();
                messages.extend(message);
                is_one
            });
            aead::open_run(key, &mut messages, &mut opened);
            for ((range, counter), text) in waiting.drain(..).zip(opened.drain(..)) {
                let outer = range.len() as u64;
                if let Some(packet) = accept(core, run, counter, outer, text, tos) {
                    places.push(place(&range, packet));
                }
            }
        }
        for place in places.drain(..) {
            self.push(core, buffer, place);
        }
    }

    /// The session that a receiver index names; a datagram of another worker's session is handed over.
    fn session_of(
        &mut self,
        core: &mut Core,
        index: u32,
        suite: Suite,
        bytes: &[u8],
        origin: Origin,
    ) -> Option<Opened> {
        let Some(slot) = core.peers.slot_of_index(index) else {
            let owner = core.owner_of_index(index);
            if owner == core.id {
                core.counters.drops.count(Drop::UnknownIndex);
            } else {
                let packet =
                    Handover::Datagram { bytes: bytes.into(), endpoint: origin.endpoint, tos: origin.tos };
                core.hand_over(owner, packet);
            }
            return None;
        };
        let session = &core.peers.by_slot(slot)?.session;
        let keypair = session.keypair(index)?;
        if session.opening_key(keypair, suite).is_none() {
            core.counters.drops.count(Drop::SuiteNotDeclared);
            return None;
        }
        Some(Opened { index, suite, slot, keypair, endpoint: origin.endpoint, bytes: 0, data: false })
    }

    fn push(&mut self, core: &mut Core, slot: &[u8], place: Place) {
        if self.coalescer.push(&slot[range(place)], place).is_err() {
            // The batch is full. What was pushed may lie in this very slot, which is not among the held ones yet.
            self.drain(core, Some((place.buffer, slot)));
            let _ = self.coalescer.push(&slot[range(place)], place);
        }
    }

    /// Steps 4 and 5: writes the batch and returns the slots.
    pub fn flush(&mut self, core: &mut Core) {
        if !self.coalescer.is_empty() {
            self.drain(core, None);
        }
        self.held.clear();
    }

    /// Writes the batch. `current` is a slot that is not among the held ones yet, with its number.
    fn drain(&mut self, core: &mut Core, current: Option<(u16, &[u8])>) {
        let Self { tun, coalescer, held, invalid, framing, .. } = self;
        let mut refused = false;
        coalescer.drain(|header, places| {
            let bytes = |place: &Place, from: usize| {
                let slot = match current {
                    Some((buffer, slot)) if buffer == place.buffer => Some(slot),
                    _ => held.get(usize::from(place.buffer)).map(|slot| &slot[..]),
                };
                let Range { start, end } = range(*place);
                slot.and_then(|slot| slot.get(start.checked_sub(from)?..end)).unwrap_or_default()
            };
            let mut parts = ArrayVec::<IoSlice<'_>, PARTS>::new();
            // Without virtio-net headers nothing is merged, and the header is just that one.
            parts.push(IoSlice::new(if *framing > 0 { header } else { &[] }));
            parts.extend(places.iter().take(MAX_PARTS).map(|place| IoSlice::new(bytes(place, 0))));
            let result = tun::write(tun, &parts);
            if !is_invalid(&result) || places.len() == 1 {
                *invalid = if places.len() > 1 { 0 } else { *invalid };
                return count_written(core, result, places.len() as u64);
            }
            // The kernel takes this super-packet for broken (a bug that existed): its packets still lie in the slots,
            // each behind its own headers.
            *invalid += 1;
            refused |= *invalid >= INVALID_LIMIT;
            core.counters.coalesce_fallbacks += 1;
            let headers = header.len() - virtio::LEN;
            for place in places {
                let parts = [IoSlice::new(&NO_OFFLOAD), IoSlice::new(bytes(place, headers))];
                count_written(core, tun::write(tun, &parts), 1);
            }
        });
        if refused {
            core.switch_off(Switch::TunWrite, Reason::WriteRefused);
            self.merge(false);
        }
    }
}

/// What an opened message is good for: yields where in it the inner packet is, if there is one for the TUN.
fn accept(
    core: &mut Core,
    run: &mut Opened,
    counter: u64,
    outer: u64,
    text: Option<Authentic<'_>>,
    tos: u8,
) -> Option<Range<usize>> {
    let Some(mut text) = text else {
        core.counters.drops.count(Drop::Unauthentic);
        return None;
    };
    let peer = core.peers.by_slot(run.slot)?;
    // The same counter twice in one run passed the first check twice.
    if let Err(refused) = peer.session.accept(run.keypair, counter) {
        core.counters.drops.count(reason(refused));
        return None;
    }
    run.bytes += outer;
    run.data |= !text.is_empty();
    core.counters.rx_packets += 1;
    core.counters.rx_bytes += outer;
    core.counters.aes_in += u64::from(run.suite == Suite::Aes256Gcm);
    if text.is_empty() {
        core.counters.keepalives += 1;
        return None;
    }
    let id = peer.id;
    let temporary = holds("temporary-peer", peer.session.is_temporary());
    let mut at = 0..text.len();
    if frame::is_frame(&text) {
        // A packet in a frame passes the same checks as one without, and is no frame once more.
        let Some(packet) = lease::packet_in(&text).filter(|_| !temporary) else {
            frames::handle(core, run.slot, run.keypair, run.suite, &text);
            return None;
        };
        core.counters.frames_in += 1;
        at = packet;
    } else if temporary {
        core.counters.drops.count(Drop::TemporaryPeer);
        return None;
    }
    let text = text.get_mut(at.clone())?;
    let Some(header) = ip::Header::parse(text) else {
        core.counters.drops.count(Drop::InnerMalformed);
        return None;
    };
    if !holds("inner-source", core.peers.allowed_ips.allowed_source(header.src, id)) {
        core.counters.drops.count(Drop::SourceNotAllowed);
        return None;
    }
    ip::decapsulate_ecn(tos, text);
    if mss::may_be_syn(text, &header)
        && core.on.is_on(Switch::MssClamp)
        && mss::clamp(text, &header, core.mtu)
    {
        core.counters.mss_clamped += 1;
    }
    Some(at.start..at.start + header.total_len)
}

/// A run of one session has ended: what it confirms, and what the session wants, is looked at once.
fn settle(core: &mut Core, opened: Option<Opened>) {
    let Some(run) = opened.filter(|run| run.bytes > 0) else { return };
    let now = core.now;
    if let Some(peer) = core.peers.by_slot(run.slot) {
        peer.session.received(run.keypair, run.endpoint, run.data, run.bytes, now);
    }
    core.touch(run.slot);
}

fn reason(refused: Refused) -> Drop {
    match refused {
        Refused::Replayed => Drop::Replayed,
        Refused::TooOld => Drop::TooOld,
        Refused::CounterLimit => Drop::CounterLimit,
        Refused::Expired => Drop::KeypairExpired,
    }
}

fn range(place: Place) -> Range<usize> {
    place.start as usize..(place.start + place.len) as usize
}

fn is_invalid(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Counts a write of `packets`, or why it failed.
fn count_written(core: &mut Core, result: io::Result<usize>, packets: u64) {
    let Err(error) = result else {
        core.counters.tun_writes += 1;
        core.counters.tun_written_segments += packets;
        core.counters.tun_write_sizes.record(packets);
        return;
    };
    let reason = match error.raw_os_error() {
        // Before "up", and after a move to another namespace: not an end.
        Some(libc::EIO) => Drop::TunLinkDown,
        Some(libc::EINVAL) => Drop::TunInvalid,
        Some(libc::EAGAIN) => Drop::TunFull,
        Some(libc::EBADFD) => {
            core.device_gone = true;
            Drop::TunFailed
        }
        _ => Drop::TunFailed,
    };
    core.counters.drops.add(reason, packets);
}
