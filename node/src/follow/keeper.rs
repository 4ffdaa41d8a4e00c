//! The one place that has the register, the cache, and what is shown of both. Conversations take
//! turns with it; whoever has it makes durable what it has taken before it lets go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::entry::Role;
use proto::ledger::Standing;
use proto::record::Presence;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::cache_file::CacheFile;
use super::register::{Handed, Register, Wanted};
use super::view::{BrokerState, Problem, ReflectorSession, StoreView, View};
use crate::contacts::{self, contacts};
use crate::state::LocalNode;
use crate::stores::{StoreName, stores};

pub(super) struct Keeper {
    local: Arc<LocalNode>,
    role: Role,
    pub(super) register: Register,
    pub(super) cache: CacheFile,
    presence: Option<Presence>,
    stores: BTreeMap<StoreName, Touch>,
    /// There is no number for the next record.
    exhausted: bool,
    damaged: usize,
    /// When a record was last signed because a higher number of ours was about.
    pub(super) raised: Option<Instant>,
    /// Up to when the time that stores could be reached has been counted.
    counted: Instant,
    view: watch::Sender<Arc<View>>,
    reflectors: BTreeMap<StoreName, ReflectorSession>,
    reflector: watch::Sender<Option<ReflectorSession>>,
    news: watch::Sender<News>,
}

/// What a follower starts with.
pub(super) struct Start {
    pub(super) local: Arc<LocalNode>,
    pub(super) role: Role,
    pub(super) register: Register,
    pub(super) cache: CacheFile,
    /// Lines of the cache that were of no use.
    pub(super) damaged: usize,
}

/// What concerns every conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) stopped: bool,
    /// Counts what this node has wanted to say of itself.
    pub(super) own: u64,
    /// How many entries the ledger has.
    pub(super) ledger: usize,
}

/// What the brokers of one store are to us.
pub(super) struct Touch {
    pub(super) state: BrokerState,
    /// With this node: not the mesh's.
    pub(super) own_problem: Option<Problem>,
    pub(super) clock_problem: Option<Problem>,
}

impl Keeper {
    pub(super) fn new(start: Start, news: watch::Sender<News>) -> Keeper {
        let mut keeper = Keeper {
            // Replaced at once: a channel needs a value, and the value needs all the rest.
            view: watch::Sender::new(Arc::new(View::empty(&start.local))),
            reflectors: BTreeMap::new(),
            reflector: watch::Sender::new(None),
            local: start.local,
            role: start.role,
            register: start.register,
            cache: start.cache,
            damaged: start.damaged,
            presence: None,
            stores: BTreeMap::new(),
            exhausted: false,
            raised: None,
            counted: Instant::now(),
            news,
        };
        keeper.handle_stores(&keeper.known_stores());
        keeper.show();
        keeper
    }

    pub(super) fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    pub(super) fn reflector(&self) -> watch::Receiver<Option<ReflectorSession>> {
        self.reflector.subscribe()
    }

    /// A broker of this store tells outer addresses, or no longer does. One serves; it is left only
    /// when it is lost.
    pub(super) fn handle_reflector(&mut self, store: StoreName, session: Option<ReflectorSession>) {
        match session {
            Some(session) => self.reflectors.insert(store, session),
            None => self.reflectors.remove(&store),
        };
        self.reflector.send_if_modified(|shown| {
            let stays = shown
                .as_ref()
                .filter(|shown| self.reflectors.values().any(|known| known == *shown));
            let next = stays.or_else(|| self.reflectors.values().next()).cloned();
            let changed = *shown != next;
            *shown = next;
            changed
        });
    }

