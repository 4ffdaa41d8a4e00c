//! Paths through brokers: asked for when a link has no other, and given back when it has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use node::follow::Handle;
use node::relay::{self, RelayClient};
use proto::key::PublicKey;

use super::{Daemon, Error, Options};
use crate::io::boottime;

pub(super) struct Relayed {
    client: RelayClient,
    wanted: BTreeSet<PublicKey>,
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
            wanted: BTreeSet::new(),
            ready: BTreeMap::new(),
            lost: BTreeMap::new(),
        })
    }

    pub(super) async fn next(&mut self) -> Option<relay::Event> {
        self.client.next().await
    }

    /// The path, if it is there already: a link that begins anew asks again.
    pub(super) fn want(&mut self, gateway: PublicKey) -> Option<SocketAddr> {
        if !self.client.want(gateway) {
            let why = "too many links ask for a relay already".to_owned();
            self.lost.insert(gateway, why);
            return None;
        }
        self.wanted.insert(gateway);
        self.ready.get(&gateway).copied()
    }

    pub(super) fn give_back(&mut self, gateway: &PublicKey) {
        self.client.give_back(gateway);
        self.wanted.remove(gateway);
        self.ready.remove(gateway);
        self.lost.remove(gateway);
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
                if self.relayed.wanted.contains(&peer) {
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
