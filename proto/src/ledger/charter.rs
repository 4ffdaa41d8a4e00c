//! What holds because of the ledger: grants and their standing, who owns which prefix, brokers,
//! revocations.

use std::collections::{BTreeMap, BTreeSet};

use ip_network::IpNetwork;

use super::line::{Line, Place};
use super::spans::{Holder, Spans};
use super::{Head, Link};
use crate::entry::{Body, Broker, Closing, Grant, SignedEntry, StoreId};
use crate::key::{Hash, PublicKey};
use crate::name::Name;
use crate::prefix::{self, RefusedPrefix};

/// The most prefixes a site and brokers a mesh may have.
pub const MAX_SITE_PREFIXES: usize = 256;
pub const MAX_BROKERS: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Charter {
    /// The authority in force; `None` while the ledger is empty. When it is forked, that of the
    /// split.
    pub authority: Option<PublicKey>,
    /// Every authority ever in force, in that order.
    pub authorities: Vec<PublicKey>,
    /// The hash of the key that may change the authority.
    pub recovery: Option<Hash>,
    pub grants: BTreeMap<Hash, GrantStanding>,
    /// In the order in which they were given: the earlier of two that overlap wins.
    pub prefixes: Vec<SitePrefix>,
    /// Node keys that count no more, whatever grant they came by.
    pub revoked: BTreeSet<PublicKey>,
    /// In force.
    pub brokers: Vec<Broker>,
    /// Every broker there ever was with the stores it signed for: what it has counted stays
    /// counted.
    pub counted_by: BTreeSet<(PublicKey, StoreId)>,
    pub fork: Option<Fork>,
    /// What sites had when they were revoked, and whose it was. Nobody else's by that: it is not to
    /// be reached any more, and never to leave in clear where it went sealed before.
    pub cut_off: BTreeSet<(IpNetwork, Name)>,
    /// Of grants that are not here too, which a fork may still bring.
    closings: BTreeMap<Hash, BTreeSet<PublicKey>>,
    /// Up to which entry what a site was given is void.
    revoked_sites: BTreeMap<Name, u64>,
    /// Of those prefixes of the line that can be given at all.
    spans: Spans,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantStanding {
    pub grant: Grant,
    /// Of its entry.
    pub number: u64,
    /// Unix seconds, for people.
    pub issued: u64,
    pub state: GrantState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantState {
    Open,
    /// Takes no more nodes, and refuses those it took save these.
    Closed {
        stay: BTreeSet<PublicKey>,
    },
    SiteRevoked,
    /// Above an unsettled fork.
    Quarantined,
}

/// How a node stands under the grant by which it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    NoGrant,
    GrantClosed,
    SiteRevoked,
    Revoked,
    Quarantined,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SitePrefix {
    pub prefix: IpNetwork,
    pub site: Name,
    /// Behind address translation of the site's own: see `--service-cidr`.
    pub service: bool,
    /// Of the entry that gave it.
    pub number: u64,
    pub state: PrefixState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixState {
    Owned,
    /// An earlier entry gave this prefix to another site.
    Overlaps {
        site: Name,
        prefix: IpNetwork,
    },
    /// Above an unsettled fork.
    Quarantined,
    /// No ledger can give it.
    Refused(RefusedPrefix),
}

/// Two entries follow one, and nothing has settled which counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    pub split: Head,
    /// Two or more, sorted.
    pub heads: Vec<Head>,
}

impl Charter {
    pub fn grant(&self, id: &Hash) -> Option<&GrantStanding> {
        self.grants.get(id)
    }

    pub fn standing(&self, grant: &Hash, identity: &PublicKey) -> Standing {
        if self.revoked.contains(identity) {
            return Standing::Revoked;
        }
        match self.grants.get(grant).map(|standing| &standing.state) {
            None => Standing::NoGrant,
            Some(GrantState::Open) => Standing::Good,
            Some(GrantState::Closed { stay }) if stay.contains(identity) => Standing::Good,
            Some(GrantState::Closed { .. }) => Standing::GrantClosed,
            Some(GrantState::SiteRevoked) => Standing::SiteRevoked,
            Some(GrantState::Quarantined) => Standing::Quarantined,
        }
    }

    /// Sites that have a grant or a prefix, sorted.
    pub fn sites(&self) -> Vec<&Name> {
        let granted = self
            .grants
            .values()
            .filter(|standing| standing.state != GrantState::SiteRevoked)
            .map(|standing| &standing.grant.site);
        let given = self.prefixes.iter().map(|prefix| &prefix.site);
        let sites: BTreeSet<&Name> = granted.chain(given).collect();
        sites.into_iter().collect()
    }

    pub fn prefixes_of<'a>(&'a self, site: &'a Name) -> impl Iterator<Item = &'a SitePrefix> {
        self.prefixes
            .iter()
            .filter(move |prefix| prefix.site == *site)
    }

    /// A prefix of another site that this one overlaps, one that holds before one that does not.
    pub fn owner_overlapping(&self, prefix: IpNetwork, except: &Name) -> Option<&SitePrefix> {
        let others = || {
            self.prefixes
                .iter()
                .filter(|other| other.contends_with(prefix, except))
        };
        others()
            .find(|other| other.state == PrefixState::Owned)
            .or_else(|| others().next())
    }

    /// Whether what this broker signed for this store counts: it is, or once was, a broker of it,
    /// and its key was not revoked.
    pub fn may_count(&self, broker: &PublicKey, store: &StoreId) -> bool {
        self.counted_by.contains(&(*broker, *store)) && !self.revoked.contains(broker)
    }

    pub fn broker(&self, key: &PublicKey) -> Option<&Broker> {
        self.brokers.iter().find(|broker| broker.key == *key)
    }

    /// Adds everything up: what is revoked beside the line first, so that it makes no difference
    /// whether a branch was known before the line grew or after.
    pub(super) fn of(links: &[Link], line: &Line) -> Charter {
        let at = |wanted: Place| {
            links
                .iter()
                .zip(&line.places)
                .filter(move |(_, place)| **place == wanted)
                .map(|(link, _)| &link.signed)
        };
        let mut charter = Charter::default();
        for signed in [Place::Abandoned, Place::Settled, Place::Branch]
            .into_iter()
            .flat_map(at)
        {
            charter.apply_beside(signed);
        }
        for signed in at(Place::Line) {
            charter.apply(signed);
        }
        let mut quarantined: Vec<&SignedEntry> = at(Place::Branch).collect();
        quarantined.sort_unstable_by_key(|signed| (signed.entry().number, signed.hash()));
        for signed in quarantined {
            charter.quarantine(signed);
        }
        charter.fork = line.head.filter(|_| !line.branches.is_empty()).map(|head| {
            let mut heads: Vec<Head> = line.branches.iter().map(|&at| links[at].head()).collect();
            heads.sort_unstable_by_key(|head| head.hash);
            Fork {
                split: links[head].head(),
                heads,
            }
        });
        charter
    }

    /// An entry of the line that holds; each after the one it follows.
    pub(super) fn apply(&mut self, signed: &SignedEntry) {
        let entry = signed.entry();
        match &entry.body {
            Body::Genesis {
                authority,
                recovery,
            } => self.take_authority(*authority, *recovery),
            Body::Authority {
                authority,
                next_recovery,
                ..
            } => self.take_authority(*authority, *next_recovery),
            Body::Grant(grant) => {
                self.take_grant(signed, grant, GrantState::Open);
                self.give_all(entry.number, &grant.site, &grant.prefixes, false);
                self.give_all(entry.number, &grant.site, &grant.service_prefixes, true);
            }
            Body::Prefixes {
                site,
                added,
                added_service,
                removed,
            } => {
                self.take_back(|held| held.site == *site && removed.contains(&held.prefix));
                self.give_all(entry.number, site, added, false);
                self.give_all(entry.number, site, added_service, true);
            }
            Body::Revocation { .. } | Body::SiteRevoked { .. } => self.apply_beside(signed),
            Body::Broker(broker) => self.take_broker(broker),
            Body::BrokerRemoved { key } => self.brokers.retain(|broker| broker.key != *key),
            // Which branches hold is decided by now.
            Body::Settlement { .. } => {}
        }
    }

    /// Only what revokes, which holds wherever it stands.
    fn apply_beside(&mut self, signed: &SignedEntry) {
        match &signed.entry().body {
            Body::Revocation { keys, closings } => {
                self.revoked.extend(keys);
                for closing in closings {
                    self.close(closing);
                }
            }
            Body::SiteRevoked { site } => self.revoke_site(site, signed.entry().number),
            Body::Genesis { .. }
            | Body::Authority { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Settlement { .. } => {}
        }
    }

    /// What stands above a split is shown, and none of it holds. A broker is not even shown: it
    /// is asked nothing.
    fn quarantine(&mut self, signed: &SignedEntry) {
        let entry = signed.entry();
        match &entry.body {
            Body::Grant(grant) => {
                self.take_grant(signed, grant, GrantState::Quarantined);
                self.show_all(entry.number, &grant.site, &grant.prefixes, false);
                self.show_all(entry.number, &grant.site, &grant.service_prefixes, true);
            }
            Body::Prefixes {
                site,
                added,
                added_service,
                ..
            } => {
                self.show_all(entry.number, site, added, false);
                self.show_all(entry.number, site, added_service, true);
            }
            Body::Genesis { .. }
            | Body::Authority { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Settlement { .. } => {}
        }
    }

    fn take_authority(&mut self, authority: PublicKey, recovery: Hash) {
        self.authority = Some(authority);
        self.recovery = Some(recovery);
        if !self.authorities.contains(&authority) {
            self.authorities.push(authority);
        }
    }

    fn take_grant(&mut self, signed: &SignedEntry, grant: &Grant, wanted: GrantState) {
        let number = signed.entry().number;
        let state = if self.is_site_revoked(&grant.site, number) {
            GrantState::SiteRevoked
        } else if let Some(stay) = self.closings.get(&signed.hash()) {
            match wanted {
                GrantState::Quarantined => wanted,
                GrantState::Open | GrantState::Closed { .. } | GrantState::SiteRevoked => {
                    GrantState::Closed { stay: stay.clone() }
                }
            }
        } else {
            wanted
        };
        let standing = GrantStanding {
            grant: grant.clone(),
            number,
            issued: signed.entry().issued,
            state,
        };
        self.grants.insert(signed.hash(), standing);
    }

    /// A grant closed twice keeps those that stay both times.
    fn close(&mut self, closing: &Closing) {
        let stay: BTreeSet<PublicKey> = closing.stay.iter().copied().collect();
        let stay = match self.closings.remove(&closing.grant) {
            Some(before) => &before & &stay,
            None => stay,
        };
        if let Some(standing) = self.grants.get_mut(&closing.grant)
            && matches!(standing.state, GrantState::Open | GrantState::Closed { .. })
        {
            standing.state = GrantState::Closed { stay: stay.clone() };
        }
        self.closings.insert(closing.grant, stay);
    }

    fn revoke_site(&mut self, site: &Name, number: u64) {
        let until = self.revoked_sites.entry(site.clone()).or_insert(number);
        *until = number.max(*until);
        for standing in self.grants.values_mut() {
            if standing.grant.site == *site && standing.number < number {
                standing.state = GrantState::SiteRevoked;
            }
        }
        let lost = |held: &SitePrefix| held.site == *site && held.number < number;
        let cut_off = self.prefixes.iter().filter(|held| lost(held));
        let cut_off = cut_off.filter(|held| !matches!(held.state, PrefixState::Refused(_)));
        self.cut_off
            .extend(cut_off.map(|held| (held.prefix, held.site.clone())));
        self.take_back(lost);
    }

    fn is_site_revoked(&self, site: &Name, number: u64) -> bool {
        self.revoked_sites
            .get(site)
            .is_some_and(|until| number < *until)
    }

    fn take_broker(&mut self, broker: &Broker) {
        self.counted_by.insert((broker.key, broker.store));
        match self.brokers.iter_mut().find(|held| held.key == broker.key) {
            Some(held) => *held = broker.clone(),
            None => self.brokers.push(broker.clone()),
        }
    }

    fn give_all(&mut self, number: u64, site: &Name, prefixes: &[IpNetwork], service: bool) {
        if self.is_site_revoked(site, number) {
            let cut_off = prefixes
                .iter()
                .filter(|prefix| prefix::check(**prefix).is_ok());
            self.cut_off
                .extend(cut_off.map(|prefix| (*prefix, site.clone())));
            return;
        }
        for prefix in prefixes {
            self.give(number, site, *prefix, service);
        }
    }

    /// What a site has already it keeps with the earlier entry's precedence.
    fn give(&mut self, number: u64, site: &Name, prefix: IpNetwork, service: bool) {
        let state = self.state_of(number, site, prefix);
        let refused = matches!(state, PrefixState::Refused(_));
        if refused || self.spans.holds(prefix, site) {
            let held = self
                .prefixes
                .iter_mut()
                .find(|held| held.prefix == prefix && held.site == *site);
            if let Some(held) = held {
                held.service = service;
                return;
            }
        }
        if !refused {
            self.spans.insert(Holder {
                number,
                site: site.clone(),
                prefix,
            });
        }
        self.prefixes.push(SitePrefix {
            prefix,
            site: site.clone(),
            service,
            number,
            state,
        });
    }

    /// Judged pair by pair: a prefix that lost to an earlier one still wins against later ones, so
    /// that what one site gives up never passes silently from a second site to a third.
    fn state_of(&self, number: u64, site: &Name, prefix: IpNetwork) -> PrefixState {
        if let Err(why) = prefix::check(prefix) {
            return PrefixState::Refused(why);
        }
        match self.spans.earliest_overlapping(prefix, site, number) {
            Some(earlier) => PrefixState::Overlaps {
                site: earlier.site.clone(),
                prefix: earlier.prefix,
            },
            None => PrefixState::Owned,
        }
    }

    /// What was overlapped by what is taken may be free now.
    fn take_back(&mut self, taken: impl Fn(&SitePrefix) -> bool) {
        let mut prefixes = std::mem::take(&mut self.prefixes);
        let before = prefixes.len();
        prefixes.retain(|held| {
            let taken = taken(held);
            if taken {
                self.spans.remove(held.prefix, &held.site);
            }
            !taken
        });
        if prefixes.len() < before {
            for held in &mut prefixes {
                if matches!(held.state, PrefixState::Overlaps { .. }) {
                    held.state = self.state_of(held.number, &held.site, held.prefix);
                }
            }
        }
        self.prefixes = prefixes;
    }

    fn show_all(&mut self, number: u64, site: &Name, prefixes: &[IpNetwork], service: bool) {
        if self.is_site_revoked(site, number) {
            return;
        }
        for prefix in prefixes {
            let shown = self
                .prefixes
                .iter()
                .any(|held| held.prefix == *prefix && held.site == *site);
            if !shown {
                self.prefixes.push(SitePrefix {
                    prefix: *prefix,
                    site: site.clone(),
                    service,
                    number,
                    state: PrefixState::Quarantined,
                });
            }
        }
    }
}

impl SitePrefix {
    fn contends_with(&self, prefix: IpNetwork, site: &Name) -> bool {
        prefix::overlap(self.prefix, prefix)
            && self.site != *site
            && !matches!(self.state, PrefixState::Refused(_))
    }
}
