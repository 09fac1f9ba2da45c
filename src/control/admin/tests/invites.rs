//! Invites, and who comes by them.

use super::*;
use crate::control::invites::Outcome;
use crate::noise::handshaker::NotInvited;
use crate::types::PeerId;
use crate::wire::frame::enrolment::Enrolled;
use crate::wire::frame::{self, Frame};

/// An invite of the keys `from`, `from` + 1, …
fn an_invite(from: u8, uses: u8) -> Value {
    let keys: Vec<_> = (from..from + uses).map(key).collect();
    json!({ "keys": keys, "prefix": "phones", "group": "", "expires": u32::MAX })
}

#[test]
fn an_invite_is_made_shown_and_taken_back() {
    let mut bench = Bench::new("invites");
    let put = async |bench: &Bench, id: &str, body: Value| {
        bench.ask("PUT", &format!("/v1/invites/{id}"), Some(body)).await
    };
    bench.run(async {
        bench.put("alice", new(1)).await;
        bench.calls();
        let (status, made) = put(&bench, "abc", an_invite(10, 2)).await;
        assert_eq!((status, &made["state"], &made["uses"]), (201, &json!("open"), &json!(2)), "{made}");
        let calls = bench.calls();
        assert!(
            calls.iter().all(|call| matches!(call, Call::AddTemporary(..))) && calls.len() == 2,
            "{calls:?}"
        );
        assert_eq!(put(&bench, "abc", an_invite(10, 2)).await, (200, made));
        for (id, body, status, says) in [
            ("abc", an_invite(10, 1), 409, "another invite \"abc\""),
            ("b", an_invite(11, 1), 409, "belongs to the invite \"abc\""),
            ("b", an_invite(1, 1), 409, "is the peer \"alice\"'s"),
            ("b", json!({ "keys": [OFFICE], "prefix": "x", "expires": u32::MAX }), 409, "stands in"),
            ("b", json!({ "keys": [], "prefix": "x", "expires": u32::MAX }), 400, "keys: 1 to 256"),
            (
                "b",
                json!({ "keys": [key(9), key(9)], "prefix": "x", "expires": u32::MAX }),
                400,
                "each another",
            ),
            ("b", json!({ "keys": [key(9)], "prefix": "-", "expires": u32::MAX }), 400, "prefix: "),
            ("b", json!({ "keys": [key(9)], "prefix": "x", "expires": 7 }), 400, "a moment that has passed"),
            ("b-c", an_invite(20, 1), 400, "letters and digits"),
        ] {
            let refused = put(&bench, id, body).await;
            assert!(refused.0 == status && message(&refused).contains(says), "{id}: {refused:?}");
        }
        let taken = bench.put("bob", new(10)).await;
        assert!(message(&taken).contains("belongs to the invite \"abc\""), "{taken:?}");
        assert_eq!(put(&bench, "b", an_invite(20, 1)).await.0, 201);
        let (_, page) = bench.ask("GET", "/v1/invites?limit=1", None).await;
        assert_eq!((&page["items"][0]["id"], &page["next"]), (&json!("abc"), &json!("abc")));
        let (_, page) = bench.ask("GET", "/v1/invites?after=abc", None).await;
        assert_eq!((&page["items"][0]["id"], &page["next"]), (&json!("b"), &Value::Null));
        let (_, revoked) = bench.ask("DELETE", "/v1/invites/b", None).await;
        assert_eq!(revoked["state"], "revoked");
        assert_eq!(bench.ask("DELETE", "/v1/invites/b", None).await, (200, revoked));
        assert_eq!(bench.ask("DELETE", "/v1/invites/none", None).await.0, 404);
    });
    let before = bench.run(async { bench.ask("GET", "/v1/invites", None).await });
    bench.restart();
    let after = bench.run(async { bench.ask("GET", "/v1/invites", None).await });
    assert_eq!(before, after);
    let control = bench.control.borrow();
    let temporary = control.device.peers().iter().filter(|peer| peer.is_temporary()).count();
    assert_eq!((temporary, control.device.somebodys().len()), (3, 2), "they are peers again, of nobody");
}

