//! Every member whose chain was verified, whether it is in good standing now or not, and what is
//! remembered of those whose records were dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::enrolment::Enrolment;
use crate::key::{Domain, Hash, PublicKey};
use crate::ledger::{Charter, Standing};
use crate::name::Name;
use crate::record::{Member, NodeState, Record};

use super::chain::Verified;
use super::refusal::MemberRefusal;

/// Records that one site may have here: more than brokers allow it, so that no honest one is hit.
pub const MAX_RECORDS: usize = 8192;
/// Identities seen for one use. More prove nothing new.
const MAX_CONTENDERS: usize = 4;
/// Dropped identities whose sequence numbers and uses are still remembered.
const MAX_FORGOTTEN: usize = 64 * 1024;

/// A node, its record verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub identity: PublicKey,
    pub grant: Hash,
    pub member: Member,
    pub record: Record,
}

pub(super) struct Held {
    pub(super) node: Node,
    pub(super) enrolment: Enrolment,
    pub(super) hash: Hash,
    pub(super) place: Place,
}

/// What a held record counts for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Present,
    Withdrawn,
    /// Out, for what the ledger says.
    Out(Standing),
    /// Out, because this broker may not have counted it: it came with a branch of a fork.
    Uncounted(PublicKey),
    /// Out, because this other identity holds the same use.
    Disputed(PublicKey),
}

/// The highest sequence number of an identity, and the record that had it if it was seen here.
#[derive(Clone, Copy)]
struct Mark {
    sequence: u64,
    record: Option<Hash>,
}

/// One of the identities that were counted as one use. Outlives its record.
#[derive(Clone, Copy)]
pub(super) struct Contender {
    pub(super) identity: PublicKey,
    pub(super) broker: PublicKey,
    /// It was alone when a snapshot had been taken in whole.
    pub(super) established: bool,
}

#[derive(Default)]
pub(super) struct Register {
    held: BTreeMap<PublicKey, Held>,
    /// The identity of each held member, by the member's hash.
    by_hash: HashMap<Hash, PublicKey>,
    per_site: HashMap<Name, usize>,
    marks: HashMap<PublicKey, Mark>,
    uses: BTreeMap<(Hash, u32), Vec<Contender>>,
    /// Uses with someone who is not established.
    unsettled: BTreeSet<(Hash, u32)>,
    forgotten: VecDeque<(PublicKey, (Hash, u32))>,
}

/// What a sequence number says about a record.
pub(super) enum Order {
    Newer,
    /// The latest, known here by its number or its bytes.
    Same,
    Older {
        latest: u64,
    },
    /// The latest number with other bytes.
    Double,
}

impl Register {
    pub(super) fn get(&self, identity: &PublicKey) -> Option<&Held> {
        self.held.get(identity)
    }

