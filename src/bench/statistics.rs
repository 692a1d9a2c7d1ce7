//! Order statistics, and how sure a ratio of them is.

use serde::Serialize;

/// The confidence of every [`Interval`].
const CONFIDENCE: f64 = 0.95;
/// Resamples of the bootstrap: enough that its own noise is far below that of the data.
const RESAMPLES: usize = 5000;

/// A sample in a few numbers, in its own unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// The least value.
    pub min: f64,
    /// The 50th percentile.
    pub median: f64,
    /// The 95th percentile; with fewer than 20 values little less than the greatest.
    pub p95: f64,
}

/// Where a figure lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// One median over another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio of the samples' medians.
    pub value: f64,
    /// Its confidence interval by the percentile bootstrap.
    pub interval: Interval,
}

impl Summary {
    /// Of `values`; `None` where there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let min = *sorted.first()?;
        Some(Self { count: sorted.len(), min, median: quantile(&sorted, 0.5), p95: quantile(&sorted, 0.95) })
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The quantile `q` (0 to 1) of ascending values, linearly interpolated between neighbours (type 7 of Hyndman and Fan,
/// as R and numpy do it); 0 where there are none.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into a slice of measured values, between 0 and its length"
)]
pub fn quantile(ascending: &[f64], q: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return 0.0 };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let (low, high) = (ascending[below], ascending[(below + 1).min(last)]);
    low + (high - low) * (position - position.floor())
}

/// The median of `over` divided by the median of `under`, with its confidence interval; `None` where one has no
/// values or `under` has a median of 0. The same samples give the same interval.
#[must_use]
pub fn ratio_of_medians(over: &[f64], under: &[f64]) -> Option<Ratio> {
    let divide = |over: f64, under: f64| (under > 0.0).then(|| over / under);
    let value = divide(Summary::of(over)?.median, Summary::of(under)?.median)?;
    let mut random = SplitMix64(0x616d_7068_6921);
    let mut buffer = Vec::new();
    let mut resampled_median = |values: &[f64]| {
        buffer.clear();
        buffer.extend((0..values.len()).map(|_| values[random.below(values.len())]));
        buffer.sort_by(f64::total_cmp);
        quantile(&buffer, 0.5)
    };
    let mut ratios: Vec<f64> =
        (0..RESAMPLES).filter_map(|_| divide(resampled_median(over), resampled_median(under))).collect();
    ratios.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some(Ratio { value, interval: Interval { low: quantile(&ratios, tail), high: quantile(&ratios, 1.0 - tail) } })
}

/// Steele, Lea and Flood's generator: small, and good enough to draw resamples.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An index below `bound`, by Lemire's multiplication; its bias is below `bound` / 2^64.
    fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.next()) * bound as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert!(close(quantile(&values, 0.5), 3.0));
        assert!(close(quantile(&values, 0.95), 7.4));
        assert!(close(quantile(&values, 0.25), 1.75));
        assert!(close(quantile(&values, 0.0), 1.0) && close(quantile(&values, 1.0), 8.0));
        assert!(close(quantile(&[5.0], 0.95), 5.0));
        assert!(close(quantile(&[], 0.5), 0.0));
    }

    #[test]
    fn summaries_do_not_depend_on_order() {
        let summary = Summary::of(&[8.0, 1.0, 4.0, 2.0]).unwrap();
        assert_eq!(summary, Summary::of(&[1.0, 2.0, 4.0, 8.0]).unwrap());
        assert_eq!((summary.count, summary.min, summary.median), (4, 1.0, 3.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn constant_samples_have_a_ratio_without_doubt() {
        let ratio = ratio_of_medians(&[6.0; 9], &[2.0; 5]).unwrap();
        assert_eq!(ratio, Ratio { value: 3.0, interval: Interval { low: 3.0, high: 3.0 } });
    }

    #[test]
    fn intervals_hold_the_ratio_and_shrink_with_the_sample() {
        let wave =
            |n: u32, scale: f64| -> Vec<f64> { (0..n).map(|i| scale * (10.0 + f64::from(i * 7 % 11) - 5.0)).collect() };
        let width = |n| {
            let Ratio { value, interval } = ratio_of_medians(&wave(n, 2.0), &wave(n, 1.0)).unwrap();
            assert!(interval.low <= value && value <= interval.high && interval.low < interval.high);
            interval.high - interval.low
        };
        assert!(width(400) < width(20));
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let (over, under) = ([3.0, 4.0, 5.0, 9.0], [1.0, 2.0, 2.5]);
        assert_eq!(ratio_of_medians(&over, &under), ratio_of_medians(&over, &under));
    }

    #[test]
    fn there_is_no_ratio_over_nothing() {
        assert_eq!(ratio_of_medians(&[1.0], &[]), None);
        assert_eq!(ratio_of_medians(&[1.0], &[0.0]), None);
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // The first values of the reference implementation for the seed 1234567.
        let mut random = SplitMix64(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
