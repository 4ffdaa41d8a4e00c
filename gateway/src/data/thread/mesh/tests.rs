//! One gateway with two threads between a sibling and two remote gateways, without a network:
//! datagrams are given to the threads and taken from them, a socket stands in for each TUN queue.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use ip_network::IpNetwork;

use crate::data::link::wire::*;
use crate::data::link::{LinkShared, LinkSpec, Rules};
use crate::data::mailbox::{Command, ControlInbox, FRAMES, HANDSHAKE_LEN, Handshake, Mailbox};
use crate::data::outbox::Datagram;
use crate::data::snapshot::{Carried, Choice, LinkPlace, Mesh, Owner, OwnerId, Sender, Snapshot};
use crate::data::thread::{DataThread, Offloads, Shared};
use crate::drops::{DropReason, Drops};
use crate::io::tun::TunQueue;
use crate::io::udp::{Received, UdpSocket};
use crate::packet::reference::{Flow, Packet};
use crate::packet::vnet::VnetHeader;

/// Hosts of the sites, as the last byte of their addresses.
const OURS: u8 = 0x11;
const NEARS: u8 = 0x21;
const FARS: u8 = 0x31;
const NOBODYS: u8 = 0x91;
const PROBE: [u8; 4] = [198, 18, 0, 1];

/// Keys, places and ports of those who send to us.
const US: u8 = 9;
const SIBLING: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
const PLACES: [LinkPlace; 3] = [
    LinkPlace { thread: 0, slot: 0 },
    LinkPlace { thread: 0, slot: 1 },
    LinkPlace { thread: 1, slot: 0 },
];
const NEAR_SITE: OwnerId = OwnerId(0);
const FAR_SITE: OwnerId = OwnerId(1);

struct Gateway {
    threads: Vec<DataThread>,
    taps: Vec<UnixDatagram>,
    others: Vec<Side>,
    links: Vec<Arc<LinkShared>>,
    shared: Shared,
    drops: Arc<Drops>,
}

fn tun() -> (TunQueue, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (TunQueue::stand_in(near.into()), far)
}

fn by(place: LinkPlace) -> Carried {
    Carried::By(Box::new([Choice { seed: 1, place }]))
}

fn mesh(near: Carried, far: Carried) -> Snapshot {
    let prefix = |text: &str| -> IpNetwork { text.parse().unwrap() };
    Snapshot::mesh(Mesh {
        prefixes: vec![
            (prefix("10.0.0.32/28"), NEAR_SITE),
            (prefix("fd00::20/124"), NEAR_SITE),
            (prefix("10.0.0.48/28"), FAR_SITE),
            (prefix("fd00::30/124"), FAR_SITE),
        ],
        owners: vec![Owner { carried: near }, Owner { carried: far }],
        senders: vec![
            (PLACES[SIBLING], Sender::Sibling),
            (PLACES[NEAR], Sender::Site(NEAR_SITE)),
            (PLACES[FAR], Sender::Site(FAR_SITE)),
        ],
        own: vec![prefix("10.0.0.16/28"), prefix("fd00::10/124")],
        probes: vec![PROBE.into()],
        own_port: None,
    })
}

/// A packet between these hosts with so many bytes behind its headers.
fn packet(flow: Flow, way: [u8; 2], len: usize) -> Packet {
    Packet {
        flow: Flow {
            source: way[0],
            destination: way[1],
            ..flow
        },
        payload: vec![7; len],
        ..Packet::default()
    }
}

fn udp(way: [u8; 2]) -> Vec<u8> {
    packet(Flow::v4_udp(), way, 100).bytes()
}

/// The same as the kernel is given it, who sums it up if it leaves again.
fn unfinished(way: [u8; 2]) -> Vec<u8> {
    packet(Flow::v4_udp(), way, 100).bytes_with_partial_sum()
}

fn link_local(bytes: [u8; 2], at: usize) -> Vec<u8> {
    let mut packet = packet(Flow::v6_udp(), [NEARS, OURS], 64).bytes();
    packet[at..at + 2].copy_from_slice(&bytes);
    packet
}

