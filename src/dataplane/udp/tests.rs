//! Live tests of the groups, in a network namespace; every count is exact.

use std::net::{IpAddr, UdpSocket};

use super::*;
use crate::sys::netns;
use crate::sys::testing::{eventually, in_netns, ip};

const KEY: IndexKey = IndexKey::new([0x1234_5678, 0x9abc_def0, 0x0fed_cba9]);
const SIZES: [u16; 4] = [1, 2, 3, 5];

fn transport(index: u32, len: usize) -> Vec<u8> {
    let mut message = vec![0; len];
    message[0] = 4;
    message[4..8].copy_from_slice(&index.to_le_bytes());
    message
}

/// Everything that waits at the sockets: place in the group, and the datagram.
fn drain(group: &[OwnedFd]) -> Vec<(usize, Vec<u8>)> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    for (place, fd) in group.iter().enumerate() {
        while let Ok(got) = socket::recv(fd, &mut buffer) {
            let size = got.segment.map_or(got.len.max(1), usize::from);
            all.extend(buffer[..got.len].chunks(size).map(|datagram| (place, datagram.to_vec())));
            if got.len == 0 {
                all.push((place, Vec::new()));
            }
        }
    }
    all
}

fn families(group: &UdpGroup) -> [(IpAddr, &Vec<OwnedFd>); 2] {
    [(Ipv4Addr::LOCALHOST.into(), &group.v4), (Ipv6Addr::LOCALHOST.into(), &group.v6)]
}

#[test]
fn transport_messages_reach_the_worker_of_their_index() {
    in_netns(|| {
        for workers in SIZES {
            let group = open_group(0, workers, Mark(0), KEY).unwrap();
            assert_ne!(group.port, 0);
            for (addr, sockets) in families(&group) {
                assert_eq!(sockets.len(), usize::from(workers) + 1);
                let mut hit = vec![0; sockets.len()];
                for round in 0..4_u32 {
                    // A socket per round: the kernel's own hash would see only this.
                    let client = UdpSocket::bind((addr, 0)).unwrap();
                    for n in 0..60_u32 {
                        let index = (round * 60 + n).wrapping_mul(0x9E37_79B9) ^ 0xA5A5;
                        let mut message = transport(index, 32 + n as usize);
                        // Either suite's.
                        message[1] = (n % 2) as u8;
                        client.send_to(&message, (addr, group.port)).unwrap();
                    }
                    for (place, datagram) in drain(sockets) {
                        let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
                        assert_eq!(place, KEY.owner(index, workers).index());
                        hit[place] += 1;
                    }
                }
                assert_eq!(hit.iter().sum::<i32>(), 240, "none lost");
                assert_eq!(hit[usize::from(workers)], 0, "none at the handshake socket");
                assert!(hit[..usize::from(workers)].iter().all(|&n| n > 0), "{hit:?}");
            }
        }
    });
}

#[test]
fn handshake_messages_reach_the_last_socket_and_no_other_length_does() {
    in_netns(|| {
        for workers in SIZES {
            let group = open_group(0, workers, Mark(0), KEY).unwrap();
            for (addr, sockets) in families(&group) {
                let client = UdpSocket::bind((addr, 0)).unwrap();
                for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
                    let mut message = vec![0; len];
                    message[0] = kind;
                    client.send_to(&message, (addr, group.port)).unwrap();
                    assert_eq!(drain(sockets), [(usize::from(workers), message)]);
                }
                // What is no message arrives once, somewhere: the kernel's hash names one socket for this client.
                let mut places = Vec::new();
                for (first, len) in [
                    (1, 147),
                    (1, 149),
                    (2, 148),
                    (3, 92),
                    (1, 64),
                    (4, 31),
                    (4, 0),
                    (0, 148),
                    (5, 64),
                    (1, 3),
                ] {
                    let mut message = vec![0; len];
                    message[..len.min(1)].fill(first);
                    client.send_to(&message, (addr, group.port)).unwrap();
                    let got = drain(sockets);
                    assert_eq!(got.len(), 1, "{first} {len}");
                    places.push(got[0].0);
                }
                let mut reserved = transport(7, 64);
                reserved[3] = 1;
                client.send_to(&reserved, (addr, group.port)).unwrap();
                places.extend(drain(sockets).iter().map(|(place, _)| *place));
                assert_eq!(places.len(), 11);
                assert!(places.iter().all(|p| *p == places[0]), "one flow, one socket: {places:?}");
            }
        }
    });
}

