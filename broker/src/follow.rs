//! Keeps the register as the store is, and the store told who was heard.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep};
use tracing::{error, warn};

use crate::broker::{Broker, Ending};
use crate::store::{Batch, Change, StoreError};

const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Changes handled before readers get a turn: each may cost several signatures.
const AT_ONCE: usize = 16;
const FLUSH: Duration = Duration::from_secs(2);
const ALL_HEARD: Duration = Duration::from_secs(30);
const SWEEP: Duration = Duration::from_secs(3600);

/// Follows the store's changes until it is dropped.
pub(crate) async fn follow(broker: Arc<Broker>) {
    let mut after = broker.register().revision();
    loop {
        match broker.store.changes(after).await {
            Ok(batch) => {
                after = batch.revision;
                take(&broker, batch).await;
            }
            Err(StoreError::Behind) => match reload(&broker).await {
                Some(revision) => after = revision,
                None => sleep(AGAIN_AFTER).await,
            },
            Err(error) => {
                broker.handle_store_error(&error);
                sleep(AGAIN_AFTER).await;
            }
        }
    }
}

async fn take(broker: &Broker, batch: Batch) {
    let mut grown = false;
    let mut changes = batch.changes.into_iter().peekable();
    while changes.peek().is_some() {
        let some: Vec<(u64, Change)> = changes.by_ref().take(AT_ONCE).collect();
        grown |= take_some(broker, some);
        tokio::task::yield_now().await;
    }
    broker.register_mut().handle_revision(batch.revision);
    if grown {
        handle_grown(broker);
    }
    broker.handle_reached(batch.revision);
}

fn take_some(broker: &Broker, changes: Vec<(u64, Change)>) -> bool {
    let mut register = broker.register_mut();
    changes
        .into_iter()
        .fold(false, |grown, (revision, change)| {
            register.handle_change(revision, change) | grown
        })
}

async fn reload(broker: &Broker) -> Option<u64> {
    let contents = match broker.store.load().await {
        Ok(contents) => contents,
        Err(error) => {
            broker.handle_store_error(&error);
            return None;
        }
    };
    let revision = contents.revision;
    let loaded = broker.register_mut().load(contents);
    if let Err(error) = loaded {
        error!("{error}");
        broker.end(Ending::Failed(error.to_string()));
        return None;
    }
    handle_grown(broker);
    broker.handle_reached(revision);
    Some(revision)
}

/// The ledger has new entries.
pub(crate) fn handle_grown(broker: &Broker) {
    broker.cut_off_revoked();
    keep_mesh(broker);
}

/// A waiting broker has its ledger and writes down which mesh it is of.
fn keep_mesh(broker: &Broker) {
    let mut directory = broker.directory();
    if directory.about().mesh.is_some() {
        return;
    }
    let register = broker.register();
    let Some(mesh) = register.mesh() else {
        return;
    };
    let (id, authorities) = (mesh.id(), mesh.charter().authorities.clone());
    drop(register);
    if !authorities.contains(&broker.authority) {
        let why = format!(
            "the store's ledger is not of authority {}, for which this broker was made",
            broker.authority
        );
        error!("{why}");
        return broker.end(Ending::Failed(why));
    }
    match directory.set_mesh(id) {
        Ok(()) => tracing::info!("this broker is one of mesh {id} now"),
        Err(error) => warn!("cannot write down which mesh this is, trying again: {error}"),
    }
}

/// What is done from time to time, until it is dropped.
pub(crate) async fn tick(broker: Arc<Broker>) {
    let mut flush = interval(FLUSH);
    let mut all_heard = interval(ALL_HEARD);
    // Nodes that are only just coming back are heard first.
    let mut sweep = interval_at(Instant::now() + 2 * ALL_HEARD, SWEEP);
    for timer in [&mut flush, &mut all_heard, &mut sweep] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            _ = flush.tick() => {
                broker.flush_heard().await;
                keep_mesh(&broker);
            }
            _ = all_heard.tick() => broker.note_all_heard(),
            _ = sweep.tick() => broker.sweep().await,
        }
    }
}
