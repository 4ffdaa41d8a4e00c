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
