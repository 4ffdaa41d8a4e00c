//! A change of authority, and what is left of a stolen key.

use super::*;

#[test]
fn only_the_recovery_key_of_the_ledger_changes_the_authority() {
    let below = genesis();
    let new = key(70);
    let mut ledger = ledger_of(&[&below]);
    let by_authority = after_by(&below, recover(0, &new), &authority());
    assert_eq!(
        ledger.insert(by_authority),
        Err(LedgerError::Signature { number: 1 })
    );
    let by_another = after_by(&below, recover(5, &new), &recovery(5));
    assert_eq!(
        ledger.insert(by_another),
        Err(LedgerError::Recovery { number: 1 })
    );
    let change = after_by(&below, recover(0, &new), &recovery(0));
    ledger.insert(change.clone()).unwrap();
    assert_eq!(ledger.charter().authority, Some(new.public()));
    assert_eq!(
        ledger.charter().authorities,
        [authority().public(), new.public()]
    );

    let by_old = after(&change, grant("a", &[]));
    assert_eq!(
        ledger.insert(by_old),
        Err(LedgerError::Signature { number: 2 })
    );
    let used = after_by(&change, recover(0, &key(71)), &recovery(0));
    assert_eq!(
        ledger.insert(used),
        Err(LedgerError::Recovery { number: 2 })
    );
    let again = after_by(&change, recover(1, &key(71)), &recovery(1));
    ledger.insert(again.clone()).unwrap();
    ledger
        .insert(after_by(&again, grant("a", &[]), &key(71)))
        .unwrap();
    assert_eq!(ledger.charter().grants.len(), 1);
}

#[test]
fn a_recovery_ends_a_thiefs_branch_with_all_it_revoked() {
    let below = line_of([grant("a", &["10.0.0.0/16"]), grant("b", &[])]);
    let stolen = after(&below[2], grant("thief", &["10.9.0.0/16"]));
    let revoking = after(&stolen, revoke(&[node(1)]));
    let site = after(&revoking, revoke_site("a"));
    let new = key(70);
    let change = after_by(&below[2], recover(0, &new), &recovery(0));
    let honest = after_by(&change, grant("c", &["10.2.0.0/16"]), &new);
    let mut entries: Vec<&SignedEntry> = below.iter().collect();
    entries.extend([&stolen, &revoking, &site]);
    let mut ledger = ledger_of(&entries);
    assert!(ledger.charter().revoked.contains(&node(1)));

    ledger.insert(change.clone()).unwrap();
    ledger.insert(honest.clone()).unwrap();
    let charter = ledger.charter();
    assert_eq!(charter.fork, None);
    assert_eq!(charter.authority, Some(new.public()));
    assert!(charter.revoked.is_empty());
    assert_eq!(charter.sites(), [&name("a"), &name("b"), &name("c")]);
    assert_eq!(
        charter.standing(&stolen.hash(), &node(9)),
        Standing::NoGrant
    );
    assert_eq!(charter.standing(&below[1].hash(), &node(1)), Standing::Good);
    assert_eq!(ledger.head().map(|head| head.hash), Some(honest.hash()));
}

#[test]
fn after_a_recovery_the_stolen_key_changes_nothing_anywhere() {
    let below = line_of([grant("a", &["10.0.0.0/16"]), grant("b", &[])]);
    let new = key(70);
    let change = after_by(&below[2], recover(0, &new), &recovery(0));
    let mut entries: Vec<&SignedEntry> = below.iter().collect();
    entries.push(&change);
    let mut ledger = ledger_of(&entries);
    let before = ledger.charter().clone();
    for parent in &below {
        let fork = after(parent, revoke_site("a"));
        let further = after(&fork, revoke(&[node(1)]));
        let settling = settlement(&further, &change, &authority());
        for entry in [fork, further, settling] {
            assert_eq!(ledger.insert(entry), Ok(Inserted::New));
            assert_eq!(*ledger.charter(), before);
            let judged = Line::of(&ledger.links);
            assert_eq!(Charter::of(&ledger.links, &judged), before);
            assert_eq!(judged.places, ledger.line.places);
            assert_eq!(judged.void, ledger.line.void);
            // Nor is it handed on, or asked for by who does not keep it.
            assert_eq!(ledger.heads(), [change.hash()]);
            assert_eq!(ledger.missing(&[]).len(), 4);
        }
    }
    assert_eq!(ledger.head().map(|head| head.hash), Some(change.hash()));
    ledger
        .insert(after_by(&change, grant("c", &[]), &new))
        .unwrap();
    assert_eq!(ledger.charter().sites().len(), 3);
}

#[test]
fn a_recovery_behind_the_head_takes_back_what_the_thief_added_to_the_line() {
    let below = line_of([
        grant("a", &["10.0.0.0/16"]),
        grant("thief", &["10.9.0.0/16"]),
    ]);
    let mut ledger = ledger_of(&below.iter().collect::<Vec<_>>());
    let body = recover(0, &key(70));
    let change = ledger
        .next_after(below[1].hash(), 7, body)
        .unwrap()
        .sign(&recovery(0));
    ledger.insert(change).unwrap();
    assert_eq!(ledger.charter().fork, None);
    assert_eq!(ledger.charter().sites(), [&name("a")]);
}

