//! AES-256-GCM between two Ringways, and what becomes of it with others and on the way.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Host, Lab, wait_until};
use crate::peer::{Implementation, Peer};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, Outer, Site, client_v4, client_v6, connect, introduce,
};
use crate::traffic::{Flow, Way, must_reach, ping};

const AES: &str = "AES-256-GCM";
const CHACHA: &str = "ChaCha20-Poly1305";
const SEALED: &str = r#"ringway_aes_packets_total{direction="out"}"#;
const OPENED: &str = r#"ringway_aes_packets_total{direction="in"}"#;

/// Words before the program's own that say `--hello` after them.
const HELLO: [&str; 3] = ["sh", "-c", r#"exec "$0" "$@" --hello"#];

/// A gateway and a client, each with its own environment; the client's program is started by `launcher`.
fn site(
    lab: &Lab,
    [gateway, client]: [Implementation; 2],
    [gateway_says, client_says]: [&[(&str, &str)]; 2],
    launcher: &[&str],
) -> Site {
    let (gateway_host, client_host) = (lab.host("gateway"), lab.host("client0"));
    connect(lab, &gateway_host, &client_host, 0, 1520);
    let gateway = Peer::start_with(&gateway_host, gateway, "wg0", GATEWAY_PORT, gateway_says);
    let client = Peer::start_through(&client_host, client, "wg0", CLIENT_PORT, client_says, launcher);
    gateway.up(&[&format!("{GATEWAY_V4}/10")], 1420);
    client.up(&[&format!("{}/10", client_v4(0)), &format!("{}/64", client_v6(0))], 1420);
    introduce(&gateway, &client, 0, Outer::V4, None);
    Site { gateway, clients: vec![client] }
}

/// Two Ringways, of which the client says HELLO.
fn one_says_hello(lab: &Lab) -> Site {
    let ours = Implementation::ringway();
    site(lab, [ours, ours], [&[], &[]], &HELLO)
}

fn ringway_show(peer: &Peer, arguments: &str) -> String {
    let program = env!("CARGO_BIN_EXE_ringway");
    String::from_utf8(peer.host.attempt(&format!("{program} show {arguments} wg0")).stdout).unwrap()
}

/// What `ringway show` says of the only peer's cipher, as text and as JSON.
fn cipher(peer: &Peer) -> Option<String> {
    let json: Value = serde_json::from_str(&ringway_show(peer, "--json")).unwrap();
    json["peers"][0]["suite"].as_str().map(str::to_owned)
}

fn counter(peer: &Peer, metric: &str) -> u64 {
    peer.counter(metric).expect("Ringway counts")
}

/// A lab, if the processor has AES in vectors and the program under test is ours.
fn lab() -> Option<Lab> {
    let lab = Lab::with_traffic()?;
    if !ringway::crypto::aead::has_vector_aes() {
        lab.skip("this processor has no AES in vectors");
        return None;
    }
    if !Implementation::ringway().is_ringway() {
        lab.skip("only Ringway says HELLO");
        return None;
    }
    Some(lab)
}

fn bulk(client: &Arc<Host>, gateway: &Arc<Host>) {
    for way in [Way::Up, Way::Down] {
        let report = Flow { way, ..Flow::tcp(client, gateway, GATEWAY_V4) }.run();
        assert!(report.rate > 20e6, "{way:?}: {report:?}");
    }
}

#[test]
fn two_ringways_agree_when_one_says_hello() {
    let Some(lab) = lab() else { return };
    let site = one_says_hello(&lab);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    must_reach(&client.host, GATEWAY_V4);
    for peer in [gateway, client] {
        wait_until("both sides seal with AES", Duration::from_secs(10), || {
            cipher(peer).as_deref() == Some(AES)
        });
        let text = ringway_show(peer, "");
        assert!(text.contains(&format!("\n  cipher: {AES}\n")), "{text}");
    }
    bulk(&client.host, &gateway.host);
    assert_eq!(ping(&client.host, GATEWAY_V4, 20, 1000), 20);
    for peer in [gateway, client] {
        assert!(counter(peer, SEALED) > 1000 && counter(peer, OPENED) > 1000);
        assert_eq!(counter(peer, "ringway_aes_agreed_total"), 1);
        assert_eq!(counter(peer, "ringway_aes_refused_total"), 0);
        let wrong = ["unauthentic", "suite_not_declared", "frame_malformed", "frame_refused", "malformed"];
        assert_eq!(peer.drops(&wrong), Some(0));
    }
}

/// Keys are renewed every three seconds, and the suite is agreed upon anew each time, while pings go on.
#[test]
fn a_renewal_agrees_anew_and_loses_nothing() {
    let Some(lab) = lab() else { return };
    let ours = Implementation::ringway();
    let often = ("RINGWAY_TEST_REKEY", "3");
    let site = site(&lab, [ours, ours], [&[often], &[often, ("RINGWAY_HELLO", "1")]], &[]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    must_reach(&client.host, GATEWAY_V4);
    assert_eq!(ping(&client.host, GATEWAY_V4, 200, 1000), 200, "ten seconds");
    for peer in [gateway, client] {
        let (renewed, agreed) =
            (counter(peer, "ringway_sessions_confirmed_total"), counter(peer, "ringway_aes_agreed_total"));
        assert!(renewed >= 3 && agreed + 1 >= renewed, "{renewed} handshakes, {agreed} agreements");
        assert!(counter(peer, SEALED) > 150);
        assert_eq!(peer.drops(&["suite_not_declared", "unauthentic"]), Some(0));
    }
}

#[test]
fn nobody_says_hello_unasked_and_either_side_may_do_without_aes() {
    let Some(lab) = lab() else { return };
    let ours = Implementation::ringway();
    let hello: &[(&str, &str)] = &[("RINGWAY_HELLO", "1")];
    let without: &[(&str, &str)] = &[("RINGWAY_AES", "off")];
    for (name, gateway_says, client_says, frames) in [
        ("nobody", &[][..], &[][..], 0),
        ("gateway", without, hello, 1),
        ("client", &[], &[("RINGWAY_HELLO", "1"), ("RINGWAY_AES", "off")], 1),
    ] {
        let site = site(&lab, [ours, ours], [gateway_says, client_says], &[]);
        let (gateway, client) = (&site.gateway, &site.clients[0]);
        must_reach(&client.host, GATEWAY_V4);
        assert_eq!(ping(&client.host, GATEWAY_V4, 20, 1000), 20);
        for peer in [gateway, client] {
            assert_eq!(cipher(peer).as_deref(), Some(CHACHA), "{name}");
            assert_eq!((counter(peer, SEALED), counter(peer, OPENED)), (0, 0), "{name}");
            let sent = counter(peer, r#"ringway_control_frames_total{direction="out"}"#);
            assert_eq!(sent, frames, "{name}: HELLO and its answer, or nothing");
        }
    }
}

/// It drops HELLO, since that is no IP packet, and never sees a mark.
#[test]
fn hello_to_wireguard_go_changes_nothing() {
    let Some(lab) = lab() else { return };
    let (ours, theirs) = (Implementation::ringway(), Implementation::WireguardGo);
    let hello: &[(&str, &str)] = &[("RINGWAY_HELLO", "1")];
    for (programs, says) in [([theirs, ours], [&[][..], hello]), ([ours, theirs], [hello, &[]])] {
        let site = site(&lab, programs, says, &[]);
        let (gateway, client) = (&site.gateway, &site.clients[0]);
        must_reach(&client.host, GATEWAY_V4);
        bulk(&client.host, &gateway.host);
        assert_eq!(ping(&client.host, GATEWAY_V4, 20, 1000), 20);
        let ringway = if programs[0] == ours { gateway } else { client };
        assert_eq!(cipher(ringway).as_deref(), Some(CHACHA));
        assert_eq!((counter(ringway, SEALED), counter(ringway, "ringway_aes_refused_total")), (0, 0));
        let said = counter(ringway, r#"ringway_control_frames_total{direction="out"}"#);
        assert!((1..=3).contains(&said), "HELLO, three times at most: {said}");
    }
}

/// Drops every datagram to our ports whose reserved bytes are not zero, as some middleboxes do.
const FILTER: &str = "table inet middlebox {
    chain input {
        type filter hook input priority 0
        udp dport { 51820, 51821 } @th,72,24 != 0 counter drop
    }
}
";

#[test]
fn a_filter_of_reserved_bytes_leaves_a_tunnel_that_works() {
    let Some(lab) = lab() else { return };
    let site = one_says_hello(&lab);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    for host in [&gateway.host, &client.host] {
        host.run_with_input("nft -f -", FILTER);
    }
    must_reach(&client.host, GATEWAY_V4);
    bulk(&client.host, &gateway.host);
    for peer in [gateway, client] {
        wait_until("three PINGs had no answer", Duration::from_secs(20), || {
            counter(peer, "ringway_aes_refused_total") == 1
        });
        assert_eq!(cipher(peer).as_deref(), Some(CHACHA));
        assert_eq!((counter(peer, SEALED), counter(peer, OPENED)), (3, 0), "the PINGs");
    }
    assert_eq!(ping(&client.host, GATEWAY_V4, 20, 1000), 20);
    let dropped = gateway.host.run("nft list table inet middlebox");
    assert!(dropped.contains("packets 3 "), "{dropped}");
}
