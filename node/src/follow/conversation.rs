//! One conversation with one broker: log in, exchange ledgers, watch, publish, and notice when
//! it has gone silent.

use std::collections::VecDeque;

use proto::entry::{Role, SignedEntry};
use proto::key::{Hash, PublicKey};
use proto::ledger::Ledger;
use proto::message::{Answer, Push, Reflector, Refusal, Reply, Request};
use proto::record::Member;
use proto::token::TokenBroker;
use tokio::time::{Duration, Instant, sleep_until};

use super::Timing;
use super::keeper::Keeper;
use super::view::{Problem, ReflectorSession};
use super::visitor::{End, Visitor};
use crate::contacts::contacts;
use crate::login::log_in;
use crate::session::{Failure, MAX_HEADS, Session, Why};
use crate::stores::StoreName;

/// Entries that another store had are handed to this one within this time.
const HANDED: Duration = Duration::from_millis(500);

/// Where the conversation is.
pub(super) struct Talk {
    session: Session,
    broker: TokenBroker,
    began: Instant,
    caught_up: bool,
    heard: Instant,
    /// A ping that has no answer yet.
    pinged: Option<(u32, Instant)>,
    /// Records that have no answer yet, in the order in which they were sent.
    published: VecDeque<u32>,
    republish_at: Option<Instant>,
    /// What this node wanted to say when it was last sent.
    own: u64,
    /// Entries that the broker has, with all behind them.
    heads: Vec<Hash>,
    /// When to hand it what it lacks, and the request that does and has no answer yet.
    hand_at: Option<Instant>,
    handed: Option<u32>,
    /// Has asked for the reflector, and has no answer yet.
    reflect: Option<u32>,
}

impl Visitor {
    pub(super) async fn converse(&mut self, session: Session, broker: &TokenBroker) -> End {
        let way = session.way();
        self.last_through = session.through().map(str::to_owned);
        let mut talk = Talk::new(session, broker);
        if let Err(end) = self.begin(&mut talk).await {
            return end;
        }
        let mut keeper = self.shared.keeper.lock().await;
        keeper.handle_connected(self.store, &way);
        let is_gateway = keeper.role() == Role::Gateway;
        drop(keeper);
        tracing::info!(
            broker = way,
            store = %self.store,
            "in touch with a broker"
        );
        let end = match self.ask_reflector(&mut talk, is_gateway).await {
            Ok(()) => self.go_on(&mut talk).await,
            Err(end) => end,
        };
        let mut keeper = self.shared.keeper.lock().await;
        keeper.count_reachable().await;
        keeper.register.handle_lost(self.store);
        keeper.handle_reflector(self.store, None);
        drop(keeper);
        if matches!(end, End::Stopped | End::Relist | End::Elsewhere) {
            talk.session.close().await;
        }
        end
    }

    async fn begin(&mut self, talk: &mut Talk) -> Result<(), End> {
        talk.own = self.news.borrow_and_update().own;
        let login = self.log_in(talk).await?;
        if let Err(failure) = login {
            self.note_refusal(&failure).await;
            return Err(failure.into());
        }
        self.exchange_ledgers(talk).await?;
        let watch = self.watch().await;
        let watching = self.unless_stopped(talk.session.call(watch)).await;
        if watching.ok_or(End::Stopped)?? != Reply::Watching {
            return Err(talk.failed(Why::OutOfOrder));
        }
        self.clear_problem().await;
        self.send_own(talk).await
    }

    async fn watch(&self) -> Request {
        let keeper = self.shared.keeper.lock().await;
        let heads = keeper.register.mesh.ledger().heads();
        Request::Watch {
            resume: keeper
                .register
                .position(self.store)
                .filter(|_| !self.relist),
            heads: heads.iter().take(MAX_HEADS).map(|head| head.0).collect(),
        }
    }

    /// A broker whose ledger lacks our grant knows us once it has the entries that we have.
    async fn log_in(&self, talk: &mut Talk) -> Result<Result<(), Failure>, End> {
        let local = self.shared.local.clone();
        let ledger: Vec<_> = {
            let keeper = self.shared.keeper.lock().await;
            keeper.register.mesh.ledger().entries().cloned().collect()
        };
        let login = log_in(&mut talk.session, &local, &ledger);
        self.unless_stopped(login).await.ok_or(End::Stopped)
    }

