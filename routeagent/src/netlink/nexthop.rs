//! Next hop objects and groups of them, which the libraries do not know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::request::{Message, Requests, address, attributes, byte, number, short};
use super::{Refused, unless};
use crate::settings::{Kernel, PROTOCOL};
use crate::wanted::{Group, Hop, Nexthop, nexthop_line};

pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const RTM_GETNEXTHOPBUCKET: u16 = 118;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_RES_GROUP: u16 = 12;
const BUCKETS: u16 = 1;
const IDLE_TIMER: u16 = 2;
const UNBALANCED_TIMER: u16 = 3;
const RESILIENT: u16 = 1;
/// Family, scope, protocol, reserved, flags.
const HEADER: usize = 8;
/// Of one member: its number and its weight.
const MEMBER: usize = 8;
const RTNH_F_ONLINK: u32 = 4;

/// A hundred flows a gateway spread well over eight gateways.
const BUCKETS_A_GROUP: u16 = 256;
/// In hundredths of a second. So long a flow must be silent to move to a gateway that returns:
/// nothing of it is under way then, and nothing keeps state of it.
const IDLE: u32 = 30_00;

#[derive(Debug, Default)]
pub(crate) struct Nexthops {
    pub(crate) ours: BTreeMap<u32, Nexthop>,
    pub(crate) foreign: BTreeSet<u32>,
}

/// What this kernel knows of them. A request that it does not know is refused as such.
pub(crate) fn knows(raw: &Requests) -> Kernel {
    let known = |kind| {
        let asked = raw.dump(
            "nexthop list",
            Message::new(kind, &[0; HEADER]),
            |(), _, _| {},
        );
        !asked.is_err_and(|refused| refused.is(libc::EOPNOTSUPP))
    };
    Kernel {
        nexthops: known(RTM_GETNEXTHOP),
        resilient: known(RTM_GETNEXTHOPBUCKET),
        v6: std::path::Path::new("/proc/sys/net/ipv6/conf").exists(),
    }
}

pub(crate) fn list(raw: &Requests, names: &BTreeMap<u32, String>) -> Result<Nexthops, Refused> {
    let message = Message::new(RTM_GETNEXTHOP, &[0; HEADER]);
    let each = |all: &mut Nexthops, kind, body: &[u8]| {
        let found = (kind == RTM_NEWNEXTHOP)
            .then(|| read(body, names))
            .flatten();
        match found {
            Some((id, Some(nexthop))) => drop(all.ours.insert(id, nexthop)),
            Some((id, None)) => drop(all.foreign.insert(id)),
            None => {}
        }
    };
    let listed = raw.dump("nexthop list", message, each);
    unless(&[libc::EOPNOTSUPP], listed)
}

/// The number, and what it stands for if it is ours.
fn read(body: &[u8], names: &BTreeMap<u32, String>) -> Option<(u32, Option<Nexthop>)> {
    let (mut id, mut oif, mut via, mut members, mut kind) = (0, 0, None, None, 0);
    for (attribute, value) in attributes(body.get(HEADER..)?) {
        match attribute {
            NHA_ID => id = number(value, 0)?,
            NHA_OIF => oif = number(value, 0)?,
            NHA_GATEWAY => via = address(value),
            NHA_GROUP => {
                let numbers = value.chunks_exact(MEMBER);
                members = Some(numbers.filter_map(|one| number(one, 0)).collect());
            }
            NHA_GROUP_TYPE => kind = short(value, 0)?,
            _ => {}
        }
    }
    if byte(body, 2) != PROTOCOL {
        return Some((id, None));
    }
    let nexthop = match members {
        Some(members) => Nexthop::Group(Group {
            members,
            resilient: kind == RESILIENT,
        }),
        None => Nexthop::Hop(Hop {
            via: via.unwrap_or(IpAddr::from([0; 4])),
            device: names.get(&oif).cloned().unwrap_or_default(),
            onlink: number(body, 4)? & RTNH_F_ONLINK != 0,
        }),
    };
    Some((id, Some(nexthop)))
}

pub(crate) fn add(raw: &Requests, id: u32, nexthop: &Nexthop, oif: u32) -> Result<(), Refused> {
    let what = || format!("nexthop add {}", nexthop_line(id, nexthop));
    raw.change(what, build(id, nexthop, oif), NLM_F_CREATE | NLM_F_EXCL)
}

pub(crate) fn replace(raw: &Requests, id: u32, nexthop: &Nexthop, oif: u32) -> Result<(), Refused> {
    let what = || format!("nexthop replace {}", nexthop_line(id, nexthop));
    raw.change(what, build(id, nexthop, oif), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(crate) fn remove(raw: &Requests, id: u32) -> Result<(), Refused> {
    let message = Message::new(RTM_DELNEXTHOP, &[0; HEADER]).number(NHA_ID, id);
    let done = raw.change(|| format!("nexthop del id {id}"), message, 0);
    unless(&[libc::ENOENT], done)
}

fn build(id: u32, nexthop: &Nexthop, oif: u32) -> Message {
    match nexthop {
        Nexthop::Hop(hop) => {
            let family = if hop.via.is_ipv4() {
                libc::AF_INET
            } else {
                libc::AF_INET6
            };
            let flags = if hop.onlink { RTNH_F_ONLINK } else { 0 };
            Message::new(RTM_NEWNEXTHOP, &header(family, flags))
                .number(NHA_ID, id)
                .address(NHA_GATEWAY, hop.via)
                .number(NHA_OIF, oif)
        }
        Nexthop::Group(group) => {
            let members: Vec<u8> = group.members.iter().flat_map(|id| member(*id)).collect();
            let message = Message::new(RTM_NEWNEXTHOP, &header(libc::AF_UNSPEC, 0))
                .number(NHA_ID, id)
                .bytes(NHA_GROUP, &members);
            if !group.resilient {
                return message;
            }
            message
                .short(NHA_GROUP_TYPE, RESILIENT)
                .nest(NHA_RES_GROUP, |message| {
                    message
                        .short(BUCKETS, BUCKETS_A_GROUP)
                        .number(IDLE_TIMER, IDLE)
                        .number(UNBALANCED_TIMER, 0)
                })
        }
    }
}

fn header(family: i32, flags: u32) -> Vec<u8> {
    let family = u8::try_from(family).unwrap_or_default();
    let mut bytes = vec![family, 0, PROTOCOL, 0];
    bytes.extend(flags.to_ne_bytes());
    bytes
}

/// The weight is one less than it counts.
fn member(id: u32) -> [u8; MEMBER] {
    let mut bytes = [0; MEMBER];
    bytes[..4].copy_from_slice(&id.to_ne_bytes());
    bytes
}
