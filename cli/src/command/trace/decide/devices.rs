//! Which of this machine's interfaces are causeway's, and which is the site's.

use std::net::IpAddr;

use routeagent::VXLAN_DEVICE;

use super::super::told::Told;
use super::Course;

impl Course<'_> {
    pub(super) fn device(&self, index: u32) -> String {
        let interface = self.kernel.interfaces.get(&index);
        interface.map_or_else(|| format!("interface {index}"), |one| one.name.clone())
    }

    pub(super) fn index_of(&self, name: &str) -> Option<u32> {
        let mut all = self.kernel.interfaces.iter();
        all.find(|(_, one)| one.name == name)
            .map(|(index, _)| *index)
    }

    /// The tunnel's interface of a gateway: other programs have tun and tap interfaces too.
    pub(super) fn tunnel(&self) -> Option<u32> {
        match self.told {
            Told::Gateway(status) => self.index_of(&status.tun),
            Told::Agent(_) => None,
        }
    }

    pub(super) fn is_tunnel(&self, name: &str) -> bool {
        matches!(self.told, Told::Gateway(status) if status.tun == name)
    }

    /// By which an agent gets what is of other sites.
    pub(super) fn inward(&self, mode: &str) -> Option<u32> {
        if mode == "vxlan" {
            return self.index_of(VXLAN_DEVICE);
        }
        let mut all = self.kernel.interfaces.keys();
        all.find(|device| self.is_lan(**device)).copied()
    }

    /// Whether packets of the mesh leave by it, and no others should.
    pub(super) fn is_ours(&self, device: u32) -> bool {
        Some(device) == self.tunnel() || self.device(device) == VXLAN_DEVICE
    }

    /// Whether this node's address in its site is on it.
    pub(super) fn is_lan(&self, device: u32) -> bool {
        let Told::Agent(status) = self.told else {
            return false;
        };
        let own = [&status.lan_address, &status.other_lan_address];
        let own: Vec<IpAddr> = own
            .into_iter()
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect();
        let interface = self.kernel.interfaces.get(&device);
        interface.is_some_and(|one| one.addresses.iter().any(|address| own.contains(address)))
    }
}
