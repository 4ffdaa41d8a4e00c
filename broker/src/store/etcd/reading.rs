//! Everything at one revision, and what etcd's pairs say in the words of a store.

use std::collections::BTreeSet;

use proto::enrolment::Enrolment;
use proto::entry::StoreId;
use proto::key::{Hash, PublicKey};
use serde_json::json;

use super::EtcdStore;
use super::client::CallError;
use super::keys::Place;
use super::wire::{Pair, Range, after_all, base64};
use crate::store::judge::MemberRow;
use crate::store::{Contents, Heard, StoreError, StoredMember, StoredUse};

const PAGE: &str = "1000";
/// A page may be compacted away under a slow reader so many times.
const TRIES: usize = 5;

impl EtcdStore {
    pub(super) async fn read_all(&self) -> Result<Contents, StoreError> {
        for _ in 0..TRIES {
            match self.read_once().await {
                Ok(contents) => return Ok(contents),
                Err(ReadError::Compacted) => {}
                Err(ReadError::Store(error)) => return Err(error),
            }
        }
        Err(StoreError::Down(
            "etcd compacts its history faster than it can be read; it is tried again".to_owned(),
        ))
    }

    async fn read_once(&self) -> Result<Contents, ReadError> {
        let all = self.location.all();
        let mut from = all.clone().into_bytes();
        let mut found = Gathered::default();
        loop {
            let question = json!({
                "key": base64(&from),
                "range_end": base64(after_all(&all)),
                "limit": PAGE,
                "revision": found.revision.to_string(),
            });
            let page: Range = self.client.call("/v3/kv/range", &question).await?;
            if found.revision == 0 {
                found.revision = page.header.revision.0;
                found.cluster = page.header.cluster_id.0;
            }
            for pair in &page.kvs {
                self.gather(&mut found, pair);
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    from = last.key.0.clone();
                    from.push(0);
                }
                Some(_) | None => break,
            }
        }
        Ok(self.contents(found)?)
    }

    fn gather(&self, found: &mut Gathered, pair: &Pair) {
        let value = &pair.value.0;
        match self.location.place(&pair.key.0) {
            Place::Store => found.store = value.as_slice().try_into().ok().map(StoreId),
            Place::Epoch => found.epoch = value.as_slice().try_into().ok(),
            Place::Forgotten => found.forgotten_at = pair.mod_revision.0,
            Place::Entry => found.entries.push(value.clone()),
            Place::Member(identity) => {
                if let Some(row) = read_row(&identity, value) {
                    found.members.push(StoredMember {
                        identity,
                        bytes: row.bytes,
                        revision: pair.mod_revision.0,
                    });
                }
            }
            Place::Use { grant, use_number } => {
                found.uses.extend(read_use(grant, use_number, value));
            }
            Place::Heard(identity) => {
                let heard = read_heard(value).map(|heard| (identity, heard));
                found.heard.extend(heard);
            }
            Place::Live(identity) => {
                found.live.insert(identity);
            }
            Place::Other => {}
        }
    }

    fn contents(&self, mut found: Gathered) -> Result<Contents, StoreError> {
        let (Some(store), Some(mut epoch)) = (found.store, found.epoch) else {
            return Err(self.is_empty());
        };
        if store != self.store {
            return Err(self.is_another(store));
        }
        for (identity, heard) in &mut found.heard {
            heard.connected = found.live.contains(identity);
        }
        // A cluster made from a backup counts its revisions on from the backup, under a new id.
        for (byte, cluster) in epoch.iter_mut().zip(found.cluster.to_be_bytes()) {
            *byte ^= cluster;
        }
        Ok(Contents {
            store,
            epoch,
            revision: found.revision,
            entries: found.entries,
            members: found.members,
            uses: found.uses,
            heard: found.heard,
            forgotten_at: found.forgotten_at,
        })
    }
}

#[derive(Default)]
struct Gathered {
    store: Option<StoreId>,
    epoch: Option<[u8; 16]>,
    cluster: u64,
    revision: u64,
    forgotten_at: u64,
    entries: Vec<Vec<u8>>,
    members: Vec<StoredMember>,
    uses: Vec<StoredUse>,
    heard: Vec<(PublicKey, Heard)>,
    live: BTreeSet<PublicKey>,
}

enum ReadError {
    Compacted,
    Store(StoreError),
}

impl From<CallError> for ReadError {
    fn from(error: CallError) -> ReadError {
        match error {
            CallError::Refused(failure) if failure.is_compacted() => ReadError::Compacted,
            error @ (CallError::Refused(_) | CallError::Down(_)) => ReadError::Store(error.into()),
        }
    }
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> ReadError {
        ReadError::Store(error)
    }
}

/// A value that somebody else wrote must not cost the others.
pub(super) fn read_row(identity: &PublicKey, value: &[u8]) -> Option<MemberRow> {
    MemberRow::read(value)
        .inspect_err(|error| {
            tracing::warn!(
                node = %identity,
                "the record of this node in etcd is not as a broker wrote it and is left out: \
                 {error}; see who else writes there"
            );
        })
        .ok()
}

pub(super) fn read_use(grant: Hash, use_number: u32, value: &[u8]) -> Option<StoredUse> {
    match Enrolment::read(value) {
        Ok(enrolment) => Some(StoredUse {
            grant,
            use_number,
            identity: enrolment.proof.identity,
            enrolment: value.to_owned(),
        }),
        Err(error) => {
            tracing::warn!(
                grant = %grant.short(),
                use_number,
                "an enrolment in etcd is not as a broker wrote it and is left out: {error}; see \
                 who else writes there"
            );
            None
        }
    }
}

/// Unix seconds, then whether connected.
pub(super) fn write_heard(heard: Heard) -> String {
    format!("{} {}", heard.at, u8::from(heard.connected))
}

pub(super) fn read_heard(value: &[u8]) -> Option<Heard> {
    let (at, connected) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some(Heard {
        at: at.parse().ok()?,
        connected: connected == "1",
    })
}
