//! What goes over the wire: hellos, frames, every message, the reflector's datagrams.

#[path = "golden/check.rs"]
mod check;

use proto::codec::{decode, encode};
use proto::frame::frame;
use proto::hello::{Hello, Versions, Welcome};
use proto::key::Hash;
use proto::message::{
    Answer, Authenticate, Call, Enrol, GrantUse, NodeStatus, Position, Push, Reflector, Refusal,
    Relay, Reply, Request, Who,
};
use proto::reflect::{self, Question};
use proto::relay;

const POSITION: Position = Position {
    epoch: [6; 16],
    revision: 0x0102_0304_0506_0708,
};

#[expect(clippy::too_many_lines, reason = "a list, one of each")]
fn requests() -> Vec<(&'static str, Request)> {
    vec![
        (
            "enrol",
            Request::Enrol(Enrol {
                grant: vec![1, 2],
                proof: vec![3],
                join_session: [4; 64],
                identity_session: [5; 64],
            }),
        ),
        (
            "authenticate-node",
            Request::Authenticate(Authenticate {
                who: Who::Node {
                    identity: [1; 32],
                    enrolment: vec![2, 3],
                },
                session: [4; 64],
            }),
        ),
        (
            "authenticate-authority",
            Request::Authenticate(Authenticate {
                who: Who::Authority { key: [1; 32] },
                session: [4; 64],
            }),
        ),
        ("publish", Request::Publish { member: vec![1, 2] }),
        (
            "watch",
            Request::Watch {
                resume: None,
                heads: vec![],
            },
        ),
        (
            "watch-resume",
            Request::Watch {
                resume: Some(POSITION),
                heads: vec![[1; 32], [2; 32]],
            },
        ),
        (
            "ledger",
            Request::Ledger {
                heads: vec![[1; 32]],
            },
        ),
        (
            "put-ledger",
            Request::PutLedger {
                entries: vec![vec![1], vec![2, 3]],
            },
        ),
        ("reflect", Request::Reflect),
        ("list-nodes", Request::ListNodes { after: None }),
        (
            "list-nodes-after",
            Request::ListNodes {
                after: Some([1; 32]),
            },
        ),
        (
            "list-uses",
            Request::ListUses {
                after: Some(([1; 32], 300)),
            },
        ),
        ("ping", Request::Ping),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    vec![
        ("enrolled", Reply::Enrolled { enrolment: vec![1] }),
        ("authenticated", Reply::Authenticated { now: 1_700_000_000 }),
        ("published", Reply::Published { revision: 70_000 }),
        ("watching", Reply::Watching),
        (
            "ledger",
            Reply::Ledger {
                entries: vec![vec![1]],
                heads: vec![[2; 32]],
                more: true,
            },
        ),
        (
            "ledger-taken",
            Reply::LedgerTaken {
                heads: vec![[2; 32]],
            },
        ),
        (
            "reflector",
            Reply::Reflector(Reflector {
                session: 9,
                key: [8; 32],
                port: 7800,
            }),
        ),
        (
            "nodes",
            Reply::Nodes(vec![NodeStatus {
                member: vec![1],
                connected: true,
                heard: 1_700_000_000,
            }]),
        ),
        (
            "uses",
            Reply::Uses(vec![GrantUse {
                grant: [1; 32],
                use_number: 2,
                identity: [3; 32],
                enrolment: vec![4, 5],
            }]),
        ),
        ("pong", Reply::Pong),
    ]
}

fn refusals() -> Vec<(&'static str, Refusal)> {
    let text = || "why".to_owned();
    vec![
        (
            "token-expired",
            Refusal::TokenExpired {
                not_after: 1,
                now: 2,
            },
        ),
        (
            "token-not-yet",
            Refusal::TokenNotYet {
                not_before: 2,
                now: 1,
            },
        ),
        (
            "token-used",
            Refusal::TokenUsed {
                uses: 1,
                holder: Some([1; 32]),
            },
        ),
        ("token-closed", Refusal::TokenClosed),
        ("site-revoked", Refusal::SiteRevoked),
        ("grant-unknown", Refusal::GrantUnknown),
        ("wrong-mesh", Refusal::WrongMesh { mesh: [1; 32] }),
        (
            "wrong-store",
            Refusal::WrongStore {
                brokers: vec![("b.example:7800".to_owned(), [1; 32])],
            },
        ),
        ("bad-proof", Refusal::BadProof),
        ("wrong-role", Refusal::WrongRole),
        ("not-enrolled", Refusal::NotEnrolled),
        ("revoked", Refusal::Revoked),
        (
            "name-taken",
            Refusal::NameTaken {
                holder: [1; 32],
                heard_s: 5,
            },
        ),
        ("old-sequence", Refusal::OldSequence { latest: 9 }),
        ("bad-record", Refusal::BadRecord { why: text() }),
        ("bad-ledger", Refusal::BadLedger { why: text() }),
        (
            "quota",
            Refusal::Quota {
                what: "gateways".to_owned(),
                most: 16,
            },
        ),
        ("too-often", Refusal::TooOften { retry_s: 3 }),
        ("store-down", Refusal::StoreDown { why: text() }),
        ("not-allowed", Refusal::NotAllowed),
        ("not-ready", Refusal::NotReady),
    ]
}

fn push() -> Push {
    Push {
        reset: true,
        entries: vec![vec![1]],
        members: vec![vec![2], vec![3, 4]],
        forgotten: vec![[5; 32]],
        position: POSITION,
        caught_up: false,
    }
}

#[test]
fn calls_are_as_they_were() {
    let mut made = Vec::new();
    for (name, request) in requests() {
        let call = Call {
            number: 300,
            request,
        };
        let bytes = encode(&call).unwrap();
        assert_eq!(decode(&bytes), Ok(call));
        made.push((name.to_owned(), bytes));
    }
    check::check("calls.txt", &made);
}

#[test]
fn answers_are_as_they_were() {
    let refused = refusals()
        .into_iter()
        .map(|(name, refusal)| (format!("refused-{name}"), Reply::Refused(refusal)));
    let replies = replies()
        .into_iter()
        .map(|(name, reply)| (name.to_owned(), reply));
    let mut made = Vec::new();
    for (name, reply) in replies.chain(refused) {
        let answer = Answer::Reply { number: 7, reply };
        let bytes = encode(&answer).unwrap();
        assert_eq!(decode(&bytes), Ok(answer));
        made.push((name, bytes));
    }
    let answer = Answer::Push(push());
    let bytes = encode(&answer).unwrap();
    assert_eq!(decode(&bytes), Ok(answer));
    made.push(("push".to_owned(), bytes));
    check::check("answers.txt", &made);
}

#[test]
fn hellos_and_frames_are_as_they_were() {
    let versions = Versions { least: 1, most: 2 };
    let mesh = Hash([7; 32]);
    let hello = Hello { versions, mesh }.write();
    let welcome = Welcome {
        versions,
        mesh,
        now: 1_700_000_000,
    }
    .write();
    let made = [
        ("hello", hello),
        ("welcome", welcome),
        ("frame", frame(b"content").unwrap()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes));
    check::check("stream.txt", &made);
}

#[test]
fn what_version_2_has_more_is_as_it_was() {
    let requests = [
        Request::Relay {
            peers: vec![(1, [1; 32]), (300, [2; 32])],
        },
        Request::Carry {
            channel: 300,
            datagram: vec![4; 40],
        },
    ];
    let reply = |reply| Answer::Reply { number: 7, reply };
    let answers = [
        reply(Reply::Relay(Relay {
            session: 0x0102_0304_0506_0708,
            key: [0x5a; 32],
            port: 7800,
        })),
        reply(Reply::Refused(Refusal::NoRelay)),
        Answer::Open {
            channels: vec![1, 300],
        },
        Answer::Carried {
            channel: 300,
            datagram: vec![4; 40],
        },
    ];
    let mut made = Vec::new();
    for (name, request) in ["relay", "carry"].into_iter().zip(requests) {
        let call = Call {
            number: 300,
            request,
        };
        let bytes = encode(&call).unwrap();
        assert_eq!(decode(&bytes), Ok(call));
        made.push((name.to_owned(), bytes));
    }
    for (name, answer) in ["relayed", "no-relay", "open", "carried"]
        .into_iter()
        .zip(answers)
    {
        let bytes = encode(&answer).unwrap();
        assert_eq!(decode(&bytes), Ok(answer));
        made.push((name.to_owned(), bytes));
    }
    check::check("version2.txt", &made);
}

#[test]
fn the_relays_datagrams_are_as_they_were() {
    let key = relay::Key::new(&[0x5a; 32]);
    let session = 0x0102_0304_0506_0708;
    let bind = relay::Bind {
        session,
        nonce: 0x1112_1314_1516_1718,
        echo: 0x2122_2324_2526_2728,
    };
    let bound = relay::Bound {
        session,
        nonce: 0x1112_1314_1516_1718,
        challenge: 0,
    };
    let to = (session, 0x3132_3334);
    let wrap = |kind| relay::wrap(&[0xee; 32], kind, to, &key).unwrap();
    let made = [
        ("bind", relay::bind(bind, &key).to_vec()),
        ("bound", relay::bound(bound, &key).to_vec()),
        ("to-relay", wrap(relay::TO_RELAY)),
        ("from-relay", wrap(relay::FROM_RELAY)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes));
    check::check("relay.txt", &made);
}

#[test]
fn the_reflectors_datagrams_are_as_they_were() {
    let key = [0x5a; 32];
    let asked = Question {
        session: 0x0102_0304_0506_0708,
        nonce: 0x1112_1314_1516_1718,
    };
    let v4 = "198.51.100.7:51820".parse().unwrap();
    let v6 = "[2001:db8::7]:51820".parse().unwrap();
    let made = [
        ("question", reflect::question(asked, &key)),
        ("answer-v4", reflect::answer(asked, v4, &key)),
        ("answer-v6", reflect::answer(asked, v6, &key)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    check::check("reflect.txt", &made);
}
