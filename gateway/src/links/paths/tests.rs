//! The paths to a gateway that echoes whatever reaches it.

mod newcomer;
mod relay;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::links::CandidateState;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, last], 51820))
}

fn lan() -> SocketAddr {
    "10.1.0.7:51820".parse().unwrap()
}

fn relay() -> SocketAddr {
    "127.0.0.1:4000".parse().unwrap()
}

struct World {
    paths: Paths,
    now: Duration,
    /// Of the addresses that reach the other side: the way there and back.
    trips: BTreeMap<SocketAddr, Duration>,
    loss_percent: u64,
    dice: Dice,
    echoes: BTreeMap<(Duration, u64), SocketAddr>,
    /// Where its hellos come from, if it sends any, and how often.
    speaks_from: Option<SocketAddr>,
    interval: Duration,
    /// When what we send reached it last.
    reached: Duration,
    uses: Vec<(Duration, SocketAddr)>,
    relay: Vec<(Duration, bool)>,
    told: Vec<Duration>,
    probes: Vec<(Duration, SocketAddr)>,
    strangers: Strangers,
}

impl World {
    fn new(trips: &[(SocketAddr, u64)]) -> World {
        let now = Duration::from_secs(100);
        World {
            paths: Paths::new(1, now),
            now,
            trips: trips
                .iter()
                .map(|(address, trip)| (*address, ms(*trip)))
                .collect(),
            loss_percent: 0,
            dice: Dice::new(2),
            echoes: BTreeMap::new(),
            speaks_from: None,
            interval: ms(100),
            reached: now,
            uses: Vec::new(),
            relay: Vec::new(),
            told: Vec::new(),
            probes: Vec::new(),
            strangers: Strangers::default(),
        }
    }

    /// With a session by the first of them, which is in use.
    fn connected(trips: &[(SocketAddr, u64)]) -> World {
        let mut world = World::new(trips);
        let all: Vec<SocketAddr> = trips.iter().map(|(address, _)| *address).collect();
        world.paths.handle_record(&all, Some(lan().ip()), world.now);
        world.speaks_from = Some(all[0]);
        world.paths.handle_session(all[0], world.now);
        world.drain();
        world
    }

    fn drain(&mut self) {
        while let Some(output) = self.paths.poll_output() {
            match output {
                PathOutput::Probe { to, nonce } => {
                    self.probes.push((self.now, to));
                    let trip = self.trips.get(&to).copied();
                    if let Some(trip) = trip.filter(|_| !self.is_lost()) {
                        self.echoes.insert((self.now + trip, nonce), to);
                    }
                }
                PathOutput::Use { to, .. } => self.uses.push((self.now, to)),
                PathOutput::Relay { wanted } => self.relay.push((self.now, wanted)),
                PathOutput::TellCandidates => self.told.push(self.now),
            }
        }
    }

    fn is_lost(&mut self) -> bool {
        self.dice.below(100) < self.loss_percent
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut hello = self.now;
        loop {
            let echo = self.echoes.keys().next().map(|(at, _)| *at);
            let next = [Some(hello), echo, self.paths.poll_timeout()];
            let next = next
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end)
                .max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            while let Some(first) = self.echoes.first_entry()
                && first.key().0 <= next
            {
                let ((_, nonce), _) = first.remove_entry();
                assert!(self.paths.handle_echo(nonce, at(250), next));
            }
            if next >= hello {
                hello += self.interval;
                self.hello();
            }
            self.paths.handle_timeout(&mut self.strangers, next);
            self.drain();
        }
    }

    fn hello(&mut self) {
        let in_use = self.paths.in_use();
        if in_use.is_some_and(|(address, _)| self.trips.contains_key(&address)) && !self.is_lost() {
            self.reached = self.now;
        }
        let Some(from) = self.speaks_from else {
            return;
        };
        if self.trips.contains_key(&from) && !self.is_lost() {
            let age = self.now - self.reached;
            self.paths.handle_source(from, self.now);
            self.paths
                .handle_hello(self.interval, Some(age), self.interval, self.now);
            self.drain();
        }
    }

    fn in_use(&self) -> SocketAddr {
        self.paths.in_use().unwrap().0
    }

    fn probes_of(&self, address: SocketAddr) -> Vec<Duration> {
        let probes = self.probes.iter().filter(|(_, to)| *to == address);
        probes.map(|(at, _)| *at).collect()
    }

    fn forget(&mut self) {
        self.uses.clear();
        self.relay.clear();
        self.told.clear();
        self.probes.clear();
    }
}

