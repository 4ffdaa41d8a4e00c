//! What a node signs about itself: its keys, where it can be reached, what it can do. Prefixes are
//! not among it: those are the ledger's to give.

use std::net::{IpAddr, SocketAddr};

use crate::blob::{BlobError, Reader, Writer, is_plain};
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
    /// An agent that is reached by VXLAN.
    pub const VXLAN: Capabilities = Capabilities(8);

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
    /// Whether others could read it once it is signed: callers who take texts and addresses from
    /// people ask first.
    pub fn check_form(&self) -> Result<(), BlobError> {
        if let Some(presence) = self.presence() {
            if !is_plain(&presence.region) {
                return Err(BlobError::Field("region"));
            }
            if !is_plain(&presence.zone) {
                return Err(BlobError::Field("zone"));
            }
            if presence.candidates.len() > MAX_CANDIDATES {
                return Err(BlobError::Field("candidate addresses"));
            }
        }
        Record::read(&self.payload()).map(|_| ())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[5; 32])
    }

    fn record() -> Record {
        Record {
            mesh: Hash([1; 32]),
            site: "paris".parse().unwrap(),
            node: "gate-1".parse().unwrap(),
            role: Role::Gateway,
            identity: key().public(),
            sequence: 3,
            issued: 4,
            state: NodeState::Present(Presence {
                wireguard: WireguardKey::new([9; 32]).unwrap(),
                next_wireguard: Some(WireguardKey::new([10; 32]).unwrap()),
                candidates: vec![
                    "198.51.100.7:51820".parse().unwrap(),
                    "[2001:db8::7]:51820".parse().unwrap(),
                ],
                lan_address: Some("10.0.0.7".parse().unwrap()),
                region: "eu-west".to_owned(),
                zone: String::new(),
                capabilities: Capabilities::LANES.with(Capabilities(1 << 63)),
            }),
        }
    }

    fn with(change: impl FnOnce(&mut Presence)) -> Record {
        let mut record = record();
        if let NodeState::Present(presence) = &mut record.state {
            change(presence);
        }
        record
    }

    #[test]
    fn a_record_reads_back_and_holds() {
        let mut withdrawn = record();
        withdrawn.state = NodeState::Withdrawn;
        for record in [record(), withdrawn] {
            let signed = record.clone().sign(&key());
            let read = SignedRecord::read(signed.bytes()).unwrap();
            assert_eq!(read, signed);
            assert_eq!(*read.record(), record);
            read.verify().unwrap();
        }
    }

    #[test]
    fn with_any_bit_flipped_it_does_not_hold() {
        let signed = record().sign(&key());
        for bit in 0..signed.bytes().len() * 8 {
            let mut changed = signed.bytes().to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let holds = SignedRecord::read(&changed).is_ok_and(|read| read.verify().is_ok());
            assert!(!holds, "bit {bit}");
        }
    }

    #[test]
    fn what_is_not_known_of_capabilities_is_kept_and_harmless() {
        let signed = record().sign(&key());
        let read = SignedRecord::read(signed.bytes()).unwrap();
        let capabilities = read.record().presence().unwrap().capabilities;
        assert!(capabilities.has(Capabilities::LANES));
        assert!(!capabilities.has(Capabilities::DEMANDS_LANES));
        assert!(capabilities.has(Capabilities(1 << 63)));
    }

    #[test]
    fn what_nobody_could_read_is_told_before_it_is_signed() {
        record().check_form().unwrap();
        for (record, field) in [
            (with(|p| p.region = "r".repeat(300)), "region"),
            (with(|p| p.region = " west".to_owned()), "region"),
            (with(|p| p.zone = "a\x1b[2J".to_owned()), "zone"),
            (
                with(|p| p.candidates = vec!["192.0.2.1:0".parse().unwrap()]),
                "candidate address",
            ),
            (
                with(|p| p.candidates = vec!["192.0.2.1:1".parse().unwrap(); MAX_CANDIDATES + 1]),
                "candidate addresses",
            ),
        ] {
            assert_eq!(record.check_form(), Err(BlobError::Field(field)));
        }
    }

    #[test]
    fn an_address_shown_mapped_is_written_in_its_own_form() {
        let mapped = with(|p| {
            p.candidates = vec!["[::ffff:198.51.100.7]:51820".parse().unwrap()];
        });
        let signed = mapped.sign(&key());
        let read = SignedRecord::read(signed.bytes()).unwrap();
        assert_eq!(
            read.record().presence().unwrap().candidates,
            ["198.51.100.7:51820".parse().unwrap()]
        );
    }

    #[test]
    fn a_member_reads_back_and_its_hash_tells_any_two_apart() {
        let member = Member {
            enrolment: vec![1, 2],
            record: vec![3],
        };
        assert_eq!(Member::read(&member.write()), Ok(member.clone()));
        let shifted = Member {
            enrolment: vec![1],
            record: vec![2, 3],
        };
        assert_ne!(member.hash(), shifted.hash());
        for length in 0..member.write().len() {
            Member::read(&member.write()[..length]).unwrap_err();
        }
    }
}
