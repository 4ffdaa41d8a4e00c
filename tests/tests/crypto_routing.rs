//! Which peer may send from which address (netns.sh 14 to 17).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::lab::wait_for;
use tests::shown::{allowed_ips, endpoint};
use tests::stream::{Flow, Pace};
use tests::subject::missing;
use tests::tunnel::{FAR_V4, FAR_V6, HANDSHAKE, Tunnel};
use tests::wireguard::Keys;

/// A few datagrams one way; how many came.
fn delivered(tunnel: &Tunnel, to: IpAddr) -> usize {
    let flow = Flow {
        from: tunnel.left(),
        to: tunnel.right(),
        address: to,
    };
    let pace = Pace {
        datagrams: 5,
        size: 64,
        interval: Duration::from_millis(20),
    };
    flow.udp(pace).unwrap().numbers.len()
}

/// netns.sh 14 to 17, for one family.
fn the_more_specific_peer_owns_the_source(tag: &str, wide: &str, narrow: &str, to: IpAddr) {
    let tunnel = Tunnel::new(tag).unwrap();
    tunnel.wait().unwrap();
    let near = &tunnel.near.keys().public;
    let other = Keys::generate(tunnel.right()).unwrap().public;
    tunnel
        .far
        .set(&["peer", near, "allowed-ips", wide])
        .unwrap();
    assert_eq!(
        delivered(&tunnel, to),
        5,
        "the wide prefix holds the source"
    );

    tunnel
        .far
        .set(&["peer", &other, "allowed-ips", narrow])
        .unwrap();
    tunnel.near.set(&["listen-port", "9997"]).unwrap();
    assert_eq!(
        delivered(&tunnel, to),
        0,
        "the source belongs to another peer"
    );
    // It was opened under its session, so it is known where the peer is.
    let moved = SocketAddr::new(tunnel.plan.near_outer().ip(), 9997);
    wait_for("the rejected peer's endpoint moves", HANDSHAKE, || {
        endpoint(&tunnel.far, near).unwrap() == Some(moved)
    })
    .unwrap();

    tunnel.far.set(&["peer", &other, "remove"]).unwrap();
    assert_eq!(
        delivered(&tunnel, to),
        5,
        "the wide prefix holds the source again"
    );
}

#[test]
fn a_source_belongs_to_the_peer_with_the_longest_prefix_ipv4() {
    if missing(&[]) {
        return;
    }
    the_more_specific_peer_owns_the_source("own4", "10.9.0.0/24", "10.9.0.1/32", FAR_V4);
}

#[test]
fn a_source_belongs_to_the_peer_with_the_longest_prefix_ipv6() {
    if missing(&[]) {
        return;
    }
    the_more_specific_peer_owns_the_source("own6", "fd09::/64", "fd09::1/128", FAR_V6);
}

/// A source that no peer may use is dropped as well.
#[test]
fn a_source_outside_all_prefixes_is_dropped() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("nobody").unwrap();
    tunnel.wait().unwrap();
    let near = &tunnel.near.keys().public;
    tunnel
        .far
        .set(&["peer", near, "allowed-ips", "10.50.0.0/16"])
        .unwrap();
    assert_eq!(delivered(&tunnel, FAR_V4), 0);
    tunnel
        .far
        .set(&["peer", near, "allowed-ips", "0.0.0.0/0"])
        .unwrap();
    assert_eq!(delivered(&tunnel, FAR_V4), 5);
}

/// A prefix is one peer's: who gets it takes it from the other, and both keep the rest.
#[test]
fn a_prefix_moves_to_the_peer_that_is_given_it() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("moves").unwrap();
    tunnel.wait().unwrap();
    let near = &tunnel.near.keys().public;
    let other = Keys::generate(tunnel.right()).unwrap().public;
    tunnel
        .far
        .set(&["peer", near, "allowed-ips", "10.9.0.1/32,10.60.0.0/16"])
        .unwrap();
    // Host bits are masked away before prefixes are compared.
    tunnel
        .far
        .set(&["peer", &other, "allowed-ips", "10.60.7.7/16"])
        .unwrap();
    assert_eq!(allowed_ips(&tunnel.far, near).unwrap(), ["10.9.0.1/32"]);
    assert_eq!(allowed_ips(&tunnel.far, &other).unwrap(), ["10.60.0.0/16"]);
    assert_eq!(delivered(&tunnel, FAR_V4), 5, "the rest is where it was");
}
