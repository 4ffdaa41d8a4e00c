//! What others on this host ask an agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::StatusCode;
use node::local::{Answer, refused};
use tokio::sync::{mpsc, oneshot};

use crate::status::Status;

/// What the daemon is asked.
pub(super) enum Question {
    Status(oneshot::Sender<Arc<Status>>),
}

/// Who knows the answers. Health is asked for often, and by those who would end us if they had to
/// wait.
#[derive(Clone)]
pub(super) struct Whom {
    pub(super) questions: mpsc::Sender<Question>,
    pub(super) is_ready: Arc<AtomicBool>,
}

impl node::local::Daemon for Whom {
    type Status = Status;
    const ROLE: &'static str = "agent";
    const PAGES: &'static str = "/status and /metrics are here";

    async fn status(&self) -> Option<Arc<Status>> {
        let (answer, told) = oneshot::channel();
        self.questions.send(Question::Status(answer)).await.ok()?;
        told.await.ok()
    }

    fn metrics(status: &Status) -> String {
        super::metrics::text(status)
    }

    fn is_ready(&self) -> Option<bool> {
        (!self.questions.is_closed()).then(|| self.is_ready.load(Ordering::Relaxed))
    }

    async fn page(&self, path: &str, _: &str) -> Option<Answer> {
        match path {
            "/ping" => Some(refused(
                StatusCode::NOT_FOUND,
                "an agent has no links of its own to measure",
                "ask on a gateway of this site; `causeway status` here shows the round trip to each gateway",
            )),
            _ => None,
        }
    }
}
