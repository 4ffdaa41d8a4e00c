//! The whole kernel state of a node as one value that prints like `ip route`, `ip rule` and
//! `nft list ruleset`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::guard::Table;
use crate::settings::PROTOCOL;

pub const MAIN_TABLE: u32 = 254;
/// The worst there is: any other route for the same prefix goes before an unreachable one.
pub const LAST_METRIC: u32 = u32::MAX;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: BTreeMap<Place, Way>,
    pub rules: BTreeSet<Rule>,
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
    Device {
        device: String,
        source: Option<IpAddr>,
        mtu: Option<u16>,
    },
    Unreachable,
    /// Found only: it carries our protocol number, and no version of ours would write it so.
    Strange,
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
    /// Those that do not match.
    pub not: bool,
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
        Way::Device { device, .. } => format!("{prefix} dev {device}"),
        Way::Unreachable if v4 => format!("unreachable {prefix}"),
        Way::Unreachable => format!("unreachable {prefix} dev lo"),
        Way::Strange => format!("{prefix} (strange)"),
    };
    if *table != MAIN_TABLE {
        line += &format!(" table {table}");
    }
    line += &format!(" proto {PROTOCOL}");
    if let Way::Device { source, .. } = way {
        if v4 {
            line += " scope link";
        }
        if let Some(source) = source {
            line += &format!(" src {source}");
        }
    }
    if *metric != 0 {
        line += &format!(" metric {metric}");
    }
    if let Way::Device { mtu: Some(mtu), .. } = way {
        line += &format!(" mtu {mtu}");
    }
    line
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "",
            Family::V6 => "-6 ",
        };
        let not = if self.not { "not " } else { "" };
        let own = if self.own { " iif lo" } else { "" };
        let (value, mask) = self.fwmark;
        let value = if value == 0 {
            "0".to_owned()
        } else {
            format!("{value:#x}")
        };
        write!(
            out,
            "{family}{}: {not}from all fwmark {value}/{mask:#x}{own} lookup {} proto {PROTOCOL}",
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
