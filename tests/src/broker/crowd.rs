//! Many sites in one process: each enrols, publishes its record, watches, and comes back when its
//! connection is lost, from an address of its own over TLS of its own.
//!
//! They are simulated in one thing: what one of them has verified, the others take as verified.
//! Checking every record a thousand times on the machine that also runs the broker would measure
//! the crowd.

mod memo;
mod site;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use proto::entry::{SignedEntry, Uses};
use proto::key::PublicKey;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use self::memo::Memo;
use self::site::{Order, Seen, Site};
use super::Mesh;
use super::cast::{Actor, Authority, Ticket};

/// Joining at once is not what is measured.
const AT_ONCE: usize = 32;

/// Sites that stay connected until this is dropped.
pub struct Crowd {
    _runtime: Runtime,
    sites: Vec<(PublicKey, UnboundedSender<Order>)>,
    seen: Receiver<Seen>,
    /// Where each site is, as far as its reports were read; none where it has lost its broker.
    places: Vec<Option<SocketAddr>>,
}

/// The grants of a crowd, signed and put where the broker finds them when it starts.
pub fn prepare(mesh: &Mesh, size: usize) -> Result<(Authority, Vec<Ticket>)> {
    let mut authority = Authority::of(mesh)?;
    let mut tickets = Vec::new();
    for number in 0..size {
        tickets.push(authority.grant(&site_name(number), &prefix(number), Uses::AtMost(1))?);
    }
    let entries: Vec<&SignedEntry> = tickets.iter().map(|ticket| &ticket.entry).collect();
    authority.save(entries.into_iter())?;
    Ok((authority, tickets))
}

impl Crowd {
    /// One site for each ticket, each with one gateway. Returns at once.
    pub fn start(mesh: &Mesh, authority: &Authority, tickets: Vec<Ticket>) -> Result<Crowd> {
        super::allow_open_files(tickets.len() + 1000)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let targets = mesh.brokers.iter().map(|broker| authority.target(broker));
        let targets: Arc<[_]> = targets.collect::<Result<Vec<_>>>()?.into();
        let memo = Arc::new(Memo::new(authority.mesh));
        let gate = Arc::new(Semaphore::new(AT_ONCE));
        let (report, seen) = channel();
        let mut sites = Vec::new();
        for (number, ticket) in tickets.into_iter().enumerate() {
            let actor = Actor::new(authority.mesh, &site_name(number), "gateway-1")?;
            let (order, orders) = unbounded_channel();
            sites.push((actor.identity.public(), order));
            let site = Site::new(number, actor, ticket, report.clone());
            runtime.spawn(site.live(
                Arc::clone(&targets),
                Arc::clone(&memo),
                Arc::clone(&gate),
                orders,
            ));
        }
        Ok(Crowd {
            _runtime: runtime,
            places: vec![None; sites.len()],
            sites,
            seen,
        })
    }

    pub fn len(&self) -> usize {
        self.sites.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// Until every site is connected and shows everybody's record, its own included.
    pub fn wait_until_all_know_all(&mut self, limit: Duration) -> Result<Duration> {
        let everybody = self.sites.len();
        self.wait_for_each("all know all", limit, |seen| match seen {
            Seen::CaughtUp { site, known, .. } if known == everybody => Some(site),
            Seen::CaughtUp { .. }
            | Seen::Change { .. }
            | Seen::Forgotten { .. }
            | Seen::Lost { .. } => None,
        })
        .map(|begin_to_end| begin_to_end.iter().max().copied().unwrap_or_default())
    }

    /// One site publishes a change; how long each other one took to have it verified, from the
    /// moment before it was sent.
    pub fn spread(&mut self, publisher: usize, limit: Duration) -> Result<Vec<Duration>> {
        let (identity, order) = &self.sites[publisher];
        let identity = *identity;
        order
            .send(Order::Publish)
            .ok()
            .context("a site has ended")?;
        let mut newest = 0;
        let mut times = Vec::new();
        let mut begun = None;
        let deadline = Instant::now() + limit;
        let mut missing: BTreeSet<usize> = (0..self.len()).collect();
        missing.remove(&publisher);
        while !missing.is_empty() || begun.is_none() {
            let Some(seen) = self.next(deadline)? else {
                bail!("{} sites lack a change after {limit:?}", missing.len());
            };
            let Seen::Change {
                site,
                of,
                sequence,
                at,
            } = seen
            else {
                continue;
            };
            if of != identity || sequence < newest {
                continue;
            }
            newest = sequence;
            if site == publisher {
                begun = Some(at);
            } else if missing.remove(&site) {
                times.push(at);
            }
        }
        let begun = begun.context("nobody published")?;
        Ok(times
            .into_iter()
            .map(|at| at.saturating_duration_since(begun))
            .collect())
    }

    /// Every site forgets what it has seen, as if its cache were lost: when it comes back it asks
    /// for everything.
    pub fn forget(&mut self, limit: Duration) -> Result<()> {
        for (_, order) in &self.sites {
            order.send(Order::Forget).ok().context("a site has ended")?;
        }
        self.wait_for_each("all have forgotten", limit, |seen| match seen {
            Seen::Forgotten { site } => Some(site),
            Seen::CaughtUp { .. } | Seen::Change { .. } | Seen::Lost { .. } => None,
        })
        .map(drop)
    }

    /// Until every site has lost its connection, which all do when the broker ends.
    pub fn wait_until_all_are_lost(&mut self, limit: Duration) -> Result<()> {
        self.wait_for_each("all have noticed", limit, |seen| match seen {
            Seen::Lost { site, .. } => Some(site),
            Seen::CaughtUp { .. } | Seen::Change { .. } | Seen::Forgotten { .. } => None,
        })
        .map(drop)
    }

    /// Until every site is connected to this broker.
    pub fn wait_until_all_are_at(&mut self, broker: SocketAddr, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.places.iter().any(|place| *place != Some(broker)) {
            if self.next(deadline)?.is_none() {
                bail!("not all sites have come to {broker} after {limit:?}");
            }
        }
        Ok(())
    }

    /// Until `matches` has named every site once; how long after the call each was named.
    fn wait_for_each(
        &mut self,
        what: &str,
        limit: Duration,
        matches: impl Fn(Seen) -> Option<usize>,
    ) -> Result<Vec<Duration>> {
        let begin = Instant::now();
        let mut missing: BTreeSet<usize> = (0..self.len()).collect();
        let mut times = Vec::new();
        let mut last_loss = String::new();
        while !missing.is_empty() {
            let Some(seen) = self.next(begin + limit)? else {
                bail!(
                    "{what}: {} of {} have not after {limit:?}; last loss: {last_loss}",
                    missing.len(),
                    self.len()
                );
            };
            if let Seen::Lost { why, .. } = &seen {
                last_loss.clone_from(why);
            }
            if let Some(site) = matches(seen)
                && missing.remove(&site)
            {
                times.push(begin.elapsed());
            }
        }
        Ok(times)
    }

    fn next(&mut self, deadline: Instant) -> Result<Option<Seen>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.seen.recv_timeout(left) {
            Ok(seen) => {
                match &seen {
                    Seen::CaughtUp { site, broker, .. } => self.places[*site] = Some(*broker),
                    Seen::Lost { site, .. } => self.places[*site] = None,
                    Seen::Change { .. } | Seen::Forgotten { .. } => {}
                }
                Ok(Some(seen))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("all sites have ended"),
        }
    }
}

fn site_name(number: usize) -> String {
    format!("site-{number:04}")
}

fn prefix(number: usize) -> String {
    format!("10.{}.{}.0/24", number / 256, number % 256)
}
