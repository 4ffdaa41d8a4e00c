use super::*;

const START: Duration = Duration::from_secs(100);

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, last], 51820))
}

struct Driven {
    handshakes: Handshakes,
    now: Duration,
    begun: Vec<(Duration, Vec<SocketAddr>)>,
}

impl Driven {
    fn new(addresses: &[SocketAddr]) -> Driven {
        let mut driven = Driven {
            handshakes: Handshakes::new(3, START),
            now: START,
            begun: Vec::new(),
        };
        driven.handshakes.handle_addresses(addresses, START);
        driven
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(due) = self.handshakes.poll_timeout()
            && due <= end
        {
            self.now = self.now.max(due);
            self.handshakes.handle_timeout(self.now);
            if let Some(to) = self.handshakes.poll_initiation() {
                self.begun.push((self.now, to));
            }
            let next = self.handshakes.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "no progress");
        }
        self.now = end;
    }

    /// Heard each second.
    fn live(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.handshakes.handle_heard(self.now);
            self.run(Duration::from_secs(1));
        }
    }

    fn times(&self) -> Vec<f64> {
        let start = self.begun[0].0;
        let begun = self.begun.iter();
        begun.map(|(at, _)| (*at - start).as_secs_f64()).collect()
    }

    fn tries_of(&self, address: SocketAddr) -> usize {
        let begun = self.begun.iter();
        begun.filter(|(_, to)| to.contains(&address)).count()
    }
}

#[test]
fn one_initiation_goes_to_all_addresses_at_growing_distances_five_times_then_rarely() {
    let mut driven = Driven::new(&[at(1), at(2)]);
    driven.run(Duration::from_secs(30));
    assert!(driven.begun.iter().all(|(_, to)| *to == [at(1), at(2)]));
    let times = driven.times();
    assert_eq!(driven.begun[0].0, START, "at once");
    let latest = [0.0, 0.25, 0.75, 1.75, 3.75];
    assert_eq!(times.len(), latest.len(), "{times:?}");
    for (time, latest) in times.iter().zip(latest) {
        assert!(*time <= latest && *time >= latest * 0.85, "{times:?}");
    }
    driven.begun.clear();
    driven.run(Duration::from_secs(600));
    assert!((9..=10).contains(&driven.begun.len()), "{:?}", driven.begun);
}

#[test]
fn a_new_address_is_tried_at_once_with_all_others_again() {
    let mut driven = Driven::new(&[at(1)]);
    driven.run(Duration::from_secs(20));
    driven.begun.clear();
    driven
        .handshakes
        .handle_addresses(&[at(1), at(2)], driven.now);
    let now = driven.now;
    driven.run(Duration::from_secs(20));
    assert_eq!(driven.begun[0], (now, vec![at(1), at(2)]));
    assert_eq!(driven.begun.len(), 5);
}

#[test]
fn the_same_addresses_or_fewer_begin_nothing() {
    let mut driven = Driven::new(&[at(1), at(2)]);
    driven.run(Duration::from_secs(20));
    driven.begun.clear();
    for addresses in [&[at(2), at(1)][..], &[at(1)]] {
        driven.handshakes.handle_addresses(addresses, driven.now);
        driven.run(Duration::from_secs(10));
    }
    assert_eq!(driven.begun, []);
    driven.run(Duration::from_secs(60));
    assert_eq!(driven.tries_of(at(2)), 0, "it is gone");
}

#[test]
fn reasons_that_come_in_a_flood_make_one_round_a_second() {
    let mut driven = Driven::new(&[at(1)]);
    driven.run(Duration::from_secs(20));
    driven.begun.clear();
    for _ in 0..1000 {
        driven.handshakes.restart(driven.now);
        driven.run(Duration::from_millis(10));
    }
    assert!(
        (10..=32).contains(&driven.begun.len()),
        "{}",
        driven.begun.len()
    );
}

#[test]
fn without_addresses_nothing_is_due() {
    let mut driven = Driven::new(&[]);
    assert_eq!(driven.handshakes.poll_timeout(), None);
    driven.run(Duration::from_secs(100));
    assert_eq!(driven.begun, []);
    driven.handshakes.handle_addresses(&[at(1)], driven.now);
    driven.run(Duration::from_millis(1));
    assert_eq!(driven.begun.len(), 1);
}

#[test]
fn while_the_session_lives_no_handshake_begins_whatever_the_reason() {
    let mut driven = Driven::new(&[at(1)]);
    driven.run(Duration::from_millis(100));
    driven.handshakes.handle_session(at(1), driven.now);
    driven.begun.clear();
    driven.live(Duration::from_secs(60));
    driven
        .handshakes
        .handle_addresses(&[at(1), at(2)], driven.now);
    driven.handshakes.restart(driven.now);
    driven.live(Duration::from_secs(60));
    assert_eq!(driven.begun, []);
}

#[test]
fn the_silent_side_begins_anew_within_four_seconds_and_keeps_at_it() {
    let mut driven = Driven::new(&[at(1), at(2)]);
    driven.run(Duration::from_millis(100));
    driven.handshakes.handle_session(at(1), driven.now);
    driven.live(Duration::from_secs(10));
    driven.begun.clear();
    let silent = driven.now;
    driven.run(Duration::from_secs(30));
    assert!(driven.begun[0].0 <= silent + Duration::from_secs(4));
    let gaps: Vec<f64> = driven
        .times()
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect();
    assert!(gaps.iter().all(|gap| *gap <= 1.0), "{gaps:?}");
    assert_eq!(driven.tries_of(at(2)), 5, "it never had a session");
    driven.begun.clear();
    driven.run(Duration::from_secs(300));
    let tries = driven.tries_of(at(1));
    assert!((55..=65).contains(&tries), "{tries}");
    driven.run(Duration::from_secs(600));
    driven.begun.clear();
    driven.run(Duration::from_secs(600));
    assert!(
        (9..=11).contains(&driven.tries_of(at(1))),
        "it has been away for long"
    );
}

#[test]
fn what_is_heard_again_ends_the_tries() {
    let mut driven = Driven::new(&[at(1)]);
    driven.run(Duration::from_millis(100));
    driven.handshakes.handle_session(at(1), driven.now);
    driven.run(Duration::from_secs(10));
    driven.begun.clear();
    driven.live(Duration::from_secs(100));
    assert_eq!(driven.begun, []);
}
