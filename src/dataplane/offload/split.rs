//! Splitting: a read from the TUN queue (virtio-net header and one packet or super-packet) is cut into IP packets of
//! at most the MTU, written straight to where they are then sealed.
//!
//! 1. [`parse`] checks the virtio-net header against the packet, once, and sums what all segments share.
//! 2. [`SuperPacket::write_segment`] writes one segment to its place in a send buffer, where it is then sealed.
//! 3. The payload is copied once and summed in the same pass.
//!
//! What a network card does with TSO and USO, and the kernel in `tcp_gso_segment` and `__udp_gso_segment`.

use std::net::IpAddr;

use crate::wire::checksum::{Sum, copy_and_sum, pseudo_header};
use crate::wire::{be16, ip, put16, put32, tcp, udp, virtio};

/// Why a read from the TUN queue is not a packet. The device is the kernel's, so none of them is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// No whole virtio-net header.
    #[error("shorter than a virtio-net header")]
    TooShort,
    /// No IP packet, or shorter than it says.
    #[error("no well-formed IP packet")]
    Ip,
    /// A segmentation type that was never asked for, does not fit the packet, or a segment size of zero.
    #[error("segmentation type that does not fit the packet")]
    Segmentation,
    /// The checksum position lies outside the packet or not where the transport header says.
    #[error("checksum position outside the transport header")]
    Checksum,
    /// The transport header is cut short or its length field is wrong.
    #[error("malformed transport header")]
    Transport,
}

/// What is to be done to the packet.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Copy.
    Copy,
    /// Copy, and complete the checksum of everything from `start` on; its field is at `field`.
    Complete { start: usize, field: usize },
    /// Cut.
    Cut(Cut),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

/// How a super-packet is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    transport: Transport,
    /// Offset of the transport header.
    transport_at: usize,
    /// Bytes of all headers: what every segment begins with.
    headers: usize,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// Segments; at least 1.
    count: usize,
    /// IPv4 header without total length, identification and checksum.
    ip_sum: Sum,
    /// Pseudo-header and transport header without all that differs between segments.
    transport_sum: Sum,
}

/// A packet read from the TUN queue, checked.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    packet: &'a [u8],
    ip: ip::Header,
    work: Work,
}

/// Checks a read: the virtio-net header (of which `hdr_len` is ignored) against the packet behind it.
///
/// # Errors
/// [`SplitError`]; the packet is then to be dropped.
pub fn parse(read: &[u8]) -> Result<SuperPacket<'_>, SplitError> {
    let (header, packet) = read.split_first_chunk().ok_or(SplitError::TooShort)?;
    let header = virtio::Header::from_bytes(header);
    let ip = ip::Header::parse(packet).ok_or(SplitError::Ip)?;
    let packet = packet.get(..ip.total_len).ok_or(SplitError::Ip)?;
    let work = match header.gso_type {
        virtio::GSO_NONE if header.flags & virtio::NEEDS_CSUM == 0 => Work::Copy,
        virtio::GSO_NONE => checksum_position(&header, &ip)?,
        _ => Work::Cut(Cut::new(&header, &ip, packet)?),
    };
    Ok(SuperPacket { packet, ip, work })
}

/// As [`parse`], for a queue without virtio-net headers: one complete packet.
///
/// # Errors
/// [`SplitError::Ip`]; the packet is then to be dropped.
pub fn parse_bare(packet: &[u8]) -> Result<SuperPacket<'_>, SplitError> {
    let ip = ip::Header::parse(packet).ok_or(SplitError::Ip)?;
    let packet = packet.get(..ip.total_len).ok_or(SplitError::Ip)?;
    Ok(SuperPacket { packet, ip, work: Work::Copy })
}

fn checksum_position(header: &virtio::Header, ip: &ip::Header) -> Result<Work, SplitError> {
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    if start < ip.header_len || field + 2 > ip.total_len {
        return Err(SplitError::Checksum);
    }
    Ok(Work::Complete { start, field })
}

