//! A mesh on this machine's loopback: brokers, tokens and nodes, all made by the release binary.
//!
//! Every broker has an address of its own in 127/8, so that tests run side by side on the usual
//! ports. Nothing here needs root or a namespace.

pub mod cast;
pub mod client;
pub mod command;
pub mod crowd;
pub mod disk;
pub mod etcd;
pub mod flood;
pub mod look;
pub mod ordeal;
pub mod race;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::command::{Said, causeway};
use crate::lab::{Process, wait_for};

/// What nothing here should take; a test of a bar has a limit of its own.
pub const ENOUGH: Duration = Duration::from_secs(20);
pub const PORT: u16 = 7800;
const HTTP_PORT: u16 = 7880;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// An authority, its brokers and its nodes in one temporary directory; gone when dropped.
pub struct Mesh {
    directory: Directory,
    /// Of the first broker, beside its own: tokens name them too.
    addresses: Vec<String>,
    pub brokers: Vec<Broker>,
    pub about: About,
    /// The network namespace where the operator's commands run; this one's if none.
    namespace: Option<String>,
}

/// What `broker init` told.
#[derive(Clone, Debug)]
pub struct About {
    pub mesh: String,
    pub authority: String,
    /// The key printed once; a secret, for tests that look for secrets.
    pub recovery: String,
}

/// A broker's directories, and its process while it runs.
pub struct Broker {
    pub address: SocketAddr,
    pub state: PathBuf,
    pub runtime: PathBuf,
    pub http: SocketAddr,
    /// Its public key: the pin.
    pub key: String,
    /// More of the command line.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// A program and its arguments that start it in turn and become it.
    pub through: Vec<String>,
    logs: PathBuf,
    starts: u32,
    process: Option<Process>,
}

/// A directory that goes with its owner.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(tag: &str) -> Result<Directory> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The name lets the laboratory of namespaces sweep what a killed run left.
        let name = format!("cwy-{}-{number}-{tag}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Directory(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("CAUSEWAY_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Mesh {
    /// A mesh with one broker that runs, on redb.
    pub fn new(tag: &str) -> Result<Mesh> {
        let mut mesh = Mesh::at_rest(tag)?;
        mesh.brokers[0].start()?;
        Ok(mesh)
    }

    /// The same, the broker not started.
    pub fn at_rest(tag: &str) -> Result<Mesh> {
        Mesh::over(tag, None)
    }

    /// The same with the store at this URL, if any.
    pub fn over(tag: &str, store: Option<&str>) -> Result<Mesh> {
        let directory = Directory::new(tag)?;
        let broker = Broker::prepare(directory.path(), 0, store)?;
        Mesh::init(directory, broker, store)
    }

    /// At rest, with the broker's state directory elsewhere.
    pub fn with_first_state(tag: &str, state: &Path) -> Result<Mesh> {
        let directory = Directory::new(tag)?;
        let mut broker = Broker::prepare(directory.path(), 0, None)?;
        broker.state = state.to_owned();
        Mesh::init(directory, broker, None)
    }

    /// At rest, with the broker's address in a network namespace; it runs there.
    pub fn placed(tag: &str, address: SocketAddr, namespace: &str) -> Result<Mesh> {
        let directory = Directory::new(tag)?;
        let mut broker = Broker::prepare(directory.path(), 0, None)?;
        broker.address = address;
        let enter = ["ip", "netns", "exec", namespace];
        broker.through = enter.map(str::to_owned).to_vec();
        let mut mesh = Mesh::init(directory, broker, None)?;
        mesh.namespace = Some(namespace.to_owned());
        Ok(mesh)
    }

    fn init(directory: Directory, mut broker: Broker, store: Option<&str>) -> Result<Mesh> {
        let authority = directory.path().join("authority");
        let mut command = broker.init_command(store);
        command.arg("--authority").arg(&authority);
        let told = command::json(command)?;
        let about = About {
            mesh: text(&told, "mesh")?,
            authority: text(&told, "authority_key")?,
            recovery: text(&told, "recovery_key")?,
        };
        broker.key = text(&told, "broker_key")?;
        Ok(Mesh {
            directory,
            addresses: Vec::new(),
            brokers: vec![broker],
            about,
            namespace: None,
        })
    }

    /// A further broker: made for the authority's key, entered in the ledger, and started. The first
    /// broker runs.
    pub fn add_broker(&mut self, store: Option<&str>) -> Result<usize> {
        let number = self.brokers.len();
        let mut broker = Broker::prepare(self.directory.path(), number, store)?;
        let mut init = broker.init_command(store);
        init.args(["--mesh", &self.about.authority]);
        let told = command::json(init)?;
        broker.key = text(&told, "broker_key")?;
        let store_id = text(&told, "store_id")?;
        broker.start_without_waiting()?;
        broker.wait_for_port()?;
        let mut add = self.operator(&["broker", "add", &broker.key]);
        add.arg("--address").arg(broker.address.to_string());
        add.args(["--store-id", &store_id]);
        command::run(add, None)?.expect_success()?;
        broker.wait_until_ready()?;
        self.brokers.push(broker);
        Ok(number)
    }

    pub fn add_address(&mut self, address: &str) {
        self.addresses.push(address.to_owned());
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn authority(&self) -> PathBuf {
        self.path().join("authority")
    }

    /// A state directory for a node; the name is for people.
    pub fn node(&self, name: &str) -> PathBuf {
        self.path().join(format!("node-{name}"))
    }

    /// A command of the operator on the first broker's host.
    pub fn operator(&self, words: &[&str]) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => within(namespace, &causeway()),
            None => causeway(),
        };
        command
            .args(words)
            .arg("--state-dir")
            .arg(&self.brokers[0].state)
            .arg("--runtime-dir")
            .arg(&self.brokers[0].runtime)
            .arg("--authority")
            .arg(self.authority());
        command
    }

    /// A token that names all brokers.
    pub fn token(&self, site: &str, prefix: &str, more: &[&str]) -> Result<String> {
        let said = command::run(self.token_command(site, prefix, more), None)?;
        Ok(said.expect_success()?.out.trim().to_owned())
    }

    pub fn token_command(&self, site: &str, prefix: &str, more: &[&str]) -> Command {
        let own = self.brokers.iter().map(|broker| broker.address.to_string());
        let addresses: Vec<String> = own.chain(self.addresses.iter().cloned()).collect();
        let mut command = self.operator(&["token", "create"]);
        command
            .args(["--broker", &addresses.join(",")])
            .args([format!("--site={site}"), format!("--cidr={prefix}")])
            .args(more);
        command
    }

    /// `causeway join` with the token on standard input.
    pub fn join(&self, node: &str, token: &str) -> Result<Said> {
        join(&self.node(node), node, token)
    }
}

