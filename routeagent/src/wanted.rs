//! The whole kernel state of a node as one value that prints like `ip route`, `ip rule` and
//! `nft list ruleset`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::guard::Table;
use crate::link_layer::Mac;
use crate::settings::{PROTOCOL, VXLAN_DEVICE, VXLAN_VNI};

pub const MAIN_TABLE: u32 = 254;
/// The worst there is: any other route for the same prefix goes before an unreachable one.
pub const LAST_METRIC: u32 = u32::MAX;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: BTreeMap<Place, Way>,
    pub rules: BTreeSet<Rule>,
    /// By their numbers.
    pub nexthops: BTreeMap<u32, Nexthop>,
    pub vxlan: Option<Vxlan>,
    pub forwarding: BTreeSet<Forwarding>,
    pub neighbours: BTreeSet<Neighbour>,
    pub guard: Table,
    pub sysctls: BTreeSet<Sysctl>,
}

/// Two routes differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub table: u32,
    pub prefix: IpNetwork,
    pub metric: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Leads {
        to: To,
        source: Option<IpAddr>,
        mtu: Option<u16>,
    },
    Unreachable,
    /// Found only: it carries our protocol number, and no version of ours would write it so.
    Strange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// Whatever is there.
    Device(String),
    /// Each flow to one of them.
    Hops(BTreeSet<Hop>),
    /// The group with this number.
    Group(u32),
}

/// A neighbour at an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    pub via: IpAddr,
    pub device: String,
    /// In no network of the interface.
    pub onlink: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nexthop {
    Hop(Hop),
    Group(Group),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub members: BTreeSet<u32>,
    /// The flows of the others stay where they are when one comes or goes.
    pub resilient: bool,
}

/// The interface between agents and gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub port: u16,
    /// Where outer datagrams come from.
    pub local: IpAddr,
    pub mac: Mac,
    pub mtu: u32,
}

/// Which node has a link-layer address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forwarding {
    pub mac: Mac,
    pub to: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub address: IpAddr,
    pub mac: Mac,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// Leads packets to `table`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub family: Family,
    pub priority: u32,
    /// Only packets of this node's own sockets.
    pub own: bool,
    /// Only packets that came in by this interface.
    pub from: Option<String>,
    /// Those that do not match.
    pub not: bool,
    /// Value and mask; all marks if both are 0.
    pub fwmark: (u32, u32),
    pub table: u32,
}

/// A kernel setting: what is there is right if it is one of `fine`, else `set` is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// With slashes, below /proc/sys.
    pub key: String,
    pub fine: Vec<&'static str>,
    pub set: &'static str,
    /// It works without, only not as well.
    pub optional: bool,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

impl Place {
    pub fn family(&self) -> Family {
        Family::of(self.prefix.network_address())
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vxlan) = &self.vxlan {
            writeln!(out, "{vxlan}")?;
        }
        for entry in &self.forwarding {
            writeln!(out, "{entry}")?;
        }
        for neighbour in &self.neighbours {
            writeln!(out, "{neighbour}")?;
        }
        for (id, nexthop) in &self.nexthops {
            writeln!(out, "{}", nexthop_line(*id, nexthop))?;
        }
        for (place, way) in &self.routes {
            writeln!(out, "{}", route_line(place, way))?;
        }
        for rule in &self.rules {
            writeln!(out, "{rule}")?;
        }
        for sysctl in &self.sysctls {
            writeln!(out, "{sysctl}")?;
        }
        write!(out, "{}", self.guard)
    }
}

/// As `ip route show table all` shows it.
pub fn route_line(place: &Place, way: &Way) -> String {
    let Place {
        table,
        prefix,
        metric,
    } = place;
    let v4 = place.family() == Family::V4;
    let mut line = match way {
        Way::Leads { to, .. } => format!("{prefix}{to}"),
        Way::Unreachable if v4 => format!("unreachable {prefix}"),
        Way::Unreachable => format!("unreachable {prefix} dev lo"),
        Way::Strange => format!("{prefix} (strange)"),
    };
    if *table != MAIN_TABLE {
        line += &format!(" table {table}");
    }
    line += &format!(" proto {PROTOCOL}");
    if let Way::Leads { to, source, .. } = way {
        if v4 && matches!(to, To::Device(_)) {
            line += " scope link";
        }
        if let Some(source) = source {
            line += &format!(" src {source}");
        }
    }
    if *metric != 0 {
        line += &format!(" metric {metric}");
    }
    if let Way::Leads { mtu: Some(mtu), .. } = way {
        line += &format!(" mtu {mtu}");
    }
    line
}

/// As `ip nexthop` shows it.
pub fn nexthop_line(id: u32, nexthop: &Nexthop) -> String {
    match nexthop {
        Nexthop::Hop(hop) => format!("id {id}{hop} scope link proto {PROTOCOL}"),
        Nexthop::Group(group) => format!("id {id} group {group} proto {PROTOCOL}"),
    }
}

impl fmt::Display for Group {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<String> = self.members.iter().map(u32::to_string).collect();
        out.write_str(&members.join("/"))?;
        if self.resilient {
            out.write_str(" type resilient")?;
        }
        Ok(())
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, " via {} dev {}", self.via, self.device)?;
        if self.onlink {
            out.write_str(" onlink")?;
        }
        Ok(())
    }
}

impl fmt::Display for To {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            To::Device(device) => write!(out, " dev {device}"),
            To::Hops(hops) if hops.len() == 1 => hops.iter().try_for_each(|hop| hop.fmt(out)),
            To::Hops(hops) => hops.iter().try_for_each(|hop| write!(out, " nexthop{hop}")),
            To::Group(id) => write!(out, " nhid {id}"),
        }
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{VXLAN_DEVICE}: mtu {} vxlan id {VXLAN_VNI} local {} dstport {} nolearning address {}",
            self.mtu, self.local, self.port, self.mac
        )
    }
}

/// As `bridge fdb` shows it.
impl fmt::Display for Forwarding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} dev {VXLAN_DEVICE} dst {} self static",
            self.mac, self.to
        )
    }
}

/// As `ip neigh` shows it.
impl fmt::Display for Neighbour {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Neighbour { address, mac } = self;
        write!(out, "{address} dev {VXLAN_DEVICE} lladdr {mac} PERMANENT")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "",
            Family::V6 => "-6 ",
        };
        let not = if self.not { "not " } else { "" };
        let from = match &self.from {
            _ if self.own => " iif lo".to_owned(),
            Some(device) => format!(" iif {device}"),
            None => String::new(),
        };
        let mark = match self.fwmark {
            (0, 0) => String::new(),
            (0, mask) => format!(" fwmark 0/{mask:#x}"),
            (value, mask) => format!(" fwmark {value:#x}/{mask:#x}"),
        };
        write!(
            out,
            "{family}{}: {not}from all{mark}{from} lookup {} proto {PROTOCOL}",
            self.priority, self.table
        )
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} = {}", self.dotted(), self.fine.join(" or "))
    }
}

impl Sysctl {
    /// As the program `sysctl` names it. Interface names with dots need the slashes that it takes too.
    pub fn dotted(&self) -> String {
        if self.key.contains('.') {
            self.key.clone()
        } else {
            self.key.replace('/', ".")
        }
    }
}
