//! One thing at a time, with exact expectations.

use std::net::SocketAddr;
use std::time::Duration;

use ringway::noise::handshaker::HandshakeError;
use ringway::types::{Secret, Time};
use ringway::wire::wireguard::Kind;

use super::world::{ATTACKER, PERFECT, World, addr};

/// A world in which client 1 and the gateway have a session.
fn connected(seed: u64) -> World {
    let mut world = World::new(seed, 1, PERFECT);
    exchange(&mut world);
    world
}

/// Both directions work.
fn exchange(world: &mut World) {
    let up = world.send(1, 0);
    world.run_secs(1);
    let down = world.send(0, 1);
    world.run_secs(1);
    assert!(world.hosts[0].delivered.contains(&up) && world.hosts[1].delivered.contains(&down));
}

/// Datagrams of a kind that went to `to`.
fn sent(world: &World, kind: Kind, to: SocketAddr) -> Vec<Vec<u8>> {
    let those = world.wire.iter().filter(|(_, at, bytes)| *at == to && Kind::of(bytes) == Some(kind));
    those.map(|(_, _, bytes)| bytes.clone()).collect()
}

#[test]
fn keys_are_renewed_at_120_seconds_by_the_initiator_alone() {
    let mut world = World::new(1, 1, PERFECT);
    for _ in 0..1200 {
        world.send(1, 0);
        world.send(0, 1);
        world.run_secs(1);
    }
    world.run_secs(1);
    for host in [0, 1] {
        let times = &world.hosts[host].connected;
        assert_eq!(times.len(), 10, "0 s, 120 s and so on");
        for pair in times.windows(2) {
            let age = pair[1].since(pair[0]);
            assert!((Duration::from_secs(119)..Duration::from_secs(122)).contains(&age), "{age:?}");
        }
        assert_eq!(world.hosts[host].delivered.len(), 1200, "renewal loses nothing");
    }
    assert_eq!((world.hosts[0].initiations_sent, world.hosts[1].initiations_sent), (0, 10));
}

#[test]
fn both_sides_may_begin_at_once() {
    for seed in 0..40 {
        let mut world = World::new(seed, 1, PERFECT);
        let client = world.hosts[1].addr;
        world.touch(0, 1, |session, now| session.set_endpoint(Some(client), now));
        let (up, down) = (world.send(1, 0), world.send(0, 1));
        world.run_secs(1);
        assert!(world.hosts[0].delivered.contains(&up) && world.hosts[1].delivered.contains(&down), "{seed}");
        let made = world.hosts[0].initiations_sent + world.hosts[1].initiations_sent;
        assert!(made <= 2, "{made}");
        for _ in 0..600 {
            world.send(1, 0);
            world.send(0, 1);
            world.run_secs(1);
        }
        let made = world.hosts[0].initiations_sent + world.hosts[1].initiations_sent;
        assert!(made <= 2 + 2 * 5, "they do not answer each other for ever: {made}");
        assert_eq!(world.hosts[0].delivered.len(), 601);
        assert_eq!(world.hosts[1].delivered.len(), 601);
    }
}

/// The greatest timestamp refuses it while the gateway runs, and after a restart if it was restored.
#[test]
fn a_recorded_initiation_is_refused_as_old() {
    for restart in [false, true] {
        let mut world = connected(2);
        let gateway = world.hosts[0].addr;
        let recorded = sent(&world, Kind::Initiation, gateway).remove(0);
        if restart {
            world.restart(0, true);
        }
        let before = world.standing(0, 1);
        world.inject(addr(ATTACKER), gateway, recorded);
        world.run_secs(1);
        assert_eq!(world.hosts[0].refused, [HandshakeError::OldTimestamp]);
        assert_eq!(world.standing(0, 1), before);
        assert_eq!(sent(&world, Kind::Response, addr(ATTACKER)).len(), 0);
        // A restarted gateway does not know where the client is: that waits 15 s for an answer and begins again.
        let from = world.now;
        world.send(1, 0);
        world.run_secs(if restart { 30 } else { 1 });
        exchange(&mut world);
        let again = world.hosts[0].connected.iter().any(|at| *at > from);
        assert_eq!(again, restart, "a live session goes on");
    }
}

