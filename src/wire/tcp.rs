//! TCP headers (RFC 9293 section 3.1).

use super::{be16, be32};

/// Length of a header without options, bytes.
pub const MIN_LEN: usize = 20;
/// Length of a header with all the options it can hold, bytes.
pub const MAX_LEN: usize = 60;

/// Offset of the sequence number.
pub const SEQUENCE_AT: usize = 4;
/// Offset of the acknowledgment number.
pub const ACKNOWLEDGMENT_AT: usize = 8;
/// Offset of the byte of flags.
pub const FLAGS_AT: usize = 13;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 16;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise: the first segment of either side, the only one whose options name a segment size.
pub const SYN: u8 = 0x02;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgment number counts.
pub const ACK: u8 = 0x10;
/// Congestion window reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// The fields that splitting and coalescing look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sequence number of the first data byte.
    pub sequence: u32,
    /// Bytes of the header with its options: 20 to 60, and at most the bytes that were given.
    pub header_len: usize,
    /// The low eight flags: CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from the highest bit on.
    pub flags: u8,
    /// The four bits between data offset and flags, which must be zero (one of them was NS, is AE in AccECN).
    pub reserved: u8,
}

impl Header {
    /// Parses the header at the start of `segment` and checks its data offset. `None` if that is wrong.
    #[must_use]
    #[inline]
    pub fn parse(segment: &[u8]) -> Option<Self> {
        let sequence = be32(segment, SEQUENCE_AT)?;
        let [offset, flags] = be16(segment, FLAGS_AT - 1)?.to_be_bytes();
        let header_len = usize::from(offset >> 4) * 4;
        if header_len < MIN_LEN || header_len > segment.len() {
            return None;
        }
        Some(Self { sequence, header_len, flags, reserved: offset & 0x0f })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_checks_the_data_offset() {
        let mut segment = [0u8; 32];
        segment[4..8].copy_from_slice(&0x0102_0304u32.to_be_bytes());
        segment[13] = ACK | PSH;
        for (offset, expected) in [(0, None), (4, None), (5, Some(20)), (8, Some(32)), (9, None), (15, None)]
        {
            segment[12] = offset << 4 | 1;
            let header = Header::parse(&segment);
            assert_eq!(header.map(|h| h.header_len), expected, "offset {offset}");
            if let Some(h) = header {
                assert_eq!((h.sequence, h.flags, h.reserved), (0x0102_0304, ACK | PSH, 1));
            }
        }
        segment[12] = 5 << 4;
        assert_eq!(Header::parse(&segment[..19]), None);
        assert_eq!(Header::parse(&[]), None);
    }
}
