//! Two liveness machines that say hello to each other, and nothing else.

mod days;

use std::collections::VecDeque;

use super::*;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const SAYS: Says = Says {
    carries: true,
    hears: true,
};

/// Both ends of a link with a constant latency.
struct Pair {
    now: Duration,
    ends: [Liveness; 2],
    lives: [Life; 2],
    /// Times that an end went from alive to anything else.
    failures: [u64; 2],
    /// Hellos that each end sent.
    sent: [u64; 2],
    latency: Duration,
    dice: Dice,
    flights: VecDeque<(Duration, usize, Hello)>,
}

impl Pair {
    fn new(is_sibling: bool, seed: u64) -> Pair {
        let mut ends = [1, 2].map(|boot| Liveness::new(boot, is_sibling));
        ends.iter_mut().for_each(|end| end.handle_session(ms(0)));
        Pair {
            now: ms(0),
            ends,
            lives: [Life::Unheard; 2],
            failures: [0; 2],
            sent: [0; 2],
            latency: ms(10),
            dice: Dice::new(seed),
            flights: VecDeque::new(),
        }
    }

    /// A pair whose beginning is over.
    fn settled(is_busy: bool, seed: u64) -> Pair {
        let mut pair = Pair::new(false, seed);
        for _ in 0..15 {
            pair.keep(is_busy);
            pair.run(ms(1000), |_, _| false);
        }
        assert_eq!(pair.lives, [Life::Alive; 2]);
        pair
    }

    fn keep(&mut self, is_busy: bool) {
        if is_busy {
            let now = self.now;
            self.ends.iter_mut().for_each(|end| end.handle_data(now));
        }
    }

    /// `is_lost` is asked for each hello, with its sender and its time.
    fn run(&mut self, lasting: Duration, mut is_lost: impl FnMut(usize, Duration) -> bool) {
        let end = self.now + lasting;
        while self.step(end, &mut is_lost) {}
        self.now = end;
    }

    fn step(&mut self, end: Duration, is_lost: &mut impl FnMut(usize, Duration) -> bool) -> bool {
        let flight = self.flights.front().map(|(at, ..)| *at);
        let timeouts = self.ends.iter().map(Liveness::poll_timeout);
        let next = timeouts.chain([flight]).flatten().min();
        let Some(next) = next.filter(|next| *next <= end) else {
            return false;
        };
        self.now = self.now.max(next);
        while let Some((at, to, hello)) = self.flights.front().copied()
            && at <= self.now
        {
            self.flights.pop_front();
            self.ends[to].handle_hello(&hello, self.now);
        }
        for from in [0, 1] {
            self.poll(from, is_lost);
        }
        true
    }

    fn poll(&mut self, from: usize, is_lost: &mut impl FnMut(usize, Duration) -> bool) {
        let end = &mut self.ends[from];
        if let Some(hello) = end.poll_hello(SAYS, self.now, &mut self.dice) {
            self.sent[from] += 1;
            if !is_lost(from, self.now) {
                let at = self.now + self.latency;
                self.flights.push_back((at, 1 - from, hello));
            }
        }
        let life = end.life(self.now);
        if self.lives[from] == Life::Alive && life != Life::Alive {
            self.failures[from] += 1;
        }
        self.lives[from] = life;
    }
}

#[test]
fn the_first_hello_heard_is_answered_at_once() {
    let mut pair = Pair::new(false, 1);
    pair.run(pair.latency * 2, |_, _| false);
    assert_eq!(pair.lives, [Life::Alive; 2]);
}

#[test]
fn hellos_come_as_often_as_there_is_need() {
    for (is_sibling, is_busy, least, most) in [
        (false, false, 58, 82),
        (false, true, 590, 810),
        (true, false, 1190, 1610),
        (true, true, 1190, 1610),
    ] {
        let mut pair = Pair::new(is_sibling, 2);
        for _ in 0..20 {
            pair.keep(is_busy);
            pair.run(ms(1000), |_, _| false);
        }
        let before = pair.sent[0];
        for _ in 0..60 {
            pair.keep(is_busy);
            pair.run(ms(1000), |_, _| false);
        }
        let sent = pair.sent[0] - before;
        assert!(
            (least..=most).contains(&sent),
            "{is_sibling} {is_busy}: {sent}"
        );
    }
}

#[test]
fn a_new_key_on_a_link_that_lives_costs_no_hello() {
    let mut pair = Pair::settled(false, 2);
    let before = pair.sent;
    for _ in 0..10 {
        let now = pair.now;
        pair.ends.iter_mut().for_each(|end| end.handle_session(now));
        pair.run(ms(3000), |_, _| false);
    }
    for end in [0, 1] {
        let sent = pair.sent[end] - before[end];
        assert!(sent <= 41, "{end}: {sent}");
    }
}

#[test]
fn who_does_not_answer_costs_no_more_than_an_idle_link() {
    let mut pair = Pair::new(false, 3);
    pair.run(ms(60_000), |from, _| from == 1);
    let before = pair.sent;
    pair.run(ms(100_000), |from, _| from == 1);
    for end in [0, 1] {
        let sent = pair.sent[end] - before[end];
        assert!(sent < 300, "{end}: {sent}");
    }
}

