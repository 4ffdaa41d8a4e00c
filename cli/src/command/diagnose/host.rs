//! Who may do what on this host: privileges, kernel settings, ports, names, and other programs that
//! mind the network.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::check::{Check, Group, Sheet};
use super::known::Known;

const NET_ADMIN: u64 = 1 << 12;
const ALIAS: &str = "causeway";
const VXLAN_DEVICE: &str = "causeway-vx";
const TUN: &str = "causeway0";
const LISTEN: u16 = 51820;

/// What this process may do, and so what it could look at.
pub(super) struct Privileges {
    pub(super) user: u32,
    pub(super) is_admin: bool,
}

impl Privileges {
    pub(super) fn of_this_process() -> Privileges {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| {
            let digits = line.strip_prefix("CapEff:")?;
            u64::from_str_radix(digits.trim(), 16).ok()
        });
        Privileges {
            user: nix::unistd::geteuid().as_raw(),
            is_admin: effective.unwrap_or(0) & NET_ADMIN != 0,
        }
    }
}

pub(super) fn checks(known: &Known, privileges: &Privileges) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Host);
    privilege(&mut sheet, privileges);
    sysctls(&mut sheet, known, privileges);
    ports(&mut sheet, known);
    names(&mut sheet, known);
    networkd(&mut sheet);
    sheet.done()
}

fn privilege(sheet: &mut Sheet, privileges: &Privileges) {
    let user = privileges.user;
    if privileges.is_admin {
        sheet.passed("privileges", format!("user {user} with CAP_NET_ADMIN"));
    } else {
        sheet.warning(
            "privileges",
            format!("user {user} without CAP_NET_ADMIN: a gateway or an agent could not run as this, and not all could be looked at"),
            "sudo causeway diagnose; in a container, add the capability NET_ADMIN",
        );
    }
}

struct Setting {
    name: &'static str,
    key: &'static str,
    fine: &'static [&'static str],
    /// Only where packets are passed on.
    for_gateways: bool,
    without: &'static str,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        name: "forwarding",
        key: "net/ipv4/ip_forward",
        fine: &["1"],
        for_gateways: true,
        without: "a gateway passes on no IPv4",
    },
    Setting {
        name: "forwarding-ipv6",
        key: "net/ipv6/conf/all/forwarding",
        fine: &["1"],
        for_gateways: true,
        without: "a gateway passes on no IPv6",
    },
    Setting {
        name: "src-valid-mark",
        key: "net/ipv4/conf/all/src_valid_mark",
        fine: &["1"],
        for_gateways: true,
        without: "a strict rp_filter drops what comes through the tunnel",
    },
];

fn sysctl(key: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(key)).ok()?;
    Some(text.trim().to_owned())
}

fn sysctls(sheet: &mut Sheet, known: &Known, privileges: &Privileges) {
    let flags = statvfs("/proc/sys/net").map(|found| found.flags());
    let is_read_only = flags.is_ok_and(|flags| flags.contains(FsFlags::ST_RDONLY));
    if is_read_only {
        let next = "a gateway sets what it needs by itself where it may: set on the host what failed below, or let the container write there";
        sheet.warning("sysctls-writable", "/proc/sys is read-only here", next);
    } else {
        sheet.passed("sysctls-writable", "/proc/sys can be written by root");
    }
    let wanted = SETTINGS.iter();
    for setting in wanted.filter(|setting| known.may_forward() || !setting.for_gateways) {
        let dotted = setting.key.replace('/', ".");
        let Some(now) = sysctl(setting.key) else {
            sheet.skipped(setting.name, format!("this kernel has no {dotted}"));
            continue;
        };
        let command = format!("sysctl -w {dotted}={}", setting.fine[0]);
        if setting.fine.contains(&now.as_str()) {
            sheet.passed(setting.name, format!("{dotted} is {now}"));
        } else if known.gateway.is_some() || is_read_only {
            let saw = format!(
                "{dotted} is {now} and must be {}: {}",
                setting.fine.join(" or "),
                setting.without
            );
            sheet.failed(setting.name, saw, command);
        } else {
            let who = if privileges.is_admin {
                "sets it"
            } else {
                "as root sets it"
            };
            sheet.passed(
                setting.name,
                format!(
                    "{dotted} is {now}; a gateway {who} to {} when it starts",
                    setting.fine[0]
                ),
            );
        }
    }
    strict_filters(sheet);
    ipv6(sheet);
}

