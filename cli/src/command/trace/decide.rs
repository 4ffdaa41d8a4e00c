//! From what daemon and kernel say to the way of one packet. Pure: the kernel's answers come by
//! what it is given.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use gateway::status::Link;
use node::netlink::interfaces::Interface;
use node::netlink::lookup::{Question, Way};
use node::status::Prefix;
use proto::key::PublicKey;
use routeagent::VXLAN_DEVICE;

use super::packet::Packet;
use super::told::{Told, gateway_at, uses_vxlan};
use super::verdict::{Decision, End, Reason, Step, Trace, Verdict, dropped, end};

mod devices;
mod filters;

pub(super) use filters::Filters;

/// Interface and next hop.
type Out = (u32, Option<IpAddr>);

/// This machine's kernel, as far as it is asked.
pub(super) struct Kernel<'a> {
    pub(super) interfaces: BTreeMap<u32, Interface>,
    pub(super) look_up: &'a dyn Fn(&Question) -> io::Result<Way>,
    /// The priority of the rule that leads to a table, by family.
    pub(super) rule_of: &'a dyn Fn(u32, bool) -> Option<u32>,
    pub(super) filters: Filters<'a>,
}

pub(super) fn decide(told: &Told, packet: &Packet, kernel: &Kernel<'_>) -> Trace {
    let mut course = Course {
        told,
        packet,
        kernel,
        steps: Vec::new(),
        is_sure: true,
    };
    let end = match course.follow() {
        Ok(end) | Err(end) => end,
    };
    let is_sure = course.is_sure || end.verdict != Verdict::Passes;
    Trace {
        packet: packet.to_string(),
        steps: course.steps,
        verdict: end.verdict,
        sure: is_sure,
        reason: end.reason,
        because: end.because,
        next: end.next,
    }
}

/// Where a packet comes into this machine's kernel.
enum Origin {
    /// It is this machine's own.
    Own,
    By(u32),
}

struct Course<'a> {
    told: &'a Told,
    packet: &'a Packet,
    kernel: &'a Kernel<'a>,
    steps: Vec<Step>,
    /// No rule was met that may drop it or not.
    is_sure: bool,
}

impl<'a> Course<'a> {
    fn step(&mut self, decision: Decision, what: String) {
        self.steps.push(Step { decision, what });
    }

    /// An error ends it like any other end; it only comes sooner.
    fn follow(&mut self) -> Result<End, End> {
        let to = self.told.holder(self.packet.destination);
        let from = self.told.holder(self.packet.source);
        self.name(Decision::Destination, self.packet.destination, to);
        self.name(Decision::Source, self.packet.source, from);
        let is_local = |prefix: &Prefix| prefix.state == "local";
        match (from, to) {
            (_, None) => self.leave(),
            (from, Some(to)) if is_local(to) => match from.filter(|from| !is_local(from)) {
                Some(from) => self.arrive(from),
                None => self.stay(),
            },
            (Some(from), Some(to)) if is_local(from) => self.cross(to),
            (_, Some(to)) => Err(dropped(
                Reason::Source,
                format!(
                    "{} is no address of site {}: the gateways of {} take nothing from here but what comes from this site's prefixes",
                    self.packet.source,
                    self.told.site(),
                    to.site
                ),
                format!(
                    "send from an address of this site, or give the site the prefix it is in: `causeway site add-prefix {} PREFIX`",
                    self.told.site()
                ),
            )),
        }
    }

    fn name(&mut self, decision: Decision, address: IpAddr, holder: Option<&Prefix>) {
        let what = match holder {
            None => format!("{address} is in no prefix of the mesh"),
            Some(prefix) => format!(
                "{address} is in {} of site {} ({})",
                prefix.prefix, prefix.site, prefix.state
            ),
        };
        self.step(decision, what);
    }

    /// For nobody in the mesh.
    fn leave(&mut self) -> Result<End, End> {
        let device = self.route(&self.origin()?)?;
        let is_ours = device.is_some_and(|(device, _)| self.is_ours(device));
        if is_ours {
            return Err(dropped(
                Reason::NoPrefix,
                "no site has the prefix that it goes to: the tunnel takes it from no one",
                "see `ip route` and `ip rule`: a route that is not causeway's leads into its interface; `causeway site list` shows whose which prefix is",
            ));
        }
        Ok(end(
            Verdict::NotMesh,
            "no site has its destination: it goes where this machine's own routes lead",
        ))
    }

