//! The API as HTTP on a unix socket: one request per connection, bounded in bytes, in time and in number, so that
//! whoever writes or reads slowly holds up nobody but himself.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

use super::wire::{Changes, NewInvite, NewPeer, PoolChanges, ReloadRequest, Since, Which};
use super::{Command, Door, Problem, Reply};
use crate::control::crowd;
use crate::control::reload::Ask;

/// Most connections at a time: one more ends the oldest.
pub const MAX_CONNECTIONS: u64 = 64;
/// Longest body of a request, bytes.
pub const MAX_BODY: usize = 64 << 10;
/// Longest head of a request, bytes; hyper takes no less than 8 KiB.
const MAX_HEAD: usize = 16 << 10;
/// Most header lines.
const MAX_HEADERS: usize = 64;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may take, from accept to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(30);

/// The description of the API (OpenAPI 3).
pub const OPENAPI: &str = include_str!("openapi.json");

/// Serves the API until dropped.
pub async fn serve(listener: &UnixListener, door: Door) -> Infallible {
    let router = router(door);
    let accept = async || listener.accept().await.map(|(stream, _)| stream);
    crowd::serve("admin", MAX_CONNECTIONS, accept, async |stream| converse(stream, router.clone()).await)
        .await
}

/// A connection until it is done, or its time is over.
async fn converse(stream: UnixStream, router: Router) -> io::Result<()> {
    // Before the connection, so that it ends after it: only then is the connection's own buffer gone.
    let at_end = WipeAtEnd::default();
    let inner = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(at_end.0.clone());
        inner.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    timeout(WHOLE, connection).await?.map_err(io::Error::other)
}

/// What of bodies with secrets a connection has read: in buffers that the connection still has a hand on, so that they
/// are wiped when it is over ([`wipe`]).
#[derive(Clone, Debug, Default)]
struct Spent(Arc<Mutex<Vec<Bytes>>>);

/// Wipes what was spent, however a connection ends.
#[derive(Default)]
struct WipeAtEnd(Spent);

impl Drop for WipeAtEnd {
    fn drop(&mut self) {
        if let Ok(mut spent) = self.0.0.lock() {
            wipe(std::mem::take(&mut *spent));
        }
    }
}

/// A body that may hold a secret: one copy, which is wiped when it was understood.
struct Sealed(Zeroizing<Vec<u8>>);

impl FromRequest<Door> for Sealed {
    type Rejection = Reply;

    async fn from_request(request: Request, _: &Door) -> Result<Self, Reply> {
        let spent = request.extensions().get::<Spent>().cloned().unwrap_or_default();
        let mut body = request.into_body();
        // Never grows, so that no copy is left behind.
        let mut whole = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Problem::invalid(format!("the body: {error}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            if whole.len() + bytes.len() > MAX_BODY {
                return Err(too_large().into());
            }
            whole.extend_from_slice(&bytes);
            if let Ok(mut spent) = spent.0.lock() {
                spent.push(bytes);
            }
        }
        Ok(Self(whole))
    }
}

/// Wipes pieces of buffers that nobody else has a hand on any more, each to its buffer's end. Returns what was wiped.
fn wipe(mut pieces: Vec<Bytes>) -> Vec<usize> {
    let mut wiped = Vec::new();
    // Of pieces of one buffer the last to go, which is the first to come, has the others behind it.
    while let Some(piece) = pieces.pop() {
        if let Ok(mut own) = piece.try_into_mut() {
            own.clear();
            let all = own.capacity();
            own.resize(all, 0);
            own.as_mut().zeroize();
            wiped.push(all);
        }
    }
    wiped
}

