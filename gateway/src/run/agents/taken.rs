//! Nobody takes over another's LAN address by writing it into a record of its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use node::status::Problem;
use proto::key::PublicKey;
use proto::name::Name;

/// A node whose record names an address that another's does, to whom it is left.
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
                "the records of {by} and {name} name the same LAN address, {lan}: it is taken for {by}'s, and {name} is not reached by VXLAN"
            ),
            format!(
                "if {by} is gone, revoke it where the authority is (`causeway node revoke {by}`); else give {name} an address of its own, or name the right one with --address"
            ),
        )
    }
}

/// What the record of a node of this site says.
pub(super) struct Claim<'a> {
    /// It answers at this very address now.
    pub(super) is_heard: bool,
    /// Where it stands in the order of joining.
    pub(super) joined: (u64, u32),
    pub(super) identity: PublicKey,
    pub(super) name: &'a Name,
    pub(super) lan: IpAddr,
}

/// Whoever is heard at the address has it: a machine that got the address of one that is no more.
/// Of several, and where none is, the one that joined first.
pub(super) fn taken<'a>(claims: impl Iterator<Item = Claim<'a>>) -> Vec<Taken> {
    let mut claims: Vec<_> = claims.collect();
    claims.sort_by_key(|claim| (!claim.is_heard, claim.joined, claim.identity));
    let mut first: BTreeMap<IpAddr, &Name> = BTreeMap::new();
    let mut taken = Vec::new();
    for claim in claims {
        match first.entry(claim.lan) {
            Entry::Vacant(free) => {
                free.insert(claim.name);
            }
            Entry::Occupied(by) => taken.push(Taken {
                identity: claim.identity,
                name: claim.name.clone(),
                lan: claim.lan,
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
    fn an_address_is_the_one_s_who_is_heard_there_or_joined_first() {
        let identity = |number| SigningKey::from_seed(&[number; 32]).public();
        let names: Vec<Name> = ["new", "old", "other", "newest"]
            .map(|name| name.parse().unwrap())
            .into();
        let lan = |last| IpAddr::from([10, 1, 0, last]);
        let nodes = [
            ((7, 1), 1, &names[0], lan(1)),
            ((7, 0), 2, &names[1], lan(1)),
            ((9, 0), 3, &names[2], lan(2)),
            ((8, 5), 4, &names[3], lan(1)),
        ];
        let find = |heard: u8| {
            let claims = nodes.iter().map(|(joined, number, name, lan)| Claim {
                is_heard: *number == heard,
                joined: *joined,
                identity: identity(*number),
                name,
                lan: *lan,
            });
            taken(claims)
        };
        let who = |found: &[Taken]| found.iter().map(|one| one.identity).collect::<Vec<_>>();
        let found = find(3);
        assert_eq!(who(&found), [1, 4].map(identity));
        assert!(found.iter().all(|one| one.by == names[1]));
        // The others are no more, and a new machine has got the address.
        let left = find(4);
        assert_eq!(who(&left), [2, 1].map(identity));
        assert!(left.iter().all(|one| one.by == names[3]));
        let says = found[0].problem().what;
        assert!(says.contains("old and new name the same"), "{says}");
    }
}
