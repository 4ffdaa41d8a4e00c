//! What the kernel tells unasked: that something of ours, or something we depend on, changed.

use std::io;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;

use crate::settings::{PROTOCOL, TABLE_NAME};

const NFNLGRP_NFTABLES: u32 = 7;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
/// Bytes; a burst of a few thousand changes fits.
const BUFFER: i32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Ours may have changed, or the kernel told more than was read: look at once.
    Look,
    /// Forwarding or the check of reverse paths, of the host or of an interface.
    Setting,
    /// Somebody else's: look some time.
    Foreign,
}

pub(crate) struct Events {
    routes: BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    nft: Option<TokioSocket>,
    settings: Option<TokioSocket>,
}

impl Events {
    /// Without nf_tables in the kernel there is nothing to hear of it.
    pub(crate) fn new() -> io::Result<Events> {
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])?;
        let socket = connection.socket_mut().socket_mut();
        socket.set_rx_buf_sz(BUFFER)?;
        tokio::spawn(connection);
        Ok(Events {
            routes: messages.boxed(),
            nft: listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).ok(),
            settings: listen(NETLINK_ROUTE, &[RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF]).ok(),
        })
    }

    pub(crate) async fn next(&mut self) -> io::Result<Event> {
        tokio::select! {
            told = self.routes.next() => match told {
                Some((message, _)) => Ok(about_routes(&message)),
                None => Err(io::Error::other("the stream of netlink events ended")),
            },
            told = told(&mut self.nft) => told.map(|bytes| about_nft(&bytes)),
            told = told(&mut self.settings) => told.map(|_| Event::Setting),
        }
    }
}

/// The next message; the name of our table in place of messages that were lost.
async fn told(socket: &mut Option<TokioSocket>) -> io::Result<Vec<u8>> {
    let told = match socket {
        Some(socket) => socket.recv_from_full().await,
        None => std::future::pending().await,
    };
    match told {
        Ok((bytes, _)) => Ok(bytes),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(TABLE_NAME.into()),
        Err(error) => Err(error),
    }
}

pub(super) fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = <TokioSocket as AsyncSocket>::new(protocol)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    for group in groups {
        inner.add_membership(*group)?;
    }
    inner.set_rx_buf_sz(BUFFER)?;
    Ok(socket)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn about_routes(message: &NetlinkMessage<RouteNetlinkMessage>) -> Event {
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        return Event::Look;
    };
    match inner {
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            if is_ours(route) {
                Event::Look
            } else {
                Event::Foreign
            }
        }
        _ => Event::Look,
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

/// Every message about our table has its name in it.
fn about_nft(bytes: &[u8]) -> Event {
    let name = TABLE_NAME.as_bytes();
    if bytes.windows(name.len()).any(|window| window == name) {
        Event::Look
    } else {
        Event::Foreign
    }
}
