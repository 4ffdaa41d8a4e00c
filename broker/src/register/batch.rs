//! What a watcher is sent next.

use std::ops::Bound;

use proto::entry::{GrantRole, Role};
use proto::frame::MAX_FRAME;
use proto::key::{Hash, PublicKey};
use proto::message::{Position, Push};
use proto::name::Name;

use super::{Listed, Register};

/// Leaves room in a frame for what is around the blobs.
const BUDGET: usize = MAX_FRAME - 16 * 1024;
const AROUND_A_BLOB: usize = 8;

/// How far one watcher has come.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    epoch: [u8; 16],
    /// How many of the ledger's entries it has, in the order in which they came.
    entries: usize,
    after: (u64, [u8; 32]),
    /// It is being sent everything; nothing it has sent back counts until then.
    snapshot: bool,
    /// The snapshot's first batch is still to come.
    reset: bool,
    /// It has been promised that it will hear when it has everything.
    owed: bool,
}

/// How far a node sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All gateways, and its own site's agents.
    Gateway,
    /// Its own site's gateways.
    Agent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) identity: PublicKey,
    pub(crate) site: Name,
    pub(crate) reach: Reach,
}

impl Scope {
    fn sees(&self, identity: &PublicKey, listed: &Listed) -> bool {
        let of_own_site = listed.site == self.site;
        *identity == self.identity
            || match self.reach {
                Reach::Gateway => listed.was_gateway || of_own_site,
                Reach::Agent => listed.was_gateway && of_own_site,
            }
    }
}

impl Register {
    pub(crate) fn scope(&self, identity: PublicKey, site: &Name, role: GrantRole) -> Scope {
        let role = match role {
            GrantRole::Gateway => Role::Gateway,
            GrantRole::Agent => Role::Agent,
            // Until it has said what it is, it sees less.
            GrantRole::Any => self
                .listed(&identity)
                .map_or(Role::Agent, |listed| listed.role),
        };
        Scope {
            identity,
            site: site.clone(),
            reach: match role {
                Role::Gateway => Reach::Gateway,
                Role::Agent => Reach::Agent,
            },
        }
    }

    /// `heads` are those of the watcher's ledger.
    pub(crate) fn start(&self, resume: Option<Position>, heads: &[[u8; 32]]) -> Cursor {
        let entries = self.entries_known(heads);
        match resume.filter(|position| self.can_resume(position)) {
            Some(position) => Cursor {
                epoch: self.epoch,
                entries,
                after: (position.revision, [0xff; 32]),
                snapshot: false,
                reset: false,
                owed: true,
            },
            None => self.everything(entries),
        }
    }

    fn can_resume(&self, position: &Position) -> bool {
        position.epoch == self.epoch && (self.floor..=self.revision).contains(&position.revision)
    }

    fn everything(&self, entries: usize) -> Cursor {
        Cursor {
            epoch: self.epoch,
            entries,
            after: (0, [0; 32]),
            snapshot: true,
            reset: true,
            owed: true,
        }
    }

    /// All before the first one that is not behind these heads.
    fn entries_known(&self, heads: &[[u8; 32]]) -> usize {
        let Some(mesh) = &self.mesh else {
            return 0;
        };
        let heads: Vec<Hash> = heads.iter().copied().map(Hash).collect();
        let missing = mesh.ledger().missing(&heads);
        let Some(first) = missing.first().map(|entry| entry.hash()) else {
            return mesh.ledger().len();
        };
        mesh.ledger()
            .entries()
            .position(|entry| entry.hash() == first)
            .unwrap_or(0)
    }

    /// Begins again where the watcher sees something else than before.
    pub(crate) fn restart(&self, cursor: &mut Cursor) {
        *cursor = self.everything(cursor.entries);
    }

    /// The next batch, if there is something to tell.
    pub(crate) fn batch(&self, cursor: &mut Cursor, scope: &Scope) -> Option<Push> {
        let behind = cursor.epoch != self.epoch || cursor.after.0 < self.floor;
        if behind && !cursor.snapshot {
            self.restart(cursor);
        }
        cursor.epoch = self.epoch;
        let mut push = Push {
            reset: cursor.reset,
            entries: Vec::new(),
            members: Vec::new(),
            forgotten: Vec::new(),
            position: self.position(),
            caught_up: false,
        };
        let mut room = BUDGET;
        let mut complete = self.add_entries(cursor, &mut push, &mut room);
        if complete {
            complete = self.add_items(cursor, scope, &mut push, &mut room);
        }
        if complete {
            cursor.after = (self.revision, [0xff; 32]);
            cursor.snapshot = false;
            push.caught_up = true;
        } else {
            push.position.revision = if cursor.snapshot {
                0
            } else {
                cursor.after.0.saturating_sub(1)
            };
        }
        let tells = push.reset
            || cursor.owed
            || !(push.entries.is_empty() && push.members.is_empty() && push.forgotten.is_empty());
        cursor.reset = false;
        cursor.owed = !complete;
        tells.then_some(push)
    }

    /// Whether all of them fitted.
    fn add_entries(&self, cursor: &mut Cursor, push: &mut Push, room: &mut usize) -> bool {
        let Some(mesh) = &self.mesh else {
            return true;
        };
        for entry in mesh.ledger().entries().skip(cursor.entries) {
            if !fits(entry.bytes().len(), room, push.entries.is_empty()) {
                return false;
            }
            push.entries.push(entry.bytes().to_vec());
            cursor.entries += 1;
        }
        true
    }

    fn add_items(
        &self,
        cursor: &mut Cursor,
        scope: &Scope,
        push: &mut Push,
        room: &mut usize,
    ) -> bool {
        let rest = (Bound::Excluded(cursor.after), Bound::Unbounded);
        for (place, identity) in self.order.range(rest) {
            let listed = self.items.get(identity).map(|item| &item.listed);
            match listed {
                Some(Some(listed)) if scope.sees(identity, listed) => {
                    let first = push.entries.is_empty() && push.members.is_empty();
                    if !fits(listed.bytes.len(), room, first) {
                        return false;
                    }
                    push.members.push(listed.bytes.to_vec());
                }
                Some(None) if !cursor.snapshot => {
                    if !fits(place.1.len(), room, false) {
                        return false;
                    }
                    push.forgotten.push(place.1);
                }
                Some(Some(_) | None) | None => {}
            }
            cursor.after = *place;
        }
        true
    }
}

/// A blob that is larger than the room goes alone.
fn fits(length: usize, room: &mut usize, first: bool) -> bool {
    match room.checked_sub(length + AROUND_A_BLOB) {
        Some(rest) => {
            *room = rest;
            true
        }
        None if first => {
            *room = 0;
            true
        }
        None => false,
    }
}
