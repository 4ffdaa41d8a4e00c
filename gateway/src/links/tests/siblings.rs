//! Two gateways of site a and one of site b: who carries when one of a fails.

use std::time::Duration;

use proto::control::{self, Control, Word};

use super::wire::{Wire, identity, ms};
use super::{Change, FAR, NEAR, Why};

/// `a` is 0 and 1, `b` is 2; all up, both of `a` carry, data flows between b and each of a.
fn sites(latency: Duration, seed: u64) -> Wire {
    let mut wire = Wire::up(&["a", "a", "b"], latency, seed);
    wire.load = [(0, 2), (1, 2), (2, 0), (2, 1)].into();
    wire.run(ms(4000));
    assert_eq!(wire.carriers(2, "a"), (true, vec![0, 1]));
    wire
}

#[test]
fn a_death_is_told_by_the_sibling() {
    for (latency, bar) in [(NEAR, ms(600)), (FAR, ms(1000))] {
        for seed in 0..3 {
            let mut wire = sites(latency, seed);
            // The deviation of round trips takes some of them to settle.
            wire.run(latency * 100);
            let died = wire.now;
            wire.kill(0);
            wire.run(ms(3000));
            let (after, why) = wire.went_down(2, 0, died).unwrap();
            if latency == NEAR {
                assert_eq!(why, Why::Accused);
            }
            assert!(after <= bar, "{latency:?}: {after:?}");
            assert_eq!(wire.carriers(2, "a"), (true, vec![1]));
        }
    }
}

/// Node 0 dies, and node 2 believes its sibling's word.
fn assert_left_on_word(wire: &mut Wire) {
    let died = wire.now;
    wire.kill(0);
    wire.run(ms(2000));
    let (after, why) = wire.went_down(2, 0, died).unwrap();
    assert_eq!(why, Why::Accused);
    assert!(after <= ms(600), "{after:?}");
}

#[test]
fn an_idle_link_too_is_left_on_a_siblings_word() {
    let mut wire = sites(NEAR, 1);
    wire.load.clear();
    wire.run(ms(15_000));
    assert_left_on_word(&mut wire);
}

#[test]
fn a_stall_of_200_ms_takes_no_sibling_out() {
    for seed in 0..3 {
        let mut wire = sites(NEAR, seed);
        let began = wire.now;
        wire.stall(0, ms(200));
        wire.run(ms(2000));
        assert_eq!(wire.changes(2, 0, began), []);
        assert_eq!(wire.changes(1, 0, began), []);
    }
}

#[test]
fn a_false_accusation_at_300_ms_round_trip_is_cleared() {
    let mut wire = sites(FAR, 2);
    let began = wire.now;
    let word = Control::Word(Word {
        accused: *identity(0).public().as_bytes(),
        boot: 1000,
    });
    // The load would clear it; without it only the answer does.
    wire.load.clear();
    wire.run(ms(5000));
    for _ in 0..20 {
        let of = (&identity(1).public(), &identity(2).public());
        wire.control(1, 2, control::packet(&word, of.0, of.1, 0));
        wire.run(ms(333));
    }
    wire.run(ms(2000));
    assert_eq!(wire.changes(2, 0, began), []);
    assert_eq!(wire.nodes[2].links.refused().words, 0);
}

#[test]
fn a_false_word_does_not_keep_the_next_true_one_from_being_believed() {
    let mut wire = sites(NEAR, 4);
    wire.load.clear();
    wire.run(ms(15_000));
    let word = Control::Word(Word {
        accused: *identity(0).public().as_bytes(),
        boot: 1000,
    });
    for _ in 0..3 {
        let of = (&identity(1).public(), &identity(2).public());
        wire.control(1, 2, control::packet(&word, of.0, of.1, 0));
        wire.run(ms(50));
    }
    wire.run(ms(2000));
    assert_left_on_word(&mut wire);
}

#[test]
fn a_word_that_is_repeated_without_end_takes_nobody_out_under_losses() {
    let mut down = 0;
    for seed in 0..10 {
        let mut wire = sites(NEAR, seed);
        wire.load.clear();
        wire.run(ms(5000));
        wire.loss = 20;
        let began = wire.now;
        let word = Control::Word(Word {
            accused: *identity(0).public().as_bytes(),
            boot: 1000,
        });
        for _ in 0..600 {
            let of = (&identity(1).public(), &identity(2).public());
            wire.control(1, 2, control::packet(&word, of.0, of.1, 0));
            wire.run(ms(100));
        }
        let changes = wire.changes(2, 0, began);
        let accused = |(_, change): &&(Duration, Change)| *change == Change::Down(Why::Accused);
        down += changes.iter().filter(accused).count();
    }
    assert!(down <= 12, "{down} times in ten minutes");
}

