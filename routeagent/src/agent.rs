//! The loop: facts or the kernel change, the kernel is read, and what differs is put right.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::diff::{Change, Found, diff};
use crate::facts::Facts;
use crate::lock::{Holder, Lock};
use crate::netlink::events::{Event, Events};
use crate::netlink::link::{Address, Link};
use crate::netlink::nft::Nft;
use crate::netlink::rule::Rules;
use crate::netlink::{Refused, link, route, rule};
use crate::plan::plan;
use crate::problem::Problem;
use crate::settings::{ALIAS, Settings, VXLAN_DEVICE};
use crate::sysctl::{self, Memory};
use crate::wanted::{Wanted, Way};

mod checks;

/// Several changes of one command are seen in one look.
const SETTLE: Duration = Duration::from_millis(10);
/// Between two looks, however much the kernel tells.
const APART: Duration = Duration::from_millis(50);
/// What nothing tells of, like some sysctls, is found after this.
const ROUND: Duration = Duration::from_secs(10);
/// Other programs' changes, seldom about us.
const FOREIGN: Duration = Duration::from_secs(1);
/// How often repairs go on for good, and how many may come at once before.
const REPAIR_EVERY: Duration = Duration::from_secs(1);
const REPAIRS_AT_ONCE: usize = 4;
/// So many repairs within [`FIGHT_SPAN`] are a fight.
const FIGHT: usize = 5;
const FIGHT_SPAN: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "the kernel's routes cannot be changed without privilege; run as root or with CAP_NET_ADMIN"
    )]
    Privilege,
    #[error(
        "{0} keeps the routes of this network namespace, and there is room for one; stop it first, or run this in a network namespace of its own"
    )]
    Running(Holder),
    #[error("netlink cannot be spoken: {0}")]
    Kernel(#[from] io::Error),
}

/// Keeps the kernel as the facts want it until it is stopped or dropped.
#[derive(Debug)]
pub struct Handle {
    problems: watch::Receiver<Vec<Problem>>,
    applied: watch::Receiver<Option<Arc<Facts>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts on a thread of its own, in the network namespace of the caller, which is blocked for up to
/// a second if another is just ending there. Nothing is changed before there are facts: what an
/// earlier run left and they do not want is removed then.
pub fn start(
    settings: Settings,
    facts: watch::Receiver<Option<Arc<Facts>>>,
) -> Result<Handle, StartError> {
    need_privilege()?;
    let lock = Lock::take()?;
    let (problems_out, problems) = watch::channel(vec![]);
    let (applied_out, applied) = watch::channel(None);
    let (stop, stopped) = oneshot::channel();
    let (ready_out, ready) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("routes".to_owned())
        .spawn(move || {
            let _lock = lock;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready_out.send(Err(error.into()))),
            };
            runtime.block_on(async {
                match Agent::new(settings, facts, (problems_out, applied_out)) {
                    Ok(agent) => {
                        let _ = ready_out.send(Ok(()));
                        agent.run(stopped).await;
                    }
                    Err(error) => drop(ready_out.send(Err(error))),
                }
            });
        })?;
    ready
        .recv()
        .map_err(|_| io::Error::other("the thread for the routes ended"))??;
    Ok(Handle {
        problems,
        applied,
        stop: Some(stop),
        thread: Some(thread),
    })
}

impl Handle {
    pub fn problems(&self) -> watch::Receiver<Vec<Problem>> {
        self.problems.clone()
    }

    /// Whether the kernel was brought in line with these very facts, as far as it could be.
    pub fn has_applied(&self, facts: &Arc<Facts>) -> bool {
        let applied = self.applied.borrow();
        applied
            .as_ref()
            .is_some_and(|done| Arc::ptr_eq(done, facts))
    }

    /// Ends the watch and leaves the kernel as it is.
    pub fn stop(self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether an earlier run has left routes. Blocks.
pub fn has_routes() -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return false };
    runtime.block_on(async {
        let Ok((connection, handle, _)) = rtnetlink::new_connection_with_strict_check() else {
            return false;
        };
        tokio::spawn(connection);
        let routes = route::list(&handle, &BTreeMap::new()).await;
        routes.is_ok_and(|routes| !routes.is_empty())
    })
}

pub(crate) fn need_privilege() -> Result<(), StartError> {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    match effective {
        Some(bits) if bits & (1 << CAP_NET_ADMIN) == 0 => Err(StartError::Privilege),
        _ => Ok(()),
    }
}

struct Agent {
    settings: Settings,
    facts: watch::Receiver<Option<Arc<Facts>>>,
    problems: watch::Sender<Vec<Problem>>,
    applied: watch::Sender<Option<Arc<Facts>>>,
    handle: rtnetlink::Handle,
    events: Events,
    nft: Result<Nft, io::Error>,
    memory: io::Result<Memory>,
    /// When repairs were made, the latest last.
    repairs: VecDeque<Instant>,
    /// The facts have changed since the last look.
    fresh: bool,
    /// What the last repair was about.
    fought: String,
}

