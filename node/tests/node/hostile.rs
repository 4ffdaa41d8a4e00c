//! A broker that lies. Nothing of what it makes up, replays, moves or holds back is taken, and
//! each try is named in the report; restarting from the cache changes nothing.

use node::follow::{BrokerState, Cause, Handle, Problem, View};
use proto::enrolment::JoinProof;
use proto::entry::{Body, Entry, Grant, GrantRole, Role, SignedEntry, Uses};
use proto::key::{Hash, PublicKey, SigningKey};
use proto::ledger::PrefixState;
use proto::message::{Answer, Push, Reply};
use proto::record::{NodeState, Record};

use crate::double::{Sent, delta, entries};
use crate::follow::{Home, until};
use crate::world::{Granted, Other, STORE, World, member, name, wireguard};

/// One lie, and how the report must name it.
struct Lie {
    what: &'static str,
    push: Push,
    cause: Cause,
}

/// Two honest sites, a revoked node, and all a broker could make of them.
struct Stage {
    home: Home,
    paris: Other,
    rome: Other,
    stolen: Other,
    grants: Vec<Granted>,
}

impl Stage {
    async fn new() -> Stage {
        let mut home = Home::new().await;
        let (for_paris, paris) = home.neighbour("paris", "10.1.0.0/16");
        let (for_rome, rome) = home.neighbour("rome", "10.2.0.0/16");
        let stolen = home.world.other(&for_rome, 1, "stolen");
        home.world.revoke(vec![stolen.key()]);
        let agents =
            home.world
                .grant_role("oslo", "10.3.0.0/16", Uses::AtMost(1), GrantRole::Agent);
        home.serve();
        home.list(honest(&paris, &rome), 1);
        let grants = vec![for_paris, for_rome, agents];
        Stage {
            home,
            paris,
            rome,
            stolen,
            grants,
        }
    }

    async fn follow(&self) -> Handle {
        let handle = self.home.follow();
        until(&handle, |view| {
            view.peers.len() == 2 && view.last_sync.is_some()
        })
        .await;
        handle
    }

    fn lies(&self) -> Vec<Lie> {
        let mut lies = self.forged();
        lies.extend(self.misplaced());
        lies.extend(self.miscounted());
        lies.extend(self.in_the_ledger());
        lies
    }

    fn forged(&self) -> Vec<Lie> {
        let (paris, broker) = (&self.paris, &self.home.world.broker);
        let newer = paris.record(9);
        let swapped = Record {
            state: NodeState::Present(crate::world::presence(wireguard([0x21; 32]), Vec::new())),
            ..newer.clone()
        };
        let signed_by_broker = member(&paris.enrolment, &as_signed_by(&newer, paris, broker));
        let swapped_key = member(&paris.enrolment, &as_signed_by(&swapped, paris, broker));
        let mut flipped = paris.member(9);
        let end = flipped.len() - 1;
        flipped[end] ^= 4;
        let mut moved = paris.member(9);
        let address = find(&moved, &[192, 0, 2, 7]);
        moved[address + 3] = 66;
        let others = member(
            &self.rome.enrolment,
            paris.record(9).sign(&paris.identity).bytes(),
        );
        vec![
            lie(
                "a record signed by the broker",
                signed_by_broker,
                Cause::Forged,
            ),
            lie("a swapped WireGuard key", swapped_key, Cause::Forged),
            lie("a flipped bit", flipped, Cause::Forged),
            lie("a moved address", moved, Cause::Forged),
            lie("another node's enrolment", others, Cause::Forged),
            lie("bytes without meaning", vec![0x5a; 300], Cause::Unreadable),
            lie("no bytes", Vec::new(), Cause::Unreadable),
        ]
    }

