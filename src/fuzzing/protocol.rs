//! What comes from strangers on the outer sockets.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};

use crate::client::leasing::{Leasing, Outcome};
use crate::noise::handshaker::{HandshakeError, Handshaker};
use crate::noise::index::IndexKey;
use crate::noise::timestamp::Tai64n;
use crate::noise::{Role, ToOwner};
use crate::types::{Endpoint, PeerId, PublicKey, Secret, Suite, Time, WorkerId};
use crate::wire::frame::enrolment::{Enroll, Enrolled};
use crate::wire::frame::lease::{self, AddrReply, AddrRequest};
use crate::wire::frame::{self, Frame, Hello, Problem};
use crate::wire::invite::Invite;
use crate::wire::wireguard::{INITIATION_LEN, Kind, RESPONSE_LEN, TRANSPORT_OVERHEAD, TransportHeader};

/// Reads a datagram as the outer sockets do. What it says of itself is what its bytes say.
pub fn datagram(data: &[u8]) {
    let kind = Kind::of(data);
    let header = TransportHeader::parse(data);
    assert_eq!(header.is_some(), kind == Some(Kind::Transport));
    if let Some(header) = header {
        assert!(data.len() >= TRANSPORT_OVERHEAD);
        assert!(data.starts_with(&header.to_bytes()));
    }
    if let Some(kind) = kind {
        let word = [Kind::Initiation, Kind::Response, Kind::CookieReply, Kind::Transport];
        assert_eq!(word.get(usize::from(data[0]) - 1), Some(&kind));
        let marked = kind == Kind::Transport && data[1] == Suite::Aes256Gcm.mark();
        assert_eq!(data[1..4], [u8::from(marked), 0, 0]);
    }
}

/// Reads a decrypted payload as a control frame. What is taken has a body of the strict kind: as many values as it
/// declares, each found by its own key; and what is said in answer to it can be read.
pub fn frame(data: &[u8]) {
    let Ok(frame) = Frame::parse(data) else { return };
    assert!(frame::is_frame(data));
    let found = (0..64).filter(|key| frame.body.has(*key)).count();
    let length = u32::from_le_bytes([data[12], data[13], data[14], data[15]]) as usize;
    let declared = minicbor::Decoder::new(&data[frame::HEADER_LEN..][..length]).map();
    assert_eq!(declared.ok().flatten(), Some(found as u64), "a key stands twice or is not found");
    for key in 0..64 {
        let kinds = [
            frame.body.number(key).is_some(),
            frame.body.bytes(key).is_some(),
            frame.body.text(key).is_some(),
        ];
        assert!(kinds.iter().filter(|is| **is).count() <= usize::from(frame.body.has(key)));
    }
    let hello = Hello::read(frame.body);
    if let Some(hello) = hello {
        let again = hello.write(true);
        assert_eq!(Frame::parse(&again).ok().and_then(|frame| Hello::read(frame.body)), Some(hello));
    }
    if let Some(data) = frame::ping_data(&frame) {
        let pong = frame::pong(frame.stream_id, data, 0);
        let read = Frame::parse(&pong).map(|pong| (frame::ping_data(&pong), pong.stream_id));
        assert_eq!(read, Ok((Some(data), frame.stream_id)));
    }
    if let Some(request) = AddrRequest::read(frame.body) {
        let again = request.write(frame.usage_id, frame.stream_id);
        let read = Frame::parse(&again).ok().and_then(|frame| AddrRequest::read(frame.body));
        assert_eq!(read, Some(request));
    }
    if let Some((reply, settings)) = AddrReply::read(frame.body) {
        let again = reply.write(&settings, frame.stream_id);
        let read = Frame::parse(&again).ok().and_then(|frame| AddrReply::read(frame.body));
        assert_eq!(read, Some((reply, settings)));
    }
    if let Some(enroll) = Enroll::read(frame.body) {
        let again = enroll.write(frame.stream_id);
        assert_eq!(Frame::parse(&again).ok().and_then(|frame| Enroll::read(frame.body)), Some(enroll));
    }
    if let Some(enrolled) = Enrolled::read(frame.body) {
        assert!(!enrolled.name.contains(char::is_control));
        let again = enrolled.write(frame.stream_id);
        assert_eq!(Frame::parse(&again).ok().and_then(|frame| Enrolled::read(frame.body)), Some(enrolled));
    }
    if let Some(packet) = lease::packet_in(data) {
        assert_eq!(data.get(packet), frame.body.bytes(0));
    }
    assert!(
        Problem::read(frame.body).is_none_or(|p| p.retry_after.is_none_or(|s| s <= frame::LONGEST_DELAY))
    );
}

