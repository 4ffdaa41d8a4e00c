//! What the authority is kept from signing.

use super::*;
use crate::prefix::RefusedPrefix;

fn standard() -> (Ledger, Vec<SignedEntry>) {
    ledger_of_line([
        Body::Broker(a_broker()),
        grant("a", &["10.0.0.0/16"]),
        grant("b", &["10.1.0.0/16"]),
    ])
}

fn refusal(ledger: &Ledger, body: Body) -> SigningError {
    ledger.next(9, body).unwrap_err()
}

#[test]
fn the_next_entry_follows_the_head_and_is_taken() {
    let (mut ledger, entries) = standard();
    let bodies = [
        grant("c", &["10.2.0.0/16"]),
        prefixes_of("a", &["10.3.0.0/16"], &["10.0.0.0/16"]),
        close(&entries[2], &[node(1)]),
        revoke(&[node(3)]),
        revoke_site("b"),
        Body::BrokerRemoved {
            key: broker_key().public(),
        },
    ];
    for body in bodies {
        let head = ledger.head().unwrap();
        let next = ledger.next(9, body).unwrap();
        assert_eq!((next.previous, next.number), (head.hash, head.number + 1));
        assert_eq!(next.issued, 9);
        assert_eq!(ledger.insert(next.sign(&authority())), Ok(Inserted::New));
    }
    let change = ledger.next(9, recover(0, &key(70))).unwrap();
    ledger.insert(change.sign(&recovery(0))).unwrap();
}

#[test]
fn nothing_follows_in_an_empty_ledger() {
    let ledger = Ledger::new(genesis().hash());
    assert_eq!(refusal(&ledger, grant("a", &[])), SigningError::Empty);
    assert_eq!(
        ledger.next_after(genesis().hash(), 9, grant("a", &[])),
        Err(SigningError::Empty)
    );
}

#[test]
fn an_overlap_names_the_other_site() {
    let (ledger, _) = standard();
    for body in [
        grant("c", &["10.2.0.0/16", "10.1.128.0/17"]),
        added("a", &["10.1.128.0/17"]),
    ] {
        assert_eq!(
            refusal(&ledger, body),
            SigningError::Overlap {
                prefix: net("10.1.128.0/17"),
                other: net("10.1.0.0/16"),
                site: name("b")
            }
        );
    }
    assert!(ledger.next(9, grant("b", &["10.1.128.0/17"])).is_ok());
}

#[test]
fn prefixes_that_cannot_be_given_are_refused_with_the_reason() {
    let (ledger, _) = standard();
    for (prefix, why) in [
        ("0.0.0.0/0", RefusedPrefix::Default),
        ("2000::/3", RefusedPrefix::Default),
        ("127.0.0.0/8", RefusedPrefix::Loopback),
        ("fe80::/64", RefusedPrefix::LinkLocal),
        ("224.0.0.0/4", RefusedPrefix::Multicast),
        ("128.0.0.0/1", RefusedPrefix::LinkLocal),
        ("240.0.0.0/8", RefusedPrefix::Reserved),
    ] {
        assert_eq!(
            refusal(&ledger, grant("c", &[prefix])),
            SigningError::Refused {
                prefix: net(prefix),
                why
            }
        );
    }
}

#[test]
fn one_prefix_is_given_once_and_as_one_kind() {
    let (ledger, _) = standard();
    let both = Body::Grant(Grant {
        service_prefixes: nets(&["10.2.0.0/16"]),
        ..a_grant("c", &["10.2.0.0/16"])
    });
    assert_eq!(
        refusal(&ledger, both),
        SigningError::Twice(net("10.2.0.0/16"))
    );
}

#[test]
fn what_is_named_must_be_there() {
    let (ledger, _) = standard();
    assert_eq!(
        refusal(&ledger, added("z", &["10.9.0.0/16"])),
        SigningError::NoSite(name("z"))
    );
    assert_eq!(
        refusal(&ledger, revoke_site("z")),
        SigningError::NoSite(name("z"))
    );
    assert_eq!(
        refusal(&ledger, removed("a", &["10.1.0.0/16"])),
        SigningError::NotHeld {
            site: name("a"),
            prefix: net("10.1.0.0/16")
        }
    );
    let unknown = after(&genesis(), grant("x", &[]));
    assert_eq!(
        refusal(&ledger, close(&unknown, &[])),
        SigningError::NoGrant(unknown.hash())
    );
    assert_eq!(
        refusal(&ledger, Body::BrokerRemoved { key: node(1) }),
        SigningError::NoBroker(node(1))
    );
    let other_store = Body::Grant(Grant {
        store: StoreId([1; 16]),
        ..a_grant("c", &[])
    });
    assert_eq!(
        refusal(&ledger, other_store),
        SigningError::NoStore(StoreId([1; 16]))
    );
}

#[test]
fn a_grant_has_a_window_and_a_use() {
    let (ledger, _) = standard();
    let window = Body::Grant(Grant {
        not_after: 100,
        ..a_grant("c", &[])
    });
    assert_eq!(refusal(&ledger, window), SigningError::Window);
    let none = Body::Grant(Grant {
        uses: Uses::AtMost(0),
        ..a_grant("c", &[])
    });
    assert_eq!(refusal(&ledger, none), SigningError::NoUse);
    let not_so_many = Body::Grant(Grant {
        uses: Uses::AtMost(u32::MAX),
        ..a_grant("c", &[])
    });
    assert!(matches!(
        refusal(&ledger, not_so_many),
        SigningError::Form(_)
    ));
}

