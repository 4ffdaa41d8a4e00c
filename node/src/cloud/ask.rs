//! Short questions over plain HTTP, and answers that may be anything at all.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Source;

/// Where all three clouds have it.
const USUAL: &str = "169.254.169.254:80";
/// What is asked for is shorter than a line.
const MOST: usize = 4096;
/// Of the head of an answer.
const MOST_HEAD: usize = 16 * 1024;

pub(super) struct Service {
    address: String,
}

pub(super) struct Get<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// Without it the services refuse, so that no page in a browser can ask.
    pub(super) header: (&'a str, &'a str),
    /// A header that a true answer carries.
    pub(super) marked_by: Option<(&'a str, &'a str)>,
}

impl Service {
    pub(super) fn of(source: &Source) -> Option<Service> {
        let address = match source {
            Source::Usual => USUAL.to_owned(),
            Source::At(address) => address.clone(),
            Source::Off => return None,
        };
        Some(Service { address })
    }

    /// The body of a good answer.
    pub(super) async fn text(&self, get: &Get<'_>) -> Option<String> {
        let answer = self.ask(get).await;
        if let Err(why) = &answer {
            tracing::debug!(at = self.address, path = get.path, %why, "no metadata");
        }
        answer.ok()
    }

    /// A connection for each: the services close theirs as they like.
    async fn ask(&self, get: &Get<'_>) -> Result<String, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let stream = TcpStream::connect(&self.address).await;
        let stream = TokioIo::new(stream.map_err(|error| text(&error))?);
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MOST_HEAD)
            .handshake(stream)
            .await
            .map_err(|error| text(&error))?;
        let (header, value) = get.header;
        let request = Request::builder()
            .method(get.method)
            .uri(get.path)
            .header(HOST, &self.address)
            .header(header, value)
            .body(Empty::<Bytes>::new())
            .map_err(|error| text(&error))?;
        let answer = async {
            let response = sender.send_request(request).await;
            let response = response.map_err(|error| text(&error))?;
            if response.status() != StatusCode::OK {
                return Err(format!("it answers {}", response.status()));
            }
            if let Some((header, value)) = get.marked_by
                && response
                    .headers()
                    .get(header)
                    .is_none_or(|found| found != value)
            {
                return Err(format!("its answer has no {header}: {value}"));
            }
            let body = Limited::new(response.into_body(), MOST).collect().await;
            let body = body.map_err(|error| text(&error))?.to_bytes();
            String::from_utf8(body.to_vec()).map_err(|error| text(&error))
        };
        // Whichever is first: the connection must be driven for the answer to come.
        let mut answer = std::pin::pin!(answer);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            _ended = &mut connection => {}
        }
        // What had come before the end is still to be read.
        answer.await
    }
}
