//! Routes with our protocol number, in every table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ip_network::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Refused, refused, unless};
use crate::settings::PROTOCOL;
use crate::wanted::{Family, Place, Way, route_line};

/// All that carry our protocol number; `names` are of interfaces by their index.
pub(crate) async fn list(
    handle: &Handle,
    names: &BTreeMap<u32, String>,
) -> Result<BTreeMap<Place, Way>, Refused> {
    let mut all = BTreeMap::new();
    for family in Family::BOTH {
        // The kernel picks by protocol, in all tables: asking for one that does not exist is an error.
        let mut filter = empty(family);
        filter.header.table = 0;
        filter.header.kind = RouteType::Unspec;
        let mut routes = std::pin::pin!(handle.route().get(filter).execute());
        while let Some(message) = routes.try_next().await.map_err(refused("list routes"))? {
            if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
                continue;
            }
            if let Some((place, way)) = read(&message, names) {
                let way = if all.contains_key(&place) {
                    Way::Strange
                } else {
                    way
                };
                all.insert(place, way);
            }
        }
    }
    Ok(all)
}

pub(crate) async fn add(
    handle: &Handle,
    place: &Place,
    way: &Way,
    index: u32,
) -> Result<(), Refused> {
    let what = || format!("route add {}", route_line(place, way));
    let request = handle.route().add(build(place, way, index));
    request.execute().await.map_err(refused(what()))
}

pub(crate) async fn replace(
    handle: &Handle,
    place: &Place,
    way: &Way,
    index: u32,
) -> Result<(), Refused> {
    let what = || format!("route replace {}", route_line(place, way));
    let request = handle.route().add(build(place, way, index)).replace();
    request.execute().await.map_err(refused(what()))
}

pub(crate) async fn remove(handle: &Handle, place: &Place) -> Result<(), Refused> {
    let mut message = empty(place.family());
    put_place(&mut message, place);
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::NoWhere;
    let what = format!("route del {} table {}", place.prefix, place.table);
    let done = handle.route().del(message).execute().await;
    unless(&[libc::ESRCH], done.map_err(refused(what)))
}

fn empty(family: Family) -> RouteMessage {
    let protocol = RouteProtocol::Other(PROTOCOL);
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .protocol(protocol)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .protocol(protocol)
            .build(),
    }
}

fn put_place(message: &mut RouteMessage, place: &Place) {
    message.header.destination_prefix_length = place.prefix.netmask();
    // The header has room for the small ones only; the attribute goes before it.
    message.header.table = 0;
    message.attributes.push(RouteAttribute::Table(place.table));
    let address = address(place.prefix.network_address());
    message
        .attributes
        .push(RouteAttribute::Destination(address));
    if place.metric != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(place.metric));
    }
}

fn build(place: &Place, way: &Way, index: u32) -> RouteMessage {
    let mut message = empty(place.family());
    put_place(&mut message, place);
    match way {
        Way::Device { source, mtu, .. } => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(index));
            if let Some(source) = source {
                let source = RouteAttribute::PrefSource(address(*source));
                message.attributes.push(source);
            }
            if let Some(mtu) = mtu {
                let metrics = vec![RouteMetric::Mtu(u32::from(*mtu))];
                message.attributes.push(RouteAttribute::Metrics(metrics));
            }
        }
        Way::Unreachable | Way::Strange => message.header.kind = RouteType::Unreachable,
    }
    message
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn index(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn read(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<(Place, Way)> {
    let unspecified: IpAddr =
        if message.header.address_family == netlink_packet_route::AddressFamily::Inet {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
    let (mut table, mut destination) = (u32::from(message.header.table), unspecified);
    let (mut metric, mut source, mut mtu, mut strange) = (0, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(number) = metric {
                        mtu = u16::try_from(*number).ok();
                    } else {
                        strange = true;
                    }
                }
            }
            RouteAttribute::MultiPath(_) | RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => {
                strange = true;
            }
            _ => {}
        }
    }
    let prefix = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    let place = Place {
        table,
        prefix,
        metric,
    };
    let way = match (message.header.kind, index(message)) {
        _ if strange => Way::Strange,
        (RouteType::Unreachable, _) => Way::Unreachable,
        (RouteType::Unicast, Some(index)) => Way::Device {
            // An index that nobody has any more is a name nobody wants.
            device: names.get(&index).cloned().unwrap_or_default(),
            source,
            mtu,
        },
        _ => Way::Strange,
    };
    Some((place, way))
}

/// What foreign routes in `table` lead to, for those that overlap `prefixes`.
pub(crate) async fn foreign(
    handle: &Handle,
    family: Family,
    table: u32,
    prefixes: &BTreeSet<IpNetwork>,
) -> Result<Vec<IpNetwork>, Refused> {
    let mut filter = empty(family);
    filter.header.table = 0;
    filter.header.kind = RouteType::Unspec;
    filter.header.protocol = RouteProtocol::Unspec;
    filter.attributes.push(RouteAttribute::Table(table));
    let mut routes = std::pin::pin!(handle.route().get(filter).execute());
    let mut all = vec![];
    loop {
        let message = match routes.try_next().await.map_err(refused("list routes")) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(all),
            Err(refused) if refused.is(libc::ENOENT) => return Ok(all),
            Err(refused) => return Err(refused),
        };
        let ours = message.header.protocol == RouteProtocol::Other(PROTOCOL);
        let read = read(&message, &BTreeMap::new());
        if let Some((place, _)) = read
            && !ours
            && prefixes
                .iter()
                .any(|prefix| crate::plan::overlap(*prefix, place.prefix))
        {
            all.push(place.prefix);
        }
    }
}
