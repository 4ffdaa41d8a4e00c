//! Which thread owns which link, and its slot there.

use std::collections::VecDeque;
use std::time::Duration;

use crate::data::mailbox::Command;
use crate::data::snapshot::LinkPlace;
use crate::data::thread::Shared;

/// A slot is not given to another link before its thread has surely forgotten the last one.
const SLOT_RESTS: Duration = Duration::from_secs(5);

/// The slots of one thread.
#[derive(Debug, Default)]
struct Slots {
    used: usize,
    next: u32,
    free: VecDeque<(u32, Duration)>,
    attached: Option<bool>,
}

impl Slots {
    fn was_used(&self) -> bool {
        self.next > 0
    }
}

#[derive(Debug)]
pub(crate) struct Places {
    threads: Vec<Slots>,
}

impl Places {
    /// For at least one thread.
    pub(crate) fn new(threads: usize) -> Places {
        let threads = (0..threads.max(1)).map(|_| Slots::default()).collect();
        Places { threads }
    }

    /// A free slot of the thread with the fewest links.
    pub(crate) fn take(&mut self, now: Duration) -> LinkPlace {
        let fewest = (0..self.threads.len()).min_by_key(|thread| self.threads[*thread].used);
        let thread = fewest.unwrap_or_default();
        let slots = &mut self.threads[thread];
        slots.used += 1;
        let has_rested =
            |(_, freed): &mut (u32, Duration)| now.saturating_sub(*freed) >= SLOT_RESTS;
        let slot = match slots.free.pop_front_if(has_rested) {
            Some((slot, _)) => slot,
            None => {
                slots.next += 1;
                slots.next - 1
            }
        };
        LinkPlace {
            thread: thread as u32,
            slot,
        }
    }

    pub(crate) fn give_back(&mut self, place: LinkPlace, now: Duration) {
        if let Some(slots) = self.threads.get_mut(place.thread as usize) {
            slots.used = slots.used.saturating_sub(1);
            slots.free.push_back((place.slot, now));
        }
    }

    /// Threads that never had a link leave the kernel's choice of queues, so that no packet has to
    /// be passed on; one always stays. A thread whose links are gone stays too: the kernel throws
    /// away what waits in a queue that leaves, and that is traffic of others.
    pub(crate) fn attach_queues(&mut self, shared: &Shared) {
        let any = self.threads.iter().any(Slots::was_used);
        for (thread, slots) in self.threads.iter_mut().enumerate() {
            let wanted = slots.was_used() || (!any && thread == 0);
            if slots.attached.replace(wanted) != Some(wanted) {
                shared.mailboxes[thread].command(Command::Attach(wanted));
            }
        }
    }

    /// The queues were made anew: all are attached.
    pub(crate) fn queues_are_new(&mut self) {
        for slots in &mut self.threads {
            slots.attached = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::data::mailbox::{ControlInbox, Mailbox};
    use crate::data::snapshot::{Mesh, Snapshot};

    #[test]
    fn links_spread_over_the_threads_and_slots_rest_before_they_serve_again() {
        let mut places = Places::new(2);
        let begin = Duration::from_secs(100);
        let taken: Vec<LinkPlace> = (0..4).map(|_| places.take(begin)).collect();
        let threads: Vec<u32> = taken.iter().map(|place| place.thread).collect();
        assert_eq!(threads, [0, 1, 0, 1]);
        places.give_back(taken[0], begin);
        assert_ne!(places.take(begin + SLOT_RESTS / 2), taken[0]);
        places.give_back(taken[2], begin);
        assert_eq!(places.take(begin + SLOT_RESTS), taken[0]);
    }

    #[test]
    fn a_queue_that_carried_packets_is_never_left() {
        let mailboxes: std::io::Result<Vec<Mailbox>> = (0..2).map(|_| Mailbox::new()).collect();
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::mesh(Mesh::default()))),
            mailboxes: mailboxes.unwrap().into(),
            control: Arc::new(ControlInbox::for_mesh().unwrap()),
        };
        let mut places = Places::new(2);
        let attached = |places: &mut Places| -> Vec<bool> {
            places.attach_queues(&shared);
            let threads = places.threads.iter();
            threads.map(|slots| slots.attached.unwrap()).collect()
        };
        let now = Duration::from_secs(100);
        assert_eq!(attached(&mut places), [true, false], "no links");
        let (first, second) = (places.take(now), places.take(now));
        assert_eq!(attached(&mut places), [true, true]);
        places.give_back(second, now);
        assert_eq!(attached(&mut places), [true, true], "one link is gone");
        places.give_back(first, now);
        assert_eq!(attached(&mut places), [true, true], "all links are gone");
    }
}
