//! Control frames (docs/protocol.md): what two Ringways say to each other inside a tunnel, where an IP packet would
//! be. A frame's first nibble is a, b or c, a packet's is 4 or 6.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | operation |
//! | 1 | version, 1 |
//! | 2..4 | flags: bit 0 of HELLO; else 0, ignored on receipt |
//! | 4..8 | `usage_id`, little endian |
//! | 8..12 | `stream_id`, little endian: pairs an answer with its request |
//! | 12..16 | length of the body, little endian; what follows the body is padding |
//!
//! The body is one CBOR map (RFC 8949) of a strict kind: definite lengths, keys 0 to 63 and none twice, in nested maps
//! as well, at most four levels, no tags and no floats. It is walked once, whole, before any of it is used; nothing is
//! allocated, whatever lengths it declares. `minicbor` reads the tokens, the rules are here.

use arrayvec::ArrayVec;
use minicbor::data::Type;
use minicbor::decode::Decoder;
use minicbor::encode::write::Cursor;
use minicbor::encode::{Encoder, Error as EncodeError};

use crate::types::Suite;

pub mod enrolment;
pub mod lease;

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 16;
/// The version that is spoken here.
pub const VERSION: u8 = 1;
/// Flag of HELLO: an answer is asked for.
pub const ANSWER: u16 = 1;
/// Most bytes of a PING's data.
pub const PING_DATA: usize = 256;
/// Longest frame that is written here, bytes: a PONG with all the data a PING may have.
pub const LONGEST: usize = HEADER_LEN + PING_DATA + 16;
/// A delay that somebody names is believed up to this, seconds.
pub const LONGEST_DELAY: u64 = 3600;
/// Levels of maps and arrays, the body's own map among them.
const DEPTH: usize = 4;
/// Keys of maps are below this.
const KEYS: u64 = 64;

/// Declares the operations once.
macro_rules! operations {
    ($($name:ident $code:literal $doc:literal;)*) => {
        /// What a frame is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Operation {
            $(#[doc = $doc] $name = $code,)*
        }

        impl Operation {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            fn of(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

operations! {
    Connected 0xa9 "Relay: a stream is open.";
    Connect 0xaa "Relay: open a stream.";
    Disconnect 0xab "The client goes, or a relayed stream ends.";
    Send 0xac "Relay: bytes to the network.";
    Receive 0xad "Relay: bytes from the network.";
    Problem 0xae "Something could not be done.";
    Hello 0xb0 "Version, cipher suites and features of the sender.";
    AddrRequest 0xb2 "A client wants addresses.";
    AddrReply 0xb3 "Addresses and all that belongs to them.";
    Enroll 0xb4 "Proof of an invite, and a client's own key.";
    Enrolled 0xb5 "The registration.";
    VpnSend 0xbc "An IP packet to the gateway.";
    VpnReceive 0xbd "An IP packet from the gateway.";
    Ping 0xc0 "Are you there?";
    Pong 0xc1 "The answer to PING, with its bytes.";
}

/// True if a decrypted payload claims to be a frame: its first nibble is a, b or c.
#[must_use]
#[inline]
pub fn is_frame(payload: &[u8]) -> bool {
    payload.first().is_some_and(|byte| matches!(byte >> 4, 0xa..=0xc))
}

/// Why a payload is no frame that can be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Too short, longer than it is, or no CBOR of the strict kind.
    Malformed,
    /// An operation that nobody has defined.
    Unknown,
    /// Another version; the header is as in version 1.
    Version {
        /// To pair the answer with.
        stream_id: u32,
        /// It is an answer itself, which is never answered.
        answer: bool,
    },
}

/// A frame, checked: its body is a map of the strict kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is about.
    pub operation: Operation,
    /// As they came.
    pub flags: u16,
    /// Its sender's id on the gateway; selects and authorises nothing.
    pub usage_id: u32,
    /// Pairs an answer with its request.
    pub stream_id: u32,
    /// The body.
    pub body: Map<'a>,
}

impl<'a> Frame<'a> {
    /// Reads a decrypted payload, padding included.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Wrong> {
        let (header, rest) = payload.split_first_chunk::<HEADER_LEN>().ok_or(Wrong::Malformed)?;
        let word = |at: usize| {
            header.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
        };
        let [code, version, ..] = *header;
        let (usage_id, stream_id) = (word(4), word(8));
        let operation = Operation::of(code).ok_or(Wrong::Unknown)?;
        let frame = Self {
            operation,
            // The upper half of the first word.
            flags: (word(0) >> 16) as u16,
            usage_id,
            stream_id,
            body: Map(&[]),
        };
        if version != VERSION {
            return Err(Wrong::Version { stream_id, answer: frame.is_answer() });
        }
        let length = usize::try_from(word(12)).map_err(|_| Wrong::Malformed)?;
        let body = rest.get(..length).and_then(Map::check).ok_or(Wrong::Malformed)?;
        Ok(Self { body, ..frame })
    }

    /// True for what is never answered: an answer, or a HELLO that asks for none.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self.operation {
            Operation::Hello => self.flags & ANSWER == 0,
            Operation::Problem
            | Operation::Pong
            | Operation::AddrReply
            | Operation::Enrolled
            | Operation::Connected => true,
            _ => false,
        }
    }
}

