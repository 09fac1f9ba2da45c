//! The words that values may be, each refused with what it should have been.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, de};

use super::clients::Host;
use crate::dataplane::io::busy_poll::MAX_BUSY_POLL;
use crate::sys::tun::MAX_QUEUES;
use crate::types::{Mark, Prefix};

/// Least MTU: what every IPv4 host takes in one piece (RFC 791 section 3.2).
const MIN_MTU: u32 = 576;
/// Greatest MTU: padded and sealed it is one UDP payload of at most 65,493 bytes.
const MAX_MTU: u32 = 65_440;
/// Longest queue of the device, packets: more is seconds of delay.
const MAX_QUEUE_LENGTH: u32 = 100_000;

/// How many workers a gateway has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One per core that it may use.
    Auto,
    /// So many, 1 to [`MAX_QUEUES`].
    Number(NonZeroU16),
}

/// What a worker waits and receives with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// io_uring where it is to be had, else poll.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// poll(2) and plain calls.
    Poll,
}

impl FromStr for Io {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "poll" => Ok(Self::Poll),
            _ => Err("none of 'auto', 'uring', 'poll'"),
        }
    }
}

/// What seals and opens packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aead {
    /// The fastest that the processor has.
    Auto,
    /// One packet after the other.
    Scalar,
}

impl FromStr for Aead {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "scalar" => Ok(Self::Scalar),
            _ => Err("neither 'auto' nor 'scalar'"),
        }
    }
}

/// Whether AES-256-GCM is used with peers that open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aes {
    /// Where the processor has it in vectors.
    Auto,
    /// Nowhere.
    Off,
}

impl FromStr for Aes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("neither 'auto' nor 'off'"),
        }
    }
}

/// Where the metrics' HTTP listener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At this address; port 0 for any.
    At(SocketAddr),
}

/// The least level of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    Silent,
    /// What failed.
    Error,
    /// What may need somebody.
    Warn,
    /// What happened.
    Info,
    /// Everything.
    Debug,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

impl Workers {
    /// How many that are: `auto` is one per core of `cores`, or per core that the process may use if there are none.
    #[must_use]
    pub fn count(self, cores: &[usize]) -> u16 {
        match (self, cores.len()) {
            (Self::Number(number), _) => number.get(),
            (Self::Auto, 0) => std::thread::available_parallelism().map_or(1, at_most_queues),
            (Self::Auto, chosen) => NonZeroUsize::new(chosen).map_or(1, at_most_queues),
        }
    }
}

fn at_most_queues(count: NonZeroUsize) -> u16 {
    u16::try_from(count.get()).unwrap_or(MAX_QUEUES).min(MAX_QUEUES)
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl Visitor<'_> for Words {
            type Value = Workers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"auto\" or a number from 1 to {MAX_QUEUES}")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Workers, E> {
                if word == "auto" {
                    return Ok(Workers::Auto);
                }
                Err(E::invalid_value(de::Unexpected::Str(word), &self))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Workers, E> {
                let count = u16::try_from(number).ok().filter(|count| *count <= MAX_QUEUES);
                let count = count.and_then(NonZeroU16::new);
                count
                    .map(Workers::Number)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
        }

        deserializer.deserialize_any(Words)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(word) = Text::<String>::deserialize(deserializer)?;
        if word == "off" {
            return Ok(Self::Off);
        }
        word.parse().map(Self::At).map_err(|_| {
            D::Error::custom(format_args!(
                "{word:?}: neither \"off\" nor an address and a port (\"127.0.0.1:9586\")"
            ))
        })
    }
}

/// A value that is written as a string.
struct Text<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parse<T>(PhantomData<T>);

        impl<T: FromStr<Err: Display>> Visitor<'_> for Parse<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                text.parse().map(Text).map_err(|wrong| E::custom(format_args!("{text:?}: {wrong}")))
            }
        }

        deserializer.deserialize_str(Parse(PhantomData))
    }
}

/// A value from its text.
pub(super) fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<T, D::Error> {
    Text::deserialize(from).map(|Text(value)| value)
}

/// Values from their texts.
pub(super) fn texts<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Text<T>>::deserialize(from)?.into_iter().map(|Text(value)| value).collect())
}

