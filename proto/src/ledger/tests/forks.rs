//! Two entries follow one: what holds, and how it ends.

use super::*;

fn state(ledger: &Ledger, entry: &SignedEntry) -> Standing {
    ledger.charter().standing(&entry.hash(), &node(50))
}

fn fork_numbers(ledger: &Ledger) -> Option<(u64, Vec<u64>)> {
    ledger.charter().fork.as_ref().map(|fork| {
        let mut heads: Vec<u64> = fork.heads.iter().map(|head| head.number).collect();
        heads.sort_unstable();
        (fork.split.number, heads)
    })
}

#[test]
fn two_entries_with_one_number_quarantine_what_both_give() {
    let below = line_of([grant("a", &["10.0.0.0/16"])]);
    let one = after(&below[1], grant("b", &["10.1.0.0/16"]));
    let two = after(&below[1], grant("c", &["10.2.0.0/16"]));
    let ledger = ledger_of(&[&below[0], &below[1], &one, &two]);
    assert_eq!(fork_numbers(&ledger), Some((1, vec![2, 2])));
    assert_eq!(ledger.head().map(|head| head.number), Some(1));
    assert_eq!(ledger.heads().len(), 2);
    assert_eq!(state(&ledger, &below[1]), Standing::Good);
    assert_eq!(state(&ledger, &one), Standing::Quarantined);
    assert_eq!(state(&ledger, &two), Standing::Quarantined);
    let states: Vec<_> = ledger
        .charter()
        .prefixes
        .iter()
        .map(|prefix| prefix.state.clone())
        .collect();
    assert_eq!(
        states,
        [
            PrefixState::Owned,
            PrefixState::Quarantined,
            PrefixState::Quarantined
        ]
    );
}

#[test]
fn what_either_branch_revokes_is_revoked() {
    let below = line_of([
        grant("a", &["10.0.0.0/16"]),
        grant("b", &["10.1.0.0/16"]),
        grant("c", &[]),
    ]);
    let one = after(&below[3], revoke(&[node(1)]));
    let closed = after(&one, close(&below[3], &[node(2)]));
    let two = after(&below[3], revoke_site("b"));
    let mut entries: Vec<&SignedEntry> = below.iter().collect();
    entries.extend([&one, &closed, &two]);
    let ledger = ledger_of(&entries);
    let charter = ledger.charter();
    assert!(charter.fork.is_some());
    assert_eq!(
        charter.standing(&below[1].hash(), &node(1)),
        Standing::Revoked
    );
    assert_eq!(charter.standing(&below[3].hash(), &node(2)), Standing::Good);
    assert_eq!(state(&ledger, &below[3]), Standing::GrantClosed);
    assert_eq!(state(&ledger, &below[2]), Standing::SiteRevoked);
    assert_eq!(charter.prefixes_of(&name("b")).count(), 0);
    assert_eq!(charter.prefixes_of(&name("a")).count(), 1);
}

#[test]
fn a_closing_on_one_branch_closes_the_grant_on_the_other_once_it_holds() {
    let below = genesis();
    let one = after(&below, grant("a", &[]));
    let two = after(&below, close(&one, &[node(1)]));
    let settled = settlement(&one, &two, &authority());
    let ledger = ledger_of(&[&below, &two, &one, &settled]);
    assert_eq!(ledger.charter().fork, None);
    assert_eq!(
        ledger.charter().standing(&one.hash(), &node(1)),
        Standing::Good
    );
    assert_eq!(state(&ledger, &one), Standing::GrantClosed);
}

#[test]
fn brokers_above_a_split_are_not_asked_and_do_not_count() {
    let below = genesis();
    let one = after(&below, Body::Broker(a_broker()));
    let two = after(&below, grant("a", &[]));
    let mut ledger = ledger_of(&[&below, &one]);
    assert!(ledger.charter().may_count(&broker_key().public(), &STORE));
    ledger.insert(two.clone()).unwrap();
    assert_eq!(ledger.charter().brokers, []);
    assert!(!ledger.charter().may_count(&broker_key().public(), &STORE));
    ledger.insert(settlement(&one, &two, &authority())).unwrap();
    assert_eq!(ledger.charter().brokers, [a_broker()]);
}

