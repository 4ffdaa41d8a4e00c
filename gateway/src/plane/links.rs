//! Which gateway's link lives where.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use proto::key::PublicKey;
use proto::name::Name;

use super::{NewLink, PlaneEvent};
use crate::data::link::{Endpoint, LinkShared, LinkSpec, Rules};
use crate::data::mailbox::{Command, News};
use crate::data::snapshot::{LinkPlace, Snapshot};
use crate::data::thread::Shared;
use crate::io::boottime;
use crate::io::udp::Local;
use crate::keys;
use crate::places::Places;
use crate::table::{Placed, Table};

struct Link {
    placed: Placed,
    key: keys::PublicKey,
    shared: Arc<LinkShared>,
}

pub(super) struct PlacedLinks {
    links: HashMap<PublicKey, Link>,
    by_key: HashMap<keys::PublicKey, LinkPlace>,
    by_place: HashMap<(u32, u32), PublicKey>,
    places: Places,
}

impl PlacedLinks {
    pub(super) fn new(threads: usize) -> PlacedLinks {
        PlacedLinks {
            links: HashMap::new(),
            by_key: HashMap::new(),
            by_place: HashMap::new(),
            places: Places::new(threads),
        }
    }

    pub(super) fn place_of(&self, identity: &PublicKey) -> Option<LinkPlace> {
        self.links.get(identity).map(|link| link.placed.place)
    }

    pub(super) fn place_of_key(&self, key: &keys::PublicKey) -> Option<LinkPlace> {
        self.by_key.get(key).copied()
    }

    /// Whose link lives there now; what came through an earlier one is nobody's.
    pub(super) fn at(&self, place: LinkPlace) -> Option<PublicKey> {
        self.by_place.get(&(place.thread, place.slot)).copied()
    }

    pub(super) fn news(&self, news: &News) -> Option<PlaneEvent> {
        match news {
            News::Session { place, from } => Some(PlaneEvent::Session {
                of: self.at(*place)?,
                source: from.remote,
            }),
            News::Source { place, from } => Some(PlaneEvent::Source {
                of: self.at(*place)?,
                source: from.remote,
            }),
        }
    }

    /// Whether there is a new link. Records that claim one key are left out before they come here;
    /// of two that do come, the first stays.
    pub(super) fn add(
        &mut self,
        new: NewLink,
        own: x25519::StaticSecret,
        limiter: Arc<RateLimiter>,
        shared: &Shared,
    ) -> bool {
        let key = keys::PublicKey(*new.wireguard.as_bytes());
        if self.links.contains_key(&new.identity) || self.by_key.contains_key(&key) {
            tracing::warn!(node = %new.identity, "its WireGuard key is in use already: not linked");
            return false;
        }
        let place = self.places.take(boottime());
        let spec = Box::new(LinkSpec {
            shared: new.shared.clone(),
            private_key: own,
            peer_key: key.to_x25519(),
            preshared_key: None,
            limiter,
            remote: None,
            keepalive: 0,
            rules: Rules::Mesh,
        });
        shared.mailboxes[place.thread as usize].command(Command::AddLink {
            slot: place.slot,
            spec,
        });
        self.by_key.insert(key, place);
        self.by_place
            .insert((place.thread, place.slot), new.identity);
        let placed = Placed {
            place,
            site: new.site,
            is_proven: false,
        };
        let link = Link {
            placed,
            key,
            shared: new.shared,
        };
        self.links.insert(new.identity, link);
        true
    }

    pub(super) fn handle_proven(&mut self, identity: &PublicKey) -> bool {
        let link = self.links.get_mut(identity);
        link.is_some_and(|link| !std::mem::replace(&mut link.placed.is_proven, true))
    }

    pub(super) fn remove(&mut self, identity: &PublicKey, shared: &Shared) -> bool {
        let Some(link) = self.links.remove(identity) else {
            return false;
        };
        let place = link.placed.place;
        self.by_key.remove(&link.key);
        self.by_place.remove(&(place.thread, place.slot));
        self.places.give_back(place, boottime());
        shared.mailboxes[place.thread as usize].command(Command::RemoveLink { slot: place.slot });
        true
    }

    pub(super) fn snapshot(&self, table: &Table, site: &Name) -> Snapshot {
        let links = self
            .links
            .iter()
            .map(|(identity, link)| (identity, &link.placed));
        Snapshot::mesh(table.compile(site, links))
    }

    pub(super) fn attach_queues(&mut self, shared: &Shared) {
        self.places.attach_queues(shared);
    }

    pub(super) fn queues_are_new(&mut self) {
        self.places.queues_are_new();
    }

    /// Forgets source addresses that are no longer the kernel's way to the other side.
    pub(super) fn check_sources(
        &self,
        shared: &Shared,
        still_used: impl Fn(IpAddr, Local) -> bool,
    ) {
        for link in self.links.values() {
            let Some(Endpoint {
                remote,
                local: Some(local),
            }) = link.shared.endpoint()
            else {
                continue;
            };
            if !still_used(remote.ip(), local) {
                let place = link.placed.place;
                shared.mailboxes[place.thread as usize]
                    .command(Command::ForgetSource { slot: place.slot });
            }
        }
    }
}
