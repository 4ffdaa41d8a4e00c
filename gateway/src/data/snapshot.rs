//! What the data threads need to know of the configuration: immutable, replaced as a whole.

use std::net::IpAddr;

use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;

use crate::drops::DropReason;

/// Which owner of a prefix; an index into [`Snapshot::owners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(pub u32);

/// Where a link lives: its thread, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPlace {
    pub thread: u32,
    pub slot: u32,
}

/// Whom a prefix leads to: in `causeway wg` a peer with its one link, or why it can have none.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub link: Result<LinkPlace, DropReason>,
}

/// The configuration as the packet path sees it.
pub struct Snapshot {
    prefixes: IpNetworkTable<OwnerId>,
    pub owners: Vec<Owner>,
    /// The interface's MTU: padding does not go above it.
    pub mtu: usize,
    /// Our port, where nothing but us keeps our datagrams out of the tunnel: a firewall mark would.
    pub own_port: Option<u16>,
}

impl Snapshot {
    pub fn new(
        prefixes: impl Iterator<Item = (IpNetwork, OwnerId)>,
        owners: Vec<Owner>,
        mtu: usize,
        own_port: Option<u16>,
    ) -> Snapshot {
        let mut table = IpNetworkTable::new();
        for (prefix, owner) in prefixes {
            table.insert(prefix, owner);
        }
        Snapshot {
            prefixes: table,
            owners,
            mtu,
            own_port,
        }
    }

    /// The owner of the longest prefix that holds `address`, over the whole device.
    pub fn owner(&self, address: IpAddr) -> Option<OwnerId> {
        let found = match address {
            IpAddr::V4(v4) => self.prefixes.longest_match_ipv4(v4).map(|(_, owner)| owner),
            IpAddr::V6(v6) => self.prefixes.longest_match_ipv6(v6).map(|(_, owner)| owner),
        };
        found.copied()
    }

    /// The link that carries packets for `address`.
    pub fn link_for(&self, address: IpAddr) -> Result<LinkPlace, DropReason> {
        let owner = self.owner(address).ok_or(DropReason::NoPeer)?;
        self.owners[owner.0 as usize].link
    }
}
