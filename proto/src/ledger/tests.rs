//! A pen that signs entries where a test wants them, and the ledger in its normal form: a line.

mod forks;
mod orders;
mod prefixes;
mod recovery;
mod signing;

use super::*;
use crate::entry::{Broker, Closing, Grant, GrantRole, StoreId, Uses};
use crate::key::SigningKey;
use crate::name::Name;
use ip_network::IpNetwork;

pub(super) const STORE: StoreId = StoreId([9; 16]);

pub(super) fn key(number: u64) -> SigningKey {
    let mut seed = [0xa5; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&seed)
}

pub(super) fn authority() -> SigningKey {
    key(1)
}

/// The n-th recovery key; 0 is the one entry 0 commits to.
pub(super) fn recovery(number: u64) -> SigningKey {
    key(1000 + number)
}

pub(super) fn broker_key() -> SigningKey {
    key(2)
}

pub(super) fn node(number: u64) -> PublicKey {
    key(2000 + number).public()
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(super) fn nets(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| net(text)).collect()
}

pub(super) fn genesis() -> SignedEntry {
    Ledger::genesis(0, authority().public(), &recovery(0).public()).sign(&authority())
}

pub(super) fn after(before: &SignedEntry, body: Body) -> SignedEntry {
    after_by(before, body, &authority())
}

pub(super) fn after_by(before: &SignedEntry, body: Body, signer: &SigningKey) -> SignedEntry {
    Entry {
        number: before.entry().number + 1,
        previous: before.hash(),
        issued: 7,
        body,
    }
    .sign(signer)
}

/// `kept` goes on, `other` is given up.
pub(super) fn settlement(
    kept: &SignedEntry,
    other: &SignedEntry,
    signer: &SigningKey,
) -> SignedEntry {
    Entry {
        number: kept.entry().number.max(other.entry().number) + 1,
        previous: kept.hash(),
        issued: 7,
        body: Body::Settlement {
            other: other.hash(),
        },
    }
    .sign(signer)
}

/// The n-th change of authority, to `authority`.
pub(super) fn recover(number: u64, authority: &SigningKey) -> Body {
    Body::Authority {
        recovery: recovery(number).public(),
        authority: authority.public(),
        next_recovery: recovery_hash(&recovery(number + 1).public()),
    }
}

pub(super) fn grant(site: &str, prefixes: &[&str]) -> Body {
    Body::Grant(a_grant(site, prefixes))
}

pub(super) fn a_grant(site: &str, prefixes: &[&str]) -> Grant {
    Grant {
        site: name(site),
        prefixes: nets(prefixes),
        service_prefixes: Vec::new(),
        role: GrantRole::Any,
        not_before: 100,
        not_after: 200,
        uses: Uses::AtMost(1),
        join_key: key(3).public(),
        store: STORE,
    }
}

pub(super) fn a_broker() -> Broker {
    Broker {
        key: broker_key().public(),
        store: STORE,
        addresses: vec!["broker.example:7800".to_owned()],
    }
}

pub(super) fn revoke(keys: &[PublicKey]) -> Body {
    Body::Revocation {
        keys: keys.to_vec(),
        closings: Vec::new(),
    }
}

pub(super) fn close(grant: &SignedEntry, stay: &[PublicKey]) -> Body {
    Body::Revocation {
        keys: Vec::new(),
        closings: vec![Closing {
            grant: grant.hash(),
            stay: stay.to_vec(),
        }],
    }
}

pub(super) fn revoke_site(site: &str) -> Body {
    Body::SiteRevoked { site: name(site) }
}

pub(super) fn added(site: &str, prefixes: &[&str]) -> Body {
    prefixes_of(site, prefixes, &[])
}

pub(super) fn removed(site: &str, prefixes: &[&str]) -> Body {
    prefixes_of(site, &[], prefixes)
}

pub(super) fn prefixes_of(site: &str, added: &[&str], removed: &[&str]) -> Body {
    Body::Prefixes {
        site: name(site),
        added: nets(added),
        added_service: Vec::new(),
        removed: nets(removed),
    }
}

