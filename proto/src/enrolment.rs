//! How a node came to be one: grant, one-time join key, identity, and the store that counted it.

use thiserror::Error;

use crate::blob::{BlobError, Reader, Writer};
use crate::entry::Grant;
use crate::key::{BadSignature, Domain, Hash, MeshId, PublicKey, Signature, SigningKey};

const VERSION: u8 = 1;

/// What a joiner shows: the join key and the identity have both signed {mesh, grant, identity}.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinProof {
    pub mesh: MeshId,
    pub grant: Hash,
    pub identity: PublicKey,
    /// By the one-time join key.
    pub join: Signature,
    /// By the identity.
    pub consent: Signature,
}

/// A join that a store has counted. Part of every record's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    pub proof: JoinProof,
    /// Which of the grant's uses this is, from 0.
    pub use_number: u32,
    /// The broker that signed for the store.
    pub broker: PublicKey,
    pub signature: Signature,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnrolmentError {
    #[error("the enrolment cannot be read: {0}")]
    Form(#[from] BlobError),
    #[error("the token's key did not sign this node's identity")]
    Join,
    #[error("the node's identity did not sign its enrolment")]
    Consent,
    #[error("the broker named in the enrolment did not sign it")]
    Broker,
}

impl JoinProof {
    pub fn sign(
        mesh: MeshId,
        grant: Hash,
        join_key: &SigningKey,
        identity: &SigningKey,
    ) -> JoinProof {
        let statement = statement(&mesh, &grant, &identity.public());
        JoinProof {
            mesh,
            grant,
            identity: identity.public(),
            join: join_key.sign(Domain::Join, &statement),
            consent: identity.sign(Domain::Consent, &statement),
        }
    }

    /// Checks both signatures; that `grant` is the one named is the caller's to look up.
    pub fn verify(&self, grant: &Grant) -> Result<(), EnrolmentError> {
        let statement = statement(&self.mesh, &self.grant, &self.identity);
        grant
            .join_key
            .verify(Domain::Join, &statement, &self.join)
            .map_err(|BadSignature| EnrolmentError::Join)?;
        self.identity
            .verify(Domain::Consent, &statement, &self.consent)
            .map_err(|BadSignature| EnrolmentError::Consent)
    }

    /// What the store's broker signs once the use is taken.
    pub fn enrol(self, use_number: u32, broker: &SigningKey) -> Enrolment {
        let signature = broker.sign(Domain::Enrolment, &counted(&self, use_number));
        Enrolment {
            proof: self,
            use_number,
            broker: broker.public(),
            signature,
        }
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION)
            .hash(&self.mesh)
            .hash(&self.grant)
            .key(&self.identity)
            .signature(&self.join)
            .signature(&self.consent);
        out.finish()
    }

    pub fn read(bytes: &[u8]) -> Result<JoinProof, BlobError> {
        let mut from = Reader::new(bytes);
        let proof = JoinProof::read_fields(&mut from)?;
        from.finish()?;
        Ok(proof)
    }

    fn read_fields(from: &mut Reader<'_>) -> Result<JoinProof, BlobError> {
        match from.u8()? {
            VERSION => {}
            other => return Err(BlobError::Version(other)),
        }
        Ok(JoinProof {
            mesh: from.hash()?,
            grant: from.hash()?,
            identity: from.key("identity")?,
            join: from.signature()?,
            consent: from.signature()?,
        })
    }
}

impl Enrolment {
    /// Checks all three signatures; that the broker may sign for the grant's store is the
    /// ledger's to say.
    pub fn verify(&self, grant: &Grant) -> Result<(), EnrolmentError> {
        self.proof.verify(grant)?;
        self.broker
            .verify(
                Domain::Enrolment,
                &counted(&self.proof, self.use_number),
                &self.signature,
            )
            .map_err(|BadSignature| EnrolmentError::Broker)
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(&self.proof.write())
            .u32(self.use_number)
            .key(&self.broker)
            .signature(&self.signature);
        out.finish()
    }

    pub fn read(bytes: &[u8]) -> Result<Enrolment, BlobError> {
        let mut from = Reader::new(bytes);
        let enrolment = Enrolment {
            proof: JoinProof::read_fields(&mut from)?,
            use_number: from.u32()?,
            broker: from.key("broker key")?,
            signature: from.signature()?,
        };
        from.finish()?;
        Ok(enrolment)
    }
}

