//! Asking the gateway or the agent that runs on this machine, over its socket.

use std::io;
use std::os::unix::net::UnixStream as Plain;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use node::status::Refusal;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::print;

/// Longer than a ping waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of one answer; a mesh of 1000 gateways needs a tenth of it.
const MOST: usize = 16 * 1024 * 1024;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// Where daemons on this machine have their sockets.
    #[arg(
        long,
        value_name = "R",
        env = "CAUSEWAY_RUNTIME_DIR",
        default_value = "/run/causeway"
    )]
    runtime_dir: PathBuf,
}

/// Which daemon is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Gateway,
    Agent,
}

impl Who {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Who::Gateway => "gateway",
            Who::Agent => "agent",
        }
    }

    const fn article(self) -> &'static str {
        match self {
            Who::Gateway => "A",
            Who::Agent => "An",
        }
    }

    /// What starts it.
    const fn command(self) -> &'static str {
        match self {
            Who::Gateway => "causeway gateway run",
            Who::Agent => "causeway routeagent run",
        }
    }

    const fn socket(self) -> &'static str {
        match self {
            Who::Gateway => gateway::status::SOCKET,
            Who::Agent => routeagent::status::SOCKET,
        }
    }
}

/// Why there is no answer, in words that say what to do.
#[derive(Debug)]
pub(crate) enum AskError {
    /// Nobody serves the socket now; that may change.
    Absent(String),
    /// It was reached, or might have been, and there is no answer to be had.
    Failed(String),
    Refused(Refusal),
}

impl Place {
    /// What the daemon has under this path, whole.
    pub(crate) async fn get(&self, who: Who, path: &str) -> Result<Bytes, AskError> {
        let socket = self.runtime_dir.join(who.socket());
        let asked = timeout(PATIENCE, self.ask(who, &socket, path)).await;
        asked.unwrap_or_else(|_| {
            Err(AskError::Failed(format!(
                "the {} behind {} does not answer: see its log, and whether it was stopped (`ps` shows T)",
                who.name(),
                socket.display()
            )))
        })
    }

    /// Whether there is a socket, of one that runs or of one that was killed.
    pub(crate) fn was_here(&self, who: Who) -> bool {
        self.runtime_dir.join(who.socket()).exists()
    }

    async fn ask(&self, who: Who, socket: &Path, path: &str) -> Result<Bytes, AskError> {
        let broken = |error: &dyn std::fmt::Display| {
            AskError::Failed(format!(
                "the {} behind {} broke off: {error}; see its log and ask again",
                who.name(),
                socket.display()
            ))
        };
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|error| self.unreachable(who, socket, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        // It ends with the last of the answer; how is told there.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(HOST, who.name())
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(&error))?;
        let response: Response<Incoming> = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST).collect().await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        Err(match serde_json::from_slice(&body) {
            Ok(refusal) => AskError::Refused(refusal),
            Err(_) => AskError::Failed(format!(
                "{} answers {status} to {path}: it is served by something else; give the {}'s --runtime-dir",
                socket.display(),
                who.name()
            )),
        })
    }

    fn unreachable(&self, who: Who, socket: &Path, error: &io::Error) -> AskError {
        let (path, name, command) = (socket.display(), who.name(), who.command());
        let kind = error.kind();
        if kind == io::ErrorKind::NotFound {
            return AskError::Absent(format!(
                "no {name} runs here: there is no {path}; start it with `{command}`, or give the --runtime-dir it was started with{}",
                self.neighbours(who)
            ));
        }
        if kind == io::ErrorKind::ConnectionRefused {
            return AskError::Absent(format!(
                "no {name} runs here any more: {path} was left by one that was killed; start it again with `{command}`{}",
                self.neighbours(who)
            ));
        }
        if kind == io::ErrorKind::PermissionDenied {
            return AskError::Failed(format!(
                "cannot ask the {name}: no permission for {path}; only the user that runs the {name} may: use sudo"
            ));
        }
        AskError::Failed(format!(
            "cannot ask the {name} on {path}: {error}; give the --runtime-dir it was started with"
        ))
    }

    /// So that whoever is on a broker's host, or an agent's, is not sent looking for a gateway.
    fn neighbours(&self, asked: Who) -> String {
        let runs = |socket: &str| Plain::connect(self.runtime_dir.join(socket)).is_ok();
        let mut words = String::new();
        for who in [Who::Gateway, Who::Agent] {
            if who != asked && runs(who.socket()) {
                words.push_str(&format!(
                    ". {} {} runs here: `causeway status` shows it",
                    who.article(),
                    who.name()
                ));
            }
        }
        if runs("broker.sock") {
            words.push_str(". A broker runs here: `causeway node list` shows whom it serves");
        }
        words
    }
}

impl std::fmt::Display for AskError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AskError::Absent(why) | AskError::Failed(why) => out.write_str(why),
            AskError::Refused(refusal) => {
                let (what, next) = (print::plain(&refusal.what), print::plain(&refusal.next));
                write!(out, "{what}; {next}")
            }
        }
    }
}

impl std::error::Error for AskError {}
