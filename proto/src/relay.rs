//! The datagrams between a gateway and the relay of a broker, for gateways whose paths fail.
//!
//! What is relayed is opaque: the tunnel's own datagrams. On the way in and on the way out it has
//! a head and a MAC of the same lengths, so that the relay never sends more than it got. A gateway
//! is sent nothing by UDP until it has echoed, from its address, a challenge that went there.

use std::collections::VecDeque;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;

use crate::key::{Domain, Hash, PublicKey};

/// First bytes. The tunnel's own are 1 to 4, the reflector's 0xc0 and 0xc1; those of one direction
/// are never taken for those of the other.
pub const BIND: u8 = 0xc2;
pub const BOUND: u8 = 0xc3;
pub const TO_RELAY: u8 = 0xc4;
pub const FROM_RELAY: u8 = 0xc5;

const VERSION: u8 = 1;
const MAC: usize = 16;
const SESSION: usize = 2;
/// In a datagram that carries something.
const CHANNEL: usize = 10;
pub const HEAD: usize = 14;
/// What relaying adds to a datagram.
pub const OVERHEAD: usize = HEAD + MAC;
/// With all headers, IPv6's among them, it fits 1500 bytes.
pub const MAX_PAYLOAD: usize = 1420;
pub const MAX_DATAGRAM: usize = MAX_PAYLOAD + OVERHEAD;
/// Of [`Bind`] and [`Bound`] alike.
pub const BIND_LENGTH: usize = 42;
const NONCE: usize = 10;
const CHALLENGE: usize = 18;

/// A session's key, ready for use.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

/// Of the gateway: is to be sent to where this comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    pub session: u64,
    pub nonce: u64,
    /// The challenge that came to this address; 0 to be given one.
    pub echo: u64,
}

/// Of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub session: u64,
    /// The gateway's.
    pub nonce: u64,
    /// To be echoed; 0 once the address is taken.
    pub challenge: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried<'a> {
    pub session: u64,
    /// Stands for the other gateway, by the number that the receiver or sender gave it.
    pub channel: u32,
    pub payload: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RelayError {
    #[error("this is no datagram of the relay")]
    Form,
    #[error("the MAC of the relay's datagram does not hold")]
    Mac,
}

/// Which session a datagram claims to be of. Costs nothing and proves nothing.
pub fn session_of(datagram: &[u8]) -> Option<u64> {
    let is_known = match *datagram.first()? {
        BIND | BOUND => datagram.len() == BIND_LENGTH,
        TO_RELAY | FROM_RELAY => is_carrying(datagram.len()),
        _ => false,
    };
    (is_known && datagram[1] == VERSION).then(|| number(datagram, SESSION))
}

/// Which channel a datagram that carries something claims to be of.
pub fn channel_of(datagram: &[u8]) -> u32 {
    datagram.get(CHANNEL..HEAD).map_or(0, |four| {
        u32::from_be_bytes([four[0], four[1], four[2], four[3]])
    })
}

pub fn bind(bind: Bind, key: &Key) -> [u8; BIND_LENGTH] {
    binding(BIND, bind.session, (bind.nonce, bind.echo), key)
}

pub fn bound(bound: Bound, key: &Key) -> [u8; BIND_LENGTH] {
    binding(BOUND, bound.session, (bound.nonce, bound.challenge), key)
}

pub fn read_bind(datagram: &[u8], key: &Key) -> Result<Bind, RelayError> {
    let (session, nonce, echo) = read_binding(datagram, BIND, key)?;
    Ok(Bind {
        session,
        nonce,
        echo,
    })
}

/// Whether the nonce is the one sent is the caller's to compare.
pub fn read_bound(datagram: &[u8], key: &Key) -> Result<Bound, RelayError> {
    let (session, nonce, challenge) = read_binding(datagram, BOUND, key)?;
    Ok(Bound {
        session,
        nonce,
        challenge,
    })
}

/// Writes head and MAC around a payload that lies between [`HEAD`] bytes and as many as the MAC
/// has, over whatever was there. `false` if it is no length that is relayed.
pub fn seal(datagram: &mut [u8], kind: u8, (session, channel): (u64, u32), key: &Key) -> bool {
    if !is_carrying(datagram.len()) {
        return false;
    }
    datagram[..SESSION].copy_from_slice(&[kind, VERSION]);
    datagram[SESSION..CHANNEL].copy_from_slice(&session.to_be_bytes());
    datagram[CHANNEL..HEAD].copy_from_slice(&channel.to_be_bytes());
    let end = datagram.len() - MAC;
    let mac = key.mac(&datagram[..end]).finalize().into_bytes();
    datagram[end..].copy_from_slice(&mac[..MAC]);
    true
}

/// A datagram as [`seal`] makes it.
pub fn wrap(payload: &[u8], kind: u8, to: (u64, u32), key: &Key) -> Option<Vec<u8>> {
    let mut datagram = vec![0; payload.len() + OVERHEAD];
    datagram[HEAD..HEAD + payload.len()].copy_from_slice(payload);
    seal(&mut datagram, kind, to, key).then_some(datagram)
}

