use super::*;
use crate::dataplane::offload::packets::{Spec, noise};
use crate::dataplane::worker::testing::{Bench, MTU};

impl Outbound {
    /// Fills every free send buffer with this byte.
    pub(crate) fn poison(&mut self, byte: u8) {
        let mut slots: Vec<Slot> = std::iter::from_fn(|| self.arena.take()).collect();
        assert!(slots.len() > 4);
        slots.iter_mut().for_each(|slot| slot.fill(byte));
    }
}

#[test]
fn what_a_failed_send_becomes() {
    let remote = SocketAddr::from(([127, 0, 0, 1], 1));
    let source = crate::types::Source { addr: [127, 0, 0, 2].into(), ifindex: 0 };
    let run = |outbound: &Outbound, source| Sealed {
        slot: outbound.arena.take().unwrap(),
        start: 0,
        len: 2500,
        segment: 1000,
        plain: false,
        endpoint: Endpoint { remote, source },
        tos: 0,
        peer: PeerId { slot: 9, generation: 9 },
    };
    // errno, segmented, with a source → plain, source kept, endpoint noted, switched off, datagrams dropped
    for (errno, segmented, with_source, plain, keeps, noted, off, dropped) in [
        (libc::EIO, true, false, true, false, false, true, 0),
        (libc::EIO, false, false, false, false, false, false, 3),
        (libc::EMSGSIZE, true, false, true, false, true, false, 0),
        (libc::EINVAL, true, false, true, false, true, false, 0),
        (libc::EINVAL, false, false, false, false, false, false, 3),
        (libc::EINVAL, true, true, false, false, false, false, 0),
        (libc::ENETUNREACH, true, true, false, false, false, false, 0),
        (libc::EADDRNOTAVAIL, true, true, false, false, false, false, 0),
        (libc::ENETUNREACH, true, false, false, false, false, false, 3),
        (libc::EPERM, true, true, false, true, false, false, 3),
    ] {
        let mut bench = Bench::wire();
        let (core, outbound) = bench.worker.sending_half();
        let mut sealed = run(outbound, with_source.then_some(source));
        let error = io::Error::from_raw_os_error(errno);
        outbound.recover(core, &mut sealed, 2500, segmented, &error);
        let name = format!("{error}, segmented {segmented}, source {with_source}");
        assert_eq!(sealed.plain, plain, "{name}");
        assert_eq!(sealed.endpoint.source.is_some(), keeps, "{name}");
        assert_eq!(outbound.is_plain(remote, core.now), noted, "{name}");
        assert_eq!(core.on.reason(Switch::UdpSend) == Some(Reason::SendRefused), off, "{name}");
        assert_eq!(core.counters.drops.of(Drop::SendFailed), dropped, "{name}");
        assert_eq!(sealed.start == sealed.len, dropped > 0, "{name}");
    }
}

#[test]
fn an_endpoint_is_plain_for_ten_minutes_and_the_oldest_gives_way() {
    let mut bench = Bench::wire();
    let (core, outbound) = bench.worker.sending_half();
    let now = core.now;
    let endpoint = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    outbound.note_plain(endpoint(1), now);
    outbound.note_plain(endpoint(1), now);
    assert_eq!(outbound.plain.len(), 1);
    assert!(outbound.is_plain(endpoint(1), now + (PLAIN_FOR - Duration::from_secs(1))));
    assert!(!outbound.is_plain(endpoint(2), now));
    assert!(!outbound.is_plain(endpoint(1), now + PLAIN_FOR));
    (0..=PLAIN_ENDPOINTS as u16).for_each(|port| outbound.note_plain(endpoint(port), now));
    assert!(!outbound.is_plain(endpoint(0), now) && outbound.is_plain(endpoint(PLAIN_ENDPOINTS as u16), now));
}

#[test]
fn no_byte_of_what_a_buffer_held_before_is_sent() {
    let mut bench = Bench::udp();
    let remotes = [2, 3, 4].map(|host| bench.peer(host));
    let mut counters = [1; 3];
    let mut seed = 1;
    for round in 0..60 {
        bench.worker.sending_half().1.poison(0xaa);
        let mut expected: [Vec<Vec<u8>>; 3] = Default::default();
        for _ in 0..7 {
            seed += 1;
            let dice = noise(seed * 977, 4);
            let who = usize::from(dice[0] % 3);
            let host = remotes[who].host;
            // No byte of a payload is the poison.
            let text = |len: usize| noise(seed, len).iter().map(|byte| byte & 0x55).collect::<Vec<u8>>();
            let spec =
                Spec { hosts: (1, host), v6: dice[1] % 2 == 1, udp: dice[1] % 4 > 1, ..Spec::default() };
            let size = MTU - spec.headers();
            let len = 1 + (usize::from(dice[2]) * 256 + usize::from(dice[3])) % size;
            if round % 2 == 0 {
                let spec = Spec { payload: text(len), ..spec };
                bench.read(&spec.read(0));
                expected[who].push(spec.packet());
            } else {
                // Segments of an odd size, the last shorter still.
                let size = len.max(40) | 1;
                let spec = Spec { payload: text((size * 5 / 2).min(60_000)), ..spec };
                bench.read(&spec.read(size as u16));
                for (k, part) in spec.payload.chunks(size).enumerate() {
                    let (seq, id) =
                        (spec.seq.wrapping_add((k * size) as u32), spec.id.wrapping_add(k as u16));
                    expected[who].push(Spec { seq, id, payload: part.to_vec(), ..spec.clone() }.packet());
                }
            }
        }
        bench.turn();
        for ((remote, packets), counter) in remotes.iter().zip(expected).zip(&mut counters) {
            for (datagram, packet) in remote.datagrams(packets.len()).iter().zip(&packets) {
                let (found, mut text) = remote.keys.open(datagram);
                assert_eq!(found, *counter);
                *counter += 1;
                assert_eq!(text.len(), packet.len().next_multiple_of(16).min(MTU));
                let padding = text.split_off(packet.len());
                assert!(text == *packet && padding.iter().all(|byte| *byte == 0));
            }
        }
    }
    bench.assert_drops(&[]);
}
