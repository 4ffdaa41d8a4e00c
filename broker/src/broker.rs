//! What all sessions of one broker share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::entry::StoreId;
use proto::key::{Hash, PublicKey, SigningKey};
use proto::ledger::Standing;
use proto::life;
use proto::message::Refusal;
use tokio::sync::{Semaphore, watch};
use tracing::{error, info, warn};

use crate::directory::Directory;
use crate::gate::Source;
use crate::http::Shown;
use crate::metrics::Metrics;
use crate::pace::{Attempts, Paces};
use crate::reflector::Askers;
use crate::register::Register;
use crate::relay::Relay;
use crate::seats::Seats;
use crate::store::{Doing, Heard, Store, StoreError};

/// Shorter than callers wait for a reply, so that they hear why.
const STORE_ANSWERS: Duration = Duration::from_secs(8);
const MOST_CARRIERS: usize = 16;
/// Uses of one grant that may be taken at once, enough for a whole site, and then one for each:
/// whoever has a token without limit must not fill the store in an afternoon.
const JOINS_AT_ONCE: u32 = life::MAX_AGENTS;
const JOINS_EVERY: Duration = Duration::from_secs(1);
/// How long a reply waits for what it is about to be in the register.
const REGISTER_FOLLOWS: Duration = Duration::from_secs(2);

pub(crate) struct Broker {
    pub(crate) key: Arc<SigningKey>,
    pub(crate) store_id: StoreId,
    pub(crate) store: Arc<dyn Store>,
    /// Whoever made this broker with `--mesh` has named it.
    pub(crate) authority: PublicKey,
    /// Of the UDP reflector.
    pub(crate) port: u16,
    /// Unix seconds.
    pub(crate) serving_since: u64,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) askers: Arc<Askers>,
    /// `None` with `--no-relay`.
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) seats: Seats,
    /// Room for callers that bring what makes them known.
    pub(crate) carriers: Arc<Semaphore>,
    directory: Mutex<Directory>,
    register: RwLock<Register>,
    /// The revision that the register has reached; wakes watchers.
    reached: watch::Sender<u64>,
    /// Wakes whoever is to stop.
    ending: watch::Sender<Option<Ending>>,
    failures: Mutex<Attempts<Source>>,
    joins: Mutex<Paces<Hash>>,
    /// Not yet told to the store.
    unheard: Mutex<HashMap<PublicKey, Heard>>,
    store_down: Mutex<Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Asked,
    /// The process must not go on.
    Failed(String),
}

impl Broker {
    pub(crate) fn new(
        directory: Directory,
        key: Arc<SigningKey>,
        store: Arc<dyn Store>,
        register: Register,
        port: u16,
    ) -> Broker {
        let about = directory.about().clone();
        let revision = register.revision();
        let broker = Broker {
            key,
            store_id: about.store_id,
            store,
            authority: about.authority,
            port,
            serving_since: unix_now(),
            metrics: Arc::new(Metrics::new()),
            askers: Arc::new(Askers::default()),
            relay: None,
            seats: Seats::default(),
            carriers: Arc::new(Semaphore::new(MOST_CARRIERS)),
            directory: Mutex::new(directory),
            register: RwLock::new(register),
            reached: watch::Sender::new(revision),
            ending: watch::Sender::new(None),
            failures: Mutex::new(Attempts::new()),
            joins: Mutex::new(Paces::new(JOINS_AT_ONCE, JOINS_EVERY)),
            unheard: Mutex::new(HashMap::new()),
            store_down: Mutex::new(None),
        };
        broker.metrics.store_up.set(1);
        broker.show_register();
        broker
    }

