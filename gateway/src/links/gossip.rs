//! What gateways tell each other of the mesh, so that revocations and moves spread with no broker.
//!
//! Level-triggered: everyone tells everyone a digest now and then; who sees that it lacks something
//! asks, and whatever gets lost is found by the next digest. What is new and little is sent without
//! being asked for. Nothing is trusted here: what comes is read only to leave out what is known.

mod intake;
mod neighbour;
mod parcel;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::control::{Control, Digest, Handover, Part, Want};
use proto::key::{Hash, PublicKey};
use proto::knowledge::Knowledge;

use super::dice::Dice;
use intake::{Intake, Known};
use neighbour::{Item, Limits, Neighbour};
use sweep::Sweeps;

const DIGEST_EVERY: Duration = Duration::from_secs(5);
/// A change of records alone is told at once to so many; a broker has told larger meshes, or their
/// next digests do.
const FEW_NEIGHBOURS: usize = 32;
/// So many new entries are sent unasked.
const FEW_ENTRIES: usize = 8;
/// A digest follows what was sent unasked, in case that was lost.
const FOLLOW_UP: Duration = Duration::from_millis(300);
const MAX_HEADS: usize = 16;

/// Until entries are asked for again, of one neighbour.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After the last part that came: more may be on its way.
const ASK_AFTER: Duration = Duration::from_millis(300);
/// Everyone has the same to tell, so few are asked.
const ASKS_A_SECOND: u32 = 8;

/// Between the packets of one neighbour, and how many there are then: about 200 a second.
const SEND_EVERY: Duration = Duration::from_millis(50);
const SEND_AT_ONCE: usize = 10;
/// To all neighbours together in that time.
const SEND_IN_ALL: usize = 400;

