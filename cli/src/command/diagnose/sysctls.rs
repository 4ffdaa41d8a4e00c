//! Kernel settings: as they are, beside what the daemons of this node need of them now. A daemon sets
//! what it needs by itself where it may.

use std::fs;
use std::path::Path;

use ip_network::IpNetwork;
use nix::sys::statvfs::{FsFlags, statvfs};
use node::netlink::interfaces::interfaces;
use proto::entry::GrantRole;
use routeagent::VXLAN_DEVICE;

use super::check::Sheet;
use super::known::Known;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    ForwardV4,
    ForwardV6,
    ValidMark,
    HashV4,
    HashV6,
}

impl What {
    const ALL: [What; 5] = [
        What::ForwardV4,
        What::ForwardV6,
        What::ValidMark,
        What::HashV4,
        What::HashV6,
    ];

    const fn name(self) -> &'static str {
        match self {
            What::ForwardV4 => "forwarding",
            What::ForwardV6 => "forwarding-ipv6",
            What::ValidMark => "src-valid-mark",
            What::HashV4 => "multipath-hash",
            What::HashV6 => "multipath-hash-ipv6",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            What::ForwardV4 => "net/ipv4/ip_forward",
            What::ForwardV6 => "net/ipv6/conf/all/forwarding",
            What::ValidMark => "net/ipv4/conf/all/src_valid_mark",
            What::HashV4 => "net/ipv4/fib_multipath_hash_policy",
            What::HashV6 => "net/ipv6/fib_multipath_hash_policy",
        }
    }

    const fn fine(self) -> &'static [&'static str] {
        match self {
            What::ForwardV4 | What::ValidMark => &["1"],
            What::ForwardV6 => &["1", "2"],
            What::HashV4 | What::HashV6 => &["1", "2", "3"],
        }
    }

    const fn without(self) -> &'static str {
        match self {
            What::ForwardV4 => "a gateway passes on no IPv4",
            What::ForwardV6 => "a gateway passes on no IPv6",
            What::ValidMark => "a strict rp_filter drops what comes through the tunnel",
            What::HashV4 | What::HashV6 => {
                "all connections of two nodes with each other go by one gateway"
            }
        }
    }

    /// Who sets it, for a person.
    const fn who(self) -> &'static str {
        match self {
            What::ForwardV4 | What::ForwardV6 => "a gateway",
            What::ValidMark => "a daemon",
            What::HashV4 | What::HashV6 => "an agent",
        }
    }

    /// Traffic goes on without these.
    const fn is_optional(self) -> bool {
        matches!(self, What::HashV4 | What::HashV6)
    }
}

