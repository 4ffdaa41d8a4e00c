//! Who may do what on this host: privileges, kernel settings, ports, names, and other programs that
//! mind the network.

use std::fs;
use std::path::Path;

use routeagent::VXLAN_DEVICE;

use super::check::{Check, Group, Sheet};
use super::known::Known;
use super::{ports, sysctls};

const NET_ADMIN: u64 = 1 << 12;
const ALIAS: &str = "causeway";
const TUN: &str = "causeway0";

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
    sysctls::checks(&mut sheet, known, privileges.is_admin);
    ports::checks(&mut sheet, known, privileges);
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

/// An interface of ours is known by its alias.
pub(super) fn is_ours(device: &str) -> bool {
    let place = Path::new("/sys/class/net").join(device).join("ifalias");
    fs::read_to_string(place).is_ok_and(|alias| alias.trim() == ALIAS)
}

fn names(sheet: &mut Sheet, known: &Known) {
    let tun = known.gateway.as_ref().map_or(TUN, |told| &told.tun);
    for name in [tun, VXLAN_DEVICE] {
        if !Path::new("/sys/class/net").join(name).exists() {
            continue;
        }
        if is_ours(name) {
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

/// As far as processes are seen from here. Its directories are there whether it runs or not.
fn is_running(program: &str) -> bool {
    /// The kernel keeps so much of a name.
    const NAME: usize = 15;
    let short = &program[..program.len().min(NAME)];
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut names = processes.filter_map(|one| fs::read_to_string(one.path().join("comm")).ok());
    names.any(|name| name.trim() == short)
}

/// It takes away routes and rules that it does not know, unless told not to.
fn networkd(sheet: &mut Sheet) {
    if !is_running("systemd-networkd") {
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
