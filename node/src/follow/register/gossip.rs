//! What other gateways hand over: taken like a broker's word, but it lists nothing, and nothing of
//! it that does not fit is kept for later.

use proto::control::Handover;
use proto::key::PublicKey;
use proto::mesh::Taken;
use proto::record::Member;

use super::{Register, identity_of};
use crate::cache::Line;
use crate::follow::Cause;
use crate::follow::refused::Item;

/// Of one handover; the rest is offered again.
const MAX_BLOBS: usize = 4096;
/// Whoever hands over so much that does not hold lies, and is not listened to further. Every
/// handover is of one neighbour alone, so that this costs nobody else's word.
const MAX_REFUSED: usize = 32;
/// Taken in one turn with the register: others wait for it while signatures are checked.
const PIECE: usize = 32;

/// A handover that is taken piece by piece.
pub(in crate::follow) struct Handed {
    blobs: std::vec::IntoIter<Blob>,
    refused: usize,
}

enum Blob {
    Entry(Vec<u8>),
    Member(Vec<u8>),
}

impl Handed {
    pub(in crate::follow) fn new(handover: Handover) -> Handed {
        let entries = handover.entries.into_iter().map(Blob::Entry);
        let members = handover.members.into_iter().map(Blob::Member);
        let blobs: Vec<Blob> = entries.chain(members).take(MAX_BLOBS).collect();
        Handed {
            blobs: blobs.into_iter(),
            refused: 0,
        }
    }

    pub(in crate::follow) fn is_done(&self) -> bool {
        self.blobs.as_slice().is_empty() || self.refused >= MAX_REFUSED
    }
}

impl Register {
    /// To be made durable and shown before the next piece.
    pub(in crate::follow) fn handle_handed(&mut self, handed: &mut Handed, now: u64) {
        for _ in 0..PIECE {
            if handed.is_done() {
                break;
            }
            let refused = match handed.blobs.next() {
                Some(Blob::Entry(bytes)) => self.handle_gossiped_entry(&bytes),
                Some(Blob::Member(bytes)) => self.handle_gossiped_member(&bytes),
                None => break,
            };
            if let Err((cause, what)) = refused {
                handed.refused += 1;
                self.refused.count_quietly(Item {
                    cause,
                    what,
                    from: "another gateway".to_owned(),
                    at: now,
                });
            }
        }
        self.note_events();
    }

    fn handle_gossiped_entry(&mut self, bytes: &[u8]) -> Result<(), (Cause, String)> {
        match self.mesh.handle_entry(bytes) {
            Ok(Taken::Known) => Ok(()),
            Ok(Taken::New) => {
                self.handle_new_entry(bytes);
                Ok(())
            }
            Err(refusal) => Err((Cause::of_entry(&refusal), refusal.to_string())),
        }
    }

    fn handle_gossiped_member(&mut self, bytes: &[u8]) -> Result<(), (Cause, String)> {
        let member = Member::read(bytes)
            .map_err(|error| (Cause::Unreadable, format!("a record: {error}")))?;
        let (identity, sequence) = identity_of(&member)
            .ok_or_else(|| (Cause::Unreadable, "a record that cannot be read".to_owned()))?;
        // Also one that was dropped here: otherwise gateways would keep the dead alive for each
        // other. Costs no signature.
        if self.mesh.sequence(&identity) >= Some(sequence) {
            return Ok(());
        }
        match self.mesh.handle_member(&member) {
            Ok(Taken::Known) => Ok(()),
            Ok(Taken::New) => {
                self.gossiped.insert(identity, sequence);
                self.keep(&member);
                Ok(())
            }
            Err(refusal) => {
                if super::is_held_back(&refusal) {
                    self.keep(&member);
                }
                Err((
                    Cause::of_member(&refusal),
                    super::describe(&member, &refusal),
                ))
            }
        }
    }

    /// Whether a store that shows an older record than this is merely behind what was handed over.
    pub(super) fn is_gossiped_above(&self, identity: &PublicKey, sequence: u64) -> bool {
        let gossiped = self.gossiped.get(identity);
        gossiped.is_some_and(|gossiped| *gossiped > sequence)
    }

    pub(super) fn handle_new_entry(&mut self, bytes: &[u8]) {
        self.lines.push(Line::Entry(bytes.to_vec()));
        for listing in self.stores.values_mut() {
            listing.relist |= std::mem::take(&mut listing.may_pass);
        }
        self.adopt_orphans();
    }
}
