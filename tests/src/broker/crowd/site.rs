//! One simulated site: its connection, its place in the watch, and what it has seen.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use proto::entry::SignedEntry;
use proto::key::{Hash, PublicKey};
use proto::message::{Answer, Position, Push, Reply, Request};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::memo::Memo;
use crate::broker::cast::{Actor, Ticket, random};
use crate::broker::client::{Client, Target};

/// Well below the minute after which a broker takes a node for gone.
const PING: Duration = Duration::from_secs(20);
const FIRST_WAIT_MS: u64 = 500;
const LONGEST_WAIT_MS: u64 = 8000;

/// What a site has seen; times are its own.
pub(super) enum Seen {
    /// Its own record before it was sent, another's once it was verified.
    Change {
        site: usize,
        of: PublicKey,
        sequence: u64,
        at: Instant,
    },
    /// Everything the broker has, from so many nodes.
    CaughtUp {
        site: usize,
        known: usize,
        broker: SocketAddr,
    },
    /// As it was told to.
    Forgotten {
        site: usize,
    },
    Lost {
        site: usize,
        why: String,
    },
}

pub(super) enum Order {
    /// The next record.
    Publish,
    /// All it has seen, so that it asks for everything when it comes back.
    Forget,
}

pub(super) struct Site {
    number: usize,
    actor: Actor,
    ticket: Ticket,
    report: Sender<Seen>,
    resume: Option<Position>,
    head: Option<Hash>,
    /// The last sequence of each identity.
    known: HashMap<PublicKey, u64>,
    published: bool,
    /// The one it was last connected to.
    broker: SocketAddr,
}

/// What ends a wait.
enum Next {
    Answer(Result<Answer>),
    Order(Option<Order>),
    Ping,
}

impl Site {
    pub(super) fn new(number: usize, actor: Actor, ticket: Ticket, report: Sender<Seen>) -> Site {
        Site {
            number,
            actor,
            ticket,
            report,
            resume: None,
            head: None,
            known: HashMap::new(),
            published: false,
            broker: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        }
    }

    /// Connected for as long as the crowd is, to whichever broker it finds.
    pub(super) async fn live(
        mut self,
        targets: Arc<[Target]>,
        memo: Arc<Memo>,
        gate: Arc<Semaphore>,
        mut orders: UnboundedReceiver<Order>,
    ) {
        let mut attempts = 0;
        for turn in self.number.. {
            let target = &targets[turn % targets.len()];
            let permit = gate.acquire().await;
            let joined = self.come_in(target).await;
            drop(permit);
            let outcome = match joined {
                Ok(client) => {
                    attempts = 0;
                    self.broker = target.address;
                    self.stay(client, &memo, &mut orders).await
                }
                Err(why) => Err(why),
            };
            let Err(why) = outcome else {
                return;
            };
            self.tell(Seen::Lost {
                site: self.number,
                why: format!("{why:#}"),
            });
            sleep(back_off(attempts)).await;
            attempts += 1;
        }
    }

    /// Enrols if need be, authenticates and publishes what is not yet published.
    async fn come_in(&mut self, target: &Target) -> Result<Client> {
        let from = Some(self.address());
        if self.actor.enrolment.is_empty() {
            let mut client = target.connect(from).await?;
            let key = self.ticket.join_key();
            let identity = &self.actor.identity;
            let reply = client.enrol(&self.ticket.entry, &key, identity).await?;
            let Reply::Enrolled { enrolment } = &reply else {
                bail!("not enrolled: {reply:?}");
            };
            self.actor.enrolment.clone_from(enrolment);
        }
        let mut client = target.connect(from).await?;
        let actor = &self.actor;
        let reply = client
            .authenticate(&actor.identity, &actor.enrolment)
            .await?;
        let Reply::Authenticated { .. } = &reply else {
            bail!("not authenticated: {reply:?}");
        };
        if !self.published {
            self.publish(&mut client).await?;
            self.published = true;
        }
        Ok(client)
    }

