//! What must never be, looked for at every step; and what must be once all is calm.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use gateway::links::{Carry, Change, PathKind, Why};
use proto::key::PublicKey;

use super::expect::{Reach, site_of};
use super::node::NodeId;
use super::world::World;

/// So long after the last disturbance every link that can be is, by the best kind of path: a
/// candidate that did not answer is tried once a minute.
pub const CALM: Duration = Duration::from_secs(90);
/// A gateway whose links did not change for so long is calm enough to fail at nothing.
const STEADY: Duration = Duration::from_secs(20);
/// Loss up to this, of a thousand, takes no healthy gateway down.
const HARMLESS_LOSS: u32 = 50;
/// A dead gateway is carried to no longer: three idle intervals, and one change of interval.
const NAMED_DEAD: Duration = Duration::from_millis(4500);

/// Of one pair, when both of its nodes have none otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    pub pair: (NodeId, NodeId),
    pub since: Duration,
}

impl World {
    /// Of every datagram that a node sends.
    pub(super) fn check_address(&mut self, at: NodeId, to: SocketAddr) {
        let IpAddr::V4(address) = to.ip() else {
            return;
        };
        let site = site_of(address);
        let is_relay = address.is_loopback();
        let of_nobody = address.is_unspecified() || address.is_multicast();
        // Of another site's inside only its own gateways' addresses may be tried, which are in
        // their records.
        let is_foreign = site.is_some_and(|site| {
            let mut nodes = self.nodes.iter();
            !nodes.any(|node| self.network.hosts[node.host].edge == site)
        });
        if !is_relay && (of_nobody || is_foreign) {
            let label = self.nodes[at].label();
            self.fault(format!("{label} sends to {to}"));
        }
    }

    /// Of every packet that is delivered.
    pub(super) fn check_sender(&mut self, at: NodeId, from: &PublicKey) {
        let node = &self.nodes[at];
        if node.mesh.node(from).is_none() {
            let label = node.label();
            self.fault(format!(
                "{label} delivers a packet of one it does not believe in"
            ));
        }
    }

    /// Of every belief: it was signed by whom it speaks of, and only for what the ledger says.
    pub(super) fn check_beliefs(&mut self, at: NodeId) {
        let node = &self.nodes[at];
        let forged = node
            .mesh
            .nodes()
            .find(|held| !self.authority.signed.contains(&held.member.record));
        let known = &self.authority.entries;
        let has_forged_entry = node.mesh.ledger().len() > known.len();
        if forged.is_some() || has_forged_entry {
            let label = node.label();
            self.fault(format!(
                "{label} believes what nobody has signed: {forged:?}"
            ));
        }
    }

    /// Of every change of a link: what is healthy and undisturbed does not fail.
    pub(super) fn check_change(&mut self, by: NodeId, of: &PublicKey, change: &Change) {
        let Change::Down(why) = change else {
            return;
        };
        let Some(of) = self.node_of(of) else {
            return;
        };
        if *why == Why::Goodbye || !self.is_steady(by, of) {
            return;
        }
        let text = format!(
            "{} took {} down",
            self.nodes[by].label(),
            self.nodes[of].label()
        );
        self.fault(format!("{text} ({why:?}), which is healthy"));
    }

    /// Nothing has happened to either for long, and the network is good.
    fn is_steady(&mut self, one: NodeId, other: NodeId) -> bool {
        let mut touched = self.nodes[one].touched.max(self.nodes[other].touched);
        let excuses = self.excuses.iter();
        for excuse in
            excuses.filter(|excuse| excuse.pair == (one, other) || excuse.pair == (other, one))
        {
            touched = touched.max(excuse.since);
        }
        let has_calm = self.now >= touched + STEADY;
        let is_lossy = self
            .loss(one, other)
            .is_none_or(|loss| loss > HARMLESS_LOSS);
        let is_clone = self.nodes[one].is_clone || self.nodes[other].is_clone;
        has_calm && !is_lossy && !is_clone && self.reach(one, other) > Reach::None
    }

