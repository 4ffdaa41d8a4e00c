//! Every private address of every site is reached from every other under its own address: all
//! placements, families, protocols and sizes; and nothing else is.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use tests::echo::{Answer, Echo};
use tests::lab::{Namespace, skip};
use tests::mesh::{Mesh, Nat, PATIENCE, Plan, Site};
use tests::stream::{Flow, Pace};

const PLANS: [Plan; 3] = [
    Plan::OPEN,
    Plan::OPEN,
    Plan {
        gateways: 1,
        nat: Nat::Cone,
    },
];

/// The machines of a site with their addresses of both families.
fn machines(site: &Site) -> Vec<(&Namespace, IpAddr, IpAddr)> {
    let number = site.number;
    let mut machines = vec![(&site.worker, site.worker_address(), site.worker_address6())];
    for (index, gateway) in site.gateways.iter().enumerate() {
        let index = index + 1;
        let address6 = format!("fd00:0:{number:x}::{index:x}").parse().unwrap();
        machines.push((&gateway.namespace, gateway.lan, address6));
    }
    machines
}

/// One datagram of `size` bytes; where it came from, as its receiver saw it.
fn datagram(from: &Namespace, to: &Namespace, address: IpAddr, size: usize) -> Option<IpAddr> {
    let receiver = to
        .within(|| UdpSocket::bind((address, 0)))
        .unwrap()
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let target = receiver.local_addr().unwrap();
    let any: IpAddr = if address.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let sender = from.within(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    // The first datagram of a size may only tell the sender what fits.
    for _ in 0..3 {
        let _ = sender.send_to(&sent, target);
        let mut found = vec![0; 65_536];
        if let Ok((length, source)) = receiver.recv_from(&mut found) {
            assert_eq!(found[..length], sent[..]);
            return Some(source.ip());
        }
    }
    None
}

#[test]
fn all_machines_of_all_sites_reach_each_other_under_their_own_addresses() {
    if skip("all_machines_of_all_sites", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("traffic", &PLANS).unwrap();
    for (from_site, to_site) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        let (from_site, to_site) = (&mesh.sites[from_site], &mesh.sites[to_site]);
        for (from, from4, from6) in machines(from_site) {
            for (to, to4, to6) in machines(to_site) {
                for (source, target) in [(from4, to4), (from6, to6)] {
                    let what = format!("{source} to {target}");
                    // A question for a neighbour that is lost on a busy machine costs a second.
                    from.wait_for_ping(target, PATIENCE)
                        .unwrap_or_else(|error| panic!("{what}: {error:#}"));
                    let seen = datagram(from, to, target, 64);
                    assert_eq!(seen, Some(source), "{what}");
                }
            }
        }
    }
    mesh.watch.assert_clean();
}

#[test]
fn any_size_gets_through_also_beyond_what_the_path_carries() {
    if skip("any_size_gets_through", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("sizes", &PLANS).unwrap();
    let (from, to) = (&mesh.sites[0], &mesh.sites[1]);
    let addresses = [
        (from.worker_address(), to.worker_address()),
        (from.worker_address6(), to.worker_address6()),
    ];
    for (source, target) in addresses {
        for size in [
            0, 1, 1200, 1372, 1392, 1393, 1412, 1440, 1472, 1473, 3000, 9000, 60_000,
        ] {
            let seen = datagram(&from.worker, &to.worker, target, size);
            assert_eq!(seen, Some(source), "{size} bytes to {target}");
            if size > 0 {
                // The first reply of IPv6 that is too large is lost: its sender learns by that.
                let echo = Echo::to(target).payload(size);
                let answered = echo.until_reply(&from.worker, Duration::from_secs(5));
                answered.unwrap_or_else(|error| panic!("{size} bytes: {error:#}"));
            }
        }
        let flow = Flow {
            from: &from.worker,
            to: &to.worker,
            address: target,
        };
        flow.tcp(20 << 20).unwrap();
        flow.tcp_parallel(4, 5 << 20).unwrap();
        let pace = Pace {
            datagrams: 2000,
            size: 1300,
            interval: Duration::from_micros(500),
        };
        let arrivals = flow.udp(pace).unwrap();
        assert_eq!((arrivals.lost(), arrivals.damaged), (0, 0));
        assert_eq!(arrivals.disordered(), 0);
    }
    mesh.watch.assert_clean();
}

#[test]
fn what_is_in_no_prefix_of_the_mesh_is_not_carried() {
    if skip("what_is_in_no_prefix", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("foreign", &[Plan::OPEN, Plan::OPEN]).unwrap();
    let (from, to) = (&mesh.sites[0], &mesh.sites[1]);
    // A source that is nobody's: it leaves the worker, and no gateway lets it pass.
    from.worker.address("eth0", "10.77.0.1/32").unwrap();
    let receiver = to
        .worker
        .within(|| UdpSocket::bind((to.worker_address(), 0)))
        .unwrap()
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let target = receiver.local_addr().unwrap();
    let sender = from
        .worker
        .within(|| UdpSocket::bind(("10.77.0.1", 0)))
        .unwrap()
        .unwrap();
    for _ in 0..10 {
        sender.send_to(b"from nowhere", target).unwrap();
    }
    let mut buffer = [0; 64];
    assert!(receiver.recv_from(&mut buffer).is_err());
    // A destination that no site has: refused at once, and never in clear on the internet.
    let answer = Echo::to(IpAddr::from([10, 9, 0, 1]))
        .once(&from.worker)
        .unwrap();
    assert_ne!(answer, Answer::Reply);
    let dropped: u64 = to
        .gateways
        .iter()
        .map(|gateway| dropped(&gateway.metrics().unwrap(), "inner_source"))
        .sum();
    let refused: u64 = from
        .gateways
        .iter()
        .map(|gateway| dropped_in_all(&gateway.metrics().unwrap()))
        .sum();
    assert!(dropped + refused >= 10, "{dropped} {refused}");
}

/// A reason's count in the metrics.
fn dropped(metrics: &str, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    let lines = metrics
        .lines()
        .filter(|line| line.contains("drop") && line.contains(&label));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn dropped_in_all(metrics: &str) -> u64 {
    let lines = metrics
        .lines()
        .filter(|line| line.contains("drop") && line.contains("reason="));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