impl Gateway {
    /// Every link has a session, and both sites are reached by their own.
    fn new() -> Gateway {
        let both = mesh(by(PLACES[NEAR]), by(PLACES[FAR]));
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(both)),
            mailboxes: (0..2).map(|_| Mailbox::new().unwrap()).collect(),
            control: Arc::new(ControlInbox::for_mesh().unwrap()),
        };
        let drops = Arc::new(Drops::default());
        let offloads = Offloads {
            tcp: true,
            udp: true,
            segment: true,
        };
        let (mut threads, mut taps) = (Vec::new(), Vec::new());
        for id in 0..2 {
            let (queue, tap) = tun();
            let thread = DataThread::new(id, queue, shared.clone(), offloads, drops.clone());
            let mut thread = thread.unwrap();
            thread.socket = Some(UdpSocket::unbound().unwrap());
            threads.push(thread);
            taps.push(tap);
        }
        let mut gateway = Gateway {
            threads,
            taps,
            links: (0..3).map(|_| Arc::default()).collect(),
            others: (1..=3).map(|key| Side::in_mesh(key, US)).collect(),
            shared,
            drops,
        };
        (0..3).for_each(|other| gateway.connect(other));
        gateway
    }

    fn connect(&mut self, other: usize) {
        let place = PLACES[other];
        let side = &mut self.others[other];
        let thread = &mut self.threads[place.thread as usize];
        let spec = LinkSpec {
            shared: self.links[other].clone(),
            private_key: secret(US),
            peer_key: side.public,
            preshared_key: None,
            limiter: limiter(US),
            remote: Some(side.at.remote),
            keepalive: 0,
            rules: Rules::Mesh,
        };
        let slot = place.slot;
        self.shared.mailboxes[place.thread as usize].command(Command::AddLink {
            slot,
            spec: Box::new(spec),
        });
        thread.obey();
        let now = thread.now;
        side.act(now, |link, work| {
            link.initiate_at(&[at(US.into()).remote], work)
        });
        let initiation = side.sent().remove(0);
        let mut datagram = [0; HANDSHAKE_LEN];
        datagram.copy_from_slice(&initiation.bytes);
        thread.handshake(&Handshake {
            slot: Some(slot),
            from: side.at,
            len: HANDSHAKE_LEN,
            datagram,
        });
        let answer = thread.outbox.take().remove(0);
        side.hear(&answer.bytes, at(US.into()), now).unwrap();
        let proof = side.sent();
        self.receive(other, &proof);
        while self.shared.control.pop_news().is_some() {}
    }

    /// What one of the others sends, opened and brought on its way.
    fn come(&mut self, other: usize, packets: &[Vec<u8>]) {
        let thread = &self.threads[PLACES[other].thread as usize];
        let now = thread.now;
        for packet in packets {
            self.others[other].send(packet, now);
        }
        let sent = self.others[other].sent();
        self.receive(other, &sent);
    }

    fn receive(&mut self, other: usize, datagrams: &[Datagram]) {
        let from = self.others[other].at.remote;
        let thread = &mut self.threads[PLACES[other].thread as usize];
        for datagram in datagrams {
            let received = Received {
                from,
                local: None,
                ecn: 0,
                len: datagram.bytes.len(),
                segment: datagram.bytes.len(),
            };
            thread.open_run(&received, &datagram.bytes);
        }
        thread.deliver();
    }

    /// What leaves for one of the others, as it opens it.
    fn leaves(&mut self, other: usize) -> Vec<Vec<u8>> {
        let thread = &mut self.threads[PLACES[other].thread as usize];
        let now = thread.now;
        let to = self.others[other].at.remote;
        let sent = thread.outbox.take();
        assert!(sent.iter().all(|one| one.to.remote == to), "for another");
        for datagram in sent {
            let from = at(US.into());
            self.others[other].hear(&datagram.bytes, from, now).unwrap();
        }
        std::mem::take(&mut self.others[other].opened)
    }

    /// Frames that reached the kernel.
    fn written(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        for tap in &self.taps {
            while let Ok(len) = tap.recv(&mut buffer) {
                frames.push(buffer[VnetHeader::LEN..len].to_vec());
            }
        }
        frames
    }

    /// The kernel gives thread 0 a packet.
    fn read(&mut self, packet: &[u8]) {
        let frame = [&VnetHeader::default().write()[..], packet].concat();
        self.taps[0].send(&frame).unwrap();
        self.threads[0].read_tun(false);
    }

    fn set(&self, snapshot: Snapshot) {
        self.shared.snapshot.store(Arc::new(snapshot));
    }

    #[track_caller]
    fn assert_nothing_leaves(&mut self) {
        assert!(self.written().is_empty(), "the kernel got it");
        for thread in &mut self.threads {
            assert!(thread.outbox.take().is_empty(), "it was sealed");
        }
        assert!(
            self.shared
                .mailboxes
                .iter()
                .all(|one| one.frames.is_empty())
        );
    }
}

// ---- from a sibling -----------------------------------------------------------------------------

