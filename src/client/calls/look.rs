//! How a connection is, by what it leaves in the file system and says on its UAPI socket; and as a stream of changes.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use tokio::sync::mpsc;

use crate::client::error::{Status, VpnError};
use crate::control::socket::{DIRECTORY, socket_path};
use crate::control::uapi::format::{Show, ShowPeer};
use crate::gateway::client;
use crate::net::name::InterfaceName;
use crate::noise::timers::Limits;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer, bytes: a client's profile is no longer.
const LONGEST: u64 = 16 << 20;
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Changes that may wait to be taken.
const WAITING: usize = 64;

/// How the connection of this name is now.
///
/// # Errors
/// As [`VpnClient::status`](super::VpnClient::status).
pub fn status(name: &InterfaceName) -> Result<Status, VpnError> {
    let denied = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            VpnError::PermissionDenied { action: format!("ask {name}"), source }
        }
        _ => VpnError::CannotConnect { service: "socket of the connection", source: source.into() },
    };
    let found = client::list().map_err(denied)?.into_iter().find(|(found, ..)| found == name);
    match found {
        None => Ok(Status::NotStarted),
        // It was killed: its routes are there, and lead nowhere.
        Some((.., None)) => Ok(Status::ConnLost),
        Some(_) => match ask(name) {
            Ok(status) => Ok(status),
            // It starts, or it ends.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(Status::NotStarted)
            }
            Err(error) => Err(denied(error)),
        },
    }
}

/// As `ringway show` does.
fn ask(name: &InterfaceName) -> io::Result<Status> {
    let mut stream = UnixStream::connect(socket_path(Path::new(DIRECTORY), name))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"show=json\n\n")?;
    let lines = BufReader::new(stream.take(LONGEST)).lines();
    let lines: Vec<_> = lines.take(2).collect::<Result<_, _>>()?;
    understand(&lines, SystemTime::now()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `None` for an answer that is none, or ends too early. One gateway that answers is enough.
fn understand(lines: &[String], now: SystemTime) -> Option<Status> {
    let [answer, end] = lines else { return None };
    let show: Show = serde_json::from_str(answer.strip_prefix("json=").filter(|_| end == "errno=0")?).ok()?;
    let started = |peer: &ShowPeer| Status::of_session(peer, now) == Status::Started;
    Some(if show.peers.iter().any(started) { Status::Started } else { Status::ConnLost })
}

impl Status {
    /// Of a session with this gateway. Without a keepalive the last handshake may be long ago because nobody had
    /// anything to say.
    #[must_use]
    pub fn of_session(gateway: &ShowPeer, now: SystemTime) -> Self {
        let is_kept = gateway.persistent_keepalive.is_some();
        match gateway.handshake_age(now) {
            Some(_) if gateway.lost => Self::ConnLost,
            Some(age) if age <= Limits::PAPER.reject_after_time || !is_kept => Self::Started,
            _ => Self::ConnLost,
        }
    }
}

/// The status of one connection and each that it changes to, as long as it is not dropped; looks four times a second.
/// It ends when the connection cannot be asked any more.
#[derive(Debug)]
pub struct Changes(mpsc::Receiver<Status>);

impl Changes {
    pub(super) fn of(name: InterfaceName) -> Result<Self, VpnError> {
        let mut last = status(&name)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let work = move || {
            if sender.blocking_send(last).is_err() {
                return;
            }
            while !sender.is_closed() {
                std::thread::sleep(LOOK_AGAIN);
                let now = match status(&name) {
                    Ok(Status::NotStarted) if last != Status::NotStarted => Status::Stopped,
                    Ok(now) => now,
                    Err(error) => {
                        tracing::warn!(%error, "a connection's status is not followed any more");
                        return;
                    }
                };
                if now != last {
                    last = now;
                    if sender.blocking_send(now).is_err() {
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("ringway-status".to_owned()).spawn(work);
        thread.map_err(|source| VpnError::Internal {
            action: "start a thread".to_owned(),
            source: source.into(),
        })?;
        Ok(Self(receiver))
    }
}

impl Changes {
    /// Waits for the next one. It panics on a tokio runtime, which has the stream instead.
    pub fn wait(&mut self) -> Option<Status> {
        self.0.blocking_recv()
    }
}

impl Stream for Changes {
    type Item = Status;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Status>> {
        self.0.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Option<Status> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        understand(&lines, SystemTime::UNIX_EPOCH + Duration::from_secs(1000))
    }

    #[test]
    fn one_gateway_that_answers_is_enough() {
        let silent = r#"{"persistent_keepalive":25}"#;
        let lost = r#"{"last_handshake":990,"lost":true}"#;
        let young = r#"{"last_handshake":900,"persistent_keepalive":25}"#;
        for (peers, status) in [
            (vec![], Status::ConnLost),
            (vec![silent, lost], Status::ConnLost),
            (vec![silent, young], Status::Started),
        ] {
            let text = format!("json={{\"peers\":[{}]}}\nerrno=0", peers.join(","));
            assert_eq!(told(&text), Some(status), "{text}");
        }
    }

    #[test]
    fn an_old_session_is_lost_only_if_it_should_be_young() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let status = |age: u64, persistent_keepalive, lost| {
            let last_handshake = Some(10_000 - age);
            let gateway = ShowPeer { persistent_keepalive, last_handshake, lost, ..ShowPeer::default() };
            Status::of_session(&gateway, now)
        };
        assert_eq!(Status::of_session(&ShowPeer::default(), now), Status::ConnLost);
        assert_eq!(status(180, Some(25), false), Status::Started);
        assert_eq!(status(181, Some(25), false), Status::ConnLost);
        assert_eq!(status(3600, None, false), Status::Started);
        assert_eq!(status(9, None, true), Status::ConnLost);
    }

    #[test]
    fn what_is_cut_short_or_refused_says_nothing() {
        for text in ["", "json={}", "json={\nerrno=0", "json={}\nerrno=1", "errno=1", "hello\nerrno=0"] {
            assert_eq!(told(text), None, "{text}");
        }
    }
}
