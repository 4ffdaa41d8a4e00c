//! What others on this host ask a gateway.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Frame};
use node::local::{Answer, ending, json, refused, typed, value};
use node::status::Refusal;
use tokio::sync::{mpsc, oneshot};

use crate::status::{Passage, Pong, Status};

const LINES: &str = "application/x-ndjson";
/// Answers that wait for whoever asked.
const PONGS: usize = 256;
const DEFAULT_COUNT: u32 = 4;
const ROLE: &str = "gateway";

/// What the daemon is asked.
pub(super) enum Question {
    Status(oneshot::Sender<Arc<Status>>),
    /// Whether the kernel passes on what comes out of the tunnel; it is tried.
    Passage(oneshot::Sender<Arc<Passage>>),
    Ping {
        site: String,
        count: u32,
        answers: mpsc::Sender<Pong>,
        taken: oneshot::Sender<Result<(), Refusal>>,
    },
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
    const ROLE: &'static str = ROLE;
    const PAGES: &'static str = "/status, /ping?site=NAME&count=N, /passage and /metrics are here";

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

    async fn page(&self, path: &str, query: &str) -> Option<Answer> {
        match path {
            "/ping" => Some(ping(query, &self.questions).await),
            "/passage" => Some(passage(&self.questions).await),
            _ => None,
        }
    }
}

async fn passage(questions: &mpsc::Sender<Question>) -> Answer {
    let (answer, told) = oneshot::channel();
    if questions.send(Question::Passage(answer)).await.is_err() {
        return ending(ROLE);
    }
    match told.await {
        Ok(passage) => json(StatusCode::OK, &*passage),
        Err(_) => ending(ROLE),
    }
}

async fn ping(query: &str, questions: &mpsc::Sender<Question>) -> Answer {
    let count = value(query, "count").map_or(Ok(DEFAULT_COUNT), str::parse);
    let (Some(site), Ok(count @ 1..=super::pings::MAX_COUNT)) = (value(query, "site"), count)
    else {
        return refused(
            StatusCode::BAD_REQUEST,
            "a ping needs a site, and a count from 1 to 100",
            "ask for /ping?site=NAME&count=N",
        );
    };
    let (answers, told) = mpsc::channel(PONGS);
    let (taken, is_taken) = oneshot::channel();
    let question = Question::Ping {
        site: site.to_owned(),
        count,
        answers,
        taken,
    };
    if questions.send(question).await.is_err() {
        return ending(ROLE);
    }
    match is_taken.await {
        Ok(Ok(())) => lines(told),
        Ok(Err(refusal)) => json(StatusCode::NOT_FOUND, &refusal),
        Err(_) => ending(ROLE),
    }
}

/// A body that grows with every answer.
struct Pongs(mpsc::Receiver<Pong>);

impl Body for Pongs {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|pong| {
            let mut line = serde_json::to_vec(&pong?).unwrap_or_default();
            line.push(b'\n');
            Some(Ok(Frame::data(line.into())))
        })
    }
}

fn lines(pongs: mpsc::Receiver<Pong>) -> Answer {
    typed(StatusCode::OK, LINES, Pongs(pongs).boxed())
}
