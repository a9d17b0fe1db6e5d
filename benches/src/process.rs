//! What Linux says of a process.

use std::fs;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

/// Memory, files and processor time of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUse {
    /// Resident now, in bytes.
    pub resident: u64,
    /// Resident at most, in bytes.
    pub resident_max: u64,
    /// Of it, memory of its own: without the pages of files.
    pub anonymous: u64,
    /// Open file descriptors.
    pub files: u64,
    /// Threads.
    pub threads: u64,
    /// Processor time so far of all threads, those that ended as well, in seconds.
    pub seconds: f64,
}

/// Looks at a process; `None` when it is gone or this is no Linux.
#[must_use]
pub fn process_use(pid: u32) -> Option<ProcessUse> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(ProcessUse {
        resident: number("VmRSS:")? * 1024,
        resident_max: number("VmHWM:")? * 1024,
        anonymous: number("RssAnon:")? * 1024,
        files: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: number("Threads:")?,
        seconds: processor_seconds(pid)?,
    })
}

/// Read from the process' own clock, in nanoseconds: `/proc` tells the time of a whole process in ticks of a hundredth
/// of a second, and in nanoseconds only that of threads that have not ended.
fn processor_seconds(pid: u32) -> Option<f64> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?);
    let time = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now).ok()?;
    Some(Duration::from(time).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Clock, Stopwatch};

    #[test]
    fn the_time_of_a_thread_that_ended_counts() {
        let seconds = || process_use(std::process::id()).unwrap().seconds;
        let before = seconds();
        std::thread::spawn(|| {
            let mut stopwatch = Stopwatch::new(Clock::of_thread());
            while stopwatch.seconds() < 0.005 {
                stopwatch.run(|| std::hint::black_box((0..100_000).sum::<u64>()));
            }
        })
        .join()
        .unwrap();
        assert!(seconds() - before >= 0.005);
    }
}
