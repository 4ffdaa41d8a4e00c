//! Every kind of entry there and back, and any bit of it changed.

use proptest::prelude::*;

use super::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn nets(count: u8) -> Vec<IpNetwork> {
    (0..count)
        .map(|at| {
            let text = if at % 2 == 0 {
                format!("10.{at}.0.0/16")
            } else {
                format!("fd00:{at}::/32")
            };
            text.parse().unwrap()
        })
        .collect()
}

fn any_key() -> impl Strategy<Value = PublicKey> {
    (0..8_u8).prop_map(|seed| key(seed).public())
}

fn any_keys() -> impl Strategy<Value = Vec<PublicKey>> {
    proptest::collection::vec(any_key(), 0..4)
}

fn any_hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

fn any_name() -> impl Strategy<Value = Name> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
}

fn any_nets() -> impl Strategy<Value = Vec<IpNetwork>> {
    (0..5_u8).prop_map(nets)
}

fn any_store() -> impl Strategy<Value = StoreId> {
    any::<[u8; 16]>().prop_map(StoreId)
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let role = prop_oneof![
        Just(GrantRole::Gateway),
        Just(GrantRole::Agent),
        Just(GrantRole::Any)
    ];
    let uses = prop_oneof![Just(Uses::Unlimited), (1..u32::MAX).prop_map(Uses::AtMost)];
    let given = (any_name(), any_nets(), any_nets());
    let limits = (role, any::<(u64, u64)>(), uses, any_key(), any_store());
    (given, limits).prop_map(|((site, prefixes, service_prefixes), limits)| {
        let (role, (not_before, not_after), uses, join_key, store) = limits;
        Grant {
            site,
            prefixes,
            service_prefixes,
            role,
            not_before,
            not_after,
            uses,
            join_key,
            store,
        }
    })
}