/// Without the greatest timestamps the recording is answered, but it is worth nothing: no event, nothing accounted,
/// no endpoint.
#[test]
fn a_recorded_initiation_after_a_restart_that_forgot_is_worth_nothing() {
    let mut world = connected(3);
    let gateway = world.hosts[0].addr;
    let recorded = sent(&world, Kind::Initiation, gateway).remove(0);
    world.restart(0, false);
    let before = world.standing(0, 1);
    assert_eq!(before.0, None);
    world.inject(addr(ATTACKER), gateway, recorded);
    world.run_secs(1);
    assert_eq!(sent(&world, Kind::Response, addr(ATTACKER)).len(), 1, "it could be genuine");
    assert_eq!(world.standing(0, 1), before);
    world.send(0, 1);
    world.run_secs(100);
    assert_eq!(world.standing(0, 1), before, "nor does it become so by waiting, or by our own wish to send");
    assert_eq!(sent(&world, Kind::Transport, addr(ATTACKER)).len(), 0);
}

/// The gateway began this session itself, so it has no timestamp of the client: the recording is answered while a
/// session is live.
#[test]
fn a_recorded_initiation_moves_no_live_session() {
    let mut world = connected(4);
    let (gateway, client) = (world.hosts[0].addr, world.hosts[1].addr);
    let recorded = sent(&world, Kind::Initiation, gateway).remove(0);
    world.restart(0, false);
    world.touch(0, 1, |session, now| session.set_endpoint(Some(client), now));
    world.send(0, 1);
    world.run_secs(1);
    let before = world.standing(0, 1);
    assert_eq!((before.0, before.2), (Some(client), 1));
    world.inject(addr(ATTACKER), gateway, recorded);
    world.run_secs(1);
    assert_eq!(sent(&world, Kind::Response, addr(ATTACKER)).len(), 1);
    assert_eq!(world.standing(0, 1), before);
    exchange(&mut world);
    assert_eq!((world.endpoint(0, 1), world.hosts[0].connected.len()), (Some(client), 1));
}

#[test]
fn only_an_authentic_new_message_moves_an_endpoint() {
    let mut world = connected(5);
    let (gateway, client) = (world.hosts[0].addr, world.hosts[1].addr);
    for me in [0, 1] {
        let (to, from) = if me == 0 { (gateway, client) } else { (client, gateway) };
        let before = world.standing(me, 1 - me);
        assert_eq!(before.0, Some(from));
        let taken = world.hosts[me].recorded.clone();
        assert!(taken.len() > 1, "a handshake message and data");
        for bytes in taken {
            world.inject(addr(ATTACKER), to, bytes.clone());
            for at in 0..bytes.len() - 16 {
                let mut forged = bytes.clone();
                forged[at] ^= 0x20;
                world.inject(addr(ATTACKER), to, forged);
            }
        }
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1000), (9, 50)] {
            let mut garbage = vec![0xee; len];
            garbage[..4].copy_from_slice(&[kind, 0, 0, 0]);
            world.inject(addr(ATTACKER), to, garbage);
        }
        world.run(Duration::from_millis(500));
        assert_eq!(world.standing(me, 1 - me), before);
    }
    // A message that is authentic and new does, from wherever it comes.
    world.hosts[1].addr = addr("198.18.7.7:7777");
    exchange(&mut world);
    assert_eq!(world.endpoint(0, 1), Some(addr("198.18.7.7:7777")));
    assert_eq!(world.hosts[0].connected.len(), 1, "roaming is no new session");
}

#[test]
fn a_psk_applies_at_once_on_either_side() {
    for first in [0, 1] {
        let mut world = connected(6);
        let psk = Some(Secret([0x42; 32]));
        world.set_psk(first, 1 - first, psk.clone());
        let counts = |world: &World| [0, 1].map(|host| world.hosts[host].delivered.len());
        let before = counts(&world);
        for _ in 0..40 {
            world.send(1, 0);
            world.send(0, 1);
            world.run_secs(1);
        }
        assert_eq!(counts(&world), before, "nothing goes between different PSKs, old session or new");
        world.set_psk(1 - first, first, psk);
        world.send(1, 0);
        world.run_secs(6);
        exchange(&mut world);
    }
}

