//! The outer sockets of a mesh on paths that carry less than the kernel was told, or less than was sent.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use gateway::data::link::Endpoint;
use gateway::data::outbox::Outbox;
use gateway::drops::{DropReason, Drops};
use gateway::io::boottime;
use gateway::io::udp::{Mark, PathMtu, SocketGroup};
use tests::capture::Capture;
use tests::lab::{Lab, Namespace, skip, wait_for};

const PORT: u16 = 51820;
/// As large as datagrams get on an Ethernet of IPv6.
const FULL: usize = 1452;
const WHILE: Duration = Duration::from_secs(5);

/// near - router - far, in both families.
struct Path {
    near: Namespace,
    router: Namespace,
    far: Namespace,
    _lab: Lab,
}

const FAR: [&str; 2] = ["10.2.0.2", "fd00:2::2"];

fn path(test: &str) -> Option<Path> {
    if skip(test, &["ping"]) {
        return None;
    }
    let lab = Lab::new("outer").unwrap();
    let [near, router, far] = ["near", "router", "far"].map(|name| lab.namespace(name).unwrap());
    lab.veth(&near, "eth0", &router, "near").unwrap();
    lab.veth(&router, "far", &far, "eth0").unwrap();
    for (side, at, number) in [(&near, "near", 1), (&far, "far", 2)] {
        for (net, via, length) in [("10.", "0.", "24"), ("fd00:", "::", "64")] {
            let separator = if net == "10." { "." } else { "" };
            let prefix = format!("{net}{number}{separator}{via}");
            router.address(at, &format!("{prefix}1/{length}")).unwrap();
            side.address("eth0", &format!("{prefix}2/{length}"))
                .unwrap();
            let gate = format!("{prefix}1");
            side.run("ip", &["route", "add", "default", "via", &gate])
                .unwrap();
        }
    }
    router.forward().unwrap();
    for far in FAR {
        near.wait_for_ping(far.parse().unwrap(), WHILE).unwrap();
    }
    Some(Path {
        near,
        router,
        far,
        _lab: lab,
    })
}

/// What sends from the near end, as a data thread does.
struct Sender {
    group: SocketGroup,
    outbox: Outbox,
    drops: Drops,
}

impl Sender {
    fn new(path: &Path) -> Sender {
        let listen = SocketAddr::new("::".parse().unwrap(), PORT);
        let bind = || SocketGroup::bind_to(listen, 1, 0, PathMtu::Probe, &[]);
        Sender {
            group: path.near.within(bind).unwrap().unwrap(),
            outbox: Outbox::new(true),
            drops: Drops::default(),
        }
    }

    fn put(&mut self, to: SocketAddr, count: usize, size: usize) {
        let to = Endpoint {
            remote: to,
            local: None,
        };
        for _ in 0..count {
            self.outbox.reserve(size).unwrap().fill(7);
            self.outbox.commit(&to, Mark::default(), size);
        }
    }

    fn flush(&mut self) {
        let socket = Some(&self.group.data[0]);
        self.outbox.flush(socket, boottime(), &self.drops);
        assert_eq!(self.outbox.waiting(), 0);
    }

    fn lost(&self) -> u64 {
        self.drops.get(DropReason::SendFailed)
    }
}

fn receiver(path: &Path, family: usize) -> (UdpSocket, SocketAddr) {
    let address = SocketAddr::new(FAR[family].parse().unwrap(), PORT);
    let socket = path
        .far
        .within(|| UdpSocket::bind(address))
        .unwrap()
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    (socket, address)
}

/// Sizes of everything that comes until nothing does.
fn received(socket: &UdpSocket) -> Vec<usize> {
    let mut buffer = [0; 2000];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).collect()
}

/// The largest packet that left, as the kernel handed it to the wire: one of many datagrams shows
/// that they were sent by one call.
fn trains(path: &Path) -> Capture {
    Capture::start(&path.near, "eth0", |packet| {
        packet.outgoing && packet.bytes.len() > 10_000
    })
    .unwrap()
}

#[test]
fn a_path_mtu_that_the_kernel_remembers_low_costs_neither_datagrams_nor_offloads() {
    let Some(path) = path("a_path_mtu_that_the_kernel_remembers_low") else {
        return;
    };
    let mut sender = Sender::new(&path);
    path.router
        .run("ip", &["link", "set", "far", "mtu", "1280"])
        .unwrap();
    for (family, far) in FAR.into_iter().enumerate() {
        let (socket, address) = receiver(&path, family);
        // Somebody else's large packet draws a true ICMP error; a forged one does no more.
        let remembers = || {
            let ping = format!("ping -c1 -W1 -M do -s 1400 {far} || true");
            path.near.sh(&ping).unwrap();
            let route = path.near.run("ip", &["route", "get", far]).unwrap();
            route.contains("mtu 1280")
        };
        wait_for("the low path MTU", WHILE, remembers).unwrap();
        path.router
            .run("ip", &["link", "set", "far", "mtu", "1500"])
            .unwrap();
        let wire = trains(&path);
        for _ in 0..3 {
            sender.put(address, 20, FULL);
            sender.flush();
        }
        assert_eq!(received(&socket), [FULL; 60], "{far}");
        wait_for("trains", WHILE, || wire.count() >= 3).unwrap();
        assert_eq!(sender.lost(), 0);
        path.router
            .run("ip", &["link", "set", "far", "mtu", "1280"])
            .unwrap();
    }
}

#[test]
fn a_probe_above_the_local_interface_is_lost_alone() {
    let Some(path) = path("a_probe_above_the_local_interface_is_lost_alone") else {
        return;
    };
    path.near
        .run("ip", &["link", "set", "eth0", "mtu", "1400"])
        .unwrap();
    let mut sender = Sender::new(&path);
    for family in 0..FAR.len() {
        let (socket, address) = receiver(&path, family);
        let lost = sender.lost();
        let wire = trains(&path);
        // Between two trains, in one of its own and as the head of what follows.
        for apart in [true, false] {
            sender.put(address, 20, 1300);
            if apart {
                sender.outbox.close();
            }
            sender.put(address, 1, FULL);
            if apart {
                sender.outbox.close();
            }
            sender.put(address, 20, 1300);
            sender.flush();
            assert_eq!(received(&socket), [1300; 40], "apart: {apart}");
        }
        assert_eq!(sender.lost(), lost + 2);
        wait_for("trains", WHILE, || wire.count() >= 4).unwrap();
    }
}

#[test]
fn a_train_of_what_no_longer_fits_is_lost_and_the_next_smaller_one_leaves_whole() {
    let Some(path) = path("a_train_of_what_no_longer_fits_is_lost") else {
        return;
    };
    let mut sender = Sender::new(&path);
    let (socket, address) = receiver(&path, 0);
    path.near
        .run("ip", &["link", "set", "eth0", "mtu", "1400"])
        .unwrap();
    let wire = trains(&path);
    sender.put(address, 20, FULL);
    sender.put(address, 20, 1300);
    sender.flush();
    assert_eq!(received(&socket), [1300; 20]);
    assert_eq!(sender.lost(), 20);
    wait_for("a train", WHILE, || wire.count() == 1).unwrap();
}
