//! Whatever order entries and members come in, every receiver ends with the same nodes, and never
//! with one outside the grants.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::scene::{Granted, Scene, authority, closing, key, member, node, recovery, revocation};
use crate::entry::{Body, Entry, SignedEntry, Uses};
use crate::key::{Domain, Hash, PublicKey, SigningKey};
use crate::ledger::Standing;
use crate::mesh::{Mesh, Node};
use crate::record::{Member, NodeState};

/// What else the authority says, and after which entry: anything but the last makes a fork.
#[derive(Clone, Debug)]
enum Said {
    Revoke {
        node: u32,
        parent: usize,
    },
    Close {
        grant: usize,
        stay: u32,
        parent: usize,
    },
    RevokeSite {
        parent: usize,
    },
    Recover {
        parent: usize,
    },
    Settle {
        kept: usize,
        other: usize,
    },
}

#[derive(Clone, Debug)]
struct Shown {
    node: u32,
    grant: usize,
    use_number: u32,
    sequence: u64,
    withdrawn: bool,
    damaged: Option<usize>,
}

fn said() -> impl Strategy<Value = Said> {
    let parent = any::<usize>();
    prop_oneof![
        (0..6u32, parent).prop_map(|(node, parent)| Said::Revoke { node, parent }),
        (0..3usize, 0..6u32, parent).prop_map(|(grant, stay, parent)| Said::Close {
            grant,
            stay,
            parent
        }),
        parent.prop_map(|parent| Said::RevokeSite { parent }),
        parent.prop_map(|parent| Said::Recover { parent }),
        (parent, any::<usize>()).prop_map(|(kept, other)| Said::Settle { kept, other }),
    ]
}

/// One grant and use for each node, so that what a node says differs in its sequence only.
fn shown() -> impl Strategy<Value = Shown> {
    (
        0..6u32,
        1..4u64,
        proptest::bool::weighted(0.2),
        proptest::option::weighted(0.2, any::<usize>()),
    )
        .prop_map(|(node, sequence, withdrawn, damaged)| Shown {
            node,
            grant: (node as usize) % 3,
            // Nodes 0 and 3 contend for a use, the others do not.
            use_number: if node == 3 { 0 } else { node },
            sequence,
            withdrawn,
            damaged,
        })
}

struct World {
    scene: Scene,
    entries: Vec<SignedEntry>,
    members: Vec<Member>,
    grants: Vec<Granted>,
}

impl World {
    fn new(said: &[Said], shown: &[Shown]) -> World {
        let mut scene = Scene::new();
        let grants: Vec<Granted> = ["paris", "london", "rome"]
            .into_iter()
            .map(|site| scene.grant(site, Uses::AtMost(5)))
            .collect();
        let mut world = World {
            entries: scene.entries.clone(),
            scene,
            members: vec![],
            grants,
        };
        for one in said {
            let entry = world.entry(one);
            world.entries.push(entry);
        }
        world.members = shown.iter().map(|shown| world.member(shown)).collect();
        world
    }

    fn entry(&self, said: &Said) -> SignedEntry {
        let pick = |at: usize| &self.entries[2 + at % (self.entries.len() - 2)];
        let after = |parent: usize, body: Body| {
            let parent = pick(parent);
            self.sign(parent, parent.entry().number + 1, body, &authority())
        };
        match said {
            Said::Revoke { node: who, parent } => {
                after(*parent, revocation(&[node(*who).public()]))
            }
            Said::Close {
                grant,
                stay,
                parent,
            } => after(
                *parent,
                closing(&self.grants[*grant], &[node(*stay).public()]),
            ),
            Said::RevokeSite { parent } => after(
                *parent,
                Body::SiteRevoked {
                    site: "rome".parse().unwrap(),
                },
            ),
            Said::Recover { parent } => {
                let parent = pick(*parent);
                let next = key(31).public();
                let body = Body::Authority {
                    recovery: recovery().public(),
                    authority: key(30).public(),
                    next_recovery: Hash::of(Domain::RecoveryKey, next.as_bytes()),
                };
                self.sign(parent, parent.entry().number + 1, body, &recovery())
            }
            Said::Settle { kept, other } => {
                let (kept, other) = (pick(*kept), pick(*other));
                let number = kept.entry().number.max(other.entry().number) + 1;
                let other = other.hash();
                self.sign(kept, number, Body::Settlement { other }, &authority())
            }
        }
    }

