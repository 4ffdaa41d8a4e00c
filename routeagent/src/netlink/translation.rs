//! A router's translation of sources, for a site that the demo puts behind a NAT.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, ExpressionAttribute, Hook, HookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};

use super::expression;
use super::nft::Nft;
use crate::guard::{Rule, Term};

const TABLE: &str = "translation";
const INPUT: u32 = 1;
const POSTROUTING: u32 = 4;
const SOURCES: i32 = 100;
const ACCEPT: u32 = 1;

/// What leaves the calling thread's network namespace by `device` gets the source that this machine
/// has there, and only answers come in.
pub fn translate_behind(device: &str) -> std::io::Result<()> {
    let device = || device.to_owned();
    let mut leaving = expression::rule(&Rule(vec![Term::Output {
        is: true,
        device: device(),
    }]));
    leaving.push(expression::masquerade());
    // A datagram that comes before the site's own would else take the port which that one needs.
    let unasked = expression::rule(&Rule(vec![
        Term::Input {
            is: true,
            device: device(),
        },
        Term::Drop,
    ]));
    let batch = vec![
        (
            NfTablesMessage::NewTable(TableMessage {
                attributes: vec![TableAttribute::Name(TABLE.to_owned())],
            }),
            NLM_F_CREATE,
        ),
        (
            chain("leaving", "nat", (POSTROUTING, SOURCES)),
            NLM_F_CREATE,
        ),
        (rule("leaving", leaving), NLM_F_CREATE | NLM_F_APPEND),
        (chain("unasked", "filter", (INPUT, 0)), NLM_F_CREATE),
        (rule("unasked", unasked), NLM_F_CREATE | NLM_F_APPEND),
    ];
    let batch = batch
        .into_iter()
        .map(|(message, flags)| (NetfilterProtoFamily::IPv4, flags, message));
    Nft::new()?
        .commit("nft make table ip translation", batch.collect())
        .map_err(|refused| refused.error)
}

fn chain(name: &str, kind: &str, (hook, priority): (u32, i32)) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Other(hook)),
                Hook::Priority(priority.cast_unsigned()),
            ]),
            ChainAttribute::Policy(ACCEPT),
            ChainAttribute::Type(kind.to_owned()),
        ],
    })
}

fn rule(chain: &str, expressions: Vec<ListAttribute<ExpressionAttribute>>) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ],
    })
}
