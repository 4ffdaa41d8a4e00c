//! Who owns which prefix.

use super::*;

fn states(ledger: &Ledger) -> Vec<(String, String, &'static str)> {
    ledger
        .charter()
        .prefixes
        .iter()
        .map(|held| {
            let state = match held.state {
                PrefixState::Owned => "owned",
                PrefixState::Overlaps { .. } => "overlaps",
                PrefixState::Quarantined => "quarantined",
                PrefixState::Refused(_) => "refused",
            };
            (held.site.to_string(), held.prefix.to_string(), state)
        })
        .collect()
}

fn row(site: &str, prefix: &str, state: &'static str) -> (String, String, &'static str) {
    (site.to_owned(), prefix.to_owned(), state)
}

#[test]
fn the_earlier_of_two_sites_keeps_what_overlaps_nested_either_way() {
    for (first, second) in [
        ("10.0.0.0/8", "10.1.0.0/16"),
        ("10.1.0.0/16", "10.0.0.0/8"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("10.1.2.3/32", "10.1.2.0/24"),
        ("2001:db8::/32", "2001:db8:1::/48"),
        ("2001:db8:1::/48", "2001:db8::/32"),
        ("fd00::1/128", "fd00::/8"),
    ] {
        let (ledger, _) = ledger_of_line([grant("a", &[first]), grant("b", &[second])]);
        assert_eq!(
            states(&ledger),
            [row("a", first, "owned"), row("b", second, "overlaps")]
        );
        assert_eq!(
            ledger.charter().prefixes[1].state,
            PrefixState::Overlaps {
                site: name("a"),
                prefix: net(first)
            }
        );
    }
}

#[test]
fn neighbours_and_the_other_family_do_not_overlap() {
    let (ledger, _) = ledger_of_line([
        grant("a", &["10.0.0.0/16", "fd00::/64"]),
        grant("b", &["10.1.0.0/16", "fd00:0:0:1::/64"]),
        grant("c", &["11.0.0.0/8"]),
    ]);
    assert!(
        ledger
            .charter()
            .prefixes
            .iter()
            .all(|held| held.state == PrefixState::Owned)
    );
}

#[test]
fn a_site_may_nest_its_own_prefixes() {
    let (ledger, _) = ledger_of_line([
        grant("a", &["10.0.0.0/8", "10.1.0.0/16"]),
        added("a", &["10.1.2.0/24"]),
    ]);
    assert_eq!(ledger.charter().prefixes.len(), 3);
    assert!(
        ledger
            .charter()
            .prefixes
            .iter()
            .all(|held| held.state == PrefixState::Owned)
    );
}

#[test]
fn a_prefix_that_is_given_up_goes_to_the_next_in_line_and_to_no_later_one() {
    let mut bodies = vec![
        grant("a", &["10.1.0.0/16"]),
        grant("b", &["10.0.0.0/8"]),
        grant("c", &["10.5.0.0/16"]),
    ];
    let (ledger, _) = ledger_of_line(bodies.clone());
    // Site c lost to b, though b lost to a.
    assert_eq!(
        states(&ledger),
        [
            row("a", "10.1.0.0/16", "owned"),
            row("b", "10.0.0.0/8", "overlaps"),
            row("c", "10.5.0.0/16", "overlaps")
        ]
    );
    bodies.push(removed("a", &["10.1.0.0/16"]));
    let (ledger, _) = ledger_of_line(bodies.clone());
    assert_eq!(
        states(&ledger),
        [
            row("b", "10.0.0.0/8", "owned"),
            row("c", "10.5.0.0/16", "overlaps")
        ]
    );
    bodies.push(revoke_site("b"));
    let (ledger, _) = ledger_of_line(bodies);
    assert_eq!(states(&ledger), [row("c", "10.5.0.0/16", "owned")]);
}

#[test]
fn a_prefix_taken_away_is_taken_from_the_named_site_only_and_exactly() {
    let (ledger, _) = ledger_of_line([
        grant("a", &["10.0.0.0/16", "10.1.0.0/16"]),
        grant("b", &["10.2.0.0/16"]),
        removed("a", &["10.2.0.0/16", "10.0.0.0/8", "10.1.0.0/16"]),
    ]);
    assert_eq!(
        states(&ledger),
        [
            row("a", "10.0.0.0/16", "owned"),
            row("b", "10.2.0.0/16", "owned")
        ]
    );
}

#[test]
fn a_prefix_given_again_keeps_its_place_and_takes_the_new_kind() {
    let service = Body::Prefixes {
        site: name("a"),
        added: Vec::new(),
        added_service: nets(&["10.0.0.0/16"]),
        removed: Vec::new(),
    };
    let (ledger, _) = ledger_of_line([
        grant("a", &["10.0.0.0/16"]),
        grant("a", &["10.0.0.0/16"]),
        service,
    ]);
    let held = &ledger.charter().prefixes;
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].number, held[0].service), (1, true));
}