#[test]
fn what_is_no_message_is_spread() {
    in_netns(|| {
        let group = open_group(0, 3, Mark(0), KEY).unwrap();
        let mut places = [0; 4];
        for _ in 0..64 {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(b"garbage", ("127.0.0.1", group.port)).unwrap();
            for (place, _) in drain(&group.v4) {
                places[place] += 1;
            }
        }
        assert_eq!(places.iter().sum::<i32>(), 64);
        assert!(places.iter().all(|&n| n > 0), "{places:?}");
    });
}

#[test]
fn a_second_instance_fails_and_a_free_port_is_not_shared() {
    in_netns(|| {
        let group = open_group(51_820, 2, Mark(0), KEY).unwrap();
        let again = open_group(51_820, 2, Mark(0), KEY).unwrap_err();
        assert!(matches!(again, UdpError::InUse { port: 51_820 }), "{again}");
        assert_eq!(again.errno(), libc::EADDRINUSE);
        assert_eq!(drain(&group.v4).len() + drain(&group.v6).len(), 0);
        drop(group);
        drop(eventually(|| open_group(51_820, 3, Mark(0), KEY).ok()));
        // In use in one family only, by a socket that would share.
        let other = make(Domain::IPV6).unwrap();
        socket::set_v6_only(&other).unwrap();
        socket::set_reuse_port(&other).unwrap();
        eventually(|| other.bind(&any(Domain::IPV6, 51_820).into()).ok());
        assert!(matches!(open_group(51_820, 1, Mark(0), KEY), Err(UdpError::InUse { port: 51_820 })));
        drop(other);
        let a = open_group(0, 1, Mark(0), KEY).unwrap();
        let b = open_group(0, 1, Mark(0), KEY).unwrap();
        assert_ne!(a.port, b.port);
    });
}

#[test]
fn port_0_tries_until_both_families_have_it() {
    in_netns(|| {
        // Three ports to choose from, two of them taken in IPv6.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40002").unwrap();
        let blockers: Vec<UdpSocket> =
            ["[::1]:40000", "[::1]:40002"].iter().map(|a| UdpSocket::bind(a).unwrap()).collect();
        for _ in 0..4 {
            match open_group(0, 1, Mark(0), KEY) {
                Ok(group) => assert_eq!(group.port, 40_001),
                // 16 unlucky draws of three.
                Err(error) => assert!(matches!(error, UdpError::NoFreePort), "{error}"),
            }
        }
        drop(blockers);
        // A child that another test forks keeps copies of closed sockets until it executes its program.
        let _taken = ["127.0.0.1:40000", "[::1]:40001", "[::1]:40002"]
            .map(|addr| eventually(|| UdpSocket::bind(addr).ok()));
        assert!(matches!(open_group(0, 1, Mark(0), KEY), Err(UdpError::NoFreePort)));
    });
}

#[test]
fn no_ipv6_is_fine_and_so_is_port_65535() {
    in_netns(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let group = open_group(65_535, 1, Mark(0), KEY).unwrap();
        assert_eq!((group.port, group.v4.len()), (65_535, 2));
    });
}

#[test]
fn impossible_numbers_of_workers_are_refused() {
    for workers in [0, MAX_WORKERS + 1] {
        let error = open_group(0, workers, Mark(0), KEY).unwrap_err();
        assert!(matches!(error, UdpError::Workers(n) if n == workers));
    }
}

#[test]
fn the_largest_group_opens_and_its_program_is_accepted() {
    in_netns(|| {
        let group = open_group(0, MAX_WORKERS, Mark(0), KEY).unwrap();
        assert_eq!(group.v4.len(), 257);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&transport(99, 32), ("127.0.0.1", group.port)).unwrap();
        let got = drain(&group.v4);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].0, KEY.owner(99, 256).index());
    });
}

