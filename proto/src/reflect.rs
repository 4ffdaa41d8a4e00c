//! The datagrams of the UDP reflector, which tells a gateway its outer address.
//!
//! Question and answer have the same length, so that a forged source gains nothing by asking, and
//! carry the same kind of MAC. A gateway asks from its tunnel's own socket: WireGuard's datagrams
//! begin with 1 to 4, these with 0xc0 or 0xc1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;

pub use crate::message::Reflected;

/// Of every datagram, question or answer.
pub const LENGTH: usize = 64;
pub const QUESTION: u8 = 0xc0;
pub const ANSWER: u8 = 0xc1;

const VERSION: u8 = 1;
const MAC: usize = 16;
const SIGNED: usize = LENGTH - MAC;
const SESSION: usize = 2;
const NONCE: usize = 10;
const FAMILY: usize = 18;
const ADDRESS: usize = 19;
const PORT: usize = 35;
const PADDING: usize = 37;

/// Keys the MAC of one session's datagrams; as the broker gave it over TLS.
pub type SessionKey = [u8; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub session: u64,
    pub nonce: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReflectError {
    #[error("this is no datagram of the reflector")]
    Form,
    #[error("the MAC of the reflector's datagram does not hold")]
    Mac,
}

/// Which session a datagram claims to be of, so that its key can be looked up. Costs nothing and
/// proves nothing.
pub fn session_of(datagram: &[u8]) -> Option<u64> {
    let datagram: &[u8; LENGTH] = datagram.try_into().ok()?;
    let kind = datagram[0];
    if (kind == QUESTION || kind == ANSWER) && datagram[1] == VERSION {
        Some(number(datagram, SESSION))
    } else {
        None
    }
}

pub fn question(question: Question, key: &SessionKey) -> [u8; LENGTH] {
    let mut datagram = start(QUESTION, question);
    seal(&mut datagram, key);
    datagram
}

pub fn read_question(datagram: &[u8], key: &SessionKey) -> Result<Question, ReflectError> {
    let datagram = open(datagram, QUESTION, key)?;
    if datagram[FAMILY..SIGNED].iter().any(|byte| *byte != 0) {
        return Err(ReflectError::Form);
    }
    Ok(Question {
        session: number(datagram, SESSION),
        nonce: number(datagram, NONCE),
    })
}

/// To be sent to `seen_as` itself, where the question came from.
pub fn answer(question: Question, seen_as: SocketAddr, key: &SessionKey) -> [u8; LENGTH] {
    let mut datagram = start(ANSWER, question);
    // A socket for both families shows IPv4 callers as mapped addresses.
    match seen_as.ip().to_canonical() {
        IpAddr::V4(address) => {
            datagram[FAMILY] = 4;
            datagram[ADDRESS..ADDRESS + 4].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            datagram[FAMILY] = 6;
            datagram[ADDRESS..PORT].copy_from_slice(&address.octets());
        }
    }
    datagram[PORT..PADDING].copy_from_slice(&seen_as.port().to_be_bytes());
    seal(&mut datagram, key);
    datagram
}

/// Whether the nonce is the one asked with is the caller's to compare.
pub fn read_answer(datagram: &[u8], key: &SessionKey) -> Result<Reflected, ReflectError> {
    let datagram = open(datagram, ANSWER, key)?;
    let address: [u8; 16] = std::array::from_fn(|at| datagram[ADDRESS + at]);
    let ip = match (datagram[FAMILY], address) {
        (4, [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) => Ipv4Addr::new(a, b, c, d).into(),
        (6, octets) if Ipv6Addr::from(octets).to_ipv4_mapped().is_none() => {
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return Err(ReflectError::Form),
    };
    let port = u16::from_be_bytes([datagram[PORT], datagram[PORT + 1]]);
    if port == 0 || datagram[PADDING..SIGNED].iter().any(|byte| *byte != 0) {
        return Err(ReflectError::Form);
    }
    Ok(Reflected {
        session: number(datagram, SESSION),
        nonce: number(datagram, NONCE),
        seen_as: SocketAddr::new(ip, port),
    })
}

fn start(kind: u8, question: Question) -> [u8; LENGTH] {
    let mut datagram = [0; LENGTH];
    datagram[0] = kind;
    datagram[1] = VERSION;
    datagram[SESSION..NONCE].copy_from_slice(&question.session.to_be_bytes());
    datagram[NONCE..FAMILY].copy_from_slice(&question.nonce.to_be_bytes());
    datagram
}

fn seal(datagram: &mut [u8; LENGTH], key: &SessionKey) {
    let mac = mac(&datagram[..SIGNED], key).finalize().into_bytes();
    datagram[SIGNED..].copy_from_slice(&mac[..MAC]);
}

/// The MAC comes first, so that nothing is told about a datagram without it.
fn open<'a>(
    datagram: &'a [u8],
    kind: u8,
    key: &SessionKey,
) -> Result<&'a [u8; LENGTH], ReflectError> {
    let datagram: &[u8; LENGTH] = datagram.try_into().map_err(|_| ReflectError::Form)?;
    mac(&datagram[..SIGNED], key)
        .verify_truncated_left(&datagram[SIGNED..])
        .map_err(|_| ReflectError::Mac)?;
    if datagram[0] == kind && datagram[1] == VERSION {
        Ok(datagram)
    } else {
        Err(ReflectError::Form)
    }
}

fn mac(bytes: &[u8], key: &SessionKey) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes any length");
    mac.update(bytes);
    mac
}

