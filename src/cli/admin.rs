//! The way to a running gateway's admin API: one request, one answer.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::config;
use crate::control::admin::wire::{Failure, Page};
use crate::gateway::admin::{SOCKET, socket_of};
use crate::net::name::InterfaceName;

/// How long an answer may take: longer than the gateway gives a connection.
const PATIENCE: Duration = Duration::from_secs(40);
/// Items that are asked for at a time.
pub const PAGE: usize = 1000;

/// Which gateway.
#[derive(Debug, Args)]
pub struct Which {
    /// The gateway's interface; may be left out where only one runs
    #[arg(short, long, global = true, value_name = "IFNAME")]
    interface: Option<InterfaceName>,
    /// One JSON object
    #[arg(long, global = true)]
    pub json: bool,
}

/// A gateway that may be asked.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// That of an interface.
    #[must_use]
    pub fn of(interface: &InterfaceName) -> Self {
        Self { path: socket_of(interface.as_str()) }
    }
}

impl Which {
    /// The gateway that is meant.
    ///
    /// # Errors
    /// None is named, and there is not just one.
    pub fn client(&self) -> anyhow::Result<Client> {
        match &self.interface {
            Some(name) => Ok(Client::of(name)),
            None => Ok(Client { path: only_socket(Path::new(config::RUN))? }),
        }
    }
}

/// The one admin socket of this host.
fn only_socket(directory: &Path) -> anyhow::Result<PathBuf> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("no gateway runs here (`ringway gateway`)")
        }
        entries => entries.with_context(|| directory.display().to_string())?,
    };
    let sockets = entries.filter_map(|entry| Some(entry.ok()?.path().join(SOCKET)));
    let mut sockets: Vec<_> = sockets.filter(|path| path.exists()).collect();
    sockets.sort_unstable();
    match sockets.as_slice() {
        [] => bail!("no gateway runs here (`ringway gateway`)"),
        [only] => Ok(only.clone()),
        several => {
            let name = |path: &PathBuf| path.parent()?.file_name()?.to_str().map(str::to_owned);
            let names: Vec<_> = several.iter().filter_map(name).collect();
            bail!("several gateways run here: say which, -i {}", names.join(", -i "))
        }
    }
}

impl Client {
    /// Asks for something.
    ///
    /// # Errors
    /// Nobody answers, or what the gateway says is wrong.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, Vec::new()).and_then(|body| understand(&body))
    }

    /// Sends something, and understands the answer.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        what: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(what).context("the request")?;
        self.ask(method, path, body).and_then(|body| understand(&body))
    }

    /// Has something removed.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.ask(Method::DELETE, path, Vec::new()).map(drop)
    }

    /// All items of something that comes in pages.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn all<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let page: Page<T> = self.get(&format!("{path}?limit={PAGE}{after}"))?;
            all.extend(page.items);
            match page.next {
                Some(next) => after = format!("&after={}", escaped(&next)),
                None => return Ok(all),
            }
        }
    }

    fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = runtime.block_on(async {
            let (status, body) = tokio::time::timeout(PATIENCE, self.converse(method, path, body))
                .await
                .map_err(|_| anyhow!("no answer in {} seconds", PATIENCE.as_secs()))??;
            anyhow::Ok((status, body))
        });
        let (status, body) = asked?;
        if status < 300 {
            return Ok(body);
        }
        match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => bail!("{}", failure.error.message),
            Err(_) => bail!("the gateway answers with HTTP {status}"),
        }
    }

    async fn converse(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<(u16, Bytes)> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.hint(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = async {
            let response = sender.send_request(request).await.context("no answer: is the gateway ending?")?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.context("the answer was cut short")?;
            anyhow::Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer, connection);
        tokio::select! {
            biased;
            answered = &mut answer => answered,
            // What came before the end is still to be read.
            _ = &mut connection => answer.await,
        }
    }

    /// What an error about the socket means and what to do about it.
    fn hint(&self, error: io::Error) -> anyhow::Error {
        let path = self.path.display();
        let hint = match error.kind() {
            io::ErrorKind::NotFound => format!("no gateway serves this interface: {path} is missing"),
            io::ErrorKind::ConnectionRefused => format!("the gateway has ended and left {path} behind"),
            io::ErrorKind::PermissionDenied => {
                format!("{path} is open to root and the group of [admin] only: run this with sudo")
            }
            _ => path.to_string(),
        };
        anyhow!(error).context(hint)
    }
}

fn understand<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the answer of another version of Ringway")
}

/// As part of a URI's path or query (RFC 3986 section 2.1).
#[must_use]
pub fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let each = text.as_bytes().iter().map(|byte| match byte {
        byte if plain(byte) => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    each.collect()
}

/// Prints to the standard output; whoever reads no further has read enough.
///
/// # Errors
/// It is closed.
pub fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Prints JSON on one line.
///
/// # Errors
/// The standard output is closed.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string(value).context("the answer")? + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Scratch;

    #[test]
    fn names_are_escaped_for_a_path() {
        assert_eq!(escaped("Ann's phone/2+é~"), "Ann%27s%20phone%2F2%2B%C3%A9~");
    }

    #[test]
    fn the_only_gateway_is_meant_and_several_are_named() {
        let Scratch(scratch) = &Scratch::new("sockets");
        let told = || only_socket(scratch).map_err(|error| error.to_string());
        assert!(told().unwrap_err().contains("no gateway runs here"));
        for name in ["wg0", "wg1"] {
            fs::create_dir_all(scratch.join(name)).unwrap();
        }
        assert!(told().unwrap_err().contains("no gateway runs here"));
        fs::write(scratch.join("wg1/admin.sock"), "").unwrap();
        assert_eq!(told().unwrap(), scratch.join("wg1/admin.sock"));
        fs::write(scratch.join("wg0/admin.sock"), "").unwrap();
        assert_eq!(told().unwrap_err(), "several gateways run here: say which, -i wg0, -i wg1");
    }
}
