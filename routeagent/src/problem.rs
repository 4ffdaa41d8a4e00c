//! What a person should know and do about the kernel of this node.

/// Stays as long as it is so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub what: String,
    pub next: String,
    /// Traffic is stopped by it now, all or some.
    pub stops: bool,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem {
            what: what.into(),
            next: next.into(),
            stops: false,
        }
    }

    pub(crate) fn that_stops_traffic(self) -> Problem {
        Problem {
            stops: true,
            ..self
        }
    }
}
