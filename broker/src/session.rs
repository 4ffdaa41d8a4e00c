//! One connection: hello, who the caller is, then its requests in order, and what it watches.

mod requests;
mod watching;

use std::future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::codec;
use proto::entry::GrantRole;
use proto::frame::MAX_FRAME;
use proto::hello::{Hello, HelloError, MAX_HELLO, SPOKEN, Welcome};
use proto::key::{Hash, MeshId, PublicKey};
use proto::message::{Answer, Call, Refusal, Reply, Request};
use proto::name::Name;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use crate::accept::Pass;
use crate::broker::{Broker, Ending, unix_now};
use crate::frames::{Frames, LinkError};
use crate::gate::Source;
use crate::metrics::Reason;
use crate::pace::Bucket;
use crate::reflector::Leave;
use crate::relay;
use crate::seats;
use crate::tls::Exporter;

use watching::Watching;

/// For a hello, and for the first message after it.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// For a caller who must first bring the ledger entries that make it known.
const CARRIES: Duration = Duration::from_secs(10);
/// Nodes ping far more often than this.
const IDLE: Duration = Duration::from_secs(60);
/// The largest first message, an enrolment with a grant of 256 prefixes, is below 12 KiB.
const MAX_FIRST: usize = 16 * 1024;

/// How a caller came.
pub(crate) struct Link {
    /// For the log.
    pub(crate) peer: String,
    pub(crate) source: Option<Source>,
    /// `None` on the Unix socket, where the kernel has said who it is.
    pub(crate) exporter: Option<Exporter>,
    pub(crate) pass: Option<Pass>,
}

enum Caller {
    Stranger,
    /// Has proven a key that this broker's ledger does not know: it may bring entries that do.
    Carrier {
        until: Instant,
        /// What it says it is the authority of.
        authority: Option<PublicKey>,
        _place: OwnedSemaphorePermit,
    },
    Node(Node),
    Authority(PublicKey),
    /// An operator on this host.
    Local,
}

#[derive(Clone)]
struct Node {
    identity: PublicKey,
    grant: Hash,
    site: Name,
    role: GrantRole,
}

struct Session<S> {
    broker: Arc<Broker>,
    frames: Frames<S>,
    link: Link,
    /// As the caller's hello names it.
    mesh: MeshId,
    caller: Caller,
    seat: Option<Seat>,
    watching: Option<Watching>,
    leave: Option<Leave>,
    relay: Option<relay::Seat>,
    requests: Bucket,
    publications: Bucket,
    /// Entries of the ledger from whoever is not the authority.
    ledgers: Bucket,
    heard: Instant,
    ending: watch::Receiver<Option<Ending>>,
}

/// A known caller's place; given back when dropped.
struct Seat {
    broker: Arc<Broker>,
    node: Option<(Node, seats::Taken)>,
}

/// Why a connection ends.
enum Closed {
    Link(LinkError),
    Hello(HelloError),
    Late(&'static str),
    Unreadable,
    Refused,
    Ended,
    Stopping,
}

enum Happened {
    Frame(Result<Bytes, LinkError>),
    Due,
    Relayed(Answer),
    Over(Closed),
}

enum Next {
    GoOn,
    Close,
}

/// Serves one connection to its end.
pub(crate) async fn run<S>(broker: Arc<Broker>, stream: S, link: Link)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let caller = match link.exporter {
        Some(_) => Caller::Stranger,
        None => Caller::Local,
    };
    let mut session = Session {
        ending: broker.ending(),
        frames: Frames::new(stream, MAX_HELLO),
        link,
        mesh: Hash([0; 32]),
        caller,
        seat: None,
        watching: None,
        leave: None,
        relay: None,
        requests: requests_of_known(),
        publications: Bucket::new(10, Duration::from_millis(100)),
        ledgers: Bucket::new(32, Duration::from_millis(500)),
        heard: Instant::now(),
        broker,
    };
    let closed = match session.greet().await {
        Ok(()) => session.serve().await,
        Err(closed) => closed,
    };
    session.report(&closed);
    // What others see of this caller ends now, not when it has said goodbye too.
    drop((session.seat, session.watching, session.leave, session.relay));
    session.frames.close().await;
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    async fn greet(&mut self) -> Result<(), Closed> {
        let hello = tokio::time::timeout(FIRST_MESSAGE, self.frames.read())
            .await
            .map_err(|_| Closed::Late("no hello"))?
            .map_err(Closed::Link)?;
        let hello = Hello::read(&hello).map_err(Closed::Hello)?;
        let mesh = self.broker.register().mesh().map(proto::mesh::Mesh::id);
        let welcome = Welcome {
            versions: SPOKEN,
            mesh: mesh.unwrap_or(Hash([0; 32])),
            now: unix_now(),
        };
        self.frames
            .write(&welcome.write())
            .await
            .map_err(Closed::Link)?;
        // Said after the welcome, from which the caller learns the same.
        SPOKEN.agree(hello.versions).map_err(Closed::Hello)?;
        self.mesh = hello.mesh;
        self.heard = Instant::now();
        let most = match self.caller {
            Caller::Local => MAX_FRAME,
            Caller::Stranger | Caller::Carrier { .. } | Caller::Node(_) | Caller::Authority(_) => {
                MAX_FIRST
            }
        };
        self.frames.allow(most);
        Ok(())
    }