fn any_body() -> impl Strategy<Value = Body> {
    let closing = (any_hash(), any_keys()).prop_map(|(grant, stay)| Closing { grant, stay });
    let address = prop_oneof![
        Just("broker.example:7800".to_owned()),
        Just("192.0.2.1:1".to_owned()),
        Just("[2001:db8::1]:65535".to_owned())
    ];
    prop_oneof![
        (any_key(), any_hash()).prop_map(|(authority, recovery)| Body::Genesis {
            authority,
            recovery
        }),
        any_grant().prop_map(Body::Grant),
        (any_name(), any_nets(), any_nets(), any_nets()).prop_map(
            |(site, added, added_service, removed)| Body::Prefixes {
                site,
                added,
                added_service,
                removed
            }
        ),
        (any_keys(), proptest::collection::vec(closing, 0..3))
            .prop_map(|(keys, closings)| Body::Revocation { keys, closings }),
        any_name().prop_map(|site| Body::SiteRevoked { site }),
        (
            any_key(),
            any_store(),
            proptest::collection::vec(address, 0..9)
        )
            .prop_map(|(key, store, addresses)| Body::Broker(Broker {
                key,
                store,
                addresses
            })),
        any_key().prop_map(|key| Body::BrokerRemoved { key }),
        (any_key(), any_key(), any_hash()).prop_map(|(recovery, authority, next_recovery)| {
            Body::Authority {
                recovery,
                authority,
                next_recovery,
            }
        }),
        any_hash().prop_map(|other| Body::Settlement { other }),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (any::<u64>(), any_hash(), any::<u64>(), any_body()).prop_map(
        |(number, previous, issued, body)| Entry {
            number,
            previous,
            issued,
            body,
        },
    )
}

/// Signed by the key that `verify` asks for, where the body names it.
fn signer(entry: &Entry) -> SigningKey {
    let named = match &entry.body {
        Body::Genesis { authority, .. } => Some(*authority),
        Body::Authority { recovery, .. } => Some(*recovery),
        Body::Grant(_)
        | Body::Prefixes { .. }
        | Body::Revocation { .. }
        | Body::SiteRevoked { .. }
        | Body::Broker(_)
        | Body::BrokerRemoved { .. }
        | Body::Settlement { .. } => None,
    };
    let seeds = (0..8).find(|seed| named == Some(key(*seed).public()));
    key(seeds.unwrap_or(99))
}

fn grant_of(uses: Uses) -> Entry {
    Entry {
        number: 1,
        previous: Hash([1; 32]),
        issued: 2,
        body: Body::Grant(Grant {
            site: "a".parse().unwrap(),
            prefixes: Vec::new(),
            service_prefixes: Vec::new(),
            role: GrantRole::Any,
            not_before: 0,
            not_after: 1,
            uses,
            join_key: key(1).public(),
            store: StoreId([0; 16]),
        }),
    }
}

#[test]
fn a_grant_of_no_use_never_reads_as_one_of_unlimited_use() {
    let none = grant_of(Uses::AtMost(0)).sign(&key(99));
    assert_eq!(
        SignedEntry::read(none.bytes()),
        Err(BlobError::Field("number of uses"))
    );
    let unlimited = grant_of(Uses::Unlimited).sign(&key(99));
    assert_eq!(SignedEntry::read(unlimited.bytes()), Ok(unlimited));
}

#[test]
fn an_entry_of_another_version_kind_or_size_is_refused() {
    let bytes = grant_of(Uses::Unlimited).sign(&key(99)).bytes().to_vec();
    let mut newer = bytes.clone();
    newer[0] = 2;
    assert_eq!(SignedEntry::read(&newer), Err(BlobError::Version(2)));
    let mut kind = bytes.clone();
    kind[1 + 8 + 32 + 8] = 9;
    assert_eq!(SignedEntry::read(&kind), Err(BlobError::Field("kind")));
    assert_eq!(SignedEntry::read(&bytes[..63]), Err(BlobError::Short));
    assert_eq!(
        SignedEntry::read(&vec![1; MAX_ENTRY + 1]),
        Err(BlobError::Long)
    );
}

#[test]
fn a_recovery_is_no_signature_of_an_authority() {
    let change = Entry {
        number: 1,
        previous: Hash([1; 32]),
        issued: 2,
        body: Body::Authority {
            recovery: key(1).public(),
            authority: key(2).public(),
            next_recovery: Hash([3; 32]),
        },
    };
    let payload = change.payload();
    assert_eq!(
        change.clone().sign(&key(1)).verify(&key(9).public()),
        Ok(())
    );
    assert!(change.sign(&key(9)).verify(&key(9).public()).is_err());
    let mut bytes = payload.clone();
    bytes.extend(key(1).sign(Domain::Entry, &payload).0);
    let wrong_domain = SignedEntry::read(&bytes).unwrap();
    assert!(wrong_domain.verify(&key(1).public()).is_err());
}

#[test]
fn a_broker_address_is_one_that_can_be_dialled() {
    for good in [
        "broker.example:7800",
        "192.0.2.1:1",
        "[2001:db8::1]:65535",
        "broker_1:80",
        "a:7800",
    ] {
        assert!(is_broker_address(good), "{good}");
    }
    for bad in [
        "",
        "broker",
        ":7800",
        "broker:",
        "broker:0",
        "broker:65536",
        "broker:+80",
        "broker:-1",
        "broker:http",
        "bro ker:80",
        "2001:db8::1:7800",
        "[2001:db8::1]",
        "[broker]:80",
        "[]:80",
        "[fe80::1%eth0]:80",
        "https://broker:80",
        "user@broker:80",
        "broker\n:80",
    ] {
        assert!(!is_broker_address(bad), "{bad}");
    }
    assert!(!is_broker_address(&format!("{}:80", "x".repeat(253))));
}

#[test]
fn roles_are_what_a_grant_allows() {
    for (grant, gateway, agent) in [
        (GrantRole::Any, true, true),
        (GrantRole::Gateway, true, false),
        (GrantRole::Agent, false, true),
    ] {
        assert_eq!(grant.allows(Role::Gateway), gateway);
        assert_eq!(grant.allows(Role::Agent), agent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 32 } else { 1024 }))]

    #[test]
    fn what_is_signed_reads_back_and_has_one_form(entry in any_entry()) {
        prop_assert_eq!(entry.check_form(), Ok(()));
        let signer = signer(&entry);
        let signed = entry.clone().sign(&signer);
        let read = SignedEntry::read(signed.bytes()).unwrap();
        prop_assert_eq!(&read, &signed);
        prop_assert_eq!(read.entry(), &entry);
        prop_assert_eq!(read.hash(), signed.hash());
        prop_assert_eq!(read.verify(&signer.public()), Ok(()));
    }

    #[test]
    fn any_flipped_bit_is_refused(entry in any_entry(), bit in any::<prop::sample::Index>()) {
        let signer = signer(&entry);
        let mut bytes = entry.sign(&signer).bytes().to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = SignedEntry::read(&bytes) {
            prop_assert!(read.verify(&signer.public()).is_err());
        }
    }

    #[test]
    fn an_entry_cut_anywhere_or_longer_is_refused(entry in any_entry(), cut in any::<prop::sample::Index>()) {
        let signed = entry.sign(&key(99));
        let bytes = signed.bytes();
        prop_assert!(SignedEntry::read(&bytes[..cut.index(bytes.len())]).is_err());
        let mut longer = bytes.to_vec();
        longer.push(0);
        prop_assert!(SignedEntry::read(&longer).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic_and_what_reads_is_written_alike(
        kind in 0..10_u8,
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = vec![VERSION; 1];
        bytes.extend([0; 48]);
        bytes.push(kind);
        bytes.extend(rest);
        if let Ok(read) = SignedEntry::read(&bytes) {
            prop_assert_eq!(read.entry().payload(), &bytes[..bytes.len() - SIGNATURE]);
        }
    }

    #[test]
    fn a_changed_byte_still_reads_in_one_form_or_not_at_all(
        entry in any_entry(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut bytes = entry.sign(&key(99)).bytes().to_vec();
        let at = at.index(bytes.len() - SIGNATURE);
        bytes[at] = value;
        if let Ok(read) = SignedEntry::read(&bytes) {
            prop_assert_eq!(read.entry().payload(), &bytes[..bytes.len() - SIGNATURE]);
        }
    }
}
