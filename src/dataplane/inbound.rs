//! The inbound way: UDP → open → coalesce → TUN.
//!
//! A receive slot holds up to 64 KiB of coalesced datagrams. They are opened in place; the coalescer keeps ranges of
//! the slot, not copies, so the slots of a turn are held until the batch is written.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::handoff::{Handover, Request};
use super::io::Datagrams;
use super::offload::coalesce::{Coalescer, Place, inner_len};
use super::worker::Core;
use crate::crypto::aead::{self, OpeningKey};
use crate::metrics::drops::Drop;
use crate::noise::keypair::KeypairRef;
use crate::sys::arena::Slot;
use crate::sys::tun;
use crate::types::{Endpoint, WorkerId};
use crate::wire::ip;
use crate::wire::wireguard::{self, Message, TRANSPORT_HEADER_LEN};

/// Receive slots that one batch may hold; more than a worker has.
const HELD: usize = 256;
/// Parts of one TUN write: virtio header with packet headers, and payloads. IOV_MAX is 1024.
const PARTS: usize = 160;
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
    slot: u32,
    keypair: KeypairRef,
    key: OpeningKey,
}

/// The receiving half of a worker.
pub struct Inbound {
    tun: Arc<OwnedFd>,
    coalescer: Coalescer,
    held: ArrayVec<Slot, HELD>,
    invalid: u32,
    /// Why super-packets are not written, if so.
    pub write_offload_off: Option<&'static str>,
}

impl Inbound {
    /// `coalesce_tcp` and `coalesce_udp` say what the TUN device takes as super-packets.
    #[must_use]
    pub fn new(tun: Arc<OwnedFd>, coalesce_tcp: bool, coalesce_udp: bool) -> Self {
        Self {
            tun,
            coalescer: Coalescer::new(coalesce_tcp, coalesce_udp),
            held: ArrayVec::new(),
            invalid: 0,
            write_offload_off: (!coalesce_tcp).then_some("the TUN device takes no super-packets"),
        }
    }

    /// One receive: every datagram in it, in order. The slot is held until [`Self::flush`].
    pub fn datagrams(&mut self, core: &mut Core, received: Datagrams) {
        let Datagrams { mut slot, start, len, segment, remote, source, tos, truncated } = received;
        core.counters.receives += 1;
        if truncated || segment == 0 {
            core.counters.drops.count(if truncated { Drop::Oversized } else { Drop::Malformed });
            return;
        }
        if self.held.is_full() {
            self.flush(core);
        }
        let buffer = self.held.len() as u16;
        let origin = Origin { endpoint: Endpoint { remote, source }, tos };
        let end = (start + len).min(slot.len());
        let mut opened = None;
        let mut at = start;
        while at < end {
            let next = (at + segment).min(end);
            if let Some(place) = self.datagram(core, &mut slot, at..next, origin, &mut opened) {
                let place = Place { buffer, ..place };
                self.push(core, &slot, place);
            }
            at = next;
        }
        self.settle(core, opened);
        self.held.push(slot);
    }

    /// A datagram that another worker received for one of our sessions.
    pub fn handed_over(&mut self, core: &mut Core, bytes: &mut [u8], origin: Endpoint, tos: u8) {
        let mut opened = None;
        let len = bytes.len();
        let place = self.datagram(core, bytes, 0..len, Origin { endpoint: origin, tos }, &mut opened);
        if let Some(place) = place {
            // What is held must not be overtaken, and these bytes live only as long as this call.
            self.flush(core);
            self.write(core, &[IoSlice::new(&PLAIN_HEADER), IoSlice::new(&bytes[place.range()])], 1);
        }
        self.settle(core, opened);
    }

