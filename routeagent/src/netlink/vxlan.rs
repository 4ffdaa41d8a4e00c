//! The interface between agents and gateways, and who is behind it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::request::{Message, Requests, address, attributes, byte, number, short, text};
use super::{Refused, unless};
use crate::link_layer::Mac;
use crate::settings::{ALIAS, PROTOCOL, VXLAN_DEVICE, VXLAN_VNI};
use crate::wanted::{Forwarding, Neighbour, Vxlan};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT_RANGE: u16 = 10;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const IFF_UP: u32 = 1;
/// Family, type, index, flags, change.
const LINK_HEADER: usize = 16;
/// Family, index, state, flags, type.
const NEIGHBOUR_HEADER: usize = 12;
const V6_OFF: &str = "/proc/sys/net/ipv6/conf/causeway-vx/disable_ipv6";

/// The interface with that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Nobodys,
    Ours { index: u32, vxlan: Option<Vxlan> },
    Foreign,
}

pub(crate) fn find(raw: &Requests) -> Result<Named, Refused> {
    let message = Message::new(RTM_GETLINK, &[0; LINK_HEADER]);
    let named = raw.dump(
        "link list",
        message,
        |named: &mut Option<Named>, _, body| {
            if let Some(found) = read_link(body) {
                *named = Some(found);
            }
        },
    )?;
    Ok(named.unwrap_or(Named::Nobodys))
}

/// One without an alias that is just as ours are was left by a start that was killed meanwhile.
fn read_link(body: &[u8]) -> Option<Named> {
    let (mut name, mut alias, mut mac, mut mtu) = (String::new(), String::new(), None, 0);
    let mut info = None;
    for (attribute, value) in attributes(body.get(LINK_HEADER..)?) {
        match attribute {
            IFLA_IFNAME => name = text(value),
            IFLA_IFALIAS => alias = text(value),
            IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
            IFLA_MTU => mtu = number(value, 0)?,
            IFLA_LINKINFO => info = read_info(value),
            _ => {}
        }
    }
    if name != VXLAN_DEVICE {
        return None;
    }
    if alias != ALIAS && info.is_none() {
        return Some(Named::Foreign);
    }
    let vxlan = info.zip(mac).and_then(|((port, local), mac)| {
        Some(Vxlan {
            port,
            local: local?,
            mac,
            mtu,
        })
    });
    let index = number(body, 4)?;
    Some(Named::Ours { index, vxlan })
}

/// Port and local address of a VXLAN interface that learns nothing and has our identifier.
fn read_info(info: &[u8]) -> Option<(u16, Option<IpAddr>)> {
    let find = |kind| attributes(info).find(|(found, _)| *found == kind);
    if text(find(IFLA_INFO_KIND)?.1) != "vxlan" {
        return None;
    }
    let (mut vni, mut port, mut local, mut learns) = (0, 0, None, true);
    for (attribute, value) in attributes(find(IFLA_INFO_DATA)?.1) {
        match attribute {
            VXLAN_ID => vni = number(value, 0)?,
            VXLAN_LOCAL | VXLAN_LOCAL6 => local = address(value),
            VXLAN_LEARNING => learns = byte(value, 0) != 0,
            VXLAN_PORT => port = short(value, 0)?.swap_bytes(),
            _ => {}
        }
    }
    (vni == VXLAN_VNI && !learns).then_some((port, local))
}

/// Down at first: addresses of its own are switched off before it is up.
pub(crate) fn make(raw: &Requests, vxlan: &Vxlan) -> Result<(), Refused> {
    let what = || format!("link add {vxlan}");
    let local = match vxlan.local {
        IpAddr::V4(_) => VXLAN_LOCAL,
        IpAddr::V6(_) => VXLAN_LOCAL6,
    };
    let message = Message::new(RTM_NEWLINK, &[0; LINK_HEADER])
        .text(IFLA_IFNAME, VXLAN_DEVICE)
        .number(IFLA_MTU, vxlan.mtu)
        .bytes(IFLA_ADDRESS, &vxlan.mac.0)
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan")
                .nest(IFLA_INFO_DATA, |data| {
                    data.number(VXLAN_ID, VXLAN_VNI)
                        .address(local, vxlan.local)
                        .byte(VXLAN_LEARNING, 0)
                        .port(VXLAN_PORT, vxlan.port)
                        .bytes(VXLAN_PORT_RANGE, &own_port(vxlan.port))
                })
        });
    raw.change(what, message, NLM_F_CREATE | NLM_F_EXCL)
}

/// What is sent comes from the port to which the others send: then a host firewall, or a cloud's
/// security group, that lets answers in takes theirs for such. A port for each flow would spread
/// them over queues and paths, and our guard would take it; but behind such a firewall nothing
/// would come any more, and each flow would cost an entry of connection tracking. The traffic of a
/// gateway is spread by the addresses of its agents. The end of the range is not of it.
fn own_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    let [end_high, end_low] = port.saturating_add(1).to_be_bytes();
    [high, low, end_high, end_low]
}

