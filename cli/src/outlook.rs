//! What a list shows: the ledger, from wherever this machine has it, and what the brokers that it
//! can reach say. Nothing is signed and no file is written.

use std::collections::BTreeMap;

use anyhow::bail;
use node::state::{LocalNode, StateDir};
use proto::enrolment::Enrolment;
use proto::entry::SignedEntry;
use proto::key::{MeshId, PublicKey, SigningKey};
use proto::ledger::{Charter, Ledger, Standing};
use proto::message::NodeStatus;
use proto::record::{Member, SignedRecord};

use crate::authority;
use crate::authority::ledger_file;
use crate::brokers::{self, Brokers, Caller, Place, Told};
use crate::command::Signing;

pub(crate) struct Outlook {
    ledger: Ledger,
    brokers: Brokers,
}

/// A node as a broker lists it; names and addresses are its own words until `proto::mesh` has
/// checked them.
pub(crate) struct Listed {
    pub(crate) status: NodeStatus,
    pub(crate) member: Member,
    pub(crate) record: SignedRecord,
    pub(crate) enrolment: Enrolment,
}

impl Listed {
    /// Counted among the nodes of its site.
    pub(crate) fn is_good(&self, charter: &Charter) -> bool {
        let record = self.record.record();
        let standing = charter.standing(&self.enrolment.proof.grant, &record.identity);
        record.presence().is_some() && standing == Standing::Good
    }
}

/// What this machine has, from the most to the least.
enum Source {
    Authority { key: SigningKey, ledger: Ledger },
    Node(LocalNode),
    Broker { ledger: Ledger },
}

impl Outlook {
    pub(crate) fn open(arguments: &Signing) -> anyhow::Result<Outlook> {
        let source = source(arguments)?;
        let socket = arguments.directories.broker_socket();
        let (ledger, places, mesh) = match &source {
            Source::Authority { ledger, .. } | Source::Broker { ledger } => {
                (ledger.clone(), brokers::places(ledger), ledger.mesh())
            }
            Source::Node(node) => view_of(node),
        };
        let caller = match &source {
            Source::Authority { key, .. } => Caller::Authority(key),
            Source::Node(node) => Caller::Node {
                identity: &node.identity,
                enrolment: node.membership.enrolment(),
            },
            Source::Broker { .. } => Caller::Local,
        };
        let mut brokers = if arguments.offline {
            Brokers::none()?
        } else {
            Brokers::reach(&socket, places, mesh, caller)?
        };
        let found = brokers.fetch(&ledger);
        let mut outlook = Outlook { ledger, brokers };
        outlook.take(&found);
        if outlook.ledger.is_empty() {
            for why in outlook.brokers.failures() {
                eprintln!("causeway: {why}");
            }
            bail!(
                "no broker could be asked, and this machine has no ledger of its own; see why above, then repeat"
            );
        }
        Ok(outlook)
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn charter(&self) -> &Charter {
        self.ledger.charter()
    }

    pub(crate) fn brokers(&mut self) -> &mut Brokers {
        &mut self.brokers
    }

    pub(crate) fn take(&mut self, entries: &[SignedEntry]) {
        for entry in entries {
            if let Err(why) = self.ledger.insert(entry.clone()) {
                eprintln!(
                    "causeway: {} is refused: {why}",
                    authority::entry_name(entry)
                );
            }
        }
    }

    /// Hands the ledger to every broker; what came of it, and how many entries the ledger has.
    pub(crate) fn tell(&mut self) -> (Told, usize) {
        (self.brokers.tell(&self.ledger), self.ledger.len())
    }

    /// `None` if no broker could be asked, with words about it.
    pub(crate) fn nodes(&mut self) -> Option<Vec<Listed>> {
        if !self.has_broker("nodes") {
            return None;
        }
        Some(listed(self.brokers.nodes()))
    }

    /// Whether there is anyone to ask; says why not, and what is therefore missing.
    pub(crate) fn has_broker(&self, missing: &str) -> bool {
        if self.brokers.is_any() {
            return true;
        }
        for why in self.brokers.failures() {
            eprintln!("causeway: {why}");
        }
        eprintln!("causeway: no broker could be asked, so {missing} are not known");
        false
    }
}

fn source(arguments: &Signing) -> anyhow::Result<Source> {
    let authority = arguments.authority();
    if authority.exists() {
        let (key, ledger) = authority::read(&authority)?;
        return Ok(Source::Authority { key, ledger });
    }
    let state = &arguments.directories.state_dir;
    if state.join("node").exists() {
        return Ok(Source::Node(StateDir::open(state)?.joined()?));
    }
    let ledger = arguments.directories.broker_ledger();
    if ledger.exists() {
        return Ok(Source::Broker {
            ledger: ledger_file::read(&ledger)?,
        });
    }
    bail!(
        "{} is neither part of a mesh nor a broker's, and there is no authority in {}; give the right --state-dir or --authority",
        state.display(),
        authority.display()
    );
}

/// A node takes the ledger from its brokers, who cannot make one up.
fn view_of(node: &LocalNode) -> (Ledger, Vec<Place>, MeshId) {
    let mesh = node.membership.mesh;
    let brokers = node.membership.brokers.iter();
    let places = brokers.map(|broker| Place {
        address: broker.address.clone(),
        pin: broker.key,
    });
    (Ledger::new(mesh), places.collect(), mesh)
}

/// One for each identity, the newest record; what cannot be read is left out with a word.
pub(crate) fn listed(nodes: Vec<NodeStatus>) -> Vec<Listed> {
    let mut found: BTreeMap<PublicKey, Listed> = BTreeMap::new();
    for status in nodes {
        let Some(listed) = read(status) else {
            eprintln!(
                "causeway: a broker sent a node's record that cannot be read; it is left out"
            );
            continue;
        };
        let record = listed.record.record();
        let newer = found.get(&record.identity).is_none_or(|held| {
            let rank = |listed: &Listed| (listed.record.record().sequence, listed.status.heard);
            rank(held) < rank(&listed)
        });
        if newer {
            found.insert(record.identity, listed);
        }
    }
    found.into_values().collect()
}

fn read(status: NodeStatus) -> Option<Listed> {
    let member = Member::read(&status.member).ok()?;
    let record = SignedRecord::read(&member.record).ok()?;
    let enrolment = Enrolment::read(&member.enrolment).ok()?;
    Some(Listed {
        status,
        member,
        record,
        enrolment,
    })
}
