//! The interface of a gateway outlives it, has one user at a time, and is never another's.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use gateway::io::tun::{ALIAS, Tun, TunError};
use gateway::io::udp::{PathMtu, SocketGroup};
use gateway::wg::Offload;
use tests::lab::{Lab, Namespace, Process, skip, wait_for};

const NAME: &str = "mesh0";
/// Set for the process that holds the interface until it is killed; says with how many queues.
const HOLD: &str = "CAUSEWAY_TEST_HOLD_QUEUES";

/// Not a test by itself: what [`holder`] starts.
#[test]
fn hold_the_interface() {
    let Ok(queues) = std::env::var(HOLD) else {
        return;
    };
    let _tun = Tun::take_over(NAME, queues.parse().unwrap(), &[]).unwrap();
    println!("held");
    std::thread::sleep(Duration::from_secs(600));
}

/// Another process that has taken the interface over.
fn holder(site: &Namespace, queues: usize) -> Process {
    let mut command = site.command(std::env::current_exe().unwrap());
    command
        .args(["hold_the_interface", "--exact", "--nocapture"])
        .env(HOLD, queues.to_string());
    let process = site.spawn(command).unwrap();
    wait_for("the other process", Duration::from_secs(10), || {
        assert!(process.is_running(), "{}", process.output());
        process.output().contains("held")
    })
    .unwrap();
    process
}

fn take_over(site: &Namespace, queues: usize, without: &[Offload]) -> Result<Tun, TunError> {
    site.within(|| Tun::take_over(NAME, queues, without))
        .unwrap()
}

/// The same, as soon as what this process had open of it is closed: a program that another test
/// starts holds all of it for the moment in which it is still a copy of this process.
fn taken(site: &Namespace, queues: usize, without: &[Offload]) -> Tun {
    let mut taken = None;
    wait_for("the interface is free", Duration::from_secs(5), || {
        let outcome = take_over(site, queues, without);
        let is_held = matches!(
            outcome,
            Err(TunError::Held { .. } | TunError::Kernel { .. })
        );
        taken = Some(outcome);
        !is_held
    })
    .unwrap_or_else(|error| panic!("{error:#}: {taken:?}"));
    taken.unwrap().unwrap()
}

fn lab(test: &str) -> Option<(Lab, Namespace)> {
    if skip(test, &[]) {
        return None;
    }
    let lab = Lab::new("kept").unwrap();
    let site = lab.namespace("site").unwrap();
    Some((lab, site))
}

fn shown(site: &Namespace) -> String {
    site.run("ip", &["-d", "link", "show", NAME]).unwrap()
}

#[test]
fn a_killed_process_leaves_interface_and_routes_to_the_next() {
    let Some((_lab, site)) = lab("a_killed_process_leaves_interface_and_routes_to_the_next") else {
        return;
    };
    let first = holder(&site, 2);
    for route in ["10.70.0.0/16", "fd70::/48"] {
        site.run("ip", &["route", "add", route, "dev", NAME])
            .unwrap();
    }
    let routes = || {
        let v4 = site.run("ip", &["route", "show", "dev", NAME]).unwrap();
        let v6 = site
            .run("ip", &["-6", "route", "show", "dev", NAME])
            .unwrap();
        assert!(v4.contains("10.70.0.0/16"), "{v4}");
        assert!(v6.contains("fd70::/48"), "{v6}");
    };
    let before = shown(&site);
    assert!(before.contains("mtu 65535") && before.contains("persist on"));
    routes();
    first.kill();
    routes();
    // Another number of queues than before, down to one and up again.
    for queues in [1, 3] {
        let next = taken(&site, queues, &[]);
        assert_eq!(next.queues.len(), queues);
        let now = shown(&site);
        assert!(
            now.contains("LOWER_UP") && now.contains(&format!("alias {ALIAS}")),
            "{now}"
        );
        assert_eq!(
            before.split(':').next(),
            now.split(':').next(),
            "the same index"
        );
        routes();
    }
    let addresses = site
        .run("ip", &["-6", "address", "show", "dev", NAME])
        .unwrap();
    assert!(!addresses.contains("fe80"), "{addresses}");
}

