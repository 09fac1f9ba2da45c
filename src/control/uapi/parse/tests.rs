//! Tables of every key and every error, and random input.

use std::time::Instant;

use proptest::prelude::*;

use super::*;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

/// Feeds whole text, line by line; the last answer.
fn feed(text: &str) -> Progress {
    let mut parser = RequestParser::new();
    let mut last = Progress::More;
    for line in text.split_terminator('\n') {
        last = parser.line(line.as_bytes());
        if !matches!(last, Progress::More) {
            break;
        }
    }
    last
}

fn set(body: &str) -> Result<SetRequest, Errno> {
    match feed(&format!("set=1\n{body}\n\n")) {
        Progress::Complete(Ok(Request::Set(set))) => Ok(set),
        Progress::Complete(Err(errno)) => Err(errno),
        other => panic!("{other:?}"),
    }
}

fn peer(body: &str) -> Result<PeerChange, Errno> {
    set(&format!("public_key={KEY}\n{body}")).map(|mut set| set.peers.pop().unwrap())
}

#[test]
fn operations() {
    assert!(matches!(feed("get=1\n\n"), Progress::Complete(Ok(Request::Get))));
    assert!(matches!(feed("show=json\n\n"), Progress::Complete(Ok(Request::Show))));
    assert!(matches!(feed("switch=1\n\n"), Progress::Complete(Ok(Request::Switch(none))) if none.is_empty()));
    assert!(matches!(feed("set=1\n\n"), Progress::Complete(Ok(Request::Set(_)))));
    assert!(matches!(feed("\n\nget=1\n\n"), Progress::Complete(Ok(Request::Get))));
    assert!(matches!(feed("get=1\nx=1\n\n"), Progress::Complete(Err(Errno::INVALID))));
    for unknown in ["get=2\n", "reload=1\n", "set\n", "get=1 \n", "GET / HTTP/1.1\n"] {
        assert!(matches!(feed(unknown), Progress::Broken(Errno::PROTOCOL)), "{unknown}");
    }
    assert!(matches!(feed("set=1\nlisten_port=1\n"), Progress::More));
}

#[test]
fn a_refused_request_leaves_the_next_one_alone() {
    let mut parser = RequestParser::new();
    for line in ["set=1", "listen_port=x", "listen_port=2"] {
        assert!(matches!(parser.line(line.as_bytes()), Progress::More));
    }
    assert!(parser.in_request());
    assert!(matches!(parser.line(b""), Progress::Complete(Err(Errno::INVALID))));
    assert!(!parser.in_request());
    assert!(matches!(parser.line(b"get=1"), Progress::More));
    assert!(matches!(parser.line(b""), Progress::Complete(Ok(Request::Get))));
}

#[test]
fn device_keys() {
    let request =
        set(&format!("private_key={KEY}\nlisten_port=51820\nfwmark=4294967295\nreplace_peers=true")).unwrap();
    let key = request.private_key.unwrap().unwrap();
    assert_eq!((key.0[0], key.0[31]), (0xb8, 0x73), "clamped: 0x33 & 0x7f | 0x40");
    assert_eq!(request.listen_port, Some(51_820));
    assert_eq!(request.fwmark, Some(Mark(u32::MAX)));
    assert!(request.replace_peers && request.peers.is_empty());
    let none = set(&format!("private_key={}", "0".repeat(64))).unwrap();
    assert!(matches!(none.private_key, Some(None)));
    assert_eq!(set("listen_port=1\nlisten_port=0").unwrap().listen_port, Some(0));
    assert_eq!(set("listen_port=65535").unwrap().listen_port, Some(65535));
}

#[test]
fn device_errors() {
    let long = format!("private_key={KEY}0");
    let short = format!("private_key={}", &KEY[1..]);
    let odd = format!("private_key={}g", &KEY[1..]);
    let bad = [
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=+1",
        "listen_port=",
        "listen_port=0x10",
        "listen_port= 1",
        "listen_port=1\r",
        "fwmark=4294967296",
        "fwmark=0x1",
        "replace_peers=false",
        "replace_peers=",
        "remove=true",
        "allowed_ip=10.0.0.0/8",
        "protocol_version=1",
        "unknown=1",
        "private_key=",
        "=",
        &long,
        &short,
        &odd,
        "public_key=xyz",
        "errno=0",
        "Listen_port=1",
    ];
    for line in bad {
        assert_eq!(set(line).unwrap_err(), Errno::INVALID, "{line}");
    }
    for line in ["listen_port", "x", " "] {
        assert_eq!(set(line).unwrap_err(), Errno::PROTOCOL, "{line}");
    }
    let mut parser = RequestParser::new();
    assert!(matches!(parser.line(b"set=1"), Progress::More));
    assert!(matches!(parser.line(b"\xff\xfe=1"), Progress::More));
    assert!(matches!(parser.line(b""), Progress::Complete(Err(Errno::INVALID))));
}

