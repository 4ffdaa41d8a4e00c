//! Which publication is taken: the same answer for every store.

use proto::blob::{BlobError, Reader, Writer};
use proto::key::PublicKey;
use proto::name::Name;

use super::Publication;

const VERSION: u8 = 1;

/// What is kept with a record, so that its successor can be judged without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberRow {
    pub(super) sequence: u64,
    pub(super) withdrawn: bool,
    pub(super) site: Name,
    pub(super) node: Name,
    pub(super) bytes: Vec<u8>,
}

/// What a publication meets.
pub(super) struct Found<'a> {
    pub(super) member: Option<&'a MemberRow>,
    /// The sequence number of a record of this identity that was forgotten.
    pub(super) mark: Option<u64>,
    /// Whose the publication's name is.
    pub(super) holder: Option<PublicKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Same,
    Old { sequence: u64 },
    NameHeld { holder: PublicKey },
    Take(Take),
}

/// What is written with a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Take {
    /// The name that this identity held and gives up.
    pub(super) frees: Option<(Name, Name)>,
    pub(super) takes_name: bool,
    pub(super) displaces: Option<PublicKey>,
}

pub(super) fn judge(found: &Found<'_>, publication: &Publication) -> Judgement {
    if let Some(member) = found.member {
        if member.bytes == publication.bytes {
            return Judgement::Same;
        }
        if publication.sequence <= member.sequence {
            return Judgement::Old {
                sequence: member.sequence,
            };
        }
    }
    if let Some(sequence) = found.mark
        && publication.sequence <= sequence
    {
        return Judgement::Old { sequence };
    }
    let mut displaces = None;
    if !publication.withdrawn
        && let Some(holder) = found.holder
        && holder != publication.identity
    {
        if publication.takes_over != Some(holder) {
            return Judgement::NameHeld { holder };
        }
        displaces = Some(holder);
    }
    Judgement::Take(Take {
        frees: found
            .member
            .filter(|member| !member.withdrawn)
            .filter(|member| publication.withdrawn || !same_name(member, publication))
            .map(|member| (member.site.clone(), member.node.clone())),
        takes_name: !publication.withdrawn,
        displaces,
    })
}

fn same_name(member: &MemberRow, publication: &Publication) -> bool {
    member.site == publication.site && member.node == publication.node
}

impl MemberRow {
    pub(super) fn of(publication: &Publication) -> MemberRow {
        MemberRow {
            sequence: publication.sequence,
            withdrawn: publication.withdrawn,
            site: publication.site.clone(),
            node: publication.node.clone(),
            bytes: publication.bytes.clone(),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION)
            .u64(self.sequence)
            .u8(u8::from(self.withdrawn))
            .name(&self.site)
            .name(&self.node)
            .bytes(&self.bytes);
        out.finish()
    }

    pub(super) fn read(bytes: &[u8]) -> Result<MemberRow, BlobError> {
        let mut from = Reader::new(bytes);
        match from.u8()? {
            VERSION => {}
            other => return Err(BlobError::Version(other)),
        }
        let row = MemberRow {
            sequence: from.u64()?,
            withdrawn: match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(BlobError::Field("state")),
            },
            site: from.name("site name")?,
            node: from.name("node name")?,
            bytes: from.bytes()?.to_owned(),
        };
        from.finish()?;
        Ok(row)
    }
}
