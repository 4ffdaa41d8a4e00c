//! One site: its LAN, its gateways, its way to the internet, and a worker that knows nothing of
//! the mesh but a route.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use super::gateway::GatewayNode;
use super::{Mesh, Plan};
use crate::lab::{Lab, Namespace};

/// What stands between a site and the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Gateways have addresses of their own.
    None,
    /// One port outside for one inside, whatever the destination; lets answers in.
    Cone,
    /// Another port outside for every destination; lets answers in.
    Symmetric,
    /// Only TCP gets out.
    TcpOnly,
}

pub struct Site {
    pub name: String,
    pub number: u8,
    pub gateways: Vec<GatewayNode>,
    pub worker: Namespace,
    pub lan: Namespace,
    /// The translator, where there is one.
    pub nat: Option<Namespace>,
}

impl Site {
    pub(super) fn build(mesh: &Mesh, number: u8, plan: Plan) -> Result<Site> {
        let name = format!("site-{number}");
        let lab = &mesh.lab;
        let lan = lab.namespace(&format!("lan{number}"))?;
        lan.run("ip", &["link", "add", "br0", "up", "type", "bridge"])?;
        let worker = lab.namespace(&format!("w{number}"))?;
        plug(lab, &lan, &worker, "eth0")?;
        worker.address("eth0", &format!("10.{number}.0.10/24"))?;
        worker.address("eth0", &format!("fd00:0:{number:x}::10/64"))?;
        let nat = uplink(mesh, number, plan.nat)?;
        let more = ["--uses".to_owned(), plan.gateways.to_string()];
        let cidr6 = format!("--cidr=fd00:0:{number:x}::/48");
        let token = mesh.trust.token(
            &name,
            &format!("10.{number}.0.0/16"),
            &[&more[0], &more[1], &cidr6],
        )?;
        let mut gateways = Vec::new();
        for index in 1..=plan.gateways {
            let namespace = lab.namespace(&format!("g{number}{index}"))?;
            plug(lab, &lan, &namespace, "lan")?;
            namespace.address("lan", &format!("10.{number}.0.{index}/24"))?;
            namespace.address("lan", &format!("fd00:0:{number:x}::{index:x}/64"))?;
            let router = nat.as_ref().unwrap_or(&mesh.internet);
            let (outer, gate) = wire(lab, router, &namespace, number, (index, plan.nat))?;
            let route = ["route", "add", "default", "via", &gate];
            namespace.run("ip", &route)?;
            let lan_address = Ipv4Addr::new(10, number, 0, index as u8);
            gateways.push(GatewayNode::join(
                mesh,
                namespace,
                (number, index),
                (outer, lan_address.into()),
                &token,
            )?);
        }
        let site = Site {
            name,
            number,
            gateways,
            worker,
            lan,
            nat,
        };
        site.leave_by(0)?;
        Ok(site)
    }

    pub fn worker_address(&self) -> IpAddr {
        Ipv4Addr::new(10, self.number, 0, 10).into()
    }

    pub fn worker_address6(&self) -> IpAddr {
        let text = format!("fd00:0:{:x}::10", self.number);
        text.parse().expect("an address")
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
}

/// A port of the LAN's bridge that leads to `interface` of a machine.
fn plug(lab: &Lab, lan: &Namespace, machine: &Namespace, interface: &str) -> Result<()> {
    let suffix = machine.name().rsplit('-').next().unwrap_or("x").to_owned();
    let port = format!("p-{suffix}");
    lab.veth(lan, &port, machine, interface)?;
    lan.run("ip", &["link", "set", &port, "master", "br0"])
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
        .address(&port, &format!("198.19.{number}.1/24"))?;
    router.address("wan", &format!("198.19.{number}.2/24"))?;
    let gate = format!("198.19.{number}.1");
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
    let net = if nat == Nat::None { "198.18" } else { "100.64" };
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
