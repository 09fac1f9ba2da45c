//! The admin API: peers of the store, invites, leases and pools, looked at and changed while the gateway runs, over
//! HTTP and JSON on a unix socket. Whoever may open the socket may do all of it.
//!
//! 1. [`http`] takes connections, each with its limits, and makes a [`Command`] of a request
//! 2. [`serve`] carries commands out, beside each other: those that look at once, those that change one after the other
//! 3. a change is looked at as a whole (`change`), stored, then in force, then told; refused, it has changed nothing
//!
//! `openapi.json` describes it, and is served beside it. Repeating a request is safe: what is so already is so.

mod change;
pub mod http;
mod invite;
mod look;
pub mod wire;

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::Ipv4Addr;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use self::wire::{Changes, ErrorView, Failure, NewInvite, NewPeer, PoolChanges, Since, Which};
use super::Control;
use super::dataplane::DataPlane;
use super::reload::Ask;
use crate::lease::Refusal;
use crate::store::StoreError;
use crate::types::Moment;

/// Commands that are carried out at a time; [`http::MAX_CONNECTIONS`] bounds what waits.
const AT_A_TIME: usize = 64;
/// Seconds after which asking again makes sense where the store does not keep up or has no room.
const LATER: u32 = 5;

/// What is asked for.
#[derive(Debug)]
pub enum Command {
    /// The gateway, as its clients must know it.
    Gateway,
    /// Peers, of the file first.
    Peers(Which),
    /// A peer, by its name or its key.
    Peer(String),
    /// Make a peer of this name.
    Put(String, NewPeer),
    /// Change the peer of this name.
    Change(String, Changes),
    /// Remove the peer of this name.
    Remove(String),
    /// Invites.
    Invites(Which),
    /// An invite, by its id.
    Invite(String),
    /// Make an invite of this id.
    PutInvite(String, NewInvite),
    /// Take the invite of this id back.
    Revoke(String),
    /// All pools.
    Pools,
    /// Change the pool of this name.
    Pool(String, PoolChanges),
    /// Read the file again.
    Reload(Ask),
    /// Leases.
    Leases(Which),
    /// What has happened.
    Events(Since),
    /// Whose an address was at a moment (seconds since 1970; none for now).
    History(Ipv4Addr, Option<u32>),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of HTTP.
    pub status: u16,
    /// JSON; empty for none.
    pub body: String,
    /// Seconds after which asking again makes sense.
    pub retry_after: Option<u32>,
}

impl Reply {
    fn json(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self { status, body, retry_after: None },
            Err(_) => Problem::internal("the answer is no JSON").into(),
        }
    }
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: u16,
    code: &'static str,
    message: String,
    retry_after: Option<u32>,
}

impl Problem {
    fn new(status: u16, code: &'static str, message: String) -> Self {
        Self { status, code, message, retry_after: None }
    }

    /// What is asked for makes no sense.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid", message.into())
    }

    /// There is no such thing.
    fn missing(message: impl Into<String>) -> Self {
        Self::new(404, "not_found", message.into())
    }

    /// It does not fit to what is there.
    fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "conflict", message.into())
    }

    /// There is nobody any more who could do it.
    fn ending() -> Self {
        Self::new(503, "ending", "the gateway is ending".to_owned())
    }

    /// A mistake of this program.
    fn internal(message: &str) -> Self {
        Self::new(500, "internal", message.to_owned())
    }
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        let Problem { status, code, message, retry_after } = problem;
        let failure = Failure { error: ErrorView { code: code.to_owned(), message } };
        let body = serde_json::to_string(&failure).unwrap_or_default();
        Self { status, body, retry_after }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let later = error.heals().then_some(LATER);
        Self { retry_after: later, ..Self::new(503, "store", error.to_string()) }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NoFreeAddress => "no_free_address",
            Refusal::NoPool(_) | Refusal::NoSuchPool(_) => "no_pool",
            Refusal::NotInAPool(_) | Refusal::Taken { .. } | Refusal::Reserved(_) => "conflict",
        };
        Self::new(409, code, refusal.to_string())
    }
}