#[test]
fn only_addresses_that_can_be_sent_to_become_candidates() {
    let bad = [
        "127.0.0.1:51820",
        "169.254.1.1:51820",
        "224.0.0.5:51820",
        "255.255.255.255:51820",
        "0.0.0.0:51820",
        "198.51.100.1:0",
        "[::1]:51820",
        "[::]:51820",
        "[fe80::1]:51820",
        "[ff02::1]:51820",
        "[::ffff:127.0.0.1]:51820",
    ];
    let bad: Vec<SocketAddr> = bad.iter().map(|text| text.parse().unwrap()).collect();
    let mut world = World::new(&[]);
    world.paths.handle_record(&bad, None, world.now);
    world.paths.handle_session(bad[0], world.now);
    for one in &bad {
        world.paths.handle_candidates(&[*one], world.now);
        world.paths.handle_source(*one, world.now);
    }
    assert_eq!(world.paths.addresses(), []);
    assert_eq!(world.paths.in_use(), None);
    // The relay is an address of this machine by design.
    world.paths.handle_relay(Some(bad[0]), world.now);
    assert_eq!(world.paths.addresses(), [bad[0]]);
    world
        .paths
        .handle_source("[::ffff:198.51.100.9]:5".parse().unwrap(), world.now);
    assert_eq!(
        world.paths.addresses()[1],
        "198.51.100.9:5".parse().unwrap()
    );
}

#[test]
fn nothing_is_probed_before_a_session_and_five_times_then_once_a_minute_after() {
    let mut world = World::new(&[(at(1), 20)]);
    world.paths.handle_record(&[at(1), at(2)], None, world.now);
    world.run(Duration::from_secs(5));
    assert_eq!(world.probes, []);
    world.speaks_from = Some(at(1));
    world.paths.handle_session(at(1), world.now);
    let start = world.now;
    world.run(Duration::from_secs(30));
    let tries: Vec<Duration> = world
        .probes_of(at(2))
        .iter()
        .map(|at| *at - start)
        .collect();
    assert_eq!(tries, [0, 100, 300, 700, 1500].map(ms));
    world.run(Duration::from_secs(600));
    let later = world.probes_of(at(2)).len() - 5;
    assert!((9..=12).contains(&later), "{later}");
    let states = world.paths.candidates();
    assert!(matches!(states[0].2, CandidateState::Answered { rtt } if rtt == ms(20)));
    assert!(matches!(
        states[1].2,
        CandidateState::Silent { tries: 14.. }
    ));
}

#[test]
fn a_candidate_that_answers_late_is_found_by_its_minute() {
    let mut world = World::connected(&[(at(1), 200), (at(2), 20)]);
    world.trips.remove(&at(2));
    world.run(Duration::from_secs(20));
    assert_eq!(world.in_use(), at(1));
    world.trips.insert(at(2), ms(20));
    world.run(Duration::from_secs(65));
    assert_eq!(world.in_use(), at(2));
}

#[test]
fn the_lan_is_taken_at_once_and_never_left_for_a_quicker_path() {
    let mut world = World::connected(&[(at(1), 20), (lan(), 40)]);
    world.run(ms(50));
    assert_eq!(world.paths.in_use(), Some((lan(), PathKind::Lan)));
    world.run(Duration::from_secs(600));
    assert_eq!(world.uses.len(), 2, "{:?}", world.uses);
}

#[test]
fn a_clearly_quicker_path_is_taken_after_three_looks_and_a_little_quicker_one_never() {
    for (trip, is_taken) in [(50, true), (81, false), (97, false), (200, false)] {
        let mut world = World::connected(&[(at(1), 100), (at(2), trip)]);
        world.run(ms(1900));
        assert_eq!(world.in_use(), at(1), "{trip}: after too few looks");
        world.run(Duration::from_secs(200));
        assert_eq!(world.in_use() == at(2), is_taken, "{trip}");
        assert!(world.uses.len() <= 2, "{trip}");
    }
    // Twenty percent of little is nothing.
    let mut world = World::connected(&[(at(1), 6), (at(2), 2)]);
    world.run(Duration::from_secs(200));
    assert_eq!(world.in_use(), at(1));
}

