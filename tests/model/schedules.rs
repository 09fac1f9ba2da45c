//! Random schedules on a bad network: nothing breaks while it is bad, and all is well soon after.

use proptest::prelude::*;
use ringway::types::Secret;
use std::time::Duration;

use super::world::{ATTACKER, Network, PERFECT, World, addr};

#[derive(Clone, Debug)]
enum Step {
    /// A client and the gateway, in either direction.
    Send {
        client: usize,
        up: bool,
    },
    /// Both at once.
    Both {
        client: usize,
    },
    Wait(u64),
    /// A client appears at another port.
    Roam(usize),
    /// Both sides set another PSK, one some milliseconds after the other.
    Psk {
        client: usize,
        byte: u8,
        apart: u64,
    },
    /// The gateway removes a client and adds it again.
    Again {
        client: usize,
        apart: u64,
    },
    Keepalive {
        client: usize,
        seconds: u16,
    },
    Restart {
        host: usize,
        restore: bool,
    },
    /// Every host sleeps.
    Suspend(u64),
    /// A wall clock jumps; only forwards, since who goes back is refused until it has caught up.
    Wall {
        host: usize,
        seconds: i64,
    },
    /// Somebody else sends again what a host has taken, whole or with one bit turned.
    Replay {
        host: usize,
        pick: usize,
        bit: Option<usize>,
    },
    Garbage {
        host: usize,
        kind: u8,
        len: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = || 1usize..=2;
    let step = prop_oneof![
        8 => (client(), any::<bool>()).prop_map(|(client, up)| Step::Send { client, up }),
        2 => client().prop_map(|client| Step::Both { client }),
        5 => (1u64..3000).prop_map(Step::Wait),
        3 => (3000u64..70_000).prop_map(Step::Wait),
        1 => client().prop_map(Step::Roam),
        1 => (client(), any::<u8>(), 0u64..100).prop_map(|(client, byte, apart)| Step::Psk { client, byte, apart }),
        1 => (client(), 0u64..100).prop_map(|(client, apart)| Step::Again { client, apart }),
        1 => (client(), 0u16..40).prop_map(|(client, seconds)| Step::Keepalive { client, seconds }),
        1 => (0usize..3, any::<bool>()).prop_map(|(host, restore)| Step::Restart { host, restore }),
        1 => (1u64..700).prop_map(Step::Suspend),
        1 => (0usize..3, 0i64..5000).prop_map(|(host, seconds)| Step::Wall { host, seconds }),
        5 => (0usize..3, any::<usize>(), prop::option::of(any::<usize>()))
            .prop_map(|(host, pick, bit)| Step::Replay { host, pick, bit }),
        2 => (0usize..3, 0u8..6, prop_oneof![Just(148), Just(92), Just(64), 0usize..200])
            .prop_map(|(host, kind, len)| Step::Garbage { host, kind, len }),
    ];
    prop::collection::vec(step, 1..60)
}

fn psk(byte: u8) -> Option<Secret> {
    (byte != 0).then_some(Secret([byte; 32]))
}

struct Run {
    world: World,
    psks: [u8; 3],
}

impl Run {
    fn step(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Send { client, up: true } => drop(world.send(client, 0)),
            Step::Send { client, up: false } => drop(world.send(0, client)),
            Step::Both { client } => {
                world.send(client, 0);
                world.send(0, client);
            }
            Step::Wait(millis) => world.run(Duration::from_millis(millis)),
            Step::Roam(client) => {
                let port = world.hosts[client].addr.port() + 1;
                world.hosts[client].addr.set_port(port);
            }
            Step::Psk { client, byte, apart } => {
                self.psks[client] = byte;
                world.set_psk(0, client, psk(byte));
                world.run(Duration::from_millis(apart));
                world.set_psk(client, 0, psk(byte));
            }
            Step::Again { client, apart } => {
                let old = world.remove_peer(0, client);
                world.run(Duration::from_millis(apart));
                world.add_peer(0, client, old.generation + 1, psk(self.psks[client]));
            }
            Step::Keepalive { client, seconds } => {
                world.touch(client, 0, |session, now| session.set_keepalive(Some(seconds), now));
            }
            Step::Restart { host, restore } => {
                world.restart(host, restore);
                for client in if host == 0 { 1..=2 } else { host..=host } {
                    let (me, other) = if host == 0 { (0, client) } else { (client, 0) };
                    world.set_psk(me, other, psk(self.psks[client]));
                }
            }
            Step::Suspend(seconds) => world.now = world.now + Duration::from_secs(seconds),
            Step::Wall { host, seconds } => world.hosts[host].wall += seconds,
            Step::Replay { host, pick, bit } => self.replay(host, pick, bit),
            Step::Garbage { host, kind, len } => {
                let mut bytes = vec![0xa5; len];
                for (to, from) in bytes.iter_mut().zip([kind, 0, 0, 0]) {
                    *to = from;
                }
                let to = world.hosts[host].addr;
                world.inject(addr(ATTACKER), to, bytes);
            }
        }
    }

    fn replay(&mut self, host: usize, pick: usize, bit: Option<usize>) {
        let to = self.world.hosts[host].addr;
        let recorded = &self.world.hosts[host].recorded;
        let Some(mut bytes) = recorded.get(pick % recorded.len().max(1)).cloned() else { return };
        if let Some(bit) = bit {
            // The last 16 bytes of a handshake message are mac2, which nobody looks at without load.
            let bit = bit % ((bytes.len() - 16) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        self.world.inject(addr(ATTACKER), to, bytes);
    }

    /// The network heals. Everybody talks soon, then falls silent, then forgets keys and indices.
    fn heal_and_fall_silent(&mut self) {
        let world = &mut self.world;
        world.network = PERFECT;
        for client in 1..=2 {
            world.touch(client, 0, |session, now| session.set_keepalive(None, now));
        }
        let mut last = Vec::new();
        for _ in 0..60 {
            last = (1..=2).map(|client| [world.send(client, 0), world.send(0, client)]).collect();
            world.run_secs(1);
        }
        world.run_secs(1);
        for (client, [up, down]) in (1..).zip(last) {
            assert!(world.hosts[0].delivered.contains(&up), "client {client} is not heard");
            assert!(world.hosts[client].delivered.contains(&down), "client {client} does not hear");
        }
        world.run_secs(60);
        let before = world.wire.len();
        world.run_secs(1000);
        assert_eq!(world.wire.len(), before, "idle hosts have nothing to say");
        for host in 0..3 {
            let sessions = world.hosts[host].peers.values();
            assert!(sessions.into_iter().all(|peer| peer.session.deadline().is_none()), "a timer runs on");
            assert_eq!(world.indices_in_use(host), 0, "an index leaks");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(384) })]
    #[test]
    fn nothing_breaks_and_all_is_well_after(
        seed in any::<u64>(),
        loss in prop_oneof![Just(0u64), 1u64..60, Just(95)],
        duplicates in prop_oneof![Just(0u64), Just(20)],
        delay in prop_oneof![Just(10u64), Just(400), Just(7000)],
        steps in steps(),
    ) {
        let network = Network { loss, duplicates, delay, ..PERFECT };
        let mut run = Run { world: World::new(seed, 2, network), psks: [0; 3] };
        for step in steps {
            run.step(step);
        }
        run.heal_and_fall_silent();
    }
}