    pub(crate) fn register(&self) -> RwLockReadGuard<'_, Register> {
        self.register.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register_mut(&self) -> RwLockWriteGuard<'_, Register> {
        self.register
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        lock(&self.directory)
    }

    pub(crate) fn failures(&self) -> MutexGuard<'_, Attempts<Source>> {
        lock(&self.failures)
    }

    /// Uses taken, by grant.
    pub(crate) fn joins(&self) -> MutexGuard<'_, Paces<Hash>> {
        lock(&self.joins)
    }

    /// Told whenever the register has changed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.reached.subscribe()
    }

    pub(crate) fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// The first reason stands.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|held| {
            let first = held.is_none();
            if first {
                *held = Some(ending);
            }
            first
        });
    }

    /// The register has reached this revision.
    pub(crate) fn handle_reached(&self, revision: u64) {
        self.show_register();
        self.reached.send_replace(revision);
    }

    /// Waits until the register holds what was written at this revision, so that the caller's
    /// next question finds it. Not for ever: what was written is durable whatever happens here.
    pub(crate) async fn follow(&self, revision: u64) {
        let mut reached = self.watch();
        let wait = reached.wait_for(|reached| *reached >= revision);
        drop(tokio::time::timeout(REGISTER_FOLLOWS, wait).await);
    }

    /// One operation of the store, whose failures are noted and said to the caller.
    pub(crate) async fn ask<T>(&self, doing: Doing<'_, T>) -> Result<T, Refusal> {
        let why = match tokio::time::timeout(STORE_ANSWERS, doing).await {
            Ok(Ok(done)) => {
                self.handle_store_up();
                return Ok(done);
            }
            Ok(Err(error)) => {
                self.handle_store_error(&error);
                error.to_string()
            }
            Err(_) => {
                let why = format!("the store has not answered for {STORE_ANSWERS:?}");
                self.handle_store_error(&StoreError::Down(why.clone()));
                why
            }
        };
        Err(Refusal::StoreDown { why })
    }

    /// Decides which of the store's errors pass and which end the process.
    pub(crate) fn handle_store_error(&self, error: &StoreError) {
        match error {
            StoreError::Down(why) => {
                let mut down = lock(&self.store_down);
                if down.is_none() {
                    warn!("the store cannot write, reads go on: {why}");
                }
                *down = Some(why.clone());
                self.metrics.store_up.set(0);
            }
            StoreError::Behind => {}
            StoreError::Damaged(why) | StoreError::Locked(why) | StoreError::Fatal(why) => {
                error!("the store has failed, this process ends: {why}");
                self.end(Ending::Failed(why.clone()));
            }
        }
    }

    pub(crate) fn handle_store_up(&self) {
        if lock(&self.store_down).take().is_some() {
            info!("the store works again");
            self.metrics.store_up.set(1);
        }
    }

    pub(crate) fn is_store_down(&self) -> bool {
        lock(&self.store_down).is_some()
    }

    /// How long a node has been silent, as far as the brokers of this store know.
    pub(crate) fn unheard_for(&self, identity: &PublicKey) -> Duration {
        let heard = self.register().heard(identity);
        if self.seats.is_taken(identity) || heard.is_some_and(|heard| heard.connected) {
            return Duration::ZERO;
        }
        let recent = lock(&self.unheard).get(identity).copied();
        let at = recent.or(heard).map_or(0, |heard| heard.at);
        life::unheard_for(unix_now(), at, self.serving_since)
    }

    /// Closes the sessions of nodes that count no more.
    pub(crate) fn cut_off_revoked(&self) {
        let register = self.register();
        let Some(mesh) = register.mesh() else {
            return;
        };
        let out = |identity: &PublicKey, grant: &Hash| {
            mesh.charter().standing(grant, identity) != Standing::Good
        };
        self.seats.cut_off(out);
        // Not only when their sessions have noticed.
        if let Some(relay) = &self.relay {
            relay.cut_off(out);
        }
    }

    pub(crate) fn note_heard(&self, identity: PublicKey, connected: bool) {
        let heard = Heard {
            at: unix_now(),
            connected,
        };
        lock(&self.unheard).insert(identity, heard);
    }

    /// Everybody who is connected was heard now.
    pub(crate) fn note_all_heard(&self) {
        for identity in self.seats.identities() {
            self.note_heard(identity, true);
        }
    }

    /// Tells the store who was heard; what it does not take is told again.
    pub(crate) async fn flush_heard(&self) {
        let mut told = std::mem::take(&mut *lock(&self.unheard));
        if told.is_empty() {
            if !self.is_store_down() {
                return;
            }
            // Something to write, to find out whether it can be written now.
            told.extend(self.register().any_heard());
        }
        let all: Vec<(PublicKey, Heard)> = told.iter().map(|(key, heard)| (*key, *heard)).collect();
        if self.ask(self.store.heard(all)).await.is_err() {
            let mut unheard = lock(&self.unheard);
            for (identity, heard) in told {
                unheard.entry(identity).or_insert(heard);
            }
        }
    }

    /// Drops the records of nodes that have been silent for too long.
    pub(crate) async fn sweep(&self) {
        let silent = self
            .register()
            .silent(unix_now(), self.serving_since, |identity| {
                self.seats.is_taken(identity)
            });
        if silent.is_empty() {
            return;
        }
        let count = silent.len();
        if self.ask(self.store.forget(silent)).await.is_ok() {
            info!("dropped {count} records of nodes that nobody has heard of for 7 days");
        }
    }

    fn show_register(&self) {
        let register = self.register();
        let entries = register.mesh().map_or(0, |mesh| mesh.ledger().len());
        self.metrics.ledger_entries.set(as_gauge(entries));
        self.metrics.nodes.set(as_gauge(register.count()));
        let revision = i64::try_from(register.revision()).unwrap_or(i64::MAX);
        self.metrics.store_revision.set(revision);
    }
}

impl Shown for Broker {
    fn metrics(&self) -> String {
        self.metrics.text().unwrap_or_default()
    }

    fn health(&self) -> Result<(), String> {
        if let Some(why) = &*lock(&self.store_down) {
            return Err(format!("the store cannot write: {why}"));
        }
        if self.register().mesh().is_none() {
            return Err(
                "no ledger yet: `causeway broker add` it where the authority is".to_owned(),
            );
        }
        Ok(())
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Nothing here is left half done by a panic that would matter to the next holder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
