//! `struct virtio_net_hdr` (linux/virtio_net.h; virtio 1.3 section 5.1.6), the ten bytes before each packet of a TUN
//! device with IFF_VNET_HDR. Little endian here: the device's default on every machine this runs on, and set
//! where it is not (TUNSETVNETLE).

/// Length of the header, bytes.
pub const LEN: usize = 10;

/// `flags`: the checksum at `csum_start + csum_offset` holds the pseudo-header's sum only and is to be completed.
pub const NEEDS_CSUM: u8 = 1;

/// `gso_type`: one packet.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: equal UDP datagrams (USO), either IP version.
pub const GSO_UDP_L4: u8 = 5;
/// Bit of `gso_type`: TCP with CWR set (RFC 3168).
pub const GSO_ECN: u8 = 0x80;

/// The header. Nothing in it is checked against the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`NEEDS_CSUM`], and bits that are ignored.
    pub flags: u8,
    /// One of the `GSO_` numbers, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers of the packet; a hint only.
    pub hdr_len: u16,
    /// Bytes of transport payload per segment.
    pub gso_size: u16,
    /// Where summing begins: the transport header's offset from the start of the IP packet.
    pub csum_start: u16,
    /// The checksum field's offset from `csum_start`.
    pub csum_offset: u16,
}

impl Header {
    /// Decodes.
    #[must_use]
    #[inline]
    pub const fn from_bytes(b: &[u8; LEN]) -> Self {
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
        }
    }

    /// Encodes.
    #[must_use]
    #[inline]
    pub const fn to_bytes(self) -> [u8; LEN] {
        let (h, g) = (self.hdr_len.to_le_bytes(), self.gso_size.to_le_bytes());
        let (s, o) = (self.csum_start.to_le_bytes(), self.csum_offset.to_le_bytes());
        [self.flags, self.gso_type, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_is_little_endian() {
        let bytes = [1, 0x81, 0x34, 0x12, 0xb4, 0x05, 20, 0, 16, 0];
        let header = Header::from_bytes(&bytes);
        assert_eq!(
            header,
            Header {
                flags: NEEDS_CSUM,
                gso_type: GSO_TCPV4 | GSO_ECN,
                hdr_len: 0x1234,
                gso_size: 1460,
                csum_start: 20,
                csum_offset: 16
            }
        );
        assert_eq!(header.to_bytes(), bytes);
    }
}
