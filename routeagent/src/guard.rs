//! The nft table: what packets of the mesh may do, as values that print like `nft list ruleset`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::facts::Facts;
use crate::plan::{Devices, refusal};
use crate::settings::{Settings, VXLAN_DEVICE};
use crate::wanted::Family;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub sets: BTreeMap<SetName, BTreeSet<Span>>,
    pub chains: Vec<Chain>,
}

/// What is found of our table. Rules are known by the comment we gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundTable {
    pub sets: BTreeMap<SetName, BTreeSet<Span>>,
    pub shape: BTreeMap<String, FoundChain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundChain {
    /// Hook number and priority.
    pub hook: (u32, i32),
    pub comments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetName {
    /// Prefixes of other sites.
    Mesh(Family),
    /// Prefixes of this site.
    Local(Family),
}

/// Addresses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub first: IpAddr,
    pub last: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub kind: &'static str,
    pub hook: Hook,
    pub priority: i32,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    Input {
        is: bool,
        device: String,
    },
    Output {
        is: bool,
        device: String,
    },
    /// The same by index: a comparison of names costs several times as much, for every packet.
    From {
        is: bool,
        index: u32,
    },
    To(u32),
    Source(SetName),
    Destination(SetName),
    /// Whether the source is an address of this node.
    OwnSource,
    /// The way back to the source does not lead out of where the packet came in.
    ComesAstray,
    DestinationIsOwn(bool),
    UdpTo(u16),
    Marked(u32, u32),
    Mark(u32, u32),
    Count,
    Accept,
    Drop,
    Untracked,
    /// Source translation to what the source is already: what other chains say comes too late.
    KeepSource(Family),
}

/// After everything else: a chain of translation may still change where a packet goes.
const GUARD_PRIORITY: i32 = 300;
const RAW: i32 = -300;
const MANGLE: i32 = -150;
/// One before source translation.
pub(crate) const BEFORE_SRCNAT: i32 = 99;

/// The same in every network namespace.
const LOOPBACK: u32 = 1;

fn from(is: bool, index: u32) -> Term {
    Term::From { is, index }
}

pub fn table(facts: &Facts, devices: &Devices, settings: &Settings) -> Table {
    let mesh = facts
        .prefixes
        .keys()
        .filter(|prefix| refusal(facts, **prefix).is_none());
    let mut sets = BTreeMap::new();
    let mesh: Vec<IpNetwork> = mesh.copied().collect();
    for family in Family::BOTH {
        sets.insert(SetName::Mesh(family), spans(&mesh, family));
        sets.insert(SetName::Local(family), spans(&facts.local, family));
    }
    let chains = vec![
        arriving(facts, settings, devices),
        entering(devices),
        sources(facts.tunnel().map_or(VXLAN_DEVICE, |tunnel| &tunnel.tun)),
        leaving(devices, settings),
    ];
    Table { sets, chains }
}

/// One chain for all that arrives, since each chain costs time for every packet.
///
/// What is only passed on may come back through a sibling: no conntrack shall call it invalid.
///
/// The far side takes what comes from this site's prefixes for good, so nobody else may lead it into
/// the tunnel. A site may have more networks than that of its gateways' addresses: where one lies is
/// known by the way back to it. (Older kernels look that up in this hook only.)
///
/// Outer datagrams whose source lies in another site's prefix did not come through the tunnel; with
/// the mark the check of reverse paths knows.
fn arriving(facts: &Facts, settings: &Settings, devices: &Devices) -> Chain {
    let (value, mask) = settings.fwmark;
    let untracked = |from: SetName, to: SetName| {
        [
            Term::Source(from),
            Term::Destination(to),
            Term::DestinationIsOwn(false),
            Term::Untracked,
        ]
    };
    let from_tunnel = Family::BOTH.map(|family| {
        let mut terms = vec![from(true, devices.tun)];
        terms.extend(untracked(SetName::Mesh(family), SetName::Local(family)));
        terms.push(Term::Accept);
        Rule(terms)
    });
    let forged = Family::BOTH.map(|family| {
        let inner = devices.inner.values();
        let mut terms: Vec<Term> = inner.map(|index| from(false, *index)).collect();
        terms.extend([
            Term::Source(SetName::Local(family)),
            Term::Destination(SetName::Mesh(family)),
            Term::ComesAstray,
            Term::Count,
            Term::Drop,
        ]);
        Rule(terms)
    });
    let into_tunnel = Family::BOTH
        .map(|family| Rule(untracked(SetName::Local(family), SetName::Mesh(family)).into()));
    let mut rules = Vec::from(from_tunnel);
    rules.push(Rule(vec![from(true, devices.tun), Term::Accept]));
    rules.extend(facts.tunnel().map(|tunnel| {
        Rule(vec![
            Term::UdpTo(tunnel.listen_port),
            Term::DestinationIsOwn(true),
            Term::Mark(value, mask),
            Term::Accept,
        ])
    }));
    rules.extend(forged);
    rules.extend(into_tunnel);
    Chain {
        name: "arriving",
        kind: "filter",
        hook: Hook::Prerouting,
        priority: RAW,
        rules,
    }
}

