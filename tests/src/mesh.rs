//! A whole mesh of real daemons: sites in namespaces, an internet between them, a broker beside it.
//!
//! ```text
//!   worker ── lan ─┬─ gateway 1 ──┐
//!   10.S.0.10      │  10.S.0.1    ├── (nat) ── internet ── hub: broker 192.0.2.2
//!                  └─ gateway 2 ──┘
//! ```
//! Site S has 10.S.0.0/16 and fd00:0:S::/48. Nothing of these may be seen on the internet: a watch
//! counts it there from the first second to the last. Workers that run agents have a router of
//! their own to the internet, which would carry what they let out in clear to the watch.

mod agent;
mod askers;
mod crowd;
mod daemon;
mod gateway;
mod layout;
mod meter;
mod site;
mod transfers;
mod watch;

pub use agent::AgentNode;
pub use askers::Askers;
pub use crowd::Crowd;
pub use daemon::{Daemon, Role, Start};
pub use gateway::GatewayNode;
pub use layout::{Lan, Layout, Nat, Plan};
pub use meter::{Meter, Report};
pub use site::Site;
pub use transfers::{Transfer, Transfers};
pub use watch::Watch;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::broker::{self, look};
use crate::lab::{Lab, Namespace, wait_for};

const HUB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// What a mesh on this machine never takes to come up, however busy it is.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Sites, their gateways and a broker; all gone when dropped.
pub struct Mesh {
    pub sites: Vec<Site>,
    pub trust: broker::Mesh,
    pub hub: Namespace,
    pub internet: Namespace,
    pub watch: Watch,
    pub lab: Lab,
}

impl Mesh {
    /// Networks, broker and joined nodes; no gateway and no agent runs yet.
    pub fn at_rest<L: Copy + Into<Layout>>(tag: &str, layouts: &[L]) -> Result<Mesh> {
        let mesh = Mesh::strangers(tag, layouts)?;
        for site in &mesh.sites {
            site.join(&mesh)?;
        }
        Ok(mesh)
    }

    /// Networks and broker; no machine is a member yet.
    pub fn strangers<L: Copy + Into<Layout>>(tag: &str, layouts: &[L]) -> Result<Mesh> {
        let lab = Lab::new(tag)?;
        let internet = lab.namespace("internet")?;
        internet.forward()?;
        let hub = lab.namespace("hub")?;
        lab.veth(&internet, "hub", &hub, "wan")?;
        internet.address("hub", "192.0.2.1/24")?;
        hub.address("wan", "192.0.2.2/24")?;
        hub.run("ip", &["route", "add", "default", "via", "192.0.2.1"])?;
        let watch = Watch::over(&internet)?;
        let trust = broker::Mesh::placed(tag, (HUB, broker::PORT).into(), hub.name())?;
        let mut mesh = Mesh {
            sites: Vec::new(),
            trust,
            hub,
            internet,
            watch,
            lab,
        };
        mesh.start_broker()?;
        for layout in layouts {
            mesh.add_site(*layout)?;
        }
        Ok(mesh)
    }

    /// One more site of strangers.
    pub fn add_site(&mut self, layout: impl Into<Layout>) -> Result<&mut Site> {
        let number = u8::try_from(self.sites.len() + 1).context("too many sites")?;
        let site = Site::lay(self, number, layout.into())?;
        self.sites.push(site);
        self.sites.last_mut().context("a site was added")
    }

    /// The same as at rest with every daemon started and ready, every link up, and every site
    /// within reach of every agent.
    pub fn up<L: Copy + Into<Layout>>(tag: &str, layouts: &[L]) -> Result<Mesh> {
        let mut mesh = Mesh::at_rest(tag, layouts)?;
        mesh.start_all()?;
        Ok(mesh)
    }

    /// Every daemon, and waits for all that [`Mesh::up`] promises.
    pub fn start_all(&mut self) -> Result<()> {
        self.start_gateways()?;
        self.start_agents()?;
        self.settle()
    }

    /// Waits until all that runs is up: nothing that a worker sends now leaves in clear.
    pub fn settle(&self) -> Result<()> {
        self.wait_until_up(PATIENCE)?;
        self.wait_until_ready()?;
        self.wait_for_agents(PATIENCE)?;
        self.sites.iter().try_for_each(Site::wait_for_neighbours)
    }

