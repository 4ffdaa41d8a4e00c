//! Whatever daemon was killed in whatever it did: after `causeway cleanup` the kernel of its node is
//! byte for byte as it was before the first start. Gateways and agents, direct and over VXLAN, both
//! families.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::broker::command::causeway;
use tests::lab::{Namespace, skip, wait_for};
use tests::mesh::{Daemon, Lan, Mesh, PATIENCE, Plan};

/// Between a start and its end: before the kernel is touched, in the midst of it, and after.
const STARTS: [u64; 4] = [10, 40, 100, 200];
/// The same after SIGTERM.
const STOPS: [u64; 2] = [0, 60];

/// What somebody else has on the node, some of it as Causeway wants it otherwise.
const FOREIGN: &str = "set -e; sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1; \
    for device in $(ls /sys/class/net); do sysctl -qw net.ipv4.conf.$device.rp_filter=1; done; \
    ip rule add priority 200 fwmark 5 lookup 77; ip route add 10.77.0.0/16 dev lo table 77; \
    ip nexthop add id 7 blackhole; ip neigh add 127.0.0.9 lladdr 02:00:00:00:00:09 dev lo; \
    nft add table inet mine; nft 'add chain inet mine c { type filter hook forward priority 0; }'";

/// What `ip`, `nft`, `bridge` and `sysctl` print, in that order. What kernels do by themselves is
/// left out: lifetimes, and neighbours that were not put there by hand.
fn shown(node: &Namespace) -> Result<String> {
    let lines = [
        "ip -4 route show table all",
        "ip -6 route show table all | sed 's/ expires [^ ]*//'",
        "ip rule; ip -6 rule",
        "ip nexthop",
        "ip -d link show | grep -v 'link/ether'",
        "nft -s list ruleset",
        "bridge fdb",
        "ip neigh show nud permanent; ip -6 neigh show nud permanent; ip neigh show proxy",
        // Not what comes with a module that is loaded meanwhile, nor what cannot be read.
        "sysctl -a -r '^net\\.ipv[46]\\.' 2>/dev/null | grep -v stable_secret",
    ];
    let parts: Result<Vec<String>> = lines.iter().map(|line| node.sh(line)).collect();
    Ok(parts?.join("\n---\n"))
}

/// The first lines in which both differ, for whoever has to look.
fn differences(before: &str, after: &str) -> String {
    let lacks = |from: &str, of: &str, sign: char| {
        let lines = from
            .lines()
            .filter(|line| !of.lines().any(|other| other == *line));
        lines
            .take(20)
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    lacks(before, after, '-') + &lacks(after, before, '+')
}

fn cleanup(node: &Namespace) -> Result<()> {
    let output = node
        .command(causeway().get_program())
        .arg("cleanup")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "cleanup of {}: {said}",
        node.name()
    );
    Ok(())
}

fn assert_as_before(daemon: &Daemon, before: &str, when: &str) {
    cleanup(&daemon.namespace).unwrap();
    let after = shown(&daemon.namespace).unwrap();
    let different = differences(before, &after);
    assert!(after == before, "{}, {when}:\n{different}", daemon.name);
}

/// As soon as anything of it is in the kernel.
fn kill_at_the_first_touch(daemon: &mut Daemon) -> Result<()> {
    let touch = "test -n \"$(ip rule show proto 199)$(ip -6 rule show proto 199)$(ip route show table all proto 199)\" \
                || nft list table inet causeway || ip link show causeway0 || ip link show causeway-vx";
    let namespace = daemon.namespace.clone();
    daemon.start()?;
    let touched = || namespace.sh(touch).is_ok();
    wait_for("something of it", PATIENCE, touched).with_context(|| daemon.log())?;
    daemon.kill();
    Ok(())
}

fn kill_after(daemon: &mut Daemon, milliseconds: u64) -> Result<()> {
    daemon.start()?;
    std::thread::sleep(Duration::from_millis(milliseconds));
    daemon.kill();
    Ok(())
}

fn kill_while_it_stops(daemon: &mut Daemon, milliseconds: u64) -> Result<()> {
    daemon.start()?;
    daemon.wait_until_ready(PATIENCE)?;
    daemon.signal(Signal::SIGTERM)?;
    std::thread::sleep(Duration::from_millis(milliseconds));
    daemon.kill();
    Ok(())
}

/// All the ways to die, one after the other; what each leaves, the next finds.
fn die_often(daemon: &mut Daemon) -> Result<()> {
    for milliseconds in STARTS {
        kill_after(daemon, milliseconds)?;
    }
    for milliseconds in STOPS {
        kill_while_it_stops(daemon, milliseconds)?;
    }
    Ok(())
}

#[test]
fn cleanup_after_any_kill_leaves_everything_as_before_the_first_start() {
    if skip("cleanup_killed", &["nft", "bridge", "sysctl"]) {
        return;
    }
    let sites = [
        Plan::ONE.agents(1).over(Lan::One),
        Plan::ONE.agents(1).over(Lan::Routed),
    ];
    let mut mesh = Mesh::at_rest("killed", &sites).unwrap();
    for site in &mesh.sites {
        site.wait_for_neighbours().unwrap();
    }
    for daemon in all(&mut mesh) {
        daemon.namespace.sh(FOREIGN).unwrap();
    }
    let befores: Vec<String> = all(&mut mesh)
        .map(|daemon| shown(&daemon.namespace).unwrap())
        .collect();
    // A daemon alone, before the others run: killed with half of what it makes, and once more on
    // top of that.
    for (daemon, before) in all(&mut mesh).zip(&befores) {
        kill_at_the_first_touch(daemon).unwrap();
        assert_as_before(daemon, before, "killed at the first touch");
        kill_at_the_first_touch(daemon).unwrap();
    }
    // Whole, with both ways between agents and gateways.
    mesh.start_all().unwrap();
    let modes = [0, 1].map(|site: usize| mesh.sites[site].agents[0].mode().unwrap());
    assert_eq!(modes, ["direct", "vxlan"]);
    all(&mut mesh).for_each(Daemon::kill);
    std::thread::scope(|scope| {
        let deaths: Vec<_> = all(&mut mesh)
            .map(|daemon| scope.spawn(|| die_often(daemon)))
            .collect();
        for death in deaths {
            death.join().unwrap().unwrap();
        }
    });
    for (daemon, before) in all(&mut mesh).zip(&befores) {
        assert_ne!(
            &shown(&daemon.namespace).unwrap(),
            before,
            "it made nothing"
        );
        assert_as_before(daemon, before, "killed in all ways");
    }
}

fn all(mesh: &mut Mesh) -> impl Iterator<Item = &mut Daemon> {
    mesh.sites.iter_mut().flat_map(|site| {
        let gateways = site.gateways.iter_mut().map(|gateway| &mut **gateway);
        gateways.chain(site.agents.iter_mut().map(|agent| &mut **agent))
    })
}