    /// Within the site.
    fn stay(&mut self) -> Result<End, End> {
        let device = self.route(&self.origin()?)?;
        if let Some((device, _)) = device.filter(|(device, _)| self.is_ours(*device)) {
            return Err(dropped(
                Reason::Guard,
                format!(
                    "it is of this site's own, and a route leads it into {}",
                    self.device(device)
                ),
                "see `ip route` and `ip rule` for a route that is not causeway's; the mesh never carries what is of one site",
            ));
        }
        let because = match device {
            None => "it is for this machine itself",
            Some(_) => {
                "both ends are in this site: the site's own network carries it, and the mesh has no part in it"
            }
        };
        Ok(end(Verdict::Local, because))
    }

    /// From another site to this one.
    fn arrive(&mut self, from: &Prefix) -> Result<End, End> {
        self.carried(from)?;
        match self.told {
            Told::Gateway(_) => {
                let what = format!(
                    "it comes through the tunnel of a gateway of {}: its source is that site's and its destination this one's, so it is let in",
                    from.site
                );
                self.step(Decision::Link, what);
                let tunnel = self.tunnel().map_or(Origin::Own, Origin::By);
                let out = self.route(&tunnel)?;
                self.filters(&tunnel, out)?;
                let because = match out {
                    None => "it is delivered here: this machine has its destination",
                    Some((device, _)) if self.device(device) == VXLAN_DEVICE => {
                        "it is delivered to the agent of its destination, by VXLAN"
                    }
                    Some(_) => "it is delivered into this site's network",
                };
                Ok(end(Verdict::Passes, because))
            }
            Told::Agent(status) => {
                let by = self.inward(&status.mode.used);
                let named = by.map(|device| format!(" by {}", self.device(device)));
                let what = format!(
                    "gateways of this site hand it over{}",
                    named.unwrap_or_default()
                );
                self.step(Decision::Gateway, what);
                let question = self.question(None, self.packet.destination, None);
                let Ok(Way::Local) = (self.kernel.look_up)(&question) else {
                    return Ok(self.others(
                        self.packet.destination,
                        "it is delivered there by its gateway, and this machine does not see it",
                    ));
                };
                if let Some(device) = by {
                    self.filters(&Origin::By(device), None)?;
                }
                Ok(end(
                    Verdict::Passes,
                    "it is delivered here: this machine has its destination",
                ))
            }
        }
    }

    /// From this site to another.
    fn cross(&mut self, to: &Prefix) -> Result<End, End> {
        self.carried(to)?;
        let origin = self.origin()?;
        let Some((device, via)) = self.route(&origin)? else {
            return Err(dropped(
                Reason::Guard,
                format!(
                    "this machine has {} for itself, though it is of site {}",
                    self.packet.destination, to.site
                ),
                "take the address from this machine, or the prefix from that site",
            ));
        };
        match self.told {
            Told::Gateway(status) => {
                if Some(device) != self.tunnel() {
                    return Err(self.in_clear(device));
                }
                self.filters(&origin, Some((device, via)))?;
                self.through(&status.links, to)
            }
            Told::Agent(status) => {
                let Some(gateway) = via.and_then(|via| gateway_at(status, via)) else {
                    return Err(self.in_clear(device));
                };
                let way = match status.mode.used.as_str() {
                    "vxlan" => "by VXLAN, since ",
                    _ => "directly: ",
                };
                let rtt = gateway
                    .rtt_ms
                    .map_or(String::new(), |rtt| format!(", {rtt} ms"));
                let what = format!(
                    "{} at {} ({}{rtt}), {way}{}",
                    gateway.name, gateway.address, gateway.state, status.mode.why
                );
                self.step(Decision::Gateway, what);
                if matches!(gateway.state.as_str(), "silent" | "never") {
                    return Err(dropped(
                        Reason::GatewaySilent,
                        format!("gateway {} does not answer", gateway.name),
                        format!(
                            "see whether it runs (`causeway status` there), and whether UDP and TCP {} pass between both",
                            proto::lan::PORT
                        ),
                    ));
                }
                self.filters(&origin, Some((device, via)))?;
                self.fits(to.mtu, &format!("what gateways carry to {}", to.site))?;
                Ok(end(
                    Verdict::Passes,
                    format!(
                        "it goes to gateway {}; `causeway trace` there follows it further",
                        gateway.name
                    ),
                ))
            }
        }
    }

