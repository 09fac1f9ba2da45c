//! Bodies of the frames by which whoever holds an invite becomes a peer (docs/protocol.md, "Enrolment").

use super::lease::{AddrReply, Settings};
use super::{Bytes, Map, Operation, plain, write};
use crate::types::PublicKey;

/// Length of the proof, bytes.
pub const PROOF_LEN: usize = 32;
/// Longest name of a peer that is believed, bytes.
pub const MAX_NAME: usize = 64;

/// ENROLL: a client's own key, and the proof that it has been invited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enroll {
    /// The key that is to be a peer's.
    pub own: PublicKey,
    /// See `crypto::enrolment`.
    pub proof: [u8; PROOF_LEN],
}

impl Enroll {
    /// Of an ENROLL's body. `None` if a field is missing, of another type or of another length.
    #[must_use]
    pub fn read(body: Map<'_>) -> Option<Self> {
        let own = PublicKey(body.bytes(0)?.try_into().ok()?);
        Some(Self { own, proof: body.bytes(1)?.try_into().ok()? })
    }

    /// The frame.
    #[must_use]
    pub fn write(&self, stream_id: u32) -> Bytes {
        write(Operation::Enroll, 0, stream_id, |encoder| {
            encoder.map(2)?.u8(0)?.bytes(&self.own.0)?.u8(1)?.bytes(&self.proof)?;
            Ok(())
        })
    }
}

/// ENROLLED: all that a new peer must know. Its body is that of an ADDR_REPLY, and more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// Its addresses.
    pub reply: AddrReply,
    /// What every client is told.
    pub settings: Settings,
    /// What the gateway calls it.
    pub name: String,
    /// Persistent keepalive, seconds; 0 for none.
    pub keepalive: u16,
}

impl Enrolled {
    /// Of an ENROLLED's body, the name without control characters. `None` as for an ADDR_REPLY, or if the name is
    /// missing or longer than [`MAX_NAME`].
    #[must_use]
    pub fn read(body: Map<'_>) -> Option<Self> {
        let (reply, settings) = AddrReply::read(body)?;
        let name = body.text(11).filter(|name| name.len() <= MAX_NAME).map(plain)?;
        Some(Self { reply, settings, name, keepalive: u16::try_from(body.number(12)?).ok()? })
    }

    /// The frame.
    #[must_use]
    pub fn write(&self, stream_id: u32) -> Vec<u8> {
        let Self { reply, settings, name, keepalive } = self;
        reply.write_with(settings, stream_id, Operation::Enrolled, 2, |encoder| {
            encoder.u8(11)?.str(name)?.u8(12)?.u16(*keepalive)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Frame, HEADER_LEN, LONGEST};
    use super::*;

    #[test]
    fn enroll_says_a_key_and_its_proof() {
        let enroll = Enroll { own: PublicKey([7; 32]), proof: [9; PROOF_LEN] };
        let bytes = enroll.write(77);
        assert!(bytes.len() <= LONGEST);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.operation, frame.stream_id, frame.is_answer()), (Operation::Enroll, 77, false));
        assert_eq!(Enroll::read(frame.body), Some(enroll));
        // One field is missing, or has a byte too many.
        let short = [&bytes[..HEADER_LEN], &[0xa1], &bytes[HEADER_LEN + 1..HEADER_LEN + 36]].concat();
        let long = [&bytes[..HEADER_LEN + 36], &[0x01, 0x58, 33], &[9; 33]].concat();
        for mut bad in [short, long] {
            let length = (bad.len() - HEADER_LEN) as u32;
            bad[12..16].copy_from_slice(&length.to_le_bytes());
            assert_eq!(Enroll::read(Frame::parse(&bad).unwrap().body), None);
        }
    }

    #[test]
    fn enrolled_says_all_that_a_peer_must_know() {
        let enrolled = Enrolled {
            reply: AddrReply {
                ipv4: Some(([100, 64, 0, 7].into(), 10)),
                usage_id: 3,
                ..AddrReply::default()
            },
            settings: Settings { mtu: 1420, ..Settings::default() },
            name: "phones-3".to_owned(),
            keepalive: 25,
        };
        let bytes = enrolled.write(77);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.operation, frame.stream_id, frame.is_answer()), (Operation::Enrolled, 77, true));
        assert_eq!(Enrolled::read(frame.body), Some(enrolled.clone()));
        let read = |enrolled: &Enrolled| Enrolled::read(Frame::parse(&enrolled.write(1)).unwrap().body);
        let named = |name: &str| Enrolled { name: name.to_owned(), ..enrolled.clone() };
        assert_eq!(read(&named("a\x1b[2Jb\n")), Some(named("a[2Jb")), "a terminal is not to be spoken to");
        assert_eq!(read(&named(&"n".repeat(MAX_NAME + 1))), None);
        assert_eq!(read(&Enrolled { reply: AddrReply::default(), ..enrolled }), None, "no address");
    }
}
