//! Whole gateways on virtual time, in the order of a link's life.

mod roads;
mod roster;
mod siblings;
mod wire;

use std::time::Duration;

use proto::control::{self, Control, Hello, Word};

use super::dice::Dice;
use super::{Change, Event, Why};
use wire::{Wire, identity, ms};

const NEAR: Duration = ms(10);
const FAR: Duration = ms(150);

/// `[a, b]` joined at this latency, both up and with no data between them for long.
fn pair(latency: Duration, seed: u64) -> Wire {
    let mut wire = Wire::up(&["a", "b"], latency, seed);
    wire.run(ms(12_000));
    wire
}

fn busy_pair(latency: Duration, seed: u64) -> Wire {
    let mut wire = pair(latency, seed);
    wire.load = [(0, 1), (1, 0)].into();
    wire.run(ms(3000));
    wire
}

fn hello(boot: u64, number: u64) -> Control {
    Control::Hello(Hello {
        boot,
        number,
        interval: 100,
        heard: None,
        carries: false,
    })
}

/// What node 0 says to node 1.
fn packet(control: &Control) -> Vec<u8> {
    control::packet(control, &identity(0).public(), &identity(1).public(), 0)
}

#[test]
fn two_that_start_together_are_up_within_two_round_trips_of_a_session() {
    for seed in 0..20 {
        let mut wire = Wire::new(&["a", "b"], NEAR, seed);
        let began = wire.now;
        wire.introduce();
        let is_up = wire.run_until(began + ms(1000), |wire| {
            wire.state(0, 1).is_ok() && wire.state(1, 0).is_ok()
        });
        assert!(is_up);
        // One round trip makes the session.
        assert!(wire.now - began <= NEAR * 6, "{:?}", wire.now - began);
        assert_eq!(wire.carriers(0, "b"), (true, vec![1]));
        assert_eq!(wire.carriers(1, "a"), (true, vec![0]));
    }
}

#[test]
fn a_third_of_all_lost_only_delays_the_start() {
    for seed in 0..20 {
        let mut wire = Wire::new(&["a", "b"], NEAR, seed);
        wire.loss = 33;
        let began = wire.now;
        wire.introduce();
        let is_up = wire.run_until(began + ms(20_000), |wire| {
            wire.state(0, 1).is_ok() && wire.state(1, 0).is_ok()
        });
        assert!(is_up, "seed {seed}");
    }
}

#[test]
fn nobody_is_taken_down_by_nothing() {
    for load in [vec![], vec![(0, 1)], vec![(0, 1), (1, 0)]] {
        let mut wire = pair(FAR, 3);
        let began = wire.now;
        wire.load = load.into_iter().collect();
        wire.run(ms(10_000));
        wire.load.clear();
        wire.run(ms(20_000));
        for (of, to) in [(0, 1), (1, 0)] {
            assert_eq!(wire.changes(of, to, began), []);
        }
    }
}

#[test]
fn an_idle_link_costs_about_one_hello_a_second() {
    let mut wire = pair(NEAR, 3);
    let before = wire.sent();
    wire.run(ms(100_000));
    let sent = wire.sent() - before;
    assert!(
        (200..330).contains(&sent),
        "{sent} datagrams in both directions"
    );
}

#[test]
fn many_idle_links_wake_their_gateway_a_few_times_a_second_each() {
    let sites: Vec<String> = (0..30).map(|number| format!("site-{number}")).collect();
    let sites: Vec<&str> = sites.iter().map(String::as_str).collect();
    let mut wire = Wire::new(&sites, NEAR, 3);
    wire.introduce_star();
    wire.run(ms(15_000));
    let carriers = wire.nodes[0].links.carriers().sites.len();
    assert_eq!(carriers, 29, "all are up");
    let before = wire.nodes[0].timeouts;
    wire.run(ms(10_000));
    let timeouts = wire.nodes[0].timeouts - before;
    assert!(timeouts < 29 * 10 * 2, "{timeouts} in ten seconds");
}

#[test]
fn a_busy_link_that_falls_silent_is_down_after_ten_intervals() {
    for seed in 0..3 {
        let mut wire = busy_pair(NEAR, seed);
        let died = wire.now;
        wire.kill(1);
        wire.run(ms(2000));
        let (after, why) = wire.went_down(0, 1, died).unwrap();
        assert_eq!(why, Why::Silent);
        // Counters are looked at every 100 ms.
        assert!((ms(900)..=ms(1120)).contains(&after), "{after:?}");
        assert_eq!(wire.carriers(0, "b"), (false, vec![]));
    }
}