#[test]
fn every_socket_has_mark_and_options() {
    in_netns(|| {
        let group = open_group(0, 2, Mark(0x51), KEY).unwrap();
        let check = |wanted: u32| {
            for (_, sockets) in families(&group) {
                for fd in sockets {
                    let socket = socket2::SockRef::from(fd);
                    assert_eq!(socket.mark().unwrap(), wanted);
                    assert!(socket.recv_buffer_size().unwrap() >= 2 * SOCKET_BUFFER as usize);
                    assert!(socket.send_buffer_size().unwrap() >= 2 * SOCKET_BUFFER as usize);
                    assert!(socket.nonblocking().unwrap() && socket.reuse_port().unwrap());
                }
            }
        };
        check(0x51);
        set_mark(&group.v4, Mark(7)).unwrap();
        set_mark(&group.v6, Mark(7)).unwrap();
        check(7);
    });
}

#[test]
fn runs_are_coalesced_for_workers_and_for_the_handshake_thread() {
    in_netns(|| {
        let group = open_group(0, 1, Mark(0), KEY).unwrap();
        for (addr, sockets) in families(&group) {
            let client = UdpSocket::bind((addr, 0)).unwrap();
            let mut buffer = vec![0; 65_536];
            let run: Vec<u8> = (0..10).flat_map(|_| transport(3, 100)).chain(transport(3, 40)).collect();
            socket::send(&client, &run, (addr, group.port).into(), None, 0, Some(100)).unwrap();
            let got = socket::recv(&sockets[0], &mut buffer).unwrap();
            assert_eq!((got.len, got.segment), (1040, Some(100)));
            assert_eq!(&buffer[..got.len], run);
            // A run of initiations counts as garbage (its length is that of the run); the socket that the hash names
            // gets it, whole, whichever that is.
            let mut initiation = [0; 148];
            initiation[0] = 1;
            let mut places = [false; 2];
            for _ in 0..40 {
                let client = UdpSocket::bind((addr, 0)).unwrap();
                let run = initiation.repeat(3);
                socket::send(&client, &run, (addr, group.port).into(), None, 0, Some(148)).unwrap();
                let got = sockets.iter().map(|socket| socket::recv(socket, &mut buffer));
                let (place, got) = got.enumerate().find_map(|(place, got)| Some((place, got.ok()?))).unwrap();
                assert_eq!((got.len, got.segment), (444, Some(148)), "{place}");
                places[place] = true;
            }
            assert_eq!(places, [true; 2]);
        }
    });
}

#[test]
fn closing_one_socket_moves_the_last_into_its_place() {
    in_netns(|| {
        let mut group = open_group(0, 3, Mark(0), KEY).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let index = (0..).find(|&i| KEY.owner(i, 3).0 == 1).unwrap();
        drop(group.v4.remove(1));
        let place = eventually(|| {
            client.send_to(&transport(index, 32), ("127.0.0.1", group.port)).unwrap();
            drain(&group.v4).first().map(|(place, _)| *place)
        });
        // The handshake socket, the last, is in place 1 of the kernel's list now; here it is the third that is left.
        assert_eq!(place, 2, "so a group is closed whole");
        group.v4.clear();
        // IPv6 still holds the port; IPv4 is free.
        eventually(|| UdpSocket::bind(("0.0.0.0", group.port)).ok());
        assert!(UdpSocket::bind(("::", group.port)).is_err());
    });
}

#[test]
fn a_forged_path_mtu_does_not_stop_runs() {
    in_netns(|| {
        ip("route add 198.18.7.0/24 dev lo mtu 600");
        let group = open_group(0, 1, Mark(0), KEY).unwrap();
        let run = vec![4; 5000];
        socket::send(&group.v4[0], &run, "198.18.7.1:9".parse().unwrap(), None, 0, Some(1400)).unwrap();
        let plain = UdpSocket::bind("0.0.0.0:0").unwrap();
        let error = socket::send(&plain, &run, "198.18.7.1:9".parse().unwrap(), None, 0, Some(1400));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE), "without the option");
    });
}

#[test]
fn a_port_is_free_as_soon_as_its_group_is_closed() {
    in_netns(|| {
        for _ in 0..20 {
            drop(eventually(|| open_group(51_820, 3, Mark(0), KEY).ok()));
        }
        // Another namespace has ports of its own.
        let _here = eventually(|| open_group(51_820, 1, Mark(0), KEY).ok());
        std::thread::spawn(|| {
            netns::unshare().unwrap();
            assert_eq!(open_group(51_820, 1, Mark(0), KEY).unwrap().port, 51_820);
        })
        .join()
        .unwrap();
    });
}