/// A CBOR map of the strict kind, checked whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map<'a>(&'a [u8]);

impl<'a> Map<'a> {
    /// `None` unless `bytes` are one such map and nothing else.
    fn check(bytes: &'a [u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes);
        let is_map = decoder.datatype().ok()? == Type::Map;
        walk(&mut decoder, DEPTH)?;
        (is_map && decoder.position() == bytes.len()).then_some(Self(bytes))
    }

    /// A decoder that stands before the value of `key`.
    fn find(self, key: u64) -> Option<Decoder<'a>> {
        let mut decoder = Decoder::new(self.0);
        for _ in 0..decoder.map().ok()?? {
            if decoder.u64().ok()? == key {
                return Some(decoder);
            }
            walk(&mut decoder, DEPTH)?;
        }
        None
    }

    /// True if there is a value for `key`.
    #[must_use]
    pub fn has(self, key: u64) -> bool {
        self.find(key).is_some()
    }

    /// The number at `key`; `None` if there is none, or no such number.
    #[must_use]
    pub fn number(self, key: u64) -> Option<u64> {
        self.find(key)?.u64().ok()
    }

    /// The bytes at `key`; `None` if there are none, or something else.
    #[must_use]
    pub fn bytes(self, key: u64) -> Option<&'a [u8]> {
        self.find(key)?.bytes().ok()
    }

    /// The text at `key`; `None` if there is none, or something else.
    #[must_use]
    pub fn text(self, key: u64) -> Option<&'a str> {
        self.find(key)?.str().ok()
    }

    /// The numbers of the array at `key`; `None` if there is none, or something else is in it.
    fn numbers(self, key: u64, mut each: impl FnMut(u64)) -> Option<()> {
        let mut decoder = self.find(key)?;
        for _ in 0..decoder.array().ok()?? {
            each(decoder.u64().ok()?);
        }
        Some(())
    }
}

/// Passes over one value and checks it. `None` if it breaks a rule. Each step reads at least one byte, so a declared
/// length costs no more than the bytes that are there.
fn walk(decoder: &mut Decoder<'_>, levels: usize) -> Option<()> {
    match decoder.datatype().ok()? {
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => decoder.u64().ok().map(drop),
        Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => decoder.int().ok().map(drop),
        Type::Bytes => decoder.bytes().ok().map(drop),
        Type::String => decoder.str().ok().map(drop),
        Type::Bool => decoder.bool().ok().map(drop),
        Type::Null => decoder.null().ok(),
        Type::Array => {
            let inner = levels.checked_sub(1)?;
            for _ in 0..decoder.array().ok()?? {
                walk(decoder, inner)?;
            }
            Some(())
        }
        Type::Map => {
            let inner = levels.checked_sub(1)?;
            let mut seen = 0_u64;
            for _ in 0..decoder.map().ok()?? {
                let key = decoder.u64().ok().filter(|key| *key < KEYS)?;
                if seen & (1 << key) != 0 {
                    return None;
                }
                seen |= 1 << key;
                walk(decoder, inner)?;
            }
            Some(())
        }
        _ => None,
    }
}

