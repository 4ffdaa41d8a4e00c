//! The process `causeway broker run`: opens the directory and the store, then one event loop that
//! takes connections until it is told to stop.

mod sockets;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::message::Refusal;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::accept::Door;
use crate::broker::{Broker, Ending};
use crate::datagrams;
use crate::directory::{self, Directory, DirectoryError, StoreUrl};
use crate::entries;
use crate::fence;
use crate::follow;
use crate::http;
use crate::pace::Bucket;
use crate::register::{LoadError, Register};
use crate::relay::Relay;
use crate::store::etcd::{Access, AccessError, AccessFiles, EtcdStore, Location};
use crate::store::redb::RedbStore;
use crate::store::{Contents, Store, StoreError};
use crate::tls::{self, TlsError};

use sockets::Sockets;

/// A stopping broker waits so long for its sessions to end.
const SESSIONS_END: Duration = Duration::from_secs(5);
const LAST_WRITE: Duration = Duration::from_secs(2);
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// What goes on failing in the same way is said so often.
const COMPLAINT: Duration = Duration::from_secs(30);
/// After a failed accept, so that a shortage does not become a busy loop.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Handshakes are all the work there is; more threads would only cost memory.
const MOST_THREADS: usize = 4;

#[derive(Clone, Debug)]
pub struct Options {
    pub state_directory: PathBuf,
    /// Holds `broker.sock`.
    pub runtime_directory: PathBuf,
    /// TCP and UDP.
    pub listen: SocketAddr,
    /// Another store than the one the directory names.
    pub store: Option<StoreUrl>,
    /// What a store in etcd asks for; what is left out is as the directory names it.
    pub etcd: AccessFiles,
    /// Metrics and health; `None` for neither.
    pub http: Option<SocketAddr>,
    /// Datagrams of gateways whose paths fail.
    pub relay: bool,
}

/// Where the broker is to be found once it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    pub listen: SocketAddr,
    pub http: Option<SocketAddr>,
    pub socket: PathBuf,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot {doing} {what}: {error}")]
    Io {
        doing: &'static str,
        what: String,
        #[source]
        error: io::Error,
    },
    #[error("a broker is running already on {}; stop that one, or give this one another --runtime-dir", .0.display())]
    Running(PathBuf),
    #[error(
        "the authority's directory {} lies in {}, which the broker has to write to: give another --runtime-dir, or move the authority",
        .authority.display(), .open.display()
    )]
    Within { authority: PathBuf, open: PathBuf },
    #[error("the fence around this process cannot be put up: {0}")]
    Fence(#[from] landlock::RulesetError),
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{0}")]
    Ledger(String),
    #[error("{0}")]
    Failed(String),
}

/// Serves until SIGTERM or SIGINT. To be called while the process has one thread: the fence holds
/// for threads that are started after it.
pub fn run(options: Options, ready: impl FnOnce(&Serving)) -> Result<(), Error> {
    let directory = directory::open(&options.state_directory)?;
    sockets::make_runtime_directory(&options.runtime_directory)?;
    harden();
    // Its files need not lie where the broker can read.
    let wanted = Wanted::read(&options, &directory)?;
    let own = [directory.path(), options.runtime_directory.as_path()];
    // Looked for before the fence hides it.
    let near = near(&options, &directory);
    if let Some(authority) = &near
        && let Some(open) = own
            .iter()
            .find(|own| real(authority).starts_with(real(own)))
    {
        return Err(Error::Within {
            authority: authority.clone(),
            open: (*open).to_owned(),
        });
    }
    let fenced = fence::put_up(&own)?;
    fence::report(fenced, near.as_deref());
    let prepared = Prepared {
        options,
        directory,
        wanted,
        authority_near: near.is_some(),
    };
    prepared.serve(ready, stop_signal())
}

/// The same until `stop`, without the fence: for tests that run a broker beside other things.
pub fn serve(
    options: Options,
    ready: impl FnOnce(&Serving),
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    serve_on(options, None, ready, stop)
}

/// [`serve`] on a store of the caller's.
pub fn serve_on(
    options: Options,
    store: Option<Arc<dyn Store>>,
    ready: impl FnOnce(&Serving),
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let directory = directory::open(&options.state_directory)?;
    sockets::make_runtime_directory(&options.runtime_directory)?;
    let near = near(&options, &directory);
    let wanted = match store {
        Some(store) => Wanted::Given(store),
        None => Wanted::read(&options, &directory)?,
    };
    let prepared = Prepared {
        options,
        directory,
        wanted,
        authority_near: near.is_some(),
    };
    prepared.serve(ready, stop)
}

fn near(options: &Options, directory: &Directory) -> Option<PathBuf> {
    let made = directory.about().authority_directory.as_deref();
    fence::authority_near(made, &options.state_directory)
}

fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Behind the fence, if there is one.
struct Prepared {
    options: Options,
    directory: Directory,
    wanted: Wanted,
    authority_near: bool,
}

/// The store to be opened, with all that is read from files outside the fence.
enum Wanted {
    File,
    Etcd(Box<Location>, Access),
    /// By the caller, instead of the one that options or directory name.
    Given(Arc<dyn Store>),
}

impl Wanted {
    fn read(options: &Options, directory: &Directory) -> Result<Wanted, AccessError> {
        let url = options.store.as_ref().unwrap_or(&directory.about().store);
        Ok(match url.clone().with(options.etcd.clone())? {
            StoreUrl::Redb => Wanted::File,
            StoreUrl::Etcd(location) => {
                let access = Access::read(&location)?;
                Wanted::Etcd(Box::new(location), access)
            }
        })
    }
}

impl Prepared {
    fn serve(
        self,
        ready: impl FnOnce(&Serving),
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let runtime = runtime()?;
        let near = i64::from(self.authority_near);
        let done = runtime.block_on(async {
            let mut stop = Box::pin(stop);
            let started = tokio::select! {
                started = self.start() => started?,
                () = &mut stop => return Ok(()),
            };
            started.broker.metrics.authority_near.set(near);
            ready(&started.sockets.serving);
            started.serve(stop).await
        });
        runtime.shutdown_timeout(SESSIONS_END);
        done
    }

    async fn start(self) -> Result<Started, Error> {
        let directory = self.directory;
        let key = proto::key::SigningKey::from_seed(&directory.key().seed());
        let tls = tls::server(&key)?;
        let url = self.options.store.clone();
        let url = url.unwrap_or_else(|| directory.about().store.clone());
        let store = open_store(&directory, self.wanted).await?;
        let mut register = Register::new(directory.about().mesh);
        let contents = load(&*store).await?;
        register
            .load(contents)
            .map_err(|error: LoadError| Error::Ledger(error.to_string()))?;
        let sockets = Sockets::bind(&self.options).await?;
        let port = sockets.serving.listen.port();
        let mut broker = Broker::new(directory, Arc::new(key), store, register, port);
        if self.options.relay {
            let relay = Relay::new(broker.metrics.relay.clone());
            let relay = relay.map_err(|error| failed("get", "random numbers")(error.into()))?;
            broker.relay = Some(Arc::new(relay));
        }
        let broker = Arc::new(broker);
        tokio::spawn(follow::follow(Arc::clone(&broker)));
        follow::handle_grown(&broker);
        import(&broker).await?;
        report(&broker, &url, &sockets.serving);
        let (alive, ended) = mpsc::channel(1);
        let door = Door::new(Arc::clone(&broker), tls, alive);
        Ok(Started {
            broker,
            door,
            sockets,
            ended,
            complaints: Bucket::new(1, COMPLAINT),
        })
    }
}

fn runtime() -> Result<Runtime, Error> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(MOST_THREADS))
        .thread_name("broker")
        .enable_all()
        .build()
        .map_err(failed("start", "threads"))
}

/// What no error should keep from serving.
fn harden() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        warn!("cannot keep keys out of core dumps: {error}");
    }
    // A connection is a descriptor.
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("cannot raise the number of connections to what the system allows: {error}");
    }
}

async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be handled: end this process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn failed(doing: &'static str, what: impl ToString) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_string();
    move |error| Error::Io { doing, what, error }
}

/// A broker that has all it needs.
struct Started {
    broker: Arc<Broker>,
    door: Arc<Door>,
    sockets: Sockets,
    /// Ends when the last connection has.
    ended: mpsc::Receiver<()>,
    /// How often a shortage is worth a line in the log.
    complaints: Bucket,
}

/// Waits for etcd; a file is there or not.
async fn open_store(directory: &Directory, wanted: Wanted) -> Result<Arc<dyn Store>, Error> {
    let id = directory.about().store_id;
    let (location, access) = match wanted {
        Wanted::Given(store) => return Ok(store),
        Wanted::File => return Ok(Arc::new(RedbStore::open(&directory.store_path(), id)?)),
        Wanted::Etcd(location, access) => (location, access),
    };
    let mut complaints = Bucket::new(1, COMPLAINT);
    loop {
        match EtcdStore::connect((*location).clone(), &access, id).await {
            Err(StoreError::Down(why)) => {
                if complaints.take(Instant::now()).is_ok() {
                    warn!("{location} cannot be used yet, trying again: {why}");
                }
                sleep(STORE_AGAIN).await;
            }
            other => return Ok(Arc::new(other?)),
        }
    }
}