fn statement(mesh: &MeshId, grant: &Hash, identity: &PublicKey) -> Vec<u8> {
    let mut out = Writer::new();
    out.hash(mesh).hash(grant).key(identity);
    out.finish()
}

fn counted(proof: &JoinProof, use_number: u32) -> Vec<u8> {
    let mut out = Writer::new();
    out.hash(&proof.mesh)
        .hash(&proof.grant)
        .u32(use_number)
        .key(&proof.identity);
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{GrantRole, StoreId, Uses};

    const MESH: MeshId = Hash([1; 32]);
    const GRANT: Hash = Hash([2; 32]);

    fn key(number: u8) -> SigningKey {
        SigningKey::from_seed(&[number; 32])
    }

    fn grant() -> Grant {
        Grant {
            site: "paris".parse().unwrap(),
            prefixes: vec![],
            service_prefixes: vec![],
            role: GrantRole::Any,
            not_before: 0,
            not_after: 1,
            uses: Uses::Unlimited,
            join_key: key(3).public(),
            store: StoreId([4; 16]),
        }
    }

    fn proof() -> JoinProof {
        JoinProof::sign(MESH, GRANT, &key(3), &key(5))
    }

    fn enrolment() -> Enrolment {
        proof().enrol(7, &key(6))
    }

    #[test]
    fn a_proof_and_an_enrolment_read_back_and_hold() {
        let read = JoinProof::read(&proof().write()).unwrap();
        assert_eq!(read, proof());
        read.verify(&grant()).unwrap();
        let read = Enrolment::read(&enrolment().write()).unwrap();
        assert_eq!(read, enrolment());
        read.verify(&grant()).unwrap();
    }

    #[test]
    fn with_any_bit_flipped_neither_holds() {
        let refused = |bytes: &[u8], holds: &dyn Fn(&[u8]) -> bool| {
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!holds(&changed), "bit {bit}");
            }
        };
        refused(&proof().write(), &|bytes| {
            JoinProof::read(bytes).is_ok_and(|proof| proof.verify(&grant()).is_ok())
        });
        refused(&enrolment().write(), &|bytes| {
            Enrolment::read(bytes).is_ok_and(|enrolment| enrolment.verify(&grant()).is_ok())
        });
    }

    #[test]
    fn cut_or_grown_anywhere_neither_is_read() {
        let (proof, enrolment) = (proof().write(), enrolment().write());
        for length in 0..proof.len() {
            JoinProof::read(&proof[..length]).unwrap_err();
        }
        for length in 0..enrolment.len() {
            Enrolment::read(&enrolment[..length]).unwrap_err();
        }
        JoinProof::read(&[&proof[..], &[0]].concat()).unwrap_err();
        Enrolment::read(&[&enrolment[..], &[0]].concat()).unwrap_err();
        assert_eq!(
            Enrolment::read(&[2; 400]),
            Err(BlobError::Version(2)),
            "a later version is named as such"
        );
    }

    #[test]
    fn each_signature_is_missed_under_its_own_name() {
        let mut forged = enrolment();
        forged.proof.join = key(5).sign(Domain::Join, b"");
        assert_eq!(forged.verify(&grant()), Err(EnrolmentError::Join));
        let mut forged = enrolment();
        forged.proof.consent = key(3).sign(Domain::Consent, b"");
        assert_eq!(forged.verify(&grant()), Err(EnrolmentError::Consent));
        let mut forged = enrolment();
        forged.use_number += 1;
        assert_eq!(forged.verify(&grant()), Err(EnrolmentError::Broker));
    }

    #[test]
    fn the_join_keys_signature_does_not_pass_for_consent_nor_the_other_way() {
        // A joiner that used one key for both would still need both signatures.
        let mut swapped = JoinProof::sign(MESH, GRANT, &key(3), &key(3));
        swapped.verify(&grant()).unwrap();
        std::mem::swap(&mut swapped.join, &mut swapped.consent);
        assert_eq!(swapped.verify(&grant()), Err(EnrolmentError::Join));
    }

    #[test]
    fn a_proof_for_another_mesh_or_grant_does_not_hold_for_this_one() {
        for (mesh, grant_id) in [(Hash([9; 32]), GRANT), (MESH, Hash([9; 32]))] {
            let mut moved = JoinProof::sign(mesh, grant_id, &key(3), &key(5));
            moved.mesh = MESH;
            moved.grant = GRANT;
            assert_eq!(moved.verify(&grant()), Err(EnrolmentError::Join));
        }
    }
}
