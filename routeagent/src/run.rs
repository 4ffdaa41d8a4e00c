//! The process behind `causeway routeagent run`: one event loop between the verified view of the
//! mesh, the hellos to this site's gateways, and this host's kernel.
//!
//! Hellos have a thread of their own, so that nothing makes them late: brokers are followed, and
//! questions answered, on another, and the kernel is programmed on a third. All sleep until they
//! have something to do.

mod gateways;
mod hellos;
mod kept;
mod kernel;
mod local;
mod metrics;
mod mode;
mod place;
mod problems;
mod report;
mod way;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::netlink::changes::Changes;
use node::boottime;
use node::cloud;
use node::follow::{self, FollowError, Handle, Timing, View};
use node::local::signals::Signals;
use node::local::{LocalSocket, SocketError, notify, serve_local, serve_tcp};
use node::membership::{self, is_member, is_shut_out};
use node::state::{StateDir, StateError};
use node::status::Shown;
use proto::entry::Role;
use proto::key::WireguardKey;
use proto::lan::is_probe_address;
use proto::ledger::Standing;
use proto::record::{Capabilities, Presence};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::StartError;
use crate::facts::Mode;
use crate::health::{Choice, Health, Own};
use crate::status::{SOCKET, Status};
use gateways::Gateways;
use hellos::Hellos;
use kept::Memory;
use kernel::{Kernel, Known};
use local::{Question, Whom};
use mode::Choosing;
use place::{Found, Place};
use way::{families, setting};

pub use mode::Asked;

