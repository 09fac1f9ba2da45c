//! mac1, mac2 and cookies (white paper section 5.4.4 and 5.4.7): what a handshake message must show before any
//! public-key cryptography is spent on it.
//!
//! * mac1 proves that the sender knows our public key. Every handshake message has it.
//! * mac2 proves that the sender receives at the address and port it sends from: it is keyed with a cookie that we
//!   sent there in a cookie reply. It is asked for only under load.
//!
//! [`CookieChecker`] is the side that asks, [`PeerCookie`] the side that is asked. Sizes and ages are those of the
//! kernel's module (`COOKIE_*` in messages.h).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto::hash::{MAC_LEN, hash, mac};
use crate::mutation::holds;
use crate::types::{PublicKey, Secret, Time};
use crate::wire::wireguard::COOKIE_REPLY_LEN;

/// Length of a cookie, bytes.
pub const COOKIE_LEN: usize = 16;
/// A cookie is honoured until the secret it was made with is this old.
pub const SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// A received cookie is used for this much less, since it took time to arrive and takes time to go back.
pub const SECRET_LATENCY: Duration = Duration::from_secs(5);

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// Type and reserved bytes of a cookie reply.
const COOKIE_REPLY_TYPE: [u8; 4] = [3, 0, 0, 0];
const NONCE_LEN: usize = 24;

/// The secret proof that its holder receives at an address.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Cookie([u8; COOKIE_LEN]);

/// The keys of messages *to* the owner of a public key. Not secret, since the public key is not.
#[derive(Clone, Copy)]
struct Keys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl Keys {
    fn of(public: &PublicKey) -> Self {
        Self { mac1: hash(&[LABEL_MAC1, &public.0]), cookie: hash(&[LABEL_COOKIE, &public.0]) }
    }
}

/// A handshake message, cut before its macs.
struct Parts<'a> {
    /// What mac1 covers.
    body: &'a [u8],
    mac1: &'a [u8; MAC_LEN],
    /// What mac2 covers: the body and mac1.
    with_mac1: &'a [u8],
    mac2: &'a [u8; MAC_LEN],
}

impl<'a> Parts<'a> {
    /// `None` if the message is shorter than two macs.
    fn of(message: &'a [u8]) -> Option<Self> {
        let (with_mac1, mac2) = message.split_last_chunk()?;
        let (body, mac1) = with_mac1.split_last_chunk()?;
        Some(Self { body, mac1, with_mac1, mac2 })
    }
}

/// Whether a message carries the mac it should. In constant time.
fn macs_match(expected: &[u8; MAC_LEN], found: &[u8; MAC_LEN]) -> bool {
    expected.ct_eq(found).into()
}

/// Whether something born at `born` has reached the age `limit`.
fn has_expired(born: Time, now: Time, limit: Duration) -> bool {
    now.since(born) >= limit
}

/// The cookie of a source: a MAC of its address and port (big endian) under the current secret.
fn cookie_of(secret: &Secret, source: SocketAddr) -> Cookie {
    let port = source.port().to_be_bytes();
    Cookie(match source.ip() {
        IpAddr::V4(addr) => mac(&secret.0, &[&addr.octets(), &port]),
        IpAddr::V6(addr) => mac(&secret.0, &[&addr.octets(), &port]),
    })
}

/// Checks the macs of messages to us and makes cookie replies. There is one secret at a time; when it has reached
/// [`SECRET_MAX_AGE`], its cookies are void at once and the next reply draws another, as the kernel does.
#[derive(Default)]
pub struct CookieChecker {
    keys: Option<Keys>,
    secret: Option<(Secret, Time)>,
}

impl CookieChecker {
    /// Sets our public key. Without one no mac is right and no reply is made.
    pub fn set_public_key(&mut self, public: Option<&PublicKey>) {
        self.keys = public.map(Keys::of);
    }

    /// Whether a handshake message's mac1 is right. False for a message that is too short to have one.
    #[must_use]
    pub fn check_mac1(&self, message: &[u8]) -> bool {
        let (Some(keys), Some(parts)) = (&self.keys, Parts::of(message)) else { return false };
        holds("mac1", macs_match(&mac(&keys.mac1, &[parts.body]), parts.mac1))
    }

    /// Whether a handshake message's mac2 was made with a cookie that `source` got from us and that is still
    /// honoured.
    #[must_use]
    pub fn check_mac2(&self, message: &[u8], source: SocketAddr, now: Time) -> bool {
        let (Some((secret, born)), Some(parts)) = (&self.secret, Parts::of(message)) else { return false };
        // Who has no cookie says so. To learn it by hashing would cost twice what mac1 costs.
        if *parts.mac2 == [0; MAC_LEN] {
            return false;
        }
        if holds("cookie-age", has_expired(*born, now, SECRET_MAX_AGE)) {
            return false;
        }
        let cookie = cookie_of(secret, source);
        holds("mac2", macs_match(&mac(&cookie.0, &[parts.with_mac1]), parts.mac2))
    }