/// All of them are taken.
pub(super) fn ledger_of(entries: &[&SignedEntry]) -> Ledger {
    let mut ledger = Ledger::new(genesis().hash());
    for entry in entries {
        assert_eq!(
            ledger.insert((*entry).clone()),
            Ok(Inserted::New),
            "{entry:?}"
        );
    }
    ledger
}

/// A line of bodies behind entry 0, signed by the first authority.
pub(super) fn line_of(bodies: impl IntoIterator<Item = Body>) -> Vec<SignedEntry> {
    let mut entries = vec![genesis()];
    for body in bodies {
        let next = after(entries.last().unwrap(), body);
        entries.push(next);
    }
    entries
}

pub(super) fn ledger_of_line(bodies: impl IntoIterator<Item = Body>) -> (Ledger, Vec<SignedEntry>) {
    let entries = line_of(bodies);
    let ledger = ledger_of(&entries.iter().collect::<Vec<_>>());
    (ledger, entries)
}

#[test]
fn an_empty_ledger_takes_only_the_entry_the_mesh_is_named_for() {
    let mut ledger = Ledger::new(genesis().hash());
    assert_eq!(ledger.head(), None);
    assert_eq!(ledger.charter().authority, None);
    let other = Ledger::genesis(1, authority().public(), &recovery(0).public()).sign(&authority());
    assert_eq!(ledger.insert(other), Err(LedgerError::OtherMesh));
    let early = after(&genesis(), grant("a", &[]));
    assert_eq!(ledger.insert(early), Err(LedgerError::Orphan { number: 1 }));
    assert_eq!(ledger.insert(genesis()), Ok(Inserted::New));
    assert_eq!(ledger.insert(genesis()), Ok(Inserted::Known));
    assert_eq!(ledger.charter().authority, Some(authority().public()));
    assert_eq!(ledger.len(), 1);
}

#[test]
fn entry_0_is_signed_by_the_authority_it_names() {
    let forged = Ledger::genesis(0, authority().public(), &recovery(0).public()).sign(&key(66));
    let mut ledger = Ledger::new(forged.hash());
    assert_eq!(
        ledger.insert(forged),
        Err(LedgerError::Signature { number: 0 })
    );
}

#[test]
fn an_entry_follows_by_number_by_hash_and_by_signature() {
    let (mut ledger, entries) = ledger_of_line([grant("a", &["10.0.0.0/16"])]);
    let last = &entries[1];
    let at = |number, previous| Entry {
        number,
        previous,
        issued: 7,
        body: grant("b", &[]),
    };
    for number in [0, 1, 3, u64::MAX] {
        let entry = at(number, last.hash()).sign(&authority());
        assert_eq!(ledger.insert(entry), Err(LedgerError::Number { number }));
    }
    let cut = at(2, Hash([3; 32])).sign(&authority());
    assert_eq!(ledger.insert(cut), Err(LedgerError::Orphan { number: 2 }));
    let forged = at(2, last.hash()).sign(&key(66));
    assert_eq!(
        ledger.insert(forged),
        Err(LedgerError::Signature { number: 2 })
    );
    let second = after(
        last,
        Body::Genesis {
            authority: authority().public(),
            recovery: Hash([0; 32]),
        },
    );
    assert_eq!(
        ledger.insert(second),
        Err(LedgerError::Misplaced { number: 2 })
    );
    assert_eq!(ledger.len(), 2);
    assert_eq!(
        ledger.insert(at(2, last.hash()).sign(&authority())),
        Ok(Inserted::New)
    );
}

#[test]
fn an_entry_cut_behind_leaves_an_older_ledger_that_goes_on_later() {
    let entries = line_of([
        grant("a", &["10.0.0.0/16"]),
        grant("b", &["10.1.0.0/16"]),
        grant("c", &["10.2.0.0/16"]),
    ]);
    let mut ledger = ledger_of(&[&entries[0], &entries[1]]);
    assert_eq!(
        ledger.insert(entries[3].clone()),
        Err(LedgerError::Orphan { number: 3 })
    );
    assert_eq!(ledger.charter().grants.len(), 1);
    assert_eq!(ledger.head().map(|head| head.number), Some(1));
    assert_eq!(ledger.insert(entries[2].clone()), Ok(Inserted::New));
    assert_eq!(ledger.insert(entries[3].clone()), Ok(Inserted::New));
    assert_eq!(ledger.charter().grants.len(), 3);
    assert_eq!(ledger.charter().fork, None);
}