#[test]
fn a_second_user_is_refused_by_the_name_of_the_first() {
    let Some((lab, site)) = lab("a_second_user_is_refused_by_the_name_of_the_first") else {
        return;
    };
    let first = holder(&site, 2);
    let error = take_over(&site, 2, &[]).unwrap_err().to_string();
    assert!(
        error.contains(&format!("process {} (", first.pid())) && error.contains("--tun"),
        "{error}"
    );
    // In another network namespace it is another interface.
    let elsewhere = lab.namespace("elsewhere").unwrap();
    taken(&elsewhere, 2, &[]);
    first.kill();
    taken(&site, 2, &[]);
}

#[test]
fn an_interface_that_is_not_ours_is_refused_and_left_alone() {
    let Some((_lab, site)) = lab("an_interface_that_is_not_ours_is_refused_and_left_alone") else {
        return;
    };
    let alias = ["link", "set", NAME, "alias", ALIAS];
    let makers: [(&[&str], bool); 4] = [
        (&["link", "add", NAME, "type", "veth"], false),
        // Not even if its alias says that it is.
        (&["link", "add", NAME, "type", "veth"], true),
        (&["tuntap", "add", "dev", NAME, "mode", "tun"], false),
        (&["tuntap", "add", "dev", NAME, "mode", "tap"], true),
    ];
    for (maker, aliased) in makers {
        site.run("ip", maker).unwrap();
        if aliased {
            site.run("ip", &alias).unwrap();
        }
        let before = shown(&site);
        let error = take_over(&site, 1, &[]).unwrap_err();
        assert!(matches!(error, TunError::Foreign(_)), "{maker:?}: {error}");
        assert_eq!(shown(&site), before, "{maker:?}");
        site.run("ip", &["link", "delete", NAME]).unwrap();
    }
}

#[test]
fn an_interface_made_for_one_queue_is_taken_over_with_one() {
    let Some((_lab, site)) = lab("an_interface_made_for_one_queue_is_taken_over_with_one") else {
        return;
    };
    drop(taken(&site, 4, &[Offload::MultiQueue]));
    assert!(!shown(&site).contains("multi_queue"));
    assert_eq!(taken(&site, 4, &[]).queues.len(), 1);
    site.run("ip", &["link", "delete", NAME]).unwrap();
    drop(taken(&site, 4, &[]));
    let single = taken(&site, 4, &[Offload::MultiQueue]);
    assert_eq!(single.queues.len(), 1);
}

#[test]
fn the_holder_makes_a_deleted_interface_again_under_its_lock() {
    let Some((_lab, site)) = lab("the_holder_makes_a_deleted_interface_again_under_its_lock")
    else {
        return;
    };
    let tun = taken(&site, 2, &[]);
    site.run("ip", &["link", "delete", NAME]).unwrap();
    let lock = tun.lock.clone().unwrap();
    let again = site
        .within(|| Tun::take_over_under(lock, 2, &[]))
        .unwrap()
        .unwrap();
    assert_eq!(again.queues.len(), 2);
    drop(tun);
    let error = take_over(&site, 2, &[]).unwrap_err();
    assert!(matches!(error, TunError::Held { .. }), "{error}");
}

#[test]
fn sockets_are_bound_to_the_one_address_asked_for() {
    let Some((_lab, site)) = lab("sockets_are_bound_to_the_one_address_asked_for") else {
        return;
    };
    site.address("lo", "10.1.2.3/32").unwrap();
    site.address("lo", "fd00:1::3/128").unwrap();
    let bind = |listen: &str| {
        let listen = listen.parse().unwrap();
        site.within(|| SocketGroup::bind_to(listen, 2, 0, PathMtu::Probe, &[]))
            .unwrap()
    };
    let sockets = || site.run("ss", &["-lunH"]).unwrap();
    for listen in ["10.1.2.3:51820", "[fd00:1::3]:51820", "0.0.0.0:51820"] {
        let group = bind(listen).unwrap();
        assert_eq!((group.port, group.data.len()), (51820, 2));
        assert_eq!(sockets().matches(&format!(" {listen} ")).count(), 3);
        let error = bind(listen).unwrap_err().to_string();
        assert!(
            error.contains(listen) && error.contains("ss -lunp"),
            "{error}"
        );
    }
    let group = bind("[::]:0").unwrap();
    assert_ne!(group.port, 0);
    let error = bind("10.9.9.9:51820").unwrap_err().to_string();
    assert!(error.contains("no interface has that address"), "{error}");
}
