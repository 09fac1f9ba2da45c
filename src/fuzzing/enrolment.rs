//! What a client with an invite is told.

use std::time::Duration;

use super::protocol::{ENDPOINT, NOW, OUR_KEY, PEER, Reproducible, THEIR_KEY};
use crate::client::enrolment::{Enrolment, Outcome};
use crate::crypto::aead;
use crate::crypto::enrolment::use_key;
use crate::crypto::x25519::PrivateKey;
use crate::noise::ToOwner;
use crate::noise::handshaker::Handshaker;
use crate::noise::index::IndexKey;
use crate::noise::peer_session::PeerSession;
use crate::noise::timers::Limits;
use crate::noise::timestamp::Tai64n;
use crate::types::{PublicKey, Time, WorkerId};
use crate::wire::frame::Frame;
use crate::wire::invite::Invite;
use crate::wire::wireguard::{TRANSPORT_HEADER_LEN, TransportHeader, padded_len};

/// Who knows the secret of the invite, and answers every handshake.
struct Gateway {
    handshaker: Handshaker,
    session: Option<PeerSession>,
    rng: Reproducible,
    /// Of the last ENROLL.
    stream_id: Option<u32>,
}

impl Gateway {
    fn new() -> Self {
        let mut handshaker = Handshaker::new(1, IndexKey::new([1, 2, 3]));
        let _ = handshaker.set_private_key(Some(OUR_KEY));
        let added = handshaker.add_peer(PEER, WorkerId(0), *use_key(&THEIR_KEY, 0).public(), None);
        assert!(added.is_ok());
        Self { handshaker, session: None, rng: Reproducible(5), stream_id: None }
    }

    /// Takes what the client sends; answers an initiation.
    fn hear(&mut self, message: &[u8], now: Time) -> Option<Vec<u8>> {
        if let Ok(initiation) = message.try_into() {
            let taken = self.handshaker.consume_initiation(initiation, ENDPOINT, now, &mut self.rng);
            let (_, ToOwner::Install { keypair, response, .. }) = taken.ok()? else { return None };
            let session = self.session.insert(PeerSession::temporary(PEER, &Limits::PAPER, 0));
            session.install(&keypair, ENDPOINT, now);
            return response.map(Vec::from);
        }
        let TransportHeader { receiver, counter, suite } = TransportHeader::parse(message)?;
        let session = self.session.as_mut()?;
        let name = session.keypair(receiver)?;
        let mut text = message.get(TRANSPORT_HEADER_LEN..)?.to_vec();
        let length = aead::open(session.opening_key(name, suite)?, counter, &mut text)?;
        session.received(name, ENDPOINT, true, message.len() as u64, now);
        self.stream_id = Some(Frame::parse(text.get(..length)?).ok()?.stream_id);
        None
    }
}

/// A client with an invite that is told anything, by its gateway or by a stranger: it is let in or refused only by what
/// its gateway said, whole, about its own ENROLL; and it never sends twice at once. Input: records of what is done (1
/// byte; its lower two bits: 0 a datagram, 1 a frame of the gateway's, 2 one about this client's ENROLL, 3 that one
/// with a bit flipped on its way; above them how much later it is, tenths of seconds), a length (2 bytes), and bytes.
pub fn enrolment(data: &[u8]) {
    let _ = enrol(data);
}

fn enrol(mut data: &[u8]) -> Option<Outcome> {
    let mut rng = Reproducible(4);
    let invite = Invite {
        id: "a".to_owned(),
        gateway: *PrivateKey::new(&OUR_KEY).public(),
        secret: THEIR_KEY,
        uses: 1,
        places: vec!["a:1".to_owned(), "b:2".to_owned()],
    };
    let client = Enrolment::new(invite, PublicKey([7; 32]), NOW, &mut rng);
    let (mut client, mut gateway, mut now) = (client.ok()?, Gateway::new(), NOW);
    while let Some((&[done, low, high], rest)) = data.split_first_chunk::<3>() {
        let (bytes, rest) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
        data = rest;
        now = now + Duration::from_millis(100 * u64::from(done >> 2));
        let stamp = Tai64n::from_unix(now.since(Time::default()) + Duration::from_secs(1_790_000_000));
        // The ENROLL follows a handshake at once.
        for _ in 0..2 {
            let Some(message) = client.next_datagram(now, stamp, &mut rng) else { break };
            assert!(client.deadline() > now, "again at once");
            if let Some(mut response) = gateway.hear(&message, now) {
                assert_eq!(client.handle(&mut response, ENDPOINT.remote, now), None);
            }
        }
        let mut bytes = bytes.to_vec();
        if done & 2 != 0
            && let (Some(place), Some(stream_id)) = (bytes.get_mut(8..12), gateway.stream_id)
        {
            place.copy_from_slice(&stream_id.to_le_bytes());
        }
        let sealed =
            gateway.session.as_mut().filter(|_| done & 3 != 0).and_then(|to| to.message(&bytes, now));
        let mut datagram = sealed.unwrap_or_else(|| bytes.clone());
        if done & 3 == 3
            && let Some(byte) = datagram.last_mut()
        {
            *byte ^= 1;
        }
        let outcome = client.handle(&mut datagram, ENDPOINT.remote, now);
        if outcome.is_some() {
            assert!(done & 3 == 1 || done & 3 == 2, "not of the gateway");
            // As it was said: padded.
            bytes.resize(padded_len(bytes.len(), 0), 0);
            assert_eq!(Frame::parse(&bytes).ok().map(|frame| frame.stream_id), gateway.stream_id);
            return outcome;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::wire::frame::enrolment::Enrolled;
    use crate::wire::frame::lease::AddrReply;
    use crate::wire::frame::{Code, problem_saying};

    /// The seeds do what their names say. `RINGWAY_WRITE_SEEDS=1` writes them anew.
    #[test]
    fn the_seeds_of_the_enrolment_let_in_and_refuse() {
        let reply = AddrReply { ipv4: Some(([100, 64, 0, 7].into(), 10)), ..AddrReply::default() };
        let enrolled = Enrolled { reply, name: "phones-1".to_owned(), keepalive: 25, ..Enrolled::default() };
        let refused = problem_saying(0, Code::NotAllowed, "this invite is spent", None, None);
        let record = |done: u8, bytes: &[u8]| {
            [&[done][..], &u16::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
        };
        let (hello, enrolled) = (record(0, &[]), enrolled.write(0));
        let seeds = [
            ("let-in", [hello.clone(), record(2, &enrolled)].concat()),
            ("refused", [hello.clone(), record(2, &refused)].concat()),
            (
                "late",
                [hello.clone(), record(0xfc, &[4; 40]), record(3, &enrolled), record(2, &enrolled)].concat(),
            ),
            ("of-another", [hello, record(1, &enrolled)].concat()),
        ];
        for (name, seed) in seeds {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/enrolment").join(name);
            if std::env::var_os("RINGWAY_WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &seed).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), seed, "{name}");
            let outcome = enrol(&seed);
            let right = match name {
                "let-in" | "late" => matches!(&outcome, Some(Outcome::Enrolled(of)) if of.name == "phones-1"),
                "refused" => {
                    matches!(&outcome, Some(Outcome::Refused { why, .. }) if why == "this invite is spent")
                }
                _ => outcome.is_none(),
            };
            assert!(right, "{name}: {outcome:?}");
        }
    }
}
