//! The ports that daemons of this node have or will want, and who has them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use routeagent::VXLAN_DEVICE;

use super::check::Sheet;
use super::host::{Privileges, is_ours};
use super::known::Known;

const LISTEN: u16 = 51820;
/// As the kernel names the processes of this program.
const PROGRAM: &str = "causeway";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Process {
        name: String,
        number: String,
    },
    /// The kernel's own, of a VXLAN or WireGuard interface, or of a process of another user or
    /// another container: of neither is a process seen.
    Nobody,
}

/// Whether a daemon of this node should have it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Yes,
    /// It depends on what the daemon does with it.
    Perhaps,
    No,
}

struct Port {
    name: &'static str,
    protocol: &'static str,
    number: u16,
    due: Due,
    what: &'static str,
    /// The kernel has it, for an interface of ours.
    is_kernels: bool,
    /// Where it is held by another: how ours gets another one, if it can.
    elsewhere: &'static str,
}

pub(super) fn checks(sheet: &mut Sheet, known: &Known, privileges: &Privileges) {
    let has_interface = is_ours(VXLAN_DEVICE);
    for port in ports(known) {
        let holders = holders(port.protocol, port.number);
        judge(sheet, &port, &holders, (has_interface, privileges.is_admin));
    }
}

fn ports(known: &Known) -> Vec<Port> {
    let in_site = |told: Option<&super::known::Told>| match told {
        Some(told) if told.lan_address.is_some() => Due::Yes,
        Some(_) => Due::Perhaps,
        None => Due::No,
    };
    let gateway = known.gateway.as_ref();
    let uses_vxlan = known
        .agent
        .as_ref()
        .is_some_and(|told| told.mode.used == "vxlan");
    let either = known.daemons().next().is_some();
    let fixed = "; this one cannot be changed";
    let mut ports = vec![
        Port {
            name: "port-agents",
            protocol: "udp",
            number: proto::lan::PORT,
            due: in_site(gateway.or(known.agent.as_ref())),
            what: "hellos between agents and gateways",
            is_kernels: false,
            elsewhere: fixed,
        },
        Port {
            name: "port-vxlan",
            protocol: "udp",
            number: known.kernel().vxlan_port,
            due: match (uses_vxlan, either) {
                (true, _) => Due::Yes,
                (false, true) => Due::Perhaps,
                (false, false) => Due::No,
            },
            what: "VXLAN",
            is_kernels: true,
            elsewhere: ", or give all nodes of the site another one with --vxlan-port",
        },
    ];
    if known.may_forward() {
        ports.push(Port {
            name: "port-tunnel",
            protocol: "udp",
            number: gateway.map_or(LISTEN, |told| told.listen_port),
            due: gateway.map_or(Due::No, |_| Due::Yes),
            what: "tunnels to other sites",
            is_kernels: false,
            elsewhere: ", or give the gateway another one with --listen",
        });
        ports.push(Port {
            name: "port-splice",
            protocol: "tcp",
            number: proto::lan::PORT,
            due: in_site(gateway),
            what: "the way to brokers for agents",
            is_kernels: false,
            elsewhere: fixed,
        });
    }
    ports
}

fn judge(
    sheet: &mut Sheet,
    port: &Port,
    holders: &[Holder],
    (has_interface, is_admin): (bool, bool),
) {
    let name = port.name;
    let upper = port.protocol.to_uppercase();
    let what = format!("{upper} port {} ({})", port.number, port.what);
    let is_ours = |holder: &Holder| match holder {
        Holder::Nobody => port.is_kernels && has_interface,
        Holder::Process { name, .. } => !port.is_kernels && name == PROGRAM && port.due != Due::No,
    };
    let (ours, others): (Vec<&Holder>, Vec<&Holder>) =
        holders.iter().partition(|holder| is_ours(holder));
    if others.is_empty() {
        return match (ours.first(), port.due) {
            (Some(Holder::Nobody), _) => sheet.passed(
                name,
                format!("{what} is in use, by {VXLAN_DEVICE} of Causeway"),
            ),
            (Some(_), _) => {
                sheet.passed(name, format!("{what} is in use, by this node's daemon"));
            }
            (None, Due::No) => sheet.passed(name, format!("{what} is free")),
            (None, Due::Perhaps) => sheet.passed(name, format!("{what} is not in use now")),
            (None, Due::Yes) => sheet.failed(
                name,
                format!("{what} is not in use, and this node's daemon should have it"),
                "causeway status says why; else start the daemon again",
            ),
        };
    }
    let all: Vec<String> = others.iter().map(ToString::to_string).collect();
    let saw = format!("{what} is taken by {}", all.join(", "));
    let is_seen = |holder: &&Holder| **holder != Holder::Nobody;
    let may_be_ours = !port.is_kernels && port.due != Due::No;
    if !others.iter().any(is_seen) && (!is_admin || may_be_ours) {
        let why = format!("{saw}; who it is, root on the host can tell");
        return sheet.skipped(name, why);
    }
    if is_causeway(&others) {
        // No daemon answers in --runtime-dir, and there is one.
        return sheet.warning(
            name,
            saw,
            "if it is this node's daemon, name the --runtime-dir that it was started with",
        );
    }
    let how = if others.contains(&&Holder::Nobody) {
        "see which interface has it with `ip -details link`, and which process on the host with `ss -lnp`, and end that".to_owned()
    } else {
        format!(
            "see who it is with `ss -lnp 'sport = :{}'`, and stop it",
            port.number
        )
    };
    sheet.failed(name, saw, format!("{how}{}", port.elsewhere));
}

