//! Transport keypairs: one session's keys with their counters, and the three of a peer in rotation.
//!
//! The rotation is that of the Linux module (`add_new_keypair`, `wg_noise_received_with_keypair`): an initiator's
//! keypair is current at once; a responder's waits as `next` until the peer has proven, by a transport message in it,
//! that it holds the keys; `previous` still opens what was under way.
//!
//! A keypair is made with its session and stands by itself, in memory that is kept for keys (`sys::guarded`), but for
//! what the library of the cipher keeps of a key and erases itself: a peer without a session costs three pointers. It
//! never moves when its standing changes, and is wiped where it lies.

use arrayvec::ArrayVec;

use crate::crypto::aead::Key;
use crate::crypto::hash::hkdf_sha256;
use crate::mutation::holds;
use crate::sys::guarded::{Guardable, Guarded, Pool};
use crate::types::{Secret, Suite, Time};

use super::agreement::Agreement;
use super::replay::Window;
use super::timers::Limits;
use super::{NewKeypair, Role};

/// Places for keypairs: previous, current and next.
pub const PLACES: usize = 3;

/// Local indices of keypairs that are gone.
pub type Released = ArrayVec<u32, PLACES>;

/// The keys of one session and what was used of them. Neither `Clone` nor `Copy`: two owners of one send counter
/// would use a nonce twice. In this order a packet touches three or four cache lines of it.
#[derive(Debug)]
#[repr(C)]
pub struct Keypair {
    /// Seals what we send.
    pub send: Key,
    /// Opens what we receive.
    pub recv: Key,
    /// Our receiver index.
    pub local_index: u32,
    /// The peer's receiver index.
    pub remote_index: u32,
    /// When it was installed.
    pub born: Time,
    /// The next counter to send with.
    pub send_counter: u64,
    /// In which suite we seal.
    pub agreement: Agreement,
    /// Who initiated.
    pub role: Role,
    /// The peer has sent a control frame in it.
    pub speaks: bool,
    /// The peer has said in it that it goes.
    pub ended: bool,
    /// The counters received.
    pub window: Window,
    /// The keys for AES-256-GCM, once it is spoken of.
    aes: Aes,
}

static POOL: Pool<Keypair> = Pool::new();

impl Guardable for Keypair {
    fn pool() -> &'static Pool<Self> {
        &POOL
    }
}

/// The keys of AES-256-GCM, one per direction, or what they are derived from.
#[derive(Debug)]
enum Aes {
    Third(Secret),
    /// By themselves: most sessions never have them.
    Keys(Box<AesKeys>),
}

#[derive(Debug)]
struct AesKeys {
    send: Key,
    recv: Key,
}

impl Aes {
    /// HKDF-SHA-256(no salt, third, "ringway v1 aes-256-gcm" and the direction); "i" is the handshake's initiator.
    fn derive(&mut self, role: Role) {
        let Self::Third(third) = self else { return };
        let key =
            |way: &[u8]| Key::of(Suite::Aes256Gcm, &hkdf_sha256(third, &[b"ringway v1 aes-256-gcm", way]));
        let (initiator, responder) = (key(b"i2r"), key(b"r2i"));
        // In place: what they are derived from is wiped.
        let (send, recv) = match role {
            Role::Initiator => (initiator, responder),
            Role::Responder => (responder, initiator),
        };
        *self = Self::Keys(Box::new(AesKeys { send, recv }));
    }
}

impl Keypair {
    fn new(new: &NewKeypair, born: Time) -> Self {
        let NewKeypair { send, recv, third, local_index, remote_index, role, .. } = new;
        Self {
            send: Key::new(send),
            recv: Key::new(recv),
            aes: Aes::Third(third.clone()),
            agreement: Agreement::default(),
            speaks: false,
            ended: false,
            local_index: *local_index,
            remote_index: *remote_index,
            role: *role,
            born,
            send_counter: 0,
            window: Window::default(),
        }
    }

    /// Takes `n` consecutive counters for sending and returns the first. `None`, and nothing taken, if the last of
    /// them would reach Reject-After-Messages.
    #[inline]
    pub fn reserve(&mut self, n: u64, limits: &Limits) -> Option<u64> {
        let first = self.send_counter;
        let fits = |after: &u64| holds("send-limit", *after <= limits.reject_after_messages);
        let after = first.checked_add(n).filter(fits)?;
        self.send_counter = after;
        Some(first)
    }

    /// Makes the keys of AES-256-GCM, unless they are there.
    pub fn derive_aes(&mut self) {
        self.aes.derive(self.role);
    }

