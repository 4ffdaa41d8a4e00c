//! The mesh of the demo on paper: sites, machines, addresses.
//!
//! Site S has 10.S.0.0/16 and fd00:0:S::/48. Outside it uses ranges that are kept for documents.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

pub(super) const BROKER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(super) const BROKER_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Where the site behind a NAT has its router.
const ROUTER: u8 = 254;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) name: &'static str,
    pub(super) region: &'static str,
    pub(super) number: u8,
    /// Its gateways have no address on the internet.
    pub(super) nat: bool,
    /// Where its addresses on the internet begin.
    outer: [u8; 4],
}

pub(super) const SITES: [Site; 3] = [
    Site {
        name: "aws-frankfurt",
        region: "eu-central-1",
        number: 1,
        nat: false,
        outer: [198, 51, 100, 0],
    },
    Site {
        name: "azure-dublin",
        region: "northeurope",
        number: 2,
        nat: false,
        outer: [203, 0, 113, 0],
    },
    Site {
        name: "gcp-zurich",
        region: "europe-west6",
        number: 3,
        nat: true,
        outer: [203, 0, 113, 128],
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Gateway,
    Worker,
}

/// One machine that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) site: Site,
    pub(super) role: Role,
    /// 1 or 2.
    pub(super) number: u8,
}

/// In the order in which they are shown.
pub(super) fn machines() -> impl Iterator<Item = Machine> {
    SITES.into_iter().flat_map(Site::machines)
}

impl Site {
    pub(super) fn machines(self) -> impl Iterator<Item = Machine> {
        [Role::Gateway, Role::Worker]
            .into_iter()
            .flat_map(move |role| {
                [1, 2].map(|number| Machine {
                    site: self,
                    role,
                    number,
                })
            })
    }

    pub(super) fn machine(self, role: Role, number: u8) -> Machine {
        Machine {
            site: self,
            role,
            number,
        }
    }

    pub(super) fn prefixes(self) -> Vec<String> {
        let v4 = format!("10.{}.0.0/16", self.number);
        let v6 = format!("fd00:0:{:x}::/48", self.number);
        families(v4, v6)
    }

    /// Of the router that translates, in the site.
    pub(super) fn router(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, ROUTER)
    }

    /// On the wire to the internet, of gateway or router `number`: its own address, and the other end.
    pub(super) fn outer(self, number: u8) -> (Ipv4Addr, Ipv4Addr) {
        let [a, b, c, first] = self.outer;
        let base = first + 4 * number;
        (
            Ipv4Addr::new(a, b, c, base + 2),
            Ipv4Addr::new(a, b, c, base + 1),
        )
    }
}

impl Machine {
    /// In its site.
    pub(super) fn node(self) -> String {
        format!("{}-{}", self.role.word(), self.number)
    }

    /// On this whole machine.
    pub(super) fn name(self) -> String {
        format!("{}-{}", self.site.name, self.node())
    }

    /// As a column of a wide table has room for.
    pub(super) fn short(self) -> String {
        format!("{}{}", &self.role.word()[..1], self.number)
    }

    pub(super) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.site.number, 0, self.last())
    }

    pub(super) fn v6(self) -> Ipv6Addr {
        let site = u16::from(self.site.number);
        // Written as the other one is, so that both end alike.
        let last = match self.role {
            Role::Gateway => u16::from(self.number),
            Role::Worker => 0x10 * u16::from(self.number),
        };
        Ipv6Addr::new(0xfd00, 0, site, 0, 0, 0, 0, last)
    }

    pub(super) fn addresses(self) -> Vec<IpAddr> {
        families(self.v4().into(), self.v6().into())
    }

    fn last(self) -> u8 {
        match self.role {
            Role::Gateway => self.number,
            Role::Worker => 10 * self.number,
        }
    }
}

/// Without IPv6 in the kernel the demo does without it too.
pub(super) fn has_v6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn families<T>(v4: T, v6: T) -> Vec<T> {
    if has_v6() { vec![v4, v6] } else { vec![v4] }
}

impl Role {
    pub(super) fn word(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Worker => "worker",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_machine_has_a_name_and_addresses_of_its_own() {
        let all: Vec<Machine> = machines().collect();
        assert_eq!(all.len(), 12);
        let names: BTreeSet<String> = all.iter().map(|machine| machine.name()).collect();
        let addresses: BTreeSet<IpAddr> =
            all.iter().flat_map(|machine| machine.addresses()).collect();
        let families = if has_v6() { 2 } else { 1 };
        assert_eq!((names.len(), addresses.len()), (12, 12 * families));
    }

    #[test]
    fn both_addresses_of_a_machine_end_alike() {
        for machine in machines() {
            let (v4, v6) = (machine.v4().to_string(), machine.v6().to_string());
            assert_eq!(v4.rsplit('.').next(), v6.rsplit(':').next(), "{v4} {v6}");
        }
    }
}
