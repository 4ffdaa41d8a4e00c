//! What nodes have from the broker and from each other's hand-overs, and what the broker makes up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use proto::control::Handover;
use proto::entry::Body;
use proto::key::{PublicKey, WireguardKey};
use proto::record::{Capabilities, Member, NodeState, Presence};

use super::broker::{Item, Lie};
use super::node::{NodeId, Relay};
use super::world::{What, World};

/// Keeps a mapping alive in any NAT worth the name.
const REFLECT_EVERY: Duration = Duration::from_secs(15);
const REFLECT_AGAIN: Duration = Duration::from_secs(1);

impl World {
    pub fn reaches_broker(&self, at: NodeId) -> bool {
        let (host, broker) = (self.nodes[at].host, self.broker.host);
        self.broker.works()
            && !self.network.is_cut(host, broker)
            && !self.network.is_cut(broker, host)
    }

    /// Publishes, reads, asks for the relay; what its daemon does once a second and when told.
    pub(super) fn contact(&mut self, at: NodeId) {
        if !self.nodes[at].is_running() {
            return;
        }
        if !self.reaches_broker(at) {
            return self.lose_relays(at);
        }
        self.publish(at);
        self.read_log(at);
        self.reflect_in_time(at);
        self.match_relays(at);
    }

    fn publish(&mut self, at: NodeId) {
        let node = &mut self.nodes[at];
        let is_refused = node.is_revoked;
        if let Some(member) = node.member.clone().filter(|_| !node.is_published) {
            node.is_published = true;
            if !is_refused {
                self.push(Item::Member(member));
            }
        }
    }

    /// Into the broker's log, and soon to everyone.
    pub(super) fn push(&mut self, item: Item) {
        let now = self.now;
        self.broker.log.push((now, item));
        for at in 0..self.nodes.len() {
            let jitter = self.dice.between(Duration::ZERO, Duration::from_millis(30));
            let when = now + self.broker.lag + Duration::from_millis(10) + jitter;
            self.schedule(when, What::Told(at));
        }
    }

    /// What the authority has signed and the broker does not have.
    pub fn push_entries(&mut self) {
        let has = self.broker.log.iter();
        let has = has
            .filter(|(_, item)| matches!(item, Item::Entry(_)))
            .count();
        let new: Vec<Vec<u8>> = self.authority.entries[has..]
            .iter()
            .map(|entry| entry.bytes().to_vec())
            .collect();
        for entry in new {
            self.push(Item::Entry(entry));
        }
    }

    fn read_log(&mut self, at: NodeId) {
        if self.broker.withheld.contains(&at) {
            return;
        }
        let (now, lag) = (self.now, self.broker.lag);
        let from = self.nodes[at].taken;
        let due = self.broker.log[from..].iter();
        let items: Vec<Item> = due
            .take_while(|(when, _)| *when + lag <= now)
            .map(|(_, item)| item.clone())
            .collect();
        if items.is_empty() {
            return;
        }
        self.nodes[at].taken += items.len();
        let lies = self.made_up(&items);
        let mesh = &mut self.nodes[at].mesh;
        for item in items.iter().chain(&lies) {
            // What is refused is refused; the checks see what was taken.
            match item {
                Item::Entry(bytes) => drop(mesh.handle_entry(bytes)),
                Item::Member(member) => drop(mesh.handle_member(member)),
            }
        }
        self.mesh_changed(at);
    }

    /// Behind every piece of news, what a lying broker adds to it.
    fn made_up(&mut self, news: &[Item]) -> Vec<Item> {
        let mut items = Vec::new();
        let members: Vec<Member> = self.broker.members().cloned().collect();
        let Some(other) = self.dice.pick(&members).cloned() else {
            return items;
        };
        for lie in self.broker.lies.clone() {
            match lie {
                Lie::Replay => items.extend(members.iter().cloned().map(Item::Member)),
                Lie::Damage => {
                    let mut damaged = other.clone();
                    let end = damaged.record.len() as u64;
                    let at = usize::try_from(self.dice.below(end)).unwrap_or_default();
                    damaged.record[at] ^= 1 << self.dice.below(8);
                    items.push(Item::Member(damaged));
                }
                Lie::Impersonate => items.extend(self.impersonations(&other)),
                Lie::Swap => {
                    let mut swapped = other.clone();
                    if let Some(Item::Member(new)) = news.last() {
                        swapped.record.clone_from(&new.record);
                    }
                    items.push(Item::Member(swapped));
                }
                Lie::Entries => items.push(Item::Entry(self.forged_entry())),
            }
        }
        items
    }

