//! The end in good order: goodbye is said, and what still arrives is delivered for a moment.

use std::time::Duration;

use node::local::notify;

use super::Daemon;
use crate::io::boottime;

/// Whatever happens.
const AT_LAST: Duration = Duration::from_secs(3);
/// Brokers are told as well; they need not be there.
const BROKERS: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Stopping {
    at_last: Option<Duration>,
    /// The other gateways have heard it.
    over: Option<Duration>,
    /// When the agents of this site have, at the latest.
    agents: Option<Duration>,
}

impl Stopping {
    pub(super) fn has_begun(&self) -> bool {
        self.at_last.is_some()
    }

    pub(super) fn begin(&mut self, now: Duration) {
        self.at_last = Some(now + AT_LAST);
    }

    /// All have heard the goodbye, or do not answer, and what was under way to us has arrived.
    pub(super) fn handle_left(&mut self, now: Duration) {
        self.over.get_or_insert(now);
    }

    /// What agents send before they have gone elsewhere is still forwarded.
    pub(super) const fn handle_agents(&mut self, leave_at: Option<Duration>) {
        self.agents = leave_at;
    }

    pub(super) fn due(&self) -> Option<Duration> {
        let over = self
            .over
            .map(|over| self.agents.map_or(over, |at| at.max(over)));
        over.into_iter().chain(self.at_last).min()
    }

    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.due().is_some_and(|at| now >= at)
    }
}

impl Daemon {
    /// False if it was asked for before.
    pub(super) fn begin_stop(&mut self) -> bool {
        if self.stopping.has_begun() {
            return false;
        }
        tracing::info!("stopping");
        notify::stopping();
        let now = boottime();
        self.stopping.begin(now);
        // First: packets of agents come as long as they do not know.
        self.hellos.handle_stop(now);
        self.links.handle_stop(now);
        true
    }

    pub(super) async fn finish(self) {
        self.hellos.stop();
        self.plane.stop();
        // Awaited, since its end removes the socket's name.
        self.served.abort();
        let _aborted = self.served.await;
        self.routes.stop();
        // They hear it from the connection's end otherwise.
        let _told = tokio::time::timeout(BROKERS, self.node.stop()).await;
        tracing::info!("stopped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_all_were_told_and_at_last_anyway() {
        let at = Duration::from_millis;
        let mut stopping = Stopping::default();
        assert!(!stopping.is_over(at(1_000_000)));
        stopping.begin(at(10_000));
        assert!(!stopping.is_over(at(12_000)));
        stopping.handle_left(at(12_000));
        assert!(stopping.is_over(at(12_000)));
        stopping.handle_agents(Some(at(12_200)));
        assert!(!stopping.is_over(at(12_199)) && stopping.is_over(at(12_200)));
        stopping.handle_agents(Some(at(20_000)));
        assert!(stopping.is_over(at(13_000)));
        let mut deaf = Stopping::default();
        deaf.begin(at(10_000));
        assert!(deaf.is_over(at(13_000)));
    }
}
