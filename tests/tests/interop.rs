//! With every other WireGuard at hand, as the one that begins and as the one that answers. What takes
//! minutes is in `ages.rs`.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use tests::capture::Capture;
use tests::echo::Echo;
use tests::lab::wait_for;
use tests::rival::Rival;
use tests::shown::{endpoint, latest_handshake, transfer};
use tests::stream::Pace;
use tests::subject::{missing, subject};
use tests::tunnel::{
    FAR_PORT, FAR_V4, FAR_V6, HANDSHAKE, NEAR_PORT, NEAR_V4, NEAR_V6, Outer, Plan, Tunnel,
};
use tests::wireguard::{Device, MTU, Program};

/// Who begins; only that end knows where the other is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    Subject,
    Rival,
}

/// The near end begins. `None` when the rival is not here and may be missing.
fn plan(rival: Rival, begins: Begins, outer: Outer) -> Option<Plan> {
    if missing(&[]) {
        return None;
    }
    let other = rival.find()?;
    let own = Program::find(subject()).unwrap();
    let (near, far) = match begins {
        Begins::Subject => (own, other),
        Begins::Rival => (other, own),
    };
    Some(Plan {
        outer,
        preshared_key: true,
        far_knows: false,
        ..Plan::between(near, far)
    })
}

fn build(rival: Rival, begins: Begins, outer: Outer) -> Option<Tunnel> {
    Some(Tunnel::build("interop", plan(rival, begins, outer)?).unwrap())
}

/// All kinds of traffic, both ways.
fn traffic(rival: Rival, begins: Begins, outer: Outer) {
    let Some(tunnel) = build(rival, begins, outer) else {
        return;
    };
    tunnel.wait().unwrap();
    let ways = [
        (tunnel.left(), FAR_V4),
        (tunnel.left(), FAR_V6),
        (tunnel.right(), NEAR_V4),
        (tunnel.right(), NEAR_V6),
    ];
    // Where both ends began a handshake, a rival may forget the session that we still send under.
    for (from, to) in ways {
        Echo::to(to).until_reply(from, HANDSHAKE).unwrap();
    }
    for (from, to) in ways {
        Echo::to(to).flood(from, 10).unwrap();
        Echo::to(to).payload(3000).flood(from, 3).unwrap();
    }
    for family in [Outer::V4, Outer::V6] {
        for flow in [tunnel.outbound(family), tunnel.inbound(family)] {
            flow.tcp(10 << 20).unwrap();
            let pace = Pace {
                datagrams: 200,
                size: 1000,
                interval: Duration::from_millis(1),
            };
            let arrivals = flow.udp(pace).unwrap();
            assert_eq!((arrivals.damaged, arrivals.lost()), (0, 0));
        }
    }
    for (device, other) in [(&tunnel.near, &tunnel.far), (&tunnel.far, &tunnel.near)] {
        assert!(latest_handshake(device, &other.keys().public).unwrap() > 0);
        assert!(transfer(device, &other.keys().public).unwrap().received > 0);
    }
}

/// Moves the near end in mid-flow, twice, and expects the far end to follow.
fn roams(rival: Rival, begins: Begins) {
    let Some(tunnel) = build(rival, begins, Outer::V4) else {
        return;
    };
    tunnel.wait().unwrap();
    let keeps_address = begins == Begins::Rival && !rival.changes_address();
    let places = if keeps_address {
        ["192.0.2.1:9997", "192.0.2.1:9998"]
    } else {
        ["192.0.2.77:51821", "192.0.2.1:51821"]
    };
    for place in places {
        let place: SocketAddr = place.parse().unwrap();
        if keeps_address {
            let port = place.port().to_string();
            tunnel.near.set(&["listen-port", &port]).unwrap();
        } else {
            tunnel
                .left()
                .run("ip", &["-4", "address", "flush", "dev", "eth0"])
                .unwrap();
            tunnel
                .left()
                .address("eth0", &format!("{}/24", place.ip()))
                .unwrap();
        }
        Echo::to(FAR_V4)
            .until_reply(tunnel.left(), HANDSHAKE)
            .unwrap();
        Echo::to(NEAR_V6).flood(tunnel.right(), 3).unwrap();
        let learned = endpoint(&tunnel.far, &tunnel.near.keys().public).unwrap();
        assert_eq!(learned, Some(place));
    }
}

/// The preshared key of the tunnel, from one end's own words.
fn preshared_key(device: &Device) -> String {
    let shown = device.show("preshared-keys").unwrap();
    shown.split_whitespace().last().unwrap().to_owned()
}

/// Kills one end and starts it anew with the same keys.
fn restarted(tunnel: Tunnel, near: bool) -> Tunnel {
    let Tunnel {
        near: first,
        far: second,
        plan,
        lab,
    } = tunnel;
    let (old, kept) = if near {
        (&first, &second)
    } else {
        (&second, &first)
    };
    let preshared = preshared_key(old);
    let (program, port, host) = if near {
        (&plan.near, NEAR_PORT, 1)
    } else {
        (&plan.far, FAR_PORT, 2)
    };
    old.process().kill();
    let _ = std::fs::remove_file(old.socket());
    let fresh = Device::launch(old.namespace(), program, port, old.keys().clone()).unwrap();
    let other = 3 - host;
    let endpoint = if near {
        format!("Endpoint = {}\n", plan.far_outer())
    } else {
        String::new()
    };
    fresh
        .configure(&format!(
            "[Peer]\nPublicKey = {}\nPresharedKey = {preshared}\n\
             AllowedIPs = 10.9.0.{other}/32, fd09::{other}/128\n{endpoint}",
            kept.keys().public
        ))
        .unwrap();
    fresh.up(MTU).unwrap();
    fresh.address(&format!("10.9.0.{host}/24")).unwrap();
    fresh.address(&format!("fd09::{host}/64")).unwrap();
    let (near, far) = if near {
        (fresh, second)
    } else {
        (first, fresh)
    };
    Tunnel {
        near,
        far,
        plan,
        lab,
    }
}