#[test]
fn an_idle_link_that_falls_silent_is_down_after_three_intervals() {
    for seed in 0..3 {
        let mut wire = pair(NEAR, seed);
        let died = wire.now;
        wire.kill(1);
        wire.run(ms(4000));
        let (after, why) = wire.went_down(0, 1, died).unwrap();
        assert_eq!(why, Why::Silent);
        assert!((ms(2000)..=ms(3020)).contains(&after), "{after:?}");
    }
}

#[test]
fn one_direction_dead_is_noticed_on_both_sides() {
    for (dead, load) in [
        ((0, 1), vec![(0, 1), (1, 0)]),
        ((0, 1), vec![(0, 1)]),
        ((0, 1), vec![(1, 0)]),
        ((1, 0), vec![(0, 1)]),
    ] {
        for seed in 0..2 {
            let mut wire = pair(NEAR, seed);
            wire.load = load.iter().copied().collect();
            wire.run(ms(3000));
            let died = wire.now;
            wire.dead.insert(dead);
            wire.run(ms(2500));
            for (of, to) in [(0, 1), (1, 0)] {
                let (after, _) = wire.went_down(of, to, died).unwrap();
                assert!(after <= ms(1500), "{dead:?} {load:?} {of}: {after:?}");
            }
        }
    }
}

#[test]
fn what_heals_is_up_again_soon() {
    let mut wire = busy_pair(NEAR, 4);
    wire.dead = [(0, 1), (1, 0)].into();
    wire.run(ms(5000));
    assert_eq!(wire.state(0, 1), Err(Why::Silent));
    let healed = wire.now;
    wire.dead.clear();
    let is_up = wire.run_until(healed + ms(2000), |wire| {
        wire.state(0, 1).is_ok() && wire.state(1, 0).is_ok()
    });
    assert!(is_up);
    // Alone in its site it is used at once.
    assert!(wire.is_held(0, 1));
    assert_eq!(wire.carriers(0, "b"), (true, vec![1]));
}

#[test]
fn a_stall_of_200_ms_takes_nobody_out() {
    for seed in 0..5 {
        let mut wire = busy_pair(NEAR, seed);
        let began = wire.now;
        wire.stall(1, ms(200));
        wire.run(ms(3000));
        assert_eq!(wire.changes(0, 1, began), []);
        assert_eq!(wire.changes(1, 0, began), []);
    }
}

#[test]
fn who_slept_long_accuses_nobody_else_of_it() {
    let mut wire = Wire::up(&["a", "b", "c"], NEAR, 3);
    let began = wire.now;
    wire.stall(0, ms(20_000));
    wire.run(ms(25_000));
    assert_eq!(wire.changes(0, 1, began), []);
    assert_eq!(wire.changes(0, 2, began), []);
    assert!(wire.went_down(1, 0, began).is_some(), "the sleeper itself");
    assert_eq!(wire.state(1, 0), Ok(()));
}

#[test]
fn a_goodbye_moves_at_once_and_is_no_failure() {
    let mut wire = busy_pair(NEAR, 5);
    let left = wire.now;
    wire.stop(1);
    wire.run(ms(2000));
    assert_eq!(wire.went_down(0, 1, left), Some((NEAR, Why::Goodbye)));
    assert_eq!(wire.carriers(0, "b"), (false, vec![]));
    let statuses = wire.nodes[0].links.statuses(wire.now);
    assert_eq!(statuses[0].failovers, 0);
    assert!(!statuses[0].held_down);
    // Heard after one round trip, then a while for what is on its way.
    assert!(wire.ended(1).unwrap() - left <= NEAR * 4 + ms(150));
}

#[test]
fn a_gateway_that_starts_again_after_a_goodbye_is_used_at_once() {
    let mut wire = busy_pair(NEAR, 6);
    wire.stop(1);
    wire.run(ms(400));
    let began = wire.now;
    wire.start(1);
    let is_up = wire.run_until(began + ms(1000), |wire| wire.carriers(0, "b").1 == [1]);
    assert!(is_up);
    assert!(wire.now - began <= NEAR * 6, "{:?}", wire.now - began);
    assert!(!wire.is_held(0, 1));
}

#[test]
fn a_gateway_that_crashed_and_starts_again_is_up_within_three_round_trips() {
    for pause in [50, 500, 5000, 50_000] {
        let mut wire = busy_pair(NEAR, 7);
        wire.kill(1);
        wire.run(ms(pause));
        let began = wire.now;
        wire.start(1);
        let is_new = |wire: &Wire| {
            wire.state(1, 0).is_ok() && wire.state(0, 1).is_ok() && wire.carriers(0, "b").1 == [1]
        };
        assert!(wire.run_until(began + ms(1000), is_new), "{pause}");
        assert!(wire.now - began <= NEAR * 6, "{:?}", wire.now - began);
    }
}