#[test]
fn the_round_trip_is_smoothed_over_the_probes_of_the_path_in_use() {
    let mut world = World::connected(&[(at(1), 100)]);
    world.run(Duration::from_secs(30));
    let before = world.paths.rtt().unwrap();
    assert_eq!(before.smoothed, ms(100));
    assert!(before.deviation < ms(10));
    world.trips.insert(at(1), ms(180));
    world.run(ms(2200));
    let after = world.paths.rtt().unwrap();
    assert!(
        after.smoothed > ms(105) && after.smoothed < ms(180),
        "{after:?}"
    );
    assert!(after.deviation > before.deviation);
}

#[test]
fn a_moved_gateway_is_followed_one_round_trip_after_its_first_packet() {
    let mut world = World::connected(&[(at(1), 40)]);
    world.run(Duration::from_secs(10));
    world.forget();
    // Its NAT gives it another address; the old one leads nowhere.
    world.trips = BTreeMap::from([(at(9), ms(40))]);
    world.speaks_from = Some(at(9));
    let moved = world.now;
    world.run(ms(200));
    assert_eq!(world.uses, [(moved + ms(40), at(9))]);
}

#[test]
fn a_copy_of_a_packet_from_elsewhere_moves_nothing_while_the_path_answers() {
    let mut world = World::connected(&[(at(1), 40)]);
    world.run(Duration::from_secs(10));
    world.forget();
    // Whoever copied it even passes probes on, by a longer way.
    world.trips.insert(at(66), ms(90));
    world.paths.handle_source(at(66), world.now);
    world.run(Duration::from_secs(100));
    assert_eq!(world.uses, []);
    assert_eq!(world.in_use(), at(1));
}

#[test]
fn a_source_that_echoes_nothing_is_not_used_and_in_time_forgotten() {
    let mut world = World::connected(&[(at(1), 40)]);
    world.run(Duration::from_secs(1));
    world.paths.handle_source(at(66), world.now);
    world.run(Duration::from_secs(10));
    assert_eq!(world.in_use(), at(1));
    assert!(world.paths.addresses().contains(&at(66)));
    world.run(Duration::from_secs(700));
    assert_eq!(world.paths.addresses(), [at(1)]);
}

#[test]
fn a_silent_path_is_left_for_any_that_answers_long_before_the_link_is_down() {
    for (interval, limit) in [(100, 400), (1000, 1300)] {
        let mut world = World::connected(&[(at(1), 20), (at(2), 30), (at(3), 90)]);
        world.interval = ms(interval);
        world.run(Duration::from_secs(10));
        assert_eq!(world.in_use(), at(1));
        world.trips.remove(&at(1));
        let began = world.now;
        world.run(ms(limit + interval));
        let (when, to) = *world.uses.last().unwrap();
        assert_eq!(to, at(2), "the first that answers");
        assert!(when - began <= ms(limit), "{:?}", when - began);
    }
}

#[test]
fn where_the_way_out_is_dead_the_others_word_is_enough_to_leave_it() {
    let mut world = World::connected(&[(at(1), 20), (at(2), 30)]);
    world.run(Duration::from_secs(10));
    // It speaks by another path, and says that nothing of ours comes.
    world.speaks_from = Some(at(2));
    world.trips.remove(&at(1));
    world.run(ms(700));
    assert_eq!(world.in_use(), at(2));
}

#[test]
fn while_the_path_in_use_is_silent_whatever_comes_from_elsewhere_is_followed_at_once() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.run(Duration::from_secs(10));
    world.trips.clear();
    world.run(Duration::from_secs(2));
    world.paths.handle_source(at(9), world.now);
    assert_eq!(world.in_use(), at(9));
}

#[test]
fn what_comes_from_where_nothing_of_ours_arrives_is_not_followed_even_then() {
    let mut world = World::connected(&[(at(1), 20), (at(2), 30)]);
    world.trips.remove(&at(2));
    world.run(Duration::from_secs(10));
    world.trips.clear();
    world.run(Duration::from_secs(1));
    world.forget();
    // It was tried in vain; its own packets come.
    world.paths.handle_source(at(2), world.now);
    world.drain();
    assert_eq!(world.uses, []);
    assert_eq!(world.in_use(), at(1));
}

