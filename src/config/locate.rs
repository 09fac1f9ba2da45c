//! From places in the text to its lines.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A step from a value to one inside it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Of a table.
    Key(&'static str),
    /// Of an array, counted from 0.
    At(usize),
}

/// The line, counted from 1, of the byte `at`.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A message of the parser without line ends, in our words.
pub(super) fn in_one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").replace("unknown field", "unknown key")
}

/// A text that was parsed once, to find values in it again.
pub(super) struct Map<'a> {
    text: &'a str,
    table: Option<Spanned<DeTable<'a>>>,
}

impl<'a> Map<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, table: DeTable::parse(text).ok() }
    }

    /// The line of the value; `None` for a default.
    pub(super) fn line(&self, steps: &[Step]) -> Option<usize> {
        let mut found: Option<Range<usize>> = None;
        let mut table = self.table.as_ref().map(Spanned::get_ref);
        let mut array = None;
        for step in steps {
            let value = match step {
                Step::Key(key) => table.and_then(|table| table.get(*key)),
                Step::At(place) => array.and_then(|array: &toml::de::DeArray<'_>| array.get(*place)),
            };
            let value = value?;
            found = Some(value.span());
            (table, array) = match value.get_ref() {
                DeValue::Table(table) => (Some(table), None),
                DeValue::Array(array) => (None, Some(array)),
                _ => (None, None),
            };
        }
        found.map(|span| line_of(self.text, span.start))
    }

    /// The line of each element of an array; empty for a default. Costs one look at the text, however many there are.
    pub(super) fn lines(&self, key: &str) -> Vec<usize> {
        let array = self.table.as_ref().and_then(|table| table.get_ref().get(key)?.get_ref().as_array());
        let (mut line, mut at) = (1, 0);
        let each = array.into_iter().flatten().map(|element| {
            let start = element.span().start;
            let between = self.text.as_bytes().get(at..start).unwrap_or_default();
            line += between.iter().filter(|byte| **byte == b'\n').count();
            at = at.max(start);
            line
        });
        each.collect()
    }
}
