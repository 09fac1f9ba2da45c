//! The API over a real socket, with a real store and a data plane that insists on its contract.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

mod invites;

use super::*;
use crate::config;
use crate::control::device::Device;
use crate::control::events::{PeerEvent, What};
use crate::control::fake::{Call, Fake};
use crate::control::leases::{Keeping, Leases};
use crate::control::peers::{Peers, Site};
use crate::control::socket::LocalSocket;
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::lease::PoolSpec;
use crate::sys::testing::Scratch;
use crate::types::{Moment, PublicKey};

const FILE: &str = "addresses = [\"100.64.0.1/10\", \"fd64::1/64\"]\n\
    [[pool]]\nname = \"all\"\nipv4 = [\"100.65.0.0-100.65.0.3\"]\nipv6 = \"fd64::/64\"\nquarantine = 0\n\
    [[pool]]\nname = \"few\"\nipv4 = [\"100.66.0.1\"]\ngroups = [\"phones\"]\n\
    [[peer]]\nname = \"office\"\npublic_key = \"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\"\n\
    allowed_ips = [\"100.64.7.0/24\"]\n";
const OFFICE: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

/// A gateway without packets, in a directory of this test's own.
struct Bench {
    directory: Scratch,
    control: RefCell<Control<Fake>>,
}

impl Bench {
    fn new(name: &str) -> Self {
        let directory = Scratch::new(name);
        let control = Self::start(&directory.0);
        Self { directory, control: RefCell::new(control) }
    }

    fn start(directory: &Path) -> Control<Fake> {
        let path = Path::new("/etc/gateway.toml");
        let file = config::Gateway::parse(path, FILE).unwrap();
        let specs: Vec<PoolSpec> = file.pool.iter().map(config::Pool::spec).collect();
        let store = directory.join("store.db");
        let keeping = Keeping { path: &store, history: 30, account: None };
        let (leases, stored) = Leases::open(&specs, keeping).unwrap();
        let peers = Peers::new(Site::new(path, &file), stored.peers, stored.invites);
        peers.check(path, &file).unwrap();
        let mut control = Control {
            leases: Some(leases),
            peers: Some(peers),
            ..Control::new(Device::new(51820), Fake::new(4))
        };
        let office = PeerChange {
            allowed_ips: vec![AllowedIp::Add("100.64.7.0/24".parse().unwrap())],
            ..PeerChange::new(OFFICE.parse().unwrap())
        };
        let now = control.leases.as_ref().unwrap().now();
        let stored = control.peers.as_ref().unwrap();
        let all = stored.in_force(now).chain([office]).collect();
        let key = Some(Some(crate::types::Secret([0x48; 32])));
        let request = SetRequest { private_key: key, peers: all, ..SetRequest::default() };
        control.device.apply(request, &mut control.dataplane).unwrap();
        control.dataplane.take();
        control
    }

    /// Ends the process, in a way, and begins it anew.
    fn restart(&mut self) {
        // The store's lock is the old one's until it is gone.
        self.control.get_mut().leases = None;
        *self.control.get_mut() = Self::start(&self.directory.0);
    }

    fn socket(&self) -> PathBuf {
        self.directory.0.join("admin.sock")
    }

    /// Serves while the test does something.
    fn run<T>(&self, test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = LocalSocket::bind_at(self.socket(), None).unwrap();
            let listener = socket.listener().unwrap();
            let (door, asked) = door();
            tokio::select! {
                never = serve(asked, &self.control) => match never {},
                never = http::serve(&listener, door) => match never {},
                done = test => done,
            }
        })
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let (status, said) = self.send(&request(method, path, &body)).await;
        (status, serde_json::from_str(&said).unwrap_or(Value::Null))
    }

    /// One request, and all that comes back.
    async fn send(&self, text: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        answer(stream).await
    }

    async fn put(&self, name: &str, body: Value) -> (u16, Value) {
        self.ask("PUT", &format!("/v1/peers/{name}"), Some(body)).await
    }

    async fn change(&self, name: &str, body: Value) -> (u16, Value) {
        self.ask("PATCH", &format!("/v1/peers/{name}"), Some(body)).await
    }

    async fn look(&self, name: &str) -> (u16, Value) {
        self.ask("GET", &format!("/v1/peers/{name}"), None).await
    }

    fn calls(&self) -> Vec<Call> {
        self.control.borrow_mut().dataplane.take()
    }
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn answer(mut stream: UnixStream) -> (u16, String) {
    let mut said = Vec::new();
    // Who is refused before he has said all gets his answer, then an error.
    let _ = stream.read_to_end(&mut said).await;
    let said = String::from_utf8(said).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").expect(&said);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn key(n: u8) -> String {
    PublicKey([n; 32]).to_base64()
}