#[test]
fn a_path_whose_probes_are_not_echoed_is_left_though_something_is_heard_and_said_to_be() {
    for interval in [100, 1000] {
        let mut world = World::connected(&[(at(1), 20), (at(2), 30)]);
        world.interval = ms(interval);
        world.run(Duration::from_secs(20));
        assert_eq!(world.in_use(), at(1));
        world.trips.remove(&at(1));
        world.speaks_from = None;
        let begun = world.now;
        while world.in_use() == at(1) && world.now < begun + Duration::from_secs(18) {
            let (interval, now) = (world.interval, world.now);
            world.paths.handle_source(at(2), now);
            world
                .paths
                .handle_hello(interval, Some(ms(10)), interval, now);
            world.run(ms(50));
        }
        assert_eq!(world.in_use(), at(2));
    }
}

#[test]
fn one_lost_hello_or_a_short_stall_changes_no_path() {
    let mut world = World::connected(&[(at(1), 40), (at(2), 20), (at(3), 38)]);
    world.run(Duration::from_secs(30));
    let before = world.in_use();
    world.forget();
    for _ in 0..10 {
        let trips = std::mem::take(&mut world.trips);
        world.run(ms(240));
        world.trips = trips;
        world.run(ms(2000));
    }
    assert_eq!(world.uses, []);
    assert_eq!(world.in_use(), before);
}

#[test]
fn told_candidates_are_tried_at_once_and_answered_with_our_own_once() {
    let mut world = World::connected(&[(at(1), 20), (at(2), 30)]);
    world.run(Duration::from_secs(30));
    world.forget();
    let start = world.now;
    for _ in 0..10 {
        world.paths.handle_candidates(&[at(7)], world.now);
        world.drain();
    }
    world.run(Duration::from_secs(5));
    let tries: Vec<Duration> = world
        .probes_of(at(7))
        .iter()
        .map(|at| *at - start)
        .collect();
    assert_eq!(tries, [0, 100, 300, 700, 1500].map(ms));
    assert_eq!(
        world.probes_of(at(2))[0],
        start,
        "those known before as well"
    );
    assert_eq!(world.told, [start]);
}

#[test]
fn own_addresses_that_change_are_told_once_there_is_a_session() {
    let mut world = World::new(&[(at(1), 20)]);
    world.paths.handle_own_addresses(world.now);
    world.drain();
    assert_eq!(world.told, []);
    world.paths.handle_session(at(1), world.now);
    world.paths.handle_own_addresses(world.now);
    world.drain();
    assert_eq!(world.told, [world.now]);
}

#[test]
fn however_many_are_told_or_seen_few_are_kept_and_the_records_and_the_one_in_use_stay() {
    let record: Vec<SocketAddr> = (1..=8).map(at).collect();
    let mut world = World::connected(&[(at(200), 20)]);
    world.run(Duration::from_secs(1));
    world.paths.handle_record(&record, None, world.now);
    world.paths.handle_relay(Some(relay()), world.now);
    for round in 0..20 {
        let told: Vec<SocketAddr> = (20..60).map(|last| at(last + round)).collect();
        world.paths.handle_candidates(&told, world.now);
        world.paths.handle_source(at(100 + round), world.now);
        world.run(ms(700));
        let addresses = world.paths.addresses();
        assert!(addresses.len() <= MAX_CANDIDATES, "{}", addresses.len());
        assert!(record.iter().all(|address| addresses.contains(address)));
        assert!(addresses.contains(&at(200)));
    }
    assert_eq!(world.in_use(), at(200));
}

#[test]
fn what_leaves_the_record_leaves_the_candidates_unless_it_is_in_use() {
    let mut world = World::connected(&[(at(1), 20), (at(2), 20)]);
    world.run(Duration::from_secs(1));
    world.paths.handle_record(&[at(3)], None, world.now);
    assert_eq!(world.paths.in_use(), Some((at(1), PathKind::Observed)));
    assert_eq!(world.paths.addresses(), [at(1), at(3)]);
    world.paths.handle_record(&[at(1), at(3)], None, world.now);
    assert_eq!(world.paths.in_use(), Some((at(1), PathKind::Record)));
}