#[test]
fn silence_is_counted_in_the_interval_that_was_announced() {
    for (is_busy, least, most) in [(true, 890, 1010), (false, 2000, 3010)] {
        for seed in 0..20 {
            let mut pair = Pair::settled(is_busy, seed);
            let began = pair.now;
            while pair.lives[0] == Life::Alive {
                pair.keep(is_busy);
                pair.run(ms(10), |_, _| true);
            }
            let after = pair.now - began;
            assert!(
                (ms(least)..=ms(most)).contains(&after),
                "{is_busy}: {after:?}"
            );
        }
    }
}

#[test]
fn the_first_hellos_of_a_longer_interval_may_be_lost() {
    for seed in 0..20 {
        let mut pair = Pair::settled(true, seed);
        // No more data: about two seconds later the interval grows.
        let quiet_from = pair.now + ms(1800);
        pair.run(ms(20_000), |_, at| {
            at >= quiet_from && at < quiet_from + ms(800)
        });
        assert_eq!(pair.failures, [0, 0], "seed {seed}");
    }
}

#[test]
fn an_end_that_is_not_heard_knows_it_from_the_other() {
    let mut pair = Pair::settled(true, 4);
    let began = pair.now;
    while pair.lives[0] == Life::Alive {
        pair.keep(true);
        pair.run(ms(10), |from, _| from == 0);
    }
    assert_eq!(pair.lives, [Life::NotHeard, Life::Silent]);
    assert!(pair.now - began <= ms(1050));
}

#[test]
fn what_was_heard_before_a_silence_does_not_count_after_it() {
    let mut pair = Pair::settled(true, 5);
    pair.run(ms(5000), |_, _| true);
    assert_eq!(pair.lives, [Life::Silent; 2]);
    // A probe by another path, and no hello.
    let now = pair.now;
    pair.ends[0].handle_heard(now);
    assert_eq!(pair.ends[0].life(now), Life::NotHeard);
}

#[test]
fn other_things_that_are_heard_do_not_stand_for_lost_hellos() {
    let mut pair = Pair::settled(true, 6);
    let began = pair.now;
    while pair.lives[0] == Life::Alive {
        pair.keep(true);
        pair.run(ms(50), |from, _| from == 0);
        // Echoes come by another path than hellos.
        let now = pair.now;
        pair.ends[1].handle_heard(now);
    }
    assert_eq!(pair.lives, [Life::NotHeard, Life::Alive]);
    assert!(pair.now - began <= ms(2200));
}

#[test]
fn who_is_not_heard_stays_so_when_the_load_ends() {
    for seed in 0..20 {
        let mut pair = Pair::settled(true, seed);
        pair.keep(true);
        // Not heard just before the link counts as idle.
        pair.run(ms(940), |_, _| false);
        let mut since = None;
        for at in 0..100 {
            pair.run(ms(50), |from, _| from == 0);
            match (pair.lives[0], since) {
                (Life::NotHeard, None) => since = Some(at),
                (life, Some(_)) => assert_eq!(life, Life::NotHeard, "seed {seed}"),
                (_, None) => {}
            }
        }
        assert!(since.is_some());
        // What is heard again is heard, also at the pace of an idle link.
        pair.run(ms(10_000), |from, _| from == 0);
        pair.run(ms(4000), |_, _| false);
        assert_eq!(pair.lives, [Life::Alive; 2], "seed {seed}");
    }
}

#[test]
fn a_hello_that_is_older_than_the_last_says_nothing() {
    let mut end = Liveness::new(1, false);
    end.handle_session(ms(0));
    let hello = |number, carries| Hello {
        boot: 2,
        number,
        interval: 100,
        heard: Some(Heard {
            boot: 1,
            number: 1,
            age: 0,
        }),
        carries,
    };
    end.handle_hello(&hello(10, true), ms(10));
    end.handle_hello(&hello(9, false), ms(20));
    end.handle_hello(&hello(10, false), ms(30));
    assert!(end.remote_carries());
    assert_eq!(end.life(ms(1029)), Life::Alive, "it lived when it came");
    assert_eq!(end.life(ms(1030)), Life::Silent);
}

#[test]
fn an_interval_that_is_a_lie_is_bounded() {
    for (interval, silent) in [(0, 500), (65_535, 6000)] {
        let mut end = Liveness::new(1, false);
        end.handle_session(ms(0));
        let hello = Hello {
            boot: 2,
            number: 1,
            interval,
            heard: None,
            carries: false,
        };
        end.handle_hello(&hello, ms(0));
        assert_eq!(end.life(ms(silent - 1)), Life::NotHeard);
        assert_eq!(end.life(ms(silent)), Life::Silent);
    }
}

#[test]
fn what_it_hears_is_not_said_before_the_other_has_proven_itself() {
    let mut end = Liveness::new(1, false);
    let mut dice = Dice::new(1);
    end.handle_session(ms(0));
    let hello = Hello {
        boot: 2,
        number: 1,
        interval: 100,
        heard: None,
        carries: false,
    };
    end.handle_hello(&hello, ms(0));
    let unproven = Says {
        carries: false,
        hears: false,
    };
    let said = end.poll_hello(unproven, ms(1), &mut dice).unwrap();
    assert_eq!(said.heard, None);
    let said = end.poll_hello(SAYS, ms(2), &mut dice).unwrap();
    assert_eq!(
        said.heard.map(|heard| (heard.boot, heard.number)),
        Some((2, 1))
    );
}
