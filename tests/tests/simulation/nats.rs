//! Which pairs of edges meet directly and which by relay.

use std::time::Duration;

use gateway::links::PathKind;
use tests::simulation::edge::{DEPENDENCES, Dependence, EdgeKind};
use tests::simulation::expect::can_punch;
use tests::simulation::world::World;

fn kinds() -> Vec<(String, EdgeKind)> {
    let mut kinds = vec![
        ("open".to_owned(), EdgeKind::Open),
        ("firewall".to_owned(), EdgeKind::Firewall),
        ("no UDP".to_owned(), EdgeKind::NoUdp),
    ];
    for mapping in DEPENDENCES {
        for filtering in DEPENDENCES {
            let letter = |of| match of {
                Dependence::Endpoint => "e",
                Dependence::Address => "a",
                Dependence::AddressAndPort => "p",
            };
            kinds.push((
                format!("{}/{}", letter(mapping), letter(filtering)),
                EdgeKind::Nat { mapping, filtering },
            ));
        }
    }
    kinds
}

/// How two gateways behind these edges have found each other after so long.
fn found(one: EdgeKind, other: EdgeKind, after: Duration) -> Option<PathKind> {
    let mut world = World::new(1);
    for kind in [one, other] {
        let edge = world.add_site(kind);
        let at = world.add_node(edge);
        world.start(at);
    }
    world.run_for(after);
    assert!(world.faults.is_empty(), "{:?}", world.faults);
    let is_up = world.is_up(0, 1) && world.is_up(1, 0);
    let paths = [world.path_kind(0, 1), world.path_kind(1, 0)];
    let by_relay = paths.contains(&Some(PathKind::Relay));
    if by_relay && is_up {
        Some(PathKind::Relay)
    } else {
        paths[0].filter(|_| is_up)
    }
}

#[test]
fn every_pair_of_edges_meets_and_directly_where_that_is_possible() {
    let kinds = kinds();
    let mut wrong = Vec::new();
    eprintln!("NATs by mapping/filtering: endpoint, address, port; D direct, R relay");
    for (at, (name, one)) in kinds.iter().enumerate() {
        let mut row = String::new();
        for (other_name, other) in &kinds[..=at] {
            let found = found(*one, *other, Duration::from_secs(30));
            let by_relay = match found {
                Some(PathKind::Relay) => Some(true),
                Some(PathKind::Lan | PathKind::Record | PathKind::Observed) => Some(false),
                None => None,
            };
            row += match by_relay {
                Some(true) => " R",
                Some(false) => " D",
                None => " -",
            };
            if by_relay != Some(!can_punch(*one, *other)) {
                wrong.push(format!("{name} and {other_name}: {found:?}"));
            }
        }
        eprintln!("{name:>9}{row}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
