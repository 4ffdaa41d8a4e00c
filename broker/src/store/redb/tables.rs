//! What the store does, inside one transaction of redb.

use std::collections::BTreeSet;

use ::redb::{
    ReadableTable, StorageError, Table, TableDefinition, TableError, TableHandle, WriteTransaction,
};
use proto::enrolment::Enrolment;
use proto::entry::{SignedEntry, Uses};
use proto::key::{Hash, PublicKey, SigningKey};
use proto::name::Name;

use crate::store::judge::{Found, Judgement, MemberRow, judge};
use crate::store::{
    Change, Claim, Enrolled, Heard, Publication, Published, StoredMember, StoredUse,
};

type Key = &'static [u8; 32];

/// By number, then hash: parents come before what follows them.
const ENTRIES: TableDefinition<'_, (u64, Key), &[u8]> = TableDefinition::new("entries");
/// Revision of the last change, and row.
const MEMBERS: TableDefinition<'_, Key, (u64, &[u8])> = TableDefinition::new("members");
/// Site and node to identity.
const NAMES: TableDefinition<'_, (&str, &str), Key> = TableDefinition::new("names");
/// Sequence numbers of forgotten identities.
const MARKS: TableDefinition<'_, Key, u64> = TableDefinition::new("marks");
/// Grant and use number to enrolment.
const USES: TableDefinition<'_, (Key, u32), &[u8]> = TableDefinition::new("uses");
/// Grant and identity to use number.
const JOINED: TableDefinition<'_, (Key, Key), u32> = TableDefinition::new("joined");
const HEARD: TableDefinition<'_, Key, u64> = TableDefinition::new("heard");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
const FORGOTTEN_AT: &str = "forgotten at";

pub(super) struct Tables<'t> {
    entries: Table<'t, (u64, Key), &'static [u8]>,
    members: Table<'t, Key, (u64, &'static [u8])>,
    names: Table<'t, (&'static str, &'static str), Key>,
    marks: Table<'t, Key, u64>,
    uses: Table<'t, (Key, u32), &'static [u8]>,
    joined: Table<'t, (Key, Key), u32>,
    heard: Table<'t, Key, u64>,
    numbers: Table<'t, &'static str, u64>,
    /// Where the next revision is counted on from.
    revision: u64,
    pub(super) changes: Vec<(u64, Change)>,
}

/// What [`super::Contents`] needs of the file.
pub(super) struct Rows {
    pub(super) revision: u64,
    pub(super) forgotten_at: u64,
    pub(super) entries: Vec<Vec<u8>>,
    pub(super) members: Vec<StoredMember>,
    pub(super) uses: Vec<StoredUse>,
    pub(super) heard: Vec<(PublicKey, u64)>,
}

