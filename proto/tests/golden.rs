//! Every kind of ledger entry, byte by byte: a change of format must be meant, and shows here.
//!
//! A file that is missing is written and the test fails once; a file that is there is never
//! changed by a test.

use std::fs;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use ip_network::IpNetwork;
use proto::entry::{Body, Broker, Closing, Entry, Grant, GrantRole, SignedEntry, StoreId, Uses};
use proto::key::{Hash, PublicKey, SigningKey};
use proto::ledger::{Ledger, recovery_hash};
use proto::ledger_file;
use proto::name::Name;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn public(seed: u8) -> PublicKey {
    key(seed).public()
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name]
        .iter()
        .collect()
}

/// In lines of 32 bytes, so that a difference can be seen.
fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(32)
        .map(|line| HEXLOWER.encode(line) + "\n")
        .collect()
}

fn compare(name: &str, found: &str) {
    let path = path(name);
    let Ok(golden) = fs::read_to_string(&path) else {
        fs::write(&path, found).expect("the golden files can be written");
        panic!("{} was missing; look at it and commit it", path.display());
    };
    assert_eq!(
        golden,
        found,
        "the format of {} has changed: nodes that are out there cannot read it",
        path.display()
    );
}

fn check(name: &str, number: u64, body: Body, signer: u8) {
    let previous = if number == 0 {
        Hash([0; 32])
    } else {
        Hash([0xee; 32])
    };
    let signed = Entry {
        number,
        previous,
        issued: 1_700_000_000,
        body,
    }
    .sign(&key(signer));
    let mut text = hex(signed.bytes());
    text.push_str(&format!("hash {}\n", signed.hash()));
    compare(&format!("entry_{name}.hex"), &text);

    let read = SignedEntry::read(signed.bytes()).expect("what was signed reads");
    assert_eq!(read, signed);
    read.verify(&public(signer)).expect("it is signed");
}

fn site() -> Name {
    "fra-1".parse().expect("a name")
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

fn grant(role: GrantRole, uses: Uses) -> Body {
    Body::Grant(Grant {
        site: site(),
        prefixes: vec![net("10.1.0.0/16"), net("2001:db8:1::/48")],
        service_prefixes: vec![net("10.96.0.0/12")],
        role,
        not_before: 1_700_000_000,
        not_after: 1_700_003_600,
        uses,
        join_key: public(3),
        store: StoreId([0x5a; 16]),
    })
}

#[test]
fn entry_0() {
    let body = Body::Genesis {
        authority: public(1),
        recovery: recovery_hash(&public(2)),
    };
    check("genesis", 0, body, 1);
}

#[test]
fn a_grant_of_one_use() {
    check("grant", 7, grant(GrantRole::Gateway, Uses::AtMost(1)), 1);
}

#[test]
fn a_grant_of_unlimited_use() {
    check(
        "grant_unlimited",
        u64::MAX,
        grant(GrantRole::Any, Uses::Unlimited),
        1,
    );
}

#[test]
fn a_grant_to_agents() {
    check(
        "grant_agent",
        8,
        grant(GrantRole::Agent, Uses::AtMost(500)),
        1,
    );
}

#[test]
fn prefixes_given_and_taken() {
    let body = Body::Prefixes {
        site: site(),
        added: vec![net("10.2.0.0/24")],
        added_service: vec![net("fd00:96::/108")],
        removed: vec![net("10.1.0.0/16"), net("192.0.2.7/32")],
    };
    check("prefixes", 9, body, 1);
}

#[test]
fn a_revocation_with_closings() {
    let body = Body::Revocation {
        keys: vec![public(4), public(5)],
        closings: vec![
            Closing {
                grant: Hash([0x11; 32]),
                stay: vec![public(6)],
            },
            Closing {
                grant: Hash([0x22; 32]),
                stay: Vec::new(),
            },
        ],
    };
    check("revocation", 10, body, 1);
}

#[test]
fn a_revoked_site() {
    let body = Body::SiteRevoked { site: site() };
    check("site_revoked", 11, body, 1);
}

#[test]
fn a_broker() {
    let body = Body::Broker(Broker {
        key: public(7),
        store: StoreId([0x5a; 16]),
        addresses: vec![
            "broker.example:7800".to_owned(),
            "[2001:db8::1]:7800".to_owned(),
        ],
    });
    check("broker", 12, body, 1);
}

#[test]
fn a_removed_broker() {
    check(
        "broker_removed",
        13,
        Body::BrokerRemoved { key: public(7) },
        1,
    );
}

#[test]
fn a_change_of_authority() {
    let body = Body::Authority {
        recovery: public(2),
        authority: public(8),
        next_recovery: recovery_hash(&public(9)),
    };
    check("authority", 14, body, 2);
}

#[test]
fn a_settlement() {
    let body = Body::Settlement {
        other: Hash([0x33; 32]),
    };
    check("settlement", 15, body, 1);
}

#[test]
fn a_ledger_file() {
    let first = Ledger::genesis(1_700_000_000, public(1), &public(2)).sign(&key(1));
    let second = Entry {
        number: 1,
        previous: first.hash(),
        issued: 1_700_000_001,
        body: Body::BrokerRemoved { key: public(7) },
    }
    .sign(&key(1));
    compare("ledger.txt", &ledger_file::text([&first, &second]));
}
