//! `ringway IFNAME`: everything that can be wrong with a request for a device, found before anything is made.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroU16;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use crate::config::{Aead, Aes, Io, Listen, Metrics, Workers};
use crate::dataplane::io::busy_poll::{BUSY_POLL, MAX_BUSY_POLL};
use crate::dataplane::offload::switches::Switch;
use crate::gateway::dropin::{self, Options};
use crate::gateway::{MAX_QUEUE_LENGTH, QUEUE_LENGTH, Settings};
use crate::net::name::InterfaceName;
use crate::noise::timers::Limits;
use crate::sys::process::inherited_fd;
use crate::sys::tun::MAX_QUEUES;
use crate::types::Offload;

/// Seconds after which an initiator renews its keys; the other times shrink in proportion. Debug builds only.
const REKEY_KNOB: &str = "RINGWAY_TEST_REKEY";

/// Reads the environment, checks everything, and serves the device until it ends.
///
/// # Errors
/// A bad environment, or what serving says.
pub fn run_device(name: InterfaceName, foreground: bool, hello: bool) -> anyhow::Result<()> {
    super::logging::init();
    let mut options = options(name, foreground, &|key| env::var_os(key))?;
    options.settings.hello |= hello;
    dropin::run(options)
}

/// The options of a device, with the environment handed in.
fn options(
    name: InterfaceName,
    foreground: bool,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> anyhow::Result<Options> {
    let text = |key: &str| variable(key).map(|value| value.to_string_lossy().into_owned());
    let tun = inherited("WG_TUN_FD", text("WG_TUN_FD"))?;
    let uapi = inherited("WG_UAPI_FD", text("WG_UAPI_FD"))?;
    let mut workers = text("RINGWAY_WORKERS").map_or(Ok(NonZeroU16::MIN), |value| {
        workers(&value).with_context(|| format!("RINGWAY_WORKERS={value}"))
    })?;
    if tun.is_some() && workers > NonZeroU16::MIN {
        tracing::warn!(%workers, "WG_TUN_FD is one queue: one worker, whatever RINGWAY_WORKERS says");
        workers = NonZeroU16::MIN;
    }
    let foreground = foreground || text("WG_PROCESS_FOREGROUND").as_deref() == Some("1");
    let metrics = Metrics {
        listen: text("RINGWAY_METRICS").map_or(Ok(Listen::Off), |value| metrics_address(&value))?,
        per_peer: text("RINGWAY_METRICS_PER_PEER").as_deref() == Some("1"),
    };
    let (offload, mss_clamp) = switches(text("RINGWAY_OFF").as_deref().unwrap_or_default())?;
    let settings = Settings {
        limits: knob(text(REKEY_KNOB))?,
        offload,
        mss_clamp,
        queue_length: text("RINGWAY_TXQUEUELEN").map_or(Ok(QUEUE_LENGTH), |value| queue_length(&value))?,
        busy_poll: text("RINGWAY_BUSY_POLL").map_or(Ok(BUSY_POLL), |value| busy_poll(&value))?,
        metrics: metrics.listen != Listen::Off,
        io: choice("RINGWAY_IO", text("RINGWAY_IO"), Io::Auto)?,
        aead: choice("RINGWAY_AEAD", text("RINGWAY_AEAD"), Aead::Auto)?,
        aes: choice("RINGWAY_AES", text("RINGWAY_AES"), Aes::Auto)?,
        hello: text("RINGWAY_HELLO").as_deref() == Some("1"),
        ..Settings::default()
    };
    Ok(Options { name, foreground, workers, tun, uapi, settings, metrics, each_second: super::logging::tick })
}

/// The protocol's times, as the environment of a debug build shortens them.
///
/// # Errors
/// No number of seconds, in a debug build.
pub(super) fn limits() -> anyhow::Result<Limits> {
    knob(env::var(REKEY_KNOB).ok())
}

/// The paper's limits; a debug build shortens them for tests (see docs/decisions/0004-test-knobs.md).
fn knob(value: Option<String>) -> anyhow::Result<Limits> {
    match value {
        Some(seconds) if cfg!(debug_assertions) => {
            let seconds =
                seconds.parse().with_context(|| format!("{REKEY_KNOB}={seconds} is no number of seconds"))?;
            tracing::warn!(seconds, "{REKEY_KNOB} is set: for tests only");
            Ok(Limits::shortened(Duration::from_secs(seconds)))
        }
        _ => Ok(Limits::default()),
    }
}

/// An inherited descriptor, if the variable names one.
fn inherited(key: &str, value: Option<String>) -> anyhow::Result<Option<OwnedFd>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let fd: RawFd = value.parse().with_context(|| format!("{key}={value} is no descriptor"))?;
    inherited_fd(fd).map(Some).with_context(|| format!("{key}={value}"))
}

