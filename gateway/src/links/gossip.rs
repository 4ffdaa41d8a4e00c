//! What gateways tell each other of the mesh when no broker does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto::control::{Control, Digest, Handover, Part, Want};
use proto::key::PublicKey;
use proto::knowledge::Knowledge;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GossipMessage {
    Digest(Digest),
    Want(Want),
    Part(Part),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GossipOutput {
    Send {
        to: PublicKey,
        message: Control,
    },
    /// Nothing of it is verified.
    HandedOver(Handover),
}

#[derive(Debug)]
pub(crate) struct Gossip {
    outputs: VecDeque<GossipOutput>,
}

impl Gossip {
    pub(crate) fn new(_own: PublicKey, _seed: u64, _now: Duration) -> Gossip {
        Gossip {
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn handle_knowledge(&mut self, _knowledge: Arc<Knowledge>, _now: Duration) {}

    pub(crate) fn handle_up(&mut self, _of: &PublicKey, _now: Duration) {}

    pub(crate) fn handle_gone(&mut self, _of: &PublicKey) {}

    pub(crate) fn handle_message(
        &mut self,
        _from: &PublicKey,
        _message: GossipMessage,
        _now: Duration,
    ) {
    }

    pub(crate) fn handle_timeout(&mut self, _now: Duration) {}

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        None
    }

    pub(crate) fn poll_output(&mut self) -> Option<GossipOutput> {
        self.outputs.pop_front()
    }
}