#[test]
fn peer_keys() {
    let change = peer(&format!(
        "update_only=true\npreshared_key={KEY}\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n\
         replace_allowed_ips=true\nallowed_ip=10.1.2.3/8\nallowed_ip=-fd00::1/64\nprotocol_version=1"
    ))
    .unwrap();
    assert_eq!(change.public_key.0[..2], [0xb8, 0x59]);
    assert!(change.update_only && change.replace_allowed_ips && !change.remove);
    assert_eq!(change.preshared_key.unwrap().unwrap().0[31], 0x33);
    assert_eq!(change.endpoint, Some("192.0.2.1:51820".parse().unwrap()));
    assert_eq!(change.keepalive, Some(Some(25)));
    let [AllowedIp::Add(add), AllowedIp::Remove(remove)] = change.allowed_ips[..] else { panic!() };
    assert_eq!((add.to_string(), remove.to_string()), ("10.0.0.0/8".into(), "fd00::/64".into()));
    assert!(peer("remove=true").unwrap().remove);
    assert_eq!(peer("persistent_keepalive_interval=0").unwrap().keepalive, Some(None));
    assert!(matches!(peer(&format!("preshared_key={}", "0".repeat(64))).unwrap().preshared_key, Some(None)));
    let upper = set(&format!("public_key={}", KEY.to_uppercase())).unwrap();
    assert_eq!(upper.peers[0].public_key, change.public_key);
}

#[test]
fn endpoints() {
    for (text, expected) in [
        ("198.18.0.1:1", "198.18.0.1:1"),
        ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
        ("[::ffff:198.18.0.1]:7", "198.18.0.1:7"),
        ("[fe80::1%3]:80", "[fe80::1%3]:80"),
        ("[fe80::1%lo]:80", "[fe80::1%1]:80"),
    ] {
        let endpoint = peer(&format!("endpoint={text}")).unwrap().endpoint.unwrap();
        assert_eq!(endpoint, expected.parse().unwrap(), "{text}");
    }
}

#[test]
fn peer_errors() {
    let bad = [
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:",
        "endpoint=:1",
        "endpoint=host:1",
        "endpoint=192.0.2.1:65536",
        "endpoint=2001:db8::1:1",
        "endpoint=[2001:db8::1]",
        "endpoint=[2001:db8::1:1",
        "endpoint=[192.0.2.1]:1",
        "endpoint=[fe80::1%]:1",
        "endpoint=[fe80::1%no-such-link]:1",
        "endpoint=[]:1",
        "endpoint=[::1]]:1",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "replace_allowed_ips=1",
        "remove=yes",
        "update_only=True",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=::/129",
        "allowed_ip=10.0.0/8",
        "allowed_ip=/8",
        "allowed_ip=10.0.0.0/",
        "allowed_ip=10.0.0.0/+8",
        "allowed_ip=--1.1.1.1/8",
        "allowed_ip=fe80::1%lo/64",
        "allowed_ip=10.0.0.0/256",
        "protocol_version=2",
        "protocol_version=",
        "listen_port=1",
        "private_key=00",
        "preshared_key=00",
        "last_handshake_time_sec=1",
    ];
    for line in bad {
        assert_eq!(peer(line).unwrap_err(), Errno::INVALID, "{line}");
    }
    assert_eq!(peer("remove").unwrap_err(), Errno::PROTOCOL);
}

