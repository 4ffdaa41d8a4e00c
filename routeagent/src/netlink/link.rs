//! Interfaces and addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ip_network::IpNetwork;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, LinkUnspec};

use super::{Refused, refused, unless};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    pub(crate) alias: Option<String>,
    pub(crate) mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
    pub(crate) index: u32,
}

impl Address {
    /// The network it makes the kernel find at its interface.
    pub(crate) fn network(&self) -> Option<IpNetwork> {
        IpNetwork::new_truncate(self.address, self.prefix_len).ok()
    }
}

pub(crate) async fn list(handle: &Handle) -> Result<BTreeMap<String, Link>, Refused> {
    let mut all = BTreeMap::new();
    let mut links = std::pin::pin!(handle.link().get().execute());
    while let Some(message) = links.try_next().await.map_err(refused("list interfaces"))? {
        let (mut name, mut alias, mut mtu) = (None, None, 0);
        for attribute in message.attributes {
            if let LinkAttribute::IfName(text) = attribute {
                name = Some(text);
            } else if let LinkAttribute::IfAlias(text) = attribute {
                alias = Some(text);
            } else if let LinkAttribute::Mtu(bytes) = attribute {
                mtu = bytes;
            }
        }
        let link = Link {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            alias,
            mtu,
        };
        all.extend(name.map(|name| (name, link)));
    }
    Ok(all)
}

pub(crate) async fn addresses(handle: &Handle) -> Result<Vec<Address>, Refused> {
    let mut all = vec![];
    let mut messages = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = messages
        .try_next()
        .await
        .map_err(refused("list addresses"))?
    {
        let (mut local, mut remote) = (None, None);
        for attribute in &message.attributes {
            if let AddressAttribute::Local(address) = attribute {
                local = Some(*address);
            } else if let AddressAttribute::Address(address) = attribute {
                remote = Some(*address);
            }
        }
        all.extend(local.or(remote).map(|address| Address {
            address,
            prefix_len: message.header.prefix_len,
            index: message.header.index,
        }));
    }
    Ok(all)
}

/// Marks an interface as ours.
pub(crate) async fn set_alias(handle: &Handle, link: &Link, alias: &str) -> Result<(), Refused> {
    let message = LinkUnspec::new_with_index(link.index)
        .append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()))
        .build();
    let done = handle.link().set(message).execute().await;
    done.map_err(refused(format!("set alias {alias}")))
}

pub(crate) async fn remove(handle: &Handle, name: &str, link: &Link) -> Result<(), Refused> {
    let done = handle.link().del(link.index).execute().await;
    let done = done.map_err(refused(format!("link del {name}")));
    unless(&[libc::ENODEV], done)
}
