//! Which gateway's link lives where.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use proto::key::PublicKey;
use proto::name::Name;

use super::{NewLink, PlaneEvent};
use crate::data::link::{Endpoint, LinkShared, LinkSpec, Rules};
use crate::data::mailbox::{Command, News};
use crate::data::snapshot::{LinkPlace, Snapshot};
use crate::data::thread::Shared;
use crate::io::udp::Local;
use crate::keys;
use crate::places::Places;
use crate::table::{Placed, Table};

/// Time for a session with whoever holds a key that others claim too.
const SESSION_WITHIN: Duration = Duration::from_secs(5);
/// Time for the proof, once there is a session: it is asked for every 200 ms.
const PROOF_WITHIN: Duration = Duration::from_secs(2);

/// Our side of every tunnel.
pub(super) struct OwnKey {
    pub(super) private: x25519::StaticSecret,
    pub(super) limiter: Arc<RateLimiter>,
}

struct Link {
    key: keys::PublicKey,
    site: Name,
    shared: Arc<LinkShared>,
    own: OwnKey,
    /// Whether its tunnel is its own.
    is_proven: bool,
    /// `None` while another that claims its key has the place.
    placed: Option<Placed>,
    said: Said,
}

/// What the daemon says once, and a link that gets its place later has to know.
#[derive(Default)]
struct Said {
    initiate: Vec<SocketAddr>,
    path: Option<SocketAddr>,
    mtu: Option<u16>,
}

/// Who else claims a key. A record may name another's key, and before somebody has proven that the
/// tunnel is his, nobody can tell whose it is: so they take turns.
#[derive(Default)]
struct Contest {
    waiting: VecDeque<PublicKey>,
    /// When a holder that has not proven itself gives way.
    until: Duration,
    has_session: bool,
    /// Where whoever has the private key was seen, whatever its name.
    seen: Option<SocketAddr>,
}

pub(super) struct PlacedLinks {
    links: HashMap<PublicKey, Link>,
    /// Of those that claim a key, the one that has the place.
    holders: HashMap<keys::PublicKey, PublicKey>,
    /// Keys that more than one claims.
    contests: HashMap<keys::PublicKey, Contest>,
    by_place: HashMap<(u32, u32), PublicKey>,
    places: Places,
}

