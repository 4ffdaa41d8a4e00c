//! Finding out which records differ: one neighbour at a time is told what is here, a span of
//! identities after the other, and answers with what is newer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::control::Want;
use proto::key::PublicKey;
use proto::knowledge::Knowledge;
use proto::record::Member;

/// Identities in one message.
const SPAN: usize = 40;
const SPANS_APART: Duration = Duration::from_millis(50);
/// Between sweeps: what the last one brought is verified meanwhile.
const SWEEPS_APART: Duration = Duration::from_millis(500);
/// In a mesh of more, differences may be on their way from the broker: they have to last.
const SMALL: usize = 50;
const SETTLED: Duration = Duration::from_secs(2);
/// Not longer than this, for somebody may sign a new record each second.
const SETTLED_AT_LAST: Duration = Duration::from_secs(10);
/// Until the same difference, which a sweep did not end, is looked into again, with whomever: the
/// others lack what we have, or something got lost.
const AGAIN_SMALL: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(10);
const MAX_REMEMBERED: usize = 256;
/// Says that records are asked for where none are here.
const NONE: (u64, u64) = (0, 0);

#[derive(Debug)]
pub(super) struct Sweeps {
    /// Their records differ from ours, by their last digest.
    proposed: VecDeque<PublicKey>,
    current: Option<Sweep>,
    not_before: Duration,
    /// When our own records changed last.
    changed: Duration,
    /// Since when they have not settled, or have not been swept.
    restless_since: Duration,
    /// Differences that were looked into lately.
    done: VecDeque<Done>,
}

#[derive(Debug)]
struct Sweep {
    with: PublicKey,
    /// First byte of the identities that come next; past the last when over.
    from: u16,
}

#[derive(Debug)]
struct Done {
    theirs: [u8; 32],
    ours: [u8; 32],
    at: Duration,
}

impl Sweeps {
    pub(super) fn new(now: Duration) -> Sweeps {
        Sweeps {
            proposed: VecDeque::new(),
            current: None,
            not_before: now,
            changed: Duration::ZERO,
            restless_since: Duration::ZERO,
            done: VecDeque::new(),
        }
    }

    pub(super) fn handle_records(&mut self, now: Duration) {
        if now >= self.changed + SETTLED {
            self.restless_since = now;
        }
        self.changed = now;
    }

    pub(super) fn propose(&mut self, with: PublicKey) {
        if !self.proposed.contains(&with) {
            self.proposed.push_back(with);
        }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        let is_idle = self.current.is_none() && self.proposed.is_empty();
        (!is_idle).then_some(self.not_before)
    }

    /// The next question; `differs` tells a neighbour's records if they are not ours.
    pub(super) fn next(
        &mut self,
        knowledge: &Knowledge,
        differs: impl Fn(&PublicKey) -> Option<[u8; 32]>,
        now: Duration,
    ) -> Option<(PublicKey, Want)> {
        if now < self.not_before {
            return None;
        }
        if self.current.is_none() {
            self.current = self.begin(knowledge, differs, now);
        }
        let sweep = self.current.as_mut()?;
        let (want, next) = question(knowledge, sweep.from);
        let with = sweep.with;
        self.not_before = now + SPANS_APART;
        match next {
            Some(next) => sweep.from = next,
            None => {
                self.current = None;
                self.not_before = now + SWEEPS_APART;
            }
        }
        Some((with, want))
    }

    fn begin(
        &mut self,
        knowledge: &Knowledge,
        differs: impl Fn(&PublicKey) -> Option<[u8; 32]>,
        now: Duration,
    ) -> Option<Sweep> {
        let is_small = knowledge.members.len() <= SMALL;
        let again = if is_small { AGAIN_SMALL } else { AGAIN };
        let ours = knowledge.records.0;
        self.done.retain(|done| now < done.at + again);
        if !is_small && self.must_wait(now) {
            // Each is proposed again by its next digest.
            self.proposed.clear();
            return None;
        }
        while let Some(with) = self.proposed.pop_front() {
            let Some(theirs) = differs(&with) else {
                continue;
            };
            let mut done = self.done.iter();
            if done.any(|done| done.theirs == theirs && done.ours == ours) {
                continue;
            }
            if self.done.len() >= MAX_REMEMBERED {
                self.done.pop_front();
            }
            let at = now;
            self.done.push_back(Done { theirs, ours, at });
            self.restless_since = now;
            return Some(Sweep { with, from: 0 });
        }
        None
    }

