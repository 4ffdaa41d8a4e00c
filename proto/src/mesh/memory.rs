//! What has been verified, remembered by hash, in bounded memory.

use std::collections::HashSet;

use crate::key::Hash;

/// Of each half; two halves of 40 bytes and some an element are below 4 MiB.
const HALF: usize = 16 * 1024;

/// Two halves: when the young one is full it becomes the old one, whose content is forgotten. What
/// is asked for often is never forgotten for long, and forgetting costs only a second look.
#[derive(Default)]
pub(super) struct Memory {
    young: HashSet<Hash>,
    old: HashSet<Hash>,
}

impl Memory {
    pub(super) fn holds(&self, hash: &Hash) -> bool {
        self.young.contains(hash) || self.old.contains(hash)
    }

    pub(super) fn remember(&mut self, hash: Hash) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Domain;

    fn hash(number: usize) -> Hash {
        Hash::of(Domain::Verified, &number.to_be_bytes())
    }

    #[test]
    fn the_latest_are_remembered_and_memory_is_bounded() {
        let mut memory = Memory::default();
        for number in 0..5 * HALF {
            memory.remember(hash(number));
        }
        assert!(memory.young.len() + memory.old.len() <= 2 * HALF);
        assert!((4 * HALF..5 * HALF).all(|number| memory.holds(&hash(number))));
        assert!(!memory.holds(&hash(0)));
    }
}
