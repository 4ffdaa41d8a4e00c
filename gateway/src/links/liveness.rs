//! Whether the other side lives and hears us: one-way hellos, judged in the interval that their
//! sender announced. Whatever is opened counts as heard.

use std::collections::VecDeque;
use std::time::Duration;

use proto::control::{Heard, Hello};

use super::dice::Dice;

/// Between hellos while data flows.
pub(crate) const BUSY: Duration = Duration::from_millis(100);
pub(crate) const IDLE: Duration = Duration::from_secs(1);
/// Between siblings, always.
pub(crate) const SIBLING: Duration = Duration::from_millis(50);
/// Data keeps a link busy for so long.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// What may come late before we ask for it.
pub(crate) const LATE: Duration = Duration::from_millis(200);
/// Hellos stay fast for so long after one side missed some, and after the interval has grown: the
/// first hellos with the longer interval may be lost.
const EAGER_FOR: Duration = Duration::from_secs(1);
/// The same after a session began or the link went down.
const UNSETTLED_FOR: Duration = Duration::from_secs(10);
/// An answer to being missed comes no faster than this.
const ANSWER_APART: Duration = Duration::from_millis(40);
/// Who has not heard us while we slept has this long to do so.
const SPARED: Duration = Duration::from_millis(500);
/// Hellos of ours that are remembered until they are heard.
const REMEMBERED: usize = 64;
const LONGEST: Duration = Duration::from_secs(2);

/// What hellos tell of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// No hello came yet from this boot.
    Unheard,
    /// Nothing came for too long.
    Silent,
    /// They do not hear us.
    NotHeard,
    /// Both hear each other.
    Alive,
}

/// What the sender of a hello decides elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Says {
    pub carries: bool,
    /// Whether the receiver has proven itself: until then we do not say that we hear it, since
    /// nothing it sends is taken.
    pub hears: bool,
}

pub(crate) struct Liveness {
    boot: u64,
    is_sibling: bool,
    /// Of the last hello sent.
    number: u64,
    announced: Announced,
    /// When the next hello goes; none before there is a session.
    next: Option<Duration>,
    last_sent: Option<Duration>,
    last_said: Option<Says>,
    last_life: Life,
    judged_at: Duration,
    data_at: Option<Duration>,
    eager_until: Duration,
    /// While a link begins or has just gone down; later than this a dead one costs little.
    unsettled_until: Duration,
    /// Until our next hellos have had time to be heard.
    slept_until: Duration,
    last_heard: Option<Duration>,
    remote: Option<Remote>,
    /// Our hellos, by number and time, of which the other side has not told yet.
    unheard: VecDeque<(u64, Duration)>,
}

/// The interval in our hellos, and since which number; the one before counts for a receiver that
/// has not heard of the new one.
struct Announced {
    interval: Duration,
    since: u64,
    before: Duration,
}

/// The last hello of the other side.
struct Remote {
    boot: u64,
    number: u64,
    interval: Duration,
    carries: bool,
    hears: Option<Heard>,
    /// How long ago we had sent the first hello that it does not tell of. It may hear other things
    /// by other paths; hellos go by the one that data goes by.
    unheard_for: Duration,
}

/// Silence in this interval that is too long.
pub(crate) fn limit(interval: Duration) -> Duration {
    if interval <= BUSY {
        interval * 10
    } else {
        interval * 3
    }
}

impl Liveness {
    pub(crate) fn new(boot: u64, is_sibling: bool) -> Liveness {
        let interval = if is_sibling { SIBLING } else { IDLE };
        Liveness {
            boot,
            is_sibling,
            number: 0,
            announced: Announced {
                interval,
                since: 0,
                before: interval,
            },
            next: None,
            last_sent: None,
            last_said: None,
            last_life: Life::Unheard,
            judged_at: Duration::ZERO,
            data_at: None,
            eager_until: Duration::ZERO,
            unsettled_until: Duration::ZERO,
            slept_until: Duration::ZERO,
            last_heard: None,
            remote: None,
            unheard: VecDeque::new(),
        }
    }

    /// A new session can be used: hellos begin. On a link that lives it is a new key, no more.
    pub(crate) fn handle_session(&mut self, now: Duration) {
        if self.next.is_none() || self.last_life != Life::Alive {
            self.next = Some(now);
            self.unsettled_until = now + UNSETTLED_FOR;
        }
    }

    /// Another boot speaks from now on.
    pub(crate) fn handle_boot(&mut self) {
        self.remote = None;
        self.last_life = Life::Unheard;
    }

