//! A ledger as a file: appended to under a lock, on disk before anything else happens. A last line
//! that a crash has cut is named and removed; any other fault is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::entry::SignedEntry;
use proto::key::MeshId;
use proto::ledger::{Inserted, Ledger, LedgerError};
use proto::ledger_file;

use crate::private;

/// How long another command may keep this one waiting.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than any ledger gets: 100,000 entries of the largest kind would be.
const LONGEST: u64 = 2 << 30;

pub(crate) struct LedgerFile {
    path: PathBuf,
    /// Locked while open.
    file: File,
    /// Of the whole lines.
    length: u64,
    ledger: Ledger,
}

/// What came of entries from elsewhere.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) new: usize,
    /// Which, and why.
    pub(crate) refused: Vec<(String, LedgerError)>,
}

/// The ledger of a file that this process does not write. A torn last line is the writer's to
/// repair.
pub(crate) fn read(path: &Path) -> anyhow::Result<Ledger> {
    match read_any(path)? {
        Some(ledger) => Ok(ledger),
        None => bail!("{}: it has no entry at all", damaged(path)),
    }
}

/// The same where the file may have no entry yet.
pub(crate) fn read_any(path: &Path) -> anyhow::Result<Option<Ledger>> {
    let mut file = File::open(path).map_err(|error| private::explain(error, "read", path))?;
    let text = read_bytes(&mut file, path)?;
    let parsed = ledger_file::parse(&text).with_context(|| damaged(path))?;
    if parsed.entries.is_empty() {
        return Ok(None);
    }
    let ledger = ledger_of(&parsed.entries, None).with_context(|| damaged(path))?;
    Ok(Some(ledger))
}

impl LedgerFile {
    /// One that has entries.
    pub(crate) fn open(path: &Path) -> anyhow::Result<LedgerFile> {
        LedgerFile::load(path, None)
    }

    /// One that may be empty, and is then of this mesh: a broker waits for its ledger so.
    pub(crate) fn open_for(path: &Path, mesh: MeshId) -> anyhow::Result<LedgerFile> {
        LedgerFile::load(path, Some(mesh))
    }

