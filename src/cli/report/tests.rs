//! Sockets of others, sockets of nobody, and counters that grow or begin anew.

use std::os::unix::net::UnixListener;

use super::*;
use crate::control::uapi::format::ShowPeer;
use crate::sys::testing::Scratch;

fn name(name: &str) -> InterfaceName {
    name.parse().unwrap()
}

/// Answers one request with these bytes.
fn served(directory: &Path, device: &str, answer: &'static str) {
    let listener = UnixListener::bind(socket_path(directory, &name(device))).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "show=json");
        stream.write_all(answer.as_bytes()).unwrap();
    });
}

#[test]
fn names_are_read_from_sockets_only() {
    let scratch = Scratch::new("names");
    let directory = &scratch.0;
    for file in ["wg1.sock", "wg0.sock", "notes.txt", "far-too-long-a-name.sock", ".sock"] {
        fs::write(directory.join(file), "").unwrap();
    }
    let found = names(directory).unwrap();
    assert_eq!(found.iter().map(InterfaceName::as_str).collect::<Vec<_>>(), ["wg0", "wg1"]);
    fs::remove_dir_all(directory).unwrap();
    assert!(names(directory).unwrap().is_empty());
}

#[test]
fn each_reason_for_no_answer_has_its_words() {
    let scratch = Scratch::new("answers");
    let directory = &scratch.0;
    let said = |device: &str| format!("{:#}", ask(directory, &name(device)).unwrap_err());
    assert!(said("wg0").contains("nobody serves this device"), "{}", said("wg0"));
    drop(UnixListener::bind(directory.join("wg1.sock")).unwrap());
    assert!(said("wg1").contains("has ended"), "{}", said("wg1"));
    served(directory, "wg2", "errno=-71\n\n");
    assert!(said("wg2").contains("not served by Ringway"));
    served(directory, "wg3", "json={}\n");
    assert!(said("wg3").contains("cut short"));
    served(directory, "wg4", "json=[1]\nerrno=0\n\n");
    assert!(said("wg4").contains("unknown answer"));
    let denied = io::Error::from(io::ErrorKind::PermissionDenied);
    assert!(hint(&denied, "here").contains("sudo"));
    assert!(is_denied(&anyhow!(denied).context("wg5")));
}

#[test]
fn without_names_only_ours_are_taken_and_missing_keys_are_no_error() {
    let scratch = Scratch::new("ours");
    let directory = &scratch.0;
    drop(UnixListener::bind(directory.join("wg0.sock")).unwrap());
    served(directory, "wg1", "json={\"listen_port\":7,\"peers\":[{}]}\nerrno=0\n\n");
    served(directory, "wg2", "errno=-71\n\n");
    let found = devices(directory, &[]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].show.listen_port), ("wg1", 7));
    assert_eq!(found[0].show.peers, [ShowPeer::default()]);
    assert!(devices(directory, &[name("wg0")]).is_err());
}

#[test]
fn a_counter_that_begins_anew_is_still() {
    let at = Instant::now();
    let text = |rx: u64, drops: u64| {
        format!(
            "{{\"peers\":[{{\"public_key\":\"A\",\"rx_bytes\":{rx}}},{{\"public_key\":\"{rx}\"}}],
              \"dataplane\":{{\"workers\":[{{\"counters\":{{\"ringway_bytes_total{{direction=\\\"in\\\"}}\":{rx}}},
              \"drops\":{{\"a\":{drops},\"b\":1}}}}],\"drops\":{{\"a\":{drops},\"b\":1}}}}}}"
        )
    };
    let report = |text: &str, at| understand(&name("wg0"), at, text).unwrap();
    let (old, new) = (report(&text(100, 1), at), report(&text(700, 4), at + Duration::from_secs(3)));
    let rates = Rates::between(&old, &new);
    assert_eq!(rates.peers["A"], PeerRates { rx_bytes: 200.0, tx_bytes: 0.0 });
    assert_eq!(rates.peers.len(), 1, "who is new has no rate yet");
    assert_eq!((rates.workers[0].rx_bytes, rates.workers[0].drops), (200.0, 1.0));
    assert_eq!(rates.drops, BTreeMap::from([("a".to_owned(), 1.0)]));
    let back = Rates::between(&report(&text(700, 4), at), &report(&text(100, 1), at));
    assert_eq!((back.peers["A"].sum(), back.workers[0].rx_bytes, back.drops.len()), (0.0, 0.0, 0));
}

#[test]
fn a_direction_is_in_the_name_or_a_label() {
    let old = serde_json::json!({ "counters": { "ringway_rx_bytes_total": 1, "ringway_sends_total": 2 } });
    assert_eq!((count(&old, "rx_bytes"), count(&old, "tx_bytes"), count(&old, "sends")), (1, 0, 2));
    let new = serde_json::json!({ "counters": {
        "ringway_bytes_total{direction=\"in\"}": 3, "ringway_bytes_total{direction=\"out\"}": 4 } });
    assert_eq!((count(&new, "rx_bytes"), count(&new, "tx_bytes"), count(&new, "sends")), (3, 4, 0));
}
