//! The largest inner packet that a path carries, found by probes inside the tunnel (in the manner
//! of RFC 8899) and confirmed while large packets flow. ICMP plays no part.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::dice::Dice;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MtuOutput {
    /// To be echoed at this size.
    Probe {
        to: SocketAddr,
        nonce: u64,
        size: u16,
    },
    Changed(u16),
}

#[derive(Debug)]
pub(crate) struct MtuSearch {
    dice: Dice,
    outputs: VecDeque<MtuOutput>,
}

impl MtuSearch {
    pub(crate) fn new(seed: u64, _now: Duration) -> MtuSearch {
        MtuSearch {
            dice: Dice::new(seed),
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn handle_path(&mut self, _path: SocketAddr, _now: Duration) {}

    pub(crate) fn handle_large(&mut self, _total: u64, _now: Duration) {}

    pub(crate) fn handle_echo(&mut self, _nonce: u64, _now: Duration) -> bool {
        false
    }

    pub(crate) fn handle_timeout(&mut self, _now: Duration) {}

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        None
    }

    pub(crate) fn poll_output(&mut self) -> Option<MtuOutput> {
        self.outputs.pop_front()
    }

    pub(crate) fn mtu(&self) -> u16 {
        1280
    }
}
