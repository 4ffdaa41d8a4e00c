//! What a list shows: the ledger, from wherever this machine has it, and what the brokers that it
//! can reach say. Nothing is signed and no file is written.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;

use anyhow::bail;
use node::session::Ways;
use node::state::{LocalNode, StateDir};
use proto::enrolment::Enrolment;
use proto::entry::{SignedEntry, StoreId};
use proto::key::{Hash, MeshId, PublicKey, SigningKey};
use proto::ledger::{Charter, GrantStanding, Ledger};
use proto::mesh::Mesh;
use proto::message::{GrantUse, NodeStatus};
use proto::record::{Member, SignedRecord};

use crate::authority;
use crate::authority::ledger_file;
use crate::brokers::{self, Brokers, Caller, Place, Told};
use crate::command::{Directories, Signing};
use crate::private;

pub(crate) struct Outlook {
    ledger: Ledger,
    brokers: Brokers,
}

/// Uses of grants, and the stores that were asked for them.
pub(crate) struct KnownUses {
    stores: BTreeSet<StoreId>,
    uses: Vec<GrantUse>,
}

impl KnownUses {
    pub(crate) fn all(&self) -> &[GrantUse] {
        &self.uses
    }

    /// `None` if no broker of the store that counts them was asked.
    pub(crate) fn taken(&self, grant: &Hash, standing: &GrantStanding) -> Option<usize> {
        self.stores.contains(&standing.grant.store).then(|| {
            let of_this = self.uses.iter().filter(|taken| taken.grant == grant.0);
            let of_this: BTreeSet<(u32, [u8; 32])> = of_this
                .map(|taken| (taken.use_number, taken.identity))
                .collect();
            of_this.len()
        })
    }
}

/// A node as a broker lists it.
pub(crate) struct Listed {
    /// Why every receiver refuses the record; what it says is then anybody's word.
    pub(crate) refusal: Option<String>,
    pub(crate) status: NodeStatus,
    pub(crate) record: SignedRecord,
    pub(crate) enrolment: Enrolment,
}

impl Listed {
    /// Counted among the nodes of its site.
    pub(crate) fn is_good(&self) -> bool {
        self.refusal.is_none() && self.record.record().presence().is_some()
    }
}

/// What judges members by this ledger.
fn mesh_of(ledger: &Ledger) -> Mesh {
    let mut mesh = Mesh::new(ledger.mesh(), None);
    for entry in ledger.entries() {
        // From a ledger to a ledger: what was taken there is taken here.
        let _known = mesh.handle_entry(entry.bytes());
    }
    mesh
}

/// What this machine has, from the most to the least.
enum Source {
    Authority {
        key: SigningKey,
        ledger: Ledger,
    },
    Node(LocalNode),
    Broker {
        ledger: Ledger,
    },
    /// Nothing but a broker's socket.
    Socket(MeshId),
}