    fn must_wait(&self, now: Duration) -> bool {
        now < self.changed + SETTLED && now < self.restless_since + SETTLED_AT_LAST
    }
}

/// As many identities from this first byte on as fit a message, and where the next one begins.
fn question(knowledge: &Knowledge, from: u16) -> (Want, Option<u16>) {
    let mut have = Vec::new();
    let mut last = u8::MAX;
    let mut next = None;
    let members = knowledge.members.iter();
    let members = members.filter(|(identity, _)| u16::from(identity.as_bytes()[0]) >= from);
    for (identity, (sequence, _)) in members {
        let first = identity.as_bytes()[0];
        if have.len() >= SPAN {
            if u16::from(first) == from {
                // So many under one byte do not fit; the others come without need.
                continue;
            }
            let cut = have
                .iter()
                .rposition(|(other, _): &(u64, u64)| (other >> 56) as u8 != first);
            have.truncate(cut.map_or(SPAN, |at| at + 1));
            last = first - 1;
            next = Some(u16::from(first));
            break;
        }
        have.push((tag(identity), *sequence));
    }
    if have.is_empty() {
        have.push(NONE);
    }
    let want = Want {
        heads: Vec::new(),
        have,
        span: (from.min(u16::from(u8::MAX)) as u8, last),
    };
    (want, next)
}

/// What the asker lacks or has older.
pub(super) fn answer<'a>(
    knowledge: &'a Knowledge,
    want: &Want,
) -> impl Iterator<Item = Arc<Member>> + use<'a> {
    let (first, last) = want.span;
    let mut have: HashMap<u64, u64> = HashMap::new();
    for (tag, sequence) in &want.have {
        let has = have.entry(*tag).or_default();
        *has = (*has).max(*sequence);
    }
    let members = knowledge.members.iter();
    members
        .filter(move |(identity, _)| (first..=last).contains(&identity.as_bytes()[0]))
        .filter(move |(identity, (sequence, _))| {
            let has = have.get(&tag(identity));
            has.is_none_or(|has| has < sequence)
        })
        .map(|(_, (_, member))| member.clone())
}

fn tag(identity: &PublicKey) -> u64 {
    let bytes = identity.as_bytes();
    u64::from_be_bytes(std::array::from_fn(|at| bytes[at]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::key::SigningKey;

    use super::*;

    fn identity(number: u8) -> PublicKey {
        SigningKey::from_seed(&[number; 32]).public()
    }

    #[test]
    fn records_that_change_all_the_time_put_a_sweep_off_for_ten_seconds_at_most() {
        let member = Arc::new(Member {
            enrolment: vec![],
            record: vec![],
        });
        let members = (0..60).map(|number| (identity(number), (1, member.clone())));
        let knowledge = Knowledge {
            members: Arc::new(members.collect::<BTreeMap<_, _>>()),
            ..Knowledge::default()
        };
        let mut sweeps = Sweeps::new(Duration::ZERO);
        let mut began = vec![];
        for second in 100..140 {
            let now = Duration::from_secs(second);
            sweeps.handle_records(now);
            sweeps.propose(identity(1));
            // Theirs change as well.
            let theirs = [second as u8; 32];
            while let Some((with, _)) = sweeps.next(&knowledge, |_| Some(theirs), now) {
                sweeps.not_before = now;
                assert_eq!(with, identity(1));
                if began.last() != Some(&second) {
                    began.push(second);
                }
            }
        }
        assert_eq!(began, [110, 120, 130]);
    }
}