    /// Seals so many blocks of what we send in `suite`, if that may be.
    #[inline]
    #[must_use]
    pub fn sealing_key(&mut self, suite: Suite, blocks: u64, limits: &Limits) -> Option<&Key> {
        match (suite, &self.aes) {
            (Suite::ChaCha20Poly1305, _) => Some(&self.send),
            (Suite::Aes256Gcm, Aes::Keys(keys)) if self.agreement.take(blocks, limits) => Some(&keys.send),
            (Suite::Aes256Gcm, _) => None,
        }
    }

    /// Opens what we receive in `suite`, if we have said that we do.
    #[inline]
    #[must_use]
    pub fn opening_key(&self, suite: Suite) -> Option<&Key> {
        match (suite, &self.aes) {
            (Suite::ChaCha20Poly1305, _) => Some(&self.recv),
            (Suite::Aes256Gcm, Aes::Keys(keys)) if self.agreement.opens(suite) => Some(&keys.recv),
            (Suite::Aes256Gcm, _) => None,
        }
    }

    /// True from Reject-After-Time on: it neither seals nor opens any more.
    #[inline]
    #[must_use]
    pub fn is_expired(&self, now: Time, limits: &Limits) -> bool {
        holds("keypair-age", now.since(self.born) >= limits.reject_after_time)
    }

    /// True if sending calls for a new handshake: after Rekey-After-Messages, when the key of AES-256-GCM has sealed
    /// enough, and for the initiator, who alone watches the age lest both begin at once, from Rekey-After-Time on.
    #[inline]
    #[must_use]
    pub fn is_stale_for_sending(&self, now: Time, limits: &Limits) -> bool {
        self.send_counter > limits.rekey_after_messages
            || self.agreement.is_stale(limits)
            || (self.role == Role::Initiator && now.since(self.born) >= limits.rekey_after_time)
    }

    /// True if receiving calls for a new handshake: the initiator's last chance to renew while the keypair still
    /// carries an answer (165 s by the paper's constants).
    #[inline]
    #[must_use]
    pub fn is_stale_for_receiving(&self, now: Time, limits: &Limits) -> bool {
        self.role == Role::Initiator && now.since(self.born) >= limits.rekey_on_receipt_after()
    }
}

/// Names a keypair of a peer until it is gone; a name that outlives its keypair finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeypairRef {
    place: u8,
    local_index: u32,
}

impl KeypairRef {
    /// Our receiver index of it.
    #[must_use]
    pub fn local_index(self) -> u32 {
        self.local_index
    }
}

/// A peer's keypairs. Each fills one place; the standings say which.
#[derive(Debug, Default)]
pub struct Keypairs {
    places: [Option<Guarded<Keypair>>; PLACES],
    previous: Option<u8>,
    current: Option<u8>,
    next: Option<u8>,
}

impl Keypairs {
    /// The keypair that a transport message with this receiver index is for.
    #[inline]
    #[must_use]
    pub fn find(&self, local_index: u32) -> Option<KeypairRef> {
        // The current one nearly always.
        [self.current, self.next, self.previous].into_iter().flatten().find_map(|place| {
            self.at(Some(place))
                .filter(|keypair| holds("receiver-index", keypair.local_index == local_index))?;
            Some(KeypairRef { place, local_index })
        })
    }

    /// The named keypair, unless it is gone.
    #[inline]
    #[must_use]
    pub fn named(&self, name: KeypairRef) -> Option<&Keypair> {
        self.at(Some(name.place)).filter(|keypair| keypair.local_index == name.local_index)
    }

    /// The named keypair, unless it is gone.
    #[inline]
    pub fn named_mut(&mut self, name: KeypairRef) -> Option<&mut Keypair> {
        self.at_mut(Some(name.place)).filter(|keypair| keypair.local_index == name.local_index)
    }

    /// The named keypair, unless it is gone or a newer one has been confirmed.
    pub fn newest_mut(&mut self, name: KeypairRef) -> Option<&mut Keypair> {
        let is_old = self.previous == Some(name.place);
        self.named_mut(name).filter(|_| !holds("newest-keypair", is_old))
    }

    /// The one that sends.
    #[inline]
    #[must_use]
    pub fn current(&self) -> Option<&Keypair> {
        self.at(self.current)
    }

    /// The one that sends.
    #[inline]
    pub fn current_mut(&mut self) -> Option<&mut Keypair> {
        self.at_mut(self.current)
    }

