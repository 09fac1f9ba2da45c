//! What a look at the host found.

use serde::Serialize;

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Could not be looked at; `found` says why.
    Unknown,
    /// It works, but slower or not for everybody.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// One word, as in the JSON.
    #[must_use]
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Which probe: a stable word.
    pub(super) probe: &'static str,
    /// How it stands.
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) found: String,
    /// Why it matters.
    pub(super) why: &'static str,
    /// What to do; `None` if nothing.
    pub(super) fix: Option<String>,
}

/// A question, and why it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// A stable word.
    pub(super) name: &'static str,
    /// Why it matters.
    pub(super) why: &'static str,
}

impl Probe {
    /// As it should be.
    pub(super) fn ok(self, found: impl Into<String>) -> Finding {
        self.finding(Verdict::Ok, found.into(), None)
    }

    /// Not looked at.
    pub(super) fn unknown(self, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Verdict::Unknown, found.into(), Some(fix.into()))
    }

    /// Could be better.
    pub(super) fn warn(self, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Verdict::Warn, found.into(), Some(fix.into()))
    }

    /// Broken.
    pub(super) fn fail(self, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Verdict::Fail, found.into(), Some(fix.into()))
    }

    fn finding(self, verdict: Verdict, found: String, fix: Option<String>) -> Finding {
        Finding { probe: self.name, verdict, found, why: self.why, fix }
    }
}
