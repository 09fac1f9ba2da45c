use super::super::{Code, LONGEST, LONGEST_DELAY, Problem, problem, problem_with};
use super::*;

const V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 7);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0x6440, 7);

fn body(operation: Operation, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![operation as u8, VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    frame
}

fn request(bytes: &[u8]) -> Option<AddrRequest> {
    AddrRequest::read(Frame::parse(bytes).unwrap().body)
}

fn settings() -> Settings {
    Settings {
        mtu: 1420,
        dns: vec![V4.into(), V6.into()],
        search: vec!["example.org".to_owned(), "x".to_owned()],
        included: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        excluded: vec!["10.1.0.0/16".parse().unwrap()],
    }
}

fn reply() -> AddrReply {
    AddrReply {
        ipv4: Some((V4, 10)),
        ipv6: Some((V6, 64)),
        gateway_ipv4: Some(Ipv4Addr::new(100, 64, 0, 1)),
        gateway_ipv6: None,
        seconds: 86_400,
        usage_id: 0xfedc_ba98,
    }
}

#[test]
fn a_request_says_what_it_says() {
    let full = AddrRequest {
        ipv4: Some(V4),
        ipv6: Some(V6),
        client_id: [0x55; CLIENT_ID].into(),
        hostname: ArrayString::from(&"h".repeat(MAX_LABEL)).unwrap(),
        families: Families { ipv4: false, ipv6: true },
    };
    for asked in [full, AddrRequest::default()] {
        let bytes = asked.write(9, 77);
        assert!(bytes.len() <= LONGEST);
        let frame = Frame::parse(&bytes).unwrap();
        let header = (frame.operation, frame.usage_id, frame.stream_id, frame.is_answer());
        assert_eq!(header, (Operation::AddrRequest, 9, 77, false));
        assert_eq!(AddrRequest::read(frame.body), Some(asked));
    }
    // Nothing is said: both families are wanted.
    assert_eq!(request(&body(Operation::AddrRequest, &[0xa0])), Some(AddrRequest::default()));
    let name = |text: &str| [&[0xa1, 0x01, 0x60 + text.len() as u8], text.as_bytes()].concat();
    let long = [&[0xa1, 0x00, 0x58, 65][..], &[0; 65]].concat();
    for bad in [
        &[0xa1, 0x04, 0x00][..],
        &[0xa1, 0x04, 0x04],
        &[0xa1, 0x02, 0x43, 1, 2, 3],
        &[0xa1, 0x02, 0x00],
        &[0xa1, 0x03, 0x44, 1, 2, 3, 4],
        &[0xa1, 0x01, 0x41, 0x61],
        &[0xa1, 0x00, 0x61, 0x61],
        &name("a b"),
        &name("-a"),
        &name("a\n"),
        &long,
    ] {
        assert_eq!(request(&body(Operation::AddrRequest, bad)), None, "{bad:02x?}");
    }
    assert!(request(&body(Operation::AddrRequest, &name("phone-7"))).is_some());
}

#[test]
fn a_reply_says_what_it_says() {
    for (reply, settings) in [
        (reply(), settings()),
        (AddrReply { ipv4: None, ..reply() }, Settings { mtu: 576, ..Settings::default() }),
    ] {
        let bytes = reply.write(&settings, 5);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.operation, frame.stream_id), (Operation::AddrReply, 5));
        assert_eq!((frame.usage_id, frame.is_answer()), (reply.usage_id, true));
        assert_eq!(AddrReply::read(frame.body), Some((reply, settings)));
    }
}

