//! Keys, claims, records and entries to put into a store. All from small numbers, so that a
//! failure can be repeated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broker::store::{
    Change, Claim, Contents, Enrolled, Heard, Publication, Published, Store, StoredUse,
};
use proto::enrolment::JoinProof;
use proto::entry::{Body, Entry, SignedEntry, StoreId, Uses};
use proto::key::{Domain, Hash, PublicKey, SigningKey};

pub(crate) const STORE: StoreId = StoreId([7; 16]);

pub(crate) fn key(number: u32) -> SigningKey {
    let mut seed = [1; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&seed)
}

pub(crate) fn identity(number: u32) -> PublicKey {
    key(number).public()
}

pub(crate) fn broker() -> Arc<SigningKey> {
    Arc::new(key(u32::MAX))
}

pub(crate) fn grant(number: u32) -> Hash {
    Hash::of(Domain::Entry, &number.to_be_bytes())
}

pub(crate) fn claim(grant_number: u32, uses: Uses, node: u32) -> Claim {
    let mesh = Hash([9; 32]);
    Claim {
        grant: grant(grant_number),
        uses,
        proof: JoinProof::sign(mesh, grant(grant_number), &key(u32::MAX - 1), &key(node)),
    }
}

/// A chain of entries that begins with number `from`.
pub(crate) fn entries(from: u64, count: u64) -> Vec<SignedEntry> {
    let mut previous = Hash([0; 32]);
    (from..from + count)
        .map(|number| {
            let entry = Entry {
                number,
                previous,
                issued: number,
                body: Body::SiteRevoked {
                    site: format!("site-{number}").parse().unwrap(),
                },
            };
            let signed = entry.sign(&key(0));
            previous = signed.hash();
            signed
        })
        .collect()
}

pub(crate) fn publication(node: u32, name: &str, sequence: u64) -> Publication {
    Publication {
        identity: identity(node),
        site: "berlin".parse().unwrap(),
        node: name.parse().unwrap(),
        sequence,
        bytes: record(node, name, sequence),
        withdrawn: false,
        takes_over: None,
    }
}

/// About as long as a real one.
pub(crate) fn record(node: u32, name: &str, sequence: u64) -> Vec<u8> {
    let mut bytes = format!("{node} {name} {sequence} ").into_bytes();
    bytes.resize(600, b'.');
    bytes
}

pub(crate) fn heard(at: u64, connected: bool) -> Heard {
    Heard { at, connected }
}

/// What a follower knows who began with one [`Contents`] and applied every change since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) revision: u64,
    pub(crate) entries: BTreeMap<Vec<u8>, ()>,
    pub(crate) members: BTreeMap<PublicKey, (u64, Vec<u8>)>,
    pub(crate) uses: BTreeMap<(Hash, u32), StoredUse>,
    pub(crate) heard: BTreeMap<PublicKey, (u64, bool)>,
}

impl Model {
    pub(crate) fn of(contents: Contents) -> Model {
        Model {
            revision: contents.revision,
            entries: contents
                .entries
                .into_iter()
                .map(|bytes| (bytes, ()))
                .collect(),
            members: contents
                .members
                .into_iter()
                .map(|member| (member.identity, (member.revision, member.bytes)))
                .collect(),
            uses: contents
                .uses
                .into_iter()
                .map(|taken| ((taken.grant, taken.use_number), taken))
                .collect(),
            heard: contents
                .heard
                .into_iter()
                .map(|(identity, heard)| (identity, (heard.at, heard.connected)))
                .collect(),
        }
    }

    pub(crate) fn apply(&mut self, revision: u64, change: Change) {
        assert!(revision >= self.revision, "a change went back");
        self.revision = revision;
        match change {
            Change::Entry(bytes) => {
                assert_eq!(self.entries.insert(bytes, ()), None, "an entry came twice");
            }
            Change::Member { identity, bytes } => {
                self.members.insert(identity, (revision, bytes));
            }
            Change::Forgotten(identity) => {
                self.members.remove(&identity);
                self.heard.remove(&identity);
            }
            Change::Use(taken) => {
                let before = self.uses.insert((taken.grant, taken.use_number), taken);
                assert_eq!(before, None, "a use was given twice");
            }
            Change::Heard(identity, heard) => {
                self.heard.insert(identity, (heard.at, heard.connected));
            }
        }
    }
}

/// Applies changes until the revision has come.
pub(crate) async fn follow(store: &dyn Store, model: &mut Model, until: u64) {
    while model.revision < until {
        let batch = tokio::time::timeout(Duration::from_secs(60), store.changes(model.revision))
            .await
            .expect("a change comes")
            .expect("the changes are there");
        assert!(batch.revision > model.revision, "a batch without progress");
        for (revision, change) in batch.changes {
            assert!(revision > model.revision || revision <= batch.revision);
            model.apply(revision, change);
        }
        model.revision = batch.revision;
    }
}

pub(crate) fn done(published: Published) -> u64 {
    match published {
        Published::Done { revision } => revision,
        other @ (Published::Same { .. } | Published::Old { .. } | Published::NameHeld { .. }) => {
            panic!("not taken: {other:?}")
        }
    }
}

pub(crate) fn fresh(enrolled: Enrolled) -> Vec<u8> {
    match enrolled {
        Enrolled::Fresh(bytes) => bytes,
        other @ (Enrolled::Again(_) | Enrolled::AllUsed { .. }) => panic!("no use: {other:?}"),
    }
}