fn tun(facts: &Facts) -> Option<&str> {
    facts.tunnel().map(|tunnel| tunnel.tun.as_str())
}

/// What the holder of the handle hears.
type Told = (
    watch::Sender<Vec<Problem>>,
    watch::Sender<Option<Arc<Facts>>>,
);

/// Everything that a look sees.
struct Seen {
    found: Found,
    rules: Rules,
    links: BTreeMap<String, Link>,
    addresses: Vec<Address>,
}

impl Agent {
    fn new(
        settings: Settings,
        facts: watch::Receiver<Option<Arc<Facts>>>,
        (problems, applied): Told,
    ) -> Result<Agent, StartError> {
        // Before the first look: nothing may change unseen in between.
        let events = Events::new()?;
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Agent {
            settings,
            facts,
            problems,
            applied,
            handle,
            events,
            nft: Nft::new(),
            memory: Memory::open(),
            repairs: VecDeque::new(),
            fresh: true,
            fought: String::new(),
        })
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut due = Instant::now();
        let mut last = None;
        let mut set = None;
        let mut ended = false;
        loop {
            tokio::select! {
                _ = &mut stopped => return,
                changed = self.facts.changed(), if !ended => {
                    ended = changed.is_err();
                    self.fresh |= !ended;
                    due = due.min(Instant::now());
                }
                event = self.events.next() => {
                    let now = Instant::now();
                    match event {
                        Ok(Event::Look) => due = due.min(now + SETTLE),
                        // Our own settings are told, too, and somebody may set them all the time.
                        Ok(Event::Setting) if set.is_none_or(|set| now - set >= FOREIGN) => {
                            set = Some(now);
                            due = due.min(now + SETTLE);
                        }
                        Ok(Event::Setting | Event::Foreign) => due = due.min(now + FOREIGN),
                        Err(error) => {
                            tracing::warn!(%error, "netlink events are asked for again");
                            tokio::time::sleep(FOREIGN).await;
                            if let Ok(events) = Events::new() {
                                self.events = events;
                            }
                            due = now;
                        }
                    }
                    if let Some(last) = last {
                        due = due.max(last + APART);
                    }
                }
                () = tokio::time::sleep_until(due) => {
                    let wait = self.look().await;
                    last = Some(Instant::now());
                    due = Instant::now() + wait;
                }
            }
        }
    }

    /// Reads the kernel and puts right what differs; how long until the next look without cause.
    async fn look(&mut self) -> Duration {
        let Some(facts) = self.facts.borrow_and_update().clone() else {
            return ROUND;
        };
        let mut problems = vec![];
        let fresh = std::mem::take(&mut self.fresh);
        let wait = match self.see(&facts).await {
            Ok(seen) => self.mend(&facts, seen, fresh, &mut problems).await,
            Err(refused) => {
                self.fresh = fresh;
                problems.push(Problem::new(
                    format!("the kernel cannot be read: {refused}"),
                    "nothing; it is tried again every second",
                ));
                REPAIR_EVERY
            }
        };
        problems.sort();
        self.problems.send_if_modified(|told| {
            let changed = *told != problems;
            for problem in problems.iter().filter(|problem| !told.contains(problem)) {
                tracing::warn!(next = problem.next, "{}", problem.what);
            }
            *told = problems;
            changed
        });
        self.applied.send_replace(Some(facts));
        wait
    }

    async fn see(&self, facts: &Facts) -> Result<Seen, Refused> {
        let links = link::list(&self.handle).await?;
        let names = links
            .iter()
            .map(|(name, link)| (link.index, name.clone()))
            .collect();
        let rules = rule::list(&self.handle).await?;
        let found = Found {
            routes: route::list(&self.handle, &names).await?,
            rules: rules.ours.clone(),
            guard: match &self.nft {
                Ok(nft) => nft.found()?,
                Err(_) => None,
            },
            devices: links
                .iter()
                .filter(|(name, link)| link.up && Some(name.as_str()) == tun(facts))
                .map(|(name, _)| name.clone())
                .collect(),
        };
        Ok(Seen {
            found,
            rules,
            links,
            addresses: link::addresses(&self.handle).await?,
        })
    }

    async fn mend(
        &mut self,
        facts: &Facts,
        seen: Seen,
        fresh: bool,
        problems: &mut Vec<Problem>,
    ) -> Duration {
        let usable = checks::usable(facts, &seen, problems);
        let devices = checks::devices(facts, &seen);
        let wanted = plan(&usable, &devices, &self.settings);
        self.mark_tun(facts, &seen).await;
        let changes = self.changes(&wanted, &seen);
        let mut wait = ROUND;
        if !changes.is_empty() {
            wait = self
                .mend_within_limit(&changes, &seen, fresh, problems)
                .await;
        }
        for message in seen.rules.strange.iter().cloned() {
            if let Err(refused) = rule::remove_strange(&self.handle, message).await {
                tracing::debug!(%refused, "a rule of another version stays");
            }
        }
        self.check_sysctls(&wanted, facts, problems);
        self.check_others(&usable, &seen, problems).await;
        self.tell_fight(problems);
        wait
    }

    fn changes(&self, wanted: &Wanted, seen: &Seen) -> Vec<Change> {
        let mut changes = diff(wanted, &seen.found);
        if self.nft.is_err() {
            changes.retain(|change| !matches!(change, Change::Guard(_) | Change::Elements { .. }));
        }
        changes
    }

    /// The last defence against two programs that undo each other's work as fast as they can.
    async fn mend_within_limit(
        &mut self,
        changes: &[Change],
        seen: &Seen,
        fresh: bool,
        problems: &mut Vec<Problem>,
    ) -> Duration {
        let now = Instant::now();
        while self
            .repairs
            .front()
            .is_some_and(|made| now - *made > FIGHT_SPAN)
        {
            self.repairs.pop_front();
        }
        if !fresh && let Some(wait) = self.too_soon(now) {
            return wait;
        }
        let failed = self.apply(changes, seen).await;
        for change in changes {
            tracing::debug!(%change, failed = failed.len(), "kernel changed");
        }
        if !fresh && failed.len() < changes.len() {
            self.repairs.push_back(now);
            let all: Vec<String> = changes.iter().take(3).map(Change::to_string).collect();
            self.fought = all.join(", ");
            tracing::info!(
                count = changes.len(),
                first = self.fought,
                "kernel state repaired"
            );
        }
        let wait = if failed.is_empty() {
            ROUND
        } else {
            REPAIR_EVERY
        };
        problems.extend(
            failed
                .into_iter()
                .take(10)
                .map(|refused| checks::refusal(&refused)),
        );
        wait
    }

    fn too_soon(&self, now: Instant) -> Option<Duration> {
        let recent = |span: Duration| {
            self.repairs
                .iter()
                .filter(|made| now - **made < span)
                .count()
        };
        let latest = self.repairs.back()?;
        let burst = recent(REPAIR_EVERY * REPAIRS_AT_ONCE as u32) >= REPAIRS_AT_ONCE;
        let wait = REPAIR_EVERY.checked_sub(now - *latest)?;
        (burst && !wait.is_zero()).then_some(wait)
    }

    async fn apply(&self, changes: &[Change], seen: &Seen) -> Vec<Refused> {
        let mut failed = vec![];
        for change in changes {
            failed.extend(self.apply_one(change, seen).await.err());
        }
        failed
    }

    async fn apply_one(&self, change: &Change, seen: &Seen) -> Result<(), Refused> {
        let index = |way: &Way| match way {
            Way::Device { device, .. } => seen.links.get(device).map_or(0, |link| link.index),
            Way::Unreachable | Way::Strange => 0,
        };
        match change {
            Change::Guard(_) | Change::Elements { .. } => match &self.nft {
                Ok(nft) => nft.apply(change),
                Err(_) => Ok(()),
            },
            Change::AddRoute(place, way) => route::add(&self.handle, place, way, index(way)).await,
            Change::ReplaceRoute(place, way) => {
                route::replace(&self.handle, place, way, index(way)).await
            }
            Change::RemoveRoute(place, _) => route::remove(&self.handle, place).await,
            Change::AddRule(rule) => rule::add(&self.handle, rule).await,
            Change::RemoveRule(rule) => rule::remove(&self.handle, rule).await,
        }
    }

    /// By its alias the interface is known as ours, whatever its name, when everything is taken away.
    async fn mark_tun(&self, facts: &Facts, seen: &Seen) {
        if let Some(tun) = tun(facts)
            && let Some(link) = seen.links.get(tun)
            && link.alias.as_deref() != Some(ALIAS)
            && let Err(refused) = link::set_alias(&self.handle, link, ALIAS).await
        {
            tracing::debug!(%refused, interface = tun, "the interface gets no alias");
        }
    }

    fn check_sysctls(&mut self, wanted: &Wanted, facts: &Facts, problems: &mut Vec<Problem>) {
        match &mut self.memory {
            Ok(memory) => problems.extend(sysctl::check(
                &wanted.sysctls,
                self.settings.set_sysctls,
                memory,
                tun(facts).unwrap_or(VXLAN_DEVICE),
            )),
            Err(error) => problems.push(Problem::new(
                format!("what sysctls were before cannot be read: {error}"),
                "look at the files in /run/causeway/kernel",
            )),
        }
    }

    fn tell_fight(&self, problems: &mut Vec<Problem>) {
        if self.repairs.len() >= FIGHT {
            problems.push(Problem::new(
                format!(
                    "something else keeps undoing the mesh's kernel state, {} times in {} s; last: {}",
                    self.repairs.len(),
                    FIGHT_SPAN.as_secs(),
                    self.fought
                ),
                "find the other program with `ip monitor all` and `nft monitor`, and tell it to \
                 leave protocol 199 and the table inet causeway alone (systemd-networkd: \
                 ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no)",
            ));
        }
    }
}
