//! One direction between two hosts: what it does to a datagram.

use std::time::Duration;

use crate::dice::Dice;

#[derive(Clone, Debug)]
pub struct Line {
    pub latency: Duration,
    pub jitter: Duration,
    pub loss: Loss,
    /// Of a thousand datagrams: how many come up to 30 ms late, how many come twice.
    pub late: u32,
    pub twice: u32,
    /// The largest datagram with its IP header; what is larger vanishes.
    pub mtu: usize,
    /// Bytes a second.
    pub rate: Option<u64>,
    pub is_cut: bool,
    free_at: Duration,
    burst: Burst,
}

/// Of a thousand datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Independent(u32),
    /// Gilbert and Elliott's, by time: so long all is well, so long nothing passes, on average.
    Bursts {
        well: Duration,
        ill: Duration,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Burst {
    is_ill: bool,
    until: Duration,
}

/// The queue before a line of limited rate; what would wait longer is dropped.
const QUEUE: Duration = Duration::from_millis(200);

impl Line {
    pub fn new(latency: Duration) -> Line {
        Line {
            latency,
            jitter: Duration::ZERO,
            loss: Loss::Independent(0),
            late: 0,
            twice: 0,
            mtu: 1500,
            rate: None,
            is_cut: false,
            free_at: Duration::ZERO,
            burst: Burst::default(),
        }
    }

    /// When a datagram sent now arrives: never, once, or twice.
    pub fn carry(&mut self, size: usize, now: Duration, dice: &mut Dice) -> Vec<Duration> {
        if self.is_cut || size > self.mtu || self.loses(now, dice) {
            return Vec::new();
        }
        let Some(sent) = self.queue(size, now) else {
            return Vec::new();
        };
        let copies = if dice.chance(self.twice) { 2 } else { 1 };
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let mut at = sent + self.latency + dice.between(Duration::ZERO, self.jitter);
            if dice.chance(self.late) {
                at += dice.between(Duration::ZERO, Duration::from_millis(30));
            }
            arrivals.push(at);
        }
        arrivals
    }

    fn loses(&mut self, now: Duration, dice: &mut Dice) -> bool {
        match self.loss {
            Loss::Independent(per_mille) => dice.chance(per_mille),
            Loss::Bursts { well, ill } => {
                while self.burst.until <= now {
                    self.burst.is_ill = !self.burst.is_ill;
                    let mean = if self.burst.is_ill { ill } else { well };
                    self.burst.until =
                        self.burst.until.max(now.saturating_sub(well + ill)) + dice.lifetime(mean);
                }
                self.burst.is_ill
            }
        }
    }

    fn queue(&mut self, size: usize, now: Duration) -> Option<Duration> {
        let Some(rate) = self.rate else {
            return Some(now);
        };
        let begins = self.free_at.max(now);
        if begins > now + QUEUE {
            return None;
        }
        let micros = size as u64 * 1_000_000 / rate.max(1);
        self.free_at = begins + Duration::from_micros(micros);
        Some(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(line: &mut Line, size: usize) -> usize {
        let mut dice = Dice::of(7);
        (0..10_000_u64)
            .map(|at| {
                line.carry(size, Duration::from_millis(at * 10), &mut dice)
                    .len()
            })
            .sum()
    }

    #[test]
    fn what_is_larger_than_the_mtu_vanishes() {
        let mut line = Line::new(Duration::ZERO);
        assert_eq!(passed(&mut line, 1500), 10_000);
        assert_eq!(passed(&mut line, 1501), 0);
    }

    #[test]
    fn losses_and_copies_are_as_many_as_asked_for() {
        let mut line = Line::new(Duration::ZERO);
        line.loss = Loss::Independent(200);
        assert!((7_800..8_200).contains(&passed(&mut line, 100)));
        line.loss = Loss::Bursts {
            well: Duration::from_millis(400),
            ill: Duration::from_millis(100),
        };
        assert!((7_500..8_500).contains(&passed(&mut line, 100)));
        line.loss = Loss::Independent(0);
        line.twice = 100;
        assert!((10_800..11_200).contains(&passed(&mut line, 100)));
    }

    #[test]
    fn a_line_of_limited_rate_delays_and_then_drops() {
        let mut line = Line::new(Duration::ZERO);
        line.rate = Some(10_000);
        let mut dice = Dice::of(1);
        let arrivals: Vec<Duration> = (0..10)
            .flat_map(|_| line.carry(1000, Duration::ZERO, &mut dice))
            .collect();
        assert_eq!(arrivals.len(), 3);
        assert_eq!(arrivals[2], Duration::from_millis(300));
    }
}
