//! Rules of other programs that would swallow, change or lead astray what belongs to the mesh.

use ip_network::IpNetwork;
use node::netlink::interfaces::interfaces;
use proto::prefix::overlap;
use routeagent::VXLAN_DEVICE;
use routeagent::inspect::{
    Accept, ForeignRule, Judged, Listening, Ruleset, Situation, Topic, judge, private_networks,
};

use super::check::{Check, Group, Sheet};
use super::host::Privileges;
use super::known::Known;

const TUN: &str = "causeway0";
const LISTEN: u16 = 51820;

pub(super) fn checks(known: &Known, privileges: &Privileges) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Firewall);
    if !privileges.is_admin {
        sheet.skipped(
            "firewall",
            "firewall rules are shown to root alone; use sudo",
        );
        return sheet.done();
    }
    let ruleset = match Ruleset::read() {
        Ok(ruleset) => ruleset,
        Err(error) => {
            sheet.skipped(
                "firewall",
                format!("the firewall's rules cannot be read: {error}"),
            );
            return sheet.done();
        }
    };
    if let Some(why) = &ruleset.unread {
        sheet.skipped(
            "firewall",
            format!("not all of the firewall's rules could be read: {why}"),
        );
    }
    let situation = situation(known);
    let knows_own = !known.own_prefixes().is_empty();
    let knows_sites = !known.remote_prefixes().is_empty();
    let found = judge(&ruleset, &situation);
    for topic in [
        Topic::Leftover,
        Topic::SourceChange,
        Topic::Forward,
        Topic::Input,
    ] {
        let of_topic: Vec<&Judged> = found.iter().filter(|one| one.topic == topic).collect();
        match topic {
            Topic::Forward if !situation.forwards => {}
            Topic::Forward if situation.inner_devices.is_empty() => sheet.skipped(
                "forward-rules",
                "no interface of this machine has an address in its site's prefixes",
            ),
            Topic::Forward if !knows_own => would_forward(&mut sheet, &of_topic),
            Topic::Leftover => leftovers(&mut sheet, &of_topic, knows_sites),
            Topic::SourceChange | Topic::Forward | Topic::Input => {
                report(&mut sheet, topic, &of_topic);
            }
        }
    }
    sheet.done()
}

/// Before its role and its site are known: as a gateway between its own network and the mesh.
fn would_forward(sheet: &mut Sheet, found: &[&Judged]) {
    for judged in found {
        let saw = format!("if this is to be a gateway: {}", judged.what);
        sheet.warning("forward-rules", saw, judged.next.clone());
    }
    if found.is_empty() {
        let good = "no rule would drop what a gateway forwards between this network and the mesh";
        sheet.passed("forward-rules", good);
    }
}

/// Before any other site is known, a rule may be about networks of this machine's own.
fn leftovers(sheet: &mut Sheet, found: &[&Judged], knows_sites: bool) {
    const NAME: &str = "leftover-translations";
    let mut is_any = false;
    for judged in found {
        let rule = &judged.finding.rule;
        match (knows_sites, maker(rule)) {
            // Its services and containers have private addresses too.
            (false, Some(_)) => continue,
            (false, None) => sheet.warning(
                NAME,
                format!("a rule translates private addresses; if they are of another site, packets for them never come to the mesh: {rule}"),
                format!("if they are another site's: {}", judged.next),
            ),
            (true, Some(maker)) => sheet.failed(
                NAME,
                judged.what.clone(),
                format!("the rule is {maker}'s own, and it would put it back: give its services and containers, or the other site, another range"),
            ),
            (true, None) => sheet.failed(NAME, judged.what.clone(), judged.next.clone()),
        }
        is_any = true;
    }
    if !is_any {
        let good = "no rule translates private addresses of other sites";
        sheet.passed(NAME, good);
    }
}

/// Who looks after a rule by himself, as names of chains and tables tell.
fn maker(rule: &ForeignRule) -> Option<&'static str> {
    const CHAINS: [(&str, &str); 12] = [
        ("KUBE-", "Kubernetes"),
        ("CILIUM", "Cilium"),
        ("cali-", "Calico"),
        ("FLANNEL", "Flannel"),
        ("WEAVE", "Weave"),
        ("DOCKER", "Docker"),
        ("CNI-", "the CNI plugin"),
        ("NETAVARK", "Podman"),
        ("LIBVIRT", "libvirt"),
        ("ISTIO", "Istio"),
        ("LXD", "LXD"),
        ("ts-", "Tailscale"),
    ];
    const TABLES: [(&str, &str); 6] = [
        ("kube-proxy", "Kubernetes"),
        ("calico", "Calico"),
        ("docker", "Docker"),
        ("netavark", "Podman"),
        ("libvirt", "libvirt"),
        ("lxd", "LXD"),
    ];
    let named = |names: &[(&str, &'static str)], text: &str| {
        let mut all = names.iter();
        all.find(|(start, _)| text.starts_with(start))
            .map(|(_, maker)| *maker)
    };
    named(&CHAINS, &rule.chain).or_else(|| named(&TABLES, &rule.table))
}