    /// Steps 2 and 3 of the way: yields where the inner packet lies, if there is one for the TUN.
    fn datagram(
        &mut self,
        core: &mut Core,
        buffer: &mut [u8],
        range: std::ops::Range<usize>,
        origin: Origin,
        opened: &mut Option<Opened>,
    ) -> Option<Place> {
        let bytes = &mut buffer[range.clone()];
        let (index, counter) = match wireguard::classify(bytes) {
            Some(Message::Transport { receiver, counter }) => (receiver, counter),
            Some(_) => {
                core.request(Request::Message { bytes: bytes.iter().copied().collect(), endpoint: origin.endpoint });
                return None;
            }
            None => {
                core.counters.drops.count(Drop::Malformed);
                return None;
            }
        };
        if opened.as_ref().is_none_or(|opened| opened.index != index) {
            self.settle(core, opened.take());
            *opened = self.session_of(core, index, bytes, origin);
        }
        let run = opened.as_ref()?;
        let now = core.now;
        let peer = core.peers.by_slot(run.slot)?;
        if let Err(refused) = peer.session.check(run.keypair, counter, now) {
            core.counters.drops.count(refused.into());
            return None;
        }
        let Some(length) = aead::open(&run.key, counter, &mut bytes[TRANSPORT_HEADER_LEN..]) else {
            core.counters.drops.count(Drop::Unauthentic);
            return None;
        };
        let outer = bytes.len() as u64;
        if let Err(refused) = peer.session.accept(run.keypair, counter, origin.endpoint, length > 0, outer, now) {
            core.counters.drops.count(refused.into());
            return None;
        }
        core.counters.rx_packets += 1;
        core.counters.rx_bytes += outer;
        if length == 0 {
            core.counters.keepalives += 1;
            return None;
        }
        let id = peer.id;
        let text = &mut bytes[TRANSPORT_HEADER_LEN..TRANSPORT_HEADER_LEN + length];
        let Some(inner) = inner_len(text) else {
            core.counters.drops.count(Drop::InnerMalformed);
            return None;
        };
        let packet = &mut text[..inner];
        if !ip::source(packet).is_some_and(|source| core.peers.allowed_ips.allowed_source(source, id)) {
            core.counters.drops.count(Drop::SourceNotAllowed);
            return None;
        }
        ip::decapsulate_ecn(packet, origin.tos);
        Some(Place { buffer: 0, start: (range.start + TRANSPORT_HEADER_LEN) as u32, len: inner as u32 })
    }

    /// The session that a receiver index names; a datagram of another worker's session is handed over.
    fn session_of(&mut self, core: &mut Core, index: u32, bytes: &[u8], origin: Origin) -> Option<Opened> {
        let Some(slot) = core.peers.slot_of_index(index) else {
            let owner = core.owner_of_index(index);
            if owner == core.id {
                core.counters.drops.count(Drop::UnknownIndex);
            } else {
                let packet = Handover::Datagram { bytes: bytes.into(), endpoint: origin.endpoint, tos: origin.tos };
                core.hand_over(owner, packet);
            }
            return None;
        };
        let session = &core.peers.by_slot(slot)?.session;
        let keypair = session.keypair(index)?;
        let key = OpeningKey::new(session.opening_key(keypair)?)?;
        Some(Opened { index, slot, keypair, key })
    }

    /// A run of one session has ended: its actions and its deadline are looked at once.
    fn settle(&mut self, core: &mut Core, opened: Option<Opened>) {
        if let Some(opened) = opened {
            core.settle(opened.slot);
        }
    }

    fn push(&mut self, core: &mut Core, slot: &[u8], place: Place) {
        let packet = &slot[place.range()];
        if !self.coalescer.push(packet, place) {
            // The batch is full. What was pushed may lie in this very slot, which is not among the held ones yet.
            self.drain(core, Some((place.buffer, slot)));
            let pushed = self.coalescer.push(packet, place);
            debug_assert!(pushed, "an empty coalescer takes a packet");
        }
    }

    /// Steps 4 and 5: writes the batch and returns the slots.
    pub fn flush(&mut self, core: &mut Core) {
        self.drain(core, None);
        self.held.clear();
    }

    fn drain(&mut self, core: &mut Core, current: Option<(u16, &[u8])>) {
        let mut coalescer = std::mem::take(&mut self.coalescer);
        coalescer.drain(|header, places| {
            let mut parts = ArrayVec::<IoSlice<'_>, PARTS>::new();
            parts.push(IoSlice::new(header));
            for place in places {
                let slot = match current {
                    Some((buffer, slot)) if buffer == place.buffer => slot,
                    _ => match self.held.get(usize::from(place.buffer)) {
                        Some(slot) => slot,
                        None => return,
                    },
                };
                if parts.try_push(IoSlice::new(&slot[place.range()])).is_err() {
                    return;
                }
            }
            let tun = self.tun.as_fd();
            let result = tun::write(tun, &parts);
            outcome(core, result, places.len() as u64);
        });
        self.coalescer = coalescer;
    }
}
