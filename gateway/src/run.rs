//! The process behind `causeway gateway run`: one event loop between the verified view of the mesh,
//! the links, the packet path and this host's kernel.
//!
//! Nothing here sees a packet of a site's traffic; nothing here waits for a broker.

mod addresses;
mod agents;
mod drive;
mod local;
mod metrics;
mod passage;
mod pings;
mod presence;
mod problems;
mod reflect;
mod relayed;
mod report;
mod routes;
mod splice;
mod stop;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use boringtun::x25519;
use node::cloud::{self, Place};
use node::follow::{self, FollowError, Handle, Timing, View};
use node::local::signals::Signals;
use node::local::{LocalSocket, SocketError, notify, serve_local, serve_tcp};
use node::membership::{self, is_member, is_shut_out};
use node::state::{StateDir, StateError};
use node::status::Shown;
use proto::entry::Role;
use proto::key::{PublicKey, SigningKey};
use proto::ledger::Standing;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::io::{Offload, boottime};
use crate::links::{self, Links};
use crate::plane::{self, GRID, MANY, Plane, PlaneError, PlaneEvent};
use crate::roster;
use crate::status::{SOCKET, Status};
use crate::table::Table;
use agents::Hellos;
use drive::Linked;
use local::Question;
use passage::Passage;
use pings::Pings;
use presence::Whereabouts;
use reflect::Reflection;
use relayed::Relayed;
use routes::Routes;
use splice::Splice;
use stop::Stopping;

/// How often counters are looked at, and what is not urgent is done.
const SWEEP: Duration = Duration::from_millis(100);
/// Verification of what brokers send must not hold up the links.
const WORKERS: usize = 2;
/// Longest that what has come keeps timers waiting.
const BATCH: Duration = Duration::from_millis(5);
const QUESTIONS: usize = 64;
/// Longest that those who answer, and the kernel, are waited for before we call ourselves ready.
const READY_AT_LAST: Duration = Duration::from_secs(2);
/// Whoever has not answered by then may be away.
const ANSWERED_BY: Duration = Duration::from_millis(700);

