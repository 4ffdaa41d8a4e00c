//! What any site of the crowd has verified, through the same code that every receiver calls.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use proto::key::{Domain, Hash, MeshId, PublicKey};
use proto::mesh::Mesh;
use proto::record::Member;

pub(super) struct Memo(Mutex<Passed>);

struct Passed {
    mesh: Mesh,
    /// Of bytes that have passed.
    entries: HashSet<Hash>,
    members: HashMap<Hash, (PublicKey, u64)>,
}

impl Memo {
    pub(super) fn new(mesh: MeshId) -> Memo {
        Memo(Mutex::new(Passed {
            mesh: Mesh::new(mesh, None),
            entries: HashSet::new(),
            members: HashMap::new(),
        }))
    }

    pub(super) fn handle_entry(&self, bytes: &[u8]) -> Result<()> {
        let hash = Hash::of(Domain::Verified, bytes);
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !passed.entries.contains(&hash) {
            passed.mesh.handle_entry(bytes)?;
            passed.entries.insert(hash);
        }
        Ok(())
    }

    /// Whose record this is, and which of them.
    pub(super) fn verified(&self, bytes: &[u8]) -> Result<(PublicKey, u64)> {
        let hash = Hash::of(Domain::Verified, bytes);
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = passed.members.get(&hash) {
            return Ok(*known);
        }
        let verified = passed.mesh.check_member(&Member::read(bytes)?)?;
        let record = verified.record.record();
        let known = (record.identity, record.sequence);
        passed.members.insert(hash, known);
        Ok(known)
    }
}