#[test]
fn a_reply_that_cannot_be_right_is_none() {
    let read = |bytes: &[u8]| AddrReply::read(Frame::parse(bytes).unwrap().body);
    let nobody = AddrReply { ipv4: None, ipv6: None, ..reply() };
    assert_eq!(read(&nobody.write(&settings(), 1)), None, "no address");
    let wrong = |change: fn(&mut AddrReply, &mut Settings)| {
        let (mut reply, mut settings) = (reply(), settings());
        change(&mut reply, &mut settings);
        read(&reply.write(&settings, 1))
    };
    assert_eq!(wrong(|reply, _| reply.ipv4 = Some((V4, 33))), None);
    assert_eq!(wrong(|reply, _| reply.ipv6 = Some((V6, 129))), None);
    assert_eq!(wrong(|_, settings| settings.dns = vec![V4.into(); MOST_NAMES + 1]), None);
    assert_eq!(wrong(|_, settings| settings.search = vec!["a.b".to_owned(); MOST_NAMES + 1]), None);
    assert_eq!(wrong(|_, settings| settings.search[0] = "a\u{1b}[2J".to_owned()), None);
    let prefix = "10.0.0.0/8".parse().unwrap();
    assert!(wrong(|_, _| {}).is_some());
    let (mut many, reply) = (settings(), reply());
    many.excluded = vec![prefix; MOST_ROUTES];
    assert!(read(&reply.write(&many, 1)).is_some());
    many.excluded.push(prefix);
    assert_eq!(read(&reply.write(&many, 1)), None);
    // Bits behind a prefix, and a server that is none: changed in the frame.
    let bytes = reply.write(&settings(), 1);
    for (what, found, put) in [
        ("host bits", &[0x45, 10, 1, 0, 0, 16][..], &[0x45, 10, 1, 0, 1, 16][..]),
        ("a long prefix", &[0x45, 10, 1, 0, 0, 16], &[0x45, 10, 1, 0, 0, 33]),
        ("another type", &[0x05, 0x19, 0x05, 0x8c], &[0x05, 0x42, 0x05, 0x8c]),
    ] {
        let at = bytes.windows(found.len()).position(|window| window == found).expect(what);
        let mut changed = bytes.clone();
        changed[at..at + put.len()].copy_from_slice(put);
        assert_eq!(read(&changed), None, "{what}");
    }
}

#[test]
fn a_packet_in_a_frame_is_found_and_nothing_else_is() {
    let packet = [0x45, 0, 0, 20, 7, 7, 7];
    let inner = [&[0xa2, 0x05, 0x01, 0x00, 0x47][..], &packet].concat();
    for operation in [Operation::VpnSend, Operation::VpnReceive] {
        let mut frame = body(operation, &inner);
        frame.extend([0; 9]);
        assert_eq!(packet_in(&frame).map(|range| &frame[range]), Some(&packet[..]), "{operation:?}");
        frame[1] = 2;
        assert_eq!(packet_in(&frame), None, "of another version");
    }
    assert_eq!(packet_in(&body(Operation::Ping, &inner)), None);
    for none in [&[0xa0][..], &[0xa1, 0x00, 0x01], &[0xa1, 0x01, 0x41, 0x45], &[0xa1, 0x00, 0x44, 0x45]] {
        assert_eq!(packet_in(&body(Operation::VpnSend, none)), None, "{none:02x?}");
    }
    assert_eq!((packet_in(&[]), packet_in(&[0x45, 0, 0])), (None, None));
}

#[test]
fn a_disconnect_has_a_reason() {
    let bytes = disconnect(3, 4, 200);
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!((frame.operation, frame.usage_id, frame.stream_id), (Operation::Disconnect, 3, 4));
    assert_eq!(disconnect_reason(frame.body), Some(200));
    let empty = body(Operation::Disconnect, &[0xa0]);
    assert_eq!(disconnect_reason(Frame::parse(&empty).unwrap().body), None);
}

#[test]
fn every_problem_says_what_it_knows() {
    for code in Code::ALL {
        for (retry, lost) in [(None, None), (Some(60), None), (Some(u32::MAX), Some(7))] {
            let bytes = problem_with(1, *code, retry, lost);
            let read = Problem::read(Frame::parse(&bytes).unwrap().body).unwrap();
            assert_eq!((read.code, read.lost), (*code as u64, lost.map(u64::from)));
            assert_eq!(read.retry_after, retry.map(|seconds| u64::from(seconds).min(LONGEST_DELAY)));
        }
        assert_eq!(problem(1, *code), problem_with(1, *code, None, None));
    }
}