/// Waits for a store that is down.
async fn load(store: &dyn Store) -> Result<Contents, Error> {
    let mut complaints = Bucket::new(1, COMPLAINT);
    loop {
        match store.load().await {
            Err(StoreError::Down(why)) => {
                if complaints.take(Instant::now()).is_ok() {
                    warn!("the store cannot be read, trying again: {why}");
                }
                sleep(STORE_AGAIN).await;
            }
            other => return Ok(other?),
        }
    }
}

/// Takes in what commands on this host have left while the broker was not running.
async fn import(broker: &Arc<Broker>) -> Result<(), Error> {
    let left = broker.directory().ledger()?;
    let refused = match entries::take(broker, left, entries::By::Authority).await {
        Ok(()) => return Ok(()),
        // Served from what is there; the entries are taken in at the next start.
        Err(Refusal::StoreDown { .. }) => return Ok(()),
        Err(Refusal::BadLedger { why }) => why,
        Err(other) => format!("{other:?}"),
    };
    let path = broker.directory().path().display().to_string();
    let is_needed = broker.directory().about().mesh.is_some() && broker.register().mesh().is_none();
    if is_needed {
        return Err(Error::Ledger(format!(
            "the ledger in {path} cannot be taken in, and the store has none: {refused}"
        )));
    }
    // Entries prove themselves: what the store has is good whatever lies in that file.
    warn!(
        "the ledger in {path} cannot be taken in: {refused}. Bring the entries from where the          authority is with `causeway ledger push`"
    );
    Ok(())
}

fn report(broker: &Broker, url: &StoreUrl, serving: &Serving) {
    let register = broker.register();
    match register.mesh() {
        Some(mesh) => {
            info!(
                "mesh {}: {} ledger entries, {} nodes, store {url}",
                mesh.id(),
                mesh.ledger().len(),
                register.count()
            );
            let own = broker.key.public();
            if !mesh.charter().brokers.iter().any(|named| named.key == own) {
                warn!(
                    "the ledger does not name this broker: nobody can join here until `causeway broker add` has named it"
                );
            }
        }
        None => info!(
            "no ledger yet: name this broker with `causeway broker add` where the authority {} is",
            broker.authority
        ),
    }
    info!("broker key (pin): {}", broker.key.public());
    info!("listening on {} (tcp and udp)", serving.listen);
    if broker.relay.is_none() {
        info!("without a relay: gateways that reach each other only by one do not by this broker");
    }
    if let Some(http) = serving.http {
        info!("metrics and health on http://{http}");
    }
}

impl Started {
    async fn serve(mut self, mut stop: impl Future<Output = ()> + Unpin) -> Result<(), Error> {
        let mut ending = self.broker.ending();
        let datagrams = self.sockets.take_udp().map(|socket| {
            let broker = &self.broker;
            let serving = datagrams::Serving {
                askers: Arc::clone(&broker.askers),
                relay: broker.relay.clone(),
                metrics: Arc::clone(&broker.metrics),
            };
            tokio::spawn(datagrams::serve(socket, serving))
        });
        if let Some(listener) = self.sockets.http.take() {
            tokio::spawn(http::serve(listener, Arc::clone(&self.broker)));
        }
        let ticks = tokio::spawn(follow::tick(Arc::clone(&self.broker)));
        loop {
            tokio::select! {
                connection = self.sockets.tcp.accept() => match connection {
                    Ok((stream, peer)) => self.door.handle_connection(stream, peer),
                    Err(error) => self.handle_accept_error(&error).await,
                },
                connection = self.sockets.local.listener.accept() => match connection {
                    Ok((stream, _)) => self.door.handle_local(stream),
                    Err(error) => self.handle_accept_error(&error).await,
                },
                () = &mut stop => {
                    self.broker.end(Ending::Asked);
                    break;
                }
                _ = ending.wait_for(Option::is_some) => break,
            }
        }
        ticks.abort();
        if let Some(datagrams) = datagrams {
            datagrams.abort();
        }
        let asked = ending.borrow().clone();
        match asked {
            Some(Ending::Failed(why)) => Err(Error::Failed(why)),
            Some(Ending::Asked) | None => {
                self.finish().await;
                Ok(())
            }
        }
    }

    async fn handle_accept_error(&mut self, error: &io::Error) {
        if self.complaints.take(Instant::now()).is_ok() {
            warn!("cannot take a connection: {error}");
        }
        self.door.handle_shortage();
        sleep(ACCEPT_AGAIN).await;
    }

    /// Lets sessions say goodbye and writes down who was here.
    async fn finish(mut self) {
        info!("stopping");
        let Sockets { tcp, local, .. } = self.sockets;
        drop(tcp);
        drop(local);
        self.door.close();
        drop(self.door);
        drop(timeout(SESSIONS_END, self.ended.recv()).await);
        drop(timeout(LAST_WRITE, self.broker.flush_heard()).await);
        info!("stopped");
    }
}
