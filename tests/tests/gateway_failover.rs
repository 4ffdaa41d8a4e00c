//! What traffic notices when gateways die, hang, are cut off, stop in good order or come back.
//!
//! Gaps are measured towards the site of the gateway that goes; its worker's own packets leave by
//! the other one. Every bar is printed with what was found.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::lab::skip;
use tests::mesh::{Mesh, Nat, PATIENCE, Plan, Report, rounds};

/// Site 0 with one gateway, site 1 with two.
const PLANS: [Plan; 2] = [
    Plan {
        gateways: 1,
        nat: Nat::None,
    },
    Plan::OPEN,
];
/// Long enough for what is measured to be over, short of the end of a hold-down.
const AFTERMATH: Duration = Duration::from_millis(2500);
/// Promised, and what a busy test machine may add.
const GAP: Duration = Duration::from_millis(1000);
const GAP_WITHOUT_WORD: Duration = Duration::from_millis(1500);

fn up(tag: &str) -> Option<Mesh> {
    (!skip(tag, &["nft"])).then(|| Mesh::up(tag, &PLANS).unwrap())
}

/// Which gateway of site 1 carries most of what comes from site 0: the one worth a fault.
fn busiest(mesh: &Mesh) -> usize {
    let received = |gateway: usize| {
        let name = &mesh.sites[1].gateways[gateway].name;
        let link = mesh.sites[0].gateways[0].link(name).unwrap();
        link["tx_bytes"].as_u64().unwrap()
    };
    let before = [received(0), received(1)];
    std::thread::sleep(Duration::from_millis(300));
    let grown = [received(0) - before[0], received(1) - before[1]];
    usize::from(grown[1] > grown[0])
}

/// Does `fault` to the busier gateway of site 1 under traffic; the other is where answers leave.
fn round(mesh: &mut Mesh, fault: impl FnOnce(&mut Mesh, usize)) -> (Report, usize) {
    let probe = mesh.meter(0, 1).unwrap();
    // What a link that came up a moment ago probes for its path counts as sent, too.
    std::thread::sleep(Duration::from_millis(800));
    let victim = busiest(mesh);
    drop(probe);
    mesh.leave_by(1, 1 - victim).unwrap();
    let meter = mesh.meter(0, 1).unwrap();
    let transfers = mesh.transfers(0, 1).unwrap();
    std::thread::sleep(Duration::from_millis(800));
    fault(mesh, victim);
    std::thread::sleep(AFTERMATH);
    let report = meter.finish();
    let transfer = transfers.finish().expect("TCP survives");
    assert!(transfer.bytes > 0);
    let worker = mesh.sites[0].worker_address();
    assert_eq!(report.sources.iter().collect::<Vec<_>>(), [&worker]);
    assert!(transfer.sources.iter().all(|source| *source == worker));
    println!(
        "gap {:?}, lost {} of {}, flows disturbed {}, TCP stall {:?}",
        report.gap, report.lost, report.sent, report.disturbed, transfer.stall
    );
    (report, victim)
}

