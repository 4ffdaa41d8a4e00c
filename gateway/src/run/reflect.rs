//! Which outer address brokers see: asked from the tunnel's own port, so that the answer is the one
//! that other gateways can use.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use node::follow::ReflectorSession;
use proto::reflect::{self, Question};

/// A NAT forgets in 30 s and more.
const INTERVAL: Duration = Duration::from_secs(20);
/// An unanswered question is asked again so soon, at first.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 3;
/// Later answers are of another time.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Reflection {
    session: Option<ReflectorSession>,
    asked: BTreeMap<u64, Duration>,
    unanswered: u32,
    next: Duration,
    seen_v4: Option<SocketAddr>,
    seen_v6: Option<SocketAddr>,
}

impl Reflection {
    /// What was seen last stays while no broker can be asked.
    pub(super) fn handle_session(&mut self, session: Option<ReflectorSession>, now: Duration) {
        if session == self.session {
            return;
        }
        self.session = session;
        self.ask_anew(now);
    }

    /// The host has other addresses, or other routes.
    pub(super) fn handle_addresses(&mut self, now: Duration) {
        self.ask_anew(now);
    }

    fn ask_anew(&mut self, now: Duration) {
        self.asked.clear();
        (self.unanswered, self.next) = (0, now);
    }

    /// What to send where; `nonces` gives numbers that nobody can guess.
    pub(super) fn due(
        &mut self,
        now: Duration,
        mut nonces: impl FnMut() -> u64,
    ) -> Vec<(SocketAddr, [u8; reflect::LENGTH])> {
        let Some(session) = self.session.as_ref().filter(|_| now >= self.next) else {
            return Vec::new();
        };
        self.asked
            .retain(|_, at| now.saturating_sub(*at) < ANSWER_WITHIN);
        self.unanswered += 1;
        self.next = now
            + if self.unanswered <= RETRIES {
                RETRY
            } else {
                INTERVAL
            };
        let of = |is_v4: bool| {
            let mut all = session.addresses.iter();
            all.find(|address| address.is_ipv4() == is_v4)
        };
        let mut ask = |to: &SocketAddr| {
            let question = Question {
                session: session.session,
                nonce: nonces(),
            };
            self.asked.insert(question.nonce, now);
            (*to, reflect::question(question, &session.key))
        };
        [of(true), of(false)]
            .into_iter()
            .flatten()
            .map(&mut ask)
            .collect()
    }

    /// Whether we are seen elsewhere than before. What is forged or old changes nothing.
    pub(super) fn handle_answer(&mut self, datagram: &[u8], now: Duration) -> bool {
        let Some(session) = &self.session else {
            return false;
        };
        let Ok(answer) = reflect::read_answer(datagram, &session.key) else {
            return false;
        };
        let asked = self.asked.remove(&answer.nonce);
        let is_fresh = asked.is_some_and(|at| now.saturating_sub(at) < ANSWER_WITHIN);
        if !is_fresh || answer.session != session.session {
            return false;
        }
        (self.unanswered, self.next) = (0, now + INTERVAL);
        let seen = if answer.seen_as.is_ipv4() {
            &mut self.seen_v4
        } else {
            &mut self.seen_v6
        };
        seen.replace(answer.seen_as) != Some(answer.seen_as)
    }

    pub(super) fn seen(&self) -> Vec<SocketAddr> {
        [self.seen_v4, self.seen_v6].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: reflect::SessionKey = [7; 32];

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    fn asking() -> Reflection {
        let mut reflection = Reflection::default();
        let session = ReflectorSession {
            session: 5,
            key: KEY,
            addresses: vec![
                "192.0.2.1:7800".parse().unwrap(),
                "[2001:db8::1]:7800".parse().unwrap(),
                "192.0.2.2:7800".parse().unwrap(),
            ],
        };
        reflection.handle_session(Some(session), at(0));
        reflection
    }

    fn counting() -> impl FnMut() -> u64 {
        let mut last = 0;
        move || {
            last += 1;
            last
        }
    }

    #[test]
    fn one_of_each_family_is_asked_and_again_when_nothing_comes() {
        let mut reflection = asking();
        let mut nonces = counting();
        let to: Vec<SocketAddr> = reflection
            .due(at(0), &mut nonces)
            .iter()
            .map(|(to, _)| *to)
            .collect();
        assert_eq!(
            to,
            [
                "192.0.2.1:7800".parse().unwrap(),
                "[2001:db8::1]:7800".parse().unwrap()
            ]
        );
        assert!(reflection.due(at(0), &mut nonces).is_empty());
        let tries = (1..100).filter(|second| !reflection.due(at(*second), &mut nonces).is_empty());
        assert_eq!(tries.count(), 3 + 4, "three soon, then every 20 s");
    }

    #[test]
    fn only_an_answer_to_a_question_of_ours_counts_and_only_once() {
        let mut reflection = asking();
        reflection.due(at(0), counting());
        let seen_as: SocketAddr = "203.0.113.9:4000".parse().unwrap();
        let answer = |nonce, key| reflect::answer(Question { session: 5, nonce }, seen_as, key);
        assert!(!reflection.handle_answer(&answer(77, &KEY), at(0)));
        assert!(!reflection.handle_answer(&answer(1, &[8; 32]), at(0)));
        assert!(reflection.handle_answer(&answer(1, &KEY), at(1)));
        assert_eq!(reflection.seen(), [seen_as]);
        assert!(!reflection.handle_answer(&answer(1, &KEY), at(1)));
        assert!(reflection.due(at(10), counting()).is_empty());
        assert!(!reflection.due(at(21), counting()).is_empty());
    }
}