/// HELLO: what its sender can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// It opens data sealed with AES-256-GCM in this session.
    pub aes: bool,
}

impl Hello {
    /// Of a HELLO's body. `None` if the version or the suites are missing or of another kind.
    #[must_use]
    pub fn read(body: Map<'_>) -> Option<Self> {
        body.number(0)?;
        let mut aes = false;
        body.numbers(1, |suite| aes |= suite == u64::from(Suite::Aes256Gcm.mark()))?;
        (!body.has(2) || body.number(2).is_some()).then_some(Self { aes })
    }

    /// The frame. `answer` asks for a HELLO back.
    #[must_use]
    pub fn write(self, answer: bool) -> Bytes {
        let flags = if answer { ANSWER } else { 0 };
        let suites: &[Suite] =
            if self.aes { &[Suite::ChaCha20Poly1305, Suite::Aes256Gcm] } else { &[Suite::ChaCha20Poly1305] };
        write(Operation::Hello, flags, 0, |encoder| {
            encoder.map(3)?.u8(0)?.u8(VERSION)?.u8(1)?.array(suites.len() as u64)?;
            for suite in suites {
                encoder.u8(suite.mark())?;
            }
            encoder.u8(2)?.u8(0)?;
            Ok(())
        })
    }
}

/// The data of a PING or a PONG. `None` if there are none, or more than [`PING_DATA`] bytes.
#[must_use]
pub fn ping_data<'a>(frame: &Frame<'a>) -> Option<&'a [u8]> {
    frame.body.bytes(0).filter(|data| data.len() <= PING_DATA)
}

/// A PING. `time` is the sender's, in a unit that only the sender needs to know.
#[must_use]
pub fn ping(stream_id: u32, data: &[u8], time: u64) -> Bytes {
    write(Operation::Ping, 0, stream_id, |encoder| {
        encoder.map(2)?.u8(0)?.bytes(data)?.u8(1)?.u64(time)?;
        Ok(())
    })
}

/// The PONG to a PING with this data. `load` is a hint, 0 to 100.
#[must_use]
pub fn pong(stream_id: u32, data: &[u8], load: u8) -> Bytes {
    write(Operation::Pong, 0, stream_id, |encoder| {
        encoder.map(2)?.u8(0)?.bytes(data)?.u8(1)?.u8(load.min(100))?;
        Ok(())
    })
}

/// What could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// No address is free, or none can be given now.
    NoFreeAddr = 1,
    /// The gateway stops.
    TunnelDown = 2,
    /// Packets for the client were dropped.
    PacketLost = 3,
    /// The client's own address belongs to another one.
    AlreadyAssignedAddr = 4,
    /// The client is known, and may not have this.
    NotAllowed = 5,
    /// The frame's version is not spoken here.
    UnsupportedVersion = 7,
    /// The frame's body is not what its operation asks for.
    BadRequest = 8,
}

impl Code {
    /// Every code that is sent here.
    pub const ALL: &'static [Self] = &[
        Self::NoFreeAddr,
        Self::TunnelDown,
        Self::PacketLost,
        Self::AlreadyAssignedAddr,
        Self::NotAllowed,
        Self::UnsupportedVersion,
        Self::BadRequest,
    ];

    /// As metrics and people name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoFreeAddr => "no_free_addr",
            Self::TunnelDown => "tunnel_down",
            Self::PacketLost => "packet_lost",
            Self::AlreadyAssignedAddr => "already_assigned_addr",
            Self::NotAllowed => "not_allowed",
            Self::UnsupportedVersion => "unsupported_version",
            Self::BadRequest => "bad_request",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NoFreeAddr => "no address is free",
            Self::TunnelDown => "the gateway stops",
            Self::PacketLost => "packets were dropped on their way to you",
            Self::AlreadyAssignedAddr => "your address belongs to another client",
            Self::NotAllowed => "no addresses are given to you here",
            Self::UnsupportedVersion => "version 1 is spoken here",
            Self::BadRequest => "a field is missing, of another type, or too large",
        }
    }
}