    fn misplaced(&self) -> Vec<Lie> {
        let (paris, world) = (&self.paris, &self.home.world);
        let mut elsewhere = paris.record(9);
        elsewhere.site = name("rome");
        let mut other_mesh = paris.record(9);
        other_mesh.mesh = Hash([4; 32]);
        let mut promoted = world.other(&self.grants[2], 0, "agent");
        promoted.role = Role::Gateway;
        let mut foreign = World::seeded(2);
        let granted = foreign.grant("paris", "10.1.0.0/16", Uses::AtMost(1));
        let foreigner = foreign.other(&granted, 0, "gate");
        let mut naturalised = world.other(&granted, 0, "gate");
        naturalised.mesh = world.mesh();
        vec![
            lie("an old record", paris.member(4), Cause::Replayed),
            lie(
                "the same number again",
                {
                    let mut again = paris.record(5);
                    again.issued += 1;
                    paris.member_of(again)
                },
                Cause::Replayed,
            ),
            lie(
                "a record for another site",
                paris.member_of(elsewhere),
                Cause::ForeignSite,
            ),
            lie(
                "a record for another mesh",
                paris.member_of(other_mesh),
                Cause::ForeignMesh,
            ),
            lie(
                "an agent as a gateway",
                promoted.member(1),
                Cause::ForeignRole,
            ),
            lie(
                "a node of another mesh",
                foreigner.member(1),
                Cause::ForeignMesh,
            ),
            lie(
                "another mesh's grant",
                naturalised.member(1),
                Cause::UnknownGrant,
            ),
            lie("a revoked node", self.stolen.member(1), Cause::Revoked),
        ]
    }

    fn miscounted(&self) -> Vec<Lie> {
        let world = &self.home.world;
        let for_paris = &self.grants[0];
        let made_up = SigningKey::from_seed(&[0x66; 32]);
        let own = for_paris.with_key(SigningKey::from_seed(&[0x67; 32]));
        let mut without_token = world.other(&own, 1, "spy");
        without_token.mesh = world.mesh();
        let mut elsewhere = world.other(for_paris, 1, "late");
        let proof = elsewhere.enrolment.proof.clone();
        elsewhere.enrolment = proof.enrol(1, &made_up);
        let beyond = world.other(for_paris, 7, "beyond");
        let mut unwilling = world.other(for_paris, 1, "unwilling");
        let willing = JoinProof {
            identity: unwilling.key(),
            ..self.paris.enrolment.proof.clone()
        };
        unwilling.enrolment = willing.enrol(1, &world.broker);
        vec![
            lie(
                "a node of the broker's own",
                without_token.member(1),
                Cause::Forged,
            ),
            lie(
                "an identity moved to another enrolment",
                unwilling.member(1),
                Cause::Forged,
            ),
            lie(
                "a count by no broker",
                elsewhere.member(1),
                Cause::MisCounted,
            ),
            lie(
                "more uses than granted",
                beyond.member(1),
                Cause::MisCounted,
            ),
            lie(
                "a second node for one use",
                world.other(for_paris, 0, "twin").member(1),
                Cause::TwoForOneUse,
            ),
        ]
    }

    fn in_the_ledger(&self) -> Vec<Lie> {
        let world = &self.home.world;
        let head = world.ledger.head().unwrap();
        let entry = |number, previous, prefix: &str, key: &SigningKey| {
            let body = Body::Grant(evil(prefix, world.broker.public()));
            Entry {
                number,
                previous,
                issued: 0,
                body,
            }
            .sign(key)
        };
        let (forger, next) = (&world.broker, head.number + 1);
        let before = world.ledger.entry(&head.hash).unwrap().entry().previous;
        let default = entry(next, head.hash, "0.0.0.0/0", forger);
        let theirs = entry(next, head.hash, "10.1.0.0/24", forger);
        let ours = entry(next, head.hash, "10.9.0.0/16", forger);
        let fork = entry(head.number, before, "10.8.0.0/16", forger);
        let orphan = entry(99, Hash([8; 32]), "10.8.0.0/16", &world.authority);
        let numbered = entry(next + 1, head.hash, "10.8.0.0/16", &world.authority);
        vec![
            told("a default route", default, Cause::Forged),
            told("another site's prefix", theirs, Cause::Forged),
            told("our own prefix", ours, Cause::Forged),
            told("a fork", fork, Cause::Forged),
            told("an entry behind none", orphan, Cause::OutOfOrder),
            told("another number", numbered, Cause::Misplaced),
            Lie {
                what: "another mesh's ledger",
                push: entries(World::seeded(2).entries(), 2),
                cause: Cause::ForeignMesh,
            },
            Lie {
                what: "an entry without meaning",
                push: entries(vec![vec![1, 2, 3]], 2),
                cause: Cause::Unreadable,
            },
        ]
    }