/// What somebody with the key `k` who wants to be `own` is told: the frame that is sent to him.
async fn enrolled(bench: &Bench, k: u8, own: u8, verdict: Result<(), NotInvited>) -> (PeerId, String) {
    let id = bench.control.borrow().device.peer(&PublicKey([k; 32])).unwrap().id();
    bench.calls();
    enrol(&bench.control, id, 77, PublicKey([own; 32]), verdict).await;
    let frames = bench.calls().into_iter().filter_map(|call| match call {
        Call::Frame(to, _, bytes) => Some((to, bytes)),
        _ => None,
    });
    let [(to, bytes)] = &frames.collect::<Vec<_>>()[..] else { panic!("one answer") };
    let frame = Frame::parse(bytes).unwrap();
    assert_eq!((*to, frame.stream_id), (id, 77));
    let said = match Enrolled::read(frame.body) {
        Some(told) => format!("{} {}", told.name, told.reply.ipv4.unwrap().0),
        None => frame::told(frame.body),
    };
    (id, said)
}

#[test]
fn whoever_is_invited_becomes_a_peer_once_and_learns_it_again() {
    let mut bench = Bench::new("enrolled");
    bench.run(async {
        bench.ask("PUT", "/v1/invites/abc", Some(an_invite(10, 2))).await;
        bench.put("phones-2", new(3)).await;
        let tell = async |k, own, verdict| enrolled(&bench, k, own, verdict).await.1;
        for (verdict, says) in [
            (NotInvited::NotProven, Outcome::BadProof),
            (NotInvited::LowOrder, Outcome::BadKey),
            (NotInvited::OwnKey, Outcome::BadKey),
        ] {
            assert_eq!(tell(10, 5, Err(verdict)).await, says.text());
        }
        assert_eq!(bench.ask("GET", "/v1/invites/abc", None).await.1["enrolled"], json!([]));
        // Known keys: a peer's, one of the file's is another's matter of `free_key`, an invite's own.
        for own in [3, 11] {
            assert_eq!(tell(10, own, Ok(())).await, Outcome::KnownKey.text());
        }
        assert_eq!(tell(10, 5, Ok(())).await, "phones-1 100.65.0.1");
        // The same by another use: nothing is spent. Then the next, whose name is not taken.
        assert_eq!(tell(11, 5, Ok(())).await, "phones-1 100.65.0.1");
        assert_eq!(tell(10, 6, Ok(())).await, "phones-3 100.65.0.2");
        assert_eq!(tell(10, 7, Ok(())).await, Outcome::Spent.text());
        assert_eq!(tell(11, 6, Ok(())).await, "phones-3 100.65.0.2");
        assert!(bench.control.borrow().device.peer(&PublicKey([5; 32])).is_some(), "live at once");
        assert_eq!(bench.ask("DELETE", "/v1/peers/phones-1", None).await.0, 204);
        assert_eq!(tell(10, 5, Ok(())).await, Outcome::Removed.text());
        let counts = bench.control.borrow().peers.as_ref().unwrap().invites.outcomes().collect::<Vec<_>>();
        let of = |wanted| counts.iter().find(|(outcome, _)| *outcome == wanted).unwrap().1;
        let found =
            [Outcome::Joined, Outcome::Again, Outcome::Spent, Outcome::KnownKey, Outcome::BadKey].map(of);
        assert_eq!(found, [2, 2, 1, 2, 2]);
    });
    bench.restart();
    bench.run(async {
        assert_eq!(enrolled(&bench, 11, 6, Ok(())).await.1, "phones-3 100.65.0.2");
        assert_eq!(enrolled(&bench, 10, 8, Ok(())).await.1, Outcome::Spent.text());
        // A group whose pool has one address, and the one name for the one use.
        let few = json!({ "keys": [key(20)], "prefix": "tom", "group": "phones", "expires": u32::MAX });
        bench.ask("PUT", "/v1/invites/few", Some(few)).await;
        let more = json!({ "keys": [key(21)], "prefix": "tim", "group": "phones", "expires": u32::MAX });
        bench.ask("PUT", "/v1/invites/more", Some(more)).await;
        assert_eq!(enrolled(&bench, 20, 30, Ok(())).await.1, "tom 100.66.0.1");
        assert_eq!(enrolled(&bench, 21, 31, Ok(())).await.1, Outcome::NoAddress.text());
        assert_eq!(bench.ask("GET", "/v1/invites/more", None).await.1["state"], "open", "nothing is spent");
        bench.ask("DELETE", "/v1/invites/more", None).await;
        assert_eq!(enrolled(&bench, 21, 31, Ok(())).await.1, Outcome::Revoked.text());
        assert_eq!(enrolled(&bench, 20, 30, Ok(())).await.1, "tom 100.66.0.1");
    });
}
