//! What an operator may choose about the kernel state, and what is fixed.

/// The protocol number that marks routes and rules as ours; free in `rt_protos`.
pub(crate) const PROTOCOL: u8 = 199;
/// Of the nft table, family `inet`.
pub(crate) const TABLE_NAME: &str = "causeway";
/// The beginning of the names of tables that only mark packets for a moment.
pub(crate) const TRACE_TABLE: &str = "causeway-trace";
/// The alias of interfaces that are ours to remove.
pub(crate) const ALIAS: &str = "causeway";
/// The network identifier of that interface, alone on it.
pub(crate) const VXLAN_VNI: u32 = 7803;
/// Numbers of next hops have these bits set, those of groups one more. The low 15 bits are a hash.
pub(crate) const NEXTHOP_BASE: u32 = 0x4357_0000;
pub(crate) const GROUP_BASE: u32 = 0x4357_8000;
/// The interface between agents and gateways where the site's network refuses addresses of other sites.
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
    /// What of the kernel to use where it has it.
    pub use_kernel: Kernel,
}

/// What not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Since 5.3.
    pub nexthops: bool,
    /// Groups of them that leave the flows of others alone; since 5.13.
    pub resilient: bool,
    pub v6: bool,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel {
            nexthops: true,
            resilient: true,
            v6: true,
        }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            table: 7100,
            rule_priority: 100,
            fwmark: (0x1000, 0x1000),
            open_forward: false,
            set_sysctls: true,
            use_kernel: Kernel::default(),
        }
    }
}

impl Kernel {
    pub(crate) fn and(self, other: Kernel) -> Kernel {
        Kernel {
            nexthops: self.nexthops && other.nexthops,
            resilient: self.resilient && other.resilient,
            v6: self.v6 && other.v6,
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
