//! Counters as objects for `ringway show --json`.

use crate::metrics::drops::{Drop as Reason, Drops};
use crate::metrics::{Series, WorkerCounters, histogram};

/// Values by the names of their series.
pub(super) fn named(series: &[Series], values: &[u64]) -> serde_json::Map<String, serde_json::Value> {
    series.iter().zip(values).map(|(series, value)| (series.key(), (*value).into())).collect()
}

/// By name: how often each size came, by its upper bound, and their sum.
pub(super) fn histograms(counters: &WorkerCounters) -> serde_json::Map<String, serde_json::Value> {
    let each = WorkerCounters::HISTOGRAMS.iter().zip(counters.histograms()).map(|(series, histogram)| {
        let cells = histogram.cells();
        let buckets: serde_json::Map<_, _> =
            histogram::names().zip(cells).map(|(name, count)| (name, count.into())).collect();
        (series.key(), serde_json::json!({ "buckets": buckets, "sum": histogram.sum() }))
    });
    each.collect()
}

/// How often packets were dropped, by reason, but for what never happened.
pub(super) fn nonzero(drops: &Drops) -> serde_json::Map<String, serde_json::Value> {
    Reason::ALL
        .iter()
        .filter(|reason| drops.of(**reason) > 0)
        .map(|reason| (reason.label().to_owned(), drops.of(*reason).into()))
        .collect()
}
