//! Clocks and summaries: processor time, percentiles, medians, slopes.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this thread so far.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A clock that stands still, for work that is not timed: an instruction counter offers no other.
#[must_use]
pub fn no_time() -> Duration {
    Duration::ZERO
}

/// [`thread_time`] or [`no_time`].
pub type Clock = fn() -> Duration;

/// Adds up the time of many short pieces of work.
#[derive(Debug)]
pub struct Stopwatch {
    clock: Clock,
    total: Duration,
}

impl Stopwatch {
    /// At zero.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, total: Duration::ZERO }
    }

    /// Does the work and counts it.
    pub fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = (self.clock)();
        let result = work();
        self.total += (self.clock)().saturating_sub(began);
        result
    }

    /// What was counted, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.total.as_secs_f64()
    }
}

/// Wall-clock seconds of some work, with its result.
///
/// # Errors
/// The work's.
pub fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(f64, T), E> {
    let began = Instant::now();
    let result = work()?;
    Ok((began.elapsed().as_secs_f64(), result))
}

/// Measured values, all of one kind and unit.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Takes one value in.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Takes the values of another in.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that this share (0 to 1) of all do not pass, by nearest rank; NaN when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The median with the lowest and highest value, by `text`.
    #[must_use]
    pub fn with_spread(&self, text: impl Fn(f64) -> String) -> String {
        if self.is_empty() {
            return "-".into();
        }
        let (low, high) = (text(self.quantile(0.0)), text(self.quantile(1.0)));
        format!("{} ({low}-{high})", text(self.median()))
    }

    /// The median divided by the median of another, with the lowest and highest ratio of pairs measured together.
    #[must_use]
    pub fn ratio_to(&self, other: &Self) -> String {
        let pairs = Self(self.0.iter().zip(&other.0).map(|(one, two)| one / two).collect());
        pairs.with_spread(|ratio| format!("{ratio:.2}"))
    }

    /// All values, in the order they were measured.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The slope of a line through points, in units of y per unit of x: the median of the slopes between all pairs, which a
/// few outliers do not move. NaN for fewer than two points.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let pairs = points.iter().enumerate().flat_map(|(index, one)| {
        points.iter().skip(index + 1).filter(|two| two.0 > one.0).map(|two| (two.1 - one.1) / (two.0 - one.0))
    });
    pairs.collect::<Sample>().median()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sample: Sample = (1..=100).map(f64::from).collect();
        assert_eq!((sample.median(), sample.quantile(0.99), sample.quantile(1.0)), (50.0, 99.0, 100.0));
        assert_eq!(sample.quantile(0.0), 1.0);
        assert!(Sample::default().median().is_nan());
    }

    #[test]
    fn a_slope_does_not_mind_an_outlier() {
        let mut points: Vec<(f64, f64)> = (0..20).map(|x| (f64::from(x), 3.0 * f64::from(x) + 5.0)).collect();
        points[7].1 = 1e6;
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        assert!(slope(&points[..1]).is_nan());
    }
}
