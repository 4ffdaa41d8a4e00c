//! The one place where the whole chain is verified: authority -> grant -> one-time key ->
//! identity -> record. Broker, gateway and agent all hold a [`Mesh`] and decide alike.
//!
//! Entries and members may come in any order and from anyone: they prove themselves. What a member
//! counts for is judged by the ledger as it is now, again with every entry that changes it.

mod chain;
mod event;
mod memory;
mod owners;
mod problem;
mod problems;
mod refusal;
mod register;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use crate::enrolment::Enrolment;
use crate::entry::{Body, SignedEntry};
use crate::key::{Hash, MeshId, PublicKey, WireguardKey};
use crate::ledger::{Charter, Inserted, Ledger, PrefixState, SitePrefix, Standing};
use crate::name::Name;
use crate::prefix::overlap;
use crate::record::{Member, Presence};

pub use chain::{Verified, check_use};
pub use event::Event;
pub use owners::RefusedAddress;
pub use problem::Problem;
pub use refusal::{EntryRefusal, MemberRefusal};
pub use register::{MAX_RECORDS, Node};

use chain::Remembered;
use owners::Owners;
use register::{Held, Order, Place, Register};
use shared::Shared;

pub struct Mesh {
    ledger: Ledger,
    local_site: Option<Name>,
    register: Register,
    remembered: Remembered,
    /// Made from the ledger when first asked for after a change.
    owners: OnceLock<Owners>,
    wireguard_keys: Shared<WireguardKey>,
    names: Shared<(Name, Name)>,
    /// Identities that signed two records with this one number.
    doubles: BTreeMap<PublicKey, u64>,
    events: Events,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    New,
    /// Nothing has changed.
    Known,
}

impl Mesh {
    /// `local_site` is that of the node that receives; a broker has none.
    pub fn new(mesh: MeshId, local_site: Option<Name>) -> Mesh {
        Mesh {
            ledger: Ledger::new(mesh),
            local_site,
            register: Register::default(),
            remembered: Remembered::default(),
            owners: OnceLock::new(),
            wireguard_keys: Shared::new(),
            names: Shared::new(),
            doubles: BTreeMap::new(),
            events: Events::default(),
        }
    }

