//! What a mesh tells of its changes.

use crate::key::PublicKey;

/// What has changed since the last look; the state itself is read from the [`super::Mesh`].
/// Revocations come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Its key, its grant or its site was revoked.
    NodeRevoked(PublicKey),
    /// It counts for nothing while the ledger is forked or another holds the same use.
    NodeHidden(PublicKey),
    NodeWithdrawn(PublicKey),
    /// Its record was dropped.
    NodeForgotten(PublicKey),
    /// It is new, or its record is, or it is back.
    NodeChanged(PublicKey),
    PrefixesChanged,
    BrokersChanged,
    ProblemsChanged,
}

impl Event {
    pub(super) fn node(self) -> Option<PublicKey> {
        match self {
            Event::NodeRevoked(node)
            | Event::NodeHidden(node)
            | Event::NodeWithdrawn(node)
            | Event::NodeForgotten(node)
            | Event::NodeChanged(node) => Some(node),
            Event::PrefixesChanged | Event::BrokersChanged | Event::ProblemsChanged => None,
        }
    }
}