    /// What other gateways know; as much of it as others may wait for.
    pub(super) async fn handle_handed(&mut self, handed: &mut Handed, again: Duration) {
        self.register.handle_handed(handed, crate::now());
        self.keep().await;
        let now = Instant::now();
        let may_raise = self.raised.is_none_or(|raised| raised + again <= now);
        if self.register.own.is_behind() && may_raise {
            self.raised = Some(now);
            self.sign().await;
        }
        self.show();
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Of all brokers of token and ledger.
    pub(super) fn known_stores(&self) -> BTreeSet<StoreName> {
        let charter = self.register.mesh.charter();
        stores(&self.local.membership.brokers, charter)
    }

    /// Gateways that may have a way to brokers that this node lacks: the one it joined through, and
    /// those of its site. A gateway has ways of its own, unless it joined through another.
    pub(super) fn gateways(&self) -> Vec<String> {
        let membership = &self.local.membership;
        let mut gateways: Vec<String> = membership.gateway().into_iter().collect();
        if self.role == Role::Gateway && gateways.is_empty() {
            return gateways;
        }
        for (identity, peer) in &self.register.shown().peers {
            let record = &peer.node.record;
            let is_one = record.role == Role::Gateway && record.site == *membership.site();
            let is_other = *identity != self.local.identity_key();
            if let Some(address) = peer.lan_address.filter(|_| is_one && is_other) {
                let gateway = contacts::at(address);
                if !gateways.contains(&gateway) {
                    gateways.push(gateway);
                }
            }
        }
        gateways
    }

    /// Which stores there are to follow from now on.
    pub(super) fn handle_stores(&mut self, known: &BTreeSet<StoreName>) {
        if self.stores.keys().eq(known) {
            return;
        }
        self.stores.retain(|store, _| known.contains(store));
        self.register.retain_stores(known);
        for store in known {
            let has_some = self.register.last_sync_with(*store).is_some();
            self.stores.entry(*store).or_insert_with(|| Touch {
                state: BrokerState::lost(Vec::new(), has_some),
                own_problem: None,
                clock_problem: None,
            });
        }
        self.show();
    }

    /// `None` once the last broker of a store is removed.
    pub(super) fn touch(&mut self, store: StoreName) -> Option<&mut Touch> {
        self.stores.get_mut(&store)
    }

    pub(super) fn is_connected(&self, store: StoreName) -> bool {
        let touch = self.stores.get(&store);
        touch.is_some_and(|touch| matches!(touch.state, BrokerState::Connected { .. }))
    }

    /// `way` names the broker, and the gateway in between if there is one.
    pub(super) fn handle_connected(&mut self, store: StoreName, way: &str) {
        if let Some(touch) = self.touch(store) {
            touch.state = BrokerState::Connected {
                address: way.to_owned(),
            };
        }
        self.show();
    }

    pub(super) fn handle_disconnected(&mut self, store: StoreName, reasons: Vec<String>) {
        let has_some = self.register.last_sync_with(store).is_some();
        if let Some(touch) = self.touch(store) {
            touch.state = BrokerState::lost(reasons, has_some);
        }
        self.show();
    }

    /// A record is signed and durable from here on; the conversations send it.
    pub(super) async fn handle_presence(&mut self, presence: Presence) {
        self.presence = Some(presence);
        self.sign().await;
        self.news.send_modify(|news| news.own += 1);
        self.show();
    }

    /// Whether the record that says what is wanted is durable.
    pub(super) async fn sign(&mut self) -> bool {
        let Some(presence) = &self.presence else {
            return false;
        };
        let wanted = Wanted {
            presence,
            role: self.role,
            now: crate::now(),
        };
        let former = self.register.own.member().cloned();
        self.exhausted = !self.register.sign_own(&self.local, &wanted);
        if self.exhausted {
            return false;
        }
        if self.register.own.member() != former.as_ref() {
            self.news.send_modify(|news| news.own += 1);
        }
        self.keep().await
    }

    pub(super) fn has_presence(&self) -> bool {
        self.presence.is_some()
    }

    /// Makes durable what was taken; whether it could.
    pub(super) async fn keep(&mut self) -> bool {
        self.cache.keep(&mut self.register).await
    }

    pub(super) async fn tidy(&mut self) {
        self.cache.tidy(&self.register).await;
    }

    /// Counts the time since the last time. To be called before a store can be reached or no
    /// longer can, and now and then.
    pub(super) async fn count_reachable(&mut self) {
        let now = Instant::now();
        self.register.handle_reachable(now - self.counted);
        self.counted = now;
        self.keep().await;
    }

    pub(super) fn show(&self) {
        let membership = &self.local.membership;
        let charter = self.register.mesh.charter();
        let shown = self.register.shown().clone();
        let stores = self.store_views();
        let broker = self.summary(&stores);
        let view = View {
            mesh: membership.mesh,
            standing: self.standing(),
            site: membership.site().clone(),
            node: membership.node.clone(),
            identity: self.local.identity_key(),
            problems: self.problems(&shown.problems, &broker),
            peers: shown.peers,
            prefixes: shown.prefixes,
            cut_off: shown.cut_off,
            contacts: Arc::new(contacts(&membership.brokers, charter)),
            brokers: shown.brokers,
            heads: shown.heads,
            knowledge: shown.knowledge,
            broker,
            stores,
            last_sync: self.register.last_sync,
            refused: self.register.refused.clone(),
        };
        self.view.send_replace(Arc::new(view));
        let ledger = self.register.mesh.ledger().len();
        self.news.send_if_modified(|news| {
            let grown = news.ledger != ledger;
            news.ledger = ledger;
            grown
        });
    }

    fn store_views(&self) -> Vec<StoreView> {
        let view = |(store, touch): (&StoreName, &Touch)| StoreView {
            store: *store,
            state: touch.state.clone(),
            last_sync: self.register.last_sync_with(*store),
        };
        self.stores.iter().map(view).collect()
    }

    fn summary(&self, stores: &[StoreView]) -> BrokerState {
        let is_known = !self.register.mesh.ledger().is_empty();
        if stores.is_empty() {
            let reason = "neither the token nor the ledger names a broker";
            return BrokerState::lost(vec![reason.to_owned()], is_known);
        }
        BrokerState::summary(stores, is_known)
    }

    fn standing(&self) -> Standing {
        let grant = self.local.membership.grant_entry().hash();
        let charter = self.register.mesh.charter();
        charter.standing(&grant, &self.local.identity_key())
    }

    fn problems(&self, of_mesh: &[proto::mesh::Problem], broker: &BrokerState) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.exhausted {
            problems.push(Problem::SequenceExhausted);
        }
        for touch in self.stores.values() {
            problems.extend(touch.own_problem.clone());
        }
        let standing = self.standing();
        if standing != Standing::Good {
            problems.push(Problem::Standing(standing));
        }
        for touch in self.stores.values() {
            problems.extend(touch.clock_problem.clone());
        }
        if matches!(broker, BrokerState::Connected { .. }) {
            problems.extend(self.lost_stores());
        }
        if let Some(why) = &self.cache.failed {
            problems.push(Problem::CacheUnwritable { why: why.clone() });
        }
        if self.damaged > 0 {
            problems.push(Problem::CacheDamaged {
                path: self.cache.path.clone(),
                lines: self.damaged,
            });
        }
        match self.register.waiting_entries() {
            0 => {}
            count => problems.push(Problem::EntriesWithheld { count }),
        }
        problems.extend(of_mesh.iter().cloned().map(Problem::Mesh));
        problems
    }

    fn lost_stores(&self) -> impl Iterator<Item = Problem> {
        let lost = self.stores.iter();
        let lost = lost.filter(|(_, touch)| !touch.state.reasons().is_empty());
        lost.map(|(store, touch)| Problem::StoreLost {
            store: *store,
            reasons: touch.state.reasons().to_vec(),
        })
    }
}
