//! Compare-and-set: read, decide, write if nothing has changed meanwhile, else again.

use std::collections::BTreeMap;

use proto::enrolment::Enrolment;
use proto::entry::{SignedEntry, Uses};
use proto::key::{PublicKey, SigningKey};

use super::EtcdStore;
use super::keys::unhex;
use super::wire::{Pair, Txn, TxnAnswer};
use crate::store::judge::{Found, Judgement, MemberRow, Take, judge};
use crate::store::{Claim, Enrolled, Publication, Published, StoreError};

/// Below etcd's 128 in a transaction.
const ENTRIES_AT_ONCE: usize = 100;
/// Every failed try means that another broker's write went through.
const TRIES: usize = 50;

/// A change that is made only if what it was decided on still holds.
enum Attempt<T> {
    Settled(T),
    Raced,
}

impl EtcdStore {
    pub(super) async fn run(&self, txn: &Txn) -> Result<TxnAnswer, StoreError> {
        Ok(self.client.call("/v3/kv/txn", &txn.request()).await?)
    }

    pub(super) async fn current_revision(&self) -> Result<u64, StoreError> {
        let now = self.run(Txn::new().get(&self.location.store())).await?;
        Ok(now.header.revision.0)
    }

    pub(super) async fn append_all(&self, entries: &[SignedEntry]) -> Result<u64, StoreError> {
        let mut keyed = BTreeMap::new();
        for entry in entries {
            let key = self.location.entry(entry.entry().number, &entry.hash());
            keyed.insert(key, entry.bytes());
        }
        let keyed: Vec<_> = keyed.into_iter().collect();
        let mut revision = 0;
        for some in keyed.chunks(ENTRIES_AT_ONCE) {
            revision = self.append_some(some).await?;
        }
        if revision == 0 {
            revision = self.current_revision().await?;
        }
        Ok(revision)
    }

    async fn append_some(&self, some: &[(String, &[u8])]) -> Result<u64, StoreError> {
        for _ in 0..TRIES {
            let mut reads = Txn::new();
            for (key, _) in some {
                reads.get(key);
            }
            let found = self.run(&reads).await?;
            let mut txn = Txn::new();
            let mut missing = 0;
            for (nth, (key, bytes)) in some.iter().enumerate() {
                if found.pairs(nth).is_empty() {
                    txn.unchanged(key, 0).put(key, bytes);
                    missing += 1;
                }
            }
            if missing == 0 {
                return Ok(found.header.revision.0);
            }
            let written = self.run(&txn).await?;
            if written.succeeded {
                return Ok(written.header.revision.0);
            }
        }
        Err(contended())
    }

    pub(super) async fn enrol_one(
        &self,
        claim: &Claim,
        broker: &SigningKey,
    ) -> Result<Enrolled, StoreError> {
        for _ in 0..TRIES {
            match self.try_enrol(claim, broker).await? {
                Attempt::Settled(enrolled) => return Ok(enrolled),
                Attempt::Raced => {}
            }
        }
        Err(contended())
    }

    async fn try_enrol(
        &self,
        claim: &Claim,
        broker: &SigningKey,
    ) -> Result<Attempt<Enrolled>, StoreError> {
        let joined = self.location.joined(&claim.grant, &claim.proof.identity);
        let first = self.location.one_use(&claim.grant, 0);
        let mut reads = Txn::new();
        reads
            .get(&joined)
            .get_last(&self.location.uses(&claim.grant))
            .get(&first);
        let found = self.run(&reads).await?;
        if let Some(number) = found.pairs(0).first() {
            let number = read_number(&number.value.0).ok_or_else(|| self.unreadable(&joined))?;
            let key = self.location.one_use(&claim.grant, number);
            let taken = self.run(Txn::new().get(&key)).await?;
            let taken = taken
                .pairs(0)
                .first()
                .ok_or_else(|| self.unreadable(&key))?;
            return Ok(Attempt::Settled(Enrolled::Again(taken.value.0.clone())));
        }
        let next = match found.pairs(1).first() {
            None => 0,
            Some(last) => last_number(last).map_or(u32::MAX, |number| number.saturating_add(1)),
        };
        let all = match claim.uses {
            Uses::AtMost(uses) => uses,
            Uses::Unlimited => u32::MAX,
        };
        if next >= all {
            let holder = found.pairs(2).first().filter(|_| all == 1).and_then(holder);
            return Ok(Attempt::Settled(Enrolled::AllUsed { holder }));
        }
        let enrolment = claim.proof.clone().enrol(next, broker).write();
        let key = self.location.one_use(&claim.grant, next);
        let mut txn = Txn::new();
        txn.unchanged(&joined, 0)
            .unchanged(&key, 0)
            .put(&key, &enrolment)
            .put(&joined, next.to_string());
        Ok(if self.run(&txn).await?.succeeded {
            Attempt::Settled(Enrolled::Fresh(enrolment))
        } else {
            Attempt::Raced
        })
    }

    pub(super) async fn publish_one(
        &self,
        publication: &Publication,
    ) -> Result<Published, StoreError> {
        for _ in 0..TRIES {
            match self.try_publish(publication).await? {
                Attempt::Settled(published) => return Ok(published),
                Attempt::Raced => {}
            }
        }
        Err(contended())
    }

