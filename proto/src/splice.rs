//! The way to a broker through a gateway of the same site: what the two say before the gateway
//! passes bytes on as they are. The session inside is TLS to the broker's pinned key, so that the
//! gateway learns and changes nothing; at worst it cuts.

use crate::key::PublicKey;

/// TCP, on a gateway's address in its site.
pub const PORT: u16 = 7802;
/// Of a call. It names the broker's key: whoever calls has no say in where the gateway connects to.
pub const CALL: usize = 4 + 1 + 32;

const MAGIC: [u8; 4] = *b"cwsp";
const VERSION: u8 = 1;

/// One byte, before the first of the broker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Connected,
    /// What was said is no call of a version that is known there.
    Malformed,
    /// The caller is not in the gateway's site.
    Stranger,
    /// No broker of the ledger has this key.
    UnknownBroker,
    /// The broker cannot be reached from there either.
    Unreachable,
    /// Too many callers, all together or from this address.
    Full,
    /// The gateway is none of the mesh now.
    PutOut,
}

pub fn call(broker: &PublicKey) -> [u8; CALL] {
    let mut bytes = [0; CALL];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION;
    bytes[5..].copy_from_slice(broker.as_bytes());
    bytes
}

/// The key of the broker that is asked for. It is only compared with those that are known, so that
/// no work is done for what a stranger sends.
pub fn read_call(bytes: &[u8; CALL]) -> Option<[u8; 32]> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (version, key) = rest.split_first()?;
    if *magic != MAGIC || *version != VERSION {
        return None;
    }
    key.try_into().ok()
}

impl Verdict {
    pub fn byte(self) -> u8 {
        match self {
            Verdict::Connected => 0,
            Verdict::Malformed => 1,
            Verdict::Stranger => 2,
            Verdict::UnknownBroker => 3,
            Verdict::Unreachable => 4,
            Verdict::Full => 5,
            Verdict::PutOut => 6,
        }
    }

    pub fn read(byte: u8) -> Option<Verdict> {
        Some(match byte {
            0 => Verdict::Connected,
            1 => Verdict::Malformed,
            2 => Verdict::Stranger,
            3 => Verdict::UnknownBroker,
            4 => Verdict::Unreachable,
            5 => Verdict::Full,
            6 => Verdict::PutOut,
            _ => return None,
        })
    }

    /// What whoever was refused should know.
    pub fn sentence(self) -> &'static str {
        match self {
            Verdict::Connected => "it is connected",
            Verdict::Malformed => "it does not understand the call; upgrade the older of the two",
            Verdict::Stranger => {
                "it serves its own site only, and the address this call came from is not in it"
            }
            Verdict::UnknownBroker => "its ledger has no broker with the pinned key",
            Verdict::Unreachable => "it cannot reach the broker either",
            Verdict::Full => "it has too many callers",
            Verdict::PutOut => "it is not part of the mesh now",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;

    #[test]
    fn a_call_is_read_as_it_was_written_and_nothing_else_is_one() {
        let key = SigningKey::from_seed(&[1; 32]).public();
        let written = call(&key);
        assert_eq!(read_call(&written), Some(*key.as_bytes()));
        for at in 0..5 {
            let mut other = written;
            other[at] ^= 1;
            assert_eq!(read_call(&other), None, "byte {at}");
        }
        assert_eq!(read_call(&[0; CALL]), None);
    }

    #[test]
    fn every_verdict_is_read_as_it_was_written() {
        let read: Vec<Verdict> = (0..=u8::MAX).filter_map(Verdict::read).collect();
        assert_eq!(read.len(), 7);
        for verdict in read {
            assert_eq!(Verdict::read(verdict.byte()), Some(verdict));
        }
    }
}
