//! From what is known of the gateways to which of them are used for each site.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use proto::key::PublicKey;
use proto::lan::{Site, SiteHash, site_hash};
use proto::name::Name;

use super::ProbeHealth;

/// While nothing is known of a path.
const FIRST_MTU: u16 = 1280;
/// Whatever a gateway says, less is no path.
const LEAST_MTU: u16 = 576;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Sites that a gateway claims to reach; see [`Choice::of`].
    pub sites: BTreeMap<SiteHash, SiteChoice>,
    pub gateways: BTreeMap<PublicKey, GatewayHealth>,
    pub fallback: Option<Fallback>,
    /// Every gateway has told all it reaches, or had time to answer. Until then what an earlier run
    /// has programmed is better than this.
    pub settled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiteChoice {
    /// Empty if nobody reaches it.
    pub by: BTreeSet<PublicKey>,
    /// What fits through all of them.
    pub mtu: Option<u16>,
}

/// What is done when no gateway answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// None ever did: all are used for all sites.
    All,
    /// The last choice stays.
    Last,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayHealth {
    pub name: Name,
    pub address: IpAddr,
    pub state: GatewayState,
    pub rtt: Option<Duration>,
    /// Its address in the other family, as it says itself.
    pub other_lan: Option<IpAddr>,
    /// How many sites it says it reaches.
    pub reaches: usize,
    /// Whether its kernel forwards, as it says itself.
    pub forwards: bool,
    /// When it answered last.
    pub last_heard: Option<Duration>,
    /// Until when it is used last.
    pub held_until: Option<Duration>,
    pub direct: ProbeHealth,
    pub vxlan: ProbeHealth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GatewayState {
    Up,
    /// It answers again, and failed a short while ago.
    HeldDown,
    /// It is about to stop, or has stopped, in good order.
    Leaving,
    Silent,
    /// It has never answered this start of the agent.
    Never,
}

impl GatewayState {
    /// As `status` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            GatewayState::Up => "up",
            GatewayState::HeldDown => "held_down",
            GatewayState::Leaving => "leaving",
            GatewayState::Silent => "silent",
            GatewayState::Never => "never",
        }
    }
}

impl Choice {
    /// For one site of the mesh.
    pub fn of(&self, site: &Name) -> SiteChoice {
        match self.fallback {
            Some(Fallback::All) => SiteChoice {
                by: self.gateways.keys().copied().collect(),
                mtu: Some(FIRST_MTU),
            },
            Some(Fallback::Last) | None => {
                let chosen = self.sites.get(&site_hash(site));
                chosen.cloned().unwrap_or_default()
            }
        }
    }
}

/// What counts of one gateway.
pub(super) struct Standing<'a> {
    /// It answers now, and has told all it reaches.
    pub(super) answers: bool,
    /// So it did once.
    pub(super) did_answer: bool,
    /// It told all it reaches, or had time to answer.
    pub(super) is_known: bool,
    /// Its kernel does not forward, as it says itself, or probes of the way in use found so.
    pub(super) fails: bool,
    pub(super) is_leaving: bool,
    pub(super) is_held: bool,
    pub(super) sites: Option<&'a BTreeMap<SiteHash, Site>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) sites: BTreeMap<SiteHash, SiteChoice>,
    pub(super) fallback: Option<Fallback>,
    pub(super) settled: bool,
}

/// Of those that answer, for each site those of the best rank that reach it. Rank never excludes.
pub(super) fn decide(standings: &[(PublicKey, Standing<'_>)], before: &Decision) -> Decision {
    let is_known = !standings.is_empty() && standings.iter().all(|(_, one)| one.is_known);
    let settled = before.settled || is_known;
    if standings.iter().any(|(_, one)| one.answers) {
        let (sites, fallback) = (best(standings), None);
        return Decision {
            sites,
            fallback,
            settled,
        };
    }
    let mut sites = before.sites.clone();
    for chosen in sites.values_mut() {
        chosen
            .by
            .retain(|who| standings.iter().any(|(one, _)| one == who));
    }
    sites.retain(|_, chosen| !chosen.by.is_empty());
    let fallback = if standings.is_empty() {
        None
    } else if standings.iter().any(|(_, one)| one.did_answer) || !sites.is_empty() {
        Some(Fallback::Last)
    } else {
        // Kept until the first has told what it reaches: until then there is nothing better.
        (is_known || before.fallback == Some(Fallback::All)).then_some(Fallback::All)
    };
    Decision {
        sites,
        fallback,
        settled,
    }
}

type Rank = (bool, bool, bool, bool);

fn best(standings: &[(PublicKey, Standing<'_>)]) -> BTreeMap<SiteHash, SiteChoice> {
    let mut found: BTreeMap<SiteHash, (Rank, SiteChoice)> = BTreeMap::new();
    for (who, one) in standings.iter().filter(|(_, one)| one.answers) {
        for (hash, site) in one.sites.into_iter().flatten() {
            let rank = (one.fails, one.is_leaving, one.is_held, site.by_sibling);
            let mtu = site.mtu.max(LEAST_MTU);
            let entry = found
                .entry(*hash)
                .or_insert_with(|| (rank, SiteChoice::default()));
            if rank < entry.0 {
                *entry = (rank, SiteChoice::default());
            }
            if rank == entry.0 {
                entry.1.by.insert(*who);
                entry.1.mtu = Some(entry.1.mtu.map_or(mtu, |other| other.min(mtu)));
            }
        }
    }
    let chosen = found.into_iter();
    chosen.map(|(hash, (_, choice))| (hash, choice)).collect()
}
