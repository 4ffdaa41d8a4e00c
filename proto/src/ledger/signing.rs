//! The next entry, checked before it is signed: what the authority signs is for ever, so what
//! every receiver would quarantine or could not read is refused here, with its reason.

use ip_network::IpNetwork;
use thiserror::Error;

use super::charter::{Charter, GrantState, MAX_BROKERS, MAX_SITE_PREFIXES};
use super::{Head, Ledger, recovery_hash};
use crate::blob::BlobError;
use crate::entry::{Body, Broker, Closing, Entry, Grant, StoreId};
use crate::key::{Hash, PublicKey};
use crate::name::Name;
use crate::prefix::{self, RefusedPrefix};

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SigningError {
    #[error("the ledger is empty here; fetch it from a broker first")]
    Empty,
    #[error("entry 0 exists already; a mesh has one")]
    Genesis,
    #[error(
        "the ledger is forked behind entry {split}: settle it first with `causeway ledger settle`"
    )]
    Forked { split: Head },
    #[error("the ledger is not forked; there is nothing to settle")]
    NotForked,
    #[error("{} is no entry that another may follow now; `causeway ledger show` lists the heads", .0.short())]
    NoHead(Hash),
    #[error("prefix {prefix} overlaps {other} of site {site}; give one that no other site has")]
    Overlap {
        prefix: IpNetwork,
        other: IpNetwork,
        site: Name,
    },
    #[error("prefix {prefix} cannot be given to a site: {why}")]
    Refused {
        prefix: IpNetwork,
        why: RefusedPrefix,
    },
    #[error("prefix {0} is given twice")]
    Twice(IpNetwork),
    #[error("site {site} does not have prefix {prefix}; `causeway site show {site}` lists its own")]
    NotHeld { site: Name, prefix: IpNetwork },
    #[error("site {0} would have more than {MAX_SITE_PREFIXES} prefixes; join some of them")]
    TooManyPrefixes(Name),
    #[error("there is no site {0}; `causeway site list` shows those there are")]
    NoSite(Name),
    #[error("there is no grant {}; `causeway token list` shows those there are", .0.short())]
    NoGrant(Hash),
    #[error("no broker of the mesh has store {0}; add its broker first with `causeway broker add`")]
    NoStore(StoreId),
    #[error("a grant must end after it begins")]
    Window,
    #[error("a grant needs at least one use")]
    NoUse,
    #[error("there is no broker {0}; `causeway broker list` shows those there are")]
    NoBroker(PublicKey),
    #[error("the mesh would have more than {MAX_BROKERS} brokers; remove one first")]
    TooManyBrokers,
    #[error("this key was revoked and cannot be a broker's: {0}")]
    RevokedBroker(PublicKey),
    #[error("this is not the recovery key that the ledger committed to")]
    Recovery,
    #[error("the new authority has been one before; make a new key")]
    OldAuthority,
    #[error("this changes nothing")]
    Nothing,
    #[error("this is too much for one ledger entry; split it into several")]
    TooLarge,
    #[error("the ledger entry cannot be read back: its {0} is not valid")]
    Form(&'static str),
}

impl Ledger {
    /// The entry to sign next. During a fork only what ends it or revokes; it then follows the
    /// branch that was known here first, which for the authority's own ledger is its own.
    pub fn next(&self, issued: u64, body: Body) -> Result<Entry, SigningError> {
        let head = self.line.head.ok_or(SigningError::Empty)?;
        let own = self.own_head(head);
        let other = body.settled().copied();
        // Asked to give up its own of two branches, it goes on with the other one.
        let previous = match self.line.branches.as_slice() {
            [one, two] if other == Some(self.head_at(own).hash) => {
                if *one == own {
                    *two
                } else {
                    *one
                }
            }
            _ => own,
        };
        self.next_after(self.head_at(previous).hash, issued, body)
    }