#[test]
fn sites_and_brokers_have_quotas() {
    let (mut ledger, _) = standard();
    let many = |from: usize, count: usize| -> Vec<IpNetwork> {
        (from..from + count)
            .map(|at| net(&format!("172.16.{at}.0/24")))
            .collect()
    };
    let body = |prefixes| {
        Body::Grant(Grant {
            prefixes,
            ..a_grant("c", &[])
        })
    };
    let next = ledger.next(9, body(many(0, 255))).unwrap();
    ledger.insert(next.sign(&authority())).unwrap();
    assert!(ledger.next(9, body(many(0, 256))).is_ok());
    assert_eq!(
        refusal(&ledger, grant("c", &["10.20.0.0/16", "10.21.0.0/16"])),
        SigningError::TooManyPrefixes(name("c"))
    );
    for number in 0..MAX_BROKERS as u64 - 1 {
        let broker = Broker {
            key: node(number),
            ..a_broker()
        };
        let next = ledger.next(9, Body::Broker(broker)).unwrap();
        ledger.insert(next.sign(&authority())).unwrap();
    }
    let one_more = Body::Broker(Broker {
        key: node(900),
        ..a_broker()
    });
    assert_eq!(refusal(&ledger, one_more), SigningError::TooManyBrokers);
}

#[test]
fn what_changes_nothing_or_cannot_be_read_is_not_signed() {
    let (mut ledger, entries) = standard();
    assert_eq!(refusal(&ledger, revoke(&[])), SigningError::Nothing);
    assert_eq!(
        refusal(&ledger, Body::Broker(a_broker())),
        SigningError::Nothing
    );
    let nowhere = Body::Broker(Broker {
        addresses: vec!["no port".to_owned()],
        ..a_broker()
    });
    assert_eq!(
        refusal(&ledger, nowhere),
        SigningError::Form("broker address")
    );
    assert_eq!(
        refusal(&ledger, revoke(&vec![node(1); 5000])),
        SigningError::TooLarge
    );
    let closings = Body::Revocation {
        keys: vec![node(1); 4000],
        closings: vec![
            Closing {
                grant: entries[2].hash(),
                stay: vec![node(2); 4000],
            };
            2
        ],
    };
    assert_eq!(refusal(&ledger, closings), SigningError::TooLarge);
    let next = ledger.next(9, revoke(&[broker_key().public()])).unwrap();
    ledger.insert(next.sign(&authority())).unwrap();
    let revoked = Body::Broker(Broker {
        addresses: Vec::new(),
        ..a_broker()
    });
    assert_eq!(
        refusal(&ledger, revoked),
        SigningError::RevokedBroker(broker_key().public())
    );
}

#[test]
fn a_change_of_authority_needs_the_recovery_key_and_a_new_authority() {
    let (ledger, _) = standard();
    assert_eq!(
        refusal(&ledger, recover(3, &key(70))),
        SigningError::Recovery
    );
    assert_eq!(
        refusal(&ledger, recover(0, &authority())),
        SigningError::OldAuthority
    );
}

#[test]
fn a_fork_stops_all_but_what_ends_it_or_revokes() {
    let (mut ledger, entries) = standard();
    let own = after(&entries[3], grant("c", &[]));
    let other = after(&entries[3], grant("d", &[]));
    ledger.insert(own.clone()).unwrap();
    ledger.insert(other.clone()).unwrap();
    let split = ledger.head().unwrap();
    assert_eq!(split.number, 3);
    for body in [
        grant("e", &[]),
        added("a", &[]),
        Body::Broker(Broker {
            key: node(1),
            ..a_broker()
        }),
        Body::BrokerRemoved {
            key: broker_key().public(),
        },
    ] {
        assert_eq!(refusal(&ledger, body), SigningError::Forked { split });
    }
    for body in [revoke(&[node(1)]), revoke_site("a"), recover(0, &key(70))] {
        assert_eq!(ledger.next(9, body).unwrap().previous, own.hash());
    }
    let settle = |hash| Body::Settlement { other: hash };
    let for_own = ledger.next(9, settle(other.hash())).unwrap();
    assert_eq!((for_own.previous, for_own.number), (own.hash(), 5));
    let for_other = ledger.next(9, settle(own.hash())).unwrap();
    assert_eq!(for_other.previous, other.hash());
    assert_eq!(
        refusal(&ledger, settle(entries[1].hash())),
        SigningError::NoHead(entries[1].hash())
    );
    ledger.insert(for_other.sign(&authority())).unwrap();
    assert_eq!(ledger.charter().fork, None);
    assert_eq!(
        refusal(&ledger, settle(own.hash())),
        SigningError::NotForked
    );
    assert!(ledger.next(9, grant("e", &[])).is_ok());
}

#[test]
fn an_entry_follows_a_head_and_nothing_else() {
    let (ledger, entries) = standard();
    for previous in [entries[1].hash(), Hash([1; 32])] {
        assert_eq!(
            ledger.next_after(previous, 9, grant("c", &[])),
            Err(SigningError::NoHead(previous))
        );
    }
    let head = ledger.head().unwrap().hash;
    assert!(ledger.next_after(head, 9, grant("c", &[])).is_ok());
    assert_eq!(
        refusal(
            &ledger,
            Body::Genesis {
                authority: authority().public(),
                recovery: head
            }
        ),
        SigningError::Genesis
    );
}
