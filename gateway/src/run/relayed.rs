//! Paths through brokers: asked for when a link has no other, and given back when it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use node::follow::Handle;
use node::relay::{self, RelayClient};
use proto::key::PublicKey;

use super::{Daemon, Error, Options};
use crate::io::boottime;

/// Who wants a relay. A link asks once: whoever is refused gets the next place that is given back.
#[derive(Default)]
struct Wishes {
    granted: BTreeSet<PublicKey>,
    refused: VecDeque<PublicKey>,
}

impl Wishes {
    /// Whether there was room.
    fn want(&mut self, gateway: PublicKey, has_room: impl Fn(PublicKey) -> bool) -> bool {
        let fits = has_room(gateway);
        if fits {
            self.refused.retain(|refused| *refused != gateway);
            self.granted.insert(gateway);
        } else if !self.refused.contains(&gateway) {
            self.refused.push_back(gateway);
        }
        fits
    }

    /// Who has a place now that had none.
    fn give_back(
        &mut self,
        gateway: &PublicKey,
        has_room: impl Fn(PublicKey) -> bool,
    ) -> Vec<PublicKey> {
        self.granted.remove(gateway);
        self.refused.retain(|refused| refused != gateway);
        let mut next = Vec::new();
        while let Some(refused) = self.refused.pop_front_if(|refused| has_room(*refused)) {
            self.granted.insert(refused);
            next.push(refused);
        }
        next
    }
}

pub(super) struct Relayed {
    client: RelayClient,
    wishes: Wishes,
    ready: BTreeMap<PublicKey, SocketAddr>,
    /// Why a link that wants a relay has none.
    lost: BTreeMap<PublicKey, String>,
}

impl Relayed {
    pub(super) fn start(options: &Options, node: &Handle, port: u16) -> Result<Relayed, Error> {
        let client = RelayClient::start(relay::Options {
            local: node.local(),
            tunnel: SocketAddr::new(options.listen.ip(), port),
            view: node.view(),
            fwmark: Some(options.fwmark.0),
        });
        let client = client
            .map_err(|error| Error::System("get random numbers", std::io::Error::other(error)))?;
        Ok(Relayed {
            client,
            wishes: Wishes::default(),
            ready: BTreeMap::new(),
            lost: BTreeMap::new(),
        })
    }

    pub(super) async fn next(&mut self) -> Option<relay::Event> {
        self.client.next().await
    }

    /// The path, if it is there already: a link that begins anew asks again.
    pub(super) fn want(&mut self, gateway: PublicKey) -> Option<SocketAddr> {
        let client = &self.client;
        if !self.wishes.want(gateway, |peer| client.want(peer)) {
            let why = "too many links ask for a relay already".to_owned();
            self.lost.insert(gateway, why);
            return None;
        }
        self.ready.get(&gateway).copied()
    }

    pub(super) fn give_back(&mut self, gateway: &PublicKey) {
        let client = &self.client;
        client.give_back(gateway);
        self.ready.remove(gateway);
        self.lost.remove(gateway);
        // They are told when theirs is ready.
        for next in self.wishes.give_back(gateway, |peer| client.want(peer)) {
            self.lost.remove(&next);
        }
    }

    /// Why this one is reached by no relay either, if it wants one.
    pub(super) fn why_lost(&self, gateway: &PublicKey) -> Option<&str> {
        self.lost.get(gateway).map(String::as_str)
    }
}

impl Daemon {
    pub(super) fn handle_relay(&mut self, event: relay::Event) {
        match event {
            relay::Event::Ready { peer, address } => {
                self.relayed.lost.remove(&peer);
                // One that was given back may still be told of.
                if self.relayed.wishes.granted.contains(&peer) {
                    tracing::debug!(%peer, %address, "a relay is ready");
                    self.relayed.ready.insert(peer, address);
                    self.links.handle_relay(&peer, Some(address), boottime());
                }
            }
            relay::Event::Lost { peer, why } => {
                tracing::debug!(%peer, why, "no relay");
                self.relayed.ready.remove(&peer);
                self.relayed.lost.insert(peer, why);
                self.links.handle_relay(&peer, None, boottime());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proto::key::SigningKey;

    use super::*;

    #[test]
    fn who_was_refused_a_relay_gets_the_next_place_in_order() {
        let gateways = [1, 2, 3, 4].map(|number| SigningKey::from_seed(&[number; 32]).public());
        let taken = RefCell::new(BTreeSet::new());
        let has_room = |gateway: PublicKey| {
            let mut taken = taken.borrow_mut();
            taken.contains(&gateway) || (taken.is_empty() && taken.insert(gateway))
        };
        let mut wishes = Wishes::default();
        assert!(wishes.want(gateways[0], has_room));
        assert!(!wishes.want(gateways[1], has_room));
        assert!(!wishes.want(gateways[2], has_room));
        assert!(!wishes.want(gateways[3], has_room));
        assert!(!wishes.want(gateways[2], has_room));
        // One that needs it no more frees nothing.
        assert!(wishes.give_back(&gateways[1], has_room).is_empty());
        taken.borrow_mut().clear();
        assert_eq!(wishes.give_back(&gateways[0], has_room), [gateways[2]]);
        taken.borrow_mut().clear();
        assert_eq!(wishes.give_back(&gateways[2], has_room), [gateways[3]]);
        assert_eq!(wishes.granted, BTreeSet::from([gateways[3]]));
        assert!(wishes.refused.is_empty());
    }
}