impl Cut {
    fn new(header: &virtio::Header, ip: &ip::Header, packet: &[u8]) -> Result<Self, SplitError> {
        let protocol = match (header.gso_type, ip.version()) {
            (virtio::GSO_UDP_L4, _) => ip::UDP,
            (kind, ip::Version::V4) if kind & !virtio::GSO_ECN == virtio::GSO_TCPV4 => ip::TCP,
            (kind, ip::Version::V6) if kind & !virtio::GSO_ECN == virtio::GSO_TCPV6 => ip::TCP,
            _ => return Err(SplitError::Segmentation),
        };
        let size = usize::from(header.gso_size);
        if size == 0 || ip.fragment {
            return Err(SplitError::Segmentation);
        }
        let transport_at = transport_offset(header, ip, protocol)?;
        let segment = packet.get(transport_at..).ok_or(SplitError::Transport)?;
        let (transport, transport_len) = if protocol == ip::TCP {
            let tcp = tcp::Header::parse(segment).ok_or(SplitError::Transport)?;
            (Transport::Tcp { sequence: tcp.sequence, flags: tcp.flags }, tcp.header_len)
        } else {
            udp::Header::parse(segment).ok_or(SplitError::Transport)?;
            (Transport::Udp, udp::LEN)
        };
        let headers = transport_at + transport_len;
        let mut cut = Self {
            transport,
            transport_at,
            headers,
            size,
            count: (packet.len() - headers).div_ceil(size).max(1),
            ip_sum: Sum::default(),
            transport_sum: pseudo_header(ip.src, ip.dst, protocol, 0),
        };
        cut.sum_headers(ip, packet).ok_or(SplitError::Transport)?;
        Ok(cut)
    }

    /// Sums the headers with every field that differs between segments taken as zero.
    fn sum_headers(&mut self, ip: &ip::Header, packet: &[u8]) -> Option<()> {
        if ip.version() == ip::Version::V4 {
            let mut bytes = [0; 60];
            let header = bytes.get_mut(..ip.header_len)?;
            header.copy_from_slice(packet.get(..ip.header_len)?);
            put16(header, ip::V4_TOTAL_LEN_AT, [0; 2])?;
            put16(header, ip::V4_ID_AT, [0; 2])?;
            put16(header, ip::V4_CHECKSUM_AT, [0; 2])?;
            self.ip_sum = self.ip_sum.add_bytes(header);
        }
        let mut bytes = [0; tcp::MAX_LEN];
        let header = bytes.get_mut(..self.headers - self.transport_at)?;
        header.copy_from_slice(packet.get(self.transport_at..self.headers)?);
        match self.transport {
            Transport::Tcp { .. } => {
                put32(header, tcp::SEQUENCE_AT, [0; 4])?;
                *header.get_mut(tcp::FLAGS_AT)? = 0;
                put16(header, tcp::CHECKSUM_AT, [0; 2])?;
            }
            Transport::Udp => put32(header, udp::LENGTH_AT, [0; 4])?,
        }
        self.transport_sum = self.transport_sum.add_bytes(header);
        Some(())
    }

    fn payload(&self, total: usize, index: usize) -> (usize, usize) {
        let start = self.headers + index * self.size;
        (start, self.size.min(total.saturating_sub(start)))
    }
}

/// The transport header's offset: behind the IPv4 header, or for IPv6 where `csum_start` says, so that extension
/// headers need not be walked.
fn transport_offset(header: &virtio::Header, ip: &ip::Header, protocol: u8) -> Result<usize, SplitError> {
    if header.flags & virtio::NEEDS_CSUM == 0 {
        return if ip.protocol == protocol { Ok(ip.header_len) } else { Err(SplitError::Transport) };
    }
    let start = usize::from(header.csum_start);
    let field = if protocol == ip::TCP { tcp::CHECKSUM_AT } else { udp::CHECKSUM_AT };
    if usize::from(header.csum_offset) != field {
        return Err(SplitError::Checksum);
    }
    // An extension header lies between exactly if the IPv6 header does not name the transport itself.
    let expected = match ip.version() {
        _ if ip.protocol == protocol => start == ip.header_len,
        ip::Version::V4 => return Err(SplitError::Transport),
        ip::Version::V6 => start > ip.header_len,
    };
    if expected { Ok(start) } else { Err(SplitError::Checksum) }
}

