//! What a person should look at, and what to do about it.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use ip_network::IpNetwork;
use node::status::Problem;
use proto::lan::PORT;
use proto::ledger::Standing;

use super::gateways::LeftOut;
use super::mode::{Asked, is_alive};
use super::way::is_v4;
use super::{Daemon, PATIENCE};
use crate::facts::Mode;
use crate::health::{Fallback, GatewayHealth, GatewayState};

/// By whether they are IPv4.
const FAMILIES: [(bool, &str); 2] = [(true, "IPv4"), (false, "IPv6")];

impl Daemon {
    /// Of this node and its site; those of the mesh and of brokers come beside them.
    pub(super) fn problems(&self, now: Duration) -> Vec<Problem> {
        let mut problems = self.place.problems();
        problems.extend(self.socket_problems());
        problems.extend(self.kernel.problems());
        problems.extend(self.left_out());
        if now.saturating_sub(self.begun) < PATIENCE {
            return problems;
        }
        if self.gateways.is_empty() && self.view.standing == Standing::Good {
            problems.push(self.no_gateway());
        }
        problems.extend(self.silence());
        problems.extend(self.way_problems());
        problems.extend(self.closed());
        problems
    }

    fn socket_problems(&self) -> Vec<Problem> {
        let failed = self.hellos.failed().iter();
        let failed = failed.filter(|(address, _)| self.place.is_own(*address));
        let problems = failed.map(|(address, error)| {
            if error.kind() == io::ErrorKind::AddrInUse {
                return Problem::new(
                    format!("UDP port {PORT} of {address} is taken by another program, so this agent cannot ask whether its gateways live"),
                    format!("find it with `ss -ulpn sport = :{PORT}` and move it to another port; it is tried again every 2 s"),
                );
            }
            Problem::new(
                format!("UDP port {PORT} of {address} cannot be opened: {error}"),
                "see `ip address`; it is tried again every 2 s",
            )
        });
        problems.collect()
    }

    fn left_out(&self) -> Vec<Problem> {
        let all = self.gateways.left_out.iter().map(|(name, why)| match why {
            LeftOut::NoLanAddress => Problem::new(
                format!("gateway {name} of this site is not used: its record names no address in the site's network"),
                "start it with --address and the address that this node reaches it by",
            ),
            LeftOut::OurAddress => Problem::new(
                format!("gateway {name} of this site is not used: its record names an address of this very node"),
                format!("if this machine was that gateway before: `causeway node revoke {name}`; if not, give the two different addresses with --address, or stop the one that was copied"),
            ),
            LeftOut::OtherFamily(lan) => Problem::new(
                format!("gateway {name} of this site is not used: its record names {lan}, and this node has no {} address in the site's network", if lan.is_ipv4() { "IPv4" } else { "IPv6" }),
                "give both an address of one family; --address says which of its two is named first",
            ),
            LeftOut::BadKey => Problem::new(
                format!("gateway {name} of this site is not used: its key is one that anybody could have"),
                "revoke it with `causeway node revoke`, and join it again with a new token",
            ),
        });
        all.collect()
    }

    fn no_gateway(&self) -> Problem {
        let site = &self.view.site;
        let is_alone = self.gateways.left_out.is_empty();
        Problem {
            what: if is_alone {
                format!(
                    "no gateway of this site, {site}, is known: nothing can be sent to other sites"
                )
            } else {
                format!(
                    "no gateway of this site, {site}, can be used: nothing can be sent to other sites"
                )
            },
            next: format!(
                "join one (`causeway token create --site {site} --role gateway` makes a token), and see with `causeway node list` where the authority or the broker is who has joined"
            ),
            stops: true,
        }
    }

    fn silence(&self) -> Vec<Problem> {
        let choice = &self.choice;
        let all = choice.gateways.values();
        let silent: Vec<&GatewayHealth> = all.filter(|one| !is_alive(one)).collect();
        let is_mute = !self.hellos.failed().is_empty() || !self.place.has_own();
        if silent.is_empty() || is_mute {
            return Vec::new();
        }
        let named: Vec<String> = silent.iter().map(|one| sentence(one)).collect();
        let is_all = silent.len() == choice.gateways.len();
        if is_all && choice.fallback == Some(Fallback::Last) {
            return vec![Problem {
                what: format!(
                    "no gateway answers any more; routes stay as they were. {}",
                    named.join("; ")
                ),
                next: format!(
                    "see whether this node's own network works (`ping {}`), then whether the gateways run (`causeway status` there)",
                    silent[0].address
                ),
                stops: true,
            }];
        }
        if is_all {
            return vec![Problem {
                what: format!(
                    "no gateway has ever answered this agent, so all are used without knowing whether they live. {}",
                    named.join("; ")
                ),
                next: format!(
                    "let UDP port {PORT} pass between this node and its gateways: see the firewalls of both (`nft list ruleset`), the cloud's security groups, and whether the gateways run"
                ),
                stops: true,
            }];
        }
        let each = silent.iter().map(|one| {
            Problem::new(
                sentence(one),
                match one.state {
                    GatewayState::Leaving => "start it again if that was not meant".to_owned(),
                    GatewayState::Up
                    | GatewayState::HeldDown
                    | GatewayState::Silent
                    | GatewayState::Never => format!(
                        "see whether it runs (`causeway status` there), and whether UDP port {PORT} passes between it and this node; the other gateways carry its packets"
                    ),
                },
            )
        });
        each.collect()
    }