/// Each end is killed and started again; the tunnel comes back by itself.
fn survives_restarts(rival: Rival, begins: Begins) {
    let Some(tunnel) = build(rival, begins, Outer::V6) else {
        return;
    };
    tunnel.wait().unwrap();
    // The one that begins is back at once: its first packet is a handshake.
    let tunnel = restarted(tunnel, true);
    tunnel.wait().unwrap();
    Echo::to(NEAR_V6).flood(tunnel.right(), 3).unwrap();
    // The one that answers has forgotten the session; the other notices that nothing comes back,
    // which WireGuard does after fifteen seconds.
    let tunnel = restarted(tunnel, false);
    Echo::to(FAR_V4)
        .until_reply(tunnel.left(), Duration::from_secs(45))
        .unwrap();
    Echo::to(NEAR_V6).flood(tunnel.right(), 3).unwrap();
}

/// Persistent keepalives of the near end reach the far end, and count there.
fn keeps_alive(rival: Rival, begins: Begins) {
    let Some(mut plan) = plan(rival, begins, Outer::V4) else {
        return;
    };
    plan.persistent_keepalive = Some(1);
    let tunnel = Tunnel::build("alive", plan).unwrap();
    let near = &tunnel.near.keys().public;
    // Nothing else is sent: the keepalive also brings the tunnel up.
    wait_for("a handshake by a keepalive", HANDSHAKE, || {
        latest_handshake(&tunnel.far, near).unwrap() > 0
    })
    .unwrap();
    // Not all count the bytes of a keepalive, so they are looked for on the wire.
    let seen = Capture::start(tunnel.right(), "eth0", |packet| {
        let length = packet.datagram().map(|datagram| datagram.payload.len());
        !packet.outgoing && length == Some(32)
    })
    .unwrap();
    wait_for("three keepalives", HANDSHAKE, || seen.count() >= 3).unwrap();
    Echo::to(NEAR_V4).flood(tunnel.right(), 3).unwrap();
}

/// The preshared key changes while traffic passes. Of 200 datagrams each way, 10 ms apart, `limit` may
/// be lost: none, unless the rival takes a changed peer away and adds it anew.
fn changes_the_preshared_key(rival: Rival, limit: u64) {
    assert!(rival.changes_peers(), "{rival:?} cannot");
    let Some(tunnel) = build(rival, Begins::Subject, Outer::V4) else {
        return;
    };
    tunnel.wait().unwrap();
    let pace = Pace {
        datagrams: 200,
        size: 200,
        interval: Duration::from_millis(10),
    };
    let (outbound, inbound) = std::thread::scope(|scope| {
        let outbound = scope.spawn(|| tunnel.outbound(Outer::V4).udp(pace).unwrap());
        let inbound = scope.spawn(|| tunnel.inbound(Outer::V6).udp(pace).unwrap());
        std::thread::sleep(Duration::from_millis(700));
        tunnel.change_preshared_key().unwrap();
        (outbound.join().unwrap(), inbound.join().unwrap())
    });
    let lost = [outbound.lost(), inbound.lost()];
    assert!(lost.iter().all(|lost| *lost <= limit), "{lost:?} lost");
}

/// The tests of one rival.
macro_rules! with {
    ($module:ident, $rival:expr) => {
        mod $module {
            use super::*;

            #[test]
            fn all_traffic_passes_when_causeway_begins() {
                traffic($rival, Begins::Subject, Outer::V4);
            }

            #[test]
            fn all_traffic_passes_when_causeway_answers() {
                traffic($rival, Begins::Rival, Outer::V6);
            }

            #[test]
            fn it_follows_causeway_to_another_address() {
                roams($rival, Begins::Subject);
            }

            #[test]
            fn causeway_follows_it_to_another_address() {
                roams($rival, Begins::Rival);
            }

            #[test]
            fn either_may_restart_when_causeway_begins() {
                survives_restarts($rival, Begins::Subject);
            }

            #[test]
            fn either_may_restart_when_causeway_answers() {
                survives_restarts($rival, Begins::Rival);
            }

            #[test]
            fn it_hears_the_keepalives_of_causeway() {
                keeps_alive($rival, Begins::Subject);
            }

            #[test]
            fn causeway_hears_its_keepalives() {
                keeps_alive($rival, Begins::Rival);
            }
        }
    };
}

with!(wireguard_go, Rival::WireguardGo);
with!(old_wireguard_go, Rival::OldWireguardGo);
with!(boringtun_cli, Rival::BoringtunCli);
with!(gotatun, Rival::Gotatun);

#[test]
fn the_preshared_key_changes_without_loss_with_wireguard_go() {
    changes_the_preshared_key(Rival::WireguardGo, 0);
}

#[test]
fn the_preshared_key_changes_without_loss_with_old_wireguard_go() {
    changes_the_preshared_key(Rival::OldWireguardGo, 0);
}

#[test]
fn the_preshared_key_changes_without_a_long_gap_with_gotatun() {
    changes_the_preshared_key(Rival::Gotatun, 50);
}
