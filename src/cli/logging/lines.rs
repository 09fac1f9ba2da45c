//! From an event to a line.

use std::collections::hash_map::RandomState;
use std::fmt::{self, Write as _};
use std::hash::BuildHasher as _;
use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::Context;

use super::repeats::{Held, Repeats};
use crate::config::LogFormat;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) format: LogFormat,
    /// The journal reads it: a priority first (sd-daemon(3)); time and level are its own business.
    pub(super) journal: bool,
}

/// Writes each event as one line.
pub(super) struct Lines {
    look: Look,
    keys: RandomState,
    repeats: Mutex<Repeats<Line>>,
}

/// An event, read.
#[derive(Clone, Debug)]
struct Line {
    level: Level,
    message: String,
    /// Names and values but for the message, in the order of the event.
    fields: Vec<(&'static str, Value)>,
}

impl Lines {
    /// The same line is held back for `window` after the first few.
    pub(super) fn new(look: Look, window: Duration) -> Self {
        Self { look, keys: RandomState::new(), repeats: Mutex::new(Repeats::new(window)) }
    }

    /// Writes what was held back and is due.
    pub(super) fn tick(&self, now: Instant) {
        let held = self.repeats().expire(now);
        self.write_held(held);
    }

    /// Writes all that was held back.
    pub(super) fn finish(&self) {
        let held = self.repeats().drain();
        self.write_held(Some(held));
    }

    fn repeats(&self) -> MutexGuard<'_, Repeats<Line>> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_held(&self, held: Option<Held<Line>>) {
        let mut text = String::new();
        if let Some(held) = held {
            self.held(held, &utc(), &mut text);
        }
        self.write(&text);
    }

    fn write(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        // A log that cannot be written to is nothing that could be logged.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// What was held back and is due.
    fn held(&self, held: Held<Line>, time: &str, text: &mut String) {
        for (mut line, times) in held.repeated {
            line.fields.push(("repeated", times.into()));
            self.look.put(&line, time, text);
        }
        if held.left_out > 0 {
            let fields = vec![("lines", held.left_out.into())];
            let message = "too many different lines in a minute: some were left out".to_owned();
            self.look.put(&Line { level: Level::WARN, message, fields }, time, text);
        }
    }
}

impl<S: Subscriber> Layer<S> for &'static Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::read(event);
        let mut body = String::new();
        line.text(&mut body);
        let key = self.keys.hash_one((event.metadata().callsite(), &body));
        let now = Instant::now();
        let (held, admitted) = {
            let mut repeats = self.repeats();
            (repeats.expire(now), repeats.admit(key, now, || line.clone()))
        };
        let (time, mut text) = (utc(), String::new());
        if let Some(held) = held {
            self.held(held, &time, &mut text);
        }
        if admitted {
            self.look.put(&line, &time, &mut text);
        }
        self.write(&text);
    }
}

/// The time, as RFC 3339 has it.
fn utc() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

impl Look {
    /// Appends a line and its end.
    fn put(self, line: &Line, time: &str, to: &mut String) {
        if self.journal {
            let _ = write!(to, "<{}>", priority(line.level));
        }
        match self.format {
            LogFormat::Json => to.push_str(&line.json(time)),
            LogFormat::Text => {
                if !self.journal {
                    let _ = write!(to, "{time} {:>5} ", line.level);
                }
                line.text(to);
            }
        }
        to.push('\n');
    }
}

/// Priorities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl Line {
    fn read(event: &Event<'_>) -> Self {
        let mut line = Self { level: *event.metadata().level(), message: String::new(), fields: Vec::new() };
        event.record(&mut line);
        line
    }

    /// Message and fields. Control characters are written as escapes: nobody else's text begins a line of ours.
    fn text(&self, to: &mut String) {
        let begin = to.len();
        to.push_str(&self.message);
        for (name, value) in &self.fields {
            let between = if to.len() > begin { " " } else { "" };
            let _ = match value {
                Value::String(text) => write!(to, "{between}{name}={text}"),
                other => write!(to, "{between}{name}={other}"),
            };
        }
        let plain = to.split_off(begin);
        for character in plain.chars() {
            match character.is_control() {
                true => to.extend(character.escape_default()),
                false => to.push(character),
            }
        }
    }

    fn json(&self, time: &str) -> String {
        let mut object = Map::new();
        for (name, value) in &self.fields {
            object.insert((*name).to_owned(), value.clone());
        }
        object.insert("time".to_owned(), time.into());
        object.insert("level".to_owned(), self.level.as_str().to_ascii_lowercase().into());
        object.insert("message".to_owned(), self.message.as_str().into());
        Value::Object(object).to_string()
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // Where a library that logs by other means called from.
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, message: &str) -> Line {
        let fields = vec![("port", 7.into()), ("error", "no\nluck".into()), ("on", true.into())];
        Line { level, message: message.to_owned(), fields }
    }

    fn put(format: LogFormat, journal: bool) -> String {
        let mut text = String::new();
        Look { format, journal }.put(&line(Level::WARN, "it failed"), "2026-11-21T06:00:00Z", &mut text);
        text
    }

    #[test]
    fn a_line_of_text() {
        let body = "it failed port=7 error=no\\nluck on=true\n";
        assert_eq!(put(LogFormat::Text, false), format!("2026-11-21T06:00:00Z  WARN {body}"));
        assert_eq!(put(LogFormat::Text, true), format!("<4>{body}"));
        let mut two = "before\n".to_owned();
        Look { format: LogFormat::Text, journal: true }.put(&line(Level::ERROR, "x"), "", &mut two);
        assert_eq!(two, "before\n<3>x port=7 error=no\\nluck on=true\n", "only its own text is escaped");
    }

    #[test]
    fn a_line_of_json() {
        let text = put(LogFormat::Json, false);
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let object: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({"time": "2026-11-21T06:00:00Z", "level": "warn", "message": "it failed",
            "port": 7, "error": "no\nluck", "on": true});
        assert_eq!(object, expected);
        assert!(put(LogFormat::Json, true).starts_with("<4>{"));
    }

    #[test]
    fn what_was_held_back_is_said() {
        let lines = Lines::new(Look { format: LogFormat::Text, journal: true }, Duration::ZERO);
        let mut text = String::new();
        let held = Held { repeated: vec![(line(Level::INFO, "again"), 7)], left_out: 3 };
        lines.held(held, "", &mut text);
        let said = "<6>again port=7 error=no\\nluck on=true repeated=7\n\
                    <4>too many different lines in a minute: some were left out lines=3\n";
        assert_eq!(text, said);
        text.clear();
        lines.held(Held { repeated: Vec::new(), left_out: 0 }, "", &mut text);
        assert_eq!(text, "");
    }

    #[test]
    fn times_are_utc() {
        let text = utc();
        let seconds = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T', "{text}");
        let minute: u64 = text[14..16].parse().unwrap();
        assert!([seconds / 60 % 60, (seconds / 60 + 59) % 60].contains(&minute), "{text}");
    }
}
