//! The record of one run: every sample, and what they come to.

use std::path::PathBuf;

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Measure, Sample, TCP};
use crate::statistics::{Summary, median};
use crate::subject::{Subject, WIREGUARD_GO};

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// Whether the wire between the gateways behaved as a card that does not segment.
    pub(crate) nic: bool,
    pub(crate) rounds: usize,
    pub(crate) subjects: Vec<Entrant>,
    /// Gb/s of the load beside the round trips; `None` if it was not measured.
    pub(crate) fixed_load: Option<f64>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<Failure>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entrant {
    pub(crate) subject: Subject,
    pub(crate) program: Option<PathBuf>,
    /// As the program itself tells it.
    pub(crate) version: Option<String>,
}

/// The first release of wireguard-go with segmentation offloads on both its TUN and its sockets.
const WIREGUARD_GO_WITH_OFFLOADS: u32 = 20_231_211;

impl Entrant {
    /// Whether this is a wireguard-go from before its offloads, which is no rival for speed.
    pub(crate) fn is_outdated(&self) -> bool {
        let release = self.version.as_deref().and_then(release_date);
        self.subject == WIREGUARD_GO
            && release.is_some_and(|date| date < WIREGUARD_GO_WITH_OFFLOADS)
    }
}

/// `wireguard-go v0.0.20250522` was released on 2025-05-22.
fn release_date(version: &str) -> Option<u32> {
    version.rsplit('.').next()?.trim().parse().ok()
}

/// Something that could not be measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) round: usize,
    pub(crate) subject: Subject,
    pub(crate) why: String,
}

impl Run {
    pub(crate) fn has(&self, subject: Subject) -> bool {
        self.subjects
            .iter()
            .any(|entrant| entrant.subject == subject)
    }

    /// Whether a subject was measured, and in a version worth comparing with.
    pub(crate) fn counts(&self, subject: Subject) -> bool {
        let mut entrants = self.subjects.iter();
        entrants.any(|entrant| entrant.subject == subject && !entrant.is_outdated())
    }

    /// Whether a subject carried the load beside which round trips were measured. One that did not
    /// has the round trips of another load.
    pub(crate) fn carried_load(&self, subject: Subject) -> bool {
        let reached = self.median(subject, Measure::LoadReached);
        reached
            .zip(self.fixed_load)
            .is_some_and(|(reached, load)| reached >= 0.95 * load)
    }

    pub(crate) fn summary(&self, subject: Subject, measure: Measure) -> Option<Summary> {
        let values: Vec<f64> = self
            .samples
            .iter()
            .filter(|sample| sample.subject == subject && sample.measure == measure)
            .map(|sample| sample.value)
            .collect();
        Summary::of(&values)
    }

    pub(crate) fn median(&self, subject: Subject, measure: Measure) -> Option<f64> {
        self.summary(subject, measure).map(|summary| summary.median)
    }

    /// CPU-seconds of the machine per gigabit: the median over the three kinds of transfer.
    pub(crate) fn machine_cpu(&self, subject: Subject) -> Option<f64> {
        let medians: Option<Vec<f64>> = TCP
            .iter()
            .map(|&tcp| self.median(subject, Measure::TcpMachineCpu(tcp)))
            .collect();
        median(&medians?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wireguard_go_from_before_its_offloads_is_outdated() {
        let entrant = |version: &str| Entrant {
            subject: WIREGUARD_GO,
            program: None,
            version: Some(version.to_owned()),
        };
        assert!(entrant("wireguard-go v0.0.20220316").is_outdated());
        assert!(!entrant("wireguard-go v0.0.20250522").is_outdated());
        assert!(!entrant("wireguard-go of my own").is_outdated());
    }
}
