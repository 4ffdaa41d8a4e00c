//! Whatever was signed, honestly or not: every receiver that has it decides alike, in whatever
//! order it came.

use proptest::prelude::*;

use super::*;

/// What a step of a random tree signs.
#[derive(Clone, Debug)]
enum Step {
    Body(Body),
    /// Closes the grant that the n-th entry is.
    Close(usize),
    /// Gives up the n-th entry.
    Settle(usize),
    Recover,
}

fn site() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(str::to_owned)
}

fn prefix() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("10.0.0.0/8"),
        Just("10.1.0.0/16"),
        Just("10.1.1.0/24"),
        Just("10.2.0.0/16"),
        Just("fd00::/16"),
        Just("fd00::/64"),
        Just("0.0.0.0/0"),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let body = |body: Body| Step::Body(body);
    prop_oneof![
        4 => (site(), prefix()).prop_map(move |(site, prefix)| body(grant(&site, &[prefix]))),
        2 => (site(), prefix(), prefix())
            .prop_map(move |(site, on, off)| body(prefixes_of(&site, &[on], &[off]))),
        1 => (0..4_u64).prop_map(move |at| body(revoke(&[node(at)]))),
        1 => site().prop_map(move |site| body(revoke_site(&site))),
        1 => (0..3_u64).prop_map(move |at| body(Body::Broker(Broker {
            key: node(at),
            ..a_broker()
        }))),
        1 => (0..3_u64).prop_map(move |at| body(Body::BrokerRemoved { key: node(at) })),
        1 => any::<usize>().prop_map(Step::Close),
        3 => any::<usize>().prop_map(Step::Settle),
        1 => Just(Step::Recover),
    ]
}

/// Grows a tree: each step stands on some entry, mostly the last one. Who signs is looked up in
/// the ledger that takes them all.
fn grow(steps: Vec<(Step, Option<usize>)>) -> Vec<SignedEntry> {
    let mut ledger = ledger_of(&[&genesis()]);
    let mut entries = vec![genesis()];
    for (at, (step, parent)) in steps.into_iter().enumerate() {
        let parent = parent.map_or(entries.len() - 1, |parent| parent % entries.len());
        let before = entries[parent].clone();
        let some = |number: usize| entries[number % entries.len()].clone();
        let signer = |key: PublicKey| {
            std::iter::once(authority())
                .chain((100..200).map(super::key))
                .find(|signer| signer.public() == key)
                .unwrap()
        };
        let link = &ledger.links[parent];
        let authority = signer(link.authority);
        let next = match step {
            Step::Body(body) => after_by(&before, body, &authority),
            Step::Close(number) => after_by(&before, close(&some(number), &[node(1)]), &authority),
            Step::Settle(number) => settlement(&before, &some(number), &authority),
            Step::Recover => {
                let number = (0..50)
                    .find(|number| recovery_hash(&recovery(*number).public()) == link.recovery)
                    .unwrap();
                let new = key(100 + at as u64);
                after_by(&before, recover(number, &new), &recovery(number))
            }
        };
        // A settlement of what is no fork is refused, and a repeated step is known.
        if ledger.insert(next.clone()) == Ok(Inserted::New) {
            entries.push(next);
        }
    }
    entries
}

fn tree(most: usize) -> impl Strategy<Value = Vec<SignedEntry>> {
    let parent = prop_oneof![3 => Just(None), 2 => any::<usize>().prop_map(Some)];
    proptest::collection::vec((step(), parent), 1..most).prop_map(grow)
}

/// Inserts in the order of `ranks`, whatever is refused as an orphan again later.
fn insert_ranked(entries: &[SignedEntry], ranks: &[u32]) -> Ledger {
    let mut waiting: Vec<(u32, &SignedEntry)> =
        ranks.iter().copied().cycle().zip(entries).collect();
    waiting.sort_by_key(|(rank, _)| *rank);
    let mut ledger = Ledger::new(genesis().hash());
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|(_, entry)| match ledger.insert((*entry).clone()) {
            Ok(taken) => {
                assert_eq!(taken, Inserted::New);
                false
            }
            Err(LedgerError::Orphan { .. }) => true,
            Err(error) => panic!("{error} in another order"),
        });
        assert!(waiting.len() < before, "nothing left that can be taken");
    }
    ledger
}