    /// The cookie reply to a handshake message from `source`, whose mac1 is right. `None` if the message is too short
    /// to be one, or if we have no key.
    pub fn reply(
        &mut self,
        message: &[u8],
        source: SocketAddr,
        now: Time,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Option<[u8; COOKIE_REPLY_LEN]> {
        let keys = self.keys?;
        let parts = Parts::of(message)?;
        let sender = parts.body.get(4..8)?;
        let mut cookie = cookie_of(self.fresh_secret(now, rng), source);
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        // Fails only for a text of many gigabytes.
        let tag = XChaCha20Poly1305::new(&keys.cookie.into())
            .encrypt_inout_detached(&XNonce::from(nonce), parts.mac1, cookie.0.as_mut_slice().into())
            .ok()?;
        let mut reply = [0; COOKIE_REPLY_LEN];
        let fields: [&[u8]; 5] = [&COOKIE_REPLY_TYPE, sender, &nonce, &cookie.0, &tag];
        for (to, from) in reply.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        Some(reply)
    }

    fn fresh_secret(&mut self, now: Time, rng: &mut (impl CryptoRng + ?Sized)) -> &Secret {
        let is_old =
            |(_, born): &(Secret, Time)| holds("cookie-secret-age", has_expired(*born, now, SECRET_MAX_AGE));
        if self.secret.as_ref().is_some_and(is_old) {
            self.secret = None;
        }
        let (secret, _) = self.secret.get_or_insert_with(|| {
            let mut secret = Secret([0; 32]);
            rng.fill_bytes(&mut secret.0);
            (secret, now)
        });
        secret
    }
}

/// Writes the macs of messages to one peer, and keeps the cookie it sent us.
pub struct PeerCookie {
    keys: Keys,
    /// mac1 of the last message sent, until a cookie reply to it was opened: one answer per question.
    asked: Option<[u8; MAC_LEN]>,
    cookie: Option<(Cookie, Time)>,
}

impl PeerCookie {
    /// For messages to the owner of `public`.
    #[must_use]
    pub fn new(public: &PublicKey) -> Self {
        Self { keys: Keys::of(public), asked: None, cookie: None }
    }

    /// Writes mac1 into the last 32 bytes of a message, and mac2 if a cookie is fresh (zeros if not). Remembers mac1
    /// as the question that a cookie reply may answer. Leaves a message shorter than two macs alone.
    pub fn finish(&mut self, message: &mut [u8], now: Time) {
        let Some((with_mac1, mac2)) = message.split_last_chunk_mut() else { return };
        let Some((body, mac1)) = with_mac1.split_last_chunk_mut() else { return };
        *mac1 = mac(&self.keys.mac1, &[body]);
        self.asked = Some(*mac1);
        *mac2 = match self.fresh_cookie(now) {
            Some(cookie) => mac(&cookie.0, &[with_mac1]),
            None => [0; MAC_LEN],
        };
    }

    /// Takes a cookie reply. False, and nothing changes, if it does not answer the last message sent or that was
    /// answered already.
    #[must_use]
    pub fn accept(&mut self, reply: &[u8; COOKIE_REPLY_LEN], now: Time) -> bool {
        let Some(asked) = self.asked else { return false };
        let Some((nonce, sealed, tag)) = sealed_cookie(reply) else { return false };
        let mut cookie = Cookie(sealed);
        let opened = XChaCha20Poly1305::new(&self.keys.cookie.into()).decrypt_inout_detached(
            &nonce,
            &asked,
            cookie.0.as_mut_slice().into(),
            &tag,
        );
        if !holds("cookie-aead", opened.is_ok()) {
            return false;
        }
        self.asked = None;
        self.cookie = Some((cookie, now));
        true
    }

