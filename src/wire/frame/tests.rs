use proptest::prelude::*;

use super::enrolment::{Enroll, Enrolled};
use super::lease::{AddrReply, AddrRequest, Settings};
use super::*;
use std::net::Ipv4Addr;

use arrayvec::ArrayString;

/// A frame of any operation with this body and 3 bytes of padding.
fn framed(operation: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![operation, VERSION, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    frame.extend([0xee; 3]);
    frame
}

fn is_body(body: &[u8]) -> bool {
    let frame = framed(0xc0, body);
    let parsed = Frame::parse(&frame);
    assert!(parsed.is_ok() || parsed == Err(Wrong::Malformed));
    parsed.is_ok()
}

#[test]
fn the_header_is_read_and_padding_is_not() {
    let mut bytes = framed(0xb0, &[0xa0]);
    bytes[2] = 0xfe;
    bytes[3] = 0x80;
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!((frame.operation, frame.flags), (Operation::Hello, 0x80fe));
    assert_eq!((frame.usage_id, frame.stream_id), (0x0403_0201, 0x0807_0605));
    assert!(frame.is_answer());
    bytes[2] |= 1;
    assert!(!Frame::parse(&bytes).unwrap().is_answer());
    for length in 0..17 {
        assert_eq!(Frame::parse(&bytes[..length]), Err(Wrong::Malformed), "{length}");
    }
    // One byte more than there is, and as many as a header can say.
    for length in [5_u32, u32::MAX] {
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        assert_eq!(Frame::parse(&bytes), Err(Wrong::Malformed));
    }
}

#[test]
fn every_operation_is_known_and_no_other() {
    let known: Vec<u8> = Operation::ALL.iter().map(|operation| *operation as u8).collect();
    assert_eq!(known.len(), 15);
    for code in 0..=255 {
        assert_eq!(is_frame(&[code]), (0xa0..=0xcf).contains(&code), "{code:#x}");
        let bytes = framed(code, &[0xa0]);
        match Frame::parse(&bytes) {
            Ok(frame) => assert_eq!(frame.operation as u8, code),
            Err(wrong) => assert_eq!((wrong, known.contains(&code)), (Wrong::Unknown, false)),
        }
    }
    assert!(!is_frame(&[]));
}

#[test]
fn another_version_is_told_and_an_answer_is_known_as_one() {
    for version in [0, 2, 255] {
        for (code, answer) in [(0xc0, false), (0xc1, true), (0xae, true), (0xb2, false), (0xb0, true)] {
            let mut bytes = framed(code, b"another body");
            bytes[1] = version;
            assert_eq!(Frame::parse(&bytes), Err(Wrong::Version { stream_id: 0x0807_0605, answer }));
        }
    }
}

#[test]
fn only_the_strict_kind_of_map_is_a_body() {
    let good: &[&[u8]] = &[
        &[0xa0],
        // Not the shortest form of a number.
        &[0xa1, 0x18, 0x01, 0x19, 0x00, 0x02],
        &[0xa1, 0x18, 0x3f, 0x20],
        &[0xa4, 0x00, 0xf5, 0x01, 0xf6, 0x02, 0x41, 0xff, 0x03, 0x61, 0x78],
        // Four levels: the body, an array, an array, a map.
        &[0xa1, 0x00, 0x81, 0x81, 0xa1, 0x00, 0x00],
        &[0xa1, 0x00, 0x80],
    ];
    for body in good {
        assert!(is_body(body), "{body:02x?}");
    }
    let bad: &[(&str, &[u8])] = &[
        ("nothing", &[]),
        ("no map", &[0x80]),
        ("a number", &[0x00]),
        ("two maps", &[0xa0, 0xa0]),
        ("a key twice", &[0xa2, 0x01, 0x00, 0x01, 0x00]),
        ("a key twice, written otherwise", &[0xa2, 0x01, 0x00, 0x18, 0x01, 0x00]),
        ("a key twice inside", &[0xa1, 0x00, 0xa2, 0x05, 0x00, 0x05, 0x00]),
        ("a large key", &[0xa1, 0x18, 0x40, 0x00]),
        ("a negative key", &[0xa1, 0x20, 0x00]),
        ("a text as key", &[0xa1, 0x61, 0x61, 0x00]),
        ("five levels", &[0xa1, 0x00, 0x81, 0x81, 0x81, 0x80]),
        ("an indefinite map", &[0xbf, 0xff]),
        ("an indefinite array", &[0xa1, 0x00, 0x9f, 0xff]),
        ("indefinite bytes", &[0xa1, 0x00, 0x5f, 0xff]),
        ("an indefinite text", &[0xa1, 0x00, 0x7f, 0xff]),
        ("a tag", &[0xa1, 0x00, 0xc1, 0x00]),
        ("a float", &[0xa1, 0x00, 0xf9, 0x00, 0x00]),
        ("undefined", &[0xa1, 0x00, 0xf7]),
        ("a simple value", &[0xa1, 0x00, 0xe0]),
        ("a break", &[0xa1, 0x00, 0xff]),
        ("no UTF-8", &[0xa1, 0x00, 0x61, 0xff]),
        ("cut short", &[0xa1, 0x00]),
        ("cut short inside", &[0xa1, 0x00, 0x44, 0x00]),
        ("more entries than bytes", &[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("more items than bytes", &[0xa1, 0x00, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("more text than bytes", &[0xa1, 0x00, 0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("more bytes than bytes", &[0xa1, 0x00, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (what, body) in bad {
        assert!(!is_body(body), "{what}");
    }
}

#[test]
fn hello_says_what_it_opens() {
    for aes in [false, true] {
        for answer in [false, true] {
            let bytes = Hello { aes }.write(answer);
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((frame.operation, frame.is_answer()), (Operation::Hello, !answer));
            assert_eq!(Hello::read(frame.body), Some(Hello { aes }));
        }
    }
    // Suites and keys of later versions are passed over; what is known must be right.
    for (body, hello) in [
        (&[0xa3, 0x00, 0x02, 0x01, 0x82, 0x18, 0x63, 0x01, 0x07, 0x60][..], Some(Hello { aes: true })),
        (&[0xa2, 0x00, 0x01, 0x01, 0x81, 0x00], Some(Hello { aes: false })),
        (&[0xa2, 0x00, 0x01, 0x01, 0x80], Some(Hello { aes: false })),
        (&[0xa1, 0x00, 0x01], None),
        (&[0xa1, 0x01, 0x81, 0x01], None),
        (&[0xa2, 0x00, 0x01, 0x01, 0x01], None),
        (&[0xa2, 0x00, 0x01, 0x01, 0x82, 0x01, 0x41, 0x01], None),
        (&[0xa3, 0x00, 0x01, 0x01, 0x81, 0x01, 0x02, 0x60], None),
    ] {
        let bytes = framed(0xb0, body);
        assert_eq!(Hello::read(Frame::parse(&bytes).unwrap().body), hello, "{body:02x?}");
    }
}

#[test]
fn a_ping_comes_back_and_has_its_limit() {
    for len in [0, 1, 23, 24, 255, PING_DATA] {
        let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
        for bytes in [ping(77, &data, u64::MAX), pong(77, &data, 255)] {
            assert!(bytes.len() <= LONGEST && bytes.len() > HEADER_LEN + len);
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((frame.stream_id, ping_data(&frame)), (77, Some(&data[..])));
        }
    }
    assert_eq!(Frame::parse(&pong(1, &[], 255)).unwrap().body.number(1), Some(100));
    let mut body = vec![0xa1, 0x00, 0x59, 0x01, 0x01];
    body.resize(5 + PING_DATA + 1, 0);
    let bytes = framed(0xc0, &body);
    assert_eq!(ping_data(&Frame::parse(&bytes).unwrap()), None, "one byte too many");
    assert!(ping(1, &[0; LONGEST], 0).is_empty());
}

#[test]
fn problems_have_a_code_and_a_delay_that_is_believed_for_an_hour() {
    for (code, number) in [(Code::UnsupportedVersion, 7), (Code::BadRequest, 8)] {
        let bytes = problem(9, code);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.operation, frame.stream_id), (Operation::Problem, 9));
        assert_eq!(frame.body.text(1), Some(code.text()));
        assert_eq!(Problem::read(frame.body), Some(Problem { code: number, retry_after: None, lost: None }));
    }
    let bytes = framed(0xae, &[0xa2, 0x02, 0x1a, 0x00, 0xff, 0xff, 0xff, 0x00, 0x01]);
    let read = Problem::read(Frame::parse(&bytes).unwrap().body);
    assert_eq!(read, Some(Problem { code: 1, retry_after: Some(3600), lost: None }));
    assert_eq!(Problem::read(Map(&[0xa0])), None);
}

/// A VPN_SEND, which nobody here writes.
fn framed_packet(packet: &[u8]) -> Vec<u8> {
    let frame = write(Operation::VpnSend, 0, 0, |encoder| {
        encoder.map(1)?.u8(0)?.bytes(packet)?;
        Ok(())
    });
    frame.to_vec()
}

/// The byte examples of docs/protocol.md: lines of ``- `NAME`: `hex` ``.
#[test]
fn the_documentation_says_what_is_written() {
    let text = include_str!("../../../docs/protocol.md");
    let example = |name: &str| -> Vec<u8> {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("- `{name}`: `"))).expect(name);
        let hex: Vec<u8> = line
            .split('`')
            .next()
            .unwrap()
            .bytes()
            .filter_map(|byte| char::from(byte).to_digit(16))
            .map(|digit| digit as u8)
            .collect();
        hex.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    };
    let request = AddrRequest {
        ipv4: Some(Ipv4Addr::new(100, 64, 0, 7)),
        hostname: ArrayString::from("phone").unwrap(),
        client_id: ArrayVec::try_from(&b"ringway"[..]).unwrap(),
        ..AddrRequest::default()
    };
    let reply = AddrReply {
        ipv4: Some((Ipv4Addr::new(100, 64, 0, 7), 10)),
        ipv6: Some(("fd64::6440:7".parse().unwrap(), 64)),
        gateway_ipv4: Some(Ipv4Addr::new(100, 64, 0, 1)),
        gateway_ipv6: Some("fd64::1".parse().unwrap()),
        seconds: 86_400,
        usage_id: 9,
    };
    let settings = Settings {
        mtu: 1420,
        dns: vec![Ipv4Addr::new(100, 64, 0, 1).into()],
        search: vec!["example.org".to_owned()],
        included: vec!["0.0.0.0/0".parse().unwrap()],
        excluded: vec!["10.1.0.0/16".parse().unwrap()],
    };
    let enroll = Enroll { own: crate::types::PublicKey([0x0c; 32]), proof: [0x0d; 32] };
    let (name, keepalive) = ("phones-3".to_owned(), 25);
    let enrolled = Enrolled { reply: reply.clone(), settings: settings.clone(), name, keepalive };
    let written: [(&str, Vec<u8>); 15] = [
        ("HELLO with both suites that asks for an answer", Hello { aes: true }.write(true).to_vec()),
        ("HELLO with ChaCha20-Poly1305 alone, an answer", Hello { aes: false }.write(false).to_vec()),
        ("PING", ping(7, b"ringway", 1000).to_vec()),
        ("PONG", pong(7, b"ringway", 5).to_vec()),
        ("PROBLEM UNSUPPORTED_VERSION", problem(7, Code::UnsupportedVersion).to_vec()),
        ("PROBLEM BAD_REQUEST", problem(7, Code::BadRequest).to_vec()),
        ("PROBLEM NO_FREE_ADDR, again in 60 s", problem_with(7, Code::NoFreeAddr, Some(60), None).to_vec()),
        ("PROBLEM PACKET_LOST, 3 packets", problem_with(0, Code::PacketLost, None, Some(3)).to_vec()),
        ("ADDR_REQUEST", request.write(0, 7).to_vec()),
        ("ADDR_REPLY", reply.write(&settings, 7)),
        ("ENROLL", enroll.write(7).to_vec()),
        ("ENROLLED", enrolled.write(7)),
        (
            "PROBLEM NOT_ALLOWED to an ENROLL",
            problem_saying(7, Code::NotAllowed, "this invite is spent", None, None).to_vec(),
        ),
        ("DISCONNECT", lease::disconnect(9, 8, 0).to_vec()),
        ("VPN_SEND of the bytes 0x45 0x00", framed_packet(&[0x45, 0])),
    ];
    for (name, bytes) in written {
        assert_eq!(example(name), bytes.as_slice(), "{name}: {bytes:02x?}");
        assert!(Frame::parse(&example(name)).is_ok(), "{name}");
    }
}

proptest! {
    #[test]
    fn any_body_is_walked_once_or_refused(body in proptest::collection::vec(any::<u8>(), 0..64)) {
        crate::fuzzing::frame(&framed(0xb0, &body));
        crate::fuzzing::frame(&framed(0xc0, &body));
    }
}
