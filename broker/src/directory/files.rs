//! Files that only their owner may read, written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::DirectoryError;

/// Larger than any file kept here but the ledger; what is read has an end.
const MAX_FILE: u64 = 256 * 1024 * 1024;

pub(super) fn failed(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> DirectoryError + use<> {
    let path = path.to_owned();
    move |error| DirectoryError::Io { doing, path, error }
}

/// A directory of our own, 0700. Its parents are made as usual.
pub(super) fn make_directory(path: &Path) -> Result<(), DirectoryError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make", parent))?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed("make", path))
}

/// A new file, 0600, durable when this returns but for its name: [`sync_directory`].
pub(super) fn write_new(path: &Path, content: &[u8]) -> Result<(), DirectoryError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("make", path))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(failed("write", path))
}

/// The old content or the new one, never a part.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), DirectoryError> {
    let staged = path.with_extension("new");
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &staged)(error));
        }
        Ok(()) | Err(_) => {}
    }
    write_new(&staged, content)?;
    fs::rename(&staged, path).map_err(failed("replace", path))?;
    sync_directory(path.parent().unwrap_or(path))
}

pub(super) fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", path))
}

/// Ours, and for nobody else.
pub(super) fn check_private(path: &Path) -> Result<(), DirectoryError> {
    let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    // Its mode says nothing, and a chmod would change what it leads to.
    if found.is_symlink() {
        return Err(DirectoryError::Link {
            path: path.to_owned(),
        });
    }
    let owner = nix::unistd::geteuid().as_raw();
    if found.uid() != owner {
        return Err(DirectoryError::Owner {
            path: path.to_owned(),
            owner: found.uid(),
            us: owner,
        });
    }
    if found.mode() & 0o077 != 0 {
        return Err(DirectoryError::Loose {
            path: path.to_owned(),
            mode: found.mode() & 0o7777,
            wanted: if found.is_dir() { 0o700 } else { 0o600 },
        });
    }
    Ok(())
}

/// A private file's content.
pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, DirectoryError> {
    check_private(path)?;
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut content))
        .map_err(failed("read", path))?;
    Ok(content)
}

/// Removed when dropped, unless it was given its name before.
pub(super) struct Staged {
    pub(super) path: PathBuf,
    pub(super) kept: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody can be told here; the next attempt removes it.
            let _gone = fs::remove_dir_all(&self.path);
        }
    }
}