    async fn serve(&mut self) -> Closed {
        loop {
            let deadline = self.deadline();
            let happened = tokio::select! {
                frame = self.frames.read() => Happened::Frame(frame),
                () = watching::due(&mut self.watching) => Happened::Due,
                answer = relayed(self.relay.as_ref()) => Happened::Relayed(answer),
                () = ends(self.seat.as_ref()) => Happened::Over(Closed::Ended),
                _ = self.ending.wait_for(Option::is_some) => Happened::Over(Closed::Stopping),
                () = sleep_until(deadline) => Happened::Over(Closed::Late("idle")),
            };
            let done = match happened {
                Happened::Frame(Ok(frame)) => self.handle_frame(&frame).await,
                Happened::Frame(Err(error)) => Err(Closed::Link(error)),
                Happened::Due => self.push().await.map(|()| Next::GoOn),
                Happened::Relayed(answer) => self.send(&answer).await.map(|_| Next::GoOn),
                Happened::Over(closed) => Err(closed),
            };
            match done {
                Ok(Next::GoOn) => {}
                Ok(Next::Close) => return Closed::Refused,
                Err(closed) => return closed,
            }
        }
    }

    fn deadline(&self) -> Instant {
        match self.caller {
            Caller::Stranger => self.heard + FIRST_MESSAGE,
            Caller::Carrier { until, .. } => until,
            Caller::Node(_) | Caller::Authority(_) | Caller::Local => self.heard + IDLE,
        }
    }

    async fn handle_frame(&mut self, frame: &Bytes) -> Result<Next, Closed> {
        self.heard = Instant::now();
        let call: Call = codec::decode(frame).map_err(|_| Closed::Unreadable)?;
        if let Request::Carry { channel, datagram } = &call.request {
            return self.handle_carry(*channel, datagram);
        }
        let was_known = self.is_known();
        let reply = self.handle_request(call.request).await;
        // A stranger who was refused has no business here; it has its answer.
        let next = match (&reply, self.is_known() || was_known) {
            (Reply::Refused(_), false) if !self.is_carrier() => Next::Close,
            _ => Next::GoOn,
        };
        if let Reply::Refused(refusal) = &reply {
            self.note_refused(refusal);
        }
        self.send(&Answer::Reply {
            number: call.number,
            reply,
        })
        .await?;
        Ok(next)
    }

    async fn send(&mut self, answer: &Answer) -> Result<usize, Closed> {
        let bytes = codec::encode(answer).map_err(|_| Closed::Unreadable)?;
        self.frames.write(&bytes).await.map_err(Closed::Link)?;
        Ok(bytes.len())
    }

    fn is_known(&self) -> bool {
        match self.caller {
            Caller::Node(_) | Caller::Authority(_) | Caller::Local => true,
            Caller::Stranger | Caller::Carrier { .. } => false,
        }
    }

    fn is_carrier(&self) -> bool {
        matches!(self.caller, Caller::Carrier { .. })
    }

    fn note_refused(&self, refusal: &Refusal) {
        let reason = reason_of(refusal);
        self.broker
            .metrics
            .refusals
            .get_or_create(&Reason { reason })
            .inc();
        debug!("{}: refused: {reason}", self.link.peer);
    }