impl Outlook {
    pub(crate) fn open(arguments: &Signing) -> anyhow::Result<Outlook> {
        let source = source(arguments)?;
        let (ledger, places, mesh) = match &source {
            Source::Authority { ledger, .. } | Source::Broker { ledger } => {
                (ledger.clone(), brokers::places(ledger), ledger.mesh())
            }
            Source::Node(node) => view_of(node),
            Source::Socket(mesh) => (Ledger::new(*mesh), Vec::new(), *mesh),
        };
        let ways = match &source {
            Source::Node(node) => Ways::of(node),
            Source::Authority { .. } | Source::Broker { .. } | Source::Socket(_) => Ways::default(),
        };
        let caller = match &source {
            Source::Authority { key, .. } => Caller::Authority(key),
            Source::Node(node) => Caller::Node {
                identity: &node.identity,
                enrolment: node.membership.enrolment(),
                ways: &ways,
            },
            Source::Broker { .. } | Source::Socket(_) => Caller::Local,
        };
        let mut brokers = if arguments.offline {
            Brokers::none()?
        } else {
            Brokers::reach(&arguments.directories, places, mesh, caller)?
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

    /// Who took which uses, as far as any broker can be asked.
    pub(crate) fn uses(&mut self) -> KnownUses {
        let stores = self.charter().brokers.iter().map(|broker| broker.store);
        let known = stores.filter(|store| self.brokers.knows_store(self.charter(), store));
        KnownUses {
            stores: known.collect(),
            uses: self.brokers.uses(),
        }
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
        if !self.has_broker("nodes and used tokens") {
            return None;
        }
        Some(listed(self.brokers.nodes(), &self.ledger))
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
    if private::is_there(&authority)? {
        let (key, ledger) = authority::read(&authority)?;
        return Ok(Source::Authority { key, ledger });
    }
    let state = &arguments.directories.state_dir;
    if private::is_there(&state.join("node"))? {
        return Ok(Source::Node(StateDir::open(state)?.joined()?));
    }
    let ledger = arguments.directories.broker_ledger();
    let is_broker = private::is_there(&ledger)?;
    // A further broker's file stays empty until something is handed over on its host.
    if is_broker && let Some(ledger) = ledger_file::read_any(&ledger)? {
        return Ok(Source::Broker { ledger });
    }
    if !arguments.offline
        && let Some(mesh) = brokers::mesh_of_local(&arguments.directories)
    {
        return Ok(Source::Socket(mesh));
    }
    if is_broker {
        bail!(nothing_from_broker(&arguments.directories));
    }
    bail!(
        "{} is neither part of a mesh nor a broker's, there is no authority in {}, and no broker has its socket in {}; give the right --state-dir, --authority or --runtime-dir",
        state.display(),
        authority.display(),
        arguments.directories.runtime_dir.display()
    );
}

/// Of a further broker, whose ledger is in its store, where only itself can read it.
fn nothing_from_broker(directories: &Directories) -> String {
    let state = directories.state_dir.display();
    let socket = directories.broker_socket();
    if UnixStream::connect(&socket).is_ok() {
        format!(
            "the broker of {state} waits for its ledger: enter it with `causeway broker add` where the authority is"
        )
    } else {
        format!(
            "only the broker of {state} can read its ledger, and none answers on {}; start it, or give its --runtime-dir",
            socket.display()
        )
    }
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

/// One for each identity: a record whose whole chain holds before one that is refused, then the
/// newest. What cannot be read is left out with a word.
pub(crate) fn listed(nodes: Vec<NodeStatus>, ledger: &Ledger) -> Vec<Listed> {
    let mesh = mesh_of(ledger);
    let rank = |listed: &Listed| {
        let sequence = listed.record.record().sequence;
        (listed.refusal.is_none(), sequence, listed.status.heard)
    };
    let mut found: BTreeMap<PublicKey, Listed> = BTreeMap::new();
    for status in nodes {
        let Some(listed) = read(status, &mesh) else {
            eprintln!(
                "causeway: a broker sent a node's record that cannot be read; it is left out"
            );
            continue;
        };
        let identity = listed.record.record().identity;
        let is_better = found
            .get(&identity)
            .is_none_or(|held| rank(held) < rank(&listed));
        if is_better {
            found.insert(identity, listed);
        }
    }
    found.into_values().collect()
}

/// Those that count: a broker must not be able to lend a node another one's name.
pub(crate) fn trusted(nodes: Vec<NodeStatus>, ledger: &Ledger) -> Vec<Listed> {
    let mut nodes = listed(nodes, ledger);
    nodes.retain(|listed| listed.refusal.is_none());
    nodes
}

fn read(status: NodeStatus, mesh: &Mesh) -> Option<Listed> {
    let member = Member::read(&status.member).ok()?;
    let record = SignedRecord::read(&member.record).ok()?;
    let enrolment = Enrolment::read(&member.enrolment).ok()?;
    let refusal = mesh.check_member(&member).err().map(|why| why.to_string());
    Some(Listed {
        refusal,
        status,
        record,
        enrolment,
    })
}