/// A handshake with the old PSK is answered while the PSK changes: the installation that is under way does not
/// outlive the change.
#[test]
fn a_psk_change_ends_what_is_under_way() {
    for micros in (0..60_000).step_by(500) {
        let mut world = World::new(micros, 1, PERFECT);
        world.send(1, 0);
        world.run(Duration::from_micros(micros));
        world.set_psk(0, 1, Some(Secret([0x42; 32])));
        let before = world.hosts[0].delivered.len();
        for _ in 0..10 {
            world.send(1, 0);
            world.run_secs(1);
        }
        assert_eq!(world.hosts[0].delivered.len(), before, "{micros} µs");
    }
}

#[test]
fn a_new_private_key_ends_sessions_and_the_peer_must_learn_it() {
    let mut world = connected(7);
    world.set_private_key(1, Secret([0x77; 32]));
    let before = world.hosts[0].delivered.len();
    for _ in 0..20 {
        world.send(1, 0);
        world.run_secs(1);
    }
    assert_eq!(world.hosts[0].delivered.len(), before);
    assert!(world.hosts[0].refused.contains(&HandshakeError::UnknownPeer));
    let old = world.remove_peer(0, 1);
    world.add_peer(0, 1, old.generation + 1, None);
    world.run_secs(6);
    exchange(&mut world);
}

/// Whenever in a handshake it happens: what was meant for the earlier peer never reaches its successor.
#[test]
fn a_removed_peers_messages_do_not_reach_its_successor() {
    for micros in (0..60_000).step_by(500) {
        let mut world = World::new(micros, 1, PERFECT);
        world.send(1, 0);
        world.run(Duration::from_micros(micros));
        let old = world.remove_peer(0, 1);
        world.add_peer(0, 1, old.generation + 1, None);
        world.run(Duration::from_millis(100));
        // The initiation may still arrive after the change; a session of before it may not go on.
        assert!(world.session(0, 1).stats().handshakes <= 1);
        world.run_secs(20);
        exchange(&mut world);
        world.run_secs(1000);
        assert_eq!([world.indices_in_use(0), world.indices_in_use(1)], [0, 0], "{micros} µs");
    }
}

#[test]
fn after_a_suspend_old_keys_are_not_used() {
    for seconds in [50, 100, 150, 600, 100_000] {
        let mut world = connected(8);
        // Idle, so that no timer but that of erasing runs.
        world.run_secs(30);
        let before = world.hosts[1].initiations_sent;
        world.now = world.now + Duration::from_secs(seconds);
        let resumed = world.now;
        exchange(&mut world);
        let renewed = world.hosts[1].initiations_sent - before;
        assert_eq!(renewed, u64::from(seconds >= 100), "{seconds} s");
        let last = world.hosts[0].connected.last().copied();
        assert_eq!(last > Some(resumed), seconds >= 100, "{seconds} s");
    }
}

/// Our own clock (CLOCK_BOOTTIME) never goes back, but a virtual machine's may: no panic, and traffic goes on.
#[test]
fn a_clock_that_goes_back_does_no_harm() {
    let mut world = connected(9);
    world.now = Time::from_nanos(1_000_000_001);
    world.run_secs(1);
    for host in [0, 1] {
        world.hosts[host].wall += 2000;
    }
    world.run_secs(30);
    exchange(&mut world);
}

/// A wall clock that went back locks its host out until it has caught up (that is what the timestamp is for), but
/// the other side may begin.
#[test]
fn a_wall_clock_that_goes_back_is_refused_until_it_has_caught_up() {
    let mut world = connected(10);
    world.hosts[1].wall -= 400;
    world.run_secs(200);
    let up = world.send(1, 0);
    world.run_secs(20);
    assert!(!world.hosts[0].delivered.contains(&up));
    assert!(world.hosts[0].refused.contains(&HandshakeError::OldTimestamp));
    world.send(0, 1);
    world.run_secs(6);
    assert!(world.hosts[0].delivered.contains(&up), "in the session that the other side began");
}
