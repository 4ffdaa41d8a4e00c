//! What workers with agents notice when gateways of their site die, return or are restarted in turn.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use tests::capture::Capture;
use tests::lab::{skip, wait_for};
use tests::mesh::{Layout, Mesh, Nat, PATIENCE, Plan, Report, bar, rounds};

/// Site 0 loses gateways, site 1 sends and receives.
const SITES: [Layout; 2] = [Plan::OPEN.agents(2), Plan::ONE.agents(1)];
/// Promised: for what a worker sends, and for what is sent to it.
const OUTBOUND: Duration = Duration::from_millis(300);
const INBOUND: Duration = Duration::from_secs(1);
/// Long enough for what is measured to be over, short of the end of a hold-down.
const AFTERMATH: Duration = Duration::from_millis(2500);
/// What a gateway that failed waits before it is used again, and a busy machine.
const HOLD_DOWN: Duration = Duration::from_secs(60);

fn up(tag: &str, sites: &[Layout]) -> Option<Mesh> {
    (!skip(tag, &["nft"])).then(|| Mesh::up(tag, sites).unwrap())
}

fn show(what: &str, report: &Report) {
    println!(
        "{what}: gap {:?}, lost {} of {}, flows disturbed {}",
        report.gap, report.lost, report.sent, report.disturbed
    );
}

#[test]
fn a_killed_gateway_is_left_by_the_workers_of_its_site() {
    let Some(mut mesh) = up("akilled", &SITES) else {
        return;
    };
    let runs = rounds(1);
    for round in 0..runs {
        let meters = [mesh.meter(0, 1).unwrap(), mesh.meter(1, 0).unwrap()];
        let transfers = [mesh.transfers(0, 1).unwrap(), mesh.transfers(1, 0).unwrap()];
        std::thread::sleep(Duration::from_millis(800));
        let victim = mesh.busiest(0, &[1]).unwrap();
        mesh.gateway(0, victim).kill();
        std::thread::sleep(AFTERMATH);
        let [outbound, inbound] = meters.map(|meter| meter.finish());
        for transfer in transfers {
            let transfer = transfer.finish().expect("TCP survives");
            println!("TCP stall {:?}", transfer.stall);
        }
        show("outbound", &outbound);
        show("inbound", &inbound);
        assert!(
            outbound.disturbed > 0 || outbound.lost > 0,
            "no flow passed it"
        );
        assert!(outbound.gap <= bar(OUTBOUND), "{outbound:?}");
        assert!(inbound.gap <= bar(INBOUND), "{inbound:?}");
        let worker = mesh.sites[0].worker_address();
        assert_eq!(outbound.sources.iter().collect::<Vec<_>>(), [&worker]);
        if round + 1 < runs {
            mesh.gateway(0, victim).start().unwrap();
            mesh.wait_until_up(PATIENCE).unwrap();
            mesh.wait_for_agents(HOLD_DOWN).unwrap();
        }
    }
    mesh.watch.assert_clean();
}

