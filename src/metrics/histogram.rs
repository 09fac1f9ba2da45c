//! Sizes, counted in buckets of powers of two: as plain as a counter, and without a table to search.

/// Upper bounds of the buckets, as Prometheus' label `le` has them; beyond the last one is `+Inf`. The kernel takes at
/// most 128 segments per send and merges fewer datagrams per receive.
pub const BOUNDS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Buckets of a histogram, that beyond all bounds included.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// How often each size came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// By bucket, not cumulative.
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Histogram {
    /// Counts one of this size.
    #[inline]
    pub fn record(&mut self, size: u64) {
        // The first bucket takes what is at most 1, the next 2, then 3 to 4: the bits of what lies below.
        let bits = u64::BITS - size.saturating_sub(1).leading_zeros();
        if let Some(bucket) = self.buckets.get_mut((bits as usize).min(BUCKETS - 1)) {
            *bucket += 1;
        }
        self.sum += size;
    }

    /// How often each bucket was hit, in the order of [`BOUNDS`], and the sum of all sizes at the end.
    #[inline]
    #[must_use]
    pub fn cells(&self) -> [u64; BUCKETS + 1] {
        let mut cells = [self.sum; BUCKETS + 1];
        for (cell, bucket) in cells.iter_mut().zip(self.buckets) {
            *cell = bucket;
        }
        cells
    }

    /// The sum of all sizes.
    #[inline]
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// The name of each bucket: its bound, `+Inf` for the last.
pub fn names() -> impl Iterator<Item = String> {
    BOUNDS.iter().map(u64::to_string).chain([String::from("+Inf")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_counted_below_the_least_bound_that_holds_it() {
        for size in 0..=1000_u64 {
            let mut histogram = Histogram::default();
            histogram.record(size);
            let expected = BOUNDS.iter().position(|bound| size <= *bound).unwrap_or(BOUNDS.len());
            let cells = histogram.cells();
            assert_eq!(cells[expected], 1, "{size}: {cells:?}");
            assert_eq!((cells[..BUCKETS].iter().sum::<u64>(), cells[BUCKETS]), (1, size));
        }
        let mut histogram = Histogram::default();
        histogram.record(u64::MAX);
        assert_eq!(histogram.cells()[BUCKETS - 1], 1);
        assert_eq!(names().last().unwrap(), "+Inf");
        assert_eq!(names().count(), BUCKETS);
    }
}
