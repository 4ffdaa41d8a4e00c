//! One site: its LAN, its gateways, its way to the internet, and its workers.
//!
//! A worker without an agent knows nothing of the mesh but a route. Workers with agents have a
//! router besides, as machines have: their way to the broker, and the way by which a packet of the
//! mesh would get out in clear.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use super::agent::AgentNode;
use super::daemon::{Daemon, Role};
use super::gateway::GatewayNode;
use super::layout::{Lan, Layout, Nat};
use super::{Mesh, PATIENCE};
use crate::lab::{Lab, Namespace, wait_for};

pub struct Site {
    pub name: String,
    pub number: u8,
    pub gateways: Vec<GatewayNode>,
    /// The first of them.
    pub worker: Namespace,
    pub agents: Vec<AgentNode>,
    pub lan: Namespace,
    /// The translator, where there is one.
    pub nat: Option<Namespace>,
    /// The workers' way out, where they run agents.
    pub router: Option<Namespace>,
    layout: Layout,
}

impl Site {
    /// Networks and machines; nobody is a member of anything.
    pub(super) fn lay(mesh: &Mesh, number: u8, layout: Layout) -> Result<Site> {
        let lab = &mesh.lab;
        let lan = lab.namespace(&format!("lan{number}"))?;
        lan.run("ip", &["link", "add", "br0", "up", "type", "bridge"])?;
        let nat = uplink(mesh, number, layout.plan.nat)?;
        let mut site = Site {
            name: format!("site-{number}"),
            number,
            gateways: Vec::new(),
            worker: lab.namespace(&format!("w{number}"))?,
            agents: Vec::new(),
            lan,
            nat,
            router: None,
            layout,
        };
        if layout.agents > 0 {
            site.router = Some(site.lay_router(mesh)?);
        }
        site.lay_workers(mesh)?;
        for index in 1..=layout.plan.gateways {
            let gateway = site.lay_gateway(mesh, index)?;
            site.gateways.push(gateway);
        }
        if layout.agents == 0 {
            site.leave_by(0)?;
        }
        if layout.lan == Lan::Checked {
            site.check_addresses()?;
        }
        Ok(site)
    }

    fn lay_workers(&mut self, mesh: &Mesh) -> Result<()> {
        let (number, segment) = (self.number, self.layout.segment());
        for index in 0..self.layout.agents.max(1) {
            let worker = match index {
                0 => self.worker.clone(),
                _ => mesh.lab.namespace(&format!("w{number}{index}"))?,
            };
            let bridge = if segment == 0 { "br0" } else { "br1" };
            plug(&mesh.lab, (&self.lan, bridge), &worker, "eth0")?;
            let (lan, lan6) = (self.address(10 + index), self.address6(0x10 + index));
            worker.address("eth0", &format!("{lan}/24"))?;
            worker.address("eth0", &format!("{lan6}/64"))?;
            if self.layout.agents == 0 {
                continue;
            }
            for route in self.ways_out() {
                worker.sh(&format!("ip route add default via {route}"))?;
            }
            let name = format!("a{number}{}", index + 1);
            let own = if self.layout.only_v6 { lan6 } else { lan };
            let daemon = Daemon::new(mesh, (Role::Agent, name), worker, own);
            self.agents.push(AgentNode::new(daemon, lan6));
        }
        Ok(())
    }

    fn lay_gateway(&self, mesh: &Mesh, index: usize) -> Result<GatewayNode> {
        let (lab, number) = (&mesh.lab, self.number);
        let namespace = lab.namespace(&format!("g{number}{index}"))?;
        plug(lab, (&self.lan, "br0"), &namespace, "lan")?;
        namespace.address("lan", &format!("10.{number}.0.{index}/24"))?;
        namespace.address("lan", &format!("fd00:0:{number:x}::{index:x}/64"))?;
        if self.layout.lan == Lan::Routed {
            namespace.sh(&format!(
                "ip route add 10.{number}.0.0/16 via 10.{number}.0.254 &&
                 ip route add fd00:0:{number:x}::/48 via fd00:0:{number:x}::fe"
            ))?;
        }
        let router = self.nat.as_ref().unwrap_or(&mesh.internet);
        let nat = self.layout.plan.nat;
        let (outer, gate) = wire(lab, router, &namespace, number, (index, nat))?;
        namespace.run("ip", &["route", "add", "default", "via", &gate])?;
        let lan: IpAddr = if self.layout.only_v6 {
            format!("fd00:0:{number:x}::{index:x}").parse()?
        } else {
            Ipv4Addr::new(10, number, 0, index as u8).into()
        };
        let name = (Role::Gateway, format!("g{number}{index}"));
        let daemon = Daemon::new(mesh, name, namespace, lan);
        Ok(GatewayNode::new(daemon, outer))
    }

