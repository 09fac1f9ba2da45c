//! What a thread shows of its numbers while it runs: an array of atomics that it alone writes, once per turn, and that
//! the exporter reads whenever it likes. No lock, no message, and for the writer no more than plain stores: nobody else
//! touches these cache lines but for a scrape.

use std::sync::atomic::{AtomicU64, Ordering};

use super::drops::{Drops, REASONS};
use super::histogram::{BUCKETS, Histogram};

/// Room for counters.
pub const COUNTERS: usize = 48;
/// Room for gauges.
pub const GAUGES: usize = 16;
/// Room for histograms.
pub const HISTOGRAMS: usize = 4;

/// One thread's board. Alone on its cache lines, and on the neighbours that the processor fetches with them.
#[derive(Debug)]
#[repr(align(128))]
pub struct Board {
    counters: [AtomicU64; COUNTERS],
    gauges: [AtomicU64; GAUGES],
    drops: [AtomicU64; REASONS],
    /// The sum of `drops` when they were last written.
    dropped: AtomicU64,
    /// Of each histogram its buckets, then its sum.
    histograms: [[AtomicU64; BUCKETS + 1]; HISTOGRAMS],
}

impl Default for Board {
    fn default() -> Self {
        Self {
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            gauges: std::array::from_fn(|_| AtomicU64::new(0)),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            dropped: AtomicU64::new(0),
            histograms: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

/// Relaxed: each number stands for itself, and a reader that sees one sooner than another sees two moments of a turn.
fn write(cells: &[AtomicU64], values: &[u64]) {
    for (cell, value) in cells.iter().zip(values) {
        cell.store(*value, Ordering::Relaxed);
    }
}

impl Board {
    /// Writes everything; what does not fit is left out (`super` checks at compile time that all fits). Only the owner
    /// calls this.
    #[inline]
    pub fn publish(&self, counters: &[u64], drops: &Drops, gauges: &[u64]) {
        write(&self.counters, counters);
        write(&self.gauges, gauges);
        // In most turns nothing is dropped.
        if self.dropped.load(Ordering::Relaxed) != drops.total() {
            self.dropped.store(drops.total(), Ordering::Relaxed);
            write(&self.drops, drops.counts());
        }
    }

    /// Writes the histograms that have grown. Only the owner calls this.
    #[inline]
    pub fn publish_histograms<const N: usize>(&self, histograms: [&Histogram; N]) {
        for (cells, histogram) in self.histograms.iter().zip(histograms) {
            // Every size is at least 1, so the sum tells.
            if cells.last().is_some_and(|sum| sum.load(Ordering::Relaxed) != histogram.sum()) {
                write(cells, &histogram.cells());
            }
        }
    }

    /// The cells of each histogram ([`Histogram::cells`]), in the order in which they were given.
    pub fn histograms(&self) -> impl Iterator<Item = [u64; BUCKETS + 1]> {
        self.histograms.iter().map(|cells| cells.each_ref().map(|cell| cell.load(Ordering::Relaxed)))
    }

    /// The counters, in the order in which they were given.
    pub fn counters(&self) -> impl Iterator<Item = u64> {
        self.counters.iter().map(|cell| cell.load(Ordering::Relaxed))
    }

    /// The gauges, in the order in which they were given.
    pub fn gauges(&self) -> impl Iterator<Item = u64> {
        self.gauges.iter().map(|cell| cell.load(Ordering::Relaxed))
    }

    /// Drops by reason, in the order of [`Drop::ALL`](super::drops::Drop::ALL).
    pub fn drops(&self) -> impl Iterator<Item = u64> {
        self.drops.iter().map(|cell| cell.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::drops::Drop;
    use crate::metrics::{WorkerCounters, WorkerGauges};

    #[test]
    fn a_reader_finds_each_number_in_its_place() {
        let board = Board::default();
        let mut counters =
            WorkerCounters { rx_packets: 3, buffers_exhausted: 7, ..WorkerCounters::default() };
        let gauges = WorkerGauges { peers: 2, backlog: 1, ..WorkerGauges::default() };
        counters.drops.add(Drop::Malformed, 5);
        counters.receive_sizes.record(3);
        counters.send_sizes.record(129);
        for (n, reason) in [(1, Drop::BadCookie), (2, Drop::NoRoute), (2, Drop::NoRoute)] {
            counters.drops.add(reason, n);
            counters.publish(&gauges, &board);
            assert_eq!(board.drops().collect::<Vec<_>>(), counters.drops.counts());
        }
        assert_eq!(board.drops().sum::<u64>(), 10);
        assert!(board.counters().zip(counters.values()).all(|(shown, value)| shown == value));
        assert!(board.gauges().zip(gauges.values()).all(|(shown, value)| shown == value));
        assert_eq!(board.counters().sum::<u64>(), 10, "cells without a counter stay zero");
        assert_eq!(board.gauges().sum::<u64>(), 3);
        for _ in 0..2 {
            let shown: Vec<_> = board.histograms().collect();
            assert_eq!(shown, counters.histograms().map(Histogram::cells));
            counters.receive_sizes.record(1);
            counters.publish(&gauges, &board);
        }
    }

    /// What a turn of a worker pays for being looked at.
    #[test]
    #[ignore = "measurement: nanoseconds per publication"]
    fn cost_of_a_publication() {
        let board = Board::default();
        let mut counters = WorkerCounters::default();
        let gauges = WorkerGauges::default();
        let begin = std::time::Instant::now();
        const ROUNDS: u32 = 10_000_000;
        for _ in 0..ROUNDS {
            counters.turns += 1;
            counters.receive_sizes.record(u64::from(counters.turns as u8));
            std::hint::black_box(&counters).publish(&gauges, std::hint::black_box(&board));
        }
        println!("{:?} per publication", begin.elapsed() / ROUNDS);
    }
}
