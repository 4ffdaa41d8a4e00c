//! One thing that was looked at: what was seen, and what to do.

use serde::Serialize;

/// In the order in which people are shown them: what needs them comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Passed,
    /// Could not be looked at; `saw` says why.
    Skipped,
    Warning,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) result: Outcome,
    pub(super) saw: String,
    /// Empty where nothing is to be done.
    pub(super) next: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    Kernel,
    Host,
    Network,
    Firewall,
    Broker,
    Mesh,
}

/// Checks of one group.
pub(super) struct Sheet {
    group: Group,
    checks: Vec<Check>,
}

impl Sheet {
    pub(super) fn new(group: Group) -> Sheet {
        Sheet {
            group,
            checks: Vec::new(),
        }
    }

    pub(super) fn done(self) -> Vec<Check> {
        self.checks
    }

    pub(super) fn passed(&mut self, name: &'static str, saw: impl Into<String>) {
        self.note(name, Outcome::Passed, saw.into(), String::new());
    }

    /// `why` it could not be looked at, and how it can.
    pub(super) fn skipped(&mut self, name: &'static str, why: impl Into<String>) {
        self.note(name, Outcome::Skipped, why.into(), String::new());
    }

    pub(super) fn warning(
        &mut self,
        name: &'static str,
        saw: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.note(name, Outcome::Warning, saw.into(), next.into());
    }

    pub(super) fn failed(
        &mut self,
        name: &'static str,
        saw: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.note(name, Outcome::Failed, saw.into(), next.into());
    }

    fn note(&mut self, name: &'static str, result: Outcome, saw: String, next: String) {
        self.checks.push(Check {
            name,
            group: self.group,
            result,
            saw,
            next,
        });
    }
}

impl Outcome {
    pub(super) fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Skipped => "skipped",
            Outcome::Warning => "WARNING",
            Outcome::Failed => "FAILED",
        }
    }
}