    pub(super) fn by_hash(&self, hash: &Hash) -> Option<&Held> {
        self.held.get(self.by_hash.get(hash)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    pub(super) fn identities(&self) -> Vec<PublicKey> {
        self.held.keys().copied().collect()
    }

    pub(super) fn identities_of(&self, grant: &Hash) -> Vec<PublicKey> {
        self.uses
            .range((*grant, 0)..=(*grant, u32::MAX))
            .flat_map(|(_, contenders)| contenders.iter().map(|known| known.identity))
            .collect()
    }

    /// Whoever was counted as the same use, itself included.
    pub(super) fn rivals(&self, identity: &PublicKey) -> Vec<PublicKey> {
        self.held
            .get(identity)
            .map_or(Vec::new(), |held| self.contenders(&held.of()))
    }

    pub(super) fn contenders(&self, of: &(Hash, u32)) -> Vec<PublicKey> {
        let contenders = self.uses.get(of).into_iter().flatten();
        contenders.map(|known| known.identity).collect()
    }

    pub(super) fn uses(&self) -> impl Iterator<Item = (&(Hash, u32), &[Contender])> {
        self.uses.iter().map(|(of, all)| (of, all.as_slice()))
    }

    pub(super) fn sequence(&self, identity: &PublicKey) -> Option<u64> {
        self.marks.get(identity).map(|mark| mark.sequence)
    }

    /// Never lowers it.
    pub(super) fn restore_sequence(&mut self, identity: PublicKey, sequence: u64) {
        let known = self.sequence(&identity);
        if known.is_none_or(|known| known < sequence) {
            let record = None;
            self.marks.insert(identity, Mark { sequence, record });
        }
    }

    pub(super) fn order(&self, member: &Member, record: &Record) -> Order {
        let Some(mark) = self.marks.get(&record.identity) else {
            return Order::Newer;
        };
        if record.sequence != mark.sequence {
            return if record.sequence > mark.sequence {
                Order::Newer
            } else {
                Order::Older {
                    latest: mark.sequence,
                }
            };
        }
        match mark.record {
            Some(hash) if hash != record_hash(member) => Order::Double,
            Some(_) | None => Order::Same,
        }
    }

    /// Which identity may hold a use: the only one in good standing, or among several the only one
    /// that was there before the others came.
    pub(super) fn holder(&self, of: &(Hash, u32), charter: &Charter) -> Option<PublicKey> {
        let good = self.good_contenders(of, charter);
        if let [only] = good.as_slice() {
            return Some(only.identity);
        }
        let mut established = good.iter().filter(|contender| contender.established);
        match (established.next(), established.next()) {
            (Some(only), None) => Some(only.identity),
            (None | Some(_), _) => None,
        }
    }

    /// Whether another than its own identity holds this use too.
    pub(super) fn is_contended(&self, enrolment: &Enrolment, charter: &Charter) -> bool {
        self.good_contenders(&use_of(enrolment), charter)
            .iter()
            .any(|other| other.identity != enrolment.proof.identity)
    }

    pub(super) fn good_contenders(&self, of: &(Hash, u32), charter: &Charter) -> Vec<Contender> {
        self.uses
            .get(of)
            .into_iter()
            .flatten()
            .filter(|contender| contender.counts(of, charter))
            .copied()
            .collect()
    }

    /// What a held record counts for by the ledger as it is and by who else holds its use.
    pub(super) fn judge(&self, identity: &PublicKey, charter: &Charter) -> Option<Place> {
        let held = self.held.get(identity)?;
        let standing = charter.standing(&held.node.grant, identity);
        if standing != Standing::Good {
            return Some(Place::Out(standing));
        }
        let (of, broker) = (held.of(), held.enrolment.broker);
        if !may_count(&of.0, &broker, charter) {
            return Some(Place::Uncounted(broker));
        }
        if self.holder(&of, charter) != Some(*identity) {
            let other = self
                .good_contenders(&of, charter)
                .into_iter()
                .map(|contender| contender.identity)
                .find(|other| other != identity)?;
            return Some(Place::Disputed(other));
        }
        Some(match held.node.record.state {
            NodeState::Present(_) => Place::Present,
            NodeState::Withdrawn => Place::Withdrawn,
        })
    }

    pub(super) fn set_place(&mut self, identity: &PublicKey, place: Place) {
        if let Some(held) = self.held.get_mut(identity) {
            held.place = place;
        }
    }

    /// Whether there is room for it, after what is out has made room.
    pub(super) fn make_room(
        &mut self,
        verified: &Verified,
        charter: &Charter,
    ) -> Result<(), MemberRefusal> {
        let identity = verified.enrolment.proof.identity;
        let site = &verified.record.record().site;
        let of = use_of(&verified.enrolment);
        if !self.has_room_in_use(&of, &identity, charter) {
            return Err(MemberRefusal::Quota {
                site: site.clone(),
                most: MAX_CONTENDERS,
            });
        }
        self.make_room_in_site(site, &identity)
    }

    /// Lets go, if there are too many, of whom the ledger has refused for good.
    fn has_room_in_use(
        &mut self,
        of: &(Hash, u32),
        identity: &PublicKey,
        charter: &Charter,
    ) -> bool {
        let Some(contenders) = self.uses.get_mut(of) else {
            return true;
        };
        let known = contenders.iter().any(|known| known.identity == *identity);
        if known || contenders.len() < MAX_CONTENDERS {
            return true;
        }
        let held = &self.held;
        contenders.retain(|known| {
            let place = held.get(&known.identity).map(|held| held.place);
            let may_return = matches!(
                place,
                Some(Place::Uncounted(_) | Place::Out(Standing::Quarantined))
            );
            may_return || known.counts(of, charter)
        });
        contenders.len() < MAX_CONTENDERS
    }

    fn make_room_in_site(
        &mut self,
        site: &Name,
        identity: &PublicKey,
    ) -> Result<(), MemberRefusal> {
        let full = self.per_site.get(site).is_some_and(|n| *n >= MAX_RECORDS);
        if !full || self.held.contains_key(identity) {
            return Ok(());
        }
        let out: Vec<PublicKey> = self
            .iter()
            .filter(|held| held.node.record.site == *site && held.place != Place::Present)
            .map(|held| held.node.identity)
            .collect();
        if out.is_empty() {
            return Err(MemberRefusal::Quota {
                site: site.clone(),
                most: MAX_RECORDS,
            });
        }
        for identity in out {
            self.forget(&identity);
        }
        Ok(())
    }

    /// Takes a record in, in the place of the identity's last one, and gives that back.
    pub(super) fn insert(&mut self, member: &Member, verified: Verified) -> Option<Held> {
        let record = verified.record.record().clone();
        let identity = record.identity;
        let mark = Mark {
            sequence: record.sequence,
            record: Some(record_hash(member)),
        };
        self.marks.insert(identity, mark);
        self.contend(&verified.enrolment);
        self.by_hash.insert(verified.hash, identity);
        *self.per_site.entry(record.site.clone()).or_default() += 1;
        let held = Held {
            node: Node {
                identity,
                grant: verified.enrolment.proof.grant,
                member: member.clone(),
                record,
            },
            enrolment: verified.enrolment,
            hash: verified.hash,
            place: Place::Out(Standing::NoGrant),
        };
        let former = self.held.insert(identity, held)?;
        if former.hash != verified.hash {
            self.by_hash.remove(&former.hash);
        }
        self.one_less(&former.node.record.site);
        Some(former)
    }

    /// It came by another use since: one that collects uses must not fill memory with them.
    pub(super) fn leave(&mut self, of: &(Hash, u32), identity: &PublicKey) {
        if let Some(contenders) = self.uses.get_mut(of) {
            contenders.retain(|known| known.identity != *identity);
            if contenders.is_empty() {
                self.uses.remove(of);
                self.unsettled.remove(of);
            }
        }
    }

    fn contend(&mut self, enrolment: &Enrolment) {
        let identity = enrolment.proof.identity;
        let contenders = self.uses.entry(use_of(enrolment)).or_default();
        if !contenders.iter().any(|known| known.identity == identity) {
            contenders.push(Contender {
                identity,
                broker: enrolment.broker,
                established: false,
            });
            self.unsettled.insert(use_of(enrolment));
        }
    }

    fn one_less(&mut self, site: &Name) {
        if let Some(count) = self.per_site.get_mut(site) {
            *count -= 1;
            if *count == 0 {
                self.per_site.remove(site);
            }
        }
    }

    /// Drops the record; its number and its use stay remembered.
    pub(super) fn forget(&mut self, identity: &PublicKey) -> Option<Held> {
        let held = self.held.remove(identity)?;
        self.by_hash.remove(&held.hash);
        self.one_less(&held.node.record.site);
        self.forgotten.push_back((*identity, held.of()));
        if self.forgotten.len() > MAX_FORGOTTEN {
            self.forget_longest_forgotten();
        }
        Some(held)
    }

    fn forget_longest_forgotten(&mut self) {
        let Some((identity, of)) = self.forgotten.pop_front() else {
            return;
        };
        if self.held.contains_key(&identity) {
            return;
        }
        self.marks.remove(&identity);
        self.leave(&of, &identity);
    }

    /// Whoever holds its use alone by now is there before whoever comes later. Looks only at uses
    /// with someone new.
    pub(super) fn establish(&mut self, charter: &Charter) {
        for of in std::mem::take(&mut self.unsettled) {
            let holder = self.holder(&of, charter);
            let contenders = self.uses.get_mut(&of).into_iter().flatten();
            let mut left = false;
            for contender in contenders {
                contender.established |= Some(contender.identity) == holder;
                left |= !contender.established;
            }
            if left {
                self.unsettled.insert(of);
            }
        }
    }
}

impl Contender {
    fn counts(&self, of: &(Hash, u32), charter: &Charter) -> bool {
        charter.standing(&of.0, &self.identity) == Standing::Good
            && may_count(&of.0, &self.broker, charter)
    }
}

fn may_count(grant: &Hash, broker: &PublicKey, charter: &Charter) -> bool {
    charter
        .grant(grant)
        .is_some_and(|standing| charter.may_count(broker, &standing.grant.store))
}

impl Held {
    /// Which use of which grant it rests on.
    pub(super) fn of(&self) -> (Hash, u32) {
        use_of(&self.enrolment)
    }
}

pub(super) fn use_of(enrolment: &Enrolment) -> (Hash, u32) {
    (enrolment.proof.grant, enrolment.use_number)
}

fn record_hash(member: &Member) -> Hash {
    Hash::of(Domain::Verified, &member.record)
}
