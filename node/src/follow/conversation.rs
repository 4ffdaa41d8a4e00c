//! One conversation with one broker: log in, exchange ledgers, watch, publish, and notice when
//! it has gone silent.

use std::collections::VecDeque;

use proto::key::{Hash, PublicKey};
use proto::message::{Answer, Push, Refusal, Reply, Request};
use proto::token::TokenBroker;
use tokio::time::{Duration, Instant, sleep_until};

use super::Timing;
use super::driver::{Driver, End};
use super::view::{BrokerState, Problem};
use crate::contacts::contacts;
use crate::login::log_in;
use crate::session::{Failure, Session, Why};

/// How often the time a broker was reachable is counted, and kept.
const COUNTED: Duration = Duration::from_secs(600);

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
    /// When a record was last signed because a higher number of ours was about.
    raised: Option<Instant>,
    /// Up to when the broker's being reachable has been counted.
    counted: Instant,
}

impl Driver {
    pub(super) async fn converse(&mut self, session: Session, broker: &TokenBroker) -> End {
        let mut talk = Talk::new(session, broker);
        if let Err(end) = self.begin(&mut talk).await {
            return end;
        }
        self.broker = BrokerState::Connected {
            address: broker.address.clone(),
        };
        self.show();
        tracing::info!(broker = broker.address, "in touch with a broker");
        let end = self.go_on(&mut talk).await;
        self.count_reachable(&mut talk).await;
        if matches!(end, End::Stopped | End::Relist | End::Elsewhere) {
            talk.session.close().await;
        }
        end
    }

    async fn begin(&mut self, talk: &mut Talk) -> Result<(), End> {
        let login = self.log_in(talk).await?;
        if let Err(failure) = login {
            self.note_refusal(&failure);
            return Err(failure.into());
        }
        self.exchange_ledgers(talk).await?;
        let watch = Request::Watch {
            resume: self.register.position().filter(|_| !self.relist),
            heads: self.heads(),
        };
        let watching = self.unless_stopped(talk.session.call(watch)).await;
        if watching.ok_or(End::Stopped)?? != Reply::Watching {
            return Err(talk.failed(Why::OutOfOrder));
        }
        self.own_problem = None;
        self.send_own(talk).await
    }

    /// A broker whose ledger lacks our grant knows us once it has the entries that we have.
    async fn log_in(&mut self, talk: &mut Talk) -> Result<Result<(), Failure>, End> {
        let local = self.local.clone();
        let ledger: Vec<_> = self.register.mesh.ledger().entries().cloned().collect();
        let login = log_in(&mut talk.session, &local, &ledger);
        self.unless_stopped(login).await.ok_or(End::Stopped)
    }

