//! Entries of one neighbour that came before those they build on.

use std::collections::{HashMap, HashSet, VecDeque};

use proto::entry::SignedEntry;
use proto::key::Hash;

pub(super) const MAX: usize = 512;
const MAX_BYTES: usize = 512 * 1024;

#[derive(Debug, Default)]
pub(super) struct Early {
    entries: VecDeque<SignedEntry>,
    /// The whole bytes of each.
    kept: HashSet<Vec<u8>>,
    bytes: usize,
}

impl Early {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The oldest give way when there are too many.
    pub(super) fn keep(&mut self, entry: SignedEntry) {
        let bytes = entry.bytes();
        if self.bytes + bytes.len() > MAX_BYTES || !self.kept.insert(bytes.to_vec()) {
            return;
        }
        self.bytes += bytes.len();
        self.entries.push_back(entry);
        if self.entries.len() > MAX
            && let Some(oldest) = self.entries.pop_front()
        {
            self.forget(&oldest);
        }
    }

    /// Those that lack nothing any more but what is freed with them, parents first. Looks at each
    /// once: anybody may send a long chain backwards.
    pub(super) fn free(&mut self, lacking: impl Fn(&SignedEntry) -> Vec<Hash>) -> Vec<SignedEntry> {
        let mut children: HashMap<Hash, Vec<usize>> = HashMap::new();
        let mut lacks: Vec<usize> = Vec::with_capacity(self.entries.len());
        let mut ready: VecDeque<usize> = VecDeque::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let needed = lacking(entry);
            if needed.is_empty() {
                ready.push_back(at);
            }
            lacks.push(needed.len());
            for hash in needed {
                children.entry(hash).or_default().push(at);
            }
        }
        let mut order = Vec::new();
        while let Some(at) = ready.pop_front() {
            order.push(at);
            // Once only: the same payload may be there under several signatures.
            for child in children
                .remove(&self.entries[at].hash())
                .into_iter()
                .flatten()
            {
                lacks[child] -= 1;
                if lacks[child] == 0 {
                    ready.push_back(child);
                }
            }
        }
        self.take(&order)
    }

    fn take(&mut self, order: &[usize]) -> Vec<SignedEntry> {
        if order.is_empty() {
            return Vec::new();
        }
        let mut all: Vec<Option<SignedEntry>> = self.entries.drain(..).map(Some).collect();
        let freed: Vec<SignedEntry> = order.iter().filter_map(|at| all[*at].take()).collect();
        self.entries.extend(all.into_iter().flatten());
        freed.iter().for_each(|entry| self.forget(entry));
        freed
    }

    fn forget(&mut self, entry: &SignedEntry) {
        self.bytes -= entry.bytes().len();
        self.kept.remove(entry.bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proto::entry::{Body, Entry};
    use proto::key::SigningKey;
    use proto::ledger::NOTHING_BEFORE;

    use super::*;

    fn chain() -> Vec<SignedEntry> {
        let mut entries: Vec<SignedEntry> = Vec::new();
        for number in 0..MAX as u64 {
            let entry = Entry {
                number,
                previous: entries.last().map_or(NOTHING_BEFORE, SignedEntry::hash),
                issued: 0,
                body: Body::SiteRevoked {
                    site: "paris".parse().unwrap(),
                },
            };
            entries.push(entry.sign(&SigningKey::from_seed(&[1; 32])));
        }
        entries
    }

    #[test]
    fn a_long_chain_that_came_backwards_is_freed_in_order_with_one_look_at_each() {
        let chain = chain();
        let mut early = Early::default();
        for entry in chain.iter().skip(1).rev() {
            early.keep(entry.clone());
        }
        let looks = Cell::new(0);
        let first = chain[0].hash();
        let mut there = HashSet::new();
        let mut free = |there: &HashSet<Hash>| {
            early.free(|entry| {
                looks.set(looks.get() + 1);
                let previous = entry.entry().previous;
                let is_there = there.contains(&previous);
                (!is_there).then_some(previous).into_iter().collect()
            })
        };
        assert!(free(&there).is_empty());
        there.insert(first);
        let freed: Vec<Hash> = free(&there).iter().map(SignedEntry::hash).collect();
        let expected: Vec<Hash> = chain[1..].iter().map(SignedEntry::hash).collect();
        assert_eq!(freed, expected);
        assert_eq!(looks.get(), 2 * (MAX - 1));
        assert_eq!((early.bytes, early.kept.len()), (0, 0));
    }

    #[test]
    fn the_oldest_give_way_and_their_room_comes_back() {
        let chain = chain();
        let mut early = Early::default();
        for entry in chain.iter().chain(&chain) {
            early.keep(entry.clone());
        }
        assert_eq!(early.entries.len(), MAX);
        let bytes: usize = chain.iter().map(|entry| entry.bytes().len()).sum();
        assert_eq!(early.bytes, bytes);
    }
}