    /// By the first authority, or the second where it is in force; most that is wrong is refused
    /// alike by everyone.
    fn sign(
        &self,
        parent: &SignedEntry,
        number: u64,
        body: Body,
        signer: &SigningKey,
    ) -> SignedEntry {
        let replaced = std::iter::successors(Some(parent), |entry| {
            let previous = entry.entry().previous;
            self.entries.iter().find(|other| other.hash() == previous)
        })
        .any(|entry| matches!(entry.entry().body, Body::Authority { .. }));
        let second = key(30);
        let signer = if replaced { &second } else { signer };
        Entry {
            number,
            previous: parent.hash(),
            issued: 0,
            body,
        }
        .sign(signer)
    }

    fn member(&self, shown: &Shown) -> Member {
        let grant = &self.grants[shown.grant];
        let key = node(shown.node);
        let mut record = self.scene.record(grant.site, &key, shown.sequence);
        // So that two records with one number are the same.
        if shown.withdrawn || shown.sequence == 3 {
            record.sequence = 3;
            record.state = NodeState::Withdrawn;
        }
        let enrolment = self.scene.enrol(grant, shown.use_number, &key);
        let mut member = member(&enrolment, record, &key);
        if let Some(bit) = shown.damaged {
            let bit = bit % (member.record.len() * 8);
            member.record[bit / 8] ^= 1 << (bit % 8);
        }
        member
    }

    /// What a receiver holds after everything was shown to it in this order, again and again
    /// until nothing changes.
    fn deliver(&self, order: &[usize]) -> Mesh {
        let mut mesh = Mesh::new(self.scene.mesh, None);
        let mut quiet = 0;
        while quiet < 2 {
            let before = state(&mesh);
            for at in order {
                match self.entries.get(*at) {
                    Some(entry) => drop(mesh.handle_entry(entry.bytes())),
                    None => drop(mesh.handle_member(&self.members[at - self.entries.len()])),
                }
            }
            quiet = if state(&mesh) == before { quiet + 1 } else { 0 };
        }
        mesh
    }
}

fn state(mesh: &Mesh) -> (usize, Vec<Node>) {
    (
        mesh.ledger().entries().count(),
        mesh.nodes().cloned().collect(),
    )
}

fn stays_within_the_grants(mesh: &Mesh, world: &World) {
    let mut uses = BTreeSet::new();
    for node in mesh.nodes() {
        let standing = mesh.charter().grant(&node.grant).expect("a grant");
        assert_eq!(
            mesh.charter().standing(&node.grant, &node.identity),
            Standing::Good
        );
        assert_eq!(node.record.site, standing.grant.site);
        assert!(standing.grant.role.allows(node.record.role));
        let verified = mesh.check_member(&node.member).expect("it was taken");
        assert!(verified.enrolment.use_number < 5);
        assert!(uses.insert((node.grant, verified.enrolment.use_number)));
        assert!(world.members.contains(&node.member));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_receiver_ends_with_the_same_nodes(
        said in proptest::collection::vec(said(), 0..6),
        shown in proptest::collection::vec(shown(), 1..8),
        orders in proptest::collection::vec(any::<u64>(), 3),
    ) {
        let world = World::new(&said, &shown);
        let count = world.entries.len() + world.members.len();
        let straight: Vec<usize> = (0..count).collect();
        let first = world.deliver(&straight);
        stays_within_the_grants(&first, &world);
        for seed in orders {
            let mut order = straight.clone();
            shuffle(&mut order, seed);
            let other = world.deliver(&order);
            prop_assert_eq!(state(&other), state(&first));
            prop_assert_eq!(other.problems().len(), first.problems().len());
        }
    }
}

fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed | 1;
    for at in (1..order.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let pick = usize::try_from(state >> 33).unwrap() % (at + 1);
        order.swap(at, pick);
    }
}

#[test]
fn revoking_comes_to_the_same_before_and_after_every_single_member() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(5));
    let members: Vec<Member> = (0..3)
        .map(|number| scene.member(&grant, number, &node(number)))
        .collect();
    scene.revoke(&[node(1).public()]);
    let mut kept: Vec<PublicKey> = vec![node(0).public(), node(2).public()];
    kept.sort();
    for revoked_after in 0..=3 {
        let (last, before) = scene.entries.split_last().unwrap();
        let mut mesh = Mesh::new(scene.mesh, None);
        for entry in before {
            mesh.handle_entry(entry.bytes()).unwrap();
        }
        for (at, member) in members.iter().enumerate() {
            if at == revoked_after {
                mesh.handle_entry(last.bytes()).unwrap();
            }
            let _ = mesh.handle_member(member);
        }
        let _ = mesh.handle_entry(last.bytes());
        assert_eq!(super::scene::identities(&mesh), kept);
    }
}