impl SuperPacket<'_> {
    /// The destination address: decides the peer.
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        self.ip.dst
    }

    /// The source address.
    #[must_use]
    pub fn src(&self) -> IpAddr {
        self.ip.src
    }

    /// The IP header's fields, the same for all segments but for the lengths.
    #[must_use]
    pub fn ip(&self) -> &ip::Header {
        &self.ip
    }

    /// The whole packet as it was read, without the virtio-net header.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.packet
    }

    /// How many packets it becomes; at least 1, at most 65,495.
    #[must_use]
    pub fn segments(&self) -> usize {
        match &self.work {
            Work::Cut(cut) => cut.count,
            Work::Copy | Work::Complete { .. } => 1,
        }
    }

    /// Bytes of IP packet `index`, without padding; all but the last are equal, and the last is not longer. 0 beyond
    /// the last.
    #[must_use]
    pub fn segment_len(&self, index: usize) -> usize {
        match &self.work {
            _ if index >= self.segments() => 0,
            Work::Cut(cut) => cut.headers + cut.payload(self.packet.len(), index).1,
            Work::Copy | Work::Complete { .. } => self.packet.len(),
        }
    }

    /// Writes IP packet `index` to the start of `out` and returns its length. `None` if there is no such packet or
    /// `out` is too short.
    #[must_use]
    #[inline]
    pub fn write_segment(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        if index >= self.segments() {
            return None;
        }
        let len = self.segment_len(index);
        let out = out.get_mut(..len)?;
        match &self.work {
            Work::Copy => out.copy_from_slice(self.packet),
            Work::Complete { start, field } => complete(self.packet, *start, *field, out)?,
            Work::Cut(cut) => self.write_cut(cut, index, out)?,
        }
        Some(len)
    }

    /// `out` is exactly the packet's length.
    #[inline]
    fn write_cut(&self, cut: &Cut, index: usize, out: &mut [u8]) -> Option<()> {
        let (start, len) = cut.payload(self.packet.len(), index);
        let payload = self.packet.get(start..start + len)?;
        let total = cut.headers + len;
        // Fits 16 bits, as the super-packet's own length fields did.
        let transport_len = (total - cut.transport_at) as u16;
        let (head, body) = out.split_at_mut_checked(cut.headers)?;
        head.copy_from_slice(self.packet.get(..cut.headers)?);
        let (ip_header, transport) = head.split_at_mut_checked(cut.transport_at)?;
        match self.ip.version() {
            ip::Version::V4 => {
                let total = total as u16;
                let id = be16(ip_header, ip::V4_ID_AT)?.wrapping_add(index as u16);
                put16(ip_header, ip::V4_TOTAL_LEN_AT, total.to_be_bytes())?;
                put16(ip_header, ip::V4_ID_AT, id.to_be_bytes())?;
                let sum = cut.ip_sum.add_u16(total).add_u16(id);
                put16(ip_header, ip::V4_CHECKSUM_AT, sum.checksum())?;
            }
            ip::Version::V6 => {
                put16(ip_header, ip::V6_PAYLOAD_LEN_AT, ((total - ip::V6_LEN) as u16).to_be_bytes())?;
            }
        }
        let sum = copy_and_sum(body, payload, cut.transport_sum.add_u16(transport_len));
        match cut.transport {
            Transport::Tcp { sequence, flags } => {
                let sequence = sequence.wrapping_add((index * cut.size) as u32);
                let flags = segment_flags(flags, index == 0, index + 1 == cut.count);
                put32(transport, tcp::SEQUENCE_AT, sequence.to_be_bytes())?;
                *transport.get_mut(tcp::FLAGS_AT)? = flags;
                // The flags are the low byte of their 16-bit word; the high one is in the shared sum.
                let sum = sum.add_u32(sequence).add_u16(u16::from(flags));
                put16(transport, tcp::CHECKSUM_AT, sum.checksum())
            }
            Transport::Udp => {
                put16(transport, udp::LENGTH_AT, transport_len.to_be_bytes())?;
                put16(transport, udp::CHECKSUM_AT, sum.add_u16(transport_len).checksum_nonzero())
            }
        }
    }
}

/// FIN and PSH belong to the end of the data, CWR to its begin.
fn segment_flags(flags: u8, first: bool, last: bool) -> u8 {
    let keep_end = if last { 0xff } else { !(tcp::FIN | tcp::PSH) };
    let keep_begin = if first { 0xff } else { !tcp::CWR };
    flags & keep_end & keep_begin
}

/// Copies a packet and completes its checksum, of which the field holds the pseudo-header's sum. Zero becomes 0xffff
/// whatever the protocol, as in the kernel's `skb_checksum_help`: only for UDP they differ.
fn complete(packet: &[u8], start: usize, field: usize, out: &mut [u8]) -> Option<()> {
    let (head, body) = out.split_at_mut_checked(start)?;
    head.copy_from_slice(packet.get(..start)?);
    let sum = copy_and_sum(body, packet.get(start..)?, Sum::default());
    put16(out, field, sum.checksum_nonzero())
}

#[cfg(test)]
mod tests;
