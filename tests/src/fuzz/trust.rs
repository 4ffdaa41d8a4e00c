//! What is signed: tokens, ledger entries and their file, records, members.

use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use proto::enrolment::{Enrolment, JoinProof};
use proto::entry::{
    Body, Broker, Closing, Entry, Grant, GrantRole, Role, SignedEntry, StoreId, Uses,
};
use proto::key::{Hash, SigningKey, WireguardKey};
use proto::ledger::Ledger;
use proto::ledger_file;
use proto::mesh::{Mesh, Taken};
use proto::name::Name;
use proto::record::{Member, NodeState, Presence, Record, SignedRecord};
use proto::token::{PREFIX, Token};
use sha2::{Digest, Sha256};

const SIGNATURE: usize = 64;
const STORE: StoreId = StoreId([4; 16]);

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32])
}

/// A paste, and the token whose content these bytes are, with a checksum that holds.
///
/// # Panics
/// If a token that was read is not written as it was.
pub fn token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        token_line(text);
    }
    let sum = Sha256::digest(bytes);
    let whole = [bytes, &sum[..4]].concat();
    token_line(&format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&whole)));
}

fn token_line(text: &str) {
    if let Ok(token) = Token::decode(text) {
        let line = token.encode();
        let pasted: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        assert_eq!(*line, pasted);
    }
}

/// A ledger entry.
///
/// # Panics
/// If one value has two forms.
pub fn entry(bytes: &[u8]) {
    let Ok(read) = SignedEntry::read(bytes) else {
        return;
    };
    assert_eq!(read.bytes(), bytes);
    let again = read.entry().clone().sign(&key(1));
    let payload = bytes.len() - SIGNATURE;
    assert_eq!(again.bytes()[..payload], bytes[..payload]);
    assert_eq!(again.hash(), read.hash());
    let _ = read.verify(&key(1).public());
}

/// A ledger's file.
///
/// # Panics
/// If what was read is not written so that it reads the same.
pub fn ledger_text(bytes: &[u8]) {
    if let Ok(parsed) = ledger_file::parse(bytes) {
        let text = ledger_file::text(&parsed.entries);
        let again = ledger_file::parse(&text).expect("it has just been written");
        assert_eq!(again.entries, parsed.entries);
        assert!(!again.torn_tail);
    }
}

/// Entries signed by who may sign and who may not, each after any other: four bytes a step.
///
/// # Panics
/// If two ledgers that took the same entries in different orders differ in anything.
pub fn ledger(steps: &[u8]) {
    let entries = entries(steps);
    let straight = taken(entries.iter());
    let other = taken(entries.iter().rev());
    assert_eq!(straight.len(), other.len());
    assert_eq!(straight.heads(), other.heads());
    assert_eq!(straight.head(), other.head());
    assert_eq!(straight.charter(), other.charter());
    let missing = straight.missing(&other.heads());
    assert!(missing.is_empty());
}

/// The ledger after the entries were shown to it in this order until no more were taken.
fn taken<'a>(entries: impl Iterator<Item = &'a SignedEntry> + Clone) -> Ledger {
    let first = entries.clone().find(|entry| entry.entry().number == 0);
    let mut ledger = Ledger::new(first.expect("there is an entry 0").hash());
    let mut before = usize::MAX;
    while ledger.len() != before {
        before = ledger.len();
        for entry in entries.clone() {
            let _ = ledger.insert(entry.clone());
        }
    }
    ledger
}

/// More cost time and show nothing new.
const MOST_STEPS: usize = 24;

fn entries(steps: &[u8]) -> Vec<SignedEntry> {
    let genesis = Ledger::genesis(0, key(1).public(), &key(2).public()).sign(&key(1));
    let mut entries = vec![genesis];
    for step in steps.as_chunks::<4>().0.iter().take(MOST_STEPS) {
        let [kind, parent, other, detail] = *step;
        let parent = &entries[usize::from(parent) % entries.len()];
        let other = &entries[usize::from(other) % entries.len()];
        let body = body(kind, other.hash(), detail);
        let settled = if matches!(body, Body::Settlement { .. }) {
            other.entry().number
        } else {
            0
        };
        let number = parent.entry().number.max(settled) + 1;
        // The first authority, its recovery key, the second authority and its recovery key.
        let signer = key(1 + (kind >> 4) % 4);
        let entry = Entry {
            number,
            previous: parent.hash(),
            issued: u64::from(detail),
            body,
        };
        entries.push(entry.sign(&signer));
    }
    entries
}

