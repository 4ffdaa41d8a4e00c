//! The record of one run: every sample, and what they come to.

use std::path::PathBuf;

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Measure, Sample, TCP};
use crate::statistics::{Summary, median};
use crate::subject::Subject;

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
