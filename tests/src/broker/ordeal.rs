//! A broker that is killed while records, enrolments and ledger entries are written, and everything
//! it has acknowledged before.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use proto::entry::{Role, Uses};
use proto::key::{Hash, PublicKey};
use proto::message::{Refusal, Reply, Request};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::cast::{Actor, Authority, Ticket};
use super::client::{Client, Target, runtime};
use super::{ENOUGH, Mesh};

const WRITERS: usize = 4;
/// Writers take turns by rounds: a broker lets one node publish ten records a second.
const SHIFTS: usize = 8;
/// A ledger grows more slowly than a store, and is read whole at each start.
const ROUNDS_PER_ENTRY: usize = 10;
/// That all enrolments are there is seen at the end.
const ROUNDS_PER_JOIN: usize = 4;

pub struct Ordeal {
    mesh: Mesh,
    authority: Authority,
    target: Target,
    ticket: Arc<Ticket>,
    runtime: Option<Runtime>,
    /// `None` while it writes.
    writers: Vec<Option<Actor>>,
    /// Sequence numbers that were acknowledged.
    sequences: HashMap<PublicKey, u64>,
    enrolled: Vec<Actor>,
    head: Hash,
    pub records: u64,
    pub slowest_start: Duration,
}

impl Ordeal {
    pub fn new() -> Result<Ordeal> {
        let mut mesh = Mesh::at_rest("kill")?;
        let mut authority = Authority::of(&mesh)?;
        let ticket = authority.grant("paris", "10.1.0.0/16", Uses::Unlimited)?;
        authority.save(std::iter::once(&ticket.entry))?;
        mesh.brokers[0].start()?;
        let mut ordeal = Ordeal {
            target: authority.target(&mesh.brokers[0])?,
            head: ticket.entry.hash(),
            ticket: Arc::new(ticket),
            runtime: Some(runtime()?),
            writers: Vec::new(),
            sequences: HashMap::new(),
            enrolled: Vec::new(),
            records: 0,
            slowest_start: Duration::ZERO,
            mesh,
            authority,
        };
        for number in 0..WRITERS * SHIFTS {
            let actor = actor(&ordeal.authority, &format!("w{number}"))?;
            let enrolled = ordeal.run(enrol(
                ordeal.target.clone(),
                Arc::clone(&ordeal.ticket),
                actor,
            ))?;
            let enrolled = enrolled.context("the broker that was not killed is gone")?;
            ordeal.writers.push(Some(enrolled));
        }
        ordeal.mesh.brokers[0].kill();
        Ok(ordeal)
    }

    /// One life of the broker: it starts, shows what it has, and is killed a while after it was
    /// first asked to write.
    pub fn round(&mut self, round: usize, life: Duration) -> Result<()> {
        let begin = Instant::now();
        self.mesh.brokers[0].start_without_waiting()?;
        let mut client = self.run(first_client(self.target.clone()))?;
        self.slowest_start = self.slowest_start.max(begin.elapsed());
        self.check(&mut client)?;
        if round.is_multiple_of(ROUNDS_PER_JOIN) {
            self.check_last_enrolment()?;
        }
        if round.is_multiple_of(ROUNDS_PER_ENTRY) {
            self.put_entry(&mut client, round)?;
        }
        drop(client);
        self.write_and_kill(round, life)
    }

    /// Everything once more, every enrolment included.
    pub fn finish(&mut self) -> Result<()> {
        self.mesh.brokers[0].start()?;
        let mut client = self.run(first_client(self.target.clone()))?;
        self.check(&mut client)?;
        let uses = self.run(uses(&mut client))?;
        let lost = self
            .enrolled
            .iter()
            .filter(|actor| !uses.contains(actor.identity.public().as_bytes()));
        let lost = lost.count();
        if lost > 0 {
            bail!("{lost} of {} enrolments are lost", self.enrolled.len());
        }
        Ok(())
    }

    pub fn last_log(&self) -> String {
        let log = self.mesh.brokers[0].log();
        let lines: Vec<&str> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime = self.runtime.as_ref().expect("it lives as long as this");
        runtime.block_on(work)
    }

    fn check(&self, client: &mut Client) -> Result<()> {
        let (found, heads) = self.run(async {
            let reply = client.authenticate_authority(&self.authority.key).await?;
            let Reply::Authenticated { .. } = &reply else {
                bail!("not authenticated: {reply:?}");
            };
            let found = client.sequences().await?;
            let heads = vec![self.head.0];
            let reply = client.call(Request::Ledger { heads }).await?;
            let Reply::Ledger { heads, .. } = reply else {
                bail!("no ledger: {reply:?}");
            };
            Ok((found, heads))
        })?;
        for (identity, acknowledged) in &self.sequences {
            let kept = found.get(identity).copied();
            if kept.is_none_or(|kept| kept < *acknowledged) {
                bail!("record {acknowledged} of {identity} was acknowledged; there is {kept:?}");
            }
        }
        if heads != [self.head.0] {
            bail!("the ledger ends elsewhere than acknowledged");
        }
        Ok(())
    }

    /// Who shows the same identity again gets the same enrolment.
    fn check_last_enrolment(&mut self) -> Result<()> {
        let Some(actor) = self.enrolled.pop() else {
            return Ok(());
        };
        let before = actor.enrolment.clone();
        let again = enrol(self.target.clone(), Arc::clone(&self.ticket), actor);
        let actor = self.run(again)?.context("the broker is gone")?;
        if actor.enrolment != before {
            bail!("an acknowledged enrolment was made anew");
        }
        self.enrolled.push(actor);
        Ok(())
    }

