//! What a site is made of: gateways, translation, and the machines that run an agent.

/// What stands between a site and the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Gateways have addresses of their own.
    None,
    /// One port outside for one inside, whatever the destination; lets answers in.
    Cone,
    /// Another port outside for every destination; lets answers in.
    Symmetric,
    /// Only TCP gets out.
    TcpOnly,
}

/// How the workers of a site and its gateways are joined together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lan {
    /// One segment: a gateway may be the next hop.
    One,
    /// Workers on another segment, behind a router that knows nothing of the mesh.
    Routed,
    /// One segment that passes nobody's packets but its own, as a cloud checks source and
    /// destination.
    Checked,
}

/// A site whose workers know nothing of the mesh but a route.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub gateways: usize,
    pub nat: Nat,
}

/// A site with as many workers that run an agent; none: one that has the route.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub plan: Plan,
    pub agents: usize,
    pub lan: Lan,
    /// Its prefix of IPv6 is all that is granted; its machines have IPv4 as well, and their way out.
    pub only_v6: bool,
}

impl Plan {
    /// Two gateways with addresses of their own on the internet.
    pub const OPEN: Plan = Plan {
        gateways: 2,
        nat: Nat::None,
    };
    /// One.
    pub const ONE: Plan = Plan {
        gateways: 1,
        nat: Nat::None,
    };

    /// The same with agents.
    pub const fn agents(self, agents: usize) -> Layout {
        Layout {
            plan: self,
            agents,
            lan: Lan::One,
            only_v6: false,
        }
    }
}

impl Layout {
    pub const fn over(self, lan: Lan) -> Layout {
        Layout { lan, ..self }
    }

    pub const fn only_v6(self) -> Layout {
        Layout {
            only_v6: true,
            ..self
        }
    }

    /// The third octet of the workers' addresses.
    pub(super) fn segment(self) -> u8 {
        u8::from(self.lan == Lan::Routed)
    }
}

impl From<Plan> for Layout {
    fn from(plan: Plan) -> Layout {
        plan.agents(0)
    }
}