    /// Now and then: what may be untrue for a moment only.
    pub fn check_moment(&mut self) {
        for at in self.running() {
            let Some(process) = &self.nodes[at].process else {
                continue;
            };
            let carries = process.carriers.sites.values();
            let named: Vec<PublicKey> = carries
                .flat_map(|carry| match carry {
                    Carry::Direct(gateways) | Carry::Siblings(gateways) => gateways.clone(),
                })
                .collect();
            for gateway in named {
                let Some(of) = self.node_of(&gateway) else {
                    continue;
                };
                let died = self.nodes[of].died;
                let since_thaw = self.nodes[at].touched;
                let is_late = died.is_some_and(|died| {
                    self.now > died.max(since_thaw) + NAMED_DEAD && !self.nodes[of].is_clone
                });
                if is_late {
                    let text = format!("{} carries to", self.nodes[at].label());
                    self.fault(format!("{text} {}, which is dead", self.nodes[of].label()));
                }
            }
        }
    }

    /// After [`CALM`] without a disturbance: all that the reference model says.
    pub fn check_calm(&mut self) {
        for one in self.running() {
            for other in self.running() {
                if one != other {
                    self.check_pair(one, other);
                    self.check_acquaintance(one, other);
                }
            }
        }
        self.check_news();
    }

    fn check_pair(&mut self, one: NodeId, other: NodeId) {
        let reach = self.reach(one, other);
        let is_good = self
            .loss(one, other)
            .is_some_and(|loss| loss <= HARMLESS_LOSS);
        let is_clone = self.nodes[one].is_clone || self.nodes[other].is_clone;
        if is_clone {
            return;
        }
        let state = self.state(one, other);
        let text = format!(
            "{} of {}",
            self.nodes[one].label(),
            self.nodes[other].label()
        );
        if reach == Reach::None && state == Some(Ok(())) && self.know_each_other(one, other) {
            self.fault(format!("{text}: up, and nothing can pass"));
        }
        if reach == Reach::None || !is_good || !self.are_informed(one, other) {
            return;
        }
        if state != Some(Ok(())) {
            self.fault(format!("{text}: {state:?}, and {reach:?} is possible"));
        } else if self.path_kind(one, other) == Some(PathKind::Relay) && reach == Reach::Direct {
            self.fault(format!("{text}: by relay, and a direct path is possible"));
        }
    }

    /// Whoever reads what an honest broker tells knows whom it has heard of.
    fn check_acquaintance(&mut self, one: NodeId, other: NodeId) {
        let (a, b) = (&self.nodes[one], &self.nodes[other]);
        let is_told = self.reaches_broker(one) && !self.broker.withheld.contains(&one);
        let is_good = !a.is_revoked && !b.is_revoked && !b.is_clone && !b.has_left;
        if is_told && is_good && b.is_published && !self.knows(one, other) {
            self.fault(format!("{} does not know {}", a.label(), b.label()));
        }
    }

    pub fn path_kind(&self, one: NodeId, other: NodeId) -> Option<PathKind> {
        let of = self.nodes[other].identity();
        let process = self.nodes[one].process.as_ref()?;
        let statuses = process.links.statuses(self.now);
        let status = statuses.into_iter().find(|status| status.of == of)?;
        status.path.map(|(_, kind)| kind)
    }

    /// Whoever hears an honest broker, or one who does, knows all there is to know.
    fn check_news(&mut self) {
        if !self.broker.withheld.is_empty() {
            return;
        }
        for at in self.running() {
            let missing = self.authority.entries.len() - self.nodes[at].mesh.ledger().len();
            if self.reaches_broker(at) && self.nodes[at].taken < self.broker.log.len() {
                let label = self.nodes[at].label();
                self.fault(format!("{label} has not read all that the broker tells"));
            } else if self.reaches_broker(at) && missing > 0 && !self.nodes[at].is_revoked {
                let informed = self.broker_has_all();
                if informed {
                    let label = self.nodes[at].label();
                    self.fault(format!("{label} lacks {missing} entries of the ledger"));
                }
            }
        }
    }

    fn broker_has_all(&self) -> bool {
        let entries = self.broker.log.iter();
        let count = entries
            .filter(|(_, item)| matches!(item, super::broker::Item::Entry(_)))
            .count();
        count == self.authority.entries.len()
    }
}
