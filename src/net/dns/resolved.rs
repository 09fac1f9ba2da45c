//! systemd-resolved by its D-Bus interface (org.freedesktop.resolve1(5)): servers and domains of one link, beside those
//! of all others. What it is told of a link ends with the link, so a killed process leaves nothing behind.

use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use zbus::connection::{Builder, Connection};
use zbus::{DynamicType, Error};

use super::{DnsError, Settings};
use crate::net::name::InterfaceName;
use crate::sys::interface::index_of;

const NAME: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const INTERFACE: &str = "org.freedesktop.resolve1.Manager";
/// It is not there, or not any more.
const NO_SUCH_LINK: &str = "org.freedesktop.resolve1.NoSuchLink";
/// How long all of it may take; the bus may have to start the service first.
const PATIENCE: Duration = Duration::from_secs(10);
/// Every name is below it.
const ROOT: &str = ".";

/// Has the tunnel's servers asked for what is theirs.
pub(super) fn set(bus: &Path, settings: &Settings) -> Result<(), DnsError> {
    let Settings { link, servers, search, match_domains } = settings;
    let link = index(link).ok_or_else(|| DnsError::Resolved(format!("there is no link {link}")))?;
    let everything = match_domains.is_empty();
    let routed = match_domains.iter().map(String::as_str).chain(everything.then_some(ROOT));
    let searched = search.iter().map(|domain| (domain.as_str(), false));
    let domains: Vec<(&str, bool)> = searched.chain(routed.map(|domain| (domain, true))).collect();
    let servers: Vec<(i32, Vec<u8>)> = servers.iter().map(family_and_bytes).collect();
    on_the_bus(bus, async |resolved| {
        let all = async {
            // The servers come last: before them no name is asked by this link.
            resolved.call("SetLinkDomains", &(link, domains)).await?;
            resolved.call("SetLinkDefaultRoute", &(link, everything)).await?;
            resolved.call("SetLinkDNS", &(link, servers)).await
        };
        let done = all.await;
        if done.is_err() {
            // That it failed is what is told.
            let _ = resolved.call("RevertLink", &(link,)).await;
        }
        done
    })
}

/// Takes everything back that was said of this link. None is as good.
pub(super) fn revert(bus: &Path, link: &InterfaceName) -> Result<(), DnsError> {
    let Some(link) = index(link) else { return Ok(()) };
    on_the_bus(bus, async |resolved| match resolved.call("RevertLink", &(link,)).await {
        Err(Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_LINK => Ok(()),
        done => done,
    })
}

/// The interface's methods.
struct Resolved(Connection);

impl Resolved {
    async fn call<B: Serialize + DynamicType>(&self, method: &str, body: &B) -> Result<(), Error> {
        self.0.call_method(Some(NAME), PATH, Some(INTERFACE), method, body).await.map(drop)
    }
}

/// Does `work` on a thread and a runtime of its own: the caller may be on one, and is not asked to be asynchronous.
fn on_the_bus<W>(bus: &Path, work: W) -> Result<(), DnsError>
where
    W: AsyncFnOnce(&Resolved) -> Result<(), Error> + Send,
{
    let talk = async || {
        let stream = UnixStream::connect(bus)?;
        let resolved = Resolved(Builder::unix_stream(stream).build().await?);
        work(&resolved).await
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let patient = runtime.block_on(async { tokio::time::timeout(PATIENCE, talk()).await });
        patient.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    };
    let done = std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("ringway-resolved".to_owned()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(Error::Failure("its thread ended by a panic".to_owned())))
    });
    done.map_err(|error| DnsError::Resolved(format!("{}: {error}", bus.display())))
}

/// As D-Bus has an index.
fn index(link: &InterfaceName) -> Option<i32> {
    index_of(link.as_str())?.try_into().ok()
}

fn family_and_bytes(server: &IpAddr) -> (i32, Vec<u8>) {
    match server {
        IpAddr::V4(server) => (libc::AF_INET, server.octets().into()),
        IpAddr::V6(server) => (libc::AF_INET6, server.octets().into()),
    }
}
