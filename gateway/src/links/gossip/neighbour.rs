//! What is known of one neighbour's knowledge, and what is on its way to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto::control::{Digest, Handover, Part};
use proto::entry::SignedEntry;
use proto::key::Hash;
use proto::record::Member;

use super::parcel::{Assembly, MAX_PART, cut};
use super::{ASK_AFTER, ASK_AGAIN, Allowance, SEND_EVERY};

/// What finds no room is asked for again.
const MAX_QUEUE: usize = 512;
/// From one neighbour.
const PARTS_A_SECOND: usize = 400;
/// Between the answers to one neighbour's questions for entries.
const ANSWERS_APART: Duration = Duration::from_millis(200);

/// Something to hand over; cheap to clone, since a thousand may get it.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Entry(Arc<Vec<SignedEntry>>, usize),
    Member(Arc<Member>),
}

#[derive(Debug)]
pub(super) struct Neighbour {
    /// Under which it is among the timers.
    pub(super) due: Duration,
    pub(super) tell_at: Duration,
    pub(super) theirs: Option<Digest>,
    pub(super) ask_at: Option<Duration>,
    pub(super) assembly: Assembly,
    /// When something went out last.
    pub(super) sent: Option<Duration>,
    queue: VecDeque<Item>,
    /// Of the handover that is being sent.
    parts: VecDeque<Part>,
    next_id: u64,
    answered: Option<Duration>,
    /// Questions for entries since a part came.
    fruitless: u32,
    came: Allowance,
}

impl Neighbour {
    pub(super) fn new(id: u64, now: Duration) -> Neighbour {
        Neighbour {
            due: now,
            tell_at: now,
            theirs: None,
            ask_at: None,
            assembly: Assembly::default(),
            sent: None,
            queue: VecDeque::new(),
            parts: VecDeque::new(),
            next_id: id,
            answered: None,
            fruitless: 0,
            came: Allowance::default(),
        }
    }

    pub(super) fn has_heads(&self, heads: &[Hash]) -> bool {
        let theirs = self.theirs.as_ref();
        theirs.is_some_and(|theirs| heads.iter().all(|head| theirs.heads.contains(&head.0)))
    }

    pub(super) fn enqueue(&mut self, item: Item) {
        if self.queue.len() < MAX_QUEUE {
            self.queue.push_back(item);
        }
    }

    pub(super) fn tell_by(&mut self, at: Duration) {
        self.tell_at = self.tell_at.min(at);
    }

    pub(super) fn ask_by(&mut self, at: Duration) {
        self.ask_at = Some(self.ask_at.unwrap_or(at));
    }

    /// Something came; more may be on its way.
    pub(super) fn handle_part(&mut self, now: Duration) {
        self.fruitless = 0;
        self.ask_at = self.ask_at.map(|at| at.max(now + ASK_AFTER));
    }

    /// Who promises entries and sends none is asked less and less.
    pub(super) fn handle_asked(&mut self, now: Duration) {
        self.ask_at = Some(now + ASK_AGAIN * (1 << self.fruitless.min(5)));
        self.fruitless += 1;
    }

    pub(super) fn asks_at(&self, now: Duration) -> bool {
        self.ask_at.is_some_and(|at| now >= at)
    }

    pub(super) fn send_at(&self) -> Option<Duration> {
        let is_idle = self.queue.is_empty() && self.parts.is_empty();
        let at = self.sent.map_or(Duration::ZERO, |sent| sent + SEND_EVERY);
        (!is_idle).then_some(at)
    }

    pub(super) fn next_timer(&self) -> Duration {
        let others = [self.ask_at, self.send_at()];
        others
            .into_iter()
            .flatten()
            .fold(self.tell_at, Duration::min)
    }

    pub(super) fn may_send_parts(&mut self, now: Duration) -> bool {
        self.came.take(PARTS_A_SECOND, Duration::from_secs(1), now)
    }

    /// Not while the last answer is still being sent.
    pub(super) fn may_have_entries(&mut self, now: Duration) -> bool {
        let is_early = self.answered.is_some_and(|at| now < at + ANSWERS_APART);
        let is_sending = self.queue.iter().any(|item| match item {
            Item::Entry(..) => true,
            Item::Member(_) => false,
        });
        if is_early || is_sending {
            return false;
        }
        self.answered = Some(now);
        true
    }

    /// As many small things go together as fit one part: a loss costs little then.
    pub(super) fn next_part(&mut self) -> Option<Part> {
        while self.parts.is_empty() {
            let mut handover = Handover::default();
            let mut length = 0;
            while let Some(item) = self.queue.front() {
                let bytes = item.bytes();
                // Some bytes go around each.
                if length > 0 && length + bytes.len() + 16 > MAX_PART {
                    break;
                }
                length += bytes.len() + 16;
                match item {
                    Item::Entry(..) => handover.entries.push(bytes),
                    Item::Member(_) => handover.members.push(bytes),
                }
                self.queue.pop_front();
            }
            if length == 0 {
                return None;
            }
            self.next_id = self.next_id.wrapping_add(1);
            self.parts = cut(&handover, self.next_id).unwrap_or_default().into();
        }
        self.parts.pop_front()
    }
}

impl Item {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Item::Entry(entries, at) => entries[*at].bytes().to_vec(),
            Item::Member(member) => member.write(),
        }
    }
}
