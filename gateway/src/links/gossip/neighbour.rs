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

/// Answers to one neighbour's questions for records: somewhat more than an honest one asks, since
/// on the way some come closer together.
const RECORDS_IN: Duration = Duration::from_secs(1);
const RECORDS_AT_MOST: usize = 24;

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
    limits: Limits,
}

/// What one neighbour has had of this gateway's time. It outlives a link that goes down and comes
/// up: whoever has used up its share gets no other by starting anew.
#[derive(Debug, Default)]
pub(super) struct Limits {
    answered: Option<Duration>,
    records: Allowance,
    came: Allowance,
    asked: Option<Duration>,
    /// Questions for entries since a part came.
    fruitless: u32,
}

impl Limits {
    /// Whether nothing is left to be remembered.
    pub(super) fn are_over(&self, now: Duration) -> bool {
        let times = [
            self.answered.unwrap_or_default() + ANSWERS_APART,
            self.records.since + RECORDS_IN,
            self.came.since + Duration::from_secs(1),
            self.ask_from(),
        ];
        times.iter().all(|at| now >= *at)
    }

    /// Who promises entries and sends none is asked less and less.
    fn ask_from(&self) -> Duration {
        let apart = ASK_AGAIN * (1 << self.fruitless.saturating_sub(1).min(5));
        self.asked.map_or(Duration::ZERO, |asked| asked + apart)
    }
}

impl Neighbour {
    pub(super) fn new(id: u64, limits: Limits, now: Duration) -> Neighbour {
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
            limits,
        }
    }

    pub(super) fn into_limits(self) -> Limits {
        self.limits
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
        let at = at.max(self.limits.ask_from());
        self.ask_at = Some(self.ask_at.unwrap_or(at));
    }

    /// Something came; more may be on its way.
    pub(super) fn handle_part(&mut self, now: Duration) {
        self.limits.fruitless = 0;
        self.ask_at = self.ask_at.map(|at| at.max(now + ASK_AFTER));
    }

    pub(super) fn handle_asked(&mut self, now: Duration) {
        self.limits.asked = Some(now);
        self.limits.fruitless = self.limits.fruitless.saturating_add(1);
        self.ask_at = Some(self.limits.ask_from());
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
        self.limits
            .came
            .take(PARTS_A_SECOND, Duration::from_secs(1), now)
    }

    /// Not while the last answer is still being sent.
    pub(super) fn may_have_entries(&mut self, now: Duration) -> bool {
        let is_early = self
            .limits
            .answered
            .is_some_and(|at| now < at + ANSWERS_APART);
        let is_sending = self.queue.iter().any(|item| match item {
            Item::Entry(..) => true,
            Item::Member(_) => false,
        });
        if is_early || is_sending {
            return false;
        }
        self.limits.answered = Some(now);
        true
    }

    /// Each answer looks through all records of a span.
    pub(super) fn may_have_records(&mut self, now: Duration) -> bool {
        self.limits.records.take(RECORDS_AT_MOST, RECORDS_IN, now)
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
