//! What two gateways say to each other inside their tunnel: life, paths, proofs, and what each
//! knows of the mesh.
//!
//! A message travels as IPv6/UDP between link-local addresses derived from the two identities. The
//! packet path tells it by these addresses, hands it to control and never to the TUN. The tunnel
//! authenticates it; it is still read as coming from someone who may lie.

#[cfg(test)]
mod tests;

use std::net::{Ipv6Addr, SocketAddr};

use bincode::{Decode, Encode};
use thiserror::Error;

use crate::codec;
use crate::key::{Domain, Hash, PublicKey, Signature, SigningKey, WireguardKey};

/// Of sender and receiver inside the tunnel.
pub const PORT: u16 = 7801;
/// The largest message; with its headers it fits any path of IPv6.
pub const MAX_MESSAGE: usize = 1024;
/// The largest padded packet: that of the largest path that is looked for.
pub const MAX_PACKET: usize = 9216;

const VERSION: u8 = 1;
const IPV6: usize = 40;
const UDP: usize = 8;
/// Version and length before the message.
const HEAD: usize = 3;
const NEXT_HEADER_UDP: u8 = 17;
/// Nothing that went through a router can have it.
const HOP_LIMIT: u8 = 255;

/// Grows at its end only; what is not known is passed over by the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Control {
    Hello(Hello),
    /// The sender stops. Repeated until heard; the receiver sends it nothing more of its site.
    Goodbye {
        boot: u64,
    },
    GoodbyeHeard {
        boot: u64,
    },
    /// Padded to what is tried; asks for an echo by the path it came on.
    Probe(Probe),
    Echo(Echo),
    /// Asks for the signature that ties this tunnel to a node.
    Prove {
        nonce: [u8; 32],
    },
    Proof {
        nonce: [u8; 32],
        signature: [u8; 64],
    },
    /// Of a sibling: it has died, or cannot be heard from where we both are.
    Word(Word),
    /// To the accused; any answer clears it.
    Question {
        id: u64,
    },
    Answer {
        id: u64,
    },
    /// Between siblings: the sites that the sender does not reach itself.
    Lost(Lost),
    /// Where the sender may be found now; asks the receiver to try these at once.
    Candidates {
        addresses: Vec<SocketAddr>,
    },
    /// What the sender knows of the mesh.
    Digest(Digest),
    /// Asks for what the sender of a digest has more.
    Want(Want),
    /// A piece of a [`Handover`] that is too large for one message.
    Part(Part),
    /// `causeway ping`.
    Ping {
        id: u64,
    },
    Pong {
        id: u64,
    },
    /// Two machines speak with the receiver's key: the sender takes nothing from either. Goes with
    /// each hello for as long as that is so.
    TwoOfOneKey,
}