#[test]
fn what_a_sibling_sends_for_another_site_goes_to_its_gateway_and_not_to_the_kernel() {
    let mut gateway = Gateway::new();
    for flow in Flow::ALL {
        let sent = packet(flow, [OURS, NEARS], 100).bytes();
        gateway.come(SIBLING, std::slice::from_ref(&sent));
        assert_eq!(gateway.leaves(NEAR), [sent]);
    }
    assert!(gateway.written().is_empty());
}

#[test]
fn the_thread_of_the_gateways_link_gets_it_through_its_mailbox() {
    let mut gateway = Gateway::new();
    let sent = udp([OURS, FARS]);
    gateway.come(SIBLING, std::slice::from_ref(&sent));
    gateway.threads[1].take_handed_over();
    assert_eq!(gateway.leaves(FAR), [sent]);
    gateway.assert_nothing_leaves();
}

#[test]
fn a_siblings_stream_goes_on_in_superpackets_and_comes_out_as_it_was() {
    let mut gateway = Gateway::new();
    for flow in Flow::ALL {
        let stream = packet(flow, [OURS, FARS], 1000 * 20);
        let sent: Vec<Vec<u8>> = stream.segments(1000).iter().map(Packet::bytes).collect();
        assert_eq!(sent.len(), 20);
        gateway.come(SIBLING, &sent);
        assert_eq!(gateway.shared.mailboxes[1].frames.len(), 1, "{flow:?}");
        gateway.threads[1].take_handed_over();
        assert_eq!(gateway.leaves(FAR), sent);
    }
}

#[test]
fn more_than_another_thread_has_room_for_is_lost_and_counted() {
    let mut gateway = Gateway::new();
    for number in 0..FRAMES as u16 + 5 {
        let mut sent = packet(Flow::v4_udp(), [OURS, FARS], 100);
        sent.flow.ports.0 = number;
        gateway.come(SIBLING, &[sent.bytes()]);
    }
    assert_eq!(gateway.drops.get(DropReason::RingFull), 5);
    assert_eq!(gateway.shared.mailboxes[1].frames.len(), FRAMES);
}

#[test]
fn what_a_sibling_may_not_send_goes_nowhere() {
    let mut gateway = Gateway::new();
    for (way, reason) in [
        ([OURS, OURS], DropReason::SiblingDestination),
        ([OURS, NOBODYS], DropReason::SiblingDestination),
        ([NEARS, FARS], DropReason::SiblingSource),
        ([NEARS, OURS], DropReason::SiblingSource),
    ] {
        let before = gateway.drops.get(reason);
        gateway.come(SIBLING, &[udp(way)]);
        assert_eq!(gateway.drops.get(reason), before + 1);
        gateway.assert_nothing_leaves();
    }
    let mut to_control = packet(Flow::v6_udp(), [OURS, NEARS], 64).bytes();
    to_control[24..26].copy_from_slice(&[0xfe, 0x80]);
    gateway.come(SIBLING, &[to_control]);
    assert_eq!(gateway.drops.get(DropReason::SiblingDestination), 3);
    gateway.assert_nothing_leaves();
}

#[test]
fn a_sibling_is_never_given_what_a_sibling_sent() {
    let mut gateway = Gateway::new();
    let only = Choice {
        seed: 1,
        place: PLACES[SIBLING],
    };
    gateway.set(mesh(
        Carried::BySiblings(Box::new([only])),
        Carried::Nobody(DropReason::SiteDown),
    ));
    gateway.come(SIBLING, &[udp([OURS, NEARS]), udp([OURS, FARS])]);
    assert_eq!(gateway.drops.get(DropReason::SiblingSiteLost), 2);
    gateway.assert_nothing_leaves();
    gateway.read(&udp([OURS, NEARS]));
    assert_eq!(gateway.leaves(SIBLING), [udp([OURS, NEARS])], "our own is");
}

// ---- from a remote gateway ------------------------------------------------------------------------

#[test]
fn a_remote_gateway_reaches_our_site_and_nothing_beyond() {
    let mut gateway = Gateway::new();
    gateway.come(NEAR, &[udp([NEARS, OURS])]);
    assert_eq!(gateway.written(), [unfinished([NEARS, OURS])]);
    for (way, reason) in [
        ([FARS, OURS], DropReason::InnerSource),
        ([OURS, OURS], DropReason::InnerSource),
        ([NEARS, FARS], DropReason::InnerDestination),
        ([NEARS, NEARS], DropReason::InnerDestination),
        ([NEARS, NOBODYS], DropReason::InnerDestination),
    ] {
        let before = gateway.drops.get(reason);
        gateway.come(NEAR, &[udp([NEARS, OURS]), udp(way)]);
        assert_eq!(gateway.written(), [unfinished([NEARS, OURS])]);
        assert_eq!(gateway.drops.get(reason), before + 1);
    }
    gateway.assert_nothing_leaves();
}

