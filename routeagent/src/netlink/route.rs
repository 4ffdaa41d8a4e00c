//! Routes with our protocol number, in every table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ip_network::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::request::{Message, Requests, address, attributes, byte, number, short};
use super::{Refused, unless};
use crate::diff::Change;
use crate::settings::PROTOCOL;
use crate::wanted::{Family, Hop, Place, To, Way, route_line};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const RTNH_F_ONLINK: u8 = 4;
/// Family, lengths, table, protocol, scope, type, flags.
const HEADER: usize = 12;
/// Length, flags, weight, index: before the attributes of each of many hops.
const HOP_HEADER: usize = 8;

/// Indexes of interfaces.
pub(crate) type Indexes = BTreeMap<String, u32>;

/// All that carry our protocol number; `names` are of interfaces by their index.
pub(crate) fn list(
    raw: &Requests,
    names: &BTreeMap<u32, String>,
) -> Result<BTreeMap<Place, Way>, Refused> {
    let mut all = BTreeMap::new();
    for family in Family::BOTH {
        // The kernel picks by protocol, in all tables: asking for one that does not exist is an error.
        let message = Message::new(RTM_GETROUTE, &header(family, 0, PROTOCOL));
        let each = |found: &mut BTreeMap<Place, Way>, kind, body: &[u8]| {
            if kind == RTM_NEWROUTE
                && byte(body, 5) == PROTOCOL
                && let Some((place, way)) = read(body, names)
            {
                let is_double = found.contains_key(&place);
                found.insert(place, if is_double { Way::Strange } else { way });
            }
        };
        let listed = raw.dump("list routes", message, each);
        all.extend(unless(&[libc::EOPNOTSUPP, libc::EAFNOSUPPORT], listed)?);
    }
    Ok(all)
}

/// How many of the first changes are about routes; these are made, and told is which were refused.
pub(crate) fn apply(raw: &Requests, changes: &[Change], of: &Indexes) -> (usize, Vec<Refused>) {
    let about = changes.iter().map_while(|change| request(change, of));
    let mut count = 0;
    let counted = about.inspect(|_| count += 1);
    let failed = |what: String, error| Refused { what, error };
    let refused = match raw.change_all(counted) {
        Ok(refused) => refused,
        Err(error) => return (count, vec![failed("change of routes".to_owned(), error)]),
    };
    let refused = refused.into_iter().filter_map(|(at, error)| {
        let change = changes.get(at)?;
        let is_gone =
            matches!(change, Change::RemoveRoute(..)) && error.raw_os_error() == Some(libc::ESRCH);
        (!is_gone).then(|| failed(change.to_string(), error))
    });
    (count, refused.collect())
}

fn request(change: &Change, of: &Indexes) -> Option<(Message, u16)> {
    match change {
        Change::AddRoute(place, way) => Some((build(place, way, of), NLM_F_CREATE | NLM_F_EXCL)),
        Change::ReplaceRoute(place, way) => {
            Some((build(place, way, of), NLM_F_CREATE | NLM_F_REPLACE))
        }
        Change::RemoveRoute(place, _) => Some((gone(place), 0)),
        Change::Guard(_)
        | Change::Elements { .. }
        | Change::RemoveVxlan
        | Change::SetForwarding(_)
        | Change::RemoveForwarding(_)
        | Change::SetNeighbour(_)
        | Change::RemoveNeighbour(_)
        | Change::AddNexthop(..)
        | Change::ReplaceNexthop(..)
        | Change::RemoveNexthop(..)
        | Change::AddRule(_)
        | Change::RemoveRule(_) => None,
    }
}

