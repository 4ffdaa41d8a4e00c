//! Many sites that watch: every change reaches all, also after the broker was killed. With a
//! thousand of them, and with figures, this is `bench -- broker`.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use tests::broker::crowd::{Crowd, prepare};
use tests::broker::{Mesh, look};

const SITES: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);
const REACHED_WITHIN: Duration = Duration::from_secs(2);
const RECONNECTED_WITHIN: Duration = Duration::from_secs(30);
/// KiB.
const MEMORY: u64 = 256 * 1024;

#[test]
fn a_change_reaches_a_hundred_sites_and_all_of_them_come_back_after_a_crash() {
    let mut mesh = Mesh::at_rest("watch").unwrap();
    let (authority, tickets) = prepare(&mesh, SITES).unwrap();
    mesh.brokers[0].start().unwrap();
    let mut crowd = Crowd::start(&mesh, &authority, tickets).unwrap();
    crowd.wait_until_all_know_all(LIMIT).unwrap();
    for publisher in [0, SITES / 2, SITES - 1] {
        let times = crowd.spread(publisher, LIMIT).unwrap();
        let slowest = times.iter().max().unwrap();
        assert_eq!(times.len(), SITES - 1);
        assert!(*slowest <= REACHED_WITHIN, "{slowest:?}");
    }
    mesh.brokers[0].kill();
    crowd.wait_until_all_are_lost(LIMIT).unwrap();
    mesh.brokers[0].start_without_waiting().unwrap();
    let took = crowd.wait_until_all_know_all(LIMIT).unwrap();
    assert!(took <= RECONNECTED_WITHIN, "{took:?}");
    let times = crowd.spread(1, LIMIT).unwrap();
    assert_eq!(times.len(), SITES - 1);
    // Once more, from nothing.
    crowd.forget(LIMIT).unwrap();
    mesh.brokers[0].kill();
    crowd.wait_until_all_are_lost(LIMIT).unwrap();
    mesh.brokers[0].start_without_waiting().unwrap();
    let took = crowd.wait_until_all_know_all(LIMIT).unwrap();
    assert!(took <= RECONNECTED_WITHIN, "{took:?}");
    let pid = mesh.brokers[0].process().pid();
    assert!(look::peak_resident(pid).unwrap() < MEMORY);
}
