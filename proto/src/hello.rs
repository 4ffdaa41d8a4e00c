//! The first frame of either side. Its form never changes, so that any two versions can tell each
//! other which ones they speak.

use thiserror::Error;

use crate::blob::{BlobError, Reader, Writer};
use crate::key::MeshId;

const MAGIC: [u8; 4] = *b"cwy\0";
/// What this build speaks.
pub const SPOKEN: Versions = Versions { least: 1, most: 2 };
/// The first that has the relay's messages.
pub const WITH_RELAY: u16 = 2;
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

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Versions = Versions { least: 1, most: 1 };
    const NEXT: Versions = Versions { least: 1, most: 2 };

    fn hello(versions: Versions) -> Hello {
        Hello {
            versions,
            mesh: crate::key::Hash([7; 32]),
        }
    }

    fn welcome(versions: Versions) -> Welcome {
        Welcome {
            versions,
            mesh: crate::key::Hash([7; 32]),
            now: 1_700_000_000,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Hello::read(&hello(NEXT).write()), Ok(hello(NEXT)));
        assert_eq!(Welcome::read(&welcome(NEXT).write()), Ok(welcome(NEXT)));
        assert!(hello(NEXT).write().len() <= MAX_HELLO);
        assert!(welcome(NEXT).write().len() <= MAX_HELLO);
    }

    #[test]
    fn this_version_and_the_next_agree_on_this_one_whoever_calls() {
        assert_eq!(OURS.agree(NEXT), Ok(1));
        assert_eq!(NEXT.agree(OURS), Ok(1));
        assert_eq!(NEXT.agree(NEXT), Ok(2));
    }

    #[test]
    fn versions_without_one_in_common_say_which_both_speak() {
        let later = Versions { least: 3, most: 4 };
        for (one, other) in [(OURS, later), (later, OURS)] {
            let refused = one.agree(other).unwrap_err().to_string();
            assert!(
                refused.contains("1 to 1") && refused.contains("3 to 4"),
                "{refused}"
            );
        }
    }

    #[test]
    fn fields_that_a_later_version_adds_are_skipped() {
        let mut later = hello(NEXT).write();
        later.extend_from_slice(b"more, up to what an unknown caller may send");
        assert!(later.len() <= MAX_HELLO);
        assert_eq!(Hello::read(&later), Ok(hello(NEXT)));
        let mut later = welcome(NEXT).write();
        later.extend_from_slice(&[9; 50]);
        assert_eq!(Welcome::read(&later), Ok(welcome(NEXT)));
    }

    #[test]
    fn another_protocol_is_named_as_such() {
        for foreign in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-x", b"", b"cwy"] {
            assert_eq!(Hello::read(foreign), Err(HelloError::Foreign));
            assert_eq!(Welcome::read(foreign), Err(HelloError::Foreign));
        }
    }

    #[test]
    fn a_hello_cut_anywhere_or_with_a_senseless_range_is_refused() {
        let whole = welcome(OURS).write();
        for length in 0..whole.len() {
            Welcome::read(&whole[..length]).unwrap_err();
        }
        for (least, most) in [(0, 0), (0, 1), (2, 1)] {
            Hello::read(&hello(Versions { least, most }).write()).unwrap_err();
        }
    }
}
