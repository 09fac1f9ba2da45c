//! The gateway's admin API: its socket, `/run/ringway/IF/admin.sock`, and peers that come to their end by themselves.

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::Gateway;
use crate::config;
use crate::control::Control;
use crate::control::admin::{self, http};
use crate::control::socket::LocalSocket;
use crate::sys::privileges;
use crate::types::Moment;

/// The socket's name in the interface's run directory.
pub const SOCKET: &str = "admin.sock";
/// Between two looks at which peers have come to their end.
const SECOND: Duration = Duration::from_secs(1);

/// Binds the socket: for root alone, or for a group as well.
///
/// # Errors
/// No such group, or what the file system says.
pub(super) fn bind(config: &config::Gateway) -> anyhow::Result<LocalSocket> {
    let group = match config.admin.group.as_str() {
        "" => None,
        name => Some(privileges::group_named(name).context("[admin] group")?),
    };
    let path = config.run_dir().join(SOCKET);
    LocalSocket::bind_at(path.clone(), group).with_context(|| format!("binding {}", path.display()))
}

/// The admin socket of an interface.
#[must_use]
pub fn socket_of(interface: &str) -> std::path::PathBuf {
    Path::new(config::RUN).join(interface).join(SOCKET)
}

/// Serves the API, if there is one, and ends peers. Never ends.
pub(super) async fn serve(socket: Option<LocalSocket>, control: &RefCell<Control<Gateway>>) -> Infallible {
    let Some(socket) = socket else { return std::future::pending().await };
    let (door, asked) = admin::door();
    let listen = async {
        match socket.listener() {
            Ok(listener) => http::serve(&listener, door).await,
            Err(error) => {
                tracing::error!(%error, "the admin socket cannot be served");
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        never = admin::serve(asked, control) => match never {},
        never = listen => match never {},
        never = expire(control) => match never {},
    }
}

async fn expire(control: &RefCell<Control<Gateway>>) -> Infallible {
    // Those that had ended at the start are not in force, and taking them away once more changes nothing.
    let mut since = Moment(0);
    loop {
        since = admin::expire(control, since).await;
        tokio::time::sleep(SECOND).await;
    }
}