/// A command on its way to whoever carries it out.
#[derive(Debug)]
pub struct Asked {
    command: Command,
    /// Who asked may have gone meanwhile.
    answer: oneshot::Sender<Reply>,
}

/// Where commands go in.
#[derive(Clone, Debug)]
pub struct Door(mpsc::Sender<Asked>);

/// A door, and where its commands come out.
#[must_use]
pub fn door() -> (Door, mpsc::Receiver<Asked>) {
    let (sender, receiver) = mpsc::channel(AT_A_TIME);
    (Door(sender), receiver)
}

impl Door {
    /// Asks, and waits for what comes of it.
    pub async fn ask(&self, command: Command) -> Reply {
        let (answer, told) = oneshot::channel();
        let ending = || Problem::ending().into();
        match self.0.send(Asked { command, answer }).await {
            Ok(()) => told.await.unwrap_or_else(|_| ending()),
            Err(_) => ending(),
        }
    }
}

/// Carries commands out until dropped. A command goes on when who asked has gone.
pub async fn serve<D: DataPlane>(
    mut asked: mpsc::Receiver<Asked>,
    control: &RefCell<Control<D>>,
) -> Infallible {
    let mut working = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(Asked { command, answer }) = asked.recv(), if working.len() < AT_A_TIME => {
                working.push(async move {
                    let _ = answer.send(carry_out(command, control).await);
                });
            }
            Some(()) = working.next() => {}
            else => return std::future::pending().await,
        }
    }
}

async fn carry_out<D: DataPlane>(command: Command, control: &RefCell<Control<D>>) -> Reply {
    let done = match command {
        Command::Gateway => look::gateway(&control.borrow()),
        Command::Peers(which) => look::peers(&control.borrow(), &which),
        Command::Peer(name) => look::peer(&mut control.borrow_mut(), &name),
        Command::Invites(which) => invite::all(&control.borrow(), &which),
        Command::Invite(id) => invite::one(&control.borrow(), &id),
        Command::PutInvite(id, wanted) => invite::put(control, &id, wanted).await,
        Command::Revoke(id) => invite::revoke(control, &id).await,
        Command::Pools => look::pools(&control.borrow()),
        Command::Pool(name, changes) => change::pool(&mut control.borrow_mut(), &name, changes),
        Command::Reload(ask) => reload(control, ask).await,
        Command::Leases(which) => look::leases(&control.borrow(), &which),
        Command::Events(since) => look::events(control, &since).await,
        Command::History(address, at) => look::history(control, address, at).await,
        Command::Put(name, wanted) => change::put(control, &name, wanted).await,
        Command::Change(name, changes) => change::change(control, &name, changes).await,
        Command::Remove(name) => change::remove(control, &name).await,
    };
    done.unwrap_or_else(Reply::from)
}

/// Has the file read again, by whoever does that.
async fn reload<D>(control: &RefCell<Control<D>>, ask: Ask) -> Result<Reply, Problem> {
    // Not borrowed while it is waited for.
    let door = control.borrow().reload.clone();
    let door = door.ok_or_else(|| Problem::internal("this device has no file"))?;
    let answer = door.ask(ask).await.map_err(|_| Problem::ending())?;
    Ok(Reply::json(200, &answer))
}

pub use invite::enrol;

/// Between two looks at which invites are to be forgotten, seconds.
const FORGET: u32 = 60;

/// Ends peers whose end came after `since`, and forgets invites that ended long ago. Returns the moment up to which
/// that was done.
pub async fn expire<D: DataPlane>(control: &RefCell<Control<D>>, since: Moment) -> Moment {
    let now = change::expire(control, since).await;
    if now.0 / FORGET != since.0 / FORGET {
        invite::forget(control).await;
    }
    now
}

#[cfg(test)]
mod tests;
