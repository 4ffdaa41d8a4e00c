//! Stays in touch with one store: rounds over its brokers, one conversation at a time.

use std::sync::Arc;

use proto::token::TokenBroker;
use tokio::sync::{Mutex, watch};
use tokio::time::{Duration, Instant, sleep};

use super::keeper::{Keeper, News};
use super::register::Source;
use super::view::Problem;
use super::{Cause, Timing};
use crate::back_off::{BackOff, Chance};
use crate::session::{Failure, MAX_THROUGH, Session, Ways};
use crate::state::LocalNode;
use crate::stores::{StoreName, contacts_of};

/// A broker's clock further off than this is shown.
const CLOCK_OFF: u64 = 120;
/// A conversation that ended sooner is no reason to come back at once.
const LASTING: Duration = Duration::from_secs(5);

/// What all visitors of a follower have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) keeper: Arc<Mutex<Keeper>>,
    pub(super) local: Arc<LocalNode>,
    pub(super) timing: Timing,
    pub(super) fwmark: Option<u32>,
}

pub(super) struct Visitor {
    pub(super) shared: Shared,
    pub(super) store: StoreName,
    pub(super) news: watch::Receiver<News>,
    /// Ask for everything at the next conversation.
    pub(super) relist: bool,
    pub(super) relist_at: Instant,
    pub(super) chance: Chance,
    back_off: BackOff,
    /// Whom to turn to first, and whom last.
    first: Option<TokenBroker>,
    last: Option<TokenBroker>,
    /// The gateway that the last conversation went through.
    pub(super) last_through: Option<String>,
}

/// Why a conversation ended.
pub(super) enum End {
    Stopped,
    /// To be begun again at once, for everything.
    Relist,
    /// The same, with another broker if one can be reached: none is to decide alone for long what
    /// a node hears.
    Elsewhere,
    Failed(Failure),
}

/// What one round over all brokers of the store came to.
enum Round {
    Stopped,
    /// The store has no broker any more.
    Deserted,
    /// One served us until now.
    Served,
    Failed(Vec<String>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure)
    }
}

impl Visitor {
    pub(super) fn new(
        shared: Shared,
        store: StoreName,
        seed: u64,
        news: watch::Receiver<News>,
    ) -> Visitor {
        let mut chance = Chance::new(seed);
        let (first, most) = shared.timing.back_off;
        Visitor {
            relist: false,
            relist_at: Instant::now() + chance.shorten(shared.timing.relist),
            back_off: BackOff::new(first, most, chance.draw()),
            shared,
            store,
            news,
            chance,
            first: None,
            last: None,
            last_through: None,
        }
    }

    /// Until it is stopped, or the store has no broker left; says whose visitor it was.
    pub(super) async fn run(mut self) -> StoreName {
        loop {
            match self.round().await {
                Round::Stopped | Round::Deserted => return self.store,
                Round::Served => self.back_off.handle_success(),
                Round::Failed(reasons) => {
                    self.handle_disconnected(reasons).await;
                    let wait = self.back_off.handle_failure();
                    if self.unless_stopped(sleep(wait)).await.is_none() {
                        return self.store;
                    }
                }
            }
        }
    }

    async fn round(&mut self) -> Round {
        let contacts = self.in_order().await;
        if contacts.is_empty() {
            return Round::Deserted;
        }
        let mut reasons = Vec::new();
        for contact in contacts {
            let since = Instant::now();
            match self.visit(&contact).await {
                End::Stopped => return Round::Stopped,
                End::Relist => {
                    self.relist = true;
                    self.first = Some(contact);
                    return Round::Served;
                }
                End::Elsewhere => {
                    self.relist = true;
                    self.last = Some(contact);
                    return Round::Served;
                }
                End::Failed(failure) => {
                    let was_connected = self.handle_failure(&contact, &failure).await;
                    reasons.push(failure.to_string());
                    self.last = Some(contact);
                    self.handle_disconnected(reasons.clone()).await;
                    if since.elapsed() >= LASTING && was_connected {
                        return Round::Served;
                    }
                }
            }
        }
        Round::Failed(reasons)
    }

    /// By chance, so that nodes spread over brokers; but the one that a conversation is to go on
    /// with comes first, and the one that has just failed last.
    async fn in_order(&mut self) -> Vec<TokenBroker> {
        let mut order = {
            let keeper = self.shared.keeper.lock().await;
            let charter = keeper.register.mesh.charter();
            contacts_of(&self.store, &self.shared.local.membership.brokers, charter)
        };
        self.chance.shuffle(&mut order);
        let (first, last) = (self.first.take(), self.last.take());
        order.sort_by_key(|contact| {
            let contact = Some(contact);
            (contact == last.as_ref(), contact != first.as_ref())
        });
        order
    }

    async fn visit(&mut self, contact: &TokenBroker) -> End {
        let mesh = self.shared.local.membership.mesh;
        let ways = self.ways().await;
        let connect = Session::connect_by(&contact.address, contact.key, mesh, &ways);
        match self.unless_stopped(connect).await {
            None => End::Stopped,
            Some(Err(failure)) => End::Failed(failure),
            Some(Ok((session, welcome))) => {
                self.note_clock(welcome.now).await;
                self.converse(session, contact).await
            }
        }
    }

    /// The gateways by chance, so that nodes spread over them; the one that a conversation has ended
    /// with comes last.
    async fn ways(&mut self) -> Ways {
        let mut through = self.shared.keeper.lock().await.gateways();
        self.chance.shuffle(&mut through);
        let last = self.last_through.take();
        through.sort_by_key(|gateway| Some(gateway) == last.as_ref());
        through.truncate(MAX_THROUGH);
        Ways {
            mark: self.shared.fwmark,
            through,
        }
    }

    async fn note_clock(&self, theirs: u64) {
        let ours = crate::now();
        let seconds = i64::try_from(ours).unwrap_or(0) - i64::try_from(theirs).unwrap_or(0);
        let off = ours.abs_diff(theirs) > CLOCK_OFF;
        if let Some(touch) = self.shared.keeper.lock().await.touch(self.store) {
            touch.clock_problem = off.then_some(Problem::ClockOff { seconds });
        }
    }

    /// Whether we were in touch. A broker that sends what is no message is named in the report like
    /// one that forges.
    async fn handle_failure(&self, contact: &TokenBroker, failure: &Failure) -> bool {
        let mut keeper = self.shared.keeper.lock().await;
        if let Some(cause) = Cause::of_failure(&failure.why) {
            let what = failure.why.to_string();
            let source = self.source(contact);
            keeper
                .register
                .handle_garbage(&source, cause, what, crate::now());
        }
        let was_connected = keeper.is_connected(self.store);
        // Once when a broker is lost; after that it is the same again and again.
        if was_connected {
            tracing::info!("no longer in touch with broker {failure}");
        } else {
            tracing::debug!("broker {failure}");
        }
        was_connected
    }

    async fn handle_disconnected(&self, reasons: Vec<String>) {
        let mut keeper = self.shared.keeper.lock().await;
        keeper.handle_disconnected(self.store, reasons);
    }

    pub(super) fn source(&self, contact: &TokenBroker) -> Source {
        Source {
            store: self.store,
            address: contact.address.clone(),
        }
    }

    /// Does the work; `None` once it is to stop. Not for what must not be left half done.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        // A copy: what it hears is still news for the conversation.
        let mut news = self.news.clone();
        let stopped = async {
            // Without a sender there is nobody left to work for.
            let _stopped = news.wait_for(|news| news.stopped).await.is_ok();
        };
        tokio::select! {
            done = work => Some(done),
            () = stopped => None,
        }
    }
}
