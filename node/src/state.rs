//! The state directory: who this node is. Complete or absent, private to its owner, and never
//! replaced because it could not be read.
//!
//! `node/` holds `identity.key`, `wireguard.key` and `membership.json`, and the cache that
//! [`crate::follow`] keeps. A join builds it under `node.joining/` and moves it here in one step.

mod check;
mod keys;
mod membership;
mod staging;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use proto::entry::StoreId;
use proto::key::{PublicKey, SigningKey, WireguardKey};
use proto::lan::PairKey;
use thiserror::Error;

use crate::durable;

pub use keys::WireguardSecret;
pub(crate) use membership::Chosen;
pub use membership::Membership;
pub(crate) use staging::{Draft, Staging};

const NODE: &str = "node";
const JOINING: &str = "node.joining";
const LEAVING: &str = "node.leaving";
const IDENTITY: &str = "identity.key";
const WIREGUARD: &str = "wireguard.key";
const MEMBERSHIP: &str = "membership.json";
pub(crate) const CACHE: &str = "cache.journal";

/// A state directory whose modes and owner have been checked.
pub struct StateDir {
    path: PathBuf,
}

/// What `join` made: this node in this mesh.
pub struct LocalNode {
    pub identity: SigningKey,
    pub wireguard: WireguardSecret,
    pub membership: Membership,
    directory: PathBuf,
}

/// Held while a daemon runs on the node or a command changes it.
pub struct Lock {
    _file: File,
}

#[derive(Debug, Error)]
pub enum StateError {
    #[error("{path}: {error}")]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("the state directory {0} does not exist; `causeway join --state-dir {0}` makes it")]
    Missing(PathBuf),
    #[error(
        "{path} can be read or changed by others (mode {mode:04o}); if nobody else has, run: chmod {wanted:04o} {path}"
    )]
    Mode {
        path: PathBuf,
        mode: u32,
        wanted: u32,
    },
    #[error(
        "{path} belongs to user {owner}, and this runs as user {user}; run as that user, or: chown {user} {path}"
    )]
    Owner {
        path: PathBuf,
        owner: u32,
        user: u32,
    },
    #[error("{path} is no {wanted}; move it out of the way")]
    Kind { path: PathBuf, wanted: &'static str },
    #[error(
        "{path} cannot be read: {why}. It is not replaced; restore it from a backup, or move {directory} away and join again with a new token"
    )]
    Damaged {
        path: PathBuf,
        why: String,
        directory: PathBuf,
    },
    #[error(
        "{0} is in use by another process: a gateway, an agent, or a join that is still running; stop that first"
    )]
    InUse(PathBuf),
    #[error("the state directory {0} is not part of a mesh yet; run `causeway join` first")]
    NotJoined(PathBuf),
}

impl StateDir {
    /// It must be there.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        match check::directory(path)? {
            check::Found::There => Ok(StateDir {
                path: path.to_owned(),
            }),
            check::Found::Absent => Err(StateError::Missing(path.to_owned())),
        }
    }

    /// Checks it if it is there.
    pub(crate) fn look(path: &Path) -> Result<Option<StateDir>, StateError> {
        match check::directory(path)? {
            check::Found::There => Ok(Some(StateDir {
                path: path.to_owned(),
            })),
            check::Found::Absent => Ok(None),
        }
    }

    /// Makes the last part of the path if it is not there; whether it did.
    pub(crate) fn open_or_create(path: &Path) -> Result<(StateDir, bool), StateError> {
        let made = match durable::create_directory(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(path, error)),
        };
        Ok((StateDir::open(path)?, made))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None` before a join. What is there is checked whole.
    pub fn node(&self) -> Result<Option<LocalNode>, StateError> {
        let directory = self.path.join(NODE);
        match check::directory(&directory)? {
            check::Found::Absent => Ok(None),
            check::Found::There => LocalNode::load(&directory).map(Some),
        }
    }

    /// The node of a directory that must be part of a mesh.
    pub fn joined(&self) -> Result<LocalNode, StateError> {
        self.node()?
            .ok_or_else(|| StateError::NotJoined(self.path.clone()))
    }

    /// One join or leave at a time.
    pub(crate) fn lock(&self) -> Result<Lock, StateError> {
        lock(&self.path)
    }

    /// Moves the node away in one step, then deletes it.
    pub(crate) fn remove_node(&self) -> Result<(), StateError> {
        let away = self.path.join(LEAVING);
        remove(&away)?;
        durable::rename(&self.path.join(NODE), &away).map_err(|error| failed(&away, error))?;
        remove(&away)
    }

    fn joining(&self) -> PathBuf {
        self.path.join(JOINING)
    }
}

impl LocalNode {
    fn load(directory: &Path) -> Result<LocalNode, StateError> {
        let node = LocalNode {
            identity: keys::read_identity(directory)?,
            wireguard: keys::read_wireguard(directory)?,
            membership: membership::read(directory)?,
            directory: directory.to_owned(),
        };
        if node.membership.identity() == node.identity.public() {
            return Ok(node);
        }
        Err(StateError::Damaged {
            path: directory.join(IDENTITY),
            why: "it is not the key that the membership beside it was made for".to_owned(),
            directory: directory.to_owned(),
        })
    }

    pub fn identity_key(&self) -> PublicKey {
        self.identity.public()
    }

    /// For what is said between this node and another of its site.
    pub fn pair_key(&self, other: &PublicKey, wireguard: &WireguardKey) -> Option<PairKey> {
        let shared = self.wireguard.agree(wireguard);
        let mesh = self.membership.mesh;
        PairKey::derive(&shared, &mesh, &self.identity_key(), other)
    }

    /// The store that counted this node's enrolment.
    pub fn store(&self) -> StoreId {
        self.membership.grant().store
    }

    /// A file of this node's own, which goes when it leaves.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn cache_path(&self) -> PathBuf {
        self.directory.join(CACHE)
    }

    /// For as long as a daemon runs as this node.
    pub fn lock(&self) -> Result<Lock, StateError> {
        lock(&self.directory)
    }
}

/// A directory can be locked like a file, and so no file is left behind.
fn lock(path: &Path) -> Result<Lock, StateError> {
    let file = File::open(path).map_err(|error| failed(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(StateError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(path, error)),
    }
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path, error)),
    }
}

fn failed(path: &Path, error: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        error,
    }
}
