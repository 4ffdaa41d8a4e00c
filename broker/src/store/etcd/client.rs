//! HTTP to etcd's JSON gateway: one request, one answer, one of several endpoints, with deadlines.
//! Where etcd asks for a login, every request carries its token.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::lookup_host;
use tokio::time::{Instant, sleep, timeout};

use super::access::{Access, Tls};
use super::dial::{Sender, dial, why};
use super::keys::Location;
use super::login::Login;
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

#[derive(Debug)]
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    login: Option<Login>,
    /// For the text of errors.
    prefix: String,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    /// What the name led to last. The fence opens the resolver's files as they were at start: when
    /// one is replaced, names cannot be looked up any more, and etcd is where it was.
    found: Mutex<Vec<SocketAddr>>,
    tls: Option<Tls>,
    idle: Mutex<Vec<Sender>>,
}

/// An answer that ends when etcd ends it: lines of JSON.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    read: BytesMut,
    pub(super) endpoint: usize,
    token: Option<HeaderValue>,
}

#[derive(Debug)]
pub(super) enum CallError {
    /// No endpoint answered in time; what was asked for may yet happen.
    Down(String),
    /// etcd answered with an error that another endpoint would give too.
    Refused(Failure),
}

impl Client {
    pub(super) fn new(location: &Location, access: &Access) -> Client {
        let endpoint = |address: &String| Endpoint {
            address: address.clone(),
            tls: access.tls.clone(),
            found: Mutex::new(Vec::new()),
            idle: Mutex::new(Vec::new()),
        };
        Client {
            endpoints: location.endpoints.iter().map(endpoint).collect(),
            current: AtomicUsize::new(0),
            login: access.user.clone().map(Login::new),
            prefix: location.all(),
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
        let token = self.token(endpoint).await?;
        let first = self.call_as(endpoint, path, question, token.as_ref()).await;
        let answered = match first {
            Err(CallError::Refused(failure)) if failure.wants_login() && self.login.is_some() => {
                self.renew_login(token.as_ref()).await;
                let token = self.token(endpoint).await?;
                self.call_as(endpoint, path, question, token.as_ref()).await
            }
            other => other,
        };
        answered.map_err(|error| self.explain(error))
    }

    async fn call_as<T: DeserializeOwned>(
        &self,
        endpoint: usize,
        path: &str,
        question: &Value,
        token: Option<&HeaderValue>,
    ) -> Result<T, CallError> {
        let asked = self.endpoints[endpoint].ask(path, question, token);
        let bytes = within(ATTEMPT, asked).await?;
        // The gateway's streams end with a line end; those asked for here have one line.
        serde_json::from_slice(bytes.trim_ascii_end())
            .map_err(|error| CallError::Down(format!("an answer that is not etcd's: {error}")))
    }

    async fn token(&self, endpoint: usize) -> Result<Option<HeaderValue>, CallError> {
        let Some(login) = &self.login else {
            return Ok(None);
        };
        let authenticate = async |question: Value| {
            self.call_as(endpoint, "/v3/auth/authenticate", &question, None)
                .await
        };
        // Who waits for another's login waits no longer than for its own.
        within(ATTEMPT, login.token(authenticate)).await
    }

    /// The token that was used is not known any more.
    async fn renew_login(&self, used: Option<&HeaderValue>) {
        if let Some(login) = &self.login {
            login.renew(used).await;
        }
    }

    fn explain(&self, error: CallError) -> CallError {
        match error {
            CallError::Refused(failure) => CallError::Refused(self.explain_failure(failure)),
            CallError::Down(reason) => CallError::Down(reason),
        }
    }

    /// In words that say what to do.
    fn explain_failure(&self, failure: Failure) -> Failure {
        let message = match &self.login {
            None if failure.wants_login() => "it asks for a login: give --etcd-user NAME and                  --etcd-password-file FILE"
                .to_owned(),
            Some(login) if failure.is_denied() => format!(
                "user {} may not read and write below {}: `etcdctl role grant-permission ROLE                  readwrite {} --prefix` for one of the user's roles",
                login.user.name, self.prefix, self.prefix
            ),
            None | Some(_) => return failure,
        };
        Failure { message, ..failure }
    }

    /// An answer without an end, on a connection of its own.
    pub(super) async fn stream(
        &self,
        endpoint: usize,
        path: &str,
        question: &Value,
    ) -> Result<Lines, CallError> {
        let token = self.token(endpoint).await?;
        let at = &self.endpoints[endpoint];
        let opened = within(ATTEMPT, at.open(path, question, token.as_ref())).await;
        match opened {
            Ok(body) => Ok(Lines {
                body,
                read: BytesMut::new(),
                endpoint,
                token,
            }),
            Err(CallError::Refused(failure)) => {
                self.renew_login(token.as_ref()).await;
                Err(self.explain(CallError::Refused(failure)))
            }
            Err(CallError::Down(reason)) => Err(CallError::Down(reason)),
        }
    }

    /// etcd has ended a stream of its own will, with this reason. It may be for the login, which
    /// old etcds do not tell apart from what a user may not do.
    pub(super) async fn handle_ended(&self, lines: &Lines, reason: String) -> String {
        let failure = Failure::of_text(reason);
        if failure.wants_login() || failure.is_denied() {
            self.renew_login(lines.token.as_ref()).await;
        }
        self.explain_failure(failure).message
    }
}

async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    match timeout(limit, asked).await {
        Ok(answered) => answered,
        Err(_) => Err(CallError::Down(format!(
            "no answer within {} ms",
            limit.as_millis()
        ))),
    }
}

