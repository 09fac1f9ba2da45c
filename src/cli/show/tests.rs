//! Text from answers.

use std::time::Instant;

use super::text::{device, duration, paint};
use serde::Deserialize as _;

use super::*;
use crate::control::uapi::format::Show;

#[test]
fn numbers_for_people() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1 << 20, "1.00 MiB"),
        (5 << 40, "5.00 TiB"),
    ] {
        assert_eq!(bytes(count), text);
    }
    assert_eq!(bytes(u64::MAX), "16777216.00 TiB");
    assert_eq!(ago(0), "now");
    assert_eq!(ago(1), "1 second ago");
    assert_eq!(ago(90_061), "1 day, 1 hour, 1 minute, 1 second ago");
    assert_eq!(duration(7200), "2 hours");
}

/// A device that says much.
fn sample() -> Report {
    let json = serde_json::json!({
        "public_key": "PUB", "listen_port": 51820, "fwmark": 51820,
        "peers": [
            { "public_key": "ONE", "worker": 1 },
            { "public_key": "TWO", "preshared_key": true, "endpoint": "[2001:db8::1]:7",
              "allowed_ips": ["10.0.0.0/8", "::/0"], "last_handshake": 1000, "rx_bytes": 2048, "tx_bytes": 5,
              "persistent_keepalive": 25, "suite": "AES-256-GCM", "worker": 0, "a key of tomorrow": 1 },
        ],
        "dataplane": {
            "workers": [
                { "peers": 1, "counters": { r#"ringway_bytes_total{direction="in"}"#: 2048,
                    r#"ringway_packets_total{direction="in"}"#: 30, "ringway_receives_total": 4,
                    r#"ringway_bytes_total{direction="out"}"#: 5, r#"ringway_packets_total{direction="out"}"#: 1,
                    "ringway_sends_total": 1, "ringway_handed_over_total": 7 }, "drops": { "replayed": 3 } },
                {},
            ],
            "io": { "kind": "poll", "reason": "no ring" },
            "steering": { "on": false, "reason": "not permitted" },
            "offloads": { "tun_read": { "on": true, "uso": false }, "udp_send": { "on": false, "reason": "EIO" } },
            "drops": { "replayed": 3, "malformed": 0 },
            "handshake": { "ringway_cookies_sent_total": 2 },
        },
    });
    let show = Show::deserialize(&json).unwrap();
    Report { name: "wg0".parse().unwrap(), at: Instant::now(), json, show }
}

#[test]
fn a_device_as_text() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1062);
    let expected = "interface: wg0\n  public key: PUB\n  private key: (hidden)\n  \
        listening port: 51820\n  fwmark: 0xca6c\n  sessions: 1 of 2 peers\n  \
        drops: replayed 3\n  handshake: cookies sent 2\n  io: poll (no ring)\n  \
        offloads: tun read on, udp send off (EIO)\n  steering: off (not permitted)\n  \
        worker 0: 1 peer, 2.00 KiB received (7.5 packets a call), 5 B sent (1.0 packets a call), 7 handed over\n  \
        worker 1: 0 peers, 0 B received (0.0 packets a call), 0 B sent (0.0 packets a call), 0 handed over\n\n\
        peer: TWO\n  preshared key: (hidden)\n  endpoint: [2001:db8::1]:7\n  allowed ips: 10.0.0.0/8, ::/0\n  \
        latest handshake: 1 minute, 2 seconds ago\n  transfer: 2.00 KiB received, 5 B sent\n  \
        persistent keepalive: every 25 seconds\n  cipher: AES-256-GCM\n  worker: 0\n\n\
        peer: ONE\n  allowed ips: (none)\n  worker: 1\n";
    let report = sample();
    assert_eq!(device(&report, None, now), expected);
    // A clock that was set back.
    assert!(device(&report, None, SystemTime::UNIX_EPOCH).contains("latest handshake: now"));
    // Reject-After-Time has passed.
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1180);
    assert!(device(&report, None, later).contains("sessions: 0 of 2 peers"));
}

#[test]
fn rates_stand_beside_totals_in_text_and_json() {
    let before = sample();
    let mut after = sample();
    after.at = before.at + Duration::from_secs(2);
    after.show.peers[1].rx_bytes += 4096;
    after.show.dataplane["drops"]["malformed"] = 10.into();
    after.show.dataplane["workers"][0]["counters"][r#"ringway_packets_total{direction="in"}"#] = 50.into();
    after.show.dataplane["workers"][0]["counters"]["ringway_receives_total"] = 8.into();
    let rates = Rates::between(&before, &after);
    let text = device(&after, Some(&rates), SystemTime::UNIX_EPOCH);
    assert!(text.contains("  rate: 2.00 KiB/s received, 0 B/s sent\n"), "{text}");
    assert!(text.contains("  drops now: malformed 5/s\n"), "{text}");
    assert!(text.contains("  worker 0 now: 0 B/s received (10 packets/s, 5.0 a call)"), "{text}");
    let json = json(&after, Some(&rates));
    assert_eq!(json["interface"], "wg0");
    assert_eq!(json["rates"]["peers"]["TWO"]["rx_bytes"], 2048.0);
    assert_eq!(json["rates"]["workers"][0]["rx_batch"], 5.0);
    assert_eq!(json["rates"]["drops"], serde_json::json!({ "malformed": 5.0 }));
    // Unknown keys survive, nothing is added without measuring.
    assert_eq!(json["peers"][1]["a key of tomorrow"], 1);
    assert!(super::json(&after, None).get("rates").is_none());
}

#[test]
fn colours_change_no_word() {
    let plain = device(&sample(), None, SystemTime::UNIX_EPOCH);
    assert_eq!(paint(plain.clone(), false), plain);
    let painted = paint(plain.clone(), true);
    assert!(painted.contains("\x1b[1;32minterface\x1b[0m: \x1b[32mwg0\x1b[0m\n"), "{painted}");
    let mut bare = painted;
    for code in ["\x1b[1;32m", "\x1b[1;33m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"] {
        bare = bare.replace(code, "");
    }
    assert_eq!(bare, plain);
}