    /// What is shown is what was honest, whatever else was sent.
    fn check(&self, view: &View, after: &str) {
        let mut wanted = vec![self.paris.key(), self.rome.key()];
        wanted.sort();
        let shown: Vec<PublicKey> = view.peers.keys().copied().collect();
        assert_eq!(shown, wanted, "after {after}");
        for peer in view.peers.values() {
            assert_eq!(peer.node.record.sequence, 5, "after {after}");
        }
        let prefixes: Vec<String> = view
            .prefixes
            .iter()
            .map(|prefix| prefix.prefix.to_string())
            .collect();
        assert_eq!(
            prefixes,
            ["10.9.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"],
            "after {after}"
        );
        assert_eq!(
            view.heads[..],
            self.home.world.ledger.heads()[..],
            "after {after}"
        );
    }
}

fn evil(prefix: &str, join_key: PublicKey) -> Grant {
    Grant {
        site: name("evil"),
        prefixes: vec![prefix.parse().unwrap()],
        service_prefixes: Vec::new(),
        role: GrantRole::Any,
        not_before: 0,
        not_after: u64::MAX,
        uses: Uses::Unlimited,
        join_key,
        store: STORE,
    }
}

fn honest(paris: &Other, rome: &Other) -> Vec<Vec<u8>> {
    vec![paris.member(5), rome.member(5)]
}

fn lie(what: &'static str, member: Vec<u8>, cause: Cause) -> Lie {
    Lie {
        what,
        push: delta(vec![member], 2),
        cause,
    }
}

fn told(what: &'static str, entry: SignedEntry, cause: Cause) -> Lie {
    Lie {
        what,
        push: entries(vec![entry.bytes().to_vec()], 2),
        cause,
    }
}

/// A record as it would be, with a signature by somebody else.
fn as_signed_by(record: &Record, of: &Other, signer: &SigningKey) -> Vec<u8> {
    let mut bytes = record.clone().sign(&of.identity).bytes().to_vec();
    let payload = bytes.len() - 64;
    let signature = signer.sign(proto::key::Domain::Record, &bytes[..payload]);
    bytes[payload..].copy_from_slice(&signature.0);
    bytes
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
        .unwrap()
}

fn names_both(view: &View, one: PublicKey, other: PublicKey) -> bool {
    view.problems.iter().any(|problem| {
        let text = problem.to_string();
        text.contains(&one.to_string()) && text.contains(&other.to_string())
    })
}

#[tokio::test]
async fn each_lie_is_refused_and_named() {
    let stage = Stage::new().await;
    let handle = stage.follow().await;
    for lie in stage.lies() {
        let before = handle.view().borrow().refused.clone();
        stage.home.broker.push(lie.push);
        let view = until(&handle, |view| view.refused.total() > before.total()).await;
        assert!(
            view.refused.count(lie.cause) > before.count(lie.cause),
            "{} was named: {:?}",
            lie.what,
            view.refused.latest().last()
        );
        let named = view.refused.latest().last().unwrap();
        assert_eq!(named.from, stage.home.broker.at());
        stage.check(&view, lie.what);
    }
    let twin = stage.home.world.other(&stage.grants[0], 0, "twin").key();
    assert!(names_both(&handle.view().borrow(), stage.paris.key(), twin));
    handle.stop().await;
    stage.home.broker.script(|script| script.hung = true);
    let handle = stage.home.follow();
    stage.check(&handle.view().borrow(), "a start from the cache");
    handle.stop().await;
}

