//! A join that is under way: `node.joining/GRANT/`. Its keys are durable before anybody sees
//! them, so that whoever won a token's use stays that node after a crash.

use std::fs;
use std::path::PathBuf;

use proto::key::{Hash, SigningKey};

use super::membership::{self, Membership};
use super::{NODE, StateDir, StateError, check, failed, keys};
use crate::durable;

/// Made by this join, or found as an earlier one of the same grant left it.
pub(crate) struct Staging {
    path: PathBuf,
    /// Whether this join made it: then it may also take it away.
    made: bool,
    pub(crate) identity: SigningKey,
}

/// What is added once the mesh has taken the node.
pub(crate) struct Draft<'a> {
    pub(crate) membership: &'a Membership,
    /// The content of the cache, so that the node starts with the ledger it was shown.
    pub(crate) cache: &'a [u8],
}

impl StateDir {
    /// The keys are durable once it returns. What an earlier join left is used, never replaced.
    pub(crate) fn stage(&self, grant: &Hash) -> Result<Staging, StateError> {
        let path = self.joining().join(grant.short());
        let complete = path.join("keys");
        if check::directory(&complete)? == check::Found::There {
            let identity = keys::read_identity(&complete)?;
            keys::read_wireguard(&complete)?;
            return Ok(Staging {
                path: complete,
                made: false,
                identity,
            });
        }
        // Keys that were never shown to anybody: a crash while they were made.
        super::remove(&path)?;
        let unfinished = path.join("new");
        for directory in [&self.joining(), &path, &unfinished] {
            make(directory)?;
        }
        keys::create(&unfinished)?;
        durable::rename(&unfinished, &complete).map_err(|error| failed(&complete, error))?;
        Ok(Staging {
            identity: keys::read_identity(&complete)?,
            path: complete,
            made: true,
        })
    }

    /// The last step of a join: from here on the directory is part of the mesh.
    pub(crate) fn finish(&self, staging: &Staging, draft: &Draft<'_>) -> Result<(), StateError> {
        membership::write(&staging.path, draft.membership)?;
        let cache = staging.path.join(super::CACHE);
        durable::replace(&cache, draft.cache).map_err(|error| failed(&cache, error))?;
        durable::sync_directory(&staging.path).map_err(|error| failed(&staging.path, error))?;
        let node = self.path.join(NODE);
        durable::rename(&staging.path, &node).map_err(|error| failed(&node, error))?;
        self.clear_joining();
        Ok(())
    }

    /// After a join that cannot have taken a use: as it was before.
    pub(crate) fn abandon(&self, staging: &Staging) {
        if !staging.made {
            return;
        }
        if let Some(parent) = staging.path.parent()
            && let Err(error) = super::remove(parent)
        {
            tracing::warn!(%error, "cannot remove what a failed join made");
        }
        // Only if no other grant's join has left something there.
        let _kept = fs::remove_dir(self.joining());
    }

    /// What earlier joins left is of no use once the directory is part of a mesh.
    pub(crate) fn clear_joining(&self) {
        if let Err(error) = super::remove(&self.joining()) {
            tracing::warn!(%error, "cannot remove what earlier joins left");
        }
    }
}

fn make(path: &std::path::Path) -> Result<(), StateError> {
    match durable::create_directory(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