fn body(kind: u8, other: Hash, detail: u8) -> Body {
    let site = if detail & 1 == 0 { "paris" } else { "rome" };
    let site = site.parse().expect("a name");
    let prefix = format!("10.{}.0.0/{}", detail >> 4, 8 + detail % 9 * 2);
    match kind % 8 {
        0 => Body::Grant(grant(site, &prefix)),
        1 => Body::Prefixes {
            site,
            added: prefix.parse().into_iter().collect(),
            added_service: vec![],
            removed: vec![],
        },
        2 => Body::Prefixes {
            site,
            added: vec![],
            added_service: vec![],
            removed: prefix.parse().into_iter().collect(),
        },
        3 => Body::Revocation {
            keys: vec![key(detail | 0x80).public()],
            closings: vec![Closing {
                grant: other,
                stay: vec![key(detail).public()],
            }],
        },
        4 => Body::SiteRevoked { site },
        5 => Body::Broker(Broker {
            key: key(detail | 0x40).public(),
            store: STORE,
            addresses: vec![],
        }),
        6 => Body::Authority {
            recovery: key(if detail & 1 == 0 { 2 } else { 4 }).public(),
            authority: key(3).public(),
            next_recovery: proto::ledger::recovery_hash(&key(4).public()),
        },
        _ => Body::Settlement { other },
    }
}

fn grant(site: Name, prefix: &str) -> Grant {
    Grant {
        site,
        prefixes: prefix.parse().into_iter().collect(),
        service_prefixes: vec![],
        role: GrantRole::Any,
        not_before: 0,
        not_after: 1,
        uses: Uses::AtMost(2),
        join_key: key(9).public(),
        store: STORE,
    }
}

/// A node's record.
///
/// # Panics
/// If one value has two forms.
pub fn record(bytes: &[u8]) {
    let Ok(read) = SignedRecord::read(bytes) else {
        return;
    };
    assert_eq!(read.bytes(), bytes);
    assert_eq!(read.record().check_form(), Ok(()));
    // Signed again by a key that is here, all but the identity is as it was.
    let mut record = read.record().clone();
    let before = record.identity;
    record.identity = key(5).public();
    let again = record.sign(&key(5));
    let names = read.record().site.as_str().len() + read.record().node.as_str().len();
    let identity = 1 + 32 + 2 + names + 1;
    let payload = bytes.len() - SIGNATURE;
    let mut expected = bytes[..payload].to_vec();
    assert_eq!(expected[identity..identity + 32], *before.as_bytes());
    expected[identity..identity + 32].copy_from_slice(key(5).public().as_bytes());
    assert_eq!(again.bytes()[..payload], expected);
}

/// A mesh that takes one member, and that member.
struct Scene {
    entries: Vec<SignedEntry>,
    member: Member,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let genesis = Ledger::genesis(0, key(1).public(), &key(2).public()).sign(&key(1));
    let mesh = genesis.hash();
    let mut entries = vec![genesis];
    let site: Name = "paris".parse().expect("a name");
    let broker = Broker {
        key: key(3).public(),
        store: STORE,
        addresses: vec![],
    };
    for body in [
        Body::Broker(broker),
        Body::Grant(grant(site.clone(), "10.1.0.0/16")),
    ] {
        let last = &entries[entries.len() - 1];
        let entry = Entry {
            number: last.entry().number + 1,
            previous: last.hash(),
            issued: 0,
            body,
        };
        entries.push(entry.sign(&key(1)));
    }
    let record = Record {
        mesh,
        site: site.clone(),
        node: site,
        role: Role::Gateway,
        identity: key(5).public(),
        sequence: 1,
        issued: 0,
        state: NodeState::Present(Presence {
            wireguard: WireguardKey::new([9; 32]).expect("a good key"),
            next_wireguard: None,
            candidates: vec!["198.51.100.7:51820".parse().expect("an address")],
            lan_address: None,
            region: "r".to_owned(),
            zone: String::new(),
            capabilities: Default::default(),
        }),
    };
    let proof = JoinProof::sign(mesh, entries[2].hash(), &key(9), &key(5));
    Scene {
        entries,
        member: Member {
            enrolment: proof.enrol(0, &key(3)).write(),
            record: record.sign(&key(5)).bytes().to_vec(),
        },
    }
});

/// A member and its parts as bytes; and the changes they make to a true one, three bytes a step.
///
/// # Panics
/// If one value has two forms, or if a mesh takes a member that is not the true one.
pub fn member(bytes: &[u8]) {
    if let Ok(member) = Member::read(bytes) {
        assert_eq!(member.write(), bytes);
        offer(&member);
    }
    if let Ok(proof) = JoinProof::read(bytes) {
        assert_eq!(proof.write(), bytes);
    }
    if let Ok(enrolment) = Enrolment::read(bytes) {
        assert_eq!(enrolment.write(), bytes);
    }
    let mut changed = SCENE.member.clone();
    for [at, high, change] in bytes.as_chunks::<3>().0 {
        let blob = if high & 0x80 == 0 {
            &mut changed.record
        } else {
            &mut changed.enrolment
        };
        let at = usize::from(*at) + 256 * usize::from(high & 3);
        let length = blob.len();
        blob[at % length] ^= change;
    }
    offer(&changed);
}

fn offer(member: &Member) {
    let scene = &*SCENE;
    let mut mesh = Mesh::new(scene.entries[0].hash(), None);
    for entry in &scene.entries {
        mesh.handle_entry(entry.bytes()).expect("a good ledger");
    }
    let taken = mesh.handle_member(member);
    if *member == scene.member {
        assert_eq!(taken, Ok(Taken::New));
    } else {
        taken.expect_err("it was changed");
        assert_eq!(mesh.nodes().count(), 0);
    }
}
