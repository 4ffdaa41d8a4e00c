//! Whether a directory's node is still one of the mesh: by the ledger that is stored, and by what a
//! broker says.

use std::time::Duration;

use proto::ledger::Standing;
use proto::mesh::Mesh;
use proto::message::Refusal;

use crate::cache::Line;
use crate::follow::Problem;
use crate::journal::Journal;
use crate::login::log_in;
use crate::session::{Session, Ways};
use crate::state::LocalNode;

/// Whoever repeats a join waits no longer for brokers that are away.
const ASKED_FOR: Duration = Duration::from_secs(3);

/// Why it is no longer one.
pub(super) async fn put_out(node: &LocalNode) -> Option<Problem> {
    match standing(node) {
        Standing::Quarantined => None,
        standing @ (Standing::GrantClosed | Standing::SiteRevoked | Standing::Revoked) => {
            Some(Problem::Standing(standing))
        }
        // A node that is put out is cut off before it has the entry that says so.
        Standing::Good | Standing::NoGrant => {
            // While a daemon runs, to log in beside it would take its place; its status says it.
            let _free = node.lock().ok()?;
            let asked = tokio::time::timeout(ASKED_FOR, refused(node)).await;
            asked.unwrap_or_default()
        }
    }
}

/// Only read: a daemon may be writing there. What cannot be read says nothing.
fn standing(node: &LocalNode) -> Standing {
    let mut mesh = Mesh::new(node.membership.mesh, None);
    let lines = Journal::read(&node.cache_path()).unwrap_or_default();
    for line in &lines {
        if let Ok(Line::Entry(bytes)) = line.parse() {
            // One that does not hold changes nothing.
            let _taken = mesh.handle_entry(&bytes);
        }
    }
    let grant = node.membership.grant_entry().hash();
    mesh.charter().standing(&grant, &node.identity_key())
}

/// The word of the first broker that answers.
async fn refused(node: &LocalNode) -> Option<Problem> {
    let ways = Ways::of(node);
    for broker in &node.membership.brokers {
        let mesh = node.membership.mesh;
        let reached = Session::connect_by(&broker.address, broker.key, mesh, &ways).await;
        let Ok((mut session, _)) = reached else {
            continue;
        };
        let Err(failure) = log_in(&mut session, node, &[]).await else {
            session.close().await;
            return None;
        };
        if let Some(refusal @ (Refusal::Revoked | Refusal::SiteRevoked)) = failure.refusal() {
            return Some(Problem::NotTaken {
                by: failure.address.clone(),
                refusal: refusal.clone(),
            });
        }
    }
    None
}
