//! What this node says of itself: found out, put together, and said again only when it has changed.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use node::addresses::{Prefixes, lan_addresses};
use node::cloud::Place;
use node::follow::View;
use node::membership::without_prefix;
use node::netlink::interfaces::{Interface, interfaces};
use node::state::Membership;
use node::status::Problem;
use proto::ledger::Standing;
use proto::record::{Capabilities, Presence};
use tokio::sync::mpsc;

use super::addresses::{self, From, Known};
use super::{Daemon, Options};
use crate::io::boottime;

/// Names are resolved again so often.
const RESOLVE: Duration = Duration::from_secs(60);
const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
/// So long the first record waits for them.
const NAMES_WAIT: Duration = Duration::from_secs(1);
/// A change that others follow is not told sooner than this after the last.
const DAMPING: Duration = Duration::from_secs(1);

/// What was found out in the background.
pub(super) enum Found {
    /// What became of the names of `--endpoint`, in their order.
    Names(Vec<(String, Result<Vec<SocketAddr>, String>)>),
    Interfaces(io::Result<BTreeMap<u32, Interface>>),
}

/// Where this node is, as far as it knows.
pub(super) struct Whereabouts {
    known: Known,
    prefixes: Prefixes,
    without_prefix: Option<Problem>,
    endpoints: Vec<String>,
    /// The last good answer for each name.
    resolved: BTreeMap<String, Vec<SocketAddr>>,
    unresolved: BTreeMap<String, String>,
    finding: mpsc::Sender<Found>,
    next_resolution: Duration,
    is_looking: bool,
    must_look_again: bool,
    candidates: Vec<(SocketAddr, From)>,
    lan: Vec<IpAddr>,
    place: Place,
    published: Option<Publication>,
    published_at: Duration,
    begun: Duration,
}

/// The part of a [`Presence`] that changes.
#[derive(Clone, PartialEq)]
pub(super) struct Publication {
    pub(super) candidates: Vec<SocketAddr>,
    lan: Option<IpAddr>,
    place: Place,
}

impl Whereabouts {
    pub(super) fn new(
        options: &Options,
        membership: &Membership,
        port: u16,
        finding: mpsc::Sender<Found>,
    ) -> Whereabouts {
        let known = Known {
            given_lan: options.address,
            port,
            ..Known::default()
        };
        Whereabouts {
            known,
            prefixes: Prefixes::default(),
            without_prefix: None,
            endpoints: options.endpoints.clone(),
            resolved: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            finding,
            next_resolution: Duration::ZERO,
            is_looking: false,
            must_look_again: false,
            candidates: Vec::new(),
            lan: Vec::new(),
            place: Place::of(membership, None),
            published: None,
            published_at: Duration::ZERO,
            begun: boottime(),
        }
    }

    pub(super) fn candidates(&self) -> &[(SocketAddr, From)] {
        &self.candidates
    }

    pub(super) const fn interfaces(&self) -> &BTreeMap<u32, Interface> {
        &self.known.interfaces
    }

