//! The laboratory of whole meshes itself: a watch that sees nothing proves nothing.

#![cfg(test)]
#![forbid(unsafe_code)]

use tests::lab::skip;
use tests::mesh::{Mesh, Nat, Plan};

#[test]
fn the_watch_sees_packets_in_clear() {
    if skip("the_watch_sees_packets_in_clear", &["nft"]) {
        return;
    }
    let mesh = Mesh::at_rest(
        "watch",
        &[
            Plan::OPEN,
            Plan {
                gateways: 1,
                nat: Nat::Cone,
            },
        ],
    )
    .unwrap();
    mesh.watch.assert_clean();
    for site in [0, 1] {
        let gateway = &mesh.sites[site].gateways[0].namespace;
        let before = mesh.watch.count().unwrap();
        let _ = gateway.ping("10.9.0.1".parse().unwrap());
        assert!(mesh.watch.count().unwrap() > before, "site {site}");
    }
}
