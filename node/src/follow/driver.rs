//! The follower's task: rounds over all brokers, one conversation at a time, and the view after
//! everything that happens.

use std::sync::Arc;

use proto::ledger::Standing;
use proto::record::Presence;
use proto::token::TokenBroker;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep};

use super::cache_file::CacheFile;
use super::register::{Register, Wanted};
use super::view::{BrokerState, Problem, View};
use super::{Cause, Command, Options};
use crate::back_off::{BackOff, Chance};
use crate::contacts::contacts;
use crate::session::{Failure, Session};
use crate::state::LocalNode;

/// A broker's clock further off than this is shown.
const CLOCK_OFF: u64 = 120;
/// A conversation that ended sooner is no reason to come back at once.
const LASTING: Duration = Duration::from_secs(5);

pub(super) struct Driver {
    pub(super) local: Arc<LocalNode>,
    pub(super) register: Register,
    pub(super) cache: CacheFile,
    pub(super) options: Options,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) presence: Option<Presence>,
    /// With this node itself: not the mesh's.
    pub(super) own_problem: Option<Problem>,
    pub(super) broker: BrokerState,
    /// Ask for everything at the next conversation.
    pub(super) relist: bool,
    pub(super) relist_at: Instant,
    view: watch::Sender<Arc<View>>,
    chance: Chance,
    back_off: BackOff,
    clock_problem: Option<Problem>,
    damaged: usize,
    /// Whom to turn to first, and whom last.
    first: Option<TokenBroker>,
    last: Option<TokenBroker>,
}

/// What a follower starts with.
pub(super) struct Start {
    pub(super) local: Arc<LocalNode>,
    pub(super) register: Register,
    pub(super) cache: CacheFile,
    /// Lines of the cache that were of no use.
    pub(super) damaged: usize,
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

/// What one round over all brokers came to.
enum Round {
    Stopped,
    /// One served us until now.
    Served,
    Failed(Vec<String>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure)
    }
}

impl Driver {
    pub(super) fn new(
        start: Start,
        options: Options,
        seed: u64,
        commands: mpsc::Receiver<Command>,
    ) -> (Driver, watch::Receiver<Arc<View>>) {
        let mut chance = Chance::new(seed);
        let (first, most) = options.timing.back_off;
        let nothing_yet = BrokerState::Cached {
            reasons: Vec::new(),
        };
        let relist_at = Instant::now() + chance.shorten(options.timing.relist);
        let mut driver = Driver {
            // Replaced at once: a channel needs a value, and the value needs all the rest.
            view: watch::Sender::new(Arc::new(View::empty(&start.local))),
            local: start.local,
            register: start.register,
            cache: start.cache,
            damaged: start.damaged,
            commands,
            presence: None,
            own_problem: None,
            broker: nothing_yet,
            relist: false,
            relist_at,
            back_off: BackOff::new(first, most, chance.draw()),
            chance,
            options,
            clock_problem: None,
            first: None,
            last: None,
        };
        driver.handle_disconnected(Vec::new());
        let view = driver.view.subscribe();
        (driver, view)
    }

