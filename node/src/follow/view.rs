//! What a node knows, for whoever runs it: only what has been verified and, if it was new, is
//! durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ip_network::IpNetwork;
use proto::entry::Broker;
use proto::key::{Hash, MeshId, PublicKey};
use proto::knowledge::Knowledge;
use proto::ledger::{SitePrefix, Standing};
use proto::mesh::Node;
use proto::message::Refusal;
use proto::name::Name;
use proto::token::TokenBroker;

use super::Refused;
use crate::state::LocalNode;
use crate::stores::StoreName;

#[derive(Clone, Debug)]
pub struct View {
    pub mesh: MeshId,
    pub site: Name,
    pub node: Name,
    pub identity: PublicKey,
    /// Whether the ledger still has this node as one of the mesh.
    pub standing: Standing,
    /// In good standing, without this node itself.
    pub peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// All of the ledger, with what this receiver makes of each.
    pub prefixes: Arc<Vec<SitePrefix>>,
    /// What revoked sites had, and whose it was.
    pub cut_off: Arc<BTreeSet<(IpNetwork, Name)>>,
    /// Whom this node may turn to: brokers of the token and of the ledger, with every address.
    pub contacts: Arc<Vec<TokenBroker>>,
    /// Of the ledger, in force.
    pub brokers: Arc<Vec<Broker>>,
    /// Of the ledger.
    pub heads: Arc<Vec<Hash>>,
    /// What other gateways may be told. Made anew only when it has changed.
    pub knowledge: Arc<Knowledge>,
    pub problems: Vec<Problem>,
    /// In a word: connected if a broker of any store is.
    pub broker: BrokerState,
    /// What the brokers of each store are to us; one line for each store of the mesh.
    pub stores: Vec<StoreView>,
    /// Unix seconds of the last time that all a store had was taken.
    pub last_sync: Option<u64>,
    pub refused: Refused,
}

/// A node with the addresses that may be used; those inside another site's prefixes are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: Node,
    pub candidates: Vec<SocketAddr>,
    pub lan_address: Option<IpAddr>,
    /// Who has less joined before: see [`proto::mesh::Mesh::joined`].
    pub joined: (u64, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreView {
    pub store: StoreName,
    /// `Cached` if something of this store was taken before.
    pub state: BrokerState,
    /// Unix seconds of the last time that all it had was taken.
    pub last_sync: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerState {
    Connected {
        /// With the gateway that it is reached through, if it is.
        address: String,
    },
    /// What is shown was verified before; no broker is connected, for these reasons.
    Cached { reasons: Vec<String> },
    /// Nothing is known, and no broker can be reached.
    Unreachable { reasons: Vec<String> },
}

/// What a person should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    Mesh(proto::mesh::Problem),
    /// The ledger does not have this node as one of the mesh any more, or not now.
    Standing(Standing),
    /// Another living node has this node's name.
    NameTaken {
        holder: String,
        heard_s: u64,
    },
    /// The broker does not take this node's record, or this node.
    NotTaken {
        by: String,
        refusal: Refusal,
    },
    /// No broker of one store can be reached, while those of others can.
    StoreLost {
        store: StoreName,
        reasons: Vec<String>,
    },
    CacheUnwritable {
        why: String,
    },
    CacheDamaged {
        path: PathBuf,
        lines: usize,
    },
    /// Ahead of the broker's if positive.
    ClockOff {
        seconds: i64,
    },
    SequenceExhausted,
    /// The broker has shown entries whose predecessors it keeps to itself.
    EntriesWithheld {
        count: usize,
    },
}

/// Leave to ask a broker which outer address it sees.
#[derive(Clone, PartialEq, Eq)]
pub struct ReflectorSession {
    pub session: u64,
    pub key: proto::reflect::SessionKey,
    /// Where it can be asked: first at the address that the broker was reached at, then at others
    /// of its name.
    pub addresses: Vec<SocketAddr>,
}

/// Without the key.
impl fmt::Debug for ReflectorSession {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ReflectorSession at {:?}", self.addresses)
    }
}

impl View {
    pub(super) fn empty(local: &LocalNode) -> View {
        View {
            mesh: local.membership.mesh,
            site: local.membership.site().clone(),
            node: local.membership.node.clone(),
            identity: local.identity_key(),
            standing: Standing::NoGrant,
            peers: BTreeMap::new(),
            prefixes: Arc::default(),
            cut_off: Arc::default(),
            contacts: Arc::default(),
            brokers: Arc::default(),
            heads: Arc::default(),
            knowledge: Arc::default(),
            problems: Vec::new(),
            broker: BrokerState::Unreachable {
                reasons: Vec::new(),
            },
            stores: Vec::new(),
            last_sync: None,
            refused: Refused::default(),
        }
    }
}