    pub(super) fn lan(&self) -> &[IpAddr] {
        &self.lan
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// With what the cloud said.
    pub(super) fn handle_place(&mut self, place: Place) {
        self.place = place;
    }

    /// At the kernel.
    pub(super) fn look(&mut self) {
        self.handle_interfaces(interfaces());
    }

    /// In the background: a host may have a million routes.
    pub(super) fn look_again(&mut self) {
        if std::mem::replace(&mut self.is_looking, true) {
            self.must_look_again = true;
            return;
        }
        let done = self.finding.clone();
        tokio::task::spawn_blocking(move || {
            // Nobody waits for it once the daemon ends.
            let _told = done.blocking_send(Found::Interfaces(interfaces()));
        });
    }

    /// Whether the addresses of this host have changed.
    pub(super) fn handle_found(&mut self, found: Found) -> bool {
        match found {
            Found::Names(names) => {
                self.handle_names(names);
                false
            }
            Found::Interfaces(found) => {
                self.is_looking = false;
                if std::mem::take(&mut self.must_look_again) {
                    self.look_again();
                }
                self.handle_interfaces(found)
            }
        }
    }

    fn handle_interfaces(&mut self, found: io::Result<BTreeMap<u32, Interface>>) -> bool {
        match found {
            Ok(found) if found == self.known.interfaces => false,
            Ok(found) => {
                self.known.interfaces = found;
                self.choose();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the addresses of this host cannot be read");
                false
            }
        }
    }

    pub(super) fn handle_prefixes(&mut self, view: &View) {
        self.prefixes = Prefixes::of(view);
        self.without_prefix = without_prefix(view);
        self.choose();
    }

    pub(super) fn handle_reflected(&mut self, seen: Vec<SocketAddr>) {
        self.known.reflected = seen;
        self.choose();
    }

    /// A name that cannot be resolved now keeps what it had.
    fn handle_names(&mut self, resolved: Vec<(String, Result<Vec<SocketAddr>, String>)>) {
        self.unresolved.clear();
        for (name, result) in resolved {
            match result {
                Ok(addresses) => {
                    self.resolved.insert(name, addresses);
                }
                Err(why) => {
                    self.unresolved.insert(name, why);
                }
            }
        }
        let in_order = self.endpoints.iter();
        self.known.configured = in_order
            .filter_map(|name| self.resolved.get(name))
            .flatten()
            .copied()
            .collect();
        self.choose();
    }

    fn choose(&mut self) {
        self.candidates = addresses::candidates(&self.known, &self.prefixes);
        self.lan = lan_addresses(self.known.given_lan, &self.known.interfaces, &self.prefixes);
    }

    pub(super) fn sweep(&mut self, now: Duration) {
        if now >= self.next_resolution {
            self.next_resolution = now + RESOLVE;
            self.resolve();
        }
    }

    /// In the background; the answer comes as [`Found`].
    fn resolve(&self) {
        if self.endpoints.is_empty() {
            return;
        }
        let (names, done) = (self.endpoints.clone(), self.finding.clone());
        tokio::spawn(async move {
            let mut resolved = Vec::new();
            for name in names {
                let found = tokio::time::timeout(RESOLVE_WITHIN, look_up(&name)).await;
                let found = found.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                resolved.push((name, found));
            }
            // Nobody waits for it once the daemon ends.
            let _told = done.send(Found::Names(resolved)).await;
        });
    }

    /// What to publish now, if anything: new, and not sooner after the last than is good.
    pub(super) fn publication(&mut self, view: &View, now: Duration) -> Option<Publication> {
        let candidates: Vec<SocketAddr> = self
            .candidates
            .iter()
            .map(|(address, _)| *address)
            .collect();
        let publication = Publication {
            candidates,
            lan: self.lan.first().copied(),
            place: self.place.clone(),
        };
        let is_known = self.published.as_ref() == Some(&publication);
        let is_soon = self.published.is_some() && now.saturating_sub(self.published_at) < DAMPING;
        // Which of our addresses are inside our site only the ledger tells.
        let is_blind = view.standing == Standing::NoGrant && view.prefixes.is_empty();
        let waits_for_names = now.saturating_sub(self.begun) < NAMES_WAIT
            && !self.endpoints.is_empty()
            && self.resolved.is_empty()
            && self.unresolved.is_empty();
        if is_known || is_soon || is_blind || waits_for_names {
            return None;
        }
        self.published = Some(publication.clone());
        self.published_at = now;
        Some(publication)
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let unresolved = self.unresolved.iter().map(|(name, why)| Problem::new(
            format!("the endpoint {name} cannot be resolved: {why}"),
            "see to the name service, or give an address with --endpoint; it is tried again every minute",
        ));
        let foreign = self
            .known
            .configured
            .iter()
            .filter(|address| self.prefixes.is_anothers(address.ip()))
            .map(|address| Problem::new(
                format!(
                    "the endpoint {address} lies inside another site's prefix: nobody would use it"
                ),
                "give with --endpoint an address by which this gateway is reached from outside",
            ));
        let without_prefix = self.without_prefix.iter().cloned();
        without_prefix.chain(unresolved).chain(foreign).collect()
    }
}

async fn look_up(name: &str) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(name)
        .await
        .map_err(|error| error.to_string())?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    // Name servers turn them round; a record must not change for that.
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

impl Daemon {
    pub(super) fn complete(&self, publication: Publication) -> Presence {
        let local = self.node.node();
        Presence {
            wireguard: local.wireguard.public(),
            next_wireguard: None,
            candidates: publication.candidates,
            lan_address: publication.lan,
            region: publication.place.region,
            zone: publication.place.zone,
            capabilities: Capabilities::default(),
        }
    }
}
