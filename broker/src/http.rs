//! Metrics and health over HTTP, for this host only.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

const MOST_CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(60);
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is shown.
pub(crate) trait Shown: Send + Sync + 'static {
    fn metrics(&self) -> String;
    /// What is wrong, if something is.
    fn health(&self) -> Result<(), String>;
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, shown: Arc<impl Shown>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("http: cannot take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shown = Arc::clone(&shown);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &*shown);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION, connection).await {
                debug!("http: {error}");
            }
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, shown: &impl Shown) -> Response<Full<Bytes>> {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    // A page in somebody's browser may not read this through a name of its own (DNS rebinding).
    if !host.is_some_and(is_this_host) {
        return plain(
            StatusCode::FORBIDDEN,
            "ask for a loopback name or address\n".to_owned(),
        );
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let mut response = plain(StatusCode::OK, shown.metrics());
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(METRICS));
            response
        }
        "/healthz" => match shown.health() {
            Ok(()) => plain(StatusCode::OK, "ok\n".to_owned()),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            "/metrics and /healthz are here\n".to_owned(),
        ),
    }
}

fn is_this_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    struct Ill;

    impl Shown for Ill {
        fn metrics(&self) -> String {
            "counted 1\n".to_owned()
        }

        fn health(&self) -> Result<(), String> {
            Err("the store cannot write".to_owned())
        }
    }

    async fn get(path: &str, host: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Ill)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn health_says_what_is_wrong() {
        let answer = get("/healthz", "localhost:7880").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("the store cannot write\n"), "{answer}");
    }

    #[tokio::test]
    async fn metrics_are_shown() {
        let answer = get("/metrics", "127.0.0.1").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("counted 1\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_foreign_name_for_this_host_is_refused() {
        let answer = get("/metrics", "evil.example").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }

    #[test]
    fn this_host_has_names_and_addresses() {
        for ours in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.2:7880",
            "[::1]:7880",
            "[::1]",
        ] {
            assert!(is_this_host(ours), "{ours}");
        }
        for other in [
            "",
            "localhost.evil",
            "10.0.0.1",
            "[2001:db8::1]:1",
            "127.0.0.1.evil",
        ] {
            assert!(!is_this_host(other), "{other}");
        }
    }
}
