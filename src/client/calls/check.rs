//! How good the way to a host is: round trips and loss by ICMP echo; and, where it serves a TCP port, how long it takes
//! to connect and how fast bytes go there and come back.
//!
//! Any service will do that takes what it is sent or sends by itself: echo (RFC 862) for both ways, discard (RFC 863),
//! chargen (RFC 864).

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::client::rounds::{Rounds, Summary};
use crate::net::echo::{Echo, Options};
use crate::net::name::InterfaceName;
use crate::sys::clock::boottime;
use crate::sys::socket::unacknowledged;
use crate::wire::echo::Fate;

/// Most bytes each way: 1 GiB.
pub const MOST_BYTES: u64 = 1 << 30;
/// Longest time.
pub const LONGEST: Duration = Duration::from_secs(600);
/// Round trips of one check.
const ROUNDS: u16 = 5;
/// Between two of them.
const APART: Duration = Duration::from_millis(200);
/// Bytes of their IP packets: what ping(8) sends.
const SIZE: usize = 84;
/// Written and read at a time, bytes.
const PIECE: usize = 64 << 10;
/// Between two looks at what is acknowledged.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// A name or an address.
    pub host: String,
    /// A TCP port; `None`: ICMP echo alone.
    pub port: Option<u16>,
    /// Bytes to be sent to the port, at most [`MOST_BYTES`].
    pub send: u64,
    /// Bytes to be received from it, at most [`MOST_BYTES`].
    pub receive: u64,
    /// For all of it, at most [`LONGEST`].
    pub timeout: Duration,
    /// By this link, whatever the host's routes are.
    pub link: Option<InterfaceName>,
}

/// What a check comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i8)]
pub enum CheckResult {
    /// Everything that was asked for went well.
    #[default]
    Successful = 0,
    /// What was asked for makes no sense.
    InvalidParameters = -1,
    /// The name, the way, or the port is not there.
    ConnectionFailed = -2,
    /// Not everything was answered in time.
    NoResponse = -3,
}

impl CheckResult {
    /// The number of the service that this descends from.
    #[must_use]
    pub fn code(self) -> i8 {
        self as i8
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    /// One of four.
    pub result: CheckResult,
    /// What is wrong, in words; empty if nothing is.
    pub said: String,
    /// Which address was checked.
    pub address: Option<IpAddr>,
    /// Round trips by ICMP echo. A host that answers no echo but serves its port is well all the same.
    pub rounds: Summary,
    /// How long it took to connect to the port: a round trip of TCP.
    pub connect: Option<Duration>,
    /// Bits per second that were sent and acknowledged.
    pub sent: Option<f64>,
    /// Bits per second that were received.
    pub received: Option<f64>,
}

/// Why a check failed.
type Failed = (CheckResult, String);

/// Does it.
#[must_use]
pub fn check(check: &Check) -> Checked {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        io::Result::Ok(runtime.block_on(check_async(check)))
    };
    // The caller may be on a runtime.
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    let failed = |said: String| Checked { result: CheckResult::ConnectionFailed, said, ..Checked::default() };
    match ended {
        Ok(Ok(checked)) => checked,
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed("the thread ended by a panic".to_owned()),
    }
}

/// As [`check`], on a tokio runtime.
pub async fn check_async(check: &Check) -> Checked {
    let mut checked = Checked::default();
    let done = match validate(check) {
        Ok(()) => measure(check, &mut checked).await,
        Err(said) => Err((CheckResult::InvalidParameters, said)),
    };
    if let Err((result, said)) = done {
        (checked.result, checked.said) = (result, said);
    }
    checked
}

fn validate(check: &Check) -> Result<(), String> {
    let Check { host, port, send, receive, timeout, .. } = check;
    let wrong = |said: &str| Err(said.to_owned());
    match () {
        () if host.is_empty() => wrong("no host is named"),
        () if *port == Some(0) => wrong("0 is no port"),
        () if *send > MOST_BYTES || *receive > MOST_BYTES => wrong("more than 1 GiB"),
        () if port.is_none() && (*send > 0 || *receive > 0) => wrong("bytes are sent to a port: HOST:PORT"),
        () if timeout.is_zero() || *timeout > LONGEST => wrong("the time is 1 ms to 600 s"),
        () => Ok(()),
    }
}