/// Stands for the head of those who have no entry yet.
const NO_HEAD: [u8; 32] = [0; 32];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GossipMessage {
    Digest(Digest),
    Want(Want),
    Part(Part),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GossipOutput {
    Send {
        to: PublicKey,
        message: Control,
    },
    /// Nothing of it is verified.
    HandedOver {
        from: PublicKey,
        handover: Handover,
    },
}

#[derive(Debug)]
pub(crate) struct Gossip {
    own: PublicKey,
    dice: Dice,
    knowledge: Arc<Knowledge>,
    /// Of all entries.
    known: HashSet<Hash>,
    neighbours: BTreeMap<PublicKey, Neighbour>,
    /// Of those that are away.
    limits: BTreeMap<PublicKey, Limits>,
    /// Each neighbour by its next timer.
    due: BTreeSet<(Duration, PublicKey)>,
    intake: Intake,
    sweeps: Sweeps,
    /// Within the present second, and within the present [`SEND_EVERY`].
    asks: Allowance,
    sends: Allowance,
    outputs: VecDeque<GossipOutput>,
}

/// So many in a span of time.
#[derive(Debug, Default)]
struct Allowance {
    since: Duration,
    used: usize,
}

impl Allowance {
    fn take(&mut self, most: usize, span: Duration, now: Duration) -> bool {
        if now >= self.since + span {
            *self = Allowance {
                since: now,
                used: 0,
            };
        }
        let is_free = self.used < most;
        self.used += usize::from(is_free);
        is_free
    }
}

impl Gossip {
    pub(crate) fn new(own: PublicKey, seed: u64, now: Duration) -> Gossip {
        Gossip {
            own,
            dice: Dice::new(seed),
            knowledge: Arc::default(),
            known: HashSet::new(),
            neighbours: BTreeMap::new(),
            limits: BTreeMap::new(),
            due: BTreeSet::new(),
            intake: Intake::default(),
            sweeps: Sweeps::new(now),
            asks: Allowance::default(),
            sends: Allowance::default(),
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn handle_knowledge(&mut self, knowledge: Arc<Knowledge>, now: Duration) {
        let former = std::mem::replace(&mut self.knowledge, knowledge);
        let knowledge = self.knowledge.clone();
        if former.heads != knowledge.heads {
            self.handle_entries(&knowledge, now);
        }
        if former.records != knowledge.records {
            self.sweeps.handle_records(now);
            self.handle_records(&former, &knowledge, now);
        }
        self.intake.handle_known(&self.known, now);
        self.handle_timeout(now);
    }

    /// The tunnel is up and proven; again when the other side has started anew.
    pub(crate) fn handle_up(&mut self, of: &PublicKey, now: Duration) {
        self.handle_gone(of);
        let id = self.dice.next();
        let limits = self.limits.remove(of).unwrap_or_default();
        self.limits.retain(|_, limits| !limits.are_over(now));
        self.neighbours.insert(*of, Neighbour::new(id, limits, now));
        self.due.insert((now, *of));
    }

    pub(crate) fn handle_gone(&mut self, of: &PublicKey) {
        if let Some(neighbour) = self.neighbours.remove(of) {
            self.due.remove(&(neighbour.due, *of));
            self.limits.insert(*of, neighbour.into_limits());
        }
        self.intake.handle_gone(of);
    }

    pub(crate) fn handle_message(
        &mut self,
        from: &PublicKey,
        message: GossipMessage,
        now: Duration,
    ) {
        if !self.neighbours.contains_key(from) {
            return;
        }
        match message {
            GossipMessage::Digest(digest) => self.handle_digest(from, digest, now),
            GossipMessage::Want(want) => self.handle_want(from, &want, now),
            GossipMessage::Part(part) => self.handle_part(from, part, now),
        }
        self.flush(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        while let Some((at, of)) = self.due.first().copied()
            && at <= now
        {
            self.serve(&of, now);
        }
        self.sweep(now);
        self.flush(now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let due = self.due.first().map(|(at, _)| *at);
        [due, self.sweeps.due(), self.intake.due()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn poll_output(&mut self) -> Option<GossipOutput> {
        self.outputs.pop_front()
    }

    /// Entries are new here: they go out unasked if they are few.
    fn handle_entries(&mut self, knowledge: &Knowledge, now: Duration) {
        let is_first = self.known.is_empty();
        let entries = knowledge.entries.iter().enumerate();
        let fresh: Vec<usize> = entries
            .filter(|(_, entry)| !self.known.contains(&entry.hash()))
            .map(|(at, _)| at)
            .collect();
        self.known = knowledge.entries.iter().map(|e| e.hash()).collect();
        let is_sent = !is_first && fresh.len() <= FEW_ENTRIES;
        for of in self.everyone() {
            self.change(&of, |neighbour, dice| {
                let has_it = neighbour.has_heads(&knowledge.heads);
                if is_sent && !has_it {
                    for at in &fresh {
                        neighbour.enqueue(Item::Entry(knowledge.entries.clone(), *at));
                    }
                }
                let follow_up = dice.jitter(FOLLOW_UP, 50);
                neighbour.tell_by(if is_sent { now + follow_up } else { now });
            });
        }
    }

    /// Our own record goes out unasked: nobody else has it to tell.
    fn handle_records(&mut self, former: &Knowledge, knowledge: &Knowledge, now: Duration) {
        let own = knowledge.members.get(&self.own);
        let had = former.members.get(&self.own);
        let is_own = own.map(|(sequence, _)| sequence) != had.map(|(sequence, _)| sequence);
        let own = own.filter(|_| is_own).map(|(_, member)| member.clone());
        if own.is_none() && self.neighbours.len() > FEW_NEIGHBOURS {
            return;
        }
        for of in self.everyone() {
            self.change(&of, |neighbour, dice| {
                if let Some(own) = &own {
                    neighbour.enqueue(Item::Member(own.clone()));
                }
                let follow_up = dice.jitter(FOLLOW_UP, 50);
                neighbour.tell_by(now + follow_up);
            });
        }
    }

    fn handle_digest(&mut self, from: &PublicKey, digest: Digest, now: Duration) {
        if digest.heads.len() > MAX_HEADS {
            return;
        }
        let lacks_entries = self.lacks(from, &digest, now);
        let differs = digest.records != self.knowledge.records.0;
        self.change(from, |neighbour, _| {
            neighbour.theirs = Some(digest);
            if lacks_entries {
                neighbour.ask_by(now);
            }
        });
        if differs {
            self.sweeps.propose(*from);
            self.sweep(now);
        }
        self.handle_timeout(now);
    }

    fn handle_want(&mut self, from: &PublicKey, want: &Want, now: Duration) {
        let knowledge = self.knowledge.clone();
        let mut items = Vec::new();
        let Some(neighbour) = self.neighbours.get_mut(from) else {
            return;
        };
        if !want.heads.is_empty() && neighbour.may_have_entries(now) {
            let heads: Vec<Hash> = want.heads.iter().copied().map(Hash).collect();
            let missing: HashSet<Hash> =
                knowledge.missing(&heads).iter().map(|e| e.hash()).collect();
            let entries = knowledge.entries.iter().enumerate();
            let missing = entries.filter(|(_, entry)| missing.contains(&entry.hash()));
            items.extend(missing.map(|(at, _)| Item::Entry(knowledge.entries.clone(), at)));
        }
        if !want.have.is_empty() && neighbour.may_have_records(now) {
            items.extend(sweep::answer(&knowledge, want).map(Item::Member));
        }
        self.change(from, |neighbour, _| {
            for item in items {
                neighbour.enqueue(item);
            }
        });
        self.handle_timeout(now);
    }

    fn handle_part(&mut self, from: &PublicKey, part: Part, now: Duration) {
        let mut handover = None;
        self.change(from, |neighbour, _| {
            if neighbour.may_send_parts(now) {
                neighbour.handle_part(now);
                handover = neighbour.assembly.handle_part(part, now);
            }
        });
        if let Some(handover) = handover {
            let known = Known {
                entries: &self.known,
                members: &self.knowledge.members,
            };
            self.intake.handle_handover(from, handover, known, now);
        }
    }

    /// What is due for one neighbour.
    fn serve(&mut self, of: &PublicKey, now: Duration) {
        let Some(neighbour) = self.neighbours.get(of) else {
            self.due.retain(|(_, other)| other != of);
            return;
        };
        if now >= neighbour.tell_at {
            self.tell(of, now);
        }
        if self.neighbours.get(of).is_some_and(|n| n.asks_at(now)) {
            self.ask(of, now);
        }
        self.send(of, now);
    }

    fn tell(&mut self, of: &PublicKey, now: Duration) {
        let heads = self.knowledge.heads.iter().take(MAX_HEADS);
        let digest = Digest {
            heads: heads.map(|head| head.0).collect(),
            records: self.knowledge.records.0,
        };
        self.output(of, Control::Digest(digest));
        self.change(of, |neighbour, dice| {
            neighbour.tell_at = now + dice.jitter(DIGEST_EVERY, 80);
            neighbour.assembly.forget(now);
        });
    }

    /// Asks for the entries behind a head that is unknown here.
    fn ask(&mut self, of: &PublicKey, now: Duration) {
        let theirs = self.neighbours.get(of).and_then(|n| n.theirs.as_ref());
        if !theirs.is_some_and(|theirs| self.lacks(of, theirs, now)) {
            self.change(of, |neighbour, _| neighbour.ask_at = None);
            return;
        }
        if !self
            .asks
            .take(ASKS_A_SECOND as usize, Duration::from_secs(1), now)
        {
            self.change(of, |neighbour, dice| {
                neighbour.ask_at = Some(now + dice.jitter(ASK_AGAIN, 30));
            });
            return;
        }
        let heads = self.knowledge.heads.iter().take(MAX_HEADS);
        let mut heads: Vec<[u8; 32]> = heads.map(|head| head.0).collect();
        if heads.is_empty() {
            heads.push(NO_HEAD);
        }
        let want = Want {
            heads,
            have: Vec::new(),
            span: (0, 0),
        };
        self.output(of, Control::Want(want));
        self.change(of, |neighbour, _| neighbour.handle_asked(now));
    }

    fn send(&mut self, of: &PublicKey, now: Duration) {
        let mut parts = Vec::new();
        if let Some(neighbour) = self.neighbours.get_mut(of)
            && neighbour.send_at().is_some_and(|at| now >= at)
        {
            while parts.len() < SEND_AT_ONCE
                && self.sends.take(SEND_IN_ALL, SEND_EVERY, now)
                && let Some(part) = neighbour.next_part()
            {
                parts.push(part);
            }
        }
        for part in parts {
            self.output(of, Control::Part(part));
        }
        self.change(of, |neighbour, _| {
            if neighbour.send_at().is_some_and(|at| now >= at) {
                neighbour.sent = Some(now);
            }
        });
    }

    fn sweep(&mut self, now: Duration) {
        let neighbours = &self.neighbours;
        let differs = |of: &PublicKey| {
            let theirs = neighbours.get(of)?.theirs.as_ref()?;
            (theirs.records != self.knowledge.records.0).then_some(theirs.records)
        };
        if let Some((of, want)) = self.sweeps.next(&self.knowledge, differs, now) {
            self.output(&of, Control::Want(want));
        }
    }

    /// Whether a head of theirs is unknown here and they have not just handed it over.
    fn lacks(&self, of: &PublicKey, theirs: &Digest, now: Duration) -> bool {
        let mut heads = theirs.heads.iter().map(|head| Hash(*head));
        heads.any(|head| !self.known.contains(&head) && !self.intake.has_handed(of, &head, now))
    }

    fn flush(&mut self, now: Duration) {
        let known = Known {
            entries: &self.known,
            members: &self.knowledge.members,
        };
        for (from, handover) in self.intake.flush(known, now) {
            self.outputs
                .push_back(GossipOutput::HandedOver { from, handover });
        }
    }

    fn output(&mut self, to: &PublicKey, message: Control) {
        self.outputs
            .push_back(GossipOutput::Send { to: *to, message });
    }

    fn everyone(&self) -> Vec<PublicKey> {
        self.neighbours.keys().copied().collect()
    }

    /// Changes a neighbour and puts its timer where it belongs.
    fn change(&mut self, of: &PublicKey, change: impl FnOnce(&mut Neighbour, &mut Dice)) {
        if let Some(neighbour) = self.neighbours.get_mut(of) {
            change(neighbour, &mut self.dice);
            self.due.remove(&(neighbour.due, *of));
            neighbour.due = neighbour.next_timer();
            self.due.insert((neighbour.due, *of));
        }
    }
}