fn is_causeway(holders: &[&Holder]) -> bool {
    let is_it = |holder: &&Holder| match holder {
        Holder::Process { name, .. } => name == PROGRAM,
        Holder::Nobody => false,
    };
    holders.iter().all(is_it)
}

/// Who has a socket on this port, each once; the kernel itself has some.
fn holders(protocol: &str, port: u16) -> Vec<Holder> {
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
    let mut holders: Vec<Holder> = found.into_values().collect();
    holders.sort();
    holders.dedup();
    holders
}

fn holder(inode: &str) -> Holder {
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
            return Holder::Process {
                name: name.trim().to_owned(),
                number: process.file_name().to_string_lossy().into_owned(),
            };
        }
    }
    Holder::Nobody
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { name, number } => write!(out, "{name} (process {number})"),
            Holder::Nobody => out.write_str(
                "the kernel (a VXLAN or WireGuard interface) or a process that is not seen from here",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Group, Outcome};
    use super::*;

    fn result(port: &Port, holders: &[Holder], has_interface: bool) -> Outcome {
        let mut sheet = Sheet::new(Group::Host);
        judge(&mut sheet, port, holders, (has_interface, true));
        sheet.done()[0].result
    }

    fn port(is_kernels: bool, due: Due) -> Port {
        Port {
            name: "port",
            protocol: "udp",
            number: 7803,
            due,
            what: "something",
            is_kernels,
            elsewhere: "",
        }
    }

    fn process(name: &str) -> Holder {
        Holder::Process {
            name: name.to_owned(),
            number: "12".to_owned(),
        }
    }

    #[test]
    fn a_port_is_ours_by_who_has_it_and_not_because_a_daemon_runs() {
        for due in [Due::Yes, Due::Perhaps, Due::No] {
            let hellos = port(false, due);
            assert_eq!(result(&hellos, &[process("dns")], false), Outcome::Failed);
            let both = [process(PROGRAM), process("dns")];
            assert_eq!(result(&hellos, &both, false), Outcome::Failed);
        }
        let ours = [process(PROGRAM)];
        assert_eq!(
            result(&port(false, Due::Yes), &ours, false),
            Outcome::Passed
        );
        assert_eq!(
            result(&port(false, Due::No), &ours, false),
            Outcome::Warning
        );
        assert_eq!(result(&port(false, Due::Yes), &[], false), Outcome::Failed);
        assert_eq!(
            result(&port(false, Due::Perhaps), &[], false),
            Outcome::Passed
        );
    }

    #[test]
    fn the_kernels_port_is_ours_while_our_interface_is_there_daemon_or_not() {
        for due in [Due::Yes, Due::Perhaps, Due::No] {
            let vxlan = port(true, due);
            assert_eq!(result(&vxlan, &[Holder::Nobody], true), Outcome::Passed);
            assert_eq!(result(&vxlan, &[Holder::Nobody], false), Outcome::Failed);
            assert_eq!(result(&vxlan, &[process("x")], true), Outcome::Failed);
        }
    }

    #[test]
    fn a_holder_that_is_not_seen_is_not_judged() {
        let mut sheet = Sheet::new(Group::Host);
        let free = port(false, Due::No);
        judge(&mut sheet, &free, &[Holder::Nobody], (false, false));
        assert_eq!(sheet.done()[0].result, Outcome::Skipped);
        assert_eq!(result(&free, &[Holder::Nobody], true), Outcome::Failed);
        let due = port(false, Due::Yes);
        assert_eq!(result(&due, &[Holder::Nobody], true), Outcome::Skipped);
    }
}