pub(crate) fn replace(
    raw: &Requests,
    place: &Place,
    way: &Way,
    of: &Indexes,
) -> Result<(), Refused> {
    let what = || format!("route replace {}", route_line(place, way));
    raw.change(what, build(place, way, of), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(crate) fn remove(raw: &Requests, place: &Place) -> Result<(), Refused> {
    let what = || format!("route del {} table {}", place.prefix, place.table);
    unless(&[libc::ESRCH], raw.change(what, gone(place), 0))
}

fn gone(place: &Place) -> Message {
    let mut header = header(place.family(), place.prefix.netmask(), PROTOCOL);
    header[6] = SCOPE_NOWHERE;
    put_place(Message::new(RTM_DELROUTE, &header), place)
}

fn header(family: Family, prefix_len: u8, protocol: u8) -> [u8; HEADER] {
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let mut header = [0; HEADER];
    header[0] = u8::try_from(family).unwrap_or_default();
    header[1] = prefix_len;
    header[5] = protocol;
    header
}

/// The header has room for the small tables only; the attribute goes before it.
fn put_place(message: Message, place: &Place) -> Message {
    let message = message
        .number(RTA_TABLE, place.table)
        .address(RTA_DST, place.prefix.network_address());
    if place.metric == 0 {
        message
    } else {
        message.number(RTA_PRIORITY, place.metric)
    }
}

fn build(place: &Place, way: &Way, of: &Indexes) -> Message {
    let index = |device: &String| of.get(device).copied().unwrap_or_default();
    let mut header = header(place.family(), place.prefix.netmask(), PROTOCOL);
    (header[6], header[7]) = (SCOPE_UNIVERSE, RTN_UNICAST);
    let (to, source, mtu) = match way {
        Way::Leads { to, source, mtu } => (to, source, mtu),
        Way::Unreachable | Way::Strange => {
            header[7] = RTN_UNREACHABLE;
            return put_place(Message::new(RTM_NEWROUTE, &header), place);
        }
    };
    if matches!(to, To::Device(_)) {
        header[6] = SCOPE_LINK;
    }
    let mut message = match to {
        To::Hops(hops) if hops.len() == 1 && hops.iter().all(|hop| hop.onlink) => {
            header[8] = RTNH_F_ONLINK;
            put_place(Message::new(RTM_NEWROUTE, &header), place)
        }
        To::Device(_) | To::Hops(_) | To::Group(_) => {
            put_place(Message::new(RTM_NEWROUTE, &header), place)
        }
    };
    message = match to {
        To::Device(device) => message.number(RTA_OIF, index(device)),
        To::Group(id) => message.number(RTA_NH_ID, *id),
        To::Hops(hops) if hops.len() == 1 => hops.iter().fold(message, |message, hop| {
            via(message, hop, place.family()).number(RTA_OIF, index(&hop.device))
        }),
        To::Hops(hops) => message.nest(RTA_MULTIPATH, |message| {
            hops.iter().fold(message, |message, hop| {
                let flags = if hop.onlink { RTNH_F_ONLINK } else { 0 };
                message.hop(flags, index(&hop.device), |message| {
                    via(message, hop, place.family())
                })
            })
        }),
    };
    if let Some(source) = source {
        message = message.address(RTA_PREFSRC, *source);
    }
    match mtu {
        Some(mtu) => message.nest(RTA_METRICS, |metrics| {
            metrics.number(RTAX_MTU, u32::from(*mtu))
        }),
        None => message,
    }
}

/// The one attribute has no room for a family of its own.
fn via(message: Message, hop: &Hop, family: Family) -> Message {
    match hop.via {
        IpAddr::V6(v6) if family == Family::V4 => {
            let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
            bytes.extend(v6.octets());
            message.bytes(RTA_VIA, &bytes)
        }
        address @ (IpAddr::V4(_) | IpAddr::V6(_)) => message.address(RTA_GATEWAY, address),
    }
}

#[derive(Default)]
struct Read {
    table: u32,
    destination: Option<IpAddr>,
    metric: u32,
    source: Option<IpAddr>,
    mtu: Option<u16>,
    oif: Option<u32>,
    via: Option<IpAddr>,
    hops: Option<BTreeSet<Hop>>,
    group: Option<u32>,
    is_strange: bool,
}

fn read(body: &[u8], names: &BTreeMap<u32, String>) -> Option<(Place, Way)> {
    let mut read = Read {
        table: u32::from(byte(body, 4)),
        ..Read::default()
    };
    for (attribute, value) in attributes(body.get(HEADER..)?) {
        read.take(attribute, value, names)?;
    }
    let unspecified = if i32::from(byte(body, 0)) == libc::AF_INET {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let destination = read.destination.unwrap_or(unspecified);
    let place = Place {
        table: read.table,
        prefix: IpNetwork::new(destination, byte(body, 1)).ok()?,
        metric: read.metric,
    };
    Some((place, read.way(byte(body, 7), byte(body, 8), names)))
}

impl Read {
    fn take(&mut self, attribute: u16, value: &[u8], names: &BTreeMap<u32, String>) -> Option<()> {
        match attribute {
            RTA_TABLE => self.table = number(value, 0)?,
            RTA_DST => self.destination = Some(address(value)?),
            RTA_PRIORITY => self.metric = number(value, 0)?,
            RTA_PREFSRC => self.source = address(value),
            RTA_OIF => self.oif = number(value, 0),
            RTA_GATEWAY => self.via = address(value),
            RTA_VIA => self.via = address(value.get(2..)?),
            RTA_NH_ID => self.group = number(value, 0),
            RTA_MULTIPATH => self.hops = Some(hops(value, names)),
            RTA_METRICS => {
                for (metric, value) in attributes(value) {
                    if metric == RTAX_MTU {
                        self.mtu = u16::try_from(number(value, 0)?).ok();
                    } else {
                        self.is_strange = true;
                    }
                }
            }
            _ => {}
        }
        Some(())
    }

    fn way(self, kind: u8, flags: u8, names: &BTreeMap<u32, String>) -> Way {
        // An index that nobody has any more is a name nobody wants.
        let name = |index: u32| names.get(&index).cloned().unwrap_or_default();
        let to = match (self.group, self.hops, self.via, self.oif) {
            _ if self.is_strange => return Way::Strange,
            _ if kind == RTN_UNREACHABLE => return Way::Unreachable,
            _ if kind != RTN_UNICAST => return Way::Strange,
            (Some(group), ..) => To::Group(group),
            (None, Some(hops), ..) => To::Hops(hops),
            (None, None, Some(via), Some(index)) => To::Hops(BTreeSet::from([Hop {
                via,
                device: name(index),
                onlink: flags & RTNH_F_ONLINK != 0,
            }])),
            (None, None, None, Some(index)) => To::Device(name(index)),
            (None, None, _, None) => return Way::Strange,
        };
        Way::Leads {
            to,
            source: self.source,
            mtu: self.mtu,
        }
    }
}

fn hops(mut bytes: &[u8], names: &BTreeMap<u32, String>) -> BTreeSet<Hop> {
    let mut all = BTreeSet::new();
    while let Some(len) = short(bytes, 0).map(usize::from)
        && let Some(one) = bytes.get(..len).filter(|one| one.len() >= HOP_HEADER)
    {
        let via = attributes(&one[HOP_HEADER..]).find_map(|(attribute, value)| match attribute {
            RTA_GATEWAY => address(value),
            RTA_VIA => address(value.get(2..)?),
            _ => None,
        });
        all.insert(Hop {
            via: via.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            device: number(one, 4)
                .and_then(|index| names.get(&index).cloned())
                .unwrap_or_default(),
            onlink: byte(one, 2) & RTNH_F_ONLINK != 0,
        });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// The first foreign route in `table` that is as asked for.
pub(crate) fn foreign(
    raw: &Requests,
    family: Family,
    table: u32,
    is: impl Fn(&IpNetwork) -> bool,
) -> Result<Option<IpNetwork>, Refused> {
    let message = Message::new(RTM_GETROUTE, &header(family, 0, 0)).number(RTA_TABLE, table);
    let names = BTreeMap::new();
    let each = |found: &mut Option<IpNetwork>, kind, body: &[u8]| {
        if kind == RTM_NEWROUTE
            && byte(body, 5) != PROTOCOL
            && let Some((place, _)) = read(body, &names)
            && found.is_none_or(|found| place.prefix < found)
            && is(&place.prefix)
        {
            *found = Some(place.prefix);
        }
    };
    let listed = raw.dump("list routes", message, each);
    // A table that nobody has used yet.
    unless(
        &[libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT],
        listed,
    )
}