    pub fn id(&self) -> MeshId {
        self.ledger.mesh()
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn charter(&self) -> &Charter {
        self.ledger.charter()
    }

    /// Takes an entry of the ledger in; what it revokes is gone from [`Mesh::nodes`] at once.
    pub fn handle_entry(&mut self, bytes: &[u8]) -> Result<Taken, EntryRefusal> {
        let entry = SignedEntry::read(bytes)?;
        let body = entry.entry().body.clone();
        let was_forked = self.charter().fork.is_some();
        match self.ledger.insert(entry)? {
            Inserted::Known => return Ok(Taken::Known),
            Inserted::New => {}
        }
        if was_forked || self.charter().fork.is_some() {
            self.judge_all();
        } else {
            self.handle_body(&body);
        }
        Ok(Taken::New)
    }

    /// After what may have changed anything.
    fn judge_all(&mut self) {
        self.prefixes_changed();
        self.events.insert(Event::BrokersChanged);
        self.events.insert(Event::ProblemsChanged);
        self.judge(self.register.identities());
    }

    fn handle_body(&mut self, body: &Body) {
        match body {
            // Nothing held rests on a grant that was not there.
            Body::Grant(_) | Body::Prefixes { .. } => self.prefixes_changed(),
            Body::Broker(_) | Body::BrokerRemoved { .. } => {
                self.events.insert(Event::BrokersChanged);
            }
            // What a revoked broker has counted counts no more.
            Body::Revocation { keys, .. } if self.is_any_broker(keys) => self.judge_all(),
            Body::Revocation { keys, closings } => {
                let mut concerned: Vec<PublicKey> = keys.clone();
                for closing in closings {
                    concerned.extend(self.register.identities_of(&closing.grant));
                }
                self.judge(concerned);
            }
            Body::Genesis { .. }
            | Body::SiteRevoked { .. }
            | Body::Authority { .. }
            | Body::Settlement { .. } => self.judge_all(),
        }
    }

    fn is_any_broker(&self, keys: &[PublicKey]) -> bool {
        let mut brokers = self.charter().counted_by.iter();
        brokers.any(|(broker, _)| keys.contains(broker))
    }

    fn prefixes_changed(&mut self) {
        self.owners = OnceLock::new();
        self.events.insert(Event::PrefixesChanged);
        self.events.insert(Event::ProblemsChanged);
    }

    /// Whether someone who shows this enrolment is a node of the mesh now.
    pub fn check_enrolment(&self, enrolment: &Enrolment) -> Result<(), MemberRefusal> {
        chain::check_standing(self.standing_here(enrolment)?)?;
        let grant = chain::check_counted(enrolment, &self.ledger)?;
        chain::verify_enrolment(enrolment, grant, &self.remembered)
    }

    /// The whole chain, and nothing about other records: neither of this identity nor of others.
    pub fn check_member(&self, member: &Member) -> Result<Verified, MemberRefusal> {
        let read = chain::read(member)?;
        chain::check_standing(self.standing_here(&read.enrolment)?)?;
        chain::verify(&read, &self.ledger, &self.remembered)?;
        Ok(read)
    }

    /// For another mesh nothing here says anything.
    fn standing_here(&self, enrolment: &Enrolment) -> Result<Standing, MemberRefusal> {
        if enrolment.proof.mesh == self.id() {
            Ok(self.standing(enrolment))
        } else {
            Err(MemberRefusal::WrongMesh(enrolment.proof.mesh))
        }
    }

    fn standing(&self, enrolment: &Enrolment) -> Standing {
        let proof = &enrolment.proof;
        self.charter().standing(&proof.grant, &proof.identity)
    }

    /// Takes a member in if its chain holds and its record is newer than the last. One that is
    /// quarantined, or disputed as one of two for one use, is held and refused: should the ledger
    /// say so later, it comes in by itself, with an event.
    pub fn handle_member(&mut self, member: &Member) -> Result<Taken, MemberRefusal> {
        if let Some(held) = self.register.by_hash(&member.hash()) {
            return held.place.outcome(Taken::Known);
        }
        let read = chain::read(member)?;
        match self.standing_here(&read.enrolment)? {
            Standing::Quarantined => {}
            standing @ (Standing::Good
            | Standing::NoGrant
            | Standing::GrantClosed
            | Standing::SiteRevoked
            | Standing::Revoked) => chain::check_standing(standing)?,
        }
        let record = read.record.record();
        let (identity, shown) = (record.identity, record.sequence);
        let order = self.register.order(member, record);
        if let Order::Older { latest } = order {
            return Err(MemberRefusal::OldSequence { shown, latest });
        }
        chain::verify(&read, &self.ledger, &self.remembered)?;
        self.remembered.remember(member, &read);
        match order {
            Order::Double => return self.refuse_double(identity, shown),
            Order::Same if !self.is_better(&read) => return self.outcome(&identity),
            Order::Newer => {
                if let Some((member, read)) = self.under_held_enrolment(member, &read) {
                    self.remembered.remember(&member, &read);
                    return self.take(&member, read);
                }
            }
            Order::Same | Order::Older { .. } => {}
        }
        self.register.make_room(&read, self.ledger.charter())?;
        self.take(member, read)
    }

    fn refuse_double(&mut self, identity: PublicKey, shown: u64) -> Result<Taken, MemberRefusal> {
        if self.register.get(&identity).is_some() {
            self.doubles.insert(identity, shown);
            self.events.insert(Event::ProblemsChanged);
        }
        Err(MemberRefusal::SameSequence(shown))
    }

    /// Whether the enrolment shown counts for more than the one held. Which use an identity has is
    /// its store's word alone, and a broker may sign one node under the use of another to have
    /// both refused: the one held stays unless it is out or disputed and the other is not.
    fn is_better(&self, shown: &Verified) -> bool {
        let held = self.register.get(&shown.enrolment.proof.identity);
        held.is_none_or(|held| self.worth(&shown.enrolment) < self.worth(&held.enrolment))
    }

    /// The less the better: out by the ledger, held by others too.
    fn worth(&self, enrolment: &Enrolment) -> (bool, bool) {
        let out = self.standing(enrolment) != Standing::Good;
        (out, self.register.is_contended(enrolment, self.charter()))
    }

    /// A newer record with the enrolment that is held, if that counts for more than the one it was
    /// shown with.
    fn under_held_enrolment(
        &self,
        member: &Member,
        shown: &Verified,
    ) -> Option<(Member, Verified)> {
        let held = self.register.get(&shown.enrolment.proof.identity)?;
        if self.worth(&held.enrolment) >= self.worth(&shown.enrolment) {
            return None;
        }
        let member = Member {
            enrolment: held.node.member.enrolment.clone(),
            record: member.record.clone(),
        };
        let read = chain::read(&member).ok()?;
        // The other grant may allow what the one held does not.
        chain::verify(&read, &self.ledger, &self.remembered).ok()?;
        Some((member, read))
    }

    fn outcome(&self, identity: &PublicKey) -> Result<Taken, MemberRefusal> {
        self.register
            .get(identity)
            .map_or(Ok(Taken::Known), |held| held.place.outcome(Taken::Known))
    }

    fn take(&mut self, member: &Member, verified: Verified) -> Result<Taken, MemberRefusal> {
        let identity = verified.record.record().identity;
        let of = register::use_of(&verified.enrolment);
        let former = self.register.insert(member, verified);
        if self.doubles.remove(&identity).is_some() {
            self.events.insert(Event::ProblemsChanged);
        }
        let was = former.map_or(Place::Out(Standing::NoGrant), |former| {
            self.unlist(&former);
            self.leave_use(&former, &of);
            former.place
        });
        let is = self
            .register
            .judge(&identity, self.ledger.charter())
            .expect("it has just been inserted");
        self.register.set_place(&identity, is);
        self.list(&identity);
        self.announce(identity, was, is, true);
        let rivals = self.register.good_contenders(&of, self.ledger.charter());
        if rivals.len() > 1 {
            self.events.insert(Event::ProblemsChanged);
            self.judge(rivals.iter().map(|rival| rival.identity).collect());
        }
        is.outcome(Taken::New)
    }

    /// Whoever contended for the use that it leaves may come in.
    fn leave_use(&mut self, former: &Held, now: &(Hash, u32)) {
        if former.of() != *now {
            self.register.leave(&former.of(), &former.node.identity);
            let rivals = self.register.contenders(&former.of());
            self.judge(rivals);
        }
    }

    /// Judges these, and who contends with them, again.
    fn judge(&mut self, identities: Vec<PublicKey>) {
        let mut concerned: BTreeSet<PublicKey> = BTreeSet::new();
        for identity in identities {
            concerned.extend(self.register.rivals(&identity));
            concerned.insert(identity);
        }
        for identity in concerned {
            let Some(was) = self.register.get(&identity).map(|held| held.place) else {
                continue;
            };
            let is = self.register.judge(&identity, self.ledger.charter());
            let Some(is) = is.filter(|is| *is != was) else {
                continue;
            };
            self.unlist_identity(&identity);
            self.register.set_place(&identity, is);
            self.list(&identity);
            self.events.insert(Event::ProblemsChanged);
            self.announce(identity, was, is, false);
        }
    }

    fn announce(&mut self, identity: PublicKey, was: Place, is: Place, new_record: bool) {
        let event = match (was, is) {
            (Place::Present, Place::Present) if !new_record => return,
            (_, Place::Present) => Event::NodeChanged(identity),
            (Place::Present, Place::Withdrawn) => Event::NodeWithdrawn(identity),
            (
                Place::Present,
                Place::Disputed(_) | Place::Uncounted(_) | Place::Out(Standing::Quarantined),
            ) => Event::NodeHidden(identity),
            (Place::Present, Place::Out(_)) => Event::NodeRevoked(identity),
            (Place::Withdrawn | Place::Disputed(_) | Place::Uncounted(_) | Place::Out(_), _) => {
                return;
            }
        };
        self.events.insert(event);
    }

    /// Enters a present node in the indexes that show what is shared.
    fn list(&mut self, identity: &PublicKey) {
        let Some((name, presence)) = self.listing(identity) else {
            return;
        };
        let mut problem = self.has_refused_address(identity);
        for key in wireguard_keys(&presence) {
            problem |= self.wireguard_keys.add(key, *identity);
        }
        problem |= self.names.add(name, *identity);
        if problem {
            self.events.insert(Event::ProblemsChanged);
        }
    }

    fn unlist_identity(&mut self, identity: &PublicKey) {
        if let Some((name, presence)) = self.listing(identity) {
            self.unlist_presence(identity, &name, &presence);
        }
    }

    fn unlist(&mut self, former: &Held) {
        if let (Place::Present, Some(presence)) = (former.place, former.node.record.presence()) {
            let name = name_of(&former.node);
            self.unlist_presence(&former.node.identity, &name, presence);
        }
    }

    fn unlist_presence(&mut self, identity: &PublicKey, name: &(Name, Name), of: &Presence) {
        let mut problem = !of.candidates.is_empty() && self.any_refused(&name.0, of);
        for key in wireguard_keys(of) {
            problem |= self.wireguard_keys.remove(&key, identity);
        }
        problem |= self.names.remove(name, identity);
        if problem {
            self.events.insert(Event::ProblemsChanged);
        }
    }

    fn listing(&self, identity: &PublicKey) -> Option<((Name, Name), Presence)> {
        let node = self.node(identity)?;
        Some((name_of(node), node.record.presence()?.clone()))
    }

    /// A snapshot has been taken in whole: identities that hold their use alone by now stay if
    /// another turns up for it.
    pub fn handle_synced(&mut self) {
        self.register.establish(self.ledger.charter());
    }

    /// Drops a record; its sequence number stays, so that no older one comes back.
    pub fn forget(&mut self, identity: &PublicKey) {
        let Some(held) = self.register.forget(identity) else {
            return;
        };
        self.unlist(&held);
        if self.doubles.remove(identity).is_some() {
            self.events.insert(Event::ProblemsChanged);
        }
        if held.place == Place::Present {
            self.events.insert(Event::NodeForgotten(*identity));
        }
    }

    /// The highest sequence number known of an identity.
    pub fn sequence(&self, identity: &PublicKey) -> Option<u64> {
        self.register.sequence(identity)
    }

    /// From durable memory; never lowers what is known.
    pub fn restore_sequence(&mut self, identity: PublicKey, sequence: u64) {
        self.register.restore_sequence(identity, sequence);
    }

    /// The nodes in good standing now, in the order of their keys; withdrawn ones are not among
    /// them.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.register
            .iter()
            .filter(|held| held.place == Place::Present)
            .map(|held| &held.node)
    }

