//! Many times, kept by their size: quantiles to 3 %, without keeping each.

use std::time::Duration;

use serde::Serialize;

/// Buckets between two powers of two.
const FINE: u64 = 32;
const BUCKETS: usize = 60 * FINE as usize;

/// How often each time came.
#[derive(Clone, Debug)]
pub struct Latency {
    buckets: Vec<u64>,
    count: u64,
    most: Duration,
}

/// Quantiles, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many times were counted.
    pub count: u64,
    /// Half were not longer.
    pub p50_us: f64,
    /// 99 of 100 were not longer.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, most: Duration::ZERO }
    }
}

impl Latency {
    /// Counts one.
    pub fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanos)) {
            *bucket += 1;
        }
        self.count += 1;
        self.most = self.most.max(time);
    }

    /// What `share` of all did not exceed; zero if there was none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        });
        bucket.map_or(Duration::ZERO, |bucket| Duration::from_nanos(top_of(bucket)).min(self.most))
    }

    /// The usual ones.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        Quantiles {
            count: self.count,
            p50_us: micros(self.quantile(0.5)),
            p99_us: micros(self.quantile(0.99)),
            max_us: micros(self.most),
        }
    }
}

/// The first [`FINE`] numbers have buckets of their own; from there on so many buckets part each power of two.
fn bucket_of(nanos: u64) -> usize {
    if nanos < FINE {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - FINE.ilog2();
    (u64::from(shift) * FINE + (nanos >> shift)) as usize
}

/// The greatest number in a bucket.
fn top_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * FINE {
        return bucket;
    }
    let shift = bucket / FINE - 1;
    (((bucket - shift * FINE + 1) << shift) as u128).saturating_sub(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_hardly_wider_than_what_it_holds() {
        let far = [999_999, 123_456_789_012, u64::MAX >> 1];
        for nanos in (0..2_000).chain((0..50).map(|n| 1_u64 << n)).chain(far) {
            let (bucket, top) = (bucket_of(nanos), top_of(bucket_of(nanos)));
            assert!(top >= nanos && top - nanos <= nanos / FINE && bucket < BUCKETS, "{nanos} {top}");
            assert!(bucket_of(nanos + 1) >= bucket && bucket_of(top + 1) == bucket + 1, "{nanos} {top}");
        }
        assert_eq!((top_of(bucket_of(65)), bucket_of(64), bucket_of(66)), (65, 64, 65));
    }

    #[test]
    fn quantiles_of_a_thousand() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantiles(), Quantiles::default());
        for micros in (1..=1_000).rev() {
            latency.record(Duration::from_micros(micros));
        }
        let found = latency.quantiles();
        assert!((500.0..=516.0).contains(&found.p50_us), "{found:?}");
        assert!((990.0..=1_000.0).contains(&found.p99_us), "{found:?}");
        assert_eq!((found.count, found.max_us), (1_000, 1_000.0));
    }
}
