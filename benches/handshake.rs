//! What a handshake costs each side, mac checks and index tables included: the handshake thread's work but for its
//! queues. The initiator's is two steps, whose costs add up.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot run shall say where")]

#[path = "shared/pair.rs"]
mod pair;

use std::cell::RefCell;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use pair::Pair;

fn handshake(criterion: &mut Criterion) {
    let pair = RefCell::new(Pair::new());
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
        bencher.iter(|| pair.borrow_mut().refuse(&forged));
    });
    group.finish();
}

criterion_group!(benches, handshake);
criterion_main!(benches);