impl Endpoint {
    async fn ask(
        &self,
        path: &str,
        question: &Value,
        token: Option<&HeaderValue>,
    ) -> Result<Bytes, CallError> {
        // One that lay idle may have been closed meanwhile: that says nothing about the endpoint.
        while let Some(mut sender) = self.take_idle() {
            if let Ok(response) = self.send(&mut sender, path, question, token).await {
                return self.collect(sender, response).await;
            }
        }
        let mut sender = self.dial().await?;
        let response = self
            .send(&mut sender, path, question, token)
            .await
            .map_err(CallError::Down)?;
        self.collect(sender, response).await
    }

    async fn open(
        &self,
        path: &str,
        question: &Value,
        token: Option<&HeaderValue>,
    ) -> Result<Incoming, CallError> {
        let mut sender = self.dial().await?;
        let response = self
            .send(&mut sender, path, question, token)
            .await
            .map_err(CallError::Down)?;
        if response.status() != StatusCode::OK {
            self.collect(sender, response).await?;
            return Err(CallError::Down("an answer that is no stream".to_owned()));
        }
        Ok(response.into_body())
    }

    async fn dial(&self) -> Result<Sender, CallError> {
        let addresses = self.look_up().await.map_err(CallError::Down)?;
        dial(&addresses, &self.address, self.tls.as_ref())
            .await
            .map_err(CallError::Down)
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, String> {
        let found = lookup_host(&self.address).await;
        let mut last = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match found.map(Iterator::collect::<Vec<_>>) {
            Ok(addresses) if !addresses.is_empty() => last.clone_from(&addresses),
            Err(error) if last.is_empty() => return Err(error.to_string()),
            Ok(_) | Err(_) => {}
        }
        Ok(last.clone())
    }

    async fn send(
        &self,
        sender: &mut Sender,
        path: &str,
        question: &Value,
        token: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::post(path)
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(question.to_string())))
            .map_err(|error| error.to_string())?;
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let why = |error: hyper::Error| why(&error, self.tls.as_ref());
        sender.ready().await.map_err(why)?;
        sender.send_request(request).await.map_err(why)
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
        let failure: Failure =
            serde_json::from_slice(&body).map_err(|_| CallError::Down(no_json(status, &body)))?;
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

/// What does not come from etcd's gateway but from the HTTP server before it.
fn no_json(status: StatusCode, body: &[u8]) -> String {
    let has = |text: &str| body.windows(text.len()).any(|part| part == text.as_bytes());
    if has("HTTPS server") {
        "it speaks TLS: write etcds:// and give --etcd-ca FILE".to_owned()
    } else if has("CommonName of client") {
        "with logins its gateway takes no client certificate that has a common name (CN): have \
         the one of --etcd-cert made anew with another subject, like /O=causeway"
            .to_owned()
    } else {
        format!("HTTP status {status}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_any_more_leads_where_it_led() {
        let mut endpoint = Endpoint {
            address: "127.0.0.1:1".to_owned(),
            found: Mutex::new(Vec::new()),
            tls: None,
            idle: Mutex::new(Vec::new()),
        };
        let found = endpoint.look_up().await.unwrap();
        assert_eq!(found, ["127.0.0.1:1".parse().unwrap()]);
        endpoint.address = "no-such-host.invalid:1".to_owned();
        assert_eq!(endpoint.look_up().await.unwrap(), found);
        *endpoint.found.get_mut().unwrap() = Vec::new();
        assert!(endpoint.look_up().await.is_err());
    }
}