/// An address and a port.
pub(super) fn endpoint<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let Text(word) = Text::<String>::deserialize(from)?;
    let endpoint: Option<SocketAddr> = word.parse().ok().filter(|at: &SocketAddr| at.port() != 0);
    let endpoint = endpoint.ok_or_else(|| {
        D::Error::custom(format_args!(
            "{word:?}: no address and port (\"192.0.2.1:51820\", \"[2001:db8::1]:51820\"; names are not looked up)"
        ))
    })?;
    Ok(Some(match endpoint.ip().to_canonical() {
        // The outer IPv6 sockets are IPv6 only.
        addr @ IpAddr::V4(_) => SocketAddr::new(addr, endpoint.port()),
        IpAddr::V6(_) => endpoint,
    }))
}

/// A whole number within bounds.
fn number<'de, D: Deserializer<'de>>(from: D, least: u32, most: u32) -> Result<u32, D::Error> {
    let number = i64::deserialize(from)?;
    u32::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| D::Error::custom(format_args!("{number} is no number from {least} to {most}")))
}

/// Bytes.
pub(super) fn mtu<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    number(from, MIN_MTU, MAX_MTU)
}

/// Packets.
pub(super) fn queue_length<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    number(from, 1, MAX_QUEUE_LENGTH)
}

/// 32 bits, in any of TOML's notations.
pub(super) fn mark<'de, D: Deserializer<'de>>(from: D) -> Result<Mark, D::Error> {
    number(from, 0, u32::MAX).map(Mark)
}

/// Microseconds.
pub(super) fn busy_poll<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    // A millisecond at most.
    let most = MAX_BUSY_POLL.as_micros() as u32;
    number(from, 0, most).map(|micros| Duration::from_micros(micros.into()))
}

/// Shortest lease, seconds: renewed at half of it, ten thousand clients are then hundreds of commits a second.
const MIN_LEASE_TIME: u32 = 60;
/// Longest, seconds: a year.
const MAX_LEASE_TIME: u32 = 31_536_000;
/// Longest quarantine, seconds: a week.
const MAX_QUARANTINE: u32 = 604_800;
/// Longest history, days: ten years.
const MAX_HISTORY: u32 = 3650;

/// Seconds.
pub(super) fn lease_time<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    number(from, MIN_LEASE_TIME, MAX_LEASE_TIME)
}

/// Seconds.
pub(super) fn quarantine<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    number(from, 0, MAX_QUARANTINE)
}

/// Days.
pub(super) fn days<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    number(from, 0, MAX_HISTORY)
}

/// The default lease, seconds.
pub(super) fn one_day() -> u32 {
    86_400
}

/// The default quarantine, seconds.
pub(super) fn five_minutes() -> u32 {
    300
}

/// A network.
pub(super) fn prefix<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Prefix>, D::Error> {
    text(from).map(Some)
}

/// Bytes, or 0 for what the gateway takes.
pub(super) fn client_mtu<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let mtu = number(from, 0, MAX_MTU)?;
    if mtu == 0 || mtu >= MIN_MTU {
        return Ok(mtu);
    }
    Err(D::Error::custom(format_args!("{mtu} is neither 0 nor a number from {MIN_MTU} to {MAX_MTU}")))
}

/// A host, or nothing.
pub(super) fn host<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Host>, D::Error> {
    let Text(word) = Text::<String>::deserialize(from)?;
    if word.is_empty() {
        return Ok(None);
    }
    word.parse().map(Some).map_err(|wrong| D::Error::custom(format_args!("{word:?}: {wrong}")))
}

/// A list of ports.
pub(super) fn ports<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NonZeroU16>, D::Error> {
    /// A port that can be reached.
    struct Port(NonZeroU16);

    impl<'de> Deserialize<'de> for Port {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let port = number(from, 1, u16::MAX.into())?;
            let port = u16::try_from(port).ok().and_then(NonZeroU16::new);
            port.map(Self).ok_or_else(|| D::Error::custom("no port"))
        }
    }

    Ok(Vec::<Port>::deserialize(from)?.into_iter().map(|Port(port)| port).collect())
}