#[test]
fn limits() {
    let mut parser = RequestParser::new();
    assert!(matches!(parser.line(b"set=1"), Progress::More));
    assert!(matches!(parser.line(&[b'x'; MAX_LINE]), Progress::More));
    assert!(matches!(parser.line(&[b'x'; MAX_LINE + 1]), Progress::Broken(Errno::TOO_LONG)));

    let mut parser = RequestParser::new();
    assert!(matches!(parser.line(b"set=1"), Progress::More));
    let line = [b'x'; MAX_LINE];
    let fit = (MAX_REQUEST - 6) / (MAX_LINE + 1);
    assert!((0..fit).all(|_| matches!(parser.line(&line), Progress::More)));
    assert!(matches!(parser.line(&line), Progress::Broken(Errno::TOO_LONG)));
}

#[test]
fn a_large_request_is_quick() {
    let start = Instant::now();
    let mut parser = RequestParser::new();
    assert!(matches!(parser.line(b"set=1"), Progress::More));
    assert!(matches!(parser.line(format!("public_key={KEY}").as_bytes()), Progress::More));
    for n in 0..130_000u32 {
        let line = format!("allowed_ip={}/32", std::net::Ipv4Addr::from_bits(0x0a00_0000 + n));
        assert!(matches!(parser.line(line.as_bytes()), Progress::More));
    }
    let Progress::Complete(Ok(Request::Set(set))) = parser.line(b"") else { panic!() };
    assert_eq!(set.peers[0].allowed_ips.len(), 130_000);
    // Generous: a build for tests, on a machine with other work.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

/// A line that is nearly right.
fn near_line() -> impl Strategy<Value = Vec<u8>> {
    let keys = prop::sample::select(vec![
        "get",
        "set",
        "show",
        "private_key",
        "listen_port",
        "fwmark",
        "replace_peers",
        "public_key",
        "remove",
        "update_only",
        "preshared_key",
        "endpoint",
        "persistent_keepalive_interval",
        "replace_allowed_ips",
        "allowed_ip",
        "protocol_version",
    ]);
    let values = prop_oneof![
        Just("1".to_owned()),
        Just("json".to_owned()),
        Just("true".to_owned()),
        Just(KEY.to_owned()),
        "[0-9a-f:.%\\[\\]/-]{0,40}",
        any::<u32>().prop_map(|n| n.to_string()),
    ];
    prop_oneof![
        8 => (keys, values).prop_map(|(key, value)| format!("{key}={value}").into_bytes()),
        2 => Just(Vec::new()),
        1 => prop::collection::vec(any::<u8>(), 0..80),
    ]
}

proptest! {
    #[test]
    fn random_lines_never_panic(lines in prop::collection::vec(near_line(), 0..40)) {
        let mut parser = RequestParser::new();
        for line in lines {
            if let Progress::Broken(_) = parser.line(&line) {
                break;
            }
        }
    }

    #[test]
    fn prefixes_are_read_as_written(bits: u32, len in 0u8..=32, v6: u128, len6 in 0u8..=128) {
        for prefix in [Prefix::new(IpAddr::V4(bits.into()), len), Prefix::new(IpAddr::V6(v6.into()), len6)] {
            let prefix = prefix.unwrap();
            let change = peer(&format!("allowed_ip={prefix}")).unwrap();
            prop_assert_eq!(&change.allowed_ips[..], &[AllowedIp::Add(prefix)]);
        }
    }

    #[test]
    fn endpoints_are_read_as_written(v4: u32, v6: u128, port: u16) {
        for ip in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into()).to_canonical()] {
            let endpoint = SocketAddr::new(ip, port);
            prop_assert_eq!(peer(&format!("endpoint={endpoint}")).unwrap().endpoint, Some(endpoint));
        }
    }
}

#[test]
fn switches_are_named_once_each() {
    let text = "switch=1\nudp_send=off\nmss_clamp=on\n\n";
    let Progress::Complete(Ok(Request::Switch(switches))) = feed(text) else { panic!() };
    assert_eq!(switches, [(Switch::UdpSend, false), (Switch::MssClamp, true)]);
    for bad in ["udp-send=off", "udp_send=0", "udp_send", "private_key=off", "udp_send=on\nudp_send=off"] {
        let refused = feed(&format!("switch=1\n{bad}\n\n"));
        assert!(matches!(refused, Progress::Complete(Err(_))), "{bad}: {refused:?}");
    }
    // Not in a request of wg's.
    assert!(matches!(feed("set=1\nudp_send=off\n\n"), Progress::Complete(Err(_))));
}
