//! Log lines to the standard error, in UTC, as `LOG_LEVEL` asks.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;

use crate::config::Level;

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

/// Sets the process's logger up for a gateway.
pub fn init_at(level: Level) {
    start(match level {
        Level::Silent => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    });
}

fn start(level: LevelFilter) {
    // An error means that there is a logger already: then that one stays.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .with_target(false)
        .try_init();
}

/// Sets the process's logger up. Without `LOG_LEVEL`, or with a word that is none of its, warnings and errors are
/// written.
pub fn init() {
    let word = std::env::var("LOG_LEVEL").unwrap_or_default();
    let chosen = level(&word);
    start(chosen.unwrap_or(LevelFilter::WARN));
    if chosen.is_none() && !word.is_empty() {
        tracing::warn!(word, "LOG_LEVEL is none of silent, error, warn, info, debug, verbose");
    }
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
    }
}
