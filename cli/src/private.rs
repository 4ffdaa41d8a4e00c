//! Files and directories that nobody else may read, and writes that survive a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

/// What a secret may be at most: a token of many prefixes is the longest.
const LONGEST_SECRET: u64 = 64 * 1024;

/// Whether there is anything; a path that this user may not look behind is an error, not absence.
pub(crate) fn is_there(path: &Path) -> anyhow::Result<bool> {
    path.try_exists()
        .map_err(|error| explain(error, "look at", path))
}

/// Refuses a directory that others may enter or that somebody else owns.
pub(crate) fn check_directory(path: &Path) -> anyhow::Result<()> {
    let found = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !found.is_dir() {
        bail!("{} is not a directory; give another one", path.display());
    }
    check(path, &found, "700")
}

/// Refuses a file that others may read or that somebody else owns.
fn check(path: &Path, found: &fs::Metadata, wanted: &str) -> anyhow::Result<()> {
    let path = path.display();
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        bail!(
            "{path} is open to others (mode {mode:04o}) and must not be; see who could have read it, then: chmod {wanted} {path}"
        );
    }
    let user = nix::unistd::geteuid();
    if !user.is_root() && found.uid() != user.as_raw() {
        bail!(
            "{path} belongs to user {}, and this is user {user}; run as that user or as root",
            found.uid()
        );
    }
    Ok(())
}

/// Makes a directory for its owner alone; its parents must exist.
pub(crate) fn make_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| explain(error, "make the directory", path))
}

/// Makes a new file for its owner alone and waits until it is on disk.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(|error| explain(error, "write", path))
}

/// A secret of our own, checked to be one.
pub(crate) fn read_secret(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut file = File::open(path).map_err(|error| explain(error, "read", path))?;
    let found = file
        .metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    check(path, &found, "600")?;
    read_limited(&mut file).with_context(|| format!("cannot read {}", path.display()))
}

/// At most as much as a secret can have, so that a wrong file does not fill the memory.
pub(crate) fn read_limited(from: &mut impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    from.take(LONGEST_SECRET + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_SECRET {
        return Err(io::Error::other(
            "it is far too long; is it the right file?",
        ));
    }
    Ok(text)
}

/// Makes a rename or a new file in this directory last.
pub(crate) fn sync_directory(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot make {} durable; check the disk", path.display()))
}

const NEXT: [(io::ErrorKind, &str); 5] = [
    (
        io::ErrorKind::PermissionDenied,
        "; run as the user that owns it, or as root",
    ),
    (
        io::ErrorKind::ReadOnlyFilesystem,
        "; the file system is read-only, mount it writable or give another directory",
    ),
    (io::ErrorKind::StorageFull, "; make room on the disk"),
    (io::ErrorKind::QuotaExceeded, "; make room on the disk"),
    (
        io::ErrorKind::AlreadyExists,
        "; move it away or give another path",
    ),
];

/// What to do about such a fault, as the end of a sentence; empty where that is not known.
pub(crate) fn next(kind: io::ErrorKind) -> &'static str {
    let known = NEXT.iter().find(|(known, _)| *known == kind);
    known.map_or("", |(_, next)| next)
}

/// What failed, on what, and what to do, for the faults that operators meet.
pub(crate) fn explain(error: io::Error, what: &str, path: &Path) -> anyhow::Error {
    let makes = what.starts_with("make") || what.starts_with("write");
    let is_missing = error.kind() == io::ErrorKind::NotFound;
    let next = match (is_missing, makes) {
        (true, true) => "; make its parent directory first, or give another path",
        (true, false) => "; check the path",
        (false, _) => next(error.kind()),
    };
    anyhow::anyhow!("cannot {what} {}: {error}{next}", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_command_that_helps() {
        let scratch = Scratch::new();
        let path = scratch.path().join("key");
        write_new(&path, b"text").unwrap();
        assert_eq!(*read_secret(&path).unwrap(), "text");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("0640"), "{error}");
        assert!(
            error.contains(&format!("chmod 600 {}", path.display())),
            "{error}"
        );
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path().join("d");
        make_directory(&path).unwrap();
        check_directory(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let error = check_directory(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_wrong_file_does_not_fill_the_memory() {
        let mut endless = io::repeat(b'x');
        assert!(read_limited(&mut endless).is_err());
    }

    #[test]
    fn nothing_is_written_over() {
        let scratch = Scratch::new();
        let path = scratch.path().join("key");
        write_new(&path, b"one").unwrap();
        assert!(write_new(&path, b"two").is_err());
        assert_eq!(*read_secret(&path).unwrap(), "one");
    }
}
