//! Why a conversation with a broker failed.

use std::io;
use std::time::Duration;

use proto::codec::CodecError;
use proto::frame::FrameError;
use proto::hello::HelloError;
use proto::key::{MeshId, PublicKey};
use proto::message::Refusal;
use proto::splice::Verdict;
use thiserror::Error;

#[derive(Debug, Error)]
#[error("{address}: {why}")]
pub struct Failure {
    /// `host:port`, or the path of the local socket.
    pub address: String,
    pub why: Why,
}

#[derive(Debug, Error)]
pub enum Why {
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error("the connection was refused: nothing listens there; is the broker running?")]
    ConnectionRefused,
    #[error("no answer within {} s: the host is down or a firewall is in between", .0.as_secs())]
    ConnectTimeout(Duration),
    #[error("{0}")]
    Connect(io::Error),
    #[error(
        "it shows the key {shown} instead of the pinned {pin}: this is not the broker that the token or the ledger names; do not trust it, and see whether the address is right"
    )]
    Pin { pin: PublicKey, shown: PublicKey },
    #[error("what answers there is no Causeway broker: {0}")]
    NotCauseway(String),
    #[error("it accepted the connection but did not finish {what} within {} s", .within.as_secs())]
    Slow {
        what: &'static str,
        within: Duration,
    },
    #[error("{0}")]
    Hello(#[from] HelloError),
    #[error("it serves another mesh ({})", .0.short())]
    OtherMesh(MeshId),
    #[error("it gave no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("it closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("it sent what is no frame: {0}")]
    Frame(#[from] FrameError),
    #[error("it sent what is no message: {0}")]
    Message(#[from] CodecError),
    #[error("it sent an answer that does not belong to what was asked")]
    OutOfOrder,
    #[error("it pushed without end and left a request unanswered")]
    NoReply,
    #[error("its list does not come to an end")]
    Endless,
    #[error("it has not sent all it has within {} s", .0.as_secs())]
    Withholding(Duration),
    #[error("this broker is of a version that has no relay; upgrade it")]
    OldRelay,
    #[error("the ledger has removed this broker")]
    Removed,
    #[error("the ledger says that it has another store")]
    OtherStore,
    #[error("TLS could not be set up: {0}")]
    Tls(rustls::Error),
    #[error("the local socket takes neither joins nor logins")]
    NoExporter,
    #[error("nothing listens there; is it a gateway of this site, and does it run?")]
    NoGateway,
    #[error("{}", .0.sentence())]
    Splice(Verdict),
    #[error("what answers there is no gateway")]
    NotAGateway,
    #[error("{direct}{}", list(.through))]
    NoWay {
        direct: Box<Why>,
        /// The gateways that were tried after that.
        through: Vec<Failure>,
    },
    #[error("{}", crate::refusal::sentence(.0, crate::now()))]
    Refused(Refusal),
}

fn list(through: &[Failure]) -> String {
    let each = through.iter();
    each.map(|failure| format!("; through gateway {failure}"))
        .collect()
}

impl Failure {
    pub fn refusal(&self) -> Option<&Refusal> {
        self.why.refusal()
    }
}

impl Why {
    pub fn refusal(&self) -> Option<&Refusal> {
        if let Why::Refused(refusal) = self {
            Some(refusal)
        } else {
            None
        }
    }

    /// Somebody took the connection and ended it: a broker with more callers than it lets wait does.
    pub(crate) fn is_hung_up(&self) -> bool {
        if let Why::NoWay { direct, through } = self {
            return direct.is_hung_up() || through.iter().any(|one| one.why.is_hung_up());
        }
        matches!(self, Why::Closed | Why::Broken(_))
    }
}