/// Reads any text as an invite. What is taken is written as a URI that says the same; what is not is not shown.
pub fn invite(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(invite) = Invite::parse(text) else { return };
    let uri = invite.to_uri();
    let again = Invite::parse(&uri).map(|again| again.to_uri());
    assert_eq!(again.as_deref().map(String::as_str), Ok(uri.as_str()));
}

/// A client that is told anything by its gateway: it never asks twice within a second but by its own will, has what
/// the last reply said until that ends, and knows when it has something to do. Input: records of a length (2 bytes),
/// the time since the last one (2 bytes, tenths of seconds), and a frame whose `stream_id` is made the one that is
/// waited for.
pub fn leasing(mut data: &[u8]) {
    let mut client = Leasing::new(AddrRequest::default(), 7);
    let (mut now, mut asked) = (NOW, 0);
    client.start(now);
    while let Some((&[low, high, tenths, more], rest)) = data.split_first_chunk::<4>() {
        let (bytes, rest) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
        data = rest;
        now = now + std::time::Duration::from_millis(100 * u64::from(u16::from_le_bytes([tenths, more])));
        let had = client.offer().is_some();
        let ended = client.handle_timeout(now);
        assert_eq!(ended.is_some(), had && client.offer().is_none());
        if let Some(request) = client.next_frame(now) {
            assert_eq!(client.next_frame(now), None);
            asked = Frame::parse(&request).map_or(asked, |frame| frame.stream_id);
        }
        let mut bytes = bytes.to_vec();
        if let Some(place) = bytes.get_mut(8..12) {
            place.copy_from_slice(&asked.to_le_bytes());
        }
        let Ok(frame) = Frame::parse(&bytes) else { continue };
        match client.handle(&frame, now) {
            Some(Outcome::Given(offer)) => assert_eq!(client.offer(), Some(&*offer)),
            Some(Outcome::Renewed) => assert!(client.offer().is_some()),
            _ => {}
        }
        let soon = now + std::time::Duration::from_secs(frame::LONGEST_DELAY * 2);
        assert!(client.deadline().is_none_or(|deadline| deadline >= now));
        assert!(client.offer().is_some() || client.deadline().is_none_or(|deadline| deadline < soon));
    }
}

pub(super) const PEER: PeerId = PeerId { slot: 0, generation: 1 };
/// Ours, and the other side's: known to the seeds.
pub(super) const OUR_KEY: Secret = Secret([0x0b; 32]);
pub(super) const THEIR_KEY: Secret = Secret([0x0a; 32]);
pub(super) const NOW: Time = Time::from_nanos(1_000_000_000);
pub(super) const ENDPOINT: Endpoint = Endpoint::new(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1)),
    51820,
));

/// Reproducible "random" numbers (SplitMix64): the seeds hold what was made with them.
pub(super) struct Reproducible(pub(super) u64);