    /// Whether the other site can be reached at all.
    fn carried(&self, prefix: &Prefix) -> Result<(), End> {
        let site = &prefix.site;
        match prefix.state.as_str() {
            "quarantined" => Err(dropped(
                Reason::Quarantined,
                format!(
                    "{} is quarantined: another site had it first, or the ledger's fork is not settled",
                    prefix.prefix
                ),
                "`causeway site list` shows whose it is; take it from one of the sites, or settle the fork (`causeway ledger settle`)",
            )),
            "no_gateway" => Err(dropped(
                Reason::SiteUnreachable,
                format!("site {site} has no gateway"),
                format!(
                    "join one there: `causeway token create --site {site} --role gateway` makes a token"
                ),
            )),
            "unreachable" => Err(self.unreachable(site)),
            _ => Ok(()),
        }
    }

    fn unreachable(&self, site: &str) -> End {
        let Told::Gateway(status) = self.told else {
            return dropped(
                Reason::SiteUnreachable,
                format!("no gateway of this site that answers reaches site {site}"),
                "`causeway status` here shows the gateways; `causeway status` on them shows why",
            );
        };
        let of_site = status.links.iter().filter(|link| link.site == site);
        let down: Vec<String> = of_site
            .map(|link| {
                let why = link.why_text.as_deref().unwrap_or(&link.state);
                format!("{}: {why}", link.gateway)
            })
            .collect();
        if down.is_empty() {
            return dropped(
                Reason::SiteUnreachable,
                format!("site {site} is not reached, and none of its gateways is known"),
                format!("see whether a gateway runs there, and `causeway node list {site}`"),
            );
        }
        dropped(
            Reason::LinkDown,
            format!("no link to site {site} is up: {}", down.join("; ")),
            "`causeway status` shows what was tried and what to do",
        )
    }

    /// By the same choice that the packet path makes.
    fn through(&mut self, links: &[Link], to: &Prefix) -> Result<End, End> {
        let carries = |link: &&Link| {
            let named = to.gateways.contains(&link.gateway);
            let is_side = if to.by_siblings {
                link.sibling
            } else {
                link.site == to.site
            };
            named && is_side && link.carries
        };
        let mut carrying: Vec<(PublicKey, &Link)> = links
            .iter()
            .filter(carries)
            .filter_map(|link| Some((link.identity.parse().ok()?, link)))
            .collect();
        carrying.sort_by_key(|(identity, _)| *identity);
        let keys: Vec<PublicKey> = carrying.iter().map(|(identity, _)| *identity).collect();
        let chosen = gateway::table::carrier(&keys, &self.packet.headers());
        let chosen = carrying
            .iter()
            .find(|(identity, _)| Some(*identity) == chosen);
        let Some((_, link)) = chosen else {
            return Err(self.unreachable(&to.site));
        };
        let how = if to.by_siblings {
            ", a sibling, since no link from here to that site is up"
        } else {
            ""
        };
        let of = carrying.len();
        let what = format!(
            "{} of site {}{how}: chosen for this flow among {of} that carry {}",
            link.gateway, link.site, to.site
        );
        self.step(Decision::Gateway, what);
        self.step(Decision::Link, describe(link));
        if link.state != "up" {
            let why = link.why_text.as_deref().unwrap_or(&link.state);
            return Err(dropped(
                Reason::LinkDown,
                format!("the link to {} is not up: {why}", link.gateway),
                "`causeway status` shows what was tried and what to do",
            ));
        }
        self.fits(Some(link.mtu), &format!("the link to {}", link.gateway))?;
        Ok(end(
            Verdict::Passes,
            format!(
                "it goes through the tunnel to {} of site {}",
                link.gateway, link.site
            ),
        ))
    }

    fn fits(&mut self, mtu: Option<u16>, what: &str) -> Result<(), End> {
        let Some(mtu) = mtu else { return Ok(()) };
        let size = self.packet.size;
        if size <= mtu {
            self.step(
                Decision::Size,
                format!("{size} bytes fit: {what} takes {mtu}"),
            );
            return Ok(());
        }
        if !self.packet.whole && self.packet.source.is_ipv4() {
            self.step(
                Decision::Size,
                format!("{size} bytes go in pieces: {what} takes {mtu}"),
            );
            return Ok(());
        }
        self.step(
            Decision::Size,
            format!("{size} bytes do not fit: {what} takes {mtu}"),
        );
        Err(dropped(
            Reason::TooBig,
            format!(
                "it is larger than the {mtu} bytes that pass and may not be sent in pieces; its sender is told so by ICMP"
            ),
            "nothing needs to be done where that ICMP arrives; where a firewall drops it, let ICMP in, or make the sender's MTU smaller",
        ))
    }

    // ---- the kernel -----------------------------------------------------------------------------

