//! The nft table: what packets of the mesh may do, as values that print like `nft list ruleset`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::facts::{Exit, Facts, Mode, Neighbour};
use crate::plan::{Devices, refusal};
use crate::settings::Settings;
use crate::wanted::Family;

mod agent;
mod gateway;
mod text;

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
    /// Those of them that somebody of this site translates.
    Services(Family),
    /// Addresses that gateways and agents of this site signed.
    Neighbours(Family),
    /// Gateways that packets may be handed to on the site's own network.
    Hops(Family),
    /// Addresses that are tried on that network.
    Probes(Family),
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

impl Hook {
    pub const ALL: [Hook; 5] = [
        Hook::Prerouting,
        Hook::Input,
        Hook::Forward,
        Hook::Output,
        Hook::Postrouting,
    ];
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
    SourceNot(SetName),
    Destination(SetName),
    /// Before any translation.
    OriginalSource(SetName),
    OriginalDestination(SetName),
    /// Who gets the packet next.
    NextHop(SetName),
    /// Its destination was not translated.
    NotTranslated,
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
    TranslateSource(IpAddr),
}

/// After everything else: a chain of translation may still change where a packet goes.
const GUARD_PRIORITY: i32 = 300;
const RAW: i32 = -300;
const MANGLE: i32 = -150;
/// One before source translation.
pub(crate) const BEFORE_SRCNAT: i32 = 99;

/// The same in every network namespace.
const LOOPBACK: u32 = 1;

pub fn table(facts: &Facts, devices: &Devices, settings: &Settings) -> Table {
    let chains = match &facts.exit {
        Exit::Tunnel(tunnel) => gateway::chains(facts, tunnel, devices, settings),
        Exit::Gateways(gateways) => agent::chains(gateways, devices, settings),
    };
    with_sets(chains, facts)
}

/// Without a way out: nothing of the mesh leaves, before there is a daemon that knows where to.
pub fn closed(facts: &Facts, settings: &Settings) -> Table {
    with_sets(vec![leaving(vec![], settings)], facts)
}

fn with_sets(chains: Vec<Chain>, facts: &Facts) -> Table {
    let terms = chains.iter().flat_map(|chain| &chain.rules);
    let asked: BTreeSet<SetName> = terms
        .flat_map(|rule| &rule.0)
        .filter_map(Term::set)
        .collect();
    let sets = SetName::ALL
        .into_iter()
        .filter(|name| name.is_always() || asked.contains(name))
        .map(|name| (name, spans(&members(name, facts), name.family())));
    Table {
        sets: sets.collect(),
        chains,
    }
}

fn members(name: SetName, facts: &Facts) -> Vec<IpNetwork> {
    let neighbours = neighbours(facts);
    match name {
        SetName::Mesh(_) => mesh(facts).collect(),
        SetName::Local(_) => facts.local.clone(),
        SetName::Services(_) => facts.services.clone(),
        SetName::Neighbours(_) => neighbours.map(|one| one.lan.into()).collect(),
        SetName::Hops(_) => neighbours.flat_map(agent::hops).collect(),
        SetName::Probes(_) => neighbours
            .flat_map(|one| &one.probes)
            .filter(|(_, mode)| *mode == Mode::Direct)
            .map(|(address, _)| (*address).into())
            .collect(),
    }
}

/// What is the mesh's alone: prefixes of other sites, and addresses that ways are tried with.
fn mesh(facts: &Facts) -> impl Iterator<Item = IpNetwork> {
    let prefixes = facts.prefixes.keys().copied();
    let own = facts.tunnel().into_iter().flat_map(|tunnel| &tunnel.probes);
    let others = neighbours(facts).flat_map(|neighbour| &neighbour.probes);
    prefixes
        .filter(|prefix| refusal(facts, *prefix).is_none())
        .chain(own.map(|address| IpNetwork::from(*address)))
        .chain(others.map(|(address, _)| IpNetwork::from(*address)))
}

/// Gateways of an agent, agents of a gateway.
fn neighbours(facts: &Facts) -> impl Iterator<Item = &Neighbour> {
    let neighbours = match &facts.exit {
        Exit::Tunnel(tunnel) => &tunnel.agents,
        Exit::Gateways(gateways) => &gateways.gateways,
    };
    neighbours.values()
}

fn from(is: bool, index: u32) -> Term {
    Term::From { is, index }
}

/// The port of VXLAN is for those neighbours whose records say so, by the site's own network or by
/// the way that leads to them: whoever else sends there wants in. An address of the site need not be
/// on the interface that leads there.
fn vxlan_port(port: u16, devices: &Devices) -> Vec<Rule> {
    let to_port = [Term::UdpTo(port), Term::DestinationIsOwn(true)];
    let end = [Term::Count, Term::Drop];
    let mut rules: Vec<Rule> = Family::BOTH
        .map(|family| {
            let strangers = Term::SourceNot(SetName::Neighbours(family));
            let terms = to_port
                .iter()
                .cloned()
                .chain([strangers])
                .chain(end.clone());
            Rule(terms.collect())
        })
        .into();
    let outside = devices.inner.values().map(|index| from(false, *index));
    let astray = outside.chain(to_port).chain([Term::ComesAstray]);
    rules.push(Rule(astray.chain(end).collect()));
    rules
}