/// Most characters of a text that are believed to be for people.
const TOLD: usize = 256;

/// What a PROBLEM says to people, without control characters; empty if it says nothing.
#[must_use]
pub fn told(body: Map<'_>) -> String {
    plain(body.text(1).unwrap_or_default())
}

/// Some of a text that somebody else wrote, without control characters.
fn plain(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(TOLD).collect()
}

/// PROBLEM, as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A code of the protocol, or one that came later.
    pub code: u64,
    /// Seconds until another try makes sense, at most [`LONGEST_DELAY`].
    pub retry_after: Option<u64>,
    /// How many packets were lost, with [`Code::PacketLost`].
    pub lost: Option<u64>,
}

impl Problem {
    /// Of a PROBLEM's body. `None` if there is no code.
    #[must_use]
    pub fn read(body: Map<'_>) -> Option<Self> {
        let retry_after = body.number(2).map(|seconds| seconds.min(LONGEST_DELAY));
        Some(Self { code: body.number(0)?, retry_after, lost: body.number(3) })
    }
}

/// A PROBLEM about the request with this `stream_id`; 0 if it is about none.
#[must_use]
pub fn problem(stream_id: u32, code: Code) -> Bytes {
    problem_with(stream_id, code, None, None)
}

/// The same, with the seconds until another try makes sense, or how many packets were lost.
#[must_use]
pub fn problem_with(stream_id: u32, code: Code, retry_after: Option<u32>, lost: Option<u32>) -> Bytes {
    problem_saying(stream_id, code, code.text(), retry_after, lost)
}

/// The same, with a text for people in the place of the usual one.
#[must_use]
pub fn problem_saying(
    stream_id: u32,
    code: Code,
    text: &str,
    retry_after: Option<u32>,
    lost: Option<u32>,
) -> Bytes {
    write(Operation::Problem, 0, stream_id, |encoder| {
        encoder.map(2 + u64::from(retry_after.is_some()) + u64::from(lost.is_some()))?;
        encoder.u8(0)?.u8(code as u8)?.u8(1)?.str(text)?;
        for (key, number) in [(2, retry_after), (3, lost)] {
            if let Some(number) = number {
                encoder.u8(key)?.u32(number)?;
            }
        }
        Ok(())
    })
}

/// A frame to send, without padding.
pub type Bytes = ArrayVec<u8, LONGEST>;

type Body<'a> = Encoder<Cursor<&'a mut [u8]>>;

/// A frame whose body `fill` writes. What does not fit is left out whole, and the frame is empty: no such frame is
/// written here.
fn write(
    operation: Operation,
    flags: u16,
    stream_id: u32,
    fill: impl FnOnce(&mut Body<'_>) -> Result<(), EncodeError<minicbor::encode::write::EndOfSlice>>,
) -> Bytes {
    let mut space = [0; LONGEST - HEADER_LEN];
    let mut encoder = Encoder::new(Cursor::new(&mut space[..]));
    let mut frame = Bytes::new();
    if fill(&mut encoder).is_err() {
        return frame;
    }
    let length = encoder.writer().position();
    let [low, high] = flags.to_le_bytes();
    frame.extend([operation as u8, VERSION, low, high]);
    frame.extend([0; 4]);
    frame.extend(stream_id.to_le_bytes());
    // Less than LONGEST.
    frame.extend((length as u32).to_le_bytes());
    frame.extend(space.into_iter().take(length));
    frame
}

#[cfg(test)]
mod tests;