/// Unoptimised, a case takes some milliseconds; `cargo test --release` looks further.
const CASES: u32 = if cfg!(debug_assertions) { 60 } else { 1000 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn any_order_gives_the_same_charter(
        entries in tree(24),
        ranks in proptest::collection::vec(any::<u32>(), 24),
    ) {
        let one = ledger_of(&entries.iter().collect::<Vec<_>>());
        let other = insert_ranked(&entries, &ranks);
        prop_assert_eq!(one.charter(), other.charter());
        prop_assert_eq!(one.heads(), other.heads());
        prop_assert_eq!(one.head(), other.head());
    }

    #[test]
    fn what_is_added_entry_by_entry_is_what_adding_up_anew_gives(entries in tree(24)) {
        let mut ledger = Ledger::new(genesis().hash());
        for entry in entries {
            ledger.insert(entry).unwrap();
            let line = Line::of(&ledger.links);
            prop_assert_eq!(&Charter::of(&ledger.links, &line), ledger.charter());
            prop_assert_eq!(line.head, ledger.line.head);
            prop_assert_eq!(&line.branches, &ledger.line.branches);
            prop_assert_eq!(&line.places, &ledger.line.places);
            prop_assert_eq!(line.void, ledger.line.void);
        }
    }

    #[test]
    fn what_was_revoked_stays_revoked_unless_the_authority_is_replaced(entries in tree(24)) {
        let mut ledger = Ledger::new(genesis().hash());
        let mut revoked = BTreeSet::new();
        for entry in entries {
            let replaces = matches!(entry.entry().body, Body::Authority { .. });
            ledger.insert(entry).unwrap();
            let now = ledger.charter().revoked.clone();
            prop_assert!(replaces || revoked.is_subset(&now));
            revoked = now;
        }
    }

    #[test]
    fn a_prefix_is_owned_unless_an_earlier_one_of_another_site_overlaps(entries in tree(40)) {
        let ledger = ledger_of(&entries.iter().collect::<Vec<_>>());
        let prefixes = &ledger.charter().prefixes;
        for (at, held) in prefixes.iter().enumerate() {
            let winner = prefixes[..at].iter().find(|earlier| {
                earlier.site != held.site
                    && crate::prefix::overlap(earlier.prefix, held.prefix)
                    && !matches!(earlier.state, PrefixState::Refused(_))
            });
            match (&held.state, winner) {
                (PrefixState::Owned, None) => {}
                (PrefixState::Overlaps { site, .. }, Some(winner)) => {
                    prop_assert_eq!(site, &winner.site);
                }
                (PrefixState::Refused(why), _) => {
                    prop_assert_eq!(crate::prefix::check(held.prefix), Err(*why));
                }
                (PrefixState::Quarantined, _) => prop_assert!(ledger.charter().fork.is_some()),
                (state, winner) => prop_assert!(false, "{:?} but {:?}", state, winner),
            }
        }
    }

    #[test]
    fn no_two_sites_own_what_overlaps(entries in tree(24)) {
        let ledger = ledger_of(&entries.iter().collect::<Vec<_>>());
        let owned: Vec<&SitePrefix> = ledger
            .charter()
            .prefixes
            .iter()
            .filter(|held| held.state == PrefixState::Owned)
            .collect();
        for one in &owned {
            for other in &owned {
                prop_assert!(
                    one.site == other.site || !crate::prefix::overlap(one.prefix, other.prefix)
                );
            }
        }
    }

    #[test]
    fn what_one_ledger_lacks_another_hands_over(entries in tree(16), cut in any::<prop::sample::Index>()) {
        let whole = ledger_of(&entries.iter().collect::<Vec<_>>());
        let part = &entries[..=cut.index(entries.len())];
        let mut behind = ledger_of(&part.iter().collect::<Vec<_>>());
        let missing = whole.missing(&behind.heads());
        for entry in missing {
            behind.insert(entry.clone()).unwrap();
        }
        prop_assert_eq!(whole.charter(), behind.charter());
        prop_assert_eq!(whole.heads(), behind.heads());
        prop_assert!(whole.missing(&behind.heads()).is_empty());
    }

    #[test]
    fn a_flipped_bit_is_refused(entries in tree(8), at in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>()) {
        let at = at.index(entries.len());
        let mut bytes = entries[at].bytes().to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut before = ledger_of(&entries[..at].iter().collect::<Vec<_>>());
        if let Ok(flipped) = SignedEntry::read(&bytes) {
            prop_assert!(before.insert(flipped.clone()).is_err());
            let mut whole = ledger_of(&entries.iter().collect::<Vec<_>>());
            prop_assert!(whole.insert(flipped).is_err());
        }
    }
}
