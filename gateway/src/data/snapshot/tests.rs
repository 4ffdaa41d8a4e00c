use super::*;

const OURS: &str = "10.1.0.1";
const THEIRS: &str = "10.2.0.1";
const OTHERS: &str = "10.3.0.1";
const NOBODYS: &str = "192.0.2.1";
const PROBE: &str = "198.18.0.1";

const SIBLING: LinkPlace = LinkPlace { thread: 0, slot: 0 };
const NEAR: LinkPlace = LinkPlace { thread: 0, slot: 1 };
const NEAR_TOO: LinkPlace = LinkPlace { thread: 1, slot: 1 };
const FAR: LinkPlace = LinkPlace { thread: 1, slot: 0 };
const UNLISTED: [LinkPlace; 3] = [
    LinkPlace { thread: 0, slot: 2 },
    LinkPlace { thread: 2, slot: 0 },
    LinkPlace {
        thread: u32::MAX,
        slot: u32::MAX,
    },
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn choices(places: &[LinkPlace]) -> Box<[Choice]> {
    let of = |(place, seed): (&LinkPlace, u64)| Choice {
        seed,
        place: *place,
    };
    places.iter().zip(1..).map(of).collect()
}

/// Our site 10.1/16 with a sibling, site 0 with 10.2/16 and two gateways, site 1 with 10.3/16.
fn mesh(far: Carried) -> Snapshot {
    let near = Carried::By(choices(&[NEAR, NEAR_TOO]));
    Snapshot::mesh(Mesh {
        prefixes: vec![
            (prefix("10.2.0.0/16"), OwnerId(0)),
            (prefix("10.3.0.0/16"), OwnerId(1)),
        ],
        owners: vec![Owner { carried: near }, Owner { carried: far }],
        senders: vec![
            (SIBLING, Sender::Sibling),
            (NEAR, Sender::Site(OwnerId(0))),
            (NEAR_TOO, Sender::Site(OwnerId(0))),
            (FAR, Sender::Site(OwnerId(1))),
        ],
        own: vec![prefix("10.1.0.0/16")],
        probes: vec![ip(PROBE), ip("2001:2::1")],
        own_port: None,
    })
}

fn far_is_up() -> Snapshot {
    mesh(Carried::By(choices(&[FAR])))
}

#[track_caller]
fn assert_admits(
    snapshot: &Snapshot,
    place: LinkPlace,
    way: [&str; 2],
    wanted: Result<Onward, DropReason>,
) {
    let [source, destination] = way.map(ip);
    assert_eq!(snapshot.admit(place, source, destination), wanted);
}

#[test]
fn a_remote_gateway_brings_packets_of_its_site_for_ours_and_no_others() {
    let snapshot = far_is_up();
    for place in [NEAR, NEAR_TOO] {
        for (way, wanted) in [
            ([THEIRS, OURS], Ok(Onward::Tun)),
            ([OTHERS, OURS], Err(DropReason::InnerSource)),
            ([OURS, OURS], Err(DropReason::InnerSource)),
            ([NOBODYS, OURS], Err(DropReason::InnerSource)),
            ([THEIRS, THEIRS], Err(DropReason::InnerDestination)),
            ([THEIRS, OTHERS], Err(DropReason::InnerDestination)),
            ([THEIRS, NOBODYS], Err(DropReason::InnerDestination)),
            ([OTHERS, NOBODYS], Err(DropReason::InnerDestination)),
        ] {
            assert_admits(&snapshot, place, way, wanted);
        }
    }
}

#[test]
fn a_site_whose_gateways_are_down_may_still_send_through_them() {
    let snapshot = mesh(Carried::Nobody(DropReason::SiteDown));
    assert_admits(&snapshot, FAR, [OTHERS, OURS], Ok(Onward::Tun));
}

#[test]
fn a_sibling_brings_packets_of_our_site_for_another_and_no_others() {
    let snapshot = far_is_up();
    for (way, wanted) in [
        ([OURS, THEIRS], Ok(Onward::Link)),
        ([OURS, OTHERS], Ok(Onward::Link)),
        ([OURS, OURS], Err(DropReason::SiblingDestination)),
        ([OURS, NOBODYS], Err(DropReason::SiblingDestination)),
        ([THEIRS, OURS], Err(DropReason::SiblingSource)),
        ([THEIRS, OTHERS], Err(DropReason::SiblingSource)),
        ([NOBODYS, OTHERS], Err(DropReason::SiblingSource)),
    ] {
        assert_admits(&snapshot, SIBLING, way, wanted);
    }
}

#[test]
fn what_came_from_a_sibling_never_goes_to_one() {
    for carried in [
        Carried::BySiblings(choices(&[SIBLING])),
        Carried::Nobody(DropReason::SiteDown),
        Carried::By(Box::new([])),
    ] {
        let snapshot = mesh(carried);
        let lost = Err(DropReason::SiblingSiteLost);
        assert_admits(&snapshot, SIBLING, [OURS, OTHERS], lost);
        assert!(snapshot.link_for_sibling(ip(OTHERS), &[]).is_err());
    }
    let by_sibling = mesh(Carried::BySiblings(choices(&[SIBLING])));
    assert_eq!(by_sibling.link_for(ip(OTHERS), &[]), Ok(SIBLING));
    assert_eq!(far_is_up().link_for_sibling(ip(OTHERS), &[]), Ok(FAR));
}

#[test]
fn through_a_link_that_is_not_listed_nothing_may_come() {
    let snapshot = far_is_up();
    for place in UNLISTED {
        for source in [OURS, THEIRS, NOBODYS] {
            let refused = Err(DropReason::InnerNotAllowed);
            assert_admits(&snapshot, place, [source, OURS], refused);
        }
    }
}

#[test]
fn a_packet_goes_to_a_gateway_of_the_site_of_its_destination() {
    let snapshot = far_is_up();
    let near = snapshot.link_for(ip(THEIRS), &[]);
    assert!([Ok(NEAR), Ok(NEAR_TOO)].contains(&near));
    assert_eq!(snapshot.link_for(ip(OTHERS), &[]), Ok(FAR));
    for nowhere in [OURS, NOBODYS, "fd00::1"] {
        assert_eq!(snapshot.link_for(ip(nowhere), &[]), Err(DropReason::NoPeer));
    }
    let down = mesh(Carried::Nobody(DropReason::SiteDown));
    assert_eq!(down.link_for(ip(OTHERS), &[]), Err(DropReason::SiteDown));
    let empty = mesh(Carried::By(Box::new([])));
    assert_eq!(empty.link_for(ip(OTHERS), &[]), Err(DropReason::SiteDown));
}

#[test]
fn a_probe_address_is_reached_from_our_own_site_and_by_no_link() {
    let snapshot = far_is_up();
    for probe in [PROBE, "2001:2::1"] {
        let told = snapshot.link_for(ip(probe), &[]);
        assert_eq!(told, Err(DropReason::LanProbe));
    }
    let beside = snapshot.link_for(ip("198.18.0.2"), &[]);
    assert_eq!(beside, Err(DropReason::NoPeer));
    for (place, way, reason) in [
        (NEAR, [THEIRS, PROBE], DropReason::InnerDestination),
        (NEAR, [PROBE, OURS], DropReason::InnerSource),
        (SIBLING, [OURS, PROBE], DropReason::SiblingSiteLost),
        (SIBLING, [PROBE, OTHERS], DropReason::SiblingSource),
    ] {
        assert_admits(&snapshot, place, way, Err(reason));
    }
}

#[test]
fn an_owner_that_does_not_exist_is_no_harm() {
    let snapshot = Snapshot::mesh(Mesh {
        prefixes: vec![(prefix("10.9.0.0/16"), OwnerId(9))],
        ..Mesh::default()
    });
    let address = ip("10.9.0.1");
    assert_eq!(snapshot.link_for(address, &[]), Err(DropReason::NoPeer));
}

#[test]
fn a_peer_of_causeway_wg_sends_from_its_own_addresses_to_anywhere() {
    let prefixes = [
        (prefix("10.2.0.0/16"), OwnerId(0)),
        (prefix("10.3.0.0/16"), OwnerId(1)),
    ];
    let nobody = Owner {
        carried: Carried::Nobody(DropReason::NoPrivateKey),
    };
    let owners = vec![Owner::peer(NEAR), nobody];
    let snapshot = Snapshot::new(prefixes.into_iter(), owners, 1420, None);
    assert!(!snapshot.is_mesh());
    for destination in [OURS, THEIRS, NOBODYS] {
        assert_admits(&snapshot, NEAR, [THEIRS, destination], Ok(Onward::Tun));
    }
    for (place, source) in [(FAR, THEIRS), (NEAR, OTHERS), (NEAR, NOBODYS)] {
        let refused = Err(DropReason::InnerSource);
        assert_admits(&snapshot, place, [source, OURS], refused);
    }
}