fn new(n: u8) -> Value {
    json!({ "public_key": key(n) })
}

fn message(answer: &(u16, Value)) -> &str {
    answer.1["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer:?}"))
}

#[test]
fn a_peer_is_made_stored_and_in_force_and_is_so_after_a_restart() {
    let mut bench = Bench::new("made");
    bench.run(async {
        let (status, made) = bench.put("alice", new(1)).await;
        assert_eq!((status, &made["source"], &made["state"]), (201, &json!("store"), &json!("active")));
        assert_eq!(made["allowed_ips"], json!(["100.65.0.0/32", "fd64::6441:0/128"]), "{made}");
        let calls = bench.calls();
        // Nobody else is touched, and the address's worker owns it.
        assert!(matches!(calls[0], Call::AddPeer(_, worker, key, None) if key.0 == [1; 32] && worker.0 == 0));
        assert!(matches!(&calls[1], Call::AddPrefixes(two) if two.len() == 2));
        assert_eq!(calls.len(), 2, "{calls:?}");
        // The same once more is as good; another is not.
        assert_eq!(bench.put("alice", new(1)).await, (200, made.clone()));
        let other = bench.put("alice", new(2)).await;
        assert!(other.0 == 409 && message(&other).contains("with another public_key"), "{other:?}");
        let psk = json!({ "public_key": key(1), "preshared_key": key(9), "group": "x", "expires": u32::MAX });
        let other = bench.put("alice", psk).await;
        assert!(message(&other).contains("another preshared_key, group, expires"), "{other:?}");
        assert_eq!(bench.calls(), []);

        let full = json!({ "public_key": key(2), "preshared_key": key(9), "group": "phones",
            "addresses": ["100.64.0.9", "fd64::9"], "expires": u32::MAX });
        let (status, bob) = bench.put("bob", full.clone()).await;
        assert_eq!((status, &bob["preshared_key"], &bob["group"]), (201, &json!(true), &json!("phones")));
        assert_eq!(bob["allowed_ips"], json!(["100.64.0.9/32", "fd64::9/128"]));
        assert!(!bob.to_string().contains(&key(9)), "a preshared key is not shown");
        assert!(matches!(bench.calls()[0], Call::AddPeer(.., Some(psk)) if psk == [9; 32]));
        assert_eq!(bench.put("bob", full).await.0, 200);
    });
    let before = bench.run(async { bench.ask("GET", "/v1/peers", None).await.1 });
    bench.restart();
    bench.run(async {
        assert_eq!(bench.ask("GET", "/v1/peers", None).await.1, before);
        assert_eq!(bench.control.borrow().dataplane.owners.len(), 5);
        // What alice has nobody else gets.
        let carol = bench.put("carol", new(3)).await.1;
        assert_eq!(carol["allowed_ips"][0], "100.65.0.1/32");
        assert_eq!(bench.ask("DELETE", "/v1/peers/alice", None).await.0, 204);
        assert_eq!(bench.ask("DELETE", "/v1/peers/alice", None).await.0, 404);
        assert_eq!(bench.control.borrow().dataplane.owners.len(), 5);
    });
    bench.restart();
    assert_eq!(bench.run(async { bench.look("alice").await.0 }), 404);
}