fn router(door: Door) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/v1/gateway", get(|State(door): Asks| async move { door.ask(Command::Gateway).await }))
        .route("/v1/peers", get(peers))
        .route("/v1/peers/{name}", get(peer).put(put).patch(change).delete(remove))
        .route("/v1/invites", get(invites))
        .route("/v1/invites/{id}", get(invite).put(put_invite).delete(revoke))
        .route("/v1/pools", get(|State(door): Asks| async move { door.ask(Command::Pools).await }))
        .route("/v1/pools/{name}", patch(pool))
        .route("/v1/reload", post(reload))
        .route("/v1/leases", get(leases))
        .route("/v1/leases/{address}/history", get(history))
        .route("/v1/events", get(events))
        .fallback(async || Reply::from(Problem::missing("no such path: /openapi.json names them")))
        .method_not_allowed_fallback(async || {
            Reply::from(Problem::new(405, "method", "not with this method: see /openapi.json".to_owned()))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(door)
}

type Asks = State<Door>;
type Name = Result<Path<String>, PathRejection>;

async fn openapi() -> Reply {
    Reply { status: 200, body: OPENAPI.to_owned(), retry_after: None }
}

async fn peers(State(door): Asks, which: Result<Query<Which>, QueryRejection>) -> Result<Reply, Reply> {
    let Query(which) = which?;
    Ok(door.ask(Command::Peers(which)).await)
}

async fn peer(State(door): Asks, name: Name) -> Result<Reply, Reply> {
    let Path(name) = name?;
    Ok(door.ask(Command::Peer(name)).await)
}

async fn put(State(door): Asks, name: Name, body: Sealed) -> Result<Reply, Reply> {
    let (Path(name), wanted) = (name?, parse::<NewPeer>(&body.0)?);
    Ok(door.ask(Command::Put(name, wanted)).await)
}

async fn change(State(door): Asks, name: Name, body: Sealed) -> Result<Reply, Reply> {
    let (Path(name), changes) = (name?, parse::<Changes>(&body.0)?);
    Ok(door.ask(Command::Change(name, changes)).await)
}

async fn remove(State(door): Asks, name: Name) -> Result<Reply, Reply> {
    let Path(name) = name?;
    Ok(door.ask(Command::Remove(name)).await)
}

async fn pool(State(door): Asks, name: Name, body: Result<Bytes, BytesRejection>) -> Result<Reply, Reply> {
    let (Path(name), changes) = (name?, parse::<PoolChanges>(&body?)?);
    Ok(door.ask(Command::Pool(name, changes)).await)
}

async fn reload(State(door): Asks, body: Result<Bytes, BytesRejection>) -> Result<Reply, Reply> {
    let ReloadRequest { dry_run, file } = parse(&body?)?;
    Ok(door.ask(Command::Reload(Ask { dry_run, file })).await)
}

async fn invites(State(door): Asks, which: Result<Query<Which>, QueryRejection>) -> Result<Reply, Reply> {
    let Query(which) = which?;
    Ok(door.ask(Command::Invites(which)).await)
}

async fn invite(State(door): Asks, id: Name) -> Result<Reply, Reply> {
    let Path(id) = id?;
    Ok(door.ask(Command::Invite(id)).await)
}

async fn put_invite(
    State(door): Asks,
    id: Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Reply, Reply> {
    let (Path(id), wanted) = (id?, parse::<NewInvite>(&body?)?);
    Ok(door.ask(Command::PutInvite(id, wanted)).await)
}

async fn revoke(State(door): Asks, id: Name) -> Result<Reply, Reply> {
    let Path(id) = id?;
    Ok(door.ask(Command::Revoke(id)).await)
}

async fn leases(State(door): Asks, which: Result<Query<Which>, QueryRejection>) -> Result<Reply, Reply> {
    let Query(which) = which?;
    Ok(door.ask(Command::Leases(which)).await)
}

async fn events(State(door): Asks, since: Result<Query<Since>, QueryRejection>) -> Result<Reply, Reply> {
    let Query(since) = since?;
    Ok(door.ask(Command::Events(since)).await)
}

/// At which moment.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    at: Option<u32>,
}

async fn history(
    State(door): Asks,
    address: Result<Path<Ipv4Addr>, PathRejection>,
    at: Result<Query<At>, QueryRejection>,
) -> Result<Reply, Reply> {
    let (Path(address), Query(At { at })) = (address?, at?);
    Ok(door.ask(Command::History(address, at)).await)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Reply> {
    serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body: {error}")).into())
}

fn too_large() -> Problem {
    Problem::new(413, "too_large", format!("a body has at most {MAX_BODY} bytes"))
}

impl From<PathRejection> for Reply {
    fn from(rejection: PathRejection) -> Self {
        Problem::invalid(rejection.body_text()).into()
    }
}

impl From<QueryRejection> for Reply {
    fn from(rejection: QueryRejection) -> Self {
        Problem::invalid(rejection.body_text()).into()
    }
}

impl From<BytesRejection> for Reply {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => Problem::invalid(rejection.body_text()),
        }
        .into()
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let Self { status, body, retry_after } = self;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if response_has_body(status) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// All but 204 have one.
fn response_has_body(status: u16) -> bool {
    status != 204
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_a_buffer_is_wiped_once_nobody_else_has_it() {
        let buffer = Bytes::from(vec![7; 100]);
        let pieces = || vec![buffer.slice(10..30), buffer.slice(30..60)];
        assert_eq!(wipe(pieces()), [0_usize; 0], "somebody has it still");
        let mut pieces = pieces();
        pieces.push(Bytes::from(vec![7; 5]));
        drop(buffer);
        assert_eq!(wipe(pieces), [5, 90], "to the end of the buffer");
    }
}