fn report(sheet: &mut Sheet, topic: Topic, found: &[&Judged]) {
    let (name, good) = match topic {
        Topic::Leftover => return,
        Topic::SourceChange => (
            "masquerade",
            "no rule changes the source of mesh packets before it is kept",
        ),
        Topic::Forward => (
            "forward-rules",
            "no rule drops forwarded packets of the mesh",
        ),
        Topic::Input => ("input-rules", "no rule drops what daemons must receive"),
    };
    for judged in found {
        if judged.finding.certain {
            sheet.failed(name, judged.what.clone(), judged.next.clone());
        } else {
            sheet.warning(name, judged.what.clone(), judged.next.clone());
        }
    }
    if found.is_empty() {
        sheet.passed(name, good);
    }
}

fn situation(known: &Known) -> Situation {
    let granted = known.own_prefixes();
    let local = if granted.is_empty() {
        own_networks()
    } else {
        granted.clone()
    };
    let forwards = known.may_forward();
    let remote: Vec<IpNetwork> = known.remote_prefixes().iter().map(|held| held.0).collect();
    let is_known = !remote.is_empty();
    let tun = known.gateway.as_ref().map_or(TUN, |told| &told.tun);
    let mesh_devices = match &known.agent {
        Some(told) if told.mode.used == "vxlan" => vec![VXLAN_DEVICE.to_owned()],
        Some(_) => inner_devices(known, &local),
        None => vec![tun.to_owned()],
    };
    Situation {
        remote: if is_known {
            remote
        } else {
            elsewhere(&granted)
        },
        inner_devices: inner_devices(known, &local),
        listening: listening(known, &granted),
        local,
        mesh_devices,
        forwards,
    }
}

/// On the segments by which routers are reached, before anything was granted.
fn own_networks() -> Vec<IpNetwork> {
    let all = interfaces().unwrap_or_default().into_values();
    let out = all.filter(|one| one.has_router);
    let networks = out.flat_map(|one| {
        let own = one.addresses.into_iter();
        let all = own.filter_map(|address| {
            let length = one.lengths.get(&address)?;
            IpNetwork::new_truncate(address, *length).ok()
        });
        all.collect::<Vec<_>>()
    });
    networks.collect()
}

/// Private networks that are not ours: where nothing is known, other sites may be there.
fn elsewhere(local: &[IpNetwork]) -> Vec<IpNetwork> {
    let own = interfaces().unwrap_or_default();
    let own: Vec<_> = own.into_values().flat_map(|one| one.addresses).collect();
    let is_ours = |network: &IpNetwork| {
        local.iter().any(|prefix| overlap(*prefix, *network))
            || own.iter().any(|address| network.contains(*address))
    };
    let all = private_networks().into_iter();
    all.filter(|network| !is_ours(network)).collect()
}

/// Where this site's own network is.
fn inner_devices(known: &Known, local: &[IpNetwork]) -> Vec<String> {
    let lan = known.lan_address();
    let all = interfaces().unwrap_or_default().into_values();
    let here = all.filter(|interface| {
        let mut addresses = interface.addresses.iter();
        addresses.any(|address| match lan {
            Some(lan) => lan == *address,
            None => local.iter().any(|prefix| prefix.contains(*address)),
        })
    });
    let names = here.map(|interface| interface.name);
    names
        .filter(|name| name != TUN && name != VXLAN_DEVICE)
        .collect()
}

fn listening(known: &Known, local: &[IpNetwork]) -> Vec<Listening> {
    let one = |what: &str, accept, from: &[IpNetwork]| Listening {
        what: what.to_owned(),
        accept,
        from: from.to_vec(),
    };
    let mut all = Vec::new();
    if known.may_forward() {
        let port = known
            .gateway
            .as_ref()
            .map_or(LISTEN, |told| told.listen_port);
        all.push(one("outer datagrams of tunnels", Accept::Udp(port), &[]));
        all.push(one(
            "hellos of agents",
            Accept::Udp(proto::lan::PORT),
            local,
        ));
        all.push(one(
            "agents on their way to brokers",
            Accept::Tcp(proto::lan::PORT),
            local,
        ));
    }
    let uses_vxlan = |told: &super::known::Told| told.mode.used == "vxlan";
    if known.agent.as_ref().is_none_or(uses_vxlan) {
        all.push(one(
            "VXLAN between agents and gateways",
            Accept::Udp(known.kernel().vxlan_port),
            local,
        ));
    }
    all
}