#[tokio::test]
async fn lies_in_any_order_among_the_truth_change_nothing() {
    for seed in 1..=12 {
        println!("seed {seed}");
        let stage = Stage::new().await;
        stage.home.list(Vec::new(), 1);
        let handle = stage.home.follow();
        until(&handle, |view| view.last_sync.is_some()).await;
        let mut chance = node::back_off::Chance::new(seed);
        let mut pushes: Vec<Push> = stage.lies().into_iter().map(|lie| lie.push).collect();
        let twin = pushes.iter().position(|push| {
            push.members
                == [stage
                    .home
                    .world
                    .other(&stage.grants[0], 0, "twin")
                    .member(1)]
        });
        // Two for one use with neither known before: which is honest nobody can tell. It has a
        // test of its own.
        pushes.remove(twin.unwrap());
        pushes.extend(
            honest(&stage.paris, &stage.rome)
                .into_iter()
                .map(|member| delta(vec![member], 3)),
        );
        chance.shuffle(&mut pushes);
        let lies = pushes.len() - 2;
        for push in pushes {
            stage.home.broker.push(push);
        }
        // The older number is no lie when it comes before the newer one.
        let view = until(&handle, |view| {
            view.refused.total() + 2 >= lies as u64 && view.peers.len() == 2
        })
        .await;
        let shown: Vec<u64> = view
            .peers
            .values()
            .map(|peer| peer.node.record.sequence)
            .collect();
        assert_eq!(shown, [5, 5], "seed {seed}");
        stage.check(&view, "all of them");
        handle.stop().await;
    }
}

#[tokio::test]
async fn of_two_for_one_use_neither_is_taken_by_a_newcomer_until_the_ledger_says() {
    let mut stage = Stage::new().await;
    let twin = stage.home.world.other(&stage.grants[0], 0, "twin");
    stage.home.list(
        vec![stage.paris.member(5), twin.member(1), stage.rome.member(5)],
        1,
    );
    let handle = stage.home.follow();
    let (paris, rome) = (stage.paris.key(), stage.rome.key());
    let only_rome = |view: &View| view.last_sync.is_some() && view.peers.keys().eq([&rome]);
    let view = until(&handle, only_rome).await;
    assert!(names_both(&view, paris, twin.key()));
    handle.stop().await;
    stage.home.broker.script(|script| script.hung = true);
    let handle = stage.home.follow();
    assert!(
        only_rome(&handle.view().borrow()),
        "the cache says the same"
    );
    let settled = stage.home.world.revoke(vec![twin.key()]);
    stage.home.serve();
    stage.home.broker.script(|script| {
        script.hung = false;
        script.on_watch = vec![Sent::Push(entries(vec![settled.bytes().to_vec()], 2))];
    });
    stage.home.broker.cut();
    until(&handle, |view| {
        view.peers.len() == 2 && view.peers.contains_key(&paris)
    })
    .await;
    handle.stop().await;
}

#[tokio::test]
async fn what_the_authority_itself_should_not_have_signed_is_not_used() {
    let stage = Stage::new().await;
    let handle = stage.follow().await;
    let world = &stage.home.world;
    let mut head = world.ledger.head().unwrap();
    let mut new = Vec::new();
    for prefix in ["10.1.128.0/17", "10.9.3.0/24"] {
        let body = Body::Prefixes {
            site: name("rome"),
            added: vec![prefix.parse().unwrap()],
            added_service: Vec::new(),
            removed: Vec::new(),
        };
        let entry = Entry {
            number: head.number + 1,
            previous: head.hash,
            issued: 0,
            body,
        };
        let signed = entry.sign(&world.authority);
        head.number += 1;
        head.hash = signed.hash();
        new.push(signed.bytes().to_vec());
    }
    stage.home.broker.push(entries(new, 2));
    let view = until(&handle, |view| view.problems.len() >= 2).await;
    for prefix in view
        .prefixes
        .iter()
        .filter(|prefix| prefix.prefix.netmask() > 16)
    {
        assert!(
            matches!(prefix.state, PrefixState::Overlaps { .. }),
            "{prefix:?}"
        );
    }
    for prefix in ["10.1.128.0/17", "10.9.3.0/24"] {
        assert!(
            view.problems
                .iter()
                .any(|problem| problem.to_string().contains(prefix)),
            "{prefix}"
        );
    }
    handle.stop().await;
}