#[test]
fn old_hellos_do_no_harm() {
    let mut wire = busy_pair(NEAR, 8);
    wire.kill(1);
    wire.start(1);
    wire.run(ms(5000));
    wire.kill(0);
    wire.start(0);
    wire.run(ms(5000));
    let began = wire.now;
    for again in 0..50 {
        // Numbers that went by, and the boot before.
        wire.control(0, 1, packet(&hello(1001, again % 10)));
        wire.control(0, 1, packet(&hello(1000, again % 10)));
        wire.run(ms(20));
    }
    wire.run(ms(1000));
    assert_eq!(wire.changes(1, 0, began), []);
    assert_eq!(wire.state(1, 0), Ok(()));
}

#[test]
fn two_of_one_key_are_both_left_alone_until_one_has_been_quiet_for_a_minute() {
    let mut wire = busy_pair(NEAR, 9);
    let began = wire.now;
    for number in 1..100 {
        // Another process with the identity of node 0.
        wire.control(0, 1, packet(&hello(77, number)));
        wire.run(ms(100));
    }
    let told = |(_, change): &(Duration, Change)| *change == Change::TwoOfOneKey;
    assert_eq!(
        wire.changes(1, 0, began).iter().filter(|c| told(c)).count(),
        1
    );
    assert_eq!(wire.state(1, 0), Err(Why::TwoOfOneKey));
    assert_eq!(wire.carriers(1, "a"), (false, vec![]));
    assert_eq!(wire.state(0, 1), Err(Why::ShutOut), "it must learn of it");
    assert_eq!(wire.carriers(0, "b"), (false, vec![]));
    wire.run(ms(50_000));
    assert_eq!(wire.state(1, 0), Err(Why::TwoOfOneKey));
    assert_eq!(wire.state(0, 1), Err(Why::ShutOut));
    wire.run(ms(15_000));
    assert_eq!(wire.state(1, 0), Ok(()));
    assert_eq!(wire.state(0, 1), Ok(()));
    let shut_out = |(_, change): &(Duration, Change)| *change == Change::ShutOut;
    let told = wire.changes(0, 1, began);
    assert_eq!(told.iter().filter(|change| shut_out(change)).count(), 1);
}

#[test]
fn who_was_shut_out_is_not_when_the_other_side_begins_anew() {
    let mut wire = busy_pair(NEAR, 13);
    let shut_out = control::packet(
        &Control::TwoOfOneKey,
        &identity(1).public(),
        &identity(0).public(),
        0,
    );
    wire.control(1, 0, shut_out);
    wire.run(ms(20));
    assert_eq!(wire.state(0, 1), Err(Why::ShutOut));
    wire.kill(1);
    wire.start(1);
    wire.run(ms(1000));
    assert_eq!(wire.state(0, 1), Ok(()));
}

#[test]
fn whatever_control_bytes_come_nothing_breaks() {
    let mut wire = busy_pair(NEAR, 10);
    let mut dice = Dice::new(1);
    let began = wire.now;
    for _ in 0..5000 {
        let real = packet(&Control::Word(Word {
            accused: [7; 32],
            boot: 1,
        }));
        let mut bytes = real;
        for _ in 0..=dice.below(4) {
            let at = 48 + dice.below(bytes.len() as u64 - 48) as usize;
            bytes[at] = dice.next() as u8;
        }
        bytes.truncate(51 + dice.below(64) as usize);
        let length = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        wire.control(0, 1, bytes);
        wire.run(ms(1));
    }
    assert_eq!(wire.state(1, 0), Ok(()));
    assert!(wire.nodes[1].links.refused().unreadable > 0);
    assert_eq!(wire.went_down(1, 0, began), None);
}

#[test]
fn a_gateway_that_always_runs_late_still_sees_who_is_dead() {
    let mut wire = pair(NEAR, 12);
    let links = &mut wire.nodes[0].links;
    let died = wire.now;
    let mut now = died;
    while now < died + ms(20_000) {
        now = links.poll_timeout().unwrap().max(now) + ms(150);
        links.handle_timeout(now);
        while links.poll_transmit().is_some() || links.poll_event().is_some() {}
    }
    assert!(links.statuses(now).iter().all(|link| link.state.is_err()));
}

#[test]
fn a_ping_comes_back() {
    let mut wire = pair(NEAR, 11);
    let to = wire.nodes[1].of;
    wire.ping(0, 1, 5);
    wire.run(ms(100));
    let ponged = Event::Ponged {
        of: to,
        id: 5,
        rtt: NEAR * 2,
    };
    let events = &wire.nodes[0].events;
    assert!(events.iter().any(|(_, event)| *event == ponged));
}
