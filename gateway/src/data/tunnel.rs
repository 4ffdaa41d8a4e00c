//! One `Tunn`, and what has to be known of it since it does not tell: whether it has a session,
//! which sessions the peer has confirmed, when an initiation may be repeated.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::index::{IndexTable, TunnelIndex};
use super::link::{Endpoint, LinkSpec, Work, receiver_index};
use crate::drops::DropReason;
use crate::io::udp::Mark;

const INITIATION: usize = 148;
/// Enough for any message that is not data.
const ROOM: usize = 256;
/// A datagram with this counter or a higher one is refused, as the protocol says.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// An unanswered initiation is repeated after this and up to a third of a second more.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// `Tunn` matches answers to its last two initiations only, so on a path slower than this twice
/// over no answer would ever match; after some tries they are spaced wider.
const REKEY_TIMEOUT_SLOW: Duration = Duration::from_secs(10);
const QUICK_TRIES: u32 = 4;
/// `Tunn` holds this many sessions, each in the place that the low bits of its index say.
const SESSIONS: u32 = 8;

/// One `Tunn` and what we have to know of it, since it does not tell.
pub(super) struct Tunnel {
    pub(super) tunn: Tunn,
    pub(super) index: TunnelIndex,
    pub(super) has_session: bool,
    /// The last receiver indexes that proved to be in use, the newest first.
    confirmed: [u32; 4],
    /// The index of the last handshake message made; the next one has the next.
    made: u32,
    pub(super) initiation: Option<Initiation>,
    pub(super) ticked: Duration,
    /// Sealed under the present key.
    pub(super) messages: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Initiation {
    sent_at: Duration,
    retry_at: Duration,
    tries: u32,
}

fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// What the timers led to.
pub(super) enum Ticked {
    Sent(u64),
    /// They wanted a handshake, which was not to be.
    Suppressed,
}

impl Tunnel {
    pub(super) fn new(
        spec: &LinkSpec,
        slot: u32,
        table: &mut IndexTable,
        now: Duration,
    ) -> Option<Box<Tunnel>> {
        let index = table.allocate(slot, random() as u32)?;
        let tunn = Tunn::new(
            spec.private_key.clone(),
            spec.peer_key,
            spec.preshared_key,
            // Kept by us: it cannot be changed in a living Tunn.
            None,
            index.0,
            Some(spec.limiter.clone()),
        );
        Some(Box::new(Tunnel {
            tunn,
            index,
            has_session: false,
            confirmed: [0; 4],
            made: 0,
            initiation: None,
            ticked: now,
            messages: 0,
        }))
    }

    /// Notes that the peer has the session of this receiver index; false if that was known.
    pub(super) fn confirm(&mut self, receiver: u32) -> bool {
        if self.confirmed[0] == receiver || self.confirmed.contains(&receiver) {
            return false;
        }
        self.confirmed.rotate_right(1);
        self.confirmed[0] = receiver;
        true
    }

    /// Before an initiation is answered: the session that this makes, which the peer may never prove,
    /// must not take the place of one in use. An index that would is passed over, by an initiation
    /// that is made and thrown away.
    pub(super) fn spare_sessions(&mut self) {
        let in_use = [self.confirmed[0], self.confirmed[1]];
        let mut thrown_away = [0; INITIATION];
        while self.has_session
            && in_use
                .iter()
                .any(|used| used % SESSIONS == self.made.wrapping_add(1) % SESSIONS)
        {
            let made = self
                .tunn
                .format_handshake_initiation(&mut thrown_away, true);
            let TunnResult::WriteToNetwork(message) = made else {
                return;
            };
            self.note_made(message);
        }
    }

    /// Notes the index in a handshake message that the `Tunn` made.
    pub(super) fn note_made(&mut self, message: &[u8]) {
        self.made = receiver_index(message, 4).unwrap_or_default();
    }

    pub(super) fn look_at_session(&mut self) {
        self.has_session = self.tunn.time_since_last_handshake().is_some();
    }

    /// Lets boringtun's timers run; what they want to send goes to `to` if that is known.
    pub(super) fn tick(
        &mut self,
        to: Option<&Endpoint>,
        may_initiate: bool,
        work: &mut Work<'_>,
    ) -> Result<Ticked, WireGuardError> {
        self.ticked = work.now;
        if !self.has_session && self.initiation.is_some_and(|sent| work.now < sent.retry_at) {
            return Ok(Ticked::Sent(0));
        }
        let Some(room) = room(work) else {
            return Ok(Ticked::Sent(0));
        };
        let result = match self.tunn.update_timers(room) {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                let initiates = len == INITIATION;
                if initiates {
                    self.note_made(datagram);
                    self.note_initiation(work.now);
                }
                match to {
                    Some(_) if initiates && !may_initiate => Ok(Ticked::Suppressed),
                    Some(to) => {
                        work.outbox.commit(to, Mark::default(), len);
                        Ok(Ticked::Sent(len as u64))
                    }
                    None => Ok(Ticked::Sent(0)),
                }
            }
            TunnResult::Err(error) => {
                self.initiation = None;
                Err(error)
            }
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Ok(Ticked::Sent(0)),
        };
        // Time takes sessions away; only the peer gives one.
        let had = self.has_session;
        self.look_at_session();
        self.has_session &= had;
        result
    }

