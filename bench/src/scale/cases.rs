//! How many peers and allowed-ips there are beside the busy peer's own.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    /// The busy one included.
    pub(super) peers: u16,
    /// Of all peers together, the busy peer's network not counted.
    pub(super) allowed_ips: u16,
    /// Whether the idle peers have sessions.
    pub(super) sessions: bool,
}

pub(super) const ONE: Case = Case::new(1, 1);
/// The most of both.
pub(super) const MOST: Case = Case::new(1000, 10_000);
/// What one idle peer costs is judged by this against [`ONE`].
pub(super) const THOUSAND: Case = Case::new(1000, 1000);
pub(super) const THOUSAND_SESSIONS: Case = Case {
    sessions: true,
    ..THOUSAND
};

pub(super) fn cases() -> Vec<Case> {
    let hundred = Case::new(100, 100);
    let prefixes = Case::new(1, 10_000);
    vec![ONE, hundred, THOUSAND, prefixes, MOST, THOUSAND_SESSIONS]
}

impl Case {
    const fn new(peers: u16, allowed_ips: u16) -> Case {
        Case {
            peers,
            allowed_ips,
            sessions: false,
        }
    }

    pub(super) fn name(self) -> String {
        let sessions = if self.sessions {
            ", all with sessions"
        } else {
            ""
        };
        format!(
            "{} peers, {} allowed-ips{sessions}",
            self.peers, self.allowed_ips
        )
    }

    /// The number of the peer that has the given allowed-ip; they are dealt out in turn.
    pub(super) fn owner(self, allowed_ip: u16) -> u16 {
        allowed_ip % self.peers
    }
}
