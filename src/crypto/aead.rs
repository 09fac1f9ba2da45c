//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it: nonce = four zero bytes and the 64-bit little-endian counter,
//! no associated data on transport messages. AES-256-GCM with the same nonce is the other [`Suite`].
//!
//! The interface is a *run*: packets of one keypair, with consecutive counters to seal and any counters to open. Where
//! the processor can, runs of ChaCha20-Poly1305 go through `lanes`, several packets side by side, and short packets
//! that are alone through its `brief`; what is left, AES-256-GCM, and everything on other processors, goes through
//! AWS-LC, one packet after the other.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::OnceLock;

use arrayvec::ArrayVec;
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use subtle::Choice;

use super::lanes::{self, Packet, Tags, Width, brief};
use super::x25519;
use crate::mutation::holds;
use crate::types::{Secret, Suite};

mod null;

/// False in a build with the feature `null-cipher`, for measurements only: transport messages of WireGuard's suite are
/// then neither sealed nor authenticated. Handshakes are the same in either.
pub const ENCRYPTS: bool = !cfg!(feature = "null-cipher");

/// Bytes that authentication adds behind a ciphertext.
pub const TAG_LEN: usize = 16;

/// Packets that a run to be opened has at most: as many as there are lanes.
pub const RUN: usize = lanes::MAX_LANES;

/// Where one packet lies in a buffer: `start..start + len` is the text, the tag follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte of the text.
    pub start: usize,
    /// Length of the text without its tag.
    pub len: usize,
}

/// True if this processor has AES in vectors, so that AES-256-GCM is the faster suite.
#[must_use]
pub fn has_vector_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected;
        is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("vaes")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// What seals and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// Runs in up to 16 lanes (AVX-512 IFMA), short packets that are alone in little code, others by AWS-LC.
    Lanes,
    /// AWS-LC alone, because this processor has nothing better.
    Scalar,
    /// AWS-LC alone, because it was asked for.
    ScalarByChoice,
    /// Nothing: a build without [`ENCRYPTS`].
    Nothing,
    /// AWS-LC alone, because lanes and AWS-LC did not agree at start: a fault of the processor or of Ringway.
    ScalarAfterFailure,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lanes => "16 lanes (AVX-512 IFMA)",
            Self::Scalar => "scalar (no AVX-512 IFMA here)",
            Self::ScalarByChoice => "scalar (by choice)",
            Self::Nothing => "NOTHING: this build does not encrypt",
            Self::ScalarAfterFailure => "scalar (the self-test of the lanes failed)",
        })
    }
}

static IMPLEMENTATION: OnceLock<Implementation> = OnceLock::new();

/// Decides for this process, before anything is sealed or opened, and says for what; later calls change nothing. Unless
/// `scalar` is asked for, the lanes must first agree with AWS-LC in a self-test of about two milliseconds. X25519
/// follows the same decision.
pub fn choose(scalar: bool) -> Implementation {
    *IMPLEMENTATION.get_or_init(|| match scalar {
        _ if !ENCRYPTS => Implementation::Nothing,
        true => Implementation::ScalarByChoice,
        false if !lanes::supported() => Implementation::Scalar,
        false if self_test() && brief_self_test() && x25519::lanes_agree() => Implementation::Lanes,
        false => Implementation::ScalarAfterFailure,
    })
}

/// What seals and opens in this process.
pub fn implementation() -> Implementation {
    IMPLEMENTATION.get().copied().unwrap_or_else(|| choose(false))
}

fn is_by_lanes(suite: Suite) -> bool {
    suite == Suite::ChaCha20Poly1305 && implementation() == Implementation::Lanes
}