    fn fresh_cookie(&mut self, now: Time) -> Option<&Cookie> {
        const USE_FOR: Duration = SECRET_MAX_AGE.saturating_sub(SECRET_LATENCY);
        let is_old = |(_, since): &(Cookie, Time)| holds("cookie-use", has_expired(*since, now, USE_FOR));
        if self.cookie.as_ref().is_some_and(is_old) {
            self.cookie = None;
        }
        self.cookie.as_ref().map(|(cookie, _)| cookie)
    }
}

/// Our index that a cookie reply is addressed to. `None` if its type or reserved bytes are not those of one.
#[must_use]
pub fn receiver_of(reply: &[u8; COOKIE_REPLY_LEN]) -> Option<u32> {
    let (head, rest) = reply.split_first_chunk::<4>()?;
    let receiver = rest.first_chunk::<4>()?;
    (*head == COOKIE_REPLY_TYPE).then(|| u32::from_le_bytes(*receiver))
}

fn sealed_cookie(reply: &[u8; COOKIE_REPLY_LEN]) -> Option<(XNonce, [u8; COOKIE_LEN], Tag)> {
    let (nonce, sealed) = reply.get(8..)?.split_first_chunk::<NONCE_LEN>()?;
    let (cookie, tag) = sealed.split_first_chunk::<COOKIE_LEN>()?;
    Some((XNonce::from(*nonce), *cookie, Tag::from(*tag.first_chunk::<MAC_LEN>()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::ScriptedRng;

    const PUBLIC: PublicKey = PublicKey([9; 32]);

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn sides() -> (CookieChecker, PeerCookie, ScriptedRng) {
        let mut checker = CookieChecker::default();
        checker.set_public_key(Some(&PUBLIC));
        (checker, PeerCookie::new(&PUBLIC), ScriptedRng::seeded(1))
    }

    fn message(peer: &mut PeerCookie, now: Time) -> [u8; 148] {
        let mut message = [0x55; 148];
        peer.finish(&mut message, now);
        message
    }

    #[test]
    fn macs_are_those_of_the_paper() {
        let (checker, mut peer, _) = sides();
        let sent = message(&mut peer, at(0));
        assert_eq!(sent[116..132], mac(&hash(&[b"mac1----", &PUBLIC.0]), &[&[0x55; 116]]));
        assert_eq!(sent[132..], [0; 16], "no cookie, no mac2");
        assert!(checker.check_mac1(&sent));
    }

    #[test]
    fn mac1_covers_every_byte_before_it() {
        let (checker, mut peer, _) = sides();
        let sent = message(&mut peer, at(0));
        for byte in 0..132 {
            for bit in [1, 0x80] {
                let mut forged = sent;
                forged[byte] ^= bit;
                assert!(!checker.check_mac1(&forged), "byte {byte}");
            }
        }
        let mut other = sent;
        other[140] ^= 1;
        assert!(checker.check_mac1(&other), "mac2 lies behind it");
    }

    #[test]
    fn without_a_key_nothing_is_right() {
        let (mut checker, mut peer, mut rng) = sides();
        let sent = message(&mut peer, at(0));
        checker.set_public_key(None);
        assert!(!checker.check_mac1(&sent));
        assert!(checker.reply(&sent, source("198.18.0.1:1"), at(0), &mut rng).is_none());
        assert!(!checker.check_mac2(&sent, source("198.18.0.1:1"), at(0)));
    }

    #[test]
    fn short_messages_are_refused() {
        let (mut checker, mut peer, mut rng) = sides();
        for len in 0..40 {
            let mut short = vec![0; len];
            peer.finish(&mut short, at(0));
            assert_eq!(checker.check_mac1(&short), len >= 32, "{len}");
            assert!(!checker.check_mac2(&short, source("198.18.0.1:1"), at(0)));
            let reply = checker.reply(&short, source("198.18.0.1:1"), at(0), &mut rng);
            assert_eq!(reply.is_some(), len == 40, "{len}");
        }
    }

    #[test]
    fn a_cookie_is_for_one_address_and_one_port() {
        for (mine, others) in [
            ("198.18.0.1:5000", ["198.18.0.2:5000", "198.18.0.1:5001", "[::ffff:198.18.0.1]:5000"]),
            ("[2001:db8::1]:5000", ["[2001:db8::2]:5000", "[2001:db8::1]:5001", "198.18.0.1:5000"]),
        ] {
            let (mut checker, mut peer, mut rng) = sides();
            let first = message(&mut peer, at(0));
            assert!(!checker.check_mac2(&first, source(mine), at(0)));
            let reply = checker.reply(&first, source(mine), at(0), &mut rng).unwrap();
            assert_eq!(reply[..8], [3, 0, 0, 0, 0x55, 0x55, 0x55, 0x55]);
            assert_eq!(receiver_of(&reply), Some(0x5555_5555));
            assert!(peer.accept(&reply, at(0)));
            let second = message(&mut peer, at(1));
            assert!(checker.check_mac1(&second));
            assert!(checker.check_mac2(&second, source(mine), at(1)));
            for other in others {
                assert!(!checker.check_mac2(&second, source(other), at(1)), "{other}");
            }
            for byte in 0..148 {
                let mut forged = second;
                forged[byte] ^= 4;
                assert!(!checker.check_mac2(&forged, source(mine), at(1)), "byte {byte}");
            }
        }
    }

    #[test]
    fn a_cookie_ends_with_its_secret_and_its_use_five_seconds_earlier() {
        let (mut checker, mut peer, mut rng) = sides();
        let from = source("198.18.0.1:5000");
        let first = message(&mut peer, at(0));
        let reply = checker.reply(&first, from, at(1000), &mut rng).unwrap();
        assert!(peer.accept(&reply, at(1000)));
        let last_use = Time::from_nanos(at(1115).as_nanos() - 1);
        let sent = message(&mut peer, last_use);
        assert_ne!(sent[132..], [0; 16]);
        assert!(checker.check_mac2(&sent, from, Time::from_nanos(at(1120).as_nanos() - 1)));
        assert!(!checker.check_mac2(&sent, from, at(1120)));
        assert_eq!(message(&mut peer, at(1115))[132..], [0; 16]);
        assert_eq!(message(&mut peer, last_use)[132..], [0; 16], "an expired cookie is erased");
    }

    #[test]
    fn a_new_secret_voids_the_cookies_of_the_old_one() {
        let (mut checker, mut peer, mut rng) = sides();
        let from = source("198.18.0.1:5000");
        let first = message(&mut peer, at(0));
        let reply = checker.reply(&first, from, at(0), &mut rng).unwrap();
        let again = checker.reply(&first, from, at(119), &mut rng).unwrap();
        assert!(peer.accept(&again, at(119)), "a cookie late in its secret's life is used for as long");
        let sent = message(&mut peer, at(119));
        assert!(checker.check_mac2(&sent, from, at(119)), "the same secret until it is 120 s old");
        let other = checker.reply(&sent, source("198.18.0.9:1"), at(120), &mut rng).unwrap();
        assert_ne!(other[32..], reply[32..]);
        assert!(!checker.check_mac2(&sent, from, at(119)), "even for a clock that went back");
    }

    #[test]
    fn cookies_of_one_secret_live_side_by_side() {
        let (mut checker, mut one, mut rng) = sides();
        let mut two = PeerCookie::new(&PUBLIC);
        let (here, there) = (source("198.18.0.1:5000"), source("198.18.0.2:5000"));
        let asked = message(&mut one, at(0));
        let reply = checker.reply(&asked, here, at(0), &mut rng).unwrap();
        assert!(one.accept(&reply, at(0)));
        let asked = message(&mut two, at(119));
        let reply = checker.reply(&asked, there, at(119), &mut rng).unwrap();
        assert!(two.accept(&reply, at(119)));
        assert!(checker.check_mac2(&message(&mut two, at(119)), there, at(119)));
        let sent = message(&mut one, at(1));
        assert!(checker.check_mac2(&sent, here, at(119)), "the other's reply drew no new secret");

        let asked = message(&mut two, at(120));
        let _ = checker.reply(&asked, there, at(120), &mut rng).unwrap();
        assert!(!checker.check_mac2(&sent, here, at(119)), "but at its age it is drawn anew");
    }

    #[test]
    fn a_reply_answers_the_last_message_once() {
        let (mut checker, mut peer, mut rng) = sides();
        let from = source("198.18.0.1:5000");
        let first = message(&mut peer, at(0));
        let reply = checker.reply(&first, from, at(0), &mut rng).unwrap();
        let mut untouched = PeerCookie::new(&PUBLIC);
        assert!(!untouched.accept(&reply, at(0)), "nothing was asked");

        for byte in 8..64 {
            let mut forged = reply;
            forged[byte] ^= 0x10;
            assert!(!peer.accept(&forged, at(0)), "byte {byte}");
        }
        assert!(peer.accept(&reply, at(0)), "forgeries do not use up the question");
        assert!(!peer.accept(&reply, at(0)), "one answer per question");

        let mut longer = [0x56; 148];
        peer.finish(&mut longer, at(0));
        assert!(!peer.accept(&reply, at(0)), "it answers an older message");
    }

    #[test]
    fn a_reply_needs_its_type() {
        let mut reply = [0; 64];
        for byte in 0..4 {
            reply[..4].copy_from_slice(&COOKIE_REPLY_TYPE);
            assert_eq!(receiver_of(&reply), Some(0));
            reply[byte] ^= 2;
            assert_eq!(receiver_of(&reply), None);
        }
    }

    #[test]
    fn a_jumping_clock_is_harmless() {
        let (mut checker, mut peer, mut rng) = sides();
        let from = source("198.18.0.1:5000");
        for nanos in [u64::MAX, 0, u64::MAX / 2, 1] {
            let now = Time::from_nanos(nanos);
            let sent = message(&mut peer, now);
            let reply = checker.reply(&sent, from, now, &mut rng).unwrap();
            assert!(peer.accept(&reply, now));
            let sent = message(&mut peer, now);
            assert!(checker.check_mac2(&sent, from, now));
        }
    }
}
