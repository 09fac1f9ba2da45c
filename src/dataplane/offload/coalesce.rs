//! Coalescing: runs of decrypted packets of one flow become one super-packet for the TUN queue, by the rules of the
//! kernel's GRO (`inet_gro_receive`, `tcp_gro_receive`, `udp_gro_receive`).
//!
//! 1. [`Coalescer::push`] looks at each decrypted packet once and notes where its payload lies; bytes stay where
//!    they are.
//! 2. [`Coalescer::drain`] yields, in the order of first arrival, a virtio-net header (with the merged packet's
//!    headers behind it) and the places that follow it in one `writev`.
//!
//! **Order.** Packets of one flow never overtake each other: a flow has at most one open super-packet, always its
//! latest group, and a packet that may not be merged into it closes it and stands behind it. Packets whose ports
//! cannot be read (fragments, IP options, extension headers) close everything between their two addresses. Flows may
//! pass each other, as in any GRO.
//!
//! **Truth.** Only packets whose IPv4 header checksum and transport checksum are right are merged, since the kernel
//! takes the super-packet's checksum on trust; all others go alone and unchanged, for the network stack to judge.
//! What was merged is what segmentation would cut again, byte by byte (but for the IPv4 identification of "don't
//! fragment" packets that all carry the same one, which has no meaning there: RFC 6864).

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{be16, ip, put16, tcp, udp, virtio};

/// Packets a batch holds: 16 receives of 64 KB at full size. Bounds every table here.
pub const MAX_PACKETS: usize = 1024;
/// Flows of a batch that are tracked; packets of further flows go alone until the next drain.
pub const MAX_FLOWS: usize = 64;
/// Packets in one TCP super-packet: 65,535 bytes at 512 or more each. Bounds the `writev`.
pub const MAX_PARTS: usize = 128;
/// Datagrams in one UDP super-packet: the kernel's limit (`UDP_GRO_CNT_MAX`, and `UDP_MAX_SEGMENTS` before 6.9).
pub const MAX_UDP_PARTS: usize = 64;
/// Bytes of a super-packet with its headers: an IPv4 total length.
const MAX_BYTES: usize = 65_535;

/// Slots of the flow table: twice the flows, so that probing stays short and always ends at a free slot.
const SLOTS: usize = 2 * MAX_FLOWS;
/// A free slot.
const FREE: u8 = u8::MAX;
/// IPv6 and TCP with all its options.
const MAX_HEADERS: usize = ip::V6_LEN + tcp::MAX_LEN;
/// No part, no group, no super-packet.
const NONE: u16 = u16::MAX;

/// Where bytes lie: in which receive buffer (a number of the caller's), from which byte, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The caller's number of the buffer.
    pub buffer: u16,
    /// First byte.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

/// What to coalesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// TCP runs.
    pub tcp: bool,
    /// UDP runs; only where the TUN device takes USO (`TUN_F_USO4`, `TUN_F_USO6`).
    pub udp: bool,
}

/// The batch holds [`MAX_PACKETS`]: drain, then push the same packet again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the batch is full: drain it first")]
pub struct Full;

/// What makes a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    ports: [u8; 4],
    protocol: u8,
}

impl Key {
    /// Spreads over the flow table. Needs no secret: at worst [`MAX_FLOWS`] keys are compared.
    fn slot(&self) -> usize {
        let word = |addr: IpAddr| match addr {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64 ^ (v6.to_bits() as u64).rotate_left(17),
        };
        let ports = u64::from(u32::from_ne_bytes(self.ports)) << 8 | u64::from(self.protocol);
        let mixed =
            (word(self.src) ^ word(self.dst).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ports;
        (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 57) as usize % SLOTS
    }
}

/// What the headers of a packet allow.
enum Class {
    /// No flow of ours: goes alone.
    Other,
    /// Its flow cannot be told.
    Opaque,
    /// Of this flow, but not to be merged.
    Alone(Key),
    /// May open or continue a super-packet.
    Mergeable(Key, Candidate),
}

/// A packet whose headers and checksums allow merging.
#[derive(Clone, Copy)]
struct Candidate {
    /// Offset of the transport header.
    transport_at: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of data; more than zero.
    payload: usize,
    /// TCP: sequence number of the first data byte.
    sequence: u32,
    /// TCP: with PSH.
    push: bool,
    /// IPv4: identification; 0 for IPv6.
    id: u16,
    /// IPv6, or IPv4 with "don't fragment".
    dont_fragment: bool,
}

/// How the IPv4 identification goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// One packet so far.
    Unknown,
    /// By one each.
    Incrementing,
    /// Always the same (IPv4 with "don't fragment", IPv6).
    Fixed,
}