/// How many of the packets with these lengths come next, and by what.
fn plan(suite: Suite, lens: &[usize]) -> (usize, Option<Width>) {
    let width = lanes::plan(lens).filter(|_| is_by_lanes(suite));
    (width.map_or(1, |width| width.lanes().min(lens.len())), width)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// A key for sealing and opening, prepared once for all runs: the library's state is on its heap, and no packet shall
/// allocate. Erased on drop, also there.
pub struct Key {
    suite: Suite,
    cipher: LessSafeKey,
    secret: Secret,
}

impl Key {
    /// Prepares `secret` for WireGuard's suite.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self::of(Suite::ChaCha20Poly1305, secret)
    }

    /// Prepares `secret` for `suite`: two suites never share one.
    #[must_use]
    pub fn of(suite: Suite, secret: &Secret) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        let Ok(key) = UnboundKey::new(algorithm, &secret.0) else {
            // 32 bytes are always a key: the library had no memory, which ends a process elsewhere, too.
            std::process::abort()
        };
        Self { suite, cipher: LessSafeKey::new(key), secret: secret.clone() }
    }

    /// Seals in place, with the nonce zero and so once per key, what is authentic only after `said`. `None` for a text
    /// of many gigabytes.
    pub fn seal_said(&self, said: &[u8], text: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let tag = self.cipher.seal_in_place_separate_tag(nonce(0), Aad::from(said), text).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Opens in place what [`Self::seal_said`] sealed. False if it is not authentic; the text is then of no use.
    #[must_use]
    pub fn open_said(&self, said: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        self.cipher.open_in_place_separate_tag(nonce(0), Aad::from(said), tag, text).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Takes ranges out of a buffer, from its beginning to its end, as slices of their own.
#[derive(Debug)]
pub struct Pieces<'a> {
    rest: &'a mut [u8],
    /// Where `rest` begins.
    at: usize,
}

impl<'a> Pieces<'a> {
    /// Of the whole buffer.
    pub fn of(buffer: &'a mut [u8]) -> Self {
        Self { rest: buffer, at: 0 }
    }

    /// `None` if the range begins before the end of the one before, or reaches beyond the buffer.
    pub fn take(&mut self, range: Range<usize>) -> Option<&'a mut [u8]> {
        let from = range.start.checked_sub(self.at)?;
        let to = range.end.checked_sub(self.at)?;
        self.rest.get(from..to)?;
        let (piece, rest) = std::mem::take(&mut self.rest).split_at_mut(to);
        (self.rest, self.at) = (rest, range.end);
        piece.get_mut(from..)
    }
}

/// Seals `spans` of `buffer`, which follow each other, in place with the counters `first_counter`, `first_counter + 1`,
/// … and writes each tag behind its text. False if a span does not fit; nothing of the run is then usable.
#[must_use]
pub fn seal_run(key: &Key, first_counter: u64, buffer: &mut [u8], spans: &[Span]) -> bool {
    let mut pieces = Pieces::of(buffer);
    if !ENCRYPTS && key.suite == Suite::ChaCha20Poly1305 {
        return null::mark_run(&mut pieces, spans);
    }
    if let [span] = spans {
        return seal_alone(key, first_counter, &mut pieces, span).is_some();
    }
    let mut counter = first_counter;
    let mut rest = spans;
    while !rest.is_empty() {
        let lens: ArrayVec<usize, RUN> = rest.iter().map(|span| span.len).take(RUN).collect();
        let (count, width) = plan(key.suite, &lens);
        let (now, later) = rest.split_at(count);
        let sealed = match width {
            Some(width) => seal_side_by_side(width, key, counter, &mut pieces, now),
            None => (0..)
                .zip(now)
                .try_for_each(|(n, span)| seal_alone(key, counter.wrapping_add(n), &mut pieces, span)),
        };
        if sealed.is_none() {
            return false;
        }
        counter = counter.wrapping_add(count as u64);
        rest = later;
    }
    true
}

/// The text of a span, and the place for its tag.
fn take<'a>(pieces: &mut Pieces<'a>, span: &Span) -> Option<(&'a mut [u8], &'a mut [u8])> {
    Some(pieces.take(span.start..span.start + span.len + TAG_LEN)?.split_at_mut(span.len))
}

/// At most [`RUN`] packets, each in a lane.
fn seal_side_by_side(
    width: Width,
    key: &Key,
    first_counter: u64,
    pieces: &mut Pieces<'_>,
    spans: &[Span],
) -> Option<()> {
    let mut packets = ArrayVec::<Packet<'_, '_>, RUN>::new();
    let mut places = ArrayVec::<&mut [u8], RUN>::new();
    for (n, span) in (0..).zip(spans) {
        let (text, place) = take(pieces, span)?;
        packets.push(Packet { key: &key.secret.0, counter: first_counter.wrapping_add(n), text });
        places.push(place);
    }
    let tags = lanes::seal(width, &mut packets);
    places.iter_mut().zip(&tags).for_each(|(place, tag)| place.copy_from_slice(tag));
    Some(())
}

