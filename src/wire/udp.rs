//! UDP headers (RFC 768).

use super::be16;

/// Length of a header, bytes.
pub const LEN: usize = 8;
/// Offset of the length.
pub const LENGTH_AT: usize = 4;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 6;

/// The fields that coalescing looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of header and data, as the header says; not checked against the packet.
    pub length: u16,
    /// The checksum in host order; 0 is "none".
    pub checksum: u16,
}

impl Header {
    /// Parses the header at the start of `datagram`; `None` if it is shorter than eight bytes.
    #[must_use]
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        Some(Self { length: be16(datagram, LENGTH_AT)?, checksum: be16(datagram, CHECKSUM_AT)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let bytes = [0, 53, 0x80, 0, 0, 12, 0xab, 0xcd, 1, 2, 3, 4];
        assert_eq!(Header::parse(&bytes), Some(Header { length: 12, checksum: 0xabcd }));
        assert_eq!(Header::parse(&bytes[..7]), None);
    }
}