#[test]
fn a_change_touches_only_whom_it_names() {
    let mut bench = Bench::new("changed");
    bench.run(async {
        bench.put("alice", json!({ "public_key": key(1), "preshared_key": key(9) })).await;
        bench.put("bob", new(2)).await;
        bench.calls();
        // Another name: nothing to do for the data plane.
        let (status, renamed) = bench.change("bob", json!({ "name": "rob" })).await;
        assert_eq!((status, &renamed["name"], bench.calls().len()), (200, &json!("rob"), 0));
        assert_eq!(bench.look("bob").await.0, 404);
        // Disabled and enabled, twice: the address stays.
        for (disabled, state) in
            [(true, "disabled"), (true, "disabled"), (false, "active"), (false, "active")]
        {
            let (status, peer) = bench.change("rob", json!({ "disabled": disabled })).await;
            assert_eq!((status, &peer["state"]), (200, &json!(state)));
            assert_eq!(peer["allowed_ips"][0], "100.65.0.1/32");
            let there = bench.control.borrow().device.peer(&PublicKey([2; 32])).is_some();
            assert_eq!(there, !disabled);
        }
        let calls = bench.calls();
        assert_eq!(calls.iter().filter(|call| matches!(call, Call::AddPeer(..))).count(), 1, "{calls:?}");
        assert_eq!(calls.iter().filter(|call| matches!(call, Call::RemovePeer(..))).count(), 1, "{calls:?}");
        let told: Vec<_> = calls.iter().filter_map(dismissed).collect();
        assert_eq!(told, ["this client is disabled"], "{calls:?}");
        // Another key: the same address, the preshared key stays unless it is told.
        let (_, keyed) = bench.change("alice", json!({ "public_key": key(5) })).await;
        assert_eq!(
            (&keyed["public_key"], &keyed["allowed_ips"][0]),
            (&json!(key(5)), &json!("100.65.0.0/32"))
        );
        let calls = bench.calls();
        let made = |call: &Call| match call {
            Call::AddPeer(_, _, key, psk) => key.0 == [5; 32] && *psk == Some([9; 32]),
            _ => false,
        };
        assert!(
            calls.iter().any(made) && calls.iter().any(|call| matches!(call, Call::RemovePeer(_))),
            "{calls:?}"
        );
        assert_eq!(bench.change("alice", json!({ "preshared_key": null })).await.1["preshared_key"], false);
        assert!(matches!(bench.calls()[..], [Call::PresharedKey(_, None)]));
        assert_eq!(bench.change("alice", json!({ "group": "phones" })).await.1["group"], "phones");
        assert_eq!(bench.calls(), []);
        // Other addresses: by name, outside of pools, and one of the group's pool.
        for (wanted, got) in [
            (json!(["100.65.0.3"]), json!(["100.65.0.3/32", "fd64::6441:3/128"])),
            (json!(["100.64.0.5"]), json!(["100.64.0.5/32"])),
            (json!(["fd64::5"]), json!(["fd64::5/128"])),
            (json!([]), json!(["100.66.0.1/32"])),
        ] {
            let (status, peer) = bench.change("alice", json!({ "addresses": wanted })).await;
            assert_eq!((status, &peer["allowed_ips"]), (200, &got), "{peer}");
        }
    });
    let before = bench.run(async { bench.ask("GET", "/v1/peers", None).await.1 });
    bench.restart();
    bench.run(async {
        assert_eq!(bench.ask("GET", "/v1/peers", None).await.1, before);
        // What was given up is free again.
        let again = json!({ "public_key": key(7), "addresses": ["100.65.0.3"] });
        assert_eq!(bench.put("carol", again).await.0, 201);
    });
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let bench = Bench::new("refused");
    bench.run(async {
        bench.put("alice", new(1)).await;
        bench.calls();
        let before = bench.ask("GET", "/v1/peers", None).await;
        let at = |address: &str| json!({ "public_key": key(2), "addresses": [address] });
        let own = bench.control.borrow().device.public_key().unwrap().to_base64();
        let office = "/etc/gateway.toml:11";
        for (name, body, status, says) in [
            ("bob", new(1), 409, "the peer \"alice\"'s"),
            ("bob", json!({ "public_key": OFFICE }), 409, office),
            ("bob", json!({ "public_key": own }), 409, "the gateway's own"),
            ("bob", json!({ "public_key": "x" }), 400, "44 characters"),
            ("bob", json!({}), 400, "missing field `public_key`"),
            ("bob", json!({ "public_key": key(2), "colour": 1 }), 400, "unknown field `colour`"),
            ("office", new(2), 409, office),
            ("..", new(2), 400, "is no name"),
            ("%2e", new(2), 400, "is no name"),
            ("a%0ab", new(2), 400, "is no name"),
            ("bob", at("100.65.0.0"), 409, "the peer \"alice\"'s"),
            ("bob", at("fd64::6441:0"), 409, "the peer \"alice\"'s"),
            ("bob", at("fd64::6441:2"), 409, "goes with 100.65.0.2 of a pool"),
            ("bob", at("100.64.7.9"), 409, office),
            ("bob", at("100.64.0.1"), 409, "the gateway's own"),
            ("bob", at("10.0.0.1"), 409, "in no network of the gateway's"),
            ("bob", at("224.0.0.1"), 400, "no address that a peer can have"),
            (
                "bob",
                json!({ "public_key": key(2), "addresses": ["100.64.0.5", "100.64.0.6"] }),
                400,
                "one per family",
            ),
            ("bob", json!({ "public_key": key(2), "expires": 7 }), 400, "has passed"),
            ("bob", json!({ "public_key": key(2), "group": "a\nb" }), 400, "group"),
        ] {
            let answer = bench.put(name, body.clone()).await;
            assert!(answer.0 == status && message(&answer).contains(says), "{name} {body}: {answer:?}");
        }
        for (name, body, status, says) in [
            ("office", json!({ "disabled": true }), 409, "change it there, then `ringway reload`"),
            ("nobody", json!({ "disabled": true }), 404, "there is no peer \"nobody\""),
            ("alice", json!({ "name": "office" }), 409, office),
            ("alice", json!({ "public_key": OFFICE }), 409, office),
            ("alice", json!({ "addresses": ["100.64.7.1"] }), 409, office),
            ("alice", json!({ "public_key": key(5), "addresses": [] }), 400, "one after the other"),
        ] {
            let answer = bench.change(name, body.clone()).await;
            assert!(answer.0 == status && message(&answer).contains(says), "{name} {body}: {answer:?}");
        }
        let answer = bench.ask("DELETE", "/v1/peers/office", None).await;
        assert!(answer.1["error"]["code"] == "file_peer" && message(&answer).contains(office), "{answer:?}");
        // The pool has four.
        for (n, name) in ["b", "c", "d"].into_iter().enumerate() {
            assert_eq!(bench.put(name, new(10 + n as u8)).await.0, 201);
        }
        let answer = bench.put("e", new(20)).await;
        assert_eq!((answer.0, &answer.1["error"]["code"]), (409, &json!("no_free_address")));
        for name in ["b", "c", "d"] {
            assert_eq!(bench.ask("DELETE", &format!("/v1/peers/{name}"), None).await.0, 204);
        }
        assert_eq!(bench.ask("GET", "/v1/peers", None).await, before);
    });
}