    /// Follows the watch until the connection ends; `Ok` when the crowd does.
    async fn stay(
        &mut self,
        mut client: Client,
        memo: &Memo,
        orders: &mut UnboundedReceiver<Order>,
    ) -> Result<()> {
        let heads = self.head.iter().map(|head| head.0).collect();
        let resume = self.resume;
        let reply = client.call(Request::Watch { resume, heads }).await?;
        let Reply::Watching = &reply else {
            bail!("not watching: {reply:?}");
        };
        let mut pings = interval(PING);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                answer = client.answer() => Next::Answer(answer),
                order = orders.recv() => Next::Order(order),
                _ = pings.tick() => Next::Ping,
            };
            match next {
                Next::Answer(answer) => match answer? {
                    Answer::Push(push) => self.handle_push(&push, memo)?,
                    Answer::Reply {
                        reply: Reply::Pong, ..
                    } => {}
                    Answer::Reply { reply, .. } => bail!("unasked: {reply:?}"),
                    Answer::Open { .. } | Answer::Carried { .. } => {
                        bail!("nobody asked for a relay")
                    }
                },
                Next::Order(Some(Order::Publish)) => self.publish(&mut client).await?,
                Next::Order(Some(Order::Forget)) => {
                    self.resume = None;
                    self.head = None;
                    self.known.clear();
                    self.tell(Seen::Forgotten { site: self.number });
                }
                Next::Order(None) => return Ok(()),
                Next::Ping => drop(client.ask(Request::Ping).await?),
            }
        }
    }

    async fn publish(&mut self, client: &mut Client) -> Result<()> {
        let member = self.actor.next_member("zone");
        let (of, sequence) = (self.actor.identity.public(), self.actor.sequence);
        let (site, at) = (self.number, Instant::now());
        self.tell(Seen::Change {
            site,
            of,
            sequence,
            at,
        });
        let reply = client.call(Request::Publish { member }).await?;
        let Reply::Published { .. } = &reply else {
            bail!("not published: {reply:?}");
        };
        Ok(())
    }

    fn handle_push(&mut self, push: &Push, memo: &Memo) -> Result<()> {
        if push.reset {
            self.known.clear();
        }
        for entry in &push.entries {
            memo.handle_entry(entry)?;
        }
        if let Some(last) = push.entries.last() {
            self.head = Some(SignedEntry::read(last)?.hash());
        }
        for member in &push.members {
            let (of, sequence) = memo.verified(member)?;
            let before = self.known.insert(of, sequence);
            if before.is_some_and(|before| before > sequence) {
                bail!("the broker went back from {before:?} to {sequence}");
            }
            // One's own is reported when it is sent.
            if of != self.actor.identity.public() {
                self.tell(Seen::Change {
                    site: self.number,
                    of,
                    sequence,
                    at: Instant::now(),
                });
            }
        }
        for identity in &push.forgotten {
            self.known
                .remove(&PublicKey::new(*identity).context("a forgotten identity")?);
        }
        self.resume = Some(push.position);
        if push.caught_up {
            // Whether a broker shows a node its own record is its own affair.
            let own = self.actor.identity.public();
            let others = self.known.keys().filter(|of| **of != own).count();
            self.tell(Seen::CaughtUp {
                site: self.number,
                known: others + 1,
                broker: self.broker,
            });
        }
        Ok(())
    }

    fn tell(&self, seen: Seen) {
        // Nobody listens any more when the crowd ends.
        let _ = self.report.send(seen);
    }

    /// 127.128.0.0 and on, apart from brokers and floods.
    fn address(&self) -> IpAddr {
        let number = u32::try_from(self.number).unwrap_or(0);
        Ipv4Addr::from_bits(0x7f80_0001 + number).into()
    }
}

/// Between half and all of a wait that doubles, as `node` does it.
fn back_off(attempts: u32) -> Duration {
    let wait = FIRST_WAIT_MS
        .saturating_mul(1 << attempts.min(10))
        .min(LONGEST_WAIT_MS);
    let [low, high, ..] = *random();
    let part = u64::from(u16::from_le_bytes([low, high]));
    Duration::from_millis(wait / 2 + wait * part / (2 * u64::from(u16::MAX)))
}
