//! What a handshake costs each side, mac checks and index tables included: the handshake thread's work but for its
//! queues. The initiator's is two steps, whose costs add up.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot run shall say where")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringway::crypto::random::SystemRng;
use ringway::crypto::x25519::PrivateKey;
use ringway::noise::ToOwner;
use ringway::noise::handshaker::Handshaker;
use ringway::noise::index::IndexKey;
use ringway::noise::timestamp::Tai64n;
use ringway::types::{Endpoint, PeerId, Secret, Time, WorkerId};
use ringway::wire::wireguard::{INITIATION_LEN, RESPONSE_LEN};

const PEER: PeerId = PeerId { slot: 0, generation: 1 };

/// Two machines that know each other, and a clock that never stands.
struct Pair {
    initiator: Handshaker,
    responder: Handshaker,
    endpoint: Endpoint,
    rng: SystemRng,
    rounds: u64,
}

impl Pair {
    fn new() -> Self {
        let (ours, theirs) = (Secret([1; 32]), Secret([2; 32]));
        let machine = |ours: &Secret, theirs: &Secret| {
            let mut machine = Handshaker::new(1, IndexKey::new([1, 2, 3]));
            machine.set_private_key(Some(ours.clone()));
            machine.add_peer(PEER, WorkerId(0), *PrivateKey::new(theirs).public(), None).unwrap();
            machine
        };
        let endpoint = Endpoint::new(SocketAddr::from((Ipv4Addr::new(198, 18, 0, 1), 51820)));
        let rng = SystemRng::new().unwrap();
        Self {
            initiator: machine(&ours, &theirs),
            responder: machine(&theirs, &ours),
            endpoint,
            rng,
            rounds: 0,
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.rounds * 1_000_000_000)
    }

    fn begin(&mut self) -> [u8; INITIATION_LEN] {
        self.rounds += 1;
        let stamp = Tai64n::from_unix(Duration::from_secs(1_790_000_000 + self.rounds));
        self.initiator.begin(PEER, stamp, self.now(), &mut self.rng).unwrap()
    }

    fn answer(&mut self, initiation: &[u8; INITIATION_LEN]) -> [u8; RESPONSE_LEN] {
        assert!(self.responder.check_mac1(initiation));
        let now = self.now();
        let answered = self.responder.consume_initiation(initiation, self.endpoint, now, &mut self.rng);
        let (_, ToOwner::Install { keypair, response, .. }) = answered.unwrap() else { unreachable!() };
        self.responder.release(keypair.local_index);
        response.unwrap()
    }

    fn finish(&mut self, response: &[u8; RESPONSE_LEN]) {
        assert!(self.initiator.check_mac1(response));
        let finished = self.initiator.consume_response(response, self.endpoint, self.now());
        let (_, ToOwner::Install { keypair, .. }) = finished.unwrap() else { unreachable!() };
        self.initiator.release(keypair.local_index);
    }
}

fn handshake(criterion: &mut Criterion) {
    let pair = std::cell::RefCell::new(Pair::new());
    let mut group = criterion.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    group.bench_function("responder", |bencher| {
        let initiation = || pair.borrow_mut().begin();
        bencher.iter_batched(
            initiation,
            |message| pair.borrow_mut().answer(&message),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("initiator, initiation", |bencher| {
        bencher.iter_with_large_drop(|| pair.borrow_mut().begin());
    });
    group.bench_function("initiator, response", |bencher| {
        let response = || {
            let mut pair = pair.borrow_mut();
            let initiation = pair.begin();
            pair.answer(&initiation)
        };
        bencher.iter_batched(response, |message| pair.borrow_mut().finish(&message), BatchSize::PerIteration);
    });
    let forged = {
        let mut message = pair.borrow_mut().begin();
        message[50] ^= 1;
        message
    };
    group.bench_function("forged initiation with a right mac1", |bencher| {
        bencher.iter(|| {
            let pair = &mut *pair.borrow_mut();
            let (now, endpoint) = (pair.now(), pair.endpoint);
            pair.responder.consume_initiation(&forged, endpoint, now, &mut pair.rng).unwrap_err()
        });
    });
    group.finish();
}

criterion_group!(benches, handshake);
criterion_main!(benches);