fn number(datagram: &[u8; LENGTH], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|index| datagram[at + index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SessionKey = [7; 32];
    const ASKED: Question = Question {
        session: 0x0102_0304_0506_0708,
        nonce: 99,
    };

    #[test]
    fn a_question_comes_back_as_it_was_asked() {
        let datagram = question(ASKED, &KEY);
        assert_eq!(session_of(&datagram), Some(ASKED.session));
        assert_eq!(read_question(&datagram, &KEY), Ok(ASKED));
    }

    #[test]
    fn an_answer_tells_the_address_of_either_family() {
        for seen_as in ["198.51.100.7:51820", "[2001:db8::9]:1"] {
            let seen_as: SocketAddr = seen_as.parse().unwrap();
            let reflected = read_answer(&answer(ASKED, seen_as, &KEY), &KEY).unwrap();
            assert_eq!(reflected.seen_as, seen_as);
            assert_eq!(reflected.nonce, ASKED.nonce);
            assert_eq!(reflected.session, ASKED.session);
        }
    }

    #[test]
    fn a_caller_seen_through_a_socket_for_both_families_is_told_its_own_form() {
        let mapped: SocketAddr = "[::ffff:198.51.100.7]:9".parse().unwrap();
        let reflected = read_answer(&answer(ASKED, mapped, &KEY), &KEY).unwrap();
        assert_eq!(reflected.seen_as, "198.51.100.7:9".parse().unwrap());
    }

    #[test]
    fn any_changed_bit_is_refused() {
        let asked = question(ASKED, &KEY);
        let answered = answer(ASKED, "198.51.100.7:9".parse().unwrap(), &KEY);
        for bit in 0..LENGTH * 8 {
            let mut changed = asked;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(read_question(&changed, &KEY).is_err(), "bit {bit}");
            let mut changed = answered;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(read_answer(&changed, &KEY).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_question_shown_as_an_answer_or_the_other_way_is_refused() {
        let answered = answer(ASKED, "198.51.100.7:9".parse().unwrap(), &KEY);
        assert!(read_answer(&question(ASKED, &KEY), &KEY).is_err());
        assert!(read_question(&answered, &KEY).is_err());
    }

    #[test]
    fn another_sessions_key_and_another_length_are_refused() {
        let datagram = question(ASKED, &KEY);
        assert_eq!(read_question(&datagram, &[8; 32]), Err(ReflectError::Mac));
        assert_eq!(
            read_question(&datagram[..LENGTH - 1], &KEY),
            Err(ReflectError::Form)
        );
        assert_eq!(session_of(&[]), None);
        assert_eq!(session_of(&[QUESTION; LENGTH + 1]), None);
    }
}
