//! A whole mesh of real daemons: sites in namespaces, an internet between them, a broker beside it.
//!
//! ```text
//!   worker ── lan ─┬─ gateway 1 ──┐
//!   10.S.0.10      │  10.S.0.1    ├── (nat) ── internet ── hub: broker 192.0.2.2
//!                  └─ gateway 2 ──┘
//! ```
//! Site S has 10.S.0.0/16 and fd00:0:S::/48. Nothing of these may be seen on the internet: a watch
//! counts it there from the first second to the last.

mod crowd;
mod gateway;
mod meter;
mod site;
mod transfers;
mod watch;

pub use crowd::Crowd;
pub use gateway::{GatewayNode, Start};
pub use meter::{Meter, Report};
pub use site::{Nat, Site};
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

/// What a site is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub gateways: usize,
    pub nat: Nat,
}

impl Plan {
    /// Two gateways with addresses of their own on the internet.
    pub const OPEN: Plan = Plan {
        gateways: 2,
        nat: Nat::None,
    };
}

impl Mesh {
    /// Networks, broker and joined nodes; no gateway runs yet.
    pub fn at_rest(tag: &str, plans: &[Plan]) -> Result<Mesh> {
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
        for (index, plan) in plans.iter().enumerate() {
            let number = u8::try_from(index + 1).context("too many sites")?;
            let site = Site::build(&mesh, number, *plan)?;
            mesh.sites.push(site);
        }
        Ok(mesh)
    }

    /// The same with every gateway started and ready, and every link up.
    pub fn up(tag: &str, plans: &[Plan]) -> Result<Mesh> {
        let mut mesh = Mesh::at_rest(tag, plans)?;
        mesh.start_gateways()?;
        mesh.wait_until_up(PATIENCE)?;
        mesh.wait_until_ready()?;
        mesh.wait_for_neighbours()?;
        Ok(mesh)
    }

    /// Links come up before the kernels forward.
    fn wait_until_ready(&self) -> Result<()> {
        for gateway in self.sites.iter().flat_map(|site| &site.gateways) {
            let is_ready = || {
                let status = gateway.status();
                status.is_ok_and(|status| status["ready"] == true)
            };
            wait_for("a gateway is ready", PATIENCE, is_ready)?;
        }
        Ok(())
    }

    /// Nobody asks for neighbours with an address that the kernel's one worker for all namespaces
    /// has not come round to yet: the first packet of IPv6 would wait for a second.
    fn wait_for_neighbours(&self) -> Result<()> {
        for site in &self.sites {
            let gateways = site.gateways.iter().map(|gateway| &gateway.namespace);
            for namespace in gateways.chain([&site.worker]) {
                let usable = || {
                    let lists = ["-6 address show scope link", "-6 address show tentative"];
                    let [all, tentative] = lists.map(|words| {
                        let words: Vec<&str> = words.split(' ').collect();
                        namespace.run("ip", &words).unwrap_or_default()
                    });
                    all.contains("fe80") && tentative.is_empty()
                };
                wait_for("link-local addresses", PATIENCE, usable)?;
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

/// How many times a bar is tried: every one of 30 runs counts where `CAUSEWAY_ROUNDS=30` asks for
/// them; a few in the usual run.
pub fn rounds(usual: usize) -> usize {
    let wanted = std::env::var("CAUSEWAY_ROUNDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(usual)
}
