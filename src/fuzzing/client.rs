//! What a client reads: profiles, answers to its pings, and what somebody says a gateway's addresses are.

use simple_dns::TYPE;

use crate::config::profile::Profile;
use crate::net::lookup::{self, Answer, MAX_ADDRESSES};
use crate::wire::echo as icmp;

/// The question that [`name_answer`] is about.
const NAME: &str = "vpn.example.org";
const ID: u16 = 0x1234;

/// Reads a profile: every peer of it has a place that is one, and what is wrong is on a line that is there. Input: the
/// file.
pub fn profile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Profile::parse(&text) {
        Ok(profile) => {
            assert!(profile.private_key.is_some() && !profile.peers.is_empty());
            let places = profile.peers.iter().flat_map(|peer| &peer.endpoints);
            assert!(places.map(|place| place.rsplit_once(':')).all(|place| place.is_some()));
        }
        Err((line, wrong)) => assert!(line <= text.lines().count() && !wrong.is_empty()),
    }
}

/// Reads what a raw socket received: all that is told of it stands in the packet. Input: 0 for IPv6, the packet.
pub fn echo(data: &[u8]) {
    let Some((&is_v4, packet)) = data.split_first() else { return };
    let Some(heard) = icmp::heard(is_v4 != 0, packet) else { return };
    let about = [heard.id.to_be_bytes(), heard.sequence.to_be_bytes()].concat();
    assert!(packet.windows(about.len()).any(|window| window == about));
}

/// Reads the answer to a question for a gateway's addresses: they are of the family that was asked for, and not too
/// many. Input: 0 for IPv6, the message.
pub fn name_answer(data: &[u8]) {
    let Some((&is_v4, message)) = data.split_first() else { return };
    let kind = if is_v4 == 0 { TYPE::AAAA } else { TYPE::A };
    match lookup::read(message, NAME, kind, ID) {
        Some(Answer::Addresses(found)) => {
            assert!(
                found.len() <= MAX_ADDRESSES && found.iter().all(|address| address.is_ipv4() == (is_v4 != 0))
            );
        }
        Some(Answer::Refused(why)) => assert!(!why.is_empty()),
        Some(Answer::Truncated) => assert!(message.len() >= 12, "a header"),
        None => {}
    }
}
