//! Tells a gateway its outer address: answers datagrams of sessions that asked for it over TLS,
//! with as many bytes as came and to where they came from.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use proto::message;
use proto::reflect;
use zeroize::Zeroizing;

use crate::pace::Bucket;

/// Of one session: some at once when a gateway starts, then two a second.
const AT_ONCE: u32 = 16;
const EVERY: Duration = Duration::from_millis(500);

/// The sessions that may ask.
#[derive(Default)]
pub(crate) struct Askers {
    by_number: DashMap<u64, Asker>,
}

struct Asker {
    key: Zeroizing<reflect::SessionKey>,
    pace: Mutex<Bucket>,
}

/// One session's leave to ask; ends when dropped.
pub(crate) struct Leave {
    askers: Arc<Askers>,
    session: u64,
    key: Zeroizing<reflect::SessionKey>,
}

impl Askers {
    pub(crate) fn allow(self: &Arc<Askers>) -> Result<Leave, getrandom::Error> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key)?;
        let session = getrandom::u64()?;
        self.by_number.insert(
            session,
            Asker {
                key: key.clone(),
                pace: Mutex::new(Bucket::new(AT_ONCE, EVERY)),
            },
        );
        Ok(Leave {
            askers: Arc::clone(self),
            session,
            key,
        })
    }

    /// The answer to a datagram; `None` for whatever is not a question of a session here.
    pub(crate) fn answer(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let asker = self.by_number.get(&reflect::session_of(datagram)?)?;
        let question = reflect::read_question(datagram, &asker.key).ok()?;
        let mut pace = asker.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.take(now).ok()?;
        Some(reflect::answer(question, from, &asker.key).to_vec())
    }
}

impl Leave {
    pub(crate) fn message(&self, port: u16) -> message::Reflector {
        message::Reflector {
            session: self.session,
            key: *self.key,
            port,
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.askers.by_number.remove(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(leave: &Leave, nonce: u64) -> [u8; reflect::LENGTH] {
        let question = reflect::Question {
            session: leave.session,
            nonce,
        };
        reflect::question(question, &leave.key)
    }

    #[test]
    fn who_has_leave_is_told_where_it_came_from_and_nobody_else() {
        let askers = Arc::new(Askers::default());
        let leave = askers.allow().unwrap();
        let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let now = Instant::now();
        let question = asked(&leave, 7);
        let answer = askers.answer(&question, from, now).unwrap();
        assert_eq!(answer.len(), question.len());
        let seen = reflect::read_answer(&answer, &leave.key).unwrap();
        assert_eq!((seen.seen_as, seen.nonce), (from, 7));

        let mut forged = question;
        forged[20] ^= 1;
        assert_eq!(askers.answer(&forged, from, now), None);
        drop(leave);
        assert_eq!(askers.answer(&question, from, now), None);
    }

    #[test]
    fn a_session_that_floods_is_answered_at_its_rate() {
        let askers = Arc::new(Askers::default());
        let leave = askers.allow().unwrap();
        let from: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let now = Instant::now();
        let answered =
            (0..1000).filter(|nonce| askers.answer(&asked(&leave, *nonce), from, now).is_some());
        assert_eq!(answered.count(), 16);
    }
}
