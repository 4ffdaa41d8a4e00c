//! What the kernel of this host offers.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::check::{Check, Group, Sheet};
use super::host::Privileges;
use super::tries::{Feature, Tried};

/// The flag with which the program starts itself.
pub(super) const TRY: &str = "--try-kernel";
pub(super) const AS_USER: &str = "user";
pub(super) const AS_ROOT: &str = "root";
/// Loading a module may take a second.
const PATIENCE: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn checks(privileges: &Privileges) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Kernel);
    release(&mut sheet);
    match tried(privileges) {
        Ok(tried) => {
            for one in &tried {
                note(&mut sheet, one, privileges);
            }
        }
        Err(why) => sheet.skipped("kernel-features", format!("they could not be tried: {why}")),
    }
    sheet.done()
}

fn release(sheet: &mut Sheet) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => return sheet.skipped("kernel-version", format!("{release:?} is no version")),
    };
    if version >= (5, 13) {
        sheet.passed("kernel-version", format!("Linux {release}"));
    } else {
        sheet.warning(
            "kernel-version",
            format!("Linux {release}: what an agent uses to move flows gently came with 5.13"),
            "it works without; use a newer kernel if you can",
        );
    }
}

fn tried(privileges: &Privileges) -> Result<Vec<Tried>, String> {
    let whom = if privileges.is_admin {
        AS_ROOT
    } else {
        AS_USER
    };
    let mut child = Command::new("/proc/self/exe")
        .args(["diagnose", TRY, whom])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("the program cannot start itself: {error}"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => {
                // It may have ended just now.
                let _ended = child.kill();
                let _reaped = child.wait();
                return Err("the kernel did not answer in time".to_owned());
            }
        }
    }
    let mut told = String::new();
    if let Some(mut out) = child.stdout.take() {
        // An answer that is cut off is no JSON.
        let _read = out.read_to_string(&mut told);
    }
    serde_json::from_str(&told).map_err(|_| "the try broke off".to_owned())
}

fn note(sheet: &mut Sheet, tried: &Tried, privileges: &Privileges) {
    let said = words(tried.what);
    let Some(error) = &tried.error else {
        if tried.what != Feature::Namespace {
            sheet.passed(said.name, said.good);
        }
        return;
    };
    if tried.what == Feature::Namespace {
        return sheet.skipped(
            said.name,
            format!(
                "nothing could be tried, since a network namespace cannot be made: {error}; run it as root"
            ),
        );
    }
    let saw = format!("{}: {error}", said.bad);
    // A user's namespace may load no modules and may not be given the device.
    if !privileges.is_admin {
        return sheet.skipped(
            said.name,
            format!("{saw}; as root it may be otherwise: use sudo"),
        );
    }
    if said.is_needed {
        sheet.failed(said.name, saw, said.next);
    } else {
        sheet.warning(said.name, saw, said.next);
    }
}

struct Words {
    name: &'static str,
    good: &'static str,
    bad: &'static str,
    next: &'static str,
    is_needed: bool,
}

#[expect(clippy::too_many_lines, reason = "one table")]
fn words(feature: Feature) -> Words {
    let (name, good, bad, next, is_needed) = match feature {
        Feature::Namespace => ("kernel-features", "", "", "", false),
        Feature::Tun => (
            "tun",
            "a TUN with superpackets and several queues can be made",
            "no TUN can be made",
            "modprobe tun, and see that /dev/net/tun is there; a container needs the device and NET_ADMIN",
            true,
        ),
        Feature::UdpOffload => (
            "tun-udp-offload",
            "the TUN takes UDP superpackets",
            "the TUN takes no UDP superpackets",
            "it works without, with more work for UDP; a kernel from 6.2 has them",
            false,
        ),
        Feature::Vxlan => (
            "vxlan",
            "a VXLAN interface can be made",
            "no VXLAN interface can be made",
            "modprobe vxlan; without it agents need gateways on their own segment (--mode direct)",
            false,
        ),
        Feature::RulesV4 => (
            "policy-routing",
            "routing rules by mark",
            "no routing rule can be made",
            "the kernel needs CONFIG_IP_MULTIPLE_TABLES",
            true,
        ),
        Feature::RulesV6 => (
            "policy-routing-ipv6",
            "routing rules by mark for IPv6",
            "no routing rule can be made for IPv6",
            "IPv6 prefixes are not reached without: boot without ipv6.disable=1, or use IPv4 alone",
            false,
        ),
        Feature::Nexthop => (
            "nexthop-objects",
            "next hops can be objects of their own",
            "no next hop object can be made",
            "agents use plain multipath routes then; a kernel from 5.3 has them",
            false,
        ),
        Feature::Resilient => (
            "resilient-groups",
            "next hops can be resilient groups",
            "no resilient group of next hops can be made",
            "when a gateway dies, flows of others move too; a kernel from 5.13 has them",
            false,
        ),
        Feature::Nftables => (
            "nf-tables",
            "nf_tables takes a table with a chain that translates",
            "nf_tables takes no such table",
            "modprobe nf_tables nft_chain_nat; nothing keeps mesh packets from leaving in clear without",
            true,
        ),
    };
    Words {
        name,
        good,
        bad,
        next,
        is_needed,
    }
}
