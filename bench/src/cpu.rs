//! Processor time and memory, as the scheduler accounts them.
//!
//! Never /proc/stat: its ticks are sampled, and on virtual machines they lie.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub(crate) use ::tests::broker::look::process_time;

/// Where the processor time of the whole machine is read.
#[derive(Debug)]
enum Machine {
    /// `cpuacct.usage` of the root control group: nanoseconds of all tasks, past ones included.
    ControlGroup(PathBuf),
    /// The sum over all living threads. What ended between two readings is missed.
    Threads,
}

/// Reads how much processor time has been used so far.
#[derive(Debug)]
pub(crate) struct Meter {
    machine: Machine,
    gateways: Vec<u32>,
}

/// Processor time used up to a moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) machine: Duration,
    pub(crate) gateways: Duration,
}

impl Meter {
    /// `gateways` are the pids of the gateway processes; for the bare path there are none.
    pub(crate) fn new(gateways: &[u32]) -> Meter {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let usage = cpuacct_mount(&mounts).map(|mount| mount.join("cpuacct.usage"));
        let machine = match usage.filter(|path| path.exists()) {
            Some(path) => Machine::ControlGroup(path),
            None => Machine::Threads,
        };
        Meter {
            machine,
            gateways: gateways.to_vec(),
        }
    }

    /// Where the machine's time comes from, for the report.
    pub(crate) fn source(&self) -> String {
        match &self.machine {
            Machine::ControlGroup(path) => path.display().to_string(),
            Machine::Threads => "the sum of all threads' schedstat".to_owned(),
        }
    }

    pub(crate) fn read(&self) -> Result<Used> {
        let mut gateways = Duration::ZERO;
        for &pid in &self.gateways {
            gateways += process_time(pid)?;
        }
        let machine = match &self.machine {
            Machine::ControlGroup(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Duration::from_nanos(text.trim().parse().context("cpuacct.usage is no number")?)
            }
            Machine::Threads => all_threads(),
        };
        Ok(Used { machine, gateways })
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: Used) -> Result<Used> {
        let now = self.read()?;
        Ok(Used {
            machine: now.machine.saturating_sub(before.machine),
            gateways: now.gateways.saturating_sub(before.gateways),
        })
    }
}

fn all_threads() -> Duration {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Duration::ZERO;
    };
    processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter_map(|pid| process_time(pid).ok())
        .sum()
}

/// The mount point of the cpuacct controller of version 1, where there is one.
fn cpuacct_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let accounts = kind == "cgroup" && options.split(',').any(|option| option == "cpuacct");
        accounts.then(|| PathBuf::from(mount))
    })
}

/// Memory of a process in MiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// Shared pages count in part.
    pub(crate) proportional: f64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Memory> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        parse_rollup(&text).with_context(|| format!("{path} lacks Rss or Pss"))
    }
}

fn parse_rollup(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kibibytes / 1024.0)
    };
    Some(Memory {
        resident: field("Rss:")?,
        proportional: field("Pss:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuacct_is_found_alone_or_with_other_controllers() {
        let alone = "tmpfs /tmp tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpuacct cgroup rw,relatime,cpuacct 0 0\n";
        assert_eq!(cpuacct_mount(alone), Some("/sys/fs/cgroup/cpuacct".into()));
        let joint = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n";
        assert_eq!(
            cpuacct_mount(joint),
            Some("/sys/fs/cgroup/cpu,cpuacct".into())
        );
        assert_eq!(
            cpuacct_mount("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
            None
        );
    }

    #[test]
    fn a_rollup_is_read_in_mebibytes() {
        let text = "00400000-7ffd [rollup]\nRss:    2048 kB\nPss:    1536 kB\nPss_Dirty: 9 kB\n";
        let memory = Memory {
            resident: 2.0,
            proportional: 1.5,
        };
        assert_eq!(parse_rollup(text), Some(memory));
        assert_eq!(parse_rollup("Rss: 1 kB\n"), None);
    }

    #[test]
    fn work_done_here_shows_in_the_time_of_this_process() {
        let pid = std::process::id();
        let meter = Meter::new(&[pid]);
        let before = meter.read().unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let used = meter.since(before).unwrap();
        assert!(used.gateways > Duration::from_millis(5), "{used:?}");
        assert!(used.machine >= used.gateways / 2, "{used:?}");
    }
}
