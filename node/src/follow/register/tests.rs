//! What the register takes, shows and asks to be written, without disk, network or clock.

use std::time::Duration;

use proto::control::Handover;
use proto::entry::{Body, Entry, StoreId, Uses};
use proto::key::{Hash, PublicKey, SigningKey};
use proto::mesh::Mesh;
use proto::message::{Position, Push};

use super::world::{Granted, Other, World, name};
use super::{Handed, Register, Source};
use crate::cache::Line;
use crate::stores::StoreName;

const DAY: Duration = Duration::from_secs(24 * 3600);

const A: StoreName = StoreName::Known(StoreId([1; 16]));
const B: StoreName = StoreName::Known(StoreId([2; 16]));

fn of(store: StoreName) -> Source {
    Source {
        store,
        address: "a.example:7800".to_owned(),
    }
}

fn a() -> Source {
    of(A)
}

fn b() -> Source {
    of(B)
}

struct Stage {
    world: World,
    granted: Granted,
    paris: Other,
}

impl Stage {
    fn new() -> Stage {
        let mut world = World::new();
        let granted = world.grant("paris", "10.1.0.0/16", Uses::AtMost(2));
        let paris = world.other(&granted, 0, "gate");
        Stage {
            world,
            granted,
            paris,
        }
    }

    fn register(&self) -> Register {
        let mesh = Mesh::new(self.world.mesh(), Some(name("home")));
        Register::new(mesh, SigningKey::from_seed(&[9; 32]).public())
    }

    fn snapshot(&self, members: Vec<Vec<u8>>) -> Push {
        Push {
            reset: true,
            entries: self.world.entries(),
            members,
            forgotten: Vec::new(),
            position: Position {
                epoch: [1; 16],
                revision: 1,
            },
            caught_up: true,
        }
    }

    fn delta(&self, members: Vec<Vec<u8>>) -> Push {
        Push {
            reset: false,
            ..self.snapshot(members)
        }
    }

    /// Has taken paris, and shows it.
    fn settled(&self) -> Register {
        let mut register = self.register();
        register.handle_push(&a(), &self.snapshot(vec![self.paris.member(5)]), 0);
        register.handle_durable();
        assert_eq!(shown(&register), [self.paris.key()]);
        register
    }
}

fn shown(register: &Register) -> Vec<PublicKey> {
    register.shown().peers.keys().copied().collect()
}

/// What a restart makes of these lines.
fn read_again(stage: &Stage, lines: Vec<Line>) -> Register {
    let mut register = stage.register();
    for line in lines {
        register.handle_line(line, 0);
    }
    register.handle_loaded(true);
    register
}

#[test]
fn what_is_new_is_shown_only_once_it_is_durable() {
    let stage = Stage::new();
    let mut register = stage.register();
    register.handle_push(&a(), &stage.snapshot(vec![stage.paris.member(5)]), 0);
    assert!(shown(&register).is_empty());
    assert!(register.shown().prefixes.is_empty());
    assert!(register.shown().heads.is_empty());
    register.handle_durable();
    assert_eq!(shown(&register), [stage.paris.key()]);
    assert_eq!(register.shown().prefixes.len(), 1);
    assert!(register.lines().is_empty());
}

/// Well-formed, and behind something that nobody has.
fn large_orphan(stage: &Stage, number: u64) -> Vec<u8> {
    Entry {
        number,
        previous: Hash([7; 32]),
        issued: 0,
        body: Body::Revocation {
            keys: vec![stage.paris.key(); 1024],
            closings: Vec::new(),
        },
    }
    .sign(&stage.world.authority)
    .bytes()
    .to_vec()
}

#[test]
fn entries_that_wait_for_others_fill_no_memory() {
    let stage = Stage::new();
    let mut register = stage.settled();
    for number in 1..80 {
        register.handle_entries(&a(), &[large_orphan(&stage, number)], 0);
    }
    let waiting = register.waiting_entries();
    assert!((1..=32).contains(&waiting), "{waiting}");
}

