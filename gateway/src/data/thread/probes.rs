//! Agents' probes: they come out of the TUN as packets of the mesh do, and their answers go into
//! it the same way. Neither is on the way of any other packet: the look-up tells them apart.

use std::io::IoSlice;
use std::time::Duration;

use super::DataThread;
use crate::drops::DropReason;
use crate::packet::probe::Probe;
use crate::packet::vnet::VnetHeader;

/// Passed on by one thread: enough for a thousand agents that try their ways at once.
const A_SECOND: u32 = 5000;

/// How many more may pass within this second.
#[derive(Default)]
pub(super) struct Pace {
    since: Duration,
    taken: u32,
}

impl Pace {
    fn allows(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.since) >= Duration::from_secs(1) {
            (self.since, self.taken) = (now, 0);
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= A_SECOND
    }
}

impl DataThread {
    /// A frame for one of our probe addresses.
    pub(super) fn take_probe(&mut self, len: usize) {
        let packet = &self.frame[VnetHeader::LEN..len];
        let is_one = Probe::parse(packet).is_some() && self.probes.allows(self.now);
        if !(is_one && self.shared.control.push_probe(self.id, packet)) {
            self.drops.count(DropReason::LanProbe);
        }
    }

    /// A whole packet for this host's kernel.
    pub(super) fn write_tun(&self, packet: &[u8]) {
        let plain = [0; VnetHeader::LEN];
        // A full TUN loses it as a network would.
        let _lost = self
            .tun
            .write(&[IoSlice::new(&plain), IoSlice::new(packet)]);
    }
}
