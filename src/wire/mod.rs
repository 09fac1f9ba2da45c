//! What bytes on a wire mean: IP, TCP, UDP, virtio-net and WireGuard headers, control frames, and the Internet
//! checksum.
//!
//! Pure functions over slices, without I/O and without state. Every length is checked once, where a header is
//! parsed; what comes out is typed and can be relied on. Writers take fixed-size arrays or check the length.

pub mod checksum;
pub mod echo;
pub mod frame;
pub mod invite;
pub mod ip;
pub mod tcp;
pub mod udp;
pub mod virtio;
pub mod wireguard;

/// Reads a big-endian 16-bit field; `None` beyond the end.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_be_bytes(*field))
}

/// Reads a big-endian 32-bit field; `None` beyond the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

/// Overwrites a 2-byte field; `None` (nothing is written) beyond the end.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: [u8; 2]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}

/// Overwrites a 4-byte field; `None` (nothing is written) beyond the end.
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: [u8; 4]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}
