//! The watch of one session: a cursor, and when it is next moved on. A change goes out at once;
//! many changes in a row go out together.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use proto::message::{Answer, Position, Reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Caller, Closed, Node, Session};
use crate::broker::Broker;
use crate::register::{Cursor, Scope};

/// The least time between two batches, and what each watcher adds to it: with all of them told of
/// everything, the work a second stays the same whatever their number.
const PACE: Duration = Duration::from_millis(100);
const PACE_OF_EACH: Duration = Duration::from_micros(100);
const LONGEST_PACE: Duration = Duration::from_secs(1);

pub(super) struct Watching {
    broker: Arc<Broker>,
    node: Node,
    cursor: Cursor,
    scope: Scope,
    changed: watch::Receiver<u64>,
    /// There is more than fitted the last batch.
    more: bool,
    next: Instant,
}

/// When the next batch may go. Loses nothing when it is dropped while it waits.
pub(super) async fn due(watching: &mut Option<Watching>) {
    let Some(watching) = watching else {
        return future::pending().await;
    };
    sleep_until(watching.next).await;
    // The sender lives as long as the broker, which this holds.
    if !watching.more && watching.changed.changed().await.is_err() {
        future::pending().await
    }
}

impl Watching {
    fn start(
        broker: &Arc<Broker>,
        node: &Node,
        resume: Option<Position>,
        heads: &[[u8; 32]],
    ) -> Watching {
        let changed = broker.watch();
        let register = broker.register();
        broker.metrics.watchers.inc();
        Watching {
            cursor: register.start(resume, heads),
            scope: register.scope(node.identity, &node.site, node.role),
            broker: Arc::clone(broker),
            node: node.clone(),
            changed,
            more: true,
            next: Instant::now(),
        }
    }

    fn batch(&mut self) -> Option<proto::message::Push> {
        self.changed.mark_unchanged();
        let register = self.broker.register();
        let node = &self.node;
        let scope = register.scope(node.identity, &node.site, node.role);
        if scope != self.scope {
            self.scope = scope;
            register.restart(&mut self.cursor);
        }
        let batch = register.batch(&mut self.cursor, &self.scope);
        self.more = batch.as_ref().is_some_and(|push| !push.caught_up);
        batch
    }

    fn pace(&self) -> Duration {
        let watchers = u32::try_from(self.broker.metrics.watchers.get()).unwrap_or(0);
        (PACE + PACE_OF_EACH * watchers).min(LONGEST_PACE)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.broker.metrics.watchers.dec();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    pub(super) fn watch(&mut self, resume: Option<Position>, heads: &[[u8; 32]]) -> Option<Reply> {
        let Caller::Node(node) = &self.caller else {
            return None;
        };
        self.watching = Some(Watching::start(&self.broker, node, resume, heads));
        Some(Reply::Watching)
    }

    pub(super) async fn push(&mut self) -> Result<(), Closed> {
        let Some(watching) = &mut self.watching else {
            return Ok(());
        };
        let Some(push) = watching.batch() else {
            return Ok(());
        };
        let metrics = Arc::clone(&self.broker.metrics);
        if push.reset {
            metrics.snapshots.inc();
        }
        let sent = self.send(&Answer::Push(push)).await?;
        metrics.pushes.inc();
        metrics
            .pushed_bytes
            .inc_by(u64::try_from(sent).unwrap_or(u64::MAX));
        if let Some(watching) = &mut self.watching {
            watching.next = Instant::now();
            if !watching.more {
                watching.next += watching.pace();
            }
        }
        Ok(())
    }
}
