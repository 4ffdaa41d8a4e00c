//! Who is wanted, which brokers there are, and by which of them each goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use proto::key::PublicKey;
use proto::relay::rank;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant, sleep_until};

use super::line::Line;
use super::outlet::Outlet;
use super::place::{News, Place, Wanted};
use super::{Event, Options};
use crate::back_off::Chance;
use crate::follow::View;

/// Brokers that are asked; a token names no more.
const MAX_PLACES: usize = 8;
const MAX_NEWS: usize = 64;
/// A socket that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// By channel: what comes by any broker finds its socket here.
#[derive(Default)]
pub(super) struct Lines(RwLock<BTreeMap<u32, Arc<Line>>>);

impl Lines {
    pub(super) fn deliver(&self, channel: u32, payload: &[u8]) {
        let lines = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&channel) {
            line.deliver(payload);
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, Arc<Line>>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

pub(super) struct Hub {
    options: Arc<Options>,
    chance: Chance,
    events: mpsc::Sender<Event>,
    lines: Arc<Lines>,
    peers: BTreeMap<PublicKey, Peer>,
    places: BTreeMap<PublicKey, Met>,
    /// Never given to another peer, so that what is late reaches nobody else.
    next_channel: u32,
    wanted: watch::Sender<Wanted>,
    news: mpsc::Sender<(PublicKey, News)>,
    heard: mpsc::Receiver<(PublicKey, News)>,
    retry_at: Option<Instant>,
}

/// Somebody who is wanted.
struct Peer {
    line: Arc<Line>,
    task: AbortHandle,
    /// The broker by which it goes.
    by: Option<PublicKey>,
    told: Option<String>,
}

/// A broker where others may be met.
struct Met {
    outlet: Arc<Outlet>,
    task: AbortHandle,
    open: BTreeSet<u32>,
    lost: Option<String>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Met {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hub {
    pub(super) fn new(options: Options, seed: u64, events: mpsc::Sender<Event>) -> Hub {
        let (news, heard) = mpsc::channel(MAX_NEWS);
        Hub {
            options: Arc::new(options),
            chance: Chance::new(seed),
            events,
            lines: Arc::default(),
            peers: BTreeMap::new(),
            places: BTreeMap::new(),
            next_channel: 1,
            wanted: watch::Sender::new(Arc::default()),
            news,
            heard,
            retry_at: None,
        }
    }

    /// Until the client is dropped.
    pub(super) async fn run(mut self, mut wanted: watch::Receiver<BTreeSet<PublicKey>>) {
        let mut view = self.options.view.clone();
        self.handle_brokers(&view.borrow_and_update().clone());
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = wanted.borrow_and_update().clone();
                    self.handle_wanted(&now).await;
                }
                // Without its sender the brokers stay those that were known.
                Ok(()) = view.changed() => {
                    let now = view.borrow_and_update().clone();
                    self.handle_brokers(&now);
                }
                Some((broker, news)) = self.heard.recv() => self.handle_news(broker, news),
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    let now = wanted.borrow().clone();
                    self.handle_wanted(&now).await;
                }
            }
            self.choose().await;
        }
    }

    async fn handle_wanted(&mut self, wanted: &BTreeSet<PublicKey>) {
        self.retry_at = None;
        self.peers.retain(|peer, _| wanted.contains(peer));
        for peer in wanted {
            if !self.peers.contains_key(peer) {
                self.open_line(*peer).await;
            }
        }
        let lines: BTreeMap<u32, Arc<Line>> = self
            .peers
            .values()
            .map(|peer| (peer.line.channel, Arc::clone(&peer.line)))
            .collect();
        self.lines.change(|held| *held = lines);
        let asked = self.peers.iter();
        let asked = asked.map(|(key, peer)| (peer.line.channel, *key.as_bytes()));
        let asked: Vec<_> = asked.collect();
        self.wanted.send_if_modified(|held| {
            let changed = **held != asked;
            if changed {
                *held = Arc::new(asked);
            }
            changed
        });
    }