#[test]
fn a_known_entry_with_a_bad_signature_is_refused_and_with_a_good_one_known() {
    let (mut ledger, entries) = ledger_of_line([grant("a", &[])]);
    let mut bytes = entries[1].bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let damaged = SignedEntry::read(&bytes).unwrap();
    assert_eq!(
        ledger.insert(damaged),
        Err(LedgerError::Signature { number: 1 })
    );
    assert_eq!(ledger.insert(entries[1].clone()), Ok(Inserted::Known));
}

#[test]
fn what_is_missing_is_what_is_not_behind_the_heads_of_another() {
    let (ledger, entries) = ledger_of_line([grant("a", &[]), grant("b", &[]), grant("c", &[])]);
    let hashes = |missing: Vec<&SignedEntry>| -> Vec<Hash> {
        missing.iter().map(|entry| entry.hash()).collect()
    };
    let all: Vec<Hash> = entries.iter().map(SignedEntry::hash).collect();
    assert_eq!(hashes(ledger.missing(&[])), all);
    assert_eq!(hashes(ledger.missing(&[all[1]])), all[2..]);
    assert_eq!(hashes(ledger.missing(&[Hash([1; 32])])), all);
    assert_eq!(hashes(ledger.missing(&[all[3], Hash([1; 32])])), []);
    assert_eq!(ledger.heads(), [all[3]]);
    assert_eq!(ledger.entry(&all[2]), Some(&entries[2]));
    assert_eq!(ledger.entry(&Hash([1; 32])), None);
}

#[test]
fn a_revoked_key_stands_under_no_grant() {
    let (ledger, entries) = ledger_of_line([grant("a", &[]), revoke(&[node(1)])]);
    let charter = ledger.charter();
    assert_eq!(
        charter.standing(&entries[1].hash(), &node(1)),
        Standing::Revoked
    );
    assert_eq!(
        charter.standing(&entries[1].hash(), &node(2)),
        Standing::Good
    );
    assert_eq!(
        charter.standing(&Hash([1; 32]), &node(2)),
        Standing::NoGrant
    );
    assert_eq!(
        charter.standing(&Hash([1; 32]), &node(1)),
        Standing::Revoked
    );
}

#[test]
fn a_closed_grant_keeps_those_it_lists_and_no_other() {
    let mut entries = line_of([grant("a", &["10.0.0.0/16"])]);
    let granted = entries[1].clone();
    entries.push(after(&entries[1], close(&granted, &[node(1), node(2)])));
    let mut ledger = ledger_of(&entries.iter().collect::<Vec<_>>());
    let standing =
        |ledger: &Ledger, number| ledger.charter().standing(&granted.hash(), &node(number));
    assert_eq!(standing(&ledger, 1), Standing::Good);
    assert_eq!(standing(&ledger, 2), Standing::Good);
    assert_eq!(standing(&ledger, 3), Standing::GrantClosed);
    assert_eq!(ledger.charter().prefixes[0].state, PrefixState::Owned);

    // Closed once more, none comes back.
    let again = after(&entries[2], close(&granted, &[node(2), node(3)]));
    ledger.insert(again).unwrap();
    assert_eq!(standing(&ledger, 1), Standing::GrantClosed);
    assert_eq!(standing(&ledger, 2), Standing::Good);
    assert_eq!(standing(&ledger, 3), Standing::GrantClosed);
}