    /// Installs a new keypair by its role and returns the indices of those that made room for it.
    pub fn install(&mut self, new: &NewKeypair, now: Time) -> Released {
        let mut released = Released::new();
        self.drop_at(self.previous, &mut released);
        self.previous = None;
        let initiator = new.role == Role::Initiator;
        if initiator && self.next.is_some() {
            // Both sides began at once. The peer may already send in the unconfirmed keypair: it stays for receiving.
            self.drop_at(self.current, &mut released);
            self.previous = self.next.take();
        } else if initiator {
            self.previous = self.current;
        } else {
            self.drop_at(self.next, &mut released);
        }
        // The new keypair's own standing was freed or handed on above, so of three places one is empty.
        let place = (0u8..).zip(&self.places).find_map(|(place, held)| held.is_none().then_some(place));
        if let Some(held) = place.and_then(|place| self.places.get_mut(usize::from(place))) {
            *held = Some(Guarded::new(Keypair::new(new, now)));
        }
        *(if initiator { &mut self.current } else { &mut self.next }) = place;
        released
    }

    /// Makes the named keypair current if it is `next`: the peer has proven that it holds the keys. Returns the
    /// index that made room, if any; `None` if it was not `next`.
    #[inline]
    pub fn confirm(&mut self, name: KeypairRef) -> Option<Released> {
        if self.next != Some(name.place) || self.named(name).is_none() {
            return None;
        }
        let mut released = Released::new();
        self.drop_at(self.previous, &mut released);
        self.previous = self.current;
        self.current = self.next.take();
        Some(released)
    }

    /// Drops those that satisfy `gone` and returns their indices.
    pub fn drop_if(&mut self, gone: impl Fn(&Keypair) -> bool) -> Released {
        let mut released = Released::new();
        for standing in [self.previous, self.current, self.next] {
            if self.at(standing).is_some_and(&gone) {
                self.drop_at(standing, &mut released);
            }
        }
        for standing in [&mut self.previous, &mut self.current, &mut self.next] {
            let held =
                standing.and_then(|place| self.places.get(usize::from(place))).is_some_and(Option::is_some);
            *standing = standing.filter(|_| held);
        }
        released
    }

    fn at(&self, standing: Option<u8>) -> Option<&Keypair> {
        self.places.get(usize::from(standing?))?.as_deref()
    }

    fn at_mut(&mut self, standing: Option<u8>) -> Option<&mut Keypair> {
        self.places.get_mut(usize::from(standing?))?.as_deref_mut()
    }

