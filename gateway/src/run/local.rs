//! How others on this host ask: HTTP on a Unix socket, and metrics and health on TCP.

mod socket;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::status::{Pong, Refusal, Status};
pub(super) use socket::{LocalSocket, SocketError};

const MOST_CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(5);
/// Longer than the longest ping takes.
const CONNECTION: Duration = Duration::from_secs(60);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
/// Answers that wait for whoever asked.
const PONGS: usize = 256;
const DEFAULT_COUNT: u32 = 4;

/// What the daemon is asked.
pub(super) enum Question {
    Status(oneshot::Sender<Arc<Status>>),
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

/// Who asks: over TCP nothing is shown that names addresses or keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Local,
    Tcp,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves until it is dropped.
pub(super) async fn serve_local(socket: LocalSocket, whom: Whom) {
    let mut connections = Connections::default();
    loop {
        let accepted = socket.listener.accept().await.map(|(stream, _)| stream);
        connections.take(accepted, Door::Local, &whom).await;
    }
}

pub(super) async fn serve_tcp(listener: TcpListener, whom: Whom) {
    let mut connections = Connections::default();
    loop {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        connections.take(accepted, Door::Tcp, &whom).await;
    }
}

/// The oldest first. Whoever comes is taken: many who only hold a connection keep nobody out.
#[derive(Default)]
struct Connections(Vec<Connection>);

struct Connection {
    task: AbortHandle,
    /// Held once here, and once by each answer that is under way.
    busy: Arc<()>,
}

impl Connections {
    async fn take<S>(&mut self, accepted: io::Result<S>, door: Door, whom: &Whom)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // A shortage of descriptors passes; until then this must not be a busy loop.
                tracing::debug!("http: cannot take a connection: {error}");
                return tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        };
        self.make_room();
        let busy = Arc::new(());
        let task = tokio::spawn(serve(stream, door, whom.clone(), Arc::downgrade(&busy)));
        self.0.push(Connection {
            task: task.abort_handle(),
            busy,
        });
    }

    /// Closes one that asks nothing at present, if there is such a one.
    fn make_room(&mut self) {
        self.0.retain(|connection| !connection.task.is_finished());
        if self.0.len() >= MOST_CONNECTIONS {
            let mut all = self.0.iter();
            let idle = all.position(|connection| Arc::strong_count(&connection.busy) == 1);
            self.0.remove(idle.unwrap_or(0)).task.abort();
        }
    }
}

async fn serve<S>(stream: S, door: Door, whom: Whom, busy: Weak<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let (whom, busy) = (whom.clone(), busy.upgrade());
        async move {
            let answer = answer(&request, door, &whom).await;
            Ok::<_, Infallible>(answer.map(|body| {
                body.map_frame(move |frame| {
                    let _until_the_end = &busy;
                    frame
                })
            }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION, connection).await {
        tracing::debug!("http: {error}");
    }
}

async fn answer<B>(request: &Request<B>, door: Door, whom: &Whom) -> Answer {
    let questions = &whom.questions;
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "only GET is known", "");
    }
    match (request.uri().path(), door) {
        ("/metrics", _) => match status(questions).await {
            Some(status) => page(StatusCode::OK, METRICS, super::metrics::text(&status)),
            None => ending(),
        },
        ("/health", Door::Tcp) => health(whom),
        ("/status", Door::Local) => match status(questions).await {
            Some(status) => json(StatusCode::OK, &*status),
            None => ending(),
        },
        ("/ping", Door::Local) => ping(request.uri().query().unwrap_or(""), questions).await,
        (_, Door::Local) => refused(
            StatusCode::NOT_FOUND,
            "there is no such page",
            "/status, /ping?site=NAME&count=N and /metrics are here",
        ),
        (_, Door::Tcp) => refused(
            StatusCode::NOT_FOUND,
            "there is no such page",
            "/metrics and /health are here",
        ),
    }
}

async fn status(questions: &mpsc::Sender<Question>) -> Option<Arc<Status>> {
    let (answer, told) = oneshot::channel();
    questions.send(Question::Status(answer)).await.ok()?;
    told.await.ok()
}

fn health(whom: &Whom) -> Answer {
    if whom.questions.is_closed() {
        return ending();
    }
    let (code, text) = if whom.is_ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready yet\n")
    };
    page(code, "text/plain; charset=utf-8", text.to_owned())
}

async fn ping(query: &str, questions: &mpsc::Sender<Question>) -> Answer {
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next()
    };
    let count = value("count").map_or(Ok(DEFAULT_COUNT), str::parse);
    let (Some(site), Ok(count @ 1..=super::pings::MAX_COUNT)) = (value("site"), count) else {
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
        return ending();
    }
    match is_taken.await {
        Ok(Ok(())) => lines(told),
        Ok(Err(refusal)) => json(StatusCode::NOT_FOUND, &refusal),
        Err(_) => ending(),
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

fn json(code: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => page(code, JSON, text + "\n"),
        Err(error) => page(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
}

fn refused(code: StatusCode, what: &str, next: &str) -> Answer {
    let refusal = Refusal {
        what: what.to_owned(),
        next: next.to_owned(),
    };
    json(code, &refusal)
}

fn ending() -> Answer {
    refused(
        StatusCode::SERVICE_UNAVAILABLE,
        "the gateway is ending",
        "start it again",
    )
}

fn page(code: StatusCode, kind: &'static str, text: String) -> Answer {
    typed(code, kind, Full::new(Bytes::from(text)).boxed())
}

fn typed(code: StatusCode, kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let length = body.size_hint().exact();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    if let Some(length) = length {
        // Said here: what the body is wrapped in later hides it.
        let length = HeaderValue::from(length);
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn health_is_told_while_the_event_loop_is_busy() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        // Nobody takes the questions.
        let (questions, taken) = mpsc::channel(1);
        let is_ready = Arc::<AtomicBool>::default();
        let whom = Whom {
            questions,
            is_ready: is_ready.clone(),
        };
        let ask = || {
            let request = Request::get("/health").body(()).unwrap();
            runtime
                .block_on(answer(&request, Door::Tcp, &whom))
                .status()
        };
        assert_eq!(ask(), StatusCode::SERVICE_UNAVAILABLE);
        is_ready.store(true, Ordering::Relaxed);
        assert_eq!(ask(), StatusCode::OK);
        drop(taken);
        assert_eq!(ask(), StatusCode::SERVICE_UNAVAILABLE);
    }
    #[tokio::test]
    async fn idle_connections_keep_nobody_out_and_are_closed_before_one_that_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (questions, mut taken) = mpsc::channel(1);
        let whom = Whom {
            questions,
            is_ready: Arc::new(AtomicBool::new(true)),
        };
        let served = tokio::spawn(serve_tcp(listener, whom));
        let ask = async |page: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        };
        let mut waiting = ask("/metrics").await;
        // The question is kept, so the answer stays under way.
        let question = taken.recv().await.unwrap();
        let mut idle = vec![];
        for _ in 0..MOST_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut text = String::new();
        let mut healthy = ask("/health").await;
        let answered = tokio::time::timeout(HEAD / 2, healthy.read_to_string(&mut text));
        assert!(answered.await.unwrap().unwrap() > 0);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(text.contains("content-length: "), "not in chunks: {text}");
        assert_eq!(idle[0].read(&mut [0]).await.unwrap(), 0);
        drop(question);
        text.clear();
        waiting.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");
        served.abort();
    }
}
