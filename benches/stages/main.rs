//! What each stage of a packet's way costs by itself, in time: `cargo bench --bench stages`. And in instructions, which
//! are the same on a busy machine: `bench-scripts/instructions` runs one stage of [`stages::all`] at a time under
//! callgrind, by naming it in `RINGWAY_COUNT`.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot run shall say where")]
#![allow(clippy::print_stdout, reason = "the script that counts reads the names of the stages")]

mod packets;
#[path = "../shared/pair.rs"]
mod pair;
mod stages;

use criterion::{Criterion, Throughput};

use stages::Stage;

/// Runs of a stage under callgrind.
const COUNTED: usize = 100;

/// What callgrind collects: nothing outside of it.
#[inline(never)]
fn ringway_counted(stage: &mut Stage) {
    for _ in 0..COUNTED {
        (stage.run)();
    }
}

fn main() {
    match std::env::var("RINGWAY_COUNT") {
        Err(_) => measure(),
        Ok(name) if name.is_empty() => {
            for stage in stages::all() {
                println!("{} {}", stage.name, COUNTED as u64 * stage.units);
            }
        }
        Ok(name) => {
            let mut stage =
                stages::all().into_iter().find(|stage| stage.name == name).expect("a stage's name");
            // What is made at its first use is not what a packet costs.
            (stage.run)();
            ringway_counted(&mut stage);
        }
    }
}

fn measure() {
    let mut criterion = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_secs(1))
        .configure_from_args();
    let mut group = criterion.benchmark_group("stages");
    for mut stage in stages::all() {
        group.throughput(Throughput::Elements(stage.units));
        group.bench_function(stage.name, |bencher| bencher.iter(&mut stage.run));
    }
    group.finish();
    criterion.final_summary();
}