    /// Translates what goes to the internet; what is for a private address it passes on as it is,
    /// so that the watch sees what should not have come this far.
    fn lay_router(&self, mesh: &Mesh) -> Result<Namespace> {
        let (lab, number) = (&mesh.lab, self.number);
        let router = lab.namespace(&format!("r{number}"))?;
        router.forward()?;
        plug(lab, (&self.lan, "br0"), &router, "lan")?;
        router.address("lan", &format!("10.{number}.0.254/24"))?;
        router.address("lan", &format!("fd00:0:{number:x}::fe/64"))?;
        if self.layout.lan == Lan::Routed {
            let bridge = ["link", "add", "br1", "up", "type", "bridge"];
            self.lan.run("ip", &bridge)?;
            let port = format!("q-r{number}");
            lab.veth(&self.lan, &port, &router, "lan1")?;
            let join = ["link", "set", &port, "master", "br1"];
            self.lan.run("ip", &join)?;
            router.address("lan1", &format!("10.{number}.1.254/24"))?;
            router.address("lan1", &format!("fd00:0:{number:x}:1::fe/64"))?;
        }
        let port = format!("r{number}");
        lab.veth(&mesh.internet, &port, &router, "wan")?;
        mesh.internet
            .address(&port, &format!("203.0.{number}.1/30"))?;
        mesh.internet
            .address(&port, &format!("2001:db8:{number:x}::1/64"))?;
        router.address("wan", &format!("203.0.{number}.2/30"))?;
        router.address("wan", &format!("2001:db8:{number:x}::2/64"))?;
        router.sh(&format!(
            "ip route add default via 203.0.{number}.1 &&
             ip route add default via 2001:db8:{number:x}::1 &&
             nft add table ip nat &&
             nft add chain ip nat post '{{ type nat hook postrouting priority srcnat; }}' &&
             nft add rule ip nat post oifname wan ip daddr != 10.0.0.0/8 masquerade"
        ))?;
        Ok(router)
    }

