//! The hash, the model and the kernel against each other.

use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dataplane::tun::{TunOffloads, open_device};
use crate::sys::testing::{eventually, in_netns, ip};

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

#[test]
fn sequences_spread_evenly() {
    for workers in 1..=16_u16 {
        for stride in [1_u32, 2, 3, 4, 8, 16, 64, 256, 65_536] {
            let count = 256 * u32::from(workers);
            let mut hits = vec![0_u32; workers.into()];
            for n in 0..count {
                let addr = Ipv4Addr::from_bits(0x6440_0000_u32.wrapping_add(n.wrapping_mul(stride)));
                hits[usize::from(queue_of(addr.into(), workers))] += 1;
            }
            let worst = hits.iter().map(|h| h.abs_diff(256)).max().unwrap();
            assert!(worst <= 26, "{workers} workers, stride {stride}: {hits:?}");
        }
    }
}

#[test]
fn two_neighbours_have_two_workers_and_a_lease_has_one() {
    let v4 = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0x6440_0001 + n));
    assert_ne!(queue_of(v4(0), 2), queue_of(v4(1), 2));
    for n in 0..500 {
        let v6 = Ipv6Addr::from_bits((0xfd00 << 112) + 0x6440_0001 + u128::from(n));
        assert_eq!(queue_of(v4(n), 5), queue_of(v6.into(), 5));
    }
}

proptest! {
    #[test]
    fn the_hash_names_a_worker(addr: IpAddr, workers in 1_u16..) {
        prop_assert!(queue_of(addr, workers) < workers);
        prop_assert_eq!(queue_of(addr, 1), 0);
    }
}

#[test]
fn the_self_test_passes_for_any_number_of_workers() {
    in_netns(|| {
        for workers in [1, 2, 3, 5, 16, 256, u16::MAX] {
            let mut steering = Steering::new(workers).unwrap();
            steering.self_test().unwrap();
            assert!(steering.entries.is_empty());
        }
        assert!(matches!(Steering::new(0), Err(SteeringError::NoWorker(0))));
    });
}

#[test]
fn the_self_test_finds_a_wrong_program() {
    in_netns(|| {
        let mut steering = Steering::new(4).unwrap();
        steering.workers = 5;
        assert!(matches!(steering.self_test(), Err(SteeringError::Mismatch { .. })));
        let mut steering = Steering::new(4).unwrap();
        // An entry that the model does not know.
        steering.v4.insert(prefix("0.0.0.0/0"), 3).unwrap();
        assert!(matches!(steering.self_test(), Err(SteeringError::Mismatch { .. })));
    });
}

#[test]
fn short_and_strange_packets_go_to_queue_0() {
    in_netns(|| {
        let steering = Steering::new(7).unwrap();
        let mut frame = frame_to("100.64.0.9".parse().unwrap());
        for version in [0_u8, 1, 5, 7, 15] {
            frame[14] = version << 4;
            assert_eq!(steering.program.test_run(&frame).unwrap(), 0);
        }
        // An IPv6 header cut within its destination (a test run refuses one that says so in its frame).
        let mut frame = frame_to("fd00::9".parse().unwrap());
        frame[12..14].fill(0);
        assert_eq!(steering.program.test_run(&frame[..14 + 30]).unwrap(), 0);
    });
}

/// Runs the kernel's program for one address.
fn kernel(steering: &Steering, addr: &str) -> u16 {
    steering.program.test_run(&frame_to(addr.parse().unwrap())).unwrap() as u16
}

