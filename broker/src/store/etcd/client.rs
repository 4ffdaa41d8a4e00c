//! HTTP to etcd's JSON gateway: one request, one answer, one of several endpoints, with deadlines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::wire::Failure;
use crate::store::StoreError;

/// For one endpoint. A leader's death is settled in about this time.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// For all of them.
const CALL: Duration = Duration::from_secs(5);
/// Between rounds over all endpoints.
const PAUSE: Duration = Duration::from_millis(50);
const MAX_ANSWER: usize = 64 << 20;
const IDLE_CONNECTIONS: usize = 16;

type Sender = SendRequest<Full<Bytes>>;

#[derive(Debug)]
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    idle: Mutex<Vec<Sender>>,
}

/// An answer that ends when etcd ends it: lines of JSON.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    read: BytesMut,
    pub(super) endpoint: usize,
}

#[derive(Debug)]
pub(super) enum CallError {
    /// No endpoint answered in time; what was asked for may yet happen.
    Down(String),
    /// etcd answered with an error that another endpoint would give too.
    Refused(Failure),
}

impl Client {
    pub(super) fn new(endpoints: Vec<String>) -> Client {
        Client {
            endpoints: endpoints
                .into_iter()
                .map(|address| Endpoint {
                    address,
                    idle: Mutex::new(Vec::new()),
                })
                .collect(),
            current: AtomicUsize::new(0),
        }
    }

    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.endpoints.len()
    }

    pub(super) fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// Unless another call has left it already.
    pub(super) fn leave(&self, endpoint: usize) {
        let next = (endpoint + 1) % self.endpoints.len();
        let _ = self
            .current
            .compare_exchange(endpoint, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Tries the endpoints in turn until one answers or the time is up.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Value,
    ) -> Result<T, CallError> {
        let deadline = Instant::now() + CALL;
        let mut reasons: Vec<Option<String>> = vec![None; self.endpoints.len()];
        loop {
            let endpoint = self.current();
            match self.call_one(endpoint, path, question).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Refused(failure)) => return Err(CallError::Refused(failure)),
                Err(CallError::Down(reason)) => {
                    if reasons[endpoint].replace(reason).is_some() {
                        sleep(PAUSE).await;
                    }
                    self.leave(endpoint);
                }
            }
            if Instant::now() >= deadline {
                return Err(CallError::Down(self.summary(&reasons)));
            }
        }
    }

    fn summary(&self, reasons: &[Option<String>]) -> String {
        let told: Vec<_> = self
            .endpoints
            .iter()
            .zip(reasons)
            .filter_map(|(endpoint, reason)| {
                Some(format!("{}: {}", endpoint.address, reason.as_ref()?))
            })
            .collect();
        told.join("; ")
    }

    pub(super) async fn call_one<T: DeserializeOwned>(
        &self,
        endpoint: usize,
        path: &str,
        question: &Value,
    ) -> Result<T, CallError> {
        let asked = timeout(ATTEMPT, self.ask(endpoint, path, question));
        let bytes = match asked.await {
            Ok(answered) => answered?,
            Err(_) => {
                return Err(CallError::Down(format!(
                    "no answer within {} ms",
                    ATTEMPT.as_millis()
                )));
            }
        };
        // The gateway's streams end with a line end; those asked for here have one line.
        serde_json::from_slice(bytes.trim_ascii_end())
            .map_err(|error| CallError::Down(format!("an answer that is not etcd's: {error}")))
    }

    async fn ask(&self, endpoint: usize, path: &str, question: &Value) -> Result<Bytes, CallError> {
        let endpoint = &self.endpoints[endpoint];
        // One that lay idle may have been closed meanwhile: that says nothing about the endpoint.
        while let Some(mut sender) = endpoint.take_idle() {
            if let Ok(response) = endpoint.send(&mut sender, path, question).await {
                return endpoint.collect(sender, response).await;
            }
        }
        let mut sender = endpoint.dial().await.map_err(CallError::Down)?;
        let response = endpoint
            .send(&mut sender, path, question)
            .await
            .map_err(|error| CallError::Down(error.to_string()))?;
        endpoint.collect(sender, response).await
    }

    /// An answer without an end, on a connection of its own.
    pub(super) async fn stream(
        &self,
        endpoint: usize,
        path: &str,
        question: &Value,
    ) -> Result<Lines, CallError> {
        let opening = async {
            let at = &self.endpoints[endpoint];
            let mut sender = at.dial().await.map_err(CallError::Down)?;
            let response = at
                .send(&mut sender, path, question)
                .await
                .map_err(|error| CallError::Down(error.to_string()))?;
            if response.status() != StatusCode::OK {
                at.collect(sender, response).await?;
                return Err(CallError::Down("an answer that is no stream".to_owned()));
            }
            Ok(Lines {
                body: response.into_body(),
                read: BytesMut::new(),
                endpoint,
            })
        };
        match timeout(ATTEMPT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(CallError::Down("no answer in time".to_owned())),
        }
    }
}

impl Endpoint {
    async fn dial(&self) -> Result<Sender, String> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| error.to_string())?;
        // Without it small requests wait for acknowledgements.
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Ends with the sender; its errors reach who waits for the answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(
        &self,
        sender: &mut Sender,
        path: &str,
        question: &Value,
    ) -> Result<Response<Incoming>, String> {
        let request = Request::post(path)
            .header(hyper::header::HOST, &self.address)
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(question.to_string())))
            .map_err(|error| error.to_string())?;
        sender.ready().await.map_err(|error| error.to_string())?;
        sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())
    }

    async fn collect(
        &self,
        sender: Sender,
        response: Response<Incoming>,
    ) -> Result<Bytes, CallError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| CallError::Down(error.to_string()))?
            .to_bytes();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS && !sender.is_closed() {
            idle.push(sender);
        }
        drop(idle);
        if status == StatusCode::OK {
            return Ok(body);
        }
        let failure: Failure = serde_json::from_slice(&body)
            .map_err(|_| CallError::Down(format!("HTTP status {status}")))?;
        if failure.is_final() {
            Err(CallError::Refused(failure))
        } else {
            Err(CallError::Down(failure.message))
        }
    }

    fn take_idle(&self) -> Option<Sender> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }
}

impl Lines {
    /// None when etcd has ended it. Loses nothing when dropped while it waits.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.read.split_to(end + 1).freeze()));
            }
            if self.read.len() > MAX_ANSWER {
                return Err("a line without an end".to_owned());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error.to_string()),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> StoreError {
        match error {
            CallError::Down(reasons) => StoreError::Down(format!(
                "etcd cannot be used now ({reasons}); nothing more is acknowledged until it can \
                 be, and it is tried again"
            )),
            CallError::Refused(failure) => {
                StoreError::Down(format!("etcd refused a request: {}", failure.message))
            }
        }
    }
}