async fn measure(check: &Check, checked: &mut Checked) -> Result<(), Failed> {
    let end = Instant::now() + check.timeout;
    let place = (check.host.as_str(), check.port.unwrap_or(0));
    let resolving = lookup_host(place);
    let found = within(end, resolving, || format!("{} is not resolved in time", check.host)).await?;
    let mut found = found.map_err(|error| failed(format!("{}: {error}", check.host)))?;
    let place = found.next().ok_or_else(|| failed(format!("{} has no address", check.host)))?;
    checked.address = Some(place.ip());

    let begin = Instant::now();
    // A busy way answers later: first how it is without.
    let rounds = rounds(check, place.ip(), end).await;
    let heard = match rounds {
        Ok((summary, fate)) => {
            checked.rounds = summary;
            fate
        }
        Err(error) if check.port.is_none() => return Err(failed(format!("{}: {error}", place.ip()))),
        Err(_) => None,
    };
    if check.port.is_some() {
        return transfer(check, place, end, checked).await;
    }
    let took = begin.elapsed().as_secs_f64();
    match heard {
        Some(Fate::Replied) => Ok(()),
        Some(Fate::Expired | Fate::Unreachable) => {
            Err(failed(format!("somebody on the way says that {} cannot be reached", place.ip())))
        }
        None => Err(late(format!("nothing comes back from {} within {took:.1} s", place.ip()))),
    }
}

/// Some round trips, for half of the time at most; and the best that was heard of one.
async fn rounds(check: &Check, to: IpAddr, end: Instant) -> io::Result<(Summary, Option<Fate>)> {
    let mut echo = Echo::open(&Options { to, link: check.link.clone(), hops: None })?;
    let end = Instant::now() + end.saturating_duration_since(Instant::now()) / 2;
    let (mut rounds, mut heard) = (Rounds::default(), None);
    for sequence in 0..ROUNDS {
        echo.send(sequence, SIZE).await?;
        rounds.sent(sequence, boottime());
        let is_last = sequence + 1 == ROUNDS;
        let until = if is_last { end } else { end.min(Instant::now() + APART) };
        while !(is_last && rounds.is_idle()) {
            let Ok(answer) = timeout(until.saturating_duration_since(Instant::now()), echo.answer()).await
            else {
                break;
            };
            let answer = answer?;
            match answer.fate {
                Fate::Replied => {
                    rounds.ended(answer.sequence, boottime());
                    heard = Some(Fate::Replied);
                }
                fate => heard = heard.or(Some(fate)),
            }
        }
    }
    Ok((rounds.summary(), heard))
}

async fn transfer(
    check: &Check,
    place: SocketAddr,
    end: Instant,
    checked: &mut Checked,
) -> Result<(), Failed> {
    let begin = Instant::now();
    let connecting = async {
        let socket = if place.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(link) = &check.link {
            socket.bind_device(Some(link.as_str().as_bytes()))?;
        }
        socket.connect(place).await
    };
    let stream = within(end, connecting, || format!("{place} does not answer")).await?;
    let stream = stream.map_err(|error| match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => late(format!("{place} does not answer")),
        _ => failed(format!("{place}: {error}")),
    })?;
    checked.connect = Some(begin.elapsed());

    let begin = Instant::now();
    let (mut sent, mut received) = (0, 0);
    let work = both_ways(stream, (check.send, check.receive), (&mut sent, &mut received), begin);
    let done = timeout(end.saturating_duration_since(Instant::now()), work).await;
    match done {
        Ok(Ok((up, down))) => {
            let rate = |bytes: u64, took: Duration| {
                (bytes > 0).then(|| bytes as f64 * 8.0 / took.max(Duration::from_micros(1)).as_secs_f64())
            };
            (checked.sent, checked.received) = (rate(check.send, up), rate(check.receive, down));
            Ok(())
        }
        Ok(Err(error)) => {
            Err(late(format!("{place} ends after {sent} bytes to it and {received} back: {error}")))
        }
        Err(_) => Err(late(format!("{sent} bytes to {place} and {received} back in time"))),
    }
}