    /// The same and those that have withdrawn.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.register
            .iter()
            .filter(|held| matches!(held.place, Place::Present | Place::Withdrawn))
            .map(|held| &held.node)
    }

    pub fn node(&self, identity: &PublicKey) -> Option<&Node> {
        let held = self.register.get(identity)?;
        (held.place == Place::Present).then_some(&held.node)
    }

    /// Where a present node stands in the order of joining: the number of its grant's entry, and of
    /// its use. No node chooses either.
    pub fn joined(&self, identity: &PublicKey) -> Option<(u64, u32)> {
        let held = self.register.get(identity)?;
        let grant = self.charter().grant(&held.node.grant)?;
        Some((grant.number, held.enrolment.use_number))
    }

    /// What is held of an identity, whether it counts now or not: not always as it was shown last.
    pub fn held(&self, identity: &PublicKey) -> Option<&Member> {
        Some(&self.register.get(identity)?.node.member)
    }

    /// All prefixes as this receiver takes them: one that overlaps its own site's is none that it
    /// would send to another.
    pub fn prefixes(&self) -> Vec<SitePrefix> {
        let all = &self.charter().prefixes;
        let local: Vec<&SitePrefix> = all
            .iter()
            .filter(|prefix| Some(&prefix.site) == self.local_site.as_ref())
            .filter(|prefix| match prefix.state {
                PrefixState::Owned | PrefixState::Overlaps { .. } => true,
                PrefixState::Quarantined | PrefixState::Refused(_) => false,
            })
            .collect();
        let mut prefixes = all.clone();
        for prefix in &mut prefixes {
            if prefix.state != PrefixState::Owned || Some(&prefix.site) == self.local_site.as_ref()
            {
                continue;
            }
            let ours = local.iter().find(|own| overlap(own.prefix, prefix.prefix));
            if let Some(own) = ours {
                prefix.state = PrefixState::Overlaps {
                    site: own.site.clone(),
                    prefix: own.prefix,
                };
            }
        }
        prefixes
    }

    /// The addresses at which a node may be tried; the others are among [`Mesh::problems`].
    pub fn usable_candidates(&self, node: &Node) -> Vec<SocketAddr> {
        let presence = node.record.presence();
        presence
            .into_iter()
            .flat_map(|presence| &presence.candidates)
            .filter(|candidate| {
                self.check_address(&node.record.site, candidate.ip())
                    .is_ok()
            })
            .copied()
            .collect()
    }

    /// The node's LAN address, if it may be used.
    pub fn usable_lan_address(&self, node: &Node) -> Option<IpAddr> {
        node.record
            .presence()?
            .lan_address
            .filter(|address| self.check_address(&node.record.site, *address).is_ok())
    }

    /// Whether a node of this site may be reached at this address.
    pub fn check_address(&self, site: &Name, address: IpAddr) -> Result<(), RefusedAddress> {
        self.owners
            .get_or_init(|| Owners::new(&self.charter().prefixes))
            .check(site, address)
    }

    fn has_refused_address(&self, identity: &PublicKey) -> bool {
        self.node(identity).is_some_and(|node| {
            let presence = node.record.presence();
            presence.is_some_and(|presence| self.any_refused(&node.record.site, presence))
        })
    }

    fn any_refused(&self, site: &Name, presence: &Presence) -> bool {
        addresses(presence)
            .into_iter()
            .any(|address| self.check_address(site, address).is_err())
    }

    /// What has changed. What happened to one node several times since the last look comes once, as
    /// it ended.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }
}

