//! One gateway: its namespace, its directories, its process while it runs.

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

pub struct GatewayNode {
    pub name: String,
    pub namespace: Namespace,
    pub state: PathBuf,
    pub runtime: PathBuf,
    /// On its wire to the internet.
    pub outer: IpAddr,
    pub lan: IpAddr,
    /// More of the command line.
    pub arguments: Vec<String>,
    process: Option<Process>,
}

/// When a start was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Start(pub Instant);

impl GatewayNode {
    pub(super) fn join(
        mesh: &Mesh,
        namespace: Namespace,
        (site, index): (u8, usize),
        (outer, lan): (IpAddr, IpAddr),
        token: &str,
    ) -> Result<GatewayNode> {
        let name = format!("g{site}{index}");
        let state = mesh.trust.node(&name);
        let join = within(namespace.name(), &join_command(&state, &name));
        command::run(join, Some(token))?.expect_success()?;
        Ok(GatewayNode {
            runtime: mesh.trust.path().join(format!("run-{name}")),
            name,
            namespace,
            state,
            outer,
            lan,
            arguments: Vec::new(),
            process: None,
        })
    }

    /// Starts it and does not wait.
    pub fn start(&mut self) -> Result<Start> {
        let mut command = within(self.namespace.name(), &causeway());
        command
            .args(["gateway", "run", "--state-dir"])
            .arg(&self.state)
            .arg("--runtime-dir")
            .arg(&self.runtime)
            .args(["--address", &self.lan.to_string()])
            .args(&self.arguments);
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
        let body = get(&self.runtime.join("gateway.sock"), "/status")?;
        serde_json::from_str(&body).with_context(|| format!("status of {}: {body}", self.name))
    }

    /// One link as `status` shows it.
    pub fn link(&self, to: &str) -> Result<Value> {
        let status = self.status()?;
        find_link(&status, to)
            .cloned()
            .with_context(|| format!("{} has no link to {to}", self.name))
    }

    pub fn metrics(&self) -> Result<String> {
        get(&self.runtime.join("gateway.sock"), "/metrics")
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
}

fn find_link<'a>(status: &'a Value, to: &str) -> Option<&'a Value> {
    let links = status["links"].as_array()?;
    links.iter().find(|link| link["gateway"] == to)
}

pub(super) fn link_state(status: &Value, to: &str) -> String {
    let state = find_link(status, to).and_then(|link| link["state"].as_str());
    state.unwrap_or("unknown").to_owned()
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