/// A number, or `auto` for one per core that this process may use.
pub(super) fn workers(value: &str) -> anyhow::Result<NonZeroU16> {
    let number = match value {
        "" => return Ok(NonZeroU16::MIN),
        "auto" => Workers::Auto.count(&[]),
        number => number.parse().unwrap_or(0),
    };
    let number = NonZeroU16::new(number).filter(|number| number.get() <= MAX_QUEUES);
    number.with_context(|| format!("it is neither 'auto' nor a number from 1 to {MAX_QUEUES}"))
}

/// `RINGWAY_METRICS`: where the page is served.
fn metrics_address(value: &str) -> anyhow::Result<Listen> {
    if value.is_empty() {
        return Ok(Listen::Off);
    }
    value.parse().map(Listen::At).with_context(|| {
        format!("RINGWAY_METRICS={value} is no ADDRESS:PORT, such as 127.0.0.1:9586 or [::1]:9586")
    })
}

/// `RINGWAY_BUSY_POLL`: microseconds.
fn busy_poll(value: &str) -> anyhow::Result<Duration> {
    if value.is_empty() {
        return Ok(BUSY_POLL);
    }
    let time = value.parse().ok().map(Duration::from_micros).filter(|time| *time <= MAX_BUSY_POLL);
    time.with_context(|| {
        format!(
            "RINGWAY_BUSY_POLL={value} is no number of microseconds from 0 to {}",
            MAX_BUSY_POLL.as_micros()
        )
    })
}

/// A variable with one of a few names as its value.
fn choice<T: FromStr<Err = &'static str>>(key: &str, value: Option<String>, default: T) -> anyhow::Result<T> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(default) };
    value.parse().map_err(|what| anyhow!("{key}={value} is {what}"))
}

/// `RINGWAY_TXQUEUELEN`: packets.
fn queue_length(value: &str) -> anyhow::Result<u32> {
    if value.is_empty() {
        return Ok(QUEUE_LENGTH);
    }
    let packets = value.parse().ok().filter(|packets| (1..=MAX_QUEUE_LENGTH).contains(packets));
    packets.with_context(|| {
        format!("RINGWAY_TXQUEUELEN={value} is no number of packets from 1 to {MAX_QUEUE_LENGTH}")
    })
}