const QUESTIONS: usize = 64;
/// Of the node's directory.
const MODE_FILE: &str = "mode.json";
/// What is not well for shorter may just be starting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest that gateways and the kernel are waited for before we call ourselves ready.
const READY_AT_LAST: Duration = Duration::from_secs(2);
/// A change that others follow is not told sooner than this after the last.
const DAMPING: Duration = Duration::from_secs(1);
/// A probe that fails tells nothing before the kernel has had its route for so long.
const PROVEN: Duration = Duration::from_millis(1500);
/// Until then, and not after, it is looked often whether all is ready.
const LOOK: Duration = Duration::from_millis(20);
/// What nothing tells of.
const ROUND: Duration = Duration::from_secs(5);
/// Brokers are told of the end; they need not be there.
const BROKERS: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct Options {
    pub state_directory: PathBuf,
    /// Holds the socket that `causeway status` asks.
    pub runtime_directory: PathBuf,
    pub mode: Asked,
    /// This node's own address in its site; found out if not given.
    pub address: Option<IpAddr>,
    /// The kernel's routing table for the mesh.
    pub table: u32,
    pub rule_priority: u32,
    /// Value and mask of what stays out of the mesh.
    pub fwmark: (u32, u32),
    pub vxlan_port: u16,
    /// Metrics and health over TCP; `None` for neither.
    pub metrics: Option<SocketAddr>,
    /// Who may know this machine's region and zone.
    pub metadata: cloud::Source,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Routes(#[from] StartError),
    #[error(
        "cannot listen for metrics on {address}: {error}; give another address with --metrics, or the word off"
    )]
    Metrics {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    #[error("{0}; this is a defect, and the log above says more. Start the agent again")]
    Ended(&'static str),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::System(what, error)
}

/// Keeps this node's routes until SIGTERM or SIGINT; a second one ends it at once.
pub fn run(options: Options) -> Result<(), Error> {
    let begun = boottime();
    let state = StateDir::open(&options.state_directory)?;
    let own = state.joined()?.identity_key();
    node::local::harden();
    // First what finds out whether this may run here at all.
    let kernel = Kernel::start(&options, own)?;
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_name("mesh")
        .enable_all()
        .build()
        .map_err(failed("start threads"))?;
    let loop_ = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start threads"))?;
    let outside = background.block_on(Outside::start(&options, &state))?;
    let done = loop_.block_on(async {
        let signals = Signals::new().map_err(failed("handle signals"))?;
        let (daemon, inputs) = Daemon::start((options, begun), kernel, outside, &background)?;
        daemon.serve(inputs, signals).await
    });
    // What still runs there is nobody's business any more.
    background.shutdown_background();
    done
}

/// What runs beside the event loop: whoever follows brokers, and whoever answers questions.
struct Outside {
    node: Handle,
    /// Has the local socket.
    served: JoinHandle<()>,
    questions: mpsc::Receiver<Question>,
    is_ready: Arc<AtomicBool>,
    cloud: watch::Receiver<Option<cloud::Found>>,
}

impl Outside {
    async fn start(options: &Options, state: &StateDir) -> Result<Outside, Error> {
        let node = follow::start(
            state,
            follow::Options {
                role: Role::Agent,
                timing: Timing::default(),
                fwmark: Some(options.fwmark.0),
            },
        )?;
        let socket = LocalSocket::bind(&options.runtime_directory, SOCKET, "an agent").await?;
        let metrics = listen_for_metrics(options).await?;
        let is_ready = Arc::<AtomicBool>::default();
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let whom = Whom {
            questions,
            is_ready: is_ready.clone(),
        };
        let served = tokio::spawn(serve_local(socket, whom.clone()));
        if let Some(listener) = metrics {
            tokio::spawn(serve_tcp(listener, whom));
        }
        Ok(Outside {
            node,
            served,
            questions: asked,
            is_ready,
            cloud: cloud::follow(options.metadata.clone()),
        })
    }
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

/// What the event loop listens to besides its sockets.
struct Inputs {
    view: watch::Receiver<Arc<View>>,
    questions: mpsc::Receiver<Question>,
    found: mpsc::Receiver<Found>,
    changes: Changes,
    cloud: watch::Receiver<Option<cloud::Found>>,
}

struct Daemon {
    options: Options,
    begun: Duration,
    node: Handle,
    view: Arc<View>,
    kernel: Kernel,
    place: Place,
    /// Those of this node's addresses, told by whether they are IPv4, that prefixes of other sites
    /// have too.
    families: BTreeSet<bool>,
    /// Region and zone.
    standing: cloud::Place,
    hellos: Hellos,
    gateways: Gateways,
    health: Health,
    /// The latest of it.
    choice: Choice,
    mode: Choosing,
    memory: Memory,
    /// When the mode changed, until nobody sends by the former any more.
    turned: Option<Duration>,
    /// Something that facts, mode or record rest on has changed.
    is_old: bool,
    /// What others are to know of this node; none before the ledger tells which address is its own.
    presence: Option<Presence>,
    published: Option<(Presence, Duration)>,
    wireguard: WireguardKey,
    /// Since when the kernel has been in line with what it was told.
    applied: Option<Duration>,
    /// For so long that a probe that fails says something.
    is_proven: bool,
    shown: Shown<Status>,
    told_membership: membership::Told,
    /// Those who ask for our health read it.
    is_ready: Arc<AtomicBool>,
    served: JoinHandle<()>,
    /// What is not urgent is done then.
    round: Duration,
}

impl Daemon {
    fn start(
        (options, begun): (Options, Duration),
        kernel: Kernel,
        outside: Outside,
        background: &Runtime,
    ) -> Result<(Daemon, Inputs), Error> {
        let now = boottime();
        let view = outside.node.view();
        let first = view.borrow().clone();
        let (finding, found) = mpsc::channel(1);
        let mut place = Place::new(options.address, (finding, background.handle().clone()), now);
        place.handle_prefixes(&first);
        let gateways = Gateways::of(&first, outside.node.node(), &place);
        let memory = Memory::open(outside.node.node().file(MODE_FILE));
        let kept = memory.mode(&setting(&place, &gateways));
        let standing = cloud::Place::of(&outside.node.node().membership, None);
        let wireguard = outside.node.node().wireguard.public();
        let daemon = Daemon {
            health: Health::new(own(&first)?, now),
            mode: Choosing::new(options.mode, kept),
            node: outside.node,
            view: first,
            kernel,
            place,
            families: BTreeSet::new(),
            standing,
            hellos: Hellos::default(),
            gateways,
            choice: Choice::default(),
            memory,
            turned: None,
            is_old: true,
            presence: None,
            published: None,
            wireguard,
            applied: None,
            is_proven: false,
            shown: Shown::default(),
            told_membership: membership::Told::default(),
            is_ready: outside.is_ready,
            served: outside.served,
            round: now,
            begun,
            options,
        };
        let inputs = Inputs {
            view,
            questions: outside.questions,
            found,
            cloud: outside.cloud,
            changes: Changes::new().map_err(failed("listen for changes of addresses"))?,
        };
        Ok((daemon, inputs))
    }

    async fn serve(mut self, mut inputs: Inputs, mut signals: Signals) -> Result<(), Error> {
        self.handle_view(self.view.clone());
        loop {
            self.settle().await;
            let wait = self.due().saturating_sub(boottime());
            tokio::select! {
                // Whoever sends us a lot keeps us from nothing.
                biased;
                () = signals.next() => break,
                changed = inputs.view.changed() => {
                    if changed.is_err() {
                        return Err(Error::Ended("the task that follows brokers has ended"));
                    }
                    let view = inputs.view.borrow_and_update().clone();
                    self.handle_view(view);
                }
                Some(question) = inputs.questions.recv() => self.handle_question(question),
                Some(found) = inputs.found.recv() => {
                    if self.place.handle_found(found) {
                        self.handle_place();
                    }
                }
                Ok(()) = inputs.cloud.changed() => {
                    let found = inputs.cloud.borrow_and_update();
                    let membership = &self.node.node().membership;
                    self.standing = cloud::Place::of(membership, found.as_ref());
                    self.is_old = true;
                }
                Ok(()) = inputs.changes.next() => self.place.handle_change(boottime()),
                () = self.hellos.readable() => {}
                () = tokio::time::sleep(wait) => {}
            }
            // Answers that wait are read before silence is judged.
            self.read();
            self.handle_timeout();
        }
        tracing::info!("stopping");
        notify::stopping();
        tokio::select! {
            () = self.finish() => {}
            () = signals.next() => tracing::warn!("asked a second time to end: ending at once"),
        }
        Ok(())
    }

    fn read(&mut self) {
        let (hellos, health) = (&self.hellos, &mut self.health);
        hellos.receive(|from, datagram| health.handle_datagram(from, datagram, boottime()));
    }

    fn due(&self) -> Duration {
        let is_ready = self.is_ready.load(Ordering::Relaxed);
        let is_told = self.applied.is_none() && self.kernel.is_told();
        let waits = is_told || !is_ready && self.may_be_ready();
        let look = waits.then(|| boottime() + LOOK);
        let soon = self.published.as_ref().map(|(_, at)| *at + DAMPING);
        let publish = soon.filter(|_| self.is_unpublished());
        let proven = self.applied.filter(|_| !self.is_proven);
        let proven = proven.map(|at| at + PROVEN);
        let all = [
            self.health.poll_timeout(),
            self.hellos.due(),
            self.mode.due(),
            self.place.due(),
            publish,
            look,
            proven,
            self.turn_ends(),
        ];
        let all = all.into_iter().flatten();
        all.chain([self.round]).min().unwrap_or(self.round)
    }

    fn handle_timeout(&mut self) {
        let now = boottime();
        if self.health.poll_timeout().is_some_and(|at| at <= now) {
            self.health.handle_timeout(now);
        }
        self.hellos.handle_timeout(now);
        self.place.handle_timeout(now);
        self.is_old |= self.mode.due().is_some_and(|at| at <= now);
        if !self.is_proven && self.applied.is_some_and(|at| now >= at + PROVEN) {
            (self.is_proven, self.is_old) = (true, true);
        }
        if self.turn_ends().is_some_and(|at| now >= at) {
            (self.turned, self.is_old) = (None, true);
        }
        if now >= self.round {
            self.round = now + ROUND;
            self.is_old = true;
            self.look_whether_member(now);
        }
    }

    /// Of the mesh: who is in it, and whose which prefix is.
    fn handle_view(&mut self, view: Arc<View>) {
        self.view = view;
        self.place.handle_prefixes(&self.view);
        self.handle_place();
        self.look_whether_member(boottime());
    }

    fn handle_place(&mut self) {
        let now = boottime();
        self.hellos.handle_addresses(self.place.lan(), now);
        self.health.set_other_lan(self.place.other());
        self.families = families(&self.view, &self.place);
        self.gateways = Gateways::of(&self.view, self.node.node(), &self.place);
        self.health
            .handle_gateways(&self.gateways.at(&self.place), now);
        self.is_old = true;
    }

    /// After every input: what has changed is told, and what waits is sent.
    async fn settle(&mut self) {
        self.health.set_proven(self.is_proven, boottime());
        self.is_old |= self.health.take_change();
        if std::mem::take(&mut self.is_old) {
            self.choice = self.health.choice();
            self.decide();
            self.tell();
            self.presence = self.make_presence();
        }
        self.look_at_kernel();
        while let Some((to, datagram)) = self.health.poll_transmit() {
            // One that was due at this very moment: without its own route it would leave by the way
            // to the internet.
            if self.applied.is_some() || !is_probe_address(to.ip()) {
                self.hellos.send(to, &datagram);
            }
        }
        self.publish().await;
        self.look_whether_ready();
    }

    fn tell(&self) {
        self.kernel.tell(&Known {
            view: &self.view,
            place: &self.place,
            gateways: &self.gateways,
            choice: &self.choice,
            mode: self.mode.programmed(),
            is_turning: self.turned.is_some(),
        });
    }

    fn look_at_kernel(&mut self) {
        if !self.kernel.is_applied() {
            (self.applied, self.is_proven) = (None, false);
        } else if self.applied.is_none() {
            self.applied = Some(boottime());
        }
        self.health.hold_probes(self.applied.is_none());
    }

    // ---- what others are told ---------------------------------------------------------------

    fn make_presence(&self) -> Option<Presence> {
        // Which of our addresses are inside our site only the ledger tells.
        if self.view.standing == Standing::NoGrant && self.view.prefixes.is_empty() {
            return None;
        }
        let capabilities = match self.mode.used() {
            Some(Mode::Vxlan) => Capabilities::VXLAN,
            Some(Mode::Direct) | None => Capabilities::default(),
        };
        Some(Presence {
            wireguard: self.wireguard,
            next_wireguard: None,
            candidates: Vec::new(),
            lan_address: self.place.own(),
            region: self.standing.region.clone(),
            zone: self.standing.zone.clone(),
            capabilities,
        })
    }

    fn is_unpublished(&self) -> bool {
        let said = self.published.as_ref().map(|(said, _)| said);
        self.presence.is_some() && said != self.presence.as_ref()
    }

    async fn publish(&mut self) {
        let now = boottime();
        let is_soon = |(_, at): &(Presence, Duration)| now.saturating_sub(*at) < DAMPING;
        if self.published.as_ref().is_some_and(is_soon) || !self.is_unpublished() {
            return;
        }
        if let Some(presence) = self.presence.clone() {
            self.published = Some((presence.clone(), now));
            self.node.publish(presence).await;
        }
    }

    fn handle_question(&mut self, question: Question) {
        let Question::Status(answer) = question;
        let now = boottime();
        let kept = self.shown.get(now);
        let status = kept.unwrap_or_else(|| self.shown.keep(self.status(now), now));
        // Whoever asked may have gone.
        let _told = answer.send(status);
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
        if !self.may_be_ready() {
            self.is_ready.store(false, Ordering::Relaxed);
        }
    }

    fn may_be_ready(&self) -> bool {
        let hears = || self.choice.gateways.values().any(mode::is_alive);
        is_member(&self.view)
            && !(is_shut_out(&self.view, false) && is_shut_out(&self.view, hears()))
    }

    fn look_whether_ready(&self) {
        if self.is_ready.load(Ordering::Relaxed) || !self.may_be_ready() {
            return;
        }
        let is_late = boottime().saturating_sub(self.begun) >= READY_AT_LAST;
        let answered = self.choice.gateways.values().any(mode::is_alive);
        let is_set = answered && self.choice.settled && self.kernel.is_applied();
        if is_late || is_set {
            let gateways = self.choice.gateways.len();
            tracing::info!(gateways, "ready");
            self.is_ready.store(true, Ordering::Relaxed);
            notify::ready();
        }
    }

    async fn finish(self) {
        // Awaited, since its end removes the socket's name.
        self.served.abort();
        let _aborted = self.served.await;
        self.kernel.stop();
        // They hear it from the connection's end otherwise.
        let _told = tokio::time::timeout(BROKERS, self.node.stop()).await;
        tracing::info!("stopped");
    }
}

fn own(view: &View) -> Result<Own, Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| Error::System("get random numbers", io::Error::other(error)))?;
    let random = u128::from_le_bytes(random);
    Ok(Own {
        identity: view.identity,
        boot: random as u64,
        seed: (random >> 64) as u64,
    })
}
