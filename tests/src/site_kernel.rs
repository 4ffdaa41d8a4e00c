//! A site as far as its kernels go: an agent's node and two gateways in one LAN, the route agent in
//! each, and for the gateways' tunnels wires to the other site. Facts are given by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use routeagent::facts::{Exit, Facts, Gateways, Mode, Neighbour, Remote, Tunnel, Vxlan};
use routeagent::{Handle, Settings};
use tokio::sync::watch;

use crate::lab::{Lab, Namespace, wait_for};
use crate::node_kernel::{FAR_V4, FAR_V6, LAN, OUTSIDE, TUN, identity, prefix, snapshot};

/// Numbers of identities, and the last part of addresses.
pub const GATEWAYS: [u8; 2] = [1, 2];
pub const AGENT: u8 = 5;
pub const PORT: u16 = 7803;

pub struct SiteKernel {
    pub node: Namespace,
    pub gateways: Vec<Namespace>,
    /// The other site, at the far end of what is taken for the tunnels.
    pub far: Namespace,
    /// Where the node's default route leads: what comes here came in clear.
    pub world: Namespace,
    pub lan: Namespace,
    facts: watch::Sender<Option<Arc<Facts>>>,
    pub lab: Lab,
}

/// Of a node of the site.
pub fn lan(number: u8) -> [IpAddr; 2] {
    let text = [format!("10.1.0.{number}"), format!("fd00:1::{number}")];
    text.map(|text| text.parse().expect("an address"))
}

impl SiteKernel {
    pub fn new(tag: &str) -> Result<SiteKernel> {
        let lab = Lab::new(tag)?;
        let (node, far) = (lab.namespace("node")?, lab.namespace("far")?);
        let (world, bridge) = (lab.namespace("world")?, lab.namespace("lan")?);
        bridge.run("ip", &["link", "add", "br0", "up", "type", "bridge"])?;
        lab.veth(&node, OUTSIDE, &world, "eth0")?;
        node.address(OUTSIDE, "192.0.2.1/24")?;
        node.address(OUTSIDE, "2001:db8::1/64")?;
        world.address("eth0", "192.0.2.2/24")?;
        world.address("eth0", "2001:db8::2/64")?;
        node.run("ip", &["route", "add", "default", "via", "192.0.2.2"])?;
        node.run("ip", &["route", "add", "default", "via", "2001:db8::2"])?;
        world.sh(&count("lost", "prerouting"))?;
        for address in [FAR_V4, FAR_V6] {
            far.address("lo", address)?;
        }
        let (facts, _) = watch::channel(None);
        let mut site = SiteKernel {
            node,
            gateways: vec![],
            far,
            world,
            lan: bridge,
            facts,
            lab,
        };
        site.plug(AGENT)?;
        for number in GATEWAYS {
            let gateway = site.lab.namespace(&format!("gateway{number}"))?;
            site.gateways.push(gateway);
            site.plug(number)?;
            site.wire(number)?;
        }
        Ok(site)
    }

    /// Into the LAN.
    fn plug(&self, number: u8) -> Result<()> {
        let (node, port) = (self.node(number), format!("port{number}"));
        self.lab.veth(node, LAN, &self.lan, &port)?;
        self.lan
            .run("ip", &["link", "set", &port, "master", "br0"])?;
        let [v4, v6] = lan(number);
        node.address(LAN, &format!("{v4}/16"))?;
        node.address(LAN, &format!("{v6}/32"))
    }

    fn node(&self, number: u8) -> &Namespace {
        let place = GATEWAYS.iter().position(|gateway| *gateway == number);
        place.map_or(&self.node, |place| &self.gateways[place])
    }