    /// Whether packets of other sites pass on the way in use.
    fn way_problems(&self) -> Vec<Problem> {
        let mode = self.mode.programmed();
        let alive = self.choice.gateways.iter().filter(|(_, one)| is_alive(one));
        let passes = |one: &GatewayHealth| match mode {
            Mode::Direct => one.direct.passed == Some(true),
            Mode::Vxlan => one.vxlan.passed == Some(true),
        };
        let problems = alive.filter_map(|(_, one)| match mode {
            Mode::Direct | Mode::Vxlan if !one.forwards && !passes(one) => Some(Problem::new(
                format!(
                    "gateway {} ({}) says that its kernel does not forward packets of the mesh as it should, so it is used last",
                    one.name, one.address
                ),
                "`causeway status` there says what is wrong with it",
            )),
            Mode::Direct if one.direct.passed == Some(false) => Some(self.direct_fails(one)),
            Mode::Vxlan if one.vxlan.passed == Some(false) => Some(self.vxlan_fails(one)),
            Mode::Direct if self.mode.asked() == Asked::Direct && !self.place.is_near(one.address) => {
                Some(Problem {
                    what: format!("gateway {} ({}) is not on this node's segment, where --mode direct cannot reach it", one.name, one.address),
                    next: "start the agent with --mode auto or --mode vxlan".to_owned(),
                    stops: true,
                })
            }
            Mode::Direct | Mode::Vxlan => None,
        });
        problems.collect()
    }

    /// In one family gateways cannot be reached, though their sites are.
    fn closed(&self) -> Vec<Problem> {
        let closed = self.kernel.closed();
        let families = FAMILIES.into_iter().filter(|(v4, _)| self.has_family(*v4));
        let problems = families.filter_map(|(v4, name)| {
            let mut of_family = closed.iter().filter(|prefix| is_v4(**prefix) == v4);
            let first = of_family.next()?;
            let many = match of_family.count() {
                0 => first.to_string(),
                more => format!("{first} and {more} more {name} prefixes of other sites"),
            };
            let next = match self.mode.asked() {
                Asked::Direct => {
                    "start the agent with --mode auto or --mode vxlan; or give gateways an address of that family on this node's segment"
                }
                Asked::Auto | Asked::Vxlan => {
                    "see the other problems here, and `ip address` on this node and its gateways"
                }
            };
            Some(Problem {
                what: format!(
                    "{many} cannot be reached from here: this node has no {name} way to any gateway in use"
                ),
                next: next.to_owned(),
                stops: true,
            })
        });
        problems.collect()
    }

    fn has_family(&self, v4: bool) -> bool {
        self.place.lan().iter().any(|own| own.is_ipv4() == v4)
    }

    /// What a node without an address of a family cannot have is no fault of anything.
    pub(super) fn missing_family(&self, closed: &BTreeSet<IpNetwork>) -> Option<Problem> {
        let mut missing = FAMILIES.into_iter().filter(|(v4, _)| {
            !self.has_family(*v4) && closed.iter().any(|prefix| is_v4(*prefix) == *v4)
        });
        let (_, name) = missing.next().filter(|_| self.place.has_own())?;
        Some(Problem::new(
            format!(
                "this node has no {name} address in its site, so {name} prefixes of other sites cannot be reached from it"
            ),
            "give it one inside a prefix of its site if they are needed",
        ))
    }

    fn direct_fails(&self, one: &GatewayHealth) -> Problem {
        let what = format!(
            "packets of other sites do not pass directly between this node and gateway {} ({})",
            one.name, one.address
        );
        let next = match self.mode.asked() {
            Asked::Direct => {
                "start the agent with --mode auto or --mode vxlan; or switch the source and destination check of both machines off (`causeway routes` says how), and see their FORWARD rules"
            }
            Asked::Auto | Asked::Vxlan => {
                "it is used only if no other gateway is left, or by VXLAN; see the source and destination check of both machines (`causeway routes` says how) and the FORWARD rules on the gateway"
            }
        };
        Problem {
            what,
            next: next.to_owned(),
            stops: self.mode.asked() == Asked::Direct,
        }
    }

    fn vxlan_fails(&self, one: &GatewayHealth) -> Problem {
        let port = self.options.vxlan_port;
        let mut alive = self.choice.gateways.values().filter(|one| is_alive(one));
        let is_lost = alive.all(|one| one.vxlan.passed == Some(false));
        Problem {
            what: format!(
                "VXLAN packets do not come back from gateway {} ({}), though its hellos do",
                one.name, one.address
            ),
            next: format!(
                "let UDP port {port} pass between both, in their firewalls and the cloud's security groups; it must be the same --vxlan-port on both; and see the FORWARD rules on the gateway, and what `causeway status` there says"
            ),
            stops: is_lost,
        }
    }
}

fn sentence(one: &GatewayHealth) -> String {
    let who = format!("gateway {} ({})", one.name, one.address);
    match one.state {
        GatewayState::Never => format!("{who} has not answered since this agent was started"),
        GatewayState::Silent => format!("{who} has fallen silent"),
        GatewayState::Leaving => format!("{who} was stopped"),
        GatewayState::HeldDown => format!("{who} failed a short while ago"),
        GatewayState::Up => format!("{who} answers"),
    }
}