/// Which daemons run or may be meant to, and what they are to carry.
#[derive(Clone, Copy, Debug, Default)]
struct Here {
    is_gateway: bool,
    is_agent: bool,
    may_be_gateway: bool,
    may_be_agent: bool,
    /// Prefixes of other sites are known.
    has_v4: bool,
    has_v6: bool,
    has_several_gateways: bool,
    is_read_only: bool,
    is_admin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Now,
    /// As soon as a daemon is started.
    Soon,
    /// Where another site has such a prefix, which is not known yet.
    Perhaps,
    /// Not by what is known of the mesh, and why.
    NotNow(&'static str),
    /// It is of a role that this node does not have.
    Never,
}

fn need(what: What, here: &Here) -> Need {
    const NO_V6: &str = "no other site has an IPv6 prefix";
    let knows_any = here.has_v4 || here.has_v6;
    let forwards = |wanted: bool, why| match (here.is_gateway, here.may_be_gateway) {
        (true, _) if wanted => Need::Now,
        (true, _) => Need::NotNow(why),
        (false, false) => Need::Never,
        (false, true) if wanted => Need::Soon,
        (false, true) if knows_any => Need::NotNow(why),
        (false, true) => Need::Perhaps,
    };
    let spreads = |wanted: bool, why| match (here.is_agent, here.may_be_agent) {
        (true, _) if wanted => Need::Now,
        (true, _) => Need::NotNow(why),
        // How many gateways there are an agent finds out.
        (false, true) => Need::Soon,
        (false, false) => Need::Never,
    };
    match what {
        // Every gateway forwards IPv4 once there is any other site.
        What::ForwardV4 if here.is_gateway || knows_any => {
            forwards(knows_any, "no other site's prefix is known")
        }
        What::ForwardV4 => forwards(true, ""),
        What::ForwardV6 => forwards(here.has_v6, NO_V6),
        What::ValidMark if here.is_gateway || here.is_agent => Need::Now,
        What::ValidMark => Need::Soon,
        What::HashV4 => spreads(here.has_several_gateways, "the site has one gateway"),
        What::HashV6 if here.has_several_gateways => spreads(here.has_v6, NO_V6),
        What::HashV6 => spreads(false, "the site has one gateway"),
    }
}

impl Here {
    fn of(known: &Known, is_admin: bool) -> Here {
        let flags = statvfs("/proc/sys/net").map(|found| found.flags());
        let remote = known.remote_prefixes();
        let has = |v4: bool| {
            let mut all = remote.iter();
            all.any(|(prefix, _)| matches!(prefix, IpNetwork::V4(_)) == v4)
        };
        let is_gateway = known.gateway.is_some();
        let gateways = known.agent.as_ref().map_or(0, |told| told.gateways.len());
        Here {
            is_gateway,
            is_agent: known.agent.is_some(),
            may_be_gateway: known.may_forward(),
            may_be_agent: !is_gateway && known.granted_role() != Some(GrantRole::Gateway),
            has_v4: has(true),
            has_v6: has(false),
            has_several_gateways: gateways > 1,
            is_read_only: flags.is_ok_and(|flags| flags.contains(FsFlags::ST_RDONLY)),
            is_admin,
        }
    }
}

pub(super) fn checks(sheet: &mut Sheet, known: &Known, is_admin: bool) {
    let here = Here::of(known, is_admin);
    if here.is_read_only {
        let next = "a daemon sets what it needs by itself where it may: set on the host what is named below, or let the container write there";
        sheet.warning("sysctls-writable", "/proc/sys is read-only here", next);
    } else {
        sheet.passed("sysctls-writable", "/proc/sys can be written by root");
    }
    for what in What::ALL {
        let need = need(what, &here);
        if need == Need::Never {
            continue;
        }
        match sysctl(what.key()) {
            Some(now) => judge(sheet, (what, &now), need, &here),
            // `ipv6` says that there is none.
            None if matches!(what, What::ForwardV6 | What::HashV6) => {}
            None => {
                let why = format!("this kernel has no {}", dotted(what.key()));
                sheet.skipped(what.name(), why);
            }
        }
    }
    strict_filters(sheet, known);
    ipv6(sheet);
}

fn judge(sheet: &mut Sheet, (what, now): (What, &str), need: Need, here: &Here) {
    let (name, key) = (what.name(), dotted(what.key()));
    if what.fine().contains(&now) {
        return sheet.passed(name, format!("{key} is {now}"));
    }
    let wrong = || {
        let fine = what.fine().join(" or ");
        format!("{key} is {now} and must be {fine}: {}", what.without())
    };
    let will_be_set = || {
        let by = if here.is_admin { "" } else { " as root" };
        format!(
            "{key} is {now}; {}{by} sets it to 1 when it needs it",
            what.who()
        )
    };
    match need {
        Need::NotNow(why) => sheet.passed(name, format!("{key} is {now}, and not needed: {why}")),
        Need::Never => {}
        Need::Soon | Need::Perhaps if !here.is_read_only => sheet.passed(name, will_be_set()),
        Need::Perhaps => sheet.warning(
            name,
            format!("{}, once another site has IPv6 prefixes", wrong()),
            command(what),
        ),
        Need::Now | Need::Soon if what.is_optional() => {
            sheet.warning(name, wrong(), command(what));
        }
        Need::Now | Need::Soon => sheet.failed(name, wrong(), command(what)),
    }
}

/// A kernel that forwards IPv6 stops listening to routers, and loses the route it has from one,
/// unless it is told to go on.
fn command(what: What) -> String {
    let mut words = vec!["sysctl -w".to_owned()];
    if what == What::ForwardV6 {
        let all = interfaces().unwrap_or_default().into_values();
        let listens = |name: &str| {
            let value = sysctl(&format!("net/ipv6/conf/{name}/accept_ra"));
            value.as_deref() == Some("1")
        };
        let all = all.filter(|one| one.has_default && listens(&one.name));
        words.extend(all.map(|one| format!("net/ipv6/conf/{}/accept_ra=2", one.name)));
    }
    words.push(format!("{}=1", dotted(what.key())));
    words.join(" ")
}

fn dotted(key: &str) -> String {
    key.replace('/', ".")
}

fn sysctl(key: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(key)).ok()?;
    Some(text.trim().to_owned())
}

/// The kernel takes the larger of an interface's and that of all.
fn strict_filters(sheet: &mut Sheet, known: &Known) {
    let of = |name: &str| {
        let value = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
        value
            .and_then(|value| value.parse::<u8>().ok())
            .unwrap_or(0)
    };
    let all = of("all");
    let carrying = carrying(known);
    let strict = names().into_iter().filter(|name| of(name).max(all) == 1);
    let (ours, others): (Vec<String>, Vec<String>) =
        strict.partition(|name| carrying.contains(name));
    if !ours.is_empty() {
        let each: Vec<String> = ours
            .iter()
            .map(|name| format!("net/ipv4/conf/{name}/rp_filter=2"))
            .collect();
        return sheet.failed(
            "rp-filter",
            format!("rp_filter is strict (1) on {}, by which packets of the mesh come: some are dropped in silence", ours.join(", ")),
            format!("the daemon sets it where it may; by hand: sysctl -w {}", each.join(" ")),
        );
    }
    let others = others.join(", ");
    if others.is_empty() {
        sheet.passed("rp-filter", "rp_filter is strict on no interface");
    } else if sysctl("net/ipv4/conf/all/src_valid_mark").as_deref() == Some("1") {
        let saw = format!(
            "rp_filter is strict on {others}, and src_valid_mark lets the mesh's packets pass"
        );
        sheet.passed("rp-filter", saw);
    } else {
        sheet.warning(
            "rp-filter",
            format!("rp_filter is strict (1) on {others}, and src_valid_mark is 0: what comes through the mesh may be dropped in silence"),
            "a daemon sets it when it starts; by hand: sysctl -w net.ipv4.conf.all.src_valid_mark=1, or rp_filter=2 for these interfaces",
        );
    }
}

