//! `causeway ping`: several questions to every gateway of a site, each answered or timed out.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::key::PublicKey;
use tokio::sync::mpsc;

use crate::status::Pong;

pub(super) const MAX_COUNT: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(200);
const ENOUGH: Duration = Duration::from_secs(2);
/// At once; each ends by itself.
pub(super) const MAX_RUNS: usize = 16;

struct Run {
    /// With what is told of each.
    gateways: Vec<(PublicKey, Pong)>,
    count: u32,
    sent: u32,
    next: Duration,
    answers: mpsc::Sender<Pong>,
}

struct Waiting {
    since: Duration,
    pong: Pong,
    answers: mpsc::Sender<Pong>,
}

#[derive(Default)]
pub(super) struct Pings {
    runs: Vec<Run>,
    waiting: BTreeMap<u64, Waiting>,
    last_id: u64,
}

impl Pings {
    /// False if too many are under way.
    pub(super) fn start(
        &mut self,
        gateways: Vec<(PublicKey, Pong)>,
        count: u32,
        answers: mpsc::Sender<Pong>,
    ) -> bool {
        if self.runs.len() >= MAX_RUNS {
            return false;
        }
        self.runs.push(Run {
            gateways,
            count: count.clamp(1, MAX_COUNT),
            sent: 0,
            next: Duration::ZERO,
            answers,
        });
        true
    }

    /// Whom to ask now, by which number.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(PublicKey, u64)> {
        self.time_out(now);
        let mut due = Vec::new();
        for run in &mut self.runs {
            if now < run.next || run.sent >= run.count {
                continue;
            }
            run.sent += 1;
            run.next = now + INTERVAL;
            for (gateway, pong) in &run.gateways {
                self.last_id += 1;
                due.push((*gateway, self.last_id));
                let waiting = Waiting {
                    since: now,
                    pong: Pong {
                        number: run.sent,
                        ..pong.clone()
                    },
                    answers: run.answers.clone(),
                };
                self.waiting.insert(self.last_id, waiting);
            }
        }
        self.runs
            .retain(|run| run.sent < run.count && !run.answers.is_closed());
        due
    }

    pub(super) fn handle_pong(&mut self, id: u64, rtt: Duration) {
        if let Some(waiting) = self.waiting.remove(&id) {
            waiting.answer(Some(rtt));
        }
    }

    fn time_out(&mut self, now: Duration) {
        let late: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| now.saturating_sub(waiting.since) >= ENOUGH)
            .map(|(id, _)| *id)
            .collect();
        for waiting in late.iter().filter_map(|id| self.waiting.remove(id)) {
            waiting.answer(None);
        }
    }
}

impl Waiting {
    fn answer(mut self, rtt: Option<Duration>) {
        self.pong.rtt_ms = rtt.map(node::status::millis);
        // Whoever asked may have gone, or does not read.
        let _told = self.answers.try_send(self.pong);
    }
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(1_000_000 + millis)
    }

    #[test]
    fn every_question_is_answered_or_times_out_and_then_it_ends() {
        let (answers, mut told) = mpsc::channel(16);
        let gateway = SigningKey::from_seed(&[1; 32]).public();
        let mut pings = Pings::default();
        assert!(pings.start(vec![(gateway, Pong::default())], 2, answers));
        let first = pings.due(at(0));
        assert_eq!(first.len(), 1);
        assert!(pings.due(at(100)).is_empty(), "not so soon");
        pings.handle_pong(first[0].1, Duration::from_millis(7));
        pings.handle_pong(first[0].1, Duration::from_millis(9));
        assert_eq!(pings.due(at(200)).len(), 1);
        assert!(pings.due(at(2200)).is_empty());
        let pongs: Vec<(u32, Option<f64>)> = std::iter::from_fn(|| told.try_recv().ok())
            .map(|pong| (pong.number, pong.rtt_ms))
            .collect();
        assert_eq!(pongs, [(1, Some(7.0)), (2, None)]);
        assert_eq!(
            told.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
    }
}
