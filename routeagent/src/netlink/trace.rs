//! A short-lived table of ours that marks packets, and what the kernel tells of marked ones.

use std::io;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::expression::Expression;
use super::nft::Nft;
use super::raw::{Messages, Raw};
use super::{Refused, expression};
use crate::guard::Hook;
use crate::inspect::Flow;
use crate::settings::TRACE_TABLE;

/// The kernel's group for them (NFNLGRP_NFTRACE).
const GROUP: u32 = 9;
/// Messages that are taken at once: whoever sends what is marked all the time is not waited for.
const MOST: usize = 1024;
/// Of nf_tables' messages, in the upper half its subsystem (NFT_MSG_TRACE).
const TRACED: u16 = (10 << 8) | 17;

/// Marks packets as long as it lives: the table goes with the socket, also when the process is
/// killed.
pub(crate) struct Marks {
    nft: Nft,
    events: Socket,
    table: String,
}

impl Marks {
    pub(crate) fn new(flows: &[Flow]) -> Result<Marks, Refused> {
        let failed = |error| Refused {
            what: "nft trace".to_owned(),
            error,
        };
        let events = listen().map_err(failed)?;
        let nft = Nft::new().map_err(failed)?;
        // Two at once do not meet.
        let table = format!("{TRACE_TABLE}-{}", std::process::id());
        nft.commit(&format!("nft add table inet {table}"), batch(&table, flows))?;
        Ok(Marks { nft, events, table })
    }

    /// What has been told since, or the first of it.
    pub(crate) fn told(&self) -> io::Result<Vec<Raw>> {
        let mut all = vec![];
        while all.len() < MOST {
            match self.events.recv_from_full() {
                Ok((bytes, _)) => {
                    let raws = Messages(&bytes).filter_map(|message| message.raw());
                    all.extend(raws.filter(|raw| raw.kind == TRACED));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                // More was told than there is room for; what is there is still true.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        let attributes = vec![TableAttribute::Name(self.table.clone())];
        let message = NfTablesMessage::DeleteTable(TableMessage { attributes });
        // It goes with the socket if not now.
        let _ = self.nft.commit(
            "nft delete table",
            vec![(NetfilterProtoFamily::Inet, 0, message)],
        );
    }
}

fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.set_rx_buf_sz(4_i32 << 20)?;
    socket.add_membership(GROUP)?;
    Ok(socket)
}

type Step = (NetfilterProtoFamily, u16, NfTablesMessage);

/// Chains before and behind those of all others, so that it is seen where a packet came through.
fn batch(table: &str, flows: &[Flow]) -> Vec<Step> {
    let inet = NetfilterProtoFamily::Inet;
    let attributes = vec![
        TableAttribute::Name(table.to_owned()),
        TableAttribute::Flags(TableFlags::Owner),
    ];
    let new = NfTablesMessage::NewTable(TableMessage { attributes });
    let mut batch = vec![(inet, NLM_F_CREATE, new)];
    for hook in Hook::ALL {
        for (end, priority) in [("first", i32::MIN), ("last", i32::MAX)] {
            let name = format!("{hook}-{end}");
            batch.push((inet, NLM_F_CREATE, chain(table, &name, hook, priority)));
            let begins = matches!(hook, Hook::Prerouting | Hook::Output) && end == "first";
            let leaves = hook == Hook::Postrouting && end == "last";
            let answers = hook == Hook::Output && end == "last";
            for flow in flows {
                if begins {
                    batch.push(rule(table, &name, expression::traced(flow)));
                } else if leaves && flow.stays {
                    batch.push(rule(table, &name, expression::dropped(flow)));
                } else if answers && flow.stays && flow.source.is_some() {
                    batch.push(rule(table, &name, expression::errors_dropped(flow)));
                }
            }
        }
    }
    batch
}

fn rule(table: &str, chain: &str, expressions: Vec<Expression>) -> Step {
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions),
    ];
    let rule = NfTablesMessage::NewRule(RuleMessage { attributes });
    let flags = NLM_F_CREATE | NLM_F_APPEND;
    (NetfilterProtoFamily::Inet, flags, rule)
}

fn chain(table: &str, name: &str, hook: Hook, priority: i32) -> NfTablesMessage {
    let attributes = vec![
        ChainAttribute::Table(table.to_owned()),
        ChainAttribute::Name(name.to_owned()),
        ChainAttribute::Hook(vec![
            HookAttribute::Number(HookNumber::Other(hook as u32)),
            HookAttribute::Priority(priority.cast_unsigned()),
        ]),
        ChainAttribute::Policy(1),
        ChainAttribute::Type("filter".to_owned()),
    ];
    NfTablesMessage::NewChain(ChainMessage { attributes })
}