#[derive(Clone, Debug)]
pub struct Options {
    pub state_directory: PathBuf,
    /// Holds the socket that `causeway status` asks.
    pub runtime_directory: PathBuf,
    pub listen: SocketAddr,
    pub tun: String,
    /// This node's own address in its site; found out if not given.
    pub address: Option<IpAddr>,
    /// Where others reach this gateway, as `host:port`.
    pub endpoints: Vec<String>,
    /// The kernel's routing table for the mesh.
    pub table: u32,
    pub rule_priority: u32,
    /// Value and mask, of outer datagrams.
    pub fwmark: (u32, u32),
    /// Where agents reach this gateway by VXLAN.
    pub vxlan_port: u16,
    /// Metrics and health over TCP; `None` for neither.
    pub metrics: Option<SocketAddr>,
    pub open_forward: bool,
    /// Who may know this machine's region and zone.
    pub metadata: cloud::Source,
    /// Data threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Not to be used even where the kernel has them.
    pub without: Vec<Offload>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error(transparent)]
    Plane(#[from] PlaneError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Routes(#[from] routeagent::StartError),
    #[error(
        "cannot listen for metrics on {address}: {error}; give another address with --metrics, or the word off"
    )]
    Metrics {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    #[error("{0}; this is a defect, and the log above says more. Start the gateway again")]
    Ended(&'static str),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::System(what, error)
}

/// Carries the site's traffic until SIGTERM or SIGINT; a second one ends it at once.
pub fn run(options: Options) -> Result<(), Error> {
    let begun = boottime();
    let state = StateDir::open(&options.state_directory)?;
    node::local::harden();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("daemon")
        .enable_all()
        .build()
        .map_err(failed("start threads"))?;
    let done = runtime.block_on(async {
        let signals = Signals::new().map_err(failed("handle signals"))?;
        let (daemon, inputs) = Daemon::start(options, &state, begun).await?;
        daemon.serve(inputs, signals).await
    });
    // What still runs there is nobody's business any more.
    runtime.shutdown_background();
    done
}

/// What the event loop listens to besides the plane and the links.
struct Inputs {
    view: watch::Receiver<Arc<View>>,
    reflector: watch::Receiver<Option<follow::ReflectorSession>>,
    questions: mpsc::Receiver<Question>,
    found: mpsc::Receiver<presence::Found>,
    cloud: watch::Receiver<Option<cloud::Found>>,
}

struct Daemon {
    options: Options,
    begun: Duration,
    node: Handle,
    view: Arc<View>,
    plane: Plane,
    links: Links,
    /// The links that the plane was told of.
    linked: HashMap<PublicKey, Linked>,
    mtus: BTreeMap<PublicKey, u16>,
    table: Table,
    table_is_old: bool,
    facts_are_old: bool,
    routes: Routes,
    hellos: Hellos,
    whereabouts: Whereabouts,
    reflection: Reflection,
    relayed: Relayed,
    splice: Splice,
    pings: Pings,
    passage: Passage,
    /// Has the local socket.
    served: JoinHandle<()>,
    /// Why there is no interface.
    interface: Option<String>,
    shown: Shown<Status>,
    told_membership: membership::Told,
    /// Those who ask for our health read it.
    is_ready: Arc<AtomicBool>,
    stopping: Stopping,
}

impl Daemon {
    /// First what finds out whether this may run here at all; then in the order of what takes longest
    /// for others: the sooner the packet path runs, the sooner handshakes are answered.
    async fn start(
        options: Options,
        state: &StateDir,
        begun: Duration,
    ) -> Result<(Daemon, Inputs), Error> {
        let routes = Routes::start(&options).await?;
        let node = follow::start(
            state,
            follow::Options {
                role: Role::Gateway,
                timing: Timing::default(),
                fwmark: Some(options.fwmark.0),
            },
        )?;
        let socket = LocalSocket::bind(&options.runtime_directory, SOCKET, "a gateway").await?;
        let metrics = listen_for_metrics(&options).await?;
        let plane = Plane::start(settings(&options, &node))?;
        let links = new_links(&node)?;
        let view = node.view();
        let first = view.borrow().clone();
        let (finding, found) = mpsc::channel(2);
        let mut whereabouts =
            Whereabouts::new(&options, &node.node().membership, plane.port, finding);
        whereabouts.look();
        whereabouts.handle_prefixes(&first);
        let relayed = Relayed::start(&options, &node, plane.port)?;
        let is_ready = Arc::<AtomicBool>::default();
        let (served, questions) = serve_questions(socket, metrics, is_ready.clone());
        let inputs = Inputs {
            reflector: node.reflector(),
            view,
            questions,
            found,
            cloud: cloud::follow(options.metadata.clone()),
        };
        let daemon = Daemon {
            begun,
            view: first,
            plane,
            links,
            linked: HashMap::new(),
            mtus: BTreeMap::new(),
            table: Table::default(),
            table_is_old: false,
            facts_are_old: false,
            routes,
            hellos: Hellos::start(&node, options.fwmark.0)?,
            whereabouts,
            reflection: Reflection::default(),
            relayed,
            splice: Splice::start(node.view(), options.fwmark.0),
            pings: Pings::default(),
            passage: Passage::default(),
            served,
            interface: None,
            shown: Shown::default(),
            told_membership: membership::Told::default(),
            is_ready,
            stopping: Stopping::default(),
            node,
            options,
        };
        Ok((daemon, inputs))
    }

    async fn serve(mut self, mut inputs: Inputs, mut signals: Signals) -> Result<(), Error> {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.handle_view(self.view.clone());
        loop {
            self.drain();
            if self.stopping.has_begun() {
                self.stopping.handle_agents(self.hellos.leaves_at());
            }
            if self.stopping.is_over(boottime()) {
                break;
            }
            let wait = self.wait();
            tokio::select! {
                events = self.plane.events() => {
                    if events.is_empty() {
                        return Err(Error::Ended("the thread that moves packets has ended"));
                    }
                    self.handle_batch(events);
                }
                changed = inputs.view.changed() => {
                    if changed.is_err() {
                        return Err(Error::Ended("the task that follows brokers has ended"));
                    }
                    let view = inputs.view.borrow_and_update().clone();
                    self.handle_view(view);
                }
                () = tokio::time::sleep(wait) => self.links.handle_timeout(boottime()),
                _ = sweep.tick() => self.sweep().await,
                Ok(()) = inputs.reflector.changed() => {
                    let session = inputs.reflector.borrow_and_update().clone();
                    self.reflection.handle_session(session, boottime());
                    self.ask_reflectors();
                }
                Some(event) = self.relayed.next() => self.handle_relay(event),
                Some(question) = inputs.questions.recv() => self.handle_question(question),
                Some(found) = inputs.found.recv() => self.handle_found(found),
                Ok(()) = inputs.cloud.changed() => {
                    let found = inputs.cloud.borrow_and_update().clone();
                    self.handle_cloud(found.as_ref());
                }
                () = signals.next() => {
                    if !self.begin_stop() {
                        tracing::warn!("asked a second time to end: ending at once");
                        return Ok(());
                    }
                }
            }
        }
        self.finish().await;
        Ok(())
    }

    /// Until the links have something to do, or the stop is over.
    fn wait(&self) -> Duration {
        let now = boottime();
        let due = self.links.poll_timeout();
        let due = due.map(|at| on_grid(at, self.linked.len()));
        let due = due.into_iter().chain(self.stopping.due()).min();
        due.map_or(Duration::from_secs(3600), |at| at.saturating_sub(now))
    }

    /// However much has come, hellos go out in time.
    fn handle_batch(&mut self, events: Vec<PlaneEvent>) {
        in_pieces(
            self,
            events,
            boottime,
            Daemon::handle_plane,
            |daemon, now| {
                if daemon.links.poll_timeout().is_some_and(|at| at <= now) {
                    daemon.links.handle_timeout(now);
                }
                daemon.drain();
            },
        );
    }

    fn handle_plane(&mut self, event: PlaneEvent, now: Duration) {
        match event {
            PlaneEvent::Control {
                from,
                source,
                packet,
            } => self.links.handle_control(&from, source, &packet, now),
            PlaneEvent::Session { of, source } => self.links.handle_session(&of, source, now),
            PlaneEvent::Source { of, source } => self.links.handle_source(&of, source, now),
            PlaneEvent::Reflected { datagram, .. } => {
                if self.reflection.handle_answer(&datagram, now) {
                    self.whereabouts.handle_reflected(self.reflection.seen());
                }
            }
            PlaneEvent::LanProbe { thread, packet } => self.answer_probe(thread, &packet, now),
            PlaneEvent::Addresses => self.whereabouts.look_again(),
            PlaneEvent::Interface(state) => self.interface = state.err(),
        }
    }

    fn handle_found(&mut self, found: presence::Found) {
        if self.whereabouts.handle_found(found) {
            self.reflection.handle_addresses(boottime());
            self.facts_are_old = true;
        }
    }

    fn handle_cloud(&mut self, found: Option<&cloud::Found>) {
        let place = Place::of(&self.node.node().membership, found);
        self.whereabouts.handle_place(place);
    }

    /// Of the mesh: who is in it, whose which prefix is, what can be told others.
    fn handle_view(&mut self, view: Arc<View>) {
        let now = boottime();
        self.view = view;
        self.whereabouts.handle_prefixes(&self.view);
        let roster = roster::roster(&self.view);
        self.tell_plane_of(&roster);
        self.links.handle_roster(&roster, now);
        self.links
            .handle_knowledge(self.view.knowledge.clone(), now);
        self.tell_proven();
        self.tell_table();
        self.hellos.handle_view(&self.view, boottime());
        self.facts_are_old = true;
    }

    /// What is not urgent.
    async fn sweep(&mut self) {
        let now = boottime();
        self.count(now);
        if self.hellos.is_disputed() {
            self.hellos.handle_view(&self.view, now);
        }
        for (gateway, id) in self.pings.due(now) {
            self.links.handle_ping(&gateway, id, now);
        }
        self.ask_reflectors();
        self.whereabouts.sweep(now);
        self.splice.handle_lan(self.whereabouts.lan());
        let own = self.whereabouts.candidates();
        let own: Vec<SocketAddr> = own.iter().map(|(address, _)| *address).collect();
        self.links.handle_own_addresses(&own, now);
        if let Some(presence) = self.whereabouts.publication(&self.view, now) {
            self.node.publish(self.complete(presence)).await;
            self.facts_are_old = true;
        }
        self.tell_facts(now);
        self.try_passage(now);
        self.look_whether_member(now);
        self.look_whether_ready(now);
    }

    /// The log says once why this node is none of the mesh, and it is not ready then.
    fn look_whether_member(&mut self, now: Duration) {
        let is_late = now.saturating_sub(self.begun) >= READY_AT_LAST;
        for problem in self.told_membership.news(&self.view, is_late) {
            if self.view.standing == Standing::NoGrant {
                tracing::warn!(next = problem.next(), "{problem}");
            } else {
                tracing::error!(next = problem.next(), "{problem}");
            }
        }
        if !self.may_be_ready(now) {
            self.is_ready.store(false, Ordering::Relaxed);
        }
    }

    fn may_be_ready(&self, now: Duration) -> bool {
        let is_up = |link: &links::LinkStatus| link.state.is_ok();
        let has_link = || self.links.statuses(now).iter().any(is_up);
        // A status is made of all links only where there is a cause to.
        is_member(&self.view)
            && !(is_shut_out(&self.view, false) && is_shut_out(&self.view, has_link()))
    }

    fn look_whether_ready(&self, now: Duration) {
        if !self.may_be_ready(now) {
            return;
        }
        if self.is_ready.load(Ordering::Relaxed) || self.stopping.has_begun() {
            return;
        }
        let up_since = now.saturating_sub(self.begun);
        let statuses = self.links.statuses(now);
        let is_late = up_since >= READY_AT_LAST;
        let waited = up_since >= ANSWERED_BY;
        let are_up = statuses.iter().all(|link| match link.state {
            Ok(()) => link.carries,
            Err(links::Why::NoAnswer | links::Why::NoAddress | links::Why::Goodbye) => waited,
            Err(_) => false,
        });
        let is_set = are_up && !statuses.is_empty() && self.routes.are_applied();
        if is_late || is_set {
            let up = statuses.iter().filter(|link| link.state.is_ok()).count();
            tracing::info!(links = statuses.len(), up, "ready");
            self.is_ready.store(true, Ordering::Relaxed);
            notify::ready();
        }
    }
}

/// Hands all to `each`, and calls `between` whenever that has taken [`BATCH`].
fn in_pieces<S, T>(
    state: &mut S,
    all: Vec<T>,
    clock: impl Fn() -> Duration,
    each: impl Fn(&mut S, T, Duration),
    between: impl Fn(&mut S, Duration),
) {
    let mut until = clock() + BATCH;
    for one in all {
        each(state, one, clock());
        let now = clock();
        if now >= until {
            between(state, now);
            until = clock() + BATCH;
        }
    }
}

/// The hellos of many links fall due one by one, and each wake-up costs as much as sending several.
fn on_grid(at: Duration, links: usize) -> Duration {
    if links < MANY {
        return at;
    }
    let late = at.as_nanos() % GRID.as_nanos();
    let rest = (GRID.as_nanos() - late) % GRID.as_nanos();
    at + Duration::from_nanos(rest as u64)
}

fn serve_questions(
    socket: LocalSocket,
    metrics: Option<TcpListener>,
    is_ready: Arc<AtomicBool>,
) -> (JoinHandle<()>, mpsc::Receiver<Question>) {
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let whom = local::Whom {
        questions,
        is_ready,
    };
    let served = tokio::spawn(serve_local(socket, whom.clone()));
    if let Some(listener) = metrics {
        tokio::spawn(serve_tcp(listener, whom));
    }
    (served, asked)
}

async fn listen_for_metrics(options: &Options) -> Result<Option<TcpListener>, Error> {
    let Some(address) = options.metrics else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await;
    listener
        .map(Some)
        .map_err(|error| Error::Metrics { address, error })
}

fn settings(options: &Options, node: &Handle) -> plane::Settings {
    let local = node.node();
    plane::Settings {
        tun: options.tun.clone(),
        listen: options.listen,
        fwmark: options.fwmark.0,
        threads: options.threads,
        without: options.without.clone(),
        wireguard: x25519::StaticSecret::from(*local.wireguard.bytes()),
        site: local.membership.site().clone(),
    }
}

fn new_links(node: &Handle) -> Result<Links, Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| Error::System("get random numbers", io::Error::other(error)))?;
    let random = u128::from_ne_bytes(random);
    let local = node.node();
    let local = links::Local {
        identity: SigningKey::from_seed(&local.identity.seed()),
        wireguard: local.wireguard.public(),
        site: local.membership.site().clone(),
        boot: random as u64,
    };
    Ok(Links::new(local, (random >> 64) as u64, boottime()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_batch_lets_timers_run_every_five_milliseconds_and_a_short_one_goes_through() {
        for (micros, expected) in [(1000, vec![5, 10, 15, 20]), (100, vec![])] {
            let now = std::cell::Cell::new(Duration::ZERO);
            let mut done = (0, Vec::new());
            let take = |done: &mut (usize, Vec<usize>), one: usize, _| {
                now.set(now.get() + Duration::from_micros(micros));
                done.0 += one;
            };
            let between = |done: &mut (usize, Vec<usize>), _| done.1.push(done.0);
            in_pieces(&mut done, vec![1; 20], || now.get(), take, between);
            assert_eq!(done, (20, expected));
        }
    }

    #[test]
    fn timers_of_many_links_are_late_by_less_than_the_grid_and_never_early() {
        let at = Duration::from_micros(1_000_000_001);
        assert_eq!(on_grid(at, MANY - 1), at);
        for micros in [0, 1, 19_999, 20_000, 20_001] {
            let at = Duration::from_secs(1000) + Duration::from_micros(micros);
            let then = on_grid(at, MANY);
            assert!(then >= at && then - at < GRID, "{at:?} {then:?}");
            assert_eq!(on_grid(then, MANY), then);
        }
    }
}