    /// Anything was opened.
    pub(crate) fn handle_heard(&mut self, now: Duration) {
        if self.is_silent(now)
            && let Some(remote) = &mut self.remote
        {
            // What it heard before the silence says nothing of now.
            remote.hears = None;
            self.sooner(now);
        }
        self.last_heard = self.last_heard.max(Some(now));
    }

    /// Data went either way.
    pub(crate) fn handle_data(&mut self, now: Duration) {
        if !self.is_busy(now) {
            self.sooner(now);
        }
        self.data_at = Some(now);
    }

    /// A hello of the boot that counts. One that is not newer than the last says only that its
    /// sender lives.
    pub(crate) fn handle_hello(&mut self, hello: &Hello, now: Duration) {
        self.handle_heard(now);
        let newest = self.remote.as_ref().map(|remote| remote.number);
        if newest.is_some_and(|newest| hello.number <= newest) {
            return;
        }
        if newest.is_none() {
            self.sooner(now);
            self.stay_eager(now + EAGER_FOR);
        }
        let interval = Duration::from_millis(hello.interval.into());
        let hears = hello.heard.filter(|heard| heard.boot == self.boot);
        let heard = hears.map_or(0, |heard| heard.number);
        self.unheard.retain(|(number, _)| *number > heard);
        let unheard = self.unheard.front();
        self.remote = Some(Remote {
            boot: hello.boot,
            number: hello.number,
            interval: interval.clamp(SIBLING, LONGEST),
            carries: hello.carries,
            hears,
            unheard_for: unheard.map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at)),
        });
        let may_answer = self.last_life == Life::Alive || now < self.unsettled_until;
        if may_answer && self.is_missed() {
            self.stay_eager(now + EAGER_FOR);
            let apart = self.last_sent.map_or(now, |sent| sent + ANSWER_APART);
            self.sooner(apart.max(now));
        }
    }

    /// We slept, and what came meanwhile is still to be read: nobody is silent before it is, and
    /// nobody heard us.
    pub(crate) fn handle_slept(&mut self, now: Duration) {
        if let Some(remote) = &self.remote
            && self.last_life != Life::Silent
        {
            let spared = (now + LATE).saturating_sub(limit(remote.interval));
            self.last_heard = self.last_heard.max(Some(spared));
        }
        self.slept_until = now + SPARED;
        self.sooner(now);
    }

    /// We stop, and the other side has heard it.
    pub(crate) const fn handle_end(&mut self) {
        self.next = None;
    }

    /// The hello that has to go now.
    pub(crate) fn poll_hello(
        &mut self,
        says: Says,
        now: Duration,
        dice: &mut Dice,
    ) -> Option<Hello> {
        let next = self.next?;
        let life = self.life(now);
        if self.is_late(now) {
            self.stay_eager(now + EAGER_FOR);
        }
        let is_news = life != self.last_life || self.last_said != Some(says);
        if life != self.last_life && matches!(life, Life::Silent | Life::NotHeard) {
            self.unsettled_until = now + UNSETTLED_FOR;
        }
        self.last_life = life;
        self.judged_at = now;
        let is_owed = self
            .last_sent
            .is_none_or(|sent| now >= sent + self.pace(now));
        if !is_news && !is_owed && now < next {
            return None;
        }
        self.last_said = Some(says);
        self.announce(now);
        self.last_sent = Some(now);
        self.next = Some(now + dice.jitter(self.pace(now), 75));
        Some(Hello {
            boot: self.boot,
            number: self.number,
            interval: self.announced.interval.as_millis() as u16,
            heard: self.heard(now).filter(|_| says.hears),
            carries: says.carries,
        })
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let next = self.next?;
        let (Some(remote), Some(heard)) = (&self.remote, self.last_heard) else {
            return Some(next);
        };
        let silent = heard + limit(remote.interval);
        let late = heard + remote.interval + LATE;
        let is_told = self.last_life == Life::Silent;
        let is_eager = late < self.eager_until;
        let mut timeout = next;
        if self.slept_until > self.judged_at {
            timeout = timeout.min(self.slept_until);
        }
        if !is_told {
            timeout = timeout.min(silent);
        }
        if !is_told && !is_eager {
            timeout = timeout.min(late);
        }
        Some(timeout)
    }

    pub(crate) fn life(&self, now: Duration) -> Life {
        if self.remote.is_none() {
            Life::Unheard
        } else if self.is_silent(now) {
            Life::Silent
        } else if self.hears_us(now) {
            Life::Alive
        } else {
            Life::NotHeard
        }
    }

    pub(crate) fn is_busy(&self, now: Duration) -> bool {
        self.data_at.is_some_and(|at| now < at + BUSY_FOR)
    }

    /// The number of our last hello.
    pub(crate) const fn said(&self) -> u64 {
        self.number
    }

    /// The interval that our hellos promise.
    pub(crate) const fn announced(&self) -> Duration {
        self.announced.interval
    }

    /// Hellos that should have come since the last thing that came.
    pub(crate) fn missing(&self, now: Duration) -> u64 {
        match (&self.remote, self.last_heard) {
            (Some(remote), Some(heard)) => {
                let silence = now.saturating_sub(heard).as_millis();
                (silence / remote.interval.as_millis().max(1)) as u64
            }
            (None, _) | (_, None) => 0,
        }
    }

    /// The boot that counts.
    pub(crate) fn remote_boot(&self) -> Option<u64> {
        self.remote.as_ref().map(|remote| remote.boot)
    }

    /// Whether the other side said last that it sends us its site's packets.
    pub(crate) fn remote_carries(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.carries)
    }

    fn is_silent(&self, now: Duration) -> bool {
        match (&self.remote, self.last_heard) {
            (Some(remote), Some(heard)) => now >= heard + limit(remote.interval),
            (None, _) | (_, None) => true,
        }
    }

    /// Something should have come.
    fn is_late(&self, now: Duration) -> bool {
        match (&self.remote, self.last_heard) {
            (Some(remote), Some(heard)) => {
                now >= heard + remote.interval + LATE && now < heard + limit(remote.interval)
            }
            (None, _) | (_, None) => false,
        }
    }

    fn hears_us(&self, now: Duration) -> bool {
        self.remote_heard().is_some_and(|heard| {
            let current = limit(self.announced.interval);
            let knows = heard.number >= self.announced.since;
            let allowed = if self.last_life == Life::NotHeard {
                // A longer interval allows more, and is no sign of life.
                current.min(limit(BUSY))
            } else if knows {
                current
            } else {
                current.max(limit(self.announced.before))
            };
            let is_heard = Duration::from_millis(heard.age.into()) < allowed
                && self.unheard_for() < allowed * 2;
            is_heard || now < self.slept_until
        })
    }

    /// They did not hear what they should have.
    fn is_missed(&self) -> bool {
        let expected = self.announced.interval + LATE;
        let is_late = |heard: Heard| Duration::from_millis(heard.age.into()) > expected;
        self.remote_heard().is_none_or(is_late) || self.unheard_for() > expected * 2
    }

    fn unheard_for(&self) -> Duration {
        let remote = self.remote.as_ref();
        remote.map_or(Duration::ZERO, |remote| remote.unheard_for)
    }

    fn remote_heard(&self) -> Option<Heard> {
        self.remote.as_ref().and_then(|remote| remote.hears)
    }

    fn heard(&self, now: Duration) -> Option<Heard> {
        let remote = self.remote.as_ref()?;
        let age = now.saturating_sub(self.last_heard?).as_millis();
        Some(Heard {
            boot: remote.boot,
            number: remote.number,
            age: u32::try_from(age).unwrap_or(u32::MAX),
        })
    }

    fn announce(&mut self, now: Duration) {
        self.number += 1;
        if self.unheard.len() < REMEMBERED {
            self.unheard.push_back((self.number, now));
        }
        let interval = self.interval(now);
        if interval != self.announced.interval {
            if interval > self.announced.interval {
                self.stay_eager(now + EAGER_FOR);
            }
            self.announced = Announced {
                interval,
                since: self.number,
                before: self.announced.interval,
            };
        }
    }

    /// The time until the next hello that we promise.
    fn interval(&self, now: Duration) -> Duration {
        if self.is_sibling {
            SIBLING
        } else if self.is_busy(now) {
            BUSY
        } else {
            IDLE
        }
    }

    /// The time until the next hello that we keep; shorter than the promise where hellos are missed.
    fn pace(&self, now: Duration) -> Duration {
        if now < self.eager_until.max(self.unsettled_until) {
            self.interval(now).min(BUSY)
        } else {
            self.interval(now)
        }
    }

    fn stay_eager(&mut self, until: Duration) {
        self.eager_until = self.eager_until.max(until);
    }

    fn sooner(&mut self, at: Duration) {
        self.next = self.next.map(|next| next.min(at));
    }
}

#[cfg(test)]
mod tests;
