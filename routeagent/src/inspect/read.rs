//! Reads all of other programs' rules.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleMessage, SetElementList, SetElementMessage,
};

use super::rules::{Chain, Key, Rule, Rules, Set};
use super::{Ruleset, decode, legacy};
use crate::netlink::Refused;
use crate::netlink::nft::Nft;
use crate::netlink::raw::Raw;
use crate::settings::{TABLE_NAME, TRACE_TABLE};

/// What filters packets that are routed: inet, ip and ip6.
const ROUTED: [u8; 3] = [1, 2, 10];
/// Sets that are read; rules that ask others may hold or not.
const SETS: usize = 500;
/// What is kept of one of them while it is read, and of all.
const SET_BYTES: usize = 2 << 20;
const ALL_SETS_BYTES: usize = 4 << 20;

type Chains = BTreeMap<Key, Chain>;

pub(super) fn ruleset(nft: &Nft, with_ours: bool) -> io::Result<Ruleset> {
    let refused = |refused: Refused| {
        let told = refused.to_string();
        io::Error::new(refused.error.kind(), told)
    };
    let mut rules = Rules::default();
    let asked = objects(nft, &mut rules, with_ours).map_err(refused)?;
    let mut room = ALL_SETS_BYTES;
    for (family, set, table) in asked.into_iter().take(SETS) {
        // One that went away meanwhile is not known, which is what it is.
        if let Ok(elements) = elements(nft, (family, &table, &set), &mut room) {
            rules.sets.insert((family, table, set), elements);
        }
    }
    let unread = legacy::read(&mut rules).err();
    let devices = nix::net::if_::if_nameindex()?;
    let devices = devices
        .iter()
        .map(|device| (device.name().to_string_lossy().into_owned(), device.index()))
        .collect();
    Ok(Ruleset {
        rules,
        devices,
        unread,
    })
}

/// Chains and rules; told is which sets they ask.
fn objects(
    nft: &Nft,
    rules: &mut Rules,
    with_ours: bool,
) -> Result<BTreeSet<(u8, String, String)>, Refused> {
    let is_asked_for = |key: &Key| {
        ROUTED.contains(&key.0)
            && (with_ours || key.1 != TABLE_NAME)
            && !key.1.starts_with(TRACE_TABLE)
    };
    let chains = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
    let each = |chains: &mut Chains, raw: Raw| {
        chains.extend(decode::chain(&raw).filter(|(key, _)| is_asked_for(key)));
    };
    rules.chains = nft.dump_raw(NetfilterProtoFamily::Unspec, &chains, each)?;
    let all = NfTablesMessage::GetRule(RuleMessage { attributes: vec![] });
    let each = |found: &mut Vec<(Key, Rule)>, raw: Raw| {
        found.extend(decode::rule(&raw).filter(|(key, _)| is_asked_for(key)));
    };
    let mut asked = BTreeSet::new();
    for (key, rule) in nft.dump_raw(NetfilterProtoFamily::Unspec, &all, each)? {
        let sets = decode::asked(&key, &rule).into_iter();
        let sets: Vec<_> = sets
            .map(|(family, set, table)| (family, set.to_owned(), table))
            .collect();
        if let Some(chain) = rules.chains.get_mut(&key) {
            chain.rules.push(rule);
            asked.extend(sets);
        }
    }
    Ok(asked)
}

/// What is told of one set, as far as it is read.
#[derive(Default)]
struct Told {
    raws: Vec<Raw>,
    bytes: usize,
    is_cut: bool,
}

/// `room` is in bytes; what is taken of it is gone. A host may have lists of a million addresses.
fn elements(
    nft: &Nft,
    (family, table, set): (u8, &str, &str),
    room: &mut usize,
) -> Result<Set, Refused> {
    let request = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
        ],
    });
    let family = NetfilterProtoFamily::from(family);
    let limit = (*room).min(SET_BYTES);
    let told: Told = nft.dump_raw(family, &request, |told: &mut Told, raw| {
        told.take(raw, limit)
    })?;
    *room = room.saturating_sub(told.bytes);
    let mut found = decode::set(&told.raws);
    found.is_cut |= told.is_cut;
    Ok(found)
}

impl Told {
    /// Those of a cut list are not kept: the kernel tells them all the same.
    fn take(&mut self, raw: Raw, limit: usize) {
        let bytes = self.bytes + raw.attributes.len();
        self.is_cut |= bytes > limit;
        if !self.is_cut {
            self.bytes = bytes;
            self.raws.push(raw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_too_long_is_kept_as_far_as_there_is_room() {
        let mut told = Told::default();
        for _ in 0..1000 {
            let attributes = vec![0; 100];
            let raw = Raw {
                kind: 0,
                family: 1,
                attributes,
            };
            told.take(raw, 1050);
        }
        assert_eq!((told.raws.len(), told.bytes, told.is_cut), (10, 1000, true));
    }
}
