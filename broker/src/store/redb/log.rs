//! The latest changes, in memory, for whoever follows them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::store::{Batch, Change, StoreError};

/// Of about 700 bytes each.
const KEPT: usize = 16_384;
const BATCH: usize = 1024;

#[derive(Debug)]
pub(super) struct Log {
    kept: Mutex<Kept>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Kept {
    /// Changes after this revision are here.
    floor: u64,
    revision: u64,
    changes: VecDeque<(u64, Change)>,
    ended: Option<StoreError>,
}

impl Log {
    pub(super) fn new(revision: u64) -> Log {
        Log {
            kept: Mutex::new(Kept {
                floor: revision,
                revision,
                changes: VecDeque::new(),
                ended: None,
            }),
            news: watch::Sender::new(()),
        }
    }

    pub(super) fn push(&self, revision: u64, changes: Vec<(u64, Change)>) {
        let mut kept = self.kept();
        kept.revision = revision;
        kept.changes.extend(changes);
        while kept.changes.len() > KEPT {
            let Some((gone, _)) = kept.changes.pop_front() else {
                break;
            };
            kept.floor = gone;
        }
        drop(kept);
        self.news.send_replace(());
    }

    /// What the file held after it was opened again. A commit that failed may have happened.
    pub(super) fn found(&self, revision: u64) {
        let mut kept = self.kept();
        if kept.revision == revision {
            return;
        }
        kept.floor = revision;
        kept.revision = revision;
        kept.changes.clear();
        drop(kept);
        self.news.send_replace(());
    }

    pub(super) fn end(&self, error: StoreError) {
        self.kept().ended = Some(error);
        self.news.send_replace(());
    }

    pub(super) async fn after(&self, after: u64) -> Result<Batch, StoreError> {
        let mut news = self.news.subscribe();
        loop {
            news.borrow_and_update();
            if let Some(batch) = self.kept().after(after)? {
                return Ok(batch);
            }
            if news.changed().await.is_err() {
                return Err(StoreError::Down("the store is closed".to_owned()));
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn after(&self, after: u64) -> Result<Option<Batch>, StoreError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        if after < self.floor || after > self.revision {
            return Err(StoreError::Behind);
        }
        let from = self
            .changes
            .partition_point(|(revision, _)| *revision <= after);
        let mut to = self.changes.len().min(from + BATCH);
        // Never between two changes of one revision.
        while to > from && to < self.changes.len() && self.changes[to].0 == self.changes[to - 1].0 {
            to += 1;
        }
        let changes: Vec<_> = self.changes.range(from..to).cloned().collect();
        Ok(changes
            .last()
            .map(|(revision, _)| *revision)
            .map(|revision| Batch { revision, changes }))
    }
}
