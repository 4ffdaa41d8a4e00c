//! Who else has the same: an index that tells at once when two nodes share what each should have
//! alone.

use std::collections::HashMap;
use std::hash::Hash;

use crate::key::PublicKey;

pub(super) struct Shared<K> {
    holders: HashMap<K, Vec<PublicKey>>,
}

impl<K: Hash + Eq> Shared<K> {
    pub(super) fn new() -> Shared<K> {
        Shared {
            holders: HashMap::new(),
        }
    }

    /// Whether it is shared now.
    pub(super) fn add(&mut self, key: K, holder: PublicKey) -> bool {
        let holders = self.holders.entry(key).or_default();
        if !holders.contains(&holder) {
            holders.push(holder);
        }
        holders.len() > 1
    }

    /// Whether it was shared.
    pub(super) fn remove(&mut self, key: &K, holder: &PublicKey) -> bool {
        let Some(holders) = self.holders.get_mut(key) else {
            return false;
        };
        let was_shared = holders.len() > 1;
        holders.retain(|other| other != holder);
        if holders.is_empty() {
            self.holders.remove(key);
        }
        was_shared
    }

    /// What several have, and who, each in order.
    pub(super) fn shared(&self) -> Vec<(&K, Vec<PublicKey>)>
    where
        K: Ord,
    {
        let mut shared: Vec<_> = self
            .holders
            .iter()
            .filter(|(_, holders)| holders.len() > 1)
            .map(|(key, holders)| {
                let mut holders = holders.clone();
                holders.sort();
                (key, holders)
            })
            .collect();
        shared.sort();
        shared
    }
}
