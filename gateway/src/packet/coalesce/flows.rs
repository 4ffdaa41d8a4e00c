//! Which run is the last of each flow: a small set-associative table.
//!
//! It may forget a flow at any time; then the flow's next packet just begins another run.

const SETS: usize = 64;
const WAYS: usize = 4;

#[derive(Debug)]
pub(super) struct Flows {
    slots: Box<[Slot; SETS * WAYS]>,
    /// Slots of an earlier one are free, so that forgetting all costs nothing.
    generation: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    hash: u32,
    run: usize,
}

/// Where a flow is, or would be put.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) slot: usize,
    pub(super) run: Option<usize>,
    hash: u32,
}

impl Flows {
    pub(super) fn new() -> Flows {
        Flows {
            slots: Box::new([Slot::default(); SETS * WAYS]),
            generation: 1,
        }
    }

    #[inline]
    pub(super) fn find(&self, hash: u32, is_same: impl Fn(usize) -> bool) -> Place {
        let first = (hash as usize % SETS) * WAYS;
        let mut free = None;
        for (way, slot) in self.slots[first..first + WAYS].iter().enumerate() {
            if slot.generation != self.generation {
                free = Some(first + way);
            } else if slot.hash == hash && is_same(slot.run) {
                return Place {
                    slot: first + way,
                    run: Some(slot.run),
                    hash,
                };
            }
        }
        // A full set gives up one of its flows, chosen by bits that did not choose the set.
        let evicted = first + (hash >> 16) as usize % WAYS;
        Place {
            slot: free.unwrap_or(evicted),
            run: None,
            hash,
        }
    }

    #[inline]
    pub(super) fn set(&mut self, place: &Place, run: usize) {
        self.slots[place.slot] = Slot {
            generation: self.generation,
            hash: place.hash,
            run,
        };
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: usize) {
        self.slots[slot].generation = 0;
    }

    pub(super) fn forget_all(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.slots.fill(Slot::default());
            self.generation = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(flows: &Flows, hash: u32) -> Option<usize> {
        flows.find(hash, |_| true).run
    }

    fn set(flows: &mut Flows, hash: u32, run: usize) {
        let place = flows.find(hash, |_| true);
        flows.set(&place, run);
    }

    #[test]
    fn a_flow_is_found_until_it_is_removed() {
        let mut flows = Flows::new();
        set(&mut flows, 7, 3);
        assert_eq!(find(&flows, 7), Some(3));
        assert_eq!(find(&flows, 8), None);
        let place = flows.find(7, |_| true);
        flows.remove(place.slot);
        assert_eq!(find(&flows, 7), None);
    }

    #[test]
    fn flows_with_equal_hashes_are_told_apart() {
        let mut flows = Flows::new();
        set(&mut flows, 7, 3);
        let other = flows.find(7, |run| run == 4);
        assert_eq!(other.run, None);
        flows.set(&other, 4);
        assert_eq!(flows.find(7, |run| run == 3).run, Some(3));
        assert_eq!(flows.find(7, |run| run == 4).run, Some(4));
    }

    #[test]
    fn a_full_set_gives_up_one_flow_and_keeps_the_others() {
        let mut flows = Flows::new();
        let hashes: Vec<u32> = (0..=WAYS as u32).map(|n| n << 16).collect();
        for (run, hash) in hashes.iter().enumerate() {
            set(&mut flows, *hash, run);
        }
        assert_eq!(find(&flows, hashes[WAYS]), Some(WAYS));
        let kept = hashes
            .iter()
            .filter(|hash| find(&flows, **hash).is_some())
            .count();
        assert_eq!(kept, WAYS);
    }

    #[test]
    fn all_are_forgotten_also_when_the_generation_wraps() {
        let mut flows = Flows::new();
        set(&mut flows, 1, 1);
        flows.generation = u32::MAX;
        set(&mut flows, 2, 2);
        flows.forget_all();
        assert_eq!((find(&flows, 1), find(&flows, 2)), (None, None));
    }
}