    async fn open_line(&mut self, peer: PublicKey) {
        match Line::open(self.options.tunnel, self.next_channel).await {
            Ok(line) => {
                self.next_channel = self.next_channel.wrapping_add(1);
                let line = Arc::new(line);
                let task = tokio::spawn(Arc::clone(&line).run()).abort_handle();
                let (by, told) = (None, None);
                self.peers.insert(
                    peer,
                    Peer {
                        line,
                        task,
                        by,
                        told,
                    },
                );
            }
            Err(error) => {
                self.retry_at = Some(Instant::now() + AGAIN);
                let why = format!("no local socket for a relayed path: {error}");
                let _told = self.events.send(Event::Lost { peer, why }).await;
            }
        }
    }

    fn handle_brokers(&mut self, view: &View) {
        let mut named: Vec<PublicKey> = view.contacts.iter().map(|contact| contact.key).collect();
        named.sort_unstable();
        named.dedup();
        named.truncate(MAX_PLACES);
        self.places.retain(|broker, _| named.contains(broker));
        for broker in named {
            if self.places.contains_key(&broker) {
                continue;
            }
            let outlet = Arc::new(Outlet::default());
            let place = Place {
                broker,
                options: Arc::clone(&self.options),
                lines: Arc::clone(&self.lines),
                outlet: Arc::clone(&outlet),
                wanted: self.wanted.subscribe(),
                news: self.news.clone(),
                seed: self.chance.draw(),
            };
            let met = Met {
                outlet,
                task: tokio::spawn(place.run()).abort_handle(),
                open: BTreeSet::new(),
                lost: None,
            };
            self.places.insert(broker, met);
        }
    }

    fn handle_news(&mut self, broker: PublicKey, news: News) {
        let Some(met) = self.places.get_mut(&broker) else {
            return;
        };
        match news {
            News::Open(channels) => {
                met.open = channels.into_iter().collect();
                met.lost = None;
            }
            News::Lost(why) => {
                met.open.clear();
                met.lost = Some(why);
            }
        }
    }

    /// By which broker each goes now, and says what has changed.
    async fn choose(&mut self) {
        let own = self.options.local.identity_key();
        let mut events = Vec::new();
        for (key, peer) in &mut self.peers {
            let channel = peer.line.channel;
            let open = self.places.iter();
            let open = open.filter(|(_, met)| met.open.contains(&channel));
            let best = open.min_by_key(|(broker, _)| rank(&own, key, broker));
            let by = best.map(|(broker, _)| *broker);
            if by != peer.by {
                let outlet = best.map(|(_, met)| Arc::clone(&met.outlet));
                peer.line.set_outlet(outlet);
                if peer.by.is_none() {
                    peer.told = None;
                    let address = peer.line.address();
                    events.push(Event::Ready {
                        peer: *key,
                        address,
                    });
                }
            }
            let was = std::mem::replace(&mut peer.by, by);
            let why = match (was, by) {
                (Some(_), None) => Some(
                    reasons(&self.places)
                        .unwrap_or_else(|| "the other side is no longer at the relay".to_owned()),
                ),
                (None, None) => reasons(&self.places),
                (_, Some(_)) => None,
            };
            if let Some(why) = why
                && (was.is_some() || peer.told.is_none())
            {
                peer.told = Some(why.clone());
                events.push(Event::Lost { peer: *key, why });
            }
        }
        for event in events {
            let _told = self.events.send(event).await;
        }
    }
}

/// Why there is none, once every broker has been tried in vain.
fn reasons(places: &BTreeMap<PublicKey, Met>) -> Option<String> {
    if places.is_empty() {
        return Some("no broker is known that could relay".to_owned());
    }
    let lost: Option<Vec<&str>> = places.values().map(|met| met.lost.as_deref()).collect();
    Some(lost?.join("; "))
}
