//! A node of a mesh as far as its kernel goes: a namespace with a LAN, a way out, the route agent in
//! it, and for its tunnel a wire to the other site.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ip_network::IpNetwork;
use proto::key::{PublicKey, SigningKey};
use proto::name::Name;
use routeagent::facts::{Exit, Facts, Remote, Tunnel, Vxlan};
use routeagent::{Handle, Problem, Settings};
use tokio::sync::watch;

use crate::lab::{Lab, Namespace};

/// Its interface into the mesh.
pub const TUN: &str = "cwtun";
/// The interface with the default route: what leaves by it leaves in clear.
pub const OUTSIDE: &str = "outside";
pub const LAN: &str = "lan";
pub const LAN_V4: &str = "10.1.0.1";
pub const LAN_V6: &str = "fd00:1::1";
pub const FAR_V4: &str = "10.2.0.5";
pub const FAR_V6: &str = "fd00:2::5";

/// A node, a host in its LAN, the world outside and the other site.
pub struct NodeKernel {
    pub node: Namespace,
    pub host: Namespace,
    pub world: Namespace,
    /// The other site, at the far end of what is taken for the tunnel.
    pub far: Namespace,
    facts: watch::Sender<Option<Arc<Facts>>>,
    pub lab: Lab,
}

impl NodeKernel {
    pub fn new(tag: &str) -> Result<NodeKernel> {
        let lab = Lab::new(tag)?;
        let (node, host) = (lab.namespace("node")?, lab.namespace("host")?);
        let (world, far) = (lab.namespace("world")?, lab.namespace("far")?);
        lab.veth(&node, LAN, &host, "eth0")?;
        lab.veth(&node, OUTSIDE, &world, "eth0")?;
        node.address(LAN, &format!("{LAN_V4}/16"))?;
        node.address(LAN, &format!("{LAN_V6}/32"))?;
        host.address("eth0", "10.1.0.2/16")?;
        host.address("eth0", "fd00:1::2/32")?;
        node.address(OUTSIDE, "192.0.2.1/24")?;
        node.address(OUTSIDE, "2001:db8::1/64")?;
        world.address("eth0", "192.0.2.2/24")?;
        world.address("eth0", "2001:db8::2/64")?;
        node.run("ip", &["route", "add", "default", "via", "192.0.2.2"])?;
        node.run("ip", &["route", "add", "default", "via", "2001:db8::2"])?;
        host.run("ip", &["route", "add", "default", "via", LAN_V4])?;
        host.run("ip", &["route", "add", "default", "via", LAN_V6])?;
        let (facts, _) = watch::channel(Some(Arc::new(facts())));
        let kernel = NodeKernel {
            node,
            host,
            world,
            far,
            facts,
            lab,
        };
        kernel.make_tun()?;
        Ok(kernel)
    }

    /// A wire without neighbours to ask for, as a tunnel is.
    pub fn make_tun(&self) -> Result<()> {
        self.lab.veth(&self.node, TUN, &self.far, "eth0")?;
        for (namespace, name) in [(&self.node, TUN), (&self.far, "eth0")] {
            let plain = [
                "link",
                "set",
                name,
                "arp",
                "off",
                "addr",
                "02:00:00:00:00:01",
            ];
            namespace.run("ip", &plain)?;
        }
        for address in [FAR_V4, FAR_V6] {
            self.far.address("eth0", address)?;
        }
        for prefix in ["10.1.0.0/16", "fd00:1::/32"] {
            let back = ["route", "add", prefix, "dev", "eth0"];
            self.far.run("ip", &back)?;
        }
        Ok(())
    }

    pub fn start(&self, settings: Settings) -> Result<Handle> {
        let facts = self.facts.subscribe();
        let started = self.node.within(|| routeagent::start(settings, facts))?;
        started.context("the route agent does not start")
    }

    pub fn set_facts(&self, facts: Facts) {
        self.facts.send_replace(Some(Arc::new(facts)));
    }

    pub fn snapshot(&self) -> Result<String> {
        snapshot(&self.node)
    }

    /// How long until `line` of shell succeeds in the node.
    pub fn until(&self, line: &str, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        crate::lab::wait_for(line, limit, || self.node.sh(line).is_ok())?;
        Ok(begin.elapsed())
    }

