//! One conversation with one broker, over TLS or the broker's local socket. Every step has a
//! deadline, and every failure names the address and the reason.

mod connect;
mod error;
mod halves;
mod lists;
mod through;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use proto::codec;
use proto::enrolment::JoinProof;
use proto::frame::{FrameReader, frame};
use proto::hello::{SPOKEN, WITH_RELAY, Welcome};
use proto::key::{Domain, SigningKey};
use proto::message::{Answer, Authenticate, Call, Enrol, Push, Reply, Request, Who};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

pub use connect::dial;
pub use error::{Failure, Why};
pub(crate) use halves::{Receiving, Sending};
pub(crate) use lists::MAX_HEADS;
pub(crate) use through::MAX_THROUGH;
pub use through::Ways;

/// For a name to resolve, a connection to open, TLS, and the hello: each.
pub const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// For the reply to a request, and for a request to be taken.
pub const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// Pushes that may arrive before a reply that was asked for.
const MAX_EARLY_PUSHES: usize = 64;
const READ_SIZE: usize = 16 * 1024;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// After an error it is of no more use, save after [`Why::Refused`].
pub struct Session {
    address: String,
    stream: Box<dyn Stream>,
    frames: FrameReader,
    buffer: Box<[u8; READ_SIZE]>,
    /// `None` on the local socket, which needs no signature.
    exporter: Option<[u8; 32]>,
    number: u32,
    early: VecDeque<Push>,
    welcome: Welcome,
    /// Of the broker: the one it was reached at first, then others of its name. None if it was
    /// reached through a gateway.
    reached: Vec<SocketAddr>,
    /// The gateway that passes the bytes on.
    through: Option<String>,
}

impl Session {
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same for people, with the gateway in between if there is one.
    pub fn way(&self) -> String {
        match &self.through {
            Some(gateway) => format!("{} through gateway {gateway}", self.address),
            None => self.address.clone(),
        }
    }

    pub(crate) fn through(&self) -> Option<&str> {
        self.through.as_deref()
    }

    /// Where the broker serves on another port.
    pub fn addresses_at(&self, port: u16) -> Vec<SocketAddr> {
        let at = |address: &SocketAddr| SocketAddr::new(address.ip(), port);
        self.reached.iter().map(at).collect()
    }

    /// Whether the broker speaks of relaying at all; one that does not would hang up when asked.
    pub(crate) fn knows_relay(&self) -> bool {
        let agreed = SPOKEN.agree(self.welcome.versions);
        agreed.is_ok_and(|version| version >= WITH_RELAY)
    }

    pub fn welcome(&self) -> Welcome {
        self.welcome
    }

    /// The enrolment's bytes; the caller checks them.
    pub async fn enrol(
        &mut self,
        grant: &[u8],
        proof: &JoinProof,
        join_key: &SigningKey,
        identity: &SigningKey,
    ) -> Result<Vec<u8>, Failure> {
        let exporter = self
            .exporter
            .ok_or(Why::NoExporter)
            .map_err(|why| self.failed(why))?;
        let request = Request::Enrol(Enrol {
            grant: grant.to_vec(),
            proof: proof.write(),
            join_session: join_key.sign(Domain::Session, &exporter).0,
            identity_session: identity.sign(Domain::Session, &exporter).0,
        });
        let reply = self.call(request).await?;
        let Reply::Enrolled { enrolment } = reply else {
            return Err(self.failed(Why::OutOfOrder));
        };
        Ok(enrolment)
    }

    pub async fn authenticate_node(
        &mut self,
        identity: &SigningKey,
        enrolment: &[u8],
    ) -> Result<(), Failure> {
        let who = Who::Node {
            identity: *identity.public().as_bytes(),
            enrolment: enrolment.to_vec(),
        };
        self.authenticate(who, identity).await
    }

    pub async fn authenticate_authority(&mut self, authority: &SigningKey) -> Result<(), Failure> {
        let who = Who::Authority {
            key: *authority.public().as_bytes(),
        };
        self.authenticate(who, authority).await
    }

    async fn authenticate(&mut self, who: Who, key: &SigningKey) -> Result<(), Failure> {
        let exporter = self
            .exporter
            .ok_or(Why::NoExporter)
            .map_err(|why| self.failed(why))?;
        let session = key.sign(Domain::Session, &exporter).0;
        let request = Request::Authenticate(Authenticate { who, session });
        let reply = self.call(request).await?;
        if !matches!(reply, Reply::Authenticated { .. }) {
            return Err(self.failed(Why::OutOfOrder));
        }
        Ok(())
    }

    /// Asks and waits for the reply. Pushes that come before it are kept for [`Session::next`].
    pub async fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let number = self.send(request).await?;
        let reply = timeout(REPLY_DEADLINE, self.reply(number)).await;
        let reply = match reply {
            Ok(reply) => reply,
            Err(_) => Err(Why::Silent(REPLY_DEADLINE)),
        };
        reply.map_err(|why| self.failed(why))
    }

    async fn reply(&mut self, wanted: u32) -> Result<Reply, Why> {
        loop {
            match self.answer().await? {
                Answer::Reply { number, reply } if number == wanted => {
                    if let Reply::Refused(refusal) = reply {
                        return Err(Why::Refused(refusal));
                    }
                    return Ok(reply);
                }
                Answer::Reply { .. } => return Err(Why::OutOfOrder),
                Answer::Push(_) if self.early.len() >= MAX_EARLY_PUSHES => {
                    return Err(Why::NoReply);
                }
                Answer::Push(push) => self.early.push_back(push),
                // They come after the reply that opens the relay.
                Answer::Open { .. } | Answer::Carried { .. } => return Err(Why::OutOfOrder),
            }
        }
    }

    /// Sends a request whose reply comes with [`Session::next`]; its number.
    pub async fn send(&mut self, request: Request) -> Result<u32, Failure> {
        self.number = self.number.wrapping_add(1);
        let call = Call {
            number: self.number,
            request,
        };
        let sent = match codec::encode(&call).map_err(Why::from) {
            Ok(content) => self.write(&content).await,
            Err(why) => Err(why),
        };
        sent.map_err(|why| self.failed(why))?;
        Ok(self.number)
    }

    /// The next push or reply; waits for ever. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Answer, Failure> {
        if let Some(push) = self.early.pop_front() {
            return Ok(Answer::Push(push));
        }
        self.answer().await.map_err(|why| self.failed(why))
    }

    /// Says goodbye; dropping it does as well, less politely.
    pub async fn close(mut self) {
        // The other side sees the end of the connection either way.
        let _closed = timeout(STEP_DEADLINE, self.stream.shutdown()).await;
    }

    async fn answer(&mut self) -> Result<Answer, Why> {
        let content = self.read().await?;
        Ok(codec::decode(&content)?)
    }

    async fn read(&mut self) -> Result<Vec<u8>, Why> {
        loop {
            if let Some(content) = self.frames.poll_frame()? {
                return Ok(content);
            }
            let length = self.stream.read(&mut self.buffer[..]).await?;
            if length == 0 {
                return Err(Why::Closed);
            }
            self.frames.handle_bytes(&self.buffer[..length]);
        }
    }

    async fn write(&mut self, content: &[u8]) -> Result<(), Why> {
        let bytes = frame(content)?;
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(REPLY_DEADLINE, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Why::Silent(REPLY_DEADLINE)),
        }
    }

    fn failed(&self, why: Why) -> Failure {
        Failure {
            address: self.address.clone(),
            why,
        }
    }
}
