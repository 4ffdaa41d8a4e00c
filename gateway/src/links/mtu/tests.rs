//! The search against a wire that drops what is too large for it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const HALF_TRIP: Duration = Duration::from_millis(10);

/// The other side echoes what arrives whole.
struct Wire {
    search: MtuSearch,
    now: Duration,
    /// Of each path.
    mtu: BTreeMap<SocketAddr, u16>,
    /// In each direction.
    loss_percent: u64,
    half_trip: Duration,
    dice: Dice,
    /// Echoes under way, by arrival.
    echoes: BTreeMap<(Duration, u64), u64>,
    /// Of large packets, from when there are any.
    sends_large: bool,
    large: u64,
    /// With their times.
    changes: Vec<(Duration, u16)>,
    sent: Vec<(Duration, u16)>,
}

fn path(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 51820))
}

impl Wire {
    fn new(mtu: u16, loss_percent: u64, seed: u64) -> Wire {
        let now = Duration::from_secs(1000);
        let mut wire = Wire {
            search: MtuSearch::new(seed, now),
            now,
            mtu: BTreeMap::from([(path(1), mtu)]),
            loss_percent,
            half_trip: HALF_TRIP,
            dice: Dice::new(seed ^ 1),
            echoes: BTreeMap::new(),
            sends_large: false,
            large: 0,
            changes: Vec::new(),
            sent: Vec::new(),
        };
        wire.search.handle_path(path(1), true, now);
        wire.drain();
        wire
    }

    fn is_lost(&mut self) -> bool {
        self.dice.below(100) < self.loss_percent
    }