    /// All layers are in place, for both families.
    pub fn until_whole(&self) -> Result<Duration> {
        self.until(WHOLE, Duration::from_secs(5))
    }

    /// The same, and what is set last.
    pub fn until_forwarding(&self) -> Result<Duration> {
        self.until_whole()?;
        let last = "test $(sysctl -n net.ipv6.conf.all.forwarding) = 1";
        self.until(last, Duration::from_secs(5))
    }
}

impl Drop for NodeKernel {
    /// What the agent keeps outside of the namespace goes with what it is about.
    fn drop(&mut self) {
        let _ = self.node.within(|| routeagent::cleanup(false));
    }
}

/// Succeeds while everything of the agent is there.
pub const WHOLE: &str = "set -e; \
    for family in -4 -6; do \
    ip $family rule | grep -q '^99:.* lookup 7101'; \
    ip $family rule | grep -q '^100:.* lookup 7100'; \
    ip $family route show table 7100 | grep -q 'dev cwtun proto 199'; \
    ip $family route show table 7101 | grep -q 'dev cwtun proto 199.* mtu 1380'; \
    ip $family route show table main | grep -q '^unreachable .*proto 199.* metric 4294967295'; \
    done; \
    nft list chain inet causeway leaving | grep -q 'ip6 daddr @mesh6.*drop'; \
    nft list chain inet causeway arriving | grep -q notrack; \
    nft list chain inet causeway sources | grep -q snat; \
    nft list set inet causeway mesh4 | grep -q 10.2.0.0/16";

pub fn prefix(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

/// Of the node with this number.
pub fn identity(number: u8) -> PublicKey {
    SigningKey::from_seed(&[number; 32]).public()
}

/// One remote site with a prefix a family.
pub fn facts() -> Facts {
    let site: Name = "berlin".parse().expect("a name");
    let remote = Remote {
        site,
        mtu: Some(1380),
        by: BTreeSet::new(),
    };
    let lan: [IpAddr; 2] = [
        LAN_V4.parse().expect("an address"),
        LAN_V6.parse().expect("an address"),
    ];
    Facts {
        lan: lan.into(),
        prefixes: BTreeMap::from([
            (prefix("10.2.0.0/16"), remote.clone()),
            (prefix("fd00:2::/32"), remote),
        ]),
        local: vec![prefix("10.1.0.0/16"), prefix("fd00:1::/32")],
        services: vec![],
        exit: Exit::Tunnel(Tunnel {
            tun: TUN.to_owned(),
            listen_port: 7800,
            agents: BTreeMap::new(),
            vxlan: Vxlan {
                port: 7803,
                own: identity(1),
            },
            probes: vec![],
        }),
    }
}

/// Everything of a node's kernel that the agent might touch, as programs print it.
pub fn snapshot(node: &Namespace) -> Result<String> {
    let sysctls = "for key in net.ipv4.ip_forward net.ipv4.conf.all.accept_redirects \
         net.ipv4.conf.all.rp_filter net.ipv4.conf.lan.rp_filter net.ipv4.conf.all.src_valid_mark \
         net.ipv4.conf.default.forwarding net.ipv4.conf.lan.forwarding \
         net.ipv6.conf.all.forwarding net.ipv6.conf.default.forwarding \
         net.ipv6.conf.lan.forwarding net.ipv6.conf.lan.accept_ra \
             net.ipv4.fib_multipath_hash_policy net.ipv6.fib_multipath_hash_policy; \
         do echo $key = $(sysctl -n $key); done";
    let lines = [
        "ip -4 route show table all",
        // Expiry and link-local churn are not about us.
        "ip -6 route show table all | grep -v 'fe80\\|ff00' | sed 's/ pref medium//'",
        "ip rule; ip -6 rule",
        "nft -s list ruleset",
        "ip nexthop",
        "bridge fdb; ip neigh show nud permanent",
        "ip -br link | cut -d@ -f1",
        sysctls,
    ];
    let parts: Result<Vec<String>> = lines.iter().map(|line| node.sh(line)).collect();
    Ok(parts?.join("\n---\n"))
}

/// What `problems` says now, in one text.
pub fn told(problems: &watch::Receiver<Vec<Problem>>) -> String {
    let told = problems.borrow();
    let lines = told
        .iter()
        .map(|problem| format!("{}: {}", problem.what, problem.next));
    lines.collect::<Vec<_>>().join("\n")
}
