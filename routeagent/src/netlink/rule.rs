//! Policy rules: ours by their protocol number, and foreign ones that come before.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion};

use super::{Refused, refused, unless};
use crate::settings::PROTOCOL;
use crate::wanted::{Family, Rule};

/// Another program's rule that leads to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) family: Family,
    pub(crate) priority: u32,
    pub(crate) table: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) ours: BTreeSet<Rule>,
    /// Ours too, in a shape that this version does not write.
    pub(crate) strange: Vec<RuleMessage>,
    pub(crate) foreign: Vec<Foreign>,
}

pub(crate) async fn list(handle: &Handle) -> Result<Rules, Refused> {
    let mut all = Rules::default();
    for (family, version) in [(Family::V4, IpVersion::V4), (Family::V6, IpVersion::V6)] {
        let mut rules = std::pin::pin!(handle.rule().get(version).execute());
        loop {
            let message = match rules.try_next().await.map_err(refused("list rules")) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                // A kernel without this family.
                Err(refused) if refused.is(libc::EAFNOSUPPORT) => break,
                Err(refused) => return Err(refused),
            };
            let ours = message
                .attributes
                .contains(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
            match read(&message, family) {
                Some(rule) if ours => {
                    all.ours.insert(rule);
                }
                None if ours => all.strange.push(message),
                _ => all.foreign.extend(foreign(&message, family)),
            }
        }
    }
    Ok(all)
}

pub(crate) async fn add(handle: &Handle, rule: &Rule) -> Result<(), Refused> {
    let message = RouteNetlinkMessage::NewRule(build(rule));
    let done = request(handle, message, NLM_F_CREATE | NLM_F_EXCL).await;
    let done = done.map_err(refused(format!("rule add {rule}")));
    unless(&[libc::EEXIST], done)
}

pub(crate) async fn remove(handle: &Handle, rule: &Rule) -> Result<(), Refused> {
    let done = request(handle, RouteNetlinkMessage::DelRule(build(rule)), 0).await;
    let done = done.map_err(refused(format!("rule del {rule}")));
    unless(&[libc::ENOENT], done)
}

pub(crate) async fn remove_strange(handle: &Handle, message: RuleMessage) -> Result<(), Refused> {
    let done = request(handle, RouteNetlinkMessage::DelRule(message), 0).await;
    unless(&[libc::ENOENT], done.map_err(refused("rule del")))
}

async fn request(
    handle: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut handle = handle.clone();
    let mut answers = handle.request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

fn build(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    // Any other action makes the kernel answer every look-up that reaches the rule with an error.
    message.header.action = RuleAction::ToTable;
    if rule.not {
        message.header.flags = RuleFlags::Invert;
    }
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    if let (value, mask @ 1..) = rule.fwmark {
        let marks = [RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)];
        message.attributes.extend(marks);
    }
    let from = if rule.own {
        Some("lo".to_owned())
    } else {
        rule.from.clone()
    };
    let from = from.map(RuleAttribute::Iifname);
    message.attributes.extend(from);
    message
}

/// A rule of a shape that we write.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn read(message: &RuleMessage, family: Family) -> Option<Rule> {
    let header = &message.header;
    if header.action != RuleAction::ToTable || header.src_len != 0 || header.dst_len != 0 {
        return None;
    }
    let mut rule = Rule {
        family,
        priority: 0,
        own: false,
        from: None,
        not: header.flags.contains(RuleFlags::Invert),
        fwmark: (0, 0),
        table: u32::from(header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(value) => rule.fwmark.0 = *value,
            RuleAttribute::FwMask(mask) => rule.fwmark.1 = *mask,
            RuleAttribute::Iifname(name) if name == "lo" => rule.own = true,
            RuleAttribute::Iifname(name) => rule.from = Some(name.clone()),
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => return None,
        }
    }
    Some(rule)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn foreign(message: &RuleMessage, family: Family) -> Option<Foreign> {
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let mut found = Foreign {
        family,
        priority: 0,
        table: u32::from(message.header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => found.table = *table,
            RuleAttribute::Priority(priority) => found.priority = *priority,
            _ => {}
        }
    }
    // The kernel's own, first and always.
    (found.table != 255).then_some(found)
}