/// Sources of other sites come by the tunnel, or by the site's own network from a sibling; from
/// elsewhere they are forged, and are not passed on.
fn entering(devices: &Devices) -> Chain {
    let accepted = |index: &u32| Rule(vec![from(true, *index), Term::Accept]);
    let mut rules = vec![accepted(&devices.tun)];
    rules.extend(devices.inner.values().map(accepted));
    for family in Family::BOTH {
        let mesh = Term::Source(SetName::Mesh(family));
        rules.push(Rule(vec![mesh, Term::Count, Term::Drop]));
    }
    // Where the site's network is not known, nothing can be told apart.
    if devices.inner.is_empty() {
        rules.clear();
    }
    Chain {
        name: "entering",
        kind: "filter",
        hook: Hook::Forward,
        priority: MANGLE,
        rules,
    }
}

/// This node's own connections into the mesh keep their source, whatever other chains masquerade.
fn sources(tun: &str) -> Chain {
    let rules = Family::BOTH.map(|family| {
        Rule(vec![
            Term::Output {
                is: true,
                device: tun.to_owned(),
            },
            Term::OwnSource,
            Term::KeepSource(family),
        ])
    });
    Chain {
        name: "sources",
        kind: "nat",
        hook: Hook::Postrouting,
        priority: BEFORE_SRCNAT,
        rules: rules.into(),
    }
}

/// Mesh destinations leave by the tunnel only. Our mark is the exception: the tunnel's own datagrams
/// may go to addresses inside other sites' prefixes.
fn leaving(devices: &Devices, settings: &Settings) -> Chain {
    let (value, mask) = settings.fwmark;
    let mut rules = vec![
        Rule(vec![Term::To(devices.tun), Term::Accept]),
        // This node talks with itself.
        Rule(vec![Term::To(LOOPBACK), Term::Accept]),
        Rule(vec![Term::Marked(value, mask), Term::Accept]),
    ];
    for family in Family::BOTH {
        let mesh = Term::Destination(SetName::Mesh(family));
        rules.push(Rule(vec![mesh, Term::Count, Term::Drop]));
    }
    Chain {
        name: "leaving",
        kind: "filter",
        hook: Hook::Postrouting,
        priority: GUARD_PRIORITY,
        rules,
    }
}

/// Disjoint and apart, as a set of intervals must be.
fn spans(prefixes: &[IpNetwork], family: Family) -> BTreeSet<Span> {
    let mut all: Vec<Span> = prefixes
        .iter()
        .filter(|prefix| Family::of(prefix.network_address()) == family)
        .map(|prefix| Span::of(*prefix))
        .collect();
    all.sort();
    let mut merged: Vec<Span> = vec![];
    for span in all {
        match merged.last_mut() {
            Some(last) if after(last.last).is_none_or(|after| span.first <= after) => {
                last.last = last.last.max(span.last);
            }
            _ => merged.push(span),
        }
    }
    merged.into_iter().collect()
}

/// The next address, unless there is none.
pub fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|v4| IpAddr::V4(v4.into())),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_add(1)
            .map(|v6| IpAddr::V6(v6.into())),
    }
}

pub fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(1).map(|v4| IpAddr::V4(v4.into())),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_sub(1)
            .map(|v6| IpAddr::V6(v6.into())),
    }
}

impl Span {
    fn of(prefix: IpNetwork) -> Span {
        match prefix {
            IpNetwork::V4(v4) => Span {
                first: v4.network_address().into(),
                last: v4.broadcast_address().into(),
            },
            IpNetwork::V6(v6) => Span {
                first: v6.network_address().into(),
                last: v6.last_address().into(),
            },
        }
    }
}