impl PlacedLinks {
    pub(super) fn new(threads: usize) -> PlacedLinks {
        PlacedLinks {
            links: HashMap::new(),
            holders: HashMap::new(),
            contests: HashMap::new(),
            by_place: HashMap::new(),
            places: Places::new(threads),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    pub(super) fn place_of(&self, identity: &PublicKey) -> Option<LinkPlace> {
        let placed = self.links.get(identity)?.placed.as_ref();
        placed.map(|placed| placed.place)
    }

    pub(super) fn place_of_key(&self, key: &keys::PublicKey) -> Option<LinkPlace> {
        self.place_of(self.holders.get(key)?)
    }

    /// Whose link lives there now; what came through an earlier one is nobody's.
    pub(super) fn at(&self, place: LinkPlace) -> Option<PublicKey> {
        self.by_place.get(&(place.thread, place.slot)).copied()
    }

    pub(super) fn handle_news(&mut self, news: &News, now: Duration) -> Option<PlaneEvent> {
        match news {
            News::Session { place, from } => {
                let of = self.at(*place)?;
                self.handle_session(&of, from.remote, now);
                Some(PlaneEvent::Session {
                    of,
                    source: from.remote,
                })
            }
            News::Source { place, from } => Some(PlaneEvent::Source {
                of: self.at(*place)?,
                source: from.remote,
            }),
        }
    }

    fn handle_session(&mut self, of: &PublicKey, source: SocketAddr, now: Duration) {
        let key = self.links.get(of).map(|link| link.key);
        let Some(contest) = key.and_then(|key| self.contests.get_mut(&key)) else {
            return;
        };
        contest.seen = Some(source);
        // Only the first one: a turn must end, however often sessions begin anew.
        if !std::mem::replace(&mut contest.has_session, true) {
            contest.until = now + PROOF_WITHIN;
        }
    }

    /// Whether there is a new link that has a place. Of several that claim one key one has it.
    pub(super) fn add(
        &mut self,
        new: NewLink,
        own: OwnKey,
        shared: &Shared,
        now: Duration,
    ) -> bool {
        if self.links.contains_key(&new.identity) {
            return false;
        }
        let key = keys::PublicKey(*new.wireguard.as_bytes());
        let link = Link {
            key,
            site: new.site,
            shared: new.shared,
            own,
            is_proven: false,
            placed: None,
            said: Said::default(),
        };
        self.links.insert(new.identity, link);
        let Some(holder) = self.holders.get(&key) else {
            self.place(new.identity, shared, now);
            return true;
        };
        tracing::warn!(node = %new.identity, other = %holder, "both claim the same WireGuard key: whoever proves that it is its own is linked");
        let endpoint = self
            .links
            .get(holder)
            .and_then(|link| link.shared.endpoint());
        let contest = self.contests.entry(key).or_insert_with(|| Contest {
            until: now + SESSION_WITHIN,
            seen: endpoint.map(|endpoint| endpoint.remote),
            ..Contest::default()
        });
        contest.waiting.push_back(new.identity);
        false
    }

    /// Whether that changes what passes. One that had to give way just before its proof came gets
    /// its place back from whoever has not proven anything.
    pub(super) fn handle_proven(
        &mut self,
        identity: &PublicKey,
        shared: &Shared,
        now: Duration,
    ) -> bool {
        let Some(link) = self.links.get_mut(identity) else {
            return false;
        };
        link.is_proven = true;
        if let Some(placed) = &mut link.placed {
            return !std::mem::replace(&mut placed.is_proven, true);
        }
        let key = link.key;
        let may_take = !self.is_settled(&key);
        if may_take {
            self.give_way(key, *identity, shared, now);
        }
        may_take
    }

    /// Whether its holder has proven that it is its own.
    fn is_settled(&self, key: &keys::PublicKey) -> bool {
        let holder = self.holders.get(key);
        let link = holder.and_then(|holder| self.links.get(holder));
        link.is_some_and(|link| link.is_proven)
    }

    /// When the next holder gives way.
    pub(super) fn due(&self) -> Option<Duration> {
        let open = self.contests.iter();
        let open = open.filter(|(key, _)| !self.is_settled(key));
        open.map(|(_, contest)| contest.until).min()
    }

    /// Whether a place has changed hands.
    pub(super) fn take_turns(&mut self, shared: &Shared, now: Duration) -> bool {
        let open = self.contests.iter();
        let over = open.filter(|(key, contest)| now >= contest.until && !self.is_settled(key));
        let over: Vec<_> = over
            .filter_map(|(key, contest)| Some((*key, *contest.waiting.front()?)))
            .collect();
        for (key, next) in &over {
            self.give_way(*key, *next, shared, now);
        }
        !over.is_empty()
    }

    fn give_way(&mut self, key: keys::PublicKey, to: PublicKey, shared: &Shared, now: Duration) {
        let holder = self.holders.get(&key).copied();
        if let Some(holder) = holder {
            self.displace(&holder, shared, now);
        }
        if let Some(contest) = self.contests.get_mut(&key) {
            contest.waiting.retain(|waiting| *waiting != to);
            contest.waiting.extend(holder);
        }
        self.place(to, shared, now);
    }

    fn place(&mut self, identity: PublicKey, shared: &Shared, now: Duration) {
        let Some(link) = self.links.get_mut(&identity) else {
            return;
        };
        let place = self.places.take(now);
        let spec = Box::new(LinkSpec {
            shared: link.shared.clone(),
            private_key: link.own.private.clone(),
            peer_key: link.key.to_x25519(),
            preshared_key: None,
            limiter: link.own.limiter.clone(),
            remote: None,
            keepalive: 0,
            rules: Rules::Mesh,
        });
        let (slot, mailbox) = (place.slot, &shared.mailboxes[place.thread as usize]);
        mailbox.command(Command::AddLink { slot, spec });
        self.holders.insert(link.key, identity);
        self.by_place.insert((place.thread, slot), identity);
        link.placed = Some(Placed {
            place,
            site: link.site.clone(),
            is_proven: link.is_proven,
        });
        if let Some(remote) = link.said.path {
            mailbox.command(Command::Endpoint { slot, remote });
        }
        if let Some(mtu) = link.said.mtu {
            mailbox.command(Command::LinkMtu { slot, mtu });
        }
        let Some(contest) = self.contests.get_mut(&link.key) else {
            return;
        };
        (contest.until, contest.has_session) = (now + SESSION_WITHIN, false);
        // The daemon may not want to try again before this turn is over.
        let mut to = link.said.initiate.clone();
        to.extend(contest.seen.filter(|seen| !to.contains(seen)));
        if !to.is_empty() {
            mailbox.command(Command::Initiate { slot, to });
        }
    }

    /// Whether it had a place.
    fn displace(&mut self, identity: &PublicKey, shared: &Shared, now: Duration) -> bool {
        let link = self.links.get_mut(identity);
        let Some((key, placed)) = link.and_then(|link| Some((link.key, link.placed.take()?)))
        else {
            return false;
        };
        let place = placed.place;
        self.holders.remove(&key);
        self.by_place.remove(&(place.thread, place.slot));
        self.places.give_back(place, now);
        shared.mailboxes[place.thread as usize].command(Command::RemoveLink { slot: place.slot });
        true
    }

    /// Whether a place is free now, or another's.
    pub(super) fn remove(&mut self, identity: &PublicKey, shared: &Shared, now: Duration) -> bool {
        let had_place = self.displace(identity, shared, now);
        let Some(link) = self.links.remove(identity) else {
            return false;
        };
        let Some(contest) = self.contests.get_mut(&link.key) else {
            return had_place;
        };
        contest.waiting.retain(|waiting| waiting != identity);
        if had_place {
            let is_proven = |of: &PublicKey| self.links.get(of).is_some_and(|link| link.is_proven);
            let proven = contest.waiting.iter().position(is_proven);
            let next = contest.waiting.remove(proven.unwrap_or(0));
            if let Some(next) = next {
                self.place(next, shared, now);
            }
        }
        let is_alone = |contest: &Contest| contest.waiting.is_empty();
        if self.contests.get(&link.key).is_some_and(is_alone) {
            self.contests.remove(&link.key);
        }
        had_place
    }

    pub(super) fn initiate(&mut self, to: &PublicKey, addresses: &[SocketAddr]) {
        if let Some(link) = self.links.get_mut(to) {
            addresses.clone_into(&mut link.said.initiate);
        }
    }

    pub(super) fn use_path(&mut self, of: &PublicKey, address: SocketAddr) {
        if let Some(link) = self.links.get_mut(of) {
            link.said.path = Some(address);
        }
    }

    pub(super) fn use_mtu(&mut self, of: &PublicKey, mtu: u16) {
        if let Some(link) = self.links.get_mut(of) {
            link.said.mtu = Some(mtu);
        }
    }

    pub(super) fn snapshot(&self, table: &Table, site: &Name) -> Snapshot {
        let links = self
            .links
            .iter()
            .filter_map(|(identity, link)| Some((identity, link.placed.as_ref()?)));
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
                let Some(Placed { place, .. }) = link.placed else {
                    continue;
                };
                shared.mailboxes[place.thread as usize]
                    .command(Command::ForgetSource { slot: place.slot });
            }
        }
    }
}

#[cfg(test)]
mod tests;
