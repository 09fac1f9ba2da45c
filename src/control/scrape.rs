//! The metrics page over HTTP: a listener of our own, since the exporter's knows no limits. Whoever connects may be
//! slow, silent or many; the page is built on the control thread, so all of it is bounded.
//!
//! 1. accept; the youngest [`MAX_CONNECTIONS`] stay, so that idle ones cannot keep a scraper out
//! 2. read the head of one request, at most [`MAX_HEAD`] bytes within [`PATIENCE`]
//! 3. answer within [`PATIENCE`], and close

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::crowd;

/// Most connections at a time: one more ends the oldest.
pub const MAX_CONNECTIONS: u64 = 32;

/// Longest head of a request, bytes. Prometheus sends some 300.
pub const MAX_HEAD: usize = 8 << 10;

/// How long a client may take to send its request, and then to take its answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 64;

/// What the exposition format in text is called.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// There is no page.
#[derive(Debug, thiserror::Error)]
#[error("the metrics page cannot be served on {address}: choose another address or port, or none")]
pub struct ListenError {
    /// Where it should have been.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// A listener for [`serve`].
///
/// # Errors
/// An address in use, or not of this host.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let bind = |socket: TcpSocket| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    socket.and_then(bind).map_err(|source| ListenError { address, source })
}

/// Serves what `page` makes, until dropped. `page` is asked once per proper request.
pub async fn serve(listener: &TcpListener, page: impl FnMut() -> Rc<str>) -> Infallible {
    let page = RefCell::new(page);
    let accept = async || listener.accept().await.map(|(stream, _)| stream);
    crowd::serve("metrics", MAX_CONNECTIONS, accept, async |stream| converse(stream, &page).await).await
}

/// One request, one answer.
async fn converse(mut stream: TcpStream, page: &RefCell<impl FnMut() -> Rc<str>>) -> io::Result<()> {
    let head = timeout(PATIENCE, read_head(&mut stream)).await??;
    let request = Request::parse(&head);
    let body = match request {
        Request::Page | Request::Head => (*page.borrow_mut())(),
        Request::Refused(_, why) => why.into(),
    };
    let (status, kind) = match request {
        Request::Page | Request::Head => ("200 OK", FORMAT),
        Request::Refused(status, _) => (status, "text/plain; charset=utf-8"),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let body = if matches!(request, Request::Head) { "" } else { &*body };
    let answer = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    };
    timeout(PATIENCE, answer).await?
}

/// Reads up to the empty line, [`MAX_HEAD`] bytes at most; what follows is not looked at.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut limited = stream.take(MAX_HEAD as u64);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if limited.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// The page.
    Page,
    /// Only its headers.
    Head,
    /// Status line and one line for people.
    Refused(&'static str, &'static str),
}

impl Request {
    /// The head of a request, or as much of one as came.
    fn parse(head: &[u8]) -> Self {
        if !head.windows(4).any(|end| end == b"\r\n\r\n") {
            return if head.len() >= MAX_HEAD {
                Self::Refused("431 Request Header Fields Too Large", "too long a request\n")
            } else {
                Self::Refused("400 Bad Request", "half a request\n")
            };
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let (method, target) = match words.as_slice() {
            [method, target, b"HTTP/1.1" | b"HTTP/1.0"] => (*method, *target),
            _ => return Self::Refused("400 Bad Request", "no request of HTTP 1\n"),
        };
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        match (method, path) {
            (b"GET", b"/metrics") => Self::Page,
            (b"HEAD", b"/metrics") => Self::Head,
            (b"GET" | b"HEAD", _) => Self::Refused("404 Not Found", "the page is /metrics\n"),
            _ => Self::Refused("405 Method Not Allowed", "GET or HEAD /metrics\n"),
        }
    }
}

#[cfg(test)]
mod tests;