    /// Each has what the other had: revocations spread with every node that connects.
    async fn exchange_ledgers(&self, talk: &mut Talk) -> Result<(), End> {
        let ours = {
            let keeper = self.shared.keeper.lock().await;
            keeper.register.mesh.ledger().heads()
        };
        let fetched = self.unless_stopped(talk.session.fetch_ledger(&ours)).await;
        let fetched = fetched.ok_or(End::Stopped)??;
        let source = self.source(&talk.broker);
        let mut keeper = self.shared.keeper.lock().await;
        keeper
            .register
            .handle_entries(&source, &fetched.entries, crate::now());
        keeper.keep().await;
        keeper.show();
        self.check_broker(&keeper, talk)?;
        let ledger = keeper.register.mesh.ledger();
        let missing: Vec<_> = ledger.missing(&fetched.heads);
        let missing: Vec<_> = missing.into_iter().cloned().collect();
        // Either it takes what it lacks now, or it is not asked to again until there is more.
        talk.heads = ledger.heads();
        drop(keeper);
        if missing.is_empty() {
            return Ok(());
        }
        let put = self.unless_stopped(talk.session.put_ledger(&missing)).await;
        match put.ok_or(End::Stopped)? {
            Ok(_) => Ok(()),
            // It is no worse a broker for us if it cannot take them now.
            Err(failure) if failure.refusal().is_some() => {
                tracing::warn!("entries of the ledger were not taken by {failure}");
                Ok(())
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn ask_reflector(&self, talk: &mut Talk, is_gateway: bool) -> Result<(), End> {
        if is_gateway {
            talk.reflect = Some(talk.session.send(Request::Reflect).await?);
        }
        Ok(())
    }

    async fn handle_reflector(&self, talk: &mut Talk, reply: Reply) -> Result<(), End> {
        talk.reflect = None;
        match reply {
            Reply::Reflector(Reflector { session, key, port }) => {
                let session = ReflectorSession {
                    session,
                    key,
                    addresses: talk.session.addresses_at(port),
                };
                let mut keeper = self.shared.keeper.lock().await;
                keeper.handle_reflector(self.store, Some(session));
                Ok(())
            }
            Reply::Refused(refusal) => {
                let failure = talk.failure(Why::Refused(refusal));
                tracing::debug!("no reflector: {failure}");
                Ok(())
            }
            Reply::Enrolled { .. }
            | Reply::Authenticated { .. }
            | Reply::Published { .. }
            | Reply::Watching
            | Reply::Ledger { .. }
            | Reply::LedgerTaken { .. }
            | Reply::Nodes(_)
            | Reply::Uses(_)
            | Reply::Pong
            | Reply::Relay(_) => Err(talk.failed(Why::OutOfOrder)),
        }
    }

    async fn go_on(&mut self, talk: &mut Talk) -> End {
        loop {
            let due = talk.due(&self.shared.timing, self.relist_at);
            let done = tokio::select! {
                answer = talk.session.next() => match answer {
                    Ok(answer) => self.handle_answer(talk, answer).await,
                    Err(failure) => Err(failure.into()),
                },
                changed = self.news.changed() => match changed {
                    Ok(()) => self.handle_news(talk).await,
                    Err(_) => Err(End::Stopped),
                },
                () = sleep_until(due) => self.handle_timeout(talk).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// This node has something new to say, or the ledger has grown, by whatever conversation.
    async fn handle_news(&mut self, talk: &mut Talk) -> Result<(), End> {
        let news = *self.news.borrow_and_update();
        if news.stopped {
            return Err(End::Stopped);
        }
        let mut keeper = self.shared.keeper.lock().await;
        self.check_broker(&keeper, talk)?;
        if talk.caught_up && keeper.register.take_relist(self.store) {
            return Err(End::Relist);
        }
        let lacks = !keeper
            .register
            .mesh
            .ledger()
            .missing(&talk.heads)
            .is_empty();
        drop(keeper);
        if lacks && talk.hand_at.is_none() && talk.handed.is_none() {
            // Others have the same to hand over; one of them does for all.
            talk.hand_at = Some(Instant::now() + self.chance.shorten(HANDED));
        }
        if news.own != talk.own {
            talk.own = news.own;
            return self.send_own(talk).await;
        }
        Ok(())
    }

    /// Hands over what the broker still lacks of the ledger, as much as one message takes.
    async fn hand_entries(&self, talk: &mut Talk) -> Result<(), End> {
        talk.hand_at = None;
        let missing: Vec<_> = {
            let keeper = self.shared.keeper.lock().await;
            let missing = keeper.register.mesh.ledger().missing(&talk.heads);
            missing.into_iter().cloned().collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let (number, count) = talk.session.send_ledger(&missing).await?;
        talk.handed = Some(number);
        // Taken or not, these are not handed over again.
        talk.heads
            .extend(missing[..count].iter().map(SignedEntry::hash));
        Ok(())
    }

    async fn handle_answer(&mut self, talk: &mut Talk, answer: Answer) -> Result<(), End> {
        talk.heard = Instant::now();
        let (number, reply) = match answer {
            Answer::Push(push) => return self.handle_push(talk, &push).await,
            Answer::Reply { number, reply } => (number, reply),
            // On another connection, if at all.
            Answer::Open { .. } | Answer::Carried { .. } => {
                return Err(talk.failed(Why::OutOfOrder));
            }
        };
        if talk.pinged.is_some_and(|(pinged, _)| pinged == number) {
            talk.pinged = None;
            return if reply == Reply::Pong {
                Ok(())
            } else {
                Err(talk.failed(Why::OutOfOrder))
            };
        }
        if talk.reflect == Some(number) {
            return self.handle_reflector(talk, reply).await;
        }
        if talk.handed == Some(number) {
            talk.handed = None;
            return self.handle_handed(talk, reply).await;
        }
        if talk.published.pop_front() != Some(number) {
            return Err(talk.failed(Why::OutOfOrder));
        }
        // The word on the latest record is the one that counts.
        if talk.published.is_empty() {
            self.handle_published(talk, reply).await
        } else {
            Ok(())
        }
    }

    async fn handle_handed(&self, talk: &mut Talk, reply: Reply) -> Result<(), End> {
        match reply {
            Reply::LedgerTaken { .. } => self.hand_entries(talk).await,
            Reply::Refused(refusal) => {
                let failure = talk.failure(Why::Refused(refusal));
                tracing::warn!("entries of the ledger were not taken by {failure}");
                Ok(())
            }
            Reply::Enrolled { .. }
            | Reply::Authenticated { .. }
            | Reply::Published { .. }
            | Reply::Watching
            | Reply::Ledger { .. }
            | Reply::Reflector(_)
            | Reply::Nodes(_)
            | Reply::Uses(_)
            | Reply::Pong
            | Reply::Relay(_) => Err(talk.failed(Why::OutOfOrder)),
        }
    }

    async fn handle_push(&mut self, talk: &mut Talk, push: &Push) -> Result<(), End> {
        let source = self.source(&talk.broker);
        let mut keeper = self.shared.keeper.lock().await;
        if push.caught_up && !talk.caught_up {
            keeper.count_reachable().await;
            talk.caught_up = true;
        }
        keeper.register.handle_push(&source, push, crate::now());
        talk.note_entries(push, keeper.register.mesh.ledger());
        let kept = keeper.keep().await;
        if push.caught_up && kept {
            keeper.tidy().await;
        }
        keeper.show();
        self.check_broker(&keeper, talk)?;
        let relist = keeper.register.take_relist(self.store);
        let behind = keeper.register.own.is_behind();
        drop(keeper);
        if push.caught_up && self.relist {
            self.relist = false;
            self.relist_at = talk.heard + self.relist_wait();
        }
        if relist && talk.caught_up {
            return Err(End::Relist);
        }
        if behind {
            return self.raise_own(talk).await;
        }
        Ok(())
    }

    /// The ledger may have removed the broker we talk to, or given it another store.
    fn check_broker(&self, keeper: &Keeper, talk: &Talk) -> Result<(), End> {
        let charter = keeper.register.mesh.charter();
        let allowed = contacts(&self.shared.local.membership.brokers, charter);
        let key = talk.broker.key;
        if !allowed.iter().any(|contact| contact.key == key) {
            Err(talk.failed(Why::Removed))
        } else if StoreName::of(&key, charter) != self.store {
            Err(talk.failed(Why::OtherStore))
        } else {
            Ok(())
        }
    }

    async fn handle_published(&self, talk: &mut Talk, reply: Reply) -> Result<(), End> {
        if matches!(reply, Reply::Published { .. }) {
            self.clear_problem().await;
            return Ok(());
        }
        let Reply::Refused(refusal) = reply else {
            return Err(talk.failed(Why::OutOfOrder));
        };
        if let Refusal::OldSequence { latest } = refusal {
            let behind = {
                let mut keeper = self.shared.keeper.lock().await;
                keeper.register.own.handle_claimed(latest);
                keeper.register.own.is_behind()
            };
            if behind {
                return self.raise_own(talk).await;
            }
        }
        let again = if let Refusal::TooOften { retry_s } = refusal {
            Duration::from_secs(u64::from(retry_s.clamp(1, 60)))
        } else {
            self.shared.timing.republish
        };
        talk.republish_at = Some(Instant::now() + again);
        let failure = talk.failure(Why::Refused(refusal));
        self.note_refusal(&failure).await;
        Ok(())
    }

    /// Signs above a number of ours that is about. Not again and again: two machines with copies
    /// of one directory would drive each other up.
    async fn raise_own(&self, talk: &mut Talk) -> Result<(), End> {
        let now = Instant::now();
        let wait = self.shared.timing.republish;
        let mut keeper = self.shared.keeper.lock().await;
        match keeper.raised {
            Some(raised) if raised + wait > now => {
                talk.republish_at = Some(raised + wait);
                Ok(())
            }
            Some(_) | None => {
                keeper.raised = Some(now);
                drop(keeper);
                self.send_own(talk).await
            }
        }
    }

    /// Sends the record as it is wanted now; a broker that has it already says so cheaply.
    async fn send_own(&self, talk: &mut Talk) -> Result<(), End> {
        talk.republish_at = None;
        let mut keeper = self.shared.keeper.lock().await;
        if !keeper.has_presence() {
            return Ok(());
        }
        let durable = keeper.sign().await;
        talk.own = self.news.borrow().own;
        let member = keeper.register.own.member().filter(|_| durable);
        let Some(member) = member.map(Member::write) else {
            talk.republish_at = Some(Instant::now() + self.shared.timing.republish);
            keeper.show();
            return Ok(());
        };
        drop(keeper);
        let number = talk.session.send(Request::Publish { member }).await?;
        talk.published.push_back(number);
        Ok(())
    }

    async fn handle_timeout(&mut self, talk: &mut Talk) -> Result<(), End> {
        let now = Instant::now();
        let timing = self.shared.timing;
        if let Some((_, pinged)) = talk.pinged
            && talk.heard.max(pinged) + timing.dead <= now
        {
            return Err(talk.failed(Why::Silent(timing.quiet + timing.dead)));
        }
        if !talk.caught_up && talk.began + timing.caught_up <= now {
            return Err(talk.failed(Why::Withholding(timing.caught_up)));
        }
        if talk.pinged.is_none() && talk.heard + timing.quiet <= now {
            talk.pinged = Some((talk.session.send(Request::Ping).await?, now));
        }
        if talk.republish_at.is_some_and(|at| at <= now) {
            self.send_own(talk).await?;
        }
        if talk.hand_at.is_some_and(|at| at <= now) {
            self.hand_entries(talk).await?;
        }
        if self.relist_at <= now {
            // Should this broker not manage, the next try is not at once.
            self.relist_at = now + self.relist_wait();
            return Err(End::Elsewhere);
        }
        Ok(())
    }

    fn relist_wait(&mut self) -> Duration {
        self.chance.shorten(self.shared.timing.relist)
    }

    async fn clear_problem(&self) {
        self.set_problem(None).await;
    }

    async fn note_refusal(&self, failure: &Failure) {
        let Some(refusal) = failure.refusal() else {
            return;
        };
        let problem = if let Refusal::NameTaken { holder, heard_s } = refusal {
            Problem::NameTaken {
                holder: PublicKey::new(*holder)
                    .map_or_else(|_| "an invalid key".to_owned(), |key| key.to_string()),
                heard_s: *heard_s,
            }
        } else {
            Problem::NotTaken {
                by: failure.address.clone(),
                refusal: refusal.clone(),
            }
        };
        self.set_problem(Some(problem)).await;
    }

    async fn set_problem(&self, problem: Option<Problem>) {
        let mut keeper = self.shared.keeper.lock().await;
        if let Some(touch) = keeper.touch(self.store) {
            touch.own_problem = problem;
        }
        keeper.show();
    }
}

impl Talk {
    fn new(session: Session, broker: &TokenBroker) -> Talk {
        let now = Instant::now();
        Talk {
            session,
            broker: broker.clone(),
            began: now,
            caught_up: false,
            heard: now,
            pinged: None,
            published: VecDeque::new(),
            republish_at: None,
            own: 0,
            heads: Vec::new(),
            hand_at: None,
            handed: None,
            reflect: None,
        }
    }

    /// When there is something to do though nothing was received.
    fn due(&self, timing: &Timing, relist_at: Instant) -> Instant {
        let alive = match self.pinged {
            Some((_, pinged)) => self.heard.max(pinged) + timing.dead,
            None => self.heard + timing.quiet,
        };
        let caught_up = (!self.caught_up).then(|| self.began + timing.caught_up);
        [Some(alive), caught_up, self.republish_at, self.hand_at]
            .into_iter()
            .flatten()
            .fold(relist_at, Instant::min)
    }

    /// What the broker has shown it need not be handed. Only what is in the ledger counts, so that
    /// this grows no further than that.
    fn note_entries(&mut self, push: &Push, ledger: &Ledger) {
        for bytes in &push.entries {
            let hash = SignedEntry::read(bytes).map(|entry| entry.hash());
            if let Ok(hash) = hash
                && ledger.entry(&hash).is_some()
                && !self.heads.contains(&hash)
            {
                self.heads.push(hash);
            }
        }
    }

    fn failed(&self, why: Why) -> End {
        End::Failed(self.failure(why))
    }

    fn failure(&self, why: Why) -> Failure {
        Failure {
            address: self.broker.address.clone(),
            why,
        }
    }
}