    /// Links come up before the kernels forward, and before they know each prefix: what a worker
    /// sent to one that is not known yet would leave by its gateway's default route.
    fn wait_until_ready(&self) -> Result<()> {
        for (at, site) in self.sites.iter().enumerate() {
            let others = self
                .sites
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != at);
            let prefixes: Vec<String> = others.flat_map(|(_, other)| other.prefixes()).collect();
            for gateway in site.gateways.iter().filter(|one| one.is_running()) {
                gateway.wait_until_ready(PATIENCE)?;
                let knows = || knows(&gateway.namespace, &prefixes).unwrap_or(false);
                wait_for("a gateway's kernel knows all prefixes", PATIENCE, knows)?;
            }
        }
        Ok(())
    }

    pub fn start_broker(&mut self) -> Result<()> {
        let broker = &mut self.trust.brokers[0];
        broker.start_without_waiting()?;
        let http = broker.http;
        let hub = &self.hub;
        wait_for("the broker serves", PATIENCE, || {
            hub.within(|| look::healthy(http)).unwrap_or(false)
        })
        .with_context(|| self.trust.brokers[0].log())
    }

    pub fn start_gateways(&mut self) -> Result<()> {
        for site in &mut self.sites {
            for gateway in &mut site.gateways {
                gateway.start()?;
            }
        }
        Ok(())
    }

    pub fn start_agents(&mut self) -> Result<()> {
        let agents = self.sites.iter_mut().flat_map(|site| &mut site.agents);
        for agent in agents {
            agent.start()?;
        }
        Ok(())
    }

    /// Until every agent that runs hears every gateway of its site that runs, and reaches every
    /// other site by each of them.
    pub fn wait_for_agents(&self, limit: Duration) -> Result<Duration> {
        let sites: Vec<&str> = self.sites.iter().map(|site| site.name.as_str()).collect();
        let begin = Instant::now();
        loop {
            let missing: Vec<String> = self
                .sites
                .iter()
                .flat_map(|site| site.missing(&sites))
                .collect();
            if missing.is_empty() {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > limit {
                bail!("agents not up within {limit:?}: {}", missing.join("; "));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn gateway(&mut self, site: usize, gateway: usize) -> &mut GatewayNode {
        &mut self.sites[site].gateways[gateway]
    }

    /// Every link of every gateway that runs, to every other that runs.
    pub fn wait_until_up(&self, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let missing = self.missing_links();
            if missing.is_empty() {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > limit {
                bail!("not up within {limit:?}: {}", missing.join("; "));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn missing_links(&self) -> Vec<String> {
        let running = || {
            let gateways = self.sites.iter().flat_map(|site| &site.gateways);
            gateways.filter(|gateway| gateway.is_running())
        };
        let mut missing = Vec::new();
        for gateway in running() {
            let status = match gateway.status() {
                Ok(status) => status,
                Err(error) => {
                    missing.push(format!("{}: {error:#}", gateway.name));
                    continue;
                }
            };
            for other in running().filter(|other| other.name != gateway.name) {
                let state = gateway::link_state(&status, &other.name);
                if state != "up" {
                    missing.push(format!("{} to {}: {state}", gateway.name, other.name));
                }
            }
        }
        missing
    }

    /// The gateway of a site that most of what comes from these others passes: the one worth a
    /// fault. There is traffic meanwhile.
    pub fn busiest(&self, to: usize, from: &[usize]) -> Result<usize> {
        let received = |gateway: &GatewayNode| {
            let senders = from.iter().flat_map(|site| &self.sites[*site].gateways);
            let links = senders.map(|sender| sender.link(&gateway.name));
            let bytes = links.map(|link| Ok(link?["tx_bytes"].as_u64().unwrap_or_default()));
            bytes.sum::<Result<u64>>()
        };
        let gateways = &self.sites[to].gateways;
        let before: Vec<u64> = gateways.iter().map(received).collect::<Result<_>>()?;
        std::thread::sleep(Duration::from_millis(300));
        let mut grown = Vec::new();
        for (gateway, before) in gateways.iter().zip(before) {
            grown.push(received(gateway)?.saturating_sub(before));
        }
        let most = grown.iter().enumerate().max_by_key(|(_, bytes)| **bytes);
        most.map(|(index, _)| index).context("no gateway")
    }

    /// Sends the site's worker's packets for other sites through this gateway of its own.
    pub fn leave_by(&self, site: usize, gateway: usize) -> Result<()> {
        self.sites[site].leave_by(gateway)
    }

    /// Datagrams of many flows from one site's worker to another's.
    pub fn meter(&self, from: usize, to: usize) -> Result<Meter> {
        let (from, to) = (&self.sites[from], &self.sites[to]);
        Meter::start(&from.worker, &to.worker, to.worker_address())
    }

    /// TCP connections from one site's worker to another's.
    pub fn transfers(&self, from: usize, to: usize) -> Result<Transfers> {
        let (from, to) = (&self.sites[from], &self.sites[to]);
        Transfers::start(&from.worker, &to.worker, to.worker_address())
    }

    /// From worker to worker.
    pub fn wait_for_ping(&self, from: usize, to: usize, limit: Duration) -> Result<()> {
        let target: IpAddr = self.sites[to].worker_address();
        self.sites[from].worker.wait_for_ping(target, limit)
    }
}

/// Whether all these prefixes are in the table of the mesh.
fn knows(node: &Namespace, prefixes: &[String]) -> Result<bool> {
    let routes = node.sh("ip -4 route show table 7100; ip -6 route show table 7100")?;
    let has = |prefix: &String| {
        let line = format!("{prefix} ");
        routes.lines().any(|one| one.starts_with(&line))
    };
    Ok(prefixes.iter().all(has))
}

/// How many times a bar is tried: every one of 30 runs counts where `CAUSEWAY_ROUNDS=30` asks for
/// them; a few in the usual run.
pub fn rounds(usual: usize) -> usize {
    let wanted = std::env::var("CAUSEWAY_ROUNDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// What is promised holds where thirty rounds are asked for; a machine that does much else at the
/// time, as in the usual run, may take three times as long.
pub fn bar(promised: Duration) -> Duration {
    bar_or(promised, promised * 3)
}

/// The same where the usual run, with its build for debugging, is slower by more than that.
pub fn bar_or(promised: Duration, usual: Duration) -> Duration {
    let is_strict = std::env::var_os("CAUSEWAY_ROUNDS").is_some();
    if is_strict { promised } else { usual }
}