/// What may be put right without making the interface anew.
pub(crate) fn settle(raw: &Requests, index: u32, vxlan: &Vxlan) -> Result<(), Refused> {
    let what = || format!("link set {VXLAN_DEVICE} up mtu {}", vxlan.mtu);
    if std::fs::read_to_string(V6_OFF).is_ok_and(|off| off.trim() == "1") {
        let _told_by_what_fails_then = std::fs::write(V6_OFF, "0");
    }
    let plain = Message::new(RTM_NEWLINK, &link_header(index, 0)).text(IFLA_IFALIAS, ALIAS);
    raw.change(what, plain, 0)?;
    let no_address = Message::new(RTM_NEWLINK, &link_header(index, 0)).nest(IFLA_AF_SPEC, |spec| {
        spec.nest(libc::AF_INET6 as u16, |v6| {
            v6.byte(ADDR_GEN_MODE, ADDR_GEN_NONE)
        })
    });
    // A kernel without IPv6 makes no addresses.
    let _without_v6 = raw.change(what, no_address, 0);
    let up = Message::new(RTM_NEWLINK, &link_header(index, IFF_UP)).number(IFLA_MTU, vxlan.mtu);
    raw.change(what, up, 0)
}

pub(crate) fn remove(raw: &Requests, index: u32) -> Result<(), Refused> {
    let message = Message::new(RTM_DELLINK, &link_header(index, 0));
    let done = raw.change(|| format!("link del {VXLAN_DEVICE}"), message, 0);
    unless(&[libc::ENODEV], done)
}

fn link_header(index: u32, up: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(up.to_ne_bytes());
    bytes.extend(up.to_ne_bytes());
    bytes
}

pub(crate) fn forwarding(raw: &Requests, index: u32) -> Result<BTreeSet<Forwarding>, Refused> {
    // Without the header of the kind this was for before, a filter is not understood.
    let message = Message::new(RTM_GETNEIGH, &header(libc::AF_BRIDGE, 0, 0, 0));
    let each = |all: &mut BTreeSet<Forwarding>, _, body: &[u8]| {
        if number(body, 4) == Some(index) {
            let entry = |(to, mac)| Forwarding { mac, to };
            all.extend(read_neighbour(body).map(entry));
        }
    };
    raw.dump("fdb list", message, each)
}

pub(crate) fn neighbours(raw: &Requests, index: u32) -> Result<BTreeSet<Neighbour>, Refused> {
    let message =
        Message::new(RTM_GETNEIGH, &header(libc::AF_UNSPEC, 0, 0, 0)).number(NDA_IFINDEX, index);
    let each = |all: &mut BTreeSet<Neighbour>, _, body: &[u8]| {
        let is_ours = number(body, 4) == Some(index) && short(body, 8) == Some(NUD_PERMANENT);
        if is_ours {
            let neighbour = |(address, mac)| Neighbour { address, mac };
            all.extend(read_neighbour(body).map(neighbour));
        }
    };
    raw.dump("neigh list", message, each)
}

fn read_neighbour(body: &[u8]) -> Option<(IpAddr, Mac)> {
    let (mut to, mut mac) = (None, None);
    for (attribute, value) in attributes(body.get(NEIGHBOUR_HEADER..)?) {
        match attribute {
            NDA_DST => to = address(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    to.zip(mac)
}

pub(crate) fn set_forwarding(
    raw: &Requests,
    index: u32,
    entry: &Forwarding,
) -> Result<(), Refused> {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let what = || format!("fdb replace {entry}");
    raw.change(what, fdb(RTM_NEWNEIGH, index, entry), flags)
}

pub(crate) fn remove_forwarding(
    raw: &Requests,
    index: u32,
    entry: &Forwarding,
) -> Result<(), Refused> {
    let done = raw.change(
        || format!("fdb del {entry}"),
        fdb(RTM_DELNEIGH, index, entry),
        0,
    );
    unless(&[libc::ENOENT], done)
}

fn fdb(kind: u16, index: u32, entry: &Forwarding) -> Message {
    let state = NUD_NOARP | NUD_PERMANENT;
    let header = header(libc::AF_BRIDGE, index, state, NTF_SELF);
    Message::new(kind, &header)
        .bytes(NDA_LLADDR, &entry.mac.0)
        .address(NDA_DST, entry.to)
}

pub(crate) fn set_neighbour(raw: &Requests, index: u32, node: &Neighbour) -> Result<(), Refused> {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let message = neighbour(RTM_NEWNEIGH, index, node).byte(NDA_PROTOCOL, PROTOCOL);
    raw.change(|| format!("neigh replace {node}"), message, flags)
}

pub(crate) fn remove_neighbour(
    raw: &Requests,
    index: u32,
    node: &Neighbour,
) -> Result<(), Refused> {
    let message = neighbour(RTM_DELNEIGH, index, node);
    let done = raw.change(|| format!("neigh del {node}"), message, 0);
    unless(&[libc::ENOENT], done)
}

fn neighbour(kind: u16, index: u32, node: &Neighbour) -> Message {
    let family = match node.address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    Message::new(kind, &header(family, index, NUD_PERMANENT, 0))
        .address(NDA_DST, node.address)
        .bytes(NDA_LLADDR, &node.mac.0)
}

fn header(family: i32, index: u32, state: u16, flags: u8) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(state.to_ne_bytes());
    bytes.extend([flags, 0]);
    bytes
}
