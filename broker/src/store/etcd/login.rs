//! A user's token, fetched when etcd asks for one. etcd forgets tokens: after a while, and when a
//! member starts anew.

use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::access::User;
use super::client::CallError;
use super::wire::Failure;

/// A refused login is not tried sooner: etcd checks a password with much work.
const REFUSED_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Login {
    pub(super) user: User,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Out,
    In(HeaderValue),
    /// etcd asks nobody who they are.
    NotAsked,
    Refused {
        at: Instant,
        failure: Failure,
    },
}

#[derive(Debug, Deserialize)]
pub(super) struct Authenticated {
    token: String,
}

impl Login {
    pub(super) fn new(user: User) -> Login {
        Login {
            user,
            state: Mutex::new(State::Out),
        }
    }

    /// The token, or none where etcd wants none. One caller asks etcd, the others wait for it.
    pub(super) async fn token(
        &self,
        authenticate: impl AsyncFnOnce(Value) -> Result<Authenticated, CallError>,
    ) -> Result<Option<HeaderValue>, CallError> {
        let mut state = self.state.lock().await;
        match &*state {
            State::In(token) => return Ok(Some(token.clone())),
            State::NotAsked => return Ok(None),
            State::Refused { at, failure } if at.elapsed() < REFUSED_FOR => {
                return Err(CallError::Refused(failure.clone()));
            }
            State::Refused { .. } | State::Out => {}
        }
        let question = json!({
            "name": self.user.name,
            "password": self.user.password.as_str(),
        });
        let (next, told) = match authenticate(question).await {
            Ok(answer) => {
                let token = read_token(&answer)?;
                (State::In(token.clone()), Ok(Some(token)))
            }
            Err(CallError::Refused(failure)) if failure.is_authentication_off() => {
                warn!(
                    "etcd asks for no login although --etcd-user is given: whoever reaches it can \
                     write there; `etcdctl auth enable` changes that"
                );
                (State::NotAsked, Ok(None))
            }
            Err(CallError::Refused(failure)) => {
                let at = Instant::now();
                let failure = self.explain(failure);
                let told = Err(CallError::Refused(failure.clone()));
                (State::Refused { at, failure }, told)
            }
            Err(error @ CallError::Down(_)) => return Err(error),
        };
        *state = next;
        told
    }

    /// Unless another caller has logged in anew already.
    pub(super) async fn renew(&self, used: Option<&HeaderValue>) {
        let mut state = self.state.lock().await;
        let is_current = match &*state {
            State::In(token) => used == Some(token),
            State::NotAsked => used.is_none(),
            State::Out | State::Refused { .. } => false,
        };
        if is_current {
            *state = State::Out;
        }
    }

    fn explain(&self, failure: Failure) -> Failure {
        Failure {
            message: format!(
                "the login of user {} is refused ({}): put right --etcd-user or the password in {}",
                self.user.name,
                failure.message,
                self.user.password_file.display()
            ),
            ..failure
        }
    }
}

fn read_token(answer: &Authenticated) -> Result<HeaderValue, CallError> {
    let mut token = HeaderValue::from_str(&answer.token)
        .map_err(|_| CallError::Down("a token that is not etcd's".to_owned()))?;
    // Shown nowhere, and in no index of headers.
    token.set_sensitive(true);
    Ok(token)
}