/// The kernel takes the larger of an interface's and that of all.
fn strict_filters(sheet: &mut Sheet) {
    let of = |name: &str| {
        let value = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
        value
            .and_then(|value| value.parse::<u8>().ok())
            .unwrap_or(0)
    };
    let all = of("all");
    let strict: Vec<String> = interfaces()
        .into_iter()
        .filter(|name| of(name).max(all) == 1)
        .collect();
    if strict.is_empty() {
        sheet.passed("rp-filter", "rp_filter is strict on no interface");
    } else if sysctl("net/ipv4/conf/all/src_valid_mark").as_deref() == Some("1") {
        let saw = format!(
            "rp_filter is strict on {}, and src_valid_mark lets the mesh's packets pass",
            strict.join(", ")
        );
        sheet.passed("rp-filter", saw);
    } else {
        sheet.warning(
            "rp-filter",
            format!(
                "rp_filter is strict (1) on {}, and src_valid_mark is 0: what comes through the mesh may be dropped in silence",
                strict.join(", ")
            ),
            "a daemon sets it when it starts; by hand: sysctl -w net.ipv4.conf.all.src_valid_mark=1, or rp_filter=2 for these interfaces",
        );
    }
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

fn interfaces() -> Vec<String> {
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

/// What each daemon opens; a running one has it itself.
fn ports(sheet: &mut Sheet, known: &Known) {
    let listen = known
        .gateway
        .as_ref()
        .map_or(LISTEN, |told| told.listen_port);
    let gateway = known.gateway.is_some();
    let either = gateway || known.agent.is_some();
    let mut wanted = vec![
        (
            "port-agents",
            "udp",
            7802,
            either,
            "hellos between agents and gateways",
        ),
        ("port-vxlan", "udp", 7803, either, "VXLAN"),
    ];
    if known.may_forward() {
        wanted.push((
            "port-tunnel",
            "udp",
            listen,
            gateway,
            "tunnels to other sites",
        ));
        wanted.push((
            "port-splice",
            "tcp",
            7802,
            gateway,
            "the way to brokers for agents",
        ));
    }
    for (name, protocol, port, is_ours, what) in wanted {
        let holders = holders(protocol, port);
        let upper = protocol.to_uppercase();
        if holders.is_empty() {
            let free = if is_ours { "not in use" } else { "free" };
            sheet.passed(name, format!("{upper} port {port} ({what}) is {free}"));
        } else if is_ours {
            let saw = format!("{upper} port {port} ({what}) is in use, by this node's daemon");
            sheet.passed(name, saw);
        } else {
            sheet.failed(
                name,
                format!(
                    "{upper} port {port} ({what}) is taken by {}",
                    holders.join(", ")
                ),
                format!("see who it is with `ss -lnp | grep :{port}`, and stop it or give the daemon another port"),
            );
        }
    }
}

/// Who has a socket on this port, each once; the kernel itself has some.
fn holders(protocol: &str, port: u16) -> Vec<String> {
    let mut found = BTreeMap::new();
    for family in ["", "6"] {
        let table = fs::read_to_string(format!("/proc/net/{protocol}{family}"));
        for line in table.unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let is_it = local
                .rsplit_once(':')
                .is_some_and(|(_, text)| u16::from_str_radix(text, 16) == Ok(port));
            // Of TCP only who listens; a UDP socket that is bound is in state 7.
            if is_it && matches!(*state, "0A" | "07") {
                found
                    .entry((*inode).to_owned())
                    .or_insert_with(|| holder(inode));
            }
        }
    }
    let mut names: Vec<String> = found.into_values().collect();
    names.dedup();
    names
}

fn holder(inode: &str) -> String {
    if inode == "0" {
        return "the kernel (a VXLAN or WireGuard interface)".to_owned();
    }
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let path = process.path();
        let files = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        if links.any(|link| link.as_os_str() == wanted.as_str()) {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let number = process.file_name();
            return format!("{} (process {})", name.trim(), number.to_string_lossy());
        }
    }
    "another program".to_owned()
}

/// An interface of ours is known by its alias.
fn names(sheet: &mut Sheet, known: &Known) {
    let tun = known.gateway.as_ref().map_or(TUN, |told| &told.tun);
    for name in [tun, VXLAN_DEVICE] {
        let place = Path::new("/sys/class/net").join(name);
        if !place.exists() {
            continue;
        }
        let alias = fs::read_to_string(place.join("ifalias")).unwrap_or_default();
        if alias.trim() == ALIAS {
            sheet.passed("interface-name", format!("interface {name} is Causeway's"));
        } else {
            sheet.failed(
                "interface-name",
                format!("there is an interface {name}, and it is not Causeway's"),
                format!("rename or delete it: ip link delete {name}"),
            );
        }
    }
}

/// It takes away routes and rules that it does not know, unless told not to.
fn networkd(sheet: &mut Sheet) {
    if !Path::new("/run/systemd/netif").exists() {
        return;
    }
    let mut places = vec![Path::new("/etc/systemd/networkd.conf").to_owned()];
    for directory in ["/etc", "/run", "/usr/lib"] {
        let drops = Path::new(directory).join("systemd/networkd.conf.d");
        let entries = fs::read_dir(drops).into_iter().flatten().flatten();
        places.extend(entries.map(|entry| entry.path()));
    }
    let texts: Vec<String> = places
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let is_off = |key: &str| {
        let off = ["no", "false", "off", "0"];
        let mut lines = texts.iter().flat_map(|text| text.lines());
        lines.any(|line| {
            let pair = line.split_once('=');
            pair.is_some_and(|(name, value)| name.trim() == key && off.contains(&value.trim()))
        })
    };
    if is_off("ManageForeignRoutes") && is_off("ManageForeignRoutingPolicyRules") {
        sheet.passed(
            "networkd",
            "systemd-networkd leaves others' routes and rules alone",
        );
    } else {
        sheet.warning(
            "networkd",
            "systemd-networkd runs and deletes routes and rules it does not know whenever it starts; they are put back within half a second",
            "set ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no in /etc/systemd/networkd.conf, section [Network]",
        );
    }
}