#[tokio::test]
async fn with_a_fork_revocations_of_both_branches_hold_and_it_is_reported() {
    let stage = Stage::new().await;
    let handle = stage.follow().await;
    let world = &stage.home.world;
    let head = world.ledger.head().unwrap();
    let branch = |keys: Vec<PublicKey>| {
        let body = Body::Revocation {
            keys,
            closings: Vec::new(),
        };
        let entry = Entry {
            number: head.number + 1,
            previous: head.hash,
            issued: 0,
            body,
        };
        entry.sign(&world.authority).bytes().to_vec()
    };
    let both = vec![
        branch(vec![stage.paris.key()]),
        branch(vec![stage.rome.key()]),
    ];
    stage.home.broker.push(entries(both, 2));
    let view = until(&handle, |view| view.peers.is_empty()).await;
    let forked =
        |problem: &Problem| matches!(problem, Problem::Mesh(proto::mesh::Problem::Fork { .. }));
    assert!(view.problems.iter().any(forked), "{:?}", view.problems);
    handle.stop().await;
}

#[tokio::test]
async fn entries_in_the_wrong_order_wait_and_those_whose_parents_are_withheld_are_a_problem() {
    let mut stage = Stage::new().await;
    let handle = stage.follow().await;
    stage.home.world.revoke(vec![stage.paris.key()]);
    stage.home.world.revoke(vec![stage.rome.key()]);
    let all = stage.home.world.entries();
    let [first, second] = all[all.len() - 2..].to_vec().try_into().unwrap();
    stage.home.broker.push(entries(vec![second], 2));
    let withheld = |problem: &Problem| matches!(problem, Problem::EntriesWithheld { count: 1 });
    let view = until(&handle, |view| view.problems.iter().any(withheld)).await;
    assert_eq!(view.refused.count(Cause::OutOfOrder), 1);
    assert_eq!(view.peers.len(), 2);
    stage.home.broker.push(entries(vec![first], 3));
    let view = until(&handle, |view| view.peers.is_empty()).await;
    assert!(!view.problems.iter().any(withheld));
    handle.stop().await;
}

#[tokio::test]
async fn frames_that_are_none_end_the_conversation_and_are_named() {
    let stage = Stage::new().await;
    let handle = stage.follow().await;
    let oversized = (256_u32 * 1024 + 1).to_be_bytes().to_vec();
    let announced_only = u32::MAX.to_be_bytes().to_vec();
    let garbage = proto::frame::frame(&[0xff; 64]).unwrap();
    let empty = vec![0; 4];
    let unasked = Answer::Reply {
        number: 999,
        reply: Reply::Pong,
    };
    let unasked = proto::frame::frame(&proto::codec::encode(&unasked).unwrap()).unwrap();
    let mut trailing = proto::codec::encode(&Answer::Push(delta(Vec::new(), 9))).unwrap();
    trailing.push(0);
    let trailing = proto::frame::frame(&trailing).unwrap();
    let all = [oversized, announced_only, garbage, empty, unasked, trailing];
    for (count, raw) in (1..).zip(all) {
        stage.home.broker.send(Sent::Raw(raw));
        let view = until(&handle, |view| view.refused.count(Cause::Garbage) >= count).await;
        stage.check(&view, "garbage");
        until(&handle, |view| {
            matches!(view.broker, BrokerState::Connected { .. })
        })
        .await;
    }
    handle.stop().await;
}