#[test]
fn a_revoked_site_loses_grants_and_prefixes_and_its_name_can_be_used_again() {
    let (mut ledger, mut entries) = ledger_of_line([
        grant("a", &["10.0.0.0/16"]),
        grant("b", &["10.1.0.0/16"]),
        revoke_site("a"),
    ]);
    let charter = ledger.charter();
    assert_eq!(
        charter.standing(&entries[1].hash(), &node(1)),
        Standing::SiteRevoked
    );
    assert_eq!(
        charter.standing(&entries[2].hash(), &node(1)),
        Standing::Good
    );
    assert_eq!(charter.sites(), [&name("b")]);
    assert_eq!(charter.prefixes_of(&name("a")).count(), 0);

    entries.push(after(&entries[3], grant("a", &["10.0.0.0/24"])));
    ledger.insert(entries[4].clone()).unwrap();
    let charter = ledger.charter();
    assert_eq!(
        charter.standing(&entries[1].hash(), &node(1)),
        Standing::SiteRevoked
    );
    assert_eq!(
        charter.standing(&entries[4].hash(), &node(1)),
        Standing::Good
    );
    assert_eq!(charter.sites(), [&name("a"), &name("b")]);
    assert_eq!(charter.prefixes_of(&name("a")).count(), 1);

    // A closing of a grant that fell with its site does not open it.
    let closing = after(&entries[4], close(&entries[1], &[node(1)]));
    ledger.insert(closing).unwrap();
    assert_eq!(
        ledger.charter().standing(&entries[1].hash(), &node(1)),
        Standing::SiteRevoked
    );
}

#[test]
fn a_former_broker_is_not_asked_but_what_it_counted_counts() {
    let moved = Broker {
        addresses: vec!["[2001:db8::1]:7800".to_owned()],
        ..a_broker()
    };
    let (mut ledger, entries) =
        ledger_of_line([Body::Broker(a_broker()), Body::Broker(moved.clone())]);
    assert_eq!(ledger.charter().brokers, [moved]);
    let broker = broker_key().public();
    assert!(ledger.charter().may_count(&broker, &STORE));
    assert!(!ledger.charter().may_count(&broker, &StoreId([1; 16])));
    assert!(!ledger.charter().may_count(&node(1), &STORE));

    let gone = after(&entries[2], Body::BrokerRemoved { key: broker });
    ledger.insert(gone.clone()).unwrap();
    assert_eq!(ledger.charter().brokers, []);
    assert!(ledger.charter().may_count(&broker, &STORE));

    ledger.insert(after(&gone, revoke(&[broker]))).unwrap();
    assert!(!ledger.charter().may_count(&broker, &STORE));
}

/// Against the signatures of the same entries in the same run, with a wide margin: it is there to
/// notice work that grows with the square of the entries.
#[test]
fn a_long_ledger_costs_little_more_than_its_signatures() {
    let mut bodies = vec![Body::Broker(a_broker())];
    for at in 0..1000_u32 {
        let site = format!("site-{at}");
        let first = format!("10.{}.{}.0/26", at / 250, at % 250);
        let v6 = format!("fd00:{at:x}::/32");
        bodies.push(grant(&site, &[&first, &v6]));
        bodies.push(grant(&site, &[&first, &v6]));
        bodies.push(added(
            &site,
            &[&format!("172.{}.{}.0/26", 16 + at / 250, at % 250)],
        ));
        bodies.push(added(
            &site,
            &[&format!("192.168.{}.{}/32", at / 250, at % 250)],
        ));
        bodies.push(revoke(&[node(u64::from(at))]));
    }
    let entries = line_of(bodies);
    let before = std::time::Instant::now();
    for entry in &entries {
        entry.verify(&authority().public()).unwrap();
    }
    let signatures = before.elapsed();
    let before = std::time::Instant::now();
    let mut ledger = ledger_of(&entries.iter().collect::<Vec<_>>());
    let line = before.elapsed();
    assert!(line < 10 * signatures, "{line:?} against {signatures:?}");

    let split = &entries[entries.len() - 2];
    let before = std::time::Instant::now();
    ledger
        .insert(after(split, grant("other", &["10.99.0.0/16"])))
        .unwrap();
    let fork = before.elapsed();
    assert!(fork < 10 * signatures, "{fork:?} against {signatures:?}");
}
