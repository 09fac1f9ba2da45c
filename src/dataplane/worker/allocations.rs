//! In steady state a packet costs no allocation, either way.

use super::testing::*;
use crate::dataplane::offload::packets::{Spec, noise};
use crate::metrics::WorkerCounters;
use crate::noise::agreement::Policy;
use crate::sys::testing::allocations;
use crate::types::Suite;
use crate::wire::frame::{self, Hello};

/// Packets each way.
const PACKETS: usize = 10_000;
/// Packets of one read or receive.
const RUN: usize = 20;

#[test]
fn a_packet_allocates_nothing() {
    a_packet_in(Suite::ChaCha20Poly1305);
}

#[test]
fn a_packet_allocates_nothing_in_aes() {
    a_packet_in(Suite::Aes256Gcm);
}

fn a_packet_in(suite: Suite) {
    let policy = Policy { hello: false, aes: true };
    let mut bench = Bench::with(&Options { policy, ..Options::default() });
    let mut remotes = [2, 3].map(|host| bench.peer(host));
    for remote in &mut remotes {
        // Both declare it, and the worker's PING comes back.
        if suite == Suite::Aes256Gcm {
            for (suite, frame) in
                [(Suite::ChaCha20Poly1305, Hello { aes: true }.write(true)), (suite, frame::pong(1, &[1], 0))]
            {
                let message = remote.keys.seal_next_in(suite, &frame);
                bench.deliver(message, remote.endpoint());
            }
        }
        drain(&bench.wire);
    }
    bench.worker.core.counters = WorkerCounters::default();
    let size = MTU - 40;
    let reads = remotes.each_ref().map(|remote| {
        Spec { hosts: (1, remote.host), payload: noise(1, RUN * size), ..Spec::default() }.read(size as u16)
    });
    let packet = |host: u8, n: usize| {
        let seq = (n * 1000) as u32;
        Spec { hosts: (host, 1), seq, id: n as u16, payload: noise(2, 1000), ..Spec::default() }.packet()
    };
    let mut buffer = vec![0; 70_000];
    let mut steady = 0;
    let mut turns = 0;
    for turn in 0..PACKETS / RUN + 10 {
        let remote = &mut remotes[turn % 2];
        let run: Vec<Vec<u8>> =
            (0..RUN).map(|n| remote.keys.seal_next_in(suite, &packet(remote.host, turn * RUN + n))).collect();
        let endpoint = remote.endpoint();
        bench.receive(&run, endpoint);
        bench.read(&reads[turn % 2]);
        let before = allocations();
        bench.turn();
        // The first turns grow what is kept for later ones.
        if turn >= 10 {
            steady += allocations() - before;
            turns += 1;
        }
        for far in [&bench.tun, &bench.wire] {
            use std::io::Read as _;
            let mut count = 0;
            while (&mut &*far).read(&mut buffer).is_ok() {
                count += 1;
            }
            assert_eq!(count, 1, "one send, one write");
        }
    }
    assert_eq!(turns * RUN, PACKETS);
    assert_eq!(bench.counters().tx_packets as usize, PACKETS + 10 * RUN);
    assert_eq!(bench.counters().tun_written_segments as usize, PACKETS + 10 * RUN);
    let aes = if suite == Suite::Aes256Gcm { PACKETS + 10 * RUN } else { 0 };
    assert_eq!((bench.counters().aes_in as usize, bench.counters().aes_out as usize), (aes, aes));
    bench.assert_drops(&[]);
    assert_eq!(steady, 0);
}

#[test]
fn allocations_are_seen() {
    let before = allocations();
    drop(std::hint::black_box(vec![0_u8; 10]));
    assert_eq!(allocations() - before, 1);
    std::thread::spawn(|| drop(std::hint::black_box(vec![0_u8; 10]))).join().unwrap();
}