    async fn try_publish(
        &self,
        publication: &Publication,
    ) -> Result<Attempt<Published>, StoreError> {
        let member_key = self.location.member(&publication.identity);
        let name_key = self.location.name(&publication.site, &publication.node);
        let mark_key = self.location.mark(&publication.identity);
        let read = self
            .run(Txn::new().get(&member_key).get(&name_key).get(&mark_key))
            .await?;
        let stored = read.pairs(0).first();
        let member = stored
            .map(|pair| MemberRow::read(&pair.value.0))
            .transpose()
            .map_err(|_| self.unreadable(&member_key))?;
        let found = Found {
            member: member.as_ref(),
            mark: read
                .pairs(2)
                .first()
                .and_then(|pair| read_number(&pair.value.0)),
            holder: read.pairs(1).first().and_then(read_key),
        };
        let settled = match judge(&found, publication) {
            Judgement::Same => Published::Same {
                revision: revision(stored),
            },
            Judgement::Old { sequence } => Published::Old { sequence },
            Judgement::NameHeld { holder } => Published::NameHeld { holder },
            Judgement::Take(take) => return self.write_publication(publication, &read, take).await,
        };
        Ok(Attempt::Settled(settled))
    }

    /// `read` holds the member, the name and the mark, as the decision was made on them.
    async fn write_publication(
        &self,
        publication: &Publication,
        read: &TxnAnswer,
        take: Take,
    ) -> Result<Attempt<Published>, StoreError> {
        let member_key = self.location.member(&publication.identity);
        let name_key = self.location.name(&publication.site, &publication.node);
        let mark_key = self.location.mark(&publication.identity);
        let mut txn = Txn::new();
        txn.unchanged(&member_key, revision(read.pairs(0).first()))
            .unchanged(&name_key, revision(read.pairs(1).first()))
            .unchanged(&mark_key, revision(read.pairs(2).first()));
        if let Some(gone) = take.displaces {
            self.add_forgetting(&mut txn, &gone, Some(&name_key))
                .await?;
        }
        if let Some((site, node)) = take.frees {
            let key = self.location.name(&site, &node);
            self.add_freeing(&mut txn, &key, &publication.identity)
                .await?;
        }
        if take.takes_name {
            txn.put(
                &name_key,
                data_encoding::HEXLOWER.encode(publication.identity.as_bytes()),
            );
        }
        txn.put(&member_key, MemberRow::of(publication).write())
            .delete(&mark_key);
        let written = self.run(&txn).await?;
        if !written.succeeded {
            return Ok(Attempt::Raced);
        }
        Ok(Attempt::Settled(Published::Done {
            revision: written.header.revision.0,
        }))
    }

    pub(super) async fn forget_one(&self, identity: &PublicKey) -> Result<u64, StoreError> {
        self.connections.forget(identity);
        for _ in 0..TRIES {
            let mut txn = Txn::new();
            let known = self.add_forgetting(&mut txn, identity, None).await?;
            if !known {
                return self.current_revision().await;
            }
            let written = self.run(&txn).await?;
            if written.succeeded {
                return Ok(written.header.revision.0);
            }
        }
        Err(contended())
    }

    /// False if nothing is known of it. One key may stand only once in a transaction, so the name
    /// that is about to be taken stays out.
    async fn add_forgetting(
        &self,
        txn: &mut Txn,
        identity: &PublicKey,
        name_taken: Option<&str>,
    ) -> Result<bool, StoreError> {
        let member_key = self.location.member(identity);
        let heard_key = self.location.heard(identity);
        let read = self
            .run(Txn::new().get(&member_key).get(&heard_key))
            .await?;
        let member = read.pairs(0).first();
        if member.is_none() && read.pairs(1).is_empty() {
            return Ok(false);
        }
        txn.unchanged(&member_key, revision(member));
        if let Some(member) = member {
            let row = MemberRow::read(&member.value.0).map_err(|_| self.unreadable(&member_key))?;
            let name_key = self.location.name(&row.site, &row.node);
            if name_taken != Some(name_key.as_str()) {
                self.add_freeing(txn, &name_key, identity).await?;
            }
            txn.delete(&member_key)
                .put(&self.location.mark(identity), row.sequence.to_string());
        }
        txn.delete(&heard_key)
            .delete(&self.location.live(identity))
            .put(&self.location.forgotten(), "");
        Ok(true)
    }

    /// Unless another has the name by now.
    async fn add_freeing(
        &self,
        txn: &mut Txn,
        name_key: &str,
        holder: &PublicKey,
    ) -> Result<(), StoreError> {
        let read = self.run(Txn::new().get(name_key)).await?;
        let name = read.pairs(0).first();
        if name.and_then(read_key) == Some(*holder) {
            txn.unchanged(name_key, revision(name)).delete(name_key);
        }
        Ok(())
    }

    fn unreadable(&self, key: &str) -> StoreError {
        StoreError::Down(format!(
            "the value of {key} in {} is not as a broker wrote it; see who else writes there, and \
             put it back from a backup",
            self.location
        ))
    }
}

fn contended() -> StoreError {
    StoreError::Down("too many brokers write the same at once; try again".to_owned())
}

fn revision(pair: Option<&Pair>) -> u64 {
    pair.map_or(0, |pair| pair.mod_revision.0)
}

fn read_number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn read_key(pair: &Pair) -> Option<PublicKey> {
    unhex(std::str::from_utf8(&pair.value.0).ok()?)
}

/// The number at the end of a use's key.
fn last_number(pair: &Pair) -> Option<u32> {
    let key = std::str::from_utf8(&pair.key.0).ok()?;
    key.rsplit('/').next()?.parse().ok()
}

fn holder(pair: &Pair) -> Option<PublicKey> {
    Some(Enrolment::read(&pair.value.0).ok()?.proof.identity)
}