    /// The same behind a chosen entry: the head, or one of the heads of a fork. A change of
    /// authority may follow any entry: what the old authority signed behind that entry is void.
    pub fn next_after(
        &self,
        previous: Hash,
        issued: u64,
        body: Body,
    ) -> Result<Entry, SigningError> {
        let parent = self.parent_for(previous, &body)?;
        let settled = self.settled_by(previous, &body)?;
        self.check_body(parent, &body)?;
        let before = settled.unwrap_or(0).max(self.links[parent].number());
        let entry = Entry {
            number: before.checked_add(1).ok_or(SigningError::TooLarge)?,
            previous,
            issued,
            body,
        };
        entry.check_form().map_err(|error| match error {
            BlobError::Field(field) => SigningError::Form(field),
            BlobError::Short | BlobError::Long | BlobError::Version(_) => SigningError::TooLarge,
        })?;
        Ok(entry)
    }

    fn parent_for(&self, previous: Hash, body: &Body) -> Result<usize, SigningError> {
        if !matches!(body, Body::Authority { .. }) {
            return self.live_head(previous);
        }
        self.index
            .get(&previous)
            .copied()
            .filter(|&at| self.line.is_live(at))
            .ok_or(SigningError::NoHead(previous))
    }

    fn live_head(&self, hash: Hash) -> Result<usize, SigningError> {
        let at = self.line.head.ok_or(SigningError::Empty)?;
        let heads = match self.line.branches.as_slice() {
            [] => &[at],
            branches => branches,
        };
        heads
            .iter()
            .copied()
            .find(|&at| self.links[at].signed.hash() == hash)
            .ok_or(SigningError::NoHead(hash))
    }

    /// The number of the other head that a settlement names.
    fn settled_by(&self, previous: Hash, body: &Body) -> Result<Option<u64>, SigningError> {
        match body {
            Body::Settlement { .. } if self.line.branches.is_empty() => {
                Err(SigningError::NotForked)
            }
            Body::Settlement { other } if *other == previous => Err(SigningError::NoHead(*other)),
            Body::Settlement { other } => {
                let at = self.live_head(*other)?;
                Ok(Some(self.links[at].number()))
            }
            Body::Genesis { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Authority { .. } => Ok(None),
        }
    }

    /// Up from the split along what was known first.
    fn own_head(&self, mut at: usize) -> usize {
        let first_live = |at: usize| {
            let children = self.links[at].children.iter().copied();
            children.filter(|&at| self.line.is_live(at)).min()
        };
        while let Some(child) = first_live(at) {
            at = child;
        }
        at
    }

    fn check_body(&self, parent: usize, body: &Body) -> Result<(), SigningError> {
        let charter = &self.charter;
        match body {
            Body::Genesis { .. } => Err(SigningError::Genesis),
            Body::Grant(grant) => {
                self.check_unforked()?;
                charter.check_grant(grant)
            }
            Body::Prefixes {
                site,
                added,
                added_service,
                removed,
            } => {
                self.check_unforked()?;
                charter.check_site(site)?;
                charter.check_removed(site, removed)?;
                charter.check_given(site, [added, added_service], removed)
            }
            Body::Revocation { keys, closings } => charter.check_revocation(keys, closings),
            Body::SiteRevoked { site } => charter.check_site(site),
            Body::Broker(broker) => {
                self.check_unforked()?;
                charter.check_broker(broker)
            }
            Body::BrokerRemoved { key } => {
                self.check_unforked()?;
                charter
                    .broker(key)
                    .map(|_| ())
                    .ok_or(SigningError::NoBroker(*key))
            }
            Body::Authority {
                recovery,
                authority,
                ..
            } => {
                if recovery_hash(recovery) != self.links[parent].recovery {
                    Err(SigningError::Recovery)
                } else if self.was_authority(authority) {
                    Err(SigningError::OldAuthority)
                } else {
                    Ok(())
                }
            }
            Body::Settlement { .. } => Ok(()),
        }
    }

    fn check_unforked(&self) -> Result<(), SigningError> {
        match &self.charter.fork {
            None => Ok(()),
            Some(fork) => Err(SigningError::Forked { split: fork.split }),
        }
    }

    /// On any branch: a key that once signed for the mesh must not come back.
    fn was_authority(&self, key: &PublicKey) -> bool {
        self.links.iter().any(|link| link.authority == *key)
    }
}

impl Charter {
    fn check_grant(&self, grant: &Grant) -> Result<(), SigningError> {
        if grant.not_after <= grant.not_before {
            return Err(SigningError::Window);
        }
        if grant.uses == crate::entry::Uses::AtMost(0) {
            return Err(SigningError::NoUse);
        }
        if !self
            .brokers
            .iter()
            .any(|broker| broker.store == grant.store)
        {
            return Err(SigningError::NoStore(grant.store));
        }
        self.check_given(&grant.site, [&grant.prefixes, &grant.service_prefixes], &[])
    }