#[test]
fn a_new_session_from_elsewhere_moves_a_living_path_not_at_all_and_a_silent_one_at_once() {
    let mut world = World::connected(&[(at(1), 20), (at(2), 25)]);
    world.run(Duration::from_secs(5));
    world.paths.handle_session(at(2), world.now);
    assert_eq!(world.in_use(), at(1));
    world.speaks_from = None;
    world.run(Duration::from_secs(1));
    world.trips.clear();
    world.run(Duration::from_secs(5));
    world.paths.handle_session(at(2), world.now);
    assert_eq!(world.in_use(), at(2));
}

#[test]
fn an_echo_that_was_not_asked_for_or_comes_twice_or_late_does_nothing() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.trips.clear();
    world.paths.handle_candidates(&[at(5)], world.now);
    let mut nonce = None;
    world.paths.handle_timeout(&mut world.strangers, world.now);
    while let Some(output) = world.paths.poll_output() {
        match output {
            PathOutput::Probe { to, nonce: n } if to == at(5) => nonce = Some(n),
            PathOutput::Probe { .. }
            | PathOutput::Use { .. }
            | PathOutput::Relay { .. }
            | PathOutput::TellCandidates => {}
        }
    }
    let nonce = nonce.unwrap();
    for forged in [0, 1, nonce ^ 1, u64::MAX] {
        assert!(!world.paths.handle_echo(forged, at(9), world.now));
    }
    let late = world.now + ECHO_WITHIN + ms(1);
    assert!(
        world.paths.handle_echo(nonce, at(9), late),
        "ours, but too old"
    );
    assert!(!world.paths.handle_echo(nonce, at(9), late), "twice");
    let states = world.paths.candidates();
    let (_, _, state) = states
        .iter()
        .find(|(address, ..)| *address == at(5))
        .unwrap();
    assert!(
        matches!(state, CandidateState::Silent { tries: 1 }),
        "{state:?}"
    );
    assert_eq!(world.paths.seen_as(), None);
}

#[test]
fn an_idle_link_with_three_candidates_sends_few_probes() {
    let mut world = World::connected(&[(at(1), 20), (at(2), 30), (at(3), 40)]);
    world.interval = Duration::from_secs(1);
    world.run(Duration::from_secs(20));
    world.forget();
    world.run(Duration::from_secs(600));
    assert!(world.probes.len() <= 70, "{}", world.probes.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_working_address_is_found_and_kept_whatever_fails_as_long_as_one_works(
        seed: u64,
        loss in 0u64..10,
        interval in prop_oneof![Just(100u64), Just(1000)],
        outages in proptest::collection::vec((0usize..4, 0u64..5000), 1..12),
    ) {
        let trips = [(at(1), 20), (at(2), 50), (lan(), 5), (at(4), 300)];
        let mut world = World::connected(&trips);
        world.dice = Dice::new(seed);
        world.loss_percent = loss;
        world.interval = ms(interval);
        for (works, pause) in outages {
            world.run(ms(pause));
            // One works, and the other side has found it already.
            world.trips = BTreeMap::from([(trips[works].0, ms(trips[works].1))]);
            world.speaks_from = Some(trips[works].0);
            world.run(ms(8 * interval + 4000));
            prop_assert_eq!(world.in_use(), trips[works].0);
            world.trips = trips.map(|(address, trip)| (address, ms(trip))).into();
        }
        // Some of its probes, one a minute, may be lost.
        world.run(Duration::from_secs(400));
        prop_assert_eq!(world.in_use(), lan(), "the best in the end");
    }
}

#[test]
fn answers_that_waited_while_the_other_side_was_stopped_do_not_lengthen_the_way() {
    let mut world = World::connected(&[(at(1), 2)]);
    world.run(Duration::from_secs(10));
    let before = world.paths.rtt().unwrap().limit();
    // It answers what it was asked in the meantime when it runs again, and speaks as before.
    world.speaks_from = None;
    for left in (1..=25).rev() {
        world.trips.insert(at(1), ms(left * 100));
        world.run(ms(100));
    }
    world.trips.insert(at(1), ms(2));
    world.speaks_from = Some(at(1));
    world.run(Duration::from_secs(1));
    let after = world.paths.rtt().unwrap().limit();
    assert!(after <= before * 2 + ms(5), "{before:?} became {after:?}");
}