#[test]
fn a_word_of_a_stranger_is_ignored() {
    let mut wire = Wire::up(&["a", "a", "b", "c"], NEAR, 3);
    let began = wire.now;
    wire.dead.insert((0, 2));
    let word = |accused: usize, boot| {
        Control::Word(Word {
            accused: *identity(accused).public().as_bytes(),
            boot,
        })
    };
    // Of another site; about itself; about another boot; about us.
    for (from, accused, boot) in [(3, 0, 1000), (0, 0, 1000), (1, 0, 999), (1, 2, 3000)] {
        let of = (&identity(from).public(), &identity(2).public());
        let packet = control::packet(&word(accused, boot), of.0, of.1, 0);
        wire.control(from, 2, packet);
    }
    wire.run(ms(200));
    // What node 0 itself said did not arrive; its sibling's own word is still to come.
    assert_eq!(wire.nodes[2].links.refused().words, 3);
    assert_eq!(wire.changes(2, 0, began), []);
}

#[test]
fn a_split_of_the_lan_between_siblings_takes_neither_out() {
    for seed in 0..3 {
        let mut wire = sites(FAR, seed);
        let began = wire.now;
        wire.dead = [(0, 1), (1, 0)].into();
        wire.run(ms(5000));
        assert_eq!(wire.state(0, 1), Err(Why::Silent));
        assert_eq!(wire.changes(2, 0, began), []);
        assert_eq!(wire.changes(2, 1, began), []);
        assert_eq!(wire.carriers(2, "a"), (true, vec![0, 1]));
    }
}

#[test]
fn a_failed_gateway_comes_last_for_30_s_and_is_used_when_alone() {
    let mut wire = sites(NEAR, 4);
    wire.dead = [(0, 2), (2, 0)].into();
    wire.run(ms(3000));
    assert_eq!(wire.carriers(2, "a"), (true, vec![1]));
    let healed = wire.now;
    wire.dead.clear();
    wire.run(ms(3000));
    assert_eq!(wire.state(2, 0), Ok(()));
    assert!(wire.is_held(2, 0));
    assert_eq!(wire.carriers(2, "a"), (true, vec![1]));
    let died = wire.now;
    wire.kill(1);
    let is_used = wire.run_until(died + ms(2000), |wire| wire.carriers(2, "a").1 == [0]);
    assert!(is_used);
    assert!(wire.now - died <= ms(700));
    wire.start(1);
    wire.run((healed + ms(60_000)).saturating_sub(wire.now));
    assert_eq!(wire.carriers(2, "a"), (true, vec![0, 1]));
}

#[test]
fn a_goodbye_of_a_sibling_is_no_reason_for_a_word() {
    let mut wire = sites(NEAR, 5);
    let left = wire.now;
    wire.stop(0);
    wire.run(ms(3000));
    assert_eq!(wire.went_down(2, 0, left), Some((NEAR, Why::Goodbye)));
    assert_eq!(wire.went_down(1, 0, left), Some((ms(1), Why::Goodbye)));
    assert_eq!(wire.nodes[2].links.refused().words, 0);
    wire.start(0);
    wire.run(ms(200));
    assert_eq!(wire.carriers(2, "a"), (true, vec![0, 1]));
}

#[test]
fn two_that_stop_one_after_the_other_do_not_wait_for_each_other() {
    let mut wire = sites(NEAR, 5);
    wire.stop(0);
    wire.run(ms(300));
    assert!(wire.ended(0).is_some());
    let left = wire.now;
    wire.stop(1);
    wire.run(ms(1000));
    assert!(wire.ended(1).unwrap() - left <= ms(300));
    assert_eq!(wire.carriers(2, "a"), (false, vec![]));
}

#[test]
fn in_a_rolling_restart_somebody_always_carries() {
    for seed in 0..3 {
        let mut wire = sites(NEAR, seed);
        for number in [0, 1] {
            wire.stop(number);
            let end = wire.now + ms(2000);
            assert!(wire.run_until(end, |wire| wire.ended(number).is_some()));
            assert_eq!(wire.carriers(2, "a"), (true, vec![1 - number]));
            wire.start(number);
            let is_ready = |wire: &Wire| {
                let statuses = wire.nodes[number].links.statuses(wire.now);
                statuses
                    .iter()
                    .all(|link| link.state.is_ok() && link.carries)
            };
            assert!(wire.run_until(wire.now + ms(1000), is_ready));
            assert!(!wire.carriers(2, "a").1.is_empty());
        }
        wire.run(ms(100));
        assert_eq!(wire.carriers(2, "a"), (true, vec![0, 1]));
    }
}

#[test]
fn a_lost_site_is_carried_by_a_sibling_that_has_it() {
    let mut wire = sites(NEAR, 6);
    wire.dead = [(0, 2), (2, 0)].into();
    wire.run(ms(3000));
    assert_eq!(wire.carriers(0, "b"), (false, vec![1]));
    assert_eq!(wire.carriers(1, "b"), (true, vec![2]));
    // The sibling loses it too, and says so.
    wire.dead.extend([(1, 2), (2, 1)]);
    wire.run(ms(3000));
    assert_eq!(wire.carriers(0, "b"), (false, vec![]));
    assert_eq!(wire.carriers(1, "b"), (false, vec![]));
    wire.dead.clear();
    wire.run(ms(3000));
    assert_eq!(wire.carriers(0, "b"), (true, vec![2]));
}