/// Sent one way and never answered as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Another one after every start of the sender.
    pub boot: u64,
    /// Counts the hellos of this boot on this link.
    pub number: u64,
    /// Milliseconds until the next at the latest.
    pub interval: u16,
    /// The last of the receiver's hellos; `None` if none came, or if the receiver has not proven
    /// yet who it is.
    pub heard: Option<Heard>,
    /// Whether the link is up for the sender: what the receiver sends through it is taken.
    pub carries: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Heard {
    pub boot: u64,
    pub number: u64,
    /// Milliseconds since anything was opened that came from the receiver.
    pub age: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Probe {
    pub nonce: u64,
    /// The inner packet's length, padding included: a shortened one is not echoed.
    pub size: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Echo {
    pub nonce: u64,
    /// Where the probe came from, as the sender of the echo saw it.
    pub seen_as: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Word {
    /// Identity of the sibling that is accused.
    pub accused: [u8; 32],
    /// The boot that died; another one is not meant.
    pub boot: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lost {
    /// Reaches none at all.
    pub all: bool,
    /// Which tags this message speaks of, both ends included; many go in several messages.
    pub span: (u64, u64),
    /// First bytes of the hashes of their names ([`site_tag`]); with `all` it is empty.
    pub sites: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Digest {
    pub heads: Vec<[u8; 32]>,
    /// Over all {identity, sequence} of records in good standing.
    pub records: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Want {
    pub heads: Vec<[u8; 32]>,
    /// The records wanted: all that the asker lacks or has older, told by first bytes of the
    /// identity and the sequence it has. Empty asks for none; in several messages if long.
    pub have: Vec<(u64, u64)>,
    /// Which identities this message speaks of: from this first byte of the identity to that one.
    pub span: (u8, u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Part {
    /// Of the whole; the sender's choice.
    pub id: u64,
    pub index: u16,
    pub count: u16,
    pub bytes: Vec<u8>,
}

/// What is put together from parts: blobs that prove themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Handover {
    /// Ledger entries, parents first.
    pub entries: Vec<Vec<u8>>,
    /// [`crate::record::Member::write`].
    pub members: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    #[error("not a control packet between these two nodes")]
    Packet,
    #[error("a control message of another version")]
    Version,
    #[error("a control message that cannot be read")]
    Message,
}

/// The link-local address of a node inside tunnels.
pub fn address_of(identity: &PublicKey) -> Ipv6Addr {
    let hash = Hash::of(Domain::ControlAddress, identity.as_bytes());
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&hash.0[..8]);
    octets.into()
}

/// Stands for a site's name where room is short.
pub fn site_tag(name: &str) -> u64 {
    let hash = Hash::of(Domain::SiteTag, name.as_bytes());
    u64::from_be_bytes(std::array::from_fn(|at| hash.0[at]))
}

/// The inner packet for a message, padded with zeros to `size` bytes if it is shorter.
pub fn packet(control: &Control, from: &PublicKey, to: &PublicKey, size: usize) -> Vec<u8> {
    let message = codec::encode(control).unwrap_or_default();
    debug_assert!(
        message.len() <= MAX_MESSAGE,
        "a control message of {} bytes",
        message.len()
    );
    let length = (IPV6 + UDP + HEAD + message.len()).max(size.min(MAX_PACKET));
    let udp_length = (length - IPV6) as u16;
    let mut packet = vec![0; length];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&udp_length.to_be_bytes());
    packet[6..8].copy_from_slice(&[NEXT_HEADER_UDP, HOP_LIMIT]);
    packet[8..24].copy_from_slice(&address_of(from).octets());
    packet[24..40].copy_from_slice(&address_of(to).octets());
    packet[40..42].copy_from_slice(&PORT.to_be_bytes());
    packet[42..44].copy_from_slice(&PORT.to_be_bytes());
    packet[44..46].copy_from_slice(&udp_length.to_be_bytes());
    packet[48] = VERSION;
    packet[49..51].copy_from_slice(&(message.len() as u16).to_be_bytes());
    packet[51..51 + message.len()].copy_from_slice(&message);
    let sum = checksum(&packet);
    packet[46..48].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The message of an inner packet that came through the tunnel of `from`. The tag of the tunnel
/// vouches for its bytes, so that the UDP checksum is not looked at.
pub fn read(packet: &[u8], from: &PublicKey, to: &PublicKey) -> Result<Control, ControlError> {
    let is_between = packet.len() >= IPV6 + UDP + HEAD
        && packet.len() <= MAX_PACKET
        && packet[0] >> 4 == 6
        && usize::from(u16::from_be_bytes([packet[4], packet[5]])) == packet.len() - IPV6
        && packet[6] == NEXT_HEADER_UDP
        && packet[8..24] == address_of(from).octets()
        && packet[24..40] == address_of(to).octets()
        && packet[42..44] == PORT.to_be_bytes();
    if !is_between {
        return Err(ControlError::Packet);
    }
    if packet[48] != VERSION {
        return Err(ControlError::Version);
    }
    let length = usize::from(u16::from_be_bytes([packet[49], packet[50]]));
    let message = packet
        .get(51..51 + length)
        .filter(|_| length <= MAX_MESSAGE);
    codec::decode(message.ok_or(ControlError::Message)?).map_err(|_| ControlError::Message)
}

/// Whether a packet may be read some milliseconds later: a hello or a digest, of which large meshes
/// are full at rest. Nothing of it is verified.
pub fn may_wait(packet: &[u8]) -> bool {
    const HELLO: u8 = 0;
    const DIGEST: u8 = 12;
    packet.get(48) == Some(&VERSION) && matches!(packet.get(51), Some(&(HELLO | DIGEST)))
}

/// Ties a tunnel, named by both WireGuard keys, to the node that signs; `nonce` is the asker's.
pub fn prove(
    key: &SigningKey,
    prover: &WireguardKey,
    asker: &WireguardKey,
    nonce: &[u8; 32],
) -> Signature {
    key.sign(Domain::Tunnel, &tunnel(prover, asker, nonce))
}

pub fn check_proof(
    identity: &PublicKey,
    prover: &WireguardKey,
    asker: &WireguardKey,
    nonce: &[u8; 32],
    signature: &Signature,
) -> bool {
    identity
        .verify(Domain::Tunnel, &tunnel(prover, asker, nonce), signature)
        .is_ok()
}

fn tunnel(prover: &WireguardKey, asker: &WireguardKey, nonce: &[u8; 32]) -> Vec<u8> {
    [prover.as_bytes().as_slice(), asker.as_bytes(), nonce].concat()
}

/// RFC 1071 over the pseudo-header and the datagram; 0 is written as its other form.
fn checksum(packet: &[u8]) -> u16 {
    let pseudo = u32::from(NEXT_HEADER_UDP) + (packet.len() - IPV6) as u32;
    let words = packet[8..].chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    let mut sum: u32 = words.fold(pseudo, |sum, word| sum.wrapping_add(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}