impl Table {
    /// How the kernel shows the table if it is as it should be.
    pub fn shape(&self) -> BTreeMap<String, FoundChain> {
        let chains = self.chains.iter().map(|chain| {
            let found = FoundChain {
                hook: (chain.hook as u32, chain.priority),
                comments: chain.rules.iter().map(Rule::comment).collect(),
            };
            (chain.name.to_owned(), found)
        });
        chains.collect()
    }
}

impl Rule {
    /// Tells a rule of ours from every other, in a few letters; FNV-1a of what it says.
    pub fn comment(&self) -> String {
        let hash = self
            .to_string()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("causeway {hash:016x}")
    }
}

impl SetName {
    pub const ALL: [SetName; 4] = [
        SetName::Mesh(Family::V4),
        SetName::Mesh(Family::V6),
        SetName::Local(Family::V4),
        SetName::Local(Family::V6),
    ];

    pub fn name(self) -> &'static str {
        match self {
            SetName::Mesh(Family::V4) => "mesh4",
            SetName::Mesh(Family::V6) => "mesh6",
            SetName::Local(Family::V4) => "local4",
            SetName::Local(Family::V6) => "local6",
        }
    }

    pub fn family(self) -> Family {
        match self {
            SetName::Mesh(family) | SetName::Local(family) => family,
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        // As nft: a prefix where it is one.
        let prefix = (0..=bits)
            .filter_map(|length| IpNetwork::new(self.first, length).ok())
            .find(|prefix| Span::of(*prefix) == *self);
        match prefix {
            _ if self.first == self.last => write!(out, "{}", self.first),
            Some(prefix) => write!(out, "{prefix}"),
            None => write!(out, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "table inet {} {{", crate::settings::TABLE_NAME)?;
        for (name, spans) in &self.sets {
            let kind = match name.family() {
                Family::V4 => "ipv4_addr",
                Family::V6 => "ipv6_addr",
            };
            writeln!(out, "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval")?;
            let spans: Vec<String> = spans.iter().map(Span::to_string).collect();
            if !spans.is_empty() {
                writeln!(out, "\t\telements = {{ {} }}", spans.join(", "))?;
            }
            writeln!(out, "\t}}")?;
        }
        for chain in &self.chains {
            let Chain {
                name,
                kind,
                hook,
                priority,
                rules,
            } = chain;
            writeln!(out, "\tchain {name} {{")?;
            writeln!(
                out,
                "\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
            )?;
            for rule in rules {
                writeln!(out, "\t\t{rule}")?;
            }
            writeln!(out, "\t}}")?;
        }
        writeln!(out, "}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<String> = self.0.iter().map(Term::to_string).collect();
        out.write_str(&terms.join(" "))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unless = |is: bool| if is { "" } else { "!= " };
        let header = |family: Family| match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        match self {
            Term::Input { is, device } => write!(out, "iifname {}\"{device}\"", unless(*is)),
            Term::Output { is, device } => write!(out, "oifname {}\"{device}\"", unless(*is)),
            Term::From { is, index } => write!(out, "iif {}{index}", unless(*is)),
            Term::To(index) => write!(out, "oif {index}"),
            Term::Source(set) => write!(out, "{} saddr @{set}", header(set.family())),
            Term::Destination(set) => write!(out, "{} daddr @{set}", header(set.family())),
            Term::OwnSource => out.write_str("fib saddr type local"),
            Term::ComesAstray => out.write_str("fib saddr . iif oif missing"),
            Term::DestinationIsOwn(is) => write!(out, "fib daddr type {}local", unless(*is)),
            Term::UdpTo(port) => write!(out, "udp dport {port}"),
            Term::Marked(value, mask) => {
                write!(out, "meta mark & {mask:#010x} == {value:#010x}")
            }
            Term::Mark(value, mask) if value == mask => {
                write!(out, "meta mark set meta mark | {value:#010x}")
            }
            Term::Mark(value, mask) => {
                write!(
                    out,
                    "meta mark set meta mark & {:#010x} | {value:#010x}",
                    !mask
                )
            }
            Term::Count => out.write_str("counter"),
            Term::Accept => out.write_str("accept"),
            Term::Drop => out.write_str("drop"),
            Term::Untracked => out.write_str("notrack"),
            Term::KeepSource(family) => {
                let header = header(*family);
                write!(out, "snat {header} to {header} saddr")
            }
        }
    }
}
