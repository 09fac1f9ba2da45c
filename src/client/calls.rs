//! The calls of a program that leaves everything to `ringway up`: start, stop, status and check, as the service has
//! them that this project descends from. The connection lives in a process of its own and outlives the program
//! (docs/decisions/0068-calls.md).
//!
//! Each call that waits comes twice: blocking, and with `_async` for a tokio runtime.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{StartResult, Status, VpnError};
use crate::gateway::client::{self, Ended};
use crate::gateway::failure::Failure;
use crate::net::guard::{self, Raised};
use crate::net::name::InterfaceName;

pub mod check;
pub mod look;

pub use check::{Check, CheckResult, Checked};
pub use look::Changes;

/// Exit code of a command line that was not understood.
const MISUSED: i32 = 2;

/// One connection, by its profile.
#[derive(Clone, Debug)]
pub struct VpnClient {
    name: InterfaceName,
    profile: PathBuf,
    program: OsString,
}

/// What a start came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// One of five.
    pub result: StartResult,
    /// What `ringway up` said meanwhile: how it went, or what is wrong, in words for people.
    pub said: String,
}

impl VpnClient {
    /// The connection of a profile: one below /etc/ringway/profiles by its name, or a file `NAME.conf`. Nothing is
    /// begun, and the file need not be there yet.
    ///
    /// # Errors
    /// [`VpnError::Parameter`]: the name is no device's.
    pub fn new(profile: &str) -> Result<Self, VpnError> {
        let (name, profile) = client::place(profile)?;
        Ok(Self { name, profile, program: "ringway".into() })
    }

    /// Another program than `ringway` as PATH has it.
    #[must_use]
    pub fn with_program(self, program: impl AsRef<Path>) -> Self {
        Self { program: program.as_ref().into(), ..self }
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// Starts the connection, and waits until the gateway has answered or 18 s are over, beside what the resolver and
    /// looking for the reason take. A start that fails leaves nothing behind.
    #[must_use = "a start may fail"]
    pub fn start(&self) -> Started {
        let mut command = Command::new(&self.program);
        command.args(["up", "--background"]).arg(&self.profile).stdin(Stdio::null());
        match command.output() {
            Ok(output) => Started {
                result: meaning(output.status.code()),
                said: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
            },
            Err(error) => Started {
                result: StartResult::ConnectionFailed,
                said: format!("cannot run {}: {error}", self.program.to_string_lossy()),
            },
        }
    }

    /// As [`Self::start`], on a tokio runtime. A start that is given up goes on.
    pub async fn start_async(&self) -> Started {
        let client = self.clone();
        let started = tokio::task::spawn_blocking(move || client.start()).await;
        started.unwrap_or_else(|error| Started {
            result: StartResult::ConnectionFailed,
            said: error.to_string(),
        })
    }

    /// Ends the connection and waits until it is gone; takes back what one left that was killed. A kill switch that is
    /// to stay stays.
    ///
    /// # Errors
    /// [`VpnError::NoSuchVpn`]; [`VpnError::Internal`]: it is a gateway's device, or does not end, or this user may
    /// not; it was killed, and its kill switch is to stay.
    pub fn stop(&self) -> Result<(), VpnError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| VpnError::Internal {
            action: format!("end {}", self.name),
            source,
        };
        // It has a runtime of its own, and the caller may be on one.
        let end = || client::down(&self.name, self.is_left()?);
        let ended = std::thread::scope(|scope| scope.spawn(end).join());
        match ended.map_err(|_| failed("the thread ended by a panic".into()))? {
            Ok(Ended::Down | Ended::Guarded) => Ok(()),
            Ok(Ended::Nothing) => Err(VpnError::NoSuchVpn(self.name.clone())),
            Err(error) => Err(error.downcast::<VpnError>().unwrap_or_else(|error| failed(error.into()))),
        }
    }

    /// Whether the connection was killed, and may be taken back: a kill switch that is to stay is not a program's to
    /// end.
    fn is_left(&self) -> std::io::Result<bool> {
        let mut all = client::list()?.into_iter();
        let is_killed = all.any(|(name, _, process)| name == self.name && process.is_none());
        Ok(is_killed && guard::raised(&self.name) != Some(Raised::Stays))
    }

    /// As [`Self::stop`], on a tokio runtime. A stop that is given up goes on.
    ///
    /// # Errors
    /// As there.
    pub async fn stop_async(&self) -> Result<(), VpnError> {
        let client = self.clone();
        let stopped = tokio::task::spawn_blocking(move || client.stop()).await;
        stopped.unwrap_or_else(|error| {
            Err(VpnError::Internal { action: format!("end {}", self.name), source: error.into() })
        })
    }

    /// How the connection is now. One that has ended is not started: who wants to know that it was follows
    /// [`Self::changes`].
    ///
    /// # Errors
    /// [`VpnError::PermissionDenied`]: this user may not ask; [`VpnError::CannotConnect`]: what answers is not
    /// Ringway.
    pub fn status(&self) -> Result<Status, VpnError> {
        look::status(&self.name)
    }

    /// The status now, and each that it changes to: a stream for a tokio runtime, and
    /// [`Changes::wait`], which blocks.
    ///
    /// # Errors
    /// As [`Self::status`]; no thread can be had.
    pub fn changes(&self) -> Result<Changes, VpnError> {
        Changes::of(self.name.clone())
    }

    /// See [`check::check`]: through the connection, whatever the host's routes are.
    #[must_use]
    pub fn check(&self, check: &Check) -> Checked {
        check::check(&self.through(check))
    }

    /// As [`Self::check`], on a tokio runtime.
    pub async fn check_async(&self, check: &Check) -> Checked {
        check::check_async(&self.through(check)).await
    }

    fn through(&self, check: &Check) -> Check {
        Check { link: Some(self.name.clone()), ..check.clone() }
    }
}

/// What an exit code of `ringway up` means; the failures are those of the program.
fn meaning(code: Option<i32>) -> StartResult {
    let is = |failure: Failure| code == Some(failure.exit_code().into());
    match code {
        Some(0) => StartResult::Started,
        Some(MISUSED) => StartResult::InvalidParameters,
        _ if is(Failure::Configuration) => StartResult::InvalidParameters,
        _ if is(Failure::Running) => StartResult::AlreadyStarted,
        _ if is(Failure::NoAnswer) => StartResult::NoResponse,
        _ => StartResult::ConnectionFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_one_of_five_results() {
        use StartResult::*;
        let codes = [Some(0), Some(8), Some(3), Some(2), Some(1), Some(5), None, Some(9)].map(meaning);
        let failed = ConnectionFailed;
        let wanted = [
            Started,
            AlreadyStarted,
            InvalidParameters,
            InvalidParameters,
            failed,
            failed,
            failed,
            NoResponse,
        ];
        assert_eq!(codes, wanted);
    }

    #[test]
    fn without_the_program_nothing_starts_and_the_cause_is_told() {
        let client = VpnClient::new("/nowhere/vpn0.conf").unwrap().with_program("/nowhere/ringway");
        let Started { result, said } = client.start();
        assert!(result == StartResult::ConnectionFailed && said.contains("/nowhere/ringway"), "{said}");
        assert_eq!(VpnClient::new("/a/much-too-long-a-name.conf").unwrap_err().code(), 401);
    }
}