    /// Every port but the router's passes the addresses of its machine only, both ways.
    fn check_addresses(&self) -> Result<()> {
        let gateways = self.gateways.iter().enumerate().map(|(index, gateway)| {
            let lan6 = format!("fd00:0:{:x}::{:x}", self.number, index + 1);
            (&gateway.namespace, gateway.lan, lan6)
        });
        let agents = self.agents.iter();
        let agents = agents.map(|agent| (&agent.namespace, agent.lan, agent.lan6.to_string()));
        self.lan.sh("nft add table bridge check &&
             nft add chain bridge check pass '{ type filter hook forward priority 0; }'")?;
        for (machine, lan, lan6) in gateways.chain(agents) {
            let port = port(machine);
            let rule = "nft add rule bridge check pass";
            self.lan.sh(&format!(
                "{rule} iifname {port} ether type ip ip saddr != {lan} counter drop &&
                 {rule} oifname {port} ether type ip ip daddr != '{{ {lan}, 224.0.0.0/4 }}' counter drop &&
                 {rule} iifname {port} ether type ip6 ip6 saddr != '{{ {lan6}, fe80::/10, :: }}' counter drop &&
                 {rule} oifname {port} ether type ip6 ip6 daddr != '{{ {lan6}, fe80::/10, ff00::/8 }}' counter drop"
            ))?;
        }
        Ok(())
    }

    /// Every machine of it becomes a member.
    pub(super) fn join(&self, mesh: &Mesh) -> Result<()> {
        let token = self.token(mesh)?;
        let gateways = self.gateways.iter().map(|gateway| &**gateway);
        let agents = self.agents.iter().map(|agent| &**agent);
        gateways
            .chain(agents)
            .try_for_each(|daemon| daemon.join(&token))
    }

    /// A token for all of its machines.
    pub fn token(&self, mesh: &Mesh) -> Result<String> {
        let uses = (self.gateways.len() + self.agents.len()).to_string();
        let prefixes = self.prefixes();
        let cidrs: Vec<String> = prefixes[1..]
            .iter()
            .map(|more| format!("--cidr={more}"))
            .collect();
        let mut more = vec!["--uses", &uses];
        more.extend(cidrs.iter().map(String::as_str));
        mesh.trust.token(&self.name, &prefixes[0], &more)
    }

    pub fn worker_address(&self) -> IpAddr {
        self.address(10)
    }

    pub fn worker_address6(&self) -> IpAddr {
        self.address6(0x10)
    }

    fn address(&self, host: usize) -> IpAddr {
        Ipv4Addr::new(10, self.number, self.layout.segment(), host as u8).into()
    }

    fn address6(&self, host: usize) -> IpAddr {
        let (number, segment) = (self.number, self.layout.segment());
        let text = format!("fd00:0:{number:x}:{segment:x}::{host:x}");
        text.parse().expect("an address")
    }

    fn ways_out(&self) -> [IpAddr; 2] {
        [self.address(254), self.address6(0xfe)]
    }

    /// The prefixes that its token grants.
    pub(super) fn prefixes(&self) -> Vec<String> {
        let v4 = format!("10.{}.0.0/16", self.number);
        let v6 = format!("fd00:0:{:x}::/48", self.number);
        if self.layout.only_v6 {
            vec![v6]
        } else {
            vec![v4, v6]
        }
    }

    /// All machines of it with their addresses of both families.
    pub fn machines(&self) -> Vec<(&Namespace, IpAddr, IpAddr)> {
        let mut machines: Vec<_> = self
            .agents
            .iter()
            .map(|agent| (&agent.namespace, agent.lan, agent.lan6))
            .collect();
        if machines.is_empty() {
            machines.push((&self.worker, self.worker_address(), self.worker_address6()));
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            let lan6 = format!("fd00:0:{:x}::{:x}", self.number, index + 1);
            let lan6 = lan6.parse().expect("an address");
            machines.push((&gateway.namespace, gateway.lan, lan6));
        }
        machines
    }

    pub(super) fn leave_by(&self, gateway: usize) -> Result<()> {
        let (number, index) = (self.number, gateway + 1);
        let via = format!("10.{number}.0.{index}");
        let via6 = format!("fd00:0:{number:x}::{index:x}");
        self.worker
            .run("ip", &["route", "replace", "10.0.0.0/8", "via", &via])?;
        let route6 = ["-6", "route", "replace", "fd00::/16", "via", &via6];
        self.worker.run("ip", &route6).map(drop)
    }

    /// What its running agents still lack, towards these sites.
    pub(super) fn missing(&self, sites: &[&str]) -> Vec<String> {
        let gateways = self.gateways.iter().filter(|gateway| gateway.is_running());
        let gateways: Vec<&str> = gateways.map(|gateway| gateway.name.as_str()).collect();
        let others: Vec<&str> = sites
            .iter()
            .copied()
            .filter(|site| *site != self.name)
            .collect();
        let running = self.agents.iter().filter(|agent| agent.is_running());
        running
            .flat_map(|agent| agent.lacks(&gateways, &others))
            .collect()
    }

    /// Nobody asks for neighbours with an address that the kernel's one worker for all namespaces
    /// has not come round to yet: the first packet of IPv6 would wait for a second.
    pub fn wait_for_neighbours(&self) -> Result<()> {
        for (namespace, ..) in self.machines() {
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
        Ok(())
    }
}

/// The LAN's end of a machine's wire.
fn port(machine: &Namespace) -> String {
    let suffix = machine.name().rsplit('-').next().unwrap_or("x");
    format!("p-{suffix}")
}

/// A port of a bridge of the LAN that leads to `interface` of a machine.
fn plug(
    lab: &Lab,
    (lan, bridge): (&Namespace, &str),
    machine: &Namespace,
    interface: &str,
) -> Result<()> {
    let port = port(machine);
    lab.veth(lan, &port, machine, interface)?;
    lan.run("ip", &["link", "set", &port, "master", bridge])
        .map(drop)
}

/// The site's router with its translation, if it has one.
fn uplink(mesh: &Mesh, number: u8, nat: Nat) -> Result<Option<Namespace>> {
    if nat == Nat::None {
        return Ok(None);
    }
    let router = mesh.lab.namespace(&format!("nat{number}"))?;
    router.forward()?;
    let port = format!("s{number}");
    mesh.lab.veth(&mesh.internet, &port, &router, "wan")?;
    mesh.internet
        .address(&port, &format!("198.51.{number}.1/24"))?;
    router.address("wan", &format!("198.51.{number}.2/24"))?;
    let gate = format!("198.51.{number}.1");
    router.run("ip", &["route", "add", "default", "via", &gate])?;
    let translation = match nat {
        Nat::None | Nat::Cone | Nat::TcpOnly => "masquerade",
        Nat::Symmetric => "masquerade random,fully-random",
    };
    router.sh(&format!(
        "nft add table ip nat &&
         nft add chain ip nat post '{{ type nat hook postrouting priority srcnat; }}' &&
         nft add rule ip nat post oifname wan {translation} &&
         nft add table ip filter &&
         nft add chain ip filter pass '{{ type filter hook forward priority 0; }}' &&
         nft add rule ip filter pass iifname wan ct state new drop &&
         nft add chain ip filter own '{{ type filter hook input priority 0; }}' &&
         nft add rule ip filter own iifname wan meta l4proto udp drop"
    ))?;
    if nat == Nat::TcpOnly {
        router.sh("nft add rule ip filter pass oifname wan meta l4proto udp drop")?;
    }
    Ok(Some(router))
}

/// A gateway's wire to its router: its own address there, and the router's.
fn wire(
    lab: &Lab,
    router: &Namespace,
    gateway: &Namespace,
    number: u8,
    (index, nat): (usize, Nat),
) -> Result<(IpAddr, String)> {
    let net = if nat == Nat::None { "198.51" } else { "100.64" };
    let (near, far) = (4 * index + 2, 4 * index + 1);
    let port = format!("g{number}{index}");
    lab.veth(router, &port, gateway, "wan")?;
    router.address(&port, &format!("{net}.{number}.{far}/30"))?;
    gateway.address("wan", &format!("{net}.{number}.{near}/30"))?;
    Ok((
        format!("{net}.{number}.{near}").parse()?,
        format!("{net}.{number}.{far}"),
    ))
}
