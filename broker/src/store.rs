//! Where a broker keeps what it was given, and how brokers that share a store learn from each
//! other.
//!
//! A store judges only what needs one judge: who got a grant's use, whose record is the newest,
//! who holds a name. Whether a blob is genuine was checked before, and is checked by every reader.

pub mod etcd;
mod judge;
pub mod redb;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use proto::enrolment::JoinProof;
use proto::entry::{SignedEntry, StoreId, Uses};
use proto::key::{Hash, PublicKey, SigningKey};
use proto::name::Name;
use thiserror::Error;

/// Boxed, so that the broker holds a `dyn Store` and is compiled once.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Every write is durable when it returns. A write whose future is dropped, or that ends in
/// [`StoreError::Down`], may yet happen; repeating it is safe.
pub trait Store: Send + Sync + 'static {
    /// Everything, as it was at one revision.
    fn load(&self) -> Doing<'_, Contents>;

    /// Waits for what changed after a revision that [`Store::load`] or an earlier batch gave.
    /// Changes of one revision always come in one batch.
    fn changes(&self, after: u64) -> Doing<'_, Batch>;

    /// Entries of the ledger; those already there are left as they are. Returns the revision at
    /// which all of them are there.
    fn append(&self, entries: Vec<SignedEntry>) -> Doing<'_, u64>;

    /// Takes the next use of a grant, or finds the one this identity already took.
    fn enrol(&self, claim: Claim, broker: Arc<SigningKey>) -> Doing<'_, Enrolled>;

    /// Takes a record if it is newer than what is here and its name is free.
    fn publish(&self, publication: Publication) -> Doing<'_, Published>;

    /// Drops records and what was heard; their sequence numbers stay known. Returns the revision
    /// at which all of them are gone.
    fn forget(&self, identities: Vec<PublicKey>) -> Doing<'_, u64>;

    /// When nodes were last heard, and whether they are connected to this broker. A node counts
    /// as connected until this says otherwise or this broker is gone.
    fn heard(&self, heard: Vec<(PublicKey, Heard)>) -> Doing<'_, ()>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub store: StoreId,
    /// Revisions compare only within one epoch.
    pub epoch: [u8; 16],
    pub revision: u64,
    /// Parents before what follows them.
    pub entries: Vec<Vec<u8>>,
    /// By identity.
    pub members: Vec<StoredMember>,
    /// By grant and number.
    pub uses: Vec<StoredUse>,
    /// By identity.
    pub heard: Vec<(PublicKey, Heard)>,
    /// Who resumes from before this revision has missed that something is gone.
    pub forgotten_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMember {
    pub identity: PublicKey,
    pub bytes: Vec<u8>,
    /// Of its last change.
    pub revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredUse {
    pub grant: Hash,
    pub use_number: u32,
    pub identity: PublicKey,
    /// The bytes of an [`proto::enrolment::Enrolment`].
    pub enrolment: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Unix seconds.
    pub at: u64,
    pub connected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What to ask for next.
    pub revision: u64,
    /// With the revision of each, in order.
    pub changes: Vec<(u64, Change)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Entry(Vec<u8>),
    Member { identity: PublicKey, bytes: Vec<u8> },
    Forgotten(PublicKey),
    Use(StoredUse),
    Heard(PublicKey, Heard),
}

/// A join whose proof and grant the broker has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Hash of the grant's ledger entry.
    pub grant: Hash,
    pub uses: Uses,
    pub proof: JoinProof,
}

/// The bytes are those of an [`proto::enrolment::Enrolment`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    Fresh(Vec<u8>),
    /// This identity had taken a use before; the bytes are the same as then.
    Again(Vec<u8>),
    /// Who holds the use is named where there was only one.
    AllUsed {
        holder: Option<PublicKey>,
    },
}

/// A record that the broker has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub identity: PublicKey,
    pub site: Name,
    pub node: Name,
    pub sequence: u64,
    /// The bytes of a [`proto::record::Member`].
    pub bytes: Vec<u8>,
    /// Needs no name, and frees the one that the identity held.
    pub withdrawn: bool,
    /// The holder of the name that the broker has judged gone: forgotten in the same step.
    pub takes_over: Option<PublicKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    Done {
        revision: u64,
    },
    /// The same bytes were here already.
    Same {
        revision: u64,
    },
    /// Not above the highest sequence number ever taken from this identity.
    Old {
        sequence: u64,
    },
    NameHeld {
        holder: PublicKey,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Cannot read or write now; what is in memory still holds, and trying again is right.
    #[error("{0}")]
    Down(String),
    /// Refused; the text says what an operator can do.
    #[error("{0}")]
    Damaged(String),
    /// The changes asked for are no longer kept: load again.
    #[error("the changes asked for are no longer kept")]
    Behind,
    /// Another broker has the file.
    #[error("{0}")]
    Locked(String),
    /// What is on the disk is unknown: the process must end, and start from the file.
    #[error("{0}")]
    Fatal(String),
}