    fn drain(&mut self) {
        while let Some(output) = self.search.poll_output() {
            match output {
                MtuOutput::Changed(mtu) => self.changes.push((self.now, mtu)),
                MtuOutput::Probe { to, nonce, size } => {
                    self.sent.push((self.now, size));
                    let fits = self.mtu.get(&to).is_some_and(|mtu| size <= *mtu);
                    if fits && !self.is_lost() && !self.is_lost() {
                        let at = self.now + self.half_trip * 2;
                        self.echoes.insert((at, nonce), nonce);
                    }
                }
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut tick = self.now;
        loop {
            let echo = self.echoes.keys().next().map(|(at, _)| *at);
            let timeout = self.search.poll_timeout();
            let next = [Some(tick), echo, timeout].into_iter().flatten().min();
            let next = next.unwrap_or(end).max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            while let Some(entry) = self.echoes.first_entry()
                && entry.key().0 <= next
            {
                assert!(self.search.handle_echo(entry.remove(), next));
            }
            if next >= tick {
                tick += Duration::from_millis(100);
                self.large += u64::from(self.sends_large);
                self.search.handle_large(self.large, next);
            }
            self.search.handle_timeout(next);
            self.drain();
        }
    }
}

#[test]
fn a_usual_path_is_settled_within_a_second() {
    for mtu in [1280, 1320, 1380, 1412, 1420, 1432, 1440, 8920, 8940] {
        let mut wire = Wire::new(mtu, 0, 1);
        assert_eq!(wire.search.mtu(), START, "before anything is known");
        wire.run(Duration::from_secs(1));
        assert_eq!(wire.search.mtu(), mtu);
    }
}

#[test]
fn where_the_usual_start_does_not_pass_the_least_is_used() {
    for mtu in [1200, 1203, 700] {
        let mut wire = Wire::new(mtu, 0, 1);
        wire.run(Duration::from_secs(3));
        assert!(wire.search.mtu() <= mtu.max(LEAST), "{}", wire.search.mtu());
        assert!(wire.search.mtu() >= LEAST);
    }
}

#[test]
fn a_silent_path_is_asked_less_and_less_and_keeps_the_start() {
    let mut wire = Wire::new(0, 0, 1);
    wire.run(Duration::from_secs(600));
    assert_eq!(wire.search.mtu(), START);
    let rounds = wire
        .sent
        .iter()
        .filter(|(_, size)| *size == WITNESS)
        .count();
    assert!(rounds < 60, "{rounds}");
    wire.mtu.insert(path(1), 1400);
    wire.run(Duration::from_secs(63));
    assert_eq!(wire.search.mtu(), 1400);
}

#[test]
fn a_path_that_shrinks_under_large_packets_is_noticed_and_measured_again() {
    for (before, after) in [(1440, 1300), (1440, 1280), (8920, 1380), (1300, 1240)] {
        for phase in 0..10 {
            let mut wire = Wire::new(before, 0, 1);
            wire.sends_large = true;
            wire.run(Duration::from_millis(5000 + 100 * phase));
            assert_eq!(wire.search.mtu(), before);
            wire.mtu.insert(path(1), after);
            wire.run(Duration::from_millis(1500));
            let found = wire.search.mtu();
            assert!(found <= after.max(START), "{before} {after} {phase}");
            wire.run(Duration::from_secs(2));
            assert!(wire.search.mtu() <= after, "{before} {after} {phase}");
            assert!(
                wire.search.mtu() + CLOSE_ENOUGH >= after,
                "{before} {after}"
            );
        }
    }
}

const CLOSE_ENOUGH: u16 = 4;

#[test]
fn a_path_that_shrank_while_idle_is_noticed_soon_after_large_packets_come() {
    let mut wire = Wire::new(1440, 0, 1);
    wire.run(Duration::from_secs(20));
    wire.mtu.insert(path(1), 1300);
    wire.run(Duration::from_secs(20));
    assert_eq!(wire.search.mtu(), 1440, "nobody has asked");
    wire.sends_large = true;
    wire.run(Duration::from_millis(600));
    assert!(wire.search.mtu() <= 1300);
}

#[test]
fn a_path_that_widens_is_used_within_a_minute_if_large_packets_flow() {
    let mut wire = Wire::new(1280, 0, 1);
    wire.sends_large = true;
    wire.run(Duration::from_secs(10));
    wire.mtu.insert(path(1), 1437);
    wire.run(Duration::from_secs(35));
    assert!(
        (1434..=1437).contains(&wire.search.mtu()),
        "{}",
        wire.search.mtu()
    );
}

#[test]
fn silence_of_everything_does_not_count_as_a_smaller_path() {
    let mut wire = Wire::new(1440, 0, 1);
    wire.sends_large = true;
    wire.run(Duration::from_secs(5));
    wire.changes.clear();
    wire.loss_percent = 100;
    wire.run(Duration::from_secs(20));
    assert_eq!(wire.changes, []);
    assert_eq!(wire.search.mtu(), 1440);
}

#[test]
fn losses_alone_hardly_ever_look_like_a_smaller_path() {
    let mut wire = Wire::new(1440, 10, 5);
    wire.sends_large = true;
    wire.run(Duration::from_secs(60));
    wire.changes.clear();
    wire.run(Duration::from_secs(3600));
    let falls = wire.changes.iter().filter(|(_, mtu)| *mtu < 1400).count();
    assert!(falls <= 2, "{:?}", wire.changes);
}

#[test]
fn while_large_packets_flow_the_size_in_use_is_confirmed_each_second_and_only_then() {
    let mut wire = Wire::new(1440, 0, 1);
    wire.run(Duration::from_secs(10));
    wire.sent.clear();
    wire.run(Duration::from_secs(10));
    assert_eq!(wire.sent, [], "an idle link");
    wire.sends_large = true;
    wire.run(Duration::from_secs(10));
    let confirmed = wire.sent.iter().filter(|(_, size)| *size == 1440).count();
    assert!((8..=11).contains(&confirmed), "{confirmed}");
}

#[test]
fn each_path_has_its_own_size_and_a_former_one_is_remembered() {
    let mut wire = Wire::new(8920, 0, 1);
    wire.mtu.insert(path(2), 1300);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.search.mtu(), 8920);
    wire.search.handle_path(path(2), true, wire.now);
    assert_eq!(wire.search.mtu(), START, "nothing is known of it");
    wire.run(Duration::from_secs(3));
    assert!((1297..=1300).contains(&wire.search.mtu()));
    wire.search.handle_path(path(1), true, wire.now);
    assert_eq!(wire.search.mtu(), 8920, "at once");
    wire.mtu.insert(path(1), 1380);
    wire.run(Duration::from_secs(3));
    assert!(
        wire.search.mtu() <= 1380,
        "what is remembered is asked again"
    );
}

#[test]
fn a_path_that_has_echoed_nothing_gets_no_probes_of_sizes() {
    let mut wire = Wire::new(1420, 0, 3);
    wire.run(Duration::from_secs(5));
    wire.search.handle_path(path(2), false, wire.now);
    while let Some(output) = wire.search.poll_output() {
        assert_eq!(output, MtuOutput::Changed(START));
    }
    assert_eq!(wire.search.poll_timeout(), None);
    wire.search.handle_path_echoed(wire.now);
    let first = wire.search.poll_output();
    assert!(matches!(first, Some(MtuOutput::Probe { to, .. }) if to == path(2)));
}

#[test]
fn an_echo_that_was_not_asked_for_or_comes_twice_or_by_another_path_changes_nothing() {
    let mut wire = Wire::new(1300, 0, 1);
    wire.run(Duration::from_secs(3));
    let found = wire.search.mtu();
    for nonce in 0..1000 {
        assert!(!wire.search.handle_echo(nonce, wire.now));
    }
    wire.search.handle_path(path(2), true, wire.now);
    let mut large = Vec::new();
    while let Some(output) = wire.search.poll_output() {
        if let MtuOutput::Probe {
            nonce,
            size: 8900..,
            ..
        } = output
        {
            large.push(nonce);
        }
    }
    assert!(!large.is_empty());
    wire.search.handle_path(path(1), true, wire.now);
    for nonce in large {
        assert!(
            !wire.search.handle_echo(nonce, wire.now),
            "of the other path"
        );
    }
    let mut once = Vec::new();
    while let Some(output) = wire.search.poll_output() {
        if let MtuOutput::Probe {
            nonce, size: LEAST, ..
        } = output
        {
            once.push(nonce);
        }
    }
    assert!(wire.search.handle_echo(once[0], wire.now));
    assert!(!wire.search.handle_echo(once[0], wire.now), "twice");
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.search.mtu(), found);
}

