//! What the numbers were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::cpu::Meter;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) commit: String,
    /// Where the processor time of the machine was read.
    pub(crate) cpu_source: String,
    /// Cores in use before the run began; what it measures contains this too.
    pub(crate) background_cores: f64,
}

impl Machine {
    pub(crate) fn describe() -> Result<Machine> {
        let meter = Meter::new(&[]);
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let window = Duration::from_secs(1);
        let before = meter.read()?;
        std::thread::sleep(window);
        let used = meter.since(before)?.machine;
        Ok(Machine {
            processor: processor(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: commit(),
            cpu_source: meter.source(),
            background_cores: used.as_secs_f64() / window.as_secs_f64(),
        })
    }
}

fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let name = line
        .and_then(|line| line.split_once(':'))
        .map(|(_, name)| name.trim());
    name.unwrap_or("unknown").to_owned()
}

/// The commit of the sources this program was built from, marked if they were changed since.
fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude", "*"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_called_as_the_kernel_calls_it() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t: fpu\n";
        assert_eq!(processor(text), "Some CPU @ 2.00GHz");
        assert_eq!(processor(""), "unknown");
    }
}
