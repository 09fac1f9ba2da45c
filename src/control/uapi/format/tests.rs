//! Answers byte by byte.

use super::*;
use crate::control::dataplane::DataPlane as _;
use crate::control::fake::Fake;
use crate::control::uapi::{AllowedIp, PeerChange, SetRequest};
use crate::types::{Mark, Prefix, PublicKey, Secret};

fn device() -> (Device, Fake) {
    let (mut device, mut fake) = (Device::new(0), Fake::new(2));
    let prefix = |addr: &str, len| AllowedIp::Add(Prefix::new(addr.parse().unwrap(), len).unwrap());
    let first = PeerChange {
        preshared_key: Some(Some(Secret([0xab; 32]))),
        endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
        keepalive: Some(Some(25)),
        allowed_ips: vec![prefix("fd00::", 64), prefix("10.0.0.1", 32)],
        ..PeerChange::new(PublicKey([0x22; 32]))
    };
    let request = SetRequest {
        private_key: Some(Some(Secret([0x48; 32]))),
        listen_port: Some(51_820),
        fwmark: Some(Mark(0xca6c)),
        peers: vec![first, PeerChange::new(PublicKey([0x11; 32]))],
        ..SetRequest::default()
    };
    device.apply(request, &mut fake).unwrap();
    (device, fake)
}

#[test]
fn get_answers_as_wireguard_go_does() {
    let (device, mut fake) = device();
    let text = get(&device, &fake.snapshot());
    let expected = format!(
        "private_key={}\nlisten_port=51820\nfwmark=51820\n\
         public_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\n\
         last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=2000\nrx_bytes=1000\n\
         persistent_keepalive_interval=25\nallowed_ip=10.0.0.1/32\nallowed_ip=fd00::/64\n\
         public_key={}\npreshared_key={}\nprotocol_version=1\n\
         last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=2001\nrx_bytes=1001\n\
         persistent_keepalive_interval=0\n",
        "48".repeat(32),
        "22".repeat(32),
        "ab".repeat(32),
        "11".repeat(32),
        "00".repeat(32),
    );
    assert_eq!(*text, expected);
}

#[test]
fn a_bare_device_answers_nothing_but_its_end() {
    let mut text = get(&Device::new(0), &[]);
    finish(&mut text, Ok(()));
    assert_eq!(*text, "errno=0\n\n");
    let mut text = String::new();
    finish(&mut text, Err(Errno::INVALID));
    assert_eq!(text, "errno=-22\n\n");
}

#[test]
fn the_reserved_room_is_enough() {
    let (mut device, mut fake) = (Device::new(0), Fake::new(1));
    let longest = Prefix::new("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(), 128).unwrap();
    let peer = PeerChange {
        preshared_key: Some(Some(Secret([1; 32]))),
        keepalive: Some(Some(u16::MAX)),
        allowed_ips: vec![AllowedIp::Add(longest)],
        ..PeerChange::new(PublicKey([3; 32]))
    };
    let request = SetRequest {
        private_key: Some(Some(Secret([0x48; 32]))),
        listen_port: Some(u16::MAX),
        fwmark: Some(Mark(u32::MAX)),
        peers: vec![peer],
        ..SetRequest::default()
    };
    device.apply(request, &mut fake).unwrap();
    let stats = PeerStats {
        peer: device.peers()[0].id(),
        endpoint: Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap()),
        last_handshake: Some(Duration::new(u64::MAX, 999_999_999)),
        rx_bytes: u64::MAX,
        tx_bytes: u64::MAX,
        suite: None,
        awaits_answer: false,
    };
    let text = get(&device, &[stats]);
    assert!(text.len() <= DEVICE_BYTES + PEER_BYTES + PREFIX_BYTES, "{}", text.len());
    assert!(format!("allowed_ip={longest}\n").len() <= PREFIX_BYTES);
    assert_eq!(text.capacity(), DEVICE_BYTES + PEER_BYTES + PREFIX_BYTES, "it never grew");
}

#[test]
fn show_tells_no_secret() {
    let (device, mut fake) = device();
    let report = fake.report();
    let show = show(&device, &fake.snapshot(), report);
    let json = serde_json::to_string(&show).unwrap();
    for secret in [[0x48; 32], [0xab; 32]] {
        use base64::Engine as _;
        assert!(!json.contains(&base64::engine::general_purpose::STANDARD.encode(secret)));
    }
    assert_eq!(serde_json::from_str::<Show>(&json).unwrap(), show);
    assert!(show.peers[0].preshared_key && !show.peers[1].preshared_key);
    assert_eq!(show.dataplane["drops"]["replayed"], 3);
    let suites: Vec<_> = show.peers.iter().map(|peer| peer.suite.as_deref()).collect();
    assert_eq!(suites, [Some("AES-256-GCM"), None], "of who has a session");
}
