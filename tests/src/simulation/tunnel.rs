//! A model of one WireGuard tunnel: who may begin, what is refused, which session is used. There is
//! no cipher in it; whoever does not have the secret of a session cannot name it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use proto::key::WireguardKey;

use crate::dice::Dice;

const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// The side that answered begins only when the other has let this much pass.
const ANSWERER_REKEY_AFTER: Duration = Duration::from_secs(165);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Something was sent, and nothing came back for this long.
const NEW_HANDSHAKE_AFTER: Duration = Duration::from_secs(15);
const SESSIONS: usize = 4;
/// Around an inner packet, with IP and UDP.
const OVERHEAD: usize = 32 + 28;

/// What is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire<Inner> {
    Initiation(Initiation),
    Answer(Answer),
    Data(Data<Inner>),
    /// Asks a broker where it comes from.
    Reflect,
    Reflected(SocketAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiation {
    pub from: WireguardKey,
    pub to: WireguardKey,
    stamp: u64,
    secret: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub from: WireguardKey,
    pub to: WireguardKey,
    initiation: u64,
    secret: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data<Inner> {
    session: SessionId,
    by_initiator: bool,
    counter: u64,
    /// `None` is a keepalive.
    pub inner: Option<Inner>,
}

type SessionId = (u64, u64);

pub struct Tunnel {
    own: WireguardKey,
    peer: WireguardKey,
    pub endpoint: Option<SocketAddr>,
    newest_stamp: u64,
    /// The last two initiations: older ones match no answer.
    waiting: VecDeque<u64>,
    /// The newest first.
    sessions: VecDeque<Session>,
    initiated: Option<Duration>,
    sent_unanswered: Option<Duration>,
    received: Duration,
}

struct Session {
    id: SessionId,
    is_initiator: bool,
    since: Duration,
    /// The other side has shown that it has it.
    is_confirmed: bool,
    sent: u64,
    seen: Window,
}

/// The last 1024 counters.
struct Window {
    newest: u64,
    seen: VecDeque<bool>,
}

/// What opened a datagram.
pub struct Opened<Inner> {
    pub inner: Option<Inner>,
    /// The first under a session that the other side had not confirmed.
    pub is_first: bool,
}

impl Tunnel {
    pub fn new(own: WireguardKey, peer: WireguardKey) -> Tunnel {
        Tunnel {
            own,
            peer,
            endpoint: None,
            newest_stamp: 0,
            waiting: VecDeque::new(),
            sessions: VecDeque::new(),
            initiated: None,
            sent_unanswered: None,
            received: Duration::ZERO,
        }
    }

    pub fn peer(&self) -> WireguardKey {
        self.peer
    }

    /// `stamp` must be larger than the last one by this node's wall clock.
    pub fn initiate(&mut self, stamp: u64, now: Duration, dice: &mut Dice) -> Initiation {
        let secret = dice.below(u64::MAX);
        self.waiting.push_front(secret);
        self.waiting.truncate(2);
        self.initiated = Some(now);
        Initiation {
            from: self.own,
            to: self.peer,
            stamp,
            secret,
        }
    }

    /// Answered only if it is newer than all before.
    pub fn handle_initiation(
        &mut self,
        initiation: &Initiation,
        now: Duration,
        dice: &mut Dice,
    ) -> Option<Answer> {
        let is_ours = initiation.to == self.own && initiation.from == self.peer;
        if !is_ours || initiation.stamp <= self.newest_stamp {
            return None;
        }
        self.newest_stamp = initiation.stamp;
        let answer = Answer {
            from: self.own,
            to: self.peer,
            initiation: initiation.secret,
            secret: dice.below(u64::MAX),
        };
        self.add_session((initiation.secret, answer.secret), false, now);
        Some(answer)
    }

    /// Whether it made a session.
    pub fn handle_answer(&mut self, answer: &Answer, now: Duration) -> bool {
        let at = self
            .waiting
            .iter()
            .position(|own| *own == answer.initiation);
        let Some(at) = at.filter(|_| answer.from == self.peer && answer.to == self.own) else {
            return false;
        };
        self.waiting.remove(at);
        self.initiated = None;
        self.received = now;
        self.sent_unanswered = None;
        self.add_session((answer.initiation, answer.secret), true, now);
        true
    }

    fn add_session(&mut self, id: SessionId, is_initiator: bool, now: Duration) {
        self.sessions.push_front(Session {
            id,
            is_initiator,
            since: now,
            is_confirmed: is_initiator,
            sent: 0,
            seen: Window::new(),
        });
        self.spare_one_in_use();
    }

    /// What was never proven must not push out a session in use.
    fn spare_one_in_use(&mut self) {
        while self.sessions.len() > SESSIONS {
            let in_use = self
                .sessions
                .iter()
                .position(|session| session.is_confirmed);
            let last = self.sessions.len() - 1;
            let goes = if in_use == Some(last) { last - 1 } else { last };
            self.sessions.remove(goes);
        }
    }

    pub fn has_session(&self, now: Duration) -> bool {
        self.sessions
            .iter()
            .any(|session| session.is_confirmed && now < session.since + REJECT_AFTER)
    }

    /// `None` without a session.
    pub fn seal<Inner>(&mut self, inner: Option<Inner>, now: Duration) -> Option<Data<Inner>> {
        let mut sessions = self.sessions.iter_mut();
        let session =
            sessions.find(|session| session.is_confirmed && now < session.since + REJECT_AFTER)?;
        session.sent += 1;
        self.sent_unanswered.get_or_insert(now);
        Some(Data {
            session: session.id,
            by_initiator: session.is_initiator,
            counter: session.sent,
            inner,
        })
    }

    pub fn holds<Inner>(&self, data: &Data<Inner>) -> bool {
        self.sessions
            .iter()
            .any(|session| session.id == data.session)
    }

    pub fn open<Inner>(&mut self, data: Data<Inner>, now: Duration) -> Option<Opened<Inner>> {
        let mut sessions = self.sessions.iter_mut();
        let session = sessions.find(|session| session.id == data.session)?;
        let may_open = data.by_initiator != session.is_initiator
            && now < session.since + REJECT_AFTER
            && session.seen.take(data.counter);
        if !may_open {
            return None;
        }
        let is_first = !session.is_confirmed;
        session.is_confirmed = true;
        self.received = now;
        self.sent_unanswered = None;
        Some(Opened {
            inner: data.inner,
            is_first,
        })
    }

    /// Whether its own timers want an initiation now, towards the endpoint.
    pub fn wants_handshake(&mut self, now: Duration) -> bool {
        self.sessions
            .retain(|session| now < session.since + 3 * REJECT_AFTER);
        if self.initiated.is_some_and(|at| now < at + REKEY_TIMEOUT) {
            return false;
        }
        let in_use = self.sessions.iter().find(|session| session.is_confirmed);
        let Some(session) = in_use.filter(|session| now < session.since + REJECT_AFTER) else {
            return false;
        };
        let age = now.saturating_sub(session.since);
        let is_old = age >= REKEY_AFTER && session.is_initiator || age >= ANSWERER_REKEY_AFTER;
        let is_deaf = self
            .sent_unanswered
            .is_some_and(|at| now >= at + NEW_HANDSHAKE_AFTER);
        is_old || is_deaf
    }
}

impl Window {
    const SIZE: usize = 1024;

    fn new() -> Window {
        Window {
            newest: 0,
            seen: VecDeque::new(),
        }
    }

    /// True the first time.
    fn take(&mut self, counter: u64) -> bool {
        while self.newest < counter {
            let step = counter - self.newest;
            if step > Self::SIZE as u64 {
                self.newest = counter - Self::SIZE as u64;
                self.seen.clear();
            }
            self.newest += 1;
            self.seen.push_front(false);
            self.seen.truncate(Self::SIZE);
        }
        let back = usize::try_from(self.newest - counter).unwrap_or(usize::MAX);
        match self.seen.get_mut(back) {
            Some(seen) => !std::mem::replace(seen, true),
            None => false,
        }
    }
}

/// The datagram around an inner packet; padded to 16 bytes, but not above what the link carries.
pub fn outer_size(inner: usize, mtu: usize) -> usize {
    OVERHEAD + inner.next_multiple_of(16).min(mtu.max(inner))
}

/// A handshake datagram with its headers.
pub const HANDSHAKE_SIZE: usize = 148 + 28;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Tunnel, Tunnel) {
        let [one, two] = [[9; 32], [8; 32]].map(|bytes| WireguardKey::new(bytes).unwrap());
        (Tunnel::new(one, two), Tunnel::new(two, one))
    }

    fn connect(one: &mut Tunnel, two: &mut Tunnel, stamp: u64, now: Duration) {
        let dice = &mut Dice::of(stamp);
        let initiation = one.initiate(stamp, now, dice);
        let answer = two.handle_initiation(&initiation, now, dice).unwrap();
        assert!(one.handle_answer(&answer, now));
        let first = one.seal::<u8>(None, now).unwrap();
        assert!(two.open(first, now).unwrap().is_first);
    }

    #[test]
    fn an_initiation_is_answered_once_and_never_after_a_newer_one() {
        let (mut one, mut two) = pair();
        let dice = &mut Dice::of(1);
        let old = one.initiate(1, Duration::ZERO, dice);
        let new = one.initiate(2, Duration::ZERO, dice);
        assert!(two.handle_initiation(&new, Duration::ZERO, dice).is_some());
        assert!(two.handle_initiation(&new, Duration::ZERO, dice).is_none());
        assert!(two.handle_initiation(&old, Duration::ZERO, dice).is_none());
    }

    #[test]
    fn who_answers_sends_nothing_before_the_other_has_shown_the_session() {
        let (mut one, mut two) = pair();
        let dice = &mut Dice::of(1);
        let initiation = one.initiate(1, Duration::ZERO, dice);
        two.handle_initiation(&initiation, Duration::ZERO, dice)
            .unwrap();
        assert!(two.seal::<u8>(None, Duration::ZERO).is_none());
    }

    #[test]
    fn a_datagram_opens_once_at_the_other_end_only() {
        let (mut one, mut two) = pair();
        connect(&mut one, &mut two, 1, Duration::ZERO);
        let data = one.seal(Some(7), Duration::ZERO).unwrap();
        assert!(one.open(data.clone(), Duration::ZERO).is_none());
        assert_eq!(
            two.open(data.clone(), Duration::ZERO).unwrap().inner,
            Some(7)
        );
        assert!(two.open(data, Duration::ZERO).is_none());
    }

    #[test]
    fn a_session_ends_after_three_minutes_and_is_renewed_after_two() {
        let (mut one, mut two) = pair();
        connect(&mut one, &mut two, 1, Duration::ZERO);
        let late = one.seal(Some(7), Duration::ZERO).unwrap();
        assert!(!one.wants_handshake(Duration::from_secs(1)));
        assert!(one.wants_handshake(Duration::from_secs(120)));
        assert!(!two.wants_handshake(Duration::from_secs(120)));
        assert!(two.wants_handshake(Duration::from_secs(165)));
        assert!(two.open(late, Duration::from_secs(180)).is_none());
        assert!(one.seal::<u8>(None, Duration::from_secs(180)).is_none());
    }

    #[test]
    fn counters_far_back_are_refused() {
        let mut window = Window::new();
        assert!(window.take(5000) && !window.take(5000));
        assert!(window.take(4000) && !window.take(3000));
        assert!(window.take(5001) && !window.take(4000));
    }
}
