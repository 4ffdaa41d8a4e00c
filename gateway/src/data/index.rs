//! Receiver indexes. boringtun appends 8 bits of its own to the 24 that we choose, so that an
//! index on the wire reads, from the low end: 8 bits session, 4 thread, 14 slot, 6 generation.
//! The kernel steers by the thread bits; the slot is a flat table's place, the generation tells
//! a slot's present user from the last.

const SESSION_BITS: u32 = 8;
const THREAD_BITS: u32 = 4;
const SLOT_BITS: u32 = 14;
const GENERATION_BITS: u32 = 6;
const _: () = assert!(SESSION_BITS + THREAD_BITS + SLOT_BITS + GENERATION_BITS == 32);

pub const THREAD_MASK: u32 = (1 << THREAD_BITS) - 1;
pub const MAX_THREADS: usize = 1 << THREAD_BITS;

/// The thread that owns the session of a receiver index.
pub fn thread_of(receiver_index: u32) -> usize {
    ((receiver_index >> SESSION_BITS) & THREAD_MASK) as usize
}

/// The 24 bits that name one `Tunn`; its receiver indexes are these and 8 bits more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelIndex(pub u32);

impl TunnelIndex {
    pub fn of(receiver_index: u32) -> TunnelIndex {
        TunnelIndex(receiver_index >> SESSION_BITS)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    link: Option<u32>,
}

/// Receiver index to link, of one thread.
#[derive(Debug)]
pub struct IndexTable {
    thread: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl IndexTable {
    pub fn new(thread: usize) -> IndexTable {
        IndexTable {
            thread: thread as u32,
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// A name for a new `Tunn` of `link`; `None` when every slot is taken. `random` makes the
    /// generations of a slot start anywhere.
    pub fn allocate(&mut self, link: u32, random: u32) -> Option<TunnelIndex> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < 1 << SLOT_BITS => {
                self.slots.push(Slot {
                    generation: random,
                    link: None,
                });
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1) % (1 << GENERATION_BITS);
        entry.link = Some(link);
        let above_thread = slot | entry.generation << SLOT_BITS;
        Some(TunnelIndex(self.thread | above_thread << THREAD_BITS))
    }

    pub fn release(&mut self, index: TunnelIndex) {
        let slot = Self::slot(index);
        if self.find(index).is_some() {
            self.slots[slot].link = None;
            self.free.push(slot as u32);
        }
    }

    /// The link that a `Tunn` belongs to, if it still does.
    pub fn find(&self, index: TunnelIndex) -> Option<u32> {
        if index.0 & THREAD_MASK != self.thread {
            return None;
        }
        let entry = self.slots.get(Self::slot(index))?;
        let generation = index.0 >> (THREAD_BITS + SLOT_BITS);
        if entry.generation == generation {
            entry.link
        } else {
            None
        }
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.slots.iter().filter(|slot| slot.link.is_some()).count()
    }

    fn slot(index: TunnelIndex) -> usize {
        ((index.0 >> THREAD_BITS) & ((1 << SLOT_BITS) - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_leads_to_its_link_until_it_is_released() {
        let mut table = IndexTable::new(3);
        let a = table.allocate(10, 99).unwrap();
        let b = table.allocate(11, 7).unwrap();
        assert_eq!((table.find(a), table.find(b)), (Some(10), Some(11)));
        assert_eq!(thread_of(a.0 << 8 | 0xff), 3);
        table.release(a);
        assert_eq!(table.find(a), None);
        let again = table.allocate(12, 0).unwrap();
        assert_eq!(
            table.find(a),
            None,
            "the slot's former name must not lead to its new user"
        );
        assert_eq!(table.find(again), Some(12));
    }

    #[test]
    fn a_full_table_refuses() {
        let mut table = IndexTable::new(0);
        for link in 0..1 << SLOT_BITS {
            assert!(table.allocate(link, 5).is_some());
        }
        assert!(table.allocate(0, 5).is_none());
    }

    #[test]
    fn any_index_may_be_looked_up() {
        let mut table = IndexTable::new(1);
        table.allocate(0, 0).unwrap();
        for index in [0, 1, 0xff_ffff, 0xffff_ffff, 1 << 23] {
            let _ = table.find(TunnelIndex(index));
            table.release(TunnelIndex(index ^ 0x40_0000));
        }
    }
}
