//! The log: lines to the standard error, in UTC, as text or JSON; the same line at most a few times a minute; with the
//! journal's priorities where the standard error is the journal. Whoever runs long calls [`tick`], whoever ends
//! [`finish`]: what was held back is said then.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::config::{Level, LogFormat};

mod lines;
mod repeats;

use lines::{Lines, Look};

/// For tests, in debug builds only (docs/decisions/0004-test-knobs.md): seconds in the place of [`repeats::WINDOW`].
const WINDOW_KNOB: &str = "RINGWAY_TEST_LOG_WINDOW";

/// The process's logger, once there is one.
static LINES: OnceLock<Lines> = OnceLock::new();

/// How its level is changed.
static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// wireguard-go's words, and `info` and `warn` beside them; `None` for any other.
#[must_use]
pub fn level(word: &str) -> Option<LevelFilter> {
    Some(match word.to_ascii_lowercase().as_str() {
        "silent" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" | "verbose" => LevelFilter::DEBUG,
        _ => return None,
    })
}

/// `--log LEVEL`.
///
/// # Errors
/// None of the words.
pub fn level_argument(word: &str) -> Result<LevelFilter, String> {
    level(word).ok_or_else(|| "it is none of silent, error, warn, info, debug".to_owned())
}

/// `--log-format FORMAT`.
///
/// # Errors
/// None of the words.
pub fn format_argument(word: &str) -> Result<LogFormat, String> {
    match word {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it is neither text nor json".to_owned()),
    }
}

/// The configuration's word as a filter.
#[must_use]
pub fn level_of(level: Level) -> LevelFilter {
    match level {
        Level::Silent => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    }
}

/// Sets the process's logger up.
pub fn start(level: LevelFilter, format: LogFormat) {
    let journal = env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, &io::stderr()));
    let lines = LINES.get_or_init(|| Lines::new(Look { format, journal }, window()));
    let (level, turn) = reload::Layer::new(level);
    // An error means that there is a logger already: then that one stays.
    if tracing_subscriber::registry().with(level).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(turn);
    }
}

/// Writes lines of this level and above from now on.
pub fn set_level(level: LevelFilter) {
    if let Some(turn) = LEVEL.get() {
        // It fails only where the logger is gone.
        let _ = turn.reload(level);
    }
}

/// Says of lines that were held back how often they came, if their minute is over. Costs a comparison if none is; to be
/// called once a second or so.
pub fn tick() {
    if let Some(lines) = LINES.get() {
        lines.tick(Instant::now());
    }
}

/// Says of every line that was held back how often it came: the process ends.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.finish();
    }
}

/// How long a line is remembered.
fn window() -> Duration {
    let knob = env::var(WINDOW_KNOB).ok().filter(|_| cfg!(debug_assertions));
    knob.and_then(|seconds| seconds.parse().ok()).map_or(repeats::WINDOW, Duration::from_secs)
}

/// As [`start`], for a device: `LOG_LEVEL` decides. Without it, or with a word that is none of its, warnings and errors
/// are written.
pub fn init() {
    let word = env::var("LOG_LEVEL").unwrap_or_default();
    let chosen = level(&word);
    start(chosen.unwrap_or(LevelFilter::WARN), LogFormat::Text);
    if chosen.is_none() && !word.is_empty() {
        tracing::warn!(word, "LOG_LEVEL is none of silent, error, warn, info, debug, verbose");
    }
}

/// True if `stream`, "device:inode" as systemd.exec(5) has it, is this file: it may have been redirected since.
fn is_stream(stream: &str, file: &impl AsFd) -> bool {
    let copy = file.as_fd().try_clone_to_owned();
    let Ok(meta) = copy.and_then(|fd| File::from(fd).metadata()) else { return false };
    stream == format!("{}:{}", meta.dev(), meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(level("silent"), Some(LevelFilter::OFF));
        assert_eq!(level("error"), Some(LevelFilter::ERROR));
        assert_eq!(level("verbose"), Some(LevelFilter::DEBUG));
        assert_eq!(level("Debug"), Some(LevelFilter::DEBUG));
        assert_eq!(level("info"), Some(LevelFilter::INFO));
        assert_eq!(level("loud"), None);
        assert_eq!(level(""), None);
        assert_eq!(level_argument("warn"), Ok(level_of(Level::Warn)));
        assert!(level_argument("loud").is_err());
        assert_eq!(format_argument("json"), Ok(LogFormat::Json));
        assert!(format_argument("xml").is_err());
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let file = File::open("/dev/null").unwrap();
        let meta = file.metadata().unwrap();
        assert!(is_stream(&format!("{}:{}", meta.dev(), meta.ino()), &file));
        assert!(!is_stream(&format!("{}:{}", meta.dev(), meta.ino() + 1), &file));
        assert!(!is_stream("", &file));
    }
}
