//! The follower's task: commands, and one conversation for every store that token and ledger know
//! a broker of.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Duration, Instant, sleep_until};

use proto::control::Handover;

use super::keeper::{Keeper, News, Start};
use super::register::Handed;
use super::view::ReflectorSession;
use super::visitor::{Shared, Visitor};
use super::{Command, Options, View};
use crate::back_off::Chance;
use crate::stores::StoreName;

/// How often the time that stores were reachable is counted, and kept.
const COUNTED: Duration = Duration::from_secs(600);

pub(super) struct Driver {
    shared: Shared,
    commands: mpsc::Receiver<Command>,
    handovers: mpsc::Receiver<Handover>,
    handed: Handed,
    news: watch::Sender<News>,
    chance: Chance,
    visitors: JoinSet<StoreName>,
    /// The stores that have one.
    visited: BTreeSet<StoreName>,
}

/// What the handle sends.
pub(super) struct Inputs {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) handovers: mpsc::Receiver<Handover>,
}

/// And what it shows.
pub(super) struct Outputs {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) reflector: watch::Receiver<Option<ReflectorSession>>,
}

impl Driver {
    pub(super) fn new(
        start: Start,
        options: &Options,
        seed: u64,
        inputs: Inputs,
    ) -> (Driver, Outputs) {
        let news = watch::Sender::new(News::default());
        let local = start.local.clone();
        let keeper = Keeper::new(start, news.clone());
        let outputs = Outputs {
            view: keeper.view(),
            reflector: keeper.reflector(),
        };
        let shared = Shared {
            keeper: Arc::new(Mutex::new(keeper)),
            local,
            timing: options.timing,
            fwmark: options.fwmark,
        };
        let driver = Driver {
            shared,
            commands: inputs.commands,
            handovers: inputs.handovers,
            handed: Handed::new(Handover::default()),
            news,
            chance: Chance::new(seed),
            visitors: JoinSet::new(),
            visited: BTreeSet::new(),
        };
        (driver, outputs)
    }

    pub(super) async fn run(mut self) {
        let mut news = self.news.subscribe();
        let mut count_at = Instant::now() + COUNTED;
        loop {
            self.visit_all().await;
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Publish(presence)) => {
                        self.shared.keeper.lock().await.handle_presence(presence).await;
                    }
                    Some(Command::Stop) | None => break,
                },
                Some(ended) = self.visitors.join_next() => self.handle_ended(ended),
                Some(handover) = self.handovers.recv(), if self.handed.is_done() => {
                    self.handed = Handed::new(handover);
                }
                // Piece by piece, so that nothing else waits for a large one.
                () = std::future::ready(()), if !self.handed.is_done() => {
                    let mut keeper = self.shared.keeper.lock().await;
                    let again = self.shared.timing.republish;
                    keeper.handle_handed(&mut self.handed, again).await;
                }
                // The ledger may know other brokers now. We have a sender ourselves.
                _changed = news.changed() => {}
                () = sleep_until(count_at) => {
                    count_at = Instant::now() + COUNTED;
                    let mut keeper = self.shared.keeper.lock().await;
                    keeper.count_reachable().await;
                    keeper.show();
                }
            }
        }
        self.news.send_modify(|news| news.stopped = true);
        // Not cut off: one of them may be writing the cache.
        while let Some(ended) = self.visitors.join_next().await {
            self.handle_ended(ended);
        }
    }

    async fn visit_all(&mut self) {
        let mut keeper = self.shared.keeper.lock().await;
        let known = keeper.known_stores();
        // One that is gone stays in view until its visitor has noticed.
        keeper.handle_stores(&known.union(&self.visited).copied().collect());
        drop(keeper);
        for store in known {
            if self.visited.insert(store) {
                let news = self.news.subscribe();
                let visitor = Visitor::new(self.shared.clone(), store, self.chance.draw(), news);
                self.visitors.spawn(visitor.run());
            }
        }
    }

    fn handle_ended(&mut self, ended: Result<StoreName, JoinError>) {
        match ended {
            Ok(store) => {
                self.visited.remove(&store);
            }
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}
