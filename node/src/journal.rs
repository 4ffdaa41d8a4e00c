//! A file of lines that is only appended to, and now and then written anew. Each line carries a
//! checksum: a torn tail or a damaged line costs that line and no other.
//!
//! Lines are `CRC TEXT`, where CRC is the CRC-32 (IEEE) of the text, in eight hexadecimal digits;
//! the text of the first one is `causeway cache 1`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::durable;

const HEADER: &str = "causeway cache 1";
const HEADER_START: &str = "causeway cache ";

pub struct Journal {
    path: PathBuf,
    file: File,
    /// Up to the end of the last line that is known to be durable; behind it may be the rest of
    /// an append that failed.
    length: u64,
}

/// What a journal held when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub lines: Vec<String>,
    /// Lines whose checksum does not hold.
    pub damaged: usize,
}

#[derive(Debug, Error)]
pub enum JournalError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "{0} was written by a newer Causeway; upgrade this one, or delete the file: what it caches is fetched again"
    )]
    Newer(PathBuf),
}

impl Journal {
    /// Makes it if it is not there.
    pub fn open(path: &Path) -> Result<(Journal, Content), JournalError> {
        let failed = |error| JournalError::Io {
            path: path.to_owned(),
            error,
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let empty = file_of(&[]);
                durable::replace(path, &empty).map_err(failed)?;
                empty
            }
            Err(error) => return Err(failed(error)),
        };
        let content = parse(&bytes).ok_or_else(|| JournalError::Newer(path.to_owned()))?;
        let file = OpenOptions::new()
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            length: bytes.len() as u64,
        };
        if bytes.last().is_some_and(|last| *last != b'\n') {
            // A torn tail must not swallow the line that comes next.
            journal.write(b"\n").map_err(failed)?;
        }
        Ok((journal, content))
    }

    /// The whole lines of one that another process may be writing.
    pub(crate) fn read(path: &Path) -> Option<Vec<String>> {
        parse(&fs::read(path).ok()?).map(|content| content.lines)
    }

    /// Durable once it returns. After an error nothing was appended, and it may be tried again.
    pub fn append(&mut self, lines: &[String]) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for line in lines {
            write_line(&mut bytes, line);
        }
        let written = self.write(&bytes);
        written.map_err(|error| self.failed(error))
    }

    /// Has these lines and no others from now on; the old ones stay if this fails.
    pub fn replace(&mut self, lines: &[String]) -> Result<(), JournalError> {
        let bytes = file_of(lines);
        let replaced = durable::replace(&self.path, &bytes)
            .and_then(|()| OpenOptions::new().write(true).open(&self.path));
        self.file = replaced.map_err(|error| self.failed(error))?;
        self.length = bytes.len() as u64;
        Ok(())
    }

    /// In bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // An append that failed in the middle is written over.
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> JournalError {
        JournalError::Io {
            path: self.path.clone(),
            error,
        }
    }
}

/// A whole file with these lines.
pub fn file_of(lines: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_line(&mut bytes, HEADER);
    for line in lines {
        write_line(&mut bytes, line);
    }
    bytes
}

fn write_line(out: &mut Vec<u8>, text: &str) {
    debug_assert!(!text.contains('\n'), "a line is one line");
    out.extend_from_slice(format!("{:08x} {text}\n", crc32(text.as_bytes())).as_bytes());
}

/// `None` for a version that is not known here.
fn parse(bytes: &[u8]) -> Option<Content> {
    let mut content = Content::default();
    for line in bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        match checked(line) {
            None => content.damaged += 1,
            Some(HEADER) => {}
            Some(other) if other.starts_with(HEADER_START) => return None,
            Some(text) => content.lines.push(text.to_owned()),
        }
    }
    Some(content)
}

fn checked(line: &[u8]) -> Option<&str> {
    let (sum, text) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let holds = sum == format!("{:08x}", crc32(text.as_bytes()));
    holds.then_some(text)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (crc >> 8) ^ CRC_TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)]
    })
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0xedb8_8320
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir()
                .join(format!("causeway-journal-{}-{name}", std::process::id()));
            fs::remove_dir_all(&path).ok();
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join("journal")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn lines(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("line {number}")).collect()
    }

    #[test]
    fn the_checksum_is_the_well_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let scratch = Scratch::new("again");
        let (mut journal, content) = Journal::open(&scratch.file()).unwrap();
        assert_eq!(content, Content::default());
        journal.append(&lines(3)[..2]).unwrap();
        journal.append(&lines(3)[2..]).unwrap();
        let (journal, content) = Journal::open(&scratch.file()).unwrap();
        assert_eq!(content.lines, lines(3));
        assert_eq!(
            journal.length(),
            fs::metadata(scratch.file()).unwrap().len()
        );
    }

    #[test]
    fn cut_anywhere_it_keeps_every_whole_line_and_takes_new_ones() {
        let scratch = Scratch::new("cut");
        let whole = file_of(&lines(4));
        for length in 0..=whole.len() {
            fs::write(scratch.file(), &whole[..length]).unwrap();
            let (mut journal, content) = Journal::open(&scratch.file()).unwrap();
            assert_eq!(
                content.lines,
                lines(4)[..content.lines.len()],
                "cut at {length}"
            );
            let complete = whole[..length]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            assert!(content.lines.len() + 1 >= complete, "cut at {length}");
            journal.append(&["next".to_owned()]).unwrap();
            let (_, after) = Journal::open(&scratch.file()).unwrap();
            assert_eq!(after.lines.last().unwrap(), "next", "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_bit_costs_at_most_the_lines_it_touches() {
        let whole = file_of(&lines(4));
        for position in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[position / 8] ^= 1 << (position % 8);
            let content = parse(&flipped).unwrap();
            // A line break that is no longer one costs the lines on both sides of it.
            assert!(content.lines.len() >= 2, "bit {position}");
            assert!(
                content.lines.iter().all(|line| lines(4).contains(line)),
                "bit {position}"
            );
        }
    }

    #[test]
    fn a_newer_file_is_not_touched() {
        let scratch = Scratch::new("newer");
        let mut newer = Vec::new();
        write_line(&mut newer, "causeway cache 2");
        fs::write(scratch.file(), &newer).unwrap();
        assert!(matches!(
            Journal::open(&scratch.file()),
            Err(JournalError::Newer(_))
        ));
        assert_eq!(fs::read(scratch.file()).unwrap(), newer);
    }

    #[test]
    fn replacing_leaves_only_the_new_lines_and_appending_goes_on() {
        let scratch = Scratch::new("replace");
        let (mut journal, _) = Journal::open(&scratch.file()).unwrap();
        journal.append(&lines(4)).unwrap();
        journal.replace(&lines(1)).unwrap();
        journal.append(&["more".to_owned()]).unwrap();
        let (_, content) = Journal::open(&scratch.file()).unwrap();
        assert_eq!(content.lines, ["line 0", "more"]);
    }
}
