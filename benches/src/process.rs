//! What Linux says of a process.

use std::fs;

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
    /// Processor time of all threads so far, in seconds.
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
        // Each is too low, one by a hundredth of a second, the other by what threads took that ended.
        seconds: seconds_by_ticks(pid)?.max(seconds_by_threads(pid)?),
    })
}

fn seconds_by_ticks(pid: u32) -> Option<f64> {
    // utime and stime are the 14th and 15th field; the name before may hold spaces.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn seconds_by_threads(pid: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let nanos = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(nanos.sum::<u64>() as f64 / 1e9)
}
