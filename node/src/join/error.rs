//! Why a join failed: one sentence for each cause, with what to do next.

use std::fmt;
use std::io;

use proto::key::MeshId;
use proto::message::Refusal;
use proto::name::Name;
use proto::token::TokenError;
use thiserror::Error;

use crate::follow::Problem;
use crate::state::StateError;

/// A broker that was tried in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// `host:port`
    pub address: String,
    pub why: String,
    /// It hung up: it may have more callers than it lets wait.
    pub turned_away: bool,
}

#[derive(Debug, Error)]
pub enum JoinError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "this directory is not part of a mesh, and no token was given; make one with `causeway token create` and give it in a file (--token-file), on standard input or in CAUSEWAY_TOKEN"
    )]
    NoToken,
    #[error(transparent)]
    State(#[from] StateError),
    #[error("this directory is part of the mesh {}, and the token is of the mesh {}; use another --state-dir, or `causeway leave` the first mesh", .ours.short(), .token.short())]
    OtherMesh { ours: MeshId, token: MeshId },
    #[error(
        "this directory is that of {node} of site {site}, which is no longer part of the mesh: {problem}; {}",
        .problem.next()
    )]
    PutOut {
        site: Name,
        node: Name,
        problem: Box<Problem>,
    },
    #[error(
        "another join has made this directory part of a mesh just now; run the same command again"
    )]
    Raced,
    #[error("this machine's host name cannot be read ({0}); give a name with --node")]
    HostName(io::Error),
    #[error(
        "region and zone are up to 255 printable ASCII characters without spaces at their ends"
    )]
    Place,
    #[error(
        "{0:?} is no address of a gateway; name it with --via as an address of this site, like 10.1.0.1 or 10.1.0.1:7802"
    )]
    Via(String),
    #[error("{}{}", list(.tried), and_now(*.again))]
    NoBroker { tried: Vec<Tried>, again: bool },
    #[error("the broker at {address} refused: {}", crate::refusal::sentence(.refusal, crate::now()))]
    Refused { address: String, refusal: Refusal },
    #[error("the enrolment is not valid: {0}")]
    Enrolment(String),
}

impl JoinError {
    /// What the broker refused with, for those who want to tell the causes apart.
    pub fn refusal(&self) -> Option<&Refusal> {
        if let JoinError::Refused { refusal, .. } = self {
            Some(refusal)
        } else {
            None
        }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.address, self.why)
    }
}

fn list(tried: &[Tried]) -> String {
    let mut text = "no broker of the token took the join".to_owned();
    for tried in tried {
        text.push_str("\n  ");
        text.push_str(&tried.to_string());
    }
    text
}

fn and_now(again: bool) -> &'static str {
    if again {
        "\na use of the token may be taken for this machine already: run the same command again, it goes on with the same identity"
    } else {
        "\nnothing was changed here; see to the reasons above and run the same command again"
    }
}
