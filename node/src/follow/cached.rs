//! What a node's cache holds, for commands that run beside the daemon or without one: verified like
//! all that is read from there. Nothing is locked and nothing written.

use std::sync::Arc;

use proto::mesh::Mesh;
use proto::record::{Record, SignedRecord};

use super::register::Register;
use super::view::{BrokerState, View};
use crate::cache::Line;
use crate::contacts::contacts;
use crate::journal::Journal;
use crate::state::LocalNode;

pub struct Cached {
    pub view: View,
    /// The last one that this node signed of itself.
    pub own: Option<Record>,
}

/// Empty where nothing was taken yet. A line that is being written meanwhile may be missing.
pub fn cached(node: &LocalNode) -> Cached {
    let membership = &node.membership;
    let mesh = Mesh::new(membership.mesh, Some(membership.site().clone()));
    let mut register = Register::new(mesh, node.identity_key());
    let lines = Journal::read(&node.cache_path()).unwrap_or_default();
    let now = crate::now();
    for line in lines.iter().filter_map(|line| line.parse::<Line>().ok()) {
        register.handle_line(line, now);
    }
    register.handle_loaded(true);
    let shown = register.shown().clone();
    let charter = register.mesh.charter();
    let grant = membership.grant_entry().hash();
    let own = register.own.member();
    let own = own.and_then(|member| SignedRecord::read(&member.record).ok());
    let view = View {
        standing: charter.standing(&grant, &node.identity_key()),
        contacts: Arc::new(contacts(&membership.brokers, charter)),
        peers: shown.peers,
        prefixes: shown.prefixes,
        cut_off: shown.cut_off,
        brokers: shown.brokers,
        heads: shown.heads,
        knowledge: shown.knowledge,
        problems: shown
            .problems
            .iter()
            .cloned()
            .map(super::Problem::Mesh)
            .collect(),
        broker: BrokerState::Cached {
            reasons: Vec::new(),
        },
        last_sync: register.last_sync,
        ..View::empty(node)
    };
    Cached {
        view,
        own: own.map(|signed| signed.record().clone()),
    }
}