#[test]
fn a_killed_gateway_is_left_within_a_second() {
    let Some(mut mesh) = up("killed") else { return };
    for _ in 0..rounds(2) {
        let (report, victim) = round(&mut mesh, |mesh, victim| mesh.gateway(1, victim).kill());
        assert!(report.disturbed > 0, "no flow passed the killed gateway");
        assert!(report.gap <= GAP, "{report:?}");
        mesh.gateway(1, victim).start().unwrap();
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

#[test]
fn a_hung_gateway_is_left_within_a_second_and_comes_back() {
    let Some(mut mesh) = up("hung") else { return };
    for _ in 0..rounds(1) {
        let (report, victim) = round(&mut mesh, |mesh, victim| {
            mesh.gateway(1, victim).signal(Signal::SIGSTOP).unwrap();
        });
        assert!(report.disturbed > 0, "no flow passed the hung gateway");
        assert!(report.gap <= GAP, "{report:?}");
        mesh.gateway(1, victim).signal(Signal::SIGCONT).unwrap();
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

#[test]
fn a_gateway_whose_host_is_cut_off_is_left_within_a_second() {
    let Some(mut mesh) = up("cut") else { return };
    for _ in 0..rounds(1) {
        let (report, victim) = round(&mut mesh, |mesh, victim| plug(mesh, victim, "down"));
        assert!(report.disturbed > 0, "no flow passed the lost gateway");
        assert!(report.gap <= GAP, "{report:?}");
        plug(&mesh, victim, "up");
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

/// Both wires of a gateway of site 1, at their far ends.
fn plug(mesh: &Mesh, gateway: usize, state: &str) {
    let number = gateway + 1;
    let lan_port = format!("p-g2{number}");
    let wan_port = format!("g2{number}");
    let set = |port: &str| ["link", "set", port, state].map(str::to_owned);
    let lan = set(&lan_port);
    let wan = set(&wan_port);
    mesh.sites[1]
        .lan
        .run("ip", &lan.each_ref().map(String::as_str))
        .unwrap();
    mesh.internet
        .run("ip", &wan.each_ref().map(String::as_str))
        .unwrap();
}

#[test]
fn where_no_sibling_can_tell_a_second_and_a_half_is_enough() {
    let Some(mut mesh) = up("noword") else { return };
    split(&mesh);
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..rounds(1) {
        let (report, victim) = round(&mut mesh, |mesh, victim| mesh.gateway(1, victim).kill());
        assert!(report.disturbed > 0, "no flow passed the killed gateway");
        assert!(report.gap <= GAP_WITHOUT_WORD, "{report:?}");
        mesh.gateway(1, victim).start().unwrap();
        mesh.gateway(1, victim).wait_until_ready(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

/// The siblings of site 1 do not hear each other any more, by any way.
fn split(mesh: &Mesh) {
    mesh.sites[1]
        .lan
        .sh("nft add table bridge split &&
             nft add chain bridge split pass '{ type filter hook forward priority 0; }' &&
             nft add rule bridge split pass iifname p-g21 oifname p-g22 drop &&
             nft add rule bridge split pass iifname p-g22 oifname p-g21 drop")
        .unwrap();
    mesh.internet
        .sh("nft add table ip split &&
             nft add chain ip split pass '{ type filter hook forward priority 0; }' &&
             nft add rule ip split pass iifname g21 oifname g22 drop &&
             nft add rule ip split pass iifname g22 oifname g21 drop")
        .unwrap();
}

#[test]
fn siblings_that_lose_each_other_are_both_kept() {
    let Some(mut mesh) = up("split") else { return };
    let (report, _) = round(&mut mesh, |mesh, _| split(mesh));
    assert_eq!(report.lost, 0, "{report:?}");
    for name in ["g21", "g22"] {
        let link = mesh.sites[0].gateways[0].link(name).unwrap();
        assert_eq!(
            (&link["state"], &link["failovers"]),
            (&"up".into(), &0.into()),
            "{link}"
        );
    }
}

#[test]
fn a_short_stall_takes_nobody_out() {
    let Some(mut mesh) = up("stall") else { return };
    for _ in 0..rounds(2) {
        let (report, victim) = round(&mut mesh, |mesh, victim| {
            let gateway = mesh.gateway(1, victim);
            gateway.signal(Signal::SIGSTOP).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            gateway.signal(Signal::SIGCONT).unwrap();
        });
        assert!(report.disturbed > 0, "no flow passed the stalled gateway");
        let name = mesh.sites[1].gateways[victim].name.clone();
        let link = mesh.sites[0].gateways[0].link(&name).unwrap();
        assert_eq!(
            (&link["state"], &link["failovers"]),
            (&"up".into(), &0.into()),
            "{link}"
        );
    }
}

#[test]
fn a_gateway_that_stops_in_good_order_costs_no_packet() {
    let Some(mut mesh) = up("goodbye") else {
        return;
    };
    for _ in 0..rounds(2) {
        let (report, victim) = round(&mut mesh, |mesh, victim| {
            mesh.gateway(1, victim).stop().unwrap();
        });
        assert_eq!(report.lost, 0, "{report:?}");
        mesh.gateway(1, victim).start().unwrap();
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

/// The second as soon as the first is ready. Answers leave by the one that stays each time.
#[test]
fn a_rolling_restart_of_both_costs_no_packet() {
    let Some(mut mesh) = up("rolling") else {
        return;
    };
    for _ in 0..rounds(1) {
        let meter = mesh.meter(0, 1).unwrap();
        let begin = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        for gateway in [0, 1] {
            println!("asked to stop at {:?}", begin.elapsed());
            mesh.gateway(1, gateway).stop().unwrap();
            println!("ended at {:?}", begin.elapsed());
            mesh.gateway(1, gateway).start().unwrap();
            mesh.gateway(1, gateway).wait_until_ready(PATIENCE).unwrap();
            println!("ready at {:?}", begin.elapsed());
        }
        std::thread::sleep(Duration::from_millis(500));
        let report = meter.finish();
        println!(
            "lost {} of {}, gap {:?}",
            report.lost, report.sent, report.gap
        );
        if report.lost > 0 {
            let gateways = mesh.sites.iter().flat_map(|site| &site.gateways);
            for gateway in gateways {
                let metrics = gateway.metrics().unwrap();
                let drops = metrics
                    .lines()
                    .filter(|line| line.contains("reason=") && !line.ends_with(" 0"));
                println!("{}: {:?}", gateway.name, drops.collect::<Vec<_>>());
            }
        }
        assert_eq!(report.lost, 0, "{report:?}");
    }
    mesh.watch.assert_clean();
}

#[test]
fn a_gateway_restarted_in_place_carries_within_a_second() {
    let Some(mut mesh) = up("inplace") else {
        return;
    };
    for _ in 0..rounds(3) {
        let meter = mesh.meter(1, 0).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        mesh.gateway(0, 0).kill();
        std::thread::sleep(Duration::from_millis(1500));
        let start = mesh.gateway(0, 0).start().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let found = meter.finish().first_after(start.0);
        println!("first packet after {found:?}");
        assert!(
            found.is_some_and(|found| found <= Duration::from_secs(1)),
            "{found:?}"
        );
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}

#[test]
fn a_direction_that_died_is_noticed_on_both_sides() {
    if skip("a_direction_that_died", &["nft"]) {
        return;
    }
    // Of two gateways the one that was down carries nothing for half a minute.
    let mesh = Mesh::up("oneway", &[PLANS[0], PLANS[0]]).unwrap();
    for (from, to) in [("g11", "g21"), ("g21", "g11")] {
        // Load in the direction that lives only: its sender must notice, too.
        let (busy_from, busy_to) = if from == "g11" { (1, 0) } else { (0, 1) };
        let meter = mesh.meter(busy_from, busy_to).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        mesh.internet
            .sh(&format!(
                "nft add table ip oneway &&
                 nft add chain ip oneway pass '{{ type filter hook forward priority 0; }}' &&
                 nft add rule ip oneway pass iifname {from} oifname {to} drop"
            ))
            .unwrap();
        let begin = Instant::now();
        let mut noticed = [None, None];
        while noticed.contains(&None) && begin.elapsed() < Duration::from_secs(5) {
            let sides = [
                mesh.sites[0].gateways[0].link("g21").unwrap(),
                mesh.sites[1].gateways[0].link("g11").unwrap(),
            ];
            for (noticed, link) in noticed.iter_mut().zip(sides) {
                if noticed.is_none() && link["state"] != "up" {
                    *noticed = Some(begin.elapsed());
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("{from} to {to} died: noticed after {noticed:?}");
        for noticed in noticed {
            assert!(
                noticed.is_some_and(|after| after <= GAP_WITHOUT_WORD),
                "{noticed:?}"
            );
        }
        mesh.internet
            .run("nft", &["delete", "table", "ip", "oneway"])
            .unwrap();
        drop(meter);
        mesh.wait_until_up(PATIENCE).unwrap();
    }
    mesh.watch.assert_clean();
}