#[test]
fn what_no_ledger_can_give_is_refused_and_stands_in_no_ones_way() {
    let (ledger, _) = ledger_of_line([
        grant("a", &["0.0.0.0/0", "::/0", "2000::/3"]),
        grant("b", &["10.0.0.0/16", "2001:db8::/32"]),
    ]);
    assert_eq!(
        states(&ledger),
        [
            row("a", "0.0.0.0/0", "refused"),
            row("a", "::/0", "refused"),
            row("a", "2000::/3", "refused"),
            row("b", "10.0.0.0/16", "owned"),
            row("b", "2001:db8::/32", "owned")
        ]
    );
    let charter = ledger.charter();
    assert_eq!(
        charter.owner_overlapping(net("172.16.0.0/12"), &name("c")),
        None
    );
}

#[test]
fn the_owner_that_is_named_holds_before_one_that_does_not() {
    let (ledger, _) = ledger_of_line([
        grant("a", &["10.1.0.0/16"]),
        grant("b", &["10.0.0.0/8"]),
        grant("c", &["10.5.0.0/16"]),
    ]);
    let charter = ledger.charter();
    let owner = |prefix: &str, except: &str| {
        charter
            .owner_overlapping(net(prefix), &name(except))
            .map(|held| held.site.to_string())
    };
    assert_eq!(owner("10.0.0.0/8", "z"), Some("a".to_owned()));
    assert_eq!(owner("10.1.0.0/24", "a"), Some("b".to_owned()));
    assert_eq!(owner("10.5.1.0/24", "b"), Some("c".to_owned()));
    assert_eq!(owner("192.168.0.0/16", "z"), None);
}

#[test]
fn a_quarantined_prefix_takes_nothing_from_the_line() {
    let below = line_of([grant("a", &["10.0.0.0/16"])]);
    let one = after(&below[1], grant("b", &["10.0.1.0/24"]));
    let two = after(&below[1], added("a", &["10.0.0.0/16", "10.7.0.0/16"]));
    let ledger = ledger_of(&[&below[0], &below[1], &one, &two]);
    let mut found = states(&ledger);
    found.sort();
    assert_eq!(
        found,
        [
            row("a", "10.0.0.0/16", "owned"),
            row("a", "10.7.0.0/16", "quarantined"),
            row("b", "10.0.1.0/24", "quarantined")
        ]
    );
}

#[test]
fn what_a_revoked_site_had_is_known_as_cut_off_whatever_became_of_it() {
    let (ledger, _) = ledger_of_line([
        grant("a", &["10.1.0.0/16"]),
        added("a", &["10.2.0.0/16"]),
        grant("b", &["10.3.0.0/16", "10.4.0.0/16"]),
        removed("b", &["10.4.0.0/16"]),
        revoke_site("b"),
        revoke_site("a"),
        grant("c", &["10.2.0.0/16"]),
    ]);
    assert_eq!(states(&ledger), [row("c", "10.2.0.0/16", "owned")]);
    let cut_off = [
        (net("10.1.0.0/16"), name("a")),
        (net("10.2.0.0/16"), name("a")),
        (net("10.3.0.0/16"), name("b")),
    ];
    assert_eq!(ledger.charter().cut_off, cut_off.into());
}
