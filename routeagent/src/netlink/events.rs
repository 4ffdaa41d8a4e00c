//! What the kernel tells unasked: that something of ours, or something we depend on, changed.
//!
//! Of each message only the first bytes are read: others may change hundreds of thousands of routes.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt as _, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};

use super::nexthop::{RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
use super::request::{byte, messages, number};
use super::route::{RTM_DELROUTE, RTM_NEWROUTE};
use super::vxlan::{RTM_DELNEIGH, RTM_NEWNEIGH};
use crate::settings::{PROTOCOL, TABLE_NAME, TRACE_TABLE};

const NFNLGRP_NFTABLES: u32 = 7;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const RTNLGRP_NEXTHOP: u32 = 32;
/// Of buckets, which change with every flow that comes after a pause.
const RTM_NEWNEXTHOPBUCKET: u16 = 116;
const RTM_DELNEXTHOPBUCKET: u16 = 117;
/// Of nftables.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// Bytes; a burst of a few thousand changes fits.
const BUFFER: usize = 1 << 22;
/// Longer than any message about a route.
const MESSAGE: usize = 1 << 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// Nothing that we need to know.
    Nothing,
    /// Somebody else's: look some time.
    Foreign,
    /// Our table of nft.
    Guard,
    /// Forwarding or the check of reverse paths, of the host or of an interface.
    Setting,
    /// Ours may have changed, or the kernel told more than was read: look at once.
    Look,
}

pub(crate) struct Events {
    routes: Told,
    /// Without nf_tables in the kernel there is nothing to hear of it.
    nft: Option<Told>,
    settings: Option<Told>,
}

struct Told {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    pub(crate) fn new() -> io::Result<Events> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV6_RULE,
        ];
        let mut routes = listen(NETLINK_ROUTE, &groups)?;
        // A kernel without next hop objects tells nothing of them.
        let _older = routes.socket_mut().add_membership(RTNLGRP_NEXTHOP);
        Ok(Events {
            routes: Told::by(routes),
            nft: listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
                .ok()
                .map(Told::by),
            settings: listen(NETLINK_ROUTE, &[RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF])
                .ok()
                .map(Told::by),
        })
    }

    /// `vxlan` is the index of our interface: there are neighbours at others, too.
    pub(crate) async fn next(&mut self, vxlan: u32) -> io::Result<Event> {
        tokio::select! {
            told = self.routes.next() => {
                Ok(told?.map_or(Event::Look, |bytes| about_routes(bytes, vxlan)))
            }
            told = next(&mut self.nft) => Ok(told?.map_or(Event::Guard, about_nft)),
            told = next(&mut self.settings) => told.map(|_| Event::Setting),
        }
    }
}

impl Told {
    fn by(socket: TokioSocket) -> Told {
        let buffer = vec![];
        Told { socket, buffer }
    }

    /// The next datagram; nothing in place of those that were lost.
    async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.clear();
        self.buffer.reserve(MESSAGE);
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => Ok(Some(&self.buffer)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn next(told: &mut Option<Told>) -> io::Result<Option<&[u8]>> {
    match told {
        Some(told) => told.next().await,
        None => std::future::pending().await,
    }
}

pub(super) fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = <TokioSocket as AsyncSocket>::new(protocol)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    for group in groups {
        inner.add_membership(*group)?;
    }
    // Beyond what the host allows everyone, where we may.
    if setsockopt(inner, sockopt::RcvBufForce, &BUFFER).is_err() {
        inner.set_rx_buf_sz(BUFFER as i32)?;
    }
    Ok(socket)
}

fn about_routes(bytes: &[u8], vxlan: u32) -> Event {
    let events = messages(bytes).map(|(kind, body)| match kind {
        RTM_NEWROUTE | RTM_DELROUTE if byte(body, 5) != PROTOCOL => Event::Foreign,
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP if byte(body, 2) != PROTOCOL => Event::Foreign,
        RTM_NEWNEIGH | RTM_DELNEIGH if number(body, 4) != Some(vxlan) => Event::Nothing,
        RTM_NEWNEXTHOPBUCKET | RTM_DELNEXTHOPBUCKET => Event::Nothing,
        _ => Event::Look,
    });
    events.max().unwrap_or(Event::Look)
}

/// Every message about our table has its name in it; so has that about one which only marks packets
/// for a moment.
fn about_nft(bytes: &[u8]) -> Event {
    let has = |body: &[u8], name: &str| {
        let name = name.as_bytes();
        body.windows(name.len()).any(|window| window == name)
    };
    let events = messages(bytes).map(|(kind, body)| {
        // The number of the ruleset comes after whatever changed it.
        if kind == NEW_GENERATION || has(body, TRACE_TABLE) {
            Event::Nothing
        } else if has(body, TABLE_NAME) {
            Event::Guard
        } else {
            Event::Foreign
        }
    });
    events.max().unwrap_or(Event::Guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_only_marks_packets_is_not_taken_for_our_guard() {
        let about = |tables: &[&str]| {
            let mut bytes = vec![];
            for table in tables {
                let mut body = table.as_bytes().to_vec();
                body.resize(body.len().next_multiple_of(4), 0);
                bytes.extend((16 + body.len() as u32).to_ne_bytes());
                bytes.extend([0; 12]);
                bytes.extend(body);
            }
            about_nft(&bytes)
        };
        assert_eq!(about(&["causeway"]), Event::Guard);
        assert_eq!(about(&["filter"]), Event::Foreign);
        assert_eq!(about(&["causeway-trace-17"]), Event::Nothing);
        assert_eq!(about(&["causeway-trace-17", "filter"]), Event::Foreign);
        assert_eq!(about(&["causeway-trace-17", "causeway"]), Event::Guard);
    }
}
