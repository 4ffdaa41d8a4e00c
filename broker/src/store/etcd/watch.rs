//! Following etcd's changes. A stream that is silent is doubted: its endpoint may hang, or be cut
//! off from the others.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::key::PublicKey;
use serde_json::json;
use tokio::time::timeout;

use super::EtcdStore;
use super::client::{CallError, Lines};
use super::keys::Place;
use super::reading::{read_heard, read_row, read_use};
use super::wire::{Event, Range, Streamed, Watched, after_all, base64};
use crate::store::{Batch, Change, StoreError};

/// After this the endpoint is asked whether it is still one of a cluster.
const SILENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Watch {
    lines: Lines,
    /// Everything up to here has been given out.
    pub(super) position: u64,
}

enum WatchError {
    Behind,
    /// The endpoint is left.
    Lost(String),
}

impl EtcdStore {
    pub(super) async fn follow(&self, after: u64) -> Result<Batch, StoreError> {
        let mut watch = self.take_watch(after);
        let mut reasons = Vec::new();
        let mut position = after;
        loop {
            let step = match watch.take() {
                Some(watch) => self.step(watch).await,
                None => self.watch_from(position).await.map(|watch| (watch, None)),
            };
            match step {
                Ok((watch, Some(batch))) => {
                    self.keep_watch(watch);
                    return Ok(batch);
                }
                Ok((going_on, None)) => {
                    reasons.clear();
                    position = going_on.position;
                    watch = Some(going_on);
                }
                Err(WatchError::Behind) => return Err(StoreError::Behind),
                Err(WatchError::Lost(reason)) => reasons.push(reason),
            }
            if reasons.len() > self.client.count() {
                return Err(CallError::Down(reasons.join("; ")).into());
            }
        }
    }

    async fn watch_from(&self, after: u64) -> Result<Watch, WatchError> {
        let endpoint = self.client.current();
        let all = self.location.all();
        let question = json!({"create_request": {
            "key": base64(&all),
            "range_end": base64(after_all(&all)),
            "start_revision": (after + 1).to_string(),
            "prev_kv": true,
        }});
        let lost = |reason: String| {
            self.client.leave(endpoint);
            WatchError::Lost(reason)
        };
        let lines = match self.client.stream(endpoint, "/v3/watch", &question).await {
            Ok(lines) => lines,
            Err(CallError::Down(reason)) => return Err(lost(reason)),
            Err(CallError::Refused(failure)) => return Err(lost(failure.message)),
        };
        let mut watch = Watch {
            lines,
            position: after,
        };
        let created = match timeout(SILENCE, watch.next()).await {
            Ok(created) => created.map_err(lost)?,
            Err(_) => return Err(lost("no watch in time".to_owned())),
        };
        if created.compact_revision.0 > 0 || created.header.revision.0 < after {
            return Err(WatchError::Behind);
        }
        if !created.created || created.canceled {
            let reason = self
                .client
                .handle_ended(&watch.lines, created.cancel_reason)
                .await;
            return Err(lost(reason));
        }
        Ok(watch)
    }

    /// The next message, or the news that the endpoint is well although nothing happens.
    async fn step(&self, mut watch: Watch) -> Result<(Watch, Option<Batch>), WatchError> {
        let endpoint = watch.lines.endpoint;
        let lost = |reason: String| {
            self.client.leave(endpoint);
            WatchError::Lost(reason)
        };
        let Ok(message) = timeout(SILENCE, watch.next()).await else {
            return match self.probe(endpoint).await {
                Ok(()) => Ok((watch, None)),
                Err(reason) => Err(lost(reason)),
            };
        };
        let message = message.map_err(lost)?;
        if message.compact_revision.0 > 0 {
            return Err(WatchError::Behind);
        }
        if message.canceled {
            let reason = self
                .client
                .handle_ended(&watch.lines, message.cancel_reason)
                .await;
            return Err(lost(reason));
        }
        let Some(last) = message.events.last() else {
            return Ok((watch, None));
        };
        let revision = last.kv.mod_revision.0;
        watch.position = revision;
        let changes = self.translate(&message.events);
        let batch = (!changes.is_empty()).then_some(Batch { revision, changes });
        Ok((watch, batch))
    }

    /// Linearizable, so that it fails where a quorum is out of reach.
    async fn probe(&self, endpoint: usize) -> Result<(), String> {
        let question = json!({"key": base64(self.location.store())});
        let asked = self
            .client
            .call_one::<Range>(endpoint, "/v3/kv/range", &question);
        match asked.await {
            Ok(_) => Ok(()),
            Err(CallError::Down(reason)) => Err(reason),
            Err(CallError::Refused(failure)) => Err(failure.message),
        }
    }

    /// Revision by revision: what an event means depends on those beside it.
    fn translate(&self, events: &[Event]) -> Vec<(u64, Change)> {
        events
            .chunk_by(|one, next| one.kv.mod_revision == next.kv.mod_revision)
            .flat_map(|together| {
                let revision = together[0].kv.mod_revision.0;
                self.translate_one(together)
                    .into_iter()
                    .map(move |change| (revision, change))
            })
            .collect()
    }

    fn translate_one(&self, together: &[Event]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut forgotten = BTreeSet::new();
        let mut told = BTreeSet::new();
        for event in together {
            match self.location.place(&event.kv.key.0) {
                Place::Member(identity) | Place::Heard(identity) if event.is_delete() => {
                    if forgotten.insert(identity) {
                        changes.push(Change::Forgotten(identity));
                    }
                }
                Place::Heard(identity) => {
                    told.insert(identity);
                    changes.extend(
                        read_heard(&event.kv.value.0).map(|heard| Change::Heard(identity, heard)),
                    );
                }
                Place::Entry if !event.is_delete() => {
                    changes.push(Change::Entry(event.kv.value.0.clone()));
                }
                Place::Member(identity) => {
                    changes.extend(read_row(&identity, &event.kv.value.0).map(|row| {
                        Change::Member {
                            identity,
                            bytes: row.bytes,
                        }
                    }));
                }
                Place::Use { grant, use_number } if !event.is_delete() => {
                    let taken = read_use(grant, use_number, &event.kv.value.0);
                    changes.extend(taken.map(Change::Use));
                }
                Place::Live(_)
                | Place::Entry
                | Place::Use { .. }
                | Place::Store
                | Place::Epoch
                | Place::Forgotten
                | Place::Other => {}
            }
        }
        // A lease that ends says only this; every other end of a connection says more beside it.
        for event in together {
            if let Place::Live(identity) = self.location.place(&event.kv.key.0)
                && event.is_delete()
                && !forgotten.contains(&identity)
                && !told.contains(&identity)
            {
                changes.extend(disconnected(identity, event));
            }
        }
        changes
    }
}

fn disconnected(identity: PublicKey, event: &Event) -> Option<Change> {
    let mut heard = read_heard(&event.prev_kv.value.0)?;
    heard.connected = false;
    Some(Change::Heard(identity, heard))
}

impl Watch {
    async fn next(&mut self) -> Result<Watched, String> {
        let line = self
            .lines
            .next()
            .await?
            .ok_or_else(|| "the watch ended".to_owned())?;
        let streamed: Streamed<Watched> = serde_json::from_slice(&line)
            .map_err(|error| format!("a message that is not etcd's: {error}"))?;
        streamed
            .result
            .ok_or_else(|| "the watch ended with an error".to_owned())
    }
}