impl BrokerState {
    /// What all stores come to.
    pub(super) fn summary(stores: &[StoreView], is_known: bool) -> BrokerState {
        let connected = |view: &&StoreView| matches!(view.state, BrokerState::Connected { .. });
        if let Some(view) = stores.iter().find(connected) {
            return view.state.clone();
        }
        let reasons = stores.iter().flat_map(|view| view.state.reasons());
        BrokerState::lost(reasons.cloned().collect(), is_known)
    }

    pub(super) fn lost(reasons: Vec<String>, is_known: bool) -> BrokerState {
        if is_known {
            BrokerState::Cached { reasons }
        } else {
            BrokerState::Unreachable { reasons }
        }
    }

    /// Why no broker is connected.
    pub fn reasons(&self) -> &[String] {
        match self {
            BrokerState::Connected { .. } => &[],
            BrokerState::Cached { reasons } | BrokerState::Unreachable { reasons } => reasons,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            BrokerState::Connected { .. } => "connected",
            BrokerState::Cached { .. } => "cached",
            BrokerState::Unreachable { .. } => "unreachable",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Mesh(problem) => problem.fmt(out),
            Problem::Standing(standing) => out.write_str(match standing {
                Standing::Good => "this node is one of the mesh",
                Standing::NoGrant => {
                    "nothing can be carried yet: what is known here of the mesh lacks this node's grant"
                }
                Standing::GrantClosed => {
                    "this node's grant was closed, and it is not among those that stay"
                }
                Standing::SiteRevoked => "this node's site was revoked",
                Standing::Revoked => "this node was revoked",
                Standing::Quarantined => {
                    "this node's grant is quarantined until the ledger's fork is settled"
                }
            }),
            Problem::NameTaken { holder, heard_s } => write!(
                out,
                "this node's name is held by another living node ({holder}), heard {heard_s} s ago"
            ),
            Problem::NotTaken { by, refusal } => write!(
                out,
                "broker {by} refuses this node: {}",
                crate::refusal::sentence(refusal, crate::now())
            ),
            Problem::StoreLost { store, reasons } => write!(
                out,
                "no broker of store {store} can be reached, others can: {}",
                reasons.join("; ")
            ),
            Problem::CacheUnwritable { why } => write!(
                out,
                "what brokers send cannot be stored and is not used, save revocations: {why}"
            ),
            Problem::CacheDamaged { path, lines } => {
                write!(
                    out,
                    "{lines} lines of {} were damaged and are left out",
                    path.display()
                )
            }
            Problem::ClockOff { seconds } => write!(
                out,
                "this machine's clock is {} s {} the broker's",
                seconds.unsigned_abs(),
                if *seconds > 0 { "ahead of" } else { "behind" }
            ),
            Problem::SequenceExhausted => {
                out.write_str("there is no number left for this node's next record")
            }
            Problem::EntriesWithheld { count } => write!(
                out,
                "the broker has sent {count} ledger entries without those before them"
            ),
        }
    }
}

impl Problem {
    /// What to do next.
    pub fn next(&self) -> String {
        match self {
            Problem::Mesh(problem) => problem.next(),
            Problem::Standing(Standing::Quarantined) => {
                "settle the ledger's fork with `causeway ledger settle`".to_owned()
            }
            Problem::Standing(Standing::Good | Standing::NoGrant) => {
                "it waits for a broker, who has it: see whether one runs, and whether TCP to it passes from here".to_owned()
            }
            Problem::Standing(
                Standing::GrantClosed | Standing::SiteRevoked | Standing::Revoked,
            ) => {
                "if that was not meant, join again with a new token and another state directory"
                    .to_owned()
            }
            Problem::NameTaken { .. } => {
                "join again under another name (`causeway leave`, then `join --node`), or stop the other node; it is tried again by itself".to_owned()
            }
            Problem::NotTaken { refusal, .. } if crate::refusal::is_passing(refusal) => {
                "it is tried again by itself; see the broker's log if it lasts".to_owned()
            }
            Problem::NotTaken { .. } => {
                "see to what the broker says; a node that is no longer one joins again with a new token".to_owned()
            }
            Problem::StoreLost { .. } => {
                "see whether its brokers run and can be reached from here, or remove them with `causeway broker remove`; until then nodes that reach no other store are shown as last known".to_owned()
            }
            Problem::CacheUnwritable { .. } => {
                "make room on the disk or make it writable; it is tried again by itself".to_owned()
            }
            Problem::CacheDamaged { .. } => {
                "nothing: it is fetched from a broker again; see to the disk if it happens twice".to_owned()
            }
            Problem::ClockOff { .. } => "set the clock of the one that is wrong".to_owned(),
            Problem::SequenceExhausted => "join again with a new token and another state directory".to_owned(),
            Problem::EntriesWithheld { .. } => {
                "hand the broker the ledger with `causeway ledger push`; if that does not help, do not trust it".to_owned()
            }
        }
    }
}
