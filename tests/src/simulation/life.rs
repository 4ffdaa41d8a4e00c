//! How processes begin, pause and end.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway::links::{Links, Local};

use super::node::{NodeId, Process, Wakes};
use super::world::{SWEEP, What, World};

impl World {
    pub fn start(&mut self, at: NodeId) {
        if self.nodes[at].process.is_some() {
            return;
        }
        let (boot, seed) = (self.dice.below(u64::MAX), self.dice.below(u64::MAX));
        let now = self.now;
        let node = &mut self.nodes[at];
        let local = Local {
            identity: node.actor.key(),
            wireguard: node.actor.wireguard,
            site: node.actor.site.clone(),
            boot,
        };
        node.generation += 1;
        node.died = None;
        node.is_stopped = false;
        node.touched = now;
        let generation = node.generation;
        node.process = Some(Process {
            links: Links::new(local, seed, now),
            peers: BTreeMap::new(),
            roster: Default::default(),
            relays: BTreeMap::new(),
            carriers: Default::default(),
            wake: None,
            is_leaving: false,
            reflected: None,
            asked_reflection: None,
            last_stamp: 0,
            started: now,
            wakes: Wakes::default(),
        });
        self.note(format!("{} starts", self.nodes[at].label()));
        self.addresses_changed(at);
        self.mesh_changed(at);
        let jitter = self.dice.between(Duration::ZERO, SWEEP);
        self.schedule(now + jitter, What::Sweep(at, generation));
        // The time that TLS takes.
        self.schedule(
            now + Duration::from_millis(50),
            What::Contact(at, generation),
        );
    }

    /// As `kill -9` does.
    pub fn kill(&mut self, at: NodeId) {
        let node = &mut self.nodes[at];
        if node.process.take().is_none() {
            return;
        }
        node.generation += 1;
        node.is_stopped = false;
        node.backlog.clear();
        node.died = Some(self.now);
        node.touched = self.now;
        self.note(format!("{} is dead", self.nodes[at].label()));
    }

    /// As SIGTERM does.
    pub fn stop(&mut self, at: NodeId) {
        let now = self.now;
        if let Some(process) = &mut self.nodes[at].process {
            process.is_leaving = true;
            process.links.handle_stop(now);
            self.nodes[at].touched = now;
            self.note(format!("{} stops", self.nodes[at].label()));
            self.drain(at);
        }
    }

    /// As SIGSTOP does.
    pub fn freeze(&mut self, at: NodeId) {
        let node = &mut self.nodes[at];
        if node.is_running() {
            node.is_stopped = true;
            node.died = Some(self.now);
            node.touched = self.now;
            self.note(format!("{} is frozen", self.nodes[at].label()));
        }
    }

    /// As SIGCONT does. Timers and what waits in the socket come in either order.
    pub fn thaw(&mut self, at: NodeId) {
        if !std::mem::take(&mut self.nodes[at].is_stopped) {
            return;
        }
        let now = self.now;
        let node = &mut self.nodes[at];
        node.died = None;
        node.touched = now;
        let generation = node.generation;
        let backlog = std::mem::take(&mut node.backlog);
        self.note(format!("{} goes on", self.nodes[at].label()));
        let timers_first = self.dice.chance(500);
        if timers_first {
            self.time_out(at);
        }
        for (source, datagram) in backlog {
            self.receive(at, source, datagram);
        }
        if !timers_first {
            self.time_out(at);
        }
        self.schedule(now, What::Sweep(at, generation));
    }

    pub(super) fn time_out(&mut self, at: NodeId) {
        let now = self.now;
        if let Some(process) = &mut self.nodes[at].process {
            process.wake = None;
            process.links.handle_timeout(now);
            self.drain(at);
        }
    }
}