/// A flow seen in this batch and its open super-packet.
struct Flow {
    key: Key,
    /// The open group, or [`NONE`].
    group: u16,
    /// The first packet's headers.
    headers: [u8; MAX_HEADERS],
    first: Candidate,
    /// The sequence number that continues it.
    next_sequence: u32,
    /// Payload bytes so far.
    payload: usize,
    count: usize,
    ids: Ids,
}

/// One write: a packet alone, or a super-packet.
struct Group {
    first: u16,
    last: u16,
    /// Index of the super-packet, or [`NONE`].
    merged: u16,
}

/// What a super-packet's headers are made from.
struct Merged {
    /// Room for the virtio-net header, then the first packet's headers.
    bytes: [u8; virtio::LEN + MAX_HEADERS],
    key: Key,
    transport_at: usize,
    headers: usize,
    size: usize,
    payload: usize,
    push: bool,
}

struct Part {
    place: Place,
    next: u16,
}

/// Collects one batch; its storage is allocated once and reused.
pub struct Coalescer {
    config: Config,
    slots: [u8; SLOTS],
    flows: Vec<Flow>,
    groups: Vec<Group>,
    merged: Vec<Merged>,
    parts: Vec<Part>,
}

impl Coalescer {
    /// Allocates for [`MAX_PACKETS`] (about 120 KB).
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            slots: [FREE; SLOTS],
            flows: Vec::with_capacity(MAX_FLOWS),
            groups: Vec::with_capacity(MAX_PACKETS),
            // A super-packet has two packets at least.
            merged: Vec::with_capacity(MAX_PACKETS / 2),
            parts: Vec::with_capacity(MAX_PACKETS),
        }
    }

    /// Packets in the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// True if there is nothing to drain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds a decrypted packet: its bytes, and where they lie. The bytes there must not change until the drain.
    /// What lies behind the IP packet's own length is left out; bytes that are no IP packet go alone, as they are.
    ///
    /// # Errors
    /// [`Full`]: nothing was added.
    #[inline]
    pub fn push(&mut self, packet: &[u8], place: Place) -> Result<(), Full> {
        if self.parts.len() == MAX_PACKETS {
            return Err(Full);
        }
        let Some(ip) = ip::Header::parse(packet) else {
            self.add_group(place);
            return Ok(());
        };
        let packet = packet.get(..ip.total_len).unwrap_or(packet);
        let place = Place { len: packet.len() as u32, ..place };
        match classify(self.config, &ip, packet) {
            Class::Other => {
                self.add_group(place);
            }
            Class::Opaque => {
                self.close_between(ip.src, ip.dst);
                self.add_group(place);
            }
            Class::Alone(key) => {
                if let (_, Some(flow)) = self.find(&key) {
                    self.flows[flow].group = NONE;
                }
                self.add_group(place);
            }
            Class::Mergeable(key, candidate) => self.add_mergeable(key, candidate, packet, place),
        }
        Ok(())
    }

    /// Yields every write in the order of first arrivals, then the batch is empty. The first argument is
    /// the virtio-net header, for a super-packet followed by its IP and transport headers; the second what follows
    /// in the same write: one whole packet, or up to [`MAX_PARTS`] payloads.
    pub fn drain(&mut self, mut write: impl FnMut(&[u8], &[Place])) {
        let mut places = ArrayVec::<Place, MAX_PARTS>::new();
        for group in &self.groups {
            places.clear();
            let mut next = group.first;
            while let Some(part) = self.parts.get(usize::from(next)) {
                // A group never has more parts than `MAX_PARTS`; were it so, the rest would be lost, not the process.
                let _ = places.try_push(part.place);
                next = part.next;
            }
            match self.merged.get_mut(usize::from(group.merged)) {
                None => write(&[0; virtio::LEN], &places),
                Some(merged) => {
                    let len = virtio::LEN + merged.headers;
                    // Cannot fail: `bytes` holds all headers that a candidate may have.
                    let finished = merged.finish();
                    debug_assert!(finished.is_some());
                    write(&merged.bytes[..len], &places);
                }
            }
        }
        self.groups.clear();
        self.merged.clear();
        self.parts.clear();
        self.flows.clear();
        self.slots.fill(FREE);
    }

    /// Adds a group of one packet and returns its index.
    fn add_group(&mut self, place: Place) -> u16 {
        let part = self.parts.len() as u16;
        self.parts.push(Part { place, next: NONE });
        self.groups.push(Group { first: part, last: part, merged: NONE });
        self.groups.len() as u16 - 1
    }

    /// The flow's place in the table, and its index if it is there.
    fn find(&self, key: &Key) -> (usize, Option<usize>) {
        let mut slot = key.slot();
        loop {
            match self.slots[slot] {
                FREE => return (slot, None),
                flow if self.flows[usize::from(flow)].key == *key => return (slot, Some(usize::from(flow))),
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    }

    fn close_between(&mut self, src: IpAddr, dst: IpAddr) {
        for flow in self.flows.iter_mut().filter(|flow| flow.key.src == src && flow.key.dst == dst) {
            flow.group = NONE;
        }
    }

    fn add_mergeable(&mut self, key: Key, candidate: Candidate, packet: &[u8], place: Place) {
        let (slot, found) = self.find(&key);
        if let Some(flow) = found
            && self.flows[flow].group != NONE
            && self.flows[flow].continues(&candidate, packet)
        {
            self.append(flow, &candidate, place);
            return;
        }
        let group = self.add_group(place);
        // PSH ends a super-packet; it cannot begin one.
        let group = if candidate.push { NONE } else { group };
        match found {
            Some(flow) if group == NONE => self.flows[flow].group = NONE,
            Some(flow) => self.flows[flow] = Flow::new(key, group, candidate, packet),
            None if group == NONE || self.flows.len() == MAX_FLOWS => {}
            None => {
                self.slots[slot] = self.flows.len() as u8;
                self.flows.push(Flow::new(key, group, candidate, packet));
            }
        }
    }

    /// Merges a packet of which [`Flow::continues`] said so.
    fn append(&mut self, flow: usize, candidate: &Candidate, place: Place) {
        let flow = &mut self.flows[flow];
        let group = &mut self.groups[usize::from(flow.group)];
        let headers = candidate.headers as u32;
        let payload =
            |place: Place| Place { start: place.start + headers, len: place.len - headers, ..place };
        if group.merged == NONE {
            group.merged = self.merged.len() as u16;
            self.merged.push(Merged::new(flow));
            let first = &mut self.parts[usize::from(group.first)].place;
            *first = payload(*first);
        }
        let part = self.parts.len() as u16;
        self.parts.push(Part { place: payload(place), next: NONE });
        self.parts[usize::from(group.last)].next = part;
        group.last = part;
        flow.append(candidate);
        let merged = &mut self.merged[usize::from(group.merged)];
        merged.payload = flow.payload;
        merged.push = candidate.push;
        // A shorter packet can only be the last one.
        if candidate.push || candidate.payload < flow.first.payload {
            flow.group = NONE;
        }
    }
}

impl Flow {
    fn new(key: Key, group: u16, first: Candidate, packet: &[u8]) -> Self {
        let mut headers = [0; MAX_HEADERS];
        for (to, from) in headers.iter_mut().zip(packet.iter().take(first.headers)) {
            *to = *from;
        }
        let next_sequence = first.sequence.wrapping_add(first.payload as u32);
        Self {
            key,
            group,
            headers,
            first,
            next_sequence,
            payload: first.payload,
            count: 1,
            ids: Ids::Unknown,
        }
    }

    /// True if the packet may be appended: everything equal but what segmentation itself would change.
    fn continues(&self, next: &Candidate, packet: &[u8]) -> bool {
        let tcp = self.key.protocol == ip::TCP;
        next.headers == self.first.headers
            && next.payload <= self.first.payload
            && self.first.headers + self.payload + next.payload <= MAX_BYTES
            && self.count < if tcp { MAX_PARTS } else { MAX_UDP_PARTS }
            && (!tcp || next.sequence == self.next_sequence)
            && self.ids_after(next.id).is_some()
            && self.same_headers(next, packet).unwrap_or(false)
    }

    /// The rule of the kernel's `inet_gro_flush`: by one each; or, if nothing may be fragmented, always the same.
    fn ids_after(&self, id: u16) -> Option<Ids> {
        let fixed = id == self.first.id && self.first.dont_fragment;
        let incrementing = id == self.first.id.wrapping_add(self.count as u16);
        match self.ids {
            Ids::Unknown | Ids::Fixed if fixed => Some(Ids::Fixed),
            Ids::Unknown | Ids::Incrementing if incrementing => Some(Ids::Incrementing),
            _ => None,
        }
    }

    /// Compares, beside addresses and ports: TOS, TTL, fragment field, flow label; acknowledgment, data offset,
    /// reserved bits, window, urgent pointer, options. `None` cannot happen for a candidate.
    fn same_headers(&self, next: &Candidate, packet: &[u8]) -> Option<bool> {
        let first = self.headers.get(..self.first.headers)?;
        let packet = packet.get(..next.headers)?;
        let same_ip = if self.key.src.is_ipv4() {
            first[..ip::V4_TOTAL_LEN_AT] == packet[..ip::V4_TOTAL_LEN_AT]
                && first[ip::V4_FRAGMENT_AT..ip::V4_CHECKSUM_AT]
                    == packet[ip::V4_FRAGMENT_AT..ip::V4_CHECKSUM_AT]
        } else {
            first[..ip::V6_PAYLOAD_LEN_AT] == packet[..ip::V6_PAYLOAD_LEN_AT] && first[6..8] == packet[6..8]
        };
        if !same_ip || self.key.protocol == ip::UDP {
            return Some(same_ip);
        }
        let (first, next) = (first.get(next.transport_at..)?, packet.get(next.transport_at..)?);
        Some(
            first[tcp::ACKNOWLEDGMENT_AT..tcp::FLAGS_AT] == next[tcp::ACKNOWLEDGMENT_AT..tcp::FLAGS_AT]
                && first[tcp::FLAGS_AT + 1..tcp::CHECKSUM_AT] == next[tcp::FLAGS_AT + 1..tcp::CHECKSUM_AT]
                && first[tcp::CHECKSUM_AT + 2..] == next[tcp::CHECKSUM_AT + 2..],
        )
    }

    fn append(&mut self, next: &Candidate) {
        self.ids = self.ids_after(next.id).unwrap_or(self.ids);
        self.next_sequence = self.next_sequence.wrapping_add(next.payload as u32);
        self.payload += next.payload;
        self.count += 1;
    }
}

impl Merged {
    fn new(flow: &Flow) -> Self {
        let mut bytes = [0; virtio::LEN + MAX_HEADERS];
        bytes[virtio::LEN..].copy_from_slice(&flow.headers);
        Self {
            bytes,
            key: flow.key,
            transport_at: flow.first.transport_at,
            headers: flow.first.headers,
            size: flow.first.payload,
            payload: flow.payload,
            push: false,
        }
    }

    /// Writes the virtio-net header, all lengths, PSH, the IPv4 header checksum, and the sum of the pseudo-header
    /// where the kernel completes it.
    fn finish(&mut self) -> Option<()> {
        let tcp = self.key.protocol == ip::TCP;
        let (field, gso_type) = match (tcp, self.key.src) {
            (false, _) => (udp::CHECKSUM_AT, virtio::GSO_UDP_L4),
            (true, IpAddr::V4(_)) => (tcp::CHECKSUM_AT, virtio::GSO_TCPV4),
            (true, IpAddr::V6(_)) => (tcp::CHECKSUM_AT, virtio::GSO_TCPV6),
        };
        let virtio = virtio::Header {
            flags: virtio::NEEDS_CSUM,
            gso_type,
            hdr_len: self.headers as u16,
            gso_size: self.size as u16,
            csum_start: self.transport_at as u16,
            csum_offset: field as u16,
        };
        *self.bytes.first_chunk_mut()? = virtio.to_bytes();
        let total = self.headers + self.payload;
        let transport_len = (total - self.transport_at) as u16;
        let headers = self.bytes.get_mut(virtio::LEN..virtio::LEN + self.headers)?;
        let (ip_header, transport) = headers.split_at_mut_checked(self.transport_at)?;
        if self.key.src.is_ipv4() {
            put16(ip_header, ip::V4_TOTAL_LEN_AT, (total as u16).to_be_bytes())?;
            put16(ip_header, ip::V4_CHECKSUM_AT, [0; 2])?;
            let sum = Sum::default().add_bytes(ip_header);
            put16(ip_header, ip::V4_CHECKSUM_AT, sum.checksum())?;
        } else {
            put16(ip_header, ip::V6_PAYLOAD_LEN_AT, transport_len.to_be_bytes())?;
        }
        if tcp {
            *transport.get_mut(tcp::FLAGS_AT)? |= if self.push { tcp::PSH } else { 0 };
        } else {
            put16(transport, udp::LENGTH_AT, transport_len.to_be_bytes())?;
        }
        let pseudo = pseudo_header(self.key.src, self.key.dst, self.key.protocol, u32::from(transport_len));
        put16(transport, field, pseudo.fold())
    }
}

/// `packet` is exactly the IP packet.
#[inline]
fn classify(config: Config, ip: &ip::Header, packet: &[u8]) -> Class {
    if ip.fragment || (ip.version() == ip::Version::V4 && ip.header_len != ip::V4_LEN) || is_extension(ip) {
        return Class::Opaque;
    }
    let wanted = (ip.protocol == ip::TCP && config.tcp) || (ip.protocol == ip::UDP && config.udp);
    let Some(transport) = packet.get(ip.header_len..).filter(|_| wanted) else { return Class::Other };
    let Some(ports) = transport.first_chunk() else { return Class::Other };
    let key = Key { src: ip.src, dst: ip.dst, ports: *ports, protocol: ip.protocol };
    match Candidate::new(ip, packet, transport) {
        Some(candidate) => Class::Mergeable(key, candidate),
        None => Class::Alone(key),
    }
}

/// IPv6 extension headers (RFC 7045, section 4), behind which ports may be hidden. ESP is none: it hides them for
/// ever.
fn is_extension(ip: &ip::Header) -> bool {
    ip.version() == ip::Version::V6 && matches!(ip.protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

impl Candidate {
    fn new(ip: &ip::Header, packet: &[u8], transport: &[u8]) -> Option<Self> {
        let transport_at = ip.header_len;
        let (transport_len, sequence, push) = if ip.protocol == ip::TCP {
            let header = tcp::Header::parse(transport)?;
            if header.flags & !tcp::PSH != tcp::ACK || header.reserved != 0 {
                return None;
            }
            (header.header_len, header.sequence, header.flags & tcp::PSH != 0)
        } else {
            let header = udp::Header::parse(transport)?;
            if header.checksum == 0 || usize::from(header.length) != transport.len() {
                return None;
            }
            (udp::LEN, 0, false)
        };
        let headers = transport_at + transport_len;
        let payload = packet.len().checked_sub(headers).filter(|payload| *payload > 0)?;
        let id = match ip.version() {
            ip::Version::V4 if Sum::default().add_bytes(packet.get(..transport_at)?).is_valid() => {
                be16(packet, ip::V4_ID_AT)?
            }
            ip::Version::V4 => return None,
            ip::Version::V6 => 0,
        };
        let pseudo = pseudo_header(ip.src, ip.dst, ip.protocol, transport.len() as u32);
        pseudo.add_bytes(transport).is_valid().then_some(Self {
            transport_at,
            headers,
            payload,
            sequence,
            push,
            id,
            dont_fragment: ip.dont_fragment,
        })
    }
}

#[cfg(test)]
mod tests;
