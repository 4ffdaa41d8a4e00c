//! What is asked of the kernel in one namespace: links, addresses, routes.

use std::net::IpAddr;
use std::os::fd::RawFd;

use anyhow::Context as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

/// Speaks with the kernel about the namespace in which it was made.
pub(super) struct Wires(Handle);

/// Name, number and namespace of an interface.
pub(super) type Port<'a> = (&'a str, u32, RawFd);

impl Wires {
    /// In the context of a runtime, on a thread that is in the namespace.
    pub(super) fn new() -> anyhow::Result<Wires> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .context("cannot speak with the kernel about its network")?;
        tokio::spawn(connection);
        Ok(Wires(handle))
    }

    pub(super) async fn pair(&self, [left, right]: [Port<'_>; 2]) -> anyhow::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(right.0)
            .index(right.1)
            .setns_by_fd(right.2)
            .build();
        let link = LinkVeth::new(left.0, right.0)
            .index(left.1)
            .setns_by_fd(left.2)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.add(link).await
    }

    pub(super) async fn bridge(&self, name: &str, index: u32) -> anyhow::Result<()> {
        self.add(LinkBridge::new(name).index(index).build()).await
    }

    async fn add(&self, link: LinkMessage) -> anyhow::Result<()> {
        Ok(self.0.link().add(link).execute().await?)
    }

    pub(super) async fn up(&self, index: u32) -> anyhow::Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        Ok(self.0.link().set(link).execute().await?)
    }

    /// Makes it a port of `bridge`.
    pub(super) async fn plug(&self, index: u32, bridge: u32) -> anyhow::Result<()> {
        let link = LinkUnspec::new_with_index(index).controller(bridge).build();
        Ok(self.0.link().set(link).execute().await?)
    }

    pub(super) async fn address(&self, index: u32, address: IpAddr, len: u8) -> anyhow::Result<()> {
        let mut request = self.0.address().add(index, address, len);
        if address.is_ipv6() {
            // Usable at once.
            let message = request.message_mut();
            message.header.flags = AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Ok(request.execute().await?)
    }

    pub(super) async fn route(&self, to: (IpAddr, u8), via: IpAddr) -> anyhow::Result<()> {
        Ok(self.0.route().add(route(to, via)?).execute().await?)
    }

    pub(super) async fn unroute(&self, to: (IpAddr, u8), via: IpAddr) -> anyhow::Result<()> {
        Ok(self.0.route().del(route(to, via)?).execute().await?)
    }
}

fn route((address, len): (IpAddr, u8), via: IpAddr) -> anyhow::Result<RouteMessage> {
    let route = RouteMessageBuilder::<IpAddr>::new();
    Ok(route
        .destination_prefix(address, len)?
        .gateway(via)?
        .build())
}
