//! The lines of a node's cache: what it has verified, and how far it has come. Everything read
//! from it is verified again, so that whoever can write the file can at most make it forget.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use proto::key::PublicKey;
use proto::message::Position;

use crate::stores::StoreName;

/// How far ahead of what is proven a broker's word about our number is believed: a false one must
/// not use the numbers up.
pub(crate) const MAX_LEAP: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A signed ledger entry.
    Entry(Vec<u8>),
    /// A record with its enrolment.
    Member(Vec<u8>),
    /// The last record this node has signed about itself; written before it is sent.
    Own(Vec<u8>),
    /// The highest sequence seen of an identity.
    Sequence(PublicKey, u64),
    /// For how many seconds brokers that could be reached have not listed an identity.
    Absent(PublicKey, u64),
    /// The record of an identity is no longer kept; its sequence is.
    Forgotten(PublicKey),
    /// All up to this position of a store has been taken, at this time in unix seconds. Caches of
    /// before there were several name none; nothing is resumed from those.
    Synced(Option<StoreName>, Position, u64),
    /// A store does not list an identity whose record is kept.
    Unlisted(StoreName, PublicKey),
    /// It does again.
    Listed(StoreName, PublicKey),
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Entry(bytes) => write!(out, "entry {}", BASE64URL_NOPAD.encode(bytes)),
            Line::Member(bytes) => write!(out, "member {}", BASE64URL_NOPAD.encode(bytes)),
            Line::Own(bytes) => write!(out, "own {}", BASE64URL_NOPAD.encode(bytes)),
            Line::Sequence(identity, sequence) => write!(out, "sequence {identity} {sequence}"),
            Line::Absent(identity, seconds) => write!(out, "absent {identity} {seconds}"),
            Line::Forgotten(identity) => write!(out, "forgotten {identity}"),
            Line::Synced(store, position, at) => {
                out.write_str("synced ")?;
                if let Some(store) = store {
                    write!(out, "{store} ")?;
                }
                let epoch = HEXLOWER.encode(&position.epoch);
                write!(out, "{epoch} {} {at}", position.revision)
            }
            Line::Unlisted(store, identity) => write!(out, "unlisted {store} {identity}"),
            Line::Listed(store, identity) => write!(out, "listed {store} {identity}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownLine;

impl FromStr for Line {
    type Err = UnknownLine;

    fn from_str(text: &str) -> Result<Line, UnknownLine> {
        let words: Vec<&str> = text.split(' ').collect();
        Ok(match words.as_slice() {
            ["entry", bytes] => Line::Entry(blob(bytes)?),
            ["member", bytes] => Line::Member(blob(bytes)?),
            ["own", bytes] => Line::Own(blob(bytes)?),
            ["sequence", identity, sequence] => Line::Sequence(parse(identity)?, parse(sequence)?),
            ["absent", identity, seconds] => Line::Absent(parse(identity)?, parse(seconds)?),
            ["forgotten", identity] => Line::Forgotten(parse(identity)?),
            ["synced", epoch, revision, at] => {
                Line::Synced(None, position(epoch, revision)?, parse(at)?)
            }
            ["synced", store, epoch, revision, at] => {
                let position = position(epoch, revision)?;
                Line::Synced(Some(parse(store)?), position, parse(at)?)
            }
            ["unlisted", store, identity] => Line::Unlisted(parse(store)?, parse(identity)?),
            ["listed", store, identity] => Line::Listed(parse(store)?, parse(identity)?),
            _ => return Err(UnknownLine),
        })
    }
}

/// The sequence number of a record of ours.
pub(crate) fn own_sequence(member: &[u8]) -> Option<u64> {
    let member = proto::record::Member::read(member).ok()?;
    let record = proto::record::SignedRecord::read(&member.record).ok()?;
    Some(record.record().sequence)
}

fn blob(text: &str) -> Result<Vec<u8>, UnknownLine> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| UnknownLine)
}

fn position(epoch: &str, revision: &str) -> Result<Position, UnknownLine> {
    let epoch = HEXLOWER.decode(epoch.as_bytes()).map_err(|_| UnknownLine)?;
    Ok(Position {
        epoch: epoch.try_into().map_err(|_| UnknownLine)?,
        revision: parse(revision)?,
    })
}

fn parse<T: FromStr>(text: &str) -> Result<T, UnknownLine> {
    text.parse().map_err(|_| UnknownLine)
}

#[cfg(test)]
mod tests {
    use proto::entry::StoreId;
    use proto::key::SigningKey;

    use super::*;

    #[test]
    fn every_line_reads_as_it_was_written() {
        let identity = SigningKey::from_seed(&[7; 32]).public();
        let position = Position {
            epoch: [0xab; 16],
            revision: 12,
        };
        let stores = [
            StoreName::Known(StoreId([0xcd; 16])),
            StoreName::Of(identity),
        ];
        for line in [
            Line::Entry(vec![1, 2, 3]),
            Line::Member(vec![]),
            Line::Own(vec![0xff; 40]),
            Line::Sequence(identity, u64::MAX),
            Line::Absent(identity, 3600),
            Line::Forgotten(identity),
            Line::Synced(None, position, 1_800_000_000),
            Line::Synced(Some(stores[0]), position, 1_800_000_000),
            Line::Synced(Some(stores[1]), position, 1_800_000_000),
            Line::Unlisted(stores[0], identity),
            Line::Listed(stores[1], identity),
        ] {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
    }

    #[test]
    fn a_line_of_another_kind_is_no_line() {
        for text in [
            "",
            "entry",
            "entry !",
            "member a b",
            "sequence x 1",
            "synced ab 1 2",
            "synced broker:x 00000000000000000000000000000000 1 2",
            "listed ab x",
        ] {
            assert_eq!(text.parse::<Line>(), Err(UnknownLine), "{text:?}");
        }
    }
}
