//! Two machines that agree on AES-256-GCM, over networks that lose, delay, repeat, change and filter. What holds in
//! every test is asserted by the world: no counter is used twice, by whichever suite; nothing is sealed in a suite that
//! its receiver has not declared in that keypair; nothing is delivered twice.

use std::time::Duration;

use ringway::noise::agreement::Policy;
use ringway::types::Suite;
use ringway::wire::wireguard::TransportHeader;

use super::world::{Network, PERFECT, World};

const SAYS: Policy = Policy { hello: true, aes: true };
const ANSWERS: Policy = Policy { hello: false, aes: true };
const CHACHA: Option<Suite> = Some(Suite::ChaCha20Poly1305);
const AES: Option<Suite> = Some(Suite::Aes256Gcm);

fn pair(seed: u64, network: Network) -> World {
    World::speaking(seed, &[ANSWERS, SAYS], network)
}

fn suites(world: &World) -> [Option<Suite>; 2] {
    [world.session(0, 1).suite(), world.session(1, 0).suite()]
}

/// Both sides send all the time, `each_ms`.
fn stream(world: &mut World, seconds: u64, each_ms: u64) -> usize {
    let packets = seconds * 1000 / each_ms;
    for _ in 0..packets {
        world.send(1, 0);
        world.send(0, 1);
        world.run(Duration::from_millis(each_ms));
    }
    packets as usize
}

/// How many transport messages of each suite went over the wire.
fn on_the_wire(world: &World) -> [usize; 2] {
    let headers = world.wire.iter().filter_map(|(_, _, bytes)| TransportHeader::parse(bytes));
    let (plain, marked): (Vec<_>, Vec<_>) = headers.partition(|header| header.suite.mark() == 0);
    [plain.len(), marked.len()]
}

#[test]
fn the_suite_changes_in_mid_stream_and_with_each_keypair_without_loss() {
    for seed in 0..8 {
        let mut world = pair(seed, PERFECT);
        // The client's first packet makes the session; the gateway knows no address before.
        let first = world.send(1, 0);
        world.run_secs(1);
        assert!(world.hosts[0].delivered.contains(&first));
        let sent = stream(&mut world, 400, 100);
        world.run_secs(1);
        assert_eq!(suites(&world), [AES, AES], "{seed}");
        assert_eq!(world.hosts[0].delivered.len(), sent + 1, "{seed}");
        assert_eq!(world.hosts[1].delivered.len(), sent, "{seed}");
        assert_eq!(world.hosts[0].connected.len(), 4, "renewed three times");
        let [plain, marked] = on_the_wire(&world);
        assert!(plain < 80 && marked > 7900, "a few messages per keypair are plain: {plain} {marked}");
    }
}

#[test]
fn a_restart_of_either_side_begins_anew() {
    for who in [0, 1] {
        let mut world = pair(3, PERFECT);
        stream(&mut world, 5, 50);
        assert_eq!(suites(&world), [AES, AES]);
        world.restart(who, true);
        world.run_secs(1);
        stream(&mut world, 40, 100);
        world.run_secs(1);
        assert_eq!(suites(&world), [AES, AES], "{who}");
        let before: Vec<_> = world.hosts.iter().map(|host| host.delivered.len()).collect();
        let sent = stream(&mut world, 5, 100);
        world.run_secs(1);
        for (host, before) in world.hosts.iter().zip(before) {
            assert_eq!(host.delivered.len(), before + sent, "{who}");
        }
    }
}

#[test]
fn a_standard_peer_sees_no_mark_and_no_frame() {
    for policies in [[ANSWERS, Policy::default()], [ANSWERS, ANSWERS], [SAYS, Policy::default()]] {
        let mut world = World::speaking(5, &policies, PERFECT);
        let sent = stream(&mut world, 300, 1000);
        world.run_secs(1);
        assert_eq!(world.hosts[0].delivered.len(), sent);
        assert_eq!(on_the_wire(&world)[1], 0, "{policies:?}");
        if policies[0] == ANSWERS {
            assert_eq!(world.frames, 0, "{policies:?}");
        }
    }
}

#[test]
fn without_hello_and_behind_a_filter_data_flows_as_it_always_did() {
    for (loses_hello, drops_marked) in [(true, false), (false, true)] {
        let mut world = pair(7, Network { loses_hello, drops_marked, ..PERFECT });
        let first = world.send(1, 0);
        world.run_secs(1);
        assert!(world.hosts[0].delivered.contains(&first));
        let sent = stream(&mut world, 130, 100);
        world.run_secs(10);
        assert_eq!(suites(&world), [CHACHA, CHACHA]);
        assert_eq!(world.hosts[0].delivered.len(), sent + 1, "nothing is lost");
        assert_eq!(world.hosts[1].delivered.len(), sent, "nothing is lost");
        // Two keypairs, three PINGs from each side.
        assert_eq!(on_the_wire(&world)[1], if drops_marked { 12 } else { 0 });
    }
}

#[test]
fn a_bad_network_delays_the_agreement_and_breaks_nothing() {
    for seed in 0..40 {
        let network = Network {
            loss: 30,
            duplicates: 20,
            delay: [20, 400, 3000][seed as usize % 3],
            changed: 10,
            ..PERFECT
        };
        let mut world = pair(seed, network);
        stream(&mut world, 200, 250);
        world.network = PERFECT;
        // Until the next keypair at the latest.
        stream(&mut world, 140, 250);
        assert_eq!(suites(&world), [AES, AES], "{seed}");
        let before: Vec<_> = world.hosts.iter().map(|host| host.delivered.len()).collect();
        let sent = stream(&mut world, 5, 100);
        world.run_secs(1);
        for (host, before) in world.hosts.iter().zip(before) {
            assert!(host.delivered.len() >= before + sent, "{seed}");
        }
    }
}

/// Everything that was ever on the wire comes again, also with another mark: nothing is delivered twice (the world
/// asserts it), no endpoint moves, no suite changes.
#[test]
fn what_is_repeated_or_marked_otherwise_changes_nothing() {
    let mut world = pair(11, PERFECT);
    stream(&mut world, 130, 100);
    assert_eq!(suites(&world), [AES, AES]);
    let attacker = super::world::addr(super::world::ATTACKER);
    let recorded = world.wire.clone();
    let before = [world.standing(0, 1), world.standing(1, 0)];
    let delivered: Vec<_> = world.hosts.iter().map(|host| host.delivered.len()).collect();
    for (_, to, bytes) in recorded.into_iter().filter(|(.., bytes)| bytes[0] == 4) {
        for mark in [bytes[1], 1 - bytes[1], 2] {
            let mut bytes = bytes.clone();
            bytes[1] = mark;
            world.inject(attacker, to, bytes);
        }
    }
    world.run(Duration::from_millis(500));
    assert_eq!(suites(&world), [AES, AES]);
    assert_eq!([world.standing(0, 1), world.standing(1, 0)], before);
    for (host, delivered) in world.hosts.iter().zip(delivered) {
        assert_eq!(host.delivered.len(), delivered);
    }
}