/// What a peer is told when it goes.
fn dismissed(call: &Call) -> Option<String> {
    if let Call::Dismissed(_, frame) = call { Some(why(frame)) } else { None }
}

fn why(frame: &[u8]) -> String {
    crate::wire::frame::told(crate::wire::frame::Frame::parse(frame).unwrap().body)
}

#[test]
fn a_peer_ends_by_itself_and_comes_back_with_a_later_end() {
    let mut bench = Bench::new("ends");
    let now = bench.control.borrow().leases.as_ref().unwrap().now();
    bench.run(async {
        for (n, name) in ["alice", "bob"].into_iter().enumerate() {
            let wanted = json!({ "public_key": key(1 + n as u8), "expires": now.0 + 1 + 1000 * n as u32 });
            assert_eq!(bench.put(name, wanted).await.0, 201);
        }
        bench.calls();
        let done = expire(&bench.control, Moment(0)).await;
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let done = expire(&bench.control, done).await;
        let calls = bench.calls();
        let [Call::Dismissed(_, frame), Call::RemovePrefixes(_), Call::RemovePeer(_)] = &calls[..] else {
            panic!("{calls:?}")
        };
        assert_eq!(why(frame), "this client's time is over");
        assert_eq!(expire(&bench.control, done).await, done);
        assert_eq!((&bench.look("alice").await.1["state"], bench.calls().len()), (&json!("expired"), 0));
        assert_eq!(bench.look("bob").await.1["state"], "active");
    });
    bench.restart();
    bench.run(async {
        assert!(bench.control.borrow().device.peer(&PublicKey([1; 32])).is_none(), "nor after a restart");
        let (status, alice) = bench.change("alice", json!({ "expires": null })).await;
        assert_eq!((status, &alice["state"]), (200, &json!("active")));
        assert!(bench.control.borrow().device.peer(&PublicKey([1; 32])).is_some());
    });
}