#[test]
fn what_was_admitted_for_one_link_is_not_for_another() {
    let mut gateway = Gateway::new();
    gateway.come(NEAR, &[udp([NEARS, OURS])]);
    gateway.written();
    gateway.come(SIBLING, &[udp([NEARS, OURS])]);
    assert_eq!(gateway.drops.get(DropReason::SiblingSource), 1);
    gateway.assert_nothing_leaves();
}

#[test]
fn a_link_that_is_not_listed_speaks_with_control_only() {
    let mut gateway = Gateway::new();
    gateway.set(Snapshot::mesh(Mesh::default()));
    gateway.come(NEAR, &[udp([NEARS, OURS]), link_local([0xfe, 0x80], 8)]);
    assert_eq!(gateway.drops.get(DropReason::InnerNotAllowed), 1);
    assert!(gateway.shared.control.pop_packet().is_some());
    gateway.assert_nothing_leaves();
}

#[test]
fn what_is_refused_was_heard_all_the_same() {
    let mut gateway = Gateway::new();
    let before = gateway.links[NEAR].rx_any.load(Ordering::Relaxed);
    gateway.come(NEAR, &[udp([FARS, OURS])]);
    let after = gateway.links[NEAR].rx_any.load(Ordering::Relaxed);
    assert_eq!(after, before + 1);
}

// ---- control --------------------------------------------------------------------------------------

#[test]
fn a_control_packet_reaches_control_with_its_source_and_never_the_kernel() {
    let mut gateway = Gateway::new();
    for other in [SIBLING, NEAR, FAR] {
        for begin in [[0xfe, 0x80], [0xfe, 0xbf]] {
            let sent = link_local(begin, 8);
            gateway.come(other, std::slice::from_ref(&sent));
            let heard = gateway.shared.control.pop_packet().unwrap();
            assert_eq!(*heard.packet, sent);
            assert_eq!(
                (heard.place, heard.from),
                (PLACES[other], gateway.others[other].at)
            );
        }
    }
    gateway.assert_nothing_leaves();
}

#[test]
fn a_flood_of_one_gateway_leaves_control_open_to_the_others() {
    let mut gateway = Gateway::new();
    let one = link_local([0xfe, 0x80], 8);
    for _ in 0..50 {
        gateway.come(NEAR, &vec![one.clone(); 100]);
    }
    gateway.come(FAR, std::slice::from_ref(&one));
    let heard: Vec<LinkPlace> = std::iter::from_fn(|| gateway.shared.control.pop_packet())
        .map(|heard| heard.place)
        .collect();
    assert_eq!(heard.last(), Some(&PLACES[FAR]));
    let lost = gateway.drops.get(DropReason::ControlLimited);
    assert_eq!(heard.len() as u64 - 1 + lost, 5000);
    assert!(lost > 4000);
    assert_eq!(heard.len(), 64 + 1, "what one may say in so little time");
    gateway.threads[0].now += Duration::from_millis(100);
    gateway.come(NEAR, &[one]);
    assert!(gateway.shared.control.pop_packet().is_some(), "later again");
    gateway.assert_nothing_leaves();
}

#[test]
fn control_shaped_packets_of_the_kernel_are_never_sealed() {
    let mut gateway = Gateway::new();
    for (bytes, at) in [([0xfe, 0x80], 8), ([0xfe, 0x80], 24), ([0xfe, 0xbf], 8)] {
        let mut shaped = packet(Flow::v6_udp(), [OURS, NEARS], 64).bytes();
        shaped[at..at + 2].copy_from_slice(&bytes);
        gateway.read(&shaped);
    }
    assert_eq!(gateway.drops.get(DropReason::ControlFromTun), 3);
    gateway.assert_nothing_leaves();
}

#[test]
fn what_a_reflector_says_is_for_control() {
    let mut gateway = Gateway::new();
    let datagram = [0xc1; 60];
    let received = Received {
        from: at(7801).remote,
        local: None,
        ecn: 0,
        len: datagram.len(),
        segment: datagram.len(),
    };
    gateway.threads[0].open_run(&received, &datagram);
    assert_eq!(gateway.drops.get(DropReason::Malformed), 1, "nobody asked");
    gateway.shared.control.handle_question(received.from);
    gateway.threads[0].open_run(&received, &datagram);
    let reflected = gateway.shared.control.pop_reflected().unwrap();
    assert_eq!(
        (&*reflected.datagram, reflected.from),
        (&datagram[..], received.from)
    );
    assert_eq!(gateway.drops.get(DropReason::Malformed), 1);
}

