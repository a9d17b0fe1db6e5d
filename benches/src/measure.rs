//! Clocks and summaries: processor time, percentiles, medians, slopes.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A clock, and how long it takes to be read.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    now: fn() -> Duration,
    /// What it shows between two readings with nothing between them: half a microsecond on a virtual machine, as much as
    /// encoding a fifth of a small transaction.
    empty_span: Duration,
}

impl Clock {
    /// Processor time of the thread that reads it. Calibrates itself for some ten milliseconds.
    #[must_use]
    pub fn of_thread() -> Self {
        Self::calibrated(|| {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
            Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
        })
    }

    /// A clock that stands still, for work that is not timed: an instruction counter offers no other.
    #[must_use]
    pub fn still() -> Self {
        Self { now: || Duration::ZERO, empty_span: Duration::ZERO }
    }

    fn calibrated(now: fn() -> Duration) -> Self {
        const SPANS: u32 = 10_000;
        let spans = (0..SPANS).map(|_| {
            let began = now();
            now().saturating_sub(began)
        });
        Self { now, empty_span: spans.sum::<Duration>() / SPANS }
    }
}

/// Adds up the time of many short pieces of work. What reading the clock takes is not in it.
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
        let began = (self.clock.now)();
        let result = work();
        let took = (self.clock.now)().saturating_sub(began);
        self.total += took.saturating_sub(self.clock.empty_span);
        result
    }

    /// What was counted, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.total.as_secs_f64()
    }
}

/// In which order `count` systems take their turns in a round: each is first as often as the others, so that none
/// always finds the machine as the same other left it.
pub fn turns(count: usize, round: u64) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (turn + round as usize) % count)
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
        let sorted = self.sorted();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle one; of an even count the mean of the middle two; NaN when there are none.
    #[must_use]
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The median by `text`, and when there are several values, the lowest and the highest.
    #[must_use]
    pub fn with_spread(&self, text: impl Fn(f64) -> String) -> String {
        if self.is_empty() {
            return "-".into();
        }
        if self.len() == 1 {
            return text(self.median());
        }
        let (low, high) = (text(self.quantile(0.0)), text(self.quantile(1.0)));
        format!("{} ({low}-{high})", text(self.median()))
    }

    /// The median, lowest and highest of the ratios of pairs that were measured in the same round.
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
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sample: Sample = (1..=100).map(f64::from).collect();
        assert_eq!((sample.quantile(0.5), sample.quantile(0.99), sample.quantile(1.0)), (50.0, 99.0, 100.0));
        assert_eq!(sample.quantile(0.0), 1.0);
        assert!(Sample::default().quantile(0.5).is_nan());
    }

    #[test]
    fn a_median_takes_no_side() {
        let median = |values: &[f64]| values.iter().copied().collect::<Sample>().median();
        assert_eq!((median(&[3.0, 1.0]), median(&[9.0, 1.0, 2.0]), median(&[7.0])), (2.0, 2.0, 7.0));
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_range_needs_two_rounds() {
        let text = |values: &[f64]| {
            values.iter().copied().collect::<Sample>().with_spread(|value| format!("{value:.1}"))
        };
        assert_eq!(
            (text(&[2.0]), text(&[2.0, 4.0]), text(&[])),
            ("2.0".into(), "3.0 (2.0-4.0)".into(), "-".into())
        );
    }

    #[test]
    fn a_stopwatch_does_not_time_its_clock() {
        static NANOS: AtomicU64 = AtomicU64::new(0);
        let slow = Clock::calibrated(|| Duration::from_nanos(NANOS.fetch_add(500, Ordering::Relaxed)));
        let mut stopwatch = Stopwatch::new(slow);
        (0..1000).for_each(|_| stopwatch.run(|| ()));
        assert_eq!(stopwatch.seconds(), 0.0);
        stopwatch.run(|| NANOS.fetch_add(2_000_000_000, Ordering::Relaxed));
        assert_eq!(stopwatch.seconds(), 2.0);
    }

    #[test]
    fn a_slope_does_not_mind_an_outlier() {
        let mut points: Vec<(f64, f64)> = (0..20).map(|x| (f64::from(x), 3.0 * f64::from(x) + 5.0)).collect();
        points[7].1 = 1e6;
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        assert!(slope(&points[..1]).is_nan());
    }
}