#[test]
fn a_disk_that_stays_full_costs_no_memory_for_every_word_of_the_broker() {
    let stage = Stage::new();
    let mut register = stage.settled();
    for revision in 2..100 {
        let push = Push {
            reset: false,
            entries: Vec::new(),
            members: Vec::new(),
            position: Position {
                epoch: [1; 16],
                revision,
            },
            ..stage.snapshot(Vec::new())
        };
        register.handle_push(&a(), &push, revision);
    }
    assert_eq!(register.lines().len(), 1);
    let again = read_again(&stage, register.lines().to_vec());
    assert_eq!(
        again.position(A).map(|position| position.revision),
        Some(99)
    );
}

#[test]
fn what_is_revoked_is_gone_though_the_disk_is_full() {
    let mut stage = Stage::new();
    let mut register = stage.settled();
    let newcomer = stage.world.other(&stage.granted, 1, "second");
    let body = Body::Prefixes {
        site: name("paris"),
        added: vec!["10.7.0.0/16".parse().unwrap()],
        added_service: Vec::new(),
        removed: vec!["10.1.0.0/16".parse().unwrap()],
    };
    stage.world.sign(body);
    stage.world.revoke(vec![stage.paris.key()]);
    register.handle_push(&a(), &stage.snapshot(vec![newcomer.member(1)]), 0);
    assert!(
        shown(&register).is_empty(),
        "revoked at once, the new one not yet"
    );
    assert!(
        register.shown().prefixes.is_empty(),
        "taken at once, the new one not yet"
    );
    register.handle_durable();
    assert_eq!(shown(&register), [newcomer.key()]);
    assert_eq!(register.shown().prefixes.len(), 1);
}

#[test]
fn a_record_that_no_broker_lists_is_dropped_after_seven_days_of_reachable_brokers() {
    let stage = Stage::new();
    let mut register = stage.settled();
    register.handle_push(&a(), &stage.snapshot(Vec::new()), 0);
    for day in 1..7 {
        register.handle_reachable(DAY);
        register.handle_durable();
        assert_eq!(shown(&register), [stage.paris.key()], "day {day}");
    }
    // The days counted survive a restart.
    let mut register = read_again(&stage, register.all_lines());
    register.handle_reachable(DAY);
    assert_eq!(
        shown(&register),
        [stage.paris.key()],
        "no day counts on which no store could be reached"
    );
    register.handle_push(&a(), &stage.delta(Vec::new()), 0);
    register.handle_reachable(DAY);
    assert!(shown(&register).is_empty());
    // The number does, too: what is older does not come back.
    let mut register = read_again(&stage, register.all_lines());
    register.handle_push(&a(), &stage.snapshot(vec![stage.paris.member(4)]), 0);
    register.handle_durable();
    assert!(shown(&register).is_empty());
    register.handle_push(&a(), &stage.snapshot(vec![stage.paris.member(6)]), 0);
    register.handle_durable();
    assert_eq!(shown(&register), [stage.paris.key()]);
}

#[test]
fn a_record_that_was_dropped_is_not_brought_back_by_a_gateway_that_still_has_it() {
    let stage = Stage::new();
    let mut register = stage.settled();
    let hand = |register: &mut Register, sequence| {
        let mut handed = Handed::new(Handover {
            entries: Vec::new(),
            members: vec![stage.paris.member(sequence)],
        });
        register.handle_handed(&mut handed, 0);
        register.handle_durable();
        shown(register)
    };
    register.handle_push(&a(), &stage.snapshot(Vec::new()), 0);
    register.handle_reachable(8 * DAY);
    register.handle_durable();
    assert!(register.shown().knowledge.members.is_empty());
    assert!(hand(&mut register, 5).is_empty());
    assert_eq!(hand(&mut register, 6), [stage.paris.key()]);
    assert_eq!(register.refused.total(), 0);
}

#[test]
fn a_record_that_is_listed_again_starts_anew() {
    let stage = Stage::new();
    let mut register = stage.settled();
    register.handle_push(&a(), &stage.snapshot(Vec::new()), 0);
    register.handle_reachable(6 * DAY);
    register.handle_push(&a(), &stage.snapshot(vec![stage.paris.member(5)]), 0);
    register.handle_push(&a(), &stage.snapshot(Vec::new()), 0);
    register.handle_reachable(6 * DAY);
    register.handle_durable();
    assert_eq!(shown(&register), [stage.paris.key()]);
}