    /// Opens one data datagram into the beginning of `into`; a keepalive has length 0.
    pub(super) fn open(&mut self, datagram: &[u8], into: &mut [u8]) -> Result<usize, DropReason> {
        let counter = datagram.get(8..).and_then(|rest| rest.first_chunk());
        if counter.is_none_or(|counter| u64::from_le_bytes(*counter) >= REJECT_AFTER_MESSAGES) {
            return Err(DropReason::MessageLimit);
        }
        match self.tunn.decapsulate(None, datagram, into) {
            TunnResult::WriteToTunnelV4(packet, _) if packet.len() >= 20 => Ok(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) if packet.len() >= 40 => Ok(packet.len()),
            TunnResult::Done => Ok(0),
            // The inner length field was shorter than the header it stands in.
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Err(DropReason::InnerMalformed)
            }
            TunnResult::Err(error) => Err(open_failure(&error)),
            TunnResult::WriteToNetwork(_) => Err(DropReason::Malformed),
        }
    }

    fn note_initiation(&mut self, now: Duration) {
        let tries = self.initiation.map_or(0, |sent| sent.tries) + 1;
        let timeout = if tries > QUICK_TRIES {
            REKEY_TIMEOUT_SLOW
        } else {
            REKEY_TIMEOUT
        };
        let jitter = Duration::from_millis(random() % 334);
        self.initiation = Some(Initiation {
            sent_at: now,
            retry_at: now + timeout + jitter,
            tries,
        });
    }

    /// Begins a handshake unless one was begun a moment ago; returns the bytes that go out.
    pub(super) fn initiate(&mut self, to: &Endpoint, work: &mut Work<'_>) -> u64 {
        if self.initiation.is_some_and(|sent| work.now < sent.retry_at) {
            return 0;
        }
        let Some(room) = room(work) else { return 0 };
        let TunnResult::WriteToNetwork(datagram) =
            self.tunn.format_handshake_initiation(room, true)
        else {
            return 0;
        };
        let len = datagram.len();
        self.note_made(datagram);
        work.outbox.commit(to, Mark::default(), len);
        self.note_initiation(work.now);
        len as u64
    }

    /// Begins a handshake at several addresses at once, with one message: the peer takes the first
    /// and refuses the rest as replayed. Returns the bytes that go out.
    pub(super) fn initiate_at(&mut self, to: &[Endpoint], work: &mut Work<'_>) -> u64 {
        let mut message = [0; ROOM];
        // Its timers have rested while there was no session. They must see the time first, and the
        // message that they may make is as good as another: an older one would be forgotten for it.
        if self.has_session || !self.make_timed(&mut message, work.now) {
            let made = self.tunn.format_handshake_initiation(&mut message, true);
            if !matches!(made, TunnResult::WriteToNetwork(_)) {
                return 0;
            }
        }
        let message = &message[..INITIATION];
        self.note_made(message);
        self.note_initiation(work.now);
        let mut bytes = 0;
        for to in to {
            let Some(room) = room(work) else { break };
            room[..INITIATION].copy_from_slice(message);
            work.outbox.commit(to, Mark::default(), INITIATION);
            bytes += INITIATION as u64;
        }
        bytes
    }

    /// Lets the timers run without a session; whether they made an initiation.
    fn make_timed(&mut self, message: &mut [u8], now: Duration) -> bool {
        self.ticked = now;
        matches!(
            self.tunn.update_timers(message),
            TunnResult::WriteToNetwork(made) if made.len() == INITIATION
        )
    }

    /// Whether an initiation is under way that was made not longer ago than this.
    pub(super) fn tried_within(&self, age: Duration, now: Duration) -> bool {
        self.initiation
            .is_some_and(|sent| now.saturating_sub(sent.sent_at) < age)
    }
}

/// Keys do not stay in memory that is given back, as far as boringtun lets us: another `Tunn` is
/// moved over this one.
impl Drop for Tunnel {
    fn drop(&mut self) {
        let nobody = x25519::PublicKey::from([0; 32]);
        self.tunn = Tunn::new([0; 32].into(), nobody, None, None, 0, None);
    }
}

/// Room for any message that is not data.
pub(super) fn room<'a>(work: &'a mut Work<'_>) -> Option<&'a mut [u8]> {
    if work.outbox.reserve(ROOM).is_none() {
        work.outbox.make_room(work.socket, work.now, work.drops);
    }
    work.outbox.reserve(ROOM)
}

fn open_failure(error: &WireGuardError) -> DropReason {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest cannot follow from a data message"
    )]
    match error {
        WireGuardError::InvalidAeadTag => DropReason::BadTag,
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => DropReason::Replay,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::NoSession,
        WireGuardError::InvalidPacket => DropReason::InnerMalformed,
        _ => DropReason::Malformed,
    }
}

#[cfg(test)]
mod tests;
