//! The loop: facts or the kernel change, the kernel is read, and what differs is put right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ip_network::IpNetwork;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::facts::Facts;
use crate::guard::FoundTable;
use crate::lock::{Holder, Lock};
use crate::netlink::events::{Event, Events};
use crate::netlink::nft::Nft;
use crate::netlink::request::Requests;
use crate::netlink::{nexthop, route};
use crate::problem::Problem;
use crate::settings::{Kernel, Settings};
use crate::sysctl::Memory;
use crate::wanted::Way;

use see::Seen;

mod checks;
mod filters;
mod mend;
mod see;

/// Several changes of one command are seen in one look.
const SETTLE: Duration = Duration::from_millis(10);
/// Between two looks, however much the kernel tells.
const APART: Duration = Duration::from_millis(50);
/// What nothing tells of, like some sysctls, is found after this.
const ROUND: Duration = Duration::from_secs(10);
/// Other programs' changes, seldom about us.
const FOREIGN: Duration = Duration::from_secs(1);
/// How often repairs go on after so many within [`FIGHT_SPAN`]: what a restart of other programs
/// breaks in a row is repaired at once.
const REPAIR_EVERY: Duration = Duration::from_secs(1);
const REPAIRS_AT_ONCE: usize = 30;
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
    closed: watch::Receiver<BTreeSet<IpNetwork>>,
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
    let (closed_out, closed) = watch::channel(BTreeSet::new());
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
                match Agent::new(settings, facts, (problems_out, applied_out, closed_out)) {
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
        closed,
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

    /// Prefixes that gateways are named for and that still have no way there: none of them has a
    /// next hop that this kernel can use.
    pub fn closed(&self) -> watch::Receiver<BTreeSet<IpNetwork>> {
        self.closed.clone()
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

/// Whether an earlier run has left routes that lead somewhere: those that only close say nothing.
pub fn has_routes() -> bool {
    let leads = |way: &Way| !matches!(way, Way::Unreachable);
    let listed = Requests::new().map(|raw| route::list(&raw, &BTreeMap::new()));
    matches!(listed, Ok(Ok(routes)) if routes.values().any(leads))
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
    closed: watch::Sender<BTreeSet<IpNetwork>>,
    handle: rtnetlink::Handle,
    raw: Requests,
    kernel: Kernel,
    /// What the last look saw, as long as nothing was told or changed since: tens of thousands of
    /// routes and prefixes take their time to be read.
    seen: Option<Seen>,
    guard: Option<Option<FoundTable>>,
    /// When all was last read anew.
    read: Instant,
    /// Of our VXLAN interface, 0 without one.
    vxlan: u32,
    /// What was last found to be in the way, and when it is looked for again.
    others: Option<Vec<Problem>>,
    others_due: Instant,
    events: Events,
    nft: Result<Nft, io::Error>,
    filters: filters::Filters,
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
    watch::Sender<BTreeSet<IpNetwork>>,
);

impl Agent {
    fn new(
        settings: Settings,
        facts: watch::Receiver<Option<Arc<Facts>>>,
        (problems, applied, closed): Told,
    ) -> Result<Agent, StartError> {
        // Before the first look: nothing may change unseen in between.
        let events = Events::new()?;
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        let raw = Requests::new()?;
        let kernel = nexthop::knows(&raw).and(settings.use_kernel);
        Ok(Agent {
            settings,
            raw,
            kernel,
            seen: None,
            guard: None,
            read: Instant::now(),
            vxlan: 0,
            others: None,
            others_due: Instant::now(),
            facts,
            problems,
            applied,
            closed,
            handle,
            events,
            nft: Nft::new(),
            filters: filters::Filters::default(),
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
                event = self.events.next(self.vxlan) => {
                    let now = Instant::now();
                    self.forget(&event);
                    match event {
                        Ok(Event::Nothing) => {}
                        Ok(Event::Look | Event::Guard) => due = due.min(now + SETTLE),
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
                () = self.filters.read() => {
                    self.others_due = Instant::now();
                    due = due.min(self.others_due);
                }
                () = tokio::time::sleep_until(due) => {
                    let wait = self.look().await;
                    last = Some(Instant::now());
                    due = Instant::now() + wait;
                }
            }
        }
    }

    /// What was told of is read again.
    fn forget(&mut self, event: &io::Result<Event>) {
        match event {
            Ok(Event::Nothing | Event::Foreign | Event::Setting) => {}
            Ok(Event::Guard) => self.guard = None,
            Ok(Event::Look) => self.seen = None,
            Err(_) => (self.seen, self.guard) = (None, None),
        }
    }

    /// Reads the kernel and puts right what differs; how long until the next look without cause.
    async fn look(&mut self) -> Duration {
        let Some(facts) = self.facts.borrow_and_update().clone() else {
            return ROUND;
        };
        let mut problems = vec![];
        let fresh = std::mem::take(&mut self.fresh);
        if self.read.elapsed() >= ROUND {
            (self.seen, self.guard, self.read) = (None, None, Instant::now());
        }
        let seen = match self.seen.take() {
            Some(seen) => Ok(seen),
            None => self.see(&facts).await,
        };
        let done = match seen {
            Ok(seen) => self.mend(&facts, seen, fresh, &mut problems).await,
            Err(refused) => Err(refused),
        };
        let Ok(mended) = done.map_err(|refused| {
            problems.push(Problem::new(
                format!("the kernel cannot be read: {refused}"),
                "nothing; it is tried again every second",
            ));
        }) else {
            self.fresh = fresh;
            self.tell(&problems);
            self.applied.send_replace(Some(facts));
            return REPAIR_EVERY;
        };
        let wait = mended.wait;
        if self.others.is_some() {
            // What others have may be much to read: nobody waits for it but the first time.
            self.tell(&problems);
            self.applied.send_replace(Some(Arc::clone(&facts)));
        }
        let is_known = self.check_sometimes(&mended.usable, &mended.seen);
        self.tell(&problems);
        self.applied.send_replace(Some(facts));
        self.keep(mended);
        if is_known || self.filters.is_of_before() {
            wait.min(FOREIGN)
        } else {
            wait
        }
    }

    /// With what others have, as it was last found.
    fn tell(&self, problems: &[Problem]) {
        let others = self.others.iter().flatten();
        let mut problems: Vec<Problem> = problems.iter().chain(others).cloned().collect();
        problems.sort();
        self.problems.send_if_modified(|told| {
            let changed = *told != problems;
            for problem in problems.iter().filter(|problem| !told.contains(problem)) {
                tracing::warn!(next = problem.next, "{}", problem.what);
            }
            *told = problems;
            changed
        });
    }
}