#[test]
fn a_long_way_changes_nothing_but_the_time() {
    for half_trip in [150, 300, 900] {
        let mut wire = Wire::new(1400, 0, 1);
        wire.half_trip = Duration::from_millis(half_trip);
        wire.sends_large = true;
        wire.run(Duration::from_secs(30));
        assert_eq!(wire.search.mtu(), 1400, "{half_trip}");
        wire.mtu.insert(path(1), 1300);
        wire.run(Duration::from_millis(1600 + 6 * half_trip));
        assert!(wire.search.mtu() <= 1300, "{half_trip}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_path_is_measured_to_four_bytes_through_losses(mtu in 1280u16..9000, seed: u64) {
        let mut wire = Wire::new(mtu, 10, seed);
        wire.sends_large = true;
        // Until the search has come to rest with the truth; losses may hide it for a round.
        let is_found = |wire: &Wire| wire.search.mtu() <= mtu && wire.search.mtu() + 4 > mtu;
        for _ in 0..300 {
            wire.run(Duration::from_secs(1));
            if is_found(&wire) {
                break;
            }
        }
        prop_assert!(is_found(&wire), "{} of {mtu}", wire.search.mtu());
        prop_assert!(wire.changes.iter().all(|(_, found)| *found <= mtu), "more than it carries");
    }

    #[test]
    fn a_shrunken_path_is_found_in_two_seconds_through_losses(
        before in 1400u16..9000,
        part in 0.0f64..0.99,
        seed: u64,
    ) {
        let mut wire = Wire::new(before, 5, seed);
        wire.sends_large = true;
        wire.run(Duration::from_secs(40));
        let after = 1280 + (f64::from(before - 1280) * part) as u16;
        if wire.search.mtu() > after {
            wire.mtu.insert(path(1), after);
            wire.run(Duration::from_secs(2));
            prop_assert!(wire.search.mtu() <= after, "{} of {after}", wire.search.mtu());
        }
    }
}