    fn load(path: &Path, mesh: Option<MeshId>) -> anyhow::Result<LedgerFile> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(|error| private::explain(error, "open the ledger", path))?;
        lock(&file, path)?;
        let text = read_bytes(&mut file, path)?;
        let parsed = ledger_file::parse(&text).with_context(|| damaged(path))?;
        let ledger = ledger_of(&parsed.entries, mesh).with_context(|| damaged(path))?;
        let mut length = text.len() as u64;
        if parsed.torn_tail {
            length = repair(&mut file, path, &text, &parsed.entries)?;
        }
        Ok(LedgerFile {
            ledger,
            path: path.to_owned(),
            file,
            length,
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// An entry just signed, which must fit.
    pub(crate) fn append(&mut self, entry: &SignedEntry) -> anyhow::Result<()> {
        let taken = self.take(std::slice::from_ref(entry))?;
        match taken.refused.into_iter().next() {
            None => Ok(()),
            Some((_, why)) => {
                Err(anyhow::Error::new(why).context("the ledger refuses what was just signed"))
            }
        }
    }

    /// Entries that others have: those that fit and are new are appended in one write. After an
    /// error the value is of no more use, since it knows what the file lacks.
    pub(crate) fn take(&mut self, entries: &[SignedEntry]) -> anyhow::Result<Taken> {
        let mut taken = Taken::default();
        let mut lines = String::new();
        for entry in entries {
            match self.ledger.insert(entry.clone()) {
                Ok(Inserted::New) => {
                    lines.push_str(&ledger_file::line(entry));
                    taken.new += 1;
                }
                Ok(Inserted::Known) => {}
                Err(why) => taken.refused.push((super::entry_name(entry), why)),
            }
        }
        if !lines.is_empty() {
            self.write(&lines)?;
        }
        Ok(taken)
    }

    fn write(&mut self, lines: &str) -> anyhow::Result<()> {
        let written = self
            .file
            .write_all(lines.as_bytes())
            .and_then(|()| self.file.sync_all());
        if let Err(error) = written {
            // A half line would be repaired at the next start; a whole one would be an entry
            // nobody was told of.
            let undone = self.file.set_len(self.length);
            let error = private::explain(error, "append to the ledger", &self.path);
            return match undone {
                Ok(()) => Err(error),
                Err(undo) => Err(error.context(format!(
                    "and the entry could not be taken back: {undo}; look at the last line before the next command"
                ))),
            };
        }
        self.length += lines.len() as u64;
        Ok(())
    }
}

fn read_bytes(file: &mut File, path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(LONGEST)
        .read_to_end(&mut text)
        .with_context(|| format!("cannot read the ledger {}", path.display()))?;
    Ok(text)
}

/// Removes what was cut off; a last line that only lacks its end gets it. The file's new length.
fn repair(
    file: &mut File,
    path: &Path,
    text: &[u8],
    entries: &[SignedEntry],
) -> anyhow::Result<u64> {
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let wanted = ledger_file::text(entries);
    let rest = wanted.as_bytes().get(whole..).unwrap_or_default();
    file.set_len(whole as u64)
        .and_then(|()| file.write_all(rest))
        .and_then(|()| file.sync_all())
        .map_err(|error| private::explain(error, "repair", path))?;
    if rest.is_empty() {
        eprintln!(
            "causeway: the last line of {} was cut off, most likely by a crash while it was written; it is removed, the entries before it are whole. Repeat the command that was cut off",
            path.display()
        );
    } else {
        eprintln!(
            "causeway: the last line of {} lacked its end, most likely by a crash while it was written; the entry is whole and kept",
            path.display()
        );
    }
    Ok((whole + rest.len()) as u64)
}

/// A ledger of entries in the order of a file.
fn ledger_of(entries: &[SignedEntry], mesh: Option<MeshId>) -> anyhow::Result<Ledger> {
    let first = entries.first().map(SignedEntry::hash);
    let mesh = first.or(mesh).context("it has no entry at all")?;
    let mut ledger = Ledger::new(mesh);
    for (index, entry) in entries.iter().enumerate() {
        ledger
            .insert(entry.clone())
            .with_context(|| format!("line {}, {}", index + 2, super::entry_name(entry)))?;
    }
    Ok(ledger)
}

fn damaged(path: &Path) -> String {
    format!(
        "the ledger {} is damaged; restore it from a copy, or move it away and fetch it with `causeway ledger restore`",
        path.display()
    )
}

/// Two commands at once are nothing unusual; the second waits for its turn.
fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if waited >= PATIENCE => bail!(
                "another command has been signing with {} for {} s; end it or wait until it is done, then repeat",
                path.display(),
                PATIENCE.as_secs()
            ),
            Err(TryLockError::WouldBlock) => {
                if waited.is_zero() {
                    eprintln!(
                        "causeway: waiting for another command that signs with {}",
                        path.display()
                    );
                }
                thread::sleep(PAUSE);
                waited += PAUSE;
            }
            Err(TryLockError::Error(error)) => {
                return Err(private::explain(error, "lock", path));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proto::entry::Body;
    use proto::key::SigningKey;

    use super::*;
    use crate::scratch::Scratch;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn genesis() -> SignedEntry {
        let recovery = SigningKey::from_seed(&[2; 32]).public();
        Ledger::genesis(7, key().public(), &recovery).sign(&key())
    }

    fn next(ledger: &Ledger, seed: u8) -> SignedEntry {
        let broker = proto::entry::Broker {
            key: SigningKey::from_seed(&[seed; 32]).public(),
            store: proto::entry::StoreId([seed; 16]),
            addresses: Vec::new(),
        };
        ledger.next(8, Body::Broker(broker)).unwrap().sign(&key())
    }

    fn file(scratch: &Scratch) -> PathBuf {
        let path = scratch.path().join("ledger");
        fs::write(&path, ledger_file::text([&genesis()])).unwrap();
        path
    }

    #[test]
    fn what_was_appended_is_there_when_it_is_opened_again() {
        let scratch = Scratch::new();
        let path = file(&scratch);
        let mut open = LedgerFile::open(&path).unwrap();
        let entry = next(open.ledger(), 3);
        open.append(&entry).unwrap();
        assert_eq!(open.take(std::slice::from_ref(&entry)).unwrap().new, 0);
        drop(open);
        let again = LedgerFile::open(&path).unwrap();
        assert_eq!(again.ledger().entries().count(), 2);
        assert!(again.ledger().entry(&entry.hash()).is_some());
    }

    #[test]
    fn what_does_not_fit_is_named_and_not_written() {
        let scratch = Scratch::new();
        let path = file(&scratch);
        let mut open = LedgerFile::open(&path).unwrap();
        let mut further = open.ledger().clone();
        further.insert(next(open.ledger(), 3)).unwrap();
        let orphan = next(&further, 4);
        let before = fs::read(&path).unwrap();
        let taken = open.take(&[orphan]).unwrap();
        assert_eq!((taken.new, taken.refused.len()), (0, 1));
        assert!(taken.refused[0].0.starts_with("entry 2"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_cut_at_any_byte_of_the_last_line_costs_at_most_that_line() {
        let scratch = Scratch::new();
        let path = file(&scratch);
        let first = fs::read(&path).unwrap();
        let mut open = LedgerFile::open(&path).unwrap();
        let entry = next(open.ledger(), 3);
        open.append(&entry).unwrap();
        drop(open);
        let whole = fs::read(&path).unwrap();
        for cut in first.len()..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut open = LedgerFile::open(&path).unwrap();
            assert!((1..=2).contains(&open.ledger().len()), "{cut}");
            open.take(std::slice::from_ref(&entry)).unwrap();
            drop(open);
            assert_eq!(fs::read(&path).unwrap(), whole, "{cut}");
        }
    }

    #[test]
    fn a_file_that_waits_for_its_ledger_takes_one_of_its_mesh() {
        let scratch = Scratch::new();
        let path = scratch.path().join("ledger");
        fs::write(&path, format!("{}\n", ledger_file::HEADER)).unwrap();
        assert!(LedgerFile::open(&path).is_err());
        let mut open = LedgerFile::open_for(&path, genesis().hash()).unwrap();
        assert_eq!(open.take(&[genesis()]).unwrap().new, 1);
        drop(open);
        assert_eq!(read(&path).unwrap().len(), 1);
    }
}
