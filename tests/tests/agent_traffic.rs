//! Every machine of every site reaches every other under its own address, workers with agents among
//! them: on one segment, behind a router, and where a cloud checks addresses; both families, every
//! protocol, sizes from 64 to 60,000 bytes.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::echo::Echo;
use tests::lab::{Namespace, skip};
use tests::mesh::{Lan, Mesh, Nat, PATIENCE, Plan};

const SIZES: [usize; 6] = [64, 1200, 1400, 1473, 9000, 60_000];
/// What a sender learns of its path costs it a datagram, each time that it learns.
const TRIES: usize = 20;
const TRY: Duration = Duration::from_millis(400);

/// One side of a conversation.
#[derive(Clone, Copy)]
struct End<'a> {
    machine: &'a Namespace,
    address: IpAddr,
}

fn block(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

/// That datagrams of each size come whole, and from whom they should.
fn udp(from: End<'_>, to: End<'_>) -> Result<()> {
    let bind = |end: End<'_>, address: IpAddr| -> Result<UdpSocket> {
        let socket = end.machine.within(|| UdpSocket::bind((address, 0)))??;
        socket.set_read_timeout(Some(TRY))?;
        Ok(socket)
    };
    let any: IpAddr = if to.address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let (sender, receiver) = (bind(from, any)?, bind(to, to.address)?);
    let target = receiver.local_addr()?;
    for size in SIZES {
        let sent = block(size);
        let mut found = vec![0; 65_536];
        let mut came = None;
        for _ in 0..TRIES {
            let _ = sender.send_to(&sent, target);
            came = receiver.recv_from(&mut found).ok();
            if came.is_some_and(|(length, _)| length == size) {
                break;
            }
        }
        let (length, source) = came.with_context(|| format!("{size} bytes do not come"))?;
        ensure!(found[..length] == sent, "{size} bytes come changed");
        ensure!(
            source.ip() == from.address,
            "{size} bytes come from {source}"
        );
    }
    Ok(())
}

/// That a connection is made from the right address, and brings back what it was given.
fn tcp(from: End<'_>, to: End<'_>) -> Result<()> {
    let listener = to.machine.within(|| TcpListener::bind((to.address, 0)))??;
    let target = listener.local_addr()?;
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let mut client = from.machine.within(connect)?.context("no connection")?;
    let (mut server, source) = listener.accept()?;
    ensure!(
        source.ip() == from.address,
        "the connection comes from {source}"
    );
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
    }
    let given = block(60_000);
    for size in [64, 60_000] {
        let mut there = vec![0; size];
        client.write_all(&given[..size])?;
        server.read_exact(&mut there)?;
        let mut back = vec![0; size];
        server.write_all(&there)?;
        client.read_exact(&mut back)?;
        ensure!(back == given[..size], "{size} bytes come back changed");
    }
    Ok(())
}

fn icmp(from: End<'_>, to: End<'_>) -> Result<()> {
    for size in [64, 60_000] {
        let echo = Echo::to(to.address).payload(size);
        echo.until_reply(from.machine, PATIENCE)?;
    }
    Ok(())
}

/// All of one site to all of the other; how many pairs.
fn try_all(mesh: &Mesh, from: usize, to: usize) -> usize {
    let mut pairs = 0;
    for (machine, from4, from6) in mesh.sites[from].machines() {
        for (other, to4, to6) in mesh.sites[to].machines() {
            for (source, target) in [(from4, to4), (from6, to6)] {
                let from = End {
                    machine,
                    address: source,
                };
                let to = End {
                    machine: other,
                    address: target,
                };
                for (protocol, result) in [
                    ("ICMP", icmp(from, to)),
                    ("UDP", udp(from, to)),
                    ("TCP", tcp(from, to)),
                ] {
                    result.unwrap_or_else(|error| {
                        panic!("{protocol} {source} to {target}: {error:#}")
                    });
                }
                pairs += 1;
            }
        }
    }
    pairs
}

/// Of a node that uses VXLAN, and that nobody has heard of: it comes by the site's own network.
fn try_another_address(mesh: &Mesh) {
    let (near, far) = (&mesh.sites[0].agents[0], &mesh.sites[1].agents[0]);
    let address = "10.2.1.77".parse().unwrap();
    let add = format!("ip address add {address}/24 dev eth0");
    far.namespace.sh(&add).unwrap();
    let from = End {
        machine: &near.namespace,
        address: near.lan,
    };
    let to = End {
        machine: &far.namespace,
        address,
    };
    for result in [icmp(from, to), udp(from, to), tcp(from, to)] {
        result.unwrap();
    }
}

fn all_to_all(tag: &str, lan: Lan, mode: &str) {
    if skip(tag, &["nft"]) {
        return;
    }
    let behind_nat = Plan {
        gateways: 1,
        nat: Nat::Cone,
    };
    let open = Plan::OPEN.agents(1);
    let sites = match lan {
        Lan::One | Lan::Routed => [open, behind_nat.agents(2)],
        // What comes in by one gateway for the other is not of the other's address, either way.
        Lan::Checked => [open, open],
    };
    let sites = sites.map(|site| site.over(lan));
    let mesh = Mesh::up(tag, &sites).unwrap();
    for agent in mesh.sites.iter().flat_map(|site| &site.agents) {
        let status = agent.status().unwrap();
        assert_eq!(agent.mode().unwrap(), mode, "{}", status["mode"]);
    }
    let begin = Instant::now();
    let pairs = try_all(&mesh, 0, 1) + try_all(&mesh, 1, 0);
    println!("{pairs} pairs, {mode}: {:?}", begin.elapsed());
    if lan == Lan::Routed {
        try_another_address(&mesh);
    }
    mesh.watch.assert_clean();
}

#[test]
fn all_machines_reach_each_other_on_one_segment() {
    all_to_all("direct", Lan::One, "direct");
}

#[test]
fn all_machines_reach_each_other_behind_a_router() {
    all_to_all("routed", Lan::Routed, "vxlan");
}

#[test]
fn all_machines_reach_each_other_where_foreign_addresses_are_dropped() {
    all_to_all("checked", Lan::Checked, "vxlan");
}

#[test]
fn with_another_port_of_vxlan_on_both_sides_the_usual_one_is_not_needed() {
    if skip("agent_port", &["nft"]) {
        return;
    }
    let sites = [Plan::ONE.agents(1).over(Lan::Routed), Plan::ONE.agents(0)];
    let mut mesh = Mesh::at_rest("agent-port", &sites).unwrap();
    let site = &mut mesh.sites[0];
    let gateways = site.gateways.iter_mut().map(|gateway| &mut **gateway);
    let agents = site.agents.iter_mut().map(|agent| &mut **agent);
    let mut usual = Vec::new();
    for daemon in gateways.chain(agents) {
        let other = ["--vxlan-port", "7900"];
        daemon.arguments.extend(other.map(str::to_owned));
        let taken = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7803));
        usual.push(daemon.namespace.within(taken).unwrap().unwrap());
    }
    mesh.start_all().unwrap();
    assert_eq!(mesh.sites[0].agents[0].mode().unwrap(), "vxlan");
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    mesh.wait_for_ping(1, 0, PATIENCE).unwrap();
    mesh.watch.assert_clean();
}
