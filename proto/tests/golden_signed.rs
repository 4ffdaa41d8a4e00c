//! What is signed, hashed or kept: entries, grants, proofs, enrolments, records, tokens.

#[path = "golden/check.rs"]
mod check;

use proto::enrolment::{Enrolment, JoinProof};
use proto::entry::{
    Body, Broker, Closing, Entry, Grant, GrantRole, Role, SignedEntry, StoreId, Uses,
};
use proto::key::{Domain, Hash, PublicKey, SigningKey, WireguardKey};
use proto::ledger::Ledger;
use proto::mesh::Mesh;
use proto::record::{Capabilities, Member, NodeState, Presence, Record, SignedRecord};
use proto::token::{Token, TokenBroker};
use zeroize::Zeroizing;

const SEED: [u8; 32] = [0x33; 32];
const STORE: StoreId = StoreId([0x44; 16]);

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32])
}

fn public(number: u8) -> PublicKey {
    key(number).public()
}

fn grant() -> Grant {
    Grant {
        site: "paris".parse().expect("the vectors are valid"),
        prefixes: vec![
            "10.1.0.0/16".parse().expect("the vectors are valid"),
            "2001:db8:1::/48".parse().expect("the vectors are valid"),
        ],
        service_prefixes: vec!["10.96.0.0/12".parse().expect("the vectors are valid")],
        role: GrantRole::Any,
        not_before: 1_700_000_000,
        not_after: 1_700_003_600,
        uses: Uses::AtMost(3),
        join_key: SigningKey::from_seed(&SEED).public(),
        store: STORE,
    }
}

/// One entry of each kind in a line, so that each is also taken by a ledger.
#[expect(clippy::too_many_lines, reason = "a list, one of each")]
fn entries() -> Vec<(&'static str, SignedEntry)> {
    let genesis = Ledger::genesis(1_700_000_000, public(1), &public(2)).sign(&key(1));
    let mut line = vec![("genesis", genesis)];
    let append = |line: &mut Vec<(&'static str, SignedEntry)>, name, body, signer: u8| {
        let last = &line.last().expect("the vectors are valid").1;
        let entry = Entry {
            number: last.entry().number + 1,
            previous: last.hash(),
            issued: 1_700_000_001,
            body,
        };
        let signed = entry.sign(&key(signer));
        line.push((name, signed));
    };
    let broker = Body::Broker(Broker {
        key: public(3),
        store: STORE,
        addresses: vec![
            "broker.example:7800".to_owned(),
            "192.0.2.1:7800".to_owned(),
        ],
    });
    append(&mut line, "broker", broker, 1);
    append(&mut line, "grant", Body::Grant(grant()), 1);
    let paris = line.last().expect("the vectors are valid").1.hash();
    let mut unlimited = grant();
    unlimited.site = "rome".parse().expect("the vectors are valid");
    unlimited.prefixes = vec![];
    unlimited.service_prefixes = vec![];
    unlimited.role = GrantRole::Agent;
    unlimited.uses = Uses::Unlimited;
    append(&mut line, "grant-unlimited", Body::Grant(unlimited), 1);
    let prefixes = Body::Prefixes {
        site: "paris".parse().expect("the vectors are valid"),
        added: vec!["10.3.0.0/16".parse().expect("the vectors are valid")],
        added_service: vec!["10.4.0.0/16".parse().expect("the vectors are valid")],
        removed: vec!["10.1.0.0/16".parse().expect("the vectors are valid")],
    };
    append(&mut line, "prefixes", prefixes, 1);
    let revocation = Body::Revocation {
        keys: vec![public(7)],
        closings: vec![Closing {
            grant: paris,
            stay: vec![public(5)],
        }],
    };
    append(&mut line, "revocation", revocation, 1);
    let site = "rome".parse().expect("the vectors are valid");
    append(&mut line, "site-revoked", Body::SiteRevoked { site }, 1);
    append(
        &mut line,
        "broker-removed",
        Body::BrokerRemoved { key: public(3) },
        1,
    );
    let authority = Body::Authority {
        recovery: public(2),
        authority: public(8),
        next_recovery: Hash::of(Domain::RecoveryKey, public(9).as_bytes()),
    };
    append(&mut line, "authority", authority, 2);
    line
}

fn settlement() -> SignedEntry {
    Entry {
        number: 9,
        previous: Hash([1; 32]),
        issued: 1_700_000_002,
        body: Body::Settlement {
            other: Hash([2; 32]),
        },
    }
    .sign(&key(1))
}

fn grant_entry() -> SignedEntry {
    entries().swap_remove(2).1
}

fn mesh_id() -> Hash {
    entries()[0].1.hash()
}