/// The store refuses: somebody else has put a row into its file.
#[test]
fn what_cannot_be_stored_has_changed_nothing() {
    let bench = Bench::new("unstored");
    let row = |sql: &str| {
        let other = rusqlite::Connection::open(bench.directory.0.join("store.db")).unwrap();
        other.execute_batch(sql).unwrap();
    };
    bench.run(async {
        bench.put("alice", new(1)).await;
        bench.put("bob", new(2)).await;
        row("CREATE TRIGGER no_change BEFORE UPDATE ON peer BEGIN SELECT RAISE(ABORT, 'no'); END;
             CREATE TRIGGER no_peer BEFORE INSERT ON peer WHEN NEW.name = 'carol' BEGIN SELECT RAISE(ABORT, 'no'); END;
             CREATE TRIGGER no_end BEFORE DELETE ON peer BEGIN SELECT RAISE(ABORT, 'no'); END;");
        let before = bench.ask("GET", "/v1/peers", None).await;
        bench.calls();
        assert_eq!(bench.put("carol", new(3)).await.0, 503);
        for body in [
            json!({ "disabled": true }),
            json!({ "public_key": key(9) }),
            json!({ "addresses": ["100.64.0.9"] }),
            json!({ "addresses": ["fd64::9"] }),
        ] {
            let answer = bench.change("alice", body.clone()).await;
            assert_eq!((answer.0, &answer.1["error"]["code"]), (503, &json!("store")), "{body}: {answer:?}");
        }
        assert_eq!(bench.ask("DELETE", "/v1/peers/alice", None).await.0, 503);
        assert_eq!((bench.ask("GET", "/v1/peers", None).await, bench.calls()), (before, vec![]));
        row("DROP TRIGGER no_change; DROP TRIGGER no_peer; DROP TRIGGER no_end;");
        // Every address is whose it was, and those that were wanted are free.
        let dave = bench.put("dave", new(4)).await.1;
        assert_eq!(dave["allowed_ips"][0], "100.65.0.3/32", "what carol would have had rests, or is the last");
        let at = |address: &str| json!({ "public_key": key(5), "addresses": [address] });
        assert_eq!(bench.put("erin", at("100.65.0.0")).await.0, 409);
        assert_eq!(bench.put("erin", at("100.64.0.9")).await.0, 201);
        assert_eq!(bench.change("alice", json!({ "public_key": key(9) })).await.0, 200);
    });
}

#[test]
fn of_many_at_once_one_gets_the_name_and_each_its_own_address() {
    let bench = Bench::new("at-once");
    bench.run(async {
        let all = (0..20_u8).map(|n| bench.put("same", new(n + 1)));
        let answers = futures_util::future::join_all(all).await;
        let made: Vec<_> = answers.iter().filter(|(status, _)| *status == 201).collect();
        assert_eq!(made.len(), 1);
        assert!(answers.iter().filter(|(status, _)| *status == 409).count() == 19, "{answers:?}");
        let names = ["a", "b", "c"];
        let each = names.iter().zip(40_u8..).flat_map(|(name, n)| [(name, n), (name, n)]);
        let answers = futures_util::future::join_all(each.map(|(name, n)| bench.put(name, new(n)))).await;
        let mut addresses: Vec<_> =
            answers.iter().map(|(_, peer)| peer["allowed_ips"][0].to_string()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 3, "{answers:?}");
        assert_eq!(answers.iter().filter(|(status, _)| *status == 201).count(), 3);
        assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 3);
    });
}

