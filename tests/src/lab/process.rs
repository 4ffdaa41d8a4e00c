//! Processes of a lab: output kept in a file, killed by pid, reaped, printed when a test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::locked;

/// A running program; dropping it kills and reaps it.
pub struct Process {
    running: Arc<Running>,
}

/// The part that the lab keeps too, so that a leaked guard leaves no process behind.
pub(super) struct Running {
    what: String,
    pid: u32,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Process {
    /// Starts it, outside of any namespace; both of its streams go to the file `log`.
    pub fn spawn(mut command: Command, log: PathBuf) -> Result<Process> {
        let what = describe(&command);
        let output =
            File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start `{what}`"))?;
        let running = Running {
            what,
            pid: child.id(),
            log,
            child: Mutex::new(child),
        };
        Ok(Process {
            running: Arc::new(running),
        })
    }

    pub(super) fn shared(&self) -> Arc<Running> {
        Arc::clone(&self.running)
    }

    pub fn pid(&self) -> u32 {
        self.running.pid
    }

    /// Everything the program wrote so far, both streams.
    pub fn output(&self) -> String {
        read_lossy(&self.running.log)
    }

    pub fn is_running(&self) -> bool {
        matches!(locked(&self.running.child).try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Once reaped, the pid may be somebody else's.
        if !self.is_running() {
            bail!(
                "`{}` has already ended: {}",
                self.running.what,
                self.output()
            );
        }
        nix::sys::signal::kill(pid(self.running.pid), signal)
            .with_context(|| format!("cannot send {signal} to `{}`", self.running.what))
    }

    /// Waits for the program to end by itself; the error shows what it wrote.
    pub fn wait_timeout(&self, limit: Duration) -> Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = locked(&self.running.child).try_wait()? {
                return Ok(status);
            }
            if begin.elapsed() > limit {
                bail!(
                    "`{}` did not end within {limit:?}: {}",
                    self.running.what,
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills (-9) and reaps now.
    pub fn kill(&self) {
        self.running.end();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.running.end();
        if std::thread::panicking() {
            eprintln!("--- `{}` wrote:\n{}---", self.running.what, self.output());
        }
    }
}

impl Running {
    pub(super) fn end(&self) {
        let mut child = locked(&self.child);
        // A child that ended by itself is already gone; both calls then do nothing.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Runs a program to its end and returns what it printed.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    finish(command)
}

/// Runs a prepared command; the error carries the command, how it ended and what it complained of.
pub(super) fn finish(mut command: Command) -> Result<String> {
    let what = describe(&command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{what}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    bail!(
        "`{what}`: {}: {}{}",
        output.status,
        complaint.trim(),
        printed.trim()
    );
}

pub(super) fn kill(target: i32) {
    // Gone in the meantime is what we want.
    let _ = nix::sys::signal::kill(Pid::from_raw(target), Signal::SIGKILL);
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("Linux pids are below 2^22"))
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