    /// A wire without neighbours to ask for, as a tunnel is. The way back is by the first.
    fn wire(&self, number: u8) -> Result<()> {
        let far = format!("eth{number}");
        let node = self.node(number);
        self.lab.veth(node, TUN, &self.far, &far)?;
        for (namespace, name) in [(node, TUN), (&self.far, far.as_str())] {
            let line = format!("ip link set {name} arp off addr 02:00:00:00:00:01");
            namespace.sh(&line)?;
        }
        for prefix in ["10.1.0.0/16", "fd00:1::/32"] {
            let line = format!("ip route append {prefix} dev {far} metric {}", 10 + number);
            self.far.sh(&line)?;
        }
        Ok(())
    }

    /// The node's route agent.
    pub fn start(&self, settings: Settings) -> Result<Handle> {
        let facts = self.facts.subscribe();
        let started = self.node.within(|| routeagent::start(settings, facts))?;
        started.context("the route agent does not start")
    }

    pub fn set_facts(&self, facts: Facts) -> Arc<Facts> {
        let facts = Arc::new(facts);
        self.facts.send_replace(Some(Arc::clone(&facts)));
        facts
    }

    /// Those of both gateways, which stay as they are.
    pub fn start_gateways(&self, mode: Mode) -> Result<Vec<Handle>> {
        let start = |number: &u8| {
            let (_told, facts) = watch::channel(Some(Arc::new(gateway_facts(*number, mode))));
            let node = self.node(*number);
            let started = node.within(|| routeagent::start(Settings::default(), facts))?;
            let handle = started.context("a gateway's route agent does not start")?;
            let forwards = "test $(sysctl -n net.ipv6.conf.all.forwarding) = 1";
            wait_for("a gateway", LIMIT, || node.sh(forwards).is_ok())?;
            Ok(handle)
        };
        GATEWAYS.iter().map(start).collect()
    }

    /// How long until `line` of shell succeeds in the node.
    pub fn until(&self, line: &str) -> Result<Duration> {
        let begin = Instant::now();
        wait_for(line, LIMIT, || self.node.sh(line).is_ok())?;
        Ok(begin.elapsed())
    }

    pub fn snapshot(&self) -> Result<String> {
        snapshot(&self.node)
    }

    /// Packets for the mesh that left in clear.
    pub fn lost(&self) -> Result<u64> {
        let listed = self.world.sh("nft list table inet lost")?;
        let counts = listed.lines().filter_map(|line| {
            let (_, rest) = line.split_once("counter packets ")?;
            rest.split(' ').next()?.parse::<u64>().ok()
        });
        Ok(counts.sum())
    }
}

impl Drop for SiteKernel {
    /// What the agent keeps outside of the namespace goes with what it is about.
    fn drop(&mut self) {
        for namespace in self.gateways.iter().chain([&self.node]) {
            let _ = namespace.within(|| routeagent::cleanup(false));
        }
    }
}

const LIMIT: Duration = Duration::from_secs(20);

fn count(table: &str, hook: &str) -> String {
    format!(
        "nft add table inet {table} && \
         nft add chain inet {table} c '{{ type filter hook {hook} priority -300; }}' && \
         nft add rule inet {table} c ip daddr 10.2.0.0/15 counter && \
         nft add rule inet {table} c ip6 daddr fd00:2::/32 counter"
    )
}

pub fn neighbour(number: u8) -> Neighbour {
    let [v4, v6] = lan(number);
    Neighbour {
        name: format!("node{number}").parse().expect("a name"),
        lan: v4,
        other: Some(v6),
        probes: vec![],
    }
}

pub fn remote(by: &[u8]) -> Remote {
    Remote {
        site: "berlin".parse().expect("a name"),
        mtu: Some(1380),
        by: by.iter().map(|number| identity(*number)).collect(),
    }
}

/// What an agent knows that uses these of its gateways.
pub fn agent_facts(mode: Mode, by: &[u8]) -> Facts {
    let gateways = GATEWAYS.map(|number| (identity(number), neighbour(number)));
    Facts {
        exit: Exit::Gateways(Gateways {
            gateways: gateways.into(),
            mode,
            is_turning: false,
            vxlan: vxlan(AGENT),
        }),
        ..facts(AGENT, by)
    }
}

