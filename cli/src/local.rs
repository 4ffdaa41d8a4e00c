//! Asking the gateway that runs on this machine, over its socket.

use std::io;
use std::os::unix::net::UnixStream as Plain;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use gateway::status::SOCKET;
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
    /// What the gateway has under this path, whole.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, AskError> {
        let socket = self.runtime_dir.join(SOCKET);
        let asked = timeout(PATIENCE, self.ask(&socket, path)).await;
        asked.unwrap_or_else(|_| {
            Err(AskError::Failed(format!(
                "the gateway behind {} does not answer: see its log, and whether it was stopped (`ps` shows T)",
                socket.display()
            )))
        })
    }

    async fn ask(&self, socket: &Path, path: &str) -> Result<Bytes, AskError> {
        let broken = |error: &dyn std::fmt::Display| {
            AskError::Failed(format!(
                "the gateway behind {} broke off: {error}; see its log and ask again",
                socket.display()
            ))
        };
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|error| self.unreachable(socket, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        // It ends with the last of the answer; how is told there.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(HOST, "gateway")
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
                "{} answers {status} to {path}: it is served by something else; give the gateway's --runtime-dir",
                socket.display()
            )),
        })
    }

    fn unreachable(&self, socket: &Path, error: &io::Error) -> AskError {
        let path = socket.display();
        let kind = error.kind();
        if kind == io::ErrorKind::NotFound {
            return AskError::Absent(format!(
                "no gateway runs here: there is no {path}; start it with `causeway gateway run`, or give the --runtime-dir it was started with{}",
                self.neighbour()
            ));
        }
        if kind == io::ErrorKind::ConnectionRefused {
            return AskError::Absent(format!(
                "no gateway runs here any more: {path} was left by one that was killed; start it again with `causeway gateway run`{}",
                self.neighbour()
            ));
        }
        if kind == io::ErrorKind::PermissionDenied {
            return AskError::Failed(format!(
                "cannot ask the gateway: no permission for {path}; only the user that runs the gateway may: use sudo"
            ));
        }
        AskError::Failed(format!(
            "cannot ask the gateway on {path}: {error}; give the --runtime-dir it was started with"
        ))
    }

    /// So that whoever is on a broker's host is not sent looking for a gateway.
    fn neighbour(&self) -> &'static str {
        match Plain::connect(self.runtime_dir.join("broker.sock")) {
            Ok(_) => ". A broker runs here: `causeway node list` shows whom it serves",
            Err(_) => "",
        }
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
