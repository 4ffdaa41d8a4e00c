//! One network namespace and what can be done inside it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use super::process::{self, Process};
use super::{NAMESPACES, Shared, locked, ping, wait_for};

static NEXT_LOG: AtomicU32 = AtomicU32::new(0);

/// A handle; the lab owns the namespace and removes it.
#[derive(Clone)]
pub struct Namespace {
    name: String,
    logs: PathBuf,
    shared: Arc<Shared>,
}

impl Namespace {
    pub(super) fn new(name: String, logs: PathBuf, shared: Arc<Shared>) -> Namespace {
        Namespace { name, logs, shared }
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a program inside to its end and returns what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        process::finish(command)
    }

    /// The same, with `input` on its standard input: keys and configurations never go on a command line.
    pub fn run_with_input(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        // The child's end of the pipe closes with it, ours before it is waited for.
        let (reader, mut writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = self.command(program);
        command.args(arguments).stdin(reader);
        let input = input.to_owned();
        let feeder = std::thread::spawn(move || writer.write_all(input.as_bytes()));
        let outcome = process::finish(command);
        // A program that failed early does not read all of it; its own error says more.
        let _ = feeder.join();
        outcome
    }

    /// Runs a line of shell inside.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run("sh", &["-c", line])
    }

    /// A command that will run inside, for callers that set its environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Starts `command`, made by [`Namespace::command`]. `ip netns exec` becomes the program, so the
    /// pid is the program's own.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        let number = NEXT_LOG.fetch_add(1, Ordering::Relaxed);
        let process = Process::spawn(command, self.logs.join(format!("{number}.log")))?;
        locked(&self.shared.processes).push(process.shared());
        Ok(process)
    }

    /// Runs `work` on a thread of its own that has entered the namespace; sockets it opens stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("{NAMESPACES}/{}", self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {path}"))?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.within(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} in {}", self.name))
    }

    /// Makes it a router for both families.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// An address on an interface; IPv6 ones are usable at once.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let mut arguments = vec!["address", "add", address, "dev", interface];
        if address.contains(':') {
            arguments.push("nodad");
        }
        self.run("ip", &arguments).map(drop)
    }

    /// One echo request; how long the answer took, or why there was none within a second.
    pub fn ping(&self, to: IpAddr) -> Result<Duration> {
        self.within(|| ping::once(to, Duration::from_secs(1)))?
            .with_context(|| format!("{to} does not answer {}", self.name))
    }

    /// Waits until `to` answers an echo request.
    pub fn wait_for_ping(&self, to: IpAddr, limit: Duration) -> Result<()> {
        wait_for(&format!("{} reaches {to}", self.name), limit, || {
            self.within(|| ping::once(to, Duration::from_millis(200)).is_ok())
                .unwrap_or(false)
        })
    }
}
