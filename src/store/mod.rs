//! What must outlive the process and is no file of the operator's: leases, who had an address before, reservations,
//! peers, invites.
//!
//! 1. somebody hands [`Write`]s to [`thread::Handle::submit`], which never waits
//! 2. the store's thread takes all that has come meanwhile into one transaction ([`thread`])
//! 3. when that is on the disk, each of them is acknowledged: only then is the outside told
//!
//! [`Store`] is all that a store must do; [`sqlite`] does it with a file, and [`maintenance`] looks after that file.
//! What is written is whole states (whose an address is, from when to when), so that writing one again, or a later one
//! without the earlier, leaves nothing wrong.

pub mod maintenance;
pub mod sqlite;
pub mod thread;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{Moment, PublicKey, Secret};

/// An address, and whose it is or was last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The address.
    pub address: Ipv4Addr,
    /// Whose.
    pub client: PublicKey,
    /// Since when without a gap.
    pub since: Moment,
    /// Until when.
    pub until: Moment,
}

/// A peer that was made while the gateway ran, and stands in no file.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Tells it from every other peer of the store, whatever else of it changes.
    pub id: u64,
    /// What people call it; nobody else's.
    pub name: String,
    /// Its identity; nobody else's.
    pub public_key: PublicKey,
    /// The key that both sides share beside the others.
    pub preshared_key: Option<Secret>,
    /// Its address; nobody else's.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address of the other family; nobody else's.
    pub ipv6: Option<Ipv6Addr>,
    /// Its group; empty for none.
    pub group: String,
    /// When it ends; `None` for never.
    pub expires: Option<Moment>,
    /// It is kept, and may not come in.
    pub disabled: bool,
    /// When it was made.
    pub created: Moment,
}

/// An invitation to become a peer. The keys of its uses are public ones: what they are derived from is kept by nobody
/// here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// Its name; nobody else's.
    pub id: String,
    /// The key of each use.
    pub keys: Vec<PublicKey>,
    /// What names of peers that come of it begin with.
    pub prefix: String,
    /// Their group; empty for none.
    pub group: String,
    /// When it was made.
    pub created: Moment,
    /// When it ends.
    pub expires: Moment,
    /// When somebody took it back.
    pub revoked: Option<Moment>,
    /// Who has become a peer by it, and when, in this order.
    pub enrolled: Vec<(PublicKey, Moment)>,
}

/// A use of an invite that is to be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// Of which.
    pub invite: String,
    /// By whom.
    pub client: PublicKey,
    /// When.
    pub at: Moment,
}

/// A change.
#[derive(Clone, Debug)]
pub enum Write {
    /// The address is the client's from then to then. With `history`, what was there before is kept as history unless
    /// it is the same tenure, which has become longer or shorter.
    Lease {
        /// What is so from now on.
        tenure: Tenure,
        /// Keep what was before.
        history: bool,
    },
    /// The address is kept for the client for good.
    Reserve {
        /// The address.
        address: Ipv4Addr,
        /// For whom.
        client: PublicKey,
    },
    /// It is not any more.
    Unreserve {
        /// The address.
        address: Ipv4Addr,
    },
    /// History that ended before this moment goes, and of it no more than `most` at a time.
    Forget {
        /// What ended earlier.
        before: Moment,
        /// How many at most.
        most: u32,
    },
    /// The peer of this number is so from now on.
    Peer(Box<Peer>),
    /// There is no peer of this number any more.
    RemovePeer {
        /// Its number.
        id: u64,
    },
    /// There is this invite from now on, which nobody has used.
    Invite(Box<Invite>),
    /// An invite ends now.
    Revoke {
        /// Which.
        id: String,
        /// When.
        at: Moment,
    },
    /// An invite is forgotten, with who came by it.
    RemoveInvite {
        /// Which.
        id: String,
    },
}

/// What a store had when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The last tenure of an address.
    Lease(Tenure),
    /// A reservation.
    Reservation {
        /// The address.
        address: Ipv4Addr,
        /// For whom.
        client: PublicKey,
    },
}

/// A place that keeps what it has acknowledged.
pub trait Store: Send {
    /// All leases, then all reservations.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&mut self, each: &mut dyn FnMut(Stored)) -> Result<(), StoreError>;

    /// All peers, by their numbers.
    ///
    /// # Errors
    /// [`StoreError`].
    fn peers(&mut self) -> Result<Vec<Peer>, StoreError>;

    /// All invites, by their ids.
    ///
    /// # Errors
    /// [`StoreError`].
    fn invites(&mut self) -> Result<Vec<Invite>, StoreError>;

    /// Spends a use of an invite, and writes all of this with it, if the invite has one left, has not ended and is not
    /// revoked, and this client has spent none of it: looked at and done as one. False if not; then nothing has
    /// changed.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    fn enrol(
        &mut self,
        enrolment: &Enrolment,
        writes: &mut dyn Iterator<Item = Write>,
    ) -> Result<bool, StoreError>;

    /// Writes all of this, in this order, or nothing of it. Returns when it is durable.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    fn commit(&mut self, writes: &mut dyn Iterator<Item = Write>) -> Result<(), StoreError>;

    /// Whose the address was at that moment, the last tenure first. More than one only if a clock was set back.
    ///
    /// # Errors
    /// [`StoreError`].
    fn tenures(&mut self, address: Ipv4Addr, at: Moment) -> Result<Vec<Tenure>, StoreError>;
}

/// Why something is not stored, or cannot be read. Shared by all that waited for the same transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// ENOSPC, EDQUOT. It heals by itself when there is room.
    #[error(
        "{}: no room is left on its file system: nothing is lost, and nothing new is stored until there is",
        .0.display()
    )]
    Full(PathBuf),
    /// The file's structure is damaged.
    #[error(
        "{}: damaged ({what}): stop the gateway and put a backup in its place, `ringway store restore BACKUP`; \
         without one move the file away and begin with an empty store", .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A later version of this program made it.
    #[error(
        "{}: has schema {found} of {by}; ringway {} knows schemas up to {known}: run that version or a later one, or \
         restore a backup of before the upgrade", .path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The latest that this program knows.
        known: u32,
        /// The program that wrote it.
        by: String,
    },
    /// Something else is in the file.
    #[error(
        "{}: is no store of Ringway's, or its first bytes are damaged: name another path, or put a backup in its \
         place, `ringway store restore BACKUP`", .0.display()
    )]
    Foreign(PathBuf),
    /// Another process has it.
    #[error("{}: another process uses it: stop that gateway, or give each its own store", .0.display())]
    InUse(PathBuf),
    /// A file or directory cannot be used.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Anything else that SQLite says.
    #[error("{}: {source}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: Arc<rusqlite::Error>,
    },
    /// More is waiting to be stored than the queue takes.
    #[error("the store does not keep up: ask again later")]
    Busy,
    /// The store's thread has ended.
    #[error("the store's thread has ended: restart the gateway")]
    Ended,
}

impl StoreError {
    /// True if it passes by itself, and asking again later makes sense.
    #[must_use]
    pub fn heals(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Busy)
    }
}
