//! The broker, and what it may do wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::record::Member;

use super::network::HostId;
use super::node::NodeId;

const LAG: Duration = Duration::from_millis(5);

pub struct Broker {
    pub host: HostId,
    pub is_up: bool,
    pub is_hung: bool,
    pub relays: bool,
    /// From taking something in to telling it.
    pub lag: Duration,
    pub lies: BTreeSet<Lie>,
    /// Nodes that are told nothing.
    pub withheld: BTreeSet<NodeId>,
    pub log: Vec<(Duration, Item)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// Shows old records again, after the new ones.
    Replay,
    /// Shows records with changed bytes.
    Damage,
    /// Signs records in the name of others.
    Impersonate,
    /// Shows one node's record with another's enrolment.
    Swap,
    /// Signs ledger entries itself.
    Entries,
}

pub const LIES: [Lie; 5] = [
    Lie::Replay,
    Lie::Damage,
    Lie::Impersonate,
    Lie::Swap,
    Lie::Entries,
];

#[derive(Clone)]
pub enum Item {
    Entry(Vec<u8>),
    Member(Member),
}

impl Broker {
    pub fn new(host: HostId) -> Broker {
        Broker {
            host,
            is_up: true,
            is_hung: false,
            relays: true,
            lag: LAG,
            lies: BTreeSet::new(),
            withheld: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    pub fn works(&self) -> bool {
        self.is_up && !self.is_hung
    }

    /// As it should be, from now on.
    pub fn recover(&mut self) {
        self.is_up = true;
        self.is_hung = false;
        self.relays = true;
        self.lag = LAG;
        self.lies.clear();
        self.withheld.clear();
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.log.iter().filter_map(|(_, item)| match item {
            Item::Member(member) => Some(member),
            Item::Entry(_) => None,
        })
    }
}
