//! Other programs' chains that drop what is forwarded, and the one kind of rule that opens them.

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::nft::{ForwardChain, Nft, comment, read_hook, user_data};
use super::{Refused, expression};
use crate::guard::{Hook, Rule, Term};
use crate::settings::TABLE_NAME;

/// Marks our rule in a chain that is not ours.
const TAG: &str = "causeway open-forward";
const DROP: u32 = 0;

impl Nft {
    /// Chains that drop what no rule of theirs accepts.
    pub(crate) fn forward_chains(&self) -> Result<Vec<ForwardChain>, Refused> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
        let mut all = vec![];
        for (family, answer) in self.dump(NetfilterProtoFamily::Unspec, request)? {
            if let NfTablesMessage::NewChain(chain) = answer {
                all.extend(closed(family, &chain.attributes));
            }
        }
        Ok(all)
    }

    /// Handles of our rules in `chain`.
    pub(crate) fn openings(&self, chain: &ForwardChain) -> Result<Vec<u64>, Refused> {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(chain.table.clone()),
                RuleAttribute::Chain(chain.chain.clone()),
            ],
        });
        Ok(self
            .dump(chain.family, request)?
            .into_iter()
            .filter_map(|(_, answer)| {
                if let NfTablesMessage::NewRule(rule) = answer {
                    tagged(&rule.attributes).map(|(_, handle)| handle)
                } else {
                    None
                }
            })
            .collect())
    }

    /// Every rule with our tag, wherever.
    pub(crate) fn all_openings(&self) -> Result<Vec<(ForwardChain, u64)>, Refused> {
        let request = NfTablesMessage::GetRule(RuleMessage { attributes: vec![] });
        let mut all = vec![];
        for (family, answer) in self.dump(NetfilterProtoFamily::Unspec, request)? {
            if let NfTablesMessage::NewRule(rule) = answer
                && let Some(((table, chain), handle)) = tagged(&rule.attributes)
            {
                let chain = ForwardChain {
                    family,
                    table,
                    chain,
                };
                all.push((chain, handle));
            }
        }
        Ok(all)
    }

    /// Accepts, before all else in `chain`, what comes from the tunnel and what goes there.
    pub(crate) fn open(&self, chain: &ForwardChain, tun: &str) -> Result<(), Refused> {
        let device = tun.to_owned();
        let ways = [
            Term::Input {
                is: true,
                device: device.clone(),
            },
            Term::Output { is: true, device },
        ];
        let batch = ways.map(|way| {
            let rule = Rule(vec![way, Term::Accept]);
            let attributes = vec![
                RuleAttribute::Table(chain.table.clone()),
                RuleAttribute::Chain(chain.chain.clone()),
                RuleAttribute::Expressions(expression::rule(&rule)),
                RuleAttribute::UserData(user_data(TAG)),
            ];
            let message = NfTablesMessage::NewRule(RuleMessage { attributes });
            (chain.family, NLM_F_CREATE, message)
        });
        self.commit(&format!("nft insert rule {chain}"), batch.into())
    }

    pub(crate) fn close(&self, chain: &ForwardChain, handle: u64) -> Result<(), Refused> {
        let attributes = vec![
            RuleAttribute::Table(chain.table.clone()),
            RuleAttribute::Chain(chain.chain.clone()),
            RuleAttribute::Handle(handle),
        ];
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        self.commit(
            &format!("nft delete rule {chain}"),
            vec![(chain.family, 0, message)],
        )
    }
}

impl std::fmt::Display for ForwardChain {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match u8::from(self.family) {
            1 => "inet",
            2 => "ip",
            10 => "ip6",
            _ => "other",
        };
        write!(out, "{family} {} {}", self.table, self.chain)
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn closed(family: NetfilterProtoFamily, attributes: &[ChainAttribute]) -> Option<ForwardChain> {
    let routed = [
        NetfilterProtoFamily::Inet,
        NetfilterProtoFamily::IPv4,
        NetfilterProtoFamily::IPv6,
    ];
    let (mut table, mut chain, mut hook, mut drops) = (None, None, None, false);
    for attribute in attributes {
        match attribute {
            ChainAttribute::Table(name) => table = Some(name.clone()),
            ChainAttribute::Name(name) => chain = Some(name.clone()),
            ChainAttribute::Hook(parts) => hook = Some(read_hook(parts).0),
            ChainAttribute::Policy(policy) => drops = *policy == DROP,
            _ => {}
        }
    }
    let found = ForwardChain {
        family,
        table: table?,
        chain: chain?,
    };
    (routed.contains(&family)
        && drops
        && hook == Some(Hook::Forward as u32)
        && found.table != TABLE_NAME)
        .then_some(found)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn tagged(attributes: &[RuleAttribute]) -> Option<((String, String), u64)> {
    let (mut table, mut chain, mut handle, mut ours) = (None, None, None, false);
    for attribute in attributes {
        match attribute {
            RuleAttribute::Table(name) => table = Some(name.clone()),
            RuleAttribute::Chain(name) => chain = Some(name.clone()),
            RuleAttribute::Handle(number) => handle = Some(*number),
            RuleAttribute::UserData(data) => ours = comment(data).as_deref() == Some(TAG),
            _ => {}
        }
    }
    ours.then_some(((table?, chain?), handle?))
}