#[test]
fn a_snapshot_in_pieces_counts_once_it_is_whole() {
    let stage = Stage::new();
    let mut register = stage.settled();
    let second = stage.world.other(&stage.granted, 1, "second");
    let at = |revision| Position {
        revision,
        ..stage.snapshot(Vec::new()).position
    };
    let first_piece = Push {
        caught_up: false,
        position: at(2),
        ..stage.snapshot(vec![second.member(1)])
    };
    register.handle_push(&a(), &first_piece, 0);
    register.handle_reachable(8 * DAY);
    register.handle_durable();
    assert_eq!(shown(&register).len(), 2, "the rest may be listed yet");
    assert_eq!(
        register.position(A),
        Some(at(1)),
        "to resume at 2 would miss the rest"
    );
    let last_piece = Push {
        reset: false,
        position: at(3),
        ..stage.snapshot(vec![stage.paris.member(5)])
    };
    register.handle_push(&a(), &last_piece, 0);
    register.handle_reachable(8 * DAY);
    register.handle_durable();
    assert_eq!(shown(&register).len(), 2);
    assert_eq!(register.position(A), Some(at(3)));
}

#[test]
fn the_lines_of_a_cache_written_anew_say_what_the_old_ones_said() {
    let mut stage = Stage::new();
    let twin = stage.world.other(&stage.granted, 0, "twin");
    let rome = stage.world.grant("rome", "10.2.0.0/16", Uses::AtMost(2));
    let (gate, gone) = (
        stage.world.other(&rome, 0, "gate"),
        stage.world.other(&rome, 1, "gone"),
    );
    let members = vec![
        stage.paris.member(5),
        twin.member(1),
        gate.member(3),
        gone.withdrawal(2),
    ];
    let mut register = stage.register();
    register.handle_push(&a(), &stage.snapshot(members), 0);
    register.handle_durable();
    assert_eq!(shown(&register), [gate.key()], "neither of two for one use");
    let mut again = read_again(&stage, register.all_lines());
    assert_eq!(shown(&again), [gate.key()]);
    assert_eq!(again.shown().heads, register.shown().heads);
    assert_eq!(again.position(A), register.position(A));
    again.handle_push(
        &a(),
        &stage.snapshot(vec![gone.member(1), gate.member(2)]),
        0,
    );
    again.handle_durable();
    assert_eq!(shown(&again), [gate.key()]);
    assert_eq!(again.refused.count(crate::follow::Cause::Replayed), 2);
}

#[test]
fn a_cache_that_somebody_wrote_into_shows_nothing_false() {
    let stage = Stage::new();
    let mut forged = stage.paris.member(7);
    let end = forged.len() - 1;
    forged[end] ^= 1;
    let entries = stage.world.entries().into_iter().map(Line::Entry);
    let mut lines: Vec<Line> = entries.collect();
    lines.push(Line::Member(forged.clone()));
    lines.push(Line::Own(forged));
    lines.push(Line::Own(stage.paris.member(9)));
    let register = read_again(&stage, lines);
    assert!(shown(&register).is_empty());
    assert!(register.own.member().is_none());
}

#[test]
fn a_record_that_one_store_lists_stays_whatever_the_others_say() {
    let stage = Stage::new();
    let mut register = stage.settled();
    register.handle_push(&b(), &stage.snapshot(Vec::new()), 0);
    register.handle_reachable(30 * DAY);
    assert_eq!(shown(&register), [stage.paris.key()]);
    // The one that lists it is out of reach: what counts is the one that is not.
    register.handle_lost(A);
    register.handle_reachable(6 * DAY);
    // What each lists survives a restart; the one that lists it is back.
    let mut register = read_again(&stage, register.all_lines());
    register.handle_push(&b(), &stage.delta(Vec::new()), 0);
    register.handle_push(&a(), &stage.delta(Vec::new()), 0);
    register.handle_lost(A);
    register.handle_reachable(6 * DAY);
    assert_eq!(shown(&register), [stage.paris.key()]);
    register.handle_reachable(DAY);
    assert!(shown(&register).is_empty());
}

