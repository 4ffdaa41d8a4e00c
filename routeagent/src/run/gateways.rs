//! The gateways of this node's own site, as the verified view has them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use node::follow::View;
use node::state::LocalNode;
use proto::entry::Role;
use proto::key::PublicKey;
use proto::lan::{PORT, PairKey};
use proto::ledger::Standing;
use proto::name::Name;

use super::place::Place;
use crate::health::GatewayAt;

#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) name: Name,
    /// Of its signed record.
    pub(super) lan: IpAddr,
    key: PairKey,
}

/// Those that can be spoken with.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    all: BTreeMap<PublicKey, Gateway>,
    /// Why others cannot.
    pub(super) left_out: Vec<(Name, LeftOut)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeftOut {
    NoLanAddress,
    /// This node has none of its family.
    OtherFamily(IpAddr),
    /// It would be this node itself.
    OurAddress,
    BadKey,
}

impl Gateways {
    /// A node that is not one of the mesh any more speaks with nobody.
    pub(super) fn of(view: &View, local: &LocalNode, place: &Place) -> Gateways {
        let mut gateways = Gateways::default();
        if view.standing != Standing::Good {
            return gateways;
        }
        for (identity, peer) in &view.peers {
            let record = &peer.node.record;
            let Some(presence) = record.presence() else {
                continue;
            };
            let is_ours = record.role == Role::Gateway && record.site == view.site;
            if !is_ours || *identity == view.identity {
                continue;
            }
            let shared = local.wireguard.agree(&presence.wireguard);
            let key = PairKey::derive(&shared, &view.mesh, &view.identity, identity);
            let name = record.node.clone();
            match (peer.lan_address, key) {
                (None, _) => gateways.left_out.push((name, LeftOut::NoLanAddress)),
                (_, None) => gateways.left_out.push((name, LeftOut::BadKey)),
                (Some(lan), _) if place.is_own(lan) => {
                    gateways.left_out.push((name, LeftOut::OurAddress));
                }
                (Some(lan), _) if !place.has_family_of(lan) => {
                    gateways.left_out.push((name, LeftOut::OtherFamily(lan)));
                }
                (Some(lan), Some(key)) => {
                    gateways.all.insert(*identity, Gateway { name, lan, key });
                }
            }
        }
        gateways
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PublicKey, &Gateway)> {
        self.all.iter()
    }

    pub(super) fn get(&self, who: &PublicKey) -> Option<&Gateway> {
        self.all.get(who)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// For the hellos.
    pub(super) fn at(&self, place: &Place) -> BTreeMap<PublicKey, GatewayAt> {
        let all = self.all.iter().map(|(who, gateway)| {
            let at = GatewayAt {
                name: gateway.name.clone(),
                address: SocketAddr::new(gateway.lan, PORT),
                key: gateway.key.clone(),
                is_near: place.is_near(gateway.lan),
            };
            (*who, at)
        });
        all.collect()
    }
}