#[test]
fn peers_come_in_pages_and_each_once() {
    let bench = Bench::new("pages");
    bench.run(async {
        for n in 0..9_u8 {
            let wanted = json!({ "public_key": key(n + 1), "addresses": [format!("100.64.1.{}", n + 1)] });
            assert_eq!(bench.put(&format!("p%20{}", 9 - n), wanted).await.0, 201);
        }
        let whole = bench.ask("GET", "/v1/peers", None).await.1;
        let names: Vec<_> =
            whole["items"].as_array().unwrap().iter().map(|peer| peer["name"].clone()).collect();
        let expected = ["office", "p 1", "p 2", "p 3", "p 4", "p 5", "p 6", "p 7", "p 8", "p 9"];
        assert_eq!((names, &whole["next"]), (expected.map(Value::from).to_vec(), &Value::Null));
        assert_eq!(whole["items"][0]["place"], "/etc/gateway.toml:11");
        for limit in [1, 3, 9, 10] {
            let (mut seen, mut after) = (Vec::new(), String::new());
            for _ in 0..20 {
                let page = bench.ask("GET", &format!("/v1/peers?limit={limit}{after}"), None).await.1;
                let items = page["items"].as_array().unwrap();
                assert!(!items.is_empty() && items.len() <= limit);
                seen.extend(items.clone());
                let Some(next) = page["next"].as_str() else { break };
                after = format!("&after={}", next.replace(' ', "%20"));
            }
            assert_eq!(Value::from(seen), whole["items"], "{limit}");
        }
        for bad in ["limit=0", "limit=1001", "limit=x", "after=x", "after=file-x", "colour=1"] {
            assert_eq!(bench.ask("GET", &format!("/v1/peers?{bad}"), None).await.0, 400, "{bad}");
        }
        // By name or by key, of file and store.
        for name in ["office", &OFFICE.replace('/', "%2F"), "p%201", &key(9).replace('/', "%2F")] {
            assert_eq!(bench.look(name).await.0, 200, "{name}");
        }
        assert_eq!(bench.look(&key(99).replace('/', "%2F")).await.0, 404);
        assert!(bench.look("p%201").await.1["traffic"]["rx_bytes"].as_u64().unwrap() > 0);
    });
}