#[test]
fn a_settlement_keeps_one_branch_and_of_the_other_only_what_it_revokes() {
    let below = line_of([grant("a", &["10.0.0.0/16"])]);
    let kept = after(&below[1], grant("b", &["10.1.0.0/16"]));
    let given_up = after(&below[1], grant("c", &["10.2.0.0/16"]));
    let revoking = after(&given_up, revoke(&[node(1)]));
    let mut ledger = ledger_of(&[&below[0], &below[1], &kept, &given_up, &revoking]);
    let end = settlement(&kept, &revoking, &authority());
    assert_eq!(end.entry().number, 4);
    ledger.insert(end.clone()).unwrap();
    assert_eq!(ledger.charter().fork, None);
    assert_eq!(ledger.heads(), [end.hash()]);
    assert_eq!(ledger.head().map(|head| head.hash), Some(end.hash()));
    assert_eq!(state(&ledger, &kept), Standing::Good);
    assert_eq!(state(&ledger, &given_up), Standing::NoGrant);
    assert_eq!(
        ledger.charter().standing(&kept.hash(), &node(1)),
        Standing::Revoked
    );
    assert_eq!(ledger.charter().prefixes.len(), 2);
    assert_eq!(ledger.missing(&[end.hash()]).len(), 0);

    // The line goes on; what follows the branch given up revokes, and gives nothing.
    let on = after(&end, grant("d", &[]));
    ledger.insert(on.clone()).unwrap();
    let late = after(&revoking, grant("e", &[]));
    let later = after(&late, revoke(&[node(2)]));
    ledger.insert(late.clone()).unwrap();
    ledger.insert(later).unwrap();
    assert_eq!(ledger.charter().fork, None);
    assert_eq!(state(&ledger, &on), Standing::Good);
    assert_eq!(state(&ledger, &late), Standing::NoGrant);
    assert!(ledger.charter().revoked.contains(&node(2)));
}

#[test]
fn a_fork_of_three_heads_takes_two_settlements() {
    let below = genesis();
    let branches = ["a", "b", "c"].map(|site| after(&below, grant(site, &[])));
    let [one, two, three] = &branches;
    let mut ledger = ledger_of(&[&below, one, two, three]);
    assert_eq!(fork_numbers(&ledger), Some((0, vec![1, 1, 1])));
    let first = settlement(two, one, &authority());
    ledger.insert(first.clone()).unwrap();
    assert_eq!(fork_numbers(&ledger), Some((0, vec![1, 2])));
    assert_eq!(state(&ledger, two), Standing::Quarantined);
    ledger
        .insert(settlement(&first, three, &authority()))
        .unwrap();
    assert_eq!(fork_numbers(&ledger), None);
    assert_eq!(state(&ledger, one), Standing::NoGrant);
    assert_eq!(state(&ledger, two), Standing::Good);
    assert_eq!(state(&ledger, three), Standing::NoGrant);
}

#[test]
fn a_fork_within_a_branch_that_is_given_up_is_given_up_with_it() {
    let below = genesis();
    let kept = after(&below, grant("a", &[]));
    let other = after(&below, grant("b", &[]));
    let one = after(&other, grant("c", &[]));
    let two = after(&other, revoke(&[node(1)]));
    let mut ledger = ledger_of(&[&below, &kept, &other, &one, &two]);
    assert_eq!(fork_numbers(&ledger), Some((0, vec![1, 2, 2])));
    ledger
        .insert(settlement(&kept, &one, &authority()))
        .unwrap();
    assert_eq!(fork_numbers(&ledger), None);
    assert!(ledger.charter().revoked.contains(&node(1)));
}