    pub(super) async fn run(mut self) {
        loop {
            match self.round().await {
                Round::Stopped => return,
                Round::Served => self.back_off.handle_success(),
                Round::Failed(reasons) => {
                    self.handle_disconnected(reasons);
                    let wait = self.back_off.handle_failure();
                    if self.unless_stopped(sleep(wait)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn round(&mut self) -> Round {
        let mut reasons = Vec::new();
        for contact in self.in_order() {
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
                    self.log_failure(&failure);
                    self.handle_failure(&failure);
                    reasons.push(failure.to_string());
                    self.last = Some(contact);
                    if since.elapsed() >= LASTING && self.was_connected() {
                        self.handle_disconnected(reasons);
                        return Round::Served;
                    }
                    self.handle_disconnected(reasons.clone());
                }
            }
        }
        if reasons.is_empty() {
            reasons.push("neither the token nor the ledger names a broker".to_owned());
        }
        Round::Failed(reasons)
    }

    /// By chance, so that nodes spread over brokers; but the one that a conversation is to go on
    /// with comes first, and the one that has just failed last.
    fn in_order(&mut self) -> Vec<TokenBroker> {
        let charter = self.register.mesh.charter();
        let mut order = contacts(&self.local.membership.brokers, charter);
        self.chance.shuffle(&mut order);
        let (first, last) = (self.first.take(), self.last.take());
        order.sort_by_key(|contact| {
            let contact = Some(contact);
            (contact == last.as_ref(), contact != first.as_ref())
        });
        order
    }

    async fn visit(&mut self, contact: &TokenBroker) -> End {
        let mesh = self.local.membership.mesh;
        let connect = Session::connect(&contact.address, contact.key, mesh);
        match self.unless_stopped(connect).await {
            None => End::Stopped,
            Some(Err(failure)) => End::Failed(failure),
            Some(Ok((session, welcome))) => {
                self.register.from = contact.address.clone();
                self.note_clock(welcome.now);
                self.converse(session, contact).await
            }
        }
    }

    fn note_clock(&mut self, theirs: u64) {
        let ours = crate::now();
        let seconds = i64::try_from(ours).unwrap_or(0) - i64::try_from(theirs).unwrap_or(0);
        let off = ours.abs_diff(theirs) > CLOCK_OFF;
        self.clock_problem = off.then_some(Problem::ClockOff { seconds });
    }

    fn was_connected(&self) -> bool {
        matches!(self.broker, BrokerState::Connected { .. })
    }

    /// Once when a broker is lost; after that it is the same again and again.
    fn log_failure(&self, failure: &Failure) {
        if self.was_connected() {
            tracing::info!("no longer in touch with broker {failure}");
        } else {
            tracing::debug!("broker {failure}");
        }
    }

    /// A broker that sends what is no message is named in the report like one that forges.
    fn handle_failure(&mut self, failure: &Failure) {
        if let Some(cause) = Cause::of_failure(&failure.why) {
            let what = failure.why.to_string();
            self.register.report(cause, what, crate::now());
        }
    }

    fn handle_disconnected(&mut self, reasons: Vec<String>) {
        self.broker = if self.register.mesh.ledger().is_empty() {
            BrokerState::Unreachable { reasons }
        } else {
            BrokerState::Cached { reasons }
        };
        self.show();
    }

    /// Does the work and takes commands meanwhile; `None` once one said stop.
    pub(super) async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.commands.recv() => {
                    if !self.handle_command(command).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether to go on. A record is signed and durable from here on, and sent with the next
    /// conversation or by the one that is under way.
    pub(super) async fn handle_command(&mut self, command: Option<Command>) -> bool {
        match command {
            Some(Command::Publish(presence)) => {
                self.presence = Some(presence);
                self.sign().await;
                self.show();
                true
            }
            Some(Command::Stop) | None => false,
        }
    }

    /// Whether the record that says what is wanted is durable.
    pub(super) async fn sign(&mut self) -> bool {
        let Some(presence) = &self.presence else {
            return false;
        };
        let wanted = Wanted {
            presence,
            role: self.options.role,
            now: crate::now(),
        };
        if !self.register.sign_own(&self.local, &wanted) {
            self.own_problem = Some(Problem::SequenceExhausted);
            return false;
        }
        self.cache.keep(&mut self.register).await
    }

    pub(super) fn relist_wait(&mut self) -> Duration {
        self.chance.shorten(self.options.timing.relist)
    }

    pub(super) fn show(&self) {
        let membership = &self.local.membership;
        let shown = self.register.shown().clone();
        let standing = self.standing();
        let view = View {
            mesh: membership.mesh,
            standing,
            site: membership.site().clone(),
            node: membership.node.clone(),
            identity: self.local.identity_key(),
            problems: self.problems(&shown.problems),
            peers: shown.peers,
            prefixes: shown.prefixes,
            brokers: shown.brokers,
            heads: shown.heads,
            broker: self.broker.clone(),
            last_sync: self.register.last_sync,
            refused: self.register.refused.clone(),
        };
        self.view.send_replace(Arc::new(view));
    }

    fn standing(&self) -> Standing {
        let grant = self.local.membership.grant_entry().hash();
        let charter = self.register.mesh.charter();
        charter.standing(&grant, &self.local.identity_key())
    }

    fn problems(&self, of_mesh: &[proto::mesh::Problem]) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.own_problem.iter().cloned().collect();
        let standing = self.standing();
        if standing != Standing::Good {
            problems.push(Problem::Standing(standing));
        }
        problems.extend(self.clock_problem.clone());
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
}
