//! Connections that anybody may open and hold: so many at a time, and one more ends the oldest, so that who is silent
//! or slow keeps nobody out.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;
use tokio::time::sleep;

/// Pause after accept(2) failed for want of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes connections and lets the youngest `most` of them `converse`, until dropped. `what` is what the log calls it.
pub async fn serve<S>(
    what: &str,
    most: u64,
    accept: impl AsyncFn() -> io::Result<S>,
    converse: impl AsyncFn(S) -> io::Result<()>,
) -> Infallible {
    // Connections are numbered; those below this number end.
    let (oldest, _) = watch::channel(0);
    let mut next = 0_u64;
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = accept() => match accepted {
                Ok(stream) => {
                    connections.push(bounded(converse(stream), next, oldest.subscribe()));
                    next += 1;
                    oldest.send_replace(next.saturating_sub(most));
                }
                Err(error) => {
                    tracing::warn!(%error, "{what}: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.next() => if let Err(error) = ended {
                tracing::debug!(%error, "{what}: connection ended");
            },
        }
    }
}

/// A conversation until it is done, or its number is no longer among the youngest.
async fn bounded(
    conversation: impl Future<Output = io::Result<()>>,
    number: u64,
    mut oldest: watch::Receiver<u64>,
) -> io::Result<()> {
    tokio::select! {
        // The conversation first: a whole request that is already there is answered.
        biased;
        done = conversation => done,
        _ = oldest.wait_for(|oldest| *oldest > number) => Err(io::ErrorKind::QuotaExceeded.into()),
    }
}
