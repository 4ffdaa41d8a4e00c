//! How much may pass: of one pair, of one node, and of all together, each pair having its share.
//! Pure: time is an argument. Nothing waits here: what is too much is dropped, as in a router.

use std::time::{Duration, Instant};

/// Bytes a second that one core of a small machine can check, sign and send: 500 Mbit/s.
const ALL: u64 = 62_500_000;
/// A relay is a last resort, not a way to use a broker's line up: 100 Mbit/s each way of a pair.
const PAIR: u64 = 12_500_000;
/// 200 Mbit/s, however many pairs a node asks for.
const NODE: u64 = 25_000_000;
/// What may come at once, as the time it takes at its rate.
const PAIR_BURST: Duration = Duration::from_millis(50);
const FAIR_BURST: Duration = Duration::from_millis(20);
/// Beyond its share a pair gets what is free within this, which is less than the shares' bursts
/// take, so that nothing is free while all want theirs.
const FREE: Duration = Duration::from_millis(10);
/// Who has sent within this is counted among those that share.
const EPOCH: Duration = Duration::from_secs(1);

/// For how long what was taken keeps its rate busy.
#[derive(Clone, Copy, Debug, Default)]
struct Meter(Option<Instant>);

/// One direction of a pair.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    own: Meter,
    fair: Meter,
    epoch: Option<u64>,
}

/// All that one node sends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node(Meter);

pub(super) struct Shares {
    start: Instant,
    all: Meter,
    epoch: u64,
    /// Flows that have sent in this epoch, and in the one before.
    active: u64,
    were_active: u64,
}

impl Meter {
    fn fits(self, cost: Duration, room: Duration, now: Instant) -> bool {
        self.0.map_or(now, |until| until.max(now)) + cost <= now + room
    }

    fn take(&mut self, cost: Duration, now: Instant) {
        self.0 = Some(self.0.map_or(now, |until| until.max(now)) + cost);
    }
}

fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate)
}

impl Shares {
    pub(super) fn new(now: Instant) -> Shares {
        Shares {
            start: now,
            all: Meter::default(),
            epoch: 0,
            active: 0,
            were_active: 0,
        }
    }

    /// Whether so many bytes may pass now; to be taken once they are known to be genuine.
    pub(super) fn has_room(
        &mut self,
        (node, flow): (&Node, &mut Flow),
        bytes: usize,
        now: Instant,
    ) -> bool {
        self.count(flow, now);
        node.0.fits(time_of(bytes, NODE), PAIR_BURST, now)
            && flow.own.fits(time_of(bytes, PAIR), PAIR_BURST, now)
            && (flow.fair.fits(self.fair_time(bytes), FAIR_BURST, now)
                || self.all.fits(time_of(bytes, ALL), FREE, now))
    }

    pub(super) fn take(&mut self, node: &mut Node, flow: &mut Flow, bytes: usize, now: Instant) {
        node.0.take(time_of(bytes, NODE), now);
        flow.own.take(time_of(bytes, PAIR), now);
        let fair = self.fair_time(bytes);
        if flow.fair.fits(fair, FAIR_BURST, now) {
            flow.fair.take(fair, now);
        }
        self.all.take(time_of(bytes, ALL), now);
    }

    /// At its share of the rate.
    fn fair_time(&self, bytes: usize) -> Duration {
        let sharing = self.active.max(self.were_active).max(1);
        time_of(bytes, (ALL / sharing).max(1))
    }

    fn count(&mut self, flow: &mut Flow, now: Instant) {
        let epoch =
            (now.saturating_duration_since(self.start).as_nanos() / EPOCH.as_nanos()) as u64;
        if epoch != self.epoch {
            let is_next = epoch == self.epoch + 1;
            self.were_active = if is_next { self.active } else { 0 };
            (self.epoch, self.active) = (epoch, 0);
        }
        if flow.epoch != Some(epoch) {
            flow.epoch = Some(epoch);
            self.active += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: usize = 1250;

    /// What each sender gets through in ten seconds, which send so many datagrams a millisecond.
    fn passed(senders: &[(usize, usize)]) -> Vec<f64> {
        let start = Instant::now();
        let mut shares = Shares::new(start);
        let nodes = senders.iter().map(|(node, _)| *node).max().unwrap() + 1;
        let mut nodes = vec![Node::default(); nodes];
        let mut flows = vec![Flow::default(); senders.len()];
        let mut bytes = vec![0; senders.len()];
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            for (at, (node, count)) in senders.iter().enumerate() {
                for _ in 0..*count {
                    if shares.has_room((&nodes[*node], &mut flows[at]), DATAGRAM, now) {
                        shares.take(&mut nodes[*node], &mut flows[at], DATAGRAM, now);
                        bytes[at] += DATAGRAM;
                    }
                }
            }
        }
        bytes
            .into_iter()
            .map(|bytes| bytes as f64 * 8.0 / 10.0 / 1e6)
            .collect()
    }

    #[test]
    fn a_pair_that_floods_gets_100_megabits_and_no_more() {
        let passed = passed(&[(0, 100)]);
        assert!((99.0..102.0).contains(&passed[0]), "{passed:?}");
    }

    #[test]
    fn a_node_that_floods_through_many_pairs_gets_200() {
        let passed = passed(&[(0, 20); 8]);
        let all: f64 = passed.iter().sum();
        assert!((199.0..202.0).contains(&all), "{passed:?}");
    }

    #[test]
    fn who_wants_less_than_its_share_loses_nothing_to_any_number_that_flood() {
        // Twenty flood with 100 Mbit/s each; two want 10 and 20 of the 22 that are everybody's.
        let mut senders: Vec<(usize, usize)> = (2..22).map(|node| (node, 10)).collect();
        senders.extend([(0, 1), (1, 2)]);
        let passed = passed(&senders);
        assert!(passed[20] >= 9.95, "{passed:?}");
        assert!(passed[21] >= 19.9, "{passed:?}");
    }

    #[test]
    fn those_that_all_flood_get_much_the_same_and_together_what_there_is() {
        let senders: Vec<(usize, usize)> = (0..20).map(|node| (node, 10)).collect();
        let passed = passed(&senders);
        let all: f64 = passed.iter().sum();
        assert!((480.0..=520.0).contains(&all), "{all}");
        let least = passed.iter().copied().fold(f64::MAX, f64::min);
        assert!(least >= 0.8 * 500.0 / 20.0, "{passed:?}");
    }

    #[test]
    fn what_others_leave_is_used() {
        // Four of them could have 125 each, and are held to a pair's 100.
        let passed = passed(&[(0, 20), (1, 20), (2, 20), (3, 20)]);
        assert!(passed.iter().all(|rate| *rate >= 99.0), "{passed:?}");
    }
}