    fn question(&self, source: Option<IpAddr>, to: IpAddr, from: Option<u32>) -> Question {
        Question {
            source,
            destination: to,
            protocol: self.packet.number(),
            ports: self.packet.ports(),
            from,
        }
    }

    /// Where this machine's kernel gets it from.
    fn origin(&self) -> Result<Origin, End> {
        let source = self.packet.source;
        let vxlan = self.index_of(VXLAN_DEVICE);
        if let (Told::Gateway(status), Some(vxlan)) = (self.told, vxlan)
            && uses_vxlan(status, source)
        {
            return Ok(Origin::By(vxlan));
        }
        let question = self.question(None, source, None);
        match (self.kernel.look_up)(&question) {
            Ok(Way::Local) => Ok(Origin::Own),
            Ok(Way::Out { device, .. }) => {
                let passes_others = matches!(self.told, Told::Gateway(_));
                if passes_others || !self.is_lan(device) {
                    return Ok(Origin::By(device));
                }
                Err(self.others(
                    source,
                    "this machine does not send it, and passes on nothing of its site's network",
                ))
            }
            Ok(Way::Nowhere(why)) => Err(dropped(
                Reason::NoRoute,
                format!(
                    "this machine has no route to its source {source} ({why}), so it takes nothing from there"
                ),
                format!("`ip route get {source}` shows it"),
            )),
            Err(error) => Err(silent(&error)),
        }
    }

    fn others(&self, address: IpAddr, why: &str) -> End {
        End {
            next: Some(format!(
                "run `causeway trace` on the machine that has {address}, or on a gateway"
            )),
            ..end(
                Verdict::Elsewhere,
                format!("{address} is another machine's: {why}"),
            )
        }
    }

    /// Interface and next hop; none if it is for this machine.
    fn route(&mut self, origin: &Origin) -> Result<Option<Out>, End> {
        let from = match origin {
            Origin::Own => None,
            Origin::By(device) => Some(*device),
        };
        let (source, destination) = (self.packet.source, self.packet.destination);
        let question = self.question(Some(source), destination, from);
        let by = from.map_or(String::new(), |device| {
            format!("from {}, ", self.device(device))
        });
        match (self.kernel.look_up)(&question) {
            Ok(Way::Local) => {
                self.step(Decision::Route, format!("{by}to this machine itself"));
                Ok(None)
            }
            Ok(Way::Out {
                device,
                via,
                source,
                table,
                mtu,
            }) => {
                let rule = (self.kernel.rule_of)(table, destination.is_ipv4());
                let rule = rule.map_or(String::new(), |rule| format!("rule {rule}, "));
                let text = |word: &str, address: Option<IpAddr>| {
                    address.map_or(String::new(), |address| format!(" {word} {address}"))
                };
                let mtu = mtu.map_or(String::new(), |mtu| format!(", MTU {mtu}"));
                let what = format!(
                    "{by}{rule}table {}:{} by {}{}{mtu}",
                    table_name(table),
                    text("via", via),
                    self.device(device),
                    text("from", source),
                );
                self.step(Decision::Route, what);
                Ok(Some((device, via)))
            }
            Ok(Way::Nowhere(why)) => {
                self.step(Decision::Route, format!("{by}none: {why}"));
                Err(dropped(
                    Reason::NoRoute,
                    format!("this machine's kernel has no way for it: {why}"),
                    "`causeway status` says what is wrong with its routes; `ip rule` and `ip route show table all` show them, and `sysctl net.ipv4.ip_forward` and rp_filter whether it passes packets on",
                ))
            }
            Err(error) => Err(silent(&error)),
        }
    }

    fn in_clear(&self, device: u32) -> End {
        dropped(
            Reason::Guard,
            format!(
                "it would leave in clear by {}, and causeway's packet filter lets nothing of the mesh out there",
                self.device(device)
            ),
            "`ip rule` and `ip route` show the route that leads it there: it comes before causeway's, or causeway's were taken away and will be back",
        )
    }
}

fn describe(link: &Link) -> String {
    let rtt = link.rtt_ms.map(|rtt| format!(", {rtt} ms"));
    format!(
        "{}, {} path {}, {}{}",
        link.state,
        link.path.as_deref().unwrap_or("no"),
        link.endpoint.as_deref().unwrap_or("unknown"),
        link.datapath,
        rtt.unwrap_or_default()
    )
}

fn silent(error: &io::Error) -> End {
    dropped(
        Reason::NoRoute,
        format!("this machine's kernel does not say where it would go: {error}"),
        "`ip route get` asks the same",
    )
}

fn table_name(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests;