    /// Empties a place, which wipes the keypair where it lies.
    fn drop_at(&mut self, standing: Option<u8>, released: &mut Released) {
        let place = standing.and_then(|place| self.places.get_mut(usize::from(place)));
        if let Some(held @ Some(_)) = place {
            released.extend(held.as_ref().map(|keypair| keypair.local_index));
            *held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    use crate::crypto::aead;
    use crate::wire::wireguard::{TRANSPORT_HEADER_LEN, TransportHeader};

    const LIMITS: Limits = Limits::PAPER;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    fn new(local_index: u32, role: Role) -> NewKeypair {
        let byte = local_index as u8;
        NewKeypair {
            send: Secret([byte; 32]),
            recv: Secret([byte ^ 0xff; 32]),
            third: Secret([byte ^ 0x0f; 32]),
            transcript: Secret([0; 32]),
            local_index,
            remote_index: local_index + 1000,
            role,
        }
    }

    #[test]
    fn what_every_packet_needs_stands_in_the_first_four_cache_lines() {
        use std::mem::offset_of;

        assert_eq!(offset_of!(Keypair, recv), 64, "either key has a line of its own");
        let hot = [
            offset_of!(Keypair, local_index),
            offset_of!(Keypair, remote_index),
            offset_of!(Keypair, born),
            offset_of!(Keypair, send_counter),
            offset_of!(Keypair, agreement) + size_of::<Agreement>() - 1,
            offset_of!(Keypair, role),
            offset_of!(Keypair, ended),
            offset_of!(Keypair, window),
        ];
        assert!(hot.iter().all(|offset| *offset < 4 * 64), "{hot:?}");
        assert!(size_of::<Keypair>() <= 20 * 64, "{}", size_of::<Keypair>());
    }

    /// Keys, nonce and message as docs/protocol.md has them, made there by another implementation.
    #[test]
    fn aes_keys_and_messages_are_the_documented_ones() {
        let text = include_str!("../../docs/protocol.md");
        let value = |name: &str| -> Vec<u8> {
            let line =
                text.lines().find_map(|line| line.strip_prefix(&format!("- `{name}`: `"))).expect(name);
            let digits = line.bytes().filter_map(|byte| char::from(byte).to_digit(16));
            let digits: Vec<u8> = digits.map(|digit| digit as u8).collect();
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
        };
        let third = Secret(value("T3").try_into().unwrap());
        for role in [Role::Initiator, Role::Responder] {
            let new = NewKeypair { third: third.clone(), ..new(7, role) };
            let mut keypair = Keypair::new(&new, at(0));
            assert!(keypair.opening_key(Suite::Aes256Gcm).is_none(), "not declared");
            keypair.derive_aes();
            let Aes::Keys(keys) = &keypair.aes else { panic!("{:?}", keypair.aes) };
            let [send, recv] = match role {
                Role::Initiator => ["key i2r", "key r2i"],
                Role::Responder => ["key r2i", "key i2r"],
            };
            assert_eq!(
                [&keys.send.bytes()[..], &keys.recv.bytes()],
                [&value(send)[..], &value(recv)],
                "{role:?}"
            );
        }
        let secret = Secret(value("key i2r").try_into().unwrap());
        let (counter, plain) = (0x0102_0304_0506_0708_u64, value("text"));
        assert_eq!(value("nonce of counter 0x0102030405060708")[4..], counter.to_le_bytes());
        let header = TransportHeader { receiver: 0x0a0b_0c0d, counter, suite: Suite::Aes256Gcm };
        let mut message = header.to_bytes().to_vec();
        message.extend(&plain);
        message.resize(message.len() + aead::TAG_LEN, 0);
        let span = aead::Span { start: TRANSPORT_HEADER_LEN, len: plain.len() };
        let key = Key::of(Suite::Aes256Gcm, &secret);
        assert!(aead::seal_run(&key, counter, &mut message, &[span]));
        let expected: Vec<u8> = value("message i2r, receiver 0x0a0b0c0d");
        assert_eq!(message, expected);
    }

    /// Local indices of previous, current and next.
    fn standing(pairs: &Keypairs) -> [Option<u32>; 3] {
        [pairs.previous, pairs.current, pairs.next].map(|place| pairs.at(place).map(|pair| pair.local_index))
    }

    fn installed_name(pairs: &mut Keypairs, index: u32, role: Role) -> KeypairRef {
        installed(pairs, index, role);
        pairs.find(index).unwrap()
    }

    fn installed(pairs: &mut Keypairs, index: u32, role: Role) -> Vec<u32> {
        pairs.install(&new(index, role), at(0)).to_vec()
    }

    #[test]
    fn an_initiators_keypair_is_current_at_once() {
        let mut pairs = Keypairs::default();
        assert_eq!(installed(&mut pairs, 1, Role::Initiator), [] as [u32; 0]);
        assert_eq!(standing(&pairs), [None, Some(1), None]);
        assert_eq!(installed(&mut pairs, 2, Role::Initiator), [] as [u32; 0]);
        assert_eq!(standing(&pairs), [Some(1), Some(2), None]);
        assert_eq!(installed(&mut pairs, 3, Role::Initiator), [1]);
        assert_eq!(standing(&pairs), [Some(2), Some(3), None]);
    }

    #[test]
    fn a_responders_keypair_waits_for_its_confirmation() {
        let mut pairs = Keypairs::default();
        installed(&mut pairs, 1, Role::Initiator);
        installed(&mut pairs, 2, Role::Initiator);
        assert_eq!(installed(&mut pairs, 3, Role::Responder), [1], "previous makes room");
        assert_eq!(standing(&pairs), [None, Some(2), Some(3)]);
        assert_eq!(installed(&mut pairs, 4, Role::Responder), [3], "an unconfirmed one is replaced");
        assert_eq!(standing(&pairs), [None, Some(2), Some(4)]);
        assert_eq!(pairs.current().map(|pair| pair.local_index), Some(2), "next never sends");

        let current = pairs.find(2).unwrap();
        assert_eq!(pairs.confirm(current), None);
        let next = pairs.find(4).unwrap();
        assert_eq!(pairs.confirm(next).map(|released| released.to_vec()), Some(vec![]));
        assert_eq!(standing(&pairs), [Some(2), Some(4), None]);
        assert_eq!(pairs.confirm(next), None, "only once");
        assert!(pairs.newest_mut(next).is_some());
        assert!(pairs.named(current).is_some() && pairs.newest_mut(current).is_none(), "an older one");
        let unconfirmed = installed_name(&mut pairs, 5, Role::Responder);
        assert!(pairs.newest_mut(unconfirmed).is_some(), "what arrives in it confirms it");
    }

    #[test]
    fn an_unconfirmed_one_becomes_previous_when_both_began() {
        let mut pairs = Keypairs::default();
        installed(&mut pairs, 1, Role::Initiator);
        installed(&mut pairs, 2, Role::Responder);
        assert_eq!(installed(&mut pairs, 3, Role::Initiator), [1]);
        assert_eq!(standing(&pairs), [Some(2), Some(3), None]);
    }

    #[test]
    fn a_name_survives_rotation_and_dies_with_its_keypair() {
        let mut pairs = Keypairs::default();
        installed(&mut pairs, 1, Role::Initiator);
        let one = pairs.find(1).unwrap();
        installed(&mut pairs, 2, Role::Initiator);
        assert_eq!(pairs.named(one).map(|pair| pair.local_index), Some(1));
        installed(&mut pairs, 3, Role::Initiator);
        installed(&mut pairs, 4, Role::Initiator);
        assert!(pairs.named(one).is_none() && pairs.named_mut(one).is_none());
        assert_eq!(pairs.find(1), None);
        assert_eq!(pairs.confirm(one), None);
    }

    #[test]
    fn an_index_finds_its_keypair_and_no_other() {
        let mut pairs = Keypairs::default();
        installed(&mut pairs, 1, Role::Initiator);
        installed(&mut pairs, 2, Role::Initiator);
        installed(&mut pairs, 3, Role::Responder);
        installed(&mut pairs, 4, Role::Responder);
        for index in [2, 4] {
            let found = pairs.find(index).and_then(|name| pairs.named(name));
            assert_eq!(found.map(|pair| pair.local_index), Some(index));
        }
        for index in [0, 1, 3, 5, 1002] {
            assert_eq!(pairs.find(index), None, "{index}: never, no more, or the peer's own");
        }
    }

    #[test]
    fn dropping_reports_each_index_once() {
        let mut pairs = Keypairs::default();
        pairs.install(&new(1, Role::Initiator), at(0));
        pairs.install(&new(2, Role::Initiator), at(100));
        assert_eq!(pairs.drop_if(|pair| pair.is_expired(at(180), &LIMITS)).to_vec(), [1]);
        assert_eq!(standing(&pairs), [None, Some(2), None]);
        pairs.install(&new(3, Role::Responder), at(180));
        assert_eq!(pairs.drop_if(|_| true).to_vec(), [2, 3]);
        assert_eq!(standing(&pairs), [None; 3]);
        assert!(pairs.drop_if(|_| true).is_empty());
    }

    #[test]
    fn reserving_stops_before_reject_after_messages() {
        let mut pair = Keypair::new(&new(1, Role::Initiator), at(0));
        assert_eq!(pair.reserve(3, &LIMITS), Some(0));
        assert_eq!(pair.reserve(1, &LIMITS), Some(3));
        assert_eq!(pair.reserve(u64::MAX, &LIMITS), None);
        assert_eq!(pair.send_counter, 4, "a refusal takes nothing");
        pair.send_counter = LIMITS.reject_after_messages - 2;
        assert_eq!(pair.reserve(3, &LIMITS), None);
        assert_eq!(pair.reserve(2, &LIMITS), Some(LIMITS.reject_after_messages - 2));
        assert_eq!(pair.reserve(1, &LIMITS), None);
        assert!(pair.window.check(LIMITS.reject_after_messages - 1).is_ok(), "the peer accepts our last");
    }

    #[test]
    fn ages_and_message_counts_are_exact() {
        let mut pair = Keypair::new(&new(1, Role::Initiator), at(1000));
        for (age, sending, receiving, expired) in [
            (119, false, false, false),
            (120, true, false, false),
            (164, true, false, false),
            (165, true, true, false),
            (179, true, true, false),
            (180, true, true, true),
        ] {
            let now = at(1000 + age);
            assert_eq!(pair.is_stale_for_sending(now, &LIMITS), sending, "{age}");
            assert_eq!(pair.is_stale_for_receiving(now, &LIMITS), receiving, "{age}");
            assert_eq!(pair.is_expired(now, &LIMITS), expired, "{age}");
        }
        assert!(!pair.is_expired(at(0), &LIMITS), "a clock that jumped back");

        pair.role = Role::Responder;
        assert!(
            !pair.is_stale_for_sending(at(1179), &LIMITS) && !pair.is_stale_for_receiving(at(1179), &LIMITS)
        );
        assert!(pair.is_expired(at(1180), &LIMITS));
        pair.send_counter = LIMITS.rekey_after_messages;
        assert!(!pair.is_stale_for_sending(at(1000), &LIMITS));
        pair.send_counter += 1;
        assert!(pair.is_stale_for_sending(at(1000), &LIMITS));
    }
}