    fn put_entry(&mut self, client: &mut Client, round: usize) -> Result<()> {
        let (site, prefix) = (
            format!("site-{round}"),
            format!("10.{}.{}.0/24", 100 + round / 256, round % 256),
        );
        let ticket = self.authority.grant(&site, &prefix, Uses::AtMost(1))?;
        let entries = vec![ticket.entry.bytes().to_owned()];
        let reply = self.run(client.call(Request::PutLedger { entries }))?;
        let Reply::LedgerTaken { .. } = &reply else {
            bail!("no entry taken: {reply:?}");
        };
        self.head = ticket.entry.hash();
        Ok(())
    }

    fn write_and_kill(&mut self, round: usize, life: Duration) -> Result<()> {
        let begun = Arc::new(AtomicBool::new(false));
        let shift = round % SHIFTS * WRITERS;
        let runtime = self.runtime.take().context("a round within a round")?;
        let writers: Vec<(usize, JoinHandle<Result<Written>>)> = (shift..shift + WRITERS)
            .map(|number| {
                let actor = self.writers[number].take().expect("nobody else has it");
                let work = write_on(self.target.clone(), actor, Arc::clone(&begun), number);
                (number, runtime.spawn(work))
            })
            .collect();
        let joiner = actor(&self.authority, &format!("e{round}"))?;
        let ticket = Arc::clone(&self.ticket);
        let joiner = runtime.spawn(enrol(self.target.clone(), ticket, joiner));
        let outcome = runtime.block_on(async {
            let deadline = Instant::now() + ENOUGH;
            while !begun.load(Ordering::Relaxed) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            tokio::time::sleep(life).await;
            self.mesh.brokers[0].kill();
            for (number, writer) in writers {
                let written = writer.await??;
                self.records += written.records;
                if let Some(last) = written.last {
                    let identity = written.actor.identity.public();
                    self.sequences.insert(identity, last);
                }
                self.writers[number] = Some(written.actor);
            }
            self.enrolled.extend(joiner.await??);
            anyhow::Ok(())
        });
        self.runtime = Some(runtime);
        outcome
    }
}

impl fmt::Display for Ordeal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} records and {} enrolments acknowledged, slowest start {:?}",
            self.records,
            self.enrolled.len(),
            self.slowest_start
        )
    }
}

/// Of one writer in one round.
struct Written {
    actor: Actor,
    records: u64,
    /// The last sequence that was acknowledged.
    last: Option<u64>,
}

fn actor(authority: &Authority, name: &str) -> Result<Actor> {
    let mut actor = Actor::new(authority.mesh, "paris", name)?;
    // A site may have many agents, and few gateways.
    actor.role = Role::Agent;
    Ok(actor)
}

/// As soon as the broker listens.
async fn first_client(target: Target) -> Result<Client> {
    let begin = Instant::now();
    loop {
        match target.connect(Some(address(0))).await {
            Ok(client) => return Ok(client),
            Err(why) if begin.elapsed() > ENOUGH => return Err(why),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// `None` if the broker ended before it answered.
async fn enrol(target: Target, ticket: Arc<Ticket>, mut actor: Actor) -> Result<Option<Actor>> {
    let Ok(mut client) = target.connect(Some(address(1))).await else {
        return Ok(None);
    };
    let reply = client
        .enrol(&ticket.entry, &ticket.join_key(), &actor.identity)
        .await;
    match reply {
        Ok(Reply::Enrolled { enrolment }) => {
            actor.enrolment = enrolment;
            Ok(Some(actor))
        }
        Ok(other) => bail!("not enrolled: {other:?}"),
        Err(_) => Ok(None),
    }
}

/// Publishes one record after the other until the broker ends, or asks for patience.
async fn write_on(
    target: Target,
    actor: Actor,
    begun: Arc<AtomicBool>,
    number: usize,
) -> Result<Written> {
    let mut written = Written {
        actor,
        records: 0,
        last: None,
    };
    let from = Some(address(2 + number));
    let Ok(mut client) = target.connect(from).await else {
        return Ok(written);
    };
    let actor = &written.actor;
    match client.authenticate(&actor.identity, &actor.enrolment).await {
        Ok(Reply::Authenticated { .. }) => {}
        Ok(other) => bail!("not authenticated: {other:?}"),
        Err(_) => return Ok(written),
    }
    loop {
        let member = written.actor.next_member("zone");
        begun.store(true, Ordering::Relaxed);
        match client.call(Request::Publish { member }).await {
            Ok(Reply::Published { .. }) => {
                written.records += 1;
                written.last = Some(written.actor.sequence);
            }
            Ok(Reply::Refused(Refusal::TooOften { .. })) | Err(_) => return Ok(written),
            Ok(other) => bail!("not published: {other:?}"),
        }
    }
}

async fn uses(client: &mut Client) -> Result<HashSet<[u8; 32]>> {
    let mut found = HashSet::new();
    let mut after = None;
    loop {
        let reply = client.call(Request::ListUses { after }).await?;
        let Reply::Uses(uses) = reply else {
            bail!("no uses: {reply:?}");
        };
        let Some(last) = uses.last() else {
            return Ok(found);
        };
        after = Some((last.grant, last.use_number));
        found.extend(uses.iter().map(|used| used.identity));
    }
}

/// 127.3.0.0 and on.
fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap_or(0);
    Ipv4Addr::from_bits(0x7f03_0001 + number).into()
}