impl<'t> Tables<'t> {
    /// Revisions go on above both the file's last one and `base`.
    pub(super) fn open(txn: &'t WriteTransaction, base: u64) -> Result<Tables<'t>, TableError> {
        let mut tables = Tables {
            entries: txn.open_table(ENTRIES)?,
            members: txn.open_table(MEMBERS)?,
            names: txn.open_table(NAMES)?,
            marks: txn.open_table(MARKS)?,
            uses: txn.open_table(USES)?,
            joined: txn.open_table(JOINED)?,
            heard: txn.open_table(HEARD)?,
            numbers: txn.open_table(NUMBERS)?,
            revision: 0,
            changes: Vec::new(),
        };
        tables.revision = tables.stored_revision()?.max(base);
        Ok(tables)
    }

    /// Whether the file has the tables of a store: one without was never one of ours.
    pub(super) fn are_in(txn: &WriteTransaction) -> Result<bool, StorageError> {
        let found: BTreeSet<String> = txn
            .list_tables()?
            .map(|table| table.name().to_owned())
            .collect();
        let wanted = [
            ENTRIES.name(),
            MEMBERS.name(),
            NAMES.name(),
            MARKS.name(),
            USES.name(),
            JOINED.name(),
            HEARD.name(),
            NUMBERS.name(),
        ];
        Ok(wanted.iter().all(|name| found.contains(*name)))
    }

    pub(super) fn stored_revision(&self) -> Result<u64, StorageError> {
        self.number(REVISION)
    }

    fn number(&self, name: &'static str) -> Result<u64, StorageError> {
        Ok(self.numbers.get(name)?.map_or(0, |number| number.value()))
    }

    /// Everything that one call changes has one revision.
    fn next_revision(&mut self) -> Result<u64, StorageError> {
        self.revision += 1;
        self.numbers.insert(REVISION, self.revision)?;
        Ok(self.revision)
    }

    /// After the changes of this transaction so far.
    fn current_revision(&self) -> Result<u64, StorageError> {
        self.stored_revision()
    }

    pub(super) fn append(&mut self, entries: &[SignedEntry]) -> Result<u64, StorageError> {
        let mut new = Vec::new();
        for entry in entries {
            let hash = entry.hash();
            let key = (entry.entry().number, &hash.0);
            if self.entries.get(key)?.is_none() {
                self.entries.insert(key, entry.bytes())?;
                new.push(Change::Entry(entry.bytes().to_owned()));
            }
        }
        if new.is_empty() {
            return self.current_revision();
        }
        let revision = self.next_revision()?;
        self.changes
            .extend(new.into_iter().map(|change| (revision, change)));
        Ok(revision)
    }

    pub(super) fn enrol(
        &mut self,
        claim: &Claim,
        broker: &SigningKey,
    ) -> Result<Enrolled, StorageError> {
        let grant = &claim.grant.0;
        let identity = claim.proof.identity;
        if let Some(number) = self.joined.get((grant, identity.as_bytes()))? {
            return match self.uses.get((grant, number.value()))? {
                Some(bytes) => Ok(Enrolled::Again(bytes.value().to_owned())),
                None => Err(corrupted("a use that was taken is not there")),
            };
        }
        let next = match self.uses.range((grant, 0)..=(grant, u32::MAX))?.next_back() {
            None => 0,
            Some(last) => last?.0.value().1.saturating_add(1),
        };
        let all = match claim.uses {
            Uses::AtMost(uses) => uses,
            Uses::Unlimited => u32::MAX,
        };
        if next >= all {
            return Ok(Enrolled::AllUsed {
                holder: if all == 1 { self.holder(grant)? } else { None },
            });
        }
        let enrolment = claim.proof.clone().enrol(next, broker).write();
        self.uses.insert((grant, next), enrolment.as_slice())?;
        self.joined.insert((grant, identity.as_bytes()), next)?;
        let revision = self.next_revision()?;
        let change = Change::Use(StoredUse {
            grant: claim.grant,
            use_number: next,
            identity,
            enrolment: enrolment.clone(),
        });
        self.changes.push((revision, change));
        Ok(Enrolled::Fresh(enrolment))
    }

    fn holder(&self, grant: &[u8; 32]) -> Result<Option<PublicKey>, StorageError> {
        let Some(bytes) = self.uses.get((grant, 0))? else {
            return Ok(None);
        };
        Ok(Some(read_enrolment(bytes.value())?.proof.identity))
    }

    pub(super) fn publish(&mut self, publication: &Publication) -> Result<Published, StorageError> {
        let identity = publication.identity.as_bytes();
        let name = (publication.site.as_str(), publication.node.as_str());
        let member = self.member(identity)?;
        let found = Found {
            member: member.as_ref().map(|(_, row)| row),
            mark: self.marks.get(identity)?.map(|mark| mark.value()),
            holder: self
                .names
                .get(name)?
                .map(|holder| read_key(holder.value()))
                .transpose()?,
        };
        let take = match judge(&found, publication) {
            Judgement::Same => {
                let revision = member.map_or(0, |(revision, _)| revision);
                return Ok(Published::Same { revision });
            }
            Judgement::Old { sequence } => return Ok(Published::Old { sequence }),
            Judgement::NameHeld { holder } => return Ok(Published::NameHeld { holder }),
            Judgement::Take(take) => take,
        };
        let revision = self.next_revision()?;
        if let Some(gone) = take.displaces {
            self.forget_one(&gone, revision)?;
        }
        if let Some((site, node)) = take.frees {
            self.free(&site, &node, &publication.identity)?;
        }
        if take.takes_name {
            self.names.insert(name, identity)?;
        }
        let row = MemberRow::of(publication).write();
        self.members.insert(identity, (revision, row.as_slice()))?;
        self.marks.remove(identity)?;
        let change = Change::Member {
            identity: publication.identity,
            bytes: publication.bytes.clone(),
        };
        self.changes.push((revision, change));
        Ok(Published::Done { revision })
    }

    pub(super) fn forget(&mut self, identities: &[PublicKey]) -> Result<u64, StorageError> {
        let mut known = BTreeSet::new();
        for identity in identities {
            let key = identity.as_bytes();
            if self.members.get(key)?.is_some() || self.heard.get(key)?.is_some() {
                known.insert(*identity);
            }
        }
        if known.is_empty() {
            return self.current_revision();
        }
        let revision = self.next_revision()?;
        for identity in &known {
            self.forget_one(identity, revision)?;
        }
        Ok(revision)
    }

    fn forget_one(&mut self, identity: &PublicKey, revision: u64) -> Result<(), StorageError> {
        let key = identity.as_bytes();
        if let Some((_, row)) = self.member(key)? {
            self.members.remove(key)?;
            self.marks.insert(key, row.sequence)?;
            self.free(&row.site, &row.node, identity)?;
        }
        self.heard.remove(key)?;
        self.numbers.insert(FORGOTTEN_AT, revision)?;
        self.changes.push((revision, Change::Forgotten(*identity)));
        Ok(())
    }

    /// Unless another has the name by now.
    fn free(&mut self, site: &Name, node: &Name, holder: &PublicKey) -> Result<(), StorageError> {
        let name = (site.as_str(), node.as_str());
        let held = self
            .names
            .get(name)?
            .is_some_and(|found| found.value() == holder.as_bytes());
        if held {
            self.names.remove(name)?;
        }
        Ok(())
    }

    pub(super) fn heard(&mut self, heard: &[(PublicKey, Heard)]) -> Result<(), StorageError> {
        if heard.is_empty() {
            return Ok(());
        }
        let revision = self.next_revision()?;
        for (identity, heard) in heard {
            self.heard.insert(identity.as_bytes(), heard.at)?;
            self.changes
                .push((revision, Change::Heard(*identity, *heard)));
        }
        Ok(())
    }

    fn member(&self, identity: &[u8; 32]) -> Result<Option<(u64, MemberRow)>, StorageError> {
        let Some(found) = self.members.get(identity)? else {
            return Ok(None);
        };
        let (revision, row) = found.value();
        Ok(Some((revision, read_row(row)?)))
    }

    pub(super) fn rows(&self) -> Result<Rows, StorageError> {
        let mut rows = Rows {
            revision: self.current_revision()?,
            forgotten_at: self.number(FORGOTTEN_AT)?,
            entries: Vec::new(),
            members: Vec::new(),
            uses: Vec::new(),
            heard: Vec::new(),
        };
        for row in self.entries.iter()? {
            rows.entries.push(row?.1.value().to_owned());
        }
        for row in self.members.iter()? {
            let (identity, member) = row?;
            let (revision, bytes) = member.value();
            rows.members.push(StoredMember {
                identity: read_key(identity.value())?,
                bytes: read_row(bytes)?.bytes,
                revision,
            });
        }
        for row in self.uses.iter()? {
            let (key, enrolment) = row?;
            let (grant, use_number) = key.value();
            rows.uses.push(StoredUse {
                grant: Hash(*grant),
                use_number,
                identity: read_enrolment(enrolment.value())?.proof.identity,
                enrolment: enrolment.value().to_owned(),
            });
        }
        for row in self.heard.iter()? {
            let (identity, at) = row?;
            rows.heard.push((read_key(identity.value())?, at.value()));
        }
        Ok(rows)
    }
}

fn read_key(bytes: &[u8; 32]) -> Result<PublicKey, StorageError> {
    PublicKey::new(*bytes).map_err(|error| corrupted(&format!("a node's key in it: {error}")))
}

fn read_row(bytes: &[u8]) -> Result<MemberRow, StorageError> {
    MemberRow::read(bytes).map_err(|error| corrupted(&format!("a record in it: {error}")))
}

fn read_enrolment(bytes: &[u8]) -> Result<Enrolment, StorageError> {
    Enrolment::read(bytes).map_err(|error| corrupted(&format!("an enrolment in it: {error}")))
}

fn corrupted(what: &str) -> StorageError {
    StorageError::Corrupted(what.to_owned())
}