pub fn open<'a>(datagram: &'a [u8], kind: u8, key: &Key) -> Result<Carried<'a>, RelayError> {
    if !is_carrying(datagram.len()) || datagram[0] != kind || datagram[1] != VERSION {
        return Err(RelayError::Form);
    }
    let signed = verified(datagram, key)?;
    Ok(Carried {
        session: number(signed, SESSION),
        channel: channel_of(signed),
        payload: &signed[HEAD..],
    })
}

fn is_carrying(length: usize) -> bool {
    length > OVERHEAD && length <= MAX_DATAGRAM
}

fn binding(kind: u8, session: u64, (nonce, last): (u64, u64), key: &Key) -> [u8; BIND_LENGTH] {
    let mut datagram = [0; BIND_LENGTH];
    datagram[..SESSION].copy_from_slice(&[kind, VERSION]);
    datagram[SESSION..NONCE].copy_from_slice(&session.to_be_bytes());
    datagram[NONCE..CHALLENGE].copy_from_slice(&nonce.to_be_bytes());
    datagram[CHALLENGE..BIND_LENGTH - MAC].copy_from_slice(&last.to_be_bytes());
    let mac = key.mac(&datagram[..BIND_LENGTH - MAC]);
    datagram[BIND_LENGTH - MAC..].copy_from_slice(&mac.finalize().into_bytes()[..MAC]);
    datagram
}

fn read_binding(datagram: &[u8], kind: u8, key: &Key) -> Result<(u64, u64, u64), RelayError> {
    if datagram.len() != BIND_LENGTH || datagram[0] != kind || datagram[1] != VERSION {
        return Err(RelayError::Form);
    }
    let signed = verified(datagram, key)?;
    Ok((
        number(signed, SESSION),
        number(signed, NONCE),
        number(signed, CHALLENGE),
    ))
}

/// Without the MAC, which holds.
fn verified<'a>(datagram: &'a [u8], key: &Key) -> Result<&'a [u8], RelayError> {
    let (signed, mac) = datagram.split_at(datagram.len() - MAC);
    key.mac(signed)
        .verify_truncated_left(mac)
        .map_err(|_| RelayError::Mac)?;
    Ok(signed)
}

fn number(datagram: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|index| datagram[at + index]))
}

impl Key {
    pub fn new(key: &[u8; 32]) -> Key {
        Key(<Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes any length"))
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(bytes);
        mac
    }

    /// What only the relay can know of an address, if the key is its own.
    pub fn challenge(&self, session: u64, address: &[u8]) -> u64 {
        let mut mac = self.mac(&session.to_be_bytes());
        mac.update(address);
        // 0 means none.
        number(&mac.finalize().into_bytes(), 0).max(1)
    }
}

/// The lower of two brokers is where a pair meets, if both sides reach it: both find the same one
/// without a word, and pairs spread over brokers.
pub fn rank(one: &PublicKey, other: &PublicKey, broker: &PublicKey) -> Hash {
    let [one, other] = [one.min(other), one.max(other)];
    let said = [one, other, broker]
        .map(PublicKey::as_bytes)
        .map(<[u8; 32]>::as_slice);
    Hash::of(Domain::Meeting, &said.concat())
}

/// Datagrams that wait for a connection: the oldest go when there are too many, as in a router.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<(u32, Vec<u8>)>,
    bytes: usize,
}

/// About 20 ms of what one pair may send: more would only be late.
pub const MAX_WAITING: usize = 256;
pub const MAX_WAITING_BYTES: usize = 256 * 1024;

impl Queue {
    /// How many had to go.
    pub fn push(&mut self, channel: u32, datagram: Vec<u8>) -> usize {
        self.bytes += datagram.len();
        self.waiting.push_back((channel, datagram));
        let mut gone = 0;
        while self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES {
            gone += usize::from(self.pop().is_some());
        }
        gone
    }

    pub fn pop(&mut self) -> Option<(u32, Vec<u8>)> {
        let (channel, datagram) = self.waiting.pop_front()?;
        self.bytes -= datagram.len();
        Some((channel, datagram))
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key::new(&[number; 32])
    }

    fn carried() -> Vec<u8> {
        wrap(b"a datagram of the tunnel", TO_RELAY, (7, 9), &key(1)).unwrap()
    }

    #[test]
    fn what_is_wrapped_comes_out_again_at_every_length() {
        for length in [1, 32, 148, MAX_PAYLOAD] {
            let payload = vec![0xa5; length];
            let datagram = wrap(&payload, FROM_RELAY, (u64::MAX, 3), &key(1)).unwrap();
            assert_eq!(datagram.len(), length + OVERHEAD);
            assert_eq!(session_of(&datagram), Some(u64::MAX));
            assert_eq!(channel_of(&datagram), 3);
            let opened = open(&datagram, FROM_RELAY, &key(1)).unwrap();
            assert_eq!(opened.payload, payload);
            assert_eq!((opened.session, opened.channel), (u64::MAX, 3));
        }
        for length in [0, MAX_PAYLOAD + 1] {
            assert_eq!(wrap(&vec![0; length], TO_RELAY, (7, 9), &key(1)), None);
        }
    }