impl TryRng for Reproducible {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|number| (number >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(mixed ^ (mixed >> 31))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.try_next_u64()?.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Reproducible {}

/// A side of the tunnel that knows the other, and the initiation it has sent.
fn side(own: Secret, other: Secret, seed: u64) -> (Handshaker, Option<[u8; INITIATION_LEN]>) {
    let public = |key: &Secret| -> PublicKey { *crate::crypto::x25519::PrivateKey::new(key).public() };
    let mut handshaker = Handshaker::new(1, IndexKey::new([1, 2, 3]));
    let _ = handshaker.set_private_key(Some(own));
    let added = handshaker.add_peer(PEER, WorkerId(0), public(&other), Some(Secret([0x0c; 32])));
    assert!(added.is_ok());
    let stamp = Tai64n::from_unix(std::time::Duration::from_secs(1_000_000));
    let sent = handshaker.begin(PEER, stamp, NOW, &mut Reproducible(seed));
    (handshaker, sent.ok())
}

/// Gives a handshake message to a gateway that has an initiation of its own on its way. Whatever it says, a message
/// is taken at most once, and what is taken yields a keypair and the right answer, or a cookie. Input: the message;
/// its length says which.
pub fn handshake(data: &[u8]) {
    let (mut gateway, sent) = side(OUR_KEY, THEIR_KEY, 2);
    assert!(sent.is_some());
    let mut rng = Reproducible(3);
    let live = gateway.indices_in_use();
    let _ = gateway.expects_answer(data);
    if gateway.check_mac1(data) {
        let reply = gateway.cookie_reply(data, ENDPOINT.remote, NOW, &mut rng);
        assert_eq!(reply.as_ref().map(|reply| Kind::of(reply)), Some(Some(Kind::CookieReply)));
    }
    let _ = gateway.check_mac2(data, ENDPOINT.remote, NOW);
    if let Ok(initiation) = data.try_into() {
        if let Ok((owner, message)) = gateway.consume_initiation(initiation, ENDPOINT, NOW, &mut rng) {
            let response = check_install(owner, &message, Role::Responder);
            assert_eq!(response.map(|response| Kind::of(&response)), Some(Some(Kind::Response)));
            assert_eq!(gateway.indices_in_use(), live + 1);
            let again = gateway.consume_initiation(initiation, ENDPOINT, NOW, &mut rng);
            assert!(matches!(again, Err(HandshakeError::OldTimestamp)), "taken twice");
        } else {
            assert_eq!(gateway.indices_in_use(), live, "a refused message costs no index");
        }
    } else if let Ok(response) = data.try_into() {
        if let Ok((owner, message)) = gateway.consume_response(response, ENDPOINT, NOW) {
            assert_eq!(check_install(owner, &message, Role::Initiator), None);
            assert!(gateway.consume_response(response, ENDPOINT, NOW).is_err(), "taken twice");
        }
        assert_eq!(gateway.indices_in_use(), live);
    } else if let Ok(cookie) = data.try_into() {
        if gateway.consume_cookie_reply(cookie, NOW).is_ok() {
            assert!(gateway.consume_cookie_reply(cookie, NOW).is_err(), "taken twice");
        }
        assert_eq!(gateway.indices_in_use(), live);
    }
}

/// What is installed is for our one peer; returns the response that goes with it.
fn check_install(owner: WorkerId, message: &ToOwner, role: Role) -> Option<[u8; RESPONSE_LEN]> {
    assert_eq!(owner, WorkerId(0));
    let ToOwner::Install { peer, keypair, endpoint, response } = message else { return None };
    assert_eq!((*peer, *endpoint, keypair.role), (PEER, ENDPOINT, role));
    assert_ne!(keypair.send.0, keypair.recv.0);
    *response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The seeds that authenticate are what the other side says today. `RINGWAY_WRITE_SEEDS=1` writes them anew.
    #[test]
    fn the_seeds_of_the_handshake_authenticate() {
        let (mut gateway, ours) = side(OUR_KEY, THEIR_KEY, 2);
        let (mut client, initiation) = side(THEIR_KEY, OUR_KEY, 7);
        let (ours, initiation) = (ours.unwrap(), initiation.unwrap());
        let mut rng = Reproducible(8);
        let cookie = client.cookie_reply(&ours, ENDPOINT.remote, NOW, &mut rng).unwrap();
        let (_, answer) = client.consume_initiation(&ours, ENDPOINT, NOW, &mut rng).unwrap();
        let response = check_install(WorkerId(0), &answer, Role::Responder).unwrap();
        let seeds: [(&str, &[u8]); 3] =
            [("initiation", &initiation), ("response", &response), ("cookie-reply", &cookie)];
        for (name, message) in seeds {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/handshake").join(name);
            if std::env::var_os("RINGWAY_WRITE_SEEDS").is_some() {
                std::fs::write(&path, message).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), message, "{name}");
        }
        gateway.consume_cookie_reply(&cookie, NOW).unwrap();
        gateway.consume_initiation(&initiation, ENDPOINT, NOW, &mut rng).unwrap();
        gateway.consume_response(&response, ENDPOINT, NOW).unwrap();
    }
}