/// At most one of each node, so that they do not pile up when nobody asks.
#[derive(Default)]
struct Events {
    waiting: BTreeSet<Event>,
    of_node: BTreeMap<PublicKey, Event>,
}

impl Events {
    fn insert(&mut self, event: Event) {
        if let Some(node) = event.node()
            && let Some(former) = self.of_node.insert(node, event)
        {
            self.waiting.remove(&former);
        }
        self.waiting.insert(event);
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.waiting.pop_first()?;
        if let Some(node) = event.node() {
            self.of_node.remove(&node);
        }
        Some(event)
    }
}

impl Place {
    fn outcome(self, taken: Taken) -> Result<Taken, MemberRefusal> {
        match self {
            Place::Present | Place::Withdrawn => Ok(taken),
            Place::Out(standing) => chain::check_standing(standing).map(|()| taken),
            Place::Uncounted(broker) => Err(MemberRefusal::ForeignBroker(broker)),
            Place::Disputed(other) => Err(MemberRefusal::TwoForOneUse(other)),
        }
    }
}

fn name_of(node: &Node) -> (Name, Name) {
    (node.record.site.clone(), node.record.node.clone())
}

fn wireguard_keys(presence: &Presence) -> impl Iterator<Item = WireguardKey> {
    [Some(presence.wireguard), presence.next_wireguard]
        .into_iter()
        .flatten()
}

fn addresses(presence: &Presence) -> BTreeSet<IpAddr> {
    presence
        .candidates
        .iter()
        .map(SocketAddr::ip)
        .chain(presence.lan_address)
        .collect()
}

#[cfg(test)]
mod tests;
