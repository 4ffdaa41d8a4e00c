//! Reads all of other programs' rules.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleMessage, SetElementList, SetElementMessage,
};

use super::rules::{Key, Rules};
use super::{Ruleset, decode, legacy};
use crate::netlink::Refused;
use crate::netlink::nft::Nft;
use crate::settings::{TABLE_NAME, TRACE_TABLE};

/// What filters packets that are routed: inet, ip and ip6.
const ROUTED: [u8; 3] = [1, 2, 10];
/// Sets that are read; rules that ask others may hold or not.
const SETS: usize = 500;

pub(super) fn ruleset(nft: &Nft, with_ours: bool) -> io::Result<Ruleset> {
    let refused = |refused: Refused| {
        let told = refused.to_string();
        io::Error::new(refused.error.kind(), told)
    };
    let mut rules = Rules::default();
    let asked = objects(nft, &mut rules, with_ours).map_err(refused)?;
    for (family, set, table) in asked.into_iter().take(SETS) {
        // One that went away meanwhile is not known, which is what it is.
        if let Ok(elements) = elements(nft, family, &table, &set) {
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
    for raw in nft.dump_raw(NetfilterProtoFamily::Unspec, &chains)? {
        rules
            .chains
            .extend(decode::chain(&raw).filter(|(key, _)| is_asked_for(key)));
    }
    let all = NfTablesMessage::GetRule(RuleMessage { attributes: vec![] });
    let mut asked = BTreeSet::new();
    for raw in nft.dump_raw(NetfilterProtoFamily::Unspec, &all)? {
        let Some((key, rule)) = decode::rule(&raw) else {
            continue;
        };
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

fn elements(nft: &Nft, family: u8, table: &str, set: &str) -> Result<super::rules::Set, Refused> {
    let request = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
        ],
    });
    let raws = nft.dump_raw(NetfilterProtoFamily::from(family), &request)?;
    Ok(decode::set(&raws))
}