/// A packet that is alone needs no arrays.
fn seal_alone(key: &Key, counter: u64, pieces: &mut Pieces<'_>, span: &Span) -> Option<()> {
    let (text, place) = take(pieces, span)?;
    if is_by_lanes(key.suite)
        && let Some(tag) = brief::seal(&key.secret.0, counter, text)
    {
        place.copy_from_slice(&tag);
        return Some(());
    }
    place.copy_from_slice(seal_by_library(&key.cipher, counter, text)?.as_ref());
    Some(())
}

fn seal_by_library(cipher: &LessSafeKey, counter: u64, text: &mut [u8]) -> Option<Tag> {
    cipher.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text).ok()
}

/// A message to open.
#[derive(Debug)]
pub struct Sealed<'a> {
    counter: u64,
    text: &'a mut [u8],
    tag: [u8; TAG_LEN],
}

impl<'a> Sealed<'a> {
    /// From ciphertext and tag; `None`, with the bytes wiped, if there is no room for a tag.
    pub fn new(counter: u64, bytes: &'a mut [u8]) -> Option<Self> {
        let Some(at) = bytes.len().checked_sub(TAG_LEN) else {
            bytes.fill(0);
            return None;
        };
        let (text, end) = bytes.split_at_mut(at);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(end);
        end.fill(0);
        Some(Self { counter, text, tag })
    }
}

/// Plaintext whose tag was right: only [`open_run`] and [`open_alone`] make one.
#[derive(Debug)]
pub struct Authentic<'a>(&'a mut [u8]);

impl Deref for Authentic<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl DerefMut for Authentic<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0
    }
}

/// Messages that came out of [`open_run`]. `None`: not authentic; its bytes are wiped.
pub type OpenedRun<'a> = ArrayVec<Option<Authentic<'a>>, RUN>;

/// Opens messages in place, each by itself, and puts what comes out behind what is in `opened`, which has room.
pub fn open_run<'a>(key: &Key, messages: &mut ArrayVec<Sealed<'a>, RUN>, opened: &mut OpenedRun<'a>) {
    if !ENCRYPTS && key.suite == Suite::ChaCha20Poly1305 {
        opened.extend(messages.drain(..).map(|message| judge(message.text, null::is_marked(&message.tag))));
        return;
    }
    let lens: ArrayVec<usize, RUN> = messages.iter().map(|message| message.text.len()).collect();
    let mut messages = messages.drain(..);
    let mut rest = &lens[..];
    while !rest.is_empty() {
        let (count, width) = plan(key.suite, rest);
        rest = &rest[count..];
        let now = messages.by_ref().take(count);
        match width {
            Some(width) => open_side_by_side(width, key, now, opened),
            None => opened.extend(now.map(|message| open_alone(key, message))),
        }
    }
}

/// At most [`RUN`] messages, each in a lane.
fn open_side_by_side<'a>(
    width: Width,
    key: &Key,
    messages: impl Iterator<Item = Sealed<'a>>,
    opened: &mut OpenedRun<'a>,
) {
    let mut tags = Tags::default();
    let mut packets = ArrayVec::<Packet<'_, '_>, RUN>::new();
    for (Sealed { counter, text, tag }, given) in messages.zip(&mut tags) {
        *given = tag;
        packets.push(Packet { key: &key.secret.0, counter, text });
    }
    let verdicts = lanes::open(width, &mut packets, &tags);
    opened.extend(packets.drain(..).zip(verdicts).map(|(packet, verdict)| judge(packet.text, verdict)));
}

