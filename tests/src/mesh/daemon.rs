//! One daemon of a mesh: its namespace, its directories, its process while it runs.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Mesh, PATIENCE};
use crate::broker::command::{self, causeway};
use crate::broker::{join_command, within};
use crate::lab::{Namespace, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Gateway,
    Agent,
}

impl Role {
    fn command(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Agent => "routeagent",
        }
    }

    fn socket(self) -> &'static str {
        match self {
            Role::Gateway => "gateway.sock",
            Role::Agent => "agent.sock",
        }
    }
}

pub struct Daemon {
    pub name: String,
    pub role: Role,
    pub namespace: Namespace,
    pub state: PathBuf,
    pub runtime: PathBuf,
    pub lan: IpAddr,
    /// Whether it is given its address or finds it.
    pub is_told_address: bool,
    /// More of the command line.
    pub arguments: Vec<String>,
    process: Option<Process>,
}

/// When a start was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Start(pub Instant);

impl Daemon {
    pub(super) fn new(
        mesh: &Mesh,
        (role, name): (Role, String),
        namespace: Namespace,
        lan: IpAddr,
    ) -> Daemon {
        Daemon {
            state: mesh.trust.node(&name),
            runtime: mesh.trust.path().join(format!("run-{name}")),
            name,
            role,
            namespace,
            lan,
            is_told_address: true,
            arguments: Vec::new(),
            process: None,
        }
    }

    /// Makes it a member, with the token on standard input.
    pub fn join(&self, token: &str) -> Result<()> {
        let join = join_command(&self.state, &self.name);
        let join = within(self.namespace.name(), &join);
        command::run(join, Some(token))?.expect_success().map(drop)
    }

    /// Starts it and does not wait.
    pub fn start(&mut self) -> Result<Start> {
        let mut command = within(self.namespace.name(), &causeway());
        command
            .args([self.role.command(), "run", "--state-dir"])
            .arg(&self.state)
            .arg("--runtime-dir")
            .arg(&self.runtime)
            .args(&self.arguments);
        if self.is_told_address {
            command.args(["--address", &self.lan.to_string()]);
        }
        let begin = Instant::now();
        self.process = Some(self.namespace.spawn(command)?);
        Ok(Start(begin))
    }

    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    pub fn process(&self) -> Result<&Process> {
        self.process
            .as_ref()
            .with_context(|| format!("{} was not started", self.name))
    }

    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process()?.signal(signal)
    }

    /// Ends it in good order; how long that took.
    pub fn stop(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let process = self.process()?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait_timeout(PATIENCE)?;
        if !status.success() {
            bail!("{} ended with {status}: {}", self.name, process.output());
        }
        self.process = None;
        Ok(begin.elapsed())
    }

    /// Ends it in good order, in the background.
    pub fn ask_to_stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    pub fn log(&self) -> String {
        self.process
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// What `causeway status --json` shows.
    pub fn status(&self) -> Result<Value> {
        let body = self.get("/status")?;
        serde_json::from_str(&body).with_context(|| format!("status of {}: {body}", self.name))
    }

    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")
    }

    /// Waits until the daemon says that it is ready.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        while !self.status().is_ok_and(|status| status["ready"] == true) {
            if begin.elapsed() > limit || !self.is_running() {
                bail!("{} is not ready: {}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Result<String> {
        get(&self.runtime.join(self.role.socket()), path)
    }
}

fn get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the answer is no HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {head}");
    }
    Ok(body.to_owned())
}
