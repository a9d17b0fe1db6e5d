//! Clocks and summaries: processor time, memory of a process, percentiles, medians.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this thread so far.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Adds up processor time of this thread over many short pieces of work.
#[derive(Debug, Default)]
pub struct Stopwatch(Duration);

impl Stopwatch {
    /// Does the work and counts it.
    pub fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = thread_time();
        let result = work();
        self.0 += thread_time().saturating_sub(began);
        result
    }

    /// What was counted, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.0.as_secs_f64()
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

/// What Linux says of a process: resident bytes now and at most, and processor seconds so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUse {
    /// Resident now, in bytes.
    pub resident: u64,
    /// Resident at most, in bytes.
    pub resident_max: u64,
    /// Of it, memory of its own: without the pages of files.
    pub anonymous: u64,
    /// Processor time in all threads, in seconds.
    pub seconds: f64,
}

/// Looks at a process; `None` when it is gone or this is no Linux.
#[must_use]
pub fn process_use(pid: u32) -> Option<ProcessUse> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let mut nanos = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanos += stat.split(' ').next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    }
    Some(ProcessUse {
        resident: kib("VmRSS:")? * 1024,
        resident_max: kib("VmHWM:")? * 1024,
        anonymous: kib("RssAnon:")? * 1024,
        seconds: nanos as f64 / 1e9,
    })
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
}
