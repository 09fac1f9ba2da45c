//! The UAPI server: connections beside each other on the control thread, none of which can hold up another.
//!
//! 1. accept, up to [`MAX_CONNECTIONS`] at a time
//! 2. read, cut into lines of bounded length, parse
//! 3. carry a whole request out (the only part that is not interrupted)
//! 4. answer, within [`IDLE`]

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use zeroize::Zeroizing;

use super::Control;
use super::crowd::ACCEPT_PAUSE;
use super::dataplane::DataPlane;
use super::errno::Errno;
use super::socket::LocalSocket;
use super::uapi::parse::{MAX_LINE, Progress, RequestParser};
use super::uapi::{Request, format};

/// Most connections at a time; further ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 256;

/// A connection on which nothing moves for so long is closed.
pub const IDLE: Duration = Duration::from_secs(120);

/// How often the socket's file is looked for, beside each time that a connection ends: so whoever removes it need not
/// wait if he hangs up afterwards.
const FILE_CHECK: Duration = Duration::from_secs(1);

/// Room for lines being read; above [`MAX_LINE`].
const READ_BUFFER: usize = 16 << 10;

/// Why the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM or SIGINT.
    Signal,
    /// The socket's file was removed or replaced.
    SocketRemoved,
    /// The data plane says that the device is gone.
    DeviceGone,
}

/// Serves until a signal, the removal of the socket's file, or `gone`. SIGHUP ends nothing.
///
/// # Errors
/// What no retry can mend: no runtime, no signal handlers.
pub async fn serve<D: DataPlane>(
    socket: &LocalSocket,
    control: &RefCell<Control<D>>,
    gone: impl Future<Output = ()>,
) -> io::Result<End> {
    let listener = socket.listener()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let _hangup = signal(SignalKind::hangup())?;
    let mut check = interval(FILE_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connections = FuturesUnordered::new();
    tokio::pin!(gone);
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => connections.push(converse(stream, control)),
                Err(error) => {
                    tracing::warn!(%error, "UAPI: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(result) = connections.next() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "UAPI: connection ended");
                }
                if !socket.is_there() {
                    return Ok(End::SocketRemoved);
                }
            }
            _ = check.tick() => if !socket.is_there() {
                return Ok(End::SocketRemoved);
            },
            _ = terminate.recv() => return Ok(End::Signal),
            _ = interrupt.recv() => return Ok(End::Signal),
            () = &mut gone => return Ok(End::DeviceGone),
        }
    }
}

/// One connection, request by request, until the client hangs up.
async fn converse<D: DataPlane>(mut stream: UnixStream, control: &RefCell<Control<D>>) -> io::Result<()> {
    let mut lines = Lines::new();
    let mut parser = RequestParser::new();
    loop {
        let progress = match lines.next(&mut stream).await? {
            Some(line) => parser.line(line),
            None if parser.in_request() => Progress::Broken(Errno::PROTOCOL),
            None => return Ok(()),
        };
        match progress {
            Progress::More => {}
            Progress::Complete(request) => {
                let text = answer(request, &mut control.borrow_mut());
                write(&mut stream, &text).await?;
            }
            Progress::Broken(errno) => {
                let mut text = Zeroizing::new(String::new());
                format::finish(&mut text, Err(errno));
                return write(&mut stream, &text).await;
            }
        }
    }
}

/// Carries a request out.
fn answer<D: DataPlane>(
    request: Result<Request, Errno>,
    Control { device, dataplane, peers, .. }: &mut Control<D>,
) -> Zeroizing<String> {
    let (mut text, result) = match request {
        Ok(Request::Get) => (format::get(device, &dataplane.snapshot()), Ok(())),
        Ok(Request::Show) => {
            let stats = dataplane.snapshot();
            let mut show = format::show(device, &stats, dataplane.report());
            if let Some(peers) = peers {
                show.peers.iter_mut().for_each(|peer| peers.describe(peer));
            }
            match serde_json::to_string(&show) {
                Ok(json) => (Zeroizing::new(format!("json={json}\n")), Ok(())),
                Err(_) => (Zeroizing::default(), Err(Errno::IO)),
            }
        }
        Ok(Request::Switch(switches)) => {
            let mut switches = switches.into_iter();
            (Zeroizing::default(), switches.try_for_each(|(switch, on)| dataplane.switch(switch, on)))
        }
        // Its file and its store say who its peers are.
        Ok(Request::Set(_)) if peers.is_some() => (Zeroizing::default(), Err(Errno::NOT_PERMITTED)),
        Ok(Request::Set(set)) => (Zeroizing::default(), device.apply(set, dataplane)),
        Err(errno) => (Zeroizing::default(), Err(errno)),
    };
    format::finish(&mut text, result);
    text
}

/// Writes all, as long as the client takes some of it within [`IDLE`].
async fn write(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = timeout(IDLE, stream.write(rest)).await??;
        rest = rest.get(written..).filter(|_| written > 0).ok_or(io::ErrorKind::WriteZero)?;
    }
    Ok(())
}

/// Cuts a stream into lines, in one buffer of fixed size (keys pass through it: it never moves, and is wiped at
/// the end).
struct Lines {
    buffer: Zeroizing<Vec<u8>>,
    /// First byte not handed out.
    start: usize,
    /// End of what was read.
    end: usize,
}

impl Lines {
    fn new() -> Self {
        Self { buffer: Zeroizing::new(vec![0; READ_BUFFER]), start: 0, end: 0 }
    }

    /// The next line without its end, or the first bytes of one that is too long; `None` at the end of the stream.
    /// What follows the last line end is not a line.
    async fn next(&mut self, stream: &mut UnixStream) -> io::Result<Option<&[u8]>> {
        let mut searched = self.start;
        let line = loop {
            let fresh = self.buffer.get(searched..self.end).unwrap_or_default();
            let found = fresh.iter().position(|byte| *byte == b'\n').map(|at| searched + at);
            let cut = self.start + MAX_LINE + 1;
            if let Some(at) = found.or((self.end > cut).then_some(cut)) {
                break self.start..at;
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            searched = self.end;
            let Some(room) = self.buffer.get_mut(self.end..) else { return Ok(None) };
            match timeout(IDLE, stream.read(room)).await?? {
                0 => return Ok(None),
                read => self.end += read,
            }
        };
        self.start = line.end + 1;
        Ok(self.buffer.get(line))
    }
}

#[cfg(test)]
mod tests;
