//! A ledger as a file: appended to under a lock, on disk before anything else happens. A last line
//! that a crash has cut is named and removed; any other fault is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use proto::entry::SignedEntry;
use proto::key::MeshId;
use proto::ledger::{Inserted, Ledger, LedgerError};
use proto::ledger_file;

use crate::private;

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
    let mut file = File::open(path).map_err(|error| private::explain(error, "read", path))?;
    let text = read_bytes(&mut file, path)?;
    let parsed = ledger_file::parse(&text).with_context(|| damaged(path))?;
    ledger_of(&parsed.entries, None).with_context(|| damaged(path))
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
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(lines.as_bytes()))
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
        "the ledger {} is damaged; restore it from a copy, or with the key alone fetch it from a broker",
        path.display()
    )
}

fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => bail!(
            "another command is signing with {}; wait until it is done and repeat",
            path.display()
        ),
        Err(TryLockError::Error(error)) => Err(private::explain(error, "lock", path)),
    }
}