fn gateway_facts(number: u8, mode: Mode) -> Facts {
    let agents = match mode {
        Mode::Direct => BTreeMap::new(),
        Mode::Vxlan => BTreeMap::from([(identity(AGENT), neighbour(AGENT))]),
    };
    Facts {
        exit: Exit::Tunnel(Tunnel {
            tun: TUN.to_owned(),
            listen_port: 7800,
            agents,
            vxlan: vxlan(number),
            probes: vec![],
        }),
        ..facts(number, &[])
    }
}

fn vxlan(number: u8) -> Vxlan {
    Vxlan {
        port: PORT,
        own: identity(number),
    }
}

fn facts(number: u8, by: &[u8]) -> Facts {
    let [v4, v6] = lan(number);
    Facts {
        lan: vec![v4, v6],
        prefixes: BTreeMap::from([
            (prefix("10.2.0.0/16"), remote(by)),
            (prefix("fd00:2::/32"), remote(by)),
        ]),
        local: vec![prefix("10.1.0.0/16"), prefix("fd00:1::/32")],
        services: vec![],
        exit: Exit::Gateways(Gateways {
            gateways: BTreeMap::new(),
            mode: Mode::Direct,
            is_turning: false,
            vxlan: vxlan(number),
        }),
    }
}

/// Succeeds in the agent's node while everything is there that leads through both gateways.
pub fn whole(mode: Mode) -> String {
    let device = match mode {
        Mode::Direct => LAN,
        Mode::Vxlan => "causeway-vx",
    };
    let vxlan = match mode {
        Mode::Direct => "true",
        Mode::Vxlan => {
            "ip -d link show causeway-vx | grep -q 'vxlan id 7803.*dstport 7803 nolearning'; \
             test $(bridge fdb show dev causeway-vx | grep -c 'dst 10.1.0.[12] self') = 2; \
             test $(ip neigh show dev causeway-vx | grep -c PERMANENT) = 2"
        }
    };
    format!(
        "set -e; {vxlan}; \
        for family in -4 -6; do \
        ip $family rule | grep -q '^99:.* lookup 7101'; \
        ip $family rule | grep -q '^100:.* lookup 7100'; \
        ip $family route show table 7100 | grep -q 'nhid .* proto 199'; \
        test $(ip $family route show table 7100 | grep -c 'nexthop via .* dev {device} ') = 2; \
        ip $family route show table 7101 | grep -q 'nhid .* proto 199.* mtu 1380'; \
        ip $family route show table main | grep -q '^unreachable .*proto 199.* metric 4294967295'; \
        done; \
        nft list chain inet causeway leaving | grep -q 'ip6 daddr @mesh6.*drop'; \
        nft list set inet causeway mesh4 | grep -q 10.2.0.0/16"
    )
}

/// Of the far site: which interface each source port came in by.
pub fn arrivals(far: &Namespace) -> Result<BTreeMap<u16, BTreeSet<String>>> {
    let listed = far.sh("nft list set inet seen flows")?;
    let mut all: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    let words: Vec<&str> = listed.split([' ', ',', '\n', '\t']).collect();
    for three in words.windows(3) {
        if let [device, ".", port] = three
            && let Ok(port) = port.parse()
        {
            let device = device.trim_matches('"').to_owned();
            all.entry(port).or_default().insert(device);
        }
    }
    Ok(all)
}

/// Remembers which flows come in where, from now on.
pub fn watch_arrivals(far: &Namespace) -> Result<()> {
    far.sh(
        "nft delete table inet seen 2>/dev/null; nft add table inet seen && \
         nft add set inet seen flows '{ type ifname . inet_service; flags dynamic; size 65535; }' && \
         nft add chain inet seen c '{ type filter hook prerouting priority 0; }' && \
         nft add rule inet seen c udp dport 9000 add @flows '{ iifname . udp sport }'",
    )
    .map(drop)
}