    #[test]
    fn passing_it_on_rewrites_it_where_it_lies_and_makes_it_no_longer() {
        let mut datagram = carried();
        let length = datagram.len();
        assert!(seal(&mut datagram, FROM_RELAY, (8, 2), &key(2)));
        assert_eq!(datagram.len(), length);
        let opened = open(&datagram, FROM_RELAY, &key(2)).unwrap();
        assert_eq!(opened.payload, b"a datagram of the tunnel");
        assert_eq!((opened.session, opened.channel), (8, 2));
    }

    #[test]
    fn any_changed_bit_is_refused() {
        let bind = bind(
            Bind {
                session: 7,
                nonce: 8,
                echo: 9,
            },
            &key(1),
        );
        let bound = bound(
            Bound {
                session: 7,
                nonce: 8,
                challenge: 9,
            },
            &key(1),
        );
        let carried = carried();
        for (at, datagram) in [&bind[..], &bound, &carried].into_iter().enumerate() {
            for bit in 0..datagram.len() * 8 {
                let mut changed = datagram.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(read_bind(&changed, &key(1)).is_err(), "{at}, bit {bit}");
                assert!(read_bound(&changed, &key(1)).is_err(), "{at}, bit {bit}");
                for kind in [TO_RELAY, FROM_RELAY] {
                    assert!(open(&changed, kind, &key(1)).is_err(), "{at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn nothing_of_one_direction_is_taken_for_the_other_nor_under_another_key() {
        let datagram = carried();
        assert_eq!(open(&datagram, FROM_RELAY, &key(1)), Err(RelayError::Form));
        assert_eq!(open(&datagram, TO_RELAY, &key(2)), Err(RelayError::Mac));
        let bind = bind(
            Bind {
                session: 7,
                nonce: 8,
                echo: 0,
            },
            &key(1),
        );
        assert_eq!(read_bound(&bind, &key(1)), Err(RelayError::Form));
        assert_eq!(read_bind(&bind, &key(2)), Err(RelayError::Mac));
    }

    #[test]
    fn a_question_and_its_answer_have_one_length_and_are_cut_nowhere() {
        let asked = bind(
            Bind {
                session: 7,
                nonce: 8,
                echo: 9,
            },
            &key(1),
        );
        assert_eq!(session_of(&asked), Some(7));
        for length in 0..asked.len() {
            assert!(read_bind(&asked[..length], &key(1)).is_err());
            assert_eq!(session_of(&asked[..length]), None);
        }
        let whole = carried();
        for length in 0..whole.len() {
            assert!(open(&whole[..length], TO_RELAY, &key(1)).is_err());
        }
    }

    #[test]
    fn a_challenge_is_of_its_session_and_its_address() {
        let challenge = key(1).challenge(7, b"192.0.2.1:9");
        assert_eq!(challenge, key(1).challenge(7, b"192.0.2.1:9"));
        assert_ne!(challenge, key(1).challenge(7, b"192.0.2.1:8"));
        assert_ne!(challenge, key(1).challenge(8, b"192.0.2.1:9"));
        assert_ne!(challenge, key(2).challenge(7, b"192.0.2.1:9"));
        assert_ne!(challenge, 0);
    }

    #[test]
    fn both_sides_find_the_same_broker_and_pairs_spread() {
        use crate::key::SigningKey;
        let public = |seed: u8| SigningKey::from_seed(&[seed; 32]).public();
        let brokers = [public(100), public(101), public(102)];
        let meets = |one, other| {
            let rank = |broker: &&PublicKey| rank(&public(one), &public(other), broker);
            brokers.iter().min_by_key(rank).copied()
        };
        let mut used = std::collections::BTreeSet::new();
        for other in 2..20 {
            assert_eq!(meets(1, other), meets(other, 1));
            used.insert(meets(1, other));
        }
        assert_eq!(used.len(), 3);
    }

    #[test]
    fn of_too_many_that_wait_the_oldest_go() {
        let mut queue = Queue::default();
        let gone: usize = (0..300).map(|at| queue.push(at, vec![0; 10])).sum();
        assert_eq!(gone, 300 - MAX_WAITING);
        assert_eq!(queue.pop().unwrap().0, 44);
        let mut queue = Queue::default();
        for at in 0..MAX_WAITING as u32 {
            queue.push(at, vec![0; 2048]);
        }
        let mut bytes = 0;
        let mut last = 0;
        while let Some((at, datagram)) = queue.pop() {
            (bytes, last) = (bytes + datagram.len(), at);
        }
        assert_eq!((bytes, last), (MAX_WAITING_BYTES, 255));
        assert!(queue.is_empty() && queue.bytes == 0);
    }
}
