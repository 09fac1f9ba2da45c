//! Control bytes by hand and at random, and datagrams over loopback.

use std::net::UdpSocket;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::sys::testing::{eventually, in_netns, ip, usable};

fn pair(addr: &str, domain: Domain) -> (UdpSocket, UdpSocket) {
    let (a, b) = (UdpSocket::bind((addr, 0)).unwrap(), UdpSocket::bind((addr, 0)).unwrap());
    for socket in [&a, &b] {
        set_receive_info(socket, domain).unwrap();
        set_path_mtu(socket, domain).unwrap();
        set_buffers(socket, 1 << 20).unwrap();
    }
    (a, b)
}

const FAMILIES: [(&str, Domain); 2] = [("127.0.0.1", Domain::IPV4), ("::1", Domain::IPV6)];

/// Receives what was just sent: on a busy machine loopback delivers a moment later.
fn soon(socket: &UdpSocket, buffer: &mut [u8]) -> Received {
    crate::sys::poll::readable(&[socket.as_fd()], Duration::from_secs(10)).unwrap();
    recv(socket, buffer).unwrap()
}

#[test]
fn a_datagram_arrives_with_its_source_and_tos() {
    for (addr, domain) in FAMILIES {
        let (a, b) = pair(addr, domain);
        let mut buffer = [0; 100];
        let empty = recv(&b, &mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        for tos in [0, 1, 0x88, 0xff] {
            send(&a, b"hello", b.local_addr().unwrap(), None, tos, None).unwrap();
            let got = soon(&b, &mut buffer);
            assert_eq!((&buffer[..got.len], got.tos), (&b"hello"[..], tos), "{addr}");
            assert_eq!(got.remote, a.local_addr().unwrap());
            let source = got.source.unwrap();
            assert_eq!((source.addr, source.ifindex), (addr.parse().unwrap(), 1));
            assert_eq!((got.segment, got.truncated), (None, false));
        }
    }
}

#[test]
fn an_empty_and_a_cut_datagram() {
    for (addr, domain) in FAMILIES {
        let (a, b) = pair(addr, domain);
        send(&a, b"", b.local_addr().unwrap(), None, 0, None).unwrap();
        send(&a, b"12345", b.local_addr().unwrap(), None, 0, None).unwrap();
        let mut buffer = [0; 3];
        let got = soon(&b, &mut buffer);
        assert_eq!((got.len, got.truncated), (0, false));
        let got = soon(&b, &mut buffer);
        assert_eq!((got.len, got.truncated, &buffer), (3, true, b"123"));
    }
}

#[test]
fn many_arrive_in_order_each_with_what_is_beside_it() {
    for (addr, domain) in FAMILIES {
        let (a, b) = pair(addr, domain);
        let mut buffers: Vec<Vec<u8>> = vec![vec![0; 3]; MANY + 2];
        assert_eq!(recv_many(&b, &mut buffers).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let to = b.local_addr().unwrap();
        for n in 0..MANY as u8 + 3 {
            let text = [n; 4];
            // The third is empty, the fourth is cut.
            let len = match n {
                2 => 0,
                3 => 4,
                _ => 2,
            };
            send(&a, &text[..len], to, None, n, None).unwrap();
        }
        crate::sys::poll::readable(&[b.as_fd()], Duration::from_secs(10)).unwrap();
        let mut next = 0;
        for wanted in [MANY, 3] {
            let received = recv_many(&b, &mut buffers).unwrap();
            assert_eq!(received.len(), wanted);
            for (got, buffer) in received.into_iter().zip(&buffers) {
                let (got, len) = (
                    got.unwrap(),
                    match next {
                        2 => 0,
                        3 => 3,
                        _ => 2,
                    },
                );
                assert_eq!((got.len, got.truncated, got.tos), (len, next == 3, next));
                assert!(buffer[..len].iter().all(|byte| *byte == next));
                assert_eq!((got.remote, got.source.unwrap().ifindex), (a.local_addr().unwrap(), 1));
                next += 1;
            }
        }
    }
}

#[test]
fn many_go_in_order_until_one_is_refused() {
    for (addr, domain) in FAMILIES {
        let (a, b) = pair(addr, domain);
        let remote = b.local_addr().unwrap();
        let other: SocketAddr = if remote.is_ipv4() { "[::1]:9" } else { "127.0.0.1:9" }.parse().unwrap();
        let text: Vec<u8> = (0..=255).collect();
        let plain = |n: usize| Outgoing {
            payload: &text[..n],
            remote,
            source: None,
            tos: n as u8,
            segment: (n > 100).then_some(100),
        };
        let mut datagrams: Vec<_> = (1..=MANY + 2).map(plain).collect();
        datagrams[2] = plain(250);
        assert_eq!(send_many(&a, &datagrams).unwrap(), MANY, "no more than that at once");
        let mut buffer = [0; 300];
        for len in [1, 2, 100, 100, 50].into_iter().chain(4..=MANY) {
            let got = soon(&b, &mut buffer);
            assert_eq!(got.len, len, "{addr}");
            assert!(len >= 50 || usize::from(got.tos) == len);
        }
        assert_eq!(recv(&b, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // One that cannot go ends the call, and begins the next.
        datagrams[1] = Outgoing { remote: other, ..plain(7) };
        assert_eq!(send_many(&a, &datagrams).unwrap(), 1);
        assert!(send_many(&a, &datagrams[1..]).is_err());
        datagrams[1] = Outgoing { source: Some(Source { addr: other.ip(), ifindex: 0 }), ..plain(7) };
        assert_eq!(send_many(&a, &datagrams).unwrap(), 1);
        assert_eq!(send_many(&a, &datagrams[1..]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(send_many(&a, &[]).unwrap(), 0);
    }
}

#[test]
fn a_run_is_cut_into_datagrams_or_arrives_as_one() {
    for (addr, domain) in FAMILIES {
        let (a, b) = pair(addr, domain);
        let run: Vec<u8> = (0..250).collect();
        let mut buffer = [0; 1000];
        send(&a, &run, b.local_addr().unwrap(), None, 2, Some(100)).unwrap();
        let lens: Vec<usize> = (0..3).map(|_| soon(&b, &mut buffer).len).collect();
        assert_eq!(lens, [100, 100, 50]);
        set_gro(&b, true).unwrap();
        let source = Some(Source { addr: addr.parse().unwrap(), ifindex: 0 });
        send(&a, &run, b.local_addr().unwrap(), source, 2, Some(100)).unwrap();
        let got = soon(&b, &mut buffer);
        assert_eq!((got.len, got.segment, got.tos), (250, Some(100), 2));
        assert_eq!(&buffer[..250], run);
        assert_eq!(got.source, Some(Source { addr: addr.parse().unwrap(), ifindex: 1 }));
    }
}

#[test]
fn the_source_is_kept_and_a_lost_one_is_an_error() {
    in_netns(|| {
        ip("addr add 198.18.0.1/24 dev lo");
        ip("addr add 198.18.0.2/24 dev lo");
        ip("addr add fd01::1/64 dev lo nodad");
        ip("addr add fd01::2/64 dev lo nodad");
        usable("fd01::1");
        usable("fd01::2");
        let cases = [
            ("0.0.0.0:0", "198.18.0.1:5000", "198.18.0.2", "198.19.0.9", libc::ENETUNREACH),
            ("[::]:0", "[fd01::1]:5000", "fd01::2", "fd02::9", libc::EINVAL),
        ];
        for (from, to, source, gone, errno) in cases {
            let (a, b) = (UdpSocket::bind(from).unwrap(), UdpSocket::bind(to).unwrap());
            let mut buffer = [0; 10];
            for ifindex in [0, 1] {
                let source = Source { addr: source.parse().unwrap(), ifindex };
                send(&a, b"x", b.local_addr().unwrap(), Some(source), 0, None).unwrap();
                assert_eq!(soon(&b, &mut buffer).remote.ip(), source.addr);
            }
            let gone = Some(Source { addr: gone.parse().unwrap(), ifindex: 0 });
            let error = send(&a, b"x", b.local_addr().unwrap(), gone, 0, None).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno), "{to}");
            let other = Some(Source {
                addr: if to.starts_with('[') { "127.0.0.1" } else { "::1" }.parse().unwrap(),
                ifindex: 0,
            });
            let error = send(&a, b"x", b.local_addr().unwrap(), other, 0, None).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "another family");
        }
    });
}

#[test]
fn the_limits_of_a_datagram_and_of_a_run_are_errors() {
    let (a, b) = pair("127.0.0.1", Domain::IPV4);
    let to = b.local_addr().unwrap();
    assert_eq!(send(&a, &[0; 65_536], to, None, 0, None).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    assert!(send(&a, &[0; 1290], to, None, 0, Some(10)).is_err(), "129 segments");
    send(&a, &[0; 1280], to, None, 0, Some(10)).unwrap();
}

#[test]
fn what_does_not_fit_the_device_goes_in_fragments() {
    in_netns(|| {
        ip("link set lo mtu 1500");
        for (addr, domain) in FAMILIES {
            let (a, b) = pair(addr, domain);
            let to = b.local_addr().unwrap();
            let mut buffer = [0; 4000];
            for _ in 0..2 {
                let sent = send(&a, &[7; 3000], to, None, 2, None);
                if domain == Domain::IPV4 {
                    assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE), "as before");
                    send_in_fragments(&a, &[7; 3000], to, None, 2).unwrap();
                } else {
                    sent.unwrap();
                }
                let got = soon(&b, &mut buffer);
                assert_eq!((got.len, got.tos), (3000, 2));
                assert!(buffer[..3000].iter().all(|byte| *byte == 7));
            }
        }
    });
}

#[test]
fn a_refused_port_is_reported_once() {
    let (a, b) = pair("127.0.0.1", Domain::IPV4);
    let to = b.local_addr().unwrap();
    drop(b);
    a.connect(to).unwrap();
    let mut buffer = [0; 10];
    eventually(|| {
        send(&a, b"x", to, None, 0, None).ok()?;
        let error = recv(&a, &mut buffer).unwrap_err();
        (error.kind() == io::ErrorKind::ConnectionRefused).then_some(())
    });
    assert_eq!(recv(&a, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_port_is_shared_once_the_option_is_set_after_bind() {
    let first = UdpSocket::bind("127.0.0.1:0").unwrap();
    let join = || {
        let socket = socket2::Socket::new(Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        set_reuse_port(&socket).unwrap();
        socket.bind(&first.local_addr().unwrap().into())
    };
    assert_eq!(join().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    set_reuse_port(&first).unwrap();
    join().unwrap();
}

#[test]
fn a_bad_program_is_refused() {
    let socket = socket2::Socket::new(Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    set_reuse_port(&socket).unwrap();
    assert!(attach_reuseport_cbpf(&socket, &[]).is_err());
    let load = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
    assert!(attach_reuseport_cbpf(&socket, &[load]).is_err(), "does not return");
}

/// A control message by hand: length, level, kind, data, padding.
fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(space(data.len()), 0xEE);
    bytes
}

#[test]
fn the_walk_reads_known_messages_and_skips_others() {
    let bytes = [
        message(libc::SOL_SOCKET, 99, &[1, 2, 3]),
        message(libc::IPPROTO_IP, libc::IP_TOS, &[0x89]),
        message(libc::SOL_UDP, libc::UDP_GRO, &1400_i32.to_ne_bytes()),
        message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[5, 0, 0, 0, 10, 0, 0, 1, 255, 255, 255, 255]),
    ]
    .concat();
    let source =
        Some(Source { addr: "10.0.0.1".parse().unwrap(), ifindex: u32::from_ne_bytes([5, 0, 0, 0]) });
    let all = Control { source, tos: 0x89, segment: Some(1400) };
    assert_eq!(parse_control(&bytes), all);
    // The last message without its padding, as the kernel gives it.
    assert_eq!(parse_control(&bytes[..bytes.len() - 4]), all);
    // Cut anywhere: what came before is kept, nothing is invented.
    for len in 0..bytes.len() - 4 {
        assert_eq!(parse_control(&bytes[..len]).source, None, "{len}");
    }
    assert_eq!(parse_control(&bytes[..space(3)]), Control::default());
}

#[test]
fn the_walk_ends_at_nonsense() {
    let good = message(libc::IPPROTO_IP, libc::IP_TOS, &[7]);
    for len in [0_usize, 1, HEADER - 1, 1000, usize::MAX, usize::MAX - 6] {
        let mut bad = good.clone();
        bad[..8].copy_from_slice(&len.to_ne_bytes());
        assert_eq!(parse_control(&[bad, good.clone()].concat()), Control::default(), "{len}");
    }
    for n in [0_i32, -1, 65_536] {
        assert_eq!(parse_control(&message(libc::SOL_UDP, libc::UDP_GRO, &n.to_ne_bytes())).segment, None);
    }
}

#[test]
fn everything_sent_at_once_fits_and_reads_back() {
    for addr in ["10.1.2.3", "fe80::7"] {
        let source = Source { addr: addr.parse().unwrap(), ifindex: 3 };
        let mut writer = ControlWriter::new();
        writer.push_source(source);
        writer.push_tos(source.addr.is_ipv6(), 0x88);
        writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, 1400_u16.to_ne_bytes());
        assert!(writer.len <= CONTROL_LEN);
        let read = parse_control(&writer.bytes[..writer.len]);
        assert_eq!((read.source, read.tos, read.segment), (Some(source), 0x88, None));
    }
}

#[test]
fn addresses_read_back() {
    for text in ["1.2.3.4:5", "255.255.255.255:65535", "[::]:0", "[fe80::1%7]:51820"] {
        let addr: SocketAddr = text.parse().unwrap();
        assert_eq!(Address::new(addr).0.read(), Some(addr));
    }
}

proptest! {
    #[test]
    fn the_walk_takes_anything(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse_control(&bytes);
    }

    #[test]
    fn the_walk_takes_messages_of_any_content(
        parts in prop::collection::vec(
            (prop::sample::select(vec![0, 17, 41, 1]), prop::sample::select(vec![1, 8, 50, 67, 103, 104]),
             prop::collection::vec(any::<u8>(), 0..24)), 0..6),
    ) {
        let bytes: Vec<u8> = parts.iter().flat_map(|(level, kind, data)| message(*level, *kind, data)).collect();
        let read = parse_control(&bytes);
        prop_assert!(read.segment != Some(0));
    }
}
