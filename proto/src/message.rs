//! What a node, a joiner or an operator and a broker say to each other, after the hello.
//!
//! The caller asks with numbered requests and gets one reply for each, in order, save for `Carry`.
//! After a `Watch` or a `Relay` the broker also pushes. Enums grow at their end only; a broker that does not know a request
//! closes the connection, so what is new waits for a higher version in the hello.

use std::fmt;
use std::net::SocketAddr;

use bincode::{Decode, Encode};

/// Of the caller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Call {
    /// The caller's number; the reply repeats it.
    pub number: u32,
    pub request: Request,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Takes a use of a grant. First on a joiner's connection.
    Enrol(Enrol),
    /// First on every other connection.
    Authenticate(Authenticate),
    /// A record with its enrolment, as [`crate::record::Member::write`] makes it.
    Publish {
        member: Vec<u8>,
    },
    /// From then on the broker pushes what concerns this node.
    Watch {
        /// Where the last watch stopped; `None` for everything.
        resume: Option<Position>,
        /// The heads of the caller's ledger.
        heads: Vec<[u8; 32]>,
    },
    /// The entries that are not behind these heads.
    Ledger {
        heads: Vec<[u8; 32]>,
    },
    /// Entries the broker may lack, parents first; they prove themselves.
    PutLedger {
        entries: Vec<Vec<u8>>,
    },
    /// A session of the UDP reflector.
    Reflect,
    /// Nodes after this identity, in the order of their identities.
    ListNodes {
        after: Option<[u8; 32]>,
    },
    /// Who has used which grant, after this grant and use.
    ListUses {
        after: Option<([u8; 32], u32)>,
    },
    Ping,
    /// From here on of version 2. The gateways to which this one wants its datagrams relayed, each
    /// with a number of the caller's choice; replaces those of before. On a connection of its own.
    Relay {
        peers: Vec<(u32, [u8; 32])>,
    },
    /// A datagram for one of these, where UDP does not reach the relay. Has no reply.
    Carry {
        channel: u32,
        datagram: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Enrol {
    /// The signed grant entry of the token: a broker that was down when it was signed takes it in.
    pub grant: Vec<u8>,
    /// [`crate::enrolment::JoinProof::write`].
    pub proof: Vec<u8>,
    /// The exporter of this connection, signed by the join key and by the identity.
    pub join_session: [u8; 64],
    pub identity_session: [u8; 64],
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Authenticate {
    pub who: Who,
    /// The exporter of this connection, signed by that key.
    pub session: [u8; 64],
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Who {
    /// An enrolled node; the enrolment lets a broker that has lost it, or never had it, know it.
    Node {
        identity: [u8; 32],
        enrolment: Vec<u8>,
    },
    /// The authority in force: an operator's command.
    Authority { key: [u8; 32] },
}

/// How far a watcher has come in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    pub epoch: [u8; 16],
    pub revision: u64,
}

/// Of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    Reply {
        number: u32,
        reply: Reply,
    },
    Push(Push),
    /// The channels whose other side is here and has asked for this one: all of them, whenever that
    /// changes.
    Open {
        channels: Vec<u32>,
    },
    /// What came for a channel, while this side has no address bound.
    Carried {
        channel: u32,
        datagram: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// The enrolment's bytes. The joiner asks for the ledger next.
    Enrolled {
        enrolment: Vec<u8>,
    },
    Authenticated {
        /// The broker's wall clock, unix seconds.
        now: u64,
    },
    Published {
        revision: u64,
    },
    Watching,
    /// `more`: ask again with the heads that came of these.
    Ledger {
        entries: Vec<Vec<u8>>,
        heads: Vec<[u8; 32]>,
        more: bool,
    },
    LedgerTaken {
        heads: Vec<[u8; 32]>,
    },
    Reflector(Reflector),
    /// Ask again after the last one until none come.
    Nodes(Vec<NodeStatus>),
    Uses(Vec<GrantUse>),
    Pong,
    Refused(Refusal),
    Relay(Relay),
}

#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Reflector {
    /// Names the session in each datagram.
    pub session: u64,
    /// Keys the MAC of each datagram.
    pub key: [u8; 32],
    pub port: u16,
}

/// A session of the relay, for [`crate::relay`]'s datagrams; ends with the connection.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Relay {
    pub session: u64,
    pub key: [u8; 32],
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeStatus {
    pub member: Vec<u8>,
    /// Now, at any broker of this store.
    pub connected: bool,
    /// Unix seconds by the broker's clock.
    pub heard: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct GrantUse {
    pub grant: [u8; 32],
    pub use_number: u32,
    pub identity: [u8; 32],
    /// What proves it: [`crate::enrolment::Enrolment::write`].
    pub enrolment: Vec<u8>,
}

/// One batch of a watch. A snapshot is a batch with `reset`, then batches until `caught_up`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Push {
    /// What is not named from here to `caught_up` is no longer listed by this broker.
    pub reset: bool,
    /// Ledger entries, parents first.
    pub entries: Vec<Vec<u8>>,
    /// [`crate::record::Member::write`].
    pub members: Vec<Vec<u8>>,
    /// Identities whose records the broker has dropped.
    pub forgotten: Vec<[u8; 32]>,
    /// Resume here once this batch is durable.
    pub position: Position,
    /// Everything up to `position` has been sent.
    pub caught_up: bool,
}

/// Why a request was not done. The sentence for people is made by who asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Refusal {
    /// Times are unix seconds by the broker's clock.
    TokenExpired {
        not_after: u64,
        now: u64,
    },
    TokenNotYet {
        not_before: u64,
        now: u64,
    },
    /// All uses are taken; the holder of a one-use token is named.
    TokenUsed {
        uses: u32,
        holder: Option<[u8; 32]>,
    },
    TokenClosed,
    SiteRevoked,
    /// This broker's ledger lacks what stands before the grant.
    GrantUnknown,
    WrongMesh {
        mesh: [u8; 32],
    },
    /// Another store counts this grant's uses: go to one of these, `(host:port, key)`.
    WrongStore {
        brokers: Vec<(String, [u8; 32])>,
    },
    /// A signature in the proof does not hold.
    BadProof,
    /// The grant does not allow this role.
    WrongRole,
    NotEnrolled,
    Revoked,
    /// Another living node has this name.
    NameTaken {
        holder: [u8; 32],
        heard_s: u64,
    },
    /// The broker has a newer record of this identity.
    OldSequence {
        latest: u64,
    },
    /// A record that is not acceptable, in words.
    BadRecord {
        why: String,
    },
    BadLedger {
        why: String,
    },
    /// The site has as many as it may have.
    Quota {
        what: String,
        most: u32,
    },
    TooOften {
        retry_s: u32,
    },
    /// The store cannot write now; what was asked is not done.
    StoreDown {
        why: String,
    },
    NotAllowed,
    /// This broker has no ledger yet.
    NotReady,
    /// This broker runs without a relay.
    NoRelay,
}

/// What the reflector's datagrams say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reflected {
    pub session: u64,
    pub nonce: u64,
    pub seen_as: SocketAddr,
}

/// Without the key.
impl fmt::Debug for Relay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Relay on port {}", self.port)
    }
}

/// Without the key.
impl fmt::Debug for Reflector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Reflector on port {}", self.port)
    }
}

#[cfg(test)]
mod tests;