fn proof() -> JoinProof {
    let join_key = SigningKey::from_seed(&SEED);
    JoinProof::sign(mesh_id(), grant_entry().hash(), &join_key, &key(5))
}

fn enrolment() -> Enrolment {
    proof().enrol(2, &key(3))
}

fn record(state: NodeState) -> SignedRecord {
    Record {
        mesh: mesh_id(),
        site: "paris".parse().expect("the vectors are valid"),
        node: "gate-1".parse().expect("the vectors are valid"),
        role: Role::Gateway,
        identity: public(5),
        sequence: 17,
        issued: 1_700_000_009,
        state,
    }
    .sign(&key(5))
}

fn presence() -> NodeState {
    NodeState::Present(Presence {
        wireguard: WireguardKey::new([9; 32]).expect("the vectors are valid"),
        next_wireguard: Some(WireguardKey::new([10; 32]).expect("the vectors are valid")),
        candidates: vec![
            "198.51.100.7:51820".parse().expect("the vectors are valid"),
            "[2001:db8::7]:51821"
                .parse()
                .expect("the vectors are valid"),
        ],
        lan_address: Some("10.1.0.7".parse().expect("the vectors are valid")),
        region: "eu-west".to_owned(),
        zone: "b".to_owned(),
        capabilities: Capabilities::LANES.with(Capabilities::RELAY),
    })
}

fn member() -> Member {
    Member {
        enrolment: enrolment().write(),
        record: record(presence()).bytes().to_vec(),
    }
}

fn token() -> Token {
    let brokers = vec![
        TokenBroker {
            address: "broker.example:7800".to_owned(),
            key: public(3),
        },
        TokenBroker {
            address: "[2001:db8::1]:7800".to_owned(),
            key: public(4),
        },
    ];
    Token::new(
        mesh_id(),
        public(1),
        brokers,
        grant_entry(),
        Zeroizing::new(SEED),
    )
    .expect("the vectors are valid")
}

#[test]
fn ledger_entries_are_as_they_were() {
    let mut made: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, entry) in entries().into_iter().chain([("settlement", settlement())]) {
        made.push((name.to_owned(), entry.bytes().to_vec()));
        made.push((format!("{name}-hash"), entry.hash().0.to_vec()));
        assert_eq!(SignedEntry::read(entry.bytes()), Ok(entry));
    }
    check::check("entries.txt", &made);
}

#[test]
fn joining_and_records_are_as_they_were() {
    let made = [
        ("proof", proof().write()),
        ("enrolment", enrolment().write()),
        ("record", record(presence()).bytes().to_vec()),
        (
            "record-withdrawn",
            record(NodeState::Withdrawn).bytes().to_vec(),
        ),
        ("member", member().write()),
        ("member-hash", member().hash().0.to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes));
    check::check("records.txt", &made);
}

#[test]
fn tokens_are_as_they_were() {
    let line = token().encode();
    check::check(
        "token.txt",
        &[("token".to_owned(), line.as_bytes().to_vec())],
    );
    let read = Token::decode(&line).unwrap();
    assert_eq!(read.mesh, mesh_id());
    assert_eq!(read.brokers, token().brokers);
}

/// Each domain once: a signature made for one thing must never pass for another.
#[test]
fn signatures_and_hashes_under_each_domain_are_as_they_were() {
    let domains = [
        ("entry", Domain::Entry),
        ("recovery", Domain::Recovery),
        ("recovery-key", Domain::RecoveryKey),
        ("join", Domain::Join),
        ("consent", Domain::Consent),
        ("enrolment", Domain::Enrolment),
        ("record", Domain::Record),
        ("session", Domain::Session),
        ("meeting", Domain::Meeting),
        ("lan-tag", Domain::LanTag),
        ("lan-probe", Domain::LanProbe),
        ("verified", Domain::Verified),
    ];
    let mut made = vec![("public".to_owned(), public(1).as_bytes().to_vec())];
    for (name, domain) in domains {
        let signature = key(1).sign(domain, b"message");
        for (other, domain) in domains {
            let holds = public(1).verify(domain, b"message", &signature).is_ok();
            assert_eq!(holds, other == name, "{name} shown for {other}");
        }
        made.push((format!("{name}-signature"), signature.0.to_vec()));
        made.push((
            format!("{name}-hash"),
            Hash::of(domain, b"message").0.to_vec(),
        ));
    }
    check::check("domains.txt", &made);
}

/// The vectors are not only bytes: together they are a mesh that takes the member.
#[test]
fn the_vectors_make_a_ledger_that_takes_their_member() {
    let mut mesh = Mesh::new(mesh_id(), None);
    for (name, entry) in entries() {
        mesh.handle_entry(entry.bytes())
            .unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    mesh.handle_member(&member()).unwrap();
    assert_eq!(mesh.nodes().count(), 1);
}