    /// Every node's record as the broker would like it, signed by a node that it has bought.
    fn impersonations(&self, shown: &Member) -> Vec<Item> {
        let Some(bought) = self.nodes.iter().find(|node| node.is_revoked) else {
            return Vec::new();
        };
        let state = NodeState::Present(Presence {
            wireguard: WireguardKey::new([0x33; 32]).expect("not of low order"),
            next_wireguard: None,
            candidates: vec![SocketAddr::from(([5, 0, 0, 1], 51820))],
            lan_address: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
            region: String::new(),
            zone: String::new(),
            capabilities: Capabilities::default(),
        });
        let victims = self.nodes.iter().filter(|node| !node.is_revoked);
        let forged = victims.map(|node| {
            bought
                .actor
                .impersonate(shown, node.identity(), state.clone())
        });
        forged.map(Item::Member).collect()
    }

    fn forged_entry(&self) -> Vec<u8> {
        self.authority.forged(Body::Prefixes {
            site: World::site_name(1),
            added: vec!["10.99.0.0/16".parse().expect("a prefix")],
            added_service: Vec::new(),
            removed: Vec::new(),
        })
    }

    fn reflect_in_time(&mut self, at: NodeId) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let every = match process.reflected {
            Some(_) => REFLECT_EVERY,
            None => REFLECT_AGAIN,
        };
        if process
            .asked_reflection
            .is_none_or(|asked| now >= asked + every)
        {
            process.asked_reflection = Some(now);
            self.ask_reflection(at);
        }
    }

    /// Its TLS session has ended, and with it what was relayed over it.
    fn lose_relays(&mut self, at: NodeId) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let mut lost = Vec::new();
        for (of, relay) in &mut process.relays {
            if std::mem::replace(relay, Relay::Wanted) == Relay::Given {
                lost.push(*of);
            }
        }
        for of in lost {
            process.links.handle_relay(&of, None, now);
        }
        self.drain(at);
    }

    /// The relay serves pairs of which both have asked.
    pub(super) fn match_relays(&mut self, at: NodeId) {
        if !self.reaches_broker(at) || !self.broker.relays {
            return;
        }
        let Some(process) = &self.nodes[at].process else {
            return;
        };
        let wanted = process.relays.iter();
        let wanted: Vec<PublicKey> = wanted
            .filter(|(_, relay)| **relay == Relay::Wanted)
            .map(|(of, _)| *of)
            .collect();
        let own = self.nodes[at].identity();
        for of in wanted {
            let other = (0..self.nodes.len()).find(|other| {
                let node = &self.nodes[*other];
                let relays = node.process.as_ref().map(|process| &process.relays);
                node.identity() == of
                    && node.is_running()
                    && !node.is_revoked
                    && relays.is_some_and(|relays| relays.contains_key(&own))
            });
            if let Some(other) = other.filter(|other| self.reaches_broker(*other)) {
                self.allot_relay(at, &of);
                self.allot_relay(other, &own);
            }
        }
    }

    fn allot_relay(&mut self, at: NodeId, of: &PublicKey) {
        let generation = self.nodes[at].generation;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        if process.relays.get(of) == Some(&Relay::Wanted) {
            process.relays.insert(*of, Relay::Coming);
            let when = self.now + Duration::from_millis(40);
            self.schedule(when, What::RelayReady(at, generation, *of));
        }
    }

    pub(super) fn relay_ready(&mut self, at: NodeId, generation: u64, of: PublicKey) {
        let now = self.now;
        let address = self.relay_address(&of);
        if !self.is_current(at, generation) {
            return;
        }
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        if process.relays.get(&of) == Some(&Relay::Coming) {
            process.relays.insert(of, Relay::Given);
            process.links.handle_relay(&of, address, now);
            self.note_of(at, &of, "has a relay".to_owned());
            self.drain(at);
        }
    }

    /// What another gateway handed over is verified as what the broker says is.
    pub(super) fn take_handover(&mut self, at: NodeId, handover: &Handover) {
        let mesh = &mut self.nodes[at].mesh;
        for entry in &handover.entries {
            drop(mesh.handle_entry(entry));
        }
        for member in &handover.members {
            if let Ok(member) = Member::read(member) {
                drop(mesh.handle_member(&member));
            }
        }
        self.mesh_changed(at);
    }

    /// An operator carries the last entry of the ledger to one gateway by hand.
    pub fn carry_entry(&mut self, to: NodeId) {
        let entries: Vec<Vec<u8>> = self
            .authority
            .entries
            .iter()
            .map(|entry| entry.bytes().to_vec())
            .collect();
        for entry in entries {
            drop(self.nodes[to].mesh.handle_entry(&entry));
        }
        self.mesh_changed(to);
    }
}