/// The same command in a network namespace.
pub fn within(namespace: &str, plain: &Command) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(plain.get_program())
        .args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// `causeway join` with the token on standard input.
pub fn join(state: &Path, node: &str, token: &str) -> Result<Said> {
    command::run(join_command(state, node), Some(token))
}

pub fn join_command(state: &Path, node: &str) -> Command {
    let mut command = causeway();
    command
        .args(["join", "--node", node, "--state-dir"])
        .arg(state);
    command
}

impl Broker {
    fn prepare(directory: &Path, number: usize, store: Option<&str>) -> Result<Broker> {
        let address = own_address();
        let home = directory.join(format!("broker-{number}"));
        fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let mut arguments = Vec::new();
        if let Some(url) = store {
            arguments.extend(["--store".to_owned(), url.to_owned()]);
        }
        Ok(Broker {
            address: SocketAddr::new(address, PORT),
            state: home.join("state"),
            runtime: home.join("run"),
            http: SocketAddr::new(address, HTTP_PORT),
            key: String::new(),
            arguments,
            environment: Vec::new(),
            through: Vec::new(),
            logs: home,
            starts: 0,
            process: None,
        })
    }

    fn init_command(&self, store: Option<&str>) -> Command {
        let mut command = causeway();
        command
            .args(["broker", "init", "--json", "--state-dir"])
            .arg(&self.state)
            .args(["--address", &self.address.to_string()]);
        if let Some(url) = store {
            command.args(["--store", url]);
        }
        command
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        self.start_without_waiting()?;
        self.wait_until_ready()
    }

    pub fn start_without_waiting(&mut self) -> Result<()> {
        let mut command = self.run_command();
        if let Some((program, arguments)) = self.through.split_first() {
            let mut through = Command::new(program);
            through.args(arguments).arg(command.get_program());
            through.args(command.get_args());
            command = through;
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.starts += 1;
        let log = self.log_of(self.starts);
        self.process = Some(Process::spawn(command, log)?);
        Ok(())
    }

    /// How it is run, for tests that start it themselves.
    pub fn run_command(&self) -> Command {
        let mut command = causeway();
        command
            .args(["broker", "run", "--state-dir"])
            .arg(&self.state)
            .arg("--runtime-dir")
            .arg(&self.runtime)
            .args(["--listen", &self.address.to_string()])
            .args(["--http", &self.http.to_string()])
            .args(&self.arguments);
        command
    }

    pub fn wait_until_ready(&self) -> Result<()> {
        wait_for("the broker serves", ENOUGH, || {
            !self.is_running() || look::healthy(self.http)
        })?;
        self.must_run()
    }

    /// A broker that waits for its ledger listens and is not healthy.
    pub fn wait_for_port(&self) -> Result<()> {
        wait_for("the broker listens", ENOUGH, || {
            !self.is_running() || std::net::TcpStream::connect(self.address).is_ok()
        })?;
        self.must_run()
    }

    fn must_run(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        bail!("the broker ended: {}", self.log())
    }

    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the broker was started")
    }

    /// Kills it (-9).
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Everything it has logged, over all its starts.
    pub fn log(&self) -> String {
        let logs = (1..=self.starts).map(|start| fs::read(self.log_of(start)).unwrap_or_default());
        logs.map(|log| String::from_utf8_lossy(&log).into_owned())
            .collect()
    }

    fn log_of(&self, start: u32) -> PathBuf {
        self.logs.join(format!("run-{start}.log"))
    }
}

/// Raises what this process may open to what root allows it; an error if that is not enough.
pub fn allow_open_files(wanted: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = u64::try_from(wanted)?;
    if hard < wanted {
        bail!("{wanted} open files are needed, {hard} are allowed; see `ulimit -Hn`");
    }
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// An address in 127/8 that no other broker here has.
pub fn own_address() -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let last = u8::try_from(number % 250 + 1).expect("at most 250");
    Ipv4Addr::new(127, 64 + high % 64, low, last).into()
}

fn text(told: &serde_json::Value, name: &str) -> Result<String> {
    let found = told.get(name).and_then(serde_json::Value::as_str);
    found
        .map(str::to_owned)
        .with_context(|| format!("`broker init --json` tells no {name}"))
}