#[test]
fn the_only_gateway_is_used_as_soon_as_it_returns() {
    let only = Plan::ONE.agents(1);
    let Some(mut mesh) = up("only", &[only, only]) else {
        return;
    };
    for _ in 0..rounds(1) {
        let meter = mesh.meter(0, 1).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        mesh.gateway(0, 0).kill();
        let silent = || {
            let state = mesh.sites[0].agents[0].gateway_state("g11");
            state.is_ok_and(|state| state == "silent")
        };
        wait_for("the agent misses it", PATIENCE, silent).unwrap();
        let start = mesh.gateway(0, 0).start().unwrap();
        mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let report = meter.finish();
        let back = report.first_after(start.0).expect("packets come again");
        println!("the first packet {back:?} after its start");
        // Far less than a hold-down.
        assert!(back < Duration::from_secs(10), "{back:?}");
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

#[test]
fn gateways_restarted_in_turn_cost_their_workers_no_packet() {
    let Some(mut mesh) = up("arolling", &SITES) else {
        return;
    };
    for _ in 0..rounds(1) {
        let meters = [mesh.meter(0, 1).unwrap(), mesh.meter(1, 0).unwrap()];
        std::thread::sleep(Duration::from_millis(500));
        for gateway in [0, 1] {
            mesh.gateway(0, gateway).stop().unwrap();
            mesh.gateway(0, gateway).start().unwrap();
            mesh.gateway(0, gateway).wait_until_ready(PATIENCE).unwrap();
            mesh.wait_until_up(PATIENCE).unwrap();
            mesh.wait_for_agents(PATIENCE).unwrap();
        }
        std::thread::sleep(Duration::from_millis(500));
        let [outbound, inbound] = meters.map(|meter| meter.finish());
        show("outbound", &outbound);
        show("inbound", &inbound);
        assert_eq!(
            (outbound.lost, inbound.lost),
            (0, 0),
            "{outbound:?} {inbound:?}"
        );
    }
    mesh.watch.assert_clean();
}

const FLOWS: usize = 200;
const PORT: u16 = 4567;

/// Sends one datagram of each flow; by which gateway each left, by its port.
fn ways(mesh: &Mesh, flows: &[UdpSocket]) -> BTreeMap<u16, usize> {
    let gateways = mesh.sites[0].gateways.iter();
    let captures: Vec<Capture> = gateways
        .map(|gateway| {
            let wanted = |packet: &tests::capture::Packet| {
                let datagram = packet.datagram();
                datagram.is_some_and(|datagram| datagram.destination.port() == PORT)
            };
            Capture::start(&gateway.namespace, "lan", wanted).unwrap()
        })
        .collect();
    for flow in flows {
        flow.send(b"flow").unwrap();
    }
    let seen = || captures.iter().map(Capture::count).sum::<usize>();
    wait_for("all flows pass", PATIENCE, || seen() >= flows.len()).unwrap();
    let mut ways = BTreeMap::new();
    for (gateway, capture) in captures.iter().enumerate() {
        for packet in capture.packets() {
            let port = packet.datagram().unwrap().source.port();
            assert_eq!(ways.insert(port, gateway), None, "twice");
        }
    }
    ways
}

#[test]
fn a_death_moves_no_flow_of_the_other_gateways() {
    let three = Plan {
        gateways: 3,
        nat: Nat::None,
    };
    let Some(mut mesh) = up("flows", &[three.agents(1), Plan::ONE.agents(1)]) else {
        return;
    };
    let any = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
    let target = SocketAddr::new(mesh.sites[1].worker_address(), PORT);
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        Ok(socket)
    };
    // Somebody listens, so that no flow is refused.
    let listener = mesh.sites[1].worker.within(|| UdpSocket::bind(target));
    let _listener = listener.unwrap().unwrap();
    let open_all = || {
        (0..FLOWS)
            .map(|_| open())
            .collect::<std::io::Result<Vec<_>>>()
    };
    let flows = mesh.sites[0].worker.within(open_all).unwrap().unwrap();
    let before = ways(&mesh, &flows);
    mesh.gateway(0, 1).kill();
    let left = || {
        let state = mesh.sites[0].agents[0].gateway_state("g12");
        state.is_ok_and(|state| state == "silent")
    };
    wait_for("the agent misses it", PATIENCE, left).unwrap();
    wait_for("it is used no more", PATIENCE, || {
        ways(&mesh, &flows).values().all(|gateway| *gateway != 1)
    })
    .unwrap();
    let after = ways(&mesh, &flows);
    let mut moved = [0; 3];
    for (port, gateway) in &before {
        if *gateway == 1 {
            moved[after[port]] += 1;
        } else {
            assert_eq!(after[port], *gateway, "a flow of a living gateway moved");
        }
    }
    println!("flows of the dead one went to: {moved:?}");
    assert!(moved[0] > 0 && moved[2] > 0, "{moved:?}");
    mesh.watch.assert_clean();
}