/// Sends and receives; how long each took, to the last byte that was acknowledged, and to the last that came.
async fn both_ways(
    stream: TcpStream,
    (send, receive): (u64, u64),
    (sent, received): (&mut u64, &mut u64),
    begin: Instant,
) -> io::Result<(Duration, Duration)> {
    let (mut from, mut to) = stream.into_split();
    let (reached, is_reached) = (Cell::new(Duration::ZERO), Notify::new());
    let up = async {
        let zeros = vec![0; PIECE];
        while *sent < send {
            let piece = usize::try_from(send - *sent).unwrap_or(PIECE).min(PIECE);
            *sent += to.write(zeros.get(..piece).unwrap_or_default()).await? as u64;
        }
        while send > 0 && unacknowledged(to.as_ref())? > 0 {
            sleep(LOOK_AGAIN).await;
        }
        let took = begin.elapsed();
        is_reached.notified().await;
        Ok((took, reached.get()))
    };
    let down = async {
        let mut buffer = vec![0; PIECE];
        while *received < receive {
            match from.read(&mut buffer).await? {
                0 => return io::Result::Err(io::ErrorKind::UnexpectedEof.into()),
                read => *received += read as u64,
            }
        }
        reached.set(begin.elapsed());
        is_reached.notify_one();
        // An echo takes no more than it can send back.
        while from.read(&mut buffer).await? > 0 {}
        pending::<io::Result<Infallible>>().await
    };
    tokio::select! {
        took = up => took,
        failed = down => match failed? {},
    }
}

/// Waits for it until then.
async fn within<T>(
    end: Instant,
    work: impl Future<Output = T>,
    what: impl Fn() -> String,
) -> Result<T, Failed> {
    timeout(end.saturating_duration_since(Instant::now()), work).await.map_err(|_| late(what()))
}

fn failed(said: String) -> Failed {
    (CheckResult::ConnectionFailed, said)
}

fn late(said: String) -> Failed {
    (CheckResult::NoResponse, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, port: Option<u16>) -> Check {
        Check { host: host.to_owned(), port, timeout: Duration::from_secs(5), ..Check::default() }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let fine = of("127.0.0.1", Some(7));
        for wrong in [
            of("", None),
            of("127.0.0.1", Some(0)),
            Check { send: 1, ..of("127.0.0.1", None) },
            Check { receive: MOST_BYTES + 1, ..fine.clone() },
            Check { timeout: Duration::ZERO, ..fine.clone() },
            Check { timeout: LONGEST * 2, ..fine },
        ] {
            let checked = check(&wrong);
            assert!(checked.result.code() == -1 && !checked.said.is_empty(), "{wrong:?}: {checked:?}");
        }
    }

    /// A host of one connection: takes `takes` bytes, sends `sends`, and stays.
    fn host(takes: usize, sends: usize) -> u16 {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut vec![0; takes]).unwrap();
            stream.write_all(&vec![0; sends]).unwrap();
            let _ = stream.read(&mut [0]);
        });
        port
    }

    #[test]
    fn bytes_both_ways_are_timed_and_too_few_of_them_are_no_response() {
        const MEGABYTE: u64 = 1 << 20;
        let sized = |port, send, receive| Check { send, receive, ..of("127.0.0.1", Some(port)) };
        let checked = check(&sized(host(1 << 20, 1 << 20), MEGABYTE, MEGABYTE));
        assert_eq!((checked.result, checked.said.as_str()), (CheckResult::Successful, ""));
        assert!(
            checked.sent.is_some_and(|rate| rate > 1e6) && checked.received.is_some_and(|rate| rate > 1e6)
        );
        assert!(checked.connect.is_some());
        let checked = check(&sized(host(0, 0), 0, 0));
        assert_eq!((checked.result, checked.sent, checked.received), (CheckResult::Successful, None, None));

        let short = Check { timeout: Duration::from_secs(2), ..sized(host(0, 10), 0, 11) };
        let checked = check(&short);
        assert!(checked.result.code() == -3 && checked.said.contains("10 back in time"), "{checked:?}");
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(check(&of("127.0.0.1", Some(nobody))).result.code(), -2);
        assert_eq!(check(&of("no-such-host.invalid", None)).result.code(), -2);
    }

    #[test]
    fn it_may_be_called_on_a_runtime_too() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(check(&of("", None)).result.code(), -1);
            assert_eq!(check_async(&of("127.0.0.1", Some(host(0, 0)))).await.result.code(), 0);
        });
    }
}