#[test]
fn the_map_holds_only_what_the_hash_gets_wrong() {
    in_netns(|| {
        let mut steering = Steering::new(4).unwrap();
        let host = prefix("100.64.0.7/32");
        let right = queue_of(host.addr(), 4);
        let wrong = (right + 1) % 4;
        steering.set(host, WorkerId(right)).unwrap();
        assert!(!steering.v4.remove(host).unwrap(), "the hash says it already");
        // A prefix that covers it is about to say otherwise.
        steering.set(prefix("100.64.0.0/16"), WorkerId(wrong)).unwrap();
        assert_eq!(kernel(&steering, "100.64.0.7"), right);
        assert_eq!(kernel(&steering, "100.64.1.1"), wrong);
        steering.set(prefix("0.0.0.0/0"), WorkerId(2)).unwrap();
        steering.unset(prefix("100.64.0.0/16")).unwrap();
        assert_eq!(kernel(&steering, "100.64.0.7"), right);
        assert_eq!(kernel(&steering, "100.64.1.1"), 2);
        // The owner changes to what the hash does not say, and back.
        steering.set(host, WorkerId(wrong)).unwrap();
        assert_eq!(kernel(&steering, "100.64.0.7"), wrong);
        steering.unset(prefix("0.0.0.0/0")).unwrap();
        steering.set(host, WorkerId(right)).unwrap();
        assert!(!steering.v4.remove(host).unwrap());
        assert!(matches!(steering.set(host, WorkerId(4)), Err(SteeringError::NoWorker(4))));
        steering.unset(host).unwrap();
        steering.unset(host).unwrap();
        assert!(steering.entries.is_empty());
    });
}

/// Few addresses and all lengths, so that prefixes nest.
fn any_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (0_u32..16, 24_u8..=32)
        .prop_map(|(n, len)| Prefix::new(Ipv4Addr::from_bits(0x6440_0000 + n * 17).into(), len));
    let v6 = (0_u128..16, 118_u8..=128)
        .prop_map(|(n, len)| Prefix::new(Ipv6Addr::from_bits((0xfd00 << 112) + n * 17).into(), len));
    prop_oneof![v4, v6].prop_filter_map("a length of its family", |p| p)
}

#[test]
fn random_changes_keep_kernel_and_model_together() {
    in_netns(|| {
        let mut runner =
            proptest::test_runner::TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
        let changes = prop::collection::vec((any_prefix(), prop::option::weighted(0.7, 0_u16..3)), 1..40);
        runner
            .run(&changes, |changes| {
                let mut steering = Steering::new(3).unwrap();
                let mut model: Vec<(Prefix, u16)> = Vec::new();
                for (prefix, owner) in changes {
                    model.retain(|(p, _)| *p != prefix);
                    match owner {
                        Some(owner) => {
                            steering.set(prefix, WorkerId(owner)).unwrap();
                            model.push((prefix, owner));
                        }
                        None => steering.unset(prefix).unwrap(),
                    }
                }
                for n in 0..256_u32 {
                    for addr in [
                        IpAddr::from(Ipv4Addr::from_bits(0x6440_0000 + n)),
                        Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(n)).into(),
                    ] {
                        let naive = model
                            .iter()
                            .filter(|(p, _)| p.contains(addr))
                            .max_by_key(|(p, _)| p.len())
                            .map_or_else(|| queue_of(addr, 3), |(_, owner)| *owner);
                        prop_assert_eq!(steering.expected(addr), naive);
                        let found = steering.program.test_run(&frame_to(addr)).unwrap();
                        prop_assert_eq!(found, u32::from(naive), "{}", addr);
                    }
                }
                Ok(())
            })
            .unwrap();
    });
}

/// Reads every packet that waits in the queues: queue and destination.
fn arrivals(queues: &[OwnedFd], header: usize) -> Vec<(u16, IpAddr)> {
    let mut all = Vec::new();
    let mut packet = [0; 2048];
    for (queue, fd) in (0..).zip(queues) {
        let mut file = File::from(fd.try_clone().unwrap());
        while let Ok(len) = file.read(&mut packet) {
            let ip = &packet[header..len];
            all.push((
                queue,
                match ip[0] >> 4 {
                    4 => IpAddr::from(<[u8; 4]>::try_from(&ip[16..20]).unwrap()),
                    _ => IpAddr::from(<[u8; 16]>::try_from(&ip[24..40]).unwrap()),
                },
            ));
        }
    }
    all
}