    /// Each has what the other had: revocations spread with every node that connects.
    async fn exchange_ledgers(&mut self, talk: &mut Talk) -> Result<(), End> {
        let ours: Vec<Hash> = self.register.mesh.ledger().heads();
        let fetched = self.unless_stopped(talk.session.fetch_ledger(&ours)).await;
        let fetched = fetched.ok_or(End::Stopped)??;
        self.register.handle_entries(&fetched.entries, crate::now());
        self.cache.keep(&mut self.register).await;
        self.show();
        self.check_broker(talk)?;
        let missing: Vec<_> = self.register.mesh.ledger().missing(&fetched.heads);
        let missing: Vec<_> = missing.into_iter().cloned().collect();
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

    async fn go_on(&mut self, talk: &mut Talk) -> End {
        loop {
            let due = talk.due(&self.options.timing, self.relist_at);
            let done = tokio::select! {
                answer = talk.session.next() => match answer {
                    Ok(answer) => self.handle_answer(talk, answer).await,
                    Err(failure) => Err(failure.into()),
                },
                command = self.commands.recv() => {
                    if self.handle_command(command).await {
                        self.send_own(talk).await
                    } else {
                        Err(End::Stopped)
                    }
                }
                () = sleep_until(due) => self.handle_timeout(talk).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn handle_answer(&mut self, talk: &mut Talk, answer: Answer) -> Result<(), End> {
        talk.heard = Instant::now();
        match answer {
            Answer::Push(push) => self.handle_push(talk, &push).await,
            Answer::Reply { number, reply } => {
                if talk.pinged.is_some_and(|(pinged, _)| pinged == number) {
                    talk.pinged = None;
                    return if reply == Reply::Pong {
                        Ok(())
                    } else {
                        Err(talk.failed(Why::OutOfOrder))
                    };
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
        }
    }

    async fn handle_push(&mut self, talk: &mut Talk, push: &Push) -> Result<(), End> {
        self.register.handle_push(push, crate::now());
        let kept = self.cache.keep(&mut self.register).await;
        if push.caught_up && !talk.caught_up {
            talk.caught_up = true;
            talk.counted = talk.heard;
        }
        if push.caught_up && self.relist {
            self.relist = false;
            self.relist_at = talk.heard + self.relist_wait();
        }
        if push.caught_up && kept {
            self.cache.tidy(&self.register).await;
        }
        self.show();
        self.check_broker(talk)?;
        if self.register.take_relist() && talk.caught_up {
            return Err(End::Relist);
        }
        if self.register.own.is_behind() {
            return self.raise_own(talk).await;
        }
        Ok(())
    }

    /// The ledger may have removed the broker we talk to.
    fn check_broker(&self, talk: &Talk) -> Result<(), End> {
        let charter = self.register.mesh.charter();
        let allowed = contacts(&self.local.membership.brokers, charter);
        if allowed.iter().any(|contact| contact.key == talk.broker.key) {
            Ok(())
        } else {
            Err(talk.failed(Why::Removed))
        }
    }

    async fn handle_published(&mut self, talk: &mut Talk, reply: Reply) -> Result<(), End> {
        if matches!(reply, Reply::Published { .. }) {
            self.own_problem = None;
            self.show();
            return Ok(());
        }
        let Reply::Refused(refusal) = reply else {
            return Err(talk.failed(Why::OutOfOrder));
        };
        if let Refusal::OldSequence { latest } = refusal {
            self.register.own.handle_claimed(latest);
            if self.register.own.is_behind() {
                return self.raise_own(talk).await;
            }
        }
        let again = if let Refusal::TooOften { retry_s } = refusal {
            Duration::from_secs(u64::from(retry_s.clamp(1, 60)))
        } else {
            self.options.timing.republish
        };
        talk.republish_at = Some(Instant::now() + again);
        self.note_refusal(&Failure {
            address: talk.broker.address.clone(),
            why: Why::Refused(refusal),
        });
        self.show();
        Ok(())
    }

    /// Signs above a number of ours that is about. Not again and again: two machines with copies
    /// of one directory would drive each other up.
    async fn raise_own(&mut self, talk: &mut Talk) -> Result<(), End> {
        let now = Instant::now();
        let wait = self.options.timing.republish;
        match talk.raised {
            Some(raised) if raised + wait > now => {
                talk.republish_at = Some(raised + wait);
                Ok(())
            }
            Some(_) | None => {
                talk.raised = Some(now);
                self.send_own(talk).await
            }
        }
    }

    /// Sends the record as it is wanted now; a broker that has it already says so cheaply.
    async fn send_own(&mut self, talk: &mut Talk) -> Result<(), End> {
        talk.republish_at = None;
        if self.presence.is_none() {
            return Ok(());
        }
        let durable = self.sign().await;
        let Some(member) = self.register.own.member().filter(|_| durable) else {
            talk.republish_at = Some(Instant::now() + self.options.timing.republish);
            self.show();
            return Ok(());
        };
        let member = member.write();
        let number = talk.session.send(Request::Publish { member }).await?;
        talk.published.push_back(number);
        Ok(())
    }

    async fn handle_timeout(&mut self, talk: &mut Talk) -> Result<(), End> {
        let now = Instant::now();
        let timing = self.options.timing;
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
        if talk.counted + COUNTED <= now {
            self.count_reachable(talk).await;
            self.show();
        }
        if self.relist_at <= now {
            // Should this broker not manage, the next try is not at once.
            self.relist_at = now + self.relist_wait();
            return Err(End::Elsewhere);
        }
        Ok(())
    }

    async fn count_reachable(&mut self, talk: &mut Talk) {
        if talk.caught_up {
            self.register.handle_reachable(talk.counted.elapsed());
            talk.counted = Instant::now();
            self.cache.keep(&mut self.register).await;
        }
    }

    fn note_refusal(&mut self, failure: &Failure) {
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
        self.own_problem = Some(problem);
    }

    fn heads(&self) -> Vec<[u8; 32]> {
        let heads = self.register.mesh.ledger().heads();
        heads.iter().map(|head| head.0).collect()
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
            raised: None,
            counted: now,
        }
    }

    /// When there is something to do though nothing was received.
    fn due(&self, timing: &Timing, relist_at: Instant) -> Instant {
        let alive = match self.pinged {
            Some((_, pinged)) => self.heard.max(pinged) + timing.dead,
            None => self.heard + timing.quiet,
        };
        let caught_up = (!self.caught_up).then(|| self.began + timing.caught_up);
        [
            Some(alive),
            caught_up,
            self.republish_at,
            Some(self.counted + COUNTED),
        ]
        .into_iter()
        .flatten()
        .fold(relist_at, Instant::min)
    }

    fn failed(&self, why: Why) -> End {
        End::Failed(Failure {
            address: self.broker.address.clone(),
            why,
        })
    }
}