#[test]
fn without_any_store_in_reach_no_record_is_dropped() {
    let stage = Stage::new();
    let mut register = stage.settled();
    register.handle_push(&a(), &stage.snapshot(Vec::new()), 0);
    register.handle_lost(A);
    register.handle_reachable(30 * DAY);
    assert_eq!(shown(&register), [stage.paris.key()]);
}

#[test]
fn a_snapshot_that_broke_off_does_not_make_the_next_batch_a_whole_one() {
    let stage = Stage::new();
    let mut register = stage.settled();
    let broken = Push {
        caught_up: false,
        ..stage.snapshot(Vec::new())
    };
    register.handle_push(&a(), &broken, 0);
    register.handle_lost(A);
    register.handle_push(&a(), &stage.delta(Vec::new()), 0);
    register.handle_reachable(8 * DAY);
    assert_eq!(shown(&register), [stage.paris.key()]);
}

#[test]
fn a_store_that_is_behind_is_no_hostile_one_but_one_that_goes_back_is() {
    let stage = Stage::new();
    let mut register = stage.settled();
    register.handle_push(&b(), &stage.snapshot(vec![stage.paris.member(4)]), 0);
    assert_eq!(register.refused.total(), 0, "it has not had number 5 yet");
    assert!(register.unlisted().is_empty());
    register.handle_push(&a(), &stage.delta(vec![stage.paris.member(4)]), 0);
    assert_eq!(register.refused.count(crate::follow::Cause::Replayed), 1);
}

#[test]
fn each_store_is_resumed_from_its_own_position() {
    let stage = Stage::new();
    let mut register = stage.settled();
    let elsewhere = Push {
        position: Position {
            epoch: [2; 16],
            revision: 77,
        },
        ..stage.snapshot(Vec::new())
    };
    register.handle_push(&b(), &elsewhere, 9);
    let again = read_again(&stage, register.all_lines());
    assert_eq!(again.position(A), Some(stage.snapshot(Vec::new()).position));
    assert_eq!(again.position(B), Some(elsewhere.position));
    assert_eq!(
        (again.last_sync_with(A), again.last_sync),
        (Some(0), Some(9))
    );
}

#[test]
fn a_cache_of_before_there_were_several_stores_is_read_and_all_is_asked_for_again() {
    let stage = Stage::new();
    let settled = stage.settled();
    let mut lines = settled.all_lines();
    for line in &mut lines {
        if let Line::Synced(store, ..) = line {
            *store = None;
        }
    }
    let again = read_again(&stage, lines);
    assert_eq!(shown(&again), [stage.paris.key()]);
    assert_eq!((again.position(A), again.last_sync), (None, Some(0)));
}

#[test]
fn after_a_damaged_cache_all_is_asked_for_again() {
    let stage = Stage::new();
    let lines = stage.settled().all_lines();
    let mut register = stage.register();
    for line in lines.clone() {
        register.handle_line(line, 0);
    }
    register.handle_loaded(false);
    assert_eq!(register.position(A), None);
    // The same if a record lacks the grant it rests on.
    let grant = Line::Entry(stage.granted.entry.bytes().to_vec());
    let without = lines.into_iter().filter(|line| *line != grant).collect();
    assert_eq!(read_again(&stage, without).position(A), None);
}

#[test]
fn what_one_store_sent_too_early_is_asked_of_that_store_again() {
    let mut stage = Stage::new();
    let mut register = stage.settled();
    let rome = stage.world.grant("rome", "10.2.0.0/16", Uses::AtMost(1));
    let gate = stage.world.other(&rome, 0, "gate");
    let early = Push {
        entries: Vec::new(),
        ..stage.delta(vec![gate.member(1)])
    };
    register.handle_push(&b(), &early, 0);
    register.handle_entries(&a(), &[rome.entry.bytes().to_vec()], 0);
    assert!(register.take_relist(B) && !register.take_relist(A));
}
