//! The programs of the mesh: this very program, started in the places where it belongs.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use gateway::status::Status;

use super::cast::Cast;
use super::inside::PLACE;
use super::lab::Namespace;
use super::outside::THIS_PROGRAM;
use super::plan::{self, Machine, Role, Site};

pub(super) const BROKER: &str = "broker";
const PORT: u16 = 7800;
/// Where gateways lead workers to brokers.
const SPLICE: u16 = 7802;
/// What nothing takes here, however busy this machine is.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Of a log that is shown, from its end.
const LINES: usize = 20;

/// Where the daemons of one machine have what they keep.
pub(super) struct Home(PathBuf);

impl Home {
    pub(super) fn of(name: &str) -> Home {
        Home(Path::new(PLACE).join("causeway-demo").join(name))
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// So that no command needs to be told directories.
    pub(super) fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("CAUSEWAY_STATE_DIR", self.0.join("state")),
            ("CAUSEWAY_RUNTIME_DIR", self.0.join("run")),
        ]
    }
}

/// The broker and the nodes, as far as they run.
pub(super) struct Mesh<'a> {
    cast: &'a Cast,
    running: Mutex<Vec<(String, Child)>>,
}

impl Mesh<'_> {
    pub(super) fn new(cast: &Cast) -> Mesh<'_> {
        Mesh {
            cast,
            running: Mutex::default(),
        }
    }

    pub(super) fn start_broker(&self) -> anyhow::Result<()> {
        let address = format!("{}:{PORT}", plan::BROKER);
        let at = &self.cast.broker;
        run(at, BROKER, &["broker", "init", "--address", &address], "")?;
        self.spawn(at, BROKER, &["broker", "run", "--listen", &address])?;
        let target = (plan::BROKER, PORT).into();
        self.wait(BROKER, || {
            let reached = at.within(|| TcpStream::connect_timeout(&target, PATIENCE));
            reached.is_ok_and(|reached| reached.is_ok())
        })
    }

    /// For as many machines as the site has of that role. The words of the command are told with it.
    pub(super) fn token(&self, site: Site, role: Role) -> anyhow::Result<(String, String)> {
        let cidr = site.prefixes().join(",");
        let role = match role {
            Role::Gateway => "gateway",
            Role::Worker => "agent",
        };
        let words = [
            "token", "create", "--site", site.name, "--cidr", &cidr, "--role", role, "--uses", "2",
        ];
        let token = run(&self.cast.broker, BROKER, &words, "")?;
        // As one would write it where a line has 80 columns.
        let (first, rest) = words.split_at(4);
        let shown = format!("causeway {} \\\n      {}", first.join(" "), rest.join(" "));
        Ok((token.trim().to_owned(), shown))
    }

    /// Its own way to the broker, or through a gateway of its site that is just starting.
    pub(super) fn join(&self, machine: Machine, token: &str) -> anyhow::Result<()> {
        let node = machine.node();
        let mut words = vec!["join", "--node", &node, "--region", machine.site.region];
        let place = self.cast.place(machine)?;
        let gateway = machine.site.machine(Role::Gateway, 1);
        let via = gateway.v4().to_string();
        if machine.role == Role::Worker {
            let target = (gateway.v4(), SPLICE).into();
            self.wait(&gateway.name(), || {
                let reached = place.within(|| TcpStream::connect_timeout(&target, PATIENCE));
                reached.is_ok_and(|reached| reached.is_ok())
            })?;
            words.extend(["--via", &via]);
        }
        run(place, &machine.name(), &words, token).map(drop)
    }

    pub(super) fn start(&self, machine: Machine) -> anyhow::Result<()> {
        let address = machine.v4().to_string();
        let words = match machine.role {
            Role::Gateway => ["gateway", "run", "--address", &address],
            Role::Worker => ["routeagent", "run", "--address", &address],
        };
        self.spawn(self.cast.place(machine)?, &machine.name(), &words)
    }

    /// Kills it as hard as it goes.
    pub(super) fn kill(&self, machine: Machine) -> anyhow::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let name = machine.name();
        let at = running.iter().position(|(one, _)| *one == name);
        let at = at.with_context(|| format!("{name} does not run"))?;
        let (_, mut child) = running.swap_remove(at);
        child
            .kill()
            .and_then(|()| child.wait())
            .with_context(|| format!("cannot kill {name}"))?;
        Ok(())
    }

    /// What `causeway status` prints there; its exit code is told by its words.
    pub(super) fn status_text(&self, machine: Machine) -> anyhow::Result<String> {
        let mut command = causeway(&machine.name(), &["status"]);
        command.stdin(Stdio::null());
        let place = self.cast.place(machine)?;
        let told = place
            .within(|| command.output())?
            .context("cannot start `causeway status`")?;
        if told.stdout.is_empty() {
            bail!(
                "`causeway status`: {}",
                String::from_utf8_lossy(&told.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&told.stdout).into_owned())
    }

    /// The end of what its daemon logged.
    pub(super) fn log_of(&self, machine: Machine) -> String {
        log_of(&machine.name())
    }

    /// Of a gateway, once it is ready.
    pub(super) fn status(&self, gateway: Machine) -> anyhow::Result<Status> {
        serde_json::from_str(&self.ask(gateway)?).context("the status cannot be read")
    }

    fn ask(&self, machine: Machine) -> anyhow::Result<String> {
        let words = ["status", "--json", "--wait"];
        run(self.cast.place(machine)?, &machine.name(), &words, "")
    }

    /// Until each gateway has a link that is up to each other, and each worker is ready; how many links.
    pub(super) fn wait_until_whole(&self) -> anyhow::Result<usize> {
        let gateways = plan::machines().filter(|machine| machine.role == Role::Gateway);
        let gateways = gateways.count();
        for machine in plan::machines() {
            self.wait(&machine.name(), || match machine.role {
                Role::Gateway => self.status(machine).is_ok_and(|status| {
                    let up = status.links.iter().filter(|link| link.state == "up");
                    up.count() + 1 == gateways
                }),
                Role::Worker => self.ask(machine).is_ok(),
            })?;
        }
        Ok(gateways * (gateways - 1) / 2)
    }

    fn spawn(&self, at: &Namespace, name: &str, words: &[&str]) -> anyhow::Result<()> {
        let path = Home::of(name).log();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let errors = log.try_clone().context("cannot share a log")?;
        let mut command = causeway(name, words);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = at
            .within(|| command.spawn())?
            .with_context(|| format!("cannot start `causeway {}`", words.join(" ")))?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.push((name.to_owned(), child));
        Ok(())
    }

    /// The error shows what the daemon logged.
    fn wait(&self, name: &str, mut reached: impl FnMut() -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !reached() {
            if self.has_ended(name) {
                bail!("{name} has ended:\n{}", log_of(name));
            }
            if begun.elapsed() > PATIENCE {
                bail!("{name} is not ready after {PATIENCE:?}:\n{}", log_of(name));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Which it has not before it is started.
    fn has_ended(&self, name: &str) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .iter_mut()
            .any(|(one, child)| one == name && !matches!(child.try_wait(), Ok(None)))
    }
}

fn causeway(name: &str, words: &[&str]) -> Command {
    let mut command = Command::new(THIS_PROGRAM);
    command
        .args(words)
        .envs(Home::of(name).variables())
        // None of these clouds is one.
        .env("CAUSEWAY_METADATA", "off")
        .current_dir("/");
    command
}

/// To its end; what it printed.
fn run(at: &Namespace, name: &str, words: &[&str], input: &str) -> anyhow::Result<String> {
    let what = format!("`causeway {}` on {name}", words.join(" "));
    let home = Home::of(name);
    fs::create_dir_all(&home.0).with_context(|| format!("cannot make {}", home.0.display()))?;
    let mut command = causeway(name, words);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = at
        .within(|| command.spawn())?
        .with_context(|| format!("cannot start {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Who ends without reading says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let told = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {what}"))?;
    if !told.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&told.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&told.stdout).into_owned())
}

fn log_of(name: &str) -> String {
    let text = fs::read_to_string(Home::of(name).log()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
