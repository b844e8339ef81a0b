//! Numbers about numbers: quantiles, a bootstrap interval, a bounded histogram, and a small seeded generator, so that a run
//! can be repeated.

use std::time::Duration;

/// SplitMix64: every seed gives its own sequence, the same each time.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// The value below which the share `q` (0 to 1) of `values` lies; 0 of nothing.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The 95 % interval of the median, by resampling with a fixed seed.
pub fn median_interval(values: &[f64]) -> (f64, f64) {
    let mut rng = Rng(7);
    let medians: Vec<f64> = (0..2000)
        .map(|_| {
            let sample: Vec<f64> = (0..values.len()).map(|_| values[rng.below(values.len() as u64) as usize]).collect();
            median(&sample)
        })
        .collect();
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

/// Sub-buckets per power of two: a quantile is off by at most 1/64 of its value.
const FINE: u64 = 64;

/// Durations in buckets, so that a run of hours needs no more memory than one of seconds.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max_us: u64,
}

impl Histogram {
    pub fn add(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let index = bucket_of(us);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// In milliseconds: the upper end of the bucket in which the share `q` is reached.
    pub fn quantile_ms(&self, q: f64) -> f64 {
        let wanted = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut passed = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            passed += count;
            if passed >= wanted {
                return upper_end(index).min(self.max_us) as f64 / 1000.0;
            }
        }
        0.0
    }

    pub fn max_ms(&self) -> f64 {
        self.max_us as f64 / 1000.0
    }
}

fn bucket_of(us: u64) -> usize {
    if us < FINE {
        return us as usize;
    }
    let power = u64::from(us.ilog2());
    let shift = power - u64::from(FINE.ilog2());
    ((shift + 1) * FINE + (us >> shift) - FINE) as usize
}

fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < FINE {
        return index;
    }
    let (shift, rest) = (index / FINE - 1, index % FINE + FINE);
    ((rest + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 1.0), 5.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_agreement() {
        let (low, high) = median_interval(&[1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02]);
        assert!(low <= 1.0 && 1.0 <= high && high - low < 0.2, "{low} {high}");
        assert_eq!(median_interval(&[1.0; 5]), (1.0, 1.0));
    }

    #[test]
    fn the_histogram_is_off_by_little() {
        let mut histogram = Histogram::default();
        for us in 1..=100_000 {
            histogram.add(Duration::from_micros(us));
        }
        for (q, expected) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = histogram.quantile_ms(q);
            assert!((found - expected).abs() / expected < 0.02, "{q}: {found}");
        }
        assert_eq!(histogram.count(), 100_000);
    }

    #[test]
    fn buckets_follow_one_another() {
        for us in 0..10_000 {
            let index = bucket_of(us);
            assert!(us <= upper_end(index) && (index == 0 || us > upper_end(index - 1)), "{us} in {index}");
        }
    }
}