    fn check_site(&self, site: &Name) -> Result<(), SigningError> {
        let granted = self.grants.values().any(|standing| {
            standing.grant.site == *site && standing.state != GrantState::SiteRevoked
        });
        if granted || self.prefixes_of(site).next().is_some() {
            Ok(())
        } else {
            Err(SigningError::NoSite(site.clone()))
        }
    }

    fn check_removed(&self, site: &Name, removed: &[IpNetwork]) -> Result<(), SigningError> {
        for (at, prefix) in removed.iter().enumerate() {
            if removed[..at].contains(prefix) {
                return Err(SigningError::Twice(*prefix));
            }
            if !self.prefixes_of(site).any(|held| held.prefix == *prefix) {
                return Err(SigningError::NotHeld {
                    site: site.clone(),
                    prefix: *prefix,
                });
            }
        }
        Ok(())
    }

    fn check_given(
        &self,
        site: &Name,
        given: [&[IpNetwork]; 2],
        removed: &[IpNetwork],
    ) -> Result<(), SigningError> {
        let mut held: Vec<IpNetwork> = self
            .prefixes_of(site)
            .map(|held| held.prefix)
            .filter(|prefix| !removed.contains(prefix))
            .collect();
        let given = given.concat();
        for (at, prefix) in given.iter().enumerate() {
            if given[..at].contains(prefix) {
                return Err(SigningError::Twice(*prefix));
            }
            prefix::check(*prefix).map_err(|why| SigningError::Refused {
                prefix: *prefix,
                why,
            })?;
            if let Some(owner) = self.owner_overlapping(*prefix, site) {
                return Err(SigningError::Overlap {
                    prefix: *prefix,
                    other: owner.prefix,
                    site: owner.site.clone(),
                });
            }
            if !held.contains(prefix) {
                held.push(*prefix);
            }
        }
        if held.len() > MAX_SITE_PREFIXES {
            return Err(SigningError::TooManyPrefixes(site.clone()));
        }
        Ok(())
    }

    fn check_revocation(
        &self,
        keys: &[PublicKey],
        closings: &[Closing],
    ) -> Result<(), SigningError> {
        if keys.is_empty() && closings.is_empty() {
            return Err(SigningError::Nothing);
        }
        match closings
            .iter()
            .find(|closing| !self.grants.contains_key(&closing.grant))
        {
            Some(closing) => Err(SigningError::NoGrant(closing.grant)),
            None => Ok(()),
        }
    }

    fn check_broker(&self, broker: &Broker) -> Result<(), SigningError> {
        if self.revoked.contains(&broker.key) {
            return Err(SigningError::RevokedBroker(broker.key));
        }
        match self.broker(&broker.key) {
            Some(held) if held == broker => Err(SigningError::Nothing),
            None if self.brokers.len() >= MAX_BROKERS => Err(SigningError::TooManyBrokers),
            Some(_) | None => Ok(()),
        }
    }
}
