//! What an operator may choose about the kernel state, and what is fixed.

/// The protocol number that marks routes and rules as ours; free in `rt_protos`.
pub(crate) const PROTOCOL: u8 = 199;
/// Of the nft table, family `inet`.
pub(crate) const TABLE_NAME: &str = "causeway";
/// The alias of interfaces that are ours to remove.
pub(crate) const ALIAS: &str = "causeway";
/// Between agents and gateways where the site's network refuses addresses of other sites.
pub const VXLAN_DEVICE: &str = "causeway-vx";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Our routing table; the next one holds the same routes with an MTU for this node's own sockets.
    pub table: u32,
    /// Of the rule that leads to our table; the one before it leads this node's own sockets.
    pub rule_priority: u32,
    /// Value and mask of what the tunnel's own datagrams carry.
    pub fwmark: (u32, u32),
    /// Whether to accept forwarded mesh packets in other programs' chains that drop by policy.
    pub open_forward: bool,
    /// Whether to set sysctls that forwarding needs, or only to say so.
    pub set_sysctls: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            table: 7100,
            rule_priority: 100,
            fwmark: (0x1000, 0x1000),
            open_forward: false,
            set_sysctls: true,
        }
    }
}

impl Settings {
    /// Of routes that tell this node's own sockets what fits.
    pub fn own_table(&self) -> u32 {
        self.table.saturating_add(1)
    }

    /// Of a gateway's routes to agents that use VXLAN.
    pub fn return_table(&self) -> u32 {
        self.table.saturating_add(2)
    }

    /// Of the rule that leads what came out of the tunnel to those agents.
    pub fn return_rule_priority(&self) -> u32 {
        self.rule_priority.saturating_sub(2)
    }

    /// Of the rule that leads this node's own sockets.
    pub fn own_rule_priority(&self) -> u32 {
        self.rule_priority.saturating_sub(1)
    }
}
