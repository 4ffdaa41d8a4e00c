//! Whole sites on hosts that do to packets what hosts do: a firewall that lets in only answers, a
//! CNI's masquerade, Docker's FORWARD policy, strict filters of sources. What is not everybody's own
//! business passes with its source; what stops traffic is named with the way out.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::lab::{HOSTILE, Namespace, skip, wait_for};
use tests::mesh::{Daemon, Lan, Mesh, PATIENCE, Plan, Site};

/// On a worker: only answers come in, and what IPv6 needs.
const FIREWALL: &str = "nft 'add chain inet host input { type filter hook input priority filter; policy drop; }; \
    add rule inet host input ct state established,related accept; \
    add rule inet host input iif lo accept; \
    add rule inet host input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept'";

/// That a connection is made, is seen to come from `from`, and brings a byte back.
fn connects(
    (machine, from): (&Namespace, IpAddr),
    (other, to): (&Namespace, IpAddr),
) -> Result<()> {
    let listener = other.within(|| TcpListener::bind((to, 0)))??;
    let target = listener.local_addr()?;
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let mut client = machine.within(connect)?.context("no connection")?;
    let (mut server, source) = listener.accept()?;
    ensure!(source.ip() == from, "the connection comes from {source}");
    client.set_read_timeout(Some(PATIENCE))?;
    server.write_all(b"x")?;
    client.read_exact(&mut [0])?;
    Ok(())
}

/// From the first machine of a site to these of another.
fn assert_reaches(site: &Site, others: &[(&Namespace, IpAddr, IpAddr)]) {
    let (machine, from4, from6) = site.machines()[0];
    for (other, to4, to6) in others {
        for (from, to) in [(from4, *to4), (from6, *to6)] {
            machine.wait_for_ping(to, PATIENCE).unwrap();
            connects((machine, from), (other, to))
                .unwrap_or_else(|error| panic!("{from} to {to}: {error:#}"));
        }
    }
}

fn problems(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.status().unwrap();
    status["problems"].as_array().cloned().unwrap_or_default()
}

fn daemons(mesh: &Mesh) -> impl Iterator<Item = &Daemon> {
    mesh.sites.iter().flat_map(|site| {
        let gateways = site.gateways.iter().map(|gateway| &**gateway);
        gateways.chain(site.agents.iter().map(|agent| &**agent))
    })
}

/// What was one at the start may still be told for a while.
fn assert_no_problems(mesh: &Mesh) {
    for daemon in daemons(mesh) {
        let _told = wait_for("no problem", PATIENCE, || problems(daemon).is_empty());
        assert_eq!(problems(daemon), [] as [Value; 0], "{}", daemon.name);
    }
}

#[test]
fn firewalls_masquerades_and_strict_filters_of_hosts_leave_traffic_and_sources_alone() {
    if skip("agent_hostile", &["nft", "iptables"]) {
        return;
    }
    let sites = [
        Plan::OPEN.agents(1).over(Lan::One),
        Plan::OPEN.agents(1).over(Lan::Routed),
    ];
    let mut mesh = Mesh::at_rest("hostile", &sites).unwrap();
    for daemon in daemons(&mesh) {
        daemon.namespace.sh(HOSTILE).unwrap();
    }
    for site in &mesh.sites {
        site.worker.sh(FIREWALL).unwrap();
    }
    mesh.start_all().unwrap();
    let modes = [0, 1].map(|site: usize| mesh.sites[site].agents[0].mode().unwrap());
    assert_eq!(modes, ["direct", "vxlan"]);
    for (from, to) in [(0, 1), (1, 0)] {
        // Nobody calls a worker that lets no calls in.
        let gateways = mesh.sites[to].machines().split_off(1);
        assert_reaches(&mesh.sites[from], &gateways);
    }
    for site in &mesh.sites {
        site.worker
            .sh("nft flush chain inet host input; nft 'chain inet host input { policy accept; }'")
            .unwrap();
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let workers = mesh.sites[to].machines();
        assert_reaches(&mesh.sites[from], &workers[..1]);
    }
    assert_no_problems(&mesh);
    mesh.watch.assert_clean();
}

#[test]
fn dockers_forward_policy_on_a_gateway_is_named_and_gives_way_to_a_flag() {
    if skip("agent_docker", &["nft", "iptables"]) {
        return;
    }
    let sites = [Plan::ONE.agents(1), Plan::ONE.agents(1).over(Lan::Routed)];
    let mut mesh = Mesh::at_rest("docker", &sites).unwrap();
    // As Docker leaves it, for both families, before anything of ours runs.
    let docker = "iptables -P FORWARD DROP && ip6tables -P FORWARD DROP";
    for site in &mesh.sites {
        site.gateways[0].namespace.sh(docker).unwrap();
    }
    mesh.start_gateways().unwrap();
    mesh.start_agents().unwrap();
    for site in &mesh.sites {
        let gateway = &site.gateways[0];
        let named = || {
            let problems = gateway
                .status()
                .map(|status| status["problems"].to_string());
            problems.is_ok_and(|all| {
                all.contains("FORWARD drops forwarded packets of the mesh")
                    && all.contains("--open-forward")
            })
        };
        wait_for("the policy is named", PATIENCE, named).unwrap();
    }
    for site in &mut mesh.sites {
        let gateway = &mut site.gateways[0];
        gateway.stop().unwrap();
        gateway.arguments.push("--open-forward".to_owned());
        gateway.start().unwrap();
    }
    mesh.settle().unwrap();
    for (from, to) in [(0, 1), (1, 0)] {
        assert_reaches(&mesh.sites[from], &mesh.sites[to].machines());
    }
    assert_no_problems(&mesh);
    mesh.watch.assert_clean();
}