#[test]
fn live_packets_land_on_the_queue_that_is_named() {
    in_netns(|| {
        let device = open_device("rw-steer", 4, TunOffloads::ALL).unwrap();
        let mut steering = Steering::new(4).unwrap();
        steering.self_test().unwrap();
        steering.attach(&device.queues[0]).unwrap();
        ip("addr add 100.64.0.1/10 dev rw-steer");
        ip("addr add fd00::1/64 dev rw-steer nodad");
        ip("link set rw-steer up");
        let v4 = UdpSocket::bind("100.64.0.1:0").unwrap();
        let v6 = UdpSocket::bind("[fd00::1]:0").unwrap();
        for round in 0..3 {
            match round {
                1 => {
                    steering.set(prefix("100.65.0.0/16"), WorkerId(3)).unwrap();
                    steering.set(prefix("fd00::6441:0/112"), WorkerId(1)).unwrap();
                }
                2 => {
                    steering.set(prefix("0.0.0.0/0"), WorkerId(2)).unwrap();
                    steering.set(prefix("::/0"), WorkerId(2)).unwrap();
                }
                _ => {}
            }
            for n in 0..100_u32 {
                let low = 0x6440_0002 + n * 1021;
                v4.send_to(b"x", (Ipv4Addr::from_bits(low), 9)).unwrap();
                v6.send_to(b"x", (Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(low)), 9)).unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
            let got = arrivals(&device.queues, 10);
            // The kernel's own packets (router solicitations, reports) come besides, and are steered as well.
            assert!(got.len() >= 200, "{}", got.len());
            for (queue, addr) in &got {
                assert_eq!(*queue, steering.expected(*addr), "{addr} in round {round}");
            }
            if round == 0 {
                assert!((0..4).all(|q| got.iter().any(|(queue, _)| *queue == q)), "all queues in use");
            }
        }
    });
}

#[test]
fn closing_one_queue_moves_the_last_into_its_place() {
    in_netns(|| {
        let mut device = open_device("rw-close", 3, TunOffloads::NONE).unwrap();
        let mut steering = Steering::new(3).unwrap();
        steering.set(prefix("0.0.0.0/0"), WorkerId(0)).unwrap();
        steering.attach(&device.queues[0]).unwrap();
        ip("addr add 100.64.0.1/10 dev rw-close");
        ip("link set rw-close up");
        drop(device.queues.remove(0));
        let socket = UdpSocket::bind("100.64.0.1:0").unwrap();
        let wanted: IpAddr = "100.64.0.2".parse().unwrap();
        let queue = eventually(|| {
            socket.send_to(b"x", "100.64.0.2:9").unwrap();
            std::thread::sleep(Duration::from_millis(10));
            let got = arrivals(&device.queues, 10);
            got.iter().find(|(_, addr)| *addr == wanted).map(|(queue, _)| *queue)
        });
        // Number 2 of the device is number 1 of those left.
        assert_eq!(queue, 1, "so queues are closed together");
        device.queues.clear();
        eventually(|| tun::link_by_name("rw-close").err());
    });
}

#[test]
fn the_map_has_room_for_what_is_promised() {
    in_netns(|| {
        let mut steering = Steering::new(3).unwrap();
        for n in 0..MAX_PREFIXES {
            let subnet = Prefix::new(Ipv4Addr::from_bits(n << 8).into(), 24).unwrap();
            steering.set(subnet, WorkerId((n % 3) as u16)).unwrap();
        }
        assert_eq!(kernel(&steering, "0.1.44.200"), 300 % 3);
        let beyond = steering.set(prefix("240.0.0.0/24"), WorkerId(0)).unwrap_err();
        assert!(
            matches!(&beyond, SteeringError::Map(e) if e.raw_os_error() == Some(libc::ENOSPC)),
            "{beyond}"
        );
        assert!(!steering.entries.contains_key(&prefix("240.0.0.0/24")));
    });
}
