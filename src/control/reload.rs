//! Reading the configuration again: who asks, and what is answered. Whoever serves a gateway of one file does it; a
//! drop-in has no file.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::errno::Errno;

/// Requests that wait at a time; each further client waits on its own connection.
const WAITING: usize = 4;

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Only tell the difference.
    pub dry_run: bool,
    /// The file that is meant; a gateway of another one refuses.
    pub file: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The gateway's file.
    pub file: String,
    /// The difference is in force, or there is none. False after a dry run that found one.
    pub applied: bool,
    /// Peers that differ, by their keys in order.
    pub peers: Vec<PeerDifference>,
    /// Keys of the file that differ and can be followed.
    pub settings: Vec<SettingDifference>,
    /// Keys of the file that differ and need a restart: they stay as they are.
    pub restart: Vec<SettingDifference>,
    /// What is wrong, a line each. If `applied` is false, nothing has changed.
    pub errors: Vec<String>,
    /// The errors are the file's.
    pub bad_file: bool,
}

/// A peer that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerDifference {
    /// Base64.
    pub public_key: String,
    /// What the file calls it now, or called it before it was removed.
    pub name: String,
    /// How.
    pub change: Change,
    /// Which of its keys differ, if it is changed.
    pub keys: Vec<String>,
}

/// What becomes of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Added,
    /// It stays, and so does its session.
    Changed,
    /// It goes.
    Removed,
}

/// A key of the file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingDifference {
    /// `SECTION.KEY`, or `KEY` outside of sections.
    pub key: String,
    /// In force.
    pub from: String,
    /// In the file.
    pub to: String,
}

/// A request on its way to whoever carries it out.
#[derive(Debug)]
pub struct Asked {
    /// What is wanted.
    pub ask: Ask,
    /// Whom to tell; he may have gone meanwhile.
    pub answer: oneshot::Sender<Answer>,
}

/// Where requests go in.
#[derive(Clone, Debug)]
pub struct Door(mpsc::Sender<Asked>);

/// A door, and where its requests come out.
#[must_use]
pub fn door() -> (Door, mpsc::Receiver<Asked>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Door(sender), receiver)
}

impl Door {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Errno::IO`] if nobody answers any more.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, Errno> {
        let (answer, told) = oneshot::channel();
        self.0.send(Asked { ask, answer }).await.map_err(|_| Errno::IO)?;
        told.await.map_err(|_| Errno::IO)
    }
}
