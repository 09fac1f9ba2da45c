//! What a worker does about sizes: the segment size of SYNs, packets larger than the device's MTU, and switches.

use super::testing::*;
use super::*;
use crate::dataplane::offload::packets::{Spec, assert_intact, noise};
use crate::wire::tcp;

/// A SYN whose sender would take segments of 1460 bytes.
fn syn(v6: bool, hosts: (u8, u8), flags: u8) -> Spec {
    Spec { v6, hosts, flags, options: vec![2, 4, 0x05, 0xb4], payload: Vec::new(), ..Spec::default() }
}

/// The segment size in a packet of [`syn`], whose checksums are right.
fn size(packet: &[u8]) -> u16 {
    let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let packet = &packet[..ip + 24];
    assert_intact(packet);
    u16::from_be_bytes([packet[ip + 22], packet[ip + 23]])
}

#[test]
fn a_syn_is_clamped_both_ways_and_others_are_not() {
    for (v6, fits) in [(false, MTU as u16 - 40), (true, MTU as u16 - 60)] {
        for flags in [tcp::SYN, tcp::SYN | tcp::ACK] {
            let mut bench = Bench::wire();
            let mut remote = bench.peer(2);
            // Out: made here, with a checksum that the kernel left to the device, and forwarded, with a complete one.
            let spec = syn(v6, (1, 2), flags);
            let mut forwarded = vec![0; 10];
            forwarded.extend(spec.packet());
            for read in [spec.read(0), forwarded] {
                bench.read(&read);
                bench.turn();
                assert_eq!(size(&remote.keys.open(&bench.sent(&remote, 1)[0]).1), fits, "{v6} {flags}");
            }
            // In.
            let datagram = remote.keys.seal(&syn(v6, (2, 1), flags).packet());
            bench.deliver(datagram, remote.endpoint());
            assert_eq!(size(&drain(&bench.tun)[0][10..]), fits);
            assert_eq!(bench.counters().mss_clamped, 3);

            bench.worker.core.switches.set(Switch::MssClamp, Some(Reason::Operator));
            bench.read(&spec.read(0));
            bench.turn();
            assert_eq!(size(&remote.keys.open(&bench.sent(&remote, 1)[0]).1), 1460, "switched off");
            let datagram = remote.keys.seal(&syn(v6, (2, 1), flags).packet());
            bench.deliver(datagram, remote.endpoint());
            assert_eq!(size(&drain(&bench.tun)[0][10..]), 1460, "switched off");
        }
    }
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    bench.read(&syn(false, (1, 2), tcp::ACK).read(0));
    bench.turn();
    assert_eq!(size(&remote.keys.open(&bench.sent(&remote, 1)[0]).1), 1460, "no SYN");
    assert_eq!(bench.counters().mss_clamped, 0);
}

/// As if the clock had gone on.
fn later(bench: &mut Bench, seconds: u64) {
    bench.worker.core.now = Time::from_nanos(bench.worker.core.now.as_nanos() + seconds * 1_000_000_000);
}

#[test]
fn a_packet_larger_than_the_device_is_answered_once_it_is_certain() {
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    let large = Spec { hosts: (1, 2), payload: noise(1, MTU), ..Spec::default() };
    bench.read(&large.read(0));
    bench.turn();
    assert_eq!(bench.sent(&remote, 1).len(), 1, "the first one passes");
    later(&mut bench, 4);
    bench.read(&large.read(0));
    // A super-packet whose segments are too large.
    bench.read(&Spec { payload: noise(1, 3 * MTU), ..large.clone() }.read(MTU as u16));
    // May be fragmented.
    bench.read(&Spec { df: false, ..large.clone() }.read(0));
    bench.turn();
    assert_eq!(bench.sent(&remote, 1).len(), 1, "the one that may be fragmented");
    let answers = drain(&bench.tun);
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert_eq!((&answer[..10], answer[10 + 9], &answer[30..32]), (&[0; 10][..], 1, &[3, 4][..]));
        assert_eq!(answer[36..38], (MTU as u16).to_be_bytes());
        assert_eq!(answer[26..30], [100, 64, 0, 1], "to the sender");
    }
    assert_eq!(bench.counters().too_big_sent, 2);
    bench.assert_drops(&[(Drop::TooLarge, 4)]);

    bench.control(ToWorker::SetMtu(MTU as u32 + 40));
    bench.read(&large.read(0));
    bench.turn();
    assert_eq!(bench.sent(&remote, 1).len(), 1, "it fits now");
    bench.control(ToWorker::SetMtu(MTU as u32));
    bench.read(&large.read(0));
    bench.turn();
    assert_eq!(bench.sent(&remote, 1).len(), 1, "the MTU has just changed");
    bench.assert_drops(&[]);
}

#[test]
fn what_one_worker_learns_of_the_device_all_know() {
    let mut benches = Bench::build(2, &Options::default());
    let super_packet =
        |host| Spec { hosts: (1, host), payload: noise(7, 4000), ..Spec::default() }.read(1000);
    let mut second = benches.pop().unwrap();
    let mut first = benches.pop().unwrap();
    let remote = second.peer(2);
    let run = |second: &mut Bench, sends| {
        second.read(&super_packet(2));
        second.turn();
        second.sent(&remote, sends)
    };
    run(&mut second, 1);
    first.worker.core.switch_off(Switch::UdpSend, Reason::SendRefused);
    run(&mut second, 4);
    assert_eq!(second.counters().segment_fallbacks, 0, "it did not have to try");
    second.worker.core.switches.set(Switch::UdpSend, None);
    run(&mut second, 1);
    first.turn();
    assert!(first.worker.core.on.is_on(Switch::UdpSend));
}

#[test]
fn super_packets_to_the_device_can_be_switched_off() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let mut writes = |bench: &mut Bench| {
        let packet = |n: u32| Spec { hosts: (2, 1), seq: n * 100, id: n as u16, ..Spec::default() }.packet();
        let datagrams: Vec<_> = (0..4).map(|n| remote.keys.seal(&packet(n))).collect();
        bench.receive(&datagrams, remote.endpoint());
        bench.turn();
        drain(&bench.tun).len()
    };
    assert_eq!(writes(&mut bench), 1);
    bench.worker.core.switches.set(Switch::TunWrite, Some(Reason::Operator));
    assert_eq!(writes(&mut bench), 4);
    bench.worker.core.switches.set(Switch::TunWrite, None);
    assert_eq!(writes(&mut bench), 1);
}
