//! The highest offered rate of datagrams that arrives with under 1 % loss.

use anyhow::Result;

use super::Visit;
use crate::iperf::{self, Traffic};
use crate::topology::FAR_WORKER;

const LOSS_LIMIT: f64 = 0.01;
/// After the blast; each halves what is unknown.
const PROBES: u32 = 4;
const SECONDS: u32 = 1;
/// A sender that reaches less than this part of what it was asked for is itself the limit.
const SENDER_LIMIT: f64 = 0.95;

/// The outcome for one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Capacity {
    /// Offered datagrams per second.
    pub(crate) rate: f64,
    /// Seconds of the gateway processes per delivered datagram at that rate.
    pub(crate) gateway_cpu: f64,
}

/// One rate tried.
#[derive(Clone, Copy, Debug)]
struct Probe {
    offered: f64,
    delivered: f64,
    loss: f64,
    gateway_cpu: f64,
}

pub(crate) fn capacity(visit: &Visit<'_>, size: u16) -> Result<Option<Capacity>> {
    let mut search = Search::default();
    let mut wanted = None;
    for _ in 0..=PROBES {
        let probe = probe(visit, size, wanted)?;
        search.record(&probe, wanted);
        let Some(next) = search.next() else {
            break;
        };
        wanted = Some(next);
    }
    Ok(search.best)
}

fn probe(visit: &Visit<'_>, size: u16, rate: Option<f64>) -> Result<Probe> {
    let before = visit.meter.read()?;
    let traffic = Traffic::Udp { size, rate };
    let transfer = iperf::run(&visit.topology.near.worker, FAR_WORKER, traffic, SECONDS)?;
    let used = visit.meter.since(before)?;
    Ok(Probe {
        offered: transfer.offered_packets_per_second(),
        delivered: transfer.delivered_packets() / transfer.seconds,
        loss: transfer.loss(),
        gateway_cpu: used.gateways.as_secs_f64() / transfer.delivered_packets().max(1.0),
    })
}

/// Bisection between a rate that passed and one that did not.
#[derive(Debug, Default)]
struct Search {
    best: Option<Capacity>,
    /// The lowest rate known to lose too much.
    too_fast: Option<f64>,
    /// What arrived of the blast: the first guess.
    blast_delivered: Option<f64>,
    finished: bool,
}

impl Search {
    fn record(&mut self, probe: &Probe, wanted: Option<f64>) {
        if wanted.is_none() {
            self.blast_delivered = Some(probe.delivered);
        }
        if probe.loss < LOSS_LIMIT {
            if self.best.is_none_or(|best| probe.offered > best.rate) {
                self.best = Some(Capacity {
                    rate: probe.offered,
                    gateway_cpu: probe.gateway_cpu,
                });
            }
            // There is nothing faster than the blast, or than a sender that cannot keep up.
            self.finished |= wanted.is_none_or(|rate| probe.offered < SENDER_LIMIT * rate);
        } else {
            let limit = wanted.unwrap_or(probe.offered).min(probe.offered);
            self.too_fast = Some(self.too_fast.map_or(limit, |rate| rate.min(limit)));
        }
    }

    fn next(&self) -> Option<f64> {
        if self.finished {
            return None;
        }
        let too_fast = self.too_fast?;
        let next = match (self.best, self.blast_delivered) {
            // What arrives of a blast is near what a steady rate can be, on either side of it.
            (Some(best), _) => f64::midpoint(best.rate, too_fast).min(1.5 * best.rate),
            (None, Some(delivered)) if delivered < 0.95 * too_fast && delivered > 0.0 => delivered,
            (None, _) => 0.7 * too_fast,
        };
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that loses everything above `capacity`; the sender reaches `sender`.
    fn simulate(capacity: f64, sender: f64) -> Option<Capacity> {
        let mut search = Search::default();
        let mut wanted: Option<f64> = None;
        for _ in 0..=PROBES {
            let offered = wanted.unwrap_or(sender).min(sender);
            let delivered = offered.min(capacity);
            let loss = 1.0 - delivered / offered;
            let probe = Probe {
                offered,
                delivered,
                loss,
                gateway_cpu: 1e-6,
            };
            search.record(&probe, wanted);
            let Some(next) = search.next() else {
                break;
            };
            wanted = Some(next);
        }
        search.best
    }

    #[test]
    fn a_path_faster_than_the_sender_is_as_fast_as_the_sender() {
        assert_eq!(simulate(1e6, 2e5).map(|best| best.rate), Some(2e5));
    }

    #[test]
    fn a_slower_path_is_found_within_a_tenth() {
        for capacity in [30e3, 60e3, 90e3, 120e3, 190e3] {
            let found = simulate(capacity, 2e5).unwrap().rate;
            assert!(found <= capacity * 1.01, "{found} of {capacity}");
            assert!(found >= capacity * 0.9, "{found} of {capacity}");
        }
    }

    #[test]
    fn a_path_that_collapses_under_the_blast_is_still_found() {
        let mut search = Search::default();
        let lost = |offered: f64| Probe {
            offered,
            delivered: 0.0,
            loss: 1.0,
            gateway_cpu: 0.0,
        };
        search.record(&lost(100.0), None);
        let first = search.next().unwrap();
        assert!(first > 50.0 && first < 100.0, "{first}");
        search.record(&lost(first), Some(first));
        assert!(search.next().unwrap() < first);
        assert_eq!(search.best, None);
    }
}
