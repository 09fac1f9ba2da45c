//! What the clients send through their tunnels: IPv4 UDP datagrams that carry who sent them, their number and the
//! time, and zeros up to their length.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::types::Time;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{ip, udp};

/// Least payload: what a probe says.
pub const LEAST: usize = 20;
/// Bytes before the payload: IPv4 and UDP headers.
pub const HEADERS: usize = ip::V4_LEN + udp::LEN;
/// The port that clients send from inside the tunnel.
pub const PORT: u16 = 9;

/// What a datagram says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The number of the client.
    pub client: u32,
    /// Counted by the client from 0.
    pub sequence: u64,
    /// When it was sent.
    pub sent: Time,
}

impl Probe {
    /// Fills `packet` with a whole inner packet. False if it is too short for that, or longer than IPv4 permits.
    #[must_use]
    pub fn write(&self, packet: &mut [u8], from: Ipv4Addr, to: SocketAddrV4) -> bool {
        let Ok(total) = u16::try_from(packet.len()) else { return false };
        let Some((headers, payload)) = packet.split_first_chunk_mut::<HEADERS>() else { return false };
        let Some((said, filler)) = payload.split_first_chunk_mut::<LEAST>() else { return false };
        filler.fill(0);
        said[..4].copy_from_slice(&self.client.to_be_bytes());
        said[4..12].copy_from_slice(&self.sequence.to_be_bytes());
        said[12..].copy_from_slice(&self.sent.as_nanos().to_be_bytes());

        let length = total - ip::V4_LEN as u16;
        headers.fill(0);
        headers[0] = 0x45;
        headers[2..4].copy_from_slice(&total.to_be_bytes());
        headers[6] = 0x40; // may not be fragmented
        headers[8] = 64; // hops
        headers[9] = ip::UDP;
        headers[12..16].copy_from_slice(&from.octets());
        headers[16..20].copy_from_slice(&to.ip().octets());
        let sum = Sum::default().add_bytes(&headers[..20]).checksum();
        headers[ip::V4_CHECKSUM_AT..ip::V4_CHECKSUM_AT + 2].copy_from_slice(&sum);
        headers[20..22].copy_from_slice(&PORT.to_be_bytes());
        headers[22..24].copy_from_slice(&to.port().to_be_bytes());
        headers[24..26].copy_from_slice(&length.to_be_bytes());
        // Zeros add nothing.
        let sum = pseudo_header(from.into(), (*to.ip()).into(), ip::UDP, u32::from(length));
        let sum = sum.add_bytes(&headers[20..]).add_bytes(said).checksum_nonzero();
        headers[26..].copy_from_slice(&sum);
        true
    }

    /// Reads what a UDP payload says; `None` if it is too short to be one of ours.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (client, rest) = payload.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let sent = Time::from_nanos(u64::from_be_bytes(*rest.first_chunk()?));
        let (client, sequence) = (u32::from_be_bytes(*client), u64::from_be_bytes(*sequence));
        Some(Self { client, sequence, sent })
    }

    /// Reads an inner packet; `None` if it is no UDP, or too short.
    #[must_use]
    pub fn parse_packet(packet: &[u8]) -> Option<Self> {
        let header = ip::Header::parse(packet).filter(|header| header.protocol == ip::UDP)?;
        Self::parse(packet.get(header.header_len + udp::LEN..header.total_len)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 7);
    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 1), 7);

    #[test]
    fn a_packet_is_whole_and_says_what_it_was_given() {
        let probe = Probe { client: 7, sequence: u64::MAX - 1, sent: Time::from_nanos(123_456_789_012) };
        for len in [48, 49, 100, 1400] {
            let mut packet = vec![0xaa; len];
            assert!(probe.write(&mut packet, FROM, TO));
            let header = ip::Header::parse(&packet).unwrap();
            assert_eq!((header.total_len, header.src, header.dst), (len, FROM.into(), (*TO.ip()).into()));
            assert!(Sum::default().add_bytes(&packet[..20]).is_valid());
            let pseudo = pseudo_header(FROM.into(), (*TO.ip()).into(), ip::UDP, len as u32 - 20);
            assert!(pseudo.add_bytes(&packet[20..]).is_valid());
            // Padding is no part of it.
            packet.extend([0; 5]);
            assert_eq!(Probe::parse_packet(&packet), Some(probe));
            packet[9] = 6;
            assert_eq!(Probe::parse_packet(&packet), None);
        }
        for len in [0, 20, 47, 65_536] {
            assert!(!probe.write(&mut vec![0; len], FROM, TO), "{len}");
        }
        assert_eq!(Probe::parse(&[0; 19]), None);
    }
}
