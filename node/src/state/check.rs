//! Who may read and change a file: its owner alone, and that is who runs this.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{StateError, failed};

const OTHERS: u32 = 0o077;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    There,
    Absent,
}

pub(super) fn directory(path: &Path) -> Result<Found, StateError> {
    let Some(found) = look(path)? else {
        return Ok(Found::Absent);
    };
    if !found.is_dir() {
        return Err(StateError::Kind {
            path: path.to_owned(),
            wanted: "directory",
        });
    }
    private(path, &found, 0o700)?;
    Ok(Found::There)
}

/// The content of a file that only its owner may read; no larger than anything we write.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let Some(found) = look(path)? else {
        return Ok(None);
    };
    if !found.is_file() {
        return Err(StateError::Kind {
            path: path.to_owned(),
            wanted: "file",
        });
    }
    private(path, &found, 0o600)?;
    fs::read(path)
        .map(Some)
        .map_err(|error| failed(path, error))
}

fn look(path: &Path) -> Result<Option<Metadata>, StateError> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}

fn private(path: &Path, found: &Metadata, wanted: u32) -> Result<(), StateError> {
    let user = nix::unistd::geteuid().as_raw();
    if found.uid() != user {
        return Err(StateError::Owner {
            path: path.to_owned(),
            owner: found.uid(),
            user,
        });
    }
    let mode = found.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(StateError::Mode {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    Ok(())
}
