//! What the other side says of two machines with our key: it takes nothing from either, and only it
//! can know.

use std::time::Duration;

/// Told with each hello, so that several in a row were lost when it is over; and two that fight for
/// one session have it in turn for some seconds each.
const HOLDS: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(crate) struct ShutOut {
    until: Option<Duration>,
}

impl ShutOut {
    /// Whether it is news.
    pub(crate) fn handle_told(&mut self, now: Duration) -> bool {
        let is_news = !self.is_so(now);
        self.until = Some(now + HOLDS);
        is_news
    }

    pub(crate) fn is_so(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(crate) const fn poll_timeout(&self) -> Option<Duration> {
        self.until
    }
}
