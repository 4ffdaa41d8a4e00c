//! Nobody takes over another's LAN address by writing it into a record of its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use node::status::Problem;
use proto::key::PublicKey;
use proto::name::Name;

/// A node whose record names an address that another's does, which joined before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) identity: PublicKey,
    name: Name,
    lan: IpAddr,
    by: Name,
}

impl Taken {
    pub(super) fn problem(&self) -> Problem {
        let Taken { name, lan, by, .. } = self;
        Problem::new(
            format!(
                "the records of {by} and {name} name the same LAN address, {lan}: it is taken for {by}'s, which joined before, and {name} is not reached by VXLAN"
            ),
            format!(
                "if {by} is gone, revoke it where the authority is (`causeway node revoke {by}`); else give {name} an address of its own, or name the right one with --address"
            ),
        )
    }
}

/// Of nodes of one site, with where each stands in the order of joining.
pub(super) fn taken<'a>(
    nodes: impl Iterator<Item = ((u64, u32), PublicKey, &'a Name, IpAddr)>,
) -> Vec<Taken> {
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_by_key(|(joined, identity, ..)| (*joined, *identity));
    let mut first: BTreeMap<IpAddr, &Name> = BTreeMap::new();
    let mut taken = Vec::new();
    for (_, identity, name, lan) in nodes {
        match first.entry(lan) {
            Entry::Vacant(free) => {
                free.insert(name);
            }
            Entry::Occupied(by) => taken.push(Taken {
                identity,
                name: name.clone(),
                lan,
                by: (*by.get()).clone(),
            }),
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    #[test]
    fn an_address_is_the_one_s_who_joined_first() {
        let identity = |number| SigningKey::from_seed(&[number; 32]).public();
        let names: Vec<Name> = ["new", "old", "other", "newest"]
            .map(|name| name.parse().unwrap())
            .into();
        let lan = |last| IpAddr::from([10, 1, 0, last]);
        let nodes = [
            ((7, 1), identity(1), &names[0], lan(1)),
            ((7, 0), identity(2), &names[1], lan(1)),
            ((9, 0), identity(3), &names[2], lan(2)),
            ((8, 5), identity(4), &names[3], lan(1)),
        ];
        let expected = [1, 4].map(identity);
        let found = taken(nodes.into_iter());
        let who: Vec<PublicKey> = found.iter().map(|one| one.identity).collect();
        assert_eq!(who, expected);
        assert!(found.iter().all(|one| one.by == names[1]));
        let says = found[0].problem().what;
        assert!(says.contains("old and new name the same"), "{says}");
    }
}
