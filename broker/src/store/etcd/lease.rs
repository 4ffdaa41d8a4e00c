//! What this broker says about its connections, under a lease: when the broker is gone, so are
//! they, without anybody having to say it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::key::PublicKey;
use serde_json::json;
use tokio::task::JoinHandle;

use super::client::{CallError, Client};
use super::keys::Location;
use super::reading::write_heard;
use super::wire::{LeaseAnswer, Streamed, Txn, TxnAnswer};
use crate::store::{Heard, StoreError};

/// Two writes for each node, below etcd's 128 in a transaction.
const NODES_AT_ONCE: usize = 50;
/// Races with other brokers about one node; each loser finds a newer state.
const TRIES: usize = 10;

#[derive(Debug)]
pub(super) struct Connections {
    client: Arc<Client>,
    location: Location,
    time_to_live: Duration,
    /// Held while a lease is made, so that there is one.
    lease: tokio::sync::Mutex<Option<u64>>,
    told: Mutex<Told>,
    /// Held while etcd is told, so that an older word never overtakes a newer.
    speaking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Told {
    /// Connected to this broker; said again under a new lease.
    mine: BTreeMap<PublicKey, Heard>,
    /// Not yet in etcd. A connection that ended while etcd was down would else live as long as
    /// the lease.
    unsaid: BTreeMap<PublicKey, Heard>,
}

/// Keeps the lease until it is dropped.
#[derive(Debug)]
pub(super) struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connections {
    pub(super) fn new(client: Arc<Client>, location: Location, time_to_live: Duration) -> Self {
        Connections {
            client,
            location,
            time_to_live,
            lease: tokio::sync::Mutex::new(None),
            told: Mutex::new(Told::default()),
            speaking: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn keep(self: &Arc<Self>) -> Keeper {
        let connections = Arc::clone(self);
        Keeper(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(connections.time_to_live / 3);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                connections.handle_tick().await;
            }
        }))
    }

    async fn handle_tick(&self) {
        self.keep_lease().await;
        if self.told().unsaid.is_empty() {
            return;
        }
        if let Err(error) = self.say_all().await {
            tracing::debug!("which nodes are connected could not be said: {error}");
        }
    }

    async fn keep_lease(&self) {
        let Some(lease) = *self.lease.lock().await else {
            return;
        };
        let question = json!({"ID": lease.to_string()});
        let kept = self
            .client
            .call::<Streamed<LeaseAnswer>>("/v3/lease/keepalive", &question)
            .await;
        let is_alive = match kept {
            Ok(answer) => answer.result.is_some_and(|kept| kept.ttl.0 > 0),
            Err(CallError::Refused(_)) => false,
            // Nothing is known; the next tick asks again.
            Err(CallError::Down(reasons)) => {
                tracing::debug!("etcd did not renew the lease: {reasons}");
                return;
            }
        };
        if !is_alive {
            self.drop_lease(lease).await;
            let mut told = self.told();
            tracing::info!(
                nodes = told.mine.len(),
                "the lease in etcd had run out; saying again which nodes are connected"
            );
            for (identity, heard) in told.mine.clone() {
                told.unsaid.entry(identity).or_insert(heard);
            }
        }
    }

    pub(super) async fn say(&self, heard: &[(PublicKey, Heard)]) -> Result<(), StoreError> {
        self.note(heard);
        self.say_all().await
    }

    fn note(&self, heard: &[(PublicKey, Heard)]) {
        let mut told = self.told();
        for (identity, heard) in heard {
            if heard.connected {
                told.mine.insert(*identity, *heard);
            } else {
                told.mine.remove(identity);
            }
            told.unsaid.insert(*identity, *heard);
        }
    }

    async fn say_all(&self) -> Result<(), StoreError> {
        let _speaking = self.speaking.lock().await;
        let unsaid = self.told().unsaid.clone();
        let (connected, gone): (Vec<_>, Vec<_>) =
            unsaid.into_iter().partition(|(_, heard)| heard.connected);
        self.say_connected(&connected).await?;
        self.note_said(&connected);
        for (identity, heard) in gone {
            self.say_gone(&identity, heard.at).await?;
            self.note_said(&[(identity, heard)]);
        }
        Ok(())
    }

    /// What has changed meanwhile stays to be said.
    fn note_said(&self, said: &[(PublicKey, Heard)]) {
        let mut told = self.told();
        for (identity, heard) in said {
            if told.unsaid.get(identity) == Some(heard) {
                told.unsaid.remove(identity);
            }
        }
    }

    async fn say_connected(&self, heard: &[(PublicKey, Heard)]) -> Result<(), StoreError> {
        for some in heard.chunks(NODES_AT_ONCE) {
            for _ in 0..TRIES {
                let lease = self.lease().await?;
                let mut txn = Txn::new();
                for (identity, heard) in some {
                    let value = write_heard(*heard);
                    txn.put_leased(&self.location.live(identity), &value, lease)
                        .put(&self.location.heard(identity), &value);
                }
                match self.run(&txn).await {
                    Ok(_) => break,
                    Err(CallError::Refused(failure)) if failure.is_lease_gone() => {
                        self.drop_lease(lease).await;
                    }
                    Err(error @ (CallError::Refused(_) | CallError::Down(_))) => {
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// The node may be connected to another broker by now: that one's word stays.
    async fn say_gone(&self, identity: &PublicKey, at: u64) -> Result<(), StoreError> {
        let (live_key, heard_key) = (self.location.live(identity), self.location.heard(identity));
        let value = |connected| write_heard(Heard { at, connected });
        if let Some(lease) = *self.lease.lock().await {
            let mut txn = Txn::new();
            txn.under_lease(&live_key, lease)
                .delete(&live_key)
                .put(&heard_key, value(false));
            if self.run(&txn).await?.succeeded {
                return Ok(());
            }
        }
        for _ in 0..TRIES {
            let live = self.run(Txn::new().get(&live_key)).await?;
            let live = live.pairs(0).first().map(|pair| pair.mod_revision.0);
            let mut txn = Txn::new();
            txn.unchanged(&live_key, live.unwrap_or(0))
                .put(&heard_key, value(live.is_some()));
            if self.run(&txn).await?.succeeded {
                return Ok(());
            }
        }
        Err(StoreError::Down(
            "too many brokers speak about one node at once".to_owned(),
        ))
    }

    async fn run(&self, txn: &Txn) -> Result<TxnAnswer, CallError> {
        self.client.call("/v3/kv/txn", &txn.request()).await
    }

    async fn lease(&self) -> Result<u64, StoreError> {
        let mut lease = self.lease.lock().await;
        if let Some(lease) = *lease {
            return Ok(lease);
        }
        let question = json!({"TTL": self.time_to_live.as_secs().max(1).to_string()});
        let granted: LeaseAnswer = self.client.call("/v3/lease/grant", &question).await?;
        *lease = Some(granted.id.0);
        Ok(granted.id.0)
    }

    async fn drop_lease(&self, gone: u64) {
        let mut lease = self.lease.lock().await;
        if *lease == Some(gone) {
            *lease = None;
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgotten nodes are not said again.
    pub(super) fn forget(&self, identity: &PublicKey) {
        let mut told = self.told();
        told.mine.remove(identity);
        told.unsaid.remove(identity);
    }
}
