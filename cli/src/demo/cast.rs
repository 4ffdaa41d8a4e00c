//! The places of the demo: machines, the wires between them, and the internet.
//!
//! ```text
//!   worker-1 ─┐      ┌─ gateway-1 ─┐
//!             ├─ lan ┤             ├─ internet ── broker
//!   worker-2 ─┘      └─ gateway-2 ─┘
//! ```
//! Where there is a NAT, its router stands on the LAN, and the gateways know no other way out.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;

use super::lab::{End, Lab, Namespace};
use super::plan::{self, Machine, Role, Site};

const EVERYWHERE: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

pub(super) struct Cast {
    pub(super) lab: Lab,
    internet: Namespace,
    pub(super) broker: Namespace,
    places: Vec<(Machine, Namespace)>,
    /// Kept, since with it would go what it is made of.
    _routers: Vec<Namespace>,
    _switches: Namespace,
}

impl Cast {
    pub(super) fn build() -> anyhow::Result<Cast> {
        let lab = Lab::new()?;
        let internet = lab.namespace("internet")?;
        internet.forward()?;
        let broker = lab.namespace("broker")?;
        lab.wire(
            end(&internet, "broker", &[(plan::BROKER_ROUTER.into(), 24)]),
            end(&broker, "wan", &[(plan::BROKER.into(), 24)]),
        )?;
        lab.route(&broker, EVERYWHERE, plan::BROKER_ROUTER.into())?;
        let switches = lab.namespace("switches")?;
        // A switch has no addresses.
        switches.sysctl6("default/disable_ipv6", "1")?;
        let mut cast = Cast {
            lab,
            internet,
            broker,
            places: vec![],
            _routers: vec![],
            _switches: switches,
        };
        for site in plan::SITES {
            cast.site(site)
                .with_context(|| format!("cannot make the site {}", site.name))?;
        }
        Ok(cast)
    }

    fn site(&mut self, site: Site) -> anyhow::Result<()> {
        let bridge = self.lab.bridge(&self._switches, site.name)?;
        for machine in site.machines() {
            let namespace = self.lab.namespace(&machine.name())?;
            let addresses = machine.addresses().into_iter().zip([24, 64]);
            let addresses: Vec<(IpAddr, u8)> = addresses.collect();
            let port = format!("{}-{}", site.number, machine.short());
            self.plug(bridge, &port, end(&namespace, "lan", &addresses))?;
            if machine.role == Role::Gateway && site.nat {
                self.lab
                    .route(&namespace, EVERYWHERE, site.router().into())?;
            } else if machine.role == Role::Gateway {
                self.uplink(&namespace, site, machine.number)?;
            }
            self.places.push((machine, namespace));
        }
        if site.nat {
            let router = self.lab.namespace(&format!("{}-nat", site.name))?;
            let addresses = [(site.router().into(), 24)];
            let port = format!("{}-nat", site.number);
            self.plug(bridge, &port, end(&router, "lan", &addresses))?;
            self.uplink(&router, site, 1)?;
            router.forward()?;
            router
                .within(|| routeagent::translate_behind("wan"))?
                .context("cannot set up the NAT")?;
            self._routers.push(router);
        }
        Ok(())
    }

    fn plug(&self, bridge: u32, port: &str, machine: End<'_>) -> anyhow::Result<()> {
        let mut switch = end(&self._switches, port, &[]);
        switch.bridge = Some(bridge);
        self.lab.wire(switch, machine)
    }

    fn uplink(&self, machine: &Namespace, site: Site, number: u8) -> anyhow::Result<()> {
        let (own, other) = site.outer(number);
        let port = format!("{}-{number}", site.number);
        self.lab.wire(
            end(&self.internet, &port, &[(other.into(), 30)]),
            end(machine, "wan", &[(own.into(), 30)]),
        )?;
        self.lab.route(machine, EVERYWHERE, other.into())
    }

    pub(super) fn place(&self, machine: Machine) -> anyhow::Result<&Namespace> {
        let mut places = self.places.iter();
        let found = places.find(|(one, _)| *one == machine);
        found
            .map(|(_, namespace)| namespace)
            .with_context(|| format!("there is no {}", machine.name()))
    }

    /// Lets the first worker of each site reach the other's by plain routes, as long as `work` takes.
    pub(super) fn untunnelled<T>(
        &self,
        sites: [Site; 2],
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut routes = vec![];
        let [left, right] = sites;
        for (here, there) in [(left, right), (right, left)] {
            let gateway = here.machine(Role::Gateway, 1);
            let (outer, internet) = here.outer(1);
            let to_there = (IpAddr::V4(Ipv4Addr::new(10, there.number, 0, 0)), 16);
            let to_here = (IpAddr::V4(Ipv4Addr::new(10, here.number, 0, 0)), 16);
            let worker = self.place(here.machine(Role::Worker, 1))?;
            routes.push((worker, to_there, IpAddr::from(gateway.v4())));
            routes.push((self.place(gateway)?, to_there, internet.into()));
            routes.push((&self.internet, to_here, outer.into()));
            self.place(gateway)?.sysctl("net/ipv4/ip_forward", "1")?;
        }
        for (at, to, via) in &routes {
            self.lab.route(at, *to, *via)?;
        }
        let done = work()?;
        for (at, to, via) in &routes {
            self.lab.unroute(at, *to, *via)?;
        }
        for site in sites {
            let gateway = self.place(site.machine(Role::Gateway, 1))?;
            gateway.sysctl("net/ipv4/ip_forward", "0")?;
        }
        Ok(done)
    }
}

fn end<'a>(namespace: &'a Namespace, interface: &'a str, addresses: &'a [(IpAddr, u8)]) -> End<'a> {
    End {
        namespace,
        interface,
        addresses,
        bridge: None,
    }
}
