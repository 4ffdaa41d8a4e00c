//! Where this node is in its site's network: its LAN addresses, and who is on the same segment.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use node::addresses::{Prefixes, lan_addresses};
use node::follow::View;
use node::membership::without_prefix;
use node::netlink::interfaces::{Interface, interfaces};
use node::status::Problem;
use tokio::sync::mpsc;

/// Between two looks, however often something changes: a host may have a million routes.
const APART: Duration = Duration::from_secs(2);
/// Routes are not listened to, and they say which address leads out.
const ROUND: Duration = Duration::from_secs(60);

pub(super) type Found = io::Result<BTreeMap<u32, Interface>>;

pub(super) struct Place {
    given: Option<IpAddr>,
    interfaces: BTreeMap<u32, Interface>,
    prefixes: Prefixes,
    /// Nothing is known of the mesh yet, or the site has no prefix: there is no telling where its
    /// network is.
    blind: Option<Vec<Problem>>,
    lan: Vec<IpAddr>,
    finding: mpsc::Sender<Found>,
    /// Looks happen there.
    background: tokio::runtime::Handle,
    is_looking: bool,
    next: Duration,
    last: Duration,
}

impl Place {
    pub(super) fn new(
        given: Option<IpAddr>,
        (finding, background): (mpsc::Sender<Found>, tokio::runtime::Handle),
        now: Duration,
    ) -> Place {
        let mut place = Place {
            given,
            interfaces: BTreeMap::new(),
            prefixes: Prefixes::default(),
            blind: Some(Vec::new()),
            lan: Vec::new(),
            finding,
            background,
            is_looking: false,
            next: now + ROUND,
            last: now,
        };
        place.handle_found(interfaces());
        place
    }

    pub(super) fn lan(&self) -> &[IpAddr] {
        &self.lan
    }

    /// The one that others know: of the first family there is.
    pub(super) fn own(&self) -> Option<IpAddr> {
        self.lan.first().copied()
    }

    pub(super) fn other(&self) -> Option<IpAddr> {
        self.lan.get(1).copied()
    }

    /// Whether there is an address to speak with it from, if there is any.
    pub(super) fn has_family_of(&self, other: IpAddr) -> bool {
        let mut all = self.lan.iter();
        self.lan.is_empty() || all.any(|own| own.is_ipv4() == other.is_ipv4())
    }

    /// Whether it is reached without a router.
    pub(super) fn is_near(&self, other: IpAddr) -> bool {
        let fits = |own: &&IpAddr| own.is_ipv4() == other.is_ipv4();
        let Some(own) = self.lan.iter().find(fits) else {
            return false;
        };
        let mut all = self.interfaces.values();
        all.any(|one| one.is_near(*own, other))
    }

    /// Whether there is anything to ask from.
    pub(super) fn has_own(&self) -> bool {
        self.own().is_some_and(|own| self.is_own(own))
    }

    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        let mut all = self.interfaces.values();
        all.any(|one| one.lengths.contains_key(&address))
    }

    pub(super) fn handle_prefixes(&mut self, view: &View) -> bool {
        self.prefixes = Prefixes::of(view);
        let without = without_prefix(view);
        let is_blind = without.is_some() || self.prefixes.own.is_empty();
        self.blind = is_blind.then(|| without.into_iter().collect());
        self.choose()
    }

    /// Links or addresses of this host have changed.
    pub(super) fn handle_change(&mut self, now: Duration) {
        self.next = self.next.min(now.max(self.last + APART));
    }

    /// `None` while a look is under way.
    pub(super) fn due(&self) -> Option<Duration> {
        (!self.is_looking).then_some(self.next)
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        if now < self.next || self.is_looking {
            return;
        }
        (self.is_looking, self.last, self.next) = (true, now, now + ROUND);
        let done = self.finding.clone();
        self.background.spawn_blocking(move || {
            // Nobody waits for it once the daemon ends.
            let _told = done.blocking_send(interfaces());
        });
    }

    /// Whether it made a difference.
    pub(super) fn handle_found(&mut self, found: Found) -> bool {
        self.is_looking = false;
        match found {
            Ok(found) if found == self.interfaces => false,
            Ok(found) => {
                self.interfaces = found;
                self.choose();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the addresses of this host cannot be read");
                false
            }
        }
    }

    fn choose(&mut self) -> bool {
        let lan = lan_addresses(self.given, &self.interfaces, &self.prefixes);
        let is_other = lan != self.lan;
        self.lan = lan;
        is_other
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        if let Some(blind) = &self.blind {
            return blind.clone();
        }
        let Some(own) = self.own() else {
            return vec![Problem {
                what: "this node has no address in its site's network".to_owned(),
                next: "see `ip address`: an interface that is up needs an address inside a prefix of the site; name it with --address if it is not found".to_owned(),
                stops: true,
            }];
        };
        if !self.is_own(own) {
            return vec![Problem {
                what: format!("{own}, given with --address, is on no interface of this node"),
                next: "give an address that `ip address` shows on an interface that is up, or leave --address out".to_owned(),
                stops: true,
            }];
        }
        let is_inside = self.prefixes.is_own(own);
        let outside = (!is_inside).then(|| Problem {
            what: format!(
                "{own}, this node's address, is in no prefix of its site: other sites take nothing from it"
            ),
            next: format!(
                "grant the prefix where the authority is (`causeway site add-prefix SITE PREFIX`), or name an address inside one with --address; taken was {own}"
            ),
            stops: true,
        });
        outside.into_iter().collect()
    }

    /// Several addresses that would have done.
    pub(super) fn remark(&self) -> Option<Problem> {
        let own = self.own().filter(|_| self.given.is_none())?;
        let all = self.interfaces.values().flat_map(|one| one.lengths.keys());
        let others = all.filter(|one| {
            **one != own && one.is_ipv4() == own.is_ipv4() && self.prefixes.is_own(**one)
        });
        let others: Vec<String> = others.map(IpAddr::to_string).collect();
        (!others.is_empty()).then(|| {
            Problem::new(
                format!(
                    "{own} was taken as this node's address in its site; {} would do as well",
                    others.join(", ")
                ),
                "name the one that is meant with --address",
            )
        })
    }
}
