//! The first frame of either side. Its form never changes, so that any two versions can tell each
//! other which ones they speak.

use thiserror::Error;

use crate::blob::{BlobError, Reader, Writer};
use crate::key::MeshId;

const MAGIC: [u8; 4] = *b"cwy\0";
/// What this build speaks.
pub const SPOKEN: Versions = Versions { least: 1, most: 1 };
/// Shorter than any frame an unknown caller may send.
pub const MAX_HELLO: usize = 128;
/// The TLS application protocol.
pub const ALPN: &[u8] = b"causeway";
/// The label of the TLS exporter that callers sign.
pub const EXPORTER: &[u8] = b"EXPORTER-causeway-session";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub least: u16,
    pub most: u16,
}

/// Of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub versions: Versions,
    pub mesh: MeshId,
}

/// Of the broker. Fields that a later version adds follow and are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub versions: Versions,
    /// All zeros while the broker has no ledger.
    pub mesh: MeshId,
    /// The broker's wall clock, unix seconds: a caller can tell that its own is off.
    pub now: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HelloError {
    #[error("it does not speak Causeway's protocol")]
    Foreign,
    #[error("its hello cannot be read: {0}")]
    Form(#[from] BlobError),
    #[error(
        "it speaks versions {} to {} of the protocol, this Causeway {} to {}; upgrade the older one",
        .theirs.least, .theirs.most, .ours.least, .ours.most
    )]
    NoCommonVersion { ours: Versions, theirs: Versions },
}

impl Versions {
    /// The highest that both speak.
    pub fn agree(self, theirs: Versions) -> Result<u16, HelloError> {
        let most = self.most.min(theirs.most);
        if most >= self.least && most >= theirs.least {
            Ok(most)
        } else {
            Err(HelloError::NoCommonVersion { ours: self, theirs })
        }
    }
}

impl Hello {
    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        write_start(&mut out, self.versions);
        out.hash(&self.mesh);
        out.finish()
    }

    /// What follows the fields known here is for later versions.
    pub fn read(bytes: &[u8]) -> Result<Hello, HelloError> {
        let mut from = Reader::new(bytes);
        Ok(Hello {
            versions: read_start(&mut from)?,
            mesh: from.hash()?,
        })
    }
}

impl Welcome {
    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        write_start(&mut out, self.versions);
        out.hash(&self.mesh).u64(self.now);
        out.finish()
    }

    pub fn read(bytes: &[u8]) -> Result<Welcome, HelloError> {
        let mut from = Reader::new(bytes);
        Ok(Welcome {
            versions: read_start(&mut from)?,
            mesh: from.hash()?,
            now: from.u64()?,
        })
    }
}

fn write_start(out: &mut Writer, versions: Versions) {
    out.raw(&MAGIC).u16(versions.least).u16(versions.most);
}

fn read_start(from: &mut Reader<'_>) -> Result<Versions, HelloError> {
    if from.array::<4>().map_err(|_| HelloError::Foreign)? != MAGIC {
        return Err(HelloError::Foreign);
    }
    let versions = Versions {
        least: from.u16()?,
        most: from.u16()?,
    };
    if versions.least == 0 || versions.least > versions.most {
        return Err(BlobError::Field("version range").into());
    }
    Ok(versions)
}