#[test]
fn a_fork_above_a_fork_shows_the_lower_split_first() {
    let below = genesis();
    let one = after(&below, grant("a", &[]));
    let other = after(&below, grant("b", &[]));
    let left = after(&one, grant("c", &[]));
    let right = after(&one, grant("d", &[]));
    let mut ledger = ledger_of(&[&below, &one, &left, &right, &other]);
    assert_eq!(fork_numbers(&ledger), Some((0, vec![1, 2, 2])));
    let lower = settlement(&left, &other, &authority());
    ledger.insert(lower.clone()).unwrap();
    assert_eq!(fork_numbers(&ledger), Some((1, vec![2, 3])));
    assert_eq!(state(&ledger, &one), Standing::Good);
    ledger
        .insert(settlement(&lower, &right, &authority()))
        .unwrap();
    assert_eq!(fork_numbers(&ledger), None);
}

#[test]
fn two_settlements_that_give_up_each_other_are_a_fork_until_one_names_the_other() {
    let below = genesis();
    let one = after(&below, grant("a", &[]));
    let two = after(&below, grant("b", &[]));
    let for_one = settlement(&one, &two, &authority());
    let for_two = settlement(&two, &one, &authority());
    let mut ledger = ledger_of(&[&below, &one, &two, &for_one]);
    assert_eq!(fork_numbers(&ledger), None);
    ledger.insert(for_two.clone()).unwrap();
    assert_eq!(fork_numbers(&ledger), Some((0, vec![2, 2])));
    assert_eq!(state(&ledger, &one), Standing::Quarantined);
    let last = settlement(&for_two, &for_one, &authority());
    ledger.insert(last.clone()).unwrap();
    assert_eq!(fork_numbers(&ledger), None);
    assert_eq!(state(&ledger, &two), Standing::Good);
    assert_eq!(state(&ledger, &one), Standing::NoGrant);
    assert_eq!(ledger.heads(), [last.hash()]);
}

#[test]
fn a_settlement_names_two_branches_that_are_here_and_the_number_above_both() {
    let below = genesis();
    let one = after(&below, grant("a", &[]));
    let two = after(&below, grant("b", &[]));
    let above = after(&two, grant("c", &[]));
    let mut ledger = ledger_of(&[&below, &one, &two]);
    let orphan = settlement(&one, &above, &authority());
    assert_eq!(
        ledger.insert(orphan.clone()),
        Err(LedgerError::Orphan { number: 3 })
    );
    ledger.insert(above.clone()).unwrap();
    for (kept, other) in [(&above, &two), (&two, &above), (&one, &one), (&one, &below)] {
        let number = kept.entry().number.max(other.entry().number) + 1;
        assert_eq!(
            ledger.insert(settlement(kept, other, &authority())),
            Err(LedgerError::Settlement { number })
        );
    }
    let low = after(
        &one,
        Body::Settlement {
            other: above.hash(),
        },
    );
    assert_eq!(ledger.insert(low), Err(LedgerError::Number { number: 2 }));
    assert_eq!(ledger.insert(orphan), Ok(Inserted::New));
}

#[test]
fn a_settled_ledger_grows_as_cheaply_as_any_and_alike_for_who_hears_it_late() {
    let below = genesis();
    let one = after(&below, grant("a", &["10.0.0.0/16"]));
    let two = after(&below, revoke_site("b"));
    let end = settlement(&one, &two, &authority());
    let mut early = ledger_of(&[&below, &one, &two, &end]);
    let given = after(&end, grant("b", &["10.1.0.0/16"]));
    early.insert(given.clone()).unwrap();
    let late = ledger_of(&[&below, &two, &one, &end, &given]);
    assert_eq!(early.charter(), late.charter());
    assert_eq!(early.charter(), &Charter::of(&early.links, &early.line));
    assert_eq!(state(&early, &given), Standing::Good);
}
