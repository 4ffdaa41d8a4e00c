//! What a node signs about itself: its keys, where it can be reached, what it can do. Prefixes are
//! not among it: those are the ledger's to give.

use std::net::{IpAddr, SocketAddr};

use crate::blob::{BlobError, Reader, Writer};
use crate::entry::Role;
use crate::key::{
    BadSignature, Domain, Hash, MeshId, PublicKey, Signature, SigningKey, WireguardKey,
};
use crate::name::Name;

const VERSION: u8 = 1;
const SIGNATURE: usize = 64;
pub const MAX_CANDIDATES: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub mesh: MeshId,
    pub site: Name,
    pub node: Name,
    pub role: Role,
    pub identity: PublicKey,
    /// Each record of an identity has a higher one than the last; receivers never go back.
    pub sequence: u64,
    /// Unix seconds by the node's clock; for people, nothing is decided by it.
    pub issued: u64,
    pub state: NodeState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    Present(Presence),
    /// The node has left; its name is free.
    Withdrawn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    pub wireguard: WireguardKey,
    /// The key that comes next, for a change without loss.
    pub next_wireguard: Option<WireguardKey>,
    pub candidates: Vec<SocketAddr>,
    pub lan_address: Option<IpAddr>,
    pub region: String,
    pub zone: String,
    /// A set of bits, so that what is not known here does no harm.
    pub capabilities: Capabilities,
}

/// What a node can do or asks for. Unknown bits are kept and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    pub const LANES: Capabilities = Capabilities(1);
    /// No data with this node but through lanes.
    pub const DEMANDS_LANES: Capabilities = Capabilities(2);
    pub const RELAY: Capabilities = Capabilities(4);

    pub fn has(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }
}

/// A record as its bytes: payload, then signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    bytes: Vec<u8>,
    record: Record,
}

impl Record {
    /// `key` is the identity that the record names.
    pub fn sign(self, key: &SigningKey) -> SignedRecord {
        debug_assert_eq!(self.identity, key.public());
        let mut bytes = self.payload();
        let signature = key.sign(Domain::Record, &bytes);
        bytes.extend_from_slice(&signature.0);
        SignedRecord {
            bytes,
            record: self,
        }
    }

    pub fn presence(&self) -> Option<&Presence> {
        match &self.state {
            NodeState::Present(presence) => Some(presence),
            NodeState::Withdrawn => None,
        }
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION)
            .hash(&self.mesh)
            .name(&self.site)
            .name(&self.node)
            .u8(match self.role {
                Role::Gateway => 0,
                Role::Agent => 1,
            })
            .key(&self.identity)
            .u64(self.sequence)
            .u64(self.issued);
        match &self.state {
            NodeState::Present(presence) => presence.write(out.u8(0)),
            NodeState::Withdrawn => out.u8(1),
        };
        out.finish()
    }

    fn read(payload: &[u8]) -> Result<Record, BlobError> {
        let mut from = Reader::new(payload);
        match from.u8()? {
            VERSION => {}
            other => return Err(BlobError::Version(other)),
        }
        let record = Record {
            mesh: from.hash()?,
            site: from.name("site name")?,
            node: from.name("node name")?,
            role: match from.u8()? {
                0 => Role::Gateway,
                1 => Role::Agent,
                _ => return Err(BlobError::Field("role")),
            },
            identity: from.key("identity")?,
            sequence: from.u64()?,
            issued: from.u64()?,
            state: match from.u8()? {
                0 => NodeState::Present(Presence::read(&mut from)?),
                1 => NodeState::Withdrawn,
                _ => return Err(BlobError::Field("state")),
            },
        };
        from.finish()?;
        Ok(record)
    }
}

impl Presence {
    fn write<'a>(&self, out: &'a mut Writer) -> &'a mut Writer {
        out.wireguard_key(&self.wireguard)
            .option(self.next_wireguard, |out, key| out.wireguard_key(&key))
            .list(&self.candidates, |out, candidate| {
                out.endpoint(*candidate);
            })
            .option(self.lan_address, |out, address| out.address(address))
            .text(&self.region)
            .text(&self.zone)
            .u64(self.capabilities.0)
    }

    fn read(from: &mut Reader<'_>) -> Result<Presence, BlobError> {
        Ok(Presence {
            wireguard: from.wireguard_key("WireGuard key")?,
            next_wireguard: from.option("next WireGuard key", |from| {
                from.wireguard_key("next WireGuard key")
            })?,
            candidates: from.list("candidate addresses", MAX_CANDIDATES, |from| {
                from.endpoint("candidate address")
            })?,
            lan_address: from.option("LAN address", |from| from.address("LAN address"))?,
            region: from.text("region")?,
            zone: from.text("zone")?,
            capabilities: Capabilities(from.u64()?),
        })
    }
}

impl SignedRecord {
    /// Reads the form only; [`SignedRecord::verify`] says whether it was signed.
    pub fn read(bytes: &[u8]) -> Result<SignedRecord, BlobError> {
        let length = bytes.len().checked_sub(SIGNATURE).ok_or(BlobError::Short)?;
        Ok(SignedRecord {
            record: Record::read(&bytes[..length])?,
            bytes: bytes.to_owned(),
        })
    }

    /// By the identity that the record names.
    pub fn verify(&self) -> Result<(), BadSignature> {
        let (payload, signature) = self.bytes.split_at(self.bytes.len() - SIGNATURE);
        let signature = Signature(signature.try_into().map_err(|_| BadSignature)?);
        self.record
            .identity
            .verify(Domain::Record, payload, &signature)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// A record with the enrolment it rests on: what is published, stored and spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The bytes of an [`crate::enrolment::Enrolment`].
    pub enrolment: Vec<u8>,
    /// The bytes of a [`SignedRecord`].
    pub record: Vec<u8>,
}

impl Member {
    /// Of both blobs: what has been verified is remembered by it.
    pub fn hash(&self) -> Hash {
        Hash::of(Domain::Verified, &self.write())
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&self.enrolment).bytes(&self.record);
        out.finish()
    }

    pub fn read(bytes: &[u8]) -> Result<Member, BlobError> {
        let mut from = Reader::new(bytes);
        let member = Member {
            enrolment: from.bytes()?.to_owned(),
            record: from.bytes()?.to_owned(),
        };
        from.finish()?;
        Ok(member)
    }
}