    fn report(&self, closed: &Closed) {
        let (reason, why) = closed.words();
        self.broker.metrics.handle_closed(reason);
        match &self.caller {
            Caller::Node(node) => info!(
                "node key {} of site {} at {} has left: {why}",
                node.identity.short(),
                node.site,
                self.link.peer
            ),
            Caller::Stranger | Caller::Carrier { .. } | Caller::Authority(_) | Caller::Local => {
                debug!("{}: closed: {why}", self.link.peer);
            }
        }
    }
}

pub(crate) fn too_often(wait: Duration) -> Refusal {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Refusal::TooOften {
        retry_s: u32::try_from(seconds).unwrap_or(u32::MAX),
    }
}

/// Enough for a list of thousands in pages, too few to keep a processor busy.
fn requests_of_known() -> Bucket {
    Bucket::new(200, Duration::from_millis(10))
}

/// What the relay has for this caller.
async fn relayed(seat: Option<&relay::Seat>) -> Answer {
    match seat {
        Some(seat) => seat.outbox.next().await,
        None => future::pending().await,
    }
}

/// When whoever this is must go.
async fn ends(seat: Option<&Seat>) {
    match seat.and_then(|seat| seat.node.as_ref()) {
        Some((_, taken)) => taken.ends.notified().await,
        None => future::pending().await,
    }
}

impl Seat {
    fn take(broker: &Arc<Broker>, node: Option<Node>) -> Seat {
        broker.metrics.sessions.inc();
        let node = node.map(|node| {
            let taken = broker.seats.take(node.identity, node.grant);
            if taken.first {
                broker.note_heard(node.identity, true);
            }
            (node, taken)
        });
        Seat {
            broker: Arc::clone(broker),
            node,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.broker.metrics.sessions.dec();
        if let Some((node, taken)) = &self.node
            && self.broker.seats.leave(&node.identity, taken)
        {
            self.broker.note_heard(node.identity, false);
        }
    }
}

impl Closed {
    /// A metric's label, and words for the log.
    fn words(&self) -> (&'static str, String) {
        match self {
            Closed::Link(error @ LinkError::Gone) => ("gone", error.to_string()),
            Closed::Link(error @ LinkError::Slow) => ("slow", error.to_string()),
            Closed::Link(error @ (LinkError::Frame(_) | LinkError::TooSoon(_))) => {
                ("bad_frame", error.to_string())
            }
            Closed::Link(error @ LinkError::Io(_)) => ("broken", error.to_string()),
            Closed::Hello(error) => ("bad_hello", error.to_string()),
            Closed::Late(what) => ("late", (*what).to_owned()),
            Closed::Unreadable => ("unreadable", "a message cannot be read".to_owned()),
            Closed::Refused => ("refused", "refused".to_owned()),
            Closed::Ended => ("ended", "it counts no more, or came again".to_owned()),
            Closed::Stopping => ("stopping", "the broker stops".to_owned()),
        }
    }
}

/// A metric's label.
pub(crate) fn reason_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::TokenExpired { .. } => "token_expired",
        Refusal::TokenNotYet { .. } => "token_not_yet",
        Refusal::TokenUsed { .. } => "token_used",
        Refusal::TokenClosed => "token_closed",
        Refusal::SiteRevoked => "site_revoked",
        Refusal::GrantUnknown => "grant_unknown",
        Refusal::WrongMesh { .. } => "wrong_mesh",
        Refusal::WrongStore { .. } => "wrong_store",
        Refusal::BadProof => "bad_proof",
        Refusal::WrongRole => "wrong_role",
        Refusal::NotEnrolled => "not_enrolled",
        Refusal::Revoked => "revoked",
        Refusal::NameTaken { .. } => "name_taken",
        Refusal::OldSequence { .. } => "old_sequence",
        Refusal::BadRecord { .. } => "bad_record",
        Refusal::BadLedger { .. } => "bad_ledger",
        Refusal::Quota { .. } => "quota",
        Refusal::TooOften { .. } => "too_often",
        Refusal::StoreDown { .. } => "store_down",
        Refusal::NotAllowed => "not_allowed",
        Refusal::NotReady => "not_ready",
        Refusal::NoRelay => "no_relay",
    }
}
