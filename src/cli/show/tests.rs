//! Text from answers.

use super::*;

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

#[test]
fn a_device_as_text() {
    let show: Show = serde_json::from_value(serde_json::json!({
        "public_key": "PUB", "listen_port": 51820, "fwmark": 51820,
        "peers": [
            { "public_key": "ONE", "preshared_key": false, "endpoint": null, "allowed_ips": [],
              "last_handshake": null, "rx_bytes": 0, "tx_bytes": 0, "persistent_keepalive": null, "worker": 1 },
            { "public_key": "TWO", "preshared_key": true, "endpoint": "[2001:db8::1]:7",
              "allowed_ips": ["10.0.0.0/8", "::/0"], "last_handshake": 1000, "rx_bytes": 2048, "tx_bytes": 5,
              "persistent_keepalive": 25, "worker": 0 },
        ],
        "dataplane": {
            "workers": [
                { "peers": 1, "counters": { "ringway_rx_bytes_total": 2048, "ringway_rx_packets_total": 30,
                    "ringway_receives_total": 4, "ringway_tx_bytes_total": 5, "ringway_tx_packets_total": 1,
                    "ringway_sends_total": 1, "ringway_handed_over_total": 7 } },
                {},
            ],
            "io": { "kind": "poll", "reason": "forbidden" },
            "steering": { "on": false, "reason": "not permitted" },
            "offloads": { "tun_read": { "on": true, "uso": false }, "udp_send": { "on": false, "reason": "EIO" } },
            "drops": { "replayed": 3, "malformed": 0 },
            "handshake": {},
        },
    }))
    .unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1062);
    let expected = "interface: wg0\n  public key: PUB\n  private key: (hidden)\n  \
        listening port: 51820\n  fwmark: 0xca6c\n  \
        drops: replayed 3\n  handshake: (none)\n  io: poll (forbidden)\n  \
        offloads: tun_read on, udp_send off (EIO)\n  steering: off (not permitted)\n  \
        worker 0: 1 peer, 2.00 KiB received (7.5 packets a call), 5 B sent (1.0 packets a call), 7 handed over\n  \
        worker 1: 0 peers, 0 B received (0.0 packets a call), 0 B sent (0.0 packets a call), 0 handed over\n\n\
        peer: TWO\n  preshared key: (hidden)\n  endpoint: [2001:db8::1]:7\n  allowed ips: 10.0.0.0/8, ::/0\n  \
        latest handshake: 1 minute, 2 seconds ago\n  transfer: 2.00 KiB received, 5 B sent\n  \
        persistent keepalive: every 25 seconds\n  worker: 0\n\n\
        peer: ONE\n  allowed ips: (none)\n  worker: 1\n";
    assert_eq!(text(&"wg0".parse().unwrap(), &show, now), expected);
    // A clock that was set back.
    assert!(text(&"wg0".parse().unwrap(), &show, SystemTime::UNIX_EPOCH).contains("latest handshake: now"));
}

#[test]
fn names_are_read_from_sockets_only() {
    let directory = std::env::temp_dir().join(format!("ringway-{}-show", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    for file in ["wg1.sock", "wg0.sock", "notes.txt", "far-too-long-a-name.sock", ".sock"] {
        fs::write(directory.join(file), "").unwrap();
    }
    let names = names(&directory).unwrap();
    assert_eq!(names.iter().map(InterfaceName::as_str).collect::<Vec<_>>(), ["wg0", "wg1"]);
    assert!(ask(&directory, &"wg0".parse().unwrap()).is_err());
    fs::remove_dir_all(&directory).unwrap();
    assert!(super::names(&directory).unwrap().is_empty());
}