#[test]
fn events_are_told_from_a_number_on_and_waited_for() {
    let bench = Bench::new("events");
    bench.run(async {
        let none = bench.ask("GET", "/v1/events", None).await.1;
        assert_eq!(none, json!({ "items": [], "next": 0, "missed": 0, "restarted": false }));
        bench.put("alice", new(1)).await;
        bench.change("alice", json!({ "disabled": true })).await;
        bench.ask("DELETE", "/v1/peers/alice", None).await;
        let all = bench.ask("GET", "/v1/events", None).await.1;
        let kinds = |page: &Value| {
            let each = page["items"].as_array().unwrap().iter();
            each.map(|event| format!("{} {}", event["number"], event["event"].as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&all), ["0 peer_made", "1 peer_changed", "2 peer_removed"]);
        assert_eq!((&all["items"][2]["public_key"], &all["next"]), (&json!(key(1)), &json!(3)));
        assert_eq!(all["items"][2]["name"], "alice", "as it was called then");
        assert_eq!(kinds(&bench.ask("GET", "/v1/events?after=1&limit=1", None).await.1), ["1 peer_changed"]);
        // Who waits is told when something happens, and not before.
        let begin = std::time::Instant::now();
        let wait = bench.ask("GET", "/v1/events?after=3&wait=20", None);
        let makes = async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            bench.put("bob", new(2)).await
        };
        let ((_, waited), _) = futures_util::future::join(wait, makes).await;
        assert_eq!(
            (kinds(&waited), &waited["items"][0]["name"]),
            (vec!["3 peer_made".to_owned()], &json!("bob"))
        );
        assert!((300..10_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
        assert_eq!(bench.ask("GET", "/v1/events?after=4&wait=1", None).await.1["items"], json!([]));
        // A number of before a restart; one of long ago.
        let other = bench.ask("GET", "/v1/events?after=77", None).await.1;
        assert_eq!((&other["restarted"], kinds(&other).len()), (&json!(true), 4));
        for n in 0..crate::control::events::KEPT as u32 {
            let change = PeerEvent::Changed;
            let what = What::Peer { client: PublicKey([7; 32]), name: "x".into(), change };
            bench.control.borrow_mut().events.add(Moment(n), what);
        }
        let old = bench.ask("GET", "/v1/events?after=2", None).await.1;
        assert_eq!(
            (&old["missed"], &old["items"][0]["number"], &old["next"]),
            (&json!(2), &json!(4), &json!(104))
        );
        assert_eq!(bench.ask("GET", "/v1/events?wait=21", None).await.0, 400);
    });
}

#[test]
fn leases_and_pools_are_told() {
    let bench = Bench::new("leases");
    bench.run(async {
        bench.put("alice", new(1)).await;
        for n in [1, 2, 3] {
            let ask = crate::lease::Ask { client: PublicKey([n; 32]), group: "", pool: "", wanted: None };
            let granted = bench.control.borrow_mut().leases.as_mut().unwrap().request(&ask).unwrap();
            granted.stored().await.unwrap();
        }
        let pools = bench.ask("GET", "/v1/pools", None).await.1;
        assert_eq!(
            pools["items"][0],
            json!({ "name": "all", "addresses": 4, "leased": 3, "drained": false })
        );
        // Of a pool that is drained nobody new gets an address, by its name or not; who has one keeps it.
        let drain = |drained: bool| bench.ask("PATCH", "/v1/pools/few", Some(json!({ "drained": drained })));
        assert_eq!(
            drain(true).await.1,
            json!({ "name": "few", "addresses": 1, "leased": 0, "drained": true })
        );
        let of_few = |n| json!({ "public_key": key(n), "pool": "few" });
        let refused = bench.ask("PUT", "/v1/peers/bob", Some(of_few(9))).await;
        assert_eq!((refused.0, message(&refused).contains("no address is free")), (409, true), "{refused:?}");
        assert_eq!(drain(false).await.1["drained"], false);
        let bob = bench.put("bob", of_few(9)).await;
        assert_eq!(bob.1["allowed_ips"], json!(["100.66.0.1/32"]));
        let both = json!({ "public_key": key(10), "pool": "few", "addresses": ["100.64.0.9"] });
        assert_eq!(bench.ask("PUT", "/v1/peers/carol", Some(both)).await.0, 400);
        assert_eq!(bench.ask("PATCH", "/v1/pools/none", Some(json!({ "drained": true }))).await.0, 404);
        let first = bench.ask("GET", "/v1/leases?limit=2", None).await.1;
        let rest =
            bench.ask("GET", &format!("/v1/leases?after={}", first["next"].as_str().unwrap()), None).await.1;
        let both = [&first, &rest].map(|page| page["items"].as_array().unwrap().clone()).concat();
        assert_eq!((both.len(), &rest["next"]), (3, &Value::Null));
        assert_eq!((&both[0]["name"], &both[0]["address"]), (&json!("alice"), &json!("100.65.0.0")));
        let had = bench.ask("GET", "/v1/leases/100.65.0.1/history", None).await.1;
        assert_eq!(
            (&had["items"][0]["public_key"], &had["items"][0]["name"]),
            (&json!(key(2)), &Value::Null)
        );
        let had = bench.ask("GET", "/v1/leases/100.65.0.1/history?at=7", None).await.1;
        assert_eq!(had["items"], json!([]));
        assert_eq!(bench.ask("GET", "/v1/leases/fd64::1/history", None).await.0, 400);
        // With the peer its lease goes.
        assert_eq!(bench.ask("DELETE", "/v1/peers/alice", None).await.0, 204);
        assert_eq!(bench.ask("GET", "/v1/pools", None).await.1["items"][0]["leased"], 2);
    });
}

#[test]
fn what_is_no_request_is_refused_and_every_limit_holds() {
    let bench = Bench::new("limits");
    bench.run(async {
        for (text, status) in [
            (request("GET", "/v1/nothing", ""), 404),
            (request("POST", "/v1/peers", ""), 405),
            (request("PUT", "/v1/peers/a", "{"), 400),
            (request("PUT", "/v1/peers/a%ff", "{}"), 400),
            (request("PUT", "/v1/peers/a", &" ".repeat(http::MAX_BODY)), 400),
            (request("PUT", "/v1/peers/a", &" ".repeat(http::MAX_BODY + 1)), 413),
            (format!("GET /v1/peers HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(65)), 431),
            (format!("GET /v1/peers HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(17 << 10)), 431),
        ] {
            assert_eq!(bench.send(&text).await.0, status, "{}", &text[..60.min(text.len())]);
        }
        let (status, said) = bench.send(&request("GET", "/openapi.json", "")).await;
        assert_eq!((status, said.as_str()), (200, http::OPENAPI));
        // One request per connection: the second is not answered.
        let twice = request("GET", "/v1/pools", "").repeat(2);
        assert_eq!(bench.send(&twice).await.1.matches("\"items\"").count(), 1);
    });
}

#[test]
fn who_reads_and_writes_slowly_holds_up_nobody() {
    let bench = Bench::new("slow");
    bench.run(async {
        // An answer that does not fit into what the kernel keeps for a reader.
        for n in 0..100_u32 {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            let wanted = json!({ "public_key": PublicKey(key).to_base64(),
                "addresses": [format!("100.64.2.{}", n + 1)], "group": "g".repeat(64) });
            assert_eq!(bench.put(&format!("{n}{}", "x".repeat(60)), wanted).await.0, 201);
        }
        let mut slow = Vec::new();
        for _ in 0..http::MAX_CONNECTIONS / 2 {
            let mut reader = UnixStream::connect(bench.socket()).await.unwrap();
            let small = socket2::SockRef::from(&reader);
            small.set_recv_buffer_size(1).unwrap();
            reader.write_all(request("GET", "/v1/peers", "").as_bytes()).await.unwrap();
            let mut writer = UnixStream::connect(bench.socket()).await.unwrap();
            writer
                .write_all(b"PUT /v1/peers/a HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
                .await
                .unwrap();
            slow.extend([reader, writer]);
        }
        let begin = std::time::Instant::now();
        assert_eq!(
            bench.put("quick", json!({ "public_key": key(200), "addresses": ["100.64.9.9"] })).await.0,
            201
        );
        assert_eq!(bench.look("quick").await.0, 200);
        assert!(begin.elapsed() < std::time::Duration::from_secs(2), "{:?}", begin.elapsed());
        // Two more than there may be: the two oldest have ended, the others are answered when they read.
        let last = slow.split_off(slow.len() - 2);
        let mut cut = String::new();
        let _ = slow.remove(1).read_to_string(&mut cut).await;
        assert_eq!(cut, "", "the oldest writer yields");
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "and not when its time is over");
        let [reader, _writer] = <[UnixStream; 2]>::try_from(last).unwrap();
        assert!(serde_json::from_str::<Value>(&answer(reader).await.1).unwrap()["items"].is_array());
    });
}

#[test]
fn sessions_are_told_as_their_workers_say_and_a_peer_that_was_removed_has_its_name() {
    use crate::control::sessions;
    use crate::dataplane::handoff::SessionChange::{Connected, Disconnected, Moved};
    let bench = Bench::new("sessions");
    bench.run(async {
        bench.put("alice", new(1)).await;
        let from = bench.control.borrow().events.next();
        let id = |key: &str| bench.control.borrow().device.peer(&key.parse().unwrap()).unwrap().id();
        let (alice, office) = (id(&key(1)), id(OFFICE));
        let note = |id, change| sessions::note(&mut bench.control.borrow_mut(), id, change);
        let (home, away) = ("198.18.0.2:7".parse().unwrap(), "198.18.0.3:8".parse().unwrap());
        note(alice, Disconnected);
        note(alice, Moved(away));
        note(alice, Connected(home));
        note(office, Connected(home));
        note(alice, Moved(away));
        let shown = bench.ask("GET", "/v1/peers/alice", None).await.1;
        assert!(shown["connected"].is_u64(), "{shown}");
        bench.ask("DELETE", "/v1/peers/alice", None).await;
        note(alice, Disconnected);
        note(alice, Connected(home));
        let page = bench.ask("GET", &format!("/v1/events?after={from}"), None).await.1;
        let each = page["items"].as_array().unwrap().iter();
        let said = |event: &Value| {
            let field = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", field("event"), field("name"), field("endpoint"))
        };
        assert_eq!(
            each.map(said).collect::<Vec<_>>(),
            [
                "peer_connected alice 198.18.0.2:7",
                "peer_connected office 198.18.0.2:7",
                "endpoint_changed alice 198.18.0.3:8",
                "peer_removed alice ",
                "peer_disconnected alice 198.18.0.3:8",
            ],
            "nothing of a peer that control does not know"
        );
        let shown = bench.ask("GET", "/v1/peers/office", None).await.1;
        assert!(shown["connected"].is_u64(), "{shown}");
        note(office, Disconnected);
        assert!(bench.ask("GET", "/v1/peers/office", None).await.1["connected"].is_null());
    });
}
