//! How others on this host ask a daemon: HTTP on a Unix socket, and metrics and health on TCP. With
//! it what else a daemon has to do with its host: signals, and the service manager.

pub mod metrics;
pub mod notify;
pub mod signals;
mod socket;

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::status::Refusal;
pub use socket::{LocalSocket, SocketError};

const MOST_CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(5);
/// Longer than the longest answer takes.
const CONNECTION: Duration = Duration::from_secs(60);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// A daemon that is asked. What it answers slowly it answers as a question to its event loop; health
/// is asked for often, and by those who would end it if they had to wait.
pub trait Daemon: Clone + Send + Sync + 'static {
    type Status: Serialize + Send + Sync;
    /// As in a sentence: `gateway`.
    const ROLE: &'static str;
    /// What the local socket has.
    const PAGES: &'static str;

    /// `None` once it is ending.
    fn status(&self) -> impl Future<Output = Option<Arc<Self::Status>>> + Send;
    /// As Prometheus reads it.
    fn metrics(status: &Self::Status) -> String;
    /// `None` once it is ending.
    fn is_ready(&self) -> Option<bool>;
    /// What only this kind of daemon has, on its local socket; `None` if there is no such page.
    fn page(&self, path: &str, query: &str) -> impl Future<Output = Option<Answer>> + Send;
}

/// Who asks: over TCP nothing is shown that names addresses or keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Local,
    Tcp,
}

pub type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves until it is dropped.
pub async fn serve_local<D: Daemon>(socket: LocalSocket, whom: D) {
    let mut connections = Connections::default();
    loop {
        let accepted = socket.listener.accept().await.map(|(stream, _)| stream);
        connections.take(accepted, Door::Local, &whom).await;
    }
}

pub async fn serve_tcp<D: Daemon>(listener: TcpListener, whom: D) {
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
    async fn take<S, D>(&mut self, accepted: io::Result<S>, door: Door, whom: &D)
    where
        D: Daemon,
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

async fn serve<S, D>(stream: S, door: Door, whom: D, busy: Weak<()>)
where
    D: Daemon,
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

async fn answer<B, D: Daemon>(request: &Request<B>, door: Door, whom: &D) -> Answer {
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "only GET is known", "");
    }
    let path = request.uri().path();
    match (path, door) {
        ("/metrics", _) => match whom.status().await {
            Some(status) => text(StatusCode::OK, METRICS, D::metrics(&status)),
            None => ending(D::ROLE),
        },
        ("/health", Door::Tcp) => health(whom),
        ("/status", Door::Local) => match whom.status().await {
            Some(status) => json(StatusCode::OK, &*status),
            None => ending(D::ROLE),
        },
        (_, Door::Local) => {
            let query = request.uri().query().unwrap_or("");
            let page = whom.page(path, query).await;
            page.unwrap_or_else(|| no_such_page(D::PAGES))
        }
        (_, Door::Tcp) => no_such_page("/metrics and /health are here"),
    }
}

fn no_such_page(there_are: &str) -> Answer {
    refused(StatusCode::NOT_FOUND, "there is no such page", there_are)
}

fn health<D: Daemon>(whom: &D) -> Answer {
    let (code, words) = match whom.is_ready() {
        None => return ending(D::ROLE),
        Some(true) => (StatusCode::OK, "ready\n"),
        Some(false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready yet\n"),
    };
    text(code, "text/plain; charset=utf-8", words.to_owned())
}

/// The value of a name in `a=1&b=2`.
pub fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

pub fn json(code: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(words) => text(code, JSON, words + "\n"),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
}

pub fn refused(code: StatusCode, what: &str, next: &str) -> Answer {
    let refusal = Refusal {
        what: what.to_owned(),
        next: next.to_owned(),
    };
    json(code, &refusal)
}

pub fn ending(role: &str) -> Answer {
    refused(
        StatusCode::SERVICE_UNAVAILABLE,
        &format!("the {role} is ending"),
        "start it again",
    )
}

fn text(code: StatusCode, kind: &'static str, words: String) -> Answer {
    typed(code, kind, Full::new(Bytes::from(words)).boxed())
}

/// With a body that may grow with time.
pub fn typed(code: StatusCode, kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
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

/// What no error should keep from serving.
pub fn harden() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!("cannot keep keys out of core dumps: {error}");
    }
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the number of open files to what the system allows: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[derive(Clone)]
    struct Whom {
        questions: mpsc::Sender<oneshot::Sender<Arc<()>>>,
        is_ready: Arc<AtomicBool>,
    }

    impl Daemon for Whom {
        type Status = ();
        const ROLE: &'static str = "test";
        const PAGES: &'static str = "";

        async fn status(&self) -> Option<Arc<()>> {
            let (answer, told) = oneshot::channel();
            self.questions.send(answer).await.ok()?;
            told.await.ok()
        }

        fn metrics((): &()) -> String {
            String::new()
        }

        fn is_ready(&self) -> Option<bool> {
            (!self.questions.is_closed()).then(|| self.is_ready.load(Ordering::Relaxed))
        }

        async fn page(&self, _: &str, _: &str) -> Option<Answer> {
            None
        }
    }

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

    #[test]
    fn a_value_is_found_by_its_whole_name() {
        assert_eq!(value("site=a&count=3", "count"), Some("3"));
        assert_eq!(value("xcount=3&count", "count"), None);
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