/// Opens one message in place as [`open_run`] does many. `None`: not authentic; its bytes are wiped.
#[must_use]
pub fn open_alone<'a>(key: &Key, message: Sealed<'a>) -> Option<Authentic<'a>> {
    let Sealed { counter, text, tag } = message;
    if !ENCRYPTS && key.suite == Suite::ChaCha20Poly1305 {
        return judge(text, null::is_marked(&tag));
    }
    if is_by_lanes(key.suite)
        && let Some(verdict) = brief::open(&key.secret.0, counter, text, &tag)
    {
        return judge(text, verdict);
    }
    let verdict = open_by_library(&key.cipher, counter, text, &tag);
    judge(text, verdict)
}

fn open_by_library(cipher: &LessSafeKey, counter: u64, text: &mut [u8], tag: &[u8; TAG_LEN]) -> Choice {
    let opened = cipher.open_in_place_separate_tag(nonce(counter), Aad::empty(), tag, text);
    Choice::from(u8::from(opened.is_ok()))
}

/// What nobody may see is wiped.
fn judge(text: &mut [u8], verdict: Choice) -> Option<Authentic<'_>> {
    if holds("transport-aead", bool::from(verdict)) {
        return Some(Authentic(text));
    }
    text.fill(0);
    None
}

/// Opens one packet, ciphertext and tag. Yields the plaintext's length; `None`: not authentic, the bytes are wiped.
#[must_use]
pub fn open(key: &Key, counter: u64, packet: &mut [u8]) -> Option<usize> {
    open_alone(key, Sealed::new(counter, packet)?).map(|text| text.len())
}

/// Lanes and AWS-LC agree about packets of many lengths, of their own keys, sealed and opened.
fn self_test() -> bool {
    let key = |n: usize| Key::new(&Secret(std::array::from_fn(|i| (7 * i + n) as u8)));
    let keys: [Key; RUN] = std::array::from_fn(key);
    Width::ALL.into_iter().all(|width| {
        [0, 1, 15, 16, 17, 63, 64, 65, 240, 1420].into_iter().all(|longest: usize| {
            let plain: ArrayVec<Vec<u8>, RUN> = (0..width.lanes())
                .map(|lane| {
                    (0..longest.saturating_sub(lane * longest / 64)).map(|i| (i ^ lane) as u8).collect()
                })
                .collect();
            let mut by_lanes = plain.clone();
            let mut packets: ArrayVec<Packet<'_, '_>, RUN> = (u64::MAX - 5..=u64::MAX)
                .chain(0..)
                .zip(&keys)
                .zip(&mut by_lanes)
                .map(|((counter, key), text)| Packet { key: &key.secret.0, counter, text })
                .collect();
            let tags = lanes::seal(width, &mut packets);
            let mut right =
                packets.iter().zip(&plain).zip(&keys).zip(tags).all(|(((packet, plain), key), tag)| {
                    let mut text = plain.clone();
                    let sealed = seal_by_library(&key.cipher, packet.counter, &mut text);
                    sealed.is_some_and(|alone| *alone.as_ref() == tag) && *packet.text == text
                });
            // Opened with one tag of another packet.
            let mut given = tags;
            given[width.lanes() - 1] = tags[0];
            let verdicts = lanes::open(width, &mut packets, &given);
            for (lane, verdict) in verdicts.into_iter().enumerate() {
                right &= bool::from(verdict) == (lane < width.lanes() - 1);
            }
            drop(packets);
            right && by_lanes == plain
        })
    })
}

/// The same of short packets that are alone.
fn brief_self_test() -> bool {
    let key = Key::new(&Secret([0xa5; 32]));
    [1, 15, 16, 17, 63, 64, 65, brief::MAX].into_iter().all(|len: usize| {
        let plain: Vec<u8> = (0..len).map(|i| !i as u8).collect();
        let (mut right, mut text) = (plain.clone(), plain.clone());
        let counter = u64::MAX - len as u64;
        let Some(tag) = seal_by_library(&key.cipher, counter, &mut right) else { return false };
        let Ok(tag) = tag.as_ref().try_into() else { return false };
        let sealed = brief::seal(&key.secret.0, counter, &mut text) == Some(tag) && text == right;
        let mut open = |tag| brief::open(&key.secret.0, counter, &mut text, tag).map(bool::from);
        let opened = open(&tag) == Some(true);
        // The text is plain again, which is no ciphertext of that tag.
        sealed && opened && open(&tag) == Some(false)
    })
}

#[cfg(test)]
mod tests;