/// Nobody may lead what claims to be of this site into the mesh from elsewhere: the far side takes
/// it for good. Where such a source lies is known by the way back to it; what came by `known`
/// interfaces is from there for sure. (Older kernels look that way up in this hook only.)
fn forged(known: &[u32]) -> Vec<Rule> {
    let rules = Family::BOTH.map(|family| {
        let mut terms: Vec<Term> = known.iter().map(|index| from(false, *index)).collect();
        terms.extend([
            Term::Source(SetName::Local(family)),
            Term::Destination(SetName::Mesh(family)),
            Term::ComesAstray,
            Term::Count,
            Term::Drop,
        ]);
        Rule(terms)
    });
    rules.into()
}

/// Mesh destinations leave as `ways` say and in no other way. Our mark is the exception: the
/// tunnel's own datagrams may go to addresses inside other sites' prefixes.
fn leaving(ways: Vec<Rule>, settings: &Settings) -> Chain {
    let (value, mask) = settings.fwmark;
    let mut rules = ways;
    rules.extend([
        // This node talks with itself.
        Rule(vec![Term::To(LOOPBACK), Term::Accept]),
        Rule(vec![Term::Marked(value, mask), Term::Accept]),
    ]);
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

fn sources(rules: Vec<Rule>) -> Chain {
    Chain {
        name: "sources",
        kind: "nat",
        hook: Hook::Postrouting,
        priority: BEFORE_SRCNAT,
        rules,
    }
}

/// Disjoint and apart, as a set of intervals must be.
pub(crate) fn spans(prefixes: &[IpNetwork], family: Family) -> BTreeSet<Span> {
    let of_family = prefixes
        .iter()
        .filter(|prefix| Family::of(prefix.network_address()) == family);
    merged(of_family.map(|prefix| Span::of(*prefix)).collect())
}

/// All of one family.
pub(crate) fn merged(mut all: Vec<Span>) -> BTreeSet<Span> {
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
    pub(crate) fn of(prefix: IpNetwork) -> Span {
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

impl Term {
    fn set(&self) -> Option<SetName> {
        match self {
            Term::Source(set)
            | Term::SourceNot(set)
            | Term::Destination(set)
            | Term::OriginalSource(set)
            | Term::OriginalDestination(set)
            | Term::NextHop(set) => Some(*set),
            Term::Input { .. }
            | Term::Output { .. }
            | Term::From { .. }
            | Term::To(_)
            | Term::NotTranslated
            | Term::OwnSource
            | Term::ComesAstray
            | Term::DestinationIsOwn(_)
            | Term::UdpTo(_)
            | Term::Marked(..)
            | Term::Mark(..)
            | Term::Count
            | Term::Accept
            | Term::Drop
            | Term::Untracked
            | Term::KeepSource(_)
            | Term::TranslateSource(_) => None,
        }
    }
}

impl SetName {
    pub const ALL: [SetName; 12] = [
        SetName::Mesh(Family::V4),
        SetName::Mesh(Family::V6),
        SetName::Local(Family::V4),
        SetName::Local(Family::V6),
        SetName::Services(Family::V4),
        SetName::Services(Family::V6),
        SetName::Neighbours(Family::V4),
        SetName::Neighbours(Family::V6),
        SetName::Hops(Family::V4),
        SetName::Hops(Family::V6),
        SetName::Probes(Family::V4),
        SetName::Probes(Family::V6),
    ];

    pub fn name(self) -> &'static str {
        match self {
            SetName::Mesh(Family::V4) => "mesh4",
            SetName::Mesh(Family::V6) => "mesh6",
            SetName::Local(Family::V4) => "local4",
            SetName::Local(Family::V6) => "local6",
            SetName::Services(Family::V4) => "services4",
            SetName::Services(Family::V6) => "services6",
            SetName::Neighbours(Family::V4) => "neighbours4",
            SetName::Neighbours(Family::V6) => "neighbours6",
            SetName::Hops(Family::V4) => "hops4",
            SetName::Hops(Family::V6) => "hops6",
            SetName::Probes(Family::V4) => "probes4",
            SetName::Probes(Family::V6) => "probes6",
        }
    }

    /// What there is without anybody asking it: the table is known by it.
    pub(crate) fn is_always(self) -> bool {
        matches!(self, SetName::Mesh(_) | SetName::Local(_))
    }

    pub fn family(self) -> Family {
        match self {
            SetName::Mesh(family)
            | SetName::Local(family)
            | SetName::Services(family)
            | SetName::Neighbours(family)
            | SetName::Hops(family)
            | SetName::Probes(family) => family,
        }
    }
}
