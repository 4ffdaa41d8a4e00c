//! What a plan is made from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ip_network::IpNetwork;
use proto::name::Name;

/// What a gateway knows that its own kernel has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The tunnel's interface.
    pub tun: String,
    /// This node's addresses in its site's network, at most one a family: sources of what it sends
    /// into the mesh.
    pub lan: Vec<IpAddr>,
    /// Where outer datagrams arrive.
    pub listen_port: u16,
    /// All prefixes of other sites that are in force, whether anyone reaches them now or not.
    pub prefixes: BTreeMap<IpNetwork, Remote>,
    /// Prefixes of this site.
    pub local: Vec<IpNetwork>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub site: Name,
    /// What fits through every gateway that may carry it; `None` while none does.
    pub mtu: Option<u16>,
}