#[test]
fn recoveries_on_two_branches_are_a_fork_that_either_authority_can_settle() {
    let below = line_of([grant("a", &[])]);
    let one = after_by(&below[0], recover(0, &key(70)), &recovery(0));
    let two = after_by(&below[1], recover(0, &key(71)), &recovery(0));
    let mut ledger = ledger_of(&[&below[0], &below[1], &one, &two]);
    let fork = ledger.charter().fork.clone().unwrap();
    assert_eq!(fork.split.number, 0);
    assert_eq!(ledger.charter().authority, Some(authority().public()));
    assert_eq!(ledger.charter().grants.len(), 1);
    assert_eq!(
        ledger.charter().standing(&below[1].hash(), &node(1)),
        Standing::Quarantined
    );
    let body = Body::Settlement { other: one.hash() };
    let end = ledger.next_after(two.hash(), 7, body).unwrap();
    assert_eq!(
        ledger.insert(end.clone().sign(&key(70))),
        Err(LedgerError::Signature { number: 3 })
    );
    ledger.insert(end.sign(&key(71))).unwrap();
    assert_eq!(ledger.charter().fork, None);
    assert_eq!(ledger.charter().authority, Some(key(71).public()));
    assert_eq!(
        ledger.charter().standing(&below[1].hash(), &node(1)),
        Standing::Good
    );
}

#[test]
fn an_earlier_authority_stolen_later_signs_nothing_that_holds() {
    let below = line_of([grant("a", &[])]);
    let new = key(70);
    let change = after_by(&below[1], recover(0, &new), &recovery(0));
    let on = after_by(&change, grant("b", &[]), &new);
    let mut ledger = ledger_of(&[&below[0], &below[1], &change, &on]);
    let before = ledger.charter().clone();
    ledger.insert(after(&below[0], revoke_site("a"))).unwrap();
    assert_eq!(*ledger.charter(), before);
    // What the new authority signs twice is a fork like any other.
    ledger
        .insert(after_by(&change, grant("c", &[]), &new))
        .unwrap();
    assert_eq!(
        ledger.charter().fork.as_ref().map(|fork| fork.split.number),
        Some(2)
    );
}

#[test]
fn a_thief_cannot_fill_memory_with_what_holds_nowhere() {
    let below = genesis();
    let change = after_by(&below, recover(0, &key(70)), &recovery(0));
    let mut ledger = ledger_of(&[&below, &change]);
    let mut last = below.clone();
    for _ in 0..3 {
        last = after(&last, grant("thief", &[]));
        ledger.insert(last.clone()).unwrap();
    }
    assert_eq!(ledger.line.void, 3);
    ledger.line.void = MAX_VOID;
    last = after(&last, grant("thief", &[]));
    assert_eq!(ledger.insert(last), Err(LedgerError::Void { number: 4 }));
    ledger
        .insert(after_by(&change, grant("a", &[]), &key(70)))
        .unwrap();
}

#[test]
fn a_thief_cannot_fill_memory_with_few_large_entries_or_with_settlements_either() {
    let below = genesis();
    let change = after_by(&below, recover(0, &key(70)), &recovery(0));
    let mut ledger = ledger_of(&[&below, &change]);
    let large = |number: u64| after(&below, revoke(&vec![node(number); 4096]));
    let taken = (0..100)
        .take_while(|number| ledger.insert(large(*number)).is_ok())
        .count();
    assert!(
        taken > 0 && taken <= MAX_VOID_BYTES / (4096 * 32),
        "{taken}"
    );
    ledger
        .insert(after_by(&change, grant("a", &[]), &key(70)))
        .unwrap();

    let mut ledger = ledger_of(&[&below, &change]);
    let stolen = after(&below, grant("thief", &[]));
    ledger.insert(stolen.clone()).unwrap();
    ledger.line.void = MAX_VOID;
    let settling = settlement(&stolen, &change, &authority());
    assert_eq!(
        ledger.insert(settling),
        Err(LedgerError::Void { number: 2 })
    );
}

#[test]
fn what_was_settled_before_a_recovery_keeps_what_it_revoked_and_grows_no_more() {
    let below = genesis();
    let kept = after(&below, grant("a", &[]));
    let given_up = after(&below, revoke(&[node(1)]));
    let end = settlement(&kept, &given_up, &authority());
    let change = after_by(&end, recover(0, &key(70)), &recovery(0));
    let mut ledger = ledger_of(&[&below, &kept, &given_up, &end, &change]);
    let before = ledger.charter().clone();
    assert_eq!(before.fork, None);
    assert!(before.revoked.contains(&node(1)));
    let missing = ledger.missing(&[kept.hash()]);
    let hashes: Vec<Hash> = missing.iter().map(|entry| entry.hash()).collect();
    assert_eq!(hashes, [given_up.hash(), end.hash(), change.hash()]);

    let stolen = after(&given_up, revoke(&[node(2)]));
    let settling = settlement(&stolen, &change, &authority());
    for entry in [stolen, settling] {
        ledger.insert(entry).unwrap();
        assert_eq!(*ledger.charter(), before);
        assert_eq!(ledger.heads(), [change.hash()]);
    }
}

#[test]
fn an_open_fork_ends_with_a_recovery_on_one_branch_and_the_other_is_void() {
    let below = genesis();
    let one = after(&below, grant("a", &[]));
    let two = after(&below, revoke(&[node(1)]));
    let change = after_by(&one, recover(0, &key(70)), &recovery(0));
    let ledger = ledger_of(&[&below, &one, &two, &change]);
    assert_eq!(ledger.charter().fork, None);
    assert!(ledger.charter().revoked.is_empty());
    assert_eq!(
        ledger.charter().standing(&one.hash(), &node(1)),
        Standing::Good
    );
}