// ---- to the sites ---------------------------------------------------------------------------------

#[test]
fn the_kernels_packets_go_to_the_gateway_of_their_site() {
    let mut gateway = Gateway::new();
    gateway.read(&udp([OURS, NEARS]));
    assert_eq!(gateway.leaves(NEAR), [udp([OURS, NEARS])]);
    gateway.read(&udp([OURS, FARS]));
    gateway.threads[1].take_handed_over();
    assert_eq!(gateway.leaves(FAR), [udp([OURS, FARS])]);
}

#[test]
fn each_flow_keeps_to_one_of_several_gateways() {
    let mut gateway = Gateway::new();
    let choices = [SIBLING, NEAR].map(|other| Choice {
        seed: other as u64,
        place: PLACES[other],
    });
    gateway.set(mesh(
        Carried::By(Box::new(choices)),
        Carried::Nobody(DropReason::SiteDown),
    ));
    let mut used = [0, 0];
    for port in 1..=40 {
        let mut sent = packet(Flow::v4_tcp(), [OURS, NEARS], 10);
        sent.flow.ports.0 = port;
        let to: Vec<u16> = (0..3)
            .map(|_| {
                gateway.read(&sent.bytes());
                gateway.threads[0].outbox.take().remove(0).to.remote.port()
            })
            .collect();
        assert!(to.iter().all(|one| *one == to[0]), "{to:?}");
        used[usize::from(to[0] == 2)] += 1;
    }
    assert!(used.iter().all(|flows| *flows > 5), "{used:?}");
}

#[test]
fn a_site_that_is_down_is_told_as_unreachable() {
    let mut gateway = Gateway::new();
    let down = || Carried::Nobody(DropReason::SiteDown);
    gateway.set(mesh(down(), down()));
    gateway.read(&udp([OURS, NEARS]));
    assert_eq!(gateway.drops.get(DropReason::SiteDown), 1);
    let told = gateway.written();
    assert_eq!((told.len(), told[0][9], told[0][19]), (1, 1, OURS), "ICMP");
}

#[test]
fn a_queue_of_an_interface_that_was_made_anew_is_used_at_once() {
    let mut gateway = Gateway::new();
    let (queue, tap) = tun();
    gateway.shared.mailboxes[0].command(Command::Tun(queue));
    gateway.threads[0].obey();
    gateway.taps[0] = tap;
    gateway.come(NEAR, &[udp([NEARS, OURS])]);
    assert_eq!(gateway.written(), [unfinished([NEARS, OURS])]);
    gateway.read(&udp([OURS, NEARS]));
    assert_eq!(gateway.leaves(NEAR), [udp([OURS, NEARS])]);
}

// ---- agents' probes -----------------------------------------------------------------------------

/// As an agent sends it to one of our probe addresses, to this port.
fn probe(port: u16) -> Vec<u8> {
    let flow = Flow {
        ports: (port, port),
        ..Flow::v4_udp()
    };
    let mut packet = packet(flow, [OURS, NEARS], 40).bytes();
    packet[16..20].copy_from_slice(&PROBE);
    packet
}

#[test]
fn a_probe_goes_to_control_and_its_answer_to_the_kernel_by_the_same_queue() {
    let mut gateway = Gateway::new();
    let sent = probe(7802);
    gateway.read(&sent);
    let taken = gateway.shared.control.pop_probe().unwrap();
    assert_eq!((taken.thread, &taken.packet[..]), (0, &sent[..]));
    gateway.assert_nothing_leaves();
    assert_eq!(gateway.drops.get(DropReason::LanProbe), 0);
    gateway.shared.mailboxes[0].command(Command::ToTun(taken.packet));
    gateway.threads[0].obey();
    assert_eq!(gateway.written(), [sent]);
}

#[test]
fn what_is_no_probe_and_what_has_no_room_is_counted_and_answered_by_nobody() {
    let mut gateway = Gateway::new();
    gateway.read(&probe(80));
    assert_eq!(gateway.drops.get(DropReason::LanProbe), 1);
    assert!(gateway.shared.control.pop_probe().is_none());
    for _ in 0..100 {
        gateway.read(&probe(7802));
    }
    let room = std::iter::from_fn(|| gateway.shared.control.pop_probe()).count() as u64;
    assert!(room > 0 && room < 100, "{room}");
    assert_eq!(gateway.drops.get(DropReason::LanProbe), 1 + 100 - room);
    gateway.assert_nothing_leaves();
}
