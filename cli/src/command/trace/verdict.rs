//! What becomes of a packet, in the words that are shown.

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Trace {
    pub(super) packet: String,
    pub(super) steps: Vec<Step>,
    pub(super) verdict: Verdict,
    /// False where it passes unless a rule drops it of which that is not known.
    pub(super) sure: bool,
    /// Why it is dropped, as a word.
    pub(super) reason: Option<Reason>,
    pub(super) because: String,
    pub(super) next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    pub(super) decision: Decision,
    pub(super) what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Decision {
    Destination,
    Source,
    Route,
    Gateway,
    Link,
    /// A rule that drops or changes packets.
    Filter,
    Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// On its way to its site.
    Passes,
    /// Of this site to this site, or to this machine itself.
    Local,
    /// Not for the mesh to carry.
    NotMesh,
    /// Another machine decides.
    Elsewhere,
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    NoPrefix,
    Source,
    Quarantined,
    SiteUnreachable,
    LinkDown,
    NoRoute,
    /// It would leave in clear, or claims to be what it is not.
    Guard,
    /// Another program's rule drops it.
    Filter,
    /// Another program's rule gives it another destination.
    Translated,
    GatewaySilent,
    TooBig,
}

impl Decision {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Decision::Destination => "destination",
            Decision::Source => "source",
            Decision::Route => "route",
            Decision::Gateway => "gateway",
            Decision::Link => "link",
            Decision::Filter => "filter",
            Decision::Size => "size",
        }
    }
}

impl Verdict {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Verdict::Passes => "PASSES",
            Verdict::Local => "LOCAL",
            Verdict::NotMesh => "NOT MESH",
            Verdict::Elsewhere => "ELSEWHERE",
            Verdict::Dropped => "DROPPED",
        }
    }
}

/// How it ends: whatever is known by then has been told.
pub(super) struct End {
    pub(super) verdict: Verdict,
    pub(super) reason: Option<Reason>,
    pub(super) because: String,
    pub(super) next: Option<String>,
}

pub(super) fn end(verdict: Verdict, because: impl Into<String>) -> End {
    End {
        verdict,
        reason: None,
        because: because.into(),
        next: None,
    }
}

pub(super) fn dropped(reason: Reason, because: impl Into<String>, next: impl Into<String>) -> End {
    End {
        verdict: Verdict::Dropped,
        reason: Some(reason),
        because: because.into(),
        next: Some(next.into()),
    }
}
