//! Sealing and opening a run of packets of one length, by how many they are: what `crypto::lanes` is worth beside
//! AWS-LC, and AES-256-GCM beside both.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use arrayvec::ArrayVec;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringway::crypto::aead::{self, Key, Pieces, RUN, Sealed, Span, TAG_LEN};
use ringway::types::{Secret, Suite};

const KEY: Secret = Secret([7; 32]);

/// 1: never side by side; 16: always.
const COUNTS: [usize; 6] = [1, 6, 8, 10, 11, 16];

fn run(criterion: &mut Criterion) {
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        let by = match suite {
            Suite::ChaCha20Poly1305 => aead::implementation().to_string(),
            Suite::Aes256Gcm => suite.to_string(),
        };
        run_of(criterion, &Key::of(suite, &KEY), &by);
    }
}

fn run_of(criterion: &mut Criterion, key: &Key, by: &str) {
    for len in [64, 512, 1432] {
        let mut group = criterion.benchmark_group(format!("seal {len}, {by}"));
        for count in COUNTS {
            let spans: Vec<Span> = (0..count).map(|n| Span { start: n * (len + TAG_LEN), len }).collect();
            let mut buffer = vec![1; count * (len + TAG_LEN)];
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| assert!(aead::seal_run(key, 1, &mut buffer, &spans)));
            });
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("open {len}, {by}"));
        for count in COUNTS {
            let spans: Vec<Span> = (0..count).map(|n| Span { start: n * (len + TAG_LEN), len }).collect();
            let mut sealed = vec![1; count * (len + TAG_LEN)];
            assert!(aead::seal_run(key, 1, &mut sealed, &spans));
            let mut buffer = sealed.clone();
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    buffer.copy_from_slice(&sealed);
                    let mut pieces = Pieces::of(&mut buffer);
                    let mut messages: ArrayVec<Sealed<'_>, RUN> = (1..)
                        .zip(&spans)
                        .filter_map(|(counter, span)| {
                            Sealed::new(counter, pieces.take(span.start..span.start + span.len + TAG_LEN)?)
                        })
                        .collect();
                    let mut opened = ArrayVec::new();
                    aead::open_run(key, &mut messages, &mut opened);
                    assert!(opened.iter().all(Option::is_some));
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, run);
criterion_main!(benches);
