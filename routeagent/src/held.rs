//! Whose which prefix is, read from the verified view: what both gateways and agents program.

use std::collections::{BTreeMap, BTreeSet};

use ip_network::IpNetwork;
use node::follow::View;
use proto::key::PublicKey;
use proto::ledger::PrefixState;
use proto::name::Name;
use proto::prefix::overlap;

use crate::facts::Remote;

/// The prefixes of the mesh as one site sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub remote: BTreeMap<IpNetwork, Remote>,
    pub local: Vec<IpNetwork>,
    /// Those of `local` that lie behind a translation of the site's own.
    pub services: Vec<IpNetwork>,
}

/// How a site is reached from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    pub mtu: Option<u16>,
    pub by: BTreeSet<PublicKey>,
}

impl Held {
    pub fn of(view: &View, reach: impl Fn(&Name) -> Reach) -> Held {
        let mut held = Held::default();
        let in_force = view
            .prefixes
            .iter()
            .filter(|owned| owned.state == PrefixState::Owned);
        for owned in in_force {
            if owned.site == view.site {
                held.local.push(owned.prefix);
                held.services.extend(owned.service.then_some(owned.prefix));
            } else {
                let Reach { mtu, by } = reach(&owned.site);
                let site = owned.site.clone();
                held.remote.insert(owned.prefix, Remote { site, mtu, by });
            }
        }
        close(view, &mut held);
        held
    }
}

/// What is quarantined, and what a revoked site had, nobody carries; it does not leave in clear
/// for that.
fn close(view: &View, held: &mut Held) {
    let quarantined = view
        .prefixes
        .iter()
        .filter(|one| one.state == PrefixState::Quarantined)
        .map(|one| (&one.prefix, &one.site));
    let cut_off = view.cut_off.iter().map(|(prefix, site)| (prefix, site));
    let mut closed = vec![];
    for (prefix, site) in quarantined.chain(cut_off) {
        if *site == view.site {
            continue;
        }
        let given = || held.remote.keys().copied();
        let parts = closed_parts(*prefix, &held.local).into_iter();
        let parts = parts.filter(|part| stays_closed(*part, given()));
        closed.extend(parts.map(|part| (part, site.clone())));
    }
    for (prefix, site) in closed {
        let nobody = Remote {
            site,
            mtu: None,
            by: BTreeSet::new(),
        };
        held.remote.insert(prefix, nobody);
    }
}

/// Of a prefix that nobody has any more. Where another site has it all now, that counts; a part
/// that another site has goes there by its longer route.
fn stays_closed(prefix: IpNetwork, mut given: impl Iterator<Item = IpNetwork>) -> bool {
    !given.any(|given| given.netmask() <= prefix.netmask() && overlap(given, prefix))
}

/// Our own site is never cut off: what of the prefix it does not have.
fn closed_parts(prefix: IpNetwork, local: &[IpNetwork]) -> Vec<IpNetwork> {
    let touching = || local.iter().filter(|local| overlap(**local, prefix));
    if touching().any(|local| local.netmask() <= prefix.netmask()) {
        return vec![];
    }
    if touching().next().is_none() {
        return vec![prefix];
    }
    let halves: Vec<IpNetwork> = match prefix {
        IpNetwork::V4(v4) => v4.subnets().map(IpNetwork::V4).collect(),
        IpNetwork::V6(v6) => v6.subnets().map(IpNetwork::V6).collect(),
    };
    let parts = halves.into_iter().map(|half| closed_parts(half, local));
    parts.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_closed_prefix_stays_closed_when_a_part_is_given() {
        let net = |text: &str| -> IpNetwork { text.parse().unwrap() };
        let stays = |given: &str| stays_closed(net("10.2.0.0/16"), [net(given)].into_iter());
        for given in ["192.168.0.0/24", "10.2.5.0/24", "10.3.0.0/16", "fd00::/8"] {
            assert!(stays(given), "{given}");
        }
        for given in ["10.2.0.0/16", "10.0.0.0/8"] {
            assert!(!stays(given), "{given}");
        }
    }

    #[test]
    fn of_a_closed_prefix_only_what_is_our_own_is_open() {
        let net = |text: &&str| -> IpNetwork { text.parse().unwrap() };
        for (closed, local, parts) in [
            ("10.2.0.0/16", vec!["192.168.0.0/24"], vec!["10.2.0.0/16"]),
            ("10.2.0.0/16", vec!["10.2.0.0/16"], vec![]),
            ("10.2.0.0/16", vec!["10.0.0.0/8"], vec![]),
            (
                "10.2.0.0/22",
                vec!["10.2.1.0/24", "fd00::/8"],
                vec!["10.2.0.0/24", "10.2.2.0/23"],
            ),
            (
                "10.2.0.0/22",
                vec!["10.2.1.0/24", "10.2.3.0/24"],
                vec!["10.2.0.0/24", "10.2.2.0/24"],
            ),
            ("fd00:2::/32", vec!["fd00:2::/33"], vec!["fd00:2:8000::/33"]),
        ] {
            let local: Vec<IpNetwork> = local.iter().map(net).collect();
            let wanted: Vec<IpNetwork> = parts.iter().map(net).collect();
            assert_eq!(closed_parts(net(&closed), &local), wanted, "{closed}");
        }
    }
}
