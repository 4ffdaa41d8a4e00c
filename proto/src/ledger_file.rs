//! The ledger as a plain text file: a first line that names it, then one signed entry a line in
//! base64url. Reading and writing the disk is its owner's matter.

use data_encoding::BASE64URL_NOPAD;
use thiserror::Error;

use crate::blob::BlobError;
use crate::entry::SignedEntry;

/// The first line.
pub const HEADER: &str = "causeway ledger 1";
const FAMILY: &str = "causeway ledger ";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub entries: Vec<SignedEntry>,
    /// The last line has no end, as when the power failed while it was written. If what is there
    /// of it is a whole entry, it is among `entries`. Either way the file must be written anew
    /// from `entries` (see [`text`]) before anything is appended.
    pub torn_tail: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LedgerFileError {
    #[error("it is no ledger file: its first line is not \"{HEADER}\"")]
    Header,
    #[error("it was written by a newer Causeway; upgrade this one")]
    Newer,
    #[error("its line {0} is not in base64url; restore the file from a copy or a broker")]
    Encoding(usize),
    #[error(
        "its line {line} holds no ledger entry: {why}; restore the file from a copy or a broker"
    )]
    Entry { line: usize, why: BlobError },
}

/// One entry's line, with its end.
pub fn line(entry: &SignedEntry) -> String {
    let mut line = BASE64URL_NOPAD.encode(entry.bytes());
    line.push('\n');
    line
}

/// A whole file.
pub fn text<'a>(entries: impl IntoIterator<Item = &'a SignedEntry>) -> String {
    let mut text = format!("{HEADER}\n");
    for entry in entries {
        text.push_str(&line(entry));
    }
    text
}

/// Reads the form only: signatures and order are the ledger's to check. Takes bytes, since a torn
/// line may hold anything.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Parsed, LedgerFileError> {
    let mut rest = text.as_ref();
    let header = take_line(&mut rest).ok_or(LedgerFileError::Header)?;
    check_header(header)?;
    let mut entries = Vec::new();
    let mut number = 1;
    while let Some(line) = take_line(&mut rest) {
        number += 1;
        entries.push(read_line(line, number)?);
    }
    let torn_tail = !rest.is_empty();
    if let Ok(entry) = read_line(rest, number + 1) {
        entries.push(entry);
    }
    Ok(Parsed { entries, torn_tail })
}

fn check_header(header: &[u8]) -> Result<(), LedgerFileError> {
    if header == HEADER.as_bytes() {
        return Ok(());
    }
    let newer = std::str::from_utf8(header)
        .ok()
        .and_then(|header| header.strip_prefix(FAMILY))
        .and_then(|version| version.parse::<u32>().ok())
        .is_some_and(|version| version > 1);
    Err(if newer {
        LedgerFileError::Newer
    } else {
        LedgerFileError::Header
    })
}

/// Up to the next end of a line; `None`, taking nothing, if there is none.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let (line, after) = (&rest[..end], &rest[end + 1..]);
    *rest = after;
    Some(line)
}

fn read_line(line: &[u8], number: usize) -> Result<SignedEntry, LedgerFileError> {
    let bytes = BASE64URL_NOPAD
        .decode(line)
        .map_err(|_| LedgerFileError::Encoding(number))?;
    SignedEntry::read(&bytes).map_err(|why| LedgerFileError::Entry { line: number, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Body, Entry};
    use crate::key::SigningKey;
    use crate::ledger::Ledger;
    use proptest::prelude::*;

    fn entries() -> Vec<SignedEntry> {
        let key = SigningKey::from_seed(&[1; 32]);
        let first =
            Ledger::genesis(5, key.public(), &SigningKey::from_seed(&[2; 32]).public()).sign(&key);
        let second = Entry {
            number: 1,
            previous: first.hash(),
            issued: 6,
            body: Body::SiteRevoked {
                site: "a".parse().unwrap(),
            },
        }
        .sign(&key);
        vec![first, second]
    }

    fn parsed(entries: &[SignedEntry], torn_tail: bool) -> Result<Parsed, LedgerFileError> {
        Ok(Parsed {
            entries: entries.to_vec(),
            torn_tail,
        })
    }

    #[test]
    fn what_was_written_is_read_again() {
        let entries = entries();
        let whole = text(&entries);
        assert!(whole.starts_with("causeway ledger 1\n"));
        assert_eq!(whole.lines().count(), 3);
        assert_eq!(parse(&whole), parsed(&entries, false));
        assert_eq!(parse(text(&[])), parsed(&[], false));
        assert_eq!(
            whole,
            format!("{HEADER}\n{}{}", line(&entries[0]), line(&entries[1]))
        );
    }

    #[test]
    fn a_tail_torn_anywhere_costs_only_its_own_line() {
        let entries = entries();
        let whole = text(&entries);
        let kept = text(&entries[..1]).len();
        for cut in kept + 1..whole.len() - 1 {
            assert_eq!(parse(&whole[..cut]), parsed(&entries[..1], true), "{cut}");
        }
        assert_eq!(parse(&whole[..kept]), parsed(&entries[..1], false));
        // Only the end of the line is missing.
        assert_eq!(parse(&whole[..whole.len() - 1]), parsed(&entries, true));
        let mut zeros = whole.clone().into_bytes();
        zeros.extend([0, 0, 0xff]);
        assert_eq!(parse(zeros), parsed(&entries, true));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let whole = text(&entries());
        let damaged = whole.replacen('\n', "\n!", 1);
        assert_eq!(parse(damaged), Err(LedgerFileError::Encoding(2)));
        let empty = format!("{whole}\n");
        assert_eq!(
            parse(empty),
            Err(LedgerFileError::Entry {
                line: 4,
                why: BlobError::Short
            })
        );
    }

    #[test]
    fn another_file_is_refused_and_a_newer_one_named_as_such() {
        assert_eq!(parse(""), Err(LedgerFileError::Header));
        assert_eq!(parse("causeway ledger 1"), Err(LedgerFileError::Header));
        assert_eq!(parse("# notes\n"), Err(LedgerFileError::Header));
        assert_eq!(parse("causeway ledger 0\n"), Err(LedgerFileError::Header));
        assert_eq!(parse("causeway ledger 2\n"), Err(LedgerFileError::Newer));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut file = format!("{HEADER}\n").into_bytes();
            file.extend(&bytes);
            if let Ok(parsed) = parse(&file) {
                prop_assert!(parsed.torn_tail || parsed.entries.is_empty());
            }
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