/// `RINGWAY_OFF`: names of switches that start turned off, parted by commas.
fn switches(value: &str) -> anyhow::Result<(Offload, bool)> {
    let (mut offload, mut mss_clamp) = (Offload::default(), true);
    for name in value.split(',').filter(|name| !name.is_empty()) {
        let switch =
            match Switch::named(name).with_context(|| format!("RINGWAY_OFF: no such switch: '{name}'"))? {
                Switch::TunRead => &mut offload.tun_read,
                Switch::TunWrite => &mut offload.tun_write,
                Switch::UdpSend => &mut offload.udp_send,
                Switch::UdpReceive => &mut offload.udp_receive,
                Switch::MssClamp => &mut mss_clamp,
            };
        *switch = false;
    }
    Ok((offload, mss_clamp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    fn with(pairs: &[(&str, &str)]) -> anyhow::Result<Options> {
        let find =
            |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| OsString::from(value));
        options("wg0".parse().unwrap(), false, &find)
    }

    #[test]
    fn nothing_set() {
        let options = with(&[]).unwrap();
        assert_eq!((options.name.as_str(), options.foreground, options.workers.get()), ("wg0", false, 1));
        assert!(options.tun.is_none() && options.uapi.is_none());
    }

    #[test]
    fn worker_counts() {
        let count = |value| with(&[("RINGWAY_WORKERS", value)]).map(|options| options.workers.get());
        assert_eq!(count("").unwrap(), 1);
        assert_eq!(count("5").unwrap(), 5);
        assert_eq!(count("256").unwrap(), 256);
        assert!((1..=256).contains(&count("auto").unwrap()));
        for bad in ["0", "257", "65537", "-1", "two", " 2"] {
            assert!(count(bad).unwrap_err().to_string().contains("RINGWAY_WORKERS"), "{bad}");
        }
    }

    #[test]
    fn busy_poll_times() {
        let time = |value| with(&[("RINGWAY_BUSY_POLL", value)]).map(|options| options.settings.busy_poll);
        assert_eq!(time("").unwrap(), BUSY_POLL);
        assert_eq!(time("0").unwrap(), Duration::ZERO);
        assert_eq!(time("1000").unwrap(), MAX_BUSY_POLL);
        for bad in ["1001", "-1", "50us", "18446744073709551616"] {
            assert!(time(bad).unwrap_err().to_string().contains("RINGWAY_BUSY_POLL"), "{bad}");
        }
    }

    #[test]
    fn metrics_are_off_unless_an_address_is_named() {
        let metrics = |pairs: &[_]| with(pairs).map(|options| (options.settings.metrics, options.metrics));
        let (on, off) = metrics(&[("RINGWAY_METRICS_PER_PEER", "1")]).unwrap();
        assert!(!on && off.listen == Listen::Off);
        assert!(!metrics(&[("RINGWAY_METRICS", "")]).unwrap().0);
        let (on, chosen) = metrics(&[("RINGWAY_METRICS", "[::1]:9586")]).unwrap();
        assert!(on && !chosen.per_peer && chosen.listen == Listen::At("[::1]:9586".parse().unwrap()));
        let both = [("RINGWAY_METRICS", "127.0.0.1:1"), ("RINGWAY_METRICS_PER_PEER", "1")];
        assert!(metrics(&both).unwrap().1.per_peer);
        for bad in ["9586", "localhost:9586", "127.0.0.1", "127.0.0.1:65536"] {
            let error = metrics(&[("RINGWAY_METRICS", bad)]).unwrap_err().to_string();
            assert!(error.contains("RINGWAY_METRICS") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn choices_of_io() {
        let io = |value| with(&[("RINGWAY_IO", value)]).map(|options| options.settings.io);
        assert_eq!(with(&[]).unwrap().settings.io, Io::Auto);
        assert_eq!(io("").unwrap(), Io::Auto);
        assert_eq!(io("uring").unwrap(), Io::Uring);
        assert_eq!(io("poll").unwrap(), Io::Poll);
        assert!(format!("{:#}", io("epoll").unwrap_err()).contains("RINGWAY_IO=epoll"));
    }

    #[test]
    fn hello_and_aes() {
        let settings = |pairs: &[_]| with(pairs).map(|o| (o.settings.hello, o.settings.aes));
        assert_eq!(settings(&[]).unwrap(), (false, Aes::Auto));
        assert_eq!(settings(&[("RINGWAY_HELLO", "0")]).unwrap(), (false, Aes::Auto));
        let both = [("RINGWAY_HELLO", "1"), ("RINGWAY_AES", "off")];
        assert_eq!(settings(&both).unwrap(), (true, Aes::Off));
        let error = settings(&[("RINGWAY_AES", "on")]).unwrap_err();
        assert!(format!("{error:#}").contains("RINGWAY_AES=on is neither 'auto' nor 'off'"));
    }

    #[test]
    fn choices_of_the_aead() {
        let aead = |value| with(&[("RINGWAY_AEAD", value)]).map(|options| options.settings.aead);
        assert_eq!(with(&[]).unwrap().settings.aead, Aead::Auto);
        assert_eq!(aead("").unwrap(), Aead::Auto);
        assert_eq!(aead("scalar").unwrap(), Aead::Scalar);
        assert!(format!("{:#}", aead("aes").unwrap_err()).contains("RINGWAY_AEAD=aes"));
    }

    #[test]
    fn switches_start_off_by_name() {
        let off = |value| with(&[("RINGWAY_OFF", value)]).map(|options| options.settings);
        let none = off("").unwrap();
        assert_eq!((none.offload, none.mss_clamp), (Offload::default(), true));
        let some = off("udp-send,tun_read,mss-clamp").unwrap();
        let expected = Offload { udp_send: false, tun_read: false, ..Offload::default() };
        assert_eq!((some.offload, some.mss_clamp), (expected, false));
        assert!(off("udp").unwrap_err().to_string().contains("RINGWAY_OFF"));
    }

    #[test]
    fn queue_lengths() {
        let length =
            |value| with(&[("RINGWAY_TXQUEUELEN", value)]).map(|options| options.settings.queue_length);
        assert_eq!(length("").unwrap(), QUEUE_LENGTH);
        for (good, packets) in [("1", 1), ("1000", 1000), ("100000", 100_000)] {
            assert_eq!(length(good).unwrap(), packets);
        }
        for bad in ["0", "100001", "-1", "many"] {
            assert!(length(bad).unwrap_err().to_string().contains("RINGWAY_TXQUEUELEN"), "{bad}");
        }
    }

    #[test]
    fn foreground_by_environment() {
        assert!(with(&[("WG_PROCESS_FOREGROUND", "1")]).unwrap().foreground);
        assert!(!with(&[("WG_PROCESS_FOREGROUND", "0")]).unwrap().foreground);
    }

    /// `cargo test --release` shows the other half: a release build has no knob, not even for nonsense.
    #[test]
    fn only_a_debug_build_shortens_times() {
        let shortened = knob(Some("5".to_owned())).unwrap() != Limits::default();
        assert_eq!(shortened, cfg!(debug_assertions));
        assert_eq!(knob(Some("soon".to_owned())).is_err(), cfg!(debug_assertions));
        assert_eq!(knob(None).unwrap(), Limits::default());
    }

    #[test]
    fn inherited_descriptors() {
        let fd = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let text = fd.to_string();
        let options = with(&[("WG_TUN_FD", &text), ("RINGWAY_WORKERS", "4")]).unwrap();
        let same = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert_eq!(same(options.tun.unwrap().as_raw_fd()), same(fd));
        assert_eq!(options.workers.get(), 1, "one queue, one worker");
        for bad in ["x", "1", "-3", "999999"] {
            assert!(with(&[("WG_UAPI_FD", bad)]).unwrap_err().to_string().contains("WG_UAPI_FD"), "{bad}");
        }
    }
}