/// Interfaces from which a running daemon takes packets of other sites.
fn carrying(known: &Known) -> Vec<String> {
    let Some(lan) = known.daemons().find_map(|(_, told)| told.lan_address) else {
        return Vec::new();
    };
    let all = interfaces().unwrap_or_default().into_values();
    let at_lan = all.filter(|one| one.addresses.contains(&lan));
    let mut names: Vec<String> = at_lan.map(|one| one.name).collect();
    names.extend(known.gateway.iter().map(|told| told.tun.clone()));
    names.push(VXLAN_DEVICE.to_owned());
    names
}

fn names() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn ipv6(sheet: &mut Sheet) {
    match sysctl("net/ipv6/conf/all/disable_ipv6").as_deref() {
        Some("0") => sheet.passed("ipv6", "the kernel has IPv6"),
        Some(_) => sheet.warning(
            "ipv6",
            "IPv6 is switched off here: IPv6 prefixes of other sites are not reached",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0, unless the mesh has IPv4 alone",
        ),
        None => sheet.warning(
            "ipv6",
            "this kernel has no IPv6: IPv6 prefixes of other sites are not reached",
            "boot without ipv6.disable=1, unless the mesh has IPv4 alone",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Check, Group, Outcome};
    use super::*;

    fn said(what: What, now: &str, here: &Here) -> Option<Check> {
        let mut sheet = Sheet::new(Group::Host);
        let need = need(what, here);
        judge(&mut sheet, (what, now), need, here);
        sheet.done().pop()
    }

    fn result(what: What, now: &str, here: &Here) -> Option<Outcome> {
        said(what, now, here).map(|check| check.result)
    }

    const GATEWAY: Here = Here {
        is_gateway: true,
        is_agent: false,
        may_be_gateway: true,
        may_be_agent: false,
        has_v4: true,
        has_v6: false,
        has_several_gateways: false,
        is_read_only: false,
        is_admin: true,
    };

    #[test]
    fn a_gateway_forwards_the_families_that_other_sites_have() {
        let result = |what, now, here| result(what, now, here).unwrap();
        assert_eq!(result(What::ForwardV4, "0", &GATEWAY), Outcome::Failed);
        assert_eq!(result(What::ForwardV6, "0", &GATEWAY), Outcome::Passed);
        let both = Here {
            has_v6: true,
            ..GATEWAY
        };
        assert_eq!(result(What::ForwardV6, "0", &both), Outcome::Failed);
        assert_eq!(result(What::ForwardV6, "2", &both), Outcome::Passed);
        // The first of a mesh has nothing to pass on.
        let first = Here {
            has_v4: false,
            ..GATEWAY
        };
        assert_eq!(result(What::ForwardV4, "0", &first), Outcome::Passed);
        assert_eq!(result(What::ValidMark, "0", &first), Outcome::Failed);
    }

    #[test]
    fn an_agent_forwards_nothing_and_spreads_over_several_gateways() {
        let agent = Here {
            is_gateway: false,
            is_agent: true,
            may_be_gateway: false,
            ..GATEWAY
        };
        assert_eq!(said(What::ForwardV4, "0", &agent), None);
        assert_eq!(result(What::HashV4, "0", &agent), Some(Outcome::Passed));
        let two = Here {
            has_several_gateways: true,
            ..agent
        };
        assert_eq!(result(What::HashV4, "0", &two), Some(Outcome::Warning));
        assert_eq!(result(What::HashV4, "3", &two), Some(Outcome::Passed));
        assert_eq!(result(What::HashV6, "0", &two), Some(Outcome::Passed));
        assert_eq!(said(What::HashV4, "0", &GATEWAY), None);
    }

    #[test]
    fn before_joining_only_what_no_daemon_could_set_is_wrong() {
        let bare = Here {
            may_be_gateway: true,
            may_be_agent: true,
            is_admin: true,
            ..Here::default()
        };
        for what in What::ALL {
            assert_eq!(result(what, "0", &bare), Some(Outcome::Passed), "{what:?}");
        }
        let sealed = Here {
            is_read_only: true,
            ..bare
        };
        let results = What::ALL.map(|what| result(what, "0", &sealed).unwrap());
        use Outcome::{Failed, Warning};
        assert_eq!(results, [Failed, Warning, Failed, Warning, Warning]);
    }
}
